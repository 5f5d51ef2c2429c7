"""A NumPyro model and its arguments as a target."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial
from numpyro.infer import init_to_uniform

from langevin_ppl.base import Array, LogDensity, Plate, Position, PRNGKey, Rows
from langevin_ppl.devices import place, to_host
from langevin_ppl.streams import Absent, Stream
from langevin_ppl.targets import programs
from langevin_ppl.targets.calls import Code, bind, by_name, model_name, stream_of
from langevin_ppl.targets.leaves import Static
from langevin_ppl.targets.structure import Structure, inspect_model, refuse_numbers
from langevin_ppl.targets.target import BaseTarget, Options, Proposal
from langevin_ppl.tree import all_finite

__all__ = ["ModelTarget", "target"]

NEEDS_CONCRETE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


@jax.tree_util.register_pytree_node_class
class ModelTarget(BaseTarget):
    """A NumPyro model with its arguments; made by `target`."""

    takes_intractable = False
    """Whether normalisers may be missing that depend on latents."""

    def __init__(
        self,
        code: Code,
        arrays: tuple[Array, ...],
        fixed: dict[str, Any] | None,
        options: Options,
        batch_size: int | None = None,
        stream: Stream | None = None,
    ):
        self._code = code
        self._arrays = arrays
        self._fixed = fixed
        self.options = options
        self._batch_size = batch_size
        self.stream = stream

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """Arrays are leaves, all else is structure; a stream stays on the host."""
        return (self._arrays, self._fixed), (self._code, Static(self.options), self._batch_size)

    @classmethod
    def tree_unflatten(cls, aux: Any, children: tuple[Any, ...]) -> "ModelTarget":
        """Inverse of `tree_flatten`."""
        code, options, batch_size = aux
        arrays, fixed = children
        return cls(code, arrays, fixed, options.value, batch_size)

    def _with_options(self, options: Options) -> "ModelTarget":
        if options.static == self.options.static:
            return self._remade(self._code, self._arrays, self._fixed, options)
        model = self._code.model
        args, kwargs = self._code.arguments(self._arrays)
        passed = by_name(model.value, args, kwargs)
        unknown = sorted(set(options.static) - set(passed))
        if unknown:
            raise ValueError(
                f"target.replace: static names no argument that was passed to {self.description}: "
                f"{', '.join(unknown)}; passed were {', '.join(passed) or 'none'}."
            )
        return self._remade(*bind(model, args, kwargs, options.static), None, options)

    def _remade(
        self, code: Code, arrays: tuple[Array, ...], fixed: Any, options: Options
    ) -> "ModelTarget":
        """Target with other parts and the same stream."""
        return ModelTarget(code, arrays, fixed, options, self._batch_size, self.stream)

    @functools.cached_property
    def structure(self) -> Structure:
        """Sites, plates and shapes of the model, from one abstract trace.

        Raises
        ------
        ValueError
            For a model that Langevin dynamics cannot sample; the message says the cure.
        TypeError
            For a model that needs the value of an argument; the message names it.
        """
        try:
            found = inspect_model(self._code, self._arrays, self._batch_size)
            if self.stream is not None and self.stream.order is None:
                refuse_numbers(self._code, self._arrays, found)
            if found.intractable and not self.takes_intractable:
                raise ValueError(_intractable(found.intractable))
            return found
        except NEEDS_CONCRETE as error:
            raise TypeError(self._explain_concrete(error)) from error
        except Exception as error:
            error.add_note(f"langevin_ppl: while tracing {self.description}.")
            raise

    def _explain_concrete(self, error: Exception) -> str:
        first = str(error).strip().splitlines()[0].rstrip(".")
        declared = self.options.static

        def suffices(names: list[str]) -> bool:
            try:
                other = self.replace(static=(*declared, *names))
                inspect_model(other._code, other._arrays, self._batch_size)
            except NEEDS_CONCRETE:
                return False
            except Exception:  # another fault, which will be said when this one is cured
                return True
            return True

        culprits = list(dict.fromkeys(name for name, _, _ in self._code.slots(len(self._arrays))))
        if not suffices(culprits):
            return (
                f"{self.description} needs a concrete value while it is traced ({first}), and it "
                "depends on a latent site: no argument is at fault. Write it with jax.numpy, "
                "jnp.where or jax.lax.cond in place of NumPy, `if` and int()."
            )
        for name in tuple(culprits):
            others = [n for n in culprits if n != name]
            if suffices(others):
                culprits = others
        return (
            f"{self.description} needs the value of {' and '.join(map(repr, culprits))} while it "
            f"is traced ({first}). Arrays given to a model are data of a compiled program and "
            "have no value then. Make it part of the program: "
            f"target.replace(static={(*declared, *culprits)!r})."
        )

    @functools.cached_property
    def _data(self) -> tuple[tuple[Array, ...], dict[str, Any]]:
        """Arguments and the values of ``param`` and ``mutable`` sites."""
        if self._fixed is not None:
            return self._arrays, self._fixed
        names = self.structure.fixed
        if not names:
            return self._arrays, {}
        return self._arrays, programs.fixed_values(
            self._code, self._arrays, jax.random.key(0), names, self._blank
        )

    @functools.cached_property
    def _blank(self) -> dict[str, Rows] | None:
        """A row of zeros in the place of a stream's rows, for programs that look at none."""
        if self._batch_size is None:
            return None
        return self._rows_of(np.zeros(1, int), lambda a: np.zeros((1, *a.shape[1:]), a.dtype))

    def _rows_of(self, indices: Any, values: Callable[[Absent], Any]) -> dict[str, Rows]:
        """Rows of the plate that a stream's columns are read in."""
        ((name, plate),) = self.plates.items()
        slices = {
            (read.argument, read.axis): jnp.asarray(values(absent))
            for read in self.structure.reads
            if isinstance(absent := self._arrays[read.argument], Absent)
        }
        rows = {name: Rows(jnp.asarray(indices), None, slices, plate.size)}
        return place(rows, self.mesh)

    def some_rows(self, number: int) -> dict[str, Rows]:
        """Rows from all over a stream, in memory, each with weight ``size / number``.

        Parameters
        ----------
        number
            How many, at most.
        """
        assert self.stream is not None
        indices, columns = self.stream.sample_rows(number)
        places = {column.name: column.number for column in self.stream.columns}
        return self._rows_of(indices, lambda absent: columns[places[absent.name]])

    @property
    def fixed(self) -> dict[str, Any]:
        """Values of ``param`` and ``mutable`` sites by name, which the log density holds fixed."""
        return self._data[1]

    def with_fixed(self, values: Mapping[str, Any]) -> "ModelTarget":
        """Return a copy with other values of some ``param`` and ``mutable`` sites."""
        fixed = {**self._data[1], **values}
        return self._remade(self._code, self._arrays, fixed, self.options)

    @property
    def summed_out(self) -> tuple[str, ...]:
        """Names of discrete latent sites, which the log density sums out."""
        return self.structure.enumerated

    @property
    def data(self) -> tuple[Array, ...]:
        """Arrays among the arguments of the model."""
        return self._arrays

    def with_data(self, data: tuple[Array, ...]) -> "ModelTarget":
        """Return a copy with other arrays of the same shapes."""
        return self._remade(self._code, data, self._fixed, self.options)

    def call(self, data: tuple[Any, ...]) -> Any:
        """Call the model, with anything in the places of its arrays."""
        args, kwargs = self._code.arguments(data)
        return self._code.model.value(*args, **kwargs)

    def wrapped(
        self, around: Callable[[Callable[..., Any]], Callable[..., Any]], *first: Any
    ) -> "ModelTarget":
        """Return the target of another model around this one, that takes arguments before its own.

        Parameters
        ----------
        around
            Makes the other model; what it makes of equal models has to be equal and hashable.
        *first
            Arguments before those of the model; arrays among them are the first data.
        """
        args, kwargs = self._code.arguments(self._arrays)
        model = Static(around(self._code.model.value))
        bound = bind(model, (*first, *args), kwargs, self.options.static)
        return self._remade(*bound, None, self.options)

    def read_onto(self, mesh: Mesh) -> "ModelTarget":
        """Return a copy whose stream's rows are put on the devices of a mesh."""
        copy = self.with_data(self.data)
        copy.mesh = mesh
        return copy

    @property
    def logdensity_fn(self) -> LogDensity:
        """Log density on unconstrained space, as a pytree function whose leaves are the data.

        Discrete latent sites are summed out.
        """
        nesting = self.structure.nesting if self.summed_out else None
        return Partial(programs.ModelLogDensity(self._code, nesting), *self._data)

    @property
    def starting_density_fn(self) -> LogDensity:
        """Log density by which starting positions are tried: of a stream, that on some rows."""
        if self.stream is None:
            return self.logdensity_fn
        return Partial(self.batch_logdensity_fn, self.some_rows(TRIED_ROWS))

    @property
    def plates(self) -> dict[str, Plate]:
        """Subsampled plates by name."""
        return self.structure.plates

    @property
    def batch_logdensity_fn(self) -> Callable[[dict[str, Rows], Position], Array]:
        """Log density on rows of subsampled plates, as a pytree function of rows and position.

        Each row counts by its weight, ``size / number`` by default, so that for rows drawn
        uniformly its mean is the log density. Plates that are not named count all their rows.
        """
        return Partial(programs.BatchLogDensity(self._code), *self._data)

    def logdensity_on(self, batch: Mapping[str, Array], position: Position) -> Array:
        """Log density on rows of subsampled plates, for use with other libraries.

        Parameters
        ----------
        batch
            Indices of rows by the name of the plate, ``{"row": [row]}``.
        position
            Unconstrained position.

        Returns
        -------
        Array
            Scalar, whose mean over uniformly drawn rows is the log density.

        Raises
        ------
        ValueError
            If a name is not that of a subsampled plate.

        Examples
        --------
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import langevin_ppl as lp
        >>> def model(y):
        ...     mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with numpyro.plate("row", 100, subsample_size=10):
        ...         numpyro.sample("y", dist.Normal(mean, 1.0), obs=numpyro.subsample(y, 0))
        >>> target = lp.target(model, jnp.ones(100))
        >>> rows = {"row": jnp.arange(10)}
        >>> bool(jnp.isclose(target.logdensity_on(rows, {"mean": 0.5}),
        ...                  target.logdensity_fn({"mean": 0.5})))
        True
        """
        unknown = sorted(set(batch) - set(self.plates))
        if unknown:
            raise ValueError(
                f"logdensity_on: {', '.join(unknown)} is no subsampled plate of "
                f"{self.description}; there are {', '.join(self.plates) or 'none'}."
            )
        rows = {
            name: Rows(jnp.asarray(indices), None, {}, self.plates[name].size)
            for name, indices in batch.items()
        }
        return self.batch_logdensity_fn(rows, position)

    def row_arrays(self, plate: str) -> dict[tuple[int, int], Array]:
        """Arrays that the model reads by ``numpyro.subsample`` in a plate, for `Rows.slices`."""
        return {
            (read.argument, read.axis): self._arrays[read.argument]
            for read in sorted(self.structure.reads)  # in one order in every process
            if read.plate == plate
        }

    @property
    def prototype(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of the unconstrained latent sites."""
        return self.structure.prototype

    def proposal(self) -> tuple[Proposal, Any]:
        """Make starting positions by NumPyro's ``init_strategy``."""
        strategy = self.options.init_strategy or init_to_uniform
        # NumPyro's strategies give themselves when they are called without a site; a function
        # that needs one is a strategy already.
        if all(p.default is not p.empty for p in inspect.signature(strategy).parameters.values()):
            strategy = strategy()
        function, keywords = getattr(strategy, "func", None), getattr(strategy, "keywords", {})
        if function is init_to_uniform and set(keywords) <= {"radius"}:
            radius = float(keywords.get("radius", 2.0))
            return programs.Uniform(self.structure.layout, radius), ()
        names = tuple(self.structure.prototype)
        return programs.Strategy(self._code, Static(strategy), names), (*self._data, self._blank)

    def explain(self, position: Position) -> str:
        """Say which sites are at fault where the log density will not do."""
        values = self.constrain(position)
        latent = {name: values[name] for name in self.structure.prototype}
        rows = None if self.stream is None else self.some_rows(TRIED_ROWS)
        terms = programs.site_logdensities(self._code, *self._data, latent, rows)
        missing = {
            name: f", NaN in its {where}"
            for name, value in self.observed_data.items()
            if (where := _nan_rows(value))
        }
        bad = [
            f"'{name}' ({float(term)}{missing.get(name, '')})"
            for name, term in terms.items()
            if not bool(all_finite(term))
        ]
        gradient = jax.grad(self.starting_density_fn)(position)
        steep = [repr(name) for name, g in gradient.items() if not bool(all_finite(g))]
        what = []
        if bad:
            what.append(f"the log density of site {', '.join(bad)} is not finite")
        if steep:
            what.append(f"the gradient for site {', '.join(steep)} is not finite")
        holes = [
            f"'{label}' has NaN in its {where}"
            for _, label, number in self._code.slots(len(self._arrays))
            if not isinstance(self._arrays[number], Absent)
            and (where := _nan_rows(self._arrays[number]))
        ]
        data = f" Of the arguments, {' and '.join(holes)}." if holes else ""
        return (
            f"{self.description}: no starting position with a finite log density was found. "
            f"At the last one tried, {' and '.join(what) or 'their sum is not finite'}.{data} "
            "Check the model and the data there (a value outside a distribution's support, a "
            "logarithm of 0, missing values without a mask), or set "
            "target.replace(init_strategy=...), for example numpyro.infer.init_to_median."
        )

    def constrain(self, position: Position, batch_ndims: int = 0) -> dict[str, Array]:
        """Constrained sites and deterministics of unconstrained positions.

        Parameters
        ----------
        position
            Unconstrained latent sites.
        batch_ndims
            Number of leading axes, 2 for ``[chain, draw]``.
        """
        hidden = self.structure.hidden
        return programs.constrain(
            self._code, *self._data, position, batch_ndims, hidden, self._blank
        )

    def site_logdensities(self, values: Mapping[str, Any]) -> dict[str, Array]:
        """Log density of every site at values of the latent sites, in their own coordinates."""
        return programs.site_logdensities(self._code, *self._data, dict(values))

    def unconstrain(self, values: Mapping[str, Any]) -> tuple[Position, dict[str, Array]]:
        """Unconstrained position of values of the latent sites, for use under ``vmap``.

        Parameters
        ----------
        values
            Values of all latent sites.

        Returns
        -------
        position, inside
            The position, and for every site whether its value is in the support, scalars.
        """
        return programs.unconstrain(self._code, *self._data, dict(values))

    def posterior_samples(self, samples: Mapping[str, Any]) -> dict[str, Array]:
        """Latent sites of posterior samples, by the names of the model.

        Parameters
        ----------
        samples
            The DataTree of a run, its ``posterior``, or a dict of sites. Sites may have the names
            of the model or those of a DataTree.

        Returns
        -------
        dict
            Arrays as in ``samples``, ``[chain, draw, ...]`` from a DataTree: what
            ``numpyro.infer.Predictive(model, samples, batch_ndims=2)`` takes.

        Raises
        ------
        ValueError
            If a latent site is missing.

        Examples
        --------
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> import langevin_ppl as lp
        >>> target = lp.target(lambda: numpyro.sample("net/bias", dist.Normal(0.0, 1.0)))
        >>> list(target.posterior_samples({"net.bias": jnp.zeros((4, 100))}))
        ['net/bias']
        """
        samples = getattr(samples, "children", {}).get("posterior", samples)
        in_tree = hasattr(samples, "data_vars")
        found, names, latent = {}, self.names, self.structure.prototype
        for name in latent:
            # In a dataset, a name such as ``draw`` is a coordinate and not the site.
            own = name in samples and not (in_tree and names[name] != name)
            key = name if own else names[name]
            if key not in samples:
                raise ValueError(
                    f"samples: expected the latent sites {', '.join(latent)}, got "
                    f"{', '.join(map(str, samples)) or 'none'}; '{name}' is missing."
                )
            found[name] = jnp.asarray(getattr(samples[key], "values", samples[key]))
        return found

    def predict(
        self, rng_key: PRNGKey, samples: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Array]:
        """Draw the observed sites anew for every posterior draw.

        Those count that ``obs=`` or ``handlers.condition`` observes. Discrete sites that were
        summed out are drawn first, given the draw and the data. Inside ``scan``, a path that goes
        on from what was observed is drawn anew from its beginning.

        Parameters
        ----------
        rng_key
            Random key.
        samples
            Constrained sites, each of shape ``[chain, draw, ...]``, or the DataTree of a run; see
            `posterior_samples`.
        *args, **kwargs
            Other arguments of the model, for prediction at new data; by default those of the
            target.

        Returns
        -------
        dict
            Observed sites, each of shape ``[chain, draw, ...]``.
        """
        code, arrays, observed = self._code, self._data[0], self.structure.observed
        if args or kwargs:
            # What is observed in the new call may differ: y=None is how NumPyro users predict.
            code, arrays = bind(self._code.model, args, kwargs, self.options.static)
        latent = self.posterior_samples(samples)
        if self.summed_out:
            if args or kwargs:
                raise ValueError(
                    f"{self.description}: discrete sites are drawn given the data of the target, "
                    "and have no values at new data. Leave the arguments out."
                )
            rng_key, key_discrete = jax.random.split(rng_key)
            latent |= programs.draw_discrete(
                code, arrays, self._data[1], key_discrete, latent, self.summed_out
            )
        return programs.predict(code, arrays, self._data[1], rng_key, latent, observed)

    def predict_prior(self, rng_key: PRNGKey, num_samples: int) -> dict[str, Array]:
        """Draw all sites from the model with nothing observed, each ``[1, num_samples, ...]``.

        ``factor`` statements are left out: they have no draws.

        Raises
        ------
        ValueError
            If a distribution cannot be drawn from, as an improper one.
        """
        names = tuple(self.structure.shapes)
        try:
            draws = programs.predict_prior(self._code, *self._data, rng_key, num_samples, names)
        except NotImplementedError as error:
            raise ValueError(
                f"{self.description}: its prior cannot be drawn from, because the distribution of "
                "a site has no `sample` method (ImproperUniform has none). Give it a proper one, "
                "or leave the prior out."
            ) from error
        return {name: value[None] for name, value in draws.items()}

    def log_likelihood(self, samples: Mapping[str, Any]) -> dict[str, Array]:
        """Pointwise log likelihood of the observed sites, each of shape ``[chain, draw, ...]``.

        Raises
        ------
        ValueError
            If the model has discrete latent sites: given a draw of them, the likelihood is another.
        """
        if self.summed_out:
            raise ValueError(
                f"{self.description}: no pointwise log likelihood, because discrete sites "
                f"({', '.join(self.summed_out)}) are summed out for all rows together. "
                "Write the mixture by numpyro.distributions.MixtureSameFamily, which has one."
            )
        latent = self.posterior_samples(samples)
        terms = programs.pointwise_log_likelihood(self._code, *self._data, latent)
        return {name: terms[name] for name in self.structure.observed}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of latent and observed sites, deterministics and constant data."""
        constant = {name: jnp.shape(value) for name, value in self.constant_data.items()}
        return {**constant, **self.structure.shapes}

    @property
    def labels(self) -> dict[str, tuple[str | None, ...]]:
        """Labels that plates and ``infer={"event_dims": ...}`` give to axes of sites."""
        return self.structure.labels

    @property
    def observed_data(self) -> dict[str, Array]:
        """Values of the observed sites, without those that are read from a stream."""
        streamed = set(self.plates) if self._batch_size is not None else set()
        names = tuple(
            n for n in self.structure.observed if not streamed & set(self.structure.labels[n])
        )
        return programs.observed_values(self._code, *self._data, names, self._blank)

    @property
    def constant_data(self) -> dict[str, Array]:
        """Arrays among the arguments that are not themselves observed, nor read from a stream."""
        observed = self.structure.observed_arguments
        return {
            label: self._arrays[i]
            for _, label, i in self._code.slots(len(self._arrays))
            if i not in observed and not isinstance(self._arrays[i], Absent)
        }

    @property
    def description(self) -> str:
        """What the target is, for messages and the attributes of a run."""
        return f"model {model_name(self._code.model.value)}"


def _intractable(names: tuple[str, ...]) -> str:
    spoken = ", ".join(map(repr, names))
    return (
        f"The energy of the EnergyBased site {spoken} depends on another latent site, and so does "
        "its normaliser, which is not known: the posterior would be silently wrong. Make what it "
        "depends on a numpyro.param, which langevin_ppl.energy.fit learns from data, or sample its "
        "posterior by langevin_ppl.energy.exchange, which needs no normaliser."
    )


TRIED_ROWS = 2**14
"""Rows of a stream on which starting positions are tried."""

MAX_NAMED = 5
"""Most rows that a message names."""


def _nan_rows(values: Any) -> str:
    """Name the rows of an array that hold NaN; nothing where there are none."""
    array = np.asarray(to_host(values))
    if not np.issubdtype(array.dtype, np.floating) or not np.isnan(array).any():
        return ""
    if array.ndim == 0:
        return "value"
    rows = np.flatnonzero(np.isnan(array.reshape(len(array), -1)).any(axis=1))
    listed = ", ".join(map(str, rows[:MAX_NAMED]))
    more = f" and {len(rows) - MAX_NAMED} more" if len(rows) > MAX_NAMED else ""
    return f"row{'s' if len(rows) > 1 else ''} {listed}{more}"


def target(model: Callable[..., Any], *args: Any, **kwargs: Any) -> ModelTarget:
    """Make a target of a NumPyro model and its arguments.

    Arrays among the arguments are data: a second target with arrays of the same shapes reuses
    every compiled program. So are the columns of a `stream`, whose rows stay where they are. Python
    numbers, strings and callables are part of the program, and so are the arguments named by
    ``target.replace(static=...)``.

    Parameters
    ----------
    model
        A NumPyro model, handlers around it included.
    *args, **kwargs
        The model's arguments, all forwarded.

    Returns
    -------
    ModelTarget
        The model is looked at when it is first used, so that options can be set before.

    Raises
    ------
    TypeError
        If ``model`` is not callable or does not take these arguments.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> import langevin_ppl as lp
    >>> def model(x, y=None):
    ...     slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    ...     with numpyro.plate("row", x.shape[0]):
    ...         numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
    >>> target = lp.target(model, jnp.arange(3.0), y=jnp.array([0.1, 0.9, 2.1]))
    >>> sorted(target.init_position(jax.random.key(0)))
    ['slope']
    >>> target.dims["y"]
    ['row']
    """
    if not callable(model):
        raise TypeError(
            f"lp.target: expected a NumPyro model (a function), got {type(model).__name__}."
        )
    code, arrays = bind(Static(model), args, kwargs, ())
    stream = stream_of((args, kwargs))
    batch_size = None if stream is None else stream.batch_size
    return ModelTarget(code, arrays, None, Options(), batch_size, stream)

"""A NumPyro model and its arguments as a target."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh
from jax.tree_util import Partial
from numpyro.infer import init_to_median, init_to_sample, init_to_uniform

from langevin_ppl.base import Array, LogDensity, Plate, Position, PRNGKey, Rows
from langevin_ppl.devices import place, to_host
from langevin_ppl.streams import Absent, Stream
from langevin_ppl.targets import programs
from langevin_ppl.targets.calls import (
    Bound,
    Code,
    bind,
    by_name,
    model_name,
    settled,
    stream_of,
)
from langevin_ppl.targets.forward import by_forward_mode
from langevin_ppl.targets.leaves import Static
from langevin_ppl.targets.structure import Structure, inspect_model, refuse_numbers
from langevin_ppl.targets.target import BaseTarget, Options, Proposal
from langevin_ppl.tree import all_finite

__all__ = ["ModelTarget", "target"]


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
        self._parts = code, arrays
        self._is_settled = False
        self._kept: dict[Callable[..., Any], Any] = {}
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
        copy = cls(code, arrays, fixed, options.value, batch_size)
        copy._is_settled = True
        return copy

    def _with_options(self, options: Options) -> "ModelTarget":
        code, arrays = self._parts
        if options.static == self.options.static:
            copy = self._remade(code, arrays, self._fixed, options)
            copy._is_settled = self._is_settled
            return copy
        model = code.model
        args, kwargs = code.arguments(arrays)
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
            For a model that needs a value which no argument gives.
        """
        try:
            found = inspect_model(self._code, self._arrays, self._batch_size)
            if self.stream is not None and self.stream.order is None:
                refuse_numbers(self._code, self._arrays, found)
            if found.intractable and not self.takes_intractable:
                raise ValueError(_intractable(found.intractable))
            if found.plates and self.options.forward_mode_differentiation:
                raise ValueError(
                    "forward_mode_differentiation: expected a model that reads all its rows, "
                    "because the noise of batches is measured by reverse mode; the plate "
                    f"{', '.join(map(repr, found.plates))} is subsampled. Leave out subsample_size."
                )
            return found
        except Exception as error:
            error.add_note(f"langevin_ppl: while tracing {self.description}.")
            raise

    @property
    def static(self) -> tuple[str, ...]:
        """Names of the arguments that are part of the program: those asked for, and those needed.

        The model is traced with its arrays as abstract data. Arguments whose values it needs then,
        in ``np.isnan(x)``, ``int(n)`` or ``if x.sum() > 0``, become static automatically. Other
        data in them are another program, which is compiled anew.
        """
        self._settle()
        return self.options.static

    @property
    def _code(self) -> Code:
        return self._settle()[0]

    @property
    def _arrays(self) -> tuple[Array, ...]:
        return self._settle()[1]

    def _settle(self) -> tuple[Code, tuple[Array, ...]]:
        """Split the arguments for good when they are first needed: options may be set before."""
        if not self._is_settled:
            trace = functools.partial(inspect_model, batch_size=self._batch_size)
            found = settled(Bound(*self._parts, self.options.static), trace)
            self._parts = found.code, found.arrays
            self.options = self.options._replace(static=found.static)
            self._is_settled = True
        return self._parts

    @property
    def _data(self) -> tuple[tuple[Array, ...], dict[str, Any]]:
        """Arguments and the values of ``param`` and ``mutable`` sites."""
        fixed = self._fixed
        if fixed is None:
            names = self.structure.fixed
            fixed = self._of_arguments(programs.fixed_values, names) if names else {}
        return self._arrays, fixed

    @property
    def parameter_transforms(self) -> dict[str, Any]:
        """Transforms from unconstrained space of the ``param`` sites."""
        names = self.structure.parameters
        return self._of_arguments(programs.parameter_transforms, names) if names else {}

    def _of_arguments(self, program: Callable[..., Any], names: tuple[str, ...]) -> Any:
        """Result of a program of the arguments alone; it is kept unless they are traced."""
        if any(isinstance(array, Tracer) for array in self._arrays):
            return program(self._code, self._arrays, jax.random.key(0), names, self._blank)
        if program not in self._kept:
            # The target outlives the trace in which this may be asked for first.
            with jax.ensure_compile_time_eval():
                self._kept[program] = program(
                    self._code, self._arrays, jax.random.key(0), names, self._blank
                )
        return self._kept[program]

    @functools.cached_property
    def _blank(self) -> dict[str, Rows] | None:
        """A row of zeros in the place of a stream's rows, for programs that look at none."""
        if self._batch_size is None:
            return None
        with jax.ensure_compile_time_eval():  # as in `_of_arguments`
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
        return self._with_values(self._arrays, {**self._data[1], **values})

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
        return self._with_values(data, self._fixed)

    def _with_values(self, arrays: tuple[Array, ...], fixed: Any) -> "ModelTarget":
        copy = self._remade(self._code, arrays, fixed, self.options)
        copy._is_settled = True
        return copy

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
        density = Partial(programs.ModelLogDensity(self._code, nesting), *self._data)
        return by_forward_mode(density) if self.options.forward_mode_differentiation else density

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

    def _faults(self, position: Position) -> tuple[str, str]:
        """Sites whose log density is not finite, and arguments that hold NaN."""
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
        holes = [
            f"'{label}' has NaN in its {where}"
            for _, label, number in self._code.slots(len(self._arrays))
            if not isinstance(self._arrays[number], Absent)
            and (where := _nan_rows(self._arrays[number]))
        ]
        return (
            f", that of site {', '.join(bad)}" if bad else "",
            f" Of the arguments, {' and '.join(holes)}." if holes else "",
        )

    def _advised(self, same: bool, is_finite: bool) -> str:
        names = [init_to_uniform.__name__, init_to_sample.__name__]
        if not (same or is_finite):
            names.append(init_to_median.__name__)
        used = self.options.init_strategy or init_to_uniform
        used = getattr(used, "func", used)
        others = [f"numpyro.infer.{n}" for n in names if n != getattr(used, "__name__", "")]
        return f"for example {' or '.join(others)}"

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
        latent = self.posterior_samples(samples)
        if args or kwargs:
            # What is observed in the new call may differ: y=None is how NumPyro users predict.
            bound = Bound(*bind(code.model, args, kwargs, self.static), self.static)

            def trace(code: Code, arrays: tuple[Any, ...]) -> Any:
                program = functools.partial(programs.predict, code, observed=observed)
                return jax.eval_shape(program, arrays, self._data[1], rng_key, latent)

            code, arrays, _ = settled(bound, trace)
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
        """Shapes of latent and observed sites and of deterministics."""
        return self.structure.shapes

    @property
    def constant_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the constant data."""
        return {name: jnp.shape(value) for name, value in self.constant_data.items()}

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
        return f"model {model_name(self._parts[0].model.value)}"


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
    numbers, strings and callables are part of the program.

    So is an array whose values the model needs while it is traced, as in ``np.isnan(x)``,
    ``int(n.max())`` or ``if x.sum() > 0``: ``target.static`` names such arguments, and in the
    DataTree of a run so does the attribute ``static_arguments``. New data in them are compiled
    anew. Others are made static by ``target.replace(static=...)``.

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

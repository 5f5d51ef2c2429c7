"""What all targets share: options, and starting positions with a finite log density."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.core
import jax.numpy as jnp
from jax.sharding import Mesh

from langevin_ppl.base import Array, GradientEstimator, LogDensity, Plate, Position, PRNGKey
from langevin_ppl.targets.labels import RESERVED, distinct_dims, distinct_names, safe_dim
from langevin_ppl.tree import all_finite, ravel, variable_names

__all__ = [
    "MAX_TRIES",
    "BaseTarget",
    "Options",
    "Proposal",
    "check_flag",
    "first_valid",
    "is_valid",
]

MAX_TRIES = 100
"""Starting positions tried before giving up (as many as NumPyro tries)."""

type Proposal = Callable[[PRNGKey, Any], Position]


class Options(NamedTuple):
    """What `replace` sets.

    Attributes
    ----------
    static
        Names of model arguments that are part of the program instead of data.
    dims, coords
        Names of the dimensions of variables, and coordinate values of dimensions, for ArviZ.
    init_strategy
        How starting positions are found; None is the target's own default.
    forward_mode_differentiation
        Whether gradients are taken by forward mode.
    """

    static: tuple[str, ...] = ()
    dims: Mapping[str, Sequence[str]] = {}
    coords: Mapping[str, Any] = {}
    init_strategy: Callable[..., Any] | None = None
    forward_mode_differentiation: bool = False


def _names(value: Any) -> tuple[str, ...]:
    """One name, several or None as a tuple of names."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _mapping(option: str, value: Any) -> dict[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(
            f"target.replace: expected {option} to be a dict, got {type(value).__name__}."
        )
    return dict(value or {})


def _strategy(value: Any) -> Any:
    if value is not None and not callable(value):
        raise TypeError(
            "target.replace: expected init_strategy to be a function, for example "
            f"numpyro.infer.init_to_median, got {value!r}."
        )
    return value


def _dims(value: Any) -> dict[str, tuple[str, ...]]:
    dims = {variable: _names(names) for variable, names in _mapping("dims", value).items()}
    for variable, names in dims.items():
        if RESERVED & set(names):
            raise ValueError(
                f"target.replace: dims of '{variable}' name the axes after chain and draw, which "
                f"are ArviZ's own; got {list(names)}."
            )
    return dims


def _coords(value: Any) -> dict[str, Any]:
    coords = _mapping("coords", value)
    for name, values in coords.items():
        if isinstance(values, str) or not hasattr(values, "__len__"):
            raise TypeError(
                f"target.replace: expected coords of '{name}' to be a list of values, got "
                f"{values!r}."
            )
    return coords


def check_flag(owner: str, option: str, value: Any) -> bool:
    """Refuse what is not True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{owner}: expected {option} to be True or False, got {value!r}.")
    return value


_CHECKS: Mapping[str, Callable[[Any], Any]] = {
    "static": _names,
    "dims": _dims,
    "coords": _coords,
    "init_strategy": _strategy,
    "forward_mode_differentiation": functools.partial(
        check_flag, "target.replace", "forward_mode_differentiation"
    ),
}


class BaseTarget:
    """Shared surface of targets; see `langevin_ppl.base.Target`."""

    options: Options
    stream: Any = None
    mesh: Mesh | None = None
    """Devices that rows of the stream are put on as they are read."""

    @property
    def summed_out(self) -> tuple[str, ...]:
        """Names of discrete latent sites, which the log density sums out."""
        return ()

    @property
    def static(self) -> tuple[str, ...]:
        """Names of the arguments of a model that are part of the program; a density has none."""
        return ()

    @property
    def plates(self) -> dict[str, Plate]:
        """Subsampled plates by name: what minibatch estimators read batches of."""
        return {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the variables of draws and observed data, by their own names."""
        raise NotImplementedError

    @property
    def constant_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the variables of constant data."""
        return {}

    @property
    def labels(self) -> Mapping[str, Sequence[str | None]]:
        """Labels that the target gives to axes of its variables, None for an axis without one."""
        return {}

    @property
    def names(self) -> dict[str, str]:
        """Names of variables in a DataTree, by their own names in the model or position."""
        return distinct_names([*self.shapes, *self.constant_shapes])

    @property
    def dims(self) -> dict[str, list[str]]:
        """Dimension names of all variables: the user's, else those of plates."""
        names, found, sizes = self.names, {}, {}
        own = {variable: name for name, variable in names.items()}
        asked = {own.get(name, name): dims for name, dims in self.options.dims.items()}
        asked |= {name: dims for name, dims in self.options.dims.items() if name in names}
        given = {**self.labels, **asked}
        labels = {names[name]: given[name] for name in names if name in given}
        # In constant data a plate's name may be that of an index. Draws come first, and the model's
        # own labels: what the user asks for must not rename them.
        for shapes in (self.shapes, self.constant_shapes):
            new = [name for name in shapes if names[name] not in found]
            ordered = sorted(new, key=lambda name: name in asked)
            found |= distinct_dims(
                labels,
                {names[name]: shapes[name] for name in ordered},
                {names[name] for name in shapes},
                sizes,
            )
        return {name: found[names[name]] for name in names}

    @property
    def coords(self) -> dict[str, Any]:
        """Coordinate values of dimensions, by the names that these have in a DataTree."""
        return {safe_dim(label): values for label, values in self.options.coords.items()}

    @property
    def renamed(self) -> dict[str, dict[str, Any]]:
        """What a DataTree has under another name.

        ``variables`` are their names in the tree by their own, ``dims`` the same for the labelled
        axes of each variable.
        """
        dims, labels = self.dims, self.labels
        changed = {
            name: {
                label: dim
                for label, dim in zip(labels.get(name, ()), dims[name], strict=False)
                if label is not None and label != dim and name not in self.options.dims
            }
            for name in dims
        }
        return {
            "variables": {own: name for own, name in self.names.items() if own != name},
            "dims": {name: pairs for name, pairs in changed.items() if pairs},
        }

    @property
    def logdensity_fn(self) -> LogDensity:
        """Log density on unconstrained space."""
        raise NotImplementedError

    @property
    def starting_density_fn(self) -> LogDensity:
        """Log density by which starting positions are tried."""
        return self.logdensity_fn

    def _with_options(self, options: Options) -> Self:
        raise NotImplementedError

    def replace(self, **options: Any) -> Self:
        """Return a copy with other options.

        Parameters
        ----------
        static
            Names of model arguments that become part of the program. Those whose values the model
            needs while it is traced do so automatically; see ``target.static``.
        dims
            Dimension names of variables, ``{"beta": ["feature"]}``: those of the axes after
            ``chain`` and ``draw``.
        coords
            Coordinate values of dimensions, ``{"feature": names}``.
        init_strategy
            For a NumPyro model, an initialisation strategy of ``numpyro.infer``. For a density,
            a function from a key to a position.
        forward_mode_differentiation
            Whether gradients are taken by forward mode, as by NumPyro's option of this name: for
            few dimensions, and a log density that reverse mode cannot differentiate, because it has
            a ``while_loop`` or a ``fori_loop`` of unknown length. One gradient costs as many
            passes as there are dimensions. Not with subsampled plates.

        Raises
        ------
        TypeError
            For an unknown option, or a value of the wrong type.
        ValueError
            If ``static`` names no argument of the model, or ``dims`` hold ``chain`` or ``draw``.
        """
        unknown = sorted(set(options) - set(Options._fields))
        if unknown:
            raise TypeError(
                f"target.replace: unknown option {', '.join(unknown)}; "
                f"known are {', '.join(Options._fields)}."
            )
        checked = {name: _CHECKS[name](value) for name, value in options.items()}
        return self._with_options(self.options._replace(**checked))

    def gradient(self, estimator: Callable[[Self], GradientEstimator]) -> GradientEstimator:
        """Apply a gradient estimator such as ``langevin_ppl.exact()`` to this target."""
        return estimator(self)

    def proposal(self) -> tuple[Proposal, Any]:
        """How starting positions are made: a hashable function of a key and data, and the data."""
        raise NotImplementedError

    @property
    def description(self) -> str:
        """What the target is, for messages and the attributes of a run."""
        raise NotImplementedError

    def _faults(self, position: Position) -> tuple[str, str]:
        """Clause and sentence on where a log density that is not finite comes from."""
        return "", ""

    def explain(self, position: Position, *, given: bool = False) -> str:
        """Say what is wrong with a starting position.

        Parameters
        ----------
        position
            Unconstrained, where the log density or its gradient is not finite.
        given
            Whether the user gave it; else it is the last of those that were tried.
        """
        value, gradient = jax.value_and_grad(self.starting_density_fn)(position)
        leaves = zip(variable_names(gradient), jax.tree.leaves(gradient), strict=True)
        steep = ", ".join(f"'{name}'" for name, leaf in leaves if not bool(all_finite(leaf)))
        where = "At the given position" if given else "At the last starting position tried"
        cure = "Give another position." if given else self._other_starts(bool(all_finite(value)))
        if bool(all_finite(value)):
            return (
                f"{self.description}: no start with a finite gradient. {where} the log density is "
                f"finite ({float(value):.6g}), but its gradient for {steep} is not. Square roots, "
                "norms and eigendecompositions have no derivative at 0 or where eigenvalues are "
                f"equal. {cure}"
            )
        sites, data = self._faults(position)
        too = f", and its gradient for {steep} is not finite" if steep else ""
        return (
            f"{self.description}: no start with a finite log density. {where} the log density is "
            f"{float(value)}{sites}{too}.{data} Check the model and the data there (a value "
            "outside a distribution's support, a logarithm of 0, missing values without a mask). "
            f"{cure}"
        )

    def _other_starts(self, is_finite: bool) -> str:
        """Advise another ``init_strategy`` than the one in use."""
        propose, data = self.proposal()
        first, second = (jax.tree.leaves(propose(jax.random.key(i), data)) for i in range(2))
        same = all(bool(jnp.array_equal(a, b)) for a, b in zip(first, second, strict=True))
        tried = "Its init_strategy gives the same position every time. " if same else ""
        return (
            f"{tried}Set target.replace(init_strategy=...), or init_strategy of the kernel in "
            f"langevin_ppl.infer, {self._advised(same, is_finite)}."
        )

    def _advised(self, same: bool, is_finite: bool) -> str:
        """Name strategies."""
        raise NotImplementedError

    @contextlib.contextmanager
    def advising(self) -> Iterator[None]:
        """Advise forward mode where an error is due to a missing reverse-mode gradient."""
        try:
            yield
        except Exception as error:
            if self.options.forward_mode_differentiation or self._has_gradient(jax.grad):
                raise
            if not self._has_gradient(jax.jacfwd):
                raise
            raise ValueError(
                f"{self.description}: its log density has no gradient by reverse mode (JAX cannot "
                "go back through a while_loop, nor a fori_loop of unknown length), but one by "
                "forward mode. Set target.replace(forward_mode_differentiation=True), or pass "
                "forward_mode_differentiation=True to a kernel of langevin_ppl.infer. Or give the "
                "loop a fixed length, as jax.lax.scan does."
            ) from error

    def _has_gradient(self, differentiate: Callable[..., Any]) -> bool:
        """Whether a transformation of JAX can differentiate the log density."""
        try:
            jax.eval_shape(differentiate(self.starting_density_fn), self.prototype)
        except Exception:
            return False
        return True

    @property
    def prototype(self) -> Position:
        """Shapes and dtypes of one position."""
        raise NotImplementedError

    def init_position(self, rng_key: PRNGKey) -> Position:
        """Draw a starting position by the target's ``init_strategy``.

        Parameters
        ----------
        rng_key
            Random key.

        Returns
        -------
        An unconstrained position where log density and gradient are finite.

        Raises
        ------
        ValueError
            If they were finite at none of 100 tries; the message names the sites.
        """
        propose, data = self.proposal()
        with self.advising():
            position, valid = _jitted_first_valid(rng_key, self.starting_density_fn, data, propose)
        if not isinstance(valid, jax.core.Tracer) and not bool(valid):
            raise ValueError(self.explain(position))
        return position


def is_valid(logdensity_fn: LogDensity, position: Position) -> Array:
    """Whether log density and gradient are finite."""
    value, gradient = jax.value_and_grad(logdensity_fn)(position)
    return all_finite(value, ravel(gradient)[0])


def first_valid(
    rng_key: PRNGKey,
    logdensity_fn: LogDensity,
    data: Any,
    propose: Proposal,
) -> tuple[Position, Array]:
    """Propose positions until log density and gradient are finite.

    Parameters
    ----------
    rng_key
        Key of this chain.
    logdensity_fn
        A pytree function.
    data, propose
        ``propose(key, data)`` makes a position; hashable.

    Returns
    -------
    position, is_valid
        The last position tried and whether it will do.
    """

    def attempt(index: Array) -> tuple[Position, Array]:
        position = propose(jax.random.fold_in(rng_key, index), data)
        return position, is_valid(logdensity_fn, position)

    def again(carry: tuple[Array, Position, Array]) -> Array:
        index, _, valid = carry
        return ~valid & (index < MAX_TRIES)

    def body(carry: tuple[Array, Position, Array]) -> tuple[Array, Position, Array]:
        index, _, _ = carry
        return index + 1, *attempt(index)

    shapes = jax.eval_shape(propose, rng_key, data)
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    _, position, valid = jax.lax.while_loop(
        again, body, (jnp.asarray(0), start, jnp.asarray(False))
    )
    return position, valid


_jitted_first_valid = jax.jit(first_valid, static_argnums=3)

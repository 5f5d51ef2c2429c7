"""A plain log density on any pytree as a target."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from langevin_ppl.base import Array, LogDensity, Position, PRNGKey
from langevin_ppl.targets.forward import by_forward_mode
from langevin_ppl.targets.leaves import Spec, Static, join, split
from langevin_ppl.targets.target import BaseTarget, Options, Proposal
from langevin_ppl.tree import leaf_names, variable_names

__all__ = ["DensityTarget", "density"]

START_RADIUS = 2.0
"""Half width of the uniform jitter of starting positions (NumPyro's ``init_to_uniform``)."""


@dataclasses.dataclass(frozen=True)
class _Density:
    """The code of a log density; its arrays come as an argument."""

    spec: Spec

    def __call__(self, arrays: tuple[Array, ...], position: Position) -> Array:
        return _evaluate(self, arrays, position)


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(code: _Density, arrays: tuple[Array, ...], position: Position) -> Array:
    function, _ = join(code.spec, arrays)
    return jnp.asarray(function(position))


def _jitter(rng_key: PRNGKey, position: Position) -> Position:
    leaves, treedef = jax.tree.flatten(position)
    keys = jax.random.split(rng_key, len(leaves))
    moved = [
        leaf + jax.random.uniform(key, leaf.shape, leaf.dtype, -START_RADIUS, START_RADIUS)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, moved)


@dataclasses.dataclass(frozen=True)
class _Strategy:
    """A user's ``init_strategy(rng_key)`` as a proposal."""

    strategy: Static

    def __call__(self, rng_key: PRNGKey, position: Position) -> Position:
        proposed = self.strategy.value(rng_key)
        got, expected = (jax.tree.map(jnp.shape, tree) for tree in (proposed, position))
        if got != expected or jax.tree.structure(proposed) != jax.tree.structure(position):
            raise ValueError(
                f"init_strategy: expected a position of shapes {expected}, as the one given to "
                f"langevin_ppl.density, got {got}."
            )
        return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), proposed, position)


@jax.tree_util.register_pytree_node_class
class DensityTarget(BaseTarget):
    """A log density and a position; made by `density`."""

    def __init__(self, logdensity_fn: LogDensity, position: Position, options: Options):
        self._logdensity_fn = logdensity_fn
        self._position = position
        self.options = options

    def tree_flatten(self) -> tuple[tuple[Any, ...], Any]:
        """Arrays are leaves, all else is structure."""
        return (self._logdensity_fn, self._position), Static(self.options)

    @classmethod
    def tree_unflatten(cls, aux: Any, children: tuple[Any, ...]) -> "DensityTarget":
        """Inverse of `tree_flatten`."""
        logdensity_fn, position = children
        return cls(logdensity_fn, position, aux.value)

    def _with_options(self, options: Options) -> "DensityTarget":
        if options.static:
            raise ValueError("density: `static` names arguments of a model; a density has none.")
        return DensityTarget(self._logdensity_fn, self._position, options)

    @property
    def data(self) -> tuple[Array, ...]:
        """Arrays of the log density, where it is a pytree."""
        return tuple(jax.tree.leaves(self._logdensity_fn))

    def with_data(self, data: tuple[Array, ...]) -> "DensityTarget":
        """Return a copy with other arrays of the same shapes."""
        function = jax.tree.unflatten(jax.tree.structure(self._logdensity_fn), data)
        return DensityTarget(function, self._position, self.options)

    @property
    def logdensity_fn(self) -> LogDensity:
        """Log density as a pytree function."""
        forward = self.options.forward_mode_differentiation
        return by_forward_mode(self._logdensity_fn) if forward else self._logdensity_fn

    @property
    def prototype(self) -> Position:
        """Shapes and dtypes of one position."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self._position)

    def proposal(self) -> tuple[Proposal, Position]:
        """Uniform within 2 of the given position, or the user's ``init_strategy``."""
        strategy = self.options.init_strategy
        return (_jitter if strategy is None else _Strategy(Static(strategy))), self._position

    def _advised(self, same: bool, is_finite: bool) -> str:
        if same:
            return "a function that uses its key, or None: uniform within 2 of `position`"
        return "a function from a key to a position, or pass another `position`"

    def constrain(self, position: Position) -> dict[str, Array]:
        """Name the leaves of one position: ``x`` for a bare array, else their paths."""
        return dict(zip(variable_names(position), jax.tree.leaves(position), strict=True))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the leaves of a position by name."""
        return {name: leaf.shape for name, leaf in self.constrain(self._position).items()}

    @property
    def description(self) -> str:
        """What the target is, for the attributes of a run."""
        return "density"


def density(logdensity_fn: LogDensity, position: Position) -> DensityTarget:
    """Make a target of a plain log density.

    Parameters
    ----------
    logdensity_fn
        Function from a position to a scalar, up to a constant. Arrays that it closes over are
        constants of the compiled program; if it is a pytree (``jax.tree_util.Partial``, an
        equinox module), its arrays are data.
    position
        Pytree of floating-point arrays: the structure of positions, and the centre of the
        starting positions, which are uniform within 2 of it unless ``init_strategy`` is set.

    Returns
    -------
    DensityTarget

    Raises
    ------
    TypeError
        If the function is not callable, or a leaf of the position or the log density is not
        floating point.
    ValueError
        If the log density is not a scalar.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> target = lp.density(lambda x: -0.5 * jnp.sum(x["a"] ** 2), {"a": jnp.zeros(3)})
    >>> target.init_position(jax.random.key(0))["a"].shape
    (3,)
    """
    if not callable(logdensity_fn):
        raise TypeError(
            "density: expected a function from a position to a log density, got "
            f"{type(logdensity_fn).__name__}."
        )
    position = jax.tree.map(jnp.asarray, position)
    for name, leaf in zip(leaf_names(position, "position"), jax.tree.leaves(position), strict=True):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"density: {name} has dtype {leaf.dtype}; Langevin dynamics needs floating point, "
                "for example jnp.zeros(3) or 0.0."
            )
    if not jax.tree.leaves(position):
        raise ValueError("density: the position holds no array.")
    spec, arrays = split(logdensity_fn)
    function = Partial(_Density(spec), arrays)
    result = jax.eval_shape(function, position)
    if result.shape != ():
        raise ValueError(
            f"density: expected a scalar log density, got shape {result.shape}; sum over the data."
        )
    if not jnp.issubdtype(result.dtype, jnp.floating):
        raise TypeError(
            f"density: expected a floating-point log density, got dtype {result.dtype}."
        )
    return DensityTarget(function, position, Options())

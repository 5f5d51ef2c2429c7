"""What is minimised: a function of a pytree, or a target's negative log density."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from langevin_ppl.base import Array, Position, PRNGKey, Target
from langevin_ppl.optim.blocks import add_normals
from langevin_ppl.tree import as_pytree

__all__ = ["as_point", "objective", "starting_points"]


def _negative(logdensity_fn: Any, position: Position) -> Array:
    return -logdensity_fn(position)


def objective(owner: str, fn: Any) -> Any:
    """Function to minimise, as a pytree whose arrays are arguments of compiled programs."""
    if isinstance(fn, Target):
        return jax.tree_util.Partial(_negative, fn.logdensity_fn)
    if not callable(fn):
        raise TypeError(
            f"{owner}: expected a function of a point, or a target such as lp.target(model, ...) "
            f"or lp.density(...), got {type(fn).__name__}."
        )
    return as_pytree(fn)


def as_point(owner: str, x0: Any) -> Position:
    """Pytree of floating-point arrays; a list of numbers is a vector, as in SciPy."""
    leaves = jax.tree.leaves(x0)
    if isinstance(x0, list | tuple) and all(isinstance(leaf, int | float) for leaf in leaves):
        x0 = jnp.asarray(x0)
    point = jax.tree.map(jnp.asarray, x0)
    for leaf in jax.tree.leaves(point):
        if not jnp.issubdtype(leaf.dtype, jnp.number) or jnp.iscomplexobj(leaf):
            raise TypeError(f"{owner}: expected x0 to hold real numbers, got {leaf.dtype}.")
    if not sum(leaf.size for leaf in jax.tree.leaves(point)):
        raise ValueError(f"{owner}: expected x0 to hold at least one number, got none.")

    def floating(leaf: Array) -> Array:
        whole = jnp.issubdtype(leaf.dtype, jnp.integer)
        return leaf.astype(jnp.result_type(float)) if whole else leaf

    return jax.tree.map(floating, point)


def starting_points(
    owner: str, rng_key: PRNGKey, fn: Any, x0: Any, num_particles: int, spread: float
) -> Position:
    """Starts of all particles, leading axis ``particle``.

    The first is ``x0`` itself where that is a point; a function from a key to a point, or a target
    without one, gives all of them.
    """
    keys = jax.random.split(rng_key, num_particles)
    if x0 is None:
        if not isinstance(fn, Target):
            raise ValueError(
                f"{owner}: expected a starting point x0, or a function from a key to one; only a "
                "target has its own."
            )
        x0 = fn.init_position
    if callable(x0):
        return as_point(owner, jax.vmap(x0)(keys))

    point = as_point(owner, x0)
    spreads = jnp.where(jnp.arange(num_particles) == 0, 0.0, spread)
    return jax.vmap(functools.partial(add_normals, point))(keys, spreads)

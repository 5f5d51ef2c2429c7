"""The only optimiser loop."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from langevin_ppl.base import Array

__all__ = ["Minimum", "minimize"]


class Minimum(NamedTuple):
    """Where a minimisation ended.

    Attributes
    ----------
    position
        Vector ``[dimension]``.
    value, gradient
        Objective and gradient there.
    num_evaluations
        Evaluations of the objective, line search included.
    converged
        Whether the last step no longer lowered the value; False where the steps ran out first.
    """

    position: Array
    value: Array
    gradient: Array
    num_evaluations: Array
    converged: Array


def minimize(
    fn: Callable[[Array], Array], start: Array, *, max_steps: int = 150, memory: int = 10
) -> Minimum:
    """Minimise a smooth function by L-BFGS with a backtracking line search.

    It stops when a step no longer lowers the value beyond rounding, or after ``max_steps``. May
    be called inside ``jit`` and ``vmap``.

    Parameters
    ----------
    fn
        Function from a vector to a scalar.
    start
        Vector ``[dimension]``.
    max_steps
        Most iterations.
    memory
        Pairs of steps and gradient differences that L-BFGS keeps.
    """
    search = optax.scale_by_backtracking_linesearch(
        max_backtracking_steps=25, decrease_factor=0.5, store_grad=True
    )
    optimizer = optax.lbfgs(memory_size=memory, linesearch=search)
    tolerance = 10 * jnp.finfo(start.dtype).eps

    class Carry(NamedTuple):
        minimum: Minimum
        state: optax.OptState
        step: Array

    def again(carry: Carry) -> Array:
        value = carry.minimum.value
        return (carry.step < max_steps) & ~carry.minimum.converged & jnp.isfinite(value)

    def body(carry: Carry) -> Carry:
        old = carry.minimum
        updates, state = optimizer.update(
            old.gradient,
            carry.state,
            old.position,
            value=old.value,
            grad=old.gradient,
            value_fn=fn,
        )
        position = old.position + jnp.asarray(updates)
        # The line search stores what it computed at the accepted point.
        value, gradient = optax.tree.get(state, "value"), optax.tree.get(state, "grad")
        searched = optax.tree.get(state, "num_linesearch_steps")
        small = old.value - value <= tolerance * jnp.maximum(jnp.abs(value), 1.0)
        new = Minimum(position, value, gradient, old.num_evaluations + searched + 1, small)
        return Carry(new, state, carry.step + 1)

    value, gradient = jax.value_and_grad(fn)(start)
    first = Minimum(start, value, gradient, jnp.asarray(1), jnp.asarray(False))
    carry = Carry(first, optimizer.init(start), jnp.asarray(0))
    return jax.lax.while_loop(again, body, carry).minimum

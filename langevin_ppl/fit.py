"""The only optimiser loop."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from langevin_ppl.base import Array

__all__ = ["Minimum", "Peak", "climb", "minimize"]


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


STILL = 1e-4
"""Squared length of a Newton step, in posterior standard deviations, that needs no further one."""

NEAR = 1.0
"""Squared length of a Newton step below which the curvature is measured anew."""


class Peak(NamedTuple):
    """Where a climb ended.

    Attributes
    ----------
    position
        Vector ``[dimension]``.
    value, gradient
        Objective and gradient there.
    factor
        ``L`` with ``L L^T`` the inverse of the negative Hessian near there, ``[dimension,
        dimension]``; the one given where none was found.
    decrement
        Squared length of the Newton step that is left.
    curved
        Whether the Hessian near there is negative definite.
    num_evaluations
        Evaluations of value and gradient.
    """

    position: Array
    value: Array
    gradient: Array
    factor: Array
    decrement: Array
    curved: Array
    num_evaluations: Array


def climb(
    value_and_grad: Callable[[Array], tuple[Array, Array]],
    curvature: Callable[[Array], tuple[Array, Array]],
    start: Array,
    factor: Array,
    *,
    max_steps: int = 60,
) -> Peak:
    """Maximise by Newton steps in a frame that is nearly right, and is renewed once.

    For an expensive function with a cheap approximation whose peak and curvature are known. A step
    that does not climb is taken again at a quarter of its length. May be called inside ``jit``.

    Parameters
    ----------
    value_and_grad
        Value and gradient of a vector.
    curvature
        ``curvature(position) -> (factor, is_negative_definite)``.
    start
        Vector ``[dimension]``.
    factor
        ``L`` with ``L L^T`` about the inverse of the negative Hessian, ``[dimension, dimension]``.
    max_steps
        Most steps.
    """

    def decrement_of(factor: Array, gradient: Array) -> Array:
        return jnp.sum(jnp.square(factor.T @ gradient))

    def again(carry: tuple[Peak, Array, Array]) -> Array:
        peak, _, renewed = carry
        done = renewed & (peak.decrement < STILL)
        return ~done & (peak.num_evaluations < max_steps) & jnp.isfinite(peak.decrement)

    def body(carry: tuple[Peak, Array, Array]) -> tuple[Peak, Array, Array]:
        old, length, renewed = carry
        position = old.position + length * (old.factor @ (old.factor.T @ old.gradient))
        value, gradient = value_and_grad(position)
        decrement = decrement_of(old.factor, gradient)
        # Near the peak the value no longer tells, for rounding; the gradient does.
        better = (value > old.value) | (decrement < old.decrement)
        better &= jnp.isfinite(value) & jnp.isfinite(decrement)
        moved = old._replace(position=position, value=value, gradient=gradient, decrement=decrement)
        new = jax.tree.map(lambda a, b: jnp.where(better, a, b), moved, old)
        new = new._replace(num_evaluations=old.num_evaluations + 1)
        length = jnp.where(better, jnp.minimum(1.0, 2.0 * length), 0.25 * length)
        due = ~renewed & ((new.decrement < NEAR) | (new.num_evaluations == max_steps // 2))

        def renew() -> tuple[Array, Array]:
            measured, curved = curvature(new.position)
            return jnp.where(curved, measured, new.factor), curved

        measured, curved = jax.lax.cond(due, renew, lambda: (new.factor, new.curved))
        new = new._replace(
            factor=measured, curved=curved, decrement=decrement_of(measured, new.gradient)
        )
        return new, jnp.where(due, 1.0, length).astype(length.dtype), renewed | due

    value, gradient = value_and_grad(start)
    first = Peak(
        start,
        value,
        gradient,
        factor,
        decrement_of(factor, gradient),
        jnp.asarray(False),
        jnp.asarray(1),
    )
    one = jnp.ones((), start.dtype)
    return jax.lax.while_loop(again, body, (first, one, jnp.asarray(False)))[0]

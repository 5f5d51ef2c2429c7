"""L-BFGS inside a compiled program, in single and in double precision."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from langevin_ppl.base import Array

__all__ = ["Minimum", "minimize"]

MAX_TRIALS = 25
"""Most trial steps along one search direction, and in a row without a new curvature pair."""

ARMIJO = 1e-4
"""Share of the decrease predicted by the slope that a step has to achieve (Armijo's condition)."""

ROUNDING = 10.0
"""Units in the last place of the value within which two values count as equal."""

CONFIRMED = 0.5
"""Share of the slope that a step may leave where the curvature is as estimated."""

SHORT = 2.0**-5
"""Share of the search direction so short that a rise of the value there is rounding."""

GROWTH = 1.5
"""Most growth from one step to the next, of steps longer than one unit."""


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
        Whether the gradient is small there: the decrease that it predicts is below the rounding of
        the value. False where the steps ran out or the line search failed at a larger gradient.
    """

    position: Array
    value: Array
    gradient: Array
    num_evaluations: Array
    converged: Array


class _Memory(NamedTuple):
    """Last steps and gradient differences of L-BFGS, ``[pair, dimension]``, newest last."""

    steps: Array
    changes: Array

    @property
    def filled(self) -> Array:
        """Whether there is a pair."""
        return self.steps[-1] @ self.changes[-1] > 0

    def add(self, step: Array, change: Array) -> "_Memory":
        """Replace the oldest pair."""
        new = _Memory(step, change)
        return jax.tree.map(lambda old, row: jnp.roll(old, -1, axis=0).at[-1].set(row), self, new)

    def direction(self, gradient: Array) -> Array:
        """Approximate Newton step by the two-loop recursion; rows of zeros are unused."""
        inner = jnp.sum(self.steps * self.changes, axis=1)
        weights = jnp.where(inner > 0, 1.0 / inner, 0.0)

        def backward(vector: Array, row: Any) -> tuple[Array, Array]:
            step, change, weight = row
            share = weight * (step @ vector)
            return vector - share * change, share

        def forward(vector: Array, row: Any) -> tuple[Array, None]:
            (step, change, weight), share = row
            return vector + (share - weight * (change @ vector)) * step, None

        rows = (*self, weights)
        vector, shares = jax.lax.scan(backward, gradient, rows, reverse=True)
        scale = inner[-1] / jnp.sum(jnp.square(self.changes[-1]))
        vector = jnp.where(self.filled, scale * vector, _capped(vector))
        return -jax.lax.scan(forward, vector, (rows, shares))[0]


class _Descent(NamedTuple):
    """State of `minimize` between two evaluations.

    Attributes
    ----------
    minimum
        The current point.
    memory
        Curvature pairs.
    direction, slope
        Search direction from there, and the derivative of the value along it.
    length
        Multiple of the direction that is tried next.
    trials
        Trials in a row that gave no curvature pair.
    step
        Points moved to, and restarts.
    noise
        Rounding of the value that was measured since the last pair.
    ended
        Whether the search is over.
    """

    minimum: Minimum
    memory: _Memory
    direction: Array
    slope: Array
    length: Array
    trials: Array
    step: Array
    noise: Array
    ended: Array


def minimize(
    fn: Callable[[Array], Array], start: Array, *, max_steps: int = 150, memory: int = 10
) -> Minimum:
    """Minimise a smooth function by L-BFGS with a backtracking line search.

    A pair of step and gradient difference is stored only where the curvature along the step is
    positive, as in the cautious update of Li and Fukushima [1]_, so that every direction is one of
    descent also where the function is not convex. Where the curvature is not positive, the next
    step is twice as long. A line search that fails restarts from steepest descent. May be called
    inside ``jit`` and ``vmap``.

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

    References
    ----------
    .. [1] D.-H. Li and M. Fukushima, "On the global convergence of the BFGS method for nonconvex
       unconstrained optimization problems", SIAM Journal on Optimization 11, 2001.
    """
    value_and_grad = jax.value_and_grad(fn)

    def again(carry: _Descent) -> Array:
        return (carry.step < max_steps) & ~carry.ended

    def body(carry: _Descent) -> _Descent:
        position = carry.minimum.position + carry.length * carry.direction
        return _advance(carry, position, *value_and_grad(position))

    zero, no, count = jnp.zeros((), start.dtype), jnp.asarray(False), jnp.zeros((), jnp.int32)
    still, pairs = jnp.zeros_like(start), jnp.zeros((memory, start.size), start.dtype)
    # The first evaluation is a step of length zero: the program holds the function only once.
    before = Minimum(start, zero + jnp.inf, still, count, no)
    carry = _Descent(before, _Memory(pairs, pairs), still, zero, zero, count, count, zero, no)
    return jax.lax.while_loop(again, body, carry).minimum


def _advance(carry: _Descent, position: Array, value: Array, gradient: Array) -> _Descent:
    """Move to the trial point or shorten the step, and choose the next direction."""
    old, first = carry.minimum, carry.minimum.num_evaluations == 0
    finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
    unit = ROUNDING * jnp.finfo(position.dtype).eps
    rise = value - old.value
    # Where the terms of a sum cancel, its rounding is larger than its size tells. The last rise
    # counts: that of a badly scaled direction falls with the length, and rounding does not.
    short = finite & (carry.length < SHORT) & (rise > 0)
    measured = jnp.where(short, rise, carry.noise)
    noise = jnp.maximum(measured, unit * jnp.maximum(jnp.abs(old.value), 1.0))
    # Values that agree within rounding do not tell which point is better; slopes do.
    left = jnp.abs(gradient @ carry.direction / carry.slope)
    lower = rise <= ARMIJO * carry.length * carry.slope
    moved = finite & (first | lower | ((rise <= noise) & (left <= 1.0)))
    step, change = position - old.position, gradient - old.gradient
    # A difference of gradients within their rounding does not tell the curvature.
    scale = jnp.linalg.norm(step) * (jnp.linalg.norm(gradient) + jnp.linalg.norm(old.gradient))
    curved = moved & (step @ change > unit * scale)
    new = Minimum(position, value, gradient, old.num_evaluations, old.converged)
    new = jax.tree.map(lambda a, b: jnp.where(moved, a, b), new, old)

    trials = jnp.where(curved | first, 0, carry.trials + 1)
    memory = carry.memory.add(step, change)
    memory = jax.tree.map(lambda a, b: jnp.where(curved, a, b), memory, carry.memory)
    newton = memory.direction(new.gradient)
    slope = new.gradient @ newton
    failed = trials >= MAX_TRIALS
    restart = failed | ~(slope < 0)
    stuck = restart & ~carry.memory.filled & ~first
    # Half the squared Newton decrement, which does not depend on units, against the rounding of
    # the value. The estimate of the curvature in it counts once a step has confirmed it by taking
    # most of the slope away, or where gradients too are at their rounding and no step does so. A
    # decrease that is smaller by many orders needs no confirmation.
    predicted = -0.5 * carry.slope * jnp.maximum(carry.length, 1.0)
    confirmed = (moved & (left <= CONFIRMED)) | failed
    converged = ((predicted <= noise) & confirmed & ~first) | (slope == 0)
    converged |= memory.filled & ~restart & (-0.5 * slope <= unit * noise)
    converged &= jnp.isfinite(new.value)
    ended = converged | stuck | (first & ~finite)
    new = new._replace(num_evaluations=old.num_evaluations + 1, converged=converged)

    reach = jnp.maximum(1.0, GROWTH * jnp.linalg.norm(step))
    whole = jnp.minimum(1.0, reach / jnp.linalg.norm(newton))
    length = jnp.where(moved, 2.0, 0.5) * carry.length
    length = jnp.where(curved | first, whole, length)
    steepest = -_capped(new.gradient)
    return _Descent(
        new,
        jax.tree.map(lambda a: jnp.where(restart, 0.0, a), memory),
        jnp.where(restart, steepest, newton),
        jnp.where(restart, new.gradient @ steepest, slope),
        jnp.where(restart, 1.0, length),
        jnp.where(restart, 0, trials),
        carry.step + (moved | restart),
        jnp.where(curved, 0.0, measured),
        ended,
    )


def _capped(gradient: Array) -> Array:
    """Gradient, cut to at most unit length: the first step, before any curvature is known."""
    return gradient / jnp.maximum(1.0, jnp.linalg.norm(gradient))

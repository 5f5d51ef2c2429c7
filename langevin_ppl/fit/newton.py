"""Newton loops, inside a compiled program and on the host."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array
from langevin_ppl.loop import Keeper, Look, drive

__all__ = ["Peak", "climb", "climb_on_host"]

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


class Climb(NamedTuple):
    """A climb under way.

    Attributes
    ----------
    peak
        The highest point so far.
    length
        Share of the next Newton step that is taken.
    renewed
        Whether the frame is final.
    """

    peak: Peak
    length: Array
    renewed: Array

    @classmethod
    def begin(
        cls, start: Array, value: Array, gradient: Array, factor: Array, renewed: bool
    ) -> "Climb":
        """Climb at its start, where value and gradient are known."""
        decrement = _decrement(factor, gradient)
        flat = jnp.asarray(False)
        peak = Peak(start, value, gradient, factor, decrement, flat, jnp.asarray(1))
        return cls(peak, jnp.ones((), start.dtype), jnp.asarray(renewed))

    def ahead(self) -> Array:
        """Position at the end of the next step."""
        peak = self.peak
        return peak.position + self.length * (peak.factor @ (peak.factor.T @ peak.gradient))

    def moved(self, position: Array, value: Array, gradient: Array) -> "Climb":
        """Go there, or stay and take a shorter step."""
        old = self.peak
        decrement = _decrement(old.factor, gradient)
        # Near the peak the value no longer tells, for rounding; the gradient does.
        better = (value > old.value) | (decrement < old.decrement)
        better &= jnp.isfinite(value) & jnp.isfinite(decrement)
        new = old._replace(position=position, value=value, gradient=gradient, decrement=decrement)
        new = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, old)
        new = new._replace(num_evaluations=old.num_evaluations + 1)
        length = jnp.where(better, jnp.minimum(1.0, 2.0 * self.length), 0.25 * self.length)
        return self._replace(peak=new, length=length.astype(self.length.dtype))

    @property
    def ended(self) -> Array:
        """Whether it is at the top, or lost."""
        peak = self.peak
        return (self.renewed & (peak.decrement < STILL)) | ~jnp.isfinite(peak.decrement)


def _decrement(factor: Array, gradient: Array) -> Array:
    return jnp.sum(jnp.square(factor.T @ gradient))


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

    def again(carry: Climb) -> Array:
        return ~carry.ended & (carry.peak.num_evaluations < max_steps)

    def body(carry: Climb) -> Climb:
        position = carry.ahead()
        new = carry.moved(position, *value_and_grad(position))
        peak = new.peak
        due = (peak.decrement < NEAR) | (peak.num_evaluations == max_steps // 2)
        due &= ~carry.renewed

        def renew() -> tuple[Array, Array]:
            measured, curved = curvature(peak.position)
            return jnp.where(curved, measured, peak.factor), curved

        measured, curved = jax.lax.cond(due, renew, lambda: (peak.factor, peak.curved))
        peak = peak._replace(
            factor=measured, curved=curved, decrement=_decrement(measured, peak.gradient)
        )
        length = jnp.where(due, 1.0, new.length).astype(new.length.dtype)
        return Climb(peak, length, carry.renewed | due)

    first = Climb.begin(start, *value_and_grad(start), factor, False)
    return jax.lax.while_loop(again, body, first).peak


def climb_on_host(
    value_and_grad: Callable[[Array], tuple[Array, Array]],
    start: Array,
    factor: Array,
    *,
    max_steps: int = 30,
    keeper: Keeper | None = None,
    progress: bool = False,
) -> Peak:
    """Maximise as `climb` does a function that is not traced: that reads its data from disk.

    The frame is kept as it is.

    Parameters
    ----------
    value_and_grad, start, factor
        As in `climb`; the first one is called with concrete arrays.
    max_steps
        Most evaluations.
    keeper, progress
        As in `langevin_ppl.loop.drive`: no evaluation is made again that another process made.
    """

    def step(carry: Climb, index: int, count: int) -> tuple[Climb, np.ndarray]:
        position = start if index == 0 else _ahead(carry)
        value, gradient = value_and_grad(position)
        if index == 0:
            carry = Climb.begin(start, value, gradient, factor, True)
        else:
            carry = _moved(carry, position, value, gradient)
        return carry, np.asarray(carry.ended)[None]

    def monitor(outputs: np.ndarray, done: int) -> Look:
        return Look(bool(outputs[-1]), done + 1, max_steps, f"{done} passes")

    unknown = jnp.zeros((), start.dtype)
    carry = Climb.begin(start, unknown, jnp.zeros_like(start), factor, True)
    outcome = drive(
        step,
        carry,
        max_steps,
        1,
        monitor=monitor,
        first_look=1,
        keeper=keeper,
        progress=progress,
        label="mode",
    )
    if not outcome.complete:
        raise KeyboardInterrupt("interrupted while looking for a mode")
    return outcome.carry.peak


_ahead, _moved = jax.jit(Climb.ahead), jax.jit(Climb.moved)

"""The mode of a target with many rows: found on some of them, settled on all."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from langevin_ppl.base import Array, Rows
from langevin_ppl.compilation import QUICK
from langevin_ppl.fit import climb, climb_on_host, minimize
from langevin_ppl.gradients import (
    Reader,
    StreamReader,
    whole_hessian,
    whole_mean,
    whole_of_stream,
)
from langevin_ppl.tree import Layout
from langevin_ppl.warmup.start import curvature_factor

__all__ = [
    "MAX_DECREMENT",
    "Settled",
    "on_some_rows",
    "settle_on_all",
    "settle_on_stream",
    "some_rows",
]

SOME_ROWS = 2**14
"""Rows on which a mode is looked for; the search costs some hundred gradients."""

ROWS_PER_DIMENSION = 100
"""Least rows for each dimension: fewer would not know the curvature."""

MAX_DECREMENT = 0.09
"""Squared length of the Newton step left, in posterior standard deviations, up to which a point
will do as a centre of control variates and of starting positions."""


class Settled(NamedTuple):
    """A mode of the density of all the data.

    Attributes
    ----------
    position
        Flat, ``[dimension]``.
    value, gradient
        Log density and gradient there.
    factor
        ``L`` with ``L L^T`` the inverse curvature: ``[dimension, dimension]`` or diagonal.
    decrement
        Squared length of the Newton step that is left.
    curved
        Whether the curvature there is that of a peak.
    num_evaluations
        Gradients of all the data, products with the Hessian counted as two.
    """

    position: Array
    value: Array
    gradient: Array
    factor: Array
    decrement: Array
    curved: Array
    num_evaluations: Array


def some_rows(reader: Reader, dimension: int) -> dict[str, Rows]:
    """Rows to look for a mode on; none where all of them are to be taken.

    Several plates are taken as a whole.
    """
    if len(reader) != 1:
        return {}
    ((name, only),) = reader.items()
    if isinstance(only, StreamReader):
        return {name: only.sample}
    number = only.even(max(SOME_ROWS, ROWS_PER_DIMENSION * dimension))
    return {} if number >= only.plan.size else {name: only.span(0, number)}


def on_some_rows(on_rows: Any, rows: dict[str, Rows], position: Any) -> Array:
    """Log density on chosen rows, as a function for ``jax.tree_util.Partial``."""
    return on_rows(rows, position)


def settle_on_stream(request: Any, reader: Reader, start: Array, factor: Array) -> Settled:
    """Climb from the mode on some rows to that on all rows of a stream, a pass for each step.

    In many dimensions, where the frame is a diagonal, one pass is made, at the start: it will do
    as a centre, and the gradient there is what control variates need.

    Parameters
    ----------
    request
        With the target; `langevin_ppl.warmup.tune.Request`.
    start, factor
        As in `settle_on_all`.
    """
    layout = request.layout

    def value_and_grad(flat: Array) -> tuple[Array, Array]:
        estimate = whole_of_stream(request.target, reader, layout.unravel(flat))
        return estimate.logdensity, layout.ravel(estimate.gradient)

    if factor.ndim == 2:
        keeper = request.keeper("mode", chains=False)
        peak = climb_on_host(
            value_and_grad, start, factor, keeper=keeper, progress=request.progress
        )
        curved = jnp.asarray(True)  # as on the rows in memory, whose frame this is
        values = peak.position, peak.value, peak.gradient, factor, peak.decrement, curved
        return jax.device_get(Settled(*values, peak.num_evaluations))
    value, gradient = value_and_grad(start)
    decrement = jnp.zeros(())
    curved, one = jnp.asarray(True), jnp.asarray(1)
    return jax.device_get(Settled(start, value, gradient, factor, decrement, curved, one))


@functools.partial(jax.jit, static_argnames="layout", compiler_options=QUICK)
def settle_on_all(
    on_rows: Any, reader: Reader, start: Array, factor: Array, *, layout: Layout
) -> Settled:
    """Climb from the mode on some rows to that on all of them.

    Parameters
    ----------
    on_rows
        Log density on rows of a position.
    start
        Flat position.
    factor
        ``L`` with ``L L^T`` about the inverse curvature: a matrix, or a diagonal.
    """

    def value_and_grad(flat: Array) -> tuple[Array, Array]:
        def of_rows(rows: dict[str, Rows]) -> tuple[Array, Array]:
            return jax.value_and_grad(lambda x: on_rows(rows, layout.unravel(x)))(flat)

        return whole_mean(reader, of_rows)

    def curvature(flat: Array) -> tuple[Array, Array]:
        hessian = whole_hessian(on_rows, reader, layout.unravel(flat))
        measured, _, _, curved = curvature_factor(hessian)
        return measured, curved

    if factor.ndim == 2:
        peak = climb(value_and_grad, curvature, start, factor)
        products = 2 * start.size
        return Settled(
            peak.position,
            peak.value,
            peak.gradient,
            peak.factor,
            peak.decrement,
            peak.curved,
            peak.num_evaluations + products,
        )

    @jax.custom_vjp
    def negative(z: Array) -> Array:
        return -value_and_grad(start + factor * z)[0]

    def forward(z: Array) -> tuple[Array, Array]:
        value, gradient = value_and_grad(start + factor * z)
        return -value, -factor * gradient

    negative.defvjp(forward, lambda gradient, cotangent: (cotangent * gradient,))
    low = minimize(negative, jnp.zeros_like(start))
    pulled = -low.gradient
    return Settled(
        start + factor * low.position,
        -low.value,
        pulled / factor,
        factor,
        jnp.sum(jnp.square(pulled)) / start.size,
        low.converged,
        low.num_evaluations,
    )

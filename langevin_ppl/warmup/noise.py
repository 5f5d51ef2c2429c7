"""How noisy a gradient estimator is, in which direction, and which rows make the noise."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array, GradientEstimator, PRNGKey, Rows
from langevin_ppl.compilation import QUICK
from langevin_ppl.devices import to_host
from langevin_ppl.gradients import PlateReader, on_flat
from langevin_ppl.tree import Layout

__all__ = ["Noise", "RowNoise", "leading", "measure_estimator", "measure_rows", "of_batches"]

POINTS = 8
"""Draws of the Gaussian at the mode at which the noise is measured."""

SCORED = 2**13
"""Rows beside the heavy ones whose residual gradients are measured in full."""

BLOCK = 2**14
"""Rows that are scored together."""

BATCHES = 64
"""Batches of an estimator that are compared at each of the points."""


class Noise(NamedTuple):
    """Largest gradient noise in the whitened frame.

    Attributes
    ----------
    largest
        Largest eigenvalue of the covariance of the whitened gradient.
    direction
        Its unit eigenvector, ``[dimension]``.
    """

    largest: float
    direction: np.ndarray


class RowNoise(NamedTuple):
    """Residual gradients of rows, ``r_i``, in the whitened frame.

    Attributes
    ----------
    scores
        Mean of ``|r_i|^2`` of every row, at its place in the shuffled order, ``[size]``.
    heavy
        Places of the rows that make the most noise.
    heavy_squares, rest_squares
        Sums of ``r_i r_i^T`` over the heavy rows and over all others, ``[dimension, dimension]``.
    """

    scores: Array
    heavy: Array
    heavy_squares: Array
    rest_squares: Array


@functools.partial(
    jax.jit, static_argnames=("name", "layout", "order", "num_heavy"), compiler_options=QUICK
)
def measure_rows(
    rng_key: PRNGKey,
    on_rows: Any,
    reader: PlateReader,
    centre: Array,
    factor: Array,
    *,
    name: str,
    layout: Layout,
    order: int,
    num_heavy: int,
) -> RowNoise:
    """Measure what every row adds to the gradient beyond the terms that a correction knows.

    Of every row, derivatives along random directions, from which its score; of the rows with the
    highest scores and of a sample of the others, all derivatives.

    Parameters
    ----------
    centre, factor
        Mode, ``[dimension]``, and ``L`` with ``L L^T`` the inverse curvature there.
    order
        0 for the gradient itself, 1 for what is left after subtracting that at the centre, 2 after
        subtracting the Hessian's term as well.
    num_heavy
        Rows to list as heavy.
    """
    dimension, size = centre.size, reader.plan.size

    def terms(rows: Rows, position: Array) -> Array:
        def weighted(weights: Array) -> Array:
            chosen = {name: dataclasses.replace(rows, weights=weights)}
            return on_rows(chosen, layout.unravel(position))

        # The density is linear in the weights: its derivatives are the rows' own terms.
        return jax.grad(weighted)(jnp.ones(rows.indices.shape, centre.dtype))

    def along(rows: Rows, position: Array, way: Array) -> Array:
        return jax.jvp(lambda x: terms(rows, x), (position,), (way,))[1]

    def residual(rows: Rows, shift: Array, way: Array) -> Array:
        # At both ends in one mapped call: what is written twice is compiled twice.
        ends = jnp.stack([shift, jnp.zeros_like(shift)]) if order else shift[None]
        slopes = jax.vmap(lambda end: along(rows, centre + end, way))(ends)
        left = slopes[0] - slopes[1] if order else slopes[0]
        if order == 2:
            left = left - jax.jvp(lambda x: along(rows, x, way), (centre,), (shift,))[1]
        return left

    key_shift, key_way, key_rest = jax.random.split(rng_key, 3)
    shifts = jax.random.normal(key_shift, (POINTS, dimension), centre.dtype) @ factor.T
    ways = jax.random.normal(key_way, (POINTS, dimension), centre.dtype) @ factor.T
    number = reader.even(min(BLOCK, size))

    def score(index: Array, scores: Array) -> Array:
        start = jnp.minimum(index * number, size - number)
        rows = reader.span(start, number)
        found = jax.vmap(residual, in_axes=(None, 0, 0))(rows, shifts, ways)
        return scores.at[reader.places(start, number)].set(jnp.mean(found**2, axis=0))

    scores = jnp.zeros(size, centre.dtype)
    scores = jax.lax.fori_loop(0, -(-size // number), score, scores)
    heavy = jax.lax.top_k(scores, num_heavy)[1]
    sampled = min(SCORED, size)
    start = jax.random.randint(key_rest, (), 0, size - sampled + 1)
    places = jnp.concatenate([heavy, start + jnp.arange(sampled)])
    rest = jnp.arange(num_heavy + sampled) >= num_heavy
    rest &= ~jnp.isin(places, heavy)
    share = jnp.where(rest, (size - num_heavy) / jnp.maximum(jnp.sum(rest), 1), 0.0)
    first = (jnp.arange(num_heavy + sampled) < num_heavy).astype(centre.dtype)
    rows = reader.at(places)

    def squares(total: tuple[Array, Array], shift: Array) -> tuple[tuple[Array, Array], None]:
        columns = jax.vmap(residual, in_axes=(None, None, 1))(rows, shift, factor)

        def square(weights: Array) -> Array:
            return (columns * weights) @ columns.T / POINTS

        return (total[0] + square(first), total[1] + square(share)), None

    zero = jnp.zeros((dimension, dimension), centre.dtype)
    (heavy_squares, rest_squares), _ = jax.lax.scan(squares, (zero, zero), shifts)
    return RowNoise(scores, heavy, heavy_squares, rest_squares)


def of_batches(
    measured: RowNoise, size: int, batch_size: int, pinned: int, turn: np.ndarray | None = None
) -> Noise:
    """Noise of batches of rows drawn without replacement, beside pinned ones if there are any.

    Parameters
    ----------
    measured
        On the host; its heavy rows are those pinned.
    size
        Rows of the plate.
    batch_size
        Rows drawn in each step.
    pinned
        Rows in every batch: all the heavy rows, or 0.
    turn
        Another frame, as seen from that in which the rows were measured.
    """
    squares = np.asarray(measured.rest_squares, np.float64)
    if not pinned:
        squares = squares + np.asarray(measured.heavy_squares, np.float64)
    if turn is not None:
        squares = turn.T @ squares @ turn
    free = size - pinned
    return leading(squares * free / batch_size * max(0.0, 1.0 - batch_size / free))


def leading(covariance: np.ndarray) -> Noise:
    """Leading eigenpair of a covariance."""
    values, vectors = np.linalg.eigh(covariance)
    return Noise(float(max(values[-1], 0.0)), vectors[:, -1])


@functools.partial(jax.jit, static_argnames="layout", compiler_options=QUICK)
def _gradients(
    rng_key: PRNGKey, estimator: GradientEstimator, starts: Array, ends: Array, *, layout: Layout
) -> Array:
    flat = on_flat(estimator, layout)

    def at(key: PRNGKey, start: Array, end: Array) -> Array:
        memory = flat.init(start)

        def one(row: tuple[PRNGKey, Array]) -> Array:
            # Batches of epochs follow from the number of the step alone. Not from step 0 on, in
            # which an estimator with a memory may renew it.
            return flat.estimate(flat.draw(*row), end, memory)[0].gradient

        return jax.lax.map(one, (jax.random.split(key, BATCHES), 1 + jnp.arange(BATCHES)))

    return jax.vmap(at)(jax.random.split(rng_key, len(starts)), starts, ends)


def measure_estimator(
    rng_key: PRNGKey,
    estimator: GradientEstimator,
    starts: Array,
    ends: Array,
    factor: Array,
    layout: Layout,
) -> Noise:
    """Noise of any estimator, from batches at a few points.

    The direction is found with one half of the batches and measured with the other: of few
    batches in many dimensions the largest eigenvalue is far too large. Rare rows that make most
    of the noise may be in none of the batches; the thermometer of the run sees them.

    Parameters
    ----------
    estimator
        Of positions.
    starts, ends
        Where an estimator with a memory has looked at all the data, and where it is asked,
        ``[point, dimension]``.
    factor
        ``L``: scalar, diagonal or matrix.
    """
    gradients = to_host(_gradients(rng_key, estimator, starts, ends, layout=layout))
    gradients = gradients.astype(np.float64)
    gradients = gradients - gradients.mean(axis=1, keepdims=True)
    scale = np.asarray(factor, np.float64)
    white = gradients @ scale if scale.ndim == 2 else gradients * scale
    white *= np.sqrt(BATCHES / (BATCHES - 1.0))
    one, other = (white[:, part::2].reshape(-1, layout.dimension) for part in (0, 1))
    direction = _longest(one)
    return Noise(float(np.mean(np.square(other @ direction))), direction)


def _longest(rows: np.ndarray) -> np.ndarray:
    """Unit vector along which rows have the largest squares, ``[dimension]``.

    From products of the rows where they are fewer than the dimensions: a decomposition of the
    rows themselves would take longer than all the gradients.
    """
    wide = rows.shape[1] > rows.shape[0]
    vector = np.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)[1][:, -1]
    found = rows.T @ vector if wide else vector
    length = np.linalg.norm(found)
    return found / length if length > 0 else np.eye(1, rows.shape[1])[0]

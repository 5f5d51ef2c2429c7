"""Distances of two sets of samples by all their pairs: MMD and energy distance."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array, check_number
from langevin_ppl.diagnostics.samples import Metric, check_samples, extent, squared_distances

__all__ = ["energy_distance", "mmd"]

type PairKernel = Callable[[Array, Array], Array]
"""``kernel(squared_distances, scales)``."""

BLOCK = 256
"""Samples of either side that are looked at together; a block of pairs fits a core's cache."""

LEAST = 4
"""Samples of either side: fewer leave no degrees of freedom to the standard error."""

LOOKED_AT = 500
"""Samples of either side that the median heuristic looks at."""


def mmd(
    x: Any,
    y: Any,
    *,
    kernel: str = "gaussian",
    bandwidth: float | Sequence[float] | None = None,
) -> Metric:
    r"""Squared maximum mean discrepancy of two sets of samples, unbiased.

    .. math:: \mathrm{MMD}^2 = E\,k(X, X') + E\,k(Y, Y') - 2\,E\,k(X, Y) ,

    with means over pairs of different samples. It is zero in the mean where both sets are from one
    distribution, so it may be negative.

    Parameters
    ----------
    x, y
        Samples, ``[n, *event]`` and ``[m, *event]``, at least four of each; events are flattened.
    kernel
        With :math:`r` the Euclidean distance and :math:`b` the bandwidth, ``"gaussian"`` for
        :math:`\exp(-r^2 / 2 b^2)`, or ``"imq"``, the inverse multiquadric, for
        :math:`(1 + r^2 / b^2)^{-1/2}`, whose tails see samples that are far off.
    bandwidth
        In units of the samples; several are a mixture, the mean of their kernels. By default the
        median distance between the samples of both sets (of at most 500 of each, evenly spaced).
        Name one to compare several sets with the same reference: by default each has its own.

    Returns
    -------
    Metric
        ``value``, the squared discrepancy, and its ``standard_error``.

    Raises
    ------
    ValueError
        If there are fewer than four samples, events differ in shape, values are not finite, the
        kernel is unknown, a bandwidth is not positive, or most samples are the same point and no
        bandwidth is given.

    Notes
    -----
    The standard error is that of independent samples: thin the draws of a chain before. It is from
    all terms of the variance of the U-statistic, and so holds whether the distributions differ or
    not. Where they do not, it comes out up to a third too large, as a variance that is estimated
    below zero counts as zero, and the estimate is skewed to the right: it is an error bar, not a
    test.

    All pairs are looked at, in blocks: memory is linear in the number of samples.

    References
    ----------
    Gretton, Borgwardt, Rasch, Schölkopf, Smola, *A kernel two-sample test* (2012), Journal of
    Machine Learning Research 13; all terms of the variance: Sutherland, Deka, *Unbiased estimators
    for the variance of MMD estimators* (2019), arXiv:1906.02104.

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> x, y = jax.random.normal(jax.random.key(0), (2, 500, 3))
    >>> same, shifted = lp.diagnostics.mmd(x, y), lp.diagnostics.mmd(x, y + 1.0)
    >>> abs(same.value) < 4 * same.standard_error, shifted.value > 10 * shifted.standard_error
    (True, True)
    """
    if kernel not in KERNELS:
        raise ValueError(f"mmd: kernel: expected one of {', '.join(KERNELS)}, got {kernel!r}.")
    one, other = check_samples("mmd", least=LEAST, x=x, y=y)
    if bandwidth is None:
        bandwidth = _median_distance(one, other)
    scales = np.ravel(np.asarray(bandwidth)).tolist()
    if not scales:
        raise ValueError("mmd: bandwidth: expected a positive number or several, got none.")
    for scale in scales:
        check_number("mmd: bandwidth", scale, above=0.0)
    unit = float(max(scales))
    return _two_sample(one / unit, other / unit, np.asarray(scales) / unit, KERNELS[kernel])


def energy_distance(x: Any, y: Any) -> Metric:
    r"""Energy distance of two sets of samples, unbiased.

    .. math:: 2\,E|X - Y| - E|X - X'| - E|Y - Y'| ,

    with Euclidean distances, and means over pairs of different samples. It is zero in the mean
    where both sets are from one distribution, so it may be negative. Nothing is to be chosen.

    Parameters
    ----------
    x, y
        Samples, ``[n, *event]`` and ``[m, *event]``, at least four of each; events are flattened.

    Returns
    -------
    Metric
        ``value``, the distance in units of the samples (it is the squared discrepancy of the
        kernel :math:`-|x - y|`, and some call its root the energy distance), and its
        ``standard_error``.

    Raises
    ------
    ValueError
        If there are fewer than four samples, events differ in shape, or values are not finite.

    Notes
    -----
    The standard error is that of independent samples, as in `langevin_ppl.diagnostics.mmd`.

    References
    ----------
    Székely, Rizzo, *Energy statistics: a class of statistics based on distances* (2013), Journal
    of Statistical Planning and Inference 143; as a discrepancy of kernels: Sejdinovic,
    Sriperumbudur, Gretton, Fukumizu, *Equivalence of distance-based and RKHS-based statistics in
    hypothesis testing* (2013), arXiv:1207.6076.

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> x, y = jax.random.normal(jax.random.key(0), (2, 500, 3))
    >>> same, shifted = (lp.diagnostics.energy_distance(x, y + shift) for shift in (0.0, 1.0))
    >>> abs(same.value) < 4 * same.standard_error, shifted.value > 10 * shifted.standard_error
    (True, True)
    """
    one, other = check_samples("energy_distance", least=LEAST, x=x, y=y)
    unit = extent(one, other)
    found = _two_sample(one / unit, other / unit, np.ones(1), _negative_distance)
    return Metric(found.value * unit, found.standard_error * unit)


def _gaussian(squares: Array, scales: Array) -> Array:
    """Mean of Gaussian kernels."""
    parts = [jnp.exp(-0.5 * squares / scale**2) for scale in scales]
    return functools.reduce(jnp.add, parts) / len(parts)


def _inverse_multiquadric(squares: Array, scales: Array) -> Array:
    """Mean of inverse multiquadrics."""
    parts = [jax.lax.rsqrt(1.0 + squares / scale**2) for scale in scales]
    return functools.reduce(jnp.add, parts) / len(parts)


def _negative_distance(squares: Array, scales: Array) -> Array:
    """Kernel whose squared discrepancy is the energy distance."""
    del scales
    return -jnp.sqrt(squares)


KERNELS: dict[str, PairKernel] = {"gaussian": _gaussian, "imq": _inverse_multiquadric}
"""Kernels by name."""


def _median_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Median distance between the samples of both sets, of some hundred of each."""
    some = [a[np.linspace(0, len(a) - 1, min(len(a), LOOKED_AT)).astype(int)] for a in (x, y)]
    points = jnp.asarray(np.concatenate(some) / (unit := extent(*some)))
    squares = np.asarray(jax.jit(squared_distances)(points, points))
    median = unit * float(np.sqrt(np.median(squares[np.triu_indices(len(points), 1)])))
    if median == 0.0:
        raise ValueError(
            "mmd: expected samples that move, got a median distance of zero: more than half of "
            "the pairs are copies of one point. Thin the samples, or pass a bandwidth."
        )
    return median


class Sums(NamedTuple):
    """Sums of a kernel over pairs.

    Attributes
    ----------
    rows, columns
        Sums over the other side, ``[n]`` and ``[m]``.
    squares
        Sum of its squares.
    """

    rows: np.ndarray
    columns: np.ndarray
    squares: float


class Parts(NamedTuple):
    """A mean over pairs, taken apart as an analysis of variance does.

    Attributes
    ----------
    mean
        Mean of the kernel.
    rows, columns
        What a sample of either side adds to it, ``[n]`` and ``[m]``.
    residual
        Variance of what both together add, unbiased.
    """

    mean: float
    rows: np.ndarray
    columns: np.ndarray
    residual: float


def _two_sample(x: np.ndarray, y: np.ndarray, scales: np.ndarray, kernel: PairKernel) -> Metric:
    """Unbiased squared discrepancy, with the standard error of independent samples.

    A sample moves the estimate by twice what it adds to the mean within its set less what it adds
    to the mean across, and a pair by what both add together. All of these are uncorrelated, so
    that the variance is the sum of theirs.
    """
    n, m = len(x), len(y)
    one, other, units = jnp.asarray(x), jnp.asarray(y), jnp.asarray(scales)
    pivot, itself = _pivot(one[:BLOCK], other[:BLOCK], units, kernel=kernel)
    inner = functools.partial(_sums, scales=units, pivot=pivot, kernel=kernel)
    within_x, within_y = (_within(inner(part, part), float(itself)) for part in (one, other))
    across = _across(inner(one, other))
    value = within_x.mean + within_y.mean - 2.0 * across.mean

    # Effects are estimated from finitely many pairs, whose noise is not the samples'.
    alone_x = np.var(within_x.rows - across.rows, ddof=1)
    alone_x -= within_x.residual / (n - 2) + across.residual / m
    alone_y = np.var(within_y.rows - across.columns, ddof=1)
    alone_y -= within_y.residual / (m - 2) + across.residual / n
    together = (
        2.0 * within_x.residual / (n * (n - 1))
        + 2.0 * within_y.residual / (m * (m - 1))
        + 4.0 * across.residual / (n * m)
    )
    variance = max(0.0, 4.0 * alone_x / n + 4.0 * alone_y / m) + together
    return Metric(value, float(np.sqrt(variance)))


def _within(sums: Sums, itself: float) -> Parts:
    """Parts of the mean over pairs of different samples of one set."""
    n = len(sums.rows)
    rows, squares = sums.rows - itself, sums.squares - n * itself**2
    mean = float(rows.mean()) / (n - 1)
    # Least squares, where the pairs of a sample with itself are missing.
    effects = (rows - (n - 1) * mean) / (n - 2)
    left = squares - n * (n - 1) * mean**2 - 2.0 * (n - 2) * float(effects @ effects)
    return Parts(mean, effects, effects, max(0.0, left) / (n * (n - 3)))


def _across(sums: Sums) -> Parts:
    """Parts of the mean over pairs of samples of two sets."""
    n, m = len(sums.rows), len(sums.columns)
    mean = float(sums.rows.mean()) / m
    rows, columns = sums.rows / m - mean, sums.columns / n - mean
    left = sums.squares - n * m * mean**2 - m * float(rows @ rows) - n * float(columns @ columns)
    return Parts(mean, rows, columns, max(0.0, left) / ((n - 1) * (m - 1)))


def _sums(x: Array, y: Array, *, scales: Array, pivot: Array, kernel: PairKernel) -> Sums:
    """Sums of the kernel less the pivot, finished in double precision."""
    rows, columns, squares = _block_sums(x, y, scales, pivot, kernel=kernel)
    return Sums(
        np.asarray(rows, np.float64).reshape(-1)[: len(x)],
        np.asarray(columns, np.float64).sum(axis=0).reshape(-1)[: len(y)],
        float(np.asarray(squares, np.float64).sum()),
    )


@functools.partial(jax.jit, static_argnames="kernel")
def _pivot(x: Array, y: Array, scales: Array, *, kernel: PairKernel) -> tuple[Array, Array]:
    """About the mean of the kernel, and by how much it is above that for a sample with itself.

    A constant less in the kernel changes nothing but the digits that are left to differences.
    """
    pivot = jnp.mean(kernel(squared_distances(x, y), scales))
    return pivot, kernel(jnp.zeros((), x.dtype), scales) - pivot


@functools.partial(jax.jit, static_argnames="kernel")
def _block_sums(
    x: Array, y: Array, scales: Array, pivot: Array, *, kernel: PairKernel
) -> tuple[Array, Array, Array]:
    """Sums over rows, over columns by blocks of rows, and of squares by row."""

    def blocks(points: Array) -> tuple[Array, Array]:
        number = -(-len(points) // BLOCK)
        padded = jnp.pad(points, ((0, number * BLOCK - len(points)), (0, 0)))
        real = jnp.arange(number * BLOCK) < len(points)
        return padded.reshape(number, BLOCK, -1), real.reshape(number, BLOCK)

    def row(left: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        def column(
            sums: tuple[Array, Array], right: tuple[Array, Array]
        ) -> tuple[tuple[Array, Array], Array]:
            values = kernel(squared_distances(left[0], right[0]), scales) - pivot
            values = jnp.where(left[1][:, None] & right[1], values, 0.0)
            total, squares = sums
            total, squares = total + values.sum(axis=1), squares + (values**2).sum(axis=1)
            return (total, squares), values.sum(axis=0)

        zeros = jnp.zeros(BLOCK, x.dtype)
        (total, squares), columns = jax.lax.scan(column, (zeros, zeros), blocks(y))
        return total, columns, squares

    return jax.lax.map(row, blocks(x))

"""Kernel Stein discrepancy: draws against the score of their target."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from langevin_ppl import gradients
from langevin_ppl.arguments import check_target
from langevin_ppl.base import Array, GradientEstimator, PRNGKey, check_counts, check_key
from langevin_ppl.convergence.ranks import ess, split_chains
from langevin_ppl.diagnostics.runs import check_run, estimator_of, unconstrained
from langevin_ppl.gradients import on_flat
from langevin_ppl.tree import Layout

__all__ = ["ksd", "stein_kernel"]

OFFSET = 1.0
"""``c`` of the inverse multiquadric, in posterior standard deviations."""

EXPONENT = -0.5
"""Its power; any between -1 and 0 sees draws that escape to infinity (Gorham, Mackey 2017)."""

BLOCK = 2**22
"""Pairs of draws that are looked at together."""

RESAMPLES = 500
"""Sets of signs of the wild bootstrap."""


class Statistic(NamedTuple):
    """Sums over all pairs of draws.

    Attributes
    ----------
    total
        Sum of the Stein kernel over all pairs.
    diagonal
        Its part of every draw with itself.
    signed
        The same sum with signs, one for each set of them, ``[set]``.
    """

    total: float
    diagonal: float
    signed: np.ndarray


def ksd(
    rng_key: PRNGKey,
    target: Any,
    idata: xr.DataTree,
    *,
    gradient: Any = None,
    num_draws: int = 1000,
) -> xr.DataTree:
    r"""Measure how far draws are from their target by its score, and add that to their tree.

    The kernel Stein discrepancy needs no second run and no normalising constant. With
    :math:`k(x, y) = (1 + \|x - y\|^2)^{-1/2}`, score :math:`s = \nabla \log p` and

    .. math:: k_0(x, y) = s(x) \cdot s(y)\, k + s(x) \cdot \nabla_y k + s(y) \cdot \nabla_x k
        + \nabla_x \cdot \nabla_y k ,

    whose mean over either argument is zero under :math:`p`, it is
    :math:`\sqrt{n^{-2} \sum_{ij} k_0(x_i, x_j)}`. Draws and scores are unconstrained, and in units
    of the draws' own standard deviations, coordinate by coordinate: compare runs of one posterior,
    not posteriors.

    Parameters
    ----------
    rng_key
        Key of the batches and of the bootstrap.
    target
        Target of the run.
    idata
        What `langevin_ppl.sample` returned, with ``groups=["unconstrained_posterior"]`` (a target
        made by `langevin_ppl.density` needs none).
    gradient
        Where scores are from. By default from all the data. With `langevin_ppl.minibatch`,
        `langevin_ppl.control_variates` (with a centre) or a `GradientEstimator` the score of each
        draw is from a batch of its own: the stochastic Stein discrepancy.
    num_draws
        Draws, evenly spaced over the run; pairs of them are looked at, in blocks.

    Returns
    -------
    xarray.DataTree
        A copy with the group ``ksd``: ``ksd``, the discrepancy as above (a V-statistic, which is
        biased up by its terms ``i = j``, with batches by their noise too); ``ksd_squared``, the
        mean over pairs ``i != j``, an unbiased estimate of its square, which may be negative;
        ``p_value``, by a wild bootstrap, for draws from the target; ``scale``, the units,
        ``[coordinate]``. Attributes: ``num_draws``, ``gradient``.

    Raises
    ------
    TypeError
        If ``idata`` is not a run of `langevin_ppl.sample`, or ``gradient`` no estimator.
    ValueError
        If unconstrained draws are missing, are not finite, or do not move.

    Notes
    -----
    It sees wrong spread, shifts, skewness, and draws that are far too few. It does not see wrong
    weights of modes that are far apart, as scores do not know them, and it loses power in high
    dimension, where thousands of draws differ little from their target by it. A p-value says
    whether a bias is visible among so many draws, not whether it is large: for that see
    `langevin_ppl.diagnostics.bias`.

    Signs of the bootstrap flip, along a chain, as slowly as the draws forget where they were.
    P-values of draws of small effective sample size come out somewhat too small.

    References
    ----------
    Gorham, Mackey, *Measuring sample quality with kernels* (2017), arXiv:1703.01717; Gorham, Raj,
    Mackey, *Stochastic Stein discrepancies* (2020), arXiv:2007.02857; the bootstrap: Chwialkowski,
    Strathmann, Gretton, *A kernel test of goodness of fit* (2016), arXiv:1602.02964.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> target = lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))
    >>> exact = lp.sample(jax.random.key(0), target)
    >>> rough = lp.sample(jax.random.key(0), target, lp.ula, step_size=0.8, num_warmup=100)
    >>> good, bad = (lp.diagnostics.ksd(jax.random.key(1), target, run) for run in (exact, rough))
    >>> bool(good["ksd"]["ksd"] < bad["ksd"]["ksd"]), float(bad["ksd"]["p_value"]) < 0.01
    (True, True)
    """
    rng_key = check_key(rng_key)
    check_target(target)
    check_run("ksd", idata)
    check_counts(2, num_draws=num_draws)
    layout = Layout.of(target.prototype)
    chains = _thinned(unconstrained("ksd", target, idata, layout), num_draws)
    draws = chains.reshape(-1, layout.dimension)
    scale = draws.std(axis=0)
    if not (scale > 0).all():
        raise ValueError("ksd: the draws of some coordinates do not move.")
    key_batches, key_signs = jax.random.split(rng_key)
    estimator = estimator_of("ksd", target, gradients.exact() if gradient is None else gradient)
    scores = _scores(key_batches, estimator, jnp.asarray(draws, layout.dtype), layout=layout)
    random = np.random.default_rng(np.asarray(jax.random.key_data(key_signs)))
    signs = _signs(random, *chains.shape[:2], flips=_flips(chains))
    number, white = len(draws), (draws - draws.mean(axis=0)) / scale
    found = _statistic(white, np.asarray(scores, np.float64) * scale, signs)
    tree = idata.copy()
    tree["ksd"] = xr.DataTree(
        xr.Dataset(
            {
                "ksd": math.sqrt(max(found.total, 0.0)) / number,
                "ksd_squared": (found.total - found.diagonal) / (number * (number - 1)),
                # Of the bootstrap's sets, those of the draws are one.
                "p_value": (1 + np.sum(found.signed >= found.total)) / (1 + len(found.signed)),
                "scale": ("coordinate", scale),
            },
            attrs={
                "num_draws": number,
                "gradient": "exact" if estimator.draw is None else str(gradient)[:80],
            },
        )
    )
    return tree


def stein_kernel(x: np.ndarray, y: np.ndarray, sx: np.ndarray, sy: np.ndarray) -> np.ndarray:
    """Stein kernel of the inverse multiquadric.

    Parameters
    ----------
    x, y
        Points, ``[m, dimension]`` and ``[n, dimension]``.
    sx, sy
        Scores there.

    Returns
    -------
    numpy.ndarray
        ``[m, n]``.
    """
    dimension = x.shape[1]
    squares = np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1) - 2.0 * x @ y.T
    squares = np.maximum(squares, 0.0)
    base = OFFSET**2 + squares
    kernel = base**EXPONENT
    first = 2.0 * EXPONENT * base ** (EXPONENT - 1.0)
    second = 4.0 * EXPONENT * (EXPONENT - 1.0) * base ** (EXPONENT - 2.0)
    # The gradient of k in x is first * (x - y), in y the opposite.
    along_x = np.sum(x * sx, axis=1)[:, None] - sx @ y.T
    along_y = x @ sy.T - np.sum(y * sy, axis=1)
    return kernel * (sx @ sy.T) + first * (along_y - along_x - dimension) - second * squares


def _thinned(draws: np.ndarray | None, num_draws: int) -> np.ndarray:
    """About so many draws, ``[chain, draw, dimension]``, evenly spaced."""
    if draws is None:
        raise ValueError(
            "ksd: the run did not keep its unconstrained draws. Run langevin_ppl.sample with "
            "groups=['unconstrained_posterior']."
        )
    if not np.isfinite(draws).all():
        raise ValueError(
            "ksd: draws are not all finite. Select the chains that are, or use a smaller step_size."
        )
    each = min(draws.shape[1], max(1, round(num_draws / draws.shape[0])))
    places = np.linspace(0, draws.shape[1] - 1, each).astype(int)
    return draws[:, places].astype(np.float64)


@functools.partial(jax.jit, static_argnames="layout")
def _scores(
    rng_key: PRNGKey, estimator: GradientEstimator, draws: Array, *, layout: Layout
) -> Array:
    """Scores of draws, ``[draw, dimension]``, each from a batch of its own."""
    flat = on_flat(estimator, layout)

    def score(row: tuple[Array, Array]) -> Array:
        index, position = row
        batch = ()
        if flat.draw is not None:
            batch = flat.draw(jax.random.fold_in(rng_key, index), index + 1)
        return flat.estimate(batch, position, flat.init(position))[0].gradient

    return jax.lax.map(score, (jnp.arange(len(draws)), draws))


def _flips(chains: np.ndarray) -> float:
    """Probability of a sign to flip between two draws: a half where they are independent."""
    if chains.shape[1] < 8:
        return 0.5
    halves = split_chains(chains)
    times = [halves.shape[0] * halves.shape[1] / np.min(ess(part)) for part in (halves, halves**2)]
    return 0.5 / max(1.0, *times)


def _signs(random: np.random.Generator, chains: int, draws: int, flips: float) -> np.ndarray:
    """Signs of the wild bootstrap, Markov chains of their own, ``[chain * draw, set]``."""
    turned = np.where(random.random((chains, draws, RESAMPLES)) < flips, -1.0, 1.0)
    turned[:, 0] = random.choice([-1.0, 1.0], size=(chains, RESAMPLES))
    return np.cumprod(turned, axis=1).reshape(chains * draws, RESAMPLES)


def _statistic(draws: np.ndarray, scores: np.ndarray, signs: np.ndarray) -> Statistic:
    """Sums of the Stein kernel over all pairs, block by block of rows."""
    rows = max(1, BLOCK // len(draws))
    total, diagonal, signed = 0.0, 0.0, np.zeros(signs.shape[1])
    for start in range(0, len(draws), rows):
        part = slice(start, start + rows)
        block = stein_kernel(draws[part], draws, scores[part], scores)
        total += float(block.sum())
        diagonal += float(np.trace(block, offset=start))
        signed += np.sum(signs[part] * (block @ signs), axis=0)
    return Statistic(total, diagonal, signed)

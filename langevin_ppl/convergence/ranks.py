"""Effective sample size and R-hat of many coordinates at once, on ranks.

The definitions of ArviZ (and the tests compare with it); written for arrays, because ArviZ's own
take milliseconds for each coordinate and seconds to import, and these run while a chain does.
"""

import numpy as np
from scipy.special import ndtri

__all__ = ["bulk_ess", "ess", "rank_normalised", "rhat", "split_chains"]


def split_chains(values: np.ndarray) -> np.ndarray:
    """Halve every chain: ``[chain, draw, ...]`` to ``[2 chain, draw // 2, ...]``."""
    half = values.shape[1] // 2
    return np.concatenate([values[:, :half], values[:, values.shape[1] - half :]])


def rank_normalised(values: np.ndarray) -> np.ndarray:
    """Normal scores of the pooled ranks of every coordinate; ties share their mean rank.

    Parameters
    ----------
    values
        Shape ``[chain, draw, coordinate]``.

    References
    ----------
    Vehtari, Gelman, Simpson, Carpenter, Bürkner, *Rank-normalization, folding, and localization:
    an improved R-hat* (2021), arXiv:1903.08008.
    """
    chains, draws, coordinates = values.shape
    flat = values.reshape(-1, coordinates)
    number = flat.shape[0]
    order = np.argsort(flat, axis=0, kind="stable")
    ordered = np.take_along_axis(flat, order, axis=0)
    first = np.concatenate([np.ones((1, coordinates), bool), ordered[1:] != ordered[:-1]])
    places = np.arange(1, number + 1)[:, None]
    # A run of equal values spans from its first place to the one before the next run.
    low = np.maximum.accumulate(np.where(first, places, 0), axis=0)
    last = np.concatenate([first[1:], np.ones((1, coordinates), bool)])
    high = np.minimum.accumulate(np.where(last, places, number + 1)[::-1], axis=0)[::-1]
    ranks = np.empty_like(ordered, dtype=np.float64)
    np.put_along_axis(ranks, order, 0.5 * (low + high), axis=0)
    return ndtri((ranks - 0.375) / (number + 0.25)).reshape(chains, draws, coordinates)


def _potential_scale(values: np.ndarray) -> np.ndarray:
    draws = values.shape[1]
    between = values.mean(axis=1).var(axis=0, ddof=1)
    within = values.var(axis=1, ddof=1).mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.sqrt((between + within * (draws - 1) / draws) / within)


def rhat(values: np.ndarray) -> np.ndarray:
    """Rank-normalised split R-hat, the larger of bulk and folded.

    Parameters
    ----------
    values
        Shape ``[chain, draw, coordinate]``, at least four draws.

    References
    ----------
    Vehtari et al. (2021), arXiv:1903.08008.
    """
    halves = split_chains(values)
    folded = np.abs(halves - np.median(halves, axis=(0, 1)))
    return np.maximum(
        _potential_scale(rank_normalised(halves)), _potential_scale(rank_normalised(folded))
    )


def bulk_ess(values: np.ndarray) -> np.ndarray:
    """Bulk effective sample size, by Geyer's initial monotone sequence.

    Parameters
    ----------
    values
        Shape ``[chain, draw, coordinate]``, at least four draws.

    References
    ----------
    Vehtari et al. (2021), arXiv:1903.08008; Geyer, *Practical Markov chain Monte Carlo* (1992).
    """
    halves = split_chains(values)
    return np.where(
        np.ptp(values, axis=(0, 1)) == 0,
        float(halves.shape[0] * halves.shape[1]),
        ess(rank_normalised(halves)),
    )


def ess(values: np.ndarray) -> np.ndarray:
    """Effective sample size of means, of chains as they are: neither split nor ranked.

    Parameters
    ----------
    values
        Shape ``[chain, draw, coordinate]``, at least four draws.
    """
    chains, draws, _ = values.shape
    length = 2 ** int(np.ceil(np.log2(2 * draws)))
    spectrum = np.fft.rfft(values - values.mean(axis=1, keepdims=True), length, axis=1)
    covariance = np.fft.irfft(np.abs(spectrum) ** 2, length, axis=1)[:, :draws].mean(axis=0) / draws
    within = covariance[0] * draws / (draws - 1)
    pooled = covariance[0] + values.mean(axis=1).var(axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = 1.0 - (within - covariance) / pooled
    correlation[0] = 1.0
    pairs = draws // 2
    sums = correlation[0 : 2 * pairs : 2] + correlation[1 : 2 * pairs : 2]
    # Geyer: sums of neighbours count while they are positive, and never rise.
    positive = np.logical_and.accumulate(sums > 0, axis=0)
    kept = np.minimum.accumulate(np.where(positive, sums, 0.0), axis=0)
    end = positive.sum(axis=0)
    # Beyond the last pair ArviZ still takes the even lag in, where it is positive.
    index = np.minimum(2 * end, draws - 1)
    tail = np.take_along_axis(correlation, index[None], axis=0)[0]
    time = -1.0 + 2.0 * kept.sum(axis=0) + np.maximum(tail, 0.0)
    number = chains * draws
    time = np.maximum(time, 1.0 / np.log10(number))
    return number / time

"""Cheap statistics of many coordinates in one pass over their draws, to choose which to examine."""

from typing import Any, NamedTuple

import numpy as np

from langevin_ppl.convergence.blocks import DrawBlocks

__all__ = ["Screen", "screen", "worst_of"]


class Screen(NamedTuple):
    """What one pass over the draws finds, ``[coordinate]`` each.

    Attributes
    ----------
    finite
        Whether all draws are finite.
    changes
        Whether two draws differ.
    scores
        Differences of the means and of the variances of half chains, and the correlation of
        neighbouring draws, ``[3, coordinate]``.
    """

    finite: np.ndarray
    changes: np.ndarray
    scores: np.ndarray


def screen(blocks: DrawBlocks, stride: int) -> Screen:
    """Read every ``stride``-th draw once, and describe every coordinate."""
    number = -(-blocks.num_draws // stride)
    sums = {name: _Sums(number) for name in blocks.columns}
    with np.errstate(over="ignore", invalid="ignore"):  # of draws that are not finite
        for block in blocks.flat(stride):
            for name, values in block.items():
                sums[name].add(values)
        parts = [one.screen() for one in sums.values()]
    return Screen(*(np.concatenate(part, axis=-1) for part in zip(*parts, strict=True)))


def worst_of(found: Screen, number: int) -> np.ndarray:
    """At most so many coordinates that change: those with the largest scores, in their order."""
    changing = np.flatnonzero(found.changes)
    if len(changing) <= number:
        return changing
    ranked = [np.argsort(score)[::-1] for score in found.scores[:, changing]]
    # Taken in turn from the lists until there are enough.
    order = np.stack(ranked, axis=1).ravel()
    _, first = np.unique(order, return_index=True)
    return np.sort(changing[order[np.sort(first)][:number]])


class _Sums:
    """Sums over the draws of the half chains of one variable."""

    def __init__(self, num_draws: int):
        half = num_draws // 2
        self.halves = [(0, half, _HalfSums()), (num_draws - half, num_draws, _HalfSums())]
        self.done = 0

    def add(self, values: np.ndarray) -> None:
        """Add the next draws, ``[chain, draw, coordinate]``."""
        low, high = values.min(axis=(0, 1)), values.max(axis=(0, 1))
        self.low = np.minimum(self.low, low) if self.done else low
        self.high = np.maximum(self.high, high) if self.done else high
        for begin, end, sums in self.halves:
            rows = values[:, max(0, begin - self.done) : max(0, end - self.done)]
            if rows.shape[1]:
                sums.add(rows)
        self.done += values.shape[1]

    def screen(self) -> Screen:
        """Describe the coordinates of the variable."""
        parts = [sums.moments() for *_, sums in self.halves]
        means, variances, products = (np.concatenate(p) for p in zip(*parts, strict=True))
        within = variances.mean(axis=0)
        within = np.where(within > 0, within, np.finfo(within.dtype).tiny)
        scores = [means.var(axis=0), variances.std(axis=0), products.mean(axis=0)] / within
        # A maximum of draws with a NaN is NaN.
        return Screen(np.isfinite(self.low) & np.isfinite(self.high), self.low != self.high, scores)


class _HalfSums:
    """Sums over draws ``[chain, coordinate]``, of differences from the first draw of each chain.

    The differences are as small as the spread of a chain, so that nothing cancels.
    """

    def __init__(self):
        self.count = 0

    def add(self, rows: np.ndarray) -> None:
        """Add the next draws of this half, ``[chain, draw, coordinate]``."""
        if self.count == 0:
            self.origin = rows[:, 0].astype(np.float64)
            self.total, self.squares, self.products, self.last = np.zeros((4, *self.origin.shape))
        shifted = rows - self.origin[:, None]
        self.total += shifted.sum(axis=1)
        self.squares += np.einsum("cdk,cdk->ck", shifted, shifted)
        self.products += self.last * shifted[:, 0]
        self.products += np.einsum("cdk,cdk->ck", shifted[:, 1:], shifted[:, :-1])
        self.last = shifted[:, -1].copy()
        self.count += rows.shape[1]

    def moments(self) -> tuple[Any, Any, Any]:
        """Means, variances, and mean products of the deviations of neighbouring draws."""
        mean = self.total / self.count
        # The first difference is zero, so that the ends of the two sums differ by the last.
        products = self.products - mean * (2.0 * self.total - self.last)
        products = products / (self.count - 1) + mean**2
        return self.origin + mean, self.squares / self.count - mean**2, products

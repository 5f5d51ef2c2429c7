"""Which modes of a target with known modes a set of samples covers."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array, check_number
from langevin_ppl.diagnostics.samples import check_samples, extent, squared_distances

__all__ = ["ModeCoverage", "mode_coverage"]

BLOCK = 1024
"""Samples whose distances to all centres are looked at together."""


class ModeCoverage(NamedTuple):
    """How samples are spread over modes.

    Attributes
    ----------
    covered
        Share of the modes that at least one sample is in.
    fractions
        Share of the samples in each mode, ``[mode]``; with ``outside`` they sum to one.
    outside
        Share of the samples that are in no mode: further than the radius from every centre.
    total_variation
        Between the fractions and the weights: from 0 to 1. Samples outside count as misplaced.
    entropy
        Entropy of the fractions of the samples inside, divided by the log of the number of modes:
        1 where all modes are hit equally often, 0 where one has all (or none has any).
    """

    covered: float
    fractions: np.ndarray
    outside: float
    total_variation: float
    entropy: float


def mode_coverage(
    x: Any, centres: Any, *, radius: float | None = None, weights: Any = None
) -> ModeCoverage:
    """Count the samples in each mode of a target whose modes are known.

    A sample is in the mode whose centre is nearest (Euclidean), if that is within the radius.

    Parameters
    ----------
    x
        Samples, ``[n, *event]``, at least two; events are flattened.
    centres
        Centres of the modes, ``[mode, *event]``, at least two.
    radius
        Of a mode, in units of the samples. By default every sample is in some mode, also one that
        is between them.
    weights
        What share of the samples each mode should have, ``[mode]``, up to a factor. By default all
        the same.

    Returns
    -------
    ModeCoverage
        ``covered``, ``fractions``, ``outside``, ``total_variation`` and ``entropy``. The fractions
        of n independent samples that have the right weights differ from them by chance: their
        total variation is about the sum of ``sqrt(w (1 - w) / (2 pi n))``, and a mode of weight w
        is missed with probability ``(1 - w)^n``. Unequal weights have an entropy below 1
        themselves.

    Raises
    ------
    ValueError
        If there are fewer than two samples or centres, events differ in shape, values are not
        finite, the radius is not positive, or weights do not fit the centres or are negative.

    References
    ----------
    The entropy: Blessing, Jia, Esslinger, Vargas, Neumann, *Beyond ELBOs: a large-scale evaluation
    of variational methods for sampling* (2024), arXiv:2406.07423 (entropic mode coverage).

    Examples
    --------
    >>> import numpy as np, langevin_ppl as lp
    >>> x = np.array([[0.1], [-0.2], [4.1], [2.0]])
    >>> found = lp.diagnostics.mode_coverage(x, np.array([[0.0], [4.0], [9.0]]), radius=1.0)
    >>> round(found.covered, 3), found.outside, found.fractions.tolist()
    (0.667, 0.25, [0.5, 0.25, 0.0])
    >>> round(found.total_variation, 3), round(found.entropy, 3)
    (0.417, 0.579)
    """
    samples, modes = check_samples("mode_coverage", x=x, centres=centres)
    number = len(modes)
    wanted = np.ones(number) if weights is None else np.asarray(weights, np.float64)
    usable = wanted.shape == (number,) and bool(np.isfinite(wanted).all() and (wanted >= 0).all())
    if not usable or not wanted.sum() > 0:
        raise ValueError(
            f"mode_coverage: weights: expected {number} numbers, one for each centre, none "
            f"negative and not all zero, got {weights!r}."
        )
    if radius is not None:
        check_number("mode_coverage: radius", radius, above=0.0)
    unit = extent(samples, modes)
    nearest, squares = _nearest(jnp.asarray(samples / unit), jnp.asarray(modes / unit))
    inside = np.ones(len(samples), bool)
    if radius is not None:
        inside = unit * np.sqrt(np.asarray(squares, np.float64)) <= radius
    counts = np.bincount(np.asarray(nearest)[inside], minlength=number)
    fractions, outside = counts / len(samples), 1.0 - float(inside.mean())
    shares = counts[counts > 0] / max(1, counts.sum())
    return ModeCoverage(
        covered=float((counts > 0).mean()),
        fractions=fractions,
        outside=outside,
        total_variation=0.5 * (float(np.abs(fractions - wanted / wanted.sum()).sum()) + outside),
        entropy=abs(float(np.sum(shares * np.log(shares)))) / math.log(number),
    )


@jax.jit
def _nearest(x: Array, centres: Array) -> tuple[Array, Array]:
    """Index of the nearest centre of each sample, and the squared distance to it."""

    def one(point: Array) -> tuple[Array, Array]:
        squares = squared_distances(point[None], centres)[0]
        return jnp.argmin(squares), jnp.min(squares)

    return jax.lax.map(one, x, batch_size=min(BLOCK, len(x)))

"""When draws are enough, and when they must not be trusted."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from langevin_ppl.base import check_number
from langevin_ppl.convergence.blocks import DrawBlocks, as_blocks
from langevin_ppl.convergence.ranks import bulk_ess, rhat
from langevin_ppl.convergence.screen import screen, worst_of

__all__ = ["Converged", "Convergence", "converged", "judge", "summarise"]

MIN_DRAWS = 8
"""Fewest draws of a chain for which the statistics mean anything at all."""

MAX_EXAMINED = 64
"""Most coordinates that are examined by ranks: the worst by cheaper statistics."""

MAX_DRAWS = 5000
"""Most draws of a chain that are examined: of a longer run, one every so often."""

MAX_SORTED = 2**18
"""Most numbers that are examined by ranks at a time."""

SATURATED = 0.1
"""Effective draws for each that is examined, above which leaving draws out may have lost some."""


@dataclasses.dataclass(frozen=True)
class Converged:
    """A stopping rule, made by `converged`."""

    ess: float = 400.0
    rhat: float = 1.01


def converged(ess: float = 400.0, rhat: float = 1.01) -> Converged:
    """Stop when draws are enough: for ``until=`` of `sample`.

    Parameters
    ----------
    ess
        Least bulk effective sample size, over all chains, of every variable and of its squared
        deviation from its mean. The second one is an estimate of how well variances are known;
        chains that swing about the mean reach the first one long before it.
    rhat
        Largest rank-normalised split R-hat.

    Raises
    ------
    ValueError
        If ``ess`` is not positive or ``rhat`` not above 1.

    References
    ----------
    Vehtari, Gelman, Simpson, Carpenter, Bürkner, *Rank-normalization, folding, and localization:
    an improved R-hat* (2021), arXiv:1903.08008.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> target = lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))
    >>> idata = lp.sample(jax.random.key(0), target, until=lp.converged(ess=1000))
    >>> idata.attrs["converged"]
    1
    """
    check_number("ess", ess, above=0.0)
    check_number("rhat", rhat, above=1.0)
    return Converged(float(ess), float(rhat))


class Convergence(NamedTuple):
    """What the draws say of themselves.

    Attributes
    ----------
    ess, ess_squares
        Least bulk ESS of the coordinates, and of their squared deviations from their means.
    rhat
        Largest R-hat.
    worst, worst_rhat
        Numbers of the coordinate that needs the most draws, and of that with the largest R-hat.
    """

    ess: float
    ess_squares: float
    rhat: float
    worst: int
    worst_rhat: int = 0

    def satisfies(self, rule: Converged) -> bool:
        """Whether the draws are enough; NaN is not."""
        return self.ess >= rule.ess and self.ess_squares >= rule.ess and self.rhat <= rule.rhat


def summarise(
    draws: DrawBlocks | Mapping[str, Any] | np.ndarray, enough: float = math.inf
) -> Convergence:
    """Effective sample sizes and R-hat of draws, at the worst coordinates.

    Sorting draws costs more than making them. Of a long run evenly spaced ones are examined, whose
    effective number is a lower bound of that of all; and all of them only where the bound is short
    of what is enough, and is one because draws were left out.

    Parameters
    ----------
    draws
        Variables, or an array ``[chain, draw, coordinate]``. Coordinates that never change are left
        out.
    enough
        Effective sample size that is asked for.
    """
    blocks = as_blocks(draws)
    stride = max(1, blocks.num_draws // MAX_DRAWS)
    seen = _summarised(blocks, stride)
    spaced = blocks.num_chains * -(-blocks.num_draws // stride)
    if stride > 1 and enough > min(seen.ess, seen.ess_squares) > SATURATED * spaced:
        return _summarised(blocks, 1)
    return seen


def _summarised(blocks: DrawBlocks, stride: int) -> Convergence:
    """Examine every ``stride``-th draw: one pass chooses coordinates, a second reads them."""
    if blocks.num_draws < MIN_DRAWS:
        return Convergence(0.0, 0.0, math.inf, 0, 0)
    found = screen(blocks, stride)
    if not (found.finite.all() and found.changes.any()):
        first = int(np.argmin(found.finite))
        return Convergence(0.0, 0.0, math.inf, first, first)
    chosen = worst_of(found, MAX_EXAMINED)
    values = _read_columns(blocks, stride, chosen)
    # By columns, because sorting and Fourier transforms need many times the memory of the draws.
    parts = np.array_split(values, -(-values.size // MAX_SORTED), axis=2)
    ess = np.concatenate([bulk_ess(part) for part in parts])
    squares = np.concatenate([bulk_ess(np.square(p - p.mean(axis=(0, 1)))) for p in parts])
    rhats = np.concatenate([rhat(part) for part in parts])
    return Convergence(
        float(ess.min()),
        float(squares.min()),
        float(rhats.max()),
        int(chosen[np.argmin(np.minimum(ess, squares))]),
        int(chosen[np.argmax(rhats)]),
    )


def _read_columns(blocks: DrawBlocks, stride: int, chosen: np.ndarray) -> np.ndarray:
    """Draws of a few coordinates, ``[chain, draw, coordinate]``."""
    number = -(-blocks.num_draws // stride)
    values = np.empty((blocks.num_chains, number, len(chosen)))
    start = 0
    for block in blocks.flat(stride):
        end = start + next(iter(block.values())).shape[1]
        for name, columns in blocks.columns.items():
            here = np.flatnonzero((columns.start <= chosen) & (chosen < columns.stop))
            values[:, start:end, here] = block[name][:, :, chosen[here] - columns.start]
        start = end
    return values


def judge(
    draws: DrawBlocks | Mapping[str, Any] | np.ndarray, rule: Converged
) -> tuple[Convergence, str]:
    """Examine a posterior; the text says what falls short, and is empty where nothing does.

    Parameters
    ----------
    draws
        As in `summarise`.
    rule
        What is enough.
    """
    blocks = as_blocks(draws)
    seen = summarise(blocks, rule.ess)
    if seen.satisfies(rule):
        return seen, ""
    if blocks.num_draws < MIN_DRAWS:
        return seen, f"{blocks.num_draws} draws of each chain are too few to examine"
    least = min(seen.ess, seen.ess_squares)
    what = "its squared deviation" if seen.ess_squares < seen.ess else "its draws"
    parts = []
    if not seen.rhat <= rule.rhat:
        parts.append(
            f"R-hat of '{blocks.name_of(seen.worst_rhat)}' is {_unlike(rule.rhat, seen.rhat, 3)} "
            f"(at most {rule.rhat:g} was asked for)"
        )
    if not least >= rule.ess:
        parts.append(
            f"the effective sample size of '{blocks.name_of(seen.worst)}' ({what}) is "
            f"{_unlike(rule.ess, least, 0)} (at least {rule.ess:g} was asked for)"
        )
    return seen, " and ".join(parts)


def _unlike(bound: float, value: float, digits: int) -> str:
    """Write a number with as many digits as it takes not to read like the bound that it misses."""
    while digits < 16 and float(f"{value:.{digits}f}") == float(f"{bound:g}"):
        digits += 1
    return f"{value:.{digits}f}"

"""When draws are enough, and when they must not be trusted."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from langevin_ppl.base import check_number
from langevin_ppl.convergence.ranks import bulk_ess, rhat, split_chains

__all__ = ["Converged", "Convergence", "converged", "flattened", "judge", "summarise"]

MIN_DRAWS = 8
"""Fewest draws of a chain for which the statistics mean anything at all."""

MAX_EXAMINED = 64
"""Most coordinates that are examined by ranks: the worst by cheaper statistics."""

MAX_DRAWS = 5000
"""Most draws of a chain that are examined: of a longer run, one every so often."""

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
    worst
        Number of the coordinate that needs the most draws.
    """

    ess: float
    ess_squares: float
    rhat: float
    worst: int

    def satisfies(self, rule: Converged) -> bool:
        """Whether the draws are enough; NaN is not."""
        return self.ess >= rule.ess and self.ess_squares >= rule.ess and self.rhat <= rule.rhat


def summarise(values: np.ndarray, enough: float = math.inf) -> Convergence:
    """Effective sample sizes and R-hat of draws, at the worst coordinates.

    Sorting draws costs more than making them. Of a long run evenly spaced ones are examined, whose
    effective number is a lower bound of that of all; and all of them only where the bound is short
    of what is enough, and is one because draws were left out.

    Parameters
    ----------
    values
        Shape ``[chain, draw, coordinate]``. Coordinates that never change are left out.
    enough
        Effective sample size that is asked for.
    """
    stride = max(1, values.shape[1] // MAX_DRAWS)
    spaced = values[:, ::stride]
    seen = _summarised(spaced)
    least = min(seen.ess, seen.ess_squares)
    if stride > 1 and enough > least > SATURATED * spaced.shape[0] * spaced.shape[1]:
        return _summarised(values)
    return seen


def _summarised(values: np.ndarray) -> Convergence:
    nothing = Convergence(0.0, 0.0, math.inf, 0)
    if values.shape[1] < MIN_DRAWS:
        return nothing
    moving = np.flatnonzero(np.ptp(values, axis=(0, 1)) != 0)
    if len(moving) == 0 or not np.isfinite(values).all():
        return nothing
    chosen = _worst(values, moving)
    values = values[:, :, chosen].astype(np.float64)
    ess = bulk_ess(values)
    squares = bulk_ess(np.square(values - values.mean(axis=(0, 1))))
    worst = int(chosen[np.argmin(np.minimum(ess, squares))])
    return Convergence(float(ess.min()), float(squares.min()), float(rhat(values).max()), worst)


def _worst(values: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """Coordinates that disagree most between half chains, or are most correlated in time."""
    if len(moving) <= MAX_EXAMINED:
        return moving
    halves = split_chains(values[:, :, moving])
    within = halves.var(axis=1).mean(axis=0)
    within = np.where(within > 0, within, np.finfo(halves.dtype).tiny)
    apart = halves.mean(axis=1).var(axis=0) / within
    spread = halves.var(axis=1).std(axis=0) / within
    centred = halves - halves.mean(axis=1, keepdims=True)
    slow = (centred[:, 1:] * centred[:, :-1]).mean(axis=(0, 1)) / within
    ranked = [np.argsort(score)[::-1] for score in (apart, spread, slow)]
    # Taken in turn from the three lists until there are enough.
    order = np.stack(ranked, axis=1).ravel()
    _, first = np.unique(order, return_index=True)
    return np.sort(moving[order[np.sort(first)][:MAX_EXAMINED]])


def flattened(variables: Mapping[str, Any]) -> tuple[np.ndarray, list[str]]:
    """All variables side by side, ``[chain, draw, coordinate]``, and the name of each column."""
    columns, names = [], []
    for name, value in variables.items():
        array = np.asarray(value)
        if np.issubdtype(array.dtype, np.floating) and array.size:
            array = array.reshape(*array.shape[:2], -1)
            columns.append(array)
            width = array.shape[2]
            names += [name] if width == 1 else [f"{name}[{i}]" for i in range(width)]
    return np.concatenate(columns, axis=2), names


def judge(variables: Mapping[str, Any], rule: Converged) -> tuple[Convergence, str]:
    """Examine a posterior; the text says what falls short, and is empty where nothing does.

    Parameters
    ----------
    variables
        Draws by name, ``[chain, draw, ...]``.
    rule
        What is enough.
    """
    values, names = flattened(variables)
    seen = summarise(values, rule.ess)
    if seen.satisfies(rule):
        return seen, ""
    least = min(seen.ess, seen.ess_squares)
    what = "its squared deviation" if seen.ess_squares < seen.ess else "its draws"
    parts = []
    if not seen.rhat <= rule.rhat:
        parts.append(f"R-hat is {seen.rhat:.3f} (at most {rule.rhat:g} was asked for)")
    if not least >= rule.ess:
        parts.append(
            f"the effective sample size of '{names[seen.worst]}' ({what}) is {least:.0f} (at "
            f"least {rule.ess:g} was asked for)"
        )
    return seen, " and ".join(parts)

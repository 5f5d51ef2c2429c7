"""What warm-up saw, in words and numbers."""

from typing import Any

import numpy as np

from langevin_ppl.base import Draws, percent
from langevin_ppl.warmup.adaptation import POOR_FIT, Adaptation, AdaptationState
from langevin_ppl.warmup.ends import End, Ends, diverged
from langevin_ppl.warmup.start import FLATTENED, MIN_EIGENVALUE, Search, Start

__all__ = ["describe_ends", "describe_start", "describe_stuck", "describe_tuning", "why_no_mode"]

GOOD, POOR = "good", "poor"
"""Judgements of the Gaussian fit."""

STUCK = 0.05
"""Mean acceptance rate in the second half of warm-up below which a chain counts as stuck."""


def describe_start(start: Start) -> tuple[dict[str, Any], tuple[str, ...], Ends]:
    """Report the search for a mode: facts for the attributes, doubts, and how searches ended.

    Parameters
    ----------
    start
        On the host.
    """
    search = start.search
    ends = Ends.of(search, start.restarted, start.between)
    notes: dict[str, Any] = {
        "num_chains_at_best_mode": int(search.found.sum()),
        "gradient_growth": float(start.growth),
        "mode_search": describe_ends(ends),
    }
    if not ends.no_mode:
        return notes, (), ends
    reason = why_no_mode(search)
    if diverged(search).any():
        return notes, (reason,), ends
    notes["mode_search"] += f". {reason}"
    return notes, (), ends


def describe_ends(ends: Ends, start: str = "") -> str:
    """Put the ends of the searches into words.

    Parameters
    ----------
    start
        Where all chains start whose search did not end at the best mode; by default where their
        search ended, or at their own position if it did not converge.
    """
    there = f"start {start}" if start else "started there"
    own = f"start {start}" if start else "started from their own positions"
    if ends.no_mode:
        return f"no mode: chains {own}"
    if not any(kind is not End.BEST for kind in ends.kinds):
        if not ends.separate:
            return "all chains ended at one mode"
        begin = f"all chains {there}" if start else "each chain started at its own end"
        return f"the searches of all chains converged, and {begin}"

    def listed(values: np.ndarray, chains: list[int]) -> str:
        return ", ".join(f"{values[chain]:.3g}" for chain in chains)

    parts = []
    if chains := ends.chains(End.LOWER):
        nats = listed(ends.drops, chains)
        parts.append(
            f"chains {chains} ended elsewhere, {nats} nats below the best mode, and {there}"
        )
    if chains := ends.chains(End.EQUAL):
        sds = listed(ends.distances, chains)
        parts.append(
            f"chains {chains} ended elsewhere with the log density of the best mode within "
            f"rounding, {sds} posterior standard deviations from it (permuted labels, a symmetric "
            f"posterior or a curved ridge), and {there}"
        )
    if chains := ends.chains(End.RIDGE):
        sds = listed(ends.distances, chains)
        parts.append(
            f"chains {chains} ended at the same mode within rounding, {sds} posterior standard "
            f"deviations from its best point and with no lower density in between (a ridge or a "
            f"flat top), and {there}"
        )
    if chains := ends.chains(End.MOVED):
        nats = listed(ends.drops, chains)
        parts.append(
            f"chains {chains} ended {nats} nats below the best mode, where the posterior mass is "
            "negligible, and were moved to the best mode"
        )
    if chains := ends.chains(End.NONFINITE):
        parts.append(f"the searches of chains {chains} became non-finite, and the chains {own}")
    if chains := ends.chains(End.UNFINISHED):
        parts.append(f"the searches of chains {chains} did not converge, and the chains {own}")
    return "; ".join(parts)


def why_no_mode(search: Search) -> str:
    """Say why a search that found no mode did not; ``search`` is on the host."""
    lost = diverged(search)
    if lost.any():
        value, far = search.ended[lost][0], np.abs(search.ends[lost][0]).max()
        where = f"log density {value:.3g} at |x| = {far:.3g}"
        if not (np.isfinite(value) and np.isfinite(far)):
            where = "the log density became non-finite"
        return (
            f"The search for a mode diverged from starts {np.flatnonzero(lost).tolist()} "
            f"({where}): the log density has no maximum. The posterior may be improper (a flat "
            "prior that the data do not constrain), or a funnel whose neck is infinitely deep; "
            "give the prior a scale, or use the non-centred form."
        )
    if search.frame.ndim == 1:
        return f"No search converged to a gradient below {percent(FLATTENED)} of its first one."
    flattest = float(search.flattest)
    if not np.isfinite(flattest):
        return "The Hessian at the best end of all searches is not finite."
    if not search.curved:
        kind = "a saddle, or a funnel"
        if flattest > -MIN_EIGENVALUE:
            kind = (
                "a ridge: parameters that the data do not tell apart, or whose correlation is too "
                "close to 1; centre the predictors"
            )
        return (
            "The Hessian at the best end of all searches is not positive definite (smallest "
            f"eigenvalue {flattest:.2g} with a unit diagonal, where {MIN_EIGENVALUE:g} counts as "
            f"positive): {kind}."
        )
    return (
        "The best end of all searches was still "
        f"{np.sqrt(search.decrement):.3g} standard deviations away from a mode."
    )


def describe_stuck(warmup: Draws) -> tuple[str, ...]:
    """Name the chains that hardly moved."""
    rates = warmup.stats.get("acceptance_rate")
    if rates is None:
        return ()
    late = np.asarray(rates)[:, rates.shape[1] // 2 :].mean(axis=1)
    stuck = np.flatnonzero(~(late > STUCK))
    if not len(stuck):
        return ()
    listed = ", ".join(f"chain {c} accepted {percent(late[c])}" for c in stuck)
    rest = np.delete(late, stuck)
    others = f", the others {percent(np.mean(rest))}" if rest.size else ""
    return (
        f"Stuck in warm-up: {listed} of its proposals{others}. Start "
        "it elsewhere (initial=, or target.replace(init_strategy=...)), warm up longer, or use a "
        "tamed kernel (langevin_ppl.tmala).",
    )


def describe_tuning(state: AdaptationState, adaptation: Adaptation) -> dict[str, Any]:
    """Report how well a Gaussian fits, by the last window of the warm-up."""
    notes: dict[str, Any] = {}
    number = float(state.positions.number)
    if number > 0:
        notes["gaussian_fit_residual"] = float(np.sqrt(state.residual / number))
    if "frequency" in adaptation.tunes:
        poor = float(state.frequency) == np.asarray(POOR_FIT[0], state.frequency.dtype)
        notes["gaussian_fit"] = POOR if poor else GOOD
    return notes

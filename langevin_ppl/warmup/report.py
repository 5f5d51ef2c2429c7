"""What warm-up saw, in words and numbers."""

from typing import Any

import numpy as np

from langevin_ppl.base import Draws
from langevin_ppl.warmup.adaptation import POOR_FIT, Adaptation, AdaptationState
from langevin_ppl.warmup.start import Search, Start

__all__ = ["describe_start", "describe_stuck", "describe_tuning", "why_no_mode"]

GOOD, POOR = "good", "poor"
"""Judgements of the Gaussian fit."""

STUCK = 0.05
"""Mean acceptance rate in the second half of warm-up below which a chain counts as stuck."""

RAN_AWAY = 1e6
"""Distance of a search's end, in units of its start's scale, that counts as infinity."""


def describe_start(start: Start) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Report the search for a mode: facts for the attributes, and doubts.

    Parameters
    ----------
    start
        On the host.
    """
    search = start.search
    found = int(search.found.sum())
    notes: dict[str, Any] = {
        "num_chains_at_best_mode": found,
        "gradient_growth": float(start.growth),
    }
    doubts = []
    if found == 0:
        notes["mode_search"] = "no mode: chains started from their own positions"
        reason = why_no_mode(search)
        if "ran away" in reason:
            doubts.append(reason)
        else:
            notes["mode_search"] += f". {reason}"
    elif found < len(search.found):
        drops = search.ended[search.best] - search.ended

        def those(chains: np.ndarray) -> str:
            nats = ", ".join(f"{drops[c]:.3g}" for c in np.flatnonzero(chains))
            return f"{nats} nats below the best mode"

        moved = np.asarray(start.restarted)
        stayed = ~np.asarray(search.found) & ~moved
        parts = []
        if stayed.any():
            chains = np.flatnonzero(stayed).tolist()
            parts.append(f"chains {chains} ended elsewhere, {those(stayed)}, and started there")
        if moved.any():
            chains = np.flatnonzero(moved).tolist()
            parts.append(
                f"chains {chains} came to rest {those(moved)}, where next to no mass can be, and "
                "were moved to it"
            )
        notes["mode_search"] = "; ".join(parts)
    else:
        notes["mode_search"] = "all chains ended at one mode"
    return notes, tuple(doubts)


def why_no_mode(search: Search) -> str:
    """Say why a search that found no mode did not; ``search`` is on the host."""
    far = np.abs(search.ends).max(axis=1)
    lost = ~np.isfinite(search.ended) | ~(far < RAN_AWAY)
    if lost.any():
        where = "it left the finite numbers"
        if np.isfinite(search.ended[lost][0]) and np.isfinite(far[lost][0]):
            where = f"log density {search.ended[lost][0]:.3g} at |x| = {far[lost][0]:.3g}"
        return (
            f"The search for a mode ran away from starts {np.flatnonzero(lost).tolist()} "
            f"({where}): the log density has no maximum. The posterior may be improper (a flat "
            "prior that the data do not constrain), or a funnel whose neck is infinitely deep; "
            "give the prior a scale, or use the non-centred form."
        )
    if not search.curved:
        return (
            "The Hessian at the best end of all searches is not positive definite: a saddle, a "
            "ridge (parameters that the data do not tell apart), or a funnel."
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
    listed = ", ".join(f"chain {c} accepted {100 * late[c]:.2g} %" for c in stuck)
    return (
        f"Stuck in warm-up: {listed} of its proposals, the others "
        f"{100 * np.mean(np.delete(late, stuck)) if len(stuck) < len(late) else 0:.2g} %. Start "
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

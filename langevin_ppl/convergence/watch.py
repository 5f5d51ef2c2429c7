"""Watching a run: when to stop it, and how far it is."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from langevin_ppl.convergence.rule import Converged, Convergence, summarise
from langevin_ppl.loop import Look

__all__ = ["watch"]

GROWTH = 2.0
"""Largest factor by which a run grows before it is looked at again."""

MARGIN = 1.05
"""Draws beyond the predicted need, so that one more look is usually enough."""


def watch(
    rule: Converged, cap: int, confirm: Callable[[np.ndarray], Convergence]
) -> Callable[[Any, int], Look]:
    """Monitor for `langevin_ppl.loop.drive` that stops a run by a rule.

    It looks at unconstrained positions first, which costs little, and only where they will do at
    the variables themselves. The next look is where ESS, growing in proportion, will be enough.

    Parameters
    ----------
    rule
        What is enough.
    cap
        Most draws of each chain.
    confirm
        From positions ``[chain, draw, dimension]`` to what their variables say.
    """

    def monitor(outputs: Any, done: int) -> Look:
        positions = np.moveaxis(outputs[0], 0, 1)
        seen = summarise(positions, rule.ess)
        finished = seen.satisfies(rule)
        if finished:
            seen = confirm(positions)
            finished = seen.satisfies(rule)
        least = min(seen.ess, seen.ess_squares)
        need = rule.ess / least if least > 0 else GROWTH
        if not seen.rhat <= rule.rhat:
            # R-hat shrinks with the length of a run like one plus a multiple of its inverse.
            need = max(need, math.sqrt(GROWTH))
        expected = min(cap, math.ceil(done * max(1.0, need)))
        next_look = min(cap, math.ceil(done * min(GROWTH, max(1.02, need * MARGIN))))
        note = f"ESS {least:.0f}/{rule.ess:g}, R-hat {seen.rhat:.3f}"
        return Look(finished, next_look, done if finished else expected, note)

    return monitor

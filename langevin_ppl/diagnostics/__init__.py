"""Diagnostics: how far draws can be trusted."""

from langevin_ppl.diagnostics.convergence import (
    Converged,
    Convergence,
    converged,
    flattened,
    judge,
    summarise,
)
from langevin_ppl.diagnostics.watch import watch

__all__ = [
    "Converged",
    "Convergence",
    "converged",
    "flattened",
    "judge",
    "summarise",
    "watch",
]

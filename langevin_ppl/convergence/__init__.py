"""Convergence: when draws are enough, and how they look while a chain runs."""

from langevin_ppl.convergence.rule import (
    Converged,
    Convergence,
    converged,
    flattened,
    judge,
    summarise,
)
from langevin_ppl.convergence.watch import watch

__all__ = [
    "Converged",
    "Convergence",
    "converged",
    "flattened",
    "judge",
    "summarise",
    "watch",
]

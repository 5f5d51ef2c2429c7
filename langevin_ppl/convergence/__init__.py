"""Convergence: when draws are enough, and how they look while a chain runs."""

from langevin_ppl.convergence.blocks import BLOCK_BYTES, DrawBlocks, as_blocks, block_length
from langevin_ppl.convergence.rule import (
    Converged,
    Convergence,
    converged,
    judge,
    summarise,
)
from langevin_ppl.convergence.watch import watch

__all__ = [
    "BLOCK_BYTES",
    "Converged",
    "Convergence",
    "DrawBlocks",
    "as_blocks",
    "block_length",
    "converged",
    "judge",
    "summarise",
    "watch",
]

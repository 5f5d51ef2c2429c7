"""Kernels: how a chain moves. One family a file; each name is a short composition."""

from langevin_ppl.kernels.kernel import Kernel, KernelInfo, KernelState
from langevin_ppl.kernels.kinetic import KineticState, ghmc, split_ghmc
from langevin_ppl.kernels.overdamped import mala, mtula, tmala, tmalac, tula, tulac, ula

__all__ = [
    "Kernel",
    "KernelInfo",
    "KernelState",
    "KineticState",
    "ghmc",
    "mala",
    "mtula",
    "split_ghmc",
    "tmala",
    "tmalac",
    "tula",
    "tulac",
    "ula",
]

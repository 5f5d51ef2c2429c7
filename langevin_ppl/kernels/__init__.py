"""Kernels: how a chain moves. One family a file; each name is a short composition."""

from langevin_ppl.kernels.kernel import Kernel, KernelInfo, KernelState
from langevin_ppl.kernels.overdamped import mala, mtula, tmala, tmalac, tula, tulac, ula

__all__ = [
    "Kernel",
    "KernelInfo",
    "KernelState",
    "mala",
    "mtula",
    "tmala",
    "tmalac",
    "tula",
    "tulac",
    "ula",
]

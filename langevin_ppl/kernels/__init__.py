"""Kernels: how a chain moves. One family a file; each name is a short composition."""

from langevin_ppl.kernels.kernel import Kernel, KernelInfo, KernelState, check_burn_in
from langevin_ppl.kernels.kinetic import KineticState, ghmc, split_ghmc
from langevin_ppl.kernels.overdamped import irreversible, leimkuhler_matthews, mala, ula
from langevin_ppl.kernels.splittings import baoab, klmc, obabo, splitting, tbaoab, ubu
from langevin_ppl.kernels.tamed import mtula, stula, tmala, tmalac, tula, tulac, tusla
from langevin_ppl.kernels.tempering import (
    ReplicaInfo,
    ReplicaState,
    annealed,
    parallel_tempering,
)

__all__ = [
    "Kernel",
    "KernelInfo",
    "KernelState",
    "KineticState",
    "ReplicaInfo",
    "ReplicaState",
    "annealed",
    "baoab",
    "check_burn_in",
    "ghmc",
    "irreversible",
    "klmc",
    "leimkuhler_matthews",
    "mala",
    "mtula",
    "obabo",
    "parallel_tempering",
    "split_ghmc",
    "splitting",
    "stula",
    "tbaoab",
    "tmala",
    "tmalac",
    "tula",
    "tulac",
    "tusla",
    "ubu",
    "ula",
]

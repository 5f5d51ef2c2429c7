"""Kernels: how a chain moves. One family a file; each name is a short composition."""

from langevin_ppl.kernels.amagold import AmagoldState, amagold
from langevin_ppl.kernels.exploring import (
    ContourInfo,
    ContourState,
    CycleInfo,
    ExchangeState,
    contour_sgld,
    cyclical_sgld,
    replica_exchange,
)
from langevin_ppl.kernels.kernel import Kernel, KernelInfo, KernelState, check_burn_in
from langevin_ppl.kernels.kinetic import KineticState, ghmc, split_ghmc
from langevin_ppl.kernels.overdamped import irreversible, leimkuhler_matthews, mala, ula
from langevin_ppl.kernels.sgmcmc import sgmcmc
from langevin_ppl.kernels.splittings import baoab, klmc, obabo, splitting, tbaoab, ubu
from langevin_ppl.kernels.stochastic import (
    RescaledState,
    ThermostatState,
    badodab,
    psgld,
    sghmc,
    sgld,
    sgnht,
    tsgld,
)
from langevin_ppl.kernels.tamed import mtula, stula, tmala, tmalac, tula, tulac, tusla
from langevin_ppl.kernels.tempering import (
    ReplicaInfo,
    ReplicaState,
    annealed,
    parallel_tempering,
)

__all__ = [
    "AmagoldState",
    "ContourInfo",
    "ContourState",
    "CycleInfo",
    "ExchangeState",
    "Kernel",
    "KernelInfo",
    "KernelState",
    "KineticState",
    "ReplicaInfo",
    "ReplicaState",
    "RescaledState",
    "ThermostatState",
    "amagold",
    "annealed",
    "badodab",
    "baoab",
    "check_burn_in",
    "contour_sgld",
    "cyclical_sgld",
    "ghmc",
    "irreversible",
    "klmc",
    "leimkuhler_matthews",
    "mala",
    "mtula",
    "obabo",
    "parallel_tempering",
    "psgld",
    "replica_exchange",
    "sghmc",
    "sgld",
    "sgnht",
    "sgmcmc",
    "split_ghmc",
    "splitting",
    "stula",
    "tbaoab",
    "tmala",
    "tmalac",
    "tsgld",
    "tula",
    "tulac",
    "tusla",
    "ubu",
    "ula",
]

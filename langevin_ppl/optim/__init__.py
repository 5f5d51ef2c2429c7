"""Global nonconvex optimisation by Langevin dynamics: Optax transformations, and one call."""

from langevin_ppl.optim.blocks import add_langevin_noise, tame
from langevin_ppl.optim.consensus import Consensus, consensus
from langevin_ppl.optim.exchange import Exchange, replica_exchange
from langevin_ppl.optim.guarantees import Growth, growth
from langevin_ppl.optim.minimization import OptimizeResult, minimize
from langevin_ppl.optim.optimizers import (
    LangevinOptimizer,
    Scheme,
    annealed_langevin,
    etheopoula,
    sghmc,
    sgld,
    theopoula,
    tsghmc,
    tusla,
)

__all__ = [
    "Consensus",
    "Exchange",
    "Growth",
    "LangevinOptimizer",
    "OptimizeResult",
    "Scheme",
    "add_langevin_noise",
    "annealed_langevin",
    "consensus",
    "etheopoula",
    "growth",
    "minimize",
    "replica_exchange",
    "sghmc",
    "sgld",
    "tame",
    "theopoula",
    "tsghmc",
    "tusla",
]

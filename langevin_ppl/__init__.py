"""Langevin dynamics on probabilistic models: NumPyro in, ArviZ out, BlackJAX's contracts between.

Names are imported when they are first used, so that ``import langevin_ppl`` stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from langevin_ppl.annealing import annealed_posterior, dalmc
    from langevin_ppl.approximation import laplace
    from langevin_ppl.base import (
        AssumptionWarning,
        CheckpointWarning,
        ConvergenceWarning,
        DivergenceWarning,
    )
    from langevin_ppl.checkpoints import CheckpointError
    from langevin_ppl.compilation import cache
    from langevin_ppl.convergence import converged
    from langevin_ppl.gradients import control_variates, exact, minibatch, svrg
    from langevin_ppl.kernels import (
        amagold,
        annealed,
        badodab,
        baoab,
        contour_sgld,
        cyclical_sgld,
        ghmc,
        irreversible,
        klmc,
        leimkuhler_matthews,
        mala,
        mtula,
        obabo,
        parallel_tempering,
        psgld,
        replica_exchange,
        sghmc,
        sgld,
        sgmcmc,
        sgnht,
        split_ghmc,
        splitting,
        stula,
        tbaoab,
        tmala,
        tmalac,
        tsgld,
        tula,
        tulac,
        tusla,
        ubu,
        ula,
    )
    from langevin_ppl.sampling import resume, sample
    from langevin_ppl.streams import StreamError, stream
    from langevin_ppl.targets import density, target

_HOME = {
    "AssumptionWarning": "base",
    "CheckpointError": "checkpoints",
    "CheckpointWarning": "base",
    "ConvergenceWarning": "base",
    "DivergenceWarning": "base",
    "amagold": "kernels",
    "annealed": "kernels",
    "annealed_posterior": "annealing",
    "badodab": "kernels",
    "baoab": "kernels",
    "cache": "compilation",
    "contour_sgld": "kernels",
    "control_variates": "gradients",
    "converged": "convergence",
    "cyclical_sgld": "kernels",
    "dalmc": "annealing",
    "density": "targets",
    "exact": "gradients",
    "ghmc": "kernels",
    "irreversible": "kernels",
    "klmc": "kernels",
    "laplace": "approximation",
    "leimkuhler_matthews": "kernels",
    "mala": "kernels",
    "minibatch": "gradients",
    "mtula": "kernels",
    "obabo": "kernels",
    "parallel_tempering": "kernels",
    "psgld": "kernels",
    "replica_exchange": "kernels",
    "resume": "sampling",
    "sample": "sampling",
    "sghmc": "kernels",
    "sgld": "kernels",
    "sgmcmc": "kernels",
    "sgnht": "kernels",
    "split_ghmc": "kernels",
    "splitting": "kernels",
    "StreamError": "streams",
    "stream": "streams",
    "stula": "kernels",
    "svrg": "gradients",
    "target": "targets",
    "tbaoab": "kernels",
    "tmala": "kernels",
    "tmalac": "kernels",
    "tsgld": "kernels",
    "tula": "kernels",
    "tulac": "kernels",
    "tusla": "kernels",
    "ubu": "kernels",
    "ula": "kernels",
}

# Rooms that are read by name.
_ROOMS = (
    "diagnostics",
    "diffusion",
    "distributions",
    "energy",
    "infer",
    "optim",
    "scores",
    "taming",
)

__all__ = [
    "AssumptionWarning",
    "CheckpointError",
    "CheckpointWarning",
    "ConvergenceWarning",
    "DivergenceWarning",
    "StreamError",
    "amagold",
    "annealed",
    "annealed_posterior",
    "badodab",
    "baoab",
    "cache",
    "contour_sgld",
    "control_variates",
    "converged",
    "cyclical_sgld",
    "dalmc",
    "density",
    "exact",
    "ghmc",
    "irreversible",
    "klmc",
    "laplace",
    "leimkuhler_matthews",
    "mala",
    "minibatch",
    "mtula",
    "obabo",
    "parallel_tempering",
    "psgld",
    "replica_exchange",
    "resume",
    "sample",
    "sghmc",
    "sgld",
    "sgmcmc",
    "sgnht",
    "split_ghmc",
    "splitting",
    "stream",
    "stula",
    "svrg",
    "target",
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


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"langevin_ppl.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'langevin_ppl' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"langevin_ppl.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])

"""Langevin dynamics on probabilistic models: NumPyro in, ArviZ out, BlackJAX's contracts between.

Names are imported when they are first used, so that ``import langevin_ppl`` stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from langevin_ppl.approximation import laplace
    from langevin_ppl.base import ConvergenceWarning, DivergenceWarning
    from langevin_ppl.compilation import cache
    from langevin_ppl.diagnostics import converged
    from langevin_ppl.gradients import exact
    from langevin_ppl.kernels import ghmc, mala, mtula, split_ghmc, tmala, tmalac, tula, tulac, ula
    from langevin_ppl.sampling import sample
    from langevin_ppl.targets import density, target

_HOME = {
    "ConvergenceWarning": "base",
    "DivergenceWarning": "base",
    "cache": "compilation",
    "converged": "diagnostics",
    "density": "targets",
    "exact": "gradients",
    "ghmc": "kernels",
    "laplace": "approximation",
    "mala": "kernels",
    "mtula": "kernels",
    "sample": "sampling",
    "split_ghmc": "kernels",
    "target": "targets",
    "tmala": "kernels",
    "tmalac": "kernels",
    "tula": "kernels",
    "tulac": "kernels",
    "ula": "kernels",
}

__all__ = [
    "ConvergenceWarning",
    "DivergenceWarning",
    "cache",
    "converged",
    "density",
    "exact",
    "ghmc",
    "laplace",
    "mala",
    "mtula",
    "sample",
    "split_ghmc",
    "target",
    "tmala",
    "tmalac",
    "tula",
    "tulac",
    "ula",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'langevin_ppl' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"langevin_ppl.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])

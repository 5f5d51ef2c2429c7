"""The only optimiser loops: to a peak by curvature, and down a random loss by batches."""

from langevin_ppl.fit.descent import Descended, descend
from langevin_ppl.fit.lbfgs import Minimum, minimize
from langevin_ppl.fit.newton import Peak, climb, climb_on_host
from langevin_ppl.fit.steps import Reported, as_optimizer, default_optimizer, rows_of_batch

__all__ = [
    "Descended",
    "Minimum",
    "Peak",
    "Reported",
    "as_optimizer",
    "climb",
    "climb_on_host",
    "default_optimizer",
    "descend",
    "minimize",
    "rows_of_batch",
]

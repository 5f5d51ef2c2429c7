"""The only optimiser loops: to a peak by curvature, and down a random loss by batches."""

from langevin_ppl.fit.descent import Descended, descend
from langevin_ppl.fit.newton import Minimum, Peak, climb, climb_on_host, minimize
from langevin_ppl.fit.steps import Reported, default_optimizer, is_optimizer, rows_of_batch

__all__ = [
    "Descended",
    "Minimum",
    "Peak",
    "Reported",
    "climb",
    "climb_on_host",
    "default_optimizer",
    "descend",
    "is_optimizer",
    "minimize",
    "rows_of_batch",
]

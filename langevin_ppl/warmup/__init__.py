"""Warm-up: how chains are started and a kernel is tuned."""

from langevin_ppl.warmup.begin import find
from langevin_ppl.warmup.report import why_no_mode
from langevin_ppl.warmup.start import DENSE_LIMIT
from langevin_ppl.warmup.traits import Traits, parameters_of, takes_a_density, traits
from langevin_ppl.warmup.tune import MAX_TAMING_LOSS, Request, Tuned, tune

__all__ = [
    "DENSE_LIMIT",
    "MAX_TAMING_LOSS",
    "Request",
    "Traits",
    "Tuned",
    "find",
    "parameters_of",
    "takes_a_density",
    "traits",
    "tune",
    "why_no_mode",
]

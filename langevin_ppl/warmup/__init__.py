"""Warm-up: how chains are started and a kernel is tuned."""

from langevin_ppl.warmup.traits import Traits, parameters_of, takes_a_density, traits
from langevin_ppl.warmup.tune import MAX_TAMING_LOSS, Request, Tuned, tune

__all__ = [
    "MAX_TAMING_LOSS",
    "Request",
    "Traits",
    "Tuned",
    "parameters_of",
    "takes_a_density",
    "traits",
    "tune",
]

"""Warm-up: how chains are started and a kernel is tuned."""

from langevin_ppl.warmup.begin import Begun, begin, find
from langevin_ppl.warmup.choose import kernel_and_gradient, reader_for
from langevin_ppl.warmup.ends import End, Ends
from langevin_ppl.warmup.report import why_no_mode
from langevin_ppl.warmup.start import DENSE_LIMIT
from langevin_ppl.warmup.stochastic import begun, by_noise, set_by_noise
from langevin_ppl.warmup.traits import Traits, parameters_of, takes_a_density, traits
from langevin_ppl.warmup.tune import Request, Setup, Tuned, finding, set_up, tune, tuned_names
from langevin_ppl.warmup.unadjusted import MAX_TAMING_LOSS, settled_step_size, taming_parameters

__all__ = [
    "DENSE_LIMIT",
    "MAX_TAMING_LOSS",
    "Begun",
    "End",
    "Ends",
    "Request",
    "Setup",
    "Traits",
    "Tuned",
    "begin",
    "begun",
    "by_noise",
    "find",
    "finding",
    "kernel_and_gradient",
    "parameters_of",
    "reader_for",
    "set_by_noise",
    "set_up",
    "settled_step_size",
    "takes_a_density",
    "taming_parameters",
    "traits",
    "tune",
    "tuned_names",
    "why_no_mode",
]

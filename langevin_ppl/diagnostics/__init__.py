"""Diagnostics that R-hat and effective sample size cannot replace."""

from langevin_ppl.base import BiasWarning
from langevin_ppl.diagnostics.bias import bias
from langevin_ppl.diagnostics.gradient_noise import gradient_noise
from langevin_ppl.diagnostics.halving import step_halving
from langevin_ppl.diagnostics.stein import ksd

__all__ = ["BiasWarning", "bias", "gradient_noise", "ksd", "step_halving"]

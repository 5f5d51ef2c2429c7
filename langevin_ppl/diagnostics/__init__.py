"""Diagnostics that R-hat and effective sample size cannot replace."""

from langevin_ppl.base import BiasWarning
from langevin_ppl.diagnostics.bias import bias

__all__ = ["BiasWarning", "bias"]

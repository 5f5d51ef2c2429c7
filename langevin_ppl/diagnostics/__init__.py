"""Diagnostics that R-hat and effective sample size cannot replace."""

from langevin_ppl.diagnostics.bias import BiasWarning, bias

__all__ = ["BiasWarning", "bias"]

"""Gradient estimators: from how much data a kernel sees the gradient."""

from langevin_ppl.gradients.exact import as_estimator, exact

__all__ = ["as_estimator", "exact"]

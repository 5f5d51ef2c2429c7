"""Diagnostics that R-hat and effective sample size cannot replace, and distances of samples."""

from langevin_ppl.base import BiasWarning
from langevin_ppl.diagnostics.bias import bias
from langevin_ppl.diagnostics.coverage import ModeCoverage, mode_coverage
from langevin_ppl.diagnostics.discrepancies import energy_distance, mmd
from langevin_ppl.diagnostics.fokker_planck import fokker_planck_residual
from langevin_ppl.diagnostics.gradient_noise import gradient_noise
from langevin_ppl.diagnostics.halving import step_halving
from langevin_ppl.diagnostics.learned import (
    FlowGap,
    Interpolation,
    flow_gap,
    mode_interpolation,
)
from langevin_ppl.diagnostics.samples import Metric
from langevin_ppl.diagnostics.sinkhorn import SinkhornDivergence, sinkhorn_divergence
from langevin_ppl.diagnostics.sliced import sliced_wasserstein
from langevin_ppl.diagnostics.stein import ksd

__all__ = [
    "BiasWarning",
    "FlowGap",
    "Interpolation",
    "Metric",
    "ModeCoverage",
    "SinkhornDivergence",
    "bias",
    "energy_distance",
    "flow_gap",
    "fokker_planck_residual",
    "gradient_noise",
    "ksd",
    "mmd",
    "mode_coverage",
    "mode_interpolation",
    "sinkhorn_divergence",
    "sliced_wasserstein",
    "step_halving",
]

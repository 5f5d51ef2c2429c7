"""Scores: noise processes, scores that are known, and scores that are learned."""

from langevin_ppl.scores.exact import empirical, exact_mixture
from langevin_ppl.scores.files import ScoreFileError, load, save
from langevin_ppl.scores.gaussian import EDM, VE, VP, Interpolant, RectifiedFlow, SubVP, VPCosine
from langevin_ppl.scores.heavy_tailed import PFGM
from langevin_ppl.scores.losses import Loss, denoising, flow_matching, sliced, target_informed
from langevin_ppl.scores.multiplicative import GeometricBrownian
from langevin_ppl.scores.networks import NetworkSpec, residual_mlp, unet
from langevin_ppl.scores.process import NoiseProcess
from langevin_ppl.scores.score import Score, unconditional
from langevin_ppl.scores.training import Fitted, fit

__all__ = [
    "EDM",
    "PFGM",
    "VE",
    "VP",
    "Fitted",
    "GeometricBrownian",
    "Interpolant",
    "Loss",
    "NetworkSpec",
    "NoiseProcess",
    "RectifiedFlow",
    "Score",
    "ScoreFileError",
    "SubVP",
    "VPCosine",
    "denoising",
    "empirical",
    "exact_mixture",
    "fit",
    "flow_matching",
    "load",
    "residual_mlp",
    "save",
    "sliced",
    "target_informed",
    "unconditional",
    "unet",
]

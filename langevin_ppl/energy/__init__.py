"""Energies declared as NumPyro models: learned from data by walkers, and evaluated."""

from langevin_ppl.energy.direct import (
    denoising_score_matching,
    noise_contrastive,
    sliced_score_matching,
)
from langevin_ppl.energy.evaluation import HeldOut, auroc, energies, held_out, log_normalizer
from langevin_ppl.energy.exchange import exchange
from langevin_ppl.energy.methods import (
    contrastive_divergence,
    jarzynski,
    persistent,
    replay,
)
from langevin_ppl.energy.training import Fitted, fit, walk
from langevin_ppl.energy.weights import Normalizer

__all__ = [
    "Fitted",
    "HeldOut",
    "Normalizer",
    "auroc",
    "contrastive_divergence",
    "denoising_score_matching",
    "energies",
    "exchange",
    "fit",
    "held_out",
    "jarzynski",
    "log_normalizer",
    "noise_contrastive",
    "persistent",
    "replay",
    "sliced_score_matching",
    "walk",
]

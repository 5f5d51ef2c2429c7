"""Diffusion: samplers that turn noise into data by a score."""

from langevin_ppl.diffusion.adaptive import probability_flow
from langevin_ppl.diffusion.data_prediction import dpm_solver_pp, unipc
from langevin_ppl.diffusion.flow import flow_log_prob
from langevin_ppl.diffusion.generate import Generated, generate
from langevin_ppl.diffusion.guidance import classifier_free_guidance, classifier_guidance
from langevin_ppl.diffusion.heun import heun
from langevin_ppl.diffusion.inverse import (
    posterior_sampling,
    pseudoinverse_guidance,
    replacement,
)
from langevin_ppl.diffusion.joint import denoising_mcmc
from langevin_ppl.diffusion.langevin import annealed_langevin, predictor_corrector
from langevin_ppl.diffusion.likelihood import Likelihood, bits_per_dim, likelihood
from langevin_ppl.diffusion.noise_prediction import deis, ghvb, ipndm
from langevin_ppl.diffusion.sampler import Sampler
from langevin_ppl.diffusion.stochastic import ancestral, euler_maruyama, exponential_sde

__all__ = [
    "Generated",
    "Likelihood",
    "Sampler",
    "ancestral",
    "annealed_langevin",
    "bits_per_dim",
    "classifier_free_guidance",
    "classifier_guidance",
    "deis",
    "denoising_mcmc",
    "dpm_solver_pp",
    "euler_maruyama",
    "exponential_sde",
    "flow_log_prob",
    "generate",
    "ghvb",
    "heun",
    "ipndm",
    "likelihood",
    "posterior_sampling",
    "predictor_corrector",
    "probability_flow",
    "pseudoinverse_guidance",
    "replacement",
    "unipc",
]

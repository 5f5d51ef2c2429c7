"""Walks from noise to a target: every draw is the end of a walk of its own, and approximate."""

from langevin_ppl.annealing.from_gaussian import dalmc
from langevin_ppl.annealing.under_prior import annealed_posterior

__all__ = ["annealed_posterior", "dalmc"]

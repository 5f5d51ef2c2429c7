"""NumPyro distributions: laws known by an energy, and by a learned score."""

from langevin_ppl.distributions.energy_based import EnergyBased
from langevin_ppl.distributions.score_based import ScoreBased

__all__ = ["EnergyBased", "ScoreBased"]

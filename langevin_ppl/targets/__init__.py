"""Targets: what is sampled."""

from langevin_ppl.targets.density import DensityTarget, density
from langevin_ppl.targets.model import ModelTarget, target

__all__ = ["DensityTarget", "ModelTarget", "density", "target"]

"""Targets: what is sampled."""

from langevin_ppl.targets.density import DensityTarget, density
from langevin_ppl.targets.labels import distinct_dims, distinct_names, safe_dim, safe_name
from langevin_ppl.targets.model import ModelTarget, target

__all__ = [
    "DensityTarget",
    "ModelTarget",
    "density",
    "distinct_dims",
    "distinct_names",
    "safe_dim",
    "safe_name",
    "target",
]

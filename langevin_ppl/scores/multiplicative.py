"""Multiplicative noise, for positive data."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from langevin_ppl.scores.gaussian import VE
from langevin_ppl.scores.process import NoiseProcess, namespace

__all__ = ["GeometricBrownian"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeometricBrownian(NoiseProcess):
    r"""Geometric Brownian motion for positive data.

    :math:`dX = \tfrac12 g^2 X dt + g X dW`, so that :math:`\log X` has no drift and is the
    variance-exploding process `VE`: noise multiplies the datum, and every draw is positive. The
    score and its samplers work on the logarithm; what goes in and comes out is data.

    Parameters
    ----------
    sigma_min, sigma_max
        Noise of the logarithm at times 0 and 1.
    t_min, t_max
        Interval of time.

    References
    ----------
    Black, Scholes, *The pricing of options and corporate liabilities*, 1973, for the motion; Song
    et al., 2021, arXiv:2011.13456, for the process of its logarithm.

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> process = lp.scores.GeometricBrownian()
    >>> bool((process.prior(jax.random.key(0), (100,)) > 0).all())
    True
    """

    sigma_min: float = 0.01
    sigma_max: float = 10.0
    t_min: float = 0.0
    t_max: float = 1.0

    multiplicative: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._of_logarithm

    @property
    def _of_logarithm(self) -> VE:
        return VE(sigma_min=self.sigma_min, sigma_max=self.sigma_max)

    def alpha(self, t: Any) -> Any:
        """1."""
        return self._of_logarithm.alpha(t)

    def sigma(self, t: Any) -> Any:
        """Noise of the logarithm."""
        return self._of_logarithm.sigma(t)

    def time_at(self, ratio: Any) -> Any:
        """Time at which ``sigma / alpha`` is ``ratio``."""
        return self._of_logarithm.time_at(ratio)

    def encode(self, x: Any) -> Any:
        """Logarithm of the data."""
        return namespace(x).log(x)

    def decode(self, x: Any) -> Any:
        """Data of their logarithm."""
        return namespace(x).exp(x)

    def check_data(self, x: Any, name: str = "data") -> None:
        """Refuse data that are not finite and positive."""
        super().check_data(x, name)
        if not np.all(np.asarray(x) > 0):
            raise ValueError(
                f"{name}: expected positive numbers, because {self} multiplies them by noise, got "
                f"a least of {np.min(x):g}. Shift the data, or use a process such as "
                "langevin_ppl.scores.EDM."
            )

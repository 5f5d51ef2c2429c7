"""Heavy-tailed noise: the Poisson flow between electrostatics and diffusion."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from langevin_ppl.base import Array, PRNGKey, check_number
from langevin_ppl.scores.process import NoiseProcess

__all__ = ["PFGM"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PFGM(NoiseProcess):
    r"""Poisson flow (PFGM++) of ``augmented`` dimensions :math:`D` beside the :math:`N` of a datum.

    :math:`x_t = x_0 + R u` with a uniform direction :math:`u` and
    :math:`R = \sigma \sqrt{D} \sqrt{B / (1 - B)}`, :math:`B \sim \mathrm{Beta}(N/2, D/2)`: noise
    with the density of a Student t, :math:`\propto (|x - x_0|^2 + D \sigma^2)^{-(N + D)/2}`. Its
    flow :math:`dx/d\sigma = (x - E[x_0 \mid x]) / \sigma` is that of `EDM`, to which it tends as
    :math:`D \to \infty`. The noise is not Gaussian: there is no score of it, and no solver that
    adds noise.

    Parameters
    ----------
    augmented
        ``D``; small is heavy-tailed and robust, 128 to 2048 is what the paper recommends.
    t_min, t_max
        Least and largest standard deviation :math:`\sigma`.

    References
    ----------
    Xu et al., *PFGM++: unlocking the potential of physics-inspired generative models*, 2023,
    arXiv:2302.04265.

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> lp.scores.PFGM(augmented=128).prior(jax.random.key(0), (5, 2), event_ndim=1).shape
    (5, 2)
    """

    augmented: float = 128.0
    t_min: float = 0.002
    t_max: float = 80.0

    gaussian: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("augmented", self.augmented, above=0.0)
        check_number("t_min", self.t_min, above=0.0)

    def alpha(self, t: Any) -> Any:
        """1."""
        return 0.0 * t + 1.0

    def sigma(self, t: Any) -> Any:
        """The time."""
        return t

    def time_at(self, ratio: Any) -> Any:
        """Time at which ``sigma / alpha`` is ``ratio``."""
        return ratio

    def noise(self, rng_key: PRNGKey, shape: tuple[int, ...], event_ndim: int, dtype: Any) -> Array:
        """Noise at unit ``sigma``, whose last ``event_ndim`` axes are one event."""
        key_direction, key_radius = jax.random.split(rng_key)
        normal = jax.random.normal(key_direction, shape, dtype)
        # A Gaussian over an independent chi is a Student t in all directions at once, and
        # B / (1 - B) is the quotient of two gammas.
        batch = shape[: len(shape) - event_ndim]
        gamma = jax.random.gamma(key_radius, 0.5 * self.augmented, batch, dtype)
        scale = jnp.sqrt(0.5 * self.augmented / gamma)
        return normal * scale.reshape(*batch, *(1,) * event_ndim)

    def log_kernel(self, square: Any, size: int, t: Any) -> Any:
        """Log density of ``size`` numbers at a squared distance, up to a constant of the time."""
        return -0.5 * (size + self.augmented) * jnp.log1p(square / (self.augmented * t**2))

    def log_prior(self, x: Array) -> Array:
        """Log density of the noise at ``t_max`` for one event."""
        size, total = x.size, 0.5 * (x.size + self.augmented)
        radius = self.t_max * math.sqrt(self.augmented)
        constant = gammaln(total) - gammaln(0.5 * self.augmented)
        constant -= 0.5 * size * math.log(math.pi) + size * math.log(radius)
        return constant - total * jnp.log1p(jnp.sum((x / radius) ** 2))

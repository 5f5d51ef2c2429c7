"""The denoiser around a network: scaled so that what the network sees and predicts is of size 1."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from langevin_ppl.base import Array
from langevin_ppl.scores.process import NoiseProcess

__all__ = ["Learned", "Potential"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["network", "location", "scale", "condition_location", "condition_scale"],
    meta_fields=["process", "conservative"],
)
@dataclasses.dataclass(frozen=True)
class Learned:
    r"""Denoiser of a noise process by a network :math:`F`, with Karras' preconditioning.

    With the noised datum relative to the location of the data, :math:`x - \alpha m`, and
    :math:`S = \sigma^2 + \alpha^2 s^2`, the variance of its numbers,

    .. math::

        D = m + \frac{\alpha s^2}{S} (x - \alpha m) + \frac{\sigma s}{\sqrt S}
        F\Bigl(\frac{x - \alpha m}{\sqrt S}, \tfrac14 \log \frac{\sigma}{\alpha s}\Bigr)

    which without the network is right for Gaussian data, and the same whatever the unit of the
    data. Where it is conservative, :math:`F` is
    replaced by the gradient of :math:`\langle u, F(u) \rangle`, so that the denoiser is one too.

    Attributes
    ----------
    network
        ``network(u, noise_level, condition)`` for one event; a callable pytree.
    location
        Mean ``m`` of the data, shape of the event.
    scale
        Standard deviation ``s`` of the numbers of the data, a scalar.
    condition_location, condition_scale
        Of conditions that are vectors, which are standardised by them; else None.
    process
        The noise process.
    conservative
        Whether the denoiser is a gradient.

    References
    ----------
    Karras et al., 2022, arXiv:2206.00364, table 1; Salimans, Ho, *Should EBMs model the energy or
    the score?*, 2021.
    """

    network: Any
    location: Array
    scale: Array
    condition_location: Array | None
    condition_scale: Array | None
    process: NoiseProcess
    conservative: bool

    def _parts(self, x: Array, t: Any, condition: Any) -> tuple[Array, Array, Array, Array, Any]:
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        spread = jnp.sqrt(sigma**2 + (alpha * self.scale) ** 2)
        level = 0.25 * jnp.log(self.process.ratio(t) / self.scale)
        if self.condition_location is not None:
            condition = (condition - self.condition_location) / self.condition_scale
        return x - alpha * self.location, alpha, sigma, spread, (level, condition)

    def __call__(self, x: Array, t: Any, condition: Any = None) -> Array:
        """Predict the clean event."""
        away, alpha, sigma, spread, given = self._parts(x, t, condition)
        predict = jax.grad(self._inner) if self.conservative else self.network
        skip = alpha * (self.scale / spread) ** 2 * away
        return self.location + skip + sigma * self.scale / spread * predict(away / spread, *given)

    def potential(self, x: Array, t: Any, condition: Any = None) -> Array:
        """Function of which a conservative denoiser is the gradient."""
        away, alpha, sigma, spread, given = self._parts(x, t, condition)
        skip = 0.5 * alpha * (self.scale / spread) ** 2 * jnp.sum(away**2)
        inner = sigma * self.scale * self._inner(away / spread, *given)
        return jnp.sum(self.location * x) + skip + inner

    def _inner(self, u: Array, level: Array, condition: Any) -> Array:
        return jnp.sum(u * self.network(u, level, condition))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["denoiser"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Potential:
    """Potential of a conservative denoiser."""

    denoiser: Learned

    def __call__(self, x: Array, t: Any, condition: Any = None) -> Array:
        """Value at one event."""
        return self.denoiser.potential(x, t, condition)

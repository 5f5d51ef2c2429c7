"""Losses that need no walkers: score matching, and the contrast with noise."""

import dataclasses
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from langevin_ppl.base import Array, Position, PRNGKey, check_counts, check_number
from langevin_ppl.energy.model import EnergyModel
from langevin_ppl.tree import ravel

__all__ = [
    "Direct",
    "denoising_score_matching",
    "noise_contrastive",
    "sliced_score_matching",
]

MOST_CORRELATED = 500
"""Dimension above which the noise of the contrast has independent numbers."""


class Direct(Protocol):
    """A method without walkers; hashable, because it is static in compiled programs."""

    name: str
    has_normalizer: bool

    @property
    def bias(self) -> str:
        """What the bias is."""
        ...

    def begin(self, positions: Position) -> Any:
        """What is measured of the data before training."""
        ...

    def loss(
        self,
        rng_key: PRNGKey,
        model: EnergyModel,
        parameters: Any,
        log_normalizer: Array,
        memory: Any,
        batch: Any,
    ) -> Array:
        """Loss of a batch of positions and conditions."""
        ...


def _scores(model: EnergyModel, parameters: Any, position: Position, row: Any) -> Any:
    """Flat position, and the score as a function of it."""
    flat, unravel = ravel(position)
    density = model.density(parameters, row)
    return flat, jax.grad(lambda x: density(unravel(x)))


def _mean_over(function: Any, rng_key: PRNGKey, batch: Any) -> Array:
    positions, rows = batch
    keys = jax.random.split(rng_key, len(jax.tree.leaves(positions)[0]))
    axes = 0, 0, None if rows is None else 0
    return jnp.mean(jax.vmap(function, axes)(keys, positions, rows))


@dataclasses.dataclass(frozen=True)
class _Sliced:
    num_directions: int
    name = "sliced_score_matching"
    bias = "blind to the weights of separate modes"
    has_normalizer = False

    def begin(self, positions: Position) -> Any:
        return ()

    def loss(
        self,
        rng_key: PRNGKey,
        model: EnergyModel,
        parameters: Any,
        log_normalizer: Array,
        memory: Any,
        batch: Any,
    ) -> Array:
        def one(key: PRNGKey, position: Position, row: Any) -> Array:
            flat, score_of = _scores(model, parameters, position, row)
            shape = (self.num_directions, flat.size)
            directions = jax.random.rademacher(key, shape, flat.dtype)
            score, product = jax.linearize(score_of, flat)
            curvature = jax.vmap(lambda v: jnp.sum(v * product(v)))(directions)
            return jnp.mean(curvature) + 0.5 * jnp.sum(score**2)

        return _mean_over(one, rng_key, batch)


def sliced_score_matching(num_directions: int = 1) -> Direct:
    r"""Sliced score matching: scores of the data, without walkers and without noise.

    .. math:: \mathbb{E} \left[ v^T \nabla s(x)\, v + \tfrac12 \|s(x)\|^2 \right] , \quad
        s = \nabla \log p ,

    over random directions ``v``. Consistent where the model can be the law of the data, and no
    walker is needed; but scores say next to nothing about the weights of modes that are far from
    each other, and data on a surface of lower dimension, such as images, make it unstable.

    Parameters
    ----------
    num_directions
        Directions for each datum.

    References
    ----------
    Hyvarinen, *Estimation of non-normalized statistical models by score matching* (2005); Song,
    Garg, Shi, Ermon, *Sliced score matching*, 2019, arXiv:1905.07088.

    Examples
    --------
    >>> import langevin_ppl as lp
    >>> lp.energy.sliced_score_matching().name
    'sliced_score_matching'
    """
    check_counts(1, num_directions=num_directions)
    return _Sliced(num_directions)


@dataclasses.dataclass(frozen=True)
class _Denoising:
    noise: float
    name = "denoising_score_matching"
    has_normalizer = False

    @property
    def bias(self) -> str:
        return f"learns the law of data with noise of standard deviation {self.noise:g}"

    def begin(self, positions: Position) -> Any:
        return ()

    def loss(
        self,
        rng_key: PRNGKey,
        model: EnergyModel,
        parameters: Any,
        log_normalizer: Array,
        memory: Any,
        batch: Any,
    ) -> Array:
        def one(key: PRNGKey, position: Position, row: Any) -> Array:
            flat, score_of = _scores(model, parameters, position, row)
            normal = jax.random.normal(key, flat.shape, flat.dtype)
            score = score_of(flat + self.noise * normal)
            return 0.5 * jnp.sum((self.noise * score + normal) ** 2)

        return _mean_over(one, rng_key, batch)


def denoising_score_matching(noise: float) -> Direct:
    r"""Denoising score matching: scores of the data with noise, without walkers.

    .. math:: \tfrac12 \mathbb{E} \, \| \sigma s(x + \sigma \xi) + \xi \|^2 .

    What is learned is the law of the data with that noise, whatever the number of data: a bias by
    choice. Blind to the weights of modes that are farther from each other than the noise.

    Parameters
    ----------
    noise
        Standard deviation of the noise, on unconstrained space.

    References
    ----------
    Vincent, *A connection between score matching and denoising autoencoders* (2011).

    Examples
    --------
    >>> import langevin_ppl as lp
    >>> lp.energy.denoising_score_matching(0.1).bias
    'learns the law of data with noise of standard deviation 0.1'
    """
    check_number("noise", noise, above=0.0)
    return _Denoising(float(noise))


@dataclasses.dataclass(frozen=True)
class _Contrast:
    noise_ratio: int
    name = "noise_contrastive"
    bias = "poor where the noise is far from the data"
    has_normalizer = True

    def begin(self, positions: Position) -> Any:
        """Mean of the data, and a factor of their covariance."""
        rows = jax.vmap(lambda position: ravel(position)[0])(positions)
        mean, centred = jnp.mean(rows, axis=0), rows - jnp.mean(rows, axis=0)
        variance = jnp.mean(centred**2, axis=0) + 1e-6
        size = mean.size
        if size > MOST_CORRELATED or len(rows) < 2 * size:
            return mean, jnp.diag(jnp.sqrt(variance))
        covariance = centred.T @ centred / len(rows)
        return mean, jnp.linalg.cholesky(covariance + 1e-4 * jnp.diag(variance))

    def loss(
        self,
        rng_key: PRNGKey,
        model: EnergyModel,
        parameters: Any,
        log_normalizer: Array,
        memory: Any,
        batch: Any,
    ) -> Array:
        mean, factor = memory
        log_ratio = math.log(self.noise_ratio)
        constant = 0.5 * mean.size * math.log(2.0 * math.pi)
        log_volume = constant + jnp.sum(jnp.log(jnp.diag(factor)))
        density = model.density(parameters)

        def logit(position: Position, flat: Array) -> Array:
            whitened = jax.scipy.linalg.solve_triangular(factor, flat - mean, lower=True)
            of_noise = -0.5 * jnp.sum(whitened**2) - log_volume
            return density(position) - log_normalizer - of_noise - log_ratio

        def one(key: PRNGKey, position: Position, row: Any) -> Array:
            flat, unravel = ravel(position)
            normals = jax.random.normal(key, (self.noise_ratio, flat.size), flat.dtype)
            noise = mean + normals @ factor.T
            of_noise = jax.vmap(lambda x: logit(unravel(x), x))(noise)
            # log_sigmoid of minus the logit is the log of the probability of noise.
            of_data = jax.nn.log_sigmoid(logit(position, flat))
            return -of_data - jnp.sum(jax.nn.log_sigmoid(-of_noise))

        return _mean_over(one, rng_key, batch)


def noise_contrastive(noise_ratio: int = 10) -> Direct:
    r"""Noise-contrastive estimation: data told from Gaussian noise by logistic regression.

    The noise has the mean and the covariance of the data on unconstrained space, and
    :math:`\log Z` is a parameter that is learned along. Consistent where the model can be the law
    of the data; with few data, or where noise is easily told from them, errors are large.

    Parameters
    ----------
    noise_ratio
        Noise for each datum.

    References
    ----------
    Gutmann, Hyvarinen, *Noise-contrastive estimation of unnormalized statistical models* (2012).

    Examples
    --------
    >>> import langevin_ppl as lp
    >>> lp.energy.noise_contrastive().has_normalizer
    True
    """
    check_counts(1, noise_ratio=noise_ratio)
    return _Contrast(noise_ratio)

"""Scores that are known: of Gaussian mixtures, and of a finite data set."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from langevin_ppl.base import Array
from langevin_ppl.scores.process import NoiseProcess
from langevin_ppl.scores.score import Score

__all__ = ["OfData", "OfMixture", "empirical", "exact_mixture", "of_data", "of_mixture"]


def exact_mixture(process: NoiseProcess, weights: Any, means: Any, covariances: Any) -> Score:
    r"""Score of a mixture of Gaussians under a Gaussian noise process, in closed form.

    At time ``t`` the components are :math:`N(\alpha m_k, \alpha^2 \Sigma_k + \sigma^2 I)`. For a
    multiplicative process the mixture is that of the logarithm of the data.

    Parameters
    ----------
    process
        A Gaussian noise process.
    weights
        Positive, ``[component]``; their sum may be anything.
    means
        Shape ``[component, dimension]``.
    covariances
        Shape ``[component]`` (variances of all coordinates), ``[component, dimension]`` (of each)
        or ``[component, dimension, dimension]``.

    Raises
    ------
    ValueError
        If shapes do not fit, a weight is not positive, a covariance not positive semidefinite, or
        the noise is not Gaussian.

    References
    ----------
    Anderson, *Reverse-time diffusion equation models*, 1982; Gaussian conjugacy.

    Examples
    --------
    >>> import jax.numpy as jnp, langevin_ppl as lp
    >>> means = [[-2.0, 0.0], [2.0, 0.0]]
    >>> score = lp.scores.exact_mixture(lp.scores.VP(), [0.3, 0.7], means, [0.1, 0.1])
    >>> score.denoise(jnp.array([2.0, 0.0]), 0.001).round(2)
    Array([2., 0.], dtype=float32)
    """
    if not process.gaussian:
        raise ValueError(
            f"exact_mixture: expected a process with Gaussian noise, got {process}, under which a "
            "mixture of Gaussians has no closed form. Use langevin_ppl.scores.empirical."
        )
    dtype = jnp.result_type(float)
    weight, mean = np.asarray(weights, float), np.asarray(means, float)
    covariance = np.asarray(covariances, float)
    if mean.ndim != 2 or weight.shape != mean.shape[:1]:
        raise ValueError(
            "exact_mixture: expected weights [component] and means [component, dimension], got "
            f"shapes {weight.shape} and {mean.shape}."
        )
    count, dimension = mean.shape
    if covariance.shape == (count,):
        covariance = np.broadcast_to(covariance[:, None], mean.shape)
    if covariance.shape == (count, dimension):
        values = covariance
        vectors = np.broadcast_to(np.eye(dimension), (count, dimension, dimension))
    elif covariance.shape == (count, dimension, dimension):
        values, vectors = np.linalg.eigh(covariance)
    else:
        raise ValueError(
            f"exact_mixture: expected covariances of shape ({count},), ({count}, {dimension}) or "
            f"({count}, {dimension}, {dimension}), got {covariance.shape}."
        )
    tolerance = -1e-6 * max(1.0, float(np.max(values)))
    if not (np.all(weight > 0) and np.all(np.isfinite(mean)) and np.min(values) >= tolerance):
        raise ValueError(
            "exact_mixture: expected positive weights, finite means and positive semidefinite "
            f"covariances, got least weight {weight.min():g} and least eigenvalue "
            f"{values.min():g}."
        )
    arrays = np.log(weight / weight.sum()), mean, np.maximum(values, 0.0), vectors
    return of_mixture(process, [jnp.asarray(part, dtype) for part in arrays])


def of_mixture(process: NoiseProcess, parts: Sequence[Array]) -> Score:
    """Score of log weights, means, and eigenvalues and eigenvectors of the covariances."""
    return Score(
        Partial(OfMixture(process), *parts),
        process,
        parts[1].shape[1:],
        exact=True,
        potential=Partial(PotentialOfMixture(process), *parts),
    )


def _parts(
    process: NoiseProcess,
    log_weight: Array,
    mean: Array,
    values: Array,
    vectors: Array,
    x: Array,
    t: Any,
) -> tuple[Array, Array, Array]:
    alpha, sigma = process.alpha(t), process.sigma(t)
    spread = alpha**2 * values + sigma**2
    away = jnp.einsum("kij,ki->kj", vectors, x - alpha * mean)
    logs = log_weight - 0.5 * jnp.sum(away**2 / spread + jnp.log(spread), axis=1)
    return logs, away / spread, alpha


@dataclasses.dataclass(frozen=True)
class OfMixture:
    """Denoiser of a mixture; equal for equal processes, so that programs are compiled once."""

    process: NoiseProcess

    def __call__(
        self,
        log_weight: Array,
        mean: Array,
        values: Array,
        vectors: Array,
        x: Array,
        t: Any,
        condition: Any = None,
    ) -> Array:
        """Predict the clean event."""
        logs, pull, alpha = _parts(self.process, log_weight, mean, values, vectors, x, t)
        clean = mean + alpha * jnp.einsum("kij,kj->ki", vectors, values * pull)
        return jax.nn.softmax(logs) @ clean


@dataclasses.dataclass(frozen=True)
class PotentialOfMixture:
    """Function of which the denoiser of a mixture is the gradient."""

    process: NoiseProcess

    def __call__(
        self,
        log_weight: Array,
        mean: Array,
        values: Array,
        vectors: Array,
        x: Array,
        t: Any,
        condition: Any = None,
    ) -> Array:
        """Value at one event."""
        logs, _, alpha = _parts(self.process, log_weight, mean, values, vectors, x, t)
        sigma = self.process.sigma(t)
        return (sigma**2 * jax.nn.logsumexp(logs) + 0.5 * jnp.sum(x**2)) / alpha


def empirical(process: NoiseProcess, data: Any) -> Score:
    """Score of the noised empirical law of a data set: what a network that memorises would learn.

    Every evaluation reads all the data.

    Parameters
    ----------
    process
        Any noise process.
    data
        Shape ``[datum, *event]``; positive for a multiplicative process.

    Raises
    ------
    ValueError
        If there is no datum, or data are not finite, or not positive where they must be.

    References
    ----------
    Karras et al., 2022, arXiv:2206.00364, appendix B.3; for Poisson flows Xu et al., 2023,
    arXiv:2302.04265.

    Examples
    --------
    >>> import jax.numpy as jnp, langevin_ppl as lp
    >>> score = lp.scores.empirical(lp.scores.EDM(), [[-1.0], [1.0]])
    >>> score.denoise(jnp.array([0.3]), 0.1).round(3)
    Array([1.], dtype=float32)
    """
    points = np.asarray(data, float)
    if points.ndim < 1 or len(points) == 0:
        raise ValueError(f"data: expected shape [datum, *event], got {points.shape}.")
    process.check_data(points)
    return of_data(process, jnp.asarray(process.encode(points), jnp.result_type(float)))


def of_data(process: NoiseProcess, points: Array) -> Score:
    """Score of data in the coordinates of the process."""
    return Score(Partial(OfData(process), points), process, points.shape[1:], exact=True)


@dataclasses.dataclass(frozen=True)
class OfData:
    """Denoiser of a data set; equal for equal processes, so that programs are compiled once."""

    process: NoiseProcess

    def __call__(self, points: Array, x: Array, t: Any, condition: Any = None) -> Array:
        """Predict the clean event."""
        process = self.process
        axes = tuple(range(1, points.ndim))
        square = jnp.sum((x - process.alpha(t) * points) ** 2, axis=axes)
        logs = process.log_kernel(square, x.size, t)
        return jnp.tensordot(jax.nn.softmax(logs), points, axes=1)

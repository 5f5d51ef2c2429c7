"""Weights of walkers: averages, the running normaliser, and when to resample."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from blackjax.smc.resampling import systematic

from langevin_ppl.base import Array, PRNGKey

__all__ = ["Normalizer", "effective_share", "log_mean_exp", "resampled"]


class Normalizer(NamedTuple):
    """Logarithm of a normaliser, and its standard error.

    Attributes
    ----------
    value
        Estimate of ``log Z``, scalar.
    standard_error
        Of the estimate, by the spread of weights or of independent runs.
    ess
        Effective number of weighted walkers, or walkers of the last level.
    """

    value: Any
    standard_error: Any
    ess: Any


def log_mean_exp(log_weights: Array) -> Array:
    """Logarithm of the mean of weights."""
    return jax.scipy.special.logsumexp(log_weights) - jnp.log(log_weights.size)


def effective_share(log_weights: Array) -> Array:
    """Effective number of walkers over their number, ``1 / (1 + CV^2)``."""
    weights = jax.nn.softmax(log_weights)
    return 1.0 / (log_weights.size * jnp.sum(weights**2))


def resampled(
    rng_key: PRNGKey, log_weights: Array, walkers: Any, least_share: Any
) -> tuple[Any, Array, Array, Array, Array]:
    """Draw walkers by their weights where these have become uneven.

    Returns
    -------
    walkers, log_weights, log_mean, variance, drawn
        ``log_mean`` is what was folded out of the weights, and ``variance`` that of it; both are 0
        where nothing was drawn.
    """
    share = effective_share(log_weights)
    drawn = share < least_share
    size = log_weights.size

    def draw() -> Array:
        # In double precision BlackJAX counts rows by int32, and JAX by int64.
        return systematic(rng_key, jax.nn.softmax(log_weights), size).astype(jnp.int32)

    rows = jax.lax.cond(drawn, draw, lambda: jnp.arange(size, dtype=jnp.int32))
    walkers = jax.tree.map(lambda leaf: leaf[rows], walkers)
    log_mean = jnp.where(drawn, log_mean_exp(log_weights), 0.0)
    variance = jnp.where(drawn, (1.0 / share - 1.0) / size, 0.0)
    return walkers, jnp.where(drawn, 0.0, log_weights), log_mean, variance, drawn

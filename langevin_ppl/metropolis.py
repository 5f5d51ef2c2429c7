"""The Metropolis test, which makes a proposal's stationary law exact."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from langevin_ppl.base import DIVERGENCE_THRESHOLD, Array, ArrayLike

__all__ = ["Decision", "decide", "euler_maruyama_log_ratio", "log_uniform", "select"]


class Decision(NamedTuple):
    """Outcome of a Metropolis test, three scalars."""

    is_accepted: Array
    acceptance_rate: Array
    is_divergent: Array


def log_uniform(normals: Array) -> Array:
    """Logarithm of a uniform on (0, 1) from two standard normals of shape ``[2]``.

    Half the sum of their squares is exponential with mean 1 (Box-Muller read backwards). One
    call to the generator then serves both noise and test, which compiles faster than two.
    """
    return -0.5 * jnp.sum(normals**2)


def euler_maruyama_log_ratio(
    drift: Array, new_drift: Array, noise: Array, step_size: ArrayLike, temperature: ArrayLike
) -> Array:
    r"""Log of backward over forward proposal density of an Euler-Maruyama step.

    The noise that would lead back is :math:`-(\xi + \sqrt{h / 2T} (D + D'))`, so the ratio
    follows from the drifts alone, without the cancellation of subtracting positions.

    Parameters
    ----------
    drift, new_drift
        Drifts at the two ends, in the whitened frame, shape ``[dimension]``.
    noise
        The standard normal that was used, shape ``[dimension]``.
    """
    shift = jnp.sqrt(step_size / (2.0 * temperature)) * (drift + new_drift)
    return -jnp.sum(shift * (noise + 0.5 * shift))


def decide(log_ratio: Array, log_uniform: Array) -> Decision:
    """Accept with probability ``min(1, exp(log_ratio))``; a ratio that is NaN rejects."""
    ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
    return Decision(
        is_accepted=log_uniform < ratio,
        acceptance_rate=jnp.exp(jnp.minimum(ratio, 0.0)),
        is_divergent=~(ratio > -DIVERGENCE_THRESHOLD),
    )


def select[Tree](decision: Decision, proposal: Tree, state: Tree) -> Tree:
    """Take the proposal where it was accepted, else the state."""
    return jax.tree.map(lambda new, old: jnp.where(decision.is_accepted, new, old), proposal, state)

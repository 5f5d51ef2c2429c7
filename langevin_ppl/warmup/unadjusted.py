"""Step size and taming of kernels without a Metropolis test, from their tuned siblings."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from langevin_ppl.base import Array, PRNGKey
from langevin_ppl.kernels import Kernel
from langevin_ppl.warmup.start import Start

__all__ = ["MAX_POWER", "MAX_TAMING_LOSS", "settled_step_size", "taming_parameters"]

MAX_TAMING_LOSS = 0.05
"""Share of the gradient that taming may remove on average before its bias dominates."""

HALVINGS = 16
"""How often the step size of a tamed kernel may be halved."""

MAX_POWER = 8.0
"""Largest power of an automatic polynomial taming."""


def settled_step_size(
    kernel: Kernel,
    logdensity_fn: Callable[[Array], Array],
    chain: Any,
    parameters: Mapping[str, Any],
    rng_key: PRNGKey,
    now: Array | bool = True,
    axis_name: str | None = None,
) -> Array:
    """Step size of an unadjusted kernel from that of its adjusted sibling.

    A share of the sibling's, at most the kernel's own bound; for a tamed kernel it is then halved
    until the mean taming loss of a trial step is small.

    Parameters
    ----------
    chain
        State of the kernel, of one chain.
    parameters
        Parameters of the kernel; the step size is that of the sibling.
    rng_key
        Key of the trial steps.
    now
        Whether to make trial steps; else the step size is the share alone.
    axis_name
        Mapped axis of chains over which the loss is averaged, or None.
    """
    tuned = jnp.asarray(parameters["step_size"])
    most = jnp.inf if kernel.max_step_size is None else kernel.max_step_size
    step_size = jnp.minimum(most, kernel.tuner_share * tuned).astype(tuned.dtype)
    others = {k: v for k, v in parameters.items() if k in kernel.parameters and k != "step_size"}

    def loss(step_size: Array) -> Array | None:
        algorithm: Any = kernel(logdensity_fn, step_size=step_size, **others)
        return algorithm.step(rng_key, chain)[1].taming_loss

    if jax.eval_shape(loss, step_size) is None:
        return step_size
    ladder = step_size * 0.5 ** jnp.arange(HALVINGS, dtype=step_size.dtype)

    def gentlest() -> Array:
        losses: Any = jax.vmap(loss)(ladder)
        losses = losses if axis_name is None else jax.lax.pmean(losses, axis_name)
        gentle = losses <= MAX_TAMING_LOSS
        return ladder[jnp.where(jnp.any(gentle), jnp.argmax(gentle), HALVINGS - 1)]

    return jax.lax.cond(now, gentlest, lambda: step_size)


def taming_parameters(
    kernel: Kernel, given: Mapping[str, Any], start: Start | None
) -> dict[str, Any]:
    """Choose power and location of a taming by position, those that the kernel has.

    The power is one less than that of the gradient's growth, and the location is the mode.
    """
    if start is None:
        return {}
    values = {
        "power": jnp.clip(start.growth - 1.0, 0.0, MAX_POWER).astype(start.mode.dtype),
        "location": start.mode,
    }
    return {k: v for k, v in values.items() if k in kernel.parameters and k not in given}

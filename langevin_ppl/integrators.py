"""Integrators: pieces of one step of a discretised Langevin diffusion, in the whitened frame."""

import jax.numpy as jnp

from langevin_ppl.base import Array, ArrayLike

__all__ = ["euler_maruyama", "oscillator", "refresh"]


def euler_maruyama(
    drift: Array, noise: Array, step_size: ArrayLike, temperature: ArrayLike
) -> Array:
    r"""Increment of the Euler-Maruyama scheme, :math:`h D + \sqrt{2 h T} \xi`.

    Parameters
    ----------
    drift, noise
        Vectors of shape ``[dimension]``; the noise is standard normal.
    step_size, temperature
        ``h`` and ``T``, positive scalars.
    """
    return jnp.multiply(step_size, drift) + jnp.sqrt(2.0 * step_size * temperature) * noise


def oscillator(
    position: Array, momentum: Array, step_size: ArrayLike, frequency: ArrayLike
) -> tuple[Array, Array]:
    r"""Exact flow of :math:`\dot z = p, \dot p = -\omega^2 z`; free flight at frequency 0.

    Parameters
    ----------
    position, momentum
        Vectors of shape ``[dimension]``.
    step_size, frequency
        Time ``h`` and ``omega``, scalars.
    """
    angle = jnp.multiply(step_size, frequency)
    cosine = jnp.cos(angle)
    reach = step_size * jnp.sinc(angle / jnp.pi)
    return (
        cosine * position + reach * momentum,
        cosine * momentum - jnp.square(frequency) * reach * position,
    )


def refresh(
    momentum: Array,
    noise: Array,
    friction: ArrayLike,
    step_size: ArrayLike,
    temperature: ArrayLike,
    fully: ArrayLike,
) -> Array:
    r"""Exact flow of the friction, :math:`e^{-\gamma h} p + \sqrt{(1 - e^{-2 \gamma h}) T} \xi`.

    Parameters
    ----------
    momentum, noise
        Vectors of shape ``[dimension]``; the noise is standard normal.
    friction, step_size, temperature
        ``gamma``, ``h`` and ``T``, positive scalars.
    fully
        Boolean scalar: draw the momentum anew instead.
    """
    exponent = jnp.multiply(friction, step_size)
    kept = jnp.where(fully, 0.0, jnp.exp(-exponent)).astype(noise.dtype)
    drawn = jnp.where(fully, 1.0, -jnp.expm1(-2.0 * exponent)).astype(noise.dtype)
    return kept * momentum + jnp.sqrt(drawn * temperature) * noise

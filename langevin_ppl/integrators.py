"""Integrators: one step of a discretised Langevin diffusion, in the whitened frame."""

import jax.numpy as jnp

from langevin_ppl.base import Array, ArrayLike

__all__ = ["euler_maruyama"]


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

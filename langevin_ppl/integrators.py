"""Integrators: pieces of one step of a discretised Langevin diffusion, in the whitened frame."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array, ArrayLike

__all__ = [
    "Flight",
    "euler_maruyama",
    "free_flight",
    "ornstein_uhlenbeck",
    "oscillator",
    "refresh",
]


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


def ornstein_uhlenbeck(
    momentum: Array,
    noise: Array,
    friction: ArrayLike,
    heating: ArrayLike,
    step_size: ArrayLike,
    temperature: ArrayLike,
) -> Array:
    r"""Exact flow of :math:`dp = -\xi p \, dt + \sqrt{2 A T} \, dW` for any sign of the friction.

    Parameters
    ----------
    momentum, noise
        Vectors of shape ``[dimension]``; the noise is standard normal.
    friction
        ``xi``, scalar; that of a thermostat may be zero or negative.
    heating, step_size, temperature
        ``A``, time ``h`` and ``T``, positive scalars.
    """
    lost = jnp.multiply(2.0 * friction, step_size)
    still = lost == 0
    # Share of 2 A h T that friction leaves of it; its limit, 1, at no friction.
    share = jnp.where(still, 1.0, -jnp.expm1(-lost) / jnp.where(still, 1.0, lost))
    spread = jnp.sqrt(2.0 * heating * step_size * temperature * share)
    return jnp.exp(-0.5 * lost) * momentum + spread * noise


SMALL = 0.1
"""Friction times time below which series are more accurate than the closed forms."""

# Coefficients of the series, the highest power first.
_OWN = np.array([691 / 39916800, -31 / 181440, 17 / 10080, -1 / 60, 1 / 6])
_FORCED = np.array([(-1) ** k / math.factorial(k + 2) for k in reversed(range(10))])


def _series(coefficients: np.ndarray, x: Array) -> Array:
    return jnp.polyval(jnp.asarray(coefficients, x.dtype), x)


class Flight(NamedTuple):
    r"""Coefficients of free flight with friction over a time ``t``, scalars.

    Attributes
    ----------
    kept
        :math:`e^{-\gamma t}`, share of the momentum that is left.
    reach
        :math:`(1 - e^{-\gamma t}) / \gamma`, distance for each unit of momentum.
    force_reach
        :math:`(t - \mathrm{reach}) / \gamma`, distance for each unit of a constant force.
    spread
        Standard deviation that the momentum gains, at temperature 1.
    drag, rest
        The position gains ``drag`` times the normal of the momentum and ``rest`` times one of
        its own.
    """

    kept: Array
    reach: Array
    force_reach: Array
    spread: Array
    drag: Array
    rest: Array

    @classmethod
    def over(cls, time: ArrayLike, friction: ArrayLike) -> "Flight":
        r"""Coefficients for a time and a friction, both positive.

        With :math:`a = \gamma t`, the momentum gains variance :math:`1 - e^{-2a}`, the position
        :math:`(2 a - 3 + 4 e^{-a} - e^{-2a}) / \gamma^2`, and their covariance is
        :math:`(1 - e^{-a})^2 / \gamma`. Given the momentum, the position's variance is
        :math:`2 (a - 2 \tanh(a / 2)) / \gamma^2`. Series take over where differences cancel.
        """
        a = jnp.asarray(jnp.multiply(friction, time))
        lost, half = -jnp.expm1(-a), jnp.tanh(0.5 * a)
        small, square = a < SMALL, jnp.square(a)
        own = jnp.where(small, a * square * _series(_OWN, square), 2.0 * (a - 2.0 * half))
        forced = jnp.where(small, square * _series(_FORCED, a), a - lost)
        return cls(
            kept=jnp.exp(-a),
            reach=lost / friction,
            force_reach=forced / jnp.square(friction),
            spread=jnp.sqrt(-jnp.expm1(-2.0 * a)),
            drag=lost * jnp.sqrt(half) / friction,
            rest=jnp.sqrt(own) / friction,
        )


def free_flight(
    position: Array,
    momentum: Array,
    noise: Array,
    friction: ArrayLike,
    time: ArrayLike,
    temperature: ArrayLike,
) -> tuple[Array, Array]:
    r"""Exact flow of :math:`\dot z = p`, :math:`dp = -\gamma p dt + \sqrt{2 \gamma T} dW`.

    Parameters
    ----------
    position, momentum
        Vectors of shape ``[dimension]``.
    noise
        Standard normal, shape ``[2, dimension]``.
    friction, time, temperature
        ``gamma``, ``t`` and ``T``, positive scalars.
    """
    flight, heat = Flight.over(time, friction), jnp.sqrt(temperature)
    shift = flight.drag * noise[0] + flight.rest * noise[1]
    return (
        position + flight.reach * momentum + heat * shift,
        flight.kept * momentum + heat * flight.spread * noise[0],
    )

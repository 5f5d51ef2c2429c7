"""When a loss looks at a process, and how much it counts there.

All is said of the ratio ``r = sigma / alpha`` of noise to datum, so that one rule serves every
schedule: the laws of the time as laws of ``log r``, weights as factors of ``|D - x_0|^2``.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jax.scipy.stats import norm

from langevin_ppl.base import Array, PRNGKey
from langevin_ppl.scores.process import NoiseProcess, derivative

__all__ = ["TIMES", "WEIGHTINGS", "draw_times", "weights"]

TIMES = ("lognormal", "uniform", "logit_normal", "log_uniform")
"""Laws of the time."""

WEIGHTINGS = ("edm", "simple", "min_snr", "velocity", "likelihood")
"""Factors of the squared error of the denoiser."""

LOG_MEAN, LOG_SD, OF_SCALE = -1.2, 1.2, 0.5
"""Mean and standard deviation of ``log r`` for data of standard deviation 0.5 (Karras et al.)."""

EVERYWHERE = 0.1
"""Share of the times that are uniform in ``log r`` beside those. Without them hardly any is at the
noisy end, where the denoiser was measured to be off by half of the size of the mean."""

MIN_SNR = 5.0
"""Signal-to-noise ratio above which the weight no longer grows (Hang et al.)."""


def draw_times(
    law: str, rng_key: PRNGKey, process: NoiseProcess, count: int, scale: Any
) -> tuple[Array, Array]:
    """Times of a batch, and the density of their ``log r``, both ``[row]``.

    The times of a batch are one in each of ``count`` equally likely intervals, which lowers the
    variance of its mean and leaves the law of each of them as it is (Kingma et al., *Variational
    diffusion models*, 2021, arXiv:2107.00630).
    """
    dtype = jnp.result_type(float)
    uniform = jax.random.uniform(rng_key, (), dtype)
    uniform = (jnp.arange(count, dtype=dtype) + uniform) / count
    # Neither of the ends, where quantiles are infinite.
    tiny = jnp.finfo(dtype).eps
    uniform = jnp.clip(uniform, tiny, 1.0 - tiny)
    t_min, t_max = process.t_min, process.t_max
    if law in ("uniform", "logit_normal"):
        place, density = uniform, jnp.ones_like(uniform)
        if law == "logit_normal":
            place = jax.nn.sigmoid(ndtri(uniform))
            density = norm.pdf(ndtri(uniform)) / (place * (1.0 - place))
        t = jnp.clip(t_min + place * (t_max - t_min), t_min, t_max)
        return t, density / ((t_max - t_min) * slope(process, t))
    low, high = (math.log(process.ratio(np.asarray(t))) for t in (t_min, t_max))
    everywhere, flat = low + uniform * (high - low), 1.0 / (high - low)
    if law == "log_uniform":
        logs, density = everywhere, jnp.full_like(uniform, flat)
    else:
        mean = LOG_MEAN + jnp.log(scale / OF_SCALE)
        first, last = ndtr((low - mean) / LOG_SD), ndtr((high - mean) / LOG_SD)
        inner = jnp.clip((uniform - EVERYWHERE) / (1.0 - EVERYWHERE), tiny, 1.0 - tiny)
        logs = jnp.clip(mean + LOG_SD * ndtri(first + inner * (last - first)), low, high)
        logs = jnp.where(uniform < EVERYWHERE, low + uniform / EVERYWHERE * (high - low), logs)
        density = EVERYWHERE * flat
        density += (1.0 - EVERYWHERE) * norm.pdf(logs, mean, LOG_SD) / (last - first)
    return process.time_within(jnp.exp(logs)), density


def slope(process: NoiseProcess, t: Array) -> Array:
    """Derivative of ``log r`` in time, element by element."""
    return derivative(lambda s: -process.log_snr(s), t)


def weights(weighting: str, process: NoiseProcess, t: Array, density: Array, scale: Any) -> Array:
    """Factor of ``|D - x_0|^2`` at every time, ``[row]``.

    Parameters
    ----------
    density
        Of ``log r``, by which ``"likelihood"`` is divided: it is the same bound for every law.
    scale
        Standard deviation of the data.
    """
    precision = 1.0 / process.ratio(t) ** 2
    if weighting == "edm":
        return precision + 1.0 / scale**2
    if weighting == "simple":
        return precision
    if weighting == "min_snr":
        return jnp.minimum(precision, MIN_SNR / scale**2)
    if weighting == "velocity":
        return (process.alpha(t) * slope(process, t)) ** 2
    return precision / density

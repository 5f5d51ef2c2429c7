r"""The probability flow as a change of variables: noise of an event, and its log density.

With :math:`y = x_t / \alpha` and :math:`r = \sigma / \alpha`, the datum plus noise of size
:math:`r`, the flow of every noise process is

.. math::
    \frac{dy}{d \log r} = y - D(\alpha y, t), \qquad
    \frac{d \log p_r(y)}{d \log r} = \operatorname{tr} \frac{\partial D}{\partial y} - d ,

which changes at a rate of about one whatever the noise. At ``t_max`` the law is the process' own.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array, check_counts
from langevin_ppl.scores.process import NoiseProcess, derivative, namespace
from langevin_ppl.scores.score import Score

__all__ = [
    "Path",
    "at_the_end",
    "encoding_log_jacobian",
    "flow_log_prob",
    "flow_to_noise",
    "over_events",
    "path_from",
    "slopes",
]

STAGES = ((0.0, 0.5, 1.0), (0.5, 0.5, 2.0), (0.5, 1.0, 2.0), (1.0, 0.0, 1.0))
"""Classical rule of Runge and Kutta: where a stage is in its step, how far the next one goes along
its slope, and six times its weight."""


class Path(NamedTuple):
    """Stages of a rule of Runge and Kutta from a level of noise to the largest.

    Attributes
    ----------
    time, alpha
        Where a stage evaluates, and the schedule there, ``[stage]``.
    ahead
        How far the next stage of the same step goes along its slope, ``[stage]``.
    weight
        What its slope counts in the step, ``[stage]``.
    is_last
        Whether a step ends with it, ``[stage]``.
    ratio
        Noise at the start in units of the datum, a scalar.
    """

    time: Array
    alpha: Array
    ahead: Array
    weight: Array
    is_last: Array
    ratio: Array


def path_from(process: NoiseProcess, num_steps: int, time: Any = None) -> Path:
    """Steps of equal width in ``log(sigma / alpha)``, from a time (``t_min`` by default)."""
    check_counts(1, num_steps=num_steps)
    first = process.t_min if time is None else time
    xp, dtype = namespace(first), jnp.result_type(float)
    low = xp.log(process.ratio(first))
    width = (math.log(process.ratio(process.t_max)) - low) / num_steps
    offset, ahead, weight = np.tile(np.array(STAGES), (num_steps, 1)).T
    nodes = low + width * (np.repeat(np.arange(num_steps), len(STAGES)) + offset)
    # The ends exactly: rounding must not leave the interval of the process.
    times = xp.clip(process.time_at(xp.exp(nodes)), first, process.t_max)
    return Path(
        time=jnp.asarray(times, dtype),
        alpha=jnp.asarray(process.alpha(times), dtype),
        ahead=jnp.asarray(width * ahead, dtype),
        weight=jnp.asarray(width * weight / 6.0, dtype),
        is_last=jnp.asarray(offset == 1.0),
        ratio=jnp.asarray(process.ratio(first), dtype),
    )


def slopes(
    score: Score, condition: Any, y: Array, time: Any, alpha: Any, probes: Array | None
) -> tuple[Array, Array]:
    """Velocity and its divergence, exact ``[1]`` or in random directions ``[probe]``."""
    clean, push = jax.linearize(lambda y: score.denoise(alpha * y, time, condition), y)
    if probes is None:
        columns = jax.vmap(push)(jnp.eye(y.size, dtype=y.dtype).reshape(y.size, *y.shape))
        traces = jnp.trace(columns.reshape(y.size, y.size))[None]
    else:
        axes = tuple(range(1, probes.ndim))
        traces = jnp.sum(probes * jax.vmap(push)(probes), axis=axes)
    return y - clean, y.size - traces


def flow_to_noise(
    score: Score, condition: Any, y: Array, path: Path, probes: Array | None = None
) -> tuple[Array, Array]:
    """Noise that the flow makes of one event, and the log density of the event.

    Parameters
    ----------
    condition
        That of the event; None for a score without.
    y
        Datum plus noise of size ``path.ratio``, in the coordinates of the process.
    path
        Made by `path_from`.
    probes
        Directions ``[probe, *event]`` in which the divergence is estimated; exact by default.

    Returns
    -------
    noise
        Shape of the event, in the coordinates of the process at ``t_max``.
    log_prob
        Of each probe, ``[probe]``; exact ``[1]``.
    """

    def step(carry: tuple[Array, ...], stage: tuple[Array, ...]) -> tuple[tuple[Array, ...], None]:
        start, here, end, total = carry
        time, alpha, ahead, weight, is_last = stage
        velocity, divergence = slopes(score, condition, here, time, alpha, probes)
        end = end + weight * velocity
        start = jnp.where(is_last, end, start)
        here = jnp.where(is_last, end, start + ahead * velocity)
        return (start, here, end, total + weight * divergence), None

    total = jnp.zeros(1 if probes is None else len(probes), y.dtype)
    (y, _, _, total), _ = jax.lax.scan(step, (y, y, y, total), path[:5])
    return at_the_end(score.process, y, total)


def at_the_end(process: NoiseProcess, y: Array, total: Array) -> tuple[Array, Array]:
    """Noise and log density of what arrived at ``t_max``, with the integral of the divergence."""
    alpha = process.alpha(process.t_max)
    noise = alpha * y
    return noise, process.log_prior(noise) + y.size * math.log(alpha) + total


def encoding_log_jacobian(process: NoiseProcess, x: Array) -> Array:
    """Log determinant of ``process.encode``, number by number, shape of ``x``."""
    return jnp.log(jnp.abs(derivative(process.encode, x)))


def over_events(
    function: Callable[[Array, Any], Any], score: Score, y: Array, condition: Any
) -> Any:
    """Map ``function(event, condition)`` over leading axes, which are broadcast with each other."""
    event, of_condition = score.event_shape, score.condition_shape
    if condition is not None and of_condition is not None:
        condition = jnp.asarray(condition)
        batch = jnp.broadcast_shapes(
            y.shape[: y.ndim - len(event)], condition.shape[: condition.ndim - len(of_condition)]
        )
        y = jnp.broadcast_to(y, batch + event)
        if condition.ndim > len(of_condition):
            condition = jnp.broadcast_to(condition, batch + of_condition)
    for _ in range(y.ndim - len(event)):
        function = jax.vmap(function, (0, score.axis_of(condition)))
    return function(y, condition)


def flow_log_prob(
    score: Score, x: Array, condition: Any = None, *, num_steps: int = 64, time: Any = None
) -> Array:
    """Log density of data by the probability flow, a pure function.

    Differentiable in the data, the condition and the arrays of the score. The divergence is exact,
    at the price of as many derivatives of the denoiser as a datum has numbers.

    Parameters
    ----------
    score
        The score, with its process.
    x
        Data with the noise of ``time``, in units of the data, ``[..., *event]``.
    condition
        Shape ``[..., *condition_shape]``, for a conditional score.
    num_steps
        Steps of the classical rule of Runge and Kutta in ``log(sigma / alpha)``: of order 4, with
        four evaluations each.
    time
        How much noise there is in ``x``: ``x_t / alpha``, ``t_min`` by default.

    Returns
    -------
    Array
        Nats, ``[...]``.

    References
    ----------
    Chen et al., *Neural ordinary differential equations*, 2018, arXiv:1806.07366; Song et al.,
    2021, arXiv:2011.13456, section 4.3.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.EDM(), [1.0], [[0.0, 0.0]], [1.0])
    >>> log_prob = jax.jit(lp.diffusion.flow_log_prob)(score, jnp.zeros(2))
    >>> round(float(log_prob), 2)  # -log(2 pi)
    -1.84
    """
    x = jnp.asarray(x, jnp.result_type(float, x))
    path = path_from(score.process, num_steps, time)

    def one(y: Array, condition: Any) -> Array:
        return flow_to_noise(score, condition, y, path)[1][0]

    log_prob = over_events(one, score, score.process.encode(x), condition)
    axes = tuple(range(-len(score.event_shape), 0))
    return log_prob + jnp.sum(encoding_log_jacobian(score.process, x), axis=axes)

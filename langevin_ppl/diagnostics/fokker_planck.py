"""What a learned score is wrong in, seen from the score itself: the Fokker-Planck equation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array, PRNGKey, check_counts, check_key
from langevin_ppl.scores.score import Score

__all__ = ["fokker_planck_residual"]


def fokker_planck_residual(
    rng_key: PRNGKey, score: Score, x: Array, times: Array, *, num_probes: int | None = None
) -> Array:
    r"""Measure how far a score is from that of any diffusing density.

    With the datum plus noise of standard deviation :math:`r = \sigma / \alpha`, the density obeys
    the heat equation and its score

    .. math:: \partial_r s = r \nabla (\nabla \cdot s + \|s\|^2) .

    The residual is the root mean square over data and coordinates of the difference of both sides
    times :math:`r^2`, which makes it a pure number: a score of the right size but with derivatives
    unrelated to each other has about one. It is 0 for the score of every law, whether or not it is
    the law of the data.

    Parameters
    ----------
    rng_key
        Key of the noise, and of the probes.
    score
        A score of a Gaussian process, without condition.
    x
        Data, ``[datum, *event]``, to which noise is added.
    times
        Times at which to measure, ``[time]``.
    num_probes
        Random signs by which the divergence is estimated; by default it is exact, for one
        evaluation for each coordinate.

    Returns
    -------
    Array
        Residual at each time, ``[time]``.

    Raises
    ------
    ValueError
        If the process is not Gaussian, the score is conditional, or shapes do not fit.

    References
    ----------
    Lai et al., *FP-Diffusion: improving score-based diffusion models by enforcing the underlying
    score Fokker-Planck equation*, 2023, arXiv:2210.04296.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.EDM(), [0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
    >>> x = jax.random.normal(jax.random.key(0), (64, 1))
    >>> residual = lp.diagnostics.fokker_planck_residual(
    ...     jax.random.key(1), score, x, jnp.array([0.3, 1.0]))
    >>> residual.shape, bool(residual.max() < 1e-3)
    ((2,), True)
    """
    rng_key = check_key(rng_key)
    if not score.process.gaussian or score.condition_shape is not None:
        raise ValueError(
            "fokker_planck_residual: expected a score without condition of a Gaussian process, "
            f"got one of {score.process} with condition {score.condition_shape}."
        )
    if np.ndim(x) != len(score.event_shape) + 1 or np.shape(x)[1:] != score.event_shape:
        raise ValueError(
            f"x: expected shape (datum, {', '.join(map(str, score.event_shape))}), got "
            f"{np.shape(x)}."
        )
    score.process.check_data(x, "x")
    score.process.check_time(times)
    if num_probes is not None:
        check_counts(1, num_probes=num_probes)
    x = jnp.asarray(score.process.encode(jnp.asarray(x)), jnp.result_type(float))
    times = jnp.atleast_1d(jnp.asarray(times, x.dtype))
    return _residuals(rng_key, score, x, times, num_probes)


@functools.partial(jax.jit, static_argnames="num_probes")
def _residuals(
    rng_key: PRNGKey, score: Score, x: Array, times: Array, num_probes: int | None
) -> Array:
    process, size = score.process, x[0].size

    def of_noised(y: Array, ratio: Array) -> Array:
        """Score of datum plus noise, flat, in units of its size ``1 / ratio``."""
        t = process.time_at(ratio)
        alpha = process.alpha(t)
        clean = score.denoise(alpha * y.reshape(score.event_shape), t)
        return (jnp.ravel(clean) - y) / ratio**2

    def divergence(y: Array, ratio: Array, probes: Array) -> Array:
        def along(probe: Array) -> Array:
            return probe @ jax.jvp(lambda y: of_noised(y, ratio), (y,), (probe,))[1]

        return jnp.sum(jax.lax.map(along, probes)) * (size / jnp.sum(probes**2))

    def one(key: PRNGKey, datum: Array, t: Array) -> Array:
        key_noise, key_probes = jax.random.split(key)
        ratio = process.ratio(t)
        y = jnp.ravel(datum) + ratio * jax.random.normal(key_noise, (size,), x.dtype)
        if num_probes is None:
            probes = jnp.eye(size, dtype=x.dtype)
        else:
            probes = jax.random.rademacher(key_probes, (num_probes, size), x.dtype)

        def potential(y: Array) -> Array:
            s = of_noised(y, ratio)
            return divergence(y, ratio, probes) + jnp.sum(s**2)

        change = jax.jvp(lambda r: of_noised(y, r), (ratio,), (jnp.ones_like(ratio),))[1]
        return ratio**2 * (change - ratio * jax.grad(potential)(y))

    def at(carry: tuple[()], entry: tuple[PRNGKey, Array]) -> tuple[tuple[()], Array]:
        key, t = entry
        keys = jax.random.split(key, len(x))
        found = jax.lax.map(lambda e: one(e[0], e[1], t), (keys, x), batch_size=64)
        return carry, jnp.sqrt(jnp.mean(found**2))

    return jax.lax.scan(at, (), (jax.random.split(rng_key, len(times)), times))[1]

"""Inverse problems: scores made of a score and an observation of the clean datum."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from langevin_ppl.base import Array, check_number
from langevin_ppl.diffusion.checks import check_score
from langevin_ppl.diffusion.guidance import (
    check_callable,
    check_gaussian,
    guided,
    number,
    per_score,
)
from langevin_ppl.diffusion.observations import Observed, observed
from langevin_ppl.scores.score import Score

__all__ = ["posterior_sampling", "pseudoinverse_guidance", "replacement"]


def replacement(score: Score, operator: Any, observation: Any) -> Score:
    r"""Put what was observed in the place of what is predicted: :math:`A^+ y + (I - A^+ A) D`.

    For a mask this is inpainting. Clean samples agree with the observation exactly.

    Parameters
    ----------
    score
        Any score.
    operator
        What is observed: booleans of the shape of an event, or a matrix ``[number, dimension]``
        on the numbers of an event.
    observation
        Array of the shape of an event, of which the masked entries are read, or ``[number]``.

    Raises
    ------
    TypeError, ValueError
        If the score is none, or shapes do not fit.

    References
    ----------
    Wang, Yu, Zhang, *Zero-shot image restoration using denoising diffusion null-space model*, 2022,
    arXiv:2212.00490; Lugmayr et al., *RePaint*, 2022, arXiv:2201.09865.

    Examples
    --------
    >>> import jax, numpy as np, langevin_ppl as lp
    >>> covariance = [[[1.0, 0.9], [0.9, 1.0]]]
    >>> score = lp.scores.exact_mixture(lp.scores.EDM(), [1.0], [[0.0, 0.0]], covariance)
    >>> guided = lp.diffusion.replacement(score, np.array([True, False]), np.array([1.0, np.nan]))
    >>> generated = lp.diffusion.generate(jax.random.key(0), guided, num_samples=3)
    >>> generated.samples[:, 0]
    array([1., 1., 1.], dtype=float32)
    """
    check_score(score, "replacement")
    return guided(score, _by_replacement, observed(score.event_shape, operator, observation))


def _by_replacement(score: Score, seen: Observed, x: Array, t: Any, condition: Any = None) -> Array:
    return seen.replaced(score.denoise(x, t, condition))


def posterior_sampling(
    score: Score,
    log_likelihood_fn: Callable[[Array], Array] | None = None,
    *,
    operator: Any = None,
    observation: Any = None,
    noise_scale: float | None = None,
    step: float = 1.0,
) -> Score:
    r"""Diffusion posterior sampling: :math:`s + \zeta \nabla_x \log p(y \mid D(x_t))`.

    The likelihood of the clean datum is taken at its mean, which leaves its variance out: the
    posterior that comes out is too narrow or wrong in other ways where the noise of the
    observation is small. The gradient goes through the denoiser.

    Parameters
    ----------
    score
        Score of a process with Gaussian noise.
    log_likelihood_fn
        ``log_likelihood_fn(x_0)`` of one clean datum; arrays as in `classifier_guidance`. Or
        instead of it a linear observation, :math:`y = A x_0` plus Gaussian noise:
    operator, observation
        As in `replacement`; what no datum can explain of an observation is left out.
    noise_scale
        Standard deviation of the noise of the observation. None for the step of the paper, the
        gradient of :math:`-|y - A D|^2` over :math:`|y - A D|`. There it is added to the sample
        after every step of an ancestral sampler, and here to the score, so that ``step`` has
        another meaning and may have to be tuned.
    step
        ``zeta``.

    Raises
    ------
    TypeError, ValueError
        If the score is none, its noise is not Gaussian, shapes do not fit, or there is not one
        likelihood.

    References
    ----------
    Chung et al., *Diffusion posterior sampling for general noisy inverse problems*, 2023,
    arXiv:2209.14687.

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.EDM(), [0.5, 0.5], [[-2.0], [2.0]], [0.1, 0.1])
    >>> guided = lp.diffusion.posterior_sampling(
    ...     score, operator=[[1.0]], observation=[1.5], noise_scale=0.5)
    >>> generated = lp.diffusion.generate(jax.random.key(0), guided, num_samples=100)
    >>> bool((generated.samples > 0).mean() > 0.9)
    True
    """
    check_gaussian(score, "posterior_sampling")
    check_number("step", step, above=0.0)
    if (log_likelihood_fn is None) == (operator is None):
        raise ValueError(
            "posterior_sampling: expected either log_likelihood_fn, or operator and observation, "
            f"got {'both' if operator is not None else 'neither'}."
        )
    if log_likelihood_fn is not None:
        if observation is not None or noise_scale is not None:
            raise ValueError(
                "posterior_sampling: observation and noise_scale go with operator; a "
                "log_likelihood_fn has its own."
            )
        check_callable(log_likelihood_fn)
        return guided(score, _by_likelihood, log_likelihood_fn, number(step))
    seen = observed(score.event_shape, operator, observation)
    if noise_scale is None:
        return guided(score, _by_likelihood, Partial(_norm, seen), number(step))
    check_number("noise_scale", noise_scale, above=0.0)
    return guided(
        score, _by_likelihood, Partial(_gaussian, seen, number(noise_scale)), number(step)
    )


def _gaussian(seen: Observed, noise_scale: Array, clean: Array) -> Array:
    return -0.5 * jnp.sum((seen.residual(clean) / noise_scale) ** 2)


def _norm(seen: Observed, clean: Array) -> Array:
    square = jnp.sum(seen.residual(clean) ** 2)
    # Its gradient is that of the square over the root; zero where there is nothing left.
    return -2.0 * jnp.sqrt(jnp.where(square > 0, square, 1.0)) * (square > 0)


def _by_likelihood(
    score: Score, log_likelihood_fn: Any, step: Array, x: Array, t: Any, condition: Any = None
) -> Array:
    clean, back = jax.vjp(lambda x: score.denoise(x, t, condition), x)
    (pull,) = back(jax.grad(log_likelihood_fn)(clean))
    return clean + step * per_score(score, t) * pull


def pseudoinverse_guidance(
    score: Score,
    operator: Any,
    observation: Any,
    *,
    noise_scale: float = 0.0,
    data_scale: float = 1.0,
) -> Score:
    r"""Guidance that knows how uncertain the clean datum is (PiGDM).

    Given its noised form the clean datum is taken as :math:`N(D, r_t^2 I)`, with
    :math:`r_t^2 = v r^2 / (v + r^2)`, :math:`r = \sigma / \alpha` and :math:`v` the variance of the
    data, so that

    .. math::
        s + \Bigl(\frac{\partial D}{\partial x}\Bigr)^T A^T
        (r_t^2 A A^T + \varsigma^2 I)^{-1} (y - A D) ,

    which is right for data that are independent Gaussians of this variance.

    Parameters
    ----------
    score
        Score of a process with Gaussian noise.
    operator, observation
        As in `replacement`.
    noise_scale
        Standard deviation :math:`\varsigma` of the noise of the observation.
    data_scale
        Standard deviation of the numbers of the data, about their mean.

    Raises
    ------
    TypeError, ValueError
        If the score is none, its noise is not Gaussian, or shapes do not fit.

    References
    ----------
    Song et al., *Pseudoinverse-guided diffusion models for inverse problems*,
    2023 (International Conference on Learning Representations).

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.EDM(), [1.0], [[0.0]], [1.0])
    >>> guided = lp.diffusion.pseudoinverse_guidance(score, [[1.0]], [1.0], noise_scale=1.0)
    >>> generated = lp.diffusion.generate(jax.random.key(0), guided, num_samples=1000)
    >>> bool(abs(generated.samples.mean() - 0.5) < 0.1)
    True
    """
    check_gaussian(score, "pseudoinverse_guidance")
    if noise_scale != 0.0:
        check_number("noise_scale", noise_scale, above=0.0)
    check_number("data_scale", data_scale, above=0.0)
    seen = observed(score.event_shape, operator, observation)
    return guided(score, _by_pseudoinverse, seen, number(noise_scale) ** 2, number(data_scale) ** 2)


def _by_pseudoinverse(
    score: Score, seen: Observed, noise: Array, data: Array, x: Array, t: Any, condition: Any = None
) -> Array:
    clean, back = jax.vjp(lambda x: score.denoise(x, t, condition), x)
    square = score.process.ratio(t) ** 2
    spread = data * square / (data + square) * seen.values**2 + noise
    (pull,) = back(seen.adjoint(seen.residual(clean) / spread).reshape(clean.shape))
    return clean + per_score(score, t) * pull

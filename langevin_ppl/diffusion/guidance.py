r"""Guidance: scores made of scores, by a classifier or without one.

Every function here and in `langevin_ppl.diffusion.inverse` takes a score and gives one, so that all
samplers work with it. What it gives is not the score of a noised law, but for `classifier_guidance`
with weight 1 and the classifier of the noised data: samples are approximate, and how far off they
are depends on the method.

Noised and clean data, observations and operators are all in the coordinates of the process: for a
multiplicative one that is the logarithm of the data, ``process.encode(observation)``.

With :math:`s = (\alpha D - x) / \sigma^2`, what is added to the score is :math:`\alpha / \sigma^2`
times what is added to the denoiser :math:`D`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from langevin_ppl.base import Array, check_number
from langevin_ppl.diffusion.checks import check_score
from langevin_ppl.scores.score import Score, unconditional

__all__ = [
    "check_callable",
    "check_gaussian",
    "classifier_free_guidance",
    "classifier_guidance",
    "guided",
    "number",
    "per_score",
]


def classifier_guidance(
    score: Score, log_likelihood_fn: Callable[[Array, Any], Array], weight: float = 1.0
) -> Score:
    r"""Guidance by a classifier of noised data: :math:`s + w \nabla_x \log p(c \mid x_t)`.

    Parameters
    ----------
    score
        Score of a process with Gaussian noise.
    log_likelihood_fn
        ``log_likelihood_fn(x, t)``: log probability, up to a constant, of what is wanted given one
        noised datum ``x`` at time ``t``. Arrays that it reads are data of compiled programs where
        it is a ``jax.tree_util.Partial``, ``Partial(function, array)``.
    weight
        ``w``; above 1 it is more than conditioning.

    Raises
    ------
    TypeError, ValueError
        If the score is none, or its noise is not Gaussian.

    References
    ----------
    Dhariwal, Nichol, *Diffusion models beat GANs on image synthesis*, 2021, arXiv:2105.05233.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.EDM(), [1.0], [[0.0]], [1.0])
    >>> def of_two(x, t):  # what N(2, 1 + t^2) says of x
    ...     return -0.5 * jnp.sum((2.0 - x) ** 2) / (1.0 + t**2)
    >>> guided = lp.diffusion.classifier_guidance(score, of_two)
    >>> generated = lp.diffusion.generate(jax.random.key(0), guided, num_samples=1000)
    >>> bool(abs(generated.samples.mean() - 1.0) < 0.1)
    True
    """
    check_gaussian(score, "classifier_guidance")
    check_callable(log_likelihood_fn)
    check_number("weight", weight)
    return guided(score, _by_classifier, log_likelihood_fn, number(weight))


def _by_classifier(
    score: Score, log_likelihood_fn: Any, weight: Array, x: Array, t: Any, condition: Any = None
) -> Array:
    pull = jax.grad(log_likelihood_fn)(x, t)
    return score.denoise(x, t, condition) + weight * per_score(score, t) * pull


def classifier_free_guidance(score: Score, weight: float) -> Score:
    r"""Guidance by the difference of a conditional and an unconditional score.

    :math:`D_\varnothing + w (D_c - D_\varnothing)`, with two evaluations for each of the score.

    Parameters
    ----------
    score
        Conditional score that was trained with conditions left out, as `langevin_ppl.scores.fit`
        does: the label -1, and a vector of NaN, stand for no condition.
    weight
        ``w``: 0 for no condition, 1 for the conditional score, and above it for more than that.
        The paper's is ``w - 1``.

    Raises
    ------
    TypeError, ValueError
        If the score is none, or takes no condition.

    References
    ----------
    Ho, Salimans, *Classifier-free diffusion guidance*, 2022, arXiv:2207.12598.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> process = lp.scores.EDM()
    >>> def denoiser(x, t, label):  # of N(0, 1) for label 0, N(2, 1) for 1, N(1, 2) for both
    ...     mean, variance = jnp.where(label < 0, 1.0, 2.0 * label), jnp.where(label < 0, 2.0, 1.0)
    ...     return (t**2 * mean + variance * x) / (t**2 + variance)
    >>> score = lp.scores.Score(denoiser, process, (1,), condition_shape=())
    >>> guided = lp.diffusion.classifier_free_guidance(score, 2.0)
    >>> guided.denoise(jnp.array([1.0]), 1.0, 1).round(3)
    Array([2.], dtype=float32)
    """
    check_score(score, "classifier_free_guidance")
    if score.condition_shape is None:
        raise ValueError(
            "classifier_free_guidance: expected a conditional score, got one that takes no "
            "condition. Fit one with condition=."
        )
    check_number("weight", weight)
    return guided(score, _by_difference, number(weight))


def _by_difference(score: Score, weight: Array, x: Array, t: Any, condition: Any = None) -> Array:
    without = score.denoise(x, t, unconditional(condition))
    return without + weight * (score.denoise(x, t, condition) - without)


def guided(score: Score, denoise: Callable[..., Array], *parts: Any) -> Score:
    """Score whose denoiser is ``denoise(score, *parts, x, t, condition)``; arrays are its data."""
    denoiser = Partial(denoise, score.replace(potential=None), *parts)
    return score.replace(denoiser=denoiser, exact=False, potential=None, spec=None)


def per_score(score: Score, t: Any) -> Array:
    """What a term of the score is worth in the denoiser."""
    return score.process.sigma(t) ** 2 / score.process.alpha(t)


def number(value: float) -> Array:
    """Number as data of compiled programs."""
    return jnp.asarray(value, jnp.result_type(float))


def check_gaussian(score: Score, owner: str) -> None:
    """Refuse a score that is not one of Gaussian noise, to which a term could be added."""
    check_score(score, owner)
    if not score.process.gaussian:
        raise ValueError(
            f"{owner}: adds a term to the score, and {score.process} has none, because its noise "
            "is not Gaussian. Use replacement, or a process such as langevin_ppl.scores.EDM."
        )


def check_callable(function: Any) -> None:
    """Refuse a log likelihood that is no function."""
    if not callable(function):
        raise TypeError(f"log_likelihood_fn: expected a function, got {type(function).__name__}.")

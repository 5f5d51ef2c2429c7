"""What a learned score is wrong in, seen from its samples."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array, PRNGKey, check_counts, check_key, check_number
from langevin_ppl.diagnostics.sliced import sliced_wasserstein
from langevin_ppl.diffusion.generate import Generated, generate
from langevin_ppl.diffusion.sampler import Sampler
from langevin_ppl.scores.score import Score

__all__ = [
    "FlowGap",
    "Interpolation",
    "flow_gap",
    "mode_interpolation",
]


class FlowGap(NamedTuple):
    """What `flow_gap` returns.

    Attributes
    ----------
    value, standard_error
        Sliced Wasserstein distance between samples of the flow and of the stochastic equation.
    floor
        The same distance between two independent sets of samples of the flow: what is seen where
        there is no gap.
    """

    value: float
    standard_error: float
    floor: float


def flow_gap(
    rng_key: PRNGKey,
    score: Score,
    flow: Sampler,
    stochastic: Sampler,
    num_samples: int = 2000,
) -> FlowGap:
    """Measure the distance between samples of the probability flow and of the stochastic equation.

    Both have one law where the score is the true one of some law and steps are fine. For a learned
    score they differ, by how much its errors are not those of a score.

    Parameters
    ----------
    rng_key
        Key of the samples and of the directions.
    score
        The score, without condition.
    flow, stochastic
        A sampler of each kind, with steps so fine that theirs is not the gap.
    num_samples
        Samples of each.

    Raises
    ------
    ValueError
        If the samplers are not one of each kind.

    References
    ----------
    Deveney et al., *Closing the ODE-SDE gap in score-based diffusion models through the
    Fokker-Planck equation*, 2023, arXiv:2311.15996.

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.VP(), [0.5, 0.5], [[-1.0], [1.0]], [0.1, 0.1])
    >>> gap = lp.diagnostics.flow_gap(
    ...     jax.random.key(0), score, lp.diffusion.dpm_solver_pp(num_steps=50),
    ...     lp.diffusion.exponential_sde(num_steps=200), 1000)
    >>> gap.value < 0.2
    True
    """
    rng_key = check_key(rng_key)
    check_counts(2, num_samples=num_samples)
    if flow.adds_noise or not stochastic.adds_noise:
        raise ValueError(
            f"flow_gap: expected a sampler of the flow and one that adds noise, got {flow} and "
            f"{stochastic}."
        )
    keys = jax.random.split(rng_key, 5)
    first = generate(keys[0], score, flow, num_samples).samples
    again = generate(keys[1], score, flow, num_samples).samples
    other = generate(keys[2], score, stochastic, num_samples).samples
    gap = sliced_wasserstein(keys[3], first, other)
    floor = sliced_wasserstein(keys[4], first, again)
    return FlowGap(float(gap.value), float(gap.standard_error), float(floor.value))


class Interpolation(NamedTuple):
    """What `mode_interpolation` returns.

    Attributes
    ----------
    variance
        Variance of the predicted clean sample over the window, a mean over coordinates,
        ``[sample]``.
    suspect
        Whether it is above the threshold, ``[sample]``.
    """

    variance: np.ndarray
    suspect: np.ndarray


def mode_interpolation(
    score: Score,
    generated: Generated,
    *,
    window: tuple[float, float] = (0.02, 0.5),
    threshold: float | None = None,
    condition: Array | None = None,
) -> Interpolation:
    """Find samples between the modes of the data, which a smoothed score makes up.

    Where a sample is in the support, the predicted clean sample hardly moves late on its way; where
    it ends between two modes, the prediction swings between them.

    Parameters
    ----------
    score
        The score that the samples are from.
    generated
        From `generate` with ``trajectory=True``.
    window
        Least and largest noise over datum, ``sigma / alpha``, of the part of the trajectory that is
        looked at: below the distance of modes, above the last steps, which are all alike.
    threshold
        Variance above which a sample is suspect; by default five times the median.
    condition
        What the samples were conditioned on.

    Raises
    ------
    ValueError
        If there is no trajectory, or fewer than two of its nodes are in the window.

    References
    ----------
    Aithal et al., *Understanding hallucinations in diffusion models through mode interpolation*,
    2024, arXiv:2406.09358.

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.EDM(), [0.5, 0.5], [[-1.0], [1.0]], [0.01, 0.01])
    >>> sampler = lp.diffusion.dpm_solver_pp(num_steps=40)
    >>> generated = lp.diffusion.generate(jax.random.key(0), score, sampler, 100, trajectory=True)
    >>> lp.diagnostics.mode_interpolation(score, generated).variance.shape
    (100,)
    """
    if generated.trajectory is None:
        raise ValueError("mode_interpolation: expected samples of generate(..., trajectory=True).")
    low, high = window
    check_number("window[0]", low, above=0.0)
    check_number("window[1]", high, above=low)
    if threshold is not None:
        check_number("threshold", threshold, above=0.0)
    process = score.process
    ratio = np.asarray(process.ratio(np.asarray(generated.times)))
    inside = np.flatnonzero((ratio >= low) & (ratio <= high))
    # The clean datum itself is no noisy sample.
    inside = inside[inside < len(ratio) - 1]
    if len(inside) < 2:
        raise ValueError(
            f"window: expected at least two nodes with sigma / alpha between {low:g} and {high:g}, "
            f"got {len(inside)} of {np.sort(ratio).round(3).tolist()}. Take more steps or a wider "
            "window."
        )
    predicted = [
        _predicted(
            score, jnp.asarray(generated.trajectory[:, i]), float(generated.times[i]), condition
        )
        for i in inside
    ]
    axes = tuple(range(1, np.ndim(generated.samples)))
    variance = np.mean(np.var(np.stack(predicted), axis=0), axis=axes)
    limit = 5.0 * np.median(variance) if threshold is None else threshold
    return Interpolation(variance, variance > limit)


@jax.jit
def _denoised(score: Score, x: Array, t: Array, condition: Array | None) -> Array:
    return score.denoise(score.process.encode(x), t, condition)


def _predicted(score: Score, x: Array, t: float, condition: Array | None) -> np.ndarray:
    return np.asarray(_denoised(score, x, jnp.asarray(t, x.dtype), condition))

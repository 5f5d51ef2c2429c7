"""Heun's method of EDM, for every noise process."""

import math

import numpy as np

from langevin_ppl.base import check_counts, check_number
from langevin_ppl.diffusion.grids import check_spacing, grid
from langevin_ppl.diffusion.linear import Table, plan_of
from langevin_ppl.diffusion.sampler import Plan, Sampler
from langevin_ppl.scores.process import NoiseProcess

__all__ = ["heun"]

MOST_CHURN = math.sqrt(2.0) - 1.0
"""Most by which noise is raised before a step: to twice its variance (Karras et al., 2022)."""


def heun(
    num_steps: int = 20,
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
    spacing: str = "karras",
    denoise: bool = True,
) -> Sampler:
    r"""Heun's method with churn (EDM, algorithm 2), on ``x / alpha`` over ``sigma / alpha``.

    With :math:`\bar x = x / \alpha`, :math:`\bar\sigma = \sigma / \alpha`, noise raised to
    :math:`\hat\sigma = (1 + \gamma) \bar\sigma` first, and :math:`d = (\bar x - D) / \bar\sigma`,

    .. math::
        \hat x = \bar x + \sqrt{\hat\sigma^2 - \bar\sigma^2}\, S z, \quad
        \tilde x = \hat x + (\bar\sigma' - \hat\sigma)\, d(\hat x), \quad
        \bar x' = \hat x + (\bar\sigma' - \hat\sigma) \tfrac12 (d(\hat x) + d(\tilde x)).

    Of order 2; two evaluations a step, one on the way to the clean datum.

    Parameters
    ----------
    num_steps
        Steps, the last one from ``t_min`` to the clean datum included: ``2 num_steps - 1``
        evaluations.
    churn
        :math:`\gamma` is ``churn / num_steps``, at most :math:`\sqrt 2 - 1`. Noise is never raised
        above that of ``t_max``, where no score was learned.
    churn_min, churn_max
        Noise :math:`\bar\sigma` below and above which there is no churn.
    churn_noise
        ``S``, standard deviation of what is added; a little above 1 makes up for networks that
        remove too much.
    spacing
        Nodes uniform in ``"karras"``, ``"log_snr"``, ``"ratio"``, ``"time"``, or ``"root_time"``.
    denoise
        Whether the last step goes to the clean datum, ``x' = D``.

    Raises
    ------
    ValueError
        For an option that there is not, or numbers that are negative.

    References
    ----------
    Karras et al., *Elucidating the design space of diffusion-based generative models*, 2022,
    arXiv:2206.00364.

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.EDM(), [1.0], [[3.0]], [0.25])
    >>> sampler = lp.diffusion.heun(num_steps=18)
    >>> generated = lp.diffusion.generate(jax.random.key(0), score, sampler, 1000)
    >>> generated.num_evaluations, bool(abs(generated.samples.mean() - 3.0) < 0.07)
    (35, True)
    """
    check_counts(1, num_steps=num_steps)
    check_spacing(spacing)
    for name, value in {"churn": churn, "churn_min": churn_min, "churn_noise": churn_noise}.items():
        check_number(name, value)
        if value < 0.0:
            raise ValueError(f"{name}: expected a number of at least 0, got {value!r}.")
    if not churn_max >= churn_min:
        raise ValueError(
            f"churn_max: expected a number of at least churn_min = {churn_min:g}, got "
            f"{churn_max!r}."
        )
    return Sampler.of(
        "heun",
        _plan,
        adds_noise=churn > 0.0,
        num_steps=num_steps,
        churn=float(churn),
        churn_min=float(churn_min),
        churn_max=float(churn_max),
        churn_noise=float(churn_noise),
        spacing=spacing,
        denoise=denoise,
    )


def _plan(
    process: NoiseProcess,
    start: float | None,
    *,
    num_steps: int,
    churn: float,
    churn_min: float,
    churn_max: float,
    churn_noise: float,
    spacing: str,
    denoise: bool,
) -> Plan:
    nodes = grid(process, num_steps, spacing, start=start, denoise=denoise)
    low, next_alpha, next_ratio = nodes.ratio[:-1], nodes.alpha[1:], nodes.ratio[1:]
    gamma = np.where((churn_min <= low) & (low <= churn_max), min(churn / num_steps, MOST_CHURN), 0)
    high = np.maximum(low, np.minimum((1.0 + gamma) * low, process.ratio(process.t_max)))
    raised = high > low
    time = np.where(raised, process.time_at(high), nodes.time[:-1])
    alpha = np.where(raised, process.alpha(time), nodes.alpha[:-1])
    corrected = num_steps - nodes.ends_clean
    table = Table(num_steps + corrected, 2)
    row, euler, trapezoid = table.row, slice(0, None, 2), slice(1, None, 2)
    row.time[euler], row.scale[euler] = time, alpha / nodes.alpha[:-1]
    row.churn[euler] = alpha * np.sqrt(high**2 - low**2) * churn_noise
    row.sample[euler] = next_alpha / alpha * next_ratio / high
    row.outputs[euler, 0] = next_alpha * (1.0 - next_ratio / high)
    row.next_sample[euler] = 1.0
    # The anchor is the point before, and outputs are the predictions here and there.
    before, after = slice(None, corrected), slice(1, corrected + 1)
    half = 0.5 * (nodes.ratio[after] - high[before])
    row.time[trapezoid] = nodes.time[after]
    row.sample[trapezoid] = half / nodes.ratio[after]
    row.anchor[trapezoid] = nodes.alpha[after] / alpha[before] * (1.0 + half / high[before])
    row.outputs[trapezoid, 0] = -nodes.alpha[after] * half / nodes.ratio[after]
    row.outputs[trapezoid, 1] = -nodes.alpha[after] * half / high[before]
    is_node = np.ones(num_steps + corrected, bool)
    is_node[: 2 * corrected : 2] = False
    return plan_of(table, nodes.time, is_node)

r"""DEIS, iPNDM and GHVB: polynomials of the predicted noise.

With :math:`\bar x = x / \alpha` and :math:`\bar\sigma = \sigma / \alpha` the probability flow is
:math:`d \bar x = \varepsilon\, d\bar\sigma`, and a solver replaces :math:`\varepsilon` by a
polynomial through the values that it knows. All take one evaluation a step.
"""

import math

import numpy as np

from langevin_ppl.base import check_counts, check_number
from langevin_ppl.diffusion.grids import Grid, check_order, check_spacing, grid
from langevin_ppl.diffusion.interpolation import integrals
from langevin_ppl.diffusion.linear import Table, plan_of
from langevin_ppl.diffusion.sampler import Plan, Sampler
from langevin_ppl.scores.process import NoiseProcess

__all__ = ["deis", "ghvb", "ipndm"]

ADAMS = (1.0, 1 / 2, 5 / 12, 3 / 8)
"""Weights of backward differences in the Adams-Bashforth methods of orders 1 to 4."""


def deis(
    order: int = 3,
    num_steps: int = 20,
    *,
    spacing: str = "root_time",
    denoise: bool = True,
) -> Sampler:
    r"""DEIS with polynomials in time, tAB.

    .. math::
        x' = \frac{\alpha'}{\alpha} x + \alpha' \sum_{j=0}^r C_j \varepsilon_{-j}, \quad
        C_j = \int_t^{t'} \ell_j(\tau) \frac{d\bar\sigma}{d\tau} d\tau

    with the Lagrange polynomials :math:`\ell_j` of the times of the outputs and
    :math:`\bar\sigma = \sigma / \alpha`. The integrals are exact, by quadrature in double
    precision. Of order ``r + 1``; one evaluation a step.

    Parameters
    ----------
    order
        ``r``, degree of the polynomial: 0, which is DDIM, to 3. It begins with lower ones.
    num_steps
        Steps and evaluations, the last one from ``t_min`` to the clean datum included.
    spacing
        Nodes uniform in ``"root_time"``, as in the paper, ``"time"``, ``"log_snr"``, ``"ratio"``,
        or ``"karras"``.
    denoise
        Whether the last step goes to the clean datum, ``x' = D``.

    Raises
    ------
    ValueError
        For an option that there is not.

    References
    ----------
    Zhang, Chen, *Fast sampling of diffusion models with exponential integrator*, 2022,
    arXiv:2204.13902.

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.VP(), [1.0], [[3.0]], [0.25])
    >>> sampler = lp.diffusion.deis(order=3, num_steps=10)
    >>> generated = lp.diffusion.generate(jax.random.key(0), score, sampler, 1000)
    >>> generated.num_evaluations, bool(abs(generated.samples.mean() - 3.0) < 0.07)
    (10, True)
    """
    check_order("deis", order, 0, 3)
    check_counts(1, num_steps=num_steps)
    check_spacing(spacing)
    options = {"num_steps": num_steps, "spacing": spacing, "denoise": denoise}
    return Sampler.of("deis", _deis, adds_noise=False, order=order, **options)


def ipndm(
    order: int = 4,
    num_steps: int = 20,
    *,
    spacing: str = "karras",
    denoise: bool = True,
) -> Sampler:
    r"""Improved PNDM: steps of DDIM along a mixture of the last noises.

    .. math::
        x' = \frac{\alpha'}{\alpha} x
        + \alpha' (\bar\sigma' - \bar\sigma) \sum_j b_j \varepsilon_{-j}

    with the weights :math:`b` of Adams and Bashforth: :math:`1`; :math:`(3, -1) / 2`;
    :math:`(23, -16, 5) / 12`; :math:`(55, -59, 37, -9) / 24`. They are those of equal steps: above
    order 2 the order is reached with ``spacing="ratio"`` alone, and is 2 with others. One
    evaluation a step.

    Parameters
    ----------
    order
        Outputs that are mixed, 1 to 4. It begins with fewer.
    num_steps
        Steps and evaluations, the last one from ``t_min`` to the clean datum included.
    spacing
        Nodes uniform in ``"karras"``, ``"ratio"``, ``"log_snr"``, ``"time"``, or ``"root_time"``.
    denoise
        Whether the last step goes to the clean datum, ``x' = D``.

    Raises
    ------
    ValueError
        For an option that there is not.

    References
    ----------
    Liu, Ren, Lin, Zhao, *Pseudo numerical methods for diffusion models on manifolds*, 2022,
    arXiv:2202.09778; without its Runge-Kutta start Zhang, Chen, 2022, arXiv:2204.13902.

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.EDM(), [1.0], [[3.0]], [0.25])
    >>> sampler = lp.diffusion.ipndm(order=4, num_steps=10)
    >>> generated = lp.diffusion.generate(jax.random.key(0), score, sampler, 1000)
    >>> generated.num_evaluations, bool(abs(generated.samples.mean() - 3.0) < 0.07)
    (10, True)
    """
    check_order("ipndm", order, 1, 4)
    check_counts(1, num_steps=num_steps)
    check_spacing(spacing)
    options = {"num_steps": num_steps, "spacing": spacing, "denoise": denoise}
    return Sampler.of("ipndm", _heavy_ball, adds_noise=False, order=float(order), **options)


def ghvb(
    order: float = 2.5,
    num_steps: int = 20,
    *,
    spacing: str = "log_snr",
    denoise: bool = True,
) -> Sampler:
    r"""Generalised heavy ball: `ipndm` with momentum, against artefacts of few steps.

    The order is ``r - 1 + beta`` with a whole ``r`` and :math:`0 < \beta \le 1`. With the average
    :math:`v = \beta \varepsilon + (1 - \beta) v_{-1}`, which begins at the first noise,

    .. math::
        x' = \frac{\alpha'}{\alpha} x + \alpha' (\bar\sigma' - \bar\sigma) \Big(
        \sum_{j<r-1} b_j \varepsilon_{-j} + \gamma_{r-1} \nabla^{r-1} v \Big)

    where :math:`b` are the weights of Adams and Bashforth of order ``r - 1``, and the last backward
    difference, with its weight :math:`\gamma`, is that of the average. A whole order is `ipndm`.
    Between two of them the method is more stable than the upper one; the power of the step size
    with which its error falls is that of the upper one, with a larger factor, on nodes uniform in
    ``"ratio"``, and at most 2 on others. One evaluation a step.

    Parameters
    ----------
    order
        Above 0, at most 4. It begins with lower ones.
    num_steps
        Steps and evaluations, the last one from ``t_min`` to the clean datum included.
    spacing
        Nodes uniform in ``"log_snr"``, ``"karras"``, ``"ratio"``, ``"time"``, or ``"root_time"``.
    denoise
        Whether the last step goes to the clean datum, ``x' = D``.

    Raises
    ------
    ValueError
        For an option that there is not.

    References
    ----------
    Wizadwongsa et al., *Diffusion sampling with momentum for mitigating divergence artifacts*,
    2023, arXiv:2307.11118.

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.VP(), [1.0], [[3.0]], [0.25])
    >>> sampler = lp.diffusion.ghvb(order=1.8, num_steps=20)
    >>> generated = lp.diffusion.generate(jax.random.key(0), score, sampler, 1000)
    >>> generated.num_evaluations, bool(abs(generated.samples.mean() - 3.0) < 0.07)
    (20, True)
    """
    check_number("order", order, above=0.0)
    if order > 4.0:
        raise ValueError(f"order: expected a number of at most 4 for ghvb, got {order!r}.")
    check_counts(1, num_steps=num_steps)
    check_spacing(spacing)
    options = {"num_steps": num_steps, "spacing": spacing, "denoise": denoise}
    return Sampler.of("ghvb", _heavy_ball, adds_noise=False, order=float(order), **options)


def _deis(
    process: NoiseProcess,
    start: float | None,
    *,
    order: int,
    num_steps: int,
    spacing: str,
    denoise: bool,
) -> Plan:
    nodes = grid(process, num_steps, spacing, start=start, denoise=denoise)
    table = Table(num_steps, order + 1)
    row = table.row
    row.time[:] = nodes.time[:-1]
    row.sample[:] = nodes.alpha[1:] / nodes.alpha[:-1]
    for i, count in enumerate(nodes.orders(order + 1)):
        factors = _time_factors(process, nodes, i, i - np.arange(count))
        row.outputs[i, :count] = nodes.alpha[i + 1] * factors
    table.read_noise(process)
    return plan_of(table, nodes.time)


def _time_factors(process: NoiseProcess, nodes: Grid, step: int, known: np.ndarray) -> np.ndarray:
    """Integrals over a step of the polynomials in time, against the ratio of noise to datum."""
    high, low = nodes.ratio[step : step + 2]
    if len(known) == 1:
        return np.array([low - high])
    # In the logarithm of the ratio, where time is smoothest.
    return integrals(
        np.log(high), np.log(low), np.exp, nodes.time[known], lambda u: process.time_at(np.exp(u))
    )


def _heavy_ball(
    process: NoiseProcess,
    start: float | None,
    *,
    order: float,
    num_steps: int,
    spacing: str,
    denoise: bool,
) -> Plan:
    nodes = grid(process, num_steps, spacing, start=start, denoise=denoise)
    steps = math.ceil(order)
    share = order - (steps - 1)
    table = Table(num_steps, steps if share == 1.0 else max(steps, 2))
    row, fall = table.row, nodes.ratio[1:] - nodes.ratio[:-1]
    row.time[:] = nodes.time[:-1]
    row.sample[:] = nodes.alpha[1:] / nodes.alpha[:-1]
    for i, count in enumerate(nodes.orders(steps)):
        row.outputs[i, :count] = nodes.alpha[i + 1] * fall[i] * _heavy_ball_weights(count, share)
    momentum = np.full(num_steps, 1.0 - share)
    # The first noise has none before it, and the step to the clean datum goes along the newest.
    momentum[0] = 0.0
    if nodes.ends_clean:
        momentum[-1] = 0.0
    table.read_noise(process, momentum)
    return plan_of(table, nodes.time)


def _heavy_ball_weights(steps: int, share: float) -> np.ndarray:
    """Weights of the averages of noise, newest first; for a share of 1 those of Adams."""
    differences = [np.array([1.0])]
    for _ in range(1, steps):
        differences.append(np.convolve(differences[-1], [1.0, -1.0]))
    weights = ADAMS[steps - 1] * differences[-1]
    for weight, difference in zip(ADAMS, differences[:-1], strict=False):
        # A noise is what is new in its average, over its share.
        noise = np.convolve(difference, [1.0, share - 1.0]) / share
        weights[: len(noise)] += weight * noise
    return weights

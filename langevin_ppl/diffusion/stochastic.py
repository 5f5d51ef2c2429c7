r"""Solvers of the reverse equation, which add noise on the way.

For every rate :math:`\eta \ge 0` of the noise the equation

.. math::
    dx = \left( f x - \tfrac{1 + \eta}{2} g^2 \nabla \log p_t \right) dt + \sqrt{\eta}\, g\, dW ,

run from the noise to the data, has the marginal laws of the forward process: with 1 it is the
reverse of that process, and with 0 the probability flow.
"""

import numpy as np

from langevin_ppl.base import check_counts, check_number
from langevin_ppl.diffusion.exponential import factors, frozen
from langevin_ppl.diffusion.grids import check_order, check_spacing, grid
from langevin_ppl.diffusion.linear import Table, plan_of
from langevin_ppl.diffusion.sampler import Plan, Sampler
from langevin_ppl.scores.process import NoiseProcess

__all__ = ["ancestral", "euler_maruyama", "exponential_sde"]


def euler_maruyama(
    num_steps: int = 100, *, eta: float = 1.0, spacing: str = "log_snr", denoise: bool = True
) -> Sampler:
    r"""Euler and Maruyama's scheme of the reverse equation.

    .. math::
        x' = x - \Delta \left( f x - \tfrac{1 + \eta}{2} g^2 s(x, t) \right)
        + \sqrt{\eta \Delta}\, g\, z, \qquad \Delta = t - t' ,

    with the score :math:`s` and the rates :math:`f, g^2` at the node that is left. The law at the
    end is biased by the first order of the steps, in its mean too. One evaluation a step.

    Parameters
    ----------
    num_steps
        Steps and evaluations, the last one from ``t_min`` to the clean datum included. Below about
        twenty the first steps may be unstable.
    eta
        Rate of the noise.
    spacing
        Nodes uniform in ``"log_snr"``, ``"time"``, as in the paper, ``"root_time"``, ``"ratio"``,
        or ``"karras"``.
    denoise
        Whether the last step goes to the clean datum, ``x' = D``.

    Raises
    ------
    ValueError
        For an option that there is not.

    References
    ----------
    Song et al., *Score-based generative modeling through stochastic differential equations*, 2021,
    arXiv:2011.13456; Anderson, *Reverse-time diffusion equation models*, 1982.

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.VP(), [1.0], [[3.0]], [0.25])
    >>> sampler = lp.diffusion.euler_maruyama(100)
    >>> generated = lp.diffusion.generate(jax.random.key(0), score, sampler, 1000)
    >>> generated.num_evaluations, bool(abs(generated.samples.mean() - 3.0) < 0.1)
    (100, True)
    """
    eta = _checked(num_steps, eta, spacing)
    return Sampler.of(
        "euler_maruyama",
        _euler,
        adds_noise=eta > 0.0,
        num_steps=num_steps,
        eta=eta,
        spacing=spacing,
        denoise=denoise,
    )


def exponential_sde(
    num_steps: int = 50,
    order: int = 2,
    *,
    eta: float = 1.0,
    corrected: bool = True,
    spacing: str = "log_snr",
    denoise: bool = True,
) -> Sampler:
    r"""Stochastic exponential integrator, SA-Solver: exact but for the predicted datum.

    With :math:`h = \lambda' - \lambda`, :math:`\lambda = \log(\alpha / \sigma)`, the reverse
    equation from one node to the next is

    .. math::
        x' = \frac{\sigma'}{\sigma} e^{-\eta h} x
        + \alpha' \int_\lambda^{\lambda'} (1 + \eta) e^{(1 + \eta)(\tau - \lambda')} D(\tau) d\tau
        + \sigma' \sqrt{1 - e^{-2 \eta h}}\, z ,

    and :math:`D` is replaced by the polynomial through the last ``order`` outputs. Drift and noise
    of the linear part are exact: data that are one point are reached without error, and the mean
    of Gaussian data has none beyond that of the start. Order 1 is `ancestral` with ``eta=1``, and
    DDIM with 0.

    Corrected, the point that was reached is moved to where the polynomial through the new output
    too would have led, with the same noise, before the next step is made. That costs no evaluation,
    and takes the bias of the spread from the first order to the second where ``order`` is 1. One
    evaluation a step.

    Parameters
    ----------
    num_steps
        Steps and evaluations, the last one from ``t_min`` to the clean datum included.
    order
        1, 2 or 3; it begins with lower ones. With fewer than about twenty steps the polynomials go
        too far: take order 1, or ``dpm_solver_pp(2, variant="sde")``, whose weights are smaller.
    eta
        Rate of the noise.
    corrected
        Whether points are corrected; those of a trajectory are the predicted ones.
    spacing
        Nodes uniform in ``"log_snr"``, ``"time"``, ``"root_time"``, ``"ratio"``, or ``"karras"``.
        The first suits polynomials best.
    denoise
        Whether the last step goes to the clean datum, ``x' = D``.

    Raises
    ------
    ValueError
        For an option that there is not.

    References
    ----------
    Xue et al., *SA-Solver: stochastic Adams solver for fast sampling of diffusion models*, 2023,
    arXiv:2309.05019. Order 1: Zhang, Tao, Chen, *gDDIM: generalized denoising diffusion implicit
    models*, 2022, arXiv:2206.05564; SDE-DPM-Solver++ of Lu et al., 2022, arXiv:2211.01095. With
    predicted noise in the place of the datum: Gonzalez et al., *SEEDS: exponential SDE solvers for
    fast high-quality sampling from diffusion models*, 2023, arXiv:2305.14267.

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.EDM(), [1.0], [[3.0]], [0.25])
    >>> sampler = lp.diffusion.exponential_sde(30)
    >>> generated = lp.diffusion.generate(jax.random.key(0), score, sampler, 1000)
    >>> generated.num_evaluations, bool(abs(generated.samples.mean() - 3.0) < 0.07)
    (30, True)
    """
    eta = _checked(num_steps, eta, spacing)
    check_order("exponential_sde", order, 1, 3)
    return Sampler.of(
        "exponential_sde",
        _exponential,
        adds_noise=eta > 0.0,
        num_steps=num_steps,
        order=order,
        eta=eta,
        corrected=bool(corrected),
        spacing=spacing,
        denoise=denoise,
    )


def ancestral(
    num_steps: int = 100,
    *,
    variance: str = "lower",
    spacing: str = "log_snr",
    denoise: bool = True,
) -> Sampler:
    r"""Ancestral sampling (DDPM), for every Gaussian process.

    A step draws from :math:`q(x' \mid x, x_0 = D)`, the law of the forward process between its two
    ends. With the variance :math:`v = \sigma^2 - (\alpha / \alpha')^2 \sigma'^2` of the forward
    step,

    .. math::
        x' = \frac{\alpha \sigma'^2}{\alpha' \sigma^2} x + \frac{\alpha' v}{\sigma^2} D
        + \frac{\sigma'}{\sigma} \sqrt{v}\, z
        = \frac{\alpha'}{\alpha} \left( x + v\, s(x, t) \right)
        + \frac{\sigma'}{\sigma} \sqrt{v}\, z ,

    whose mean is :math:`(x + \beta s) / \sqrt{1 - \beta}` on `VP` and
    :math:`x + (\sigma^2 - \sigma'^2) s` on `VE`. The mean of Gaussian data has no error beyond that
    of the start; their spread is biased by the first order of the steps. One evaluation a step.

    Parameters
    ----------
    num_steps
        Steps and evaluations, the last one from ``t_min`` to the clean datum included.
    variance
        ``"lower"``: that of the formula, right where the datum is known, too small otherwise.
        ``"upper"``: :math:`v`, right for standard normal data on `VP`, too large for narrower ones.
    spacing
        Nodes uniform in ``"log_snr"``, ``"time"``, as in the papers, ``"root_time"``, ``"ratio"``,
        or ``"karras"``.
    denoise
        Whether the last step goes to the clean datum, ``x' = D``.

    Raises
    ------
    ValueError
        For an option that there is not.

    References
    ----------
    Ho, Jain, Abbeel, *Denoising diffusion probabilistic models*, 2020, arXiv:2006.11239; Song et
    al., *Score-based generative modeling through stochastic differential equations*, 2021,
    arXiv:2011.13456, appendix F.

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.VP(), [1.0], [[3.0]], [0.25])
    >>> sampler = lp.diffusion.ancestral(100, variance="upper")
    >>> generated = lp.diffusion.generate(jax.random.key(0), score, sampler, 1000)
    >>> generated.num_evaluations, bool(abs(generated.samples.mean() - 3.0) < 0.07)
    (100, True)
    """
    _checked(num_steps, 1.0, spacing)
    if variance not in ("lower", "upper"):
        raise ValueError(f"variance: expected lower or upper, got {variance!r}.")
    return Sampler.of(
        "ancestral",
        _ancestral,
        adds_noise=True,
        num_steps=num_steps,
        variance=variance,
        spacing=spacing,
        denoise=denoise,
    )


def _checked(num_steps: int, eta: float, spacing: str) -> float:
    check_counts(1, num_steps=num_steps)
    check_spacing(spacing)
    check_number("eta", eta)
    if eta < 0.0:
        raise ValueError(f"eta: expected a number of at least 0, got {eta!r}.")
    return float(eta)


def _euler(
    process: NoiseProcess,
    start: float | None,
    *,
    num_steps: int,
    eta: float,
    spacing: str,
    denoise: bool,
) -> Plan:
    nodes = grid(process, num_steps, spacing, start=start, denoise=denoise)
    f, square = process.rates(nodes.time[:-1])
    away = nodes.time[:-1] - nodes.time[1:]
    pull = 0.5 * (1.0 + eta) * square * away / nodes.sigma[:-1] ** 2
    table = Table(num_steps)
    row = table.row
    row.time[:] = nodes.time[:-1]
    row.sample[:], row.outputs[:, 0] = 1.0 - f * away - pull, pull * nodes.alpha[:-1]
    row.noise[:] = np.sqrt(eta * square * away)
    if nodes.ends_clean:
        row.sample[-1], row.outputs[-1, 0], row.noise[-1] = 0.0, 1.0, 0.0
    return plan_of(table, nodes.time)


def _exponential(
    process: NoiseProcess,
    start: float | None,
    *,
    num_steps: int,
    order: int,
    eta: float,
    corrected: bool,
    spacing: str,
    denoise: bool,
) -> Plan:
    nodes = grid(process, num_steps, spacing, start=start, denoise=denoise)
    orders, alpha = nodes.orders(order), nodes.alpha
    table = frozen(nodes, eta, order + corrected)
    row = table.row
    for i in range(num_steps):
        known = i - np.arange(orders[i])
        if len(known) > 1:
            row.outputs[i, : len(known)] = alpha[i + 1] * factors(nodes, i, known, eta)
    if corrected:
        predicted = row.outputs[:, :order].copy()
        for i in range(1, num_steps):
            # What the polynomial through one more output would have added to the point.
            known, more = i - np.arange(orders[i - 1] + 1), np.zeros(order + 1)
            more[: len(known)] = alpha[i] * factors(nodes, i - 1, known, eta)
            more[1:] -= predicted[i - 1]
            row.outputs[i] += row.sample[i] * more
    return plan_of(table, nodes.time)


def _ancestral(
    process: NoiseProcess,
    start: float | None,
    *,
    num_steps: int,
    variance: str,
    spacing: str,
    denoise: bool,
) -> Plan:
    nodes = grid(process, num_steps, spacing, start=start, denoise=denoise)
    table = frozen(nodes, 1.0)
    if variance == "upper":
        kept = nodes.alpha[:-1] / nodes.alpha[1:] * nodes.sigma[1:]
        table.row.noise[:] = np.sqrt(nodes.sigma[:-1] ** 2 - kept**2)
        table.row.noise[nodes.sigma[1:] == 0.0] = 0.0
    return plan_of(table, nodes.time)

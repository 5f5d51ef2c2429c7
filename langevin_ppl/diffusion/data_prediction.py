"""DPM-Solver++ and UniPC: polynomials of the predicted clean datum in the signal-to-noise ratio."""

import numpy as np

from langevin_ppl.base import check_counts, check_number
from langevin_ppl.diffusion.exponential import factors, frozen
from langevin_ppl.diffusion.grids import Grid, check_order, check_spacing, grid
from langevin_ppl.diffusion.linear import Table, plan_of
from langevin_ppl.diffusion.sampler import Plan, Sampler
from langevin_ppl.scores.process import NoiseProcess

__all__ = ["dpm_solver_pp", "unipc"]


def dpm_solver_pp(
    order: int = 2,
    num_steps: int = 20,
    *,
    variant: str = "multistep",
    eta: float = 1.0,
    spacing: str = "log_snr",
    denoise: bool = True,
    lower_order_final: bool = True,
) -> Sampler:
    r"""DPM-Solver++: 1, 2M, 3M, 2S, and SDE-1, 2M, 3M.

    With :math:`h = \lambda' - \lambda`, outputs :math:`D, D_{-1}` and :math:`r_0 = h_{-1} / h`:

    - order 1, which is DDIM: :math:`x' = \frac{\sigma'}{\sigma} x + \alpha' (1 - e^{-h}) D`;
    - 2M: there :math:`D + (D - D_{-1}) / (2 r_0)` in the place of :math:`D`;
    - 3M: the integral of the parabola through three outputs. Published code has half of its second
      derivative, and with that order 2;
    - 2S: there the output of a point half way in :math:`\lambda`, which a step of order 1 reaches.

    The SDE has the same marginal laws and adds noise. With a rate :math:`\eta`, 1 for the reverse
    of the forward process and 0 for the flow,

    .. math::
        x' = \frac{\sigma'}{\sigma} e^{-\eta h} x + \alpha' (1 - e^{-(1 + \eta) h}) D
        + \sigma' \sqrt{1 - e^{-2 \eta h}} z,

    with the outputs of order 2 and 3 combined as above. The noise limits what they gain: the spread
    of Gaussian data is biased by the first, second and again the second order of the steps.

    Parameters
    ----------
    order
        1, 2 or 3. Multistep methods begin with lower orders; 3 has no singlestep variant here. Of
        fewer than about ten steps 2 is better than 3.
    num_steps
        Steps, the last one from ``t_min`` to the clean datum included. A step is one evaluation;
        with ``singlestep`` of order 2 it is two, the last one one.
    variant
        ``"multistep"``, ``"singlestep"`` or ``"sde"``.
    eta
        Rate of the noise of ``"sde"``.
    spacing
        Nodes uniform in ``"log_snr"``, ``"time"``, ``"root_time"``, ``"ratio"``, or ``"karras"``.
    denoise
        Whether the last step goes to the clean datum, ``x' = D``.
    lower_order_final
        Whether the last of fewer than 15 steps of a multistep method have lower orders.

    Raises
    ------
    ValueError
        For an option that there is not.

    References
    ----------
    Lu et al., *DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models*,
    2022, arXiv:2211.01095.

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.VP(), [1.0], [[3.0]], [0.25])
    >>> sampler = lp.diffusion.dpm_solver_pp(order=3, num_steps=12)
    >>> generated = lp.diffusion.generate(jax.random.key(0), score, sampler, 1000)
    >>> generated.num_evaluations, bool(abs(generated.samples.mean() - 3.0) < 0.07)
    (12, True)
    """
    planners = {"multistep": _multistep, "singlestep": _singlestep, "sde": _multistep}
    if variant not in planners:
        raise ValueError(f"variant: expected one of {', '.join(planners)}, got {variant!r}.")
    if variant == "singlestep":
        check_order("singlestep", order, 1, 2, "Take variant='multistep'.")
    check_order("dpm_solver_pp", order, 1, 3)
    check_counts(1, num_steps=num_steps)
    check_spacing(spacing)
    if variant == "sde":
        check_number("eta", eta, above=0.0)
    return Sampler.of(
        "dpm_solver_pp",
        planners[variant] if order > 1 else _multistep,
        adds_noise=variant == "sde",
        order=order,
        num_steps=num_steps,
        variant=variant,
        eta=float(eta),
        spacing=spacing,
        denoise=denoise,
        lower_order_final=lower_order_final,
    )


def unipc(
    order: int = 3,
    num_steps: int = 20,
    *,
    variant: str = "bh2",
    spacing: str = "log_snr",
    denoise: bool = True,
    lower_order_final: bool = True,
) -> Sampler:
    r"""UniPC: a multistep predictor, and a corrector that costs no evaluation.

    The point :math:`x^p_i` that the predictor reaches is where the model is evaluated. Its output
    :math:`D_i` then makes a better point of the one before,

    .. math::
        x^c_i = \frac{\sigma_i}{\sigma_{i-1}} x^c_{i-1} + \alpha_i \sum_{j=0}^p w_j D_{i-j}, \quad
        x^p_{i+1} = \frac{\sigma_{i+1}}{\sigma_i} x^c_i + \alpha_{i+1} \sum_{j=0}^{p-1} v_j D_{i-j},

    with :math:`v, w` the integrals of the polynomials through the outputs. The last point is not
    corrected, and those of a trajectory are the predicted ones. Of order ``p + 1``; one evaluation
    a step.

    Parameters
    ----------
    order
        ``p``, outputs that the predictor reads: 1, 2 or 3. It begins with lower ones. Of fewer than
        about ten steps 2 is better than 3.
    num_steps
        Steps and evaluations, the last one from ``t_min`` to the clean datum included.
    variant
        ``"bh1"`` or ``"bh2"``: :math:`B = h` or :math:`1 - e^{-h}` in the formulas with two
        outputs, where the integral of :math:`\tau - \lambda` is taken as :math:`h B / 2`. Those
        with more outputs do not depend on it.
    spacing
        Nodes uniform in ``"log_snr"``, ``"time"``, ``"root_time"``, ``"ratio"``, or ``"karras"``.
    denoise
        Whether the last step goes to the clean datum, ``x' = D``.
    lower_order_final
        Whether the last of fewer than 15 steps have lower orders.

    Raises
    ------
    ValueError
        For an option that there is not.

    References
    ----------
    Zhao et al., *UniPC: a unified predictor-corrector framework for fast sampling of diffusion
    models*, 2023, arXiv:2302.04867.

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.EDM(), [1.0], [[3.0]], [0.25])
    >>> sampler = lp.diffusion.unipc(order=2, num_steps=10)
    >>> generated = lp.diffusion.generate(jax.random.key(0), score, sampler, 1000)
    >>> generated.num_evaluations, bool(abs(generated.samples.mean() - 3.0) < 0.07)
    (10, True)
    """
    if variant not in ("bh1", "bh2"):
        raise ValueError(f"variant: expected bh1 or bh2, got {variant!r}.")
    check_order("unipc", order, 1, 3)
    check_counts(1, num_steps=num_steps)
    check_spacing(spacing)
    return Sampler.of(
        "unipc",
        _predict_and_correct,
        adds_noise=False,
        order=order,
        num_steps=num_steps,
        variant=variant,
        spacing=spacing,
        denoise=denoise,
        lower_order_final=lower_order_final,
    )


def _multistep(
    process: NoiseProcess,
    start: float | None,
    *,
    order: int,
    num_steps: int,
    variant: str,
    eta: float,
    spacing: str,
    denoise: bool,
    lower_order_final: bool,
) -> Plan:
    nodes = grid(process, num_steps, spacing, start=start, denoise=denoise)
    eta = eta if variant == "sde" else 0.0
    table = frozen(nodes, eta, order)
    for i, count in enumerate(nodes.orders(order, lower_order_final)):
        if count > 1:
            found = _published(nodes, i, i - np.arange(count), eta)
            table.row.outputs[i, :count] = nodes.alpha[i + 1] * found
    return plan_of(table, nodes.time)


def _singlestep(
    process: NoiseProcess,
    start: float | None,
    *,
    order: int,
    num_steps: int,
    variant: str,
    eta: float,
    spacing: str,
    denoise: bool,
    lower_order_final: bool,
) -> Plan:
    del order, variant, eta, lower_order_final
    nodes = grid(process, num_steps, spacing, start=start, denoise=denoise)
    ratio, paired = nodes.ratio, num_steps - nodes.ends_clean
    middle = process.time_at(np.sqrt(ratio[:paired] * ratio[1 : paired + 1]))
    # Where the first row of a step goes: half way, or at once to the clean datum.
    alpha, sigma = nodes.alpha[1:].copy(), nodes.sigma[1:].copy()
    alpha[:paired], sigma[:paired] = process.alpha(middle), process.sigma(middle)
    table = Table(num_steps + paired)
    row, first, second = table.row, slice(0, None, 2), slice(1, None, 2)
    row.time[first], row.time[second] = nodes.time[:num_steps], middle
    row.sample[first] = sigma / nodes.sigma[:-1]
    row.outputs[first, 0] = alpha * (1.0 - sigma / alpha / ratio[:-1])
    row.next_sample[first] = 1.0
    row.anchor[second] = (nodes.sigma[1:] / nodes.sigma[:-1])[:paired]
    row.outputs[second, 0] = (nodes.alpha[1:] * (1.0 - ratio[1:] / ratio[:-1]))[:paired]
    is_node = np.ones(num_steps + paired, bool)
    is_node[: 2 * paired : 2] = False
    return plan_of(table, nodes.time, is_node)


def _predict_and_correct(
    process: NoiseProcess,
    start: float | None,
    *,
    order: int,
    num_steps: int,
    variant: str,
    spacing: str,
    denoise: bool,
    lower_order_final: bool,
) -> Plan:
    nodes = grid(process, num_steps, spacing, start=start, denoise=denoise)
    alpha, shrink = nodes.alpha, nodes.sigma[1:] / nodes.sigma[:-1]
    orders = nodes.orders(order, lower_order_final)
    table = frozen(nodes, history=order + 1)
    row = table.row
    for i in range(num_steps):
        if orders[i] > 1:
            found = _published(nodes, i, i - np.arange(orders[i]), rule=variant)
            row.outputs[i, : orders[i]] = alpha[i + 1] * found
    # The anchor is the corrected point; that of the first row is where it starts.
    row.sample[1:], row.next_sample[0] = 0.0, 1.0
    row.anchor[1:], row.next_anchor[1:] = shrink[1:] * shrink[:-1], shrink[:-1]
    for i in range(1, num_steps):
        count = orders[i - 1] + 1
        found = _published(nodes, i - 1, i - np.arange(count), rule=variant)
        row.next_outputs[i, :count] = alpha[i] * found
        row.outputs[i, :count] += shrink[i] * alpha[i] * found
    return plan_of(table, nodes.time)


def _published(
    nodes: Grid, step: int, known: np.ndarray, eta: float = 0.0, rule: str = "bh2"
) -> np.ndarray:
    """Factors of two outputs as they are published; those of more are the integrals."""
    if len(known) > 2:
        return factors(nodes, step, known, eta)
    low, high = nodes.log_snr[step : step + 2]
    whole = -np.expm1(-(1.0 + eta) * (high - low))
    # Half of B h in the place of the integral of the line, with which it agrees to its order.
    rise = 0.5 * (whole if rule == "bh2" else high - low) * (high - low)
    slope = rise / (nodes.log_snr[known[0]] - nodes.log_snr[known[1]])
    return np.where(known == step, whole, 0.0) + slope * np.array([1.0, -1.0])

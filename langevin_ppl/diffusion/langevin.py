"""Samplers that run Langevin chains at the nodes of a grid."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from langevin_ppl.base import Array, PRNGKey, check_counts, check_number
from langevin_ppl.diffusion.chains import chain, check_kernel
from langevin_ppl.diffusion.grids import check_spacing, grid
from langevin_ppl.diffusion.linear import Carry, Linear, Row, Table, plan_of
from langevin_ppl.diffusion.sampler import Plan, Sampler
from langevin_ppl.diffusion.stochastic import ancestral
from langevin_ppl.kernels import Kernel, ula
from langevin_ppl.scores.process import NoiseProcess
from langevin_ppl.scores.score import Score

__all__ = ["annealed_langevin", "predictor_corrector"]


def predictor_corrector(
    predictor: Sampler | None = None,
    *,
    kernel: Kernel = ula,
    corrector_steps: int = 1,
    signal_to_noise: float = 0.16,
) -> Sampler:
    r"""Langevin steps at the nodes of another sampler, which pull its law to what it should be.

    At a node with noise :math:`\sigma` the kernel makes ``corrector_steps`` steps of size
    :math:`h = 2 r^2 \sigma^2`, ``r`` the ratio of signal to noise; by default

    .. math:: x \leftarrow x + h\, s(x, t) + \sqrt{2 h}\, \xi .

    Then the predictor moves on, by the score of the last of them. The law at the end is biased by
    the predictor, less so than without, and by the kernel: ULA's relative bias of a variance is
    ``r^2``, at the last level alone.

    The paper has :math:`h = 2 r^2 \|\xi\|^2 / \|s\|^2`, with norms averaged over samples. Here the
    root mean square of the score's coordinates is taken as :math:`1 / \sigma`, which it is where
    noise prevails, and which bounds it elsewhere. So samples do not depend on each other; and a
    chain whose step size depends on where it is would leave another law, proportional to
    :math:`p_t \|s\|^2`.

    Parameters
    ----------
    predictor
        A sampler whose steps depend on one evaluation each: ``ancestral(100)``, the default,
        `euler_maruyama`, or one of the flow such as ``dpm_solver_pp(1, 100)``. To multistep methods
        the noise of a corrector looks like a change of the prediction.
    kernel
        An overdamped kernel. With a Metropolis test it needs a score with a potential.
    corrector_steps
        Steps of the kernel at a node, the one at ``t_max`` included; as many evaluations and the
        predictor's.
    signal_to_noise
        ``r``, below 1; 0.16 is the paper's for images. In few dimensions larger ones work better.

    Raises
    ------
    ValueError
        For options that do not fit; when it is planned, for a predictor with stages or a memory;
        when it runs, for a kernel with a Metropolis test and a score without a potential.

    References
    ----------
    Song et al., *Score-based generative modeling through stochastic differential equations*, 2021,
    arXiv:2011.13456.

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.VE(), [1.0], [[3.0]], [0.25])
    >>> predictor = lp.diffusion.ancestral(50)
    >>> sampler = lp.diffusion.predictor_corrector(predictor, kernel=lp.ula)
    >>> generated = lp.diffusion.generate(jax.random.key(0), score, sampler, 1000)
    >>> generated.num_evaluations, bool(abs(generated.samples.mean() - 3.0) < 0.07)
    (100, True)
    """
    predictor = ancestral() if predictor is None else predictor
    if not isinstance(predictor, Sampler):
        raise ValueError(
            "predictor: expected a sampler such as langevin_ppl.diffusion.ancestral(100), got "
            f"{predictor!r}."
        )
    check_kernel(kernel)
    check_counts(1, corrector_steps=corrector_steps)
    check_number("signal_to_noise", signal_to_noise, above=0.0, below=1.0)
    return Sampler.of(
        "predictor_corrector",
        _predict_and_correct,
        adds_noise=True,
        predictor=predictor,
        kernel=kernel,
        corrector_steps=corrector_steps,
        signal_to_noise=float(signal_to_noise),
    )


def annealed_langevin(
    num_levels: int = 100,
    steps_per_level: int = 5,
    *,
    step_size: float = 0.5,
    kernel: Kernel = ula,
    spacing: str = "log_snr",
    denoise: bool = True,
) -> Sampler:
    r"""Annealed Langevin dynamics (NCSN): chains at falling levels of noise, each from the last.

    At a level with noise :math:`\sigma` the kernel makes ``steps_per_level`` steps of size
    :math:`h \sigma^2`; by default

    .. math:: x \leftarrow x + h \sigma^2 s(x, t) + \sqrt{2 h}\, \sigma\, \xi .

    Between levels :math:`x / \alpha` stays. The law at the end is that of the last level, smoothed
    by its noise or denoised, as far as chains keep up with the levels: modes have the right weights
    only where there are enough steps at the levels at which they part.

    Parameters
    ----------
    num_levels
        Levels from ``t_max`` to ``t_min``.
    steps_per_level
        Steps of the kernel at each. There is one more evaluation a level.
    step_size
        ``h``, below 2: the kernel's step size in the frame of the noise. The papers' step size is
        :math:`2 h \sigma^2`, with an ``h`` of 0.1 in the first and 0.03 in the second, which needs
        many steps; ULA's bias, a factor :math:`1 / (1 - h / 2)` of the noise, is denoised away.
    kernel
        An overdamped kernel. With a Metropolis test it needs a score with a potential.
    spacing
        Levels uniform in ``"log_snr"``, as in the papers, ``"time"``, ``"root_time"``,
        ``"ratio"``, or ``"karras"``.
    denoise
        Whether it ends with the clean datum that is predicted at ``t_min``.

    Raises
    ------
    ValueError
        For options that do not fit; when it runs, for a kernel with a Metropolis test and a score
        without a potential.

    References
    ----------
    Song, Ermon, *Generative modeling by estimating gradients of the data distribution*, 2019,
    arXiv:1907.05600; Song, Ermon, *Improved techniques for training score-based generative models*,
    2020, arXiv:2006.09011; the last step: Jolicoeur-Martineau et al., 2020, arXiv:2009.05475.

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.VE(), [1.0], [[3.0]], [0.25])
    >>> sampler = lp.diffusion.annealed_langevin(40, 5, kernel=lp.tula)
    >>> generated = lp.diffusion.generate(jax.random.key(0), score, sampler, 1000)
    >>> generated.num_evaluations, bool(abs(generated.samples.mean() - 3.0) < 0.1)
    (240, True)
    """
    check_counts(1, num_levels=num_levels, steps_per_level=steps_per_level)
    check_number("step_size", step_size, above=0.0, below=2.0)
    check_kernel(kernel)
    check_spacing(spacing)
    return Sampler.of(
        "annealed_langevin",
        _anneal,
        adds_noise=True,
        num_levels=num_levels,
        steps_per_level=steps_per_level,
        step_size=float(step_size),
        kernel=kernel,
        spacing=spacing,
        denoise=denoise,
    )


class _Row(NamedTuple):
    """Steps of a kernel, and a row of the predictor.

    Attributes
    ----------
    predictor
        Coefficients of the predictor, with the time.
    step_size
        In the frame of the noise.
    count
        How many steps.
    """

    predictor: Row
    step_size: Any
    count: Any


@dataclasses.dataclass(frozen=True)
class _Corrected:
    """Mover that makes steps of a kernel before each of a table."""

    predictor: Linear
    kernel: Kernel

    def init(self, x: Array) -> Carry:
        """Carry of one sample that starts at ``x``."""
        return self.predictor.init(x)

    def step(
        self, score: Score, condition: Any, rng_key: PRNGKey, carry: Carry, row: _Row
    ) -> Carry:
        """Move one sample at its level, and then to the next."""
        key_chain, key_predictor = jax.random.split(rng_key)
        time = row.predictor.time
        x, clean = chain(
            self.kernel, score, condition, key_chain, carry.sample, time, row.step_size, row.count
        )
        return self.predictor.move(clean, x, key_predictor, carry, row.predictor)

    def read(self, carry: Carry) -> Array:
        """Get the sample of a carry."""
        return self.predictor.read(carry)


def _corrected(plan: Plan, kernel: Kernel, step_size: float, count: int) -> Plan:
    """Plan with steps of a kernel before each of its rows."""
    number = len(plan.is_node)
    rows = _Row(plan.rows, np.full(number, step_size), np.full(number, count, np.int32))
    evaluations = number * (1 + count * kernel.gradients_per_step)
    return plan._replace(
        mover=_Corrected(plan.mover, kernel),  # pyright: ignore[reportArgumentType]
        rows=rows,
        num_evaluations=evaluations,
    )


def _predict_and_correct(
    process: NoiseProcess,
    start: float | None,
    *,
    predictor: Sampler,
    kernel: Kernel,
    corrector_steps: int,
    signal_to_noise: float,
) -> Plan:
    plan = predictor.plan(process, start)
    mover = plan.mover
    direct = isinstance(mover, Linear) and mover.history == 1 and not mover.churned
    if not (direct and np.all(plan.is_node)):
        raise ValueError(
            "predictor: expected a sampler whose steps depend on one evaluation each, such as "
            "ancestral(100), euler_maruyama(100) or dpm_solver_pp(1, 100), because the corrector "
            f"takes a sample away from where it came from, got {predictor}."
        )
    return _corrected(plan, kernel, 2.0 * signal_to_noise**2, corrector_steps)


def _anneal(
    process: NoiseProcess,
    start: float | None,
    *,
    num_levels: int,
    steps_per_level: int,
    step_size: float,
    kernel: Kernel,
    spacing: str,
    denoise: bool,
) -> Plan:
    # The last row denoises, or stays where it is: at the last level.
    nodes = grid(process, num_levels, spacing, start=start)
    table = Table(num_levels)
    row = table.row
    row.time[:] = nodes.time[:-1]
    row.sample[:-1] = nodes.alpha[1:-1] / nodes.alpha[:-2]
    row.sample[-1], row.outputs[-1, 0] = 1.0 - denoise, denoise
    return _corrected(plan_of(table, nodes.time), kernel, step_size, steps_per_level)

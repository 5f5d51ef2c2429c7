"""The probability flow by adaptive Runge-Kutta methods of diffrax."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array, PRNGKey, check_counts, check_number
from langevin_ppl.diffusion.grids import grid
from langevin_ppl.diffusion.sampler import Plan, Sampler
from langevin_ppl.scores.process import NoiseProcess
from langevin_ppl.scores.score import Score

__all__ = ["probability_flow"]

FIRST_STEP = 0.1
"""Length of the first step in ``log_snr``, in which the flow begins by decaying at rate 1."""


def probability_flow(
    rtol: float = 1e-5,
    atol: float = 1e-5,
    *,
    solver: Any = None,
    max_steps: int = 1000,
    denoise: bool = True,
) -> Sampler:
    r"""Probability flow with steps that follow the error.

    .. math::
        \frac{d \bar x}{d \lambda} = D(\alpha \bar x, t) - \bar x, \quad
        \bar x = x / \alpha, \quad \lambda = \log(\alpha / \sigma),

    in which the linear part is the same for all noise processes. Every sample has steps of its own,
    and a batch takes as long as the slowest of it. ``Generated.num_evaluations`` is the mean over
    samples of what they needed, rejected steps included.

    Parameters
    ----------
    rtol, atol
        Relative and absolute tolerance of a step. Single precision does not reach below 1e-6.
    solver
        An explicit Runge-Kutta method of diffrax with an estimate of its error; ``Tsit5()`` by
        default.
    max_steps
        Most steps. A sample that needs more is NaN, and `generate` says so.
    denoise
        Whether a last evaluation at ``t_min`` gives the clean datum.

    Raises
    ------
    ImportError
        If diffrax is not installed.
    ValueError
        For a number that is not positive.
    TypeError
        For a solver of another kind.

    References
    ----------
    Song et al., *Score-based generative modeling through stochastic differential equations*, 2021,
    arXiv:2011.13456; Kidger, *On neural differential equations*, 2022, arXiv:2202.02435.

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.VP(), [1.0], [[3.0]], [0.25])
    >>> sampler = lp.diffusion.probability_flow(rtol=1e-3, atol=1e-3)
    >>> generated = lp.diffusion.generate(jax.random.key(0), score, sampler, 1000)
    >>> 20 < generated.num_evaluations < 200, bool(abs(generated.samples.mean() - 3.0) < 0.07)
    (True, True)
    """
    try:
        import diffrax
    except ImportError as error:
        raise ImportError(
            "probability_flow solves with diffrax: pip install 'langevin-ppl[diffusion]'. Solvers "
            "with fixed steps, such as heun, do without."
        ) from error
    check_number("rtol", rtol, above=0.0)
    check_number("atol", atol, above=0.0)
    check_counts(1, max_steps=max_steps)
    solver = diffrax.Tsit5() if solver is None else solver
    if not (
        isinstance(solver, diffrax.AbstractERK)
        and isinstance(solver, diffrax.AbstractAdaptiveSolver)
    ):
        raise TypeError(
            "solver: expected an explicit Runge-Kutta method of diffrax with an estimate of its "
            f"error, such as diffrax.Dopri8(), got {solver!r}."
        )
    return Sampler.of(
        "probability_flow",
        _plan,
        adds_noise=False,
        rtol=float(rtol),
        atol=float(atol),
        solver=solver,
        max_steps=max_steps,
        denoise=denoise,
    )


class _Span(NamedTuple):
    """Ends of the way: logarithms of signal to noise, factors of the datum, and the last time."""

    log_snr: Any
    next_log_snr: Any
    alpha: Any
    next_alpha: Any
    next_time: Any


class _Carry(NamedTuple):
    sample: Array
    num_evaluations: Array


@dataclasses.dataclass(frozen=True)
class _Adaptive:
    """Mover that goes the whole way in one row."""

    rtol: float
    atol: float
    solver: Any
    max_steps: int
    denoise: bool

    def init(self, x: Array) -> _Carry:
        """Carry of one sample that starts at ``x``."""
        return _Carry(x, jnp.asarray(0))

    def step(
        self, score: Score, condition: Any, rng_key: PRNGKey, carry: _Carry, row: _Span
    ) -> _Carry:
        """Move one sample to the end."""
        import diffrax

        del rng_key
        process = score.process

        def velocity(log_snr: Any, scaled: Any, _: Any) -> Array:
            time = process.time_at(jnp.exp(-log_snr))
            return score.denoise(process.alpha(time) * scaled, time, condition) - scaled

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            self.solver,
            row.log_snr,
            row.next_log_snr,
            FIRST_STEP,
            carry.sample / row.alpha,
            stepsize_controller=diffrax.PIDController(self.rtol, self.atol),
            max_steps=self.max_steps,
            throw=False,
        )
        assert solution.ys is not None
        arrived = solution.result == diffrax.RESULTS.successful
        x = jnp.where(arrived, solution.ys[-1] * row.next_alpha, jnp.nan)
        if self.denoise:
            x = score.denoise(x, row.next_time, condition)
        count = self._evaluations(solution.stats["num_steps"])
        return _Carry(x, carry.num_evaluations + count)

    def read(self, carry: _Carry) -> Array:
        """Get the sample of a carry."""
        return carry.sample

    def _evaluations(self, num_steps: Array) -> Array:
        """Evaluations of steps, and of the clean datum."""
        tableau = self.solver.tableau
        # The last stage of a step is the first one of the next, which is evaluated once.
        first, stages = (1, tableau.num_stages - 1) if tableau.fsal else (0, tableau.num_stages)
        return first + stages * num_steps + self.denoise


def _num_evaluations(carry: _Carry) -> Array:
    return carry.num_evaluations


def _plan(
    process: NoiseProcess,
    start: float | None,
    *,
    rtol: float,
    atol: float,
    solver: Any,
    max_steps: int,
    denoise: bool,
) -> Plan:
    nodes = grid(process, 1, "time", start=start, denoise=False)
    (high, low), (alpha, next_alpha) = nodes.log_snr, nodes.alpha
    ends = high, low, alpha, next_alpha, nodes.time[-1]
    rows = _Span(*(np.array([end]) for end in ends))
    mover = _Adaptive(rtol, atol, solver, max_steps, denoise)
    return Plan(mover, rows, nodes.time, np.ones(1, bool), _num_evaluations)

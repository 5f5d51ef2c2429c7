"""Tuning while stepping, as pure functions: step size, metric, Gaussian fit and friction."""

import dataclasses
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.adaptation.step_size import (
    DualAveragingAdaptationState,
    dual_averaging_adaptation,
)

from langevin_ppl.base import Array, ArrayLike
from langevin_ppl.preconditioners import Preconditioner
from langevin_ppl.warmup.moments import (
    SHRINKAGE,
    Moments,
    Rows,
    fisher_factor,
    fisher_low_rank,
    square_root,
)

__all__ = ["Adaptation", "AdaptationState", "Schedule"]

WINDOW_ENDS = (0.15, 0.4, 0.8)
"""Where the metric is renewed, as shares of the warm-up; the rest tunes the step size alone."""

WINDOW_DISCARD = 0.3
"""First share of every window that is left out of its moments."""

FREEING = 0.25
"""First share of the warm-up, in which the slowest chain sets the step size: see `Schedule`."""

POOR_ANGLE = 1.2
"""Tuned angle below which the Gaussian fit counts as poor."""

POOR_FIT = (0.75, 0.5)
"""Frequency and friction of a split kernel where the fit is poor: the best of frequencies 0, 0.5,
0.75, 1 and frictions 0.5, 0.8, 1.2 on two real posteriors with skew tails."""

SLOWNESS = 0.05
"""The ``gamma`` of dual averaging, as recommended by Hoffman and Gelman (2014)."""

OVERRUN = 1.0
"""How far the memory of dual averaging may run beyond the bound of the step size, on the log
scale: far enough for noise not to push the step size off its bound, and not so far that a change
for the worse would take long to be noticed."""

MIN_FRICTION_SHARE = 0.5
"""Least share of the usual friction that a slow direction may bring it down to."""


class Schedule(NamedTuple):
    """What each warm-up step does: boolean vectors ``[step]`` on the host.

    Attributes
    ----------
    frees
        Whether the step size follows the least acceptance of all chains instead of the mean. A
        chain that starts where gradients explode accepts nothing, and three others that do well
        would hide it in a mean; this way the step shrinks until it moves. Forces are tamed in
        these steps, where taming was asked for.
    collects
        Whether the draw counts for the metric.
    renews
        Whether the metric is renewed after this step.
    judges
        Whether the Gaussian fit is judged after this step, before it is renewed.
    ends
        Whether the tuning is settled after this step.
    """

    frees: np.ndarray
    collects: np.ndarray
    renews: np.ndarray
    judges: np.ndarray
    ends: np.ndarray

    @classmethod
    def build(cls, num_steps: int) -> "Schedule":
        """Windows of growing length; none in a warm-up too short for one."""
        frees = np.arange(num_steps) < FREEING * num_steps
        collects, renews = np.zeros(num_steps, bool), np.zeros(num_steps, bool)
        judges = np.zeros(num_steps, bool)
        start = 0
        for share in WINDOW_ENDS:
            end = round(share * num_steps)
            if end - start >= 20:
                collects[start + round(WINDOW_DISCARD * (end - start)) : end] = True
                renews[end - 1] = True
                start = end
        if start:
            judges[start - 1] = True
            collects[start:] = True  # for the friction and the residual of the fit
        return cls(frees, collects, renews, judges, np.arange(num_steps) == num_steps - 1)


class AdaptationState(NamedTuple):
    """What warm-up carries.

    Attributes
    ----------
    averaging
        State of dual averaging.
    step_size
        Step size to make the next step with.
    target_acceptance_rate
        What it is tuned to.
    metric
        Current factor of the inverse mass matrix.
    location
        Centre of the fitted Gaussian, shape ``[dimension]``.
    frequency, friction, taming
        Of a split kernel, scalars.
    positions, gradients
        Moments of the current window, in the whitened frame about ``location``.
    residual
        Sum over the window of ``|L^T g + z|^2 / dimension``: 0 where the target is the fitted
        Gaussian.
    rows
        Draws of the current window; None unless the metric has low rank.
    """

    averaging: DualAveragingAdaptationState
    step_size: Array
    target_acceptance_rate: Array
    metric: Preconditioner
    location: Array
    frequency: Array
    friction: Array
    taming: Array
    positions: Moments
    gradients: Moments
    residual: Array
    rows: Rows | None


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """Adaptation of a kernel that has an acceptance rate; hashable.

    ``init`` makes a state, ``update`` takes in one step of one chain, ``final`` settles the
    result, ``parameters`` reads the kernel's parameters off. With an ``axis_name``, ``update`` is
    called under ``jax.vmap(..., in_axes=(None, 0, 0, 0, None), out_axes=None, axis_name=...)``
    and pools all chains; without one, the chain is tuned by itself.

    Attributes
    ----------
    tunes
        Names of the parameters that are tuned.
    metric
        Shape of the metric: "dense", "low_rank" or "diagonal".
    max_step_size
        Bound of the step size, or None.
    axis_name
        Name of the mapped axis of chains, or None.
    """

    tunes: frozenset[str]
    metric: str = "dense"
    max_step_size: float | None = None
    axis_name: str | None = None

    def init(
        self,
        metric: Preconditioner,
        location: Array,
        step_size: ArrayLike,
        target_acceptance_rate: ArrayLike,
        friction: ArrayLike,
        num_chains: int = 1,
    ) -> AdaptationState:
        """Begin with a metric, a location, a step size and a friction."""
        factor = metric.factor
        d, dtype = factor.shape[0], factor.dtype
        low_rank = metric.directions is not None
        return AdaptationState(
            averaging=_restart(step_size, dtype),
            step_size=jnp.asarray(step_size, dtype),
            target_acceptance_rate=jnp.asarray(target_acceptance_rate, dtype),
            metric=metric,
            location=jnp.asarray(location, dtype),
            frequency=jnp.ones((), dtype),
            friction=jnp.asarray(friction, dtype),
            taming=jnp.ones((), dtype),
            positions=Moments.zero(factor),
            gradients=Moments.zero(factor),
            residual=jnp.zeros((), dtype),
            rows=Rows.zero(d, num_chains, dtype) if low_rank else None,
        )

    def update(
        self,
        state: AdaptationState,
        position: Array,
        gradient: Array,
        acceptance: Array,
        flags: Schedule,
    ) -> AdaptationState:
        """Take in one step.

        Parameters
        ----------
        state
            The same for all chains.
        position, gradient
            Of one chain after the step, shape ``[dimension]``.
        acceptance
            Acceptance rate of the step, scalar.
        flags
            The row of `Schedule` for this step.
        """
        positions, gradients, rates = self._gather(position, gradient, acceptance)
        if "step_size" in self.tunes:
            rate = jnp.where(flags.frees, jnp.min(rates), jnp.mean(rates))
            state = self._move_step_size(state, rate)
        state = state._replace(taming=jnp.asarray(flags.frees).astype(state.taming.dtype))
        weight = jnp.asarray(flags.collects).astype(state.step_size.dtype)
        white = jax.vmap(lambda x: state.metric.solve(x - state.location))(positions)
        pulled = jax.vmap(state.metric.transpose)(gradients)
        residual = jnp.mean(jnp.square(white + pulled)) * len(rates)
        rows = state.rows
        state = state._replace(
            positions=state.positions.add(white, weight),
            gradients=state.gradients.add(pulled, weight),
            residual=state.residual + weight * residual,
            rows=None if rows is None else rows.add(positions, gradients, weight),
        )
        state = jax.lax.cond(
            flags.renews, lambda s: self._renew(self._judge(s, flags)), lambda s: s, state
        )
        return jax.lax.cond(flags.ends, self.final, lambda s: s, state)

    def final(self, state: AdaptationState) -> AdaptationState:
        """Settle the step size at its average, and the friction by the slowest direction left."""
        if "step_size" in self.tunes:
            state = state._replace(step_size=jnp.exp(state.averaging.log_step_size_avg))
        state = state._replace(taming=jnp.zeros_like(state.taming))
        squares = state.positions.squares
        if "friction" in self.tunes and squares.ndim == 2:
            covariance = state.positions.covariance(SHRINKAGE)
            slowest = jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(covariance)[-1], 1.0))
            share = jnp.maximum(1.0 / slowest, MIN_FRICTION_SHARE)
            share = jnp.where(jnp.isfinite(share), share, 1.0)
            state = state._replace(friction=state.friction * share)
        return state

    def parameters(self, state: AdaptationState) -> dict[str, Any]:
        """Parameters of the kernel, those that are tuned."""
        values = {
            "step_size": state.step_size,
            "inverse_mass_matrix": state.metric,
            "location": state.location,
            "frequency": state.frequency,
            "friction": state.friction,
            "taming": state.taming,
        }
        return {name: value for name, value in values.items() if name in self.tunes}

    def _gather(self, *values: Array) -> list[Array]:
        if self.axis_name is None:
            return [value[None] for value in values]
        return [jax.lax.all_gather(value, self.axis_name) for value in values]

    def _move_step_size(self, state: AdaptationState, rate: Array) -> AdaptationState:
        _, update, _ = dual_averaging_adaptation(
            cast(float, state.target_acceptance_rate), gamma=SLOWNESS
        )
        averaging = _typed(update(state.averaging, cast(float, rate)), rate.dtype)
        if self.max_step_size is not None:
            bound = np.log(self.max_step_size)
            # The step size is mu - sqrt(step) / SLOWNESS * avg_error, on the log scale.
            least_error = (averaging.mu - bound - OVERRUN) * SLOWNESS / jnp.sqrt(averaging.step - 1)
            averaging = averaging._replace(
                log_step_size=jnp.minimum(averaging.log_step_size, bound),
                log_step_size_avg=jnp.minimum(averaging.log_step_size_avg, bound),
                avg_error=jnp.maximum(averaging.avg_error, least_error),
            )
        return state._replace(averaging=averaging, step_size=jnp.exp(averaging.log_step_size))

    def _judge(self, state: AdaptationState, flags: Schedule) -> AdaptationState:
        """Choose how far the Gaussian fit is trusted, by the angle that it allowed."""
        if not {"frequency", "step_size"} <= self.tunes:
            return state
        poor = flags.judges & (state.averaging.log_step_size_avg < np.log(POOR_ANGLE))

        def pick(good: Array, bad: float) -> Array:
            return jnp.where(poor, bad, good).astype(state.frequency.dtype)

        frequency, friction = map(pick, (state.frequency, state.friction), POOR_FIT)
        if "friction" not in self.tunes:
            friction = state.friction
        return state._replace(frequency=frequency, friction=friction)

    def _renew(self, state: AdaptationState) -> AdaptationState:
        """Fit metric and location to the window, and begin the next one."""
        fitted = _refit(state)
        usable = jnp.all(jnp.isfinite(fitted[0].factor)) & jnp.all(jnp.isfinite(fitted[1]))
        old = state.metric, state.location
        new = jax.tree.map(lambda new, old: jnp.where(usable, new, old), fitted, old)
        metric = new[0] if "inverse_mass_matrix" in self.tunes else state.metric
        location = new[1] if "location" in self.tunes else state.location
        step_size = jnp.exp(state.averaging.log_step_size_avg)
        fresh = self.init(metric, location, step_size, state.target_acceptance_rate, state.friction)
        rows = state.rows
        return fresh._replace(
            frequency=state.frequency,
            taming=state.taming,
            rows=None if rows is None else rows._replace(written=jnp.zeros_like(rows.written)),
        )


def _refit(state: AdaptationState) -> tuple[Preconditioner, Array]:
    """Metric and location of the Gaussian that the window's positions and gradients agree on."""
    if state.rows is not None:
        return fisher_low_rank(state.rows, state.metric.factor)
    x, g = state.positions.covariance(SHRINKAGE), state.gradients.covariance(SHRINKAGE)
    change = fisher_factor(x, g)
    # On a Gaussian, mean(x) + C mean(g) is the centre from any draws at all.
    pull = state.gradients.mean
    shift = change @ (change.T @ pull) if change.ndim == 2 else change**2 * pull
    location = state.location + state.metric.scale(state.positions.mean + shift)
    factor = state.metric.factor
    if factor.ndim == 2:
        return Preconditioner(square_root(factor @ change)), location
    return Preconditioner(factor * change), location


def _restart(step_size: ArrayLike, dtype: Any) -> DualAveragingAdaptationState:
    init, _, _ = dual_averaging_adaptation(0.5)
    return _typed(init(cast(float, step_size)), dtype)


def _typed(averaging: DualAveragingAdaptationState, dtype: Any) -> DualAveragingAdaptationState:
    """Fix the dtypes, which dual averaging takes from its inputs, so that a loop may carry it."""
    numbers = {
        name: jnp.asarray(value, jnp.int32 if name == "step" else dtype)
        for name, value in averaging._asdict().items()
    }
    return DualAveragingAdaptationState(**cast(dict[str, Any], numbers))

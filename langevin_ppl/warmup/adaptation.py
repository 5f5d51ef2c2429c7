"""Tuning while stepping: step size by dual averaging, metric by windows, pooled over chains."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.adaptation.step_size import (
    DualAveragingAdaptationState,
    dual_averaging_adaptation,
)
from jax.scipy.linalg import solve_triangular

from langevin_ppl.base import Array, ArrayLike
from langevin_ppl.warmup.start import square_root

__all__ = ["Adaptation", "AdaptationState", "Moments", "Schedule", "adaptation", "fisher_factor"]

WINDOW_ENDS = (0.1, 0.25, 0.5, 0.85)
"""Where the metric is renewed, as shares of the warm-up; the rest tunes the step size alone."""

WINDOW_DISCARD = 0.3
"""First share of every window that is left out of its moments."""

SHRINKAGE = 5.0
"""Weight, in draws, of the identity in the whitened moments of a window (nutpie's rule)."""


FREEING = 0.25
"""First share of the warm-up, in which the slowest chain sets the step size: see `Schedule`."""


class Schedule(NamedTuple):
    """What each warm-up step does: boolean vectors ``[step]`` on the host.

    Attributes
    ----------
    frees
        Whether the step size follows the least acceptance of all chains instead of the mean. A
        chain that starts where gradients explode accepts nothing, and three others that do well
        would hide it in a mean; this way the step shrinks until it moves.
    collects
        Whether the draw counts for the metric.
    renews
        Whether the metric is renewed after this step.
    """

    frees: np.ndarray
    collects: np.ndarray
    renews: np.ndarray

    @classmethod
    def build(cls, num_steps: int) -> "Schedule":
        """Windows of growing length; none in a warm-up too short for one."""
        frees = np.arange(num_steps) < FREEING * num_steps
        collects, renews = np.zeros(num_steps, bool), np.zeros(num_steps, bool)
        start = 0
        for share in WINDOW_ENDS:
            end = round(share * num_steps)
            if end - start >= 20:
                collects[start + round(WINDOW_DISCARD * (end - start)) : end] = True
                renews[end - 1] = True
                start = end
        return cls(frees, collects, renews)


class Moments(NamedTuple):
    """Running number, mean and centred squares (matrix or diagonal), by Chan's update."""

    number: Array
    mean: Array
    squares: Array

    @classmethod
    def zero(cls, factor: Array) -> "Moments":
        """No draw yet; matrix or diagonal as the metric's factor is."""
        dimension, dtype = factor.shape[0], factor.dtype
        return cls(jnp.zeros((), dtype), jnp.zeros(dimension, dtype), jnp.zeros_like(factor))

    def add(self, rows: Array, weight: Array) -> "Moments":
        """Take in one draw of every chain, ``[chain, dimension]``; ``weight`` is 0 or 1."""
        number = rows.shape[0] * weight
        total = self.number + number
        shift = jnp.mean(rows, axis=0) - self.mean
        centred = rows - jnp.mean(rows, axis=0)
        share = number / jnp.maximum(total, 1.0)
        if self.squares.ndim == 2:
            squares = centred.T @ centred * weight + jnp.outer(shift, shift) * self.number * share
        else:
            squares = jnp.sum(centred**2, axis=0) * weight + shift**2 * self.number * share
        return Moments(total, self.mean + shift * share, self.squares + squares)

    def covariance(self, weight: float) -> Array:
        """Covariance with ``weight`` draws of a unit covariance mixed in."""
        identity = jnp.eye(len(self.mean)) if self.squares.ndim == 2 else jnp.ones(len(self.mean))
        return (self.squares + weight * identity) / (self.number + weight)


def fisher_factor(positions: Moments, gradients: Moments) -> Array:
    r"""Factor of the metric that matches positions and gradients at once.

    The solution of :math:`\Sigma \, \mathrm{cov}(g) \, \Sigma = \mathrm{cov}(x)`, exact for a
    Gaussian from a handful of draws, because its gradients know the curvature.

    References
    ----------
    Seyboldt, Carlson, Carpenter, *Preconditioning Hamiltonian Monte Carlo by minimizing Fisher
    divergence* (2026), arXiv:2603.18845; the rule of nutpie.
    """
    x, g = positions.covariance(SHRINKAGE), gradients.covariance(SHRINKAGE)
    if x.ndim == 1:
        return (x / g) ** 0.25
    # Sigma = g^(-1/2) (g^(1/2) x g^(1/2))^(1/2) g^(-1/2), whose square root is all we need.
    values, vectors = jnp.linalg.eigh(g)
    root = vectors * jnp.sqrt(values)
    inner_values, inner_vectors = jnp.linalg.eigh(root.T @ x @ root)
    return (vectors / jnp.sqrt(values)) @ (inner_vectors * inner_values**0.25)


class AdaptationState(NamedTuple):
    """What warm-up carries.

    Attributes
    ----------
    averaging
        State of dual averaging.
    factor
        Current factor ``L`` of the inverse mass matrix, ``[dimension]`` or triangular.
    positions, gradients
        Moments of the current window, in the whitened frame of ``factor``.
    """

    averaging: DualAveragingAdaptationState
    factor: Array
    positions: Moments
    gradients: Moments

    @property
    def step_size(self) -> Array:
        """Step size to make the next step with."""
        return jnp.exp(self.averaging.log_step_size)


class Adaptation(NamedTuple):
    """Adaptation of step size and metric, as pure functions.

    Attributes
    ----------
    init
        ``init(factor, step_size) -> AdaptationState``.
    update
        ``update(state, positions, gradients, acceptance, flags)`` with rows of all chains,
        ``[chain, dimension]`` and ``[chain]``, and the row of `Schedule` for this step.
    """

    init: Callable[[Array, ArrayLike], AdaptationState]
    update: Callable[..., AdaptationState]


def adaptation(
    target_acceptance_rate: ArrayLike, *, adapt_step_size: bool, adapt_metric: bool
) -> Adaptation:
    """Build the adaptation of a kernel that has an acceptance rate."""
    init_averaging, update_averaging, final_averaging = dual_averaging_adaptation(
        cast(float, target_acceptance_rate)
    )

    def init(factor: Array, step_size: ArrayLike) -> AdaptationState:
        moments = Moments.zero(factor)
        averaging = init_averaging(cast(float, step_size))
        return AdaptationState(_typed(averaging, factor), factor, moments, moments)

    def renew(state: AdaptationState) -> AdaptationState:
        change = fisher_factor(state.positions, state.gradients)
        dense = state.factor.ndim == 2
        factor = square_root(state.factor @ change) if dense else state.factor * change
        factor = jnp.where(jnp.all(jnp.isfinite(factor)), factor, state.factor)
        return init(factor, final_averaging(state.averaging))

    def update(
        state: AdaptationState,
        positions: Array,
        gradients: Array,
        acceptance: Array,
        flags: Schedule,
    ) -> AdaptationState:
        if adapt_step_size:
            rate = jnp.where(flags.frees, jnp.min(acceptance), jnp.mean(acceptance))
            averaging = update_averaging(state.averaging, cast(float, rate))
            state = state._replace(averaging=_typed(averaging, state.factor))
        if adapt_metric:
            weight = jnp.asarray(flags.collects).astype(state.factor.dtype)
            white, pulled = whiten(state.factor, positions, gradients)
            state = state._replace(
                positions=state.positions.add(white, weight),
                gradients=state.gradients.add(pulled, weight),
            )
            state = jax.lax.cond(flags.renews, renew, lambda s: s, state)
        return state

    return Adaptation(init, update)


def whiten(factor: Array, positions: Array, gradients: Array) -> tuple[Array, Array]:
    """``L^{-1} x`` and ``L^T g`` of rows ``[chain, dimension]``."""
    if factor.ndim == 2:
        return solve_triangular(factor, positions.T, lower=True).T, gradients @ factor
    return positions / factor, gradients * factor


def _typed(averaging: DualAveragingAdaptationState, like: Array) -> DualAveragingAdaptationState:
    """Fix the dtypes, which dual averaging takes from its inputs, so that a loop may carry it."""
    numbers = {
        name: jnp.asarray(value, jnp.int32 if name == "step" else like.dtype)
        for name, value in averaging._asdict().items()
    }
    return DualAveragingAdaptationState(**cast(dict[str, Any], numbers))

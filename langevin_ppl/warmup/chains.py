"""Programs that begin chains and tune a kernel while they run, pooled over chains."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array, ArrayLike, Draws, LogDensity, PRNGKey
from langevin_ppl.loop import capacity_for, drive, repeat
from langevin_ppl.preconditioners import Preconditioner
from langevin_ppl.run import Plan, row_bytes, stacked, statistics
from langevin_ppl.targets.target import Proposal, first_valid
from langevin_ppl.warmup.adaptation import AdaptationState, Schedule, adaptation
from langevin_ppl.warmup.start import Start, laplace_start

__all__ = ["Begun", "Warmed", "begin", "mean_taming_losses", "warm_up"]


class Begun(NamedTuple):
    """Where chains begin.

    Attributes
    ----------
    positions
        Shape ``[chain, dimension]``.
    valid
        Whether log density and gradient are finite there, shape ``[chain]``.
    start
        What the search for a mode found; None without a search.
    states
        States of the algorithm there; None if they were not asked for.
    """

    positions: Array
    valid: Array
    start: Start | None
    states: Any


@functools.partial(jax.jit, static_argnames=("propose", "plan", "search", "initialise"))
def begin(
    keys: PRNGKey,
    logdensity_fn: LogDensity,
    data: Any,
    parameters: dict[str, Any],
    *,
    propose: Proposal | None,
    plan: Plan,
    search: bool,
    initialise: bool,
) -> Begun:
    """Find starting positions.

    Parameters
    ----------
    keys
        One for each chain.
    data
        Data of the proposal; the positions themselves, ``[chain, dimension]``, without one.
    parameters
        Parameters of the algorithm, read where ``initialise`` is set.
    propose
        Proposal of starting positions; None to take those given.
    search
        Whether to look for modes from there.
    initialise
        Whether to make states of the algorithm.
    """
    logdensity = plan.flat(logdensity_fn)

    def flat_proposal(key: PRNGKey, data: Any) -> Array:
        assert propose is not None
        return plan.layout.ravel(propose(key, data))

    if propose is None:
        positions = data
        valid = jnp.isfinite(jax.vmap(logdensity)(positions))
    else:
        positions, valid = jax.vmap(
            lambda key: first_valid(jax.random.fold_in(key, 0), logdensity, data, flat_proposal)
        )(keys)
    start, states = None, None
    if search:
        start = laplace_start(jax.random.fold_in(keys[0], 1), logdensity, positions)
        positions = start.positions
    if initialise:

        def init(position: Array, key: PRNGKey, parameters: dict[str, Any]) -> Any:
            algorithm = plan.build(logdensity_fn, parameters)
            return algorithm.init(position, jax.random.fold_in(key, 2))

        states = jax.vmap(init, in_axes=(0, 0, plan.axes(parameters)))(positions, keys, parameters)
    return Begun(positions, valid, start, states)


class Warmed(NamedTuple):
    """What warm-up leaves.

    Attributes
    ----------
    states
        States of the tuning kernel, leading axis ``chain``.
    step_size, factor
        Tuned step size and factor of the inverse mass matrix.
    draws
        Draws of the warm-up, if they were to be kept.
    """

    states: Any
    step_size: ArrayLike
    factor: Array
    draws: Draws | None


@functools.partial(
    jax.jit,
    static_argnames=("plan", "capacity", "adapt_step_size", "adapt_metric", "keep"),
)
def _warmup_chunk(
    carry: tuple[Any, AdaptationState],
    start: Array,
    count: Array,
    keys: PRNGKey,
    logdensity_fn: LogDensity,
    parameters: dict[str, Any],
    schedule: Schedule,
    target_acceptance_rate: ArrayLike,
    *,
    plan: Plan,
    capacity: int,
    adapt_step_size: bool,
    adapt_metric: bool,
    keep: bool,
) -> tuple[Any, Any]:
    _, update = adaptation(
        target_acceptance_rate, adapt_step_size=adapt_step_size, adapt_metric=adapt_metric
    )

    def step(carry: tuple[Any, AdaptationState], index: Array) -> tuple[Any, Any]:
        states, tuning = carry
        tuned = dict(parameters)
        if adapt_step_size:
            tuned["step_size"] = tuning.step_size
        if adapt_metric:
            tuned["inverse_mass_matrix"] = Preconditioner(tuning.factor)

        def one(key: PRNGKey, state: Any, parameters: dict[str, Any]) -> Any:
            algorithm = plan.build(logdensity_fn, parameters)
            return algorithm.step(jax.random.fold_in(key, index), state)

        over_chains = jax.vmap(one, in_axes=(0, 0, plan.axes(tuned)))
        states, infos = over_chains(keys, states, tuned)
        if adapt_step_size or adapt_metric:
            tuning = update(
                tuning,
                states.position,
                states.logdensity_grad,
                infos.acceptance_rate,
                jax.tree.map(lambda flag: flag[index], schedule),
            )
        stats = jax.vmap(statistics)(states, infos)
        return (states, tuning), (states.position, stats) if keep else ()

    return repeat(step, carry, start, count, capacity)


@jax.jit
def _first_tuning(factor: Array, step_size: ArrayLike) -> AdaptationState:
    return adaptation(0.5, adapt_step_size=True, adapt_metric=True).init(factor, step_size)


def warm_up(
    keys: PRNGKey,
    logdensity_fn: LogDensity,
    states: Any,
    parameters: Mapping[str, Any],
    plan: Plan,
    *,
    num_steps: int,
    step_size: ArrayLike,
    factor: Array,
    target_acceptance_rate: float | None,
    adapt_step_size: bool,
    adapt_metric: bool,
    keep: bool = False,
    progress: bool = False,
) -> Warmed:
    """Run a kernel and tune it on the way, pooled over chains.

    Parameters
    ----------
    states
        States of all chains.
    parameters
        Those that are not tuned.
    step_size, factor
        First step size, and factor of the inverse mass matrix, ``[dimension]`` or triangular.
    target_acceptance_rate
        What to tune the step size to.
    adapt_step_size, adapt_metric
        What to tune.
    keep
        Whether to keep the draws.
    """
    rate = target_acceptance_rate or 0.5
    carry = (states, _first_tuning(factor, step_size))
    capacity = capacity_for(row_bytes(keys, plan) if keep else 1, num_steps)
    schedule = Schedule.build(num_steps)

    def program(carry: Any, start: int, count: int) -> tuple[Any, Any]:
        return _warmup_chunk(
            carry,
            start,  # pyright: ignore[reportArgumentType]
            count,  # pyright: ignore[reportArgumentType]
            keys,
            logdensity_fn,
            dict(parameters),
            schedule,
            rate,  # pyright: ignore[reportArgumentType]
            plan=plan,
            capacity=capacity,
            adapt_step_size=adapt_step_size,
            adapt_metric=adapt_metric,
            keep=keep,
        )

    outcome = drive(program, carry, num_steps, capacity, progress=progress, label="warm-up")
    if not outcome.complete:
        raise KeyboardInterrupt("interrupted during warm-up: there is no draw to return")
    states, tuning = outcome.carry
    averaged = np.exp(np.asarray(tuning.averaging.log_step_size_avg))
    draws = stacked(outcome)._replace(final_state=states) if keep else None
    return Warmed(states, averaged if adapt_step_size else step_size, tuning.factor, draws)


@functools.partial(jax.jit, static_argnames="plan")
def mean_taming_losses(
    keys: PRNGKey,
    logdensity_fn: LogDensity,
    states: Any,
    parameters: dict[str, Any],
    step_sizes: Array,
    *,
    plan: Plan,
) -> Array | None:
    """Taming loss at each step size, averaged over chains; None for a kernel that is not tamed."""

    def loss(step_size: Array, key: PRNGKey, state: Any) -> Array | None:
        algorithm = plan.build(logdensity_fn, {**parameters, "step_size": step_size})
        return algorithm.step(key, state)[1].taming_loss

    over_chains = jax.vmap(loss, in_axes=(None, 0, 0))
    losses = jax.vmap(over_chains, in_axes=(0, None, None))(step_sizes, keys, states)
    return None if losses is None else jnp.mean(losses, axis=1)

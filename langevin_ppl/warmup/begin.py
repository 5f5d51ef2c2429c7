"""The programs that begin chains."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from langevin_ppl.base import Array, LogDensity, PRNGKey
from langevin_ppl.compilation import ONCE, SEARCH
from langevin_ppl.preconditioners import Preconditioner
from langevin_ppl.run import Chains, Plan
from langevin_ppl.targets.target import Proposal, first_valid, is_valid
from langevin_ppl.warmup.moments import LOW_RANK
from langevin_ppl.warmup.start import Search, Start, laplace_start, search_modes
from langevin_ppl.warmup.unadjusted import settled_step_size

__all__ = ["Begun", "Found", "begin", "find", "settle"]


class Found(NamedTuple):
    """Where chains could begin.

    Attributes
    ----------
    positions
        Shape ``[chain, dimension]``.
    valid
        Whether log density and gradient are finite there, shape ``[chain]``.
    search
        The search for a mode from there; None without one.
    """

    positions: Array
    valid: Array
    search: Search | None


@functools.partial(jax.jit, static_argnames=("propose", "plan", "search"), compiler_options=SEARCH)
def find(
    keys: PRNGKey,
    logdensity_fn: LogDensity,
    data: Any,
    *,
    propose: Proposal | None,
    plan: Plan,
    search: bool,
) -> Found:
    """Find starting positions, and modes from there.

    Parameters
    ----------
    keys
        One for each chain.
    data
        Data of the proposal; the positions themselves, ``[chain, dimension]``, without one.
    propose
        Proposal of starting positions; None to take those given.
    search
        Whether to look for modes.
    """
    logdensity = plan.flat(logdensity_fn)

    def flat_proposal(key: PRNGKey, data: Any) -> Array:
        assert propose is not None
        return plan.layout.ravel(propose(key, data))

    if propose is None:
        positions = data
        valid = jax.vmap(lambda position: is_valid(logdensity, position))(positions)
    else:
        positions, valid = jax.vmap(
            lambda key: first_valid(jax.random.fold_in(key, 0), logdensity, data, flat_proposal)
        )(keys)
    return Found(positions, valid, search_modes(logdensity, positions) if search else None)


class Begun(NamedTuple):
    """Chains at their first positions.

    Attributes
    ----------
    chains
        States of the algorithm, and the first tuning.
    start
        How they were chosen; None without a search.
    """

    chains: Chains
    start: Start | None


@functools.partial(jax.jit, static_argnames="plan", compiler_options=ONCE)
def begin(
    keys: PRNGKey,
    logdensity_fn: LogDensity,
    found: Found,
    parameters: dict[str, Any],
    first: dict[str, Any],
    *,
    plan: Plan,
) -> Begun:
    """Make states of the algorithm at starting positions.

    Parameters
    ----------
    keys
        One for each chain.
    found
        From `find`.
    parameters
        Parameters of the algorithm.
    first
        What `langevin_ppl.warmup.adaptation.Adaptation.init` takes beside metric, location and
        number of chains; read where the plan has an adaptation.
    """
    positions, start, tuning = found.positions, None, None
    if found.search is not None:
        key = jax.random.fold_in(keys[0], 1)
        start = laplace_start(key, plan.flat(logdensity_fn), positions, found.search)
        positions = start.positions
    adaptation = plan.adaptation
    if adaptation is not None:
        location = jnp.mean(positions, axis=0) if start is None else start.mode
        metric = first_metric(plan, None if start is None else start.factor)
        tuning = adaptation.init(metric, location, **first, num_chains=keys.shape[0])
        parameters = {**parameters, **adaptation.parameters(tuning)}

    def init(position: Array, key: PRNGKey, parameters: dict[str, Any]) -> Any:
        algorithm = plan.build(logdensity_fn, parameters)
        return algorithm.init(position, jax.random.fold_in(key, 2))

    over_chains = jax.vmap(init, in_axes=(0, 0, plan.axes(parameters)))
    return Begun(Chains(over_chains(positions, keys, parameters), tuning), start)


def first_metric(plan: Plan, factor: Array | None) -> Preconditioner:
    """Metric to begin with, in the shape that the plan's adaptation gives it."""
    d, dtype = plan.layout.dimension, plan.layout.dtype
    shape = plan.adaptation.metric
    if shape == "dense":
        return Preconditioner(jnp.eye(d, dtype=dtype) if factor is None else factor)
    scale = jnp.ones(d, dtype)
    if factor is not None:
        # Of a matrix, the scales that the coordinates have by themselves in its Gaussian.
        scale = jnp.linalg.norm(factor, axis=1) if factor.ndim == 2 else factor
    if shape == "diagonal":
        return Preconditioner(scale)
    rank = 2 * min(LOW_RANK, d // 2)
    return Preconditioner(scale, jnp.eye(d, rank, dtype=dtype), jnp.ones(rank, dtype))


@functools.partial(jax.jit, static_argnames="plan", compiler_options=ONCE)
def settle(
    keys: PRNGKey,
    logdensity_fn: LogDensity,
    states: Any,
    parameters: dict[str, Any],
    *,
    plan: Plan,
) -> Array:
    """Step size of an unadjusted kernel, from all chains together."""
    kernel = plan.algorithm.value

    def one(state: Any, key: PRNGKey) -> Array:
        return settled_step_size(
            kernel, plan.flat(logdensity_fn), state, parameters, key, axis_name="chain"
        )

    return jax.vmap(one, out_axes=None, axis_name="chain")(states, keys)

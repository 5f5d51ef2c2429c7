"""Chains and devices: from a log density, a kernel and states to `Draws`.

Everything here works on flat positions ``[chain, dimension]`` and takes kernels of this library
and of BlackJAX alike. Algorithms are built inside the compiled program from the log density that
is passed in, so other data of the same shapes compile nothing.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from langevin_ppl.base import Array, Draws, LogDensity, PRNGKey
from langevin_ppl.loop import Outcome, capacity_for, drive, repeat
from langevin_ppl.targets.leaves import Static
from langevin_ppl.tree import Layout

__all__ = ["Plan", "chain_keys", "place", "sample", "stacked", "statistics", "row_bytes"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static part of a program.

    Attributes
    ----------
    algorithm
        A kernel of this library or of BlackJAX, wrapped to be hashable.
    layout
        Layout of positions.
    fixed
        Parameters that are part of the program (functions, integers).
    per_chain
        Names of parameters with a leading chain axis.
    """

    algorithm: Static
    layout: Layout
    fixed: tuple[tuple[str, Static], ...] = ()
    per_chain: frozenset[str] = frozenset()

    def build(self, logdensity_fn: LogDensity, parameters: Mapping[str, Any]) -> Any:
        """Build the algorithm on flat positions."""
        fixed = {name: value.value for name, value in self.fixed}
        return self.algorithm.value(self.flat(logdensity_fn), **fixed, **parameters)

    def flat(self, logdensity_fn: LogDensity) -> Callable[[Array], Array]:
        """Log density of a flat position."""
        return lambda position: logdensity_fn(self.layout.unravel(position))

    def axes(self, parameters: Mapping[str, Any]) -> dict[str, int | None]:
        """Axes over which to vmap the parameters."""
        return {name: 0 if name in self.per_chain else None for name in parameters}


@functools.partial(jax.jit, static_argnums=1)
def _chain_keys(rng_key: PRNGKey, num_chains: int) -> PRNGKey:
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(rng_key, jnp.arange(num_chains))


def chain_keys(rng_key: PRNGKey, num_chains: int) -> PRNGKey:
    """Keys of chains, ``[chain]``, by folding in the chain's number: no layout changes them."""
    return place(_chain_keys(rng_key, num_chains))


def place(tree: Any) -> Any:
    """Spread the leading axis ``chain`` over the devices, as far as it divides."""
    devices = jax.devices()
    num_chains = jax.tree.leaves(tree)[0].shape[0]
    count = max(n for n in range(1, len(devices) + 1) if num_chains % n == 0)
    if count == 1:
        return tree
    mesh = Mesh(np.asarray(devices[:count]), ("chain",))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec("chain")))


# Names in `sample_stats` of what infos report, and how a thinned draw sums its steps up.
_FIELDS = {
    "is_divergent": "diverging",
    "acceptance_rate": "acceptance_rate",
    "logdensity": "lp",
    "grad_norm": "grad_norm",
    "taming_loss": "taming_loss",
    "energy": "energy",
    "energy_change": "energy_error",
    "num_integration_steps": "n_steps",
    "num_trajectory_expansions": "tree_depth",
}
_REDUCTIONS: dict[str, Callable[[Array], Array]] = {
    "diverging": lambda rows: jnp.any(rows, axis=0),
    "acceptance_rate": lambda rows: jnp.mean(rows, axis=0),
    "taming_loss": lambda rows: jnp.mean(rows, axis=0),
    "n_steps": lambda rows: jnp.sum(rows, axis=0),
}


def statistics(state: Any, info: Any) -> dict[str, Array]:
    """Report a step under ArviZ's names; nothing that the kernel does not know."""
    stats = {
        name: value
        for field, name in _FIELDS.items()
        if (value := getattr(info, field, None)) is not None
    }
    if "lp" not in stats and hasattr(state, "logdensity"):
        stats["lp"] = state.logdensity
    if "diverging" not in stats:
        stats["diverging"] = ~jnp.all(jnp.isfinite(state.position))
    if hasattr(info, "nonans"):
        stats["diverging"] |= ~jnp.asarray(info.nonans, bool)
    return stats


@functools.partial(jax.jit, static_argnames=("plan", "thinning", "capacity"))
def _sampling_chunk(
    states: Any,
    start: Array,
    count: Array,
    keys: PRNGKey,
    logdensity_fn: LogDensity,
    parameters: dict[str, Any],
    *,
    plan: Plan,
    thinning: int,
    capacity: int,
) -> tuple[Any, Any]:
    def one(state: Any, key: PRNGKey, parameters: dict[str, Any], draw: Array) -> Any:
        algorithm = plan.build(logdensity_fn, parameters)

        def move(state: Any, index: Array) -> tuple[Any, dict[str, Array]]:
            state, info = algorithm.step(jax.random.fold_in(key, index), state)
            return state, statistics(state, info)

        if thinning == 1:
            state, stats = move(state, draw)
        else:
            indices = draw * thinning + jnp.arange(thinning)
            state, rows = jax.lax.scan(move, state, indices)
            stats = {k: _REDUCTIONS.get(k, lambda r: r[-1])(v) for k, v in rows.items()}
        return state, (state.position, stats)

    over_chains = jax.vmap(one, in_axes=(0, 0, plan.axes(parameters), None))
    return repeat(
        lambda states, draw: over_chains(states, keys, parameters, draw),
        states,
        start,
        count,
        capacity,
    )


def sample(
    keys: PRNGKey,
    logdensity_fn: LogDensity,
    states: Any,
    parameters: Mapping[str, Any],
    plan: Plan,
    *,
    num_samples: int,
    thinning: int = 1,
    progress: bool = False,
    chunk: int | None = None,
) -> Draws:
    """Draw from all chains.

    Parameters
    ----------
    keys
        One for each chain; step ``i`` uses ``fold_in(key, i)``.
    logdensity_fn
        A pytree function of a position.
    states
        States of the algorithm, leading axis ``chain``.
    parameters
        Parameters of the algorithm.
    plan
        The static part.
    num_samples, thinning
        Draws to keep of each chain, and steps for each of them.
    chunk
        Fixed number of draws between two returns to the host.
    """
    capacity = capacity_for(row_bytes(keys, plan), num_samples)

    def program(carry: Any, start: int, count: int) -> tuple[Any, Any]:
        return _sampling_chunk(
            carry,
            start,  # pyright: ignore[reportArgumentType]
            count,  # pyright: ignore[reportArgumentType]
            keys,
            logdensity_fn,
            dict(parameters),
            plan=plan,
            thinning=thinning,
            capacity=capacity,
        )

    outcome = drive(
        program, states, num_samples, capacity, progress=progress, label="sample", chunk=chunk
    )
    return stacked(outcome)


def row_bytes(keys: PRNGKey, plan: Plan) -> int:
    """Memory of one draw of all chains, with room for its statistics."""
    return keys.shape[0] * (plan.layout.dimension + 10) * 8


def stacked(outcome: Outcome) -> Draws:
    """Draws of a loop over chains, ``[draw, chain, ...]`` turned to ``[chain, draw, ...]``."""
    positions, stats = jax.tree.map(lambda rows: np.moveaxis(rows, 0, 1), outcome.outputs)
    return Draws(positions, stats, outcome.carry, outcome.complete)

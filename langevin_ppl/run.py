"""Chains: from a log density, a kernel and states to `Draws`.

Everything here works on flat positions ``[chain, dimension]`` and takes kernels of this library
and of BlackJAX alike. Algorithms are built inside the compiled program from the log density that
is passed in, so other data of the same shapes compile nothing.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from langevin_ppl.base import Array, Draws, GradientEstimator, LogDensity, PRNGKey
from langevin_ppl.compilation import ONCE, QUICK, ahead
from langevin_ppl.devices import CHAIN, place
from langevin_ppl.gradients import on_flat
from langevin_ppl.loop import Keeper, Monitor, Note, Outcome, capacity_for, drive, repeat
from langevin_ppl.supply import Feed, Supply
from langevin_ppl.targets.leaves import Static
from langevin_ppl.tree import Layout

__all__ = [
    "Chains",
    "Plan",
    "Probe",
    "Source",
    "advance",
    "capacity_of",
    "in_step",
    "phase_keys",
    "prepare",
    "statistics",
]


type Source = LogDensity | GradientEstimator
"""Where a kernel has its gradients from: a pytree."""


class Probe(NamedTuple):
    """A thermometer along one direction, where the gradient noise is largest.

    The momentum's square along it, of a kinetic kernel; of an overdamped one, the product of
    position and estimated gradient, whose mean is the temperature as well (Stein's identity, or
    the virial theorem), because a batch is drawn after the position that it is used at.

    Attributes
    ----------
    direction
        Unit vector in the frame of the inverse mass matrix, ``[dimension]``.
    left, right
        ``L^{-T}`` and ``L`` times it, ``[dimension]``.
    centre
        Where positions are measured from, ``[dimension]``.
    """

    direction: Array
    left: Array
    right: Array
    centre: Array

    def temperature(self, state: Any) -> Array:
        """Temperature of one state; its mean over a run is what says something."""
        if hasattr(state, "momentum"):
            return jnp.square(state.momentum @ self.direction)
        lever = (state.position - self.centre) @ self.left
        return -lever * (state.logdensity_grad @ self.right)


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
    adaptation
        What tunes the algorithm while it runs (`langevin_ppl.warmup.adaptation.Adaptation`), or
        None.
    capacity
        Length of a chunk's buffers, the same for warm-up and sampling.
    """

    algorithm: Static
    layout: Layout
    fixed: tuple[tuple[str, Static], ...] = ()
    per_chain: frozenset[str] = frozenset()
    adaptation: Any = None
    capacity: int = 1024

    def build(self, source: Source, parameters: Mapping[str, Any]) -> Any:
        """Build the algorithm on flat positions."""
        fixed = {name: value.value for name, value in self.fixed}
        return self.algorithm.value(self.flat(source), **fixed, **parameters)

    def flat(self, source: Source) -> Any:
        """Log density, or gradient estimator, of flat positions."""
        return on_flat(source, self.layout)

    def axes(self, parameters: Mapping[str, Any]) -> dict[str, int | None]:
        """Axes over which to vmap the parameters."""
        return {name: 0 if name in self.per_chain else None for name in parameters}


@functools.partial(jax.jit, static_argnums=1, compiler_options=ONCE)
def _phase_keys(rng_key: PRNGKey, num_chains: int) -> tuple[PRNGKey, ...]:
    over_chains = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    over_phases = jax.vmap(over_chains, in_axes=(0, None))
    keys = over_phases(jax.random.split(rng_key, 4), jnp.arange(num_chains))
    return keys[0], keys[1], keys[2], keys[3, 0]


def phase_keys(
    rng_key: PRNGKey, num_chains: int, mesh: Mesh | None = None
) -> tuple[PRNGKey, PRNGKey, PRNGKey, PRNGKey]:
    """Keys of starting positions, warm-up and sampling, ``[chain]`` each, and of predictions.

    Those of chains come from folding in the chain's number: no layout changes them. They are placed
    on the mesh, and what a run computes for each chain follows them.
    """
    *phases, last = _phase_keys(rng_key, num_chains)
    starts, warmup, sampling = (place(keys, mesh, CHAIN) for keys in phases)
    return starts, warmup, sampling, last


# Names in `sample_stats` of what infos report, and how a thinned draw sums its steps up.
_FIELDS = {
    "is_divergent": "diverging",
    "acceptance_rate": "acceptance_rate",
    "logdensity": "lp",
    "grad_norm": "grad_norm",
    "taming_loss": "taming_loss",
    "swap_rate": "swap_rate",
    "cycle": "cycle",
    "log_weight": "log_weight",
    "energy": "energy",
    "energy_change": "energy_error",
    "num_integration_steps": "n_steps",
    "num_trajectory_expansions": "tree_depth",
}
_REDUCTIONS: dict[str, Callable[[Array], Array]] = {
    "diverging": lambda rows: jnp.any(rows, axis=0),
    "acceptance_rate": lambda rows: jnp.mean(rows, axis=0),
    "taming_loss": lambda rows: jnp.mean(rows, axis=0),
    "swap_rate": lambda rows: jnp.nanmean(rows, axis=0),
    "temperature": lambda rows: jnp.mean(rows, axis=0),
    "n_steps": lambda rows: jnp.sum(rows, axis=0),
}


def statistics(state: Any, info: Any) -> dict[str, Array]:
    """Report a step under ArviZ's names; nothing that the kernel does not know."""
    stats = {
        name: value
        for field, name in _FIELDS.items()
        if (value := getattr(info, field, None)) is not None
    }
    if not hasattr(info, "logdensity") and hasattr(state, "logdensity"):
        stats["lp"] = state.logdensity
    if "diverging" not in stats:
        stats["diverging"] = ~jnp.all(jnp.isfinite(state.position))
    if hasattr(info, "nonans"):
        stats["diverging"] |= ~jnp.asarray(info.nonans, bool)
    return stats


class Chains(NamedTuple):
    """What a run carries from step to step.

    Attributes
    ----------
    states
        States of the algorithm, leading axis ``chain``.
    tuning
        State of the adaptation, one for all chains; None without one.
    """

    states: Any
    tuning: Any = None


@functools.partial(
    jax.jit,
    static_argnames=("plan", "thinning"),
    compiler_options=QUICK,
)
def _chunk(
    chains: Chains,
    start: Array,
    count: Array,
    keys: PRNGKey,
    source: Source,
    parameters: dict[str, Any],
    schedule: Any,
    probe: Probe | None = None,
    feed: Feed | None = None,
    *,
    plan: Plan,
    thinning: int,
) -> tuple[Any, Any]:
    adaptation = plan.adaptation
    # No step has this number, so that no chain uses the key for itself.
    common_key = jax.random.fold_in(keys[0], 2**32 - 1)

    def one(state: Any, key: PRNGKey, parameters: dict[str, Any], draw: Array) -> Any:
        def move(state: Any, index: Array) -> tuple[Any, dict[str, Array]]:
            algorithm = plan.build(in_step(source, common_key, index, feed), parameters)
            state, info = algorithm.step(jax.random.fold_in(key, index), state)
            stats = statistics(state, info)
            if probe is not None:
                stats["temperature"] = probe.temperature(state)
            return state, stats

        if thinning == 1:
            return move(state, draw)
        indices = draw * thinning + jnp.arange(thinning)
        state, rows = jax.lax.scan(move, state, indices)
        return state, {k: _REDUCTIONS.get(k, lambda r: r[-1])(v) for k, v in rows.items()}

    def step(chains: Chains, draw: Array) -> tuple[Chains, Any]:
        states, tuning = chains
        tuned = dict(parameters)
        if adaptation is not None:
            tuned |= adaptation.parameters(tuning)
        over_chains = jax.vmap(one, in_axes=(0, 0, plan.axes(tuned), None))
        states, stats = over_chains(states, keys, tuned, draw)
        if adaptation is not None:
            tuning = _update(adaptation, states, stats, schedule, draw, tuning)
        return Chains(states, tuning), (states.position, stats)

    return repeat(step, chains, start, count, plan.capacity)


def in_step(source: Source, common_key: PRNGKey, index: Array, feed: Feed | None = None) -> Source:
    """Estimator whose batches follow the run's counter, one for all chains where it says so.

    The counter of a chain's state is its own: what depends on it would be computed for every chain,
    and a branch on it would be no branch.

    Parameters
    ----------
    common_key
        Of batches that all chains share.
    index
        Number of the step.
    feed
        Batches of a stream, which all chains share.
    """
    if not isinstance(source, GradientEstimator) or source.draw is None:
        return source
    draw, calls = source.draw, itertools.count()  # a step that draws twice gets two batches
    if feed is not None:
        return dataclasses.replace(
            source, draw=lambda rng_key, step: feed.drawn(index, next(calls))
        )
    if not source.shared:
        return dataclasses.replace(source, draw=lambda rng_key, step: draw(rng_key, index))
    key = jax.random.fold_in(common_key, index)

    def common(rng_key: PRNGKey, step: Array) -> Any:
        return draw(jax.random.fold_in(key, next(calls)), index)

    return dataclasses.replace(source, draw=common)


def _update(
    adaptation: Any, states: Any, stats: dict[str, Array], schedule: Any, index: Array, tuning: Any
) -> Any:
    pooled = jax.vmap(
        adaptation.update,
        in_axes=(None, 0, 0, 0, None),
        out_axes=None,
        axis_name=adaptation.axis_name,
    )
    flags = jax.tree.map(lambda flag: flag[index], schedule)
    return pooled(tuning, states.position, states.logdensity_grad, stats["acceptance_rate"], flags)


def prepare(
    keys: PRNGKey,
    source: Source,
    chains: Chains,
    parameters: Mapping[str, Any],
    plan: Plan,
    *,
    schedule: Any = None,
    probe: Probe | None = None,
    thinning: int = 1,
    supply: Supply | None = None,
) -> Callable[[], None]:
    """Compile what `advance` will run, while other work goes on; wait by calling the result.

    Parameters
    ----------
    chains
        Their shapes.
    """
    feed = None
    if supply is not None:
        plan = supply.fitted(plan, thinning)
        feed = supply.shapes(plan.capacity * thinning)
    arguments = (chains, 0, 1, keys, source, dict(parameters), schedule, probe, feed)
    return ahead(_chunk, arguments, {"plan": plan, "thinning": thinning})[1]


def advance(
    keys: PRNGKey,
    source: Source,
    chains: Chains,
    parameters: Mapping[str, Any],
    plan: Plan,
    *,
    num_steps: int,
    schedule: Any = None,
    probe: Probe | None = None,
    thinning: int = 1,
    progress: bool = False,
    label: str = "sample",
    chunk: int | None = None,
    monitor: Monitor | None = None,
    keeper: Keeper | None = None,
    note: Note | None = None,
    supply: Supply | None = None,
) -> Draws:
    """Run all chains, for warm-up and for sampling alike.

    Parameters
    ----------
    keys
        One for each chain; step ``i`` uses ``fold_in(key, i)``.
    source
        Log density or gradient estimator, a pytree.
    chains
        Where they are.
    parameters
        Parameters of the algorithm that are not tuned.
    plan
        The static part.
    num_steps, thinning
        Draws to keep of each chain, and steps for each of them.
    schedule
        What the plan's adaptation does in each step; None without one.
    probe
        Thermometer to read in every step, or None.
    progress, label, chunk, monitor, keeper, note
        As in `langevin_ppl.loop.drive`.
    supply
        Batches of a stream; None where all data are in memory.

    Returns
    -------
    Draws
        Its ``final_state`` are `Chains`.
    """
    feeds: Callable[[int], Feed | None] = _no_feed
    with contextlib.ExitStack() as stack:
        if supply is not None:
            plan = supply.fitted(plan, thinning)
            feeds = stack.enter_context(supply.feeds(plan.capacity, thinning))

        def program(carry: Any, start: int, count: int) -> tuple[Any, Any]:
            carry, outputs = _chunk(
                carry,
                start,  # pyright: ignore[reportArgumentType]
                count,  # pyright: ignore[reportArgumentType]
                keys,
                source,
                dict(parameters),
                schedule,
                probe,
                feeds(start),
                plan=plan,
                thinning=thinning,
            )
            return _beside(keys, carry), outputs

        outcome = drive(
            program,
            _beside(keys, chains),
            num_steps,
            plan.capacity,
            progress=progress,
            label=label,
            chunk=chunk,
            monitor=monitor,
            keeper=keeper,
            note=note,
        )
    return stacked(outcome)


def _no_feed(start: int) -> None:
    """Without a stream nothing is brought to the steps."""


def _beside(keys: PRNGKey, chains: Chains) -> Chains:
    """Put chains where their keys are, so that every chunk finds them placed alike.

    Else the partitioner's choice for the results of one chunk would compile the next anew.
    """
    if not isinstance(keys.sharding, NamedSharding):
        return chains
    mesh: Any = keys.sharding.mesh
    return Chains(place(chains.states, mesh, CHAIN), place(chains.tuning, mesh))


def capacity_of(layout: Layout, num_chains: int) -> int:
    """Length of buffers for the draws of all chains, with room for their statistics."""
    return capacity_for(num_chains * (layout.dimension + 10) * 8)


def stacked(outcome: Outcome) -> Draws:
    """Draws of a loop over chains, ``[draw, chain, ...]`` turned to ``[chain, draw, ...]``."""
    positions, stats = jax.tree.map(lambda rows: np.moveaxis(rows, 0, 1), outcome.outputs)
    return Draws(positions, stats, outcome.carry, outcome.complete)

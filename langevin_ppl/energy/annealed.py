"""Annealed importance sampling: from the base measure of an energy to its law, with ``log Z``."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from langevin_ppl.base import Array, LogDensity, Position, PRNGKey
from langevin_ppl.energy.walkers import has_gaussian_steps, moved, reevaluated
from langevin_ppl.energy.weights import Normalizer, effective_share, log_mean_exp
from langevin_ppl.kernels import Kernel
from langevin_ppl.targets import ModelTarget
from langevin_ppl.tree import ravel

__all__ = ["Annealed", "anneal", "bridge", "draws_of_base", "variances"]

PILOTS, ROUNDS = 64, 8
"""Walkers by which steps are tuned, and how often at every level."""

GAIN = 0.7
"""How much the logarithm of the step changes for an acceptance rate that is off by one."""


class Annealed(NamedTuple):
    """Weighted walkers of the law at the end.

    Attributes
    ----------
    positions
        Unconstrained, leading axis ``walker``.
    log_weights
        The mean of their exponentials is the normaliser, ``[walker]``. A walker that has left the
        finite numbers has the weight 0.
    acceptance_rates
        Of every level, 0 without a Metropolis test, ``[level]``.
    """

    positions: Position
    log_weights: Array
    acceptance_rates: Array

    @property
    def normalizer(self) -> Normalizer:
        """Normaliser by the mean of the weights, which are independent."""
        size, share = self.log_weights.size, effective_share(self.log_weights)
        error = jnp.sqrt((1.0 / share - 1.0) / size)
        value = log_mean_exp(self.log_weights)
        return Normalizer(float(value), float(error), float(share * size))


def draws_of_base(rng_key: PRNGKey, base: ModelTarget, number: int) -> Position:
    """Unconstrained positions of exact draws of a base measure, ``[walker, ...]``."""
    drawn = base.predict_prior(rng_key, number)
    values = {name: drawn[name][0] for name in base.prototype}
    return jax.vmap(base.unconstrain)(values)[0]


def variances(positions: Position) -> Array:
    """Variances of flat positions ``[walker, ...]``, as a diagonal inverse mass matrix."""
    rows = np.asarray(jax.vmap(lambda position: ravel(position)[0])(positions))
    return jnp.asarray(rows.var(axis=0) + 1e-12)


def bridge(base: LogDensity, end: LogDensity, level: Any) -> LogDensity:
    """Log density between two: a share ``level`` of the way."""
    return Partial(_between, base, end, level)


def _between(base: LogDensity, end: LogDensity, level: Any, position: Position) -> Array:
    return (1.0 - level) * base(position) + level * end(position)


def anneal(
    rng_key: PRNGKey,
    base: ModelTarget,
    end: ModelTarget,
    num_walkers: int,
    num_levels: int,
    steps_per_level: int,
    kernel: Kernel,
    parameters: Mapping[str, Any],
) -> Annealed:
    """Walk from the base measure to the law of a target.

    Parameters
    ----------
    rng_key
        A key.
    base, end
        Targets of the same sites; the first is normalised and can be drawn from.
    num_walkers, num_levels, steps_per_level
        Walkers, levels of the bridge, and steps of the kernel at each of them.
    kernel
        One whose walkers can be weighed.
    parameters
        Its parameters. Without a step size, that of every level is tuned by other walkers, and
        with it the metric is the diagonal of the covariance of the base.
    """
    key_draw, key_pilot, key_walk = jax.random.split(rng_key, 3)
    levels = jnp.linspace(0.0, 1.0, num_levels + 1)[1:]
    ends = base.logdensity_fn, end.logdensity_fn
    positions = draws_of_base(key_draw, base, num_walkers)
    parameters = dict(parameters)
    if has_gaussian_steps(kernel) and "step_size" not in parameters:
        raise TypeError(
            f"{kernel!r} has no Metropolis test by which its step size could be tuned: expected "
            "step_size=, or a kernel with one such as langevin_ppl.mala."
        )
    if "step_size" in parameters:
        steps = jnp.full(num_levels, parameters.pop("step_size"))
    else:
        pilots = draws_of_base(key_pilot, base, PILOTS)
        parameters.setdefault("inverse_mass_matrix", variances(pilots))
        steps = _tuned(key_pilot, ends, levels, pilots, parameters, kernel)
    return _walk(key_walk, ends, levels, steps, positions, parameters, kernel, steps_per_level)


@functools.partial(jax.jit, static_argnames=("kernel", "steps_per_level"))
def _walk(
    rng_key: PRNGKey,
    ends: Any,
    levels: Array,
    steps: Array,
    positions: Position,
    parameters: Any,
    kernel: Kernel,
    steps_per_level: int,
) -> Annealed:
    weigh = has_gaussian_steps(kernel)

    def one(key: PRNGKey, position: Position) -> tuple[Position, Array, Array]:
        def level(carry: Any, row: Any) -> Any:
            state, weight = carry
            number, share, step_size = row
            density = bridge(ends[0], ends[1], share)
            own = kernel.prepare({**parameters, "step_size": step_size})
            if not weigh:
                before = state.logdensity
                state = reevaluated(state, density)
                weight = weight + state.logdensity - before
            level_key = jax.random.fold_in(key, number)
            state, steps_weight, rate = moved(
                kernel, density, own, level_key, state, steps_per_level, weigh
            )
            weight = weight + steps_weight
            return (state, weight), rate

        state = kernel.init(position, ends[0])
        rows = jnp.arange(len(levels)), levels, steps
        start = state, jnp.zeros_like(state.logdensity)
        (state, weight), rates = jax.lax.scan(level, start, rows)
        return state.position, weight, rates

    keys = jax.random.split(rng_key, len(jax.tree.leaves(positions)[0]))
    positions, weights, rates = jax.vmap(one)(keys, positions)
    weights = jnp.where(jnp.isfinite(weights), weights, -jnp.inf)
    return Annealed(positions, weights, jnp.mean(rates, axis=0))


@functools.partial(jax.jit, static_argnames="kernel")
def _tuned(
    rng_key: PRNGKey,
    ends: Any,
    levels: Array,
    pilots: Position,
    parameters: Any,
    kernel: Kernel,
) -> Array:
    """Step size of every level, by walkers that are not used again."""
    target: Any = kernel.target_acceptance_rate

    def level(carry: Any, row: Any) -> Any:
        number, share = row
        density = bridge(ends[0], ends[1], share)

        def again(i: Array, carry: Any) -> Any:
            positions, log_step = carry
            own = kernel.prepare({**parameters, "step_size": jnp.exp(log_step)})
            algorithm: Any = kernel(density, **own)

            def one(key: PRNGKey, position: Position) -> tuple[Position, Array]:
                state, info = algorithm.step(key, algorithm.init(position))
                return state.position, info.acceptance_rate

            key = jax.random.fold_in(jax.random.fold_in(rng_key, number), i)
            positions, rates = jax.vmap(one)(jax.random.split(key, PILOTS), positions)
            return positions, log_step + GAIN * (jnp.mean(rates) - target)

        positions, log_step = jax.lax.fori_loop(0, ROUNDS, again, carry)
        return (positions, log_step), jnp.exp(log_step)

    first = jnp.zeros((), levels.dtype)
    # The first levels pay for the search of the step.
    start, _ = level((pilots, first), (len(levels), levels[0]))
    _, steps = jax.lax.scan(level, start, (jnp.arange(len(levels)), levels))
    return steps

"""Ways in which particles move: by an optimiser of Optax, to their consensus, by exchange."""

import dataclasses
import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from langevin_ppl.base import (
    Array,
    AssumptionWarning,
    Position,
    PRNGKey,
    check_counts,
    check_number,
)
from langevin_ppl.kernels import Kernel, parallel_tempering, tmala
from langevin_ppl.kernels.tempering import check_replicable
from langevin_ppl.optim.blocks import Number, at
from langevin_ppl.taming import norm
from langevin_ppl.tree import all_finite

__all__ = [
    "Consensus",
    "Exchange",
    "Method",
    "Restarts",
    "Stepped",
    "consensus",
    "replica_exchange",
]


class Stepped(NamedTuple):
    """What a step of all particles gives.

    Attributes
    ----------
    state
        Of the method.
    points, values
        Points that were evaluated, leading axis ``particle``, and the objective there.
    failed
        Particles that can't go on, ``[particle]``.
    """

    state: Any
    points: Position
    values: Array
    failed: Array


class Method(Protocol):
    """How particles move; hashable, and compared by value, for it is part of the program."""

    def check(self, starts: Position) -> None:
        """Refuse, or warn of, what cannot work from these starts, leading axis ``particle``."""
        ...

    def evaluations(self, num_particles: int) -> tuple[int, int]:
        """Values and gradients of the objective in a step."""
        ...

    def init(self, rng_key: PRNGKey, fn: Any, starts: Position) -> Any:
        """State of all particles."""
        ...

    def step(self, rng_key: PRNGKey, fn: Any, state: Any) -> Stepped:
        """Evaluate where the particles are, and move them."""
        ...

    def positions(self, state: Any) -> Position:
        """Where the particles are, leading axis ``particle``."""
        ...


class RestartsState(NamedTuple):
    """Positions and states of the optimiser, leading axis ``particle``."""

    position: Position
    optimizer: Any
    failed: Array


@dataclasses.dataclass(frozen=True)
class Restarts:
    """Particles that don't know of each other, each moved by an optimiser of Optax."""

    optimizer: optax.GradientTransformation

    def check(self, starts: Position) -> None:
        """Accept everything."""

    def evaluations(self, num_particles: int) -> tuple[int, int]:
        """One of each for a particle."""
        return num_particles, num_particles

    def init(self, rng_key: PRNGKey, fn: Any, starts: Position) -> RestartsState:
        """States in which every particle has keys of its own."""
        states = jax.vmap(self.optimizer.init)(starts)
        number = len(jax.tree.leaves(starts)[0])
        leaves, treedef = jax.tree.flatten(states)
        for place, leaf in enumerate(leaves):
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaves[place] = jax.random.split(jax.random.fold_in(rng_key, place), number)
        none = jnp.zeros(number, bool)
        return RestartsState(starts, jax.tree.unflatten(treedef, leaves), none)

    def step(self, rng_key: PRNGKey, fn: Any, state: RestartsState) -> Stepped:
        """Move every particle by its gradient; those without a finite one stay."""
        update = optax.with_extra_args_support(self.optimizer).update

        def move(old: RestartsState) -> tuple[RestartsState, Array]:
            value, gradient = jax.value_and_grad(fn)(old.position)
            updates, inner = update(
                gradient, old.optimizer, old.position, value=value, grad=gradient, value_fn=fn
            )
            position = optax.apply_updates(old.position, updates)
            failed = old.failed | ~all_finite(value, *jax.tree.leaves(gradient))
            new = RestartsState(position, inner, failed)
            kept = jax.tree.map(lambda a, b: jnp.where(failed, b, a), new, old)
            return kept._replace(failed=failed), value

        new, values = jax.vmap(move)(state)
        return Stepped(new, state.position, values, new.failed)

    def positions(self, state: RestartsState) -> Position:
        """Where the particles are."""
        return state.position


class ConsensusState(NamedTuple):
    """Positions, leading axis ``particle``, and the count of steps."""

    position: Position
    step: Array


@dataclasses.dataclass(frozen=True)
class Consensus:
    """Particles drawn to a mean weighted by the objective; made by `consensus`."""

    drift: float
    noise: float
    step_size: float
    sharpness: Number
    anisotropic: bool
    batch_size: int | None

    def check(self, starts: Position) -> None:
        """Refuse one particle and uneven batches, and warn of noise that drives them apart."""
        leaves = jax.tree.leaves(starts)
        num_particles, dimension = len(leaves[0]), sum(leaf[0].size for leaf in leaves)
        size = num_particles if self.batch_size is None else self.batch_size
        if min(num_particles, size) < 2 or num_particles % size:
            raise ValueError(
                "consensus: expected at least two particles, and a batch_size of at least two that "
                f"divides their number, got num_particles={num_particles}, batch_size={size}."
            )
        if all(bool(jnp.all(leaf == leaf[:1])) for leaf in leaves):
            raise ValueError(
                "consensus: all particles start at the same point, where they would stay. Expected "
                "a spread above 0, or an x0 that draws a point from a key."
            )
        spread = 1 if self.anisotropic else dimension
        variance = spread * self.noise**2
        kept = (1.0 - self.drift * self.step_size) ** 2 + variance * self.step_size
        if kept >= 1.0:
            limit = math.sqrt(max(0.0, 2.0 * self.drift - self.drift**2 * self.step_size) / spread)
            rule = "2 drift <= noise^2" if self.anisotropic else "2 drift <= dimension noise^2"
            warnings.warn(
                f"consensus: particles cannot contract in mean square: a step multiplies their "
                f"squared distance by {kept:.3g} (in small steps, where {rule}). Take noise below "
                f"{limit:.3g}" + ("." if self.anisotropic else ", or anisotropic=True."),
                AssumptionWarning,
                stacklevel=3,
            )

    def evaluations(self, num_particles: int) -> tuple[int, int]:
        """One value for a particle."""
        return num_particles, 0

    def init(self, rng_key: PRNGKey, fn: Any, starts: Position) -> ConsensusState:
        """State at the starts."""
        return ConsensusState(starts, jnp.zeros((), jnp.int32))

    def step(self, rng_key: PRNGKey, fn: Any, state: ConsensusState) -> Stepped:
        """Draw particles to the consensus of their batch."""
        position, step = state
        values = jax.vmap(fn)(position)
        number = values.size
        batches = number // (self.batch_size or number)
        key_order, key_noise = jax.random.split(rng_key)
        order = jnp.arange(number) if batches == 1 else jax.random.permutation(key_order, number)
        # What isn't finite has no weight; where nothing has, nobody moves.
        heights = jnp.where(jnp.isfinite(values), values, jnp.inf)[order].reshape(batches, -1)
        lowest = jnp.min(heights, axis=1, keepdims=True)
        known = jnp.isfinite(lowest)
        excess = jnp.where(known & jnp.isfinite(heights), heights - lowest, jnp.inf)
        weights = jnp.where(known, jax.nn.softmax(-at(self.sharpness, step) * excess, axis=1), 0.0)
        moves = jnp.zeros(number, bool).at[order].set(jnp.repeat(known[:, 0], number // batches))

        def apart(leaf: Array) -> Array:
            """Each particle's distance from the consensus of its batch."""
            rows = leaf[order].reshape(batches, -1, *leaf.shape[1:])
            mean = jax.vmap(lambda w, x: jnp.tensordot(w, x, 1))(weights, rows)
            away = (rows - mean[:, None]).reshape(number, *leaf.shape[1:])
            return jnp.zeros_like(leaf).at[order].set(away)

        away = jax.tree.map(apart, position)
        away = jax.vmap(lambda tree, on: jax.tree.map(lambda a: jnp.where(on, a, 0.0), tree))(
            away, moves
        )
        leaves, treedef = jax.tree.flatten(away)
        if self.anisotropic:
            reach = leaves
        else:
            lengths = jax.vmap(norm)(away)
            reach = [lengths.reshape(-1, *[1] * (leaf.ndim - 1)) for leaf in leaves]
        keys = jax.random.split(key_noise, len(leaves))
        scale = self.noise * math.sqrt(self.step_size)
        steps = [
            scale * far * jax.random.normal(key, leaf.shape, leaf.dtype)
            - self.drift * self.step_size * leaf
            for key, leaf, far in zip(keys, leaves, reach, strict=True)
        ]
        moved = jax.tree.map(jnp.add, position, jax.tree.unflatten(treedef, steps))
        return Stepped(ConsensusState(moved, step + 1), position, values, jnp.zeros(number, bool))

    def positions(self, state: ConsensusState) -> Position:
        """Where the particles are."""
        return state.position


def consensus(
    *,
    drift: float = 1.0,
    noise: float = 1.3,
    step_size: float = 0.1,
    sharpness: Number = 1e5,
    anisotropic: bool = True,
    batch_size: int | None = None,
) -> Consensus:
    r"""Consensus-based optimisation, without derivatives.

    .. math::

        x_i' = x_i - \lambda \, dt \, (x_i - c) + \sigma \sqrt{dt} \, D(x_i - c) \xi_i, \qquad
        c = \frac{\sum_j x_j e^{-\alpha f(x_j)}}{\sum_j e^{-\alpha f(x_j)}},

    with the distance of every coordinate in :math:`D` (anisotropic), or the norm of all of them.

    Parameters
    ----------
    drift
        :math:`\lambda`.
    noise
        :math:`\sigma`. Particles come together in mean square where
        :math:`(1 - \lambda dt)^2 + \sigma^2 dt < 1`, for small steps :math:`2 \lambda > \sigma^2`;
        with isotropic noise :math:`\sigma^2` counts once for every dimension.
    step_size
        :math:`dt`.
    sharpness
        :math:`\alpha`, a number or a schedule. Large ones make ``c`` the best particle.
    anisotropic
        Whether every coordinate has noise by its own distance: the rate then does not depend on
        the dimension.
    batch_size
        Particles are dealt anew to batches of this size in every step, each with its own
        consensus, which keeps them apart for longer; all in one by default. With 200 particles,
        batches of 20 found the lowest minimum more often.

    Returns
    -------
    Consensus
        A method of `langevin_ppl.optim.minimize`.

    Notes
    -----
    The rule is for mean squares. The experiments of Carrillo et al. (2021), with a noise of 5.1, a
    step size of 0.01 and a sharpness of 30, break it, and particles then still come together, but
    for rare ones that fly far out on the way; for long runs it is worth a try.

    Raises
    ------
    ValueError
        If a number is not positive.

    References
    ----------
    Pinnau, Totzeck, Tse, Martin, *A consensus-based model for global optimization and its
    mean-field limit* (2017), arXiv:1604.05648; Carrillo, Jin, Li, Zhu, *A consensus-based global
    optimization method for high dimensional machine learning problems* (2021), arXiv:1909.09249.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> rastrigin = lambda x: 10 * x.size + jnp.sum(x**2 - 10 * jnp.cos(2 * jnp.pi * x))
    >>> found = lp.optim.minimize(
    ...     jax.random.key(0), rastrigin, jnp.full(2, 3.0), lp.optim.consensus(),
    ...     num_steps=200, num_particles=100, spread=3.0,
    ... )
    >>> found.x.round(2) + 0.0
    Array([0., 0.], dtype=float32)
    """
    check_number("drift", drift, above=0.0)
    check_number("noise", noise, least=0.0)
    check_number("step_size", step_size, above=0.0)
    if not callable(sharpness):
        check_number("sharpness", sharpness, above=0.0)
    if batch_size is not None:
        check_counts(2, batch_size=batch_size)
    return Consensus(
        float(drift), float(noise), float(step_size), sharpness, bool(anisotropic), batch_size
    )


def _scaled(fn: Any, temperature: float, position: Position) -> Array:
    return -fn(position) / temperature


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Particles each of which is a ladder of replicas; made by `replica_exchange`."""

    learning_rate: float
    temperatures: tuple[float, ...]
    kernel: Kernel

    def check(self, starts: Position) -> None:
        """Accept everything."""

    def _algorithm(self, fn: Any) -> Any:
        coldest = self.temperatures[0]
        ladder = [temperature / coldest for temperature in self.temperatures]
        logdensity_fn = functools.partial(_scaled, fn, coldest)
        kernel = parallel_tempering(self.kernel, [1.0, *ladder[1:]])
        # x - h grad f + sqrt(2 h T) xi, in the units of a kernel on -f / T of the coldest.
        return kernel(logdensity_fn, step_size=self.learning_rate * coldest)

    def evaluations(self, num_particles: int) -> tuple[int, int]:
        """One of each for a replica."""
        count = num_particles * len(self.temperatures) * self.kernel.gradients_per_step
        return count, count

    def init(self, rng_key: PRNGKey, fn: Any, starts: Position) -> Any:
        """Replicas that all begin where their particle does."""
        return jax.vmap(self._algorithm(fn).init)(starts)

    def step(self, rng_key: PRNGKey, fn: Any, state: Any) -> Stepped:
        """Move every replica, and exchange neighbours."""
        number = len(state.step)
        points, values = self._best(state)
        new, _ = jax.vmap(self._algorithm(fn).step)(jax.random.split(rng_key, number), state)
        failed = ~jnp.any(jnp.isfinite(new.replicas.logdensity), axis=1)
        return Stepped(new, points, values, failed)

    def _best(self, state: Any) -> tuple[Position, Array]:
        """Best replica of each particle."""
        heights = -self.temperatures[0] * state.replicas.logdensity
        best = jnp.argmin(jnp.where(jnp.isfinite(heights), heights, jnp.inf), axis=1)

        def pick(leaf: Array) -> Array:
            return jax.vmap(lambda rows, place: rows[place])(leaf, best)

        return jax.tree.map(pick, state.replicas.position), pick(heights)

    def positions(self, state: Any) -> Position:
        """Where the best replicas are."""
        return self._best(state)[0]


def replica_exchange(
    learning_rate: float, temperatures: Sequence[float], *, kernel: Kernel = tmala
) -> Exchange:
    r"""Replica exchange: hot replicas cross barriers, cold ones descend, and they swap places.

    Each particle is a ladder of replicas that sample :math:`e^{-f / T}` at its temperatures, by a
    kernel of the library in `langevin_ppl.parallel_tempering`. All of them are candidates.

    Parameters
    ----------
    learning_rate
        ``h`` of a step :math:`-h \nabla f` with noise :math:`\sqrt{2 h T}`, the same for all.
    temperatures
        They rise, in units of the objective: the first as small as differences that matter, the
        last about as large as barriers are high.
    kernel
        `langevin_ppl.tmala` by default: its test makes a swap right, and its taming brings it
        back from where gradients explode.

    Returns
    -------
    Exchange
        A method of `langevin_ppl.optim.minimize`.

    Raises
    ------
    TypeError, ValueError
        If the kernel's replicas cannot be swapped, or the temperatures don't rise.

    References
    ----------
    Swendsen, Wang, *Replica Monte Carlo simulation of spin glasses* (1986); Geyer (1991); Chen,
    Chen, Dong, Peng, Wang, *Accelerating nonconvex learning via replica exchange Langevin
    diffusion* (2019), arXiv:2007.01990.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> rastrigin = lambda x: 10 * x.size + jnp.sum(x**2 - 10 * jnp.cos(2 * jnp.pi * x))
    >>> method = lp.optim.replica_exchange(2e-3, [0.1, 1.0, 10.0])
    >>> found = lp.optim.minimize(
    ...     jax.random.key(0), rastrigin, jnp.full(2, 3.0), method, num_steps=1000, num_particles=8
    ... )
    >>> found.x.round(2) + 0.0
    Array([0., 0.], dtype=float32)
    """
    check_number("learning_rate", learning_rate, above=0.0)
    check_replicable("replica_exchange", kernel)
    ladder = tuple(float(value) for value in temperatures)
    rising = all(low < high for low, high in zip(ladder, ladder[1:], strict=False))
    if len(ladder) < 2 or not rising or ladder[0] <= 0 or not math.isfinite(ladder[-1]):
        raise ValueError(
            "replica_exchange: expected at least two positive temperatures that rise, for example "
            f"[0.1, 1.0, 10.0], got {list(ladder)}."
        )
    return Exchange(float(learning_rate), ladder, kernel)

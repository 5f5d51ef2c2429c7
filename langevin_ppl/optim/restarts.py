"""Particles that don't know of each other, each moved by an optimiser of Optax."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from langevin_ppl.base import Array, Position, PRNGKey
from langevin_ppl.optim.methods import Stepped
from langevin_ppl.optim.optimizers import LangevinOptimizer
from langevin_ppl.tree import all_finite

__all__ = ["Restarts"]


class RestartsState(NamedTuple):
    """Positions and states of the optimiser, leading axis ``particle``."""

    position: Position
    optimizer: Any
    failed: Array


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["learning_rate"], meta_fields=["make"]
)
@dataclasses.dataclass(frozen=True)
class Restarts:
    """The method.

    Attributes
    ----------
    make
        Hashable function from a learning rate to an optimiser.
    learning_rate
        A number that may be traced, so that another one is no other program; None where the
        optimiser is what it is.
    """

    make: Any
    learning_rate: Any = None

    @classmethod
    def of(cls, optimizer: optax.GradientTransformation) -> "Restarts":
        """Method of an optimiser; one of this library is made anew from its settings."""
        if isinstance(optimizer, LangevinOptimizer) and optimizer.recipe is not None:
            recipe = optimizer.recipe
            if not callable(recipe.learning_rate):
                return cls(recipe._replace(learning_rate=None), recipe.learning_rate)
        return cls(_Given(optimizer))

    def check(self, starts: Position) -> None:
        """Accept everything."""

    def evaluations(self, num_particles: int) -> tuple[int, int]:
        """One of each for a particle."""
        return num_particles, num_particles

    def init(self, rng_key: PRNGKey, fn: Any, starts: Position) -> RestartsState:
        """States in which every particle has keys of its own."""
        states = jax.vmap(self.make(self.learning_rate).init)(starts)
        number = len(jax.tree.leaves(starts)[0])
        leaves, treedef = jax.tree.flatten(states)
        for place, leaf in enumerate(leaves):
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaves[place] = jax.random.split(jax.random.fold_in(rng_key, place), number)
        none = jnp.zeros(number, bool)
        return RestartsState(starts, jax.tree.unflatten(treedef, leaves), none)

    def step(self, rng_key: PRNGKey, fn: Any, state: RestartsState) -> Stepped:
        """Move every particle by its gradient; those without a finite one stay."""
        update = optax.with_extra_args_support(self.make(self.learning_rate)).update

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


class _Given(NamedTuple):
    """An optimiser as it is."""

    optimizer: optax.GradientTransformation

    def __call__(self, learning_rate: None) -> optax.GradientTransformation:
        return self.optimizer

"""What is minimised: the gap of energies between data and walkers, or a loss without walkers."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from langevin_ppl.base import Array, PRNGKey
from langevin_ppl.energy.walkers import Chains
from langevin_ppl.fit import Reported
from langevin_ppl.tree import ravel

__all__ = ["Objective", "Penalties"]

POWER_STEPS = 5
"""Products with a weight matrix by which its largest singular value is found."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["magnitude", "gradient", "spectral"],
    meta_fields=["used"],
)
@dataclasses.dataclass(frozen=True)
class Penalties:
    """Weights of what is added to the loss; ``used`` says which are not 0.

    Attributes
    ----------
    magnitude
        Of the mean square of energies.
    gradient
        Of the mean square of the gradient of the energy in the datum.
    spectral
        Of the squares of the largest singular values of weight matrices.
    """

    magnitude: Any
    gradient: Any
    spectral: Any
    used: tuple[bool, bool, bool]

    @classmethod
    def of(cls, magnitude: float, gradient: float, spectral: float) -> "Penalties":
        """Weights as they are given."""
        used = magnitude > 0.0, gradient > 0.0, spectral > 0.0
        return cls(magnitude, gradient, spectral, used)

    def add(self, parameters: Any, densities: list[Array], gradients: Any) -> Array:
        """Penalty for log densities and gradients ``[datum, dimension]`` of data and walkers."""
        total = jnp.zeros(())
        if self.used[0]:
            total += self.magnitude * sum(jnp.mean(values**2) for values in densities)
        if self.used[1]:
            squares = [jnp.mean(jnp.sum(rows**2, axis=-1)) for rows in gradients()]
            total += self.gradient * sum(squares)
        if self.used[2]:
            total += self.spectral * _spectral(parameters)
        return total


def _spectral(parameters: Any) -> Array:
    """Sum of squares of the largest singular values of all matrices."""
    total = jnp.zeros(())
    for leaf in jax.tree.leaves(parameters):
        if leaf.ndim >= 2:
            matrix = leaf.reshape(leaf.shape[0], -1)
            fixed = jax.lax.stop_gradient(matrix)
            vector = jnp.ones(matrix.shape[1], matrix.dtype)
            for _ in range(POWER_STEPS):
                vector = fixed.T @ (fixed @ vector)
                vector = vector / jnp.maximum(jnp.linalg.norm(vector), 1e-12)
            total += jnp.sum((matrix @ vector) ** 2)
    return total


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["chains", "penalties", "centre", "scale"],
    meta_fields=["method"],
)
@dataclasses.dataclass(frozen=True)
class Objective:
    """Loss of the parameters on a batch of positions and conditions.

    Attributes
    ----------
    chains
        Model, kernel and its parameters.
    penalties
        What is added to the loss.
    centre, scale
        Of the flat positions of the data, by which it is told how far walkers are from them.
    method
        A `Sampling` or `Direct`.
    """

    chains: Chains
    penalties: Penalties
    centre: Array
    scale: Array
    method: Any

    def __call__(
        self, parameters: Any, memory: Reported, rng_key: PRNGKey, batch: Any
    ) -> tuple[Array, Reported]:
        """Loss, as `langevin_ppl.fit.descend` wants it."""
        with_walkers = hasattr(self.method, "advance")
        evaluate = self._by_walkers if with_walkers else self._directly
        return evaluate(parameters, memory.memory, rng_key, batch)

    def _directly(
        self, parameters: Any, memory: Any, rng_key: PRNGKey, batch: Any
    ) -> tuple[Array, Reported]:
        own, log_normalizer = parameters
        model = self.chains.model
        loss = self.method.loss(rng_key, model, own, log_normalizer, memory, batch)
        # The law of observed sites given the latents is normalised: its term is the likelihood.
        if model.has_observed:
            loss -= jnp.mean(self._likelihood(own, batch) - self._density(own, *batch))
        loss += self.penalties.add(
            own, [self._density(own, *batch)], lambda: [self._gradients(own, *batch)]
        )
        return loss, Reported(memory, {})

    def _by_walkers(
        self, parameters: Any, memory: Any, rng_key: PRNGKey, batch: Any
    ) -> tuple[Array, Reported]:
        own, _ = parameters
        fixed = jax.lax.stop_gradient(own)
        phase, memory = self.method.advance(rng_key, self.chains, fixed, memory, batch)
        phase, memory = jax.lax.stop_gradient((phase, memory))
        up = self._likelihood(own, batch)
        down = self._density(own, phase.positions, phase.rows)
        gap = _average(down, phase.log_weights) - jnp.mean(up)
        loss = gap + self.penalties.add(
            own,
            [up, down],
            lambda: [
                self._gradients(own, *batch),
                self._gradients(own, phase.positions, phase.rows),
            ],
        )
        flat = jax.vmap(lambda position: ravel(position)[0])(phase.positions)
        squares = jnp.mean(((flat - self.centre) / self.scale) ** 2)
        report = {"energy_gap": gap, "walker_spread": jnp.sqrt(squares), **phase.report}
        return loss, Reported(memory, jax.lax.stop_gradient(report))

    def _likelihood(self, parameters: Any, batch: Any) -> Array:
        positions, rows = batch
        whole = functools.partial(self.chains.model.likelihood, parameters)
        return jax.vmap(whole, (None if rows is None else 0, 0))(rows, positions)

    def _density(self, parameters: Any, positions: Any, rows: Any) -> Array:
        def one(position: Any, row: Any) -> Array:
            return self.chains.model.density(parameters, row)(position)

        return jax.vmap(one, (0, None if rows is None else 0))(positions, rows)

    def _gradients(self, parameters: Any, positions: Any, rows: Any) -> Array:
        def one(position: Any, row: Any) -> Array:
            return ravel(jax.grad(self.chains.model.density(parameters, row))(position))[0]

        return jax.vmap(one, (0, None if rows is None else 0))(positions, rows)


def _average(values: Array, log_weights: Array | None) -> Array:
    if log_weights is None:
        return jnp.mean(values)
    return jnp.sum(jax.nn.softmax(log_weights) * values)

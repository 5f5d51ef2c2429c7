"""Consensus-based optimisation: particles drawn to a mean weighted by the objective."""

import dataclasses
import functools
import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from langevin_ppl.base import (
    Array,
    AssumptionWarning,
    Position,
    PRNGKey,
    check_counts,
    check_number,
)
from langevin_ppl.optim.blocks import Number, at
from langevin_ppl.optim.methods import Stepped
from langevin_ppl.taming import norm
from langevin_ppl.tree import as_pytree

__all__ = ["Consensus", "consensus"]


class ConsensusState(NamedTuple):
    """Positions, leading axis ``particle``, and the count of steps."""

    position: Position
    step: Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["drift", "noise", "step_size", "sharpness"],
    meta_fields=["anisotropic", "batch_size"],
)
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
        """Deal the particles to batches, and draw each batch to its consensus."""
        position, step = state
        values = jax.vmap(fn)(position)
        number = values.size
        batches = number // (self.batch_size or number)
        key_order, key_noise = jax.random.split(rng_key)
        order = jnp.arange(number) if batches == 1 else jax.random.permutation(key_order, number)
        back = jnp.argsort(order)

        def dealt(leaf: Array) -> Array:
            return leaf[order].reshape(batches, -1, *leaf.shape[1:])

        def collected(leaf: Array) -> Array:
            return leaf.reshape(number, *leaf.shape[2:])[back]

        drawn = functools.partial(self._drawn, at(self.sharpness, step))
        keys = jax.random.split(key_noise, batches)
        moved = jax.vmap(drawn)(keys, jax.tree.map(dealt, position), dealt(values))
        new = ConsensusState(jax.tree.map(collected, moved), step + 1)
        return Stepped(new, position, values, jnp.zeros(number, bool))

    def _drawn(self, sharpness: Any, key: PRNGKey, position: Position, values: Array) -> Position:
        """One batch after a step, leading axis ``particle``."""
        # What isn't finite has no weight; where nothing has, nobody moves.
        finite = jnp.isfinite(values)
        lowest = jnp.min(jnp.where(finite, values, jnp.inf))
        excess = jnp.where(finite, values - lowest, jnp.inf)
        weights = jax.nn.softmax(-sharpness * excess)

        def apart(leaf: Array) -> Array:
            return jnp.where(jnp.any(finite), leaf - jnp.tensordot(weights, leaf, 1), 0.0)

        away, treedef = jax.tree.flatten(jax.tree.map(apart, position))
        reach = away
        if not self.anisotropic:
            lengths = jax.vmap(norm)(away)
            reach = [lengths.reshape(-1, *[1] * (leaf.ndim - 1)) for leaf in away]
        scale = self.noise * jnp.sqrt(self.step_size)
        steps = [
            scale * far * jax.random.normal(own, leaf.shape, leaf.dtype)
            - self.drift * self.step_size * leaf
            for own, leaf, far in zip(jax.random.split(key, len(away)), away, reach, strict=True)
        ]
        return jax.tree.map(jnp.add, position, jax.tree.unflatten(treedef, steps))

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
    sharpness = as_pytree(sharpness) if callable(sharpness) else float(sharpness)
    return Consensus(
        float(drift), float(noise), float(step_size), sharpness, bool(anisotropic), batch_size
    )

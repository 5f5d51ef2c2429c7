"""Replica exchange: each particle is a ladder of replicas at several temperatures."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from langevin_ppl.base import Array, Position, PRNGKey, check_number
from langevin_ppl.kernels import Kernel, parallel_tempering, tmala
from langevin_ppl.kernels.tempering import check_replicable
from langevin_ppl.optim.methods import Stepped

__all__ = ["Exchange", "replica_exchange"]


def _scaled(fn: Any, temperature: float, position: Position) -> Array:
    return -fn(position) / temperature


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["learning_rate"],
    meta_fields=["temperatures", "kernel"],
)
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
        kernel = parallel_tempering(self.kernel, ladder)
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

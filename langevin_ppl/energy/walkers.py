"""Walkers: many chains of one kernel in a density that changes."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from langevin_ppl.base import Array, LogDensity, Position, PRNGKey
from langevin_ppl.energy.model import EnergyModel
from langevin_ppl.gradients import as_estimator
from langevin_ppl.kernels import Kernel, KernelState
from langevin_ppl.kernels.overdamped import log_weight

__all__ = [
    "Chains",
    "check_kernel",
    "has_gaussian_steps",
    "is_weighable",
    "moved",
    "reevaluated",
]


def has_gaussian_steps(kernel: Kernel) -> bool:
    """Whether a step is one of Euler and Maruyama, so that its law has a known density."""
    return kernel.taming is not None


def is_weighable(kernel: Kernel) -> bool:
    """Whether averages over walkers of this kernel can be made exact by weights."""
    return has_gaussian_steps(kernel) or (kernel.exact and kernel.state is KernelState)


def check_kernel(kernel: Any, parameters: Mapping[str, Any], caller: str) -> None:
    """Refuse what is no kernel of this library, or lacks a parameter."""
    if not isinstance(kernel, Kernel):
        raise TypeError(
            f"{caller}: expected a kernel of langevin_ppl such as langevin_ppl.ula, got {kernel!r}."
        )
    unknown = sorted(set(parameters) - set(kernel.parameters))
    missing = [
        name
        for name, default in kernel.parameters.items()
        if default is kernel.__signature__.empty and name not in parameters
    ]
    if unknown or missing:
        raise TypeError(
            f"{caller}: {kernel!r} takes {', '.join(kernel.parameters)}; "
            + (f"unknown is {', '.join(unknown)}" if unknown else "")
            + (" and " if unknown and missing else "")
            + (f"missing is {', '.join(missing)}" if missing else "")
            + "."
        )


def reevaluated(state: Any, logdensity_fn: LogDensity) -> Any:
    """State at the same place in another density."""
    estimator = as_estimator(logdensity_fn)
    estimate, memory = estimator.estimate((), state.position, state.memory)
    return state._replace(
        logdensity=estimate.logdensity, logdensity_grad=estimate.gradient, memory=memory
    )


def moved(
    kernel: Kernel,
    logdensity_fn: LogDensity,
    parameters: Mapping[str, Any],
    rng_key: PRNGKey,
    state: Any,
    num_steps: int,
    weigh: bool,
) -> tuple[Any, Array, Array]:
    """Make steps of one walker; state, log weight of the steps, and mean acceptance rate."""
    algorithm: Any = kernel(logdensity_fn, **parameters)

    def step(i: Array, carry: Any) -> Any:
        state, weight, rate = carry
        new, info = algorithm.step(jax.random.fold_in(rng_key, i), state)
        if weigh:
            weight = weight + log_weight(kernel, state, new, parameters)
        if info.acceptance_rate is not None:
            rate = rate + info.acceptance_rate / num_steps
        return new, weight, rate

    zero = jnp.zeros_like(state.logdensity)
    return jax.lax.fori_loop(0, num_steps, step, (state, zero, zero))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["model", "parameters"],
    meta_fields=["kernel"],
)
@dataclasses.dataclass(frozen=True)
class Chains:
    """How walkers move.

    Attributes
    ----------
    model
        What they move in.
    parameters
        Parameters of the kernel.
    kernel
        The kernel.
    """

    model: EnergyModel
    parameters: Mapping[str, Any]
    kernel: Kernel

    def init(self, values: Any, positions: Position, rows: Any = None) -> Any:
        """States of walkers at positions ``[walker, ...]``."""

        def one(position: Position, row: Any) -> Any:
            return self.kernel.init(position, self.model.density(values, row))

        return jax.vmap(one, _axes(rows))(positions, rows)

    def reevaluate(self, values: Any, states: Any, rows: Any = None) -> Any:
        """States at the same places, with other parameters of the model."""

        def one(state: Any, row: Any) -> Any:
            return reevaluated(state, self.model.density(values, row))

        return jax.vmap(one, _axes(rows))(states, rows)

    def move(
        self,
        rng_key: PRNGKey,
        values: Any,
        states: Any,
        num_steps: int,
        rows: Any = None,
        weigh: bool = False,
    ) -> tuple[Any, Array, Array]:
        """Make steps.

        Parameters
        ----------
        rng_key
            A key.
        values
            Parameters of the model.
        states
            States of the kernel, leading axis ``walker``. Their gradients may be those of the
            parameters before: then the first step of a kernel without a Metropolis test moves by
            them, which saves an evaluation.
        num_steps
            How many.
        rows
            Conditions, ``[walker, ...]``.
        weigh
            Whether to add up log weights of the steps.

        Returns
        -------
        states, log_weights, acceptance_rates
            Leading axis ``walker``; the last are 0 without a Metropolis test.
        """
        parameters = self.kernel.prepare(self.parameters)

        def one(key: PRNGKey, state: Any, row: Any) -> Any:
            density = self.model.density(values, row)
            return moved(self.kernel, density, parameters, key, state, num_steps, weigh)

        keys = jax.random.split(rng_key, len(jax.tree.leaves(states)[0]))
        return jax.vmap(one, (0, *_axes(rows)))(keys, states, rows)


def _axes(rows: Any) -> tuple[int, int | None]:
    return 0, None if rows is None else 0

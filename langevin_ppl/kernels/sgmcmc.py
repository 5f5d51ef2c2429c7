"""Our kernels with the signature of BlackJAX's stochastic-gradient algorithms."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from langevin_ppl.base import (
    Array,
    ArrayLike,
    Estimate,
    GradientEstimator,
    Position,
    PRNGKey,
    SamplingAlgorithm,
)
from langevin_ppl.kernels.kernel import Kernel, KernelState

__all__ = ["sgmcmc"]


def sgmcmc(
    kernel: Kernel, grad_estimator: Callable[[Position, Any], Position], **parameters: Any
) -> SamplingAlgorithm:
    """Give a kernel the signature of ``blackjax.sgld``: batches come with every step.

    For a training loop that hands out minibatches itself.

    Parameters
    ----------
    kernel
        A kernel of this library without a Metropolis test.
    grad_estimator
        ``grad_estimator(position, minibatch)``, the gradient of the log density as estimated from
        a minibatch: from ``blackjax.sgmcmc.gradients.grad_estimator``, or
        ``jax.grad(lambda position, rows: target.logdensity_on(rows, position))``.
    **parameters
        Parameters of the kernel that stay as they are, such as ``friction``.

    Returns
    -------
    SamplingAlgorithm
        ``init(position) -> state`` and
        ``step(rng_key, state, minibatch, step_size, temperature=1.0) -> state``. The state of an
        overdamped kernel is the position itself, as in BlackJAX; others carry more, and have
        ``state.position``. A position that is not finite stays NaN.

    Raises
    ------
    TypeError
        If the kernel is none of this library.
    ValueError
        If it has a Metropolis test, which needs the log density of all the data.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> def gradient(position, batch):
    ...     return 10.0 * jnp.sum(batch - position)
    >>> algorithm = lp.sgmcmc(lp.sgld, gradient)
    >>> position = algorithm.init(jnp.array(0.0))
    >>> step = jax.jit(algorithm.step)
    >>> position = step(jax.random.key(0), position, jnp.ones(5), 1e-3)
    """
    if not isinstance(kernel, Kernel):
        raise TypeError(f"sgmcmc: expected a kernel of langevin_ppl, got {kernel!r}.")
    if kernel.target_acceptance_rate is not None or kernel.exact:
        raise ValueError(
            f"sgmcmc: {kernel!r} has a Metropolis test, which needs the log density of all the "
            "data. Use a kernel without one, for example langevin_ppl.sgld."
        )
    bare = kernel.state(*_parts(jnp.zeros(1), jnp.zeros(1)))
    is_position = type(bare) is KernelState

    def init(position: Position, rng_key: PRNGKey | None = None) -> Any:
        position = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), position)
        zero = jax.tree.map(jnp.zeros_like, position)
        return position if is_position else kernel.state(*_parts(position, zero))

    def step(
        rng_key: PRNGKey,
        state: Any,
        minibatch: Any,
        step_size: ArrayLike,
        temperature: ArrayLike = 1.0,
    ) -> Any:
        def first(position: Position) -> Position:
            return grad_estimator(position, minibatch)

        def estimate(batch: Any, position: Position, memory: Any) -> tuple[Estimate, Any]:
            # An overdamped step from a position alone has no use for the gradient at its end.
            gradient = jax.tree.map(jnp.zeros_like, position) if is_position else first(position)
            return Estimate(_unknown(position), gradient), memory

        if is_position:
            state = kernel.state(*_parts(state, first(state)))
        else:
            # The very first step has no gradient of an earlier batch to begin with.
            began = jax.lax.cond(
                state.step == 0, lambda: first(state.position), lambda: state.logdensity_grad
            )
            state = state._replace(logdensity_grad=began)
        estimator = GradientEstimator(lambda position: (), None, estimate, exact=False)
        algorithm: Any = kernel(
            estimator, step_size=step_size, temperature=temperature, **parameters
        )
        new, _ = algorithm.step(rng_key, state)
        return new.position if is_position else new

    return SamplingAlgorithm(init, step)  # pyright: ignore[reportArgumentType]


def _unknown(position: Position) -> Array:
    """Log density, which minibatch gradients do not give; any finite number."""
    return jnp.zeros((), jnp.result_type(*jax.tree.leaves(position)))


def _parts(position: Position, gradient: Position) -> tuple[Any, ...]:
    return position, _unknown(position), gradient, jnp.zeros((), jnp.int32), ()

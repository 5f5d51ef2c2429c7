"""AMAGOLD: stochastic gradients, many steps to a Metropolis test, and an exact law."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl import metropolis
from langevin_ppl.base import (
    Array,
    ArrayLike,
    GradientEstimator,
    Position,
    PRNGKey,
    Randomness,
)
from langevin_ppl.kernels.kernel import Kernel, KernelInfo, draw_noise
from langevin_ppl.kernels.kinetic import ACCEPTANCE, hamiltonian
from langevin_ppl.preconditioners import Preconditioner, preconditioner
from langevin_ppl.taming import norm
from langevin_ppl.tree import ravel

__all__ = ["AmagoldState", "amagold"]


class AmagoldState(NamedTuple):
    """State of a chain of AMAGOLD.

    Attributes
    ----------
    position
        Pytree of arrays.
    logdensity
        Log density of all the data at the position, scalar, once it is known.
    logdensity_grad
        Last estimate of the gradient on the way to the position, same structure as it.
    step
        Number of steps made, int32 scalar.
    memory
        The gradient estimator's own state, which stays as it began.
    momentum
        Momentum in the frame of the inverse mass matrix, shape ``[dimension]``.
    is_known
        Whether the log density is that of all the data. Before the first step it is what the
        estimator said.
    """

    position: Position
    logdensity: Array
    logdensity_grad: Position
    step: Array
    memory: Any
    momentum: Array
    is_known: Array


def _unknown(
    position: Position, logdensity: Array, logdensity_grad: Position, step: Array, memory: Any
) -> AmagoldState:
    flat = ravel(position)[0]
    momentum, known = jnp.zeros(flat.shape, flat.dtype), jnp.zeros((), bool)
    return AmagoldState(position, logdensity, logdensity_grad, step, memory, momentum, known)


def amagold(num_steps: int) -> Kernel:
    r"""Stochastic gradient Hamiltonian Monte Carlo with one Metropolis test for many steps.

    In the frame of the inverse mass matrix, with :math:`c = \gamma h / 2` and the gradient
    :math:`g_t` of a fresh batch for each of the inner steps :math:`t = 1, \dots, n`,

    .. math::

        z &\leftarrow z + \tfrac{h}{2} p_{t-1} \\
        p_t &= \frac{(1 - c) p_{t-1} + h g_t(z) + \sqrt{2 \gamma h T} \, \xi_t}{1 + c} \\
        z &\leftarrow z + \tfrac{h}{2} p_t

    and then the end is accepted with probability

    .. math::

        \min\Bigl(1, \exp \tfrac1T \Bigl(\log p(z_n) - \log p(z_0)
            - \tfrac{h}{2} \sum_t g_t \cdot (p_{t-1} + p_t)\Bigr)\Bigr),

    where :math:`\log p` is that of all the data; on rejection the chain stays and its momentum
    changes its sign. Targets :math:`p^{1/T}` exactly, however noisy the gradients: noise and
    large steps cost acceptance.

    *Why.* The inner step that leads from :math:`(z', -p_t)` back to :math:`(z, -p_{t-1})` by the
    same batch kicks in the same place. Its noise has the density of the forward one times
    :math:`\exp \tfrac{1}{2T} (\|p_t\|^2 - \|p_{t-1}\|^2 - h g_t \cdot (p_{t-1} + p_t))`, whose
    first terms cancel against the law of the momentum. The way back meets the batches in the
    opposite order, which is as probable since they are independent and of one law. Hence detailed
    balance up to the sign of the momentum, way by way.

    One step of the kernel costs ``num_steps`` gradient estimates and one log density of all the
    data. The very first one only finds the log density where the chain is, and stays.

    Parameters
    ----------
    num_steps
        ``n``, inner steps to one Metropolis test, at least 1.

    Returns
    -------
    Kernel
        Its parameters are ``step_size``, the time ``h`` of an inner step, ``inverse_mass_matrix``,
        ``friction`` and ``temperature`` as in `baoab`. It takes an estimator that has a
        ``logdensity_fn``. The estimator's memory stays as it was at the start, because a gradient
        that depends on the past of the chain has no way back: control variates about a fixed
        centre serve it better than those about a point that is renewed.

    Raises
    ------
    ValueError
        If ``num_steps`` is no positive whole number, or the estimator has no ``logdensity_fn``.

    References
    ----------
    Zhang, Cooper, De Sa, *AMAGOLD: amortized Metropolis adjustment for efficient stochastic
    gradient MCMC* (2020), arXiv:2003.00193.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> algorithm = lp.amagold(5)(lambda x: -0.5 * jnp.sum(x**2), step_size=0.2)
    >>> state, _ = algorithm.step(jax.random.key(0), algorithm.init(jnp.ones(3)))
    >>> state, info = algorithm.step(jax.random.key(1), state)
    >>> 0.0 < info.acceptance_rate <= 1.0
    Array(True, dtype=bool)
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, int | np.integer) or num_steps < 1:
        raise ValueError(f"amagold: expected a positive whole num_steps, got {num_steps!r}.")
    return _amortised(int(num_steps))


class _Way(NamedTuple):
    """What the inner steps carry.

    Attributes
    ----------
    shift, momentum
        Way from the start and momentum, in the whitened frame, shape ``[dimension]``.
    work
        Scalar: what the kicks did, ``h / 2`` times the sum of ``g_t (p_{t-1} + p_t)``.
    logdensity_grad
        Last estimate, in the structure of the position.
    """

    shift: Array
    momentum: Array
    work: Array
    logdensity_grad: Position


@functools.cache
def _amortised(num_steps: int) -> Kernel:
    def draw(rng_key: PRNGKey, state: Any, gradient: GradientEstimator) -> Randomness:
        one, many = gradient.draw, gradient
        if one is not None:

            def batches(rng_key: PRNGKey, step: Array) -> Any:
                # All of one step, so that their order is as likely as its reverse.
                keys = jax.random.split(rng_key, num_steps)
                if not gradient.shared:
                    return jax.vmap(lambda key: one(key, step))(keys)
                # A runner that gives all chains the same batches tells them apart by the call.
                drawn = [one(key, step) for key in keys]
                return jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)

            many = dataclasses.replace(gradient, draw=batches)
        return draw_noise(rng_key, state, many, extra=2, copies=num_steps)

    def transition(
        randomness: Randomness,
        state: AmagoldState,
        gradient: GradientEstimator,
        step_size: ArrayLike,
        inverse_mass_matrix: ArrayLike | Preconditioner = 1.0,
        friction: ArrayLike = 1.0,
        temperature: ArrayLike = 1.0,
    ) -> tuple[AmagoldState, KernelInfo]:
        assert gradient.logdensity_fn is not None
        flat, unravel = ravel(state.position)
        frame = preconditioner(inverse_mass_matrix, flat.size)
        noise, normals = randomness.noise[:-2].reshape(-1, flat.size), randomness.noise[-2:]
        lost = 0.5 * friction * step_size
        heat = jnp.sqrt(2.0 * friction * step_size * temperature)

        def there(shift: Array) -> Position:
            return unravel((flat + frame.scale(shift)).astype(flat.dtype))

        def inner(way: _Way, drawn: tuple[Array, Any]) -> tuple[_Way, None]:
            noise, batch = drawn
            middle = way.shift + 0.5 * step_size * way.momentum
            estimate, _ = gradient.estimate(batch, there(middle), state.memory)
            force = frame.transpose(ravel(estimate.gradient)[0])
            kicked = (1.0 - lost) * way.momentum + step_size * force + heat * noise
            momentum = jnp.divide(kicked, 1.0 + lost)
            work = way.work + 0.5 * step_size * jnp.sum(force * (way.momentum + momentum))
            moved = middle + 0.5 * step_size * momentum
            new = _Way(moved, momentum, work, estimate.gradient)
            return jax.tree.map(lambda new, old: new.astype(old.dtype), new, way), None

        start = _Way(
            jnp.zeros_like(flat),
            state.momentum,
            jnp.zeros((), flat.dtype),
            state.logdensity_grad,
        )
        end, _ = jax.lax.scan(inner, start, (noise, randomness.batch))
        # Where the log density of the start is not known yet, it is all that this step finds.
        position = jax.tree.map(
            lambda new, old: jnp.where(state.is_known, new, old), there(end.shift), state.position
        )
        logdensity = gradient.logdensity_fn(position)
        log_ratio = (logdensity - state.logdensity - end.work) / temperature
        # An infinite log density is a fault of the model, not a place to be.
        log_ratio = jnp.where(jnp.isfinite(logdensity), log_ratio, -jnp.inf)
        log_ratio = jnp.where(state.is_known, log_ratio, 0.0)
        decision = metropolis.decide(log_ratio, metropolis.log_uniform(normals))
        first = (jnp.sqrt(temperature) * noise[0]).astype(flat.dtype)
        proposal = AmagoldState(
            position,
            logdensity.astype(state.logdensity.dtype),
            end.logdensity_grad,
            state.step + 1,
            state.memory,
            jnp.where(state.is_known, end.momentum, first),
            jnp.ones((), bool),
        )
        stay = state._replace(step=state.step + 1, momentum=-state.momentum)
        new = metropolis.select(decision, proposal, stay)
        info = KernelInfo(
            is_divergent=decision.is_divergent,
            logdensity=new.logdensity,
            grad_norm=norm(ravel(end.logdensity_grad)[0]),
            acceptance_rate=decision.acceptance_rate,
            is_accepted=decision.is_accepted,
            energy=hamiltonian(new),
        )
        return new, info

    return Kernel(
        f"{__name__}.amagold({num_steps})",
        transition,
        draw,
        exact=True,
        target_acceptance_rate=ACCEPTANCE,
        amortised=True,
        gradients_per_step=num_steps,
        ends_at_gradient=False,
        recipe=(amagold, (num_steps,)),
        state=_unknown,
        doc=f"AMAGOLD with a Metropolis test after {num_steps} steps by stochastic gradients.",
    )

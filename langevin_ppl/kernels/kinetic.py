r"""The kinetic family: Langevin dynamics with a momentum, put to the Metropolis test.

In the frame ``x = L z`` and with unit mass, :math:`dz = p \, dt`,
:math:`dp = \nabla \log p(z) dt - \gamma p \, dt + \sqrt{2 \gamma T} dW`. One step refreshes a part
of the momentum exactly, follows Hamilton's equations for one step with one gradient, and
accepts the end or reverses the momentum.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp

from langevin_ppl import metropolis
from langevin_ppl.base import Array, ArrayLike, GradientEstimator, Position, Randomness
from langevin_ppl.integrators import oscillator, refresh
from langevin_ppl.kernels.kernel import Kernel, KernelInfo, centred, draw_noise
from langevin_ppl.preconditioners import Preconditioner, preconditioner
from langevin_ppl.taming import norm, normwise, taming_loss
from langevin_ppl.tree import ravel

__all__ = ["KineticState", "at_rest", "ghmc", "hamiltonian", "split_ghmc"]

ACCEPTANCE = 0.8
"""Acceptance rate to tune to: every rejection reverses the momentum, so that fewer of them than
an overdamped kernel has pay. The best of 0.7, 0.8 and 0.9 on most of nine real posteriors."""

MAX_ANGLE = 1.7
"""Largest angle that warm-up may choose. Beyond a quarter turn draws become antithetic, which
raises the effective sample size of means and ruins that of squares."""


class KineticState(NamedTuple):
    """State of a kinetic chain.

    Attributes
    ----------
    position
        Pytree of arrays.
    logdensity
        Log density at the position, scalar; where a step does not end at a gradient (`ubu`), at
        the point of the last one.
    logdensity_grad
        Its gradient there, same structure as the position.
    step
        Number of steps made, int32 scalar. Before the first step the momentum is drawn anew, so
        that a chain needs no random number to begin.
    memory
        The gradient estimator's own state.
    momentum
        Momentum in the frame of the inverse mass matrix, shape ``[dimension]``.
    """

    position: Position
    logdensity: Array
    logdensity_grad: Position
    step: Array
    memory: Any
    momentum: Array


def at_rest(
    position: Position, logdensity: Array, logdensity_grad: Position, step: Array, memory: Any
) -> KineticState:
    """State of a chain that has no momentum yet: its first step draws one."""
    flat = ravel(position)[0]
    momentum = jnp.zeros(flat.shape, flat.dtype)
    return KineticState(position, logdensity, logdensity_grad, step, memory, momentum)


def hamiltonian(state: Any) -> Array:
    """Total energy of a state with a momentum: potential plus kinetic energy of unit mass."""
    return 0.5 * jnp.sum(jnp.square(state.momentum)) - state.logdensity


def _split(
    randomness: Randomness,
    state: KineticState,
    gradient: GradientEstimator,
    step_size: ArrayLike,
    inverse_mass_matrix: ArrayLike | Preconditioner = 1.0,
    location: ArrayLike = 0.0,
    frequency: ArrayLike = 1.0,
    friction: ArrayLike = 1.0,
    taming: ArrayLike = 0.0,
    temperature: ArrayLike = 1.0,
) -> tuple[KineticState, KernelInfo]:
    """Refresh, half a kick, an exact turn, half a kick, Metropolis test."""
    noise, normals = randomness.noise[:-2], randomness.noise[-2:]
    frame = preconditioner(inverse_mass_matrix, noise.size)
    flat, unravel = ravel(state.position)
    square = jnp.square(jnp.asarray(frequency, flat.dtype))
    untamed = isinstance(taming, int | float) and taming == 0

    def kick(z: Array, logdensity_grad: Position) -> tuple[Array, Array]:
        # Whatever the force is, a kick by a function of z keeps volume and turns back with time,
        # so that taming it costs acceptance and never the law.
        force = frame.transpose(ravel(logdensity_grad)[0]) + square * z
        return force, force if untamed else normwise(force, z, jnp.multiply(taming, step_size))

    momentum = refresh(state.momentum, noise, friction, step_size, temperature, state.step == 0)
    z = frame.solve(centred("langevin_ppl.split_ghmc", flat, location))
    force, tamed = kick(z, state.logdensity_grad)
    moved, turned = oscillator(z, momentum + 0.5 * step_size * tamed, step_size, frequency)
    position = unravel(jnp.add(location, frame.scale(moved)).astype(flat.dtype))
    estimate, memory = gradient.estimate(randomness.batch, position, state.memory)
    _, tamed_there = kick(moved, estimate.gradient)
    arrived = turned + 0.5 * step_size * tamed_there
    kinetic = 0.5 * (jnp.sum(arrived**2) - jnp.sum(momentum**2))
    log_ratio = (estimate.logdensity - state.logdensity - kinetic) / temperature
    # An infinite log density is a fault of the model, not a place to be.
    log_ratio = jnp.where(jnp.isfinite(estimate.logdensity), log_ratio, -jnp.inf)
    decision = metropolis.decide(log_ratio, metropolis.log_uniform(normals))
    dtype = state.momentum.dtype
    proposal = KineticState(
        position,
        estimate.logdensity,
        estimate.gradient,
        state.step + 1,
        memory,
        arrived.astype(dtype),
    )
    stay = state._replace(step=state.step + 1, momentum=-momentum.astype(dtype))
    new = metropolis.select(decision, proposal, stay)
    info = KernelInfo(
        is_divergent=decision.is_divergent,
        logdensity=new.logdensity,
        grad_norm=norm(ravel(new.logdensity_grad)[0]),
        acceptance_rate=decision.acceptance_rate,
        is_accepted=decision.is_accepted,
        taming_loss=None if untamed else taming_loss(force, tamed),
        energy=hamiltonian(new),
    )
    return new, info


def _leapfrog(
    randomness: Randomness,
    state: KineticState,
    gradient: GradientEstimator,
    step_size: ArrayLike,
    inverse_mass_matrix: ArrayLike | Preconditioner = 1.0,
    friction: ArrayLike = 0.5,
    temperature: ArrayLike = 1.0,
) -> tuple[KineticState, KernelInfo]:
    """Split around nothing: the turn becomes free flight, and the step a leapfrog step."""
    return _split(
        randomness,
        state,
        gradient,
        step_size,
        inverse_mass_matrix,
        frequency=0.0,
        friction=friction,
        temperature=temperature,
    )


_draw = functools.partial(draw_noise, extra=2)


split_ghmc = Kernel(
    f"{__name__}.split_ghmc",
    _split,
    _draw,
    exact=True,
    target_acceptance_rate=ACCEPTANCE,
    max_step_size=MAX_ANGLE,
    state=at_rest,
    doc=r"""Generalised Hamiltonian Monte Carlo, split around a fitted Gaussian: the default.

In the frame :math:`x = m + L z` of a Gaussian :math:`N(m, L L^T)` fitted to the target,

.. math::

    p &\leftarrow e^{-\gamma h} p + \sqrt{(1 - e^{-2 \gamma h}) T} \, \xi \\
    p &\leftarrow p + \tfrac{h}{2} (\nabla_z \log p(z) + \omega^2 z) \\
    (z, p) &\leftarrow \text{turned by the angle } \omega h \\
    p &\leftarrow p + \tfrac{h}{2} (\nabla_z \log p(z) + \omega^2 z)

and the end is accepted by the Metropolis test; on rejection :math:`p` changes its sign. Only
what is not Gaussian is discretised: on the fitted Gaussian with :math:`\omega = 1` every step is
accepted at any :math:`h`, and a quarter turn gives an independent draw for one gradient. Targets
:math:`p^{1/T}` exactly, whatever the fit. One gradient a step.

Parameters
----------
step_size
    ``h``, time of one step and angle of the turn, positive scalar. Useful up to about 1.7.
inverse_mass_matrix
    ``C = L L^T``: scalar, vector ``[dimension]`` or matrix ``[dimension, dimension]``.
location
    ``m``: centre of the fitted Gaussian, scalar or vector ``[dimension]``.
frequency
    ``omega``: 1 trusts the fitted Gaussian, 0 makes a leapfrog step (`ghmc`); between them the
    force of a wider Gaussian is split off, which is better where the fit is poor.
friction
    ``gamma``, positive scalar, in units of one over time.
taming
    ``c`` in the tamed force :math:`F / (1 + c h \|F\|)` of the kicks: 0 for none, 1 to get out of
    places where gradients explode. The stationary law is the same.
temperature
    ``T``, positive scalar.

References
----------
Horowitz, *A generalized guided Monte Carlo algorithm* (1991), for the partial refreshment;
Shahbaba, Lan, Johnson, Neal, *Split Hamiltonian Monte Carlo* (2014), arXiv:1106.5941, for the
splitting.

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.split_ghmc(lambda x: -0.5 * jnp.sum(x**2), step_size=1.5)
>>> state = algorithm.init(jnp.ones(3))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> info.acceptance_rate > 0.999  # the fitted Gaussian is the target
Array(True, dtype=bool)
""",
)


ghmc = Kernel(
    f"{__name__}.ghmc",
    _leapfrog,
    _draw,
    exact=True,
    target_acceptance_rate=ACCEPTANCE,
    state=at_rest,
    doc=r"""Generalised Hamiltonian Monte Carlo: one leapfrog step and a partial refreshment.

.. math::

    p \leftarrow e^{-\gamma h} p + \sqrt{(1 - e^{-2 \gamma h}) T} \, \xi

then a leapfrog step of length :math:`h` in the frame of the inverse mass matrix, accepted by the
Metropolis test; on rejection :math:`p` changes its sign. Also known as Metropolised OBABO, or
Horowitz's method. Targets :math:`p^{1/T}` exactly. One gradient a step.

Parameters
----------
step_size
    ``h``, time of one leapfrog step, positive scalar.
inverse_mass_matrix, friction, temperature
    As in `split_ghmc`.

References
----------
Horowitz, *A generalized guided Monte Carlo algorithm* (1991); Bou-Rabee, Vanden-Eijnden,
*Pathwise accuracy and ergodicity of Metropolized integrators for SDEs* (2010), arXiv:0905.4218.

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.ghmc(lambda x: -0.5 * jnp.sum(x**2), step_size=0.5, friction=1.0)
>>> state = algorithm.init(jnp.ones(3))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> 0.0 < info.acceptance_rate <= 1.0
Array(True, dtype=bool)
""",
)

r"""The overdamped family: Euler-Maruyama steps of :math:`dX = \nabla \log p(X) dt + \sqrt{2} dW`.

Every kernel here is gradient estimator x taming x preconditioner x Euler-Maruyama, with or
without a Metropolis test, and costs one gradient a step. ``unadjusted`` and ``metropolised``
are the two ways to put the factors together; the names below are compositions of them.
"""

import functools
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from langevin_ppl import metropolis
from langevin_ppl.base import Array, ArrayLike, GradientEstimator, Position, Randomness
from langevin_ppl.integrators import euler_maruyama
from langevin_ppl.kernels.kernel import (
    Kernel,
    KernelInfo,
    KernelState,
    Transition,
    centred,
    draw_noise,
    reported,
)
from langevin_ppl.preconditioners import Preconditioner, preconditioner
from langevin_ppl.taming import Taming, norm, taming_loss, untamed
from langevin_ppl.tree import ravel

__all__ = ["irreversible", "leimkuhler_matthews", "log_weight", "mala", "ula"]

MALA_ACCEPTANCE = 0.574
"""Optimal acceptance rate of MALA in high dimension (Roberts, Rosenthal 1998)."""

ULA_STEP_SIZE = 0.1
"""Largest automatic step size of an unadjusted kernel whose bias is of the first order, in the
whitened frame: on a Gaussian ULA's standard deviation is then 1 / sqrt(1 - 0.1 / 2), 2.6 % too
large."""

LM_STEP_SIZE = 0.2
"""The same for Leimkuhler and Matthews' scheme, whose bias is of the second order."""


class CorrelatedState(NamedTuple):
    """State of a chain whose noises overlap from step to step.

    Attributes
    ----------
    position, logdensity, logdensity_grad, step, memory
        As in `KernelState`.
    noise
        Normals of the last step, shape ``[dimension]``.
    """

    position: Position
    logdensity: Array
    logdensity_grad: Position
    step: Array
    memory: Any
    noise: Array


def _with_noise(
    position: Position, logdensity: Array, logdensity_grad: Position, step: Array, memory: Any
) -> CorrelatedState:
    return CorrelatedState(
        position, logdensity, logdensity_grad, step, memory, jnp.zeros_like(ravel(position)[0])
    )


class _Drift(NamedTuple):
    """The tamed drift of one state, in the whitened frame."""

    gradient: Array
    tamed: Array


def _drift(
    position: Position,
    logdensity_grad: Position,
    frame: Preconditioner,
    taming: Taming,
    step_size: ArrayLike,
    location: ArrayLike = 0.0,
) -> _Drift:
    gradient = frame.transpose(ravel(logdensity_grad)[0])
    z = frame.solve(centred("langevin_ppl.kernels", ravel(position)[0], location))
    return _Drift(gradient, taming(gradient, z, step_size))


def _loss(taming: Taming, drift: _Drift) -> Array | None:
    return None if taming is untamed else taming_loss(*drift)


def _move(
    state: KernelState,
    drift: _Drift,
    noise: Array,
    batch,
    gradient: GradientEstimator,
    frame: Preconditioner,
    step_size: ArrayLike,
    temperature: ArrayLike,
) -> KernelState:
    """One Euler-Maruyama step and the estimate at its end."""
    increment = euler_maruyama(drift.tamed, noise, step_size, temperature)
    return moved(state, increment, batch, gradient, frame)


def moved(
    state: Any, increment: Array, batch: Any, gradient: GradientEstimator, frame: Preconditioner
) -> KernelState:
    """Go by an increment in the whitened frame, and estimate the gradient there."""
    flat, unravel = ravel(state.position)
    position = unravel(flat + frame.scale(increment).astype(flat.dtype))
    estimate, memory = gradient.estimate(batch, position, state.memory)
    return KernelState(position, estimate.logdensity, estimate.gradient, state.step + 1, memory)


def tamed_step(
    taming: Taming,
    randomness: Randomness,
    state: KernelState,
    gradient: GradientEstimator,
    step_size: ArrayLike,
    inverse_mass_matrix: ArrayLike | Preconditioner,
    temperature: ArrayLike,
    location: ArrayLike = 0.0,
) -> tuple[KernelState, KernelInfo]:
    """Move by one tamed Euler-Maruyama step; a taming by position is one about the location."""
    noise, batch = randomness
    frame = preconditioner(inverse_mass_matrix, noise.size)
    drift = _drift(state.position, state.logdensity_grad, frame, taming, step_size, location)
    new = _move(state, drift, noise, batch, gradient, frame, step_size, temperature)
    return reported(new, taming_loss=_loss(taming, drift))


def unadjusted(taming: Taming) -> Transition:
    """Move by one tamed Euler-Maruyama step."""

    def transition(
        randomness: Randomness,
        state: KernelState,
        gradient: GradientEstimator,
        step_size: ArrayLike,
        inverse_mass_matrix: ArrayLike | Preconditioner = 1.0,
        temperature: ArrayLike = 1.0,
    ) -> tuple[KernelState, KernelInfo]:
        return tamed_step(
            taming, randomness, state, gradient, step_size, inverse_mass_matrix, temperature
        )

    return transition


def metropolised(taming: Taming) -> Transition:
    """Propose a tamed Euler-Maruyama step and put it to the Metropolis test."""

    def transition(
        randomness: Randomness,
        state: KernelState,
        gradient: GradientEstimator,
        step_size: ArrayLike,
        inverse_mass_matrix: ArrayLike | Preconditioner = 1.0,
        temperature: ArrayLike = 1.0,
    ) -> tuple[KernelState, KernelInfo]:
        noise, normals = randomness.noise[:-2], randomness.noise[-2:]
        frame = preconditioner(inverse_mass_matrix, noise.size)
        drift = _drift(state.position, state.logdensity_grad, frame, taming, step_size)
        proposal = _move(
            state, drift, noise, randomness.batch, gradient, frame, step_size, temperature
        )
        back = _drift(proposal.position, proposal.logdensity_grad, frame, taming, step_size)
        log_ratio = (proposal.logdensity - state.logdensity) / temperature
        log_ratio += metropolis.euler_maruyama_log_ratio(
            drift.tamed, back.tamed, noise, step_size, temperature
        )
        # An infinite log density is a fault of the model, not a place to be.
        log_ratio = jnp.where(jnp.isfinite(proposal.logdensity), log_ratio, -jnp.inf)
        decision = metropolis.decide(log_ratio, metropolis.log_uniform(normals))
        stay = state._replace(step=state.step + 1)
        new = metropolis.select(decision, proposal, stay)
        info = KernelInfo(
            is_divergent=decision.is_divergent,
            logdensity=new.logdensity,
            grad_norm=norm(ravel(new.logdensity_grad)[0]),
            taming_loss=_loss(taming, drift),
            acceptance_rate=decision.acceptance_rate,
            is_accepted=decision.is_accepted,
        )
        return new, info

    return transition


def log_weight(
    kernel: Kernel, before: KernelState, after: KernelState, parameters: Mapping[str, Any]
) -> Array:
    r"""Log weight of a step without a Metropolis test, which makes averages exact.

    .. math::
        \log \frac{p'(x') \, q'(x \mid x')}{p(x) \, q(x' \mid x)} ,

    where the step went from :math:`x` to :math:`x'`, and :math:`q` is the Gaussian law of a step.
    What is primed belongs to the density whose value and gradient the later state holds, which may
    be another than that of the earlier one.

    Parameters
    ----------
    kernel
        One with a ``taming``.
    before, after
        States at the ends of the step.
    parameters
        Parameters of the kernel, as `Kernel.prepare` gives them.

    References
    ----------
    Jarzynski, *Nonequilibrium equality for free energy differences* (1997); Carbone, Hua, Coste,
    Vanden-Eijnden, *Efficient training of energy-based models using Jarzynski equality*, 2023,
    arXiv:2305.19414.
    """
    assert kernel.taming is not None
    values = {name: parameters.get(name, default) for name, default in kernel.parameters.items()}
    own = [values[name] for name in inspect.signature(kernel.taming).parameters]
    taming, location = kernel.taming(*own), values.get("location", 0.0)
    step_size, temperature = values["step_size"], values["temperature"]
    ends = ravel(before.position)[0], ravel(after.position)[0]
    frame = preconditioner(values["inverse_mass_matrix"], ends[0].size)
    there, back = (
        _drift(state.position, state.logdensity_grad, frame, taming, step_size, location).tamed
        for state in (before, after)
    )
    increment = frame.solve(ends[1] - ends[0])
    noise = (increment - step_size * there) / jnp.sqrt(2.0 * step_size * temperature)
    change = (after.logdensity - before.logdensity) / temperature
    return change + metropolis.euler_maruyama_log_ratio(there, back, noise, step_size, temperature)


def _correlated(
    randomness: Randomness,
    state: CorrelatedState,
    gradient: GradientEstimator,
    step_size: ArrayLike,
    inverse_mass_matrix: ArrayLike | Preconditioner = 1.0,
    temperature: ArrayLike = 1.0,
) -> tuple[CorrelatedState, KernelInfo]:
    """Move by an Euler-Maruyama step whose noise is the mean of two, each used twice."""
    noise, batch = randomness
    frame = preconditioner(inverse_mass_matrix, noise.size)
    *common, before = state
    overdamped = KernelState(*common)
    drift = _drift(state.position, state.logdensity_grad, frame, untamed, step_size)
    # The first step has no noise before its own.
    mean = jnp.where(state.step == 0, noise, 0.5 * (before + noise))
    new = _move(overdamped, drift, mean, batch, gradient, frame, step_size, temperature)
    return reported(CorrelatedState(*new, noise.astype(before.dtype)))


def _skewed(
    randomness: Randomness,
    state: KernelState,
    gradient: GradientEstimator,
    step_size: ArrayLike,
    inverse_mass_matrix: ArrayLike | Preconditioner = 1.0,
    temperature: ArrayLike = 1.0,
    skew: ArrayLike = 1.0,
) -> tuple[KernelState, KernelInfo]:
    """Move by an Euler-Maruyama step whose drift also runs along the level sets."""

    def turned(gradient: Array, position: Array, step_size: ArrayLike) -> Array:
        return gradient + rotated(gradient, skew)

    noise, batch = randomness
    frame = preconditioner(inverse_mass_matrix, noise.size)
    drift = _drift(state.position, state.logdensity_grad, frame, turned, step_size)
    return reported(_move(state, drift, noise, batch, gradient, frame, step_size, temperature))


def rotated(vector: Array, skew: ArrayLike) -> Array:
    """Product of an antisymmetric matrix and a vector.

    Of a scalar, the matrix that turns the coordinates 0 and 1, 2 and 3, ... into each other.
    """
    if jnp.ndim(skew) == 2:
        return jnp.asarray(skew) @ vector
    paired = vector[: vector.size // 2 * 2].reshape(-1, 2)
    turned = jnp.stack([paired[:, 1], -paired[:, 0]], axis=1).reshape(-1)
    return jnp.multiply(skew, jnp.pad(turned, (0, vector.size % 2)))


draw_metropolis = functools.partial(draw_noise, extra=2)


mala = Kernel(
    f"{__name__}.mala",
    metropolised(untamed),
    draw_metropolis,
    exact=True,
    target_acceptance_rate=MALA_ACCEPTANCE,
    doc=r"""Metropolis-adjusted Langevin algorithm.

.. math:: x' = x + h C \nabla \log p(x) + \sqrt{2 h T} L \xi, \qquad C = L L^T,

accepted by the Metropolis test. Targets :math:`p^{1/T}` exactly. Optimal acceptance rate
0.574, at a step size of order :math:`d^{-1/3}`. One gradient a step.

Parameters
----------
step_size
    ``h``, positive scalar.
inverse_mass_matrix
    ``C``: scalar, vector ``[dimension]`` or matrix ``[dimension, dimension]``.
temperature
    ``T``, positive scalar.

References
----------
Besag, comment on Grenander and Miller (1994); Roberts, Tweedie, *Exponential convergence of
Langevin distributions and their discrete approximations* (1996); Roberts, Rosenthal,
*Optimal scaling of discrete approximations to Langevin diffusions* (1998).

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.mala(lambda x: -0.5 * jnp.sum(x**2), step_size=0.5)
>>> state = algorithm.init(jnp.zeros(3))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> 0.0 < info.acceptance_rate <= 1.0
Array(True, dtype=bool)
""",
)


ula = Kernel(
    f"{__name__}.ula",
    unadjusted(untamed),
    draw_noise,
    exact=False,
    tuner=mala,
    max_step_size=ULA_STEP_SIZE,
    taming=lambda: untamed,
    doc=r"""Unadjusted Langevin algorithm.

.. math:: x' = x + h C \nabla \log p(x) + \sqrt{2 h T} L \xi, \qquad C = L L^T.

Targets :math:`p^{1/T}` with a bias of order :math:`h`: on :math:`N(0, \sigma^2)` its
variance is :math:`\sigma^2 / (1 - h / 2 \sigma^2)`. Stable for :math:`h < 2 / L` where the
gradient is ``L``-Lipschitz; diverges, and says so, where it grows faster. One gradient a
step.

Parameters
----------
step_size, inverse_mass_matrix, temperature
    As in `mala`.

References
----------
Roberts, Tweedie (1996); Durmus, Moulines, *Nonasymptotic convergence analysis for the
unadjusted Langevin algorithm*, Annals of Applied Probability 27 (2017), arXiv:1507.05021.

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.ula(lambda x: -0.5 * jnp.sum(x**2), step_size=0.1)
>>> state = algorithm.init(jnp.zeros(3))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> info.is_divergent, info.acceptance_rate
(Array(False, dtype=bool), None)
""",
)


leimkuhler_matthews = Kernel(
    f"{__name__}.leimkuhler_matthews",
    _correlated,
    draw_noise,
    exact=False,
    tuner=mala,
    max_step_size=LM_STEP_SIZE,
    order=2,
    state=_with_noise,
    doc=r"""Leimkuhler and Matthews' overdamped scheme: every noise is used in two steps.

.. math::

    x_{k+1} = x_k + h C \nabla \log p(x_k) + \sqrt{h T / 2} \, L (\xi_k + \xi_{k+1}),
    \qquad C = L L^T.

Targets :math:`p^{1/T}` with a bias of order :math:`h^2`, and none at all on Gaussians, for the
price of `ula`: it is `baoab` at infinite friction. One gradient a step.

Parameters
----------
step_size, inverse_mass_matrix, temperature
    As in `mala`.

References
----------
Leimkuhler, Matthews, *Rational construction of stochastic numerical methods for molecular
sampling* (2013), arXiv:1203.5428; Leimkuhler, Matthews, Tretyakov, *On the long-time integration
of stochastic gradient systems* (2014), arXiv:1402.2797.

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.leimkuhler_matthews(lambda x: -0.5 * jnp.sum(x**2), step_size=0.2)
>>> state = algorithm.init(jnp.zeros(3))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> info.is_divergent
Array(False, dtype=bool)
""",
)


irreversible = Kernel(
    f"{__name__}.irreversible",
    _skewed,
    draw_noise,
    exact=False,
    tuner=mala,
    max_step_size=ULA_STEP_SIZE,
    doc=r"""Irreversible unadjusted Langevin algorithm.

.. math:: x' = x + h L (I + J) L^T \nabla \log p(x) + \sqrt{2 h T} L \xi, \qquad J^T = -J.

The drift also runs along the level sets of the density, which keeps the stationary law of the
diffusion and never slows it. Targets :math:`p^{1/T}` with a bias of order :math:`h`, larger than
`ula`'s at the same step. One gradient a step.

Parameters
----------
step_size, inverse_mass_matrix, temperature
    As in `mala`.
skew
    ``J``, an antisymmetric matrix ``[dimension, dimension]`` in the frame of the inverse mass
    matrix, or a scalar: that times the rotation of the coordinates 0 and 1, 2 and 3, and so on,
    into each other.

References
----------
Hwang, Hwang-Ma, Sheu, *Accelerating Gaussian diffusions* (1993); Duncan, Lelievre, Pavliotis,
*Variance reduction using nonreversible Langevin samplers* (2016), arXiv:1506.04934.

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.irreversible(lambda x: -0.5 * jnp.sum(x**2), step_size=0.1, skew=2.0)
>>> state = algorithm.init(jnp.ones(4))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> info.is_divergent
Array(False, dtype=bool)
""",
)

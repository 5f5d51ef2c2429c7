r"""The overdamped family: Euler-Maruyama steps of :math:`dX = \nabla \log p(X) dt + \sqrt{2} dW`.

Every kernel here is gradient estimator x taming x preconditioner x Euler-Maruyama, with or
without a Metropolis test, and costs one gradient a step. ``unadjusted`` and ``metropolised``
are the two ways to put the factors together; the names below are compositions of them.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp

from langevin_ppl import metropolis
from langevin_ppl.base import Array, ArrayLike, GradientEstimator, Position, Randomness
from langevin_ppl.integrators import euler_maruyama
from langevin_ppl.kernels.kernel import (
    Kernel,
    KernelInfo,
    KernelState,
    Transition,
    draw_noise,
)
from langevin_ppl.preconditioners import Preconditioner, preconditioner
from langevin_ppl.taming import (
    Taming,
    coordinatewise,
    norm,
    normwise,
    polynomial,
    taming_loss,
    untamed,
)
from langevin_ppl.tree import all_finite, ravel

__all__ = ["mala", "mtula", "tmala", "tmalac", "tula", "tulac", "ula"]

MALA_ACCEPTANCE = 0.574
"""Optimal acceptance rate of MALA in high dimension (Roberts, Rosenthal 1998)."""


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
) -> _Drift:
    gradient = frame.transpose(ravel(logdensity_grad)[0])
    return _Drift(gradient, taming(gradient, frame.solve(ravel(position)[0]), step_size))


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
    flat, unravel = ravel(state.position)
    increment = euler_maruyama(drift.tamed, noise, step_size, temperature)
    position = unravel(flat + frame.scale(increment).astype(flat.dtype))
    estimate, memory = gradient.estimate(batch, position, state.memory)
    return KernelState(position, estimate.logdensity, estimate.gradient, state.step + 1, memory)


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
        noise, batch = randomness
        frame = preconditioner(inverse_mass_matrix, noise.size)
        drift = _drift(state.position, state.logdensity_grad, frame, taming, step_size)
        new = _move(state, drift, noise, batch, gradient, frame, step_size, temperature)
        flat, unravel = ravel(new.position)
        new_gradient = ravel(new.logdensity_grad)[0]
        finite = all_finite(flat, new.logdensity, new_gradient)
        # Absorbing: once the numbers are lost, no later step may look as if it had recovered.
        new = new._replace(position=unravel(jnp.where(finite, flat, jnp.nan)))
        info = KernelInfo(
            is_divergent=~finite,
            logdensity=new.logdensity,
            grad_norm=norm(new_gradient),
            taming_loss=_loss(taming, drift),
        )
        return new, info

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


def _polynomially_tamed(
    randomness: Randomness,
    state: KernelState,
    gradient: GradientEstimator,
    step_size: ArrayLike,
    inverse_mass_matrix: ArrayLike | Preconditioner = 1.0,
    temperature: ArrayLike = 1.0,
    power: ArrayLike = 2.0,
) -> tuple[KernelState, KernelInfo]:
    """Move by an unadjusted step whose taming has a parameter of its own."""
    transition = unadjusted(polynomial(power))
    return transition(randomness, state, gradient, step_size, inverse_mass_matrix, temperature)


_draw_metropolis = functools.partial(draw_noise, extra=2)


mala = Kernel(
    f"{__name__}.mala",
    metropolised(untamed),
    _draw_metropolis,
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


tmala = Kernel(
    f"{__name__}.tmala",
    metropolised(normwise),
    _draw_metropolis,
    exact=True,
    target_acceptance_rate=MALA_ACCEPTANCE,
    doc=r"""Tamed MALA: the step of `tula` as a Metropolis proposal.

Targets :math:`p^{1/T}` exactly, and moves where the gradient is so large that the proposals
of `mala` would all be rejected. One gradient a step.

Parameters
----------
step_size, inverse_mass_matrix, temperature
    As in `mala`.

References
----------
Brosse, Durmus, Moulines, Sabanis, *The tamed unadjusted Langevin algorithm* (2019),
arXiv:1710.05559.

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.tmala(lambda x: -0.25 * jnp.sum(x**4), step_size=0.1)
>>> state = algorithm.init(jnp.full(2, 100.0))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> info.taming_loss > 0.9
Array(True, dtype=bool)
""",
)


tmalac = Kernel(
    f"{__name__}.tmalac",
    metropolised(coordinatewise),
    _draw_metropolis,
    exact=True,
    target_acceptance_rate=MALA_ACCEPTANCE,
    doc=r"""Coordinate-wise tamed MALA: the step of `tulac` as a Metropolis proposal.

Targets :math:`p^{1/T}` exactly. One gradient a step.

Parameters
----------
step_size, inverse_mass_matrix, temperature
    As in `mala`.

References
----------
Brosse et al. (2019), arXiv:1710.05559.

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.tmalac(lambda x: -0.25 * jnp.sum(x**4), step_size=0.1)
>>> state = algorithm.init(jnp.array([100.0, 0.0]))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> info.is_divergent
Array(False, dtype=bool)
""",
)


ula = Kernel(
    f"{__name__}.ula",
    unadjusted(untamed),
    draw_noise,
    exact=False,
    tuner=mala,
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


tula = Kernel(
    f"{__name__}.tula",
    unadjusted(normwise),
    draw_noise,
    exact=False,
    tuner=tmala,
    doc=r"""Tamed unadjusted Langevin algorithm, norm-wise.

.. math:: x' = x + h \frac{G}{1 + h \|G\|} + \sqrt{2 h T} \xi, \qquad G = \nabla \log p(x),

in the frame of the inverse mass matrix. Survives gradients that grow like any polynomial,
at the price of a bias of weak order :math:`h` that is larger than `ula`'s: see
``taming_loss``. Best as a burn-in, followed by `tmala` or `mala`. One gradient a step.

Parameters
----------
step_size, inverse_mass_matrix, temperature
    As in `mala`.

References
----------
Brosse, Durmus, Moulines, Sabanis, *The tamed unadjusted Langevin algorithm*, Stochastic
Processes and their Applications 129 (2019), arXiv:1710.05559.

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.tula(lambda x: -0.25 * jnp.sum(x**4), step_size=0.1)
>>> state = algorithm.init(jnp.full(2, 1e6))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> info.is_divergent
Array(False, dtype=bool)
""",
)


tulac = Kernel(
    f"{__name__}.tulac",
    unadjusted(coordinatewise),
    draw_noise,
    exact=False,
    tuner=tmalac,
    doc=r"""Tamed unadjusted Langevin algorithm, coordinate-wise.

.. math:: x_i' = x_i + h \frac{G_i}{1 + h |G_i|} + \sqrt{2 h T} \xi_i,

in the frame of the inverse mass matrix. Less biased than `tula` where few coordinates have
large gradients. One gradient a step.

Parameters
----------
step_size, inverse_mass_matrix, temperature
    As in `mala`.

References
----------
Brosse et al. (2019), arXiv:1710.05559.

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.tulac(lambda x: -0.25 * jnp.sum(x**4), step_size=0.1)
>>> state = algorithm.init(jnp.array([100.0, 0.0]))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> info.is_divergent
Array(False, dtype=bool)
""",
)


mtula = Kernel(
    f"{__name__}.mtula",
    _polynomially_tamed,
    draw_noise,
    exact=False,
    tuner=tmala,
    doc=r"""Modified tamed unadjusted Langevin algorithm.

.. math:: x' = x + h \frac{G}{\sqrt{1 + h \|x\|^{2 r}}} + \sqrt{2 h T} \xi,

in the frame of the inverse mass matrix. Wasserstein-1 bias of order :math:`h`, also for
nonconvex potentials. One gradient a step. Where the gradient does not grow like the power
asked for, the taming bites at ordinary positions and the bias is large: read ``taming_loss``.

Parameters
----------
step_size, inverse_mass_matrix, temperature
    As in `mala`.
power
    ``r``: the gradient's local Lipschitz constant grows like :math:`\|x\|^r`; 2 for quartic
    potentials, 0 for quadratic ones.

References
----------
Neufeld, Ng, Zhang, *Non-asymptotic convergence bounds for modified tamed unadjusted
Langevin algorithm in non-convex setting* (2022), arXiv:2207.02600.

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.mtula(lambda x: -0.25 * jnp.sum(x**2) ** 2, step_size=0.01)
>>> state = algorithm.init(jnp.full(2, 100.0))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> info.is_divergent
Array(False, dtype=bool)
""",
)

r"""Kernels made for stochastic gradients: what minibatch noise does to a step, or undoes.

They take any gradient estimator, the exact one too. Where the estimated gradient has noise of
variance ``S`` in each coordinate of the whitened frame (of the order of :math:`N^2 / n` for
batches of ``n`` of ``N`` rows), a step of time ``h`` adds noise of variance :math:`h^2 S`: as
much as the injected noise of a higher temperature. The overdamped kernels here leave that as it
is, `sghmc` takes off what it is told, and the thermostats find out by themselves.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp

from langevin_ppl.base import Array, ArrayLike, GradientEstimator, Position, Randomness
from langevin_ppl.integrators import euler_maruyama, ornstein_uhlenbeck
from langevin_ppl.kernels.kernel import Kernel, KernelInfo, draw_noise, reported
from langevin_ppl.kernels.kinetic import KineticState, at_rest, ghmc
from langevin_ppl.kernels.overdamped import ULA_STEP_SIZE, mala, moved, unadjusted
from langevin_ppl.kernels.splittings import KLMC_STEP_SIZE, STEP_SIZE, begun
from langevin_ppl.kernels.tamed import tmala
from langevin_ppl.preconditioners import Preconditioner, preconditioner
from langevin_ppl.taming import normwise, untamed
from langevin_ppl.tree import ravel

__all__ = [
    "RescaledState",
    "ThermostatState",
    "badodab",
    "psgld",
    "sghmc",
    "sgld",
    "sgnht",
    "tsgld",
]


class RescaledState(NamedTuple):
    """State of a chain that is rescaled by the size of its past gradients.

    Attributes
    ----------
    position, logdensity, logdensity_grad, step, memory
        As in `KernelState`.
    second_moment
        Running mean of the squared gradient in the frame of the inverse mass matrix, shape
        ``[dimension]``; 0 in a coordinate that has not seen a gradient yet.
    """

    position: Position
    logdensity: Array
    logdensity_grad: Position
    step: Array
    memory: Any
    second_moment: Array


class ThermostatState(NamedTuple):
    """State of a kinetic chain whose friction follows its temperature.

    Attributes
    ----------
    position, logdensity, logdensity_grad, step, memory, momentum
        As in `KineticState`.
    thermostat
        What the thermostat has added to ``friction``, scalar, of either sign; 0 at the start. On
        average it is the friction that balances the noise of the gradient.
    """

    position: Position
    logdensity: Array
    logdensity_grad: Position
    step: Array
    memory: Any
    momentum: Array
    thermostat: Array


def _unseen(
    position: Position, logdensity: Array, logdensity_grad: Position, step: Array, memory: Any
) -> RescaledState:
    moment = jnp.zeros_like(ravel(position)[0])
    return RescaledState(position, logdensity, logdensity_grad, step, memory, moment)


def _with_thermostat(
    position: Position, logdensity: Array, logdensity_grad: Position, step: Array, memory: Any
) -> ThermostatState:
    state = at_rest(position, logdensity, logdensity_grad, step, memory)
    return ThermostatState(*state, jnp.zeros((), state.momentum.dtype))


def _rescaled(
    randomness: Randomness,
    state: RescaledState,
    gradient: GradientEstimator,
    step_size: ArrayLike,
    inverse_mass_matrix: ArrayLike | Preconditioner = 1.0,
    temperature: ArrayLike = 1.0,
    smoothing: ArrayLike = 0.99,
    damping: ArrayLike = 1e-5,
) -> tuple[RescaledState, KernelInfo]:
    """Move by an Euler-Maruyama step divided by the size of the gradients so far."""
    noise, batch = randomness
    frame = preconditioner(inverse_mass_matrix, noise.size)
    force = frame.transpose(ravel(state.logdensity_grad)[0])
    before, square = state.second_moment, jnp.square(force)
    # No memory of a chain's start, nor a first step of infinite length.
    moment = jnp.where(before > 0, smoothing * before + (1.0 - smoothing) * square, square)
    root = 1.0 / jnp.sqrt(damping + jnp.sqrt(moment))
    increment = root * euler_maruyama(root * force, noise, step_size, temperature)
    new = moved(state, increment, batch, gradient, frame)
    # A gradient whose square overflows would stop the chain in silence.
    return reported(RescaledState(*new, moment.astype(before.dtype)), moment)


def _euler(
    randomness: Randomness,
    state: KineticState | ThermostatState,
    gradient: GradientEstimator,
    step_size: ArrayLike,
    inverse_mass_matrix: ArrayLike | Preconditioner,
    friction: ArrayLike,
    heating: ArrayLike,
    temperature: ArrayLike,
) -> KineticState:
    """One Euler step of the momentum, then one of the position, and the estimate at its end."""
    noise, batch = randomness
    frame = preconditioner(inverse_mass_matrix, noise.size)
    force = frame.transpose(ravel(state.logdensity_grad)[0])
    rubbed = (1.0 - jnp.multiply(friction, step_size)) * state.momentum
    rubbed += jnp.sqrt(2.0 * heating * step_size * temperature) * noise
    # A momentum just drawn does without friction, as its law would stay the same.
    momentum = begun(rubbed, noise, temperature, state.step == 0) + step_size * force
    new = moved(state, jnp.multiply(step_size, momentum), batch, gradient, frame)
    return KineticState(*new, momentum.astype(state.momentum.dtype))


def _warmed(
    thermostat: Array,
    momentum: Array,
    time: ArrayLike,
    thermostat_mass: ArrayLike,
    temperature: ArrayLike,
) -> Array:
    """More friction where the momentum is hotter than it should be, less where it is colder."""
    excess = jnp.mean(jnp.square(momentum)) - temperature
    return (thermostat + time / thermostat_mass * excess).astype(thermostat.dtype)


def _with_momentum(
    randomness: Randomness,
    state: KineticState,
    gradient: GradientEstimator,
    step_size: ArrayLike,
    inverse_mass_matrix: ArrayLike | Preconditioner = 1.0,
    friction: ArrayLike = 1.0,
    temperature: ArrayLike = 1.0,
    noise_estimate: ArrayLike = 0.0,
) -> tuple[KineticState, KernelInfo]:
    """Inject as much less noise as the gradient is said to bring."""
    heating = jnp.subtract(friction, noise_estimate)
    new = _euler(
        randomness, state, gradient, step_size, inverse_mass_matrix, friction, heating, temperature
    )
    return reported(new, new.momentum)


def _nose_hoover(
    randomness: Randomness,
    state: ThermostatState,
    gradient: GradientEstimator,
    step_size: ArrayLike,
    inverse_mass_matrix: ArrayLike | Preconditioner = 1.0,
    friction: ArrayLike = 1.0,
    temperature: ArrayLike = 1.0,
    thermostat_mass: ArrayLike = 1.0,
) -> tuple[ThermostatState, KernelInfo]:
    """Euler steps of momentum, position and thermostat."""
    total = friction + state.thermostat
    new = _euler(
        randomness, state, gradient, step_size, inverse_mass_matrix, total, friction, temperature
    )
    thermostat = _warmed(state.thermostat, new.momentum, step_size, thermostat_mass, temperature)
    return reported(ThermostatState(*new, thermostat), new.momentum, thermostat)


def _adaptive(
    randomness: Randomness,
    state: ThermostatState,
    gradient: GradientEstimator,
    step_size: ArrayLike,
    inverse_mass_matrix: ArrayLike | Preconditioner = 1.0,
    friction: ArrayLike = 1.0,
    temperature: ArrayLike = 1.0,
    thermostat_mass: ArrayLike = 1.0,
) -> tuple[ThermostatState, KernelInfo]:
    """Kick, move, thermostat, friction and noise, and back in reverse."""
    noise, batch = randomness
    frame = preconditioner(inverse_mass_matrix, noise.size)
    half, undrawn = jnp.multiply(0.5, step_size), state.step == 0

    def kicked(momentum: Array, logdensity_grad: Position) -> Array:
        return momentum + half * frame.transpose(ravel(logdensity_grad)[0])

    def warmed(thermostat: Array, momentum: Array) -> Array:
        return _warmed(thermostat, momentum, half, thermostat_mass, temperature)

    p = kicked(begun(state.momentum, noise, temperature, undrawn), state.logdensity_grad)
    shift = half * p
    thermostat = warmed(state.thermostat, p)
    rubbed = ornstein_uhlenbeck(p, noise, friction + thermostat, friction, step_size, temperature)
    p = jnp.where(undrawn, p, rubbed)
    thermostat = warmed(thermostat, p)
    there = moved(state, shift + half * p, batch, gradient, frame)
    momentum = kicked(p, there.logdensity_grad).astype(state.momentum.dtype)
    return reported(ThermostatState(*there, momentum, thermostat), momentum, thermostat)


sgld = Kernel(
    f"{__name__}.sgld",
    unadjusted(untamed),
    draw_noise,
    exact=False,
    tuner=mala,
    max_step_size=ULA_STEP_SIZE,
    doc=r"""Stochastic gradient Langevin dynamics: `ula` with an estimated gradient.

.. math:: x' = x + h C g + \sqrt{2 h T} L \xi, \qquad \mathbb{E} g = \nabla \log p(x),
    \quad C = L L^T.

Targets :math:`p^{1/T}` with a bias of order :math:`h`, of which the noise of the gradient is a
part: on :math:`N(0, \sigma^2)`, with noise of variance ``S``, the variance is
:math:`\sigma^2 (T + h S / 2) / (1 - h / 2 \sigma^2)`. One gradient a step.

Parameters
----------
step_size
    ``h``, positive scalar: half of the paper's :math:`\epsilon_t`, and constant.
inverse_mass_matrix, temperature
    As in `mala`.

References
----------
Welling, Teh, *Bayesian learning via stochastic gradient Langevin dynamics* (2011); Vollmer,
Zygalakis, Teh, *Exploration of the (non-)asymptotic bias and variance of stochastic gradient
Langevin dynamics* (2016), arXiv:1501.00438, for a constant step size.

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.sgld(lambda x: -0.5 * jnp.sum(x**2), step_size=0.1)
>>> state = algorithm.init(jnp.zeros(3))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> info.is_divergent, info.acceptance_rate
(Array(False, dtype=bool), None)
""",
)


tsgld = Kernel(
    f"{__name__}.tsgld",
    unadjusted(normwise),
    draw_noise,
    exact=False,
    tuner=tmala,
    max_step_size=ULA_STEP_SIZE,
    doc=r"""Tamed stochastic gradient Langevin dynamics: `tula` with an estimated gradient.

.. math:: x' = x + h \frac{g}{1 + h \|g\|} + \sqrt{2 h T} \xi, \qquad
    \mathbb{E} g = \nabla \log p(x),

in the frame of the inverse mass matrix. Survives gradients that grow like any polynomial. Targets
:math:`p^{1/T}` with a bias of order :math:`h`, larger than `sgld`'s: besides adding its variance,
the noise of the gradient makes taming stronger, because ``g`` is in the denominator too. See
``taming_loss``. One gradient a step.

Parameters
----------
step_size, inverse_mass_matrix, temperature
    As in `mala`.

References
----------
The taming of Brosse, Durmus, Moulines, Sabanis, *The tamed unadjusted Langevin algorithm* (2019),
arXiv:1710.05559; Lovas, Lytras, Rasonyi, Sabanis (2023), arXiv:2006.14514, for the theory of
another taming, `tusla`, with stochastic gradients.

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.tsgld(lambda x: -0.25 * jnp.sum(x**4), step_size=0.1)
>>> state = algorithm.init(jnp.full(2, 1e6))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> info.is_divergent, info.taming_loss > 0.9
(Array(False, dtype=bool), Array(True, dtype=bool))
""",
)


psgld = Kernel(
    f"{__name__}.psgld",
    _rescaled,
    draw_noise,
    exact=False,
    tuner=mala,
    max_step_size=ULA_STEP_SIZE,
    order=0,
    state=_unseen,
    doc=r"""Stochastic gradient Langevin dynamics preconditioned by RMSprop.

.. math::

    V &\leftarrow \alpha V + (1 - \alpha) g \odot g, \qquad
    G = \frac{1}{\lambda + \sqrt{V}} \\
    x' &= x + h G \odot g + \sqrt{2 h T G} \odot \xi, \qquad
    \mathbb{E} g = \nabla \log p(x),

in the frame of the inverse mass matrix, coordinate by coordinate. ``V`` begins as the first
:math:`g \odot g`. As in the paper, ``g`` enters ``V`` before it is used. One gradient a step.

The paper's correction :math:`\Gamma_i = \partial G_i / \partial x_i` is left out, as it is there
in practice: it needs the diagonal of the Hessian. **The law does not tend to the target as** ``h``
**tends to 0 at a fixed smoothing below 1.** ``V`` forgets in a time :math:`h / (1 - \alpha)`, in
which ``x`` then hardly moves, so that ``G`` becomes a function of ``x``. Where :math:`g_i` is
exact and depends on :math:`x_i` alone, the law tends to

.. math:: p(x)^{1/T} \prod_i (\lambda + |\partial_i \log p(x)|),

normalised, of variance 2 on :math:`N(0, 1)` for a small damping. (The correction would raise the
product to the power :math:`\alpha`, and hardly help.) Where ``V`` forgets slowly instead, it
averages over the law, ``G`` stays nearly constant, and the bias has a part of order
:math:`(1 - \alpha) / h` beside that of order :math:`h`: on :math:`N(0, 1)` the variance is
:math:`1 + h / 2 + (1 - \alpha) / 2 h` to first order, which at the default smoothing is least,
10 % too large, at :math:`h = 0.1`. For less, let :math:`1 - \alpha` shrink as :math:`h^2`.

Noise of the gradient, of variance ``S``, raises the variance by about ``h G S / 2`` of it, as in
`sgld`. It is also in ``G`` and ``g`` at once, which weakens the drift by a share of about
:math:`(1 - \alpha) S / V`, and it is in ``V``: where it dominates, ``G`` is
:math:`1 / \sqrt{S}` and not the scale of the target.

Parameters
----------
step_size
    ``h``, positive scalar, in units of a position: half of the paper's :math:`\epsilon_t`, times
    the number of rows ``N`` because of the units of ``V`` below.
inverse_mass_matrix, temperature
    As in `mala`. 1, the default, is the paper's kernel.
smoothing
    ``alpha``, scalar between 0 and 1.
damping
    ``lambda``, positive scalar: bounds ``G`` where gradients vanish. Here ``g`` is the gradient of
    a *sum* over the rows (prior included), in the paper its ``V`` holds the *mean* of those of the
    likelihood, ``N`` times smaller. The paper's :math:`\lambda = 10^{-5}` is therefore a damping
    of :math:`10^{-5} N` here; the default is weaker.

References
----------
Li, Chen, Carlson, Carin, *Preconditioned stochastic gradient Langevin dynamics for deep neural
networks*, AAAI (2016), arXiv:1512.07666.

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.psgld(lambda x: -0.5 * jnp.sum(jnp.array([4.0, 1.0]) * x**2), step_size=0.1)
>>> state = algorithm.init(jnp.array([0.5, 1.0]))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> state.second_moment  # of gradients -2 and -1
Array([4., 1.], dtype=float32)
""",
)


sghmc = Kernel(
    f"{__name__}.sghmc",
    _with_momentum,
    draw_noise,
    exact=False,
    tuner=ghmc,
    max_step_size=KLMC_STEP_SIZE,
    state=at_rest,
    doc=r"""Stochastic gradient Hamiltonian Monte Carlo: Euler steps with a momentum.

In the frame of the inverse mass matrix and with unit mass,

.. math::

    p &\leftarrow p + h g - \gamma h p + \sqrt{2 (\gamma - \hat\beta) h T} \, \xi, \qquad
    \mathbb{E} g = \nabla \log p(z) \\
    z &\leftarrow z + h p.

Targets :math:`p^{1/T}` with a bias of order :math:`h`; with exact gradients on
:math:`N(0, \sigma^2)` the variance is :math:`\sigma^2 / (1 - h^2 / (4 - 2 \gamma h) \sigma^2)`.
Noise of the gradient, of variance ``S``, raises the temperature by :math:`h S / 2 \gamma`, which
:math:`\hat\beta = h S / 2 T` takes off again: all of it where ``S`` is the same everywhere and in
all coordinates of the frame. One gradient a step.

Friction is by Euler's formula, as published, and stable for :math:`\gamma h < 2`; with exact
gradients `baoab` is more accurate. The paper moves the position first: its steps begin in
the middle of these, and the positions are the same.

Parameters
----------
step_size
    ``h``, time of one step, positive scalar.
inverse_mass_matrix, temperature
    As in `baoab`.
friction
    ``gamma``, positive scalar, in units of one over time: the paper's ``C``.
noise_estimate
    ``beta``, scalar between 0 and ``friction``, in units of it: how much friction the noise of
    the gradient makes up for, :math:`\hat B` of the paper. 0 leaves that noise as it is.

References
----------
Chen, Fox, Guestrin, *Stochastic gradient Hamiltonian Monte Carlo*, ICML (2014), arXiv:1402.4102.

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.sghmc(lambda x: -0.5 * jnp.sum(x**2), step_size=0.1, friction=2.0)
>>> state = algorithm.init(jnp.zeros(3))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> info.is_divergent, info.acceptance_rate
(Array(False, dtype=bool), None)
""",
)


sgnht = Kernel(
    f"{__name__}.sgnht",
    _nose_hoover,
    draw_noise,
    exact=False,
    tuner=ghmc,
    max_step_size=KLMC_STEP_SIZE,
    state=_with_thermostat,
    doc=r"""Stochastic gradient Nose-Hoover thermostat: `sghmc` that finds its friction by itself.

In the frame of the inverse mass matrix, with unit mass and in ``d`` dimensions,

.. math::

    p &\leftarrow p + h g - (A + \xi) h p + \sqrt{2 A h T} \, \eta, \qquad
    \mathbb{E} g = \nabla \log p(z) \\
    z &\leftarrow z + h p \\
    \xi &\leftarrow \xi + \tfrac{h}{\mu} (\|p\|^2 / d - T).

Targets :math:`p^{1/T}` with a bias of order :math:`h`, whatever the noise of the gradient is, as
long as its variance ``S`` is the same everywhere and in all coordinates of the frame:
:math:`\xi` settles about :math:`h S / 2 T`, the ``noise_estimate`` of `sghmc`, and
:math:`h A^2 / 2` more for what Euler's friction fails to remove. There is one thermostat for all
coordinates: where ``S`` differs among them only their mean temperature is right, and the others, as
where it depends on the position, are off by the order of :math:`h S / 2 A`. Euler's friction is
stable for :math:`(A + \xi) h < 2` only, and in few dimensions ``xi`` swings by
:math:`\sqrt{T / \mu d}`: for more than small steps take `badodab`. One gradient a step.

Parameters
----------
step_size
    ``h``, time of one step, positive scalar.
inverse_mass_matrix, temperature
    As in `baoab`.
friction
    ``A``, positive scalar, in units of one over time: intensity of the injected noise, and the
    friction at the start.
thermostat_mass
    ``mu``, positive scalar, in units of ``d`` and of a squared time: how slowly the thermostat
    answers. 1, the default, is the paper's.

References
----------
Ding, Fang, Babbush, Chen, Skeel, Neven, *Bayesian sampling using stochastic gradient
thermostats*, NeurIPS (2014).

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.sgnht(lambda x: -0.5 * jnp.sum(x**2), step_size=0.1)
>>> state = algorithm.init(jnp.zeros(3))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> info.is_divergent, state.thermostat.shape
(Array(False, dtype=bool), ())
""",
)


badodab = Kernel(
    f"{__name__}.badodab",
    _adaptive,
    draw_noise,
    exact=False,
    tuner=ghmc,
    max_step_size=STEP_SIZE,
    order=2,
    state=_with_thermostat,
    doc=r"""Adaptive Langevin dynamics by the splitting BADODAB: `baoab` with a thermostat.

In the frame of the inverse mass matrix, with unit mass and in ``d`` dimensions, the pieces

- ``B``, a kick: :math:`p \leftarrow p + \tfrac{h}{2} g`, with :math:`\mathbb{E} g = \nabla \log
  p(z)`;
- ``A``, a move: :math:`z \leftarrow z + \tfrac{h}{2} p`;
- ``D``, the thermostat: :math:`\xi \leftarrow \xi + \tfrac{h}{2 \mu} (\|p\|^2 / d - T)`;
- ``O``, friction and noise over ``h``, solved exactly for any sign of :math:`A + \xi`:
  :math:`dp = -(A + \xi) p \, dt + \sqrt{2 A T} \, dW`

in the order of the name. Targets :math:`p^{1/T}` as `sgnht` does, for noise of the gradient that
is the same everywhere and in all coordinates of the frame, with a bias of order :math:`h^2`; of
order ``h`` for other noise. One gradient a step: the last kick and the first of the next step share
it.

Parameters
----------
step_size, inverse_mass_matrix, friction, temperature
    As in `sgnht`.
thermostat_mass
    ``mu``, as in `sgnht`; the paper's is ``d`` times it.

References
----------
Leimkuhler, Shang, *Adaptive thermostats for noisy gradient systems*, SIAM Journal on Scientific
Computing 38 (2016), arXiv:1505.06889.

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.badodab(lambda x: -0.5 * jnp.sum(x**2), step_size=0.3)
>>> state = algorithm.init(jnp.zeros(3))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> info.is_divergent, state.thermostat.shape
(Array(False, dtype=bool), ())
""",
)

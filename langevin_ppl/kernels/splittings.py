r"""Unadjusted kinetic Langevin dynamics, composed of exactly solved pieces by a scheme string.

In the frame ``x = L z`` and with unit mass, :math:`dz = p \, dt`,
:math:`dp = \nabla \log p(z) dt - \gamma p \, dt + \sqrt{2 \gamma T} dW`. Each letter solves one
piece exactly, and its time is the step size divided by how often it occurs:

- ``A``, the position moves: :math:`z \leftarrow z + t p`;
- ``B``, the force kicks: :math:`p \leftarrow p + t \nabla \log p(z)`;
- ``O``, friction and noise:
  :math:`p \leftarrow e^{-\gamma t} p + \sqrt{(1 - e^{-2 \gamma t}) T} \xi`;
- ``U``, free flight with friction and noise, ``A`` and ``O`` together.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp

from langevin_ppl.base import (
    Array,
    ArrayLike,
    Estimate,
    GradientEstimator,
    Position,
    Randomness,
)
from langevin_ppl.integrators import Flight, free_flight, refresh
from langevin_ppl.kernels.kernel import Kernel, KernelInfo, draw_noise, reported
from langevin_ppl.kernels.kinetic import KineticState, at_rest, ghmc, hamiltonian
from langevin_ppl.preconditioners import Preconditioner, preconditioner
from langevin_ppl.taming import Taming, normwise, taming_loss, untamed
from langevin_ppl.tree import ravel

__all__ = ["baoab", "klmc", "obabo", "splitting", "tbaoab", "ubu"]

LETTERS = {"A": "position", "B": "kick by the gradient", "O": "friction and noise", "U": "A and O"}

NORMALS = {"A": 0, "B": 0, "O": 1, "U": 2}
"""Normal vectors that a letter takes."""


STEP_SIZE = 0.4
"""Largest automatic step size in the whitened frame: on a Gaussian OBABO's standard deviation is
then 1 / sqrt(1 - 0.4^2 / 4), 2.1 % too large."""

KLMC_STEP_SIZE = 0.1
"""The same for the exponential integrator, whose bias is of the first order."""


class Scheme(NamedTuple):
    """What a scheme string says.

    Attributes
    ----------
    letters
        The string.
    gradients
        Gradient evaluations of a step.
    ends_at_gradient
        Whether a step ends with the gradient at its last position, to begin the next one with.
    """

    letters: str
    gradients: int
    ends_at_gradient: bool

    @classmethod
    def parse(cls, letters: str) -> "Scheme":
        """Read a scheme string.

        Raises
        ------
        ValueError
            If it is not a splitting of kinetic Langevin dynamics.
        """
        known = isinstance(letters, str) and set(letters) <= set(LETTERS)
        complete = known and set(letters) in ({"A", "B", "O"}, {"B", "U"})
        if not complete:
            raise ValueError(
                "splitting: expected a string of the letters "
                + ", ".join(f"{letter} ({what})" for letter, what in LETTERS.items())
                + f", made of A, B and O or of B and U, such as 'BAOAB' or 'UBU'; got {letters!r}."
            )
        moves = [letter in "AU" for letter in letters]
        # A kick before the first move begins where the last step ended.
        ends_at_gradient = letters.index("B") < moves.index(True)
        fresh, gradients = ends_at_gradient, 0
        for letter, move in zip(letters, moves, strict=True):
            if letter == "B" and not fresh:
                gradients, fresh = gradients + 1, True
            fresh = fresh and not move
        return cls(letters, gradients + (ends_at_gradient and not fresh), ends_at_gradient)

    @property
    def order(self) -> int:
        """Order of the bias: 2 for a palindrome, else 1."""
        return 2 if self.letters == self.letters[::-1] else 1


def _composed(scheme: Scheme, taming: Taming) -> Any:
    """Transition of a scheme."""
    counts = {letter: scheme.letters.count(letter) for letter in scheme.letters}

    def transition(
        randomness: Randomness,
        state: KineticState,
        gradient: GradientEstimator,
        step_size: ArrayLike,
        inverse_mass_matrix: ArrayLike | Preconditioner = 1.0,
        friction: ArrayLike = 1.0,
        temperature: ArrayLike = 1.0,
    ) -> tuple[KineticState, KernelInfo]:
        flat, unravel = ravel(state.position)
        frame = preconditioner(inverse_mass_matrix, flat.size)
        normals = randomness.noise.reshape(-1, flat.size)
        noises, undrawn = iter(normals), state.step == 0
        began = 0.0 if taming is untamed else frame.solve(flat)
        # What the step adds is rounded less than where it leads to.
        shift, memory = jnp.zeros_like(flat), state.memory
        p = begun(state.momentum, normals[0], temperature, undrawn)
        newest = Estimate(state.logdensity, state.logdensity_grad)
        current = scheme.ends_at_gradient
        losses = []

        def there(shift: Array) -> Position:
            return unravel((flat + frame.scale(shift)).astype(flat.dtype))

        for letter in scheme.letters:
            time = jnp.divide(step_size, counts[letter])
            if letter == "A":
                shift, current = shift + time * p, False
            elif letter == "B":
                if not current:
                    newest, memory = gradient.estimate(randomness.batch, there(shift), memory)
                    current = True
                force = frame.transpose(ravel(newest.gradient)[0])
                kick = taming(force, began + shift, time)
                if taming is not untamed:
                    losses.append(taming_loss(force, kick))
                p = p + time * kick
            elif letter == "O":
                refreshed = refresh(p, next(noises), friction, time, temperature, False)
                p, undrawn = jnp.where(undrawn, p, refreshed), False
            else:
                noise = jnp.stack([next(noises), next(noises)])
                shift, p = _fly(shift, p, noise, friction, time, temperature, undrawn)
                undrawn, current = False, False
        if scheme.ends_at_gradient and not current:
            newest, memory = gradient.estimate(randomness.batch, there(shift), memory)
        loss = jnp.mean(jnp.stack(losses)) if losses else None
        new = _arrived(there(shift), p, newest, state, memory)
        return reported(
            new,
            new.momentum,
            taming_loss=loss,
            energy=hamiltonian(new) if gradient.exact and scheme.ends_at_gradient else None,
            ends_at_gradient=scheme.ends_at_gradient,
        )

    return transition


def _fly(
    z: Array,
    momentum: Array,
    noise: Array,
    friction: ArrayLike,
    time: ArrayLike,
    temperature: ArrayLike,
    undrawn: Array | bool,
) -> tuple[Array, Array]:
    """Free flight with friction; without, where its noise went into the first momentum."""
    there, flown = free_flight(z, momentum, noise, friction, time, temperature)
    return jnp.where(undrawn, z + time * momentum, there), jnp.where(undrawn, momentum, flown)


def begun(momentum: Array, noise: Array, temperature: ArrayLike, undrawn: Array | bool) -> Array:
    """Momentum to begin a step with: a chain has none before its first, and draws it.

    The noise is that of the step's first friction, which a momentum just drawn does without: its
    law would stay as it is.
    """
    return jnp.where(undrawn, jnp.sqrt(temperature) * noise, momentum)


def _arrived(
    position: Position, momentum: Array, estimate: Estimate, state: KineticState, memory: Any
) -> KineticState:
    momentum = momentum.astype(state.momentum.dtype)
    return KineticState(
        position, estimate.logdensity, estimate.gradient, state.step + 1, memory, momentum
    )


def _exponential(
    randomness: Randomness,
    state: KineticState,
    gradient: GradientEstimator,
    step_size: ArrayLike,
    inverse_mass_matrix: ArrayLike | Preconditioner = 1.0,
    friction: ArrayLike = 1.0,
    temperature: ArrayLike = 1.0,
) -> tuple[KineticState, KernelInfo]:
    """Solve all but the force exactly, and freeze the force over the step."""
    flat, unravel = ravel(state.position)
    frame = preconditioner(inverse_mass_matrix, flat.size)
    noise = randomness.noise.reshape(2, flat.size)
    force = frame.transpose(ravel(state.logdensity_grad)[0])
    flight, undrawn = Flight.over(step_size, friction), state.step == 0
    began = begun(state.momentum, noise[0], temperature, undrawn)
    start = jnp.zeros_like(flat)
    shift, p = _fly(start, began, noise, friction, step_size, temperature, undrawn)
    shift, p = shift + flight.force_reach * force, p + flight.reach * force
    position = unravel((flat + frame.scale(shift)).astype(flat.dtype))
    estimate, memory = gradient.estimate(randomness.batch, position, state.memory)
    new = _arrived(position, p, estimate, state, memory)
    energy = hamiltonian(new) if gradient.exact else None
    return reported(new, new.momentum, energy=energy)


def _kernel(letters: str, doc: str, taming: Taming = untamed, **naming: Any) -> Kernel:
    scheme = Scheme.parse(letters)
    return Kernel(
        transition=_composed(scheme, taming),
        draw=functools.partial(draw_noise, copies=sum(NORMALS[letter] for letter in letters)),
        exact=False,
        tuner=ghmc,
        max_step_size=STEP_SIZE,
        order=scheme.order if taming is untamed else 1,
        gradients_per_step=scheme.gradients,
        ends_at_gradient=scheme.ends_at_gradient,
        state=at_rest,
        doc=doc,
        **naming,
    )


@functools.cache
def splitting(letters: str) -> Kernel:
    r"""Kinetic Langevin dynamics by a scheme string, as a kernel.

    Parameters
    ----------
    letters
        Pieces in the order in which they are solved: ``A`` moves the position, ``B`` kicks by the
        gradient, ``O`` refreshes the momentum by friction and noise, ``U`` is ``A`` and ``O``
        together. Each letter's time is the step size divided by how often it occurs. A string of
        ``A``, ``B`` and ``O``, or of ``B`` and ``U``; a palindrome has a bias of order
        :math:`h^2`, any other string one of order :math:`h`.

    Returns
    -------
    Kernel
        The same object for the same string. Its parameters are those of `baoab`. Unless the first
        kick comes before the first move, a step does not end at a gradient, and its info has no
        log density.

    Raises
    ------
    ValueError
        If the string is not such a splitting.

    References
    ----------
    Leimkuhler, Matthews, *Rational construction of stochastic numerical methods for molecular
    sampling* (2013), arXiv:1203.5428; Sanz-Serna, Zygalakis, *Wasserstein distance estimates for
    the distributions of numerical approximations to ergodic stochastic differential equations*
    (2021), arXiv:2104.12384.

    Examples
    --------
    >>> import jax.numpy as jnp, langevin_ppl as lp
    >>> kernel = lp.splitting("OABAO")
    >>> kernel, kernel is lp.splitting("OABAO")
    (langevin_ppl.splitting('OABAO'), True)
    >>> algorithm = kernel(lambda x: -0.5 * jnp.sum(x**2), step_size=0.3, friction=2.0)
    """
    return _kernel(
        letters,
        f"Kinetic Langevin dynamics by the splitting {letters}; parameters as in `baoab`.",
        name=f"{__name__}.splitting({letters!r})",
        recipe=(splitting, (letters,)),
    )


baoab = _kernel(
    "BAOAB",
    name=f"{__name__}.baoab",
    doc=r"""Kinetic Langevin dynamics by the splitting BAOAB.

In the frame of the inverse mass matrix,

.. math::

    p &\leftarrow p + \tfrac{h}{2} \nabla \log p(z), \qquad
    z \leftarrow z + \tfrac{h}{2} p \\
    p &\leftarrow e^{-\gamma h} p + \sqrt{(1 - e^{-2 \gamma h}) T} \, \xi \\
    z &\leftarrow z + \tfrac{h}{2} p, \qquad
    p \leftarrow p + \tfrac{h}{2} \nabla \log p(z).

Targets :math:`p^{1/T}` with a bias of order :math:`h^2`. On Gaussians the positions have no bias
at all. Stable for :math:`h < 2 / \sqrt{L}` where the gradient is ``L``-Lipschitz. One gradient a
step.

Parameters
----------
step_size
    ``h``, time of one step, positive scalar.
inverse_mass_matrix
    ``C = L L^T``: scalar, vector ``[dimension]`` or matrix ``[dimension, dimension]``.
friction
    ``gamma``, positive scalar, in units of one over time.
temperature
    ``T``, positive scalar.

References
----------
Leimkuhler, Matthews, *Rational construction of stochastic numerical methods for molecular
sampling*, Applied Mathematics Research eXpress (2013), arXiv:1203.5428.

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.baoab(lambda x: -0.5 * jnp.sum(x**2), step_size=0.5)
>>> state = algorithm.init(jnp.zeros(3))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> info.is_divergent, info.acceptance_rate
(Array(False, dtype=bool), None)
""",
)


obabo = _kernel(
    "OBABO",
    name=f"{__name__}.obabo",
    doc=r"""Kinetic Langevin dynamics by the splitting OBABO: `ghmc` without its Metropolis test.

Targets :math:`p^{1/T}` with a bias of order :math:`h^2`: on :math:`N(0, \sigma^2)` the variance
is :math:`\sigma^2 / (1 - h^2 / 4 \sigma^2)`. One gradient a step.

Parameters
----------
step_size, inverse_mass_matrix, friction, temperature
    As in `baoab`.

References
----------
Bussi, Parrinello, *Accurate sampling using Langevin dynamics* (2007), arXiv:0803.4083.

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.obabo(lambda x: -0.5 * jnp.sum(x**2), step_size=0.5)
>>> state = algorithm.init(jnp.zeros(3))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> info.is_divergent
Array(False, dtype=bool)
""",
)


ubu = _kernel(
    "UBU",
    name=f"{__name__}.ubu",
    doc=r"""Kinetic Langevin dynamics by the splitting UBU.

Half a step of free flight with friction and noise, solved exactly, a kick by the gradient where
it led to, and another half flight. Targets :math:`p^{1/T}` with a bias of order :math:`h^2`, and
follows the paths of the diffusion to strong order 2. One gradient a step, in its middle: the info
has no log density.

Parameters
----------
step_size, inverse_mass_matrix, friction, temperature
    As in `baoab`.

References
----------
Sanz-Serna, Zygalakis, *Wasserstein distance estimates for the distributions of numerical
approximations to ergodic stochastic differential equations*, JMLR 22 (2021), arXiv:2104.12384.

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.ubu(lambda x: -0.5 * jnp.sum(x**2), step_size=0.5)
>>> state = algorithm.init(jnp.zeros(3))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> info.is_divergent, info.logdensity
(Array(False, dtype=bool), None)
""",
)


tbaoab = _kernel(
    "BAOAB",
    taming=normwise,
    name=f"{__name__}.tbaoab",
    doc=r"""Tamed kinetic Langevin dynamics: BAOAB with tamed kicks.

The kicks of `baoab` by :math:`G / (1 + t \|G\|)` over their time ``t``, so that none is longer
than 1. Survives gradients that grow like any polynomial, at the price of a bias of order
:math:`h`: see ``taming_loss``. One gradient a step.

Parameters
----------
step_size, inverse_mass_matrix, friction, temperature
    As in `baoab`.

References
----------
The taming of Brosse, Durmus, Moulines, Sabanis (2019), arXiv:1710.05559, in the splitting of
Leimkuhler and Matthews. Kinetic schemes with other tamings, and their theory: Johnston, Lytras,
Sabanis (2023), arXiv:2301.08039; Lytras, Mertikopoulos (2025), arXiv:2509.12031.

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.tbaoab(lambda x: -0.25 * jnp.sum(x**4), step_size=0.1)
>>> state = algorithm.init(jnp.full(2, 1e6))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> info.is_divergent
Array(False, dtype=bool)
""",
)


klmc = Kernel(
    f"{__name__}.klmc",
    _exponential,
    functools.partial(draw_noise, copies=2),
    exact=False,
    tuner=ghmc,
    max_step_size=KLMC_STEP_SIZE,
    state=at_rest,
    doc=r"""Kinetic Langevin Monte Carlo: the exponential integrator with a frozen gradient.

All but the force is solved exactly over the step, and the force is that of the step's beginning.
Targets :math:`p^{1/T}` with a bias of order :math:`h`. One gradient a step. `ubu` costs as much
and has a bias of order :math:`h^2`.

Parameters
----------
step_size, inverse_mass_matrix, friction, temperature
    As in `baoab`.

References
----------
Cheng, Chatterji, Bartlett, Jordan, *Underdamped Langevin MCMC: a non-asymptotic analysis*
(2018), arXiv:1707.03663; Dalalyan, Riou-Durand (2020), arXiv:1807.09382.

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.klmc(lambda x: -0.5 * jnp.sum(x**2), step_size=0.1)
>>> state = algorithm.init(jnp.zeros(3))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> info.is_divergent
Array(False, dtype=bool)
""",
)

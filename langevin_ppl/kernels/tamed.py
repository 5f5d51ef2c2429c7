r"""The tamed family: overdamped steps whose drift is bounded, for gradients that explode."""

from langevin_ppl.base import ArrayLike, GradientEstimator, Randomness
from langevin_ppl.kernels.kernel import Kernel, KernelInfo, KernelState, draw_noise
from langevin_ppl.kernels.overdamped import (
    MALA_ACCEPTANCE,
    ULA_STEP_SIZE,
    draw_metropolis,
    metropolised,
    tamed_step,
    unadjusted,
)
from langevin_ppl.preconditioners import Preconditioner
from langevin_ppl.taming import coordinatewise, normwise, polynomial, regularised, split

__all__ = ["mtula", "stula", "tmala", "tmalac", "tula", "tulac", "tusla"]


def _polynomially_tamed(
    randomness: Randomness,
    state: KernelState,
    gradient: GradientEstimator,
    step_size: ArrayLike,
    inverse_mass_matrix: ArrayLike | Preconditioner = 1.0,
    temperature: ArrayLike = 1.0,
    power: ArrayLike = 2.0,
    location: ArrayLike = 0.0,
) -> tuple[KernelState, KernelInfo]:
    """Move by an unadjusted step whose taming has a parameter of its own."""
    taming = polynomial(power)
    return tamed_step(
        taming,
        randomness,
        state,
        gradient,
        step_size,
        inverse_mass_matrix,
        temperature,
        location,
    )


def _regularised(
    randomness: Randomness,
    state: KernelState,
    gradient: GradientEstimator,
    step_size: ArrayLike,
    inverse_mass_matrix: ArrayLike | Preconditioner = 1.0,
    temperature: ArrayLike = 1.0,
    power: ArrayLike = 2.0,
    strength: ArrayLike = 0.0,
    location: ArrayLike = 0.0,
) -> tuple[KernelState, KernelInfo]:
    """Move by an unadjusted step of TUSLA."""
    taming = regularised(power, strength)
    return tamed_step(
        taming,
        randomness,
        state,
        gradient,
        step_size,
        inverse_mass_matrix,
        temperature,
        location,
    )


def _partly_tamed(
    randomness: Randomness,
    state: KernelState,
    gradient: GradientEstimator,
    step_size: ArrayLike,
    inverse_mass_matrix: ArrayLike | Preconditioner = 1.0,
    temperature: ArrayLike = 1.0,
    power: ArrayLike = 2.0,
    linear: ArrayLike = 1.0,
    location: ArrayLike = 0.0,
) -> tuple[KernelState, KernelInfo]:
    """Move by an unadjusted step of sTULA."""
    taming = split(power, linear)
    return tamed_step(
        taming,
        randomness,
        state,
        gradient,
        step_size,
        inverse_mass_matrix,
        temperature,
        location,
    )


tmala = Kernel(
    f"{__name__}.tmala",
    metropolised(normwise),
    draw_metropolis,
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
    draw_metropolis,
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


tula = Kernel(
    f"{__name__}.tula",
    unadjusted(normwise),
    draw_noise,
    exact=False,
    tuner=tmala,
    max_step_size=ULA_STEP_SIZE,
    taming=lambda: normwise,
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
    max_step_size=ULA_STEP_SIZE,
    taming=lambda: coordinatewise,
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
    max_step_size=ULA_STEP_SIZE,
    taming=polynomial,
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
location
    Where :math:`x` is measured from, scalar or vector ``[dimension]``: 0 in the paper, and the
    mode where `langevin_ppl.sample` tunes.

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


tusla = Kernel(
    f"{__name__}.tusla",
    _regularised,
    draw_noise,
    exact=False,
    tuner=tmala,
    max_step_size=ULA_STEP_SIZE,
    order=0.5,
    taming=regularised,
    doc=r"""Tamed unadjusted stochastic Langevin algorithm, as a sampling kernel.

.. math::

    x' = x + h \frac{G - \eta x \|x\|^r}{1 + \sqrt h \|x\|^r} + \sqrt{2 h T} \xi,

in the frame of the inverse mass matrix. Wasserstein-1 bias of order :math:`\sqrt h`, also for
nonconvex potentials and for stochastic gradients. With ``strength`` above 0 the target is
regularised. One gradient a step.

Parameters
----------
step_size, inverse_mass_matrix, temperature
    As in `mala`.
power
    ``r``, the paper's 2r: the gradient's local Lipschitz constant grows like :math:`\|x\|^r` at
    most; 2 for quartic potentials.
strength
    ``eta``: of the potential :math:`\eta \|x\|^{r + 2} / (r + 2)` added to the target's.
location
    As in `mtula`.

References
----------
Lovas, Lytras, Rasonyi, Sabanis, *Taming neural networks with TUSLA: nonconvex learning via
adaptive stochastic gradient Langevin algorithms* (2023), arXiv:2006.14514.

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.tusla(lambda x: -0.25 * jnp.sum(x**2) ** 2, step_size=0.01)
>>> state = algorithm.init(jnp.full(2, 100.0))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> info.is_divergent
Array(False, dtype=bool)
""",
)


stula = Kernel(
    f"{__name__}.stula",
    _partly_tamed,
    draw_noise,
    exact=False,
    tuner=tmala,
    max_step_size=ULA_STEP_SIZE,
    order=0.5,
    taming=split,
    doc=r"""Split tamed unadjusted Langevin algorithm: only what is not linear is tamed.

.. math::

    x' = x + h \left( -a x + \frac{G + a x}{1 + \sqrt h \|x\|^r} \right)
    + \sqrt{2 h T} \xi,

in the frame of the inverse mass matrix. The linear pull that is left untamed keeps the law of
the chain as well behaved as the target's. One gradient a step.

Parameters
----------
step_size, inverse_mass_matrix, temperature
    As in `mala`.
power
    ``r``, as in `tusla`.
linear
    ``a``, not negative; the step size should be well below ``1 / a``.
location
    As in `mtula`.

References
----------
Lytras, Sabanis, *Taming under isoperimetry* (2023), arXiv:2311.09003.

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> algorithm = lp.stula(lambda x: -0.25 * jnp.sum(x**2) ** 2, step_size=0.01)
>>> state = algorithm.init(jnp.full(2, 100.0))
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), state)
>>> info.is_divergent
Array(False, dtype=bool)
""",
)

"""Stochastic gradients and several modes: step sizes in cycles, swaps, and flattened energies."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import (
    Array,
    ArrayLike,
    GradientEstimator,
    Position,
    PRNGKey,
    Randomness,
    check_number,
)
from langevin_ppl.kernels.kernel import Kernel, KernelState, draw_noise
from langevin_ppl.kernels.overdamped import ULA_STEP_SIZE, mala, tamed_step
from langevin_ppl.kernels.tempering import (
    ReplicaInfo,
    check_replicable,
    coldest,
    copies,
    drawn,
    ladder,
    of_replicas,
    replica_info,
    stepped,
    swapped,
    without_temperature,
)
from langevin_ppl.preconditioners import Preconditioner
from langevin_ppl.taming import untamed
from langevin_ppl.tree import ravel

__all__ = [
    "ContourInfo",
    "ContourState",
    "CycleInfo",
    "ExchangeState",
    "contour_sgld",
    "cyclical_sgld",
    "replica_exchange",
]

VARIANCE_DECAY = 2.0 / 3.0
"""Power with which the gain of the running variance falls: between 1/2 and 1, as stochastic
approximation asks, so that what was seen far from equilibrium is forgotten (Robbins, Monro 1951;
Polyak, Juditsky 1992)."""


class CycleInfo(NamedTuple):
    """What a step of a cyclical kernel reports.

    Attributes
    ----------
    is_divergent, logdensity, grad_norm, taming_loss, acceptance_rate, is_accepted, energy
        As in `KernelInfo`.
    cycle
        Number of the cycle, int32.
    log_weight
        0 where the step sampled, minus infinity where it explored: such a draw does not count.
    """

    is_divergent: Array
    logdensity: Array | None
    grad_norm: Array
    taming_loss: Array | None
    acceptance_rate: Array | None
    is_accepted: Array | None
    energy: Array | None
    cycle: Array
    log_weight: Array


def _cyclical(
    randomness: Randomness,
    state: KernelState,
    gradient: GradientEstimator,
    step_size: ArrayLike,
    cycle_length: ArrayLike,
    exploration: ArrayLike = 0.5,
    inverse_mass_matrix: ArrayLike | Preconditioner = 1.0,
    temperature: ArrayLike = 1.0,
) -> tuple[KernelState, CycleInfo]:
    """Move by an Euler-Maruyama step of this part of the cycle, without noise in the first."""
    dtype = ravel(state.position)[0].dtype
    phase = (jnp.mod(state.step, cycle_length) / cycle_length).astype(dtype)
    explores = phase < exploration
    new, info = tamed_step(
        untamed,
        randomness,
        state,
        gradient,
        0.5 * step_size * (1.0 + jnp.cos(jnp.pi * phase)),
        inverse_mass_matrix,
        jnp.where(explores, 0.0, temperature),
    )
    cycle = jnp.floor_divide(state.step, cycle_length).astype(jnp.int32)
    return new, CycleInfo(*info, cycle, jnp.where(explores, -jnp.inf, 0.0).astype(dtype))


cyclical_sgld = Kernel(
    f"{__name__}.cyclical_sgld",
    _cyclical,
    draw_noise,
    exact=False,
    tuner=mala,
    # Where sampling begins, the step size is half of the largest one.
    max_step_size=2.0 * ULA_STEP_SIZE,
    doc=r"""Stochastic gradient Langevin dynamics with a cyclical step size.

.. math::

    x' = x + h_k C \nabla \log p(x) + \sqrt{2 h_k T} L \xi, \qquad
    h_k = \tfrac{h}{2} (1 + \cos(\pi r_k)), \quad r_k = (k \bmod K) / K.

Every cycle of ``K`` steps begins with large ones. Its first part, :math:`r_k < \beta`, has no noise
and is gradient descent to some mode; the second samples about it. In each of them the law is
:math:`p^{1/T}` with a bias of order :math:`h` and of the noise of the gradients; but how the cycles
share the modes among them is not that of their masses. One gradient a step.

Draws of the first part do not count: the info's ``log_weight`` is minus infinity there and 0 in the
second, and `langevin_ppl.sample` resamples by it; elsewhere averages have to leave them out.
``cycle`` tells the cycles apart.

Parameters
----------
step_size
    ``h``: the largest one, at the start of a cycle, positive scalar.
cycle_length
    ``K``: steps of a cycle, a whole number.
exploration
    ``beta``: share of a cycle that explores, from 0 to 1.
inverse_mass_matrix
    ``C = L L^T``: scalar, vector ``[dimension]`` or matrix ``[dimension, dimension]``.
temperature
    ``T``, positive scalar.

References
----------
Zhang, Li, Zhang, Chen, Wilson, *Cyclical stochastic gradient MCMC for Bayesian deep learning*
(2020), arXiv:1902.03932.

Examples
--------
>>> import jax, jax.numpy as jnp, langevin_ppl as lp
>>> wells = lambda x: jnp.logaddexp(-8.0 * (x[0] - 2) ** 2, -8.0 * (x[0] + 2) ** 2)
>>> algorithm = lp.cyclical_sgld(wells, step_size=0.1, cycle_length=50)
>>> state, info = jax.jit(algorithm.step)(jax.random.key(0), algorithm.init(jnp.ones(1)))
>>> info.cycle, info.log_weight
(Array(0, dtype=int32), Array(-inf, dtype=float32))
""",
)


class ExchangeState(NamedTuple):
    """State of replicas that are swapped by estimated log densities.

    Attributes
    ----------
    position, logdensity, logdensity_grad, step, memory
        Those of the replica at the first temperature, as in `KernelState`.
    replicas
        States of the kernel at all temperatures, leading axis ``temperature``.
    variance
        Running mean of the variance of the difference in log density that each pair of
        neighbours is swapped by, shape ``[temperature - 1]``.
    num_estimates
        How many estimates the running mean has seen, int32 scalar.
    """

    position: Position
    logdensity: Array
    logdensity_grad: Position
    step: Array
    memory: Any
    replicas: Any
    variance: Array
    num_estimates: Array


def replica_exchange(kernel: Kernel, temperatures: Sequence[float]) -> Kernel:
    r"""Run replicas of a stochastic gradient kernel at several temperatures, and swap neighbours.

    As `parallel_tempering`, for log densities :math:`\hat\ell_b` that a batch ``b`` estimates.
    Their noise would make swaps too frequent, since :math:`E \, e^{\delta X}` exceeds
    :math:`e^{\delta E X}`. Both positions of a pair at temperatures :math:`S < T` are therefore
    put to the same two fresh batches,

    .. math::

        D_k = \hat\ell_{b_k}(x_T) - \hat\ell_{b_k}(x_S), \qquad
        X = \tfrac12 (D_1 + D_2), \qquad
        \sigma^2 \leftarrow \sigma^2 + g_n \bigl(\tfrac14 (D_1 - D_2)^2 - \sigma^2\bigr),

    and swapped with probability
    :math:`\min(1, \exp(\delta X - \tfrac12 \delta^2 \sigma^2 / F))`, where
    :math:`\delta = 1/S - 1/T`. If a :math:`D_k` has variance ``v``, then ``X`` has :math:`v / 2`,
    of which :math:`(D_1 - D_2)^2 / 4` is an unbiased estimate; its running mean over the steps,
    one for each pair, has gains :math:`g_n = n^{-2/3}`. What the two positions have in common
    cancels in :math:`D_k`.

    *What it targets.* For Gaussian noise of known variance
    :math:`E \exp(\delta X - \tfrac12 \delta^2 \sigma^2) = \exp(\delta E X)`: the ratio is unbiased.
    Its minimum with 1 has a smaller mean than that of the exact ratio, so that swaps are rarer than
    without noise; yet swap and swap back still stand in the proportion
    :math:`\exp(\delta E X)`, which leaves :math:`p^{1/S} p^{1/T}` invariant (Ceperley, Dewing).
    A bias remains where the noise is not Gaussian or its variance is not that of the running mean,
    which averages over positions, and for :math:`F > 1`; that of the kernel comes on top.

    All replicas move by one batch, which is read once; that correlates their errors, to the order
    in which the noise of the gradients biases each of them. Swaps have batches of their own,
    because that of the moves is also in the gradients and momenta by which the replicas go on. An
    estimator's memory moves with its replica, and the evaluations for a swap leave it as it is; its
    log densities must be unbiased. Where both batches of a swap are the same, nothing is swapped:
    those of an estimator that follows the step counter alone, as epochs do, always are. A
    deterministic estimator needs none of this: its step is that of `parallel_tempering`.

    Parameters
    ----------
    kernel
        A kernel of this library whose step ends at a gradient.
    temperatures
        A rising ladder that begins with 1.

    Returns
    -------
    Kernel
        Its parameters are those of the kernel but the temperature, and ``correction_share``, the
        ``F`` by which the correction is divided: 1 corrects in full, more swaps more often at the
        price of a bias. For a stochastic estimator, two evaluations for each replica and step come
        on top of the gradients of the kernel.

    Raises
    ------
    TypeError
        If the kernel has no temperature.
    ValueError
        If the temperatures are no such ladder, or the kernel's steps do not end at a gradient.

    References
    ----------
    Deng, Feng, Gao, Liang, Lin, *Non-convex learning via replica exchange stochastic gradient
    MCMC* (2020), arXiv:2008.05367; Ceperley, Dewing, *The penalty method for random walks with
    uncertain energies* (1999), arXiv:physics/9812035, for the balance.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> wells = lambda x: jnp.logaddexp(-8.0 * (x[0] - 2) ** 2, -8.0 * (x[0] + 2) ** 2)
    >>> kernel = lp.replica_exchange(lp.ula, [1, 4, 16])
    >>> algorithm = kernel(wells, step_size=0.01)
    >>> state, info = algorithm.step(jax.random.key(0), algorithm.init(jnp.ones(1)))
    >>> info.swap_rate.shape
    (2,)
    """
    check_replicable("replica_exchange", kernel)
    return _exchanged(kernel, ladder("replica_exchange", temperatures))


@functools.cache
def _exchanged(kernel: Kernel, temperatures: tuple[float, ...]) -> Kernel:
    number = len(temperatures)

    def state(
        position: Position, logdensity: Array, logdensity_grad: Position, step: Array, memory: Any
    ) -> ExchangeState:
        common = (position, logdensity, logdensity_grad, step, memory)
        variance = jnp.zeros(number - 1, jnp.result_type(logdensity))
        count = jnp.zeros((), jnp.int32)
        return ExchangeState(*common, copies(kernel.state(*common), number), variance, count)

    def draw(rng_key: PRNGKey, state: ExchangeState, gradient: GradientEstimator) -> Randomness:
        if gradient.draw is None:
            return drawn(kernel, rng_key, state.replicas, gradient, number)
        key_move, *keys = jax.random.split(rng_key, 3)
        noise, batch = drawn(kernel, key_move, state.replicas, gradient, number)
        tests = [gradient.draw(key, state.step) for key in keys]
        return Randomness(noise, (batch, jax.tree.map(lambda *two: jnp.stack(two), *tests)))

    def transition(
        randomness: Randomness,
        state: ExchangeState,
        gradient: GradientEstimator,
        correction_share: ArrayLike = 1.0,
        **parameters: Any,
    ) -> tuple[ExchangeState, ReplicaInfo]:
        noise, uniforms = randomness.noise
        batch, tests = ((), ()) if gradient.draw is None else randomness.batch
        variance, count = state.variance, state.num_estimates
        heats = jnp.asarray(temperatures, variance.dtype)
        replicas, infos = stepped(
            kernel, Randomness(noise, batch), state.replicas, gradient, heats, parameters
        )
        if gradient.draw is None:
            difference = jnp.diff(replicas.logdensity)
        else:
            first, second = jnp.diff(_values(gradient, tests, replicas))
            distinct = _are_distinct(tests)
            # The same batch twice says nothing of the noise, and decides nothing.
            difference = jnp.where(distinct, 0.5 * (first + second), -jnp.inf)
            count = count + distinct.astype(count.dtype)
            gain = jnp.power(jnp.maximum(count, 1).astype(variance.dtype), -VARIANCE_DECAY)
            change = gain * (0.25 * jnp.square(first - second) - variance)
            # A replica that is lost is not swapped, and must not spoil the mean.
            variance += jnp.where(distinct & jnp.isfinite(change), change, 0.0)
        beta = 1.0 / heats
        delta = -jnp.diff(beta)
        log_ratio = delta * difference - 0.5 * delta**2 * variance / correction_share
        replicas, rates = swapped(replicas, log_ratio, uniforms, beta, state.step)
        cold = coldest(replicas)
        new = ExchangeState._make((*cold[:5], replicas, variance, count))
        return new, replica_info(infos, cold, rates)

    transition.__signature__ = without_temperature(kernel, correction_share=1.0)  # pyright: ignore[reportFunctionMemberAccess]
    evaluations = kernel.gradients_per_step + 2
    return of_replicas(replica_exchange, kernel, temperatures, transition, draw, state, evaluations)


def _values(gradient: GradientEstimator, batches: Any, replicas: Any) -> Array:
    """Log densities of all replicas by each of the batches, ``[batch, temperature]``."""

    def of_all(batch: Any) -> Array:
        def value(replica: Any) -> Array:
            return gradient.estimate(batch, replica.position, replica.memory)[0].logdensity

        return jax.vmap(value)(replicas)

    # One batch after the other, because an estimator may branch on what is in it.
    return jax.lax.map(of_all, batches)


def _are_distinct(batches: Any) -> Array:
    """Whether two batches, stacked, differ in anything."""
    differ = [jnp.any(leaf[0] != leaf[1]) for leaf in jax.tree.leaves(batches)]
    return jnp.any(jnp.stack(differ)) if differ else jnp.asarray(False)


class ContourState(NamedTuple):
    """State of a chain that flattens its energies.

    Attributes
    ----------
    position, logdensity, logdensity_grad, step, memory
        As in `KernelState`.
    log_theta
        Logarithm of the probability of each partition of the energy, shape ``[partition]``.
    """

    position: Position
    logdensity: Array
    logdensity_grad: Position
    step: Array
    memory: Any
    log_theta: Array


class ContourInfo(NamedTuple):
    """What a step of contour SGLD reports.

    Attributes
    ----------
    is_divergent, logdensity, grad_norm, taming_loss, acceptance_rate, is_accepted, energy
        As in `KernelInfo`.
    log_weight
        Logarithm of the weight that the draw counts with.
    """

    is_divergent: Array
    logdensity: Array | None
    grad_norm: Array
    taming_loss: Array | None
    acceptance_rate: Array | None
    is_accepted: Array | None
    energy: Array | None
    log_weight: Array


def contour_sgld(min_energy: float, max_energy: float, num_partitions: int) -> Kernel:
    r"""Stochastic gradient Langevin dynamics on a density whose energies are flattened.

    With the energy :math:`U = -\log p` and :math:`\theta_j` the probability, under
    :math:`p^{1/T}`, of the ``j``-th of ``m`` partitions of the energy of width :math:`\Delta`,

    .. math::

        x' &= x + h \bigl(1 + \zeta T (\log \theta_j - \log \theta_{j-1}) / \Delta\bigr)
            C \nabla \log p(x) + \sqrt{2 h T} L \xi, \qquad U(x) \text{ in partition } j, \\
        \theta' &= \theta + a_k \Psi_\theta(U(x'))^\zeta (e_{j'} - \theta), \qquad
            U(x') \text{ in partition } j', \\
        a_k &= \min(\tfrac12, A / (k^\alpha + B)).

    :math:`\log \Psi_\theta` is continuous and linear in each partition: :math:`\log \theta_j` at
    the upper edge of partition ``j``. The factor of the gradient makes it that of
    :math:`T \log(p^{1/T} \Psi_\theta(U)^{-\zeta})`, which is what the chain samples: energies of
    small probability, such as those of barriers, are visited more often, and where
    :math:`\log \theta` falls by more than :math:`\Delta / \zeta T` to the next partition, the chain
    climbs. Draws weighted by :math:`\Psi_\theta(U)^\zeta` have the law :math:`p^{1/T}`, with a bias
    of order :math:`h`, of the noise of gradients and energies, and of :math:`\theta` while it still
    changes; the info's ``log_weight`` is the logarithm. The update of :math:`\theta` is weighted in
    the same way, so that its fixed point is the histogram of the energy at any width. (The
    original weights, :math:`\theta_j^\zeta`, are these at the upper edges, and right as the width
    goes to zero.) One gradient a step.

    *Outside of the partitions* nothing is flattened. Energies below ``min_energy`` count as
    partition 0 and those above ``max_energy`` as the last one; :math:`\Psi` stays what it is at
    the edge, and the gradient is that of :math:`\log p`, as it is within partition 0. A
    ``min_energy`` far below the lowest energy makes partitions that are never visited, towards
    which the force grows: choose it near the lowest energy that a plain run finds.

    Parameters
    ----------
    min_energy, max_energy
        Energies between which the partitions lie, minus the log density as the estimator has it.
    num_partitions
        ``m``, at least 2.

    Returns
    -------
    Kernel
        Its parameters are ``step_size``, ``inverse_mass_matrix`` and ``temperature`` as in `ula`;
        ``zeta``, how much is flattened, from 0 (nothing, `ula`) to 1 (all energies equally
        likely); and of the schedule, ``gain`` (``A``), ``gain_offset`` (``B``) and ``gain_power``
        (``alpha``, above 1/2 and at most 1). With a gain so large that ``theta`` is that of the
        mode where the chain just is, weighted draws favour rare modes.

    Raises
    ------
    ValueError
        If the energies are not finite and rising, or there are fewer than two partitions.

    References
    ----------
    Deng, Lin, Liang, *A contour stochastic gradient Langevin dynamics algorithm for simulations of
    multi-modal distributions* (2020), arXiv:2010.09800.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> wells = lambda x: -2.0 * (x[0] ** 2 - 1.0) ** 2
    >>> kernel = lp.contour_sgld(min_energy=0.0, max_energy=4.0, num_partitions=8)
    >>> algorithm = kernel(wells, step_size=0.01)
    >>> state, info = algorithm.step(jax.random.key(0), algorithm.init(jnp.ones(1)))
    >>> state.log_theta.shape, bool(info.log_weight <= 0.0)
    ((8,), True)
    """
    check_number("contour_sgld: min_energy", min_energy)
    check_number("contour_sgld: max_energy", max_energy, above=float(min_energy))
    whole = isinstance(num_partitions, int | np.integer) and not isinstance(num_partitions, bool)
    if not whole or num_partitions < 2:
        raise ValueError(
            f"contour_sgld: expected num_partitions to be a whole number of at least 2, got "
            f"{num_partitions!r}."
        )
    return _contour(float(min_energy), float(max_energy), int(num_partitions))


@functools.cache
def _contour(min_energy: float, max_energy: float, num_partitions: int) -> Kernel:
    upper_edges = np.linspace(min_energy, max_energy, num_partitions + 1)[1:]

    def state(
        position: Position, logdensity: Array, logdensity_grad: Position, step: Array, memory: Any
    ) -> ContourState:
        dtype = jnp.result_type(logdensity)
        log_theta = jnp.full(num_partitions, -np.log(num_partitions), dtype)
        return ContourState(position, logdensity, logdensity_grad, step, memory, log_theta)

    def transition(
        randomness: Randomness,
        state: ContourState,
        gradient: GradientEstimator,
        step_size: ArrayLike,
        inverse_mass_matrix: ArrayLike | Preconditioner = 1.0,
        temperature: ArrayLike = 1.0,
        zeta: ArrayLike = 0.75,
        gain: ArrayLike = 10.0,
        gain_offset: ArrayLike = 1000.0,
        gain_power: ArrayLike = 0.8,
    ) -> tuple[ContourState, ContourInfo]:
        *common, log_theta = state
        edges = jnp.asarray(upper_edges, log_theta.dtype)

        def log_weight(energy: Array) -> Array:
            return jnp.multiply(zeta, jnp.interp(energy, edges, log_theta))

        # The gradient of T log(p^(1/T) / Psi(U)^zeta), by the chain rule on the energy.
        factor = 1.0 + temperature * jax.grad(log_weight)(-state.logdensity)
        force = jax.tree.map(lambda leaf: (factor * leaf).astype(leaf.dtype), state.logdensity_grad)
        new, info = tamed_step(
            untamed,
            randomness,
            KernelState(*common)._replace(logdensity_grad=force),
            gradient,
            step_size,
            inverse_mass_matrix,
            temperature,
        )
        weight = log_weight(-new.logdensity).astype(log_theta.dtype)
        scheduled = gain / (jnp.power(state.step, gain_power) + gain_offset)
        share = jnp.minimum(scheduled, 0.5).astype(log_theta.dtype) * jnp.exp(weight)
        visited = jnp.minimum(jnp.searchsorted(edges, -new.logdensity), num_partitions - 1)
        # On the log scale, since partitions that are never seen go to zero.
        left = log_theta + jnp.log1p(-share)
        log_theta = left.at[visited].set(jnp.logaddexp(left[visited], jnp.log(share)))
        return ContourState(*new, log_theta), ContourInfo(*info, weight)

    return Kernel(
        f"{__name__}.contour_sgld({min_energy:g}, {max_energy:g}, {num_partitions})",
        transition,
        draw_noise,
        exact=False,
        tuner=mala,
        max_step_size=ULA_STEP_SIZE,
        recipe=(contour_sgld, (min_energy, max_energy, num_partitions)),
        state=state,
        doc=(
            f"Contour SGLD with {num_partitions} partitions of the energies from {min_energy:g} to "
            f"{max_energy:g}."
        ),
    )

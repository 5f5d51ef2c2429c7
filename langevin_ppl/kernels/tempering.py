"""Temperature as a way between modes: replicas at several of them, or one that falls."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl import metropolis
from langevin_ppl.base import Array, GradientEstimator, Position, PRNGKey, Randomness
from langevin_ppl.kernels.kernel import Draw, Kernel, KernelInfo, Transition
from langevin_ppl.kernels.kinetic import hamiltonian
from langevin_ppl.tree import ravel

__all__ = ["ReplicaInfo", "ReplicaState", "annealed", "parallel_tempering"]


class ReplicaState(NamedTuple):
    """State of replicas at several temperatures.

    Attributes
    ----------
    position, logdensity, logdensity_grad, step, memory
        Those of the replica at the first temperature, as in `KernelState`.
    replicas
        States of the kernel at all temperatures, leading axis ``temperature``.
    """

    position: Position
    logdensity: Array
    logdensity_grad: Position
    step: Array
    memory: Any
    replicas: Any


class ReplicaInfo(NamedTuple):
    """What a step of parallel tempering reports.

    Attributes
    ----------
    is_divergent, logdensity, grad_norm, taming_loss, acceptance_rate, is_accepted, energy
        Of the replica at the first temperature, before it was swapped, as in `KernelInfo`; log
        density and energy are those after the swap.
    swap_rate
        Probability with which each pair of neighbours was swapped, shape ``[temperature - 1]``;
        NaN where its turn is in the next step.
    """

    is_divergent: Array
    logdensity: Array
    grad_norm: Array
    taming_loss: Array | None
    acceptance_rate: Array | None
    is_accepted: Array | None
    energy: Array | None
    swap_rate: Array


def ladder(owner: str, temperatures: Sequence[float]) -> tuple[float, ...]:
    """Temperatures of replicas, checked."""
    values = tuple(float(value) for value in np.ravel(np.asarray(temperatures, float)))
    rising = all(low < high < np.inf for low, high in zip(values, values[1:], strict=False))
    if len(values) < 2 or values[0] != 1.0 or not rising:
        raise ValueError(
            f"{owner}: expected at least two temperatures that begin with 1 and rise, "
            f"for example [1, 2, 4, 8], got {list(values)}."
        )
    return values


def without_temperature(kernel: Kernel, **more: Any) -> inspect.Signature:
    """Signature of a transition of the kernel at temperatures that are set.

    ``more`` are further parameters with their defaults.
    """
    keep = inspect.Parameter.POSITIONAL_OR_KEYWORD
    leading = [inspect.Parameter(n, keep) for n in ("randomness", "state", "gradient")]
    own = {name: kernel.parameters[name] for name in kernel.parameters if name != "temperature"}
    return inspect.Signature(
        leading + [inspect.Parameter(n, keep, default=d) for n, d in (own | more).items()]
    )


def _check(what: str, kernel: Any) -> None:
    if not isinstance(kernel, Kernel) or "temperature" not in kernel.parameters:
        raise TypeError(
            f"{what}: expected a kernel of langevin_ppl with a temperature, such as "
            f"langevin_ppl.mala, got {kernel!r}."
        )


def check_replicable(owner: str, kernel: Any) -> None:
    """Refuse a kernel whose replicas cannot be swapped."""
    _check(owner, kernel)
    if not kernel.ends_at_gradient:
        raise ValueError(
            f"{owner}: a step of {kernel!r} does not end at a gradient, so that the log "
            "density, by which replicas are swapped, is not known there. Use langevin_ppl.baoab."
        )


def parallel_tempering(kernel: Kernel, temperatures: Sequence[float]) -> Kernel:
    r"""Run replicas of a kernel at several temperatures, and swap neighbours.

    The replica at temperature ``T`` samples :math:`p^{1/T}` by the kernel. After every step,
    neighbours at temperatures :math:`S < T` exchange their places with probability
    :math:`\min(1, (p(x_T) / p(x_S))^{1/S - 1/T})`: pairs (0, 1), (2, 3), ... after even steps and
    (1, 2), (3, 4), ... after odd ones, which carries replicas through the ladder faster than
    choosing pairs at random. The draws are those at temperature 1, and their law is exact where
    the kernel's is.

    Parameters
    ----------
    kernel
        A kernel of this library whose step ends at a gradient.
    temperatures
        A rising ladder that begins with 1. Swap rates between 0.2 and 0.6 are good; the info's
        ``swap_rate`` has them, and so has ``sample_stats``.

    Returns
    -------
    Kernel
        Its parameters are those of the kernel but the temperature. They are tuned at temperature
        1 and fit the others: on a Gaussian the acceptance rate does not depend on temperature.

    Raises
    ------
    TypeError
        If the kernel has no temperature.
    ValueError
        If the temperatures are no such ladder, or the kernel's steps do not end at a gradient.

    References
    ----------
    Geyer (1991); Syed, Bouchard-Cote, Deligiannidis, Doucet, *Non-reversible parallel tempering: a
    scalable highly parallel MCMC scheme* (2022), arXiv:1905.02939, for the alternation.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> wells = lambda x: jnp.logaddexp(-8.0 * (x[0] - 2) ** 2, -8.0 * (x[0] + 2) ** 2)
    >>> kernel = lp.parallel_tempering(lp.mala, [1, 4, 16, 64])
    >>> algorithm = kernel(wells, step_size=0.05)
    >>> state, info = algorithm.step(jax.random.key(0), algorithm.init(jnp.ones(1)))
    >>> info.swap_rate.shape
    (3,)
    """
    check_replicable("parallel_tempering", kernel)
    return _parallel(kernel, ladder("parallel_tempering", temperatures))


@functools.cache
def _parallel(kernel: Kernel, temperatures: tuple[float, ...]) -> Kernel:
    number = len(temperatures)

    def state(
        position: Position, logdensity: Array, logdensity_grad: Position, step: Array, memory: Any
    ) -> ReplicaState:
        common = (position, logdensity, logdensity_grad, step, memory)
        return ReplicaState(*common, copies(kernel.state(*common), number))

    def draw(rng_key: PRNGKey, state: ReplicaState, gradient: GradientEstimator) -> Randomness:
        return drawn(kernel, rng_key, state.replicas, gradient, number)

    def transition(
        randomness: Randomness, state: ReplicaState, gradient: GradientEstimator, **parameters: Any
    ) -> tuple[ReplicaState, ReplicaInfo]:
        (noise, uniforms), batch = randomness
        heats = jnp.asarray(temperatures, jnp.asarray(state.logdensity).dtype)
        replicas, infos = stepped(
            kernel, Randomness(noise, batch), state.replicas, gradient, heats, parameters
        )
        beta = 1.0 / heats
        log_ratio = -jnp.diff(beta) * jnp.diff(replicas.logdensity)
        replicas, rates = swapped(replicas, log_ratio, uniforms, beta, state.step)
        cold = coldest(replicas)
        return ReplicaState._make((*cold[:5], replicas)), replica_info(infos, cold, rates)

    transition.__signature__ = without_temperature(kernel)  # pyright: ignore[reportFunctionMemberAccess]
    return of_replicas(
        parallel_tempering, kernel, temperatures, transition, draw, state, kernel.gradients_per_step
    )


def of_replicas(
    factory: Callable[..., Kernel],
    kernel: Kernel,
    temperatures: tuple[float, ...],
    transition: Transition,
    draw: Draw,
    state: Callable[..., Any],
    gradients_per_replica: int,
) -> Kernel:
    """Kernel that ``factory(kernel, temperatures)`` makes, of the nature of the one it repeats."""
    return Kernel(
        f"{factory.__module__}.{factory.__name__}({kernel!r}, {list(temperatures)})".replace(
            ".0", ""
        ),
        transition,
        draw,
        exact=kernel.exact,
        target_acceptance_rate=kernel.target_acceptance_rate,
        tuner=kernel.tuner,
        tuner_share=1.0 if kernel.tuner is kernel else kernel.tuner_share,
        max_step_size=kernel.max_step_size,
        order=kernel.order,
        gradients_per_step=len(temperatures) * gradients_per_replica,
        recipe=(factory, (kernel, temperatures)),
        state=state,
        doc=f"Replicas of {kernel!r} at the temperatures {list(temperatures)}.",
    )


def copies(state: Any, number: int) -> Any:
    """Repeat a state along a leading axis ``temperature``."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (number, *jnp.shape(leaf))), state)


def coldest(replicas: Any) -> Any:
    """What belongs to the first temperature."""
    return jax.tree.map(lambda leaf: leaf[0], replicas)


def drawn(
    kernel: Kernel, rng_key: PRNGKey, replicas: Any, gradient: GradientEstimator, number: int
) -> Randomness:
    """Noise of all replicas with the uniforms of the swaps, and a batch."""
    key_swap, *keys = jax.random.split(rng_key, number + 1)
    draws = [kernel.draw(key, coldest(replicas), gradient) for key in keys]
    noise = jnp.stack([each.noise for each in draws])
    # One batch for all, which is read once, and by which replicas can be compared.
    return Randomness((noise, jax.random.uniform(key_swap, (number - 1,))), draws[0].batch)


def stepped(
    kernel: Kernel,
    randomness: Randomness,
    replicas: Any,
    gradient: GradientEstimator,
    temperatures: Array,
    parameters: Mapping[str, Any],
) -> tuple[Any, KernelInfo]:
    """Move every replica at its temperature; states and infos with a leading axis."""

    def move(noise: Array, replica: Any, temperature: Array) -> tuple[Any, KernelInfo]:
        own = Randomness(noise, randomness.batch)
        return kernel.transition(own, replica, gradient, temperature=temperature, **parameters)

    return jax.vmap(move)(randomness.noise, replicas, temperatures)


def replica_info(infos: KernelInfo, cold: Any, rates: Array) -> ReplicaInfo:
    """Info of a step from those of the replicas and the coldest state after the swaps."""
    info = coldest(infos)
    energy = None if info.energy is None else hamiltonian(cold)
    return ReplicaInfo._make((*info._replace(logdensity=cold.logdensity, energy=energy), rates))


def swapped(
    replicas: Any, log_ratio: Array, uniforms: Array, betas: Array, step: Array
) -> tuple[Any, Array]:
    """Swap every second pair of neighbours; replicas and the rate of each pair.

    Parameters
    ----------
    replicas
        States, leading axis ``temperature``.
    log_ratio, uniforms
        Logarithm of the ratio that a swap is accepted by, and uniforms on (0, 1), both of shape
        ``[temperature - 1]``.
    betas
        Inverse temperatures, shape ``[temperature]``.
    step
        Its parity says whose turn it is.
    """
    turn = jnp.arange(betas.size - 1) % 2 == step % 2
    decision = metropolis.decide(log_ratio, jnp.log(uniforms))
    swap = turn & decision.is_accepted
    places = jnp.arange(betas.size)
    places = places.at[:-1].add(swap.astype(places.dtype))
    places = places.at[1:].add(-swap.astype(places.dtype))
    moved = jax.tree.map(lambda leaf: leaf[places], replicas)
    if hasattr(moved, "momentum"):
        # A momentum belongs to its temperature.
        scale = jnp.sqrt(betas[places] / betas)
        moved = moved._replace(momentum=scale[:, None] * moved.momentum)
    return moved, jnp.where(turn, decision.acceptance_rate, jnp.nan)


def annealed(kernel: Kernel, start: float, num_steps: int) -> Kernel:
    r"""Run a kernel at a temperature that falls to 1.

    Step ``k`` is made at temperature :math:`T_0^{1 - k / n}`, and from step ``n`` on at 1: a
    burn-in that crosses barriers before it settles. In `langevin_ppl.sample` it runs during
    warm-up, which must be at least twice as long: the second half tunes at temperature 1.

    Parameters
    ----------
    kernel
        A kernel of this library.
    start
        First temperature, above 1.
    num_steps
        ``n``: steps until the temperature is 1.

    Returns
    -------
    Kernel
        Its parameters are those of the kernel but the temperature.

    Raises
    ------
    TypeError
        If the kernel has no temperature.
    ValueError
        If ``start`` is not above 1 or ``num_steps`` not positive.

    References
    ----------
    Kirkpatrick, Gelatt, Vecchi, *Optimization by simulated annealing* (1983).

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> kernel = lp.annealed(lp.mala, start=100.0, num_steps=200)
    >>> target = lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))
    >>> idata = lp.sample(jax.random.key(0), target, kernel, num_warmup=400, num_samples=500)
    >>> idata.attrs["exact"]
    1
    """
    _check("annealed", kernel)
    if not (np.isfinite(start) and start > 1.0):
        raise ValueError(f"annealed: expected a start above 1, got {start!r}.")
    if isinstance(num_steps, bool) or not isinstance(num_steps, int | np.integer) or num_steps < 1:
        raise ValueError(f"annealed: expected a positive whole num_steps, got {num_steps!r}.")
    return _falling(kernel, float(start), int(num_steps))


@functools.cache
def _falling(kernel: Kernel, start: float, num_steps: int) -> Kernel:
    def transition(
        randomness: Randomness, state: Any, gradient: GradientEstimator, **parameters: Any
    ) -> tuple[Any, Any]:
        dtype = ravel(state.position)[0].dtype
        left = jnp.maximum(1.0 - state.step / num_steps, 0.0).astype(dtype)
        temperature = jnp.power(jnp.asarray(start, dtype), left)
        return kernel.transition(randomness, state, gradient, temperature=temperature, **parameters)

    transition.__signature__ = without_temperature(kernel)  # pyright: ignore[reportFunctionMemberAccess]
    return Kernel(
        f"{__name__}.annealed({kernel!r}, {start:g}, {num_steps})",
        transition,
        kernel.draw,
        exact=kernel.exact,
        target_acceptance_rate=kernel.target_acceptance_rate,
        tuner=None if kernel.tuner is kernel else _falling(kernel.tuner, start, num_steps),
        tuner_share=kernel.tuner_share,
        max_step_size=kernel.max_step_size,
        order=kernel.order,
        gradients_per_step=kernel.gradients_per_step,
        ends_at_gradient=kernel.ends_at_gradient,
        burn_in=num_steps,
        recipe=(annealed, (kernel, start, num_steps)),
        state=kernel.state,
        doc=f"{kernel!r} at a temperature that falls from {start:g} to 1 in {num_steps} steps.",
    )

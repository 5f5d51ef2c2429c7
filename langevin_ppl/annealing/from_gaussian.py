"""``dalmc``: from a Gaussian to a target, along the laws of a diffusion."""

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.annealing.walk import Walk, check_unadjusted
from langevin_ppl.base import Array, LogDensity, PRNGKey, check_counts, check_number
from langevin_ppl.gradients import from_score
from langevin_ppl.kernels import Kernel, mala, ula
from langevin_ppl.scores.score import Score
from langevin_ppl.tree import Layout

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["dalmc"]

TARGET_ACCEPTANCE = 0.7
"""Acceptance rate to which inner chains tune their steps: above MALA's optimum of 0.574, because a
walker has few of them and each starts where the last level left it."""

GAIN = 0.3
"""How much the logarithm of that step changes for a rate that is off by one."""

FIRST_RATIO, LAST_RATIO = 30.0, 0.03
"""Noise over datum at the ends of the path, in units of ``scale``: the first law is Gaussian to
a thousandth, and the last is wider than the target by as much."""


def dalmc(
    rng_key: PRNGKey,
    target: Any,
    *,
    score: Score | None = None,
    num_chains: int = 4,
    num_samples: int = 250,
    num_levels: int = 200,
    steps_per_level: int = 4,
    step_size: float = 0.2,
    scale: float = 1.0,
    kernel: Kernel = ula,
    inner_kernel: Kernel = mala,
    num_particles: int = 8,
    inner_steps: int = 4,
    groups: tuple[str, ...] | list[str] = (),
    batch_size: int | None = None,
    progress: bool = False,
) -> "xr.DataTree":
    r"""Diffusion-annealed Langevin Monte Carlo: from a Gaussian to a target along noised laws.

    The walkers take Langevin steps in the laws :math:`p_\lambda` of
    :math:`\sqrt{\lambda} X + \sqrt{1 - \lambda}\, s Z` with :math:`X` from the target, :math:`Z`
    standard normal and :math:`\lambda` rising from 0 to 1. Their score comes from ``score``, or for
    an unnormalised target from inner chains in the law of :math:`X` given the walker's :math:`x`,

    .. math::
        \nabla \log p_\lambda(x) = E\Big[ \kappa \frac{\nabla \log \pi(X)}{\sqrt{\lambda}} +
        (1 - \kappa) \frac{\sqrt{\lambda} X - x}{(1 - \lambda) s^2} \Big| x \Big],

    where both terms alone have this mean. The first is noisy at small :math:`\lambda` and the
    second near 1; with :math:`\kappa = \lambda` the noise of the sum vanishes for a Gaussian target
    of standard deviation :math:`s`. The draw is
    an inner chain at the end, from which the last noise is gone.

    Walks end in the target up to the discretisation, the speed of the walk and the inner chains,
    which do not mix where the target has several modes and :math:`\lambda` is small: ``exact``
    is 0.

    Parameters
    ----------
    rng_key
        A key, ``jax.random.key(0)``.
    target
        Made by `target` or `density`; walkers live on its unconstrained space.
    score
        Score of the target's law, whose event is the flat unconstrained position; its own process
        is then the path. By default inner chains.
    num_chains, num_samples
        Shape of the result; every draw is a walker.
    num_levels
        Values of ``lambda``, uniform in the logarithm of the ratio of noise to datum.
    steps_per_level
        Steps of the kernel at each of them.
    step_size
        Step in units of the variance of the noise of the level, and of ``scale`` squared.
    scale
        ``s``: about the standard deviation of the target.
    kernel
        An unadjusted overdamped kernel for the walkers.
    inner_kernel
        `mala`, or another adjusted overdamped kernel, for the inner chains; their steps are tuned
        on the way.
    num_particles, inner_steps
        Inner chains of each walker, and their steps for each step of the walker.
    groups
        Further groups of the DataTree, as in `sample`.
    batch_size
        Walkers that move together; all by default.
    progress
        Show a bar.

    Returns
    -------
    xarray.DataTree
        Independent draws; walkers that left the finite numbers are NaN, and ``diverging`` is set.

    Raises
    ------
    ValueError
        If the score has another event than the target, no score, or the kernels are of the wrong
        kind.

    Warns
    -----
    DivergenceWarning
        If walkers left the finite numbers.

    References
    ----------
    Cordero-Encinar, Akyildiz, Duncan, *Non-asymptotic analysis of diffusion annealed Langevin
    Monte Carlo for generative modelling*, 2025, arXiv:2502.09306; Huang et al., *Reverse diffusion
    Monte Carlo*, 2023, arXiv:2307.02037; the first term is target score matching, De Bortoli et
    al., 2024, arXiv:2402.08667.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> target = lp.density(lambda x: -0.5 * jnp.sum((x - 1.0) ** 2), jnp.zeros(2))
    >>> idata = lp.dalmc(jax.random.key(0), target)
    >>> error = abs(float(idata["posterior"]["x"].mean()) - 1.0)
    >>> idata["posterior"]["x"].shape, idata.attrs["exact"], error < 0.15
    ((4, 250, 2), 0, True)
    """
    walk = Walk.begin(rng_key, target, num_chains, num_samples, groups, batch_size, progress)
    check_counts(1, num_levels=num_levels, steps_per_level=steps_per_level)
    check_counts(1, num_particles=num_particles, inner_steps=inner_steps)
    check_number("step_size", step_size, above=0.0, below=2.0)
    check_number("scale", scale, above=0.0)
    check_unadjusted(kernel, "dalmc")
    layout = walk.layout
    size = jnp.asarray(step_size, layout.dtype)
    moves = num_levels * steps_per_level
    if score is None:
        _check_adjusted(inner_kernel)
        propose, start = target.proposal()
        mover = _ByParticles(
            kernel, steps_per_level, inner_kernel, num_particles, inner_steps, propose, layout
        )
        data = target.logdensity_fn, start, size, jnp.asarray(scale, layout.dtype)
        positions = walk.go(mover, _path(num_levels, scale, layout), data, "dalmc")
        source, moves = f"{num_particles} inner chains", moves * num_particles * (inner_steps + 1)
    else:
        _check_path(score, layout)
        mover = _ByScore(kernel, steps_per_level, layout.dimension)
        positions = walk.go(mover, _path_of(score, num_levels, layout), (score, size), "dalmc")
        source = "score"
    parameters = {
        "num_levels": num_levels,
        "steps_per_level": steps_per_level,
        "step_size": step_size,
        "scale": scale,
    }
    return walk.end(
        positions,
        {
            "kernel": f"dalmc({kernel.__name__})",
            "path": source,
            "parameters": parameters,
            "num_gradient_evaluations": moves * len(positions),
        },
    )


def _check_adjusted(kernel: Any) -> None:
    if not isinstance(kernel, Kernel) or kernel.target_acceptance_rate is None:
        raise ValueError(
            "dalmc: expected inner_kernel to have a Metropolis test, by which its step is tuned, "
            f"such as langevin_ppl.mala, got {kernel!r}."
        )


def _check_path(score: Any, layout: Layout) -> None:
    if not isinstance(score, Score):
        raise ValueError(f"dalmc: expected score to be a Score, got {type(score).__name__}.")
    if score.event_shape != (layout.dimension,) or score.condition_shape is not None:
        raise ValueError(
            f"dalmc: expected a score without condition of events of shape ({layout.dimension},), "
            f"the flat unconstrained position, got {score.event_shape}."
        )
    if not score.process.gaussian or score.process.multiplicative:
        raise ValueError(
            f"dalmc: expected a Gaussian process on unconstrained space, got {score.process}."
        )


class _Level(NamedTuple):
    """A law of the path: the datum times ``alpha`` plus noise of standard deviation ``sigma``."""

    time: Any
    alpha: Any
    sigma: Any


def _path(num_levels: int, scale: float, layout: Layout) -> _Level:
    """Levels of ``alpha = sqrt(lambda)``, ``sigma = scale sqrt(1 - lambda)``."""
    ratio = np.geomspace(FIRST_RATIO, LAST_RATIO, num_levels)
    alpha = 1.0 / np.sqrt(1.0 + ratio**2)
    return _level(layout, np.zeros(num_levels), alpha, scale * ratio * alpha)


def _path_of(score: Score, num_levels: int, layout: Layout) -> _Level:
    """Levels of the process of a score."""
    process = score.process
    ends = process.ratio(process.t_max), process.ratio(process.t_min)
    time = np.clip(process.time_at(np.geomspace(*ends, num_levels)), process.t_min, process.t_max)
    return _level(layout, time, process.alpha(time), process.sigma(time))


def _level(layout: Layout, *parts: np.ndarray) -> _Level:
    return _Level(*(jnp.asarray(part, layout.dtype) for part in parts))


@dataclasses.dataclass(frozen=True)
class _ByScore:
    """Walkers in laws whose score is known; a walker is a flat position."""

    kernel: Kernel
    steps: int
    dimension: int

    def init(self, rng_key: PRNGKey, data: tuple[Score, Array]) -> Array:
        return data[0].process.prior(rng_key, (self.dimension,))

    def step(self, rng_key: PRNGKey, x: Array, level: _Level, data: tuple[Score, Array]) -> Array:
        score, step_size = data
        estimator = from_score(lambda x: score(x, level.time))
        algorithm: Any = self.kernel(estimator, step_size=step_size * level.sigma**2)

        def again(i: Array, state: Any) -> Any:
            return algorithm.step(jax.random.fold_in(rng_key, i), state)[0]

        return jax.lax.fori_loop(0, self.steps, again, algorithm.init(x)).position

    def read(self, x: Array) -> Array:
        return x


class _Walker(NamedTuple):
    """A walker with inner chains.

    Attributes
    ----------
    x
        Flat position, ``[dimension]``.
    particles
        Inner chains in the law of the datum given it, ``[particle, dimension]``.
    log_step
        Logarithm of their step in units of the variance of the noise.
    """

    x: Array
    particles: Array
    log_step: Array


@dataclasses.dataclass(frozen=True)
class _ByParticles:
    """Walkers whose score is an average over inner chains."""

    kernel: Kernel
    steps: int
    inner_kernel: Kernel
    num_particles: int
    inner_steps: int
    propose: Any
    layout: Layout

    def init(self, rng_key: PRNGKey, data: Any) -> _Walker:
        _, start, step_size, scale = data
        key_x, key_particles = jax.random.split(rng_key)
        keys = jax.random.split(key_particles, self.num_particles)
        particles = jax.vmap(lambda key: self.layout.ravel(self.propose(key, start)))(keys)
        noise = jax.random.normal(key_x, (self.layout.dimension,), step_size.dtype)
        return _Walker(scale * noise, particles, jnp.zeros((), step_size.dtype))

    def step(self, rng_key: PRNGKey, walker: _Walker, level: _Level, data: Any) -> _Walker:
        logdensity_fn, _, step_size, _ = data

        def again(i: Array, walker: _Walker) -> _Walker:
            key_inner, key_outer = jax.random.split(jax.random.fold_in(rng_key, i))
            score, walker = self._explore(key_inner, walker, level, logdensity_fn)
            estimator = from_score(lambda x: score)
            algorithm: Any = self.kernel(estimator, step_size=step_size * level.sigma**2)
            state, _ = algorithm.step(key_outer, algorithm.init(walker.x))
            return walker._replace(x=state.position)

        return jax.lax.fori_loop(0, self.steps, again, walker)

    def _explore(
        self, rng_key: PRNGKey, walker: _Walker, level: _Level, logdensity_fn: LogDensity
    ) -> tuple[Array, _Walker]:
        """Move the inner chains, and estimate the score at the walker on the way."""
        x, variance = walker.x, level.sigma**2

        def posterior(particle: Array) -> Array:
            square = jnp.sum((x - level.alpha * particle) ** 2)
            return logdensity_fn(self.layout.unravel(particle)) - 0.5 * square / variance

        algorithm: Any = self.inner_kernel(posterior, step_size=jnp.exp(walker.log_step) * variance)
        states = jax.vmap(algorithm.init)(walker.particles)

        def move(carry: Any, key: PRNGKey) -> tuple[Any, tuple[Array, Array]]:
            states, infos = jax.vmap(algorithm.step)(
                jax.random.split(key, self.num_particles), carry
            )
            # The gradient of the inner posterior has mean zero: it is the control variate by which
            # Tweedie's formula becomes the sum of both forms with weight lambda.
            by_tweedie = (level.alpha * states.position - x) / variance
            score = by_tweedie + level.alpha * states.logdensity_grad
            return states, (jnp.mean(score, axis=0), jnp.mean(infos.acceptance_rate))

        keys = jax.random.split(rng_key, self.inner_steps)
        states, (scores, rates) = jax.lax.scan(move, states, keys)
        error = jnp.mean(rates) - TARGET_ACCEPTANCE
        log_step = jnp.clip(walker.log_step + GAIN * error, -12.0, 1.0)
        return jnp.mean(scores, axis=0), walker._replace(
            particles=states.position, log_step=log_step
        )

    def read(self, walker: _Walker) -> Array:
        # Given the walker, a particle has the law of its datum: the last noise is taken off.
        return walker.particles[0]

"""Laws between a Gaussian and a target, and walkers in them whose score is known or estimated."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array, LogDensity, PRNGKey
from langevin_ppl.gradients import from_score
from langevin_ppl.kernels import Kernel
from langevin_ppl.loop import steps_of
from langevin_ppl.scores.score import Score
from langevin_ppl.tree import Layout

__all__ = ["ByParticles", "ByScore", "Level", "Walker", "path", "path_of"]

TARGET_ACCEPTANCE = 0.7
"""Acceptance rate to which inner chains tune their steps: above MALA's optimum of 0.574, because a
walker has few of them and each starts where the last level left it."""

GAIN = 0.3
"""How much the logarithm of that step changes for a rate that is off by one."""

FIRST_RATIO, LAST_RATIO = 30.0, 0.03
"""Noise over datum at the ends of the path, in units of ``scale``: the first law is Gaussian to
a thousandth, and the last is wider than the target by as much."""


class Level(NamedTuple):
    """A law of the path: the datum times ``alpha`` plus noise of standard deviation ``sigma``."""

    time: Any
    alpha: Any
    sigma: Any


def path(num_levels: int, scale: float, layout: Layout) -> Level:
    """Levels of ``alpha = sqrt(lambda)``, ``sigma = scale sqrt(1 - lambda)``."""
    ratio = np.geomspace(FIRST_RATIO, LAST_RATIO, num_levels)
    alpha = 1.0 / np.sqrt(1.0 + ratio**2)
    return _level(layout, np.zeros(num_levels), alpha, scale * ratio * alpha)


def path_of(score: Score, num_levels: int, layout: Layout) -> Level:
    """Levels of the process of a score."""
    process = score.process
    ends = process.ratio(process.t_max), process.ratio(process.t_min)
    time = process.time_within(np.geomspace(*ends, num_levels))
    return _level(layout, time, process.alpha(time), process.sigma(time))


def _level(layout: Layout, *parts: np.ndarray) -> Level:
    return Level(*(jnp.asarray(part, layout.dtype) for part in parts))


@dataclasses.dataclass(frozen=True)
class ByScore:
    """Walkers in laws whose score is known; a walker is a flat position."""

    kernel: Kernel
    steps: int
    dimension: int

    def init(self, rng_key: PRNGKey, data: tuple[Score, Array]) -> Array:
        """Draw from the widest law."""
        return data[0].process.prior(rng_key, (self.dimension,))

    def step(self, rng_key: PRNGKey, x: Array, level: Level, data: tuple[Score, Array]) -> Array:
        """Make the steps of one level."""
        score, step_size = data
        estimator = from_score(lambda x: score(x, level.time))
        algorithm: Any = self.kernel(estimator, step_size=step_size * level.sigma**2)

        return steps_of(algorithm, rng_key, algorithm.init(x), self.steps).position

    def read(self, x: Array) -> Array:
        """Return the walker, which is a draw."""
        return x


class Walker(NamedTuple):
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
class ByParticles:
    """Walkers whose score is an average over inner chains."""

    kernel: Kernel
    steps: int
    inner_kernel: Kernel
    num_particles: int
    inner_steps: int
    propose: Any
    layout: Layout

    def init(self, rng_key: PRNGKey, data: Any) -> Walker:
        """Draw from the widest law, in which walker and inner chains are independent."""
        _, start, step_size, scale = data
        key_x, key_particles = jax.random.split(rng_key)
        keys = jax.random.split(key_particles, self.num_particles)
        particles = jax.vmap(lambda key: self.layout.ravel(self.propose(key, start)))(keys)
        noise = jax.random.normal(key_x, (self.layout.dimension,), step_size.dtype)
        return Walker(scale * noise, particles, jnp.zeros((), step_size.dtype))

    def step(self, rng_key: PRNGKey, walker: Walker, level: Level, data: Any) -> Walker:
        """Make the steps of one level, each after a round of the inner chains."""
        logdensity_fn, _, step_size, _ = data

        def again(i: Array, walker: Walker) -> Walker:
            key_inner, key_outer = jax.random.split(jax.random.fold_in(rng_key, i))
            score, walker = self._explore(key_inner, walker, level, logdensity_fn)
            estimator = from_score(lambda x: score)
            algorithm: Any = self.kernel(estimator, step_size=step_size * level.sigma**2)
            state, _ = algorithm.step(key_outer, algorithm.init(walker.x))
            return walker._replace(x=state.position)

        return jax.lax.fori_loop(0, self.steps, again, walker)

    def _explore(
        self, rng_key: PRNGKey, walker: Walker, level: Level, logdensity_fn: LogDensity
    ) -> tuple[Array, Walker]:
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

    def read(self, walker: Walker) -> Array:
        """Return a particle: given the walker it has the law of its datum, without the noise."""
        return walker.particles[0]

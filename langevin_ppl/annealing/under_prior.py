"""``annealed_posterior``: a model whose prior is a score, level by level."""

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.annealing.levels import Levels, levels_of
from langevin_ppl.annealing.walk import Walk, check_unadjusted
from langevin_ppl.base import Array, PRNGKey, check_counts, check_number
from langevin_ppl.gradients import from_score, on_flat
from langevin_ppl.kernels import Kernel, leimkuhler_matthews
from langevin_ppl.loop import steps_of
from langevin_ppl.tree import Layout

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["annealed_posterior"]

PROBES = 4
"""Random directions in which the curvature of the likelihood is measured at every level."""

POWER_STEPS = 6
"""Products with the Hessian by which the stiffest direction of a level is found."""


def annealed_posterior(
    rng_key: PRNGKey,
    target: Any,
    *,
    num_chains: int = 4,
    num_samples: int = 250,
    num_levels: int = 50,
    steps_per_level: int = 20,
    step_size: float = 0.3,
    end: float | None = None,
    kernel: Kernel = leimkuhler_matthews,
    groups: tuple[str, ...] | list[str] = (),
    batch_size: int | None = None,
    progress: bool = False,
) -> "xr.DataTree":
    r"""Sample a model whose prior is a score, by walking the noise levels down.

    At the noise level :math:`r = \sigma / \alpha` the walkers move in

    .. math:: p_r(x)\, p(\theta)\, p(y \mid x, \theta)^{w}, \qquad w = 1 / (1 + r^2 h),

    where :math:`p_r` is the law of the datum plus noise of standard deviation :math:`r`, whose
    score is known, and :math:`h` is the curvature of the log likelihood, so that a Gaussian
    likelihood is as wide as if the noise were in the datum. Steps are ``step_size`` in units of the
    inverse of the largest curvature. Only the score is evaluated, never a density: this is the way
    for priors in high dimension, and finds modes that a chain started at one of them does not.

    At the end the law is the posterior up to the discretisation and to what a walker of finitely
    many steps has not forgotten of earlier levels: ``exact`` is 0. The weights of separate modes
    are approximate. A run of `sample` with ``initial=`` the result and `mala` corrects each mode.

    Parameters
    ----------
    rng_key
        A key, ``jax.random.key(0)``.
    target
        Made by `target`, of a model with a site whose distribution is
        `langevin_ppl.distributions.ScoreBased`.
    num_chains, num_samples
        Shape of the result; every draw is a walker.
    num_levels
        Noise levels, uniform in the logarithm.
    steps_per_level
        Steps of the kernel at each of them.
    step_size
        Step in units of the inverse of the largest curvature of the level; stable below 1.
    end
        Time of the process at which the walk ends, ``t_min`` by default. A learned score is least
        accurate where there is least noise: with a little more the prior is that much smoother, and
        the posterior is often nearer.
    kernel
        An unadjusted overdamped kernel.
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
        If the model has no such site, the kernel has a Metropolis test, or ``end`` is outside of
        the interval of the process.

    Warns
    -----
    DivergenceWarning
        If walkers left the finite numbers.

    References
    ----------
    Song, Ermon, 2019, arXiv:1907.05600 (annealing); Jalal et al., *Robust compressed sensing MRI
    with deep generative priors*, 2021, arXiv:2108.01368 (likelihoods that widen with the noise).

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> import langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.EDM(), [0.5, 0.5], [[-2.0], [2.0]], [0.1, 0.1])
    >>> def model(y):
    ...     x = numpyro.sample("x", lp.distributions.ScoreBased(score))
    ...     numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)
    >>> idata = lp.annealed_posterior(jax.random.key(0), lp.target(model, jnp.array([1.8])))
    >>> mean = float(idata["posterior"]["x"].mean())  # by conjugacy 1.94
    >>> idata["posterior"]["x"].shape, idata.attrs["exact"], abs(mean - 1.94) < 0.1
    ((4, 250, 1), 0, True)
    """
    walk = Walk.begin(rng_key, target, num_chains, num_samples, groups, batch_size, progress)
    check_counts(1, num_levels=num_levels, steps_per_level=steps_per_level)
    check_number("step_size", step_size, above=0.0, below=2.0)
    check_unadjusted(kernel, "annealed_posterior")
    levels = levels_of(target)
    process, layout = levels.process, walk.layout
    last = process.t_min if end is None else float(end)
    process.check_time(last)
    ends = process.ratio(process.t_max), process.ratio(last)
    ratio = np.geomspace(*ends, num_levels)
    time = process.time_within(ratio)
    rows = tuple(jnp.asarray(part, layout.dtype) for part in (time, ratio))
    propose, start = target.proposal()
    mover = _Descent(kernel, steps_per_level, tuple(levels.is_prior.tolist()), propose, layout)
    data = levels.logdensity_fn, start, jnp.asarray([step_size, ends[0]], layout.dtype)
    positions = walk.go(mover, rows, data, "annealed_posterior")
    evaluations = num_levels * (steps_per_level + 1 + 2 * (POWER_STEPS + 2 * PROBES))
    parameters = {
        "num_levels": num_levels,
        "steps_per_level": steps_per_level,
        "step_size": step_size,
    }
    return walk.end(
        positions,
        {
            "kernel": f"annealed_posterior({kernel.__name__})",
            "parameters": parameters,
            "num_gradient_evaluations": evaluations * len(positions),
        },
    )


class _Walker(NamedTuple):
    """A flat position, and the largest curvature that it has met."""

    x: Array
    stiffest: Array


@dataclasses.dataclass(frozen=True)
class _Descent:
    """Mover of flat positions through levels ``(time, ratio)``."""

    kernel: Kernel
    steps: int
    is_prior: tuple[bool, ...]
    propose: Any
    layout: Layout

    def init(self, rng_key: PRNGKey, data: Any) -> _Walker:
        _, start, numbers = data
        key_noise, key_others = jax.random.split(rng_key)
        others = self.layout.ravel(self.propose(key_others, start))
        noise = numbers[1] * jax.random.normal(key_noise, others.shape, others.dtype)
        x = jnp.where(jnp.asarray(self.is_prior), noise, others)
        return _Walker(x, numbers[1] ** -2)

    def step(
        self, rng_key: PRNGKey, walker: _Walker, row: tuple[Array, Array], data: Any
    ) -> _Walker:
        logdensity_fn, _, numbers = data
        x = walker.x
        time, ratio = row

        def gradient(x: Array, weight: Array) -> Array:
            density = on_flat(Levels.at(logdensity_fn, time, weight), self.layout)
            return jax.grad(density)(x)

        key_curvature, key_power, key_steps = jax.random.split(rng_key, 3)
        curvature = self._of_likelihood(key_curvature, x, gradient)
        weight = 1.0 / (1.0 + ratio**2 * curvature)
        # Between modes the curvature passes through zero, and a step must not be that of there.
        # Laws get stiffer as the noise falls, so that the largest so far is a bound.
        found = _largest(key_power, x, lambda x: gradient(x, weight))
        stiffest = jnp.maximum(walker.stiffest, found)
        step_size = numbers[0] / stiffest
        algorithm: Any = self.kernel(from_score(lambda x: gradient(x, weight)), step_size=step_size)

        state = steps_of(algorithm, key_steps, algorithm.init(x), self.steps)
        return _Walker(state.position, stiffest)

    def _of_likelihood(self, rng_key: PRNGKey, x: Array, gradient: Any) -> Array:
        """Curvature of the log likelihood along the prior's site, a mean over its directions.

        It is ``tr(H^2) / tr(H)``: that of the observed directions, where others are not observed.
        """
        mask = jnp.asarray(self.is_prior, x.dtype)

        def probe(key: PRNGKey) -> tuple[Array, Array]:
            direction = mask * jax.random.normal(key, x.shape, x.dtype)

            def product(weight: float) -> Array:
                return jax.jvp(lambda x: gradient(x, jnp.asarray(weight)), (x,), (direction,))[1]

            curved = -mask * (product(1.0) - product(0.0))
            return jnp.sum(curved**2), jnp.sum(direction * curved)

        squares, traces = jax.vmap(probe)(jax.random.split(rng_key, PROBES))
        trace = jnp.abs(jnp.sum(traces))
        return jnp.where(trace > 0, jnp.sum(squares) / jnp.where(trace > 0, trace, 1.0), 0.0)

    def read(self, walker: _Walker) -> Array:
        return walker.x


def _largest(rng_key: PRNGKey, x: Array, gradient: Any) -> Array:
    """Largest curvature in absolute value, by power iteration."""
    first = jax.random.normal(rng_key, x.shape, x.dtype)

    def again(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        direction, _ = carry
        product = jax.jvp(gradient, (x,), (direction,))[1]
        length = jnp.linalg.norm(product)
        return product / jnp.where(length > 0, length, 1.0), length

    start = first / jnp.linalg.norm(first), jnp.zeros((), x.dtype)
    return jax.lax.fori_loop(0, POWER_STEPS, again, start)[1]

"""``denoising_mcmc``: a chain over samples and levels of noise, and a short way down."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array, PRNGKey, check_counts, check_number
from langevin_ppl.diffusion.chains import chain, check_kernel
from langevin_ppl.diffusion.grids import grid
from langevin_ppl.diffusion.sampler import Plan, Sampler
from langevin_ppl.kernels import Kernel, ula
from langevin_ppl.scores.process import NoiseProcess
from langevin_ppl.scores.score import Score

__all__ = ["denoising_mcmc"]


def denoising_mcmc(
    num_steps: int = 100,
    *,
    denoising_steps: int = 10,
    step_size: float = 0.5,
    walk: float = 0.5,
    kernel: Kernel = ula,
    noise_level_fn: Callable[[Array], Array] | None = None,
) -> Sampler:
    r"""Denoising MCMC: a chain over samples and noise levels, whose lowest state is denoised.

    In the joint law the level :math:`\log r`, :math:`r = \sigma / \alpha`, is uniform over the
    process, and a sample :math:`y = x / \alpha` has the law of its level. Large noise carries the
    chain between modes, and small noise is near the data. A step of the chain is one of the kernel
    at the level, and a change of the level. The state of the lowest level is then taken to the
    clean datum by a few steps of the flow. Every sample has a chain of its own, which starts from
    noise at ``t_max``, or from ``initial`` at ``start``, its highest level.

    The paper asks a network for the level of a sample, which is ``noise_level_fn``. Without one the
    level walks at random, reflected at the ends, and takes the sample along: noise is added on the
    way up, which is exact, and the flow followed on the way down, which is of the first order in
    ``walk``. Then the lowest level is no choice among samples, because levels do not depend on
    them; with a network it is one. Either way nothing is adjusted: the law at the end has a bias
    that does not vanish in long chains.

    Parameters
    ----------
    num_steps
        Steps of the chain, two evaluations each. After ``n`` of them the lowest level is about
        :math:`1.25 \sqrt n` times ``walk`` below the highest, in :math:`\log r`.
    denoising_steps
        Steps of the flow, from the lowest state to the clean datum; one evaluation each.
    step_size
        Of the kernel, in the frame of the noise: a Langevin step is of :math:`h \sigma^2`. Below 2.
    walk
        Standard deviation of a change of :math:`\log r`.
    kernel
        An overdamped kernel. With a Metropolis test it needs a score with a potential.
    noise_level_fn
        ``noise_level_fn(y) -> r`` for one datum with noise; hashable. What it says is cut to the
        levels of the process. In ``d`` dimensions a sample tells ``r`` to about one part in
        :math:`\sqrt{2 d}`, so that the level moves slowly in many.

    Raises
    ------
    ValueError
        For options that do not fit; when it runs, for a kernel with a Metropolis test and a score
        without a potential.

    References
    ----------
    Kim, Ye, *Denoising MCMC for accelerating diffusion-based generative models*, 2022,
    arXiv:2209.14593.

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.EDM(), [0.5, 0.5], [[-2.0], [2.0]], [0.1, 0.1])
    >>> sampler = lp.diffusion.denoising_mcmc(100)
    >>> generated = lp.diffusion.generate(jax.random.key(0), score, sampler, 1000)
    >>> generated.num_evaluations, bool(abs((generated.samples > 0).mean() - 0.5) < 0.08)
    (210, True)
    """
    check_counts(1, num_steps=num_steps, denoising_steps=denoising_steps)
    check_number("step_size", step_size, above=0.0, below=2.0)
    check_number("walk", walk, above=0.0)
    check_kernel(kernel)
    if noise_level_fn is not None and not callable(noise_level_fn):
        raise ValueError(f"noise_level_fn: expected a function, got {noise_level_fn!r}.")
    return Sampler.of(
        "denoising_mcmc",
        _plan,
        adds_noise=True,
        num_steps=num_steps,
        denoising_steps=denoising_steps,
        step_size=float(step_size),
        walk=float(walk),
        kernel=kernel,
        noise_level_fn=noise_level_fn,
    )


class _Row(NamedTuple):
    """What a row does.

    Attributes
    ----------
    in_chain
        Whether it is a step of the chain; else it is one of the flow.
    scale
        Factor of the sample before, which puts it in units of the datum.
    low, high
        Levels of the chain.
    step_size, walk
        Of a step of the chain.
    share
        Of a step of the flow: which share of the way to ``low`` it goes, in the logarithm.
    is_clean
        Whether it goes to the clean datum.
    """

    in_chain: Any
    scale: Any
    low: Any
    high: Any
    step_size: Any
    walk: Any
    share: Any
    is_clean: Any


class _Carry(NamedTuple):
    """State of a chain, ``y = x / alpha`` at the level ``r``, and the lowest that it was in."""

    sample: Array
    ratio: Array
    lowest: Array
    lowest_ratio: Array


@dataclasses.dataclass(frozen=True)
class _Joint:
    """Mover of a chain over samples and levels, and of the flow from its lowest state."""

    kernel: Kernel
    noise_level_fn: Callable[[Array], Array] | None

    def init(self, x: Array) -> _Carry:
        """Carry of one sample that starts at ``x``, above all levels that are known."""
        above = jnp.full((), jnp.inf, x.dtype)
        return _Carry(x, above, x, above)

    def step(
        self, score: Score, condition: Any, rng_key: PRNGKey, carry: _Carry, row: _Row
    ) -> _Carry:
        """Make one step of the chain, or of the flow."""
        walk = functools.partial(self._walk, score, condition, rng_key, row)
        fall = functools.partial(self._fall, score, condition, row)
        return jax.lax.cond(row.in_chain, walk, fall, carry)

    def read(self, carry: _Carry) -> Array:
        """Get the lowest sample of a carry."""
        return carry.lowest

    def _walk(
        self, score: Score, condition: Any, rng_key: PRNGKey, row: _Row, carry: _Carry
    ) -> _Carry:
        key_chain, key_level, key_noise = jax.random.split(rng_key, 3)
        ratio = jnp.minimum(carry.ratio, row.high)
        time, alpha = _schedule(score.process, ratio)
        x = alpha * row.scale * carry.sample
        x, clean = chain(self.kernel, score, condition, key_chain, x, time, row.step_size, 1)
        sample = x / alpha
        if self.noise_level_fn is None:
            new = _reflected(jnp.log(ratio) + row.walk * jax.random.normal(key_level), row)
            added = jnp.sqrt(jnp.maximum(new**2 - ratio**2, 0.0))
            up = sample + added * jax.random.normal(key_noise, x.shape, x.dtype)
            sample = jnp.where(new > ratio, up, clean + new / ratio * (sample - clean))
        else:
            new = jnp.clip(self.noise_level_fn(sample), row.low, row.high)
        lower = new < carry.lowest_ratio
        lowest = jnp.where(lower, sample, carry.lowest)
        return _Carry(sample, new, lowest, jnp.minimum(new, carry.lowest_ratio))

    def _fall(self, score: Score, condition: Any, row: _Row, carry: _Carry) -> _Carry:
        ratio = carry.lowest_ratio
        time, alpha = _schedule(score.process, ratio)
        clean = score.denoise(alpha * carry.lowest, time, condition)
        new = ratio * (row.low / ratio) ** row.share
        moved = jnp.where(row.is_clean, clean, clean + new / ratio * (carry.lowest - clean))
        return carry._replace(lowest=moved, lowest_ratio=new)


def _schedule(process: NoiseProcess, ratio: Array) -> tuple[Array, Array]:
    """Time and ``alpha`` of a level."""
    time = process.time_within(ratio)
    return time, process.alpha(time)


def _reflected(log_ratio: Array, row: _Row) -> Array:
    low, width = jnp.log(row.low), jnp.log(row.high / row.low)
    return jnp.exp(low + width - jnp.abs(jnp.mod(log_ratio - low, 2.0 * width) - width))


def _plan(
    process: NoiseProcess,
    start: float | None,
    *,
    num_steps: int,
    denoising_steps: int,
    step_size: float,
    walk: float,
    kernel: Kernel,
    noise_level_fn: Callable[[Array], Array] | None,
) -> Plan:
    ends = grid(process, 1, "log_snr", start=start, denoise=False)
    number = num_steps + denoising_steps
    first, last = np.arange(number) == 0, np.arange(number) == number - 1
    # Of n steps that are left before the last, the next one goes an n-th of the way.
    left = number - 1 - np.arange(number)
    rows = _Row(
        in_chain=np.arange(number) < num_steps,
        scale=np.where(first, 1.0 / ends.alpha[0], 1.0),
        low=np.full(number, ends.ratio[1]),
        high=np.full(number, ends.ratio[0]),
        step_size=np.full(number, step_size),
        walk=np.full(number, walk),
        share=1.0 / np.maximum(left, 1),
        is_clean=last,
    )
    evaluations = num_steps * (1 + kernel.gradients_per_step) + denoising_steps
    # Between its ends, samples are at levels of their own.
    return Plan(_Joint(kernel, noise_level_fn), rows, ends.time, last, evaluations)

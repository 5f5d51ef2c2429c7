"""``dalmc``: from a Gaussian to a target, along the laws of a diffusion."""

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp

from langevin_ppl.annealing.paths import ByParticles, ByScore, path, path_of
from langevin_ppl.annealing.walk import Walk, check_unadjusted
from langevin_ppl.base import PRNGKey, check_counts, check_number
from langevin_ppl.kernels import Kernel, mala, ula
from langevin_ppl.scores.score import Score
from langevin_ppl.tree import Layout

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["dalmc"]


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
        mover = ByParticles(
            kernel, steps_per_level, inner_kernel, num_particles, inner_steps, propose, layout
        )
        data = target.logdensity_fn, start, size, jnp.asarray(scale, layout.dtype)
        positions = walk.go(mover, path(num_levels, scale, layout), data, "dalmc")
        source, moves = f"{num_particles} inner chains", moves * num_particles * (inner_steps + 1)
    else:
        _check_path(score, layout)
        mover = ByScore(kernel, steps_per_level, layout.dimension)
        positions = walk.go(mover, path_of(score, num_levels, layout), (score, size), "dalmc")
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

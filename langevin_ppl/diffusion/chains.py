r"""Steps of the library's kernels at a level of a noise process.

At a time of the process the score is the gradient of a log density, which is all that a Langevin
kernel needs. Kernels run in the frame of the noise, with inverse mass matrix :math:`\sigma^2`,
where the negative log density curves by at most 1, whatever the data: a step size means the same at
every level, and the Langevin algorithm is stable below 2.
"""

import inspect
from typing import Any

from langevin_ppl.base import Array, GradientEstimator, PRNGKey
from langevin_ppl.gradients import as_estimator, from_score
from langevin_ppl.kernels import Kernel
from langevin_ppl.loop import steps_of
from langevin_ppl.scores.score import Score

__all__ = ["chain", "check_kernel"]


def check_kernel(kernel: Any) -> None:
    """Refuse what is not a kernel that runs in a frame by its step size alone."""
    fits = isinstance(kernel, Kernel)
    if fits:
        own = kernel.parameters
        needed = {name for name, default in own.items() if default is inspect.Parameter.empty}
        fits = needed == {"step_size"} and "inverse_mass_matrix" in own and "friction" not in own
    if not fits:
        raise ValueError(
            "kernel: expected an overdamped kernel that needs a step size and no more, such as "
            f"langevin_ppl.ula or langevin_ppl.tula, got {kernel!r}."
        )


def chain(
    kernel: Kernel,
    score: Score,
    condition: Any,
    rng_key: PRNGKey,
    x: Array,
    time: Array,
    step_size: Array,
    count: Array | int,
) -> tuple[Array, Array]:
    """Make ``count`` steps at a time of the process, with ``count + 1`` evaluations.

    Parameters
    ----------
    x
        One sample at that time.
    step_size
        In the frame of the noise.

    Returns
    -------
    x, clean
        The sample, and the datum that is predicted there: the kernel has evaluated it.

    Raises
    ------
    ValueError
        For a kernel with a Metropolis test and a score without a potential.
    """
    alpha, variance = score.process.alpha(time), score.process.sigma(time) ** 2
    algorithm = kernel(
        _at_level(kernel, score, condition, time),
        step_size=step_size,
        inverse_mass_matrix=variance,
    )

    first: Any = algorithm.init(x)  # pyright: ignore[reportCallIssue]
    state = steps_of(algorithm, rng_key, first, count)
    return state.position, (state.position + variance * state.logdensity_grad) / alpha


def _at_level(kernel: Kernel, score: Score, condition: Any, time: Array) -> GradientEstimator:
    if kernel.target_acceptance_rate is None:
        return from_score(lambda x: score(x, time, condition))
    if score.potential is None:
        raise ValueError(
            f"kernel: {kernel!r} has a Metropolis test, which needs the energy of a level, and "
            "this score is not known to be the gradient of one. Take an unadjusted kernel such as "
            "langevin_ppl.ula, or fit the score with conservative=True."
        )
    return as_estimator(lambda x: -score.energy(x, time, condition))

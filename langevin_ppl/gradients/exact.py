"""The exact gradient, from all the data."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from langevin_ppl.base import Array, Estimate, GradientEstimator, LogDensity, Position, Target
from langevin_ppl.tree import Layout

__all__ = ["as_estimator", "exact", "from_score", "on_flat"]


def as_estimator(logdensity_fn: LogDensity | GradientEstimator) -> GradientEstimator:
    """Wrap a log density as the exact estimator; an estimator is returned as it is."""
    if isinstance(logdensity_fn, GradientEstimator):
        return logdensity_fn
    if not callable(logdensity_fn):
        raise TypeError(
            "Expected a log density (a function of the position) or a gradient estimator, got "
            f"{type(logdensity_fn).__name__}. For a target, pass target.logdensity_fn."
        )

    def estimate(batch: Any, position: Position, memory: Any) -> tuple[Estimate, Any]:
        # Without the barrier XLA copies parts of the model to wherever the results are used.
        value_and_grad = jax.lax.optimization_barrier(jax.value_and_grad(logdensity_fn)(position))
        return Estimate(*value_and_grad), memory

    return GradientEstimator(
        init=lambda position: (),
        draw=None,
        estimate=estimate,
        exact=True,
        logdensity_fn=logdensity_fn,
    )


def from_score(score_fn: Callable[[Position], Position]) -> GradientEstimator:
    """Estimator of a density whose gradient alone is known; kernels with a test refuse it.

    Zero stands for the log density.

    Parameters
    ----------
    score_fn
        Gradient of the log density at a position.
    """

    def estimate(batch: Any, position: Position, memory: Any) -> tuple[Estimate, Any]:
        gradient = score_fn(position)
        dtype = jax.tree.leaves(gradient)[0].dtype
        return Estimate(jnp.zeros((), dtype), gradient), memory

    return GradientEstimator(init=lambda position: (), draw=None, estimate=estimate, exact=False)


def on_flat(source: LogDensity | GradientEstimator, layout: Layout) -> Any:
    """Make a log density or an estimator one of flat positions."""
    if not isinstance(source, GradientEstimator):
        return lambda position: source(layout.unravel(position))

    def estimate(batch: Any, position: Array, memory: Any) -> tuple[Estimate, Any]:
        found, memory = source.estimate(batch, layout.unravel(position), memory)
        return Estimate(found.logdensity, layout.ravel(found.gradient)), memory

    whole = source.logdensity_fn
    return dataclasses.replace(
        source,
        init=lambda position: source.init(layout.unravel(position)),
        estimate=estimate,
        logdensity_fn=None if whole is None else on_flat(whole, layout),
    )


@dataclasses.dataclass(frozen=True)
class Exact:
    """What `exact` makes: a function from a target to its estimator."""

    def __call__(self, target: Target) -> GradientEstimator:
        """Make the estimator of a target."""
        return as_estimator(target.logdensity_fn)

    def __str__(self) -> str:
        return "exact"


def exact() -> Exact:
    """Exact gradient of a target: the default, unless the model has a subsampled plate.

    Returns
    -------
    Exact
        A function from a target to its estimator: for ``gradient=`` of `langevin_ppl.sample`, or
        ``target.gradient(...)``.

    Examples
    --------
    >>> import jax.numpy as jnp, langevin_ppl as lp
    >>> target = lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))
    >>> target.gradient(lp.exact()).exact
    True
    """
    return Exact()

"""What every function of a score refuses."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array
from langevin_ppl.diffusion.sampler import Sampler
from langevin_ppl.scores.score import Score

__all__ = ["check_condition", "check_sampler", "check_score", "some_conditions"]


def check_score(score: Any, owner: str) -> None:
    """Refuse what is no score."""
    if not isinstance(score, Score):
        raise TypeError(
            f"{owner}: expected a langevin_ppl.scores.Score, from fit, load or exact_mixture, got "
            f"{type(score).__name__}."
        )


def check_sampler(sampler: Any) -> None:
    """Refuse what is no sampler."""
    if not isinstance(sampler, Sampler):
        raise TypeError(
            "sampler: expected one such as langevin_ppl.diffusion.dpm_solver_pp(order=2), got "
            f"{type(sampler).__name__}."
        )


def check_condition(condition: Any, score: Score, number: int) -> Array | None:
    """Accept one condition for all or one for each of ``number`` events, as the score takes it."""
    if score.condition_shape is None:
        if condition is not None:
            raise ValueError("condition: this score takes none.")
        return None
    shape = score.condition_shape
    if condition is None or np.shape(condition) not in (shape, (number, *shape)):
        raise ValueError(
            f"condition: expected shape {shape} or {(number, *shape)}, got "
            f"{None if condition is None else np.shape(condition)}."
        )
    return jnp.asarray(condition)


def some_conditions(condition: Array | None, score: Score, indices: np.ndarray) -> Array | None:
    """Conditions of some events: of each its own, or the one for all."""
    if condition is None or score.axis_of(condition) is None:
        return condition
    return condition[indices]

"""What metrics between two sets of samples share: their result, their checks, their distances."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array

__all__ = ["Metric", "check_samples", "extent", "squared_distances"]

LARGEST = 1e30
"""Values beyond it are those of a chain that left; in single precision they would overflow."""


class Metric(NamedTuple):
    """An estimate and its error.

    Attributes
    ----------
    value
        The estimate.
    standard_error
        Its standard error; the function that made it says of what.
    """

    value: float
    standard_error: float


def check_samples(name: str, *, least: int = 2, **samples: Any) -> list[np.ndarray]:
    """Check sets of samples, flatten their events, and move their common mean to zero.

    Parameters
    ----------
    name
        Of the function that asks.
    least
        How many samples each set must have.
    **samples
        The sets by name, each ``[sample, *event]``.

    Returns
    -------
    list of numpy.ndarray
        Double precision, each ``[sample, dimension]``. Distances are as they were; single
        precision is spent on them, not on how far all samples are from the origin.

    Raises
    ------
    ValueError
        If there are too few samples, events differ in shape or are empty, or values are not
        finite.
    """
    arrays = {}
    for label, value in samples.items():
        array = np.asarray(value)
        if array.ndim == 0 or len(array) < least:
            raise ValueError(
                f"{name}: {label}: expected at least {least} samples along the first axis, got "
                f"shape {array.shape}. Pass an array [sample, *event]."
            )
        if array.dtype.kind not in "biuf" and not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name}: {label}: expected real numbers, got dtype {array.dtype}.")
        arrays[label] = array
    events = {label: array.shape[1:] for label, array in arrays.items()}
    if len(set(events.values())) > 1:
        shown = ", ".join(f"{shape} in {label}" for label, shape in events.items())
        raise ValueError(
            f"{name}: expected events of one shape, got {shown}. Select the same variables, in "
            "the same order, on both sides."
        )
    if 0 in next(iter(events.values())):
        raise ValueError(f"{name}: expected events with elements, got shape {events}.")
    flat = [array.reshape(len(array), -1).astype(np.float64) for array in arrays.values()]
    for label, array in zip(arrays, flat, strict=True):
        with np.errstate(invalid="ignore"):
            bad = int(np.sum(~(np.abs(array) < LARGEST).all(axis=1)))
        if bad:
            raise ValueError(
                f"{name}: {label}: expected finite values, got {bad} of {len(array)} samples that "
                f"hold a NaN or go beyond {LARGEST:g}. Leave out the chains that diverged."
            )
    mean = np.mean([array.mean(axis=0) for array in flat], axis=0)
    return [array - mean for array in flat]


def extent(*samples: np.ndarray) -> float:
    """Largest coordinate by size: a unit in which squares neither overflow nor vanish."""
    return float(max(np.abs(array).max() for array in samples)) or 1.0


def squared_distances(x: Array, y: Array) -> Array:
    """Squared Euclidean distances ``[n, m]`` of ``x`` ``[n, dimension]`` to ``y``.

    They are summed coordinate by coordinate. Inner products would be faster, and would lose the
    small distances, which are most of them where modes are far apart; those of a rejected
    proposal to its copy are exactly zero here.
    """
    zeros = jnp.zeros((x.shape[0], y.shape[0]), x.dtype)

    def add(total: Array, column: tuple[Array, Array]) -> tuple[Array, None]:
        return total + (column[0][:, None] - column[1]) ** 2, None

    return jax.lax.scan(add, zeros, (x.T, y.T))[0]

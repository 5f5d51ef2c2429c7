"""Linear observations of an event, for guidance: of some of its entries, or by a matrix."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from langevin_ppl.base import Array

__all__ = ["Masked", "Observed", "Projected", "observed"]

RANK_TOLERANCE = 1e-6
"""Singular values below this share of the largest count as zero, as in single precision."""


class Masked(NamedTuple):
    """Entries of an event that were observed.

    Attributes
    ----------
    mask
        Which, shape of the event.
    observation
        Their values, shape of the event; 0 elsewhere.
    """

    mask: Array
    observation: Array

    @property
    def values(self) -> float:
        """Singular values."""
        return 1.0

    def residual(self, clean: Array) -> Array:
        """Observation minus what it would be of an event, shape of the event."""
        return jnp.where(self.mask, self.observation - clean, 0.0)

    def adjoint(self, residual: Array) -> Array:
        """Product of a residual with the transposed operator."""
        return jnp.where(self.mask, residual, 0.0)

    def replaced(self, clean: Array) -> Array:
        """Event nearest to this one that agrees with the observation."""
        return jnp.where(self.mask, self.observation, clean)


class Projected(NamedTuple):
    """Observation by a matrix, in the frame of its singular vectors.

    What no event can explain of the observation is not in this frame.

    Attributes
    ----------
    vectors
        Right singular vectors, ``[rank, dimension]``.
    values
        Singular values, ``[rank]``.
    observation
        Products of the observation with the left ones, ``[rank]``.
    """

    vectors: Array
    values: Array
    observation: Array

    def residual(self, clean: Array) -> Array:
        """Observation minus what it would be of an event, ``[rank]``."""
        return self.observation - self.values * (self.vectors @ jnp.ravel(clean))

    def adjoint(self, residual: Array) -> Array:
        """Product of a residual with the transposed operator, ``[dimension]``."""
        return (self.values * residual) @ self.vectors

    def replaced(self, clean: Array) -> Array:
        """Event nearest to this one that agrees with the observation."""
        step = (self.residual(clean) / self.values) @ self.vectors
        return clean + step.reshape(clean.shape)


type Observed = Masked | Projected


def observed(event_shape: tuple[int, ...], operator: Any, observation: Any) -> Observed:
    """Observation of an event by an operator.

    Parameters
    ----------
    operator
        Booleans of the shape of an event, or a matrix ``[number, dimension]``.
    observation
        Of the shape of an event, of which the masked entries are read, or ``[number]``.

    Raises
    ------
    ValueError
        If shapes do not fit, nothing is observed, or what is observed is not finite.
    """
    operator, dtype = np.asarray(operator), jnp.result_type(float)
    size = int(np.prod(event_shape))
    is_mask = operator.dtype == bool
    if is_mask:
        fits, shape = operator.shape == event_shape, event_shape
    else:
        fits, shape = operator.ndim == 2 and operator.shape[1] == size, operator.shape[:1]
    if not fits:
        raise ValueError(
            f"operator: expected booleans of the shape of an event {event_shape}, or a matrix of "
            f"shape (number, {size}), got {operator.dtype} of shape {operator.shape}."
        )
    if observation is None or np.shape(observation) != shape:
        raise ValueError(
            f"observation: expected shape {shape}, got "
            f"{None if observation is None else np.shape(observation)}."
        )
    if not np.any(operator):
        raise ValueError("operator: expected that something is observed, got only zeros.")
    _check_finite(operator, observation, is_mask)
    observation = jnp.asarray(observation, dtype)
    if is_mask:
        mask = jnp.asarray(operator)
        return Masked(mask, jnp.where(mask, observation, 0.0))
    left, values, vectors = np.linalg.svd(np.asarray(operator, float), full_matrices=False)
    kept = values > RANK_TOLERANCE * values[0]
    left = jnp.asarray(left[:, kept], dtype)
    vectors, values = (jnp.asarray(part[kept], dtype) for part in (vectors, values))
    return Projected(vectors, values, observation @ left)


def _check_finite(operator: np.ndarray, observation: Any, is_mask: bool) -> None:
    if not (is_mask or np.all(np.isfinite(operator))):
        raise ValueError("operator: expected finite numbers, got NaN or infinity.")
    if isinstance(observation, Tracer):
        return
    read = np.asarray(observation, float)[operator] if is_mask else np.asarray(observation, float)
    if not np.all(np.isfinite(read)):
        raise ValueError(
            "observation: expected finite numbers, got NaN or infinity. Leave entries out by a "
            "mask, or by rows of the matrix."
        )

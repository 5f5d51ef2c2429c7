"""What a window of draws says of the shape of the target, and the metrics that follow from it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from langevin_ppl.base import Array
from langevin_ppl.preconditioners import Preconditioner

__all__ = [
    "LOW_RANK",
    "Moments",
    "Rows",
    "fisher_factor",
    "fisher_low_rank",
    "square_root",
]

SHRINKAGE = 5.0
"""Weight, in draws, of the identity in the whitened moments of a window (nutpie's rule)."""

LOW_RANK = 10
"""Directions that positions, and gradients, each contribute to a low-rank metric."""

STRETCHED = 2.0
"""Ratio of variances from the diagonal metric beyond which a direction is worth keeping."""

MAX_ROWS = 256
"""Most draws that a low-rank metric is made of: the last ones of a window."""


class Moments(NamedTuple):
    """Running number, mean and centred squares (matrix or diagonal), by Chan's update."""

    number: Array
    mean: Array
    squares: Array

    @classmethod
    def zero(cls, factor: Array) -> "Moments":
        """No draw yet; matrix or diagonal as the metric's factor is."""
        dimension, dtype = factor.shape[0], factor.dtype
        return cls(jnp.zeros((), dtype), jnp.zeros(dimension, dtype), jnp.zeros_like(factor))

    def add(self, rows: Array, weight: Array) -> "Moments":
        """Take in one draw of every chain, ``[chain, dimension]``; ``weight`` is 0 or 1."""
        number = rows.shape[0] * weight
        total = self.number + number
        shift = jnp.mean(rows, axis=0) - self.mean
        centred = rows - jnp.mean(rows, axis=0)
        share = number / jnp.maximum(total, 1.0)
        if self.squares.ndim == 2:
            squares = centred.T @ centred * weight + jnp.outer(shift, shift) * self.number * share
        else:
            squares = jnp.sum(centred**2, axis=0) * weight + shift**2 * self.number * share
        return Moments(total, self.mean + shift * share, self.squares + squares)

    def covariance(self, weight: float) -> Array:
        """Covariance with ``weight`` draws of a unit covariance mixed in."""
        identity = jnp.eye(len(self.mean)) if self.squares.ndim == 2 else jnp.ones(len(self.mean))
        return (self.squares + weight * identity) / (self.number + weight)


class Rows(NamedTuple):
    """The last draws and gradients of a window, ``[row, dimension]``, and how many were written."""

    positions: Array
    gradients: Array
    written: Array

    @classmethod
    def zero(cls, dimension: int, num_chains: int, dtype: jnp.dtype) -> "Rows":
        """No draw yet; a whole number of draws of every chain fits."""
        shape = (num_chains * max(1, MAX_ROWS // num_chains), dimension)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.asarray(0, jnp.int32))

    def add(self, positions: Array, gradients: Array, weight: Array) -> "Rows":
        """Take in one draw of every chain, ``[chain, dimension]``; ``weight`` is 0 or 1."""
        start = self.written % self.positions.shape[0]

        def write(buffer: Array, rows: Array) -> Array:
            old = jax.lax.dynamic_slice_in_dim(buffer, start, rows.shape[0])
            new = jnp.where(weight > 0, rows, old)
            return jax.lax.dynamic_update_slice_in_dim(buffer, new, start, 0)

        number = jnp.asarray(positions.shape[0] * weight, jnp.int32)
        return Rows(
            write(self.positions, positions),
            write(self.gradients, gradients),
            self.written + number,
        )


def square_root(factor: Array) -> Array:
    """Lower triangular ``L`` with ``L L^T = F F^T``, without forming the product."""
    return jnp.linalg.qr(factor.T, mode="r").T


def fisher_factor(x: Array, g: Array) -> Array:
    r"""Factor of the metric that matches positions and gradients at once.

    The solution of :math:`\Sigma \, \mathrm{cov}(g) \, \Sigma = \mathrm{cov}(x)`, exact for a
    Gaussian from a handful of draws, because its gradients know the curvature.

    Parameters
    ----------
    x, g
        Covariances of positions and gradients, matrices or diagonals.

    References
    ----------
    Seyboldt, Carlson, Carpenter, *Preconditioning Hamiltonian Monte Carlo by minimizing Fisher
    divergence* (2026), arXiv:2603.18845; the rule of nutpie.
    """
    if x.ndim == 1:
        return (x / g) ** 0.25
    # Sigma = g^(-1/2) (g^(1/2) x g^(1/2))^(1/2) g^(-1/2), whose square root is all we need.
    values, vectors = jnp.linalg.eigh(g)
    root = vectors * jnp.sqrt(values)
    inner_values, inner_vectors = jnp.linalg.eigh(root.T @ x @ root)
    return (vectors / jnp.sqrt(values)) @ (inner_vectors * inner_values**0.25)


def fisher_low_rank(rows: Rows, scale: Array) -> tuple[Preconditioner, Array]:
    """Low-rank-plus-diagonal metric of a window, and the centre of the Gaussian that fits it.

    The diagonal rule first, then the dense rule in the span of the leading directions of the
    scaled positions and gradients; directions that it would hardly stretch are left alone.

    Parameters
    ----------
    rows
        Draws and gradients in original coordinates.
    scale
        Diagonal to begin with, towards which few draws are shrunk, shape ``[dimension]``.

    References
    ----------
    Seyboldt, Carlson, Carpenter (2026), arXiv:2603.18845.
    """
    count = jnp.minimum(rows.written, rows.positions.shape[0])
    number = jnp.maximum(count, 1).astype(rows.positions.dtype)
    filled = (jnp.arange(rows.positions.shape[0]) < count)[:, None]

    def centred(values: Array) -> tuple[Array, Array]:
        mean = jnp.sum(jnp.where(filled, values, 0.0), axis=0) / number
        return mean, jnp.where(filled, values - mean, 0.0)

    (mean, x), (pull, g) = centred(rows.positions / scale), centred(rows.gradients * scale)
    ratio = ((jnp.sum(x**2, axis=0) + SHRINKAGE) / (jnp.sum(g**2, axis=0) + SHRINKAGE)) ** 0.25
    mean, scale, pull = mean * scale, scale * ratio, pull / scale
    x, g = x / ratio, g * ratio
    # One half of the rows (with several chains, of the chains) chooses the directions and the
    # other measures them: leading directions of few rows in many dimensions look stretched
    # to the rows that they were chosen from.
    rank = min(LOW_RANK, x.shape[0] // 2, x.shape[1] // 2)
    leading = [_leading(x[::2], rank), _leading(g[::2], rank)]
    basis = jnp.linalg.qr(jnp.concatenate(leading, axis=1))[0]
    identity = jnp.eye(basis.shape[1], dtype=x.dtype)

    def within(values: Array) -> Array:
        inside = values[1::2] @ basis
        return (inside.T @ inside + SHRINKAGE * identity) / (0.5 * number + SHRINKAGE)

    change = fisher_factor(within(x), within(g))
    values, vectors = jnp.linalg.eigh(change @ change.T)
    kept = (values > STRETCHED) | (values < 1.0 / STRETCHED)
    stretches = jnp.sqrt(jnp.where(kept, values, 1.0))
    metric = Preconditioner(scale, basis @ vectors, stretches)
    return metric, mean + metric.scale(metric.transpose(pull))


def _leading(rows: Array, rank: int) -> Array:
    """Leading directions of centred rows, ``[dimension, rank]``, by the small Gram matrix."""
    _, vectors = jnp.linalg.eigh(rows @ rows.T)
    return rows.T @ vectors[:, -rank:]

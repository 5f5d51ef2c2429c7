"""Preconditioners: the linear frame ``x = L z`` in which a kernel moves.

Adding ``C = L L^T`` in front of the gradient and ``L`` in front of the noise is the same as
running the plain kernel on ``z = L^{-1} x``, which is how it is done here, once for all kernels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from langevin_ppl.base import Array, ArrayLike

__all__ = ["Preconditioner", "preconditioner"]


class Preconditioner(NamedTuple):
    """A factor ``L`` of the inverse mass matrix ``C = L L^T``.

    Attributes
    ----------
    factor
        Scalar, vector of shape ``[dimension]`` (diagonal), or square matrix of shape
        ``[dimension, dimension]``, lower triangular.
    directions, stretches
        Low rank on top of a diagonal: orthonormal columns ``V``, shape ``[dimension, rank]``, and
        positive numbers ``s``, shape ``[rank]``, with ``L = diag(factor) (I + V (s - 1) V^T)``.
        None for the other forms.
    """

    factor: Array
    directions: Array | None = None
    stretches: Array | None = None

    def scale(self, z: Array) -> Array:
        """``L z``: from whitened to original coordinates."""
        return self.factor @ z if self.factor.ndim == 2 else self.factor * self._stretch(z)

    def transpose(self, gradient: Array) -> Array:
        """``L^T g``: the gradient with respect to the whitened coordinates."""
        if self.factor.ndim == 2:
            return self.factor.T @ gradient
        return self._stretch(self.factor * gradient)

    def solve(self, x: Array) -> Array:
        """``L^{-1} x``: from original to whitened coordinates."""
        if self.factor.ndim == 2:
            return jax.scipy.linalg.solve_triangular(self.factor, x, lower=True)
        return self._stretch(x / self.factor, inverse=True)

    @property
    def inverse_mass_matrix(self) -> Array:
        """``C = L L^T`` in the shape of BlackJAX: scalar, diagonal or matrix."""
        if self.directions is not None:
            whole = jax.vmap(self.scale, in_axes=1, out_axes=1)(jnp.eye(self.factor.size))
            return whole @ whole.T
        return self.factor @ self.factor.T if self.factor.ndim == 2 else self.factor**2

    def _stretch(self, z: Array, *, inverse: bool = False) -> Array:
        if self.directions is None or self.stretches is None:
            return z
        stretches = 1.0 / self.stretches if inverse else self.stretches
        return z + self.directions @ ((stretches - 1.0) * (self.directions.T @ z))


def preconditioner(
    inverse_mass_matrix: ArrayLike | Preconditioner, dimension: int | None = None
) -> Preconditioner:
    """Factorise an inverse mass matrix; a `Preconditioner` is returned as it is.

    Parameters
    ----------
    inverse_mass_matrix
        Positive scalar, vector ``[dimension]`` or symmetric positive definite matrix
        ``[dimension, dimension]``, in the order of the flattened position.
    dimension
        Dimension of the positions, if known.

    Raises
    ------
    ValueError
        If it has more than two dimensions, is not square, or is of another dimension.
    """
    if isinstance(inverse_mass_matrix, Preconditioner):
        _check_dimension(inverse_mass_matrix.factor, dimension)
        return inverse_mass_matrix
    matrix = jnp.asarray(inverse_mass_matrix)
    if matrix.ndim > 2 or (matrix.ndim == 2 and matrix.shape[0] != matrix.shape[1]):
        raise ValueError(
            "inverse_mass_matrix: expected a scalar, a vector [dimension] or a square matrix "
            f"[dimension, dimension], got shape {matrix.shape}."
        )
    _check_dimension(matrix, dimension)
    if not jnp.issubdtype(matrix.dtype, jnp.floating):
        matrix = matrix.astype(jnp.result_type(float))
    return Preconditioner(jnp.linalg.cholesky(matrix) if matrix.ndim == 2 else jnp.sqrt(matrix))


def _check_dimension(matrix: Array, dimension: int | None) -> None:
    # A vector of the wrong length would broadcast against a position of length 1, silently.
    if dimension is not None and matrix.ndim > 0 and matrix.shape[0] != dimension:
        raise ValueError(
            f"inverse_mass_matrix: expected a scalar, shape ({dimension},) or ({dimension}, "
            f"{dimension}) for positions of {dimension} numbers, got {matrix.shape}."
        )

"""Integrals of interpolating polynomials: the coefficients of multistep solvers."""

from collections.abc import Callable

import numpy as np

__all__ = ["integrals"]

_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(64)
# Exact to rounding for one step through all noise, where the integrand grows a million times.


def integrals(
    low: float,
    high: float,
    density: Callable[[np.ndarray], np.ndarray],
    nodes: np.ndarray,
    coordinate: Callable[[np.ndarray], np.ndarray] = lambda u: u,
) -> np.ndarray:
    r"""Integrals :math:`\int w(u) \ell_j(c(u)) du` of the Lagrange polynomials of nodes.

    Parameters
    ----------
    low, high
        Ends of the interval.
    density
        ``w``, smooth.
    nodes
        Values of the coordinate, ``[node]``, where an output is known.
    coordinate
        ``c``, in which outputs are interpolated by a polynomial.

    Returns
    -------
    integrals
        Factors of the outputs, ``[node]``.
    """
    points = 0.5 * (low + high) + 0.5 * (high - low) * _POINTS
    weights = 0.5 * (high - low) * _WEIGHTS * density(points)
    at = coordinate(points)
    found = np.empty(len(nodes))
    for j, node in enumerate(nodes):
        others = np.delete(nodes, j)
        found[j] = weights @ np.prod((at[:, None] - others) / (node - others), axis=1)
    return found

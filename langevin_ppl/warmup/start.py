"""Where chains start: at a mode with Laplace noise, or, where there is none, as they were."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from langevin_ppl.base import Array, PRNGKey
from langevin_ppl.fit import minimize
from langevin_ppl.tree import all_finite

__all__ = ["DENSE_LIMIT", "Start", "laplace_start", "square_root"]

DENSE_LIMIT = 100
"""Largest dimension in which curvature and metric are dense matrices."""

MIN_EIGENVALUE = 1e-6
"""Smallest eigenvalue of the unit-diagonal Hessian that counts as positive."""

SETTLED = 0.1
"""Newton decrement, in squared posterior standard deviations, that needs no further step."""

MAX_DECREMENT = 1.0
"""Newton decrement up to which a point counts as a mode: one posterior standard deviation."""

FLATTENED = 0.01
"""Share of the first gradient's norm that may be left where L-BFGS is said to have converged."""

MAX_ROUNDS = 8
"""Most Newton steps."""


class Start(NamedTuple):
    """Starting points of all chains.

    Attributes
    ----------
    positions
        Shape ``[chain, dimension]``.
    factor
        ``L`` with ``L L^T`` the inverse curvature at the best mode: lower triangular
        ``[dimension, dimension]``, or ones ``[dimension]`` where there is no usable mode.
    found
        Whether each chain's optimisation ended at a mode, shape ``[chain]``.
    num_gradient_evaluations
        Per chain, shape ``[chain]``.
    """

    positions: Array
    factor: Array
    found: Array
    num_gradient_evaluations: Array


def square_root(factor: Array) -> Array:
    """Lower triangular ``L`` with ``L L^T = F F^T``, without forming the product."""
    return jnp.linalg.qr(factor.T, mode="r").T


class _Mode(NamedTuple):
    """A candidate for a mode.

    ``factor`` is a square root of the inverse Hessian there, ``decrement`` the squared length of
    the gradient in its frame, ``is_mode`` whether the Hessian is positive definite.
    """

    position: Array
    factor: Array
    decrement: Array
    is_mode: Array
    num_rounds: Array
    settled: Array


def _refine(logdensity_fn: Callable[[Array], Array], position: Array) -> _Mode:
    """Newton steps from where L-BFGS ended, which in float32 is short of an ill-conditioned mode.

    The Hessian, by jvp of the gradient, is scaled to a unit diagonal before it is judged: a floor
    on its own eigenvalues would be wrong wherever parameters have different units.
    """
    value_and_gradient = jax.value_and_grad(logdensity_fn)
    basis = jnp.eye(position.size, dtype=position.dtype)

    def body(mode: _Mode) -> _Mode:
        x = mode.position
        value, gradient = value_and_gradient(x)
        rows = jax.vmap(lambda v: jax.jvp(jax.grad(logdensity_fn), (x,), (v,))[1])(basis)
        hessian = -0.5 * (rows + rows.T)
        diagonal = jnp.diagonal(hessian)
        scale = 1.0 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))
        eigenvalues, vectors = jnp.linalg.eigh(scale[:, None] * hessian * scale)
        positive = jnp.all(diagonal > 0) & (eigenvalues[0] > MIN_EIGENVALUE)
        safe = jnp.where(eigenvalues > MIN_EIGENVALUE, eigenvalues, 1.0)
        factor = scale[:, None] * vectors / jnp.sqrt(safe)
        pulled = factor.T @ gradient
        is_mode = positive & all_finite(factor, value)
        newton = x + factor @ pulled
        moves = is_mode & (jnp.sum(pulled**2) > SETTLED) & (logdensity_fn(newton) > value)
        return _Mode(
            jnp.where(moves, newton, x),
            factor,
            jnp.sum(pulled**2),
            is_mode,
            mode.num_rounds + 1,
            ~moves,
        )

    def unsettled(mode: _Mode) -> Array:
        return ~mode.settled & (mode.num_rounds < MAX_ROUNDS)

    nothing = jnp.zeros((), position.dtype)
    start = _Mode(position, basis, nothing, jnp.asarray(False), jnp.asarray(0), jnp.asarray(False))
    return jax.lax.while_loop(unsettled, body, start)


def laplace_start(
    rng_key: PRNGKey, logdensity_fn: Callable[[Array], Array], positions: Array
) -> Start:
    """Optimise from every start and spread the chains by the curvature found.

    L-BFGS and then Newton's method run from every position. A chain counts as found where they
    came to rest with a positive definite Hessian and a small gradient, measured in the frame of
    that Hessian; it starts at its own mode plus Laplace noise. Other chains keep their own
    position: an optimiser that runs along a funnel or to infinity must not choose where a chain
    starts.

    Parameters
    ----------
    rng_key
        Key of the noise.
    logdensity_fn
        Log density of a flat position.
    positions
        Shape ``[chain, dimension]``.

    Notes
    -----
    Above `DENSE_LIMIT` dimensions the curvature is not computed: chains start where L-BFGS
    converged to a gradient much smaller than the first, in the frame of the identity.
    """
    dimension = positions.shape[1]
    minima = jax.vmap(lambda x: minimize(lambda z: -logdensity_fn(z), x))(positions)
    values = minima.value
    if dimension > DENSE_LIMIT:
        steepness = jnp.linalg.norm(minima.gradient, axis=1)
        first = jnp.linalg.norm(jax.vmap(jax.grad(logdensity_fn))(positions), axis=1)
        found = minima.converged & jnp.isfinite(values) & (steepness < FLATTENED * first)
        starts = jnp.where(found[:, None], minima.position, positions)
        factor = jnp.ones(dimension, positions.dtype)
        return Start(starts, factor, found, minima.num_evaluations)
    modes = jax.vmap(lambda x: _refine(logdensity_fn, x))(minima.position)
    found = modes.is_mode & modes.settled & (modes.decrement < MAX_DECREMENT)
    best = jnp.argmin(jnp.where(found, values, jnp.inf))
    identity = jnp.eye(dimension, dtype=positions.dtype)
    factor = jnp.where(jnp.any(found), square_root(modes.factor[best]), identity)
    noise = jax.vmap(
        lambda chain: jax.random.normal(
            jax.random.fold_in(rng_key, chain), (dimension,), positions.dtype
        )
    )(jnp.arange(positions.shape[0]))
    spread = modes.position + noise @ factor.T
    inside = jnp.isfinite(jax.vmap(logdensity_fn)(spread))
    starts = jnp.where(inside[:, None], spread, modes.position)
    starts = jnp.where(found[:, None], starts, positions)
    # A jvp of the gradient costs about two gradients.
    evaluations = minima.num_evaluations + modes.num_rounds * (2 * dimension + 2) + 1
    return Start(starts, factor, found, evaluations)

"""Where chains start: at a mode with Laplace noise, or, where there is none, as they were."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array, PRNGKey
from langevin_ppl.fit import minimize
from langevin_ppl.tree import all_finite
from langevin_ppl.warmup.moments import square_root

__all__ = [
    "DENSE_LIMIT",
    "Search",
    "Start",
    "curvature_factor",
    "laplace_start",
    "search_modes",
]

DENSE_LIMIT = 500
"""Largest dimension in which curvature and metric are dense matrices: the Hessian then costs 1000
gradients, and a step three products with a matrix of a quarter of a million numbers."""

MIN_EIGENVALUE = 1e-6
"""Smallest eigenvalue of the unit-diagonal Hessian that counts as positive."""

MIN_STEEPNESS = 1e-3
"""Smallest size of an eigenvalue there that a saddle's frame makes up for: a flat direction must
not be stretched without bound."""

SETTLED = 0.1
"""Newton decrement, in squared posterior standard deviations, that needs no further step."""

MAX_DECREMENT = 1.0
"""Newton decrement up to which a point counts as a mode: one posterior standard deviation."""

SAME_MODE = 1.0
"""Squared distance, in posterior standard deviations at the best mode, up to which the end of
another chain's search, moved by one Newton step, is that mode."""

HOPELESS, HOPELESS_PER_DIMENSION = 20.0, 5.0
"""Nats below the best mode, and more of them for each dimension, beyond which the end of a search
is no place to start from. Even a mode there that is exp(5) times wider in every direction has a
share of exp(-20) of the mass, and most such ends are no modes."""

FLATTENED = 0.01
"""Share of the first gradient's norm that may be left where L-BFGS is said to have converged."""

NUM_PRODUCTS = 16
"""Products of the Hessian with random signs, from which its diagonal is estimated."""

MAX_ROUNDS = 6
"""Most rounds of L-BFGS, each in the frame of the curvature found by the one before."""

PROBES = (1.0, 2.0, 4.0, 8.0)
"""Multiples of the distance from the mode at which gradients are probed."""


class Start(NamedTuple):
    """Starting points of all chains.

    Attributes
    ----------
    positions
        Shape ``[chain, dimension]``.
    mode
        The best mode, shape ``[dimension]``; the mean of the starts where there is none.
    factor
        ``L`` with ``L L^T`` the inverse curvature at the best mode: lower triangular
        ``[dimension, dimension]`` or diagonal ``[dimension]``. The identity where there is no mode.
    growth
        Power with which the gradient grows far from the start: 1 for a Gaussian, 3 for a quartic
        potential, infinite where it overflows.
    restarted
        Whether a chain was moved to the best mode, because its own search ended so far below it
        that the posterior mass there is negligible, ``[chain]``.
    between
        Log density halfway between the end of each search and the best mode, ``[chain]``.
    search
        What the search for a mode found.
    """

    positions: Array
    mode: Array
    factor: Array
    growth: Array
    restarted: Array
    between: Array
    search: "Search"


def _count(numbers: Array) -> Array:
    """Sum of counts, of one dtype whether or not 64 bits are switched on."""
    return jnp.sum(numbers).astype(jnp.int32)


class _Curvature(NamedTuple):
    """What the Hessian at a point says.

    ``factor`` is a square root of its inverse, eigenvalues taken without their signs, and
    ``inverse`` the inverse of that; ``flattest`` the smallest eigenvalue at unit diagonal, and
    ``positive`` whether the Hessian is positive definite.
    """

    value: Array
    gradient: Array
    factor: Array
    inverse: Array
    flattest: Array
    positive: Array


def _curvature(logdensity_fn: Callable[[Array], Array], position: Array) -> _Curvature:
    """Hessian by jvp of the gradient, judged at unit diagonal.

    A floor on its own eigenvalues would be wrong wherever parameters have different units.
    """
    (value, gradient), tangent = jax.linearize(jax.value_and_grad(logdensity_fn), position)
    rows = jax.vmap(lambda v: tangent(v)[1])(jnp.eye(position.size, dtype=position.dtype))
    factor, inverse, flattest, positive = curvature_factor(0.5 * (rows + rows.T))
    positive &= all_finite(factor, inverse, value, gradient)
    return _Curvature(value, gradient, factor, inverse, flattest, positive)


def curvature_factor(hessian: Array) -> tuple[Array, Array, Array, Array]:
    """Square root of the inverse of the negative Hessian, and how positive that is.

    Returns the square root, its inverse, the smallest eigenvalue of the negative Hessian scaled to
    a unit diagonal, and whether it counts as positive.

    Parameters
    ----------
    hessian
        Symmetric ``[dimension, dimension]``. Of a saddle, the eigenvalues are taken without their
        signs.
    """
    hessian = -hessian
    diagonal = jnp.diagonal(hessian)
    scale = 1.0 / jnp.sqrt(jnp.where(diagonal == 0, 1.0, jnp.abs(diagonal)))
    eigenvalues, vectors = jnp.linalg.eigh(scale[:, None] * hessian * scale)
    positive = jnp.all(diagonal > 0) & (eigenvalues[0] > MIN_EIGENVALUE)
    # Of a saddle, the frame in which it is as steep as a unit bowl, so that a search can go on.
    safe = jnp.maximum(jnp.abs(eigenvalues), jnp.where(positive, MIN_EIGENVALUE, MIN_STEEPNESS))
    factor = scale[:, None] * vectors / jnp.sqrt(safe)
    inverse = jnp.sqrt(safe)[:, None] * vectors.T / scale
    flattest = jnp.where(jnp.all(diagonal > 0), eigenvalues[0], -jnp.abs(eigenvalues[0]))
    return factor, inverse, flattest, positive & all_finite(factor, inverse)


class Search(NamedTuple):
    """Where the searches of all chains stand.

    Attributes
    ----------
    ends, ended
        Where each search ended, ``[chain, dimension]``, and the log density there, ``[chain]``.
    best
        Number of the best of them.
    frame, inverse
        Factor of the inverse curvature there, and the inverse of the factor, both ``[dimension,
        dimension]``, or ``[dimension]`` for an estimated diagonal.
    curved
        Whether the negative Hessian there is positive definite.
    flattest
        Its smallest eigenvalue at unit diagonal; NaN where the Hessian is not computed.
    decrement
        Squared length of the Newton step that is left there.
    found
        Whether each search ended at the best mode, ``[chain]``.
    converged
        Whether each search came to rest, ``[chain]``.
    num_evaluations
        Gradient evaluations of all chains.
    num_rounds
        Rounds of L-BFGS.
    """

    ends: Array
    ended: Array
    best: Array
    frame: Array
    inverse: Array
    curved: Array
    flattest: Array
    decrement: Array
    found: Array
    converged: Array
    num_evaluations: Array
    num_rounds: Array

    @classmethod
    def before(cls, positions: Array) -> "Search":
        """Stand at the first positions, in the frame of the coordinates."""
        num_chains, dimension = positions.shape
        dtype = positions.dtype
        zero, no = jnp.zeros((), dtype), jnp.zeros(num_chains, bool)
        frame = jnp.ones(dimension, dtype)
        frame = jnp.diag(frame) if dimension <= DENSE_LIMIT else frame
        return cls(
            ends=positions,
            ended=jnp.zeros(num_chains, dtype),
            best=jnp.argmax(no),
            frame=frame,
            inverse=frame,
            curved=jnp.asarray(False),
            flattest=zero,
            decrement=zero,
            found=no,
            converged=no,
            num_evaluations=jnp.zeros((), jnp.int32),
            num_rounds=jnp.zeros((), jnp.int32),
        )


def _dense_search(logdensity_fn: Callable[[Array], Array], positions: Array) -> Search:
    """L-BFGS from every position, again and again in the frame of the curvature at the best end.

    In the frame of the identity and in float32, L-BFGS stops short of an ill-conditioned mode by
    many posterior standard deviations. In that of the curvature it gets there in a few steps, and
    so do the other chains, unless their searches ended elsewhere for good.
    """
    num_chains, dimension = positions.shape

    def body(search: Search) -> Search:
        frame = search.frame
        minima = jax.vmap(
            lambda x: minimize(lambda z: -logdensity_fn(x + frame @ z), jnp.zeros_like(x))
        )(search.ends)
        ends, ended = search.ends + minima.position @ frame.T, -minima.value
        best = jnp.argmax(jnp.where(jnp.isfinite(ended), ended, -jnp.inf))
        curvature = _curvature(logdensity_fn, ends[best])
        pulled = curvature.factor.T @ curvature.gradient
        # Where each search would be after a Newton step, seen from the best one.
        gradients = -search.inverse.T @ minima.gradient.T
        newton = ends.T + curvature.factor @ (curvature.factor.T @ gradients)
        best_newton = ends[best] + curvature.factor @ pulled
        apart = curvature.inverse @ (newton - best_newton[:, None])
        decrement = jnp.sum(pulled**2)
        usable = curvature.positive & (decrement < MAX_DECREMENT)
        near = jnp.isfinite(ended) & (jnp.sum(apart**2, axis=0) < SAME_MODE)
        sound = all_finite(curvature.factor, curvature.inverse)
        return Search(
            ends,
            ended,
            best,
            jnp.where(sound, curvature.factor, frame),
            jnp.where(sound, curvature.inverse, search.inverse),
            curvature.positive,
            curvature.flattest,
            decrement,
            usable & (near | (jnp.arange(num_chains) == best)),
            minima.converged,
            # A jvp of the gradient costs about two gradients.
            search.num_evaluations + _count(minima.num_evaluations) + 2 * dimension + 1,
            search.num_rounds + 1,
        )

    def unsettled(search: Search) -> Array:
        settled = jnp.all(search.found) & (search.decrement < SETTLED)
        return ~settled & (search.num_rounds < MAX_ROUNDS)

    return jax.lax.while_loop(unsettled, body, Search.before(positions))


def search_modes(logdensity_fn: Callable[[Array], Array], positions: Array) -> Search:
    """Look for modes from every position.

    The best end counts as a mode if its Hessian is positive definite and its gradient small,
    measured in the frame of that Hessian; another search ended there if one Newton step would
    bring it there.

    Parameters
    ----------
    logdensity_fn
        Log density of a flat position.
    positions
        Shape ``[chain, dimension]``.

    Notes
    -----
    Above `DENSE_LIMIT` dimensions only the diagonal of the Hessian is estimated, and a search has
    found a mode where it converged to a gradient much smaller than the first.
    """
    if positions.shape[1] <= DENSE_LIMIT:
        return _dense_search(logdensity_fn, positions)
    return _diagonal_search(logdensity_fn, positions)


def _diagonal_search(logdensity_fn: Callable[[Array], Array], positions: Array) -> Search:
    """L-BFGS from every position, and an estimate of the Hessian's diagonal at the best end.

    The diagonal by products of the Hessian with random signs (Hutchinson's estimator).
    """
    minima = jax.vmap(lambda x: minimize(lambda z: -logdensity_fn(z), x))(positions)
    first = jnp.linalg.norm(jax.vmap(jax.grad(logdensity_fn))(positions), axis=1)
    flatness = jnp.linalg.norm(minima.gradient, axis=1) / first
    ended = -minima.value
    found = minima.converged & jnp.isfinite(ended) & (flatness < FLATTENED)
    best = jnp.argmax(jnp.where(jnp.isfinite(ended), ended, -jnp.inf))
    shape = (NUM_PRODUCTS, positions.shape[1])
    signs = jax.random.rademacher(jax.random.key(0), shape, positions.dtype)
    _, tangent = jax.linearize(jax.grad(logdensity_fn), minima.position[best])
    diagonal = -jnp.mean(signs * jax.vmap(tangent)(signs), axis=0)
    usable = jnp.isfinite(diagonal) & (diagonal > 0)
    steepness = jnp.sqrt(jnp.where(usable, diagonal, 1.0))
    return Search(
        ends=minima.position,
        ended=ended,
        best=best,
        frame=1.0 / steepness,
        inverse=steepness,
        curved=jnp.any(found),
        flattest=jnp.full((), jnp.nan, positions.dtype),
        decrement=flatness[best] ** 2,
        found=found,
        converged=minima.converged,
        num_evaluations=_count(minima.num_evaluations) + 2 * NUM_PRODUCTS + 1,
        num_rounds=jnp.ones((), jnp.int32),
    )


def laplace_start(
    rng_key: PRNGKey,
    logdensity_fn: Callable[[Array], Array],
    positions: Array,
    search: Search,
) -> Start:
    """Spread the chains about the mode by its curvature, and probe the gradient's growth.

    A chain whose own search ended at the best mode (at any mode, above `DENSE_LIMIT` dimensions)
    starts there with Laplace noise. A chain whose search ended elsewhere starts where it ended,
    unless that is so far below the best mode that next to no mass can be there: then it starts at
    the best mode as well, and ``restarted`` says so. One whose search ran away, and every chain if
    there is no mode, keeps its own position: an optimiser that runs along a funnel or to infinity
    must not choose where a chain starts.

    Parameters
    ----------
    rng_key
        Key of the noise.
    logdensity_fn
        Log density of a flat position.
    positions
        Shape ``[chain, dimension]``, from where the search began.
    search
        From `search_modes`.
    """
    num_chains, dimension = positions.shape
    found, best = search.found, search.best
    usable = jnp.any(found)
    noise = jax.random.normal(rng_key, positions.shape, positions.dtype)
    if search.frame.ndim == 2:
        identity = jnp.eye(dimension, dtype=positions.dtype)
        factor = jnp.where(usable, square_root(search.frame), identity)
        rays = noise @ factor.T
        elsewhere = usable & search.converged & jnp.isfinite(search.ended)
        gap = HOPELESS + HOPELESS_PER_DIMENSION * dimension
        restarted = elsewhere & ~found & (search.ended[best] - search.ended > gap)
        centres = jnp.where(elsewhere[:, None], search.ends, positions)
        there = (found | restarted)[:, None]
        centres = jnp.where(there, search.ends[best], centres)
        starts = centres + jnp.where(there, rays, 0.0)
    else:
        restarted = jnp.zeros_like(found)
        factor = jnp.where(usable, search.frame, 1.0)
        rays = noise * factor
        centres = jnp.where(found[:, None], search.ends, positions)
        starts = centres + jnp.where(found[:, None], rays, 0.0)
    mode = jnp.where(usable, search.ends[best], jnp.mean(positions, axis=0))
    lengths = jnp.asarray(PROBES, positions.dtype)[:, None, None]
    halfway = 0.5 * (search.ends + mode)
    probes = jnp.concatenate([starts[None], mode + lengths[1:] * rays, halfway[None]])
    # Mapped over both axes: merged into one, chains would no longer lie on their devices.
    values, gradients = jax.vmap(jax.vmap(jax.value_and_grad(logdensity_fn)))(probes)
    inside = jnp.isfinite(values[0])
    starts = jnp.where(inside[:, None], starts, centres)
    pulled = gradients @ factor if factor.ndim == 2 else gradients * factor
    norms = jnp.linalg.norm(pulled[:-1], axis=2)
    powers = jnp.log2(norms[-1] / norms[-2]) / np.log2(PROBES[-1] / PROBES[-2])
    growth = jnp.median(jnp.where(jnp.isfinite(powers), powers, jnp.inf))
    # The probes, the points halfway, and the first gradient of every chain.
    evaluations = search.num_evaluations + num_chains * (len(PROBES) + 2)
    search = search._replace(num_evaluations=evaluations)
    return Start(starts, mode, factor, growth, restarted, values[-1], search)

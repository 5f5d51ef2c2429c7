"""Conditions of the theory, measured as far as a probe can: growth, dissipativity, smoothness."""

import functools
import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array, AssumptionWarning, PRNGKey, check_counts, check_key
from langevin_ppl.optim.blocks import at
from langevin_ppl.optim.objective import as_point, objective
from langevin_ppl.optim.optimizers import Scheme
from langevin_ppl.taming import norm
from langevin_ppl.tree import Layout

__all__ = ["Growth", "check_scheme", "growth"]

RADII = tuple(2.0**k for k in range(7))
"""Distances that are probed, in units of the start's distance from zero, or of 1."""

SUPERLINEAR = 1.25
"""Exponent above which a gradient counts as growing faster than linearly: oscillations of a
landscape move the fitted exponent by some tenths."""

RISING = 1.5
"""Ratio of the last local exponent to the middle one above which there is no power: those of an
exponential double with the radius."""

POWER_ITERATIONS = 20
"""Products with the Hessian for its largest eigenvalue, which they underestimate by some percent
where eigenvalues are dense."""


class Growth(NamedTuple):
    r"""How an objective grows, as far as a probe along random directions can see.

    Attributes
    ----------
    exponent
        Slope of :math:`\log \|\nabla f(x)\|` in :math:`\log \|x\|`, at the far half of the radii
        where gradients are finite: 1 for a quadratic. Infinite where it keeps rising, as that of
        an exponential does, or where gradients overflow at once.
    constant
        Largest :math:`\|\nabla f(x)\| / \|x\|^{\mathrm{exponent}}` at the largest of these radii.
    dissipativity
        Smallest :math:`\langle x, \nabla f(x) \rangle / \|x\|^2` there: negative where the
        objective pushes outwards along a direction that was tried. Theory asks for a positive
        bound in all of them.
    lipschitz
        Largest absolute eigenvalue of the Hessian at the start, by power iteration.
    radii, gradient_norms
        What was probed: radii, and norms ``[radius, direction]``.
    num_evaluations
        Gradients and products with the Hessian that it took.
    """

    exponent: float
    constant: float
    dissipativity: float
    lipschitz: float
    radii: np.ndarray
    gradient_norms: np.ndarray
    num_evaluations: int

    @property
    def power(self) -> float:
        """The ``power`` of a taming by position: the exponent less one, at least 0."""
        return max(0.0, self.exponent - 1.0)

    @property
    def step_size(self) -> float:
        r"""Largest stable step of an untamed first-order scheme at the start, :math:`2 / L`."""
        return math.inf if self.lipschitz == 0 else 2.0 / self.lipschitz


@functools.partial(jax.jit, static_argnames=("layout", "num_directions"))
def _probe(
    rng_key: PRNGKey, fn: Any, start: Array, layout: Layout, num_directions: int
) -> tuple[Array, Array, Array, Array]:
    """Radii, norms and radial parts of gradients, and the largest curvature at the start."""
    key_directions, key_curvature = jax.random.split(rng_key)
    gradient = jax.grad(lambda flat: fn(layout.unravel(flat)))
    unit = jnp.maximum(1.0, norm(start))
    radii = unit * jnp.asarray(RADII, start.dtype)
    normals = jax.random.normal(key_directions, (num_directions, start.size), start.dtype)
    directions = normals / jnp.linalg.norm(normals, axis=1, keepdims=True)

    def at(pair: tuple[Array, Array]) -> tuple[Array, Array]:
        radius, direction = pair
        found = gradient(radius * direction)
        # Scaled first: products of far gradients overflow.
        length = norm(found)
        radial = length * jnp.vdot(direction, found / length)
        return length, radial

    grid = (
        jnp.repeat(radii, num_directions),
        jnp.tile(directions, (len(RADII), 1)),
    )
    lengths, radial = jax.lax.map(at, grid)
    shape = len(RADII), num_directions

    def turned(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        direction = carry[0]
        # By two reverse passes, as some functions have no forward derivative.
        product = jax.grad(lambda x: jnp.vdot(gradient(x), direction))(start)
        size = norm(product)
        return jnp.where(size > 0, product / size, direction), size

    first = jax.random.normal(key_curvature, start.shape, start.dtype)
    turning = (first / norm(first), jnp.zeros((), start.dtype))
    _, curvature = jax.lax.fori_loop(0, POWER_ITERATIONS, turned, turning)
    return radii, lengths.reshape(shape), radial.reshape(shape), curvature


def growth(rng_key: PRNGKey, fn: Any, x0: Any, *, num_directions: int = 8) -> Growth:
    r"""Probe how an objective grows, for the choice of a step size and of a taming.

    Gradients along random directions, at distances from zero up to 64 times that of ``x0``, and
    the curvature at ``x0``. It can show that a condition is broken, never that it holds.

    Parameters
    ----------
    rng_key
        A typed key.
    fn
        Function from a point to a scalar, or a target, whose negative log density is meant.
    x0
        A point: pytree of arrays.
    num_directions
        How many.

    Returns
    -------
    Growth

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong kind.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> found = lp.optim.growth(jax.random.key(0), lambda x: jnp.sum(x**2) ** 2, jnp.ones(3))
    >>> round(found.power, 3)  # gradients grow like the cube
    2.0
    """
    check_counts(1, num_directions=num_directions)
    function = objective("growth", fn)
    point = as_point("growth", x0)
    layout = Layout.of(point)
    key = check_key(rng_key)
    found = _probe(key, function, layout.ravel(point), layout, num_directions)
    radii, lengths, radial, curvature = (np.asarray(each, float) for each in found)
    finite = np.all(np.isfinite(lengths), axis=1)
    count = len(RADII) * num_directions + POWER_ITERATIONS
    seen = np.flatnonzero(finite & np.all(lengths > 0, axis=1))
    if not np.any(finite):
        return Growth(math.inf, math.inf, math.nan, float(curvature), radii, lengths, count)
    last = np.flatnonzero(finite)[-1]
    dissipativity = float(np.min(radial[last]) / radii[last])
    if seen.size < 2:
        exponent = math.inf if not finite[-1] else 0.0
    else:
        logs = np.log(radii[seen]), np.mean(np.log(lengths[seen]), axis=1)
        far = slice(-max(2, (seen.size + 1) // 2), None)
        exponent = float(np.polyfit(logs[0][far], logs[1][far], 1)[0])
        slopes = np.diff(logs[1]) / np.diff(logs[0])
        if slopes[-1] > max(SUPERLINEAR, RISING * slopes[(slopes.size - 1) // 2]):
            exponent = math.inf
    constant = math.inf
    if math.isfinite(exponent):
        constant = float(np.max(lengths[last]) / radii[last] ** exponent)
    return Growth(exponent, constant, dissipativity, float(curvature), radii, lengths, count)


def check_scheme(scheme: Scheme, found: Growth) -> None:
    """Warn where the probe breaks a condition of the theory of a scheme."""
    h = float(at(scheme.learning_rate, jnp.zeros((), jnp.int32)))
    said = [
        _too_steep(scheme, found) or _too_long(scheme, found, h),
        _falling(found) if scheme.strength == 0 else None,
    ]
    for sentence in filter(None, said):
        warnings.warn(f"{scheme.name}: {sentence}", AssumptionWarning, stacklevel=3)


def _too_steep(scheme: Scheme, found: Growth) -> str | None:
    """Gradients that grow faster than what the scheme bounds."""
    if scheme.taming == "gradient" or found.exponent <= SUPERLINEAR:
        return None
    tamed = scheme.taming == "position"
    if tamed and float(scheme.power) >= found.power - (SUPERLINEAR - 1.0):
        return None
    trouble = "an untamed scheme overflows from far away"
    if tamed:
        trouble = f"power {float(scheme.power):.3g} does not bound the step"
    if math.isinf(found.exponent):
        return (
            f"gradients grow ever faster with the distance, and {trouble}. Use lp.optim.theopoula, "
            "or a chain that begins with lp.optim.tame(lp.taming.coordinatewise, learning_rate)."
        )
    return (
        f"gradients grow like |x|^{found.exponent:.3g}, and {trouble}. Use lp.optim.tusla(..., "
        f"power={found.power:.3g}) or lp.optim.theopoula."
    )


def _too_long(scheme: Scheme, found: Growth, h: float) -> str | None:
    """Steps beyond what is stable, at the start or far out."""
    if scheme.taming == "none":
        limit = found.step_size
        if scheme.kinetic:
            limit = math.sqrt(2.0 * limit)  # 2 / sqrt(L)
        if h >= limit:
            return (
                f"the learning rate {h:.3g} is above {limit:.3g}, the largest at which the scheme "
                f"is stable in the curvature {found.lipschitz:.3g} of the start. Take a lower one."
            )
    boosted = h * (1.0 + math.sqrt(h) / float(scheme.epsilon))
    if scheme.taming == "gradient" and boosted >= found.step_size:
        return (
            f"small gradients are multiplied by {boosted:.3g}, boost included, above "
            f"{found.step_size:.3g}, beyond which steps overshoot in the curvature "
            f"{found.lipschitz:.3g} of the start. Take a lower learning rate or a larger epsilon."
        )
    # With more power than gradients have, steps get shorter far out.
    matched = abs(float(scheme.power) - found.power) <= SUPERLINEAR - 1.0
    if scheme.taming == "position" and matched and not scheme.kinetic:
        # Far out a step multiplies the position by 1 - sqrt(h) (constant + strength).
        pull = found.constant + float(scheme.strength)
        if found.exponent > SUPERLINEAR and math.sqrt(h) * pull >= 2.0:
            return (
                f"the learning rate {h:.3g} is above {4.0 / pull**2:.3g}, beyond which steps "
                f"overshoot from far away: gradients are {found.constant:.3g} "
                f"|x|^{found.exponent:.3g} there. Take a lower one."
            )
    return None


def _falling(found: Growth) -> str | None:
    """An objective that has no law to speak of."""
    if not found.dissipativity < 0:
        return None
    return (
        "the objective decreases outwards along a direction that was tried, so that the law the "
        "theory speaks of may not exist. Add a penalty: strength > 0 of lp.optim.tusla or "
        "theopoula, or a term of the objective."
    )

"""One call for all methods: particles, the best point, a polish, and an honest record."""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from langevin_ppl.base import (
    Array,
    DivergenceWarning,
    Position,
    PRNGKey,
    Target,
    check_counts,
    check_key,
    check_number,
)
from langevin_ppl.fit import Minimum
from langevin_ppl.fit import minimize as descend
from langevin_ppl.loop import capacity_for, drive, repeat
from langevin_ppl.optim.consensus import Consensus
from langevin_ppl.optim.exchange import Exchange
from langevin_ppl.optim.guarantees import check_scheme, growth
from langevin_ppl.optim.methods import Method
from langevin_ppl.optim.objective import objective, starting_points
from langevin_ppl.optim.optimizers import LangevinOptimizer
from langevin_ppl.optim.restarts import Restarts
from langevin_ppl.tree import Layout

__all__ = ["OptimizeResult", "minimize"]


class OptimizeResult(NamedTuple):
    """What a minimisation found, under the names of ``scipy.optimize``.

    Attributes
    ----------
    x
        Best point that was evaluated, a pytree like ``x0``; of a target an unconstrained position.
    fun
        The objective there.
    success
        Whether the run came to its end with at least one particle that did not fail. It does not
        say that ``x`` is the global minimum: nothing here could.
    message
        What happened, in words.
    nit
        Steps made.
    nfev, njev
        Evaluations of the objective and of its gradient, polish and probe included.
    particles, values
        Best point of every particle, leading axis ``particle``, and the objective there.
    history
        Objective where each particle was, ``[step, particle]``; NaN from where it failed.
    failed_at
        Step at which a particle's objective or gradient was not finite, ``[particle]``; -1 where
        none was.
    constrained
        Named variables of a target at ``x``; None for a function.
    """

    x: Position
    fun: float
    success: bool
    message: str
    nit: int
    nfev: int
    njev: int
    particles: Position
    values: np.ndarray
    history: np.ndarray
    failed_at: np.ndarray
    constrained: dict[str, Array] | None

    def __repr__(self) -> str:
        shown = ("x", "fun", "success", "message", "nit", "nfev", "njev")
        return "\n".join(f"{name:>8}: {getattr(self, name)!r}" for name in shown)

    @property
    def best(self) -> np.ndarray:
        """Lowest value so far after every step, ``[step]``."""
        finite = np.where(np.isfinite(self.history), self.history, np.inf)
        return np.minimum.accumulate(np.min(finite, axis=1))


class _Carry(NamedTuple):
    """State of the method, and the best point of every particle so far."""

    state: Any
    points: Position
    values: Array
    failed_at: Array


def _better(points: Position, values: Array, carry: _Carry) -> _Carry:
    """Keep what is lower, for each particle."""

    def pick(new: Array, old: Array) -> Array:
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    better = jnp.isfinite(values) & (values < carry.values)
    kept = jax.tree.map(pick, points, carry.points)
    return carry._replace(points=kept, values=jnp.where(better, values, carry.values))


@jax.jit
def _begin(rng_key: PRNGKey, fn: Any, starts: Position, method: Any) -> _Carry:
    values = jax.vmap(fn)(starts)
    lowest = jnp.where(jnp.isfinite(values), values, jnp.inf)
    never = jnp.full(values.shape, -1, jnp.int32)
    return _Carry(method.init(rng_key, fn, starts), starts, lowest, never)


@functools.partial(jax.jit, static_argnames="capacity")
def _chunk(
    carry: _Carry,
    start: Any,
    count: Any,
    rng_key: PRNGKey,
    fn: Any,
    *,
    method: Method,
    capacity: int,
) -> tuple[_Carry, Array]:
    """Make ``count`` steps from ``start``; values where the particles were."""

    def step(carry: _Carry, index: Array) -> tuple[_Carry, Array]:
        stepped = method.step(jax.random.fold_in(rng_key, index), fn, carry.state)
        new = _better(stepped.points, stepped.values, carry)
        first = stepped.failed & (carry.failed_at < 0)
        failed_at = jnp.where(first, index, carry.failed_at).astype(jnp.int32)
        values = jnp.where(failed_at < 0, stepped.values, jnp.nan)
        return new._replace(state=stepped.state, failed_at=failed_at), values

    return repeat(step, carry, jnp.asarray(start), jnp.asarray(count), capacity)


@jax.jit
def _end(carry: _Carry, fn: Any, method: Any) -> _Carry:
    """Look at the points that the last step led to."""
    positions = method.positions(carry.state)
    return _better(positions, jax.vmap(fn)(positions), carry)


@functools.partial(jax.jit, static_argnames=("layout",))
def _polished(fn: Any, starts: Position, *, layout: Layout) -> Minimum:
    """L-BFGS from every point; leading axis ``particle``."""

    def one(start: Position) -> Minimum:
        return descend(lambda flat: fn(layout.unravel(flat)), layout.ravel(start))

    return jax.vmap(one)(starts)


def _as_method(method: Any) -> Method:
    if isinstance(method, optax.GradientTransformation):
        return Restarts.of(method)
    if isinstance(method, Consensus | Exchange):
        return method
    raise TypeError(
        "minimize: expected a method such as lp.optim.tusla(1e-2, key=0), lp.optim.consensus(), "
        "lp.optim.replica_exchange(...), or an optimizer of Optax, got "
        f"{type(method).__name__}."
    )


def minimize(
    rng_key: PRNGKey,
    fn: Any,
    x0: Any = None,
    method: Any = None,
    *,
    num_steps: int = 1000,
    num_particles: int = 1,
    spread: float = 1.0,
    polish: int = 1,
    check: bool = True,
    progress: bool = False,
) -> OptimizeResult:
    r"""Look for the global minimum of a function, or for the mode of a target.

    All particles run in one compiled loop. The best point that any of them saw is kept, wherever
    they went afterwards, and L-BFGS goes down from it.

    Parameters
    ----------
    rng_key
        A typed key. It also replaces the keys of an optimiser's state, so that every particle has
        noise of its own.
    fn
        Function from a point, a pytree of arrays, to a scalar; or a target of a NumPyro model or
        of a density, whose negative log density is minimised, on unconstrained space and with
        the Jacobian of its transforms: a MAP estimate of the unconstrained variables.
    x0
        A point; or a function from a key to one, called for every particle. A target has its own
        starts.
    method
        An optimiser of Optax, such as `langevin_ppl.optim.tusla` or ``optax.adam``, which moves
        every particle by itself; `langevin_ppl.optim.consensus` or
        `langevin_ppl.optim.replica_exchange`.
    num_steps
        How many.
    num_particles
        How many.
    spread
        Standard deviation of a normal jitter about ``x0``, of all starts but the first.
    polish
        From how many of the best points L-BFGS goes down at the end; 0 for none.
    check
        Whether to probe the growth of the function, for a Langevin optimiser, and to warn where
        it breaks what the theory assumes. See `langevin_ppl.optim.growth`.
    progress
        Show a bar.

    Returns
    -------
    OptimizeResult

    Raises
    ------
    TypeError, ValueError
        For arguments of the wrong kind; if the function is finite at none of the starts.

    Warns
    -----
    DivergenceWarning
        If particles met a value or gradient that was not finite. They stop there, and the best
        finite point is kept.
    AssumptionWarning
        If the probe breaks a condition, or particles of a consensus cannot contract.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> loss = lambda x: jnp.sum(x**2) + jnp.sum(x**30)
    >>> method = lp.optim.tusla(1e-3, key=0, power=28)
    >>> found = lp.optim.minimize(jax.random.key(0), loss, jnp.array([4.0]), method)
    >>> bool(abs(found.x[0]) < 1e-3), found.success
    (True, True)
    """
    rng_key = check_key(rng_key)
    moves = _as_method(method)
    check_counts(1, num_steps=num_steps, num_particles=num_particles)
    check_counts(0, polish=polish)
    check_number("spread", spread, least=0.0)
    function = objective("minimize", fn)
    key_starts, key_probe, key_init, key_steps = jax.random.split(rng_key, 4)
    starts = starting_points("minimize", key_starts, fn, x0, num_particles, spread)
    first = jax.tree.map(lambda leaf: leaf[0], starts)
    layout = Layout.of(first)
    moves.check(starts)
    _check_value(function, first)
    nfev, njev = num_particles, 0
    if check and isinstance(method, LangevinOptimizer) and method.scheme.taming != "unknown":
        found = growth(key_probe, function, first)
        njev += found.num_evaluations
        check_scheme(method.scheme, found)
    carry = _begin(key_init, function, starts, moves)
    if not np.any(np.isfinite(carry.values)):
        raise ValueError(
            f"minimize: the objective is finite at none of the {num_particles} starting points. "
            "Start elsewhere: x0, or spread."
        )
    capacity = capacity_for(4 * num_particles)

    def program(carry: _Carry, start: int, count: int) -> tuple[_Carry, Array]:
        return _chunk(carry, start, count, key_steps, function, method=moves, capacity=capacity)

    def note(history: np.ndarray, done: int) -> str:
        return f"lowest {np.min(history, where=np.isfinite(history), initial=np.inf):.5g}"

    outcome = drive(
        program, carry, num_steps, capacity, progress=progress, label="minimize", note=note
    )
    carry, history = _end(outcome.carry, function, moves), np.asarray(outcome.outputs)
    values_a_step, gradients_a_step = moves.evaluations(num_particles)
    nit = len(history)
    nfev += nit * values_a_step + num_particles
    njev += nit * gradients_a_step
    points, values = carry.points, np.array(carry.values)
    if polish:
        points, values, count = _lowered(function, points, values, polish, layout)
        nfev, njev = nfev + count, njev + count
    best = int(np.argmin(values))
    x = jax.tree.map(lambda leaf: leaf[best], points)
    failed_at = np.array(carry.failed_at)
    message = _message(outcome.complete, nit, num_steps, failed_at)
    constrained = fn.constrain(x) if isinstance(fn, Target) else None
    return OptimizeResult(
        x=x,
        fun=float(values[best]),
        success=outcome.complete and not bool(np.all(failed_at >= 0)),
        message=message,
        nit=nit,
        nfev=nfev,
        njev=njev,
        particles=points,
        values=values,
        history=history,
        failed_at=failed_at,
        constrained=constrained,
    )


def _check_value(function: Any, point: Position) -> None:
    """Refuse what is no real scalar, before it fails inside a transformation."""
    value = jax.eval_shape(function, point)
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            "minimize: expected the function to give one real number, got "
            f"{jax.tree.map(lambda leaf: (leaf.dtype.name, leaf.shape), value)}."
        )


def _lowered(
    function: Any, points: Position, values: np.ndarray, polish: int, layout: Layout
) -> tuple[Position, np.ndarray, int]:
    """Best points after L-BFGS, with their values, and its evaluations."""
    order = np.argsort(values)[: min(polish, int(np.sum(np.isfinite(values))))]
    minima = _polished(function, jax.tree.map(lambda leaf: leaf[order], points), layout=layout)
    found = np.asarray(minima.value)
    lower = np.isfinite(found) & (found < values[order])
    places, positions = order[lower], layout.unravel(minima.position[lower])
    points = jax.tree.map(lambda leaf, new: leaf.at[places].set(new), points, positions)
    values = values.copy()
    values[places] = found[lower]
    return points, values, int(np.sum(minima.num_evaluations))


def _message(complete: bool, nit: int, num_steps: int, failed_at: np.ndarray) -> str:
    """What happened; said as a warning as well where particles failed."""
    said = "All steps were made." if complete else f"Interrupted after {nit} of {num_steps} steps."
    failed = failed_at[failed_at >= 0]
    if failed.size:
        trouble = (
            f"{failed.size} of {failed_at.size} particles met an objective or gradient that was "
            f"not finite, the first at step {failed.min()}, and stopped there. The best finite "
            "point is kept."
        )
        warnings.warn(
            f"minimize: {trouble} Take a lower learning rate, or a tamed optimizer such as "
            "lp.optim.tusla or lp.optim.theopoula.",
            DivergenceWarning,
            stacklevel=4,
        )
        said = f"{said} {trouble}"
    return said

"""Which estimator of the gradient, and which step size its noise allows."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial, all_leaves

from langevin_ppl.base import Array, GradientEstimator, PRNGKey
from langevin_ppl.devices import to_host
from langevin_ppl.gradients import (
    Centre,
    ControlVariates,
    Exact,
    Minibatch,
    Reader,
    Svrg,
    batch_sizes_of,
    centre_at,
    check_streamed,
    control_variates,
    from_sample,
    is_streamed,
    layout_for,
    minibatch,
    reader_of,
)
from langevin_ppl.kernels import Kernel, split_ghmc, ubu
from langevin_ppl.preconditioners import Preconditioner
from langevin_ppl.tree import Layout
from langevin_ppl.warmup.noise import Noise, RowNoise, measure_estimator, measure_rows, of_batches
from langevin_ppl.warmup.start import DENSE_LIMIT
from langevin_ppl.warmup.traits import parameters_of, traits
from langevin_ppl.warmup.tune import Request

__all__ = [
    "FRICTION",
    "Choice",
    "Mode",
    "choose",
    "heating",
    "kernel_and_gradient",
    "measuring",
    "reader_for",
    "scaled",
    "stiffness",
]

EXCESS = 0.05
"""Share of the temperature that gradient noise may add along its worst direction."""

EXCESS_WITHOUT_MODE = 0.2
"""The same where there is no mode to take the noise off at: less would not move."""

FRICTION = 2.0
"""Friction of kinetic kernels: critical damping in the whitened frame, and the more of it the less
gradient noise heats."""

STEP_SIZE = 0.1
"""Largest step size of a kernel that names none."""

HEAVY_SHARE = 0.2
"""Share of the noise that few rows may make before they are pinned."""

HEAVY_RATIO = 5.0
"""The same in units of their share of the rows."""

PINNED = 256
"""Rows to pin."""

GROWTHS = (1, 2, 4, 8, 16)
"""Multiples of the batch size among which to choose."""

OVERHEAD = 1000
"""What a step costs beside its rows, in rows."""

SLOW = 0.25
"""Share of the largest step size below which the Hessian's term is tried."""


class Mode(NamedTuple):
    """What is known of the mode.

    ``value`` and ``gradient`` are from all the data; ``factor`` is lower triangular or diagonal;
    ``passes`` over the data that finding it took.
    """

    position: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    factor: np.ndarray
    decrement: float
    passes: float


class Choice(NamedTuple):
    """An estimator, its noise, and the step size that it allows.

    ``about_mode`` where it is control variates about the mode.
    """

    source: GradientEstimator
    name: str
    noise: Noise
    step_size: float
    passes_per_step: float
    notes: dict[str, Any]
    about_mode: bool = False


def kernel_and_gradient(kernel: Any, target: Any, gradient: Any) -> tuple[Any, Any]:
    """Kernel and gradient of a run: those given, or what the target asks for.

    Parameters
    ----------
    kernel, gradient
        What the user gave; None to choose.

    Returns
    -------
    kernel, gradient
        The gradient is None where it is exact.

    Raises
    ------
    TypeError
        If the gradient is none of this library's.
    ValueError
        If the kernel needs the log density of all the data, and the gradient reads a part.
    """
    plates = target.plates
    if gradient is None and not plates:
        return split_ghmc if kernel is None else kernel, None
    kernel = ubu if kernel is None and not isinstance(gradient, Exact) else kernel
    kernel = split_ghmc if kernel is None else kernel
    stochastic = isinstance(kernel, Kernel) and (kernel.target_acceptance_rate is None)
    stochastic |= getattr(kernel, "amortised", False)
    looks_at_all = isinstance(gradient, Exact) or getattr(kernel, "exact", True)
    if target.stream is not None and looks_at_all:
        raise ValueError(
            f"{kernel!r} with {gradient or 'all the data'}: the rows of a stream are not in memory "
            "to look at all of them. Use an unadjusted kernel (langevin_ppl.ubu, "
            "langevin_ppl.sgld) with langevin_ppl.control_variates or langevin_ppl.minibatch."
        )
    if gradient is None:
        if not stochastic:
            ((name, plate), *_) = plates.items()
            raise ValueError(
                f"The plate '{name}' is subsampled ({plate.batch_size} of {plate.size} rows), and "
                f"{traits(kernel).name} needs the log density of all the data. Pass "
                "gradient=langevin_ppl.exact() to use them all in every step, leave out "
                "subsample_size, or use a kernel without a Metropolis test (langevin_ppl.ubu)."
            )
        if kernel.exact:
            return kernel, minibatch()
        return kernel, dataclasses.replace(control_variates(), fallback=True)
    if isinstance(gradient, Exact):
        return kernel, None
    if not (callable(gradient) or isinstance(gradient, GradientEstimator)):
        raise TypeError(
            "gradient: expected langevin_ppl.minibatch(...), control_variates(...), svrg(...) or "
            f"exact(), got {gradient!r}."
        )
    if not stochastic:
        raise ValueError(
            f"gradient: {traits(kernel).name} needs the log density of all the data, and a "
            "gradient from a part of them has none. Use a kernel without a Metropolis test "
            "(langevin_ppl.ubu, langevin_ppl.sgld), or gradient=langevin_ppl.exact()."
        )
    return kernel, gradient


def reader_for(spec: Any, target: Any) -> Reader:
    """Rows to look for the mode on, and to measure the noise of; none for a user's estimator."""
    if isinstance(spec, ControlVariates):
        layout_for(target, spec.sampling)  # refuses before a search, and not after it
        sizes = batch_sizes_of("control_variates", target, spec.batch_size)
        return reader_of(target, sizes, "blocks", spec.seed)
    return spec.reader(target) if isinstance(spec, Minibatch | Svrg) else {}


def measuring(spec: Any, reader: Reader, layout: Layout) -> dict[str, Any] | None:
    """Static arguments of `measure_rows`; None where the noise of rows is not looked at."""
    open_variates = isinstance(spec, ControlVariates) and spec.centre is None
    if (
        is_streamed(reader)
        or not open_variates
        or len(reader) != 1
        or layout.dimension > DENSE_LIMIT
    ):
        return None
    ((name, only),) = reader.items()
    number = spec.pinned if isinstance(spec.pinned, int) and spec.pinned else PINNED
    return {
        "name": name,
        "layout": layout,
        "order": spec.order or 1,
        "num_heavy": min(number, only.plan.size // 4),
    }


def heating(kernel: Any, given: Mapping[str, Any]) -> float:
    """Share of the temperature that unit noise adds for each unit of the step size."""
    if "friction" not in parameters_of(kernel):
        return 0.5
    return 0.5 / float(given.get("friction", FRICTION))


def stiffness(kernel: Any, turn: np.ndarray | None) -> float:
    """Half of the inverse of the largest stable step size, up to a factor of order one, in a frame.

    Parameters
    ----------
    turn
        The frame as seen from that of the curvature; None for that one itself.
    """
    if turn is None:
        return 1.0
    stretch = float(np.linalg.norm(turn, 2))
    return stretch if "friction" in parameters_of(kernel) else stretch**2


def _allowed(request: Request, noise: Noise, mode: Mode | None, turn: np.ndarray | None) -> float:
    """Largest step size at which the noise adds no more than is allowed."""
    most = (request.kernel.max_step_size or STEP_SIZE) / stiffness(request.kernel, turn)
    excess = EXCESS if mode is not None else EXCESS_WITHOUT_MODE
    gain = heating(request.kernel, request.given) * noise.largest
    return min(most, excess / gain) if gain > 0 else most


def choose(
    rng_key: PRNGKey,
    request: Request,
    spec: Any,
    reader: Reader,
    mode: Mode | None,
    frame: Preconditioner,
    positions: Array,
    turn: np.ndarray | None = None,
) -> Choice:
    """Make the estimator, choosing what the user has left open.

    Parameters
    ----------
    frame
        Frame in which the kernel moves.
    turn
        The same as seen from the curvature at the mode; None where it is that of the curvature.
    """
    target, layout = request.target, request.layout
    if isinstance(spec, ControlVariates) and spec.centre is None and mode is not None:
        if measuring(spec, reader, layout) is not None:
            return _best_variates(rng_key, request, spec, reader, mode, turn)
        if is_streamed(reader):
            check_streamed(spec)
        spec = _plain_variates(spec, target)
        centre = _centre(target, reader, layout, mode, spec.order)
        source = spec.about(target, reader, centre)
    elif isinstance(spec, GradientEstimator):
        source = _crossing(spec)
    elif isinstance(spec, Minibatch | Svrg):
        source = spec(target, reader)
    else:
        source = _crossing(spec(target))
    if mode is None:
        starts = ends = positions
    else:
        shape = (2, 4, layout.dimension)
        normals = jax.random.normal(rng_key, shape, positions.dtype)
        starts, ends = mode.position + scaled(normals, jnp.asarray(mode.factor))
    in_memory = from_sample(source, reader)
    noise = measure_estimator(rng_key, in_memory, starts, ends, frame.factor, layout)
    passes = request.kernel.gradients_per_step * _rows_per_step(spec, reader)
    about_mode = isinstance(spec, ControlVariates) and spec.centre is None
    step_size = _allowed(request, noise, mode, turn)
    return Choice(source, str(spec), noise, step_size, passes, {}, about_mode)


def _crossing(estimator: GradientEstimator) -> GradientEstimator:
    """Make an estimator of plain functions one that may cross ``jit``."""
    functions = {name: getattr(estimator, name) for name in ("init", "draw", "estimate")}
    plain = {
        name: Partial(fn) for name, fn in functions.items() if fn is not None and all_leaves([fn])
    }
    return dataclasses.replace(estimator, **plain) if plain else estimator


def _centre(target: Any, reader: Reader, layout: Layout, mode: Mode, order: int | None) -> Centre:
    """The mode as a centre, with the gradient of all the data there."""
    position, gradient = (layout.unravel(jnp.asarray(x)) for x in (mode.position, mode.gradient))
    if order == 2:
        return centre_at(target.batch_logdensity_fn, reader, position, True)
    return Centre(position, jnp.asarray(mode.value), gradient, None)


def scaled(normals: Any, factor: Any) -> Any:
    """``L z`` of the last axis, for a matrix or a diagonal ``L``."""
    return normals @ factor.T if factor.ndim == 2 else normals * factor


def _plain_variates(spec: ControlVariates, target: Any) -> ControlVariates:
    """Control variates with nothing left open: several plates, or many dimensions."""
    sizes = batch_sizes_of("control_variates", target, spec.batch_size)
    if spec.sampling == "importance" or spec.pinned:
        raise ValueError(
            "control_variates: rows are pinned, or drawn by importance, for one subsampled plate "
            f"and at most {DENSE_LIMIT} dimensions; leave pinned and sampling out."
        )
    return ControlVariates(
        sizes, spec.centre, spec.order or 1, 0, spec.sampling, spec.shared, spec.seed
    )


def _rows_per_step(spec: Any, reader: Reader) -> float:
    """Gradients of rows in a step, as a share of all rows."""
    number = sum(each.plan.number / each.plan.size for each in reader.values())
    renewals = 1.0 / spec.every if isinstance(spec, Svrg) else 0.0
    return (2.0 if isinstance(spec, ControlVariates | Svrg) else 1.0) * number + renewals


class _Option(NamedTuple):
    """Control variates that might be chosen, the noise and the cost of a unit of time."""

    order: int
    batch_size: int
    pinned: int
    noise: Noise
    step_size: float
    cost: float


def _best_variates(
    rng_key: PRNGKey,
    request: Request,
    spec: ControlVariates,
    reader: Reader,
    mode: Mode,
    turn: np.ndarray | None,
) -> Choice:
    """Control variates about the mode: batch size, pinned rows and order by the noise.

    Those whose step costs least for each unit of time that it advances.
    """
    target, layout = request.target, request.layout
    ((name, only),) = reader.items()
    size = only.plan.size
    on_rows = target.batch_logdensity_fn
    centre, factor = jnp.asarray(mode.position), jnp.asarray(mode.factor)
    base = only.plan.number
    sizes = [base] if spec.batch_size is not None else [base * g for g in GROWTHS]
    # Blocks of more than a tenth of the rows overlap so much that their noise is no longer that of
    # rows drawn at random.
    sizes = [b for b in sizes if b <= max(base, size // 10)]
    static = measuring(spec, reader, layout)
    assert static is not None
    number = static["num_heavy"]

    def measured(order: int) -> RowNoise:
        options = {**static, "order": order}
        return to_host(measure_rows(rng_key, on_rows, only, centre, factor, **options))

    def options(order: int, found: RowNoise) -> list[_Option]:
        scores = np.asarray(found.scores, np.float64)
        # That a twentieth of the rows makes a fifth of the noise is nothing out of the ordinary.
        usual = max(HEAVY_SHARE, HEAVY_RATIO * number / size)
        heavy = scores[found.heavy].sum() > usual * scores.sum()
        pins = [number] if (heavy and number) else [0]
        if spec.pinned is not None or spec.sampling not in ("blocks", "epochs"):
            pins = [number if spec.pinned else 0]
        listed = []
        for batch_size in sizes:
            for pinned in pins:
                number_free = min(batch_size, size - pinned)
                noise = of_batches(found, size, number_free, pinned, turn)
                step_size = _allowed(request, noise, mode, turn)
                cost = ((order + 1) * (batch_size + pinned) + OVERHEAD) / step_size
                listed.append(_Option(order, batch_size, pinned, noise, step_size, cost))
        return listed

    by_order = {spec.order or 1: measured(spec.order or 1)}
    listed = [o for order, found in by_order.items() for o in options(order, found)]
    most = request.kernel.max_step_size or STEP_SIZE
    if spec.order is None and min(listed, key=_cost).step_size < SLOW * most:
        by_order[2] = measured(2)
        listed += options(2, by_order[2])
    best = min(listed, key=_cost)
    found = by_order[best.order]
    chosen = ControlVariates(
        best.batch_size,
        None,
        best.order,
        best.pinned,
        spec.sampling,
        spec.shared,
        spec.seed,
    )
    final = _final_reader(target, chosen, name, only, found)
    at_mode = _centre(target, final, layout, mode, best.order)
    source = chosen.about(target, final, at_mode)
    noise, step_size = best.noise, best.step_size
    if spec.sampling == "importance":
        normals = jax.random.normal(rng_key, (2, 4, layout.dimension), centre.dtype)
        starts, ends = centre + scaled(normals, factor)
        outer = factor if turn is None else factor @ turn
        noise = measure_estimator(rng_key, source, starts, ends, outer, layout)
        step_size = _allowed(request, noise, mode, turn)
    scores = np.asarray(found.scores, np.float64)
    notes = {
        "heavy_rows_share": float(scores[found.heavy].sum() / max(scores.sum(), 1e-300)),
        "num_pinned_rows": best.pinned,
        "batch_size": best.batch_size,
    }
    cost = (best.order + 1) * (best.batch_size + best.pinned) / size
    rows_per_step = request.kernel.gradients_per_step * cost
    return Choice(source, str(chosen), noise, step_size, rows_per_step, notes, about_mode=True)


def _cost(option: _Option) -> float:
    return option.cost


def _final_reader(
    target: Any, chosen: ControlVariates, name: str, reader: Any, found: RowNoise
) -> Reader:
    """Rows in the order, or with the probabilities, that were chosen."""
    sizes = {name: chosen.batch_size}
    if chosen.sampling == "importance":
        # A tenth of the draws is uniform, so that no weight is large.
        lengths = np.sqrt(np.asarray(found.scores, np.float64))
        probabilities = np.empty(len(lengths))
        places = reader.numbers(np.arange(len(lengths)))
        probabilities[places] = 0.9 * lengths / lengths.sum() + 0.1 / len(lengths)
        weights = {name: jnp.asarray(probabilities, jnp.result_type(float))}
        return reader_of(target, sizes, "importance", chosen.seed, None, weights)
    pinned = {name: reader.numbers(np.asarray(found.heavy))} if chosen.pinned else None
    unchanged = pinned is None and chosen.batch_size == reader.plan.number
    if unchanged and chosen.sampling == reader.plan.sampling:
        return {name: reader}
    return reader_of(target, sizes, chosen.sampling, chosen.seed, pinned)

"""Tuning without an acceptance rate: kernels whose gradient comes from a part of the data.

The mode first, then the frame of the curvature there, then the step size: as large as the noise of
the gradient, measured in that frame, allows. Its covariance ``S`` heats the slowest thermometer by
``h S / 2`` (overdamped) or ``h S / (2 friction)`` (kinetic) of the temperature.
"""

import functools
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial

from langevin_ppl import run
from langevin_ppl.base import Array, GradientEstimator, PRNGKey
from langevin_ppl.compilation import ONCE
from langevin_ppl.gradients import (
    ControlVariates,
    Minibatch,
    Reader,
    Svrg,
    batch_sizes_of,
    centre_at,
    minibatch,
    reader_of,
    whole_mean,
)
from langevin_ppl.preconditioners import Preconditioner, preconditioner
from langevin_ppl.targets.leaves import Static
from langevin_ppl.tree import Layout
from langevin_ppl.warmup.begin import find
from langevin_ppl.warmup.centre import (
    MAX_DECREMENT,
    Settled,
    on_some_rows,
    settle_on_all,
    some_rows,
)
from langevin_ppl.warmup.noise import Noise, RowNoise, measure_estimator, measure_rows, of_batches
from langevin_ppl.warmup.report import why_no_mode
from langevin_ppl.warmup.start import DENSE_LIMIT
from langevin_ppl.warmup.traits import parameters_of
from langevin_ppl.warmup.tune import Request, Tuned, check_valid, finding

__all__ = ["by_noise"]

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

PINNED = 256
"""Rows to pin."""

GROWTHS = (1, 2, 4, 8, 16)
"""Multiples of the batch size among which to choose."""

OVERHEAD = 1000
"""What a step costs beside its rows, in rows."""

SLOW = 0.25
"""Share of the largest step size below which the Hessian's term is tried."""

LAPLACE_DRAWS = 256
LAPLACE_ROWS = 10**8
"""Draws to weigh the Gaussian at the mode by, and the most rows that this may look at."""

PRODUCTS = 20
"""Power iterations for the largest curvature."""


_EMPTY = inspect.Parameter.empty


class _Mode(NamedTuple):
    """What is known of the mode.

    ``factor`` is lower triangular or diagonal; ``passes`` over the data that finding it took.
    """

    position: np.ndarray
    factor: np.ndarray
    decrement: float
    passes: float


class _Choice(NamedTuple):
    """An estimator, its noise, and the step size that it allows."""

    source: GradientEstimator
    name: str
    noise: Noise
    step_size: float
    passes_per_step: float
    notes: dict[str, Any]


def by_noise(start_keys: PRNGKey, keys: PRNGKey, request: Request) -> Tuned:
    """Find the mode, choose frame, estimator and step size, and burn in.

    Parameters
    ----------
    start_keys, keys
        One for each chain: for starting positions, and for warm-up steps.
    request
        With a gradient estimator.

    Raises
    ------
    ValueError
        If no starting position has a finite log density, control variates find no mode, or a
        given step size is above the stability bound.
    TypeError
        If a parameter is missing that is not tuned.
    """
    kernel, layout, target = request.kernel, request.layout, request.target
    spec = request.gradient
    reader = _reader_of(spec, target)
    plan = run.Plan(Static(kernel), layout, capacity=request.capacity)
    needs_centre = isinstance(spec, ControlVariates) and spec.centre is None
    tunes = _tuned(request)
    positions, mode, notes, doubts = _start(
        start_keys, request, plan, reader, search=request.num_warmup > 0 or needs_centre
    )
    if mode is None and needs_centre:
        if not spec.fallback:
            raise ValueError(
                f"control_variates: no mode to centre them at. {notes['mode_search']} Use "
                "langevin_ppl.svrg or langevin_ppl.minibatch, or pass centre=."
            )
        spec = minibatch(spec.batch_size, seed=spec.seed)
        notes["gradient_choice"] = "no mode to centre control variates at: plain batches"
    key = jax.random.fold_in(start_keys[0], 3)
    frame = _frame(key, request, mode, positions, reader, tunes)
    choice = _choose(key, request, spec, reader, mode, frame, positions)
    given = dict(request.given)
    if "step_size" in given:
        _check_stable(kernel, given, mode)
    if "step_size" in tunes:
        given["step_size"] = choice.step_size
        notes["step_size_rule"] = _rule(kernel, given, choice, mode)
    if "inverse_mass_matrix" in tunes:
        given["inverse_mass_matrix"] = frame
    if "friction" in tunes:
        given["friction"] = FRICTION
    if "location" in parameters_of(kernel) and mode is not None:
        given.setdefault("location", mode.position)
    parameters = kernel.prepare(given)
    states = _states(start_keys, choice.source, positions, parameters, plan=plan)
    probe = _probe(choice.noise, parameters, mode, positions)
    warmup = None
    chains = run.Chains(states)
    if request.num_warmup > 0:
        warmup = run.advance(
            keys,
            choice.source,
            chains,
            parameters,
            plan,
            num_steps=request.num_warmup,
            probe=probe,
            progress=request.progress,
            label="warm-up",
        )
        if not warmup.complete:
            raise KeyboardInterrupt("interrupted during warm-up: there is no draw to return")
        chains = warmup.final_state
    return Tuned(
        plan=plan,
        states=chains.states,
        parameters=parameters,
        warmup=warmup if request.keep_warmup else None,
        num_gradient_evaluations=len(keys) * (request.num_warmup * kernel.gradients_per_step + 1),
        notes=notes | choice.notes,
        doubts=doubts,
        source=choice.source,
        probe=probe,
        estimator=choice.name,
        passes=0.0 if mode is None else mode.passes,
        passes_per_step=choice.passes_per_step,
        log_weights=_laplace(key, request, reader, mode),
    )


def _reader_of(spec: Any, target: Any) -> Reader:
    """Rows to look for the mode on, and to measure the noise of; none for a user's estimator."""
    if isinstance(spec, ControlVariates):
        sizes = batch_sizes_of("control_variates", target, spec.batch_size)
        return reader_of(target, sizes, "blocks", spec.seed)
    return spec.reader(target) if isinstance(spec, Minibatch | Svrg) else {}


def _tuned(request: Request) -> frozenset[str]:
    """Names of the parameters that the noise determines.

    Raises
    ------
    TypeError
        If a parameter is missing that nothing determines.
    """
    known = parameters_of(request.kernel)
    names = {"step_size", "inverse_mass_matrix", "friction"} & set(known)
    # A step size has a meaning only in a frame, so that who gives one gives both.
    fixed = "step_size" in request.given or request.num_warmup == 0
    tunes = set() if fixed or "inverse_mass_matrix" not in known else names - set(request.given)
    missing = {name for name, value in known.items() if value is _EMPTY}
    missing -= set(request.given) | tunes
    if missing:
        raise TypeError(
            f"{request.kernel!r} needs {', '.join(sorted(missing))}: pass it as a keyword. With "
            "num_warmup > 0, step_size is chosen by the gradient noise for kernels that have an "
            "inverse_mass_matrix."
        )
    return frozenset(tunes)


def _start(
    start_keys: PRNGKey, request: Request, plan: run.Plan, reader: Reader, *, search: bool
) -> tuple[Array, _Mode | None, dict[str, Any], tuple[str, ...]]:
    """Where chains start, the mode if there is one, and what to say of it."""
    target, layout = request.target, request.layout
    rows = some_rows(reader, layout.dimension)
    density = target.logdensity_fn
    if rows:
        density = Partial(on_some_rows, target.batch_logdensity_fn, rows)
    data, options = finding(request, plan, search=search)
    found = find(start_keys, density, data, **{**options, "search": search})
    check_valid(request, found)
    if found.search is None:
        return found.positions, None, {}, ()
    seen = jax.device_get(found.search)
    notes: dict[str, Any] = {"num_chains_at_best_mode": int(seen.found.sum())}
    ended = seen.converged & np.isfinite(seen.ended)
    elsewhere = jnp.where(ended[:, None], seen.ends, found.positions)
    if not seen.found.any():
        notes["mode_search"] = why_no_mode(seen)
        return elsewhere, None, notes, ()
    on_rows = target.batch_logdensity_fn if reader else _as_rows(target)
    best, frame = jnp.asarray(seen.ends[seen.best]), jnp.asarray(seen.frame)
    settled = jax.device_get(settle_on_all(on_rows, reader, best, frame, layout=layout))
    if not np.isfinite(settled.value):
        raise ValueError(target.explain(layout.unravel(settled.position)))
    if not (settled.curved and settled.decrement <= MAX_DECREMENT):
        notes["mode_search"] = (
            "A mode on some of the rows is none on all of them: the search ended "
            f"{np.sqrt(settled.decrement):.3g} standard deviations away from one."
        )
        return elsewhere, None, notes, ()
    notes["mode_search"], doubts = "all chains ended at one mode", ()
    if not seen.found.all():
        apart = np.flatnonzero(~seen.found).tolist()
        notes["mode_search"] = f"chains {apart} ended elsewhere, and start at the best mode"
        if ended[apart].any():
            doubts = (
                f"The searches of chains {apart} ended elsewhere than at the best mode, about "
                "which all chains start: there may be other modes, which they do not see.",
            )
    share = sum(r.indices.shape[0] / r.size for r in rows.values()) or 1.0
    passes = float(seen.num_evaluations) * share + float(settled.num_evaluations)
    mode = _Mode(settled.position, _triangular(settled), float(settled.decrement), passes)
    if request.initial is not None:
        return found.positions, mode, notes, doubts
    noise = jax.random.normal(
        jax.random.fold_in(start_keys[0], 1), found.positions.shape, found.positions.dtype
    )
    spread = noise @ mode.factor.T if mode.factor.ndim == 2 else noise * mode.factor
    return jnp.asarray(mode.position) + spread, mode, notes, doubts


def _as_rows(target: Any) -> Any:
    """Density of a target without plates, as one of rows."""
    return getattr(target, "batch_logdensity_fn", None) or Partial(_whole, target.logdensity_fn)


def _whole(logdensity_fn: Any, rows: Any, position: Any) -> Array:
    return logdensity_fn(position)


def _triangular(settled: Settled) -> np.ndarray:
    """Lower triangular factor, with a positive diagonal, of the same matrix."""
    factor = np.asarray(settled.factor)
    if factor.ndim < 2:
        return factor
    lower = np.linalg.qr(factor.T.astype(np.float64), mode="r").T
    return (lower * np.sign(np.diagonal(lower))).astype(factor.dtype)


def _frame(
    rng_key: PRNGKey,
    request: Request,
    mode: _Mode | None,
    positions: Array,
    reader: Reader,
    tunes: frozenset[str],
) -> Preconditioner:
    """Frame in which the kernel moves: that of the curvature at the mode, if it is to be tuned."""
    if "inverse_mass_matrix" not in tunes:
        given = request.given.get("inverse_mass_matrix", 1.0)
        return preconditioner(given, request.layout.dimension)
    if mode is not None:
        return Preconditioner(jnp.asarray(mode.factor))
    on_rows = request.target.batch_logdensity_fn if reader else _as_rows(request.target)
    largest = _largest_curvature(rng_key, on_rows, reader, positions, layout=request.layout)
    return Preconditioner(jnp.asarray(1.0 / np.sqrt(float(largest)), positions.dtype))


@functools.partial(jax.jit, static_argnames="layout")
def _largest_curvature(
    rng_key: PRNGKey, on_rows: Any, reader: Reader, positions: Array, *, layout: Layout
) -> Array:
    """Largest size of an eigenvalue of the Hessian at any of the positions, by power iteration."""
    rows = some_rows(reader, layout.dimension)

    def at(position: Array) -> Array:
        _, tangent = jax.linearize(jax.grad(lambda x: on_rows(rows, layout.unravel(x))), position)

        def again(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            turned = tangent(carry[0])
            length = jnp.linalg.norm(turned)
            return turned / length, length

        way = jax.random.normal(rng_key, position.shape, position.dtype)
        return jax.lax.fori_loop(0, PRODUCTS, again, (way, jnp.zeros((), position.dtype)))[1]

    return jnp.max(jax.lax.map(at, positions))


def _heating(kernel: Any, given: Mapping[str, Any]) -> float:
    """Share of the temperature that unit noise adds for each unit of the step size."""
    if "friction" not in parameters_of(kernel):
        return 0.5
    return 0.5 / float(given.get("friction", FRICTION))


def _allowed(request: Request, noise: Noise, mode: _Mode | None) -> float:
    """Largest step size at which the noise adds no more than is allowed."""
    most = request.kernel.max_step_size or STEP_SIZE
    excess = EXCESS if mode is not None else EXCESS_WITHOUT_MODE
    gain = _heating(request.kernel, request.given) * noise.largest
    return min(most, excess / gain) if gain > 0 else most


def _choose(
    rng_key: PRNGKey,
    request: Request,
    spec: Any,
    reader: Reader,
    mode: _Mode | None,
    frame: Preconditioner,
    positions: Array,
) -> _Choice:
    """Make the estimator, choosing what the user has left open."""
    target, layout = request.target, request.layout
    simple = len(reader) == 1 and layout.dimension <= DENSE_LIMIT
    if isinstance(spec, ControlVariates) and spec.centre is None and mode is not None:
        if simple:
            return _best_variates(rng_key, request, spec, reader, mode)
        spec = _plain_variates(spec, target)
        centre = centre_at(
            target.batch_logdensity_fn,
            reader,
            layout.unravel(jnp.asarray(mode.position)),
            spec.order == 2,
        )
        source = spec.about(target, reader, centre)
    elif isinstance(spec, GradientEstimator):
        source = spec
    elif isinstance(spec, Minibatch | Svrg):
        source = spec(target, reader)
    else:
        source = spec(target)
    if mode is None:
        starts = ends = positions
    else:
        shape = (2, 4, layout.dimension)
        normals = jax.random.normal(rng_key, shape, positions.dtype)
        starts, ends = mode.position + _scaled(normals, jnp.asarray(mode.factor))
    noise = measure_estimator(rng_key, source, starts, ends, frame.factor, layout)
    passes = request.kernel.gradients_per_step * _rows_per_step(spec, reader)
    return _Choice(source, str(spec), noise, _allowed(request, noise, mode), passes, {})


def _scaled(normals: Array, factor: Array) -> Array:
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
    return (2.0 if isinstance(spec, ControlVariates | Svrg) else 1.0) * number


class _Option(NamedTuple):
    """Control variates that might be chosen, the noise and the cost of a unit of time."""

    order: int
    batch_size: int
    pinned: int
    noise: Noise
    step_size: float
    cost: float


def _best_variates(
    rng_key: PRNGKey, request: Request, spec: ControlVariates, reader: Reader, mode: _Mode
) -> _Choice:
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
    sizes = [b for b in sizes if b <= max(base, size // 2)]
    number = spec.pinned if isinstance(spec.pinned, int) and spec.pinned else PINNED
    number = min(number, size // 4)

    def measured(order: int) -> RowNoise:
        return jax.device_get(
            measure_rows(
                rng_key,
                on_rows,
                only,
                centre,
                factor,
                name=name,
                layout=layout,
                order=order,
                num_heavy=number,
            )
        )

    def options(order: int, found: RowNoise) -> list[_Option]:
        scores = np.asarray(found.scores, np.float64)
        heavy = scores[found.heavy].sum() > HEAVY_SHARE * scores.sum()
        pins = [number] if (heavy and number) else [0]
        if spec.pinned is not None or spec.sampling not in ("blocks", "epochs"):
            pins = [number if spec.pinned else 0]
        listed = []
        for batch_size in sizes:
            for pinned in pins:
                noise = of_batches(found, size, min(batch_size, size - pinned), pinned)
                step_size = _allowed(request, noise, mode)
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
    at_mode = centre_at(on_rows, final, layout.unravel(centre), best.order == 2)
    source = chosen.about(target, final, at_mode)
    noise, step_size = best.noise, best.step_size
    if spec.sampling == "importance":
        normals = jax.random.normal(rng_key, (2, 4, layout.dimension), centre.dtype)
        starts, ends = centre + _scaled(normals, factor)
        noise = measure_estimator(rng_key, source, starts, ends, factor, layout)
        step_size = _allowed(request, noise, mode)
    scores = np.asarray(found.scores, np.float64)
    notes = {
        "heavy_rows_share": float(scores[found.heavy].sum() / max(scores.sum(), 1e-300)),
        "num_pinned_rows": best.pinned,
        "batch_size": best.batch_size,
    }
    cost = (best.order + 1) * (best.batch_size + best.pinned) / size
    rows_per_step = request.kernel.gradients_per_step * cost
    return _Choice(source, str(chosen), noise, step_size, rows_per_step, notes)


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


def _rule(kernel: Any, given: Mapping[str, Any], choice: _Choice, mode: _Mode | None) -> str:
    """Say how the step size was chosen, and what it does to the temperature."""
    excess = _heating(kernel, given) * choice.noise.largest * choice.step_size
    where = (
        "whitened by the curvature at the mode" if mode is not None else "scaled by the largest "
    )
    where += "" if mode is not None else "local curvature"
    return (
        f"gradient noise of at most {choice.noise.largest:.3g} {where}: predicted to raise the "
        f"temperature by {100 * excess:.2g} % along its worst direction"
    )


def _check_stable(kernel: Any, given: Mapping[str, Any], mode: _Mode | None) -> None:
    """Refuse a step size at which the Gaussian at the mode would be unstable.

    Raises
    ------
    ValueError
        With the bound.
    """
    if mode is None or isinstance(given["step_size"], Tracer):
        return
    frame = preconditioner(given.get("inverse_mass_matrix", 1.0), len(mode.position))
    if frame.directions is not None:
        return
    scale = np.asarray(frame.factor, np.float64)
    inner = np.asarray(mode.factor, np.float64)
    inner = np.diag(inner) if inner.ndim < 2 else inner
    outer = scale if scale.ndim == 2 else np.diag(np.broadcast_to(scale, len(inner)))
    stiffness = np.linalg.svd(np.linalg.solve(inner, outer), compute_uv=False)[0] ** 2
    kinetic = "friction" in parameters_of(kernel)
    bound = 2.0 / np.sqrt(stiffness) if kinetic else 2.0 / stiffness
    if float(given["step_size"]) >= bound:
        raise ValueError(
            f"step_size: {kernel!r} is stable below {bound:.3g} where the curvature is that at "
            f"the mode, got {float(given['step_size']):.3g}. Leave step_size out to have it "
            "chosen, or pass an inverse_mass_matrix."
        )


@functools.partial(jax.jit, static_argnames="plan", compiler_options=ONCE)
def _states(
    keys: PRNGKey,
    source: GradientEstimator,
    positions: Array,
    parameters: dict[str, Any],
    *,
    plan: run.Plan,
) -> Any:
    def init(position: Array, key: PRNGKey) -> Any:
        return plan.build(source, parameters).init(position, jax.random.fold_in(key, 2))

    return jax.vmap(init)(positions, keys)


def _probe(
    noise: Noise, parameters: Mapping[str, Any], mode: _Mode | None, positions: Array
) -> run.Probe:
    """Thermometer along the direction of the largest noise."""
    dtype, d = positions.dtype, positions.shape[1]
    frame = preconditioner(parameters.get("inverse_mass_matrix", 1.0), d)
    direction = jnp.asarray(noise.direction, dtype)
    factor = frame.factor
    if factor.ndim == 2:
        left = jax.scipy.linalg.solve_triangular(factor, direction, lower=True, trans=1)
        right = factor @ direction
    else:
        left, right = direction / factor, direction * factor
    centre = jnp.mean(positions, axis=0) if mode is None else jnp.asarray(mode.position)
    return run.Probe(direction, left, right, centre)


def _laplace(
    rng_key: PRNGKey, request: Request, reader: Reader, mode: _Mode | None
) -> np.ndarray | None:
    """Log weights of draws of the Gaussian at the mode, where looking at them is cheap."""
    size = max((each.plan.size for each in reader.values()), default=0)
    if mode is None or mode.factor.ndim < 2 or size * LAPLACE_DRAWS > LAPLACE_ROWS:
        return None
    weights = _log_weights(
        rng_key,
        request.target.batch_logdensity_fn if reader else _as_rows(request.target),
        reader,
        jnp.asarray(mode.position),
        jnp.asarray(mode.factor),
        layout=request.layout,
    )
    return np.asarray(weights, np.float64)


@functools.partial(jax.jit, static_argnames="layout")
def _log_weights(
    rng_key: PRNGKey,
    on_rows: Any,
    reader: Reader,
    mode: Array,
    factor: Array,
    *,
    layout: Layout,
) -> Array:
    noise = jax.random.normal(rng_key, (LAPLACE_DRAWS, mode.size), mode.dtype)
    positions = mode + noise @ factor.T

    def of_rows(rows: Any) -> Array:
        return jax.vmap(lambda x: on_rows(rows, layout.unravel(x)))(positions)

    return whole_mean(reader, of_rows) + 0.5 * jnp.sum(noise**2, axis=1)

"""Tuning without an acceptance rate: kernels whose gradient comes from a part of the data.

The mode first, then the frame of the curvature there, then the step size: as large as the noise of
the gradient, measured in that frame, allows. Its covariance ``S`` heats the slowest thermometer by
``h S / 2`` (overdamped) or ``h S / (2 friction)`` (kinetic) of the temperature.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial

from langevin_ppl import run
from langevin_ppl.base import Array, GradientEstimator, PRNGKey, percent
from langevin_ppl.compilation import ONCE, QUICK, ahead
from langevin_ppl.devices import CHAIN, place, to_host
from langevin_ppl.gradients import (
    ControlVariates,
    Reader,
    is_streamed,
    minibatch,
    whole_mean,
)
from langevin_ppl.preconditioners import Preconditioner, preconditioner
from langevin_ppl.supply import Supply, draws_per_step
from langevin_ppl.targets.leaves import Static
from langevin_ppl.tree import Layout
from langevin_ppl.warmup.begin import find
from langevin_ppl.warmup.centre import (
    MAX_DECREMENT,
    Settled,
    on_some_rows,
    settle_on_all,
    settle_on_stream,
    some_rows,
)
from langevin_ppl.warmup.choose import (
    FRICTION,
    Choice,
    Mode,
    choose,
    heating,
    measuring,
    reader_for,
    scaled,
    stiffness,
)
from langevin_ppl.warmup.ends import End, Ends
from langevin_ppl.warmup.noise import Noise, measure_rows
from langevin_ppl.warmup.report import describe_ends, why_no_mode
from langevin_ppl.warmup.start import DENSE_LIMIT
from langevin_ppl.warmup.traits import parameters_of
from langevin_ppl.warmup.tune import Request, Tuned, check_valid, finding

__all__ = ["Ready", "begun", "by_noise", "set_by_noise"]

LAPLACE_DRAWS = (256, 1024)
LAPLACE_ROWS = 10**8
"""Fewest and most draws to weigh the Gaussian at the mode by, and the most rows that this may look
at."""

ELSEWHERE = 5.0
"""Distance of a search's end from the best mode, in standard deviations for each dimension, from
which it is another mode; L-BFGS in float32 may come to rest short of that."""

PRODUCTS = 20
"""Power iterations for the largest curvature."""

MAX_THINNING = 10
"""Most steps for a draw, unless it is said otherwise."""


_EMPTY = inspect.Parameter.empty


class Ready(NamedTuple):
    """A kernel with a stochastic gradient, before its first step.

    Attributes
    ----------
    plan, parameters, probe, notes, doubts, ends
        As in `Tuned`.
    choice
        Estimator and step size.
    positions
        Where chains start, ``[chain, dimension]``.
    mode
        The mode, or None.
    thinning
        Steps for each draw.
    """

    plan: run.Plan
    parameters: dict[str, Any]
    probe: run.Probe
    notes: dict[str, Any]
    doubts: tuple[str, ...]
    ends: Ends
    choice: Choice
    positions: Array
    mode: Mode | None
    thinning: int


def set_by_noise(start_keys: PRNGKey, request: Request, reader: Reader) -> Ready:
    """Find the mode, and choose frame, estimator and step size.

    Parameters
    ----------
    start_keys
        One for each chain.
    request
        With a gradient estimator.
    reader
        Of `reader_for`.

    Raises
    ------
    ValueError
        If no starting position has a finite log density, control variates find no mode, or a
        given step size is above the stability bound.
    TypeError
        If a parameter is missing that is not tuned.
    """
    kernel, layout, spec = request.kernel, request.layout, request.gradient
    plan = run.Plan(Static(kernel), layout, capacity=request.capacity)
    needs_centre = isinstance(spec, ControlVariates) and spec.centre is None
    tunes = _tuned(request)
    search = request.num_warmup > 0 or needs_centre
    begin = _start(start_keys, request, plan, reader, search=search)
    positions, mode, notes, doubts, ends = begin
    if mode is None and needs_centre:
        if not spec.fallback:
            raise ValueError(
                f"control_variates: no mode to centre them at ({notes['mode_search']}) Use "
                "langevin_ppl.svrg or langevin_ppl.minibatch, or pass centre=."
            )
        spec = minibatch(spec.batch_size, seed=spec.seed)
        notes["gradient_choice"] = "no mode to centre control variates at: plain batches"
    key = jax.random.fold_in(start_keys[0], 3)
    given = dict(request.given)
    frame = _frame(key, request, mode, positions, reader, tunes)
    turn = _turn(frame, mode) if "inverse_mass_matrix" not in tunes else None
    if "step_size" in given:
        _check_stable(kernel, given["step_size"], turn)
    choice = choose(key, request, spec, reader, mode, frame, positions, turn)
    if "step_size" in tunes:
        given["step_size"] = choice.step_size
        notes["step_size_rule"] = _rule(kernel, given, choice, mode)
    if "inverse_mass_matrix" in tunes:
        given["inverse_mass_matrix"] = frame
    if "friction" in tunes:
        given["friction"] = FRICTION
    if "location" in parameters_of(kernel) and mode is not None:
        given.setdefault("location", mode.position)
    thinning = request.thinning
    if thinning is None:
        # A unit of time, in which a draw moves by about a standard deviation.
        chosen = "step_size" in tunes
        thinning = min(MAX_THINNING, math.ceil(1.0 / choice.step_size)) if chosen else 1
    parameters = kernel.prepare(given)
    probe = _probe(choice.noise, frame, mode, positions)
    notes["adaptation"] = "gradient noise" if tunes else "none"
    notes |= choice.notes
    positions = place(positions, request.mesh, CHAIN)
    return Ready(plan, parameters, probe, notes, doubts, ends, choice, positions, mode, thinning)


def by_noise(start_keys: PRNGKey, keys: PRNGKey, request: Request) -> Tuned:
    """Tune by the noise of the gradient, and burn in.

    Parameters
    ----------
    start_keys, keys
        One for each chain: for starting positions, and for warm-up steps.
    request
        With a gradient estimator.

    Raises
    ------
    TypeError, ValueError
        As `set_by_noise` does.
    """
    reader = reader_for(request.gradient, request.target)
    ready = set_by_noise(start_keys, request, reader)
    plan, parameters, source = ready.plan, ready.parameters, ready.choice.source
    supply = _supply(request)
    chains, warmup = run.Chains(begun(start_keys, ready, supply)), None
    if supply is not None:
        supply = supply._replace(
            per_step=draws_per_step(plan.build, source, chains.states, parameters, supply.first())
        )
    num_steps = math.ceil(request.num_warmup / ready.thinning)
    options = {"probe": ready.probe, "thinning": ready.thinning}
    wait = run.prepare(keys, source, chains, parameters, plan, supply=supply, **options)
    log_weights = _laplace(jax.random.fold_in(start_keys[0], 3), request, reader, ready.mode)
    wait()
    if request.num_warmup > 0:
        warmup = run.advance(
            keys,
            source,
            chains,
            parameters,
            plan,
            num_steps=num_steps,
            progress=request.progress,
            label="warm-up",
            keeper=request.keeper("warm-up"),
            supply=supply,
            **options,
        )
        if not warmup.complete:
            raise KeyboardInterrupt("interrupted during warm-up: there is no draw to return")
        chains = warmup.final_state
    cost = request.kernel.gradients_per_step
    return Tuned(
        plan=plan,
        states=chains.states,
        parameters=parameters,
        warmup=warmup if request.keep_warmup else None,
        num_gradient_evaluations=len(keys) * (request.num_warmup * cost + 1),
        notes=ready.notes,
        doubts=ready.doubts,
        ends=ready.ends,
        source=source,
        probe=ready.probe,
        estimator=ready.choice.name,
        passes=0.0 if ready.mode is None else ready.mode.passes,
        passes_per_step=ready.choice.passes_per_step,
        log_weights=log_weights,
        thinning=ready.thinning,
        supply=None if supply is None else supply.after(num_steps * ready.thinning),
    )


def _supply(request: Request) -> Supply | None:
    """Batches of a target's stream: the first one is for the states that chains begin in."""
    target = request.target
    if target.stream is None:
        return None
    (plate,) = target.plates
    return Supply(target.stream, plate, 1, 1, request.mesh)


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
) -> tuple[Array, Mode | None, dict[str, Any], tuple[str, ...], Ends]:
    """Find where chains start, the mode if there is one, notes, doubts, and ends of searches."""
    target, layout = request.target, request.layout
    rows = some_rows(reader, layout.dimension)
    density = target.logdensity_fn
    if rows:  # of a stream always
        density = Partial(on_some_rows, target.batch_logdensity_fn, rows)
    data, options = finding(request, plan, search=search)
    options["search"] = search
    _, wait = ahead(find, (start_keys, density, data), options)
    if search and not is_streamed(reader):
        _compile_ahead(request, reader)
    wait()
    found = find(start_keys, density, data, **options)
    check_valid(request, found)
    if found.search is None:
        return found.positions, None, {}, (), Ends()
    seen, positions = to_host((found.search, found.positions))
    ends = Ends.of(seen)
    notes: dict[str, Any] = {"num_chains_at_best_mode": int(seen.found.sum())}
    ended = seen.converged & np.isfinite(seen.ended)
    # A search in many dimensions may run along a funnel to where the density is flat, and stop.
    keep = request.initial is not None or layout.dimension > DENSE_LIMIT
    elsewhere = np.where((ended & (not keep))[:, None], seen.ends, positions)
    own = "at their own positions" if keep else "where their searches converged, if they did"
    if ends.no_mode:
        notes["mode_search"] = f"{describe_ends(ends, own)}. {why_no_mode(seen)}"
        return jnp.asarray(elsewhere), None, notes, (), ends
    on_rows = target.batch_logdensity_fn if reader else _as_rows(target)
    best, frame = jnp.asarray(seen.ends[seen.best]), jnp.asarray(seen.frame)
    settled: Any
    if is_streamed(reader):
        settled = settle_on_stream(request, reader, best, frame)
    else:
        settled = to_host(settle_on_all(on_rows, reader, best, frame, layout=layout))
    if not np.isfinite(settled.value):
        raise ValueError(target.explain(layout.unravel(settled.position)))
    if not (settled.curved and settled.decrement <= MAX_DECREMENT):
        part = "A mode on some of the rows is none on all of them: the" if rows else "The"
        ends = ends._replace(kinds=(End.NO_MODE,) * len(ends.kinds))
        notes["mode_search"] = (
            f"{describe_ends(ends, own)}. {part} search ended {np.sqrt(settled.decrement):.3g} "
            "standard deviations away from a mode."
        )
        return jnp.asarray(elsewhere), None, notes, (), ends
    given = request.initial is not None
    notes["mode_search"] = describe_ends(ends, f"at the {'positions given' if given else 'mode'}")
    doubts = _doubts_of(ends, layout.dimension)
    share = sum(r.indices.shape[0] / r.size for r in rows.values()) or 1.0
    passes = float(seen.num_evaluations) * share + float(settled.num_evaluations)
    mode = Mode(
        settled.position,
        settled.value,
        settled.gradient,
        _triangular(settled),
        float(settled.decrement),
        passes,
    )
    if given:
        return found.positions, mode, notes, doubts, ends
    positions = mode.position + scaled(to_host(_normals(start_keys, layout)), mode.factor)
    return jnp.asarray(positions), mode, notes, doubts, ends


@functools.partial(jax.jit, static_argnums=1, compiler_options=ONCE)
def _normals(keys: PRNGKey, layout: Layout) -> Array:
    """Standard normals of every chain, ``[chain, dimension]``."""

    def of_chain(key: PRNGKey) -> Array:
        return jax.random.normal(jax.random.fold_in(key, 1), (layout.dimension,), layout.dtype)

    return jax.vmap(of_chain)(keys)


def _doubts_of(ends: Ends, dimension: int) -> tuple[str, ...]:
    """Doubt what the searches found where another mode is likely."""
    far = ends.distances > ELSEWHERE * math.sqrt(dimension)
    elsewhere = [chain for chain in ends.chains(End.EQUAL, End.LOWER) if far[chain]]
    if not elsewhere:
        return ()
    return (
        f"The searches of chains {elsewhere} ended elsewhere than at the best mode, about which "
        "all chains start: there may be other modes, which they do not see.",
    )


def _compile_ahead(request: Request, reader: Reader) -> None:
    """Compile what follows the search for a mode while it is compiled, and runs itself."""
    layout, target = request.layout, request.target
    d, dtype = layout.dimension, layout.dtype
    vector, key = jax.ShapeDtypeStruct((d,), dtype), jax.random.key(0)
    factor = jax.ShapeDtypeStruct((d, d), dtype) if d <= DENSE_LIMIT else vector
    on_rows = target.batch_logdensity_fn if reader else _as_rows(target)
    ahead(settle_on_all, (on_rows, reader, vector, factor), {"layout": layout})
    measured = measuring(request.gradient, reader, layout)
    if measured is not None:
        (only,) = reader.values()
        ahead(measure_rows, (key, on_rows, only, vector, factor), measured)
    if _weighs(reader, layout):
        ahead(_log_weights, (key, on_rows, reader, vector, factor), {"layout": layout})


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
    mode: Mode | None,
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


def _rule(kernel: Any, given: Mapping[str, Any], choice: Choice, mode: Mode | None) -> str:
    """Say how the step size was chosen, and what it does to the temperature."""
    excess = heating(kernel, given) * choice.noise.largest * choice.step_size
    where = (
        "whitened by the curvature at the mode" if mode is not None else "scaled by the largest "
    )
    where += "" if mode is not None else "local curvature"
    return (
        f"gradient noise of at most {choice.noise.largest:.3g} {where}: predicted to raise the "
        f"temperature by {percent(excess)} along its worst direction"
    )


def _turn(frame: Preconditioner, mode: Mode | None) -> np.ndarray | None:
    """Given frame as seen from that of the curvature at the mode, ``[dimension, dimension]``."""
    if mode is None or frame.directions is not None:
        return None
    scale = np.asarray(frame.factor, np.float64)
    inner = np.asarray(mode.factor, np.float64)
    if inner.ndim < 2 and scale.ndim < 2:
        inner, scale = inner[:, None], np.broadcast_to(scale, inner.shape)[:, None]
        return np.diag((scale / inner)[:, 0]) if len(inner) <= DENSE_LIMIT else None
    outer = scale if scale.ndim == 2 else np.diag(np.broadcast_to(scale, len(inner)))
    return np.linalg.solve(np.diag(inner) if inner.ndim < 2 else inner, outer)


def _check_stable(kernel: Any, step_size: Any, turn: np.ndarray | None) -> None:
    """Refuse a step size at which the Gaussian at the mode would be unstable.

    Raises
    ------
    ValueError
        With the bound.
    """
    # A kernel that is rescaled by its gradients has a step size in other units.
    rescaled = "smoothing" in parameters_of(kernel)
    if turn is None or rescaled or isinstance(step_size, Tracer):
        return
    bound = 2.0 / stiffness(kernel, turn)
    if float(step_size) >= bound:
        raise ValueError(
            f"step_size: {kernel!r} is stable below {bound:.3g} where the curvature is that at "
            f"the mode, got {float(step_size):.3g}. Leave step_size out to have it chosen, or "
            "pass an inverse_mass_matrix."
        )


def begun(keys: PRNGKey, ready: Ready, supply: Supply | None = None) -> Any:
    """States of the kernel at the starting positions, leading axis ``chain``.

    About the mode the first gradient is that of the Gaussian there: as good as one from a batch,
    and without a program of the model of its own.
    """
    plan, positions, mode = ready.plan, ready.positions, ready.mode
    if mode is None or not ready.choice.about_mode:
        source = ready.choice.source
        if supply is not None:
            source = dataclasses.replace(source, draw=Partial(_given, supply.first()))
        return _first_states(keys, source, positions, ready.parameters, plan=plan)
    shifts, factor = to_host(positions) - mode.position, np.asarray(mode.factor)
    dense = factor.ndim == 2
    z = np.linalg.solve(factor, shifts.T).T if dense else shifts / factor
    pulls = -(np.linalg.solve(factor.T, z.T).T if dense else z / factor)
    values = mode.value - 0.5 * np.sum(z**2, axis=1)
    dtype = positions.dtype
    return _as_states(positions, jnp.asarray(values, dtype), jnp.asarray(pulls, dtype), plan=plan)


def _given(batch: Any, rng_key: PRNGKey, step: Array) -> Any:
    """Draw what is there."""
    return batch


@functools.partial(jax.jit, static_argnames="plan", compiler_options=ONCE)
def _as_states(positions: Array, values: Array, gradients: Array, *, plan: run.Plan) -> Any:
    def one(position: Array, value: Array, gradient: Array) -> Any:
        step = jnp.zeros((), jnp.int32)
        return plan.algorithm.value.state(position, value, gradient, step, ())

    return jax.vmap(one)(positions, values, gradients)


@functools.partial(jax.jit, static_argnames="plan", compiler_options=ONCE)
def _first_states(
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


def _probe(noise: Noise, frame: Preconditioner, mode: Mode | None, positions: Array) -> run.Probe:
    """Thermometer along the direction of the largest noise."""
    dtype = positions.dtype
    direction = np.asarray(noise.direction, np.float64)
    centre = to_host(positions).mean(axis=0) if mode is None else mode.position
    if frame.directions is not None:
        left = np.asarray(
            jax.vjp(frame.solve, jnp.asarray(direction, dtype))[1](jnp.asarray(direction, dtype))[0]
        )
        right = np.asarray(frame.scale(jnp.asarray(direction, dtype)))
    else:
        # In NumPy: nothing to compile.
        factor = np.asarray(frame.factor, np.float64)
        dense = factor.ndim == 2
        left = np.linalg.solve(factor.T, direction) if dense else direction / factor
        right = scaled(direction, factor)
    return run.Probe(*(jnp.asarray(part, dtype) for part in (direction, left, right, centre)))


def _laplace(
    rng_key: PRNGKey, request: Request, reader: Reader, mode: Mode | None
) -> np.ndarray | None:
    """Log weights of draws of the Gaussian at the mode, where looking at them is cheap."""
    if mode is None or not _weighs(reader, request.layout):
        return None
    weights = _log_weights(
        rng_key,
        request.target.batch_logdensity_fn if reader else _as_rows(request.target),
        reader,
        jnp.asarray(mode.position),
        jnp.asarray(mode.factor),
        layout=request.layout,
    )
    return to_host(weights).astype(np.float64)


def _weighs(reader: Reader, layout: Layout) -> bool:
    """Whether looking at all rows for every draw of the Gaussian is cheap."""
    return (
        not is_streamed(reader)
        and layout.dimension <= DENSE_LIMIT
        and _num_draws(reader) >= LAPLACE_DRAWS[0]
    )


def _num_draws(reader: Reader) -> int:
    size = max((each.plan.size for each in reader.values()), default=1)
    return min(LAPLACE_DRAWS[1], LAPLACE_ROWS // size)


@functools.partial(jax.jit, static_argnames="layout", compiler_options=QUICK)
def _log_weights(
    rng_key: PRNGKey,
    on_rows: Any,
    reader: Reader,
    mode: Array,
    factor: Array,
    *,
    layout: Layout,
) -> Array:
    noise = jax.random.normal(rng_key, (_num_draws(reader), mode.size), mode.dtype)
    positions = mode + noise @ factor.T

    def of_rows(rows: Any) -> Array:
        return jax.vmap(lambda x: on_rows(rows, layout.unravel(x)))(positions)

    return whole_mean(reader, of_rows) + 0.5 * jnp.sum(noise**2, axis=1)

"""From a target and a kernel to states and parameters ready to sample."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from langevin_ppl import run
from langevin_ppl.base import Array, Draws, LogDensity, PRNGKey
from langevin_ppl.compilation import ahead
from langevin_ppl.devices import CHAIN, place, share_of, to_host
from langevin_ppl.kernels import Kernel
from langevin_ppl.supply import Supply
from langevin_ppl.targets.leaves import Static
from langevin_ppl.tree import Layout
from langevin_ppl.warmup.adaptation import Adaptation, Schedule
from langevin_ppl.warmup.begin import Begun, Found, begin, find, settle
from langevin_ppl.warmup.ends import Ends
from langevin_ppl.warmup.foreign import Adapted, adapt_chains
from langevin_ppl.warmup.moments import LOW_RANK, MAX_ROWS
from langevin_ppl.warmup.report import describe_start, describe_stuck, describe_tuning
from langevin_ppl.warmup.start import DENSE_LIMIT, Start
from langevin_ppl.warmup.traits import POOLED, STEP_SIZE, Traits, parameters_of, traits
from langevin_ppl.warmup.unadjusted import (
    MAX_POWER,
    MAX_TAMING_LOSS,
    taming_parameters,
)

__all__ = [
    "Request",
    "Setup",
    "Tuned",
    "check_valid",
    "finding",
    "set_up",
    "tune",
    "tuned_names",
]

LOW_RANK_LIMIT = 20_000
"""Largest dimension in which the metric has low rank by default: its draws take 40 MiB there."""

MAX_METRIC_BYTES = 2**31
"""Most memory that tuning a metric may take."""

SUPERLINEAR = 1.5
"""Power of the gradient's growth above which it counts as explosive."""


class Request(NamedTuple):
    """What is to be tuned.

    Attributes
    ----------
    target
        The target.
    layout
        Layout of its positions.
    kernel
        A kernel of this library or of BlackJAX.
    num_warmup
        Warm-up steps.
    given
        Parameters that the user has set.
    per_chain
        Names of those that have a leading axis ``chain``.
    initial
        Flat starting positions ``[chain, dimension]``, None to find them.
    metric
        ``"dense"``, ``"low_rank"``, ``"diagonal"``, or None to choose by dimension.
    target_acceptance_rate
        What to tune the step size to; None for the kernel's own optimum.
    capacity, thinning
        Length of the buffers of a chunk, and steps for each draw, of the run that follows; None to
        choose.
    keep_warmup, progress
        Whether to keep the draws of the warm-up, and to show a bar.
    gradient
        Function from the target to an estimator that reads a part of the data, or such an
        estimator; None for the exact gradient.
    folder
        `langevin_ppl.checkpoints.Folder` to keep the run in, or None.
    mesh
        Devices over which chains and data are spread; None for the default one.
    """

    target: Any
    layout: Layout
    kernel: Any
    num_warmup: int
    given: dict[str, Any]
    initial: Array | None
    per_chain: frozenset[str] = frozenset()
    metric: str | None = None
    target_acceptance_rate: float | None = None
    capacity: int = 1024
    thinning: int | None = None
    keep_warmup: bool = False
    progress: bool = False
    gradient: Any = None
    folder: Any = None
    mesh: Mesh | None = None

    def keeper(self, stage: str, chains: bool = True) -> Any:
        """Keeper of a loop, over chains or not, or None where the run is not kept."""
        if self.folder is None:
            return None
        return self.folder.stage(stage, share_of(CHAIN, self.mesh) if chains else (0, 1))


class Tuned(NamedTuple):
    """A kernel ready to sample.

    Attributes
    ----------
    plan, states, parameters
        What `langevin_ppl.run.advance` takes.
    warmup
        Draws of the warm-up, if kept.
    num_gradient_evaluations
        What it cost, over all chains; None where BlackJAX does not count.
    notes
        Facts for the attributes of the run.
    doubts
        Sentences on what went wrong: a run that has one is not called converged.
    ends
        How the searches for the mode ended; empty without a search.
    source
        The gradient estimator; None where it is the target's log density.
    probe
        Thermometer along the direction of the largest gradient noise, or None.
    estimator
        Name of the gradient estimator.
    passes, passes_per_step
        Gradients of rows over the number of rows: of the warm-up's search, and of a step of a
        chain; None where that is not known.
    log_weights
        Log weights of draws of the Gaussian at the mode, ``[draw]``, or None.
    thinning
        Steps for each draw.
    supply
        Batches of the target's stream, or None.
    """

    plan: run.Plan
    states: Any
    parameters: dict[str, Any]
    warmup: Draws | None
    num_gradient_evaluations: int | None
    notes: dict[str, Any]
    doubts: tuple[str, ...] = ()
    ends: Ends = Ends()
    source: Any = None
    probe: run.Probe | None = None
    estimator: str = "exact"
    passes: float = 0.0
    passes_per_step: float | None = None
    log_weights: np.ndarray | None = None
    thinning: int = 1
    supply: Supply | None = None


def tune(start_keys: PRNGKey, keys: PRNGKey, request: Request) -> Tuned:
    """Find where chains start and tune the kernel, by the adaptation that `traits` names.

    Parameters
    ----------
    start_keys, keys
        One for each chain: for starting positions, and for warm-up steps.
    request
        What is to be tuned.

    Raises
    ------
    ValueError
        If no starting position has a finite log density.
    TypeError
        If a parameter is missing that nothing tunes.
    """
    known, tunes = traits(request.kernel), tuned_names(request)
    if tunes and known.adaptation not in (POOLED, STEP_SIZE):
        return _by_blackjax(start_keys, keys, request)
    return _by_stepping(start_keys, keys, request, known, tunes)


def tuned_names(request: Request) -> frozenset[str]:
    """Names of the parameters that warm-up tunes.

    Raises
    ------
    TypeError
        If a parameter is missing that nothing tunes.
    """
    known = traits(request.kernel)
    tunes = known.tunes if request.num_warmup > 0 else frozenset()
    given = tunes & set(request.given)
    # A step size has a meaning only together with a metric: who gives one, tunes nothing. The
    # others leave the rest to our own adaptation; BlackJAX's would tune all of them.
    if given and (known.adaptation != POOLED or "step_size" in given):
        tunes = frozenset()
    tunes = (tunes - given) & set(parameters_of(_tuner(request.kernel)))
    _check_complete(request, known, tunes)
    return tunes


def _tuner(kernel: Any) -> Any:
    return kernel.tuner if isinstance(kernel, Kernel) else kernel


def _check_complete(request: Request, known: Traits, tunes: frozenset[str]) -> None:
    defaults = parameters_of(request.kernel)
    missing = {name for name, value in defaults.items() if value is inspect.Parameter.empty}
    missing |= set(known.required)
    missing -= set(request.given) | tunes
    if not missing:
        return
    cure = "They have no adaptation here."
    if known.tunes:
        cure = f"With num_warmup > 0 and none of {', '.join(sorted(known.tunes))} given, "
        cure += "they are tuned."
    raise TypeError(
        f"{known.name} needs {', '.join(sorted(missing))}: pass them as keywords, or by "
        f"parameters= from an earlier run. {cure}"
    )


def _settings(
    kernel: Any, given: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[tuple[str, Static], ...]]:
    """Parameters that are arguments of the program, and those that are part of it."""
    if isinstance(kernel, Kernel):
        return kernel.prepare(given), ()
    arrays = {
        name: jnp.asarray(value)
        for name, value in given.items()
        if isinstance(value, float | jax.Array | np.ndarray | np.floating)
    }
    fixed = tuple((name, Static(v)) for name, v in sorted(given.items()) if name not in arrays)
    return arrays, fixed


def _begin(
    keys: PRNGKey,
    request: Request,
    setup: "Setup",
    prepare: Callable[[run.Chains], Callable[[], None]],
) -> Begun:
    """Begin chains; refuse starting positions where the density is not finite.

    The programs that find starts, begin chains and run them are compiled side by side.
    """
    plan, _, first, _ = setup
    parameters = setup.for_tuner
    data, options = finding(request, plan, search=request.initial is None)
    logdensity_fn = request.target.logdensity_fn
    found_shapes, wait_for_find = ahead(find, (keys, logdensity_fn, data), options)
    arguments = (keys, logdensity_fn, found_shapes, parameters, first)
    begun_shapes, wait_for_begin = ahead(begin, arguments, {"plan": plan})
    wait_for_running = prepare(begun_shapes.chains)
    wait_for_find()
    found = find(keys, logdensity_fn, data, **options)
    check_valid(request, found)
    wait_for_begin()
    begun = begin(keys, logdensity_fn, found, parameters, first, plan=plan)
    wait_for_running()
    return begun


def finding(request: Request, plan: run.Plan, *, search: bool) -> tuple[Any, dict[str, Any]]:
    """Choose data and static arguments of `find`."""
    propose, data = None, None
    if request.initial is None:
        propose, data = request.target.proposal()
    else:
        data = place(request.initial, request.mesh, CHAIN)
    search = search and request.num_warmup > 0
    return data, {"propose": propose, "plan": plan, "search": search}


def check_valid(request: Request, found: Found) -> None:
    """Refuse starting positions where the density is not finite."""
    valid = to_host(found.valid)
    if not valid.all():
        chain = int(np.argmin(valid))
        position = request.layout.unravel(jnp.asarray(to_host(found.positions)[chain]))
        given = request.initial is not None
        raise ValueError(f"Chain {chain}: {request.target.explain(position, given=given)}")


def _first_values(request: Request, plan: run.Plan) -> dict[str, float]:
    """Numbers that tuning begins with."""
    kernel = plan.algorithm.value
    rate = request.target_acceptance_rate or traits(kernel).target_acceptance_rate
    own = parameters_of(request.kernel).get("friction", 1.0)
    friction = request.given.get("friction", own)
    # The step size of an overdamped kernel scales like this; dual averaging finds the constant.
    # A turn about a fitted Gaussian needs no such caution.
    bounded = plan.adaptation.max_step_size is not None
    step_size = 1.0 if bounded else request.layout.dimension ** (-1.0 / 3.0)
    return {
        "step_size": step_size,
        "target_acceptance_rate": rate or 0.5,
        "friction": float(friction),
    }


def metric_shape(asked: str | None, layout: Layout) -> str:
    """Shape of the metric: what was asked for, or as rich as the dimension allows.

    Raises
    ------
    ValueError
        If a dense metric would not fit into memory; the message says what it would cost.
    """
    d, size = layout.dimension, jnp.dtype(layout.dtype).itemsize
    if asked is None:
        return "dense" if d <= DENSE_LIMIT else "low_rank" if d <= LOW_RANK_LIMIT else "diagonal"
    cost = {"dense": 6 * size * d**2, "low_rank": size * d * (2 * MAX_ROWS + 4 * LOW_RANK)}
    if cost.get(asked, 0) > MAX_METRIC_BYTES:
        raise ValueError(
            f"metric: a {asked} metric in {d} dimensions takes about {cost[asked] / 2**30:.3g} "
            f"GiB while it is tuned, and {2 * d**2:.1e} operations a step if it is dense; the "
            f"limit is {MAX_METRIC_BYTES / 2**30:.3g} GiB. Use metric='diagonal', or leave the "
            "choice to the dimension."
        )
    return asked


class Setup(NamedTuple):
    """How a kernel of this library, or one whose step size alone is tuned, is warmed up.

    Attributes
    ----------
    plan
        Of the warm-up, with its adaptation if there is one.
    parameters
        Parameters that are given, prepared.
    first
        What the adaptation begins with.
    schedule
        What it does in each step; None without one.
    """

    plan: run.Plan
    parameters: dict[str, Any]
    first: dict[str, float]
    schedule: Schedule | None

    @property
    def tuner(self) -> Any:
        """The kernel that runs during warm-up."""
        return self.plan.algorithm.value

    @property
    def for_tuner(self) -> dict[str, Any]:
        """Those of the parameters that the tuner knows."""
        known = parameters_of(self.tuner)
        return {name: value for name, value in self.parameters.items() if name in known}


def set_up(request: Request, tunes: frozenset[str], axis_name: str | None = "chain") -> Setup:
    """Choose tuner, metric and schedule.

    Parameters
    ----------
    tunes
        Names of what is tuned.
    axis_name
        Axis over which chains are pooled; None to tune every chain by itself.
    """
    kernel, layout = request.kernel, request.layout
    tuner = kernel.tuner if isinstance(kernel, Kernel) and "step_size" in tunes else kernel
    parameters, fixed = _settings(kernel, request.given)
    adaptation, schedule = None, None
    if tunes:
        adaptation = Adaptation(
            tunes & set(parameters_of(tuner)),
            metric_shape(request.metric, layout),
            getattr(tuner, "max_step_size", None),
            axis_name=axis_name,
        )
        schedule = Schedule.build(request.num_warmup)
    plan = run.Plan(Static(tuner), layout, fixed, request.per_chain, adaptation, request.capacity)
    first = {} if adaptation is None else _first_values(request, plan)
    return Setup(plan, parameters, first, schedule)


def _by_stepping(
    start_keys: PRNGKey,
    keys: PRNGKey,
    request: Request,
    known: Traits,
    tunes: frozenset[str],
) -> Tuned:
    """Tune, or only burn in, by running a kernel on all chains together."""
    kernel, layout = request.kernel, request.layout
    setup = set_up(request, tunes)
    plan, parameters, _, schedule = setup
    tuner, for_tuner, fixed = setup.tuner, setup.for_tuner, plan.fixed
    adaptation = plan.adaptation
    logdensity_fn = request.target.logdensity_fn
    waiting = []

    def prepare(shapes: run.Chains) -> Callable[[], None]:
        """Compile warm-up and sampling; wait for the first, and leave the second to go on."""
        compiled = functools.partial(run.prepare, keys, logdensity_fn)
        warm = _nothing
        if request.num_warmup > 0:
            warm = compiled(shapes, for_tuner, plan, schedule=schedule)
        if kernel is tuner:
            settled = {} if adaptation is None else adaptation.parameters(shapes.tuning)
            states = run.Chains(shapes.states)
            waiting.append(
                compiled(
                    states,
                    {**parameters, **settled},
                    dataclasses.replace(plan, adaptation=None),
                    thinning=request.thinning or 1,
                )
            )
        return warm

    begun = _begin(start_keys, request, setup, prepare)
    chains, warmup, start = begun.chains, None, begun.start
    cost = traits(tuner).gradients_per_step
    evaluations = None if cost is None else keys.shape[0] * (request.num_warmup * cost + 1)
    notes, doubts, ends = {}, (), Ends()
    if start is not None:
        start = to_host(start)
        if evaluations is not None:
            evaluations += int(start.search.num_evaluations)
        notes, doubts, ends = describe_start(start)
        plan, notes["burn_in"] = _tamed(plan, start, request.given)
    if request.num_warmup > 0:
        warmup = run.advance(
            keys,
            logdensity_fn,
            chains,
            for_tuner,
            plan,
            num_steps=request.num_warmup,
            schedule=schedule,
            progress=request.progress,
            label="warm-up",
            keeper=request.keeper("warm-up"),
        )
        if not warmup.complete:
            raise KeyboardInterrupt("interrupted during warm-up: there is no draw to return")
        chains = warmup.final_state
        doubts += describe_stuck(warmup)
    if adaptation is not None:
        parameters |= adaptation.parameters(chains.tuning)
        notes |= describe_tuning(to_host(chains.tuning), adaptation)
    plan = run.Plan(Static(kernel), layout, fixed, request.per_chain, None, request.capacity)
    states = chains.states
    if kernel is not tuner:
        states = jax.vmap(kernel.adopt)(states)
        chosen = to_host(taming_parameters(kernel, request.given, start))
        parameters |= chosen
        if "power" in chosen and start is not None:
            notes["power_rule"] = (
                f"gradients grow like |x|^{start.growth:.3g}: one less, at most {MAX_POWER:g}"
            )
        parameters["step_size"], notes["step_size_rule"] = _unadjusted_step_size(
            keys, logdensity_fn, states, parameters, plan
        )
    for wait in waiting:
        wait()
    notes["adaptation"] = (known.adaptation or "none") if tunes else "none"
    return Tuned(
        plan=plan,
        states=states,
        parameters=parameters,
        warmup=_states_only(warmup) if request.keep_warmup else None,
        num_gradient_evaluations=evaluations,
        notes=notes,
        doubts=doubts,
        ends=ends,
        thinning=request.thinning or 1,
    )


def _nothing() -> None:
    """Wait for nothing."""


def _states_only(warmup: Draws | None) -> Draws | None:
    return None if warmup is None else warmup._replace(final_state=warmup.final_state.states)


def _tamed(plan: run.Plan, start: Start, given: Mapping[str, Any]) -> tuple[run.Plan, str]:
    """Tame the burn-in where chains start far from a mode and gradients grow superlinearly."""
    kernel, adaptation = plan.algorithm.value, plan.adaptation
    explodes = start.growth > SUPERLINEAR and not start.search.found.any()
    can = "taming" in parameters_of(kernel) and "taming" not in given
    if adaptation is None or not (explodes and can):
        return plan, "untamed"
    tunes = adaptation.tunes | {"taming"}
    return dataclasses.replace(plan, adaptation=dataclasses.replace(adaptation, tunes=tunes)), (
        f"tamed, because gradients grow like |x|^{start.growth:.3g} and no chain starts at a mode"
    )


def _unadjusted_step_size(
    keys: PRNGKey,
    logdensity_fn: LogDensity,
    states: Any,
    parameters: dict[str, Any],
    plan: run.Plan,
) -> tuple[np.ndarray, str]:
    """Step size of an unadjusted kernel from that of its adjusted sibling, and the rule."""
    kernel, tuned = plan.algorithm.value, float(parameters["step_size"])
    step_size = to_host(settle(keys, logdensity_fn, states, parameters, plan=plan))
    most = np.inf if kernel.max_step_size is None else kernel.max_step_size
    rule = f"min({most:g}, {kernel.tuner_share:g} of what {kernel.tuner!r} was tuned to)"
    if step_size < 0.75 * min(most, kernel.tuner_share * tuned):
        rule += f", halved until the mean taming loss was at most {MAX_TAMING_LOSS}"
    if not kernel.exact:
        rule += f": a bias of order step_size^{kernel.order}, not measured"
    return step_size, rule


def _by_blackjax(start_keys: PRNGKey, keys: PRNGKey, request: Request) -> Tuned:
    """Tune by BlackJAX's own adaptation, from the target's starting positions."""
    if request.keep_warmup:
        raise ValueError("groups: BlackJAX's adaptation keeps no draws for warmup_posterior.")
    arrays, fixed = _settings(request.kernel, request.given)
    plan = run.Plan(Static(request.kernel), request.layout, fixed, capacity=request.capacity)
    data, options = finding(request, plan, search=False)
    found = find(start_keys, request.target.logdensity_fn, data, **options)
    check_valid(request, found)

    def adapt() -> Adapted:
        return adapt_chains(
            keys, request.target.logdensity_fn, found.positions, arrays, plan, request.num_warmup
        )

    adapted = adapt() if request.folder is None else request.folder.once("adaptation", adapt)
    parameters = {**arrays, **adapted.parameters}
    per_chain = frozenset(adapted.parameters)
    return Tuned(
        plan=dataclasses.replace(plan, per_chain=per_chain),
        states=adapted.states,
        parameters=parameters,
        warmup=None,
        num_gradient_evaluations=int(to_host(adapted.num_gradient_evaluations).sum()),
        notes={"adaptation": traits(request.kernel).adaptation},
        thinning=request.thinning or 1,
    )

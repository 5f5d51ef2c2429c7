"""From a target and a kernel to states and parameters ready to sample."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl import run
from langevin_ppl.base import Array, Draws, LogDensity, PRNGKey
from langevin_ppl.kernels import Kernel
from langevin_ppl.preconditioners import Preconditioner
from langevin_ppl.targets.leaves import Static
from langevin_ppl.tree import Layout
from langevin_ppl.warmup.chains import Begun, begin, mean_taming_losses, warm_up
from langevin_ppl.warmup.foreign import adapt_chains
from langevin_ppl.warmup.start import DENSE_LIMIT
from langevin_ppl.warmup.traits import POOLED, STEP_SIZE, Traits, parameters_of, traits

__all__ = ["MAX_TAMING_LOSS", "Request", "Tuned", "tune"]

UNADJUSTED_STEP_SIZE = 0.1
"""Largest automatic step size of an unadjusted kernel, in the whitened frame: on a Gaussian the
standard deviation that ULA then has is 1 / sqrt(1 - 0.1 / 2), 2.6 % too large."""

MAX_TAMING_LOSS = 0.05
"""Share of the gradient that taming may remove on average before its bias dominates."""

UNADJUSTED_SHARE = 0.25
"""Largest automatic step size of an unadjusted kernel, as a share of its adjusted sibling's."""


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
    keep_warmup, progress
        Whether to keep the draws of the warm-up, and to show a bar.
    """

    target: Any
    layout: Layout
    kernel: Any
    num_warmup: int
    given: dict[str, Any]
    initial: Array | None
    per_chain: frozenset[str] = frozenset()
    keep_warmup: bool = False
    progress: bool = False


class Tuned(NamedTuple):
    """A kernel ready to sample.

    Attributes
    ----------
    plan, states, parameters
        What `langevin_ppl.run.sample` takes.
    warmup
        Draws of the warm-up, if kept.
    num_gradient_evaluations
        What it cost, over all chains; None where BlackJAX does not count.
    notes
        Facts for the attributes of the run.
    """

    plan: run.Plan
    states: Any
    parameters: dict[str, Any]
    warmup: Draws | None
    num_gradient_evaluations: int | None
    notes: dict[str, Any]


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
    known = traits(request.kernel)
    tunes = known.tunes if request.num_warmup > 0 else frozenset()
    given = tunes & set(request.given)
    # A step size has a meaning only together with a metric: who gives one, tunes nothing. A
    # metric alone leaves the step size to our own adaptation; BlackJAX's would tune both.
    if given and not (known.adaptation == POOLED and given == {"inverse_mass_matrix"}):
        tunes = frozenset()
    tunes -= given
    _check_complete(request, known, tunes)
    if tunes and known.adaptation not in (POOLED, STEP_SIZE):
        return _by_blackjax(start_keys, keys, request)
    return _by_stepping(start_keys, keys, request, known, tunes)


def _check_complete(request: Request, known: Traits, tunes: frozenset[str]) -> None:
    defaults = parameters_of(request.kernel)
    missing = {name for name, value in defaults.items() if value is inspect.Parameter.empty}
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


def _start(
    keys: PRNGKey,
    request: Request,
    plan: run.Plan,
    parameters: dict[str, Any],
    *,
    search: bool,
    initialise: bool,
) -> Begun:
    """Find starting positions; refuse them where the density is not finite."""
    given = request.initial is not None
    propose, data = (None, run.place(request.initial)) if given else request.target.proposal()
    begun = begin(
        keys,
        request.target.logdensity_fn,
        data,
        parameters,
        propose=propose,
        plan=plan,
        search=search,
        initialise=initialise,
    )
    valid = np.asarray(begun.valid)
    if not valid.all():
        chain = int(np.argmin(valid))
        position = request.layout.unravel(begun.positions[chain])
        raise ValueError(f"Chain {chain}: {request.target.explain(position)}")
    return begun


def _by_stepping(
    start_keys: PRNGKey,
    keys: PRNGKey,
    request: Request,
    known: Traits,
    tunes: frozenset[str],
) -> Tuned:
    """Tune, or only burn in, by running a kernel on all chains together."""
    kernel, layout = request.kernel, request.layout
    adapt_step_size, adapt_metric = "step_size" in tunes, "inverse_mass_matrix" in tunes
    tuner = kernel.tuner if isinstance(kernel, Kernel) and adapt_step_size else kernel
    parameters, fixed = _settings(kernel, request.given)
    known_to_tuner = parameters_of(tuner)
    for_tuner = {name: value for name, value in parameters.items() if name in known_to_tuner}
    plan = run.Plan(Static(tuner), layout, fixed, request.per_chain)
    # MALA's step size scales like this; dual averaging finds the constant.
    step_size = np.asarray(layout.dimension ** (-1.0 / 3.0), layout.dtype)
    first = {"step_size": step_size} if adapt_step_size else {}
    search = request.initial is None and request.num_warmup > 0
    settings = {**first, **for_tuner}
    begun = _start(start_keys, request, plan, settings, search=search, initialise=True)
    evaluations, notes = keys.shape[0] * (request.num_warmup + 1), {}
    factor = _identity(layout)
    if begun.start is not None:
        factor = begun.start.factor if adapt_metric else factor
        evaluations += int(np.asarray(begun.start.num_gradient_evaluations).sum())
        notes["num_modes_found"] = int(np.asarray(begun.start.found).sum())
    states, warmup = begun.states, None
    if request.num_warmup > 0:
        states, step_size, factor, warmup = warm_up(
            keys,
            request.target.logdensity_fn,
            states,
            for_tuner,
            plan,
            num_steps=request.num_warmup,
            step_size=step_size,
            factor=factor,
            target_acceptance_rate=known.target_acceptance_rate,
            adapt_step_size=adapt_step_size,
            adapt_metric=adapt_metric,
            keep=request.keep_warmup,
            progress=request.progress,
        )
    if adapt_step_size:
        parameters["step_size"] = np.asarray(step_size)
    if adapt_metric:
        parameters["inverse_mass_matrix"] = Preconditioner(factor)
    plan = run.Plan(Static(kernel), layout, fixed, request.per_chain)
    if adapt_step_size and not known.exact:
        parameters["step_size"], notes["step_size_rule"] = _unadjusted_step_size(
            keys, request.target.logdensity_fn, states, parameters, plan
        )
    notes["adaptation"] = (known.adaptation or "none") if tunes else "none"
    counted = known.gradients_per_step == 1
    return Tuned(plan, states, parameters, warmup, evaluations if counted else None, notes)


def _identity(layout: Layout) -> Array:
    """Build the first factor of the metric, in the shape that the metric will have."""
    d, dtype = layout.dimension, layout.dtype
    return jnp.asarray(np.eye(d) if d <= DENSE_LIMIT else np.ones(d), dtype)


def _unadjusted_step_size(
    keys: PRNGKey,
    logdensity_fn: LogDensity,
    states: Any,
    parameters: dict[str, Any],
    plan: run.Plan,
) -> tuple[np.ndarray, str]:
    """Step size of an unadjusted kernel from that of its adjusted sibling, and the rule."""
    kernel, tuned = plan.algorithm.value, parameters["step_size"]
    step_size = np.minimum(UNADJUSTED_STEP_SIZE, UNADJUSTED_SHARE * tuned).astype(tuned.dtype)
    rule = f"min({UNADJUSTED_STEP_SIZE}, {UNADJUSTED_SHARE} of what {kernel.tuner!r} was tuned to)"
    ladder = step_size * 2.0 ** -np.arange(16, dtype=step_size.dtype)
    losses = mean_taming_losses(keys, logdensity_fn, states, parameters, ladder, plan=plan)
    if losses is not None:
        gentle = np.asarray(losses) <= MAX_TAMING_LOSS
        step_size = ladder[np.argmax(gentle) if gentle.any() else -1]
        rule += f", halved until the mean taming loss was at most {MAX_TAMING_LOSS}"
    return step_size, rule + ": a bias of the order of step_size, not measured"


def _by_blackjax(start_keys: PRNGKey, keys: PRNGKey, request: Request) -> Tuned:
    """Tune by BlackJAX's own adaptation, from the target's starting positions."""
    if request.keep_warmup:
        raise ValueError("groups: BlackJAX's adaptation keeps no draws for warmup_posterior.")
    arrays, fixed = _settings(request.kernel, request.given)
    plan = run.Plan(Static(request.kernel), request.layout, fixed)
    begun = _start(start_keys, request, plan, arrays, search=False, initialise=False)
    adapted = adapt_chains(
        keys, request.target.logdensity_fn, begun.positions, arrays, plan, request.num_warmup
    )
    return Tuned(
        plan=run.Plan(plan.algorithm, request.layout, fixed, frozenset(adapted.parameters)),
        states=adapted.states,
        parameters={**arrays, **adapted.parameters},
        warmup=None,
        num_gradient_evaluations=int(np.asarray(adapted.num_gradient_evaluations).sum()),
        notes={"adaptation": traits(request.kernel).adaptation},
    )

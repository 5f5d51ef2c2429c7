"""``sample``: a target and a kernel in, an ArviZ DataTree out."""

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from langevin_ppl import run
from langevin_ppl.arguments import (
    check_counts,
    check_groups,
    check_key,
    check_labels,
    check_parameters,
    check_target,
    check_tuning,
    earlier_parameters,
    earlier_positions,
)
from langevin_ppl.base import (
    BiasWarning,
    ConvergenceWarning,
    DivergenceWarning,
    Draws,
    PRNGKey,
)
from langevin_ppl.convergence import Converged, Convergence, flattened, judge, summarise, watch
from langevin_ppl.devices import mesh_for, place_data, to_host
from langevin_ppl.export import LIBRARY, collect_groups, to_datatree, variables
from langevin_ppl.kernels import Kernel, check_burn_in, ghmc, split_ghmc
from langevin_ppl.preconditioners import Preconditioner
from langevin_ppl.tree import Layout
from langevin_ppl.trust import measured_temperature, of_gaussian, reweighted, too_hot, trust
from langevin_ppl.warmup import (
    DENSE_LIMIT,
    MAX_TAMING_LOSS,
    Request,
    Tuned,
    by_noise,
    kernel_and_gradient,
    traits,
    tune,
)

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["sample"]

DEFAULT_WARMUP = 500
KINETIC_WARMUP = 300
LARGE_WARMUP = 1000
DEFAULT_SAMPLES = 1000
STOCHASTIC_SAMPLES = 2000
MAX_SAMPLES = 20_000
"""Most draws of each chain that ``until`` may take, unless ``num_samples`` says otherwise."""

MAX_DIVERGENT_SHARE = 0.05
"""Share of divergent steps of a Langevin kernel above which `sample` warns; each is flagged.

A single Langevin proposal may overshoot by any amount and is then rejected, which is harmless if
it is rare. A trajectory of HMC that diverges is not, so for BlackJAX's kernels every one counts.
"""

MAX_ROUNDING = 0.1
"""Rounding of the log density above which a Metropolis test is not called exact without doubt."""

MAX_ATTRIBUTE_SIZE = 32
"""Largest array that is spelled out in an attribute."""


def sample(
    rng_key: PRNGKey,
    target: Any,
    kernel: Any = None,
    *,
    gradient: Any = None,
    num_chains: int = 4,
    num_warmup: int | None = None,
    num_samples: int | None = None,
    until: Converged | None = None,
    thinning: int | None = None,
    initial: Any = None,
    parameters: Any = None,
    groups: Sequence[str] = (),
    metric: str | None = None,
    target_acceptance_rate: float | None = None,
    progress: bool = False,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    **kernel_parameters: Any,
) -> "xr.DataTree":
    """Sample a target with a kernel.

    With nothing else said, `split_ghmc` runs around a Gaussian that warm-up fits, or, where the
    model has a subsampled plate, `ubu` with `control_variates`. A kernel of this library is
    started at modes found by L-BFGS and Newton's method. With all the data it is tuned during
    warm-up: step size by dual averaging, metric by windows pooled over chains; an unadjusted
    kernel through its Metropolis-adjusted sibling, and it then runs at a smaller step (see Notes).
    Any BlackJAX algorithm may take the kernel's place and gets BlackJAX's own adaptation.

    Parameters
    ----------
    rng_key
        A key, ``jax.random.key(0)``; legacy uint32 keys are taken too.
    target
        Made by `target` or `density`.
    kernel
        A kernel of this library or of BlackJAX.
    gradient
        From how much data the kernel sees the gradient: `exact`, `minibatch`, `control_variates`,
        `svrg`, or a `GradientEstimator`. By default all the data, unless the model has a subsampled
        plate; then `control_variates`, or plain batches where there is no mode. With less than all
        the data the step size follows from the noise of the gradient, measured at the mode.
    num_chains
        Number of chains, vmapped and spread over the devices.
    num_warmup
        Warm-up steps of each chain. By default 300 for kinetic kernels and 500 for others, 1000
        above 500 dimensions, or 0 where both ``initial`` and ``parameters`` are given.
    num_samples
        Draws to keep of each chain: 1000 by default, and 2000 of the cheap ones that a gradient
        from a part of the data gives. With ``until``, the most that it may take, 20,000 by default.
    until
        Stop as soon as draws are enough, ``lp.converged(ess=400, rhat=1.01)``.
    thinning
        Steps for each draw that is kept: 1 by default, and as many as a unit of time takes, at most
        10, where the step size follows from the gradient noise.
    initial
        Where to start: the DataTree of an earlier run (its last positions), or unconstrained
        positions with a leading axis ``chain``.
    parameters
        Tuned parameters: the DataTree of an earlier run, or a dict.
    groups
        Further groups of the DataTree: ``log_likelihood``, ``posterior_predictive``, ``prior``
        (with ``prior_predictive``), ``unconstrained_posterior``, ``warmup_posterior``.
    metric
        ``"dense"``, ``"low_rank"`` (on top of a diagonal) or ``"diagonal"``. By default dense up
        to 500 dimensions, low rank up to 20,000, diagonal above.
    target_acceptance_rate
        What to tune the step size to; by default the kernel's own optimum.
    progress
        Show progress bars (never under ``CI``).
    chunk
        Draws between two returns to the host; by default about half a second's worth. It
        changes no draw.
    mesh
        Devices, with axes named ``chain`` and ``data``: ``jax.make_mesh((2, 2), ("chain",
        "data"))``. Chains are spread over the one, rows of the data over the other; see
        `langevin_ppl.devices`. By default chains are spread over as many devices as divide them.
    **kernel_parameters
        Parameters of the kernel, which are then not tuned. A ``step_size`` given without an
        ``inverse_mass_matrix`` is one for the identity.

    Returns
    -------
    xarray.DataTree
        Groups ``posterior``, ``sample_stats``, ``observed_data``, ``constant_data``, those asked
        for, and ``sampler_parameters`` and ``sampler_position`` for a later run. Attributes
        say how it was made; ``exact`` is 1 where the kernel's stationary law is the target, and
        ``converged`` is 1 where ESS of draws and of squared deviations reach 400 (or what
        ``until`` asks for), R-hat 1.01, and nothing else went wrong. Otherwise ``advice`` says
        why, and what to try.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit; the message says what was expected.

    Warns
    -----
    ConvergenceWarning
        If ``converged`` is 0.
    DivergenceWarning
        If a chain left the finite numbers, or proposals diverged.
    BiasWarning
        If gradient noise has heated the draws, so that posterior sds are too large.

    Notes
    -----
    R-hat and effective sample size cannot see the bias of an unadjusted kernel. Its automatic
    step size is at most 0.1 in the whitened frame, where ULA's standard deviation on a Gaussian
    is 2.6 % too large, and at most a quarter of its adjusted sibling's.

    A chain whose search for a mode ends elsewhere than the best one starts there, unless that is
    hopelessly far below it: chains that disagree then show in R-hat. The attribute ``mode_search``
    names both. No diagnostic sees a mode that no chain found.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> target = lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))
    >>> idata = lp.sample(jax.random.key(0), target, num_samples=500)
    >>> idata["posterior"]["x"].shape, idata.attrs["converged"]
    ((4, 500, 2), 1)
    """
    began = time.perf_counter()
    rng_key = check_key(rng_key)
    check_target(target)
    if until is not None and not isinstance(until, Converged):
        raise TypeError(f"until: expected langevin_ppl.converged(...), got {until!r}.")
    check_counts(1, num_chains=num_chains)
    optional = {"num_samples": num_samples, "chunk": chunk, "thinning": thinning}
    check_counts(1, **{name: value for name, value in optional.items() if value is not None})
    kernel, gradient = kernel_and_gradient(kernel, target, gradient)
    if num_samples is None and until is None:
        num_samples = DEFAULT_SAMPLES if gradient is None else STOCHASTIC_SAMPLES
    num_samples = MAX_SAMPLES if num_samples is None else num_samples
    layout = Layout.of(target.prototype)
    if num_warmup is None:
        reused = initial is not None and parameters is not None
        num_warmup = 0 if reused else default_warmup(kernel, layout, gradient is not None)
    check_counts(0, num_warmup=num_warmup)
    check_burn_in(kernel, num_warmup)
    check_groups(groups, target, num_warmup)
    check_labels(target)
    check_tuning(kernel, metric, target_acceptance_rate)
    earlier, per_chain = earlier_parameters(parameters, num_chains)
    given = {**earlier, **kernel_parameters}
    mesh = mesh_for(mesh, num_chains)
    placed = place_data(target, mesh)
    request = Request(
        target=placed,
        layout=layout,
        kernel=kernel,
        num_warmup=num_warmup,
        given=check_parameters(kernel, given, per_chain, layout),
        per_chain=frozenset(per_chain - set(kernel_parameters)),
        initial=earlier_positions(initial, layout, num_chains),
        metric=metric,
        target_acceptance_rate=target_acceptance_rate,
        capacity=run.capacity_of(layout, num_chains),
        keep_warmup="warmup_posterior" in groups,
        thinning=thinning,
        progress=progress,
        gradient=gradient,
        mesh=mesh,
    )
    start_keys, warmup_keys, sample_keys, key_export = run.phase_keys(rng_key, num_chains, mesh)
    tuned = (tune if gradient is None else by_noise)(start_keys, warmup_keys, request)
    thinning = tuned.thinning
    warmed = time.perf_counter()

    def confirm(positions: np.ndarray) -> Convergence:
        columns, _ = flattened(variables(target, layout, positions))
        return summarise(columns, until.ess if until else math.inf)

    draws = run.advance(
        sample_keys,
        placed.logdensity_fn if tuned.source is None else tuned.source,
        run.Chains(tuned.states),
        tuned.parameters,
        tuned.plan,
        num_steps=num_samples,
        probe=tuned.probe,
        thinning=thinning,
        progress=progress,
        chunk=chunk,
        monitor=None if until is None else watch(until, num_samples, confirm),
    )
    sampled = time.perf_counter()
    draws, effective_share = reweighted(draws)
    posterior = variables(target, layout, draws.positions)
    attributes = _describe(request, tuned, draws, thinning)
    attributes |= {"warmup_time": warmed - began, "sampling_time": sampled - warmed}
    if effective_share is not None:
        attributes["weighted"] = (
            "draws were resampled in proportion to their weights, an effective share of "
            f"{effective_share:.3g}"
        )
    attributes |= of_gaussian(tuned.log_weights) if tuned.log_weights is not None else {}
    attributes |= measured_temperature(draws, attributes["temperature"])
    attributes |= _verdict(posterior, tuned, draws, until or Converged(), attributes)
    attributes["trust"] = trust(request, attributes)
    _warn(kernel, draws, attributes)
    return to_datatree(
        collect_groups(
            key_export,
            target,
            draws,
            posterior,
            tuned.warmup,
            groups,
            tuned.parameters.get("step_size"),
        ),
        dims=target.dims,
        coords=target.options.coords,
        attributes=attributes,
        parameters={k: v for k, v in _reported(tuned).items() if isinstance(v, np.ndarray)},
        per_chain=tuned.plan.per_chain,
    )


def default_warmup(kernel: Any, layout: Layout, stochastic: bool = False) -> int:
    """Warm-up steps: fewer for kinetic kernels, which mix fast, more without a Hessian's help."""
    if layout.dimension > DENSE_LIMIT:
        return LARGE_WARMUP
    kinetic = isinstance(kernel, Kernel) and "friction" in kernel.parameters
    short = kernel is split_ghmc or kernel is ghmc or (stochastic and kinetic)
    return KINETIC_WARMUP if short else DEFAULT_WARMUP


def _describe(request: Request, tuned: Tuned, draws: Draws, thinning: int) -> dict[str, Any]:
    """Attributes of the run."""
    known = traits(request.kernel)
    num_chains, num_samples, _ = draws.positions.shape
    steps = num_chains * num_samples * thinning
    gradients = None if known.gradients_per_step is None else steps * known.gradients_per_step
    if "n_steps" in draws.stats:
        gradients = int(np.sum(draws.stats["n_steps"]))
    attributes = {
        **LIBRARY,
        "kernel": known.name.removeprefix("langevin_ppl."),
        "target": request.target.description,
        "parameters": {k: _short(v) for k, v in _reported(tuned).items()},
        "gradient_estimator": tuned.estimator,
        "temperature": float(tuned.parameters.get("temperature", 1.0)),
        "num_chains": num_chains,
        "num_warmup": request.num_warmup,
        "num_samples": num_samples,
        "thinning": thinning,
        "precision": str(request.layout.dtype),
        "exact": known.exact,
        "incomplete": not draws.complete,
        **tuned.notes,
    }
    if request.target.summed_out:
        attributes["summed_out"] = list(request.target.summed_out)
    if gradients is not None and tuned.num_gradient_evaluations is not None:
        attributes["num_gradient_evaluations"] = gradients + tuned.num_gradient_evaluations
    if tuned.passes_per_step is not None:
        made = request.num_warmup + num_samples * thinning
        attributes["num_passes"] = tuned.passes + num_chains * made * tuned.passes_per_step
    doubt = _rounding_doubt(draws, request.layout)
    if known.exact and doubt:
        attributes["exact_doubtful"] = doubt
    return attributes


def _reported(tuned: Tuned) -> dict[str, Any]:
    """Parameters under their public names, arrays as NumPy arrays."""
    reported: dict[str, Any] = {name: value.value for name, value in tuned.plan.fixed}
    for name, value in to_host(tuned.parameters).items():
        if not isinstance(value, Preconditioner):
            reported[name] = np.asarray(value)
        elif value.directions is not None:
            parts = value._asdict()
            reported |= {f"{name}.{part}": np.asarray(parts[part]) for part in parts}
        else:
            factor = np.asarray(value.factor)  # in NumPy: nothing to compile
            # A square of a number would be a scalar of NumPy, which is no array.
            reported[name] = factor @ factor.T if factor.ndim == 2 else np.asarray(factor**2)
    return reported


def _verdict(
    posterior: Mapping[str, Any],
    tuned: Tuned,
    draws: Draws,
    rule: Converged,
    attributes: Mapping[str, Any],
) -> dict[str, Any]:
    """Whether to trust the draws, why not, and what to try."""
    seen, shortage = judge(posterior, rule)
    doubts = [*tuned.doubts, *too_hot(attributes)]
    verdict: dict[str, Any] = {
        "min_ess": seen.ess,
        "min_ess_squares": seen.ess_squares,
        "max_rhat": seen.rhat,
    }
    if not np.isfinite(draws.positions).all():
        doubts.append("A chain left the finite numbers.")
    if shortage:
        doubts.append(f"{shortage[0].upper()}{shortage[1:]}. {_what_to_try(seen, rule, tuned)}")
    verdict["converged"] = not doubts
    if doubts:
        verdict["advice"] = " ".join(doubts)
    return verdict


def _what_to_try(seen: Convergence, rule: Converged, tuned: Tuned) -> str:
    """Say what may help, by what warm-up saw."""
    if seen.rhat <= rule.rhat:
        return "Take more draws: num_samples=, or until=langevin_ppl.converged()."
    cures = []
    if "ended elsewhere" in tuned.notes.get("mode_search", ""):
        cures.append(
            "Searches for the mode ended in different places: there may be several modes, which "
            "tempering reaches (blackjax.adaptive_tempered_smc), or labels that can be ordered"
        )
    if "poor" in tuned.notes.get("gaussian_fit", "") or "no mode" in tuned.notes.get(
        "mode_search", ""
    ):
        cures.append(
            "The posterior is far from Gaussian: make sure that it is proper, reparametrise it (a "
            "non-centred hierarchy, numpyro.infer.reparam.LocScaleReparam), or try blackjax.nuts"
        )
    cures.append("Take more draws, with a longer warm-up (num_warmup=)")
    return ". ".join(cures) + "."


def _short(value: Any) -> Any:
    """Large arrays stand in the group `sampler_parameters`, not in an attribute."""
    large = isinstance(value, np.ndarray) and value.size > MAX_ATTRIBUTE_SIZE
    return f"array of shape {value.shape}" if large else value


def _rounding_doubt(draws: Draws, layout: Layout) -> str:
    """Say so where rounding of the log density is no longer small in the Metropolis test."""
    values = np.abs(draws.stats.get("lp", np.zeros(1)))
    largest = float(np.max(values, where=np.isfinite(values), initial=0.0))
    rounding = largest * float(jnp.finfo(layout.dtype).eps)
    if rounding <= MAX_ROUNDING:
        return ""
    return (
        f"The log density reaches {largest:.3g}, where {layout.dtype} rounds by {rounding:.2g}: "
        "the Metropolis test is no longer exact. Use jax.config.update('jax_enable_x64', True)."
    )


def _warn(kernel: Any, draws: Draws, attributes: Mapping[str, Any]) -> None:
    """Report what went wrong, naming chains and steps."""
    name = traits(kernel).name
    share = MAX_DIVERGENT_SHARE if isinstance(kernel, Kernel) else 0.0
    loss = float(np.nanmean(draws.stats.get("taming_loss", np.zeros(1))))
    if not attributes["exact"] and loss > MAX_TAMING_LOSS:
        warnings.warn(
            f"{name}: taming removed {100 * loss:.0f} % of the gradient on average, so its bias "
            "dominates the draws. Use a smaller step_size, or an adjusted kernel "
            "(langevin_ppl.tmala).",
            UserWarning,
            stacklevel=3,
        )
    if "exact_doubtful" in attributes:
        warnings.warn(attributes["exact_doubtful"], UserWarning, stacklevel=3)
    if attributes["incomplete"]:
        warnings.warn(
            f"Interrupted: the DataTree holds the {draws.positions.shape[1]} draws of each chain "
            "that were done (attribute incomplete=1).",
            UserWarning,
            stacklevel=3,
        )
    if not attributes["converged"]:
        warnings.warn(f"{name}: {attributes['advice']}", ConvergenceWarning, stacklevel=3)
    for sentence in too_hot(attributes):
        warnings.warn(f"{name}: {sentence}", BiasWarning, stacklevel=3)
    diverging = np.asarray(draws.stats["diverging"])
    lost = ~np.isfinite(draws.positions).all(axis=(1, 2))
    message = ""
    if lost.any():
        message = _lost_message(name, diverging, lost, attributes["thinning"])
    elif (diverging.mean(axis=1) > (1.0 - (1.0 - share) ** attributes["thinning"])).any():
        counts = ", ".join(f"{int(n)} in chain {c}" for c, n in enumerate(diverging.sum(axis=1)))
        message = (
            f"{name} made divergent proposals ({counts}, of {diverging.shape[1]} draws each): "
            "there are regions that this step size does not enter, and the draws may miss them. "
            "Reparametrise the model, or lower step_size."
        )
    if message:
        warnings.warn(message, DivergenceWarning, stacklevel=3)


def _lost_message(name: str, diverging: np.ndarray, lost: np.ndarray, thinning: int) -> str:
    """Name the chains that left the finite numbers, the step, and the cure."""
    chains = np.flatnonzero(lost)
    first = diverging[chains].argmax(axis=1) * thinning
    where = ", ".join(f"chain {c} at step {i}" for c, i in zip(chains, first, strict=True))
    intact = np.flatnonzero(~lost).tolist()
    keep = f" The other chains are intact: idata.sel(chain={intact})." if intact else ""
    return (
        f"{name} left the finite numbers in {where} of sampling; from there on its draws are NaN. "
        "Use a smaller step_size, a tamed kernel (langevin_ppl.tula), or an adjusted one "
        f"(langevin_ppl.mala, langevin_ppl.tmala).{keep}"
    )

"""``sample``: a target and a kernel in, an ArviZ DataTree out; ``resume`` goes on with one."""

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from langevin_ppl import run
from langevin_ppl.arguments import (
    check_groups,
    check_labels,
    check_parameters,
    check_store,
    check_target,
    check_tuning,
    earlier_parameters,
    earlier_positions,
)
from langevin_ppl.base import Draws, PRNGKey, check_counts, check_key
from langevin_ppl.checkpoints import EVERY, Folder, Job, create, reopen
from langevin_ppl.convergence import Converged, Convergence, as_blocks, summarise, watch
from langevin_ppl.devices import mesh_for, place_data
from langevin_ppl.export import (
    axis_labels,
    collect_groups,
    draw_blocks,
    examined,
    to_datatree,
    to_zarr,
    variables,
)
from langevin_ppl.kernels import Kernel, check_burn_in, ghmc, split_ghmc
from langevin_ppl.tree import Layout
from langevin_ppl.trust import measured_temperature, of_gaussian, reweighted
from langevin_ppl.verdict import describe, reported, verdict, warn_of
from langevin_ppl.warmup import (
    DENSE_LIMIT,
    Request,
    Tuned,
    by_noise,
    kernel_and_gradient,
    traits,
    tune,
)

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["resume", "sample"]

DEFAULT_WARMUP = 500
KINETIC_WARMUP = 300
LARGE_WARMUP = 1000
DEFAULT_SAMPLES = 1000
STOCHASTIC_SAMPLES = 2000
MAX_SAMPLES = 20_000
"""Most draws of each chain that ``until`` may take, unless ``num_samples`` says otherwise."""


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
    checkpoint: str | os.PathLike[str] | None = None,
    every: float = EVERY,
    store: str | os.PathLike[str] | None = None,
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
        Show progress bars (never under ``CI``): draws, rate, time left, effective sample size so
        far and gradient evaluations.
    chunk
        Draws between two returns to the host; by default about half a second's worth. It
        changes no draw.
    mesh
        Devices, with axes named ``chain`` and ``data``: ``jax.make_mesh((2, 2), ("chain",
        "data"))``. Chains are spread over the one, rows of the data over the other; see
        `langevin_ppl.devices`. By default chains are spread over as many devices as divide them.
    checkpoint
        Folder to keep the run in, so that `resume` can go on with it after the process has ended,
        however it ended. There must be no run in it.
    every
        Seconds between two checkpoints.
    store
        Folder of a zarr store for the draws, which then are not held in memory: they wait in the
        checkpoint, which is needed for it, and the DataTree reads them from the store.
    **kernel_parameters
        Parameters of the kernel, which are then not tuned. A ``step_size`` given without an
        ``inverse_mass_matrix`` is one for the identity.

    Returns
    -------
    xarray.DataTree
        Groups ``posterior``, ``sample_stats``, ``observed_data``, ``constant_data``, those asked
        for, and ``sampler_parameters`` and ``sampler_position`` for a later run. Attributes
        say how it was made; every run has them, and ``docs/attributes.md`` says what each means.
        ``exact`` is 1 where the kernel's stationary distribution is the target, and ``converged``
        is 1 where ESS of draws and of squared deviations reach 400 (or what ``until`` asks for),
        R-hat 1.01, and nothing else went wrong. ``advice`` says what was found and what to try; it
        is empty where nothing was. ``trust`` puts that in a line.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit; the message says what was expected.

    Warns
    -----
    CheckpointWarning
        If a checkpoint could not be written; the run goes on without.
    ConvergenceWarning
        If ``converged`` is 0.
    DivergenceWarning
        If a chain became non-finite, or proposals diverged.
    BiasWarning
        If gradient noise has heated the draws, so that posterior sds are too large.

    Notes
    -----
    R-hat and effective sample size cannot see the bias of an unadjusted kernel. Its automatic
    step size is at most 0.1 in the whitened frame, where ULA's standard deviation on a Gaussian
    is 2.6 % too large, and at most a quarter of its adjusted sibling's.

    A chain whose search for a mode ends elsewhere than the best one starts there, unless the
    posterior mass there is negligible: chains that disagree then show in R-hat. The attribute
    ``mode_search`` names both. No diagnostic detects a mode that no chain found.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> target = lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))
    >>> idata = lp.sample(jax.random.key(0), target, num_samples=500)
    >>> idata["posterior"]["x"].shape, idata.attrs["converged"]
    ((4, 500, 2), 1)
    """
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
    check_store(store, checkpoint, groups)
    earlier, per_chain = earlier_parameters(parameters, num_chains)
    given = check_parameters(kernel, {**earlier, **kernel_parameters}, per_chain, layout)
    job = Job(
        rng_key=rng_key,
        kernel=kernel,
        gradient=gradient,
        num_chains=num_chains,
        num_warmup=int(num_warmup),
        num_samples=int(num_samples),
        until=until,
        thinning=None if thinning is None else int(thinning),
        initial=earlier_positions(initial, layout, num_chains),
        given=given,
        per_chain=frozenset(per_chain - set(kernel_parameters)),
        groups=tuple(groups),
        metric=metric,
        target_acceptance_rate=target_acceptance_rate,
    )
    manner = Manner(progress, chunk, store, mesh_for(mesh, num_chains))
    if checkpoint is None:
        return _carry_out(job, target, None, manner)
    with create(checkpoint, job, target, every=every, holds_outputs=store is not None) as folder:
        return _carry_out(job, target, folder, manner)


def resume(
    path: str | os.PathLike[str],
    target: Any,
    kernel: Any = None,
    gradient: Any = None,
    *,
    num_samples: int | None = None,
    progress: bool = False,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    every: float = EVERY,
    store: str | os.PathLike[str] | None = None,
    **kernel_parameters: Any,
) -> "xr.DataTree":
    """Go on with a run that was kept by ``sample(..., checkpoint=path)``.

    The draws are bit for bit those of a run that was never interrupted, on the same kind of
    machine with the same versions and devices. The search for a mode is made again where it was
    made before the first step; steps are not.

    Parameters
    ----------
    path
        Folder of the checkpoint.
    target
        The target of the run: the same model and data, made anew.
    kernel, gradient
        Those of the run, where they are not of this library; else rebuilt by name.
    num_samples
        Draws of each chain in all, to go on for longer than was asked for at first.
    progress, chunk, mesh, every, store
        As in `sample`.
    **kernel_parameters
        Functions among the kernel's parameters, which cannot be written down.

    Returns
    -------
    xarray.DataTree
        As from `sample`. Of a run that had ended it is made again from its draws.

    Raises
    ------
    CheckpointError
        A ``ValueError``: if there is no run at ``path``, if it is of another format, target,
        kernel or gradient (the message names the difference), or if another process goes on with
        it.

    Warns
    -----
    CheckpointWarning
        If files are damaged, and the run goes on from the state before; if the run was made with
        another version of this library or of JAX.

    Examples
    --------
    >>> import tempfile, jax, jax.numpy as jnp, langevin_ppl as lp
    >>> target = lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))
    >>> path = tempfile.mkdtemp()
    >>> idata = lp.sample(jax.random.key(0), target, num_samples=500, checkpoint=path)
    >>> longer = lp.resume(path, target, num_samples=1000)
    >>> bool((longer["posterior"]["x"][:, :500].values == idata["posterior"]["x"].values).all())
    True
    """
    check_target(target)
    optional = {"num_samples": num_samples, "chunk": chunk}
    check_counts(1, **{name: value for name, value in optional.items() if value is not None})
    folder, job = reopen(
        path,
        target,
        every=every,
        holds_outputs=store is not None,
        kernel=kernel,
        gradient=gradient,
        parameters=kernel_parameters,
    )
    with folder:
        check_store(store, path, job.groups)
        if num_samples is not None:
            job = job._replace(num_samples=int(num_samples))
        manner = Manner(progress, chunk, store, mesh_for(mesh, job.num_chains))
        return _carry_out(job, target, folder, manner)


class Manner(NamedTuple):
    """How a run is carried out: what changes no draw."""

    progress: bool
    chunk: int | None
    store: Any
    mesh: Mesh | None


def _carry_out(job: Job, target: Any, folder: Folder | None, manner: Manner) -> "xr.DataTree":
    """Warm up, sample and conclude; what the folder holds already is not done again."""
    began = time.perf_counter()
    layout, until = Layout.of(target.prototype), job.until
    progress, chunk, store, mesh = manner
    placed = place_data(target, mesh)
    request = Request(
        target=placed,
        layout=layout,
        kernel=job.kernel,
        num_warmup=job.num_warmup,
        given=job.given,
        per_chain=job.per_chain,
        initial=job.initial,
        metric=job.metric,
        target_acceptance_rate=job.target_acceptance_rate,
        capacity=run.capacity_of(layout, job.num_chains),
        keep_warmup="warmup_posterior" in job.groups,
        thinning=job.thinning,
        progress=progress,
        gradient=job.gradient,
        folder=folder,
        mesh=mesh,
    )
    phases = run.phase_keys(job.rng_key, job.num_chains, mesh)
    start_keys, warmup_keys, sample_keys, key_export = phases
    with target.advising():
        tuned = (tune if job.gradient is None else by_noise)(start_keys, warmup_keys, request)
    thinning = tuned.thinning
    warmed = time.perf_counter()

    def confirm(positions: np.ndarray) -> Convergence:
        return summarise(draw_blocks(target, layout, positions), until.ess if until else math.inf)

    draws = run.advance(
        sample_keys,
        placed.logdensity_fn if tuned.source is None else tuned.source,
        run.Chains(tuned.states),
        tuned.parameters,
        tuned.plan,
        num_steps=job.num_samples,
        probe=tuned.probe,
        thinning=thinning,
        progress=progress,
        chunk=chunk,
        monitor=None if until is None else watch(until, job.num_samples, confirm),
        keeper=request.keeper("sample"),
        note=_noted(request, tuned),
        supply=tuned.supply,
    )
    times = {"warmup_time": warmed - began, "sampling_time": time.perf_counter() - warmed}
    return _presented(key_export, job, target, request, tuned, draws, times, store)


def _presented(
    rng_key: PRNGKey,
    job: Job,
    target: Any,
    request: Request,
    tuned: Tuned,
    draws: Draws,
    times: dict[str, float],
    store: Any,
) -> "xr.DataTree":
    """Judge the draws, say what there is to say of them, and put all of it into a DataTree."""
    draws, effective_share = reweighted(draws)
    if store is None:
        posterior = variables(target, request.layout, draws.positions)
        blocks = as_blocks(posterior)
    else:  # nowhere are all variables in memory
        posterior = {}
        blocks = draw_blocks(target, request.layout, examined(draws))
    blocks = blocks._replace(labels=axis_labels(target))
    attributes = describe(request, tuned, draws, tuned.thinning) | times
    if effective_share is not None:
        attributes["weighted"] = (
            "draws were resampled in proportion to their weights, an effective share of "
            f"{effective_share:.3g}"
        )
    attributes |= {} if tuned.log_weights is None else of_gaussian(tuned.log_weights)
    attributes |= measured_temperature(draws, attributes["temperature"])
    attributes |= verdict(blocks, tuned, draws, job.until or Converged(), attributes)
    warn_of(job.kernel, draws, attributes)
    step_size = tuned.parameters.get("step_size")
    presented = {
        "attributes": attributes,
        "parameters": {k: v for k, v in reported(tuned).items() if isinstance(v, np.ndarray)},
        "per_chain": tuned.plan.per_chain,
    }
    if store is not None:
        return to_zarr(store, target, draws, step_size, **presented)
    groups = collect_groups(rng_key, target, draws, posterior, tuned.warmup, job.groups, step_size)
    return to_datatree(groups, target=target, **presented)


def _noted(request: Request, tuned: Tuned) -> Callable[[Any, int], str]:
    """What a bar says beside rate and time left."""
    known = traits(request.kernel)

    def note(outputs: Any, done: int) -> str:
        positions, stats = outputs
        seen = summarise(np.moveaxis(positions, 0, 1))
        parts = [f"ESS {min(seen.ess, seen.ess_squares):.0f}"]
        gradients = tuned.num_gradient_evaluations
        if "n_steps" in stats:
            gradients = (gradients or 0) + int(np.sum(stats["n_steps"]))
        elif known.gradients_per_step is not None and gradients is not None:
            steps = positions.shape[1] * done * tuned.thinning
            gradients += steps * known.gradients_per_step
        return ", ".join([*parts, *([f"{gradients:.3g} gradients"] if gradients else [])])

    return note


def default_warmup(kernel: Any, layout: Layout, stochastic: bool = False) -> int:
    """Warm-up steps: fewer for kinetic kernels, which mix fast, more without a Hessian's help."""
    if layout.dimension > DENSE_LIMIT:
        return LARGE_WARMUP
    kinetic = isinstance(kernel, Kernel) and "friction" in kernel.parameters
    short = kernel is split_ghmc or kernel is ghmc or (stochastic and kinetic)
    return KINETIC_WARMUP if short else DEFAULT_WARMUP

"""``fit``: a NumPyro model with parameters and data in, the model with learned parameters out."""

import contextlib
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import (
    DivergenceWarning,
    Position,
    PRNGKey,
    check_counts,
    check_key,
    check_number,
)
from langevin_ppl.checkpoints import EVERY
from langevin_ppl.checkpoints.asked import begin_or_go_on
from langevin_ppl.energy.data import by_site, check_condition, moments_of, positions_of
from langevin_ppl.energy.methods import Sampling, persistent
from langevin_ppl.energy.model import EnergyModel, given
from langevin_ppl.energy.objective import Objective, Penalties
from langevin_ppl.energy.starts import start_of
from langevin_ppl.energy.walkers import Chains, check_kernel
from langevin_ppl.energy.weights import Normalizer, effective_share, log_mean_exp
from langevin_ppl.fit import Reported, as_optimizer, descend, descent
from langevin_ppl.kernels import Kernel, ula
from langevin_ppl.loop import Keeper
from langevin_ppl.sampling import sample
from langevin_ppl.targets import ModelTarget

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Fitted", "fit", "walk"]

BATCH = 128
"""Rows of a batch by default."""

FAR = 100.0
"""Root mean square of walkers, in standard deviations of the data, above which they have left."""

WIDE = 100.0
"""Energy gap at the end, in nats, above which walkers have left: for a learned law it is near 0."""

CURE = (
    "If walkers ran away ('walker_spread' in the reports says how far), the energy is unbounded "
    "below or the step too large for its gradients: take a smaller step_size, a tamed kernel such "
    "as langevin_ppl.tula, or a base measure; else a lower learning rate."
)


class Fitted(NamedTuple):
    """What `fit` returns.

    Attributes
    ----------
    target
        Target of the latent sites with the learned parameters, to draw from by
        `langevin_ppl.sample`. For a model with conditions, at the first of them.
    parameters
        Learned values of the ``param`` sites, for ``numpyro.handlers.substitute``.
    walkers
        Walkers of the last update by site, ``[walker, ...]``; None without walkers.
    log_weights
        Of the walkers, for the learned parameters, ``[walker]``; None where they count alike.
    normalizer
        ``log Z`` where the method knows it, else None.
    losses
        Loss of every step, ``[step]``: with walkers the gap of energies and penalties, which is
        no likelihood.
    reports
        What was measured in every step, by name, ``[step]``: ``energy_gap``; ``walker_spread``, the
        root mean square of walkers in standard deviations of the data; ``acceptance_rate``; and of
        weighted walkers ``ess``, a share, ``log_normalizer``, ``resampled``, and ``lost``, the
        share of walkers that left the finite numbers.
    method, bias
        Name of the method, and what its bias is; the latter is empty where there is none.
    failed_at
        Step whose loss or gradient was not finite, which is where training ended; else None.
    complete
        False after Ctrl-C; then there are fewer steps than asked for.
    """

    target: ModelTarget
    parameters: dict[str, Any]
    walkers: dict[str, np.ndarray] | None
    log_weights: np.ndarray | None
    normalizer: Normalizer | None
    losses: np.ndarray
    reports: dict[str, np.ndarray]
    method: str
    bias: str
    failed_at: int | None
    complete: bool


def fit(
    rng_key: PRNGKey,
    model: Any,
    data: Any,
    *,
    method: Any = None,
    kernel: Kernel = ula,
    optimizer: Any = None,
    num_steps: int = 1000,
    batch_size: int | None = None,
    condition: Any = None,
    walkers: Any = None,
    log_normalizer: float | None = None,
    energy_magnitude: float = 0.0,
    gradient_penalty: float = 0.0,
    spectral_norm: float = 0.0,
    ema: float | None = None,
    checkpoint: Any = None,
    every: float = EVERY,
    progress: bool = True,
    **kernel_parameters: Any,
) -> Fitted:
    r"""Learn the parameters of an unnormalised model from data.

    With :math:`p_\theta \propto e^{-E_\theta}` the gradient of the negative log likelihood is

    .. math:: \mathbb{E}_{\text{data}} \nabla_\theta E_\theta
        - \mathbb{E}_{p_\theta} \nabla_\theta E_\theta ,

    and the second term is an average over walkers that the kernel moves; the methods differ in
    where these begin and what they count.

    Parameters
    ----------
    rng_key
        A key, ``jax.random.key(0)``.
    model
        A NumPyro model, or its `target`: what is learned are its ``numpyro.param`` sites (networks
        by ``numpyro.contrib.module``), and all of its latent sites are data. Observed sites are
        terms of the likelihood given the latents.
    data
        Array ``[datum, *event]``, or a dict of them by the names of the latent sites.
    method
        `contrastive_divergence`, `persistent` (the default), `replay` or `jarzynski`; without
        walkers `sliced_score_matching`, `denoising_score_matching` or `noise_contrastive`.
    kernel
        What moves walkers.
    optimizer
        Any ``optax.GradientTransformation``, or the learning rate of the default: Adam with
        warm-up, cosine decay and gradients cut to norm 1, at 0.001.
    num_steps
        Number of updates.
    batch_size
        Rows of a batch; 128 by default, or all where there are fewer.
    condition
        What the model is called with for each datum: a pytree of arrays ``[datum, ...]``.
    walkers
        Where walkers begin, like ``data``. By default `persistent` begins at data, `replay` at the
        base measure, or Gaussian noise where there is none, and `jarzynski` at the base measure.
    log_normalizer
        With `jarzynski` and ``walkers``, which then are exact draws of the model at its first
        parameters: its ``log Z`` there.
    energy_magnitude
        Weight of the mean square of the energy (Du, Mordatch, 2019, arXiv:1903.08689).
    gradient_penalty
        Weight of the mean squared norm of the gradient of the energy in the datum.
    spectral_norm
        Weight of the squares of the largest singular values of all weight matrices (Yoshida,
        Miyato, 2017, arXiv:1705.10941).
    ema
        Decay of a moving average of the parameters, which is then what is learned.
    checkpoint
        Folder to keep the training in. The same call goes on from there.
    every
        Seconds between two checkpoints.
    progress
        Show a bar (never under ``CI``).
    **kernel_parameters
        Parameters of the kernel, ``step_size=0.01``, on unconstrained space.

    Returns
    -------
    Fitted
        The target with the learned parameters, walkers, and the history of the training.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit each other; the message says what was expected.
    CheckpointError
        If ``checkpoint`` holds another training.

    Warns
    -----
    DivergenceWarning
        If the loss or its gradient was not finite: the parameters of the step before are kept. If
        walkers ended far from the data.

    Notes
    -----
    The energy gap is no likelihood: it is near 0 for a model that is learned and for one whose
    walkers do not move. See `log_normalizer` and `held_out` for the likelihood.

    References
    ----------
    Song, Kingma, *How to train your energy-based models*, 2021, arXiv:2101.03288.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> import langevin_ppl as lp
    >>> def model():
    ...     tilt = numpyro.param("tilt", 0.0)
    ...     energy = lambda x: -tilt * x
    ...     numpyro.sample("x", lp.distributions.EnergyBased(energy, base=dist.Normal(0.0, 1.0)))
    >>> data = 1.0 + jax.random.normal(jax.random.key(0), (500,))
    >>> fitted = lp.energy.fit(
    ...     jax.random.key(1), model, data, method=lp.energy.jarzynski(), step_size=0.1,
    ...     optimizer=0.05, num_steps=300, progress=False,
    ... )
    >>> bool(abs(fitted.parameters["tilt"] - data.mean()) < 0.15)
    True
    """
    rng_key = check_key(rng_key)
    method = persistent() if method is None else method
    _check_method(method)
    with_walkers = hasattr(method, "advance")
    check_counts(1, num_steps=num_steps)
    weights = {
        "energy_magnitude": energy_magnitude,
        "gradient_penalty": gradient_penalty,
        "spectral_norm": spectral_norm,
    }
    for name, weight in weights.items():
        check_number(name, weight, least=0.0)
    if ema is not None:
        check_number("ema", ema, above=0.0, below=1.0)
    optimizer = as_optimizer(optimizer)
    found = EnergyModel.of(model, condition)
    values = by_site(found.latent, data)
    length = len(next(iter(values.values())))
    rows = None if condition is None else check_condition(condition, length)
    positions = positions_of(found.latent, values, rows)
    batch_size = min(BATCH, length) if batch_size is None else batch_size
    _check_batch(batch_size, length)
    if with_walkers:
        check_kernel(kernel, kernel_parameters, "energy.fit")
    elif kernel_parameters:
        raise TypeError(
            f"energy.fit: {method.name} has no walkers, and takes no "
            f"{', '.join(kernel_parameters)}."
        )
    chains = Chains(found, kernel_parameters, kernel)
    key_start, key_steps = jax.random.split(rng_key)
    own = found.parameters()
    _check_first(found, own, positions, rows)
    if with_walkers:
        start = start_of(
            key_start, method, chains, own, positions, rows, batch_size, walkers, log_normalizer
        )
        memory = method.begin(chains, own, start)
    else:
        memory = method.begin(positions)
    centre, scale = moments_of(positions)
    objective = Objective(chains, Penalties.of(*weights.values()), centre, scale, method)
    batch = jax.tree.map(lambda leaf: leaf[:batch_size], (positions, rows))
    parameters = own, jnp.zeros(())
    reported = _with_report(objective, parameters, memory, key_steps, batch)
    with contextlib.ExitStack() as stack:

        def keeper(asked: dict[str, str]) -> Keeper:
            folder = stack.enter_context(begin_or_go_on(checkpoint, asked, every))
            return folder.stage("steps")

        descended = descend(
            key_steps,
            objective,
            parameters,
            (positions, rows),
            num_steps=num_steps,
            batch_size=batch_size,
            optimizer=optimizer,
            memory=reported,
            ema=ema,
            keeper=None if checkpoint is None else keeper,
            progress=progress,
            label="energy.fit",
            cure=CURE if with_walkers else descent.CURE,
        )
    best, constant = descended.parameters if ema is None else descended.average
    ended: dict[str, Any] = {"walkers": None, "log_weights": None, "normalizer": None}
    if with_walkers:
        ended = _ended(method, chains, best, descended.memory.memory)
        if descended.failed_at is None:
            _warn_far(descended.reports)
    elif method.has_normalizer:
        ended["normalizer"] = Normalizer(float(constant), float("nan"), float("nan"))
    return Fitted(
        target=found.latent.with_fixed(found.values(best)),
        parameters=jax.tree.map(np.asarray, found.values(best)),
        losses=descended.losses,
        reports=descended.reports,
        method=method.name,
        bias=method.bias,
        failed_at=descended.failed_at,
        complete=descended.complete,
        **ended,
    )


def walk(
    rng_key: PRNGKey, fitted: Fitted, kernel: Any = None, num_chains: int = 4, **options: Any
) -> "xr.DataTree":
    """Let walkers go on at the learned parameters, as chains of a run.

    R-hat and effective sample size then say whether walkers forget where they began: a trainer
    whose walkers do not is biased. Chains begin at walkers that are drawn by their weights.

    Parameters
    ----------
    rng_key
        A key.
    fitted
        From `fit`.
    kernel, num_chains
        As in `langevin_ppl.sample`.
    **options
        Further arguments of `langevin_ppl.sample`.

    Returns
    -------
    xarray.DataTree
        As from `langevin_ppl.sample`, with a group ``training`` of the losses and reports of every
        step, and the attributes ``training_method`` and ``training_bias``.

    Raises
    ------
    ValueError
        If there were no walkers; `langevin_ppl.sample` then draws from ``fitted.target``.

    Examples
    --------
    >>> import jax, numpyro, numpyro.distributions as dist, langevin_ppl as lp
    >>> def model():
    ...     rate = numpyro.param("rate", 1.0, constraint=dist.constraints.positive)
    ...     numpyro.sample("x", lp.distributions.EnergyBased(lambda x: rate * x**2))
    >>> data = jax.random.normal(jax.random.key(0), (100,))
    >>> fitted = lp.energy.fit(
    ...     jax.random.key(1), model, data, step_size=0.1, num_steps=50, progress=False
    ... )
    >>> idata = lp.energy.walk(jax.random.key(2), fitted, lp.mala)
    >>> idata["training"]["loss"].shape, idata.attrs["training_method"]
    ((50,), 'persistent')
    """
    import xarray as xr

    if fitted.walkers is None:
        raise ValueError(
            f"energy.walk: {fitted.method} has no walkers. Draw from fitted.target by "
            "langevin_ppl.sample."
        )
    rng_key = check_key(rng_key)
    check_counts(1, num_chains=num_chains)
    key_rows, key_run = jax.random.split(rng_key)
    number = len(next(iter(fitted.walkers.values())))
    weights = None if fitted.log_weights is None else jax.nn.softmax(fitted.log_weights)
    rows = np.asarray(jax.random.choice(key_rows, number, (num_chains,), p=weights))
    chosen = {site: jnp.asarray(values[rows]) for site, values in fitted.walkers.items()}
    initial, _ = jax.vmap(fitted.target.unconstrain)(chosen)
    tree = sample(key_run, fitted.target, kernel, num_chains=num_chains, initial=initial, **options)
    curves = {"loss": fitted.losses, **fitted.reports}
    tree["training"] = xr.DataTree(
        xr.Dataset({name: ("step", values) for name, values in curves.items()})
    )
    tree.attrs["training_method"] = fitted.method
    tree.attrs["training_bias"] = fitted.bias
    return tree


def _ended(method: Sampling, chains: Chains, parameters: Any, memory: Any) -> dict[str, Any]:
    """Walkers of the last update, with weights for the learned parameters."""
    if method.name == "contrastive_divergence":
        return {"walkers": None, "log_weights": None, "normalizer": None}
    model = chains.model
    weighted = method.name == "jarzynski"
    positions = memory.positions if method.name == "replay" else memory.states.position
    rows = None if weighted else memory.rows
    walkers = jax.tree.map(np.asarray, _constrained(model, parameters, positions, rows))
    if not weighted:
        return {"walkers": walkers, "log_weights": None, "normalizer": None}
    densities = _densities(model, parameters, positions)
    log_weights = memory.log_weights + densities - memory.states.logdensity
    share = effective_share(log_weights)
    variance = memory.variance + (1.0 / share - 1.0) / log_weights.size
    normalizer = Normalizer(
        float(memory.log_normalizer + log_mean_exp(log_weights)),
        float(jnp.sqrt(variance)),
        float(share * log_weights.size),
    )
    return {
        "walkers": walkers,
        "log_weights": np.asarray(log_weights),
        "normalizer": normalizer,
    }


@jax.jit
def _constrained(model: EnergyModel, parameters: Any, positions: Position, rows: Any) -> Any:
    """Values of the latent sites at positions ``[walker, ...]``."""

    def one(position: Position, row: Any) -> Any:
        part = given(model.latent, row).with_fixed(model.values(parameters))
        values = part.constrain(position)
        return {site: values[site] for site in model.latent.prototype}

    return jax.vmap(one, (0, None if rows is None else 0))(positions, rows)


@jax.jit
def _densities(model: EnergyModel, parameters: Any, positions: Position) -> Any:
    return jax.vmap(model.density(parameters))(positions)


@jax.jit
def _likelihoods(model: EnergyModel, parameters: Any, positions: Position, rows: Any) -> Any:
    def one(position: Position, row: Any) -> Any:
        return model.likelihood(parameters, row, position)

    return jax.vmap(one, (0, None if rows is None else 0))(positions, rows)


def _with_report(
    objective: Objective, parameters: Any, memory: Any, rng_key: PRNGKey, batch: Any
) -> Reported:
    """Memory with a report of zeros, of the structure that the loss puts out."""
    first = Reported(memory, {})
    shapes = jax.eval_shape(objective, parameters, first, rng_key, batch)[1].report
    return Reported(memory, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))


def _check_first(found: EnergyModel, parameters: Any, positions: Position, rows: Any) -> None:
    """Refuse an energy that is not finite at the data before any training."""
    values = _likelihoods(found, parameters, positions, rows)
    bad = np.flatnonzero(~np.isfinite(np.asarray(values)))
    if len(bad):
        raise ValueError(
            f"energy.fit: the log density of {found.whole.description} is "
            f"{float(values[bad[0]])} at row {bad[0]} of the data and not finite at {len(bad)} of "
            f"{len(values)}, before training. Look at the energy there."
        )


def _warn_far(reports: dict[str, np.ndarray]) -> None:
    spread, gap = (reports[name][-1:].sum() for name in ("walker_spread", "energy_gap"))
    what = []
    if spread > FAR:
        what.append(f"{spread:.3g} standard deviations of the data away from them")
    if abs(gap) > WIDE:
        what.append(f"with an energy gap of {gap:.3g} nats")
    if what:
        warnings.warn(
            f"energy.fit: walkers ended {' and '.join(what)}. {CURE}",
            DivergenceWarning,
            stacklevel=3,
        )


def _check_method(method: Any) -> None:
    if not (hasattr(method, "begin") and hasattr(method, "bias")):
        raise TypeError(
            "method: expected one such as langevin_ppl.energy.persistent() or "
            f"langevin_ppl.energy.jarzynski(), got {method!r}."
        )


def _check_batch(batch_size: Any, length: int) -> None:
    check_counts(1, batch_size=batch_size)
    if batch_size > length:
        raise ValueError(f"batch_size: expected at most the {length} data, got {batch_size}.")

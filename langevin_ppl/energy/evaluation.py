"""How good an energy is: its normaliser, the likelihood of data held out, and what is foreign."""

import functools
import warnings
from typing import Any, NamedTuple

import blackjax.smc.adaptive_tempered as adaptive_tempered
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.smc.resampling import systematic

from langevin_ppl.base import (
    DivergenceWarning,
    PRNGKey,
    check_counts,
    check_key,
    check_number,
    percent,
)
from langevin_ppl.energy.annealed import anneal, draws_of_base, variances
from langevin_ppl.energy.data import by_site, positions_of
from langevin_ppl.energy.laws import sites_at
from langevin_ppl.energy.model import base_of, check_target, without_observed
from langevin_ppl.energy.training import Fitted
from langevin_ppl.energy.walkers import check_kernel, is_weighable
from langevin_ppl.energy.weights import Normalizer
from langevin_ppl.kernels import Kernel, mala
from langevin_ppl.targets import ModelTarget

__all__ = ["HeldOut", "auroc", "energies", "held_out", "log_normalizer"]

MAX_LEVELS = 1000
"""Levels after which tempering gives up."""

_NOWHERE = (
    "the weights of the walkers are not finite. Look at the energy where the base measure is: it "
    "has to be finite there, and a step_size that is given small enough for its gradients."
)

GAIN = 1.0
"""How much the logarithm of the step of tempering changes for a rate that is off by one."""


def log_normalizer(
    rng_key: PRNGKey,
    target: Any,
    *,
    method: str = "ais",
    kernel: Kernel = mala,
    num_walkers: int = 1000,
    num_levels: int = 500,
    steps_per_level: int = 1,
    repeats: int = 8,
    ess: float = 0.9,
    **kernel_parameters: Any,
) -> Normalizer:
    r"""Logarithm of the normaliser, by walks from the base measure of the model.

    The normaliser is that of the density of the latent sites, base measures included:
    :math:`\log \int b(x) e^{-E(x)} dx`.

    Parameters
    ----------
    rng_key
        A key.
    target
        A target with normalised base measures, or the result of `fit`.
    method
        ``"ais"``: annealed importance sampling, whose walkers are independent; the standard error
        is by the spread of their weights. ``"smc"``: tempered sequential Monte Carlo (BlackJAX's),
        whose levels follow from the weights; the standard error is by independent repetitions.
    kernel
        What moves walkers: an overdamped one with a Metropolis test, or for ``"ais"`` also one
        whose steps are Gaussian, with its ``step_size``.
    num_walkers
        Walkers, of one repetition of ``"smc"``.
    num_levels, steps_per_level
        Levels of ``"ais"``, and steps of the kernel at each level.
    repeats
        Repetitions of ``"smc"``.
    ess
        Effective share of the walkers of ``"smc"`` at every new level.
    **kernel_parameters
        Parameters of the kernel; its step size is tuned where none is given.

    Returns
    -------
    Normalizer
        Value, standard error and effective number of walkers.

    Raises
    ------
    TypeError, ValueError
        If the model has no base measure that can be drawn from, or sites that are scaled; if
        arguments do not fit; or if no walker has a finite weight.

    Warns
    -----
    DivergenceWarning
        If walkers of a kernel without a Metropolis test left the finite numbers.

    Notes
    -----
    The error is seen from the walkers: of a mode that none of them has found it knows nothing, and
    the normaliser is too small then. The mean of the weights has no bias, its logarithm a negative
    one of half the squared error.

    References
    ----------
    Neal, *Annealed importance sampling*, 1998, arXiv:physics/9803008; Del Moral, Doucet, Jasra,
    *Sequential Monte Carlo samplers* (2006).

    Examples
    --------
    >>> import jax, numpyro, numpyro.distributions as dist, langevin_ppl as lp
    >>> def model():
    ...     energy = lambda x: 1.5 * x**2
    ...     numpyro.sample("x", lp.distributions.EnergyBased(energy, base=dist.Normal(0.0, 1.0)))
    >>> found = lp.energy.log_normalizer(jax.random.key(0), lp.target(model), num_levels=50)
    >>> bool(abs(found.value + 0.5 * jax.numpy.log(4.0)) < 4 * found.standard_error)
    True
    """
    rng_key = check_key(rng_key)
    latent = _latent(target, "energy.log_normalizer")
    check_counts(
        1,
        num_walkers=num_walkers,
        num_levels=num_levels,
        steps_per_level=steps_per_level,
        repeats=repeats,
    )
    _check_walks(method, kernel, kernel_parameters, ess)
    base = base_of(latent, "energy.log_normalizer")
    if method == "ais":
        found = anneal(
            rng_key,
            base,
            latent,
            num_walkers,
            num_levels,
            steps_per_level,
            kernel,
            kernel_parameters,
        )
        _check_lost(found.log_weights, kernel)
        return found.normalizer
    found = [
        _tempered(key, base, latent, num_walkers, steps_per_level, kernel, kernel_parameters, ess)
        for key in jax.random.split(rng_key, repeats)
    ]
    # The ratio of normalisers has no bias, so it is that which is averaged.
    logs = np.array(found)
    ratios = np.exp(logs - logs.max())
    value = float(logs.max() + np.log(ratios.mean()))
    error = float("nan")
    if repeats > 1:
        error = float(ratios.std(ddof=1) / ratios.mean() / np.sqrt(repeats))
    return Normalizer(value, error, float(num_walkers * repeats))


def _tempered(
    rng_key: PRNGKey,
    base: ModelTarget,
    latent: ModelTarget,
    num_walkers: int,
    num_steps: int,
    kernel: Kernel,
    parameters: Any,
    ess: float,
) -> float:
    """``log Z`` by one run of BlackJAX's adaptive tempering, with our kernel inside."""
    key_draw, key_run = jax.random.split(rng_key)
    positions = draws_of_base(key_draw, base, num_walkers)
    parameters = dict(parameters)
    parameters.setdefault("inverse_mass_matrix", variances(positions))
    tuned = "step_size" not in parameters
    log_step = 0.0 if tuned else float(np.log(parameters["step_size"]))
    ends = base.logdensity_fn, latent.logdensity_fn
    state: Any = adaptive_tempered.init(positions)
    total = 0.0
    for level in range(MAX_LEVELS):
        key = jax.random.fold_in(key_run, level)
        step = jnp.exp(jnp.asarray(log_step))
        state, info = _temper(key, ends, state, parameters, step, ess, kernel, num_steps)
        total += float(info.log_likelihood_increment)
        if not np.isfinite(total):
            raise ValueError(f"energy.log_normalizer: {_NOWHERE}")
        if float(state.tempering_param) >= 1.0:
            return total
        rate = float(jnp.mean(info.update_info.acceptance_rate))
        if tuned:
            log_step += GAIN * (rate - float(kernel.target_acceptance_rate or rate))
    raise ValueError(
        f"energy.log_normalizer: tempering has not reached the model in {MAX_LEVELS} levels. Take "
        "more walkers, or a base measure nearer to the model."
    )


@functools.partial(jax.jit, static_argnames=("kernel", "num_steps"))
def _temper(
    rng_key: PRNGKey,
    ends: Any,
    state: Any,
    parameters: Any,
    step_size: Any,
    ess: Any,
    kernel: Kernel,
    num_steps: int,
) -> tuple[Any, Any]:
    base, end = ends
    own = kernel.prepare({**parameters, "step_size": step_size})

    def ratio(position: Any) -> Any:
        return end(position) - base(position)

    def init(position: Any, density: Any) -> Any:
        algorithm: Any = kernel(density, **own)
        return algorithm.init(position)

    def step(key: PRNGKey, inner: Any, density: Any) -> Any:
        return kernel(density, **own).step(key, inner)

    tempering = adaptive_tempered.build_kernel(base, ratio, step, init, systematic, ess)
    return tempering(rng_key, state, num_steps, {})


class HeldOut(NamedTuple):
    """Log likelihood of data.

    Attributes
    ----------
    log_likelihood
        Mean over data, in nats.
    standard_error
        By the spread of the data and the error of the normaliser.
    pointwise
        Of every datum, ``[datum]``.
    """

    log_likelihood: float
    standard_error: float
    pointwise: np.ndarray


def held_out(target: Any, data: Any, normalizer: Normalizer) -> HeldOut:
    """Log likelihood of data, in their own coordinates.

    Parameters
    ----------
    target
        A target, or the result of `fit`.
    data
        As in `fit`.
    normalizer
        From `log_normalizer`, or ``fitted.normalizer``.

    Returns
    -------
    HeldOut
        Mean, standard error and the value for every datum.

    Raises
    ------
    TypeError
        If there is no normaliser.
    ValueError
        If the data do not fit the model, or sites of it are scaled.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist, langevin_ppl as lp
    >>> def model():
    ...     energy = lambda x: 0.0 * x
    ...     numpyro.sample("x", lp.distributions.EnergyBased(energy, base=dist.Normal(0.0, 1.0)))
    >>> known = lp.energy.Normalizer(0.0, 0.0, 1.0)
    >>> found = lp.energy.held_out(lp.target(model), jnp.zeros(3), known)
    >>> round(found.log_likelihood, 3)
    -0.919
    """
    if not isinstance(normalizer, Normalizer):
        raise TypeError(
            "held_out: expected normalizer to be the result of log_normalizer, or that of a method "
            f"that knows it, such as jarzynski, got {normalizer!r}."
        )
    pointwise = -energies(target, data) - float(normalizer.value)
    sampling = pointwise.std(ddof=1) / np.sqrt(len(pointwise)) if len(pointwise) > 1 else np.nan
    error = float(np.hypot(sampling, float(normalizer.standard_error)))
    return HeldOut(float(pointwise.mean()), error, pointwise)


def energies(target: Any, data: Any) -> np.ndarray:
    """Energies of data in their own coordinates, base measures included.

    They are negative log likelihoods up to ``log Z``, and so scores by which foreign data are told
    apart: see `auroc`.

    Parameters
    ----------
    target
        A target, or the result of `fit`.
    data
        As in `fit`.

    Returns
    -------
    numpy.ndarray
        Nats, ``[datum]``.

    Raises
    ------
    ValueError
        If the data do not fit the model, or sites of it are scaled.

    Examples
    --------
    >>> import jax.numpy as jnp, numpyro, langevin_ppl as lp
    >>> def model():
    ...     numpyro.sample("x", lp.distributions.EnergyBased(lambda x: x**4))
    >>> lp.energy.energies(lp.target(model), jnp.array([0.0, 2.0])).tolist()
    [0.0, 16.0]
    """
    latent = _latent(target, "energy.energies")
    values = by_site(latent, data)
    positions_of(latent, values, None)  # refuses what is outside of the support
    return np.asarray(_energies(latent, values))


@jax.jit
def _energies(latent: ModelTarget, values: Any) -> Any:
    return jax.vmap(lambda row: -sum(latent.site_logdensities(row).values()))(values)


def auroc(inside: Any, outside: Any) -> float:
    """Probability that a foreign datum has the higher energy: area under the ROC curve.

    Parameters
    ----------
    inside, outside
        Energies of data of the model and of foreign data, ``[datum]``.

    Returns
    -------
    float
        1 where energies tell all of them apart, 0.5 where they tell nothing.

    Raises
    ------
    ValueError
        If one of them is empty or not finite.

    Examples
    --------
    >>> import langevin_ppl as lp
    >>> lp.energy.auroc([0.0, 1.0], [1.0, 3.0])
    0.875
    """
    sets = [np.ravel(np.asarray(values, float)) for values in (inside, outside)]
    for name, values in zip(("inside", "outside"), sets, strict=True):
        if not len(values) or not np.isfinite(values).all():
            raise ValueError(f"auroc: expected finite energies of {name}, got {values!r}.")
    low, high = np.sort(sets[0]), sets[1]
    below = np.searchsorted(low, high, "left")
    ties = np.searchsorted(low, high, "right") - below
    return float(np.mean(below + 0.5 * ties) / len(low))


def _latent(target: Any, caller: str) -> ModelTarget:
    if isinstance(target, Fitted):
        latent = target.target
    else:
        check_target(target, caller)
        latent = without_observed(target).with_fixed(target.fixed)
    _check_unscaled(latent, caller)
    return latent


def _check_unscaled(latent: ModelTarget, caller: str) -> None:
    scaled = []

    def look(position: Any) -> int:
        for name, site in sites_at(latent, position).items():
            if site["type"] == "sample" and site["scale"] is not None:
                scaled.append(name)
        return 0

    jax.eval_shape(look, latent.prototype)
    if scaled:
        raise ValueError(
            f"{caller}: the site {', '.join(map(repr, scaled))} is scaled "
            "(numpyro.handlers.scale), and a power of a base measure is not normalised. Leave the "
            "scale out, or make it a factor of the energy."
        )


def _check_lost(log_weights: Any, kernel: Kernel) -> None:
    lost = 1.0 - float(np.mean(np.isfinite(np.asarray(log_weights))))
    if lost == 1.0:
        raise ValueError(f"energy.log_normalizer: {_NOWHERE}")
    # A weight of 0 is right where the density is 0, and a Metropolis test moves nothing there.
    if lost and not kernel.exact:
        warnings.warn(
            f"energy.log_normalizer: {percent(lost)} of the particles became non-finite and count "
            "as 0, so that the normaliser may be too small. Take a smaller step_size, a tamed "
            "kernel such as langevin_ppl.tula, or langevin_ppl.mala.",
            DivergenceWarning,
            stacklevel=3,
        )


def _check_walks(method: Any, kernel: Any, parameters: Any, ess: Any) -> None:
    if method not in ("ais", "smc"):
        raise ValueError(f"method: expected 'ais' or 'smc', got {method!r}.")
    check_kernel(kernel, {"step_size": 1.0, **parameters}, "energy.log_normalizer")
    adjusted = kernel.exact and is_weighable(kernel)
    if not (adjusted or (method == "ais" and is_weighable(kernel))):
        raise ValueError(
            f"energy.log_normalizer: expected an overdamped kernel with a Metropolis test such as "
            f"langevin_ppl.mala, or for 'ais' one with Gaussian steps such as langevin_ppl.ula, "
            f"got {kernel!r}."
        )
    if "step_size" in parameters:
        check_number("step_size", float(parameters["step_size"]), above=0.0)
    if float(parameters.get("temperature", 1.0)) != 1.0:
        raise ValueError("energy.log_normalizer: expected the temperature 1 of the model.")
    check_number("ess", ess, above=0.0, below=1.0)

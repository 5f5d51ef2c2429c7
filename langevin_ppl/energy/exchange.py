"""``exchange``: the posterior of the parameters of an energy whose normaliser is not known."""

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.arguments import check_groups, check_labels, earlier_positions
from langevin_ppl.base import (
    ConvergenceWarning,
    DivergenceWarning,
    Draws,
    PRNGKey,
    check_counts,
    check_key,
    check_number,
    percent,
)
from langevin_ppl.convergence import Converged, judge
from langevin_ppl.energy.laws import IntractableTarget
from langevin_ppl.energy.random_walk import (
    NUM_STATS,
    Flags,
    Plan,
    Tuning,
    WalkState,
    advance,
    begin,
)
from langevin_ppl.export import LIBRARY, collect_groups, to_datatree, variables
from langevin_ppl.kernels import Kernel, mala
from langevin_ppl.loop import capacity_for, drive
from langevin_ppl.tree import Layout

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["exchange"]

MAX_DIVERGENT_SHARE = 0.05
"""Share of proposals without a finite ratio above which there is a warning."""

MIN_INNER_ACCEPTANCE = 0.1
"""Acceptance rate of inner chains below which they cannot be said to have moved."""

GROUPS = ("unconstrained_posterior", "warmup_posterior")
"""Groups on request; others would need draws of the data, or their normalised likelihood."""


def exchange(
    rng_key: PRNGKey,
    model: Any,
    *,
    num_chains: int = 4,
    num_warmup: int = 500,
    num_samples: int = 1000,
    inner_kernel: Kernel = mala,
    inner_steps: int = 20,
    inner_step_size: float | None = None,
    initial: Any = None,
    groups: Sequence[str] = (),
    progress: bool = False,
) -> "xr.DataTree":
    r"""Sample the posterior of the parameters of an energy, whose normaliser depends on them.

    The data :math:`y` have the law :math:`f(y; \theta) / Z(\theta)`, with :math:`Z` unknown. A
    random walk proposes :math:`\theta'`, auxiliary data :math:`w` are drawn from the law at
    :math:`\theta'`, and the proposal is accepted with probability

    .. math:: \min\left(1, \frac{p(\theta') \, f(y; \theta') \, f(w; \theta)}
        {p(\theta) \, f(y; \theta) \, f(w; \theta')}\right),

    in which the normalisers cancel. Where :math:`w` is an exact draw, the posterior is stationary.
    Here it is the end of a chain of ``inner_steps`` steps that begins at the data.

    Scale and covariance of the random walk, and the step size of the inner chains, are tuned in the
    warm-up, by all chains together, and fixed afterwards.

    Parameters
    ----------
    rng_key
        A key, ``jax.random.key(0)``.
    model
        Made by `target`, or a NumPyro model without arguments: latent sites with priors, and
        observed sites of `langevin_ppl.distributions.EnergyBased` whose energy depends on them.
        Other observed sites may have any normalised law.
    num_chains, num_warmup, num_samples
        Number of chains, and warm-up steps and draws of each.
    inner_kernel
        What moves auxiliary data: a kernel with a Metropolis test that needs a step size alone.
    inner_steps
        Its steps for every proposal.
    inner_step_size
        Its largest step size, on the unconstrained space of an event; the steps are 1, 1/2, 1/4
        and 1/8 of it in turn. By default it is tuned to the kernel's acceptance rate, for each
        site.
    initial
        Where to start: the DataTree of an earlier run, or unconstrained positions of the latent
        sites with a leading axis ``chain``.
    groups
        Further groups of the DataTree: ``unconstrained_posterior``, ``warmup_posterior``.
    progress
        Show bars (never under ``CI``).

    Returns
    -------
    xarray.DataTree
        Groups ``posterior``, latent sites and deterministics of shape ``[chain, draw, ...]``;
        ``sample_stats``, of shape ``[chain, draw]``: ``acceptance_rate`` and ``is_accepted``,
        ``diverging`` for proposals whose ratio was not finite, and ``inner_acceptance_rate``;
        ``observed_data``, ``constant_data``, ``sampler_position``; and ``sampler_parameters`` with
        the ``proposal_scale``, the ``proposal_covariance``, ``[dimension, dimension]``, and
        ``inner_step_size.<site>``. There is no log density: its normaliser is not known. The
        attribute ``exact`` is 0, and ``trust`` says why.

    Raises
    ------
    TypeError
        If the key is none.
    ValueError
        If no observed site lacks a normaliser that depends on a latent site, or a latent site does;
        for discrete latent sites, subsampled plates, streams, and sites that are scaled; if the
        inner kernel has no Metropolis test; or if data are outside of their support.

    Warns
    -----
    ConvergenceWarning
        If ``converged`` is 0.
    DivergenceWarning
        If many ratios were not finite.

    Notes
    -----
    The draws are biased unless the inner chain forgets the data at which it begins, and no
    diagnostic of theirs sees it: R-hat and effective sample size are those of the biased law.
    Double ``inner_steps``, and compare; what changes by more than its Monte Carlo error was biased.
    An inner chain that does not move leaves the prior, and one that moves a little a posterior that
    is too wide. Steps of different sizes, in turn, are for laws wider or narrower than most.

    Events of a site are independent given the parameters, so that each has an inner chain and a
    Metropolis test of its own: what a batch axis holds, whether of a plate, of the distribution or
    of ``to_event``. Inside of one event, dimension costs inner steps, as it does for any chain.
    Laws of several sites, and conditions of a site on others, are taken at the data.

    A step costs ``inner_steps`` gradients of the energies of all events. The walk is blind to
    gradients in the parameters, and is meant for some tens of them at most.

    References
    ----------
    Murray, Ghahramani, MacKay, *MCMC for doubly-intractable distributions*, 2006, arXiv:1206.6848;
    Liang, *A double Metropolis-Hastings sampler for spatial models with intractable normalizing
    constants* (2010).

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> import langevin_ppl as lp
    >>> def model(y):
    ...     theta = numpyro.sample("theta", dist.Gamma(1.0, 1.0))
    ...     with numpyro.plate("row", y.shape[0]):
    ...         numpyro.sample("y", lp.distributions.EnergyBased(lambda x: theta * x**4), obs=y)
    >>> y = jnp.linspace(-1.0, 1.0, 50)
    >>> idata = lp.energy.exchange(jax.random.key(0), lp.target(model, y))
    >>> exact = (1.0 + 50 / 4) / (1.0 + jnp.sum(y**4))  # a Gamma posterior: Z is theta^(-1/4)
    >>> mean = float(idata["posterior"]["theta"].mean())
    >>> idata["posterior"]["theta"].shape, idata.attrs["exact"], bool(abs(mean / exact - 1) < 0.05)
    ((4, 1000), 0, True)
    """
    began = time.perf_counter()
    rng_key = check_key(rng_key)
    check_counts(
        1,
        num_chains=num_chains,
        num_warmup=num_warmup,
        num_samples=num_samples,
        inner_steps=inner_steps,
    )
    _check_inner(inner_kernel)
    if inner_step_size is not None:
        check_number("inner_step_size", inner_step_size, above=0.0)
    found = IntractableTarget.of(model)
    _check_groups(groups, found, num_warmup)
    check_labels(found)
    layout = Layout.of(found.prototype)
    key_start, key_steps, key_export = jax.random.split(rng_key, 3)
    first_steps = found.first_steps(inner_step_size)
    positions = earlier_positions(initial, layout, num_chains)
    if positions is None:
        keys = jax.random.split(key_start, num_chains)
        positions = jnp.stack([layout.ravel(found.init_position(key)) for key in keys])
    chains = begin(found, layout, positions)
    _check_begun(found, layout, chains)
    capacity = capacity_for(num_chains * (layout.dimension + NUM_STATS) * 8)
    plan = Plan(inner_kernel, inner_step_size is None, layout, capacity)
    keys = jax.random.split(key_steps, num_chains)
    flags = Flags.of(num_warmup)
    tuning = Tuning.first(layout, first_steps)

    def go(carry: Any, done: int, number: int, label: str) -> Any:
        def program(carry: Any, start: int, count: int) -> Any:
            return advance(carry, done + start, count, inner_steps, keys, found, flags, plan=plan)

        return drive(program, carry, number, capacity, progress=progress, label=label)

    warmed = go((chains, tuning), 0, num_warmup, "exchange: warm-up")
    if not warmed.complete:
        raise KeyboardInterrupt("interrupted in the warm-up of exchange")
    warmup = _draws(warmed)
    warmup_time = time.perf_counter() - began
    sampled = go(warmed.carry, num_warmup, num_samples, "exchange")
    draws = _draws(sampled)
    times = {"warmup_time": warmup_time, "sampling_time": time.perf_counter() - began - warmup_time}
    posterior = variables(found, layout, draws.positions)
    parameters = sampled.carry[1].reported()
    attributes = {"inner_steps": int(inner_steps), "num_warmup": int(num_warmup)}
    attributes = _described(found, plan, draws, parameters, attributes)
    attributes |= times | _judged(posterior, draws, attributes)
    _warn_of(draws, attributes)
    kept = warmup if "warmup_posterior" in groups else None
    return to_datatree(
        collect_groups(key_export, found, draws, posterior, kept, groups, None),
        target=found,
        attributes=attributes,
        parameters=parameters,
    )


def _draws(outcome: Any) -> Draws:
    """Draws of a loop, ``[draw, chain, ...]`` turned to ``[chain, draw, ...]``."""
    positions, stats = jax.tree.map(lambda rows: np.moveaxis(rows, 0, 1), outcome.outputs)
    return Draws(positions, stats, None, outcome.complete)


def _described(
    found: IntractableTarget,
    plan: Plan,
    draws: Draws,
    parameters: Mapping[str, np.ndarray],
    counts: Mapping[str, int],
) -> dict[str, Any]:
    """Attributes of the run."""
    num_chains, num_samples, _ = draws.positions.shape
    inner = counts["inner_steps"] * plan.kernel.gradients_per_step + 1
    scalars = {name: value for name, value in parameters.items() if value.ndim == 0}
    return {
        **LIBRARY,
        **counts,
        "kernel": "exchange",
        "target": found.description,
        "static_arguments": list(found.static),
        "parameters": scalars,
        "intractable": list(found.structure.intractable),
        "inner_kernel": plan.kernel.__name__,
        "num_chains": num_chains,
        "num_samples": num_samples,
        "precision": str(plan.layout.dtype),
        "exact": False,
        "incomplete": not draws.complete,
        "num_gradient_evaluations": num_chains * (counts["num_warmup"] + num_samples) * inner,
    }


def _judged(
    posterior: Mapping[str, Any], draws: Draws, attributes: Mapping[str, Any]
) -> dict[str, Any]:
    """Whether the draws are enough, and what they can be trusted with."""
    seen, shortage = judge(posterior, Converged())
    doubts = []
    inner = float(np.mean(draws.stats["inner_acceptance_rate"]))
    if not inner >= MIN_INNER_ACCEPTANCE:
        doubts.append(
            f"Inner chains accept {inner:.2g} of their steps, and hardly move from the data. Take "
            "a smaller inner_step_size, or a longer warm-up."
        )
    if shortage:
        doubts.append(
            f"{shortage[0].upper()}{shortage[1:]}. Take more draws (num_samples=), with a longer "
            "warm-up (num_warmup=) where R-hat is large."
        )
    trust = (
        "The law of the draws is biased unless the inner chains, of "
        f"{attributes['inner_steps']} steps of {attributes['inner_kernel']} from the data "
        f"(acceptance rate {inner:.2f}), reach the law of the data at the proposed parameters, "
        "which is not measured here. Double inner_steps, and compare."
    )
    return {
        "min_ess": seen.ess,
        "min_ess_squares": seen.ess_squares,
        "max_rhat": seen.rhat,
        "converged": not doubts,
        "advice": " ".join(doubts),
        "trust": f"{trust} {'Not converged: see advice.' if doubts else 'Converged.'}",
    }


def _warn_of(draws: Draws, attributes: Mapping[str, Any]) -> None:
    if attributes["incomplete"]:
        warnings.warn(
            f"Interrupted: the DataTree holds the {draws.positions.shape[1]} draws of each chain "
            "that were done (attribute incomplete=1).",
            UserWarning,
            stacklevel=3,
        )
    if not attributes["converged"]:
        warnings.warn(f"exchange: {attributes['advice']}", ConvergenceWarning, stacklevel=3)
    share = float(np.mean(draws.stats["diverging"]))
    if share > MAX_DIVERGENT_SHARE:
        warnings.warn(
            f"exchange: the ratio of {percent(share)} of the proposals was not finite, and they "
            "were rejected. Look at the energy and the priors there: an energy has to be finite at "
            "the data for all parameters.",
            DivergenceWarning,
            stacklevel=3,
        )


def _check_inner(kernel: Any) -> None:
    adjusted = isinstance(kernel, Kernel) and kernel.exact and not kernel.amortised
    if not adjusted or kernel.target_acceptance_rate is None:
        raise ValueError(
            "energy.exchange: expected inner_kernel to have a Metropolis test, so that its law is "
            f"that of the energy at any step size, such as langevin_ppl.mala, got {kernel!r}."
        )
    missing = [
        name
        for name, default in kernel.parameters.items()
        if default is kernel.__signature__.empty and name != "step_size"
    ]
    if missing or "step_size" not in kernel.parameters:
        raise ValueError(
            "energy.exchange: expected an inner_kernel that needs a step_size alone, such as "
            f"langevin_ppl.mala; {kernel!r} takes {', '.join(kernel.parameters)}."
        )


def _check_groups(groups: Any, found: IntractableTarget, num_warmup: int) -> None:
    others = isinstance(groups, list | tuple | set | frozenset) and set(groups) - set(GROUPS)
    if others:
        raise ValueError(
            f"groups: expected a list of {', '.join(GROUPS)}, because data of an energy cannot be "
            f"drawn, and their likelihood lacks its normaliser; got {', '.join(map(str, others))}."
        )
    check_groups(groups, found, num_warmup)


def _check_begun(found: IntractableTarget, layout: Layout, chains: WalkState) -> None:
    finite = np.isfinite(np.asarray(chains.logdensities))
    if not finite.all():
        chain = int(np.flatnonzero(~finite)[0])
        raise ValueError(
            f"Chain {chain}: {found.explain(layout.unravel(chains.positions[chain]), given=True)}"
        )

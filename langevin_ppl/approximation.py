"""Without chains: ``laplace``, the Gaussian at the mode, corrected by importance sampling."""

import functools
import math
import time
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl import run
from langevin_ppl.arguments import check_groups, check_labels, check_target
from langevin_ppl.base import Array, Draws, LogDensity, PRNGKey, check_counts, check_key
from langevin_ppl.compilation import QUICK
from langevin_ppl.devices import mesh_for, to_host
from langevin_ppl.export import LIBRARY, collect_groups, to_datatree, variables
from langevin_ppl.kernels import split_ghmc
from langevin_ppl.targets.leaves import Static
from langevin_ppl.tree import Layout
from langevin_ppl.warmup import DENSE_LIMIT, End, Ends, find, why_no_mode
from langevin_ppl.warmup.moments import square_root

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["laplace"]

EQUAL = 0.01
"""Spread of log weights that is rounding."""

GOOD_K = 0.7
"""Pareto shape up to which importance sampling can be relied on (Vehtari et al. 2024)."""


def laplace(
    rng_key: PRNGKey,
    target: Any,
    *,
    num_chains: int = 4,
    num_samples: int = 1000,
    groups: tuple[str, ...] | list[str] = (),
) -> "xr.DataTree":
    r"""Approximate a target by the Gaussian at its mode, and correct it by importance sampling.

    The cheap baseline: no chain at all. L-BFGS runs from ``num_chains`` starts; at the best mode
    :math:`m` with Hessian :math:`-C^{-1}`, points are drawn from :math:`N(m, C)`, weighted by the
    target, smoothed (PSIS) and resampled.

    Parameters
    ----------
    rng_key
        A key, ``jax.random.key(0)``.
    target
        Made by `target` or `density`, of at most 500 dimensions.
    num_chains, num_samples
        Shape of the result; ``num_chains * num_samples`` points are weighted.
    groups
        Further groups, as in `sample`.

    Returns
    -------
    xarray.DataTree
        Resampled draws. Attributes: ``pareto_k``, the shape of the weights' tail;
        ``laplace_is_enough``, 1 where it is at most 0.7 and all searches ended at one mode;
        ``importance_ess``; ``log_evidence``, the logarithm of the target's integral. ``exact``
        is 0.

    Raises
    ------
    ValueError
        If no mode is found, because the search diverged (an improper posterior, a funnel) or
        the Hessian is not positive definite; or for more than 500 dimensions.

    References
    ----------
    Tierney, Kadane, *Accurate approximations for posterior moments and marginal densities*
    (1986); Vehtari, Simpson, Gelman, Yao, Gabry, *Pareto smoothed importance sampling* (2024),
    arXiv:1507.02646.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> target = lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))
    >>> idata = lp.laplace(jax.random.key(0), target)
    >>> idata.attrs["laplace_is_enough"], round(idata.attrs["log_evidence"], 3)  # log 2 pi
    (1, 1.838)
    """
    began = time.perf_counter()
    rng_key = check_key(rng_key)
    check_target(target)
    check_counts(1, num_chains=num_chains, num_samples=num_samples)
    check_groups(groups, target, 0)
    check_labels(target)
    layout = Layout.of(target.prototype)
    if layout.dimension > DENSE_LIMIT:
        raise ValueError(
            f"laplace: expected at most {DENSE_LIMIT} dimensions, because the Hessian is dense, "
            f"got {layout.dimension}. Use langevin_ppl.sample."
        )
    mesh = mesh_for(None, num_chains)
    start_keys, draw_keys, _, key_export = run.phase_keys(rng_key, num_chains, mesh)
    plan = run.Plan(Static(split_ghmc), layout, capacity=run.capacity_of(layout, num_chains))
    propose, data = target.proposal()
    with target.advising():
        found = find(
            start_keys, target.logdensity_fn, data, propose=propose, plan=plan, search=True
        )
    positions, valid, search = to_host(found)
    if not valid.all():
        chain = int(np.argmin(valid))
        raise ValueError(target.explain(layout.unravel(jnp.asarray(positions[chain]))))
    if not search.found.any():
        raise ValueError(f"laplace: {why_no_mode(search)} Use langevin_ppl.sample.")
    weighted = _draw(
        draw_keys[0],
        target.logdensity_fn,
        search.ends[search.best],
        search.frame,
        plan=plan,
        number=num_chains * num_samples,
    )
    positions, logdensity, log_weights = to_host(weighted)
    usable = np.where(np.isfinite(log_weights), log_weights, -np.inf).astype(np.float64)
    smoothed, pareto_k = smooth(usable - usable.max())
    weights = np.exp(smoothed - np.logaddexp.reduce(smoothed))
    chosen = _resample(to_host(jax.random.uniform(draw_keys[-1])), weights)
    order = to_host(jax.random.permutation(key_export, len(chosen)))
    rows = chosen[order].reshape(num_chains, num_samples)
    stats = {"lp": logdensity[rows], "diverging": np.zeros(rows.shape, bool)}
    draws = Draws(positions[rows], stats, None, complete=True)
    enough = bool(pareto_k <= GOOD_K and search.found.all())
    attributes = {
        **LIBRARY,
        "kernel": "laplace",
        "target": target.description,
        "static_arguments": list(target.static),
        "exact": False,
        "precision": str(layout.dtype),
        "pareto_k": pareto_k,
        "laplace_is_enough": enough,
        "advice": "" if enough else _advice(pareto_k, Ends.of(search)),
        "importance_ess": float(1.0 / np.sum(weights**2)),
        "log_evidence": float(np.logaddexp.reduce(usable) - np.log(len(usable))),
        "num_chains_at_best_mode": int(search.found.sum()),
        "num_gradient_evaluations": int(search.num_evaluations) + len(usable),
        "sampling_time": time.perf_counter() - began,
    }
    posterior = variables(target, layout, draws.positions)
    return to_datatree(
        collect_groups(key_export, target, draws, posterior, None, groups, None),
        target=target,
        attributes=attributes,
        parameters={
            "location": search.ends[search.best],
            "inverse_mass_matrix": search.frame @ search.frame.T,
        },
    )


def smooth(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Pareto-smoothed log weights and the shape of their tail.

    Weights that are equal up to `EQUAL` have no tail to fit, and shape 0.
    """
    from arviz_stats.base.array import array_stats  # slow to import, and needed only here

    if np.ptp(log_weights) < EQUAL:
        return log_weights, 0.0
    # ArviZ takes log likelihoods, whose weights are inverse.
    smoothed, shape = array_stats.psislw(-log_weights)
    return smoothed, float(shape) if np.isfinite(shape) else math.inf


@functools.partial(jax.jit, static_argnames=("plan", "number"), compiler_options=QUICK)
def _draw(
    rng_key: PRNGKey,
    logdensity_fn: LogDensity,
    mode: Array,
    frame: Array,
    *,
    plan: run.Plan,
    number: int,
) -> tuple[Array, Array, Array]:
    """Points of the Gaussian, the target's log density there, and log weights."""
    noise = jax.random.normal(rng_key, (number, mode.size), mode.dtype)
    factor = square_root(frame)
    positions = mode + noise @ factor.T
    values = jax.lax.map(plan.flat(logdensity_fn), positions, batch_size=256)
    volume = jnp.sum(jnp.log(jnp.abs(jnp.diagonal(factor))))
    gaussian = -0.5 * jnp.sum(noise**2 + jnp.log(2 * jnp.pi), axis=1) - volume
    return positions, values, values - gaussian


def _resample(uniform: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Rows chosen in proportion to their weights, by systematic resampling."""
    number = len(weights)
    places = (np.arange(number) + uniform) / number
    return np.minimum(np.searchsorted(np.cumsum(weights), places), number - 1)


def _advice(pareto_k: float, ends: Ends) -> str:
    """Say why the Gaussian at the mode is not enough."""
    parts = []
    if pareto_k > GOOD_K:
        parts.append(
            f"Pareto k is {pareto_k:.2f}, above {GOOD_K}: the Gaussian at the mode misses a part "
            "of the target, and the weights cannot make up for it."
        )
    if elsewhere := ends.chains(End.EQUAL, End.LOWER):
        parts.append(f"Searches {elsewhere} ended elsewhere: there may be other modes.")
    if unfinished := ends.chains(End.UNFINISHED, End.NONFINITE):
        parts.append(f"Searches {unfinished} did not converge.")
    return " ".join([*parts, "Use langevin_ppl.sample."])

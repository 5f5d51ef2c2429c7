"""Nine posteriors of posteriordb as NumPyro models, with their data and reference moments.

The variables and deterministics that posteriordb reports have its names. A flat prior of Stan is
flat on the variable's own scale here too. The data are read from the folder that the environment
variable LANGEVIN_PPL_DATA names, files ``posteriordb/<data>-<model>.npz`` with ``data/...`` (what
Stan is given), ``mean/...`` and ``sd/...`` (moments of the 10,000 gold-standard draws, which so
have errors of about 1 % of a standard deviation themselves).

At the end stands what benchmarks measure on the draws of any sampler.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import eight_schools
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

type Arrays = Mapping[str, np.ndarray]
type Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def flat(name, shape=(), support=constraints.real) -> Any:
    """A variable with a flat prior on all of its support."""
    return numpyro.sample(name, dist.ImproperUniform(support, (), shape))


def autoregression(lags, y=None):
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([lags.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    with numpyro.plate("time", lags.shape[0]):
        numpyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y)


def garch(previous, sigma1, y=None):
    """Variances that follow from the values before; ``previous`` is ``y`` without its last one."""
    mu = flat("mu")
    alpha0 = flat("alpha0", support=constraints.positive)
    # (alpha1, beta1) is uniform on the triangle below the diagonal: the width 1 - alpha1 that is
    # left to beta1 is the density of alpha1, and of this width beta1 takes a uniform share.
    alpha1 = numpyro.sample("alpha1", dist.Beta(1.0, 2.0))
    share = numpyro.sample("share", dist.Uniform(0.0, 1.0))
    beta1 = numpyro.deterministic("beta1", share * (1.0 - alpha1))

    def step(variance, value):
        variance = alpha0 + alpha1 * (value - mu) ** 2 + beta1 * variance
        return variance, variance

    first = jnp.square(sigma1)
    _, later = jax.lax.scan(step, first, previous)
    scale = jnp.sqrt(jnp.concatenate([first[None], later]))
    with numpyro.plate("time", scale.shape[0]):
        numpyro.sample("y", dist.Normal(mu, scale), obs=y)


def kidscore(mom_hs, mom_iq, kid_score=None):
    beta = flat("beta", (4,))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    mean = beta[0] + beta[1] * mom_hs + beta[2] * mom_iq + beta[3] * mom_hs * mom_iq
    with numpyro.plate("kid", mom_hs.shape[0]):
        numpyro.sample("kid_score", dist.Normal(mean, sigma), obs=kid_score)


def flat_regression(x, y=None):
    """Linear regression with flat priors; the first column of ``x`` is ones."""
    beta = flat("beta", (x.shape[1],))
    sigma = flat("sigma", support=constraints.positive)
    with numpyro.plate("observation", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def gaussian_process(x, y=None):
    rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    distance = (x[:, None] - x) / rho
    covariance = alpha**2 * jnp.exp(-0.5 * distance**2) + sigma * jnp.eye(x.shape[0])
    numpyro.sample("y", dist.MultivariateNormal(0.0, covariance_matrix=covariance), obs=y)


def gaussian_mixture(y):
    mu = flat("mu", (2,), constraints.ordered_vector)
    numpyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum())
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.Categorical(probs=jnp.stack([theta, 1.0 - theta]))
    with numpyro.plate("observation", y.shape[0]):
        numpyro.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)), obs=y)


def diamonds(x, y=None):
    b = numpyro.sample("b", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    intercept = numpyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = numpyro.sample("sigma", dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 10.0)))
    with numpyro.plate("diamond", x.shape[0]):
        numpyro.sample("y", dist.Normal(intercept + x @ b, sigma), obs=y)


def _eight_schools(data: Arrays) -> Arguments:
    return (data["sigma"],), {"effect": data["y"]}


def _autoregression(data: Arrays) -> Arguments:
    y, order = data["y"], int(data["K"])
    lags = [y[order - k : len(y) - k] for k in range(1, order + 1)]
    return (np.stack(lags, axis=1),), {"y": y[order:]}


def _garch(data: Arrays) -> Arguments:
    return (data["y"][:-1], data["sigma1"]), {"y": data["y"]}


def _kidscore(data: Arrays) -> Arguments:
    return (data["mom_hs"], data["mom_iq"]), {"kid_score": data["kid_score"]}


def _mesquite(data: Arrays) -> Arguments:
    names = ("diam1", "diam2", "canopy_height", "total_height", "density", "group")
    columns = [np.ones_like(data["weight"]), *(data[name] for name in names)]
    return (np.stack(columns, axis=1),), {"y": data["weight"]}


def _nes(data: Arrays) -> Arguments:
    columns = [
        np.ones_like(data["partyid7"]),
        data["real_ideo"],
        data["race_adj"],
        *(data["age_discrete"] == age for age in (2, 3, 4)),
        *(data[name] for name in ("educ1", "gender", "income")),
    ]
    return (np.stack(columns, axis=1),), {"y": data["partyid7"]}


def _gaussian_process(data: Arrays) -> Arguments:
    return (data["x"],), {"y": data["y"]}


def _gaussian_mixture(data: Arrays) -> Arguments:
    return (data["y"],), {}


def _diamonds(data: Arrays) -> Arguments:
    x = data["X"][:, 1:]
    return (x - x.mean(axis=0),), {"y": data["Y"]}


class Entry(NamedTuple):
    """A posterior: the name of its file, its model, and Stan's data as the model's arguments."""

    file: str
    model: Callable[..., None]
    prepare: Callable[[Arrays], Arguments]


MODELS = {
    "eight_schools_noncentered": Entry(
        "eight_schools-eight_schools_noncentered", eight_schools.model, _eight_schools
    ),
    "arK": Entry("arK-arK", autoregression, _autoregression),
    "garch11": Entry("garch-garch11", garch, _garch),
    "kidscore_interaction": Entry("kidiq-kidscore_interaction", kidscore, _kidscore),
    "mesquite": Entry("mesquite-mesquite", flat_regression, _mesquite),
    "nes": Entry("nes1980-nes", flat_regression, _nes),
    "gp_regr": Entry("gp_pois_regr-gp_regr", gaussian_process, _gaussian_process),
    "low_dim_gauss_mix": Entry(
        "low_dim_gauss_mix-low_dim_gauss_mix", gaussian_mixture, _gaussian_mixture
    ),
    "diamonds": Entry("diamonds-diamonds", diamonds, _diamonds),
}


def folder():
    """Folder of the files, or None where LANGEVIN_PPL_DATA is not set."""
    root = os.environ.get("LANGEVIN_PPL_DATA")
    return Path(root) / "posteriordb" if root else None


def load(name, dtype):
    """Model, positional and keyword arguments, reference means and standard deviations.

    The arguments are prepared in float64 and then turned into arrays of ``dtype``.
    """
    path = folder()
    if path is None:
        raise FileNotFoundError("LANGEVIN_PPL_DATA names no folder of data")
    entry = MODELS[name]
    parts = {kind: {} for kind in ("data", "mean", "sd")}
    with np.load(path / f"{entry.file}.npz") as file:
        for label in file:
            kind, _, variable = label.partition("/")
            if kind in parts:
                parts[kind][variable] = np.asarray(file[label], np.float64)
    args, kwargs = entry.prepare(parts["data"])
    args = tuple(np.asarray(value, dtype) for value in args)
    kwargs = {key: np.asarray(value, dtype) for key, value in kwargs.items()}
    return entry.model, args, kwargs, parts["mean"], parts["sd"]


def effective(posterior):
    """Smallest bulk ESS of the variables of a dataset, and of their squared deviations."""
    import arviz as az  # not at the top: a benchmark may time its own imports

    squares = (posterior - posterior.mean(("chain", "draw"))) ** 2
    return tuple(
        min(float(np.nan_to_num(value).min()) for value in az.ess(x).data_vars.values())
        for x in (posterior, squares)
    )


def largest_rhat(posterior):
    """Largest R-hat of the variables of a dataset; infinite where it is not a number."""
    import arviz as az

    values = [np.ravel(value) for value in az.rhat(posterior).data_vars.values()]
    return float(np.nan_to_num(np.concatenate(values), nan=np.inf).max())


def moments(posterior, mean, sd):
    """Worst difference of means in reference standard deviations, and ratios of these."""
    shifts, ratios = [], []
    for name in mean:
        own = posterior[name]
        shifts.append(np.ravel(np.abs(own.mean(("chain", "draw")) - mean[name]) / sd[name]))
        ratios.append(np.ravel(own.std(("chain", "draw")) / sd[name]))
    shifts, ratios = np.concatenate(shifts), np.concatenate(ratios)
    return float(shifts.max()), float(ratios.min()), float(ratios.max())

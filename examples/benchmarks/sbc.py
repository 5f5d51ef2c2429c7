"""Simulation-based calibration of ``lp.sample`` with nothing said.

Parameters are drawn from the prior, data from the model, and ``lp.sample`` runs on the data. The
rank of the true value among 99 draws, evenly spaced over all chains, is then uniform on 0 to 99 if
the sampler is right (Talts et al. 2018). The log likelihood is ranked as well: it sees errors
that no single parameter shows (Modrak et al. 2023).

Each quantity is tested twice: by chi-square on 20 bins, and by the largest deviation of the
empirical distribution function, in terms of its binomial law at every rank, against its
simulated distribution (Sailynoja, Buerkner and Vehtari 2022). All p-values of all models are
corrected together (Bonferroni). All data sets of a model have the same shape, so that one
compilation serves them all.

    python examples/benchmarks/sbc.py [--quick] [--replications N]
"""

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from common import finish, machine, parser
from eight_schools import SIGMA
from numpyro.infer import Predictive, log_likelihood
from scipy import stats

import langevin_ppl as lp

RANKS = 100  # possible ranks among 99 draws
BINS = 20
SIMULATIONS = 20_000
LOG_LIKELIHOOD = "log likelihood"
LIMIT = 0.01


class Case(NamedTuple):
    """A model with the observed argument ``y``, and its other arguments."""

    name: str
    model: Callable[..., None]
    arguments: tuple[Any, ...]


def conjugate(size, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("row", size):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def scale_family(size, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("row", size):
        numpyro.sample("y", dist.StudentT(4.0, mu, sigma), obs=y)


def logistic(features, y=None):
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with numpyro.plate("row", features.shape[0]):
        numpyro.sample("y", dist.Bernoulli(logits=features @ beta), obs=y)


def poisson(features, y=None):
    intercept = numpyro.sample("intercept", dist.Normal(1.0, 0.5))
    beta = numpyro.sample("beta", dist.Normal(0.0, 0.5).expand([2]).to_event(1))
    with numpyro.plate("row", features.shape[0]):
        numpyro.sample("y", dist.Poisson(jnp.exp(intercept + features @ beta)), obs=y)


def schools(sigma, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(5.0))
    with numpyro.plate("school", sigma.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + tau * z, sigma), obs=y)


def cases():
    features = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    return [
        Case("normal mean, conjugate", conjugate, (10,)),
        Case("location and scale, Student t", scale_family, (20,)),
        Case("logistic regression", logistic, (features,)),
        Case("Poisson regression", poisson, (features[:, :2],)),
        Case("eight schools, non-centred", schools, (SIGMA,)),
    ]


# Tests of uniformity


class Uniformity:
    """Both tests for samples of ``size`` ranks; the null distribution is simulated once."""

    def __init__(self, size):
        self.size = size
        grid = np.arange(1, RANKS)[:, None] / RANKS
        counts = np.arange(size + 1)
        below, above = stats.binom.cdf(counts, size, grid), stats.binom.sf(counts - 1, size, grid)
        self._tails = np.minimum(2 * np.minimum(below, above), 1.0)
        rng = np.random.default_rng(0)
        self._null = np.array(
            [self._smallest_tail(rng.integers(0, RANKS, size)) for _ in range(SIMULATIONS)]
        )

    def _smallest_tail(self, ranks):
        """Least likely value of the empirical distribution function, over all ranks."""
        cumulative = np.cumsum(np.bincount(ranks, minlength=RANKS))[:-1]
        return self._tails[np.arange(RANKS - 1), cumulative].min()

    def ecdf(self, ranks):
        extreme = np.sum(self._null <= self._smallest_tail(ranks))
        return float((1 + extreme) / (1 + SIMULATIONS))

    def chi_square(self, ranks):
        counts = np.bincount(ranks * BINS // RANKS, minlength=BINS)
        return float(stats.chisquare(counts).pvalue)


# Runs


def flat(variables):
    """Names and values ``[..., k]`` of all entries of all variables."""
    names, parts = [], []
    for name, x in variables.items():
        axes = x.shape[1:]
        names += [name + (str(list(i)) if i else "") for i in np.ndindex(axes)]
        parts.append(np.reshape(x, (x.shape[0], -1)))
    return names, np.concatenate(parts, axis=1)


def calibrate(case, seed, replications):
    """Ranks ``[replication, quantity]``, names of the quantities, and what the runs were like."""
    model, arguments = case.model, case.arguments
    key_prior, key_sample = jax.random.split(jax.random.key(seed))
    prior = Predictive(model, num_samples=replications)(key_prior, *arguments)
    data = prior.pop("y")

    # The other arguments are not traced: the number of rows is one of them.
    @jax.jit
    def likelihood(variables, y):
        parts = log_likelihood(model, variables, *arguments, y=y, parallel=True)
        return parts["y"].sum(axis=1)

    ranks, converged, ess, names = [], [], [], []
    for number in range(replications):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            idata = lp.sample(
                jax.random.fold_in(key_sample, number),
                lp.target(model, *arguments, y=data[number]),
            )
        posterior = idata["posterior"].to_dataset()[list(prior)]
        chosen = {k: _pooled(x) for k, x in posterior.data_vars.items()}
        truth = {k: np.asarray(x[number])[None] for k, x in prior.items()}
        for variables in (chosen, truth):
            variables[LOG_LIKELIHOOD] = np.asarray(likelihood(dict(variables), data[number]))
        names, draws = flat(chosen)
        ranks.append(np.sum(draws < flat(truth)[1], axis=0))
        converged.append(idata.attrs["converged"])
        ess.append(min(float(x.min()) for x in az.ess(posterior).data_vars.values()))
    return np.array(ranks), names, np.array(converged), np.array(ess)


def _pooled(x):
    """99 draws, evenly spaced over the chains one after the other."""
    values = np.reshape(x.values, (-1, *x.shape[2:]))
    return values[np.linspace(0, len(values) - 1, RANKS - 1).astype(int)]


def main():
    options = parser(__doc__)
    options.add_argument("--replications", type=int, help="data sets of each model")
    options = options.parse_args()
    host = machine()
    replications = options.replications or (20 if options.quick else 200)
    uniformity = Uniformity(replications)
    rows, runs = [], []
    for seed, case in enumerate(cases()):
        began = time.perf_counter()
        ranks, names, converged, ess = calibrate(case, seed, replications)
        runs.append(
            {
                "model": case.name,
                "data sets": replications,
                "labelled converged": f"{100 * converged.mean():.1f} %",
                "min bulk ESS, median of runs": round(float(np.median(ess))),
                "min bulk ESS, smallest": round(float(ess.min())),
                "seconds": time.perf_counter() - began,
            }
        )
        print(runs[-1], flush=True)
        rows += [
            {
                "model": case.name,
                "quantity": name,
                "p, chi-square": uniformity.chi_square(ranks[:, i]),
                "p, ECDF": uniformity.ecdf(ranks[:, i]),
                "mean rank": float(ranks[:, i].mean() / (RANKS - 1)),
                "sd of ranks over uniform": float(ranks[:, i].std() / np.sqrt((RANKS**2 - 1) / 12)),
            }
            for i, name in enumerate(names)
        ]
    smallest = min(min(row["p, chi-square"], row["p, ECDF"]) for row in rows)
    corrected = min(1.0, 2 * len(rows) * smallest)
    goals = [
        {
            "goal": "smallest p-value, corrected for all tests, is above",
            "limit": LIMIT,
            "measured": corrected,
            "met": corrected > LIMIT,
        }
    ]
    note = (
        f"{2 * len(rows)} tests, smallest p-value {smallest:.2g}. The mean rank is 0.5 and the sd "
        "ratio 1 if all is well; a ratio above 1 says that the draws are too narrow."
    )
    return finish(
        "sbc",
        options,
        host,
        precision="float32",
        tables={"Runs": runs, "Ranks": rows},
        goals=goals,
        notes=[note],
    )


if __name__ == "__main__":
    main()

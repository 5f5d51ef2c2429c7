"""``lp.mala`` against reference posteriors of posteriordb.

Three posteriors (eight schools, kid scores with an interaction, a small Gaussian process), in
float64 and in float32. Each is run with 4 chains of 1000 + 4000 draws, the thinning doubled until
the bulk ESS of every variable, and of its squared deviation from its mean, is at least 4000. Means
and standard deviations are compared with those of posteriordb's gold-standard draws (10,000 of
them, so the reference itself has errors of about 1 % of a standard deviation).

The data are read from the folder that the environment variable LANGEVIN_PPL_DATA names, files
``posteriordb/<data>-<model>.npz`` with ``data/...``, ``mean/...`` and ``sd/...``. Without it the
benchmark is skipped.

    LANGEVIN_PPL_DATA=... python examples/benchmarks/posteriors.py [--quick]
"""

import os
import time
import warnings
from pathlib import Path

import arviz as az
import eight_schools
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from common import finish, goal, machine, parser
from numpyro.distributions import constraints

import langevin_ppl as lp

FILES = {
    "eight_schools_noncentered": "eight_schools-eight_schools_noncentered",
    "kidscore_interaction": "kidiq-kidscore_interaction",
    "gp_regr": "gp_pois_regr-gp_regr",
}
MIN_ESS = 4000
MAX_THINNING = 1024


def kidscore(mom_hs, mom_iq, kid_score=None):
    beta = numpyro.sample("beta", dist.ImproperUniform(constraints.real, (), (4,)))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    mean = beta[0] + beta[1] * mom_hs + beta[2] * mom_iq + beta[3] * mom_hs * mom_iq
    with numpyro.plate("kid", mom_hs.shape[0]):
        numpyro.sample("kid_score", dist.Normal(mean, sigma), obs=kid_score)


def gaussian_process(x, y=None):
    rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    distance = (x[:, None] - x) / rho
    covariance = alpha**2 * jnp.exp(-0.5 * distance**2) + sigma * jnp.eye(x.shape[0])
    numpyro.sample("y", dist.MultivariateNormal(0.0, covariance_matrix=covariance), obs=y)


def make_target(name, data):
    if name == "eight_schools_noncentered":
        return lp.target(eight_schools.model, data["sigma"], effect=data["y"])
    if name == "kidscore_interaction":
        return lp.target(kidscore, data["mom_hs"], data["mom_iq"], kid_score=data["kid_score"])
    return lp.target(gaussian_process, data["x"], y=data["y"])


def load(folder, name, dtype):
    """Data of Stan as floats, and reference means and standard deviations."""
    with np.load(folder / f"{FILES[name]}.npz") as file:
        parts = {kind: {} for kind in ("data", "mean", "sd")}
        for entry in file:
            kind, _, variable = entry.partition("/")
            if kind in parts:
                parts[kind][variable] = np.asarray(file[entry], dtype)
    return parts["data"], parts["mean"], parts["sd"]


def smallest_ess(posterior):
    """Smallest bulk ESS of the variables, and of their squared deviations."""
    squares = (posterior - posterior.mean(("chain", "draw"))) ** 2
    return tuple(
        min(float(v.min()) for v in az.ess(x).data_vars.values()) for x in (posterior, squares)
    )


def run(target, options):
    """Sample with ever more thinning until there are enough effective draws.

    The last run is made twice, and its time is that of the second, without compilation.
    """
    draws, wanted = (500, 100) if options.quick else (4000, MIN_ESS)

    def sample(thinning):
        began = time.perf_counter()
        idata = lp.sample(
            jax.random.key(0),
            target,
            lp.mala,
            num_chains=4,
            num_warmup=1000,
            num_samples=draws,
            thinning=thinning,
        )
        return idata, time.perf_counter() - began

    thinning = 1
    while True:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            idata, _ = sample(thinning)
            ess = smallest_ess(idata["posterior"].to_dataset())
            if min(ess) >= wanted or thinning >= MAX_THINNING:
                _, seconds = sample(thinning)
                messages = sorted({f"{w.category.__name__}: {w.message}" for w in caught})
                return idata, ess, seconds, messages
        thinning *= 2


def compare(idata, mean, sd):
    """Worst difference of means in reference standard deviations, and ratios of these."""
    posterior = idata["posterior"]
    shifts, ratios = [], []
    for name in mean:
        own = posterior[name]
        shifts.append(np.ravel(np.abs(own.mean(("chain", "draw")) - mean[name]) / sd[name]))
        ratios.append(np.ravel(own.std(("chain", "draw")) / sd[name]))
    shifts, ratios = np.concatenate(shifts), np.concatenate(ratios)
    return float(shifts.max()), float(ratios.min()), float(ratios.max())


def main():
    options = parser(__doc__).parse_args()
    host = machine()
    folder = os.environ.get("LANGEVIN_PPL_DATA")
    if not folder:
        print("posteriors: skipped, because LANGEVIN_PPL_DATA names no folder of data.")
        return None
    rows, notes = [], []
    for name in FILES:
        for precision in ("float64", "float32"):
            jax.config.update("jax_enable_x64", precision == "float64")
            data, mean, sd = load(Path(folder) / "posteriordb", name, precision)
            idata, ess, seconds, messages = run(make_target(name, data), options)
            assert idata.attrs["precision"] == precision
            shift, lowest, highest = compare(idata, mean, sd)
            rhat = az.rhat(idata["posterior"].to_dataset())
            attributes, stats = idata.attrs, idata["sample_stats"]
            shape = stats.sizes
            rows.append(
                {
                    "posterior": name,
                    "precision": precision,
                    "worst mean, in sd": shift,
                    "sd ratios": f"{lowest:.3f} to {highest:.3f}",
                    "max R-hat": f"{max(float(v.max()) for v in rhat.data_vars.values()):.4f}",
                    "min ESS": round(ess[0]),
                    "min ESS of squares": round(ess[1]),
                    "draws x thinning": f"4 x {shape['draw']} x {attributes['thinning']}",
                    "gradients": int(attributes["num_gradient_evaluations"]),
                    "seconds": seconds,
                    "step size": float(idata["sampler_parameters"]["step_size"]),
                    "acceptance": float(stats["acceptance_rate"].mean()),
                    "diverging": f"{100 * float(stats['diverging'].mean()):.2g} %",
                }
            )
            notes += [f"{name}, {precision}: {message}" for message in messages]

    def worst(function):
        return max(function(row) for row in rows)

    def width(row):
        lowest, highest = map(float, row["sd ratios"].split(" to "))
        return max(1 - lowest, highest - 1)

    goals = [
        goal(
            "worst difference of means, in reference sd",
            worst(lambda r: r["worst mean, in sd"]),
            0.1,
        ),
        goal("worst relative difference of sds", worst(width), 0.1),
        goal("max R-hat", worst(lambda r: float(r["max R-hat"])), 1.01),
    ]
    return finish(
        "posteriors",
        options,
        host,
        precision="float64 (jax_enable_x64) and float32",
        tables={"Against the reference draws": rows},
        goals=goals,
        notes=notes,
    )


if __name__ == "__main__":
    main()

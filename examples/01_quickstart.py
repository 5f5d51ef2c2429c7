"""Two posteriors, three kernels, one word changed.

Samples Bayesian logistic regression on the breast cancer data of scikit-learn (569 x 30) and the
eight schools model with the default kernel, MALA and BlackJAX's NUTS, prints the ArviZ summaries
side by side and what each result says of itself, and writes trace plots and netCDF files to
``quickstart_output/``.
"""

import time
from pathlib import Path

import arviz as az
import blackjax
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import numpyro
import numpyro.distributions as dist
import xarray as xr
from sklearn.datasets import load_breast_cancer

import langevin_ppl as lp

OUTPUT = Path("quickstart_output")
PLOTTED = {"breast_cancer": ["intercept", "slope"], "eight_schools": ["mu", "tau"]}
KERNELS = {"split_ghmc": lp.split_ghmc, "mala": lp.mala, "nuts": blackjax.nuts}


def logistic(features, malignant=None):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.5))
    with numpyro.plate("feature", features.shape[1]):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    logits = intercept + features @ slope
    with numpyro.plate("patient", features.shape[0]):
        numpyro.sample("malignant", dist.Bernoulli(logits=logits), obs=malignant)


def schools(sigma, effect=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", sigma.shape[0]):
        theta_trans = numpyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * theta_trans)
        numpyro.sample("effect", dist.Normal(theta, sigma), obs=effect)


def targets():
    """Both targets, with the names of what the rows and columns are."""
    data = load_breast_cancer()
    features = (data.data - data.data.mean(axis=0)) / data.data.std(axis=0)
    cancer = lp.target(logistic, features.astype(np.float32), malignant=1 - data.target)
    cancer = cancer.replace(coords={"feature": [str(name) for name in data.feature_names]})
    effect = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    eight = lp.target(schools, sigma, effect=effect)
    eight = eight.replace(coords={"school": list("ABCDEFGH")})
    return {"breast_cancer": cancer, "eight_schools": eight}


def compare(name, runs):
    """Summaries side by side, and how far each kernel is from NUTS in posterior sds."""
    tables = {kernel: az.summary(idata, round_to="none") for kernel, idata in runs.items()}
    reference = tables["nuts"]
    columns = {}
    for kernel, table in tables.items():
        columns[f"{kernel} mean"] = table["mean"].map("{:.2f}".format)
        columns[f"{kernel} sd"] = table["sd"].map("{:.2f}".format)
        columns[f"{kernel} ess"] = table["ess_bulk"].map("{:.0f}".format)
        columns[f"{kernel} r_hat"] = table["r_hat"].map("{:.3f}".format)
    side_by_side = reference[[]].assign(**columns)
    print(f"\n{name}\n{side_by_side.to_string()}")
    for kernel in ("split_ghmc", "mala"):
        table = tables[kernel]
        shift = ((table["mean"] - reference["mean"]) / reference["sd"]).abs()
        ratio = table["sd"] / reference["sd"]
        print(
            f"{kernel} against nuts: largest difference of means {shift.max():.3f} posterior sd "
            f"({shift.idxmax()}), ratios of sds {ratio.min():.3f} to {ratio.max():.3f}"
        )


def save(name, kernel, idata):
    """Write netCDF, read it back, and check that nothing was lost."""
    path = OUTPUT / f"{name}_{kernel}.nc"
    idata.to_netcdf(path)
    with xr.open_datatree(path) as again:
        xr.testing.assert_allclose(again["posterior"].to_dataset(), idata["posterior"].to_dataset())
        assert int(again.attrs["exact"]) == idata.attrs["exact"] == 1
    return path


def main():
    matplotlib.use("Agg")
    OUTPUT.mkdir(exist_ok=True)
    for name, target in targets().items():
        runs = {}
        for kernel, algorithm in KERNELS.items():
            began = time.perf_counter()
            idata = lp.sample(
                jax.random.key(0), target, algorithm, num_warmup=1000, num_samples=4000
            )
            seconds = time.perf_counter() - began
            gradients = idata.attrs["num_gradient_evaluations"]
            path = save(name, kernel, idata)
            print(f"{name} with {kernel}: {seconds:.1f} s, {gradients} gradients, wrote {path}")
            verdict = "converged" if idata.attrs["converged"] else idata.attrs["advice"]
            print(f"  smallest bulk ESS {idata.attrs['min_ess']:.0f}: {verdict}")
            runs[kernel] = idata
        compare(name, runs)
        shown = runs["split_ghmc"]
        if name == "breast_cancer":
            shown = shown.sel(feature=["mean radius", "texture error", "worst area"])
        plot = az.plot_trace_dist(shown, var_names=PLOTTED[name], backend="matplotlib")
        picture = OUTPUT / f"{name}_trace.png"
        plot.savefig(picture)
        print(f"wrote {picture}")


if __name__ == "__main__":
    main()

"""Real posteriors against the moments of posteriordb's gold-standard draws."""

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

import langevin_ppl as lp


def kidscore(mom_hs, mom_iq, kid_score=None):
    """Regression with flat coefficients whose scales differ by a factor of a hundred."""
    beta = numpyro.sample("beta", dist.ImproperUniform(constraints.real, (), (4,)))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    mean = beta[0] + beta[1] * mom_hs + beta[2] * mom_iq + beta[3] * mom_hs * mom_iq
    with numpyro.plate("kid", mom_iq.shape[0]):
        numpyro.sample("kid_score", dist.Normal(mean, sigma), obs=kid_score)


def gaussian_process(x, y=None):
    """Gaussian process with the length scale, amplitude and noise latent."""
    rho = numpyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    squares = (x[:, None] - x) ** 2
    covariance = alpha**2 * jnp.exp(-squares / (2 * rho**2)) + sigma * jnp.eye(x.shape[0])
    numpyro.sample("y", dist.MultivariateNormal(0.0, covariance), obs=y)


POSTERIORS = {
    "kidiq-kidscore_interaction": (kidscore, ("mom_hs", "mom_iq"), "kid_score"),
    "gp_pois_regr-gp_regr": (gaussian_process, ("x",), "y"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", POSTERIORS)
def test_moments_agree(name, data_path):
    model, arguments, observed = POSTERIORS[name]
    with np.load(data_path / "posteriordb" / f"{name}.npz") as file:
        stored = {key: np.asarray(file[key], np.float32) for key in file.files}
    data = {key: stored[f"data/{key}"] for key in (*arguments, observed)}
    target = lp.target(model, *(data[key] for key in arguments), **{observed: data[observed]})
    idata = lp.sample(jax.random.key(0), target, num_samples=4000)
    assert _largest(az.rhat(idata)) < 1.01
    for variable, draws in idata["posterior"].data_vars.items():
        mean, sd = stored[f"mean/{variable}"], stored[f"sd/{variable}"]
        values = draws.values.reshape(16_000, *mean.shape)
        # About 5000 effective draws: five standard errors are 0.07 sd and 5 %.
        assert np.abs((values.mean(axis=0) - mean) / sd).max() < 0.1, variable
        assert np.abs(values.std(axis=0) / sd - 1.0).max() < 0.1, variable


def _largest(tree):
    """Largest number in a group of statistics."""
    return max(float(value.max()) for value in tree.to_dataset().data_vars.values())

"""Rows that ``obs_mask`` imputes: their posterior, and nothing about those that are observed."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import gamma, norm

import langevin_ppl as lp

Y = np.array([0.4, 1.9, np.nan, 0.7, 1.2, np.nan], np.float32)
SEEN = ~np.isnan(Y)


def normal(y, seen):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y, obs_mask=seen)


def exponential(y, seen):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Exponential(rate), obs=y, obs_mask=seen)


TOTAL, NUMBER = Y[SEEN].sum(), SEEN.sum()


@pytest.mark.parametrize(
    ("model", "name", "posterior"),
    [
        (normal, "mean", norm(TOTAL / (NUMBER + 1), (NUMBER + 1) ** -0.5)),
        pytest.param(
            *(exponential, "rate", gamma(2 + NUMBER, scale=1 / (1 + TOTAL))), marks=pytest.mark.slow
        ),
    ],
)
def test_the_posterior_is_that_of_the_observed_rows(model, name, posterior):
    idata = lp.sample(jax.random.key(1), lp.target(model, Y, SEEN), num_samples=4000)
    draws = idata["posterior"][name].values
    assert idata.attrs["converged"] == 1
    # With an ESS of at least 400, standard errors are at most 0.05 sd and 0.036 of the sd.
    assert abs(draws.mean() - posterior.mean()) < 0.2 * posterior.std()
    assert abs(draws.std() / posterior.std() - 1.0) < 0.15
    np.testing.assert_array_equal(idata["observed_data"]["y_observed"], Y)
    completed = idata["posterior"]["y"].values
    np.testing.assert_array_equal(completed[..., SEEN], np.broadcast_to(Y[SEEN], (4, 4000, 4)))
    if model is normal:  # the predictive distribution of a row
        spread = np.sqrt(1.0 + posterior.var())
        np.testing.assert_allclose(completed[..., ~SEEN].std(), spread, rtol=0.2)


def test_the_density_of_observed_cells():
    """Normal on unconstrained space: it integrates to one, whatever else the position is."""
    logdensity = lp.target(exponential, Y, SEEN).logdensity_fn
    base = {"rate": jnp.asarray(0.3), "y_unobserved": jnp.zeros(6)}
    for cell, imputed in enumerate(~SEEN):
        moved = {**base, "y_unobserved": base["y_unobserved"].at[cell].set(1.5)}
        change = float(logdensity(moved) - logdensity(base))
        rate = np.exp(0.3)
        density = -rate * np.exp(1.5) + 1.5 + rate if imputed else norm.logpdf(1.5) - norm.logpdf(0)
        assert change == pytest.approx(density, rel=1e-4)

"""`laplace`: evidence and moments in closed form or by quadrature, and what it says of itself."""

import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import digamma, gammaln, polygamma
from scipy.stats import multivariate_normal

import langevin_ppl as lp
from langevin_ppl.warmup import DENSE_LIMIT
from tests.models import conjugate, conjugate_posterior

KEY = jax.random.key(11)
COVARIANCE = np.array([[4.0, 1.2, 0.0], [1.2, 1.0, -0.2], [0.0, -0.2, 0.25]], np.float32)
MEAN = np.array([1.0, -3.0, 10.0], np.float32)


def gaussian(x):
    """Of height e^5."""
    return 5.0 - 0.5 * (x - MEAN) @ np.linalg.inv(COVARIANCE) @ (x - MEAN)


def test_a_gaussian_is_found_exactly():
    idata = lp.laplace(KEY, lp.density(gaussian, jnp.zeros(3)), num_chains=2, num_samples=2000)
    attributes = idata.attrs
    evidence = 5.0 + 0.5 * np.linalg.slogdet(2 * np.pi * COVARIANCE.astype(np.float64))[1]
    np.testing.assert_allclose(attributes["log_evidence"], evidence, atol=1e-4)
    # All weights are equal.
    assert attributes["pareto_k"] == 0.0
    assert attributes["importance_ess"] == pytest.approx(4000, rel=1e-3)
    assert attributes["laplace_is_enough"] == 1 and attributes["advice"] == ""
    assert (attributes["exact"], attributes["kernel"]) == (0, "laplace")
    assert attributes["num_chains_at_best_mode"] == 2
    assert attributes["num_gradient_evaluations"] > 4000
    parameters = idata["sampler_parameters"]
    np.testing.assert_allclose(parameters["location"], MEAN, rtol=1e-3)
    np.testing.assert_allclose(parameters["inverse_mass_matrix"], COVARIANCE, rtol=1e-3, atol=1e-3)
    # Every point once: 4000 independent draws.
    draws = idata["posterior"]["x"].values
    assert draws.shape == (2, 2000, 3)
    assert len(np.unique(draws.reshape(-1, 3), axis=0)) >= 3990
    sd = np.sqrt(np.diag(COVARIANCE))
    assert np.abs((draws.mean(axis=(0, 1)) - MEAN) / sd).max() < 5 / np.sqrt(4000)
    # The standard error of a product of two standard normals is at most sqrt(2 / 4000) = 0.022.
    white = (draws.reshape(-1, 3) - MEAN) @ np.linalg.inv(np.linalg.cholesky(COVARIANCE)).T
    np.testing.assert_allclose(white.T @ white / 4000, np.eye(3), atol=0.11)
    lp_there = idata["sample_stats"]["lp"].values
    np.testing.assert_allclose(lp_there[1, 7], gaussian(draws[1, 7]), rtol=1e-3)


def test_evidence_of_a_conjugate_regression():
    """The Gaussian marginal likelihood of the data, and the groups of a model."""
    x = jax.random.normal(jax.random.key(1), (40, 3)) * jnp.array([1.0, 2.0, 0.3])
    y = x @ jnp.array([1.0, -0.5, 2.0]) + 0.5 * jax.random.normal(jax.random.key(2), (40,))
    groups = ["log_likelihood", "posterior_predictive", "unconstrained_posterior"]
    idata = lp.laplace(KEY, lp.target(conjugate, x, y=y), num_samples=500, groups=groups)
    design = np.asarray(x, np.float64)
    marginal = multivariate_normal(np.zeros(40), 4.0 * design @ design.T + 0.25 * np.eye(40))
    np.testing.assert_allclose(idata.attrs["log_evidence"], marginal.logpdf(y), atol=1e-3)
    assert idata.attrs["pareto_k"] < 0.3 and idata.attrs["laplace_is_enough"] == 1
    mean, covariance = conjugate_posterior(x, y)
    draws = idata["posterior"]["slope"].values
    sd = np.sqrt(np.diag(covariance))
    assert np.abs((draws.mean(axis=(0, 1)) - mean) / sd).max() < 5 / np.sqrt(2000)
    np.testing.assert_allclose(draws.std(axis=(0, 1)), sd, rtol=5 / np.sqrt(4000))
    assert set(groups) < set(idata.children)
    assert idata["posterior_predictive"]["y"].shape == (4, 500, 40)


def test_weights_correct_a_skew_target():
    """The logarithm of a gamma variable of shape 8: evidence and moments in closed form."""
    shape = 8.0
    target = lp.density(lambda x: shape * x - jnp.exp(x), 0.0)
    idata = lp.laplace(KEY, target, num_samples=5000)
    attributes = idata.attrs
    ess = attributes["importance_ess"]
    assert 2000 < ess < 20_000 and attributes["laplace_is_enough"] == 1
    # The relative error of the evidence is that of the mean weight, 1 / sqrt(ess) at most.
    np.testing.assert_allclose(attributes["log_evidence"], gammaln(shape), atol=5 / np.sqrt(ess))
    draws = idata["posterior"]["x"].values
    mean, sd = digamma(shape), np.sqrt(polygamma(1, shape))
    assert abs(draws.mean() - mean) / sd < 5 / np.sqrt(ess)
    np.testing.assert_allclose(draws.std(), sd, rtol=5 / np.sqrt(ess))
    # The mode alone, log 8, would be off by a sixth of a standard deviation, which is seen.
    assert (np.log(shape) - mean) / sd > 2 * 5 / np.sqrt(ess)


def test_heavy_tails_are_seen():
    cauchy = lp.density(lambda x: -jnp.sum(jnp.log1p(x**2)), jnp.zeros(10))
    idata = lp.laplace(KEY, cauchy, num_samples=1000)
    assert idata.attrs["pareto_k"] > 0.7
    assert idata.attrs["laplace_is_enough"] == 0
    assert "Pareto k is" in idata.attrs["advice"] and "langevin_ppl.sample" in idata.attrs["advice"]


def test_another_mode_is_seen():
    def wells(x):
        return jnp.logaddexp(*(-jnp.sum((x - c) ** 2) / 0.18 for c in (1.5, -1.5)))

    start = lp.density(wells, jnp.zeros(1)).replace(
        init_strategy=lambda key: jax.random.uniform(key, (1,), minval=-3.0, maxval=3.0)
    )
    idata = lp.laplace(KEY, start, num_chains=8, num_samples=200)
    found = idata.attrs["num_chains_at_best_mode"]
    assert 0 < found < 8
    assert idata.attrs["laplace_is_enough"] == 0
    assert "ended elsewhere" in idata.attrs["advice"]


def test_what_has_no_laplace_approximation():
    ridge = lp.density(lambda x: -0.5 * (x[0] + x[1]) ** 2, jnp.zeros(2))
    with pytest.raises(ValueError, match=r"laplace: .*not positive definite.*langevin_ppl.sample"):
        lp.laplace(KEY, ridge)
    large = lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(DENSE_LIMIT + 1))
    with pytest.raises(ValueError, match=f"at most {DENSE_LIMIT} dimensions.*{DENSE_LIMIT + 1}"):
        lp.laplace(KEY, large)
    with pytest.raises(ValueError, match="not finite"):
        lp.laplace(KEY, lp.density(lambda x: -x * jnp.inf, 0.0))


def test_arguments():
    target = lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))
    with pytest.raises(TypeError, match="rng_key"):
        lp.laplace(0, target)
    with pytest.raises(TypeError, match="target"):
        lp.laplace(KEY, lambda x: -x)
    with pytest.raises(ValueError, match="num_samples"):
        lp.laplace(KEY, target, num_samples=0)
    with pytest.raises(ValueError, match="log_likelihood needs a model"):
        lp.laplace(KEY, target, groups=["log_likelihood"])
    with pytest.raises(ValueError, match="warmup_posterior needs a warm-up"):
        lp.laplace(KEY, target, groups=["warmup_posterior"])


# Its pieces

PIECES = sys.modules[lp.laplace.__module__]


def test_equal_weights_have_no_tail():
    smoothed, shape = PIECES.smooth(np.linspace(0.0, 0.005, 1000))
    assert shape == 0.0
    np.testing.assert_array_equal(smoothed, np.linspace(0.0, 0.005, 1000))


@pytest.mark.parametrize("shape", [0.3, 0.8])
def test_the_tail_s_shape_is_that_of_the_weights(shape):
    """Weights that are Pareto with this shape; the estimate's standard error is near 0.06."""
    uniform = np.random.default_rng(0).uniform(size=4000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        smoothed, estimate = PIECES.smooth(-shape * np.log(uniform))
    assert abs(estimate - shape) < 0.2
    assert np.all(np.isfinite(smoothed))


def test_rows_are_chosen_in_proportion():
    weights = np.random.default_rng(1).dirichlet(np.ones(50))
    for uniform in (0.0, 0.4, 0.999):
        chosen = np.bincount(PIECES._resample(np.asarray(uniform), weights), minlength=50)
        assert chosen.sum() == 50
        assert np.all(np.abs(chosen - 50 * weights) < 1.0 + 1e-9)

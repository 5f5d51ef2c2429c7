"""The measured bias of inexact kernels, against biases in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import langevin_ppl as lp
from langevin_ppl.base import BiasWarning
from langevin_ppl.diagnostics.moments import Moments

KEY = jax.random.key(0)
TARGET = lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))
STEP_SIZE = 0.8
# Of ULA on a standard normal: its variance is 1 / (1 - h / 2).
SHIFT = 1.0 / np.sqrt(1.0 - STEP_SIZE / 2.0) - 1.0


@pytest.fixture(scope="module")
def biased():
    return lp.sample(KEY, TARGET, lp.ula, step_size=STEP_SIZE, num_warmup=100, num_samples=8000)


@pytest.fixture(scope="module")
def measured(biased):
    with pytest.warns(BiasWarning, match=r"'x' are off by at least 0\.2"):
        return lp.diagnostics.bias(jax.random.key(1), TARGET, biased)


def test_the_bias_of_ula(measured):
    shift = measured["bias"]["x"]
    for what, truth in (("mean", 0.0), ("sd", SHIFT)):
        estimate, error = (shift.sel(moment=f"{what}_{part}").values for part in ("shift", "error"))
        assert np.all(error < 0.04)
        assert np.all(np.abs(estimate - truth) < 3 * error)
    attributes = measured["bias"].attrs
    assert 0.2 < attributes["largest"] < SHIFT
    assert attributes["converged"] == 1 and attributes["num_gradient_evaluations"] > 1000


def test_the_tree_is_a_copy_that_can_be_saved(biased, measured, tmp_path):
    assert "bias" not in biased.children
    np.testing.assert_array_equal(measured["posterior"]["x"], biased["posterior"]["x"])
    measured.to_netcdf(tmp_path / "run.nc", engine="h5netcdf")


def test_an_exact_kernel_has_none():
    idata = lp.sample(KEY, TARGET, num_samples=2000)
    shift = lp.diagnostics.bias(jax.random.key(1), TARGET, idata)["bias"]
    assert shift.attrs["largest"] < 0.05


def test_moments_of_independent_draws():
    draws = np.random.default_rng(0).normal(3.0, 2.0, size=(4, 5000, 2))
    moments = Moments.of(draws)
    np.testing.assert_allclose(moments.mean, 3.0, atol=0.06)
    np.testing.assert_allclose(moments.sd, 2.0, atol=0.05)
    np.testing.assert_allclose(moments.mean_error, 2.0 / np.sqrt(20_000), rtol=0.1)
    # The standard error of a Gaussian standard deviation is sd / sqrt(2 n).
    np.testing.assert_allclose(moments.sd_error, 2.0 / np.sqrt(40_000), rtol=0.1)


def test_constants_and_integers_have_no_bias():
    import numpyro
    import numpyro.distributions as dist

    def model():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.deterministic("one", jnp.ones(2))
        numpyro.deterministic("sign", jnp.sign(x).astype(jnp.int32))

    target = lp.target(model)
    idata = lp.sample(KEY, target, lp.ula, step_size=0.05, num_warmup=100, num_samples=4000)
    group = lp.diagnostics.bias(jax.random.key(1), target, idata)["bias"]
    assert set(group.data_vars) == {"x", "one"}
    assert np.isfinite(group.attrs["largest"])


def test_refusals(biased):
    with pytest.raises(TypeError, match="DataTree that langevin_ppl.sample returned"):
        lp.diagnostics.bias(KEY, TARGET, {"posterior": {}})
    with pytest.raises(ValueError, match="not exact itself"):
        lp.diagnostics.bias(KEY, TARGET, biased, kernel=lp.ula, until=None, num_samples=10)
    with pytest.raises(ValueError, match="ess"):
        lp.diagnostics.bias(KEY, TARGET, biased, ess=0)
    broken = biased.copy(deep=True)
    broken["posterior"]["x"][1, 5] = np.nan
    with pytest.raises(ValueError, match="'x' are not all finite"):
        lp.diagnostics.bias(KEY, TARGET, broken)

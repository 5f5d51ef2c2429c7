"""`sample` from end to end: the DataTree, its numbers, and what is said of them."""

import json
import warnings

import arviz as az
import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import langevin_ppl as lp
from langevin_ppl import run
from tests.models import EFFECT, SIGMA, conjugate, conjugate_posterior, schools

KEY = jax.random.key(20)
X = jax.random.normal(jax.random.key(1), (40, 3)) * jnp.array([1.0, 2.0, 0.3])
Y = X @ jnp.array([1.0, -0.5, 2.0]) + 0.5 * jax.random.normal(jax.random.key(2), (40,))


@pytest.fixture(scope="module")
def target():
    return lp.target(conjugate, X, y=Y)


@pytest.fixture(scope="module")
def idata(target):
    return lp.sample(KEY, target, lp.mala, num_samples=1000)


@pytest.fixture(scope="module")
def school_data():
    groups = ("log_likelihood", "posterior_predictive", "prior", "unconstrained_posterior")
    target = lp.target(schools, SIGMA, effect=EFFECT)
    target = target.replace(coords={"school": list("ABCDEFGH")})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lp.DivergenceWarning)
        return lp.sample(KEY, target, groups=(*groups, "warmup_posterior"), num_samples=500)


def assert_moments(idata, mean, sd, name="slope", errors=5.0):
    """Means within five standard errors; sds within 10 %, many errors at these sample sizes."""
    draws = idata["posterior"][name]
    ess = az.ess(idata, var_names=[name])[name].values
    z = (draws.mean(("chain", "draw")).values - mean) / (sd / np.sqrt(ess))
    assert np.abs(z).max() < errors
    ratio = draws.std(("chain", "draw")).values / sd
    assert np.abs(ratio - 1.0).max() < 0.1


@pytest.mark.parametrize(
    ("kernel", "settings"),
    [
        (lp.split_ghmc, {}),
        (lp.ghmc, {"num_samples": 4000}),
        (lp.mala, {}),
        (lp.tmalac, {}),
        pytest.param(lp.tmala, {}, marks=pytest.mark.slow),
        pytest.param(lp.ula, {"thinning": 5}, marks=pytest.mark.slow),
        (blackjax.nuts, {}),
        (blackjax.hmc, {"num_integration_steps": 7, "num_samples": 4000}),
        pytest.param(blackjax.barker, {"num_samples": 4000}, marks=pytest.mark.slow),
        pytest.param(blackjax.mala, {"num_samples": 8000}, marks=pytest.mark.slow),
        (blackjax.mclmc, {"num_samples": 4000}),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_every_kernel_finds_the_posterior(target, kernel, settings):
    mean, covariance = conjugate_posterior(X, Y)
    idata = lp.sample(KEY, target, kernel, **{"num_samples": 2000, **settings})
    assert_moments(idata, mean, jnp.sqrt(jnp.diagonal(covariance)))
    # Chains agree; HMC of a fixed length on a Gaussian mixes slowly where it comes full circle.
    assert float(az.rhat(idata)["slope"].max()) < 1.1


def test_tuned_metric_is_the_posterior_covariance(idata):
    _, covariance = conjugate_posterior(X, Y)
    tuned = idata["sampler_parameters"]["inverse_mass_matrix"].values
    # For a Gaussian the gradients know the covariance exactly; shrinkage leaves a few per cent.
    np.testing.assert_allclose(tuned, covariance, rtol=0.1, atol=0.03 * np.abs(covariance).max())
    acceptance = float(idata["sample_stats"]["acceptance_rate"].mean())
    assert 0.5 < acceptance < 0.65


def test_the_default_kernel_turns_about_the_posterior(target):
    """Where the posterior is Gaussian: hardly a rejection, and all but independent draws."""
    idata = lp.sample(KEY, target)
    attributes = idata.attrs
    assert attributes["kernel"] == "split_ghmc" and attributes["gaussian_fit"] == "good"
    assert attributes["gaussian_fit_residual"] < 0.2
    assert attributes["mode_search"] == "all chains ended at one mode"
    assert attributes["burn_in"] == "untamed" and attributes["metric"] == "dense"
    mean, covariance = conjugate_posterior(X, Y)
    tuned = json.loads(attributes["parameters"])
    assert tuned["frequency"] == 1.0 and 1.2 < tuned["step_size"] < 1.7001
    sd = jnp.sqrt(jnp.diagonal(covariance))
    assert jnp.abs((jnp.array(tuned["location"]) - mean) / sd).max() < 0.2
    assert float(idata["sample_stats"]["acceptance_rate"].mean()) > 0.95
    assert attributes["converged"] == 1
    assert min(attributes["min_ess"], attributes["min_ess_squares"]) > 1500


@pytest.mark.parametrize("rate", [0.4, 0.8])
def test_acceptance_rate_is_the_one_asked_for(target, rate):
    idata = lp.sample(KEY, target, lp.mala, target_acceptance_rate=rate, num_samples=500)
    assert abs(float(idata["sample_stats"]["acceptance_rate"].mean()) - rate) < 0.06


def test_attributes_say_how_it_was_made(idata):
    attributes = idata.attrs
    assert attributes["inference_library"] == "langevin_ppl"
    assert attributes["inference_library_version"] == lp.__version__
    assert attributes["kernel"] == "mala"
    assert attributes["exact"] == 1
    assert attributes["incomplete"] == 0
    assert attributes["gradient_estimator"] == "exact"
    assert attributes["temperature"] == 1.0
    # 500 + 1000 steps and the first state of four chains, and the search for the mode before.
    assert 4 * 1501 < attributes["num_gradient_evaluations"] < 4 * 1501 + 4 * 300
    assert json.loads(attributes["parameters"])["step_size"] > 0
    assert attributes["warmup_time"] > 0 and attributes["sampling_time"] > 0
    assert all(isinstance(v, str | int | float) for v in attributes.values())


def test_groups_dims_and_statistics(school_data):
    posterior = school_data["posterior"]
    assert posterior["theta"].dims == ("chain", "draw", "school")
    assert list(posterior["school"].values) == list("ABCDEFGH")
    assert set(posterior.data_vars) == {"mu", "tau", "theta", "theta_trans"}
    statistics = set(school_data["sample_stats"].data_vars)
    assert statistics == {"acceptance_rate", "diverging", "energy", "grad_norm", "lp", "step_size"}
    assert school_data["observed_data"]["effect"].dims == ("school",)
    assert set(school_data["constant_data"].data_vars) == {"sigma"}
    unconstrained = school_data["unconstrained_posterior"]
    np.testing.assert_allclose(np.exp(unconstrained["tau"]), posterior["tau"], rtol=1e-5)
    assert school_data["warmup_posterior"]["mu"].shape == (4, 300)
    assert school_data["posterior_predictive"]["effect"].dims == ("chain", "draw", "school")
    assert school_data["prior_predictive"]["effect"].shape == (1, 500, 8)


def test_names_and_shapes_that_a_tree_takes_only_with_care():
    """A site name with a slash, a multivariate observation, a simplex with labels."""
    import numpyro
    import numpyro.distributions as dist

    def model(y=None):
        share = numpyro.sample(
            "net/share", dist.Dirichlet(jnp.ones(3)), infer={"event_dims": ["part"]}
        )
        with numpyro.plate("draw", 2):
            numpyro.sample("y", dist.MultivariateNormal(share, jnp.eye(3)), obs=y)

    target = lp.target(model, y=jnp.zeros((2, 3))).replace(coords={"part": ["a", "b", "c"]})
    groups = ["log_likelihood", "unconstrained_posterior", "posterior_predictive"]
    idata = lp.sample(KEY, target, num_samples=20, num_warmup=100, groups=groups)
    assert idata["posterior"]["net.share"].dims == ("chain", "draw", "part")
    assert idata["unconstrained_posterior"]["net.share"].shape == (4, 20, 2)
    assert idata["log_likelihood"]["y"].dims == ("chain", "draw", "draw_plate")
    assert idata["observed_data"]["y"].dims == ("draw_plate", "y_dim_1")
    lp.sample(KEY, target, num_samples=5, initial=idata, parameters=idata)


@pytest.mark.parametrize("number", [1, 5])
def test_draws_of_unbounded_sites_are_those_of_the_positions(number):
    """Without a copy, unless that would keep a larger array in memory."""
    import numpyro
    import numpyro.distributions as dist

    def model():
        numpyro.sample("scale", dist.HalfNormal(1.0).expand([2]).to_event(1))
        with numpyro.plate("group", number):
            x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.deterministic("twice", 2.0 * x)

    settings = {"num_samples": 20, "num_warmup": 0, "step_size": 0.01}
    target = lp.target(model)
    idata = lp.sample(KEY, target, lp.mala, groups=["unconstrained_posterior"], **settings)
    posterior, unconstrained = idata["posterior"], idata["unconstrained_posterior"]
    expected = target.constrain({k: v.values for k, v in unconstrained.data_vars.items()}, 2)
    for name, values in expected.items():
        np.testing.assert_array_equal(posterior[name].values, values)
    shared = np.shares_memory(posterior["x"].values, unconstrained["x"].values)
    assert shared == (number == 5)


def test_thinning_raises_no_alarm():
    """Rare divergences are rare in thinned runs too, although a draw stands for many steps."""
    target = lp.target(schools, SIGMA, effect=EFFECT)
    with warnings.catch_warnings():
        warnings.simplefilter("error", lp.DivergenceWarning)
        idata = lp.sample(jax.random.key(1), target, lp.mala, num_samples=250, thinning=16)
    assert idata["sample_stats"]["diverging"].values.mean() > 0.05


def test_unadjusted_kernels_claim_nothing_they_do_not_know(target):
    idata = lp.sample(KEY, target, lp.tula, num_samples=100)
    assert idata.attrs["exact"] == 0
    assert "bias" in idata.attrs["step_size_rule"]
    statistics = set(idata["sample_stats"].data_vars)
    assert statistics == {"diverging", "grad_norm", "lp", "step_size", "taming_loss"}


def test_log_density_statistic_is_the_density(target, idata):
    last = {"slope": jnp.asarray(idata["posterior"]["slope"].values[2, 7])}
    expected = target.logdensity_fn(last)
    np.testing.assert_allclose(idata["sample_stats"]["lp"][2, 7], expected, rtol=1e-5)


# Eight schools have Pareto shapes about the threshold: which side a run is on is chance.
PARETO = pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")


@PARETO
def test_arviz_takes_it(school_data, tmp_path):
    summary = az.summary(school_data)
    assert len(summary) == 18
    az.diagnose(school_data)
    assert set(az.rhat(school_data).data_vars) >= {"mu", "tau"}
    assert set(az.ess(school_data).data_vars) >= {"mu", "tau"}
    picture = tmp_path / "trace.png"
    plot = az.plot_trace_dist(school_data, var_names=["mu", "tau"], backend="matplotlib")
    plot.savefig(picture)
    assert picture.stat().st_size > 10_000
    assert np.isfinite(az.loo(school_data).elpd)


@PARETO
def test_models_can_be_compared(school_data):
    def pooled(sigma, effect=None):
        import numpyro
        import numpyro.distributions as dist

        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        with numpyro.plate("school", sigma.shape[0]):
            numpyro.sample("effect", dist.Normal(mu, sigma), obs=effect)

    other = lp.sample(
        KEY,
        lp.target(pooled, SIGMA, effect=EFFECT),
        groups=["log_likelihood"],
        num_samples=500,
    )
    table = az.compare({"hierarchical": school_data, "pooled": other})
    assert set(table.index) == {"hierarchical", "pooled"}


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_saved_and_read_again(school_data, target, idata, tmp_path):
    school_data.to_netcdf(tmp_path / "run.nc")
    school_data.to_zarr(tmp_path / "run.zarr")
    for read in (
        xr.open_datatree(tmp_path / "run.nc"),
        xr.open_datatree(tmp_path / "run.zarr", engine="zarr"),
    ):
        with read:
            for group in ("posterior", "sample_stats", "sampler_parameters", "sampler_position"):
                xr.testing.assert_equal(read[group].to_dataset(), school_data[group].to_dataset())
            assert read.attrs["kernel"] == "split_ghmc"
    # A saved run is as good a start as the run itself.
    idata.to_netcdf(tmp_path / "first.nc")
    with xr.open_datatree(tmp_path / "first.nc") as read:
        again = lp.sample(KEY, target, initial=read, parameters=read, num_samples=50)
    direct = lp.sample(KEY, target, initial=idata, parameters=idata, num_samples=50)
    xr.testing.assert_equal(again["posterior"].to_dataset(), direct["posterior"].to_dataset())
    assert direct.attrs["num_warmup"] == 0


def test_initial_is_where_the_chains_start(target):
    positions = {"slope": jnp.arange(12.0).reshape(4, 3)}
    idata = lp.sample(
        KEY, target, lp.ula, initial=positions, num_warmup=0, step_size=1e-12, num_samples=1
    )
    np.testing.assert_allclose(idata["posterior"]["slope"][:, 0], positions["slope"], atol=1e-4)


@pytest.mark.slow
def test_parameters_of_blackjax_that_were_tuned_by_chain(target):
    first = lp.sample(KEY, target, blackjax.nuts, num_samples=50, num_warmup=200)
    assert first["sampler_parameters"]["step_size"].dims == ("chain",)
    again = lp.sample(KEY, target, blackjax.nuts, initial=first, parameters=first, num_samples=50)
    assert again.attrs["adaptation"] == "none"
    tuned = first["sampler_parameters"]["step_size"].values
    np.testing.assert_array_equal(again["sample_stats"]["step_size"][:, 0], tuned)
    with pytest.raises(ValueError, match="tuned each of its 4 chains"):
        lp.sample(KEY, target, blackjax.nuts, parameters=first, num_chains=2)
    with pytest.raises(ValueError, match="takes one value for all chains"):
        lp.sample(KEY, target, lp.mala, parameters=first)


def test_chunks_change_no_draw(target):
    runs = [lp.sample(KEY, target, num_samples=90, chunk=chunk) for chunk in (None, 7, 90)]
    for other in runs[1:]:
        for group in ("posterior", "sample_stats"):
            xr.testing.assert_equal(other[group].to_dataset(), runs[0][group].to_dataset())


def test_thinning_keeps_every_kth_draw(target):
    fixed = {"num_warmup": 0, "step_size": 5e-4, "initial": {"slope": jnp.ones((4, 3))}}
    every = lp.sample(KEY, target, num_samples=60, **fixed)
    third = lp.sample(KEY, target, num_samples=20, thinning=3, **fixed)
    np.testing.assert_allclose(
        third["posterior"]["slope"], every["posterior"]["slope"][:, 2::3], rtol=1e-5, atol=1e-6
    )
    rate = every["sample_stats"]["acceptance_rate"].values.reshape(4, 20, 3).mean(axis=2)
    np.testing.assert_allclose(third["sample_stats"]["acceptance_rate"], rate, rtol=1e-4)


def test_temperature_widens_the_posterior(target):
    _, covariance = conjugate_posterior(X, Y)
    idata = lp.sample(KEY, target, temperature=4.0, num_samples=2000)
    sd = idata["posterior"]["slope"].std(("chain", "draw")).values
    np.testing.assert_allclose(sd, 2.0 * jnp.sqrt(jnp.diagonal(covariance)), rtol=0.1)
    assert idata.attrs["temperature"] == 4.0


def test_a_lost_chain_is_flagged_and_named():
    quartic = lp.density(lambda x: -0.25 * jnp.sum(x**2) ** 2, jnp.zeros(2))
    start = jnp.zeros((3, 2)).at[1].set(10.0)
    with pytest.warns(lp.DivergenceWarning, match=r"chain 1 at step \d+ .*sel\(chain=\[0, 2\]\)"):
        idata = lp.sample(
            KEY,
            quartic,
            lp.ula,
            num_chains=3,
            num_warmup=0,
            initial=start,
            step_size=0.1,
            num_samples=50,
        )
    lost = np.isnan(idata["posterior"]["x"].values).any(axis=2)
    np.testing.assert_array_equal(lost, idata["sample_stats"]["diverging"].values)
    first = int(np.argmax(lost[1]))
    assert lost[1, first:].all() and not lost[[0, 2]].any()
    assert idata.attrs["converged"] == 0
    assert "A chain became non-finite." in idata.attrs["advice"]
    intact = idata.sel(chain=[0, 2])
    assert np.isfinite(az.summary(intact)["mean"]).all()


def test_heavy_taming_is_said():
    gaussian = lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(20))
    with pytest.warns(UserWarning, match="taming removed .* % of the gradient"):
        lp.sample(KEY, gaussian, lp.tula, step_size=0.5, num_warmup=0, num_samples=50)


def test_rounding_of_a_large_density_is_doubted():
    shifted = lp.density(lambda x: 3e6 - 0.5 * jnp.sum(x**2), jnp.zeros(2))
    with pytest.warns(UserWarning, match="rounds by .*jax_enable_x64"):
        idata = lp.sample(KEY, shifted, step_size=0.5, num_warmup=0, num_samples=50)
    assert "no longer exact" in idata.attrs["exact_doubtful"]
    assert "rounding disturbs" in idata.attrs["trust"]


def test_interrupt_returns_the_draws_so_far(target, monkeypatch):
    drive = run.drive

    def interrupted(program, *args, **kwargs):
        def stopping(carry, start, count):
            if kwargs["label"] == phase and start >= 20:
                raise KeyboardInterrupt
            return program(carry, start, count)

        return drive(stopping, *args, **kwargs)

    monkeypatch.setattr(run, "drive", interrupted)
    phase = "sample"
    with pytest.warns(UserWarning, match="Interrupted: the DataTree holds the 20 draws"):
        idata = lp.sample(KEY, target, num_samples=90, chunk=10)
    assert idata.attrs["incomplete"] == 1
    assert idata["posterior"]["slope"].shape == (4, 20, 3)
    phase = "warm-up"
    with pytest.raises(KeyboardInterrupt, match="during warm-up: there is no draw"):
        lp.sample(KEY, target, num_samples=90, chunk=10)


def test_float64(target):
    with jax.enable_x64(True):
        double = lp.target(conjugate, np.asarray(X, np.float64), y=np.asarray(Y, np.float64))
        idata = lp.sample(jax.random.key(0), double, num_samples=500)
    assert idata["posterior"]["slope"].dtype == np.float64
    assert idata.attrs["precision"] == "float64"


@pytest.mark.slow
def test_a_target_without_a_mode_starts_where_it_was_told():
    # The density of the centred model is unbounded where tau goes to 0 and theta to mu.
    def centred(sigma, effect=None):
        import numpyro
        import numpyro.distributions as dist

        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("school", sigma.shape[0]):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
            numpyro.sample("effect", dist.Normal(theta, sigma), obs=effect)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lp.DivergenceWarning)
        idata = lp.sample(KEY, lp.target(centred, SIGMA, effect=EFFECT), num_samples=100)
    assert idata.attrs["num_chains_at_best_mode"] == 0
    assert "no mode: chains started from their own positions" in idata.attrs["mode_search"]
    assert float(idata["posterior"]["tau"].min()) > 1e-3

"""Names of variables and dimensions of the DataTree, and what they must never cost."""

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.module import random_nnx_module
from numpyro.handlers import scope
from numpyro.infer import Predictive

import langevin_ppl as lp
from langevin_ppl import export
from langevin_ppl.targets import distinct_dims, distinct_names

KEY = jax.random.key(0)
SMALL = {"num_chains": 2, "num_warmup": 0, "num_samples": 10, "step_size": 0.01}


def sample(target, **options):
    """A short run, for its names."""
    return lp.sample(KEY, target, lp.mala, **SMALL, **options)


def dims(idata, name):
    return idata["posterior"][name].dims[2:]


def normal(name, size=None, **options):
    shape = () if size is None else (size,)
    numpyro.sample(name, dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape)), **options)


def test_distinct_names():
    names = ["a/mu", "draw", "draw_site", "a.mu", "a/mu_1", "chain", "plain"]
    found = distinct_names(names)
    assert found == {
        "a/mu": "a.mu_1",
        "draw": "draw_site_1",
        "draw_site": "draw_site",
        "a.mu": "a.mu",
        "a/mu_1": "a.mu_1_1",
        "chain": "chain_site",
        "plain": "plain",
    }


def test_distinct_dims():
    labels = {"a": ("item",), "b": ("item",), "c": ("p", "p"), "d": ("a",), "e": ("x/y", "chain")}
    shapes = {"a": (4,), "b": (5,), "c": (3, 3), "d": (2,), "e": (2, 2), "f": (4, 1)}
    found = distinct_dims(labels, shapes, set(shapes), {})
    assert found == {
        "a": ["item"],
        "b": ["item_1"],
        "c": ["p", "p_1"],
        "d": ["a_dim"],
        "e": ["x.y", "chain_dim"],
        "f": ["f_dim_0", "f_dim_1"],
    }


def test_slashes_in_sites_and_plates(tmp_path):
    """A scoped model: the plate's name has a slash too."""

    def block():
        with numpyro.plate("group", 3):
            numpyro.sample("mu", dist.Normal(0.0, 1.0))

    def model():
        scope(block, "a")()
        normal("event/site", 2)

    target = lp.target(model).replace(
        coords={"a/group": ["x", "y", "z"]}, dims={"event/site": ["part/s"]}
    )
    idata = sample(target, store=tmp_path / "store", checkpoint=tmp_path / "checkpoint")
    assert dims(idata, "a.mu") == ("a.group",) and dims(idata, "event.site") == ("part.s",)
    assert list(idata["posterior"]["a.group"].values) == ["x", "y", "z"]
    again = sample(target, initial=idata, parameters=idata)
    assert again.attrs["renamed_variables"] == '{"a/mu": "a.mu", "event/site": "event.site"}'
    assert again.attrs["renamed_dims"] == '{"a/mu": {"a/group": "a.group"}}'


def test_a_network_with_priors():
    """Its sites have slashes and axes; the posterior of a linear layer is known."""
    from flax import nnx

    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2)).astype(np.float32)
    y = (x @ np.array([1.0, -0.5]) + rng.normal(size=60)).astype(np.float32)

    def model(x, y):
        layer = nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0))
        network = random_nnx_module("nn", layer, dist.Normal(0.0, 1.0))
        with numpyro.plate("row", len(x)):
            numpyro.sample("y", dist.Normal(network(x)[:, 0], 1.0), obs=y)

    idata = lp.sample(KEY, lp.target(model, x, y))
    covariance = np.linalg.inv(x.T @ x + np.eye(2))
    mean, sd = covariance @ x.T @ y, np.sqrt(np.diag(covariance))
    slopes = idata["posterior"]["nn.kernel"].values[..., 0]
    assert idata.attrs["converged"] == 1
    # The standard error of a mean is 0.05 sd at most, with an ESS of 400.
    np.testing.assert_allclose(slopes.mean((0, 1)) / sd, mean / sd, atol=0.1)
    assert len(az.summary(idata)) == 2


def two_names():
    normal("a/mu")
    numpyro.sample("a.mu", dist.Normal(50.0, 1.0))
    numpyro.sample("draw", dist.Normal(100.0, 1.0))
    numpyro.sample("draw_site", dist.Normal(150.0, 1.0))
    numpyro.sample("chain", dist.Normal(200.0, 1.0).expand([2]).to_event(1))
    numpyro.sample("chain_site", dist.Normal(250.0, 1.0))
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=0.0)


def test_no_two_names_become_one():
    centres = {
        "a.mu_1": 0,
        "a.mu": 50,
        "draw_site_1": 100,
        "draw_site": 150,
        "chain_site_1": 200,
        "chain_site": 250,
    }
    target = lp.target(two_names).replace(
        dims={"chain": ["part"]}, init_strategy=numpyro.infer.init_to_median
    )
    groups = ["posterior_predictive", "log_likelihood", "unconstrained_posterior", "prior"]
    with pytest.warns(UserWarning, match="'a/mu' is stored as 'a.mu_1', 'draw' is stored as"):
        idata = sample(target, groups=groups)
    for group in ("posterior", "unconstrained_posterior", "prior"):
        found = {name: float(value.mean()) for name, value in idata[group].data_vars.items()}
        assert found == pytest.approx(centres, abs=10.0)
    assert dims(idata, "chain_site_1") == ("part",)

    latent = target.posterior_samples(idata)
    assert float(latent["a/mu"].mean()) == pytest.approx(0, abs=10)
    assert float(latent["chain"].mean()) == pytest.approx(200, abs=10)
    own = target.posterior_samples({**latent, "other": 0.0})
    assert all((latent[name] == own[name]).all() for name in latent)
    drawn = target.predict(KEY, idata)["y"]
    assert drawn.shape == (2, 10)
    np.testing.assert_array_equal(drawn, target.predict(KEY, idata["posterior"])["y"])
    np.testing.assert_array_equal(drawn, target.predict(KEY, latent)["y"])
    predictive = Predictive(two_names, latent, batch_ndims=2, return_sites=["a/mu"])(KEY)
    np.testing.assert_array_equal(predictive["a/mu"], latent["a/mu"])
    with pytest.raises(ValueError, match="'draw' is missing"):
        target.posterior_samples({"a/mu": 0.0, "a.mu": 0.0})


def test_no_two_leaves_of_a_density_become_one():
    def logdensity(x):
        return -0.5 * ((x["a"][0] - 10.0) ** 2 + (x["a.0"] - 20.0) ** 2)

    target = lp.density(logdensity, {"a": [jnp.asarray(10.0)], "a.0": jnp.asarray(20.0)})
    idata = sample(target)
    assert {n: round(float(v.mean()), -1) for n, v in idata["posterior"].data_vars.items()} == {
        "a.0": 10.0,
        "a.0_1": 20.0,
    }


def test_a_dimension_never_replaces_a_variable():
    def model():
        normal("m", 3, infer={"event_dims": ["s"]})
        numpyro.sample("s", dist.HalfNormal(1.0))
        normal("x", 2)
        normal("x_dim_0")

    with pytest.warns(UserWarning, match="the dimension 's' of 'm' is called 's_dim'"):
        idata = sample(lp.target(model), groups=["unconstrained_posterior"])
    assert set(idata["posterior"].data_vars) == {"m", "s", "x", "x_dim_0"}
    assert dims(idata, "m") == ("s_dim",) and dims(idata, "x") == ("x_dim_0_dim",)
    density = lp.density(lambda x: -(x["a"] ** 2).sum(), {"a": jnp.zeros(3), "b": jnp.zeros(())})
    for labels in ({"a": ["b"]}, {"b": ["a"]}, {"a": ["c", "c"]}):
        with pytest.raises(ValueError, match="dims of"):
            sample(density.replace(dims=labels))


def test_a_label_for_axes_of_several_lengths():
    def model():
        with numpyro.plate("item", 4):
            numpyro.sample("a", dist.Normal(0.0, 1.0))
        with numpyro.plate("item", 5):
            numpyro.sample("b", dist.Normal(0.0, 1.0))
        with numpyro.plate("p", 3), numpyro.plate("p", 3):
            numpyro.sample("c", dist.Normal(0.0, 1.0))
        normal("e", 2, infer={"event_dims": ["item"]})

    with pytest.warns(UserWarning, match="the dimension 'item' of 'b' is called 'item_1'"):
        idata = sample(lp.target(model))
    assert [dims(idata, n) for n in "abce"] == [("item",), ("item_1",), ("p", "p_1"), ("item_2",)]
    summary = az.summary(idata)
    assert len(summary) == 20 and not summary.isna().any().any()
    with pytest.raises(ValueError, match="dims of 'b': 'item', for an axis of length 5"):
        sample(lp.target(model).replace(dims={"b": ["item"]}))


def test_a_plate_may_have_the_name_of_an_index():
    """``county`` is the plate, and the argument that says in which county a row is."""

    def model(county, y=None):
        with numpyro.plate("county", 3):
            level = numpyro.sample("level", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", len(county)):
            numpyro.sample("y", dist.Normal(level[county], 1.0), obs=y)

    target = lp.target(model, jnp.array([0, 0, 1, 2]), y=jnp.zeros(4))
    target = target.replace(coords={"county": list("abc")}, dims={"county": ["row"]})
    idata = sample(target)
    assert dims(idata, "level") == ("county",)
    assert list(idata["posterior"]["county"].values) == list("abc")
    assert idata["constant_data"]["county"].dims == ("row",)
    assert idata.attrs["renamed_dims"] == "{}"
    with pytest.raises(ValueError, match="dims: no variable is called country"):
        sample(target.replace(dims={"country": ["row"]}))
    with pytest.raises(ValueError, match="dims of 'county': 'county'"):
        sample(target.replace(dims={"county": ["county"]}, coords=None))


@pytest.mark.parametrize("plate_first", [True, False])
def test_a_plate_and_a_site_of_one_name(plate_first):
    def rows():
        with numpyro.plate("m", 3):
            numpyro.sample("y", dist.Normal(0.0, 1.0), obs=jnp.zeros(3))

    def model():
        for statement in (rows, lambda: normal("m"))[:: 1 if plate_first else -1]:
            statement()

    with pytest.raises(ValueError, match="'m' stands in a .* statement"):
        _ = lp.target(model).structure


@pytest.mark.parametrize("second", [normal, lambda name: numpyro.deterministic(name, 1.0)])
def test_two_statements_of_one_name(second):
    def model():
        normal("m")
        second("m")

    with pytest.raises(ValueError, match="'m' stands in a sample statement and in a"):
        _ = lp.target(model).structure


def test_a_subsampled_plate_of_two_sizes():
    def model():
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        for name, size in (("y", 10), ("z", 12)):
            with numpyro.plate("row", size, subsample_size=5):
                value = numpyro.subsample(jnp.zeros(size), event_dim=0)
                numpyro.sample(name, dist.Normal(mu, 1.0), obs=value)

    with pytest.raises(ValueError, match="plate 'row' is declared with the sizes"):
        _ = lp.target(model).structure


def two_rows():
    normal("mu", 2)
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=0.0)


def test_draws_are_returned_without_labels_that_arviz_refuses(monkeypatch):
    """No fault of the labels that shows after sampling may cost the draws."""
    target = lp.target(two_rows).replace(dims={"mu": ["part"]})
    expected = sample(target)
    real = export.distinct_dims

    def repeated(labels, shapes, variables, sizes):
        found = real(labels, shapes, variables, sizes)
        return {name: ["same", "same"] for name in found} if any(labels.values()) else found

    monkeypatch.setattr(export, "distinct_dims", repeated)
    with pytest.warns(UserWarning, match="group posterior have no labels"):
        idata = sample(target)
    np.testing.assert_array_equal(idata["posterior"]["mu"], expected["posterior"]["mu"])
    assert dims(idata, "mu") == ("mu_dim_0",)


def test_draws_are_returned_without_a_group_that_fails(monkeypatch):
    target = lp.target(two_rows)

    def log_likelihood(self, samples):
        if isinstance(samples["mu"], jax.core.Tracer):
            return {"y": jnp.zeros((2, 10))}
        raise RuntimeError("no memory")

    monkeypatch.setattr(type(target), "log_likelihood", log_likelihood)
    with pytest.warns(UserWarning, match="group log_likelihood was left out .* no memory"):
        idata = sample(target, groups=["log_likelihood", "posterior_predictive"])
    assert "log_likelihood" not in idata.children
    assert idata["posterior_predictive"]["y"].shape == (2, 10)

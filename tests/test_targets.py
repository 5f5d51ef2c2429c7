"""Targets: a model and its arguments, or a density, as something to sample."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import arviz_base
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.distributions.transforms import AffineTransform, OrderedTransform
from numpyro.infer import (
    init_to_feasible,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
    initialize_model,
)
from numpyro.infer.reparam import CircularReparam, LocScaleReparam, TransformReparam
from numpyro.infer.util import constrain_fn, potential_energy
from scipy import stats

import langevin_ppl as lp

KEY = jax.random.key(0)


def random_positions(target: Any, count: int, scale: float = 0.7) -> Any:
    """Standard normal positions with a leading axis."""
    leaves, treedef = jax.tree.flatten(target.prototype)
    keys = jax.random.split(jax.random.key(17), len(leaves))
    return jax.tree.unflatten(
        treedef,
        [
            scale * jax.random.normal(key, (count, *leaf.shape), leaf.dtype)
            for key, leaf in zip(keys, leaves, strict=True)
        ],
    )


def assert_close(actual: Any, expected: Any, tolerance: float = 2e-5) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert jnp.shape(a) == jnp.shape(b)
        size = 1.0 + np.max(np.abs(b), initial=0.0)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * size)


# --- a zoo of models --------------------------------------------------------------------------

X = jnp.array([[0.5, -1.0], [1.5, 0.3], [-0.7, 0.2], [0.1, 0.9], [2.0, -0.4]])
Y = jnp.array([0.3, 1.2, -0.8, 0.5, 1.9])
NAN_Y = Y.at[1].set(jnp.nan)
SCHOOLS = (
    jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
    jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
)


def regression(x, y=None):
    with numpyro.plate("feature", x.shape[1]):
        beta = numpyro.sample("beta", dist.Normal(0.0, 2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    mean = numpyro.deterministic("mean", x @ beta)
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("y", dist.Normal(mean, sigma), obs=y)


def eight_schools(y, sigma):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def transformed_schools(y, sigma):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", 8):
        with handlers.reparam(config={"theta": TransformReparam()}):
            theta = numpyro.sample(
                "theta",
                dist.TransformedDistribution(dist.Normal(0.0, 1.0), AffineTransform(mu, tau)),
            )
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def circular():
    with handlers.reparam(config={"phi": CircularReparam()}):
        numpyro.sample("phi", dist.VonMises(0.5, 2.0))


def with_factor(a):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.factor("tilt", -a * (x - 1.0) ** 4)


def with_deterministics(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.deterministic("alone", mu**2)
    with numpyro.plate("row", 5):
        numpyro.deterministic("scalar_inside", 2.0 * mu)
        eta = numpyro.sample("eta", dist.Normal(mu, 1.0))
        numpyro.deterministic("pair", jnp.stack([eta, -eta], axis=-1))
        numpyro.sample("y", dist.Normal(eta, 1.0), obs=y)


def local_level(y):
    drift = numpyro.sample("drift", dist.LogNormal(-1.0, 0.5))

    def step(level, observed):
        level = numpyro.sample("level", dist.Normal(level, drift))
        width = numpyro.sample("width", dist.Gamma(2.0, 2.0))
        numpyro.sample("y", dist.Normal(level, width), obs=observed)
        return level, None

    scan(step, 0.0, y)


def autoregression(y, start):
    phi = numpyro.sample("phi", dist.Uniform(-1.0, 1.0))

    def step(previous, observed):
        value = numpyro.sample("y", dist.Normal(phi * previous, 0.5), obs=observed)
        return value, None

    scan(step, start, y, length=5)


def masked(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 5), handlers.mask(mask=~jnp.isnan(y)):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def masked_distribution(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 5):
        numpyro.sample("y", dist.Normal(mu, 1.0).mask(~jnp.isnan(y)), obs=y)


def partly_observed(y, seen):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 5):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=seen)


def scaled(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with handlers.scale(scale=3.0):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def dynamic_support():
    top = numpyro.sample("top", dist.Gamma(3.0, 1.0))
    numpyro.sample("below", dist.Uniform(0.0, top))


def nested_plates(y):
    with numpyro.plate("country", 2, dim=-2):
        alpha = numpyro.sample("alpha", dist.Normal(0.0, 1.0))
        with numpyro.plate("year", 3, dim=-1):
            beta = numpyro.sample("beta", dist.Normal(alpha, 1.0))
            numpyro.sample("y", dist.Normal(beta, 1.0), obs=y)


def constrained(y):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
    factor = numpyro.sample("factor", dist.LKJCholesky(2, 1.5))
    cuts = numpyro.sample(
        "cuts",
        dist.TransformedDistribution(
            dist.Normal(0.0, 1.0).expand([3]).to_event(1), OrderedTransform()
        ),
    )
    mean = weights[:2] + cuts[0]
    numpyro.sample("y", dist.MultivariateNormal(mean, scale_tril=factor), obs=y)


def improper(y):
    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
    cuts = numpyro.sample("cuts", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    numpyro.sample("y", dist.Normal(mu + cuts[1], 1.0), obs=y)
    numpyro.factor("proper", -jnp.sum(cuts**2))


def switched(y, size, family="normal", weights=None, power=2.0):
    with numpyro.plate("row", size):
        mu = numpyro.sample("mu", dist.Normal(0.0, power))
        likelihood = {"normal": dist.Normal, "cauchy": dist.Cauchy}[family]
        with handlers.scale(scale=1.0 if weights is None else weights):
            numpyro.sample("y", likelihood(mu, 1.0), obs=y)


class Pair(NamedTuple):
    left: Any
    right: Any


def nested_arguments(data, pair, *more, **options):
    mu = numpyro.sample("mu", dist.Normal(options["prior"]["loc"], 1.0))
    mean = mu * data["x"] + pair.left * pair.right + sum(more)
    numpyro.sample("y", dist.Normal(mean, 1.0), obs=data["y"])


def mixture(y):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(2)))
    means = numpyro.sample("means", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with numpyro.plate("row", 5):
        components = dist.Normal(means, 1.0)
        numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=y)


def counts(n):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    with numpyro.plate("row", 4):
        numpyro.sample("n", dist.Poisson(rate), obs=n)


def with_params(y):
    scale = numpyro.param("scale", jnp.array(2.0), constraint=constraints.positive)
    offset = numpyro.param("offset", lambda key: jnp.arange(5.0))
    mu = numpyro.sample("mu", dist.Normal(0.0, scale))
    numpyro.sample("y", dist.Normal(mu + offset, scale), obs=y)


def random_equinox(x, y):
    eqx = pytest.importorskip("equinox")
    from numpyro.contrib.module import random_eqx_module

    module = eqx.nn.MLP(2, "scalar", 3, 1, key=jax.random.key(5))
    network = random_eqx_module("net", module, lambda name, shape: dist.Normal(0.0, 0.5))
    numpyro.sample("y", dist.Normal(jax.vmap(network)(x), 1.0), obs=y)


def fixed_equinox(x, y):
    eqx = pytest.importorskip("equinox")
    from numpyro.contrib.module import eqx_module

    network = eqx_module("net", eqx.nn.Linear(2, "scalar", key=jax.random.key(5)))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(slope * jax.vmap(network)(x), 1.0), obs=y)


def flax_network():
    nnx = pytest.importorskip("flax.nnx")

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(2, 1, rngs=rngs)
            self.norm = nnx.BatchNorm(1, rngs=rngs)

        def __call__(self, x):
            return self.norm(self.linear(x))[:, 0]

    return Network(nnx.Rngs(0))


def random_flax(x, y):
    from numpyro.contrib.module import random_nnx_module

    network = random_nnx_module("net", flax_network(), dist.Normal(0.0, 0.5))
    numpyro.sample("y", dist.Normal(network(x), 1.0), obs=y)


def fixed_flax(x, y):
    from numpyro.contrib.module import nnx_module

    network = nnx_module("net", flax_network())
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(slope * network(x), 1.0), obs=y)


class Case(NamedTuple):
    model: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}


ZOO = {
    "regression": Case(regression, (X,), {"y": Y}),
    "eight schools": Case(eight_schools, SCHOOLS),
    "eight schools, reparametrised": Case(
        handlers.reparam(eight_schools, config={"theta": LocScaleReparam(0.0)}), SCHOOLS
    ),
    "eight schools, transformed": Case(transformed_schools, SCHOOLS),
    "circular": Case(circular),
    "factor": Case(with_factor, (jnp.array(0.3),)),
    "deterministics": Case(with_deterministics, (Y,)),
    "scan with latents": Case(local_level, (Y,)),
    "scan of data": Case(autoregression, (Y, jnp.array(1.0))),
    "mask": Case(masked, (NAN_Y,)),
    "masked distribution": Case(masked_distribution, (NAN_Y,)),
    "obs_mask": Case(partly_observed, (NAN_Y, ~jnp.isnan(NAN_Y))),
    "scale": Case(scaled, (Y,)),
    "condition on a latent": Case(
        handlers.condition(regression, {"beta": jnp.array([0.5, -0.2])}), (X, Y)
    ),
    "condition on data": Case(handlers.condition(regression, {"y": Y}), (X,)),
    "block": Case(handlers.block(regression, hide=["y"]), (X,), {"y": Y}),
    "dynamic support": Case(dynamic_support),
    "nested plates": Case(nested_plates, (jnp.arange(6.0).reshape(2, 3),)),
    "constrained": Case(constrained, (jnp.array([0.2, -0.4]),)),
    "improper": Case(improper, (Y,)),
    "switched": Case(switched, (Y, 5), {"family": "cauchy", "weights": None}),
    "switched, weights": Case(switched, (Y, 5, "normal", jnp.arange(1.0, 6.0), 1)),
    "nested arguments": Case(
        nested_arguments,
        ({"x": X[:, 0], "y": Y, "note": None}, Pair(jnp.array(2.0), 0.5), Y, 1.0),
        {"prior": {"loc": jnp.array(0.3), "name": "normal"}},
    ),
    "partial": Case(functools.partial(switched, size=5, power=3.0), (Y,), {"family": "normal"}),
    "mixture": Case(mixture, (Y,)),
    "counts": Case(counts, (jnp.array([1, 0, 3, 2]),)),
    "params": Case(with_params, (Y,)),
    "equinox, random": Case(random_equinox, (X, Y)),
    "equinox, fixed": Case(fixed_equinox, (X, Y)),
    "flax, random": Case(random_flax, (X, Y)),
    "flax, fixed": Case(fixed_flax, (X, Y)),
}


@functools.cache
def target_of(name: str) -> Any:
    case = ZOO[name]
    return lp.target(case.model, *case.args, **case.kwargs)


@pytest.mark.parametrize("name", ZOO)
def test_a_model_is_what_numpyro_makes_of_it(name):
    case, target = ZOO[name], target_of(name)
    start = target.init_position(KEY)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), start)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), target.prototype)
    positions = jax.tree.map(
        lambda random, start: jnp.concatenate([random, start[None]]),
        random_positions(target, 2),
        start,
    )

    def theirs(position):
        model = handlers.seed(case.model, jax.random.key(3))
        value = -potential_energy(model, case.args, case.kwargs, position)
        if name == "obs_mask":  # cells that are observed are flat in NumPyro, and normal here
            cells = jnp.where(case.args[1], position["y_unobserved"], 0.0)
            value -= 0.5 * jnp.sum(cells**2)
        return value

    def their_constrain(position):
        model = handlers.seed(case.model, jax.random.key(3))
        return constrain_fn(model, case.args, case.kwargs, position, return_deterministic=True)

    ours = jax.jit(jax.vmap(jax.value_and_grad(target.logdensity_fn)))(positions)
    assert_close(ours, jax.jit(jax.vmap(jax.value_and_grad(theirs)))(positions))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(ours))

    variables = target.constrain(positions, batch_ndims=1)
    assert_close(variables, jax.jit(jax.vmap(their_constrain))(positions))
    assert {name: len(target.dims[name]) for name in variables} == {
        name: array.ndim - 1 for name, array in variables.items()
    }


@pytest.mark.parametrize("name", ["scan with latents", "improper"])
def test_positions_are_those_of_initialize_model(name):
    case = ZOO[name]
    info = initialize_model(KEY, case.model, model_args=case.args, model_kwargs=case.kwargs)
    shapes = jax.tree.map(lambda leaf: leaf.shape, target_of(name).prototype)
    assert shapes == jax.tree.map(jnp.shape, info.param_info.z)


def test_logdensity_by_hand():
    # Jacobian of sigma = exp(u) included, sum over the data.
    beta, u = np.array([0.4, -0.3]), 0.2
    sigma = np.exp(u)
    expected = (
        stats.norm(0, 2).logpdf(beta).sum()
        + stats.halfnorm(0, 1).logpdf(sigma)
        + u
        + stats.norm(np.asarray(X) @ beta, sigma).logpdf(np.asarray(Y)).sum()
    )
    position = {"beta": jnp.asarray(beta), "sigma": jnp.asarray(u)}
    assert_close(target_of("regression").logdensity_fn(position), expected)


def test_params_are_held_at_their_initial_values():
    mu = 0.7
    expected = stats.norm(0, 2).logpdf(mu) + stats.norm(mu + np.arange(5), 2).logpdf(Y).sum()
    target = target_of("params")
    assert set(target.prototype) == {"mu"}
    assert_close(target.logdensity_fn({"mu": jnp.array(mu)}), expected)


def test_requests_for_a_key_do_not_randomise_a_density():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        kept = jax.random.bernoulli(numpyro.prng_key(), 0.5, (5,))
        numpyro.deterministic("kept", kept)
        numpyro.sample("y", dist.Normal(mu * kept, 1.0), obs=y)

    target = lp.target(model, Y)
    position = {"mu": jnp.array(0.4)}
    kept = target.constrain(position)["kept"]
    expected = stats.norm(0, 1).logpdf(0.4) + stats.norm(0.4 * kept, 1).logpdf(Y).sum()
    assert_close(target.logdensity_fn(position), expected)
    assert 0 < int(jnp.sum(kept)) < 5
    # Predictions are of the model whose density was sampled, each with its own noise.
    predicted = np.asarray(target.predict(KEY, {"mu": jnp.full((1, 4000), 9.0)})["y"])[0]
    assert_moments(predicted, 9.0 * np.asarray(kept), np.ones(5))


# --- starting positions -----------------------------------------------------------------------

STRATEGIES = {
    "uniform": init_to_uniform,
    "uniform, radius": init_to_uniform(radius=0.1),
    "median": init_to_median,
    "sample": init_to_sample(),
    "feasible": init_to_feasible,
}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ["eight schools, reparametrised", "scan of data"])
def test_init_strategies(name, strategy):
    target = target_of(name).replace(init_strategy=STRATEGIES[strategy])
    flat, _ = jax.flatten_util.ravel_pytree(target.init_position(KEY))
    assert bool(jnp.all(jnp.isfinite(flat)))
    if strategy == "feasible":
        np.testing.assert_allclose(flat, 0.0, atol=1e-6)
    if strategy == "uniform, radius":
        assert 0.0 < float(jnp.max(jnp.abs(flat))) <= 0.1
    if strategy == "uniform":
        assert float(jnp.max(jnp.abs(flat))) <= 2.0


def test_init_to_value_is_where_it_says():
    values = {"cuts": jnp.array([-1.0, 2.0])}
    target = target_of("improper").replace(init_strategy=init_to_value(values=values))
    position = target.init_position(KEY)
    assert_close(target.constrain(position)["cuts"], values["cuts"])
    assert 0.0 < abs(float(position["mu"])) <= 2.0  # NumPyro's default for the others


def test_init_to_median_is_near_the_median():
    def model():
        numpyro.sample("x", dist.Normal(3.0, 0.1))

    target = lp.target(model).replace(init_strategy=init_to_median(num_samples=401))
    # Standard error of a median of 401 draws: 1.25 * 0.1 / sqrt(401) = 0.0063.
    assert abs(float(target.init_position(KEY)["x"]) - 3.0) < 4 * 0.0063


def test_a_function_of_a_site_is_a_strategy():
    def half(site):
        if site["type"] == "sample" and not site["is_observed"]:
            return jnp.full(site["fn"].shape(), 0.5)
        return None

    position = target_of("regression").replace(init_strategy=half).init_position(KEY)
    assert_close(position, {"beta": jnp.full(2, 0.5), "sigma": jnp.log(0.5)})


def test_starting_positions_differ_by_key_and_avoid_bad_places():
    def model():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.factor("half line", jnp.where(x > 1.5, 0.0, -jnp.inf))

    target = lp.target(model)
    keys = jax.random.split(KEY, 8)
    starts = jax.vmap(target.init_position)(keys)["x"]
    assert bool(jnp.all(starts > 1.5)) and len(set(starts.tolist())) == 8


# --- pytrees, compiled once -------------------------------------------------------------------


def counting_model():
    """Count the runs of a model in Python."""
    calls = []

    def model(x, y=None, flag=0):
        calls.append(flag)
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", x.shape[0]):
            numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    return model, calls


def test_arrays_are_leaves_and_all_else_is_structure():
    case = ZOO["nested arguments"]
    target = lp.target(case.model, *case.args, **case.kwargs)
    arrays = [leaf for leaf in jax.tree.leaves((case.args, case.kwargs)) if jnp.ndim(leaf) > -1]
    arrays = [leaf for leaf in arrays if isinstance(leaf, jax.Array)]
    assert sorted(map(str, jax.tree.leaves(target))) == sorted(map(str, arrays))
    again = lp.target(case.model, *case.args, **case.kwargs)
    assert jax.tree.structure(target) == jax.tree.structure(again)
    assert hash(jax.tree.structure(target)) == hash(jax.tree.structure(again))
    doubled = jax.tree.map(lambda leaf: 2 * leaf, target)
    assert_close(doubled.constant_data["data.x"], 2 * X[:, 0])
    assert_close(doubled.observed_data["y"], 2 * Y)
    assert float(doubled.logdensity_fn({"mu": 0.3})) != float(target.logdensity_fn({"mu": 0.3}))


USES = {
    "logdensity": lambda target: target.logdensity_fn({"slope": jnp.array(0.3)}),
    "gradient": lambda target: jax.grad(target.logdensity_fn)({"slope": jnp.array(0.3)}),
    "constrain": lambda target: target.constrain({"slope": jnp.array(0.3)}),
    "init_position": lambda target: target.init_position(KEY),
    "init to median": lambda target: target.replace(
        init_strategy=init_to_median(num_samples=5)
    ).init_position(KEY),
    "init to value": lambda target: target.replace(
        init_strategy=init_to_value(values={"slope": jnp.array(0.3)})
    ).init_position(KEY),
    "predict": lambda target: target.predict(KEY, {"slope": jnp.ones((2, 3))}),
    "predict_prior": lambda target: target.predict_prior(KEY, 3),
    "log_likelihood": lambda target: target.log_likelihood({"slope": jnp.ones((2, 3))}),
    "observed_data": lambda target: target.observed_data,
    "constant_data": lambda target: target.constant_data,
    "dims": lambda target: target.replace(dims={"slope": []}).dims,
}


@pytest.mark.parametrize("use", USES)
def test_new_data_of_the_same_shapes_do_not_run_the_model(use):
    model, calls = counting_model()
    first = USES[use](lp.target(model, Y, y=2 * Y))
    assert calls
    calls.clear()
    second = USES[use](lp.target(model, np.asarray(Y) + 1.0, y=Y))
    assert calls == []
    if use in ("logdensity", "gradient", "predict", "log_likelihood", "observed_data"):
        assert str(first) != str(second)
    USES[use](lp.target(model, Y[:3], y=Y[:3]))
    assert calls


def test_jit_over_a_target_compiles_once():
    model, calls = counting_model()
    traces = []

    @jax.jit
    def at_zero(target):
        traces.append(1)
        return target.replace(coords={}).logdensity_fn({"slope": jnp.zeros(())})

    values = [
        float(at_zero(lp.target(model, Y, y=k * Y).replace(dims={"y": ["row"]})))
        for k in (1.0, 2.0, 3.0)
    ]
    assert len(traces) == 1 and len(set(values)) == 3
    expected = stats.norm(0, 1).logpdf(0.0) + stats.norm(0, 1).logpdf(3 * np.asarray(Y)).sum()
    assert_close(values[-1], expected)
    at_zero(lp.target(model, Y, y=Y).replace(dims={"y": ["other"]}))
    assert len(traces) == 2  # options are structure


def test_vmap_over_a_target():
    targets = [lp.target(regression, X, y=k * Y) for k in (1.0, 2.0)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *targets)
    position = {"beta": jnp.array([0.3, 0.1]), "sigma": jnp.array(-0.2)}
    values = jax.vmap(lambda target: target.logdensity_fn(position))(stacked)
    assert_close(values, jnp.stack([t.logdensity_fn(position) for t in targets]))
    starts = jax.vmap(lambda target: target.init_position(KEY))(stacked)
    assert starts["beta"].shape == (2, 2)


def test_a_target_is_made_inside_jit():
    @jax.jit
    def density(y, slope):
        return lp.target(counting_model()[0], Y, y=y).logdensity_fn({"slope": slope})

    expected = stats.norm(0, 1).logpdf(0.5) + stats.norm(0.5 * Y, 1).logpdf(2 * Y).sum()
    assert_close(density(2 * Y, jnp.array(0.5)), expected)


def test_equal_static_values_of_other_types_are_other_programs():
    def model(flag):
        numpyro.sample("x", dist.Normal(0.0, 1.0))
        first = flag[0] if isinstance(flag, tuple) else flag
        table = {int: 1.0, float: 2.0, bool: 3.0, str: 4.0, type(None): 5.0}
        numpyro.factor("f", table[type(first)] + (0.5 if str(first).startswith("-") else 0.0))

    def value(target):
        normal = stats.norm(0, 1).logpdf(0.0)
        return round(float(target.logdensity_fn({"x": jnp.zeros(())})) - normal, 3)

    flags = (1, 1.0, True, "1", None, 0.0, -0.0)
    expected = [1.0, 2.0, 3.0, 4.0, 5.0, 2.0, 2.5]
    assert [value(lp.target(model, flag)) for flag in flags] == expected
    assert [value(lp.target(model, (flag,))) for flag in flags] == expected
    static = [lp.target(model, (flag,)).replace(static="flag") for flag in flags]
    assert [value(target) for target in static] == expected


def test_equal_static_values_share_a_program():
    model, calls = counting_model()
    position = {"slope": jnp.zeros(())}
    for flag in ([1, {"a": 2.0}], [1, {"a": 2.0}]):
        calls.clear()
        lp.target(model, Y, y=Y, flag=flag).replace(static=["flag"]).logdensity_fn(position)
    assert calls == []
    lp.target(model, Y, y=Y, flag=[1, {"a": 3.0}]).replace(static=["flag"]).logdensity_fn(position)
    assert calls


# --- models that need a concrete value --------------------------------------------------------


def uses_numpy(x, y):
    mean = np.asarray(x).mean()
    mu = numpyro.sample("mu", dist.Normal(mean, 1.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def uses_int(y, n, unused):
    with numpyro.plate("row", int(n) + 0 * unused.shape[0]):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def uses_arithmetic(y, n):
    # The size must stay concrete through arithmetic, which jax.numpy would trace.
    with numpyro.plate("row", n // 2 + 1):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def uses_if(y, x):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0 if x > 0 else 2.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def uses_boolean_index(y, seen):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y[seen])


def uses_two(y, n, m):
    with numpyro.plate("row", int(n) + int(m)):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


CONCRETE = {
    "np.asarray": (uses_numpy, (X, Y), ("x",)),
    "int": (uses_int, (Y, jnp.array(5), X), ("n",)),
    "arithmetic": (uses_arithmetic, (Y, jnp.array(8)), ("n",)),
    "if": (uses_if, (Y, jnp.array(0.5)), ("x",)),
    "boolean index": (uses_boolean_index, (NAN_Y, ~jnp.isnan(NAN_Y)), ("seen",)),
    "two": (uses_two, (Y, np.int64(2), jnp.array(3)), ("n", "m")),
}


@pytest.mark.parametrize("name", CONCRETE)
def test_arguments_that_are_needed_as_values_become_static(name):
    model, args, culprits = CONCRETE[name]
    target = lp.target(model, *args)
    assert target.static == culprits
    assert len(target.data) == len(args) - len(culprits)
    positions = random_positions(target, 1)
    position = jax.tree.map(lambda leaf: leaf[0], positions)
    expected = -potential_energy(model, args, {}, position)
    assert_close(target.logdensity_fn(position), expected)
    assert bool(jnp.isfinite(expected))
    assert not set(culprits) & set(target.constant_data)


def test_a_concrete_value_of_a_latent_is_no_arguments_fault():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu if mu > 0 else 0.0, 1.0), obs=y)

    with pytest.raises(TypeError, match="depends on a latent site.*jnp.where"):
        _ = lp.target(model, Y).prototype


def test_static_can_be_set_by_position_keyword_and_undone():
    model, calls = counting_model()
    static = lp.target(model, Y, Y).replace(static="x")
    assert len(jax.tree.leaves(static)) == 1
    assert len(jax.tree.leaves(lp.target(model, x=Y, y=Y).replace(static=("x", "y")))) == 0
    undone = static.replace(static=None)
    assert len(jax.tree.leaves(undone)) == 2
    position = {"slope": jnp.array(0.1)}
    assert_close(static.logdensity_fn(position), undone.logdensity_fn(position))


# --- precision --------------------------------------------------------------------------------


def test_float64_when_it_is_enabled():
    target = lp.target(dynamic_support)
    assert target.prototype["top"].dtype == jnp.float32
    with jax.enable_x64(True):
        # The same model again, without an array argument that would show the precision.
        wide = lp.target(dynamic_support)
        assert wide.prototype["top"].dtype == jnp.float64
        position = wide.init_position(KEY)
        assert position["top"].dtype == jnp.float64
        assert wide.logdensity_fn(position).dtype == jnp.float64

        beta, u = np.array([0.4, -0.3]), 0.2
        x, y = np.asarray(X, np.float64) + 1e-9, np.asarray(Y, np.float64)
        expected = (
            stats.norm(0, 2).logpdf(beta).sum()
            + stats.halfnorm(0, 1).logpdf(np.exp(u))
            + u
            + stats.norm(x @ beta, np.exp(u)).logpdf(y).sum()
        )
        value = lp.target(regression, x, y=y).logdensity_fn({"beta": beta, "sigma": u})
        np.testing.assert_allclose(value, expected, rtol=1e-13)
    assert lp.target(dynamic_support).init_position(KEY)["top"].dtype == jnp.float32


def test_float64_data_become_float32_without_a_warning():
    target = lp.target(regression, np.asarray(X, np.float64), y=np.asarray(Y, np.float64))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(target)} == {"float32"}
    assert {leaf.dtype.name for leaf in target.init_position(KEY).values()} == {"float32"}


# --- dims, coords and data --------------------------------------------------------------------


def test_plates_name_dimensions_from_outer_to_inner():
    dims = target_of("nested plates").dims
    assert dims["beta"] == dims["y"] == ["country", "year"]
    # The inner axis of `alpha` is its event-free plate dimension of size 1.
    assert dims["alpha"] == ["country", "alpha_dim_1"]


@pytest.mark.parametrize("name", ["regression", "eight schools", "mixture", "counts"])
def test_dims_are_those_that_arviz_infers(name):
    case = ZOO[name]
    inferred = arviz_base.io_numpyro.infer_dims(case.model, case.args, case.kwargs)
    dims = target_of(name).dims
    assert inferred and {variable: dims[variable] for variable in inferred} == inferred


def test_deterministics_take_the_plates_that_fit():
    dims = target_of("deterministics").dims
    assert dims["alone"] == dims["scalar_inside"] == []
    assert dims["eta"] == dims["y"] == ["row"]
    assert dims["pair"] == ["row", "pair_dim_1"]


def test_scan_dims_follow_the_time_axis():
    def model(y):
        def step(carry, observed):
            with numpyro.plate("series", 2):
                level = numpyro.sample("level", dist.Normal(carry, 1.0))
                numpyro.sample("y", dist.Normal(level, 1.0), obs=observed)
            return level, None

        scan(step, jnp.zeros(2), y)

    target = lp.target(model, jnp.zeros((4, 2)))
    assert target.dims == {"level": ["level_dim_0", "series"], "y": ["y_dim_0", "series"]}
    named = target.replace(dims={"level": ["time", "series"]})
    assert named.dims == {"level": ["time", "series"], "y": ["y_dim_0", "series"]}


def test_event_dims_and_reserved_names():
    def model():
        with numpyro.plate("chain", 2, dim=-2), numpyro.plate("draw", 3, dim=-1):
            infer = {"event_dims": ["factor"]}
            numpyro.sample("x", dist.Normal().expand([4]).to_event(1), infer=infer)
        numpyro.sample("z", dist.Normal().expand([2, 3]).to_event(2), infer=infer)
        infer = {"event_dims": ["draw"]}
        numpyro.sample("w", dist.Normal().expand([4]).to_event(1), infer=infer)

    target = lp.target(model)
    assert target.dims["w"] == ["draw_dim"]
    assert target.dims["x"] == ["chain_plate", "draw_plate", "factor"]
    assert target.dims["z"] == ["z_dim_0", "factor_1"]  # "factor" has another length


def test_options_are_replaced_and_kept():
    base = target_of("regression")
    target = base.replace(dims={"beta": "covariate"}, coords={"covariate": ["age", "height"]})
    target = target.replace(init_strategy=init_to_median)
    assert target.dims["beta"] == ["covariate"] and base.dims["beta"] == ["feature"]
    assert list(target.options.coords["covariate"]) == ["age", "height"]
    assert target.replace(dims=None, coords=None).dims == base.dims
    through = jax.tree.unflatten(jax.tree.structure(target), jax.tree.leaves(target))
    assert through.options == target.options and through.dims == target.dims


def test_dims_and_coords_reach_the_datatree():
    target = lp.target(regression, X, y=Y).replace(coords={"feature": ["a", "b"]})
    idata = lp.sample(
        KEY,
        target,
        num_chains=2,
        num_warmup=0,
        num_samples=3,
        step_size=1e-3,
        groups=["log_likelihood", "posterior_predictive", "prior"],
    )
    posterior = idata["posterior"]
    assert posterior["beta"].dims == ("chain", "draw", "feature")
    assert posterior["mean"].dims == ("chain", "draw", "mean_dim_0")
    assert list(posterior["beta"].coords["feature"].values) == ["a", "b"]
    for group in ("observed_data", "log_likelihood", "posterior_predictive", "prior_predictive"):
        assert idata[group]["y"].dims[-1] == "row"
    assert idata["constant_data"]["x"].shape == (5, 2)
    # The DataTree's draws may be given back as they are.
    predicted = target.predict(KEY, posterior)
    assert predicted["y"].shape == (2, 3, 5)


def test_observed_data_keep_values_and_types():
    observed = target_of("counts").observed_data
    assert observed["n"].dtype == jnp.int32 and observed["n"].tolist() == [1, 0, 3, 2]
    assert_close(target_of("condition on data").observed_data, {"y": Y})
    assert_close(target_of("scan with latents").observed_data, {"y": Y})
    np.testing.assert_array_equal(target_of("mask").observed_data["y"], NAN_Y)
    assert target_of("factor").observed_data == {}


def test_constant_data_are_the_arrays_that_are_not_observed():
    assert_close(target_of("regression").constant_data, {"x": X})
    assert set(target_of("eight schools").constant_data) == {"sigma"}
    nested = target_of("nested arguments").constant_data
    # `more.0` is the array that is also observed, under another name.
    assert set(nested) >= {"data.x", "pair.left", "prior.loc"}
    assert not set(nested) & {"data.y", "data.note", "pair.right", "more.1", "prior.name"}
    # Python numbers are not data, whatever their value.
    assert target_of("switched").constant_data == {}
    assert_close(target_of("switched, weights").constant_data, {"weights": jnp.arange(1.0, 6.0)})
    static = lp.target(regression, X, y=Y).replace(static="x")
    assert static.constant_data == {}


def test_arrays_in_a_module_argument_are_constant_data():
    eqx = pytest.importorskip("equinox")

    def model(network, x, y):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(slope * jax.vmap(network)(x), 1.0), obs=y)

    network = eqx.nn.Linear(2, "scalar", key=KEY)
    target = lp.target(model, network, X, Y)
    assert set(target.constant_data) == {"network.weight", "network.bias", "x"}
    assert len(jax.tree.leaves(target)) == 4
    expected = stats.norm(0, 1).logpdf(0.5)
    expected += stats.norm(0.5 * jax.vmap(network)(X), 1).logpdf(Y).sum()
    assert_close(target.logdensity_fn({"slope": jnp.array(0.5)}), expected)


# --- predictions ------------------------------------------------------------------------------


def normal_mean(x, y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("y", dist.Normal(mu * x, 0.5), obs=y)


def assert_moments(draws, mean, variance):
    """Mean and variance within 4.5 standard errors, for independent normal rows."""
    count = draws.shape[0]
    error = np.sqrt(np.asarray(variance) / count)
    np.testing.assert_array_less(np.abs(draws.mean(0) - mean), 4.5 * error)
    ratio = draws.var(0) / variance
    np.testing.assert_array_less(np.abs(ratio - 1.0), 4.5 * np.sqrt(2.0 / count))


def test_posterior_predictive_has_the_moments_of_its_closed_form():
    x = np.array([1.0, -0.5, 2.0])
    y = np.array([0.8, -0.1, 2.2])
    target = lp.target(normal_mean, x, y=y)
    precision = 1 / 4 + np.sum(x**2) / 0.25
    mean = np.sum(x * y) / 0.25 / precision
    draws = mean + np.random.default_rng(1).normal(size=(2, 3000)) / np.sqrt(precision)
    predicted = np.asarray(target.predict(KEY, {"mu": draws})["y"])
    assert predicted.shape == (2, 3000, 3)
    flat = predicted.reshape(-1, 3)
    assert_moments(flat, mean * x, x**2 / precision + 0.25)
    # Given mu, rows and draws are independent.
    noise = (predicted - draws[..., None] * x).reshape(-1, 3)
    correlation = np.corrcoef(noise.T)[np.triu_indices(3, 1)]
    assert np.max(np.abs(correlation)) < 4.5 / np.sqrt(len(noise))

    new = np.array([3.0, 0.0])
    for args, kwargs in (((new,), {}), ((new, None), {}), ((), {"x": new, "y": np.zeros(2)})):
        predicted = np.asarray(target.predict(KEY, {"mu": draws}, *args, **kwargs)["y"])
        assert_moments(predicted.reshape(-1, 2), mean * new, new**2 / precision + 0.25)


def test_prior_predictive_has_the_moments_of_its_closed_form():
    x = np.array([1.0, -0.5, 2.0])
    target = lp.target(normal_mean, x, y=np.array([100.0, 100.0, 100.0]))
    draws = target.predict_prior(KEY, 4000)
    assert draws["mu"].shape == (1, 4000) and draws["y"].shape == (1, 4000, 3)
    assert_moments(np.asarray(draws["mu"]).reshape(-1, 1), 0.0, np.array([4.0]))
    assert_moments(np.asarray(draws["y"])[0], 0.0, 4.0 * x**2 + 0.25)


def test_prior_has_deterministics_but_no_factors():
    assert set(target_of("regression").predict_prior(KEY, 2)) == {"beta", "sigma", "mean", "y"}
    assert set(target_of("factor").predict_prior(KEY, 2)) == {"x"}
    assert target_of("factor").predict(KEY, {"x": jnp.zeros((1, 2))}) == {}


def test_predictions_inside_scan_do_not_go_on_from_the_data():
    # With y_t = phi * y_{t-1} + noise, a path drawn anew ends near phi^5 * start.
    target = lp.target(autoregression, 100.0 + Y, jnp.array(1.0))
    predicted = np.asarray(target.predict(KEY, {"phi": jnp.full((2, 2000), 0.5)})["y"])
    powers = 0.5 ** np.arange(1, 6)
    variance = 0.25 * np.cumsum(0.25 ** np.arange(5))
    assert_moments(predicted.reshape(-1, 5), powers, variance)
    assert float(jnp.max(jnp.abs(target.predict_prior(KEY, 100)["y"]))) < 20.0


def test_predictions_of_fixed_networks_use_their_parameters():
    target = target_of("equinox, fixed")
    network = pytest.importorskip("equinox").nn.Linear(2, "scalar", key=jax.random.key(5))
    predicted = target.predict(KEY, {"slope": jnp.full((1, 4000), 10.0)})["y"]
    assert_moments(np.asarray(predicted)[0], 10.0 * jax.vmap(network)(X), np.ones(5))


def test_log_likelihood_by_hand():
    x, y = np.array([1.0, -0.5, 2.0]), np.array([0.8, -0.1, 2.2])
    draws = np.array([[0.3, -1.0], [0.9, 2.0]])
    terms = lp.target(normal_mean, x, y=y).log_likelihood({"mu": draws})
    expected = stats.norm(draws[..., None] * x, 0.5).logpdf(y)
    assert_close(terms, {"y": expected}, tolerance=1e-5)
    assert terms["y"].dtype == jnp.float32

    seen = target_of("mask").log_likelihood({"mu": draws})["y"]
    assert seen.shape == (2, 2, 5)
    np.testing.assert_array_equal(seen[..., 1], 0.0)  # the NaN under the mask
    assert bool(jnp.all(jnp.isfinite(seen)))
    assert set(target_of("factor").log_likelihood({"x": draws})) == set()
    scanned = target_of("scan of data").log_likelihood({"phi": np.full((1, 2), 0.3)})["y"]
    means = 0.3 * np.concatenate([[1.0], Y[:-1]])
    assert_close(scanned[0, 0], stats.norm(means, 0.5).logpdf(Y))


# --- densities --------------------------------------------------------------------------------


class Position(NamedTuple):
    loc: Any
    rest: Any


def test_density_on_any_pytree():
    def logdensity(position):
        return -0.5 * jnp.sum(position.loc**2) - jnp.sum(jnp.cosh(position.rest["scale"][0]))

    start = Position(np.ones(2, np.float32), {"scale": [0.5, jnp.zeros((2, 2))]})
    target = lp.density(logdensity, start)
    position = target.init_position(KEY)
    assert isinstance(position, Position) and position.rest["scale"][1].shape == (2, 2)
    assert_close(target.logdensity_fn(position), logdensity(position))
    assert_close(jax.grad(target.logdensity_fn)(position), jax.grad(logdensity)(position))
    assert set(target.constrain(position)) == {"x.loc", "x.rest.scale.0", "x.rest.scale.1"}
    assert jax.tree.map(lambda leaf: leaf.shape, target.prototype) == jax.tree.map(jnp.shape, start)


@pytest.mark.parametrize(
    ("position", "names"),
    [
        (jnp.zeros(2), {"x"}),
        (0.0, {"x"}),
        ({"b": jnp.zeros(2), "a": 0.0}, {"a", "b"}),
        ({"a": {"b": jnp.zeros(2)}, "c": (0.0, None)}, {"a.b", "c.0"}),
        ([0.0, jnp.zeros(1)], {"x.0", "x.1"}),
    ],
)
def test_variables_of_a_density_are_named_by_their_paths(position, names):
    target = lp.density(lambda x: -sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(x)), position)
    assert set(target.constrain(target.init_position(KEY))) == names


def test_arrays_of_a_partial_are_data():
    calls = []

    def gaussian(mean, scale, x):
        calls.append(1)
        return -0.5 * jnp.sum(((x - mean) / scale) ** 2)

    def make(mean, scale=2.0):
        return lp.density(jax.tree_util.Partial(gaussian, mean, scale), jnp.zeros(2))

    first = make(jnp.array([1.0, 2.0]))
    # The starting position is a leaf too.
    assert len(jax.tree.leaves(first)) == 2
    assert_close(first.logdensity_fn(jnp.zeros(2)), -0.625)
    first.init_position(KEY)
    calls.clear()
    second = make(np.array([3.0, 4.0]))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    value = second.logdensity_fn(jnp.zeros(2))
    second.init_position(KEY)
    assert_close(value, -0.125 * 25.0)
    assert calls == []
    assert_close(make(jnp.array([3.0, 4.0]), 1.0).logdensity_fn(jnp.zeros(2)), -12.5)


def test_arrays_of_an_equinox_module_are_data():
    eqx = pytest.importorskip("equinox")
    network = eqx.nn.MLP(2, "scalar", 4, 1, key=KEY)

    class Energy(eqx.Module):
        network: Any
        power: int

        def __call__(self, x):
            return -(self.network(x) ** self.power) - jnp.sum(x**2)

    targets = [lp.density(Energy(network, power), jnp.zeros(2)) for power in (1, 2)]
    doubled = jax.tree.map(lambda leaf: 2 * leaf, targets[0])
    x = jnp.array([0.3, -0.2])
    assert_close(targets[0].logdensity_fn(x), -network(x) - x @ x)
    assert_close(targets[1].logdensity_fn(x), -(network(x) ** 2) - x @ x)
    assert float(doubled.logdensity_fn(x)) != float(targets[0].logdensity_fn(x))
    assert len(jax.tree.leaves(targets[0])) == 5


def test_density_starts_near_the_position_or_by_its_strategy():
    def logdensity(x):
        return -0.5 * jnp.sum((x - 10.0) ** 2)

    target = lp.density(logdensity, jnp.full(200, 10.0))
    start = target.init_position(KEY)
    assert 1.5 < float(jnp.max(start - 10.0)) <= 2.0
    assert -1.5 > float(jnp.min(start - 10.0)) >= -2.0
    exact = target.replace(init_strategy=lambda key: np.full(200, 3.0))
    assert_close(exact.init_position(KEY), jnp.full(200, 3.0))
    with pytest.raises(ValueError, match=r"shapes \(200,\).*got \(3,\)"):
        target.replace(init_strategy=lambda key: jnp.zeros(3)).init_position(KEY)


def test_density_starts_where_it_is_finite():
    target = lp.density(lambda x: jnp.log(x - 1.0) - x, jnp.array(0.0))
    starts = jax.vmap(target.init_position)(jax.random.split(KEY, 16))
    assert bool(jnp.all(starts > 1.0))


def test_density_in_float64():
    with jax.enable_x64(True):
        target = lp.density(lambda x: -0.5 * x @ x, jnp.zeros(2))
        position = target.init_position(KEY)
        assert position.dtype == target.logdensity_fn(position).dtype == jnp.float64


def test_targets_are_protocols_targets():
    from langevin_ppl.base import Target

    for target in (target_of("regression"), lp.density(lambda x: -x * x, 0.0)):
        assert isinstance(target, Target)
        assert target.gradient(lambda t: t) is target
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert isinstance(target.description, str)

"""Discrete latent sites: summed out, or sampled by NumPyro beside our kernels."""

import contextlib
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, DiscreteGibbs, Gibbs, Predictive
from numpyro.infer.gibbs import discrete_latent_sites
from scipy.special import logsumexp
from scipy.stats import norm

import langevin_ppl as lp
from langevin_ppl import infer

Y = np.array([-1.4, -0.9, 1.8, 2.2, 2.4], np.float32)
SHARES = np.array([0.3, 0.7])


def mixture(y=None):
    """Two clusters about 0 and ``centre``; rows choose theirs."""
    centre = numpyro.sample("centre", dist.Normal(0.0, 3.0))
    numpyro.deterministic("twice", 2.0 * centre)
    with numpyro.plate("row", len(Y)):
        cluster = numpyro.sample("cluster", dist.Bernoulli(SHARES[1]))
        level = numpyro.deterministic("level", cluster * centre)
        numpyro.sample("y", dist.Normal(level, 0.8), obs=y)


def logdensity(centre):
    """By hand: every row sums over its two clusters."""
    levels = np.stack([np.zeros_like(centre), centre], axis=-1)
    rows = norm.logpdf(Y[:, None], levels[..., None, :], 0.8) + np.log(SHARES)
    return norm.logpdf(centre, 0.0, 3.0) + logsumexp(rows, axis=-1).sum(-1)


@pytest.fixture(scope="module")
def truth():
    """Mean and standard deviation of the centre by quadrature."""
    grid = np.linspace(-6.0, 6.0, 4001)
    weight = np.exp(logdensity(grid) - logdensity(grid).max())
    weight /= weight.sum()
    mean = weight @ grid
    return mean, np.sqrt(weight @ (grid - mean) ** 2)


def assert_right(draws, truth, tolerance=0.12):
    mean, sd = truth
    assert abs(np.mean(draws) - mean) < tolerance * sd
    assert abs(np.std(draws) / sd - 1.0) < tolerance


@pytest.fixture(scope="module")
def target():
    return lp.target(mixture, y=Y)


def test_the_log_density_sums_over_the_values(target):
    for centre in (-1.0, 0.3, 2.0):
        value = target.logdensity_fn({"centre": jnp.asarray(centre)})
        np.testing.assert_allclose(value, logdensity(np.asarray(centre)), rtol=1e-5)
    assert list(target.prototype) == ["centre"] and target.summed_out == ("cluster",)


def test_a_chain_of_discrete_sites():
    """A hidden Markov model, against the sum over all of its paths."""
    transition, emission = np.array([[0.9, 0.1], [0.3, 0.7]]), np.array([-1.0, 1.0])
    data = np.array([0.5, -0.2, 1.4], np.float32)

    def model(data):
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        state = 0
        for i in range(len(data)):
            probabilities = jnp.asarray(transition)[state]
            state = numpyro.sample(f"state_{i}", dist.Categorical(probabilities))
            numpyro.sample(f"y_{i}", dist.Normal(jnp.asarray(emission)[state], scale), obs=data[i])

    total = 0.0
    for path in np.ndindex(2, 2, 2):
        steps = np.prod([transition[a, b] for a, b in zip((0, *path), path, strict=False)])
        total += steps * norm.pdf(data, emission[list(path)], 1.5).prod()
    log_scale = np.log(1.5)
    expected = np.log(total) + norm.logpdf(log_scale)
    value = lp.target(model, data).logdensity_fn({"scale": jnp.asarray(log_scale)})
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_in_sample(target, truth):
    idata = lp.sample(
        jax.random.key(0), target, num_samples=4000, groups=["posterior_predictive", "prior"]
    )
    assert_right(idata["posterior"]["centre"], truth)
    # What depends on the discrete site has no value of its own.
    assert set(idata["posterior"].data_vars) == {"centre", "twice"}
    assert idata.attrs["summed_out"] == '["cluster"]'
    assert set(idata["prior"].data_vars) == {"centre", "twice"}
    # Rows are predicted from the cluster that the data say they are in.
    predicted = idata["posterior_predictive"]["y"].mean(("chain", "draw"))
    assert predicted[:2].max() < 0.5 and predicted[2:].min() > 1.5


def test_discrete_sites_are_drawn_given_the_data(target):
    """Against the probability of a cluster at a fixed centre."""
    centre = jnp.full((1, 4000), 2.0)
    likelihoods = SHARES * norm.pdf(Y[:, None], [0.0, 2.0], 0.8)
    share = likelihoods[:, 1] / likelihoods.sum(axis=1)
    draws = target.predict(jax.random.key(1), {"centre": centre})["y"]
    error = draws.std(axis=(0, 1)) / np.sqrt(4000)
    assert np.all(np.abs(draws.mean(axis=(0, 1)) - 2.0 * share) < 4 * error)
    with pytest.raises(ValueError, match="no values at new data"):
        target.predict(jax.random.key(1), {"centre": centre}, y=None)


@pytest.mark.parametrize("in_scan", [False, True])
def test_a_batch_without_a_plate_is_refused(in_scan):
    """Its rows would be summed out together, which is another density."""

    def state(mu, y, plate):
        with numpyro.plate("row", 3) if plate else contextlib.nullcontext():
            z = numpyro.sample("z", dist.Categorical(jnp.ones((3, 3)) / 3.0))
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)

    def model(y, plate):
        mu = numpyro.sample("mu", dist.Normal(0.0, 3.0).expand([3]).to_event(1))
        if in_scan:
            scan(lambda carry, row: (carry, state(mu, row, plate)), 0, y[None])
        else:
            state(mu, y, plate)

    y = jnp.array([-1.0, 0.0, 2.0])
    with pytest.raises(ValueError, match="Missing a plate statement for batch dimension -1"):
        _ = lp.target(model, y, False).structure
    with pytest.raises(ValueError, match="Missing a plate statement for batch dimension -1"):
        MCMC(infer.MALA(model), num_warmup=0, num_samples=1, progress_bar=False).run(
            jax.random.key(0), y, False
        )
    np.testing.assert_allclose(
        lp.target(model, y, True).logdensity_fn({"mu": y}), -11.210, rtol=1e-4
    )


@pytest.mark.parametrize("group", ["log_likelihood", "posterior_predictive"])
def test_groups_that_the_model_cannot_give_are_refused_before_the_run(group):
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 3.0).expand([2]).to_event(1))

        def step(state, row):
            state = numpyro.sample("state", dist.Categorical(jnp.ones((2, 2))[state] / 2.0))
            numpyro.sample("y", dist.Normal(mu[state], 1.0), obs=row)
            return state, None

        scan(step, 0, y)

    with pytest.raises(ValueError, match=f"groups: {group} cannot be computed"):
        lp.sample(jax.random.key(0), lp.target(model, jnp.zeros(4)), groups=[group])


def test_no_pointwise_log_likelihood(target):
    with pytest.raises(ValueError, match="MixtureSameFamily"):
        target.log_likelihood({"centre": jnp.zeros((1, 2))})


def ran(kernel, **options):
    mcmc = MCMC(kernel, num_warmup=500, num_samples=4000, progress_bar=False, **options)
    mcmc.run(jax.random.key(0), y=Y)
    return mcmc.get_samples()


def test_summed_out_in_numpyro(truth):
    samples = ran(infer.GHMC(mixture), num_chains=2, chain_method="vectorized")
    assert_right(samples["centre"], truth)
    discrete = Predictive(mixture, samples, infer_discrete=True)(jax.random.key(1), y=Y)
    assert discrete["cluster"].shape == (8000, 5)


@pytest.mark.parametrize(
    "kernel",
    [
        infer.MALA,
        infer.SplitGHMC,
        functools.partial(infer.Langevin, kernel=lp.parallel_tempering(lp.ghmc, [1, 3])),
    ],
    ids=lambda k: getattr(k, "__name__", "Langevin"),
)
def test_beside_discrete_gibbs(kernel, truth):
    blocks = [(DiscreteGibbs(mixture), discrete_latent_sites), (kernel(mixture), None)]
    samples = ran(Gibbs(blocks))
    # Draws of a Gibbs sampler are correlated.
    assert_right(samples["centre"], truth, 0.25)
    share = samples["cluster"].mean(axis=0)
    assert share[:2].max() < 0.4 and share[2:].min() > 0.8
    np.testing.assert_allclose(samples["level"], samples["cluster"] * samples["centre"][:, None])


@pytest.mark.slow
def test_two_continuous_blocks_and_constrained_sites():
    def model(y):
        scale = numpyro.sample("scale", dist.HalfNormal(2.0))
        centre = numpyro.sample("centre", dist.Normal(0.0, 3.0))
        numpyro.sample("y", dist.Normal(centre, scale).expand([len(Y)]).to_event(1), obs=y)

    blocks = [(infer.MALA(model), ["scale"]), (infer.GHMC(model), ["centre"])]
    samples = ran(Gibbs(blocks), num_chains=2, chain_method=jax.vmap)
    whole = lp.sample(jax.random.key(0), lp.target(model, Y), num_samples=4000)["posterior"]
    for name in ("scale", "centre"):
        expected = float(whole[name].mean()), float(whole[name].std())
        assert_right(samples[name], expected, 0.2)


def test_refusals(monkeypatch):
    def only_discrete():
        numpyro.sample("z", dist.Bernoulli(0.3))

    def counts():
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        numpyro.sample("count", dist.Poisson(rate))

    def sequential():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("z", dist.Bernoulli(logits=x), infer={"enumerate": "sequential"})

    def plain():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("z", dist.Bernoulli(logits=x))

    for model, words in [
        (only_discrete, "All latent sites are discrete"),
        (counts, "'count'.*finitely many"),
        (sequential, r"'z' \('sequential'\)"),
    ]:
        with pytest.raises(ValueError, match=words):
            lp.sample(jax.random.key(0), lp.target(model))
        with pytest.raises(ValueError, match=words):
            MCMC(infer.MALA(model), num_warmup=1, num_samples=1).run(jax.random.key(0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"'langevin-ppl\[enum\]'.*DiscreteGibbs"):
        lp.sample(jax.random.key(0), lp.target(plain))

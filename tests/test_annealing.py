"""Walks from noise: posteriors under a score, and diffusion-annealed Langevin."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import langevin_ppl as lp

WEIGHTS, MEANS, VARIANCES = [0.4, 0.6], np.array([[-2.0, 0.0], [2.0, 1.0]]), np.array([0.2, 0.1])
OPERATOR, NOISE, SEEN = jnp.array([[0.3, 1.0]]), 0.5, jnp.array([0.6])
SCORE = lp.scores.exact_mixture(lp.scores.EDM(t_max=20.0), WEIGHTS, MEANS, VARIANCES)


def model(score, y):
    x = numpyro.sample("x", lp.distributions.ScoreBased(score))
    numpyro.sample("y", dist.Normal(OPERATOR @ x, NOISE).to_event(1), obs=y)


def conjugate():
    """Weights, means and standard deviations of the modes of the posterior."""
    logs, means, sds = [], [], []
    operator = np.asarray(OPERATOR)
    for weight, mean, variance in zip(WEIGHTS, MEANS, VARIANCES, strict=True):
        spread = (variance * operator @ operator.T + NOISE**2).item()
        gain = variance * operator.T / spread
        away = (np.asarray(SEEN) - operator @ mean).item()
        logs.append(np.log(weight) - 0.5 * np.log(spread) - 0.5 * away**2 / spread)
        means.append(mean + gain[:, 0] * away)
        covariance = variance * (np.eye(2) - gain @ operator)
        sds.append(np.sqrt(np.diag(covariance)))
    weights = np.exp(np.array(logs) - np.logaddexp(*logs))
    return weights, means, sds


@pytest.fixture(scope="module")
def posterior():
    target = lp.target(model, SCORE, SEEN)
    return lp.annealed_posterior(jax.random.key(0), target, num_samples=1000)


def test_both_modes_of_a_conjugate_posterior_are_found(posterior):
    """Within five standard errors and a tenth of a sd; weights, which the walk freezes, to 0.08."""
    x = posterior["posterior"]["x"].values.reshape(-1, 2)
    weights, means, sds = conjugate()
    right = (x[:, 0] > 0).astype(int)
    for mode in (0, 1):
        own = x[right == mode]
        assert abs(len(own) / len(x) - weights[mode]) < 0.08
        error = sds[mode] / np.sqrt(len(own))
        assert np.all(np.abs(own.mean(axis=0) - means[mode]) < 5 * error + 0.1 * sds[mode])
        np.testing.assert_allclose(own.std(axis=0), sds[mode], rtol=0.12)


def test_a_walk_may_end_before_the_noise_is_gone():
    """Where noise of 1 is left, the posterior is that of a prior with as much more variance."""
    score = lp.scores.exact_mixture(lp.scores.EDM(t_max=20.0), [1.0], [[1.0]], [0.5])

    def plain(score, y):
        x = numpyro.sample("x", lp.distributions.ScoreBased(score))
        numpyro.sample("y", dist.Normal(x[0], 1e3), obs=y)

    idata = lp.annealed_posterior(
        jax.random.key(0), lp.target(plain, score, 0.0), end=1.0, steps_per_level=10
    )
    x = idata["posterior"]["x"].values
    assert abs(x.std() / np.sqrt(1.5) - 1) < 0.12


def test_what_the_tree_says(posterior):
    attrs = posterior.attrs
    assert (attrs["exact"], attrs["kernel"]) == (0, "annealed_posterior(leimkuhler_matthews)")
    assert attrs["num_gradient_evaluations"] > 0 and "bias" in attrs["advice"]
    assert posterior["posterior"]["x"].shape == (4, 1000, 2)
    assert not posterior["sample_stats"]["diverging"].values.any()
    np.testing.assert_allclose(posterior["observed_data"]["y"], SEEN)


@pytest.mark.slow
def test_a_chain_goes_on_from_the_walkers(posterior):
    """An exact kernel started at their ends stays where they are."""
    target = lp.target(model, SCORE, SEEN)
    few = lp.annealed_posterior(jax.random.key(1), target, num_chains=4, num_samples=1)
    idata = lp.sample(
        jax.random.key(2), target, lp.mala, initial=few, num_warmup=50, num_samples=50
    )
    start = few["posterior"]["x"].values[:, 0]
    mean = idata["posterior"]["x"].mean("draw").values
    assert np.array_equal(mean[:, 0] > 0, start[:, 0] > 0)


def test_other_latents_walk_along():
    """The scale of the noise is a latent with its own prior; by quadrature its mean is known."""
    score = lp.scores.exact_mixture(lp.scores.EDM(t_max=20.0), [1.0], [[1.0]], [0.5])
    y = jnp.array([1.4, 0.9, 1.8, 0.2])

    def hierarchical(score, y):
        x = numpyro.sample("x", lp.distributions.ScoreBased(score))
        sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 0.5))
        numpyro.sample("y", dist.Normal(x[0], sigma).expand([4]).to_event(1), obs=y)

    idata = lp.annealed_posterior(
        jax.random.key(0), lp.target(hierarchical, score, y), num_samples=500, steps_per_level=40
    )
    x, s = np.meshgrid(np.linspace(-3, 5, 400), np.linspace(0.05, 6, 400), indexing="ij")
    log = -0.5 * (x - 1.0) ** 2 / 0.5 - np.log(s) - 0.5 * (np.log(s) / 0.5) ** 2
    log = log - np.sum((np.asarray(y)[:, None, None] - x) ** 2, 0) / (2 * s**2) - 4 * np.log(s)
    weight = np.exp(log - log.max())
    for name, values in (("x", x), ("sigma", s)):
        mean = (weight * values).sum() / weight.sum()
        sd = np.sqrt((weight * (values - mean) ** 2).sum() / weight.sum())
        found = idata["posterior"][name].values
        assert abs(found.mean() - mean) < 5 * sd / np.sqrt(found.size) + 0.1 * sd
        np.testing.assert_allclose(found.std(), sd, rtol=0.15)


def test_walkers_that_are_lost_are_told():
    def lost(score, y):
        x = numpyro.sample("x", lp.distributions.ScoreBased(score))
        numpyro.factor("bad", jnp.where(x[0] > 0, jnp.nan, 0.0) * x[0])

    with pytest.warns(lp.DivergenceWarning, match="walkers left"):
        idata = lp.annealed_posterior(
            jax.random.key(0), lp.target(lost, SCORE, SEEN), num_samples=20, num_levels=5
        )
    bad = idata["sample_stats"]["diverging"].values
    assert 0 < bad.sum()
    assert np.array_equal(np.isnan(idata["posterior"]["x"].values).all(axis=2), bad)


@pytest.mark.slow
def test_dalmc_ends_in_a_gaussian():
    """Correlated, shifted; ten standard errors of 1000 walkers are the bias that is allowed."""
    precision = jnp.array([[1.5, 0.6], [0.6, 1.0]])
    mean = jnp.array([1.0, -0.5])
    target = lp.density(lambda x: -0.5 * (x - mean) @ precision @ (x - mean), jnp.zeros(2))
    idata = lp.dalmc(jax.random.key(0), target)
    x = idata["posterior"]["x"].values.reshape(-1, 2)
    covariance = np.linalg.inv(precision)
    error = np.sqrt(np.diag(covariance) / len(x))
    assert np.all(np.abs(x.mean(axis=0) - mean) < 10 * error)
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.2)
    assert idata.attrs["exact"] == 0 and idata.attrs["path"] == "8 inner chains"


def test_dalmc_by_a_score_finds_the_weights_of_modes():
    """A weight of 0.7 to five standard errors and 0.03 of bias."""
    score = lp.scores.exact_mixture(lp.scores.VP(), [0.3, 0.7], [[-2.0], [2.0]], [0.25, 0.25])
    target = lp.density(lambda x: -score.energy(x, 0.001), jnp.zeros(1))
    idata = lp.dalmc(jax.random.key(0), target, score=score, num_samples=500)
    x = idata["posterior"]["x"].values.ravel()
    assert abs((x > 0).mean() - 0.7) < 5 * np.sqrt(0.21 / x.size) + 0.03
    np.testing.assert_allclose(x[x > 0].std(), 0.5, rtol=0.1)
    assert idata.attrs["path"] == "score"


def test_the_score_by_inner_chains_is_that_of_the_path():
    """Of a Gaussian target of unit scale both of its terms together have no noise at all."""
    from langevin_ppl.annealing.paths import ByParticles, Level, Walker
    from langevin_ppl.tree import Layout

    mover = ByParticles(lp.ula, 1, lp.mala, 4, 3, None, Layout.of(jnp.zeros(2)))
    x, share = jnp.array([0.7, -0.4]), 0.6
    level = Level(0.0, jnp.sqrt(share), jnp.sqrt(1 - share))
    walker = Walker(x, jax.random.normal(jax.random.key(0), (4, 2)), jnp.asarray(0.0))
    mean = jnp.array([1.0, 2.0])
    found, _ = mover._explore(
        jax.random.key(1), walker, level, lambda z: -0.5 * jnp.sum((z - mean) ** 2)
    )
    np.testing.assert_allclose(found, -(x - jnp.sqrt(share) * mean), rtol=1e-4)


def test_groups_and_batches():
    target = lp.target(model, SCORE, SEEN)
    options = {"num_samples": 10, "num_levels": 5}
    whole = lp.annealed_posterior(
        jax.random.key(0), target, groups=("posterior_predictive",), **options
    )
    assert whole["posterior_predictive"]["y"].shape == (4, 10, 1)
    parts = lp.annealed_posterior(jax.random.key(0), target, batch_size=7, **options)
    # Walks amplify rounding, which depends on the width of the program.
    np.testing.assert_allclose(parts["posterior"]["x"], whole["posterior"]["x"], atol=0.02)


PLAIN = lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lp.annealed_posterior(jax.random.key(0), PLAIN), "ScoreBased"),
        (lambda: lp.annealed_posterior(jax.random.key(0), lp.target(lambda: numpyro.sample(
            "x", dist.Normal(0.0, 1.0)))), "one latent site"),
        (lambda: lp.annealed_posterior(jax.random.key(0), lp.target(model, SCORE, SEEN),
                                       kernel=lp.mala), "unadjusted"),
        (lambda: lp.annealed_posterior(jax.random.key(0), lp.target(model, SCORE, SEEN),
                                       num_levels=0), "num_levels"),
        (lambda: lp.annealed_posterior(jax.random.key(0), lp.target(model, SCORE, SEEN),
                                       end=100.0), "interval"),
        (lambda: lp.dalmc(jax.random.key(0), PLAIN, kernel=lp.mala), "unadjusted"),
        (lambda: lp.dalmc(jax.random.key(0), PLAIN, inner_kernel=lp.ula), "inner_kernel"),
        (lambda: lp.dalmc(jax.random.key(0), PLAIN, step_size=0.0), "step_size"),
        (lambda: lp.dalmc(jax.random.key(0), PLAIN, score="s"), "Score"),
        (lambda: lp.dalmc(jax.random.key(0), PLAIN, score=lp.scores.empirical(
            lp.scores.EDM(), np.zeros((2, 3)))), "events of shape"),
        (lambda: lp.dalmc(jax.random.key(0), PLAIN, score=lp.scores.empirical(
            lp.scores.PFGM(), np.zeros((2, 2)))), "Gaussian process"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

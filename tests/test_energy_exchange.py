"""The exchange algorithm: posteriors of parameters whose normaliser is not known."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats

import langevin_ppl as lp
from langevin_ppl.convergence import summarise
from langevin_ppl.energy.laws import EVENT, Law
from langevin_ppl.energy.random_walk import advance

EnergyBased = lp.distributions.EnergyBased


def precision(y):
    """The energy of a Gaussian, whose normaliser makes the posterior a Gamma law."""
    theta = numpyro.sample("theta", dist.Gamma(2.0, 1.0))
    with numpyro.plate("row", y.shape[0]):
        numpyro.sample("y", EnergyBased(lambda x: 0.5 * theta * x**2), obs=y)


NUMBER = 30
Y = jax.random.normal(jax.random.key(5), (NUMBER,)) / jnp.sqrt(2.0)
RATE = 1.0 + 0.5 * float(jnp.sum(Y**2))
EXACT = stats.gamma(2.0 + NUMBER / 2, scale=1 / RATE)
NAIVE = stats.gamma(2.0, scale=1 / RATE)
PRIOR = stats.gamma(2.0)


def moments(idata, name="theta"):
    """Mean and sd of draws, each with its Monte Carlo error."""
    draws = idata["posterior"][name].values.astype(np.float64)
    seen = summarise(draws[..., None])
    squares = (draws - draws.mean()) ** 2
    sd = draws.std()
    error_of_sd = squares.std() / np.sqrt(seen.ess_squares) / (2 * sd)
    return draws.mean(), sd / np.sqrt(seen.ess), sd, error_of_sd


@pytest.fixture(scope="module")
def run():
    target = lp.target(precision, Y)
    return lp.energy.exchange(jax.random.key(0), target, num_samples=2000, inner_steps=30)


def test_the_posterior_is_the_known_one_and_not_the_naive_one(run):
    """Four standard errors; without the exchange the mean would be off by more than thirty."""
    mean, error, sd, error_of_sd = moments(run)
    assert abs(mean - EXACT.mean()) < 4 * error
    assert abs(sd - EXACT.std()) < 4 * error_of_sd
    assert error < 0.05 * EXACT.std() and error_of_sd < 0.06 * EXACT.std()
    assert abs(mean - NAIVE.mean()) > 30 * error


def test_what_the_tree_says(run):
    attrs, sample_stats = run.attrs, run["sample_stats"]
    assert (attrs["kernel"], attrs["exact"], attrs["inner_steps"]) == ("exchange", 0, 30)
    assert "biased unless" in attrs["trust"] and attrs["inner_kernel"] == "mala"
    assert attrs["num_gradient_evaluations"] == 4 * 2500 * 31
    assert attrs["max_rhat"] < 1.05 and attrs["min_ess"] > 300
    assert "lp" not in sample_stats
    assert not sample_stats["diverging"].values.any()
    assert sample_stats["is_accepted"].shape == (4, 2000)
    # Dual averaging leaves the rates where they were aimed at.
    assert abs(float(sample_stats["acceptance_rate"].mean()) - 0.44) < 0.1
    assert abs(float(sample_stats["inner_acceptance_rate"].mean()) - 0.574) < 0.1
    np.testing.assert_allclose(run["observed_data"]["y"], Y)


def test_what_was_tuned_is_in_the_tree(run):
    """The covariance is that of the logarithm of theta, to a factor of two."""
    tuned = run["sampler_parameters"]
    assert set(tuned.data_vars) == {"proposal_scale", "proposal_covariance", "inner_step_size.y"}
    variance = np.log(run["posterior"]["theta"].values).var()
    assert 0.5 < float(tuned["proposal_covariance"].values.item()) / variance < 2.0
    assert 0.1 < float(tuned["inner_step_size.y"]) < 10.0


def test_a_key_and_a_start_determine_the_draws_and_data_are_arguments(run):
    before = advance._cache_size()
    target = lp.target(precision, Y)
    again = lp.energy.exchange(jax.random.key(0), target, num_samples=50, inner_steps=30)
    np.testing.assert_array_equal(again["posterior"]["theta"], run["posterior"]["theta"][:, :50])
    other = lp.energy.exchange(
        jax.random.key(1),
        lp.target(precision, Y + 0.1),
        num_samples=50,
        inner_steps=7,
        initial=run,
        groups=("warmup_posterior", "unconstrained_posterior"),
    )
    assert not np.array_equal(other["posterior"]["theta"], again["posterior"]["theta"])
    assert advance._cache_size() == before
    first = other["warmup_posterior"]["theta"].values[:, 0]
    last = run["posterior"]["theta"].values[:, -1]
    assert (first == last).any()  # a chain whose first proposal was rejected
    np.testing.assert_allclose(
        np.exp(other["unconstrained_posterior"]["theta"]), other["posterior"]["theta"], rtol=1e-5
    )


def test_the_bias_shrinks_with_inner_steps():
    """Auxiliary data that do not move leave the prior; with more steps the posterior comes."""
    target = lp.target(precision, Y)

    def found(steps, size):
        idata = lp.energy.exchange(
            jax.random.key(2), target, inner_steps=steps, inner_step_size=size, num_samples=2000
        )
        assert float(idata["sampler_parameters"]["inner_step_size.y"]) == np.float32(size)
        return moments(idata)

    mean, error, _, _ = found(1, 1e-7)
    assert abs(mean - PRIOR.mean()) < 5 * error
    assert abs(mean - EXACT.mean()) > 6 * error
    few, many = found(2, 0.2), found(30, 0.5)
    assert few[2] - EXACT.std() > 6 * few[3]
    assert abs(many[2] - EXACT.std()) < 5 * many[3]


def several(y, v, c, z):
    """Three laws that depend on theta, of which the last one is normalised."""
    theta = numpyro.sample("theta", dist.Gamma(2.0, 1.0))
    with numpyro.plate("row", y.shape[0]):
        tilted = EnergyBased(lambda x: theta * x, base=dist.Exponential(1.0))
        numpyro.sample("y", tilted, obs=y)
    around = EnergyBased(
        lambda x, centre: 0.5 * theta * jnp.sum((x - centre) ** 2),
        (2,),
        condition=c,
        batch_shape=(c.shape[0],),
    )
    numpyro.sample("v", around.to_event(1), obs=v)
    numpyro.sample("z", dist.Normal(theta, 0.5), obs=z)
    numpyro.deterministic("twice", 2 * theta)


@pytest.mark.slow
def test_sites_of_all_kinds_together():
    """By quadrature; each normaliser, and the normalised site, moves the mean by many errors."""
    keys = jax.random.split(jax.random.key(3), 3)
    y = jax.random.exponential(keys[0], (15,)) / 2.5
    c = 3.0 * jax.random.normal(keys[1], (6, 2))
    v = c + jax.random.normal(keys[2], (6, 2)) / jnp.sqrt(1.5)
    idata = lp.energy.exchange(
        jax.random.key(4), lp.target(several, y, v, c, 1.0), num_samples=2000, inner_steps=30
    )
    theta = np.linspace(1e-3, 8.0, 4000)
    terms = {
        "rest": stats.gamma(2.0).logpdf(theta) - theta * float(jnp.sum(y)),
        "centres": -0.5 * theta * float(jnp.sum((v - c) ** 2)),
        "z": stats.norm(theta, 0.5).logpdf(1.0),
        "normaliser of y": len(y) * np.log1p(theta),
        "normaliser of v": len(v) * np.log(theta),
    }

    def quadrature(without=None):
        log = sum(term for name, term in terms.items() if name != without)
        weight = np.exp(log - log.max())
        mean = np.average(theta, weights=weight)
        return mean, np.sqrt(np.average((theta - mean) ** 2, weights=weight))

    mean, error, sd, error_of_sd = moments(idata)
    exact = quadrature()
    assert abs(mean - exact[0]) < 4 * error
    assert abs(sd - exact[1]) < 4 * error_of_sd
    for name in ("z", "normaliser of y", "normaliser of v"):
        assert abs(mean - quadrature(name)[0]) > 6 * error
    np.testing.assert_allclose(idata["posterior"]["twice"], 2 * idata["posterior"]["theta"])
    assert {"inner_step_size.y", "inner_step_size.v"} < set(idata["sampler_parameters"].data_vars)


@pytest.mark.parametrize("wrap", ["plain", "expanded", "joined", "masked"])
def test_the_density_of_one_event_is_that_of_its_row(wrap):
    """Against the energy of one event, with the Jacobian of the logarithm."""
    scales = jnp.arange(1.0, 7.0).reshape(2, 3)

    def energy(x, scale):
        return scale * jnp.sum(x**2) + jnp.prod(x)

    base = dist.Gamma(2.0, 1.0)
    fn = EnergyBased(energy, (2,), condition=scales, batch_shape=(2, 3), base=base)
    mask = jnp.ones((2, 3), bool)
    if wrap == "expanded":
        scales = jnp.full((2, 3), 2.0)
        fn = EnergyBased(lambda x: energy(x, 2.0), (2,), base=base).expand([2, 3])
    elif wrap == "joined":
        fn = fn.to_event(1)
    elif wrap == "masked":
        mask = mask.at[0, 1].set(False)
        fn = fn.mask(mask)
    value = jnp.exp(jax.random.normal(jax.random.key(0), (2, 3, 2)))
    law = Law.of({"fn": fn, "value": value})
    rows = law.rows()
    estimator = law.estimator()
    estimate = jax.jit(jax.vmap(lambda row: estimator.estimate((), row, ())[0], axis_name=EVENT))(
        rows
    )

    def one(row, scale, seen):
        x = jnp.exp(row)
        inside = base.log_prob(x).sum() - energy(x, scale)
        return jnp.where(seen, inside, 0.0) + row.sum()

    expected = jax.jit(jax.vmap(jax.value_and_grad(one)))(rows, scales.ravel(), mask.ravel())
    np.testing.assert_allclose(estimate.logdensity, expected[0], rtol=1e-5)
    np.testing.assert_allclose(estimate.gradient, expected[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(law.constrained(rows)[0], value, rtol=1e-6)


def test_a_model_without_arguments_and_with_a_parameter_and_a_kinetic_inner_kernel():
    """Events of shape [1] in two plates; the posterior is the same."""
    y = np.asarray(Y).reshape(2, 15, 1)

    def plain():
        half = numpyro.param("half", 0.5)
        theta = numpyro.sample("theta", dist.Gamma(2.0, 1.0))
        with numpyro.plate("column", 15), numpyro.plate("row", 2, dim=-2):
            energy = EnergyBased(lambda x: half * theta * jnp.sum(x**2), (1,))
            numpyro.sample("y", energy, obs=jnp.asarray(y))

    idata = lp.energy.exchange(jax.random.key(6), plain, inner_kernel=lp.ghmc)
    mean, error, _, _ = moments(idata)
    assert abs(mean - EXACT.mean()) < 4 * error
    assert idata.attrs["inner_kernel"] == "ghmc"
    assert idata["observed_data"]["y"].dims[:2] == ("row", "column")


def test_ratios_that_are_not_finite_are_told():
    def broken(y):
        theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
        numpyro.sample("y", EnergyBased(lambda x: (1 + theta**2) * x**2), obs=y)
        numpyro.factor("bad", jnp.where(theta > 0.5, jnp.nan, 0.0) * theta)

    with pytest.warns(lp.DivergenceWarning, match="not finite"):
        idata = lp.energy.exchange(
            jax.random.key(0), lp.target(broken, 0.3), num_warmup=50, num_samples=50, inner_steps=2
        )
    assert idata["sample_stats"]["diverging"].values.any()
    assert (idata["posterior"]["theta"].values <= 0.5).all()


def known(y):
    theta = numpyro.sample("theta", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def latent(y):
    theta = numpyro.sample("theta", dist.Gamma(1.0, 1.0))
    x = numpyro.sample("x", EnergyBased(lambda x: theta * x**2))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def discrete(y):
    theta = numpyro.sample("theta", dist.Gamma(1.0, 1.0))
    k = numpyro.sample("k", dist.Bernoulli(0.5))
    numpyro.sample("y", EnergyBased(lambda x: theta * (x - k) ** 2), obs=y)


def subsampled(y):
    theta = numpyro.sample("theta", dist.Gamma(1.0, 1.0))
    with numpyro.plate("row", y.shape[0], subsample_size=5):
        batch = numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", EnergyBased(lambda x: theta * x**2), obs=batch)


def positive(y):
    theta = numpyro.sample("theta", dist.Gamma(1.0, 1.0))
    with numpyro.plate("row", y.shape[0]):
        energy = EnergyBased(lambda x: theta * x, support=dist.constraints.positive)
        numpyro.sample("y", energy, obs=y)


def moving(y):
    theta = numpyro.sample("theta", dist.Gamma(1.0, 1.0))
    energy = EnergyBased(lambda x: theta * x, support=dist.constraints.interval(0.0, theta))
    numpyro.sample("y", energy, obs=y)


def scaled(y):
    with numpyro.handlers.scale(scale=0.5):
        precision(y)


def exchange(model=precision, y=Y, **options):
    return lp.energy.exchange(jax.random.key(0), lp.target(model, y), **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: exchange(known, 1.0), "langevin_ppl.sample"),
        (lambda: exchange(latent, 1.0), "latent site 'x'"),
        (lambda: exchange(discrete, 1.0), "discrete latent sites"),
        (lambda: exchange(subsampled), "subsampled plates, got row"),
        (lambda: exchange(positive, jnp.array([1.0, -1.0, 2.0])), "event 1 .* outside of its"),
        (lambda: exchange(moving, 1.0), "support of the site 'y' depends"),
        (lambda: exchange(scaled), "scaled"),
        (lambda: exchange(inner_kernel=lp.ula), "Metropolis test"),
        (lambda: exchange(inner_kernel="mala"), "Metropolis test"),
        (lambda: exchange(inner_steps=0), "inner_steps"),
        (lambda: exchange(num_chains=0), "num_chains"),
        (lambda: exchange(num_warmup=0), "num_warmup"),
        (lambda: exchange(num_samples=1.5), "num_samples"),
        (lambda: exchange(inner_step_size=0.0), "inner_step_size"),
        (lambda: exchange(groups=("posterior_predictive",)), "cannot be drawn"),
        (lambda: exchange(groups="prior"), "groups"),
        (lambda: exchange(initial={"theta": jnp.ones(3)}), "leading axis"),
        (lambda: exchange(initial={"theta": jnp.full(4, jnp.nan)}), "Chain 0: .*given position"),
        (lambda: lp.energy.exchange(jax.random.key(0), lp.density(jnp.sum, jnp.zeros(2))),
         "NumPyro model"),
        (lambda: lp.energy.exchange(jax.random.key(0), 3), "NumPyro model"),
        (lambda: lp.energy.exchange(
            jax.random.key(0), lp.target(subsampled, *lp.stream(np.asarray(Y), batch_size=5))),
         "stream"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_no_key_is_refused():
    with pytest.raises(TypeError, match="rng_key"):
        lp.energy.exchange(0, lp.target(precision, Y))


def test_sample_refuses_and_names_exchange():
    with pytest.raises(ValueError, match="energy.exchange"):
        lp.sample(jax.random.key(0), lp.target(precision, Y))

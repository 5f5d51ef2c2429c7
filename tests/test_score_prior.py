"""Scores as priors of NumPyro models."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import Predictive
from scipy.stats import norm

import langevin_ppl as lp
from langevin_ppl.distributions import ScoreBased
from langevin_ppl.targets.programs import _logdensity

scores = lp.scores

# Least noise that single precision resolves, and much of it at the end: closed forms hold to 1e-3.
PROCESS = scores.EDM(t_min=0.05, t_max=500.0)
WEIGHTS, MEANS = np.array([0.4, 0.6]), np.array([[-1.2, 0.6], [0.8, -0.4]])
VARIANCES = np.array([0.3, 0.2])
SCORE = scores.exact_mixture(PROCESS, WEIGHTS, MEANS, VARIANCES)
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)
MATRIX, NOISE, Y = np.array([[1.0, 0.5]]), 0.5, np.array([0.1])


def mixture_logpdf(x, level=PROCESS.t_min):
    scale = np.sqrt(VARIANCES + level**2)[:, None]
    logs = norm.logpdf(np.asarray(x)[:, None], MEANS, scale).sum(axis=-1)
    return np.logaddexp.reduce(np.log(WEIGHTS) + logs, axis=-1)


def model(score, y, density="flow"):
    x = numpyro.sample("x", ScoreBased(score, density=density, num_steps=32))
    numpyro.sample("y", dist.Normal(MATRIX @ x, NOISE).to_event(1), obs=y)


def conjugate():
    """Mean and covariance of the posterior, by the rules of each component."""
    means, covariances, logs = [], [], []
    for weight, mean, variance in zip(WEIGHTS, MEANS, VARIANCES + PROCESS.t_min**2, strict=True):
        spread = variance * (MATRIX @ MATRIX.T).item() + NOISE**2
        gain = variance * MATRIX.T / spread
        means.append(mean + gain @ (Y - MATRIX @ mean))
        covariances.append(variance * (np.eye(2) - gain @ MATRIX))
        logs.append(np.log(weight) + norm.logpdf(Y[0], MATRIX[0] @ mean, spread**0.5))
    weights = np.exp(logs) / np.sum(np.exp(logs))
    mean = weights @ means
    away = means - mean
    return mean, np.tensordot(weights, covariances, 1) + (weights * away.T) @ away


@pytest.mark.parametrize("time", [None, 0.5])
def test_log_density_gradient_and_hessian(time):
    prior = ScoreBased(SCORE, time=time)
    level = PROCESS.t_min if time is None else time

    @jax.jit
    @jax.vmap
    def found(x):
        value, gradient = jax.value_and_grad(prior.log_prob)(x)
        forward = jax.jvp(prior.log_prob, (x,), (jnp.ones(2),))[1]
        return value, gradient, jax.hessian(prior.log_prob)(x), forward

    value, gradient, hessian, forward = found(X)
    np.testing.assert_allclose(value, mixture_logpdf(X, level), atol=3e-3)
    np.testing.assert_allclose(gradient, SCORE(X, level), rtol=1e-4, atol=1e-3)
    expected = jax.vmap(jax.jacfwd(lambda x: SCORE(x, level)))(X)
    np.testing.assert_allclose(hessian, expected, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(forward, gradient.sum(axis=1), rtol=1e-4, atol=1e-4)


def test_it_is_normalised_and_its_energy_is_not():
    score = scores.exact_mixture(PROCESS, WEIGHTS, MEANS[:, :1], VARIANCES)
    x = np.linspace(-6.0, 6.0, 601)[:, None]
    flow = ScoreBased(score).log_prob(x)
    assert abs(np.trapezoid(np.exp(flow), x[:, 0]) - 1.0) < 1e-3
    away = ScoreBased(score, density="energy").log_prob(x) - flow
    near = np.abs(x[:, 0]) < 2.5  # float32 loses 1e-7 x^2 / t_min^2
    assert np.ptp(away[near]) < 5e-3 and abs(away.mean()) > 0.1
    energy = jax.grad(ScoreBased(score, density="energy").log_prob)(jnp.array([0.3]))
    np.testing.assert_allclose(energy, score(jnp.array([0.3]), PROCESS.t_min), rtol=1e-3)


def test_draws_have_the_moments():
    """Mean and variance of 4,000 draws within 5 standard errors, with noise of a time on top."""
    mean = WEIGHTS @ MEANS
    variance = WEIGHTS @ (VARIANCES[:, None] + (MEANS - mean) ** 2)
    for time, more in ((None, 0.0), (1.0, 1.0)):
        drawn = ScoreBased(SCORE, time=time).sample(jax.random.key(0), (4, 1000))
        assert drawn.shape == (4, 1000, 2)
        drawn = np.asarray(drawn).reshape(-1, 2)
        error = np.sqrt((variance + more) / 4000)
        assert np.all(np.abs(drawn.mean(axis=0) - mean) < 5 * error)
        np.testing.assert_allclose(drawn.var(axis=0), variance + more, rtol=0.12)


def labelled(x, t, label):
    """Denoiser of N(label, 1)."""
    return (t**2 * label + x) / (t**2 + 1.0)


def test_conditions_make_a_batch_and_may_be_latent():
    process = scores.EDM(t_min=0.02, t_max=1000.0)
    score = scores.Score(labelled, process, (1,), condition_shape=())
    prior = ScoreBased(score, jnp.array([0.0, 1.0, 0.0]), validate_args=True)
    assert prior.batch_shape == (3,) and prior.event_shape == (1,)
    expected = norm.logpdf([0.0, -1.0, 0.0])
    np.testing.assert_allclose(prior.log_prob(jnp.zeros((3, 1))), expected, atol=5e-3)
    np.testing.assert_allclose(prior.log_prob(jnp.zeros((5, 1, 1))), np.tile(expected, (5, 1)),
                               atol=5e-3)  # fmt: skip
    drawn = prior.sample(jax.random.key(0), (500,))
    assert drawn.shape == (500, 3, 1)
    assert np.all(np.abs(drawn.mean(axis=0)[:, 0] - np.array([0, 1, 0])) < 5 / np.sqrt(500))

    def density(label, x):
        return ScoreBased(score, label).log_prob(x)

    gradient = jax.grad(density, (0, 1))(jnp.array(0.2), jnp.array([0.7]))
    np.testing.assert_allclose([gradient[0], gradient[1][0]], [0.5, -0.5], atol=0.01)


def test_positive_data():
    """Log-normal prior: the density has the Jacobian, and so has the gradient."""
    process = scores.GeometricBrownian(sigma_min=0.05, sigma_max=100.0)
    prior = ScoreBased(scores.exact_mixture(process, [1.0], [[0.3]], [0.25]))
    assert prior.support is not None and not prior.support(jnp.array([-1.0]))
    expected = dist.LogNormal(jnp.array([0.3]), np.sqrt(0.25 + 0.05**2)).to_event(1)
    x = jnp.array([[0.5], [2.0]])
    np.testing.assert_allclose(prior.log_prob(x), expected.log_prob(x), atol=6e-3)
    gradient = jax.vmap(jax.grad(prior.log_prob))(x)
    np.testing.assert_allclose(gradient, jax.vmap(jax.grad(expected.log_prob))(x), atol=6e-3)
    target = lp.target(lambda: numpyro.sample("x", prior))
    position = {"x": jnp.array([0.4])}
    unconstrained = target.logdensity_fn(position)
    normal = norm.logpdf(0.4, 0.3, np.sqrt(0.25 + 0.05**2))
    np.testing.assert_allclose(unconstrained, normal, atol=6e-3)
    assert (prior.sample(jax.random.key(0), (20,)) > 0).all()


def test_poisson_flow_has_the_gradient_of_its_density():
    score = scores.empirical(scores.PFGM(augmented=8.0, t_min=0.5), [[-1.0], [1.0]])
    log_prob = jax.jit(ScoreBased(score, num_steps=48).log_prob)
    x, h = jnp.array([0.4]), 0.02
    difference = (log_prob(x + h) - log_prob(x - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(log_prob)(x)[0], difference, atol=0.01)


@pytest.mark.parametrize("density", [pytest.param("flow", marks=pytest.mark.slow), "energy"])
def test_mala_samples_the_conjugate_posterior(density):
    """Means and second moments of 32 chains, within 5 standard errors from their scatter."""
    target = lp.target(model, SCORE, Y, density)
    idata = lp.sample(
        jax.random.key(0), target, lp.mala, num_chains=32, num_warmup=300, num_samples=400
    )
    x = idata["posterior"]["x"].values
    assert x.shape == (32, 400, 2) and idata.attrs["exact"] == 1
    mean, covariance = conjugate()
    away = x - mean
    moments = {"mean": (away, np.zeros(2))}
    moments["covariance"] = away[..., :, None] * away[..., None, :], covariance
    for name, (values, expected) in moments.items():
        by_chain = values.mean(axis=1)
        error = by_chain.std(axis=0, ddof=1) / np.sqrt(32)
        assert np.all(np.abs(by_chain.mean(axis=0) - expected) < 5 * error), name
        assert error.max() < 0.05


@pytest.mark.slow
def test_other_kernels_and_groups():
    target = lp.target(model, SCORE, Y, "energy")
    few = {"num_chains": 2, "num_samples": 20, "num_warmup": 50}
    idata = lp.sample(jax.random.key(0), target, groups=["prior"], **few)
    assert idata["posterior"]["x"].shape == (2, 20, 2) and idata.attrs["exact"] == 1
    assert idata["prior"]["x"].shape[-1] == 2 and np.isfinite(idata["prior"]["x"]).all()
    idata = lp.sample(jax.random.key(0), target, lp.ula, **few)
    assert idata.attrs["exact"] == 0 and np.isfinite(idata["posterior"]["x"]).all()


@pytest.mark.parametrize("name", ["init_to_sample", "init_to_median"])
def test_initial_positions_come_from_the_prior(name):
    target = lp.target(model, SCORE, Y).replace(init_strategy=getattr(numpyro.infer, name))
    position = target.init_position(jax.random.key(0))
    assert position["x"].shape == (2,) and np.isfinite(position["x"]).all()


def in_plate(y):
    with numpyro.plate("row", 3):
        x = numpyro.sample("x", ScoreBased(SCORE, num_steps=16))
        numpyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)


def test_plates_and_prediction():
    y = jnp.zeros((3, 2))
    target = lp.target(in_plate, y)
    density = target.logdensity_fn({"x": X[:3]})
    expected = mixture_logpdf(X[:3]).sum() + norm.logpdf(X[:3], 0.0, 0.5).sum()
    np.testing.assert_allclose(density, expected, rtol=0.01)
    drawn = Predictive(in_plate, num_samples=5)(jax.random.key(0), None)
    assert drawn["x"].shape == (5, 3, 2) and drawn["y"].shape == (5, 3, 2)
    assert len(np.unique(np.round(drawn["x"][..., 0], 5))) == 15


def test_another_score_of_the_same_structure_compiles_nothing():
    position, found = {"x": X[0]}, []
    for means in (MEANS, MEANS + 1.0):
        score = scores.exact_mixture(PROCESS, WEIGHTS, means, VARIANCES)
        found.append(lp.target(model, score, Y).logdensity_fn(position))
        if len(found) == 1:
            before = _logdensity._cache_size()
    assert _logdensity._cache_size() == before and found[0] != found[1]


def test_it_crosses_jit_as_data():
    prior = ScoreBased(SCORE, time=0.3)
    leaves, structure = jax.tree.flatten(prior)
    assert len(leaves) > 4
    again = jax.tree.unflatten(structure, leaves)
    np.testing.assert_array_equal(again.log_prob(X), prior.log_prob(X))
    traces = []

    @jax.jit
    def log_prob(prior, x):
        traces.append(x)
        return prior.log_prob(x)

    np.testing.assert_allclose(log_prob(prior, X), prior.log_prob(X), rtol=1e-4, atol=1e-4)
    log_prob(ScoreBased(SCORE, time=0.4), X)
    assert len(traces) == 1


def test_refusals():
    conditional = scores.Score(labelled, PROCESS, (1,), condition_shape=())
    with pytest.raises(TypeError, match=r"ScoreBased: expected a langevin_ppl.scores.Score"):
        ScoreBased(lambda x: x)
    with pytest.raises(ValueError, match="density: expected one of flow, energy, got 'ode'"):
        ScoreBased(SCORE, density="ode")
    poisson = scores.empirical(scores.PFGM(), [[0.0]])
    for score in (poisson, scores.empirical(PROCESS, [[0.0]])):
        with pytest.raises(ValueError, match="not the gradient of an energy"):
            ScoreBased(score, density="energy")
    with pytest.raises(ValueError, match=r"condition: expected shape \(...\), got None"):
        ScoreBased(conditional)
    with pytest.raises(ValueError, match="condition: this score takes none"):
        ScoreBased(SCORE, jnp.zeros(2))
    wide = scores.Score(labelled, PROCESS, (1,), condition_shape=(2,))
    with pytest.raises(ValueError, match=r"condition: expected shape \(..., 2\), got \(3,\)"):
        ScoreBased(wide, jnp.zeros(3))
    with pytest.raises(ValueError, match="num_steps"):
        ScoreBased(SCORE, num_steps=0)
    with pytest.raises(ValueError, match="time: expected values between"):
        ScoreBased(SCORE, time=1e-4)
    with pytest.raises(TypeError, match="sampler: expected one such as"):
        ScoreBased(SCORE, sampler="heun")


def test_an_energy_whose_condition_is_latent_is_refused():
    def potential(x, t, label):
        return (t**2 * label * jnp.sum(x) + 0.5 * jnp.sum(x**2)) / (t**2 + 1.0)

    score = scores.Score(labelled, PROCESS, (1,), condition_shape=(), potential=potential)

    def model():
        label = numpyro.sample("label", dist.Normal())
        numpyro.sample("x", ScoreBased(score, label, density="energy"))

    target = lp.target(model)
    position = {"label": jnp.array(0.0), "x": jnp.zeros(1)}
    with pytest.raises(ValueError, match="take density='flow'"):
        jax.grad(target.logdensity_fn)(position)


def test_rows_of_a_subsampled_plate_have_no_prior_of_their_own():
    def model(y):
        with numpyro.plate("row", 10, subsample_size=2):
            x = numpyro.sample("x", ScoreBased(SCORE))
            batch = numpyro.subsample(y, event_dim=1)
            numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=batch)

    with pytest.raises(ValueError, match="latent site 'x' lies in the subsampled plate"):
        _ = lp.target(model, jnp.zeros((10, 2))).prototype

"""Our kernels inside BlackJAX's own tools, as its users would put them there."""

import blackjax
import blackjax.smc.resampling as resampling
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.smc import extend_params
from blackjax.util import run_inference_algorithm, store_only_expectation_values, thin_algorithm

import langevin_ppl as lp
from langevin_ppl.base import Estimate, GradientEstimator

KINETIC = (lp.ghmc, lp.split_ghmc)
ADJUSTED = (lp.mala, lp.tmala, lp.tmalac, *KINETIC)
UNADJUSTED = (lp.ula, lp.tula, lp.tulac, lp.mtula)
KEY = jax.random.key(3)
SCALES = np.array([0.5, 2.0], np.float32)


def logdensity(position):
    """Two independent normals of mean 1 and the standard deviations ``SCALES``."""
    return -0.5 * jnp.sum(((position["x"] - 1.0) / SCALES) ** 2)


START = {"x": jnp.zeros(2)}


@pytest.mark.parametrize("kernel", ADJUSTED + UNADJUSTED, ids=repr)
def test_run_inference_algorithm(kernel):
    # A time, of which the others' step sizes are half the square.
    step_size = 0.5 if kernel in KINETIC else 0.1
    algorithm = kernel(logdensity, step_size=step_size, inverse_mass_matrix=SCALES**2)
    final, (states, infos) = run_inference_algorithm(
        KEY, algorithm, num_steps=20, initial_position=START
    )
    assert states.position["x"].shape == (20, 2)
    np.testing.assert_array_equal(states.step, np.arange(1, 21))
    np.testing.assert_array_equal(final.position["x"], states.position["x"][-1])
    assert np.all(np.isfinite(states.position["x"]))
    assert not np.any(infos.is_divergent)
    assert np.all(np.std(states.position["x"], axis=0) > 0.05 * SCALES)


def test_run_inference_algorithm_with_an_inexact_gradient():
    # Half of the density at a time, in place of a minibatch: BlackJAX hands init a key.
    estimator = GradientEstimator(
        init=lambda position: (),
        draw=lambda rng_key, step: jax.random.bernoulli(rng_key, shape=(2,)),
        estimate=lambda batch, position, memory: (
            Estimate(
                2 * jnp.sum(jnp.where(batch, -0.5 * position["x"] ** 2, 0.0)),
                {"x": -2 * jnp.where(batch, position["x"], 0.0)},
            ),
            memory,
        ),
        exact=False,
    )
    final, (states, infos) = run_inference_algorithm(
        KEY, lp.ula(estimator, step_size=0.1), num_steps=20, initial_position=START
    )
    assert final.step == 20 and infos.acceptance_rate is None
    assert np.all(np.isfinite(states.position["x"]))


def test_thin_algorithm():
    algorithm = lp.tmala(logdensity, step_size=0.1)
    thinned = thin_algorithm(
        algorithm, thinning=3, info_transform=lambda info: jax.tree.map(jnp.mean, info)
    )
    state = algorithm.init(START)
    final, (states, infos) = run_inference_algorithm(KEY, thinned, num_steps=4, initial_state=state)
    np.testing.assert_array_equal(states.step, [3, 6, 9, 12])
    assert infos.grad_norm.shape == (4,)
    for key in jax.random.split(jax.random.split(KEY, 4)[0], 3):
        state, _ = algorithm.step(key, state)
    np.testing.assert_allclose(states.position["x"][0], state.position["x"], rtol=1e-4, atol=1e-5)


def test_store_only_expectation_values():
    algorithm = lp.ula(logdensity, step_size=0.1)
    streaming, transform = store_only_expectation_values(
        algorithm, state_transform=lambda state: state.position["x"]
    )
    state = algorithm.init(START)
    _, (means, _) = run_inference_algorithm(
        KEY, streaming, num_steps=20, initial_state=streaming.init(state), transform=transform
    )
    _, (states, _) = run_inference_algorithm(KEY, algorithm, num_steps=20, initial_state=state)
    # BlackJAX's running mean counts the states after each step.
    expected = np.cumsum(states.position["x"], axis=0) / np.arange(1, 21)[:, None]
    np.testing.assert_allclose(means, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", [lp.mala, lp.tmala, lp.ghmc, lp.split_ghmc], ids=repr)
def test_window_adaptation(kernel):
    target = kernel.target_acceptance_rate
    adaptation = blackjax.window_adaptation(kernel, logdensity, target_acceptance_rate=target)
    key_warmup, key_run = jax.random.split(KEY)
    (state, parameters), _ = adaptation.run(key_warmup, START, num_steps=400)
    assert set(parameters) >= {"step_size", "inverse_mass_matrix"}
    algorithm = kernel(logdensity, **parameters)

    # The variances are 0.25 and 4: estimated from about 250 correlated draws, within a factor of
    # three of their ratio of 16.
    matrix = np.asarray(parameters["inverse_mass_matrix"])
    assert 16 / 3 < matrix[1] / matrix[0] < 16 * 3

    _, rates = run_inference_algorithm(
        key_run,
        algorithm,
        num_steps=1000,
        initial_state=state,
        transform=lambda state, info: info.acceptance_rate,
    )
    # Dual averaging itself ends within about 0.1 of its aim.
    assert abs(np.mean(rates) - target) < 0.2


@pytest.mark.parametrize(
    ("kernel", "step_size"),
    [(lp.mala, 0.05), (lp.ula, 0.05), (lp.ghmc, 0.5), (lp.split_ghmc, 0.5)],
    ids=str,
)
def test_adaptive_tempered_smc(kernel, step_size):
    # Prior N(0, 3^2 I); a likelihood N(mean, covariance) with correlation.
    mean = np.array([2.0, -1.0])
    covariance = np.array([[0.5, 0.3], [0.3, 0.8]])
    precision = np.linalg.inv(covariance)
    posterior = np.linalg.inv(precision + np.eye(2) / 9)

    def loglikelihood(x):
        return -0.5 * (x - mean) @ precision.astype(np.float32) @ (x - mean)

    number = 1000
    sampler = blackjax.adaptive_tempered_smc(
        lambda x: -0.5 * jnp.sum(x**2) / 9,
        loglikelihood,
        kernel.build_kernel(),
        kernel.init,
        extend_params({"step_size": step_size, "inverse_mass_matrix": jnp.ones(2)}),
        resampling.systematic,
        target_ess=0.7,
        num_mcmc_steps=10,
    )
    key_start, key_run = jax.random.split(KEY)
    state = sampler.init(3.0 * jax.random.normal(key_start, (number, 2)))
    step = jax.jit(sampler.step)
    for key in jax.random.split(key_run, 20):
        state, _ = step(key, state)
        if state.tempering_param >= 1.0:
            break
    assert state.tempering_param == 1.0
    # The 1000 particles descend from about 350 of the prior, which count as about 220 of equal
    # weight; 200 independent draws would have this standard error.
    weights = np.asarray(state.weights, np.float64)
    estimate = weights @ np.asarray(state.particles) / weights.sum()
    error = np.sqrt(np.diag(posterior) / 200)
    assert np.all(np.abs(estimate - posterior @ precision @ mean) < 4 * error)

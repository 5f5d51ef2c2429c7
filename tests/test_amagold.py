"""AMAGOLD: an exact law from the gradients of batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import langevin_ppl as lp
from langevin_ppl.base import Estimate, GradientEstimator, Randomness
from langevin_ppl.gradients import as_estimator

KEY = jax.random.key(11)
ROWS, DIMENSION, BATCH = 50, 3, 5

_random = np.random.default_rng(3)
DESIGN = _random.normal(size=(ROWS, DIMENSION)) @ np.array(
    [[1.0, 0.4, 0.0], [0.0, 1.0, -0.5], [0.0, 0.0, 0.7]]
)
RESPONSE = DESIGN @ np.array([1.0, -2.0, 0.5]) + _random.normal(size=ROWS)
PRECISION = DESIGN.T @ DESIGN + np.eye(DIMENSION)
COVARIANCE = np.linalg.inv(PRECISION)
MEAN = COVARIANCE @ DESIGN.T @ RESPONSE


def on_rows(rows, position):
    """Linear regression with unit noise, under a standard normal prior."""
    design, response = jnp.asarray(DESIGN)[rows], jnp.asarray(RESPONSE)[rows]
    residuals = response - design @ position
    return -0.5 * ROWS / len(rows) * jnp.sum(residuals**2) - 0.5 * jnp.sum(position**2)


def everything(position):
    return on_rows(np.arange(ROWS), position)


def minibatch(logdensity_fn=everything, init=lambda position: ()):
    def estimate(batch, position, memory):
        estimate = Estimate(*jax.value_and_grad(on_rows, argnums=1)(batch, position))
        return estimate, jax.tree.map(lambda leaf: leaf + 1, memory)

    return GradientEstimator(
        init=init,
        draw=lambda rng_key, step: jax.random.randint(rng_key, (BATCH,), 0, ROWS),
        estimate=estimate,
        exact=False,
        logdensity_fn=logdensity_fn,
    )


def begun(algorithm, position, key=KEY):
    """State after the first step, which only finds the log density."""
    return algorithm.step(key, algorithm.init(position, key))[0]


# One step


def walk(x, p, noises, batches, h, friction, temperature, factor):
    """The inner steps one by one; end, noises of the way back, and kicks."""
    c, back = 0.5 * friction * h, []
    heat = np.sqrt(4.0 * c * temperature)
    for noise, batch in zip(noises, batches, strict=True):
        x = x + 0.5 * h * factor @ p
        force = factor.T @ np.asarray(jax.grad(on_rows, argnums=1)(batch, jnp.asarray(x)))
        new = ((1.0 - c) * p + h * force + heat * noise) / (1.0 + c)
        back.append(((1.0 - c) * new - (1.0 + c) * p - h * force) / heat)
        x, p = x + 0.5 * h * factor @ new, new
    return x, p, np.array(back[::-1])


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_detailed_balance_of_a_way_and_its_reverse(temperature):
    """The way back has the probability that the acceptance makes up for, to rounding."""
    steps, h, friction = 4, 0.5, 1.3
    matrix = np.array([[0.02, 0.004, 0.0], [0.004, 0.03, -0.005], [0.0, -0.005, 0.05]])
    factor = np.linalg.cholesky(matrix)
    random = np.random.default_rng(5)
    with jax.enable_x64(True):
        kernel, estimator = lp.amagold(steps), minibatch()
        parameters = dict(
            step_size=h, inverse_mass_matrix=matrix, friction=friction, temperature=temperature
        )
        # A logarithm of the uniform of minus a million: whatever comes is accepted.
        always = np.full(2, 1e3)

        def step(x, p, noises, batches):
            state = kernel.state(jnp.asarray(x), everything(x), jnp.zeros(3), jnp.asarray(1), ())
            state = state._replace(momentum=jnp.asarray(p), is_known=jnp.asarray(True))
            noise = jnp.asarray(np.r_[noises.ravel(), always])
            randomness = Randomness(noise, jnp.asarray(batches))
            new, info = kernel.transition(randomness, state, estimator, **parameters)
            return np.asarray(new.position), np.asarray(new.momentum), info

        for _ in range(5):
            x = MEAN + np.linalg.cholesky(COVARIANCE) @ random.normal(size=3)
            p, noises = random.normal(size=3), random.normal(size=(steps, 3))
            batches = random.integers(0, ROWS, size=(steps, BATCH))
            far, fast, forward = step(x, p, noises, batches)
            expected_far, expected_fast, back = walk(
                x, p, noises, batches, h, friction, temperature, factor
            )
            np.testing.assert_allclose(far, expected_far, rtol=1e-10)
            np.testing.assert_allclose(fast, expected_fast, rtol=1e-10)
            # The way back, by the same batches in the opposite order.
            home, reversed_momentum, backward = step(far, -fast, back, batches[::-1])
            np.testing.assert_allclose(home, x, rtol=1e-8)
            np.testing.assert_allclose(reversed_momentum, -p, rtol=1e-8)
            # p(z) q(way) = p(z') q(way back), each times its acceptance rate.
            log_ratio = (everything(far) - everything(x)) / temperature
            log_ratio -= (fast @ fast - p @ p) / (2.0 * temperature)
            log_ratio -= 0.5 * (np.sum(back**2) - np.sum(noises**2))
            assert abs(log_ratio) > 0.01
            np.testing.assert_allclose(
                forward.acceptance_rate / backward.acceptance_rate, np.exp(log_ratio), rtol=1e-7
            )
            rates = [float(forward.acceptance_rate), float(backward.acceptance_rate)]
            assert max(rates) == 1.0 and min(rates) < 1.0


def test_the_first_step_finds_the_log_density_and_stays():
    algorithm, start = lp.amagold(4)(minibatch(), step_size=0.05), jnp.zeros(3)
    state = algorithm.init(start, KEY)
    assert not state.is_known and abs(state.logdensity - everything(start)) > 1.0
    new, info = algorithm.step(KEY, state)
    np.testing.assert_array_equal(new.position, start)
    np.testing.assert_allclose(new.logdensity, everything(start), rtol=1e-5)
    assert new.is_known and new.step == 1 and np.all(new.momentum != 0.0)
    assert not info.is_divergent
    step = jax.jit(algorithm.step)
    for key in jax.random.split(KEY, 5):
        new, info = step(key, new)
        np.testing.assert_allclose(new.logdensity, everything(new.position), rtol=1e-5)
        assert info.logdensity == new.logdensity


def test_a_rejection_stays_and_reverses_the_momentum():
    algorithm = lp.amagold(4)(minibatch(), step_size=3.0)
    state = begun(algorithm, jnp.asarray(MEAN, jnp.float32))
    new, info = algorithm.step(KEY, state)
    assert not info.is_accepted and info.is_divergent and new.step == 2
    np.testing.assert_array_equal(new.position, state.position)
    np.testing.assert_array_equal(new.momentum, -state.momentum)
    np.testing.assert_array_equal(new.logdensity, state.logdensity)


def test_batches_are_fresh_and_memory_stays():
    estimator = minibatch(init=lambda position: jnp.asarray(0))
    kernel = lp.amagold(6)
    algorithm = kernel(estimator, step_size=0.05)
    state = begun(algorithm, jnp.zeros(3))
    assert state.memory == 1  # of the estimate at the start
    noise, batch = kernel.draw(KEY, state, estimator)
    assert noise.shape == (6 * 3 + 2,) and batch.shape == (6, BATCH)
    assert len({tuple(map(int, rows)) for rows in batch}) == 6
    assert kernel.draw(KEY, state, as_estimator(everything)).batch == ()
    # A runner draws common batches by counting calls, whatever the key.
    calls = iter(range(100))
    common = dataclasses.replace(estimator, draw=lambda key, step: next(calls), shared=True)
    np.testing.assert_array_equal(kernel.draw(KEY, state, common).batch, np.arange(6))


def test_an_estimator_without_the_density_of_all_the_data_is_refused():
    estimator, kernel = minibatch(logdensity_fn=None), lp.amagold(3)
    for attempt in (
        lambda: kernel(estimator, step_size=0.1),
        lambda: kernel.init(jnp.zeros(3), estimator, KEY),
        lambda: kernel.build_kernel()(KEY, None, estimator, 0.1),
    ):
        with pytest.raises(ValueError, match=r"amagold\(3\).*logdensity_fn"):
            attempt()


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "two"])
def test_numbers_of_steps_that_are_none(value):
    with pytest.raises(ValueError, match="positive whole num_steps"):
        lp.amagold(value)


# The law


def law(kernel, step_size, num_steps, number, **parameters):
    """Whitened last positions of many chains that began in equilibrium, and infos."""
    algorithm = kernel(minibatch(), step_size=step_size, **parameters)
    factor = np.linalg.cholesky(COVARIANCE)
    heat = np.sqrt(parameters.get("temperature", 1.0))
    white = heat * np.random.default_rng(1).normal(size=(number, DIMENSION))
    starts = jnp.asarray(MEAN + white @ factor.T, jnp.float32)

    @jax.jit
    def chains(starts, key):
        states = jax.vmap(algorithm.init, in_axes=(0, None))(starts, key)

        def body(states, key):
            states, infos = jax.vmap(algorithm.step)(jax.random.split(key, number), states)
            return states, infos.acceptance_rate

        return jax.lax.scan(body, states, jax.random.split(key, num_steps))

    last, rates = chains(starts, KEY)
    return np.linalg.solve(factor, (np.asarray(last.position) - MEAN).T).T / heat, last, rates


def scores(white):
    """Deviations of means and second moments from a standard normal, in standard errors."""
    number = len(white)
    second = white.T @ white / number
    spread = np.where(np.eye(white.shape[1], dtype=bool), np.sqrt(2.0), 1.0)
    deviations = np.sqrt(number) * (second - np.eye(white.shape[1])) / spread
    return np.sqrt(number) * white.mean(axis=0), deviations[np.triu_indices(white.shape[1])]


@pytest.mark.parametrize(
    ("step_size", "parameters"),
    [(0.03, {}), (0.15, {"temperature": 2.0, "inverse_mass_matrix": np.diag(COVARIANCE)})],
    ids=["plain", "tempered"],
)
def test_the_law_is_exact_where_that_of_sghmc_is_not(step_size, parameters):
    """Independent chains, so that standard errors are those of independent draws."""
    white, last, rates = law(lp.amagold(3), step_size, 40, 10_000, **parameters)
    assert 0.3 < rates[1:].mean() < 0.7
    momenta = np.asarray(last.momentum) / np.sqrt(parameters.get("temperature", 1.0))
    for sample in (white, momenta):
        means, seconds = scores(sample)
        assert np.all(np.abs(means) < 4) and np.all(np.abs(seconds) < 4)
    # As many steps with the same batches and without a test: far too hot.
    hot, *_ = law(lp.baoab, step_size, 120, 10_000, **parameters)
    assert scores(hot)[1].max() > 20


def test_it_comes_to_the_law_from_far():
    """Variances of 2000 chains have a relative standard error of 3 %."""
    algorithm = lp.amagold(3)(minibatch(), step_size=0.03)
    start = jnp.asarray(MEAN + 5.0 * np.sqrt(np.diag(COVARIANCE)), jnp.float32)

    @jax.jit
    @jax.vmap
    def end(key):
        state = algorithm.init(start, key)
        keys = jax.random.split(key, 600)
        return jax.lax.scan(lambda s, k: (algorithm.step(k, s)[0], None), state, keys)[0].position

    factor = np.linalg.cholesky(COVARIANCE)
    white = np.linalg.solve(factor, (np.asarray(end(jax.random.split(KEY, 2000))) - MEAN).T).T
    means, seconds = scores(white)
    assert np.all(np.abs(means) < 4) and np.all(np.abs(seconds) < 4)


@pytest.mark.parametrize("kernel", [lp.amagold(4)], ids=repr)
def test_in_sample(kernel):
    target = lp.density(everything, jnp.zeros(3))
    idata = lp.sample(KEY, target, kernel, num_warmup=500, num_samples=1000)
    assert idata.attrs["exact"] == 1
    x = idata["posterior"]["x"]
    deviation = np.abs(x.mean(("chain", "draw")) - MEAN) / np.sqrt(np.diag(COVARIANCE))
    assert np.all(deviation < 0.3)
    rate = float(idata["sample_stats"]["acceptance_rate"].mean())
    assert abs(rate - kernel.target_acceptance_rate) < 0.15

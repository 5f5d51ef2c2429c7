"""Replicas at several temperatures, and a temperature that falls."""

import pickle

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import langevin_ppl as lp

LADDER = [1, 4, 16, 64]


def wells(x):
    """Two of width 0.25, six apart, with shares 0.7 and 0.3."""
    low, high = (-8.0 * jnp.sum((x - centre) ** 2) for centre in (-3.0, 3.0))
    return jnp.logaddexp(jnp.log(0.7) + low, jnp.log(0.3) + high)


def normal(x):
    return -0.5 * jnp.sum(x**2)


def run(algorithm, starts, num_steps, seed=0):
    """Last states of many chains, and positions and infos of all steps."""

    @jax.jit
    def steps(states, key):
        def body(states, key):
            keys = jax.random.split(key, starts.shape[0])
            states, infos = jax.vmap(algorithm.step)(keys, states)
            return states, (states.position, infos)

        return jax.lax.scan(body, states, jax.random.split(key, num_steps))

    return steps(jax.vmap(algorithm.init)(starts), jax.random.key(seed))


@pytest.mark.parametrize(
    ("kernel", "settings"),
    [(lp.mala, {"step_size": 0.05}), (lp.ghmc, {"step_size": 0.25, "friction": 1.0})],
    ids=repr,
)
def test_shares_of_two_modes(kernel, settings):
    algorithm = lp.parallel_tempering(kernel, LADDER)(wells, **settings)
    starts = jnp.full((64, 1), 3.0)
    _, (positions, infos) = run(algorithm, starts, 3000)
    left = (np.asarray(positions)[500:, :, 0] < 0).mean(axis=0)
    error = left.std(ddof=1) / np.sqrt(len(left))
    assert error < 0.02
    assert abs(left.mean() - 0.7) < 4 * error
    rates = np.asarray(infos.swap_rate)
    assert np.all((np.nanmean(rates, axis=(0, 1)) > 0.2) & (np.nanmean(rates, axis=(0, 1)) < 1.0))
    # Each pair has its turn in every second step.
    assert np.isnan(rates[::2, :, 1]).all() and np.isnan(rates[1::2, :, ::2]).all()
    assert np.isfinite(rates[1::2, :, 1]).all() and np.isfinite(rates[::2, :, ::2]).all()


@pytest.mark.parametrize("kernel", [lp.mala, lp.ghmc, lp.split_ghmc, lp.baoab], ids=repr)
def test_every_replica_keeps_its_own_law(kernel):
    """On a Gaussian, the position at temperature T has variance T, and so has the momentum."""
    algorithm = lp.parallel_tempering(kernel, [1, 3, 9])(normal, step_size=0.3)
    last, _ = run(algorithm, jnp.zeros((4000, 2)), 60)
    spread = np.asarray(last.replicas.position).std(axis=(0, 2))
    # 8000 numbers: four standard errors of a standard deviation are 3 %; ULA's bias is less.
    np.testing.assert_allclose(spread, np.sqrt([1, 3, 9]), rtol=0.035)
    if kernel is not lp.mala:
        momentum = np.asarray(last.replicas.momentum).std(axis=(0, 2))
        np.testing.assert_allclose(momentum, np.sqrt([1, 3, 9]), rtol=0.035)
    np.testing.assert_array_equal(last.position, last.replicas.position[:, 0])


def test_a_swap_has_the_probability_of_the_ratio():
    algorithm = lp.parallel_tempering(lp.mala, [1, 2])(normal, step_size=1e-12)
    state = algorithm.init(jnp.array([2.0]))
    replicas = jax.vmap(lp.mala(normal, step_size=1e-12).init)(jnp.array([[2.0], [1.8]]))
    state = state._replace(replicas=replicas)
    expected = np.exp(-0.5 * (0.5 * (2.0**2 - 1.8**2)) * -1.0)
    assert expected > 1.0
    _, info = algorithm.step(jax.random.key(0), state)
    np.testing.assert_allclose(info.swap_rate, 1.0)
    state = state._replace(replicas=jax.tree.map(lambda leaf: leaf[::-1], replicas))
    keys = jax.random.split(jax.random.key(0), 4000)
    states, infos = jax.vmap(algorithm.step, in_axes=(0, None))(keys, state)
    np.testing.assert_allclose(infos.swap_rate, 1.0 / expected, rtol=1e-5)
    swapped = np.mean(np.abs(states.position - 2.0) < 0.01)
    np.testing.assert_allclose(swapped, 1.0 / expected, atol=4 * 0.5 / np.sqrt(4000))
    np.testing.assert_allclose(states.logdensity, -0.5 * states.position[:, 0] ** 2, rtol=1e-4)


def test_in_sample():
    target = lp.density(wells, jnp.zeros(1))
    kernel = lp.parallel_tempering(lp.mala, LADDER)
    idata = lp.sample(jax.random.key(0), target, kernel, num_samples=4000)
    left = (idata["posterior"]["x"] < 0).mean(("chain", "draw"))
    assert abs(float(left.item()) - 0.7) < 0.1
    assert idata.attrs["exact"] == 1 and idata.attrs["max_rhat"] < 1.1
    assert idata["sample_stats"]["swap_rate"].shape == (4, 4000, 3)
    sampling = 4 * 4000 * len(LADDER)
    assert sampling < idata.attrs["num_gradient_evaluations"] < 1.5 * sampling
    # A single temperature stays where it began.
    alone = lp.sample(jax.random.key(0), target, lp.mala, num_samples=4000)
    assert alone.attrs["converged"] == 0


def test_annealing_is_the_kernel_at_the_temperature_of_the_step():
    kernel = lp.annealed(lp.mala, start=100.0, num_steps=4)
    for step, temperature in enumerate([100.0, 100**0.75, 10.0, 100**0.25, 1.0, 1.0]):
        plain = lp.mala(normal, step_size=0.3, temperature=temperature)
        state = plain.init(jnp.array([0.5, -1.0]))._replace(step=jnp.asarray(step))
        key = jax.random.key(step)
        ours = kernel(normal, step_size=0.3).step(key, state)
        for one, other in zip(*map(jax.tree.leaves, (ours, plain.step(key, state))), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.mark.parametrize("kernel", [lp.mala, lp.ula, lp.baoab], ids=repr)
def test_annealed_runs_end_at_the_target(kernel):
    target = lp.density(normal, jnp.zeros(3))
    annealed = lp.annealed(kernel, start=50.0, num_steps=100)
    idata = lp.sample(jax.random.key(0), target, annealed, num_warmup=400, num_samples=3000)
    assert idata.attrs["exact"] == int(kernel is lp.mala)
    np.testing.assert_allclose(idata["posterior"]["x"].std(("chain", "draw")), 1.0, rtol=0.15)


def test_an_annealed_run_needs_its_warmup():
    target, kernel = lp.density(normal, jnp.zeros(3)), lp.annealed(lp.mala, 10.0, 200)
    with pytest.raises(ValueError, match="num_warmup to be at least 400, got 399"):
        lp.sample(jax.random.key(0), target, kernel, num_warmup=399)
    with pytest.raises(ValueError, match="num_warmup to be at least 400, got 0"):
        lp.sample(
            jax.random.key(0),
            target,
            kernel,
            initial=jnp.zeros((4, 3)),
            parameters={"step_size": 1},
        )


@pytest.mark.parametrize(
    "kernel", [lp.parallel_tempering(lp.mala, LADDER), lp.annealed(lp.ula, 10.0, 5)], ids=repr
)
def test_made_kernels_are_cached_and_pickled(kernel):
    assert pickle.loads(pickle.dumps(kernel)) is kernel
    assert lp.parallel_tempering(lp.mala, (1, 4, 16, 64.0)) is lp.parallel_tempering(
        lp.mala, LADDER
    )


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: lp.parallel_tempering(lp.mala, [1]), ValueError, "at least two"),
        (lambda: lp.parallel_tempering(lp.mala, [2, 4]), ValueError, "begin with 1"),
        (lambda: lp.parallel_tempering(lp.mala, [1, 4, 2]), ValueError, "rise"),
        (lambda: lp.parallel_tempering(lp.mala, [1, np.inf]), ValueError, "rise"),
        (lambda: lp.parallel_tempering(lp.ubu, [1, 2]), ValueError, "does not end at a gradient"),
        (lambda: lp.parallel_tempering(blackjax.mala, [1, 2]), TypeError, "with a temperature"),
        (lambda: lp.annealed(blackjax.mala, 2.0, 10), TypeError, "with a temperature"),
        (lambda: lp.annealed(lp.mala, 1.0, 10), ValueError, "above 1"),
        (lambda: lp.annealed(lp.mala, 2.0, 0), ValueError, "positive whole"),
        (lambda: lp.annealed(lp.mala, 2.0, 1.5), ValueError, "positive whole"),
    ],
)
def test_refusals(make, error, words):
    with pytest.raises(error, match=words):
        make()

"""Long runs of the adjusted kernels against moments known by quadrature or in closed form.

Means over vmapped chains are independent, so their scatter gives the standard error. Every bound
is five of them, and each test asserts that this is small against the moment it checks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import langevin_ppl as lp

CHAINS = 96
DISCARDED = 100
STEPS = 1000

OVERDAMPED = (lp.mala, lp.tmala, lp.tmalac)


def double_well(x):
    square = jnp.sum(x**2)
    return -0.25 * square**2 + 0.5 * square


def gaussian():
    """Covariance of five correlated coordinates, scales from 0.3 to 3, and its log density."""
    rng = np.random.default_rng(5)
    rotation, _ = np.linalg.qr(rng.standard_normal((5, 5)))
    covariance = rotation @ np.diag([0.1, 0.5, 1.0, 3.0, 9.0]) @ rotation.T
    precision = np.linalg.inv(covariance).astype(np.float32)
    return covariance, lambda x: -0.5 * x @ precision @ x


def run(algorithm, starts):
    """Positions and infos after the first steps, each ``[step, chain, ...]``."""

    @jax.jit
    def steps(states, keys):
        def body(states, key):
            states, infos = jax.vmap(algorithm.step)(jax.random.split(key, CHAINS), states)
            return states, (states.position, infos)

        return jax.lax.scan(body, states, keys)[1]

    keys = jax.random.split(jax.random.key(1), DISCARDED + STEPS)
    positions, infos = steps(jax.vmap(algorithm.init)(starts), keys)
    return jax.tree.map(lambda x: np.asarray(x, np.float64)[DISCARDED:], (positions, infos))


def mean_and_error(values):
    """Mean over steps and chains of ``[step, chain, ...]``, and its standard error."""
    means = values.mean(axis=0)
    return means.mean(axis=0), means.std(axis=0, ddof=1) / np.sqrt(len(means))


def assert_mean(values, expected, largest_error):
    mean, error = mean_and_error(values)
    assert np.all(error < largest_error)
    assert np.all(np.abs(mean - expected) < 5 * error)


def assert_test_is_fair(infos):
    """The share of accepted moves is the mean of their probabilities, and is middling."""
    assert_mean(infos.is_accepted - infos.acceptance_rate, 0.0, 0.003)
    assert 0.4 < infos.acceptance_rate.mean() < 0.9
    assert not np.any(infos.is_divergent)


@pytest.mark.parametrize(
    ("kernel", "settings"),
    [
        *((kernel, {"step_size": 0.35}) for kernel in OVERDAMPED),
        (lp.ghmc, {"step_size": 0.8, "friction": 0.6}),
        # A Gaussian that is too narrow and beside the target.
        (lp.split_ghmc, {"step_size": 0.9, "inverse_mass_matrix": 0.5, "location": 0.3}),
    ],
    ids=str,
)
def test_double_well(kernel, settings):
    # In the plane, in polar coordinates.
    radius = np.linspace(0.0, 8.0, 4001)
    weight = radius * np.exp(-0.25 * radius**4 + 0.5 * radius**2)
    square = np.sum(weight * radius**2) / np.sum(weight) / 2
    np.testing.assert_allclose(square, 0.7889782, atol=1e-6)

    starts = np.sqrt(square) * jax.random.normal(jax.random.key(0), (CHAINS, 2))
    positions, infos = run(kernel(double_well, **settings), starts)
    assert_test_is_fair(infos)
    assert_mean(positions, 0.0, 0.02)
    assert_mean(positions**2, square, 0.012)
    # By parts, E x . grad U = 2, so that E |x|^4 = E |x|^2 + 2.
    fourth = np.sum(positions**2, axis=2) ** 2
    assert_mean(fourth, 2 * square + 2, 0.05)


@pytest.mark.parametrize(
    ("kernel", "step_size"),
    [*((kernel, 0.6) for kernel in OVERDAMPED), (lp.ghmc, 1.1), (lp.split_ghmc, 1.3)],
    ids=str,
)
def test_correlated_gaussian_with_a_dense_inverse_mass_matrix(kernel, step_size):
    covariance, logdensity = gaussian()
    # Near the covariance, as after a short warm-up, but not equal to it.
    rng = np.random.default_rng(6)
    sketch = np.linalg.cholesky(covariance) @ rng.standard_normal((5, 30))
    matrix = sketch @ sketch.T / 30
    algorithm = kernel(logdensity, step_size=step_size, inverse_mass_matrix=matrix)
    starts = rng.multivariate_normal(np.zeros(5), covariance, size=CHAINS)
    positions, infos = run(algorithm, jnp.asarray(starts, jnp.float32))
    assert_test_is_fair(infos)
    whitened = positions @ np.linalg.inv(np.linalg.cholesky(covariance)).T
    assert_mean(whitened, 0.0, 0.02)
    products = whitened[..., :, None] * whitened[..., None, :]
    assert_mean(products, np.eye(5), 0.02)

"""Starting positions and adaptation: each part against an independent computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from langevin_ppl.fit import minimize
from langevin_ppl.warmup.adaptation import (
    SHRINKAGE,
    AdaptationState,
    Moments,
    Schedule,
    adaptation,
    fisher_factor,
)
from langevin_ppl.warmup.start import DENSE_LIMIT, laplace_start, square_root

RNG = np.random.default_rng(0)
COVARIANCE = np.array([[4.0, 1.2, 0.0], [1.2, 1.0, -0.2], [0.0, -0.2, 0.25]], np.float32)
MEAN = np.array([1.0, -3.0, 100.0], np.float32)
PRECISION = np.linalg.inv(COVARIANCE)


def gaussian(x):
    return -0.5 * (x - MEAN) @ PRECISION @ (x - MEAN)


def rosenbrock(x):
    return jnp.sum((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2)


def test_minimize_finds_a_hard_minimum():
    found = jax.jit(lambda x: minimize(rosenbrock, x))(jnp.array([-1.2, 1.0, 0.5]))
    np.testing.assert_allclose(found.position, 1.0, atol=1e-3)
    assert bool(found.converged)
    assert found.value == rosenbrock(found.position)
    assert 10 < found.num_evaluations < 300


def test_minimize_says_that_it_ran_away():
    found = minimize(lambda x: -jnp.sum(x), jnp.zeros(2), max_steps=20)
    assert not bool(found.converged)


def test_moments_are_numpys():
    rows = RNG.normal(size=(50, 4, 3)).astype(np.float32) + 1000.0
    for factor, expected in (
        (jnp.eye(3), np.cov(rows.reshape(-1, 3).T, bias=True)),
        (jnp.ones(3), rows.reshape(-1, 3).var(axis=0)),
    ):
        moments = Moments.zero(factor)
        for step, row in enumerate(rows):
            moments = moments.add(row, jnp.asarray(1.0))
            if step % 7 == 0:  # a step that does not count changes nothing
                moments = moments.add(jnp.full((4, 3), 1e9), jnp.asarray(0.0))
        # Far from the origin in float32: the running form must not cancel.
        np.testing.assert_allclose(moments.covariance(0.0), expected, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(moments.mean, rows.mean(axis=(0, 1)), rtol=1e-6)


@pytest.mark.parametrize("draws", [8, 200])
def test_fisher_metric_knows_a_gaussian_from_few_draws(draws):
    # Positions and gradients of a Gaussian: cov(g) = C^{-1} cov(x) C^{-1}, so C solves the rule.
    x = RNG.multivariate_normal(np.zeros(3), COVARIANCE, size=draws)
    g = -x @ PRECISION
    scatter_x, scatter_g = x.T @ x, g.T @ g
    positions = Moments(jnp.asarray(1e6), jnp.zeros(3), jnp.asarray(scatter_x * 1e6 / draws))
    gradients = Moments(jnp.asarray(1e6), jnp.zeros(3), jnp.asarray(scatter_g * 1e6 / draws))
    factor = fisher_factor(positions, gradients)
    np.testing.assert_allclose(factor @ factor.T, COVARIANCE, rtol=2e-3, atol=2e-3)


def test_diagonal_fisher_metric_is_the_ratio_of_standard_deviations():
    positions = Moments(jnp.asarray(1e8), jnp.zeros(2), 1e8 * jnp.array([4.0, 9.0]))
    gradients = Moments(jnp.asarray(1e8), jnp.zeros(2), 1e8 * jnp.array([1.0, 0.25]))
    np.testing.assert_allclose(fisher_factor(positions, gradients) ** 2, [2.0, 6.0], rtol=1e-5)


def test_shrinkage_pulls_an_empty_window_to_the_identity():
    empty = Moments.zero(jnp.eye(2))
    np.testing.assert_allclose(fisher_factor(empty, empty), jnp.eye(2), atol=1e-6)
    assert SHRINKAGE > 0


def test_square_root_is_triangular():
    factor = RNG.normal(size=(4, 4)).astype(np.float32)
    root = square_root(jnp.asarray(factor))
    np.testing.assert_allclose(root @ root.T, factor @ factor.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.triu(root, 1), 0.0)


def test_schedule_collects_between_renewals():
    schedule = Schedule.build(1000)
    assert schedule.frees.sum() == 250
    assert list(np.flatnonzero(schedule.renews)) == [99, 249, 499, 849]
    assert not schedule.collects[850:].any()
    assert not Schedule.build(10).renews.any()


def test_one_stuck_chain_sets_the_step_size_at_first():
    init, update = adaptation(0.574, adapt_step_size=True, adapt_metric=False)
    acceptance = jnp.array([0.9, 0.9, 0.9, 0.0])
    rows = jnp.zeros((4, 2))

    def after(frees):
        state = init(jnp.ones(2), 0.5)
        flags = Schedule(np.asarray(frees), np.asarray(False), np.asarray(False))
        for _ in range(20):
            state = update(state, rows, rows, acceptance, flags)
        assert isinstance(state, AdaptationState)
        return float(state.step_size)

    assert after(True) < 1e-3 < 0.5 < after(False)


def test_laplace_start_of_a_gaussian_is_the_gaussian():
    positions = jnp.asarray(RNG.uniform(-2, 2, size=(400, 3)), jnp.float32)
    start = jax.jit(laplace_start, static_argnums=1)(jax.random.key(0), gaussian, positions)
    assert bool(start.found.all())
    np.testing.assert_allclose(start.factor @ start.factor.T, COVARIANCE, rtol=1e-2, atol=1e-2)
    # 400 starts: five standard errors of a mean are a quarter of a standard deviation, and those
    # of a standard deviation 18 %.
    sd = np.sqrt(np.diag(COVARIANCE))
    assert np.abs((start.positions.mean(axis=0) - MEAN) / sd).max() < 0.25
    np.testing.assert_allclose(start.positions.std(axis=0), sd, rtol=0.18)


def test_no_mode_no_move():
    """A density that rises for ever must not choose where chains start."""

    def funnel(x):
        return -0.5 * jnp.sum(x[1:] ** 2) * jnp.exp(-x[0]) - 0.5 * (x.size - 1) * x[0]

    start = jax.jit(laplace_start, static_argnums=1)
    for dimension in (5, DENSE_LIMIT + 20):
        positions = jnp.asarray(RNG.uniform(-2, 2, size=(3, dimension)), jnp.float32)
        result = start(jax.random.key(0), funnel, positions)
        assert not bool(result.found.any())
        np.testing.assert_array_equal(result.positions, positions)


def test_high_dimension_starts_where_the_search_converged():
    positions = jnp.asarray(RNG.uniform(-2, 2, size=(2, DENSE_LIMIT + 1)), jnp.float32)
    result = laplace_start(jax.random.key(0), lambda x: -0.5 * jnp.sum((x - 3.0) ** 2), positions)
    assert bool(result.found.all())
    np.testing.assert_allclose(result.positions, 3.0, atol=1e-2)
    assert result.factor.shape == (DENSE_LIMIT + 1,)

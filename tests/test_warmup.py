"""Starting positions and adaptation: each part against an independent computation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from blackjax.adaptation.step_size import dual_averaging_adaptation

import langevin_ppl as lp
from langevin_ppl.base import Draws, percent
from langevin_ppl.compilation import QUICK
from langevin_ppl.fit import minimize
from langevin_ppl.preconditioners import Preconditioner
from langevin_ppl.warmup.adaptation import MIN_FRICTION_SHARE, Adaptation, Schedule
from langevin_ppl.warmup.ends import End, Ends
from langevin_ppl.warmup.moments import (
    MAX_ROWS,
    SHRINKAGE,
    Moments,
    Rows,
    fisher_factor,
    square_root,
)
from langevin_ppl.warmup.report import describe_ends, describe_start, describe_stuck, why_no_mode
from langevin_ppl.warmup.start import DENSE_LIMIT, laplace_start, search_modes

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
    # Compiled arithmetic differs from that of single operations in the last digits of the squares.
    np.testing.assert_allclose(found.value, rosenbrock(found.position), rtol=1e-2)
    assert 10 < found.num_evaluations < 300


def test_minimize_says_that_it_ran_away():
    found = minimize(lambda x: -jnp.sum(x), jnp.zeros(2), max_steps=20)
    assert not bool(found.converged)


def overdispersed(y, x):
    """Negative log density of dispersion and mean of counts, not convex between start and mode."""
    width, mean = jnp.exp(x[0]), jnp.exp(x[1])
    prior = dist.HalfNormal(1.0).log_prob(width) + x[0]
    prior += dist.Normal(math.log(1000.0), 0.5).log_prob(x[1])
    return -prior - jnp.sum(dist.NegativeBinomial2(mean, width**-2).log_prob(y))


@pytest.mark.parametrize("double", [False, True])
def test_minimize_crosses_regions_of_negative_curvature(double):
    rng = np.random.default_rng(0)
    y = rng.negative_binomial(2000, 2000 / 3000, size=1000)
    starts = rng.uniform(-2, 2, size=(20, 2))
    with jax.enable_x64(double):
        starts = jnp.asarray(starts, float if double else jnp.float32)
        run = jax.jit(jax.vmap(lambda x: minimize(functools.partial(overdispersed, y), x)))
        found = jax.device_get(run(starts))
    # Dispersion and mean by SciPy in double precision; Laplace standard deviations of 0.068 and
    # 0.0012. The log density in single precision is rounded by 0.2.
    mode, sd = [-3.81117, 6.90766], [0.068, 0.00122]
    assert found.converged.all()
    np.testing.assert_allclose((found.position - mode) / sd, 0.0, atol=0.01 if double else 0.3)
    np.testing.assert_allclose(found.value, 5074.1293, atol=1e-3 if double else 0.6)
    assert np.abs(found.gradient * sd).max() < 0.3
    assert found.num_evaluations.max() < 200


def test_minimize_converges_only_at_a_small_gradient():
    """At a kink the line search fails, and the gradient is of order one."""
    kink = minimize(lambda x: jnp.sum(jnp.abs(x - 0.3)), jnp.array([2.0, 1.0]))
    assert not bool(kink.converged)
    wall = minimize(lambda x: jnp.where(x[0] > 1.0, x[0], jnp.inf), jnp.array([3.0]))
    assert not bool(wall.converged) and wall.position[0] > 1.0
    assert wall.position[0] < 1.1
    outside = minimize(lambda x: jnp.where(x[0] > 1.0, x[0], jnp.inf), jnp.zeros(1))
    assert not bool(outside.converged) and not jnp.isfinite(outside.value)


def test_minimize_converges_where_value_and_gradient_are_rounded():
    """Terms of size 1e6 cancel, so that the value is known only to about 0.1."""
    weights = 1e6 + np.random.default_rng(3).normal(size=200)

    def cancelling(x):
        return jnp.sum(jnp.asarray(weights, x.dtype) * jnp.cos(x[0])) - 2e8 + 2.0 * x[1] ** 2

    found = minimize(cancelling, jnp.array([2.5, 1.0]))
    assert bool(found.converged)
    # A standard deviation is 7e-5 and 0.5, and the first coordinate has a period.
    np.testing.assert_allclose(np.cos(found.position[0]), -1.0, atol=1e-6)
    assert minimize(lambda x: jnp.sum(x**2), jnp.zeros(2)).converged
    # A value of 1e6 hides the decrease of the second coordinate, and its slope does not.
    offset = minimize(lambda x: 1e6 + jnp.sum(x**2) / 2, jnp.array([3.0, -4.0]))
    assert bool(offset.converged)
    np.testing.assert_allclose(offset.position, 0.0, atol=0.3)


def test_minimize_does_not_depend_on_the_scale_of_the_parameters():
    """A first gradient of 1e-4 is not a small one where a standard deviation is 1e4."""
    found = minimize(lambda x: jnp.sum(((x - 3e4) / 1e4) ** 2) / 2, jnp.ones(2))
    assert bool(found.converged)
    np.testing.assert_allclose(found.position, 3e4, atol=100)


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
    factor = fisher_factor(jnp.asarray(x.T @ x / draws), jnp.asarray(g.T @ g / draws))
    np.testing.assert_allclose(factor @ factor.T, COVARIANCE, rtol=2e-3, atol=2e-3)


def test_diagonal_fisher_metric_is_the_ratio_of_standard_deviations():
    factor = fisher_factor(jnp.array([4.0, 9.0]), jnp.array([1.0, 0.25]))
    np.testing.assert_allclose(factor**2, [2.0, 6.0], rtol=1e-5)


@pytest.mark.parametrize("factor", [jnp.eye(2), jnp.ones(2)], ids=["dense", "diagonal"])
def test_shrinkage_pulls_an_empty_window_to_the_identity(factor):
    empty = Moments.zero(factor).covariance(SHRINKAGE)
    np.testing.assert_allclose(fisher_factor(empty, empty), factor, atol=1e-6)
    assert SHRINKAGE > 0


def test_square_root_is_triangular():
    factor = RNG.normal(size=(4, 4)).astype(np.float32)
    root = square_root(jnp.asarray(factor))
    np.testing.assert_allclose(root @ root.T, factor @ factor.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.triu(root, 1), 0.0)


@pytest.mark.parametrize("num_chains", [1, 3, 300])
def test_rows_are_the_last_ones(num_chains):
    draws = np.arange(400 * num_chains * 2.0).reshape(400, num_chains, 2).astype(np.float32)

    @jax.jit
    def fill(rows, draws):
        def body(rows, draw):
            rows = rows.add(draw, -draw, jnp.asarray(1.0))
            return rows.add(draw + 0.5, draw, jnp.asarray(0.0)), None  # does not count

        return jax.lax.scan(body, rows, draws)[0]

    rows = fill(Rows.zero(2, num_chains, jnp.float32), draws)
    assert rows.written == 400 * num_chains
    number = len(rows.positions)
    assert (
        number % num_chains == 0 and number == max(MAX_ROWS, num_chains) // num_chains * num_chains
    )
    last = draws.reshape(-1, 2)[-number:]
    order = np.argsort(rows.positions[:, 0])
    np.testing.assert_array_equal(np.asarray(rows.positions)[order], last)
    np.testing.assert_array_equal(np.asarray(rows.gradients)[order], -last)


# Tuning while stepping


def test_schedule_collects_between_renewals():
    schedule = Schedule.build(1000)
    assert schedule.frees.sum() == 250 and schedule.frees[:250].all()
    assert list(np.flatnonzero(schedule.renews)) == [149, 399, 799]
    assert list(np.flatnonzero(schedule.judges)) == [799]
    assert list(np.flatnonzero(schedule.ends)) == [999]
    # The first 30 % of a window are left out; what comes after the last settles the friction.
    collected = [(45, 150), (225, 400), (520, 800), (800, 1000)]
    expected = np.zeros(1000, bool)
    for start, end in collected:
        expected[start:end] = True
    np.testing.assert_array_equal(schedule.collects, expected)
    short = Schedule.build(10)
    assert not short.renews.any() and not short.judges.any() and not short.collects.any()
    assert list(np.flatnonzero(short.ends)) == [9]


ALL = frozenset({"step_size", "inverse_mass_matrix", "location", "frequency", "friction"})


def flags(**raised):
    """One row of a schedule."""
    row = dict.fromkeys(Schedule._fields, False) | raised
    return Schedule(**{name: np.asarray(value) for name, value in row.items()})


@functools.lru_cache
def updater(adaptation):
    """One step of the tuning: of all chains together, or of a single one."""
    if adaptation.axis_name is None:
        return jax.jit(adaptation.update)
    axes = dict(in_axes=(None, 0, 0, 0, None), out_axes=None, axis_name=adaptation.axis_name)
    return jax.jit(jax.vmap(adaptation.update, **axes))


def begun(adaptation, factor=None, location=None, step_size=0.5, rate=0.8, num_chains=4):
    factor = jnp.eye(3) if factor is None else jnp.asarray(factor)
    location = jnp.zeros(factor.shape[0]) if location is None else jnp.asarray(location)
    metric = Preconditioner(factor)
    if adaptation.metric == "low_rank":
        d = factor.shape[0]
        metric = Preconditioner(factor, jnp.eye(d, 20), jnp.ones(20))
    return adaptation.init(metric, location, step_size, rate, 0.8, num_chains)


def gaussian_draws(steps, chains, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.multivariate_normal(MEAN, COVARIANCE, size=(steps, chains)).astype(np.float32)
    return x, -(x - MEAN) @ PRECISION, rng.uniform(size=(steps, chains)).astype(np.float32)


def test_pooled_moments_are_those_of_all_draws():
    """Means, squares and the residual of the fit, against NumPy on the gathered rows."""
    adaptation = Adaptation(ALL, "dense", axis_name="chain")
    factor = np.array([[1.5, 0, 0], [0.3, 0.8, 0], [0.1, -0.2, 0.4]], np.float32)
    centre = MEAN + np.array([0.5, -0.2, 0.1], np.float32)
    state = begun(adaptation, factor, centre)
    x, g, rates = gaussian_draws(40, 4)
    for step in range(40):
        state = updater(adaptation)(
            state, x[step], g[step], rates[step], flags(collects=step % 4 != 3)
        )
    counted = np.arange(40) % 4 != 3
    white = (x[counted].reshape(-1, 3) - centre) @ np.linalg.inv(factor).T
    pulled = g[counted].reshape(-1, 3) @ factor
    assert state.positions.number == state.gradients.number == len(white) == 120
    for moments, rows in ((state.positions, white), (state.gradients, pulled)):
        np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            moments.covariance(0.0), np.cov(rows.T, bias=True), rtol=1e-3, atol=1e-4
        )
    residual = np.sum(np.mean((white + pulled) ** 2, axis=1))
    np.testing.assert_allclose(state.residual, residual, rtol=1e-3)


@pytest.mark.parametrize("frees", [False, True])
def test_pooled_step_size_is_blackjaxs_dual_averaging(frees):
    adaptation = Adaptation(frozenset({"step_size"}), "diagonal", axis_name="chain")
    state = begun(adaptation, jnp.ones(3), rate=0.6)
    x, g, rates = gaussian_draws(25, 4)
    init, update, _ = dual_averaging_adaptation(0.6)
    expected = init(0.5)
    for step in range(25):
        state = updater(adaptation)(state, x[step], g[step], rates[step], flags(frees=frees))
        expected = update(expected, rates[step].min() if frees else rates[step].mean())
        np.testing.assert_allclose(state.step_size, np.exp(expected.log_step_size), rtol=1e-4)
        np.testing.assert_allclose(state.taming, float(frees))
    settled = updater(adaptation)(state, x[0], g[0], rates[0], flags(ends=True))
    last = update(expected, rates[0].mean())
    np.testing.assert_allclose(settled.step_size, np.exp(last.log_step_size_avg), rtol=1e-4)
    assert settled.taming == 0.0


@pytest.mark.parametrize("metric", ["dense", "diagonal"])
def test_one_chain_is_tuned_alone_as_in_a_pool_of_one(metric):
    alone = Adaptation(ALL, metric, 1.7)
    pooled = Adaptation(ALL, metric, 1.7, axis_name="chain")
    factor = jnp.eye(3) if metric == "dense" else jnp.ones(3)
    one, other = begun(alone, factor, num_chains=1), begun(pooled, factor, num_chains=1)
    x, g, rates = gaussian_draws(30, 1)
    for step in range(30):
        row = flags(
            collects=True, renews=step == 20, judges=step == 20, frees=step < 5, ends=step == 29
        )
        one = updater(alone)(one, x[step, 0], g[step, 0], rates[step, 0], row)
        other = updater(pooled)(other, x[step], g[step], rates[step], row)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


def test_one_stuck_chain_sets_the_step_size_at_first():
    adaptation = Adaptation(frozenset({"step_size"}), "diagonal", axis_name="chain")
    acceptance, rows = jnp.array([0.9, 0.9, 0.9, 0.0]), jnp.zeros((4, 3))

    def after(frees):
        state = begun(adaptation, jnp.ones(3), rate=0.574)
        for _ in range(20):
            state = updater(adaptation)(state, rows, rows, acceptance, flags(frees=frees))
        return float(state.step_size)

    assert after(True) < 1e-3 < 0.5 < after(False)


def test_the_step_size_is_bounded_and_returns_at_once():
    adaptation = Adaptation(frozenset({"step_size"}), "diagonal", 1.7, axis_name="chain")
    state, rows = begun(adaptation, jnp.ones(3)), jnp.zeros((4, 3))
    sizes = []
    for step in range(60):
        acceptance = jnp.full(4, 1.0 if step < 50 else 0.0)
        state = updater(adaptation)(state, rows, rows, acceptance, flags())
        sizes.append(float(state.step_size))
    np.testing.assert_allclose(sizes[20:50], 1.7, rtol=1e-6)
    assert np.exp(state.averaging.log_step_size_avg) <= 1.7
    # Fifty steps of acceptance 1 must not have to be unlearned.
    assert sizes[54] < 0.9 * 1.7
    free = Adaptation(frozenset({"step_size"}), "diagonal", axis_name="chain")
    state = begun(free, jnp.ones(3))
    for _ in range(50):
        state = updater(free)(state, rows, rows, jnp.ones(4), flags())
    assert state.step_size > 10.0


@pytest.mark.parametrize("metric", ["dense", "diagonal"])
def test_a_window_finds_the_gaussian_and_its_centre(metric):
    """Beginning from a frame and a centre that are wrong."""
    adaptation = Adaptation(ALL, metric, axis_name="chain")
    scales = np.array([1.0, 3.0, 0.2], np.float32)
    state = begun(adaptation, np.diag(scales) if metric == "dense" else scales, MEAN + 1.0)
    x, g, rates = gaussian_draws(60, 4, seed=1)
    for step in range(60):
        row = flags(collects=True, renews=step == 59)
        state = updater(adaptation)(state, x[step], g[step], rates[step], row)
    sd = np.sqrt(np.diag(COVARIANCE))
    if metric == "dense":
        # From 240 draws, whose gradients know the curvature: shrinkage alone is in the way.
        fitted = state.metric.inverse_mass_matrix
        np.testing.assert_allclose(fitted, COVARIANCE, rtol=0.06, atol=0.06 * sd.min() ** 2)
        np.testing.assert_array_equal(np.triu(state.metric.factor, 1), 0.0)
        np.testing.assert_allclose((state.location - MEAN) / sd, 0.0, atol=0.05)
    else:
        ratio = np.sqrt(np.diag(COVARIANCE) / np.diag(PRECISION))
        np.testing.assert_allclose(state.metric.factor**2, ratio, rtol=0.2)
        # A diagonal metric moves the mean of the draws only by what their gradients leave.
        np.testing.assert_allclose((state.location - MEAN) / sd, 0.0, atol=0.5)
    # A new window, and a step size that goes on from the average.
    assert state.positions.number == state.gradients.number == state.residual == 0
    assert state.averaging.step == 1 or state.averaging.step == 0


def test_a_low_rank_window_finds_scales_directions_and_the_centre():
    """A Gaussian of 120 dimensions: scales over four decades, three directions apart."""
    d = 120
    rng = np.random.default_rng(3)
    scales = 10 ** rng.uniform(-2, 2, size=d)
    directions = np.linalg.qr(rng.standard_normal((d, 3)))[0]
    stretched = np.array([60.0, 20.0, 0.03])
    root = scales[:, None] * (
        np.eye(d) + directions @ np.diag(np.sqrt(stretched) - 1) @ directions.T
    )
    centre = 5.0 * scales * rng.standard_normal(d)
    noise = rng.standard_normal((64, 4, d))
    x = np.asarray(centre + noise @ root.T, np.float32)
    g = np.asarray(-noise @ np.linalg.inv(root), np.float32)
    adaptation = Adaptation(ALL, "low_rank", axis_name="chain")
    state = begun(adaptation, jnp.ones(d))
    rates = np.full(4, 0.8, np.float32)
    # Two windows: the first is shrunk towards the unit scales that it began from.
    for step in (*range(64), *range(64)):
        row = flags(collects=True, renews=step == 63)
        state = updater(adaptation)(state, x[step], g[step], rates, row)
    metric = state.metric
    np.testing.assert_allclose(metric.directions.T @ metric.directions, np.eye(20), atol=1e-4)
    # In the frame that was found, the target is near a standard normal; in its scales alone the
    # variances would be from 0.03 to 60.
    white = jax.vmap(metric.solve, in_axes=1, out_axes=1)(jnp.asarray(root, jnp.float32))
    variances = np.linalg.eigvalsh(np.asarray(white @ white.T, np.float64))
    assert 0.2 < variances[0] and variances[-1] < 4.0
    # Of the twenty directions that there is room for, those that are there are stretched.
    assert 3 <= np.sum(metric.stretches != 1.0) <= 5
    offset = metric.solve(state.location - jnp.asarray(centre, jnp.float32))
    # 256 draws: the mean of draws alone would be off by 1/16, and gradients take half of it.
    assert np.sqrt(np.mean(np.square(offset))) < 0.12
    assert state.rows.written == 0


@pytest.mark.parametrize(
    ("angle", "poor"), [(1.0, True), (1.19, True), (1.21, False), (1.7, False)]
)
@pytest.mark.parametrize("tunes_friction", [True, False])
def test_the_fit_is_judged_by_the_angle_that_it_allowed(angle, poor, tunes_friction):
    tunes = ALL if tunes_friction else ALL - {"friction"}
    adaptation = Adaptation(tunes, "dense", axis_name="chain")
    state = begun(adaptation)
    x, g, _ = gaussian_draws(1, 4)
    # At the wanted acceptance the average stays where it is.
    log_angle = jnp.asarray(np.log(angle), jnp.float32)
    averaging = state.averaging._replace(log_step_size=log_angle, log_step_size_avg=log_angle)
    averaging = averaging._replace(step=jnp.asarray(10**6, jnp.int32))
    averaging = averaging._replace(avg_error=jnp.asarray(0.0), mu=log_angle)
    state = state._replace(averaging=averaging)
    rates = np.full(4, 0.8, np.float32)
    judged = updater(adaptation)(state, x[0], g[0], rates, flags(renews=True, judges=True))
    expected = (0.75, 0.5 if tunes_friction else 0.8) if poor else (1.0, 0.8)
    np.testing.assert_allclose((judged.frequency, judged.friction), expected, rtol=1e-6)
    # Only where it is to be judged.
    other = updater(adaptation)(state, x[0], g[0], rates, flags(renews=True))
    np.testing.assert_allclose((other.frequency, other.friction), (1.0, 0.8), rtol=1e-6)


@pytest.mark.parametrize(
    ("variances", "share"),
    [
        ((1.0, 1.0, 1.0), 1.0),
        ((0.2, 2.25, 1.0), 1 / 1.5),
        ((100.0, 1.0, 1.0), MIN_FRICTION_SHARE),
    ],
)
def test_friction_is_settled_by_the_slowest_direction(variances, share):
    """What the metric left: the last window's largest standard deviation, to a floor."""
    number = jnp.asarray(1e6)
    moments = Moments(number, jnp.zeros(3), number * jnp.diag(jnp.array(variances)))
    for tunes, expected in ((ALL, 0.8 * share), (ALL - {"friction"}, 0.8)):
        adaptation = Adaptation(tunes, "dense", axis_name="chain")
        state = begun(adaptation)._replace(positions=moments)
        settled = jax.jit(adaptation.final)(state)
        np.testing.assert_allclose(settled.friction, expected, rtol=1e-3)
        np.testing.assert_allclose(settled.step_size, np.exp(state.averaging.log_step_size_avg))
        assert settled.taming == 0.0
        assert set(adaptation.parameters(settled)) == tunes


def test_what_is_given_is_not_tuned():
    adaptation = Adaptation(frozenset({"step_size"}), "dense", axis_name="chain")
    state = begun(adaptation)
    x, g, rates = gaussian_draws(30, 4)
    for step in range(30):
        row = flags(collects=True, renews=step == 29, judges=step == 29)
        state = updater(adaptation)(state, x[step], g[step], rates[step], row)
    np.testing.assert_array_equal(state.metric.factor, np.eye(3))
    np.testing.assert_array_equal(state.location, np.zeros(3))
    assert list(adaptation.parameters(state)) == ["step_size"]


def test_draws_that_are_not_finite_do_not_spoil_the_metric():
    adaptation = Adaptation(ALL, "dense", axis_name="chain")
    state = begun(adaptation)
    x, g, rates = gaussian_draws(30, 4)
    x[7, 2] = np.nan
    for step in range(30):
        row = flags(collects=True, renews=step == 29)
        state = updater(adaptation)(state, x[step], g[step], rates[step], row)
    np.testing.assert_array_equal(state.metric.factor, np.eye(3))
    np.testing.assert_array_equal(state.location, np.zeros(3))


# Where chains start


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def started(logdensity_fn, positions):
    search = search_modes(logdensity_fn, positions)
    return laplace_start(jax.random.key(0), logdensity_fn, positions, search)


def uniform(chains, dimension):
    return jnp.asarray(
        np.random.default_rng(2).uniform(-2, 2, size=(chains, dimension)), jnp.float32
    )


def test_laplace_start_of_a_gaussian_is_the_gaussian():
    start = started(gaussian, uniform(400, 3))
    assert bool(start.search.found.all())
    np.testing.assert_allclose(start.factor @ start.factor.T, COVARIANCE, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(start.mode, MEAN, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(start.growth, 1.0, rtol=1e-2)
    # 400 starts: five standard errors of a mean are a quarter of a standard deviation, and those
    # of a standard deviation 18 %.
    sd = np.sqrt(np.diag(COVARIANCE))
    assert np.abs((start.positions.mean(axis=0) - MEAN) / sd).max() < 0.25
    np.testing.assert_allclose(start.positions.std(axis=0), sd, rtol=0.18)
    notes, doubts, ends = describe_start(jax.device_get(start))
    assert notes["mode_search"] == "all chains ended at one mode" and not doubts
    assert notes["num_chains_at_best_mode"] == 400


def test_mode_of_an_ill_conditioned_regression_in_single_precision():
    """Year and intercept, uncentred: a condition number of 2e11."""
    rng = np.random.default_rng(1)
    year = np.linspace(1990.0, 2020.0, 60)
    x = np.stack([np.ones(60), year, np.sin(year)], axis=1)
    y = x @ [-100.0, 0.06, 0.5] + 0.3 * rng.standard_normal(60)
    precision = x.T @ x / 0.09
    assert np.linalg.cond(precision) > 1e11
    design, response = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    start = started(lambda b: -0.5 * jnp.sum((response - design @ b) ** 2) / 0.09, uniform(4, 3))
    assert bool(start.search.found.all())
    off = np.asarray(start.mode, np.float64) - np.linalg.lstsq(x, y, rcond=None)[0]
    # In posterior standard deviations.
    assert np.sqrt(off @ precision @ off) < 0.3
    sd = np.sqrt(np.diag(np.linalg.inv(precision)))
    np.testing.assert_allclose(np.linalg.norm(start.factor, axis=1), sd, rtol=0.05)


WELL_STARTS = jnp.array([[1.0, 2.0], [-1.5, -2.0], [2.0, 0.5], [-1.0, -0.7]])


def wells(depth, x):
    """Two of them, that at +3 higher by a depth in nats."""
    high, low = (jnp.sum((x - centre) ** 2) / 0.18 for centre in (3.0, -3.0))
    return jnp.logaddexp(-high, -depth - low)


def test_chains_that_end_elsewhere_stay_there_and_are_named():
    start = jax.device_get(started(functools.partial(wells, 1.0), WELL_STARTS))
    assert not start.restarted.any()
    np.testing.assert_array_equal(start.search.found, [True, False, True, False])
    np.testing.assert_allclose(start.mode, 3.0, atol=1e-3)
    np.testing.assert_allclose(start.positions[[1, 3]], -3.0, atol=1e-3)
    # Laplace noise of standard deviation 0.3.
    near = np.abs(start.positions[[0, 2]] - 3.0)
    assert np.all((near > 1e-4) & (near < 1.5))
    notes, doubts, ends = describe_start(start)
    assert notes["num_chains_at_best_mode"] == 2 and not doubts and ends.several_modes
    assert ends.chains(End.LOWER) == [1, 3]
    assert notes["mode_search"].startswith("chains [1, 3] ended elsewhere, 1, 1 nats below")


def test_chains_that_end_at_negligible_mass_are_moved_and_named():
    # 20 nats and 5 for each dimension are not yet negligible.
    assert not started(functools.partial(wells, 29.0), WELL_STARTS).restarted.any()
    start = jax.device_get(started(functools.partial(wells, 31.0), WELL_STARTS))
    np.testing.assert_array_equal(start.search.found, [True, False, True, False])
    np.testing.assert_array_equal(start.restarted, [False, True, False, True])
    near = np.abs(start.positions - 3.0)
    assert np.all((near > 1e-4) & (near < 1.5))
    notes, doubts, ends = describe_start(start)
    assert notes["num_chains_at_best_mode"] == 2 and not doubts
    assert ends.chains(End.MOVED) == [1, 3] and not ends.several_modes
    assert notes["mode_search"].startswith("chains [1, 3] ended 31, 31 nats below the best mode")


def test_equal_modes_and_ridges_are_told_apart():
    """By the log density halfway between an end and the best mode."""

    def permuted(x):
        apart = jnp.array([10.0, -10.0])
        return jnp.logaddexp(*(-8.0 * jnp.sum((x - c) ** 2) for c in (apart, -apart)))

    start = jax.device_get(started(permuted, jnp.array([[1.0, -1], [-1, 1], [2, 1], [0, 2]])))
    notes, _, ends = describe_start(start)
    assert sorted(k.name for k in ends.kinds) == ["BEST", "BEST", "EQUAL", "EQUAL"]
    # 4 standard deviations for each unit.
    assert f"{4 * np.hypot(20, 20):.3g}" in notes["mode_search"]
    assert "log density of the best mode within rounding" in notes["mode_search"]
    assert ends.several_modes and "nats" not in notes["mode_search"]

    best = np.array([kind is End.BEST for kind in ends.kinds])
    np.testing.assert_allclose(start.between[best], start.search.ended[best], atol=0.1)
    assert np.all(start.between[~best] < -1000)

    search = start.search._replace(ends=np.float32([[0, 0], [2, 1], [1, 0], [np.nan, 0]]))
    search = search._replace(
        found=np.array([True, False, False, False]),
        converged=np.array([True, True, False, True]),
        ended=np.float32([5.0, 5.0 - 3e-5, 4.0, np.nan]),
        best=0,
    )
    flatter = Ends.of(search, between=np.float32([5.0, 5.0, 5.0, np.nan]))
    assert flatter.kinds == (End.BEST, End.RIDGE, End.UNFINISHED, End.NONFINITE)
    assert not flatter.several_modes
    text = describe_ends(flatter)
    assert "chains [1] ended at the same mode within rounding" in text
    assert "searches of chains [3] became non-finite, and the chains started from their own" in text
    assert "searches of chains [2] did not converge" in text and "nan" not in text


def test_a_chain_whose_search_has_no_finite_density_keeps_its_position():
    def cut(x):
        return -0.5 * jnp.sum(x**2) + jnp.where(x[0] < -5.0, jnp.nan, 0.0)

    positions = jnp.array([[1.0, 1.0], [-5.5, 0.0], [0.0, 2.0], [1.0, 0.0]])
    start = jax.device_get(started(cut, positions))
    notes, doubts, ends = describe_start(start)
    assert [kind.name for kind in ends.kinds] == ["BEST", "NONFINITE", "BEST", "BEST"]
    np.testing.assert_array_equal(start.positions[1], positions[1])
    assert notes["mode_search"] == (
        "the searches of chains [1] became non-finite, and the chains started from their own "
        "positions"
    )
    assert not doubts and not ends.several_modes


def test_separate_searches_in_many_dimensions_are_not_called_one_mode():
    ends = Ends((End.BEST, End.BEST), np.zeros(2), np.zeros(2), separate=True)
    assert "each chain started at its own end" in describe_ends(ends)
    assert "all chains start at the mode" in describe_ends(ends, "at the mode")
    assert "all chains ended at one mode" == describe_ends(ends._replace(separate=False))
    lower = ends._replace(kinds=(End.BEST, End.LOWER), drops=np.array([0.0, 2.5]))
    assert describe_ends(lower, "at the mode") == (
        "chains [1] ended elsewhere, 2.5 nats below the best mode, and start at the mode"
    )
    lost = ends._replace(kinds=(End.NO_MODE,) * 2)
    assert describe_ends(lost) == "no mode: chains started from their own positions"


def test_no_mode_no_move():
    """A density that rises for ever must not choose where chains start."""

    def funnel(x):
        return -0.5 * jnp.sum(x[1:] ** 2) * jnp.exp(-x[0]) - 0.5 * (x.size - 1) * x[0]

    for dimension in (5, DENSE_LIMIT + 20):
        positions = uniform(3, dimension)
        start = started(funnel, positions)
        assert not bool(start.search.found.any())
        np.testing.assert_array_equal(start.positions, positions)
        np.testing.assert_allclose(start.mode, positions.mean(axis=0), rtol=1e-5)
        np.testing.assert_array_equal(
            start.factor, np.eye(5) if dimension == 5 else np.ones(dimension)
        )


def test_an_improper_density_is_called_one():
    start = jax.device_get(started(lambda x: x[0] - 0.5 * x[1] ** 2, uniform(3, 2)))
    assert not start.search.found.any()
    _, doubts, ends = describe_start(start)
    assert len(doubts) == 1 and ends.no_mode
    assert "diverged from starts" in doubts[0] and "improper" in doubts[0]


@pytest.mark.parametrize(
    "logdensity_fn",
    [lambda x: -0.5 * (x[0] + x[1] - 1.0) ** 2, lambda x: -25.0 * (jnp.sum(x**2) - 1.0) ** 2],
    ids=["line", "ring"],
)
def test_a_ridge_is_no_mode(logdensity_fn):
    positions = uniform(3, 2)
    start = jax.device_get(started(logdensity_fn, positions))
    assert not start.search.found.any()
    np.testing.assert_array_equal(start.positions, positions)
    assert "not positive definite" in why_no_mode(start.search)
    assert "eigenvalue" in why_no_mode(start.search) and "1e-06 counts" in why_no_mode(start.search)
    saddle = start.search._replace(flattest=np.float32(-0.5))
    assert "a saddle" in why_no_mode(saddle) and "ridge" not in why_no_mode(saddle)
    assert "ridge" in describe_start(start)[0]["mode_search"]


@pytest.mark.parametrize(
    ("logdensity_fn", "growth"),
    [
        (lambda x: -0.25 * jnp.sum(x**2) ** 2 - 0.5 * jnp.sum(x**2), 3.0),
        (lambda x: -jnp.sum(jnp.exp(x**4)) - jnp.sum(x**2), np.inf),
    ],
    ids=["quartic", "exponential"],
)
def test_growth_of_the_gradient(logdensity_fn, growth):
    # From probes at four and eight standard deviations, where lower orders are still seen.
    np.testing.assert_allclose(started(logdensity_fn, uniform(3, 2)).growth, growth, atol=0.15)


def test_high_dimension_starts_where_the_search_converged():
    d = DENSE_LIMIT + 1
    scales = np.logspace(-0.5, 0.5, d).astype(np.float32)
    positions = uniform(40, d)
    start = started(lambda x: -0.5 * jnp.sum(((x - 3.0) / scales) ** 2), positions)
    assert bool(start.search.found.all())
    np.testing.assert_allclose((start.mode - 3.0) / scales, 0.0, atol=1e-2)
    assert start.factor.shape == (d,)
    # The diagonal of the curvature: exact here, where the Hessian is diagonal.
    np.testing.assert_allclose(start.factor, scales, rtol=1e-2)
    white = (start.positions - 3.0) / scales
    # 40 chains of 101 coordinates: five standard errors are 0.08 and 0.06.
    assert abs(float(white.mean())) < 0.08 and abs(float(white.std()) - 1.0) < 0.06


# What is said of a warm-up


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (1, "100 %"), (0.997, "100 %"), (1.234, "123 %"), (0.0451, "4.5 %")]
    + [(0.001, "0.1 %"), (1e-7, "less than 0.01 %"), (0.0997, "10 %")],
)
def test_percentages_are_plain_numbers(share, text):
    assert percent(share) == text


def test_stuck_chains_are_named():
    rates = np.full((4, 100), 0.8)
    warmup = Draws(np.zeros((4, 100, 1)), {"acceptance_rate": rates}, None, True)
    assert describe_stuck(warmup) == ()
    rates[2, 50:] = 0.001
    rates[0, :50] = 0.0  # early on, and forgiven
    (text,) = describe_stuck(warmup)
    assert "chain 2 accepted 0.1 % of its proposals, the others 80 %" in text
    ones = {"acceptance_rate": np.where(rates == 0.8, 1.0, rates)}
    assert "the others 100 %" in describe_stuck(warmup._replace(stats=ones))[0]
    rates[:, 50:] = np.nan
    (text,) = describe_stuck(warmup)
    assert all(f"chain {c}" in text for c in range(4)) and "the others" not in text
    assert describe_stuck(warmup._replace(stats={})) == ()


def test_a_burn_in_is_tamed_where_gradients_explode_and_there_is_no_mode():
    """A ring has no mode; tilted, it has one."""

    def ring(tilt, x):
        return -2.0 * (jnp.sum(x**2) - 4.0) ** 2 + tilt * x[0]

    # The tilt is data, so that both are one program.
    level = lp.density(jax.tree_util.Partial(ring, jnp.asarray(0.0)), jnp.zeros(2))
    idata = lp.sample(jax.random.key(0), level, num_samples=400)
    assert idata.attrs["burn_in"].startswith("tamed, because gradients grow like |x|^")
    assert 2.5 < idata.attrs["gradient_growth"] < 3.5
    # No Gaussian is like a ring, and less of one is split off.
    assert idata.attrs["gaussian_fit"].startswith("poor")
    assert idata["sampler_parameters"]["frequency"] == 0.75
    assert idata.attrs["gaussian_fit_residual"] > 0.3
    # Not after the burn-in.
    assert "taming" not in idata["sampler_parameters"]
    square = np.sum(idata["posterior"]["x"].values ** 2, axis=2)
    # Uniform in area, its square is a normal of mean 4 and variance 1 / 4, of which some hundred
    # of the 1600 draws count.
    np.testing.assert_allclose(np.mean(square), 4.0, atol=0.15)
    np.testing.assert_allclose(np.std(square), 0.5, atol=0.1)
    tilted = lp.density(jax.tree_util.Partial(ring, jnp.asarray(1.0)), jnp.zeros(2))
    idata = lp.sample(jax.random.key(0), tilted, num_samples=400)
    assert idata.attrs["burn_in"] == "untamed"
    given = lp.sample(jax.random.key(0), level, num_samples=10, num_warmup=20, taming=0.0)
    assert given.attrs["burn_in"] == "untamed"

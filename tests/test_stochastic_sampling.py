"""`sample` with a gradient from a part of the data: what warm-up chooses, and what comes of it.

The models are linear regressions whose posteriors are known, with normal or heavy-tailed errors.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC

import langevin_ppl as lp
from langevin_ppl.base import BiasWarning, ConvergenceWarning, Draws, Estimate, GradientEstimator
from langevin_ppl.gradients import reader_of
from langevin_ppl.infer import MALA, SGLD, UBU
from langevin_ppl.tree import Layout
from langevin_ppl.trust import measured_temperature, reweighted
from langevin_ppl.warmup.centre import settle_on_all
from langevin_ppl.warmup.noise import measure_estimator, measure_rows, of_batches
from tests.models import conjugate_posterior

ROWS, BATCH = 20_000, 100

compilations: list[str] = []
"""Names of the functions that were compiled."""


def _count(event, duration, *, fun_name="", **_):
    if event.endswith("backend_compile_duration"):
        compilations.append(fun_name)


jax.monitoring.register_event_duration_secs_listener(_count)


def regression(x, y):
    with numpyro.plate("column", x.shape[1]):
        slope = numpyro.sample("slope", dist.Normal(0.0, 2.0))
    with numpyro.plate("row", x.shape[0], subsample_size=BATCH):
        rows, values = numpyro.subsample(x, 1), numpyro.subsample(y, 0)
        numpyro.sample("y", dist.Normal(rows @ slope, 0.5), obs=values)


def robust(x, y):
    with numpyro.plate("column", x.shape[1]):
        slope = numpyro.sample("slope", dist.Normal(0.0, 2.0))
    with numpyro.plate("row", x.shape[0], subsample_size=BATCH):
        rows, values = numpyro.subsample(x, 1), numpyro.subsample(y, 0)
        numpyro.sample("y", dist.StudentT(3.0, rows @ slope, 0.5), obs=values)


def data(seed=0, number=ROWS, heavy=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((number, 3)) @ np.array([[1, 0, 0], [0.8, 1, 0], [0, 0, 0.1]])
    x[:heavy] *= 50.0
    noise = 0.5 * rng.standard_normal(number)
    return x.astype(np.float32), (x @ [1.0, -1.0, 2.0] + noise).astype(np.float32)


def errors(idata, mean, sd):
    """Largest error of a mean in sds, and range of the ratios of sds."""
    draws = idata["posterior"]["slope"].values.reshape(-1, 3)
    ratios = draws.std(axis=0) / sd
    return np.abs((draws.mean(axis=0) - mean) / sd).max(), ratios.min(), ratios.max()


@pytest.fixture(scope="module")
def problem():
    x, y = data()
    mean, covariance = conjugate_posterior(x, y)
    return lp.target(regression, x, y), np.asarray(mean), np.sqrt(np.diag(np.asarray(covariance)))


@pytest.fixture(scope="module")
def run(problem):
    return lp.sample(jax.random.key(0), problem[0], groups=["log_likelihood"], num_samples=1000)


# The default


def test_default_is_right_and_says_what_it_did(problem, run):
    _, mean, sd = problem
    worst, least, most = errors(run, mean, sd)
    assert worst < 0.1 and 0.93 < least and most < 1.07
    attributes = run.attrs
    assert attributes["kernel"] == "ubu" and attributes["exact"] == 0
    assert attributes["gradient_estimator"].startswith("control_variates(batch_size=")
    assert attributes["converged"] == 1
    assert "gradient noise" in attributes["step_size_rule"]
    assert abs(attributes["temperature_noisiest"] - 1.0) < 0.1
    assert attributes["laplace_is_enough"] == 1 and "Pareto k" in attributes["trust"]
    steps = 4 * attributes["thinning"] * (1000 + 300 / attributes["thinning"])
    rows = 2 * attributes["batch_size"] / ROWS
    assert attributes["num_passes"] > 0.95 * steps * rows


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_passes_count_renewals_of_the_anchor(problem):
    def passes(steps):
        idata = lp.sample(
            jax.random.key(0),
            problem[0],
            lp.sgld,
            gradient=lp.svrg(BATCH, every=20),
            num_warmup=steps,
            num_samples=steps,
            thinning=1,
        )
        return idata.attrs["num_passes"]

    expected = 4 * 200 * (2 * BATCH / ROWS + 1 / 20)
    assert passes(200) - passes(100) == pytest.approx(expected, rel=1e-3)


def test_tree_has_all_the_rows(run):
    assert run["observed_data"]["y"].shape == (ROWS,)
    assert run["observed_data"]["y"].dims == ("row",)
    assert run["log_likelihood"]["y"].shape == (4, 1000, ROWS)
    assert run["posterior"]["slope"].dims == ("chain", "draw", "column")
    assert "acceptance_rate" not in run["sample_stats"]


def test_chunks_change_no_draw(problem):
    target, *_ = problem
    options = {"num_warmup": 30, "num_samples": 40}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        one = lp.sample(jax.random.key(1), target, **options)
        other = lp.sample(jax.random.key(1), target, chunk=7, **options)
    np.testing.assert_array_equal(one["posterior"]["slope"], other["posterior"]["slope"])


def test_new_data_of_the_same_shapes_compile_nothing(problem, run):
    x, y = data(seed=5)
    compilations.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        again = lp.sample(jax.random.key(2), lp.target(regression, x, y), num_samples=1000)
    mean, covariance = conjugate_posterior(x, y)
    assert errors(again, np.asarray(mean), np.sqrt(np.diag(np.asarray(covariance))))[0] < 0.1
    assert compilations == []


@pytest.mark.slow
def test_bias_continues_with_all_the_data(problem, run):
    measured = lp.diagnostics.bias(jax.random.key(3), problem[0], run, ess=500)
    assert measured["bias"].attrs["converged"] == 1
    assert measured["bias"].attrs["largest"] < 0.1


# Kernels and estimators


@pytest.mark.parametrize(
    ("kernel", "gradient"),
    [
        (lp.baoab, lp.svrg(BATCH, every=50)),
        (lp.sgld, lp.control_variates(BATCH, order=2, shared=False)),
        pytest.param(
            lp.leimkuhler_matthews,
            lp.control_variates(BATCH, sampling="importance"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lp.sghmc,
            lp.control_variates(BATCH, pinned=50, sampling="epochs"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_kernels_and_estimators(problem, kernel, gradient):
    target, mean, sd = problem
    idata = lp.sample(jax.random.key(4), target, kernel, gradient=gradient)
    worst, least, most = errors(idata, mean, sd)
    assert worst < 0.15 and 0.9 < least and most < 1.12
    assert abs(idata.attrs["temperature_noisiest"] - 1.0) < 0.15


def test_plain_batches_heat_as_predicted(problem):
    """SGLD of a Gaussian has variance ``(T + h S / 2) / (1 - h / 2)`` in the whitened frame."""
    target, mean, sd = problem
    covariance = np.asarray(conjugate_posterior(*data())[1])
    frame, step_size = np.linalg.cholesky(covariance), 0.05
    with pytest.warns(BiasWarning, match="inflated"):
        idata = lp.sample(
            jax.random.key(5),
            target,
            lp.sgld,
            gradient=lp.minibatch(BATCH),
            step_size=step_size,
            inverse_mass_matrix=covariance,
            num_samples=4000,
            thinning=5,
        )
    x, y = data()
    residual = (y - x @ mean)[:, None] * x / 0.25
    noise = ROWS**2 / BATCH * np.cov((residual @ frame).T) * (1 - BATCH / ROWS)
    value, vectors = np.linalg.eigh(noise)
    predicted = (1.0 + step_size * value[-1] / 2) / (1.0 - step_size / 2)
    draws = idata["posterior"]["slope"].values.reshape(-1, 3)
    along = (draws - mean) @ np.linalg.inv(frame).T @ vectors[:, -1]
    assert np.var(along) == pytest.approx(predicted, rel=0.1)
    assert idata.attrs["temperature_noisiest"] == pytest.approx(predicted, rel=0.15)
    assert idata.attrs["converged"] == 0


@pytest.mark.slow
def test_few_heavy_rows_are_pinned():
    x, y = data(heavy=20)
    idata = lp.sample(jax.random.key(6), lp.target(robust, x, y), num_samples=1000)
    whole = lp.laplace(jax.random.key(7), lp.target(robust, x, y), num_samples=2000)
    draws = whole["posterior"]["slope"].values.reshape(-1, 3)
    worst, least, most = errors(idata, draws.mean(axis=0), draws.std(axis=0))
    assert worst < 0.15 and 0.9 < least and most < 1.1
    assert idata.attrs["heavy_rows_share"] > 0.2 and idata.attrs["num_pinned_rows"] > 0


def test_an_estimator_of_one_s_own():
    spread = 3.0

    def estimate(batch, position, memory):
        return Estimate(-0.5 * jnp.sum(position**2), -position + spread * batch), memory

    noisy = GradientEstimator(
        jax.tree_util.Partial(lambda position: ()),
        jax.tree_util.Partial(lambda key, step: jax.random.normal(key, (2,))),
        jax.tree_util.Partial(estimate),
        exact=False,
    )
    target = lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))
    idata = lp.sample(jax.random.key(8), target, lp.baoab, gradient=noisy, num_samples=2000)
    # Gradient noise of variance 9 heats by h 9 / (2 friction), of which 5 % are allowed.
    step_size = float(idata["sampler_parameters"]["step_size"])
    assert step_size == pytest.approx(0.05 * 2 * 2 / spread**2, rel=0.2)
    assert float(idata["posterior"]["x"].var()) == pytest.approx(1.05, abs=0.1)


# What warm-up measures


@pytest.fixture(scope="module")
def measured():
    """A small data set in one block, with its rows and the layout."""
    x, y = data(number=2000, heavy=5)
    target = lp.target(robust, x, y)
    layout = Layout.of(target.prototype)
    return x, y, target, layout, reader_of(target, {"row": BATCH}, "blocks", 0)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_noise_of_rows_is_that_of_their_gradients(measured, order):
    x, y, target, layout, reader = measured
    centre, factor = jnp.array([1.0, -1.0, 2.0]), 0.02 * jnp.eye(3)
    found = measure_rows(
        jax.random.key(0),
        target.batch_logdensity_fn,
        reader["row"],
        centre,
        factor,
        name="row",
        layout=layout,
        order=order,
        num_heavy=5,
    )

    def term(slope, row, value):
        return dist.StudentT(3.0, row @ slope, 0.5).log_prob(value)

    gradient = jax.vmap(jax.grad(term), in_axes=(None, 0, 0))
    bend = jax.vmap(jax.hessian(term), in_axes=(None, 0, 0))

    @jax.jit
    def residuals(shift):
        residual = gradient(centre + shift, x, y)
        if order >= 1:
            residual = residual - gradient(centre, x, y)
        if order == 2:
            residual = residual - bend(centre, x, y) @ shift
        return residual @ factor

    shifts = jax.random.normal(jax.random.key(1), (200, 3)) @ factor.T
    squares = np.mean([np.sum(np.square(residuals(shift)), axis=1) for shift in shifts], axis=0)
    total = np.trace(np.asarray(found.heavy_squares + found.rest_squares))
    # Of eight draws of the Gaussian, with a second or fourth power of them.
    assert total == pytest.approx(squares.sum(), rel=0.02 if order == 0 else 0.8)
    listed = reader["row"].numbers(np.asarray(found.heavy))
    assert squares[listed].sum() > 0.3 * np.sort(squares)[-5:].sum()


def test_noise_of_batches_agrees_with_batches(measured):
    _, _, target, layout, reader = measured
    centre, factor = jnp.array([1.0, -1.0, 2.0]), 0.02 * jnp.eye(3)
    rows = measure_rows(
        jax.random.key(0),
        target.batch_logdensity_fn,
        reader["row"],
        centre,
        factor,
        name="row",
        layout=layout,
        order=0,
        num_heavy=5,
    )
    estimator = target.gradient(lp.minibatch(BATCH, sampling="without"))
    ends = jnp.broadcast_to(centre, (8, 3))
    by_batches = measure_estimator(jax.random.key(1), estimator, ends, ends, factor, layout)
    by_rows = of_batches(jax.device_get(rows), 2000, BATCH, 0)
    assert by_batches.largest == pytest.approx(by_rows.largest, rel=0.3)
    pinned = of_batches(jax.device_get(rows), 2000, BATCH, 5)
    assert pinned.largest < by_rows.largest


def test_mode_of_all_the_data_from_some_of_it(problem):
    target, mean, sd = problem
    layout = Layout.of(target.prototype)
    reader = reader_of(target, {"row": BATCH}, "blocks", 0)
    # A frame that is off by factors of four, and a start 30 standard deviations away.
    factor = jnp.diag(jnp.asarray(sd * np.array([0.5, 2.0, 1.0])))
    settled = settle_on_all(
        target.batch_logdensity_fn, reader, jnp.asarray(mean + 30 * sd), factor, layout=layout
    )
    assert bool(settled.curved) and float(settled.decrement) < 1e-2
    np.testing.assert_allclose(settled.position, mean, atol=0.1 * sd.min())
    covariance = np.asarray(conjugate_posterior(*data())[1])
    np.testing.assert_allclose(settled.factor @ settled.factor.T, covariance, rtol=0.02, atol=1e-8)


# What is refused


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_chains_begin_where_they_are_told_to_without_a_mode():
    def ridge(y):
        flat = dist.ImproperUniform(dist.constraints.real, (), ())
        total = numpyro.sample("a", flat) + numpyro.sample("b", flat)
        with numpyro.plate("row", 200, subsample_size=20):
            numpyro.sample("y", dist.Normal(total, 50.0), obs=numpyro.subsample(y, event_dim=0))

    target = lp.target(ridge, jnp.zeros(200))
    initial = {"a": jnp.full(4, 20.0), "b": jnp.full(4, 20.0)}
    short = {"num_warmup": 1, "num_samples": 1, "step_size": 1e-9}
    idata = lp.sample(jax.random.key(0), target, lp.sgld, initial=initial, **short)
    assert "not positive definite" in idata.attrs["mode_search"]
    np.testing.assert_allclose(idata["posterior"]["a"].values, 20.0, atol=0.01)


def test_a_step_size_above_the_bound_is_refused(problem):
    target, _, sd = problem
    with pytest.raises(ValueError, match=r"is stable below .*Leave step_size out"):
        lp.sample(
            jax.random.key(0),
            target,
            lp.sgld,
            gradient=lp.minibatch(),
            step_size=float(10 * sd.max() ** 2),
        )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_step_size_of_a_rescaled_kernel_is_in_other_units(problem):
    target, _, sd = problem
    idata = lp.sample(
        jax.random.key(0),
        target,
        lp.psgld,
        gradient=lp.minibatch(),
        step_size=float(10 * sd.max() ** 2),
        num_warmup=10,
        num_samples=10,
    )
    assert np.isfinite(idata["posterior"]["slope"]).all()


def test_a_row_that_is_missing_is_named(problem, run):
    x, y = data()
    y[[7, 123]] = np.nan
    with pytest.raises(ValueError, match="'y' has NaN in its rows 7, 123"):
        lp.sample(jax.random.key(0), lp.target(regression, x, y))


def test_control_variates_without_a_mode_are_refused():
    def improper(y):
        slope = numpyro.sample("slope", dist.ImproperUniform(dist.constraints.real, (), ()))
        with numpyro.plate("row", len(y), subsample_size=2):
            numpyro.factor("pull", slope * numpyro.subsample(y, 0))

    with pytest.raises(ValueError, match="no mode to centre them at"):
        lp.sample(
            jax.random.key(0),
            lp.target(improper, jnp.ones(10)),
            lp.ubu,
            gradient=lp.control_variates(),
        )


@pytest.mark.parametrize("kernel", [lp.mala, lp.split_ghmc], ids=repr)
def test_metropolis_tests_need_all_the_data(problem, kernel):
    with pytest.raises(ValueError, match=r"plate 'row' is subsampled \(100 of 20000 rows\)"):
        lp.sample(jax.random.key(0), problem[0], kernel)
    with pytest.raises(ValueError, match="needs the log density of all the data"):
        lp.sample(jax.random.key(0), problem[0], kernel, gradient=lp.minibatch())


def test_nonsense_is_refused(problem):
    with pytest.raises(TypeError, match=r"expected langevin_ppl.minibatch"):
        lp.sample(jax.random.key(0), problem[0], lp.sgld, gradient=0.1)
    with pytest.raises(TypeError, match="needs step_size"):
        lp.sample(jax.random.key(0), problem[0], lp.sgld, gradient=lp.minibatch(), num_warmup=0)


# Weights


def test_weights_choose_draws():
    positions = np.arange(10.0).reshape(1, 10, 1)
    log_weight = np.where(np.arange(10) % 2, 0.0, -np.inf)[None]
    stats = {"log_weight": log_weight, "diverging": np.zeros((1, 10), bool)}
    draws, share = reweighted(Draws(positions, stats, None, complete=True))
    np.testing.assert_array_equal(draws.positions[0, :, 0], [1, 1, 3, 3, 5, 5, 7, 7, 9, 9])
    assert share == pytest.approx(0.5)


def test_temperature_has_an_error():
    values = np.random.default_rng(0).standard_normal((4, 4000)) ** 2
    seen = measured_temperature(Draws(None, {"temperature": 2.0 * values}, None, True), 2.0)
    assert abs(seen["temperature_noisiest"] - 1.0) < 4 * seen["temperature_error"]
    assert seen["temperature_error"] == pytest.approx(np.sqrt(2 / 16_000), rel=0.5)


# Other ways in


def test_in_numpyro(problem):
    _, mean, sd = problem
    x, y = data()
    mcmc = MCMC(
        UBU(regression),
        num_warmup=100,
        num_samples=3000,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), x, y)
    draws = np.asarray(mcmc.get_samples()["slope"])
    assert np.abs((draws.mean(axis=0) - mean) / sd).max() < 0.15
    assert np.abs(draws.std(axis=0) / sd - 1.0).max() < 0.1


def test_in_numpyro_with_a_gradient():
    x, y = data(number=500)
    mcmc = MCMC(
        SGLD(regression, gradient=lp.minibatch(50), step_size=1e-5),
        num_warmup=10,
        num_samples=10,
        num_chains=2,
        chain_method="sequential",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), x, y)
    assert np.isfinite(mcmc.get_samples()["slope"]).all()


def test_in_numpyro_a_metropolis_test_is_refused():
    mcmc = MCMC(MALA(regression), num_warmup=1, num_samples=1, progress_bar=False)
    with pytest.raises(ValueError, match="needs the log density of all the data"):
        mcmc.run(jax.random.key(0), *data(number=500))


def test_in_numpyro_parallel_chains_are_refused():
    if jax.device_count() < 2:
        pytest.skip("one device: NumPyro runs parallel chains one after the other")
    mcmc = MCMC(UBU(regression), num_warmup=1, num_samples=1, num_chains=2, progress_bar=False)
    with pytest.raises(ValueError, match="vectorized"):
        mcmc.run(jax.random.key(0), *data(number=500))


@pytest.mark.parametrize("kernel", [lp.sgld, lp.baoab, lp.sghmc], ids=repr)
def test_with_blackjax_s_signature(problem, kernel):
    """Many steps from the mode have the posterior's moments; batches of all rows are exact."""
    target, mean, sd = problem
    gradient = jax.grad(lambda position, rows: target.logdensity_on(rows, position))
    scale = {} if kernel is lp.sgld else {"friction": 2.0}
    algorithm = lp.sgmcmc(kernel, gradient, inverse_mass_matrix=sd**2, **scale)
    step = jax.jit(algorithm.step)
    state = algorithm.init({"slope": jnp.asarray(mean)})
    seen = []
    for key in jax.random.split(jax.random.key(0), 300):
        state = step(key, state, {"row": jnp.arange(ROWS)}, 0.3)
        seen.append((state if kernel is lp.sgld else state.position)["slope"])
    draws = np.stack(seen)
    assert np.abs((draws.mean(axis=0) - mean) / sd).max() < 1.5
    assert 0.5 < (draws.std(axis=0) / sd).min() and (draws.std(axis=0) / sd).max() < 2.0


def test_blackjax_s_signature_makes_sgld_s_step():
    algorithm = lp.sgmcmc(lp.sgld, lambda position, batch: batch - position)
    start, batch = jnp.array([1.0, 2.0]), jnp.array([3.0, 5.0])
    moved = algorithm.step(jax.random.key(0), algorithm.init(start), batch, 0.1, 1e-30)
    np.testing.assert_allclose(moved, start + 0.1 * (batch - start), rtol=1e-6)


def test_blackjax_s_signature_refuses_a_metropolis_test():
    with pytest.raises(ValueError, match="Metropolis test"):
        lp.sgmcmc(lp.mala, lambda position, batch: position)
    with pytest.raises(TypeError, match="expected a kernel"):
        lp.sgmcmc("sgld", lambda position, batch: position)

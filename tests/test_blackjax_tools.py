"""Our kernels inside BlackJAX's own tools, as its users would put them there."""

import functools
import inspect
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import blackjax
import blackjax.smc.resampling as resampling
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.optimizers.lbfgs import lbfgs_inverse_hessian_formula_1
from blackjax.smc import extend_params
from blackjax.smc.base import update_and_take_last
from blackjax.util import run_inference_algorithm, store_only_expectation_values, thin_algorithm

import langevin_ppl as lp
from langevin_ppl.base import Estimate, GradientEstimator
from langevin_ppl.run import statistics
from langevin_ppl.warmup.traits import parameters_of, traits

OABAO = lp.splitting("OABAO")
ADJUSTED = (lp.mala, lp.tmala, lp.tmalac, lp.ghmc, lp.split_ghmc)
OVERDAMPED = (
    *(lp.ula, lp.tula, lp.tulac, lp.leimkuhler_matthews, lp.irreversible),
    *(lp.sgld, lp.tsgld, lp.psgld),
)
KINETIC = (
    *(lp.baoab, lp.obabo, lp.ubu, lp.klmc, lp.tbaoab, OABAO),
    *(lp.sghmc, lp.sgnht, lp.badodab),
)
# Their taming bites wherever the gradient does not grow like a power: the law is far off.
POLYNOMIAL = (lp.mtula, lp.tusla, lp.stula)
WITH_MOMENTUM = (lp.ghmc, lp.split_ghmc, *KINETIC)
KEY = jax.random.key(3)
SCALES = np.array([0.5, 2.0], np.float32)
# Programs here take longer to compile than to run.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
PAGE = (Path(__file__).resolve().parents[1] / "docs" / "blackjax.md").read_text()


def logdensity(position):
    """Two independent normals of mean 1 and the standard deviations ``SCALES``."""
    return -0.5 * jnp.sum(((position["x"] - 1.0) / SCALES) ** 2)


START = {"x": jnp.zeros(2)}


def step_size_of(kernel):
    # A time, of which the others' step sizes are about half the square.
    if kernel is lp.sgnht:  # whose Euler steps diverge where the thermostat swings up
        return 0.2
    return 0.4 if kernel in WITH_MOMENTUM else 0.1


def assert_mean(draws, expected, num_errors=4.0):
    """Mean of independent draws ``[draw, ...]``, by their own standard error."""
    error = np.std(draws, axis=0, ddof=1) / np.sqrt(len(draws))
    assert np.all(np.abs(np.mean(draws, axis=0) - expected) < num_errors * error)


# run_inference_algorithm


@pytest.mark.parametrize("kernel", ADJUSTED + OVERDAMPED + KINETIC + POLYNOMIAL, ids=repr)
def test_run_inference_algorithm(kernel):
    algorithm = kernel(logdensity, step_size_of(kernel), inverse_mass_matrix=SCALES**2)
    num_steps = 10_000
    run = functools.partial(
        run_inference_algorithm,
        inference_algorithm=algorithm,
        num_steps=num_steps,
        initial_position=START,
    )
    final, (states, infos) = jit(run)(KEY)
    draws = np.asarray(states.position["x"])
    assert draws.shape == (num_steps, 2)
    np.testing.assert_array_equal(states.step, np.arange(1, num_steps + 1))
    np.testing.assert_array_equal(final.position["x"], draws[-1])
    assert np.all(np.isfinite(draws))
    assert not np.any(infos.is_divergent)
    assert (infos.acceptance_rate is not None) == (kernel in ADJUSTED)
    if kernel in POLYNOMIAL:
        return
    # The start is at most two standard deviations away, which 100 steps forget. In the frame of
    # the matrix a coordinate is a normal: an overdamped step of 0.1 keeps 0.9 of it, so that
    # 10,000 draws are worth 500 for the mean and 1000 for the variance, whose relative standard
    # error is then sqrt(2 / 1000) = 0.045. Biases, which other tests measure, are below 0.15; the
    # tamed kicks of a longer step are weaker.
    white = (draws[100:] - 1.0) / SCALES
    assert np.all(np.abs(np.mean(white, axis=0)) < 4 / np.sqrt(500))
    bias = 0.4 if kernel is lp.tbaoab else 0.15
    assert np.all(np.abs(np.log(np.var(white, axis=0))) < 4 * 0.045 + bias)


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


def test_a_jitted_run_is_traced_once():
    traces = []

    def counted(position):
        traces.append(None)
        return logdensity(position)

    algorithm = lp.baoab(counted, step_size=0.3)
    state = algorithm.init(START)

    def run(key, state):
        return run_inference_algorithm(key, algorithm, num_steps=3, initial_state=state)[0]

    def count(function, *args):
        before = len(traces)
        return function(*args), len(traces) - before

    # The trap that docs/blackjax.md names.
    assert count(run, KEY, state)[1] > 0
    assert count(run, KEY, state)[1] > 0
    jitted = jit(run)
    final, first = count(jitted, KEY, state)
    assert first > 0
    # A run goes on from its last state, which has the types of the first.
    assert count(jitted, jax.random.key(4), final)[1] == 0


def test_thin_algorithm():
    algorithm = lp.baoab(logdensity, step_size=0.1)
    thinned = thin_algorithm(
        algorithm, thinning=3, info_transform=lambda info: jax.tree.map(jnp.mean, info)
    )
    state = algorithm.init(START)
    final, (states, infos) = run_inference_algorithm(KEY, thinned, num_steps=4, initial_state=state)
    np.testing.assert_array_equal(states.step, [3, 6, 9, 12])
    assert infos.grad_norm.shape == (4,)
    step = jax.jit(algorithm.step)
    for key in jax.random.split(jax.random.split(KEY, 4)[0], 3):
        state, _ = step(key, state)
    np.testing.assert_allclose(states.position["x"][0], state.position["x"], rtol=1e-4, atol=1e-5)


def test_store_only_expectation_values():
    algorithm = lp.ubu(logdensity, step_size=0.1)
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


@pytest.mark.parametrize("kernel", [lp.mala, lp.baoab], ids=repr)
def test_parallel_tempering(kernel):
    """Chains that begin in one of two wells end in both, across a barrier of 32 nats."""

    def wells(x):
        return jnp.logaddexp(-8.0 * (x[0] - 2) ** 2, -8.0 * (x[0] + 2) ** 2)

    number, num_steps, ladder = 200, 500, [1, 4, 16, 64]
    # In units of the well's standard deviation, 0.25.
    step_size = 0.3 * 0.25 if kernel in WITH_MOMENTUM else 0.5 * 0.25**2

    @jit
    @jax.vmap
    def run(key):
        return run_inference_algorithm(
            key,
            lp.parallel_tempering(kernel, ladder)(wells, step_size=step_size),
            num_steps=num_steps,
            initial_position=jnp.full(1, 2.0),
            transform=lambda state, info: info.swap_rate,
        )

    state, rates = run(jax.random.split(KEY, number))
    # The replica at temperature 1 is the state, and neighbours take turns.
    np.testing.assert_array_equal(state.position, state.replicas.position[:, 0])
    assert state.replicas.position.shape == (number, 4, 1)
    turns = np.tile([[True, False, True], [False, True, False]], (num_steps // 2, 1))
    np.testing.assert_array_equal(np.isfinite(rates), np.broadcast_to(turns, rates.shape))
    x = np.asarray(state.position)[:, 0]
    assert_mean(x > 0, 0.5)
    assert_mean(np.abs(x), 2.0)
    # The relative standard error of a variance is sqrt(2 / number).
    assert abs(np.var(np.abs(x)) / 0.25**2 - 1) < 4 * np.sqrt(2 / number)


# Adaptation


@pytest.mark.parametrize(
    ("kernel", "diagonal"),
    [
        (lp.mala, True),
        (lp.ghmc, False),
        (lp.split_ghmc, True),
        (lp.parallel_tempering(lp.mala, [1, 2]), True),
    ],
    ids=str,
)
def test_window_adaptation(kernel, diagonal):
    """Every chain adapts by itself, as docs/blackjax.md recommends."""
    target, number = kernel.target_acceptance_rate, 8
    adaptation = blackjax.window_adaptation(
        kernel, logdensity, is_mass_matrix_diagonal=diagonal, target_acceptance_rate=target
    )

    @jit
    @jax.vmap
    def adapt_and_run(key, position):
        key_warmup, key_run = jax.random.split(key)
        (state, parameters), _ = adaptation.run(key_warmup, position, num_steps=400)
        _, rates = run_inference_algorithm(
            key_run,
            kernel(logdensity, **parameters),
            num_steps=1000,
            initial_state=state,
            transform=lambda state, info: info.acceptance_rate,
        )
        return parameters, jnp.mean(rates)

    starts = {"x": 2.0 * jax.random.normal(KEY, (number, 2))}
    parameters, rates = adapt_and_run(jax.random.split(KEY, number), starts)
    assert set(parameters) >= {"step_size", "inverse_mass_matrix"}

    # The variances are 0.25 and 4: estimated from about 250 correlated draws, within a factor of
    # three of their ratio of 16.
    matrix = np.asarray(parameters["inverse_mass_matrix"])
    variances = matrix if diagonal else np.diagonal(matrix, axis1=1, axis2=2)
    ratios = variances[:, 1] / variances[:, 0]
    assert np.all((16 / 3 < ratios) & (ratios < 16 * 3))
    # Dual averaging itself ends within about 0.1 of its aim.
    assert np.all(np.abs(rates - target) < 0.2)


@pytest.mark.parametrize("kernel", [lp.leimkuhler_matthews, lp.obabo], ids=repr)
def test_window_adaptation_of_the_tuner_of_an_unadjusted_kernel(kernel):
    tuner = kernel.tuner
    assert tuner.target_acceptance_rate is not None and kernel.target_acceptance_rate is None
    adaptation = blackjax.window_adaptation(
        tuner, logdensity, target_acceptance_rate=tuner.target_acceptance_rate
    )
    (state, parameters), _ = jit(adaptation.run, static_argnums=2)(KEY, START, 400)
    tuned = kernel.tuner_share * parameters["step_size"]
    parameters["step_size"] = jnp.minimum(tuned, kernel.max_step_size)
    algorithm = kernel(logdensity, **parameters)
    state = kernel.adopt(state)
    assert type(state) is type(algorithm.init(START))
    run = functools.partial(
        run_inference_algorithm,
        inference_algorithm=algorithm,
        num_steps=10_000,
        initial_state=state,
        transform=lambda state, info: state.position["x"],
    )
    _, draws = jit(run)(KEY)
    # As in `test_run_inference_algorithm`, with a step size up to three times smaller.
    assert np.all(np.abs(np.mean(draws, axis=0) - 1.0) < 4 * SCALES / np.sqrt(500 / 3))
    assert np.all(np.abs(np.log(np.var(draws, axis=0) / SCALES**2)) < 4 * np.sqrt(2 * 3 / 1000))


# Pathfinder


@pytest.fixture(scope="module")
def pathfinder():
    """400 starting positions and a metric."""
    key_fit, key_draw = jax.random.split(KEY)

    @jit
    def fit_and_draw():
        fit, _ = blackjax.pathfinder.approximate(key_fit, logdensity, START)
        starts, _ = blackjax.pathfinder.sample(key_draw, fit, 400)
        return starts, lbfgs_inverse_hessian_formula_1(fit.alpha, fit.beta, fit.gamma)

    return fit_and_draw()


@pytest.mark.parametrize("kernel", [lp.mala, lp.baoab], ids=repr)
def test_pathfinder(kernel, pathfinder):
    """Draws of Pathfinder are starts, and its inverse Hessian is a metric."""
    starts, metric = pathfinder
    number = len(starts["x"])
    algorithm = kernel(logdensity, step_size_of(kernel), inverse_mass_matrix=metric)

    @jit
    @jax.vmap
    def run(key, position):
        return run_inference_algorithm(
            key,
            algorithm,
            num_steps=100,
            initial_state=algorithm.init(position),
            transform=lambda state, info: info.is_divergent,
        )

    state, divergent = run(jax.random.split(KEY, number), starts)
    assert not np.any(divergent)
    draws = np.asarray(state.position["x"])
    assert_mean(draws, 1.0)
    error = np.sqrt(2 / number)
    assert np.all(np.abs(np.var(draws, axis=0) / SCALES**2 - 1) < 4 * error)


def test_pathfinder_adaptation():
    adaptation = blackjax.pathfinder_adaptation(
        lp.mala, logdensity, target_acceptance_rate=lp.mala.target_acceptance_rate
    )

    @jit
    def adapt_and_run(key):
        key_warmup, key_run = jax.random.split(key)
        (state, parameters), _ = adaptation.run(key_warmup, START, num_steps=400)
        _, rates = run_inference_algorithm(
            key_run,
            lp.mala(logdensity, **parameters),
            num_steps=1000,
            initial_state=state,
            transform=lambda state, info: info.acceptance_rate,
        )
        return jnp.mean(rates)

    # Dual averaging itself ends within about 0.1 of its aim.
    assert abs(adapt_and_run(KEY) - lp.mala.target_acceptance_rate) < 0.2


# Tempered SMC


@pytest.mark.parametrize(
    ("kernel", "num_mcmc_steps", "step_size"),
    [
        (lp.ghmc, 1, 0.5),
        (lp.obabo, 1, 0.5),
        (OABAO, 1, 0.5),
        (lp.baoab, 10, 0.2),
        (lp.ubu, 10, 0.2),
        (lp.klmc, 10, 0.2),
        (lp.baoab, 1, 0.5),
        (lp.ubu, 1, 0.5),
        (lp.klmc, 1, 0.1),
    ],
    ids=str,
)
def test_every_stage_of_smc_draws_momenta_anew(kernel, num_mcmc_steps, step_size):
    """Stages at one temperature leave its law as it is, though each begins at rest."""
    shape, num_stages = (2000, 4), 20
    update, _ = update_and_take_last(
        kernel.init,
        lambda x: -0.5 * jnp.sum(x**2),
        functools.partial(kernel.build_kernel(), step_size=step_size),
        num_mcmc_steps=num_mcmc_steps,
        n_particles=shape[0],
    )

    @jit
    def run(key, particles):
        def stage(particles, key):
            return update(jax.random.split(key, shape[0]), particles, {})[0], None

        return jax.lax.scan(stage, particles, jax.random.split(key, num_stages))[0]

    key_start, key_run = jax.random.split(KEY)
    particles = np.asarray(run(key_run, jax.random.normal(key_start, shape))).ravel()
    assert_mean(particles, 0.0)
    # Biases of these steps are at most 0.07, by the affine maps of the kernels. Particles that
    # began to move at rest would end with variances of 0.3 to 0.5.
    assert abs(np.var(particles) - 1.0) < 4 * np.sqrt(2 / particles.size) + 0.07


@pytest.mark.parametrize(
    "kernel",
    [
        lp.mala,
        lp.leimkuhler_matthews,
        lp.irreversible,
        lp.split_ghmc,
        lp.baoab,
        lp.ubu,
        lp.klmc,
        OABAO,
    ],
    ids=repr,
)
def test_adaptive_tempered_smc(kernel):
    # Prior N(0, 3^2 I); a likelihood N(mean, covariance) with correlation.
    mean = np.array([2.0, -1.0])
    covariance = np.array([[0.5, 0.3], [0.3, 0.8]])
    precision = np.linalg.inv(covariance)
    posterior = np.linalg.inv(precision + np.eye(2) / 9)

    def loglikelihood(x):
        return -0.5 * (x - mean) @ precision.astype(np.float32) @ (x - mean)

    number = 1000
    step_size = 0.5 if kernel is lp.split_ghmc else step_size_of(kernel) / 2
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
    # A Python number would compile the first step apart.
    state = state._replace(tempering_param=np.float32(state.tempering_param))
    step = jit(sampler.step)
    for key in jax.random.split(key_run, 20):
        state, info = step(key, state)
        assert not np.any(info.update_info.is_divergent)
        if state.tempering_param >= 1.0:
            break
    assert state.tempering_param == 1.0
    # The 1000 particles descend from about 350 of the prior, which count as about 220 of equal
    # weight; 200 independent draws would have this standard error.
    weights = np.asarray(state.weights, np.float64)
    estimate = weights @ np.asarray(state.particles) / weights.sum()
    error = np.sqrt(np.diag(posterior) / 200)
    assert np.all(np.abs(estimate - posterior @ precision @ mean) < 4 * error)


# What docs/blackjax.md says


class Row(NamedTuple):
    """A row of the table of algorithms."""

    adaptation: str
    required: frozenset[str]
    exact: str


def listed():
    """Pairs of a name and its row, in the order of the page."""
    _, *rest = PAGE.partition(
        "| algorithm | adaptation | required | `exact` |\n|---|---|---|---|\n"
    )
    lines = rest[-1].partition("\n\n")[0].splitlines()
    for line in lines:
        names, adaptation, required, exact = line.removeprefix("|").removesuffix("|").split("|")
        row = Row(
            adaptation.strip().strip("`"),
            frozenset(re.findall(r"`(\w+)`", required)),
            exact.strip(),
        )
        for name in re.findall(r"`(\w+)`", names):
            yield name, row


TABLE = dict(listed())
ONES = jnp.ones(2)
VALUES = {
    "L": 1.0,
    "alpha": 0.5,
    "delta": 0.1,
    "initial_step_size": 0.3,
    "inverse_mass_matrix": ONES,
    "mass_matrix": ONES,
    "momentum_inverse_scale": ONES,
    "num_integration_steps": 3,
    "proposal_distribution": lambda key: jax.random.normal(key, (2,)),
    "proposal_logdensity_fn": lambda state, other: -0.5 * jnp.sum(other.position**2),
    "proposal_generator": lambda key, x: x + jax.random.normal(key, (2,)),
    "random_step": lambda key, x: jax.random.normal(key, (2,)),
    "step_size": 0.3,
}


def test_the_table_names_every_algorithm_once():
    algorithms = [
        name for name, value in vars(blackjax).items() if hasattr(value, "differentiable")
    ]
    assert len(algorithms) > 40
    assert Counter(name for name, _ in listed()) == Counter(algorithms)


@pytest.mark.parametrize("name", TABLE)
def test_sample_does_what_the_table_says(name):
    row, kernel = TABLE[name], getattr(blackjax, name)
    target = lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))
    if row.adaptation == "refused":
        with pytest.raises(TypeError, match="^kernel: "):
            lp.sample(KEY, target, kernel)
        return
    known = traits(kernel)
    assert row.adaptation == (known.adaptation or "none")
    assert row.exact == str(int(known.exact))
    defaults = parameters_of(kernel).items()
    needed = {n for n, v in defaults if v is inspect.Parameter.empty} | set(known.required)
    assert needed - known.tunes <= row.required
    for missing in needed - known.tunes:
        given = {n: VALUES[n] for n in row.required - {missing}}
        with pytest.raises(TypeError, match=f"blackjax.* needs {missing}:"):
            lp.sample(KEY, target, kernel, **given)
    # With them it takes what `sample` hands it: a flat position and a key, or keys and states.
    given = {n: VALUES[n] for n in row.required | known.tunes if n in parameters_of(kernel)}
    algorithm = kernel(target.logdensity_fn, **given)
    state = jax.eval_shape(algorithm.init, ONES, KEY)
    new, info = jax.eval_shape(algorithm.step, KEY, state)
    assert new.position.shape == (2,)
    assert {"lp", "diverging"} <= set(jax.eval_shape(statistics, new, info))

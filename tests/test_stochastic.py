"""Kernels made for stochastic gradients: what the noise of a gradient does to their laws.

On a Gaussian a step is an affine map of position, gradient and momentum, noise of the gradient
included, and its stationary covariance solves a discrete Lyapunov equation. So it is for a
thermostat in many dimensions, which then stands still where it balances on average. Maps are read
off the kernels' own ``transition``, in float64. What is left takes many independent coordinates.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.util import run_inference_algorithm
from scipy.integrate import quad
from scipy.linalg import solve_discrete_lyapunov
from scipy.optimize import brentq

import langevin_ppl as lp
from langevin_ppl.base import Estimate, GradientEstimator, Randomness
from langevin_ppl.gradients import as_estimator
from langevin_ppl.integrators import ornstein_uhlenbeck
from langevin_ppl.preconditioners import preconditioner

KEY = jax.random.key(7)
COVARIANCE = np.array([[1.5, 0.4, -0.2], [0.4, 0.8, 0.3], [-0.2, 0.3, 0.6]])
UNIT = np.eye(1)
THERMOSTATS = (lp.sgnht, lp.badodab)
KERNELS = (lp.sgld, lp.tsgld, lp.psgld, lp.sghmc, *THERMOSTATS)
MATRIX = np.array([[1.1, 0.3, -0.2], [0.3, 0.5, 0.1], [-0.2, 0.1, 0.9]])


def gaussian(precision):
    return lambda x: -0.5 * x @ precision @ x


def noisy(logdensity_fn, variance, dimension):
    """Gradient with normal noise, whose normals are the batch."""
    exact = as_estimator(logdensity_fn)

    def estimate(batch, position, memory):
        value, gradient = exact.estimate((), position, memory)[0]
        return Estimate(value, gradient + jnp.sqrt(variance) * batch), memory

    return GradientEstimator(
        init=lambda position: (),
        draw=lambda rng_key, step: jax.random.normal(rng_key, (dimension,)),
        estimate=estimate,
        exact=False,
    )


# Laws without Monte Carlo

STIFF = 1e9
"""A thermostat of this mass stands still."""


@functools.cache
def affine_map(kernel, dimension):
    """What a step is on a Gaussian, with noise of the gradient and a thermostat that stands still.

    Returns drift and diffusion of position, gradient and momentum together, and how fast the
    thermostat would rise: a constant, and its second derivatives in all that the step reads.
    """
    fields = ["position", "logdensity_grad"]
    fields += ["momentum"] if kernel in (lp.sghmc, *THERMOSTATS) else []
    size = len(fields) * dimension

    @jax.jit
    def pieces(precision, variance, thermostat, parameters):
        if kernel in THERMOSTATS:
            parameters = {**parameters, "thermostat_mass": STIFF}
        start = kernel.init(jnp.zeros(dimension), gaussian(precision))
        start = start._replace(step=jnp.asarray(1, jnp.int32))
        estimator = noisy(gaussian(precision), variance, dimension)

        def step(read):
            parts = read.reshape(-1, dimension)
            state = start._replace(**dict(zip(fields, parts[:-2], strict=True)))
            if kernel in THERMOSTATS:
                state = state._replace(thermostat=thermostat)
            randomness = Randomness(parts[-2], parts[-1])
            new, _ = kernel.transition(randomness, state, estimator, **parameters)
            rise = STIFF * (new.thermostat - thermostat) if kernel in THERMOSTATS else 0.0
            return jnp.concatenate([getattr(new, name) for name in fields]), rise

        still = jnp.zeros(size + 2 * dimension)
        whole = jax.jacobian(lambda read: step(read)[0])(still)
        curvature = jax.hessian(lambda read: jnp.asarray(step(read)[1], still.dtype))(still)
        return whole[:, :size], whole[:, size:], step(still)[1], curvature

    return pieces


def affine_law(kernel, covariance, variance=0.0, thermostat=0.0, **parameters):
    """Stationary covariance on ``N(0, covariance)``, and the rise of a thermostat under it."""
    dimension = len(covariance)
    with jax.enable_x64(True):
        arguments = (np.linalg.inv(covariance), np.float64(variance), np.float64(thermostat))
        pieces = affine_map(kernel, dimension)(*arguments, parameters)
        drift, diffusion, rise, curvature = map(np.array, pieces)
    assert np.max(np.abs(np.linalg.eigvals(drift))) < 1
    law = solve_discrete_lyapunov(drift, diffusion @ diffusion.T)
    read = np.eye(len(curvature))
    read[: len(law), : len(law)] = law
    return law, rise + 0.5 * np.trace(curvature @ read)


def balanced_law(kernel, variance, **parameters):
    """Law of a coordinate, of many, on ``N(0, I)``, and where the thermostat stands.

    Its fluctuations are of the order of one over the root of the dimension.
    """

    def rise(thermostat):
        return affine_law(kernel, UNIT, variance, thermostat, **parameters)[1]

    most = 0.5 + 2 * parameters["step_size"] * variance
    thermostat = brentq(rise, -0.5, most, xtol=1e-10)
    return affine_law(kernel, UNIT, variance, thermostat, **parameters)[0], thermostat


@pytest.mark.parametrize("variance", [0.0, 5.0])
@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_variance_of_sgld(scale, variance):
    h, temperature = 0.3, 1.7
    law, _ = affine_law(lp.sgld, scale * UNIT, variance, step_size=h, temperature=temperature)
    expected = scale * (temperature + h * variance / 2) / (1 - h / (2 * scale))
    np.testing.assert_allclose(law[0, 0], expected, rtol=1e-10)


@pytest.mark.parametrize("friction", [0.5, 2.0])
@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_variance_of_sghmc(scale, friction):
    h = 0.3
    law, _ = affine_law(lp.sghmc, scale * UNIT, step_size=h, friction=friction, temperature=1.7)
    expected = 1.7 * scale / (1 - h**2 / ((4 - 2 * friction * h) * scale))
    np.testing.assert_allclose(law[0, 0], expected, rtol=1e-10)


def test_sghmc_takes_off_the_noise_that_it_is_told():
    h, friction, temperature, variance = 0.1, 1.5, 1.7, 6.0
    setting = dict(step_size=h, friction=friction, temperature=temperature)
    exact, _ = affine_law(lp.sghmc, COVARIANCE, **setting)
    noise = h * variance / 2
    # As published, the noise of the gradient is heat.
    hot, _ = affine_law(lp.sghmc, COVARIANCE, variance, **setting)
    share = 1 + noise / (friction * temperature)
    assert share > 1.1
    # The gradient of the state has noise of its own.
    positions, momenta = np.s_[:3, :3], np.s_[6:, 6:]
    for block in (positions, momenta):
        np.testing.assert_allclose(hot[block], share * exact[block], rtol=1e-9)
    told, _ = affine_law(
        lp.sghmc, COVARIANCE, variance, noise_estimate=noise / temperature, **setting
    )
    for block in (positions, momenta):
        np.testing.assert_allclose(told[block], exact[block], rtol=1e-9)


def test_orders_on_a_gaussian():
    """Of positions and momenta together; sghmc's positions alone are better here."""
    exact = np.block([[COVARIANCE, np.zeros((3, 3))], [np.zeros((3, 3)), np.eye(3)]])
    rows = {lp.sgld: [0, 1, 2], lp.sghmc: [0, 1, 2, 6, 7, 8]}
    for kernel, kept in rows.items():
        errors = [
            np.linalg.norm(
                affine_law(kernel, COVARIANCE, step_size=h)[0][np.ix_(kept, kept)]
                - exact[: len(kept), : len(kept)]
            )
            for h in (0.02, 0.01)
        ]
        assert abs(np.log2(errors[0] / errors[1]) - kernel.order) < 0.06


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_badodab_is_exact_on_gaussians_in_many_dimensions(temperature):
    law, thermostat = balanced_law(lp.badodab, 0.0, step_size=0.5, temperature=temperature)
    np.testing.assert_allclose(law[0, 0], temperature, rtol=1e-6)
    np.testing.assert_allclose(thermostat, 0.0, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("kernel, order", [(lp.sgnht, 1), (lp.badodab, 3)], ids=str)
def test_thermostats_take_off_noise_of_any_size(kernel, order, temperature):
    """Without them, at friction 1, the noise would add ``h S / 2``: 0.2 at the first step size."""
    variance, errors = 4.0, []
    for h in (0.1, 0.05, 0.025):
        law, thermostat = balanced_law(kernel, variance, step_size=h, temperature=temperature)
        errors.append(law[0, 0] - temperature)
        # What `sghmc` would have to be told; and Euler's friction removes too little.
        balance = h * variance / 2 / temperature + (h / 2 if kernel is lp.sgnht else 0.0)
        assert abs(thermostat / balance - 1) < 2 * h
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    # Where a Gaussian has no bias from exact gradients, what noise leaves is of order 3.
    assert abs(orders[1] - order) < 0.13 and abs(orders[1] - order) < abs(orders[0] - order)
    assert abs(errors[0]) < (0.07 if kernel is lp.sgnht else 0.001) * temperature


# Monte Carlo with many coordinates, each a chain of its own but for the thermostat

MANY = 20_000


def normal(x):
    return -0.5 * jnp.sum(x**2)


def wavy(x):
    return -0.5 * jnp.sum(x**2) + 0.4 * jnp.sum(jnp.cos(2 * x))


@functools.cache
def program(kernel, logdensity_fn, is_exact):
    """Mean square over the second half of a run, its standard error, and the last state."""

    @functools.partial(jax.jit, static_argnames="num_steps")
    def run(key, variance, parameters, num_steps):
        key_start, key_init, key_run = jax.random.split(key, 3)
        start = jax.random.normal(key_start, (MANY,))
        estimator = noisy(logdensity_fn, variance, MANY)
        estimator = as_estimator(logdensity_fn) if is_exact else estimator
        state = kernel.init(start, estimator, key_init)
        if kernel is lp.psgld:  # the average over the law, so as not to wait for it
            state = state._replace(second_moment=jnp.ones(MANY) + variance)

        def step(carry, key):
            state, total = carry
            randomness = kernel.draw(key, state, estimator)
            state, _ = kernel.transition(randomness, state, estimator, **parameters)
            late = state.step > num_steps // 2
            return (state, total + jnp.where(late, state.position**2, 0.0)), None

        carry = state, jnp.zeros(MANY)
        (state, total), _ = jax.lax.scan(step, carry, jax.random.split(key_run, num_steps))
        squares = total / (num_steps - num_steps // 2)
        return jnp.mean(squares), jnp.std(squares) / np.sqrt(MANY), state

    return run


def mean_square(kernel, variance=0.0, num_steps=600, logdensity_fn=normal, **parameters):
    run = program(kernel, logdensity_fn, variance == 0)
    mean, error, state = run(KEY, variance, parameters, num_steps)
    return float(mean), float(error), state


@pytest.mark.parametrize(
    "kernel, step_size", [(lp.sgnht, 0.1), (lp.badodab, 0.2), (lp.badodab, 0.4)], ids=str
)
def test_thermostats_with_noise(kernel, step_size):
    variance = 4.0
    mean, error, state = mean_square(kernel, variance, step_size=step_size)
    law, thermostat = balanced_law(kernel, variance, step_size=step_size)
    assert error < 0.004
    assert abs(mean - law[0, 0]) < 4 * error
    if kernel is lp.badodab:
        # The half after the friction ends without what the kick had put on before it.
        thermostat -= step_size / 2 * step_size**2 * variance / 2
    # About its mean the thermostat of mass d has variance 1 / d, and its values some memory.
    assert abs(state.thermostat - thermostat) < 5 / np.sqrt(MANY)


@pytest.mark.parametrize("variance, step_size, num_steps", [(0.0, 0.8, 4000), (4.0, 0.4, 1000)])
def test_half_the_step_leaves_a_quarter_of_the_bias_of_badodab(variance, step_size, num_steps):
    """Or less, in wells whose curvature is between -0.6 and 2.6."""
    density = lambda x: np.exp(wavy(x))  # noqa: E731
    exact = quad(lambda x: x**2 * density(x), -9, 9)[0] / quad(density, -9, 9)[0]
    means, errors, _ = zip(
        *(
            mean_square(lp.badodab, variance, num_steps, wavy, step_size=h)
            for h in (step_size, step_size / 2)
        ),
        strict=True,
    )
    bias = np.abs(np.array(means) - exact)
    assert bias[0] > 10 * errors[0]
    assert bias[1] + 4 * errors[1] < bias[0] / 4


# psgld


@pytest.mark.parametrize("smoothing, step_size", [(0.999, 0.05), (0.99, 0.1), (0.98, 0.1)])
def test_psgld_with_a_long_memory(smoothing, step_size):
    """The bias of the Euler step, and that of the correction left out."""
    mean, error, _ = mean_square(lp.psgld, num_steps=1500, step_size=step_size, smoothing=smoothing)
    bias = step_size / 2 + (1 - smoothing) / (2 * step_size)
    assert error < 0.004
    # What is of second order is at most the square of the first.
    assert abs(mean - 1 - bias) < 4 * error + bias**2


def test_psgld_at_a_fixed_smoothing_and_a_small_step():
    """Its law is near ``p(x) (damping + |x|)``, and not near the target, of variance 1."""
    damping, h = 1.0, 0.01
    density = lambda x: np.exp(-0.5 * x**2) * (damping + x)  # noqa: E731
    limit = quad(lambda x: x**2 * density(x), 0, 12)[0] / quad(density, 0, 12)[0]
    np.testing.assert_allclose(limit, 1.4438, atol=1e-4)
    mean, error, _ = mean_square(
        lp.psgld, num_steps=2000, step_size=h, smoothing=0.8, damping=damping
    )
    assert error < 0.007
    # Of the order of h and of the memory, h / (1 - smoothing) = 0.05.
    assert abs(mean - limit) < 4 * error + 0.02


def test_psgld_with_noise():
    """In ``G`` it is a scale like any other, and as a variance it is that of `sgld`."""
    variance, h = 3.0, 0.1
    mean, error, state = mean_square(
        lp.psgld, variance, num_steps=1500, step_size=h, smoothing=0.999
    )
    # A normal target with unit variance, and noise: the mean square gradient is 4 and G is 1 / 2.
    np.testing.assert_allclose(np.mean(state.second_moment), 1 + variance, rtol=0.05)
    expected = (1 + h / 2 * variance / 2) / (1 - h / 2 / 2)
    assert abs(mean - expected) < 4 * error + 0.01


# One step, written by hand


def one_step(kernel, dimension=3, **parameters):
    """State, noise and position after a step of a chain that has been going on."""
    rng = np.random.default_rng(3)
    estimator = as_estimator(wavy)
    with jax.enable_x64(True):
        state = kernel.init(jnp.array(rng.standard_normal(dimension)), estimator)
        state = state._replace(step=jnp.asarray(1, jnp.int32))
        for name, value in {
            "momentum": jnp.array(rng.standard_normal(dimension)),
            "second_moment": jnp.array(rng.uniform(0.5, 2.0, dimension)),
            "thermostat": jnp.asarray(-2.4),
        }.items():
            if name in state._fields:
                state = state._replace(**{name: value})
        noise = rng.standard_normal(dimension)
        randomness = Randomness(jnp.array(noise), ())
        new, info = kernel.transition(randomness, state, estimator, **parameters)
        gradient = np.array(new.logdensity_grad)
        np.testing.assert_allclose(gradient, jax.grad(wavy)(new.position), rtol=1e-12)
    assert new.step == 2 and not info.is_divergent
    return jax.tree.map(np.array, state), noise, jax.tree.map(np.array, new)


def test_a_step_of_psgld():
    h, temperature, smoothing, damping = 0.2, 1.7, 0.9, 0.3
    setting = dict(step_size=h, temperature=temperature, smoothing=smoothing, damping=damping)
    state, noise, new = one_step(lp.psgld, **setting)
    moment = smoothing * state.second_moment + (1 - smoothing) * state.logdensity_grad**2
    scale = 1 / (damping + np.sqrt(moment))
    moved = state.position + h * scale * state.logdensity_grad
    moved += np.sqrt(2 * h * temperature * scale) * noise
    np.testing.assert_allclose(new.second_moment, moment, rtol=1e-12)
    np.testing.assert_allclose(new.position, moved, rtol=1e-12)


def test_a_step_of_sghmc():
    h, temperature, friction, told = 0.2, 1.7, 1.3, 0.4
    setting = dict(step_size=h, temperature=temperature, friction=friction, noise_estimate=told)
    state, noise, new = one_step(lp.sghmc, **setting)
    p = state.momentum + h * state.logdensity_grad - friction * h * state.momentum
    p += np.sqrt(2 * (friction - told) * h * temperature) * noise
    np.testing.assert_allclose(new.momentum, p, rtol=1e-12)
    np.testing.assert_allclose(new.position, state.position + h * p, rtol=1e-12)


SETTING = dict(step_size=0.2, temperature=1.7, friction=1.3, thermostat_mass=0.7)


def test_a_step_of_sgnht():
    h, temperature, friction, mass = SETTING.values()
    state, noise, new = one_step(lp.sgnht, **SETTING)
    p = state.momentum + h * state.logdensity_grad
    p -= (friction + state.thermostat) * h * state.momentum
    p += np.sqrt(2 * friction * h * temperature) * noise
    thermostat = state.thermostat + h / mass * (p @ p / 3 - temperature)
    np.testing.assert_allclose(new.momentum, p, rtol=1e-12)
    np.testing.assert_allclose(new.position, state.position + h * p, rtol=1e-12)
    np.testing.assert_allclose(new.thermostat, thermostat, rtol=1e-12)


def test_a_step_of_badodab():
    h, temperature, friction, mass = SETTING.values()
    state, noise, new = one_step(lp.badodab, **SETTING)
    p = state.momentum + h / 2 * state.logdensity_grad
    x = state.position + h / 2 * p
    thermostat = state.thermostat + h / 2 / mass * (p @ p / 3 - temperature)
    total = friction + thermostat
    assert total < 0
    heat = friction * temperature * (1 - np.exp(-2 * total * h)) / total
    p = np.exp(-total * h) * p + np.sqrt(heat) * noise
    thermostat += h / 2 / mass * (p @ p / 3 - temperature)
    x += h / 2 * p
    p += h / 2 * new.logdensity_grad
    np.testing.assert_allclose(new.position, x, rtol=1e-12)
    np.testing.assert_allclose(new.momentum, p, rtol=1e-12)
    np.testing.assert_allclose(new.thermostat, thermostat, rtol=1e-12)


@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-6), ("float64", 1e-12)])
def test_friction_of_any_sign(dtype, rtol):
    time, heating, temperature = 0.3, 1.3, 1.7
    with jax.enable_x64(True):
        for friction in (-3.0, -1e-3, -1e-9, -1e-40, 0.0, 1e-40, 1e-9, 1e-3, 3.0):
            arguments = (jnp.asarray(v, dtype) for v in (friction, heating, time, temperature))
            moved = ornstein_uhlenbeck(jnp.ones(1, dtype), jnp.zeros(1, dtype), *arguments)
            np.testing.assert_allclose(moved, np.exp(-friction * time), rtol=rtol)
            arguments = (jnp.asarray(v, dtype) for v in (friction, heating, time, temperature))
            spread = ornstein_uhlenbeck(jnp.zeros(1, dtype), jnp.ones(1, dtype), *arguments)
            integral = quad(lambda s, f=friction: np.exp(-2 * f * s), 0, time)[0]
            expected = np.sqrt(2 * heating * temperature * integral)
            np.testing.assert_allclose(spread, expected, rtol=rtol)


# What every kernel owes, beyond what `test_kernels.py` asks of all of them


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_a_metric_is_a_change_of_coordinates(kernel):
    """Exactly the plain kernel in whitened coordinates, with what the state carries."""

    @jax.jit
    def run(start, matrix, key):
        frame = preconditioner(matrix)

        def end(density, position, inverse_mass_matrix):
            algorithm = kernel(density, 0.1, inverse_mass_matrix, temperature=1.7)
            begun = algorithm.init(position)
            return run_inference_algorithm(key, algorithm, num_steps=3, initial_state=begun)[0]

        white = end(lambda z: wavy(frame.scale(z)), frame.solve(start), preconditioner(1.0))
        return end(wavy, start, frame), white._replace(position=frame.scale(white.position))

    with jax.enable_x64(True):
        plain, white = run(jnp.array([0.5, -1.0, 2.0]), jnp.array(MATRIX), KEY)
    np.testing.assert_allclose(plain.position, white.position, rtol=1e-10)
    for one, other in zip(plain[5:], white[5:], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_the_first_step_of_psgld_is_as_long_as_the_others():
    algorithm = lp.psgld(normal, step_size=1e-4)
    state, _ = algorithm.step(KEY, algorithm.init(jnp.array([5.0, -1e-3])))
    np.testing.assert_allclose(state.second_moment, [25.0, 1e-6], rtol=1e-5)


def test_momenta_are_drawn_in_the_first_step():
    for kernel in (lp.sghmc, *THERMOSTATS):
        algorithm = kernel(lambda x: 0.0 * jnp.sum(x), 1e-3, temperature=4.0, friction=0.1)
        state, _ = algorithm.step(KEY, algorithm.init(jnp.zeros(4000)))
        # The relative standard error is 1 / sqrt(2 * 4000) = 0.011.
        np.testing.assert_allclose(jnp.std(state.momentum), 2.0, rtol=0.045)


def test_a_thermostat_in_few_dimensions():
    """Mean and temperature of two coordinates, of 2000 chains, in a metric."""
    scales = np.array([0.5, 2.0], np.float32)
    algorithm = lp.badodab(
        lambda x: -0.5 * jnp.sum((x / scales) ** 2),
        step_size=0.1,
        inverse_mass_matrix=scales**2,
        temperature=1.7,
    )

    @jax.jit
    @jax.vmap
    def run(key):
        state, _ = run_inference_algorithm(
            key, algorithm, num_steps=400, initial_position=jnp.ones(2)
        )
        return state

    state = run(jax.random.split(KEY, 2000))
    white = np.asarray(state.position) / scales
    # Standard errors of 4000 independent normals; the thermostat's law is N(0, T / mass d).
    assert abs(np.mean(white)) < 4 * np.sqrt(1.7 / 4000)
    assert abs(np.var(white) / 1.7 - 1) < 4 * np.sqrt(2 / 4000)
    assert abs(np.mean(state.thermostat)) < 4 * np.sqrt(1.7 / 2 / 2000)
    assert abs(np.var(state.thermostat) / (1.7 / 2) - 1) < 5 * np.sqrt(2 / 2000)


def test_numbers_that_overflow_are_flagged():
    """The square of a gradient or of a momentum, in single precision."""
    for kernel in (lp.psgld, *THERMOSTATS):
        algorithm = kernel(normal, step_size=0.1)
        state, info = algorithm.step(KEY, algorithm.init(jnp.array([1e22, 0.0])))
        assert info.is_divergent and np.isnan(state.position).all()
        state, info = algorithm.step(KEY, state)
        assert info.is_divergent and np.isnan(state.position).all()


def test_a_chain_goes_on_from_a_tuner_and_back():
    algorithm = lp.ghmc(normal, step_size=0.5)
    tuned, _ = algorithm.step(KEY, algorithm.init(jnp.ones(3)))
    state = lp.badodab.adopt(tuned)
    np.testing.assert_array_equal(state.momentum, tuned.momentum)
    assert state.step == 1 and state.thermostat == 0.0
    moved, _ = lp.badodab(normal, step_size=0.5).step(KEY, state)
    back = lp.ghmc.adopt(moved)
    assert type(back) is type(tuned)
    np.testing.assert_array_equal(back.momentum, moved.momentum)
    same = lp.badodab.adopt(moved)
    assert type(same) is type(moved) and same.thermostat == moved.thermostat
    assert lp.mala.adopt(moved)._fields == lp.mala.adopt(tuned)._fields


@pytest.mark.parametrize(
    "kernel, name, values",
    [
        (lp.psgld, "smoothing", [-0.1, 1.1, np.nan, "long"]),
        (lp.psgld, "damping", [0.0, -1.0, np.inf, None]),
        (lp.sghmc, "friction", [0.0, -1.0]),
        (lp.sghmc, "noise_estimate", [-0.1, 1.1, np.nan, None]),
        (lp.sgnht, "thermostat_mass", [0.0, -1.0, np.inf]),
        (lp.badodab, "thermostat_mass", [0.0, np.nan, [1.0, 2.0]]),
    ],
    ids=str,
)
def test_parameters_that_are_refused(kernel, name, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"{kernel.__name__}.*{name}"):
            kernel(normal, step_size=0.1, **{name: value})
    kernel(normal, step_size=0.1, **{name: 0.5})


@pytest.mark.parametrize("kernel", [lp.psgld, lp.badodab], ids=repr)
def test_in_sample(kernel):
    target = lp.density(lambda x: -0.5 * jnp.sum(x**2 / jnp.array([1.0, 25.0])), jnp.zeros(2))
    idata = lp.sample(jax.random.key(0), target, kernel, num_samples=2000)
    assert idata.attrs["exact"] == 0
    spread = idata["posterior"]["x"].std(("chain", "draw")).values
    np.testing.assert_allclose(spread, [1.0, 5.0], rtol=0.15)
    assert f"step_size^{kernel.order}" in idata.attrs["step_size_rule"]

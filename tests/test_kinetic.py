"""The kinetic family without Monte Carlo: its pieces in closed form, its law by quadrature.

A step draws a part of the momentum anew, and then moves, turns back or stays. The first keeps
``N(0, T)`` in closed form. The second keeps the law of position and momentum if it keeps volume,
is its own inverse up to the momentum's sign and accepts by the energy, all of which is read off
the kernels' ``transition`` in float64, and so is the integral over phase space that follows.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm, solve_discrete_lyapunov

import langevin_ppl as lp
from langevin_ppl.base import Randomness
from langevin_ppl.gradients import as_estimator
from langevin_ppl.integrators import oscillator, refresh
from langevin_ppl.kernels import KineticState
from langevin_ppl.preconditioners import Preconditioner

KEY = jax.random.key(7)
TEMPERATURE = 2.0
ACCEPT, REJECT = (1e9, 1e9), (0.0, 0.0)
"""Normals whose log uniform is minus infinity, and 0, which no acceptance rate below 1 beats."""

every_kernel = pytest.mark.parametrize("kernel", [lp.ghmc, lp.split_ghmc], ids=repr)
FITS = list(itertools.product((0.0, 0.75, 1.0), (0.0, 1.0)))
"""Frequencies and tamings."""


def compiled(kernel, logdensity_fn, step=1):
    """State and info after a step from many states; the parameters are traced."""

    @jax.jit
    def steps(positions, momenta, noises, parameters):
        estimator = as_estimator(logdensity_fn)

        def one(position, momentum, noise):
            state = kernel.init(position, estimator)
            state = state._replace(momentum=momentum, step=jnp.asarray(step, jnp.int32))
            return kernel.transition(Randomness(noise, ()), state, estimator, **parameters)

        return jax.vmap(one)(positions, momenta, noises)

    return steps


def noise_of(rows, normals):
    """No refreshment, and a Metropolis test that is decided."""
    number, dimension = rows.shape
    return jnp.tile(jnp.array([*np.zeros(dimension), *normals]), (number, 1))


# The pieces


@pytest.mark.parametrize("frequency", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("step_size", [1e-3, 0.7, 4.0])
def test_oscillator_is_the_matrix_exponential(step_size, frequency):
    with jax.enable_x64(True):
        position, momentum = np.random.default_rng(0).standard_normal((2, 3))
        flow = expm(step_size * np.array([[0.0, 1.0], [-(frequency**2), 0.0]]))
        moved = jax.jit(oscillator)(jnp.array(position), jnp.array(momentum), step_size, frequency)
        np.testing.assert_allclose(moved, flow @ [position, momentum], rtol=1e-12, atol=1e-14)


def test_oscillator_of_frequency_zero_is_free_flight():
    position, momentum = jnp.array([1.0, -2.0]), jnp.array([0.3, 5.0])
    moved, kept = oscillator(position, momentum, 0.25, 0.0)
    np.testing.assert_array_equal(moved, position + 0.25 * momentum)
    np.testing.assert_array_equal(kept, momentum)


@pytest.mark.parametrize("temperature", [0.3, TEMPERATURE])
@pytest.mark.parametrize("exponent", [1e-6, 1e-3, 0.4, 3.0, 50.0])
def test_refresh_keeps_the_momentum_s_law(exponent, temperature):
    friction, step_size = 0.8, exponent / 0.8

    def parts(fully):
        one, none = jnp.ones(1), jnp.zeros(1)
        arguments = (friction, step_size, temperature, fully)
        return (float(refresh(*pair, *arguments)[0]) for pair in ((one, none), (none, one)))

    kept, drawn = parts(False)
    np.testing.assert_allclose(kept, np.exp(-exponent), rtol=1e-5)
    # Of N(0, T) it makes N(0, T). In float32 the small share that is drawn must not cancel.
    np.testing.assert_allclose(drawn**2, -np.expm1(-2 * exponent) * temperature, rtol=1e-5)
    kept, drawn = parts(True)
    assert kept == 0.0
    np.testing.assert_allclose(drawn**2, temperature, rtol=1e-6)


# One step, in dimension three


SCALES = np.array([0.7, 1.2, 0.9])
VECTORS = np.linalg.qr(np.array([[1.0, 2.0], [0.5, -1.0], [-1.0, 0.3]]))[0]
DENSE = np.array([[1.1, 0.3, -0.2], [0.3, 0.5, 0.1], [-0.2, 0.1, 0.9]])
LOCATION = np.array([0.3, -0.4, 0.1])
STRETCHES = np.array([1.8, 0.6])


def frames():
    """Inverse mass matrices of each form, in the precision of the session."""
    return {
        "scalar": jnp.array(0.7),
        "diagonal": jnp.array([0.4, 0.9, 1.3]),
        "dense": jnp.array(DENSE),
        "low rank": Preconditioner(*map(jnp.array, (SCALES, VECTORS, STRETCHES))),
    }


def quartic(x):
    """Not Gaussian, no two coordinates alike, coupled."""
    x = x * jnp.array([1.0, 0.8, 1.3])[: x.size] - 0.2
    return -0.25 * jnp.sum(x**4) + 0.5 * x[0] * x[-1] + 0.3 * x[0]


def energy(state):
    """Negative logarithm of the law of positions and momenta, at temperature 1."""
    return 0.5 * np.sum(np.square(state.momentum), axis=-1) - np.asarray(state.logdensity)


@pytest.fixture(scope="module")
def quartic_steps():
    return {kernel: compiled(kernel, quartic) for kernel in (lp.ghmc, lp.split_ghmc)}


def settings(kernel, frequency, taming, **others):
    """Parameters of a step that refreshes nothing."""
    fit = dict(location=jnp.array(LOCATION), frequency=frequency, taming=taming)
    return dict(
        step_size=0.6,
        friction=0.0,
        temperature=TEMPERATURE,
        **(fit if kernel is lp.split_ghmc else {}),
        **others,
    )


@pytest.mark.parametrize(
    ("kernel", "matrix", "frequency", "taming"),
    [
        (lp.ghmc, "dense", 0.0, 0.0),
        *(
            (lp.split_ghmc, matrix, *fit)
            for matrix in ("scalar", "diagonal", "dense", "low rank")
            for fit in FITS
        ),
    ],
    ids=str,
)
def test_a_move_is_reversible_keeps_volume_and_is_accepted_by_its_energy(
    quartic_steps, kernel, matrix, frequency, taming
):
    with jax.enable_x64(True):
        parameters = settings(kernel, frequency, taming, inverse_mass_matrix=frames()[matrix])
        positions, momenta = 1.5 * np.random.default_rng(1).standard_normal((2, 40, 3))
        steps, noises = quartic_steps[kernel], noise_of(positions, ACCEPT)
        there, info = steps(positions, momenta, noises, parameters)
        back, _ = steps(there.position, -there.momentum, noises, parameters)
        np.testing.assert_allclose(back.position, positions, rtol=0, atol=1e-9)
        np.testing.assert_allclose(back.momentum, -momenta, rtol=0, atol=1e-9)
        assert np.abs(there.position - positions).min(axis=0).max() > 1e-3

        before = 0.5 * np.sum(momenta**2, axis=1) - jax.vmap(quartic)(positions)
        change = energy(there) - before
        expected = np.exp(-np.maximum(change, 0.0) / TEMPERATURE)
        np.testing.assert_allclose(info.acceptance_rate, expected, rtol=1e-10)
        assert info.acceptance_rate.min() < 0.9

        def move(both):
            state, _ = steps(both[None, :3], both[None, 3:], noises[:1], parameters)
            return jnp.concatenate([state.position[0], state.momentum[0]])

        if (matrix, frequency, taming) == ("low rank", 0.75, 1.0):  # all of it, compiled once
            jacobian = jax.jit(jax.jacfwd(move))(jnp.concatenate([positions[0], momenta[0]]))
            np.testing.assert_allclose(np.linalg.det(jacobian), 1.0, rtol=1e-10)


def test_taming_bounds_the_kicks(quartic_steps):
    """At frequency 0 the first half kick is ``h / 2`` of the tamed gradient of the frame."""
    with jax.enable_x64(True):
        positions = 5.0 * np.random.default_rng(2).standard_normal((4, 3))
        parameters = settings(lp.split_ghmc, 0.0, 1.0, inverse_mass_matrix=jnp.array(DENSE))
        momenta, noises = jnp.zeros((4, 3)), noise_of(positions, ACCEPT)
        new, info = quartic_steps[lp.split_ghmc](positions, momenta, noises, parameters)
        factor, h = np.linalg.cholesky(DENSE), parameters["step_size"]
        pulled = np.asarray(jax.jit(jax.vmap(jax.grad(quartic)))(positions)) @ factor
        length = np.linalg.norm(pulled, axis=1, keepdims=True)
        kick = 0.5 * h * pulled / (1 + h * length)
        np.testing.assert_allclose(new.position, positions + h * kick @ factor.T, rtol=1e-10)
        np.testing.assert_allclose(info.taming_loss, (h * length / (1 + h * length))[:, 0])


def test_an_untamed_step_reports_no_loss():
    algorithm = lp.split_ghmc(quartic, step_size=0.3)
    state = jax.eval_shape(algorithm.init, jnp.ones(3))
    assert jax.eval_shape(algorithm.step, KEY, state)[1].taming_loss is None


@pytest.mark.parametrize(
    ("kernel", "frequency", "taming", "ratio"),
    [
        # Halving the step divides the error by eight: the local error of a second-order scheme.
        (lp.ghmc, 0.0, 0.0, 8.0),
        (lp.split_ghmc, 0.75, 0.0, 8.0),
        # A tamed force is wrong in proportion to the step.
        (lp.split_ghmc, 0.0, 1.0, 4.0),
    ],
)
def test_order_of_the_energy_error_of_a_step(quartic_steps, kernel, frequency, taming, ratio):
    with jax.enable_x64(True):
        positions, momenta = 0.5 * np.random.default_rng(3).standard_normal((2, 40, 3))
        before = 0.5 * np.sum(momenta**2, axis=1) - jax.vmap(quartic)(positions)
        errors = []
        for step_size in (4e-4, 2e-4, 1e-4):
            # In a frame and about a centre that are not the target's.
            parameters = settings(kernel, frequency, taming, inverse_mass_matrix=jnp.array(DENSE))
            parameters["step_size"] = step_size
            noises = noise_of(positions, ACCEPT)
            state, _ = quartic_steps[kernel](positions, momenta, noises, parameters)
            errors.append(np.sqrt(np.mean((energy(state) - before) ** 2)))
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), ratio, rtol=0.03)


# The momentum


@every_kernel
def test_momentum_is_drawn_fully_at_first_and_partly_later(kernel):
    noise, h, friction = np.array([0.4, -1.1, 0.9]), 0.3, 0.7
    parameters = dict(step_size=h, friction=friction, temperature=TEMPERATURE)
    with jax.enable_x64(True):
        position, momentum = jnp.zeros((1, 3)), jnp.array([[3.0, -2.0, 1.0]])
        noises = jnp.array([[*noise, *REJECT]])
        for step, decay in ((0, 0.0), (1, np.exp(-friction * h)), (5, np.exp(-friction * h))):
            # A wall everywhere: the step is rejected, and shows the momentum that it began with.
            wall = compiled(kernel, lambda x: -1e9 * jnp.sum(jnp.abs(x) > 0), step)
            state, info = wall(position, momentum, noises, parameters)
            assert not info.is_accepted[0]
            fresh = decay * momentum[0] + np.sqrt((1 - decay**2) * TEMPERATURE) * noise
            np.testing.assert_allclose(state.momentum[0], -fresh, rtol=1e-12)
            np.testing.assert_array_equal(state.position, position)
            assert state.step[0] == step + 1


@every_kernel
def test_a_chain_that_begins_needs_no_random_number(kernel):
    state = kernel.init({"a": jnp.ones(2), "b": jnp.zeros(())}, lambda x: -jnp.sum(x["a"] ** 2))
    assert isinstance(state, KineticState)
    assert state.step == 0
    np.testing.assert_array_equal(state.momentum, np.zeros(3))
    # Whatever stands there, the first step does not read it.
    algorithm = kernel(lambda x: -jnp.sum(x["a"] ** 2) - x["b"] ** 2, step_size=0.3)
    other = state._replace(momentum=jnp.full(3, 7.0))
    for one, two in zip(
        jax.tree.leaves(algorithm.step(KEY, state)),
        jax.tree.leaves(algorithm.step(KEY, other)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)


def test_ghmc_is_split_ghmc_around_nothing():
    common = dict(step_size=0.5, inverse_mass_matrix=DENSE, friction=0.4, temperature=1.3)
    plain = lp.ghmc(quartic, **common)
    split = lp.split_ghmc(quartic, **common, frequency=0.0)
    state, other = plain.init(jnp.ones(3)), split.init(jnp.ones(3))
    accepted = []
    for key in jax.random.split(KEY, 12):
        state, info = jax.jit(plain.step)(key, state)
        other, other_info = jax.jit(split.step)(key, other)
        for name in ("position", "momentum", "logdensity"):
            np.testing.assert_allclose(
                getattr(state, name), getattr(other, name), rtol=2e-5, atol=2e-5
            )
        np.testing.assert_allclose(info.acceptance_rate, other_info.acceptance_rate, rtol=1e-4)
        accepted.append(bool(info.is_accepted))
    assert len(set(accepted)) == 2


# The fitted Gaussian


def gaussian_of(covariance):
    precision = np.linalg.inv(covariance)
    return lambda x: -0.5 * (x - LOCATION) @ precision @ (x - LOCATION)


@pytest.mark.parametrize("temperature", [1.0, TEMPERATURE])
def test_the_fitted_gaussian_is_sampled_exactly_at_any_step_size(temperature):
    with jax.enable_x64(True):
        steps = compiled(lp.split_ghmc, gaussian_of(DENSE))
        positions, momenta = 3.0 * np.random.default_rng(4).standard_normal((2, 20, 3))
        noises = np.random.default_rng(5).standard_normal((20, 5))
        for step_size in (0.01, 0.5, np.pi / 2, 3.0, 10.0):
            parameters = dict(
                step_size=step_size,
                inverse_mass_matrix=jnp.array(DENSE),
                location=jnp.array(LOCATION),
                temperature=temperature,
            )
            _, info = steps(positions, momenta, noises, parameters)
            np.testing.assert_allclose(info.acceptance_rate, 1.0, rtol=0, atol=1e-11)


@pytest.mark.parametrize("step_size", [0.4, 1.0, 1.5])
@pytest.mark.parametrize("friction", [0.3, 0.8])
def test_law_and_autocorrelation_on_the_fitted_gaussian(friction, step_size):
    """Positions and momenta move by an affine map, whose powers give every correlation."""
    with jax.enable_x64(True):
        steps = compiled(lp.split_ghmc, gaussian_of(DENSE))
        factor = np.linalg.cholesky(DENSE)
        parameters = dict(
            step_size=step_size,
            friction=friction,
            temperature=TEMPERATURE,
            inverse_mass_matrix=jnp.array(DENSE),
            location=jnp.array(LOCATION),
        )

        def moved(z, momenta, noises):
            rows = jnp.concatenate([noises, jnp.full((len(noises), 2), 1e9)], axis=1)
            state, _ = steps(LOCATION + z @ factor.T, momenta, rows, parameters)
            white = np.linalg.solve(factor, (state.position - LOCATION).T).T
            return np.concatenate([white, state.momentum], axis=1).T

        identity, zero = np.eye(3), np.zeros((3, 3))
        drift = np.concatenate([moved(identity, zero, zero), moved(zero, identity, zero)], axis=1)
        diffusion = moved(zero, zero, identity)
    law = solve_discrete_lyapunov(drift, diffusion @ diffusion.T)
    np.testing.assert_allclose(law, TEMPERATURE * np.eye(6), rtol=0, atol=1e-9)
    # The momentum is independent of the place, so that one step correlates by the turn alone;
    # over two, what is left of the momentum turns on.
    first = np.cos(step_size)
    second = np.cos(step_size) ** 2 - np.exp(-friction * step_size) * np.sin(step_size) ** 2
    np.testing.assert_allclose(drift[:3, :3], first * np.eye(3), atol=1e-12)
    np.testing.assert_allclose((drift @ drift)[:3, :3], second * np.eye(3), atol=1e-12)


# The stationary law, by quadrature over phase space


def assert_invariant(steps, axes, parameters, logdensity_fn, tolerance):
    """Means of functions of position and momentum are what they were before a step.

    The step refreshes nothing: that it keeps ``N(0, T)`` is known in closed form above. Moves are
    taken with their acceptance rate, and else the momentum changes its sign.
    """
    dimension = len(axes) // 2
    mesh = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    positions, momenta = mesh[:, :dimension], mesh[:, dimension:]
    logdensity = np.asarray(jax.vmap(logdensity_fn)(jnp.array(positions)))
    weight = np.exp((logdensity - 0.5 * np.sum(momenta**2, axis=1)) / TEMPERATURE)
    weight /= weight.sum()
    new, info = steps(positions, momenta, noise_of(positions, ACCEPT), parameters)
    rate = np.asarray(info.acceptance_rate)

    def functions(x, p):
        x, p = np.asarray(x), np.asarray(p)
        squares = [x[:, 0] ** 2, x[:, -1] ** 2, p[:, 0] ** 2, x[:, 0] * x[:, -1]]
        mixed = [x[:, 0], x[:, 0] ** 3, x[:, 0] * p[:, -1], x[:, -1] ** 2 * p[:, 0]]
        return np.stack([*squares, *mixed, np.cos(2 * x[:, 0]), np.sin(x[:, -1] + p[:, 0])])

    before = functions(positions, momenta) @ weight
    after = functions(new.position, new.momentum) @ (rate * weight)
    after += functions(positions, -momenta) @ ((1 - rate) * weight)
    np.testing.assert_allclose(after, before, rtol=0, atol=tolerance)
    # And the step does something: it moves far, and is at times rejected.
    assert 0.3 < rate @ weight < 0.99
    assert np.sum(np.square(new.position - positions), axis=1) @ (rate * weight) > 0.05


def tilted_well(x):
    x = x[0]
    return -0.25 * x**4 + 0.5 * x**2 + 0.3 * x


@pytest.fixture(scope="module")
def well_steps():
    return {kernel: compiled(kernel, tilted_well) for kernel in (lp.ghmc, lp.split_ghmc)}


@pytest.mark.parametrize(
    ("kernel", "fit"),
    [
        (lp.ghmc, {}),
        *(
            (lp.split_ghmc, {"frequency": frequency, "taming": taming, "location": 0.7})
            for frequency, taming in FITS
        ),
    ],
    ids=str,
)
def test_the_law_in_one_dimension(well_steps, kernel, fit):
    with jax.enable_x64(True):
        axes = [np.linspace(-4.5, 4.5, 301), np.linspace(-10.0, 10.0, 301)]
        parameters = dict(
            step_size=1.1, inverse_mass_matrix=0.6, friction=0.0, temperature=TEMPERATURE, **fit
        )
        # The rate has a kink where the energy does not change, and quadrature its error there.
        assert_invariant(well_steps[kernel], axes, parameters, tilted_well, 2e-4)


@pytest.mark.parametrize("matrix", ["scalar", "diagonal", "dense", "low rank"])
def test_the_law_in_two_dimensions(matrix):
    with jax.enable_x64(True):
        matrices = {
            "scalar": jnp.array(0.7),
            "diagonal": jnp.array([0.4, 0.9]),
            "dense": jnp.array([[0.8, 0.3], [0.3, 0.5]]),
            "low rank": Preconditioner(
                jnp.array([0.7, 0.9]), jnp.array([[0.6], [0.8]]), jnp.array([1.7])
            ),
        }
        axes = [*[np.linspace(-4.5, 4.5, 28)] * 2, *[np.linspace(-7.0, 7.0, 22)] * 2]
        parameters = dict(
            step_size=0.9,
            inverse_mass_matrix=matrices[matrix],
            location=jnp.array([0.5, -0.3]),
            frequency=0.75,
            taming=0.5,
            friction=0.0,
            temperature=TEMPERATURE,
        )
        steps = compiled(lp.split_ghmc, quartic)
        assert_invariant(steps, axes, parameters, quartic, 3e-3)


# Exploding gradients


@pytest.mark.parametrize("taming", [0.0, 1.0])
def test_a_tamed_chain_returns_from_far(taming):
    """Kicks shorter than half of a unit, a step of 0.3: from 40 in some hundreds of steps."""

    def well(x):
        square = jnp.sum(x**2)
        return -0.25 * square**2 + 0.5 * square

    algorithm = lp.split_ghmc(well, step_size=0.3, frequency=0.0, friction=0.5, taming=taming)

    @jax.jit
    def run(states, keys):
        def body(states, key):
            states, _ = jax.vmap(algorithm.step)(jax.random.split(key, 4), states)
            return states, jnp.linalg.norm(states.position, axis=1)

        return jax.lax.scan(body, states, keys)[1]

    angles = jnp.linspace(0.0, 5.0, 4)
    starts = 40.0 * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    radii = np.asarray(run(jax.vmap(algorithm.init)(starts), jax.random.split(KEY, 600)))
    if taming:
        assert np.all(radii[-100:] < 4.0)
    else:
        np.testing.assert_allclose(radii, 40.0, rtol=1e-5)

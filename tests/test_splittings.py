"""Kinetic splittings and their relatives: laws on Gaussians without Monte Carlo, and orders.

On a Gaussian every scheme is an affine map of its whole state, momentum or old noise included,
whose stationary covariance solves a discrete Lyapunov equation. The maps are read off the
kernels' own ``transition``, in float64.
"""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.linalg import expm, solve_discrete_lyapunov

import langevin_ppl as lp
from langevin_ppl.base import Randomness
from langevin_ppl.gradients import as_estimator
from langevin_ppl.integrators import Flight
from langevin_ppl.preconditioners import Preconditioner, preconditioner

COVARIANCE = np.array([[1.5, 0.4, -0.2], [0.4, 0.8, 0.3], [-0.2, 0.3, 0.6]])
MATRICES = {
    "scalar": np.array(0.7),
    "diagonal": np.array([0.4, 0.9, 1.3]),
    "dense": np.array([[1.1, 0.3, -0.2], [0.3, 0.5, 0.1], [-0.2, 0.1, 0.9]]),
    "low rank": Preconditioner(
        np.array([0.7, 1.1, 0.9]), np.array([[0.6], [0.8], [0.0]]), np.array([1.6])
    ),
}
SCHEMES = ("BAOAB", "OBABO", "ABOBA", "OABAO", "AOBOA", "BOAOB", "UBU", "BUB", "BAO", "OBA", "BU")
PALINDROMES = [scheme for scheme in SCHEMES if scheme == scheme[::-1]]


def affine_law(kernel, covariance, num_noises, **parameters):
    """Stationary covariance of the positions on ``N(0, covariance)``."""
    d = len(covariance)
    with jax.enable_x64(True):
        precision = jnp.array(np.linalg.inv(covariance))
        estimator = as_estimator(lambda x: -0.5 * x @ precision @ x)

        def move(both, noise):
            position, other = both[:d], both[d:]
            state = kernel.init(position, estimator)._replace(step=jnp.asarray(1))
            last = state._fields[-1]
            new, _ = kernel.transition(
                Randomness(noise, ()), state._replace(**{last: other}), estimator, **parameters
            )
            return jnp.concatenate([new.position, getattr(new, last)])

        zero, noise = jnp.zeros(2 * d), jnp.zeros(num_noises * d)
        drift = np.array(jax.jacobian(move)(zero, noise))
        diffusion = np.array(jax.jacobian(move, argnums=1)(zero, noise))
        both, noise = np.random.default_rng(0).standard_normal((2, (2 + num_noises) * d))
        both, noise = both[: 2 * d], noise[: num_noises * d]
        np.testing.assert_allclose(move(both, noise), drift @ both + diffusion @ noise, atol=1e-12)
        np.testing.assert_allclose(move(zero, jnp.zeros(num_noises * d)), 0.0, atol=1e-14)
    assert np.max(np.abs(np.linalg.eigvals(drift))) < 1
    return solve_discrete_lyapunov(drift, diffusion @ diffusion.T)[:d, :d]


def noises(scheme):
    return scheme.count("O") + 2 * scheme.count("U")


@pytest.mark.parametrize("friction", [0.3, 2.0])
@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_baoab_is_exact_on_gaussians(matrix, friction):
    with jax.enable_x64(True):
        law = affine_law(
            lp.baoab,
            COVARIANCE,
            1,
            step_size=0.5,
            inverse_mass_matrix=jax.tree.map(jnp.array, matrix),
            friction=friction,
            temperature=1.7,
        )
    np.testing.assert_allclose(law, 1.7 * COVARIANCE, rtol=1e-10)


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_leimkuhler_matthews_is_exact_on_gaussians(matrix):
    with jax.enable_x64(True):
        law = affine_law(
            lp.leimkuhler_matthews,
            COVARIANCE,
            1,
            step_size=0.3,
            inverse_mass_matrix=jax.tree.map(jnp.array, matrix),
            temperature=1.7,
        )
    np.testing.assert_allclose(law, 1.7 * COVARIANCE, rtol=1e-10)


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
@pytest.mark.parametrize(
    "kernel, num_noises",
    [(lp.obabo, 2), (lp.ubu, 4), (lp.klmc, 2), (lp.leimkuhler_matthews, 1)],
    ids=repr,
)
def test_a_metric_is_a_change_of_coordinates(kernel, num_noises, matrix):
    with jax.enable_x64(True):
        metric = jax.tree.map(jnp.array, matrix)
        root = np.array(jax.vmap(preconditioner(metric, 3).scale, out_axes=1)(jnp.eye(3)))
        whitening = np.linalg.inv(root)
        law = affine_law(kernel, COVARIANCE, num_noises, step_size=0.3, inverse_mass_matrix=metric)
        white = affine_law(kernel, whitening @ COVARIANCE @ whitening.T, num_noises, step_size=0.3)
    np.testing.assert_allclose(law, root @ white @ root.T, rtol=1e-9)


@pytest.mark.parametrize("variance", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("friction", [0.3, 2.0])
def test_variance_of_obabo(variance, friction):
    law = affine_law(lp.obabo, np.array([[variance]]), 2, step_size=0.6, friction=friction)
    np.testing.assert_allclose(law, variance / (1 - 0.36 / (4 * variance)), rtol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_order_on_a_gaussian(scheme):
    kernel = lp.splitting(scheme)
    errors = np.array(
        [
            np.linalg.norm(
                affine_law(kernel, COVARIANCE, noises(scheme), step_size=h, friction=1.3)
                - COVARIANCE
            )
            for h in (0.02, 0.01)
        ]
    )
    if np.all(errors < 1e-10):  # exact, as BAOAB is
        assert scheme in {"BAOAB", "ABOBA"}
        return
    order = np.log2(errors[0] / errors[1])
    # That of a string that is no palindrome may be 2 by luck, in the positions alone.
    assert abs(order - kernel.order) < 0.05 or (kernel.order == 1 and order > 1.95)
    assert kernel.order == (2 if scheme in PALINDROMES else 1)


def test_order_of_the_exponential_integrator():
    errors = [
        np.linalg.norm(affine_law(lp.klmc, COVARIANCE, 2, step_size=h, friction=1.3) - COVARIANCE)
        for h in (0.02, 0.01)
    ]
    assert abs(np.log2(errors[0] / errors[1]) - lp.klmc.order) < 0.05


@pytest.mark.parametrize("friction, time", [(1.3, 0.7), (0.01, 0.2), (0.5, 0.19), (0.5, 0.21)])
def test_free_flight_is_the_exact_flow(friction, time):
    """Against the matrix exponential and the integral of the noise."""
    with jax.enable_x64(True):
        flight = jax.tree.map(float, Flight.over(time, friction))
    generator = np.array([[0.0, 1.0], [0.0, -friction]])
    flow = expm(time * generator)
    np.testing.assert_allclose([flight.reach, flight.kept], flow[:, 1], rtol=1e-12)
    covariance = [
        [
            quad(
                lambda t, i=i, j=j: 2 * friction * np.prod(expm(t * generator)[[i, j], 1]),
                0,
                time,
                epsabs=0,
                epsrel=1e-12,
            )[0]
            for j in (0, 1)
        ]
        for i in (0, 1)
    ]
    gained = np.array([[flight.drag, flight.rest], [flight.spread, 0.0]])
    np.testing.assert_allclose(gained @ gained.T, covariance, rtol=1e-10)
    forced = quad(lambda t: expm(t * generator)[0, 1], 0, time, epsrel=1e-13)[0]
    np.testing.assert_allclose(flight.force_reach, forced, rtol=1e-11)


def test_free_flight_in_single_precision():
    products = np.geomspace(1e-6, 30.0, 60)
    single = jax.vmap(lambda a: Flight.over(a, jnp.float32(1.0)))(jnp.float32(products))
    with jax.enable_x64(True):
        double = jax.vmap(lambda a: Flight.over(a, 1.0))(jnp.float32(products).astype(float))
    for name, one, other in zip(Flight._fields, single, double, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, err_msg=name)


def test_irreversible_dynamics_keep_the_law_to_first_order():
    skew = np.array([[0.0, 2.0, -1.0], [-2.0, 0.0, 0.5], [1.0, -0.5, 0.0]])
    precision = np.linalg.inv(COVARIANCE)

    def law(h):
        drift = np.eye(3) - h * (np.eye(3) + skew) @ precision
        return solve_discrete_lyapunov(drift, 2 * h * np.eye(3))

    with jax.enable_x64(True):
        estimator = as_estimator(lambda x: -0.5 * x @ jnp.array(precision) @ x)
        state = lp.irreversible.init(jnp.array([1.0, -2.0, 0.5]), estimator)
        new, _ = lp.irreversible.transition(
            Randomness(jnp.zeros(3), ()), state, estimator, step_size=0.1, skew=jnp.array(skew)
        )
        expected = state.position - 0.1 * (np.eye(3) + skew) @ precision @ state.position
        np.testing.assert_allclose(new.position, expected, rtol=1e-12)
    errors = [np.linalg.norm(law(h) - COVARIANCE) for h in (0.004, 0.002)]
    assert abs(np.log2(errors[0] / errors[1]) - 1.0) < 0.05


@pytest.mark.parametrize("dimension", [4, 5])
def test_a_scalar_skew_turns_pairs_of_coordinates(dimension):
    from langevin_ppl.kernels.overdamped import rotated

    matrix = np.array(jax.jacobian(lambda x: rotated(x, 1.5))(jnp.arange(1.0, dimension + 1)))
    np.testing.assert_array_equal(matrix, -matrix.T)
    np.testing.assert_array_equal(np.abs(matrix).sum(1)[:4], 1.5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradients_are_counted_and_the_log_density_is_that_of_the_position(scheme):
    kernel, calls = lp.splitting(scheme), []

    def logdensity_fn(x):
        calls.append(1)
        return -jnp.sum(jnp.cosh(x))

    algorithm = kernel(logdensity_fn, step_size=0.3)
    state = algorithm.init(jnp.ones(2))
    calls.clear()
    state, info = algorithm.step(jax.random.key(0), state)
    assert len(calls) == kernel.gradients_per_step == 1
    if info.logdensity is not None:
        np.testing.assert_allclose(info.logdensity, -jnp.sum(jnp.cosh(state.position)), rtol=1e-6)
        gradient = -jnp.sinh(state.position)
        np.testing.assert_allclose(state.logdensity_grad, gradient, rtol=1e-5)
    # A kick before the first move needs the gradient where the last step ended.
    starts_with_kick = scheme.index("B") < min(scheme.find(c) % 99 for c in "AU")
    assert (info.logdensity is not None) == starts_with_kick


def test_several_kicks_at_several_places():
    assert lp.splitting("BABAOAB").gradients_per_step == 2
    assert lp.splitting("UBUBU").gradients_per_step == 2


def test_the_momentum_is_drawn_in_the_first_step():
    flat = lambda x: jnp.zeros(()) * jnp.sum(x)  # noqa: E731
    for kernel in (lp.baoab, lp.obabo, lp.ubu, lp.klmc):
        algorithm = kernel(flat, step_size=1e-3, temperature=4.0, friction=0.1)
        states = jax.vmap(lambda _, a=algorithm: a.init(jnp.zeros(1)))(jnp.arange(4000))
        states, _ = jax.vmap(algorithm.step)(jax.random.split(jax.random.key(1), 4000), states)
        np.testing.assert_allclose(jnp.std(states.momentum), 2.0, rtol=0.05)


@pytest.mark.parametrize("letters", ["", "AB", "AO", "BAXAB", "UOB", "baoab", "AUB", 3])
def test_strings_that_are_no_splitting(letters):
    with pytest.raises(ValueError, match=r"A \(position\), B .* O .* U .*BAOAB"):
        lp.splitting(letters)


def test_splittings_are_kernels():
    kernel = lp.splitting("OABAO")
    assert kernel is lp.splitting("OABAO")
    assert pickle.loads(pickle.dumps(kernel)) is kernel
    assert pickle.loads(pickle.dumps(lp.baoab)) is lp.baoab
    assert repr(kernel) == "langevin_ppl.splitting('OABAO')"


def test_a_tamed_splitting_survives_and_says_what_it_cost():
    algorithm = lp.tbaoab(lambda x: -0.25 * jnp.sum(x**4), step_size=0.05)
    state, losses = algorithm.init(jnp.full(3, 1e5)), []
    step = jax.jit(algorithm.step)
    for key in jax.random.split(jax.random.key(0), 50):
        state, info = step(key, state)
        losses.append(float(info.taming_loss))
    assert np.isfinite(state.position).all()
    assert losses[0] > 0.9


def test_what_is_lost_stays_lost():
    algorithm = lp.baoab(lambda x: -0.25 * jnp.sum(x**4), step_size=0.5)
    state, info = algorithm.step(jax.random.key(0), algorithm.init(jnp.full(3, 1e15)))
    assert info.is_divergent
    state, info = algorithm.step(jax.random.key(1), state)
    assert info.is_divergent and np.isnan(state.position).all()


@pytest.mark.parametrize(
    "kernel",
    [
        lp.baoab,
        lp.irreversible,
        *(
            pytest.param(k, marks=pytest.mark.slow)
            for k in (lp.ubu, lp.leimkuhler_matthews, lp.klmc)
        ),
    ],
    ids=repr,
)
def test_in_sample(kernel):
    target = lp.density(lambda x: -0.5 * jnp.sum(x**2 / jnp.array([1.0, 25.0])), jnp.zeros(2))
    idata = lp.sample(jax.random.key(0), target, kernel, num_samples=2000)
    assert idata.attrs["exact"] == 0
    assert ("lp" in idata["sample_stats"]) == (kernel is not lp.ubu)
    spread = idata["posterior"]["x"].std(("chain", "draw")).values
    np.testing.assert_allclose(spread, [1.0, 5.0], rtol=0.15)
    assert f"step_size^{kernel.order}" in idata.attrs["step_size_rule"]


def stationary_mean_square(h):
    """E x^2 of Leimkuhler and Matthews' scheme on x^4 / 4 + x^2 / 2, without Monte Carlo.

    Positions less half of their last noise, y = x - sqrt(h / 2) xi, are a Markov chain. Its
    operator acts on functions by Gauss-Hermite quadrature of the noise, and on Chebyshev nodes by
    interpolation; the stationary law is the left eigenvector of eigenvalue 1.
    """
    degree, end = 120, 4.0
    unit = np.cos((2 * np.arange(degree) + 1) * np.pi / (2 * degree))
    noises, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    positions = end * unit[:, None] + np.sqrt(h / 2) * noises
    with jax.enable_x64(True):
        estimator = as_estimator(lambda x: -0.25 * jnp.sum(x**4) - 0.5 * jnp.sum(x**2))

        def moved(position, noise):
            """To y of the next step: x of a step whose own noise is zero."""
            state = lp.leimkuhler_matthews.init(position[None], estimator)
            state = state._replace(step=jnp.asarray(1), noise=noise[None])
            still = Randomness(jnp.zeros(1), ())
            new, _ = lp.leimkuhler_matthews.transition(still, state, estimator, step_size=h)
            return new.position[0]

        over_all = jax.vmap(jax.vmap(moved), in_axes=(0, 0))
        ends = np.array(over_all(jnp.array(positions), jnp.tile(noises, (degree, 1))))
    # Values at the nodes to coefficients, and those to values where the steps lead.
    vandermonde = np.polynomial.chebyshev.chebvander
    values = vandermonde(np.clip(ends / end, -1, 1), degree - 1) @ np.linalg.inv(
        vandermonde(unit, degree - 1)
    )
    operator = np.einsum("k,ikj->ij", weights, values)
    eigenvalues, vectors = np.linalg.eig(operator.T)
    law = np.real(vectors[:, np.argmin(np.abs(eigenvalues - 1))])
    return law @ (positions**2 @ weights) / law.sum()


def test_order_of_leimkuhler_matthews():
    density = lambda x: np.exp(-0.25 * x**4 - 0.5 * x**2)  # noqa: E731
    exact = quad(lambda x: x**2 * density(x), -9, 9)[0] / quad(density, -9, 9)[0]
    biases = [stationary_mean_square(h) - exact for h in (0.01, 0.005, 0.0025)]
    orders = np.log2(np.divide(biases[:-1], biases[1:]))
    assert abs(orders[1] - 2.0) < 0.1 and abs(orders[1] - 2.0) < abs(orders[0] - 2.0)

"""Stationary laws without Monte Carlo: closed forms on Gaussians, quadrature in one dimension.

On a Gaussian the linear kernels are affine maps, whose stationary covariance solves a discrete
Lyapunov equation. In one dimension any kernel is a matrix on a grid: the trapezoidal rule is
spectrally accurate for the Gaussian transition density once the grid resolves ``sqrt(2 h)``.
Both are read off the kernels' own ``transition``, in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import solve_discrete_lyapunov

import langevin_ppl as lp
from langevin_ppl.base import Randomness
from langevin_ppl.gradients import as_estimator

COVARIANCE = np.array([[1.5, 0.4, -0.2], [0.4, 0.8, 0.3], [-0.2, 0.3, 0.6]])
MATRICES = {
    "scalar": np.array(0.7),
    "diagonal": np.array([0.4, 0.9, 1.3]),
    "dense": np.array([[1.1, 0.3, -0.2], [0.3, 0.5, 0.1], [-0.2, 0.1, 0.9]]),
}
STEP_SIZE = 0.3
TEMPERATURE = 1.7


def compiled(kernel, logdensity_fn):
    """State and info after a step from many positions, with many noises; parameters traced."""

    @jax.jit
    def steps(positions, noises, parameters):
        def step(position, noise):
            estimator = as_estimator(logdensity_fn)
            state = kernel.init(position, estimator)
            return kernel.transition(Randomness(noise, ()), state, estimator, **parameters)

        return jax.vmap(step)(positions, noises)

    return steps


def affine_law(kernel, covariance, **parameters):
    """Stationary covariance of a kernel that is an affine map on ``N(0, covariance)``."""
    dimension = len(covariance)
    precision = jnp.array(np.linalg.inv(covariance))
    steps = compiled(kernel, lambda x: -0.5 * x @ precision @ x)

    def move(positions, noises):
        return np.array(steps(jnp.array(positions), jnp.array(noises), parameters)[0].position)

    basis, zero = np.eye(dimension), np.zeros((dimension, dimension))
    drift, diffusion = move(basis, zero).T, move(zero, basis).T
    positions, noises = np.random.default_rng(0).standard_normal((2, dimension, dimension))
    np.testing.assert_allclose(
        move(positions, noises), positions @ drift.T + noises @ diffusion.T, rtol=1e-12, atol=1e-12
    )
    return solve_discrete_lyapunov(drift, diffusion @ diffusion.T)


def closed_form(covariance, matrix, temperature, step_size, damping):
    r"""Covariance of :math:`x' = x - a h C \Sigma^{-1} x + \sqrt{2 h T} L \xi`.

    :math:`T / a \, (I - a h C \Sigma^{-1} / 2)^{-1} \Sigma` for a damping ``a``: 1 for ula,
    :math:`1 / \sqrt{1 + h}` for mtula of power 0.
    """
    full = matrix if matrix.ndim == 2 else np.diag(np.broadcast_to(matrix, len(covariance)))
    shrink = np.eye(len(covariance)) - 0.5 * damping * step_size * full @ np.linalg.inv(covariance)
    return temperature / damping * np.linalg.solve(shrink, covariance)


@pytest.mark.parametrize("variance", [0.5, 1.0, 4.0])
def test_variance_of_ula_in_one_dimension(variance):
    with jax.enable_x64(True):
        law = affine_law(lp.ula, np.array([[variance]]), step_size=STEP_SIZE)
    np.testing.assert_allclose(law, variance / (1 - STEP_SIZE / (2 * variance)), rtol=1e-12)


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
@pytest.mark.parametrize(
    "kernel, damping, options",
    [(lp.ula, 1.0, {}), (lp.mtula, 1 / np.sqrt(1 + STEP_SIZE), {"power": 0.0})],
    ids=["ula", "mtula-power-0"],
)
def test_covariance_on_a_gaussian(kernel, damping, options, matrix):
    with jax.enable_x64(True):
        law = affine_law(
            kernel,
            COVARIANCE,
            step_size=STEP_SIZE,
            inverse_mass_matrix=jnp.array(matrix),
            temperature=TEMPERATURE,
            **options,
        )
    expected = closed_form(COVARIANCE, matrix, TEMPERATURE, STEP_SIZE, damping)
    np.testing.assert_allclose(law, expected, rtol=1e-10, atol=1e-12)


# One dimension: the mixture of N(-m, 1) and N(m, 1), bimodal, with a Lipschitz gradient, so that
# ula is stable, and with E x^2 = 1 + m^2 and a normalised density in closed form.
MODE = 1.5
GRID = np.linspace(-11.0, 11.0, 551)
SPACING = GRID[1] - GRID[0]


def mixture(x):
    x = jnp.squeeze(x)
    return -0.5 * x**2 + jnp.logaddexp(MODE * x, -MODE * x)


def law_of(logdensity_fn, grid, temperature=1.0):
    """Target on the grid, as probabilities."""
    logdensity = np.array(jax.vmap(logdensity_fn)(jnp.array(grid))) / temperature
    weights = np.exp(logdensity - logdensity.max())
    return weights / weights.sum()


def proposal_noise(steps, grid, parameters, normals=(), repeats=1):
    """Noise that leads from each point of the grid to each other one, and its scale.

    ``normals`` are appended to the noise; for a Metropolis test, large ones force acceptance.
    ``repeats`` makes the shapes those of another call, to share its compilation.
    """
    starts = np.repeat(grid, repeats)

    def end(noise):
        noises = np.broadcast_to([noise, *normals], (len(starts), 1 + len(normals)))
        state, _ = steps(jnp.array(starts)[:, None], jnp.array(noises), parameters)
        return np.array(state.position[::repeats, 0])

    mean = end(0.0)
    scale = end(1.0) - mean
    np.testing.assert_allclose(scale, scale[0], rtol=1e-9)
    # The trapezoidal rule integrates a Gaussian of this width to all digits.
    assert scale[0] > 1.5 * (grid[1] - grid[0])
    return (grid[None, :] - mean[:, None]) / scale[0], scale[0]


def density_matrix(noise, scale, spacing):
    """Probabilities of the Gaussian moves from row to column."""
    return spacing / (np.sqrt(2 * np.pi) * scale) * np.exp(-0.5 * noise**2)


def stationary_second_moment(steps, **parameters):
    """``E x^2`` under the stationary law of an unadjusted kernel."""
    with jax.enable_x64(True):
        moves = density_matrix(*proposal_noise(steps, GRID, parameters), SPACING)
    inside = np.abs(GRID) < 8.0
    np.testing.assert_allclose(moves.sum(1)[inside], 1.0, atol=1e-12)
    # Left null vector of P - I with total mass 1 in place of one redundant equation.
    system = moves.T - np.eye(len(GRID))
    system[len(GRID) // 2] = 1.0
    law = np.linalg.solve(system, np.arange(len(GRID)) == len(GRID) // 2)
    assert law.min() > -1e-12
    return law @ GRID**2


# The limit of bias / h. To first order the stationary law of the Euler-Maruyama scheme with drift
# -U' + h R is that of the potential U + h (U'' / 2 - U'^2 / 4 - integral of R), from matching the
# invariant density of one step at order h^2; on N(0, s^2) it gives s^2 + h / 2, as it must.
REMOVED = {
    "ula": lambda slope: np.zeros_like(slope),
    "tula": lambda slope: slope * np.abs(slope),
    "tulac": lambda slope: slope * np.abs(slope),
    "mtula": lambda slope: 0.5 * slope * np.abs(GRID) ** 2,
}
OPTIONS = {"mtula": {"power": 1.0}}


def leading_bias(name):
    """Limit of ``(E x^2 - exact) / h`` as h tends to zero."""
    with jax.enable_x64(True):
        slope, curvature = (
            -np.array(jax.vmap(derivative)(jnp.array(GRID)))
            for derivative in (jax.grad(mixture), jax.grad(jax.grad(mixture)))
        )
        law = law_of(mixture, GRID)
    perturbation = curvature / 2 - slope**2 / 4 - SPACING * np.cumsum(REMOVED[name](slope))
    return -(law @ (GRID**2 * perturbation) - (law @ GRID**2) * (law @ perturbation))


@pytest.fixture(scope="module")
def biases():
    """Step sizes, and the bias of ``E x^2`` at each of them for each unadjusted kernel."""
    step_sizes = np.array([0.005, 0.01, 0.02, 0.04])
    exact = 1.0 + MODE**2
    bias = {}
    for name in REMOVED:
        steps, options = compiled(getattr(lp, name), mixture), OPTIONS.get(name, {})
        moments = [stationary_second_moment(steps, step_size=h, **options) for h in step_sizes]
        bias[name] = np.array(moments) - exact
    return step_sizes, bias


@pytest.mark.parametrize("name", REMOVED)
def test_unadjusted_kernels_have_weak_order_one(name, biases):
    step_sizes, bias = biases[0], biases[1][name]
    order = np.polyfit(np.log(step_sizes), np.log(np.abs(bias)), 1)[0]
    assert abs(order - 1.0) < 0.1
    # Richardson's extrapolation of bias / h leaves an error of order h^2.
    limit = 2 * bias[0] / step_sizes[0] - bias[1] / step_sizes[1]
    np.testing.assert_allclose(limit, leading_bias(name), rtol=0.01)


def test_taming_biases_a_kernel_that_needs_none(biases):
    _, bias = biases
    for name in ("tula", "tulac", "mtula"):
        assert np.all(np.abs(bias[name]) > 5 * np.abs(bias["ula"]))


def test_norm_and_coordinates_are_the_same_taming_in_one_dimension(biases):
    _, bias = biases
    np.testing.assert_allclose(bias["tulac"], bias["tula"], rtol=1e-8)


def tilted_well(x):
    x = jnp.squeeze(x)
    return -0.25 * x**4 + 0.5 * x**2 + 0.3 * x


@pytest.mark.parametrize("logdensity_fn", [mixture, tilted_well])
@pytest.mark.parametrize("kernel", [lp.mala, lp.tmala, lp.tmalac], ids=repr)
def test_adjusted_kernels_leave_the_target_invariant(kernel, logdensity_fn):
    # Coarse, because the proposals are wide; balance holds between points, whatever their distance.
    grid = GRID[::5]
    steps = compiled(kernel, logdensity_fn)
    with jax.enable_x64(True):
        parameters = dict(step_size=1.2, temperature=1.6, inverse_mass_matrix=np.float64(0.7))
        noise, scale = proposal_noise(steps, grid, parameters, (1e9, 1e9), len(grid))
        starts = jnp.repeat(jnp.array(grid), len(grid))[:, None]
        noises = jnp.stack([noise.ravel(), *jnp.zeros((2, noise.size))], axis=1)
        accepted = np.array(steps(starts, noises, parameters)[1].acceptance_rate)
        accepted = accepted.reshape(noise.shape)
        law = law_of(logdensity_fn, grid, parameters["temperature"])
    # Half the variance of the proposal is h T C: a wrong scale would show here and nowhere else.
    np.testing.assert_allclose(scale**2 / 2, 1.2 * 1.6 * 0.7, rtol=1e-9)
    moves = density_matrix(noise, scale, grid[1] - grid[0]) * accepted
    flow = law[:, None] * moves
    # Detailed balance, far into the tails.
    np.testing.assert_allclose(flow, flow.T, rtol=1e-6, atol=1e-20 * flow.max())
    transition = moves + np.diag(1.0 - moves.sum(1))
    np.testing.assert_allclose(law @ transition, law, rtol=1e-8, atol=1e-12 * law.max())
    # The test does reject, but not everything.
    assert 0.3 < law @ moves.sum(1) < 0.97

"""Preconditioners: linear algebra of the frame, and every kernel in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import langevin_ppl as lp
from langevin_ppl.base import Randomness
from langevin_ppl.gradients import as_estimator
from langevin_ppl.preconditioners import Preconditioner, preconditioner

DENSE = np.array([[2.0, 0.6, -0.3], [0.6, 0.5, 0.1], [-0.3, 0.1, 1.2]])
MATRICES = {
    "scalar": np.array(0.7),
    "diagonal": np.array([0.4, 2.5, 1.3]),
    "dense": DENSE,
}
UNADJUSTED = (lp.ula, lp.tula, lp.tulac, lp.mtula)
KINETIC = (lp.ghmc, lp.split_ghmc)
ADJUSTED = (lp.mala, lp.tmala, lp.tmalac, *KINETIC)

every_matrix = pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)


def factor_of(matrix):
    """Lower factor as a full matrix, by NumPy."""
    full = matrix if matrix.ndim == 2 else np.diag(np.broadcast_to(matrix, 3))
    return np.linalg.cholesky(full)


@every_matrix
def test_frame_against_numpy(matrix):
    with jax.enable_x64(True):
        frame = preconditioner(jnp.array(matrix))
        factor = factor_of(matrix)
        vector = np.array([1.0, -2.0, 0.5])
        np.testing.assert_allclose(frame.scale(jnp.array(vector)), factor @ vector)
        np.testing.assert_allclose(frame.transpose(jnp.array(vector)), factor.T @ vector)
        np.testing.assert_allclose(frame.solve(jnp.array(vector)), np.linalg.solve(factor, vector))
        assert frame.inverse_mass_matrix.shape == matrix.shape
        np.testing.assert_allclose(frame.inverse_mass_matrix, matrix)


def low_rank():
    """Two directions stretched on top of a diagonal, and the factor as a full matrix, by NumPy."""
    scales, stretches = np.array([0.5, 1.4, 0.9]), np.array([1.6, 0.4])
    columns = np.linalg.qr(np.array([[1.0, 2.0], [0.5, -1.0], [-1.0, 0.3]]))[0]
    factor = np.diag(scales) @ (np.eye(3) + columns @ np.diag(stretches - 1) @ columns.T)
    return Preconditioner(*map(jnp.array, (scales, columns, stretches))), factor


def test_low_rank_frame_against_numpy():
    with jax.enable_x64(True):
        frame, factor = low_rank()
        vector = np.array([1.0, -2.0, 0.5])
        np.testing.assert_allclose(frame.scale(jnp.array(vector)), factor @ vector)
        np.testing.assert_allclose(frame.transpose(jnp.array(vector)), factor.T @ vector)
        np.testing.assert_allclose(frame.solve(jnp.array(vector)), np.linalg.solve(factor, vector))
        np.testing.assert_allclose(frame.inverse_mass_matrix, factor @ factor.T, atol=1e-14)
        assert preconditioner(frame, 3) is frame
        with pytest.raises(ValueError, match="inverse_mass_matrix"):
            preconditioner(frame, 2)


@every_matrix
def test_a_preconditioner_passes_as_it_is(matrix):
    frame = preconditioner(matrix)
    assert preconditioner(frame) is frame


@every_matrix
def test_frame_crosses_jit_and_vmap(matrix):
    frames = jax.vmap(preconditioner)(jnp.stack([matrix, 4.0 * matrix]))
    scaled = jax.jit(jax.vmap(lambda frame, z: frame.scale(z)))(frames, jnp.ones((2, 3)))
    expected = factor_of(matrix) @ np.ones(3)
    np.testing.assert_allclose(scaled, np.stack([expected, 2 * expected]), rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3), (3, 1), (2, 2, 2)])
def test_shapes_that_are_no_matrix(shape):
    with pytest.raises(ValueError, match="inverse_mass_matrix"):
        preconditioner(jnp.ones(shape))


@pytest.mark.parametrize("value", [0.3, 2, [1, 3], [[2, 1], [1, 3]]], ids=str)
@pytest.mark.parametrize("enable_x64", [False, True])
def test_numbers_have_the_precision_of_the_session(value, enable_x64):
    # Plain Python numbers and integers must not lose half their digits in float64.
    with jax.enable_x64(enable_x64):
        value = jnp.asarray(value) if isinstance(value, list) else value
        matrix = preconditioner(value).inverse_mass_matrix
        assert jnp.issubdtype(matrix.dtype, jnp.floating)
        np.testing.assert_allclose(matrix, np.asarray(value), rtol=1e-14 if enable_x64 else 1e-6)


def logdensity(x):
    """Double well, tilted and with scales, so that no coordinate resembles another."""
    x = x * jnp.array([1.0, 0.5, 2.0]) + 0.3
    square = jnp.sum(x**2)
    return -0.25 * square**2 + 0.5 * square + 0.2 * x[0] * x[2]


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        *((kernel, name) for kernel in UNADJUSTED + ADJUSTED for name in MATRICES),
        # The frame is applied in one place for each family.
        *((kernel, "low rank") for kernel in (lp.mala, lp.split_ghmc)),
    ],
    ids=str,
)
def test_kernel_is_the_plain_kernel_in_the_whitened_frame(kernel, name):
    adjusted = kernel in ADJUSTED
    with jax.enable_x64(True):
        if name == "low rank":
            matrix, factor = low_rank()
        else:
            matrix, factor = jnp.array(MATRICES[name]), factor_of(MATRICES[name])
        factor = jnp.array(factor)
        options = dict(step_size=0.9 if kernel in KINETIC else 0.2, temperature=1.3)

        def move(logdensity_fn, position, noise, **further):
            estimator = as_estimator(logdensity_fn)
            state = kernel.init(position, estimator)
            if kernel in KINETIC:  # a chain on its way, whose momentum is one of the frame
                momentum = jnp.array([0.3, -1.2, 0.5])
                state = state._replace(step=jnp.asarray(3, jnp.int32), momentum=momentum)
            return kernel.transition(Randomness(noise, ()), state, estimator, **options, **further)

        def plain(z, noise):
            return move(lambda z: logdensity(factor @ z), z, noise)

        def preconditioned(x, noise):
            return move(logdensity, x, noise, inverse_mass_matrix=matrix)

        # Several starts, with small and large gradients; moves both accepted and rejected.
        zs = 2.0 * jax.random.normal(jax.random.key(0), (64, 3))
        noises = jax.random.normal(jax.random.key(1), (64, 5 if adjusted else 3))
        plain_state, plain_info = jax.vmap(plain)(zs, noises)
        state, info = jax.vmap(preconditioned)(zs @ factor.T, noises)

        same = dict(rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(state.position, plain_state.position @ factor.T, **same)
        np.testing.assert_allclose(state.logdensity, plain_state.logdensity, **same)
        if kernel in KINETIC:
            np.testing.assert_allclose(state.momentum, plain_state.momentum, **same)
        if info.taming_loss is not None:
            assert np.max(info.taming_loss) > 0.1
            np.testing.assert_allclose(info.taming_loss, plain_info.taming_loss, **same)
        if adjusted:
            assert len(set(np.asarray(info.is_accepted).tolist())) == 2
            np.testing.assert_array_equal(info.is_accepted, plain_info.is_accepted)
            np.testing.assert_allclose(info.acceptance_rate, plain_info.acceptance_rate, **same)

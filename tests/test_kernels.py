"""Kernels: BlackJAX's contract, any position, what is refused, and what is flagged."""

import copy
import inspect
import pickle

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import langevin_ppl as lp
from langevin_ppl.base import Estimate, GradientEstimator, Randomness
from langevin_ppl.gradients import as_estimator
from langevin_ppl.kernels import KernelInfo, KernelState
from langevin_ppl.metropolis import log_uniform

OVERDAMPED = (lp.mala, lp.tmala, lp.tmalac)
KINETIC = (lp.ghmc, lp.split_ghmc)
ADJUSTED = OVERDAMPED + KINETIC
SPLITTINGS = (lp.baoab, lp.obabo, lp.ubu, lp.klmc, lp.tbaoab)
STOCHASTIC = (lp.sgld, lp.tsgld, lp.psgld, lp.sghmc, lp.sgnht, lp.badodab)
UNADJUSTED = (
    *(lp.ula, lp.tula, lp.tulac, lp.mtula, lp.tusla, lp.stula),
    *(lp.leimkuhler_matthews, lp.irreversible),
    *SPLITTINGS,
    *STOCHASTIC,
)
TAMED = (
    *(lp.tula, lp.tulac, lp.mtula, lp.tusla, lp.stula, lp.tbaoab, lp.tsgld),
    *(lp.tmala, lp.tmalac),
)
KERNELS = ADJUSTED + UNADJUSTED
KEY = jax.random.key(20)
START = np.array([0.5, -1.0, 2.0], np.float32)
DENSE = np.array([[1.5, 0.3, 0.0], [0.3, 0.7, -0.2], [0.0, -0.2, 1.0]])

every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=repr)
every_adjusted = pytest.mark.parametrize("kernel", ADJUSTED, ids=repr)
every_overdamped_adjusted = pytest.mark.parametrize("kernel", OVERDAMPED, ids=repr)
every_kinetic = pytest.mark.parametrize("kernel", KINETIC, ids=repr)
every_unadjusted = pytest.mark.parametrize("kernel", UNADJUSTED, ids=repr)


def logdensity(x):
    """Quartic in every coordinate, and a coupling."""
    return -0.25 * jnp.sum(x**4) + 0.3 * x[0] * x[-1]


def assert_trees_close(actual, expected, **tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **({"rtol": 1e-5, "atol": 1e-6} | tolerance)),
        actual,
        expected,
    )


def shapes_and_dtypes(tree):
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [(leaf.shape, leaf.dtype) for leaf in leaves]


# BlackJAX's contract


@every_kernel
def test_algorithm_is_blackjax_s(kernel):
    algorithm = kernel(logdensity, step_size=0.1)
    assert isinstance(algorithm, blackjax.SamplingAlgorithm)
    state = algorithm.init(START)
    assert_trees_close(algorithm.init(START, KEY), state, rtol=0, atol=0)
    new, info = algorithm.step(KEY, state)
    assert new._fields[:5] == KernelState._fields
    assert isinstance(info, KernelInfo)
    np.testing.assert_array_equal(state.position, START)
    assert (state.step, new.step) == (0, 1)
    if not kernel.ends_at_gradient:
        assert info.logdensity is None
        return
    np.testing.assert_allclose(new.logdensity, logdensity(new.position), rtol=1e-5)
    np.testing.assert_allclose(
        new.logdensity_grad, jax.grad(logdensity)(new.position), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(info.logdensity, new.logdensity)
    np.testing.assert_allclose(
        info.grad_norm, np.linalg.norm(np.float64(new.logdensity_grad)), rtol=1e-5
    )


@every_kernel
def test_jit_vmap_scan_and_traced_parameters_change_nothing(kernel):
    parameters = dict(step_size=0.1, inverse_mass_matrix=np.diag(DENSE))
    starts = jnp.stack([START, -0.5 * START])
    keys = jax.random.split(KEY, (2, 2))

    @jax.jit
    def run(keys, starts, parameters):
        algorithm = kernel(logdensity, **parameters)

        def body(states, keys):
            states, infos = jax.vmap(algorithm.step)(keys, states)
            return states, (states, infos)

        return jax.lax.scan(body, jax.vmap(algorithm.init)(starts), keys)[1]

    together = run(keys, starts, parameters)
    algorithm = kernel(logdensity, **parameters)
    for chain in range(2):
        state = algorithm.init(starts[chain])
        for step in range(2):
            state, info = algorithm.step(keys[step, chain], state)
            expected = jax.tree.map(lambda x, i=(step, chain): x[i], together)
            assert_trees_close((state, info), expected, rtol=1e-4)


@every_kernel
@pytest.mark.parametrize("enable_x64", [False, True])
def test_state_is_invariant_under_a_step(kernel, enable_x64):
    with jax.enable_x64(enable_x64):
        # A step size of higher precision than the position must not raise the position's.
        algorithm = kernel(
            lambda position: logdensity(position["x"]) - position["y"] ** 2,
            step_size=jnp.asarray(np.float64(0.1)),
            inverse_mass_matrix=np.arange(1.0, 5.0),
        )
        for dtype in [jnp.float32, jnp.float64] if enable_x64 else [jnp.float32]:
            position = {"x": jnp.asarray(START, dtype), "y": jnp.ones((), dtype)}
            before = jax.eval_shape(algorithm.init, position)
            after, _ = jax.eval_shape(algorithm.step, KEY, before)
            assert shapes_and_dtypes(after) == shapes_and_dtypes(before)
            assert after.position["x"].dtype == dtype


@every_kernel
def test_positions_of_plain_numbers(kernel):
    algorithm = kernel(lambda position: -(position["x"] ** 2), step_size=0.1)
    state = algorithm.init({"x": 0.5})

    def run(state, keys):
        return jax.lax.scan(lambda state, key: algorithm.step(key, state), state, keys)[0]

    final = jax.eval_shape(run, state, jax.random.split(KEY, 2))
    assert shapes_and_dtypes(final) == shapes_and_dtypes(state)


@every_kernel
def test_legacy_keys(kernel):
    algorithm = kernel(logdensity, step_size=0.1)
    state = algorithm.init(START)
    assert_trees_close(
        algorithm.step(jax.random.key_data(KEY), state), algorithm.step(KEY, state), rtol=0, atol=0
    )


@every_kernel
def test_build_kernel(kernel):
    assert not inspect.signature(kernel.build_kernel).parameters
    step = kernel.build_kernel()
    names = list(inspect.signature(step).parameters)
    assert names[:5] == ["rng_key", "state", "logdensity_fn", "step_size", "inverse_mass_matrix"]
    further = {
        lp.mtula: ["temperature", "power", "location"],
        lp.tusla: ["temperature", "power", "strength", "location"],
        lp.stula: ["temperature", "power", "linear", "location"],
        lp.irreversible: ["temperature", "skew"],
        **dict.fromkeys(SPLITTINGS, ["friction", "temperature"]),
        lp.psgld: ["temperature", "smoothing", "damping"],
        lp.sghmc: ["friction", "temperature", "noise_estimate"],
        lp.sgnht: ["friction", "temperature", "thermostat_mass"],
        lp.badodab: ["friction", "temperature", "thermostat_mass"],
        lp.ghmc: ["friction", "temperature"],
        lp.split_ghmc: ["location", "frequency", "friction", "taming", "temperature"],
    }
    assert names[5:] == further.get(kernel, ["temperature"])
    required = [
        name
        for name, parameter in inspect.signature(step).parameters.items()
        if parameter.default is inspect.Parameter.empty
    ]
    assert required == names[:4]

    state = kernel.init(START, logdensity)
    algorithm = kernel(logdensity, step_size=0.1, inverse_mass_matrix=DENSE)
    assert_trees_close(algorithm.init(START), state, rtol=0, atol=0)
    expected = algorithm.step(KEY, state)
    assert_trees_close(step(KEY, state, logdensity, 0.1, DENSE), expected)
    assert_trees_close(
        step(KEY, state, logdensity, step_size=0.1, inverse_mass_matrix=DENSE), expected
    )


@every_kernel
def test_a_step_is_a_draw_and_a_transition(kernel):
    estimator = as_estimator(logdensity)
    algorithm = kernel(logdensity, step_size=0.1)
    state = algorithm.init(START)
    randomness = kernel.draw(KEY, state, estimator)
    assert_trees_close(
        kernel.transition(randomness, state, estimator, step_size=0.1),
        algorithm.step(KEY, state),
        rtol=0,
        atol=0,
    )
    # A draw sees shapes only, so that it can be made ahead of the chain.
    elsewhere = state._replace(
        position=jnp.full(3, jnp.nan), logdensity=jnp.nan, logdensity_grad=jnp.full(3, jnp.nan)
    )
    assert_trees_close(kernel.draw(KEY, elsewhere, estimator), randomness, rtol=0, atol=0)


# Kernels as objects


def test_kernels_are_distinct_and_hashable():
    assert len(set(KERNELS)) == len({repr(kernel) for kernel in KERNELS}) == len(KERNELS)
    assert {kernel: 0 for kernel in KERNELS}[lp.mala] == 0


@every_kernel
def test_kernels_survive_copies(kernel):
    assert pickle.loads(pickle.dumps(kernel)) is kernel
    assert copy.copy(kernel) is kernel
    assert copy.deepcopy(kernel) is kernel
    assert copy.deepcopy({"kernel": kernel})["kernel"] is kernel


@every_kernel
def test_kernels_say_what_they_are(kernel):
    assert kernel.exact == (kernel in ADJUSTED)
    assert (kernel.target_acceptance_rate is not None) == (kernel in ADJUSTED)
    assert kernel.tuner in ADJUSTED and (kernel.tuner is kernel) == (kernel in ADJUSTED)
    assert kernel.__doc__ and repr(kernel) == f"langevin_ppl.{kernel.__name__}"
    assert getattr(lp, kernel.__name__) is kernel


# Positions


POSITIONS = {
    "scalar": jnp.asarray(0.3),
    "nested": {
        "b": {"scalar": jnp.asarray(0.3), "matrix": jnp.arange(4.0).reshape(2, 2) / 3},
        "a": (jnp.array([1.0, -0.5]), [jnp.asarray(-0.7)]),
    },
}


@pytest.mark.parametrize("position", POSITIONS.values(), ids=POSITIONS)
@every_kernel
def test_a_pytree_moves_as_its_flat_vector(kernel, position):
    flat, unravel = ravel_pytree(position)
    dimension = flat.size
    matrix = DENSE[:1, :1] if dimension == 1 else np.eye(dimension) + 0.1
    parameters = dict(step_size=0.1, inverse_mass_matrix=matrix, temperature=0.8)

    on_flat = kernel(logdensity, **parameters)
    on_tree = kernel(lambda tree: logdensity(ravel_pytree(tree)[0]), **parameters)
    expected, expected_info = on_flat.step(KEY, on_flat.init(flat))
    state, info = on_tree.step(KEY, on_tree.init(position))
    assert_trees_close(state.position, unravel(expected.position))
    assert_trees_close(state.logdensity_grad, unravel(expected.logdensity_grad))
    assert_trees_close(info, expected_info)


# Gradient estimators


ROWS = np.array([[0.0, 1.0], [2.0, -1.0], [4.0, 0.5], [1.0, 3.0], [-2.0, 0.0]], np.float32)


def minibatch(size=2):
    """Mean of rows under a normal prior, from ``size`` rows at a time; counts its estimates."""

    def logdensity_on(indices, position):
        residuals = jnp.asarray(ROWS)[indices] - position
        return -0.5 * len(ROWS) / size * jnp.sum(residuals**2) - 0.5 * jnp.sum(position**2)

    def estimate(batch, position, memory):
        value, gradient = jax.value_and_grad(logdensity_on, argnums=1)(batch, position)
        return Estimate(value, gradient), memory + 1

    return GradientEstimator(
        init=lambda position: jnp.zeros((), jnp.int32),
        draw=lambda rng_key, step: jax.random.randint(rng_key, (size,), 0, len(ROWS)),
        estimate=estimate,
        exact=False,
    )


@every_unadjusted
def test_unadjusted_kernels_take_an_inexact_gradient(kernel):
    estimator = minibatch()
    algorithm = kernel(estimator, step_size=0.01)
    state = algorithm.init(jnp.zeros(2), KEY)
    assert state.memory == 1
    for count, key in enumerate(jax.random.split(KEY, 2), start=1):
        noise, batch = kernel.draw(key, state, estimator)
        new, info = algorithm.step(key, state)
        assert (new.step, new.memory) == (count, count + 1)
        assert info.acceptance_rate is None and not info.is_divergent
        # The drift is that of the last batch; this one gives the gradient at the end, as five
        # rows of which two are seen, and the prior in full.
        if kernel is lp.ula:
            moved = state.position + 0.01 * state.logdensity_grad + np.sqrt(0.02) * noise
            np.testing.assert_allclose(new.position, moved, rtol=1e-5, atol=1e-6)
        if kernel.ends_at_gradient:
            gradient = 2.5 * np.sum(ROWS[batch] - new.position, axis=0) - new.position
            np.testing.assert_allclose(new.logdensity_grad, gradient, rtol=1e-4, atol=1e-4)
        state = new


@every_unadjusted
def test_a_minibatch_estimator_needs_a_key_at_the_start(kernel):
    with pytest.raises(ValueError, match=f"{kernel.__name__}.*rng_key"):
        kernel(minibatch(), step_size=0.1).init(jnp.zeros(2))


@every_adjusted
def test_adjusted_kernels_refuse_an_inexact_gradient(kernel):
    state = kernel.init(jnp.zeros(2), lambda x: -jnp.sum(x**2))
    attempts = (
        lambda: kernel(minibatch(), step_size=0.1),
        lambda: kernel.init(jnp.zeros(2), minibatch(), KEY),
        lambda: kernel.build_kernel()(KEY, state, minibatch(), 0.1),
    )
    for attempt in attempts:
        with pytest.raises(ValueError, match=f"{kernel.__name__} has a Metropolis test"):
            attempt()


def test_batches_are_independent_of_the_noise():
    normals = GradientEstimator(
        init=lambda position: (),
        draw=lambda rng_key, step: jax.random.normal(rng_key, (2,)),
        estimate=lambda batch, position, memory: (Estimate(0.0, position), memory),
        exact=False,
    )
    state = lp.ula.init(jnp.zeros(2), normals, KEY)
    number = 4000
    keys = jax.random.split(KEY, number)
    randomness = jax.vmap(lambda key: lp.ula.draw(key, state, normals))(keys)
    both = np.concatenate([randomness.noise, randomness.batch], axis=1)
    # A correlation of independent normals has standard error 1 / sqrt(4000) = 0.016; one key
    # for both, or for part of both, gives 1.
    correlation = np.corrcoef(both.T)
    np.testing.assert_allclose(correlation, np.eye(4), rtol=0, atol=5 / np.sqrt(number))


def test_draws_see_the_step_counter():
    counter = GradientEstimator(
        init=lambda position: jnp.asarray(-1),
        draw=lambda rng_key, step: step,
        estimate=lambda batch, position, memory: (Estimate(-jnp.sum(position), -position), batch),
        exact=False,
    )
    algorithm = lp.ula(counter, step_size=0.1)
    state = algorithm.init(jnp.ones(2), KEY)
    seen = []
    for key in jax.random.split(KEY, 3):
        state, _ = algorithm.step(key, state)
        seen.append(int(state.memory))
    assert seen == [0, 1, 2]


def test_chains_may_share_a_batch():
    estimator = minibatch()
    states = jax.vmap(lambda x: lp.ula.init(x, estimator, KEY))(jnp.array([[0.0, 1.0], [1.0, 0.0]]))
    noises = jax.random.normal(KEY, (2, 2))
    batch = jnp.array([1, 4])

    def transition(noise, batch, state):
        return lp.ula.transition(Randomness(noise, batch), state, estimator, step_size=0.01)

    together = jax.vmap(transition, in_axes=(0, None, 0))(noises, batch, states)
    for chain in range(2):
        state = jax.tree.map(lambda x, i=chain: x[i], states)
        expected = jax.tree.map(lambda x, i=chain: x[i], together)
        assert_trees_close(transition(noises[chain], batch, state), expected)


def test_an_estimator_is_wrapped_once():
    estimator = as_estimator(logdensity)
    assert estimator.exact and estimator.draw is None
    assert as_estimator(estimator) is estimator
    target = lp.density(logdensity, jnp.zeros(3))
    value, gradient = target.gradient(lp.exact()).estimate((), jnp.asarray(START), ())[0]
    np.testing.assert_allclose(value, logdensity(START), rtol=1e-6)
    np.testing.assert_allclose(gradient, jax.grad(logdensity)(jnp.asarray(START)), rtol=1e-6)


# Errors that can be known before tracing


@every_kernel
@pytest.mark.parametrize("value", [0, 0.0, -0.1, np.nan, np.inf, -np.inf, None, "small"])
def test_step_sizes_that_are_no_step(kernel, value):
    with pytest.raises(ValueError, match=rf"{kernel.__name__}.*step_size"):
        kernel(logdensity, step_size=value)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("name", ["temperature", "inverse_mass_matrix"])
def test_other_parameters_that_are_not_positive(name, value):
    with pytest.raises(ValueError, match=name):
        lp.mala(logdensity, step_size=0.1, **{name: value})


@every_kinetic
@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, None, "small"])
def test_frictions_that_are_none(kernel, value):
    with pytest.raises(ValueError, match=rf"{kernel.__name__}.*friction.*positive"):
        kernel(logdensity, step_size=0.1, friction=value)


@pytest.mark.parametrize("name", ["frequency", "taming"])
@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf, None, "small"])
def test_frequencies_and_tamings_that_are_none(name, value):
    with pytest.raises(ValueError, match=rf"split_ghmc.*{name}"):
        lp.split_ghmc(logdensity, step_size=0.1, **{name: value})


@pytest.mark.parametrize("value", [np.nan, [0.0, np.inf, 1.0], None, "here"], ids=str)
def test_locations_that_are_no_place(value):
    with pytest.raises(ValueError, match=r"split_ghmc.*location"):
        lp.split_ghmc(logdensity, step_size=0.1, location=value)


@pytest.mark.parametrize("position", [jnp.ones(1), {"x": jnp.ones(1)}, jnp.ones(2)])
def test_locations_of_another_dimension(position):
    # As for matrices: broadcasting must not make it fit, nor change the shape of the position.
    algorithm = lp.split_ghmc(
        lambda x: -jnp.sum(ravel_pytree(x)[0] ** 2), step_size=0.1, location=np.ones(3)
    )
    with pytest.raises((TypeError, ValueError)):
        algorithm.step(KEY, algorithm.init(position))


@every_kernel
def test_unknown_and_missing_parameters(kernel):
    known = "step_size.*inverse_mass_matrix.*temperature"
    with pytest.raises(TypeError, match=f"{kernel.__name__}.*unknown.*stepsize.*{known}"):
        kernel(logdensity, stepsize=0.1)
    with pytest.raises(TypeError, match=f"{kernel.__name__}.*unknown.*mass.*{known}"):
        kernel(logdensity, step_size=0.1, mass=1.0)
    with pytest.raises(TypeError, match=f"{kernel.__name__}.*missing.*step_size.*{known}"):
        kernel(logdensity)


@pytest.mark.parametrize(
    "matrix",
    [
        [[1.0, 2.0], [2.0, 1.0]],
        [[1.0, 0.5], [0.0, 1.0]],
        [[1.0, 0.0], [0.0, 0.0]],
        [[1.0, np.nan], [np.nan, 1.0]],
        [[np.inf, 0.0], [0.0, 1.0]],
        [1.0, -1.0],
        [1.0, 0.0],
        np.ones((2, 3)),
        np.ones((2, 2, 2)),
    ],
    ids=[
        "indefinite",
        "asymmetric",
        "singular",
        "nan",
        "infinite",
        "negative",
        "zero",
        "not square",
        "three dimensions",
    ],
)
def test_matrices_that_are_no_inverse_mass_matrix(matrix):
    with pytest.raises(ValueError, match="inverse_mass_matrix"):
        lp.mala(logdensity, step_size=0.1, inverse_mass_matrix=np.array(matrix))


@pytest.mark.parametrize("position", [jnp.ones(1), {"x": jnp.ones(1)}, jnp.ones(2), jnp.ones(4)])
@pytest.mark.parametrize("matrix", [np.ones(3), np.eye(3)], ids=["diagonal", "dense"])
def test_matrices_of_another_dimension(position, matrix):
    # The dimension is known with the position only; broadcasting must not make it fit.
    algorithm = lp.ula(
        lambda x: -jnp.sum(ravel_pytree(x)[0] ** 2), step_size=0.1, inverse_mass_matrix=matrix
    )
    with pytest.raises((TypeError, ValueError)):
        algorithm.step(KEY, algorithm.init(position))


def test_what_is_no_density():
    with pytest.raises(TypeError, match="logdensity_fn"):
        lp.mala(lp.density(logdensity, jnp.zeros(3)), step_size=0.1)


# Infos


@every_kernel
def test_unknown_fields_are_none(kernel):
    algorithm = kernel(logdensity, step_size=0.1)
    _, info = algorithm.step(KEY, algorithm.init(START))
    assert (info.taming_loss is not None) == (kernel in TAMED)
    assert (info.acceptance_rate is not None) == (kernel in ADJUSTED)
    assert (info.is_accepted is not None) == (kernel in ADJUSTED)
    has_energy = kernel in KINETIC + SPLITTINGS and kernel is not lp.ubu
    assert (info.energy is not None) == has_energy
    assert info.is_divergent.dtype == bool
    assert not info.is_divergent
    if kernel in TAMED:
        assert 0.0 < info.taming_loss < 1.0


# A kinetic chain has left that place before the step ends.
@pytest.mark.parametrize("kernel", [k for k in TAMED if k is not lp.tbaoab], ids=repr)
def test_nothing_is_tamed_where_the_gradient_is_zero(kernel):
    algorithm = kernel(lambda x: -jnp.sum(x**4), step_size=0.1)
    _, info = algorithm.step(KEY, algorithm.init(jnp.zeros(3)))
    assert info.taming_loss == 0.0


@every_overdamped_adjusted
def test_acceptance_rate_is_the_textbook_s(kernel):
    step_size, temperature = 0.15, 1.4

    def tamed(gradient):
        if kernel is lp.tmala:
            return gradient / (1 + step_size * np.linalg.norm(gradient))
        if kernel is lp.tmalac:
            return gradient / (1 + step_size * np.abs(gradient))
        return gradient

    def log_proposal(end, start, gradient):
        residual = np.linalg.solve(factor, end - start) - step_size * tamed(factor.T @ gradient)
        return -residual @ residual / (4 * step_size * temperature)

    factor = np.linalg.cholesky(DENSE)
    with jax.enable_x64(True):
        estimator = as_estimator(logdensity)
        # The last two normals of this noise make a log uniform of -1e4, which accepts.
        randomness = Randomness(jnp.array([0.4, -1.1, 0.9, 100.0, 100.0]), ())
        for scale in (0.3, 1.0, 1.5):
            state = kernel.init(jnp.array(scale * START, jnp.float64), estimator)
            new, info = kernel.transition(
                randomness, state, estimator, step_size, jnp.array(DENSE), temperature
            )
            assert info.is_accepted
            start, end = np.array(state.position), np.array(new.position)
            log_ratio = (new.logdensity - state.logdensity) / temperature
            log_ratio += log_proposal(start, end, np.array(new.logdensity_grad))
            log_ratio -= log_proposal(end, start, np.array(state.logdensity_grad))
            np.testing.assert_allclose(info.acceptance_rate, np.exp(min(log_ratio, 0.0)))


def test_log_uniform():
    uniform = np.exp(jax.vmap(log_uniform)(jax.random.normal(KEY, (4000, 2))))
    # Shares below each quantile; their standard error is at most sqrt(1 / 4 / 4000) = 0.008.
    quantiles = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    shares = np.mean(uniform[:, None] < quantiles, axis=0)
    np.testing.assert_allclose(shares, quantiles, rtol=0, atol=4 * 0.008)


def with_trouble_beyond_one(logdensity_there, gradient_there):
    """Flat, but for what is said to be the density and the gradient where ``x[0] > 1``."""

    def estimate(batch, position, memory):
        beyond = position[0] > 1
        value = jnp.where(beyond, logdensity_there, 0.0)
        gradient = jnp.where(beyond, gradient_there, jnp.zeros(2))
        return Estimate(value, gradient), memory

    return GradientEstimator(lambda position: (), None, estimate, exact=True)


@every_adjusted
@pytest.mark.parametrize(
    "logdensity_there, gradient_there",
    [
        (np.nan, 0.0),
        (np.inf, 0.0),
        (-np.inf, 0.0),
        (0.0, np.nan),
        (0.0, np.inf),
        (0.0, -np.inf),
        (np.inf, np.inf),
        (-1500.0, 0.0),
    ],
)
def test_divergent_proposals_are_rejected_and_flagged(kernel, logdensity_there, gradient_there):
    estimator = with_trouble_beyond_one(logdensity_there, gradient_there)
    state = kernel.init(jnp.zeros(2), estimator)
    # Straight into the trouble, with a log uniform of -100.
    randomness = Randomness(jnp.array([5.0, 0.0, 10.0, 10.0]), ())
    new, info = kernel.transition(randomness, state, estimator, step_size=0.5)
    assert info.is_divergent and not info.is_accepted
    assert info.acceptance_rate == 0.0
    stay = state._replace(step=state.step + 1)
    if kernel in KINETIC:  # the momentum that was drawn, turned back
        stay = stay._replace(momentum=-randomness.noise[:2])
    assert_trees_close(new, stay, rtol=0, atol=0)


@every_adjusted
def test_a_plain_rejection_is_not_divergent(kernel):
    estimator = with_trouble_beyond_one(-900.0, 0.0)
    state = kernel.init(jnp.zeros(2), estimator)
    randomness = Randomness(jnp.array([5.0, 0.0, 10.0, 10.0]), ())
    _, info = kernel.transition(randomness, state, estimator, step_size=0.5)
    assert not info.is_divergent and not info.is_accepted


@every_unadjusted
@pytest.mark.parametrize("gradient_there", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_absorbs_an_unadjusted_chain(kernel, gradient_there):
    estimator = with_trouble_beyond_one(0.0, gradient_there)
    state = kernel.init(jnp.zeros(2), estimator)
    copies = kernel.draw(KEY, state, estimator).noise.size // 2
    for noise in ([50.0, 0.0], [-50.0, 0.0], [0.0, 0.0]):
        state, info = kernel.transition(
            Randomness(jnp.tile(jnp.array(noise), copies), ()), state, estimator, step_size=0.5
        )
        assert info.is_divergent
        assert np.all(np.isnan(state.position))


def test_ula_diverges_on_a_quartic_and_says_so_ever_after():
    estimator = as_estimator(lambda x: -0.25 * jnp.sum(x**4))

    @jax.vmap
    def step(noise, state):
        return lp.ula.transition(Randomness(noise, ()), state, estimator, step_size=0.1)

    starts = jnp.array([[10.0, 0.0], [0.5, -0.5]])
    states = jax.vmap(lambda position: lp.ula.init(position, estimator))(starts)
    lost = []
    for noise in jax.random.normal(KEY, (12, 2, 2)):
        states, infos = step(noise, states)
        finite = np.all(np.isfinite(states.position), axis=1)
        np.testing.assert_array_equal(finite, ~infos.is_divergent)
        # The neighbour in the same vmap is intact.
        assert finite[1]
        lost.append(not finite[0])
    # The first steps are finite: the chain is lost on the way, and for good.
    assert lost == sorted(lost) and not lost[0] and lost[-1]
    assert np.all(np.isnan(states.position[0]))


# The double well, from far


def double_well(x):
    square = jnp.sum(x**2)
    return -0.25 * square**2 + 0.5 * square


# Steps after which every chain has been at |x| <= 3. A tamed drift moves by less than 1 a step,
# so 1000 takes about 1000; the slowest of 16 chains took 1030 (mtula, whose drift grows with
# |x|: 18), and 11 from 10 (mtula: 4).
STEPS = {1000.0: 1150, 10.0: 30}


def radii(kernel, start, number):
    """Distances of 8 chains from the origin, and their flags, each ``[step, chain]``."""
    estimator = as_estimator(double_well)
    angles = jnp.linspace(0.0, 6.0, 8)
    starts = start * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    # Drawn ahead, because a generator inside the program is most of its compilation.
    noises = jax.random.normal(KEY, (number, 8, 4 if kernel in ADJUSTED else 2))

    @jax.jit
    def run(states, noises):
        def step(state, noise):
            state, info = kernel.transition(Randomness(noise, ()), state, estimator, step_size=0.1)
            return state, (jnp.linalg.norm(state.position), info.is_divergent)

        return jax.lax.scan(jax.vmap(step), states, noises)[1]

    states = jax.vmap(lambda position: kernel.init(position, estimator))(starts)
    distances, flags = run(states, noises)
    return np.asarray(distances), np.asarray(flags)


@pytest.mark.parametrize(
    "kernel, enable_x64, start",
    [(lp.tula, False, 10.0), *((kernel, True, 1000.0) for kernel in TAMED)],
    ids=str,
)
def test_tamed_kernels_return_from_far(kernel, enable_x64, start):
    with jax.enable_x64(enable_x64):
        distances, flags = radii(kernel, start, STEPS[start] + 20)
    assert np.all(np.isfinite(distances))
    assert np.all(distances.min(axis=0) <= 3.0)
    # Once there, they stay.
    assert np.all(distances[STEPS[start] :] <= 4.0)
    if kernel in UNADJUSTED:
        assert not np.any(flags)


@pytest.mark.parametrize("enable_x64, start", [(True, 1000.0), (False, 10.0)])
def test_ula_from_far_diverges_and_is_flagged(enable_x64, start):
    with jax.enable_x64(enable_x64):
        distances, flags = radii(lp.ula, start, 30)
    assert np.all(np.isnan(distances[-1]))
    np.testing.assert_array_equal(flags, np.isnan(distances))


def test_mala_from_far_does_not_move_and_is_flagged():
    distances, flags = radii(lp.mala, 10.0, 30)
    np.testing.assert_allclose(distances, 10.0, rtol=1e-5)
    assert np.all(flags)

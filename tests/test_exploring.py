"""Kernels for stochastic gradients and several modes: cycles, swaps, flattened energies."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

import langevin_ppl as lp
from langevin_ppl import infer
from langevin_ppl.base import Estimate, GradientEstimator, Randomness
from langevin_ppl.gradients import as_estimator
from langevin_ppl.kernels import KernelInfo, KernelState

KEY = jax.random.key(7)


def wells(x):
    """Two of width 0.25, six apart, with shares 0.7 and 0.3."""
    low, high = (-8.0 * jnp.sum((x - centre) ** 2) for centre in (-3.0, 3.0))
    return jnp.logaddexp(jnp.log(0.7) + low, jnp.log(0.3) + high)


def normal(x):
    return -0.5 * jnp.sum(x**2)


def run(algorithm, starts, num_steps, report, key=KEY):
    """Last states of many chains, and what ``report(state, info)`` says of all steps."""

    @jax.jit
    def steps(states, key):
        def body(states, key):
            keys = jax.random.split(key, starts.shape[0])
            states, infos = jax.vmap(algorithm.step)(keys, states)
            return states, report(states, infos)

        return jax.lax.scan(body, states, jax.random.split(key, num_steps))

    init = jax.vmap(lambda start: algorithm.init(start, key))
    return steps(init(starts), key)


def noisy(logdensity_fn, scale):
    """Exact gradients; log densities with a noise of its own at each position and batch."""

    def estimate(batch, position, memory):
        value, gradient = jax.value_and_grad(logdensity_fn)(position)
        place = jax.lax.bitcast_convert_type(jnp.sum(position), jnp.int32)
        noise = jax.random.normal(jax.random.fold_in(jax.random.wrap_key_data(batch), place))
        return Estimate(value + scale * noise, gradient), memory

    return GradientEstimator(
        init=lambda position: (),
        draw=lambda rng_key, step: jax.random.key_data(rng_key),
        estimate=estimate,
        exact=False,
    )


# Cycles


def test_a_cycle_by_hand():
    mass, h, temperature = np.array([0.5, 2.0], np.float32), 0.4, 1.5
    kernel, estimator = lp.cyclical_sgld, as_estimator(lambda x: -0.25 * jnp.sum(x**4))
    parameters = dict(cycle_length=4, inverse_mass_matrix=mass, temperature=temperature)
    state = kernel.init(jnp.array([1.0, -0.5]), estimator)
    x = np.array([1.0, -0.5])
    noises = np.asarray(jax.random.normal(KEY, (9, 2)))
    shares = [1.0, 0.5 + 0.5 * np.cos(np.pi / 4), 0.5, 0.5 + 0.5 * np.cos(3 * np.pi / 4)]
    for step in range(9):
        size, samples = h * shares[step % 4], step % 4 >= 2
        heat = np.sqrt(2 * size * temperature * mass) * noises[step]
        x = x - size * mass * x**3 + samples * heat
        randomness = Randomness(jnp.asarray(noises[step]), ())
        state, info = kernel.transition(randomness, state, estimator, h, **parameters)
        np.testing.assert_allclose(state.position, x, rtol=1e-4, atol=1e-6)
        assert info.cycle == step // 4 and info.cycle.dtype == jnp.int32
        assert info.log_weight == (0.0 if samples else -np.inf)
    assert info._fields[: len(KernelInfo._fields)] == KernelInfo._fields


def test_length_and_share_of_a_cycle_may_be_traced():
    @jax.jit
    def flags(length, share):
        algorithm = lp.cyclical_sgld(normal, 0.1, length, share)

        def body(state, key):
            state, info = algorithm.step(key, state)
            return state, (info.cycle, info.log_weight)

        return jax.lax.scan(body, algorithm.init(jnp.ones(2)), jax.random.split(KEY, 12))[1]

    for length, share, exploring in [(5, 0.8, 4), (3, 0.0, 0), (4, 0.25, 1)]:
        cycle, log_weight = flags(length, share)
        np.testing.assert_array_equal(cycle, np.arange(12) // length)
        samples = np.arange(12) % length >= exploring
        np.testing.assert_array_equal(log_weight, np.where(samples, 0.0, -np.inf))


def test_cycles_find_both_modes():
    # At h = 0.15 a noise-free step leaps over a mode of curvature 16 and, soon, to the other one.
    algorithm = lp.cyclical_sgld(wells, step_size=0.15, cycle_length=40)
    _, (x, log_weight) = run(
        algorithm, jnp.full((32, 1), 3.1), 1200, lambda s, i: (s.position[:, 0], i.log_weight)
    )
    x, log_weight = np.asarray(x), np.asarray(log_weight)
    counts = x[np.isfinite(log_weight[:, 0])]
    assert counts.shape == (600, 32)
    left = (counts < 0).mean(axis=0)
    assert np.all((left > 0.1) & (left < 0.9))
    # What counts is at the modes: the widest law of the second half, at h = 0.075, has 0.40.
    assert np.abs(np.abs(counts) - 3.0).max() < 5 * 0.40
    explored = x[~np.isfinite(log_weight[:, 0])]
    assert np.mean(np.abs(np.abs(explored) - 3.0) > 1.0) > 0.05


@pytest.mark.filterwarnings("ignore::langevin_ppl.DivergenceWarning")
def test_draws_of_a_run_carry_cycles_and_weights():
    target = lp.density(normal, jnp.zeros(2))
    settings = {"step_size": 0.1, "cycle_length": 10}
    idata = lp.sample(
        KEY, target, lp.cyclical_sgld, num_warmup=0, num_samples=25, parameters=settings
    )
    # Of 25 steps, 5 in each of two cycles sample, and the run resamples by the weights.
    stats = idata["sample_stats"]
    np.testing.assert_array_equal(stats["log_weight"], 0.0)
    cycle, count = np.unique(stats["cycle"][0], return_counts=True)
    np.testing.assert_array_equal(cycle, [0, 1])
    assert np.all(np.abs(count - 12.5) < 1.0)
    assert len(np.unique(idata["posterior"]["x"][0], axis=0)) == 10


# Swaps by estimated log densities


def expected_rate(log_ratio, sd, correction):
    """Mean of min(1, exp(Y)) for Y normal with mean ``log_ratio - correction``."""
    mean = log_ratio - correction
    return norm.cdf(mean / sd) + np.exp(mean + sd**2 / 2) * norm.cdf(-(mean / sd + sd))


def test_noisy_swaps_have_the_probability_of_the_closed_form():
    """Corrected in full, swaps there and back are in the ratio of the exact densities."""
    scale, positions = 2.0, np.array([[1.8], [0.6]], np.float32)
    difference = 0.5 * (1.8**2 - 0.6**2)  # of the log density, hot minus cold
    log_ratio, sd = 0.5 * difference, 0.5 * scale  # X is a mean of two, each of variance 2 s^2
    kernel, estimator = lp.replica_exchange(lp.ula, [1, 2]), noisy(normal, scale)
    # The running variance is known, and no longer changes.
    state = kernel.init(jnp.ones(1), estimator, KEY)._replace(
        variance=jnp.full(1, scale**2), num_estimates=jnp.asarray(10**9, jnp.int32)
    )

    @jax.jit
    def swaps(there, share):
        algorithm = kernel(estimator, step_size=1e-14, correction_share=share)
        begun = state._replace(replicas=state.replicas._replace(position=there))
        keys = jax.random.split(KEY, 100_000)
        states, infos = jax.vmap(algorithm.step, in_axes=(0, None))(keys, begun)
        return infos.swap_rate, jnp.abs(states.position[:, 0] - there[1, 0]) < 0.1

    for share in (1.0, 2.0, 1e9):
        rates, expected = [], []
        for order, sign in (([0, 1], 1.0), ([1, 0], -1.0)):
            rate, swapped = map(np.asarray, swaps(jnp.asarray(positions[order]), share))
            expected.append(expected_rate(sign * log_ratio, sd, 0.5 * sd**2 / share))
            rates.append(rate.mean(dtype=float))
            # A mean of 100000 numbers in [0, 1] has a standard error of 0.0016 at most.
            np.testing.assert_allclose([rates[-1], swapped.mean()], expected[-1], atol=4 * 0.0016)
        error = 4 * 0.0016 * 2 / min(expected)
        balanced = abs(rates[0] / rates[1] / np.exp(log_ratio) - 1.0) < error
        assert balanced == (share == 1.0)


def test_the_running_variance_is_that_of_the_difference():
    scale = 1.5
    algorithm = lp.replica_exchange(lp.ula, [1, 2, 4])(noisy(normal, scale), step_size=1e-3)
    last, _ = run(algorithm, jnp.ones((64, 1)), 2000, lambda state, info: ())
    mean = np.asarray(last.variance).mean(axis=0)
    # Each estimate has a standard deviation of sqrt(2) v; the running mean of 64 chains that of
    # sqrt(gain) / 8 v, with a gain of 2000^(-2/3) = 0.0063.
    np.testing.assert_allclose(mean, scale**2, rtol=4 * np.sqrt(0.0063) / 8)
    np.testing.assert_array_equal(last.num_estimates, 2000)


@pytest.mark.parametrize("kernel", [lp.ula, lp.baoab], ids=repr)
def test_exact_gradients_make_it_parallel_tempering(kernel):
    step_size = 0.3
    ours = lp.replica_exchange(kernel, [1, 3, 9])(wells, step_size=step_size)
    theirs = lp.parallel_tempering(kernel, [1, 3, 9])(wells, step_size=step_size)
    state, reference = ours.init(jnp.ones(2)), theirs.init(jnp.ones(2))
    step = jax.jit(lambda key, a, b: (ours.step(key, a), theirs.step(key, b)))
    for key in jax.random.split(KEY, 6):
        (state, info), (reference, expected) = step(key, state, reference)
        for one, other in zip(
            jax.tree.leaves((state.replicas, info)),
            jax.tree.leaves((reference.replicas, expected)),
            strict=True,
        ):
            np.testing.assert_allclose(one, other, rtol=1e-6)
    assert np.all(np.asarray(state.variance) == 0.0)


def test_corrected_swaps_keep_the_shares_of_modes():
    """The cold replica comes from one mode to the other by swaps alone."""
    step_size, scale = 0.01, 2.0
    kernel, estimator = lp.replica_exchange(lp.ula, [1, 4, 16, 64]), noisy(wells, scale)
    starts = jnp.where(jnp.arange(192) % 10 < 7, -3.0, 3.0)[:, None]

    @jax.jit
    def chains(correction_share):
        algorithm = kernel(estimator, step_size=step_size, correction_share=correction_share)
        return run(algorithm, starts, 4000, lambda s, i: s.position[:, 0])[1]

    shares = []
    for correction_share in (1.0, 1e9):
        x = np.asarray(chains(correction_share))[1000:]
        left = (x < 0).mean(axis=0)
        shares.append((left.mean(), left.std(ddof=1) / np.sqrt(left.size)))
        if correction_share == 1.0:
            # On a Gaussian of variance 1/16 that of ULA is 1 / (16 - 128 h); swaps keep it.
            spread = (np.abs(x) - 3.0).std()
            np.testing.assert_allclose(spread, 1 / np.sqrt(16 - 128 * step_size), rtol=0.03)
    (mean, error), (plain, plain_error) = shares
    assert error < 0.01 and abs(mean - 0.7) < 4 * error
    assert plain < 0.7 - 4 * plain_error


def test_memory_moves_with_its_replica():
    def estimate(batch, position, memory):
        value, gradient = jax.value_and_grad(normal)(position)
        return Estimate(value + batch * position[0], gradient), position

    estimator = GradientEstimator(
        init=lambda position: position,
        draw=lambda rng_key, step: jax.random.normal(rng_key),
        estimate=estimate,
        exact=False,
    )
    algorithm = lp.replica_exchange(lp.ula, [1, 2, 4])(estimator, step_size=0.1)
    last, rates = run(algorithm, jnp.zeros((8, 1)), 30, lambda state, info: info.swap_rate)
    np.testing.assert_array_equal(last.replicas.memory, last.replicas.position)
    assert np.nanmean(rates) > 0.3


def test_the_same_batch_twice_swaps_nothing():
    estimator = noisy(normal, 1.0)
    epochs = GradientEstimator(
        estimator.init,
        lambda rng_key, step: jax.random.key_data(jax.random.fold_in(KEY, step)),
        estimator.estimate,
        exact=False,
    )
    algorithm = lp.replica_exchange(lp.ula, [1, 2, 4])(epochs, step_size=0.1)
    last, rates = run(algorithm, jnp.zeros((4, 1)), 10, lambda state, info: info.swap_rate)
    assert np.nanmax(rates) == 0.0
    assert np.all(last.num_estimates == 0) and np.all(last.variance == 0.0)
    assert np.isfinite(last.replicas.position).all()


def test_a_lost_replica_does_not_spread():
    estimator = noisy(normal, 1.0)
    algorithm = lp.replica_exchange(lp.ula, [1, 2, 4])(estimator, step_size=0.1)
    state = algorithm.init(jnp.ones(1), KEY)
    positions = state.replicas.position.at[2].set(jnp.nan)
    state = state._replace(replicas=state.replicas._replace(position=positions))
    step = jax.jit(algorithm.step)
    for key in jax.random.split(KEY, 4):
        state, info = step(key, state)
    assert np.isfinite(state.replicas.position[:2]).all() and np.isfinite(state.variance).all()
    assert np.isnan(state.replicas.position[2]) and not info.is_divergent


# Flattened energies


def double_well(x):
    """Wells at -1 and 1, a barrier of 4 between them; the left one is lower by 1."""
    return -4.0 * (x[0] ** 2 - 1.0) ** 2 - 0.5 * x[0]


def log_psi(energy, log_theta, low, high):
    """The original definition, piece by piece: theta at the upper edges, exponential between."""
    width = (high - low) / len(log_theta)
    piece = np.clip(np.ceil((energy - low) / width).astype(int) - 1, 0, len(log_theta) - 1)
    below = log_theta[np.maximum(piece - 1, 0)]
    share = np.where(energy > high, 1.0, (energy - low) / width - piece)
    return below + (log_theta[piece] - below) * share


def test_a_flattened_step_by_hand():
    """The force is the gradient of T log(p^(1/T) psi^-zeta), from finite differences."""
    low, high, h, temperature, zeta = 0.0, 6.0, 0.01, 1.7, 0.6
    kernel = lp.contour_sgld(low, high, 6)
    estimator = as_estimator(double_well)
    log_theta = np.log([0.3, 0.25, 0.1, 0.2, 0.05, 0.1])

    def flattened(x):
        energy = 4.0 * (x**2 - 1.0) ** 2 + 0.5 * x
        return -energy - temperature * zeta * log_psi(energy, log_theta, low, high)

    still = Randomness(jnp.zeros(1), ())
    with jax.enable_x64(True):
        # Energies below the lowest edge, in each partition, and above the highest one.
        for x in (-1.0, -0.8, -0.6, -0.4, -0.2, 0.01, 0.5, 0.7, 1.45, 1.5, -1.7):
            state = kernel.init(jnp.array([x]), estimator)
            state = state._replace(log_theta=jnp.asarray(log_theta), step=jnp.asarray(7))
            new, info = kernel.transition(
                still, state, estimator, h, temperature=temperature, zeta=zeta, gain=2.0
            )
            force = (flattened(x + 1e-6) - flattened(x - 1e-6)) / 2e-6
            np.testing.assert_allclose(new.position[0], x + h * force, rtol=1e-6)
            energy = np.asarray(-new.logdensity)
            weight = zeta * log_psi(energy, log_theta, low, high)
            np.testing.assert_allclose(info.log_weight, weight, rtol=1e-10)
            share = 2.0 / (7**0.8 + 1000.0) * np.exp(weight)
            visited = np.arange(6) == np.clip(np.floor(energy), 0, 5)
            theta = (1.0 - share) * np.exp(log_theta) + share * visited
            np.testing.assert_allclose(np.exp(new.log_theta), theta, rtol=1e-10)


LOW, HIGH, PARTITIONS = -0.5, 5.5, 12
GRID = np.linspace(-2.5, 2.5, 400_001)
ENERGY = 4.0 * (GRID**2 - 1.0) ** 2 + 0.5 * GRID
DENSITY = np.exp(-ENERGY)
EDGES = np.r_[-np.inf, np.linspace(LOW, HIGH, PARTITIONS + 1)[1:-1], np.inf]
HISTOGRAM = np.histogram(ENERGY, EDGES, weights=DENSITY / DENSITY.sum())[0]


def assert_share(flags, weights, which, density):
    """Compare the weighted share of draws with quadrature, and return it."""
    flag, expected = which(flags), (density * which(GRID)).sum() / density.sum()
    share = (weights * flag).sum() / weights.sum()
    # Chains are independent; the standard error of a ratio of their sums.
    rest = ((flag - share) * weights).sum(axis=0)
    error = rest.std(ddof=1) * np.sqrt(rest.size) / weights.sum()
    assert error < 0.02
    # At h = 0.002 and curvatures of 32, ULA's variance is 3 % too large.
    assert abs(share - expected) < 4 * error + 0.06 * expected
    return share


@pytest.mark.parametrize("adapts", [False, True])
def test_flattened_energies(adapts):
    """Weighted draws have the law of the target, and theta becomes the histogram of energies."""
    kernel, steps = lp.contour_sgld(LOW, HIGH, PARTITIONS), 100_000
    algorithm = kernel(double_well, step_size=2e-3, gain=2.0 if adapts else 0.0)
    truth = jnp.asarray(np.log(HISTOGRAM), jnp.float32)

    def init(start, key):
        state = algorithm.init(start)
        return state if adapts else state._replace(log_theta=truth)

    starts = jnp.where(jnp.arange(64) % 2 == 0, -1.0, 1.0)[:, None]
    last, (x, log_weight) = run(
        algorithm._replace(init=init),
        starts,
        steps,
        lambda s, i: (s.position[:, 0], i.log_weight),
    )
    x, weights = np.asarray(x)[steps // 2 :], np.exp(np.float64(log_weight)[steps // 2 :])
    for which in (lambda x: x > 0.0, lambda x: np.abs(x) < 0.7):
        assert_share(x, weights, which, DENSITY)
        # The law of the chain is the flattened one, which has three times as much between wells.
        flattened = DENSITY * np.exp(-0.75 * log_psi(ENERGY, np.log(HISTOGRAM), LOW, HIGH))
        share = assert_share(x, np.ones_like(x), which, flattened)
        assert share > 1.4 * (DENSITY * which(GRID)).sum() / DENSITY.sum()
    theta = np.exp(np.float64(last.log_theta))
    np.testing.assert_allclose(theta.sum(axis=1), 1.0, rtol=1e-3)
    if adapts:
        seen = HISTOGRAM > 1e-3
        error = theta.std(axis=0, ddof=1)[seen] / np.sqrt(64)
        bound = 4 * error + 0.15 * HISTOGRAM[seen]
        assert np.all(np.abs(theta.mean(axis=0)[seen] - HISTOGRAM[seen]) < bound)
        assert np.all(bound < 0.5 * HISTOGRAM[seen])


def test_without_flattening_it_is_ula():
    kernel = lp.contour_sgld(0.0, 5.0, 5)
    ours = kernel(normal, step_size=0.1, zeta=0.0)
    theirs = lp.ula(normal, step_size=0.1)
    (state, info), (reference, _) = (a.step(KEY, a.init(jnp.ones(3))) for a in (ours, theirs))
    np.testing.assert_allclose(state.position, reference.position, rtol=1e-6)
    assert info.log_weight == 0.0


# All of them, and AMAGOLD


KERNELS = {
    lp.cyclical_sgld: {"cycle_length": 7},
    lp.replica_exchange(lp.ula, [1, 2]): {},
    lp.contour_sgld(0.0, 4.0, 8): {},
    lp.amagold(3): {},
}
every_kernel = pytest.mark.parametrize(("kernel", "settings"), KERNELS.items(), ids=repr)


def quartic(position):
    return -0.25 * jnp.sum(position["x"] ** 4) - position["y"] ** 2


@every_kernel
@pytest.mark.parametrize("enable_x64", [False, True])
def test_state_is_invariant_under_a_step(kernel, settings, enable_x64):
    with jax.enable_x64(enable_x64):
        numbers = {"step_size": 0.1, "temperature": 1.0, "friction": 1.0}
        known = {
            name: jnp.asarray(np.float64(value))
            for name, value in numbers.items()
            if name in kernel.parameters
        }
        algorithm = kernel(quartic, inverse_mass_matrix=np.arange(1.0, 5.0), **known, **settings)
        for dtype in [jnp.float32, jnp.float64] if enable_x64 else [jnp.float32]:
            position = {"x": jnp.ones(3, dtype), "y": jnp.ones((), dtype)}
            before = jax.eval_shape(algorithm.init, position)
            after, _ = jax.eval_shape(algorithm.step, KEY, before)
            assert jax.tree.structure(after) == jax.tree.structure(before)
            types = [
                [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(each)]
                for each in (before, after)
            ]
            assert types[0] == types[1]
    assert after._fields[:5] == KernelState._fields


@every_kernel
def test_a_draw_sees_shapes_only_and_old_keys_work(kernel, settings):
    estimator = noisy(normal, 1.0)
    if kernel.amortised:
        estimator = as_estimator(normal)
    algorithm = kernel(estimator, step_size=0.1, **settings)
    state = algorithm.init(jnp.ones(2), KEY)
    randomness = kernel.draw(KEY, state, estimator)
    elsewhere = state._replace(position=jnp.full(2, jnp.nan), logdensity=jnp.nan)
    again = kernel.draw(jax.random.key_data(KEY), elsewhere, estimator)
    made = kernel.transition(again, state, estimator, step_size=0.1, **settings)
    for one, other in zip(
        jax.tree.leaves((randomness, algorithm.step(KEY, state))),
        jax.tree.leaves((again, made)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@every_kernel
def test_kernels_say_what_they_are(kernel, settings):
    assert pickle.loads(pickle.dumps(kernel)) is kernel
    assert kernel.__doc__ and repr(kernel) == f"langevin_ppl.{kernel.__name__}"
    assert kernel.exact == kernel.amortised == (kernel is lp.amagold(3))
    assert kernel.tuner.target_acceptance_rate is not None


def test_in_numpyro():
    cyclical = infer.CyclicalSGLD(potential_fn=lambda z: 0.5 * jnp.sum(z**2), cycle_length=10)
    assert cyclical is not None


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: lp.cyclical_sgld(normal, 0.1, 0), ValueError, "cycle_length.*at least 1"),
        (lambda: lp.cyclical_sgld(normal, 0.1, 5, 1.5), ValueError, "exploration.*at most 1"),
        (lambda: lp.cyclical_sgld(normal, 0.1), TypeError, "cycle_length"),
        (lambda: lp.replica_exchange(lp.ula, [1]), ValueError, "replica_exchange.*at least two"),
        (lambda: lp.replica_exchange(lp.ubu, [1, 2]), ValueError, "does not end at a gradient"),
        (lambda: lp.replica_exchange("ula", [1, 2]), TypeError, "replica_exchange"),
        (
            lambda: lp.replica_exchange(lp.ula, [1, 2])(normal, 0.1, correction_share=0.5),
            ValueError,
            "correction_share.*at least 1",
        ),
        (
            lambda: lp.replica_exchange(lp.mala, [1, 2])(noisy(normal, 1.0), 0.1),
            ValueError,
            "Metropolis",
        ),
        (lambda: lp.contour_sgld(1.0, 1.0, 4), ValueError, "max_energy"),
        (lambda: lp.contour_sgld(np.nan, 1.0, 4), ValueError, "min_energy"),
        (lambda: lp.contour_sgld(0.0, 1.0, 1), ValueError, "num_partitions"),
        (lambda: lp.contour_sgld(0.0, 1.0, 4)(normal, 0.1, zeta=-1.0), ValueError, "zeta"),
    ],
)
def test_refusals(make, error, words):
    with pytest.raises(error, match=words):
        make()

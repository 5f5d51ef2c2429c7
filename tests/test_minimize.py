"""One call for all ways of minimising: particles, consensus, replicas, and what is said of them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import EFFECT, SIGMA, conjugate, conjugate_posterior, schools
from numpyro.infer.util import log_density

import langevin_ppl as lp
from langevin_ppl.optim import minimization

KEY = jax.random.key(0)


def rastrigin(x):
    """Its minima lie one apart, and the lowest is at 0."""
    return 10 * x.size + jnp.sum(x**2 - 10 * jnp.cos(2 * jnp.pi * x))


def bowl(x):
    """A quadratic on a pytree, with its minimum of 1 at (1, -2, -2)."""
    return 1.0 + jnp.sum((x["a"] - 1.0) ** 2) + 0.5 * jnp.sum((x["b"] + 2.0) ** 2)


def quartic(x):
    return jnp.sum(x**2) ** 2


def wall(x):
    return jnp.sum(x**2 + x**30)


BOWL_START = {"a": jnp.zeros(1), "b": jnp.zeros(2)}
METHODS = {
    "adam": optax.adam(0.1),
    "tusla": lp.optim.tusla(0.05, 0, power=0.0),
    "annealed": lp.optim.annealed_langevin(0.05, 0, 300, start=1.0, end=1e6),
    "consensus": lp.optim.consensus(),
    "isotropic": lp.optim.consensus(noise=0.6, anisotropic=False),
    "batches": lp.optim.consensus(batch_size=10),
    "exchange": lp.optim.replica_exchange(0.05, [0.01, 0.1, 1.0]),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_minimises_on_a_pytree(name):
    found = lp.optim.minimize(
        KEY, bowl, BOWL_START, METHODS[name], num_steps=300, num_particles=100, polish=0
    )
    assert found.success
    assert 1.0 - 1e-6 <= found.fun < 1.05
    np.testing.assert_allclose(found.fun, bowl(found.x), rtol=1e-6)
    assert found.history.shape == (300, 100)
    assert found.best[-1] >= found.fun - 1e-6
    polished = lp.optim.minimize(
        KEY, bowl, BOWL_START, METHODS[name], num_steps=300, num_particles=100
    )
    np.testing.assert_allclose(polished.x["b"], -2.0, atol=1e-3)
    assert polished.nfev > found.nfev
    np.testing.assert_array_equal(polished.history, found.history)


def test_the_lowest_of_many_minima():
    def start(key):
        return jax.random.uniform(key, (2,), minval=-5.0, maxval=5.0)

    local = lp.optim.minimize(KEY, rastrigin, jnp.full(2, 3.0), optax.sgd(1e-3))
    assert local.fun > 5.0
    for method, steps, particles in (
        (lp.optim.consensus(), 200, 100),
        (lp.optim.annealed_langevin(2e-3, 0, 1000, start=0.1, end=100.0), 1000, 100),
        (lp.optim.replica_exchange(2e-3, [0.5, 1.0, 2.0, 4.0, 8.0]), 500, 50),
    ):
        found = lp.optim.minimize(
            KEY, rastrigin, start, method, num_steps=steps, num_particles=particles
        )
        np.testing.assert_allclose(found.x, 0.0, atol=1e-3)


def test_evaluations_are_counted():
    """By a callback in the function itself."""
    calls = []

    def counted(x):
        jax.debug.callback(lambda value: calls.append(float(value)), x[0])
        return jnp.sum(x**2)

    options = {"num_steps": 7, "num_particles": 4, "polish": 0, "check": False}
    for method in (optax.sgd(0.1), lp.optim.consensus()):
        calls.clear()
        found = lp.optim.minimize(KEY, counted, jnp.ones(2), method, **options)
        jax.effects_barrier()
        assert len(calls) == found.nfev == 4 + 7 * 4 + 4
        assert found.njev == (28 if isinstance(method, optax.GradientTransformation) else 0)


# Consensus


def test_consensus_is_the_weighted_mean():
    x = np.random.default_rng(0).standard_normal((6, 2)).astype(np.float32)
    method = lp.optim.consensus(noise=0.0, drift=0.5, step_size=0.2, sharpness=3.0)
    state = method.init(KEY, quartic, jnp.asarray(x))
    stepped = method.step(KEY, quartic, state)
    weights = np.exp(-3.0 * np.sum(x**2, 1) ** 2)
    mean = weights @ x / weights.sum()
    np.testing.assert_allclose(stepped.state.position, x - 0.1 * (x - mean), rtol=1e-5)
    np.testing.assert_allclose(stepped.values, np.sum(x**2, 1) ** 2, rtol=1e-5)


@pytest.mark.parametrize("anisotropic, spread", [(True, 1), (False, 3)])
def test_squared_distances_shrink_by_the_factor_of_the_warning(anisotropic, spread):
    """(1 - drift dt)^2 + d noise^2 dt, for a constant, whose consensus is the mean."""
    method = lp.optim.consensus(
        noise=0.5, drift=0.8, step_size=0.3, sharpness=1.0, anisotropic=anisotropic
    )
    x = jax.random.normal(KEY, (100_000, 3))
    state = method.init(KEY, lambda x: 0.0 * x[0], x)
    moved = method.step(KEY, lambda x: 0.0 * x[0], state).state.position
    expected = (1 - 0.8 * 0.3) ** 2 + spread * 0.5**2 * 0.3
    np.testing.assert_allclose(jnp.sum(moved**2) / jnp.sum(x**2), expected, rtol=0.02)


def test_batches_have_a_consensus_of_their_own():
    """Of a constant: a mean that no step moves, in every batch."""
    method = lp.optim.consensus(noise=0.0, drift=1.0, step_size=1.0, batch_size=3)
    x = jax.random.normal(KEY, (12, 2))
    state = method.init(KEY, lambda x: 0.0 * x[0], x)
    moved = np.asarray(method.step(KEY, lambda x: 0.0 * x[0], state).state.position)
    places, counts = np.unique(moved.round(5), axis=0, return_counts=True)
    assert counts.tolist() == [3, 3, 3, 3]
    np.testing.assert_allclose(moved.mean(0), x.mean(0), atol=1e-6)


def test_a_consensus_has_no_weight_where_the_objective_is_not_finite():
    def cut(x):
        return jnp.where(x[0] > 0, jnp.sum((x - 1.0) ** 2), jnp.nan)

    found = lp.optim.minimize(
        KEY, cut, jnp.zeros(2), lp.optim.consensus(), num_steps=100, num_particles=50, polish=0
    )
    assert found.success
    np.testing.assert_allclose(found.x, 1.0, atol=0.05)
    assert np.isnan(found.history[0]).any()


@pytest.mark.parametrize(
    "settings, contracts",
    [
        ({"noise": 1.37}, True),
        ({"noise": 1.39}, False),
        ({"noise": 0.61, "anisotropic": False}, True),
        ({"noise": 0.63, "anisotropic": False}, False),
    ],
)
def test_noise_that_keeps_particles_apart_is_said(settings, contracts, recwarn):
    """2 drift - drift^2 dt <= d noise^2, with drift 1 and dt 0.1."""
    lp.optim.minimize(
        KEY, quartic, jnp.ones(5), lp.optim.consensus(**settings), num_steps=1, num_particles=4
    )
    said = [w for w in recwarn if w.category is lp.AssumptionWarning]
    assert bool(said) != contracts
    assert contracts or "cannot contract in mean square" in str(said[0].message)


# Replicas


def test_replicas_have_the_laws_of_their_temperatures():
    temperatures = [0.1, 0.4, 1.6]
    method = lp.optim.replica_exchange(0.05, temperatures)
    stiffness = jnp.array([1.0, 4.0])

    def quadratic(x):
        return 0.5 * jnp.sum(stiffness * x**2)

    @jax.jit
    def run(keys):
        state = method.init(KEY, quadratic, jnp.ones((4000, 2)))
        state, _ = jax.lax.scan(
            lambda state, key: (method.step(key, quadratic, state).state, None), state, keys
        )
        return state.replicas.position

    position = run(jax.random.split(KEY, 400))
    variance = np.var(np.asarray(position), axis=0)
    expected = np.asarray(temperatures)[:, None] / np.asarray(stiffness)
    np.testing.assert_allclose(variance, expected, rtol=0.1)


# Targets


def test_the_mode_of_a_model():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 2)).astype(np.float32)
    y = (x @ np.array([1.0, -0.5]) + 0.5 * rng.standard_normal(40)).astype(np.float32)
    target = lp.target(conjugate, x, y=y)
    found = lp.optim.minimize(KEY, target, method=lp.optim.tusla(1e-3, 0, power=0.0))
    mean, _ = conjugate_posterior(x, y)
    np.testing.assert_allclose(found.constrained["slope"], mean, atol=1e-3)
    value, _ = log_density(conjugate, (x,), {"y": y}, {"slope": mean})
    np.testing.assert_allclose(found.fun, -value, rtol=1e-5)


def test_particles_of_a_target_start_by_themselves():
    target = lp.target(schools, SIGMA, effect=EFFECT)
    method = lp.optim.consensus()
    found = lp.optim.minimize(KEY, target, method=method, num_steps=200, num_particles=50)
    assert found.constrained["tau"] > 0
    assert len(np.unique(found.history[0])) == 50
    np.testing.assert_allclose(found.fun, -target.logdensity_fn(found.x), rtol=1e-5)


# What went wrong


def test_the_step_of_a_failure_is_said_and_the_best_point_kept():
    with pytest.warns(lp.DivergenceWarning, match="1 of 1 particles met .* at step 1"):
        found = lp.optim.minimize(KEY, wall, jnp.array([4.0]), optax.sgd(1e-3), polish=0)
    assert not found.success
    assert found.failed_at.tolist() == [1]
    assert found.x == 4.0 and found.fun == wall(found.x)
    assert np.isnan(found.history[1:]).all()
    assert "best finite point" in found.message


def test_one_failure_leaves_the_other_particles_alone():
    def start(key):
        return jnp.where(jax.random.bernoulli(key, 0.5), 4.0, 0.5)[None]

    with pytest.warns(lp.DivergenceWarning, match="of 10 particles"):
        found = lp.optim.minimize(KEY, wall, start, optax.sgd(1e-2), num_particles=10, polish=0)
    assert found.success
    failed = found.failed_at >= 0
    assert 0 < failed.sum() < 10
    assert np.isfinite(found.history[:, ~failed]).all()
    assert found.fun < 1e-6


def test_an_interrupted_run_gives_what_it_has(monkeypatch):
    calls, chunk = iter(range(2)), minimization._chunk

    def stopping(*args, **kwargs):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return chunk(*args, **kwargs)

    monkeypatch.setattr(minimization, "_chunk", stopping)
    found = lp.optim.minimize(KEY, quartic, jnp.ones(2), optax.sgd(1e-3), num_steps=10_000)
    assert not found.success
    assert found.nit == len(found.history) < 10_000
    assert f"Interrupted after {found.nit} of 10000 steps" in found.message
    assert found.fun < found.history[-1, 0]


def test_particles_have_noise_of_their_own():
    """Whatever key the optimiser was made with, and also where it is one of Optax."""
    for method in (lp.optim.sgld(0.1, 0), optax.noisy_sgd(0.1, key=0)):
        options = {"num_steps": 3, "num_particles": 3, "spread": 0.0, "polish": 0, "check": False}
        found = lp.optim.minimize(KEY, quartic, jnp.zeros(2), method, **options)
        assert len(np.unique(found.history[-1])) == 3
        again = lp.optim.minimize(KEY, quartic, jnp.zeros(2), method, **options)
        np.testing.assert_array_equal(again.history, found.history)
        other = lp.optim.minimize(jax.random.key(1), quartic, jnp.zeros(2), method, **options)
        assert not np.array_equal(other.history, found.history)


REFUSED = {
    "no method": (lambda: lp.optim.minimize(KEY, quartic, jnp.ones(2)), "expected a method such"),
    "no start": (
        lambda: lp.optim.minimize(KEY, quartic, None, METHODS["adam"]),
        "expected a starting point x0",
    ),
    "words": (
        lambda: lp.optim.minimize(KEY, quartic, np.array([True]), METHODS["adam"]),
        "expected x0 to hold real numbers",
    ),
    "nothing": (
        lambda: lp.optim.minimize(KEY, quartic, jnp.zeros(0), METHODS["adam"]),
        "at least one number",
    ),
    "no function": (
        lambda: lp.optim.minimize(KEY, 3.0, jnp.ones(2), METHODS["adam"]),
        "expected a function of a point, or a target",
    ),
    "a vector": (
        lambda: lp.optim.minimize(KEY, lambda x: x, jnp.ones(2), METHODS["adam"]),
        "expected the function to give one real number",
    ),
    "nowhere finite": (
        lambda: lp.optim.minimize(KEY, lambda x: jnp.log(-(x[0] ** 2)), [1.0], METHODS["adam"]),
        "finite at none of the 1 starting points",
    ),
    "one particle": (
        lambda: lp.optim.minimize(KEY, quartic, jnp.ones(2), METHODS["consensus"]),
        "at least two particles",
    ),
    "uneven batches": (
        lambda: lp.optim.minimize(KEY, quartic, jnp.ones(2), METHODS["batches"], num_particles=15),
        "divides their number",
    ),
    "one place": (
        lambda: lp.optim.minimize(
            KEY, quartic, jnp.ones(2), METHODS["consensus"], num_particles=5, spread=0.0
        ),
        "start at the same point",
    ),
    "no drift": (lambda: lp.optim.consensus(drift=0.0), "drift: expected a number"),
    "no ladder": (lambda: lp.optim.replica_exchange(0.1, [1.0]), "at least two positive"),
    "a falling ladder": (lambda: lp.optim.replica_exchange(0.1, [2.0, 1.0]), "that rise"),
    "no swaps": (
        lambda: lp.optim.replica_exchange(0.1, [1.0, 2.0], kernel=lp.ubu),
        "does not end at a gradient",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_calls_are_refused(what):
    call, message = REFUSED[what]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_a_list_is_a_vector_and_whole_numbers_are_real():
    found = lp.optim.minimize(KEY, quartic, [1, 2], METHODS["adam"])
    assert found.x.dtype == jnp.float32
    np.testing.assert_allclose(found.x, 0.0, atol=0.05)
    assert "nfev" in repr(found) and "history" not in repr(found)


# What the theory asks for


@pytest.mark.parametrize("power, strength", [(2.0, 0.5), (4.0, 3.0), (3.0, 1.0)])
def test_growth_of_a_power(power, strength):
    def fn(x):
        return strength / power * jnp.sum(x**2) ** (power / 2)

    found = lp.optim.growth(KEY, fn, jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(found.exponent, power - 1, atol=0.01)
    np.testing.assert_allclose(found.constant, strength, rtol=0.05)
    np.testing.assert_allclose(found.power, power - 2, atol=0.01)
    far = found.radii[-1] ** (power - 2)
    np.testing.assert_allclose(found.dissipativity, strength * far, rtol=0.01)


def test_curvature_is_the_largest_eigenvalue():
    matrix = np.diag([1.0, 3.0, -7.0])
    found = lp.optim.growth(KEY, lambda x: 0.5 * x @ matrix @ x, jnp.ones(3))
    np.testing.assert_allclose(found.lipschitz, 7.0, rtol=1e-3)
    np.testing.assert_allclose(found.step_size, 2 / 7.0, rtol=1e-3)
    assert found.dissipativity < 0


def test_gradients_that_overflow_at_once_are_infinitely_steep():
    found = lp.optim.growth(KEY, wall, jnp.array([1e3]))
    assert found.exponent == math.inf
    steep = lp.optim.growth(KEY, lambda x: jnp.sum(jnp.exp(x) + jnp.exp(-x)), jnp.ones(2))
    assert steep.exponent == math.inf and steep.dissipativity > 0
    flat = lp.optim.growth(KEY, lambda x: 0.0 * x[0], jnp.ones(2))
    assert flat.lipschitz == 0 and flat.exponent == 0


SAID = {
    "an untamed step in a quartic": (quartic, lp.optim.sgld(1e-3, 0), r"power=2\)"),
    "an exponential": (
        lambda x: jnp.sum(jnp.exp(x**2)),
        lp.optim.tusla(1e-3, 0),
        "ever faster .* lp.optim.theopoula",
    ),
    "a step beyond 2 / L": (rastrigin, lp.optim.sgld(0.01, 0), "above 0.005"),
    "a time beyond 2 / sqrt(L)": (rastrigin, lp.optim.sghmc(0.11, 0), "above 0.1,"),
    "a taming of too little power": (
        quartic,
        lp.optim.tusla(1e-3, 0, power=1.0),
        "power 1 does not bound .* power=2",
    ),
    "a tamed step that overshoots": (quartic, lp.optim.tusla(0.3, 0), "above 0.25"),
    "a boost that overshoots": (
        rastrigin,
        lp.optim.theopoula(4e-3, 0, epsilon=0.1),
        "multiplied by 0.00653, .* above 0.00504",
    ),
    "a fall outwards": (
        lambda x: -0.5 * jnp.sum(x**2),
        lp.optim.tusla(1e-3, 0),
        "decreases outwards",
    ),
}


@pytest.mark.filterwarnings("ignore::langevin_ppl.DivergenceWarning")
@pytest.mark.parametrize("what", SAID)
def test_broken_conditions_are_said(what):
    fn, method, message = SAID[what]
    options = {"num_steps": 2, "polish": 0}
    with pytest.warns(lp.AssumptionWarning, match=message):
        lp.optim.minimize(KEY, fn, jnp.ones(2), method, **options)
    lp.optim.minimize(KEY, fn, jnp.ones(2), method, check=False, **options)


@pytest.mark.parametrize(
    "fn, method",
    [
        (quartic, lp.optim.tusla(0.01, 0)),
        (quartic, lp.optim.theopoula(0.01, 0)),
        (rastrigin, lp.optim.theopoula(4e-3, 0, boosting=False)),
        (rastrigin, lp.optim.sgld(4e-3, 0)),
        (rastrigin, lp.optim.sghmc(0.09, 0)),
        # The penalty is not in the function, and holds it.
        (lambda x: -jnp.sum(x**2), lp.optim.etheopoula(0.01, 0, power=2.0, penalty=quartic)),
    ],
)
def test_kept_conditions_are_not_mentioned(fn, method):
    lp.optim.minimize(KEY, fn, jnp.ones(2), method, num_steps=2, polish=0)


def test_other_settings_are_no_other_program():
    """Neither optimisers made anew nor other learning rates trace the objective again."""
    traces = []

    def traced(x):
        traces.append(None)
        return jnp.sum(x**2)

    def run(method):
        lp.optim.minimize(KEY, traced, jnp.ones(2), method, num_steps=2, num_particles=4, polish=0)
        return len(traces)

    makes = {
        "tusla": lambda scale: lp.optim.tusla(0.1 * scale, key=scale, power=1.0),
        "etheopoula": lambda scale: lp.optim.etheopoula(0.01 * scale, key=0, penalty=quartic),
        "consensus": lambda scale: lp.optim.consensus(noise=0.5 * scale, step_size=0.1 * scale),
        "schedule": lambda scale: lp.optim.consensus(sharpness=jnp.exp),
        "exchange": lambda scale: lp.optim.replica_exchange(0.1 * scale, [1.0, 2.0]),
    }
    for name, make in makes.items():
        first = run(make(1))
        # The shape of the value is looked at every time.
        assert run(make(2)) <= first + 1, name
    assert run(lp.optim.tusla(0.1, key=0, power=2.0)) > first + 2

"""Langevin and tamed optimisers: formulas, laws, and life in loops of other libraries."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from models import conjugate, conjugate_posterior
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from scipy.linalg import solve_discrete_lyapunov

import langevin_ppl as lp
from langevin_ppl.optim.optimizers import strongest_step

KEY = jax.random.key(0)
H, ETA, EPS = 0.07, 0.3, 0.05
PENALTY = 0.2


def penalty(x):
    """A quartic one on any pytree."""
    return 0.25 * PENALTY * optax.tree.norm(x, squared=True) ** 2


def boosted(g):
    return g / (1 + np.sqrt(H) * np.abs(g)) * (1 + np.sqrt(H) / (EPS + np.abs(g)))


def pull(x, power):
    return ETA * x * np.linalg.norm(x) ** power / (1 + np.sqrt(H) * np.linalg.norm(x) ** power)


# Without noise: what the step is made of, and the direction it should have.
OPTIMIZERS = {
    "sgld": (lambda **o: lp.optim.sgld(H, 0, **o), lambda g, x: g),
    "tusla": (
        lambda **o: lp.optim.tusla(H, 0, power=3.0, strength=ETA, **o),
        lambda g, x: (
            (g + ETA * x * np.linalg.norm(x) ** 3) / (1 + np.sqrt(H) * np.linalg.norm(x) ** 3)
        ),
    ),
    "tusla-plain": (
        lambda **o: lp.optim.tusla(H, 0, power=1.0, **o),
        lambda g, x: g / (1 + np.sqrt(H) * np.linalg.norm(x)),
    ),
    "theopoula": (
        lambda **o: lp.optim.theopoula(H, 0, epsilon=EPS, power=3.0, strength=ETA, **o),
        lambda g, x: boosted(g) + pull(x, 3.0),
    ),
    "theopoula-unboosted": (
        lambda **o: lp.optim.theopoula(H, 0, boosting=False, **o),
        lambda g, x: g / (1 + np.sqrt(H) * np.abs(g)),
    ),
    "etheopoula": (
        lambda **o: lp.optim.etheopoula(H, 0, epsilon=EPS, power=2.0, penalty=penalty, **o),
        lambda g, x: (
            boosted(g)
            + PENALTY * x * np.linalg.norm(x) ** 2 / (1 + np.sqrt(H) * np.linalg.norm(x) ** 2)
        ),
    ),
    "sghmc": (lambda **o: lp.optim.sghmc(H, 0, friction=2.0, **o), lambda g, x: H * g),
    "tsghmc": (
        lambda **o: lp.optim.tsghmc(H, 0, friction=2.0, power=3.0, linear=0.4, **o),
        lambda g, x: H * (0.4 * x + (g - 0.4 * x) / np.sqrt(1 + np.linalg.norm(x) ** 6 / 2.0)),
    ),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@every_optimizer
def test_a_step_is_the_formula(name):
    """On a pytree, whose leaves are one vector for every norm."""
    make, direction = OPTIMIZERS[name]
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, 6))
    split = lambda v: {"a": jnp.asarray(v[:2]), "b": jnp.asarray(v[2:].reshape(2, 2))}  # noqa: E731
    with jax.enable_x64(True):
        optimizer = make(inverse_temperature=math.inf)
        params = split(x)
        updates, _ = optimizer.update(split(g), optimizer.init(params), params)
        flat = np.concatenate([np.ravel(updates["a"]), np.ravel(updates["b"])])
    np.testing.assert_allclose(flat, -H * direction(g, x), rtol=1e-12)


@every_optimizer
def test_noise_has_the_spread_of_langevin_dynamics(name):
    beta = 50.0
    optimizer = OPTIMIZERS[name][0](inverse_temperature=beta)
    params = {"a": jnp.zeros((200, 100)), "b": jnp.zeros(20_000)}
    updates, state = optimizer.update(params, optimizer.init(params), params)
    # By a momentum, whose noise has a friction of 2 in it, the position moves h times as far.
    kinetic = "hmc" in name
    expected = 2 * H / beta * (2.0 * H**2 if kinetic else 1.0)
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_allclose(jnp.var(leaf), expected, rtol=0.05)
    correlation = np.corrcoef(np.ravel(updates["a"]), updates["b"])[0, 1]
    assert abs(correlation) < 0.03
    again, _ = optimizer.update(params, state, params)
    if not kinetic:
        assert abs(np.corrcoef(again["b"], updates["b"])[0, 1]) < 0.03
    same, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_array_equal(same["b"], updates["b"])


def stationary_variance(name, h, force, beta):
    """Variance of the law that a one-dimensional optimiser keeps, from its own step on a grid."""
    make = {
        "sgld": lambda: lp.optim.sgld(h, 0, inverse_temperature=math.inf),
        "tusla": lambda: lp.optim.tusla(h, 0, power=2.0, inverse_temperature=math.inf),
        "theopoula": lambda: lp.optim.theopoula(h, 0, inverse_temperature=math.inf),
    }[name]
    optimizer = make()
    grid = jnp.linspace(-3.2, 3.2, 801)

    def moved(x):
        updates, _ = optimizer.update(force(x), optimizer.init(x), x)
        return x + updates

    ends, sd = jax.vmap(moved)(grid), math.sqrt(2 * h / beta)
    # Column j: where a chain at grid point j goes.
    matrix = np.exp(-0.5 * ((np.asarray(grid)[:, None] - np.asarray(ends)) / sd) ** 2)
    matrix /= matrix.sum(0)
    # The law that does not change, whose entries sum to one.
    law = np.linalg.solve(matrix - np.eye(grid.size) + 1.0, np.ones(grid.size))
    return float(law @ np.asarray(grid) ** 2)


@pytest.mark.parametrize(
    "name, ratio", [("sgld", 2.0), ("tusla", math.sqrt(2.0)), ("theopoula", math.sqrt(2.0))]
)
def test_stationary_law_and_order_of_its_bias(name, ratio):
    """The Gibbs law of a quartic well, with an error that shrinks as the theory says."""
    beta = 2.0

    def force(x):
        return x**3 + x

    with jax.enable_x64(True):
        grid = np.linspace(-4.0, 4.0, 4001)
        weights = np.exp(-beta * (0.25 * grid**4 + 0.5 * grid**2))
        exact = weights @ grid**2 / weights.sum()
        coarse, fine = (
            abs(stationary_variance(name, h, force, beta) - exact) for h in (8e-3, 4e-3)
        )
    assert fine < 0.05 * exact
    assert abs(coarse / fine - ratio) < 0.12 * ratio


def test_law_of_sghmc_is_gibbs_up_to_order_one():
    """On a quadratic the step is affine: its covariance solves a Lyapunov equation."""
    stiffness, beta, friction = 3.0, 5.0, 1.5
    gibbs = np.diag([1.0 / (beta * stiffness), 1.0 / beta])

    def error(h):
        optimizer = lp.optim.sghmc(h, 0, friction=friction, inverse_temperature=math.inf)

        def moved(vector):
            position, momentum = vector
            state = optax.tree.set(optimizer.init(position), momentum=momentum)
            updates, state = optimizer.update(stiffness * position, state, position)
            return jnp.stack([position + updates, optax.tree.get(state, "momentum")])

        linear = np.asarray(jax.jacobian(moved)(jnp.zeros(2)))
        kick = math.sqrt(2 * friction * h / beta) * np.array([h, 1.0])
        return solve_discrete_lyapunov(linear, np.outer(kick, kick)) - gibbs

    with jax.enable_x64(True):
        coarse, fine = error(0.02), error(0.01)
    assert np.all(np.abs(fine) < 0.02 * gibbs.max())
    # Positions alone do better than the joint law.
    np.testing.assert_allclose(coarse / fine, [[4.0, 2.0], [2.0, 2.0]], rtol=0.05)


def indicator_toy(theta, x):
    """Lim et al. (2021): a kink at x, and a wall of power 30."""
    near = theta**2 * (1 + (x <= theta)) + theta**30
    far = (2 * jnp.abs(theta) - 1) * (1 + (x <= theta)) + theta**30
    return jnp.where(jnp.abs(theta) <= 1, near, far)


def path(optimizer, start, draws):
    """Positions of an optimiser on the toy, ``[step]``."""

    def step(carry, x):
        theta, state = carry
        gradient = jax.grad(indicator_toy)(theta, x)
        updates, state = optimizer.update(gradient, state, theta)
        theta = optax.apply_updates(theta, updates)
        return (theta, state), theta

    start = jnp.asarray(start)
    return np.asarray(jax.lax.scan(step, (start, optimizer.init(start)), draws)[1])


def test_tusla_comes_back_where_others_overflow_or_stall():
    beta = jax.random.beta(KEY, 2.0, 2.0, (1000,))
    tamed = path(lp.optim.tusla(1e-3, 0, power=28), 4.0, beta)
    np.testing.assert_allclose(tamed[0], 0.2053, atol=1e-4)
    assert abs(tamed[-1]) < 0.05
    assert not np.isfinite(path(optax.sgd(1e-3), 4.0, beta[:2])[1])
    assert path(optax.adam(1e-3), 4.0, beta)[-1] > 3.5
    normal = jax.random.normal(KEY, (500,))
    tamed = path(lp.optim.tusla(2e-3, 0, power=28), 5.0, normal)
    np.testing.assert_allclose(tamed[:2], [-1.708, 0.584], atol=1e-3)
    assert abs(tamed[-1]) < 0.05


@pytest.mark.parametrize("strength, stays", [(1.9, True), (2.1, False)])
def test_a_pull_beyond_its_bound_leaves_every_ball(strength, stays):
    """Far out a step multiplies by 1 - sqrt(h) eta: it must stay below one in size."""
    h = 1.0
    assert strongest_step(strength) < h
    with pytest.warns(lp.AssumptionWarning, match=f"above {strongest_step(strength):g}"):
        optimizer = lp.optim.tusla(h, 0, power=2.0, strength=strength, inverse_temperature=math.inf)
    x = jnp.asarray(1e4)
    for _ in range(20):
        updates, _ = optimizer.update(jnp.zeros(()), optimizer.init(x), x)
        x = x + updates
    assert (abs(x) < 1e4) == stays


def test_numbers_may_be_schedules_or_injected():
    params = jnp.ones(3)
    slow = optax.linear_schedule(0.1, 0.0, 10)
    optimizer = lp.optim.tusla(slow, 0, power=0.0, inverse_temperature=math.inf)
    state = optimizer.init(params)
    first, state = optimizer.update(params, state, params)
    for _ in range(9):
        last, state = optimizer.update(params, state, params)
    np.testing.assert_allclose(first, -0.1 / (1 + np.sqrt(0.1)), rtol=1e-6)
    np.testing.assert_allclose(last, -0.01 / (1 + np.sqrt(0.01)), rtol=1e-5)

    injected = optax.inject_hyperparams(lp.optim.tusla)(0.1, key=0, power=0.0, strength=0.5)
    state = injected.init(params)
    one, _ = injected.update(params, state, params)
    state.hyperparams["learning_rate"] = jnp.asarray(0.2)
    two, _ = jax.jit(injected.update)(params, state, params)
    np.testing.assert_allclose(one, -0.15 / (1 + np.sqrt(0.1)), rtol=1e-3)
    np.testing.assert_allclose(two, -0.3 / (1 + np.sqrt(0.2)), rtol=1e-3)


def test_inverse_temperature_grows_to_its_end():
    optimizer = lp.optim.annealed_langevin(0.5, 0, 3, start=1.0, end=64.0)
    params = jnp.zeros(40_000)
    state, spreads = optimizer.init(params), []
    for _ in range(5):
        updates, state = optimizer.update(params, state, params)
        spreads.append(float(jnp.var(updates)))
    np.testing.assert_allclose(spreads, [1.0, 1 / 4, 1 / 16, 1 / 64, 1 / 64], rtol=0.05)


def test_blocks_chain_and_mask():
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    noise = lp.optim.add_langevin_noise(0.1, 0, 100.0)
    only_a = optax.masked(noise, {"a": True, "b": False})
    tamed = lp.optim.tame(lp.taming.coordinatewise, 0.1)
    optimizer = optax.chain(tamed, optax.scale_by_learning_rate(0.1), only_a)
    gradient = jax.tree.map(lambda p: 10.0 * p, params)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates["b"], -0.5, rtol=1e-6)
    assert jnp.all(jnp.abs(updates["a"] + 0.5) > 1e-4)


def test_small_precisions_are_kept():
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(3)}
    for make, _ in OPTIMIZERS.values():
        optimizer = make()
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        assert {name: leaf.dtype for name, leaf in updates.items()} == {
            "a": jnp.bfloat16,
            "b": jnp.float32,
        }


def test_steps_in_svi():
    """A Gaussian posterior, which the guide can hold."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 2)).astype(np.float32)
    y = (x @ np.array([1.0, -0.5]) + 0.5 * rng.standard_normal(40)).astype(np.float32)
    svi = SVI(conjugate, AutoNormal(conjugate), lp.optim.tusla(1e-3, 0, power=1.0), Trace_ELBO(8))
    found = svi.run(KEY, 3000, x, y, progress_bar=False)
    mean, covariance = conjugate_posterior(x, y)
    np.testing.assert_allclose(found.params["slope_auto_loc"], mean, atol=0.05)
    # A diagonal guide has the conditional spreads.
    spread = 1 / np.sqrt(np.diag(np.linalg.inv(covariance)))
    np.testing.assert_allclose(found.params["slope_auto_scale"], spread, rtol=0.2)


@pytest.mark.slow
def test_steps_in_the_trainer_of_energies():
    def model():
        rate = numpyro.param("rate", 1.0, constraint=dist.constraints.positive)
        base = dist.Normal(0.0, 2.0)
        numpyro.sample("x", lp.distributions.EnergyBased(lambda x: rate * x**2, base=base))

    data = np.random.default_rng(0).normal(0.0, 0.5, 2000).astype(np.float32)
    fitted = lp.energy.fit(
        KEY,
        model,
        data,
        method=lp.energy.jarzynski(),
        step_size=0.02,
        optimizer=lp.optim.tusla(0.05, 0, power=0.0),
        num_steps=1500,
        progress=False,
    )
    # Maximum likelihood: 2 rate + 1 / 4 is the precision of the data.
    expected = 0.5 * (1 / np.mean(data**2) - 0.25)
    np.testing.assert_allclose(fitted.parameters["rate"], expected, rtol=0.15)


BAD = {
    "a negative rate": (lambda: lp.optim.sgld(-0.1, 0), "learning_rate: expected a number"),
    "no rate": (lambda: lp.optim.sgld("fast", 0), "learning_rate: expected a number"),
    "no key": (lambda: lp.optim.sgld(0.1, "seed"), "key: expected a key"),
    "cold": (lambda: lp.optim.sgld(0.1, 0, inverse_temperature=0.0), "inverse_temperature"),
    "a negative power": (lambda: lp.optim.tusla(0.1, 0, power=-1.0), "power: expected a number"),
    "a push": (lambda: lp.optim.tusla(0.1, 0, strength=-1.0), "strength: expected a number"),
    "no epsilon": (lambda: lp.optim.theopoula(0.1, 0, epsilon=0.0), "epsilon: expected"),
    "no penalty": (lambda: lp.optim.etheopoula(0.1, 0, penalty=1e-3), "penalty: expected a func"),
    "no friction": (lambda: lp.optim.sghmc(0.1, 0, friction=0.0), "friction: expected"),
    "no taming": (lambda: lp.optim.tame("norm", 0.1), "taming: expected a function"),
    "warming": (
        lambda: lp.optim.annealed_langevin(0.1, 0, 10, start=2.0, end=1.0),
        "expected an inverse temperature that grows",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_settings_are_refused(what):
    make, message = BAD[what]
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@pytest.mark.parametrize("make", [lp.optim.tusla, lp.optim.theopoula, lp.optim.tsghmc])
def test_tamed_steps_need_the_parameters(make):
    optimizer = make(0.1, 0)
    with pytest.raises(ValueError, match=r"optimizer.update\(gradients, state, params\)"):
        optimizer.update(jnp.ones(2), optimizer.init(jnp.ones(2)))

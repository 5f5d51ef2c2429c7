"""Tamings: the formulas of the papers, the limits, and float32 where squares overflow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import langevin_ppl as lp
from langevin_ppl.taming import (
    coordinatewise,
    frictional,
    norm,
    normwise,
    polygonal,
    polynomial,
    regularised,
    split,
    taming_loss,
    untamed,
)

POWERS = (0.0, 1.0, 2.0, 3.5)
TAMINGS = {
    "normwise": normwise,
    "coordinatewise": coordinatewise,
    **{f"polynomial-{power}": polynomial(power) for power in POWERS},
    **{f"regularised-{power}": regularised(power, 0.0) for power in POWERS},
}
REFERENCES = {
    "normwise": lambda g, x, h: g / (1 + h * np.linalg.norm(g)),
    "coordinatewise": lambda g, x, h: g / (1 + h * np.abs(g)),
    **{
        f"polynomial-{power}": lambda g, x, h, r=power: (
            g / np.sqrt(1 + h * np.linalg.norm(x) ** (2 * r))
        )
        for power in POWERS
    },
    **{
        f"regularised-{power}": lambda g, x, h, r=power: (
            g / (1 + np.sqrt(h) * np.linalg.norm(x) ** r)
        )
        for power in POWERS
    },
}
STEP_SIZES = (1e-4, 0.03, 1.0, 7.0)
STEP_SIZE = 0.01

every_taming = pytest.mark.parametrize("name", TAMINGS)


def vectors(seed, scale):
    """Gradient and position of the same length, entries of different sizes."""
    rng = np.random.default_rng(seed)
    gradient, position = rng.standard_normal((2, 5))
    return scale * gradient, np.sqrt(scale) * position


@every_taming
@pytest.mark.parametrize("enable_x64, tolerance", [(False, 3e-6), (True, 1e-13)])
def test_formula(name, enable_x64, tolerance):
    with jax.enable_x64(enable_x64):
        taming = jax.jit(TAMINGS[name])
        for seed, scale in enumerate([1e-3, 1.0, 1e3]):
            gradient, position = vectors(seed, scale)
            for step_size in STEP_SIZES:
                drift = taming(jnp.array(gradient), jnp.array(position), step_size)
                expected = REFERENCES[name](gradient, position, step_size)
                np.testing.assert_allclose(drift, expected, rtol=tolerance)
                loss = taming_loss(jnp.array(gradient), drift)
                removed = np.linalg.norm(gradient - expected) / np.linalg.norm(gradient)
                # The loss is a difference: its error is a rounding of the gradient, not of itself.
                np.testing.assert_allclose(loss, removed, rtol=tolerance, atol=tolerance)


def test_tusla_pulls_and_stula_leaves_the_linear_part():
    with jax.enable_x64(True):
        gradient, position = map(jnp.array, vectors(2, 3.0))
        for h in STEP_SIZES:
            growth = np.linalg.norm(position) ** 2.5
            expected = (gradient - 0.4 * position * growth) / (1 + np.sqrt(h) * growth)
            tamed = regularised(2.5, 0.4)(gradient, position, h)
            np.testing.assert_allclose(tamed, expected, rtol=1e-12)
            expected = (gradient + 0.7 * position) / (1 + np.sqrt(h) * growth) - 0.7 * position
            tamed = split(2.5, 0.7)(gradient, position, h)
            np.testing.assert_allclose(tamed, expected, rtol=1e-12)
        # On a Gaussian of that precision nothing is left to tame.
        np.testing.assert_allclose(split(2.5, 0.7)(-0.7 * position, position, 9.0), -0.7 * position)


@pytest.mark.parametrize("kernel", [lp.mtula, lp.tusla, lp.stula], ids=repr)
def test_a_taming_by_position_is_one_about_the_location(kernel):
    """A target moved by m, and a taming about m, move the chain by m."""
    location, matrix = np.array([3.0, -2.0]), np.array([[1.0, 0.3], [0.3, 0.5]])

    def quartic(x):
        return -0.25 * jnp.sum(x**4)

    with jax.enable_x64(True):
        here = kernel(quartic, step_size=0.1, inverse_mass_matrix=matrix)
        there = kernel(
            lambda x: quartic(x - location),
            step_size=0.1,
            inverse_mass_matrix=matrix,
            location=location,
        )
        key, start = jax.random.key(0), jnp.array([1.5, -0.5])
        one, info = here.step(key, here.init(start))
        other, moved = there.step(key, there.init(start + location))
        np.testing.assert_allclose(other.position, one.position + location, rtol=1e-12)
        np.testing.assert_allclose(moved.taming_loss, info.taming_loss, rtol=1e-10)
        assert info.taming_loss > 0.1
        with pytest.raises(ValueError, match=r"location to be a scalar or of shape \(2,\)"):
            kernel(quartic, step_size=0.1, location=jnp.zeros(3)).step(key, here.init(start))


def test_untamed_is_the_identity():
    gradient = jnp.array([1.0, -2e30, 0.0])
    np.testing.assert_array_equal(untamed(gradient, gradient, STEP_SIZE), gradient)
    assert taming_loss(gradient, gradient) == 0.0


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_norm_neither_overflows_nor_underflows(scale):
    vector = np.array([3.0, -4.0, 0.0, 12.0], np.float32) * np.float32(scale)
    np.testing.assert_allclose(norm(jnp.array(vector)), 13.0 * scale, rtol=1e-6)


def test_norm_of_zero():
    assert norm(jnp.zeros(3)) == 0.0


# What follows is float32, where the square of 1e30 is infinite and that of 1e-30 is zero.
HUGE = {
    "one entry": np.array([0.0, 1e30, 0.0, 0.0], np.float32),
    "mixed": np.array([1e30, -1e-3, 1e10, 0.0], np.float32),
    "all entries": np.array([1e30, -1e30, 1e30, 1e30], np.float32),
    "near the largest float": np.array([3e38, 3e38, -3e38, 3e38], np.float32),
}


@pytest.mark.parametrize("gradient", HUGE.values(), ids=HUGE)
def test_normwise_drift_of_a_huge_gradient_has_length_one_over_step_size(gradient):
    drift = normwise(jnp.array(gradient), jnp.ones(4), STEP_SIZE)
    np.testing.assert_allclose(np.linalg.norm(drift), 1 / STEP_SIZE, rtol=1e-5)
    np.testing.assert_allclose(
        np.float64(drift) * STEP_SIZE,
        np.float64(gradient) / np.linalg.norm(np.float64(gradient)),
        rtol=1e-5,
    )
    np.testing.assert_allclose(taming_loss(jnp.array(gradient), drift), 1.0, rtol=1e-5)


@pytest.mark.parametrize("gradient", HUGE.values(), ids=HUGE)
def test_coordinatewise_drift_of_a_huge_gradient(gradient):
    drift = coordinatewise(jnp.array(gradient), jnp.ones(4), STEP_SIZE)
    exact = np.float64(gradient)
    np.testing.assert_allclose(drift, exact / (1 + STEP_SIZE * np.abs(exact)), rtol=1e-5)
    np.testing.assert_allclose(taming_loss(jnp.array(gradient), drift), 1.0, rtol=1e-5)


def test_polynomial_where_the_growth_overflows():
    # |x|^(2r) is 2.56e42 here, infinite in float32; the quotient is of order 1e10.
    position = np.full(4, 2e10, np.float32)
    gradient = -position * np.float32(4e20)
    drift = polynomial(2.0)(jnp.array(gradient), jnp.array(position), STEP_SIZE)
    expected = REFERENCES["polynomial-2.0"](np.float64(gradient), np.float64(position), STEP_SIZE)
    # An exponential of a logarithm near 50 has about 50 roundings of 6e-8 in it.
    np.testing.assert_allclose(drift, expected, rtol=3e-5)


@every_taming
def test_tiny_gradients_pass(name):
    gradient = jnp.array([1e-30, -2e-30, 0.0], jnp.float32)
    drift = TAMINGS[name](gradient, jnp.zeros(3), STEP_SIZE)
    at_power_zero = {
        "polynomial-0.0": 1 / np.sqrt(1 + STEP_SIZE),
        "regularised-0.0": 1 / (1 + np.sqrt(STEP_SIZE)),
    }
    shrink = at_power_zero.get(name, 1.0)
    np.testing.assert_allclose(drift, shrink * np.array(gradient), rtol=1e-5)


@every_taming
def test_zero_gradient(name):
    zero = jnp.zeros(3)
    for position in (0.0, 1.0, 1e15):
        drift = TAMINGS[name](zero, jnp.full(3, position), STEP_SIZE)
        np.testing.assert_array_equal(drift, zero)
        assert taming_loss(zero, drift) == 0.0


@every_taming
@pytest.mark.parametrize("entry", [jnp.inf, -jnp.inf, jnp.nan])
def test_a_gradient_that_is_not_finite_is_not_hidden(name, entry):
    # A taming that turned infinity into 1 / h would let a lost chain look alive.
    drift = TAMINGS[name](jnp.array([1.0, entry]), jnp.ones(2), STEP_SIZE)
    assert not np.all(np.isfinite(drift))


@every_taming
def test_sizes_and_directions_over_the_whole_range_of_float32(name):
    rng = np.random.default_rng(1)
    exponents = rng.uniform(-30, 30, size=(300, 4))
    gradients = np.float32(rng.choice([-1.0, 1.0], size=(300, 4)) * 10**exponents)
    positions = np.float32(10 ** rng.uniform(-10, 10, size=(300, 4)))

    @jax.jit
    @jax.vmap
    def tame(gradient, position):
        drift = TAMINGS[name](gradient, position, STEP_SIZE)
        return drift, taming_loss(gradient, drift)

    drifts, losses = (np.asarray(out) for out in tame(gradients, positions))
    assert np.all((losses >= 0.0) & (losses <= 1.0 + 1e-6))
    # Subnormal numbers count as zero on most backends.
    normal = np.abs(drifts) > np.finfo(np.float32).tiny
    assert np.all(np.sign(drifts)[normal] == np.sign(gradients)[normal])
    assert np.all(np.abs(drifts) <= np.abs(gradients) * (1 + 1e-6))
    if name == "coordinatewise":
        assert np.all(np.abs(drifts) * STEP_SIZE <= 1 + 1e-6)
        return
    if name == "normwise":
        assert np.all(np.linalg.norm(drifts, axis=1) * STEP_SIZE <= 1 + 1e-6)
    # The other tamings multiply by one factor: the largest entry fixes all the others.
    largest = np.argmax(np.abs(gradients), axis=1)[:, None]
    factor = np.take_along_axis(drifts, largest, 1) / np.take_along_axis(gradients, largest, 1)
    expected = np.float64(factor) * np.float64(gradients)
    np.testing.assert_allclose(drifts[normal], expected[normal], rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in TAMINGS if not n.startswith("regularised")])
def test_loss_vanishes_linearly_with_the_step_size(name):
    with jax.enable_x64(True):
        gradient, position = vectors(3, 1.0)
        position /= np.linalg.norm(position) / 1.2
        size = np.linalg.norm(gradient)
        if name == "normwise":
            slope = size
        elif name == "coordinatewise":
            slope = np.linalg.norm(gradient**2) / size
        else:
            power = float(name.removeprefix("polynomial-"))
            slope = 0.5 * np.linalg.norm(position) ** (2 * power)
        for step_size in (1e-6, 1e-7):
            drift = TAMINGS[name](jnp.array(gradient), jnp.array(position), step_size)
            loss = taming_loss(jnp.array(gradient), drift)
            # The next term is of relative order step_size, with a factor of a few.
            np.testing.assert_allclose(loss / step_size, slope, rtol=1e-5)


@pytest.mark.parametrize("power", POWERS)
def test_loss_of_tusla_vanishes_with_the_root_of_the_step_size(power):
    with jax.enable_x64(True):
        gradient, position = map(jnp.array, vectors(3, 1.0))
        for h in (1e-8, 1e-10):
            loss = taming_loss(gradient, regularised(power, 0.0)(gradient, position, h))
            np.testing.assert_allclose(
                loss / np.sqrt(h), np.linalg.norm(position) ** power, rtol=2e-2
            )


def test_tamings_with_a_part_of_their_own():
    """Boosts, pulls, and what is left untamed, by the formulas of the papers."""
    gradient, position = vectors(3, 2.0)
    g, x, h = gradient, position, 0.03
    root, size = np.sqrt(h), np.linalg.norm(position)
    part = g / (1 + root * np.abs(g))
    boost = 1 + root / (0.1 + np.abs(g))
    pull = 0.7 * x * size**2 / (1 + root * size**2)
    cases = {
        polygonal(0.1): part * boost,
        polygonal(0.1, boosting=False): part,
        polygonal(0.1, True, 2.0, 0.7): part * boost - pull,
        regularised(2.0, 0.7): g / (1 + root * size**2) - pull,
        split(2.0, 0.4): -0.4 * x + (g + 0.4 * x) / (1 + root * size**2),
        frictional(2.0, 0.4, 3.0): -0.4 * x + (g + 0.4 * x) / np.sqrt(1 + size**4 / 3.0),
    }
    with jax.enable_x64(True):
        for taming, expected in cases.items():
            drift = taming(jnp.array(g), jnp.array(x), h)
            np.testing.assert_allclose(drift, expected, rtol=1e-12)


@every_taming
def test_a_pytree_is_one_long_vector(name):
    gradient, position = (jnp.array(v, jnp.float32) for v in vectors(4, 3.0))

    def cut(v):
        return {"a": v[0], "b": v[1:].reshape(2, 2)}

    whole = TAMINGS[name](gradient, position, STEP_SIZE)
    parts = TAMINGS[name](cut(gradient), cut(position), STEP_SIZE)
    np.testing.assert_allclose(parts["a"], whole[0], rtol=1e-5)
    np.testing.assert_allclose(parts["b"].ravel(), whole[1:], rtol=1e-5)
    losses = taming_loss(gradient, whole), taming_loss(cut(gradient), parts)
    np.testing.assert_allclose(*losses, rtol=1e-4)

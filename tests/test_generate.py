"""The one call that generates, whatever the sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import langevin_ppl as lp
from langevin_ppl.diffusion import generate as _  # noqa: F401
from langevin_ppl.diffusion.sampler import simulate

PROCESS = lp.scores.VP()
SCORE = lp.scores.exact_mixture(PROCESS, [0.3, 0.7], [[-2.0, 0.0], [2.0, 1.0]], [0.1, 0.2])
KEY = jax.random.key(0)
SAMPLER = lp.diffusion.dpm_solver_pp(order=2, num_steps=12)


def draw(num=50, **options):
    return lp.diffusion.generate(KEY, SCORE, SAMPLER, num, **options)


def test_samples_do_not_depend_on_the_batch():
    np.testing.assert_allclose(draw().samples, draw(batch_size=7).samples, rtol=1e-5, atol=1e-5)
    assert np.array_equal(draw().samples, draw().samples)


def test_samples_have_the_law_of_the_score():
    """Weight and means within 5 standard errors; 50 steps leave less than that of bias."""
    x = lp.diffusion.generate(KEY, SCORE, lp.diffusion.dpm_solver_pp(num_steps=50), 4000).samples
    right = x[:, 0] > 0
    assert abs(right.mean() - 0.7) < 5 * np.sqrt(0.21 / 4000)
    error = np.sqrt(0.2 / 2800)
    np.testing.assert_allclose(x[right].mean(axis=0), [2.0, 1.0], atol=5 * error)
    np.testing.assert_allclose(x[right].std(axis=0), np.sqrt(0.2), rtol=0.08)


def test_the_trajectory_ends_at_the_samples():
    found = draw(trajectory=True)
    assert found.trajectory.shape == (50, 13, 2) and found.times.shape == (13,)
    assert np.array_equal(found.trajectory[:, -1], found.samples)
    assert found.times[0] == PROCESS.t_max and found.num_evaluations == 12
    assert draw().trajectory is None


def test_inside_jit_the_samples_are_the_same():
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(50))
    inside = jax.jit(lambda score, keys: simulate(score, SAMPLER, keys))(SCORE, keys)
    np.testing.assert_allclose(inside, draw().samples, rtol=1e-4, atol=1e-4)


def test_generation_starts_where_it_is_told():
    """Data noised a little come back near themselves; noise of one's own is used as it is."""
    data = np.tile([[2.0, 1.0]], (20, 1))
    noised = PROCESS.perturb(jax.random.key(1), data, 0.05, event_ndim=1)
    back = draw(20, initial=noised, start=0.05).samples
    assert np.abs(back - data).max() < 2.0
    noise = jax.random.normal(jax.random.key(2), (20, 2)) * PROCESS.sigma(1.0)
    first = draw(20, initial=noise, trajectory=True).trajectory[:, 0]
    np.testing.assert_allclose(first, noise, rtol=1e-6)


def test_numbers_of_steps_share_a_program():
    from langevin_ppl.diffusion.generate import _advance

    draw()
    before = _advance._cache_size()
    for num_steps in (2, 20, 32):
        sampler = lp.diffusion.dpm_solver_pp(order=2, num_steps=num_steps)
        lp.diffusion.generate(KEY, SCORE, sampler, 50)
    other = lp.scores.exact_mixture(PROCESS, [0.5, 0.5], [[-1.0, 0.0], [1.0, 3.0]], [0.3, 0.2])
    lp.diffusion.generate(KEY, other, SAMPLER, 50)
    assert _advance._cache_size() == before


def test_samples_that_are_lost_are_told():
    broken = SCORE.replace(denoiser=lambda x, t, c: jnp.where(x[0] > 0, jnp.nan, x), exact=False)
    with pytest.warns(lp.DivergenceWarning, match="not finite"):
        found = lp.diffusion.generate(KEY, broken, SAMPLER, 50)
    assert 0 < found.is_finite.sum() < 50
    assert np.array_equal(found.is_finite, np.isfinite(found.samples).all(axis=1))


def test_positive_data_come_out_positive():
    data = np.exp(np.random.default_rng(0).normal(size=(30, 1)))
    score = lp.scores.empirical(lp.scores.GeometricBrownian(), data)
    found = lp.diffusion.generate(KEY, score, SAMPLER, 40, trajectory=True)
    assert (found.samples > 0).all() and (found.trajectory > 0).all()
    # The last step is onto the data themselves.
    nearest = np.abs(found.samples - data.T).min(axis=1)
    assert np.median(nearest / found.samples[:, 0]) < 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples"),
        ({"batch_size": 0}, "batch_size"),
        ({"condition": 1}, "takes none"),
        ({"start": 0.5}, "initial"),
        ({"initial": np.zeros((3, 2)), "num_samples": 4}, "initial: expected shape"),
        ({"initial": np.full((4, 2), np.nan), "num_samples": 4}, "finite"),
        ({"initial": np.zeros((4, 2)), "start": 2.0, "num_samples": 4}, "interval"),
        ({"initial": np.zeros((4, 2)), "start": PROCESS.t_min, "num_samples": 4}, "start"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        lp.diffusion.generate(KEY, SCORE, SAMPLER, **options)


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match="Score"):
        lp.diffusion.generate(KEY, lambda x, t: x, SAMPLER, 3)
    with pytest.raises(TypeError, match="sampler"):
        lp.diffusion.generate(KEY, SCORE, "euler", 3)
    with pytest.raises(TypeError, match="rng_key"):
        lp.diffusion.generate(3, SCORE, SAMPLER, 3)

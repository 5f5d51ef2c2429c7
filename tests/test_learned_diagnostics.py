"""Diagnostics of scores: nothing wrong with known ones, and what is wrong with broken ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import langevin_ppl as lp

D, S = lp.diagnostics, lp.scores
MIXTURE = S.exact_mixture(S.VP(), [0.5, 0.5], [[-1.0, 0.3], [1.0, 0.0]], [0.1, 0.2])
DATA = np.array(lp.diffusion.generate(jax.random.key(0), MIXTURE, num_samples=128).samples)
TIMES = jnp.array([0.2, 0.5])


@pytest.mark.parametrize("process", [S.VP(), S.RectifiedFlow(), S.EDM(t_max=5.0)], ids=repr)
def test_the_score_of_a_law_has_no_residual(process):
    score = S.exact_mixture(process, [0.5, 0.5], [[-1.0, 0.3], [1.0, 0.0]], [0.1, 0.2])
    residual = D.fokker_planck_residual(jax.random.key(0), score, DATA, TIMES)
    assert residual.shape == (2,) and residual.max() < 5e-3


def test_a_wrong_score_has_the_residual_of_its_closed_form():
    """Of ``D = c x`` for `EDM`, by hand: ``s = a y / r^2`` with ``a = c - 1``.

    ``ds/dr = -2 a y / r^3`` and ``r grad(div s + s^2) = 2 a^2 y / r^3``, so that the residual is
    ``2 |a (1 + a)| |y| / r``; at ``y = x + r z`` the root mean square is known.
    """
    score = S.Score(lambda x, t, condition: 0.4 * x, S.EDM(t_max=5.0), (2,))
    data = np.full((400, 2), 0.5)
    found = D.fokker_planck_residual(jax.random.key(1), score, data, jnp.array([0.5]))
    expected = 2 * 0.6 * 0.4 * np.sqrt(0.25 + 0.25) / 0.5
    # The mean square of 800 numbers has a relative error of about 0.06 here.
    np.testing.assert_allclose(found[0], expected, rtol=0.1)
    probes = D.fokker_planck_residual(
        jax.random.key(1), score, data, jnp.array([0.5]), num_probes=3
    )
    np.testing.assert_allclose(probes, found, rtol=1e-3)  # a multiple of the identity: no noise


@pytest.mark.slow
def test_the_gap_of_a_known_score_is_its_floor():
    flow, noisy = lp.diffusion.dpm_solver_pp(num_steps=40), lp.diffusion.ancestral(num_steps=400)
    good = D.flow_gap(jax.random.key(0), MIXTURE, flow, noisy, 2000)
    assert good.value < good.floor + 0.06
    # Noise corrects what a score that is too small leaves too wide, and the flow does not.
    weak = MIXTURE.replace(denoiser=_too_small, exact=False, potential=None)
    bad = D.flow_gap(jax.random.key(0), weak, flow, noisy, 2000)
    assert bad.value > 2 * good.value


def _too_small(x, t, condition):
    """Denoiser of half of the score."""
    alpha = MIXTURE.process.alpha(t)
    return (x + 0.5 * (alpha * MIXTURE.denoiser(x, t, condition) - x)) / alpha


def test_predictions_that_swing_late_are_found():
    """Of a denoiser that is the identity predictions are the samples; their variance by hand."""
    score = S.Score(lambda x, t, condition: x, S.EDM(t_max=10.0), (1,))
    times = np.array([10.0, 1.0, 0.4, 0.2, 0.1, 0.002])
    paths = np.ones((20, 6, 1))
    paths[:, :, 0] += 0.01 * np.random.default_rng(0).normal(size=(20, 6))
    paths[3, :, 0] = [5.0, 0.0, 0.0, 0.9, 0.3, 0.4]
    generated = lp.diffusion.Generated(paths[:, -1], np.ones(20, bool), paths, times, 5, True)
    found = D.mode_interpolation(score, generated)
    np.testing.assert_allclose(found.variance, paths[:, 2:5, 0].var(axis=1), rtol=1e-4)
    assert np.flatnonzero(found.suspect).tolist() == [3]
    assert not D.mode_interpolation(score, generated, threshold=1.0).suspect.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: D.fokker_planck_residual(jax.random.key(0), S.empirical(S.PFGM(), DATA), DATA,
                                          TIMES), "Gaussian process"),
        (lambda: D.fokker_planck_residual(jax.random.key(0), MIXTURE, DATA[:, :1], TIMES),
         "x: expected shape"),
        (lambda: D.fokker_planck_residual(jax.random.key(0), MIXTURE, DATA, [2.0]), "interval"),
        (lambda: D.fokker_planck_residual(jax.random.key(0), MIXTURE, DATA, TIMES, num_probes=0),
         "num_probes"),
        (lambda: D.flow_gap(jax.random.key(0), MIXTURE, lp.diffusion.ancestral(),
                            lp.diffusion.ancestral()), "one that adds noise"),
        (lambda: D.mode_interpolation(MIXTURE, lp.diffusion.generate(
            jax.random.key(0), MIXTURE, num_samples=2)), "trajectory=True"),
        (lambda: D.mode_interpolation(MIXTURE, lp.diffusion.generate(
            jax.random.key(0), MIXTURE, num_samples=2, trajectory=True), window=(1e-9, 1e-8)),
         "at least two nodes"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

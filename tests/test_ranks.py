"""Effective sample size and R-hat on ranks, against ArviZ's."""

import numpy as np
import pytest
from arviz_stats.base.array import array_stats

from langevin_ppl.convergence.ranks import bulk_ess, rank_normalised, rhat, split_chains

SHAPES = [(4, 1000), (4, 501), (2, 303), (16, 250)]


def autoregression(correlation, chains, draws, coordinates=3, seed=0):
    """Chains in stationarity whose neighbours have this correlation."""
    noise = np.random.default_rng(seed).standard_normal((chains, draws, coordinates))
    values = noise.copy()
    for i in range(1, draws):
        fresh = np.sqrt(1 - correlation**2) * noise[:, i]
        values[:, i] = correlation * values[:, i - 1] + fresh
    return values


def arvizs(name, values):
    return getattr(array_stats, name)(values, chain_axis=0, draw_axis=1)


def assert_arvizs(values, ess_tolerance=1e-6):
    np.testing.assert_allclose(bulk_ess(values), arvizs("ess", values), rtol=ess_tolerance)
    np.testing.assert_allclose(rhat(values), arvizs("rhat", values), rtol=1e-6)


@pytest.mark.parametrize(("chains", "draws"), SHAPES)
@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.8, -0.5, -0.9])
def test_chains_that_mix(correlation, chains, draws):
    assert_arvizs(autoregression(correlation, chains, draws))


@pytest.mark.parametrize(("chains", "draws"), SHAPES)
def test_chains_that_hardly_mix(chains, draws):
    values = autoregression(0.999, chains, draws)
    # Correlations stay positive to the end, where ArviZ leaves the last pairs out of its sum: its
    # ESS is larger, by a few parts in the length of a half chain.
    ratio = bulk_ess(values) / arvizs("ess", values)
    assert np.all((ratio > 1 - 5 / (draws // 2)) & (ratio < 1 + 1e-9))
    np.testing.assert_allclose(rhat(values), arvizs("rhat", values), rtol=1e-6)
    assert bulk_ess(values).max() < 5 * chains < chains * draws / 10
    assert rhat(values).min() > 1.1


def test_antithetic_chains_count_more_than_their_draws_but_not_without_end():
    values = autoregression(-0.9, 4, 1000)
    # It would be 19 times their number; the bound is ArviZ's and Stan's.
    np.testing.assert_allclose(bulk_ess(values), 4000 * np.log10(4000))


@pytest.mark.parametrize("correlation", [0.6, -0.4])
def test_a_known_autocorrelation(correlation):
    """A Gaussian autoregression is worth (1 - c) / (1 + c) of its draws."""
    values = autoregression(correlation, 8, 20_000, coordinates=1)
    # The estimate's relative standard error is about 2 % here.
    expected = 160_000 * (1 - correlation) / (1 + correlation)
    np.testing.assert_allclose(bulk_ess(values), expected, rtol=0.1)


def test_chains_that_disagree():
    in_place, in_scale = autoregression(0.3, 4, 400), autoregression(0.3, 4, 400)
    in_place[1] += 0.5
    in_scale[1] *= 4.0
    for values, bound in ((in_place, 1.01), (in_scale, 1.05)):
        assert_arvizs(values, ess_tolerance=0.03)
        assert rhat(values).min() > bound
    drifting = autoregression(0.0, 4, 400) + np.linspace(0.0, 2.0, 400)[:, None]
    assert_arvizs(drifting, ess_tolerance=0.03)
    assert rhat(drifting).min() > 1.1


def test_ties():
    values = np.round(autoregression(0.5, 4, 200))
    assert len(np.unique(values)) < 12
    assert_arvizs(values)
    binary = (autoregression(0.5, 4, 201) > 0).astype(float)
    assert_arvizs(binary)


def test_ranks_of_ties_are_shared():
    scores = rank_normalised(np.array([[3.0, 1.0, 3.0], [2.0, 3.0, 1.0]])[:, :, None])[:, :, 0]
    # Mean ranks 1.5, 3 and 5 of six numbers.
    assert scores[0, 1] == scores[1, 2]
    assert scores[0, 0] == scores[0, 2] == scores[1, 1]
    assert scores[1, 0] < 0 < scores[0, 0]
    # Of three: 1, 2 and 3 are at normal scores -x, 0 and x.
    three = rank_normalised(np.array([[[7.0], [-1.0], [100.0]]]))[0, :, 0]
    np.testing.assert_allclose(three, [0.0, three[1], -three[1]], atol=1e-12)


def test_ranks_do_not_see_a_monotone_change():
    values = autoregression(0.5, 4, 200)
    np.testing.assert_allclose(bulk_ess(np.exp(3 * values)), bulk_ess(values))


def test_coordinates_that_do_not_move():
    values = autoregression(0.5, 4, 200)
    values[:, :, 1] = 2.0
    np.testing.assert_allclose(bulk_ess(values), arvizs("ess", values), rtol=1e-6)
    assert bulk_ess(values)[1] == 800.0
    assert np.isnan(rhat(values)[1])  # without a warning
    values = autoregression(0.5, 4, 200)
    values[2, :, 1] = 2.0  # one chain is stuck, which the others' variance hides
    assert_arvizs(values, ess_tolerance=0.1)
    assert rhat(values)[1] > 1.1


def test_single_precision_and_a_single_chain():
    values = autoregression(0.5, 4, 300)
    np.testing.assert_allclose(bulk_ess(values.astype(np.float32)), bulk_ess(values), rtol=1e-4)
    one = values[:1]
    np.testing.assert_allclose(bulk_ess(one), arvizs("ess", one), rtol=1e-6)
    assert np.all(np.isfinite(rhat(one)))


def test_halves_of_an_odd_chain_leave_out_its_middle():
    values = np.arange(14.0).reshape(2, 7, 1)
    halves = split_chains(values)[:, :, 0]
    np.testing.assert_array_equal(halves, [[0, 1, 2], [7, 8, 9], [4, 5, 6], [11, 12, 13]])

"""When draws are enough: what is examined, when a run stops, and what is said of it."""

import tracemalloc
import warnings

import arviz as az
import arviz_base
import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr

import langevin_ppl as lp
from langevin_ppl.convergence import Convergence, as_blocks, judge, rule, summarise, watch
from langevin_ppl.convergence.ranks import bulk_ess, rhat, split_chains
from langevin_ppl.convergence.screen import screen
from langevin_ppl.export import draw_blocks, variables
from langevin_ppl.tree import Layout

KEY = jax.random.key(4)


def draws(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


# The rule


@pytest.mark.parametrize("ess", [0, -1.0, float("nan"), float("inf"), "400", True, None])
def test_effective_sample_sizes_that_are_none(ess):
    with pytest.raises(ValueError, match=r"^ess: expected a number between 0 and inf"):
        lp.converged(ess=ess)


@pytest.mark.parametrize("rhat", [1, 0.9, float("nan"), float("inf"), "1.01", None])
def test_bounds_of_rhat_that_are_none(rhat):
    with pytest.raises(ValueError, match=r"^rhat: expected a number between 1 and inf"):
        lp.converged(rhat=rhat)


def test_what_satisfies_a_rule():
    rule = lp.converged(ess=100, rhat=1.01)
    assert Convergence(100.0, 101.0, 1.01, 0).satisfies(rule)
    for seen in (
        Convergence(99.0, 101.0, 1.0, 0),
        Convergence(101.0, 99.0, 1.0, 0),
        Convergence(101.0, 101.0, 1.02, 0),
        Convergence(float("nan"), 101.0, 1.0, 0),
        Convergence(101.0, float("nan"), 1.0, 0),
        Convergence(101.0, 101.0, float("nan"), 0),
    ):
        assert not seen.satisfies(rule)


# What is examined


def slow(values):
    """Runs of ten equal draws."""
    return np.repeat(values[:, ::10], 10, axis=1)


def apart(values):
    return values + np.array([0.4, 0.0, 0.0, 0.0])[:, None]


def wider(values):
    """One chain sees another scale, which the means do not show."""
    return values * np.array([3.0, 1.0, 1.0, 1.0])[:, None]


def swinging(values):
    """Antithetic about the mean, and slow in its square."""
    return np.abs(slow(values)) * np.where(np.arange(values.shape[1]) % 2, 1.0, -1.0)


@pytest.mark.parametrize("spoil", [slow, apart, wider, swinging])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_worst_of_many_coordinates_is_found(spoil, scale):
    """Of 500, one is bad; a cheaper statistic chooses which are examined by ranks."""
    values = draws(4, 400, 500)
    values[:, :, 317] = scale * (spoil(values[:, :, 317]) + 5.0)
    seen = summarise(values)
    squares = bulk_ess((values - values.mean(axis=(0, 1))) ** 2)
    assert seen.worst == 317
    alone = bulk_ess(values[:, :, 317:318]).min(), squares[317]
    # Ties of squares are broken by rounding, which is another in another array.
    assert min(seen.ess, seen.ess_squares) == pytest.approx(min(alone), rel=0.01)
    if spoil in (apart, wider):
        assert seen.rhat == pytest.approx(rhat(values).max())
        assert seen.rhat > 1.01


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_screen_of_blocks_is_that_of_all_draws(monkeypatch, dtype):
    """The scores by their definitions, whatever blocks the draws are read in."""
    values = (1e3 + draws(3, 101, 7) * 10.0 ** np.arange(-2, 5)).astype(dtype)
    values[:, :, 3] = 2.0
    values[2, 60, 5] = np.nan
    monkeypatch.setattr("langevin_ppl.convergence.blocks.BLOCK_BYTES", 10 * values[:, 0].nbytes)
    usable = [0, 1, 2, 4, 6]
    halves = split_chains(values[:, ::3, usable]).astype(np.float64)  # of 34 draws
    variances = halves.var(axis=1)
    centred = halves - halves.mean(axis=1, keepdims=True)
    expected = [
        halves.mean(axis=1).var(axis=0),
        variances.std(axis=0),
        (centred[:, 1:] * centred[:, :-1]).mean(axis=(0, 1)),
    ] / variances.mean(axis=0)
    blocks = as_blocks({"a": values[:, :, 0], "b": values[:, :, 1:].reshape(3, 101, 2, 3)})
    found = screen(blocks, 3)
    np.testing.assert_allclose(found.scores[:, usable], expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(found.changes, np.arange(7) != 3)
    np.testing.assert_array_equal(found.finite, np.arange(7) != 5)


def test_blocks_of_a_model_are_judged_like_its_variables_in_memory(monkeypatch):
    """Of 300 coordinates 64 are examined; both choose the same ones."""

    def curves():
        with numpyro.plate("row", 5):
            z = numpyro.sample("z", dist.LogNormal(0.0, 1.0))
        weights = jnp.sin(jnp.arange(1500.0)).reshape(3, 100, 5)
        numpyro.deterministic("curve", jnp.tanh(weights) @ z)

    target = lp.target(curves)
    layout = Layout.of(target.prototype)
    positions = draws(4, 600, 5).astype(np.float32)
    positions[:, :, 2] = slow(positions[:, :, 2])
    monkeypatch.setattr("langevin_ppl.export.BLOCK_BYTES", 70 * 4 * 305 * 4)
    whole = variables(target, layout, positions)
    at_once = target.constrain({"z": jnp.asarray(positions)}, batch_ndims=2)
    for name, values in at_once.items():
        np.testing.assert_allclose(whole[name], values, rtol=1e-5, atol=1e-6)
    blocks = draw_blocks(target, layout, positions)
    assert [b["curve"].shape[1] for b in blocks.read(3)] == [70, 70, 60]
    for stride in (1, 3):
        seen = rule._summarised(blocks, stride)
        assert seen == rule._summarised(as_blocks(whole), stride)
        assert min(seen.ess, seen.ess_squares) < 4 * 600 / stride / 2


@pytest.mark.slow
def test_a_run_takes_little_more_memory_than_its_result(monkeypatch, tmp_path):
    """NumPy's own, of a large deterministic; with a store, of a part of the draws alone."""
    for constant in ("BLOCK_BYTES", "STORED_BYTES"):
        monkeypatch.setattr(f"langevin_ppl.export.{constant}", 2**19)
    monkeypatch.setattr("langevin_ppl.convergence.blocks.BLOCK_BYTES", 2**19)

    def line(x, y):
        slope = numpyro.sample("slope", dist.Normal(0.0, 10.0))
        numpyro.sample("y", dist.Normal(numpyro.deterministic("mu", x * slope), 1.0), obs=y)

    x = jnp.linspace(-1.0, 1.0, 5000)
    target = lp.target(line, x, jnp.sin(x))

    def peak(number, **kept):
        tracemalloc.start()
        idata = lp.sample(KEY, target, num_samples=number, num_warmup=50, **kept)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert idata["posterior"]["mu"].shape == (4, number, 5000)
        return most / idata["posterior"].nbytes

    def folder(name):
        return {"checkpoint": tmp_path / name, "store": tmp_path / f"{name}.zarr"}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lp.ConvergenceWarning)
        lp.sample(KEY, target, num_samples=20, num_warmup=50, **folder("compiles"))
        assert peak(300) < 1.5
        assert peak(300, **folder("measured")) < 0.5


def test_few_coordinates_are_all_examined():
    values = draws(4, 100, 30)
    seen = summarise(values)
    squares = bulk_ess((values - values.mean(axis=(0, 1))) ** 2)
    assert seen.ess == pytest.approx(bulk_ess(values).min())
    assert seen.ess_squares == pytest.approx(squares.min())
    assert seen.rhat == pytest.approx(rhat(values).max())


def test_draws_that_say_nothing():
    nothing = Convergence(0.0, 0.0, float("inf"), 0)
    assert summarise(draws(4, 7, 2)) == nothing
    assert summarise(np.ones((4, 100, 2))) == nothing
    for trouble in (np.nan, np.inf):
        values = draws(4, 100, 2)
        values[1, 50:, 1] = trouble
        assert summarise(values) == nothing._replace(worst=1, worst_rhat=1)


def test_coordinates_that_never_change_are_left_out():
    values = draws(4, 100, 3)
    values[:, :, 1] = 7.0
    assert summarise(values)[:3] == pytest.approx(summarise(values[:, :, [0, 2]])[:3])
    # A simplex of one, a fixed deterministic: they neither help nor harm. A chain that is stuck
    # where the others move is no such thing.
    values[0, :, 0] = values[0, 0, 0]
    seen = summarise(values)
    assert seen.worst == 0 and seen.rhat > 1.1


def test_coordinates_are_named_as_in_the_summary_of_arviz():
    posterior = {
        "a": draws(2, 10),
        "count": np.zeros((2, 10), int),
        "m": draws(2, 10, 2, 3, seed=1),
        "none": np.zeros((2, 10, 0)),
        "one": draws(2, 10, 1, seed=2),
        "school": draws(2, 10, 2, 2, seed=3),
    }
    blocks = as_blocks(posterior)
    labels = {"school": [["Eton", "Rugby"], None], "m": [["wrong length"]]}
    blocks = blocks._replace(labels=labels)
    del posterior["count"], posterior["none"]
    tree = arviz_base.from_dict(
        {"posterior": posterior},
        dims={"school": ["name", "year"]},
        coords={"name": ["Eton", "Rugby"]},
    )
    names = [blocks.name_of(i) for i in range(1 + 6 + 1 + 4)]
    assert names == list(az.summary(tree, kind="stats").index)
    np.testing.assert_array_equal(next(blocks.flat(1))["m"], posterior["m"].reshape(2, 10, 6))


def test_the_verdict_names_what_falls_short():
    good = {"a": draws(4, 400), "b": draws(4, 400, 2, 3, seed=1)}
    assert judge(good, lp.converged())[1] == ""
    b = good["b"].copy()
    b[:, :, 1, 2] = slow(b[:, :, 1, 2])
    seen, text = judge({**good, "b": b}, lp.converged())
    assert f"effective sample size of 'b[1, 2]' (its draws) is {seen.ess:.0f} (at least 400" in text
    assert "R-hat" not in text or seen.rhat > 1.01
    b[:, :, 1, 2] = swinging(good["b"][:, :, 1, 2])
    _, text = judge({**good, "b": b}, lp.converged())
    assert "'b[1, 2]' (its squared deviation) is" in text
    b[:, :, 1, 2] = apart(good["b"][:, :, 1, 2])
    seen, text = judge({**good, "b": b}, lp.converged(ess=10))
    assert text == f"R-hat of 'b[1, 2]' is {seen.rhat:.3f} (at most 1.01 was asked for)"
    b[3, 200, 0, 1] = np.nan
    assert "'b[0, 1]'" in judge({**good, "b": b}, lp.converged())[1]
    _, text = judge({"a": draws(4, 7)}, lp.converged())
    assert text == "7 draws of each chain are too few to examine"


def test_what_falls_short_does_not_read_like_what_was_asked_for(monkeypatch):
    def text(ess, rhat):
        monkeypatch.setattr(rule, "summarise", lambda *_: Convergence(ess, 1e4, rhat, 0))
        return judge({"a": draws(4, 10)}, lp.converged())[1]

    assert "R-hat of 'a' is 1.01004 (at most 1.01 was" in text(500.0, 1.01004)
    assert "R-hat of 'a' is 1.013 (at most 1.01 was" in text(500.0, 1.01304)
    assert "is 399.97 (at least 400 was" in text(399.97, 1.0)
    assert "is 399 (at least 400 was" in text(399.2, 1.0)
    assert "R-hat of 'a' is nan" in text(500.0, float("nan"))


# When to look, and when to stop


def outputs_of(values):
    return np.moveaxis(values, 0, 1), {}


def test_a_watch_looks_at_the_variables_only_where_positions_will_do():
    asked = []

    def confirm(positions):
        asked.append(positions.shape)
        return Convergence(50.0, 50.0, 1.0, 0)

    monitor = watch(lp.converged(ess=100, rhat=1.05), 10_000, confirm)
    look = monitor(outputs_of(slow(draws(4, 100, 2))), 100)
    assert asked == [] and not look.finished
    look = monitor(outputs_of(draws(4, 400, 2)), 400)
    # The variables say that it is half of what is needed.
    assert asked == [(4, 400, 2)] and not look.finished
    assert (look.next_look, look.expected) == (800, 800)
    assert look.note == "ESS 50/100, R-hat 1.000"


def test_a_watch_stops_where_the_variables_agree():
    monitor = watch(lp.converged(ess=100, rhat=1.05), 10_000, summarise)
    look = monitor(outputs_of(draws(4, 400, 2)), 400)
    assert look.finished and look.expected == 400


def test_a_watch_foresees_the_need():
    values = draws(4, 400, 1)
    seen = summarise(values)
    least = min(seen.ess, seen.ess_squares)
    for factor, cap, expected in ((1.5, 10_000, 600), (1.5, 500, 500), (30.0, 10**6, 12_000)):
        look = watch(lp.converged(ess=factor * least, rhat=1.05), cap, summarise)(
            outputs_of(values), 400
        )
        assert not look.finished
        assert abs(look.expected - expected) <= 1
        # A little beyond the need, at most doubled, and never beyond the cap.
        assert abs(look.next_look - min(cap, 800, 400 * factor * 1.05)) <= 1
        assert look.next_look <= cap


def test_a_watch_goes_on_where_chains_disagree():
    values = apart(draws(4, 400, 1)[:, :, 0])[:, :, None]
    look = watch(lp.converged(ess=10), 10_000, summarise)(outputs_of(values), 400)
    assert not look.finished and 400 < look.next_look <= 800
    # Nothing known yet: twice as many.
    stuck = np.zeros((4, 100, 1))
    assert watch(lp.converged(), 10_000, summarise)(outputs_of(stuck), 100).next_look == 200


# Runs


Y = jnp.array([1.3, 0.2, -0.5, 2.2])


def spread(y=None):
    """A location and a scale, whose posterior is skew, and a variable that is a function."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 3.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(3.0))
    numpyro.deterministic("precision", 1.0 / sigma**2)
    with numpyro.plate("row", 4):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


@pytest.fixture(scope="module")
def target():
    return lp.target(spread, Y)


@pytest.fixture(scope="module")
def stopped(target):
    return lp.sample(KEY, target, until=lp.converged(ess=700), chunk=50)


def test_a_run_stops_with_enough_draws_of_every_variable(stopped):
    assert stopped.attrs["converged"] == 1 and stopped.attrs["advice"] == ""
    number = stopped.attrs["num_samples"]
    assert stopped["posterior"].sizes["draw"] == number
    assert 200 < number < 4000
    posterior = stopped["posterior"].to_dataset()
    assert set(posterior.data_vars) == {"mu", "sigma", "precision"}
    squares = (posterior - posterior.mean(("chain", "draw"))) ** 2
    for what, values in (("min_ess", posterior), ("min_ess_squares", squares)):
        # ArviZ's own; ours is the same or a little smaller.
        least = min(float(az.ess(values)[name]) for name in values.data_vars)
        assert least >= 700
        assert stopped.attrs[what] == pytest.approx(least, rel=0.02)
    largest = max(float(az.rhat(posterior)[name]) for name in posterior.data_vars)
    assert stopped.attrs["max_rhat"] == pytest.approx(largest) and largest <= 1.01


@pytest.mark.parametrize("chunk", [13, None])
def test_a_run_stops_at_the_same_step_wherever_chunks_are_cut(target, stopped, chunk):
    again = lp.sample(KEY, target, until=lp.converged(ess=700), chunk=chunk)
    for group in ("posterior", "sample_stats"):
        xr.testing.assert_equal(again[group].to_dataset(), stopped[group].to_dataset())


def test_a_run_that_stopped_is_the_beginning_of_a_longer_one(target, stopped):
    number = stopped.attrs["num_samples"]
    longer = lp.sample(KEY, target, num_samples=number + 50)
    np.testing.assert_array_equal(
        longer["posterior"]["sigma"][:, :number], stopped["posterior"]["sigma"]
    )


def test_a_cap_that_is_reached_is_said(target):
    with pytest.warns(lp.ConvergenceWarning, match=r"at least 100000 was asked for.*more draws"):
        idata = lp.sample(KEY, target, until=lp.converged(ess=100_000), num_samples=150)
    assert idata["posterior"].sizes["draw"] == idata.attrs["num_samples"] == 150
    assert idata.attrs["converged"] == 0
    assert "effective sample size of" in idata.attrs["advice"]


def test_runs_of_a_fixed_length_are_labelled_too(target):
    with pytest.warns(lp.ConvergenceWarning, match=r"split_ghmc: .*at least 400 was asked for"):
        short = lp.sample(KEY, target, num_samples=60)
    assert short.attrs["converged"] == 0 and 0 < short.attrs["min_ess"] < 400
    with warnings.catch_warnings():
        warnings.simplefilter("error", lp.ConvergenceWarning)
        long = lp.sample(KEY, target, num_samples=3000)
    assert long.attrs["converged"] == 1 and long.attrs["advice"] == ""
    assert min(long.attrs["min_ess"], long.attrs["min_ess_squares"]) > 400


def test_thinned_runs_count_their_draws(target):
    idata = lp.sample(KEY, target, until=lp.converged(ess=300), thinning=3)
    assert idata.attrs["converged"] == 1
    steps = 4 * 3 * idata.attrs["num_samples"]
    assert idata.attrs["num_gradient_evaluations"] > steps


def test_other_kernels_stop_too(target):
    idata = lp.sample(
        KEY, target, blackjax.nuts, until=lp.converged(ess=300), num_warmup=200, num_samples=2000
    )
    assert idata.attrs["converged"] == 1 and idata.attrs["num_samples"] < 2000


@pytest.mark.filterwarnings("ignore::langevin_ppl.DivergenceWarning")
def test_a_stuck_chain_is_named():
    def island(x):
        return jnp.logaddexp(-0.5 * jnp.sum(x**2), -0.5 * jnp.sum((x - 50.0) ** 2) / 1e-6)

    start = jnp.zeros((4, 2)).at[2].set(50.0)
    with pytest.warns(lp.ConvergenceWarning, match="Stuck in warm-up: chain 2 accepted 0 % of"):
        idata = lp.sample(
            KEY, lp.density(island, jnp.zeros(2)), lp.mala, initial=start, num_samples=100
        )
    assert idata.attrs["converged"] == 0


def test_several_modes_are_said():
    def wells(x):
        return jnp.logaddexp(*(-jnp.sum((x - c) ** 2) / 0.18 for c in (1.5, -1.5)))

    target = lp.density(wells, jnp.zeros(1))
    with pytest.warns(lp.ConvergenceWarning, match="ended in different places.*several modes"):
        idata = lp.sample(KEY, target, num_chains=6, num_samples=300)
    found = idata.attrs["num_chains_at_best_mode"]
    assert 0 < found < 6 and "ended elsewhere" in idata.attrs["mode_search"]
    # Each chain stays in the well that its search found.
    means = idata["posterior"]["x"].values.mean(axis=(1, 2))
    np.testing.assert_allclose(np.abs(means), 1.5, atol=0.3)
    assert max(np.sum(means > 0), np.sum(means < 0)) >= found
    assert idata.attrs["converged"] == 0 and idata.attrs["max_rhat"] > 1.1


def autoregressive(correlation, draws):
    noise = np.random.default_rng(1).standard_normal((4, draws, 2))
    values = np.empty_like(noise)
    values[:, 0] = noise[:, 0]
    for i in range(1, draws):
        values[:, i] = correlation * values[:, i - 1] + np.sqrt(1 - correlation**2) * noise[:, i]
    return values


def test_of_a_long_run_evenly_spaced_draws_are_examined(monkeypatch):
    examined = []
    real = rule._summarised
    monkeypatch.setattr(
        rule,
        "_summarised",
        lambda blocks, stride: examined.append(blocks.num_draws // stride) or real(blocks, stride),
    )
    independent, slow = autoregressive(0.0, 40_000), autoregressive(0.99, 40_000)
    # Enough: a lower bound, and R-hat, of every eighth.
    seen = rule.summarise(independent, enough=10_000)
    assert examined == [5000] and 10_000 < seen.ess < 25_000 and seen.rhat < 1.01
    # More is asked for than the examined draws are worth.
    seen = rule.summarise(independent, enough=100_000)
    assert examined == [5000, 5000, 40_000] and seen.ess > 140_000
    # Where draws are correlated for longer than the spacing, leaving some out loses nothing.
    seen = rule.summarise(slow, enough=100_000)
    assert examined[3:] == [5000]
    np.testing.assert_allclose(seen.ess, real(as_blocks(slow), 1).ess, rtol=0.05)
    assert rule.summarise(independent[:, :9000]).ess > 30_000

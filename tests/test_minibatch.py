"""Minibatch gradients: their mean is the gradient of all the data, found without Monte Carlo."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from scipy import stats

import langevin_ppl as lp
from langevin_ppl.base import Plate
from langevin_ppl.gradients import Draw, batch_sizes_of, reader_of, rows, whole_hessian, whole_mean
from langevin_ppl.gradients.draws import scattered
from langevin_ppl.gradients.rows import read
from tests.test_reuse import compilations

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def double():
    """All numbers in float64, so that equal means equal to rounding."""
    with jax.enable_x64(True):
        yield


def normals(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def position_of(target: Any, seed: int = 3, scale: float = 0.6) -> Any:
    """A position that is nowhere zero, where NumPyro's Bernoulli has another subgradient."""
    random = np.random.default_rng(seed)
    return {
        name: jnp.asarray(scale * random.standard_normal(p.shape), p.dtype)
        for name, p in target.prototype.items()
    }


def assert_equal(actual: Any, expected: Any, tolerance: float = 1e-11) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert jnp.shape(a) == jnp.shape(b)
        size = 1.0 + np.max(np.abs(b), initial=0.0)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * size)


def differ(actual: Any, expected: Any) -> bool:
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return any(bool(np.max(np.abs(a - b)) > 1e-3) for a, b in pairs)


# --- a zoo of models, each with and without batches -------------------------------------------


def regression(x, y, batch):
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    width = numpyro.sample("width", dist.HalfNormal(1.0))
    with numpyro.plate("row", len(x), subsample_size=batch):
        mean = numpyro.subsample(x, event_dim=1) @ slope
        numpyro.sample("y", dist.Logistic(mean, width), obs=numpyro.subsample(y, event_dim=0))


def gathered(x, y, batch):
    """The rows are read by the indices that the plate gives."""
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    with numpyro.plate("row", len(x), subsample_size=batch) as index:
        numpyro.sample("y", dist.Bernoulli(logits=x[index] @ slope), obs=1.0 * (y[index] > 0))


def derived(x, y, batch):
    """What is read is computed from the arguments, so that no copy of it can be made ahead."""
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    with numpyro.plate("row", len(x), subsample_size=batch):
        mean = numpyro.subsample(jnp.log(x**2), event_dim=1) @ slope
        numpyro.sample("y", dist.Cauchy(mean, 1.0), obs=numpyro.subsample(y, event_dim=0))


def masked(x, y, batch):
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    with numpyro.plate("row", len(x), subsample_size=batch):
        rows_x, rows_y = numpyro.subsample(x, event_dim=1), numpyro.subsample(y, event_dim=0)
        with handlers.mask(mask=rows_y > -0.5), handlers.scale(scale=0.7):
            numpyro.sample("y", dist.Cauchy(rows_x @ slope, 1.0), obs=rows_y)


def with_factor(x, y, batch):
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    with numpyro.plate("row", len(x), subsample_size=batch):
        residual = numpyro.subsample(y, 0) - numpyro.subsample(x, 1) @ slope
        numpyro.factor("robust", -jnp.log(jnp.cosh(residual)))


def observed_outside(x, y, batch):
    """Two plates of data: only one of them is read in batches, the other and a site count once."""
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
    numpyro.sample("survey", dist.Normal(jnp.sum(slope), 0.1), obs=1.5)
    with numpyro.plate("trial", 4):
        numpyro.sample("z", dist.Cauchy(slope[0], 1.0), obs=y[:4])
    with numpyro.plate("row", len(x), subsample_size=batch):
        mean = numpyro.subsample(x, event_dim=1) @ slope
        numpyro.sample("y", dist.Cauchy(mean, 1.0), obs=numpyro.subsample(y, event_dim=0))


def simplex(x, y, batch):
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
    width = numpyro.sample("width", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("row", len(x), subsample_size=batch):
        mean = numpyro.subsample(x, event_dim=1) @ weights
        numpyro.sample("y", dist.Laplace(mean, width), obs=numpyro.subsample(y, event_dim=0))


def wide(z, batch):
    """A plate of rows to the left of a plate of columns, and rows that are vectors."""
    with numpyro.plate("column", 4):
        level = numpyro.sample("level", dist.Normal(0.0, 2.0))
    with numpyro.plate("row", len(z), subsample_size=batch, dim=-2):
        cells = numpyro.subsample(z, event_dim=0)
        with numpyro.plate("column", 4):
            numpyro.sample("cell", dist.Cauchy(level, 1.0), obs=cells)
        vectors = numpyro.subsample(z[:, None, :], event_dim=1)
        law = dist.MultivariateNormal(level**2, jnp.eye(4))
        numpyro.sample("vector", law, obs=vectors)


def series(z, batch):
    """A time series for each row, where the plate is made outside of the loop over time."""
    gain = numpyro.sample("gain", dist.Normal(0.0, 1.0))
    plate = numpyro.plate("row", len(z), subsample_size=batch)
    with plate:
        times = numpyro.subsample(z, event_dim=1)

    def step(previous, now):
        with plate:
            numpyro.sample("z", dist.Cauchy(gain * previous, 1.0), obs=now)
        return now, None

    scan(step, jnp.zeros(len(times)), times.T)


def independent(y, v, batch):
    """Two plates of data, beside one another."""
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    width = numpyro.sample("width", dist.HalfNormal(1.0))
    with numpyro.plate("row", len(y), subsample_size=batch and batch[0]):
        numpyro.sample("y", dist.Cauchy(level, width), obs=numpyro.subsample(y, event_dim=0))
    with numpyro.plate("visit", len(v), subsample_size=batch and batch[1]):
        numpyro.sample("v", dist.Laplace(level, 1.0), obs=numpyro.subsample(v, event_dim=0))


def nested(z, age, batch):
    """Two plates of data, one inside the other, and a site in only one of them."""
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    effect = numpyro.sample("effect", dist.Normal(0.0, 1.0))
    with numpyro.plate("person", len(z), subsample_size=batch and batch[0], dim=-2):
        rows_age = numpyro.subsample(age, event_dim=0)
        numpyro.sample("age", dist.Cauchy(level, 1.0), obs=rows_age)
        with numpyro.plate("item", z.shape[1], subsample_size=batch and batch[1], dim=-1):
            cells = numpyro.subsample(z, event_dim=0)
            numpyro.sample("z", dist.Cauchy(level + effect * rows_age, 1.0), obs=cells)


class Case(NamedTuple):
    """A model, its data, and its batch sizes."""

    model: Callable[..., Any]
    data: tuple[np.ndarray, ...]
    batch: Any = 3

    def target(self, batches: bool = True) -> Any:
        return lp.target(self.model, *self.data, self.batch if batches else None)


X, Y, Z = normals(0, 7, 3), normals(1, 7), normals(2, 7, 4)
ONE_PLATE = [
    *(
        Case(model, (X, Y))
        for model in (regression, gathered, derived, masked, with_factor, observed_outside, simplex)
    ),
    Case(wide, (Z,)),
    Case(series, (Z,)),
]
TWO_PLATES = [
    Case(independent, (Y, normals(4, 5)), (3, 2)),
    Case(nested, (normals(5, 5, 4), normals(6, 5, 1)), (2, 3)),
]
REGRESSION, NESTED = ONE_PLATE[0], TWO_PLATES[1]


def named(case):
    return case.model.__name__


@jax.jit
def estimates_of(estimator, batches, position, memory):
    return jax.vmap(lambda batch: estimator.estimate(batch, position, memory)[0])(batches)


def over_all_batches(target: Any, estimator: Any, position: Any, pinned: int = 0) -> Any:
    """Estimates of all batches that blocks can be, those of several plates in all combinations."""
    starts = [jnp.arange(pinned, plate.size) for plate in target.plates.values()]
    grid = [each.ravel() for each in jnp.meshgrid(*starts, indexing="ij")]
    blocks = dict(zip(target.plates, grid, strict=True))
    return estimates_of(estimator, blocks, position, estimator.init(position))


def mean(estimates: Any) -> Any:
    return jax.tree.map(lambda values: values.mean(0), estimates)


def whole(case: Case, position: Any) -> tuple[Any, Any]:
    """Log density and gradient of the model whose plate is not subsampled."""
    return jax.value_and_grad(case.target(batches=False).logdensity_fn)(position)


# --- the mean of the estimates ----------------------------------------------------------------


@pytest.mark.parametrize("case", [*ONE_PLATE, *TWO_PLATES], ids=named)
def test_the_mean_over_blocks_is_exact(case):
    target = case.target()
    position, centre = position_of(target), position_of(target, seed=4)
    value, gradient = whole(case, position)
    np.testing.assert_allclose(target.logdensity_fn(position), value, rtol=1e-13)
    pinned = {name: [1, plate.size - 2] for name, plate in target.plates.items()}
    for estimator, heavy in (
        (target.gradient(lp.minibatch()), 0),
        (target.gradient(lp.control_variates(centre=centre, order=2, pinned=pinned)), 2),
    ):
        estimates = over_all_batches(target, estimator, position, heavy)
        assert differ(estimates.gradient, mean(estimates).gradient)
        assert_equal(mean(estimates).gradient, gradient)
        # That of the value as well.
        np.testing.assert_allclose(mean(estimates).logdensity, value, rtol=1e-11)
        assert not estimator.exact


@pytest.mark.parametrize("case", [REGRESSION, NESTED], ids=named)
@pytest.mark.parametrize(("order", "heavy"), [(1, 0), (1, 2), (2, 0)], ids=str)
def test_the_mean_of_control_variates_is_exact(case, order, heavy):
    target = case.target()
    position, centre = position_of(target), position_of(target, seed=4)
    pinned = {name: range(heavy) for name in target.plates} if heavy else None
    choice = lp.control_variates(centre=centre, order=order, pinned=pinned)
    value, gradient = whole(case, position)
    estimates = over_all_batches(target, target.gradient(choice), position, heavy)
    assert_equal(mean(estimates).gradient, gradient)
    np.testing.assert_allclose(mean(estimates).logdensity, value, rtol=1e-11)


@pytest.mark.parametrize("heavy", [5, 6])
def test_pinned_rows_may_leave_fewer_than_a_batch(heavy):
    """Then all rows are read, and there is no noise."""
    target = REGRESSION.target()
    position = position_of(target)
    choice = lp.control_variates(3, centre=position_of(target, 4), pinned=np.arange(heavy))
    estimates = over_all_batches(target, target.gradient(choice), position, heavy)
    for value in jax.tree.leaves(estimates.gradient):
        assert_equal(value, jnp.broadcast_to(value[0], value.shape))
    assert_equal(mean(estimates).gradient, whole(REGRESSION, position)[1])


def test_a_batch_of_all_rows_is_exact():
    target = REGRESSION.target()
    position = position_of(target)
    for sampling in ("blocks", "without"):
        estimator = target.gradient(lp.minibatch(7, sampling=sampling))
        batch = jax.tree.map(lambda b: b[None], jax.jit(estimator.draw)(KEY, 3))
        assert_equal(
            tuple(mean(estimates_of(estimator, batch, position, ()))), whole(REGRESSION, position)
        )


@pytest.mark.parametrize("case", [REGRESSION, ONE_PLATE[1], NESTED], ids=named)
def test_single_rows_are_weighed_by_their_probability(case):
    """The mean over the rows that importance sampling draws one at a time, by enumeration."""
    target = case.target()
    position = position_of(target)
    probabilities = {
        name: jax.nn.softmax(jnp.asarray(normals(number, plate.size)))
        for number, (name, plate) in enumerate(target.plates.items())
    }
    reader = reader_of(
        target, dict.fromkeys(target.plates, 1), "importance", 0, probabilities=probabilities
    )
    for name, expected in probabilities.items():
        np.testing.assert_allclose(reader[name].probabilities, expected, atol=1e-9)
    names = list(target.plates)
    grid = jnp.meshgrid(*(jnp.arange(p.size) for p in target.plates.values()), indexing="ij")
    weight = math.prod(
        reader[name].probabilities[each.ravel()] for name, each in zip(names, grid, strict=True)
    )
    drawn = {name: each.reshape(-1, 1) for name, each in zip(names, grid, strict=True)}

    @jax.jit
    @jax.vmap
    def estimates(batch):
        return jax.grad(lambda x: target.batch_logdensity_fn(read(reader, batch), x))(position)

    means = jax.tree.map(lambda g: jnp.tensordot(weight, g, 1), estimates(drawn))
    assert_equal(means, whole(case, position)[1])


def test_rows_are_drawn_by_their_probability():
    probabilities = jnp.array([0.02, 0.3, 0.08, 0.1, 0.25, 0.05, 0.2])
    target = REGRESSION.target()
    reader = reader_of(target, {"row": 5}, "importance", 0, None, {"row": probabilities})
    draw = jax.jit(jax.vmap(Draw.of(reader), (0, None)))
    counts = np.bincount(draw(jax.random.split(KEY, 4000), 0)["row"].ravel(), minlength=7)
    assert stats.chisquare(counts, 20_000 * np.asarray(probabilities)).pvalue > 1e-4


def test_small_probabilities_are_not_rounded():
    """Of a million rows in float32, each is drawn as often as its weight says."""
    size = 2**20
    p = jnp.asarray(1.0 + np.arange(size) % 3, jnp.float32) / (2 * size)

    def model(y):
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", size, subsample_size=8):
            numpyro.sample("y", dist.Normal(level, 1.0), obs=numpyro.subsample(y, event_dim=0))

    target = lp.target(model, jnp.zeros(size))
    plate = reader_of(target, {"row": 8}, "importance", 0, None, {"row": p})["row"]
    # Row i is drawn by the 32-bit numbers between thresholds i - 1 and i.
    edges = np.concatenate([[0.0], np.asarray(plate.thresholds, np.float64), [2.0**32]])
    np.testing.assert_allclose(plate.probabilities, np.diff(edges) / 2.0**32, rtol=1e-12)
    np.testing.assert_allclose(plate.probabilities, p / p.sum(), rtol=1e-3)


@pytest.mark.parametrize(("block", "sampling"), [(1, "blocks"), (3, "blocks"), (3, "replacement")])
def test_a_pass_in_blocks_is_a_pass(monkeypatch, block, sampling):
    """Whatever the number of rows in a block, the last one is not counted twice."""
    monkeypatch.setattr(rows, "BLOCK", block)
    target = REGRESSION.target()
    position = position_of(target)
    reader = reader_of(target, {"row": 2}, sampling, 0)
    on_rows = target.batch_logdensity_fn

    def of_rows(batch):
        return jax.value_and_grad(lambda x: on_rows(batch, x))(position)

    assert_equal(whole_mean(reader, of_rows), whole(REGRESSION, position))
    flat, unravel = jax.flatten_util.ravel_pytree(position)
    logdensity_fn = REGRESSION.target(batches=False).logdensity_fn
    expected = jax.hessian(lambda x: logdensity_fn(unravel(x)))(flat)
    assert_equal(whole_hessian(on_rows, reader, position), expected)


def test_a_pass_reads_several_plates_as_a_whole(monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 2)
    target = NESTED.target()
    position = position_of(target)
    reader = reader_of(target, batch_sizes_of("test", target, None), "blocks", 0)
    on_rows = target.batch_logdensity_fn
    value = whole_mean(reader, lambda batch: on_rows(batch, position))
    np.testing.assert_allclose(value, whole(NESTED, position)[0], rtol=1e-13)


# --- which rows -------------------------------------------------------------------------------


@jax.jit
def drawn_rows(reader, draw, keys, steps):
    """Numbers of the rows of batches, ``[step, row]``."""

    def of_step(rng_key, step):
        return {name: r.indices for name, r in read(reader, draw(rng_key, step)).items()}

    return jax.vmap(of_step)(keys, steps)


def indices(choice: Any, steps: int, rng_key: Any = KEY, **plates: int) -> dict[str, np.ndarray]:
    """Numbers of the rows of the first batches, each with a key of its own."""
    target = SimpleNamespace(
        plates={name: Plate(size, 3) for name, size in plates.items()},
        data=(),
        row_arrays=lambda name: {},
        stream=None,
    )
    sizes = batch_sizes_of("test", target, choice.batch_size)
    reader = reader_of(target, sizes, choice.sampling, choice.seed)
    keys = jax.random.split(rng_key, steps)
    return jax.tree.map(np.asarray, drawn_rows(reader, Draw.of(reader), keys, jnp.arange(steps)))


@pytest.mark.parametrize(("size", "batch"), [(12, 3), (12, 12), (35, 5)])
def test_an_epoch_has_every_row_once(size, batch):
    blocks = size // batch
    drawn = indices(lp.minibatch(batch, sampling="epochs"), 20 * blocks, row=size)["row"]
    epochs = np.sort(drawn.reshape(20, size), axis=1)
    np.testing.assert_array_equal(epochs, np.tile(np.arange(size), (20, 1)))
    if 1 < blocks:
        assert len({tuple(epoch) for epoch in drawn.reshape(20, size)}) > 15


@pytest.mark.parametrize(("size", "batch"), [(11, 4), (23, 7)])
def test_epochs_that_rows_do_not_fill_have_each_at_most_once_and_all_as_often(size, batch):
    blocks, count = size // batch, 3000
    drawn = indices(lp.minibatch(batch, sampling="epochs"), count * blocks, row=size)["row"]
    epochs = drawn.reshape(count, blocks * batch)
    assert all(len(set(epoch)) == blocks * batch for epoch in epochs[:100])
    share = blocks * batch / size
    errors = np.bincount(epochs.ravel(), minlength=size) - count * share
    assert np.abs(errors).max() < 4.5 * np.sqrt(count * share * (1.0 - share))


def test_epochs_are_the_same_for_all_keys_and_others_for_another_seed():
    choice = lp.minibatch(3, sampling="epochs")
    first = indices(choice, 80, row=12)
    assert_equal(indices(choice, 80, jax.random.key(9), row=12), first, 0.0)
    assert differ(indices(lp.minibatch(3, sampling="epochs", seed=1), 80, row=12), first)


def test_epochs_of_several_plates_are_independent():
    """All pairs of blocks of two plates of one size come together, and equally often."""
    drawn = indices(lp.minibatch(2, sampling="epochs"), 9000, person=6, item=6)
    pairs = np.zeros((6, 6))
    np.add.at(pairs, (drawn["person"][:, :, None], drawn["item"][:, None, :]), 1.0)
    # Of 36 pairs, each is in a ninth of the batches; three batches of an epoch depend.
    assert np.abs(pairs / 9000 - 1.0 / 9.0).max() < 6.0 * np.sqrt(1.0 / 9.0 / 9000)


@pytest.mark.parametrize("sampling", ["blocks", "without"])
@pytest.mark.parametrize(("size", "batch"), [(7, 3), (17, 5)])
def test_rows_are_drawn_without_replacement_and_equally_often(sampling, size, batch):
    drawn = indices(lp.minibatch(batch, sampling=sampling), 20_000, row=size)["row"]
    assert drawn.min() == 0 and drawn.max() == size - 1
    assert (np.diff(np.sort(drawn, axis=1), axis=1) > 0).all()
    share = batch / size
    errors = np.bincount(drawn.ravel(), minlength=size) / 20_000 - share
    assert np.abs(errors).max() < 4.5 * np.sqrt(share * (1.0 - share) / 20_000)
    if sampling == "blocks":
        assert len({tuple(each) for each in drawn}) == size
        return
    # Pairs as well, on which the variance depends.
    pairs = np.zeros((size, size))
    np.add.at(pairs, (drawn[:, :, None], drawn[:, None, :]), 1.0)
    together = batch * (batch - 1) / (size * (size - 1))
    apart = pairs[~np.eye(size, dtype=bool)] / 20_000 - together
    assert np.abs(apart).max() < 5.0 * np.sqrt(together * (1.0 - together) / 20_000)


def test_rows_are_drawn_with_replacement():
    drawn = indices(lp.minibatch(4, sampling="replacement"), 20_000, row=11)["row"]
    assert stats.chisquare(np.bincount(drawn.ravel(), minlength=11)).pvalue > 1e-4
    # All different in 11 * 10 * 9 * 8 of 11^4 batches.
    share = np.mean([len(set(each)) == 4 for each in drawn])
    expected = 11 * 10 * 9 * 8 / 11**4
    assert abs(share - expected) < 4.5 * np.sqrt(expected * (1.0 - expected) / 20_000)


def test_sizes_of_a_batch():
    """The model's own, one for all plates, or one for each."""
    for batch_size, expected in (
        (None, (2, 3)),
        (4, (4, 4)),
        (np.int64(1), (1, 1)),
        ({"item": 2, "person": 5}, (5, 2)),
    ):
        sizes = batch_sizes_of("test", NESTED.target(), batch_size)
        assert (sizes["person"], sizes["item"]) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 4097])
def test_scattered_is_a_permutation(size):
    image = scattered(jnp.arange(size), jax.random.key(size), size)
    np.testing.assert_array_equal(np.sort(image), np.arange(size))
    if size > 8:
        assert differ(image, scattered(jnp.arange(size), jax.random.key(size + 1), size))
        # Few rows have the same images as if all were written down.
        np.testing.assert_array_equal(
            scattered(jnp.array([size - 1, 2]), jax.random.key(size), size),
            image[jnp.array([size - 1, 2])],
        )


@pytest.mark.parametrize("size", [2, 3, 5, 17, 65])
def test_scattered_sends_a_row_anywhere(size):
    keys = jax.random.split(KEY, 20_000)
    ends = jnp.array([0, size - 1])
    images = np.asarray(jax.jit(jax.vmap(lambda key: scattered(ends, key, size)))(keys))
    pairs = np.zeros((size, size))
    np.add.at(pairs, (images[:, 0], images[:, 1]), 1.0)
    for counts in (pairs.sum(0), pairs.sum(1), pairs[~np.eye(size, dtype=bool)]):
        assert stats.chisquare(counts).pvalue > 1e-4


# --- the noise --------------------------------------------------------------------------------


def variance(target: Any, estimator: Any, position: Any) -> float:
    """Mean squared distance of the gradient estimates from their mean."""
    estimates = over_all_batches(target, estimator, position).gradient
    away = jax.tree.map(lambda g: g - g.mean(0), estimates)
    return float(sum(jnp.sum(g**2) for g in jax.tree.leaves(away)))


@pytest.mark.parametrize(("order", "power"), [(1, 2), (2, 4)])
def test_the_noise_of_control_variates_vanishes_at_the_centre(order, power):
    target = REGRESSION.target()
    centre = position_of(target)
    estimator = target.gradient(lp.control_variates(3, centre=centre, order=order))
    direction = position_of(target, seed=5)

    def at(distance):
        position = jax.tree.map(lambda c, d: c + distance * d, centre, direction)
        return variance(target, estimator, position)

    plain = variance(target, target.gradient(lp.minibatch(3)), centre)
    assert at(0.0) < 1e-24 * plain
    # Where the distance is halved, the variance falls by 4 and by 16.
    assert at(2e-3) / at(1e-3) == pytest.approx(2.0**power, rel=0.02)
    assert at(1e-3) < 1e-4 * plain


# --- SVRG -------------------------------------------------------------------------------------


def test_svrg_renews_its_anchor_by_the_step_counter():
    target = REGRESSION.target()
    estimator = target.gradient(lp.svrg(every=4))
    algorithm = lp.ula(estimator, step_size=0.01)
    state = algorithm.init(position_of(target), jax.random.key(5))
    step = jax.jit(algorithm.step)
    for number in range(10):
        before, (state, info) = state, step(jax.random.key(number), state)
        anchor = state.memory
        renewed = differ(anchor.position, before.memory.position)
        # That of the beginning is where the chain began; the first step goes on from it.
        assert renewed == (number % 4 == 0)
        if renewed:
            assert_equal(anchor.position, state.position, 0.0)
            assert_equal(tuple(anchor.estimate), whole(REGRESSION, anchor.position))
            # Where it is renewed, the estimate is exact.
            assert_equal(state.logdensity_grad, whole(REGRESSION, state.position)[1])
    assert not bool(info.is_divergent)


@pytest.mark.parametrize("case", [REGRESSION, NESTED], ids=named)
def test_svrg_is_unbiased_between_renewals(case):
    target = case.target()
    estimator = target.gradient(lp.svrg(every=4))
    anchor = estimator.init(position_of(target, seed=4))
    position = position_of(target)
    starts = [jnp.arange(plate.size) for plate in target.plates.values()]
    grid = [each.ravel() for each in jnp.meshgrid(*starts, indexing="ij")]

    @jax.jit
    @jax.vmap
    def estimates(*blocks):
        batch = estimator.draw(KEY, jnp.array(3))
        batch = batch._replace(rows=dict(zip(target.plates, blocks, strict=True)))
        return estimator.estimate(batch, position, anchor)[0]

    found = estimates(*grid)
    assert differ(found.gradient, mean(found).gradient)
    assert_equal(tuple(mean(found)), whole(case, position))


# --- programs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choice",
    [
        lp.minibatch(3),
        lp.minibatch(3, sampling="without"),
        lp.control_variates(3, order=2, pinned=[2]),
        lp.svrg(3, every=2),
    ],
    ids=str,
)
def test_estimators_cross_jit_and_new_data_compile_nothing(choice):
    calls = []

    def counted(x, y):
        calls.append(1)
        regression(x, y, 3)

    @jax.jit
    def walk(estimator, position, rng_key):
        algorithm = lp.ula(estimator, step_size=0.01)
        state = algorithm.init(position, rng_key)
        return jax.lax.scan(lambda s, key: algorithm.step(key, s), state, jax.random.split(KEY, 5))

    def run(x, y):
        # Data come as arrays, whose transfer compiles nothing.
        target = lp.target(counted, jnp.asarray(x), jnp.asarray(y))
        position = position_of(target)
        chosen = choice
        if isinstance(choice, type(lp.control_variates())):
            chosen = lp.control_variates(
                3, centre=position_of(target, 4), order=choice.order, pinned=choice.pinned
            )
        state, _ = walk(target.gradient(chosen), position, jax.random.key(1))
        return jax.tree.map(np.asarray, state.position)

    first = run(X, Y)
    traced, compiled = len(calls), len(compilations)
    second = run(normals(10, 7, 3), normals(11, 7))
    assert len(calls) == traced
    assert compilations[compiled:] == []
    assert differ(first, second)
    assert_equal(run(X, Y), first, 0.0)


def test_batches_by_numpyros_subsample_and_by_index_are_the_same():
    """A contiguous copy is read where it can be; the numbers are those of gathering."""

    def gathers(x, y, batch):
        slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
        width = numpyro.sample("width", dist.HalfNormal(1.0))
        with numpyro.plate("row", len(x), subsample_size=batch) as index:
            numpyro.sample("y", dist.Logistic(x[index] @ slope, width), obs=y[index])

    contiguous, gathering = REGRESSION.target(), lp.target(gathers, X, Y, 3)
    assert len(contiguous.row_arrays("row")) == 2 and not gathering.row_arrays("row")
    position = position_of(contiguous)
    estimates = [
        over_all_batches(each, each.gradient(lp.minibatch(3)), position)
        for each in (contiguous, gathering)
    ]
    assert_equal(*estimates, tolerance=1e-13)


def test_all_rows_weigh_the_same_in_any_order():
    target = NESTED.target()
    position = position_of(target)
    batch = {"person": jnp.array([4, 0]), "item": jnp.array([1, 3, 2])}
    expected = target.logdensity_on(batch, position)
    backwards = {name: index[::-1] for name, index in batch.items()}
    np.testing.assert_allclose(target.logdensity_on(backwards, position), expected, rtol=1e-13)
    # Plates that are not named count all their rows.
    value = whole(NESTED, position)[0]
    np.testing.assert_allclose(target.logdensity_on({}, position), value, rtol=1e-13)
    every = {"item": jnp.arange(4)}
    np.testing.assert_allclose(target.logdensity_on(every, position), value, rtol=1e-13)


# --- what a target gives beside its density ---------------------------------------------------


def test_a_subsampled_model_is_the_model_in_all_else():
    case = NESTED
    target, plain = case.target(), case.target(batches=False)
    assert target.dims == plain.dims
    assert target.prototype == plain.prototype
    assert_equal(target.observed_data, plain.observed_data, 0.0)
    assert_equal(target.constant_data, plain.constant_data, 0.0)
    sizes = {name: plate.size for name, plate in target.plates.items()}
    for name, value in target.observed_data.items():
        assert all(
            value.shape[axis] in (sizes[dim], 1)
            for axis, dim in enumerate(target.dims[name])
            if dim in sizes
        )
    unconstrained = jax.tree.map(
        lambda p: jnp.asarray(normals(12, 2, 3, *p.shape)), target.prototype
    )
    samples = plain.constrain(unconstrained, 2)
    assert_equal(target.constrain(unconstrained, 2), samples)
    assert_equal(target.log_likelihood(samples), plain.log_likelihood(samples))
    assert_equal(target.predict(KEY, samples), plain.predict(KEY, samples))
    assert_equal(target.predict_prior(KEY, 3), plain.predict_prior(KEY, 3))
    assert_equal(target.init_position(KEY), plain.init_position(KEY))


def test_a_run_of_all_rows_holds_all_rows():
    settings = {"num_chains": 2, "num_samples": 5, "num_warmup": 0, "step_size": 0.01}
    groups = ["log_likelihood", "posterior_predictive"]
    coords = {"row": list("abcdefg")}
    runs = [
        lp.sample(
            KEY,
            REGRESSION.target(batches).replace(coords=coords),
            lp.mala,
            gradient=lp.exact(),
            groups=groups,
            **settings,
        )
        for batches in (True, False)
    ]
    for group in ("observed_data", "constant_data", "posterior", *groups):
        mine, plain = (run[group].to_dataset() for run in runs)
        assert mine.sizes == plain.sizes and set(mine.data_vars) == set(plain.data_vars)
        for name in plain.data_vars:
            assert mine[name].dims == plain[name].dims
            np.testing.assert_allclose(mine[name], plain[name], rtol=1e-8)
    assert list(runs[0]["observed_data"]["y"].coords["row"].values) == list("abcdefg")


# --- the same by hand -------------------------------------------------------------------------


def test_ula_with_minibatches_is_sgld_by_hand():
    target = lp.target(masked, X, Y, 3)
    estimator = target.gradient(lp.minibatch(3))
    order = np.asarray(reader_of(target, {"row": 3}, "blocks", 0)["row"].order)
    algorithm = lp.ula(estimator, step_size=0.02, inverse_mass_matrix=0.5)
    start = position_of(target)
    state = algorithm.init(start, KEY)
    keys = jax.random.split(jax.random.key(2), 30)

    def log_prior(slope):
        return jnp.sum(-0.5 * slope**2 / 4.0)

    def log_likelihood(slope, x, y):
        cauchy = -jnp.log1p((y - x @ slope) ** 2) - jnp.log(jnp.pi)
        return jnp.sum(jnp.where(y > -0.5, 0.7 * cauchy, 0.0))

    def gradient(slope, key_batch):
        block = order[estimator.draw(key_batch, jnp.array(0))["row"] + np.arange(3)]
        return jax.grad(lambda s: log_prior(s) + 7 / 3 * log_likelihood(s, X[block], Y[block]))(
            slope
        )

    slope = start["slope"]
    drift = gradient(slope, KEY)
    for key in keys:
        key_noise, key_batch = jax.random.split(key)
        slope = slope + 0.02 * 0.5 * drift
        slope = slope + jnp.sqrt(2 * 0.02 * 0.5) * jax.random.normal(key_noise, (3,))
        drift = gradient(slope, key_batch)
        state, _ = algorithm.step(key, state)
    np.testing.assert_allclose(state.position["slope"], slope, rtol=1e-12)
    np.testing.assert_allclose(state.logdensity_grad["slope"], drift, rtol=1e-12)


def test_blackjax_takes_the_density_on_a_batch():
    target = REGRESSION.target()
    sgld = blackjax.sgld(jax.grad(lambda position, batch: target.logdensity_on(batch, position)))
    position = position_of(target)
    batch = {"row": jnp.array([6, 0, 3])}
    moved = jax.jit(sgld.step)(KEY, sgld.init(position), batch, 1e-3)
    noise = blackjax.util.generate_gaussian_noise(KEY, position)
    gradient = jax.grad(lambda x: target.logdensity_on(batch, x))(position)
    expected = jax.tree.map(
        lambda x, g, n: x + 1e-3 * g + jnp.sqrt(2e-3) * n, position, gradient, noise
    )
    assert_equal(moved, expected)

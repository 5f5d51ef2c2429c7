"""The loop that trains: averages, batches, failures, and going on where it was."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

import langevin_ppl as lp
from langevin_ppl.checkpoints.asked import begin_or_go_on
from langevin_ppl.fit import default_optimizer, descend, descent, rows_of_batch

KEY = jax.random.key(0)
ROWS = np.random.default_rng(0).normal(1.0, 1.0, (60, 3)).astype(np.float32)
START = {"shift": jnp.zeros(3)}
SGD = optax.sgd(0.1)
SETTINGS = {"num_steps": 70, "batch_size": 8, "optimizer": SGD, "ema": 0.9}


def squares(parameters, memory, rng_key, batch):
    """Loss with noise, which counts its calls."""
    noise = 0.1 * jax.random.normal(rng_key, batch.shape)
    return jnp.mean((batch + noise - parameters["shift"]) ** 2), memory + 1


@functools.partial(jax.jit, static_argnums=1)
def first_rows(rng_key, steps):
    """Rows of the first batches of eight of sixty, ``[step, row]``."""
    return jax.vmap(lambda step: rows_of_batch(rng_key, step, 60, 8))(jnp.arange(steps))


def run(loss=squares, data=ROWS, **options):
    return descend(KEY, loss, START, data, memory=jnp.asarray(0), **{**SETTINGS, **options})


def equal(one, two):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    for left, right in pairs:
        np.testing.assert_array_equal(left, right)


def scaled(weights, u, noise_level, condition):
    """A network of the user's, whose weights make it a pytree."""
    return weights * u


@pytest.fixture(scope="module")
def plain():
    return run()


def test_a_run_is_what_a_plain_loop_of_optax_makes(plain):
    """Batches, keys, updates and the average, written out."""
    key_rows, key_loss, _ = jax.random.split(KEY, 3)
    parameters, state, average, losses = START, SGD.init(START), START, []
    step = jax.jit(jax.value_and_grad(lambda p, key, batch: squares(p, 0, key, batch)[0]))
    for i, rows in enumerate(first_rows(key_rows, 70)):
        loss, gradient = step(parameters, jax.random.fold_in(key_loss, i), ROWS[rows])
        updates, state = SGD.update(gradient, state)
        parameters = optax.apply_updates(parameters, updates)
        decay = min(0.9, (1 + i) / (10 + i))
        average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, average, parameters)
        losses.append(loss)
    np.testing.assert_allclose(plain.losses, losses, rtol=1e-4)
    np.testing.assert_allclose(plain.parameters["shift"], parameters["shift"], rtol=1e-4)
    np.testing.assert_allclose(plain.average["shift"], average["shift"], rtol=1e-4)
    assert not np.allclose(plain.average["shift"], plain.parameters["shift"], rtol=1e-3)
    assert plain.memory == 70


def test_every_row_comes_once_in_an_epoch_and_those_left_out_change():
    epochs = np.asarray(first_rows(KEY, 28)).reshape(4, 56).tolist()
    assert all(len(set(rows)) == 56 for rows in epochs)
    assert len({frozenset(range(60)) - frozenset(rows) for rows in epochs}) == 4
    assert epochs[0] != epochs[1]


def test_a_run_depends_on_its_arguments_alone(plain):
    equal(run(), plain)
    other = descend(jax.random.key(1), squares, START, ROWS, memory=jnp.asarray(0), **SETTINGS)
    assert not np.array_equal(other.losses, plain.losses)


def test_batches_of_the_host_are_those_of_memory(plain, monkeypatch):
    """In blocks of four, which chunks of steps do not respect."""
    monkeypatch.setattr(descent, "capacity_for", lambda size: 4)
    rows, asked = first_rows(jax.random.split(KEY, 3)[0], 70), []

    def read(step):
        asked.append(step)
        return ROWS[rows[step]]

    equal(run(data=ROWS[:8], read=read)[:4], plain[:4])
    assert asked == list(range(70))


def test_validation_is_at_the_average_with_the_same_keys():
    """Also of rows that blocks of the size of a batch do not divide."""
    found = run(validation=ROWS[:20], validate_every=30)
    assert found.validation_steps.tolist() == [30, 60]
    shorter = run(num_steps=60)
    key = jax.random.split(KEY, 3)[2]
    blocks = [squares(shorter.average, 0, jax.random.fold_in(key, i), ROWS[s : s + 8])[0]
              for i, s in enumerate((0, 8, 12))]  # fmt: skip
    np.testing.assert_allclose(found.validation_losses[1], np.mean(blocks), rtol=1e-5)
    equal(found.parameters, run().parameters)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_not_made(what):
    def breaks(parameters, memory, rng_key, batch):
        loss, _ = squares(parameters, memory, rng_key, batch)
        if what == "gradient":  # the root has none at 0
            root = jnp.sqrt(jnp.where(memory == 41, 0.0, 1.0) * (1.0 + parameters["shift"][0] ** 2))
            return loss + 0.0 * root, memory + 1
        return jnp.where(memory == 41, jnp.nan, loss), memory + 1

    with pytest.warns(lp.DivergenceWarning, match="not finite at step 41.*lower learning rate"):
        found = run(breaks)
    good = run(num_steps=41)
    assert found.failed_at == 41
    assert len(found.losses) == 42
    np.testing.assert_allclose(found.parameters["shift"], good.parameters["shift"], rtol=1e-5)
    np.testing.assert_allclose(found.average["shift"], good.average["shift"], rtol=1e-5)


def test_no_step_is_made_after_one_that_failed():
    """Also where the later ones would be finite."""
    _, key_loss, _ = jax.random.split(KEY, 3)
    numbers = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key_loss, i)))
    first = int(np.argmax(np.asarray(numbers(jnp.arange(70))) < 0.1))

    def unlucky(parameters, memory, rng_key, batch):
        loss, memory = squares(parameters, memory, rng_key, batch)
        return jnp.where(jax.random.uniform(rng_key) < 0.1, jnp.inf, loss), memory

    with pytest.warns(lp.DivergenceWarning):
        found = run(unlucky)
    assert 0 < first == found.failed_at == found.memory
    assert len(found.losses) == first + 1


@pytest.mark.parametrize(
    "optimizer",
    [optax.lbfgs(), optax.chain(optax.sgd(0.3), optax.contrib.reduce_on_plateau())],
    ids=["lbfgs", "plateau"],
)
def test_optimizers_that_ask_for_more_get_it(optimizer):
    """The value, and the function for a line search."""

    def loss(parameters, memory, rng_key, batch):
        return jnp.mean((batch - parameters["shift"]) ** 2), memory

    found = run(loss, optimizer=optimizer, batch_size=None, ema=None)
    np.testing.assert_allclose(found.parameters["shift"], ROWS.mean(0), atol=1e-3)
    assert found.average is None


def test_the_default_optimizer_decays_to_zero_over_the_run():
    assert default_optimizer(0.1) is default_optimizer(0.1)
    optimizer = default_optimizer(0.1)
    state, sizes = optimizer.init(jnp.ones(2)), []
    for _ in range(100):
        update, state = optimizer.update(jnp.ones(2), state, jnp.ones(2), horizon=100)
        sizes.append(float(jnp.abs(update[0])))
    assert np.argmax(sizes) in (4, 5)
    assert sizes[0] < 0.3 * max(sizes)
    assert max(sizes) == pytest.approx(0.1, rel=0.02)
    assert sizes[-1] < 1e-3


def test_a_loss_without_data_carries_its_walkers():
    def loss(parameters, memory, rng_key, batch):
        assert batch is None
        memory = 0.9 * memory + jax.random.normal(rng_key, memory.shape)
        return jnp.mean((memory - parameters["shift"]) ** 2), memory

    found = descend(KEY, loss, START, num_steps=20, memory=jnp.zeros((5, 3)), optimizer=SGD)
    assert jnp.std(found.memory) > 0.5


# Checkpoints


class Stopped(Exception):
    """Stands for the end of a process."""


def stopping(monkeypatch, calls):
    """Let the process end after so many chunks."""
    left, chunk = iter(range(calls)), descent.chunk

    def counted(*args, **kwargs):
        if next(left, None) is None:
            raise Stopped
        return chunk(*args, **kwargs)

    counted.lower = chunk.lower
    monkeypatch.setattr(descent, "chunk", counted)


def fit_rows(path, data=ROWS, key=KEY, shift=0.0, **options):
    network = Partial(scaled, jnp.full(3, shift))
    settings = {"num_steps": 300, "batch_size": 8, "optimizer": SGD, "validation": 0.2}
    return lp.scores.fit(
        key, data, lp.scores.EDM(), network=network, checkpoint=path, every=0, progress=False,
        **{**settings, **options},
    )  # fmt: skip


@pytest.mark.parametrize(
    "optimizer", [SGD, lp.optim.sgld(0.1, 0, inverse_temperature=10.0)], ids=["sgd", "sgld"]
)
def test_a_training_goes_on_bit_for_bit(optimizer, tmp_path, monkeypatch):
    fit = functools.partial(fit_rows, optimizer=optimizer)  # sgld: a key in its state
    whole = fit(None)
    with monkeypatch.context() as patch:
        stopping(patch, 2)
        with pytest.raises(Stopped):
            fit(tmp_path / "run")
    assert list((tmp_path / "run" / "steps").glob("*.json"))
    suffixes = {path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".npz", ""}
    resumed = fit(tmp_path / "run")
    equal(resumed.score, whole.score)
    equal(resumed[1:4], whole[1:4])
    with monkeypatch.context() as patch:
        stopping(patch, 0)  # nothing is left to do
        equal(fit(tmp_path / "run")[1:4], whole[1:4])


def test_another_training_is_refused(tmp_path):
    fit_rows(tmp_path, num_steps=20)
    others = {
        "the data": {"data": ROWS + 1},
        "the key": {"key": jax.random.key(1)},
        "the parameters": {"shift": 1.0},
        "the number of steps": {"num_steps": 21},
        "the network, loss": {"loss": lp.scores.denoising("simple")},
        "batch size": {"batch_size": 9},
    }
    for said, other in others.items():
        with pytest.raises(lp.CheckpointError, match=f"differs in .*{said}"):
            fit_rows(tmp_path, **{"num_steps": 20, **other})


def test_a_damaged_record_or_that_of_a_run_is_refused(tmp_path):
    with begin_or_go_on(tmp_path, {"data": "0"}, 60.0):
        pass
    record = tmp_path / "training.json"
    record.write_text(record.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(lp.CheckpointError, match="not what was written"):
        begin_or_go_on(tmp_path, {"data": "0"}, 60.0)
    record.unlink()
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(lp.CheckpointError, match=re.escape("holds a run of langevin_ppl.sample")):
        begin_or_go_on(tmp_path, {"data": "0"}, 60.0)


# Data that `fit` is given


X = np.random.default_rng(1).normal(size=(40, 2)).astype(np.float32)
LABELS = np.arange(40) % 3


def fit_tiny(data=X, process=None, *, steps=6, **options):
    network = Partial(scaled, jnp.zeros(2))
    process = lp.scores.EDM() if process is None else process
    settings = {"network": network, "optimizer": SGD, "num_steps": steps, "progress": False}
    return lp.scores.fit(KEY, data, process, **{**settings, **options})


def test_batches_may_be_iterated_over_or_asked_for():
    batches = [X[:10], X[10:20], X[20:30]]
    again = fit_tiny(IterableOnly(batches))  # begins anew at its end
    asked = fit_tiny(lambda step: batches[step % 3])
    ended = fit_tiny(iter(batches * 2))
    equal(again[1:4], asked[1:4])
    equal(again[1:4], ended[1:4])
    equal(again.score, asked.score)
    pairs = iter([(X[:10], LABELS[:10])] * 6)
    labelled = fit_tiny(pairs, num_classes=5, validation=(X, LABELS))
    assert labelled.score.condition_shape == ()
    assert len(labelled.validation_losses) == 6


class IterableOnly:
    """What a loader of data is: a new iterator each time."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def test_a_training_that_fails_says_so_and_keeps_what_it_had():
    with pytest.warns(lp.DivergenceWarning, match="not finite at step") as caught:
        found = fit_tiny(optimizer=optax.sgd(1e30), steps=50)
    assert caught[0].filename == __file__
    assert 0 < found.failed_at < 50
    assert found.num_steps == found.failed_at
    assert jnp.all(jnp.isfinite(found.score.denoiser.network.args[0]))


def with_nan():
    data = X.copy()
    data[3, 1] = np.nan
    return data


REFUSED = {
    "nan": ({"data": with_nan()}, "data: expected finite numbers"),
    "words": ({"data": np.array(["a", "b"])}, "data: expected an array of numbers"),
    "none": ({"data": np.zeros((0, 2))}, r"expected shape \[datum, \*event\], got \(0, 2\)"),
    "negative": ({"process": lp.scores.GeometricBrownian()}, "expected positive numbers"),
    "constant": ({"data": np.ones((9, 2))}, "expected data that differ"),
    "unit": ({"data": 1e6 * X}, "standard deviation is .*Scale the data"),
    "process": ({"process": "VP"}, "process: expected a noise process .*got 'VP'"),
    "steps": ({"num_steps": 0}, "num_steps: expected an integer of at least 1, got 0"),
    "large": ({"batch_size": 41}, "batch_size: expected at most the 40 rows .*got 41"),
    "small": ({"batch_size": 0}, "batch_size: expected an integer of at least 1"),
    "short": ({"condition": LABELS[:-1]}, "condition: expected a label .* 40 data, got shape"),
    "matrix": ({"condition": LABELS[:, None]}, "condition: expected a label .*or a vector"),
    "labels": (
        {"condition": LABELS, "num_classes": 2},
        "expected labels from 0 to 1, .*got 0 to 2",
    ),
    "below": ({"condition": LABELS - 2}, "expected labels from 0 .*got -2 to 0"),
    "vector": ({"condition": with_nan()}, "condition: expected finite numbers or"),
    "dropout": ({"condition_dropout": 1.0}, "condition_dropout: expected a number from 0"),
    "fraction": ({"validation": 1.5}, "validation: expected a number between 0 and 1, got 1.5"),
    "all": ({"data": X[:2], "validation": 0.9}, "leaves none of the 2 data"),
    "other": ({"validation": np.zeros((5, 3))}, r"validation: expected events of shape \(2,\)"),
    "pair": ({"validation": X, "condition": LABELS}, r"expected a pair \(data, condition\)"),
    "ema": ({"ema": 1.0}, "ema: expected a number between 0 and 1, got 1.0"),
    "sigma": ({"sigma_data": -1.0}, "sigma_data: expected a number"),
    "every": ({"validate_every": 0}, "validate_every: expected an integer"),
    "loss": ({"loss": "denoising"}, "loss: expected one such as .*got 'denoising'"),
    "weighting": (None, "weighting: expected one of edm, .*got 'snr'"),
    "network": ({"network": "mlp"}, "network: expected .*residual_mlp.*got 'mlp'"),
    "weights": ({"network": lambda u, level, condition: u}, "expected a pytree with arrays"),
    "shape": (
        {"network": Partial(lambda w, u, level, condition: w, jnp.zeros(3))},
        r"network: expected an output of the shape \(2,\) of an event, got \(3,\)",
    ),
    "image": ({"network": lp.scores.unet()}, "a U-Net is for images"),
    "optimizer": ({"optimizer": "adam"}, "optimizer: expected an optax"),
    "rate": ({"optimizer": -1.0}, "optimizer: expected a number between 0 and inf"),
    "poisson": (
        {"process": lp.scores.PFGM(), "loss": lp.scores.sliced()},
        "sliced: expected a process with Gaussian noise",
    ),
    "informed": (
        {"loss": lp.scores.target_informed(jnp.sum), "condition": LABELS},
        "target_informed: expected no condition",
    ),
    "beside": ({"data": iter([X]), "condition": LABELS}, "let it give pairs"),
    "rows": ({"data": iter([X]), "batch_size": 8}, "batches have 40 rows, got 8"),
    "apart": ({"data": iter([X]), "validation": 0.1}, "no fraction can be kept apart"),
    "ended": ({"data": iter([X] * 3)}, "the iterator ended after 3 batches"),
    "length": ({"data": iter([X, X[:5]])}, "expected batches of 40 rows .*got 5 in step 1"),
    "bad batch": ({"data": iter([X, with_nan()])}, "data: expected finite numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case):
    arguments, said = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=said):
        if arguments is None:
            lp.scores.denoising("snr")
        fit_tiny(**arguments)

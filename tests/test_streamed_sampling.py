"""Sampling with rows that are read from a stream: the same answers, resumable, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr

import langevin_ppl as lp
from langevin_ppl.gradients import whole_of_stream
from langevin_ppl.gradients.rows import reader_of
from langevin_ppl.warmup.centre import settle_on_all, settle_on_stream
from langevin_ppl.warmup.tune import Request
from tests.interruption import Killed, kill_after

KEY = jax.random.key(11)
N, D, B = 20_000, 3, 100
RNG = np.random.default_rng(3)
X = RNG.normal(size=(N, D)).astype(np.float32)
Y = (X @ [1.0, -0.5, 0.2] + 0.5 * RNG.normal(size=N)).astype(np.float32)
PRECISION = X.T.astype(np.float64) @ X / 0.25 + np.eye(D) / 4.0
MEAN = np.linalg.solve(PRECISION, X.T.astype(np.float64) @ Y / 0.25)
SD = np.sqrt(np.diag(np.linalg.inv(PRECISION)))


def model(x, y):
    """Linear regression with known noise: the posterior is Gaussian."""
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("row", x.shape[0], subsample_size=B):
        batch = numpyro.subsample(x, event_dim=1)
        numpyro.sample("y", dist.Normal(batch @ slope, 0.5), obs=numpyro.subsample(y, 0))


def of_tuple(data):
    model(*data)


def of_dict(data):
    model(data["x"], data["y"])


STREAM = lp.stream(X, Y, batch_size=B)
TARGET = lp.target(model, *STREAM)


def assert_right(idata, sds=0.1, share=0.1):
    """Means to 0.1 sd and sds to 10 %, which a run of these lengths knows to a third of that."""
    slope = idata["posterior"]["slope"].values.reshape(-1, D)
    assert (np.abs(slope.mean(axis=0) - MEAN) / SD).max() < sds
    assert np.abs(slope.std(axis=0) / SD - 1.0).max() < share


@pytest.mark.parametrize("source", ["arrays", "memmap", "zarr", "batches", "parquet"])
def test_the_default_run_is_right_wherever_rows_are(source, tmp_path):
    if source == "arrays":
        stream = STREAM
    elif source == "memmap":
        for name, array in (("x", X), ("y", Y)):
            np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", array.dtype, array.shape)[
                :
            ] = array
        maps = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("x", "y")]
        stream = lp.stream(*maps, batch_size=B)
    elif source == "zarr":
        import zarr

        arrays = [zarr.array(a, chunks=(500, *a.shape[1:])) for a in (X, Y)]
        stream = lp.stream(*arrays, batch_size=B)
    elif source == "batches":
        order = RNG.permutation(N).reshape(-1, B)
        stream = lp.stream([(X[i], Y[i]) for i in order], num_rows=N, batch_size=B)
    else:
        pa = pytest.importorskip("pyarrow")
        pq = pytest.importorskip("pyarrow.parquet")
        rows = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), D)
        pq.write_table(pa.table({"x": rows, "y": Y}), tmp_path / "d.parquet", row_group_size=3000)
        stream = lp.stream(pq.ParquetFile(tmp_path / "d.parquet"), batch_size=B)
    target = lp.target(of_dict, stream) if source == "parquet" else lp.target(model, *stream)
    idata = lp.sample(KEY, target)
    assert_right(idata)
    assert idata.attrs["kernel"] == "ubu" and idata.attrs["converged"] == 1
    assert "control_variates" in idata.attrs["gradient_estimator"]
    assert set(idata.children) == {
        "posterior", "sample_stats", "sampler_parameters", "sampler_position"
    }  # fmt: skip


def test_columns_reach_the_model_as_they_were_grouped():
    expected = lp.sample(KEY, TARGET, num_samples=50)
    named = lp.stream(x=X, y=Y, batch_size=B)
    targets = [
        lp.target(of_tuple, STREAM),
        lp.target(of_dict, named),
        lp.target(model, **named),
        lp.target(model, STREAM.columns[0], y=STREAM.columns[1]),
    ]
    for target in targets:
        idata = lp.sample(KEY, target, num_samples=50)
        np.testing.assert_allclose(
            idata["posterior"]["slope"], expected["posterior"]["slope"], rtol=1e-4
        )


def test_a_model_without_subsample_size_will_do():
    def whole(x, y):
        slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([D]).to_event(1))
        with numpyro.plate("row", len(x)):
            batch = numpyro.subsample(x, event_dim=1)
            numpyro.sample("y", dist.Normal(batch @ slope, 0.5), obs=numpyro.subsample(y, 0))

    target = lp.target(whole, *STREAM)
    assert target.plates == {"row": (N, B)}
    assert_right(lp.sample(KEY, target))


def test_plain_batches_and_kernels_that_draw_twice():
    white = {"inverse_mass_matrix": np.linalg.inv(PRECISION), "step_size": 2e-3}
    idata = lp.sample(
        KEY, TARGET, lp.sgld, gradient=lp.minibatch(), **white, num_warmup=500, thinning=20
    )
    # Gradient noise of N^2 / B heats by about h N / (2 B), a fifth: it is measured, and said.
    assert 1.05 < idata.attrs["temperature_noisiest"] < 1.5
    assert_right(idata, sds=0.3, share=0.3)
    calls = []
    gather = type(STREAM).gather

    def spied(self, position, count, *share):
        calls.append((position, count))
        return gather(self, position, count, *share)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(STREAM), "gather", spied)
        # OBABO kicks twice a step, at gradients of two batches.
        lp.sample(KEY, TARGET, lp.obabo, num_warmup=64, num_samples=64, thinning=1)
    units = [call for call in calls if call != (0, 1)]
    first, length = units[0]
    assert first == 1
    # Warm-up and sampling read on where the one before stopped, without a gap.
    starts = sorted({position for position, _ in units})
    assert {(start - 1) % 64 for start in starts} == {0} and length % 64 == 0


def test_the_gradient_of_a_pass_is_that_of_all_rows():
    position = {"slope": jnp.array([0.3, -0.2, 0.1])}
    reader = reader_of(TARGET, {"row": B}, "blocks", 0)
    in_memory = lp.target(model, X, Y)
    for rows in (7_000, N, 3 * N):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("langevin_ppl.gradients.passes.PASS_ROWS", rows)
            estimate = whole_of_stream(TARGET, reader, position)
        value, gradient = jax.value_and_grad(in_memory.logdensity_fn)(position)
        np.testing.assert_allclose(estimate.logdensity, value, rtol=1e-5)
        np.testing.assert_allclose(estimate.gradient["slope"], gradient["slope"], rtol=2e-4)


def request_of(target):
    from langevin_ppl.tree import Layout

    return Request(target, Layout.of(target.prototype), lp.ubu, 100, {}, None)


def test_the_mode_is_settled_by_passes_as_in_memory():
    """From 30 standard deviations away and in a frame that is 20 % wrong."""
    start = jnp.asarray(MEAN + 30 * SD, jnp.float32)
    factor = jnp.asarray(0.8 * np.linalg.cholesky(np.linalg.inv(PRECISION)), jnp.float32)
    reader = reader_of(TARGET, {"row": B}, "blocks", 0)
    settled = settle_on_stream(request_of(TARGET), reader, start, factor)
    np.testing.assert_allclose(settled.position, MEAN, atol=0.05 * SD.min())
    assert settled.curved and settled.decrement < 1e-4 and settled.num_evaluations < 15
    memory = lp.target(model, X, Y)
    rows = reader_of(memory, {"row": B}, "blocks", 0)
    whole = settle_on_all(
        memory.batch_logdensity_fn, rows, start, factor, layout=request_of(memory).layout
    )
    np.testing.assert_allclose(settled.position, whole.position, atol=0.05 * SD.min())
    np.testing.assert_allclose(settled.value, whole.value, rtol=1e-5)


def test_control_variates_about_a_given_centre():
    centre = {"slope": jnp.asarray(MEAN + 0.5 * SD, jnp.float32)}
    idata = lp.sample(KEY, TARGET, gradient=lp.control_variates(centre=centre))
    assert_right(idata)
    estimator = TARGET.gradient(lp.control_variates(centre=centre))
    batch = {"row": STREAM.gather(5, 1)._replace(indices=STREAM.gather(5, 1).indices[0])}
    batch = {"row": jax.tree.map(lambda a: jnp.asarray(a).reshape(-1, *a.shape[-1:])
             if a.ndim == 3 else jnp.ravel(jnp.asarray(a)), batch["row"])}  # fmt: skip
    estimate, _ = estimator.estimate(batch, centre, ())
    exact = jax.grad(lp.target(model, X, Y).logdensity_fn)(centre)
    np.testing.assert_allclose(estimate.gradient["slope"], exact["slope"], rtol=1e-4)


def test_a_second_stream_of_the_same_shapes_compiles_nothing():
    lp.sample(KEY, TARGET, num_samples=100)
    traces = []

    def counted(x, y):
        traces.append(1)
        model(x, y)

    lp.sample(KEY, lp.target(counted, *STREAM), num_samples=100)
    made = len(traces)
    other = lp.stream(2.0 * X, Y, batch_size=B, seed=5)
    idata = lp.sample(KEY, lp.target(counted, *other), num_samples=100)
    assert made == len(traces) > 0
    assert np.abs(idata["posterior"]["slope"].values.mean(axis=(0, 1)) - MEAN / 2).max() < 0.01


@pytest.mark.parametrize("chunk", [1, 37, 500])
def test_chunks_change_no_draw(chunk):
    whole = lp.sample(KEY, TARGET, num_samples=150)
    cut = lp.sample(KEY, TARGET, num_samples=150, chunk=chunk)
    np.testing.assert_array_equal(whole["posterior"]["slope"], cut["posterior"]["slope"])


def test_resumed_draws_are_those_of_an_uninterrupted_run(tmp_path, monkeypatch):
    """Killed in the warm-up, and in the draws: the order of rows goes on where it was."""

    options = {"num_samples": 400, "num_warmup": 300}
    whole = lp.sample(KEY, TARGET, **options)
    for chunks in (1, 3):
        kill_after(monkeypatch, chunks)
        with pytest.raises(Killed):
            if chunks == 1:
                lp.sample(KEY, TARGET, **options, checkpoint=tmp_path, every=0, chunk=60)
            else:
                lp.resume(tmp_path, TARGET, every=0, chunk=60)
        monkeypatch.undo()
    passes = []
    monkeypatch.setattr(type(STREAM), "passes", lambda self, *a: passes.append(1) or iter(()))
    resumed = lp.resume(tmp_path, lp.target(model, *lp.stream(X, Y, batch_size=B)))
    assert passes == []  # the mode is known
    for group in ("posterior", "sample_stats"):
        xr.testing.assert_equal(whole[group].to_dataset(), resumed[group].to_dataset())
    with pytest.raises(lp.CheckpointError, match="the stream differs"):
        lp.resume(tmp_path, lp.target(model, *lp.stream(X, Y, batch_size=B, seed=1)))
    changed = Y.copy()
    changed[0] += 1.0
    with pytest.raises(lp.CheckpointError, match="the stream differs"):
        lp.resume(tmp_path, lp.target(model, *lp.stream(X, changed, batch_size=B)))


def test_what_is_not_read_by_subsample_is_refused():
    def whole(x, y):
        slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([D]).to_event(1))
        with numpyro.plate("row", x.shape[0]):
            numpyro.sample("y", dist.Normal(x @ slope, 0.5), obs=y)

    def gathered(x, y):
        slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([D]).to_event(1))
        with numpyro.plate("row", x.shape[0], subsample_size=B) as index:
            numpyro.sample("y", dist.Normal(x[index] @ slope, 0.5), obs=y[index])

    for fn in (whole, gathered):
        with pytest.raises(TypeError, match=r"read them by numpyro\.subsample"):
            lp.sample(KEY, lp.target(fn, *STREAM))


def outside(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([D]).to_event(1))
    batch = numpyro.subsample(x, event_dim=1)
    with numpyro.plate("row", N):
        numpyro.sample("y", dist.Normal(batch @ slope, 0.5), obs=numpyro.subsample(y, 0))


def short(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([D]).to_event(1))
    with numpyro.plate("row", N - 1):
        batch = numpyro.subsample(x, event_dim=1)
        numpyro.sample("y", dist.Normal(batch @ slope, 0.5), obs=numpyro.subsample(y, 0))


def unread(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([D]).to_event(1))
    with numpyro.plate("row", N):
        batch = numpyro.subsample(x, event_dim=1)
        numpyro.sample("y", dist.Normal(batch @ slope, 0.5), obs=jnp.zeros(N))


def two_plates(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([D]).to_event(1))
    with numpyro.plate("row", N):
        batch = numpyro.subsample(x, event_dim=1)
        numpyro.factor("x", batch @ slope)
    with numpyro.plate("other", N):
        numpyro.sample("y", dist.Normal(slope[0], 0.5), obs=numpyro.subsample(y, 0))


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (outside, "inside a plate of 20000 rows"),
        (short, "inside a plate of 20000 rows.*'row' of 19999 rows"),
        (unread, "The column '1' of the stream is not read"),
        (two_plates, "in one plate, and no other plate"),
    ],
)
def test_plates_that_do_not_fit_are_refused(fn, message):
    with pytest.raises(ValueError, match=message):
        lp.sample(KEY, lp.target(fn, *STREAM))


def test_numbers_of_rows_that_an_iterable_does_not_know_are_refused():
    groups = jnp.arange(N) % 2

    def grouped(x, y):
        slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([D]).to_event(1))
        effect = numpyro.sample("effect", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        with numpyro.plate("row", N) as index:
            mean = numpyro.subsample(x, event_dim=1) @ slope + effect[groups[index]]
            numpyro.sample("y", dist.Normal(mean, 0.5), obs=numpyro.subsample(y, 0))

    batches = [(X[i : i + B], Y[i : i + B]) for i in range(0, N, B)]
    with pytest.raises(ValueError, match="reads the numbers of the rows of the plate 'row'"):
        lp.sample(KEY, lp.target(grouped, *lp.stream(batches, num_rows=N, batch_size=B)))
    # Of arrays they are known, and right: the effect of rows with an even number is found.
    shifted = Y + np.where(np.arange(N) % 2 == 0, 1.0, 0.0).astype(np.float32)
    idata = lp.sample(KEY, lp.target(grouped, *lp.stream(X, shifted, batch_size=B)))
    effect = idata["posterior"]["effect"].values.mean(axis=(0, 1))
    np.testing.assert_allclose(effect, [1.0, 0.0], atol=5 * 0.5 / (N / 2) ** 0.5)


def test_latent_sites_of_rows_are_refused_as_in_memory():
    def local(x, y):
        with numpyro.plate("row", N):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(z, 0.5), obs=numpyro.subsample(y, 0))
            numpyro.factor("x", numpyro.subsample(x, 1)[:, 0])

    with pytest.raises(ValueError, match="its values belong to rows"):
        lp.sample(KEY, lp.target(local, *STREAM))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": lp.mala}, "not in memory to look at all of them"),
        ({"kernel": lp.ubu, "gradient": lp.exact()}, "not in memory to look at all of them"),
        ({"kernel": lp.amagold(2)}, "not in memory to look at all of them"),
        ({"gradient": lp.svrg()}, "svrg: looks at all rows again and again"),
        ({"gradient": lp.minibatch(200)}, "the batch size belongs to the stream"),
        ({"gradient": lp.minibatch(sampling="without")}, "the order of rows belongs to the stream"),
        ({"gradient": lp.control_variates(order=2)}, "the Hessian of all of them"),
        ({"gradient": lp.control_variates(pinned=5)}, "neither pinned nor drawn by importance"),
        ({"groups": ["log_likelihood"]}, "needs all rows of the data in memory"),
        ({"groups": ["posterior_predictive"]}, "needs all rows of the data in memory"),
    ],
)
def test_what_needs_all_rows_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        lp.sample(KEY, TARGET, **options)


def test_two_streams_and_uses_outside_a_run_are_refused():
    with pytest.raises(ValueError, match="columns of one stream, got those of 2"):
        lp.target(model, lp.stream(X, batch_size=B), lp.stream(Y, batch_size=B))
    position = {"slope": jnp.zeros(D)}
    with pytest.raises(lp.StreamError, match="needs all rows of the column"):
        TARGET.logdensity_fn(position)
    with pytest.raises(lp.StreamError, match="needs all rows of the column"):
        TARGET.log_likelihood({"slope": jnp.zeros((1, 1, D))})
    algorithm = lp.sgld(TARGET.gradient(lp.minibatch()), step_size=1e-5)
    with pytest.raises(lp.StreamError, match="read while langevin_ppl.sample runs"):
        algorithm.init(position, KEY)
    assert TARGET.constrain(position)["slope"].shape == (D,)
    assert TARGET.init_position(KEY)["slope"].shape == (D,)
    assert TARGET.observed_data == {} and TARGET.constant_data == {}


def test_prediction_at_new_data_in_memory():
    def predictive(x, y):
        slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([D]).to_event(1))
        with numpyro.plate("row", x.shape[0]):
            batch = numpyro.subsample(x, event_dim=1)
            obs = None if y is None else numpyro.subsample(y, 0)
            numpyro.sample("y", dist.Normal(batch @ slope, 0.5), obs=obs)

    target = lp.target(predictive, *STREAM)
    drawn = target.predict(KEY, {"slope": np.zeros((1, 40, D)) + MEAN}, X[:50], None)["y"]
    assert drawn.shape == (1, 40, 50)
    np.testing.assert_allclose(drawn.mean(axis=(0, 1)), X[:50] @ MEAN, atol=5 * 0.5 / 40**0.5)


def test_nan_in_the_data_names_the_rows():
    holes = X.copy()
    holes[[17, 4000], 1] = np.nan
    with pytest.raises(lp.StreamError, match="17"):
        lp.sample(KEY, lp.target(model, *lp.stream(holes, Y, batch_size=B)))


def test_batches_that_change_their_shape_stop_the_run():
    order = RNG.permutation(N).reshape(-1, B)
    batches = [(X[i], Y[i]) for i in order]
    batches[150] = (batches[150][0][:, :2], batches[150][1])
    with pytest.raises(lp.StreamError, match="150"):
        lp.sample(KEY, lp.target(model, *lp.stream(batches, num_rows=N, batch_size=B)))
    with pytest.raises(lp.StreamError, match=f"{N + 500}"):
        lp.sample(KEY, lp.target(model, *lp.stream(batches[:100], num_rows=N + 500, batch_size=B)))


@pytest.mark.slow
def test_many_dimensions_make_one_pass_for_the_centre(monkeypatch):
    """Above 500 the frame is a diagonal; the centre is the mode of the rows in memory."""
    wide = 600
    x = RNG.normal(size=(4000, wide)).astype(np.float32)
    y = (x[:, 0] + 0.5 * RNG.normal(size=4000)).astype(np.float32)

    def broad(x, y):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0).expand([wide]).to_event(1))
        with numpyro.plate("row", x.shape[0]):
            batch = numpyro.subsample(x, event_dim=1)
            numpyro.sample("y", dist.Normal(batch @ slope, 0.5), obs=numpyro.subsample(y, 0))

    passes = []
    real = type(STREAM).passes
    monkeypatch.setattr(
        type(STREAM), "passes", lambda self, *a, **k: passes.append(1) or real(self, *a, **k)
    )
    target = lp.target(broad, *lp.stream(x, y, batch_size=500))
    idata = lp.sample(KEY, target, num_samples=200, num_warmup=200)
    assert len(passes) == 1
    precision = x.T.astype(np.float64) @ x / 0.25 + np.eye(wide)
    mean = np.linalg.solve(precision, x.T.astype(np.float64) @ y / 0.25)
    error = idata["posterior"]["slope"].values.mean(axis=(0, 1)) - mean
    # Few effective draws of each of 600 coordinates: half a standard deviation on average.
    assert np.sqrt(np.mean(error**2 * np.diag(precision))) < 0.5

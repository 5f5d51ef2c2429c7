"""Streams: which rows come when, from where they are read, and what a model sees of them."""

import doctest
import threading
import time
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from langevin_ppl import streams
from langevin_ppl.streams import Absent, Feeder, Order, StreamError, stream
from langevin_ppl.streams.order import _scattered, generator

N = 1003


@pytest.fixture(scope="module")
def arrays():
    random = np.random.default_rng(0)
    return random.standard_normal((N, 3)), np.arange(N)


class Loader:
    """Batches in a new order every time it is iterated."""

    def __init__(self, *arrays, batch_size, make=tuple, drop_last=False):
        self.arrays, self.batch_size, self.make = arrays, batch_size, make
        self.drop_last, self.epoch, self.made = drop_last, -1, 0

    def __iter__(self):
        self.epoch += 1
        size = len(self.arrays[0])
        end = size - size % self.batch_size if self.drop_last else size
        order = np.random.default_rng(self.epoch).permutation(size)
        for start in range(0, end, self.batch_size):
            rows = order[start : min(start + self.batch_size, end)]
            self.made += 1
            yield self.make([array[rows] for array in self.arrays])


# Order


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize(("block_size", "window"), [(1, 7), (5, 3), (16, 2), (96, 1), (7, 100)])
def test_an_epoch_has_every_row_once(block_size, window, shards):
    order = Order(96, 8, block_size, window, seed=3, shards=shards)
    epochs = [order.indices(12 * epoch, 12) for epoch in range(3)]
    for rows in epochs:
        assert rows.shape == (12, 8)
        assert rows.dtype == np.int64
        assert sorted(rows.ravel()) == list(range(96))
    assert not np.array_equal(epochs[0], epochs[1])
    assert np.array_equal(
        epochs[1], Order(96, 8, block_size, window, 3, True, shards).indices(12, 12)
    )
    assert not np.array_equal(epochs[1], Order(96, 8, block_size, window, 4).indices(12, 12))


@pytest.mark.parametrize("shards", [1, 2])
def test_every_row_is_left_out_and_comes_first_equally_often(shards):
    seeds = 1500
    inside, first = np.zeros(23), np.zeros(23)
    for seed in range(seeds):
        rows = Order(23, 4, 5, 2, seed=seed, shards=shards).indices(0, 5)
        assert len(np.unique(rows)) == 20
        inside[rows] += 1
        first[rows[0, 0]] += 1
    for counts, p in ((inside, 20 / 23), (first, 1 / 23)):
        error = np.sqrt(seeds * p * (1 - p))
        assert np.max(np.abs(counts - seeds * p)) < 4.5 * error


def test_batches_do_not_depend_on_how_they_are_asked_for():
    order = Order(1003, 8, 16, 4, seed=1, shards=2)
    together = order.indices(0, 400)  # three epochs and a bit
    assert np.array_equal(together[110:390], order.indices(110, 280))
    assert np.array_equal(together, np.concatenate([order.indices(i, 1) for i in range(400)]))


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "window"), [(1003, 8, 4), (50, 50, 1), (9, 4, 1)]
)
def test_places_are_counted_up(num_rows, batch_size, window):
    order = Order(num_rows, batch_size, 16, window)
    place, most = order.locate(0), max(1, window * 16 // batch_size)
    assert place == (0, 0, 0)
    for position in range(1, 3 * order.batches_per_epoch):
        following = order.locate(position)
        epoch, window, batch = place
        new_window, new_epoch = (epoch, window + 1, 0), (epoch + 1, 0, 0)
        assert following in ((epoch, window, batch + 1), new_window, new_epoch)
        assert following.batch < most
        assert following.window < order.windows_per_epoch
        place = following
    assert place == (2, *order.locate(order.batches_per_epoch - 1)[1:])


def test_rows_of_a_window_are_contiguous_blocks():
    order = Order(10_000, 10, 50, 8, seed=2)
    pieces = order.pieces(0, 1, 0)
    assert np.all(pieces[:, 0] // 50 == (pieces[:, 1] - 1) // 50)
    assert len(pieces) <= 9  # eight blocks, and the ends of two others
    rows = np.concatenate([np.arange(*piece) for piece in pieces])
    assert sorted(rows) == sorted(order.indices(order.first_batch(1), 40).ravel())


def test_every_shard_of_every_window_is_dealt_anew():
    order = Order(4096, 16, 8, 32, seed=5, shards=2)
    deals = [order.deal(*key) for key in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))]
    assert len({deal.tobytes() for deal in deals}) == 4
    assert len({deal.shape for deal in deals}) == 1


def test_shards_are_read_from_different_rows():
    order = Order(4096, 16, 8, 32, seed=5, shards=4)
    parts = order.indices(order.first_batch(2), 16).reshape(16, 4, 4)
    for shard in range(4):
        rows = np.concatenate([np.arange(*piece) for piece in order.pieces(0, 2, shard)])
        assert sorted(rows) == sorted(parts[:, shard].ravel())


def test_without_shuffling_rows_come_as_they_are_stored():
    order = Order(10, 3, 4, 2, shuffle=False)
    assert np.array_equal(order.indices(0, 10).ravel(), np.arange(30) % 10)


WRITTEN_DOWN = pytest.mark.parametrize("written_down", [0, 2**10])


@WRITTEN_DOWN
@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1000, 5000])
def test_scattered_places_are_a_permutation(size, written_down, monkeypatch):
    monkeypatch.setattr("langevin_ppl.streams.order.WRITTEN_DOWN", written_down)
    images = _scattered(np.arange(size), generator(0, 1), size)
    assert sorted(images) == list(range(size))


@WRITTEN_DOWN
def test_scattered_places_are_even(written_down, monkeypatch):
    """By a network as well as by a permutation that is written down."""
    monkeypatch.setattr("langevin_ppl.streams.order.WRITTEN_DOWN", written_down)
    draws = 4000
    counts = np.zeros((6, 6, 6))
    for seed in range(draws):
        image = _scattered(np.arange(6), generator(seed), 6)
        counts[0, image[0], image[1]] += 1
        counts[1, image[2], image[5]] += 1
    pairs = counts[:2][:, ~np.eye(6, dtype=bool)] / draws
    assert np.max(np.abs(pairs - 1 / 30)) < 4.5 * np.sqrt(1 / 30 / draws)


B, R, W = 32, 16, 8  # a batch, a block, a window
BLOCKS = 512


def batch_means(values, shards=1, epochs=40):
    """Means of batches in the order of a stream, ``[window, batch]``, of a variance of one."""
    order = Order(R * BLOCKS, B, R, W, seed=7, shards=shards)
    rows = order.indices(0, epochs * order.batches_per_epoch)
    values = (values - values.mean()) / values.std()
    return values[rows].mean(1).reshape(-1, W * R // B)


@pytest.mark.parametrize("shards", [1, 4])
def test_noise_of_constant_blocks_is_at_its_bound(shards):
    blocks = np.random.default_rng(1).standard_normal(BLOCKS)
    means = batch_means(np.repeat(blocks, R), shards)
    # 2,560 windows: the relative error of a variance is at most 0.03.
    same = (R - 1) / (W * R - shards)
    inflation = 1 + (B - shards) * same
    assert inflation < 1 + (B - 1) / W
    assert 0.85 * inflation < B * np.var(means) < 1.1 * inflation
    correlation = np.mean([np.corrcoef(means.T)[i, j] for i in range(4) for j in range(i)])
    assert 0.9 < correlation / (B * same / inflation) < 1.05
    # A window's mean, which a slow chain feels, has the noise of its blocks.
    assert 0.85 * R < W * R * np.var(means.mean(1)) < 1.1 * R


def test_noise_of_sorted_rows_is_within_its_bound():
    """Sorted values, nearly equal in a block: the same bound."""
    inflation = B * np.var(batch_means(np.arange(R * BLOCKS) ** 2.0))
    assert 3.5 < inflation < 1.1 * (1 + (B - 1) / W)


def test_noise_of_rows_in_random_order_is_that_of_independent_rows():
    means = batch_means(np.random.default_rng(2).standard_normal(R * BLOCKS))
    assert 0.88 < B * np.var(means) < 1.12
    assert abs(np.mean([np.corrcoef(means.T)[i, j] for i in range(4) for j in range(i)])) < 0.1


def test_default_sizes():
    plain = stream(np.zeros((10**6, 8), np.float32), batch_size=256).order
    assert (plain.block_size, plain.window) == (256, 256)
    wide = stream(np.broadcast_to(np.float32(0), (10**5, 10**5)), batch_size=64).order
    assert wide.window * wide.block_size * 4 * 10**5 < 1.1 * 2**27
    whole = stream(np.zeros(50), batch_size=50).order
    assert whole.batches_per_epoch == whole.windows_per_epoch == 1


# Reading


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("shards", "share"), [(1, 1), (4, 1), (4, 2), (1, 2), (2, 4)])
def test_gathered_rows_are_those_of_the_order(arrays, shards, share, shuffle):
    X, y = arrays
    rows = stream(
        X, y, batch_size=8, block_size=16, window=4, seed=1, shards=shards, shuffle=shuffle
    )
    indices = rows.order.indices(100, 60)
    parts = [rows.gather(100, 60, (k, share)) for k in range(share)]
    assert np.array_equal(np.concatenate([part.indices for part in parts], 1), indices)
    for part in parts:
        assert part.indices.dtype == np.int32
        assert part.columns[0].dtype == np.float32
        assert np.array_equal(part.columns[0], X.astype(np.float32)[part.indices])
        assert np.array_equal(part.columns[1], part.indices)


class Counted:
    """A column of very many rows, of which it is counted what is read."""

    shape, dtype = (10**12,), np.dtype("float32")

    def __init__(self):
        self.read = []

    def __getitem__(self, rows):
        self.read.append((rows.start, rows.stop))
        return np.arange(rows.start, rows.stop) % 1000


def test_cost_and_memory_do_not_depend_on_the_number_of_rows():
    column = Counted()
    rows = stream(column, batch_size=64)
    tracemalloc.start()
    gathered = rows.gather(10**9, 3000)
    for start in range(3000, 30_000, 1000):  # a window each, of a megabyte
        rows.gather(10**9 + start, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert gathered.indices.dtype == np.int64
    assert np.array_equal(gathered.columns[0], gathered.indices % 1000)
    windows = {rows.order.locate(10**9 + i)[1] for i in range(29_001)}
    assert sum(stop - start for start, stop in column.read) <= len(windows) * 65_536
    assert peak < 8e6
    column.read.clear()
    assert len(rows.fingerprint()) == 64
    assert sum(stop - start for start, stop in column.read) == 64 * 256


def test_a_share_reads_its_shards_only():
    column = Counted()
    rows = stream(column, batch_size=64, shards=4)
    rows.gather(0, 8, (1, 2))
    assert sum(stop - start for start, stop in column.read) <= 65_536 / 2


def test_memmap_is_not_loaded(tmp_path):
    path = tmp_path / "X.npy"
    X = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(10**6, 4))
    X[:] = np.arange(10**6)[:, None]
    X.flush()
    rows = stream(np.load(path, mmap_mode="r"), batch_size=100)
    tracemalloc.start()
    gathered = rows.gather(0, 700)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(gathered.columns[0][..., 2], gathered.indices)
    assert peak < 10**6 * 16 / 2  # half the file


def test_dtypes_are_those_of_jax():
    given = [np.float64, np.float16, np.int64, np.uint8, bool, ">f4", jnp.bfloat16, complex]
    data = [np.ones(4, dtype) for dtype in given]
    rows = stream(*data, batch_size=2)
    for column, part, array in zip(rows, rows.gather(0, 2).columns, data, strict=True):
        assert (
            column.dtype
            == part.dtype
            == jnp.asarray(array.astype(array.dtype.newbyteorder("="))).dtype
        )
    with jax.enable_x64(True):
        assert stream(data[0], batch_size=2).gather(0, 1).columns[0].dtype == np.float64


def test_integers_that_do_not_fit_are_refused():
    rows = stream(y=np.array([1, 2**40]), batch_size=1)
    with pytest.raises(StreamError, match="column 'y'.*1099511627776.*do not fit into int32"):
        rows.gather(0, 2)


@pytest.mark.parametrize("dtype", [np.float64, jnp.bfloat16])
def test_nan_is_refused_with_its_rows(dtype):
    y = np.zeros((1000, 2), dtype)
    y[[3, 17, 400, 401, 402, 999], 1] = np.nan
    rows = stream(X=np.ones(1000), y=y, batch_size=10)
    message = r"column 'y' has NaN in rows 3, 17, 400, 401, 402, \.\.\. \(6 of 1000.*allow_nan=True"
    with pytest.raises(StreamError, match=message):
        rows.gather(0, 1)
    with pytest.raises(StreamError, match=message):
        list(rows.passes())
    allowed = stream(y=y, batch_size=10, allow_nan=True).gather(0, 100)
    assert np.isnan(allowed.columns[0].astype(float)).sum() == 6


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("size", [100, 301, 10**6])
def test_a_pass_has_every_row_once(arrays, size, parts):
    X, y = arrays
    rows = stream(X, y, batch_size=8)
    shares = [list(rows.passes(size, (k, parts))) for k in range(parts)]
    assert len({block.indices.shape for share in shares for block in share}) == 1
    whole = []
    for together in zip(*shares, strict=True):
        for indices, columns, valid in together:
            assert np.array_equal(columns[0], X.astype(np.float32)[indices])
            assert np.all(indices[valid:] == N - 1)
            whole.extend(indices[:valid])
    assert whole == list(range(N))


def test_sampled_rows_are_from_everywhere(arrays):
    X, y = arrays
    rows = stream(X, y, batch_size=8)
    indices, (some, numbers) = rows.sample_rows(50)
    assert np.array_equal(some, X.astype(np.float32)[indices])
    assert np.array_equal(numbers, indices)
    assert set(np.bincount(indices * 10 // N)) <= {4, 5, 6}
    assert np.array_equal(indices, rows.sample_rows(50)[0])
    assert not np.array_equal(indices, stream(y, batch_size=8, seed=1).sample_rows(50)[0])
    for number in (1, 400, 999, 1000, N, 5000):
        indices = rows.sample_rows(number)[0]
        assert len(np.unique(indices)) == len(indices) == min(number, N)


def test_fingerprint_changes_with_data_and_order(arrays):
    X, y = arrays
    same = stream(X, y, batch_size=8).fingerprint()
    assert same == stream(X.copy(), y, batch_size=np.int64(8)).fingerprint()
    changed = X.copy()
    changed[-1, 0] += 1
    others = [
        stream(changed, y, batch_size=8),
        stream(X, y, batch_size=9),
        stream(X, y, batch_size=8, seed=1),
        stream(X, y, batch_size=8, shards=2),
        stream(X, batch_size=8),
        stream(X=X, y=y, batch_size=8),
    ]
    assert same not in {other.fingerprint() for other in others}


def test_threads_may_read_at_once(arrays):
    X, y = arrays
    rows = stream(X, y, batch_size=8, block_size=16, window=4)
    wrong = []

    def read(start):
        for position in range(start, start + 60):
            gathered = rows.gather(position, 3)
            if not np.array_equal(gathered.columns[1], rows.order.indices(position, 3)):
                wrong.append(position)

    threads = [threading.Thread(target=read, args=(1000 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Files


def same_rows(rows, X, y):
    """Whether batches and a pass have the rows of arrays."""
    gathered = rows.gather(0, 2 * rows.batches_per_epoch)
    assert np.array_equal(gathered.columns[0], X.astype(np.float32)[gathered.indices])
    assert np.array_equal(gathered.columns[1], y[gathered.indices])
    passed = np.concatenate([block.columns[1][: block.valid] for block in rows.passes(300)])
    assert np.array_equal(passed, y)


def test_zarr(arrays, tmp_path):
    zarr = pytest.importorskip("zarr")
    stored = [
        zarr.create_array(
            tmp_path / name, shape=data.shape, dtype=data.dtype, chunks=(100, *data.shape[1:])
        )
        for name, data in zip("Xy", arrays, strict=True)
    ]
    for place, data in zip(stored, arrays, strict=True):
        place[:] = data
    rows = stream(*stored, batch_size=10)
    assert rows.order.block_size == 300  # whole chunks
    same_rows(rows, *arrays)


def test_h5py(arrays, tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "data.h5", "w") as file:
        X = file.create_dataset("X", data=arrays[0], chunks=(500, 3))
        y = file.create_dataset("y", data=arrays[1])
        rows = stream(X, y, batch_size=10)
        assert rows.order.block_size == 500
        same_rows(rows, *arrays)


@pytest.fixture
def parquet(arrays, tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    X, y = arrays
    path = tmp_path / "data.parquet"
    lists = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 3)
    holes = pa.array([None if i == 5 else float(i) for i in range(N)])
    integers = pa.array([None if i == 5 else i for i in range(N)])
    words = pa.array(["a"] * N)
    names = ["X", "y", "holes", "integers", "words"]
    table = pa.table([lists, pa.array(y), holes, integers, words], names=names)
    pq.write_table(table, path, row_group_size=150)
    return pq.ParquetFile(path)


def test_parquet(arrays, parquet):
    rows = stream(parquet, batch_size=10, columns=["X", "y"])
    assert rows.order.block_size == 300
    assert rows["X"].shape == (N, 3)
    assert set(rows.structure) == {"X", "y"}
    same_rows(rows, *arrays)


def test_parquet_refuses(parquet):
    with pytest.raises(StreamError, match="'holes' has NaN in rows 5"):
        stream(parquet, batch_size=10, columns=["holes"]).gather(0, 1)
    with pytest.raises(StreamError, match="'integers' has 1 nulls"):
        stream(parquet, batch_size=10, columns=["integers"]).gather(0, 1)
    with pytest.raises(ValueError, match="'words' to hold numbers"):
        stream(parquet, batch_size=10)
    with pytest.raises(ValueError, match="among X, y, holes, integers, words, got"):
        stream(parquet, batch_size=10, columns=["Z"])


# Iterables


@pytest.mark.parametrize("share", [1, 2])
def test_batches_of_an_iterable(arrays, share):
    X, y = arrays
    loader = Loader(X, y, batch_size=10)
    rows = stream(loader, batch_size=10, num_rows=N)
    assert (rows.batches_per_epoch, rows.order) == (100, None)
    assert [column.shape for column in rows] == [(N, 3), (N,)]
    # The first pass was begun to look at its first batch.
    parts = [
        np.concatenate([rows.gather(p, 7, (k, share)).columns[1] for p in range(0, 210, 7)])
        for k in range(share)
    ]
    if share == 1:
        epochs = [np.random.default_rng(e).permutation(N)[:1000] for e in (1, 2)]
        assert np.array_equal(parts[0][:200].ravel(), np.concatenate(epochs))
    else:
        assert [part.shape for part in parts] == [(210, 5)] * 2
    gathered = rows.gather(203, 2)
    assert np.array_equal(gathered.indices.ravel(), np.arange(30, 50))
    assert np.array_equal(gathered.columns[0], X.astype(np.float32)[gathered.columns[1]])


def test_an_iterable_is_read_up_to_where_a_run_goes_on(arrays):
    loader = Loader(*arrays, batch_size=10)
    rows = stream(loader, batch_size=10, num_rows=N)
    loader.made = 0
    rows.gather(325, 1)
    assert loader.made == 26
    rows.gather(326, 2)
    assert loader.made == 28
    rows.gather(340, 1)
    assert loader.made == 41


@pytest.mark.parametrize(
    ("make", "structure"),
    [
        (tuple, tuple),
        (list, tuple),
        (lambda parts: {"y": parts[1], "X": parts[0]}, dict),
        (lambda parts: jnp.asarray(parts[0]), streams.Column),
    ],
)
def test_batches_may_be_grouped(arrays, make, structure):
    rows = stream(Loader(*arrays, batch_size=10, make=make), batch_size=10, num_rows=N)
    assert type(rows.structure) is structure
    gathered = rows.gather(0, 3)
    for column, part in zip(rows.columns, gathered.columns, strict=True):
        assert part.shape == (3, 10, *column.shape[1:])
        assert part.dtype == column.dtype
        if column.name == "y":
            assert part.dtype == np.int32


@pytest.mark.parametrize("parts", [1, 2])
def test_a_pass_over_an_iterable(arrays, parts):
    rows = stream(Loader(*arrays, batch_size=10), batch_size=10, num_rows=N)
    seen = []
    for k in range(parts):
        for indices, columns, valid in rows.passes(64, (k, parts)):
            assert len(indices) == len(columns[0]) == 64 // parts
            seen.extend(indices[:valid])
    assert sorted(seen) == list(range(N))
    indices, (X, y) = rows.sample_rows(25)
    assert len(indices) == len(X) == 25
    assert np.array_equal(X, arrays[0].astype(np.float32)[y])
    assert rows.fingerprint() == rows.fingerprint()


@pytest.mark.parametrize(
    ("changes", "num_rows", "message"),
    [
        ({}, N + 10, "num_rows=1013 in a pass.*got 1003 in 101 batches"),
        ({"drop_last": True}, N, "num_rows=1003 in a pass.*got 1000 in 100 batches"),
        ({}, N - 3, "end after the declared num_rows=1000, got batch 100"),
        ({}, N - 13, "end after the declared num_rows=990, got batch 99"),
    ],
)
def test_declared_rows_of_an_iterable_are_checked(arrays, changes, num_rows, message):
    rows = stream(Loader(*arrays, batch_size=10, **changes), batch_size=10, num_rows=num_rows)
    if num_rows == N + 10:
        message_of_batches = "column '0' of batch 100 to be.*got"
    else:
        message_of_batches = message
    for read, expected in (
        (lambda: list(rows.passes()), message_of_batches),
        (lambda: rows.gather(0, 110), message_of_batches),
        (lambda: rows.gather(90, 20), message_of_batches),
    ):
        with pytest.raises(StreamError, match=expected):
            read()


@pytest.mark.parametrize(
    ("third", "message"),
    [
        (np.ones((4, 3)), r"batch 2 to be float64 of shape \(5, 3\), got float64 of shape \(4, 3"),
        (np.ones((5, 2)), r"batch 2.*got float64 of shape \(5, 2\)"),
        (np.ones((5, 3), int), "batch 2 to be float64.*got int64"),
        ((np.ones((5, 3)),), "batch 2 to be an array, got tuple of 1"),
        (np.full((5, 3), np.nan), "column '0' has NaN in rows 10, 11"),
    ],
)
def test_every_batch_is_checked(third, message):
    batches = [np.ones((5, 3)), np.ones((5, 3)), third, np.ones((5, 3))]
    rows = stream(batches, batch_size=5, num_rows=20)
    assert rows.gather(0, 2).columns[0].shape == (2, 5, 3)
    for _ in range(2):  # an error does not go away
        with pytest.raises(StreamError, match=message):
            rows.gather(2, 1)
    with pytest.raises(StreamError, match=message):
        list(rows.passes())
    with pytest.raises(StreamError, match=message):
        stream(batches, batch_size=5, num_rows=20).gather(3, 1)


# What a model sees


@pytest.mark.parametrize("keys", [None, ("b", "a")])
def test_stream_is_a_pytree_of_columns(arrays, keys):
    X, y = arrays
    if keys is None:
        rows = stream(X, y, batch_size=8)
        expected = (X.shape, y.shape)
        assert tuple(rows) == rows.structure
    else:
        rows = stream(b=X, a=y, batch_size=8)
        expected = {"b": X.shape, "a": y.shape}
        assert rows["a"] is rows.columns[1]
        assert dict(**rows) == rows.structure
        paths = [str(path[0]) for path, _ in jax.tree_util.tree_leaves_with_path(rows)]
        assert paths == ["['b']", "['a']"]
    assert jax.tree.map(lambda column: column.shape, rows) == expected
    assert jax.tree.leaves(rows) == list(rows.columns)
    assert jax.tree.leaves((rows, 1.0))[-1] == 1.0
    for number, column in enumerate(rows):
        assert (column.number, column.stream) == (number, rows)
        assert column.ndim == len(column.shape)


def test_one_column_stands_alone(arrays):
    rows = stream(arrays[0], batch_size=8)
    assert rows.structure is rows.columns[0]
    assert jax.tree.map(lambda column: column.shape, rows) == (N, 3)
    assert "float32[1003, 3]" in repr(rows)


ABSENT = Absent((10, 3), np.dtype(np.float32), "X")


def test_absent_has_a_shape_and_is_static():
    assert (ABSENT.ndim, ABSENT.size, len(ABSENT)) == (2, 30, 10)
    assert jax.tree.leaves(ABSENT) == []
    same, other = Absent((10, 3), np.dtype("f4"), "X"), Absent((10, 3), np.dtype("f4"), "y")
    assert ABSENT == same and hash(ABSENT) == hash(same) and ABSENT != other
    assert ABSENT is not None and ABSENT != "X"
    traces = []

    @jax.jit
    def length(absent, x):
        traces.append(absent)
        return x * absent.shape[0]

    assert [float(length(a, 1.0)) for a in (ABSENT, same, other)] == [10.0] * 3
    assert len(traces) == 2


@pytest.mark.parametrize(
    "use",
    [
        lambda a: a @ jnp.ones(3),
        lambda a: jnp.ones((3, 10)) @ a,
        lambda a: np.ones((3, 10)) @ a,
        lambda a: a * 2.0,
        lambda a: 2.0 - a,
        lambda a: -a,
        lambda a: a == 0,
        lambda a: a != jnp.ones(3),
        lambda a: a < 1.0,
        lambda a: jnp.sum(a),
        lambda a: jnp.asarray(a),
        lambda a: jnp.dot(a, jnp.ones(3)),
        lambda a: np.asarray(a),
        lambda a: np.exp(a),
        lambda a: a[0],
        lambda a: list(a),
        lambda a: jax.jit(lambda x: x @ a)(jnp.ones((3, 10))),
    ],
)
def test_absent_rows_are_refused(use):
    with pytest.raises(TypeError, match="rows of column 'X' are read from a stream.*subsample"):
        use(ABSENT)


def test_absent_methods_are_refused():
    with pytest.raises(AttributeError, match="mean: The rows of column 'X'.*subsample"):
        ABSENT.mean()
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        ABSENT.nonsense  # noqa: B018


# Refusals


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ((np.ones((9, 2)), np.ones(8)), {}, r"one length.*'0' \(9, 2\), '1' \(8,\)"),
        ((np.ones(9), np.float32(1)), {}, "column '1' to have a shape"),
        ((), {}, "either positional or by keyword, got 0 positional and none"),
        ((np.ones(9),), {"y": np.ones(9)}, "either positional or by keyword, got 1 .* and y"),
        ((np.array(["a", "b"]),), {"batch_size": 1}, "numbers or booleans, got dtype <U1"),
        ((np.array([{}, None]),), {"batch_size": 1}, "numbers or booleans, got dtype object"),
        ((np.ones(9),), {"batch_size": 10}, "at most the 9 rows, got 10"),
        ((np.ones(9),), {"batch_size": 0}, "batch_size to be an integer from 1, got 0"),
        ((np.ones(9),), {"batch_size": 2.0}, "batch_size to be an integer from 1, got 2.0"),
        ((np.ones(9),), {"shards": 2}, "shards to divide batch_size=3, got 2"),
        ((np.ones(9),), {"num_rows": 8}, "num_rows=8, got columns of 9 rows"),
        ((np.ones(9),), {"seed": -1}, "seed to be an integer from 0"),
        ((np.ones(9),), {"columns": ["a"]}, "of a parquet file"),
        ((np.ones((0, 2)),), {}, "one length"),
        (([np.ones(3)],), {}, "an iterable of batches together with num_rows=..., got list"),
        (({"X": np.ones(3)},), {}, r"got dict.*\*\*columns"),
        ((3,), {}, "got int"),
        ((iter([np.ones(3)]),), {"num_rows": 3}, "iterator list_iterator, which can be read once"),
        ((np.ones(3) for _ in range(3)), {}, "either positional"),
        (([np.ones(4)],), {"num_rows": 4}, r"batch_size=3 rows, got column '0' of shape \(4,\)"),
        (([np.ones(3)],), {"num_rows": 3, "window": 2}, "order of an iterable is its own"),
        (([],), {"num_rows": 3}, "one that is empty"),
        ((["abc"],), {"num_rows": 3}, "batch 0 to be a tuple of 1 arrays, got str"),
    ],
)
def test_refusals(data, options, message):
    if not isinstance(data, tuple):
        data = ()
    with pytest.raises(ValueError, match=message):
        stream(*data, **{"batch_size": 3, **options})


def test_shares_that_do_not_divide_are_refused(arrays):
    rows = stream(*arrays, batch_size=8)
    for share in ((0, 3), (2, 2), (-1, 2)):
        with pytest.raises(ValueError, match="a share"):
            rows.gather(0, 1, share)


# Feeder


def test_feeder_gathers_one_unit_ahead(arrays):
    rows = stream(*arrays, batch_size=8)
    made = []

    def put(gathered):
        made.append((threading.current_thread().name, gathered.indices))
        return jax.device_put(gathered.columns)

    with Feeder(rows, unit=5, offset=3, put=put, share=(1, 2)) as feeder:
        for number in range(4):
            columns = feeder.get(number)
            expected = rows.gather(3 + 5 * number, 5, (1, 2))
            assert np.array_equal(columns[1], expected.columns[1])
        wait_until(lambda: len(made) == 5)
        time.sleep(0.02)
        assert len(made) == 5  # and no further
        assert np.array_equal(feeder.get(20)[1], rows.gather(103, 5, (1, 2)).columns[1])
        assert np.array_equal(feeder.get(0)[1], rows.gather(3, 5, (1, 2)).columns[1])
    names = {name for name, _ in made}
    assert len(names) == 1 and threading.current_thread().name not in names


def wait_until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    assert condition()


def test_errors_of_the_thread_reach_the_caller():
    y = np.zeros(100)
    y[60] = np.nan
    rows = stream(y, batch_size=10, block_size=10, window=1, shuffle=False)
    with Feeder(rows, unit=2, offset=0, put=lambda gathered: gathered) as feeder:
        for number in range(3):
            feeder.get(number)
        for _ in range(2):
            with pytest.raises(StreamError, match="rows 60"):
                feeder.get(3)
        assert feeder.get(4).indices[0, 0] == 80


def test_a_unit_that_failed_is_tried_again():
    failures = iter([OSError("the disk sleeps")])

    def put(gathered):
        if gathered.indices[0, 0] == 10:
            for failure in failures:
                raise failure
        return gathered.indices[0, 0]

    rows = stream(np.arange(100), batch_size=10, shuffle=False)
    with Feeder(rows, unit=1, offset=0, put=put) as feeder:
        assert feeder.get(0) == 0
        with pytest.raises(OSError, match="sleeps"):
            feeder.get(1)
        assert feeder.get(1) == 10


def test_a_closed_feeder_has_no_thread(arrays):
    before = threading.active_count()
    started, release = threading.Event(), threading.Event()

    def put(gathered):
        if gathered.indices[0, 0] != first:
            started.set()
            release.wait(5)
        return gathered

    rows = stream(*arrays, batch_size=8)
    first = rows.gather(0, 1).indices[0, 0]
    feeder = Feeder(rows, unit=1, offset=0, put=put)
    feeder.get(0)
    assert started.wait(5)
    threading.Timer(0.05, release.set).start()
    feeder.close()
    wait_until(lambda: threading.active_count() == before)
    with pytest.raises(RuntimeError, match="closed"):
        feeder.get(1)
    feeder.close()


@pytest.mark.parametrize("owner", [stream, Feeder, Absent, Order.indices])
def test_docstring_examples(owner):
    test = doctest.DocTestParser().get_doctest(owner.__doc__, {}, owner.__name__, None, None)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0

"""Batches, passes and samples of a source in which any row can be read."""

import hashlib
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from langevin_ppl.streams.order import Order, generator, row_numbers
from langevin_ppl.streams.sources import (
    Block,
    Gathered,
    Source,
    check_nan,
    index_dtype,
    padded,
    share_of,
)

__all__ = ["RowReader"]

KEPT_WINDOWS = 2
"""Windows in memory at most."""

SAMPLE_PIECES = 256
"""Places of the data that a sample of its rows is taken from."""

FINGERPRINT_PIECES, FINGERPRINT_ROWS = 64, 256
"""Places of the data that its fingerprint looks at, and the rows it reads at each."""


class _Window(NamedTuple):
    """A shard of a window in memory.

    Attributes
    ----------
    indices
        Which rows, as they were read.
    columns
        Of every column these rows.
    deal
        Which of them each batch has, ``[batch, row]``.
    """

    indices: np.ndarray
    columns: tuple[np.ndarray, ...]
    deal: np.ndarray


class RowReader:
    """Read rows in a given order; several threads may ask at once."""

    def __init__(self, source: Source, order: Order, allow_nan: bool):
        self.order = order
        self.num_rows = source.num_rows
        self.batches_per_epoch = order.batches_per_epoch
        self.names = source.names
        self.row_shapes = source.row_shapes
        self.dtypes = source.dtypes
        self._source = source
        self._allow_nan = allow_nan
        self._windows: dict[tuple[int, int, int], _Window] = {}
        self._lock = threading.RLock()

    def gather(self, position: int, count: int, share: tuple[int, int]) -> Gathered:
        """Rows of batches ``[position, position + count)``, of each its share."""
        part = share_of(self.order.batch_size, share)
        length = self.order.batch_size // self.order.shards
        shards = range(part.start // length, -(-part.stop // length))
        gathered = self._empty(count, part.stop - part.start)
        with self._lock:
            for run in self.order.runs(position, count):
                for shard in shards:
                    window = self._window(
                        (run.epoch, run.window, shard), KEPT_WINDOWS * len(shards)
                    )
                    first = shard * length
                    low, high = max(part.start, first), min(part.stop, first + length)
                    deal = window.deal[run.batches, low - first : high - first]
                    place = run.places, slice(low - part.start, high - part.start)
                    # "clip" writes to the output directly; all places are valid.
                    np.take(window.indices, deal, out=gathered.indices[place], mode="clip")
                    for column, out in zip(window.columns, gathered.columns, strict=True):
                        np.take(column, deal, axis=0, out=out[place], mode="clip")
        return gathered

    def passes(self, rows: int, share: tuple[int, int]) -> Iterator[Block]:
        """Share of all rows, in blocks of ``rows``, as they are stored."""
        part = share_of(rows, share)
        length = part.stop - part.start
        for begin in range(0, self.num_rows, rows):
            start = begin + part.start
            valid = min(length, max(0, self.num_rows - start))
            # Where nothing is left for this share, the last row stands in.
            first = min(start, self.num_rows - 1)
            indices, columns = self._read(np.array([[first, first + max(valid, 1)]]))
            yield Block(padded(indices, length), tuple(padded(c, length) for c in columns), valid)

    def sample_rows(self, number: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Rows from many places of the data."""
        number = min(number, self.num_rows)
        count = min(number, SAMPLE_PIECES)
        parts = np.arange(count + 1)
        lengths = np.diff(parts * number // count)
        slack = np.diff(parts * (self.num_rows - number) // count)
        ends = np.cumsum(lengths + slack) - generator(self.order.seed).integers(slack + 1)
        return self._read(np.stack([ends - lengths, ends], 1))

    def digest(self) -> bytes:
        """Digest of rows from many places of the data."""
        rows = min(FINGERPRINT_ROWS, self.num_rows)
        last = self.num_rows - rows
        starts = np.unique(np.linspace(0, last, FINGERPRINT_PIECES).astype(np.int64))
        digest = hashlib.sha256()
        for start in starts.tolist():
            _, columns = self._read(np.array([[start, start + rows]]), check=False)
            for column in columns:
                digest.update(column.tobytes())
        return digest.digest()

    def _window(self, key: tuple[int, int, int], kept: int) -> _Window:
        if key not in self._windows:
            while len(self._windows) >= kept:
                del self._windows[next(iter(self._windows))]
            indices, columns = self._read(self.order.pieces(*key))
            self._windows[key] = _Window(indices, columns, self.order.deal(*key))
        return self._windows[key]

    def _read(
        self, pieces: np.ndarray, check: bool = True
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        indices = row_numbers(pieces).astype(index_dtype(self.num_rows))
        columns = tuple(
            np.empty((len(indices), *shape), dtype)
            for shape, dtype in zip(self.row_shapes, self.dtypes, strict=True)
        )
        at = 0
        with self._lock:
            for start, stop in pieces.tolist():
                end = at + stop - start
                self._source.read(start, stop, tuple(column[at:end] for column in columns))
                at = end
        if check and not self._allow_nan:
            check_nan(self.names, indices, columns)
        return indices, columns

    def _empty(self, count: int, size: int) -> Gathered:
        columns = tuple(
            np.empty((count, size, *shape), dtype)
            for shape, dtype in zip(self.row_shapes, self.dtypes, strict=True)
        )
        return Gathered(np.empty((count, size), index_dtype(self.num_rows)), columns)

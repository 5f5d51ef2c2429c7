"""Batches that somebody else's loader makes, in its own order."""

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from langevin_ppl.streams.sources import (
    Block,
    Gathered,
    StreamError,
    canonical_dtype,
    check_nan,
    copy_into,
    index_dtype,
    is_array_like,
    padded,
    share_of,
)

__all__ = ["BatchReader"]


class BatchReader:
    """Read the batches of an iterable, every pass over which is an epoch.

    Rows are numbered as they come in a pass: where the iterable shuffles, a number is another row
    in every epoch.
    """

    def __init__(self, batches: Iterable[Any], batch_size: int, num_rows: int, allow_nan: bool):
        self.num_rows = num_rows
        self.batches_per_epoch = num_rows // batch_size
        self._batches = batches
        self._batch_size = batch_size
        self._allow_nan = allow_nan
        self._current: Iterator[Block] = iter(())
        self._position = -1  # of the batch that `_current` gives next
        self._lock = threading.Lock()
        first = next(iter(batches), None)
        if first is None:
            raise StreamError("stream: expected an iterable of batches, got one that is empty.")
        self.is_named, self.is_bare = isinstance(first, Mapping), is_array_like(first)
        self._keys = tuple(first) if self.is_named else ()
        self._number = len(first) if isinstance(first, tuple | list) else 1
        self.names = self._keys or tuple(map(str, range(self._number)))
        arrays = self._arrays(first, 0)
        for name, array in zip(self.names, arrays, strict=True):
            if array.ndim == 0 or len(array) != batch_size:
                raise StreamError(
                    f"stream: expected batch 0 to have batch_size={batch_size} rows, got column "
                    f"'{name}' of shape {array.shape}."
                )
        self.row_shapes = tuple(array.shape[1:] for array in arrays)
        self._given = tuple(array.dtype for array in arrays)
        self.dtypes = tuple(
            canonical_dtype(n, a.dtype) for n, a in zip(self.names, arrays, strict=True)
        )
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(array.tobytes())
        self._digest = digest.digest()

    def gather(self, position: int, count: int, share: tuple[int, int]) -> Gathered:
        """Rows of batches ``[position, position + count)``, of each its share."""
        part = share_of(self._batch_size, share)
        with self._lock:
            blocks = [self._batch(position + i) for i in range(count)]
        columns = zip(*(block.columns for block in blocks), strict=True)
        return Gathered(
            np.stack([block.indices[part] for block in blocks]),
            tuple(np.stack([rows[part] for rows in column]) for column in columns),
        )

    def passes(self, rows: int, share: tuple[int, int]) -> Iterator[Block]:
        """Share of all rows of one pass, in blocks of ``rows``."""
        part = share_of(rows, share)
        held: list[Block] = []
        for batch in self._pass():
            held.append(batch)
            while sum(block.valid for block in held) >= rows:
                whole, rest = _split(held, rows)
                held = [rest] if rest.valid else []
                yield _share(whole, rows, part)
        if held:
            yield _share(_split(held, rows)[0], rows, part)

    def sample_rows(self, number: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """First rows of a pass."""
        held: list[Block] = []
        for batch in self._pass():
            held.append(batch)
            if sum(block.valid for block in held) >= number:
                break
        indices, columns, _ = _split(held, number)[0]
        return indices, columns

    def digest(self) -> bytes:
        """Digest of the first batch."""
        return self._digest

    def _batch(self, position: int) -> Block:
        """Batch at a position of the run: the next one, or one found by reading up to it."""
        following, self._position = self._position, -1  # lost, if this fails
        if position != following:
            epoch_begins = position - position % self.batches_per_epoch
            if not epoch_begins <= following < position:
                self._current, following = self._pass(), epoch_begins
            for _ in range(position - following):
                next(self._current)
        block = next(self._current)
        if (position + 1) % self.batches_per_epoch == 0:
            for _ in self._current:  # a short batch, and the checks at the end
                pass
            self._current = self._pass()
        self._position = position + 1
        return block

    def _pass(self) -> Iterator[Block]:
        """All batches of a pass, checked, with the numbers of their rows."""
        done = number = 0
        for number, batch in enumerate(self._batches, 1):
            rows = min(self._batch_size, self.num_rows - done)
            if rows == 0:
                raise StreamError(
                    f"stream: expected a pass over the iterable to end after the declared "
                    f"num_rows={self.num_rows}, got batch {number - 1} after them. Declare all "
                    "rows, or let the iterable end."
                )
            columns = self._checked(batch, number - 1, rows)
            indices = np.arange(done, done + rows, dtype=index_dtype(self.num_rows))
            if not self._allow_nan:
                check_nan(self.names, indices, columns)
            yield Block(indices, columns, rows)
            done += rows
        if done < self.num_rows:
            raise StreamError(
                f"stream: expected the declared num_rows={self.num_rows} in a pass over the "
                f"iterable, got {done} in {number} batches. Declare what there is, and let the "
                "iterable give its last short batch too; it must begin anew whenever it is "
                "iterated."
            )

    def _checked(self, batch: Any, number: int, rows: int) -> tuple[np.ndarray, ...]:
        columns = []
        for name, array, row_shape, given, dtype in zip(
            self.names,
            self._arrays(batch, number),
            self.row_shapes,
            self._given,
            self.dtypes,
            strict=True,
        ):
            if array.shape != (rows, *row_shape) or array.dtype != given:
                raise StreamError(
                    f"stream: expected column '{name}' of batch {number} to be {given} of shape "
                    f"{(rows, *row_shape)}, got {array.dtype} of shape {array.shape}."
                )
            columns.append(np.empty(array.shape, dtype))
            copy_into(columns[-1], array, name)
        return tuple(columns)

    def _arrays(self, batch: Any, number: int) -> tuple[np.ndarray, ...]:
        """Arrays of a batch in the order of the columns."""
        if self.is_named and isinstance(batch, Mapping) and set(batch) == set(self._keys):
            return tuple(np.asarray(batch[key]) for key in self._keys)
        if self.is_bare and is_array_like(batch):
            return (np.asarray(batch),)
        is_several = not (self.is_named or self.is_bare) and isinstance(batch, tuple | list)
        if is_several and len(batch) == self._number:
            return tuple(np.asarray(array) for array in batch)
        kind = f"a dict of {', '.join(self._keys)}" if self.is_named else "an array"
        if not (self.is_named or self.is_bare):
            kind = f"a tuple of {self._number} arrays"
        raise StreamError(
            f"stream: expected batch {number} to be {kind}, got {type(batch).__name__}"
            f"{f' of {len(batch)}' if hasattr(batch, '__len__') else ''}."
        )


def _split(blocks: list[Block], rows: int) -> tuple[Block, Block]:
    """First rows of blocks, and the others."""
    indices = np.concatenate([block.indices for block in blocks])
    columns = [np.concatenate(c) for c in zip(*(b.columns for b in blocks), strict=True)]
    count = min(rows, len(indices))
    return (
        Block(indices[:count], tuple(c[:count] for c in columns), count),
        Block(indices[count:], tuple(c[count:] for c in columns), len(indices) - count),
    )


def _share(block: Block, rows: int, part: slice) -> Block:
    """Share of a block, at its full length."""
    length = part.stop - part.start
    return Block(
        padded(block.indices, rows)[part],
        tuple(padded(column, rows)[part] for column in block.columns),
        min(length, max(0, block.valid - part.start)),
    )

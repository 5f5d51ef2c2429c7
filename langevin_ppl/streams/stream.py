"""A stream: columns of rows that are read while a chain runs."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Protocol

import jax
import numpy as np
from jax.tree_util import DictKey, SequenceKey

from langevin_ppl.streams.columns import Column
from langevin_ppl.streams.order import Order
from langevin_ppl.streams.sources import Block, Gathered

__all__ = ["Grouping", "Stream"]

type Grouping = Literal["one", "several", "named"]
"""How columns reach a model: one as it is, several as a tuple, or named ones as a dict."""


class Reader(Protocol):
    """What a stream reads by: `RowReader` or `BatchReader`."""

    num_rows: int
    batches_per_epoch: int
    names: tuple[str, ...]
    row_shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]

    def gather(self, position: int, count: int, share: tuple[int, int]) -> Gathered:
        """Rows of consecutive batches."""
        ...

    def passes(self, rows: int, share: tuple[int, int]) -> Iterator[Block]:
        """All rows once."""
        ...

    def sample_rows(self, number: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Some rows."""
        ...

    def digest(self) -> bytes:
        """Digest of some rows."""
        ...


class Stream:
    """Columns of rows that are read while a chain runs; made by `langevin_ppl.stream`.

    A pytree whose leaves are its columns. It unflattens to its `structure`, so that
    ``jax.tree.map`` over the arguments of a model puts something else in the places of columns.
    Iterating gives the columns, and ``**`` unpacks named ones, for models that take each as an
    argument of its own.

    Attributes
    ----------
    num_rows, batch_size
        Rows of every column, and of a batch.
    batches_per_epoch
        Batches until rows come again.
    columns
        The columns, in the order in which their rows are gathered.
    order
        Which rows come when; None for an iterable, whose order is its own.
    """

    def __init__(self, reader: Reader, batch_size: int, grouping: Grouping, order: Order | None):
        self.num_rows = reader.num_rows
        self.batch_size = batch_size
        self.batches_per_epoch = reader.batches_per_epoch
        self.order = order
        self.columns = tuple(
            Column((self.num_rows, *shape), dtype, name, number, self)
            for number, (shape, dtype, name) in enumerate(
                zip(reader.row_shapes, reader.dtypes, reader.names, strict=True)
            )
        )
        self._reader = reader
        self._grouping: Grouping = grouping

    @property
    def structure(self) -> Column | tuple[Column, ...] | dict[str, Column]:
        """Columns as the model gets them: one, a tuple of several, or a dict of named ones."""
        return _grouped(self._kind, self.columns)

    def __iter__(self) -> Iterator[Column]:
        return iter(self.columns)

    def keys(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(column.name for column in self.columns)

    def __getitem__(self, name: str) -> Column:
        return {column.name: column for column in self.columns}[name]

    def __repr__(self) -> str:
        columns = ", ".join(f"{c.name}: {c.dtype}{list(c.shape)}" for c in self.columns)
        return f"Stream({columns}; batch_size={self.batch_size}, order={self.order})"

    def gather(self, position: int, count: int, share: tuple[int, int] = (0, 1)) -> Gathered:
        """Read consecutive batches.

        At most two windows of rows are in memory beside what is returned. Of an iterable, the
        batches of an epoch before ``position`` are read and thrown away, unless they were the
        last to be gathered.

        Parameters
        ----------
        position
            Batches of the run before the first one.
        count
            Number of batches.
        share
            ``(k, n)`` for the ``k``-th of ``n`` equal parts of each batch's rows. Where ``n``
            divides the stream's ``shards``, only these parts of a window are read.

        Returns
        -------
        Gathered
            ``indices`` of shape ``[count, batch_size / n]``, ``columns`` with rows of the same
            leading axes, in arrays of their own. Rows of an iterable are numbered as they come in
            their epoch.

        Raises
        ------
        StreamError
            If rows are not what was declared, or have NaN.
        """
        return self._reader.gather(position, count, share)

    def passes(self, rows: int = 2**16, share: tuple[int, int] = (0, 1)) -> Iterator[Block]:
        """Read every row once, as they are stored, in blocks of equally many rows.

        Parameters
        ----------
        rows
            Rows of a block, at most; made a multiple of ``n``.
        share
            ``(k, n)`` for the ``k``-th of ``n`` equal parts of each block.

        Yields
        ------
        Block
            ``indices``, ``columns`` and the number of rows that are ``valid``, of this share: the
            last block is filled up by its last row.

        Raises
        ------
        StreamError
            If an iterable has not as many rows as were declared.
        """
        parts = max(1, share[1])
        return self._reader.passes(-(-min(rows, self.num_rows) // parts) * parts, share)

    def sample_rows(self, number: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Read some rows to look at, the same ones each time.

        They lie in 256 pieces that are spread over all the data; of an iterable, they are the
        first ones of a pass.

        Returns
        -------
        indices, columns
            ``number`` rows, or all where there are fewer, in the order of the storage.
        """
        return self._reader.sample_rows(number)

    def fingerprint(self) -> str:
        """Hexadecimal digest by which a run that goes on knows that its data are the same.

        Of shapes, dtypes, batch size and order, and of 64 pieces of 256 rows that are spread
        evenly over the data, first and last rows included: a sample, which does not see a change
        between them. Of an iterable, the first batch that it gave; one that shuffles by a seed of
        its own has another fingerprint each time.
        """
        columns = [(c.name, c.shape, c.dtype.str) for c in self.columns]
        declared = repr((columns, self.batch_size, self.order)).encode()
        return hashlib.sha256(declared + self._reader.digest()).hexdigest()

    @property
    def _kind(self) -> tuple[Grouping, tuple[str, ...]]:
        return self._grouping, self.keys()


def _grouped(kind: tuple[Grouping, tuple[str, ...]], children: Iterable[Any]) -> Any:
    (grouping, names), children = kind, tuple(children)
    if grouping == "named":
        return dict(zip(names, children, strict=True))
    return children[0] if grouping == "one" else children


def _with_keys(stream: Stream) -> tuple[list[tuple[Any, Column]], Any]:
    named = stream._grouping == "named"
    keys = [DictKey(c.name) if named else SequenceKey(c.number) for c in stream.columns]
    return list(zip(keys, stream.columns, strict=True)), stream._kind


jax.tree_util.register_pytree_with_keys(
    Stream, _with_keys, _grouped, lambda stream: (stream.columns, stream._kind)
)

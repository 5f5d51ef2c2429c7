"""Make a stream of arrays, files or batches."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from langevin_ppl.streams.batches import BatchReader
from langevin_ppl.streams.order import Order, default_block_size, default_window
from langevin_ppl.streams.rows import RowReader
from langevin_ppl.streams.sources import ArraySource, ParquetSource, is_array_like, is_parquet
from langevin_ppl.streams.stream import Grouping, Stream

__all__ = ["stream"]


def stream(
    *data: Any,
    batch_size: int,
    num_rows: int | None = None,
    columns: Sequence[str] | None = None,
    block_size: int | None = None,
    window: int | None = None,
    seed: int = 0,
    shuffle: bool = True,
    allow_nan: bool = False,
    shards: int = 1,
    **named_columns: Any,
) -> Stream:
    """Make data that are larger than memory an argument of a model.

    Parameters
    ----------
    *data, **named_columns
        Columns: anything with a shape, a dtype and slices of rows, such as NumPy arrays,
        ``np.memmap``, zarr arrays and h5py datasets, all of ``N`` rows along axis 0; positional,
        for a tuple, or by keyword, for a dict. Or one ``pyarrow.parquet.ParquetFile``, whose
        columns are named. Or one iterable of batches, each an array, a tuple or a dict of arrays
        of ``batch_size`` rows: every pass over it is an epoch in an order of its own. A last batch
        may be short; it is seen in passes over all rows only.
    batch_size
        Rows of a batch, ``B``.
    num_rows
        ``N`` of an iterable.
    columns
        Which columns of a parquet file, by default all.
    block_size
        Contiguous rows that are read together; by default about 256, in whole chunks of a zarr or
        HDF5 array and whole row groups of a parquet file, which serve best with some thousands of
        rows.
    window
        Blocks that are shuffled together in memory, at most. By default as many as a batch has
        rows, and at least 65,536 rows or 16 batches, where 128 MiB hold them; two windows are in
        memory at a time.
    seed
        Of the order of rows.
    shuffle
        False for rows as they are stored.
    allow_nan
        Whether columns may have NaN, which a model masks.
    shards
        Divisor of ``batch_size``: into how many parts a window is cut, so that several hosts may
        read different rows. The order of rows depends on it, but not on the number of hosts.

    Returns
    -------
    Stream
        Integers and floats have the dtypes that JAX gives them.

    Raises
    ------
    ValueError
        If these are not columns of one length, or a size does not fit them.
    StreamError
        If the first batch of an iterable has not ``batch_size`` rows.

    Notes
    -----
    The rows of a batch are drawn from one window, and rows of one block may be alike. The
    variance of a batch's mean is at most ``1 + (batch_size - 1) / window`` times that of
    independent rows, twice it by default, and the same where rows are stored in random order. A
    chain that moves slowly averages over windows, and may feel up to ``block_size`` times the
    noise of independent rows where those of a block are all alike, as in data that are sorted:
    store those in random order once, or choose small blocks. See `Order` for the derivation.

    Examples
    --------
    >>> import numpy as np
    >>> from langevin_ppl.streams import stream
    >>> X, y = np.ones((1000, 3)), np.zeros(1000, int)
    >>> rows = stream(X, y, batch_size=10)
    >>> [column.shape for column in rows]
    [(1000, 3), (1000,)]
    >>> rows.gather(position=0, count=4).columns[0].shape
    (4, 10, 3)
    """
    batch_size = _whole("batch_size", batch_size, 1)
    seed, shards = _whole("seed", seed, 0), _whole("shards", shards, 1)
    num_rows = None if num_rows is None else _whole("num_rows", num_rows, 1)
    block_size = None if block_size is None else _whole("block_size", block_size, 1)
    window = None if window is None else _whole("window", window, 1)
    if bool(data) == bool(named_columns):
        raise ValueError(
            "stream: expected columns either positional or by keyword, got "
            f"{len(data)} positional and {', '.join(named_columns) or 'none'} by keyword."
        )
    parquet = len(data) == 1 and is_parquet(data[0])
    if columns is not None and not parquet:
        raise ValueError("stream: columns=... chooses those of a parquet file; got other data.")
    if len(data) == 1 and not (parquet or is_array_like(data[0])):
        if not (block_size is None and window is None and shuffle):
            raise ValueError(
                "stream: block_size, window and shuffle are of arrays and files; the order of an "
                "iterable is its own. Leave them out."
            )
        return _of_batches(data[0], batch_size, num_rows, allow_nan, shards)

    if parquet:
        source = ParquetSource(data[0], columns)
    else:
        names = tuple(named_columns) or tuple(map(str, range(len(data))))
        source = ArraySource(data or tuple(named_columns.values()), names)
    if num_rows not in (None, source.num_rows):
        raise ValueError(
            f"stream: expected num_rows={num_rows}, got columns of {source.num_rows} rows."
        )
    _check_fits(batch_size, source.num_rows, shards)
    shapes = zip(source.row_shapes, source.dtypes, strict=True)
    row_bytes = sum(dtype.itemsize * math.prod(shape) for shape, dtype in shapes)
    block_size = block_size or default_block_size(source.num_rows, source.chunk_rows, row_bytes)
    block_size = min(block_size, source.num_rows)
    window = window or default_window(batch_size, block_size, row_bytes)
    order = Order(source.num_rows, batch_size, block_size, window, seed, shuffle, shards)
    named = parquet or bool(named_columns)
    grouping: Grouping = "named" if named else "one" if len(data) == 1 else "several"
    return Stream(RowReader(source, order, allow_nan), batch_size, grouping, order)


def _of_batches(
    batches: Any, batch_size: int, num_rows: int | None, allow_nan: bool, shards: int
) -> Stream:
    if hasattr(batches, "__next__"):
        raise ValueError(
            f"stream: expected an iterable of batches, got the iterator {type(batches).__name__}, "
            "which can be read once only. Pass an object whose __iter__ begins anew: a list, a "
            "loader, or a class with `def __iter__(self): return make_batches()`."
        )
    if not isinstance(batches, Iterable) or num_rows is None:
        raise ValueError(
            "stream: expected columns with a shape, a dtype and rows to slice (numpy, np.memmap, "
            "zarr, h5py), a pyarrow.parquet.ParquetFile, or an iterable of batches together with "
            f"num_rows=..., got {type(batches).__name__}. A dict of columns is unpacked: **columns."
        )
    _check_fits(batch_size, num_rows, shards)
    reader = BatchReader(batches, batch_size, num_rows, allow_nan)
    grouping: Grouping = "named" if reader.is_named else "one" if reader.is_bare else "several"
    return Stream(reader, batch_size, grouping, None)


def _whole(name: str, value: Any, least: int) -> int:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not (whole and value >= least):
        raise ValueError(f"stream: expected {name} to be an integer from {least}, got {value!r}.")
    return int(value)


def _check_fits(batch_size: int, num_rows: int, shards: int) -> None:
    if batch_size > num_rows:
        raise ValueError(
            f"stream: expected batch_size to be at most the {num_rows} rows, got {batch_size}."
        )
    if batch_size % shards:
        raise ValueError(
            f"stream: expected shards to divide batch_size={batch_size}, got {shards}."
        )

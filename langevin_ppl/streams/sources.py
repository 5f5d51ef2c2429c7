"""Where the rows of a stream are read from: arrays and files in which any row can be read."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "ArraySource",
    "Block",
    "Gathered",
    "ParquetSource",
    "Source",
    "StreamError",
    "canonical_dtype",
    "check_nan",
    "copy_into",
    "index_dtype",
    "is_array_like",
    "is_parquet",
    "padded",
    "share_of",
]

CACHED_ROW_GROUPS = 2
"""Decoded row groups of a parquet file that are kept: a read may end in a second one."""


class StreamError(ValueError):
    """What a stream read is not what it said it would be."""


class Gathered(NamedTuple):
    """Rows of some batches.

    Attributes
    ----------
    indices
        Which rows, ``[batch, row]``.
    columns
        Of every column these rows, ``[batch, row, ...]``.
    """

    indices: np.ndarray
    columns: tuple[np.ndarray, ...]


class Block(NamedTuple):
    """Rows of one part of a pass over all the data.

    Attributes
    ----------
    indices
        Which rows, ``[row]``.
    columns
        Of every column these rows, ``[row, ...]``.
    valid
        How many of them count; those after are copies that make all blocks equally long.
    """

    indices: np.ndarray
    columns: tuple[np.ndarray, ...]
    valid: int


class Source(Protocol):
    """Columns of which any contiguous rows can be read."""

    num_rows: int
    names: tuple[str, ...]
    row_shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]
    chunk_rows: int
    """Rows that the storage has to read together."""

    def read(self, start: int, stop: int, outs: tuple[np.ndarray, ...]) -> None:
        """Write rows ``[start, stop)`` of every column to an array of that many rows."""
        ...


def is_array_like(value: Any) -> bool:
    """Whether a value has rows that can be read as slices."""
    return all(hasattr(value, name) for name in ("shape", "dtype", "__getitem__"))


class ArraySource:
    """Arrays of equal length: NumPy, ``np.memmap``, zarr, h5py."""

    def __init__(self, arrays: Sequence[Any], names: Sequence[str]):
        for name, array in zip(names, arrays, strict=True):
            if not (is_array_like(array) and len(array.shape) > 0):
                raise ValueError(
                    f"stream: expected column '{name}' to have a shape, a dtype and rows to slice "
                    f"(numpy, np.memmap, zarr, h5py), got {_described(array)}."
                )
        lengths = {array.shape[0] for array in arrays}
        if len(lengths) != 1 or 0 in lengths:
            shapes = ", ".join(f"'{n}' {a.shape}" for n, a in zip(names, arrays, strict=True))
            raise ValueError(
                f"stream: expected columns of one length along axis 0, got {shapes}. Arrays that "
                "have no rows are arguments of the model beside the stream."
            )
        # A slice of a memmap takes ten times as long as that of the array below it.
        plain = (np.ndarray, jax.Array)
        self._arrays = tuple(np.asarray(a) if isinstance(a, plain) else a for a in arrays)
        self.num_rows = int(lengths.pop())
        self.names = tuple(names)
        self.row_shapes = tuple(tuple(map(int, a.shape[1:])) for a in arrays)
        self.dtypes = tuple(canonical_dtype(n, a.dtype) for n, a in zip(names, arrays, strict=True))
        self.chunk_rows = max(map(_chunk_rows, arrays))

    def read(self, start: int, stop: int, outs: tuple[np.ndarray, ...]) -> None:
        """Write rows ``[start, stop)`` of every column to an array of that many rows."""
        for name, array, out in zip(self.names, self._arrays, outs, strict=True):
            copy_into(out, array[start:stop], name)


def _chunk_rows(array: Any) -> int:
    chunks = getattr(array, "chunks", None)
    first = chunks[0] if isinstance(chunks, tuple) and chunks else 1
    return first if isinstance(first, int) and first > 0 else 1


def _described(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__} of shape {shape}"


def is_parquet(value: Any) -> bool:
    """Whether a value is a ``pyarrow.parquet.ParquetFile``; pyarrow is not imported for it."""
    return type(value).__module__.startswith("pyarrow.") and hasattr(value, "read_row_group")


class ParquetSource:
    """Columns of a parquet file; a ``fixed_size_list`` column has rows that are vectors."""

    def __init__(self, file: Any, columns: Sequence[str] | None):
        schema = file.schema_arrow
        names = tuple(schema.names if columns is None else columns)
        if not names or set(names) - set(schema.names):
            raise ValueError(
                f"stream: expected columns to be among {', '.join(schema.names)}, got {columns}."
            )
        groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        self._file = file
        self._bounds = np.cumsum([0, *groups])
        self._decoded: dict[int, tuple[np.ndarray, ...]] = {}
        self.num_rows = int(self._bounds[-1])
        if self.num_rows == 0:
            raise ValueError("stream: expected a parquet file with rows, got an empty one.")
        self.names = names
        types = [_row_type(schema.field(name).type) for name in names]
        self.row_shapes = tuple(shape for shape, _ in types)
        self.dtypes = tuple(
            canonical_dtype(n, dtype) for n, (_, dtype) in zip(names, types, strict=True)
        )
        self.chunk_rows = max(groups)

    def read(self, start: int, stop: int, outs: tuple[np.ndarray, ...]) -> None:
        """Write rows ``[start, stop)`` of every column to an array of that many rows."""
        first = int(np.searchsorted(self._bounds, start, side="right")) - 1
        last = int(np.searchsorted(self._bounds, stop, side="left"))
        for group in range(first, last):
            begin, end = int(self._bounds[group]), int(self._bounds[group + 1])
            low, high = max(start, begin), min(stop, end)
            for out, column in zip(outs, self._columns(group), strict=True):
                out[low - start : high - start] = column[low - begin : high - begin]

    def _columns(self, group: int) -> tuple[np.ndarray, ...]:
        if group not in self._decoded:
            while len(self._decoded) >= CACHED_ROW_GROUPS:
                del self._decoded[next(iter(self._decoded))]
            table = self._file.read_row_group(group, columns=list(self.names))
            self._decoded[group] = tuple(
                self._decode(number, table.column(name), table.num_rows)
                for number, name in enumerate(self.names)
            )
        return self._decoded[group]

    def _decode(self, number: int, column: Any, rows: int) -> np.ndarray:
        name, dtype = self.names[number], self.dtypes[number]
        values = column.combine_chunks()
        nulls = values.null_count
        for _ in self.row_shapes[number]:
            values = values.flatten()
            nulls += values.null_count if not jnp.issubdtype(dtype, np.floating) else 0
        if nulls and (self.row_shapes[number] or not jnp.issubdtype(dtype, np.floating)):
            raise StreamError(
                f"stream: column '{name}' has {nulls} nulls, for which {dtype} rows have no value. "
                "Fill them when the file is written."
            )
        out = np.empty((rows, *self.row_shapes[number]), dtype)
        copy_into(out, values.to_numpy(zero_copy_only=False).reshape(out.shape), name)
        return out


def _row_type(arrow_type: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of a row."""
    shape: tuple[int, ...] = ()
    while hasattr(arrow_type, "list_size"):
        shape, arrow_type = (*shape, arrow_type.list_size), arrow_type.value_type
    try:
        return shape, np.dtype(arrow_type.to_pandas_dtype())
    except NotImplementedError:
        return shape, np.dtype(object)


def canonical_dtype(name: str, dtype: Any) -> np.dtype:
    """Dtype that JAX gives to numbers of a dtype: float32 for float64, unless x64 is enabled."""
    if not (jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_)):
        raise ValueError(
            f"stream: expected column '{name}' to hold numbers or booleans, got dtype {dtype}. "
            "Encode it first, a category as its number and a list as a fixed-size one."
        )
    return np.dtype(jax.dtypes.canonicalize_dtype(np.dtype(dtype).newbyteorder("=")))


def copy_into(out: np.ndarray, values: Any, name: str) -> None:
    """Write values to an array of a dtype that may be narrower.

    Raises
    ------
    StreamError
        If an integer is too large for it.
    """
    narrower = out.dtype.kind in "iu" and out.dtype.itemsize < values.dtype.itemsize
    if narrower and out.size:
        values, limits = np.asarray(values), np.iinfo(out.dtype)
        if values.min() < limits.min or values.max() > limits.max:
            raise StreamError(
                f"stream: column '{name}' has integers between {values.min()} and "
                f"{values.max()}, which do not fit into {out.dtype}. Renumber them, or enable "
                "64-bit numbers by jax.config.update('jax_enable_x64', True)."
            )
    out[...] = values


def check_nan(names: Sequence[str], indices: np.ndarray, columns: tuple[np.ndarray, ...]) -> None:
    """Refuse NaN in columns of floats.

    Raises
    ------
    StreamError
        With the numbers of some rows.
    """
    for name, column in zip(names, columns, strict=True):
        # The least number is NaN where there is one, and needs no second array.
        if not (jnp.issubdtype(column.dtype, np.inexact) and column.size):
            continue
        if not np.isnan(np.min(column)):
            continue
        rows = indices[np.isnan(column).reshape(len(column), -1).any(1)]
        shown = ", ".join(map(str, np.sort(rows)[:5])) + (", ..." if len(rows) > 5 else "")
        raise StreamError(
            f"stream: column '{name}' has NaN in rows {shown} ({len(rows)} of {len(indices)} rows "
            "that were read). Pass allow_nan=True if the model masks them."
        )


def index_dtype(num_rows: int) -> type[np.signedinteger]:
    """Dtype of row numbers."""
    return np.int32 if num_rows <= np.iinfo(np.int32).max else np.int64


def padded(array: np.ndarray, length: int) -> np.ndarray:
    """Rows of an array, and its last row again until there are ``length`` of them."""
    if len(array) == length:
        return array
    return np.concatenate([array, np.repeat(array[-1:], length - len(array), 0)])


def share_of(rows: int, share: tuple[int, int]) -> slice:
    """Share ``(k, n)`` of consecutive rows: part ``k`` of ``n`` equally long ones.

    Raises
    ------
    ValueError
        If there is no such part.
    """
    k, n = share
    if not (0 <= k < n and rows % n == 0):
        raise ValueError(
            f"stream: expected a share (k, n) with 0 <= k < n and n a divisor of {rows} rows, got "
            f"{share}."
        )
    return slice(k * rows // n, (k + 1) * rows // n)

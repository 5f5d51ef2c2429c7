"""Arrays on disk that grow row by row, in files of plain numbers."""

import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.checkpoints.files import Damaged, stored_as

__all__ = ["Growing"]


class Growing:
    """A tree of arrays with a common leading axis, one file for each of them.

    What is in the files is described by a record beside them: dtypes and shapes of rows, and how
    many rows each write added, with their checksums. Files may have more than the record knows of,
    from a write that was not finished.

    Parameters
    ----------
    folder
        Of the files ``output-0``, ``output-1``, ..., made when they are first written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.structure: Any = None
        self.forms: list[dict[str, Any]] = []
        self.segments: list[dict[str, Any]] = []

    def describe(self, rows: Any) -> None:
        """Learn structure, dtypes and shapes from the first rows."""
        if self.structure is None:
            self.structure = _structure(rows)
            self.forms = [
                {"dtype": stored_as(leaf[:0])[0], "shape": list(leaf.shape[1:])}
                for leaf in jax.tree.leaves(rows)
            ]

    def record(self, segments: list[dict[str, Any]]) -> dict[str, Any]:
        """What JSON is to say of them, once these segments are written."""
        return {"structure": self.structure, "outputs": self.forms, "segments": segments}

    def adopt(self, record: Mapping[str, Any]) -> None:
        """Go on from a record, and cut off what it does not know of."""
        self.structure, self.forms = record["structure"], record["outputs"]
        self.segments = record["segments"]
        for place, path in enumerate(self._paths()):
            with path.open("r+b") as file:
                file.truncate(self._rows() * self._row_bytes(place))

    def append(self, chunks: list[list[np.ndarray]]) -> list[dict[str, Any]]:
        """Write rows behind those that are known; returns the segments with them.

        They are known from when these are given back to `segments`, after the record is on disk.
        """
        checksums = []
        for place, path in enumerate(self._paths()):
            checksum = 0
            with path.open("r+b" if path.exists() else "w+b") as file:
                # From the end of what is known: an attempt that failed may have left a part.
                file.truncate(self._rows() * self._row_bytes(place))
                file.seek(0, 2)
                for chunk in chunks:
                    content = np.ascontiguousarray(stored_as(chunk[place])[1]).data
                    checksum = zlib.crc32(content, checksum)
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            checksums.append(checksum)
        count = sum(len(chunk[0]) for chunk in chunks)
        return [*self.segments, *([{"rows": count, "checksums": checksums}] if count else [])]

    def read(self, waiting: list[list[np.ndarray]]) -> Any:
        """All rows, read from disk as they are used, and behind them those not yet written."""
        if not self.forms:
            return None
        leaves = []
        for place, (form, path) in enumerate(zip(self.forms, self._paths(), strict=True)):
            shape, dtype = (self._rows(), *form["shape"]), _plain(form["dtype"])
            # An empty file cannot be mapped.
            whole = np.empty(shape, dtype) if 0 in shape else np.memmap(path, dtype, "r", 0, shape)
            if waiting:
                whole = np.concatenate([whole, *(stored_as(c[place])[1] for c in waiting)])
            leaves.append(whole.view(jnp.dtype(form["dtype"])))
        return _rebuilt(self.structure, iter(leaves))

    def verify(self, record: Mapping[str, Any]) -> None:
        """Compare the files with a record.

        Raises
        ------
        Damaged
            If a file is torn, missing or changed.
        """
        for place, form in enumerate(record["outputs"]):
            path, size = self.folder / f"output-{place}", _bytes_of(form)
            try:
                with path.open("rb") as file:
                    for segment in record["segments"]:
                        content = file.read(segment["rows"] * size)
                        if zlib.crc32(content) != segment["checksums"][place]:
                            raise Damaged(f"{path} is not what was written")
            except OSError as error:
                raise Damaged(f"{path} cannot be read ({error})") from error

    def _rows(self) -> int:
        return sum(segment["rows"] for segment in self.segments)

    def _row_bytes(self, place: int) -> int:
        return _bytes_of(self.forms[place])

    def _paths(self) -> list[Path]:
        return [self.folder / f"output-{place}" for place in range(len(self.forms))]


def _bytes_of(form: Mapping[str, Any]) -> int:
    """Bytes of a row."""
    return int(np.prod(form["shape"], dtype=int)) * _plain(form["dtype"]).itemsize


def _plain(dtype: str) -> np.dtype:
    """Dtype in which an array is in the file."""
    known = jnp.dtype(dtype)
    return np.dtype(f"u{known.itemsize}") if known.kind == "V" else known


def _structure(tree: Any) -> Any:
    """Structure of nested dicts and tuples of arrays, as JSON holds it."""
    if isinstance(tree, dict):
        return {name: _structure(value) for name, value in sorted(tree.items())}
    return [_structure(value) for value in tree] if isinstance(tree, tuple | list) else None


def _rebuilt(structure: Any, leaves: Iterator[Any]) -> Any:
    if isinstance(structure, dict):
        return {name: _rebuilt(value, leaves) for name, value in structure.items()}
    if isinstance(structure, list):
        return tuple(_rebuilt(value, leaves) for value in structure)
    return next(leaves)

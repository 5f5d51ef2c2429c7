"""A loop on disk: its carry now and then, and its outputs in files that only grow.

``1.json`` and ``1.npz``, ``2.json`` and ``2.npz``, ... are states of the loop, of which the last
few stay; ``output-0``, ``output-1``, ... hold the arrays of its outputs, row after row. A state
says how many rows belong to it, and their checksums, so that a process which was killed in the
middle of writing leaves the state before as it was.
"""

import os
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from langevin_ppl.checkpoints.files import (
    CheckpointError,
    Damaged,
    as_stored,
    read,
    stored_as,
    warn,
    write,
)
from langevin_ppl.devices import first_says, from_own_part, known_to_all, own_part
from langevin_ppl.loop import Kept

__all__ = ["Stage", "filled"]

WAITING_BYTES = 2**26
"""Draws in memory from which on they are written, whatever the time."""

STATES = 3
"""States that stay on disk: the one that is new, and those to fall back to."""


class Stage:
    """Keeps one loop in a folder; see `langevin_ppl.loop.Keeper`.

    Parameters
    ----------
    folder
        Made when it is first written to.
    every
        Seconds between two states.
    holds_outputs
        Whether outputs stay on disk alone.
    share
        ``(number, count)``: which share of the chains is written here; the others are by other
        processes.
    """

    def __init__(
        self,
        folder: Path,
        every: float,
        holds_outputs: bool = False,
        share: tuple[int, int] = (0, 1),
    ):
        self.folder = folder
        self.every = every
        self.holds_outputs = holds_outputs
        self.share = share
        self._number = 0
        self._segments: list[dict[str, Any]] = []
        self._forms: list[dict[str, Any]] = []
        self._structure: Any = None
        self._waiting: list[list[np.ndarray]] = []
        self._latest: tuple[Any, int, int] | None = None
        self._begun = time.monotonic()
        self._thread: ThreadPoolExecutor | None = None
        self._writing: tuple[Future[dict[str, Any]], list[list[np.ndarray]]] | None = None

    def restore(self, carry: Any) -> Kept | None:
        """Read the newest state that is whole; of several processes, the newest that all have.

        Raises
        ------
        CheckpointError
            If it does not have the structure of ``carry``.
        """
        numbers = sorted((int(p.stem) for p in self.folder.glob("[0-9]*.json")), reverse=True)
        self._number = numbers[0] if numbers else 0
        whole: dict[int, _State] = {}
        faults = []
        for number in numbers:
            try:
                state = self._read(number)
            except Damaged as fault:
                faults.append(str(fault))
                continue
            whole[state.record["done"]] = state
            if jax.process_count() == 1:
                break
        shared = known_to_all(list(whole), STATES + 1)
        if not shared:
            if faults:
                warn(f"checkpoint: {faults[0]}; '{self.folder.name}' begins anew.")
            return None
        done = max(shared)
        if faults:
            warn(f"checkpoint: {faults[0]}; going on from the state after {done} steps.")
        return self._go_on(whole[done], carry)

    def _read(self, number: int) -> "_State":
        record, arrays = read(*self._state_files(number))
        for place in range(len(record["outputs"])):
            self._verify(place, record)
        return _State(record, arrays)

    def _go_on(self, state: "_State", carry: Any) -> Kept:
        record, arrays = state
        self._segments, self._forms = record["segments"], record["outputs"]
        self._structure = record["structure"]
        outputs = self._of_all(self.outputs())
        kept = Kept(
            filled(carry, arrays, self.folder), record["done"], outputs, record["next_look"]
        )
        for place, path in enumerate(self._output_files()):
            with path.open("r+b") as file:  # what was written after this state
                file.truncate(self._rows() * self._row_bytes(place))
        return kept

    def _of_all(self, outputs: Any) -> Any:
        """Outputs of the chains of all processes, ``[step, chain, ...]``, from those of each."""
        number, count = self.share
        if count == 1 or outputs is None:
            return outputs
        gathered = process_allgather(jax.tree.map(np.asarray, (np.asarray(number), outputs)))
        owners = {int(owner): process for process, owner in enumerate(gathered[0])}
        processes = [owners[part] for part in range(count)]
        return jax.tree.map(
            lambda parts: np.concatenate([parts[p] for p in processes], axis=1), gathered[1]
        )

    def take(self, rows: Any) -> None:
        """Take the outputs of a chunk."""
        leaves = [self._own(leaf) for leaf in jax.tree.leaves(rows)]
        if self._structure is None:
            self._structure = _structure(rows)
            self._forms = [
                {"dtype": stored_as(leaf[:0])[0], "shape": leaf.shape[1:]} for leaf in leaves
            ]
        # Copies: the rows are views of the buffers of a whole chunk.
        self._waiting.append([np.array(leaf) for leaf in leaves])

    def _own(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the chains of this process, ``[step, chain, ...]``."""
        number, count = self.share
        width = rows.shape[1] // count if count > 1 else 0
        return rows[:, number * width : (number + 1) * width] if count > 1 else rows

    def keep(self, carry: Any, done: int, next_look: int) -> None:
        """Take the carry, and begin to write where it is time, or many draws are waiting."""
        self._latest = (carry, done, next_look)
        due = time.monotonic() - self._begun >= self.every
        bytes_waiting = sum(leaf.nbytes for rows in self._waiting for leaf in rows)
        if first_says(due or bytes_waiting >= WAITING_BYTES):
            self._begin_to_write()

    def finish(self) -> None:
        """Write what was taken and not yet written."""
        self._end_writing()
        self._begin_to_write()
        self.close()

    def close(self) -> None:
        """Wait until nothing is being written."""
        self._end_writing()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def outputs(self) -> Any:
        """Outputs of all steps so far, leading axis ``step``; read from disk as they are used."""
        self._end_writing()
        if not self._forms:
            return None
        leaves = []
        for place, (form, path) in enumerate(zip(self._forms, self._output_files(), strict=True)):
            shape, dtype = (self._rows(), *form["shape"]), _plain(form["dtype"])
            # An empty file cannot be mapped.
            whole = np.empty(shape, dtype) if 0 in shape else np.memmap(path, dtype, "r", 0, shape)
            if self._waiting:
                new = [stored_as(chunk[place])[1] for chunk in self._waiting]
                whole = np.concatenate([whole, *new])
            leaves.append(whole.view(jnp.dtype(form["dtype"])))
        return _rebuilt(self._structure, iter(leaves))

    def _begin_to_write(self) -> None:
        """Hand the latest carry and the rows before it to the thread that writes.

        Not in this thread: the loop would wait for the disk.
        """
        busy = self._writing is not None and not self._writing[0].done()
        # Several processes wait, because they have to write the same states.
        if self._latest is None or (busy and jax.process_count() == 1):
            return
        self._end_writing()
        carry, done, next_look = self._latest
        rows, self._waiting, self._latest = self._waiting, [], None
        self._begun = time.monotonic()
        leaves = {str(i): own_part(leaf) for i, leaf in enumerate(jax.tree.leaves(carry))}
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="langevin_ppl-checkpoint")
        record = {"done": done, "next_look": next_look, "structure": self._structure}
        self._writing = self._thread.submit(self._write, rows, leaves, record), rows

    def _end_writing(self) -> None:
        """Wait for what is being written; where it failed, its rows wait again."""
        if self._writing is None:
            return
        (written, rows), self._writing = self._writing, None
        try:
            record = written.result()
        except OSError as error:
            self._waiting = rows + self._waiting
            warn(
                f"checkpoint: nothing could be written to {self.folder} ({error}). The run goes on "
                "and its draws are kept in memory; it is tried again later."
            )
        else:
            self._number, self._segments = self._number + 1, record["segments"]

    def _write(
        self, rows: list[list[np.ndarray]], leaves: dict[str, Any], about: dict[str, Any]
    ) -> dict[str, Any]:
        self.folder.mkdir(parents=True, exist_ok=True)
        checksums = []
        for place, path in enumerate(self._output_files()):
            checksum = 0
            with path.open("r+b" if path.exists() else "w+b") as file:
                # From the end of what is known: an attempt that failed may have left a part.
                file.truncate(self._rows() * self._row_bytes(place))
                file.seek(0, 2)
                for chunk in rows:
                    content = np.ascontiguousarray(stored_as(chunk[place])[1]).data
                    checksum = zlib.crc32(content, checksum)
                    file.write(content)
                file.flush()
                os.fsync(file.fileno())
            checksums.append(checksum)
        count = sum(len(chunk[0]) for chunk in rows)
        segments = [*self._segments, {"rows": count, "checksums": checksums}]
        record = {
            **about,
            "outputs": self._forms,
            "segments": segments if count else self._segments,
        }
        number = self._number + 1
        # The record last: where it is, all that it speaks of is there.
        paths, content = self._state_files(number), as_stored(record, leaves)
        write(paths[1], content[1])
        write(paths[0], content[0])
        for old in self._state_files(number - STATES):
            old.unlink(missing_ok=True)
        return record

    def _verify(self, place: int, record: dict[str, Any]) -> None:
        path = self.folder / f"output-{place}"
        size = _bytes_of(record["outputs"][place])
        try:
            with path.open("rb") as file:
                for segment in record["segments"]:
                    content = file.read(segment["rows"] * size)
                    if zlib.crc32(content) != segment["checksums"][place]:
                        raise Damaged(f"{path} is not what was written")
        except OSError as error:
            raise Damaged(f"{path} cannot be read ({error})") from error

    def _rows(self) -> int:
        return sum(segment["rows"] for segment in self._segments)

    def _row_bytes(self, place: int) -> int:
        return _bytes_of(self._forms[place])

    def _output_files(self) -> list[Path]:
        return [self.folder / f"output-{place}" for place in range(len(self._forms))]

    def _state_files(self, number: int) -> tuple[Path, Path]:
        return self.folder / f"{number}.json", self.folder / f"{number}.npz"


class _State(NamedTuple):
    """What is in the files of a state."""

    record: dict[str, Any]
    arrays: dict[str, Any]


def _bytes_of(form: dict[str, Any]) -> int:
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


def filled(template: Any, arrays: dict[str, Any], where: Path) -> Any:
    """Tree with the structure, and on the devices, of another one.

    Raises
    ------
    CheckpointError
        If the arrays are others than the tree has.
    """
    leaves, treedef = jax.tree.flatten(template)
    got = [arrays[str(i)] for i in range(len(arrays))]
    expected = [(tuple(jnp.shape(own_part(leaf))), str(leaf.dtype)) for leaf in leaves]
    found = [(tuple(jnp.shape(leaf)), str(leaf.dtype)) for leaf in got]
    if expected != found:
        raise CheckpointError(
            f"checkpoint: the state in {where} has arrays {found}, and this run one of {expected}. "
            "Pass the kernel, gradient and number of chains that the run was made with."
        )
    placed = [from_own_part(new, old) for new, old in zip(got, leaves, strict=True)]
    return jax.tree.unflatten(treedef, placed)

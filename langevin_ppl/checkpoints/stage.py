"""A loop on disk: its carry now and then, and its outputs in files that only grow.

``1.json`` and ``1.npz``, ``2.json`` and ``2.npz``, ... are states of the loop, of which the last
few stay; ``output-0``, ``output-1``, ... hold the arrays of its outputs, row after row. A state
says how many rows belong to it, and their checksums, so that a process which was killed in the
middle of writing leaves the state before as it was.
"""

import time
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
    warn,
    write,
)
from langevin_ppl.checkpoints.growing import Growing
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
        self._growing = Growing(folder)
        self._waiting: list[list[np.ndarray]] = []
        self._latest: tuple[Any, int, int] | None = None
        self._begun = time.monotonic()
        self._thread: ThreadPoolExecutor | None = None
        self._writing: tuple[Future[list[dict[str, Any]]], list[list[np.ndarray]]] | None = None

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
        self._growing.verify(record)
        return _State(record, arrays)

    def _go_on(self, state: "_State", carry: Any) -> Kept:
        record, arrays = state
        carry = filled(carry, arrays, self.folder)
        self._growing.adopt(record)
        return Kept(carry, record["done"], self._of_all(self.outputs()), record["next_look"])

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
        rows = jax.tree.map(self._own, rows)
        self._growing.describe(rows)
        # Copies: the rows are views of the buffers of a whole chunk.
        self._waiting.append([np.array(leaf) for leaf in jax.tree.leaves(rows)])

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
        return self._growing.read(self._waiting)

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
        about = {"done": done, "next_look": next_look}
        self._writing = self._thread.submit(self._write, rows, leaves, about), rows

    def _end_writing(self) -> None:
        """Wait for what is being written; where it failed, its rows wait again."""
        if self._writing is None:
            return
        (written, rows), self._writing = self._writing, None
        try:
            segments = written.result()
        except OSError as error:
            self._waiting = rows + self._waiting
            warn(
                f"checkpoint: nothing could be written to {self.folder} ({error}). The run goes on "
                "and its draws are kept in memory; it is tried again later."
            )
        else:
            self._number, self._growing.segments = self._number + 1, segments

    def _write(
        self, rows: list[list[np.ndarray]], leaves: dict[str, Any], about: dict[str, Any]
    ) -> list[dict[str, Any]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        segments = self._growing.append(rows)
        content = as_stored({**about, **self._growing.record(segments)}, leaves)
        number = self._number + 1
        # The record last: where it is, all that it speaks of is there.
        for path, part in zip(self._state_files(number)[::-1], content[::-1], strict=True):
            write(path, part)
        for old in self._state_files(number - STATES):
            old.unlink(missing_ok=True)
        return segments

    def _state_files(self, number: int) -> tuple[Path, Path]:
        return self.folder / f"{number}.json", self.folder / f"{number}.npz"


class _State(NamedTuple):
    """What is in the files of a state."""

    record: dict[str, Any]
    arrays: dict[str, Any]


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

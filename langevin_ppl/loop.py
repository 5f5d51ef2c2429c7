"""The only stepping loop: compiled chunks on the device, decisions between them on the host.

A chunk boundary is where progress is shown, draws move to host memory, a checkpoint is written and
Ctrl-C is heard. The number of steps of a chunk is an argument of the compiled program, so chunks of
any length share one compilation, and where they are cut changes no draw, bit for bit.
"""

import math
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from langevin_ppl.base import Array, PRNGKey, SamplingAlgorithm
from langevin_ppl.devices import to_host

__all__ = [
    "Keeper",
    "Kept",
    "Look",
    "Monitor",
    "Note",
    "Outcome",
    "capacity_for",
    "drive",
    "march",
    "repeat",
    "steps_of",
]

CHUNK_SECONDS = 0.5
"""Aimed duration of a chunk: how long Ctrl-C waits and how often progress is shown."""

CHUNK_BYTES = 2**22
"""Most memory that the outputs of one chunk may take on the device. Their buffers are cleared for
every chunk, so that longer ones only pay where a chunk fills them."""

MAX_CAPACITY = 4096
"""Most steps of a chunk: at some microseconds a step, going back to the host is then no cost."""

FIRST_CHUNKS = (32, 256)
"""Lengths of the first chunks, before a rate is known (the first one includes compilation)."""


NOTE_SECONDS, NOTE_SHARE = 2.0, 0.01
"""Least time between two notes beside a bar, and most of the time that they may take."""

FIRST_LOOK = 100
"""Step at which a monitor looks first."""


class Look(NamedTuple):
    """What a monitor saw at a chunk boundary.

    Attributes
    ----------
    finished
        Whether to stop here.
    next_look
        Step at which to look again, also the best guess of where the run will end.
    expected
        Expected number of steps in all, for the bar's estimate of the time left.
    note
        Text to show beside the bar.
    """

    finished: bool
    next_look: int
    expected: int
    note: str


type Monitor = Callable[[Any, int], Look]
"""``monitor(outputs, done) -> Look``, with the outputs of the ``done`` steps so far."""


type Note = Callable[[Any, int], str]
"""``note(outputs, done)``: text to show beside a bar."""


class Outcome(NamedTuple):
    """What `drive` returns.

    Attributes
    ----------
    carry
        The carry after the last step.
    outputs
        Outputs of all steps on the host, leading axis ``step``; None if there was no step.
    complete
        False after Ctrl-C.
    """

    carry: Any
    outputs: Any
    complete: bool


def repeat(
    step: Callable[[Any, Array], tuple[Any, Any]],
    carry: Any,
    start: Array,
    count: Array,
    capacity: int,
) -> tuple[Any, Any]:
    """Make ``count`` steps from index ``start``; to be called inside ``jit``.

    Parameters
    ----------
    step
        ``step(carry, index) -> (carry, output)``.
    start, count
        Integer scalars, traced; ``count`` is at most ``capacity``.
    capacity
        Length of the output buffers.

    Returns
    -------
    carry, outputs
        Outputs have leading axis ``capacity``; rows from ``count`` on are zero.
    """
    shapes = jax.eval_shape(step, carry, start)[1]
    outputs = jax.tree.map(lambda s: jnp.zeros((capacity, *s.shape), s.dtype), shapes)

    def body(i: Array, loop: tuple[Any, Any]) -> tuple[Any, Any]:
        carry, outputs = loop
        carry, output = step(carry, start + i)
        outputs = jax.tree.map(
            lambda buffer, row: jax.lax.dynamic_update_index_in_dim(buffer, row, i, 0),
            outputs,
            output,
        )
        return carry, outputs

    return jax.lax.fori_loop(0, count, body, (carry, outputs))


def march(
    move: Callable[[Any, Array, Any], Any],
    carry: Any,
    keys: Array,
    rows: Any,
    start: Array,
    count: Array,
    capacity: int,
    read: Callable[[Any], Any] = lambda carry: (),
) -> tuple[Any, Any]:
    """Carry out rows one after the other with many walkers; to be called inside ``jit``.

    Parameters
    ----------
    move
        ``move(carry, keys, row) -> carry`` of all walkers, with a key for each.
    keys
        Keys of the walkers, into which the number of the row is folded.
    rows
        Pytree of arrays with leading axis ``row``.
    start, count, capacity
        As in `repeat`.
    read
        What to put out after a row.
    """

    def step(carry: Any, index: Array) -> tuple[Any, Any]:
        row = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, index, 0, False), rows)
        carry = move(carry, jax.vmap(jax.random.fold_in, (0, None))(keys, index), row)
        return carry, read(carry)

    return repeat(step, carry, start, count, capacity)


def steps_of(algorithm: SamplingAlgorithm, rng_key: PRNGKey, state: Any, count: Any) -> Any:
    """Make steps of a kernel of which only the last state is wanted; for use inside ``jit``."""

    def step(i: Array, state: Any) -> Any:
        return algorithm.step(jax.random.fold_in(rng_key, i), state)[0]

    return jax.lax.fori_loop(0, count, step, state)


def capacity_for(bytes_per_step: int) -> int:
    """Length of output buffers: a power of two, the same for runs of any length."""
    return 2 ** int(math.log2(max(1, min(MAX_CAPACITY, CHUNK_BYTES // bytes_per_step))))


class Kept(NamedTuple):
    """What an earlier process left of a loop.

    Attributes
    ----------
    carry
        The carry after the last step that was kept.
    done
        Number of steps made.
    outputs
        Their outputs, leading axis ``step``.
    next_look
        Step at which a monitor looks next.
    """

    carry: Any
    done: int
    outputs: Any
    next_look: int


class Keeper(Protocol):
    """Keeps a loop on disk, so that another process can go on from there."""

    @property
    def holds_outputs(self) -> bool:
        """Whether outputs are left to the keeper, and memory stays flat."""
        ...

    def restore(self, carry: Any) -> Kept | None:
        """Give back what was kept, in the structure of ``carry``; None where there is nothing."""
        ...

    def take(self, rows: Any) -> None:
        """Take the outputs of a chunk."""
        ...

    def keep(self, carry: Any, done: int, next_look: int) -> None:
        """Take the carry after it, and write if it is time."""
        ...

    def finish(self) -> None:
        """Write what was taken and not yet written."""
        ...

    def outputs(self) -> Any:
        """Outputs of all steps so far, leading axis ``step``."""
        ...


class _Memory:
    """Outputs in arrays of the length of the whole run."""

    def __init__(self, num_steps: int):
        self.num_steps = num_steps
        self.arrays: Any = None

    def add(self, rows: Any, start: int) -> None:
        """Take the outputs of a chunk, or of all steps that an earlier process made."""
        if rows is None:
            return
        if self.arrays is None:
            self.arrays = jax.tree.map(
                lambda r: np.empty((self.num_steps, *r.shape[1:]), r.dtype), rows
            )

        def store(outputs: np.ndarray, rows: np.ndarray) -> None:
            outputs[start : start + len(rows)] = rows

        jax.tree.map(store, self.arrays, rows)

    def until(self, done: int) -> Any:
        """Outputs of the first steps."""
        return jax.tree.map(lambda rows: rows[:done], self.arrays)


def drive(
    program: Callable[[Any, int, int], tuple[Any, Any]],
    carry: Any,
    num_steps: int,
    capacity: int,
    *,
    progress: bool = False,
    label: str = "",
    chunk: int | None = None,
    monitor: Monitor | None = None,
    keeper: Keeper | None = None,
    note: Note | None = None,
    first_look: int = FIRST_LOOK,
) -> Outcome:
    """Run a compiled program chunk by chunk.

    Parameters
    ----------
    program
        ``program(carry, start, count) -> (carry, outputs)``, usually jitted around `repeat`.
    num_steps
        Steps to make in all; with a monitor, at most.
    capacity
        Longest chunk. None crosses a multiple of it, at which data may be exchanged.
    progress
        Show a bar (not under ``CI``, and of several processes in the first alone).
    label
        Text of the bar.
    chunk
        Fixed length of a chunk, instead of one that follows the clock; several processes, whose
        clocks differ, make the longest chunks.
    monitor
        Looks at the outputs so far and may stop the run. When it looks depends on the outputs
        alone, never on the clock, so that a run stops at the same step everywhere.
    keeper
        Keeps the loop on disk; what it holds already is not run again.
    note
        Text for the bar. It is asked for so rarely that it takes a hundredth of the time.
    first_look
        Step at which a monitor looks first.

    Raises
    ------
    KeyboardInterrupt
        If Ctrl-C came before the first chunk was done.
    """
    memory = _Memory(num_steps)
    kept = None if keeper is None else keeper.restore(carry)
    done, next_look, finished = 0, first_look, False
    if kept is not None:
        carry, done, next_look = kept.carry, min(kept.done, num_steps), kept.next_look
        finished = monitor is not None and next_look == done
    held = keeper is not None and keeper.holds_outputs
    if kept is not None and not held:
        memory.add(jax.tree.map(lambda rows: rows[:done], kept.outputs), 0)
    pace, complete = _Pace(chunk), True
    hidden = not progress or bool(os.environ.get("CI")) or jax.process_index() > 0
    notes = _Notes(None if hidden else note)

    def so_far() -> Any:
        return keeper.outputs() if keeper is not None and held else memory.until(done)

    with tqdm(total=num_steps, initial=done, desc=label, disable=hidden) as bar:
        try:
            while done < num_steps and not finished:
                end = num_steps if monitor is None else min(next_look, num_steps)
                count = max(1, min(pace.length(capacity), capacity - done % capacity, end - done))
                began = time.perf_counter()
                new_carry, rows = program(carry, done, count)
                rows = jax.tree.map(lambda r: r[:count], to_host(rows))  # noqa: B023
                carry = new_carry  # only now: Ctrl-C may have come while the rows were awaited
                pace.measure(count, time.perf_counter() - began)
                if not held:
                    memory.add(rows, done)
                if keeper is not None:
                    keeper.take(rows)
                done += count
                bar.update(count)
                if monitor is not None and (done >= next_look or done == num_steps):
                    look = monitor(so_far(), done)
                    # Where a run is finished, it is not looked at again.
                    next_look, finished = (done if look.finished else look.next_look), look.finished
                    bar.total = look.expected
                    bar.set_postfix_str(look.note)
                if keeper is not None:
                    keeper.keep(carry, done, next_look)
                notes.show(bar, so_far, done)
        except KeyboardInterrupt:
            if done == 0:
                raise
            complete = False
    if keeper is not None:
        keeper.finish()
    return Outcome(carry, so_far(), complete)


class _Pace:
    """Lengths of chunks: fixed, or such that one takes about `CHUNK_SECONDS`."""

    def __init__(self, chunk: int | None):
        self.fixed = chunk
        self.first = list(FIRST_CHUNKS)
        self.rate = 0.0

    def length(self, capacity: int) -> int:
        """Length of the next chunk."""
        if self.fixed is not None:
            return self.fixed
        if self.first:
            return self.first.pop(0)
        # Clocks of several processes differ, and their chunks must not.
        return capacity if jax.process_count() > 1 else math.ceil(self.rate * CHUNK_SECONDS)

    def measure(self, count: int, seconds: float) -> None:
        """Learn from a chunk."""
        self.rate = count / max(seconds, 1e-9)


class _Notes:
    """Text beside a bar, as often as it costs next to nothing."""

    def __init__(self, note: Note | None):
        self.note = note
        self.due = time.perf_counter() + NOTE_SECONDS

    def show(self, bar: Any, outputs: Callable[[], Any], done: int) -> None:
        """Show it, if it is time."""
        began = time.perf_counter()
        if self.note is None or began < self.due:
            return
        bar.set_postfix_str(self.note(outputs(), done))
        ended = time.perf_counter()
        self.due = ended + max(NOTE_SECONDS, (ended - began) / NOTE_SHARE)

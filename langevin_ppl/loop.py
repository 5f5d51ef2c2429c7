"""The only stepping loop: compiled chunks on the device, decisions between them on the host.

A chunk boundary is where progress is shown, draws move to host memory and Ctrl-C is heard. The
number of steps of a chunk is an argument of the compiled program, so chunks of any length share
one compilation, and where they are cut changes no draw, bit for bit.
"""

import functools
import math
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from langevin_ppl.base import Array
from langevin_ppl.devices import to_host

__all__ = ["Look", "Monitor", "Outcome", "capacity_for", "drive", "repeat"]

CHUNK_SECONDS = 0.5
"""Aimed duration of a chunk: how long Ctrl-C waits and how often progress is shown."""

CHUNK_BYTES = 2**22
"""Most memory that the outputs of one chunk may take on the device. Their buffers are cleared for
every chunk, so that longer ones only pay where a chunk fills them."""

MAX_CAPACITY = 4096
"""Most steps of a chunk: at some microseconds a step, going back to the host is then no cost."""

FIRST_CHUNKS = (32, 256)
"""Lengths of the first chunks, before a rate is known (the first one includes compilation)."""


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


def capacity_for(bytes_per_step: int) -> int:
    """Length of output buffers: a power of two, the same for runs of any length."""
    return 2 ** int(math.log2(max(1, min(MAX_CAPACITY, CHUNK_BYTES // bytes_per_step))))


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
) -> Outcome:
    """Run a compiled program chunk by chunk.

    Parameters
    ----------
    program
        ``program(carry, start, count) -> (carry, outputs)``, usually jitted around `repeat`.
    num_steps
        Steps to make in all; with a monitor, at most.
    capacity
        Longest chunk.
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

    Raises
    ------
    KeyboardInterrupt
        If Ctrl-C came before the first chunk was done.
    """
    outputs: Any = None
    look = Look(False, FIRST_LOOK, num_steps, "")
    done, lengths = 0, list(FIRST_CHUNKS)
    complete = True
    hidden = not progress or bool(os.environ.get("CI")) or jax.process_index() > 0
    bar = tqdm(total=num_steps, desc=label, disable=hidden)
    rate = 0.0
    with bar:
        try:
            while done < num_steps and not look.finished:
                if chunk is not None:
                    length = chunk
                elif lengths:
                    length = lengths.pop(0)
                elif jax.process_count() > 1:
                    length = capacity
                else:
                    length = math.ceil(rate * CHUNK_SECONDS)
                end = num_steps if monitor is None else min(look.next_look, num_steps)
                count = max(1, min(length, capacity, end - done))
                began = time.perf_counter()
                new_carry, rows = program(carry, done, count)
                rows = to_host(rows)
                carry = new_carry  # only now: Ctrl-C may have come while the rows were awaited
                rate = count / max(time.perf_counter() - began, 1e-9)
                if outputs is None:
                    outputs = jax.tree.map(
                        lambda r: np.empty((num_steps, *r.shape[1:]), r.dtype), rows
                    )
                jax.tree.map(functools.partial(_store, start=done, count=count), outputs, rows)
                done += count
                bar.update(count)
                if monitor is not None and (done >= look.next_look or done == num_steps):
                    look = monitor(jax.tree.map(lambda rows: rows[:done], outputs), done)  # noqa: B023
                    bar.total = look.expected
                    bar.set_postfix_str(look.note)
        except KeyboardInterrupt:
            if done == 0:
                raise
            complete = False
    return Outcome(carry, jax.tree.map(lambda rows: rows[:done], outputs), complete)


def _store(outputs: np.ndarray, rows: np.ndarray, *, start: int, count: int) -> None:
    outputs[start : start + count] = rows[:count]

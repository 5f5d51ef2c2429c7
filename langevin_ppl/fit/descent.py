"""Down a random loss, by batches in memory or from the host."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array, DivergenceWarning, PRNGKey
from langevin_ppl.fit.steps import begin, chunk, default_optimizer
from langevin_ppl.loop import FIRST_LOOK, Keeper, Look, Outcome, capacity_for, drive
from langevin_ppl.tree import as_pytree, checksum, program_checksum

__all__ = ["Descended", "descend"]

NOTED = 100
"""Last steps whose mean loss is shown beside the bar."""


CURE = (
    "Take a lower learning rate, or an optimizer that cuts gradients, and look at the data for "
    "outliers."
)
"""What to do about a loss that is not finite."""


class Descended(NamedTuple):
    """Where a descent ended.

    Attributes
    ----------
    parameters
        After the last step whose loss and gradient were finite.
    average
        Exponential moving average of the parameters; None where none was asked for.
    memory
        What the loss carried from step to step.
    losses
        Loss of every step made, ``[step]``.
    reports
        What the loss reported in every step, by name, ``[step]``.
    validation_steps, validation_losses
        Steps after which the validation loss was measured, and the loss, ``[measurement]``.
    failed_at
        Step whose loss or gradient was not finite; None where there was none.
    complete
        False after Ctrl-C.
    """

    parameters: Any
    average: Any
    memory: Any
    losses: np.ndarray
    reports: dict[str, np.ndarray]
    validation_steps: np.ndarray
    validation_losses: np.ndarray
    failed_at: int | None
    complete: bool


class _Blocks:
    """Batches of the host, stacked to blocks of which a chunk of steps reads one."""

    def __init__(self, read: Callable[[int], Any], example: Any):
        self.read = read
        bytes_of_batch = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(example))
        self.capacity = capacity_for(max(1, bytes_of_batch))
        self.block = jax.tree.map(
            lambda a: np.zeros((self.capacity, *np.shape(a)), np.asarray(a).dtype), example
        )

    def until(self, start: int, count: int) -> Any:
        """Read the batches of these steps, and give back the block that they are in."""
        for step in range(start, start + count):
            batch = self.read(step)

            def put(rows: np.ndarray, new: Any, place: int = step % self.capacity) -> None:
                rows[place] = new

            jax.tree.map(put, self.block, batch)
        # A copy: on a CPU the device may read the memory of an array instead of copying it.
        return jax.tree.map(lambda rows: jnp.array(rows, copy=True), self.block)


def descend(
    rng_key: PRNGKey,
    loss_fn: Callable[[Any, Any, PRNGKey, Any], tuple[Array, Any]],
    parameters: Any,
    data: Any = None,
    *,
    num_steps: int,
    batch_size: int | None = None,
    read: Callable[[int], Any] | None = None,
    optimizer: Any = None,
    memory: Any = (),
    ema: float | None = None,
    validation: Any = None,
    validate_every: int = 100,
    keeper: Callable[[dict[str, str]], Keeper | None] | None = None,
    progress: bool = False,
    label: str = "fit",
    cure: str = CURE,
) -> Descended:
    """Minimise a random loss by a method of Optax.

    Steps depend on the key, their number and the batches alone: not on how the run is cut to chunks
    or interrupted. A step whose loss or gradient is not finite is not made, nor any after it.

    Parameters
    ----------
    rng_key
        A typed key.
    loss_fn
        ``loss_fn(parameters, memory, rng_key, batch) -> (loss, memory)``: a function, or a pytree
        such as a ``jax.tree_util.Partial``, whose arrays are arguments of the compiled program.
    parameters
        Pytree of floating-point arrays.
    data
        Pytree of arrays with a common leading axis, of which ``batch_size`` rows are read in a
        step. With ``read`` an example of a batch, and None for a loss without data.
    num_steps
        How many steps.
    batch_size
        Rows of a batch; all by default.
    read
        ``read(step)`` gives the batch of a step, on the host and of the same shapes in every step.
        It is called for every step in order, in a run that goes on from the first that is left.
    optimizer
        Any ``optax.GradientTransformation``; `default_optimizer` by default. It is given the extra
        arguments ``value``, ``grad`` and ``value_fn``.
    memory
        What the loss carries from step to step; with `Reported` it puts scalars out.
    ema
        Decay of the moving average of the parameters, which is shorter in the first steps.
    validation
        Rows like ``data``, whose mean loss is measured every ``validate_every`` steps: at the
        moving average where there is one, and each time with the same keys.
    keeper
        ``keeper(asked)`` gives the keeper of the loop, as in `langevin_ppl.loop.drive`, from
        checksums of all that determines the run, by what they are of.
    progress, label
        As in `langevin_ppl.loop.drive`.
    cure
        What to do about a loss that is not finite, for the warning.

    Warns
    -----
    DivergenceWarning
        If a loss or gradient was not finite.
    """
    optimizer = default_optimizer() if optimizer is None else optimizer
    carry = begin(optimizer, parameters, memory, None if ema is None else parameters)
    blocks = None if read is None else _Blocks(read, data)
    if data is not None and batch_size is None:
        batch_size = len(jax.tree.leaves(data)[0])
    static = {
        "optimizer": optimizer,
        "batch_size": batch_size if blocks is None else None,
        "capacity": capacity_for(1) if blocks is None else blocks.capacity,
    }
    settings = validate_every, ema, num_steps
    if blocks is None:
        data = jax.tree.map(jnp.asarray, data)
    loss_fn = as_pytree(loss_fn)
    validation = jax.tree.map(jnp.asarray, validation)

    def program(carry: Any, start: int, count: int) -> tuple[Any, Any]:
        given = data if blocks is None else blocks.until(start, count)
        return chunk(carry, start, count, rng_key, loss_fn, given, validation, *settings, **static)

    kept = None
    if keeper is not None:
        given = data if blocks is None else blocks.block
        lowered = chunk.lower(carry, 0, 1, rng_key, loss_fn, given, validation, *settings, **static)
        kept = keeper(
            {
                "data": checksum(data, validation),
                "key": checksum(rng_key),
                "start": checksum(parameters, memory, loss_fn),
                "settings": str(settings),
                "program": program_checksum(lowered),
            }
        )

    def monitor(outputs: Any, done: int) -> Look:
        failed = bool(outputs["failed"][-1])
        return Look(failed, done + max(FIRST_LOOK, done // 4), num_steps, spoken(outputs, done))

    def spoken(outputs: Any, done: int) -> str:
        shown = [name for name in outputs if name not in ("failed", "validation")]
        means = {name: np.mean(outputs[name][max(0, done - NOTED) : done]) for name in shown}
        return ", ".join(f"{name} {mean:.4g}" for name, mean in means.items())

    outcome = drive(
        program,
        carry,
        num_steps,
        static["capacity"],
        progress=progress,
        label=label,
        monitor=monitor,
        keeper=kept,
        note=spoken,
    )
    return _result(outcome, validate_every, validation is not None, label, cure)


def _result(outcome: Outcome, every: int, validated: bool, label: str, cure: str) -> Descended:
    carry, outputs = outcome.carry, outcome.outputs
    at = int(carry.failed_at)
    failed_at = None if at < 0 else at
    losses = np.array(outputs["loss"])[: None if failed_at is None else failed_at + 1]
    measured = np.arange(every, len(losses) + (failed_at is None), every) if validated else []
    measured = np.asarray(measured, int)
    if failed_at is not None:
        warnings.warn(
            f"{label}: the loss or its gradient was not finite at step {failed_at}. Training ended "
            f"there, and the parameters of the step before are kept. {cure}",
            DivergenceWarning,
            stacklevel=4,
        )
    found = np.array(outputs["validation"])[measured - 1] if validated else np.zeros(0)
    reports = {
        name: np.array(values)[: len(losses)]
        for name, values in outputs.items()
        if name not in ("loss", "failed", "validation")
    }
    return Descended(
        carry.parameters,
        carry.average,
        carry.memory,
        losses,
        reports,
        measured,
        found,
        failed_at,
        outcome.complete,
    )

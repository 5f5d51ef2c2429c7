"""One compiled program for all steps of a descent, whose data are its arguments."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from langevin_ppl.base import Array, PRNGKey, check_number
from langevin_ppl.compilation import QUICK
from langevin_ppl.gradients.draws import scattered
from langevin_ppl.loop import repeat
from langevin_ppl.tree import all_finite

__all__ = [
    "Carry",
    "Reported",
    "begin",
    "chunk",
    "default_optimizer",
    "as_optimizer",
    "rows_of_batch",
]

WARM_UP = 0.05
"""Share of the steps in which the learning rate of the default optimizer rises; Adam's second
moments, whose memory is a thousand steps, are poor before."""

MAX_NORM = 1.0
"""Norm to which the default optimizer cuts gradients, as in most training of diffusions."""


class Carry(NamedTuple):
    """Where a descent is; ``failed_at`` is -1 until a step fails."""

    parameters: Any
    average: Any
    state: Any
    memory: Any
    failed_at: Array


class Reported(NamedTuple):
    """What a loss may carry as its memory, to put out scalars in every step.

    Attributes
    ----------
    memory
        What is carried.
    report
        Scalars by name.
    """

    memory: Any
    report: Any


class _OverRun(optax.GradientTransformationExtraArgs):
    """Optimizer told the number of steps; some of Optax take no argument that they don't know."""


@functools.cache
def default_optimizer(learning_rate: float = 1e-3) -> optax.GradientTransformationExtraArgs:
    """Adam with warm-up, cosine decay over the whole run, and gradients cut to norm 1.

    Equal learning rates give the same object, so that programs are compiled once; how long the run
    is, `descend` says in every step by the extra argument ``horizon``.

    Parameters
    ----------
    learning_rate
        The highest.

    References
    ----------
    Kingma, Ba, *Adam*, 2014, arXiv:1412.6980; Loshchilov, Hutter, *SGDR*, 2016, arXiv:1608.03983.
    """

    def init(parameters: Any) -> Array:
        del parameters
        return jnp.zeros((), jnp.int32)

    def update(
        updates: Any, count: Any, params: Any = None, *, horizon: Any, **others: Any
    ) -> tuple[Any, Any]:
        del params, others
        share = count / horizon
        rise = jnp.minimum(1.0, (count + 1.0) / jnp.maximum(1.0, WARM_UP * horizon))
        rate = learning_rate * rise * 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(share, 1.0)))
        return jax.tree.map(lambda u: -(rate.astype(u.dtype)) * u, updates), count + 1

    course = optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]
    return _OverRun(
        *optax.chain(optax.clip_by_global_norm(MAX_NORM), optax.scale_by_adam(), course)
    )


def as_optimizer(optimizer: Any) -> Any:
    """Optimizer of Optax from one, from the learning rate of the default, or from None.

    Raises
    ------
    TypeError, ValueError
        For anything else, and for a rate that is not positive.
    """
    if optimizer is None:
        return default_optimizer()
    if isinstance(optimizer, optax.GradientTransformation):
        return optimizer
    if not isinstance(optimizer, int | float | np.number) or isinstance(optimizer, bool):
        raise TypeError(
            "optimizer: expected an optax.GradientTransformation such as optax.adam(1e-3), or a "
            f"learning rate, got {type(optimizer).__name__}."
        )
    check_number("optimizer", optimizer, above=0.0)
    return default_optimizer(float(optimizer))


def rows_of_batch(rng_key: PRNGKey, step: Array, num_rows: int, batch_size: int) -> Array:
    """Rows of the batch of a step, ``[row]``: each at most once in an epoch, in random order.

    What does not fill a batch is left out of an epoch: other rows in each of them.
    """
    if batch_size == num_rows:
        return jnp.arange(num_rows)
    epoch, turn = jnp.divmod(step, num_rows // batch_size)
    places = turn * batch_size + jnp.arange(batch_size)
    return scattered(places, jax.random.fold_in(rng_key, epoch), num_rows)


def _step(
    carry: Carry,
    index: Array,
    rng_key: PRNGKey,
    loss_fn: Any,
    batch: Any,
    ema: Any,
    horizon: Any,
    optimizer: Any,
) -> tuple[Carry, Array]:
    """One step, unless an earlier one failed."""
    key = jax.random.fold_in(rng_key, index)

    def loss_of(parameters: Any) -> tuple[Array, Any]:
        return loss_fn(parameters, carry.memory, key, batch)

    (loss, memory), gradient = jax.value_and_grad(loss_of, has_aux=True)(carry.parameters)
    updates, state = optax.with_extra_args_support(optimizer).update(
        gradient,
        carry.state,
        carry.parameters,
        value=loss,
        grad=gradient,
        value_fn=lambda parameters: loss_of(parameters)[0],
        **({"horizon": horizon} if isinstance(optimizer, _OverRun) else {}),
    )
    parameters = optax.apply_updates(carry.parameters, updates)
    average = carry.average
    if average is not None:
        # At first over a tenth of the steps so far, so that the start is forgotten.
        decay = jnp.minimum(ema, (1.0 + index) / (10.0 + index))
        average = optax.incremental_update(parameters, average, 1.0 - decay)
    finite = all_finite(loss, *jax.tree.leaves((gradient, parameters)))
    good = finite & (carry.failed_at < 0)
    new = Carry(parameters, average, state, memory, carry.failed_at)
    new = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, carry)
    failed_at = jnp.where(~finite & (carry.failed_at < 0), index, carry.failed_at)
    return new._replace(failed_at=failed_at.astype(jnp.int32)), loss


def _mean_loss(
    loss_fn: Any, parameters: Any, memory: Any, rng_key: PRNGKey, data: Any, width: int
) -> Array:
    """Mean over all rows, block by block: with the same keys and blocks whenever it is called."""
    size = len(jax.tree.leaves(data)[0])
    # The last block overlaps the one before where they do not divide the rows.
    starts = np.minimum(np.arange(0, size, width), size - width)

    def of_block(block: tuple[Array, Array]) -> Array:
        start, number = block
        batch = jax.tree.map(lambda rows: jax.lax.dynamic_slice_in_dim(rows, start, width), data)
        return loss_fn(parameters, memory, jax.random.fold_in(rng_key, number), batch)[0]

    return jnp.mean(jax.lax.map(of_block, (jnp.asarray(starts), jnp.arange(len(starts)))))


@functools.partial(
    jax.jit,
    static_argnames=("optimizer", "batch_size", "capacity"),
    compiler_options=QUICK,
)
def chunk(
    carry: Carry,
    start: Any,
    count: Any,
    rng_key: PRNGKey,
    loss_fn: Any,
    data: Any,
    validation: Any,
    validate_every: Any,
    ema: Any,
    horizon: Any,
    *,
    optimizer: Any,
    batch_size: int | None,
    capacity: int,
) -> tuple[Carry, dict[str, Array]]:
    """Make ``count`` steps from ``start``.

    Parameters
    ----------
    data
        All rows or, without a batch size, batches of ``capacity`` steps; None without data.
    """
    key_rows, key_loss, key_validation = jax.random.split(rng_key, 3)

    def batch_at(index: Array) -> Any:
        if data is None:
            return None
        if batch_size is None:  # batches of the host, stacked
            return jax.tree.map(lambda batches: batches[index % capacity], data)
        size = len(jax.tree.leaves(data)[0])
        rows = rows_of_batch(key_rows, index, size, batch_size)
        return jax.tree.map(lambda array: array[rows], data)

    def step(carry: Carry, index: Array) -> tuple[Carry, dict[str, Array]]:
        batch = batch_at(index)
        carry, loss = _step(carry, index, key_loss, loss_fn, batch, ema, horizon, optimizer)
        outputs = {"loss": loss, "failed": carry.failed_at >= 0}
        if isinstance(carry.memory, Reported):
            outputs |= carry.memory.report
        if validation is not None:
            width = min(len(jax.tree.leaves(tree)[0]) for tree in (batch, validation))
            best = carry.parameters if carry.average is None else carry.average

            def measured() -> Array:
                mean = _mean_loss(loss_fn, best, carry.memory, key_validation, validation, width)
                return mean.astype(loss.dtype)

            due = (index + 1) % validate_every == 0
            outputs["validation"] = jax.lax.cond(due, measured, lambda: jnp.zeros_like(loss))
        return carry, outputs

    return repeat(step, carry, jnp.asarray(start), jnp.asarray(count), capacity)


@functools.partial(jax.jit, static_argnums=0)
def begin(optimizer: Any, parameters: Any, memory: Any, average: Any) -> Carry:
    """Carry before the first step."""
    state = optimizer.init(parameters)
    return Carry(parameters, average, state, memory, jnp.full((), -1, jnp.int32))

"""``generate``: a score and a sampler in, samples out."""

import functools
import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import (
    Array,
    DivergenceWarning,
    PRNGKey,
    check_counts,
    check_key,
)
from langevin_ppl.diffusion.checks import (
    check_condition,
    check_sampler,
    check_score,
    some_conditions,
)
from langevin_ppl.diffusion.data_prediction import dpm_solver_pp
from langevin_ppl.diffusion.sampler import Mover, Plan, Sampler, advance, begin, in_precision
from langevin_ppl.loop import capacity_for, drive
from langevin_ppl.scores.score import Score

__all__ = ["Generated", "generate"]

BATCH_NUMBERS = 2**20
"""Numbers in a batch of samples, unless the user says otherwise: 4 MB, of which a network's
activations are a multiple."""


class Generated(NamedTuple):
    """What `generate` returns.

    Attributes
    ----------
    samples
        Data, ``[sample, *event]``, on the host.
    is_finite
        Whether a sample is finite, ``[sample]``.
    trajectory
        Noisy data at all nodes, ``[sample, node, *event]``; None unless asked for.
    times
        Times of the nodes, ``[node]``; the clean datum, where it is the last, has ``t_min``.
    num_evaluations
        Evaluations of the score for one sample; their mean where samples differ.
    complete
        False after Ctrl-C; then there are fewer samples than asked for.
    """

    samples: np.ndarray
    is_finite: np.ndarray
    trajectory: np.ndarray | None
    times: np.ndarray
    num_evaluations: float
    complete: bool


def generate(
    rng_key: PRNGKey,
    score: Score,
    sampler: Sampler | None = None,
    num_samples: int = 1,
    *,
    condition: Any = None,
    initial: Any = None,
    start: float | None = None,
    trajectory: bool = False,
    batch_size: int | None = None,
    progress: bool = False,
) -> Generated:
    """Generate data from noise, by a learned or exact score.

    Samples are vmapped, in batches that fit in memory; a sample depends on its number and on the
    key, not on the batch that it is in. Samplers with the same arithmetic share one compiled
    program, whatever their number of steps.

    Parameters
    ----------
    rng_key
        A key, ``jax.random.key(0)``.
    score
        The score, with its process. Guidance is a score too; see `classifier_free_guidance`.
    sampler
        Such as ``dpm_solver_pp(order=2, num_steps=20)``, which is the default.
    num_samples
        How many.
    condition
        For a conditional score: one for all samples, or with a leading axis ``sample``.
    initial
        Where to start instead of noise, ``[sample, *event]``: data as they are at time ``start``,
        for example noised by ``process.perturb(key, data, start)``.
    start
        Time to start from; ``t_max`` by default.
    trajectory
        Whether to keep the samples at all nodes of the sampler.
    batch_size
        Samples that move together; by default about a million numbers.
    progress
        Show a bar (never under ``CI``).

    Returns
    -------
    Generated
        Samples on the host, with what is to be known about them.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit each other; the message says what was expected.

    Warns
    -----
    DivergenceWarning
        If samples are not finite.

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.VP(), [0.3, 0.7], [[-2.0], [2.0]], [0.1, 0.1])
    >>> sampler = lp.diffusion.dpm_solver_pp(order=2, num_steps=20)
    >>> generated = lp.diffusion.generate(jax.random.key(0), score, sampler, 1000)
    >>> generated.samples.shape, bool(abs((generated.samples > 0).mean() - 0.7) < 0.06)
    ((1000, 1), True)
    """
    rng_key = check_key(rng_key)
    sampler = dpm_solver_pp() if sampler is None else sampler
    check_score(score, "generate")
    check_sampler(sampler)
    check_counts(1, num_samples=num_samples)
    if batch_size is None:
        batch_size = max(1, BATCH_NUMBERS // max(1, math.prod(score.event_shape)))
    check_counts(1, batch_size=batch_size)
    plan = sampler.plan(score.process, start)
    initial = _check_initial(initial, start, score, num_samples)
    condition = check_condition(condition, score, num_samples)
    width = min(batch_size, num_samples)
    batches = [slice(i, i + width) for i in range(0, num_samples, width)]
    samples, paths, evaluations = [], [], []
    for number, batch in enumerate(batches):
        label = "generate" + (f" {number + 1}/{len(batches)}" if len(batches) > 1 else "")
        indices = np.minimum(np.arange(batch.start, batch.start + width), num_samples - 1)
        x = None if initial is None else initial[indices]
        given = some_conditions(condition, score, indices)
        keys = _keys(rng_key, indices)
        try:
            found, path, count = _batch(plan, score, keys, x, given, trajectory, progress, label)
        except KeyboardInterrupt:
            if not samples:
                raise
            break
        size = min(batch.stop, num_samples) - batch.start
        samples.append(found[:size])
        paths.append(path[:size] if trajectory else None)
        evaluations.append(count[:size])
    drawn = np.concatenate(samples)
    is_finite = np.all(np.isfinite(drawn), axis=tuple(range(1, drawn.ndim)))
    _warn_of(is_finite, sampler)
    return Generated(
        drawn,
        is_finite,
        np.concatenate(paths) if trajectory else None,
        plan.times,
        _mean(np.concatenate(evaluations)),
        len(drawn) == num_samples,
    )


@jax.jit
def _keys(rng_key: PRNGKey, indices: Array) -> Array:
    return jax.vmap(functools.partial(jax.random.fold_in, rng_key))(indices)


_begin = jax.jit(begin, static_argnums=(0, 1, 2))
_advance = jax.jit(advance, static_argnames=("mover", "capacity", "record"))


def _batch(
    plan: Plan,
    score: Score,
    keys: Array,
    initial: Any,
    condition: Any,
    trajectory: bool,
    progress: bool,
    label: str,
) -> tuple[np.ndarray, Any, np.ndarray]:
    """Samples of a batch and their trajectories where they are wanted, as data; evaluations."""
    process, mover, num_rows = score.process, plan.mover, len(plan.is_node)
    carry, keys = _begin(mover, process, score.event_shape, keys, initial)
    first = _read(mover, carry)
    capacity = 2 ** math.ceil(math.log2(max(num_rows, 32)))
    # Of one length for all numbers of steps up to it, and so of one program.
    rows = jax.tree.map(lambda a: in_precision(_padded(a, capacity)), plan.rows)
    capacity = min(capacity, capacity_for(first.nbytes if trajectory else 1))

    def program(carry: Any, start: int, count: int) -> tuple[Any, Any]:
        return _advance(
            mover=mover,
            score=score,
            condition=condition,
            rows=rows,
            keys=keys,
            carry=carry,
            start=start,
            count=count,
            capacity=capacity,
            record=trajectory,
        )

    outcome = drive(program, carry, num_rows, capacity, progress=progress, label=label)
    if not outcome.complete:
        raise KeyboardInterrupt("interrupted while generating")
    samples = np.asarray(process.decode(_read(mover, outcome.carry)))
    count = plan.num_evaluations
    count = jax.vmap(count)(outcome.carry) if callable(count) else count
    count = np.broadcast_to(np.asarray(count), len(samples))
    if not trajectory:
        return samples, None, count
    nodes = np.concatenate([np.asarray(first)[None], outcome.outputs[plan.is_node]])
    return samples, np.asarray(process.decode(jnp.asarray(np.moveaxis(nodes, 0, 1)))), count


def _mean(counts: np.ndarray) -> float:
    """Mean of integers, an integer where they are equal."""
    return int(counts[0]) if np.all(counts == counts[0]) else float(counts.mean())


@functools.partial(jax.jit, static_argnums=0)
def _read(mover: Mover, carry: Any) -> Array:
    return jax.vmap(mover.read)(carry)


def _padded(rows: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([rows, np.zeros((length - len(rows), *rows.shape[1:]), rows.dtype)])


def _check_initial(
    initial: Any, start: float | None, score: Score, num_samples: int
) -> Array | None:
    if initial is None:
        if start is not None:
            raise ValueError(
                "start: noise alone is the law at t_max only; pass initial= as well, for example "
                "process.perturb(key, data, start)."
            )
        return None
    expected = (num_samples, *score.event_shape)
    if np.shape(initial) != expected:
        raise ValueError(f"initial: expected shape {expected}, got {np.shape(initial)}.")
    score.process.check_data(initial, "initial")
    return jnp.asarray(score.process.encode(jnp.asarray(initial)), jnp.result_type(float))


def _warn_of(is_finite: np.ndarray, sampler: Sampler) -> None:
    bad = np.flatnonzero(~is_finite)
    if len(bad):
        warnings.warn(
            f"generate: {len(bad)} of {len(is_finite)} samples are not finite, the first of them "
            f"number {bad[0]}, with {sampler}. Take more steps, or look at the score at small "
            "times. The finite ones are generated.samples[generated.is_finite].",
            DivergenceWarning,
            stacklevel=3,
        )

"""``fit``: data and a noise process in, a score out."""

import contextlib
import dataclasses
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array, PRNGKey, check_counts, check_key, check_number
from langevin_ppl.checkpoints import EVERY
from langevin_ppl.checkpoints.asked import begin_or_go_on
from langevin_ppl.fit import as_optimizer, descend
from langevin_ppl.loop import Keeper
from langevin_ppl.scores.learned import Learned, Potential
from langevin_ppl.scores.losses import Loss, denoising
from langevin_ppl.scores.networks import Conditioning, NetworkSpec, named, residual_mlp
from langevin_ppl.scores.objective import Objective, parted
from langevin_ppl.scores.process import NoiseProcess
from langevin_ppl.scores.score import Score
from langevin_ppl.scores.supplied import Supplied, supplied

__all__ = ["Fitted", "fit"]


class Fitted(NamedTuple):
    """What `fit` returns.

    Attributes
    ----------
    score
        The score, with the moving average of the weights.
    losses
        Loss of every step, ``[step]``.
    validation_steps, validation_losses
        Steps after which the validation loss was measured, and the loss, ``[measurement]``; empty
        without validation data.
    failed_at
        Step whose loss or gradient was not finite, which is where training ended; else None.
    complete
        False after Ctrl-C; then there are fewer steps than asked for.
    """

    score: Score
    losses: np.ndarray
    validation_steps: np.ndarray
    validation_losses: np.ndarray
    failed_at: int | None
    complete: bool

    @property
    def num_steps(self) -> int:
        """Number of steps made."""
        return len(self.losses) if self.failed_at is None else self.failed_at


def fit(
    rng_key: PRNGKey,
    data: Any,
    process: NoiseProcess,
    *,
    network: Any = None,
    loss: Loss | None = None,
    optimizer: Any = None,
    num_steps: int = 10_000,
    batch_size: int | None = None,
    condition: Any = None,
    num_classes: int | None = None,
    condition_dropout: float = 0.1,
    conservative: bool = False,
    ema: float | None = 0.999,
    validation: Any = None,
    validate_every: int | None = None,
    sigma_data: float | None = None,
    checkpoint: Any = None,
    every: float = EVERY,
    progress: bool = True,
) -> Fitted:
    """Learn the score of data under a noise process.

    Parameters
    ----------
    rng_key
        A key, ``jax.random.key(0)``.
    data
        Array ``[datum, *event]``. Or batches of equal length: ``data(step)``, or an iterator,
        which gives them in turn; what can be iterated over again begins anew at its end. With
        conditions these are pairs ``(data, condition)``.
    process
        The noise process.
    network
        `residual_mlp` or `unet`; or a callable pytree of your own, such as an Equinox module,
        ``network(u, noise_level, condition)``, which gives an array of the shape of the event
        ``u``. Events are scaled to variance 1 for it, and the noise level is a quarter of the log
        of the noise.
    loss
        `denoising`, `flow_matching`, `sliced` or `target_informed`, or a callable pytree of the
        same signature.
    optimizer
        Any ``optax.GradientTransformation``, or the learning rate of the default: Adam with
        warm-up, cosine decay and gradients cut to norm 1, at 0.001.
    num_steps
        Number of steps.
    batch_size
        Rows of a batch; 128 by default, or all where there are fewer.
    condition
        What generation is to be conditioned on: labels, integers ``[datum]`` from 0, or vectors of
        floats ``[datum, ...]``, which are standardised. The label -1, and a vector of NaN alone,
        means no condition, in training and in the score that is learned.
    num_classes
        Number of labels; one more than the largest by default. Batches with labels need it.
    condition_dropout
        Share of conditions left out at random, so that the score without condition is learned too,
        as classifier-free guidance needs (Ho, Salimans, 2022, arXiv:2207.12598).
    conservative
        Whether the score is the gradient of an energy; then ``score.energy`` is known, and a step
        costs about twice as much.
    ema
        Decay of the moving average of the weights, which is shorter in the first steps; None for
        the weights of the last step.
    validation
        Fraction of the data to keep apart, or other data; with conditions a pair.
    validate_every
        Steps between two validation losses; a fiftieth of all by default.
    sigma_data
        Standard deviation of the numbers of the data, in the coordinates of the process; estimated
        by default, from the first batch where there are batches.
    checkpoint
        Folder to keep the training in. The same call goes on from there.
    every
        Seconds between two checkpoints.
    progress
        Show a bar (never under ``CI``).

    Returns
    -------
    Fitted
        The score, and the history of its losses.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit each other; the message says what was expected.
    CheckpointError
        If ``checkpoint`` holds another training.

    Warns
    -----
    DivergenceWarning
        If the loss or its gradient was not finite. The weights of the step before are kept.

    Notes
    -----
    The denoiser is preconditioned as by Karras et al., 2022, arXiv:2206.00364, for every process.
    A run depends on the key, its arguments and the machine alone, bit for bit, however often it is
    interrupted.

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> data = 3.0 + 0.5 * jax.random.normal(jax.random.key(0), (200, 1))
    >>> fitted = lp.scores.fit(
    ...     jax.random.key(1), data, lp.scores.EDM(t_max=10.0), num_steps=50,
    ...     network=lp.scores.residual_mlp(width=8, depth=1), progress=False,
    ... )
    >>> bool(abs(fitted.score.denoise(data[:1], 0.01) - data[0]).max() < 0.1)
    True
    """
    rng_key = check_key(rng_key)
    loss = denoising() if loss is None else loss
    network = residual_mlp() if network is None else network
    _check_types(process, network, loss)
    _check_numbers(num_steps, condition_dropout, ema, validate_every)
    optimizer = as_optimizer(optimizer)
    key_network, key_split, key_steps = jax.random.split(rng_key, 3)
    given = supplied(
        key_split,
        data,
        condition,
        process,
        num_classes=num_classes,
        validation=validation,
        batch_size=batch_size,
    )
    if hasattr(loss, "check"):
        loss.check(process, given.rows[1])  # pyright: ignore[reportAttributeAccessIssue]
    denoiser, spec = _untrained(key_network, given, process, network, sigma_data, conservative)
    parameters, rest = parted(denoiser.network)
    if not parameters:
        raise TypeError(
            "network: expected a pytree with arrays of floating-point weights, got "
            f"{type(network).__name__} without. Make it a jax.tree_util.Partial over its weights."
        )
    around = dataclasses.replace(denoiser, network=None)
    dropout = condition_dropout if given.conditioning is not None else 0.0
    objective = Objective.of(loss, around, rest, dropout)
    with contextlib.ExitStack() as stack:

        def keeper(asked: dict[str, str]) -> Keeper:
            folder = stack.enter_context(begin_or_go_on(checkpoint, asked, every))
            return folder.stage("steps")

        descended = descend(
            key_steps,
            objective,
            parameters,
            given.rows,
            num_steps=num_steps,
            batch_size=given.batch_size,
            read=given.read,
            optimizer=optimizer,
            ema=ema,
            validation=given.validation,
            validate_every=max(1, num_steps // 50) if validate_every is None else validate_every,
            keeper=None if checkpoint is None else keeper,
            progress=progress,
            label="fit",
        )
    best = descended.parameters if ema is None else descended.average
    learned = dataclasses.replace(denoiser, network=rest.joined(best))
    return Fitted(
        as_score(learned, given.event_shape, given.conditioning, spec),
        descended.losses,
        descended.validation_steps,
        descended.validation_losses,
        descended.failed_at,
        descended.complete,
    )


def as_score(
    learned: Learned, event_shape: tuple[int, ...], conditioning: Conditioning | None, spec: str
) -> Score:
    """Score of a learned denoiser."""
    return Score(
        learned,
        learned.process,
        event_shape,
        None if conditioning is None else conditioning.shape,
        potential=Potential(learned) if learned.conservative else None,
        spec=spec,
    )


def _untrained(
    rng_key: PRNGKey,
    given: Supplied,
    process: NoiseProcess,
    network: Any,
    sigma_data: float | None,
    conservative: bool,
) -> tuple[Learned, str]:
    """Denoiser to begin with, and what a file is to say of it."""
    mean, scale = given.size(sigma_data)
    least, most = (float(process.ratio(t)) for t in (process.t_min, process.t_max))
    if not least < scale < most:
        raise ValueError(
            f"data: their standard deviation is {scale:g}, which is not between the least and the "
            f"largest noise of {process}, {least:g} and {most:g} times the datum. Scale the data, "
            "or take another interval."
        )
    shape, conditioning = given.event_shape, given.conditioning
    record: dict[str, Any] = {"conditioning": None, "network": None}
    if conditioning is not None:
        record["conditioning"] = dataclasses.asdict(conditioning)
    if isinstance(network, NetworkSpec):
        record["network"] = named(network)
        network = network.build(rng_key, shape, conditioning)
    dtype = jnp.result_type(float)
    condition = given.rows[1]
    location = spread = None
    if condition is not None and conditioning is not None and conditioning.num_classes is None:
        location, spread = _standard(condition)
    denoiser = Learned(
        network,
        jnp.asarray(mean, dtype),
        jnp.asarray(scale, dtype),
        location,
        spread,
        process,
        bool(conservative),
    )
    one = None if condition is None else condition[0]
    event = jax.ShapeDtypeStruct(shape, dtype)
    level = jax.ShapeDtypeStruct((), dtype)
    found = jax.eval_shape(lambda u, c: network(u, c, one), event, level)
    if getattr(found, "shape", None) != shape:
        raise ValueError(
            f"network: expected an output of the shape {shape} of an event, got "
            f"{getattr(found, 'shape', type(found).__name__)}."
        )
    return denoiser, json.dumps(record)


def _standard(condition: np.ndarray) -> tuple[Array, Array]:
    """Mean and standard deviation of the conditions that are given, 1 where they are constant."""
    given = ~np.all(np.isnan(condition.reshape(len(condition), -1)), axis=1)
    known = condition[given] if given.any() else np.zeros_like(condition[:1])
    spread = np.std(known, axis=0)
    dtype = jnp.result_type(float)
    return jnp.asarray(np.mean(known, axis=0), dtype), jnp.asarray(
        np.where(spread > 0, spread, 1.0), dtype
    )


def _check_types(process: Any, network: Any, loss: Any) -> None:
    if not isinstance(process, NoiseProcess):
        raise TypeError(
            f"process: expected a noise process such as langevin_ppl.scores.VP(), got {process!r}."
        )
    if not (isinstance(network, NetworkSpec) or callable(network)) or isinstance(network, type):
        raise TypeError(
            "network: expected langevin_ppl.scores.residual_mlp(), unet() or a callable pytree, "
            f"got {network!r}."
        )
    if not callable(loss) or isinstance(loss, type):
        raise TypeError(
            f"loss: expected one such as langevin_ppl.scores.denoising(), got {loss!r}."
        )


def _check_numbers(num_steps: Any, dropout: Any, ema: Any, validate_every: Any) -> None:
    check_counts(1, num_steps=num_steps)
    if validate_every is not None:
        check_counts(1, validate_every=validate_every)
    if not (isinstance(dropout, int | float) and 0.0 <= dropout < 1.0):
        raise ValueError(
            f"condition_dropout: expected a number from 0 to below 1, got {dropout!r}."
        )
    if ema is not None:
        check_number("ema", ema, above=0.0, below=1.0)

"""``likelihood``: how probable data are under a score."""

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
    check_number,
)
from langevin_ppl.diffusion.checks import check_condition, check_score, some_conditions
from langevin_ppl.diffusion.flow import (
    at_the_end,
    encoding_log_jacobian,
    flow_to_noise,
    path_from,
    slopes,
)
from langevin_ppl.scores.score import Score

__all__ = ["Likelihood", "bits_per_dim", "likelihood"]

BATCH_NUMBERS = 2**20
"""Numbers in the derivatives of a batch, unless the user says otherwise: 4 MB, of which a network's
activations are a multiple."""

MOST_STEPS = 4096
"""Most steps with a tolerance; a datum that needs more is not finite."""


class Likelihood(NamedTuple):
    """What `likelihood` returns.

    Attributes
    ----------
    log_prob
        Log density of each datum in nats, ``[datum]``.
    bits_per_dim
        The same in bits per number, ``[datum]``; see `bits_per_dim`.
    standard_error
        Of the log density by its scatter between probes, ``[datum]``; None where it is exact.
    noise
        Noise at ``t_max`` that the flow makes of the data, ``[datum, *event]``, in the coordinates
        of the process.
    num_evaluations
        Evaluations of the score for one datum, each with derivatives in as many directions as there
        are probes, or numbers in a datum; with a tolerance the mean.
    """

    log_prob: np.ndarray
    bits_per_dim: np.ndarray
    standard_error: np.ndarray | None
    noise: np.ndarray
    num_evaluations: int


def likelihood(
    score: Score,
    x: Any,
    *,
    condition: Any = None,
    divergence: str = "exact",
    rng_key: PRNGKey | None = None,
    num_probes: int = 16,
    num_steps: int = 64,
    tolerance: float | None = None,
    bin_width: float = 1.0,
    batch_size: int | None = None,
) -> Likelihood:
    """Log density of data under a score, by the change of variables along the probability flow.

    It is the density of what a sampler of the flow makes of noise. Data are taken as if they had
    the noise of ``t_min``, in units of the data: the density of a law with structure below that
    noise depends on it. At ``t_max`` the law is ``process.prior``, as for the samplers; where the
    data are not centred, or that noise is not large, this is felt: the law is moved by about
    ``mean / ratio(t_max)`` of its standard deviations.

    Parameters
    ----------
    score
        The score, with its process.
    x
        Data, ``[datum, *event]``.
    condition
        For a conditional score: one for all data, or with a leading axis ``datum``.
    divergence
        ``"exact"``, by as many derivatives as a datum has numbers, or ``"hutchinson"``, by random
        directions of signs, which is unbiased for the log density.
    rng_key
        A key for the directions.
    num_probes
        Directions for each datum, at least 2, from whose scatter the standard error comes.
    num_steps
        Steps of the classical rule of Runge and Kutta, of order 4, uniform in
        ``log(sigma / alpha)``.
    tolerance
        Relative and absolute tolerance of adaptive steps, which then are in the place of
        ``num_steps``; single precision does not reach below 1e-6. Needs diffrax.
    bin_width
        Distance of two integers in data that were dequantised; see `bits_per_dim`.
    batch_size
        Data that are moved together.

    Returns
    -------
    Likelihood
        Log densities on the host, with what is to be known about them.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit each other; the message says what was expected.
    ImportError
        For a tolerance without diffrax.

    Warns
    -----
    DivergenceWarning
        If log densities are not finite.

    References
    ----------
    Chen et al., *Neural ordinary differential equations*, 2018, arXiv:1806.07366; Grathwohl et al.,
    *FFJORD*, 2019, arXiv:1810.01367, for random directions; Song et al., 2021, arXiv:2011.13456,
    section 4.3.

    Examples
    --------
    >>> import numpy as np, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.EDM(), [1.0], [[0.0, 0.0]], [1.0])
    >>> found = lp.diffusion.likelihood(score, np.zeros((1, 2)))
    >>> bool(abs(found.log_prob + np.log(2 * np.pi)) < 0.001), found.num_evaluations
    (True, 256)
    """
    check_score(score, "likelihood")
    x = _check_data(x, score)
    condition = check_condition(condition, score, len(x))
    check_counts(1, num_steps=num_steps)
    if tolerance is not None:
        check_number("tolerance", tolerance, above=0.0)
        _check_diffrax()
    keys = _check_divergence(divergence, rng_key, num_probes, len(x))
    size = math.prod(score.event_shape)
    directions = size if keys is None else num_probes
    if batch_size is None:
        batch_size = max(1, BATCH_NUMBERS // (size * directions))
    check_counts(1, batch_size=batch_size)
    width = min(batch_size, len(x))
    parts = []
    for start in range(0, len(x), width):
        indices = np.minimum(np.arange(start, start + width), len(x) - 1)
        given = some_conditions(condition, score, indices)
        some_keys = None if keys is None else keys[indices]
        part = _batch(
            score,
            x[indices],
            given,
            some_keys,
            tolerance,
            num_steps=num_steps,
            num_probes=num_probes,
        )
        parts.append(jax.tree.map(np.asarray, part))
    noise, log_probs, counts = (np.concatenate(a)[: len(x)] for a in zip(*parts, strict=True))
    log_prob = log_probs.mean(axis=1)
    _warn_of(log_prob)
    error = None if keys is None else log_probs.std(axis=1, ddof=1) / math.sqrt(num_probes)
    bits = bits_per_dim(log_prob, score.event_shape, bin_width=bin_width)
    return Likelihood(log_prob, bits, error, noise, round(float(counts.mean())))


def bits_per_dim(
    log_prob: Any, event_shape: tuple[int, ...], *, bin_width: float = 1.0
) -> np.ndarray:
    r"""Bits per number of a datum, :math:`-(\log p + d \log w) / (d \log 2)`.

    For data of integers, which have no density, give data to the model and to `likelihood` as
    (integer + a uniform number from 0 to 1) times ``w``, plus anything. The result is then, in the
    mean, an upper bound of the bits that the integers take.

    Parameters
    ----------
    log_prob
        Log density, nats.
    event_shape
        Shape of one datum.
    bin_width
        ``w``, the distance of two integers in the data: 2 / 256 for 256 grey values scaled to the
        interval from -1 to 1. At 1 the data are in units of the integers, or continuous.

    References
    ----------
    Theis, van den Oord, Bethge, *A note on the evaluation of generative models*, 2016,
    arXiv:1511.01844.

    Examples
    --------
    >>> import langevin_ppl as lp
    >>> lp.diffusion.bits_per_dim(0.0, (3,), bin_width=2 / 256)  # uniform on [0, 1]^3
    array(7.)
    """
    check_number("bin_width", bin_width, above=0.0)
    size = math.prod(event_shape)
    bits = -(np.asarray(log_prob, float) / size + math.log(bin_width)) / math.log(2.0)
    return np.asarray(bits)


@functools.partial(jax.jit, static_argnames=("num_steps", "num_probes"))
def _batch(
    score: Score,
    x: Array,
    condition: Any,
    keys: Any,
    tolerance: Any,
    *,
    num_steps: int,
    num_probes: int,
) -> tuple[Array, Array, Array]:
    """Noise, log density of each probe, and number of evaluations, for a batch of data."""
    process = score.process

    def one(x: Array, condition: Any, key: Any) -> tuple[Array, Array, Any]:
        probes = None
        if key is not None:
            probes = jax.random.rademacher(key, (num_probes, *x.shape), x.dtype)
        y = process.encode(x)
        if tolerance is None:
            path = path_from(process, num_steps)
            noise, log_probs = flow_to_noise(score, condition, y, path, probes)
            count: Any = len(path.time)
        else:
            noise, log_probs, count = _adaptively(score, condition, y, probes, tolerance)
        return noise, log_probs + jnp.sum(encoding_log_jacobian(process, x)), jnp.asarray(count)

    axes = 0, score.axis_of(condition), (None if keys is None else 0)
    return jax.vmap(one, axes)(x, condition, keys)


def _adaptively(
    score: Score, condition: Any, y: Array, probes: Array | None, tolerance: Array
) -> tuple[Array, Array, Array]:
    """Noise, log density and number of evaluations for one event, with steps of its own."""
    import diffrax

    process = score.process
    low, high = (math.log(process.ratio(time)) for time in (process.t_min, process.t_max))

    def field(level: Any, state: tuple[Array, Array], _: Any) -> tuple[Array, Array]:
        time = process.time_within(jnp.exp(level))
        return slopes(score, condition, state[0], time, process.alpha(time), probes)

    solver = diffrax.Tsit5()
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver,
        low,
        high,
        None,
        (y, jnp.zeros(1 if probes is None else len(probes), y.dtype)),
        stepsize_controller=diffrax.PIDController(tolerance, tolerance),
        max_steps=MOST_STEPS,
        throw=False,
    )
    assert solution.ys is not None
    arrived = solution.result == diffrax.RESULTS.successful
    end = jax.tree.map(lambda part: jnp.where(arrived, part[-1], jnp.nan), solution.ys)
    # The last stage of a step is the first one of the next; one more chooses the first step.
    return *at_the_end(process, *end), 2 + 6 * solution.stats["num_steps"]


def _check_data(x: Any, score: Score) -> Array:
    shape = np.shape(x)
    if not shape or shape[1:] != score.event_shape or not shape[0]:
        raise ValueError(
            f"x: expected data of shape [datum, *event] with events {score.event_shape}, got shape "
            f"{shape}."
        )
    score.process.check_data(x, "x")
    return jnp.asarray(x, jnp.result_type(float))


def _check_divergence(divergence: str, rng_key: Any, num_probes: int, number: int) -> Any:
    """Keys of the data, or None where the divergence is exact."""
    if divergence not in ("exact", "hutchinson"):
        raise ValueError(f"divergence: expected 'exact' or 'hutchinson', got {divergence!r}.")
    if divergence == "exact":
        return None
    if rng_key is None:
        raise ValueError(
            "rng_key: expected a key such as jax.random.key(0), because divergence='hutchinson' "
            "takes random directions, got none."
        )
    check_counts(2, num_probes=num_probes)
    return jax.random.split(check_key(rng_key), number)


def _check_diffrax() -> None:
    try:
        import diffrax  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise ImportError(
            "tolerance: adaptive steps are those of diffrax: pip install 'langevin-ppl[diffusion]'."
            " num_steps= does without."
        ) from error


def _warn_of(log_prob: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(log_prob))
    if len(bad):
        warnings.warn(
            f"likelihood: {len(bad)} of {len(log_prob)} log densities are not finite, the first of "
            f"them number {bad[0]}. Take more steps, or look at the score at small times.",
            DivergenceWarning,
            stacklevel=3,
        )

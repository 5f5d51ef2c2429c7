"""``ScoreBased``: a learned score as the prior of a model."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.custom_derivatives import SymbolicZero
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from langevin_ppl.base import Array, PRNGKey, check_counts, check_key
from langevin_ppl.diffusion import Sampler, dpm_solver_pp
from langevin_ppl.diffusion.checks import check_sampler, check_score
from langevin_ppl.diffusion.flow import (
    Path,
    encoding_log_jacobian,
    flow_to_noise,
    over_events,
    path_from,
)
from langevin_ppl.diffusion.sampler import simulate
from langevin_ppl.scores.score import Score

__all__ = ["ScoreBased"]

DENSITIES = ("flow", "energy")


class ScoreBased(dist.Distribution):
    r"""Law of the data that a score was learned of.

    It is the law of the datum with the noise of ``time``, in units of the datum. The log density is
    that of the probability flow, and its gradient, by which Langevin dynamics move, the score:

    .. math::
        \nabla_y \log p_r(y) = (D(\alpha y, t) - y) / r^2 , \qquad r = \sigma / \alpha .

    The two belong to one another but for the steps of the flow, the law at ``t_max`` and errors of
    a learned score. A kernel with a Metropolis test, such as `langevin_ppl.mala`, takes the density
    as it is, and is exact for it; one without a test sees the score alone. Second derivatives are
    those of the score. In a condition or in arrays of the score, where a model has a latent of
    them, the derivative is that of the flow.

    Parameters
    ----------
    score
        From `langevin_ppl.scores.fit`, for example. Given to the model as an argument, its arrays
        are data: another score of the same structure compiles nothing.
    condition
        For a conditional score, ``[*batch, *condition_shape]``.
    density
        ``"flow"``: normalised, with as many derivatives of the denoiser as a datum has numbers at
        each of ``4 num_steps`` evaluations. ``"energy"``: one evaluation, up to a constant, for a
        score that is the gradient of an energy (``conservative=True``).
    num_steps
        Steps of the flow; with 64 log densities are good to about 0.01 nats, see
        `langevin_ppl.diffusion.likelihood`.
    time
        Whose noise is in a value; ``t_min`` by default.
    sampler
        What draws from the prior; DPM-Solver++ of order 2 with 40 steps by default. Draws are clean
        data, and with ``time`` they are given its noise.
    validate_args
        Whether NumPyro checks values against the support.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit each other; the message says what was expected.

    Notes
    -----
    A score is least accurate where there is least noise, because the denoiser is close to its
    argument there: rounding in single precision makes an error of about ``1e-7 |y| / r^2``, and
    that of a learned score is usually much larger. The density comes from all times and is more
    accurate, and so are kernels with a Metropolis test. For kernels without one take a later
    ``time``, whose noise is a tenth of the scale of the finest structure or so.

    For a multiplicative process the support is positive, and the density that of the data.

    References
    ----------
    Song et al., *Score-based generative modeling through stochastic differential equations*, 2021,
    arXiv:2011.13456, section 4.3.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> import langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.EDM(t_min=0.02), [1.0], [[0.0]], [1.0])
    >>> def model(score, y):
    ...     x = numpyro.sample("x", lp.distributions.ScoreBased(score))
    ...     numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=y)
    >>> target = lp.target(model, score, jnp.array([1.0]))
    >>> jax.grad(target.logdensity_fn)({"x": jnp.array([0.5])})["x"].round(2)
    Array([0.], dtype=float32)
    >>> lp.distributions.ScoreBased(score).sample(jax.random.key(0), (3,)).shape
    (3, 1)
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("score", "condition", "time")
    pytree_aux_fields = ("density", "num_steps", "sampler")

    def __init__(
        self,
        score: Score,
        condition: Any = None,
        *,
        density: str = "flow",
        num_steps: int = 64,
        time: Any = None,
        sampler: Sampler | None = None,
        validate_args: bool | None = None,
    ):
        check_score(score, "ScoreBased")
        _check_density(score, density)
        check_counts(1, num_steps=num_steps)
        if time is not None:
            score.process.check_time(time)
        if sampler is not None:
            check_sampler(sampler)
        batch_shape = _check_condition(score, condition)
        self.score = score
        self.condition = None if condition is None else jnp.asarray(condition)
        self.density = density
        self.num_steps = num_steps
        self.time = time
        self.sampler = dpm_solver_pp(order=2, num_steps=40) if sampler is None else sampler
        super().__init__(batch_shape, score.event_shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Positive numbers for a multiplicative process, else all numbers."""
        number = constraints.positive if self.score.process.multiplicative else constraints.real
        return constraints.independent(number, self.event_dim) if self.event_dim else number

    def sample(self, key: PRNGKey | None, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draw from noise, by the sampler.

        Parameters
        ----------
        key
            A key.
        sample_shape
            Shape of draws, before the batch.

        Returns
        -------
        Array
            Shape ``[*sample_shape, *batch, *event]``.
        """
        shape = sample_shape + self.batch_shape
        keys = jax.random.split(check_key(key), math.prod(shape))
        condition = self.condition
        if self.batch_shape and condition is not None:
            of_condition = self.score.condition_shape or ()
            condition = jnp.broadcast_to(condition, shape + of_condition)
            condition = condition.reshape(-1, *of_condition)
        draws = _draw(self.sampler, self.score, condition, self.time, keys)
        return draws.reshape(shape + self.event_shape)

    @validate_sample
    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        """Log density, up to a constant where ``density`` is ``"energy"``.

        Parameters
        ----------
        value
            Shape ``[..., *batch, *event]``.
        intermediates
            Not used.

        Returns
        -------
        Array
            Nats, ``[..., *batch]``.
        """
        score, process = self.score, self.score.process
        value = jnp.asarray(value, jnp.result_type(float, value))
        path = path_from(process, self.num_steps, self.time)

        def one(y: Array, condition: Any) -> Array:
            return _log_density(self.density, score, condition, path, y)

        log_prob = over_events(one, score, process.encode(value), self.condition)
        axes = tuple(range(-self.event_dim, 0))
        return log_prob + jnp.sum(encoding_log_jacobian(process, value), axis=axes)


@functools.partial(jax.jit, static_argnums=0)
def _draw(sampler: Sampler, score: Score, condition: Any, time: Any, keys: Array) -> Array:
    """Data by keys ``[draw]``, with the noise of a time if there is one."""
    process, event_ndim = score.process, len(score.event_shape)
    if time is None:
        return process.decode(simulate(score, sampler, keys, condition))
    pairs = jax.vmap(jax.random.split)(keys)
    clean = simulate(score, sampler, pairs[:, 0], condition)

    def noised(key: PRNGKey, y: Array) -> Array:
        return y + process.ratio(time) * process.noise(key, y.shape, event_ndim, y.dtype)

    return process.decode(jax.vmap(noised)(pairs[:, 1], clean))


def _value(density: str, score: Score, condition: Any, path: Path, y: Array) -> Array:
    """Log density of one event with the noise at the start of a path."""
    if density == "energy":
        return -score.energy(path.alpha[0] * y, path.time[0], condition)
    return flow_to_noise(score, condition, y, path)[1][0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _log_density(density: str, score: Score, condition: Any, path: Path, y: Array) -> Array:
    """Log density whose derivative in ``y`` is the score."""
    return _value(density, score, condition, path, y)


@functools.partial(_log_density.defjvp, symbolic_zeros=True)
def _log_density_jvp(density: str, primals: Any, tangents: Any) -> tuple[Array, Array]:
    score, condition, path, y = primals
    of_score, of_condition, _, of_y = tangents
    value, change = _log_density(density, score, condition, path, y), jnp.zeros((), y.dtype)
    by_flow = of_score, of_condition, of_y
    if score.process.gaussian:
        by_flow = of_score, of_condition, jnp.zeros_like(y)
        if not isinstance(of_y, SymbolicZero):
            clean = score.denoise(path.alpha[0] * y, path.time[0], condition)
            change = jnp.sum((clean - y) / path.ratio**2 * of_y)
        if all(isinstance(leaf, SymbolicZero) for leaf in jax.tree.leaves(by_flow[:2])):
            return value, change
    if density == "energy":
        raise ValueError(
            "ScoreBased: the energy has a normaliser that depends on the condition and on the "
            "score, and is not known. Where one of them depends on a latent, take density='flow'."
        )

    def along(score: Score, condition: Any, y: Array) -> Array:
        return _value(density, score, condition, path, y)

    by_flow = jax.tree.map(_instance, by_flow)
    return value, change + jax.jvp(along, (score, condition, y), by_flow)[1]


def _instance(tangent: Any) -> Any:
    """Tangent as an array, where it is known to be zero too."""
    if not isinstance(tangent, SymbolicZero):
        return tangent
    aval: Any = tangent.aval
    return np.zeros(aval.shape, aval.dtype)


def _check_density(score: Score, density: str) -> None:
    if density not in DENSITIES:
        raise ValueError(f"density: expected one of {', '.join(DENSITIES)}, got {density!r}.")
    if density == "energy" and (score.potential is None or not score.process.gaussian):
        raise ValueError(
            "density: expected 'flow', because this score is not the gradient of an energy, got "
            "'energy'. Fit one with conservative=True."
        )


def _check_condition(score: Score, condition: Any) -> tuple[int, ...]:
    """Shape of the batch."""
    if score.condition_shape is None:
        if condition is not None:
            raise ValueError("condition: this score takes none.")
        return ()
    shape = score.condition_shape
    given = None if condition is None else jnp.shape(condition)
    if given is None or given[len(given) - len(shape) :] != shape or len(given) < len(shape):
        expected = ", ".join(["...", *map(str, shape)])
        raise ValueError(f"condition: expected shape ({expected}), got {given}.")
    return given[: len(given) - len(shape)]

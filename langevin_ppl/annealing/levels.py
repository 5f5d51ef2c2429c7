"""A model whose prior is a score, at levels of noise between its prior and its posterior."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.tree_util import Partial
from numpyro import handlers
from numpyro.primitives import Messenger

from langevin_ppl.base import Array, LogDensity, PRNGKey
from langevin_ppl.distributions import ScoreBased
from langevin_ppl.scores import NoiseProcess, Score
from langevin_ppl.targets import ModelTarget

__all__ = ["Levels", "levels_of"]


class Levels(NamedTuple):
    """A target between its prior and its posterior.

    Attributes
    ----------
    logdensity_fn
        A pytree function of an unconstrained position, whose gradient is that of a level; its value
        leaves the prior out.
    is_prior
        Which entries of the flat position are the site of the score, ``[dimension]``.
    process
        Process of the score.
    """

    logdensity_fn: LogDensity
    is_prior: np.ndarray
    process: NoiseProcess

    @staticmethod
    def at(logdensity_fn: Any, time: Array, weight: Array) -> LogDensity:
        """Log density at a time of the process, with a weight of the likelihood."""
        (_, *arrays), *rest = logdensity_fn.args
        level = jnp.stack([jnp.asarray(time), jnp.asarray(weight)])
        return Partial(logdensity_fn.func, (level, *arrays), *rest)


def levels_of(target: Any) -> Levels:
    """Levels of a model.

    Raises
    ------
    ValueError
        If the target is not of a model with one latent site whose distribution is `ScoreBased`, or
        its noise is not Gaussian.
    """
    if not isinstance(target, ModelTarget) or target.stream is not None:
        raise ValueError(
            "annealed_posterior: expected a target of a NumPyro model, its data in memory, with a "
            f"site of langevin_ppl.distributions.ScoreBased, got a {target.description}."
        )
    found = _priors(target)
    if len(found) != 1:
        raise ValueError(
            "annealed_posterior: expected one latent site whose distribution is "
            f"langevin_ppl.distributions.ScoreBased, got {len(found)} "
            f"({', '.join(found) or 'none'})."
        )
    ((name, process),) = found.items()
    if not process.gaussian:
        raise ValueError(f"annealed_posterior: expected Gaussian noise, got {process}.")
    noised = target.wrapped(_AtLevel, jnp.asarray([process.t_max, 1.0]))
    marks = {
        key: np.full(leaf.shape, key == name) for key, leaf in sorted(target.prototype.items())
    }
    return Levels(
        noised.logdensity_fn, np.concatenate([np.ravel(mark) for mark in marks.values()]), process
    )


def _priors(target: ModelTarget) -> dict[str, NoiseProcess]:
    """Processes of the latent sites that have a score, by name."""
    found: dict[str, NoiseProcess] = {}

    def look(data: Any) -> int:
        with handlers.seed(rng_seed=0), handlers.trace() as sites:
            target.call(data)
        for name, site in sites.items():
            prior = _score_based(site["fn"]) if site["type"] == "sample" else None
            if prior is not None and not site["is_observed"]:
                found[name] = prior.score.process
        return 0

    jax.eval_shape(look, target.data)
    return found


def _score_based(fn: Any) -> ScoreBased | None:
    while isinstance(fn, dist.ExpandedDistribution | dist.Independent):
        fn = fn.base_dist
    return fn if isinstance(fn, ScoreBased) else None


class _AtLevel:
    """A model at a level ``[time, weight]``, its first argument; equal for equal models."""

    def __init__(self, model: Callable[..., Any]):
        self.model = model
        level = inspect.Parameter("noise_level", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        own = inspect.signature(model).parameters.values()
        self.__signature__ = inspect.Signature([level, *own])
        self.__name__ = getattr(model, "__name__", type(model).__name__)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _AtLevel) and self.model == other.model

    def __hash__(self) -> int:
        return hash((_AtLevel, self.model))

    def __call__(self, noise_level: Array, *args: Any, **kwargs: Any) -> Any:
        with _Noise(noise_level):
            return self.model(*args, **kwargs)


class _Noise(Messenger):
    """Puts the law of datum plus noise in the place of the prior, and widens the likelihood."""

    def __init__(self, level: Array):
        super().__init__()
        self.time, self.weight = level[0], level[1]

    def process_message(self, msg: Any) -> None:
        if msg["type"] != "sample":
            return
        if msg["is_observed"]:
            msg["scale"] = self.weight if msg["scale"] is None else self.weight * msg["scale"]
        else:
            msg["fn"] = _noised(msg["fn"], self.time)


def _noised(fn: Any, time: Array) -> Any:
    """Distribution with the law of datum plus noise in the place of that of the datum."""
    if isinstance(fn, ScoreBased):
        return _Noised(fn, time)
    if isinstance(fn, dist.ExpandedDistribution):
        return _noised(fn.base_dist, time).expand(fn.batch_shape)
    if isinstance(fn, dist.Independent):
        return _noised(fn.base_dist, time).to_event(fn.reinterpreted_batch_ndims)
    return fn


class _Noised(dist.Distribution):
    """Law of a datum plus noise, in units of the datum: only its gradient is known."""

    def __init__(self, prior: ScoreBased, time: Array):
        self.prior, self.time = prior, time
        super().__init__(prior.batch_shape, prior.event_shape)

    @property
    def support(self) -> Any:
        return self.prior.support

    def sample(self, key: PRNGKey, sample_shape: tuple[int, ...] = ()) -> Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        # For shapes alone: the walkers start from noise.
        return self.prior.score.process.prior(
            key, sample_shape + self.event_shape, event_ndim=self.event_dim
        )

    def log_prob(self, value: Array) -> Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Zero, with the gradient of the log density."""
        score = self.prior.score
        y = score.process.encode(value)
        surrogate = _surrogate(score, self.prior.condition, self.time, y)
        if score.process.multiplicative:
            axes = tuple(range(-self.event_dim, 0))
            surrogate = surrogate - jnp.sum(y, axis=axes)
        return surrogate


@jax.custom_jvp
def _surrogate(score: Score, condition: Any, time: Array, y: Array) -> Array:
    """Zero for every event of ``y``; its derivative is the score of datum plus noise."""
    return jnp.zeros(y.shape[: y.ndim - len(score.event_shape)], y.dtype)


@_surrogate.defjvp
def _surrogate_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    score, condition, time, y = primals
    alpha = score.process.alpha(time)
    gradient = alpha * score(alpha * y, time, condition)
    axes = tuple(range(y.ndim - len(score.event_shape), y.ndim))
    return _surrogate(*primals), jnp.sum(gradient * tangents[3], axis=axes)

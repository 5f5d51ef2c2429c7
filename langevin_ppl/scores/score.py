"""A score with the noise process that it belongs to."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array
from langevin_ppl.scores.process import NoiseProcess, derivative

__all__ = ["Score", "unconditional"]


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Score:
    r"""Denoiser, score, noise and velocity of a noise process: four forms of one function.

    A pytree: the arrays of the denoiser, the weights of a network for example, are data of
    compiled programs. All methods take one event or any number of leading batch axes, in the
    coordinates of the process (`NoiseProcess.encode`: the logarithm for a multiplicative one).

    Parameters
    ----------
    denoiser
        ``denoiser(x, t, condition) -> E[x_0 | x_t = x]`` for one event; a callable pytree.
    process
        The noise process.
    event_shape
        Shape of one datum.
    condition_shape
        Shape of what generation is conditioned on; None where there is nothing. The label -1, and
        a vector of NaN alone, stand for no condition; see `unconditional`.
    exact
        Whether the denoiser is that of a known law, and not learned or guided.
    potential
        ``potential(x, t, condition)``, of which the denoiser is the gradient in ``x``; None where
        the denoiser is not known to be a gradient.
    spec
        How the denoiser is made again from a file, as JSON; None where it cannot be.

    Examples
    --------
    >>> import jax.numpy as jnp, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.EDM(), [1.0], [[0.0, 0.0]], [1.0])
    >>> score(jnp.array([2.0, 1.0]), 1.0)  # -x / (1 + 1)
    Array([-1. , -0.5], dtype=float32)
    """

    denoiser: Callable[[Array, Any, Any], Array]
    process: NoiseProcess
    event_shape: tuple[int, ...]
    condition_shape: tuple[int, ...] | None = None
    exact: bool = False
    potential: Callable[[Array, Any, Any], Array] | None = None
    spec: str | None = None

    def __post_init__(self) -> None:
        # A denoiser of a known law is a function of its process, with the arrays beside it.
        parts = self.denoiser, getattr(self.denoiser, "func", None)
        for process in (getattr(part, "process", None) for part in parts):
            if isinstance(process, NoiseProcess) and process != self.process:
                raise ValueError(
                    f"process: expected {process}, which the denoiser is for, got {self.process}. "
                    "Fit a score for the other process."
                )

    def tree_flatten(self) -> tuple[list[Any], Any]:
        """Arrays of the denoiser, and everything else, which is static."""
        leaves, structure = jax.tree.flatten((self.denoiser, self.potential))
        arrays = [leaf if _is_array(leaf) else None for leaf in leaves]
        rest = tuple(None if _is_array(leaf) else leaf for leaf in leaves)
        static = self.process, self.event_shape, self.condition_shape, self.exact, self.spec
        return arrays, (structure, rest, static)

    @classmethod
    def tree_unflatten(cls, static: Any, arrays: Any) -> "Score":
        """Put a score together again."""
        structure, rest, (process, event_shape, condition_shape, exact, spec) = static
        leaves = [b if a is None else a for a, b in zip(arrays, rest, strict=True)]
        denoiser, potential = jax.tree.unflatten(structure, leaves)
        return cls(denoiser, process, event_shape, condition_shape, exact, potential, spec)

    def __call__(self, x: Array, t: Any, condition: Any = None) -> Array:
        r"""Score :math:`\nabla \log p_t(x)`, shape of ``x``.

        Parameters
        ----------
        x
            Shape ``[..., *event_shape]``.
        t
            Time, a scalar or one for each leading index.
        condition
            Shape ``[..., *condition_shape]``, or one for all.

        Raises
        ------
        ValueError
            If ``x`` or ``condition`` has another shape, a concrete time is outside of the interval
            of the process, or the process has no score.
        """
        if not self.process.gaussian:
            raise ValueError(
                f"score: {self.process} has a flow and no score, because its noise is not "
                "Gaussian. Use denoise or noise."
            )
        return -self.noise(x, t, condition) / self._per_event(self.process.sigma, t, jnp.ndim(x))

    def denoise(self, x: Array, t: Any, condition: Any = None) -> Array:
        """Predict the clean datum, ``E[x_0 | x_t = x]``; arguments as of the score."""
        self.process.check_time(t)
        x = jnp.asarray(x, jnp.result_type(float, x))
        batch = self._batch(x, "x", self.event_shape)
        if self.condition_shape is None:
            if condition is not None:
                raise ValueError("condition: this score takes none.")
        elif condition is None:
            raise ValueError(
                f"condition: this score takes one of shape {self.condition_shape}, got none."
            )
        else:
            condition = jnp.asarray(condition)
            given = self._batch(condition, "condition", self.condition_shape)
            condition = jnp.broadcast_to(condition, (batch if given else ()) + self.condition_shape)
        # A time or a condition for all is not copied along the batch: what a network computes of it
        # is computed once.
        t = jnp.asarray(t, x.dtype)
        if t.ndim and t.shape != batch:
            t = jnp.broadcast_to(t, batch)
        denoise = self.denoiser
        axes = 0, (0 if t.ndim else None), self.axis_of(condition)
        for _ in batch:
            denoise = jax.vmap(denoise, axes)
        return denoise(x, t, condition)

    def noise(self, x: Array, t: Any, condition: Any = None) -> Array:
        """Predict the noise, ``(x - alpha E[x_0 | x]) / sigma``; arguments as of the score."""
        clean, ndim = self.denoise(x, t, condition), jnp.ndim(x)
        alpha = self._per_event(self.process.alpha, t, ndim)
        return (x - alpha * clean) / self._per_event(self.process.sigma, t, ndim)

    def velocity(self, x: Array, t: Any, condition: Any = None) -> Array:
        """Velocity ``dx/dt`` of the probability flow; arguments as of the score."""
        clean, ndim = self.denoise(x, t, condition), jnp.ndim(x)
        process = self.process
        alpha = self._per_event(process.alpha, t, ndim)
        sigma = self._per_event(process.sigma, t, ndim)
        rise = self._per_event(lambda t: derivative(process.alpha, t), t, ndim)
        spread = self._per_event(lambda t: derivative(process.sigma, t), t, ndim)
        return rise * clean + spread * (x - alpha * clean) / sigma

    def energy(self, x: Array, t: Any, condition: Any = None) -> Array:
        """Energy of one event: minus the log density at ``t``, up to a constant of the time.

        Raises
        ------
        ValueError
            If the score is not known to be a gradient.
        """
        if self.potential is None:
            raise ValueError(
                "energy: this score is not the gradient of an energy. Fit one with "
                "conservative=True."
            )
        self.process.check_time(t)
        t = jnp.asarray(t, jnp.result_type(float, x))
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        squares = 0.5 * jnp.sum(x**2) - alpha * self.potential(x, t, condition)
        return squares / sigma**2

    def axis_of(self, condition: Array | None) -> int | None:
        """Axis 0 where there is one condition for each event; None for one for all, and for none.

        One for all is not copied: what a network computes of it is computed once.
        """
        one = condition is None or condition.ndim == len(self.condition_shape or ())
        return None if one else 0

    def replace(self, **changes: Any) -> "Score":
        """Return a copy with other fields."""
        return dataclasses.replace(self, **changes)

    def _batch(self, x: Array, name: str, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        ndim = x.ndim - len(event_shape)
        if ndim < 0 or x.shape[ndim:] != event_shape:
            raise ValueError(
                f"{name}: expected shape (..., {', '.join(map(str, event_shape))}), got {x.shape}."
            )
        return x.shape[:ndim]

    def _per_event(self, schedule: Callable[[Any], Any], t: Any, ndim: int) -> Array:
        value = jnp.asarray(schedule(jnp.asarray(t, jnp.result_type(float))))
        return value.reshape(value.shape + (1,) * (ndim - value.ndim)) if value.ndim else value


def unconditional(condition: Any) -> Array:
    """What stands for no condition in the place of this one: the label -1, or a vector of NaN.

    Examples
    --------
    >>> import jax.numpy as jnp, langevin_ppl as lp
    >>> lp.scores.unconditional(jnp.array([3, 0]))
    Array([-1, -1], dtype=int32)
    """
    condition = jnp.asarray(condition)
    integer = jnp.issubdtype(condition.dtype, jnp.integer)
    return jnp.full_like(condition, -1 if integer else jnp.nan)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic) or not _is_static(leaf)


def _is_static(leaf: Any) -> bool:
    return callable(leaf) or isinstance(leaf, str | bool | int | float | complex | type(None))

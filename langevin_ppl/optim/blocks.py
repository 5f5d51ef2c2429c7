"""Building blocks: a tamed gradient and Langevin noise, as transformations of Optax."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from langevin_ppl.base import Array, PRNGKey, check_number
from langevin_ppl.taming import Taming

__all__ = [
    "Number",
    "add_langevin_noise",
    "add_normals",
    "as_key",
    "at",
    "check_rate",
    "check_inverse_temperature",
    "check_positive",
    "noiseless",
    "tame",
]

type Number = Any
"""A number, or a schedule: a function of the count of steps."""


class NoiseState(NamedTuple):
    """Count of steps, and the key that noise is drawn from."""

    step: Array
    key: PRNGKey


class StepState(NamedTuple):
    """Count of steps."""

    step: Array


def at(value: Number, step: Array) -> Any:
    """Value of a number or schedule at a step."""
    return value(step) if callable(value) else value


def is_known(value: Any) -> bool:
    """Whether it is a plain number, and neither a schedule nor traced."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def check_positive(name: str, value: Any) -> None:
    """Refuse what is no positive number, nor an array, which may be traced."""
    if not isinstance(value, jax.Array):
        check_number(name, value, above=0.0)


def check_rate(learning_rate: Number) -> None:
    """Refuse what is no positive number, nor a schedule, nor an array."""
    if not callable(learning_rate):
        check_positive("learning_rate", learning_rate)


def check_inverse_temperature(inverse_temperature: Number) -> None:
    """Refuse what is not positive; infinity is a temperature of zero."""
    if callable(inverse_temperature) or isinstance(inverse_temperature, jax.Array):
        return
    if not is_known(inverse_temperature) or not inverse_temperature > 0:
        raise ValueError(
            "inverse_temperature: expected a positive number, math.inf for no noise, or a "
            f"schedule, got {inverse_temperature!r}."
        )


def noiseless(inverse_temperature: Number) -> bool:
    """Whether it is known that there is no noise, so that none need be drawn."""
    return is_known(inverse_temperature) and math.isinf(inverse_temperature)  # pyright: ignore[reportArgumentType]


def as_key(key: Any) -> PRNGKey:
    """Typed key from one, from a legacy one, or from a seed, as Optax's own functions take them."""
    if isinstance(key, bool) or not isinstance(key, int | np.integer | np.ndarray | jax.Array):
        raise TypeError(
            f"key: expected a key such as jax.random.key(0), or a seed, got {type(key).__name__}."
        )
    key = jnp.asarray(key)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.key(key) if key.ndim == 0 else jax.random.wrap_key_data(key)


def add_normals(updates: Any, key: PRNGKey, scale: Any) -> Any:
    """Add independent normals of a standard deviation to every entry."""
    leaves, treedef = jax.tree.flatten(updates)
    keys = jax.random.split(key, len(leaves))
    moved = [
        leaf + jnp.asarray(scale, leaf.dtype) * jax.random.normal(own, leaf.shape, leaf.dtype)
        for leaf, own in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(treedef, moved)


def add_langevin_noise(
    learning_rate: Number, key: Any, inverse_temperature: Number = 1e10
) -> optax.GradientTransformation:
    r"""Add :math:`\sqrt{2 h / \beta} \, \xi` to updates, with standard normal :math:`\xi`.

    The last link of a chain: after a step :math:`-h \nabla f`, it makes the chain a discretised
    Langevin diffusion of the law :math:`e^{-\beta f}`.

    Parameters
    ----------
    learning_rate
        ``h``, the one of the step: a number or a schedule.
    key
        Key of the noise, or a seed. It is kept in the state; the noise of a step depends on it and
        on the count of steps alone.
    inverse_temperature
        ``beta``, a number or a schedule; ``math.inf`` for no noise, which then costs nothing.

    Returns
    -------
    optax.GradientTransformation

    Raises
    ------
    ValueError
        If a number is not positive.
    TypeError
        If ``key`` is none.

    References
    ----------
    Raginsky, Rakhlin, Telgarsky, *Non-convex learning via stochastic gradient Langevin dynamics: a
    nonasymptotic analysis* (2017), arXiv:1702.03849.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp, optax
    >>> noise = lp.optim.add_langevin_noise(0.1, key=0, inverse_temperature=1e4)
    >>> optimizer = optax.chain(optax.scale_by_adam(), optax.scale_by_learning_rate(0.1), noise)
    >>> state = optimizer.init(jnp.ones(2))
    >>> updates, state = optimizer.update(jnp.ones(2), state)
    >>> jnp.allclose(updates, -0.1, atol=0.03)
    Array(True, dtype=bool)
    """
    check_rate(learning_rate)
    check_inverse_temperature(inverse_temperature)
    key = as_key(key)
    if noiseless(inverse_temperature):
        return optax.identity()

    def init(params: Any) -> NoiseState:
        del params
        return NoiseState(jnp.zeros((), jnp.int32), key)

    def update(updates: Any, state: NoiseState, params: Any = None) -> tuple[Any, NoiseState]:
        del params
        step, key = state
        scale = jnp.sqrt(2.0 * at(learning_rate, step) / at(inverse_temperature, step))
        moved = add_normals(updates, jax.random.fold_in(key, step), scale)
        return moved, NoiseState(jnp.asarray(optax.safe_increment(step)), key)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def tame(taming: Taming, learning_rate: Number) -> optax.GradientTransformation:
    """Tame gradients, all parameters taken for one long vector.

    The first link of a chain, before the gradient is multiplied by the learning rate.

    Parameters
    ----------
    taming
        One of ``langevin_ppl.taming``, such as ``langevin_ppl.taming.normwise``, the same that
        kernels use.
    learning_rate
        That of the step, a number or a schedule: tamings bound the step, not the gradient.

    Returns
    -------
    optax.GradientTransformation
        Its ``update`` needs ``params``.

    Raises
    ------
    TypeError
        If ``taming`` is not callable.
    ValueError
        If the learning rate is not positive; from ``update``, if it is called without ``params``.

    References
    ----------
    Brosse, Durmus, Moulines, Sabanis, *The tamed unadjusted Langevin algorithm* (2019),
    arXiv:1710.05559.

    Examples
    --------
    >>> import jax.numpy as jnp, langevin_ppl as lp, optax
    >>> tamed = lp.optim.tame(lp.taming.normwise, learning_rate=0.5)
    >>> optimizer = optax.chain(tamed, optax.scale_by_learning_rate(0.5))
    >>> params = jnp.ones(2)
    >>> updates, _ = optimizer.update(jnp.full(2, 1e9), optimizer.init(params), params)
    >>> jnp.linalg.norm(updates) <= 1.0
    Array(True, dtype=bool)
    """
    if not callable(taming):
        raise TypeError(
            "taming: expected a function such as langevin_ppl.taming.normwise, got "
            f"{type(taming).__name__}."
        )
    check_rate(learning_rate)

    def init(params: Any) -> StepState:
        del params
        return StepState(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: StepState, params: Any = None) -> tuple[Any, StepState]:
        if params is None:
            raise ValueError(
                "tame: expected the parameters, by whose size gradients are tamed; got none. Call "
                "optimizer.update(gradients, state, params)."
            )
        # Tamings take the gradient of a log density, which points uphill.
        uphill = jax.tree.map(jnp.negative, updates)
        drift = taming(uphill, params, at(learning_rate, state.step))
        tamed = jax.tree.map(lambda d, u: -d.astype(u.dtype), drift, updates)
        return tamed, StepState(jnp.asarray(optax.safe_increment(state.step)))

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]

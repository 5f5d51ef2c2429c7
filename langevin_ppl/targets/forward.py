"""Gradients by forward mode, for log densities that reverse mode cannot differentiate."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.tree_util import Partial

from langevin_ppl.base import Array, Position

__all__ = ["by_forward_mode"]


@dataclasses.dataclass(frozen=True)
class _Forward:
    """A log density whose gradient is taken by forward mode, hashable; its data are arguments."""

    function: Callable[..., Array]

    def __call__(self, *args: Any) -> Array:
        *data, position = args
        return _evaluate(self.function, tuple(data), position)


def by_forward_mode(logdensity_fn: Any) -> Any:
    """Return the same log density with gradients by forward mode, as a pytree function.

    Whatever differentiates it, ``jax.grad``, ``jax.jvp`` or both, meets a rule in which the
    gradient is that of ``jax.jacfwd``: one pass through the program for each dimension.

    Parameters
    ----------
    logdensity_fn
        A ``jax.tree_util.Partial`` of a hashable function and its data.
    """
    return Partial(_Forward(logdensity_fn.func), *logdensity_fn.args)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _evaluate(function: Callable[..., Array], data: tuple[Any, ...], position: Position) -> Array:
    return function(*data, position)


@functools.partial(_evaluate.defjvp, symbolic_zeros=True)
def _evaluate_jvp(
    function: Callable[..., Array], primals: Any, tangents: Any
) -> tuple[Array, Array]:
    (data, position), (data_tangents, position_tangents) = primals, tangents

    def twice(x: Position) -> tuple[Array, Array]:
        value = function(*data, x)
        return value, value

    gradient, value = jax.jacfwd(twice, has_aux=True)(position)
    change = jnp.zeros_like(value)
    for g, t in zip(jax.tree.leaves(gradient), _leaves(position_tangents), strict=True):
        if not isinstance(t, SymbolicZero):
            change = change + jnp.sum(g * t)
    leaves, treedef = jax.tree.flatten(data)
    moved = {i: t for i, t in enumerate(_leaves(data_tangents)) if not isinstance(t, SymbolicZero)}
    if moved:  # parameters of the model, say, which JAX differentiates in its own way

        def of_moved(given: dict[int, Array]) -> Array:
            whole = [given.get(i, leaf) for i, leaf in enumerate(leaves)]
            return function(*jax.tree.unflatten(treedef, whole), position)

        change = change + jax.jvp(of_moved, ({i: leaves[i] for i in moved},), (moved,))[1]
    return value, change.astype(value.dtype)


def _leaves(tangents: Any) -> list[Any]:
    return jax.tree.leaves(tangents, is_leaf=lambda leaf: isinstance(leaf, SymbolicZero))

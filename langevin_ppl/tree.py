"""Pytrees as flat vectors: the one place where the two meet."""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from langevin_ppl.base import Array, Position

__all__ = [
    "Layout",
    "all_finite",
    "as_pytree",
    "checksum",
    "leaf_names",
    "numbered",
    "program_checksum",
    "ravel",
    "variable_names",
]


def ravel(tree: Position) -> tuple[Array, Callable[[Array], Position]]:
    """Flatten a pytree of arrays to one vector.

    Parameters
    ----------
    tree
        Pytree of floating-point arrays.

    Returns
    -------
    flat, unravel
        The vector of shape ``[dimension]``, in the order of ``jax.tree.leaves``, and the
        function back. A vector is returned as it is.
    """
    if isinstance(tree, jax.Array) and tree.ndim == 1:
        return tree, lambda flat: flat
    return ravel_pytree(tree)


class Layout(NamedTuple):
    """Where each leaf of a position lies in the flat vector; hashable.

    Attributes
    ----------
    treedef
        Structure of the position.
    leaves
        Shape and dtype of every leaf.
    """

    treedef: Any
    leaves: tuple[tuple[tuple[int, ...], Any], ...]

    @classmethod
    def of(cls, prototype: Position) -> "Layout":
        """Layout of a position, or of its ``jax.ShapeDtypeStruct`` s."""
        leaves, treedef = jax.tree.flatten(prototype)
        return cls(treedef, tuple((tuple(leaf.shape), jnp.dtype(leaf.dtype)) for leaf in leaves))

    @property
    def dimension(self) -> int:
        """Count of the numbers in one position."""
        return sum(math.prod(shape) for shape, _ in self.leaves)

    @property
    def dtype(self) -> Any:
        """Dtype of the flat vector."""
        return jnp.result_type(*(dtype for _, dtype in self.leaves))

    def ravel(self, position: Position) -> Array:
        """Flat vector of one position, shape ``[dimension]``."""
        return jnp.concatenate(
            [jnp.ravel(leaf).astype(self.dtype) for leaf in jax.tree.leaves(position)]
        )

    def unravel(self, flat: Array) -> Position:
        """Position of a flat vector; leading axes before the last one are kept.

        Leaves of a NumPy array are views of it.
        """
        parts, start = [], 0
        for shape, dtype in self.leaves:
            size = math.prod(shape)
            block = flat[..., start : start + size]
            parts.append(block.reshape(*flat.shape[:-1], *shape).astype(dtype, copy=False))
            start += size
        return jax.tree.unflatten(self.treedef, parts)


def all_finite(*arrays: Array) -> Array:
    """Whether every entry of every array is finite, as a scalar boolean."""
    finite = jnp.asarray(True)
    for array in arrays:
        finite = finite & jnp.all(jnp.isfinite(array))
    return finite


def leaf_names(tree: Any, root: str) -> list[str]:
    """Name the leaves of a pytree for humans and for ArviZ: ``root.key.0`` and so on."""
    names = []
    for path, _ in jax.tree_util.tree_leaves_with_path(tree):
        parts = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
        names.append(".".join([root, *parts] if root else parts))
    return names


def variable_names(position: Position) -> list[str]:
    """Name the leaves of a position for ArviZ: a dict by its keys, anything else below ``x``.

    A name that another leaf has already is numbered.
    """
    names: list[str] = []
    for name in leaf_names(position, "" if isinstance(position, Mapping) else "x"):
        names.append(next(n for n in numbered(name) if n not in names))
    return names


def numbered(name: str) -> Iterator[str]:
    """Yield a name, and then the same with the numbers 1, 2, ... after it."""
    yield name
    yield from (f"{name}_{i}" for i in itertools.count(1))


def as_pytree(function: Any) -> Any:
    """Function that may cross ``jit``: as it is if it is a pytree, else as structure of one."""
    is_leaf = jax.tree.structure(function) == jax.tree.structure(0)
    return jax.tree_util.Partial(function) if is_leaf else function


def checksum(*trees: Any) -> str:
    """Checksum of all bytes of all arrays, with shapes and dtypes; the same in every process."""
    total = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(trees):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.ascontiguousarray(leaf)
        total.update(f"{array.shape} {array.dtype}".encode())
        total.update(array.view(np.uint8) if array.size else b"")
    return total.hexdigest()


def program_checksum(lowered: Any) -> str:
    """Checksum of a program as JAX lowers it, in which arrays that it closes over are constants."""
    return hashlib.blake2b(lowered.as_text().encode(), digest_size=16).hexdigest()

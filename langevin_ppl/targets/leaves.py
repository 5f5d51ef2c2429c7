"""Which parts of a pytree are data (arrays) and which are code (everything else).

Data are arguments of compiled code: new data of the same shapes compile nothing. What is
static becomes part of the program and of the key under which it is cached.
"""

import functools
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array
from langevin_ppl.streams import Absent, Column

__all__ = ["Spec", "Static", "join", "split"]


class Static:
    """A value hashed by its type and content where that is possible, else by identity."""

    def __init__(self, value: Any):
        self.value = value
        self._key = _content_key(value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"Static({self.value!r})"


def _content_key(value: Any) -> Hashable:
    # The type is part of the key: 1, 1.0 and True are equal but trace to other programs.
    if isinstance(value, float):
        return type(value), value.hex()
    if isinstance(value, tuple | list):
        return type(value), *map(_content_key, value)
    if isinstance(value, dict):
        return type(value), *((_content_key(k), _content_key(v)) for k, v in value.items())
    if isinstance(value, functools.partial):
        return type(value), *map(_content_key, (value.func, value.args, value.keywords))
    if isinstance(value, jax.Array) and not jnp.issubdtype(value.dtype, jax.dtypes.extended):
        value = np.asarray(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return np.ndarray, value.shape, value.dtype.str, value.tobytes()
    try:
        hash(value)
    except TypeError:
        return type(value), id(value)
    return type(value), value


class Spec(NamedTuple):
    """All of a pytree but the values of its arrays: hashable, and enough to put it together.

    Attributes
    ----------
    treedef
        Structure of the whole.
    static
        For every leaf, `Static` or, where the leaf is an array, None.
    """

    treedef: Any
    static: tuple[Static | None, ...]


def _is_data(leaf: Any) -> bool:
    if isinstance(leaf, jax.Array | Absent | Column):
        return True
    return isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind in "biufcV"


def split(tree: Any, static: Mapping[str, Any] | None = None) -> tuple[Spec, tuple[Array, ...]]:
    """Take the arrays out of ``tree``.

    Parameters
    ----------
    tree
        Any pytree.
    static
        A tree of the same kind whose leaves are all static, kept beside it.

    Returns
    -------
    spec, arrays
        In the place of a stream's column its `Absent`.
        ``join(spec, arrays)`` is ``(tree, static)`` again.
    """
    fixed = {k: Static(v) for k, v in (static or {}).items()}
    leaves, treedef = jax.tree.flatten((tree, fixed), is_leaf=lambda leaf: isinstance(leaf, Absent))
    codes: list[Static | None] = []
    arrays: list[Array] = []
    for leaf in leaves:
        if isinstance(leaf, Static):
            codes.append(leaf)
        elif _is_data(leaf):
            codes.append(None)
            arrays.append(_as_array(leaf))
        else:
            codes.append(Static(leaf))
    return Spec(treedef, tuple(codes)), tuple(arrays)


def _as_array(leaf: Any) -> Any:
    if isinstance(leaf, Column):
        return Absent(leaf.shape, leaf.dtype, leaf.name)
    if isinstance(leaf, Absent):
        return leaf
    if isinstance(leaf, jax.Array):
        return jnp.asarray(leaf)
    with jax.ensure_compile_time_eval():  # inside a trace it would be traced as well
        return jnp.asarray(leaf)


def join(spec: Spec, arrays: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
    """Put a pytree together again, with anything in the places of its arrays."""
    remaining = iter(arrays)
    leaves = [next(remaining) if code is None else code.value for code in spec.static]
    return jax.tree.unflatten(spec.treedef, leaves)

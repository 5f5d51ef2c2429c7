"""How a model is called: its name, its arguments, and which of them are data.

Inside a `Code`, arguments are named ``"0", "1", ...`` where they are positional.
"""

import dataclasses
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.primitives import Messenger

from langevin_ppl.base import Array
from langevin_ppl.streams import Column, Stream
from langevin_ppl.targets.leaves import Spec, Static, join, split
from langevin_ppl.tree import leaf_names

__all__ = ["Arguments", "Code", "Slot", "bind", "by_name", "model_name", "stream_of"]

type Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Slot:
    """Marks the place of an array among the arguments."""

    index: int


@dataclasses.dataclass(frozen=True)
class Code:
    """A model with the static part of its arguments: hashable, the key of compiled programs.

    Attributes
    ----------
    model
        The NumPyro model.
    spec
        All of its arguments but the values of the arrays.
    """

    model: Static
    spec: Spec

    def arguments(self, arrays: tuple[Any, ...]) -> Arguments:
        """Arguments of the model, with anything in the places of the arrays."""
        dynamic, static = join(self.spec, arrays)
        named = {**dynamic, **static}
        positional = tuple(named.pop(str(i)) for i in range(len(named)) if str(i) in named)
        return positional, named

    def slots(self, count: int) -> list[tuple[str, str, int]]:
        """Argument, label and number of each of the ``count`` arrays."""
        args, kwargs = self.arguments(tuple(Slot(i) for i in range(count)))
        return [
            (name, label, leaf.index)
            for name, value in by_name(self.model.value, args, kwargs).items()
            for label, leaf in zip(leaf_names(value, name), jax.tree.leaves(value), strict=True)
            if isinstance(leaf, Slot)
        ]


def _inner(model: Any) -> Any:
    """Get the function inside handlers and partials."""
    while True:
        if isinstance(model, Messenger) and model.fn is not None:
            model = model.fn
        elif isinstance(model, functools.partial):
            model = model.func
        else:
            return model


def model_name(model: Any) -> str:
    """Name of a model for humans."""
    inner = _inner(model)
    return getattr(inner, "__name__", type(inner).__name__)


def _signature(model: Any) -> inspect.Signature | None:
    while isinstance(model, Messenger) and model.fn is not None:
        model = model.fn
    try:
        return inspect.signature(model)
    except (TypeError, ValueError):
        return None


def by_name(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by the names of the model's parameters."""
    signature = _signature(model)
    if signature is None:
        return {**{f"args.{i}": value for i, value in enumerate(args)}, **kwargs}
    named: dict[str, Any] = {}
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            named.update({f"{name}.{i}": v for i, v in enumerate(value)})
        elif kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        else:
            named[name] = value
    return named


def bind(
    model: Static, args: tuple[Any, ...], kwargs: dict[str, Any], static: tuple[str, ...]
) -> tuple[Code, tuple[Array, ...]]:
    """Split the arguments of a model into code and data."""
    try:
        named = by_name(model.value, args, kwargs)
    except TypeError as error:
        raise TypeError(
            f"lp.target: {model_name(model.value)}{_signature(model.value)} does not take these "
            f"arguments: {error}. Options of the target (static, dims, coords, init_strategy) are "
            "set by target.replace(...)."
        ) from None
    # Positional arguments come first in `named`, in their order.
    labels = {str(i): name for i, name in zip(range(len(args)), named, strict=False)}
    by_slot = {**{str(i): value for i, value in enumerate(args)}, **kwargs}
    code = {k: value for k, value in by_slot.items() if labels.get(k, k) in static}
    data = {k: value for k, value in by_slot.items() if k not in code}
    spec, arrays = split(data, {k: jax.tree.map(_concrete, value) for k, value in code.items()})
    return Code(model, spec), arrays


def stream_of(arguments: Any) -> Stream | None:
    """Get the stream whose columns are among the arguments of a model.

    Raises
    ------
    ValueError
        If there are several, whose rows would not come together.
    """
    columns = [leaf for leaf in jax.tree.leaves(arguments) if isinstance(leaf, Column)]
    streams = {id(column.stream): column.stream for column in columns}
    if len(streams) > 1:
        raise ValueError(
            f"lp.target: expected columns of one stream, got those of {len(streams)}. Rows that "
            "belong together are read together: langevin_ppl.stream(X, y, batch_size=...)."
        )
    return next(iter(streams.values()), None)


def _concrete(leaf: Any) -> Any:
    """NumPy array of a JAX array, whose every use in a trace would be traced as well."""
    is_plain = isinstance(leaf, jax.Array) and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    return np.asarray(leaf)[()] if is_plain else leaf

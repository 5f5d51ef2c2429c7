"""How a model is called: its name, its arguments, and which of them are data.

Inside a `Code`, arguments are named ``"0", "1", ...`` where they are positional.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from numpyro.primitives import Messenger

from langevin_ppl.base import Array
from langevin_ppl.streams import Absent, Column, Stream
from langevin_ppl.targets.leaves import Spec, Static, join, split
from langevin_ppl.tree import leaf_names

__all__ = [
    "Arguments",
    "Bound",
    "Code",
    "Slot",
    "bind",
    "by_name",
    "model_name",
    "settled",
    "stream_of",
]

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


class Bound(NamedTuple):
    """A model with its arguments, split into code and data.

    Attributes
    ----------
    code, arrays
        From `bind`.
    static
        Names of the arguments that are code.
    """

    code: Code
    arrays: tuple[Any, ...]
    static: tuple[str, ...]


NEEDS_VALUE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
"""What JAX raises where a model needs the value of a tracer."""

MAY_NEED_VALUE = (*NEEDS_VALUE, TypeError, AttributeError)
"""What else it may look like: ``jnp.zeros(n)``, a dictionary's key, a method of NumPy arrays."""


def settled(bound: Bound, trace: Callable[[Code, tuple[Any, ...]], Any]) -> Bound:
    """Make those arguments static without whose values the model cannot be traced.

    Which they are is found by trying: no other argument becomes static.

    Parameters
    ----------
    bound
        A model with its arguments.
    trace
        Traces the model.

    Raises
    ------
    TypeError
        If a value is needed that no argument gives.
    """
    code, arrays, declared = bound

    def tried(*names: str) -> tuple[Bound, Exception | None]:
        """Trace with these static as well, and get what that raises."""
        static, found = (*declared, *names), bound
        try:
            if names:
                found = Bound(*bind(code.model, *code.arguments(arrays), static), static)
            trace(found.code, found.arrays)
        except Exception as error:
            return found, error
        return found, None

    _, error = tried()
    if not isinstance(error, MAY_NEED_VALUE):
        return bound  # another fault is said where the model is used
    needs_value = isinstance(error, NEEDS_VALUE)

    def cures(left: Exception | None) -> bool:
        return not isinstance(left, NEEDS_VALUE) if needs_value else left is None

    slots = code.slots(len(arrays))
    # A column of a stream has no value, nor has what an outer program traces.
    unknown = {name for name, _, i in slots if isinstance(arrays[i], Absent | Tracer)}
    known = [name for name in dict.fromkeys(name for name, _, _ in slots) if name not in unknown]
    for names in (known, *([name] for name in known)):  # static arrays lack what JAX's have: x.at
        found, left = tried(*names) if names else (bound, error)
        if cures(left):
            break
    else:
        if needs_value:
            raise TypeError(_unknown_value(model_name(code.model.value), error, unknown)) from error
        raise error
    for name in tuple(names) if len(names) > 1 else ():
        others = [other for other in names if other != name]
        without, left = tried(*others)
        if cures(left):
            found, names = without, others
    return settled(found, trace)  # behind this fault there may be another


def _unknown_value(model: str, error: Exception, unknown: set[str]) -> str:
    """Say that the model needs a value which is not to be had."""
    first = str(error).strip().splitlines()[0].rstrip(".")
    hidden = ""
    if unknown:
        hidden = (
            f" It may be that of {' or '.join(map(repr, sorted(unknown)))}, which has none: it is "
            "a column of a stream, or itself traced (by jax.jit, jax.vmap, or "
            "MCMC(..., jit_model_args=True))."
        )
    return (
        f"The model {model} needs a value while it is traced ({first}), and making its arguments "
        f"static does not give it.{hidden} Where it depends on a latent site, write jnp.where or "
        "jax.lax.cond in place of `if`, int() and NumPy. Where it depends on data alone, compute "
        "it with NumPy, because jax.numpy gives no values inside a trace."
    )


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

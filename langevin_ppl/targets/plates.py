"""Subsampled plates: which they are, and a model on chosen rows of them."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.tree_util import all_leaves
from numpyro.primitives import _PYRO_STACK, Messenger, plate

from langevin_ppl.base import Array, Plate, Rows
from langevin_ppl.streams import Absent, StreamError

__all__ = ["OnRows", "Read", "subsampled"]


class Read(NamedTuple):
    """A ``numpyro.subsample`` statement whose argument is an argument of the model, as it is.

    Attributes
    ----------
    plate
        Name of the plate.
    argument
        Number of the array among the model's arrays.
    axis
        Axis of rows, negative.
    """

    plate: str
    argument: int
    axis: int


def subsampled(trace: Mapping[str, Mapping[str, Any]]) -> dict[str, Plate]:
    """Plates of a trace that have fewer rows than their size."""
    found = {}
    for name, site in trace.items():
        if site["type"] == "plate":
            size, batch_size = site["declared"] if "declared" in site else site["args"]
            if batch_size is not None and batch_size != size:
                found[name] = Plate(int(size), int(batch_size))
    return found


class _NoneSubsampled(Messenger):
    """Refuse subsampled plates in the body of a loop, which hides them from handlers around it."""

    def process_message(self, msg: Any) -> None:
        """Look at a plate."""
        if msg["type"] == "plate" and msg["args"][1] not in (None, msg["args"][0]):
            raise ValueError(
                f"The plate '{msg['name']}' is subsampled inside the body of scan or cond, where "
                "its rows cannot be chosen. Make it before (rows = numpyro.plate(...)), read the "
                "data there (with rows: x = numpyro.subsample(...)), and write `with rows:` in "
                "the body."
            )


class OnRows(Messenger):
    """Run a model on chosen rows of its subsampled plates, and on all rows of the others.

    Plates never draw indices themselves, which would take longer than the gradient.

    Parameters
    ----------
    fn
        The model.
    rows
        Rows of plates, by name.
    arrays
        The model's arrays, as it will see them: a ``numpyro.subsample`` of one of them takes the
        rows from `Rows.slices`, where they are, and any other value is read by indices.
    abstract
        Whether this is a trace of shapes alone, in which zeros can stand for the rows of a stream.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        rows: Mapping[str, Rows] | None = None,
        arrays: tuple[Array, ...] = (),
        abstract: bool = False,
    ):
        super().__init__(fn)
        self.rows = rows or {}
        self.abstract = abstract
        self.arguments = {id(array): number for number, array in enumerate(arrays)}
        self.reads: list[Read] = []
        self.asks_for_key = False

    def process_message(self, msg: Any) -> None:
        """Answer plates and subsample statements, and weigh sites by their rows."""
        if msg["type"] == "plate":
            self._fill(msg)
        elif msg["type"] == "subsample":
            self._read(msg)
        elif msg["type"] == "sample":
            self._weigh(msg)
        elif msg["type"] == "prng_key":
            self.asks_for_key = True
        elif msg["type"] == "control_flow":
            is_body = [callable(a) and all_leaves([a]) for a in msg["args"]]
            msg["args"] = tuple(
                _NoneSubsampled(a) if body else a
                for a, body in zip(msg["args"], is_body, strict=True)
            )

    def _fill(self, msg: Any) -> None:
        size, batch_size = msg["args"]
        name = msg["name"]
        if (batch_size is None or batch_size == size) and name not in self.rows:
            return
        indices = self.rows[name].indices if name in self.rows else jnp.arange(size)
        msg["declared"] = (size, batch_size)
        msg["args"] = (size, indices.shape[0])
        msg["value"] = indices

    def _read(self, msg: Any) -> None:
        event_dim = msg["kwargs"].get("event_dim")
        if event_dim is None:
            return
        if isinstance(msg["value"], Absent):
            self._read_stream(msg, event_dim)
            return
        whole = value = msg["value"]
        argument = self.arguments.get(id(whole))
        for each in [h for h in _PYRO_STACK if isinstance(h, plate)]:
            axis = each.dim - event_dim
            shape = jnp.shape(value)
            if len(shape) < -axis or shape[axis] == 1:
                continue
            if argument is not None:
                self.reads.append(Read(each.name, argument, axis))
            if each.name not in self.rows:
                continue  # all its rows; the plate checks their number
            if shape[axis] != each.size:
                raise ValueError(
                    f"numpyro.subsample in the plate '{each.name}' of {each.size} rows: expected "
                    f"that length along axis {axis}, got shape {shape}."
                )
            rows = self.rows[each.name]
            ready = None
            if argument is not None and value is whole:
                ready = rows.slices.get((argument, axis))
            value = jnp.take(value, rows.indices, axis) if ready is None else ready
        if value is not whole:
            msg["value"] = value
            msg["kwargs"] = {**msg["kwargs"], "event_dim": None}  # the plates need not look again

    def _read_stream(self, msg: Any, event_dim: int) -> None:
        column, axis = msg["value"], -msg["value"].ndim
        around = [h for h in _PYRO_STACK if isinstance(h, plate)]
        inside = [h for h in around if h.dim - event_dim == axis and h.size == column.shape[0]]
        if not inside:
            sizes = ", ".join(f"'{h.name}' of {h.size} rows" for h in around) or "none"
            raise ValueError(
                f"The column '{column.name}' of shape {column.shape} is read by numpyro.subsample("
                f"..., event_dim={event_dim}): expected to be inside a plate of {column.shape[0]} "
                f"rows, with an event_dim of {column.ndim} less the axes of plates; plates around "
                f"it are {sizes}."
            )
        name, argument = inside[0].name, self.arguments[id(column)]
        self.reads.append(Read(name, argument, axis))
        rows = self.rows.get(name)
        value = None if rows is None else rows.slices.get((argument, axis))
        if value is None:
            if not self.abstract:
                raise StreamError(
                    f"This needs all rows of the column '{column.name}', which is read from a "
                    "stream. For a part of the data that fits into memory, make a target of arrays."
                )
            value = jnp.zeros(column.shape, column.dtype)
            value = value if rows is None else jnp.take(value, rows.indices, 0)
        msg["value"] = value
        msg["kwargs"] = {**msg["kwargs"], "event_dim": None}

    def _weigh(self, msg: Any) -> None:
        for frame in msg["cond_indep_stack"]:
            rows = self.rows.get(frame.name)
            if rows is not None and rows.weights is not None:
                # The plate has multiplied by size / rows already, where they are fewer.
                share = rows.weights * (rows.indices.shape[0] / rows.size)
                column = share.reshape(-1, *(1,) * (-frame.dim - 1))
                msg["scale"] = column if msg["scale"] is None else msg["scale"] * column

"""How the rows of a batch are read.

Rows are shuffled once, and a batch is a contiguous block of the shuffled copies that starts
anywhere: reading it costs a half to a fifth of gathering as many rows. Over its random start each
row is in as many blocks as any other, so that the mean over batches is exact. Where the model
reads its data by indices of its own (``X[index]``) the same rows are gathered.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from langevin_ppl.base import Array, PRNGKey, Rows
from langevin_ppl.devices import data_mesh_of
from langevin_ppl.gradients.draws import PlateDraw
from langevin_ppl.gradients.layouts import Dealt, Together
from langevin_ppl.gradients.streamed import Unread, is_streamed, stream_reader

__all__ = [
    "Draw",
    "PlateReader",
    "Reader",
    "batch_sizes_of",
    "layout_for",
    "reader_of",
    "whole_mean",
]

BLOCK = 2**14
"""Rows that are looked at together in a pass over all the data."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["order", "copies", "probabilities", "thresholds"],
    meta_fields=["plan", "layout"],
)
@dataclasses.dataclass(frozen=True)
class PlateReader:
    """Rows of one plate, ready to be read.

    Attributes
    ----------
    order
        Numbers of the rows in the order of the copies, the first ones again at the end.
    copies
        Arrays in this order, by number of the array and axis of its rows.
    probabilities
        Of each row to be drawn, for importance sampling.
    plan
        How they are drawn.
    thresholds
        The row that 32 random bits draw is the number of thresholds that are not above them.
    layout
        Where order and copies lie.
    """

    order: Array | None
    copies: Mapping[tuple[int, int], Array]
    probabilities: Array | None
    plan: PlateDraw
    thresholds: Array | None = None
    layout: Together | Dealt = Together()

    def rows(self, batch: Array) -> Rows:
        """Read the rows of a batch that `PlateDraw.draw` made."""
        plan = self.plan
        if self.order is None:
            weights = None
            if self.probabilities is not None:
                weights = 1.0 / (plan.number * self.probabilities[batch])
            return Rows(batch, weights, {}, plan.size)
        pinned, number, layout = plan.pinned, plan.number, self.layout

        def read(array: Array, axis: int = -1) -> Array:
            return layout.block(array, axis, batch, number, pinned)

        weights = layout.weights(number, plan.free / number, pinned) if pinned else None
        slices = {key: read(copy, key[1]) for key, copy in self.copies.items()}
        return Rows(read(self.order), weights, slices, plan.size)

    def even(self, number: int) -> int:
        """As many rows, or some fewer, so that every device reads as many."""
        return number - number % self.layout.shares

    def places(self, start: Array | int, number: int) -> Array:
        """Places in the shuffled order of the rows that `span` reads."""
        return self.layout.places(start, number)

    def span(self, start: Array | int, number: int) -> Rows:
        """Rows of the shuffled order from ``start`` on, each with weight ``size / number``."""
        if self.order is None:
            return Rows(self.places(start, number), None, {}, self.plan.size)

        def read(array: Array, axis: int = -1) -> Array:
            return self.layout.block(array, axis, start, number)

        slices = {key: read(copy, key[1]) for key, copy in self.copies.items()}
        return Rows(read(self.order), None, slices, self.plan.size)

    def at(self, places: Array) -> Rows:
        """Rows at places of the shuffled order, each with weight one."""
        ones = jnp.ones(places.shape)
        if self.order is None:
            return Rows(places, ones, {}, self.plan.size)

        def read(array: Array, axis: int = -1) -> Array:
            return self.layout.at(array, axis, places)

        slices = {key: read(copy, key[1]) for key, copy in self.copies.items()}
        return Rows(read(self.order), ones, slices, self.plan.size)

    def numbers(self, places: np.ndarray) -> np.ndarray:
        """Numbers of the rows at places of the shuffled order."""
        return places if self.order is None else self.layout.numbers(self.order)[places]


type Reader = dict[str, Any]
"""Readers of all plates that are read in batches, by name: a `PlateReader` each, or the
`StreamReader` of the only one."""


@dataclasses.dataclass(frozen=True)
class Draw:
    """The batches of all plates, hashable."""

    plans: tuple[tuple[str, PlateDraw], ...]

    @classmethod
    def of(cls, reader: Reader) -> Partial:
        """``draw(rng_key, step)`` of an estimator."""
        if is_streamed(reader):
            return Partial(Unread())
        thresholds = {name: each.thresholds for name, each in reader.items()}
        return Partial(cls(tuple((name, r.plan) for name, r in reader.items())), thresholds)

    def __call__(
        self, thresholds: Mapping[str, Array | None], rng_key: PRNGKey, step: Array
    ) -> dict[str, Array]:
        """Batch of every plate; they are independent."""
        return {
            name: plan.draw(jax.random.fold_in(rng_key, number), step, thresholds[name])
            for number, (name, plan) in enumerate(self.plans)
        }


def read(reader: Reader, batch: Mapping[str, Array]) -> dict[str, Rows]:
    """Rows of every plate."""
    return {name: each.rows(batch[name]) for name, each in reader.items()}


def batch_sizes_of(owner: str, target: Any, batch_size: Any) -> dict[str, int]:
    """Batch size of every subsampled plate.

    Raises
    ------
    ValueError
        If the target has no subsampled plate, or a batch is larger than its plate.
    """
    plates = getattr(target, "plates", {})
    if not plates:
        raise ValueError(
            f"{owner}: {getattr(target, 'description', 'the target')} has no subsampled plate to "
            "read batches of. In a NumPyro model write numpyro.plate('rows', N, "
            "subsample_size=B) around the data, and read them by numpyro.subsample(X, "
            "event_dim=...); or use langevin_ppl.exact()."
        )
    if batch_size is None:
        sizes = {name: plate.batch_size for name, plate in plates.items()}
    elif isinstance(batch_size, Mapping):
        sizes = dict(batch_size)
    else:
        sizes = dict.fromkeys(plates, batch_size)
    if target.stream is not None and sizes != {n: p.batch_size for n, p in plates.items()}:
        raise ValueError(
            f"{owner}: the batch size belongs to the stream, where it is "
            f"{target.stream.batch_size}; got {batch_size!r}. Leave it out, or set it by "
            "langevin_ppl.stream(..., batch_size=)."
        )
    return _checked_sizes(owner, plates, sizes)


def _checked_sizes(owner: str, plates: Mapping[str, Any], sizes: dict[str, Any]) -> dict[str, int]:
    if set(sizes) != set(plates):
        raise ValueError(
            f"{owner}: expected a batch size for each of {', '.join(plates)}, got "
            f"{', '.join(map(str, sizes))}."
        )
    for name, size in sizes.items():
        whole = isinstance(size, int | np.integer) and not isinstance(size, bool)
        if not whole or not 1 <= size <= plates[name].size:
            raise ValueError(
                f"{owner}: expected a batch size between 1 and the {plates[name].size} rows of "
                f"the plate '{name}', got {size!r}."
            )
    return {name: int(size) for name, size in sizes.items()}


def reader_of(
    target: Any,
    sizes: Mapping[str, int],
    sampling: str,
    seed: int,
    pinned: Mapping[str, np.ndarray] | None = None,
    probabilities: Mapping[str, Array] | None = None,
) -> Reader:
    """Make the rows of all subsampled plates ready.

    Parameters
    ----------
    target
        With ``data``, ``plates``, ``row_arrays`` and ``stream``.
    sizes
        Batch size of every plate.
    sampling, seed
        As in `PlateDraw`.
    pinned
        Rows that are in every batch, by plate.
    probabilities
        Of each row to be drawn, for importance sampling, by plate.

    Raises
    ------
    ValueError
        If rows are spread over devices that would have to send them to each other.
    """
    if target.stream is not None:
        return stream_reader(target, sampling)
    layout = layout_for(target, sampling)
    readers = {}
    for place, (name, plate) in enumerate(target.plates.items()):
        # Plates of one seed would go through their epochs hand in hand.
        own = int(np.random.SeedSequence([seed, place]).generate_state(1)[0] >> 1)
        heavy = np.asarray((pinned or {}).get(name, ()), int)
        number = min(sizes[name], plate.size - len(heavy))
        plan = PlateDraw(plate.size, number, len(heavy), sampling, own)
        arrays = target.row_arrays(name)
        if isinstance(layout, Dealt):
            _check_dealt(name, plan, layout.shares, arrays)
        if sampling not in ("blocks", "epochs"):
            thresholds = of_rows = (probabilities or {}).get(name)
            if of_rows is not None:
                thresholds, of_rows = _drawable(of_rows)
            readers[name] = PlateReader(None, {}, of_rows, plan, thresholds)
            continue
        order = np.random.default_rng(own).permutation(plate.size)
        if len(heavy):
            order = np.concatenate([heavy, order[~np.isin(order, heavy)]])
        free = order[len(heavy) :]
        order = layout.order(np.concatenate([order, free[:number]]))
        copies = layout.copies(arrays, order)
        readers[name] = PlateReader(order, copies, None, plan, layout=layout)
    return readers


def layout_for(target: Any, sampling: str) -> Together | Dealt:
    """Where shuffled rows are to lie: on the devices over which those of the target are spread.

    Raises
    ------
    ValueError
        If they are spread, and single rows are drawn.
    """
    mesh = data_mesh_of(target.data)
    if mesh is None:
        return Together()
    layout = Dealt(mesh)
    if sampling not in ("blocks", "epochs"):
        raise ValueError(
            f"sampling='{sampling}' draws single rows, which the {layout.shares} devices on the "
            "mesh's axis 'data' would have to send to each other in every step. Use "
            "sampling='blocks' or 'epochs', or a mesh with the axis 'chain' alone."
        )
    return layout


def _check_dealt(name: str, plan: PlateDraw, shares: int, arrays: Mapping[Any, Any]) -> None:
    """Refuse a plate whose rows or batches devices cannot share.

    Raises
    ------
    ValueError
        If the model reads its rows by indices of its own, or the devices do not divide a batch.
    """
    if not arrays:
        raise ValueError(
            f"The model reads the rows of the plate '{name}' by indices of its own, which the "
            f"{shares} devices on the mesh's axis 'data' would have to send to each other. Read "
            "arguments of the model by numpyro.subsample(X, event_dim=...)."
        )
    if plan.number % shares:
        raise ValueError(
            f"batch_size: expected a multiple of the {shares} devices on the mesh's axis 'data' "
            f"for the plate '{name}', got {plan.number}."
        )


def _drawable(probabilities: Array) -> tuple[Array, Array]:
    """Thresholds of 32 random bits, and the probabilities that rows are drawn with by them.

    Float32 sums and uniforms would draw a row of a million with an error of a tenth.
    """
    sums = np.cumsum(np.asarray(probabilities, np.float64))
    ends = np.round(sums / sums[-1] * 2.0**32)
    inner = np.minimum(ends[:-1], 2.0**32 - 1.0)
    exact = np.diff(inner, prepend=0.0, append=2.0**32) / 2.0**32
    return jnp.asarray(inner.astype(np.uint32)), jnp.asarray(exact, jnp.result_type(float))


def whole_mean(reader: Reader, fn: Callable[[dict[str, Rows]], Any]) -> Any:
    """Mean of a function of rows over blocks that together are all the data.

    For a function that is linear in the log density on rows, that is its value on all the data.
    One plate is read block by block; several are read as a whole.
    """
    if len(reader) != 1 or is_streamed(reader):
        return fn({})  # of a stream it is refused there, because not all rows are in memory
    ((name, only),) = reader.items()
    size = only.plan.size
    number = only.even(min(BLOCK, size))
    count = -(-size // number)
    if count == 1:
        return fn({})

    def block(index: Array) -> Any:
        # The last block begins early, so that it is full, and does not count rows twice.
        start = jnp.minimum(index * number, size - number)
        rows = only.span(start, number)
        new = only.places(start, number) >= index * number
        weights = jnp.where(new, float(count), 0.0)
        return fn({name: dataclasses.replace(rows, weights=weights)})

    def add(total: Any, index: Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, block(index)), None

    shapes = jax.eval_shape(block, 0)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(add, zero, jnp.arange(count))
    return jax.tree.map(lambda leaf: leaf / count, total)

"""Where shuffled rows lie, and how a block of them is read.

On one device they lie one after the other, and a block is a slice. To several devices along the
axis ``data`` of a mesh they are dealt like cards: a block that starts anywhere has as many rows on
each of them, and nothing but sums over its rows need go from one to another.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from langevin_ppl.base import Array
from langevin_ppl.devices import DATA, place, to_host

__all__ = ["Dealt", "Together"]

BLOCK = 2**14
"""Rows that are sent to their devices together."""


@dataclasses.dataclass(frozen=True)
class Together:
    """Rows one after the other, along any axis of an array, which is negative."""

    shares: int = 1

    def order(self, numbers: np.ndarray) -> Array:
        """Numbers of the rows by place, laid out as their copies are."""
        return jnp.asarray(numbers, jnp.int32)

    def numbers(self, order: Array) -> np.ndarray:
        """Inverse of `order`."""
        return to_host(order)

    def copies(
        self, arrays: dict[tuple[int, int], Array], order: Array
    ) -> dict[tuple[int, int], Array]:
        """Copies of arrays, by number of the array and axis of its rows, in the given order."""
        return _shuffled(arrays, order)

    def block(
        self, copy: Array, axis: int, start: Array | int, number: int, pinned: int = 0
    ) -> Array:
        """Rows at the first ``pinned`` places, and at ``number`` places from ``start`` on."""
        block = jax.lax.dynamic_slice_in_dim(copy, start, number, axis)
        if pinned == 0:
            return block
        first = jax.lax.slice_in_dim(copy, 0, pinned, axis=axis)
        return jnp.concatenate([first, block], axis)

    def weights(self, number: int, weight: float, pinned: int) -> Array:
        """Weights of the rows that `block` reads: one of those pinned, and that of the others."""
        return jnp.concatenate([jnp.ones(pinned), jnp.full(number, weight)])

    def places(self, start: Array | int, number: int) -> Array:
        """Places of the rows that `block` reads, in its order, where none is pinned."""
        return start + jnp.arange(number)

    def at(self, copy: Array, axis: int, places: Array) -> Array:
        """Rows at any places."""
        return jnp.take(copy, places, axis)


@jax.jit
def _shuffled(arrays: dict[tuple[int, int], Array], order: Array) -> dict[tuple[int, int], Array]:
    return {key: jnp.take(array, order, key[1]) for key, array in arrays.items()}


@dataclasses.dataclass(frozen=True)
class Dealt:
    """Rows dealt to the devices: place ``i`` is on device ``i % shares``, at ``i // shares``.

    Arrays have rows along their first axis, and copies two axes for it, ``[share, row, ...]``.
    """

    mesh: Mesh

    @property
    def shares(self) -> int:
        """Number of devices among which rows are dealt."""
        return self.mesh.shape[DATA]

    def order(self, numbers: np.ndarray) -> Array:
        """Numbers of the rows by place, laid out as their copies are."""
        rows = self._rows(len(numbers))
        # Whole blocks, and places beyond the last one, which no batch reads.
        rows = -(-rows // self._together(rows)) * self._together(rows)
        dealt = np.resize(numbers, (rows, self.shares)).T
        return place(np.ascontiguousarray(dealt, np.int32), self.mesh, DATA)

    def _together(self, rows: int) -> int:
        return max(1, min(rows, BLOCK // self.shares))

    def numbers(self, order: Array) -> np.ndarray:
        """Inverse of `order`, with more places at the end."""
        return to_host(order).T.reshape(-1)

    def copies(
        self, arrays: dict[tuple[int, int], Array], order: Array
    ) -> dict[tuple[int, int], Array]:
        """Copies of arrays, by number of the array and axis of its rows, in the given order.

        Raises
        ------
        ValueError
            If rows are not along the first axis.
        """
        for (_, axis), array in arrays.items():
            if array.ndim + axis:
                raise ValueError(
                    f"mesh: numpyro.subsample reads rows along axis {array.ndim + axis} of an "
                    f"array of shape {array.shape}, and the axis 'data' spreads rows that come "
                    "first. Transpose it."
                )
        return {key: self._dealt(array, order) for key, array in arrays.items()}

    def _dealt(self, array: Array, order: Array) -> Array:
        if array.dtype == bool:
            return self._dealt(array.astype(jnp.uint8), order).astype(bool)
        return _deal(array, order, mesh=self.mesh, together=self._together(order.shape[1]))

    def block(
        self, copy: Array, axis: int, start: Array | int, number: int, pinned: int = 0
    ) -> Array:
        """Rows at the first ``pinned`` places, and at ``number`` places from ``start`` on.

        The devices divide ``number``; of ``pinned`` places, some more may be read.
        """
        own = number // self.shares
        # One more on every device, and then those from the first or from the second one on: slices
        # that begin at different places would be gathers.
        more = jax.lax.dynamic_slice_in_dim(copy, start // self.shares, own + 1, 1)
        late = self._late(start).reshape(-1, *(1,) * (copy.ndim - 1))
        block = jnp.where(late, more[:, 1:], more[:, :-1])
        if pinned:
            block = jnp.concatenate([copy[:, : self._rows(pinned)], block], 1)
        return _merged(block)

    def _rows(self, number: int) -> int:
        """Rows of every device that hold so many places."""
        return -(-number // self.shares)

    def _late(self, start: Array | int) -> Array:
        """Whether the first row that a device has to read is one further, ``[share]``."""
        return jnp.arange(self.shares) < start % self.shares

    def _places(self, rows: Array) -> Array:
        """Places of rows of the devices, ``[share, row]``."""
        return rows * self.shares + jnp.arange(self.shares)[:, None]

    def weights(self, number: int, weight: float, pinned: int) -> Array:
        """Weights of the rows that `block` reads: one of those pinned, and that of the others."""
        first = self._places(jnp.arange(self._rows(pinned))) < pinned
        others = jnp.full((self.shares, number // self.shares), weight)
        return _merged(jnp.concatenate([jnp.where(first, 1.0, 0.0), others], 1))

    def places(self, start: Array | int, number: int) -> Array:
        """Places of the rows that `block` reads, in its order, where none is pinned."""
        own = start // self.shares + jnp.arange(number // self.shares)
        return _merged(self._places(own + self._late(start)[:, None]))

    def at(self, copy: Array, axis: int, places: Array) -> Array:
        """Rows at any places."""
        return copy[places % self.shares, places // self.shares]


def _merged(rows: Array) -> Array:
    return rows.reshape(-1, *rows.shape[2:])


@functools.partial(jax.jit, static_argnames=("mesh", "together"))
def _deal(array: Array, order: Array, *, mesh: Mesh, together: int) -> Array:
    """Send rows ``[row, ...]`` to their devices, ``[share, row, ...]``, some of them at a time."""

    def own(rows: Array, order: Array) -> Array:
        first = jax.lax.axis_index(DATA) * rows.shape[0]

        def send(wanted: Array) -> Array:
            asked = jax.lax.all_gather(wanted, DATA) - first
            here = (asked >= 0) & (asked < rows.shape[0])
            found = rows[jnp.clip(asked, 0, rows.shape[0] - 1)]
            here = here.reshape(*here.shape, *(1,) * (rows.ndim - 1))
            return jax.lax.psum_scatter(jnp.where(here, found, 0), DATA)

        blocks: Any = jax.lax.map(send, order.reshape(-1, together))
        return blocks.reshape(1, -1, *rows.shape[1:])

    spec = PartitionSpec(DATA)
    return jax.shard_map(own, mesh=mesh, in_specs=(spec, spec), out_specs=spec)(array, order)

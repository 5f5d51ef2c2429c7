"""Draws of named variables, read block by block so that memory stays bounded."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

__all__ = ["BLOCK_BYTES", "DrawBlocks", "as_blocks", "block_length"]

BLOCK_BYTES = 2**24
"""Bytes of a block of draws of all chains, unless a single draw has more."""


class DrawBlocks(NamedTuple):
    """Draws of named variables that are read block by block.

    Attributes
    ----------
    shapes
        Shape and dtype of one draw of every variable.
    num_chains, num_draws
        Number of chains, and of draws of each chain.
    read
        ``read(stride)`` yields every ``stride``-th draw in blocks, ``{name: [chain, draw, ...]}``.
    labels
        Coordinate labels of the axes of a variable, None for an axis without.
    """

    shapes: Mapping[str, jax.ShapeDtypeStruct]
    num_chains: int
    num_draws: int
    read: Callable[[int], Iterator[Mapping[str, np.ndarray]]]
    labels: Mapping[str, Sequence[Sequence[Any] | None]] = MappingProxyType({})

    @property
    def columns(self) -> dict[str, slice]:
        """Columns of each floating-point variable where all lie side by side, flattened."""
        columns, start = {}, 0
        for name, form in self.shapes.items():
            if np.issubdtype(form.dtype, np.floating):
                columns[name] = slice(start, start + math.prod(form.shape))
                start = columns[name].stop
        return columns

    def flat(self, stride: int) -> Iterator[dict[str, np.ndarray]]:
        """Blocks of the floating-point variables, ``{name: [chain, draw, coordinate]}``."""
        for block in self.read(stride):
            yield {
                name: block[name].reshape(*block[name].shape[:2], columns.stop - columns.start)
                for name, columns in self.columns.items()
            }

    def collect(self, known: Mapping[str, np.ndarray] = MappingProxyType({})) -> dict[str, Any]:
        """All draws in memory, ``{name: [chain, draw, ...]}``; known ones are taken as they are."""
        leading = self.num_chains, self.num_draws
        whole = {
            name: known[name] if name in known else np.empty((*leading, *form.shape), form.dtype)
            for name, form in self.shapes.items()
        }
        if set(whole) <= set(known):
            return whole
        start = 0
        for block in self.read(1):
            end = start + next(iter(block.values())).shape[1]
            for name in block.keys() - known.keys():
                whole[name][:, start:end] = block[name]
            start = end
        return whole

    def name_of(self, column: int) -> str:
        """Name of a coordinate as ``arviz.summary`` writes it: ``b[1, 3]``, or with labels."""
        name, columns = next((n, c) for n, c in self.columns.items() if column < c.stop)
        shape = self.shapes[name].shape
        index = [int(i) for i in np.unravel_index(column - columns.start, shape)]
        for axis, labels in enumerate(self.labels.get(name, ())[: len(shape)]):
            if labels is not None and len(labels) == shape[axis]:
                index[axis] = labels[index[axis]]
        return f"{name}[{', '.join(map(str, index))}]" if shape else name


def block_length(
    shapes: Mapping[str, jax.ShapeDtypeStruct], num_chains: int, most_bytes: int
) -> int:
    """Draws of each chain in a block of so many bytes, at least one."""
    one = sum(math.prod(form.shape) * form.dtype.itemsize for form in shapes.values())
    return max(1, most_bytes // max(1, num_chains * one))


def as_blocks(draws: DrawBlocks | Mapping[str, Any] | np.ndarray) -> DrawBlocks:
    """Read draws that lie in memory in blocks, without a copy.

    Parameters
    ----------
    draws
        Variables ``{name: [chain, draw, ...]}``, or one array ``[chain, draw, coordinate]``. Blocks
        are returned as they are.
    """
    if isinstance(draws, DrawBlocks):
        return draws
    named = draws if isinstance(draws, Mapping) else {"x": draws}
    arrays = {name: np.asarray(values) for name, values in named.items()}
    num_chains, num_draws = next(iter(arrays.values())).shape[:2]
    shapes = {n: jax.ShapeDtypeStruct(v.shape[2:], v.dtype) for n, v in arrays.items()}
    length = block_length(shapes, num_chains, BLOCK_BYTES)

    def read(stride: int) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, num_draws, stride * length):
            block = slice(start, start + stride * length, stride)
            yield {name: values[:, block] for name, values in arrays.items()}

    return DrawBlocks(shapes, num_chains, num_draws, read)

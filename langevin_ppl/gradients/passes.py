"""A pass over all the rows of a stream, on the host."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Estimate, Position, Rows
from langevin_ppl.devices import DATA, place, place_batches, share_of, to_host
from langevin_ppl.gradients.minibatch import value_and_grad
from langevin_ppl.gradients.rows import Reader
from langevin_ppl.streams import Gathered

__all__ = ["whole_of_stream"]

PASS_ROWS = 2**16
"""Rows that are looked at together."""


@jax.jit
def _on_block(on_rows: Any, rows: dict[str, Rows], position: Position) -> Estimate:
    return value_and_grad(lambda x: on_rows(rows, x), position)


def whole_of_stream(target: Any, reader: Reader, position: Position) -> Estimate:
    """Log density and gradient from all rows of a stream: one pass.

    Each block is computed while the next one is read, and blocks are summed in float64.
    """
    on_rows = target.batch_logdensity_fn
    waiting: Estimate | None = None
    total: list[np.ndarray] | None = None
    count = 0
    position = place(position, target.mesh)
    for rows in _blocks(target, reader):
        ahead = _on_block(on_rows, rows, position)
        total = _added(total, waiting)
        waiting, count = ahead, count + 1
    total = _added(total, waiting)
    assert total is not None
    leaves, treedef = jax.tree.flatten(waiting)
    means = [jnp.asarray(t / count, leaf.dtype) for t, leaf in zip(total, leaves, strict=True)]
    return jax.tree.unflatten(treedef, means)


def _added(total: list[np.ndarray] | None, estimate: Estimate | None) -> list[np.ndarray] | None:
    if estimate is None:
        return total
    parts = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(to_host(estimate))]
    return parts if total is None else [t + p for t, p in zip(total, parts, strict=True)]


def _blocks(target: Any, reader: Reader) -> Iterator[dict[str, Rows]]:
    """Rows of a pass, weighted so that the mean over blocks is the density of all rows."""
    ((name, only),) = reader.items()
    stream, mesh = target.stream, target.mesh
    devices = 1 if mesh is None else mesh.shape.get(DATA, 1)
    number = min(PASS_ROWS, stream.num_rows) // devices * devices
    count = -(-stream.num_rows // number)
    for block in stream.passes(number, share_of(DATA, mesh)):
        valid = np.arange(len(block.indices)) < block.valid
        weights = np.where(valid, float(count), 0.0).astype(jnp.result_type(float))
        read = place_batches((block.indices, block.columns, weights), mesh, axis=0)
        rows = only.rows(Gathered(*read[:2]))
        yield {name: dataclasses.replace(rows, weights=jnp.asarray(read[2]))}

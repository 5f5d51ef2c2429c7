"""Batches of a stream, brought to the steps of a run."""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from langevin_ppl.base import Array, GradientEstimator
from langevin_ppl.devices import DATA, place_batches, share_of
from langevin_ppl.streams import Feeder, Gathered, Stream

__all__ = ["Feed", "Supply", "draws_per_step"]

FEED_BYTES = 2**22
"""Most bytes of the batches that are brought at a time; two such feeds are in memory."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["batches", "first"],
    meta_fields=["plate", "per_step"],
)
@dataclasses.dataclass(frozen=True)
class Feed:
    """Batches for some steps.

    Attributes
    ----------
    batches
        Rows of ``per_step`` batches for each step, ``[batch, row, ...]``.
    first
        Number of the first step.
    plate
        Name of their plate.
    per_step
        Batches that a step draws.
    """

    batches: Gathered
    first: Array
    plate: str
    per_step: int

    def drawn(self, step: Array, call: int) -> dict[str, Gathered]:
        """Batch of the ``call``-th draw of a step."""
        place = (step - self.first) * self.per_step + call
        take = functools.partial(jax.lax.dynamic_index_in_dim, index=place, keepdims=False)
        return {self.plate: jax.tree.map(take, self.batches)}


class Supply(NamedTuple):
    """What a run needs to know of a stream.

    Attributes
    ----------
    stream
        The stream.
    plate
        Name of the plate that it is read in.
    per_step
        Batches that a step draws.
    offset
        Batches of the stream that came before the first step.
    mesh
        Devices that the rows are put on.
    """

    stream: Stream
    plate: str
    per_step: int
    offset: int
    mesh: Mesh | None = None

    def fitted(self, plan: Any, thinning: int) -> Any:
        """Plan with chunks for which batches fit into a feed."""
        row_bytes = sum(
            math.prod(column.shape[1:]) * np.dtype(column.dtype).itemsize
            for column in self.stream.columns
        )
        draw_bytes = thinning * self.per_step * self.stream.batch_size * (row_bytes + 8)
        most = 2 ** int(math.log2(max(1, FEED_BYTES // draw_bytes)))
        return dataclasses.replace(plan, capacity=min(plan.capacity, most))

    def shapes(self, steps: int) -> Feed:
        """Shapes of a feed, to compile for."""
        leading = (steps * self.per_step, self.stream.batch_size)
        columns = tuple(
            jax.ShapeDtypeStruct((*leading, *column.shape[1:]), column.dtype)
            for column in self.stream.columns
        )
        indices = jax.ShapeDtypeStruct(leading, jnp.result_type(int))
        return Feed(Gathered(indices, columns), 0, self.plate, self.per_step)  # pyright: ignore

    def first(self) -> dict[str, Gathered]:
        """The first batch of all, for the states that chains begin in."""
        gathered = self.stream.gather(0, 1, share_of(DATA, self.mesh))
        batch = jax.tree.map(lambda rows: rows[0], gathered)
        return {self.plate: self._put(batch, axis=0)}

    def _put(self, gathered: Gathered, axis: int = 1) -> Gathered:
        if self.mesh is None:
            return jax.device_put(gathered)
        return place_batches(gathered, self.mesh, axis)

    def after(self, steps: int) -> "Supply":
        """Get the supply of the steps that come after so many."""
        return self._replace(offset=self.offset + steps * self.per_step)

    @contextlib.contextmanager
    def feeds(self, capacity: int, thinning: int) -> Iterator[Callable[[int], Feed]]:
        """Get the feed of a draw's number, while the next one is read.

        Parameters
        ----------
        capacity
            Draws that a feed is for.
        """
        steps = capacity * thinning
        unit, share = steps * self.per_step, share_of(DATA, self.mesh)
        feeder = Feeder(self.stream, unit, self.offset, self._put, share)
        latest: list[Any] = [-1, None]

        def feed(draw: int) -> Feed:
            number = draw // capacity
            if latest[0] != number:
                latest[1] = None  # before the next one is there, so that two are in memory
                latest[:] = number, feeder.get(number)
            return Feed(latest[1], number * steps, self.plate, self.per_step)  # pyright: ignore

        with feeder:
            yield feed


def draws_per_step(
    build: Callable[..., Any],
    source: GradientEstimator,
    states: Any,
    parameters: Mapping[str, Any],
    batch: Any,
) -> int:
    """Count the batches that a step of a kernel draws, without running it.

    Parameters
    ----------
    build
        ``build(source, parameters)`` makes the algorithm.
    states
        Of all chains, leading axis ``chain``.
    batch
        One batch.
    """
    calls = itertools.count()

    def step(state: Any, rng_key: Array, batch: Any) -> Any:
        def drawn(rng_key: Array, step: Array) -> Any:
            next(calls)
            return batch

        algorithm = build(dataclasses.replace(source, draw=drawn), parameters)
        return algorithm.step(rng_key, state)

    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), states)
    jax.eval_shape(step, state, jax.random.key(0), batch)
    return next(calls)

"""Rows that a stream brings: they are not in memory, and batches come from outside."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from langevin_ppl.base import Array, GradientEstimator, PRNGKey, Rows
from langevin_ppl.gradients.draws import PlateDraw
from langevin_ppl.streams import Gathered, StreamError
from langevin_ppl.tree import Layout

__all__ = ["StreamReader", "Unread", "from_sample", "is_streamed", "stream_reader"]

SAMPLED, SAMPLED_PER_DIMENSION = 2**14, 100
"""Least rows of a stream that are held in memory, to look for a mode and to measure the noise on,
at all and for each dimension."""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["sample"], meta_fields=["plan", "places"]
)
@dataclasses.dataclass(frozen=True)
class StreamReader:
    """Rows of the plate that a stream is read in.

    Attributes
    ----------
    sample
        Some of its rows, from all over the data, in memory.
    plan
        Sizes of the plate and of a batch.
    places
        Of each of the model's reads, the number of the stream's column.
    """

    sample: Rows
    plan: PlateDraw
    places: tuple[tuple[tuple[int, int], int], ...]

    def rows(self, batch: Gathered) -> Rows:
        """Rows of a batch that the stream has read."""
        slices: Any = {key: batch.columns[place] for key, place in self.places}
        return Rows(jnp.asarray(batch.indices), None, slices, self.plan.size)


def stream_reader(target: Any, sampling: str) -> dict[str, StreamReader]:
    """Make a stream's rows ready; the order in which they come is the stream's own.

    Raises
    ------
    ValueError
        If another order is asked for.
    """
    if sampling != "blocks":
        raise ValueError(
            "gradient: the order of rows belongs to the stream; expected sampling to be left out, "
            f"got {sampling!r}. Set it by langevin_ppl.stream(..., seed=, shuffle=, window=)."
        )
    ((name, plate),) = target.plates.items()
    dimension = Layout.of(target.prototype).dimension
    (sample,) = target.some_rows(max(SAMPLED, SAMPLED_PER_DIMENSION * dimension)).values()
    columns = {column.name: column.number for column in target.stream.columns}
    places = tuple((key, columns[absent.name]) for key, absent in target.row_arrays(name).items())
    plan = PlateDraw(plate.size, plate.batch_size, 0, "stream", 0)
    return {name: StreamReader(sample, plan, places)}


def is_streamed(reader: Mapping[str, Any]) -> bool:
    """Whether the rows come from a stream."""
    return any(isinstance(each, StreamReader) for each in reader.values())


@dataclasses.dataclass(frozen=True)
class Unread:
    """Stands for the draw of a batch that has to come from outside, hashable."""

    def __call__(self, rng_key: PRNGKey, step: Array) -> Any:
        """Refuse."""
        raise StreamError(
            "The batches of a stream are read while langevin_ppl.sample runs, which brings them "
            "into its steps. In a loop of your own, read them by stream.gather(position, count) "
            "and call estimator.estimate({plate: batch}, position, memory)."
        )


@dataclasses.dataclass(frozen=True)
class _FromSample:
    """Batches of the rows in memory, with replacement."""

    name: str

    def __call__(self, reader: StreamReader, rng_key: PRNGKey, step: Array) -> dict[str, Gathered]:
        number = reader.sample.indices.shape[0]
        chosen = jax.random.randint(rng_key, (reader.plan.number,), 0, number)
        slices = reader.sample.slices
        columns = {place: jnp.take(slices[key], chosen, 0) for key, place in reader.places}
        return {
            self.name: Gathered(
                reader.sample.indices[chosen],  # pyright: ignore[reportArgumentType]
                tuple(columns[place] for place in sorted(columns)),  # pyright: ignore[reportArgumentType]
            )
        }


def from_sample(estimator: GradientEstimator, reader: Mapping[str, Any]) -> GradientEstimator:
    """Estimator with batches of the rows that are in memory, to measure its noise by."""
    if not is_streamed(reader):
        return estimator
    ((name, only),) = reader.items()
    return dataclasses.replace(estimator, draw=jax.tree_util.Partial(_FromSample(name), only))

"""What a score is trained on: arrays or batches, checked, in the coordinates of the process."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import PRNGKey, check_counts, check_number
from langevin_ppl.scores.networks import Conditioning
from langevin_ppl.scores.process import NoiseProcess

__all__ = ["Supplied", "supplied"]

BATCH_SIZE = 128
"""Rows of a batch by default, where there are as many."""


class Supplied(NamedTuple):
    """Rows to train on, as pairs of data and conditions.

    Attributes
    ----------
    rows
        Arrays ``[row, ...]``; where batches are read, the first of them.
    read
        ``read(step)`` gives a batch; None where all rows are in memory.
    validation
        Rows kept apart, or None.
    batch_size
        Rows of a batch.
    conditioning
        What the conditions are; None without.
    """

    rows: tuple[np.ndarray, np.ndarray | None]
    read: Callable[[int], Any] | None
    validation: tuple[np.ndarray, np.ndarray | None] | None
    batch_size: int
    conditioning: Conditioning | None

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return self.rows[0].shape[1:]

    def size(self, sigma_data: float | None) -> tuple[np.ndarray, float]:
        """Mean of the data, shape of the event, and standard deviation of their numbers."""
        x = self.rows[0]
        mean = np.mean(x, axis=0, dtype=float)
        if sigma_data is not None:
            check_number("sigma_data", sigma_data, above=0.0)
            return mean, float(sigma_data)
        # Block by block, because the data may take up most of the memory.
        blocks = (x[i : i + 1024] for i in range(0, len(x), 1024))
        scale = np.sqrt(sum(float(np.sum((block - mean) ** 2)) for block in blocks) / x.size)
        if not scale > 1e-6 * np.max(np.abs(mean), initial=1e-30):
            raise ValueError(
                "data: expected data that differ, got a standard deviation of "
                f"{scale:g}. Pass more of them, or their sigma_data."
            )
        return mean, scale


def supplied(
    rng_key: PRNGKey,
    data: Any,
    condition: Any,
    process: NoiseProcess,
    *,
    num_classes: int | None,
    validation: Any,
    batch_size: int | None,
) -> Supplied:
    """Check what was given, and put it into the coordinates of the process.

    Raises
    ------
    TypeError, ValueError
        If something does not fit; the message says what was expected.
    """
    if num_classes is not None:
        check_counts(1, num_classes=num_classes)
    rows = _Rows(process, num_classes)
    if _is_host(data):
        if condition is not None:
            raise ValueError(
                "condition: expected none beside an iterator; let it give pairs (data, condition)."
            )
        batches = _Batches(data, rows)
        if batch_size not in (None, len(batches.first[0])):
            raise ValueError(
                f"batch_size: the iterator's batches have {len(batches.first[0])} rows, got "
                f"{batch_size}. Leave it out."
            )
        kept = None
        if validation is not None:
            if isinstance(validation, int | float):
                raise ValueError(
                    "validation: expected data, because of an iterator's data no fraction can be "
                    f"kept apart, got {validation!r}."
                )
            kept = rows.pair(validation, "validation")
        size = len(batches.first[0])
        return Supplied(batches.first, batches, kept, size, rows.conditioning)
    pair = rows.of(data, condition, "data")
    kept = None
    if isinstance(validation, int | float) and not isinstance(validation, bool):
        pair, kept = _split(rng_key, pair, validation)
    elif validation is not None:
        kept = rows.pair(validation, "validation")
    size = len(pair[0])
    batch_size = min(BATCH_SIZE, size) if batch_size is None else batch_size
    check_counts(1, batch_size=batch_size)
    if batch_size > size:
        raise ValueError(
            f"batch_size: expected at most the {size} rows that there are to train on, got "
            f"{batch_size}."
        )
    return Supplied(pair, None, kept, batch_size, rows.conditioning)


def _is_host(data: Any) -> bool:
    """Whether these are batches, and not an array or what becomes one."""
    arrays = isinstance(data, list | tuple) or hasattr(data, "__array__")
    return not arrays and (callable(data) or hasattr(data, "__iter__"))


def _split(rng_key: PRNGKey, pair: Any, fraction: float) -> tuple[Any, Any]:
    check_number("validation", fraction, above=0.0, below=1.0)
    size = len(pair[0])
    count = max(1, round(fraction * size))
    if count >= size:
        raise ValueError(
            f"validation: a fraction of {fraction:g} leaves none of the {size} data to train on."
        )
    order = np.asarray(jax.random.permutation(rng_key, size))
    return tuple(
        jax.tree.map(lambda rows: rows[part], pair)  # noqa: B023
        for part in (np.sort(order[count:]), np.sort(order[:count]))
    )  # pyright: ignore[reportReturnType]


class _Rows:
    """Makes rows of what is given; from the first it learns what the others have to be."""

    def __init__(self, process: NoiseProcess, num_classes: int | None):
        self.process = process
        self.num_classes = num_classes
        self.event_shape: tuple[int, ...] | None = None
        self.conditioning: Conditioning | None = None

    def pair(self, given: Any, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows of data, or of a pair of data and conditions where there are conditions."""
        paired = isinstance(given, tuple) and len(given) == 2
        x, condition = given if paired else (given, None)
        if self.event_shape is not None and (self.conditioning is not None) != paired:
            wanted = "a pair (data, condition)" if self.conditioning else "data alone"
            raise ValueError(f"{name}: expected {wanted}, as in the first batch or the data.")
        return self.of(x, condition, name)

    def of(self, data: Any, condition: Any, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows of data and conditions."""
        x = _numbers(data, name)
        if x.ndim < 1 or len(x) == 0:
            raise ValueError(f"{name}: expected shape [datum, *event], got {x.shape}.")
        if self.event_shape is not None and x.shape[1:] != self.event_shape:
            raise ValueError(
                f"{name}: expected events of shape {self.event_shape}, got {x.shape[1:]}."
            )
        self.process.check_data(x, name)
        encoded = np.asarray(self.process.encode(x), jnp.result_type(float))
        if not np.all(np.isfinite(encoded)):
            raise ValueError(f"{name}: expected numbers within the range of {encoded.dtype}.")
        first, self.event_shape = self.event_shape is None, x.shape[1:]
        return encoded, None if condition is None else self._conditions(condition, len(x), first)

    def _conditions(self, condition: Any, count: int, first: bool) -> np.ndarray:
        given = np.asarray(condition)
        labels = given.dtype.kind in "iub"
        if given.shape[:1] != (count,) or (labels and given.ndim != 1):
            raise ValueError(
                f"condition: expected a label (an integer) or a vector (of floats) for each of the "
                f"{count} data, got shape {given.shape} of {given.dtype}."
            )
        if not labels:
            given = _numbers(given, "condition").astype(jnp.result_type(float))
            numbers = given.reshape(count, -1)
            absent = np.all(np.isnan(numbers), axis=1)
            if not np.all(np.isfinite(numbers[~absent])):
                raise ValueError(
                    "condition: expected finite numbers or, where there is no condition, NaN alone "
                    "in a row."
                )
            found = Conditioning(given.shape[1:])
        else:
            given = given.astype(np.int32)
            found = Conditioning((), self._classes(given, first))
        if first:
            self.conditioning = found
        elif found != self.conditioning:
            raise ValueError(f"condition: expected {self.conditioning}, got {found}.")
        return given

    def _classes(self, labels: np.ndarray, first: bool) -> int:
        known = self.num_classes
        if known is None and not first and self.conditioning is not None:
            known = self.conditioning.num_classes
        known = int(labels.max()) + 1 if known is None else known
        if labels.min() < -1 or labels.max() >= max(known, 1):
            raise ValueError(
                f"condition: expected labels from 0 to {known - 1}, or -1 for none, got "
                f"{labels.min()} to {labels.max()}. Pass num_classes= if there are more."
            )
        return max(known, 1)


def _numbers(data: Any, name: str) -> np.ndarray:
    try:
        x = np.asarray(data)
        return x if x.dtype.kind == "f" and x.dtype.itemsize > 2 else x.astype(float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected an array of numbers ({error}).") from error


class _Batches:
    """Batches of the host by the number of the step, from a function or by iterating."""

    def __init__(self, source: Any, rows: _Rows):
        self.source = source
        self.rows = rows
        self.position = 0
        self.iterator: Iterator[Any] | None = None if callable(source) else iter(source)
        self.first = rows.pair(self._next(0), "data")

    def _next(self, step: int) -> Any:
        if self.iterator is None:
            return self.source(step)
        try:
            return next(self.iterator)
        except StopIteration:
            if not hasattr(self.source, "__next__"):
                # What can be iterated over again begins anew.
                self.iterator = iter(self.source)
                for batch in self.iterator:
                    return batch
        raise ValueError(
            f"data: the iterator ended after {step} batches. Pass one that goes on, a function of "
            "the number of the step, or fewer num_steps."
        )

    def __call__(self, step: int) -> Any:
        """Batch of a step; an iterator is read up to it."""
        if step == 0:
            self.position = 1
            return self.first
        if self.iterator is None:
            self.position = step
        self.position = max(self.position, 1)
        while True:
            given = self._next(self.position)
            self.position += 1
            if self.position > step:
                break
        batch = self.rows.pair(given, "data")
        if len(batch[0]) != len(self.first[0]):
            raise ValueError(
                f"data: expected batches of {len(self.first[0])} rows like the first, got "
                f"{len(batch[0])} in step {step}. Drop the last one of an epoch."
            )
        return batch

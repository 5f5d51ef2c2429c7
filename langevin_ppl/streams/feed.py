"""Rows are gathered while the device computes on those before."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

from langevin_ppl.streams.sources import Gathered
from langevin_ppl.streams.stream import Stream

__all__ = ["Feeder"]


class Feeder[T]:
    """Units of batches of a stream, the next one gathered ahead by one thread.

    At most two units are in memory: the one that was got last, while its receiver keeps it, and
    the next one.

    Parameters
    ----------
    stream
        Where the batches are read from.
    unit
        Batches of a unit.
    offset
        Position in the run of the first batch of unit 0.
    put
        What is to be made of a unit, for instance ``jax.device_put``; called in the thread.
    share
        Share ``(k, n)`` of every batch's rows, as in `Stream.gather`.

    Examples
    --------
    >>> import numpy as np
    >>> from langevin_ppl.streams import Feeder, stream
    >>> rows = stream(np.arange(6.0), batch_size=2, shuffle=False)
    >>> with Feeder(rows, unit=2, offset=0, put=lambda gathered: gathered.columns[0]) as feeder:
    ...     print(feeder.get(0).tolist(), feeder.get(1).tolist())
    [[0.0, 1.0], [2.0, 3.0]] [[4.0, 5.0], [0.0, 1.0]]
    """

    def __init__(
        self,
        stream: Stream,
        unit: int,
        offset: int,
        put: Callable[[Gathered], T],
        share: tuple[int, int] = (0, 1),
    ):
        self._stream = stream
        self._unit = unit
        self._offset = offset
        self._put = put
        self._share = share
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="langevin_ppl_feeder")
        self._ahead: tuple[int, Future[T]] | None = None
        self._closed = False

    def get(self, number: int) -> T:
        """What ``put`` made of batches ``offset + [number * unit, (number + 1) * unit)``.

        Raises
        ------
        StreamError
            Whatever was raised while this unit was gathered.
        RuntimeError
            If the feeder is closed.
        """
        ready = self._request(number)
        self._ahead = None  # so that a unit that failed is tried again when it is asked for
        result = ready.result()
        self._ahead = number + 1, self._request(number + 1)
        return result

    def _request(self, number: int) -> Future[T]:
        if self._ahead is not None and self._ahead[0] == number:
            return self._ahead[1]
        if self._closed:
            raise RuntimeError("The feeder is closed; make a new one.")
        return self._thread.submit(self._made, number)

    def _made(self, number: int) -> T:
        position = self._offset + number * self._unit
        return self._put(self._stream.gather(position, self._unit, self._share))

    def close(self) -> None:
        """Stop the thread; what it has begun is finished, what it has not is given up."""
        self._closed, self._ahead = True, None
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

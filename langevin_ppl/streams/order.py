"""Which rows of a stream come when."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

__all__ = ["Order", "Place", "Run", "default_block_size", "default_window", "generator"]

BLOCK_ROWS = 2**8
"""Rows of a block by default: enough for a read to be a copy rather than a seek."""

WINDOW_ROWS = 2**16
"""Rows of a window by default; reading and shuffling so many takes a few milliseconds."""

WINDOW_BATCHES = 16
"""Batches that a window holds at least by default."""

WINDOW_BYTES = 2**27
"""Memory of a window by default at most; two of them are held at a time."""

WRITTEN_DOWN = 2**10
"""Blocks whose order is written down, which is then faster."""

ROUNDS = 12
"""Rounds of the Feistel network, as many as minibatches of data in memory use."""


class Place(NamedTuple):
    """Where a batch is: its epoch, its window of that epoch, its number in that window."""

    epoch: int
    window: int
    batch: int


class Run(NamedTuple):
    """Consecutive batches of one window.

    Attributes
    ----------
    epoch, window
        Of the window.
    batches
        Which batches of the window.
    places
        Where they are among the batches that were asked for.
    """

    epoch: int
    window: int
    batches: slice
    places: slice


@dataclasses.dataclass(frozen=True)
class Order:
    r"""The order of rows that lie in a storage where contiguous rows are cheap to read.

    The rows are cut into blocks of ``block_size`` as they are stored. In every epoch the blocks
    are put in random order, the sequence is read cyclically from a random row on, and cut into
    windows of whole batches, as many rows as ``window`` blocks at most. The rows of a window are
    shuffled, and dealt to its batches. What does not fill a batch, ``num_rows % batch_size``
    rows, is left out of an epoch; since the sequence begins anywhere, that is any row with the
    same probability. Every row is at each place of an epoch with the same probability, so that
    the mean over batches is exact.

    All of it is a function of the seed and of the numbers of epoch and window: nothing is stored,
    and any batch can be had at a cost that does not depend on the number of rows.

    Attributes
    ----------
    num_rows, batch_size
        ``N`` and ``B``.
    block_size
        Rows of a block, ``R``.
    window
        Blocks of a window, ``W``. The windows of an epoch are made equally long, so that each has
        this many blocks or, in an epoch of few windows, down to half as many.
    seed
        Of everything random.
    shuffle
        False for rows as they are stored, from the first one on, again and again.
    shards
        A window is cut into so many parts of equally many rows, and every batch has
        ``batch_size / shards`` rows of each of them, one part after the other: readers of
        different parts read different blocks.

    Notes
    -----
    Rows of one block may be alike. Let a quantity have variance ``s^2`` over all rows, and
    correlation ``rho`` between two rows of a block; between rows of different blocks, which come
    in random order, it is ``-(1 + (R - 1) rho) / (N - R)`` on average, never positive. Two rows
    of a batch are any two of the ``W R`` rows of its window, of one block with probability
    ``(R - 1) / (W R - 1)``, so that the mean ``m`` of a batch has

    .. math::

        \mathrm{Var}\, m \le \frac{s^2}{B} \Bigl(1 + (B - 1) \frac{R - 1}{W R - 1} \rho\Bigr)
        \le \frac{s^2}{B} \Bigl(1 + \frac{B - 1}{W} \rho\Bigr)
        \quad (\rho \ge 0)

    At worst, where the rows of a block are all equal, that is ``1 + (B - 1) / W`` times the
    variance of independent rows; where rows are stored in random order, it is theirs. Two
    batches of one window have covariance ``s^2 rho (R - 1) / (W R - 1)``, so that their
    correlation is at most ``B / (W + B - 1)``. The mean of all rows of a window has variance
    ``s^2 (1 + (R - 1) rho) / (W R)``: **a chain that moves so slowly that it averages over
    windows, but not over epochs, feels up to** ``1 + (R - 1) rho`` **times the noise of
    independent rows, however large the window is**; smaller blocks, or rows stored in random
    order, are the cure. With shards, ``B - 1`` is ``B - shards`` and ``W R - 1`` is
    ``W R - shards``.
    """

    num_rows: int
    batch_size: int
    block_size: int
    window: int
    seed: int = 0
    shuffle: bool = True
    shards: int = 1

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch."""
        return self.num_rows // self.batch_size

    @property
    def windows_per_epoch(self) -> int:
        """Windows of an epoch."""
        longest = max(1, self.window * self.block_size // self.batch_size)
        return -(-self.batches_per_epoch // longest)

    def first_batch(self, window: int) -> int:
        """Number in its epoch of the first batch of a window; windows differ by one batch."""
        return window * self.batches_per_epoch // self.windows_per_epoch

    def locate(self, position: int) -> Place:
        """Where the batch at a position, counted from the beginning of the run, is."""
        epoch, batch = divmod(position, self.batches_per_epoch)
        window = ((batch + 1) * self.windows_per_epoch - 1) // self.batches_per_epoch
        return Place(epoch, window, batch - self.first_batch(window))

    def runs(self, position: int, count: int) -> Iterator[Run]:
        """Batches ``[position, position + count)``, window by window."""
        done = 0
        while done < count:
            epoch, window, batch = self.locate(position + done)
            length = self.first_batch(window + 1) - self.first_batch(window)
            number = min(length - batch, count - done)
            yield Run(epoch, window, slice(batch, batch + number), slice(done, done + number))
            done += number

    def pieces(self, epoch: int, window: int, shard: int) -> np.ndarray:
        """Contiguous rows that make a shard of a window: first and end of each, ``[piece, 2]``."""
        first, end = self.first_batch(window), self.first_batch(window + 1)
        length = (end - first) * self.batch_size // self.shards
        random = generator(self.seed, epoch)
        if self.shuffle:
            offset = int(random.integers(self.num_rows))
        else:
            offset = epoch * self.batches_per_epoch * self.batch_size
        begin = (offset + first * self.batch_size + shard * length) % self.num_rows
        over = max(0, begin + length - self.num_rows)
        cuts = [_cuts(begin, begin + length - over, self.block_size)]
        if over:
            cuts.append(_cuts(0, over, self.block_size))
        starts = np.concatenate([cut[:-1] for cut in cuts])
        lengths = np.concatenate([np.diff(cut) for cut in cuts])
        if self.shuffle:
            blocks = self.num_rows // self.block_size
            place, within = np.divmod(starts, self.block_size)
            # The rows that do not fill a block are a piece of their own, always the last one.
            full = place < blocks
            place[full] = _scattered(place[full], random, blocks)
            starts = place * self.block_size + within
        return np.stack([starts, starts + lengths], 1)

    def deal(self, epoch: int, window: int, shard: int) -> np.ndarray:
        """Rows of every batch, counted along the pieces, ``[batch, batch_size / shards]``."""
        number = self.first_batch(window + 1) - self.first_batch(window)
        size = self.batch_size // self.shards
        rows = np.arange(number * size)
        if self.shuffle:
            generator(self.seed, epoch, window, shard).shuffle(rows)
        return rows.reshape(number, size)

    def indices(self, position: int, count: int) -> np.ndarray:
        """Rows of ``count`` batches from a position on, int64 ``[count, batch_size]``.

        Examples
        --------
        >>> from langevin_ppl.streams import Order
        >>> Order(num_rows=6, batch_size=2, block_size=2, window=3, shuffle=False).indices(2, 2)
        array([[4, 5],
               [0, 1]])
        """
        found = np.empty((count, self.shards, self.batch_size // self.shards), np.int64)
        for run in self.runs(position, count):
            for shard in range(self.shards):
                rows = row_numbers(self.pieces(run.epoch, run.window, shard))
                deal = self.deal(run.epoch, run.window, shard)
                found[run.places, shard] = rows[deal[run.batches]]
        return found.reshape(count, self.batch_size)


def default_block_size(num_rows: int, chunk_rows: int, row_bytes: int) -> int:
    """About 256 rows, in whole chunks of the storage where a window can hold one."""
    rows = chunk_rows * max(1, round(BLOCK_ROWS / chunk_rows))
    return min(num_rows, rows, _rows_in_memory(row_bytes))


def default_window(batch_size: int, block_size: int, row_bytes: int) -> int:
    """As many blocks as a batch has rows, which bounds the noise of a batch by twice its own.

    More where that is fewer than 65,536 rows or 16 batches, fewer where it is more than 128 MiB.
    """
    rows = max(WINDOW_ROWS, WINDOW_BATCHES * batch_size, block_size * batch_size)
    return max(1, min(rows, _rows_in_memory(row_bytes)) // block_size)


def _rows_in_memory(row_bytes: int) -> int:
    # A row has a number, and a place among the batches.
    return max(1, WINDOW_BYTES // (row_bytes + 12))


def generator(seed: int, *numbers: int) -> np.random.Generator:
    """Random numbers that belong to a seed and some numbers."""
    # Not `SeedSequence([seed, *numbers])`, to which trailing zeros make no difference.
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=numbers))


def row_numbers(pieces: np.ndarray) -> np.ndarray:
    """Rows of pieces, one after the other, ``[row]``."""
    lengths = pieces[:, 1] - pieces[:, 0]
    before = np.cumsum(lengths) - lengths
    return np.repeat(pieces[:, 0] - before, lengths) + np.arange(lengths.sum())


def _cuts(begin: int, end: int, block_size: int) -> np.ndarray:
    """``begin``, the multiples of the block size between, and ``end``."""
    inner = np.arange(begin // block_size + 1, -(-end // block_size)) * block_size
    return np.concatenate([[begin], inner, [end]])


def _scattered(places: np.ndarray, random: np.random.Generator, size: int) -> np.ndarray:
    """Images of places under a random permutation of ``range(size)``, in time that has a bound.

    A large one is not written down: it is a Feistel network (Luby, Rackoff 1988) that walks along
    its cycles until it is below ``size``.
    """
    if size <= WRITTEN_DOWN:
        return random.permutation(size)[places]
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = np.uint64(2**half - 1)
    rounds = random.integers(2**64, size=ROUNDS, dtype=np.uint64)

    def mixed(x: np.ndarray) -> np.ndarray:
        # The finaliser of MurmurHash3 (Appleby 2011).
        x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
        x = (x ^ (x >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
        return x ^ (x >> np.uint64(33))

    def permuted(x: np.ndarray) -> np.ndarray:
        left, right = x >> np.uint64(half), x & mask
        for key in rounds:
            left, right = right, left ^ (mixed(right ^ key) & mask)
        return (left << np.uint64(half)) | right

    images = permuted(places.astype(np.uint64))
    while np.any(outside := images >= size):
        images[outside] = permuted(images[outside])
    return images.astype(np.int64)

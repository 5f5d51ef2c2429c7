"""Which rows of a plate come in a step."""

import dataclasses

import jax
import jax.numpy as jnp

from langevin_ppl.base import Array, PRNGKey

__all__ = ["SAMPLINGS", "PlateDraw", "scattered"]

SAMPLINGS = ("blocks", "epochs", "replacement", "without")
"""How rows are drawn: blocks of shuffled rows at random, each block once in an epoch, single rows
with replacement, and without."""

ROUNDS = 12
"""Rounds of the Feistel network. Four of good functions make a pseudorandom permutation of a large
set (Luby, Rackoff 1988); with them a few rows would be drawn with errors of a tenth, which are
measured to be below a hundredth with twelve."""


@dataclasses.dataclass(frozen=True)
class PlateDraw:
    """How rows of one plate are drawn: sizes and choices, hashable.

    Attributes
    ----------
    size
        Rows of the plate.
    number
        Rows drawn in each step.
    pinned
        Rows that are in every batch, beside those drawn.
    sampling
        One of `SAMPLINGS`, or ``"importance"``.
    seed
        Of the order of shuffled rows, and of the epochs.
    """

    size: int
    number: int
    pinned: int
    sampling: str
    seed: int

    @property
    def free(self) -> int:
        """Rows that are not pinned."""
        return self.size - self.pinned

    def draw(self, rng_key: PRNGKey, step: Array, thresholds: Array | None) -> Array:
        """Start of a block, or indices of rows."""
        if self.sampling == "blocks":
            return self.pinned + jax.random.randint(rng_key, (), 0, self.free)
        if self.sampling == "epochs":
            return self.pinned + self._of_epoch(step)
        if self.sampling == "importance":
            assert thresholds is not None
            bits = jax.random.bits(rng_key, (self.number,), jnp.uint32)
            return jnp.searchsorted(thresholds, bits, side="right")
        if self.sampling == "replacement":
            return jax.random.randint(rng_key, (self.number,), 0, self.size)
        return scattered(jnp.arange(self.number), rng_key, self.size)

    def _of_epoch(self, step: Array) -> Array:
        """Start of a block: the blocks of an epoch do not overlap, and come in random order."""
        blocks = self.free // self.number
        epoch, turn = step // blocks, step % blocks
        key = jax.random.fold_in(jax.random.key(self.seed), epoch)
        key_order, key_offset = jax.random.split(key)
        # What does not fill a block is left out of an epoch: at another place in each of them.
        offset = jax.random.randint(key_offset, (), 0, self.free)
        block = scattered(jnp.reshape(turn, (1,)), key_order, blocks)[0]
        return (offset + block * self.number) % self.free


def scattered(positions: Array, rng_key: PRNGKey, size: int) -> Array:
    """Images of positions under a random permutation of ``range(size)``.

    The permutation is a Feistel network that walks along its cycles until it is back below
    ``size``; it is never written down, so that a few images cost the same however large it is.

    Parameters
    ----------
    positions
        Distinct integers below ``size``, ``[number]``.
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = jnp.uint32(2**half - 1)
    rounds = jax.random.bits(rng_key, (ROUNDS,), jnp.uint32)

    def mixed(x: Array) -> Array:
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        return x ^ (x >> 16)

    def permuted(x: Array) -> Array:
        left, right = x >> half, x & mask
        for key in rounds:
            left, right = right, left ^ (mixed(right ^ key) & mask)
        return (left << half) | right

    def walk(x: Array) -> Array:
        return jnp.where(x < size, x, permuted(x))

    first = permuted(positions.astype(jnp.uint32))
    last = jax.lax.while_loop(lambda x: jnp.any(x >= size), walk, first)
    return last.astype(jnp.int32)

"""What is minimised: the loss of the weights of a network, on a batch."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array, PRNGKey
from langevin_ppl.scores.learned import Learned
from langevin_ppl.scores.score import unconditional
from langevin_ppl.tree import as_pytree

__all__ = ["Objective", "Rest", "parted"]


class Rest:
    """A pytree without its floating-point arrays, which are put in again."""

    def __init__(self, treedef: Any, leaves: list[Any]):
        self.treedef = treedef
        self.leaves = leaves

    def joined(self, parameters: list[Array]) -> Any:
        """The pytree with these arrays."""
        given = iter(parameters)
        leaves = [next(given) if leaf is _HOLE else leaf for leaf in self.leaves]
        return jax.tree.unflatten(self.treedef, leaves)


class _Hole:
    """Where a parameter was."""


_HOLE = _Hole()


def _flatten(rest: Rest) -> tuple[list[Any], Any]:
    # What is not an array, an activation function for example, is static.
    arrays = [leaf for leaf in rest.leaves if _is_array(leaf)]
    static = tuple(None if _is_array(leaf) else (leaf,) for leaf in rest.leaves)
    return arrays, (rest.treedef, static)


def _unflatten(static: Any, arrays: Any) -> Rest:
    treedef, leaves = static
    given = iter(arrays)
    return Rest(treedef, [next(given) if leaf is None else leaf[0] for leaf in leaves])


jax.tree_util.register_pytree_node(Rest, _flatten, _unflatten)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray)


def parted(network: Any) -> tuple[list[Array], Rest]:
    """Floating-point arrays of a network, which are trained, and the rest of it."""
    leaves, treedef = jax.tree.flatten(network)
    trained = [_is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    parameters = [jnp.asarray(leaf) for leaf, is_one in zip(leaves, trained, strict=True) if is_one]
    rest = [_HOLE if is_one else leaf for leaf, is_one in zip(leaves, trained, strict=True)]
    return parameters, Rest(treedef, rest)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["loss", "around", "rest", "dropout"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Objective:
    """Loss of the weights on a batch.

    Attributes
    ----------
    loss
        See `langevin_ppl.scores.losses.Loss`.
    around
        Denoiser whose network is put in.
    rest
        The network without its weights.
    dropout
        Share of conditions that are left out.
    """

    loss: Any
    around: Learned
    rest: Rest
    dropout: Any

    @classmethod
    def of(cls, loss: Any, around: Learned, rest: Rest, dropout: float) -> "Objective":
        """Objective of a loss that is a pytree, or a function."""
        return cls(as_pytree(loss), around, rest, dropout)

    def __call__(
        self, parameters: list[Array], memory: Any, rng_key: PRNGKey, batch: Any
    ) -> tuple[Array, Any]:
        """Loss, as `langevin_ppl.fit.descend` wants it."""
        key_loss, key_dropout = jax.random.split(rng_key)
        x, condition = batch
        if condition is not None:
            condition = left_out(key_dropout, condition, self.dropout)
        around = self.around
        denoiser = dataclasses.replace(around, network=self.rest.joined(parameters))
        value = self.loss(key_loss, denoiser, around.process, x, condition, around.scale)
        return value, memory


def left_out(rng_key: PRNGKey, condition: Array, share: Any) -> Array:
    """Conditions of which a share, at random, are none."""
    absent = jax.random.bernoulli(rng_key, share, condition.shape[:1])
    absent = absent.reshape(-1, *(1,) * (condition.ndim - 1))
    return jnp.where(absent, unconditional(condition), condition)

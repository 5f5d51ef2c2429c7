"""Walkers over levels of noise, and their ends as a DataTree."""

import functools
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import numpy as np

from langevin_ppl.arguments import check_groups, check_labels, check_target
from langevin_ppl.base import (
    Array,
    DivergenceWarning,
    Draws,
    PRNGKey,
    check_counts,
    check_key,
)
from langevin_ppl.export import LIBRARY, collect_groups, to_datatree, variables
from langevin_ppl.kernels import Kernel
from langevin_ppl.loop import drive, march
from langevin_ppl.tree import Layout

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Mover", "Walk", "check_unadjusted"]


class Mover(Protocol):
    """Moves one walker over one level; hashable, because it is static in compiled programs."""

    def init(self, rng_key: PRNGKey, data: Any, /) -> Any:
        """Make a walker at the first level."""
        ...

    def step(self, rng_key: PRNGKey, walker: Any, row: Any, data: Any, /) -> Any:
        """Move it over the level of a row."""
        ...

    def read(self, walker: Any, /) -> Array:
        """Get its flat position."""
        ...


class Walk(NamedTuple):
    """Many walkers of one target.

    Attributes
    ----------
    key_walk, key_export
        Keys of the walkers and of predictions.
    target
        What they end in.
    layout
        Layout of its positions.
    shape
        ``(num_chains, num_samples)`` of the result.
    groups
        Further groups of the DataTree.
    batch_size
        Walkers that move together.
    progress
        Whether to show a bar.
    began
        When it began.
    """

    key_walk: PRNGKey
    key_export: PRNGKey
    target: Any
    layout: Layout
    shape: tuple[int, int]
    groups: Sequence[str]
    batch_size: int
    progress: bool
    began: float

    @classmethod
    def begin(
        cls,
        rng_key: PRNGKey,
        target: Any,
        num_chains: int,
        num_samples: int,
        groups: Sequence[str],
        batch_size: int | None,
        progress: bool,
    ) -> "Walk":
        """Check the arguments that all walks have."""
        began = time.perf_counter()
        rng_key = check_key(rng_key)
        check_target(target)
        check_counts(1, num_chains=num_chains, num_samples=num_samples)
        batch_size = num_chains * num_samples if batch_size is None else batch_size
        check_counts(1, batch_size=batch_size)
        check_groups(groups, target, 0)
        check_labels(target)
        keys = jax.random.split(rng_key)
        layout, shape = Layout.of(target.prototype), (num_chains, num_samples)
        return cls(keys[0], keys[1], target, layout, shape, groups, batch_size, progress, began)

    def go(self, mover: Mover, rows: Any, data: Any, label: str) -> np.ndarray:
        """Positions of all walkers at the end, ``[walker, dimension]``.

        Parameters
        ----------
        rows
            Pytree of arrays with leading axis ``level``.
        data
            Pytree that every step reads.
        """
        number = self.shape[0] * self.shape[1]
        num_levels = len(jax.tree.leaves(rows)[0])
        width = min(self.batch_size, number)
        ends = []
        for start in range(0, number, width):
            indices = np.minimum(np.arange(start, start + width), number - 1)
            walkers, keys = _start(mover, self.key_walk, indices, data)

            def program(walkers: Any, first: int, count: int, keys: Any = keys) -> Any:
                return _go(mover, num_levels, walkers, keys, rows, data, first, count)

            outcome = drive(
                program, walkers, num_levels, num_levels, progress=self.progress, label=label
            )
            if not outcome.complete:
                raise KeyboardInterrupt(f"interrupted in {label}")
            ends.append(np.asarray(jax.vmap(mover.read)(outcome.carry)))
        return np.concatenate(ends)[:number]

    def end(self, positions: np.ndarray, attributes: Mapping[str, Any]) -> "xr.DataTree":
        """Make a DataTree of the ends of the walks."""
        target, layout = self.target, self.layout
        lost = ~np.isfinite(positions).all(axis=1)
        positions = np.where(lost[:, None], np.nan, positions)
        if lost.any():
            warnings.warn(
                f"{attributes['kernel']}: {int(lost.sum())} of {len(lost)} walkers left the finite "
                "numbers, and their draws are NaN. Take a smaller step_size or more levels. The "
                "others are those where idata['sample_stats']['diverging'] is False.",
                DivergenceWarning,
                stacklevel=3,
            )
        stats = {"diverging": lost.reshape(self.shape)}
        draws = Draws(positions.reshape(*self.shape, -1), stats, None, complete=True)
        posterior = variables(target, layout, draws.positions)
        described = {
            **LIBRARY,
            "target": target.description,
            "static_arguments": list(target.static),
            "exact": False,
            "precision": str(layout.dtype),
            "num_chains": self.shape[0],
            "num_samples": self.shape[1],
            **attributes,
            "advice": "The draws are independent, and the bias of the walks does not show in them.",
            "sampling_time": time.perf_counter() - self.began,
        }
        return to_datatree(
            collect_groups(self.key_export, target, draws, posterior, None, self.groups, None),
            target=target,
            attributes=described,
            parameters={},
        )


def check_unadjusted(kernel: Any, owner: str) -> None:
    """Refuse a kernel that reads the value of a density that is not there."""
    if not isinstance(kernel, Kernel) or kernel.target_acceptance_rate is not None:
        raise ValueError(
            f"{owner}: expected an unadjusted overdamped kernel such as langevin_ppl.ula, because "
            f"the score of a level is known and its density is not, got {kernel!r}."
        )


@functools.partial(jax.jit, static_argnums=0)
def _start(mover: Mover, rng_key: PRNGKey, indices: Array, data: Any) -> tuple[Any, Array]:
    keys = jax.vmap(functools.partial(jax.random.fold_in, rng_key))(indices)
    pairs = jax.vmap(jax.random.split)(keys)
    return jax.vmap(lambda key: mover.init(key, data))(pairs[:, 0]), pairs[:, 1]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _go(
    mover: Mover,
    capacity: int,
    walkers: Any,
    keys: Array,
    rows: Any,
    data: Any,
    start: Array,
    count: Array,
) -> tuple[Any, Any]:
    def move(walkers: Any, keys: Array, row: Any) -> Any:
        return jax.vmap(lambda walker, key: mover.step(key, walker, row, data))(walkers, keys)

    return march(move, walkers, keys, rows, start, count, capacity)

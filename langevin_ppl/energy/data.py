"""Data of an energy: checked against the model, and carried to unconstrained space."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Position
from langevin_ppl.energy.model import given
from langevin_ppl.targets import ModelTarget
from langevin_ppl.tree import ravel

__all__ = ["by_site", "check_condition", "moments_of", "positions_of"]

MAX_NAMED = 5
"""Most rows that a message names."""


def by_site(found: ModelTarget, data: Any, name: str = "data") -> dict[str, np.ndarray]:
    """Data by the names of the latent sites, which have to be all there and of equal length."""
    sites = _shapes(found)
    if not isinstance(data, Mapping):
        if len(sites) != 1:
            raise ValueError(
                f"{name}: expected a dict with the sites {', '.join(sites)}, got "
                f"{type(data).__name__}."
            )
        data = {next(iter(sites)): data}
    if set(data) != set(sites):
        raise ValueError(
            f"{name}: expected the latent sites {', '.join(sorted(sites))} of "
            f"{found.description}, got {', '.join(sorted(data)) or 'none'}."
        )
    rows = {site: np.asarray(value) for site, value in data.items()}
    for site, value in rows.items():
        if value.ndim != len(sites[site]) + 1 or value.shape[1:] != sites[site] or not len(value):
            expected = ", ".join(["datum", *map(str, sites[site])])
            raise ValueError(f"{name}: expected '{site}' of shape ({expected}), got {value.shape}.")
        if not np.issubdtype(value.dtype, np.number):
            raise TypeError(f"{name}: expected '{site}' to be of numbers, got {value.dtype}.")
        bad = ~np.isfinite(value.reshape(len(value), -1)).all(axis=1)
        if bad.any():
            raise ValueError(
                f"{name}: '{site}' has NaN or infinity in row {_listed(bad)}. Remove them."
            )
    lengths = {len(value) for value in rows.values()}
    if len(lengths) > 1:
        raise ValueError(f"{name}: expected sites of equal length, got {sorted(lengths)}.")
    return {site: value.astype(jnp.result_type(float)) for site, value in rows.items()}


def _shapes(found: ModelTarget) -> dict[str, tuple[int, ...]]:
    """Shapes of the latent sites, as the model sees them."""
    values = jax.eval_shape(found.constrain, found.prototype)
    return {site: values[site].shape for site in found.prototype}


def positions_of(
    latent: ModelTarget, values: Mapping[str, Any], condition: Any, name: str = "data"
) -> Position:
    """Unconstrained positions of data by site, ``[datum, ...]`` for every site.

    Raises
    ------
    ValueError
        If a datum is outside the support of its site.
    """

    def unconstrained(value: Any, row: Any) -> Any:
        return given(latent, row).unconstrain(value)

    axes = (0, None if condition is None else 0)
    positions, inside = jax.vmap(unconstrained, axes)(values, condition)
    for site, well in inside.items():
        finite = np.isfinite(np.asarray(positions[site]).reshape(len(well), -1)).all(axis=1)
        bad = ~(np.asarray(well) & finite)
        if bad.any():
            raise ValueError(
                f"{name}: row {_listed(bad)} of '{site}' is outside of its support, or on the edge "
                "of it. Remove what is outside, or give the site the support of the data."
            )
    return positions


def moments_of(positions: Position) -> tuple[Any, Any]:
    """Mean and standard deviation of flat positions of the data."""
    flat = jax.vmap(lambda position: ravel(position)[0])(positions)
    spread = jnp.std(flat, axis=0)
    # Numbers that are the same in all data, such as the corner of an image, have no scale.
    typical = jnp.sqrt(jnp.mean(spread**2))
    return jnp.mean(flat, axis=0), jnp.where(spread > 0.01 * typical, spread, typical + 1e-12)


def check_condition(condition: Any, length: int) -> Any:
    """Conditions as arrays, one for each datum."""
    condition = jax.tree.map(jnp.asarray, condition)
    for leaf in jax.tree.leaves(condition):
        if leaf.shape[:1] != (length,):
            raise ValueError(
                f"condition: expected {length} rows, one for each datum, got shape {leaf.shape}."
            )
    return condition


def _listed(bad: np.ndarray) -> str:
    rows = np.flatnonzero(bad)
    more = f" and {len(rows) - MAX_NAMED} more" if len(rows) > MAX_NAMED else ""
    return ", ".join(map(str, rows[:MAX_NAMED])) + more

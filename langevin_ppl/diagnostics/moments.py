"""Means and standard deviations of two runs, and what chance may add to their differences."""

from typing import NamedTuple

import numpy as np
import xarray as xr

from langevin_ppl.convergence.ranks import ess as effective
from langevin_ppl.convergence.ranks import split_chains

__all__ = ["WARNED", "Moments", "beyond_chance", "shift"]

WARNED = 0.1
"""Bias, in posterior standard deviations, from which diagnostics warn."""


class Moments(NamedTuple):
    """Means and standard deviations of coordinates, with the Monte Carlo errors of both."""

    mean: np.ndarray
    mean_error: np.ndarray
    sd: np.ndarray
    sd_error: np.ndarray

    @classmethod
    def of(cls, draws: np.ndarray) -> "Moments":
        """Moments of draws ``[chain, draw, ...]``."""
        values = np.asarray(draws, np.float64).reshape(*draws.shape[:2], -1)
        mean, sd = values.mean(axis=(0, 1)), values.std(axis=(0, 1))
        squares = np.square(values - mean)
        with np.errstate(divide="ignore", invalid="ignore"):
            mean_error = sd / np.sqrt(effective(split_chains(values)))
            # By the delta method, from the error of the variance.
            variance_error = squares.std(axis=(0, 1)) / np.sqrt(effective(split_chains(squares)))
            sd_error = variance_error / (2.0 * sd)
        shape = draws.shape[2:]
        return cls(*(part.reshape(shape) for part in (mean, mean_error, sd, sd_error)))


def shift(one: xr.DataArray, other: xr.DataArray) -> xr.DataArray:
    """How far the moments of one run are from those of another.

    Parameters
    ----------
    one, other
        Draws of a variable, with the dimensions ``chain`` and ``draw``.

    Returns
    -------
    xarray.DataArray
        ``mean_shift``, ``mean_error``, ``sd_shift`` and ``sd_error`` along ``moment``, in
        standard deviations of the other.
    """
    a, b = Moments.of(one.values), Moments.of(other.values)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = {
            "mean_shift": (a.mean - b.mean) / b.sd,
            "mean_error": np.hypot(a.mean_error, b.mean_error) / b.sd,
            "sd_shift": (a.sd - b.sd) / b.sd,
            "sd_error": np.hypot(a.sd_error, b.sd_error) / b.sd,
        }
    dims = [dim for dim in one.dims if dim not in ("chain", "draw")]
    return xr.DataArray(
        np.stack(list(parts.values())),
        dims=["moment", *dims],
        coords={"moment": list(parts), **{d: one.coords[d] for d in dims if d in one.coords}},
    )


def beyond_chance(shifts: xr.DataArray) -> float:
    """Largest shift, less two standard errors; constants have none."""
    values = [
        np.abs(shifts.sel(moment=f"{what}_shift").values)
        - 2.0 * shifts.sel(moment=f"{what}_error").values
        for what in ("mean", "sd")
    ]
    return float(max(np.nanmax(np.append(value, 0.0)) for value in values))

"""The bias of an inexact kernel, measured by an exact one that goes on from its draws."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from langevin_ppl import gradients
from langevin_ppl.arguments import check_key
from langevin_ppl.base import BiasWarning, PRNGKey, check_number
from langevin_ppl.convergence import converged
from langevin_ppl.convergence.ranks import ess as effective
from langevin_ppl.convergence.ranks import split_chains
from langevin_ppl.sampling import sample

__all__ = ["BiasWarning", "bias"]

WARNED = 0.1
"""Bias, in posterior standard deviations, from which `bias` warns."""


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


def bias(
    rng_key: PRNGKey,
    target: Any,
    idata: xr.DataTree,
    *,
    ess: float = 2000.0,
    **sample_arguments: Any,
) -> xr.DataTree:
    """Measure the bias of the means and standard deviations of a run, and add it to its tree.

    An exact kernel, by default that of `langevin_ppl.sample`, goes on from where the chains of
    the run ended, until its effective sample size is ``ess``. The differences between the
    moments of the run and those of the exact draws are its bias, and what is known of both says
    how large it may be by chance. The attributes say what it cost.

    Parameters
    ----------
    rng_key
        Key of the exact run.
    target
        Target of the run.
    idata
        What `langevin_ppl.sample` returned.
    ess
        Effective sample size of the exact draws. Their error is about ``1 / sqrt(ess)`` posterior
        standard deviations; the error of the run comes on top.
    **sample_arguments
        Of `langevin_ppl.sample`, for the exact run: another kernel, more chains.

    Returns
    -------
    xarray.DataTree
        A copy with the group ``bias``: for every variable its ``mean_shift``, ``sd_shift`` and
        their standard errors ``mean_error``, ``sd_error``, in units of the exact posterior
        standard deviation, along the dimension ``moment``. Its attributes hold
        ``num_gradient_evaluations`` of the exact run, ``largest`` (the largest shift that is not
        explained by two standard errors) and ``converged`` of the exact run.

    Raises
    ------
    TypeError
        If ``idata`` is not a run of `langevin_ppl.sample`.
    ValueError
        If the kernel for comparison is not exact itself, or a chain of the run is not finite.

    Warns
    -----
    BiasWarning
        If a shift is above 0.1 by more than two standard errors.

    Notes
    -----
    The intervals are as good as both effective sample sizes: where a run has not mixed, they are
    too short. A run of an exact kernel may be given as well; its bias is zero within errors.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> target = lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))
    >>> idata = lp.sample(
    ...     jax.random.key(0), target, lp.ula, step_size=0.3, num_samples=4000, num_warmup=100
    ... )
    >>> idata = lp.diagnostics.bias(jax.random.key(1), target, idata)
    >>> shift = idata["bias"]["x"].sel(moment="sd_shift")  # 1 / sqrt(1 - 0.3 / 2) - 1 = 0.085
    >>> bool((abs(shift - 0.085) < 0.1).all())
    True
    """
    check_number("ess", ess, above=0.0)
    rng_key = check_key(rng_key)
    if not isinstance(idata, xr.DataTree) or "sampler_position" not in idata.children:
        raise TypeError(
            "bias: expected the DataTree that langevin_ppl.sample returned, got "
            f"{type(idata).__name__}."
        )
    posterior = idata["posterior"].to_dataset()
    lost = [name for name, values in posterior.items() if not np.isfinite(values).all()]
    if lost:
        raise ValueError(
            f"bias: the draws of {', '.join(map(repr, lost))} are not all finite. Select the "
            "chains that are, or use a smaller step_size."
        )
    arguments = {"num_chains": posterior.sizes["chain"], **sample_arguments}
    arguments.setdefault("until", converged(ess=ess))
    arguments.setdefault("gradient", gradients.exact())
    exact = sample(rng_key, target, initial=idata, **arguments)
    if not exact.attrs["exact"]:
        raise ValueError(
            f"bias: {exact.attrs['kernel']} is not exact itself. Leave kernel out, or pass an "
            "adjusted one such as langevin_ppl.mala."
        )
    reference = exact["posterior"].to_dataset()
    shifts = {
        str(name): _shift(values, reference[name])
        for name, values in posterior.items()
        if np.issubdtype(values.dtype, np.floating)
    }
    largest = max((_beyond_chance(shift) for shift in shifts.values()), default=0.0)
    group = xr.Dataset(
        shifts,
        attrs={
            "num_gradient_evaluations": exact.attrs.get("num_gradient_evaluations", -1),
            "converged": exact.attrs["converged"],
            "largest": largest,
            "kernel": exact.attrs["kernel"],
        },
    )
    tree = idata.copy()
    tree["bias"] = xr.DataTree(group)
    if largest > WARNED:
        worst = max(shifts, key=lambda name: _beyond_chance(shifts[name]))
        warnings.warn(
            f"bias: the moments of '{worst}' are off by at least {largest:.2f} posterior standard "
            f"deviations. Use a smaller step_size, or an exact kernel.",
            BiasWarning,
            stacklevel=2,
        )
    return tree


def _shift(biased: xr.DataArray, exact: xr.DataArray) -> xr.DataArray:
    """Shifts and errors of one variable, in exact standard deviations, along ``moment``."""
    one, other = Moments.of(biased.values), Moments.of(exact.values)
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = {
            "mean_shift": (one.mean - other.mean) / other.sd,
            "mean_error": np.hypot(one.mean_error, other.mean_error) / other.sd,
            "sd_shift": (one.sd - other.sd) / other.sd,
            "sd_error": np.hypot(one.sd_error, other.sd_error) / other.sd,
        }
    dims = [dim for dim in biased.dims if dim not in ("chain", "draw")]
    return xr.DataArray(
        np.stack(list(parts.values())),
        dims=["moment", *dims],
        coords={"moment": list(parts), **{d: biased.coords[d] for d in dims if d in biased.coords}},
    )


def _beyond_chance(shift: xr.DataArray) -> float:
    """Largest shift, less two standard errors; constants have none."""
    values = [
        np.abs(shift.sel(moment=f"{what}_shift").values)
        - 2.0 * shift.sel(moment=f"{what}_error").values
        for what in ("mean", "sd")
    ]
    return float(max(np.nanmax(np.append(value, 0.0)) for value in values))

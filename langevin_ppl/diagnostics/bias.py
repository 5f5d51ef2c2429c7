"""The bias of an inexact kernel, measured by an exact one that goes on from its draws."""

import warnings
from typing import Any

import numpy as np
import xarray as xr

from langevin_ppl import gradients
from langevin_ppl.base import BiasWarning, PRNGKey, check_key, check_number
from langevin_ppl.convergence import converged
from langevin_ppl.diagnostics.moments import WARNED, beyond_chance, shift
from langevin_ppl.diagnostics.runs import check_run, finite_posterior
from langevin_ppl.sampling import sample

__all__ = ["BiasWarning", "bias"]


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
    check_run("bias", idata)
    posterior = finite_posterior("bias", idata)
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
        str(name): shift(values, reference[name])
        for name, values in posterior.items()
        if np.issubdtype(values.dtype, np.floating)
    }
    largest = max((beyond_chance(part) for part in shifts.values()), default=0.0)
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
        worst = max(shifts, key=lambda name: beyond_chance(shifts[name]))
        warnings.warn(
            f"bias: the moments of '{worst}' are off by at least {largest:.2f} posterior standard "
            f"deviations. Use a smaller step_size, or an exact kernel.",
            BiasWarning,
            stacklevel=2,
        )
    return tree

"""The bias of a step size, seen by halving it."""

import ast
import math
import warnings
from typing import Any

import numpy as np
import xarray as xr

from langevin_ppl import gradients
from langevin_ppl.arguments import check_target
from langevin_ppl.base import BiasWarning, PRNGKey, check_key
from langevin_ppl.diagnostics.moments import WARNED, beyond_chance, shift
from langevin_ppl.diagnostics.runs import check_run, finite_posterior, parameter
from langevin_ppl.kernels import Kernel
from langevin_ppl.sampling import sample

__all__ = ["step_halving"]

LEAST_WARMUP = 200
"""Steps to forget the law of the larger step in, where the run has no longer warm-up."""


def step_halving(
    rng_key: PRNGKey,
    target: Any,
    idata: xr.DataTree,
    kernel: Kernel,
    *,
    gradient: Any = None,
    **sample_arguments: Any,
) -> xr.DataTree:
    r"""Go on from a run with half of its step size, compare, and add the shifts to its tree.

    Everything but the step is as in the run: frame, friction, estimator. Twice as many steps make
    a draw, so that the second run is as long in time. Where the bias is
    :math:`c h^p + o(h^p)`, the shift of a moment from ``h`` to ``h / 2``, times
    :math:`2^p / (2^p - 1)`, is the bias of the run (Richardson's extrapolation).

    Parameters
    ----------
    rng_key
        Key of the second run.
    target
        Target of the run.
    idata
        What `langevin_ppl.sample` returned.
    kernel
        Kernel of the run.
    gradient
        As for the run. By default what its attribute ``gradient_estimator`` says; the centre of
        control variates is then the mode, which is looked for again. Pass it if the run was given
        one, or a `GradientEstimator`.
    **sample_arguments
        Of `langevin_ppl.sample`, for the second run: ``num_samples`` for smaller errors,
        ``num_warmup``, ``until``. By default the draws of the run, and twice its warm-up steps, at
        least 200.

    Returns
    -------
    xarray.DataTree
        A copy with the group ``step_halving``: for every variable along the dimension ``moment``
        the shifts from half the step to the step, ``mean_shift`` and ``sd_shift``, with their
        standard errors ``mean_error`` and ``sd_error``, and the extrapolated bias of the run,
        ``mean_bias`` and ``sd_bias``, in posterior standard deviations of the second run. What is
        left of the bias at half the step is the bias less the shift. Attributes: ``largest``, the
        largest bias that is not explained by two standard errors; ``order`` (``p``);
        ``step_size``; ``gradient_estimator``, ``num_gradient_evaluations`` and ``converged`` of
        the second run.

    Raises
    ------
    TypeError
        If ``idata`` is not a run of `langevin_ppl.sample`, or ``kernel`` not one of this library.
    ValueError
        If the kernel is not that of the run, the run has no step size or is not finite, or
        ``gradient`` is needed.

    Warns
    -----
    BiasWarning
        If a bias is above 0.1 by more than two standard errors.

    Notes
    -----
    It sees what changes with the step: the bias of the discretisation and the heat of gradient
    noise. It does not see what stays: modes that no chain found, control variates whose centre has
    a wrong gradient, the bias of `psgld` that does not vanish with the step, a model that is not
    the one you mean. Nor does it see a bias that is the same at both steps because they are too
    large for it to be a power of them; halve again where a bias is found.

    ``p`` is the kernel's order with exact gradients. The noise of estimated ones adds a bias of
    order 1, so that with them ``p`` is at most 1: if the noise is negligible, that says up to
    twice as much as there is, on the safe side. Kernels that are exact have no bias to
    extrapolate: their shifts are zero within errors.

    Errors are those of two runs, added: for a bias of a tenth of a posterior standard deviation
    each needs an effective sample size of some thousand. Where the run has not mixed they are too
    small.

    References
    ----------
    Talay, Tubaro, *Expansion of the global error for numerical schemes solving stochastic
    differential equations* (1990); Durmus, Simsekli, Moulines, Badeau, Richard, *Stochastic
    gradient Richardson-Romberg Markov chain Monte Carlo* (2016).

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> target = lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))
    >>> idata = lp.sample(
    ...     jax.random.key(0), target, lp.ula, step_size=0.3, num_samples=4000, num_warmup=100
    ... )
    >>> idata = lp.diagnostics.step_halving(jax.random.key(1), target, idata, lp.ula)
    >>> bias = idata["step_halving"]["x"].sel(moment="sd_bias")  # 0.085, by the first order 0.087
    >>> bool((abs(bias - 0.087) < 0.1).all())
    True
    """
    rng_key = check_key(rng_key)
    check_target(target)
    check_run("step_halving", idata)
    step_size = _step_size(idata, kernel)
    posterior = finite_posterior("step_halving", idata)
    gradient = _estimator(idata.attrs["gradient_estimator"]) if gradient is None else gradient
    arguments = {
        "num_chains": posterior.sizes["chain"],
        "num_samples": posterior.sizes["draw"],
        "num_warmup": 2 * max(LEAST_WARMUP // 2, int(idata.attrs["num_warmup"])),
        "thinning": 2 * int(idata.attrs["thinning"]),
        **sample_arguments,
    }
    finer = sample(
        rng_key,
        target,
        kernel,
        gradient=gradient,
        initial=idata,
        parameters=idata,
        step_size=0.5 * step_size,
        **arguments,
    )
    _check_same_kind(idata, finer)
    order = _order(kernel, finer.attrs["gradient_estimator"])
    factor = 1.0 if order is None else 2.0**order / (2.0**order - 1.0)
    reference = finite_posterior("step_halving", finer)
    shifts = {
        str(name): shift(values, reference[name])
        for name, values in posterior.items()
        if np.issubdtype(values.dtype, np.floating)
    }
    biases = {name: factor * beyond_chance(part) for name, part in shifts.items()}
    largest = max(biases.values(), default=0.0)
    attributes = {
        "largest": largest,
        "order": math.nan if order is None else order,
        "step_size": step_size,
        "gradient_estimator": finer.attrs["gradient_estimator"],
        "num_gradient_evaluations": finer.attrs.get("num_gradient_evaluations", -1),
        "converged": finer.attrs["converged"],
    }
    extrapolated = {name: _with_bias(part, factor) for name, part in shifts.items()}
    tree = idata.copy()
    tree["step_halving"] = xr.DataTree(xr.Dataset(extrapolated, attrs=attributes))
    if largest > WARNED:
        worst = max(biases, key=lambda name: biases[name])
        warnings.warn(
            f"step_halving: the moments of '{worst}' are off by at least {largest:.2f} posterior "
            f"standard deviations at the step size {step_size:.3g}. Use a smaller one, or less "
            "noisy gradients.",
            BiasWarning,
            stacklevel=2,
        )
    return tree


def _step_size(idata: xr.DataTree, kernel: Any) -> float:
    """Step size of the run, after a look at its kernel."""
    if not isinstance(kernel, Kernel):
        raise TypeError(
            f"step_halving: expected a kernel such as langevin_ppl.ubu, got {kernel!r}. Those of "
            "BlackJAX that sample are exact."
        )
    name = repr(kernel).removeprefix("langevin_ppl.")
    if idata.attrs["kernel"] != name:
        raise ValueError(
            f"step_halving: the run is one of {idata.attrs['kernel']}, and kernel is {name}."
        )
    step_size = parameter(idata, kernel, "step_size")
    if step_size is None:
        raise ValueError(f"step_halving: the run of {name} has no step_size.")
    return step_size


def _estimator(description: str) -> Any:
    """Make the estimator that a run describes in its attribute.

    What warm-up chose by the noise is in there: the second run does not choose anew.
    """
    if description == "exact":
        return gradients.exact()
    try:
        call = ast.parse(description, mode="eval").body
        assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        made = {
            "minibatch": gradients.minibatch,
            "control_variates": gradients.control_variates,
            "svrg": gradients.svrg,
        }[call.func.id]
        named = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        return made(*map(ast.literal_eval, call.args), **named)
    except (AssertionError, KeyError, SyntaxError, TypeError, ValueError):
        raise ValueError(
            "step_halving: the run has a gradient estimator that cannot be made again; pass it as "
            "gradient=."
        ) from None


def _check_same_kind(idata: xr.DataTree, finer: xr.DataTree) -> None:
    kinds = [run.attrs["gradient_estimator"].partition("(")[0] for run in (idata, finer)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"step_halving: the run has the estimator {kinds[0]}, and at half the step it would be "
            f"{kinds[1]}. Pass gradient= as for the run."
        )


def _order(kernel: Kernel, estimator: str) -> float | None:
    """Power of the step size with which the bias shrinks; None if there is none."""
    if kernel.exact or kernel.order == 0:
        return None
    return kernel.order if estimator == "exact" else min(kernel.order, 1)


def _with_bias(shifts: xr.DataArray, factor: float) -> xr.DataArray:
    moved = shifts.sel(moment=["mean_shift", "sd_shift"])
    biases = (factor * moved).assign_coords(moment=["mean_bias", "sd_bias"])
    return xr.concat([shifts, biases], dim="moment")

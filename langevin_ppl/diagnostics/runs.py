"""What diagnostics read from a run: its draws on unconstrained space, and its kernel."""

import dataclasses
import inspect
from typing import Any

import jax
import numpy as np
import xarray as xr
from jax.tree_util import Partial

from langevin_ppl import kernels
from langevin_ppl.base import GradientEstimator
from langevin_ppl.export import POSITION_GROUP
from langevin_ppl.kernels import Kernel
from langevin_ppl.targets import DensityTarget, distinct_names
from langevin_ppl.tree import Layout, variable_names

__all__ = [
    "check_run",
    "estimator_of",
    "finite_posterior",
    "kernel_of",
    "last_positions",
    "own_dims",
    "parameter",
    "unconstrained",
]

DRAWS_GROUP = "unconstrained_posterior"


def check_run(owner: str, idata: object) -> None:
    """Refuse what is not a run of `langevin_ppl.sample`."""
    if not isinstance(idata, xr.DataTree) or POSITION_GROUP not in idata.children:
        raise TypeError(
            f"{owner}: expected the DataTree that langevin_ppl.sample returned, got "
            f"{type(idata).__name__}."
        )


def finite_posterior(owner: str, idata: xr.DataTree) -> xr.Dataset:
    """Posterior of a run; refused where it is not finite."""
    posterior = idata["posterior"].to_dataset()
    lost = [name for name, values in posterior.items() if not np.isfinite(values).all()]
    if lost:
        raise ValueError(
            f"{owner}: the draws of {', '.join(map(repr, lost))} are not all finite. Select the "
            "chains that are, or use a smaller step_size."
        )
    return posterior


def _names(layout: Layout) -> list[str]:
    numbers = jax.tree.unflatten(layout.treedef, list(range(len(layout.leaves))))
    return list(distinct_names(variable_names(numbers)).values())


def _flat(owner: str, data: xr.Dataset, layout: Layout, leading: int) -> np.ndarray:
    names = _names(layout)
    if not set(names) <= set(data.data_vars):
        raise ValueError(
            f"{owner}: the run has the variables {', '.join(map(str, data.data_vars))}, the "
            f"target {', '.join(names)}."
        )
    columns = [data[name].values for name in names]
    rows = [values.reshape(*values.shape[:leading], -1) for values in columns]
    return np.concatenate(rows, axis=-1).astype(layout.dtype)


def unconstrained(owner: str, target: Any, idata: xr.DataTree, layout: Layout) -> np.ndarray | None:
    """Unconstrained draws ``[chain, draw, dimension]``; None where the run did not keep them."""
    group = "posterior" if isinstance(target, DensityTarget) else DRAWS_GROUP
    if group not in idata.children:
        return None
    return _flat(owner, idata[group].to_dataset(), layout, 2)


def last_positions(owner: str, idata: xr.DataTree, layout: Layout) -> np.ndarray:
    """Where chains ended, ``[chain, dimension]``."""
    return _flat(owner, idata[POSITION_GROUP].to_dataset(), layout, 1)


def own_dims(idata: xr.DataTree, layout: Layout) -> dict[str, dict[str, Any]]:
    """Names of the dimensions of every unconstrained variable, and their coordinates."""
    group = DRAWS_GROUP if DRAWS_GROUP in idata.children else POSITION_GROUP
    data = idata[group].to_dataset()
    return {
        name: {
            str(dim): data[name].coords.get(dim)
            for dim in data[name].dims
            if dim not in ("chain", "draw")
        }
        for name in _names(layout)
    }


def kernel_of(owner: str, idata: xr.DataTree, kernel: Any = None) -> Kernel:
    """Kernel of a run, found by its name where it is not given."""
    found = kernel
    if found is None:
        found = getattr(kernels, str(idata.attrs.get("kernel")), None)
    if not isinstance(found, Kernel):
        raise ValueError(
            f"{owner}: no kernel of langevin_ppl is called {idata.attrs.get('kernel')!r}; pass "
            "kernel=."
        )
    return found


def parameter(idata: xr.DataTree, kernel: Kernel, name: str) -> float | None:
    """Scalar parameter of a run, or the default of its kernel; None where there is none."""
    data = idata["sampler_parameters"].data_vars
    if name in data:
        return float(data[name].values)
    value = kernel.parameters.get(name)
    return None if value is None or value is inspect.Parameter.empty else float(value)


def estimator_of(owner: str, target: Any, gradient: Any) -> GradientEstimator:
    """Apply an estimator to a target, ready to cross ``jit``.

    Raises
    ------
    TypeError
        If it is none.
    """
    found = gradient
    if callable(gradient) and not isinstance(gradient, GradientEstimator):
        found = target.gradient(gradient)
    if not isinstance(found, GradientEstimator):
        raise TypeError(
            f"{owner}: expected gradient to be langevin_ppl.minibatch(...), "
            "control_variates(centre=...), svrg(...) or a GradientEstimator, got "
            f"{gradient!r}."
        )
    whole = found.logdensity_fn
    return dataclasses.replace(
        found,
        init=Partial(found.init),
        draw=None if found.draw is None else Partial(found.draw),
        estimate=Partial(found.estimate),
        logdensity_fn=None if whole is None else Partial(whole),
    )

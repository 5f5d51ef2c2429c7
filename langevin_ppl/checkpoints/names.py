"""Kernels and gradient estimators by name: what JSON can say of them, and back.

Nothing is unpickled and nothing imported by a name from a file: names are looked up among the
kernels and estimators of this library.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from langevin_ppl import kernels
from langevin_ppl.checkpoints.files import CheckpointError
from langevin_ppl.gradients import ControlVariates, Minibatch, Svrg
from langevin_ppl.kernels import Kernel
from langevin_ppl.warmup import traits

__all__ = ["gradient_of", "kernel_of", "name_gradient", "name_kernel"]

ESTIMATORS = {each.__name__: each for each in (ControlVariates, Minibatch, Svrg)}


def name_kernel(kernel: Any) -> dict[str, Any]:
    """Name of a kernel, with the arguments it was made with; of a foreign one the name alone."""
    if not isinstance(kernel, Kernel):
        return {"foreign": traits(kernel).name}
    if kernel.recipe is None:
        return {"name": kernel.__name__}
    maker, arguments = kernel.recipe
    return {
        "name": maker.__name__,
        "arguments": [
            name_kernel(a) if isinstance(a, Kernel) else list(a) if isinstance(a, tuple) else a
            for a in arguments
        ],
    }


def kernel_of(named: Mapping[str, Any], given: Any) -> Any:
    """Get the kernel of a name, or the one that is given where it is that.

    Raises
    ------
    CheckpointError
        If a kernel that is not of this library is missing, or another one is given.
    """
    if given is not None:
        if name_kernel(given) != dict(named):
            raise CheckpointError(
                f"kernel: the run was made with {_spoken(named)}, got {_spoken(name_kernel(given))}"
                ". Leave it out, or start another run."
            )
        return given
    if "foreign" in named:
        raise CheckpointError(
            f"kernel: the run was made with {named['foreign']}, which is not of this library: pass "
            "it, resume(path, target, kernel)."
        )
    found = getattr(kernels, named["name"], None) if named["name"] in kernels.__all__ else None
    if found is None:
        raise CheckpointError(
            f"kernel: this version has no kernel {named['name']!r}. Resume with the version that "
            "the run was made with."
        )
    if "arguments" not in named:
        return found
    return found(*(kernel_of(a, None) if isinstance(a, dict) else a for a in named["arguments"]))


def _spoken(named: Mapping[str, Any]) -> str:
    return str(named.get("foreign", named.get("name")))


def name_gradient(gradient: Any) -> tuple[dict[str, Any] | None, list[Any]]:
    """Name and fields of an estimator, and the arrays of its centre."""
    if gradient is None:
        return None, []
    if type(gradient).__name__ not in ESTIMATORS:
        return {"foreign": type(gradient).__name__}, []
    fields = {f.name: getattr(gradient, f.name) for f in dataclasses.fields(gradient)}
    centre = jax.tree.leaves(fields.pop("centre", None))
    plain = {name: jax.tree.map(_number, value) for name, value in fields.items()}
    return {"name": type(gradient).__name__, "fields": plain, "centred": bool(centre)}, centre


def _number(value: Any) -> Any:
    return np.asarray(value).tolist() if isinstance(value, np.ndarray | np.generic) else value


def gradient_of(named: Mapping[str, Any] | None, centre: Any, given: Any) -> Any:
    """Get the estimator of a name, or the one that is given.

    Parameters
    ----------
    centre
        Position that control variates were given, or None.

    Raises
    ------
    CheckpointError
        If an estimator that is not of this library is missing, or another one is given.
    """
    if given is not None and name_gradient(given)[0] != (None if named is None else dict(named)):
        raise CheckpointError(
            f"gradient: the run was made with {named or 'all the data'}, got {given}. Leave it "
            "out, or start another run."
        )
    if given is not None or named is None:
        return given
    if named.get("name") not in ESTIMATORS:
        raise CheckpointError(
            f"gradient: the run was made with {named.get('foreign')!r}, which is not of this "
            "library: pass it, resume(path, target, gradient=...)."
        )
    fields = dict(named["fields"])
    if named["centred"]:
        fields["centre"] = centre
    elif named["name"] == ControlVariates.__name__:
        fields["centre"] = None
    return ESTIMATORS[named["name"]](**fields)

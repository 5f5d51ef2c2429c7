"""What `sample` was asked for, and how it is written down."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array, PRNGKey
from langevin_ppl.checkpoints.files import CheckpointError
from langevin_ppl.checkpoints.names import gradient_of, kernel_of, name_gradient, name_kernel
from langevin_ppl.convergence import Converged
from langevin_ppl.preconditioners import Preconditioner

__all__ = ["Job", "read_job", "written_job"]


class Job(NamedTuple):
    """A run with nothing left open; the target comes beside it.

    Attributes are those arguments of `langevin_ppl.sample` that determine the draws, checked, with
    defaults filled in. ``given`` are parameters of the kernel, ``per_chain`` the names of those
    with a leading axis ``chain``, and ``initial`` are flat positions, ``[chain, dimension]``.
    """

    rng_key: PRNGKey
    kernel: Any
    gradient: Any
    num_chains: int
    num_warmup: int
    num_samples: int
    until: Converged | None
    thinning: int | None
    initial: Array | None
    given: dict[str, Any]
    per_chain: frozenset[str]
    groups: tuple[str, ...]
    metric: str | None
    target_acceptance_rate: float | None


_PLAIN = ("num_chains", "num_warmup", "num_samples", "thinning", "metric", "target_acceptance_rate")


def written_job(job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
    """What JSON can hold of a job, and arrays."""
    named, centre = name_gradient(job.gradient)
    arrays: dict[str, Any] = {"rng_key": job.rng_key}
    arrays |= {f"centre.{i}": leaf for i, leaf in enumerate(centre)}
    if job.initial is not None:
        arrays["initial"] = job.initial
    numbers, missing = {}, []
    for name, value in job.given.items():
        if isinstance(value, Preconditioner):
            parts = {f"given.{name}.{part}": v for part, v in value._asdict().items()}
            arrays |= {part: v for part, v in parts.items() if v is not None}
        elif isinstance(value, jax.Array | np.ndarray | np.generic):
            arrays[f"given.{name}"] = value
        elif isinstance(value, int | float | str):
            numbers[name] = value
        else:
            missing.append(name)
    record = {
        **{name: getattr(job, name) for name in _PLAIN},
        "until": None if job.until is None else [job.until.ess, job.until.rhat],
        "groups": list(job.groups),
        "per_chain": sorted(job.per_chain),
        "kernel": name_kernel(job.kernel),
        "gradient": named,
        "numbers": numbers,
        "missing": missing,
    }
    return record, arrays


def read_job(
    record: Mapping[str, Any],
    arrays: Mapping[str, Any],
    prototype: Any,
    kernel: Any = None,
    gradient: Any = None,
    parameters: Mapping[str, Any] | None = None,
) -> Job:
    """Rebuild a job from what `written_job` made.

    Parameters
    ----------
    prototype
        Of the target's positions.
    kernel, gradient, parameters
        What could not be written down, and has to be passed again.

    Raises
    ------
    CheckpointError
        If something of it is missing, or other than it was.
    """
    passed = dict(parameters or {})
    if set(passed) != set(record["missing"]):
        raise CheckpointError(
            "resume: expected those parameters of the kernel that could not be written down, "
            f"{record['missing'] or 'none'}, got {sorted(passed) or 'none'}."
        )
    leaves = [jnp.asarray(arrays[n]) for n in arrays if n.startswith("centre.")]
    centre = jax.tree.unflatten(jax.tree.structure(prototype), leaves) if leaves else None
    given: dict[str, Any] = {**record["numbers"], **passed}
    for name, value in arrays.items():
        kind, _, rest = name.partition(".")
        if kind == "given":
            parameter, _, part = rest.partition(".")
            array = jnp.asarray(value)
            given[parameter] = {**given.get(parameter, {}), part: array} if part else array
    for name, value in given.items():
        if isinstance(value, dict):
            given[name] = Preconditioner(**value)
    initial = arrays.get("initial")
    return Job(
        rng_key=arrays["rng_key"],
        kernel=kernel_of(record["kernel"], kernel),
        gradient=gradient_of(record["gradient"], centre, gradient),
        until=None if record["until"] is None else Converged(*record["until"]),
        initial=None if initial is None else jnp.asarray(initial),
        given=given,
        per_chain=frozenset(record["per_chain"]),
        groups=tuple(record["groups"]),
        **{name: record[name] for name in _PLAIN},
    )

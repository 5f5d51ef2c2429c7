"""What came in to `sample`: checked, and brought into one form."""

import functools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import xarray as xr

from langevin_ppl.base import Array, check_number
from langevin_ppl.export import PARAMETERS_GROUP, POSITION_GROUP
from langevin_ppl.kernels import Kernel
from langevin_ppl.kernels.kernel import check_positive
from langevin_ppl.preconditioners import Preconditioner
from langevin_ppl.targets import DensityTarget, ModelTarget, distinct_names, safe_dim, safe_name
from langevin_ppl.tree import Layout, variable_names
from langevin_ppl.warmup import parameters_of, takes_a_density, traits

__all__ = [
    "check_groups",
    "check_labels",
    "check_parameters",
    "check_store",
    "check_target",
    "check_tuning",
    "earlier_parameters",
    "earlier_positions",
]

GROUPS = (
    "log_likelihood",
    "posterior_predictive",
    "prior",
    "unconstrained_posterior",
    "warmup_posterior",
)
"""Groups that a DataTree has on request."""

METRICS = ("dense", "low_rank", "diagonal")
"""Shapes of a metric."""

NEED_A_MODEL = {"log_likelihood", "posterior_predictive", "prior"}


def check_target(target: Any) -> None:
    """Refuse what is not a target."""
    if isinstance(target, ModelTarget | DensityTarget):
        return
    hint = " For a NumPyro model, pass langevin_ppl.target(model, *args, **kwargs)."
    raise TypeError(
        f"target: expected what langevin_ppl.target or langevin_ppl.density made, got "
        f"{type(target).__name__}." + (hint if callable(target) else "")
    )


def check_labels(target: Any) -> None:
    """Refuse dims and coords that fit no variable, before a run is spent on them."""
    shapes = {**target.constant_shapes, **target.shapes}
    names, found = target.names, target.dims
    own = {variable: name for name, variable in names.items()}
    unknown = sorted(set(target.options.dims) - set(names) - set(own))
    if unknown:
        raise ValueError(
            f"dims: no variable is called {', '.join(unknown)}; there are "
            f"{', '.join(sorted(names))}."
        )
    for spelling, labels in target.options.dims.items():
        name = spelling if spelling in names else own[spelling]
        if len(labels) > len(shapes[name]):
            raise ValueError(
                f"dims of '{name}': expected at most {len(shapes[name])} names for shape "
                f"{shapes[name]}, got {list(labels)}."
            )
        for label, dim, size in zip(labels, found[name], shapes[name], strict=False):
            if safe_dim(label) != dim:
                raise ValueError(
                    f"dims of '{name}': '{label}', for an axis of length {size}, is the name of a "
                    "variable, of another axis of the same variable, or of a dimension of another "
                    "length. Use another name."
                )
    sizes = {dim: n for name in found for dim, n in zip(found[name], shapes[name], strict=True)}
    unused = sorted(set(target.coords) - set(sizes))
    if unused:
        raise ValueError(
            f"coords: no dimension is called {', '.join(unused)}; there are "
            f"{', '.join(sorted(sizes)) or 'none'}."
        )
    for label, values in target.coords.items():
        if len(values) != sizes[label]:
            name = next(name for name in found if label in found[name])
            raise ValueError(
                f"coords of '{label}': expected {sizes[label]} values, because '{name}' has that "
                f"length, got {len(values)}."
            )
    _warn_of_names(target.renamed)


def _warn_of_names(renamed: dict[str, dict[str, Any]]) -> None:
    """Report names that are numbered because another variable or dimension has them."""
    numbered = [
        f"'{name}' is stored as '{variable}'"
        for name, variable in renamed["variables"].items()
        if variable != safe_name(name)
    ]
    numbered += [
        f"the dimension '{label}' of '{name}' is called '{dim}'"
        for name, dims in renamed["dims"].items()
        for label, dim in dims.items()
        if dim != safe_dim(label)
    ]
    if numbered:
        warnings.warn(
            f"In the DataTree {', '.join(numbered)}, because the name is taken by another variable "
            "or by a dimension of another length. See the attributes renamed_variables and "
            "renamed_dims.",
            UserWarning,
            stacklevel=4,
        )


def check_tuning(kernel: Any, metric: Any, target_acceptance_rate: Any) -> None:
    """Refuse a shape of the metric that is not known, and a rate that is none."""
    if metric is not None and metric not in METRICS:
        raise ValueError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}.")
    if target_acceptance_rate is not None:
        check_number("target_acceptance_rate", target_acceptance_rate, above=0.0, below=1.0)
    if (metric, target_acceptance_rate) != (None, None) and not isinstance(kernel, Kernel):
        raise ValueError(
            f"metric and target_acceptance_rate belong to the tuning of this library's kernels; "
            f"{traits(kernel).name} has BlackJAX's."
        )


def check_parameters(
    kernel: Any, given: dict[str, Any], per_chain: set[str], layout: Layout
) -> dict[str, Any]:
    """Refuse a kernel or a keyword that is not known; check shapes."""
    if not (callable(kernel) and hasattr(kernel, "init") and hasattr(kernel, "build_kernel")):
        raise TypeError(
            f"kernel: expected a kernel such as langevin_ppl.mala or blackjax.nuts, got {kernel!r}."
        )
    if not takes_a_density(kernel):
        raise TypeError(
            f"kernel: {traits(kernel).name} does not sample a log density: it takes something "
            "else (a likelihood apart from a Gaussian prior, a gradient estimator, a sequence of "
            "targets). Use it through blackjax with target.logdensity_fn."
        )
    known = set(parameters_of(kernel))
    unknown = sorted(set(given) - known)
    if unknown:
        raise TypeError(
            f"sample: unknown keyword {', '.join(unknown)}. Parameters of {traits(kernel).name} "
            f"are {', '.join(sorted(known))}."
        )
    if per_chain and isinstance(kernel, Kernel):
        raise ValueError(
            f"parameters: the earlier run tuned every chain by itself, and {kernel} takes one "
            "value for all chains; pass a dict."
        )
    if "step_size" in given and not isinstance(kernel, Kernel):
        check_positive(traits(kernel).name, "step_size", given["step_size"])
    matrix = given.get("inverse_mass_matrix")
    if matrix is not None and isinstance(kernel, Kernel) and not isinstance(matrix, Preconditioner):
        shape, d = jnp.shape(matrix), layout.dimension
        if shape not in ((), (d,), (d, d)):
            raise ValueError(
                f"inverse_mass_matrix: expected a scalar, shape ({d},) or ({d}, {d}) for a target "
                f"of {d} dimensions, got {shape}."
            )
    return given


def earlier_parameters(parameters: Any, num_chains: int) -> tuple[dict[str, Any], set[str]]:
    """Tuned parameters of a DataTree, or a dict as it is, and the names with a chain axis."""
    if parameters is None:
        return {}, set()
    if isinstance(parameters, xr.DataTree) and PARAMETERS_GROUP in parameters.children:
        data = parameters[PARAMETERS_GROUP].to_dataset()
        if data.sizes.get("chain", num_chains) != num_chains:
            raise ValueError(
                f"parameters: the earlier run tuned each of its {data.sizes['chain']} chains by "
                f"itself, and num_chains is {num_chains}; pass that number, or a dict."
            )
        per_chain = {str(name) for name, value in data.items() if "chain" in value.dims}
        values: dict[str, Any] = {str(n): jnp.asarray(v.values) for n, v in data.items()}
        parts = {p: values.pop(f"inverse_mass_matrix.{p}", None) for p in Preconditioner._fields}
        if parts["factor"] is not None:
            values["inverse_mass_matrix"] = Preconditioner(**parts)
        return values, per_chain
    if isinstance(parameters, Mapping) and not isinstance(parameters, xr.DataTree):
        return dict(parameters), set()
    raise TypeError(
        "parameters: expected a dict, or the DataTree of an earlier run of langevin_ppl.sample, "
        f"got {type(parameters).__name__}."
    )


def earlier_positions(initial: Any, layout: Layout, num_chains: int) -> Array | None:
    """Flat positions ``[chain, dimension]`` of a DataTree or a pytree."""
    if initial is None:
        return None
    shapes = [(num_chains, *shape) for shape, _ in layout.leaves]
    names = variable_names(jax.tree.unflatten(layout.treedef, list(range(len(shapes)))))
    if isinstance(initial, xr.DataTree):
        if POSITION_GROUP not in initial.children:
            raise TypeError("initial: this DataTree does not come from langevin_ppl.sample.")
        data = initial[POSITION_GROUP].data_vars
        variables = distinct_names(names)
        if set(variables.values()) != set(data):
            raise ValueError(
                f"initial: the earlier run has the variables {', '.join(map(str, data))}, this "
                f"target {', '.join(names)}."
            )
        leaves = [jnp.asarray(data[variables[name]].values) for name in names]
        initial = jax.tree.unflatten(layout.treedef, leaves)
    expected = dict(zip(names, shapes, strict=True))
    got = {
        name: jnp.shape(leaf)
        for name, leaf in zip(variable_names(initial), jax.tree.leaves(initial), strict=True)
    }
    if jax.tree.structure(initial) != layout.treedef or got != expected:
        raise ValueError(
            "initial: expected unconstrained positions with a leading axis of num_chains, "
            f"{expected}, got {got}."
        )
    return _ravel_rows(initial, layout)


@functools.partial(jax.jit, static_argnums=1)
def _ravel_rows(position: Any, layout: Layout) -> Array:
    return jax.vmap(layout.ravel)(position)


def check_groups(groups: Any, target: Any, num_warmup: int) -> None:
    """Refuse a group that is not known, or that this run cannot give."""
    listed = isinstance(groups, list | tuple | set | frozenset)
    if not listed or set(groups) - set(GROUPS):
        raise ValueError(f"groups: expected a list of {', '.join(GROUPS)}; got {groups!r}.")
    asked = NEED_A_MODEL & set(groups)
    if asked and not isinstance(target, ModelTarget):
        raise ValueError(
            f"groups: {', '.join(sorted(asked))} needs a model, and this target is a density."
        )
    if asked and target.stream is not None:
        raise ValueError(
            f"groups: {', '.join(sorted(asked))} needs all rows of the data in memory, and those "
            "of a stream are not. Compute it by a target of the rows that you want: "
            "langevin_ppl.target(model, X[:1000], y[:1000]).predict(key, samples)."
        )
    for group in sorted(asked):
        _check_computable(group, target)
    if "warmup_posterior" in groups and num_warmup == 0:
        raise ValueError("groups: warmup_posterior needs a warm-up, and num_warmup is 0.")


def _check_computable(group: str, target: ModelTarget) -> None:
    """Refuse a group that the model cannot give, before there are draws to lose."""
    latent = {
        name: jax.ShapeDtypeStruct((1, 1, *target.shapes[name]), site.dtype)
        for name, site in target.prototype.items()
    }
    computed = {
        "log_likelihood": lambda key, samples: target.log_likelihood(samples),
        "posterior_predictive": target.predict,
        "prior": lambda key, samples: target.predict_prior(key, 1),
    }
    try:
        jax.eval_shape(computed[group], jax.random.key(0), latent)
    except Exception as error:
        reason = str(error) or f"NumPyro fails with {type(error).__name__}"
        raise ValueError(
            f"groups: {group} cannot be computed, and has to be left out. {reason}"
        ) from error


def check_store(store: Any, checkpoint: Any, groups: Any) -> None:
    """Refuse a store without the checkpoint that its draws wait in, or with groups of all draws."""
    if store is None:
        return
    if checkpoint is None:
        raise ValueError(
            "store: draws wait in the checkpoint until the run ends; pass checkpoint= as well."
        )
    if groups:
        raise ValueError(
            f"store: {', '.join(sorted(groups))} would hold all draws in memory. Compute it from "
            "the store afterwards, or leave store out."
        )
    if jax.process_count() > 1:
        raise ValueError("store: expected one process; several have their draws in memory.")
    if Path(store).expanduser().exists():
        raise ValueError(f"store: {store} exists; use another path, or remove it.")

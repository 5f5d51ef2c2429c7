"""Draws and their target as an ArviZ DataTree: the only import of ArviZ."""

import functools
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import jax
import numpy as np
import xarray as xr

import langevin_ppl
from langevin_ppl.base import Draws, PRNGKey
from langevin_ppl.convergence import BLOCK_BYTES, DrawBlocks, as_blocks, block_length
from langevin_ppl.devices import to_host
from langevin_ppl.targets import ModelTarget, distinct_dims, distinct_names
from langevin_ppl.tree import Layout, variable_names

__all__ = [
    "LIBRARY",
    "PARAMETERS_GROUP",
    "POSITION_GROUP",
    "axis_labels",
    "collect_groups",
    "draw_blocks",
    "examined",
    "to_datatree",
    "to_zarr",
    "variables",
]

PARAMETERS_GROUP = "sampler_parameters"
POSITION_GROUP = "sampler_position"

BLOCK = 512
"""Most draws of each chain that are constrained at a time."""

STORED = 16 * BLOCK
"""Most draws of each chain that are written to a store at a time, and lie in one of its chunks."""

STORED_BYTES = 2**25
"""Bytes of what is written to a store at a time, unless a single draw has more."""

EXAMINED = 10_000
"""Most draws of each chain that are examined of a run whose draws are in a store."""

LIBRARY = {
    "inference_library": "langevin_ppl",
    "inference_library_version": langevin_ppl.__version__,
}


def collect_groups(
    rng_key: PRNGKey,
    target: Any,
    draws: Draws,
    posterior: Mapping[str, Any],
    warmup: Draws | None,
    groups: Sequence[str],
    step_size: Any,
) -> dict[str, dict[str, np.ndarray]]:
    """Compute the groups of a DataTree.

    Parameters
    ----------
    rng_key
        Key of predictions.
    target
        The target.
    draws, posterior
        Draws of the run, and its `variables`.
    warmup
        Draws of the warm-up if they were kept.
    groups
        Names of the groups that are not always there.
    step_size
        Scalar, or one value for each chain; None for a kernel without one.

    Returns
    -------
    dict
        Groups of variables; draws are ``[chain, draw, ...]``. ``last_position`` holds the
        unconstrained end of every chain.
    """
    layout = Layout.of(target.prototype)
    stats = _stats(draws, step_size)
    out: dict[str, Mapping[str, Any]] = {"posterior": posterior, "sample_stats": stats}
    if "unconstrained_posterior" in groups:
        out["unconstrained_posterior"] = _unconstrained(layout, draws.positions)
    if "warmup_posterior" in groups and warmup is not None:
        out["warmup_posterior"] = variables(target, layout, warmup.positions)
        out["warmup_sample_stats"] = warmup.stats
    if isinstance(target, ModelTarget):
        out |= _model_groups(rng_key, target, posterior, groups, draws.positions.shape[1])
    names = target.names
    return {
        **{group: _named(names, variables) for group, variables in out.items()},
        "last_position": _last_position(layout, draws.positions),
    }


def _stats(draws: Draws, step_size: Any) -> dict[str, Any]:
    stats = dict(draws.stats)
    if step_size is not None:
        column = np.asarray(to_host(step_size)).reshape(-1, 1)
        stats["step_size"] = np.broadcast_to(column, stats["diverging"].shape)
    return stats


def _named(names: Mapping[str, str], variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Variables on the host, under their names in a DataTree."""
    return {names.get(name, name): value for name, value in to_host(dict(variables)).items()}


def _last_position(layout: Layout, positions: np.ndarray) -> dict[str, np.ndarray]:
    last = _unconstrained(layout, np.array(positions[:, -1]))
    return _named(distinct_names(last), last)


def _position(layout: Layout, positions: np.ndarray) -> Any:
    return layout.unravel(positions)  # pyright: ignore[reportArgumentType]  (slices of NumPy's)


def _unconstrained(layout: Layout, positions: Any) -> dict[str, Any]:
    position = _position(layout, positions)
    return dict(zip(variable_names(position), jax.tree.leaves(position), strict=True))


def variables(target: Any, layout: Layout, positions: np.ndarray) -> dict[str, np.ndarray]:
    """Named variables of flat draws.

    Parameters
    ----------
    positions
        Shape ``[chain, draw, dimension]``.

    Returns
    -------
    dict
        Constrained sites and deterministics of a model, the leaves of a density's position, each
        ``[chain, draw, ...]``. Where most values are the unconstrained ones, these are views of the
        positions.
    """
    known = _unconstrained(layout, positions)
    if not isinstance(target, ModelTarget):
        return known
    views = {name: known[name] for name in target.structure.unbounded}
    # Views keep all positions in memory, which has to be worth it.
    worth = 2 * sum(view.nbytes for view in views.values()) >= positions.nbytes
    return draw_blocks(target, layout, positions).collect(views if worth else {})


def draw_blocks(target: Any, layout: Layout, positions: np.ndarray) -> DrawBlocks:
    """`variables` of flat draws, computed block by block whenever they are read.

    Blocks are of one shape, whatever the number of draws, so that all runs share a program.
    """
    if not isinstance(target, ModelTarget):
        return as_blocks(_unconstrained(layout, positions))
    num_chains, num_draws, _ = positions.shape
    shapes = _shapes(target, num_chains)
    length = min(BLOCK, block_length(shapes, num_chains, BLOCK_BYTES))

    def read(stride: int) -> Iterator[dict[str, np.ndarray]]:
        every = positions[:, ::stride]
        for start in range(0, every.shape[1], length):
            rows = every[:, start : start + length]
            count = rows.shape[1]
            padded = np.pad(rows, ((0, 0), (0, length - count), (0, 0)), mode="edge")
            block = to_host(target.constrain(_position(layout, padded), batch_ndims=2))
            yield {name: value[:, :count] for name, value in block.items()}

    return DrawBlocks(shapes, num_chains, num_draws, read)


def _shapes(target: ModelTarget, num_chains: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of one draw of every variable of a model."""
    # Of whole blocks: the trace is the one that computes them, where their length is `BLOCK`.
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((num_chains, BLOCK, *leaf.shape), leaf.dtype),
        target.prototype,
    )
    found = jax.eval_shape(functools.partial(target.constrain, batch_ndims=2), batch)
    return {n: jax.ShapeDtypeStruct(v.shape[2:], v.dtype) for n, v in found.items()}


def axis_labels(target: Any) -> dict[str, list[Any]]:
    """Coordinate labels of the axes of every variable, None for an axis without."""
    coords = target.coords
    return {name: [coords.get(d) for d in dims] for name, dims in target.dims.items()}


def _model_groups(
    rng_key: PRNGKey,
    target: ModelTarget,
    posterior: Mapping[str, Any],
    groups: Sequence[str],
    num_samples: int,
) -> dict[str, Mapping[str, Any]]:
    """Compute the groups that only a model can give."""
    out: dict[str, Mapping[str, Any]] = {
        "observed_data": target.observed_data,
        "constant_data": target.constant_data,
    }
    made: dict[str, Callable[[], Mapping[str, Any]]] = {
        "log_likelihood": lambda: target.log_likelihood(posterior),
        "posterior_predictive": lambda: target.predict(jax.random.fold_in(rng_key, 0), posterior),
        "prior": lambda: target.predict_prior(jax.random.fold_in(rng_key, 1), num_samples),
    }
    for group in [name for name in made if name in groups]:
        try:
            out[group] = to_host(dict(made[group]()))
        except Exception as error:  # the draws are worth more than one group
            warnings.warn(
                f"The group {group} was left out of the DataTree, because it could not be "
                f"computed: {error}. Compute it from the draws by the methods of the target.",
                UserWarning,
                stacklevel=6,
            )
    if "prior" in out:
        draws, observed = out.pop("prior"), set(target.structure.observed)
        out["prior"] = {k: v for k, v in draws.items() if k not in observed}
        out["prior_predictive"] = {k: v for k, v in draws.items() if k in observed}
    return out


def to_datatree(
    groups: Mapping[str, Mapping[str, np.ndarray]],
    *,
    target: Any,
    attributes: Mapping[str, Any],
    parameters: Mapping[str, np.ndarray],
    per_chain: Set[str] = frozenset(),
) -> xr.DataTree:
    """Assemble a DataTree.

    Parameters
    ----------
    groups
        From `collect_groups`.
    target
        Whose names, dimensions and coordinates the variables get.
    attributes
        Facts about the run: strings, numbers, or what JSON can hold.
    parameters
        Tuned parameters of the kernel, for a later run.
    per_chain
        Names of those that have a leading axis ``chain``.

    Returns
    -------
    xarray.DataTree
    """
    data = {name: dict(variables) for name, variables in groups.items() if variables}
    last_position = data.pop("last_position", {})
    names, renamed = target.names, target.renamed
    attributes = {
        **attributes,
        "renamed_variables": renamed["variables"],
        "renamed_dims": renamed["dims"],
    }
    plain = {name: _plain(value) for name, value in attributes.items()}
    labels = {names[name]: dims for name, dims in target.dims.items()}
    coords = {name: np.asarray(values) for name, values in target.coords.items()}
    sizes = {name: len(values) for name, values in coords.items()}
    tree = xr.DataTree()
    for group, variables in data.items():
        attrs = plain if group == "posterior" else LIBRARY
        tree[group] = _group(group, variables, labels, coords, sizes, attrs)
    tree[PARAMETERS_GROUP] = xr.DataTree(_dataset(parameters, per_chain))
    tree[POSITION_GROUP] = xr.DataTree(_dataset(last_position, set(last_position)))
    tree.attrs = plain
    return tree


def _group(
    group: str,
    variables: Mapping[str, np.ndarray],
    labels: Mapping[str, Sequence[str]],
    coords: Mapping[str, np.ndarray],
    sizes: dict[str, int],
    attrs: Mapping[str, Any],
) -> xr.DataTree:
    """One group, labelled as far as its variables allow it."""
    # Here and not above: it sets a lazy numpyro up, and what is imported from numpyro.infer through
    # that loses its submodules. Whoever has a target has imported numpyro before.
    from arviz_base import from_dict

    own = 0 if group.endswith("_data") else 2
    shapes = {name: value.shape[own:] for name, value in variables.items()}
    # A log likelihood has no event axes, and an unconstrained simplex is shorter than its labels.
    fitting = {
        name: [
            label if sizes.get(label, size) == size else None
            for label, size in zip(labels.get(name, ()), shape, strict=False)
        ]
        for name, shape in shapes.items()
    }
    dims = distinct_dims(fitting, shapes, set(variables), sizes)
    options: dict[str, Any] = {
        "save_warmup": True,
        "attrs": {group: attrs},
        "check_conventions": False,
    }
    try:
        tree = from_dict({group: dict(variables)}, dims=dims, coords=dict(coords), **options)
    except Exception as error:  # what was sampled is returned all the same
        warnings.warn(
            f"The dimensions of the group {group} have no labels, because ArviZ refused them: "
            f"{error}. See dims and coords of target.replace(...).",
            UserWarning,
            stacklevel=5,
        )
        plain = distinct_dims({}, shapes, set(variables), {})
        tree = from_dict({group: dict(variables)}, dims=plain, **options)
    return tree[group]  # pyright: ignore[reportReturnType]


def examined(draws: Draws) -> np.ndarray:
    """Evenly spaced positions of a long run, ``[chain, draw, dimension]``, read when used."""
    stride = -(-draws.positions.shape[1] // EXAMINED)
    return draws.positions[:, ::stride]


def to_zarr(path: Any, target: Any, draws: Draws, step_size: Any, **presented: Any) -> xr.DataTree:
    """Write a DataTree block by block, and open it: draws are read when they are used.

    Parameters
    ----------
    path
        Folder that does not exist yet.
    target, draws, step_size
        As in `collect_groups`.
    **presented
        As in `to_datatree`.
    """
    layout, number = Layout.of(target.prototype), draws.positions.shape[1]
    path = Path(path).expanduser()
    blocks = draw_blocks(target, layout, draws.positions)
    length = min(STORED, number, block_length(blocks.shapes, blocks.num_chains, STORED_BYTES))
    dims: dict[str, dict[Any, Any]] = {}
    for start in range(0, number, length):
        block = slice(start, min(start + length, number))
        part = Draws(
            draws.positions[:, block],
            {name: values[:, block] for name, values in draws.stats.items()},
            draws.final_state,
            draws.complete,
        )
        posterior = variables(target, layout, part.positions)
        if start == 0:
            key = jax.random.key(0)  # of predictions, which there are none of
            groups = collect_groups(key, target, part, posterior, None, (), step_size)
            groups["last_position"] = _last_position(layout, draws.positions)
            tree = to_datatree(groups, target=target, **presented)
            grown = [name for name, node in tree.children.items() if "draw" in node.dims]
            tree.to_zarr(path, consolidated=False, encoding=_chunked(tree, grown, length))
            dims = {group: {n: v.dims for n, v in tree[group].variables.items()} for group in grown}
            continue
        # Of the others only what has draws, and no tree: its nodes refer to each other, so that
        # their arrays would stay in memory until the garbage collector runs.
        groups = {
            "posterior": _named(target.names, posterior),
            "sample_stats": to_host(_stats(part, step_size)),
        }
        for group, values in groups.items():
            named = {name: (dims[group][name], value) for name, value in values.items()}
            dataset = xr.Dataset(named, coords={"draw": np.arange(block.start, block.stop)})
            dataset.to_zarr(path, group=group, append_dim="draw", consolidated=False)
    return xr.open_datatree(path, engine="zarr", consolidated=False)


def _chunked(tree: xr.DataTree, grown: Sequence[str], length: int) -> dict[str, Any]:
    """Chunks of a store's arrays: all chains, and a block of draws."""
    encoding = {}
    for group in grown:
        sizes = {
            name: tuple(length if d == "draw" else n for d, n in v.sizes.items())
            for name, v in tree[group].variables.items()
            if "draw" in v.dims
        }
        encoding[f"/{group}"] = {str(name): {"chunks": chunks} for name, chunks in sizes.items()}
    return encoding


def _plain(value: Any) -> str | int | float:
    """Turn a value into what netCDF and zarr accept: a string, a number, or JSON."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str | int | float):
        return value
    return json.dumps(value, default=lambda v: v.tolist() if hasattr(v, "tolist") else repr(v))


def _dataset(variables: Mapping[str, np.ndarray], per_chain: Set[str]) -> xr.Dataset:
    """Variables without coordinates, some with a leading axis of chains."""
    shapes = {n: v.shape[1:] if n in per_chain else v.shape for n, v in variables.items()}
    dims = distinct_dims({}, shapes, set(variables), {})
    leading = {n: ["chain"] if n in per_chain else [] for n in variables}
    return xr.Dataset({n: (leading[n] + dims[n], np.asarray(v)) for n, v in variables.items()})

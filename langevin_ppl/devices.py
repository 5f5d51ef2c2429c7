"""Which device holds what: chains and rows of data spread over a mesh, and results fetched back.

A mesh has an axis ``chain``, an axis ``data``, or both. Programs know nothing of it: what they are
given is placed, and XLA's partitioner does the rest, sums over the devices' rows included. The same
holds for the devices of several processes, each of which runs the same script.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather
from jax.sharding import Mesh, NamedSharding, PartitionSpec

__all__ = [
    "CHAIN",
    "DATA",
    "data_mesh_of",
    "first_says",
    "from_own_part",
    "known_to_all",
    "mesh_for",
    "own_part",
    "place",
    "place_batches",
    "place_data",
    "share_of",
    "to_host",
]

CHAIN, DATA = AXES = ("chain", "data")


def mesh_for(mesh: Mesh | None, num_chains: int) -> Mesh | None:
    """Mesh of a run: the one given, checked, or chains over as many devices as divide them.

    Parameters
    ----------
    mesh
        What the user gave.
    num_chains
        Number of chains.

    Returns
    -------
    Mesh or None
        None where the only device is the default one, so that nothing need be placed.

    Raises
    ------
    TypeError
        If it is no mesh.
    ValueError
        If its axes have other names, do not divide the chains, or leave a process without a device.
    """
    if mesh is None:
        return _over_chains(num_chains)
    if not isinstance(mesh, Mesh):
        raise TypeError(
            "mesh: expected a jax.sharding.Mesh such as jax.make_mesh((2, 2), ('chain', 'data')), "
            f"got {type(mesh).__name__}."
        )
    names = mesh.axis_names
    if not names or set(names) - set(AXES):
        raise ValueError(
            f"mesh: expected axes named 'chain' or 'data', got {names}. Name them when it is "
            "made: jax.make_mesh((2, 2), ('chain', 'data'))."
        )
    if num_chains % mesh.shape.get(CHAIN, 1):
        raise ValueError(
            f"mesh: its axis 'chain' has {mesh.shape[CHAIN]} devices, which do not divide "
            f"num_chains={num_chains}. Take a multiple of {mesh.shape[CHAIN]}, or a shorter axis."
        )
    if {device.process_index for device in mesh.devices.flat} != set(range(jax.process_count())):
        raise ValueError(
            f"mesh: expected devices of all {jax.process_count()} processes, because each of them "
            "runs the same programs. Make it from jax.devices()."
        )
    # Its axes may be explicit, as jax.make_mesh makes them; here the partitioner follows the data.
    return Mesh(mesh.devices, names)


def _over_chains(num_chains: int) -> Mesh | None:
    """Spread chains over the devices, as many of every process, as far as they divide."""
    processes = range(jax.process_count())
    owned = [[d for d in jax.devices() if d.process_index == process] for process in processes]
    counts = range(min(map(len, owned)), 0, -1)
    count = next((n for n in counts if num_chains % (n * len(owned)) == 0), None)
    if count is None:
        raise ValueError(
            f"num_chains: expected a multiple of the {len(owned)} processes, got {num_chains}. "
            "Take as many, or pass a mesh whose axis 'data' goes over the processes."
        )
    chosen = [device for devices in owned for device in devices[:count]]
    return None if len(chosen) == 1 else Mesh(np.asarray(chosen), (CHAIN,))


def place(tree: Any, mesh: Mesh | None, *axes: str | None) -> Any:
    """Put arrays on the devices of a mesh.

    Parameters
    ----------
    tree
        Pytree of arrays, typed keys among them. Of several processes, each has the same.
    mesh
        The mesh; with None everything stays where it is.
    *axes
        Axes of the mesh over which the leading axes of every array are spread; those that the mesh
        does not have, and all others, are not spread.
    """
    if mesh is None:
        return tree
    spec = PartitionSpec(*(axis if axis in mesh.axis_names else None for axis in axes))
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(lambda leaf: _put(leaf, sharding), tree)


def _put(leaf: Any, sharding: NamedSharding) -> Any:
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.jit(lambda x: x, out_shardings=sharding)(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    # A device_put would send all of it to every process, to see that they agree.
    host = np.asarray(leaf)
    dtype = jax.dtypes.canonicalize_dtype(host.dtype)
    # Piece by piece, because it may be a file that is larger than the memory.
    return jax.make_array_from_callback(
        host.shape, sharding, lambda index: host[index].astype(dtype, copy=False)
    )


def place_data(target: Any, mesh: Mesh | None) -> Any:
    """Put the data of a target on the devices of a mesh.

    Where the mesh has an axis ``data``, arrays of rows are spread over it. Those are the arrays
    whose first axis is as long as a subsampled plate or, in a target without one, as the longest
    of all first axes. What is taken for rows changes no result, only where it is computed.

    Parameters
    ----------
    target
        With ``data``, ``with_data``, ``plates`` and ``stream``, whose rows are spread as they come.

    Raises
    ------
    ValueError
        If there are no rows, or the devices do not divide them. To copy them to every device
        instead would use up the memory that the axis was asked for to save.
    """
    if mesh is None:
        return target
    shares = mesh.shape.get(DATA, 1)
    if target.stream is not None:
        if target.stream.batch_size % shares:
            raise ValueError(
                f"mesh: its axis 'data' has {shares} devices, which do not divide the stream's "
                f"batch_size={target.stream.batch_size}. Take a multiple of {shares}."
            )
        return target.with_data(place(target.data, mesh)).read_onto(mesh)
    if shares == 1:
        return target.with_data(place(target.data, mesh))
    lengths = {plate.size for plate in target.plates.values()}
    if not lengths:
        lengths = {max((len(array) for array in target.data if array.ndim), default=0)}
    found = {len(array) for array in target.data if array.ndim} & lengths
    if not found:
        raise ValueError(
            f"mesh: {target.description} has no array of rows to spread over the axis 'data'. "
            "Pass the data as arguments of the model, rows first; those of a plain density as "
            "langevin_ppl.density(jax.tree_util.Partial(logdensity_fn, data), position)."
        )
    for length in sorted(found):
        if length % shares:
            raise ValueError(
                f"mesh: its axis 'data' has {shares} devices, which do not divide the {length} "
                f"rows of {target.description}. Leave out {length % shares} of them, add "
                f"{shares - length % shares} under numpyro.handlers.mask, or take a shorter axis."
            )
    return target.with_data(
        tuple(
            place(array, mesh, *((DATA,) if array.ndim and len(array) in found else ()))
            for array in target.data
        )
    )


def data_mesh_of(arrays: Any) -> Mesh | None:
    """Mesh over whose axis ``data`` rows of any of the arrays are spread; None if of none."""
    for array in jax.tree.leaves(arrays):
        if not isinstance(array, jax.Array) or isinstance(array, Tracer):
            continue
        sharding = array.sharding
        if isinstance(sharding, NamedSharding) and tuple(sharding.spec)[:1] == (DATA,):
            return sharding.mesh if sharding.mesh.shape[DATA] > 1 else None  # pyright: ignore[reportReturnType]
    return None


def to_host(tree: Any) -> Any:
    """Fetch arrays, as NumPy arrays: of several processes, each gets all of them."""

    def gathered(leaf: Any) -> Any:
        whole = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
        return leaf if whole or leaf.is_fully_replicated else process_allgather(leaf, tiled=True)

    return jax.device_get(jax.tree.map(gathered, tree))


def share_of(axis: str, mesh: Mesh | None) -> tuple[int, int]:
    """Which share of what is spread over an axis the devices of this process hold.

    Parameters
    ----------
    axis
        ``"chain"``, or ``"data"`` for the rows of a batch.

    Returns
    -------
    number, count
        This process holds the share ``number`` of ``count`` equal ones: ``(0, 1)`` if it holds all
        of them. Processes along the other axis hold the same.

    Raises
    ------
    ValueError
        If the devices of a process do not hold neighbouring rows or chains.
    """
    if mesh is None or axis not in mesh.axis_names:
        return 0, 1
    along = mesh.axis_names.index(axis)
    places = {
        place[along]
        for place, device in np.ndenumerate(mesh.devices)
        if device.process_index == jax.process_index()
    }
    first, own, all_places = min(places), len(places), mesh.shape[axis]
    if max(places) - first + 1 != own or first % own or all_places % own:
        raise ValueError(
            f"mesh: expected the devices of process {jax.process_index()} side by side along the "
            f"axis '{axis}', got them at {sorted(places)} of {all_places}. Order the devices by "
            "process, as jax.devices() does."
        )
    return int(first // own), int(all_places // own)


def place_batches(local: Any, mesh: Mesh | None, axis: int = 1) -> Any:
    """Make arrays of batches from the rows that this process has read.

    Parameters
    ----------
    local
        Pytree of arrays; rows are along ``axis``, and this process has the share of them that
        `share_of` names.
    mesh
        The mesh; with None the arrays are returned as they are.
    axis
        Axis of rows: 1 for a stack of batches ``[step, row, ...]``.

    Returns
    -------
    Arrays with all rows, spread over the axis ``data``.
    """
    if mesh is None:
        return local
    rows = DATA if DATA in mesh.axis_names else None
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, rows))
    return jax.tree.map(
        lambda part: jax.make_array_from_process_local_data(sharding, np.asarray(part)), local
    )


def own_part(leaf: Any) -> Any:
    """Get the part of an array that the devices of this process hold: neighbouring rows."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    if leaf.is_fully_replicated:
        return np.asarray(leaf)
    parts = {shard.index[0].start or 0: np.asarray(shard.data) for shard in leaf.addressable_shards}
    return np.concatenate([parts[start] for start in sorted(parts)])


def from_own_part(part: Any, like: Any) -> Any:
    """Make an array, spread like another one, from the part of it that `own_part` gives."""
    if not isinstance(like, jax.Array):
        return part
    if like.is_fully_addressable:
        return jax.device_put(part, like.sharding)
    return jax.make_array_from_process_local_data(like.sharding, np.asarray(part), like.shape)


def first_says(flag: bool) -> bool:
    """What the first process says, so that all do the same."""
    if jax.process_count() == 1:
        return flag
    return bool(broadcast_one_to_all(np.asarray(flag)))


def known_to_all(numbers: Sequence[int], most: int) -> list[int]:
    """Those of the first ``most`` numbers that every process has."""
    numbers = list(numbers)[:most]
    if jax.process_count() == 1:
        return numbers
    mine = np.full(most, -1)
    mine[: len(numbers)] = numbers
    rows = np.asarray(process_allgather(mine)).tolist()
    return [number for number in numbers if all(number in row for row in rows)]

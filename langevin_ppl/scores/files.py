"""Scores on disk: one ``.npz`` file of plain arrays and a record in JSON.

Nothing from a file is run: what it names is looked up among the processes and networks of this
library, and pickled objects are refused.
"""

import dataclasses
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import langevin_ppl
from langevin_ppl.checkpoints.files import restored, stored_as, write
from langevin_ppl.scores import gaussian, heavy_tailed, multiplicative
from langevin_ppl.scores.exact import OfData, OfMixture, of_data, of_mixture
from langevin_ppl.scores.learned import Learned
from langevin_ppl.scores.networks import Conditioning, NetworkSpec, network_named
from langevin_ppl.scores.process import NoiseProcess
from langevin_ppl.scores.score import Score
from langevin_ppl.scores.training import as_score

__all__ = ["ScoreFileError", "load", "save"]

FORMAT, VERSION = "langevin_ppl.score", 1
"""Name and number of the format of the files."""

PROCESSES: dict[str, type[NoiseProcess]] = {
    name: getattr(module, name)
    for module in (gaussian, heavy_tailed, multiplicative)
    for name in module.__all__
}
"""Processes that a file may name."""

AROUND = ("location", "scale", "condition_location", "condition_scale")
"""Arrays of a learned denoiser beside its network."""


class ScoreFileError(ValueError):
    """A file that no score can be read from; the message says why, and what to do."""


def save(score: Score, path: str | os.PathLike[str]) -> None:
    """Write a score to one ``.npz`` file.

    Parameters
    ----------
    score
        From `fit`, `exact_mixture` or `empirical`.
    path
        The file. One that is there already is replaced, in one piece.

    Raises
    ------
    TypeError, ValueError
        If it is another score, such as a guided one, or its process is not of this library.

    Examples
    --------
    >>> import os, tempfile, langevin_ppl as lp
    >>> score = lp.scores.exact_mixture(lp.scores.EDM(), [1.0], [[0.0]], [1.0])
    >>> path = os.path.join(tempfile.mkdtemp(), "score.npz")
    >>> lp.scores.save(score, path)
    >>> lp.scores.load(path).process
    EDM(t_min=0.002, t_max=80.0)
    """
    if not isinstance(score, Score):
        raise TypeError(f"score: expected a Score, got {type(score).__name__}.")
    process = score.process
    if PROCESSES.get(type(process).__name__) is not type(process):
        raise ValueError(
            f"process: expected one of {', '.join(PROCESSES)}, because a file can name no other, "
            f"got {process}. Keep the weights, score.denoiser.network, by a library of your choice."
        )
    kind, arrays, about = _contents(score)
    forms, plain = {}, {}
    for name, array in arrays.items():
        forms[name], plain[name] = stored_as(array)
    record = {
        "format": FORMAT,
        "version": VERSION,
        "library": langevin_ppl.__version__,
        "kind": kind,
        "process": {"name": type(process).__name__, **dataclasses.asdict(process)},
        "event_shape": list(score.event_shape),
        **about,
        "arrays": forms,
    }
    record["checksum"] = _checksum(record, plain)
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(record, indent=1).encode(), np.uint8)
    np.savez(buffer, allow_pickle=False, record=text, **plain)
    write(Path(path).expanduser(), buffer.getvalue())


def _contents(score: Score) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Kind of a score, its arrays, and what else is to be known of it."""
    denoiser = score.denoiser
    if isinstance(denoiser, Learned):
        if score.spec is None:
            raise ValueError(
                "score: expected its spec, which fit writes down. Do not replace it by None."
            )
        leaves = [leaf for leaf in jax.tree.leaves(denoiser.network) if _is_array(leaf)]
        arrays = {f"network-{i}": leaf for i, leaf in enumerate(leaves)}
        around = {name: getattr(denoiser, name) for name in AROUND}
        arrays |= {name: value for name, value in around.items() if value is not None}
        return (
            "learned",
            arrays,
            {**json.loads(score.spec), "conservative": denoiser.conservative},
        )
    if isinstance(denoiser, Partial) and isinstance(denoiser.func, OfMixture | OfData):
        kind = "mixture" if isinstance(denoiser.func, OfMixture) else "empirical"
        return kind, {f"part-{i}": part for i, part in enumerate(denoiser.args)}, {}
    raise ValueError(
        "score: expected one from fit, exact_mixture or empirical, got one whose denoiser is "
        f"{type(denoiser).__name__}. Of a guided score, save the score that is guided."
    )


def load(path: str | os.PathLike[str], network: Any = None) -> Score:
    """Read a score from the file that `save` wrote.

    Parameters
    ----------
    path
        The file.
    network
        For a score that was learned with a network of your own: one like it, whose weights are
        replaced.

    Raises
    ------
    ScoreFileError
        If the file is damaged, is no file of a score or of a later version, or needs a network
        that was not given or is not like the one in the file.

    Examples
    --------
    >>> import os, tempfile, jax.numpy as jnp, langevin_ppl as lp
    >>> score = lp.scores.empirical(lp.scores.VP(), [[0.0], [1.0]])
    >>> path = os.path.join(tempfile.mkdtemp(), "score.npz")
    >>> lp.scores.save(score, path)
    >>> x = jnp.array([0.3])
    >>> bool(lp.scores.load(path)(x, 0.5) == score(x, 0.5))
    True
    """
    path = Path(path).expanduser()
    plain = _read(path)
    record = _record(path, plain)
    try:
        forms = record["arrays"]
        arrays = {name: jnp.asarray(restored(plain[name], form)) for name, form in forms.items()}
        fields = dict(record["process"])
        process = PROCESSES[fields.pop("name")](**fields)
        event_shape = tuple(record["event_shape"])
        if record["kind"] == "learned":
            return _learned(path, record, arrays, process, event_shape, network)
        parts = [arrays[f"part-{i}"] for i in range(len(arrays))]
        make = {"mixture": of_mixture, "empirical": lambda p, parts: of_data(p, parts[0])}
        score = make[record["kind"]](process, parts)
    except ScoreFileError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ScoreFileError(
            f"{path}: its record is not one that this version writes ({error!r}). Save it again."
        ) from error
    if network is not None:
        raise ScoreFileError(f"network: {path} has a score without one. Leave it out.")
    return score


def _read(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a file, without what would have to be unpickled or unpacked."""
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as members:
            packed = [m.filename for m in members.infolist() if m.compress_type]
        if packed:
            raise ScoreFileError(
                f"{path}: expected a file that langevin_ppl.scores.save wrote, and {packed[0]} in "
                "it is compressed."
            )
        with np.load(io.BytesIO(content), allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except ScoreFileError:
        raise
    except Exception as error:  # whatever a torn or foreign file makes of its reader
        raise ScoreFileError(
            f"{path}: cannot be read as arrays ({error}). It is damaged, or was not written by "
            "langevin_ppl.scores.save."
        ) from error


def _record(path: Path, plain: dict[str, np.ndarray]) -> dict[str, Any]:
    """Record of a file, when it is whole and of this format."""
    try:
        record = json.loads(plain.pop("record").tobytes())
        about = record["format"], record["version"]
    except Exception as error:
        raise ScoreFileError(
            f"{path}: has no record of a score. It was not written by langevin_ppl.scores.save, or "
            "is damaged."
        ) from error
    if about[0] != FORMAT or not isinstance(about[1], int):
        raise ScoreFileError(f"{path}: expected the format {FORMAT!r}, got {about[0]!r}.")
    if about[1] > VERSION:
        raise ScoreFileError(
            f"{path}: is of version {about[1]} of the format, and this langevin_ppl reads up to "
            f"{VERSION}. Read it with langevin_ppl {record.get('library')} or later."
        )
    checksum = record.pop("checksum", None)
    if checksum != _checksum(record, plain):
        raise ScoreFileError(
            f"{path}: is damaged, its checksum is not that of its contents. Copy or save it again."
        )
    return record


def _checksum(record: Mapping[str, Any], plain: Mapping[str, np.ndarray]) -> str:
    """Checksum of the record and of all arrays with their names, dtypes and shapes."""
    total = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name in sorted(plain):
        array = plain[name]
        total.update(f"{name} {array.dtype.str} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _learned(
    path: Path,
    record: dict[str, Any],
    arrays: dict[str, Any],
    process: NoiseProcess,
    event_shape: tuple[int, ...],
    network: Any,
) -> Score:
    conditioning = None
    if record["conditioning"] is not None:
        kind = record["conditioning"]
        conditioning = Conditioning(tuple(kind["shape"]), kind["num_classes"])
    template = _template(path, record["network"], event_shape, conditioning, network)
    leaves, structure = jax.tree.flatten(template)
    names = iter(f"network-{i}" for i in range(len(leaves)))
    places = [next(names) if _is_array(leaf) else None for leaf in leaves]
    expected = {name: name for name in arrays if name.startswith("network-")}
    if set(expected) != {name for name in places if name}:
        raise ScoreFileError(
            f"network: expected {len(expected)} arrays like those in {path}, got "
            f"{sum(name is not None for name in places)}. Pass a network of the same sizes."
        )
    for name, leaf in zip(places, leaves, strict=True):
        if name is not None and leaf.shape != arrays[name].shape:
            raise ScoreFileError(
                f"network: expected arrays like those in {path}, and number "
                f"{name.removeprefix('network-')} is of shape {arrays[name].shape} there and "
                f"{leaf.shape} here. Pass a network of the same sizes."
            )
    filled = [
        leaf if name is None else arrays[name] for name, leaf in zip(places, leaves, strict=True)
    ]
    around = {name: arrays.get(name) for name in AROUND}
    learned = Learned(
        jax.tree.unflatten(structure, filled),
        process=process,
        conservative=record["conservative"],
        **around,  # pyright: ignore[reportArgumentType]
    )
    spec = {"conditioning": record["conditioning"], "network": record["network"]}
    return as_score(learned, event_shape, conditioning, json.dumps(spec))


def _template(
    path: Path,
    named: Mapping[str, Any] | None,
    event_shape: tuple[int, ...],
    conditioning: Conditioning | None,
    network: Any,
) -> Any:
    """Network whose weights are to be replaced."""
    if named is None:
        if network is None or isinstance(network, NetworkSpec) or not callable(network):
            raise ScoreFileError(
                f"network: the score in {path} was learned with a network of your own. Pass one "
                "like it: load(path, network=...)."
            )
        return network
    spec = network_named(dict(named))
    if network is not None and network != spec:
        raise ScoreFileError(f"network: the score in {path} has {spec}. Leave it out.")
    return jax.eval_shape(lambda: spec.build(jax.random.key(0), event_shape, conditioning))


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct)

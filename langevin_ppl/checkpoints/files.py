"""Files of a checkpoint: arrays and JSON, written whole or not at all, and checked when read."""

import io
import json
import os
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import CheckpointWarning

__all__ = [
    "CheckpointError",
    "Damaged",
    "as_stored",
    "lock",
    "read",
    "restored",
    "stored_as",
    "warn",
    "write",
]


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says why, and what to do."""


class Damaged(Exception):
    """A file is torn, missing or not what was written."""


def warn(message: str) -> None:
    """Say what happened to a checkpoint, without stopping the run."""
    warnings.warn(message, CheckpointWarning, stacklevel=3)


def write(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees all of it or nothing, whenever the process is killed."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name, too, has to be on the disk
    finally:
        os.close(folder)


def as_stored(record: Mapping[str, Any], arrays: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """JSON of a record, sealed with checksums, and the arrays beside it.

    Parameters
    ----------
    record
        What JSON can hold.
    arrays
        Arrays by name, typed keys among them.
    """
    forms, plain = {}, {}
    for name, array in arrays.items():
        forms[name], plain[name] = stored_as(array)
    buffer = io.BytesIO()
    np.savez(buffer, **plain)
    content = buffer.getvalue()
    body = {**record, "arrays": forms, "arrays_checksum": zlib.crc32(content)}
    sealed = {"checksum": zlib.crc32(_canonical(body)), "record": body}
    return json.dumps(sealed, indent=1).encode(), content


def read(record: Path, arrays: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read what `as_stored` made.

    Raises
    ------
    Damaged
        If a file is torn, missing or changed.
    """
    try:
        sealed = json.loads(record.read_bytes())
        body = sealed["record"]
        if zlib.crc32(_canonical(body)) != sealed["checksum"]:
            raise Damaged(f"{record} is not what was written")
        content = arrays.read_bytes()
        if zlib.crc32(content) != body["arrays_checksum"]:
            raise Damaged(f"{arrays} is not what was written")
        with np.load(io.BytesIO(content), allow_pickle=False) as plain:
            found = {name: restored(plain[name], form) for name, form in body["arrays"].items()}
    except Damaged:
        raise
    except Exception as error:  # whatever a torn file makes of its reader
        raise Damaged(f"{record} or {arrays.name} cannot be read ({error})") from error
    return body, found


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True).encode()


def stored_as(array: Any) -> tuple[str, np.ndarray]:
    """Name of an array's dtype, and the array in one that NumPy's files know."""
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        return f"key {jax.random.key_impl(array)}", np.asarray(jax.random.key_data(array))
    plain = np.asarray(array)
    if plain.dtype.kind == "V":  # bfloat16 and its like
        return str(plain.dtype), plain.view(f"u{plain.dtype.itemsize}")
    return str(plain.dtype), plain


def restored(plain: np.ndarray, form: str) -> Any:
    """Array that `stored_as` named so."""
    if form.startswith("key "):
        return jax.random.wrap_key_data(jnp.asarray(plain), impl=form.removeprefix("key "))
    return plain if plain.dtype.name == form else plain.view(jnp.dtype(form))


def lock(folder: Path) -> IO[bytes]:
    """Keep other processes from writing here while the file that is returned is open.

    The system gives it up when the process ends, however it ends.

    Raises
    ------
    CheckpointError
        If another process writes here.
    """
    import fcntl  # not on Windows, where all else runs

    file = (folder / "lock").open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise CheckpointError(
            f"checkpoint: another run is writing to {folder}. Wait for it, or use another path."
        ) from None
    return file

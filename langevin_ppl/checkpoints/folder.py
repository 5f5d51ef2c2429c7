"""The folder of one run: what it was asked for, and its loops."""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import langevin_ppl
from langevin_ppl.base import check_number
from langevin_ppl.checkpoints.files import (
    CheckpointError,
    Damaged,
    as_stored,
    lock,
    read,
    warn,
    write,
)
from langevin_ppl.checkpoints.fingerprint import difference, fingerprint
from langevin_ppl.checkpoints.job import Job, read_job, written_job
from langevin_ppl.checkpoints.stage import Stage, filled
from langevin_ppl.devices import known_to_all, to_host

__all__ = ["EVERY", "Folder", "checked", "create", "reopen", "versions"]

FORMAT = 2
"""Number of the format of the files."""

EVERY = 60.0
"""Seconds between two checkpoints: a state and the draws of a minute cost some milliseconds."""


class Folder:
    """Checkpoint of one run; made by `create` or `reopen`.

    Parameters
    ----------
    path
        The folder.
    every
        Seconds between two states of a loop.
    holds_outputs
        Whether draws stay on disk alone.
    """

    def __init__(self, path: Path, every: float, holds_outputs: bool):
        self.path = path
        self.every = every
        self.holds_outputs = holds_outputs
        self._lock: Any = None
        self._stages: list[Stage] = []

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *error: Any) -> None:
        for stage in self._stages:
            stage.close()
        if self._lock is not None:
            self._lock.close()

    def begin(self) -> bool:
        """Keep other processes out; False, with a warning, where nothing can be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.path)
        except OSError as error:
            warn(
                f"checkpoint: nothing can be written to {self.path} ({error}). The run goes on "
                "without."
            )
            return False
        return True

    def stage(self, name: str, share: tuple[int, int] = (0, 1)) -> Stage:
        """Keeper of a loop, whose outputs have all chains or a share of them."""
        self._stages.append(Stage(self.path / name, self.every, self.holds_outputs, share))
        return self._stages[-1]

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """Result of a computation, from disk where it was made before.

        Parameters
        ----------
        compute
            Can be traced by JAX, so that its structure is known without running it.
        """
        files = self.path / f"{name}.json", self.path / f"{name}.npz"
        found: dict[str, Any] = {}
        if files[0].exists():
            try:
                found = read(*files)[1]
            except Damaged as fault:
                warn(f"checkpoint: {fault}; '{name}' is computed anew.")
        if known_to_all([1] if found else [], 1):
            return filled(jax.eval_shape(compute), found, self.path)
        result = to_host(compute())
        leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(result))}
        self.put(files, as_stored({}, leaves))
        return result

    def save_job(self, job: Job, target: Any) -> None:
        """Write down what is to be run."""
        record, arrays = written_job(job)
        about = {
            "format": FORMAT,
            **versions(),
            "fingerprint": fingerprint(target),
        }
        self.put(_run_files(self.path), as_stored({**about, "job": record}, arrays))

    def put(self, files: tuple[Path, Path], content: tuple[bytes, bytes]) -> None:
        """Write a record and its arrays; a warning where that is not possible."""
        try:
            # The record last: where it is, the arrays are.
            write(files[1], content[1])
            write(files[0], content[0])
        except OSError as error:
            warn(
                f"checkpoint: nothing could be written to {self.path} ({error}). The run goes on "
                "without."
            )


def versions() -> dict[str, str]:
    """Versions that draws may depend on."""
    return {"library": langevin_ppl.__version__, "jax": version("jax")}


def _run_files(path: Path) -> tuple[Path, Path]:
    return path / "run.json", path / "run.npz"


def checked(path: Any, every: Any) -> tuple[Path, float]:
    """Folder of this process, and seconds between two states."""
    if not (isinstance(every, int) and every == 0):
        check_number("every", every, above=0.0)
    folder = Path(path).expanduser()
    if jax.process_count() > 1:  # each process has its part, on a disk of its own or a common one
        folder = folder / f"host-{jax.process_index()}"
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"checkpoint: expected a folder, and {folder} is a file.")
    return folder, float(every)


def create(path: Any, job: Job, target: Any, *, every: Any, holds_outputs: bool = False) -> Folder:
    """Begin the checkpoint of a run.

    Raises
    ------
    CheckpointError
        If there is one already, or another run writes here.
    """
    folder = Folder(*checked(path, every), holds_outputs)
    if _run_files(folder.path)[0].exists():
        raise CheckpointError(
            f"checkpoint: {folder.path} holds a run. Go on with it by langevin_ppl.resume"
            f"({str(path)!r}, target), or use another path."
        )
    if folder.begin():
        folder.save_job(job, target)
    return folder


def reopen(
    path: Any,
    target: Any,
    *,
    every: Any,
    holds_outputs: bool = False,
    kernel: Any = None,
    gradient: Any = None,
    parameters: Mapping[str, Any] | None = None,
) -> tuple[Folder, Job]:
    """Open the checkpoint of an earlier run.

    Raises
    ------
    CheckpointError
        If there is none, or it is of another format, target, kernel or gradient; if another run
        writes here.
    """
    folder = Folder(*checked(path, every), holds_outputs)
    files = _run_files(folder.path)
    if not files[0].exists():
        raise CheckpointError(
            f"resume: {folder.path} holds no run. Start one by langevin_ppl.sample(..., "
            "checkpoint=path)."
        )
    try:
        record, arrays = read(*files)
    except Damaged as fault:
        raise CheckpointError(f"resume: {fault}. Start the run again.") from fault
    if record.get("format") != FORMAT:
        raise CheckpointError(
            f"resume: {folder.path} is of format {record.get('format')!r}, and this version reads "
            f"format {FORMAT}. Resume with langevin_ppl {record.get('library')}."
        )
    differs = difference(record["fingerprint"], fingerprint(target))
    if differs:
        raise CheckpointError(
            f"resume: the target is not that of the run in {folder.path}: {differs}. Pass the "
            "target that the run was made with, or start another run."
        )
    for name, number in versions().items():
        if record[name] != number:
            warn(
                f"resume: the run was made with version {record[name]} of {name}, and this is "
                f"{number}: its draws may differ from those of an uninterrupted run."
            )
    job = read_job(record["job"], arrays, target.prototype, kernel, gradient, parameters)
    folder.begin()
    return folder, job

"""The folder of one training: checksums of what was asked for, and its loop."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langevin_ppl.checkpoints.files import CheckpointError, Damaged, as_stored, read, warn
from langevin_ppl.checkpoints.folder import Folder, checked, versions

__all__ = ["begin_or_go_on"]

FORMAT = 1
"""Number of the format of the files."""

_SPOKEN = {
    "data": "the data",
    "key": "the key",
    "start": "the parameters that it starts from",
    "settings": "the number of steps, the moving average or the validation",
    "program": "the network, loss, optimizer, process or batch size",
}


def begin_or_go_on(path: Any, asked: Mapping[str, str], every: Any) -> Folder:
    """Open the checkpoint of a training: a new one, or that of an equal call.

    Parameters
    ----------
    path
        The folder.
    asked
        Checksums of what determines the training, by what they are of.
    every
        Seconds between two states.

    Raises
    ------
    CheckpointError
        If something else was asked for there, its record cannot be read, or another run writes
        there.
    """
    folder = Folder(*checked(path, every), False)
    files = folder.path / "training.json", folder.path / "training.npz"
    if (folder.path / "run.json").exists():
        raise CheckpointError(
            f"checkpoint: {folder.path} holds a run of langevin_ppl.sample. Use another path."
        )
    if files[0].exists():
        _compare(files, asked)
        folder.begin()
    elif folder.begin():
        about = {"format": FORMAT, **versions(), "asked": dict(asked)}
        folder.put(files, as_stored(about, {}))
    return folder


def _compare(files: tuple[Path, Path], asked: Mapping[str, str]) -> None:
    where = files[0].parent
    try:
        record = read(*files)[0]
    except Damaged as fault:
        raise CheckpointError(f"checkpoint: {fault}. Train again, to another path.") from fault
    if record.get("format") != FORMAT:
        raise CheckpointError(
            f"checkpoint: {where} is of format {record.get('format')!r}, and this version reads "
            f"format {FORMAT}. Go on with langevin_ppl {record.get('library')}."
        )
    here = versions()
    changed = [name for name in here if record.get(name) != here[name]]
    differs = [name for name in asked if record["asked"].get(name) != asked[name]]
    if differs == ["program"] and changed:
        # Another version may write the same program in other words.
        differs = []
    if differs:
        spoken = ", and ".join(_SPOKEN.get(name, name) for name in differs)
        raise CheckpointError(
            f"checkpoint: {where} holds another training: it differs in {spoken}. Ask for the same "
            "again to go on with it, or use another path."
        )
    for name in changed:
        warn(
            f"checkpoint: the training was begun with version {record.get(name)} of {name}, and "
            f"this is {here[name]}: its result may differ from that of an uninterrupted one."
        )

"""Checkpoints: what a run leaves on disk now and then, so that another process can go on."""

from langevin_ppl.checkpoints.files import CheckpointError
from langevin_ppl.checkpoints.folder import EVERY, Folder, create, reopen
from langevin_ppl.checkpoints.job import Job

__all__ = ["EVERY", "CheckpointError", "Folder", "Job", "create", "reopen"]

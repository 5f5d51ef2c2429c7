"""The end of a process, in the middle of a run."""

from langevin_ppl import run


class Killed(Exception):
    """Stands for the end of a process."""


def kill_after(monkeypatch, chunks):
    """Make the process end after so many chunks, of all loops together."""
    left = iter(range(chunks))
    chunk = run._chunk

    def counted(*args, **kwargs):
        if next(left, None) is None:
            raise Killed
        return chunk(*args, **kwargs)

    counted.lower, counted.eval_shape = chunk.lower, chunk.eval_shape
    monkeypatch.setattr(run, "_chunk", counted)

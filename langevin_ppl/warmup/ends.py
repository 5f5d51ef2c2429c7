"""How the search for a mode ended for each chain, as flags."""

import enum
from typing import Any, NamedTuple

import numpy as np

from langevin_ppl.warmup.start import Search

__all__ = ["End", "Ends", "diverged"]

FAR = 1e6
"""Distance of a search's end, in units of its start's scale, that counts as infinity."""

SAME_DENSITY, SAME_DENSITY_ULPS = 0.01, 20.0
"""Difference of log densities, in nats and in units in the last place, that counts as none: what
two searches that converged may leave."""


class End(enum.Enum):
    """How the search of one chain ended, where at least one search found a mode.

    ``BEST``: at the best mode. ``RIDGE``: at the same density, and no lower halfway to the best
    mode. ``EQUAL``: at the same density elsewhere. ``LOWER``: at a lower density. ``MOVED``: at a
    density so much lower that the chain starts at the best mode. ``NONFINITE``: the log density
    became non-finite. ``UNFINISHED``: the search did not converge. ``NO_MODE``: no search found a
    mode.
    """

    BEST = enum.auto()
    RIDGE = enum.auto()
    EQUAL = enum.auto()
    LOWER = enum.auto()
    MOVED = enum.auto()
    NONFINITE = enum.auto()
    UNFINISHED = enum.auto()
    NO_MODE = enum.auto()


class Ends(NamedTuple):
    """Ends of the searches of all chains.

    Attributes
    ----------
    kinds
        One `End` for each chain.
    drops
        Nats below the best mode, ``[chain]``.
    distances
        Distance from the best mode in posterior standard deviations there, ``[chain]``.
    separate
        Whether modes were looked for from every chain on its own (many dimensions): ``BEST`` is
        then a mode, not the same one for all.
    """

    kinds: tuple[End, ...] = ()
    drops: np.ndarray = np.zeros(0)
    distances: np.ndarray = np.zeros(0)
    separate: bool = False

    @classmethod
    def of(cls, search: Search, restarted: Any = None, between: Any = None) -> "Ends":
        """Classify the ends of a search; all arguments are on the host.

        Parameters
        ----------
        restarted
            Whether each chain was moved to the best mode, ``[chain]``.
        between
            Log density halfway between each end and the best mode, ``[chain]``.
        """
        number, separate = len(search.found), np.ndim(search.frame) == 1
        best = float(search.ended[search.best])
        with np.errstate(invalid="ignore", over="ignore"):
            drops = best - np.asarray(search.ended, np.float64)
            shifts = np.asarray(search.ends - search.ends[search.best])
            white = shifts * search.inverse if separate else shifts @ np.asarray(search.inverse).T
            distances = np.linalg.norm(white, axis=1)
        near = max(SAME_DENSITY, SAME_DENSITY_ULPS * np.finfo(search.ends.dtype).eps * abs(best))
        connected = np.zeros(number, bool) if between is None else between >= best - 2 * near
        moved = np.zeros(number, bool) if restarted is None else restarted

        def kind(chain: int) -> End:
            if not search.found.any():
                return End.NO_MODE
            if search.found[chain]:
                return End.BEST
            if not np.isfinite(drops[chain]):
                return End.NONFINITE
            if separate or not search.converged[chain]:
                return End.UNFINISHED
            if moved[chain]:
                return End.MOVED
            if drops[chain] > near:
                return End.LOWER
            return End.RIDGE if connected[chain] else End.EQUAL

        return cls(tuple(kind(chain) for chain in range(number)), drops, distances, separate)

    def chains(self, *kinds: End) -> list[int]:
        """Numbers of the chains whose search ended in one of these ways."""
        return [chain for chain, kind in enumerate(self.kinds) if kind in kinds]

    @property
    def several_modes(self) -> bool:
        """Whether searches converged to different places."""
        return bool(self.chains(End.EQUAL, End.LOWER))

    @property
    def no_mode(self) -> bool:
        """Whether no search found a mode."""
        return End.NO_MODE in self.kinds


def diverged(search: Search) -> np.ndarray:
    """Whether each search went to infinity or became non-finite, ``[chain]``, on the host."""
    far = np.abs(search.ends).max(axis=1)
    return ~np.isfinite(search.ended) | ~(far < FAR)

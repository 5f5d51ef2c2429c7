"""Times at which a sampler evaluates: nodes between the noise and the data."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from langevin_ppl.base import check_counts, check_number
from langevin_ppl.scores.process import NoiseProcess

__all__ = ["SPACINGS", "Grid", "check_order", "check_spacing", "grid"]

KARRAS_POWER = 7.0
"""``rho`` of Karras et al. (2022, arXiv:2206.00364)."""

FEW_STEPS = 15
"""Number of steps below which the last ones are of lower order; that of the code of Lu et al.
(2022, arXiv:2211.01095) as most of its users have it."""


class Grid(NamedTuple):
    """Nodes of a sampler in double precision, from noise to data, each ``[node]``.

    Attributes
    ----------
    time
        Time of the process; the clean datum, where it is the last node, has ``t_min``.
    alpha, sigma
        Schedule there; 1 and 0 at the clean datum.
    """

    time: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        """``sigma / alpha``, which falls from node to node."""
        return self.sigma / self.alpha

    @property
    def log_snr(self) -> np.ndarray:
        """``log(alpha / sigma)``, infinite at the clean datum."""
        with np.errstate(divide="ignore"):
            return -np.log(self.ratio)

    @property
    def num_steps(self) -> int:
        """Number of intervals."""
        return len(self.time) - 1

    @property
    def ends_clean(self) -> bool:
        """Whether the last node is the clean datum."""
        return bool(self.sigma[-1] == 0.0)

    def orders(self, order: int, lower_order_final: bool = False) -> np.ndarray:
        """How many outputs each step of a multistep method reads, ``[step]``.

        As many as there are at the start, one on the way to the clean datum, and on the last few of
        few steps no more than there are steps left.
        """
        number = np.arange(self.num_steps)
        orders = np.minimum(order, number + 1)
        if lower_order_final and self.num_steps < FEW_STEPS:
            orders = np.minimum(orders, self.num_steps - number)
        if self.ends_clean:
            orders[-1] = 1
        return orders


type _Spread = Callable[[NoiseProcess, float, float, np.ndarray], np.ndarray]


def _by_time(process: NoiseProcess, start: float, end: float, share: np.ndarray) -> np.ndarray:
    return start + share * (end - start)


def _by_root_time(process: NoiseProcess, start: float, end: float, share: np.ndarray) -> np.ndarray:
    return (start**0.5 + share * (end**0.5 - start**0.5)) ** 2


def _by_ratio(process: NoiseProcess, start: float, end: float, share: np.ndarray) -> np.ndarray:
    high, low = process.ratio(start), process.ratio(end)
    return process.time_at(high + share * (low - high))


def _by_log_snr(process: NoiseProcess, start: float, end: float, share: np.ndarray) -> np.ndarray:
    high, low = np.log(process.ratio(start)), np.log(process.ratio(end))
    return process.time_at(np.exp(high + share * (low - high)))


def _karras(process: NoiseProcess, start: float, end: float, share: np.ndarray) -> np.ndarray:
    power = 1.0 / KARRAS_POWER
    high, low = process.ratio(start) ** power, process.ratio(end) ** power
    return process.time_at((high + share * (low - high)) ** KARRAS_POWER)


SPACINGS: dict[str, _Spread] = {
    "time": _by_time,
    "root_time": _by_root_time,
    "ratio": _by_ratio,
    "log_snr": _by_log_snr,
    "karras": _karras,
}
"""Uniform in the time, its root, ``sigma / alpha``, its logarithm, or its seventh root."""


def check_spacing(spacing: str) -> None:
    """Refuse a spacing that is not known."""
    if spacing not in SPACINGS:
        raise ValueError(f"spacing: expected one of {', '.join(SPACINGS)}, got {spacing!r}.")


def check_order(name: str, order: int, least: int, most: int, advice: str = "") -> None:
    """Refuse an order that a method does not have."""
    known = isinstance(order, int | np.integer) and not isinstance(order, bool)
    if not (known and least <= order <= most):
        raise ValueError(
            f"order: expected {least} to {most} for {name}, got {order!r}."
            + (f" {advice}" if advice else "")
        )


def grid(
    process: NoiseProcess,
    num_steps: int,
    spacing: str,
    *,
    start: float | None = None,
    denoise: bool = True,
) -> Grid:
    """Nodes of ``num_steps`` steps.

    Parameters
    ----------
    process
        The noise process.
    num_steps
        Steps; with ``denoise`` the last of them goes from ``t_min`` to the clean datum.
    spacing
        One of `SPACINGS`.
    start
        Time of the first node; ``t_max`` by default.
    denoise
        Whether the last node is the clean datum, and not ``t_min``.
    """
    check_counts(1, num_steps=num_steps)
    check_spacing(spacing)
    first = process.t_max if start is None else float(start)
    if start is not None:
        check_number("start", first)
        process.check_time(first)
        if not first > process.t_min:
            raise ValueError(
                f"start: expected a time above {process.t_min:g}, where samplers of {process} end, "
                f"got {first:g}."
            )
    inner = num_steps - 1 if denoise else num_steps
    share = np.arange(inner + 1) / max(inner, 1)
    time = SPACINGS[spacing](process, first, process.t_min, share)
    # The ends exactly: rounding must not leave the interval of the process.
    time[0] = first
    if inner:
        time[-1] = process.t_min
    alpha, sigma = process.alpha(time), process.sigma(time)
    if denoise:
        time, alpha = np.append(time, process.t_min), np.append(alpha, 1.0)
        sigma = np.append(sigma, 0.0)
    return Grid(time, alpha, sigma)

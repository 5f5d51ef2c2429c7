"""How far the draws of a run can be trusted, beyond what their own spread says."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from langevin_ppl.approximation import smooth
from langevin_ppl.base import Draws
from langevin_ppl.findings import LIMITATIONS, Finding
from langevin_ppl.warmup.adaptation import POOR_ANGLE
from langevin_ppl.warmup.report import GOOD, POOR

__all__ = ["HOT", "measured_temperature", "of_gaussian", "reweighted", "too_hot", "trust"]

HOT = 1.25
"""Measured temperature along the noisiest direction, in units of the target's, from which the
standard deviations are said to be inflated. Of 69 runs (``examples/benchmarks/thermometer.py``) it
flagged 34 of the 37 in which one was off by more than 15 %, and none of the others; 1.3 flagged
32, and 1.2 flagged 34 and three of the others."""

CONFIDENCE = 3.0
"""Standard errors by which the temperature must be above that."""

READINGS = {
    GOOD: f"good: the step size reached {POOR_ANGLE:g}",
    POOR: f"poor: the step size stayed below {POOR_ANGLE:g}, which costs efficiency, not accuracy",
}
"""What a judgement of the Gaussian fit means."""

LAPLACE_K = 0.5
"""Pareto k below which importance sampling from the Gaussian at the mode needs no chain."""


def reweighted(draws: Draws) -> tuple[Draws, float | None]:
    """Resample every chain in proportion to the weights of its draws, in their order.

    Returns
    -------
    draws, effective_share
        As they are, and None, where there are no weights.
    """
    if "log_weight" not in draws.stats:
        return draws, None
    log_weights = np.asarray(draws.stats["log_weight"], np.float64)
    number = log_weights.shape[1]
    places = (np.arange(number) + 0.5) / number
    rows, shares = [], []
    for chain in log_weights:
        usable = np.where(np.isnan(chain), -np.inf, chain)
        if not np.isfinite(usable).any():
            rows.append(np.arange(number))
            shares.append(0.0)
            continue
        weights = np.exp(usable - usable.max())
        weights /= weights.sum()
        shares.append(1.0 / (number * np.sum(weights**2)))
        rows.append(np.minimum(np.searchsorted(np.cumsum(weights), places), number - 1))
    chosen = np.stack(rows)

    def take(values: Any) -> np.ndarray:
        values = np.asarray(values)
        return np.take_along_axis(
            values, chosen.reshape(*chosen.shape, *(1,) * (values.ndim - 2)), axis=1
        )

    stats = {name: take(values) for name, values in draws.stats.items()}
    return draws._replace(positions=take(draws.positions), stats=stats), float(np.mean(shares))


def of_gaussian(log_weights: np.ndarray) -> dict[str, Any]:
    """Attributes on how well the Gaussian at the mode fits, from weights of its draws."""
    usable = np.where(np.isfinite(log_weights), log_weights, -np.inf)
    shape = smooth(usable - usable.max())[1] if np.isfinite(usable).any() else math.inf
    return {"laplace_pareto_k": shape, "laplace_is_enough": shape < LAPLACE_K}


def measured_temperature(draws: Draws, temperature: float) -> dict[str, float]:
    """Temperature along the noisiest direction, in units of the target's, and its error."""
    if "temperature" not in draws.stats:
        return {}
    values = np.asarray(draws.stats["temperature"], np.float64) / temperature
    # Means of batches of draws are nearly independent, of neighbours are not.
    number = max(2, min(20, values.shape[1] // 10))
    error = math.nan
    if values.shape[1] >= number:
        batches = [part.mean() for part in np.array_split(values, number, axis=1)]
        error = float(np.std(batches, ddof=1) / math.sqrt(number))
    return {"temperature_noisiest": float(values.mean()), "temperature_error": error}


def too_hot(attributes: Mapping[str, Any]) -> bool:
    """Whether gradient noise inflates standard deviations, by the measured temperature."""
    if "temperature_noisiest" not in attributes:
        return False
    least = attributes["temperature_noisiest"] - CONFIDENCE * attributes["temperature_error"]
    return bool(least > HOT)


def trust(kernel: Any, attributes: Mapping[str, Any], found: Collection[Finding]) -> str:
    """Say in a line how far the draws can be trusted.

    Parameters
    ----------
    kernel
        Kernel of the run.
    attributes
        Attributes of the run.
    found
        Findings on it, from which ``converged`` and ``advice`` are made too.
    """
    parts = []
    if attributes["exact"]:
        parts.append("Exact kernel: its stationary distribution is the target.")
    else:
        order = getattr(kernel, "order", None)
        size = "" if not order else f", of order step_size^{order:g},"
        if order == 0:
            size = ", also at small step sizes,"
        parts.append(f"The kernel has a bias{size} that is not measured here.")
    if "temperature_noisiest" in attributes:
        parts.append(
            "Temperature along the worst direction of the gradient noise: "
            f"{attributes['temperature_noisiest']:.2f} +- {attributes['temperature_error']:.2f} "
            "(1 is right)."
        )
    if attributes.get("laplace_is_enough"):
        parts.append(
            f"The Gaussian at the mode is enough (Pareto k {attributes['laplace_pareto_k']:.2f}): "
            "langevin_ppl.laplace corrects it without a chain."
        )
    if attributes["gaussian_fit"] in READINGS:
        reading = READINGS[attributes["gaussian_fit"]]
        residual = attributes["gaussian_fit_residual"]
        parts.append(f"The Gaussian fit of warm-up is {reading} (residual force {residual:.2f}).")
    return " ".join([*parts, _conclusion(bool(attributes["exact"]), found)])


def _conclusion(exact: bool, found: Collection[Finding]) -> str:
    """Whether the chains have converged, and what was found."""
    clauses = ", ".join(finding.value for finding in found)
    if set(found) - LIMITATIONS:
        return f"Not converged: {clauses}. See the attribute advice."
    if clauses:
        return f"Converged, but {clauses}: see the attribute advice."
    return "Converged: Monte Carlo error is what is left." if exact else "Converged."

"""What is said of a run: its attributes, the verdict on its draws, and warnings."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import BiasWarning, ConvergenceWarning, DivergenceWarning, Draws
from langevin_ppl.convergence import Converged, Convergence, DrawBlocks, as_blocks, judge
from langevin_ppl.devices import to_host
from langevin_ppl.export import LIBRARY
from langevin_ppl.findings import LIMITATIONS, Cure, Finding
from langevin_ppl.kernels import Kernel
from langevin_ppl.preconditioners import Preconditioner
from langevin_ppl.tree import Layout
from langevin_ppl.trust import too_hot, trust
from langevin_ppl.warmup import MAX_TAMING_LOSS, Request, Tuned, traits
from langevin_ppl.warmup.report import POOR

__all__ = ["describe", "reported", "verdict", "warn_of"]

MAX_DIVERGENT_SHARE = 0.05
"""Share of divergent steps of a Langevin kernel above which `sample` warns; each is flagged.

A single Langevin proposal may overshoot by any amount and is then rejected, which is harmless if
it is rare. A trajectory of HMC that diverges is not, so for BlackJAX's kernels every one counts.
"""

MAX_ROUNDING = 0.1
"""Rounding of the log density above which a Metropolis test is not called exact without doubt."""

MAX_ATTRIBUTE_SIZE = 32
"""Largest array that is spelled out in an attribute."""


EVERY_RUN: Mapping[str, Any] = {
    "adaptation": "none",
    "burn_in": "untamed",
    "exact_doubtful": "",
    "gaussian_fit": "not judged",
    "gaussian_fit_residual": math.nan,
    "gradient_growth": math.nan,
    "mode_search": "not made",
    "num_chains_at_best_mode": math.nan,
    "num_gradient_evaluations": math.nan,
    "power_rule": "",
    "step_size_rule": "",
    "weighted": "",
}
"""Attributes of every run as they are where they do not apply."""

PART_OF_DATA: Mapping[str, Any] = {
    "batch_size": math.nan,
    "gradient_choice": "",
    "heavy_rows_share": math.nan,
    "laplace_is_enough": False,
    "laplace_pareto_k": math.nan,
    "num_passes": math.nan,
    "num_pinned_rows": math.nan,
}
"""The same of runs whose gradient reads a part of the data."""


def describe(request: Request, tuned: Tuned, draws: Draws, thinning: int) -> dict[str, Any]:
    """Attributes of the run, without the verdict; docs/attributes.md has all of them."""
    known = traits(request.kernel)
    num_chains, num_samples, _ = draws.positions.shape
    steps = num_chains * num_samples * thinning
    gradients = None if known.gradients_per_step is None else steps * known.gradients_per_step
    if "n_steps" in draws.stats:
        gradients = int(np.sum(draws.stats["n_steps"]))
    attributes = {
        **LIBRARY,
        "kernel": known.name.removeprefix("langevin_ppl."),
        "target": request.target.description,
        "static_arguments": list(request.target.static),
        "parameters": {k: _short(v) for k, v in reported(tuned).items()},
        "metric": _metric(tuned),
        "gradient_estimator": tuned.estimator,
        "temperature": float(tuned.parameters.get("temperature", 1.0)),
        "num_chains": num_chains,
        "num_warmup": request.num_warmup,
        "num_samples": num_samples,
        "thinning": thinning,
        "precision": str(request.layout.dtype),
        "exact": known.exact,
        "incomplete": not draws.complete,
        "summed_out": list(request.target.summed_out),
        **EVERY_RUN,
        **({} if tuned.source is None else PART_OF_DATA),
        **tuned.notes,
    }
    if gradients is not None and tuned.num_gradient_evaluations is not None:
        attributes["num_gradient_evaluations"] = gradients + tuned.num_gradient_evaluations
    if tuned.passes_per_step is not None:
        made = request.num_warmup + num_samples * thinning
        attributes["num_passes"] = tuned.passes + num_chains * made * tuned.passes_per_step
    if known.exact:
        attributes["exact_doubtful"] = _rounding_doubt(draws, request.layout)
    return attributes


def _metric(tuned: Tuned) -> str:
    """Shape of the inverse mass matrix."""
    metric = tuned.parameters.get("inverse_mass_matrix")
    if metric is None:
        return "identity"
    if isinstance(metric, Preconditioner):
        if metric.directions is not None:
            return "low_rank"
        metric = metric.factor
    chains = "inverse_mass_matrix" in tuned.plan.per_chain
    return ("scalar", "diagonal", "dense")[np.ndim(metric) - chains]


def reported(tuned: Tuned) -> dict[str, Any]:
    """Parameters under their public names, arrays as NumPy arrays."""
    reported: dict[str, Any] = {name: value.value for name, value in tuned.plan.fixed}
    for name, value in to_host(tuned.parameters).items():
        if not isinstance(value, Preconditioner):
            reported[name] = np.asarray(value)
        elif value.directions is not None:
            parts = value._asdict()
            reported |= {f"{name}.{part}": np.asarray(parts[part]) for part in parts}
        else:
            factor = np.asarray(value.factor)  # in NumPy: nothing to compile
            # A square of a number would be a scalar of NumPy, which is no array.
            reported[name] = factor @ factor.T if factor.ndim == 2 else np.asarray(factor**2)
    return reported


def verdict(
    posterior: DrawBlocks,
    tuned: Tuned,
    draws: Draws,
    rule: Converged,
    attributes: Mapping[str, Any],
) -> dict[str, Any]:
    """Whether to trust the draws, why not, and what to try: all of it from the same findings."""
    kernel = tuned.plan.algorithm.value
    try:
        seen, shortage = judge(posterior, rule)
    except Exception as error:  # the draws are returned all the same
        seen = Convergence(math.nan, math.nan, math.nan, 0, 0)
        shortage = f"the draws could not be examined ({type(error).__name__}: {error})"
    found = _findings(kernel, seen, rule, tuned, draws, attributes)
    cures = _what_to_try(
        agree=Finding.DISAGREEMENT not in found,
        several_modes=tuned.ends.several_modes,
        far_from_gaussian=tuned.notes.get("gaussian_fit") == POOR or tuned.ends.no_mode,
        all_data=tuned.source is None,
    )
    sentences = list(tuned.doubts)
    if Finding.INFLATED in found:
        sentences.append(_inflation(attributes))
    if Finding.NON_FINITE in found:
        sentences.append(f"A chain became non-finite. {_smaller_step(tuned.source is None)}")
    if shortage and Finding.NON_FINITE not in found:
        sentences.append(f"{shortage[0].upper()}{shortage[1:]}.")
        sentences += [cure.value for cure in cures]
    if Finding.DIVERGENT in found:
        sentences.append(f"There were divergent proposals: {_divergences(draws)}")
    if Finding.ROUNDING in found:
        sentences.append(attributes["exact_doubtful"])
    return {
        "min_ess": seen.ess,
        "min_ess_squares": seen.ess_squares,
        "max_rhat": seen.rhat,
        "converged": not set(found) - LIMITATIONS,
        "advice": " ".join(sentences),
        "trust": trust(kernel, attributes, found),
    }


def _findings(
    kernel: Any,
    seen: Convergence,
    rule: Converged,
    tuned: Tuned,
    draws: Draws,
    attributes: Mapping[str, Any],
) -> tuple[Finding, ...]:
    """Findings on a run, in the order of `Finding`."""
    non_finite = bool(_lost_chains(draws.positions).any())
    holds = {
        Finding.WARM_UP: bool(tuned.doubts),
        Finding.NON_FINITE: non_finite,
        Finding.INFLATED: too_hot(attributes),
        Finding.DISAGREEMENT: not (non_finite or seen.rhat <= rule.rhat),
        Finding.FEW_DRAWS: not (non_finite or min(seen.ess, seen.ess_squares) >= rule.ess),
        Finding.DIVERGENT: not non_finite and _diverged(kernel, draws, attributes["thinning"]),
        Finding.ROUNDING: bool(attributes["exact_doubtful"]),
    }
    return tuple(finding for finding in Finding if holds[finding])


def _what_to_try(
    *, agree: bool, several_modes: bool, far_from_gaussian: bool, all_data: bool
) -> list[Cure]:
    """Choose what may help where draws fall short, by what warm-up saw.

    Parameters
    ----------
    agree
        Whether R-hat is small enough, so that only draws are missing.
    several_modes, far_from_gaussian
        What warm-up saw.
    all_data
        Whether the gradient reads all the data, which a Metropolis test needs.
    """
    if agree:
        return [Cure.MORE_DRAWS]
    cures = []
    if several_modes:
        cures += [Cure.TEMPERING if all_data else Cure.REPLICA_EXCHANGE, Cure.ORDER]
    if far_from_gaussian:
        cures += [Cure.REPARAMETRISE, *([Cure.NUTS] if all_data else [])]
    return [*cures, Cure.LONGER_WARMUP]


def _smaller_step(all_data: bool) -> str:
    """Say how to keep chains finite."""
    return " ".join(
        cure.value for cure in (Cure.SMALLER_STEP, *([Cure.ADJUSTED] if all_data else []))
    )


def _inflation(attributes: Mapping[str, Any]) -> str:
    """Say by how much gradient noise raises the effective temperature."""
    return (
        "Along the worst direction of the gradient noise the temperature is "
        f"{attributes['temperature_noisiest']:.3g} times that of the target, so that posterior "
        f"standard deviations are inflated there. {Cure.LESS_NOISE.value}"
    )


def _diverged(kernel: Any, draws: Draws, thinning: int) -> bool:
    """Whether more proposals of a chain diverged than are harmless."""
    share = MAX_DIVERGENT_SHARE if isinstance(kernel, Kernel) else 0.0
    shares = np.asarray(draws.stats["diverging"]).mean(axis=1)
    return bool((shares > 1.0 - (1.0 - share) ** thinning).any())


def _divergences(draws: Draws) -> str:
    """Count divergent proposals, and say what they mean."""
    diverging = np.asarray(draws.stats["diverging"])
    counts = ", ".join(f"{int(n)} in chain {c}" for c, n in enumerate(diverging.sum(axis=1)))
    return (
        f"{counts}, of {diverging.shape[1]} draws each. There are regions that this step size does "
        f"not enter, and the draws may miss them. {Cure.SMOOTHER.value}"
    )


def _short(value: Any) -> Any:
    """Large arrays stand in the group `sampler_parameters`, not in an attribute."""
    large = isinstance(value, np.ndarray) and value.size > MAX_ATTRIBUTE_SIZE
    return f"array of shape {value.shape}" if large else value


def _rounding_doubt(draws: Draws, layout: Layout) -> str:
    """Say so where rounding of the log density is no longer small in the Metropolis test."""
    values = np.abs(draws.stats.get("lp", np.zeros(1)))
    largest = float(np.max(values, where=np.isfinite(values), initial=0.0))
    rounding = largest * float(jnp.finfo(layout.dtype).eps)
    if rounding <= MAX_ROUNDING:
        return ""
    return (
        f"The log density reaches {largest:.3g}, where {layout.dtype} rounds by {rounding:.2g}: "
        f"the Metropolis test is no longer exact. {Cure.DOUBLE_PRECISION.value}"
    )


def warn_of(kernel: Any, draws: Draws, attributes: Mapping[str, Any]) -> None:
    """Report what went wrong, naming chains and steps."""
    name = traits(kernel).name
    adjusted = [Cure.ADJUSTED.value] if attributes["gradient_estimator"] == "exact" else []
    loss = float(np.nanmean(draws.stats.get("taming_loss", np.zeros(1))))
    if not attributes["exact"] and loss > MAX_TAMING_LOSS:
        warnings.warn(
            f"{name}: taming removed {100 * loss:.0f} % of the gradient on average, so its bias "
            f"dominates the draws. {' '.join(['Use a smaller step_size=.', *adjusted])}",
            UserWarning,
            stacklevel=5,
        )
    if attributes["exact_doubtful"]:
        warnings.warn(attributes["exact_doubtful"], UserWarning, stacklevel=5)
    if attributes["incomplete"]:
        warnings.warn(
            f"Interrupted: the DataTree holds the {draws.positions.shape[1]} draws of each chain "
            "that were done (attribute incomplete=1).",
            UserWarning,
            stacklevel=5,
        )
    if not attributes["converged"]:
        warnings.warn(f"{name}: {attributes['advice']}", ConvergenceWarning, stacklevel=5)
    if too_hot(attributes):
        warnings.warn(f"{name}: {_inflation(attributes)}", BiasWarning, stacklevel=5)
    lost = _lost_chains(draws.positions)
    if lost.any():
        message = _lost_message(name, draws, lost, attributes)
        warnings.warn(message, DivergenceWarning, stacklevel=5)
    elif _diverged(kernel, draws, attributes["thinning"]):
        message = f"{name} made divergent proposals: {_divergences(draws)}"
        warnings.warn(message, DivergenceWarning, stacklevel=5)


def _lost_chains(positions: np.ndarray) -> np.ndarray:
    """Whether each chain has draws that are not finite, read block by block."""
    blocks = [block["x"] for block in as_blocks(positions).read(1)]
    return ~np.all([np.isfinite(rows).all(axis=(1, 2)) for rows in blocks], axis=0)


def _lost_message(name: str, draws: Draws, lost: np.ndarray, attributes: Mapping[str, Any]) -> str:
    """Name the chains that became non-finite, the step, and the cure."""
    chains = np.flatnonzero(lost)
    diverging = np.asarray(draws.stats["diverging"])
    first = diverging[chains].argmax(axis=1) * attributes["thinning"]
    where = ", ".join(f"chain {c} at step {i}" for c, i in zip(chains, first, strict=True))
    intact = np.flatnonzero(~lost).tolist()
    keep = f" The other chains are intact: idata.sel(chain={intact})." if intact else ""
    return (
        f"{name} became non-finite in {where} of sampling; from there on its draws are NaN. "
        f"{_smaller_step(attributes['gradient_estimator'] == 'exact')}{keep}"
    )

"""What is said of a run: its attributes, the verdict on its draws, and warnings."""

import warnings
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import BiasWarning, ConvergenceWarning, DivergenceWarning, Draws
from langevin_ppl.convergence import Converged, Convergence, judge
from langevin_ppl.devices import to_host
from langevin_ppl.export import LIBRARY
from langevin_ppl.kernels import Kernel
from langevin_ppl.preconditioners import Preconditioner
from langevin_ppl.tree import Layout
from langevin_ppl.trust import too_hot
from langevin_ppl.warmup import MAX_TAMING_LOSS, Request, Tuned, traits

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


def describe(request: Request, tuned: Tuned, draws: Draws, thinning: int) -> dict[str, Any]:
    """Attributes of the run."""
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
        "parameters": {k: _short(v) for k, v in reported(tuned).items()},
        "gradient_estimator": tuned.estimator,
        "temperature": float(tuned.parameters.get("temperature", 1.0)),
        "num_chains": num_chains,
        "num_warmup": request.num_warmup,
        "num_samples": num_samples,
        "thinning": thinning,
        "precision": str(request.layout.dtype),
        "exact": known.exact,
        "incomplete": not draws.complete,
        **tuned.notes,
    }
    if request.target.summed_out:
        attributes["summed_out"] = list(request.target.summed_out)
    if gradients is not None and tuned.num_gradient_evaluations is not None:
        attributes["num_gradient_evaluations"] = gradients + tuned.num_gradient_evaluations
    if tuned.passes_per_step is not None:
        made = request.num_warmup + num_samples * thinning
        attributes["num_passes"] = tuned.passes + num_chains * made * tuned.passes_per_step
    doubt = _rounding_doubt(draws, request.layout)
    if known.exact and doubt:
        attributes["exact_doubtful"] = doubt
    return attributes


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
    posterior: Mapping[str, Any],
    tuned: Tuned,
    draws: Draws,
    rule: Converged,
    attributes: Mapping[str, Any],
) -> dict[str, Any]:
    """Whether to trust the draws, why not, and what to try."""
    seen, shortage = judge(posterior, rule)
    doubts = [*tuned.doubts, *too_hot(attributes)]
    verdict: dict[str, Any] = {
        "min_ess": seen.ess,
        "min_ess_squares": seen.ess_squares,
        "max_rhat": seen.rhat,
    }
    if not np.isfinite(draws.positions).all():
        doubts.append("A chain left the finite numbers.")
    if shortage:
        doubts.append(f"{shortage[0].upper()}{shortage[1:]}. {_what_to_try(seen, rule, tuned)}")
    verdict["converged"] = not doubts
    if doubts:
        verdict["advice"] = " ".join(doubts)
    return verdict


def _what_to_try(seen: Convergence, rule: Converged, tuned: Tuned) -> str:
    """Say what may help, by what warm-up saw."""
    if seen.rhat <= rule.rhat:
        return "Take more draws: num_samples=, or until=langevin_ppl.converged()."
    cures = []
    if tuned.ends.several_modes:
        cures.append(
            "Searches for the mode ended in different places: there may be several modes, which "
            "tempering reaches (blackjax.adaptive_tempered_smc), or labels that can be ordered"
        )
    if "poor" in tuned.notes.get("gaussian_fit", "") or tuned.ends.no_mode:
        cures.append(
            "The posterior is far from Gaussian: make sure that it is proper, reparametrise it (a "
            "non-centred hierarchy, numpyro.infer.reparam.LocScaleReparam), or try blackjax.nuts"
        )
    cures.append("Take more draws, with a longer warm-up (num_warmup=)")
    return ". ".join(cures) + "."


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
        "the Metropolis test is no longer exact. Use jax.config.update('jax_enable_x64', True)."
    )


def warn_of(kernel: Any, draws: Draws, attributes: Mapping[str, Any]) -> None:
    """Report what went wrong, naming chains and steps."""
    name = traits(kernel).name
    share = MAX_DIVERGENT_SHARE if isinstance(kernel, Kernel) else 0.0
    loss = float(np.nanmean(draws.stats.get("taming_loss", np.zeros(1))))
    if not attributes["exact"] and loss > MAX_TAMING_LOSS:
        warnings.warn(
            f"{name}: taming removed {100 * loss:.0f} % of the gradient on average, so its bias "
            "dominates the draws. Use a smaller step_size, or an adjusted kernel "
            "(langevin_ppl.tmala).",
            UserWarning,
            stacklevel=5,
        )
    if "exact_doubtful" in attributes:
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
    for sentence in too_hot(attributes):
        warnings.warn(f"{name}: {sentence}", BiasWarning, stacklevel=5)
    diverging = np.asarray(draws.stats["diverging"])
    lost = ~np.isfinite(draws.positions).all(axis=(1, 2))
    message = ""
    if lost.any():
        message = _lost_message(name, diverging, lost, attributes["thinning"])
    elif (diverging.mean(axis=1) > (1.0 - (1.0 - share) ** attributes["thinning"])).any():
        counts = ", ".join(f"{int(n)} in chain {c}" for c, n in enumerate(diverging.sum(axis=1)))
        message = (
            f"{name} made divergent proposals ({counts}, of {diverging.shape[1]} draws each): "
            "there are regions that this step size does not enter, and the draws may miss them. "
            "Reparametrise the model, or lower step_size."
        )
    if message:
        warnings.warn(message, DivergenceWarning, stacklevel=5)


def _lost_message(name: str, diverging: np.ndarray, lost: np.ndarray, thinning: int) -> str:
    """Name the chains that left the finite numbers, the step, and the cure."""
    chains = np.flatnonzero(lost)
    first = diverging[chains].argmax(axis=1) * thinning
    where = ", ".join(f"chain {c} at step {i}" for c, i in zip(chains, first, strict=True))
    intact = np.flatnonzero(~lost).tolist()
    keep = f" The other chains are intact: idata.sel(chain={intact})." if intact else ""
    return (
        f"{name} left the finite numbers in {where} of sampling; from there on its draws are NaN. "
        "Use a smaller step_size, a tamed kernel (langevin_ppl.tula), or an adjusted one "
        f"(langevin_ppl.mala, langevin_ppl.tmala).{keep}"
    )

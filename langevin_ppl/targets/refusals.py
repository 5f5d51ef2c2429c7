"""Models that are refused, with the reason and the cure."""

import importlib.util
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from numpyro.distributions import Delta, MaskedDistribution
from numpyro.distributions.transforms import biject_to
from numpyro.primitives import Messenger

from langevin_ppl.base import Plate

__all__ = [
    "Checked",
    "explain_mask",
    "innermost",
    "mask_of_elements",
    "masked",
    "refuse_in_plates",
    "refuse_latents",
]


class Checked(Messenger):
    """Refuse what would fail without a reason, or be missing from a trace.

    That is a name that two statements have, and a latent site without a support.
    """

    def __init__(self, fn: Callable[..., Any]):
        super().__init__(fn)
        self.statements: dict[str, tuple[str, Any]] = {}

    def process_message(self, msg: Any) -> None:
        """Look at a statement."""
        kind, name, args = msg["type"], msg.get("name"), msg.get("args")
        if kind not in ("sample", "deterministic", "param", "mutable", "plate"):
            return
        if kind == "sample" and not msg["is_observed"]:
            _check_support(name, msg["fn"])
        if name not in self.statements:
            self.statements[name] = kind, args
            return
        earlier = self.statements[name]
        if earlier[0] != kind or kind in ("sample", "deterministic"):
            raise ValueError(
                f"The name '{name}' stands in a {earlier[0]} statement and in a {kind} statement: "
                "give one of them another name."
            )
        if kind == "plate" and earlier[1] != args and not {earlier[1][1], args[1]} <= {None}:
            raise ValueError(
                f"The subsampled plate '{name}' is declared with the sizes {earlier[1]} and "
                f"{args} (rows, rows of a batch): give one of them another name."
            )


def _check_support(name: str, fn: Any) -> None:
    """Refuse a distribution whose support has no transform to unconstrained space."""
    kind = type(innermost(fn)).__name__
    cure = (
        f"Give the class {kind} the attribute support = numpyro.distributions.constraints.real (or "
        "positive, unit_interval, ...), or the property numpyro.distributions.constraints."
        "dependent_property where it depends on parameters."
    )
    try:
        # The class of a wrapped distribution asserts that there is one.
        support = fn.support
        is_discrete = support.is_discrete
    except (AssertionError, AttributeError):
        raise ValueError(
            f"The site '{name}' has the distribution {kind} without a support. {cure}"
        ) from None
    except NotImplementedError:
        raise ValueError(
            f"The site '{name}' has the distribution {kind}, whose support is declared as "
            f"dependent and not given. {cure}"
        ) from None
    if is_discrete or "sphere" in repr(support).lower():  # NumPyro names the reparametrisation
        return
    try:
        biject_to(support)
    except NotImplementedError:
        raise ValueError(
            f"The site '{name}' has the distribution {kind} with the support "
            f"{type(support).__name__}, for which no transform from unconstrained space is "
            "registered. Register one by "
            f"@numpyro.distributions.biject_to.register({type(support).__name__}), or use a "
            "constraint of numpyro.distributions.constraints."
        ) from None


def refuse_latents(latent: dict[str, dict[str, Any]]) -> None:
    """Refuse, with the reason and the cure, what would be sampled wrongly."""
    if not latent:
        raise ValueError(
            "The model has no latent site: there is nothing to sample. Every `sample` statement "
            "has obs=...; did you pass the data as the argument that is observed, or condition "
            "on too much?"
        )
    _refuse_discrete({k: v for k, v in latent.items() if v["fn"].support.is_discrete}, len(latent))
    fixed = [k for k, v in latent.items() if isinstance(innermost(v["fn"]), Delta)]
    if fixed:
        raise ValueError(
            f"Latent site {', '.join(map(repr, fixed))} has a Delta distribution, which has no "
            "density; use numpyro.deterministic for a value that is known."
        )


def _refuse_discrete(discrete: dict[str, dict[str, Any]], num_latent: int) -> None:
    """Refuse discrete latent sites that cannot be summed out."""
    if not discrete:
        return
    names = ", ".join(map(repr, discrete))
    other_ways = (
        "Sum it out in the model (for a mixture, numpyro.distributions.MixtureSameFamily), "
        "observe it, or sample it by numpyro.infer.DiscreteGibbs beside a kernel of "
        "langevin_ppl.infer."
    )
    infinite = [k for k, v in discrete.items() if not v["fn"].has_enumerate_support]
    if infinite:
        raise ValueError(
            f"Discrete latent site {', '.join(map(repr, infinite))}: Langevin dynamics needs "
            "gradients, and its values cannot be enumerated to sum them out. "
            "Give it a distribution with finitely many values, or marginalise it by hand."
        )
    marks = {k: v["infer"].get("enumerate", "parallel") for k, v in discrete.items()}
    other = [f"'{k}' ('{mark}')" for k, mark in marks.items() if mark != "parallel"]
    if other:
        raise ValueError(
            f"Discrete latent site {', '.join(other)}: expected infer={{'enumerate': 'parallel'}}, "
            f"the one way in which values are summed out. {other_ways}"
        )
    if len(discrete) == num_latent:
        raise ValueError(
            f"All latent sites are discrete ({names}): nothing is left for Langevin dynamics to "
            "sample. Use numpyro.infer.DiscreteGibbs, or numpyro.infer.Predictive with "
            "infer_discrete=True."
        )
    if importlib.util.find_spec("funsor") is None:
        raise ValueError(
            f"Discrete latent site {names}: Langevin dynamics needs gradients. With funsor "
            f"installed (pip install 'langevin-ppl[enum]') its values are summed out. {other_ways}"
        )


def refuse_in_plates(
    trace: dict[str, dict[str, Any]],
    latent: dict[str, dict[str, Any]],
    plates: dict[str, Plate],
    asks_for_key: bool,
) -> None:
    """Refuse what a batch of rows would get wrong."""
    names = ", ".join(map(repr, plates))
    for name, site in trace.items():
        inside = [f.name for f in site.get("cond_indep_stack", ()) if f.name in plates]
        if not inside:
            continue
        where = f"in the subsampled plate '{inside[0]}'"
        if name in latent and name.endswith("_unobserved"):
            raise ValueError(
                f"The site '{name.removesuffix('_unobserved')}' has an obs_mask {where}: it makes "
                "latent values for rows, which would be handed to other rows with every batch. "
                "Leave rows out by numpyro.handlers.mask, or leave out subsample_size."
            )
        if name in latent:
            raise ValueError(
                f"The latent site '{name}' lies {where}: its values belong to rows, and would be "
                "handed to other rows with every batch. Leave out subsample_size to sample it with "
                "all the data, or integrate it out in the model."
            )
        if site["type"] == "deterministic":
            raise ValueError(
                f"The deterministic site '{name}' lies {where}, and would hold the rows of one "
                "batch. Move it out of the plate, or compute it from the draws."
            )
    mutable = [name for name, site in trace.items() if site["type"] == "mutable"]
    if mutable:
        raise ValueError(
            f"The mutable site {', '.join(map(repr, mutable))} holds state that batches would have "
            f"to renew (batch normalisation), and stays as it began. With the subsampled plate "
            f"{names}, use a layer without state, for example layer normalisation."
        )
    if asks_for_key:
        raise ValueError(
            "The model asks for a random key (numpyro.prng_key, as dropout does), which would be "
            f"the same for every batch of the subsampled plate {names}. Switch dropout off "
            "(deterministic=True)."
        )
    discrete = [name for name, site in latent.items() if site["fn"].support.is_discrete]
    if discrete:
        raise ValueError(
            f"Discrete latent site {', '.join(map(repr, discrete))}: it cannot be summed out where "
            f"the plate {names} is subsampled. Sum it out in the model (for a mixture, "
            "numpyro.distributions.MixtureSameFamily), or leave out subsample_size."
        )


def mask_of_elements(site: Mapping[str, Any]) -> str | None:
    """Say that a mask seems to be one of the elements of events; None where it does not."""
    fn = masked(site["fn"])
    if fn is None or fn.event_dim == 0:
        return None
    shape = jnp.shape(fn._mask)
    if shape[-fn.event_dim :] != fn.event_shape:
        return None
    return (
        f"The mask of the site '{site['name']}' has shape {shape}, and its distribution "
        f"{type(innermost(fn)).__name__} has events of shape {fn.event_shape}: expected one value "
        "for each event. Single elements of an event cannot be masked; write the conditional "
        "distribution of the elements that are observed, or use independent elements."
    )


def explain_mask(error: Exception) -> str | None:
    """Say which mask did not fit its site, where that is why a trace failed; else None."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        msg = frame.f_locals.get("msg")
        if frame.f_code.co_name == "process_message" and isinstance(msg, dict):
            reason = mask_of_elements(msg) if msg["type"] == "sample" else None
            if reason is not None:
                return reason
    return None


def masked(fn: Any) -> MaskedDistribution | None:
    """Masked distribution inside the ones around it; None without one."""
    while hasattr(fn, "base_dist") and not isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    return fn if isinstance(fn, MaskedDistribution) else None


def innermost(fn: Any) -> Any:
    """Distribution inside the ones that plates, masks and ``to_event`` wrap around it."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn

"""What is known of a kernel, of this library or of BlackJAX, beyond how to step it."""

import inspect
from typing import Any, NamedTuple

import blackjax

from langevin_ppl.kernels import Kernel

__all__ = [
    "MCLMC",
    "POOLED",
    "STEP_SIZE",
    "WINDOW",
    "Traits",
    "parameters_of",
    "takes_a_density",
    "traits",
]

POOLED = "pooled windows"
"""Our own: step size by dual averaging, metric by windows, both pooled over chains."""
STEP_SIZE = "pooled step size"
"""Our dual averaging of the step size alone."""
WINDOW = "blackjax.window_adaptation"
MCLMC = "blackjax.mclmc_find_L_and_step_size"


class Traits(NamedTuple):
    """What is known of a kernel.

    Attributes
    ----------
    name
        How to call it in a message.
    adaptation
        The adaptation that `sample` runs, or None: then all parameters must be given.
    target_acceptance_rate
        What that adaptation aims at.
    exact
        Whether its stationary law is the target.
    gradients_per_step
        Gradient evaluations of a step whose info does not count them; None if unknown.
    required
        Parameters that must be given although they have a default.
    """

    name: str
    adaptation: str | None = None
    target_acceptance_rate: float | None = None
    exact: bool = True
    gradients_per_step: int | None = None
    required: tuple[str, ...] = ()

    @property
    def tunes(self) -> frozenset[str]:
        """Names of the parameters that the adaptation sets, as far as the kernel has them."""
        return {
            POOLED: frozenset(
                {"step_size", "inverse_mass_matrix", "location", "frequency", "friction"}
            ),
            STEP_SIZE: frozenset({"step_size"}),
            WINDOW: frozenset({"step_size", "inverse_mass_matrix"}),
            MCLMC: frozenset({"L", "step_size", "inverse_mass_matrix"}),
        }.get(self.adaptation or "", frozenset())


_BLACKJAX = (
    Traits("nuts", WINDOW, 0.8),
    Traits("hmc", WINDOW, 0.8),
    Traits("multinomial_hmc", WINDOW, 0.8),
    # BlackJAX 1.7.1 scales Barker's proposal by the mass matrix instead of its inverse, so that
    # windows would stretch it the wrong way; only its step size is tuned, at the identity.
    Traits("barker", STEP_SIZE, 0.4, gradients_per_step=1),
    Traits("mala", STEP_SIZE, 0.574, gradients_per_step=1),
    # The default integrator, McLachlan's, evaluates two gradients a step.
    Traits("mclmc", MCLMC, exact=False, gradients_per_step=2),
    Traits("ghmc", gradients_per_step=1),
    Traits("slice_sampling", gradients_per_step=0),
    Traits("coordinate_slice", gradients_per_step=0),
    Traits("additive_step_random_walk", gradients_per_step=0),
    Traits("rmh", gradients_per_step=0),
    # Without the density of its proposals it samples another law.
    Traits("irmh", gradients_per_step=0, required=("proposal_logdensity_fn",)),
    Traits("dynamic_hmc"),
    Traits("dmhmc"),
    Traits("rmhmc"),
    Traits("adjusted_mclmc", required=("num_integration_steps",)),
    Traits("adjusted_mclmc_dynamic"),
)


def traits(kernel: Any) -> Traits:
    """Look a kernel up. One that nothing is known of is not called exact.

    BlackJAX's objects are compared by identity, because they are not hashable.
    """
    if isinstance(kernel, Kernel):
        rate = kernel.tuner.target_acceptance_rate
        return Traits(repr(kernel), POOLED, rate, kernel.exact, kernel.gradients_per_step)
    names = [name for name, value in vars(blackjax).items() if value is kernel]
    for row in _BLACKJAX:
        if row.name in names:
            return row._replace(name=f"blackjax.{row.name}")
    if names:
        return Traits(f"blackjax.{names[0]}", exact=False)
    return Traits(getattr(kernel, "__name__", type(kernel).__name__), exact=False)


def takes_a_density(kernel: Any) -> bool:
    """Whether a kernel samples the log density that it is given, and nothing else with it."""
    if isinstance(kernel, Kernel):
        return True
    first, *_ = inspect.signature(getattr(kernel, "differentiable", kernel)).parameters
    # The one multiplies the density by a Gaussian prior of its own, and the states of the other
    # are orbits.
    refused = kernel is blackjax.mgrad_gaussian or kernel is blackjax.orbital_hmc
    return first == "logdensity_fn" and not refused


def parameters_of(kernel: Any) -> dict[str, Any]:
    """Names and defaults of a kernel's parameters; `inspect.Parameter.empty` without one."""
    if isinstance(kernel, Kernel):
        return dict(kernel.parameters)
    function = getattr(kernel, "differentiable", kernel)
    _, *own = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in own}

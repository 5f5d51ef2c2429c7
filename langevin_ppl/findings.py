"""Findings on a run and their cures: flags first, and the words of each in one table."""

import enum

__all__ = ["LIMITATIONS", "Cure", "Finding"]


class Finding(enum.Enum):
    """What speaks against the draws of a run. The value is its clause in the attribute `trust`."""

    WARM_UP = "warm-up reported a problem"
    NON_FINITE = "a chain became non-finite"
    INFLATED = "gradient noise inflates the posterior standard deviations"
    DISAGREEMENT = "R-hat is too large"
    FEW_DRAWS = "the effective sample size is too small"
    DIVERGENT = "proposals diverged"
    ROUNDING = "rounding disturbs the Metropolis test"


LIMITATIONS = frozenset({Finding.DIVERGENT, Finding.ROUNDING})
"""Findings that restrict what the draws can be trusted for, although the chains have converged."""


class Cure(enum.Enum):
    """What may help. The value is its sentence in the attribute `advice` and in warnings."""

    MORE_DRAWS = "Take more draws: num_samples=, or until=langevin_ppl.converged()."
    LONGER_WARMUP = "Take more draws (num_samples=), with a longer warm-up (num_warmup=)."
    TEMPERING = (
        "Searches for the mode ended in different places: there may be several modes. Chains that "
        "are tempered move between them: "
        "kernel=langevin_ppl.parallel_tempering(langevin_ppl.mala, [1, 4, 16])."
    )
    REPLICA_EXCHANGE = (
        "Searches for the mode ended in different places: there may be several modes. Chains that "
        "are tempered move between them: "
        "kernel=langevin_ppl.replica_exchange(langevin_ppl.ula, [1, 4, 16])."
    )
    ORDER = (
        "If the modes differ by a permutation of labels, order one parameter "
        "(numpyro.distributions.constraints.ordered_vector)."
    )
    REPARAMETRISE = (
        "The posterior is far from Gaussian: make sure that it is proper, and reparametrise it (a "
        "non-centred hierarchy, numpyro.infer.reparam.LocScaleReparam)."
    )
    NUTS = "Or use kernel=blackjax.nuts."
    SMALLER_STEP = "Use a smaller step_size=, or a tamed kernel (langevin_ppl.tula)."
    ADJUSTED = "Or use a kernel with a Metropolis test (langevin_ppl.mala, langevin_ppl.tmala)."
    LESS_NOISE = (
        "Use control variates (gradient=langevin_ppl.control_variates()), a larger batch, or a "
        "smaller step_size=."
    )
    SMOOTHER = "Reparametrise the model, or lower step_size=."
    DOUBLE_PRECISION = "Use jax.config.update('jax_enable_x64', True)."

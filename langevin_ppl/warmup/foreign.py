"""BlackJAX's own adaptations, chain by chain."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import blackjax
import jax
import jax.numpy as jnp

from langevin_ppl.base import Array, LogDensity, PRNGKey
from langevin_ppl.run import Plan
from langevin_ppl.warmup.traits import WINDOW, traits

__all__ = ["Adapted", "adapt_chains"]


class Adapted(NamedTuple):
    """What an adaptation of BlackJAX leaves; everything has a leading axis ``chain``.

    Attributes
    ----------
    states
        States of the algorithm.
    parameters
        Tuned parameters.
    num_gradient_evaluations
        Gradient evaluations that it cost.
    """

    states: Any
    parameters: dict[str, Array]
    num_gradient_evaluations: Array


def adapt_chains(
    keys: PRNGKey,
    logdensity_fn: LogDensity,
    positions: Array,
    given: Mapping[str, Any],
    plan: Plan,
    num_steps: int,
) -> Adapted:
    """Run BlackJAX's own adaptation of an algorithm on every chain.

    Parameters
    ----------
    keys, positions
        One for each chain; positions are flat.
    given
        Parameters that are not tuned, arrays among them.
    plan
        The static part.
    num_steps
        Length of the adaptation.
    """
    return _adapt(keys, logdensity_fn, positions, dict(given), plan=plan, num_steps=num_steps)


@functools.partial(jax.jit, static_argnames=("plan", "num_steps"))
def _adapt(
    keys: PRNGKey,
    logdensity_fn: LogDensity,
    positions: Array,
    given: dict[str, Any],
    *,
    plan: Plan,
    num_steps: int,
) -> Adapted:
    algorithm = plan.algorithm.value
    adapt = _window if traits(algorithm).adaptation == WINDOW else _mclmc
    given = {**given, **{name: value.value for name, value in plan.fixed}}
    flat = plan.flat(logdensity_fn)
    return jax.vmap(lambda key, x: adapt(algorithm, key, flat, x, num_steps, given))(
        keys, positions
    )


def _window(
    algorithm: Any,
    rng_key: PRNGKey,
    logdensity_fn: Callable[[Array], Array],
    position: Array,
    num_steps: int,
    given: Mapping[str, Any],
) -> Adapted:
    row = traits(algorithm)

    def count(state: Any, info: Any, adaptation_state: Any) -> Any:
        return getattr(info, "num_integration_steps", jnp.asarray(row.gradients_per_step or 0))

    adaptation = blackjax.window_adaptation(
        algorithm,
        logdensity_fn,
        target_acceptance_rate=cast(float, row.target_acceptance_rate),
        adaptation_info_fn=count,
        **given,
    )
    run = cast(Callable[..., Any], adaptation.run)
    (state, parameters), gradients = run(rng_key, position, num_steps)
    tuned = {name: parameters[name] for name in ("step_size", "inverse_mass_matrix")}
    return Adapted(state, tuned, jnp.sum(gradients) + 1)


def _mclmc(
    algorithm: Any,
    rng_key: PRNGKey,
    logdensity_fn: Callable[[Array], Array],
    position: Array,
    num_steps: int,
    given: Mapping[str, Any],
) -> Adapted:
    key_init, key_tune = jax.random.split(rng_key)
    # Its three phases are shares of a run's length; here they are the whole of the warm-up.
    share = 1.0 / 3.0
    state, tuned, num_tuning_steps = blackjax.mclmc_find_L_and_step_size(
        mclmc_kernel=algorithm.build_kernel(**given),
        num_steps=num_steps,
        state=algorithm.init(position, logdensity_fn, key_init),
        rng_key=key_tune,
        logdensity_fn=logdensity_fn,
        frac_tune1=share,
        frac_tune2=share,
        frac_tune3=share,
    )
    names = ("L", "step_size", "inverse_mass_matrix")
    parameters = {name: jnp.asarray(getattr(tuned, name)) for name in names}
    return Adapted(state, parameters, 2 * jnp.asarray(num_tuning_steps) + 1)

"""Where walkers begin: at what was passed, in a law that is known, at data, or at noise."""

from typing import Any

import jax
import jax.numpy as jnp

from langevin_ppl.base import Position, PRNGKey
from langevin_ppl.energy.annealed import anneal, draws_of_base
from langevin_ppl.energy.data import by_site, moments_of, positions_of
from langevin_ppl.energy.methods import Sampling, Start
from langevin_ppl.energy.model import base_of
from langevin_ppl.energy.walkers import Chains, is_weighable
from langevin_ppl.targets import ModelTarget
from langevin_ppl.tree import ravel

__all__ = ["start_of"]

LEVELS = 200
"""Levels of the annealing from the base measure to the first parameters."""


def start_of(
    rng_key: PRNGKey,
    method: Sampling,
    chains: Chains,
    parameters: Any,
    positions: Position,
    rows: Any,
    batch_size: int,
    walkers: Any,
    log_normalizer: float | None,
) -> Start | None:
    """Walkers of a training to begin with; None where each update begins anew.

    Parameters
    ----------
    rng_key
        A key.
    method, chains
        What moves how.
    parameters
        Of the model, unconstrained.
    positions, rows
        Unconstrained data and their conditions.
    batch_size
        Rows of a batch.
    walkers, log_normalizer
        As they were passed to `langevin_ppl.energy.fit`.

    Raises
    ------
    ValueError
        If the method cannot begin there; the message says why.
    """
    number = method.num_walkers(batch_size)
    weighted = method.name == "jarzynski"
    if log_normalizer is not None and not (weighted and walkers is not None):
        raise ValueError(
            "log_normalizer: it belongs to walkers=, exact draws of the model at its first "
            "parameters, of jarzynski()."
        )
    if number == 0:
        if walkers is not None:
            raise ValueError(f"walkers: {method.name} begins at the data in every update.")
        return None
    if weighted:
        _check_weighable(chains, rows)
    if method.name == "replay" and number < batch_size:
        raise ValueError(
            f"replay: expected a buffer_size of at least the {batch_size} rows of a batch, got "
            f"{number}."
        )
    target = chains.model.latent.with_fixed(chains.model.values(parameters))
    if walkers is not None:
        return _given(rng_key, chains, number, weighted, rows, walkers, log_normalizer)
    if weighted:
        return _annealed(rng_key, target, chains, number)
    key_rows, key_noise = jax.random.split(rng_key)
    length = len(jax.tree.leaves(positions)[0])
    places = jax.random.randint(key_rows, (number,), 0, length)
    # The law of conditions is that of the data, wherever walkers begin.
    own = jax.tree.map(lambda leaf: leaf[places], rows)
    if method.name == "persistent":
        return _unweighted(jax.tree.map(lambda leaf: leaf[places], positions), own, number)
    base = None if rows is not None else _base(target)
    if base is not None:
        return _unweighted(draws_of_base(key_noise, base, number), None, number)
    return _unweighted(_noise(key_noise, positions, number), own, number)


def _unweighted(positions: Position, rows: Any, number: int) -> Start:
    return Start(positions, rows, jnp.zeros(number), jnp.zeros(()), jnp.zeros(()))


def _given(
    rng_key: PRNGKey,
    chains: Chains,
    number: int,
    weighted: bool,
    rows: Any,
    walkers: Any,
    log_normalizer: float | None,
) -> Start:
    """Begin at what was passed, of which some come twice or not where the numbers differ."""
    if weighted and log_normalizer is None:
        raise ValueError(
            "walkers: jarzynski() needs exact draws of the model at its first parameters, and "
            "their log Z as log_normalizer=. Without, leave walkers out and give the energy a "
            "base measure."
        )
    if rows is not None:
        raise ValueError("walkers: a model with conditions begins at its data.")
    latent = chains.model.latent
    given = positions_of(latent, by_site(latent, walkers, "walkers"), None, "walkers")
    size = len(jax.tree.leaves(given)[0])
    if weighted and size != number:
        raise ValueError(f"walkers: expected num_walkers={number} exact draws, got {size}.")
    if size != number:
        again = jax.random.randint(rng_key, (number,), 0, size)
        given = jax.tree.map(lambda leaf: leaf[again], given)
    start = _unweighted(given, None, number)
    if log_normalizer is None:
        return start
    return start._replace(log_normalizer=jnp.asarray(log_normalizer, start.variance.dtype))


def _annealed(rng_key: PRNGKey, target: ModelTarget, chains: Chains, number: int) -> Start:
    """Begin at the base measure, and anneal to the first parameters."""
    base = base_of(target, "jarzynski")
    # By the kernel's sibling with a Metropolis test, whose step size can be tuned.
    found = anneal(rng_key, base, target, number, LEVELS, 1, chains.kernel.tuner, {})
    log_z = jnp.asarray(found.normalizer.value, found.log_weights.dtype)
    start = _unweighted(found.positions, None, number)
    return start._replace(log_weights=found.log_weights - log_z, log_normalizer=log_z)


def _base(target: ModelTarget) -> ModelTarget | None:
    try:
        return base_of(target, "replay")
    except ValueError:
        return None


def _noise(rng_key: PRNGKey, positions: Position, number: int) -> Position:
    """Gaussian noise with means and standard deviations of the data."""
    flat, unravel = ravel(jax.tree.map(lambda leaf: leaf[0], positions))
    centre, scale = moments_of(positions)
    normals = jax.random.normal(rng_key, (number, flat.size), flat.dtype)
    return jax.vmap(unravel)(centre + scale * normals)


def _check_weighable(chains: Chains, rows: Any) -> None:
    if not is_weighable(chains.kernel):
        raise ValueError(
            f"jarzynski: {chains.kernel!r} has no known density of its steps, and no Metropolis "
            "test of overdamped steps, so that its walkers cannot be weighed. Take "
            "langevin_ppl.ula, tula or mala."
        )
    if float(chains.parameters.get("temperature", 1.0)) != 1.0:
        raise ValueError("jarzynski: expected the temperature 1 of the model.")
    if rows is not None:
        raise ValueError(
            "jarzynski: with conditions every one of them has its own log Z, and weights of "
            "walkers with different conditions do not compare. Take persistent() or "
            "contrastive_divergence()."
        )

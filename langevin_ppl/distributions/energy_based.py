"""``EnergyBased``: a law known up to its normaliser, as a NumPyro distribution."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from langevin_ppl.base import Array, PRNGKey
from langevin_ppl.tree import as_pytree

__all__ = ["EnergyBased"]


class EnergyBased(dist.Distribution):
    r"""Law of an energy, without its normaliser.

    .. math:: p(x) = \frac{1}{Z} e^{-E(x)} \, b(x) ,

    where the base measure :math:`b` is 1 unless one is given. ``log_prob`` leaves
    :math:`\log Z` out. A model with this site is a target like any other, and its values are drawn
    by `langevin_ppl.sample`. There are no exact draws: ``sample`` refuses.

    Because the normaliser is missing, the energy must not depend on another latent: `target`
    refuses such a model, whose posterior would be silently wrong. Parameters of an energy are
    ``numpyro.param`` sites, which `langevin_ppl.energy.fit` learns from data; with a prior on them
    there is `langevin_ppl.energy.exchange`.

    Parameters
    ----------
    energy_fn
        ``energy_fn(x)`` gives the energy of one event, a scalar; with a condition
        ``energy_fn(x, condition)``. A pytree, such as an Equinox module, or a function.
    event_shape
        Shape of an event; that of ``base`` by default, or else a number.
    condition
        What the energy depends on: a pytree of arrays, each ``[*batch, ...]``.
    batch_shape
        Shape of independent events; that of ``base`` by default, or else one event. One condition
        for all of them has no batch axes: bind it to the energy.
    support
        A constraint of NumPyro on an event; that of the base by default, or else all numbers.
    base
        A normalised distribution of NumPyro, whose density is a factor of this one's. One of
        numbers stands for independent numbers of the event.
    validate_args
        Whether NumPyro checks values against the support.

    Raises
    ------
    TypeError
        If the energy cannot be called, or is no floating-point number.
    ValueError
        If the energy is no scalar, or shapes do not fit each other; the message says which.

    References
    ----------
    LeCun, Chopra, Hadsell, Ranzato, Huang, *A tutorial on energy-based learning* (2006).

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro, langevin_ppl as lp
    >>> def model():
    ...     energy = lambda x: jnp.sum((x**2 - 1.0) ** 2)
    ...     numpyro.sample("x", lp.distributions.EnergyBased(energy, (2,)))
    >>> target = lp.target(model)
    >>> float(target.logdensity_fn({"x": jnp.array([1.0, 0.0])}))
    -1.0
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("energy_fn", "condition", "base")
    pytree_aux_fields = ("_support",)

    unnormalised = True
    """Whether the log density lacks a normaliser that depends on what its parameters are."""

    def __init__(
        self,
        energy_fn: Callable[..., Any],
        event_shape: tuple[int, ...] | None = None,
        *,
        condition: Any = None,
        batch_shape: tuple[int, ...] | None = None,
        support: constraints.Constraint | None = None,
        base: dist.Distribution | None = None,
        validate_args: bool | None = None,
    ):
        if not callable(energy_fn) or isinstance(energy_fn, type):
            raise TypeError(
                "EnergyBased: expected energy_fn to be a function of one event that gives a "
                f"scalar, got {energy_fn!r}."
            )
        event_shape = _event_shape(event_shape, base)
        base = None if base is None else _over_events(base, event_shape)
        if batch_shape is None:
            batch_shape = () if base is None else tuple(base.batch_shape)
        batch_shape = tuple(batch_shape)
        self.energy_fn = as_pytree(energy_fn)
        self.condition = None if condition is None else jax.tree.map(jnp.asarray, condition)
        self.base = base
        self._support = _support(support, base, event_shape)
        _check_batch(batch_shape, self.condition, base)
        _check_energy(self.energy_fn, event_shape, self.condition, len(batch_shape))
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        """Where the density is."""
        return self._support

    def sample(self, key: PRNGKey | None, sample_shape: tuple[int, ...] = ()) -> Array:
        """Refuse: an energy has no exact draws.

        Raises
        ------
        NotImplementedError
            Always; the message says how to draw.
        """
        raise NotImplementedError(
            "EnergyBased has no exact draws. Draw by langevin_ppl.sample(rng_key, "
            "langevin_ppl.target(model), langevin_ppl.mala), or condition the site on a value."
        )

    def energy(self, value: Any) -> Array:
        """Energy alone, without the base measure.

        Parameters
        ----------
        value
            Shape ``[..., *batch, *event]``.

        Returns
        -------
        Array
            Nats, ``[..., *batch]``.
        """
        value = jnp.asarray(value, jnp.result_type(float, value))
        shape = self.batch_shape + self.event_shape
        value = jnp.broadcast_to(value, jnp.broadcast_shapes(value.shape, shape))
        given = () if self.condition is None else (self.condition,)
        energy: Callable[..., Any] = self.energy_fn
        for axis in range(value.ndim - self.event_dim):
            of_condition = 0 if axis < len(self.batch_shape) else None
            energy = jax.vmap(energy, (0, of_condition)[: 1 + len(given)])
        return energy(value, *given)

    @validate_sample
    def log_prob(self, value: Any, intermediates: Any = None) -> Array:
        """Log density up to the logarithm of the normaliser.

        Parameters
        ----------
        value
            Shape ``[..., *batch, *event]``.
        intermediates
            Not used.

        Returns
        -------
        Array
            Nats, ``[..., *batch]``.
        """
        log_prob = -self.energy(value)
        return log_prob if self.base is None else log_prob + self.base.log_prob(value)


def _event_shape(
    event_shape: tuple[int, ...] | None, base: dist.Distribution | None
) -> tuple[int, ...]:
    if event_shape is None:
        return () if base is None else tuple(base.event_shape)
    sizes = tuple(event_shape) if isinstance(event_shape, tuple | list) else (event_shape,)
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(
            f"EnergyBased: expected event_shape to be a tuple of sizes, got {event_shape!r}."
        )
    return sizes


def _over_events(base: dist.Distribution, event_shape: tuple[int, ...]) -> dist.Distribution:
    """Base measure of events: one of numbers stands for independent ones."""
    if not isinstance(base, dist.Distribution) or getattr(base, "unnormalised", False):
        raise ValueError(
            "EnergyBased: expected base to be a normalised distribution of NumPyro, got "
            f"{type(base).__name__}."
        )
    if tuple(base.event_shape) == event_shape:
        return base
    shape = tuple(base.batch_shape)
    if base.event_shape or not _fits(shape, event_shape):
        raise ValueError(
            f"EnergyBased: expected a base whose events have shape {event_shape}, or are numbers, "
            f"got batch shape {shape} and event shape {tuple(base.event_shape)}."
        )
    return base.expand(event_shape).to_event(len(event_shape))


def _fits(shape: tuple[int, ...], whole: tuple[int, ...]) -> bool:
    """Whether an array of the one shape broadcasts to the other."""
    ends = whole[len(whole) - len(shape) :]
    return len(shape) <= len(whole) and all(
        size in (1, end) for size, end in zip(shape, ends, strict=True)
    )


def _support(
    support: Any, base: dist.Distribution | None, event_shape: tuple[int, ...]
) -> constraints.Constraint:
    if support is None:
        support = constraints.real if base is None else base.support
    event_dim = getattr(support, "event_dim", None)
    if event_dim is None or event_dim > len(event_shape) or support.is_discrete:
        raise ValueError(
            "EnergyBased: expected support to be a continuous constraint of NumPyro on events of "
            f"shape {event_shape}, got {support!r}."
        )
    missing = len(event_shape) - event_dim
    return constraints.independent(support, missing) if missing else support


def _check_batch(
    batch_shape: tuple[int, ...], condition: Any, base: dist.Distribution | None
) -> None:
    for leaf in jax.tree.leaves(condition):
        if leaf.shape[: len(batch_shape)] != batch_shape:
            raise ValueError(
                f"EnergyBased: expected a condition whose first axes are the batch {batch_shape}, "
                f"got shape {leaf.shape}."
            )
    if base is not None and not _fits(tuple(base.batch_shape), batch_shape):
        raise ValueError(
            f"EnergyBased: expected a base whose batch fits {batch_shape}, got "
            f"{tuple(base.batch_shape)}."
        )


def _check_energy(
    energy_fn: Any, event_shape: tuple[int, ...], condition: Any, batch_ndim: int
) -> None:
    """Look at the energy of one event, without computing it."""
    event = jax.ShapeDtypeStruct(event_shape, jnp.result_type(float))
    given = () if condition is None else (condition,)
    rows = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[batch_ndim:], a.dtype), given)
    found = jax.eval_shape(energy_fn, event, *rows)
    shape = getattr(found, "shape", None)
    if shape is None:
        raise TypeError(
            f"EnergyBased: expected the energy of an event to be a scalar, got {found!r}."
        )
    if shape != ():
        total = math.prod(shape)
        raise ValueError(
            f"EnergyBased: expected energy_fn to give a scalar for one event of shape "
            f"{event_shape}, got shape {shape}. "
            + ("Squeeze it." if total == 1 else "Sum over the event, and leave batches out.")
        )
    if not jnp.issubdtype(found.dtype, jnp.floating):
        raise TypeError(f"EnergyBased: expected a floating-point energy, got {found.dtype}.")

"""The energy that is learned: parameters and conditions in, log densities of positions out."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.primitives import Messenger

from langevin_ppl.base import Array, LogDensity, Position
from langevin_ppl.distributions import EnergyBased
from langevin_ppl.targets import ModelTarget, target

__all__ = ["EnergyModel", "base_of", "check_target", "given", "without_observed"]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["whole", "latent"], meta_fields=["has_observed"]
)
@dataclasses.dataclass(frozen=True)
class EnergyModel:
    """A NumPyro model whose ``param`` sites are learned, and whose latent sites are the data.

    A pytree, whose arrays are arguments of compiled programs. All of it is on unconstrained space:
    what that changes does not depend on the parameters.

    Attributes
    ----------
    whole
        Target of the model.
    latent
        The same without its observed sites, whose laws given the latents are normalised: they are
        terms of the likelihood, and walkers do not see them.
    has_observed
        Whether the two differ.
    """

    whole: ModelTarget
    latent: ModelTarget
    has_observed: bool

    @classmethod
    def of(cls, model: Any, condition: Any) -> "EnergyModel":
        """Look at a model, and refuse what cannot be learned.

        Parameters
        ----------
        model
            A target, or a NumPyro model, which is called without arguments or with the condition of
            one datum.
        condition
            Pytree of arrays ``[datum, ...]``, or None.
        """
        if not callable(model) and not isinstance(model, ModelTarget):
            check_target(model, "energy.fit")
        if condition is None:
            whole = model if isinstance(model, ModelTarget) else target(model)
        elif isinstance(model, ModelTarget):
            raise ValueError(
                "condition: expected a NumPyro model that takes the condition of one datum, got a "
                "target, whose arguments are given. Pass the model itself."
            )
        else:
            whole = target(model, jax.tree.map(lambda rows: jnp.asarray(rows)[0], condition))
        check_target(whole, "energy.fit")
        latent, observed = without_observed(whole), bool(whole.structure.observed)
        found = cls(whole.with_fixed({}), latent.with_fixed({}), observed)
        found.check_parameters()
        return found

    def check_parameters(self) -> None:
        """Refuse a model without parameters, or with some that are no numbers."""
        parameters = self.parameters()
        if not jax.tree.leaves(parameters):
            raise ValueError(
                f"energy.fit: {self.whole.description} has no parameters to train. Make them "
                "numpyro.param sites, or register a network by numpyro.contrib.module.eqx_module."
            )
        for name, value in parameters.items():
            for leaf in jax.tree.leaves(value):
                if not jnp.issubdtype(leaf.dtype, jnp.floating):
                    raise ValueError(
                        f"energy.fit: expected the parameter '{name}' to be of floating-point "
                        f"numbers, got {leaf.dtype}."
                    )

    def parameters(self) -> dict[str, Any]:
        """Unconstrained parameters that the model begins with, by the name of the site."""
        transforms = self.whole.parameter_transforms
        values = {name: self.whole.fixed[name] for name in transforms}
        return {name: jax.tree.map(to.inv, values[name]) for name, to in transforms.items()}

    def values(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters as the model sees them."""
        transforms = self.whole.parameter_transforms
        return {name: jax.tree.map(to, parameters[name]) for name, to in transforms.items()}

    def density(self, parameters: Mapping[str, Any], row: Any = None) -> LogDensity:
        """Log density of the latent sites up to a constant, for the condition of one datum."""
        return self._at(self.latent, parameters, row)

    def likelihood(self, parameters: Mapping[str, Any], row: Any, position: Position) -> Array:
        """Log density of a datum up to a constant, observed sites included."""
        return self._at(self.whole, parameters, row)(position)

    def _at(self, part: ModelTarget, parameters: Mapping[str, Any], row: Any) -> LogDensity:
        return given(part, row).with_fixed(self.values(parameters)).logdensity_fn


def given(found: ModelTarget, row: Any) -> ModelTarget:
    """Target for the condition of one datum; None for a model without."""
    return found if row is None else found.with_data(tuple(jax.tree.leaves(row)))


def check_target(found: Any, caller: str) -> None:
    """Refuse what is no model in memory whose latent sites are all continuous."""
    if not isinstance(found, ModelTarget) or found.stream is not None:
        raise ValueError(
            f"{caller}: expected a NumPyro model or its target, got {type(found).__name__}."
        )
    if found.summed_out or found.plates:
        raise ValueError(
            f"{caller}: expected a model without discrete latent sites and subsampled plates, got "
            f"{', '.join([*found.summed_out, *found.plates])}."
        )


def without_observed(whole: ModelTarget) -> ModelTarget:
    """Target of the latent sites and factors alone."""
    observed = whole.structure.observed
    return whole.wrapped(functools.partial(_Around, _Hiding(observed))) if observed else whole


def base_of(latent: ModelTarget, caller: str) -> ModelTarget:
    """Target of the base measures alone, which is normalised and can be drawn from.

    Raises
    ------
    ValueError
        If an energy has no base measure, or that cannot be drawn from.
    """
    try:
        base = latent.wrapped(functools.partial(_Around, _Base())).with_fixed(latent.fixed)
        jax.eval_shape(lambda key: base.predict_prior(key, 1), jax.random.key(0))
    except (NotImplementedError, ValueError) as error:
        raise ValueError(
            f"{caller}: {latent.description} has no normalised law to begin with ({error}) Give "
            "EnergyBased a base=, such as numpyro.distributions.Normal(0.0, 1.0)."
        ) from error
    return base


@dataclasses.dataclass(frozen=True)
class _Around:
    """A model under a handler; equal for equal models."""

    handler: Any
    model: Callable[..., Any]

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.model)

    @property
    def __name__(self) -> str:
        return getattr(self.model, "__name__", type(self.model).__name__)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.handler.begin():
            return self.model(*args, **kwargs)


@dataclasses.dataclass(frozen=True)
class _Hiding:
    """Hides sites from handlers outside."""

    names: tuple[str, ...]

    def begin(self) -> Messenger:
        return handlers.block(hide=list(self.names))


@dataclasses.dataclass(frozen=True)
class _Base:
    """Puts base measures in the place of energies, and leaves factors out."""

    def begin(self) -> Messenger:
        return _OnBase()


class _OnBase(Messenger):
    def __init__(self) -> None:
        super().__init__()
        self._jacobians: set[str] = set()

    def process_message(self, msg: Any) -> None:
        # The Jacobian of a constrained site is a factor, by NumPyro, and belongs to the base.
        if msg["type"] != "sample" or msg["name"] in self._jacobians:
            return
        if _is_factor(msg["fn"]):
            msg["fn"] = dist.Unit(jnp.zeros(msg["fn"].batch_shape))
        else:
            self._jacobians.add(f"_{msg['name']}_log_det")
            msg["fn"] = _on_base(msg["name"], msg["fn"])


def _is_factor(fn: Any) -> bool:
    while isinstance(fn, dist.ExpandedDistribution):
        fn = fn.base_dist
    return isinstance(fn, dist.Unit)


def _on_base(name: str, fn: Any) -> Any:
    """Distribution with the base measure in the place of the energy."""
    if isinstance(fn, EnergyBased):
        if fn.base is None:
            raise ValueError(f"the energy of site '{name}' has no base measure.")
        return fn.base.expand(fn.batch_shape)
    if isinstance(fn, dist.ExpandedDistribution):
        return _on_base(name, fn.base_dist).expand(fn.batch_shape)
    if isinstance(fn, dist.Independent):
        return _on_base(name, fn.base_dist).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.TransformedDistribution):
        return dist.TransformedDistribution(_on_base(name, fn.base_dist), fn.transforms)
    return fn

"""The programs of a model: everything compiled that is derived from it.

Each takes the `Code` as a static argument and the arrays as arguments, and is jitted at module
level: a model is traced once for each of them, whatever program calls it. ``fixed`` are the
values of ``param`` and ``mutable`` sites.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.distributions.transforms import biject_to
from numpyro.infer import Predictive, init_to_uniform
from numpyro.infer.util import constrain_fn, log_likelihood, potential_energy
from numpyro.primitives import Messenger

from langevin_ppl.base import Array, Position, PRNGKey, Rows
from langevin_ppl.targets.calls import Code
from langevin_ppl.targets.leaves import Static
from langevin_ppl.targets.plates import OnRows
from langevin_ppl.targets.refusals import masked
from langevin_ppl.tree import Layout

__all__ = [
    "BatchLogDensity",
    "ModelLogDensity",
    "Strategy",
    "Uniform",
    "constrain",
    "draw_discrete",
    "fixed_values",
    "observed_values",
    "parameter_transforms",
    "pointwise_log_likelihood",
    "predict",
    "predict_prior",
    "site_logdensities",
    "unconstrain",
]


@dataclasses.dataclass(frozen=True)
class ModelLogDensity:
    """Log density of a model, hashable; its data come as arguments.

    Attributes
    ----------
    code
        The model.
    nesting
        Where discrete latent sites are summed out, how deep plates are nested; None without any.
    """

    code: Code
    nesting: int | None = None

    def __call__(
        self, arrays: tuple[Array, ...], fixed: dict[str, Any], position: Position
    ) -> Array:
        """Evaluate it at an unconstrained position."""
        return _logdensity(self.code, self.nesting, arrays, fixed, {}, position)


@dataclasses.dataclass(frozen=True)
class BatchLogDensity:
    """Log density of a model on rows of its subsampled plates, hashable."""

    code: Code

    def __call__(
        self,
        arrays: tuple[Array, ...],
        fixed: dict[str, Any],
        rows: dict[str, Rows],
        position: Position,
    ) -> Array:
        """Evaluate it at an unconstrained position."""
        return _logdensity(self.code, None, arrays, fixed, rows, position)


class _ConstantKey(Messenger):
    """Give a constant key to statements such as dropout's, which a density must not randomise."""

    def process_message(self, msg: Any) -> None:
        """Answer a request for a key."""
        if msg["type"] == "prng_key" and msg["value"] is None:
            msg["value"] = jax.random.key(0)


class _Redrawn(Messenger):
    """Draw observed sites anew.

    NumPyro's ``uncondition`` stops before ``scan``, where later steps would go on from the values
    observed, and would ask `_ConstantKey` for its key.
    """

    def process_message(self, msg: Any) -> None:
        """Forget what was observed."""
        if msg["type"] == "control_flow":
            is_body = [callable(a) and jax.tree_util.all_leaves([a]) for a in msg["args"]]
            msg["args"] = tuple(
                _Redrawn(a) if body else a for a, body in zip(msg["args"], is_body, strict=True)
            )
        elif msg["type"] == "sample" and msg["is_observed"]:
            msg["is_observed"] = False
            msg["value"] = None


def _cell_mask(site: Any) -> Array | None:
    """Which cells of a site have a density, in the shape of its batch; None without a mask."""
    fn = masked(site["fn"])
    if fn is None:
        return None
    return jnp.broadcast_to(jnp.asarray(fn._mask), site["fn"].batch_shape)


class _ImputedSites(Messenger):
    """Record the sites by which NumPyro's ``obs_mask`` imputes, and which cells it imputes."""

    def __init__(self, fn: Callable[..., Any]):
        super().__init__(fn)
        self.found: dict[str, Array] = {}
        self._observed: set[str] = set()

    def process_message(self, msg: Any) -> None:
        """Look at a site."""
        if msg["type"] != "sample":
            return
        name = msg["name"]
        if msg["is_observed"]:
            self._observed.add(name)
        elif f"{name.removesuffix('_unobserved')}_observed" in self._observed:
            mask = _cell_mask(msg)
            if mask is not None:
                self.found[name] = mask

    def logdensity(self, position: Position) -> Any:
        """Standard normal log density of the unconstrained cells that are observed.

        In NumPyro they have no density, so that chains would drift there without end. They are
        independent of all else, so that the distribution of other coordinates is not changed.
        """
        total: Any = 0.0
        for name, imputed in self.found.items():
            if name not in position:
                continue
            squares = jnp.square(position[name]).reshape(*imputed.shape, -1).sum(-1)
            total += jnp.sum(jnp.where(imputed, 0.0, -0.5 * squares))
        return total


def _prepare(
    code: Code,
    arrays: tuple[Array, ...],
    fixed: dict[str, Any],
    rows: dict[str, Rows] | None = None,
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """Model with its ``param`` and ``mutable`` sites held at given values, and its arguments.

    It sees the given rows of subsampled plates, and all rows of the others.
    """
    model = handlers.substitute(code.model.value, data=fixed)
    return _ConstantKey(OnRows(model, rows, arrays)), *code.arguments(arrays)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logdensity(
    code: Code,
    nesting: int | None,
    arrays: tuple[Array, ...],
    fixed: dict[str, Any],
    rows: dict[str, Rows],
    position: Position,
) -> Array:
    model, args, kwargs = _prepare(code, arrays, fixed, rows)
    model = imputed = _ImputedSites(model)
    if nesting is not None:
        from numpyro.contrib.funsor import config_enumerate, enum

        model = enum(config_enumerate(model), -nesting - 1)
    energy = potential_energy(model, args, kwargs, position, enum=nesting is not None)
    return jnp.subtract(imputed.logdensity(position), energy)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def constrain(
    code: Code,
    arrays: tuple[Array, ...],
    fixed: dict[str, Any],
    position: Position,
    batch_ndims: int,
    hidden: frozenset[str] = frozenset(),
    rows: dict[str, Rows] | None = None,
) -> dict[str, Array]:
    """Constrained sites and deterministics, but for those that are hidden."""
    model, args, kwargs = _prepare(code, arrays, fixed, rows)
    # Only discrete sites, and what hangs on them, could see this key.
    model = handlers.seed(model, jax.random.key(0))
    values = constrain_fn(
        model, args, kwargs, position, return_deterministic=True, batch_ndims=batch_ndims
    )
    return {name: value for name, value in values.items() if name not in hidden}


@functools.partial(jax.jit, static_argnums=(0, 3))
def observed_values(
    code: Code,
    arrays: tuple[Array, ...],
    fixed: dict[str, Any],
    names: tuple[str, ...],
    rows: dict[str, Rows] | None = None,
) -> dict[str, Array]:
    """Values of observed sites, NaN in the cells that ``obs_mask`` imputes."""
    model, args, kwargs = _prepare(code, arrays, fixed, rows)
    seeded = handlers.substitute(
        handlers.seed(model, jax.random.key(0)), substitute_fn=init_to_uniform()
    )
    trace = handlers.trace(seeded).get_trace(*args, **kwargs)

    def value(name: str) -> Array:
        site, mask = trace[name], _cell_mask(trace[name])
        if mask is None or f"{name.removesuffix('_observed')}_unobserved" not in trace:
            return site["value"]
        shown = mask.reshape(*mask.shape, *(1,) * site["fn"].event_dim)
        return jnp.where(shown, site["value"], jnp.nan)

    return {name: value(name) for name in names}


@functools.partial(jax.jit, static_argnums=(0, 3))
def fixed_values(
    code: Code,
    arrays: tuple[Array, ...],
    rng_key: PRNGKey,
    names: tuple[str, ...],
    rows: dict[str, Rows] | None = None,
) -> dict[str, Any]:
    """Initial values of ``param`` and ``mutable`` sites."""
    sites = _initial_sites(code, arrays, rng_key, rows)
    return {name: sites[name]["value"] for name in names}


@functools.partial(jax.jit, static_argnums=(0, 3))
def parameter_transforms(
    code: Code,
    arrays: tuple[Array, ...],
    rng_key: PRNGKey,
    names: tuple[str, ...],
    rows: dict[str, Rows] | None = None,
) -> dict[str, Any]:
    """Transforms from unconstrained space of ``param`` sites, whose bounds may be arrays."""
    sites = _initial_sites(code, arrays, rng_key, rows)
    given = {name: sites[name]["kwargs"].get("constraint", constraints.real) for name in names}
    return {name: biject_to(constraint) for name, constraint in given.items()}


def _initial_sites(
    code: Code, arrays: tuple[Array, ...], rng_key: PRNGKey, rows: dict[str, Rows] | None
) -> dict[str, Any]:
    """Trace of a model whose ``param`` and ``mutable`` sites have their initial values."""
    args, kwargs = code.arguments(arrays)
    model = OnRows(code.model.value, rows, arrays)
    seeded = handlers.substitute(handlers.seed(model, rng_key), substitute_fn=init_to_uniform())
    return handlers.trace(seeded).get_trace(*args, **kwargs)


@functools.partial(jax.jit, static_argnums=0)
def site_logdensities(
    code: Code,
    arrays: tuple[Array, ...],
    fixed: dict[str, Any],
    values: dict[str, Array],
    rows: dict[str, Rows] | None = None,
) -> dict[str, Array]:
    """Log density of every sample site at constrained values, summed over the site."""
    model, args, kwargs = _prepare(code, arrays, fixed, rows)
    seeded = handlers.seed(model, jax.random.key(0))
    trace = handlers.trace(handlers.substitute(seeded, data=values)).get_trace(*args, **kwargs)
    return {
        name: jnp.sum(site["fn"].log_prob(site["value"]))
        for name, site in trace.items()
        if site["type"] == "sample"
    }


@functools.partial(jax.jit, static_argnums=0)
def unconstrain(
    code: Code, arrays: tuple[Array, ...], fixed: dict[str, Any], values: dict[str, Array]
) -> tuple[Position, dict[str, Array]]:
    """Unconstrained position of values of all latent sites, and whether they are supported."""
    model, args, kwargs = _prepare(code, arrays, fixed)
    seeded = handlers.seed(handlers.substitute(model, data=values), jax.random.key(0))
    trace = handlers.trace(seeded).get_trace(*args, **kwargs)
    supports = {name: trace[name]["fn"].support for name in values}
    position = {name: biject_to(supports[name]).inv(value) for name, value in values.items()}
    inside = {name: jnp.all(supports[name](value)) for name, value in values.items()}
    return position, inside


@functools.partial(jax.jit, static_argnums=(0, 5))
def draw_discrete(
    code: Code,
    arrays: tuple[Array, ...],
    fixed: dict[str, Any],
    rng_key: PRNGKey,
    latent: dict[str, Array],
    names: tuple[str, ...],
) -> dict[str, Array]:
    """Discrete sites given constrained values ``[chain, draw, ...]`` and the data."""
    model, args, kwargs = _prepare(code, arrays, fixed)
    predictive = Predictive(
        model,
        latent,
        batch_ndims=2,
        parallel=True,
        infer_discrete=True,
        return_sites=list(names),
    )
    return predictive(rng_key, *args, **kwargs)


@functools.partial(jax.jit, static_argnums=(0, 5))
def predict(
    code: Code,
    arrays: tuple[Array, ...],
    fixed: dict[str, Any],
    rng_key: PRNGKey,
    latent: dict[str, Array],
    observed: tuple[str, ...],
) -> dict[str, Array]:
    """Observed sites drawn anew for constrained values ``[chain, draw, ...]``."""
    model, args, kwargs = _prepare(code, arrays, fixed)
    predictive = Predictive(
        _Redrawn(model),
        latent,
        batch_ndims=2,
        parallel=True,
        return_sites=list(observed),
    )
    return predictive(rng_key, *args, **kwargs)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def predict_prior(
    code: Code,
    arrays: tuple[Array, ...],
    fixed: dict[str, Any],
    rng_key: PRNGKey,
    num_samples: int,
    names: tuple[str, ...],
) -> dict[str, Array]:
    """Sites drawn with nothing observed, ``[num_samples, ...]``."""
    model, args, kwargs = _prepare(code, arrays, fixed)
    predictive = Predictive(
        _Redrawn(model),
        num_samples=num_samples,
        parallel=True,
        return_sites=list(names),
    )
    return predictive(rng_key, *args, **kwargs)


@functools.partial(jax.jit, static_argnums=0)
def pointwise_log_likelihood(
    code: Code, arrays: tuple[Array, ...], fixed: dict[str, Any], latent: dict[str, Array]
) -> dict[str, Array]:
    """Pointwise log likelihood at constrained values ``[chain, draw, ...]``."""
    model, args, kwargs = _prepare(code, arrays, fixed)
    return log_likelihood(model, latent, *args, batch_ndims=2, parallel=True, **kwargs)


@dataclasses.dataclass(frozen=True)
class Uniform:
    """NumPyro's ``init_to_uniform``, straight on unconstrained space: the model is not run."""

    layout: Layout
    radius: float

    def __call__(self, rng_key: PRNGKey, data: Any) -> Position:
        """Propose a position."""
        shape = (self.layout.dimension,)
        flat = jax.random.uniform(rng_key, shape, self.layout.dtype, -self.radius, self.radius)
        return self.layout.unravel(flat)


@dataclasses.dataclass(frozen=True)
class Strategy:
    """Any other initialisation strategy of NumPyro."""

    code: Code
    strategy: Static
    names: tuple[str, ...]

    def __call__(self, rng_key: PRNGKey, data: Any) -> Position:
        """Propose a position."""
        model, args, kwargs = _prepare(self.code, *data)
        seeded = handlers.substitute(
            handlers.seed(model, rng_key), substitute_fn=self.strategy.value
        )
        trace = handlers.trace(seeded).get_trace(*args, **kwargs)
        return {
            name: jnp.asarray(biject_to(trace[name]["fn"].support).inv(trace[name]["value"]))
            for name in self.names
        }

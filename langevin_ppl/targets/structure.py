"""What a model looks like: one abstract trace, from which everything else is derived.

Nothing is computed and nothing compiled here: the model runs once under ``jax.eval_shape``.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from numpyro import handlers
from numpyro.distributions import Unit
from numpyro.distributions.transforms import IdentityTransform, biject_to
from numpyro.infer import init_to_uniform
from numpyro.infer.util import helpful_support_errors
from numpyro.util import _validate_model

from langevin_ppl.base import Array, Plate, Rows
from langevin_ppl.streams import Absent
from langevin_ppl.targets.calls import Code
from langevin_ppl.targets.labels import RESERVED
from langevin_ppl.targets.plates import OnRows, Read, subsampled
from langevin_ppl.targets.refusals import (
    Checked,
    explain_mask,
    innermost,
    mask_of_elements,
    refuse_in_plates,
    refuse_latents,
)
from langevin_ppl.tree import Layout

__all__ = ["Structure", "inspect_model", "refuse_numbers"]


class Structure(NamedTuple):
    """The shape of a model.

    Attributes
    ----------
    prototype
        Unconstrained latent sites, as ``jax.ShapeDtypeStruct``.
    layout
        Their places in the flat vector.
    unbounded
        Names of those whose values are the unconstrained ones.
    fixed
        Names of ``param`` and ``mutable`` sites, which are held at their initial values.
    parameters
        Names of the ``param`` sites among them.
    observed
        Names of observed sites.
    observed_arguments
        Positions, among the arrays of the arguments, of those that are observed as they are.
    shapes
        Shapes of latent and observed sites and of deterministics.
    labels
        Names that plates and ``infer={"event_dims": ...}`` give to their axes, None for others.
    enumerated
        Names of discrete latent sites, which are summed out.
    nesting
        How deep plates are nested: the axes to the left of them are free for enumeration.
    hidden
        Names of deterministics that depend on discrete sites, and so have no value of their own.
    plates
        Subsampled plates by name.
    reads
        Arguments whose rows ``numpyro.subsample`` reads in them.
    intractable
        Names of sites that lack a normaliser which depends on a latent, so that the log density is
        not that of the model.
    """

    prototype: dict[str, jax.ShapeDtypeStruct]
    layout: Layout
    unbounded: frozenset[str]
    fixed: tuple[str, ...]
    parameters: tuple[str, ...]
    observed: tuple[str, ...]
    observed_arguments: frozenset[int]
    shapes: dict[str, tuple[int, ...]]
    labels: dict[str, tuple[str | None, ...]]
    enumerated: tuple[str, ...]
    nesting: int
    hidden: frozenset[str]
    plates: dict[str, Plate]
    reads: frozenset[Read]
    intractable: tuple[str, ...]


def inspect_model(
    code: Code, arrays: tuple[Array, ...], batch_size: int | None = None
) -> Structure:
    """Trace a model abstractly. Cached, so that new data of the same shapes trace nothing.

    Parameters
    ----------
    batch_size
        Of the stream whose columns are among the arrays; None without one.
    """
    avals = tuple(
        a if isinstance(a, Absent) else jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays
    )
    # A model may make arrays itself, in the precision of the moment.
    return _inspect(code, avals, batch_size, jnp.result_type(float))


def _sites(
    code: Code, rng_key: Array, arrays: tuple[Array, ...], values: dict[str, Array]
) -> tuple[dict[str, dict[str, Any]], OnRows]:
    """Sites of a model at given values, or else at some starting ones, and what saw its reads."""
    args, kwargs = code.arguments(arrays)
    model = OnRows(Checked(code.model.value), arrays=arrays, abstract=True)
    seeded = handlers.substitute(handlers.seed(model, rng_key), substitute_fn=init_to_uniform())
    trace = handlers.trace(handlers.substitute(seeded, data=values)).get_trace(*args, **kwargs)
    return trace, model


@functools.lru_cache(maxsize=256)
def _inspect(
    code: Code, avals: tuple[Any, ...], batch_size: int | None, precision: Any
) -> Structure:
    found: list[Structure] = []
    unnormalised: list[str] = []

    def traced(rng_key: Array, arrays: tuple[Array, ...], values: dict[str, Array]) -> Any:
        trace, model = _sites(code, rng_key, arrays, values)
        if not found:
            found.append(_structure(trace, arrays, model, batch_size))
            unnormalised.extend(_unnormalised(trace))
        of_type = {kind: {} for kind in ("sample", "deterministic")}
        for name, site in trace.items():
            of_type.get(site["type"], {})[name] = site["value"]
        discrete = {name: of_type["sample"][name] for name in found[0].enumerated}
        return discrete, of_type["deterministic"]

    try:
        discrete, deterministics = jax.eval_shape(traced, jax.random.key(0), avals, {})
    except (TypeError, ValueError) as error:
        if (reason := explain_mask(error)) is not None:
            raise ValueError(reason) from error
        raise
    if unnormalised:
        found[0] = found[0]._replace(intractable=_intractable(code, avals))
    if found[0].plates:
        _refuse_leaks(code, avals, found[0].plates)
    if not (discrete and deterministics):
        return found[0]
    jaxpr = jax.make_jaxpr(lambda *given: traced(*given)[1])(jax.random.key(0), avals, discrete)
    reached = _reached(jaxpr.jaxpr, len(jax.tree.leaves(discrete)))
    hidden = frozenset(
        name for name, yes in zip(sorted(deterministics), reached, strict=True) if yes
    )
    shapes = {name: shape for name, shape in found[0].shapes.items() if name not in hidden}
    return found[0]._replace(hidden=hidden, shapes=shapes)


def _unnormalised(trace: dict[str, dict[str, Any]]) -> list[str]:
    """Names of sites whose distributions say that their normaliser is missing."""
    samples = {name: site["fn"] for name, site in trace.items() if site["type"] == "sample"}
    return [n for n, fn in samples.items() if getattr(innermost(fn), "unnormalised", False)]


def _intractable(code: Code, avals: tuple[Any, ...]) -> tuple[str, ...]:
    """Names of sites whose missing normaliser depends on a latent site."""

    def traced(arrays: tuple[Array, ...], given: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return _sites(code, jax.random.key(0), arrays, given)[0]

    def latents(arrays: tuple[Array, ...]) -> dict[str, Any]:
        sites = traced(arrays, {}).items()
        samples = {name: site for name, site in sites if site["type"] == "sample"}
        return {name: site["value"] for name, site in samples.items() if not site["is_observed"]}

    def terms(arrays: Any, point: Array, given: dict[str, Any]) -> dict[str, Array]:
        trace = traced(arrays, given)
        found = {name: innermost(trace[name]["fn"]) for name in _unnormalised(trace)}
        # At a point that is no latent: what is left to depend on is the energy itself.
        return {
            name: jnp.sum(fn.log_prob(jnp.broadcast_to(point, fn.shape())))
            for name, fn in found.items()
        }

    given = jax.eval_shape(latents, avals)
    point = jax.ShapeDtypeStruct((), jnp.result_type(float))
    jaxpr, out = jax.make_jaxpr(terms, return_shape=True)(avals, point, given)
    reached = _reached(jaxpr.jaxpr, len(given))
    return tuple(name for name, yes in zip(sorted(out), reached, strict=True) if yes)


def _refuse_leaks(code: Code, shapes: tuple[Any, ...], plates: dict[str, Plate]) -> None:
    """Refuse sites that read the rows of a subsampled plate in which they are not."""
    stacks: dict[str, dict[str, int]] = {}
    factors: dict[str, tuple[int, ...]] = {}

    def terms(arrays: tuple[Array, ...], indices: Array, name: str) -> dict[str, Array]:
        args, kwargs = code.arguments(arrays)
        rows = {
            other: Rows(jnp.arange(min(2, plate.size)), None, {}, plate.size)
            for other, plate in plates.items()
        }
        rows[name] = Rows(indices, None, {}, plates[name].size)
        model = handlers.seed(
            OnRows(code.model.value, rows, arrays, abstract=True), jax.random.key(0)
        )
        seeded = handlers.substitute(model, substitute_fn=init_to_uniform())
        trace = handlers.trace(seeded).get_trace(*args, **kwargs)
        values = {}
        for site, message in trace.items():
            if message["type"] == "sample":
                values[site] = jnp.sum(message["fn"].log_prob(message["value"]))
                inner = innermost(message["fn"])
                if isinstance(inner, Unit):
                    factors[site] = tuple(inner.batch_shape)
                    values[f"factor {site}"] = inner.log_factor
            elif message["type"] == "deterministic":
                values[site] = message["value"]
            stacks[site] = {f.name: f.dim for f in message.get("cond_indep_stack", ())}
        return values

    for name, plate in plates.items():
        indices = jax.ShapeDtypeStruct((min(2, plate.size),), jnp.arange(1).dtype)
        traced = jax.make_jaxpr(functools.partial(terms, name=name), return_shape=True)
        with _named(
            f"two rows of the subsampled plate '{name}', which the model has to read by "
            "numpyro.subsample(y, event_dim=0) or y[index]"
        ):
            jaxpr, out = traced(shapes, indices)
        reads = dict(zip(sorted(out), _reached(jaxpr.jaxpr, 1), strict=True))
        for site, stack in stacks.items():
            if reads.get(site) and name not in stack:
                raise ValueError(
                    f"The site '{site}' reads the rows that the subsampled plate '{name}' chose, "
                    "and is not inside that plate: its rows would be counted wrongly, or go with "
                    "those of another plate. Move it into the plate."
                )
            shape = factors.get(site, ())
            if reads.get(f"factor {site}") and (
                len(shape) < -stack[name] or shape[stack[name]] == 1
            ):
                raise ValueError(
                    f"The factor '{site}' adds up the rows of the subsampled plate '{name}' around "
                    "it, which would count the sum once for each row. Give it the terms of the "
                    f"rows, along axis {stack[name]}, without their sum."
                )


def refuse_numbers(code: Code, arrays: tuple[Any, ...], structure: Structure) -> None:
    """Refuse a model that reads the numbers of rows, where a stream does not know them."""
    ((name, plate),) = structure.plates.items()
    columns = {r.argument: (r.argument, r.axis) for r in structure.reads}

    def values(indices: Array) -> list[Array]:
        slices = {
            key: jnp.zeros((indices.shape[0], *arrays[number].shape[1:]), arrays[number].dtype)
            for number, key in columns.items()
        }
        args, kwargs = code.arguments(arrays)
        model = OnRows(code.model.value, {name: Rows(indices, None, slices, plate.size)}, arrays)
        seeded = handlers.substitute(
            handlers.seed(model, jax.random.key(0)), substitute_fn=init_to_uniform()
        )
        trace = handlers.trace(seeded).get_trace(*args, **kwargs)
        sites = [site for site in trace.values() if site["type"] == "sample"]
        return [jnp.sum(site["fn"].log_prob(site["value"])) for site in sites]

    jaxpr = jax.make_jaxpr(values)(jax.ShapeDtypeStruct((2,), jnp.arange(1).dtype))
    if any(_reached(jaxpr.jaxpr, 1)):
        raise ValueError(
            f"The model reads the numbers of the rows of the plate '{name}', which batches of an "
            "iterable do not have. Put what depends on the row into a column of the stream, and "
            "read it by numpyro.subsample."
        )


def _reached(jaxpr: Any, number: int) -> list[bool]:
    """Whether each output depends on any of the last ``number`` inputs."""
    first = len(jaxpr.invars) - number
    return _depends(jaxpr, [place >= first for place in range(len(jaxpr.invars))])


def _depends(jaxpr: Any, marked: list[bool]) -> list[bool]:
    """Whether each output depends on any marked input."""
    depends = {v for v, mark in zip(jaxpr.invars, marked, strict=True) if mark}

    def marks(variables: Any) -> list[bool]:
        return [not isinstance(v, Literal) and v in depends for v in variables]

    for equation in jaxpr.eqns:
        reads = marks(equation.invars)
        if not any(reads):
            continue
        reached = [True] * len(equation.outvars)
        if equation.primitive.name in ("jit", "pjit"):  # not every output reads every input
            reached = _depends(equation.params["jaxpr"].jaxpr, reads)
        depends.update(v for v, yes in zip(equation.outvars, reached, strict=True) if yes)
    return marks(jaxpr.outvars)


def _structure(
    trace: dict[str, dict[str, Any]],
    arrays: tuple[Array, ...],
    model: OnRows,
    batch_size: int | None,
) -> Structure:
    samples = {k: v for k, v in trace.items() if v["type"] == "sample"}
    latent = {k: v for k, v in samples.items() if not v["is_observed"]}
    observed = {
        k: v for k, v in samples.items() if v["is_observed"] and not isinstance(v["fn"], Unit)
    }
    for site in observed.values():
        repeated = jnp.ndim(site["value"]) < len(site["fn"].shape())
        if repeated and (reason := mask_of_elements(site)) is not None:
            raise ValueError(reason)
    enumerated = tuple(k for k, v in latent.items() if v["fn"].support.is_discrete)
    plates = subsampled(trace)
    if batch_size is not None:
        plates = _streamed(arrays, model.reads, plates, batch_size)
    refuse_latents(latent)
    if plates:
        refuse_in_plates(trace, latent, plates, model.asks_for_key)
    latent = {k: v for k, v in latent.items() if k not in enumerated}
    depths = [-f.dim for v in samples.values() for f in v["cond_indep_stack"] if f.dim is not None]
    _validate_model(trace, plate_warning="error" if enumerated else "loose")
    prototype: dict[str, jax.ShapeDtypeStruct] = {}
    unbounded = set()
    for name, site in latent.items():
        with helpful_support_errors(site, raise_warnings=True):
            transform = biject_to(site["fn"].support)
        value = transform.inv(site["value"])
        if isinstance(getattr(transform, "base_transform", transform), IdentityTransform):
            unbounded.add(name)
        prototype[name] = jax.ShapeDtypeStruct(jnp.shape(value), jnp.result_type(value))
    positions = {id(array): index for index, array in enumerate(arrays)}
    deterministics = {k: v for k, v in trace.items() if v["type"] == "deterministic"}
    exported = {**latent, **observed, **deterministics}
    return Structure(
        prototype=prototype,
        layout=Layout.of(prototype),
        unbounded=frozenset(unbounded),
        fixed=tuple(k for k, v in trace.items() if v["type"] in ("param", "mutable")),
        parameters=tuple(k for k, v in trace.items() if v["type"] == "param"),
        observed=tuple(observed),
        observed_arguments=frozenset(
            positions[id(v["value"])] for v in observed.values() if id(v["value"]) in positions
        ),
        shapes={name: jnp.shape(site["value"]) for name, site in exported.items()},
        labels={name: _axis_labels(site) for name, site in exported.items()},
        enumerated=enumerated,
        nesting=max(depths, default=0),
        hidden=frozenset(),
        plates=plates,
        reads=frozenset(read for read in model.reads if read.plate in plates),
        intractable=(),
    )


def _streamed(
    arrays: tuple[Any, ...], reads: list[Read], plates: dict[str, Plate], batch_size: int
) -> dict[str, Plate]:
    """Get the plate that a stream's columns are read in, with the stream's batch size."""
    columns = {number: a for number, a in enumerate(arrays) if isinstance(a, Absent)}
    where = {number: {r.plate for r in reads if r.argument == number} for number in columns}
    unread = [columns[number].name for number, names in where.items() if not names]
    if unread:
        raise ValueError(
            f"The column {', '.join(map(repr, unread))} of the stream is not read: expected "
            "numpyro.subsample(column, event_dim=...) inside a plate of all its rows. Leave the "
            "column out of the stream, or read it."
        )
    names = set().union(*where.values())
    others = sorted(set(plates) - names)
    if len(names) > 1 or others:
        raise ValueError(
            "Expected the columns of a stream to be read in one plate, and no other plate to be "
            f"subsampled, got {', '.join(sorted(names | set(others)))}. Read them together, and "
            "leave subsample_size out of other plates."
        )
    (name,) = names
    return {name: Plate(next(iter(columns.values())).shape[0], batch_size)}


def _axis_labels(site: dict[str, Any]) -> tuple[str | None, ...]:
    """Names that plates and ``event_dims`` give to the axes of a site."""
    shape = jnp.shape(site["value"])
    frames = {f.dim: f for f in site["cond_indep_stack"] if f.dim is not None}
    if site["type"] == "sample":
        event_ndim = site["fn"].event_dim
    else:
        # A deterministic site does not say how many of its axes are event axes: take the
        # smallest number with which the sizes of all its plates fit.
        fits = (
            e
            for e in range(len(shape) + 1)
            if all(len(shape) - e + d >= 0 and shape[d - e] == f.size for d, f in frames.items())
        )
        event_ndim = next(fits, None)
    labels: list[str | None] = [None] * len(shape)
    if event_ndim is not None:
        for dim, frame in frames.items():
            axis = len(shape) - event_ndim + dim
            if axis >= 0 and shape[axis] == frame.size:
                labels[axis] = f"{frame.name}_plate" if frame.name in RESERVED else frame.name
        event_dims = list(site.get("infer", {}).get("event_dims", []))
        for offset, label in enumerate(reversed(event_dims[-event_ndim:] if event_ndim else [])):
            labels[len(shape) - 1 - offset] = label
    return tuple(labels)


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """Add the name of what was being looked at to an error."""
    try:
        yield
    except Exception as error:
        error.add_note(f"langevin_ppl: while looking at {what}.")
        raise

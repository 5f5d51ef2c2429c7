"""The gradient from a batch of rows, corrected by what the same rows say at a centre."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from langevin_ppl.base import Array, Estimate, GradientEstimator, Position
from langevin_ppl.gradients.draws import SAMPLINGS
from langevin_ppl.gradients.minibatch import check_sampling, no_memory, value_and_grad
from langevin_ppl.gradients.passes import whole_of_stream
from langevin_ppl.gradients.rows import (
    Draw,
    Reader,
    batch_sizes_of,
    read,
    reader_of,
    whole_mean,
)
from langevin_ppl.tree import ravel

__all__ = ["Centre", "ControlVariates", "centre_at", "control_variates", "whole_hessian"]


class Centre(NamedTuple):
    """A point, and what all the data say there.

    Attributes
    ----------
    position
        The point.
    logdensity, gradient
        Log density and gradient there.
    hessian
        Hessian in the order of the flattened position, ``[dimension, dimension]``, or None.
    """

    position: Position
    logdensity: Array
    gradient: Position
    hessian: Array | None


def whole_estimate(on_rows: Any, reader: Reader, position: Position) -> Estimate:
    """Log density and gradient from all the data, block by block."""
    return whole_mean(reader, lambda rows: value_and_grad(lambda x: on_rows(rows, x), position))


def whole_hessian(on_rows: Any, reader: Reader, position: Position) -> Array:
    """Hessian from all the data, block by block, ``[dimension, dimension]``."""
    flat, unravel = ravel(position)
    identity = jnp.eye(flat.size, dtype=flat.dtype)

    def of_rows(rows: Any) -> Array:
        gradient = jax.grad(lambda x: on_rows(rows, unravel(x)))
        _, tangent = jax.linearize(gradient, flat)
        return jax.vmap(tangent)(identity)

    matrix = whole_mean(reader, of_rows)
    return 0.5 * (matrix + matrix.T)


@functools.partial(jax.jit, static_argnums=3)
def centre_at(on_rows: Any, reader: Reader, position: Position, curved: bool) -> Centre:
    """Look at all the data at a point."""
    estimate = whole_estimate(on_rows, reader, position)
    hessian = whole_hessian(on_rows, reader, position) if curved else None
    return Centre(position, estimate.logdensity, estimate.gradient, hessian)


def _estimate(
    on_rows: Any,
    reader: Reader,
    centre: Centre,
    batch: Mapping[str, Array],
    position: Position,
    memory: Any,
) -> tuple[Estimate, Any]:
    rows = read(reader, batch)

    def fn(x: Position) -> Array:
        return on_rows(rows, x)

    here, there = value_and_grad(fn, position), value_and_grad(fn, centre.position)
    whole = Estimate(centre.logdensity, centre.gradient)
    move = jax.tree.map(jnp.subtract, position, centre.position)
    corrected = about(whole, here, there, move)
    if centre.hessian is None:
        return corrected, memory
    _, bent = jax.jvp(jax.grad(fn), (centre.position,), (move,))
    flat, unravel = ravel(move)
    excess = jax.tree.map(jnp.subtract, unravel(centre.hessian @ flat), bent)
    gradient = jax.tree.map(jnp.add, corrected.gradient, excess)
    return Estimate(corrected.logdensity + 0.5 * _dot(excess, move), gradient), memory


def about(whole: Estimate, here: Estimate, there: Estimate, move: Position) -> Estimate:
    """Estimate of a batch, corrected by what the batch and all the data say at another point.

    Parameters
    ----------
    whole, there
        From all the data and from the batch, at the other point.
    here
        From the batch.
    move
        Way from the other point to here, along which the value is corrected to first order.
    """
    gradient = jax.tree.map(
        lambda g, a, b: g + (a - b), whole.gradient, here.gradient, there.gradient
    )
    unseen = jax.tree.map(jnp.subtract, whole.gradient, there.gradient)
    value = whole.logdensity + (here.logdensity - there.logdensity) + _dot(unseen, move)
    return Estimate(value, gradient)


def _dot(a: Position, b: Position) -> Array:
    return jnp.vdot(ravel(a)[0], ravel(b)[0])


@dataclasses.dataclass(frozen=True)
class ControlVariates:
    """What `control_variates` makes: a function from a target to an estimator.

    Fields that are None are chosen during warm-up. With ``fallback``, plain batches take its place
    where there is no mode.
    """

    batch_size: Any
    centre: Any
    order: int | None
    pinned: Any
    sampling: str
    shared: bool
    seed: int
    fallback: bool = False

    def __call__(self, target: Any) -> GradientEstimator:
        """Make the estimator of a target."""
        if self.centre is None:
            raise ValueError(
                "control_variates: outside langevin_ppl.sample, where warm-up finds it, a centre "
                "is needed: control_variates(centre=position), at or near the mode."
            )
        unchosen = self.sampling == "importance" or isinstance(self.pinned, int) and self.pinned
        if unchosen:
            raise ValueError(
                "control_variates: which rows are heavy is found by the warm-up of "
                "langevin_ppl.sample. Outside of it, pass their numbers: pinned={'row': [...]}."
            )
        sizes = batch_sizes_of("control_variates", target, self.batch_size)
        pinned = _rows_of(target, self.pinned)
        reader = reader_of(target, sizes, self.sampling, self.seed, pinned)
        on_rows = target.batch_logdensity_fn
        centre = _checked(target, self.centre)
        if target.stream is None:
            return self.about(target, reader, centre_at(on_rows, reader, centre, self.order == 2))
        check_streamed(self)
        estimate = whole_of_stream(target, reader, centre)
        at_centre = Centre(centre, estimate.logdensity, estimate.gradient, None)
        return self.about(target, reader, at_centre)

    def about(self, target: Any, reader: Reader, centre: Centre) -> GradientEstimator:
        """Make the estimator about a centre whose gradient is known."""
        return GradientEstimator(
            init=Partial(no_memory),
            draw=Draw.of(reader),
            estimate=Partial(_estimate, target.batch_logdensity_fn, reader, centre),
            exact=False,
            logdensity_fn=target.logdensity_fn,
            shared=self.shared,
        )

    def __str__(self) -> str:
        parts = [
            f"{name}={value!r}"
            for name, value in (
                ("batch_size", self.batch_size),
                ("order", self.order),
                ("pinned", self.pinned if isinstance(self.pinned, int) else None),
                ("sampling", self.sampling),
                ("shared", self.shared),
            )
            if value is not None
        ]
        return f"control_variates({', '.join(parts)})"


def check_streamed(spec: ControlVariates) -> None:
    """Refuse what would look at all rows of a stream more than once."""
    pinned = spec.pinned is not None and not (isinstance(spec.pinned, int) and spec.pinned == 0)
    if spec.order == 2 or pinned or spec.sampling != "blocks":
        raise ValueError(
            f"{spec}: rows of a stream are neither pinned nor drawn by importance, and the Hessian "
            "of all of them is not computed. Leave order, pinned and sampling out, or hold the "
            "data in memory."
        )


def _rows_of(target: Any, pinned: Any) -> dict[str, np.ndarray]:
    """Numbers of pinned rows by plate, checked."""
    if pinned is None or isinstance(pinned, int):
        return {}
    plates = target.plates
    if not isinstance(pinned, Mapping):
        pinned = dict.fromkeys(plates, pinned) if len(plates) == 1 else {"": pinned}
    rows = {str(name): np.unique(np.asarray(numbers)) for name, numbers in pinned.items()}
    for name, numbers in rows.items():
        size = plates[name].size if name in plates else 0
        whole = np.issubdtype(numbers.dtype, np.integer) or numbers.size == 0
        inside = whole and (numbers >= 0).all() and (numbers < size).all()
        if not inside or len(numbers) >= size:
            raise ValueError(
                "control_variates: expected pinned to hold numbers of rows, fewer than all, of "
                f"the plates {', '.join(plates)}, got {pinned!r}."
            )
    return {name: numbers.astype(int) for name, numbers in rows.items()}


def _checked(target: Any, centre: Any) -> Position:
    """Position of the shapes and dtypes of the target's."""
    prototype = target.prototype
    same = jax.tree.structure(centre) == jax.tree.structure(prototype)
    if not same or jax.tree.map(jnp.shape, centre) != jax.tree.map(lambda p: p.shape, prototype):
        raise ValueError(
            "control_variates: expected the centre to be an unconstrained position of shapes "
            f"{jax.tree.map(lambda p: p.shape, prototype)}, got "
            f"{jax.tree.map(jnp.shape, centre)}."
        )
    return jax.tree.map(lambda x, p: jnp.asarray(x, p.dtype), centre, prototype)


def control_variates(
    batch_size: int | Mapping[str, int] | None = None,
    centre: Position | None = None,
    *,
    order: int | None = None,
    pinned: Any = None,
    sampling: str = "blocks",
    shared: bool = True,
    seed: int = 0,
) -> ControlVariates:
    r"""Estimate the gradient from a batch of rows and what the same rows say at a centre.

    .. math::

        \hat g(x) = \nabla \log p(c) +
        \frac{N}{B} \sum_{i \in b} (\nabla \log p_i(x) - \nabla \log p_i(c))

    (and the same of the prior, without noise). Its variance vanishes at the centre :math:`c` and
    grows like :math:`\|x - c\|^2`; about the mode of a posterior from :math:`N` rows it is of
    order :math:`N / B` where that of `minibatch` is :math:`N^2 / B`. Two gradients of a batch a
    step.

    Parameters
    ----------
    batch_size
        ``B``, or one for each plate. In `langevin_ppl.sample` chosen by the gradient noise, if it
        is not given; else the model's ``subsample_size``.
    centre
        ``c``, an unconstrained position (of an earlier run, from its group
        ``unconstrained_posterior``). `langevin_ppl.sample` finds the mode by itself; elsewhere it
        is required. The gradient of all the data is computed there.
    order
        2 adds a product with the Hessian of the batch at the centre to the correction, whose
        variance then grows like :math:`\|x - c\|^4`; three gradients a step instead of two, and
        the Hessian of all the data at the centre. 1 by default, or chosen by the gradient noise.
    pinned
        Rows that are in every batch with weight one, so that they make no noise: few rows often
        make most of it. In `langevin_ppl.sample` a number, of those that make the most noise
        (chosen, if not given; 0 for none); elsewhere their numbers, ``{"row": [3, 17]}``.
    sampling
        As in `minibatch`, or in `langevin_ppl.sample` ``"importance"``: rows are drawn with
        replacement and with probabilities in proportion to the noise that they make.
    shared
        Whether all chains of a run see the same rows, so that the gradient at the centre is
        computed once for all. The noise that they share is not seen by R-hat; the temperature
        that `langevin_ppl.sample` reports does.
    seed
        Of the order of shuffled rows and of epochs.

    Returns
    -------
    ControlVariates
        A function from a target to its estimator: for ``gradient=`` of `langevin_ppl.sample`, or
        ``target.gradient(...)``.

    Raises
    ------
    ValueError
        For choices that are not known; when applied, if the centre or the rows do not fit.

    References
    ----------
    Baker, Fearnhead, Fox, Nemeth, *Control variates for stochastic gradient MCMC* (2019),
    arXiv:1706.05439; Chatterji, Flammarion, Ma, Bartlett, Jordan, *On the theory of variance
    reduction for stochastic gradient Monte Carlo* (2018), arXiv:1802.05431.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> import langevin_ppl as lp
    >>> def model(y):
    ...     mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
    ...     with numpyro.plate("row", 1000, subsample_size=50):
    ...         numpyro.sample("y", dist.Cauchy(mean, 1.0), obs=numpyro.subsample(y, event_dim=0))
    >>> target = lp.target(model, jnp.linspace(-1.0, 2.0, 1000))
    >>> estimator = target.gradient(lp.control_variates(centre={"mean": 0.5}))
    >>> algorithm = lp.ubu(estimator, step_size=0.1, inverse_mass_matrix=1e-3)
    >>> state = algorithm.init({"mean": jnp.array(0.5)}, jax.random.key(0))
    >>> state, info = jax.jit(algorithm.step)(jax.random.key(1), state)
    """
    check_sampling("control_variates", sampling, (*SAMPLINGS, "importance"))
    if order not in (None, 1, 2):
        raise ValueError(f"control_variates: expected order to be 1 or 2, got {order!r}.")
    if isinstance(pinned, np.integer):
        pinned = int(pinned)
    if isinstance(pinned, bool) or (isinstance(pinned, int) and pinned < 0):
        raise ValueError(f"control_variates: expected a number of pinned rows, got {pinned!r}.")
    in_blocks = sampling in ("blocks", "epochs")
    if not in_blocks and not (pinned is None or (isinstance(pinned, int) and pinned == 0)):
        raise ValueError(
            f"control_variates: rows are pinned beside blocks; with sampling='{sampling}' leave "
            "pinned out."
        )
    return ControlVariates(batch_size, centre, order, pinned, sampling, bool(shared), int(seed))

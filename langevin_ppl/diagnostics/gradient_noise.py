"""How much the noise of estimated gradients heats a run, by direction."""

import functools
import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from langevin_ppl.arguments import check_target, earlier_parameters
from langevin_ppl.base import (
    Array,
    BiasWarning,
    GradientEstimator,
    PRNGKey,
    check_counts,
    check_key,
)
from langevin_ppl.diagnostics.runs import (
    check_run,
    estimator_of,
    kernel_of,
    last_positions,
    own_dims,
    parameter,
    unconstrained,
)
from langevin_ppl.gradients import on_flat
from langevin_ppl.kernels import Kernel
from langevin_ppl.preconditioners import Preconditioner, preconditioner
from langevin_ppl.tree import Layout
from langevin_ppl.trust import HOT

__all__ = ["gradient_noise"]

POINTS = 32
"""Draws of the run at which the noise is measured."""

NUMBERS = 2**26
"""Most numbers of gradients that are held at a time; fewer draws are looked at above."""

DIRECTIONS = 10
"""Principal directions that are reported."""


def gradient_noise(
    rng_key: PRNGKey,
    target: Any,
    idata: xr.DataTree,
    gradient: Any,
    *,
    num_batches: int = 256,
    kernel: Any = None,
) -> xr.DataTree:
    r"""Measure the noise of a gradient estimator at the draws of a run, and add it to its tree.

    Many batches are drawn at a few draws of the run. The covariance ``S`` of their gradients, in
    the frame of the run's inverse mass matrix, is to be compared with the noise that the kernel
    injects: along a direction in which it is ``s``, a step of size ``h`` runs at the temperature

    .. math:: 1 + \frac{h s}{2 T} \quad\text{(overdamped)}, \qquad
        1 + \frac{h s}{2 \gamma T} \quad\text{(kinetic, of friction } \gamma \text{)}

    in units of the target's ``T``, and standard deviations are inflated by about its root.

    Parameters
    ----------
    rng_key
        Key of the batches.
    target
        Target of the run.
    idata
        What `langevin_ppl.sample` returned. With ``groups=["unconstrained_posterior"]`` the noise
        is measured at up to 32 of its draws, else where its chains ended.
    gradient
        `langevin_ppl.minibatch`, `langevin_ppl.control_variates` with a centre,
        `langevin_ppl.svrg`, or a `GradientEstimator`; not necessarily that of the run.
    num_batches
        Batches at each of the draws.
    kernel
        Kernel of the run, if it cannot be found by its name.

    Returns
    -------
    xarray.DataTree
        A copy with the group ``gradient_noise``: for every unconstrained variable the temperature
        of its coordinates, and along ``principal``, in falling order, the temperatures
        ``principal_temperature`` of the (at most ten) directions of most noise, their standard
        errors ``principal_error`` and the unit vectors ``principal_direction`` in the frame.
        Attributes: ``largest``, the highest temperature of all; ``step_size``; ``gradient``;
        ``num_points`` and ``num_batches``.

    Raises
    ------
    TypeError
        If ``idata`` is not a run of `langevin_ppl.sample`, or ``gradient`` no estimator.
    ValueError
        If the estimator is exact, the kernel is not known or is not one of this library, or a
        position is not finite.

    Warns
    -----
    BiasWarning
        If a temperature is above 1.25, as for the temperature that is measured.

    Notes
    -----
    Directions are found with one half of the batches and measured with the other, so that chance
    does not make them hot. A principal direction belongs to the frame; the temperature of a
    variable, :math:`1 + h (L S L^\top)_{ii} / 2 (L L^\top)_{ii}`, is what its own noise adds where
    the inverse mass matrix :math:`L L^\top` is its posterior covariance.

    The prediction is for small steps and for draws where the run should be. In a run that is hot
    already the noise of control variates, which grows with the distance from the centre, is seen
    where the run went, so that predictions far above 1 are rough. Rows that are rare and make most
    of the noise may be in none of the batches. Large blocks of rows (a tenth of all and more) are
    so few that their noise depends on the one order in which rows were shuffled. Batches of epochs
    cancel in part over an epoch, which makes the prediction too high for them. Thermostats
    (`sgnht`, `badodab`) take off what they are predicted to have.

    References
    ----------
    Ma, Chen, Fox, *A complete recipe for stochastic gradient MCMC* (2015), arXiv:1506.04696;
    Baker, Fearnhead, Fox, Nemeth, *Control variates for stochastic gradient MCMC* (2019),
    arXiv:1706.05439.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> import langevin_ppl as lp
    >>> def model(y):
    ...     mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
    ...     with numpyro.plate("row", 1000, subsample_size=50):
    ...         numpyro.sample("y", dist.Normal(mean, 1.0), obs=numpyro.subsample(y, event_dim=0))
    >>> target = lp.target(model, jnp.linspace(-1.0, 2.0, 1000))
    >>> idata = lp.sample(
    ...     jax.random.key(0),
    ...     target,
    ...     lp.sgld,
    ...     gradient=lp.minibatch(),
    ...     step_size=0.02,
    ...     inverse_mass_matrix=1e-3,
    ...     thinning=50,
    ... )
    >>> idata = lp.diagnostics.gradient_noise(jax.random.key(1), target, idata, lp.minibatch())
    >>> round(float(idata["gradient_noise"]["mean"]), 1)  # 0.02 / 2 * 1000 / 50 * 0.75 * 0.95
    1.1
    """
    rng_key = check_key(rng_key)
    check_target(target)
    check_run("gradient_noise", idata)
    check_counts(4, num_batches=num_batches)
    layout = Layout.of(target.prototype)
    estimator = _estimator(target, gradient)
    scale = _heating(idata, kernel_of("gradient_noise", idata, kernel))
    ends = _points(target, idata, layout, num_batches)
    frame = _frame(idata, layout.dimension)
    # An estimator with a memory has looked at all the data at another draw.
    found = jax.device_get(
        _measure(
            rng_key,
            estimator,
            jnp.roll(ends, 1, axis=0),
            ends,
            frame,
            layout=layout,
            num_batches=num_batches,
        )
    )
    noise, error, directions = _principal(found.white)
    principal = scale.base + scale.slope * noise
    of_variables = scale.base + scale.slope * found.of_variables
    largest = float(max(principal.max(initial=0.0), of_variables.max()))
    tree = idata.copy()
    tree["gradient_noise"] = xr.DataTree(
        xr.Dataset(
            {
                **_by_variable(of_variables, idata, layout),
                "principal_temperature": ("principal", principal),
                "principal_error": ("principal", scale.slope * error),
                "principal_direction": (("principal", "coordinate"), directions),
            },
            attrs={
                "largest": largest,
                "step_size": scale.step_size,
                "gradient": _name(gradient),
                "num_points": len(ends),
                "num_batches": num_batches,
            },
        )
    )
    if largest > HOT:
        warnings.warn(
            f"gradient_noise: {_name(gradient)} is predicted to raise the temperature to "
            f"{largest:.3g} times the target's along its worst direction, and standard deviations "
            "with it. Use control variates (langevin_ppl.control_variates), a larger batch, or a "
            "smaller step_size.",
            BiasWarning,
            stacklevel=2,
        )
    return tree


def _name(gradient: Any) -> str:
    return "GradientEstimator" if isinstance(gradient, GradientEstimator) else str(gradient)


def _estimator(target: Any, gradient: Any) -> GradientEstimator:
    """Estimator of the target, refused if it is exact."""
    found = estimator_of("gradient_noise", target, gradient)
    if found.draw is None:
        raise ValueError("gradient_noise: an exact gradient has no noise.")
    return found


class _Scale(NamedTuple):
    """Temperature, in units of the target's, is ``base + slope * noise``."""

    step_size: float
    base: float
    slope: float


def _heating(idata: xr.DataTree, kernel: Kernel) -> _Scale:
    step_size = parameter(idata, kernel, "step_size")
    if step_size is None:
        raise ValueError(f"gradient_noise: the run of {kernel!r} has no step_size.")
    temperature = parameter(idata, kernel, "temperature") or 1.0
    friction = parameter(idata, kernel, "friction")
    if friction is None:
        return _Scale(step_size, 1.0, 0.5 * step_size / temperature)
    # What `sghmc` was told it does not inject.
    left_out = parameter(idata, kernel, "noise_estimate") or 0.0
    return _Scale(step_size, 1.0 - left_out / friction, 0.5 * step_size / (friction * temperature))


def _points(target: Any, idata: xr.DataTree, layout: Layout, num_batches: int) -> Array:
    """Positions to measure at, ``[point, dimension]``: draws over the whole run."""
    draws = unconstrained("gradient_noise", target, idata, layout)
    if draws is None:
        points = last_positions("gradient_noise", idata, layout)
    else:
        points = draws.reshape(-1, layout.dimension)
        number = max(4, min(POINTS, NUMBERS // (num_batches * layout.dimension), len(points)))
        points = points[np.linspace(0, len(points) - 1, number).astype(int)]
    if not np.isfinite(points).all():
        raise ValueError(
            "gradient_noise: positions of the run are not finite. Select the chains that are, or "
            "use a smaller step_size."
        )
    return jnp.asarray(points)


def _frame(idata: xr.DataTree, dimension: int) -> Preconditioner:
    parameters, per_chain = earlier_parameters(idata, idata["sampler_position"].sizes["chain"])
    if per_chain:
        raise ValueError(
            "gradient_noise: the run tuned every chain by itself, in a frame of its own; use a "
            "kernel of langevin_ppl."
        )
    return preconditioner(parameters.get("inverse_mass_matrix", 1.0), dimension)


class _Measured(NamedTuple):
    """Gradients less their means at each point, in the frame; and variances of coordinates.

    ``white``: ``[point, batch, dimension]``; ``of_variables``: ``[dimension]``.
    """

    white: Array
    of_variables: Array


@functools.partial(jax.jit, static_argnames=("layout", "num_batches"))
def _measure(
    rng_key: PRNGKey,
    estimator: GradientEstimator,
    starts: Array,
    ends: Array,
    frame: Preconditioner,
    *,
    layout: Layout,
    num_batches: int,
) -> _Measured:
    flat = on_flat(estimator, layout)
    assert flat.draw is not None

    def at(key: PRNGKey, start: Array, end: Array) -> Array:
        memory = flat.init(start)

        def one(index: Array) -> Array:
            # From step 1 on: in step 0 an estimator with a memory may renew it.
            batch = flat.draw(jax.random.fold_in(key, index), index + 1)
            return frame.transpose(flat.estimate(batch, end, memory)[0].gradient)

        gradients = jax.lax.map(one, jnp.arange(num_batches))
        bessel = math.sqrt(num_batches / (num_batches - 1.0))
        return bessel * (gradients - jnp.mean(gradients, axis=0))

    white = jax.vmap(at)(jax.random.split(rng_key, len(ends)), starts, ends)
    moved = jax.vmap(jax.vmap(frame.scale))(white)
    variances = jnp.mean(jnp.square(moved), axis=(0, 1)) / _diagonal(frame, layout.dimension)
    return _Measured(white, variances)


def _diagonal(frame: Preconditioner, dimension: int) -> Array:
    """Diagonal of the inverse mass matrix."""
    if frame.factor.ndim == 2:
        return jnp.sum(jnp.square(frame.factor), axis=1)
    diagonal = jnp.broadcast_to(jnp.square(frame.factor), (dimension,))
    if frame.directions is None or frame.stretches is None:
        return diagonal
    return diagonal * (1.0 + jnp.square(frame.directions) @ (jnp.square(frame.stretches) - 1.0))


def _principal(white: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise along the directions where it is largest, its standard error, and the directions."""
    white = np.asarray(white, np.float64)
    points, _, dimension = white.shape
    one, other = white[:, ::2], white[:, 1::2]
    directions = _leading(one.reshape(-1, dimension))
    squares = np.square(other @ directions.T)
    by_point = squares.mean(axis=1)
    if points > 1:
        # The noise differs from point to point, and so do the batches.
        error = by_point.std(axis=0, ddof=1) / math.sqrt(points)
    else:
        error = squares[0].std(axis=0, ddof=1) / math.sqrt(squares.shape[1])
    noise = by_point.mean(axis=0)
    order = np.argsort(-noise)
    return noise[order], error[order], directions[order]


def _leading(rows: np.ndarray) -> np.ndarray:
    """Orthonormal directions of the largest squares, ``[direction, dimension]``.

    By products of the rows, or of the columns where they are fewer: faster than by the rows.
    """
    number = min(DIRECTIONS, *rows.shape)
    if rows.shape[1] <= rows.shape[0]:
        return np.linalg.eigh(rows.T @ rows)[1][:, : -number - 1 : -1].T
    vectors = np.linalg.eigh(rows @ rows.T)[1][:, : -number - 1 : -1]
    return np.linalg.qr(rows.T @ vectors)[0].T


def _by_variable(flat: np.ndarray, idata: xr.DataTree, layout: Layout) -> dict[str, xr.DataArray]:
    """Numbers of coordinates as arrays of the unconstrained variables."""
    arrays, start = {}, 0
    for (name, dims), (shape, _) in zip(
        own_dims(idata, layout).items(), layout.leaves, strict=True
    ):
        size = math.prod(shape)
        values = flat[start : start + size].reshape(shape).astype(np.float64)
        coords = {dim: labels for dim, labels in dims.items() if labels is not None}
        arrays[name] = xr.DataArray(values, dims=list(dims), coords=coords)
        start += size
    return arrays

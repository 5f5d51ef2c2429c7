"""The contracts of the library, on one page.

Conventions, said once
----------------------
Density
    ``logdensity_fn(position)`` is the log density of the target up to a constant: a *sum* over
    the whole data set, on unconstrained space, Jacobian of the transforms included. Gradients
    are gradients of this log density (they point uphill).
Step size
    ``step_size`` is the ``h`` of the Euler-Maruyama scheme
    ``x' = x + h C grad log p(x) + sqrt(2 h T) L xi`` with ``C = L L^T`` the
    ``inverse_mass_matrix``, ``T`` the temperature and ``xi`` standard normal. It has the units
    of a squared position divided by those of ``C``. That of a kinetic kernel is a time: with unit
    mass in the whitened frame, the square of it is twice the ``h`` of an overdamped one.
Frame
    A kernel with an inverse mass matrix is exactly the plain kernel in the whitened coordinates
    ``z = L^{-1} x``. Tamings act there.
Randomness
    A step is a ``draw`` followed by a deterministic ``transition``. ``draw`` reads only shapes,
    constants fixed by warm-up and the step counter of the state.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.base import SamplingAlgorithm
from jax.typing import ArrayLike

__all__ = [
    "Array",
    "ArrayLike",
    "AssumptionWarning",
    "BiasWarning",
    "CheckpointWarning",
    "ConvergenceWarning",
    "DivergenceWarning",
    "Draws",
    "Estimate",
    "GradientEstimator",
    "LogDensity",
    "PRNGKey",
    "Plate",
    "Position",
    "Randomness",
    "Rows",
    "SamplingAlgorithm",
    "Target",
    "check_counts",
    "check_key",
    "check_number",
    "percent",
]

type Array = jax.Array
type PRNGKey = jax.Array
"""A typed key, as ``jax.random.key`` makes it."""
type Position = Any
"""A pytree of floating-point arrays; for a NumPyro model, a dict of unconstrained sites."""
type LogDensity = Callable[[Position], Array]

DIVERGENCE_THRESHOLD = 1000.0
"""Energy error of a Metropolis proposal above which a step counts as divergent (as in Stan)."""


class Randomness(NamedTuple):
    """All that is random in one step.

    Attributes
    ----------
    noise
        Gaussian noise (and the log uniform of a Metropolis test) in the kernel's own layout.
    batch
        What the gradient estimator drew, ``()`` for a deterministic one.
    """

    noise: Any
    batch: Any


class Estimate(NamedTuple):
    """A log density and its gradient, exact or estimated.

    Attributes
    ----------
    logdensity
        Scalar.
    gradient
        Same structure as the position.
    """

    logdensity: Array
    gradient: Position


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["init", "draw", "estimate", "logdensity_fn"],
    meta_fields=["exact", "shared"],
)
@dataclasses.dataclass(frozen=True)
class GradientEstimator:
    """From how much data a kernel sees the gradient.

    A pytree: where its functions are pytrees themselves (``jax.tree_util.Partial``), it may cross
    ``jit``, and the data that they read are arguments of the compiled program.

    Attributes
    ----------
    init
        ``init(position) -> memory``: the estimator's own state (``()`` if it has none).
    draw
        ``draw(rng_key, step) -> batch``, or None for a deterministic estimator. It sees the step
        counter and nothing else of the state, so that batches can be drawn ahead and shared.
    estimate
        ``estimate(batch, position, memory) -> (Estimate, memory)``.
    exact
        Whether the estimate is the log density itself, which a Metropolis test needs.
    logdensity_fn
        Log density of all the data, for kernels that look at it now and then; None if unknown.
    shared
        Whether all chains of a run see the same batches.
    """

    init: Callable[[Position], Any]
    draw: Callable[[PRNGKey, Array], Any] | None
    estimate: Callable[[Any, Position, Any], tuple[Estimate, Any]]
    exact: bool
    logdensity_fn: LogDensity | None = None
    shared: bool = False


class Plate(NamedTuple):
    """A subsampled plate: its number of rows, and how many of them the model asks for."""

    size: int
    batch_size: int


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["indices", "weights", "slices"],
    meta_fields=["size"],
)
@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of a subsampled plate.

    Attributes
    ----------
    indices
        Which rows, ``[row]``.
    weights
        What the log density of each counts, ``[row]``; None for ``size / len(indices)``.
    slices
        These rows of arrays that the model reads by ``numpyro.subsample``, by the number of the
        array and the axis of its rows, where they are at hand without gathering.
    size
        Number of rows of the plate.
    """

    indices: Array
    weights: Array | None
    slices: Mapping[tuple[int, int], Array]
    size: int


@runtime_checkable
class Target(Protocol):
    """What is sampled: a pytree whose array leaves are the data.

    Made by ``langevin_ppl.target`` and ``langevin_ppl.density``.
    """

    @property
    def logdensity_fn(self) -> LogDensity:
        """Log density on unconstrained space; a pytree itself, so it may cross ``jit``."""
        ...

    @property
    def prototype(self) -> Position:
        """Shapes and dtypes of one position (``jax.ShapeDtypeStruct`` leaves)."""
        ...

    @property
    def plates(self) -> dict[str, Plate]:
        """Subsampled plates by name: what minibatch estimators read batches of."""
        ...

    @property
    def stream(self) -> Any:
        """Stream that the rows of its plate are read from; None where all data are in memory."""
        ...

    def init_position(self, rng_key: PRNGKey) -> Position:
        """One starting position with a finite log density and gradient."""
        ...

    def constrain(self, position: Position) -> dict[str, Array]:
        """Named variables of one position: constrained sites and deterministics."""
        ...

    def gradient(self, estimator: Callable[[Self], GradientEstimator]) -> GradientEstimator:
        """Apply ``estimator`` to this target."""
        ...

    def replace(self, **options: Any) -> Self:
        """Return a copy with other options."""
        ...


class Draws(NamedTuple):
    """What a run leaves.

    Attributes
    ----------
    positions
        Flat unconstrained positions, shape ``[chain, draw, dimension]``, on the host.
    stats
        Per-draw statistics of the kernel, each of shape ``[chain, draw]``, on the host.
    final_state
        The kernel's state after the last step, leading axis ``chain``.
    complete
        False where the run was interrupted; then there are fewer draws than asked for.
    """

    positions: Any
    stats: Mapping[str, Any]
    final_state: Any
    complete: bool


class DivergenceWarning(UserWarning):
    """A chain left the finite numbers, or a Metropolis proposal was far off."""


class AssumptionWarning(UserWarning):
    """A condition does not hold under which a method is known to work."""


class BiasWarning(UserWarning):
    """Draws are biased by more than a tenth of a posterior sd, or their spread is inflated."""


class CheckpointWarning(UserWarning):
    """A checkpoint could not be written or read whole; the run goes on."""


class ConvergenceWarning(UserWarning):
    """The draws are not enough, or there is a reason not to trust them."""


def percent(share: float) -> str:
    """Write a share as a percentage, with two digits where it is small."""
    if 0.0 < share < 1e-4:
        return "less than 0.01 %"
    return f"{100 * share:.{'2g' if share < 0.1 else '0f'}} %"


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
) -> None:
    """Refuse what is not a finite number above one bound, at least another, and below a third."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    low, high = -math.inf if above is None else above, math.inf if below is None else below
    floor = -math.inf if least is None else least
    if number and low < value < high and value >= floor:
        return
    bounds = f"between {low:g} and {high:g}" if least is None else f"of at least {least:g}"
    raise ValueError(f"{name}: expected a number {bounds}, got {value!r}.")


def check_key(rng_key: Any) -> PRNGKey:
    """Accept one key, typed or legacy."""
    if isinstance(rng_key, jax.Array | np.ndarray):
        if jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key) and rng_key.shape == ():
            return rng_key  # pyright: ignore[reportReturnType]
        if rng_key.dtype == jnp.uint32 and rng_key.ndim == 1:
            return jax.random.wrap_key_data(jnp.asarray(rng_key))
    raise TypeError(
        f"rng_key: expected one key such as jax.random.key(0), got {type(rng_key).__name__}"
        + (f" of shape {rng_key.shape}." if hasattr(rng_key, "shape") else ".")
    )


def check_counts(least: int, **counts: Any) -> None:
    """Refuse what is not an integer of at least ``least``."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}.")

"""What every kernel is: an object like BlackJAX's, built from one ``transition``."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from langevin_ppl.base import (
    Array,
    ArrayLike,
    GradientEstimator,
    LogDensity,
    Position,
    PRNGKey,
    Randomness,
    SamplingAlgorithm,
)
from langevin_ppl.gradients import as_estimator
from langevin_ppl.preconditioners import Preconditioner, preconditioner
from langevin_ppl.taming import Taming, norm
from langevin_ppl.tree import all_finite, ravel

__all__ = [
    "Draw",
    "Kernel",
    "KernelInfo",
    "KernelState",
    "Transition",
    "absorbing",
    "centred",
    "check_burn_in",
    "draw_noise",
    "reported",
]


class KernelState(NamedTuple):
    """State of an overdamped chain; kinetic ones carry a momentum as well.

    Attributes
    ----------
    position
        Pytree of arrays.
    logdensity
        Log density (or its estimate) at the position, scalar.
    logdensity_grad
        Its gradient, same structure as the position.
    step
        Number of steps made, int32 scalar.
    memory
        The gradient estimator's own state.
    """

    position: Position
    logdensity: Array
    logdensity_grad: Position
    step: Array
    memory: Any


class KernelInfo(NamedTuple):
    """What one step reports. A field that a kernel cannot know is None, never invented.

    Attributes
    ----------
    is_divergent
        Unadjusted kernels: position, log density or gradient is not finite, which is absorbing.
        Adjusted kernels: the proposal was not finite or its energy error exceeded 1000.
    logdensity
        Log density, or its estimate, at the new position; None where a step does not end at a
        gradient.
    grad_norm
        Euclidean norm of the last gradient of the step.
    taming_loss
        Tamed kernels: share of the gradient that taming removed in this step.
    acceptance_rate, is_accepted
        Adjusted kernels: probability and outcome of the Metropolis test.
    energy
        Kinetic kernels: the Hamiltonian of the new state, its negative log density plus half the
        squared momentum; None where the log density there is estimated or not evaluated.
    """

    is_divergent: Array
    logdensity: Array | None
    grad_norm: Array
    taming_loss: Array | None = None
    acceptance_rate: Array | None = None
    is_accepted: Array | None = None
    energy: Array | None = None


BOUNDS = {
    "correction_share": (1.0, np.inf),
    "cycle_length": (1.0, np.inf),
    "exploration": (0.0, 1.0),
    "frequency": (0.0, np.inf),
    "gain": (0.0, np.inf),
    "gain_offset": (0.0, np.inf),
    "gain_power": (0.0, 1.0),
    "location": (-np.inf, np.inf),
    "smoothing": (0.0, 1.0),
    "taming": (0.0, np.inf),
    "zeta": (0.0, np.inf),
}
"""Least and largest value of parameters that may be zero or negative, or are bounded above."""

type Draw = Callable[[PRNGKey, Any, GradientEstimator], Randomness]
type Transition = Callable[..., tuple[Any, Any]]


class Kernel:
    """A Markov kernel with BlackJAX's three faces.

    ``kernel(logdensity_fn, **parameters)`` is a `SamplingAlgorithm`; ``kernel.init`` and
    ``kernel.build_kernel`` are what BlackJAX's adaptations and SMC samplers take. Inside,
    ``draw`` makes the randomness of a step and ``transition`` uses it. Kernels are hashed by
    identity and pickled by name.

    Parameters
    ----------
    name
        Where the kernel can be imported from, ``module.name``.
    transition
        ``transition(randomness, state, gradient, **parameters) -> (State, Info)``. Its
        parameters after ``gradient`` are those of the kernel.
    draw
        ``draw(rng_key, state, gradient) -> Randomness``.
    exact
        Whether the stationary law is the target at any step size.
    target_acceptance_rate
        What the step size of an adjusted kernel is tuned to, else None.
    amortised
        Whether the Metropolis test looks up the density of all the data itself, so that gradients
        may be estimates.
    tuner
        The adjusted kernel by which warm-up tunes this one; itself if it is adjusted.
    tuner_share
        Largest share of the tuner's step size that warm-up may choose.
    max_step_size
        Largest step size that warm-up may choose; None for no bound.
    order
        Of an inexact kernel, the power of the step size with which its bias shrinks.
    gradients_per_step
        Gradient evaluations of a step.
    ends_at_gradient
        Whether a step ends where it evaluated the density last.
    burn_in
        Steps before the kernel aims at its target.
    recipe
        Function and arguments that make the kernel, where it cannot be imported by name.
    taming
        Of a kernel whose step is one of Euler and Maruyama with a tamed drift, and its law given
        where it began so Gaussian: the taming, from parameters of its own. None for others.
    state
        ``state(position, logdensity, logdensity_grad, step, memory) -> State``.
    doc
        Docstring: update equation, what it targets, order of the bias, gradients a step, source.

    Attributes
    ----------
    parameters
        Names and defaults of the parameters; `inspect.Parameter.empty` where there is none.
    """

    def __init__(
        self,
        name: str,
        transition: Transition,
        draw: Draw,
        *,
        exact: bool,
        target_acceptance_rate: float | None = None,
        amortised: bool = False,
        tuner: "Kernel | None" = None,
        tuner_share: float = 0.25,
        max_step_size: float | None = None,
        order: float = 1,
        gradients_per_step: int = 1,
        ends_at_gradient: bool = True,
        burn_in: int = 0,
        recipe: tuple[Callable[..., Any], tuple[Any, ...]] | None = None,
        taming: Callable[..., Taming] | None = None,
        state: Callable[..., Any] = KernelState,
        doc: str,
    ):
        function, *arguments = name.partition("(")
        self.__module__, _, function = function.rpartition(".")
        self.__name__ = "".join([function, *arguments])
        self.__doc__ = doc
        self.transition = transition
        self.draw = draw
        self.exact = exact
        self.target_acceptance_rate = target_acceptance_rate
        self.amortised = amortised
        self.tuner = self if tuner is None else tuner
        self.tuner_share = tuner_share
        self.max_step_size = max_step_size
        self.order = order
        self.gradients_per_step = gradients_per_step
        self.ends_at_gradient = ends_at_gradient
        self.burn_in = burn_in
        self.recipe = recipe
        self.taming = taming
        self.state = state
        _, _, _, *own = inspect.signature(transition).parameters.values()
        self.parameters: Mapping[str, Any] = {p.name: p.default for p in own}
        self.__signature__ = inspect.Signature([_parameter("logdensity_fn"), *own])

    def __repr__(self) -> str:
        return f"langevin_ppl.{self.__name__}"

    def __reduce__(self) -> Any:
        return self.__name__ if self.recipe is None else self.recipe

    def __call__(
        self, logdensity_fn: LogDensity | GradientEstimator, *args: Any, **kwargs: Any
    ) -> SamplingAlgorithm:
        """Fix the density and the parameters.

        Parameters
        ----------
        logdensity_fn
            A log density or a gradient estimator.
        *args, **kwargs
            The kernel's parameters.

        Returns
        -------
        SamplingAlgorithm
            With ``init(position, rng_key=None)`` and ``step(rng_key, state)``.
        """
        estimator = self._estimator(logdensity_fn)
        unknown = ", ".join(sorted(set(kwargs) - set(self.parameters)))
        try:
            if unknown:
                raise TypeError(f"unknown parameter {unknown}")
            bound = self.__signature__.bind(logdensity_fn, *args, **kwargs)
        except TypeError as error:
            raise TypeError(
                f"{self!r}: {error}. Its parameters are {', '.join(self.parameters)}."
            ) from None
        bound.apply_defaults()
        parameters = self.prepare(
            {k: v for k, v in bound.arguments.items() if k != "logdensity_fn"}
        )

        def init(position: Position, rng_key: PRNGKey | None = None) -> KernelState:
            return self.init(position, estimator, rng_key)

        def step(rng_key: PRNGKey, state: KernelState) -> tuple[KernelState, KernelInfo]:
            return self.transition(
                self.draw(rng_key, state, estimator), state, estimator, **parameters
            )

        return SamplingAlgorithm(init, step)  # pyright: ignore[reportArgumentType]

    def init(
        self,
        position: Position,
        logdensity_fn: LogDensity | GradientEstimator,
        rng_key: PRNGKey | None = None,
    ) -> Any:
        """State of a chain that starts at ``position``.

        ``rng_key`` is read only by minibatch estimators.
        """
        estimator = self._estimator(logdensity_fn)
        # Python numbers are weakly typed, and a step would return another type than it took.
        position = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), position)
        step = jnp.zeros((), jnp.int32)
        memory = estimator.init(position)
        batch: Any = ()
        if estimator.draw is not None:
            if rng_key is None:
                raise ValueError(f"{self!r}.init: a minibatch estimator needs rng_key.")
            batch = estimator.draw(rng_key, step)
        estimate, memory = estimator.estimate(batch, position, memory)
        return self.state(position, estimate.logdensity, estimate.gradient, step, memory)

    def adopt(self, state: Any) -> Any:
        """Go on from the state of another kernel.

        What both carry is kept, such as the momentum of a kinetic chain; what only this kernel
        carries begins anew, from rest.
        """
        fresh = self.state(*state[:5])
        shared = set(state._fields) & set(fresh._fields)
        return fresh._replace(**{name: getattr(state, name) for name in shared})

    def build_kernel(self) -> Callable[..., tuple[KernelState, KernelInfo]]:
        """Return ``kernel(rng_key, state, logdensity_fn, step_size, ...)`` as BlackJAX does."""

        def kernel(
            rng_key: PRNGKey,
            state: KernelState,
            logdensity_fn: LogDensity | GradientEstimator,
            *args: Any,
            **kwargs: Any,
        ) -> tuple[KernelState, KernelInfo]:
            estimator = self._estimator(logdensity_fn)
            randomness = self.draw(rng_key, state, estimator)
            named = self.__signature__.bind(logdensity_fn, *args, **kwargs).arguments
            del named["logdensity_fn"]
            return self.transition(randomness, state, estimator, **named)

        # The true parameters, because BlackJAX's adaptations look at them.
        leading = [_parameter("rng_key"), _parameter("state")]
        kernel.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
            [*leading, *self.__signature__.parameters.values()]
        )
        return kernel

    def prepare(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Check the values of parameters and factorise the inverse mass matrix, once."""
        prepared = dict(parameters)
        for name in ("step_size", "temperature", "friction", "thermostat_mass", "damping"):
            if name in prepared:
                if np.ndim(prepared[name]) > 0:
                    raise ValueError(
                        f"{self}: expected {name} to be a scalar, got shape "
                        f"{np.shape(prepared[name])}."
                    )
                check_positive(self, name, prepared[name])
        for name, bounds in BOUNDS.items():
            if name in prepared:
                check_finite(self, name, prepared[name], *bounds)
        if "noise_estimate" in prepared:
            friction = prepared["friction"]
            most = np.inf if isinstance(friction, Tracer) else float(friction)
            check_finite(self, "noise_estimate", prepared["noise_estimate"], 0.0, most)
        if "inverse_mass_matrix" in prepared:
            matrix = prepared["inverse_mass_matrix"]
            if not isinstance(matrix, Preconditioner):
                check_positive_definite(self, matrix)
            prepared["inverse_mass_matrix"] = preconditioner(matrix)
        return prepared

    def _estimator(self, logdensity_fn: LogDensity | GradientEstimator) -> GradientEstimator:
        estimator = as_estimator(logdensity_fn)
        if self.amortised:
            if estimator.logdensity_fn is None:
                raise ValueError(
                    f"{self!r} has a Metropolis test by the log density of all the data; expected "
                    "a gradient estimator with a logdensity_fn, got one without."
                )
        elif self.target_acceptance_rate is not None and not estimator.exact:
            raise ValueError(
                f"{self!r} has a Metropolis test, which needs the log density of all the data; "
                "the gradient estimator that came reads a part of it. Use the unadjusted "
                "kernel (for example langevin_ppl.ula), or the exact gradient."
            )
        return estimator


def draw_noise(
    rng_key: PRNGKey,
    state: KernelState,
    gradient: GradientEstimator,
    extra: int = 0,
    copies: int = 1,
) -> Randomness:
    """Standard normals, ``copies`` for each coordinate and ``extra`` more, and a batch."""
    if gradient.draw is None:
        key_noise, batch = rng_key, ()
    else:
        key_noise, key_batch = jax.random.split(rng_key)
        batch = gradient.draw(key_batch, state.step)
    shape = jax.eval_shape(lambda tree: ravel(tree)[0], state.position)
    noise = jax.random.normal(key_noise, (copies * shape.size + extra,), shape.dtype)
    # Without the barrier XLA computes the normals once more wherever they are used.
    return Randomness(jax.lax.optimization_barrier(noise), batch)


def absorbing(position: Position, *others: Array) -> tuple[Position, Array]:
    """Position, or NaN everywhere if anything is not finite, and whether all of it is.

    Once the numbers are lost, no later step may look as if it had recovered.
    """
    flat, unravel = ravel(position)
    finite = all_finite(flat, *others)
    return unravel(jnp.where(finite, flat, jnp.nan)), finite


def reported[State: Any](
    new: State,
    *others: Array,
    taming_loss: Array | None = None,
    energy: Array | None = None,
    ends_at_gradient: bool = True,
) -> tuple[State, KernelInfo]:
    """State and info of a step without a Metropolis test.

    ``others`` are further arrays of the state that have to be finite.
    """
    gradient = ravel(new.logdensity_grad)[0]
    position, finite = absorbing(new.position, new.logdensity, gradient, *others)
    info = KernelInfo(
        is_divergent=~finite,
        logdensity=new.logdensity if ends_at_gradient else None,
        grad_norm=norm(gradient),
        taming_loss=taming_loss,
        energy=energy,
    )
    return new._replace(position=position), info


def centred(owner: str, flat: Array, location: ArrayLike) -> Array:
    """Position relative to a location, which is a scalar or of the position's shape."""
    if jnp.shape(location) not in ((), flat.shape):
        raise ValueError(
            f"{owner}: expected location to be a scalar or of shape {flat.shape} for positions of "
            f"{flat.size} numbers, got {jnp.shape(location)}."
        )
    return jnp.subtract(flat, location)


def check_positive(owner: Any, name: str, value: Any) -> None:
    """Refuse a concrete value that is not a positive finite number.

    In NumPy, so that concrete values can be checked inside a trace; traced ones pass.
    """
    if isinstance(value, Tracer):
        return
    array = np.asarray(value)
    numeric = np.issubdtype(array.dtype, np.number)
    if not (numeric and np.all((array > 0) & (array < np.inf))):
        raise ValueError(f"{owner}: expected {name} to be positive and finite, got {value!r}.")


def check_burn_in(kernel: Any, num_warmup: int) -> None:
    """Refuse a warm-up in which a kernel hardly comes to aim at its target."""
    burn_in = getattr(kernel, "burn_in", 0)
    if num_warmup < 2 * burn_in:
        raise ValueError(
            f"{kernel!r} aims at its target after {burn_in} steps, and is tuned after that: "
            f"expected num_warmup to be at least {2 * burn_in}, got {num_warmup}."
        )


def check_finite(
    owner: Any, name: str, value: Any, least: float = -np.inf, most: float = np.inf
) -> None:
    """Refuse a concrete value that is not finite or out of bounds; traced ones pass."""
    if isinstance(value, Tracer):
        return
    array = np.asarray(value)
    numeric = np.issubdtype(array.dtype, np.number)
    if not (numeric and np.all(np.isfinite(array) & (array >= least) & (array <= most))):
        bounds = "" if least == -np.inf else f" and at least {least:g}"
        bounds += "" if most == np.inf else f" and at most {most:g}"
        raise ValueError(f"{owner}: expected {name} to be finite{bounds}, got {value!r}.")


def check_positive_definite(owner: Any, matrix: Any) -> None:
    """Refuse a concrete inverse mass matrix that is not positive definite."""
    if isinstance(matrix, Tracer):
        return
    array = np.asarray(matrix)
    if array.ndim < 2:
        check_positive(owner, "inverse_mass_matrix", matrix)
    elif array.ndim == 2 and array.shape[0] == array.shape[1]:
        # At unit diagonal, because parameters may have units as far apart as float32 can hold.
        diagonal = np.diagonal(array)
        valid = bool(np.all(np.isfinite(array)) and np.all(diagonal > 0))
        if valid:
            scale = 1.0 / np.sqrt(diagonal.astype(np.float64))
            unit = scale[:, None] * array * scale
            valid = np.allclose(unit, unit.T, atol=1e-4) and np.linalg.eigvalsh(unit)[0] > 0
        if not valid:
            raise ValueError(
                f"{owner}: expected inverse_mass_matrix to be symmetric and positive definite."
            )


def _parameter(name: str) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)

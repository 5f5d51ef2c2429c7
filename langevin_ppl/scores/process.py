"""What a noise process is: how data turn into noise, from the time ``t_min`` to ``t_max``."""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from langevin_ppl.base import Array, PRNGKey, check_number

__all__ = ["NoiseProcess", "derivative", "namespace"]


def namespace(t: Any) -> Any:
    """``jax.numpy`` for arrays of JAX, and NumPy in double precision for everything else."""
    return jnp if isinstance(t, jax.Array) else np


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseProcess(abc.ABC):
    r"""Forward process of a diffusion, :math:`x_t = \alpha(t) x_0 + \sigma(t) \varepsilon`.

    Time runs from the data to the noise. What is learned or known of a process is its denoiser
    :math:`D(x, t) = E[x_0 \mid x_t = x]`; for a Gaussian process the score is
    :math:`(\alpha D - x) / \sigma^2`. Every schedule with the same ratio :math:`\sigma / \alpha`
    is the same process up to scale, so that solvers work in that ratio.

    Processes are frozen and hashable, and static in compiled programs. Their schedules take Python
    numbers and NumPy arrays, for coefficients in double precision, and traced arrays.

    Parameters
    ----------
    t_min
        Time at which samplers end, where the noise is small.
    t_max
        Time at which they begin, where the marginal law is that of `prior`.

    Attributes
    ----------
    gaussian
        Whether the noise is Gaussian; solvers that add noise need it.
    multiplicative
        Whether data are positive, and the process lives on their logarithm.
    """

    t_min: float
    t_max: float

    gaussian: ClassVar[bool] = True
    multiplicative: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float):
                check_number(f"{type(self).__name__}.{field.name}", value)
        if not self.t_min < self.t_max:
            raise ValueError(
                f"{type(self).__name__}: expected t_min below t_max, got {self.t_min:g} and "
                f"{self.t_max:g}."
            )

    @abc.abstractmethod
    def alpha(self, t: Any) -> Any:
        """Factor of the datum at time ``t``."""

    @abc.abstractmethod
    def sigma(self, t: Any) -> Any:
        """Standard deviation of the noise at time ``t``."""

    @abc.abstractmethod
    def time_at(self, ratio: Any) -> Any:
        """Time at which ``sigma / alpha`` is ``ratio``."""

    def ratio(self, t: Any) -> Any:
        """``sigma / alpha`` at time ``t``, which grows with it."""
        return self.sigma(t) / self.alpha(t)

    def time_within(self, ratio: Any) -> Any:
        """Time of a ratio within the interval, which rounding must not leave."""
        return namespace(ratio).clip(self.time_at(ratio), self.t_min, self.t_max)

    def log_snr(self, t: Any) -> Any:
        """Half the logarithm of the signal-to-noise ratio, ``log(alpha / sigma)``."""
        return -namespace(t).log(self.ratio(t))

    def rates(self, t: Any) -> tuple[Any, Any]:
        """Coefficients ``(f, g^2)`` of the forward equation ``dx = f x dt + g dW`` at time ``t``.

        They follow from the schedule: ``f`` is the derivative of ``log alpha`` and ``g^2`` is
        ``2 sigma^2`` times that of ``log(sigma / alpha)``.
        """
        growth = derivative(lambda s: namespace(s).log(self.alpha(s)), t)
        spread = derivative(lambda s: namespace(s).log(self.ratio(s)), t)
        return growth, 2.0 * self.sigma(t) ** 2 * spread

    def encode(self, x: Any) -> Any:
        """Coordinates in which noise is added: the data, or their logarithm."""
        return x

    def decode(self, x: Any) -> Any:
        """Data of coordinates in which noise is added."""
        return x

    def noise(self, rng_key: PRNGKey, shape: tuple[int, ...], event_ndim: int, dtype: Any) -> Array:
        """Noise of unit standard deviation, whose last ``event_ndim`` axes are one event."""
        del event_ndim
        return jax.random.normal(rng_key, shape, dtype)

    def prior(
        self, rng_key: PRNGKey, shape: tuple[int, ...], *, event_ndim: int | None = None
    ) -> Array:
        """Draw from the law at ``t_max``, where samplers start.

        Parameters
        ----------
        shape
            Shape of the draw.
        event_ndim
            How many of its last axes are one event; all by default.
        """
        event_ndim = len(shape) if event_ndim is None else event_ndim
        noise = self.noise(rng_key, shape, event_ndim, jnp.result_type(float))
        return self.decode(self.sigma(self.t_max) * noise)

    def log_kernel(self, square: Array, size: int, t: Any) -> Array:
        """Log density of noise at a squared distance, up to a constant of the time.

        Parameters
        ----------
        square
            Squared distance from ``alpha`` times the datum.
        size
            How many numbers the datum has.
        """
        del size
        return -0.5 * square / self.sigma(t) ** 2

    def log_prior(self, x: Array) -> Array:
        """Log density of the noise at ``t_max`` for one event, in the coordinates of the noise."""
        sigma = self.sigma(self.t_max)
        return -0.5 * jnp.sum((x / sigma) ** 2) - x.size * (
            math.log(sigma) + 0.5 * math.log(2 * math.pi)
        )

    def perturb(
        self, rng_key: PRNGKey, x: Array, t: Any, *, event_ndim: int | None = None
    ) -> Array:
        """Draw ``x_t`` given the datum.

        Parameters
        ----------
        x
            Data; the last ``event_ndim`` axes are one event, all by default.
        t
            Time, a scalar or one for each datum.

        Raises
        ------
        ValueError
            If a concrete time is outside of the interval of the process.
        """
        self.check_time(t)
        event_ndim = jnp.ndim(x) if event_ndim is None else event_ndim
        x = self.encode(jnp.asarray(x, jnp.result_type(float)))
        t = jnp.asarray(t, x.dtype)
        t = t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
        noise = self.noise(rng_key, x.shape, event_ndim, x.dtype)
        return self.decode(self.alpha(t) * x + self.sigma(t) * noise)

    def check_time(self, t: Any) -> None:
        """Refuse a concrete time outside of the interval of the process."""
        if isinstance(t, Tracer):
            return
        slack = 1e-5 * (self.t_max - self.t_min)  # float32 does not hold the ends exactly
        low, high = float(np.min(t)), float(np.max(t))
        if not (self.t_min - slack <= low and high <= self.t_max + slack):
            raise ValueError(
                f"time: expected values between {self.t_min:g} and {self.t_max:g}, the interval "
                f"of {self}, got {low:g} to {high:g}."
            )

    def check_data(self, x: Any, name: str = "data") -> None:
        """Refuse data that are not finite, or that the process cannot have."""
        if not np.all(np.isfinite(x)):
            raise ValueError(f"{name}: expected finite numbers, got NaN or infinity. Remove them.")


def derivative(schedule: Callable[[Any], Any], t: Any) -> Any:
    """Derivative of a function of numbers, element by element, in the precision of ``t``."""
    if isinstance(t, jax.Array):
        return jax.jvp(schedule, (t,), (jnp.ones_like(t),))[1]
    # On the host by a complex step, which loses no digits: schedules are analytic.
    step = 1e-20
    return np.imag(schedule(np.asarray(t, float) + 1j * step)) / step

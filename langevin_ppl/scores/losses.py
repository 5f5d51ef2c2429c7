"""Losses that a denoiser minimises: regressions on noised data, and what needs no regression.

A loss is a frozen pytree that is called as
``loss(rng_key, denoiser, process, x, condition, scale)``, with a batch of data ``x`` in the
coordinates of the process, and gives the mean over rows of a weight times the squared error of the
denoiser, in the mean over the numbers of an event.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from langevin_ppl.base import Array, PRNGKey, check_counts
from langevin_ppl.scores.process import NoiseProcess
from langevin_ppl.scores.times import TIMES, WEIGHTINGS, draw_times, weights

__all__ = ["Loss", "denoising", "flow_matching", "sliced", "target_informed"]


class Loss(Protocol):
    """What `langevin_ppl.scores.fit` minimises: a pytree, its functions hashable."""

    def __call__(
        self,
        rng_key: PRNGKey,
        denoiser: Callable[[Array, Array, Any], Array],
        process: NoiseProcess,
        x: Array,
        condition: Any,
        scale: Any,
    ) -> Array:
        """Loss of a batch.

        Parameters
        ----------
        denoiser
            ``denoiser(x_t, t, condition)`` of one event.
        x
            Data as `NoiseProcess.encode` gives them, ``[row, *event]``.
        condition
            ``[row, ...]`` or None.
        scale
            Standard deviation of the data.
        """
        ...


@dataclasses.dataclass(frozen=True)
class _Looks:
    """When a loss looks, and how much it counts."""

    weighting: str
    time: str

    def __post_init__(self) -> None:
        for name, value, known in (
            ("weighting", self.weighting, WEIGHTINGS),
            ("time", self.time, TIMES),
        ):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}.")

    def noised(
        self, rng_key: PRNGKey, process: NoiseProcess, x: Array, scale: Any
    ) -> tuple[Array, Array, Array, Array]:
        """Times and weights ``[row]``, noise and noised data of the shape of ``x``."""
        key_time, key_noise = jax.random.split(rng_key)
        t, density = draw_times(self.time, key_time, process, len(x), scale)
        noise = process.noise(key_noise, x.shape, x.ndim - 1, x.dtype)
        alpha, sigma = (_per_row(schedule(t), x) for schedule in (process.alpha, process.sigma))
        weight = weights(self.weighting, process, t, density, scale)
        return t, weight, noise, alpha * x + sigma * noise


def _per_row(values: Array, x: Array) -> Array:
    return values.reshape(values.shape + (1,) * (x.ndim - 1))


def _weighted(weight: Array, squares: Array) -> Array:
    return jnp.mean(weight * jnp.mean(squares, axis=tuple(range(1, squares.ndim))))


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=[], meta_fields=["weighting", "time"]
)
@dataclasses.dataclass(frozen=True)
class _Denoising(_Looks):
    """See `denoising`."""

    def __call__(
        self,
        rng_key: PRNGKey,
        denoiser: Callable[[Array, Array, Any], Array],
        process: NoiseProcess,
        x: Array,
        condition: Any,
        scale: Any,
    ) -> Array:
        t, weight, _, noised = self.noised(rng_key, process, x, scale)
        return _weighted(weight, (jax.vmap(denoiser)(noised, t, condition) - x) ** 2)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[],
    meta_fields=["weighting", "time", "num_slices"],
)
@dataclasses.dataclass(frozen=True)
class _Sliced(_Looks):
    """See `sliced`."""

    num_slices: int

    def check(self, process: NoiseProcess, condition: Any) -> None:
        """Refuse what it is not for."""
        del condition
        _check_gaussian("sliced", process)

    def __call__(
        self,
        rng_key: PRNGKey,
        denoiser: Callable[[Array, Array, Any], Array],
        process: NoiseProcess,
        x: Array,
        condition: Any,
        scale: Any,
    ) -> Array:
        key, key_slices = jax.random.split(rng_key)
        t, weight, _, noised = self.noised(key, process, x, scale)
        slices = jax.random.rademacher(key_slices, (len(x), self.num_slices, *x.shape[1:]), x.dtype)

        def parts(x: Array, t: Array, condition: Any, slices: Array) -> tuple[Array, Array]:
            clean, along = jax.linearize(lambda x: denoiser(x, t, condition), x)
            return clean, jnp.mean(slices * jax.vmap(along)(slices), axis=0)

        clean, divergence = jax.vmap(parts)(noised, t, condition, slices)
        alpha, ratio = (_per_row(schedule(t), x) for schedule in (process.alpha, process.ratio))
        squares = (clean - noised / alpha) ** 2
        return _weighted(weight, squares + ratio**2 * (2.0 * alpha * divergence - 1.0))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["logdensity_fn"],
    meta_fields=["weighting", "time"],
)
@dataclasses.dataclass(frozen=True)
class _TargetInformed(_Looks):
    """See `target_informed`."""

    logdensity_fn: Callable[[Array], Array]

    def check(self, process: NoiseProcess, condition: Any) -> None:
        """Refuse what it is not for."""
        _check_gaussian("target_informed", process)
        if condition is not None:
            raise ValueError(
                "target_informed: expected no condition, because its log density is that of all "
                "the data. Use langevin_ppl.scores.denoising()."
            )

    def __call__(
        self,
        rng_key: PRNGKey,
        denoiser: Callable[[Array, Array, Any], Array],
        process: NoiseProcess,
        x: Array,
        condition: Any,
        scale: Any,
    ) -> Array:
        t, weight, noise, noised = self.noised(rng_key, process, x, scale)
        gradient = jax.vmap(jax.grad(lambda x: self._encoded(process, x)))(x)
        ratio = _per_row(process.ratio(t), x)
        share = scale**2 / (scale**2 + ratio**2)
        goal = x + share * (ratio * noise + ratio**2 * gradient)
        return _weighted(weight, (jax.vmap(denoiser)(noised, t, condition) - goal) ** 2)

    def _encoded(self, process: NoiseProcess, x: Array) -> Array:
        """Log density in the coordinates of the process."""
        data, stretch = jax.jvp(process.decode, (x,), (jnp.ones_like(x),))
        return self.logdensity_fn(data) + jnp.sum(jnp.log(stretch))


def _check_gaussian(name: str, process: NoiseProcess) -> None:
    if not process.gaussian:
        raise ValueError(
            f"{name}: expected a process with Gaussian noise, got {process}. Use "
            "langevin_ppl.scores.denoising(), which is for every process."
        )


def denoising(weighting: str = "edm", time: str = "lognormal") -> Loss:
    r"""Denoising score matching: regression of the datum on the noised datum.

    .. math:: E\, \lambda(t) |D(x_t, t) - x_0|^2, \qquad x_t = \alpha x_0 + \sigma \varepsilon

    in the mean over numbers of an event. With :math:`r = \sigma / \alpha` and the standard
    deviation :math:`s` of the data:

    ================  ====================================================  =====================
    ``weighting``     :math:`\lambda`                                       the same as
    ================  ====================================================  =====================
    ``"edm"``         :math:`1/r^2 + 1/s^2`                                 unit for the network
    ``"simple"``      :math:`1/r^2`                                         unit for the noise
    ``"min_snr"``     :math:`\min(1/r^2, 5/s^2)`                            at most 5 for the datum
    ``"velocity"``    :math:`(\alpha\, d \log r / dt)^2`                    unit for the velocity
    ``"likelihood"``  :math:`1/r^2` over the density of :math:`\log r`      bound on likelihood
    ================  ====================================================  =====================

    The last is in nats for each number of the data, whatever the law of the time.

    Parameters
    ----------
    weighting
        One of the table.
    time
        Law of the time: ``"lognormal"`` (:math:`\log(r / 2 s) \sim N(-1.2, 1.2^2)`, cut to the
        interval of the process, and one time in ten anywhere), ``"uniform"``, ``"logit_normal"``
        (the middle of the interval more often) or ``"log_uniform"`` (uniform in :math:`\log r`,
        which is importance sampling for ``"likelihood"``).

    References
    ----------
    Vincent, *A connection between score matching and denoising autoencoders*, 2011; Karras et al.,
    2022, arXiv:2206.00364 (``edm``); Ho et al., 2020, arXiv:2006.11239 (``simple``); Hang et al.,
    2023, arXiv:2303.09556 (``min_snr``); Song et al., *Maximum likelihood training of score-based
    diffusion models*, 2021, arXiv:2101.09258 (``likelihood``); Esser et al., 2024,
    arXiv:2403.03206 (``logit_normal``).

    Examples
    --------
    >>> import langevin_ppl as lp
    >>> loss = lp.scores.denoising("likelihood", time="log_uniform")
    >>> loss == lp.scores.denoising("likelihood", time="log_uniform")
    True
    """
    return _Denoising(weighting, time)


def flow_matching(time: str = "uniform") -> Loss:
    r"""Flow matching: regression of the velocity :math:`\alpha' x_0 + \sigma' \varepsilon`.

    The velocity of a denoiser is :math:`\alpha' D + \sigma' (x_t - \alpha D) / \sigma`, so that its
    error is :math:`(\alpha' - \sigma' \alpha / \sigma)(D - x_0) = -\alpha \frac{d \log r}{dt}
    (D - x_0)` with :math:`r = \sigma / \alpha`: this is `denoising` with the weight
    ``"velocity"``. For `Interpolant` it is the paper's loss up to a constant, because of the two
    noises only their sum is seen.

    Parameters
    ----------
    time
        Law of the time, as in `denoising`; ``"logit_normal"`` is that of Esser et al.

    References
    ----------
    Lipman et al., *Flow matching for generative modeling*, 2022, arXiv:2210.02747; Liu, Gong, Liu,
    2022, arXiv:2209.03003; Albergo, Boffi, Vanden-Eijnden, 2023, arXiv:2303.08797; Esser et al.,
    2024, arXiv:2403.03206.

    Examples
    --------
    >>> import langevin_ppl as lp
    >>> lp.scores.flow_matching() == lp.scores.denoising("velocity", time="uniform")
    True
    """
    return _Denoising("velocity", time)


def sliced(weighting: str = "simple", time: str = "lognormal", *, num_slices: int = 1) -> Loss:
    r"""Sliced score matching on noised data, with reduced variance: no clean datum is regressed on.

    With the score :math:`s = (\alpha D - x) / \sigma^2` and random signs :math:`v` it is

    .. math:: E\, \lambda_s \bigl(v^T \nabla s\, v + \tfrac12 |s|^2\bigr)

    plus what does not depend on :math:`D`, written so that its mean is that of `denoising` with
    the same weight: :math:`|D - x/\alpha|^2 + 2 r^2 \alpha\, v^T \nabla D\, v - r^2`. Derivatives
    along slices make a step cost about twice as much, and its variance is larger.

    Parameters
    ----------
    weighting, time
        As in `denoising`; ``"simple"`` is the paper's :math:`\lambda_s = \sigma^2`, with which the
        variance is bounded at large noise.
    num_slices
        Directions for each datum.

    References
    ----------
    Song, Garg, Shi, Ermon, *Sliced score matching*, 2019, arXiv:1905.07088 (SSM-VR); Stein, 1981,
    for the form.

    Examples
    --------
    >>> import langevin_ppl as lp
    >>> loss = lp.scores.sliced(num_slices=2)
    """
    check_counts(1, num_slices=num_slices)
    return _Sliced(weighting, time, num_slices)


def target_informed(
    logdensity_fn: Callable[[Array], Array], weighting: str = "edm", time: str = "lognormal"
) -> Loss:
    r"""Denoising with a known log density: target score matching, mixed with the regression.

    The score at time :math:`t` is the mean of :math:`-\varepsilon / \sigma` given :math:`x_t`, and
    of :math:`\nabla \log \pi(x_0) / \alpha` as well, which does not blow up as the noise
    vanishes. The datum in `denoising` is replaced by the mixture
    :math:`x_0 + \kappa (r \varepsilon + r^2 \nabla \log \pi(x_0))` with
    :math:`\kappa = s^2 / (s^2 + r^2)`: it has the same mean given :math:`x_t` and, for Gaussian
    data of standard deviation :math:`s`, no variance.

    Parameters
    ----------
    logdensity_fn
        Log density of one datum up to a constant; of the datum itself, positive for a
        multiplicative process.
    weighting, time
        As in `denoising`.

    References
    ----------
    De Bortoli, Hutchinson, Wirnsberger, Doucet, *Target score matching*, 2024, arXiv:2402.08667.

    Examples
    --------
    >>> import jax.numpy as jnp, langevin_ppl as lp
    >>> loss = lp.scores.target_informed(lambda x: -0.5 * jnp.sum(x**2))
    """
    if not callable(logdensity_fn):
        raise TypeError(
            f"logdensity_fn: expected a function of one datum, got {type(logdensity_fn).__name__}."
        )
    if jax.tree.leaves(logdensity_fn) == [logdensity_fn]:
        logdensity_fn = jax.tree_util.Partial(logdensity_fn)
    return _TargetInformed(weighting, time, logdensity_fn)

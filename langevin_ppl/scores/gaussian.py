"""Gaussian noise processes: the schedules of the literature."""

import dataclasses
import math
from typing import Any

from langevin_ppl.base import check_number
from langevin_ppl.scores.process import NoiseProcess, namespace

__all__ = ["EDM", "VE", "VP", "Interpolant", "RectifiedFlow", "SubVP", "VPCosine"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _LinearRate(NoiseProcess):
    """Schedules whose ``-2 log alpha`` is the integral of a rate that is linear in time."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("beta_min", self.beta_min, above=0.0)
        check_number("beta_max", self.beta_max, above=self.beta_min)

    def integral(self, t: Any) -> Any:
        """Integral of the rate from 0 to ``t``."""
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def time_of(self, integral: Any) -> Any:
        """Time at which the integral of the rate has a value."""
        rise = self.beta_max - self.beta_min
        root = namespace(integral).sqrt(self.beta_min**2 + 2.0 * rise * integral)
        return 2.0 * integral / (self.beta_min + root)

    def alpha(self, t: Any) -> Any:
        """``exp(-integral / 2)``."""
        return namespace(t).exp(-0.5 * self.integral(t))


@dataclasses.dataclass(frozen=True, kw_only=True)
class VP(_LinearRate):
    r"""Variance-preserving process with a linear rate (DDPM).

    :math:`\alpha = \exp(-\tfrac12 \int_0^t \beta)`, :math:`\sigma^2 = 1 - \alpha^2`,
    :math:`\beta(t) = \beta_{min} + t (\beta_{max} - \beta_{min})`.

    Parameters
    ----------
    beta_min, beta_max
        The rate at times 0 and 1.
    t_min, t_max
        Interval of time.

    References
    ----------
    Ho, Jain, Abbeel, *Denoising diffusion probabilistic models*, 2020, arXiv:2006.11239; Song et
    al., *Score-based generative modeling through stochastic differential equations*, 2021,
    arXiv:2011.13456.

    Examples
    --------
    >>> import langevin_ppl as lp
    >>> process = lp.scores.VP()
    >>> bool(abs(process.alpha(0.5) ** 2 + process.sigma(0.5) ** 2 - 1) < 1e-12)
    True
    """

    def sigma(self, t: Any) -> Any:
        """``sqrt(1 - alpha^2)``."""
        xp = namespace(t)
        return xp.sqrt(-xp.expm1(-self.integral(t)))

    def time_at(self, ratio: Any) -> Any:
        """Time at which ``sigma / alpha`` is ``ratio``."""
        return self.time_of(namespace(ratio).log1p(ratio**2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubVP(_LinearRate):
    r"""Sub-variance-preserving process: :math:`\sigma = 1 - \alpha^2`, the square of `VP`'s.

    Parameters
    ----------
    beta_min, beta_max
        The rate at times 0 and 1.
    t_min, t_max
        Interval of time.

    References
    ----------
    Song et al., *Score-based generative modeling through stochastic differential equations*, 2021,
    arXiv:2011.13456.

    Examples
    --------
    >>> import langevin_ppl as lp
    >>> process = lp.scores.SubVP()
    >>> bool(process.sigma(0.5) < lp.scores.VP().sigma(0.5))
    True
    """

    def sigma(self, t: Any) -> Any:
        """``1 - alpha^2``."""
        return -namespace(t).expm1(-self.integral(t))

    def time_at(self, ratio: Any) -> Any:
        """Time at which ``sigma / alpha`` is ``ratio``."""
        # sigma / alpha = 2 sinh(integral / 2)
        return self.time_of(2.0 * namespace(ratio).arcsinh(0.5 * ratio))


@dataclasses.dataclass(frozen=True, kw_only=True)
class VPCosine(NoiseProcess):
    r"""Variance-preserving process with the cosine schedule.

    :math:`\alpha = \cos(\theta) / \cos(\theta_0)` with :math:`\theta = \frac{\pi}{2}
    \frac{t + s}{1 + s}` and :math:`\sigma^2 = 1 - \alpha^2`.

    Parameters
    ----------
    offset
        ``s``, which keeps the noise of the first steps from being too small.
    t_min, t_max
        Interval of time. At 1 nothing is left of the datum and its coefficients are singular.

    References
    ----------
    Nichol, Dhariwal, *Improved denoising diffusion probabilistic models*, 2021, arXiv:2102.09672;
    the end of the interval is that of Lu et al., *DPM-Solver*, 2022, arXiv:2206.00927.

    Examples
    --------
    >>> import langevin_ppl as lp
    >>> process = lp.scores.VPCosine()
    >>> bool(abs(process.alpha(0.5) ** 2 + process.sigma(0.5) ** 2 - 1) < 1e-12)
    True
    """

    offset: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.9946

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("offset", self.offset, above=0.0)
        check_number("t_max", self.t_max, above=0.0, below=1.0)

    @property
    def _first(self) -> float:
        return 0.5 * math.pi * self.offset / (1.0 + self.offset)

    def _turned(self, t: Any) -> Any:
        return 0.5 * math.pi * t / (1.0 + self.offset)

    def alpha(self, t: Any) -> Any:
        """Quotient of cosines."""
        return namespace(t).cos(self._first + self._turned(t)) / math.cos(self._first)

    def sigma(self, t: Any) -> Any:
        """``sqrt(1 - alpha^2)``, without cancellation at small times."""
        xp, turned = namespace(t), self._turned(t)
        product = xp.sin(turned) * xp.sin(turned + 2.0 * self._first)
        return xp.sqrt(product) / math.cos(self._first)

    def time_at(self, ratio: Any) -> Any:
        """Time at which ``sigma / alpha`` is ``ratio``."""
        xp = namespace(ratio)
        cosine = math.cos(self._first) / xp.sqrt(1.0 + ratio**2)
        sine = xp.sqrt(math.sin(self._first) ** 2 + (ratio * cosine) ** 2)
        turned = xp.arctan2(sine, cosine) - self._first
        return turned * 2.0 * (1.0 + self.offset) / math.pi


@dataclasses.dataclass(frozen=True, kw_only=True)
class VE(NoiseProcess):
    r"""Variance-exploding process: :math:`\alpha = 1`, :math:`\sigma` geometric in time.

    Parameters
    ----------
    sigma_min, sigma_max
        Noise at times 0 and 1; the largest should be about the largest distance between data.
    t_min, t_max
        Interval of time.

    References
    ----------
    Song, Ermon, *Generative modeling by estimating gradients of the data distribution*, 2019,
    arXiv:1907.05600; Song et al., 2021, arXiv:2011.13456.

    Examples
    --------
    >>> import langevin_ppl as lp
    >>> round(float(lp.scores.VE(sigma_min=0.01, sigma_max=100.0).sigma(0.5)), 6)
    1.0
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("sigma_min", self.sigma_min, above=0.0)
        check_number("sigma_max", self.sigma_max, above=self.sigma_min)

    @property
    def _log_range(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Any) -> Any:
        """1."""
        return 0.0 * t + 1.0

    def sigma(self, t: Any) -> Any:
        """Geometric between the two ends."""
        return self.sigma_min * namespace(t).exp(self._log_range * t)

    def time_at(self, ratio: Any) -> Any:
        """Time at which ``sigma / alpha`` is ``ratio``."""
        return namespace(ratio).log(ratio / self.sigma_min) / self._log_range


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDM(NoiseProcess):
    r"""Karras' process: :math:`\alpha = 1`, and time is the noise itself, :math:`\sigma = t`.

    Parameters
    ----------
    t_min, t_max
        Least and largest standard deviation of the noise.

    References
    ----------
    Karras et al., *Elucidating the design space of diffusion-based generative models*, 2022,
    arXiv:2206.00364.

    Examples
    --------
    >>> import langevin_ppl as lp
    >>> lp.scores.EDM().sigma(2.0)
    2.0
    """

    t_min: float = 0.002
    t_max: float = 80.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("t_min", self.t_min, above=0.0)

    def alpha(self, t: Any) -> Any:
        """1."""
        return 0.0 * t + 1.0

    def sigma(self, t: Any) -> Any:
        """The time."""
        return t

    def time_at(self, ratio: Any) -> Any:
        """Time at which ``sigma / alpha`` is ``ratio``."""
        return ratio


@dataclasses.dataclass(frozen=True, kw_only=True)
class RectifiedFlow(NoiseProcess):
    r"""Straight paths from data to noise: :math:`x_t = (1 - t) x_0 + t \varepsilon`.

    Papers on flow matching count time the other way round, from noise at 0 to data at 1.

    Parameters
    ----------
    t_min, t_max
        Interval of time. At 1 nothing is left of the datum, and coefficients in the ratio of
        noise to datum are infinite; at the default end a thousandth is left.

    References
    ----------
    Liu, Gong, Liu, *Flow straight and fast*, 2022, arXiv:2209.03003; Lipman et al., *Flow matching
    for generative modeling*, 2022, arXiv:2210.02747.

    Examples
    --------
    >>> import langevin_ppl as lp
    >>> process = lp.scores.RectifiedFlow()
    >>> process.alpha(0.25), process.sigma(0.25)
    (0.75, 0.25)
    """

    t_min: float = 1e-3
    t_max: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("t_min", self.t_min, above=0.0)
        check_number("t_max", self.t_max, above=0.0, below=1.0)

    def alpha(self, t: Any) -> Any:
        """``1 - t``."""
        return 1.0 - t

    def sigma(self, t: Any) -> Any:
        """``t``."""
        return t

    def time_at(self, ratio: Any) -> Any:
        """Time at which ``sigma / alpha`` is ``ratio``."""
        return ratio / (1.0 + ratio)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interpolant(NoiseProcess):
    r"""Stochastic interpolant between data and a standard Gaussian.

    :math:`x_t = (1 - t) x_0 + t x_1 + \gamma(t) z` with Gaussian :math:`x_1` and :math:`z`, which
    together are one Gaussian: :math:`\alpha = 1 - t` and :math:`\sigma^2 = t^2 + \gamma^2`, with
    :math:`\gamma^2 = a\, t (1 - t)`. The velocity :math:`b` and the score of the paper are both
    affine functions of the one denoiser, so that a single network is learned.

    Parameters
    ----------
    latent
        ``a``, the size of the latent noise; 0 is `RectifiedFlow`.
    t_min, t_max
        Interval of time.

    References
    ----------
    Albergo, Boffi, Vanden-Eijnden, *Stochastic interpolants: a unifying framework for flows and
    diffusions*, 2023, arXiv:2303.08797.

    Examples
    --------
    >>> import langevin_ppl as lp
    >>> round(float(lp.scores.Interpolant().sigma(0.5)) ** 2, 6)
    0.5
    """

    latent: float = 1.0
    t_min: float = 1e-3
    t_max: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("t_min", self.t_min, above=0.0)
        check_number("t_max", self.t_max, above=0.0, below=1.0)
        if not self.latent >= 0.0:
            raise ValueError(f"latent: expected a number of at least 0, got {self.latent!r}.")

    def alpha(self, t: Any) -> Any:
        """``1 - t``."""
        return 1.0 - t

    def sigma(self, t: Any) -> Any:
        """Both noises together."""
        return namespace(t).sqrt(t * (t + self.latent * (1.0 - t)))

    def time_at(self, ratio: Any) -> Any:
        """Time at which ``sigma / alpha`` is ``ratio``."""
        square = 2.0 * ratio**2
        root = namespace(ratio).sqrt(self.latent**2 + 2.0 * square)
        return square / (self.latent + square + root)

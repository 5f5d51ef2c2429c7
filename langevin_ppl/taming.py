r"""Tamings: how a drift is bounded so that an explicit scheme survives exploding gradients.

A taming is a function ``taming(gradient, position, step_size) -> drift`` on flat vectors of the
whitened frame. All of them tend to the identity as the step size goes to zero. All but the split
one, and the regularised one of positive strength, keep the sign of every coordinate. They bias
the law of an unadjusted kernel; ``taming_loss`` says how much of the gradient was taken away.

Every norm is computed after division by the largest entry: in float32 the square of an entry
above 1.8e19 is infinite, and ``G / (1 + h |G|)`` would be zero, a chain frozen in silence.
"""

from collections.abc import Callable

import jax.numpy as jnp

from langevin_ppl.base import Array, ArrayLike

__all__ = [
    "Taming",
    "coordinatewise",
    "norm",
    "normwise",
    "polynomial",
    "regularised",
    "split",
    "taming_loss",
    "untamed",
]

type Taming = Callable[[Array, Array, ArrayLike], Array]


def _scale(x: Array) -> Array:
    """Largest absolute entry, kept where it and its reciprocal are normal numbers."""
    limits = jnp.finfo(x.dtype)
    return jnp.clip(jnp.max(jnp.abs(x)), 8 * limits.tiny, limits.max / 8)


def norm(x: Array) -> Array:
    """Euclidean norm of a vector, safe from overflow and underflow of the squares."""
    scale = _scale(x)
    return scale * jnp.sqrt(jnp.sum((x / scale) ** 2))


def untamed(gradient: Array, position: Array, step_size: ArrayLike) -> Array:
    """Return the gradient as it is."""
    return gradient


def normwise(gradient: Array, position: Array, step_size: ArrayLike) -> Array:
    r"""Norm-wise taming of TULA: :math:`G / (1 + h \|G\|)`.

    The tamed drift is shorter than ``1 / h``.

    References
    ----------
    Brosse, Durmus, Moulines, Sabanis, *The tamed unadjusted Langevin algorithm*,
    Stochastic Processes and their Applications 129 (2019), arXiv:1710.05559.
    """
    scale = _scale(gradient)
    scaled = gradient / scale
    return scaled / (1.0 / scale + step_size * jnp.sqrt(jnp.sum(scaled**2)))


def coordinatewise(gradient: Array, position: Array, step_size: ArrayLike) -> Array:
    r"""Coordinate-wise taming of TULAc: :math:`G_i / (1 + h |G_i|)`.

    References
    ----------
    Brosse et al. (2019), arXiv:1710.05559.
    """
    scale = _scale(gradient)
    scaled = gradient / scale
    return scaled / (1.0 / scale + step_size * jnp.abs(scaled))


def _log_norm(x: Array, power: ArrayLike) -> Array:
    """Logarithm of a power of the norm, which itself would overflow long before a quotient."""
    return jnp.multiply(power, jnp.log(jnp.maximum(norm(x), jnp.finfo(x.dtype).tiny)))


def polynomial(power: ArrayLike) -> Taming:
    r"""Polynomial taming of mTULA: :math:`G / \sqrt{1 + h \|x\|^{2 r}}`.

    Parameters
    ----------
    power
        The ``r`` of the paper: the gradient is locally Lipschitz with a constant that grows
        like :math:`\|x\|^r`. 2 for cubic gradients (quartic potentials), 0 for linear ones.

    References
    ----------
    Neufeld, Ng, Zhang, *Non-asymptotic convergence bounds for modified tamed unadjusted
    Langevin algorithm in non-convex setting*, 2022, arXiv:2207.02600.
    """

    def taming(gradient: Array, position: Array, step_size: ArrayLike) -> Array:
        growth = _log_norm(position, 2.0 * power)
        return gradient * jnp.exp(-0.5 * jnp.logaddexp(0.0, jnp.log(step_size) + growth))

    return taming


def regularised(power: ArrayLike, strength: ArrayLike) -> Taming:
    r"""Taming of TUSLA: :math:`(G - \eta x \|x\|^r) / (1 + \sqrt h \|x\|^r)`.

    Parameters
    ----------
    power
        ``r``, the paper's 2r: the gradient's local Lipschitz constant grows like
        :math:`\|x\|^r` at most.
    strength
        ``eta``: of a potential :math:`\eta \|x\|^{r + 2} / (r + 2)` that is added to the
        target's. 0 keeps the target.

    References
    ----------
    Lovas, Lytras, Rasonyi, Sabanis, *Taming neural networks with TUSLA: nonconvex learning via
    adaptive stochastic gradient Langevin algorithms* (2023), arXiv:2006.14514.
    """

    def taming(gradient: Array, position: Array, step_size: ArrayLike) -> Array:
        growth = _log_norm(position, power)
        bound = jnp.logaddexp(0.0, 0.5 * jnp.log(step_size) + growth)
        return gradient * jnp.exp(-bound) - strength * position * jnp.exp(growth - bound)

    return taming


def split(power: ArrayLike, linear: ArrayLike) -> Taming:
    r"""Split taming of sTULA: :math:`-a x + (G + a x) / (1 + \sqrt h \|x\|^r)`.

    Parameters
    ----------
    power
        ``r``, as in `regularised`.
    linear
        ``a``: the linear part of the drift, which is not tamed.

    References
    ----------
    Lytras, Sabanis, *Taming under isoperimetry* (2023), arXiv:2311.09003.
    """
    tame = regularised(power, 0.0)

    def taming(gradient: Array, position: Array, step_size: ArrayLike) -> Array:
        pull = linear * position
        return tame(gradient + pull, position, step_size) - pull

    return taming


def taming_loss(gradient: Array, drift: Array) -> Array:
    r"""Share of the gradient that taming removed, :math:`\|G - T(G)\| / \|G\|`, 0 where G = 0."""
    scale = _scale(gradient)
    whole, lost = norm(gradient / scale), norm((gradient - drift) / scale)
    return jnp.where(whole > 0, lost / jnp.where(whole > 0, whole, 1.0), 0.0)

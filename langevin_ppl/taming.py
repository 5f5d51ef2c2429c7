r"""Tamings: how a drift is bounded so that an explicit scheme survives exploding gradients.

A taming is a function ``taming(gradient, position, step_size) -> drift``. Kernels call it with flat
vectors of the whitened frame, optimisers with pytrees of arrays, which it takes for one long
vector. All but `frictional` tend to the identity as the step size goes to zero, and all but the
split ones, and those with a pull of positive strength, keep the sign of every coordinate. They
bias the law of an unadjusted kernel; ``taming_loss`` says how much of the gradient was taken away.

Every norm is computed after division by the largest entry: in float32 the square of an entry
above 1.8e19 is infinite, and ``G / (1 + h |G|)`` would be zero, a chain frozen in silence.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from langevin_ppl.base import Array, ArrayLike, Position

__all__ = [
    "Taming",
    "coordinatewise",
    "frictional",
    "norm",
    "normwise",
    "polygonal",
    "polynomial",
    "regularised",
    "split",
    "taming_loss",
    "untamed",
]

type Taming = Callable[[Position, Position, ArrayLike], Position]


def _scale(x: Position) -> Array:
    """Largest absolute entry, kept where it and its reciprocal are normal numbers."""
    entries = [jnp.max(jnp.abs(leaf), initial=0.0) for leaf in jax.tree.leaves(x)]
    largest = functools.reduce(jnp.maximum, entries)
    limits = jnp.finfo(largest.dtype)
    return jnp.clip(largest, 8 * limits.tiny, limits.max / 8)


def _scaled(x: Position) -> tuple[Array, Position]:
    """Largest absolute entry, and what is left after division by it."""
    scale = _scale(x)
    return scale, jax.tree.map(lambda leaf: leaf / scale, x)


def _length(x: Position) -> Array:
    """Euclidean norm of what has entries of size one."""
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(x)))


def norm(x: Position) -> Array:
    """Euclidean norm of a vector or pytree, safe from overflow and underflow of the squares.

    Examples
    --------
    >>> import jax.numpy as jnp, langevin_ppl as lp
    >>> float(lp.taming.norm({"a": jnp.array(3e30), "b": jnp.array(4e30)})) > 4.9e30
    True
    """
    scale, scaled = _scaled(x)
    return scale * _length(scaled)


def untamed(gradient: Position, position: Position, step_size: ArrayLike) -> Position:
    """Return the gradient as it is.

    Examples
    --------
    >>> import jax.numpy as jnp, langevin_ppl as lp
    >>> lp.taming.untamed(jnp.ones(2), jnp.zeros(2), 0.1)
    Array([1., 1.], dtype=float32)
    """
    return gradient


def normwise(gradient: Position, position: Position, step_size: ArrayLike) -> Position:
    r"""Norm-wise taming of TULA: :math:`G / (1 + h \|G\|)`.

    The tamed drift is shorter than ``1 / h``.

    References
    ----------
    Brosse, Durmus, Moulines, Sabanis, *The tamed unadjusted Langevin algorithm*,
    Stochastic Processes and their Applications 129 (2019), arXiv:1710.05559.

    Examples
    --------
    >>> import jax.numpy as jnp, langevin_ppl as lp
    >>> lp.taming.normwise(jnp.array([3.0, 4.0]), jnp.zeros(2), 0.2)
    Array([1.5, 2. ], dtype=float32)
    """
    scale, scaled = _scaled(gradient)
    divisor = 1.0 / scale + step_size * _length(scaled)
    return jax.tree.map(lambda leaf: leaf / divisor, scaled)


def coordinatewise(gradient: Position, position: Position, step_size: ArrayLike) -> Position:
    r"""Coordinate-wise taming of TULAc: :math:`G_i / (1 + h |G_i|)`.

    References
    ----------
    Brosse et al. (2019), arXiv:1710.05559.

    Examples
    --------
    >>> import jax.numpy as jnp, langevin_ppl as lp
    >>> lp.taming.coordinatewise(jnp.array([1.0, 4.0]), jnp.zeros(2), 1.0)
    Array([0.5, 0.8], dtype=float32)
    """
    scale, scaled = _scaled(gradient)
    return jax.tree.map(lambda leaf: leaf / (1.0 / scale + step_size * jnp.abs(leaf)), scaled)


def _log_norm(x: Position, power: ArrayLike) -> Array:
    """Logarithm of a power of the norm, which itself would overflow long before a quotient."""
    length = norm(x)
    return jnp.multiply(power, jnp.log(jnp.maximum(length, jnp.finfo(length.dtype).tiny)))


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

    Examples
    --------
    >>> import jax.numpy as jnp, langevin_ppl as lp
    >>> taming = lp.taming.polynomial(power=0.0)
    >>> taming(jnp.ones(2), jnp.array([0.0, 1.0]), 1.0)
    Array([0.70710677, 0.70710677], dtype=float32)
    """

    def taming(gradient: Position, position: Position, step_size: ArrayLike) -> Position:
        growth = _log_norm(position, 2.0 * power)
        factor = jnp.exp(-0.5 * jnp.logaddexp(0.0, jnp.log(step_size) + growth))
        return jax.tree.map(lambda g: g * factor, gradient)

    return taming


def _bound(position: Position, power: ArrayLike, step_size: ArrayLike) -> tuple[Array, Array]:
    r"""Logarithms of :math:`\|x\|^r` and of :math:`1 + \sqrt h \|x\|^r`."""
    growth = _log_norm(position, power)
    return growth, jnp.logaddexp(0.0, 0.5 * jnp.log(step_size) + growth)


def _absent(strength: Any) -> bool:
    """Whether there is no pull, as far as the code knows: a norm less to compute."""
    return isinstance(strength, int | float) and strength == 0


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

    Examples
    --------
    >>> import jax.numpy as jnp, langevin_ppl as lp
    >>> taming = lp.taming.regularised(power=2.0, strength=0.0)
    >>> taming(jnp.ones(2), jnp.array([0.0, 1.0]), 1.0)
    Array([0.5, 0.5], dtype=float32)
    """

    def taming(gradient: Position, position: Position, step_size: ArrayLike) -> Position:
        growth, bound = _bound(position, power, step_size)
        kept = jnp.exp(-bound)
        if _absent(strength):
            return jax.tree.map(lambda g: g * kept, gradient)
        pull = strength * jnp.exp(growth - bound)
        return jax.tree.map(lambda g, x: g * kept - x * pull, gradient, position)

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

    Examples
    --------
    >>> import jax.numpy as jnp, langevin_ppl as lp
    >>> taming = lp.taming.split(power=2.0, linear=0.5)
    >>> taming(jnp.ones(2), jnp.array([0.0, 1.0]), 1.0)
    Array([0.5 , 0.25], dtype=float32)
    """

    def taming(gradient: Position, position: Position, step_size: ArrayLike) -> Position:
        kept = jnp.exp(-_bound(position, power, step_size)[1])
        return _apart(gradient, position, linear, kept)

    return taming


def frictional(power: ArrayLike, linear: ArrayLike, friction: ArrayLike) -> Taming:
    r"""Taming of tSGHMC: :math:`-m x + (G + m x) / \sqrt{1 + \|x\|^{2 r} / \gamma}`.

    It doesn't depend on the step size: smaller steps don't bring the gradient back. Only more
    friction does.

    Parameters
    ----------
    power
        ``r``, the paper's 2r, as in `regularised`.
    linear
        ``m``: the linear part of the drift, which is not tamed.
    friction
        ``gamma`` of the kinetic scheme that the taming belongs to.

    References
    ----------
    Wang, Zhang (2026), arXiv:2607.14862.

    Examples
    --------
    >>> import jax.numpy as jnp, langevin_ppl as lp
    >>> taming = lp.taming.frictional(power=2.0, linear=0.0, friction=1.0)
    >>> taming(jnp.ones(2), jnp.array([0.0, 1.0]), 1.0)
    Array([0.70710677, 0.70710677], dtype=float32)
    """

    def taming(gradient: Position, position: Position, step_size: ArrayLike) -> Position:
        growth = _log_norm(position, 2.0 * power)
        kept = jnp.exp(-0.5 * jnp.logaddexp(0.0, growth - jnp.log(friction)))
        return _apart(gradient, position, linear, kept)

    return taming


def _apart(gradient: Position, position: Position, linear: ArrayLike, kept: Array) -> Position:
    """Keep a share of the gradient but for its linear part, which is kept whole."""
    return jax.tree.map(lambda g, x: (g + linear * x) * kept - linear * x, gradient, position)


def polygonal(
    epsilon: ArrayLike, boosting: bool = True, power: ArrayLike = 0.0, strength: ArrayLike = 0.0
) -> Taming:
    r"""Taming of THEO POULA, each coordinate by itself, with a boost of small ones.

    .. math::

        \frac{G_i}{1 + \sqrt h |G_i|} \left( 1 + \frac{\sqrt h}{\epsilon + |G_i|} \right)
        - \frac{\eta x_i \|x\|^r}{1 + \sqrt h \|x\|^r}.

    A coordinate of the tamed drift is smaller than :math:`1 / \sqrt h + \sqrt h`, the pull aside.
    Small ones grow by up to :math:`1 + \sqrt h / \epsilon`.

    Parameters
    ----------
    epsilon
        Size of a gradient below which the boost no longer grows.
    boosting
        Whether there is one.
    power, strength
        As in `regularised`; here the pull is tamed apart.

    References
    ----------
    Lim, Sabanis, *Polygonal unadjusted Langevin algorithms: creating stable and efficient adaptive
    algorithms for neural networks* (2024), arXiv:2105.13937.

    Examples
    --------
    >>> import jax.numpy as jnp, langevin_ppl as lp
    >>> taming = lp.taming.polygonal(epsilon=0.1, boosting=False)
    >>> taming(jnp.ones(2), jnp.array([0.0, 1.0]), 1.0)
    Array([0.5, 0.5], dtype=float32)
    """

    def taming(gradient: Position, position: Position, step_size: ArrayLike) -> Position:
        root = jnp.sqrt(step_size)
        drift = coordinatewise(gradient, position, root)
        if boosting:
            drift = jax.tree.map(
                lambda d, g: d * (1.0 + root / (epsilon + jnp.abs(g))), drift, gradient
            )
        if _absent(strength):
            return drift
        growth, bound = _bound(position, power, step_size)
        pull = strength * jnp.exp(growth - bound)
        return jax.tree.map(lambda d, x: d - x * pull, drift, position)

    return taming


def taming_loss(gradient: Position, drift: Position) -> Array:
    r"""Share of the gradient that taming removed, :math:`\|G - T(G)\| / \|G\|`, 0 where G = 0.

    Examples
    --------
    >>> import jax.numpy as jnp, langevin_ppl as lp
    >>> lp.taming.taming_loss(jnp.array([4.0]), jnp.array([1.0]))
    Array(0.75, dtype=float32)
    """
    scale, scaled = _scaled(gradient)
    removed = jax.tree.map(lambda g, d: (g - d) / scale, gradient, drift)
    whole, lost = norm(scaled), norm(removed)
    return jnp.where(whole > 0, lost / jnp.where(whole > 0, whole, 1.0), 0.0)

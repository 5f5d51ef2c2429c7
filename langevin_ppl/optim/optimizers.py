r"""Langevin and tamed optimisers, each a chain of blocks.

All of them minimise a loss :math:`f` whose gradient they are given, and discretise a diffusion of
the law :math:`e^{-\beta f}`, which at a large inverse temperature :math:`\beta` sits at the global
minima of the loss.
"""

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from langevin_ppl.base import ArrayLike, AssumptionWarning, check_counts, check_number
from langevin_ppl.optim.blocks import (
    NoiseState,
    Number,
    add_langevin_noise,
    add_normals,
    as_key,
    at,
    check_inverse_temperature,
    check_positive,
    check_rate,
    is_known,
    noiseless,
    tame,
)
from langevin_ppl.taming import Taming, frictional, polygonal, regularised

__all__ = [
    "LangevinOptimizer",
    "Scheme",
    "annealed_langevin",
    "etheopoula",
    "sghmc",
    "sgld",
    "theopoula",
    "tsghmc",
    "tusla",
]


class Scheme(NamedTuple):
    """What bounds on the step of an optimiser depend on.

    Attributes
    ----------
    name
        Of the function that made it.
    learning_rate
        A number or a schedule.
    taming
        "none", by "position" or by "gradient".
    power, strength
        Those of a taming by position, and of the pull; NaN for a penalty of another form.
    kinetic
        Whether there is a momentum, and the learning rate is a time.
    epsilon
        Where the boost of small gradients ends; infinite without one.
    """

    name: str
    learning_rate: Number
    taming: str = "none"
    power: Any = 0.0
    strength: Any = 0.0
    kinetic: bool = False
    epsilon: Any = math.inf


class Recipe(NamedTuple):
    """How an optimiser was made, but for its key; hashable where its settings are.

    Attributes
    ----------
    make
        The function that made it.
    learning_rate
        A number or a schedule.
    settings
        The other arguments, by name.
    """

    make: Any
    learning_rate: Number
    settings: tuple[tuple[str, Any], ...]

    def __call__(self, learning_rate: Any) -> optax.GradientTransformation:
        """Make it anew, at a learning rate that may be traced."""
        return self.make(learning_rate, 0, **dict(self.settings))


class LangevinOptimizer(optax.GradientTransformationExtraArgs):
    """A transformation of Optax that knows its scheme.

    Attributes
    ----------
    scheme
        What bounds on its step depend on.
    recipe
        How it was made; None where that cannot be compared with other recipes.
    """

    scheme: Scheme
    recipe: Recipe | None


def _recalled[**P](make: Callable[P, LangevinOptimizer]) -> Callable[P, LangevinOptimizer]:
    """Let an optimiser know its recipe, so that equal ones share a compiled program."""
    signature = inspect.signature(make)

    @functools.wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> LangevinOptimizer:
        optimizer = make(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        settings = {name: bound.arguments[name] for name in bound.arguments if name != "key"}
        rate = settings.pop("learning_rate")
        recipe = Recipe(made, rate, tuple(sorted(settings.items())))
        hashable = all(isinstance(value, Hashable) for value in settings.values())
        optimizer.recipe = recipe if hashable else None
        return optimizer

    return made


def _named(scheme: Scheme, *links: optax.GradientTransformation) -> LangevinOptimizer:
    optimizer = LangevinOptimizer(*optax.chain(*links))
    optimizer.scheme = scheme
    return optimizer


def strongest_step(strength: float) -> float:
    r"""Largest step of a scheme with a pull, :math:`\min(1, 1 / (4 \eta^2))`.

    Far out the pull multiplies a position by :math:`1 - \sqrt h \eta`, which the bound keeps above
    one half; beyond :math:`4 / \eta^2` the scheme leaves every ball.
    """
    return min(1.0, 0.25 / strength**2) if strength > 0 else 1.0


def _check_power(power: Any) -> None:
    if is_known(power):
        check_number("power", power, least=0.0)


def _check_pull(name: str, learning_rate: Number, power: Any, strength: Any) -> None:
    _check_power(power)
    if not is_known(strength):
        return
    check_number("strength", strength, least=0.0)
    limit = strongest_step(strength)
    if is_known(learning_rate) and learning_rate > limit:  # pyright: ignore[reportOperatorIssue]
        warnings.warn(
            f"{name}: the learning rate {learning_rate:g} is above {limit:g}, to which the bounds "
            f"are stated for strength {strength:g}: min(1, 1 / (4 strength^2)) (Lovas et al., "
            "arXiv:2006.14514). Take a lower one, or less strength.",
            AssumptionWarning,
            stacklevel=4,
        )


@_recalled
def sgld(
    learning_rate: Number, key: Any, *, inverse_temperature: Number = 1e10
) -> LangevinOptimizer:
    r"""Stochastic gradient Langevin dynamics, as an optimiser.

    .. math:: \theta' = \theta - h \nabla f(\theta) + \sqrt{2 h / \beta} \, \xi.

    Parameters
    ----------
    learning_rate
        ``h``, a number or a schedule of Optax. Where the gradient has the Lipschitz constant ``L``
        it must be below ``2 / L``.
    key
        Key of the noise, or a seed; kept in the state.
    inverse_temperature
        ``beta``, a number or a schedule, for example of `annealed_langevin`; ``math.inf`` for
        plain gradient descent. Accuracy of networks was seen to suffer below 1e8.

    Returns
    -------
    LangevinOptimizer
        A transformation of Optax: it can be chained, masked, scheduled and injected.

    Raises
    ------
    ValueError
        If a number is not positive.

    References
    ----------
    Welling, Teh, *Bayesian learning via stochastic gradient Langevin dynamics* (2011); Zhang,
    Akyildiz, Damoulas, Sabanis, *Nonasymptotic estimates for stochastic gradient Langevin dynamics
    under local conditions in nonconvex optimization* (2023), arXiv:1910.02008.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp, optax
    >>> optimizer = lp.optim.sgld(0.1, key=0)
    >>> params = jnp.array([1.0, -2.0])
    >>> state = optimizer.init(params)
    >>> updates, state = optimizer.update(params, state, params)
    >>> optax.apply_updates(params, updates).round(2)
    Array([ 0.9, -1.8], dtype=float32)
    """
    return _named(
        Scheme("sgld", learning_rate),
        optax.scale_by_learning_rate(learning_rate),
        add_langevin_noise(learning_rate, key, inverse_temperature),
    )


def _tamed(
    scheme: Scheme, taming: Taming, key: Any, inverse_temperature: Number
) -> LangevinOptimizer:
    return _named(
        scheme,
        tame(taming, scheme.learning_rate),
        optax.scale_by_learning_rate(scheme.learning_rate),
        add_langevin_noise(scheme.learning_rate, key, inverse_temperature),
    )


@_recalled
def tusla(
    learning_rate: Number,
    key: Any,
    *,
    inverse_temperature: Number = 1e10,
    power: ArrayLike = 2.0,
    strength: ArrayLike = 0.0,
) -> LangevinOptimizer:
    r"""Tamed unadjusted stochastic Langevin algorithm, as an optimiser.

    .. math::

        \theta' = \theta - h \frac{\nabla f(\theta) + \eta \theta \|\theta\|^r}
        {1 + \sqrt h \|\theta\|^r} + \sqrt{2 h / \beta} \, \xi,

    with the norm of all parameters together. It comes back from where gradients are huge in a few
    steps, and has no memory of them, if they are :math:`c \|\theta\|^{r + 1}` there with
    :math:`\sqrt h (c + \eta) < 2`: a far step multiplies the parameters by
    :math:`1 - \sqrt h (c + \eta)`. `langevin_ppl.optim.growth` measures ``c``.

    Parameters
    ----------
    learning_rate
        ``h``, a number or a schedule; 0.5 in the papers' networks, and below
        :math:`4 / (c + \eta)^2`.
    key
        Key of the noise, or a seed; kept in the state.
    inverse_temperature
        ``beta``, a number or a schedule; ``math.inf`` for no noise.
    power
        ``r``, the papers' 2r: gradients grow like :math:`\|\theta\|^{r + 1}` at most.
        `langevin_ppl.optim.growth` measures it. With more, gradients are tamed where they need
        not be; the papers' networks do best with 1.
    strength
        ``eta``, of the penalty :math:`\eta \|\theta\|^{r + 2} / (r + 2)`. The theory needs it
        above 0 where the loss itself does not pull back from far away; it moves the minimum.

    Returns
    -------
    LangevinOptimizer
        A transformation of Optax, whose ``update`` needs ``params``.

    Raises
    ------
    ValueError
        If a number is not positive; from ``update``, without ``params``.

    Warns
    -----
    AssumptionWarning
        If the learning rate is above :math:`\min(1, 1 / (4 \eta^2))`.

    References
    ----------
    Lovas, Lytras, Rasonyi, Sabanis, *Taming neural networks with TUSLA: nonconvex learning via
    adaptive stochastic gradient Langevin algorithms* (2023), arXiv:2006.14514; Lim, Neufeld,
    Sabanis, Zhang, *Non-asymptotic estimates for TUSLA algorithm for non-convex learning with
    applications to neural networks with ReLU activation function* (2024), arXiv:2107.08649.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp, optax
    >>> loss = lambda x: x**2 + x**30
    >>> optimizer = lp.optim.tusla(1e-3, key=0, power=28)
    >>> x = jnp.array(4.0)
    >>> updates, _ = optimizer.update(jax.grad(loss)(x), optimizer.init(x), x)
    >>> print(f"{optax.apply_updates(x, updates):.4f}")
    0.2053
    """
    _check_pull("tusla", learning_rate, power, strength)
    scheme = Scheme("tusla", learning_rate, "position", power, strength)
    return _tamed(scheme, regularised(power, strength), key, inverse_temperature)


@_recalled
def theopoula(
    learning_rate: Number,
    key: Any,
    *,
    inverse_temperature: Number = 1e14,
    epsilon: ArrayLike = 0.1,
    boosting: bool = True,
    power: ArrayLike = 0.0,
    strength: ArrayLike = 0.0,
) -> LangevinOptimizer:
    r"""THEO POULA: every coordinate tamed by its own gradient, and small ones boosted.

    .. math::

        \theta_i' = \theta_i - h \left[ \frac{G_i}{1 + \sqrt h |G_i|}
        \left( 1 + \frac{\sqrt h}{\epsilon + |G_i|} \right)
        + \frac{\eta \theta_i \|\theta\|^r}{1 + \sqrt h \|\theta\|^r} \right]
        + \sqrt{2 h / \beta} \, \xi_i, \qquad G = \nabla f(\theta).

    Parameters
    ----------
    learning_rate
        ``h``, a number or a schedule.
    key
        Key of the noise, or a seed; kept in the state.
    inverse_temperature
        ``beta``, a number or a schedule; ``math.inf`` for no noise.
    epsilon
        Gradients below it are boosted by up to :math:`1 + \sqrt h / \epsilon`.
    boosting
        False leaves the boost out.
    power, strength
        Of the penalty, as in `tusla`.

    Returns
    -------
    LangevinOptimizer
        A transformation of Optax, whose ``update`` needs ``params``.

    Raises
    ------
    ValueError
        If a number is not positive; from ``update``, without ``params``.

    Warns
    -----
    AssumptionWarning
        As `tusla`.

    Notes
    -----
    The defaults of ``inverse_temperature`` and ``epsilon``, with a learning rate of 0.1, are those
    of the authors' image classifiers.

    Small gradients are multiplied by :math:`1 + \sqrt h / \epsilon`, so that near a minimum of
    curvature ``L`` the steps are stable for :math:`h (1 + \sqrt h / \epsilon) < 2 / L`.

    A taming by the gradient does not commute with the mean over batches: rare large gradients are
    shrunk more than common small ones. Where the noise of the gradient is skewed, as that of a
    quantile from single draws is, the optimiser settles elsewhere, by an order of
    :math:`\sqrt h`; take larger batches or smaller steps, or `tusla`, which has no such bias.

    References
    ----------
    Lim, Sabanis, *Polygonal unadjusted Langevin algorithms: creating stable and efficient adaptive
    algorithms for neural networks* (2024), arXiv:2105.13937.

    Examples
    --------
    >>> import jax.numpy as jnp, langevin_ppl as lp
    >>> optimizer = lp.optim.theopoula(0.01, key=0)
    >>> params = jnp.zeros(2)
    >>> updates, _ = optimizer.update(jnp.array([1e9, 1e-3]), optimizer.init(params), params)
    >>> -updates[0] < 0.11, -updates[1] > 1.9e-5
    (Array(True, dtype=bool), Array(True, dtype=bool))
    """
    _check_pull("theopoula", learning_rate, power, strength)
    check_positive("epsilon", epsilon)
    boost = epsilon if boosting else math.inf
    scheme = Scheme("theopoula", learning_rate, "gradient", power, strength, epsilon=boost)
    taming = polygonal(epsilon, boosting, power, strength)
    return _tamed(scheme, taming, key, inverse_temperature)


@_recalled
def etheopoula(
    learning_rate: Number,
    key: Any,
    *,
    inverse_temperature: Number = 1e12,
    epsilon: ArrayLike = 1e-2,
    power: ArrayLike = 0.0,
    penalty: Callable[[Any], Any] | None = None,
) -> LangevinOptimizer:
    r"""e-THEO POULA, for gradients that jump: two parts, each tamed in its own way.

    .. math::

        \theta_i' = \theta_i - h \left[ \frac{G_i}{1 + \sqrt h |G_i|}
        \left( 1 + \frac{\sqrt h}{\epsilon + |G_i|} \right)
        + \frac{F_i}{1 + \sqrt h \|\theta\|^r} \right] + \sqrt{2 h / \beta} \, \xi_i.

    The gradient ``G`` that it is given may be discontinuous (a quantile, CVaR, networks with
    ReLU) and grow little; ``F`` is the gradient of a smooth penalty that it computes by itself and
    that may grow like :math:`\|\theta\|^{r + 1}`. Leave the penalty out of the loss. Quantiles need
    batches or small steps: see the notes of `theopoula`.

    Parameters
    ----------
    learning_rate
        ``h``, a number or a schedule; 0.01 to 0.1 in the paper.
    key
        Key of the noise, or a seed; kept in the state.
    inverse_temperature
        ``beta``, a number or a schedule; ``math.inf`` for no noise.
    epsilon
        As in `theopoula`; 1e-2 to 1e-12 in the paper.
    power
        ``r``, the paper's 2r.
    penalty
        ``penalty(params) -> scalar``, of gradient ``F``; none by default. With
        :math:`\eta \|\theta\|^{r + 2} / (r + 2)` this is `theopoula`.

    Returns
    -------
    LangevinOptimizer
        A transformation of Optax, whose ``update`` needs ``params``.

    Raises
    ------
    ValueError
        If a number is not positive; from ``update``, without ``params``.
    TypeError
        If ``penalty`` is not callable.

    References
    ----------
    Lim, Neufeld, Sabanis, Zhang, *Langevin dynamics based algorithm e-THEO POULA for stochastic
    optimization problems with discontinuous stochastic gradient* (2024), arXiv:2210.13193.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> penalty = lambda x: 0.5e-3 * jnp.sum(x**2)
    >>> optimizer = lp.optim.etheopoula(0.01, key=0, penalty=penalty)
    >>> params = jnp.ones(2)
    >>> updates, _ = optimizer.update(jnp.sign(params), optimizer.init(params), params)
    >>> updates.shape
    (2,)
    """
    _check_pull("etheopoula", learning_rate, power, 0.0)
    check_positive("epsilon", epsilon)
    if penalty is not None and not callable(penalty):
        raise TypeError(
            "penalty: expected a function of the parameters, for example lambda params: "
            f"1e-3 * optax.tree.norm(params) ** 2, got {type(penalty).__name__}."
        )
    by_gradient, by_position = polygonal(epsilon), regularised(power, 0.0)

    def taming(gradient: Any, position: Any, step_size: ArrayLike) -> Any:
        drift = by_gradient(gradient, position, step_size)
        if penalty is None:
            return drift
        pull = by_position(jax.grad(penalty)(position), position, step_size)
        return jax.tree.map(jnp.subtract, drift, pull)

    strength = 0.0 if penalty is None else math.nan
    scheme = Scheme("etheopoula", learning_rate, "gradient", power, strength, epsilon=epsilon)
    return _tamed(scheme, taming, key, inverse_temperature)


@_recalled
def sghmc(
    learning_rate: Number,
    key: Any,
    *,
    friction: ArrayLike = 1.0,
    inverse_temperature: Number = 1e10,
) -> LangevinOptimizer:
    r"""Stochastic gradient Hamiltonian Monte Carlo: Langevin dynamics with a momentum.

    .. math::

        v' = (1 - \gamma h) v - h \nabla f(\theta) + \sqrt{2 \gamma h / \beta} \, \xi, \qquad
        \theta' = \theta + h v'.

    The position moves by the new momentum, as in Chen et al. (2014) and in the kernel
    `langevin_ppl.sghmc`; with the old one, as the nonasymptotic analysis has it, small frictions
    are unstable.

    Parameters
    ----------
    learning_rate
        ``h``, a time: :math:`h^2` is what compares to the learning rate of `sgld`, and
        :math:`1 - \gamma h` to a decay of momentum. Where the gradient has the Lipschitz constant
        ``L`` it must be below :math:`2 / \sqrt L`.
    key
        Key of the noise, or a seed; kept in the state.
    friction
        ``gamma``.
    inverse_temperature
        ``beta``, a number or a schedule; ``math.inf`` for gradient descent with momentum.

    Returns
    -------
    LangevinOptimizer
        A transformation of Optax.

    Raises
    ------
    ValueError
        If a number is not positive.

    References
    ----------
    Chen, Fox, Guestrin, *Stochastic gradient Hamiltonian Monte Carlo* (2014), arXiv:1402.4102;
    Akyildiz, Sabanis, *Nonasymptotic analysis of stochastic gradient Hamiltonian Monte Carlo under
    local conditions for nonconvex optimization* (2024), arXiv:2002.05465.

    Examples
    --------
    >>> import jax.numpy as jnp, langevin_ppl as lp
    >>> optimizer = lp.optim.sghmc(0.1, key=0, friction=2.0)
    >>> params = jnp.ones(2)
    >>> updates, state = optimizer.update(params, optimizer.init(params), params)
    >>> updates.round(3)
    Array([-0.01, -0.01], dtype=float32)
    """
    scheme = Scheme("sghmc", learning_rate, kinetic=True)
    return _named(scheme, _with_momentum(learning_rate, key, friction, inverse_temperature))


class MomentumState(NamedTuple):
    """Momentum, with the structure of the parameters, and what its noise is drawn from."""

    momentum: Any
    noise: NoiseState


def _with_momentum(
    learning_rate: Number, key: Any, friction: ArrayLike, inverse_temperature: Number
) -> optax.GradientTransformation:
    check_rate(learning_rate)
    check_positive("friction", friction)
    check_inverse_temperature(inverse_temperature)
    key = as_key(key)

    def init(params: Any) -> MomentumState:
        still = jax.tree.map(jnp.zeros_like, params)
        return MomentumState(still, NoiseState(jnp.zeros((), jnp.int32), key))

    def update(updates: Any, state: MomentumState, params: Any = None) -> tuple[Any, MomentumState]:
        del params
        momentum, (step, key) = state
        h = at(learning_rate, step)
        kept = 1.0 - friction * h

        def kicked(v: Any, g: Any) -> Any:
            return (kept * v - h * g).astype(v.dtype)

        momentum = jax.tree.map(kicked, momentum, updates)
        if not noiseless(inverse_temperature):
            scale = jnp.sqrt(2.0 * friction * h / at(inverse_temperature, step))
            momentum = add_normals(momentum, jax.random.fold_in(key, step), scale)
        moved = jax.tree.map(lambda v: (h * v).astype(v.dtype), momentum)
        return moved, MomentumState(
            momentum, NoiseState(jnp.asarray(optax.safe_increment(step)), key)
        )

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


@_recalled
def tsghmc(
    learning_rate: Number,
    key: Any,
    *,
    friction: ArrayLike = 1.0,
    inverse_temperature: Number = 1e10,
    power: ArrayLike = 2.0,
    linear: ArrayLike = 0.0,
) -> LangevinOptimizer:
    r"""Tamed stochastic gradient Hamiltonian Monte Carlo.

    .. math::

        v' &= (1 - \gamma h) v - h \left[ m \theta + \frac{\nabla f(\theta) - m \theta}
        {\sqrt{1 + \|\theta\|^{2 r} / \gamma}} \right] + \sqrt{2 \gamma h / \beta} \, \xi, \\
        \theta' &= \theta + h v'.

    The taming keeps zeros of the gradient where ``m`` is 0, but does not fade as the step size
    goes to zero: it fades with more friction.

    Parameters
    ----------
    learning_rate, key, friction, inverse_temperature
        As in `sghmc`.
    power
        ``r``, the paper's 2r: gradients grow like :math:`\|\theta\|^{r + 1}` at most.
    linear
        ``m``, of the linear part of the gradient, which is not tamed; in the paper the constant
        of strong convexity.

    Returns
    -------
    LangevinOptimizer
        A transformation of Optax, whose ``update`` needs ``params``.

    Raises
    ------
    ValueError
        If a number is not positive; from ``update``, without ``params``.

    References
    ----------
    Wang, Zhang (2026), arXiv:2607.14862.

    Examples
    --------
    >>> import jax.numpy as jnp, langevin_ppl as lp
    >>> optimizer = lp.optim.tsghmc(0.1, key=0, friction=2.0)
    >>> params = jnp.full(2, 1e3)
    >>> updates, state = optimizer.update(params**3, optimizer.init(params), params)
    >>> jnp.all(jnp.isfinite(updates))
    Array(True, dtype=bool)
    """
    _check_power(power)
    if is_known(linear):
        check_number("linear", linear, least=0.0)
    check_positive("friction", friction)
    return _named(
        Scheme("tsghmc", learning_rate, "position", power, kinetic=True),
        tame(frictional(power, linear, friction), learning_rate),
        _with_momentum(learning_rate, key, friction, inverse_temperature),
    )


@_recalled
def annealed_langevin(
    learning_rate: Number,
    key: Any,
    num_steps: int,
    *,
    start: float = 1.0,
    end: float = 1e10,
    taming: Taming | None = None,
) -> LangevinOptimizer:
    r"""Langevin dynamics whose inverse temperature grows geometrically: simulated annealing.

    Step ``k`` is made at :math:`\beta_0 (\beta_1 / \beta_0)^{k / n}`, and later ones at
    :math:`\beta_1`. The logarithmic schedules that the theory of annealing asks for are too slow
    to be used; this one promises nothing.

    Parameters
    ----------
    learning_rate
        A number or a schedule. One that falls with the temperature finds lower minima: hot steps
        may be long, cold ones must be below ``2 / L``.
    key
        Key of the noise, or a seed.
    num_steps
        ``n``.
    start, end
        Inverse temperatures, in units of one over those of the loss. The first should let it rise
        by as much as barriers are high: one over the spread of the loss at random points will do.
    taming
        One of ``langevin_ppl.taming``, where gradients explode; none by default.

    Returns
    -------
    LangevinOptimizer
        A transformation of Optax; with a taming, its ``update`` needs ``params``.

    Raises
    ------
    ValueError
        If a number is not positive, or ``end`` is below ``start``.

    References
    ----------
    Gelfand, Mitter, *Recursive stochastic algorithms for global optimization in R^d* (1991);
    Chiang, Hwang, Sheu, *Diffusion for global optimization in R^n* (1987).

    Examples
    --------
    >>> import jax, jax.numpy as jnp, langevin_ppl as lp
    >>> rastrigin = lambda x: 10 * x.size + jnp.sum(x**2 - 10 * jnp.cos(2 * jnp.pi * x))
    >>> method = lp.optim.annealed_langevin(2e-3, 0, 2000, start=0.1, end=100.0)
    >>> found = lp.optim.minimize(
    ...     jax.random.key(0), rastrigin, jnp.full(2, 3.0), method, num_steps=2000, num_particles=16
    ... )
    >>> found.x.round(2) + 0.0
    Array([0., 0.], dtype=float32)
    """
    check_counts(1, num_steps=num_steps)
    check_number("start", start, above=0.0)
    check_number("end", end, above=0.0)
    if end < start:
        raise ValueError(
            f"annealed_langevin: expected an inverse temperature that grows, got start={start:g} "
            f"and end={end:g}."
        )
    ratio = math.log(end / start) / num_steps

    def schedule(count: Any) -> Any:
        return start * jnp.exp(ratio * jnp.minimum(count, num_steps))

    scheme = Scheme("annealed_langevin", learning_rate, "none" if taming is None else "unknown")
    if taming is None:
        plain = sgld(learning_rate, key, inverse_temperature=schedule)
        plain.scheme = scheme
        return plain
    return _tamed(scheme, taming, key, schedule)

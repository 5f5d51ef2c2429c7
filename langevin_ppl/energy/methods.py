"""How the model's own term of the gradient is found: by walkers, each method with its bias."""

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from langevin_ppl.base import Array, Position, PRNGKey, check_counts
from langevin_ppl.energy.walkers import Chains, has_gaussian_steps
from langevin_ppl.energy.weights import effective_share, log_mean_exp, resampled

__all__ = [
    "Phase",
    "Sampling",
    "contrastive_divergence",
    "jarzynski",
    "persistent",
    "replay",
]


class Phase(NamedTuple):
    """Walkers of one update.

    Attributes
    ----------
    positions
        Unconstrained, leading axis ``walker``.
    log_weights
        Of the walkers, ``[walker]``; None where they count alike.
    rows
        Their conditions, or None.
    report
        Scalars to put out.
    """

    positions: Position
    log_weights: Array | None
    rows: Any
    report: dict[str, Array]


class Start(NamedTuple):
    """Where walkers begin.

    Attributes
    ----------
    positions
        Unconstrained, leading axis ``walker``.
    rows
        Their conditions, or None.
    log_weights, log_normalizer, variance
        Weights, ``log Z`` before them, and its variance.
    """

    positions: Position
    rows: Any
    log_weights: Array
    log_normalizer: Array
    variance: Array


class Sampling(Protocol):
    """A method with walkers; hashable, because it is static in compiled programs."""

    name: str
    bias: str

    def num_walkers(self, batch_size: int) -> int:
        """How many walkers there are to begin with; 0 where each update begins anew."""
        ...

    def begin(self, chains: Chains, values: Any, start: Start | None) -> Any:
        """What is carried from update to update."""
        ...

    def advance(
        self, rng_key: PRNGKey, chains: Chains, values: Any, memory: Any, batch: Any
    ) -> tuple[Phase, Any]:
        """Walkers for an update at these parameters."""
        ...


@dataclasses.dataclass(frozen=True)
class _ContrastiveDivergence:
    num_steps: int
    name = "contrastive_divergence"
    bias = "walkers begin at the data in every update: the gradient is biased"

    def num_walkers(self, batch_size: int) -> int:
        return 0

    def begin(self, chains: Chains, values: Any, start: Start | None) -> Any:
        return ()

    def advance(
        self, rng_key: PRNGKey, chains: Chains, values: Any, memory: Any, batch: Any
    ) -> tuple[Phase, Any]:
        positions, rows = batch
        states = chains.init(values, positions, rows)
        states, _, rates = chains.move(rng_key, values, states, self.num_steps, rows)
        return Phase(states.position, None, rows, _rates(chains, rates)), ()


def contrastive_divergence(num_steps: int = 1) -> Sampling:
    r"""Contrastive divergence, CD-k: walkers begin at the batch in every update.

    Biased: what is far from the data is never seen, and keeps whatever energy it has. The bias
    shrinks with the number of steps, slowly where the kernel mixes slowly, and is not seen in the
    energy gap.

    Parameters
    ----------
    num_steps
        Steps of the kernel, ``k``.

    Raises
    ------
    ValueError
        If ``num_steps`` is less than 1.

    References
    ----------
    Hinton, *Training products of experts by minimizing contrastive divergence* (2002).

    Examples
    --------
    >>> import langevin_ppl as lp
    >>> lp.energy.contrastive_divergence(num_steps=5).name
    'contrastive_divergence'
    """
    check_counts(1, num_steps=num_steps)
    return _ContrastiveDivergence(num_steps)


class _Walking(NamedTuple):
    """States of the kernel and conditions, leading axis ``walker``."""

    states: Any
    rows: Any


@dataclasses.dataclass(frozen=True)
class _Persistent:
    num_steps: int
    walkers: int | None
    name = "persistent"
    bias = "walkers lag behind the parameters, and may not cross between modes"

    def num_walkers(self, batch_size: int) -> int:
        return batch_size if self.walkers is None else self.walkers

    def begin(self, chains: Chains, values: Any, start: Start | None) -> Any:
        assert start is not None
        return _Walking(chains.init(values, start.positions, start.rows), start.rows)

    def advance(
        self, rng_key: PRNGKey, chains: Chains, values: Any, memory: _Walking, batch: Any
    ) -> tuple[Phase, Any]:
        states, rows = memory
        if not has_gaussian_steps(chains.kernel):
            states = chains.reevaluate(values, states, rows)
        states, _, rates = chains.move(rng_key, values, states, self.num_steps, rows)
        phase = Phase(states.position, None, rows, _rates(chains, rates))
        return phase, _Walking(states, rows)


def persistent(num_steps: int = 1, num_walkers: int | None = None) -> Sampling:
    r"""Persistent contrastive divergence, PCD: walkers go on from update to update.

    Also called stochastic maximum likelihood. Biased: the law of the walkers lags behind that of
    the parameters, and where they do not cross between modes the weights of the modes are those
    that they began with. A kernel without a Metropolis test adds its own bias.

    Parameters
    ----------
    num_steps
        Steps of the kernel in an update.
    num_walkers
        As many as the rows of a batch by default.

    Raises
    ------
    ValueError
        For numbers below 1.

    References
    ----------
    Younes, *On the convergence of Markovian stochastic algorithms with rapidly decreasing
    ergodicity rates* (1999); Tieleman, *Training restricted Boltzmann machines using
    approximations to the likelihood gradient* (2008).

    Examples
    --------
    >>> import langevin_ppl as lp
    >>> lp.energy.persistent(num_steps=2).name
    'persistent'
    """
    check_counts(1, num_steps=num_steps)
    if num_walkers is not None:
        check_counts(1, num_walkers=num_walkers)
    return _Persistent(num_steps, num_walkers)


class _Buffer(NamedTuple):
    """Positions and conditions to begin from, and fresh ones to begin anew from."""

    positions: Position
    rows: Any
    fresh: Position


@dataclasses.dataclass(frozen=True)
class _Replay:
    num_steps: int
    buffer_size: int
    reinitialize: float
    name = "replay"
    bias = "walkers begin at old ones and at noise, and do not reach the law of the model"

    def num_walkers(self, batch_size: int) -> int:
        return self.buffer_size

    def begin(self, chains: Chains, values: Any, start: Start | None) -> Any:
        assert start is not None
        return _Buffer(start.positions, start.rows, start.positions)

    def advance(
        self, rng_key: PRNGKey, chains: Chains, values: Any, memory: _Buffer, batch: Any
    ) -> tuple[Phase, Any]:
        size = len(jax.tree.leaves(batch)[0])
        key_place, key_anew, key_fresh, key_move = jax.random.split(rng_key, 4)
        # Each place at most once, so that no walker is overwritten by another of its update.
        places = jax.random.permutation(key_place, self.buffer_size)[:size]
        anew = jax.random.bernoulli(key_anew, self.reinitialize, (size,))
        fresh = jax.random.randint(key_fresh, (size,), 0, self.buffer_size)

        def chosen(old: Array, new: Array) -> Array:
            mask = anew.reshape(-1, *(1,) * (old.ndim - 1))
            return jnp.where(mask, new[fresh], old[places])

        positions = jax.tree.map(chosen, memory.positions, memory.fresh)
        rows = jax.tree.map(lambda leaf: leaf[places], memory.rows)
        states = chains.init(values, positions, rows)
        states, _, rates = chains.move(key_move, values, states, self.num_steps, rows)
        kept = jax.tree.map(
            lambda old, new: old.at[places].set(new), memory.positions, states.position
        )
        phase = Phase(states.position, None, rows, _rates(chains, rates))
        return phase, memory._replace(positions=kept)


def replay(num_steps: int = 40, buffer_size: int = 10_000, reinitialize: float = 0.05) -> Sampling:
    r"""Replay buffer: walkers begin at old ones, and a share of them at fresh noise.

    The way of Du and Mordatch and of JEM. Biased: walkers are short runs, which end before they
    have the law of the model; the energy that is learned makes good samples from the buffer's
    start, not from its own density. Those papers also cool the noise, which is the kernel's
    ``temperature``, a second bias: gradient steps ``step_size`` with noise of standard deviation
    ``s`` are those of ``temperature=s**2 / (2 * step_size)``.

    Parameters
    ----------
    num_steps
        Steps of the kernel in an update.
    buffer_size
        Walkers that are kept, of which each update takes as many as the rows of a batch.
    reinitialize
        Share that begins anew.

    Raises
    ------
    ValueError
        For numbers below 1, or a share outside of 0 to 1. `fit` refuses a buffer that is smaller
        than the batch.

    References
    ----------
    Du, Mordatch, *Implicit generation and generalization in energy-based models*, 2019,
    arXiv:1903.08689; Grathwohl et al., *Your classifier is secretly an energy based model and you
    should treat it like one*, 2020, arXiv:1912.03263.

    Examples
    --------
    >>> import langevin_ppl as lp
    >>> lp.energy.replay(num_steps=20, buffer_size=1000).name
    'replay'
    """
    check_counts(1, num_steps=num_steps, buffer_size=buffer_size)
    if not 0.0 <= reinitialize <= 1.0:
        raise ValueError(f"reinitialize: expected a share from 0 to 1, got {reinitialize!r}.")
    return _Replay(num_steps, buffer_size, float(reinitialize))


class Weighted(NamedTuple):
    """Weighted walkers.

    Attributes
    ----------
    states
        States of the kernel, leading axis ``walker``, for the parameters of the last update.
    log_weights
        For the same parameters, ``[walker]``.
    log_normalizer
        What was folded out of the weights so far, and ``log Z`` at the start.
    variance
        Of that.
    """

    states: Any
    log_weights: Array
    log_normalizer: Array
    variance: Array


@dataclasses.dataclass(frozen=True)
class _Jarzynski:
    num_steps: int
    walkers: int
    resample_below: float
    name = "jarzynski"
    bias = ""

    def num_walkers(self, batch_size: int) -> int:
        return self.walkers

    def begin(self, chains: Chains, values: Any, start: Start | None) -> Any:
        assert start is not None
        states = chains.init(values, start.positions)
        return Weighted(states, start.log_weights, start.log_normalizer, start.variance)

    def advance(
        self, rng_key: PRNGKey, chains: Chains, values: Any, memory: Weighted, batch: Any
    ) -> tuple[Phase, Any]:
        key_move, key_draw = jax.random.split(rng_key)
        states, log_weights = memory.states, memory.log_weights
        weigh = has_gaussian_steps(chains.kernel)
        if not weigh:
            # An exact kernel keeps the new law: all of the weight is the change of the density.
            before = states.logdensity
            states = chains.reevaluate(values, states)
            log_weights = log_weights + states.logdensity - before
        states, steps, rates = chains.move(key_move, values, states, self.num_steps, weigh=weigh)
        log_weights = log_weights + steps
        lost, log_weights, states = _without_lost(log_weights, states)
        log_normalizer = memory.log_normalizer + log_mean_exp(log_weights)
        kept, after, folded, variance, drawn = resampled(
            key_draw, log_weights, states, self.resample_below
        )
        report = {
            "ess": effective_share(log_weights),
            "log_normalizer": log_normalizer,
            "resampled": drawn,
            "lost": lost,
            **_rates(chains, rates),
        }
        new = Weighted(kept, after, memory.log_normalizer + folded, memory.variance + variance)
        return Phase(states.position, log_weights, None, report), new


def jarzynski(num_steps: int = 1, num_walkers: int = 1000, resample_below: float = 0.5) -> Sampling:
    r"""Weighted walkers by Jarzynski's equality: no bias of step size or lag.

    Every walker has a weight, by which the average over walkers is that of the model at the
    parameters of every update, as the number of walkers grows, however far they lag behind. The
    mean weight is the ratio of normalisers, so that :math:`\log Z` is known all the time. Walkers
    are drawn anew by their weights where these become uneven.

    For kernels whose steps are Gaussian given where they begin, with or without taming, and for
    overdamped kernels with a Metropolis test. Walkers have to begin in a law that is known: that of
    the base measure of the model, from which annealed importance sampling leads to the first
    parameters, or exact draws with their ``log_normalizer``.

    Parameters
    ----------
    num_steps
        Steps of the kernel in an update.
    num_walkers
        Number of walkers; errors are of order one over its root.
    resample_below
        Effective share of walkers below which they are drawn anew; 0 for never.

    Raises
    ------
    ValueError
        For numbers below 1, or a share outside of 0 to 1.

    Notes
    -----
    Weights become uneven where parameters move faster than walkers follow; then few walkers carry
    the average, which the reported ``ess`` shows. Drawing anew keeps averages right and loses
    modes in which no walker is left. A walker that leaves the finite numbers has the weight 0,
    which is the limit of the weights on its way; ``lost`` is the share of them.

    Parameters follow the walkers, and so each walker, by one part in the number of them, follows
    itself. With a learning rate :math:`r` and ``n`` walkers that takes about
    :math:`r \|\nabla_\theta E\|^2 / n` from :math:`\log Z` in every update: a bias that its
    standard error does not hold. It hardly moves the parameters, because all walkers share it. For
    a figure to report, take `log_normalizer`.

    References
    ----------
    Carbone, Hua, Coste, Vanden-Eijnden, *Efficient training of energy-based models using Jarzynski
    equality*, 2023, arXiv:2305.19414; Neal, *Annealed importance sampling*, 1998,
    arXiv:physics/9803008.

    Examples
    --------
    >>> import langevin_ppl as lp
    >>> lp.energy.jarzynski(num_walkers=500).bias
    ''
    """
    check_counts(1, num_steps=num_steps, num_walkers=num_walkers)
    if not 0.0 <= resample_below <= 1.0:
        raise ValueError(f"resample_below: expected a share from 0 to 1, got {resample_below!r}.")
    return _Jarzynski(num_steps, num_walkers, float(resample_below))


def _without_lost(log_weights: Array, states: Any) -> tuple[Array, Array, Any]:
    """Share of walkers that left the finite numbers, whose weight is 0 in the limit.

    They stand in for the heaviest walker from then on, without a weight of their own, so that sums
    over walkers stay finite.
    """
    leaves = [jnp.reshape(leaf, (len(log_weights), -1)) for leaf in jax.tree.leaves(states)]
    finite = jnp.isfinite(log_weights)
    for leaf in leaves:
        finite &= jnp.all(jnp.isfinite(leaf), axis=1)
    # One that was lost before has no weight either, and is no new loss.
    lost = ~finite & (log_weights != -jnp.inf)
    log_weights = jnp.where(finite, log_weights, -jnp.inf)
    heaviest = jnp.argmax(log_weights)

    def replaced(leaf: Array) -> Array:
        mask = finite.reshape(-1, *(1,) * (leaf.ndim - 1))
        return jnp.where(mask, leaf, leaf[heaviest])

    return jnp.mean(lost), log_weights, jax.tree.map(replaced, states)


def _rates(chains: Chains, rates: Array) -> dict[str, Array]:
    adjusted = chains.kernel.target_acceptance_rate is not None
    return {"acceptance_rate": jnp.mean(rates)} if adjusted else {}

"""``exchange``: the posterior of the parameters of an energy whose normaliser is not known."""

import dataclasses
import functools
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from blackjax.adaptation.step_size import (
    DualAveragingAdaptationState,
    dual_averaging_adaptation,
)
from numpyro import handlers
from numpyro.distributions.transforms import biject_to

from langevin_ppl.arguments import check_groups, check_labels, earlier_positions
from langevin_ppl.base import (
    Array,
    ArrayLike,
    ConvergenceWarning,
    DivergenceWarning,
    Draws,
    Estimate,
    GradientEstimator,
    Position,
    PRNGKey,
    check_counts,
    check_key,
    check_number,
)
from langevin_ppl.convergence import Converged, judge
from langevin_ppl.energy.model import check_target
from langevin_ppl.export import LIBRARY, collect_groups, safe_name, to_datatree, variables
from langevin_ppl.kernels import Kernel, mala
from langevin_ppl.loop import capacity_for, drive, repeat
from langevin_ppl.targets import ModelTarget, programs, target
from langevin_ppl.targets.calls import Code
from langevin_ppl.tree import Layout, all_finite
from langevin_ppl.warmup.adaptation import Schedule
from langevin_ppl.warmup.moments import SHRINKAGE, Moments

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["exchange"]

TARGET_ACCEPTANCE = 0.44
"""Acceptance rate that the random walk is tuned to: the optimum of one dimension in any number of
them, because the noise of auxiliary data grows with the length of a step. On 30 data and one
parameter 0.44 gave a quarter more effective draws than 0.3, and with three parameters as many."""

CYCLE = (1.0, 0.5, 0.25, 0.125)
"""Sizes of inner steps, in turn. One that is right on average accepts nothing at parameters where
the law is a few times narrower; auxiliary data then are the data, every such proposal passes on the
prior alone, and the posterior grows a tail. With one size for all steps the standard deviation of
the precision of 30 Gaussian data was 2.8 times what it should be, and with these 1.02."""

LENGTH = 2.38
"""First scale of the random walk times the square root of the dimension, the optimum on Gaussians
(Roberts, Gelman, Gilks, 1997)."""

MAX_DIVERGENT_SHARE = 0.05
"""Share of proposals without a finite ratio above which there is a warning."""

MIN_INNER_ACCEPTANCE = 0.1
"""Acceptance rate of inner chains below which they cannot be said to have moved."""

GROUPS = ("unconstrained_posterior", "warmup_posterior")
"""Groups on request; others would need draws of the data, or their normalised likelihood."""

NUM_STATS = 4
"""Statistics of a draw."""

EVENT = "event"
"""Name of the mapped axis of independent events."""


def exchange(
    rng_key: PRNGKey,
    model: Any,
    *,
    num_chains: int = 4,
    num_warmup: int = 500,
    num_samples: int = 1000,
    inner_kernel: Kernel = mala,
    inner_steps: int = 20,
    inner_step_size: float | None = None,
    initial: Any = None,
    groups: Sequence[str] = (),
    progress: bool = False,
) -> "xr.DataTree":
    r"""Sample the posterior of the parameters of an energy, whose normaliser depends on them.

    The data :math:`y` have the law :math:`f(y; \theta) / Z(\theta)`, with :math:`Z` unknown. A
    random walk proposes :math:`\theta'`, auxiliary data :math:`w` are drawn from the law at
    :math:`\theta'`, and the proposal is accepted with probability

    .. math:: \min\left(1, \frac{p(\theta') \, f(y; \theta') \, f(w; \theta)}
        {p(\theta) \, f(y; \theta) \, f(w; \theta')}\right),

    in which the normalisers cancel. Where :math:`w` is an exact draw, the posterior is stationary.
    Here it is the end of a chain of ``inner_steps`` steps that begins at the data.

    Scale and covariance of the random walk, and the step size of the inner chains, are tuned in the
    warm-up, by all chains together, and fixed afterwards.

    Parameters
    ----------
    rng_key
        A key, ``jax.random.key(0)``.
    model
        Made by `target`, or a NumPyro model without arguments: latent sites with priors, and
        observed sites of `langevin_ppl.distributions.EnergyBased` whose energy depends on them.
        Other observed sites may have any normalised law.
    num_chains, num_warmup, num_samples
        Number of chains, and warm-up steps and draws of each.
    inner_kernel
        What moves auxiliary data: a kernel with a Metropolis test that needs a step size alone.
    inner_steps
        Its steps for every proposal.
    inner_step_size
        Its largest step size, on the unconstrained space of an event; the steps are 1, 1/2, 1/4
        and 1/8 of it in turn. By default it is tuned to the kernel's acceptance rate, for each
        site.
    initial
        Where to start: the DataTree of an earlier run, or unconstrained positions of the latent
        sites with a leading axis ``chain``.
    groups
        Further groups of the DataTree: ``unconstrained_posterior``, ``warmup_posterior``.
    progress
        Show bars (never under ``CI``).

    Returns
    -------
    xarray.DataTree
        Groups ``posterior``, latent sites and deterministics of shape ``[chain, draw, ...]``;
        ``sample_stats``, of shape ``[chain, draw]``: ``acceptance_rate`` and ``is_accepted``,
        ``diverging`` for proposals whose ratio was not finite, and ``inner_acceptance_rate``;
        ``observed_data``, ``constant_data``, ``sampler_position``; and ``sampler_parameters`` with
        the ``proposal_scale``, the ``proposal_covariance``, ``[dimension, dimension]``, and
        ``inner_step_size.<site>``. There is no log density: its normaliser is not known. The
        attribute ``exact`` is 0, and ``trust`` says why.

    Raises
    ------
    TypeError
        If the key is none.
    ValueError
        If no observed site lacks a normaliser that depends on a latent site, or a latent site does;
        for discrete latent sites, subsampled plates, streams, and sites that are scaled; if the
        inner kernel has no Metropolis test; or if data are outside of their support.

    Warns
    -----
    ConvergenceWarning
        If ``converged`` is 0.
    DivergenceWarning
        If many ratios were not finite.

    Notes
    -----
    The draws are biased unless the inner chain forgets the data at which it begins, and no
    diagnostic of theirs sees it: R-hat and effective sample size are those of the biased law.
    Double ``inner_steps``, and compare; what changes by more than its Monte Carlo error was biased.
    An inner chain that does not move leaves the prior, and one that moves a little a posterior that
    is too wide. Steps of different sizes, in turn, are for laws wider or narrower than most.

    Events of a site are independent given the parameters, so that each has an inner chain and a
    Metropolis test of its own: what a batch axis holds, whether of a plate, of the distribution or
    of ``to_event``. Inside of one event, dimension costs inner steps, as it does for any chain.
    Laws of several sites, and conditions of a site on others, are taken at the data.

    A step costs ``inner_steps`` gradients of the energies of all events. The walk is blind to
    gradients in the parameters, and is meant for some tens of them at most.

    References
    ----------
    Murray, Ghahramani, MacKay, *MCMC for doubly-intractable distributions*, 2006, arXiv:1206.6848;
    Liang, *A double Metropolis-Hastings sampler for spatial models with intractable normalizing
    constants* (2010).

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> import langevin_ppl as lp
    >>> def model(y):
    ...     theta = numpyro.sample("theta", dist.Gamma(1.0, 1.0))
    ...     with numpyro.plate("row", y.shape[0]):
    ...         numpyro.sample("y", lp.distributions.EnergyBased(lambda x: theta * x**4), obs=y)
    >>> y = jnp.linspace(-1.0, 1.0, 50)
    >>> idata = lp.energy.exchange(jax.random.key(0), lp.target(model, y))
    >>> exact = (1.0 + 50 / 4) / (1.0 + jnp.sum(y**4))  # a Gamma posterior: Z is theta^(-1/4)
    >>> mean = float(idata["posterior"]["theta"].mean())
    >>> idata["posterior"]["theta"].shape, idata.attrs["exact"], bool(abs(mean / exact - 1) < 0.05)
    ((4, 1000), 0, True)
    """
    began = time.perf_counter()
    rng_key = check_key(rng_key)
    check_counts(
        1,
        num_chains=num_chains,
        num_warmup=num_warmup,
        num_samples=num_samples,
        inner_steps=inner_steps,
    )
    _check_inner(inner_kernel)
    if inner_step_size is not None:
        check_number("inner_step_size", inner_step_size, above=0.0)
    found = _Exchanged.of(model)
    _check_groups(groups, found, num_warmup)
    check_labels(found)
    layout = Layout.of(found.prototype)
    key_start, key_steps, key_export = jax.random.split(rng_key, 3)
    first_steps = found.first_steps(inner_step_size)
    positions = earlier_positions(initial, layout, num_chains)
    if positions is None:
        keys = jax.random.split(key_start, num_chains)
        positions = jnp.stack([layout.ravel(found.init_position(key)) for key in keys])
    chains = _begin(found, layout, positions)
    _check_begun(found, layout, chains)
    capacity = capacity_for(num_chains * (layout.dimension + NUM_STATS) * 8)
    plan = _Plan(inner_kernel, inner_step_size is None, layout, capacity)
    keys = jax.random.split(key_steps, num_chains)
    flags = _flags(num_warmup)
    tuning = _Tuning.first(layout, first_steps)

    def go(carry: Any, done: int, number: int, label: str) -> Any:
        def program(carry: Any, start: int, count: int) -> Any:
            return _go(carry, done + start, count, inner_steps, keys, found, flags, plan=plan)

        return drive(program, carry, number, capacity, progress=progress, label=label)

    warmed = go((chains, tuning), 0, num_warmup, "exchange: warm-up")
    if not warmed.complete:
        raise KeyboardInterrupt("interrupted in the warm-up of exchange")
    warmup = _draws(warmed)
    warmup_time = time.perf_counter() - began
    sampled = go(warmed.carry, num_warmup, num_samples, "exchange")
    draws = _draws(sampled)
    times = {"warmup_time": warmup_time, "sampling_time": time.perf_counter() - began - warmup_time}
    posterior = variables(found, layout, draws.positions)
    parameters = sampled.carry[1].reported()
    attributes = {"inner_steps": int(inner_steps), "num_warmup": int(num_warmup)}
    attributes = _described(found, plan, draws, parameters, attributes)
    attributes |= times | _judged(posterior, draws, attributes)
    _warn_of(draws, attributes)
    kept = warmup if "warmup_posterior" in groups else None
    return to_datatree(
        collect_groups(key_export, found, draws, posterior, kept, groups, None),
        dims=found.dims,
        coords=found.options.coords,
        attributes=attributes,
        parameters=parameters,
    )


class _Law(NamedTuple):
    """Law of a site at parameters, with an axis for every independent event, and its data."""

    fn: Any
    data: Array

    @classmethod
    def of(cls, site: Mapping[str, Any]) -> "_Law":
        fn = site["fn"]
        while isinstance(fn, dist.Independent):  # what it joins are independent events
            fn = fn.base_dist
        # Data of lower precision than the parameters would change it from step to step.
        value = jnp.asarray(site["value"], jnp.result_type(float))
        shape = jnp.broadcast_shapes(value.shape, fn.shape())
        return cls(fn, jnp.broadcast_to(value, shape))

    def log_prob(self, value: Array) -> Array:
        """Log density of all events together, without the normaliser."""
        return jnp.sum(self.fn.log_prob(value))

    def rows(self) -> Array:
        """Unconstrained data, ``[event, dimension]``."""
        value = biject_to(self.fn.support).inv(self.data)
        return value.reshape(self._number(), -1)

    def _number(self) -> int:
        return math.prod(self.data.shape[: self.data.ndim - self.fn.event_dim])

    def constrained(self, rows: Array) -> tuple[Array, Array]:
        """Values of unconstrained rows, and the log density of each with the Jacobian."""
        transform = biject_to(self.fn.support)
        shape = jnp.shape(transform.inv(self.data))
        position = rows.reshape(shape)
        value = transform(position)
        terms = self.fn.log_prob(value) + transform.log_abs_det_jacobian(position, value)
        return value, terms.reshape(len(rows))

    def estimator(self) -> GradientEstimator:
        """Log density of one event, for chains mapped over the axis `EVENT`.

        A distribution is evaluated at all of its events, and not at one of them. So the events are
        gathered, which are one array outside of the mapped axis, and every chain reads its own
        row: all gradients cost one evaluation, whatever wraps the energy.
        """

        def estimate(batch: Any, row: Array, memory: Any) -> tuple[Estimate, Any]:
            rows = jax.lax.all_gather(row, EVENT)
            terms, pullback = jax.vjp(lambda rows: self.constrained(rows)[1], rows)
            (gradients,) = pullback(jnp.ones_like(terms))
            own = jax.lax.axis_index(EVENT)
            return Estimate(terms[own], gradients[own]), memory

        return GradientEstimator(lambda row: (), None, estimate, exact=True)

    def draw(
        self, rng_key: PRNGKey, kernel: Kernel, step_size: Array, num_steps: ArrayLike
    ) -> tuple[Array, Array]:
        """Values at the ends of inner chains that begin at the data, and their acceptance rate."""
        estimator, rows = self.estimator(), self.rows()

        def step(i: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
            states, rate = carry
            size = step_size * jnp.asarray(CYCLE, rows.dtype)[i % len(CYCLE)]
            algorithm: Any = kernel(estimator, step_size=size)
            keys = jax.random.split(jax.random.fold_in(rng_key, i), len(rows))
            states, infos = jax.vmap(algorithm.step, axis_name=EVENT)(keys, states)
            return states, rate + jnp.mean(infos.acceptance_rate) / num_steps

        states = jax.vmap(lambda row: kernel.init(row, estimator), axis_name=EVENT)(rows)
        start = states, jnp.zeros((), rows.dtype)
        states, rate = jax.lax.fori_loop(0, num_steps, step, start)
        return self.constrained(states.position)[0], rate


@jax.tree_util.register_pytree_node_class
class _Exchanged(ModelTarget):
    """A model whose log density may lack normalisers, which the exchange of data makes up for."""

    takes_intractable = True

    @classmethod
    def of(cls, model: Any) -> "_Exchanged":
        """Look at a model, and refuse what exchange cannot sample."""
        given = model if isinstance(model, ModelTarget) or not callable(model) else target(model)
        if isinstance(given, ModelTarget) and given.stream is not None:
            raise ValueError(
                "energy.exchange: expected data in memory, because every step reads all of them, "
                "got columns of a stream."
            )
        if not isinstance(given, ModelTarget):
            check_target(given, "energy.exchange")
        found = cls(given._code, given._arrays, given._fixed, given.options)
        check_target(found, "energy.exchange")
        # Here, because inside of a trace the initial values of parameters would be tracers.
        found = cast(_Exchanged, found.with_fixed({}))
        found._check()
        return found

    def _remade(
        self, code: Code, arrays: tuple[Array, ...], fixed: Any, options: Any
    ) -> "_Exchanged":
        return _Exchanged(code, arrays, fixed, options)

    def _check(self) -> None:
        names = self.structure.intractable
        if not names:
            raise ValueError(
                "energy.exchange: expected an observed site of langevin_ppl.distributions."
                f"EnergyBased whose energy depends on a latent site, and {self.description} has "
                "none, so that its log density is known. Use langevin_ppl.sample."
            )
        latent = [name for name in names if name in self.prototype]
        if latent:
            raise ValueError(
                f"energy.exchange: the energy of the latent site {', '.join(map(repr, latent))} "
                "depends on another latent site. The exchange of data needs data: expected it to "
                "be observed. Pass obs=, or make its parameters numpyro.param sites."
            )
        found: dict[str, Any] = {}

        def look(position: Position) -> int:
            sites = self._sites(position)
            for name in names:
                leaves = jax.tree.leaves(sites[name]["fn"].support)
                moves = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
                found[name] = moves, sites[name]["scale"] is not None
            return 0

        jax.eval_shape(look, self.prototype)
        for name, (moves, scaled) in found.items():
            if moves:
                raise ValueError(
                    f"energy.exchange: the support of the site '{name}' depends on a latent site, "
                    "so that auxiliary data may be impossible at other parameters. Expected a "
                    "support that is the same for all of them."
                )
            if scaled:
                raise ValueError(
                    f"energy.exchange: the site '{name}' is scaled (numpyro.handlers.scale), and a "
                    "power of a law has another normaliser. Leave the scale out."
                )

    def _sites(self, position: Position) -> dict[str, Any]:
        values = self.constrain(position)
        latent = {name: values[name] for name in self.prototype}
        model, args, kwargs = programs._prepare(self._code, *self._data)
        seeded = handlers.seed(model, jax.random.key(0))
        return handlers.trace(handlers.substitute(seeded, data=latent)).get_trace(*args, **kwargs)

    def laws(self, position: Position) -> dict[str, _Law]:
        """Laws of the sites without a known normaliser at an unconstrained position."""
        sites = self._sites(position)
        return {name: _Law.of(sites[name]) for name in self.structure.intractable}

    def first_steps(self, given: float | None) -> dict[str, Array]:
        """First step size of every site: what was given, or by the spread of the data.

        Raises
        ------
        ValueError
            If data are outside of their support, or on the edge of it.
        """

        def look(position: Position) -> dict[str, Array]:
            return {name: law.rows() for name, law in self.laws(position).items()}

        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), self.prototype)
        steps = {}
        for name, rows in jax.jit(look)(zero).items():
            bad = np.flatnonzero(~np.isfinite(np.asarray(rows)).all(axis=1))
            if len(bad):
                raise ValueError(
                    f"energy.exchange: event {bad[0]} of the site '{name}' and {len(bad) - 1} "
                    "others are outside of its support, on the edge of it, or not finite. Remove "
                    "them, or give the site the support of the data."
                )
            spread = float(np.var(np.asarray(rows), axis=0).mean()) or 1.0
            steps[name] = jnp.asarray(spread if given is None else given, rows.dtype)
        return steps


class _Chains(NamedTuple):
    """Flat positions ``[chain, dimension]``, and log densities at the data ``[chain]``."""

    positions: Array
    logdensities: Array


class _Flags(NamedTuple):
    """What each step tunes, boolean vectors ``[step]``; as in `Schedule`, and nothing at the end.

    Attributes
    ----------
    tunes
        Whether step sizes move.
    """

    tunes: Array
    frees: Array
    collects: Array
    renews: Array
    ends: Array


def _flags(num_warmup: int) -> _Flags:
    schedule = Schedule.build(num_warmup)
    tunes = np.ones(num_warmup, bool)
    rows = tunes, schedule.frees, schedule.collects, schedule.renews, schedule.ends
    return _Flags(*(jnp.asarray(np.append(row, False)) for row in rows))


class _Tuning(NamedTuple):
    """What warm-up carries, for all chains together.

    Attributes
    ----------
    scale
        Of the random walk, in units of ``factor``.
    factor
        Lower triangular, ``[dimension, dimension]``.
    steps
        Step size of inner chains by site.
    of_scale, of_steps
        States of dual averaging.
    moments
        Of the current window, in the frame of ``factor``.
    """

    scale: Array
    factor: Array
    steps: dict[str, Array]
    of_scale: DualAveragingAdaptationState
    of_steps: dict[str, DualAveragingAdaptationState]
    moments: Moments

    @classmethod
    def first(cls, layout: Layout, steps: dict[str, Array]) -> "_Tuning":
        factor = jnp.eye(layout.dimension, dtype=layout.dtype)
        return cls.at(jnp.asarray(LENGTH / math.sqrt(layout.dimension)), factor, steps)

    @classmethod
    def at(cls, scale: Array, factor: Array, steps: dict[str, Array]) -> "_Tuning":
        """Begin a window."""
        scale = scale.astype(factor.dtype)
        averages = {name: _averaging(step) for name, step in steps.items()}
        return cls(scale, factor, steps, _averaging(scale), averages, Moments.zero(factor))

    def moved(
        self, positions: Array, rate: Array, inner: dict[str, Array], collects: Array, plan: "_Plan"
    ) -> "_Tuning":
        """Take in a step of all chains."""
        of_scale = _averaged(self.of_scale, rate, TARGET_ACCEPTANCE)
        of_steps, steps = self.of_steps, self.steps
        if plan.tunes_inner:
            aim = cast(float, plan.kernel.target_acceptance_rate)
            of_steps = {name: _averaged(of_steps[name], inner[name], aim) for name in of_steps}
            steps = {name: jnp.exp(state.log_step_size) for name, state in of_steps.items()}
        white = jax.scipy.linalg.solve_triangular(self.factor, positions.T, lower=True).T
        return self._replace(
            scale=jnp.exp(of_scale.log_step_size),
            steps=steps,
            of_scale=of_scale,
            of_steps=of_steps,
            moments=self.moments.add(white, collects.astype(white.dtype)),
        )

    def settled(self, tunes_inner: bool) -> "_Tuning":
        """Step sizes at their averages."""
        steps = self.steps
        if tunes_inner:
            steps = {n: jnp.exp(state.log_step_size_avg) for n, state in self.of_steps.items()}
        return self._replace(scale=jnp.exp(self.of_scale.log_step_size_avg), steps=steps)

    def renewed(self, tunes_inner: bool) -> "_Tuning":
        """Take the covariance of the window, and begin the next one."""
        factor = self.factor @ jnp.linalg.cholesky(self.moments.covariance(SHRINKAGE))
        factor = jnp.where(all_finite(factor), factor, self.factor)
        first = jnp.asarray(LENGTH / math.sqrt(len(factor)))
        return _Tuning.at(first, factor, self.settled(tunes_inner).steps)

    def reported(self) -> dict[str, np.ndarray]:
        """What was tuned, by name."""
        return {
            "proposal_scale": np.asarray(self.scale),
            "proposal_covariance": np.asarray(self.factor @ self.factor.T),
            **{
                f"inner_step_size.{safe_name(name)}": np.asarray(step)
                for name, step in self.steps.items()
            },
        }


def _averaging(step: Array) -> DualAveragingAdaptationState:
    """Dual averaging that begins, and is drawn to, a step."""
    log_step, zero = jnp.log(step), jnp.zeros_like(step)
    state = log_step, log_step, jnp.asarray(1, jnp.int32), zero, log_step
    return DualAveragingAdaptationState(*cast(Any, state))


def _averaged(
    state: DualAveragingAdaptationState, rate: Array, aim: float
) -> DualAveragingAdaptationState:
    _, update, _ = dual_averaging_adaptation(aim)
    new = update(state, cast(float, jnp.where(jnp.isfinite(rate), rate, 0.0)))
    return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), new, state)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The static part of a run."""

    kernel: Kernel
    tunes_inner: bool
    layout: Layout
    capacity: int


@functools.partial(jax.jit, static_argnums=1)
def _begin(found: _Exchanged, layout: Layout, positions: Array) -> _Chains:
    logdensities = jax.vmap(lambda x: found.logdensity_fn(layout.unravel(x)))(positions)
    return _Chains(positions, logdensities)


@functools.partial(jax.jit, static_argnames="plan")
def _go(
    carry: tuple[_Chains, _Tuning],
    start: ArrayLike,
    count: ArrayLike,
    inner_steps: ArrayLike,
    keys: Array,
    found: _Exchanged,
    flags: _Flags,
    *,
    plan: _Plan,
) -> tuple[Any, Any]:
    def step(carry: tuple[_Chains, _Tuning], index: Array) -> tuple[Any, Any]:
        chains, tuning = carry
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        move = functools.partial(_move, found, plan, tuning, inner_steps)
        chains, stats, inner = jax.vmap(move)(own, chains)
        now = jax.tree.map(lambda row: row[jnp.minimum(index, len(row) - 1)], flags)
        rates = stats["acceptance_rate"]

        def tuned(tuning: _Tuning) -> _Tuning:
            rate = jnp.where(now.frees, jnp.min(rates), jnp.mean(rates))
            means = {name: jnp.mean(value) for name, value in inner.items()}
            new = tuning.moved(chains.positions, rate, means, now.collects, plan)
            tunes = plan.tunes_inner
            new = jax.lax.cond(now.renews, lambda t: t.renewed(tunes), lambda t: t, new)
            return jax.lax.cond(now.ends, lambda t: t.settled(tunes), lambda t: t, new)

        tuning = jax.lax.cond(now.tunes, tuned, lambda tuning: tuning, tuning)
        return (chains, tuning), (chains.positions, stats)

    return repeat(step, carry, jnp.asarray(start), jnp.asarray(count), plan.capacity)


def _move(
    found: _Exchanged,
    plan: _Plan,
    tuning: _Tuning,
    inner_steps: ArrayLike,
    rng_key: PRNGKey,
    chain: _Chains,
) -> tuple[_Chains, dict[str, Array], dict[str, Array]]:
    """Make one step of one chain."""
    key_walk, key_test, key_inner = jax.random.split(rng_key, 3)
    x = chain.positions
    noise = jax.random.normal(key_walk, x.shape, x.dtype)
    proposal = x + tuning.scale * (tuning.factor @ noise)
    logdensity = found.logdensity_fn(plan.layout.unravel(proposal))
    here = found.laws(plan.layout.unravel(x))
    there = found.laws(plan.layout.unravel(proposal))
    log_ratio = logdensity - chain.logdensities
    inner = {}
    for number, name in enumerate(sorted(there)):
        key = jax.random.fold_in(key_inner, number)
        value, inner[name] = there[name].draw(key, plan.kernel, tuning.steps[name], inner_steps)
        log_ratio += here[name].log_prob(value) - there[name].log_prob(value)
    usable = all_finite(log_ratio, logdensity)
    log_ratio = jnp.where(usable, log_ratio, -jnp.inf)
    accepted = jnp.log(jax.random.uniform(key_test, (), x.dtype)) < log_ratio
    chain = jax.tree.map(
        lambda new, old: jnp.where(accepted, new, old), _Chains(proposal, logdensity), chain
    )
    stats = {
        "acceptance_rate": jnp.exp(jnp.minimum(log_ratio, 0.0)),
        "is_accepted": accepted,
        "diverging": ~usable,
        "inner_acceptance_rate": jnp.mean(jnp.stack(list(inner.values()))),
    }
    return chain, stats, inner


def _draws(outcome: Any) -> Draws:
    """Draws of a loop, ``[draw, chain, ...]`` turned to ``[chain, draw, ...]``."""
    positions, stats = jax.tree.map(lambda rows: np.moveaxis(rows, 0, 1), outcome.outputs)
    return Draws(positions, stats, None, outcome.complete)


def _described(
    found: _Exchanged,
    plan: _Plan,
    draws: Draws,
    parameters: Mapping[str, np.ndarray],
    counts: Mapping[str, int],
) -> dict[str, Any]:
    """Attributes of the run."""
    num_chains, num_samples, _ = draws.positions.shape
    inner = counts["inner_steps"] * plan.kernel.gradients_per_step + 1
    scalars = {name: value for name, value in parameters.items() if value.ndim == 0}
    return {
        **LIBRARY,
        **counts,
        "kernel": "exchange",
        "target": found.description,
        "parameters": scalars,
        "intractable": list(found.structure.intractable),
        "inner_kernel": plan.kernel.__name__,
        "num_chains": num_chains,
        "num_samples": num_samples,
        "precision": str(plan.layout.dtype),
        "exact": False,
        "incomplete": not draws.complete,
        "num_gradient_evaluations": num_chains * (counts["num_warmup"] + num_samples) * inner,
    }


def _judged(
    posterior: Mapping[str, Any], draws: Draws, attributes: Mapping[str, Any]
) -> dict[str, Any]:
    """Whether the draws are enough, and what they can be trusted with."""
    seen, shortage = judge(posterior, Converged())
    doubts = []
    inner = float(np.mean(draws.stats["inner_acceptance_rate"]))
    if not inner >= MIN_INNER_ACCEPTANCE:
        doubts.append(
            f"Inner chains accept {inner:.2g} of their steps, and hardly move from the data. Take "
            "a smaller inner_step_size, or a longer warm-up."
        )
    if shortage:
        doubts.append(
            f"{shortage[0].upper()}{shortage[1:]}. Take more draws (num_samples=), with a longer "
            "warm-up (num_warmup=) where R-hat is large."
        )
    trust = (
        "The law of the draws is biased unless the inner chains, of "
        f"{attributes['inner_steps']} steps of {attributes['inner_kernel']} from the data "
        f"(acceptance rate {inner:.2f}), reach the law of the data at the proposed parameters, "
        "which is not measured here. Double inner_steps, and compare."
    )
    return {
        "min_ess": seen.ess,
        "min_ess_squares": seen.ess_squares,
        "max_rhat": seen.rhat,
        "converged": not doubts,
        **({"advice": " ".join(doubts)} if doubts else {}),
        "trust": f"{trust} {'Not converged: see advice.' if doubts else 'Converged.'}",
    }


def _warn_of(draws: Draws, attributes: Mapping[str, Any]) -> None:
    if attributes["incomplete"]:
        warnings.warn(
            f"Interrupted: the DataTree holds the {draws.positions.shape[1]} draws of each chain "
            "that were done (attribute incomplete=1).",
            UserWarning,
            stacklevel=3,
        )
    if not attributes["converged"]:
        warnings.warn(f"exchange: {attributes['advice']}", ConvergenceWarning, stacklevel=3)
    share = float(np.mean(draws.stats["diverging"]))
    if share > MAX_DIVERGENT_SHARE:
        warnings.warn(
            f"exchange: the ratio of {100 * share:.0f} % of the proposals was not finite, and they "
            "were rejected. Look at the energy and the priors there: an energy has to be finite at "
            "the data for all parameters.",
            DivergenceWarning,
            stacklevel=3,
        )


def _check_inner(kernel: Any) -> None:
    adjusted = isinstance(kernel, Kernel) and kernel.exact and not kernel.amortised
    if not adjusted or kernel.target_acceptance_rate is None:
        raise ValueError(
            "energy.exchange: expected inner_kernel to have a Metropolis test, so that its law is "
            f"that of the energy at any step size, such as langevin_ppl.mala, got {kernel!r}."
        )
    missing = [
        name
        for name, default in kernel.parameters.items()
        if default is kernel.__signature__.empty and name != "step_size"
    ]
    if missing or "step_size" not in kernel.parameters:
        raise ValueError(
            "energy.exchange: expected an inner_kernel that needs a step_size alone, such as "
            f"langevin_ppl.mala; {kernel!r} takes {', '.join(kernel.parameters)}."
        )


def _check_groups(groups: Any, found: _Exchanged, num_warmup: int) -> None:
    others = isinstance(groups, list | tuple | set | frozenset) and set(groups) - set(GROUPS)
    if others:
        raise ValueError(
            f"groups: expected a list of {', '.join(GROUPS)}, because data of an energy cannot be "
            f"drawn, and their likelihood lacks its normaliser; got {', '.join(map(str, others))}."
        )
    check_groups(groups, found, num_warmup)


def _check_begun(found: _Exchanged, layout: Layout, chains: _Chains) -> None:
    finite = np.isfinite(np.asarray(chains.logdensities))
    if not finite.all():
        chain = int(np.flatnonzero(~finite)[0])
        raise ValueError(
            f"initial: the log density of chain {chain} is not finite where it starts. "
            f"{found.explain(layout.unravel(chains.positions[chain]))}"
        )

"""Any kernel of this library as a NumPyro ``MCMCKernel``."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.infer import init_to_uniform
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from langevin_ppl.base import Array, PRNGKey
from langevin_ppl.compilation import nested
from langevin_ppl.gradients import on_flat
from langevin_ppl.kernels import Kernel, ReplicaState, check_burn_in, split_ghmc
from langevin_ppl.run import in_step
from langevin_ppl.targets import density, target
from langevin_ppl.targets.target import check_flag
from langevin_ppl.tree import Layout
from langevin_ppl.warmup import (
    Begun,
    Request,
    Setup,
    begin,
    begun,
    find,
    finding,
    kernel_and_gradient,
    reader_for,
    set_by_noise,
    set_up,
    settled_step_size,
    taming_parameters,
    tuned_names,
)

__all__ = ["Langevin", "LangevinState"]

CHAIN = "chain"


class LangevinState(NamedTuple):
    """State of a chain in NumPyro; under ``chain_method="vectorized"``, of all chains.

    Attributes
    ----------
    i, num_warmup
        Steps made, and how many of the first are warm-up.
    z, z_grad, potential_energy
        Unconstrained position, and the potential energy (the negative log density) there with its
        gradient. Of a kernel whose steps do not end at a gradient (`UBU`), those of the last
        gradient.
    accept_prob, mean_accept_prob
        Acceptance probability of the last step, and its mean since the warm-up; NaN for a kernel
        without a Metropolis test, which has none.
    diverging
        Whether the step left the finite numbers or, with a Metropolis test, proposed a point with
        an energy error above 1000.
    energy
        Hamiltonian at the end of the last step, for kernels with a momentum whose log density is
        known there; else, and before the first step, NaN.
    step_size
        Step size of the next step.
    chain
        State of the kernel.
    adapt_state
        State of the adaptation, one for all chains where they are pooled; None without one.
    parameters
        Parameters that the kernel runs with after warm-up.
    rng_key
        Key of the next step.
    """

    i: Array
    num_warmup: Array
    z: Any
    z_grad: Any
    potential_energy: Array
    accept_prob: Array
    mean_accept_prob: Array
    diverging: Array
    energy: Array
    step_size: Array
    chain: Any
    adapt_state: Any
    parameters: dict[str, Any]
    rng_key: PRNGKey


SOURCE = "gradient"
"""Where the parameters of a state hold its gradient estimator."""

POOLED_FIELDS = ("adapt_state", "parameters")

# The axis of chains: of everything but what all chains share.
AXES = LangevinState._make(None if n in POOLED_FIELDS else 0 for n in LangevinState._fields)


class Langevin(MCMCKernel):
    """A kernel of this library for ``numpyro.infer.MCMC``.

    Runs with every ``chain_method``. Warm-up is that of `langevin_ppl.sample`: chains start at
    modes, and step size and metric are tuned; over all chains together with
    ``chain_method="vectorized"``, and by each chain for itself with the others.

    Parameters
    ----------
    model
        A NumPyro model.
    potential_fn
        In place of a model, the negative log density of a pytree; ``init_params`` is then needed.
    kernel
        A kernel of this library, `langevin_ppl.split_ghmc` by default.
    init_strategy
        How chains start, before the search for a mode; ignored where ``init_params`` are given.
    target_accept_prob
        What the step size is tuned to; the kernel's own optimum by default.
    dense_mass
        Whether the metric is a dense matrix; by default up to 500 dimensions.
    find_mode
        Whether chains start at a mode found from their first position.
    gradient
        `langevin_ppl.minibatch`, `control_variates`, `svrg` or a `GradientEstimator`, for kernels
        without a Metropolis test. By default all the data, unless the model has a subsampled plate:
        then as in `langevin_ppl.sample`.
    forward_mode_differentiation
        Whether gradients are taken by forward mode, as of a model with a ``while_loop``; see
        ``target.replace``.
    **parameters
        Parameters of the kernel (``step_size``, ``friction``, ...), which are then not tuned.

    Raises
    ------
    TypeError, ValueError
        For arguments that do not fit; the message says what was expected.

    Notes
    -----
    Without a Metropolis test ``accept_prob`` is NaN, and the draws have a bias that R-hat
    does not see: read the kernel's docstring, or use `langevin_ppl.diagnostics.bias`
    on a run of `langevin_ppl.sample`.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> from numpyro.infer import MCMC
    >>> from langevin_ppl.infer import MALA
    >>> def model(y):
    ...     mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
    ...     numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)
    >>> mcmc = MCMC(MALA(model), num_warmup=200, num_samples=200, progress_bar=False)
    >>> mcmc.run(jax.random.key(0), jnp.array([0.5, 1.5]))
    >>> mcmc.get_samples()["mean"].shape
    (200,)
    """

    kernel: ClassVar[Kernel] = split_ghmc

    def __init__(
        self,
        model: Callable[..., Any] | None = None,
        *,
        potential_fn: Callable[[Any], Array] | None = None,
        kernel: Kernel | None = None,
        init_strategy: Callable[..., Any] = init_to_uniform,
        target_accept_prob: float | None = None,
        dense_mass: bool | None = None,
        find_mode: bool = True,
        gradient: Any = None,
        forward_mode_differentiation: bool = False,
        **parameters: Any,
    ):
        name = type(self).__name__
        if (model is None) == (potential_fn is None):
            raise ValueError(f"{name}: expected either a model or a potential_fn.")
        if kernel is not None and type(self) is not Langevin:
            raise TypeError(f"{name} has its kernel; pass kernel= to Langevin.")
        kernel = type(self).kernel if kernel is None else kernel
        if not isinstance(kernel, Kernel):
            raise TypeError(
                f"{name}: expected a kernel of langevin_ppl, got {kernel!r}. NumPyro's own kernels "
                "are passed to MCMC as they are."
            )
        unknown = sorted(set(parameters) - set(kernel.parameters))
        if unknown:
            raise TypeError(
                f"{name}: unknown parameter {', '.join(unknown)}. Those of {kernel!r} are "
                f"{', '.join(kernel.parameters)}."
            )
        if target_accept_prob is not None and not 0.0 < target_accept_prob < 1.0:
            raise ValueError(
                f"{name}: expected target_accept_prob between 0 and 1, got {target_accept_prob!r}."
            )
        check_flag(name, "forward_mode_differentiation", forward_mode_differentiation)
        kernel.prepare(parameters)
        self._model = model
        self._potential_fn = potential_fn
        self._kernel = kernel
        self._init_strategy = init_strategy
        self._target_accept_prob = target_accept_prob
        self._dense_mass = dense_mass
        self._find_mode = find_mode
        self._gradient = gradient
        self._forward_mode_differentiation = forward_mode_differentiation
        self._parameters = parameters
        self._num_warmup = 0
        self._layout: Layout | None = None
        # As a block of numpyro.infer.Gibbs: transforms of the block's own sites, found by `init`.
        self._is_block = False
        self._transforms: dict[str, Any] = {}
        # NumPyro looks at it to see whether `init` has run.
        self._sample_fn: Callable[..., LangevinState] | None = None

    @property
    def model(self) -> Callable[..., Any] | None:
        """The NumPyro model."""
        return self._model

    @property
    def _is_adjusted(self) -> bool:
        return self._kernel.target_acceptance_rate is not None

    @property
    def sample_field(self) -> str:
        """Field of the state that holds the sample."""
        return "z"

    @property
    def default_fields(self) -> tuple[str, str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Fields that are always collected."""
        return ("z", "diverging")

    def get_diagnostics_str(self, state: LangevinState) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Text beside the progress bar."""
        text = f"step size {np.mean(state.step_size):.2e}"
        if not self._is_adjusted:
            return text
        return f"{text}. acc. prob={np.mean(state.mean_accept_prob):.2f}"

    def init(
        self,
        rng_key: PRNGKey,
        num_warmup: int,
        init_params: Any = None,
        model_args: tuple[Any, ...] = (),
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> LangevinState:
        """Find starting positions, and make the first state.

        Parameters
        ----------
        rng_key
            A key, or one for each chain (``chain_method="vectorized"``).
        num_warmup
            Warm-up steps.
        init_params
            Unconstrained positions, with a leading axis where ``rng_key`` has one. To a block of
            ``numpyro.infer.Gibbs``, which calls this, they come constrained.
        model_args, model_kwargs
            Arguments of the model.
        """
        single = is_prng_key(rng_key)
        keys = jax.tree.map(lambda leaf: leaf[None], rng_key) if single else rng_key
        split = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
        if self._model is None and init_params is None:
            raise ValueError(
                f"{type(self).__name__}: with a potential_fn, MCMC.run needs init_params."
            )
        check_burn_in(self._kernel, num_warmup)
        if self._is_block:
            self._transforms = self._site_transforms(model_args, model_kwargs or {})
            if init_params is not None:
                init_params = {k: self._transforms[k].inv(v) for k, v in init_params.items()}
        if init_params is not None and single:
            init_params = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], init_params)
        self._num_warmup = num_warmup
        posterior = self._target(model_args, model_kwargs or {}, init_params)
        layout = Layout.of(posterior.prototype)
        self._layout = layout
        initial = None
        if init_params is not None:
            initial = jax.vmap(layout.ravel)(_checked(init_params, posterior.prototype))
        _, gradient = kernel_and_gradient(self._kernel, posterior, self._gradient)
        if gradient is not None:
            state = self._stochastic_state(posterior, initial, gradient, split)
            self._sample_fn = functools.partial(_one_step, self)
            return state if not single else jax.tree.map(_first, state, _axes(state))
        setup, request = self._setup(posterior, initial, None if single else CHAIN)
        data, options = finding(request, setup.plan, search=self._find_mode and init_params is None)
        logdensity_fn = posterior.logdensity_fn
        # Within chain_method="parallel", and a callable one, this is traced.
        traced = isinstance(split, Tracer)
        program = nested if traced else functools.partial
        search, start = program(find, **options), program(begin, plan=setup.plan)
        with posterior.advising():
            found = search(split[:, 0], logdensity_fn, data)
        if not traced and not bool(jnp.all(found.valid)):
            chain = int(np.argmin(np.asarray(found.valid)))
            position = layout.unravel(found.positions[chain])
            given = init_params is not None
            raise ValueError(f"Chain {chain}: {posterior.explain(position, given=given)}")
        begun = start(split[:, 1], logdensity_fn, found, setup.for_tuner, setup.first)
        # The chains of the kernel are flat; NumPyro's are dicts of sites.
        chains = jax.vmap(self._kernel.adopt)(begun.chains.states)
        state = self._first_state(setup, chains, begun, split[:, 2])
        self._sample_fn = functools.partial(_one_step, self)
        return state if not single else jax.tree.map(_first, state, _axes(state))

    def _stochastic_state(
        self, posterior: Any, initial: Any, gradient: Any, keys: PRNGKey
    ) -> LangevinState:
        """First state of chains whose gradient reads a part of the data; it is tuned by then.

        The estimator, with the data that it reads, is carried in the state.
        """
        if isinstance(keys, Tracer):
            raise ValueError(
                f"{type(self).__name__}: gradients from a part of the data are tuned outside of "
                "compiled code: use chain_method='vectorized' or 'sequential'."
            )
        if self._is_block:
            raise ValueError(
                f"{type(self).__name__}: as a block of Gibbs sampling it needs all the data, "
                "because the other block changes what the estimator was tuned for. Pass "
                "gradient=langevin_ppl.exact()."
            )
        request = self._request(posterior, initial)._replace(gradient=gradient, thinning=1)
        ready = set_by_noise(keys[:, 0], request, reader_for(gradient, posterior))
        source, parameters = ready.choice.source, ready.parameters
        chains = begun(keys[:, 1], ready)
        return self._state_of(chains, None, {**parameters, SOURCE: source}, keys[:, 2])

    def _first_state(self, setup: Setup, chains: Any, begun: Begun, keys: PRNGKey) -> LangevinState:
        tuning = begun.chains.tuning
        parameters = {
            **setup.parameters,
            **({} if setup.plan.adaptation is None else setup.plan.adaptation.parameters(tuning)),
        }
        parameters |= taming_parameters(self._kernel, self._parameters, begun.start)
        return self._state_of(chains, tuning, parameters, keys)

    def _state_of(
        self, chains: Any, tuning: Any, parameters: Mapping[str, Any], keys: PRNGKey
    ) -> LangevinState:
        num_chains, dtype = chains.position.shape[0], chains.position.dtype
        rates = jnp.full(num_chains, 0.0 if self._is_adjusted else jnp.nan, dtype)
        parameters = {k: jnp.asarray(v) if _is_number(v) else v for k, v in parameters.items()}
        step_size = jnp.broadcast_to(jnp.asarray(parameters["step_size"], dtype), (num_chains,))
        assert self._layout is not None
        return LangevinState(
            i=jnp.zeros(num_chains, jnp.int32),
            num_warmup=jnp.full(num_chains, self._num_warmup, jnp.int32),
            z=self._layout.unravel(chains.position),
            z_grad=self._layout.unravel(-chains.logdensity_grad),
            potential_energy=-chains.logdensity,
            accept_prob=rates,
            mean_accept_prob=rates,
            diverging=jnp.zeros(num_chains, bool),
            energy=jnp.full(num_chains, jnp.nan, dtype),
            step_size=step_size,
            chain=chains,
            adapt_state=tuning,
            parameters=parameters,
            rng_key=keys,
        )

    def sample(
        self,
        state: LangevinState,
        model_args: tuple[Any, ...],
        model_kwargs: Mapping[str, Any] | None,
    ) -> LangevinState:
        """Make one step."""
        return _one_step(self, state, model_args, model_kwargs)

    def postprocess_fn(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model_args: tuple[Any, ...], model_kwargs: Mapping[str, Any] | None
    ) -> Callable[[Any], Any]:
        """Function from unconstrained to constrained sites, with deterministics."""
        if self._model is None:
            return lambda z: z
        return self._target(model_args, model_kwargs or {}).constrain

    def get_constrain_fn(
        self, model_args: tuple[Any, ...], model_kwargs: Mapping[str, Any] | None
    ) -> Callable[[Any], Any]:
        """Function from unconstrained to constrained sites."""
        if not self._is_block:
            return self.postprocess_fn(model_args, model_kwargs)
        # Gibbs asks outside of what the block is conditioned on, where the model cannot be run.
        transforms = self._transforms
        return lambda z: {name: transforms[name](value) for name, value in z.items()}

    def refresh(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        state: LangevinState,
        model_args: tuple[Any, ...],
        model_kwargs: Mapping[str, Any] | None,
    ) -> LangevinState:
        """Evaluate density and gradient anew, where what is conditioned on has changed."""
        logdensity_fn = self._target(model_args, model_kwargs or {}).logdensity_fn
        layout = self._layout
        assert layout is not None  # `init` has run

        def anew(chain: Any) -> Any:
            value, gradient = jax.value_and_grad(lambda x: logdensity_fn(layout.unravel(x)))(
                chain.position
            )
            return chain._replace(logdensity=value, logdensity_grad=gradient)

        chain = anew(state.chain)
        if isinstance(chain, ReplicaState):
            chain = chain._replace(replicas=jax.vmap(anew)(chain.replicas))
        return state._replace(
            potential_energy=-chain.logdensity,
            z_grad=layout.unravel(-chain.logdensity_grad),
            chain=chain,
        )

    def wrap_model(self, wrapper: Callable[..., Any]) -> "Langevin":
        """Copy of the kernel with its model wrapped, as a block of ``numpyro.infer.Gibbs``."""
        if self._model is None:
            raise ValueError(f"{type(self).__name__}.wrap_model: it has a potential_fn, no model.")
        kernel = copy.copy(self)
        kernel._model = wrapper(self._model)
        kernel._is_block = True
        kernel._sample_fn = None
        return kernel

    def _site_transforms(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> dict[str, Callable[..., Any]]:
        """Transform from unconstrained space of every latent site."""
        assert self._model is not None
        seeded = handlers.substitute(
            handlers.seed(self._model, jax.random.key(0)), substitute_fn=init_to_uniform()
        )
        trace = handlers.trace(seeded).get_trace(*args, **kwargs)
        return {
            name: biject_to(site["fn"].support)
            for name, site in trace.items()
            if site["type"] == "sample"
            and not site["is_observed"]
            and not site["fn"].support.is_discrete
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sample_fn": None}

    def _target(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        init_params: Any = None,
    ) -> Any:
        """Target of the arguments; it is made anew in every trace, and looks at nothing twice."""
        forward = self._forward_mode_differentiation
        if self._model is not None:
            return target(self._model, *args, **kwargs).replace(
                init_strategy=self._init_strategy, forward_mode_differentiation=forward
            )
        potential_fn = self._potential_fn
        assert potential_fn is not None
        if init_params is not None:
            prototype = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), init_params)
        else:
            assert self._layout is not None  # `init` has run
            prototype = self._layout.unravel(jnp.zeros(self._layout.dimension, self._layout.dtype))
        return density(_Negative(potential_fn), prototype).replace(
            forward_mode_differentiation=forward
        )

    def _setup(self, posterior: Any, initial: Any, axis_name: str | None) -> tuple[Setup, Request]:
        request = self._request(posterior, initial)
        return set_up(request, tuned_names(request), axis_name), request

    def _request(self, posterior: Any, initial: Any) -> Request:
        metric = None
        if self._dense_mass is not None:
            metric = "dense" if self._dense_mass else "diagonal"
        return Request(
            target=posterior,
            layout=Layout.of(posterior.prototype),
            kernel=self._kernel,
            num_warmup=self._num_warmup,
            given=self._parameters,
            initial=initial,
            metric=metric,
            target_acceptance_rate=self._target_accept_prob,
        )


class _Negative:
    """Log density of a potential; equal where the potential is."""

    def __init__(self, potential_fn: Callable[[Any], Array]):
        self.potential_fn = potential_fn

    def __call__(self, position: Any) -> Array:
        return -self.potential_fn(position)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Negative) and self.potential_fn == other.potential_fn

    def __hash__(self) -> int:
        return hash(self.potential_fn)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.ndarray | np.number)


def _axes(state: LangevinState) -> LangevinState:
    """Whether every leaf of the state has an axis of chains."""
    return LangevinState(
        *(
            jax.tree.map(lambda _, own=name not in POOLED_FIELDS: own, field)
            for name, field in state._asdict().items()
        )
    )


def _first(leaf: Any, over_chains: bool) -> Any:
    return leaf[0] if over_chains else leaf


def _checked(init_params: Any, prototype: Any) -> Any:
    """Refuse positions that are not those of the model."""
    structure = jax.tree.structure(prototype)
    if jax.tree.structure(init_params) != structure:
        raise ValueError(
            f"init_params: expected unconstrained values for {structure}, got "
            f"{jax.tree.structure(init_params)}."
        )
    for leaf, shape in zip(jax.tree.leaves(init_params), jax.tree.leaves(prototype), strict=True):
        if jnp.shape(leaf)[1:] != shape.shape:
            raise ValueError(
                f"init_params: expected shape {shape.shape} of a site after the axis of chains, "
                f"got {jnp.shape(leaf)[1:]}. They are unconstrained, with a leading axis of "
                "num_chains where there are several chains."
            )
    return init_params


def _one_step(
    sampler: Langevin,
    state: LangevinState,
    model_args: tuple[Any, ...],
    model_kwargs: Mapping[str, Any] | None,
) -> LangevinState:
    """Step one chain, or all of them together where the state has several."""
    single = is_prng_key(state.rng_key)
    if SOURCE in state.parameters:
        common = state.rng_key if single else state.rng_key[0]
        index = state.i if single else state.i[0]
        move = functools.partial(_move_by_batch, sampler, common_key=common, index=index)
        return move(state) if single else jax.vmap(move, in_axes=(AXES,), out_axes=AXES)(state)
    posterior = sampler._target(model_args, model_kwargs or {})
    setup, _ = sampler._setup(posterior, None, None if single else CHAIN)
    if state.adapt_state is None:  # made by another run of the kernel, without a warm-up
        setup = setup._replace(plan=dataclasses.replace(setup.plan, adaptation=None))
    move = functools.partial(_move, sampler, setup, posterior.logdensity_fn)
    adapt = functools.partial(_adapt, sampler, setup, posterior.logdensity_fn)
    if single:
        warming = state.i < state.num_warmup
        moved, rate = move(state, warming)
        return adapt(moved, rate, warming, state.i)
    # All chains are at the same step, and one number for all keeps branches branches under vmap.
    index, warming = state.i[0], state.i[0] < state.num_warmup[0]
    moved, rates = jax.vmap(move, in_axes=(AXES, None), out_axes=(AXES, 0))(state, warming)
    over_chains = jax.vmap(adapt, in_axes=(AXES, 0, None, None), out_axes=AXES, axis_name=CHAIN)
    return over_chains(moved, rates, warming, index)


def _move(
    sampler: Langevin, setup: Setup, logdensity_fn: Any, state: LangevinState, warming: Array
) -> tuple[LangevinState, Array]:
    """Step one chain: of the tuner during warm-up, of the kernel after it."""
    kernel, tuner, plan = sampler._kernel, setup.tuner, setup.plan
    next_key, key = jax.random.split(state.rng_key)
    flat = plan.flat(logdensity_fn)

    def by(stepper: Kernel, parameters: Mapping[str, Any]) -> Any:
        known = {k: v for k, v in parameters.items() if k in stepper.parameters}
        info: Any
        chain, info = stepper(flat, **known).step(key, stepper.adopt(state.chain))
        rate = info.acceptance_rate
        rate = jnp.zeros(()) if rate is None else rate
        return (
            kernel.adopt(chain),
            info.is_divergent,
            _energy(info, flat_dtype),
            rate.astype(flat_dtype),
        )

    flat_dtype = state.potential_energy.dtype
    if plan.adaptation is None:
        chain, diverging, energy, rate = by(kernel, state.parameters)
    else:
        tuned = {**setup.for_tuner, **plan.adaptation.parameters(state.adapt_state)}
        if tuner is kernel:
            chain, diverging, energy, rate = by(kernel, {**state.parameters, **tuned})
        else:
            chain, diverging, energy, rate = jax.lax.cond(
                warming,
                lambda: by(tuner, tuned),
                lambda: by(kernel, state.parameters),
            )
    i = state.i + 1
    # Starts from the initial rate, which is NaN, and stays so, where there is no test.
    since = jnp.where(i <= state.num_warmup, i, i - state.num_warmup)
    mean = state.mean_accept_prob + (rate - state.mean_accept_prob) / since
    return state._replace(
        i=i,
        z=plan.layout.unravel(chain.position),
        z_grad=plan.layout.unravel(-chain.logdensity_grad),
        potential_energy=-chain.logdensity,
        accept_prob=rate if sampler._is_adjusted else state.accept_prob,
        mean_accept_prob=mean,
        diverging=diverging,
        energy=energy,
        chain=chain,
        rng_key=next_key,
    ), rate


def _energy(info: Any, dtype: Any) -> Array:
    """Hamiltonian that a step reports; NaN where it reports none."""
    energy = getattr(info, "energy", None)
    return jnp.asarray(jnp.nan if energy is None else energy, dtype)


def _move_by_batch(
    sampler: Langevin, state: LangevinState, *, common_key: PRNGKey, index: Array
) -> LangevinState:
    """Step one chain by a gradient from a part of the data."""
    kernel, layout = sampler._kernel, sampler._layout
    assert layout is not None  # `init` has run
    next_key, key = jax.random.split(state.rng_key)
    common = jax.random.fold_in(common_key, 2**32 - 1)
    source = on_flat(in_step(state.parameters[SOURCE], common, index), layout)
    known = {k: v for k, v in state.parameters.items() if k in kernel.parameters}
    chain: Any
    info: Any
    chain, info = kernel(source, **known).step(key, state.chain)
    return state._replace(
        i=state.i + 1,
        z=layout.unravel(chain.position),
        z_grad=layout.unravel(-chain.logdensity_grad),
        potential_energy=-chain.logdensity,
        diverging=info.is_divergent,
        energy=_energy(info, state.energy.dtype),
        chain=chain,
        rng_key=next_key,
    )


def _adapt(
    sampler: Langevin,
    setup: Setup,
    logdensity_fn: Any,
    state: LangevinState,
    rate: Array,
    warming: Array,
    index: Array,
) -> LangevinState:
    """Take a warm-up step into the tuning, and settle the parameters after the last."""
    adaptation, schedule = setup.plan.adaptation, setup.schedule
    if adaptation is None or schedule is None:
        return state

    def tuned(_: None) -> tuple[Any, dict[str, Any], Array]:
        flags = jax.tree.map(lambda flag: jnp.asarray(flag)[index], schedule)
        tuning = adaptation.update(
            state.adapt_state, state.chain.position, state.chain.logdensity_grad, rate, flags
        )
        parameters = {**state.parameters, **adaptation.parameters(tuning)}
        if setup.tuner is not sampler._kernel:
            parameters["step_size"] = settled_step_size(
                sampler._kernel,
                setup.plan.flat(logdensity_fn),
                state.chain,
                parameters,
                state.rng_key,
                flags.ends,
                adaptation.axis_name,
            )
        return tuning, parameters, parameters["step_size"]

    def settled(_: None) -> tuple[Any, dict[str, Any], Array]:
        return state.adapt_state, state.parameters, state.parameters["step_size"]

    tuning, parameters, step_size = jax.lax.cond(warming, tuned, settled, None)
    return state._replace(adapt_state=tuning, parameters=parameters, step_size=step_size)

"""The gradient from a batch of rows."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.tree_util import Partial

from langevin_ppl.base import Array, Estimate, GradientEstimator, Position
from langevin_ppl.gradients.draws import SAMPLINGS
from langevin_ppl.gradients.rows import Draw, Reader, batch_sizes_of, read, reader_of

__all__ = ["Minibatch", "check_sampling", "minibatch"]


def no_memory(position: Position) -> tuple[()]:
    """State of an estimator that has none."""
    return ()


def value_and_grad(fn: Any, position: Position) -> Estimate:
    """Log density and gradient; without the barrier XLA would copy the model to their uses."""
    return Estimate(*jax.lax.optimization_barrier(jax.value_and_grad(fn)(position)))


def _estimate(
    on_rows: Any, reader: Reader, batch: Mapping[str, Array], position: Position, memory: Any
) -> tuple[Estimate, Any]:
    rows = read(reader, batch)
    return value_and_grad(lambda x: on_rows(rows, x), position), memory


@dataclasses.dataclass(frozen=True)
class Minibatch:
    """What `minibatch` makes: a function from a target to an estimator."""

    batch_size: Any
    sampling: str
    shared: bool
    seed: int

    def reader(self, target: Any) -> Reader:
        """Make the rows of a target ready."""
        sizes = batch_sizes_of("minibatch", target, self.batch_size)
        return reader_of(target, sizes, self.sampling, self.seed)

    def __call__(self, target: Any, reader: Reader | None = None) -> GradientEstimator:
        """Make the estimator of a target."""
        reader = self.reader(target) if reader is None else reader
        return GradientEstimator(
            init=Partial(no_memory),
            draw=Draw.of(reader),
            estimate=Partial(_estimate, target.batch_logdensity_fn, reader),
            exact=False,
            logdensity_fn=target.logdensity_fn,
            shared=self.shared,
        )

    def __str__(self) -> str:
        size = "" if self.batch_size is None else f"{self.batch_size}, "
        return f"minibatch({size}sampling='{self.sampling}', shared={self.shared})"


def check_sampling(owner: str, sampling: Any, known: tuple[str, ...] = SAMPLINGS) -> None:
    """Refuse a way of drawing rows that is not known."""
    if sampling not in known:
        raise ValueError(f"{owner}: expected sampling to be one of {known}, got {sampling!r}.")


def minibatch(
    batch_size: int | Mapping[str, int] | None = None,
    *,
    sampling: str = "blocks",
    shared: bool = False,
    seed: int = 0,
) -> Minibatch:
    r"""Estimate the gradient from a batch of rows.

    .. math:: \hat g(x) = \nabla \log p_0(x) + \frac{N}{B} \sum_{i \in b} \nabla \log p_i(x)

    for every subsampled plate of the model; rows of several plates are drawn independently. Its
    mean is the gradient, and its covariance, of order :math:`N^2 / B`, heats the chain: see
    `langevin_ppl.diagnostics.gradient_noise`.

    Parameters
    ----------
    batch_size
        ``B``, or one for each plate, ``{"row": 256}``; by default the ``subsample_size`` that the
        model asks for.
    sampling
        ``"blocks"``: a block of rows, shuffled once, that starts anywhere; two to five times
        faster than gathering single rows, where the model reads its data by
        ``numpyro.subsample``. ``"epochs"``: every block once in an epoch, in an order that the
        step counter alone determines, the same for all chains. ``"replacement"``, ``"without"``:
        single rows, drawn anew in every step with or without replacement.
    shared
        Whether all chains of a run see the same rows, which costs less for each of them. Their
        errors are then correlated, which R-hat does not see.
    seed
        Of the order of shuffled rows and of epochs.

    Returns
    -------
    Minibatch
        A function from a target to its estimator: for ``gradient=`` of `langevin_ppl.sample`, or
        ``target.gradient(...)``.

    Raises
    ------
    ValueError
        If ``sampling`` is not known; when applied, if the target has no subsampled plate or the
        batch is larger than the plate.

    References
    ----------
    Welling, Teh, *Bayesian learning via stochastic gradient Langevin dynamics* (2011).

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> import langevin_ppl as lp
    >>> def model(y):
    ...     mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
    ...     with numpyro.plate("row", 1000, subsample_size=50):
    ...         numpyro.sample("y", dist.Normal(mean, 1.0), obs=numpyro.subsample(y, event_dim=0))
    >>> target = lp.target(model, jnp.linspace(-1.0, 2.0, 1000))
    >>> algorithm = lp.sgld(target.gradient(lp.minibatch(100)), step_size=1e-4)
    >>> state = algorithm.init({"mean": jnp.zeros(())}, jax.random.key(0))
    >>> state, info = jax.jit(algorithm.step)(jax.random.key(1), state)
    """
    check_sampling("minibatch", sampling)
    return Minibatch(_frozen(batch_size), sampling, bool(shared), int(seed))


def _frozen(batch_size: Any) -> Any:
    return dict(batch_size) if isinstance(batch_size, Mapping) else batch_size

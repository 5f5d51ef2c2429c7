"""The gradient from a batch of rows, corrected at a point of the chain that is renewed."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from langevin_ppl.base import Array, Estimate, GradientEstimator, Position, PRNGKey
from langevin_ppl.gradients.control_variates import about, whole_estimate
from langevin_ppl.gradients.minibatch import check_sampling, value_and_grad
from langevin_ppl.gradients.rows import Draw, Reader, batch_sizes_of, read, reader_of

__all__ = ["Svrg", "svrg"]


class Anchor(NamedTuple):
    """A point of the chain, with log density and gradient of all the data there."""

    position: Position
    estimate: Estimate


class _Batch(NamedTuple):
    """Rows of the step, and whether the anchor is renewed in it."""

    rows: dict[str, Array]
    renews: Array


def _anchor(on_rows: Any, reader: Reader, position: Position) -> Anchor:
    return Anchor(position, whole_estimate(on_rows, reader, position))


@dataclasses.dataclass(frozen=True)
class _Draw:
    every: int

    def __call__(self, draw: Any, rng_key: PRNGKey, step: Array) -> _Batch:
        return _Batch(draw(rng_key, step), step % self.every == 0)


def _estimate(
    on_rows: Any, reader: Reader, batch: _Batch, position: Position, memory: Anchor
) -> tuple[Estimate, Anchor]:
    # In a run, `renews` is one number for all chains, so that this stays a branch under vmap.
    memory = jax.lax.cond(batch.renews, lambda: _anchor(on_rows, reader, position), lambda: memory)
    rows = read(reader, batch.rows)
    here = value_and_grad(lambda x: on_rows(rows, x), position)
    there = value_and_grad(lambda x: on_rows(rows, x), memory.position)
    move = jax.tree.map(jnp.subtract, position, memory.position)
    return about(memory.estimate, here, there, move), memory


@dataclasses.dataclass(frozen=True)
class Svrg:
    """What `svrg` makes: a function from a target to an estimator."""

    batch_size: Any
    every: int
    sampling: str
    shared: bool
    seed: int

    def reader(self, target: Any) -> Reader:
        """Make the rows of a target ready."""
        if target.stream is not None:
            raise ValueError(
                "svrg: looks at all rows again and again, and those of a stream are not in memory. "
                "Use langevin_ppl.control_variates, which does so once, or langevin_ppl.minibatch."
            )
        sizes = batch_sizes_of("svrg", target, self.batch_size)
        return reader_of(target, sizes, self.sampling, self.seed)

    def __call__(self, target: Any, reader: Reader | None = None) -> GradientEstimator:
        """Make the estimator of a target."""
        reader = self.reader(target) if reader is None else reader
        on_rows = target.batch_logdensity_fn
        return GradientEstimator(
            init=Partial(_anchor, on_rows, reader),
            draw=Partial(_Draw(self.every), Draw.of(reader)),
            estimate=Partial(_estimate, on_rows, reader),
            exact=False,
            logdensity_fn=target.logdensity_fn,
            shared=self.shared,
        )

    def __str__(self) -> str:
        size = "" if self.batch_size is None else f"{self.batch_size}, "
        return f"svrg({size}every={self.every}, sampling='{self.sampling}', shared={self.shared})"


def svrg(
    batch_size: int | Mapping[str, int] | None = None,
    *,
    every: int = 100,
    sampling: str = "blocks",
    shared: bool = False,
    seed: int = 0,
) -> Svrg:
    r"""Estimate the gradient from a batch of rows and an anchor that follows the chain.

    As `control_variates`, with the chain's own position as the centre, renewed with a gradient of
    all the data every so many steps: for targets without a mode to stay close to.

    Parameters
    ----------
    batch_size, sampling, shared, seed
        As in `minibatch`.
    every
        Steps between two renewals.

    Returns
    -------
    Svrg
        A function from a target to its estimator: for ``gradient=`` of `langevin_ppl.sample`, or
        ``target.gradient(...)``.

    Raises
    ------
    ValueError
        If ``every`` is not a positive integer, or ``sampling`` is not known.

    Notes
    -----
    In `langevin_ppl.sample` all chains renew in the same step, and all other steps are spared the
    gradient of all the data. Under a ``jax.vmap`` of your own over states both branches are
    computed in every step.

    References
    ----------
    Dubey, Reddi, Poczos, Smola, Xing, Williamson, *Variance reduction in stochastic gradient
    Langevin dynamics* (2016), the variant SVRG-LD.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
    >>> import langevin_ppl as lp
    >>> def model(y):
    ...     mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
    ...     with numpyro.plate("row", 1000, subsample_size=50):
    ...         numpyro.sample("y", dist.Cauchy(mean, 1.0), obs=numpyro.subsample(y, event_dim=0))
    >>> target = lp.target(model, jnp.linspace(-1.0, 2.0, 1000))
    >>> algorithm = lp.sgld(target.gradient(lp.svrg(every=20)), step_size=1e-4)
    >>> state = algorithm.init({"mean": jnp.zeros(())}, jax.random.key(0))
    >>> state, info = jax.jit(algorithm.step)(jax.random.key(1), state)
    """
    check_sampling("svrg", sampling)
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"svrg: expected every to be a positive integer, got {every!r}.")
    return Svrg(batch_size, every, sampling, bool(shared), int(seed))

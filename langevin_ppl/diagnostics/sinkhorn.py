"""Sinkhorn divergence: optimal transport between two sets of samples, regularised."""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array, check_number
from langevin_ppl.diagnostics.samples import check_samples, extent

__all__ = ["SinkhornDivergence", "sinkhorn_divergence"]

RELATIVE_EPSILON = 0.05
"""Regularisation in units of the mean cost, as large as ott's in units of its spread."""

THRESHOLD = 1e-3
"""Error of the marginals (the sum of absolute differences) at which Sinkhorn's iteration stops."""

MAX_ITERATIONS = 10_000
"""Iterations of Sinkhorn at most; a small epsilon needs about as many as its inverse."""

IN_MEMORY = 2**24
"""Pairs whose costs are kept; of more they are computed anew in every iteration, by rows."""

ROWS = 256
"""So many rows at a time."""


class SinkhornDivergence(NamedTuple):
    """A Sinkhorn divergence.

    Attributes
    ----------
    value
        The divergence, in squared units of the samples.
    epsilon
        Its regularisation, in squared units as well.
    converged
        Whether the iterations of all its three terms came to an end; if not, the value is not to
        be trusted.
    """

    value: float
    epsilon: float
    converged: bool


def sinkhorn_divergence(x: Any, y: Any, *, epsilon: float | None = None) -> SinkhornDivergence:
    r"""Sinkhorn divergence of two sets of samples: optimal transport that is regularised.

    With :math:`\mathrm{OT}_\epsilon` the least mean of the squared Euclidean distance plus
    :math:`\epsilon` times the relative entropy of a coupling to the independent one, it is

    .. math:: \mathrm{OT}_\epsilon(x, y) - \tfrac12 \mathrm{OT}_\epsilon(x, x)
        - \tfrac12 \mathrm{OT}_\epsilon(y, y) ,

    zero for equal sets and positive for others. It goes to the squared Wasserstein distance
    :math:`W_2^2` for small :math:`\epsilon`, and to the squared distance of the means for large.

    Parameters
    ----------
    x, y
        Samples, ``[n, *event]`` and ``[m, *event]``, at least two of each; events are flattened.
    epsilon
        Regularisation, in squared units of the samples. By default 0.05 times the mean squared
        distance of the samples of one set from those of the other. Name one to compare several
        sets with the same reference: by default each has its own.

    Returns
    -------
    SinkhornDivergence
        ``value``, ``epsilon`` and ``converged``.

    Raises
    ------
    ImportError
        If ott-jax is not installed.
    ValueError
        If there are fewer than two samples, events differ in shape, values are not finite, or
        epsilon is not positive.

    Notes
    -----
    It is between the two sets as they are, and so above that of their distributions. It has no
    standard error: compare with that of two sets of reference draws.

    Iterations stop at an error of the marginals of 0.001, which has moved values by no more than
    that part of them. Of more than 4096 samples costs are not kept but computed anew in every
    iteration, so that memory is linear in their number: ten thousand on each side, in ten
    dimensions, took a minute on two cores.

    References
    ----------
    Genevay, Peyré, Cuturi, *Learning generative models with Sinkhorn divergences* (2018),
    arXiv:1706.00292; Feydy, Séjourné, Vialard, Amari, Trouvé, Peyré, *Interpolating between
    optimal transport and MMD using Sinkhorn divergences* (2019), arXiv:1810.08278.

    Examples
    --------
    >>> import jax, langevin_ppl as lp
    >>> x = jax.random.normal(jax.random.key(0), (200, 3))
    >>> found = lp.diagnostics.sinkhorn_divergence(x, x + 1.0)
    >>> round(found.value, 2), found.converged
    (3.0, True)
    """
    if epsilon is not None:
        check_number("sinkhorn_divergence: epsilon", epsilon, above=0.0)
    one, other = check_samples("sinkhorn_divergence", x=x, y=y)
    solve = _solver()
    unit = extent(one, other)
    one, other = one / unit, other / unit
    spread = float(np.sum(one.var(axis=0) + other.var(axis=0)))
    mean_cost = spread + float(np.sum((one.mean(axis=0) - other.mean(axis=0)) ** 2))
    # Where all samples are one point any regularisation will do.
    scaled = RELATIVE_EPSILON * (mean_cost or 1.0) if epsilon is None else float(epsilon) / unit**2
    kept = max(len(one), len(other)) ** 2 <= IN_MEMORY
    value, converged = solve(jnp.asarray(one), jnp.asarray(other), scaled, kept=kept)
    return SinkhornDivergence(unit**2 * float(value), unit**2 * scaled, bool(converged))


@functools.cache
def _solver() -> Any:
    """Program that computes a divergence by ott, which is imported at its first use."""
    try:
        with warnings.catch_warnings():
            # Its import of jaxopt says that jaxopt is no longer maintained.
            warnings.filterwarnings("ignore", "JAXopt", DeprecationWarning)
            from ott.geometry.pointcloud import PointCloud
            from ott.tools.sinkhorn_divergence import sinkhorn_divergence as divergence
    except ImportError as error:
        raise ImportError(
            "sinkhorn_divergence: needs ott-jax, which is not installed. "
            "pip install 'langevin-ppl[transport]'"
        ) from error

    @jax.tree_util.register_pytree_node_class
    class ByRows(PointCloud):
        """A point cloud whose costs are never kept; ott 0.6's own does not work with JAX 0.12."""

        def apply_lse_kernel(
            self, f: Array, g: Array, eps: Any, vec: Array | None = None, axis: int = 0
        ) -> tuple[Array, Array]:
            points = (self.y, self.x) if axis == 0 else (self.x, self.y)
            return _log_sums(*points, *((g, f) if axis == 0 else (f, g)), eps, vec)

    @functools.partial(jax.jit, static_argnames="kept")
    def solve(x: Array, y: Array, epsilon: Array, *, kept: bool) -> tuple[Array, Array]:
        options = {"threshold": THRESHOLD, "max_iterations": MAX_ITERATIONS}
        kind, rows = (PointCloud, None) if kept else (ByRows, ROWS)
        value, found = divergence(
            kind, x, y, epsilon=epsilon, batch_size=rows, solve_kwargs=options
        )
        return value, jnp.all(jnp.asarray(found.converged))

    return solve


def _log_sums(
    here: Array, there: Array, ours: Array, theirs: Array, eps: Any, weights: Array | None
) -> tuple[Array, Array]:
    """Sinkhorn's soft minimum of costs less potentials, for each point here, with its sign."""
    norms = jnp.sum(there**2, axis=1)

    def one(row: tuple[Array, Array]) -> tuple[Array, Array]:
        point, potential = row
        inner = jnp.dot(there, point, precision=jax.lax.Precision.HIGHEST)
        exponents = (theirs + potential - (norms - 2.0 * inner + point @ point)) / eps
        value, sign = jax.nn.logsumexp(exponents, b=weights, return_sign=True)
        return eps * value - jnp.where(jnp.isfinite(potential), potential, 0.0), sign

    return jax.lax.map(one, (here, ours), batch_size=ROWS)

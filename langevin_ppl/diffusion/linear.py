"""Solvers whose steps are linear in the sample, the clean data predicted, and the noise.

Nearly all solvers of diffusions are: what tells them apart is a table of numbers, computed in
double precision on the host.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array, PRNGKey
from langevin_ppl.diffusion.sampler import Plan
from langevin_ppl.scores.process import NoiseProcess
from langevin_ppl.scores.score import Score

__all__ = ["Carry", "Linear", "Row", "Table", "plan_of"]


class Row(NamedTuple):
    r"""Coefficients of a row.

    With the sample :math:`x`, the anchor :math:`a`, what was kept of earlier rows :math:`m_1, m_2,
    \ldots` from the newest to the oldest, and standard normal :math:`z, z'`:

    .. math::
        \hat x = k x + c z', \quad m_0 = D(\hat x, t), \quad
        x' = A \hat x + B a + \sum_j C_j m_j + s z, \quad
        a' = A' \hat x + B' a + \sum_j C'_j m_j , \quad
        m_1' = p \hat x + q m_0 + \mu m_1 .

    What is kept is the predicted datum (:math:`p = \mu = 0, q = 1`), the predicted noise, or an
    average.

    Attributes
    ----------
    time
        ``t``, where the model is evaluated.
    scale, churn
        ``k`` and ``c``: what is done to the sample before.
    sample, anchor, outputs
        ``A``, ``B``, ``C_j``.
    noise
        ``s``: standard deviation of the noise added after.
    next_sample, next_anchor, next_outputs
        ``A'``, ``B'``, ``C'_j``, of the anchor.
    kept_sample, kept_output, kept_before
        ``p``, ``q``, ``mu``.
    """

    time: Any
    scale: Any
    churn: Any
    sample: Any
    anchor: Any
    outputs: Any
    noise: Any
    next_sample: Any
    next_anchor: Any
    next_outputs: Any
    kept_sample: Any
    kept_output: Any
    kept_before: Any


class Table:
    """Rows under construction in double precision: zero at first, with ``k = q = 1``.

    Attributes of ``row`` are those of `Row` with a leading axis ``row``; ``outputs`` and
    ``next_outputs`` have a second one, from the newest to the oldest.

    Parameters
    ----------
    num_rows
        How many rows.
    history
        How many outputs a row reads, the newest included.
    """

    def __init__(self, num_rows: int, history: int = 1):
        shapes = dict.fromkeys(Row._fields, (num_rows,))
        shapes |= dict.fromkeys(("outputs", "next_outputs"), (num_rows, history))
        self.row = Row(**{name: np.zeros(shape) for name, shape in shapes.items()})
        self.row.scale[:] = self.row.kept_output[:] = 1.0

    def read_noise(self, process: NoiseProcess, momentum: Any = 0.0) -> None:
        r"""Take the outputs that coefficients were written for as noise, and keep the noise.

        The noise is :math:`\varepsilon = (\hat x - \alpha D) / \sigma` or, with momentum, its
        average :math:`v = (1 - \mu) \varepsilon + \mu v_1`. It is substituted here because the
        terms in :math:`\hat x` nearly cancel, which single precision would not survive.
        """
        row = self.row
        noise = (1.0 - momentum) / process.sigma(row.time)
        row.kept_sample[:], row.kept_before[:] = noise, momentum
        row.kept_output[:] = -noise * process.alpha(row.time)
        for sample, outputs in (row.sample, row.outputs), (row.next_sample, row.next_outputs):
            newest = outputs[:, 0].copy()
            sample += newest * row.kept_sample
            outputs[:, 0] = newest * row.kept_output
            if np.any(momentum):
                outputs[:, 1] += newest * row.kept_before


class Carry(NamedTuple):
    """One sample on its way.

    Attributes
    ----------
    sample
        Where it is.
    anchor
        Where it was, for methods that go back there; ``()`` for others.
    outputs
        What was kept of earlier rows, newest first.
    """

    sample: Array
    anchor: Any
    outputs: tuple[Array, ...]


@dataclasses.dataclass(frozen=True)
class Linear:
    """Mover of a table.

    Parameters
    ----------
    history
        How many outputs a row reads, the newest included.
    anchored, churned, noisy
        Whether anchors, scale and noise before, and noise after are used at all.
    mixed, averaged
        Whether what is kept depends on the sample, and on what was kept before.
    """

    history: int = 1
    anchored: bool = False
    churned: bool = False
    noisy: bool = False
    mixed: bool = False
    averaged: bool = False

    def init(self, x: Array) -> Carry:
        """Carry of one sample that starts at ``x``, with nothing kept."""
        return Carry(x, x if self.anchored else (), (jnp.zeros_like(x),) * (self.history - 1))

    def step(self, score: Score, condition: Any, rng_key: PRNGKey, carry: Carry, row: Row) -> Carry:
        """Move one sample by a row."""
        x = carry.sample
        if self.churned:
            key_churn, rng_key = jax.random.split(rng_key)
            x = row.scale * x + row.churn * jax.random.normal(key_churn, x.shape, x.dtype)
        return self.move(score.denoise(x, row.time, condition), x, rng_key, carry, row)

    def move(self, newest: Array, x: Array, rng_key: PRNGKey, carry: Carry, row: Row) -> Carry:
        """Move one sample by a row, from ``x`` and the datum that is predicted there."""
        before = carry.outputs
        outputs = (newest, *before)
        moved = _combined(row.sample, x, row.outputs, outputs)
        anchor: Any = ()
        if self.anchored:
            moved = moved + row.anchor * carry.anchor
            anchor = row.next_anchor * carry.anchor
            anchor = anchor + _combined(row.next_sample, x, row.next_outputs, outputs)
        if self.noisy:
            moved = moved + row.noise * jax.random.normal(rng_key, x.shape, x.dtype)
        if self.mixed:
            newest = row.kept_sample * x + row.kept_output * newest
        if self.averaged:
            newest = newest + row.kept_before * before[0]
        return Carry(moved, anchor, (newest, *before)[: len(before)])

    def read(self, carry: Carry) -> Array:
        """Get the sample of a carry."""
        return carry.sample


def _combined(factor: Array, x: Array, factors: Array, outputs: tuple[Array, ...]) -> Array:
    total = factor * x
    for j, output in enumerate(outputs):
        total = total + factors[j] * output
    return total


def plan_of(table: Table, times: np.ndarray, is_node: np.ndarray | None = None) -> Plan:
    """Plan of a table, whose mover does what the table has coefficients for.

    Parameters
    ----------
    times
        Nodes of the trajectory, the start included.
    is_node
        Whether a row ends at a node; all do by default.
    """
    row = table.row
    num_rows, history = row.outputs.shape
    back = row.anchor, row.next_sample, row.next_anchor, row.next_outputs
    mover = Linear(
        history,
        anchored=any(np.any(part) for part in back),
        churned=bool(np.any(row.churn)),
        noisy=bool(np.any(row.noise)),
        mixed=history > 1 and bool(np.any(row.kept_sample)),
        averaged=bool(np.any(row.kept_before)),
    )
    is_node = np.ones(num_rows, bool) if is_node is None else is_node
    return Plan(mover, row, times, is_node, num_rows)

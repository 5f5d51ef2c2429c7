"""What a sampler is: a plan of rows for a process, and a mover that carries out one of them."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from langevin_ppl.base import Array, PRNGKey
from langevin_ppl.loop import march
from langevin_ppl.scores.process import NoiseProcess
from langevin_ppl.scores.score import Score

__all__ = ["Mover", "Plan", "Sampler", "advance", "begin", "simulate"]


class Mover(Protocol):
    """Carries out a row; hashable, because it is static in compiled programs.

    Everything that depends on the process or on the number of steps is in the rows, so that
    samplers with movers that are equal share one program.
    """

    def init(self, x: Array) -> Any:
        """Make the carry of one sample that starts at ``x``."""
        ...

    def step(self, score: Score, condition: Any, rng_key: PRNGKey, carry: Any, row: Any) -> Any:
        """Move one sample by a row."""
        ...

    def read(self, carry: Any) -> Array:
        """Get the sample of a carry."""
        ...


class Plan(NamedTuple):
    """What a sampler does with a process.

    Attributes
    ----------
    mover
        Carries out the rows.
    rows
        Pytree of arrays in double precision with leading axis ``row``.
    times
        Nodes of the trajectory, the start included, ``[node]``.
    is_node
        Whether a row ends at a node, ``[row]``.
    num_evaluations
        Evaluations of the score for one sample; where samples differ, the function that reads
        those of one from its carry at the end.
    """

    mover: Mover
    rows: Any
    times: np.ndarray
    is_node: np.ndarray
    num_evaluations: int | Callable[[Any], Array]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A way from noise to data, by a score. Made by functions such as `dpm_solver_pp`.

    Parameters
    ----------
    name
        Name of the function that made it.
    planner
        ``planner(process, start, **options) -> Plan``.
    options
        Its options, sorted.
    adds_noise
        Whether it adds noise on the way; then the process must be Gaussian.
    """

    name: str
    planner: Callable[..., Plan]
    options: tuple[tuple[str, Any], ...]
    adds_noise: bool

    @classmethod
    def of(
        cls, name: str, planner: Callable[..., Plan], *, adds_noise: bool, **options: Any
    ) -> "Sampler":
        """Make a sampler, of options that its function has checked."""
        return cls(name, planner, tuple(sorted(options.items())), adds_noise)

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.options)})"

    def plan(self, process: NoiseProcess, start: float | None = None) -> Plan:
        """Plan the way from ``start``, ``t_max`` by default.

        Raises
        ------
        ValueError
            If the sampler does not fit the process, or the time is outside of its interval.
        """
        if self.adds_noise and not process.gaussian:
            raise ValueError(
                f"sampler: {self.name} adds Gaussian noise, and that of {process} is not Gaussian. "
                "Use a sampler of the flow: heun, dpm_solver_pp, deis, unipc, ipndm, ghvb or "
                "probability_flow."
            )
        return self.planner(process, start, **dict(self.options))


def begin(
    mover: Mover, process: NoiseProcess, event_shape: tuple[int, ...], rng_keys: Array, x: Any
) -> tuple[Any, Array]:
    """Carries and keys of samples, by the keys of each; from noise where ``x`` is None."""
    keys = jax.vmap(jax.random.split)(rng_keys)
    if x is None:
        dtype = jnp.result_type(float)
        draw = jax.vmap(lambda key: process.noise(key, event_shape, len(event_shape), dtype))
        x = process.sigma(process.t_max) * draw(keys[:, 0])
    return jax.vmap(mover.init)(x), keys[:, 1]


def advance(
    mover: Mover,
    score: Score,
    condition: Any,
    rows: Any,
    keys: Array,
    carry: Any,
    start: Any,
    count: Any,
    capacity: int,
    record: bool,
) -> tuple[Any, Any]:
    """Carry out ``count`` rows from ``start`` with all samples; to be called inside ``jit``.

    Returns
    -------
    carry, path
        The samples after each row with leading axis ``capacity``, or ``()`` without ``record``.
    """
    # One condition for all is not copied: what a network computes of it is computed once.
    axes = 0, 0, score.axis_of(condition)

    def move(carry: Any, keys: Array, row: Any) -> Any:
        def one(carry: Any, key: PRNGKey, condition: Any) -> Any:
            return mover.step(score, condition, key, carry, row)

        return jax.vmap(one, axes)(carry, keys, condition)

    def read(carry: Any) -> Any:
        return jax.vmap(mover.read)(carry) if record else ()

    return march(move, carry, keys, rows, start, count, capacity, read)


def simulate(score: Score, sampler: Sampler, rng_keys: Array, condition: Any = None) -> Array:
    """Samples by keys ``[sample]``, in the coordinates of the process; for use inside ``jit``."""
    plan = sampler.plan(score.process)
    carry, keys = begin(plan.mover, score.process, score.event_shape, rng_keys, None)
    rows = jax.tree.map(lambda a: in_precision(a), plan.rows)
    num_rows = len(plan.is_node)
    carry, _ = advance(
        plan.mover, score, condition, rows, keys, carry, 0, num_rows, num_rows, False
    )
    return jax.vmap(plan.mover.read)(carry)


def in_precision(rows: np.ndarray) -> Array:
    """Coefficients in the precision of the samples; integers as they are."""
    floating = np.issubdtype(rows.dtype, np.floating)
    return jnp.asarray(rows, jnp.result_type(float) if floating else rows.dtype)

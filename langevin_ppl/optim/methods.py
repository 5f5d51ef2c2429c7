"""What a method is: how particles begin, and how they move."""

from typing import Any, NamedTuple, Protocol

from langevin_ppl.base import Array, Position, PRNGKey

__all__ = ["Method", "Stepped"]


class Stepped(NamedTuple):
    """What a step of all particles gives.

    Attributes
    ----------
    state
        Of the method.
    points, values
        Points that were evaluated, leading axis ``particle``, and the objective there.
    failed
        Particles that can't go on, ``[particle]``.
    """

    state: Any
    points: Position
    values: Array
    failed: Array


class Method(Protocol):
    """How particles move; a pytree, whose arrays are arguments of the compiled program."""

    def check(self, starts: Position) -> None:
        """Refuse, or warn of, what cannot work from these starts, leading axis ``particle``."""
        ...

    def evaluations(self, num_particles: int) -> tuple[int, int]:
        """Values and gradients of the objective in a step."""
        ...

    def init(self, rng_key: PRNGKey, fn: Any, starts: Position) -> Any:
        """State of all particles."""
        ...

    def step(self, rng_key: PRNGKey, fn: Any, state: Any) -> Stepped:
        """Evaluate where the particles are, and move them."""
        ...

    def positions(self, state: Any) -> Position:
        """Where the particles are, leading axis ``particle``."""
        ...

"""A column of a stream as the model's argument, and what stands for it in compiled code."""

import dataclasses
import math
from typing import Any, NoReturn

import jax
import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

__all__ = ["Absent", "Column"]


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
    """A column of a stream: an argument of a model in the place of an array. A pytree leaf.

    Attributes
    ----------
    shape, dtype
        Of all rows, ``[row, ...]``, and the dtype with which they reach the device.
    name
        Its keyword, or its number as a string.
    number
        Its place in ``stream.columns`` and in what is gathered.
    stream
        The `Stream`.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    name: str
    number: int
    stream: Any = dataclasses.field(repr=False)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class Absent(NDArrayOperatorsMixin):
    """What a model sees in the place of a column: its shape, but no rows.

    A pytree without leaves, hashed and compared by content, so that it is a static part of
    compiled code.

    Attributes
    ----------
    shape, dtype
        Of all rows.
    name
        Name of the column, for errors.

    Raises
    ------
    TypeError
        Where it is used as an array.

    Examples
    --------
    >>> import numpy as np
    >>> from langevin_ppl.streams import Absent
    >>> absent = Absent((1_000_000, 3), np.dtype("float32"), "X")
    >>> len(absent), absent.ndim
    (1000000, 2)
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    name: str

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Absent):
            return _content(self) == _content(other)
        if isinstance(other, bool | int | float | complex | np.generic | np.ndarray | jax.Array):
            self._refuse()
        return NotImplemented

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(_content(self))

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(self._message())

    def _message(self) -> str:
        return (
            f"The rows of column '{self.name}' are read from a stream and are not in memory; read "
            "them by numpyro.subsample(X, event_dim=...) inside their plate."
        )

    # NumPy's operators call the first of these, JAX the second.
    __array_ufunc__ = __jax_array__ = __array__ = __getitem__ = __iter__ = _refuse

    def __getattr__(self, name: str) -> NoReturn:
        # Copying and protocols ask for dunder attributes, before there may be a name to tell.
        if name.startswith("__") or not hasattr(jax.Array, name):
            raise AttributeError(f"'Absent' object has no attribute '{name}'")
        raise AttributeError(f"{name}: {self._message()}")


def _content(absent: Absent) -> tuple[Any, ...]:
    return absent.shape, absent.dtype, absent.name


jax.tree_util.register_pytree_node(
    Absent,
    lambda absent: ((), _content(absent)),
    lambda content, _: Absent(*content),
)

"""Names of variables and dimensions in a DataTree, no two of which are the same."""

from collections.abc import Iterable, Mapping, Sequence, Set

from langevin_ppl.tree import numbered

__all__ = ["distinct_dims", "distinct_names", "safe_dim", "safe_name"]

RESERVED = {"chain", "draw"}
"""Names of ArviZ's own dimensions."""


def safe_name(name: str) -> str:
    """Name of a variable in a DataTree, where a slash separates groups."""
    return f"{name}_site" if name in RESERVED else name.replace("/", ".")


def safe_dim(label: str) -> str:
    """Name of a dimension in a DataTree."""
    return f"{label}_dim" if label in RESERVED else label.replace("/", ".")


def distinct_names(names: Iterable[str]) -> dict[str, str]:
    """Name the variables of a DataTree.

    Parameters
    ----------
    names
        Names of sites, or of the leaves of a position.

    Returns
    -------
    dict
        Names of variables by these names. A name that a DataTree takes stays as it is; of two
        others that would become one, the later one is numbered.
    """
    names = list(dict.fromkeys(names))
    taken = {name for name in names if safe_name(name) == name}
    found = {}
    for name in names:
        if safe_name(name) == name:
            found[name] = name
            continue
        found[name] = next(n for n in numbered(safe_name(name)) if n not in taken)
        taken.add(found[name])
    return found


def distinct_dims(
    labels: Mapping[str, Sequence[str | None]],
    shapes: Mapping[str, tuple[int, ...]],
    variables: Set[str],
    sizes: dict[str, int],
) -> dict[str, list[str]]:
    """Name every axis of every variable.

    A label that is the name of a variable gets the ending ``_dim``. One that has another size
    already, or that the variable has already, is numbered.

    Parameters
    ----------
    labels
        Labels of the first axes of variables; None for an axis without one.
    shapes
        Shapes of all variables, without chain and draw.
    variables
        Names of all variables.
    sizes
        Sizes of dimensions so far; those that are new are added.
    """
    found = {}
    for name, shape in shapes.items():
        given = labels.get(name, ())
        dims: list[str] = []
        for axis, size in enumerate(shape):
            label = given[axis] if axis < len(given) else None
            dim = safe_dim(label or f"{name}_dim_{axis}")
            dim = f"{dim}_dim" if dim in variables else dim
            free = (d for d in numbered(dim) if d not in dims and d not in variables)
            dims.append(next(d for d in free if sizes.setdefault(d, size) == size))
        found[name] = dims
    return found

"""The layers: a room imports only from rooms above it in this table."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "langevin_ppl"

LAYERS = [
    {"base", "compilation", "devices", "tree"},
    {"taming", "preconditioners", "integrators", "metropolis", "streams"},
    {"targets", "gradients"},
    {"kernels"},
    {"loop"},
    {"fit"},
    {"supply"},
    {"run"},
    {"warmup"},
    {"convergence"},
    {"checkpoints"},
    {"scores", "optim"},
    {"diffusion"},
    {"distributions"},
    {"export"},
    {"arguments", "infer"},
    {"approximation", "annealing"},
    {"findings"},
    {"trust"},
    {"verdict"},
    {"sampling"},
    {"energy"},
    {"diagnostics"},
]
LAYER = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
INSIDE_A_LAYER = {("tree", "base")}

# Who alone may import a library that is heavy, optional or somebody's own matter.
ONLY_IN = {
    "numpyro": {"annealing", "distributions", "energy", "infer", "targets"},
    "arviz_base": {"export"},
    "arviz": set(),
    "arviz_stats": {"approximation"},
    "optax": {"fit", "optim"},
    "equinox": {"scores"},
    "diffrax": {"diffusion"},
    "ott": {"diagnostics"},
}


def rooms():
    """Every file with the name of its room."""
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        if relative.name != "__init__.py" or len(relative.parts) > 1:
            yield relative.parts[0].removesuffix(".py"), path


def imported_modules(path):
    """Dotted names of all modules that a file imports, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "langevin_ppl":
                yield from (f"langevin_ppl.{alias.name}" for alias in node.names)


def test_every_room_has_a_layer():
    assert {room for room, _ in rooms()} == set(LAYER)


@pytest.mark.parametrize(("room", "path"), list(rooms()), ids=lambda v: getattr(v, "name", v))
def test_imports_go_up_the_layers(room, path):
    for module in imported_modules(path):
        parts = module.split(".")
        if parts[0] != "langevin_ppl" or len(parts) == 1 or parts[1] not in LAYER:
            continue
        other = parts[1]
        allowed = other == room or LAYER[other] < LAYER[room] or (room, other) in INSIDE_A_LAYER
        # Gradients read targets through the contract in `base`, never the other way round.
        assert allowed, f"{path.name} in {room} imports {module}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_stay_in_their_rooms(library):
    users = {r for r, p in rooms() for m in imported_modules(p) if m.split(".")[0] == library}
    assert users <= ONLY_IN[library]


def test_import_is_light():
    """Only the lazy table is read: no library is imported before a name is used."""
    code = (
        "import sys, langevin_ppl; "
        "print([m for m in ('jax', 'numpyro', 'blackjax', 'arviz_base') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("room", ["diagnostics.bias", "export", "infer", "sampling"])
def test_numpyro_is_whole_whatever_is_imported_first(room):
    """ArviZ sets a lazy numpyro up, through which numpyro.infer loses its submodules."""
    code = f"import langevin_ppl.{room}, numpyro; print(hasattr(numpyro.infer, 'initialization'))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "True"


def test_no_public_name_is_hidden_by_a_module():
    """Importing a submodule sets its name in the package, where the table may mean a function."""
    code = (
        "import importlib, pkgutil, types, langevin_ppl as lp\n"
        "for module in pkgutil.walk_packages(lp.__path__, 'langevin_ppl.'):\n"
        "    importlib.import_module(module.name)\n"
        "print([n for n in lp.__all__ if isinstance(getattr(lp, n), types.ModuleType)])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_every_public_name_exists_and_is_documented():
    import langevin_ppl

    for name in langevin_ppl.__all__:
        assert getattr(langevin_ppl, name).__doc__, name
    assert set(langevin_ppl.__all__) == set(langevin_ppl._HOME)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = langevin_ppl.nothing

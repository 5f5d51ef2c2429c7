"""Where the tests find reference data, and how many compiled programs they keep."""

import gc
import os
from pathlib import Path

import jax
import pytest

DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def data_path() -> Path:
    """Folder of the reference posteriors; tests that need it skip where it is absent."""
    path = Path(os.environ.get("LANGEVIN_PPL_DATA", DEFAULT_DATA))
    if not path.is_dir():
        pytest.skip(f"no reference data at {path}; set LANGEVIN_PPL_DATA")
    return path


MAX_MAPS = 20_000
"""Memory maps of a process above which compiled programs are given up; Linux allows 65,530, and
XLA, which takes several for every program, aborts where there are no more."""


@pytest.fixture(autouse=True, scope="module")
def _give_up_programs():
    """Clear JAX's caches after a file of tests, when compiled programs have become many."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > MAX_MAPS:
        jax.clear_caches()
        gc.collect()

"""Where the tests find reference data."""

import os
from pathlib import Path

import pytest

DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def data_path() -> Path:
    """Folder of the reference posteriors; tests that need it skip where it is absent."""
    path = Path(os.environ.get("LANGEVIN_PPL_DATA", DEFAULT_DATA))
    if not path.is_dir():
        pytest.skip(f"no reference data at {path}; set LANGEVIN_PPL_DATA")
    return path

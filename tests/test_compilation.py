"""Compiling ahead of its use, and keeping what was compiled."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import langevin_ppl as lp
from langevin_ppl.compilation import ahead

compilations: list[str] = []


def _count(event, duration, *, fun_name="", **_):
    if event.endswith("backend_compile_duration"):
        compilations.append(fun_name)


jax.monitoring.register_event_duration_secs_listener(_count)


def test_what_is_compiled_ahead_is_not_compiled_again():
    traces = []

    @jax.jit
    def double(x, y):
        traces.append(x)
        return {"sum": x + y, "product": x * y}

    compilations.clear()
    values = jnp.arange(3.0), jnp.asarray(2.0)
    compilations.clear()
    shapes = jax.eval_shape(lambda *values: values, *values)
    for arguments in (shapes, values):
        result, wait = ahead(double, arguments, {})
        wait()
        assert jax.tree.map(lambda s: s.shape, result) == {"sum": (3,), "product": (3,)}
    np.testing.assert_array_equal(double(*values)["sum"], [2.0, 3.0, 4.0])
    assert len(traces) == 1
    assert compilations == ["jit(double)"]


def test_an_error_in_another_thread_is_raised_here():
    @jax.jit
    def broken(x):
        raise RuntimeError("my own message")

    with pytest.raises(RuntimeError, match="my own message"):
        ahead(broken, (jnp.zeros(2),), {})


SCRIPT = """
import sys, jax, jax.numpy as jnp
compiled, found = [], []
jax.monitoring.register_event_listener(
    lambda event, **_: found.append(event) if event.endswith("cache_hits") else None
)
import langevin_ppl as lp
lp.cache(sys.argv[1])
def logdensity(x):
    return -0.5 * jnp.sum(x**2)
lp.sample(jax.random.key(0), lp.density(logdensity, jnp.zeros(2)))
print(len(found))
"""


@pytest.mark.slow
def test_programs_are_kept_on_disk(tmp_path):
    folder = tmp_path / "made" / "here"

    def hits():
        arguments = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder)]
        shown = subprocess.run(arguments, capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr
        return int(shown.stdout)

    assert hits() == 0
    entries = {path.name for path in folder.iterdir() if not path.name.endswith("-atime")}
    for program in ("_chunk", "find", "begin"):
        assert any(program in name for name in entries), entries
    # Another process finds them all, and adds none.
    assert hits() >= 4
    assert entries == {path.name for path in folder.iterdir() if not path.name.endswith("-atime")}


def test_a_cache_is_a_folder(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    before = jax.config.jax_compilation_cache_dir
    with pytest.raises(NotADirectoryError, match="expected a folder, and .*file is a file"):
        lp.cache(file)
    assert file.read_text() == "mine"
    assert jax.config.jax_compilation_cache_dir == before

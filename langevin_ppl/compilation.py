"""Compilation, which is most of a small run: its options, its cache, and doing it in parallel."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding

__all__ = ["ONCE", "QUICK", "SEARCH", "ahead", "cache", "nested"]

QUICK = {"xla_backend_optimization_level": 1}
"""Options of XLA for programs that run long. Level 1 halves the compilation of a step, and was
measured to run about as fast as the default level on four models (0.7 to 1.16 of its times)."""

SEARCH = {**QUICK, "xla_disable_hlo_passes": "while-loop-invariant-code-motion"}
"""Options for loops inside loops that are left after some hundred steps. Hoisting what does not
change out of each of them was up to half of the compilation, and saved nothing measurable."""

ONCE = {"xla_backend_optimization_level": 0}
"""Options for a program that runs once and briefly: a third less to compile, and slower to run."""

_pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="langevin_ppl-compile")
_known: set[Any] = set()


def ahead(
    program: Any, arguments: tuple[Any, ...], options: dict[str, Any]
) -> tuple[Any, Callable[[], None]]:
    """Trace a jitted program now, and compile it while other work goes on.

    Tracing stays in this thread, because NumPyro's handlers are global; XLA compiles in another.
    The program's own cache is filled, so that it is then called as usual.

    Parameters
    ----------
    program
        A function wrapped by ``jax.jit``.
    arguments, options
        Arguments, or their ``jax.ShapeDtypeStruct`` s, and static keywords.

    Returns
    -------
    shapes, wait
        Shapes of the result, and a function that returns when the program is compiled.
    """
    leaves, structure = jax.tree.flatten(arguments)
    signature = tuple((jax.numpy.shape(x), getattr(x, "dtype", type(x))) for x in leaves)
    key = program, structure, signature, tuple(sorted(options.items())), jax.config.jax_enable_x64
    if key in _known:
        return program.eval_shape(*arguments, **options), lambda: None
    lowered = program.lower(*arguments, **options)
    # Other layouts over a mesh are other programs, and those of shapes alone have none.
    if any(isinstance(getattr(leaf, "sharding", None), NamedSharding) for leaf in leaves):
        return lowered.out_info, lambda: None
    _known.add(key)
    future: Future[Any] = _pool.submit(lowered.compile)
    return lowered.out_info, lambda: future.result() and None


@functools.cache
def nested(program: Any, **options: Any) -> Callable[..., Any]:
    """Get a jitted program with its static keywords, for use inside the trace of another.

    JAX takes options of the compiler at the top alone.
    """
    return jax.jit(functools.partial(program.__wrapped__, **options))


def cache(path: str | os.PathLike[str]) -> None:
    """Keep compiled programs on disk, so that a later process need not compile them again.

    Switches on JAX's persistent compilation cache for every program, however small. Tracing the
    model is not saved. The folder is JAX's own and may be deleted at any time.

    Parameters
    ----------
    path
        Folder; made if it does not exist. Programs are read from it and run, so it must not be
        writable by others.

    Raises
    ------
    NotADirectoryError
        If ``path`` is a file.

    Examples
    --------
    >>> import tempfile, langevin_ppl as lp
    >>> lp.cache(tempfile.mkdtemp())
    """
    folder = Path(path).expanduser()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"cache: expected a folder, and {folder} is a file.")
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

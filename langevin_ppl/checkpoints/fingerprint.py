"""What a run was made of: checksums of its data and of its log density."""

from typing import Any

import jax

from langevin_ppl.tree import Layout, checksum, program_checksum

__all__ = ["difference", "fingerprint"]

_SPOKEN = {
    "positions": "the latent variables (names, shapes or precision) differ",
    "data": "the data differ",
    "stream": "the stream differs (its data, batch size or order)",
    "density": (
        "the model differs, or the value of a static argument: its log density is another program"
    ),
    "differentiation": "forward_mode_differentiation differs",
}


def fingerprint(target: Any) -> dict[str, str]:
    """Checksums by what they are of; the same in every process.

    Of arrays all bytes are read. The log density is hashed as the program that JAX lowers it to, in
    which arrays that it closes over are constants.
    """
    layout = Layout.of(target.prototype)
    density = target.logdensity_fn
    if target.stream is not None:
        density = jax.tree_util.Partial(target.batch_logdensity_fn, target.some_rows(1))
    # A program is the same however it is differentiated.
    forward = target.options.forward_mode_differentiation
    lowered = jax.jit(lambda fn, x: fn(x)).lower(density, target.prototype)
    return {
        **({} if target.stream is None else {"stream": target.stream.fingerprint()}),
        "positions": f"{layout.treedef} {layout.leaves}",
        "data": checksum(target),
        "density": program_checksum(lowered),
        **({"differentiation": "forward"} if forward else {}),
    }


def difference(old: dict[str, str], new: dict[str, str]) -> str:
    """Say in what two fingerprints differ; nothing where they do not."""
    for name, spoken in _SPOKEN.items():
        if old.get(name) != new.get(name):
            return spoken
    return ""

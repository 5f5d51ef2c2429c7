"""Samplers at equal numbers of evaluations, by digits of MNIST that a learned score makes.

What `solver_quality_digits.py` measures, with 28 x 28 images of 256 grey levels: 9000 to learn
from and 1000 held out. They are read from the folder that the environment variable
LANGEVIN_PPL_DATA names, file ``mnist10k.npz`` with ``images`` ``[10000, 28, 28]``; where it is
absent, the benchmark is skipped.

    LANGEVIN_PPL_DATA=... python examples/benchmarks/solver_quality_mnist.py [--quick]
"""

import os
from pathlib import Path

import numpy as np
import solver_quality_digits
from common import parser

import langevin_ppl as lp


def load():
    """Images, or None where there are none."""
    root = os.environ.get("LANGEVIN_PPL_DATA")
    path = Path(root) / "mnist10k.npz" if root else None
    if path is None or not path.exists():
        return None
    with np.load(path) as file:
        return file["images"]


def main():
    options = parser(__doc__).parse_args()
    images = load()
    if images is None:
        print("solver_quality_mnist: skipped, because LANGEVIN_PPL_DATA has no images.")
        return None
    task = solver_quality_digits.Task(
        name="solver_quality_mnist",
        images=images,
        levels=256,
        num_held_out=1000,
        network=lp.scores.residual_mlp(width=512, depth=4),
        num_steps=6000,
    )
    return solver_quality_digits.main(task, options)


if __name__ == "__main__":
    main()

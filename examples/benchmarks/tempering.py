"""25 modes: parallel tempering against single chains and annealing, for the same gradients.

A mixture of 25 normals in 2 dimensions with equal weights, centres at all pairs of -4, -2, 0, 2, 4
and covariance 0.03 I (Zhang, Li, Zhang, Chen, Wilson 2020, arXiv:1902.03932): neighbours are 11.5
standard deviations apart. Every way is one call of ``lp.sample`` with its own warm-up, in float32,
and gets about the same number of gradient evaluations, warm-up included. A step of parallel
tempering takes one for each temperature.

- *Modes found*: those that at least a tenth of their share of draws is next to. Chains start
  uniformly within 2 of the origin, and ``lp.sample`` then searches for modes, so that single chains
  begin in the inner nine.
- *Total variation*: half the sum of the differences between the share of draws next to each centre
  and 1 / 25. It is about 0.06 for 1000 independent draws, 0.24 for 64, and 0.84 for four modes.
- *Flagged*: the attribute ``converged`` is 0.

    python examples/benchmarks/tempering.py [--quick]
"""

import itertools
import time
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import finish, goal, machine, parser

import langevin_ppl as lp

CENTRES = np.array(list(itertools.product((-4.0, -2.0, 0.0, 2.0, 4.0), repeat=2)))
VARIANCE = 0.03
TEMPERATURES = (1.0, 3.0, 9.0, 27.0)
SEEDS = 5
STEPS = 40_000  # of each of 4 single chains, warm-up included
CHAINS, MANY = 4, 64


def logdensity(x):
    return jax.scipy.special.logsumexp(-0.5 * jnp.sum((x - CENTRES) ** 2, axis=1) / VARIANCE)


class Way(NamedTuple):
    """A kernel, the number of its chains, and the steps of each: warm-up and draws."""

    name: str
    kernel: Any
    chains: int
    warmup: int
    samples: int


def ways(budget):
    """All of them, for ``4 * budget`` gradient evaluations."""
    chosen = []
    for name in ("mala", "ghmc", "baoab"):
        kernel = getattr(lp, name)
        warmup = min(1000, budget // 4)  # of single chains in both
        tempered, left = lp.parallel_tempering(kernel, TEMPERATURES), budget - warmup
        chosen += [
            Way(f"{name}, tempered", tempered, CHAINS, warmup, left // len(TEMPERATURES)),
            Way(name, kernel, CHAINS, warmup, left),
        ]
    steps = CHAINS * budget // MANY
    falling = 3 * steps // 8  # half of the warm-up; its other half tunes
    kernel = lp.annealed(lp.mala, start=TEMPERATURES[-1], num_steps=falling)
    chosen.append(Way("mala, annealed", kernel, MANY, 2 * falling, steps - 2 * falling))
    return chosen


def shares(draws):
    """Share of the draws next to each centre."""
    distances = ((draws.reshape(-1, 1, 2) - CENTRES) ** 2).sum(axis=-1)
    return np.bincount(distances.argmin(axis=1), minlength=len(CENTRES)) / len(distances)


def measure(way, target, seed):
    """One run: modes found, by all chains and by each, total variation, swap rates, and so on."""
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `converged` says it, and is counted
        idata = lp.sample(
            jax.random.key(seed),
            target,
            way.kernel,
            num_chains=way.chains,
            num_warmup=way.warmup,
            num_samples=way.samples,
        )
    seconds = time.perf_counter() - began
    draws = np.asarray(idata["posterior"]["x"].values, np.float64)
    least = 0.1 / len(CENTRES)
    everywhere = shares(draws)
    stats = idata["sample_stats"]
    swaps = np.nanmean(stats["swap_rate"].values, axis=(0, 1)) if "swap_rate" in stats else []
    return {
        "modes": int(np.sum(everywhere >= least)),
        "of each": float(np.mean([np.sum(shares(chain) >= least) for chain in draws])),
        "variation": float(0.5 * np.abs(everywhere - 1 / len(CENTRES)).sum()),
        "mean": float(np.abs(draws.mean(axis=(0, 1))).max() / np.sqrt(8.0 + VARIANCE)),
        "swaps": np.asarray(swaps),
        "flagged": not idata.attrs["converged"],
        "gradients": int(idata.attrs["num_gradient_evaluations"]),
        "seconds": seconds,
    }


def extremes(values, digits=2):
    """Median and range over seeds, as one cell."""
    return f"{np.median(values):.{digits}g} ({min(values):.{digits}g} to {max(values):.{digits}g})"


def row(way, runs):
    def column(name):
        return [run[name] for run in runs]

    return {
        "way": way.name,
        "chains x draws": f"{way.chains} x {way.samples:,}",
        "gradients": int(np.median(column("gradients"))),
        "modes found": extremes(column("modes")),
        "by each chain": extremes(column("of each")),
        "total variation": extremes(column("variation")),
        "worst mean, in sd": extremes(column("mean")),
        "swap rates": ", ".join(f"{x:.2f}" for x in np.mean(column("swaps"), axis=0)),
        "flagged": f"{sum(column('flagged'))} of {len(runs)}",
    }


def main():
    options = parser(__doc__).parse_args()
    host = machine()
    seeds, budget = (1, 2000) if options.quick else (SEEDS, STEPS)
    target = lp.density(logdensity, jnp.zeros(2))
    rows, found = [], {}
    for way in ways(budget):
        found[way.name] = [measure(way, target, seed) for seed in range(seeds)]
        rows.append(row(way, found[way.name]))
        print(rows[-1], flush=True)
    exact = [run for name in ("mala, tempered", "ghmc, tempered") for run in found[name]]
    silent = sum(
        run["modes"] < len(CENTRES) and not run["flagged"]
        for runs in found.values()
        for run in runs
    )
    goals = [
        goal(
            "modes missed by exact kernels, tempered, all seeds",
            sum(len(CENTRES) - run["modes"] for run in exact),
            0,
        ),
        goal(
            "total variation of exact kernels, tempered, worst seed",
            max(run["variation"] for run in exact),
            0.1,
        ),
        goal("runs that missed a mode and were not flagged", silent, 0),
    ]
    note = (
        f"Temperatures {', '.join(f'{t:g}' for t in TEMPERATURES)}; {seeds} seeds: median (range). "
        f"Annealing from {TEMPERATURES[-1]:g} over the first 3 of 8 steps of {MANY} short "
        "chains. Swap rates: of neighbouring temperatures, the lowest first. Gradients are those "
        "of all chains, search for the mode and warm-up included."
    )
    return finish(
        "tempering",
        options,
        host,
        precision="float32",
        tables={"25 modes": rows},
        goals=goals,
        notes=[note],
    )


if __name__ == "__main__":
    main()

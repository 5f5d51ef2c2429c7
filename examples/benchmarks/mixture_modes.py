"""25 modes and noisy gradients: cycles, replicas and flattened energies, for the same gradients.

The mixture of ``tempering.py``: 25 normals in 2 dimensions, equal weights, centres at all pairs of
-4, -2, 0, 2, 4, covariance 0.03 I. Log density and gradient are seen through the noise of a made-up
batch: a random function with a nearly Gaussian law, a sum of 16 cosines of random frequencies and
phases, is added to the log density, and its gradient to the gradient. It has standard deviation 2
and length 0.5, hence a standard deviation of 4 in each coordinate of the gradient; the gradient
itself is 5.8 a standard deviation away from a centre, and a barrier between neighbours is 16 high.

Every way gets the same number of evaluations of gradient or log density, counted over all chains.
Chains start uniformly within 5 of the origin. The first fifth of the steps is thrown away.

- *Modes found*: those that at least a tenth of their share of draws is next to, by all chains, and
  by each on average.
- *Total variation*: half the sum of the differences between the share of draws next to each centre
  and 1 / 25. Draws with weights have been resampled by ``lp.sample``.
- *Width*: standard deviation of draws about the nearest centre over the true one. Noise of the
  gradient and the step size make it larger than 1.

    python examples/benchmarks/mixture_modes.py [--quick]
"""

import time
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import finish, goal, machine, parser
from tempering import CENTRES, VARIANCE, extremes, logdensity, shares

import langevin_ppl as lp
from langevin_ppl.base import Estimate, GradientEstimator

SIZE, LENGTH, COSINES = 2.0, 0.5, 16
TEMPERATURES = (1.0, 3.0, 9.0, 27.0)
SEEDS, CHAINS, STEPS = 5, 4, 100_000
STEP_SIZE = 0.004
THINNING = 5


def draw(rng_key, step):
    """Frequencies and phases of a batch's random function."""
    key_frequency, key_phase = jax.random.split(rng_key)
    frequency = jax.random.normal(key_frequency, (COSINES, 2)) / LENGTH
    return frequency, jax.random.uniform(key_phase, (COSINES,), maxval=2.0 * jnp.pi)


def noisy(batch, x):
    frequency, phase = batch
    noise = SIZE * np.sqrt(2.0 / COSINES) * jnp.sum(jnp.cos(frequency @ x + phase))
    return logdensity(x) + noise


def estimate(batch, position, memory):
    return Estimate(*jax.value_and_grad(lambda x: noisy(batch, x))(position)), memory


def nothing(position):
    return ()


NOISY = GradientEstimator(init=nothing, draw=draw, estimate=estimate, exact=False)


class Way(NamedTuple):
    """A kernel, its parameters, and the evaluations of each step."""

    name: str
    kernel: Any
    parameters: dict[str, Any]
    cost: int


def ways(budget):
    """All of them. Cycles: 30 of them in a run."""
    length = budget // 30
    flat = lp.contour_sgld(min_energy=-4.0, max_energy=20.0, num_partitions=24)
    replicas = lp.replica_exchange(lp.sgld, TEMPERATURES)
    small, many = {"step_size": STEP_SIZE}, 3 * len(TEMPERATURES)
    cycles = {"step_size": 0.09, "cycle_length": length}
    return [
        Way("sgld", lp.sgld, small, 1),
        Way("cyclical_sgld, exploration 0.5", lp.cyclical_sgld, cycles, 1),
        Way("cyclical_sgld, exploration 0.25", lp.cyclical_sgld, cycles | {"exploration": 0.25}, 1),
        Way("replica_exchange(sgld)", replicas, small, many),
        Way("the same, corrected by a quarter", replicas, small | {"correction_share": 4.0}, many),
        Way("contour_sgld, zeta 0.75", flat, small, 1),
        Way("contour_sgld, zeta 1", flat, small | {"zeta": 1.0}, 1),
    ]


def measure(way, target, seed, budget):
    """One run: modes found, by all chains and by each, total variation, width, and so on."""
    steps = budget // way.cost
    key_start, key_run = jax.random.split(jax.random.key(seed))
    initial = jax.random.uniform(key_start, (CHAINS, 2), minval=-5.0, maxval=5.0)
    thinning = THINNING if way.cost == 1 else 1
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `converged` says it, and is counted
        idata = lp.sample(
            key_run,
            target,
            way.kernel,
            gradient=NOISY,
            num_chains=CHAINS,
            num_warmup=0,
            num_samples=steps // thinning,
            thinning=thinning,
            initial=initial,
            **way.parameters,
        )
    seconds = time.perf_counter() - began
    draws = np.asarray(idata["posterior"]["x"].values, np.float64)
    draws = draws[:, draws.shape[1] // 5 :]
    distances = ((draws[..., None, :] - CENTRES) ** 2).sum(axis=-1).min(axis=-1)
    least, everywhere = 0.1 / len(CENTRES), shares(draws)
    return {
        "modes": int(np.sum(everywhere >= least)),
        "of each": float(np.mean([np.sum(shares(chain) >= least) for chain in draws])),
        "variation": float(0.5 * np.abs(everywhere - 1 / len(CENTRES)).sum()),
        "width": float(np.sqrt(distances.mean() / (2.0 * VARIANCE))),
        "flagged": not idata.attrs["converged"],
        "weighted": idata.attrs.get("weighted", ""),
        "swaps": np.nanmean(idata["sample_stats"]["swap_rate"].values, axis=(0, 1))
        if "swap_rate" in idata["sample_stats"]
        else np.zeros(0),
        "seconds": seconds,
    }


def row(way, runs, budget):
    def column(name):
        return [run[name] for run in runs]

    effective = [run["weighted"].rsplit(" ", 1)[-1] for run in runs if run["weighted"]]
    return {
        "way": way.name,
        "chains x steps": f"{CHAINS} x {budget // way.cost:,}",
        "modes found": extremes(column("modes")),
        "by each chain": extremes(column("of each")),
        "total variation": extremes(column("variation")),
        "width": extremes(column("width"), 3),
        "effective share of weights": f"{np.mean([float(x) for x in effective]):.2g}"
        if effective
        else "",
        "swap rates": ", ".join(f"{x:.2f}" for x in np.mean(column("swaps"), axis=0)),
        "flagged": f"{sum(column('flagged'))} of {len(runs)}",
        "seconds": float(np.median(column("seconds"))),
    }


def main():
    options = parser(__doc__).parse_args()
    host = machine()
    seeds, budget = (1, 3000) if options.quick else (SEEDS, STEPS)
    target = lp.density(logdensity, jnp.zeros(2))
    rows, found = [], {}
    for way in ways(budget):
        found[way.name] = [measure(way, target, seed, budget) for seed in range(seeds)]
        rows.append(row(way, found[way.name], budget))
        print(rows[-1], flush=True)
    replicas = found["replica_exchange(sgld)"]
    silent = sum(
        run["modes"] < len(CENTRES) and not run["flagged"]
        for runs in found.values()
        for run in runs
    )
    goals = [
        goal(
            "modes missed by replica_exchange, all seeds",
            sum(len(CENTRES) - run["modes"] for run in replicas),
            0,
        ),
        goal(
            "total variation of replica_exchange, worst seed",
            max(run["variation"] for run in replicas),
            0.1,
        ),
        goal("runs that missed a mode and were not flagged", silent, 0),
    ]
    note = (
        f"{seeds} seeds: median (range). Each chain of every way has {budget:,} evaluations; a "
        f"step of replica_exchange takes three for each of the temperatures "
        f"{', '.join(f'{t:g}' for t in TEMPERATURES)}. Step size {STEP_SIZE:g}, a seventh of the "
        "variance of a mode. The largest one of the 30 cycles is 0.09, as in the paper of that "
        "kernel: three times the variance of a mode, so that gradient descent leaps from mode to "
        "mode, and a cycle must not sample before its steps are small. Partitions of width 1 "
        "between energies -4 and 20. These settings were found by a few trials."
    )
    return finish(
        "mixture_modes",
        options,
        host,
        precision="float32",
        tables={"25 modes, noisy gradients": rows},
        goals=goals,
        notes=[note],
    )


if __name__ == "__main__":
    main()

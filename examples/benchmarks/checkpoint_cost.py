"""What checkpoints cost, and whether memory stays flat in a long run.

Three runs that make draws at different rates, with and without a checkpoint, in turn, in one
process. Checkpoints are written every second instead of every minute, so that a short run has some:
what they add to it is a bound of what they add at the default interval, where as many draws are
written and a sixtieth of the states.

The soak is one million steps of 64 chains in a process of its own, with every 100th step kept in a
zarr store, and the memory of the process beside files (RssAnon) as it goes.

    python examples/benchmarks/checkpoint_cost.py [--quick]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from common import finish, goal, machine, parser, quartiles, spread

ROUNDS = 4
EVERY = 1.0
EVERY_STEP = "eight schools, 4 chains, every step"
SOAK = {"num_chains": 64, "num_samples": 10_000, "thinning": 100}
GOAL, FLAT = 0.02, 1.1


def cases():
    """Name, target, kernel and options of the runs."""
    import jax
    import jax.numpy as jnp
    from eight_schools import EFFECT, SIGMA, model

    import langevin_ppl as lp

    normal = lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(1000))
    x = jax.random.normal(jax.random.key(1), (5_000, 30))
    slope = jnp.linspace(-1.0, 1.0, 30)
    y = (x @ slope > jax.random.logistic(jax.random.key(2), (5_000,))).astype(float)

    def logistic(position):
        logits = x @ position
        return jnp.sum(y * logits - jax.nn.softplus(logits)) - 0.5 * jnp.sum(position**2)

    regression = lp.density(logistic, jnp.zeros(30))
    white = {"step_size": 0.02, "num_warmup": 0, "num_chains": 8}
    schools = lp.target(model, SIGMA, effect=EFFECT)
    return {
        "eight schools, 4 chains, every 10th step": (schools, 150_000, {"thinning": 10}),
        "5,000 rows, 30 dimensions, 4 chains": (regression, 60_000, {}),
        "1,000 dimensions, 8 chains, every 100th step": (normal, 2_000, {"thinning": 100, **white}),
        EVERY_STEP: (schools, 600_000, {}),
    }


def timed(target, number, options, checkpoint):
    """Seconds of sampling, and the number of checkpoints that were written."""
    import jax

    import langevin_ppl as lp
    from langevin_ppl.checkpoints.stage import Stage

    calls, real = [], Stage._write
    Stage._write = lambda *args: calls.append(1) or real(*args)
    kept = {} if checkpoint is None else {"checkpoint": checkpoint, "every": EVERY}
    options = {"num_warmup": 300, **options}
    idata = lp.sample(jax.random.key(3), target, lp.ghmc, num_samples=number, **options, **kept)
    Stage._write = real
    return idata.attrs["sampling_time"], len(calls)


def costs(rounds, share):
    rows = []
    for name, (target, number, options) in cases().items():
        number = int(number * share)
        pairs = []
        with tempfile.TemporaryDirectory() as folder:
            for turn in range(rounds + 1):
                plain, _ = timed(target, number, options, None)
                kept, writes = timed(target, number, options, Path(folder) / str(turn))
                pairs.append((plain, kept, writes))
        pairs = pairs[1:]  # the first one compiles
        ratios = [kept / plain for plain, kept, _ in pairs]
        rows.append(
            {
                "run": name,
                "seconds without": spread([p for p, _, _ in pairs]),
                "seconds with": spread([k for _, k, _ in pairs]),
                "ratio": spread(ratios),
                "checkpoints": spread([w for _, _, w in pairs]),
                "median added": quartiles(ratios)[1] - 1.0,
            }
        )
        print(rows[-1], flush=True)
    return rows


def soak(folder, share):
    """Run in a process of its own: memory in MB against steps."""
    import warnings

    import jax
    import jax.numpy as jnp

    import langevin_ppl as lp

    warnings.simplefilter("ignore")
    folder = Path(folder)
    seen = []

    def watch():
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            anon = next(line for line in lines if line.startswith("RssAnon"))
            states = [int(p.stem) for p in (folder / "run" / "sample").glob("[0-9]*.json")]
            if states:
                seen.append((time.perf_counter() - began, int(anon.split()[1]) / 1024))
            time.sleep(0.25)

    began = time.perf_counter()
    threading.Thread(target=watch, daemon=True).start()
    scales = jnp.logspace(-1.0, 1.0, 20)
    target = lp.density(lambda x: -0.5 * jnp.sum((x / scales) ** 2), jnp.zeros(20))
    options = {**SOAK, "num_samples": int(SOAK["num_samples"] * share)}
    paths = {"checkpoint": folder / "run", "store": folder / "draws.zarr", "every": 2.0}
    idata = lp.sample(jax.random.key(0), target, lp.baoab, **options, **paths)
    start = idata.attrs["warmup_time"]
    memory = [m for t, m in seen if start <= t <= start + idata.attrs["sampling_time"]]
    quarters = [memory[int(q * (len(memory) - 1))] for q in (0.0, 0.25, 0.5, 0.75, 1.0)]
    return {
        "seconds": idata.attrs["sampling_time"],
        "chains": idata["posterior"].sizes["chain"],
        "steps": idata["posterior"].sizes["draw"] * SOAK["thinning"],
        "draws on disk, MB": sum(v.nbytes for v in idata["posterior"].data_vars.values()) / 2**20,
        "memory": quarters,
        "MB at most, with verdict and store": max(m for _, m in seen),
    }


def main():
    options = parser(__doc__)
    options.add_argument("--soak", nargs=2, help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.soak:
        print(json.dumps(soak(options.soak[0], float(options.soak[1]))))
        return
    host = machine()
    rounds, share = (1, 0.02) if options.quick else (ROUNDS, 1.0)
    rows = costs(rounds, share)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--soak", folder, str(share)]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(shown.strip().splitlines()[-1])
    memory = found.pop("memory")
    largest = found.pop("MB at most, with verdict and store")
    found |= {
        f"MB after {q} of the steps": m
        for q, m in zip(("0", "1/4", "1/2", "3/4", "all"), memory, strict=True)
    }
    found["MB at most, with verdict and store"] = largest
    finish(
        "checkpoint_cost",
        options,
        host,
        precision="float32",
        tables={"A checkpoint every second": rows, "Soak": [found]},
        goals=[
            goal(
                "share that checkpoints add, largest median but for every step kept",
                max(row["median added"] for row in rows if row["run"] != EVERY_STEP),
                GOAL,
            ),
            goal(
                "the same, every step kept",
                max(row["median added"] for row in rows if row["run"] == EVERY_STEP),
                GOAL,
            ),
            goal("soak: memory at the end over that after a quarter", memory[-1] / memory[1], FLAT),
        ],  # fmt: skip
    )


if __name__ == "__main__":
    main()

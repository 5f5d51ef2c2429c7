"""A step with rows from a stream: for how many rows there are, and beside other ways to read them.

Logistic regression of N rows and 8 features, in float32 memory maps of a temporary folder, which
are written in blocks and deleted at the end. ``lp.sgld`` with batches of 256 rows for 4 chains,
which share them:

- ``stream``: ``lp.sample`` with ``lp.stream(X, y, batch_size=256)``;
- ``in memory``: the same model and kernel with all rows in JAX arrays, in shuffled blocks;
- ``Python loop``: a jitted step called for batches that NumPy gathers one by one.

A step is what one more step adds to a call: the difference between a long and a short one. Every
way and every number of rows runs in a process of its own, in turn, several rounds. Memory is what
the process holds beside files (RssAnon), at its highest. The last table is the whole of
``lp.sample(key, target)``, with the search for a mode and its passes over all rows.

    python examples/benchmarks/streaming.py [--quick] [--huge]

``--huge`` adds a hundred million rows, 3.6 GB on disk.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from common import finish, goal, machine, parser, quartiles, spread

SIZES = (10**4, 10**5, 10**6, 10**7)
FEATURES, BATCH, CHAINS = 8, 256, 4
STEPS = {"stream": (2_000, 162_000), "in memory": (2_000, 402_000), "Python loop": (200, 5_200)}
WAYS = tuple(STEPS)
ROUNDS = 3
BLOCK = 10**6
GOAL = 1.1
DEFAULT = "lp.sample"


def write(folder, size):
    """Rows of a logistic regression, written in blocks."""
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (size, FEATURES))
    y = np.lib.format.open_memmap(folder / "y.npy", "w+", np.int32, (size,))
    slope = np.linspace(-1.0, 1.0, FEATURES)
    for start in range(0, size, BLOCK):
        rng = np.random.default_rng([7, start])
        count = min(BLOCK, size - start)
        rows = rng.standard_normal((count, FEATURES), np.float32)
        x[start : start + count] = rows
        y[start : start + count] = rows @ slope > rng.logistic(size=count)
    x.flush()
    y.flush()


class Memory(threading.Thread):
    """Highest memory of this process beside mapped files, in MB."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak = 0.0
        self.start()

    def run(self):
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            anon = next(line for line in lines if line.startswith("RssAnon"))
            self.peak = max(self.peak, int(anon.split()[1]) / 1024)
            time.sleep(0.02)


def model(x, y):
    import numpyro
    import numpyro.distributions as dist

    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0).expand([FEATURES]).to_event(1))
    with numpyro.plate("row", x.shape[0], subsample_size=BATCH):
        logits = numpyro.subsample(x, event_dim=1) @ slope
        observed = numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Bernoulli(logits=logits), obs=observed)


def by_python(x, y, steps):
    """Seconds of a loop that gathers and steps."""
    import jax
    import jax.numpy as jnp

    size = len(x)

    def logdensity(position, x, y):
        logits = x @ position
        likelihood = jnp.sum(y * logits - jax.nn.softplus(logits))
        return size / BATCH * likelihood - 0.5 * jnp.sum(position**2)

    @jax.jit
    def step(key, positions, x, y):
        gradients = jax.vmap(jax.grad(logdensity), in_axes=(0, None, None))(positions, x, y)
        noise = jax.random.normal(key, positions.shape)
        return positions + 1e-8 * gradients + jnp.sqrt(2e-8) * noise

    rng, key = np.random.default_rng(0), jax.random.key(0)
    positions = jnp.zeros((CHAINS, FEATURES))
    step(key, positions, x[:BATCH], y[:BATCH]).block_until_ready()
    began = time.perf_counter()
    for index in range(steps):
        rows = np.sort(rng.integers(0, size, BATCH))
        positions = step(jax.random.fold_in(key, index), positions, x[rows], y[rows])
    positions.block_until_ready()
    return time.perf_counter() - began


def work(way, folder, quick):
    """Run in a process of its own; prints what was measured."""
    import warnings

    warnings.simplefilter("ignore")
    memory = Memory()
    x, y = (np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in ("x", "y"))
    if way == "Python loop":
        short, long = (s // (10 if quick else 1) for s in STEPS[way])
        seconds = [by_python(x, y, steps) for steps in (short, short, long)]
        return {"step": (seconds[2] - seconds[1]) / (long - short), "memory": memory.peak}
    import jax

    import langevin_ppl as lp

    key = jax.random.key(0)
    data = (x, y) if way == "in memory" else lp.stream(x, y, batch_size=BATCH)
    target = lp.target(model, *data)
    if way == DEFAULT:
        began = time.perf_counter()
        idata = lp.sample(key, target)
        first = time.perf_counter() - began
        began = time.perf_counter()
        idata = lp.sample(jax.random.key(1), target)
        slope = idata["posterior"]["slope"].values
        truth = np.linspace(-1.0, 1.0, FEATURES)
        return {
            "first call": first,
            "second call": time.perf_counter() - began,
            "passes": idata.attrs["num_passes"],
            "converged": idata.attrs["converged"],
            "z": float(np.abs((slope.mean((0, 1)) - truth) / slope.std((0, 1))).max()),
            "memory": memory.peak,
        }
    steps = [s // (10 if quick else 1) for s in STEPS[way]]
    options = {
        "gradient": lp.minibatch(shared=True),
        "num_warmup": 0,
        "step_size": 1e-8,
        "thinning": 100,
        "initial": {"slope": np.zeros((CHAINS, FEATURES), np.float32)},
    }
    seconds = []
    for number in (steps[0], *steps):
        began = time.perf_counter()
        lp.sample(key, target, lp.sgld, **options, num_samples=number // 100)
        seconds.append(time.perf_counter() - began)
    return {"step": (seconds[2] - seconds[1]) / (steps[1] - steps[0]), "memory": memory.peak}


def spawn(way, folder, quick):
    command = [sys.executable, __file__, "--work", way, str(folder)] + ["--quick"] * quick
    shown = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(shown.stdout.strip().splitlines()[-1])


def measured(sizes, rounds, quick):
    """Of every number of rows and way, what every round saw."""
    seen = {}
    with tempfile.TemporaryDirectory() as root:
        for size in sizes:
            folder = Path(root) / str(size)
            folder.mkdir()
            write(folder, size)
        for turn in range(rounds):
            cases = [(size, way) for size in sizes for way in WAYS]
            for size, way in cases[turn:] + cases[:turn]:
                if way == "in memory" and size > 10**7:
                    continue
                found = spawn(way, Path(root) / str(size), quick)
                seen.setdefault((size, way), []).append(found)
                print(f"round {turn + 1}: {size:,} rows, {way}: {found}", flush=True)
        whole = {size: spawn(DEFAULT, Path(root) / str(size), quick) for size in sizes}
    return seen, whole


def main():
    options = parser(__doc__)
    options.add_argument("--huge", action="store_true", help="a hundred million rows as well")
    options.add_argument("--work", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.work:
        print(json.dumps(work(*options.work, options.quick)))
        return
    host = machine()
    sizes = SIZES[:2] if options.quick else SIZES + (10**8,) * options.huge
    seen, whole = measured(sizes, 1 if options.quick else ROUNDS, options.quick)

    def column(size, way, name):
        return [found[name] for found in seen.get((size, way), [])]

    rows = []
    for size in sizes:
        row = {"rows": size}
        for way in WAYS:
            steps = column(size, way, "step")
            row[f"{way}, µs a step"] = spread([1e6 * s for s in steps]) if steps else "-"
        row |= {f"{way}, MB": max(column(size, way, "memory"), default="-") for way in WAYS}
        rows.append(row)

    def ratios(other):
        result = []
        for size in sizes:
            pairs = zip(column(size, "stream", "step"), column(size, other, "step"), strict=False)
            result += [a / b for a, b in pairs]
        return spread(result)

    smallest = column(sizes[0], "stream", "step")
    growth = [
        {
            "rows": size,
            "time of a step": spread(
                [a / b for a, b in zip(column(size, "stream", "step"), smallest, strict=True)]
            ),
            "memory": max(column(size, "stream", "memory"))
            / max(column(sizes[0], "stream", "memory")),
        }
        for size in sizes
    ]
    medians = [quartiles(column(size, "stream", "step"))[1] for size in sizes]
    finish(
        "streaming",
        options,
        host,
        precision="float32",
        tables={
            "A step of 4 chains with 256 rows": rows,
            f"Stream: ratios to {sizes[0]:,} rows": growth,
            "Stream: ratio to other ways, over all rounds": [
                {"way": other, "time of a step": ratios(other)} for other in WAYS[1:]
            ],
            "lp.sample(key, target) with nothing else said": [
                {
                    "rows": size,
                    "first call, s": found["first call"],
                    "second call, s": found["second call"],
                    "converged": bool(found["converged"]),
                    "from means to the truth, in sd, at most": found["z"],
                    "memory, MB": found["memory"],
                }
                for size, found in whole.items()
            ],
        },
        goals=[
            goal(
                "slowest over fastest median step, over numbers of rows",
                max(medians) / min(medians),
                GOAL,
            ),
            goal(
                "memory, largest over that of the fewest rows",
                max(row["memory"] for row in growth),
                GOAL,
            ),
        ],  # fmt: skip
    )


if __name__ == "__main__":
    main()

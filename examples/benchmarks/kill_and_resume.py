"""Runs that are killed again and again, and resumed: are their draws those of one that was not?

Three runs, each in processes of their own: the default kernel on eight schools, control variates
with the data in memory, and a stream of memory-mapped rows. A process is killed (SIGKILL, which it
cannot see coming) after a time that is uniform on the time that a whole run takes, so that kills
fall on imports, compilation, the search for a mode, warm-up, draws and the writing of checkpoints;
the next process resumes. A run that ends before it is killed often enough is begun anew. Draws are
compared bit by bit. Checkpoints are written every 0.2 seconds.

    python examples/benchmarks/kill_and_resume.py [--quick]
"""

import argparse
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import finish, goal, machine, parser

KILLS = 20
EVERY = 0.2
ROWS, FEATURES, BATCH = 50_000, 4, 128
CASES = {
    "exact": {"num_samples": 300_000, "num_warmup": 100_000, "thinning": 10},
    "control variates": {"num_samples": 100_000, "num_warmup": 300_000, "thinning": 4},
    "stream": {"num_samples": 60_000, "num_warmup": 150_000, "thinning": 4},
}
"""Long enough for kills to fall on steps rather than on imports and compilation."""


def regression(x, y):
    import numpyro
    import numpyro.distributions as dist

    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0).expand([FEATURES]).to_event(1))
    with numpyro.plate("row", x.shape[0], subsample_size=BATCH):
        mean = numpyro.subsample(x, event_dim=1) @ slope
        numpyro.sample("y", dist.StudentT(4.0, mean, 1.0), obs=numpyro.subsample(y, event_dim=0))


def target_of(case, data):
    import langevin_ppl as lp

    if case == "exact":
        from eight_schools import EFFECT, SIGMA, model

        return lp.target(model, SIGMA, effect=EFFECT)
    x, y = (np.load(data / f"{name}.npy", mmap_mode="r") for name in ("x", "y"))
    columns = lp.stream(x, y, batch_size=BATCH) if case == "stream" else (x, y)
    return lp.target(regression, *columns)


def work(case, data, path, share):
    """Begin or resume, and leave the draws; a process of its own."""
    import warnings

    import jax

    import langevin_ppl as lp

    warnings.simplefilter("ignore", lp.ConvergenceWarning)
    warnings.simplefilter("ignore", lp.DivergenceWarning)
    target = target_of(case, data)
    if (path / "run.json").exists():
        idata = lp.resume(path, target, every=EVERY)
    else:
        options = {name: max(1, int(share * number)) for name, number in CASES[case].items()}
        idata = lp.sample(jax.random.key(5), target, **options, checkpoint=path, every=EVERY)
    digest = [
        [name, hash_of(np.asarray(value))]
        for group in ("posterior", "sample_stats")
        for name, value in sorted(idata[group].data_vars.items())
    ]
    (path / "draws.json").write_text(json.dumps(digest))


def hash_of(array):
    return hashlib.blake2b(np.ascontiguousarray(array).tobytes()).hexdigest()


def states(folder):
    return list(folder.glob("*.json"))


def command(case, data, path, share):
    return [sys.executable, __file__, "--work", case, str(data), str(path), str(share)]


def killed(case, data, root, share, kills, seed):
    """Kill a run so often; every run that ended is compared with one that was never killed."""
    whole = root / "whole"
    began = time.monotonic()
    subprocess.run(command(case, data, whole, share), check=True)
    length = time.monotonic() - began
    expected = (whole / "draws.json").read_text()
    rng, done, same, ended, where = np.random.default_rng(seed), 0, 0, 0, {}
    path = root / "run-0"
    while done < kills or not (path / "draws.json").exists():
        if (path / "draws.json").exists():
            ended += 1
            same += (path / "draws.json").read_text() == expected
            path = root / f"run-{ended}"
        process = subprocess.Popen(command(case, data, path, share))
        try:
            process.wait(rng.uniform(0.0, length) if done < kills else None)
            if process.returncode:
                raise SystemExit(f"{case}: a process ended with {process.returncode}")
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1
            stage = next(
                (f"with {name} begun" for name in ("sample", "warm-up") if states(path / name)),
                "before the first step",
            )
            where[stage] = where.get(stage, 0) + 1
    ended += 1
    same += (path / "draws.json").read_text() == expected
    shutil.rmtree(root)
    row = {"run": case, "seconds uninterrupted": length, "kills": done}
    places = ("before the first step", "with warm-up begun", "with sample begun")
    row |= {f"killed {place}": where.get(place, 0) for place in places}
    return row | {"runs ended": ended, "bit for bit the same": same}


def main():
    options = parser(__doc__)
    options.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = options.parse_args()
    if options.work:
        case, data, path, share = options.work
        work(case, Path(data), Path(path), float(share))
        return
    host = machine()
    share, kills = (0.05, 2) if options.quick else (1.0, KILLS)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        rng = np.random.default_rng(2)
        x = rng.standard_normal((ROWS, FEATURES), np.float32)
        y = (x @ np.linspace(-1, 1, FEATURES) + rng.standard_t(4, ROWS)).astype(np.float32)
        np.save(data / "x.npy", x)
        np.save(data / "y.npy", y)
        for seed, case in enumerate(CASES):
            root = Path(folder) / case.replace(" ", "-")
            root.mkdir()
            rows.append(killed(case, data, root, share, kills, seed))
            print(rows[-1], flush=True)
    wrong = sum(row["runs ended"] - row["bit for bit the same"] for row in rows)
    finish(
        "kill_and_resume",
        options,
        host,
        precision="float32",
        tables={"Killed and resumed": rows},
        goals=[goal("resumed runs with other draws", wrong, 0)],
    )


if __name__ == "__main__":
    main()

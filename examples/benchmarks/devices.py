"""Chains and rows of data on one device and on two, in one process and in two.

Logistic regression of 100,000 rows and 50 features (see `tall_data.py`), 4 chains: MALA with all
the data, with chains or rows spread over the devices, and the default for batches, `ubu` with
control variates from batches of 2048 rows, with rows spread. The devices are those of JAX's CPU
backend. One device alone uses all cores that its process has, so it stands here twice: with one
core, which is what each of two devices gets, and with two.

Every run is a fresh process, pinned to its cores, that calls ``lp.sample`` twice; the second call
compiles nothing, and its sampling is what is timed. Ways run in turn.

    python examples/benchmarks/devices.py [--quick] [--rounds 3]
"""

import json
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
from common import finish, goal, machine, parser, quartiles, spread

ROWS, FEATURES, BATCH = 100_000, 50, 2048
QUICK_ROWS, QUICK_FEATURES, QUICK_BATCH = 2000, 5, 64
ONE_CORE, ONE, TWO, PROCESSES = WAYS = (
    "1 device, 1 core",
    "1 device, 2 cores",
    "2 devices, 2 cores",
    "2 processes, 1 core each",
)
CASES = {
    "all the data, chains spread": ("chain", False),
    "all the data, rows spread": ("data", False),
    "batches, rows spread": ("data", True),
}
OWN = "of the processes that this one starts"
SAMPLES = {False: 200, True: 1000}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(task, number, cores):
    """A process that runs `work` on some of the cores."""
    command = [sys.executable, str(Path(__file__).resolve()), "--work", json.dumps(task)]
    command += ["--number", str(number), "--cores", ",".join(map(str, cores))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def run(case, way, quick):
    """Result of the first process of a way; what the second one returns has to be the same."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    axis, batches = CASES[case]
    task = {"axis": axis, "batches": batches, "quick": quick, "processes": 1, "devices": 1}
    if way == PROCESSES:
        task |= {"processes": 2, "devices": 2, "port": free_port()}
        started = [start(task, number, [core]) for number, core in enumerate(cores)]
    else:
        task["devices"] = 2 if way == TWO else 1
        started = [start(task, 0, cores[:1] if way == ONE_CORE else cores)]
    shown = [process.communicate(timeout=1200)[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"{case}, {way}: a process failed; its error is above.")
    results = [json.loads(output.strip().splitlines()[-1]) for output in shown]
    if any(result["mean"] != results[0]["mean"] for result in results):
        raise RuntimeError(f"{case}, {way}: processes returned different draws.")
    return results[0]


def work(task, number):
    """Sample twice, and print what the second run took and found."""
    import jax

    jax.config.update("jax_num_cpu_devices", task["devices"] // task["processes"])
    if task["processes"] > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{task['port']}", task["processes"], number)
    import jax.numpy as jnp
    import tall_data

    import langevin_ppl as lp

    warnings.simplefilter("ignore", UserWarning)
    quick, batches = task["quick"], task["batches"]
    sizes = (QUICK_ROWS, QUICK_FEATURES, QUICK_BATCH) if quick else (ROWS, FEATURES, BATCH)
    x, y = tall_data.logistic_rows(*sizes[:2])
    problem = tall_data.logistic, jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    target = tall_data.target_of(problem, sizes[2] if batches else None)
    options = {
        "num_samples": 50 if quick else SAMPLES[batches],
        "num_warmup": 50 if quick else 150,
        "mesh": jax.make_mesh((task["devices"],), (task["axis"],)),
    }
    if batches:
        options |= {"gradient": lp.control_variates(sizes[2]), "thinning": 1}
    kernel = None if batches else lp.mala
    lp.sample(jax.random.key(0), target, kernel, **options)
    idata = lp.sample(jax.random.key(1), target, kernel, **options)
    draws = idata["posterior"]["slope"].values
    print(
        json.dumps(
            {
                "milliseconds": 1e3 * idata.attrs["sampling_time"] / options["num_samples"],
                "mean": draws.mean((0, 1)).tolist(),
                "sd": draws.std((0, 1)).tolist(),
                "ess": idata.attrs["min_ess"],
            }
        )
    )


def apart(one, other):
    """Largest distance of two posterior means, in their standard errors."""
    error = np.asarray(one["sd"]) * np.sqrt(1.0 / one["ess"] + 1.0 / other["ess"])
    return float(np.max(np.abs(np.subtract(one["mean"], other["mean"])) / error))


def main():
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="runs of each way (3)")
    options.add_argument("--work", type=json.loads, help=OWN)
    options.add_argument("--number", type=int, default=0, help=OWN)
    options.add_argument("--cores", help=OWN)
    options = options.parse_args()
    if options.work is not None:
        os.sched_setaffinity(0, map(int, options.cores.split(",")))
        return work(options.work, options.number)
    host = machine()
    rounds = options.rounds or (1 if options.quick else 3)
    rows, goals = [], []
    for case in CASES:
        found = {way: [] for way in WAYS}
        for number in range(rounds):
            shift = number % len(WAYS)
            for way in WAYS[shift:] + WAYS[:shift]:
                found[way].append(run(case, way, options.quick))
                print(case, way, f"{found[way][-1]['milliseconds']:.3g} ms", flush=True)
        times = {way: [each["milliseconds"] for each in found[way]] for way in WAYS}
        for way in WAYS:
            rows.append({"case": case, "way": way, "step, ms": spread(times[way])})
            for base in (ONE_CORE, ONE):
                ratios = [a / b for a, b in zip(times[base], times[way], strict=True)]
                rows[-1][f"times as fast as {base}"] = quartiles(ratios)[1]
        worst = max(apart(found[ONE_CORE][0], found[way][0]) for way in WAYS)
        goals.append(goal(f"{case}: distance of means of layouts, standard errors", worst, 4.0))
    note = (
        f"{rounds} runs of each way, in turn; median (quartiles); ratios round by round. A step is "
        "one of all 4 chains. Processes are pinned to their cores and talk by Gloo over the "
        "loopback interface, one message or more in every step."
    )
    return finish(
        "devices",
        options,
        host,
        precision="float32",
        tables={"A step on one device and on two": rows},
        goals=goals,
        notes=[note],
    )


if __name__ == "__main__":
    main()

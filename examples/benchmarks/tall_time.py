"""How long until the moments of a posterior of many rows are right: a fresh process.

The two posteriors of `tall_data.py`, in float32. The time runs from the call until all posterior
means are within 0.1 posterior sd of the reference and all ratios of sds between 0.9 and 1.1,
tracing and compiling included, imports and reading the data not; the seconds that the processors
worked in this time stand beside it. Every run is a process of its
own, without a compilation cache and without progress bars.

- ``lp.sample(key, target)`` of a model whose plate is subsampled, with nothing else said, and
  ``lp.laplace`` of the same model with all rows. They are run once with their own lengths, and the
  time counts only if the result is right.
- NUTS of NumPyro with all rows and a dense metric, adapted in 500 steps; and given what it would
  have to find out, the mode to start at and the inverse of the Hessian there as its metric, with
  200 steps for its step size. Both with one chain and with 4, vectorized.
- HMCECS of NumPyro with its Taylor proxy of second order about the mode, batches of 1000 rows in
  100 blocks (as in NumPyro's example), the same metric given.

These have no rule when to stop. They are told what no user knows: draws are compared with the
reference every so often (without counting the comparison), and the time is that at which they are
right for the first time. Finding the mode and the metric that are given counts for nothing. A
process that is not through after a cap is ended; its time is then a lower bound, and so is the
ratio to it.

The protein data are read from the folder that the environment variable LANGEVIN_PPL_DATA names.
Without it they are skipped.

    LANGEVIN_PPL_DATA=... python examples/benchmarks/tall_time.py [--quick]
    python examples/benchmarks/tall_time.py --only protein --rounds 3
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

BEGAN = time.perf_counter()
OWN, LAPLACE = "lp.sample", "lp.laplace"
ADAPTED, GIVEN, HMCECS = "NUTS, adapted", "NUTS, metric given", "HMCECS, metric given"
OTHERS = (
    f"{ADAPTED}, 1 chain",
    f"{ADAPTED}, 4 chains",
    f"{GIVEN}, 1 chain",
    f"{GIVEN}, 4 chains",
    f"{HMCECS}, 1 chain",
)
WARMUP, STEP_SIZE_WARMUP, DRAWS_OF_A_CHECK, MAX_DRAWS = 500, 200, 200, 20_000
ECS_ROWS, ECS_BLOCKS = 1000, 100
CAPS = {"logistic": 300, "protein": 120}
GOALS = {("logistic", ADAPTED): 20, ("logistic", GIVEN): 10, ("protein", ADAPTED): 5}


def count_compiling():
    """Seconds of tracing, lowering and compiling so far, in a list that grows; all threads."""
    import jax

    seconds = []

    def listen(event, duration, **_):
        if event.startswith("/jax/core/compile/"):
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seconds


def say(**facts):
    print(json.dumps(facts), flush=True)


def end_after(cap):
    """End the process when its time is up; what it said last counts, with this time."""

    began = time.process_time()

    def end():
        say(seconds=cap, processor=time.process_time() - began, ended=True)
        os._exit(0)

    timer = threading.Timer(cap, end)
    timer.daemon = True
    timer.start()


def run_own(task, problem, moments, compiling):
    """One call, and then another one in the same process."""
    import jax
    import tall_data

    import langevin_ppl as lp

    batch_size = tall_data.BATCH if task["way"] == OWN else None
    make = lp.sample if task["way"] == OWN else lp.laplace
    times, about = [], {}
    for number in range(2):
        began, used = time.perf_counter(), time.process_time()
        target = tall_data.target_of(problem, batch_size)
        idata = make(jax.random.key(task["seed"] + 1000 * number), target)
        times.append(time.perf_counter() - began)
        if number == 0:
            used = time.process_time() - used
            draws = tall_data.draws_of(idata["posterior"].to_dataset())
            found, compiled = tall_data.errors(draws, moments), sum(compiling)
            about = {
                "errors": found,
                "processor": used,
                "right": tall_data.passes_test(found),
                "draws": len(draws),
                "says": bool(
                    idata.attrs["converged" if task["way"] == OWN else "laplace_is_enough"]
                ),
                "sampling": float(idata.attrs["sampling_time"]),
                "what": str(idata.attrs.get("gradient_estimator", "")),
            }
    say(seconds=times[0], again=times[1], compiling=compiled, **about)


def kernel_of(task, problem):
    """Kernel of NumPyro, its warm-up steps, and the arguments of the model."""
    import jax.numpy as jnp
    import numpy as np
    from numpyro.infer import HMCECS as Subsampling
    from numpyro.infer import NUTS, init_to_value

    model, *data = problem
    if task["way"].startswith(ADAPTED):
        return NUTS(model, dense_mass=True), task["warmup"], data
    with np.load(task["mode"]) as file:
        values = {k: jnp.asarray(v, jnp.float32) for k, v in file.items() if k != "metric"}
        metric = jnp.asarray(file["metric"], jnp.float32)
    given = {
        "dense_mass": True,
        "inverse_mass_matrix": metric,
        "adapt_mass_matrix": False,
        "init_strategy": init_to_value(values=values),
    }
    kernel = NUTS(model, **given)
    if task["way"].startswith(HMCECS):
        proxy = Subsampling.taylor_proxy(values, degree=2)
        kernel = Subsampling(kernel, num_blocks=ECS_BLOCKS, proxy=proxy)
        data = [*data, min(ECS_ROWS, len(data[0]))]
    return kernel, task["step_size_warmup"], data


def run_numpyro(task, problem, moments, compiling):
    """Draw until the moments are right; the time of comparing them does not count."""
    import jax
    import numpy as np
    import tall_data
    from numpyro.infer import MCMC

    num_chains = int(task["way"].split(", ")[-1].split()[0])
    names = ("slope", "intercept", "scale")
    began, used = time.perf_counter(), time.process_time()
    kernel, warmup, data = kernel_of(task, problem)
    mcmc = MCMC(
        kernel,
        num_warmup=warmup,
        num_samples=math.ceil(task["check"] / num_chains),
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    ecs = task["way"].startswith(HMCECS)
    fields = () if ecs else ("num_steps",)
    mcmc.warmup(jax.random.key(task["seed"]), *data, extra_fields=fields)
    seconds, processor = time.perf_counter() - began, time.process_time() - used
    say(
        seconds=seconds,
        processor=processor,
        compiling=sum(compiling),
        draws=0,
        right=False,
        steps=0,
    )
    kept, steps = [], 0
    while sum(len(part) for part in kept) < MAX_DRAWS:
        began, used = time.perf_counter(), time.process_time()
        mcmc.run(mcmc.post_warmup_state.rng_key, *data, extra_fields=fields)
        draws = {k: np.asarray(v) for k, v in mcmc.get_samples().items() if k in names}
        mcmc.post_warmup_state = mcmc.last_state
        seconds += time.perf_counter() - began
        processor += time.process_time() - used
        kept.append(tall_data.flat(draws)[0])
        steps += 0 if ecs else int(np.sum(mcmc.get_extra_fields()["num_steps"]))
        every = np.concatenate(kept)
        found = tall_data.errors(every, moments)
        right = tall_data.passes_test(found)
        say(
            seconds=seconds,
            processor=processor,
            compiling=sum(compiling),
            draws=len(every),
            errors=found,
            right=right,
            steps=steps,
        )
        if right:
            return


def worker(task):
    """Run in the fresh process: print lines of JSON, the last of which counts."""
    import jax
    import tall_data

    import langevin_ppl as lp

    lp.sample, lp.laplace, lp.target  # noqa: B018  (imported when they are first used)
    problem = tall_data.load(task["posterior"], quick=task["quick"])
    moments = json.loads(Path(task["moments"]).read_text())
    jax.block_until_ready(problem[1:])
    run = run_own if task["way"] in (OWN, LAPLACE) else run_numpyro
    compiling = count_compiling()
    end_after(task["cap"])
    run(task, problem, moments, compiling)


def measure(task):
    """One fresh process, ended after the cap."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, __file__, "--worker", json.dumps(task)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{task} failed:\n{done.stderr}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    result = {"compiling": 0.0, "draws": 0, "right": False}
    for line in lines:
        result |= line
    result |= {"way": task["way"], "seed": task["seed"]}
    print(f"{task['posterior']}: {json.dumps(result)}", flush=True)
    return result


def shown(run):
    if "errors" not in run:
        return "still warming up"
    shift, low, high = run["errors"]
    return f"{shift:.3f}; {low:.3f} to {high:.3f}"


def row_of(way, runs):
    from common import spread

    times = [run["seconds"] for run in runs]
    right = sum(run["right"] for run in runs)
    bound = way not in (OWN, LAPLACE) and right < len(runs)
    worst = max(runs, key=lambda run: run.get("errors", (math.inf,))[0])
    steps = [run["steps"] for run in runs if run.get("steps")]
    again = [run["again"] for run in runs if "again" in run]
    return {
        "way": way,
        "seconds": ("more than " if bound else "") + spread(times),
        "of processors": spread(run["processor"] for run in runs),
        "right": f"{right} of {len(runs)}",
        "worst mean; ratios of sds": shown(worst),
        "draws": round(statistics.median(run["draws"] for run in runs)),
        "of these, tracing and compiling": statistics.median(run["compiling"] for run in runs),
        "once more in the same process": statistics.median(again) if again else "",
        "leapfrog steps after warm-up": round(statistics.median(steps)) if steps else "",
    }


def prepare(name, quick, folder, results):
    """Reference moments, and the mode and metric for those to whom they are given, as files."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import tall_data

    moments = tall_data.load_reference(name, quick=quick, results=results)
    paths = {"moments": folder / f"{name}.json", "mode": folder / f"{name}.npz"}
    paths["moments"].write_text(json.dumps(moments))
    with jax.enable_x64(True):
        target = tall_data.target_of(tall_data.load(name, quick=quick, dtype=jnp.float64), None)
        mode, hessian, unravel, _ = tall_data.mode_of(target)
        values = target.constrain(unravel(mode))
        metric = np.linalg.inv(-np.asarray(hessian))
        np.savez(paths["mode"], metric=metric, **{k: np.asarray(v) for k, v in values.items()})
    return moments, {key: str(path) for key, path in paths.items()}


def main():
    import tall_data
    from common import finish, goal, machine, parser

    options = parser(__doc__)
    options.add_argument("--only", nargs="+", choices=tall_data.NAMES, help="these posteriors")
    options.add_argument("--rounds", type=int, help="runs of lp.sample and lp.laplace (5)")
    options.add_argument("--other-rounds", type=int, default=1, help="runs of the others (1)")
    options.add_argument("--others", nargs="*", choices=OTHERS, default=OTHERS)
    options.add_argument("--cap", type=float, help="seconds after which a process is ended")
    options = options.parse_args()
    host = machine()
    names = options.only or list(tall_data.NAMES)
    for name in set(names) - set(tall_data.available()):
        print(f"tall_time, {name}: skipped, because LANGEVIN_PPL_DATA has no data of it.")
    names = [name for name in names if name in tall_data.available()]
    if not names:
        return None
    rounds = options.rounds or (1 if options.quick else 5)
    tables, goals, notes = {}, [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            moments, paths = prepare(name, options.quick, Path(folder), options.results)
            common = {
                **paths,
                "posterior": name,
                "quick": options.quick,
                "warmup": 50 if options.quick else WARMUP,
                "step_size_warmup": 20 if options.quick else STEP_SIZE_WARMUP,
                "check": DRAWS_OF_A_CHECK,
                "cap": options.cap or (40 if options.quick else CAPS[name]),
            }
            ways = [OWN, LAPLACE, *(way for way in OTHERS if way in options.others)]
            runs = {way: [] for way in ways}
            for number in range(max(rounds, options.other_rounds)):
                for way in ways:
                    own = way in (OWN, LAPLACE)
                    if number >= (rounds if own else options.other_rounds):
                        continue
                    task = {**common, "way": way, "seed": number}
                    runs[way].append(measure(task))
            middle = statistics.median(run["seconds"] for run in runs[OWN])
            tables[f"{name}: from the call until the moments are right"] = [
                {
                    **row_of(way, runs[way]),
                    "times as long as lp.sample": (
                        "more than "
                        if way not in (OWN, LAPLACE) and not all(r["right"] for r in runs[way])
                        else ""
                    )
                    + f"{statistics.median(r['seconds'] for r in runs[way]) / middle:.2g}",
                    "the same of processors": statistics.median(
                        run["processor"] for run in runs[way]
                    )
                    / statistics.median(run["processor"] for run in runs[OWN]),
                }
                for way in ways
            ]
            wrong = sum(not run["right"] for run in runs[OWN])
            goals.append(goal(f"{name}: runs of lp.sample that are not right", wrong, 0))
            for (posterior, kind), factor in GOALS.items():
                tried = [way for way in ways if way.startswith(kind)] if posterior == name else []
                if tried:
                    best = min(
                        statistics.median(run["seconds"] for run in runs[way]) for way in tried
                    )
                    what = f"{name}: time of lp.sample over {kind}, the faster (1/{factor})"
                    goals.append(goal(what, middle / best, 1 / factor))
            notes.append(
                f"{name}: {runs[OWN][0].get('what', '')}. A process was ended after "
                f"{common['cap']:.0f} s. Errors of the reference: "
                f"{moments['error_of_mean']:.4f} sd in a mean, "
                f"{100 * moments['error_of_sd']:.2g} % in an sd."
            )
    notes.append(
        f"{rounds} processes of lp.sample and lp.laplace, {options.other_rounds} of each of the "
        "others, in turn; median (quartiles). The worst of the errors of the means is shown, with "
        "the ratios of that run. Seconds of processors and of tracing and compiling: all threads "
        "together; those of processors suffer less from what else the machine does. Where a "
        "process was ended, the ratio among the goals is an upper bound."
    )
    return finish(
        "tall_time",
        options,
        host,
        precision="float32",
        tables=tables,
        goals=goals,
        notes=notes,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(json.loads(sys.argv[2]))
    else:
        main()

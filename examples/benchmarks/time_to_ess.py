"""How long until there are 400 effective draws: a fresh process, compilation included.

The nine posteriors of posteriordb, in float32, JAX's default. The time runs from the call to a
DataTree in which the bulk ESS of every parameter of the reference, and of its squared deviation
from the mean, is about 400. Imports and reading the data come before it and are reported beside
it. Every run is a process of its own, without a compilation cache and without progress bars.

``lp.sample`` finds out by itself when to stop (``until=lp.converged(ess=400, rhat=1.01)``). NUTS
of NumPyro has no such rule, so it is told what it could not know: untimed runs of 4 chains of
1000 + 1000 draws say how many draws a chain needs (in proportion, at least 100), and the timed
process makes 1000 warm-up steps, this many draws, and a DataTree by
``arviz_base.from_numpyro``. Four variants are tried, defaults and ``dense_mass=True``, with
``chain_method`` "sequential" and "vectorized"; the fastest stands against ``lp.sample``.

The data are read from the folder that the environment variable LANGEVIN_PPL_DATA names
(`posteriordb.py` says what is in it). Without it the benchmark is skipped.

    LANGEVIN_PPL_DATA=... python examples/benchmarks/time_to_ess.py [--quick] [--x64]
    python examples/benchmarks/time_to_ess.py --only arK nes --rounds 5
"""

import json
import math
import os
import statistics
import subprocess
import sys
import time

BEGAN = time.perf_counter()
OWN, DEFAULT, DENSE = "lp.sample", "NUTS", "dense NUTS"
CHAIN_METHODS = ("sequential", "vectorized")
VARIANTS = [f"{nuts}, {method}" for nuts in (DEFAULT, DENSE) for method in CHAIN_METHODS]
MAX_RHAT = 1.01
CHAINS, WARMUP, PILOT, MIN_DRAWS, MAX_DRAWS = 4, 1000, 1000, 100, 50_000


def run_own(problem, task):
    """Sample until there is enough; times from the call on, and the tree."""
    import jax

    import langevin_ppl as lp

    model, args, kwargs, *_ = problem
    lp.sample, lp.target, lp.converged  # noqa: B018  (imported when they are first used)
    jax.devices()
    called = time.perf_counter()
    idata = lp.sample(
        jax.random.key(task["seed"]),
        lp.target(model, *args, **kwargs),
        until=lp.converged(ess=task["ess"], rhat=MAX_RHAT),
    )
    seconds = time.perf_counter() - called
    about = {
        "kernel": idata.attrs["kernel"],
        "converged": idata.attrs.get("converged"),
        "parts": {k: float(v) for k, v in idata.attrs.items() if str(k).endswith("_time")},
    }
    return idata, called, seconds, about


def run_nuts(problem, task):
    """Warm up and make a given number of draws; times from the call on, and the tree."""
    import arviz_base
    import jax
    from numpyro.infer import MCMC, NUTS

    model, args, kwargs, *_ = problem
    kind, chain_method = task["variant"].split(", ")
    jax.devices()
    called = time.perf_counter()
    mcmc = MCMC(
        NUTS(model, dense_mass=kind == DENSE),
        num_warmup=task["warmup"],
        num_samples=task["draws"],
        num_chains=CHAINS,
        chain_method=chain_method,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(task["seed"]), *args, **kwargs)
    sampled = time.perf_counter()
    idata = arviz_base.from_numpyro(mcmc)
    seconds = time.perf_counter() - called
    return idata, called, seconds, {"parts": {"run": sampled - called}}


def worker(task):
    """Run in the fresh process: print one line of JSON."""
    import jax

    jax.config.update("jax_enable_x64", task["x64"])
    import posteriordb

    problem = posteriordb.load(task["posterior"], "float64" if task["x64"] else "float32")
    run = run_own if task["variant"] == OWN else run_nuts
    idata, called, seconds, about = run(problem, task)
    *_, mean, sd = problem
    posterior = idata["posterior"].to_dataset()[list(mean)]
    result = {
        "imports": called - BEGAN,
        "seconds": seconds,
        "ess": min(posteriordb.effective(posterior)),
        "rhat": posteriordb.largest_rhat(posterior),
        "worst_mean": posteriordb.moments(posterior, mean, sd)[0],
        "draws": int(posterior.sizes["draw"]),
        **about,
    }
    print(json.dumps(result))


def measure(**task):
    """One fresh process."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, __file__, "--worker", json.dumps(task)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{task} failed:\n{done.stderr}")
    result = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{task['posterior']}, {task['variant']}, seed {task['seed']}: {result['seconds']:.2f} s, "
        f"{result['draws']} draws, ESS {result['ess']:.0f}",
        flush=True,
    )
    return result


def draws_needed(common, seeds):
    """Draws of each chain with which NUTS has the wanted ESS, by kind of metric."""
    needed = {}
    for kind in (DEFAULT, DENSE):
        pilot = {**common, "variant": f"{kind}, sequential", "draws": common["pilot"]}
        ess = statistics.median(measure(**pilot, seed=seed)["ess"] for seed in seeds)
        draws = math.ceil(common["pilot"] * common["ess"] / max(ess, 1e-3))
        needed[kind] = min(max(draws, MIN_DRAWS), MAX_DRAWS)
    return needed


def rows_of(name, runs, needed):
    """Rows of the three tables for one posterior, and the ratios of its rounds."""
    from common import quartiles, spread

    def column(variant, key):
        return [run[key] for run in runs[variant]]

    def middle(variant, key):
        return statistics.median(column(variant, key))

    def ratios(variant):
        pairs = zip(column(OWN, "seconds"), column(variant, "seconds"), strict=True)
        return [own / nuts for own, nuts in pairs]

    best = min(VARIANTS, key=lambda variant: middle(variant, "seconds"))
    flags = [bool(flag) for flag in column(OWN, "converged") if flag is not None]
    row = {
        "posterior": name,
        "kernel": ", ".join(sorted(set(column(OWN, "kernel")))),
        "lp.sample, seconds": spread(column(OWN, "seconds")),
        "best NUTS": best,
        "its seconds": spread(column(best, "seconds")),
        "lp.sample over it": spread(ratios(best)),
        "ESS of lp.sample": round(middle(OWN, "ess")),
        "ESS of NUTS": round(middle(best, "ess")),
        "max R-hat of lp.sample": f"{max(column(OWN, 'rhat')):.4f}",
        "max R-hat of NUTS": f"{max(column(best, 'rhat')):.4f}",
        "converged": f"{sum(flags)} of {len(flags)}" if flags else "not said",
        "imports of lp.sample": middle(OWN, "imports"),
        "imports of NUTS": middle(best, "imports"),
    }
    parts = column(OWN, "parts")
    where = {"posterior": name}
    for part in sorted({key for run in parts for key in run}):
        where[part] = statistics.median(run.get(part, 0.0) for run in parts)
    where["all"] = middle(OWN, "seconds")
    variants = [
        {
            "posterior": name,
            "variant": variant,
            "draws of a chain": needed[variant.split(", ")[0]],
            "seconds": spread(column(variant, "seconds")),
            "of these, run": statistics.median(p["run"] for p in column(variant, "parts")),
            "ESS": round(middle(variant, "ess")),
            "worst mean, in sd": max(column(variant, "worst_mean")),
            "lp.sample over it": quartiles(ratios(variant))[1],
        }
        for variant in VARIANTS
    ]
    return row, where, variants, statistics.median(ratios(best))


def main():
    import posteriordb
    from common import finish, goal, machine, parser

    options = parser(__doc__)
    options.add_argument("--only", nargs="+", choices=posteriordb.MODELS, help="these posteriors")
    options.add_argument("--rounds", type=int, help="timed runs of each way (3)")
    options.add_argument("--x64", action="store_true", help="float64 instead of float32")
    options = options.parse_args()
    host = machine()
    if posteriordb.folder() is None:
        print("time_to_ess: skipped, because LANGEVIN_PPL_DATA names no folder of data.")
        return None
    few = ["eight_schools_noncentered"]
    names = options.only or (few if options.quick else list(posteriordb.MODELS))
    rounds = options.rounds or (1 if options.quick else 3)
    ess = 100 if options.quick else 400
    pilots = range(1000, 1000 + rounds)
    common = {
        "ess": ess,
        "x64": options.x64,
        "warmup": 100 if options.quick else WARMUP,
        "pilot": 200 if options.quick else PILOT,
    }
    own, where, variants, ratios = [], [], [], {}
    for name in names:
        needed = draws_needed({**common, "posterior": name}, pilots)
        kinds = [OWN, *VARIANTS]
        runs = {kind: [] for kind in kinds}
        for number in range(rounds):
            shift = number % len(kinds)
            for kind in kinds[shift:] + kinds[:shift]:
                draws = needed.get(kind.split(", ")[0])
                task = {**common, "posterior": name, "variant": kind, "draws": draws}
                runs[kind].append(measure(**task, seed=number))
        row, parts, others, ratios[name] = rows_of(name, runs, needed)
        own.append(row)
        where.append(parts)
        variants += others
    # A table has the same columns everywhere; a part that a run did not have took no time.
    columns = list(dict.fromkeys(key for row in where for key in row if key != "all"))
    where = [{key: row.get(key, 0.0) for key in [*columns, "all"]} for row in where]
    middle = math.exp(statistics.fmean(math.log(ratio) for ratio in ratios.values()))
    note = (
        f"{rounds} processes of each, in turn; median (quartiles); ratios round by round, of the "
        f"NUTS variant with the smallest median. Draws of NUTS from {len(pilots)} untimed runs of "
        "each metric. ESS: the smaller of those of parameters and of squared deviations, median."
    )
    return finish(
        "time_to_ess",
        options,
        host,
        precision="float64 (jax_enable_x64)" if options.x64 else "float32",
        tables={
            f"From the call to a DataTree with ESS {ess}": own,
            "Where the time of lp.sample goes, in seconds": where,
            "All variants of NUTS": variants,
        },
        goals=[
            goal("time of lp.sample over the best NUTS, geometric mean", middle, 0.5),
            *(goal(f"the same, {name}", ratio, 0.5) for name, ratio in ratios.items()),
        ],
        notes=[note],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(json.loads(sys.argv[2]))
    else:
        main()

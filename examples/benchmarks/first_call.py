"""What a user waits for: a fresh process, from the first import to a DataTree.

Eight schools (non-centred), 4 chains of 500 + 500 steps, progress bars off, float32, no
compilation cache: ``lp.sample`` with ``lp.mala``, beside NUTS of NumPyro turned into a DataTree by
``arviz_base.from_numpyro``, with ``chain_method="sequential"`` (what NumPyro's default comes to on
one device) and ``"vectorized"``. Every run is a process of its own; the three take turns. Two
times are reported: inside the process from its first import to the tree, and the whole process.
Effective sample sizes come from further, untimed runs, because NUTS and MALA draws are not worth
the same. A second table says what ``import langevin_ppl`` adds to NumPyro and BlackJAX.

    python examples/benchmarks/first_call.py [--quick]
"""

import json
import os
import statistics
import subprocess
import sys
import time

BEGAN = time.perf_counter()
WARMUP, SAMPLES, CHAINS = 500, 500, 4
OWN, SEQUENTIAL, VECTORIZED = "lp.mala", "NUTS, sequential", "NUTS, vectorized"
IMPORTS = "imports"
MODULES = ("jax", "numpyro and blackjax", "langevin_ppl", "arviz_base", "langevin_ppl.sample")


def run_own(seed):
    import jax
    from eight_schools import EFFECT, SIGMA, model

    import langevin_ppl as lp

    lp.sample  # noqa: B018  (names are imported when they are first used)
    imported = time.perf_counter()
    target = lp.target(model, SIGMA, effect=EFFECT)
    idata = lp.sample(
        jax.random.key(seed),
        target,
        lp.mala,
        num_chains=CHAINS,
        num_warmup=WARMUP,
        num_samples=SAMPLES,
    )
    total = time.perf_counter() - BEGAN
    parts = {
        "imports": imported - BEGAN,
        "warm-up": idata.attrs["warmup_time"],
        "sampling": idata.attrs["sampling_time"],
    }
    return idata, {"total": total, **parts, "rest": total - sum(parts.values())}


def run_nuts(seed, chain_method):
    import arviz_base
    import jax
    from eight_schools import EFFECT, SIGMA, model
    from numpyro.infer import MCMC, NUTS

    imported = time.perf_counter()
    mcmc = MCMC(
        NUTS(model),
        num_warmup=WARMUP,
        num_samples=SAMPLES,
        num_chains=CHAINS,
        chain_method=chain_method,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(seed), SIGMA, effect=EFFECT)
    sampled = time.perf_counter()
    idata = arviz_base.from_numpyro(mcmc)
    total = time.perf_counter() - BEGAN
    parts = {"imports": imported - BEGAN, "run": sampled - imported}
    return idata, {"total": total, **parts, "rest": total - sum(parts.values())}


def run_imports():
    import jax  # noqa: F401

    times = [time.perf_counter()]
    import blackjax  # noqa: F401
    import numpyro  # noqa: F401

    times.append(time.perf_counter())
    import langevin_ppl

    times.append(time.perf_counter())
    import arviz_base  # noqa: F401  (which langevin_ppl.sample needs, and from_numpyro too)

    times.append(time.perf_counter())
    langevin_ppl.sample  # noqa: B018
    times.append(time.perf_counter())
    spans = [b - a for a, b in zip([BEGAN, *times], times, strict=False)]
    return dict(zip(MODULES, spans, strict=True))


def worker(kind, seed, with_ess):
    """Run in the fresh process: print one line of JSON."""
    if kind == IMPORTS:
        print(json.dumps(run_imports()))
        return
    if kind == OWN:
        idata, times = run_own(seed)
    else:
        idata, times = run_nuts(seed, kind.removeprefix("NUTS, "))
    if with_ess:
        import arviz as az

        posterior = idata["posterior"].to_dataset()
        times["ess"] = min(float(v.min()) for v in az.ess(posterior).data_vars.values())
    print(json.dumps(times))


def measure(kind, seed, with_ess=False):
    """One fresh process; adds the time of the whole process."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, __file__, "--worker", kind, str(seed), str(int(with_ess))]
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    whole = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{kind} failed:\n{done.stderr}")
    return {**json.loads(done.stdout.splitlines()[-1]), "process": whole}


def main():
    from common import finish, goal, machine, parser, quartiles, spread

    options = parser(__doc__).parse_args()
    host = machine()
    rounds, ess_rounds = (1, 1) if options.quick else (20, 3)
    kinds = [OWN, SEQUENTIAL, VECTORIZED, IMPORTS]
    # The first runs fill the file cache and write bytecode; they also give the sample sizes.
    ess = {
        kind: [measure(kind, 1000 + i, with_ess=True)["ess"] for i in range(ess_rounds)]
        for kind in kinds[:3]
    }
    measure(IMPORTS, 0)
    runs = {kind: [] for kind in kinds}
    for number in range(rounds):
        shift = number % len(kinds)
        for kind in kinds[shift:] + kinds[:shift]:
            runs[kind].append(measure(kind, number))

    def column(kind, name):
        return [run[name] for run in runs[kind]]

    def ratios(kind, name):
        return [a / b for a, b in zip(column(OWN, name), column(kind, name), strict=True)]

    rows = [
        {
            "sampler": kind,
            "seconds to the tree": spread(column(kind, "total")),
            "seconds, whole process": spread(column(kind, "process")),
            "lp.mala over this": spread(ratios(kind, "total")),
            "same, whole process": spread(ratios(kind, "process")),
            "min bulk ESS": round(statistics.median(ess[kind])),
            "ESS per second to the tree": statistics.median(ess[kind])
            / statistics.median(column(kind, "total")),
        }
        for kind in kinds[:3]
    ]
    where = [
        {
            "part": name,
            "seconds": spread(column(OWN, name)),
            "share": quartiles(column(OWN, name))[1] / quartiles(column(OWN, "total"))[1],
        }
        for name in ("imports", "warm-up", "sampling", "rest", "total")
    ]
    nuts = [
        {"sampler": kind, "part": name, "seconds": spread(column(kind, name))}
        for kind in (SEQUENTIAL, VECTORIZED)
        for name in ("imports", "run", "rest")
    ]
    imports = [{"import": name, "seconds added": spread(column(IMPORTS, name))} for name in MODULES]
    own = [sum(run[name] for name in MODULES[2:]) for run in runs[IMPORTS]]
    imports.append({"import": "the last three together", "seconds added": spread(own)})

    goals = [
        goal(
            "seconds that `import langevin_ppl` adds to numpyro and blackjax",
            quartiles(column(IMPORTS, "langevin_ppl"))[1],
            0.3,
        ),
        *(
            goal(f"time to the tree over {kind}", quartiles(ratios(kind, "total"))[1], 1.0)
            for kind in (SEQUENTIAL, VECTORIZED)
        ),
    ]
    note = (
        f"{rounds} processes of each, in turn; median (quartiles); ratios round by round. ESS: "
        f"smallest over all variables, median of {ess_rounds} further runs. `warm-up` and "
        "`sampling` hold the tracing and compiling of their programs."
    )
    return finish(
        "first_call",
        options,
        host,
        precision="float32",
        tables={
            "From the first import to the DataTree": rows,
            "Where the time of lp.mala goes": where,
            "Where the time of NUTS goes": nuts,
            "Imports, one after the other": imports,
        },
        goals=goals,
        notes=[note],
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], int(sys.argv[3]), bool(int(sys.argv[4])))
    else:
        main()

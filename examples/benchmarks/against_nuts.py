"""Draws for a gradient: ``lp.sample`` with nothing else said, beside NUTS of NumPyro.

The nine posteriors of posteriordb, in float64. Three ways take turns on each: ``lp.sample(key,
target)``; NUTS with its defaults, 4 chains of 1000 + 1000 draws; the same with
``dense_mass=True``. The efficiency is the smallest bulk ESS of the reference's parameters and of
their squared deviations from the pooled mean, divided by the number of gradients that the whole
run took: optimisation and warm-up count, on both sides. NUTS makes one gradient a leapfrog step,
so its number is the sum of ``num_steps`` over warm-up, draws and chains; that it finds a first
point is not counted. The efficiency of a way is its median over the seeds.

A second table runs ``lp.sample`` until the ESS is 4000, and compares with the reference draws.

The data are read from the folder that the environment variable LANGEVIN_PPL_DATA names
(`posteriordb.py` says what is in it). Without it the benchmark is skipped.

    LANGEVIN_PPL_DATA=... python examples/benchmarks/against_nuts.py [--quick]
    python examples/benchmarks/against_nuts.py --only arK nes --methods NUTS --runs runs.json
"""

import json
import math
import statistics
import time
import warnings
from pathlib import Path

import arviz_base
import jax
import posteriordb
from common import finish, goal, machine, parser
from numpyro.infer import MCMC, NUTS

import langevin_ppl as lp

OWN, DEFAULT, DENSE = METHODS = ("lp.sample", "NUTS", "dense NUTS")
PARTS = ("efficiency", "accuracy")
ACCURATE_ESS, MAX_RHAT = 4000, 1.01


def run_own(seed, problem, **arguments):
    model, args, kwargs, *_ = problem
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        idata = lp.sample(jax.random.key(seed), lp.target(model, *args, **kwargs), **arguments)
    about = {
        "kernel": idata.attrs["kernel"],
        "converged": idata.attrs.get("converged"),
        "draws": int(idata["posterior"].sizes["draw"]),
        "warnings": sorted({f"{w.category.__name__}: {w.message}" for w in caught}),
    }
    return idata, int(idata.attrs["num_gradient_evaluations"]), about


def run_nuts(seed, problem, dense_mass, steps):
    model, args, kwargs, *_ = problem
    mcmc = MCMC(
        NUTS(model, dense_mass=dense_mass),
        num_warmup=steps,
        num_samples=steps,
        num_chains=4,
        chain_method="sequential",
        progress_bar=False,
    )
    key_warmup, key_sample = jax.random.split(jax.random.key(seed))
    fields = ("num_steps",)
    mcmc.warmup(key_warmup, *args, extra_fields=fields, collect_warmup=True, **kwargs)
    warmup = mcmc.get_extra_fields(group_by_chain=True)["num_steps"]
    mcmc.run(key_sample, *args, extra_fields=fields, **kwargs)
    draws = mcmc.get_extra_fields(group_by_chain=True)["num_steps"]
    assert warmup.shape == draws.shape == (4, steps)
    about = {
        "kernel": "NUTS",
        "converged": None,
        "draws": steps,
        "warnings": [],
        "warmup_gradients": int(warmup.sum()),
    }
    return arviz_base.from_numpyro(mcmc), int(warmup.sum() + draws.sum()), about


def measure(seed, problem, method, options, **arguments):
    """One run: what it cost, what it gave, and how far it is from the reference."""
    *_, mean, sd = problem
    began = time.perf_counter()
    if method == OWN:
        idata, gradients, about = run_own(seed, problem, **arguments)
    else:
        idata, gradients, about = run_nuts(seed, problem, method == DENSE, options.steps)
    seconds = time.perf_counter() - began
    posterior = idata["posterior"].to_dataset()[list(mean)]
    ess, ess_squares = posteriordb.effective(posterior)
    shift, lowest, highest = posteriordb.moments(posterior, mean, sd)
    return {
        "method": method,
        "seed": seed,
        "ess": ess,
        "ess_squares": ess_squares,
        "gradients": gradients,
        "efficiency": min(ess, ess_squares) / gradients,
        "worst_mean": shift,
        "sd_ratios": (lowest, highest),
        "rhat": posteriordb.largest_rhat(posterior),
        "seconds": seconds,
        **about,
    }


def summary(rows):
    """What the runs of one way on one posterior came to: medians, and the worst of the errors."""
    flags = [row["converged"] for row in rows if row["converged"] is not None]
    return {
        "kernel": ", ".join(sorted({row["kernel"] for row in rows})),
        "ESS": round(statistics.median(row["ess"] for row in rows)),
        "ESS of squares": round(statistics.median(row["ess_squares"] for row in rows)),
        "gradients": round(statistics.median(row["gradients"] for row in rows)),
        "draws": round(statistics.median(row["draws"] for row in rows)),
        "worst mean, in sd": max(row["worst_mean"] for row in rows),
        "sd ratios": f"{min(row['sd_ratios'][0] for row in rows):.3f} to "
        f"{max(row['sd_ratios'][1] for row in rows):.3f}",
        "max R-hat": f"{max(row['rhat'] for row in rows):.4f}",
        "converged": f"{sum(map(bool, flags))} of {len(flags)}" if flags else "not said",
        "seconds": statistics.median(row["seconds"] for row in rows),
    }


def efficiency_tables(runs, methods):
    """Tables of the first part, and the ratios of `lp.sample` to the others by posterior."""
    table, details = [], []
    ratios = {method: {} for method in methods if method != OWN}
    for name, rows in runs.items():
        by_method = {m: [row for row in rows if row["method"] == m] for m in methods}
        details += [
            {"posterior": name, "method": method, **summary(by_method[method])}
            for method in methods
        ]
        middle = {
            method: statistics.median(row["efficiency"] for row in by_method[method])
            for method in methods
        }
        row = {"posterior": name}
        row |= {f"{method}, ESS per 1000 gradients": 1000 * middle[method] for method in methods}
        if OWN in methods:
            for method in ratios:
                ratios[method][name] = middle[OWN] / middle[method]
                row[f"lp.sample over {method}"] = ratios[method][name]
        table.append(row)
    return table, details, {method: values for method, values in ratios.items() if values}


def geometric_mean(values):
    return math.exp(statistics.fmean(math.log(max(value, 1e-12)) for value in values))


def efficiency_goals(ratios):
    """Ratios turned round, because a goal is met where the number is at most the limit."""
    limits = {DEFAULT: 20, DENSE: 5}
    goals = []
    for method, values in ratios.items():
        over = {name: 1 / max(value, 1e-12) for name, value in values.items()}
        worst = max(over, key=over.__getitem__)
        what = f"gradients for the same ESS, lp.sample over {method}"
        goals += [
            goal(
                f"{what}, geometric mean (1/{limits[method]})",
                geometric_mean(over.values()),
                1 / limits[method],
            ),
            goal(f"{what}, largest ({worst})", over[worst], 1.0),
        ]
    return goals


def accuracy_goals(rows):
    def width(row):
        return max(1 - row["sd_ratios"][0], row["sd_ratios"][1] - 1)

    limit = f"lp.sample until ESS {ACCURATE_ESS}: "
    return [
        goal(f"{limit}worst mean, in reference sd", max(r["worst_mean"] for r in rows), 0.1),
        goal(f"{limit}worst relative difference of sds", max(map(width, rows)), 0.1),
        goal(f"{limit}max R-hat", max(row["rhat"] for row in rows), MAX_RHAT),
    ]


def main():
    options = parser(__doc__)
    options.add_argument("--float32", action="store_true", help="instead of float64")
    options.add_argument("--only", nargs="+", choices=posteriordb.MODELS, help="these posteriors")
    options.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    options.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options.add_argument("--seeds", type=int, help="runs of each way (3)")
    options.add_argument("--runs", type=Path, help="also write every single run to this JSON file")
    options = options.parse_args()
    options.steps = 100 if options.quick else 1000
    host = machine()
    if posteriordb.folder() is None:
        print("against_nuts: skipped, because LANGEVIN_PPL_DATA names no folder of data.")
        return None
    precision = "float32" if options.float32 else "float64"
    jax.config.update("jax_enable_x64", precision == "float64")
    few = ["eight_schools_noncentered", "kidscore_interaction"]
    names = options.only or (few if options.quick else list(posteriordb.MODELS))
    seeds = range(options.seeds or (1 if options.quick else 3))
    methods = [method for method in METHODS if method in options.methods]
    runs = {part: {} for part in options.parts}

    def keep(part, name, run):
        runs[part].setdefault(name, []).append(run)
        print(
            f"{part} {name} {run['method']} seed {run['seed']}: ESS {run['ess']:.0f} and "
            f"{run['ess_squares']:.0f}, {run['gradients']:,} gradients, {run['seconds']:.1f} s",
            flush=True,
        )
        if options.runs is not None:
            options.runs.write_text(json.dumps(runs, indent=1) + "\n")

    accurate = dict(ess=100, rhat=1.1) if options.quick else dict(ess=ACCURATE_ESS, rhat=MAX_RHAT)
    for name in names:
        problem = posteriordb.load(name, precision)
        if "efficiency" in options.parts:
            for seed in seeds:
                shift = seed % len(methods)
                for method in methods[shift:] + methods[:shift]:
                    keep("efficiency", name, measure(seed, problem, method, options))
        if "accuracy" in options.parts and OWN in methods:
            until = lp.converged(**accurate)
            keep("accuracy", name, measure(0, problem, OWN, options, until=until))

    tables, goals = {}, []
    if runs.get("efficiency"):
        tables["Efficiency"], details, ratios = efficiency_tables(runs["efficiency"], methods)
        tables["Over all posteriors"] = [
            {
                "lp.sample over": method,
                "geometric mean": geometric_mean(values.values()),
                "smallest": min(values.values()),
                "posterior of the smallest": min(values, key=values.__getitem__),
            }
            for method, values in ratios.items()
        ]
        tables["What each way did"] = details
        goals += efficiency_goals(ratios)
    if runs.get("accuracy"):
        rows = [row for rows in runs["accuracy"].values() for row in rows]
        tables[f"lp.sample until ESS {accurate['ess']} and R-hat {accurate['rhat']}"] = [
            {"posterior": name, **summary(rows)} for name, rows in runs["accuracy"].items()
        ]
        goals += accuracy_goals(rows)
    notes = [
        f"Efficiency: median of {len(seeds)} seeds. What each way did: medians over the seeds, of "
        "the mean, the sd ratios and R-hat the worst. Seconds hold compilation."
    ]
    said = {
        f"{name}, {run['method']}: {message}"
        for part in runs.values()
        for name, rows in part.items()
        for run in rows
        for message in run["warnings"]
    }
    return finish(
        "against_nuts",
        options,
        host,
        precision=precision + (" (jax_enable_x64)" if precision == "float64" else ""),
        tables=tables,
        goals=goals,
        notes=notes + sorted(said),
    )


if __name__ == "__main__":
    main()

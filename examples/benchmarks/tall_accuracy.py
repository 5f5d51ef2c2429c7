"""How far from the posterior are gradients from a part of the data, for as many of them?

The two posteriors of `tall_data.py`, in float32, 4 chains. A way is a kernel with an estimator of
its gradient. It makes as many steps as take 20, 100 or 500 passes over the data for each chain,
the first fifth of them as warm-up; a pass is as many gradients of single rows as there are rows,
and a product with a Hessian counts as one gradient. The steps are counted by `lp.sample` itself
(attribute ``num_passes``). What finding the mode takes comes before them.

Step sizes are those that warm-up chooses by the noise of the gradient. That of ``psgld`` with the
identity as its frame, as published, is the best of four, judged by its errors after 100 passes,
which no user could know.

Errors are against importance sampling in float64: the largest error of a posterior mean in
posterior standard deviations, and the smallest and largest ratio of standard deviations.

The protein data are read from the folder that the environment variable LANGEVIN_PPL_DATA names.
Without it they are skipped.

    LANGEVIN_PPL_DATA=... python examples/benchmarks/tall_accuracy.py [--quick]
    python examples/benchmarks/tall_accuracy.py --only protein --runs runs.json

Runs that are in the file of ``--runs`` are not made again.
"""

import itertools
import json
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import tall_data
from common import finish, goal, machine, parser

import langevin_ppl as lp

PASSES, QUICK_PASSES, JUDGED = (20, 100, 500), (5, 10), 100
CHAINS, DRAWS = 4, 10_000
BATCH = tall_data.BATCH
GRID = (1e-5, 1e-4, 1e-3, 1e-2)
STANDARD_ERRORS = 4.0
CHOSEN = "lp.sample, nothing else said"


def variates(batch_size=BATCH, order=1, pinned=0, **options):
    return lp.control_variates(batch_size, order=order, pinned=pinned, **options)


def ways():
    """Kernel, estimator, what is fixed, and gradients of rows in a step by the size of a batch."""
    plain, first, second = lp.minibatch(BATCH), variates(), variates(order=2)
    identity = {"inverse_mass_matrix": 1.0}
    listed = {
        "sgld, plain, no frame": (lp.sgld, plain, identity),
        "sgld, plain": (lp.sgld, plain, {}),
        "sghmc, plain": (lp.sghmc, plain, {}),
        "sgnht, plain": (lp.sgnht, plain, {}),
        "badodab, plain": (lp.badodab, plain, {}),
        "sgld, svrg": (lp.sgld, lp.svrg(BATCH), {}),
        "sgld, order 1": (lp.sgld, first, {}),
        "sghmc, order 1": (lp.sghmc, first, {}),
        "sgnht, order 1": (lp.sgnht, first, {}),
        "badodab, order 1": (lp.badodab, first, {}),
        "baoab, order 1": (lp.baoab, first, {}),
        "ubu, order 1": (lp.ubu, first, {}),
        "ubu, order 2": (lp.ubu, second, {}),
        "ubu, svrg": (lp.ubu, lp.svrg(BATCH), {}),
        "ubu, order 1, 256 rows pinned": (lp.ubu, variates(pinned=256), {}),
        "ubu, order 1, rows by importance": (lp.ubu, variates(sampling="importance"), {}),
        "ubu, order 2, 32 rows by importance": (
            lp.ubu,
            variates(32, order=2, sampling="importance"),
            {},
        ),
        CHOSEN: (None, None, {}),
    }
    for step_size in GRID:
        fixed = {**identity, "step_size": step_size}
        listed[f"psgld, plain, no frame, step size {step_size:g}"] = (lp.psgld, plain, fixed)
    return listed


def passes_per_step(target, way):
    """Passes of one chain in one step, and at the mode, from two runs of a few steps."""
    kernel, gradient, fixed = way
    made, counted = [20, 60], []
    for number in made:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            idata = lp.sample(
                jax.random.key(0),
                target,
                kernel,
                gradient=gradient,
                num_chains=CHAINS,
                num_warmup=number // 2,
                num_samples=number // 2,
                thinning=1,
                **fixed,
            )
        counted.append(float(idata.attrs["num_passes"]))
    return (counted[1] - counted[0]) / (CHAINS * (made[1] - made[0]))


def measure(target, moments, way, passes, per_step, seed=0):
    """One run: its errors, and what it says of itself."""
    kernel, gradient, fixed = way
    steps = round(passes / per_step)
    thinning = max(1, steps // DRAWS)
    warmup = steps // 5
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        idata = lp.sample(
            jax.random.key(seed),
            target,
            kernel,
            gradient=gradient,
            num_chains=CHAINS,
            num_warmup=warmup,
            num_samples=max(1, (steps - warmup) // thinning),
            thinning=thinning,
            **fixed,
        )
    seconds = time.perf_counter() - began
    attributes = idata.attrs
    shift, lowest, highest = tall_data.errors(
        tall_data.draws_of(idata["posterior"].to_dataset()), moments
    )
    return {
        "passes": passes,
        "steps": steps,
        "step_size": float(idata["sampler_parameters"]["step_size"]),
        "shift": shift,
        "sds": (lowest, highest),
        "right": tall_data.passes_test((shift, lowest, highest)),
        "converged": bool(attributes["converged"]),
        "temperature": float(attributes.get("temperature_noisiest", np.nan)),
        "estimator": str(attributes["gradient_estimator"]),
        "mode_passes": attributes["num_passes"] - CHAINS * steps * per_step,
        "rhat": float(attributes["max_rhat"]),
        "ess": float(attributes["min_ess"]),
        "warnings": sorted({w.category.__name__ for w in caught}),
        "advice": str(attributes.get("advice", "")),
        "sampling_time": float(attributes["sampling_time"]),
        "seconds": seconds,
    }


def shown(run):
    if not np.isfinite(run["shift"]):
        return "left the finite numbers"
    low, high = run["sds"]
    return f"{run['shift']:.2f}; {low:.2f} to {high:.2f}"


def verdict(run):
    """What the run says of itself, beside what it is."""
    said = "converged" if run["converged"] else "not converged"
    said += ", too hot" if "BiasWarning" in run["warnings"] else ""
    return f"{'right' if run['right'] else 'wrong'}, says {said}"


def beyond_chance(run):
    """Whether errors are above the limits by four Monte Carlo standard errors."""
    error = STANDARD_ERRORS / np.sqrt(max(run["ess"], 1.0))
    worst = max(1.0 - run["sds"][0], run["sds"][1] - 1.0)
    limit = tall_data.SD_RANGE[1] - 1.0 + error / np.sqrt(2.0)
    return bool(run["shift"] > tall_data.MAX_SHIFT + error or worst > limit)


def best_of_grid(rows):
    """Keep the best of the step sizes of a kernel that has no rule."""
    grid = {label: runs for label, runs in rows.items() if label.startswith("psgld")}
    if not grid:
        return rows

    def badness(label):
        runs = grid[label]
        run = runs.get(str(JUDGED)) or last(runs)
        return max(run["shift"], 1.0 - run["sds"][0], run["sds"][1] - 1.0)

    best = min((label for label in grid if grid[label]), key=badness)
    kept = {label: runs for label, runs in rows.items() if label not in grid}
    return {"psgld, plain, no frame, best of grid": grid[best], **kept}


def last(runs):
    """The longest run of a way."""
    return runs[max(runs, key=int)]


def table(rows, passes):
    return [
        {
            "way": label,
            "step size": last(runs)["step_size"],
            **{f"{p} passes": shown(runs[str(p)]) if str(p) in runs else "-" for p in passes},
            "the longest is": verdict(last(runs)),
            "R-hat": f"{last(runs)['rhat']:.3f}",
            "temperature": f"{last(runs)['temperature']:.2f}",
        }
        for label, runs in rows.items()
        if runs
    ]


def main():
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", choices=tall_data.NAMES, help="these posteriors")
    options.add_argument("--runs", type=Path, help="keep every single run in this JSON file")
    options.add_argument("--most", type=int, help="make no runs of more passes than this")
    options = options.parse_args()
    most = options.most or PASSES[-1]
    host = machine()
    passes = QUICK_PASSES if options.quick else PASSES
    names = options.only or list(tall_data.NAMES)
    for name in set(names) - set(tall_data.available()):
        print(f"tall_accuracy, {name}: skipped, because LANGEVIN_PPL_DATA has no data of it.")
    names = [name for name in names if name in tall_data.available()]
    if not names:
        return None
    kept = {"references": {}, "runs": {}}
    if options.runs is not None and options.runs.exists():
        kept = json.loads(options.runs.read_text())

    def keep():
        if options.runs is not None:
            options.runs.write_text(json.dumps(kept, indent=1) + "\n")

    for name in names:
        if name not in kept["references"]:
            kept["references"][name] = tall_data.reference(name, quick=options.quick)
        moments = kept["references"][name]
        keep()
        target = tall_data.target_of(tall_data.load(name, quick=options.quick), BATCH)
        rows = kept["runs"].setdefault(name, {})
        per_step = {}
        for number, (label, way) in itertools.product(passes, ways().items()):
            runs = rows.setdefault(label, {})
            if str(number) in runs or number > most:
                continue
            if label not in per_step:
                per_step[label] = passes_per_step(target, way)
            run = runs[str(number)] = measure(target, moments, way, number, per_step[label])
            print(
                f"{name}, {label}, {number} passes: {shown(run)}; {verdict(run)}, "
                f"h {run['step_size']:.3g}, {run['steps']} steps, R-hat {run['rhat']:.3f}, "
                f"{run['seconds']:.1f} s",
                flush=True,
            )
            keep()

    tables, goals, notes = {}, [], []
    for name in names:
        rows = best_of_grid(kept["runs"][name])
        tables[f"{name}: worst mean in sd; ratios of sds"] = table(rows, passes)
        moments = kept["references"][name]
        chosen = last(rows[CHOSEN])
        notes.append(
            f"{name}: condition number at the mode {moments['condition']:.0f}. The reference: "
            f"{2 * moments['pairs']:,} draws, effective {moments['ess']:,.0f}, Pareto k "
            f"{moments['pareto_k']:.2f}; the largest standard error of a mean is "
            f"{moments['error_of_mean']:.4f} sd, of an sd {100 * moments['error_of_sd']:.2g} %. "
            f"The mode is off the mean by up to {moments['laplace_shift']:.2f} sd. Finding it took "
            f"lp.sample {chosen['mode_passes']:.0f} passes, and nothing else said it chose "
            f"{chosen['estimator']}, with {last(rows[CHOSEN])['step_size']:.2g} as its step size."
        )
        every = [run for runs in rows.values() for run in runs.values()]
        silent = sum(beyond_chance(run) and run["converged"] for run in every)
        low, high = chosen["sds"]
        goals += [
            goal(f"{name}, {CHOSEN}: worst mean, in sd", chosen["shift"], tall_data.MAX_SHIFT),
            goal(f"{name}, the same: worst error of an sd", max(1 - low, high - 1), 0.1),
            goal(f"{name}: runs of this table wrong beyond chance that say converged", silent, 0),
        ]
    notes.append(
        f"{CHAINS} chains, one seed. Passes: of each chain, without those that find the mode. "
        f"Right: all means within {tall_data.MAX_SHIFT} sd, all ratios of sds within "
        f"{tall_data.SD_RANGE[0]} to {tall_data.SD_RANGE[1]}; beyond chance: wrong by "
        f"{STANDARD_ERRORS:.0f} standard errors more, by the ESS that the run reports. Order 1 and "
        "2: control variates. "
        "Batches of 256 rows unless said otherwise. The frame is that of the curvature at the mode "
        "unless said otherwise. Chains start about the mode, spread as the Gaussian there: a "
        "kernel that does not move keeps what four draws of it know. Temperature: along the "
        "noisiest direction, as lp.sample reports it."
    )
    return finish(
        "tall_accuracy",
        options,
        host,
        precision="float32",
        tables=tables,
        goals=goals,
        notes=notes,
        data=kept["references"],
    )


if __name__ == "__main__":
    main()

"""``lp.mala`` against reference posteriors of posteriordb.

Three posteriors (eight schools, kid scores with an interaction, a small Gaussian process), in
float64 and in float32. Each is run with 4 chains of 1000 + 4000 draws, the thinning doubled until
the bulk ESS of every variable, and of its squared deviation from its mean, is at least 4000. Means
and standard deviations are compared with those of posteriordb's gold-standard draws (10,000 of
them, so the reference itself has errors of about 1 % of a standard deviation).

The data are read from the folder that the environment variable LANGEVIN_PPL_DATA names
(`posteriordb.py` says what is in it). Without it the benchmark is skipped.

    LANGEVIN_PPL_DATA=... python examples/benchmarks/posteriors.py [--quick]
"""

import time
import warnings

import jax
import posteriordb
from common import finish, goal, machine, parser

import langevin_ppl as lp

NAMES = ("eight_schools_noncentered", "kidscore_interaction", "gp_regr")
MIN_ESS = 4000
MAX_THINNING = 1024


def run(target, options):
    """Sample with ever more thinning until there are enough effective draws.

    The last run is made twice, and its time is that of the second, without compilation.
    """
    draws, wanted = (500, 100) if options.quick else (4000, MIN_ESS)

    def sample(thinning):
        began = time.perf_counter()
        idata = lp.sample(
            jax.random.key(0),
            target,
            lp.mala,
            num_chains=4,
            num_warmup=1000,
            num_samples=draws,
            thinning=thinning,
        )
        return idata, time.perf_counter() - began

    thinning = 1
    while True:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            idata, _ = sample(thinning)
            ess = posteriordb.effective(idata["posterior"].to_dataset())
            if min(ess) >= wanted or thinning >= MAX_THINNING:
                _, seconds = sample(thinning)
                messages = sorted({f"{w.category.__name__}: {w.message}" for w in caught})
                return idata, ess, seconds, messages
        thinning *= 2


def main():
    options = parser(__doc__).parse_args()
    host = machine()
    if posteriordb.folder() is None:
        print("posteriors: skipped, because LANGEVIN_PPL_DATA names no folder of data.")
        return None
    rows, notes = [], []
    for name in NAMES:
        for precision in ("float64", "float32"):
            jax.config.update("jax_enable_x64", precision == "float64")
            model, args, kwargs, mean, sd = posteriordb.load(name, precision)
            idata, ess, seconds, messages = run(lp.target(model, *args, **kwargs), options)
            assert idata.attrs["precision"] == precision
            posterior = idata["posterior"].to_dataset()
            shift, lowest, highest = posteriordb.moments(posterior, mean, sd)
            attributes, stats = idata.attrs, idata["sample_stats"]
            shape = stats.sizes
            rows.append(
                {
                    "posterior": name,
                    "precision": precision,
                    "worst mean, in sd": shift,
                    "sd ratios": f"{lowest:.3f} to {highest:.3f}",
                    "max R-hat": f"{posteriordb.largest_rhat(posterior):.4f}",
                    "min ESS": round(ess[0]),
                    "min ESS of squares": round(ess[1]),
                    "draws x thinning": f"4 x {shape['draw']} x {attributes['thinning']}",
                    "gradients": int(attributes["num_gradient_evaluations"]),
                    "seconds": seconds,
                    "step size": float(idata["sampler_parameters"]["step_size"]),
                    "acceptance": float(stats["acceptance_rate"].mean()),
                    "diverging": f"{100 * float(stats['diverging'].mean()):.2g} %",
                }
            )
            notes += [f"{name}, {precision}: {message}" for message in messages]

    def worst(function):
        return max(function(row) for row in rows)

    def width(row):
        lowest, highest = map(float, row["sd ratios"].split(" to "))
        return max(1 - lowest, highest - 1)

    goals = [
        goal(
            "worst difference of means, in reference sd",
            worst(lambda r: r["worst mean, in sd"]),
            0.1,
        ),
        goal("worst relative difference of sds", worst(width), 0.1),
        goal("max R-hat", worst(lambda r: float(r["max R-hat"])), 1.01),
    ]
    return finish(
        "posteriors",
        options,
        host,
        precision="float64 (jax_enable_x64) and float32",
        tables={"Against the reference draws": rows},
        goals=goals,
        notes=notes,
    )


if __name__ == "__main__":
    main()

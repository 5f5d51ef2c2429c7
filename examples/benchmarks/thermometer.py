"""Does the thermometer of a run flag wrong standard deviations, and leave right ones alone?

Runs with noisy gradients at step sizes given by hand, in the frame of the posterior covariance, on
three posteriors of 20,000 rows:

- ``logistic``: 10 correlated features.
- ``rare``: logistic with 8 features and 8 more that are there in one row of 500; few rows make
  most of the noise.
- ``robust``: regression with Student errors of 2 degrees of freedom and unknown scale; 4 features
  with heavy tails, and 6 that are there in one row of 500.

The truth is a long exact run with all the data. A run is wrong if the standard deviation of any
unconstrained coordinate is off by more than 15 %. It is flagged if its attribute
``temperature_noisiest``, less three of its errors, is above ``langevin_ppl.trust.HOT``. Beside it
stands what R-hat says (1.01 at most). All runs last for the same time of the diffusion, in which
standard deviations have errors of some 2 %.

    python examples/benchmarks/thermometer.py [--quick]
"""

import functools
import itertools
import time
import warnings

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
from common import finish, goal, machine, parser

import langevin_ppl as lp
from langevin_ppl.trust import CONFIDENCE, HOT

ROWS, BATCH, PINNED = 20_000, 200, 256
LIMIT = 0.15  # of a standard deviation that is wrong
NEAR = 0.05  # of it where chance may decide
MAX_RHAT = 1.01
CHAINS = 4
TIME = {"kinetic": 1500.0, "overdamped": 1000.0}  # of each chain
FRICTION = 2.0
ESTIMATORS = {
    "minibatch": lp.minibatch(BATCH),
    "control variates": lp.control_variates(BATCH, order=1, pinned=0),
    "the same, pinned": lp.control_variates(BATCH, order=1, pinned=PINNED),
}
PLAIN, VARIATES, HEAVY = ESTIMATORS
SETTINGS = {
    "logistic": {"ubu": (PLAIN, VARIATES), "sgld": (PLAIN, VARIATES), "baoab": (VARIATES,)},
    "rare": {"ubu": (PLAIN, VARIATES, HEAVY), "sgld": (VARIATES, HEAVY), "sghmc": (PLAIN,)},
    "robust": {"ubu": (PLAIN, VARIATES, HEAVY), "sgld": (VARIATES, HEAVY), "baoab": (VARIATES,)},
}
STEPS = {
    ("kinetic", PLAIN): (0.006, 0.012, 0.02, 0.04, 0.1),
    ("kinetic", VARIATES): (0.1, 0.2, 0.3, 0.4),
    ("kinetic", HEAVY): (0.1, 0.2, 0.4),
    ("overdamped", PLAIN): (0.004, 0.008, 0.02, 0.1),
    ("overdamped", VARIATES): (0.05, 0.1, 0.15, 0.2, 0.3),
    ("overdamped", HEAVY): (0.1, 0.3),
}
THINNING = {PLAIN: 20, VARIATES: 4, HEAVY: 4}
THRESHOLDS = (1.1, 1.15, 1.2, 1.25, 1.3, 1.4, 1.5, 1.75, 2.0)


def binary(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("row", len(x), subsample_size=BATCH):
        logits = numpyro.subsample(x, event_dim=1) @ slope
        numpyro.sample("y", dist.Bernoulli(logits=logits), obs=numpyro.subsample(y, event_dim=0))


def student(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 2.0).expand([x.shape[1]]).to_event(1))
    scale = numpyro.sample("scale", dist.HalfNormal(2.0))
    with numpyro.plate("row", len(x), subsample_size=BATCH):
        law = dist.StudentT(2.0, numpyro.subsample(x, event_dim=1) @ slope, scale)
        numpyro.sample("y", law, obs=numpyro.subsample(y, event_dim=0))


def posteriors():
    random = np.random.default_rng(0)

    def correlated(columns):
        law = 0.7 ** np.abs(np.subtract.outer(np.arange(columns), np.arange(columns)))
        return random.standard_normal((ROWS, columns)) @ np.linalg.cholesky(law).T

    def labels(x, slope):
        return 1.0 * (random.random(ROWS) < 1.0 / (1.0 + np.exp(-x @ slope)))

    dense = correlated(10)
    rare = np.hstack([correlated(8), random.random((ROWS, 8)) < 0.002])
    tails = np.hstack([random.standard_t(4.0, (ROWS, 4)), random.random((ROWS, 6)) < 0.002])
    slopes = 0.5 * random.standard_normal(16)
    noise = random.standard_t(2.0, ROWS)
    data = {
        "logistic": (binary, dense, labels(dense, slopes[:10])),
        "rare": (binary, rare, labels(rare, slopes)),
        "robust": (student, tails, tails @ slopes[:10] + noise),
    }
    return {
        name: lp.target(model, x.astype(np.float32), y.astype(np.float32))
        for name, (model, x, y) in data.items()
    }


def unconstrained(idata):
    """Draws ``[chain, draw, coordinate]``."""
    group = idata["unconstrained_posterior"].to_dataset()
    values = [group[name].values for name in sorted(map(str, group.data_vars))]
    return np.concatenate([v.reshape(*v.shape[:2], -1) for v in values], -1).astype(float)


def sampled(key, target, kernel=None, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a run is wrong is what it is for
        return lp.sample(key, target, kernel, groups=["unconstrained_posterior"], **arguments)


def setting(seed, target, truth, kernel, estimator, step_size, share):
    """One run: how wrong it is, and what the thermometer and R-hat say."""
    kind = "overdamped" if kernel == "sgld" else "kinetic"
    thinning = THINNING[estimator]
    began = time.perf_counter()
    idata = sampled(
        jax.random.key(seed),
        target,
        getattr(lp, kernel),
        gradient=ESTIMATORS[estimator],
        step_size=step_size,
        inverse_mass_matrix=truth["covariance"],
        num_chains=CHAINS,
        num_warmup=int(share * 50.0 / step_size) // thinning * thinning,
        num_samples=max(20, int(share * TIME[kind] / step_size / thinning)),
        thinning=thinning,
        **({} if kind == "overdamped" else {"friction": FRICTION}),
    )
    ratio = unconstrained(idata).std(axis=(0, 1)) / truth["sd"]
    worst = float(ratio[np.argmax(np.abs(np.log(ratio)))]) if np.isfinite(ratio).all() else np.nan
    return {
        "estimator": estimator,
        "kernel": kernel,
        "step size": step_size,
        "worst sd": worst,
        "temperature": idata.attrs["temperature_noisiest"],
        "error": idata.attrs["temperature_error"],
        "R-hat": idata.attrs["max_rhat"],
        "ESS of squares": idata.attrs["min_ess_squares"],
        "seconds": time.perf_counter() - began,
    }


def truth_of(target, share):
    idata = sampled(
        jax.random.key(1), target, gradient=lp.exact(), num_samples=max(200, int(4000 * share))
    )
    draws = unconstrained(idata).reshape(CHAINS * idata["posterior"].sizes["draw"], -1)
    return {
        "sd": draws.std(axis=0),
        "covariance": np.cov(draws.T).astype(np.float32),
        "ESS of squares": idata.attrs["min_ess_squares"],
    }


def is_wrong(row, limit=LIMIT):
    return bool(abs(row["worst sd"] - 1.0) > limit)


def is_hot(row, threshold=HOT):
    return bool(row["temperature"] - CONFIDENCE * row["error"] > threshold)


def counts(rows, flagged):
    """Wrong runs that are flagged, and right ones that are."""
    wrong, right = ([r for r in rows if is_wrong(r) is truth] for truth in (True, False))
    return sum(map(flagged, wrong)), len(wrong), sum(map(flagged, right)), len(right)


def verdicts(what, rows, flagged):
    hits, wrong, alarms, right = counts(rows, flagged)
    clear = [r for r in rows if abs(abs(r["worst sd"] - 1.0) - LIMIT) > NEAR]
    clear_hits, clear_wrong, clear_alarms, clear_right = counts(clear, flagged)
    return {
        "flagged by": what,
        "wrong runs flagged": f"{hits} of {wrong}",
        "right runs flagged": f"{alarms} of {right}",
        "wrong, off by more than 20 %": f"{clear_hits} of {clear_wrong}",
        "right, off by less than 10 %": f"{clear_alarms} of {clear_right}",
    }


def main():
    options = parser(__doc__).parse_args()
    host = machine()
    share = 0.02 if options.quick else 1.0
    rows, truths, seed = [], [], itertools.count(500)
    for name, target in posteriors().items():
        truth = truth_of(target, share)
        truths.append(f"{name} {truth['ESS of squares']:.0f}")
        for kernel, estimators in SETTINGS[name].items():
            for estimator in estimators[:1] if options.quick else estimators:
                steps = STEPS["overdamped" if kernel == "sgld" else "kinetic", estimator]
                for step_size in steps[:1] if options.quick else steps:
                    found = setting(next(seed), target, truth, kernel, estimator, step_size, share)
                    rows.append({"posterior": name, **found})
                    print(rows[-1], flush=True)
    lost = [row for row in rows if not np.isfinite(row["worst sd"])]
    kept = [row for row in rows if np.isfinite(row["worst sd"])]
    summary = [
        verdicts(
            f"temperature above {threshold:g}" + (" (the library's)" if threshold == HOT else ""),
            kept,
            functools.partial(is_hot, threshold=threshold),
        )
        for threshold in sorted({*THRESHOLDS, HOT})
    ]
    summary.append(verdicts(f"R-hat above {MAX_RHAT}", kept, lambda r: r["R-hat"] > MAX_RHAT))
    hits, wrong, alarms, right = counts(kept, is_hot)
    goals = [
        goal("wrong runs that are not flagged, share", 1.0 - hits / max(wrong, 1), 0.05),
        goal("right runs that are flagged, share", alarms / max(right, 1), 0.1),
    ]
    table = [
        {
            **{key: row[key] for key in ("posterior", "estimator", "kernel", "step size")},
            "worst sd": f"{row['worst sd']:.2f}",
            "temperature": f"{row['temperature']:.2f} +- {row['error']:.2f}",
            "R-hat": f"{row['R-hat']:.3f}",
            "wrong": is_wrong(row),
            "flagged": is_hot(row),
        }
        for row in kept
    ]
    note = (
        f"{len(rows)} runs of {CHAINS} chains; {len(lost)} left the finite numbers, which "
        "`lp.sample` says by itself, and are not counted. The worst sd is that of the coordinate "
        "that is furthest off, in units of the truth. ESS of squares of the exact runs: "
        f"{', '.join(truths)}; of the runs, at the least "
        f"{min(r['ESS of squares'] for r in kept):.0f}, in the middle "
        f"{np.median([r['ESS of squares'] for r in kept]):.0f}. Friction {FRICTION:g}, batches of "
        f"{BATCH} of {ROWS:,} rows, {PINNED} rows pinned where it says so. The library's threshold "
        "was chosen on runs with other keys."
    )
    return finish(
        "thermometer",
        options,
        host,
        precision="float32",
        tables={"Wrong standard deviations": summary, "Runs": table},
        goals=goals,
        notes=[note],
    )


if __name__ == "__main__":
    main()

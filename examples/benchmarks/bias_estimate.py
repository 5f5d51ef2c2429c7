"""Do the intervals of ``lp.diagnostics.bias`` hold the true bias?

Unadjusted kernels at fixed step sizes on targets where the stationary law of the *kernel* is known,
so that the true bias is a number: ``lp.sample`` makes the run, ``lp.diagnostics.bias`` estimates
the shifts of mean and standard deviation of every coordinate, and the interval of two standard
errors holds the truth or does not. In float64.

- Gaussians: a linear kernel is an affine map of position, momentum and noise. Its stationary
  covariance solves a discrete Lyapunov equation, whose matrices are read off the kernel's own
  ``transition`` by automatic differentiation.
- ``U = x^4 / 4 + x^2 / 2 - x``: a kernel that moves by a Gaussian step is a matrix on a fine
  grid, to all digits. Its stationary law is the leading left eigenvector. Here the mean is biased
  too.

    python examples/benchmarks/bias_estimate.py [--quick]
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import finish, goal, machine, parser
from scipy.linalg import solve_discrete_lyapunov
from scipy.stats import binomtest

import langevin_ppl as lp
from langevin_ppl.base import Randomness
from langevin_ppl.gradients import as_estimator

NOMINAL = 0.954  # two standard errors of a normal
SEEDS = 3
AUTOREGRESSION = 0.7 ** np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
GAUSSIANS = {
    "N(0, I), 2 dimensions": (np.zeros(2), np.eye(2)),
    "variances 0.25 and 4": (np.zeros(2), np.diag([0.25, 4.0])),
    "correlated, 3 dimensions": (
        np.array([1.0, -2.0, 0.5]),
        np.array([[1.5, 0.4, -0.2], [0.4, 0.8, 0.3], [-0.2, 0.3, 0.6]]),
    ),
    "autoregression, 5 dimensions": (np.arange(5.0), AUTOREGRESSION),
}
# Step sizes on a Gaussian of smallest variance 1: those of kinetic kernels are times.
LINEAR = {
    "ula": (0.2, 0.5),
    "leimkuhler_matthews": (0.5,),
    "irreversible": (0.3,),
    "klmc": (0.3,),
    "baoab": (1.0,),
    "obabo": (0.5, 1.0),
    "ubu": (1.0,),
}
KINETIC = ("klmc", "baoab", "obabo", "ubu")
QUARTIC = "quartic, 1 dimension"
TAMED = {
    **dict.fromkeys(("ula", "tula", "tulac"), (0.05, 0.1)),
    **dict.fromkeys(("mtula", "tusla", "stula"), (0.02, 0.05)),
}
POWER = {name: {"power": 2.0} for name in ("mtula", "tusla", "stula")}


def gaussian(mean, covariance):
    mean, precision = jnp.array(mean), jnp.array(np.linalg.inv(covariance))

    def logdensity(x):
        return -0.5 * (x - mean) @ precision @ (x - mean)

    return logdensity


def quartic(x):
    x = jnp.squeeze(x)
    return -0.25 * x**4 - 0.5 * x**2 + x


class Case(NamedTuple):
    """A target, a kernel with its parameters, and the true shifts of mean and sd, in sd."""

    name: str
    kernel: str
    parameters: dict[str, float]
    target: Any
    shifts: Callable[[], tuple[np.ndarray, np.ndarray]]


def gaussian_shifts(kernel, parameters, logdensity, mean, covariance):
    """By the discrete Lyapunov equation of one step."""
    estimator, size = as_estimator(logdensity), len(mean)
    # Whatever the state carries from step to step beside the position.
    carried = {"leimkuhler_matthews": "noise"}.get(
        kernel.__name__, "momentum" if kernel.__name__ in KINETIC else None
    )

    def step(whole, noise):
        state = kernel.init(whole[:size], estimator)._replace(step=jnp.ones((), jnp.int32))
        if carried:
            state = state._replace(**{carried: whole[size:]})
        prepared = kernel.prepare(parameters)
        new, _ = kernel.transition(Randomness(noise, ()), state, estimator, **prepared)
        return jnp.concatenate([new.position, *([getattr(new, carried)] if carried else [])])

    start = kernel.init(jnp.zeros(size), estimator)
    noise = jnp.zeros(kernel.draw(jax.random.key(0), start, estimator).noise.shape)
    zero = jnp.zeros(size * (2 if carried else 1))
    drift, diffusion = map(np.asarray, jax.jacfwd(step, (0, 1))(zero, noise))
    centre = np.linalg.solve(np.eye(len(zero)) - drift, np.asarray(step(zero, noise)))
    law = solve_discrete_lyapunov(drift, diffusion @ diffusion.T)
    sd = np.sqrt(np.diag(covariance))
    return (centre[:size] - mean) / sd, np.sqrt(np.diag(law)[:size]) / sd - 1.0


def quartic_shifts(kernel, parameters):
    """By the leading left eigenvector of the kernel on a grid."""
    # Beyond 4 the drift of ula leads ever further away, where the tamed still have mass.
    end_of_grid = 4.0 if kernel is lp.ula else 10.0
    grid = np.linspace(-end_of_grid, end_of_grid, 1201)
    estimator = as_estimator(quartic)

    def end(x):
        state = kernel.init(x[None], estimator)
        prepared = kernel.prepare(parameters)
        return kernel.transition(Randomness(jnp.zeros(1), ()), state, estimator, **prepared)[0]

    centres = np.asarray(jax.vmap(end)(jnp.array(grid)).position)[:, 0]
    moves = np.exp(-((grid - centres[:, None]) ** 2) / (4 * parameters["step_size"]))
    moves /= moves.sum(axis=1, keepdims=True)
    system = moves.T - np.eye(len(grid))
    system[600] = 1.0  # total mass, in place of one redundant equation
    law = np.linalg.solve(system, 1.0 * (np.arange(len(grid)) == 600))
    assert law.min() > -1e-12 and abs(law[[0, -1]]).max() < 1e-12
    logdensity = np.asarray(jax.vmap(quartic)(jnp.array(grid)))
    exact = np.exp(logdensity - logdensity.max())
    (mean, sd), (centre, spread) = (moments(grid, w / w.sum()) for w in (exact, law))
    return np.array([(centre - mean) / sd]), np.array([spread / sd - 1.0])


def moments(grid, weights):
    mean = weights @ grid
    return mean, np.sqrt(weights @ (grid - mean) ** 2)


def cases():
    chosen = []
    for name, (mean, covariance) in GAUSSIANS.items():
        logdensity = gaussian(mean, covariance)
        target = lp.density(logdensity, jnp.zeros(len(mean)))
        smallest = np.linalg.eigvalsh(covariance)[0]
        for kernel, step_sizes in LINEAR.items():
            for relative in step_sizes:
                scale = np.sqrt(smallest) if kernel in KINETIC else smallest
                parameters = {"step_size": float(relative * scale)}
                arguments = getattr(lp, kernel), parameters, logdensity, mean, covariance
                chosen.append(
                    Case(name, kernel, parameters, target, lambda a=arguments: gaussian_shifts(*a))
                )
    target = lp.density(quartic, jnp.zeros(1))
    for kernel, step_sizes in TAMED.items():
        for step_size in step_sizes:
            parameters = {"step_size": step_size, **POWER.get(kernel, {})}
            arguments = getattr(lp, kernel), parameters
            chosen.append(
                Case(QUARTIC, kernel, parameters, target, lambda a=arguments: quartic_shifts(*a))
            )
    return chosen


def estimate(case, seed, num_samples, ess):
    """Shifts and errors of mean and sd, and the gradients of the exact run over the run's own."""
    key_run, key_bias = jax.random.split(jax.random.key(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the bias is large is what the case is for
        idata = lp.sample(
            key_run,
            case.target,
            getattr(lp, case.kernel),
            num_samples=num_samples,
            **case.parameters,
        )
        idata = lp.diagnostics.bias(key_bias, case.target, idata, ess=ess)
    group = idata["bias"]
    parts = ("mean_shift", "mean_error", "sd_shift", "sd_error")
    extra = group.attrs["num_gradient_evaluations"] / idata.attrs["num_gradient_evaluations"]
    return *(group["x"].sel(moment=part).values for part in parts), extra


def coverage(what, scores):
    """One row: share of the intervals that held the truth, with a binomial interval."""
    held = np.abs(scores) <= 2
    low, high = binomtest(int(held.sum()), len(held)).proportion_ci(method="wilson")
    return {
        "estimates of": what,
        "intervals": len(held),
        "coverage": float(held.mean()),
        "95 % interval": f"{low:.3f} to {high:.3f}",
        "sd of (estimate - truth) / error": float(np.sqrt(np.mean(np.square(scores)))),
    }


def main():
    options = parser(__doc__).parse_args()
    host = machine()
    jax.config.update("jax_enable_x64", True)
    seeds, num_samples, ess = (1, 2000, 500.0) if options.quick else (SEEDS, 20_000, 2000.0)
    rows, scores, widths, extras = [], {"mean": [], "sd": []}, [], []
    for number, case in enumerate(cases()[:: 14 if options.quick else 1]):
        truth = dict(zip(("mean", "sd"), case.shifts(), strict=True))
        inside, estimates, costs = [], [], []
        for seed in range(seeds):
            *parts, cost = estimate(case, 1000 * number + seed, num_samples, ess)
            for what, shift, error in zip(truth, parts[::2], parts[1::2], strict=True):
                score = (shift - truth[what]) / error
                scores[what] += score.tolist()
                inside += (np.abs(score) <= 2).tolist()
                widths += (4 * error).tolist()
            estimates.append(parts[2])
            costs.append(cost)
        extras += costs
        worst = int(np.argmax(np.abs(truth["sd"])))
        rows.append(
            {
                "target": case.name,
                "kernel": case.kernel,
                "step size": case.parameters["step_size"],
                "true shift of mean": f"{truth['mean'][np.argmax(np.abs(truth['mean']))]:+.3f}",
                "true shift of sd": f"{truth['sd'][worst]:+.3f}",
                "estimated": f"{np.mean(estimates, axis=0)[worst]:+.3f}",
                "held": f"{sum(inside)} of {len(inside)}",
                "extra gradients": float(np.mean(costs)),
            }
        )
        print(rows[-1], flush=True)
    shares = [coverage(f"the {what}", part) for what, part in scores.items()]
    shares.append(coverage("both", scores["mean"] + scores["sd"]))
    share = shares[-1]["coverage"]
    goals = [
        goal("coverage below 0.90, by", 0.90 - share, 0.0),
        goal("coverage above 0.99, by", share - 0.99, 0.0),
    ]
    note = (
        f"{len(rows)} cases x {seeds} seeds, 4 chains of {num_samples:,} draws; the exact run "
        f"stopped at an ESS of {ess:g}. Nominal coverage of two standard errors: {NOMINAL}. Mean "
        f"width of an interval: {np.mean(widths):.3f} posterior sd. The exact run cost "
        f"{np.median(extras):.2g} times the gradients of the run (median), warm-up and search for "
        "the mode included. Shifts are in posterior sd, of the coordinate where the truth is "
        "largest. Coordinates of a case are correlated, so that the binomial interval is a little "
        "too short."
    )
    return finish(
        "bias_estimate",
        options,
        host,
        precision="float64 (jax_enable_x64)",
        tables={"Coverage of intervals of two standard errors": shares, "Cases": rows},
        goals=goals,
        notes=[note],
    )


if __name__ == "__main__":
    main()

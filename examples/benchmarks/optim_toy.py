r"""Optimisers on a loss that grows like the 30th power, from where its gradient is 1e18.

The loss of Lim, Neufeld, Sabanis, Zhang (2021, arXiv:2107.08649): with a random number X,

    U(t, X) = t^2 (1 + 1{X <= t}) + t^30            for |t| <= 1,
              (2 |t| - 1) (1 + 1{X <= t}) + t^30    beyond,

whose mean has its minimum at 0. Gradients are those of U at one draw of X for each step, by
automatic differentiation, which does not see the jump. Two settings: X is Beta(2, 2), and t starts
at 4; X is N(0, 1), and t starts at 5.

Published settings stand beside ones that are fair to the others: the best rate of a grid, chosen
by the result itself, and clipped gradients. All methods see the same draws of X.

    python examples/benchmarks/optim_toy.py [--quick]
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import finish, goal, machine, parser

import langevin_ppl as lp

SEEDS = 5
POWER = 28  # gradients grow like |t|^29
GRID = tuple(float(f"{10**e:.1g}") for e in np.arange(-4, 1.25, 0.5))
NEAR = 0.1  # at the minimum, for the count of rates that get there


NOTE = f"""Ends are distances from the minimum, medians over {SEEDS} sequences of X and their range
where there is one. Best rates are those of {len(GRID)} between {GRID[0]:g} and {GRID[-1]:g} with
the smallest median end, chosen by what they are judged by; rates below {NEAR} are
those of the grid whose median end is. ``tusla`` has power {POWER} and strength 0: with it, far
from the minimum a step multiplies t by about 1 - 30 sqrt(h), so that it leaves every ball for h
above {4 / 30**2:.4f}. A start at 5 has a gradient of 6e21, whose square overflows in float32: Adam,
its relatives, and clipping by the global norm then divide by infinity and stand still, in
silence. ``optax.amsgrad`` takes the maximum of corrected second moments and PyTorch, where 3.61
comes from, that of uncorrected ones, which makes the difference."""


class Setting(NamedTuple):
    """Law of X, the start, the published rate, and the number of steps."""

    draw: Callable
    start: float
    rate: float
    steps: int


SETTINGS = {
    "Beta": Setting(lambda key, n: jax.random.beta(key, 2.0, 2.0, (n,)), 4.0, 1e-3, 1000),
    "normal": Setting(lambda key, n: jax.random.normal(key, (n,)), 5.0, 2e-3, 500),
}
MORE = {  # other rates that were published
    "Beta": [("adam", 0.1), ("theopoula", 0.1)],
    "normal": [("adam", 1e-3), ("rmsprop", 0.01)],
}


def loss(t, x):
    weight = 1.0 + (x <= t)
    inside = t**2 * weight
    outside = (2.0 * jnp.abs(t) - 1.0) * weight
    return jnp.where(jnp.abs(t) <= 1.0, inside, outside) + t**30


METHODS = {
    "tusla": lambda h, key: lp.optim.tusla(h, key, power=POWER),
    "theopoula": lp.optim.theopoula,
    "theopoula, no boosting": lambda h, key: lp.optim.theopoula(h, key, boosting=False),
    "etheopoula": lp.optim.etheopoula,
    "sgd": lambda h, key: optax.sgd(h),
    "adam": lambda h, key: optax.adam(h),
    "amsgrad": lambda h, key: optax.amsgrad(h),
    # The decay of PyTorch, with which the published numbers were made.
    "rmsprop": lambda h, key: optax.rmsprop(h, decay=0.99),
    "adam, clipped to 1": lambda h, key: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(h)),
    "sgd, clipped to 1": lambda h, key: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(h)),
}


@functools.partial(jax.jit, static_argnames=("method", "setting", "seeds"))
def paths(rates: Any, *, method: str, setting: str, seeds: int):
    """Iterates ``[rate, seed, step]``, the start left out."""
    law = SETTINGS[setting]

    def one(rate, seed):
        key_data, key_noise = jax.random.split(jax.random.key(seed))
        optimizer = METHODS[method](rate, key_noise)
        t = jnp.asarray(law.start, rates.dtype)

        def move(carry, x):
            t, state = carry
            updates, state = optimizer.update(jax.grad(loss)(t, x), state, t)
            t = optax.apply_updates(t, updates)
            return (t, state), t

        draws = law.draw(key_data, law.steps).astype(t.dtype)
        return jax.lax.scan(move, (t, optimizer.init(t)), draws)[1]

    over_seeds = jax.vmap(one, (None, 0))
    return jax.vmap(over_seeds, (0, None))(rates, jnp.arange(seeds))


def run(method, setting, rates, seeds, x64=True):
    """Iterates as float64 numbers of NumPy."""
    with jax.enable_x64(x64):
        kind = jnp.float64 if x64 else jnp.float32
        found = paths(jnp.asarray(rates, kind), method=method, setting=setting, seeds=seeds)
        return np.asarray(found, float)


def ends(found):
    """Distances from the minimum at the end; infinite where the path overflowed."""
    last = np.abs(found[..., -1])
    return np.where(np.isfinite(found).all(-1), last, np.inf)


def number(value):
    return f"{value:.3g}" if math.isfinite(value) else "overflow"


def spread(values):
    """Median and range."""
    low, middle, high = (number(float(f(values))) for f in (np.min, np.median, np.max))
    return middle if low == high else f"{middle} ({low} to {high})"


def first(found):
    """Median over paths of the step that first comes near the minimum, where all do."""
    near = np.abs(found) < NEAR
    return int(np.median(near.argmax(axis=1))) + 1 if near.any(axis=1).all() else ""


def overflow(found):
    """First step at which some path is not finite."""
    bad = ~np.isfinite(found).all(axis=0)
    return int(bad.argmax()) + 1 if bad.any() else ""


def published(setting, found):
    """Every method at published rates, in both precisions."""
    law, rows = SETTINGS[setting], []
    for name, rate in [*((name, law.rate) for name in METHODS), *MORE[setting]]:
        double, single = (found[name, kind][rate] for kind in ("float64", "float32"))
        rows.append(
            {
                "X": setting,
                "method": name,
                "rate": rate,
                "after 1 step": number(float(np.median(double[:, 0]))),
                "after 2": number(float(np.median(double[:, 1]))),
                "end": spread(ends(double)),
                "end, float32": spread(ends(single)),
                "overflow at step": overflow(double),
            }
        )
    return rows


def tuned(setting, found):
    """Every method at the rate of the grid whose median end is nearest to the minimum."""
    rows = []
    for name in METHODS:
        row = {"X": setting, "method": name}
        for kind in ("float64", "float32"):
            paths = found[name, kind]
            medians = np.array([np.median(ends(paths[rate])) for rate in GRID])
            label = "" if kind == "float64" else ", float32"
            good = [rate for rate, middle in zip(GRID, medians, strict=True) if middle < NEAR]
            if kind == "float64":
                best = paths[GRID[int(medians.argmin())]]
                # A minimum over rates that all overflow, or stand still, chooses nothing.
                row["best rate"] = GRID[int(medians.argmin())] if len(set(medians)) > 1 else ""
                row["end"] = spread(ends(best))
                row[f"first step below {NEAR}"] = first(best)
            else:
                row[f"end{label}"] = spread(ends(paths[GRID[int(medians.argmin())]]))
            row[f"rates below {NEAR}{label}"] = ", ".join(f"{rate:g}" for rate in good)
        rows.append(row)
    return rows


def off(measured, wanted):
    """Relative error."""
    return abs(measured - wanted) / abs(wanted)


def goals(found):
    """Published or replayed values, with what other draws of X and other rounding may change."""

    def middle(setting, name, rate, step=-1):
        return float(np.median(found[setting][name, "float64"][rate][:, step]))

    def near(what, setting, name, rate, wanted, limit, step=-1):
        measured = off(middle(setting, name, rate, step), wanted)
        return goal(f"{setting}: {what}, relative to {wanted}", measured, limit)

    yield near("tusla after 1 step", "Beta", "tusla", 1e-3, 0.2053, 1e-3, 0)
    yield near("tusla at the end", "Beta", "tusla", 1e-3, 0.027, 0.1)
    yield near("theopoula at the end", "Beta", "theopoula", 1e-3, 0.093, 0.1)
    yield near("adam, rate 0.001", "Beta", "adam", 1e-3, 3.60, 0.01)
    yield near("adam, rate 0.1", "Beta", "adam", 0.1, 2.81, 0.01)
    yield near("amsgrad, rate 0.001", "Beta", "amsgrad", 1e-3, 3.61, 0.01)
    yield near("rmsprop, rate 0.001", "Beta", "rmsprop", 1e-3, 3.37, 0.01)
    yield goal(
        "Beta: theopoula, rate 0.1, distance at the end",
        abs(middle("Beta", "theopoula", 0.1)),
        1e-3,
    )
    yield goal(
        "Beta: step at which sgd overflows",
        float(overflow(found["Beta"]["sgd", "float64"][1e-3])),
        2.0,
    )
    if "normal" not in found:
        return
    yield near("tusla after 1 step", "normal", "tusla", 2e-3, -1.708, 1e-3, 0)
    yield near("tusla after 2 steps", "normal", "tusla", 2e-3, 0.584, 1e-2, 1)
    yield near("tusla at the end", "normal", "tusla", 2e-3, 0.025, 0.1)
    yield near("adam, rate 0.001", "normal", "adam", 1e-3, 4.69, 0.01)
    yield near("rmsprop, rate 0.01", "normal", "rmsprop", 0.01, 3.93, 0.01)


def main():
    options = parser(__doc__).parse_args()
    host = machine()
    settings = list(SETTINGS)[:1] if options.quick else list(SETTINGS)
    found = {setting: {} for setting in settings}
    rates = sorted({*GRID, *(law.rate for law in SETTINGS.values())})
    for setting in settings:
        for name in METHODS:
            for kind in ("float64", "float32"):
                many = run(name, setting, rates, SEEDS, kind == "float64")
                found[setting][name, kind] = dict(zip(rates, many, strict=True))
        print(setting, flush=True)
    return finish(
        "optim_toy",
        options,
        host,
        precision="float64, and float32 where it says so",
        tables={
            "Published rates": [row for s in settings for row in published(s, found[s])],
            "Best rates": [row for s in settings for row in tuned(s, found[s])],
        },
        goals=goals(found),
        notes=[" ".join(NOTE.split())],
    )


if __name__ == "__main__":
    main()

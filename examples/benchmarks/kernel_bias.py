"""Bias of every unadjusted kernel, against moments by quadrature.

Both targets are functions of the radius, so that their moments are integrals in one dimension and
chains can begin at exact draws. In float64, all chains vectorised in one loop.

- *Relative bias*: the double well ``U = |x|^4 / 4 - |x|^2 / 2`` in 100 dimensions (Brosse, Durmus,
  Moulines, Sabanis 2019, arXiv:1710.05559), where ``U`` curves about 30 along the radius. The
  relative bias of ``E x_i^2``, pooled over coordinates, at the same numbers for every kernel's own
  ``step_size``. They mean different things: the step size ``h`` of an overdamped kernel is that of
  Euler and Maruyama, and that of a kinetic kernel is a time ``t``, as fast as ``h = t^2 / 2``.
- *Weak order*: ``U = |x|^4 / 4 + |x|^2 / 2`` in 2 dimensions, where a skew drift has something to
  turn. The slope of ``log |bias of E x_i^2|`` against ``log h`` over four step sizes, fitted with
  weights. Its error is that of Monte Carlo alone; terms of higher order bend the line a little.

Standard errors come from the scatter of independent chains. A chain that left the finite numbers
is counted, and left out.

    python examples/benchmarks/kernel_bias.py [--quick]
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from common import finish, goal, machine, parser
from scipy.integrate import quad

import langevin_ppl as lp

STEP_SIZES = (0.1, 0.05, 0.02, 0.01)
FRICTION = 4.0
SECOND = ("leimkuhler_matthews", "baoab", "obabo", "ubu")
KINETIC = ("klmc", "baoab", "obabo", "ubu", "tbaoab")
KERNELS = (
    *("ula", "leimkuhler_matthews", "irreversible", "klmc", "baoab", "obabo", "ubu", "tbaoab"),
    *("tula", "tulac", "mtula", "tusla", "stula"),
)
POWER = {"power": 2.0}  # of quartic potentials
OPTIONS = dict.fromkeys(KINETIC, {"friction": FRICTION}) | dict.fromkeys(
    ("mtula", "tusla", "stula"), POWER
)
# Where the bias is above the noise, and still a power of the step size.
OVERDAMPED_LADDER = (0.01, 0.02, 0.03, 0.05)
LADDERS = {
    "leimkuhler_matthews": (0.08, 0.1, 0.12, 0.15),
    "irreversible": (0.01, 0.015, 0.02, 0.03),
    "klmc": (0.05, 0.1, 0.15, 0.2),
    "baoab": (0.3, 0.4, 0.5, 0.6),
    "tbaoab": (0.025, 0.05, 0.1, 0.2),
    **dict.fromkeys(("obabo", "ubu"), (0.15, 0.2, 0.25, 0.3)),
    **dict.fromkeys(("tusla", "stula"), (0.0025, 0.005, 0.01, 0.02)),
}
# Times as many steps where the bias is small.
WORK = {"leimkuhler_matthews": 6, "baoab": 3}


class Radial(NamedTuple):
    """A target that depends on the radius alone: ``U = r^4 / 4 + bend r^2 / 2``."""

    dimension: int
    bend: float

    def logdensity(self, x):
        square = jnp.sum(x**2)
        return -0.25 * square**2 - 0.5 * self.bend * square

    def weight(self, r):
        """Density of the radius, up to a constant that keeps it near one."""
        return np.exp(self._log(r) - self._log(self._mode()))

    def _log(self, r):
        return (self.dimension - 1) * np.log(r) - r**4 / 4 - self.bend * r**2 / 2

    @functools.cache  # noqa: B019  (two targets)
    def _mode(self):
        grid = np.linspace(1e-3, 10.0, 100_000)
        return grid[np.argmax(self._log(grid))]

    @functools.cache  # noqa: B019
    def second_moment(self):
        """``E x_i^2``."""
        mode = self._mode()

        def integral(power):
            parts = (1e-12, mode), (mode, mode + 5.0)
            return sum(quad(lambda r: r**power * self.weight(r), *part)[0] for part in parts)

        return integral(2) / integral(0) / self.dimension

    def draws(self, rng_key, number):
        """Independent draws: a radius by the inverse of its distribution, and a direction."""
        key_radius, key_direction = jax.random.split(rng_key)
        grid = np.linspace(1e-6, 8.0, 100_001)
        below = np.cumsum(self.weight(grid))
        radius = jnp.interp(jax.random.uniform(key_radius, (number, 1)), below / below[-1], grid)
        direction = jax.random.normal(key_direction, (number, self.dimension))
        return radius * direction / jnp.linalg.norm(direction, axis=1, keepdims=True)


WELL, BOWL = Radial(100, -1.0), Radial(2, 1.0)


@functools.partial(jax.jit, static_argnames=("name", "target"))
def second_moments(rng_key, positions, step_size, burn_in, count, *, name, target):
    """Mean of ``x_i^2`` over coordinates and steps, one number a chain; NaN where it diverged."""
    kernel = getattr(lp, name)
    algorithm = kernel(target.logdensity, step_size=step_size, **OPTIONS.get(name, {}))

    def body(i, carry):
        states, total = carry
        keys = jax.random.split(jax.random.fold_in(rng_key, i), len(positions))
        states, _ = jax.vmap(algorithm.step)(keys, states)
        return states, total + jnp.where(i < burn_in, 0.0, jnp.mean(states.position**2, axis=1))

    states = jax.vmap(lambda x: kernel.init(x, target.logdensity))(positions)
    _, total = jax.lax.fori_loop(0, burn_in + count, body, (states, jnp.zeros(len(positions))))
    return total / count


def measure(name, target, step_size, seed, chains, burn_in, count):
    """Bias relative to the exact moment, its standard error, share of chains that diverged."""
    key_start, key_run = jax.random.split(jax.random.key(seed))
    positions = target.draws(key_start, chains)
    moments = np.asarray(
        second_moments(key_run, positions, step_size, burn_in, count, name=name, target=target)
    )
    finite = np.isfinite(moments)
    if finite.sum() < 2:
        return np.nan, np.nan, 1.0 - finite.mean()
    ratio = moments[finite] / target.second_moment() - 1.0
    return ratio.mean(), ratio.std(ddof=1) / np.sqrt(finite.sum()), 1.0 - finite.mean()


def percent(bias, error, lost):
    if np.isnan(bias):
        return "diverged"
    text = f"{100 * bias:+.3g} ± {100 * error:.1g} %"
    return text + (f" ({100 * lost:.0f} % diverged)" if lost else "")


def slope(step_sizes, biases, errors):
    """Weighted slope of ``log |bias|`` against ``log h``, and its standard error; None in noise."""
    seen = np.isfinite(biases) & (np.abs(biases) > 3 * errors)
    if seen.sum() < 3:
        return None
    x, y = np.log(step_sizes)[seen], np.log(np.abs(biases))[seen]
    weights = (biases[seen] / errors[seen]) ** 2
    x = x - weights @ x / weights.sum()
    return weights @ (x * y) / (weights @ x**2), 1.0 / np.sqrt(weights @ x**2)


def weak_order(name, quick):
    """One row of the second table."""
    step_sizes = np.array(LADDERS.get(name, OVERDAMPED_LADDER))
    chains, steps = (200, 2000) if quick else (2000, 12_500 * WORK.get(name, 1))
    found = [
        measure(name, BOWL, float(h), seed, chains, max(200, int(10 / h)), steps)
        for seed, h in enumerate(step_sizes)
    ]
    biases, errors, _ = np.array(found).T
    fitted = slope(step_sizes, biases, errors)
    said = float(getattr(lp, name).order)
    row = {"kernel": name, "order said": said}
    row["slope"] = "below the noise" if fitted is None else f"{fitted[0]:.2f} ± {fitted[1]:.2f}"
    row["step sizes"] = ", ".join(f"{h:g}" for h in step_sizes)
    row["bias at the smallest"], row["at the largest"] = percent(*found[0]), percent(*found[-1])
    return row, None if fitted is None else abs(fitted[0] - said) - 2 * fitted[1]


def main():
    options = parser(__doc__).parse_args()
    host = machine()
    jax.config.update("jax_enable_x64", True)
    chains, burn_in, count = (16, 200, 500) if options.quick else (64, 1000, 5000)
    kernels = KERNELS[::2] if options.quick else KERNELS
    rows, errors, accurate = [], [], []
    for name in kernels:
        found = [
            measure(name, WELL, h, seed, chains, burn_in, count)
            for seed, h in enumerate(STEP_SIZES)
        ]
        errors += [error / (1.0 + bias) for bias, error, lost in found if lost == 0]
        accurate += [abs(found[-1][0])] if name in SECOND else []
        cells = {f"h = {h:g}": percent(*part) for h, part in zip(STEP_SIZES, found, strict=True)}
        rows.append({"kernel": name, "h is": "time" if name in KINETIC else "step", **cells})
        print(rows[-1], flush=True)
    orders, distances = [], []
    for name in kernels:
        row, distance = weak_order(name, options.quick)
        orders.append(row)
        distances += [] if distance is None else [distance]
        print(row, flush=True)
    goals = [
        goal("largest standard error, % of the moment", 100 * float(np.max(errors)), 1.0),
        goal(
            f"largest bias of {', '.join(SECOND)} at h = {STEP_SIZES[-1]:g}, %",
            100 * float(np.max(accurate)),
            1.0,
        ),
        goal("slope away from the order said, beyond two errors", float(np.max(distances)), 0.25),
    ]
    notes = [
        f"Friction {FRICTION:g} of kinetic kernels, power 2 of polynomial tamings, skew 1. First "
        f"table: {chains} chains from exact draws, {burn_in:,} steps of burn-in and {count:,} of "
        f"average; E x_i^2 = {WELL.second_moment():.8f}. Second table: E x_i^2 = "
        f"{BOWL.second_moment():.8f}.",
        "A share that diverged: the bias is that of the chains that were left. On Gaussians the "
        "laws of the linear kernels are known exactly, and `tests/` compares them digit by digit. "
        "So does it with the order 2 of Leimkuhler and Matthews' scheme, whose bias is hardly "
        "above the noise here.",
    ]
    return finish(
        "kernel_bias",
        options,
        host,
        precision="float64 (jax_enable_x64)",
        tables={
            "Relative bias of E x_i^2 on the double well, 100 dimensions": rows,
            "Weak order by slope, 2 dimensions": orders,
        },
        goals=goals,
        notes=notes,
    )


if __name__ == "__main__":
    main()

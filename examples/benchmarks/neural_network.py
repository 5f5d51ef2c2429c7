"""A Bayesian neural network on four regression sets, by stochastic gradients.

One hidden layer of 50 rectified linear units, as in the usual comparisons on these sets
(Hernandez-Lobato, Adams 2015, arXiv:1502.05336). Features and response are standardised on the
training rows. Weights into the hidden units and their offsets are N(0, 1), those out of them N(0,
1 / 50), the offset of the response N(0, 1); the response is normal about the network's value, with
a latent standard deviation of HalfNormal(1). Batches have 100 rows.

Every way gets the same number of steps, and 4 chains or members from the same 4 prior draws:

- *sghmc*, *tsgld*, *cyclical_sgld* of ``lp.sample``, with plain batches and without a metric. The
  first half of the steps is thrown away (of the cyclical one: half of every cycle does not count,
  and all but the last third of the run is thrown away); predictions average over 200 draws.
- *MAP ensemble*: Adam on the same batches with a rate that falls to zero, from the same starts;
  predictions average over the 4 members, so that its noise is that of an ensemble too.
- *default*: ``lp.sample(key, target)`` with nothing else said, on one split.
- *NUTS* of NumPyro with all rows in every step, on one split of the two smallest sets: one chain,
  trees of at most 2^7 - 1 steps.

The step size, and the rate of Adam, are those with the highest log likelihood of every tenth
training row, held out for that on the first split: neighbours on a grid of factors of 2 or 3 are
tried, at most five values, until both are worse. All splits take that one. Step sizes are in units
of one over the training rows (of one over their root, for sghmc), because log densities are sums
over rows.

The data are read from the folder that the environment variable LANGEVIN_PPL_DATA names, files
``uci/<name>.npz`` with X, y and the test rows of five splits. Without it nothing is measured.

    LANGEVIN_PPL_DATA=... python examples/benchmarks/neural_network.py [--quick]
"""

import os
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from common import finish, goal, machine, parser
from numpyro.infer import MCMC, NUTS

import langevin_ppl as lp

SETS = ("energy", "concrete", "power-plant", "protein-tertiary-structure")
SPLITS = {"energy": 3, "concrete": 3, "power-plant": 2, "protein-tertiary-structure": 2}
COLD = ("energy", "concrete")
TEMPERATURES = (1.0, 0.3, 0.1, 0.03)
UNITS, BATCH, CHAINS, STEPS = 50, 100, 4, 20_000
KEPT = 200  # draws that predictions average over
COLD_SPLITS = 2
GRIDS = {  # value to begin with, and the factor between neighbours
    "sghmc": (0.02, 2.0),
    "tsgld": (0.01, 3.0),
    "cyclical_sgld": (0.01, 3.0),
    "MAP ensemble": (0.003, 3.0),
}
MAX_TRIALS = 5


def model(x, y, batch_size):
    inputs = x.shape[1]
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    into = numpyro.sample("into", dist.Normal(0.0, 1.0).expand([inputs, UNITS]).to_event())
    offset = numpyro.sample("offset", dist.Normal(0.0, 1.0).expand([UNITS]).to_event())
    out = numpyro.sample("out", dist.Normal(0.0, UNITS**-0.5).expand([UNITS]).to_event())
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", len(y), subsample_size=batch_size):
        hidden = jax.nn.relu(numpyro.subsample(x, event_dim=1) @ into + offset)
        mean = hidden @ out + level
        numpyro.sample("y", dist.Normal(mean, noise), obs=numpyro.subsample(y, event_dim=0))


class Split(NamedTuple):
    """Standardised rows, and the unit of the response."""

    x: Any
    y: Any
    test_x: Any
    test_y: Any
    unit: float

    def target(self):
        target = lp.target(model, jnp.asarray(self.x), jnp.asarray(self.y), BATCH)
        return target.replace(init_strategy=numpyro.infer.init_to_sample)


def folder():
    root = os.environ.get("LANGEVIN_PPL_DATA")
    return Path(root) / "uci" if root else None


def load(name, number, *, validation=False):
    """One split; with ``validation``, every tenth of its training rows as the test rows."""
    with np.load(folder() / f"{name}.npz") as data:
        x, y, test = data["X"], data["y"], data[f"test_rows_{number}"]
    random = np.random.default_rng(number)
    train = random.permutation(np.setdiff1d(np.arange(len(y)), test))
    if validation:
        train, test = np.delete(train, np.s_[::10]), train[::10]
    low, wide = x[train].mean(axis=0), x[train].std(axis=0)
    mean, unit = y[train].mean(), y[train].std()
    x = (x - low) / np.where(wide > 0, wide, 1.0)
    y = (y - mean) / unit
    return Split(x[train], y[train], x[test], y[test], float(unit))


def starts(target):
    keys = jax.random.split(jax.random.key(7), CHAINS)
    return jax.vmap(target.init_position)(keys)


def scores(split, draws):
    """RMSE and mean log likelihood of the test rows, and mean noise, in the response's units."""
    first = {name: np.asarray(value, np.float32) for name, value in draws.items()}
    means = []
    for i in range(len(first["level"])):
        hidden = np.maximum(split.test_x @ first["into"][i] + first["offset"][i], 0.0)
        means.append(hidden @ first["out"][i] + first["level"][i])
    means, noise = np.stack(means).astype(np.float64), first["noise"][:, None].astype(np.float64)
    rmse = np.sqrt(np.mean((means.mean(axis=0) - split.test_y) ** 2))
    logs = -0.5 * ((split.test_y - means) / noise) ** 2 - np.log(noise)
    logs -= 0.5 * np.log(2.0 * np.pi) + np.log(split.unit)
    each = np.logaddexp.reduce(logs, axis=0) - np.log(len(logs))
    return float(rmse * split.unit), float(each.mean()), float(noise.mean() * split.unit)


def thinned(posterior, kept=KEPT):
    """At most so many draws of all chains, as ``[draw, ...]``."""
    draws = {name: x.values.reshape(-1, *x.shape[2:]) for name, x in posterior.data_vars.items()}
    number = len(draws["level"])
    chosen = np.linspace(0, number - 1, min(kept, number)).astype(int)
    return {name: x[chosen] for name, x in draws.items()}


def by_sampler(name, split, value, steps, temperature=1.0):
    """Draws of a kernel of the library."""
    target, number = split.target(), len(split.y)
    parameters = {"temperature": temperature}
    if name == "sghmc":
        step_size = value / np.sqrt(number)
        parameters |= {"step_size": step_size, "friction": 0.05 / step_size}
    else:
        parameters["step_size"] = value / number
    if name == "cyclical_sgld":
        parameters["cycle_length"] = steps // 6
    thinning = max(1, steps // 400)
    idata = lp.sample(
        jax.random.key(0),
        target,
        getattr(lp, name),
        gradient=lp.minibatch(),
        num_chains=CHAINS,
        num_warmup=0,
        num_samples=steps // thinning,
        thinning=thinning,
        initial=starts(target),
        **parameters,
    )
    posterior = idata["posterior"].to_dataset()
    begins = 2 / 3 if name == "cyclical_sgld" else 1 / 2
    late = posterior.isel(draw=slice(int(begins * posterior.sizes["draw"]), None))
    return thinned(late), idata.attrs


def by_ensemble(split, rate, steps):
    """Modes found by Adam, one from each start."""
    target = split.target()
    return _trained(target.gradient(lp.minibatch()), starts(target), rate, steps, target)


def _trained(source, begin, rate, steps, target):
    found = _train(source, begin, jnp.asarray(rate, jnp.float32), steps=steps)
    return {k: np.asarray(v) for k, v in jax.vmap(target.constrain)(found).items()}, {}


def _member(source, begin, key, rate, steps):
    scale = optax.scale_by_adam()

    def move(carry, number):
        position, state = carry
        batch = source.draw(jax.random.fold_in(key, number), number)
        gradient = source.estimate(batch, position, ())[0].gradient
        updates, state = scale.update(gradient, state)
        length = 0.5 * rate * (1.0 + jnp.cos(jnp.pi * number / steps))
        return (jax.tree.map(lambda x, u: x + length * u, position, updates), state), None

    (position, _), _ = jax.lax.scan(move, (begin, scale.init(begin)), jnp.arange(steps))
    return position


def _train_all(source, begin, rate, *, steps):
    keys = jax.random.split(jax.random.key(0), CHAINS)
    return jax.vmap(lambda b, k: _member(source, b, k, rate, steps))(begin, keys)


_train = jax.jit(_train_all, static_argnames="steps")


def by_nuts(split, warmup, draws):
    kernel = NUTS(
        model, max_tree_depth=7, init_strategy=numpyro.infer.init_to_sample(), dense_mass=False
    )
    run = MCMC(kernel, num_warmup=warmup, num_samples=draws, progress_bar=False)
    run.run(jax.random.key(0), split.x, split.y, None)
    return {name: np.asarray(x) for name, x in run.get_samples().items()}, {}


def by_default(split, draws):
    idata = lp.sample(jax.random.key(0), split.target(), num_samples=draws)
    return thinned(idata["posterior"].to_dataset()), idata.attrs


def run_way(name, split, value, steps):
    if name == "MAP ensemble":
        return by_ensemble(split, value, steps)
    return by_sampler(name, split, value, steps)


def better(found):
    """Log likelihood of a trial; a chain that left the finite numbers has none."""
    return found if np.isfinite(found) else -np.inf


def chosen_values(name, steps, quick):
    """Step size of every way, by the held out rows of the first split: climb on a grid."""
    split, best = load(name, 0, validation=True), {}
    for way, (middle, factor) in GRIDS.items():
        found = {}

        def look(power, way=way, middle=middle, factor=factor, found=found):
            if power not in found and len(found) < (1 if quick else MAX_TRIALS):
                draws, _ = run_way(way, split, middle * factor**power, steps)
                found[power] = better(scores(split, draws)[1])

        look(0)
        power = None
        while power != max(found, key=found.__getitem__):
            power = max(found, key=found.__getitem__)
            look(power - 1)
            look(power + 1)
        best[way] = middle * factor**power
        print(name, way, {f"{middle * factor**p:.3g}": found[p] for p in sorted(found)}, flush=True)
    return best


def summary(values):
    """Mean over splits and its standard error."""
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{np.mean(values):.3f} +- {error:.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def row(name, way, value, results, seconds, hottest):
    return {
        "set": name,
        "way": way,
        "step": value,
        "splits": len(results),
        "test RMSE": summary([r[0] for r in results]),
        "test log likelihood": summary([r[1] for r in results]),
        "noise": f"{np.mean([r[2] for r in results]):.3g}",
        "hottest": f"{np.median(hottest):.2g}" if hottest else "",
        "seconds": float(np.median(seconds)),
    }


def measure(name, steps, splits, quick, add):
    """All ways on one set: rows of the table; the chosen step sizes."""
    values, means = chosen_values(name, steps, quick), {}
    for way, value in values.items():
        results, seconds, hottest = [], [], []
        for number in range(splits):
            split = load(name, number)
            began = time.perf_counter()
            draws, seen = run_way(way, split, value, steps)
            seconds.append(time.perf_counter() - began)
            results.append(scores(split, draws))
            hottest += [seen["temperature_noisiest"]] if "temperature_noisiest" in seen else []
        add(row(name, way, value, results, seconds, hottest))
        means[way] = np.mean([r[1] for r in results])
    return values, means


def once(name, way, run, add):
    """One way on the first split."""
    split = load(name, 0)
    began = time.perf_counter()
    draws, seen = run(split)
    seconds = time.perf_counter() - began
    hottest = [seen["temperature_noisiest"]] if "temperature_noisiest" in seen else []
    add(row(name, way, seen.get("kernel", ""), [scores(split, draws)], [seconds], hottest))
    return seen


def cold(name, value, steps, splits):
    """sghmc at several temperatures."""
    rows = []
    for temperature in TEMPERATURES:
        found = [
            scores(split, by_sampler("sghmc", split, value, steps, temperature)[0])
            for split in (load(name, number) for number in range(splits))
        ]
        rows.append(
            {
                "set": name,
                "temperature": temperature,
                "splits": splits,
                "test RMSE": summary([f[0] for f in found]),
                "test log likelihood": summary([f[1] for f in found]),
                "noise": f"{np.mean([f[2] for f in found]):.3g}",
            }
        )
        print(rows[-1], flush=True)
    return rows


def main():
    options = parser(__doc__).parse_args()
    if folder() is None:
        print("neural_network: skipped, because LANGEVIN_PPL_DATA names no folder of data.")
        return None
    host = machine()
    quick = options.quick
    names = SETS[:1] if quick else SETS
    steps = 400 if quick else STEPS
    warnings.simplefilter("ignore")  # none of these runs has converged; a note says so
    table, colder, notes, means = [], [], [], {}

    def add(one):
        table.append(one)
        print(one, flush=True)

    for name in names:
        splits = 1 if quick else SPLITS[name]
        values, means[name] = measure(name, steps, splits, quick, add)
        if name in COLD:
            colder += cold(name, values["sghmc"], steps, min(splits, COLD_SPLITS))
            warmup, draws = (5, 5) if quick else (200, 100)
            once(name, "NUTS", lambda s, w=warmup, d=draws: by_nuts(s, w, d), add)
        if name == names[0]:
            number = 50 if quick else 1000
            seen = once(name, "default", lambda s, n=number: by_default(s, n), add)
            notes.append(f"The default on {name}: {seen.get('mode_search', '')}")
    gaps = [means[n]["MAP ensemble"] - means[n]["sghmc"] for n in names]
    goals = [
        goal(
            "test log likelihood of the MAP ensemble minus that of sghmc, worst set",
            float(max(gaps)),
            0.0,
        )
    ]
    return finish(
        "neural_network",
        options,
        host,
        precision="float32",
        tables={"Test rows": table, "sghmc at lower temperatures": colder},
        goals=goals,
        notes=[
            f"{steps:,} steps of {CHAINS} chains or members; mean over splits +- its standard "
            "error (splits share rows, so that it is too small). *Step*: what the held out rows "
            "chose, of one over the rows or their root. *Noise*: posterior mean of the standard "
            "deviation, in units of the response. Far above the RMSE, as on energy, it is wrong: "
            "chains that are too hot, or too unstable for a smaller noise, and in trials by hand "
            "larger steps made it larger. *Hottest*: temperature along the direction of the "
            "largest gradient noise, where 1 is right. *Seconds* of one split, without the trials "
            "of other steps. No run "
            "has converged by R-hat of the weights, whose signs and order no chain agrees on; the "
            "predictions are what is compared. nan: a chain left the finite numbers, at a step "
            "size that it survived in the trials. *NUTS* has 200 steps of warm-up and 100 draws, "
            "and like the default it ran on the first split only.",
            *notes,
        ],
    )


if __name__ == "__main__":
    main()

"""Langevin optimisers beside adaptive ones on small networks: what held-out rows say.

Every method minimises the same mean loss of the same batches from the same starts, for as many
steps and at a constant rate, which is the one of seven with the smallest loss on validation rows,
averaged over seeds. Test rows are looked at after that. A seed has its own split of the rows, its
own start and its own batches.

- *concrete* and *diabetes*: 50 rectified linear units, standardised rows, squared error; a tenth
  of the rows for the test, and 15 % of the others to choose the rate.
- *cubic*: the nonlinear regression of Lim, Neufeld, Sabanis, Zhang (2021, arXiv:2107.08649),
  z = |2 y1 + 2 y2 - 2|^3 for y uniform on the unit square, 15 hyperbolic tangents. In the paper
  TUSLA has rate 0.5, power 1 and strength 1e-6.
- *MNIST*: 10,000 images, 100 rectified linear units, cross entropy.

The concrete and MNIST data are read from the folder that the environment variable
LANGEVIN_PPL_DATA names: ``uci/concrete.npz`` with X, y and the test rows of five splits, and
``mnist10k.npz`` with images and labels. What is absent is left out.

    LANGEVIN_PPL_DATA=... python examples/benchmarks/optim_networks.py [--quick]
"""

import functools
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import finish, goal, machine, parser
from sklearn.datasets import load_diabetes

import langevin_ppl as lp

FAST = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # rates of methods with steps of about one rate
SLOW = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)  # and of those with steps of a rate times a gradient
TUSLA = (1e-2, 3e-2, 0.1, 0.3, 0.5, 1.0, 3.0)  # with the paper's; bounds are stated up to 1
CUBIC_ROWS = 10_000


class Problem(NamedTuple):
    """What is learned; arrays have a leading axis of seeds."""

    train: Any
    validation: Any
    test: Any
    units: int
    outputs: int
    activation: str
    batch: int
    steps: int
    strength: float = 0.0

    @property
    def seeds(self):
        return len(self.train[1])


METHODS = {
    "adam": (FAST, lambda h, key, strength: optax.adam(h)),
    "amsgrad": (FAST, lambda h, key, strength: optax.amsgrad(h)),
    "rmsprop": (FAST, lambda h, key, strength: optax.rmsprop(h)),
    "sgd": (SLOW, lambda h, key, strength: optax.sgd(h)),
    "tusla": (
        TUSLA,
        lambda h, key, strength: lp.optim.tusla(h, key, power=1.0, strength=strength),
    ),
    "theopoula": (SLOW, lambda h, key, strength: lp.optim.theopoula(h, key)),
    "theopoula, no boosting": (
        SLOW,
        lambda h, key, strength: lp.optim.theopoula(h, key, boosting=False),
    ),
    "etheopoula": (SLOW, lambda h, key, strength: lp.optim.etheopoula(h, key)),
}
QUICK = ("adam", "tusla")


def folder():
    root = os.environ.get("LANGEVIN_PPL_DATA")
    return Path(root) if root else None


def standardised(x, y, test, seed):
    """Training, validation and test rows of one split."""
    random = np.random.default_rng(seed)
    train = random.permutation(np.setdiff1d(np.arange(len(y)), test))
    held_out = round(0.15 * len(train))
    validation, train = train[:held_out], train[held_out:]
    low, wide = x[train].mean(axis=0), x[train].std(axis=0)
    x = (x - low) / np.where(wide > 0, wide, 1.0)
    y = (y - y[train].mean()) / y[train].std()
    return [
        (x[rows].astype(np.float32), y[rows].astype(np.float32))
        for rows in (train, validation, test)
    ]


def stacked(splits):
    """Rows of all seeds together: three pairs of arrays ``[seed, row, ...]``."""
    return [
        tuple(np.stack([split[part][i] for split in splits]) for i in range(2)) for part in range(3)
    ]


def concrete(seeds, steps):
    path = folder() / "uci" / "concrete.npz" if folder() else None
    if path is None or not path.exists():
        return None
    with np.load(path) as data:
        x, y = data["X"], data["y"]
        splits = [standardised(x, y, data[f"test_rows_{seed}"], seed) for seed in range(seeds)]
    return Problem(*stacked(splits), 50, 1, "relu", 64, steps)


def diabetes(seeds, steps):
    x, y = load_diabetes(return_X_y=True)
    tests = [np.random.default_rng(100 + seed).permutation(len(y))[:44] for seed in range(seeds)]
    splits = [standardised(x, y, test, seed) for seed, test in enumerate(tests)]
    return Problem(*stacked(splits), 50, 1, "relu", 64, steps)


def tenths(x, y, seeds):
    """A tenth of the rows for validation and a tenth for the test."""
    splits, tenth = [], len(y) // 10
    for seed in range(seeds):
        rows = np.random.default_rng(seed).permutation(len(y))
        parts = rows[2 * tenth :], rows[:tenth], rows[tenth : 2 * tenth]
        splits.append([(x[part], y[part]) for part in parts])
    return stacked(splits)


def cubic(seeds, steps):
    x = np.random.default_rng(1).uniform(size=(CUBIC_ROWS, 2)).astype(np.float32)
    y = np.abs(2.0 * x.sum(axis=1) - 2.0) ** 3
    return Problem(*tenths(x, y, seeds), 15, 1, "tanh", 128, steps, strength=1e-6)


def mnist(seeds, steps):
    path = folder() / "mnist10k.npz" if folder() else None
    if path is None or not path.exists():
        return None
    with np.load(path) as data:
        x = data["images"].reshape(-1, 28 * 28).astype(np.float32) / 255.0
        y = data["labels"].astype(np.int32)
    return Problem(*tenths(x, y, seeds), 100, 10, "relu", 128, steps)


PROBLEMS = {  # function, seeds, steps, and both of a quick run
    "concrete": (concrete, 5, 10_000, 2, 200),
    "diabetes": (diabetes, 5, 600, 2, 200),
    "cubic": (cubic, 5, 20_000, 2, 200),
    "MNIST": (mnist, 3, 2000, 2, 10),
}


def initial(key, inputs, units, outputs):
    """He's normal weights, and offsets of 0."""
    keys = jax.random.split(key)
    sizes = (inputs, units), (units, outputs)
    return [
        (jax.random.normal(k, size) * (2.0 / size[0]) ** 0.5, jnp.zeros(size[1]))
        for k, size in zip(keys, sizes, strict=True)
    ]


def predict(params, x, activation):
    (into, offset), (out, level) = params
    return getattr(jax.nn, activation)(x @ into + offset) @ out + level


def loss(params, rows, activation):
    x, y = rows
    found = predict(params, x, activation)
    if found.shape[-1] > 1:
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(found, y))
    return jnp.mean((found[:, 0] - y) ** 2)


def accuracy(params, rows, activation):
    x, y = rows
    return jnp.mean(jnp.argmax(predict(params, x, activation), axis=-1) == y)


@functools.partial(
    jax.jit,
    static_argnames=("method", "units", "outputs", "activation", "batch", "steps", "strength"),
)
def trained(
    rates, train, validation, test, *, method, units, outputs, activation, batch, steps, strength
):
    """Losses of the rows after training, ``[rate, seed]``."""

    def one(rate, seed, train, validation, test):
        key_start, key_batch, key_noise = jax.random.split(jax.random.key(seed), 3)
        x, y = train
        params = initial(key_start, x.shape[1], units, outputs)
        optimizer = METHODS[method][1](rate, key_noise, strength)

        def move(step, carry):
            params, state = carry
            rows = jax.random.randint(jax.random.fold_in(key_batch, step), (batch,), 0, len(y))
            gradient = jax.grad(loss)(params, (x[rows], y[rows]), activation)
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        params, _ = jax.lax.fori_loop(0, steps, move, (params, optimizer.init(params)))
        found = {
            "train": loss(params, train, activation),
            "validation": loss(params, validation, activation),
            "test": loss(params, test, activation),
        }
        if outputs > 1:
            found["accuracy"] = accuracy(params, test, activation)
        return found

    over_seeds = jax.vmap(one, (None, 0, 0, 0, 0))
    over_rates = jax.vmap(over_seeds, (0, None, None, None, None))
    return over_rates(rates, jnp.arange(len(train[1])), train, validation, test)


def train(problem, method):
    """Losses as arrays ``[rate, seed]``, and seconds."""
    began = time.perf_counter()
    rates = jnp.asarray(METHODS[method][0], jnp.float32)
    found = trained(
        rates,
        problem.train,
        problem.validation,
        problem.test,
        method=method,
        units=problem.units,
        outputs=problem.outputs,
        activation=problem.activation,
        batch=problem.batch,
        steps=problem.steps,
        strength=problem.strength,
    )
    found = {name: np.asarray(value, float) for name, value in found.items()}
    return found, time.perf_counter() - began


def standard_error(values):
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def cell(values):
    """Mean over seeds and its standard error, to two digits of the latter."""
    mean, error = float(np.mean(values)), standard_error(values)
    if not np.isfinite(error):
        return "not finite"
    digits = 4 if error == 0 else max(0, 1 - int(np.floor(np.log10(error))))
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def compare(problem, methods):
    """Every method at its chosen rate."""
    chosen = {}
    for method in methods:
        rates = METHODS[method][0]
        found, seconds = train(problem, method)
        middle = found["validation"].mean(axis=1)
        best = int(np.where(np.isfinite(middle), middle, np.inf).argmin())
        chosen[method] = {
            "rate": rates[best],
            "index": best,
            "all": found,
            "seconds": seconds,
            **{name: value[best] for name, value in found.items()},
        }
        print(method, rates[best], np.round(middle, 5), f"{seconds:.0f} s", flush=True)
    return chosen


def table(chosen):
    rows = []
    for method, found in chosen.items():
        rates = METHODS[method][0]
        edge = found["rate"] in (rates[0], rates[-1])
        row = {
            "method": method,
            "rate": f"{found['rate']:g}" + (" (edge)" if edge else ""),
            "training loss": float(found["train"].mean()),
            "validation loss": float(found["validation"].mean()),
            "test loss": cell(found["test"]),
            "less adam's": "" if method == "adam" else cell(found["test"] - chosen["adam"]["test"]),
        }
        if "accuracy" in found:
            row["test accuracy, %"] = cell(100 * found["accuracy"])
        row["seconds"] = found["seconds"]
        rows.append(row)
    return rows


def wins(results):
    """For how many problems a method has the smallest mean test loss, and ties with that."""
    rows = []
    means = {
        name: {method: float(found["test"].mean()) for method, found in chosen.items()}
        for name, chosen in results.items()
    }
    for method in next(iter(means.values())):
        first, tied, ranks, worst = [], 0, [], 1.0
        for name, chosen in results.items():
            order = sorted(means[name], key=means[name].__getitem__)
            ranks.append(order.index(method) + 1)
            first += [name] if order[0] == method else []
            gap = chosen[method]["test"] - chosen[order[0]]["test"]
            tied += bool(gap.mean() <= 2 * standard_error(gap))
            worst = max(worst, means[name][method] / means[name][order[0]])
        rows.append(
            {
                "method": method,
                "wins": len(first),
                "of": ", ".join(first),
                "first or within two standard errors of it": tied,
                "mean rank": float(np.mean(ranks)),
                "test loss over the best one's, worst problem": worst,
            }
        )
    return rows


def published(chosen):
    """TUSLA on the cubic at the paper's rate."""
    index = TUSLA.index(0.5)
    found = {name: value[index] for name, value in chosen["tusla"]["all"].items()}
    return (
        f"With the paper's rate of 0.5, whatever validation says, ``tusla`` has a test loss of "
        f"{cell(found['test'])} on the cubic."
    )


def main():
    options = parser(__doc__).parse_args()
    host = machine()
    results, sizes, notes = {}, [], []
    for name, (make, *numbers) in PROBLEMS.items():
        if options.quick and name in ("concrete", "diabetes"):
            continue  # compilation takes most of a quick run
        seeds, steps = numbers[2:] if options.quick else numbers[:2]
        problem = make(seeds, steps)
        if problem is None:
            notes.append(f"LANGEVIN_PPL_DATA has no data of {name}, which is left out.")
            continue
        print(name, flush=True)
        results[name] = compare(problem, QUICK if options.quick else METHODS)
        sizes.append(
            {
                "problem": name,
                "training rows": problem.train[1].shape[1],
                "validation": problem.validation[1].shape[1],
                "test": problem.test[1].shape[1],
                "batch": problem.batch,
                "steps": steps,
                "seeds": seeds,
            }
        )
    tables = {"Problems": sizes}
    tables |= {f"{name}": table(chosen) for name, chosen in results.items()}
    tables["Wins"] = wins(results)

    def ratio(name, method):
        return float(results[name][method]["test"].mean() / results[name]["adam"]["test"].mean())

    goals = [
        goal(f"{name}: test loss of {method} over adam's", ratio(name, method), 1.0)
        for name in results
        for method in ("tusla", "theopoula")
        if method in results[name]
    ]
    notes = [
        "± is the standard error over seeds, whose splits share rows, so that it is too small. "
        "*Less adam's*: the mean of the difference to the same seed of Adam. *Edge*: the smallest "
        "or largest rate that was tried. Rates are constant. Langevin methods have their default "
        "inverse temperatures; ``tusla`` has power 1 and no pull but on the cubic, and "
        "``etheopoula`` no penalty, so that all minimise the same loss. Seconds are those of all "
        f"rates and seeds together, compilation included. {published(results['cubic'])}",
        *notes,
    ]
    return finish(
        "optim_networks",
        options,
        host,
        precision="float32",
        tables=tables,
        goals=goals,
        notes=notes,
    )


if __name__ == "__main__":
    main()

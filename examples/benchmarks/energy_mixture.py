"""Trainers of energies where modes are far apart: which of them learns how much mass each has.

The teacher is a mixture of two Gaussians of unit variance in 50 dimensions, at -10 and 6 along the
first axis, with weights 0.25 and 0.75 (Carbone, Hua, Coste, Vanden-Eijnden, 2023,
arXiv:2305.19414). The student is of the same family: two centres and the logarithm of the ratio of
weights are learned, from centres near the origin. Walkers of the kernel do not cross between the
modes, so that walkers alone cannot tell how much mass each should have; weights can.

All trainers make the same updates by the same steps of ``ula`` with as many walkers, from the same
exact draws of the first student; ``persistent`` also from the data. ``noise_contrastive`` and
``sliced_score_matching`` have none.

    python examples/benchmarks/energy_mixture.py [--quick]
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
from common import finish, goal, machine, parser

import langevin_ppl as lp
from langevin_ppl import energy

DIMENSION, LIGHT = 50, 0.25
CENTRES = -10.0, 6.0
NUM_DATA, NUM_WALKERS, BATCH = 10_000, 10_000, 1000
NUM_STEPS, STEP_SIZE, SEEDS = 2000, 0.1, 5
RATE_OF_CENTRES, RATE_OF_WEIGHT = 0.01, 0.02


def student(first):
    """Model of two Gaussians of unit variance, of which the second weighs ``exp(-z)``."""

    def model():
        a = numpyro.param("a", first[0])
        b = numpyro.param("b", first[1])
        z = numpyro.param("z", 0.0)

        def energy_fn(x):
            halves = jnp.stack([jnp.sum((x - a) ** 2), jnp.sum((x - b) ** 2)]) / 2
            return -jax.nn.logsumexp(-halves - jnp.stack([0.0, z]))

        numpyro.sample("x", lp.distributions.EnergyBased(energy_fn, (DIMENSION,)))

    return model


def mixture(rng, number, centres, light):
    """Draws of a mixture, whose first centre has weight ``light``."""
    rows = np.where(rng.uniform(size=number) < light, 0, 1)
    return (np.asarray(centres)[rows] + rng.standard_normal((number, DIMENSION))).astype(np.float32)


def setting(seed):
    """Data, first centres, exact draws of the first student, and its log normaliser."""
    rng = np.random.default_rng(seed)
    axis = np.eye(DIMENSION)[0]
    data = mixture(rng, NUM_DATA, np.outer(CENTRES, axis), LIGHT)
    first = np.outer([-0.1, 0.1], axis) + 0.01 * rng.standard_normal((2, DIMENSION))
    walkers = mixture(rng, NUM_WALKERS, first, 0.5)
    log_z = 0.5 * DIMENSION * np.log(2 * np.pi) + np.log(2.0)
    return data, jnp.asarray(first, jnp.float32), walkers, float(log_z)


def optimizer():
    return optax.multi_transform(
        {"centre": optax.sgd(RATE_OF_CENTRES), "weight": optax.sgd(RATE_OF_WEIGHT)},
        ({"a": "centre", "b": "centre", "z": "weight"}, "weight"),
    )


def trainers(walkers, log_z):
    """Arguments of every trainer."""
    moves = {"step_size": STEP_SIZE}
    return {
        "jarzynski": {
            "method": energy.jarzynski(num_walkers=NUM_WALKERS),
            "walkers": walkers,
            "log_normalizer": log_z,
            **moves,
        },
        "persistent, from the student": {
            "method": energy.persistent(num_walkers=NUM_WALKERS),
            "walkers": walkers,
            **moves,
        },
        "persistent, from the data": {
            "method": energy.persistent(num_walkers=NUM_WALKERS),
            **moves,
        },
        "contrastive_divergence(4)": {"method": energy.contrastive_divergence(4), **moves},
        "sliced_score_matching": {"method": energy.sliced_score_matching()},
        "noise_contrastive": {"method": energy.noise_contrastive(1)},
    }


def learned(fitted):
    """Mass that the student gives to the side of the light mode, and where its centres are."""
    centres = np.stack([fitted.parameters["a"], fitted.parameters["b"]])
    second = 1.0 / (1.0 + np.exp(float(fitted.parameters["z"])))
    masses = np.array([1.0 - second, second])
    light = int(np.argmin(centres[:, 0]))
    off = np.linalg.norm(
        centres[[light, 1 - light]] - np.outer(CENTRES, np.eye(DIMENSION)[0]), axis=1
    )
    return float(masses[light]), float(off.max())


def measure(name, seeds, num_steps):
    rows = []
    for seed in seeds:
        data, first, walkers, log_z = setting(seed)
        began = time.perf_counter()
        fitted = energy.fit(
            jax.random.key(seed),
            student(first),
            data,
            optimizer=optimizer(),
            num_steps=num_steps,
            batch_size=BATCH,
            progress=False,
            **trainers(walkers, log_z)[name],
        )
        mass, off = learned(fitted)
        row = {"trainer": name, "seed": seed, "mass": mass, "off": off}
        row["seconds"] = time.perf_counter() - began
        if fitted.normalizer is not None and name == "jarzynski":
            exact = 0.5 * DIMENSION * np.log(2 * np.pi) + np.log1p(
                np.exp(-float(fitted.parameters["z"]))
            )
            row["log_z_error"] = fitted.normalizer.value - float(exact)
            row["log_z_standard_error"] = fitted.normalizer.standard_error
            row["ess"] = float(fitted.reports["ess"].min())
        in_data = float(np.mean(data[:, 0] < np.mean(CENTRES)))
        row["in_data"] = in_data
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
        rows.append(row)
    return rows


def main():
    options = parser(__doc__).parse_args()
    host = machine()
    seeds = range(2 if options.quick else SEEDS)
    num_steps = 300 if options.quick else NUM_STEPS
    table, data = [], []
    for name in trainers(None, None):
        rows = measure(name, seeds, num_steps)
        data += rows
        mass = np.array([row["mass"] for row in rows])
        wanted = np.array([row["in_data"] for row in rows])
        table.append(
            {
                "trainer": name,
                "mass of the light mode": f"{mass.mean():.3f} ± {mass.std(ddof=1):.3f}",
                "root mean square error of it": float(np.sqrt(np.mean((mass - wanted) ** 2))),
                "farthest centre from its mode": max(row["off"] for row in rows),
                "seconds": float(np.median([row["seconds"] for row in rows])),
            }
        )
    exact = [row for row in data if row["trainer"] == "jarzynski"]
    normalizers = [
        {
            "seed": row["seed"],
            "log Z less the truth": row["log_z_error"],
            "standard error reported": row["log_z_standard_error"],
            "least effective share": row["ess"],
        }
        for row in exact
    ]
    # Of 1000 independent walkers the share in a mode has this standard deviation.
    monte_carlo = float(np.sqrt(LIGHT * (1 - LIGHT) / NUM_WALKERS))
    by_walkers = table[0]["root mean square error of it"]
    return finish(
        "energy_mixture",
        options,
        host,
        precision="float32",
        tables={"Mass learned": table, "Running normaliser of jarzynski": normalizers},
        goals=[
            goal("error of the mass over that of independent draws", by_walkers / monte_carlo, 3.0)
        ],
        notes=[
            f"{len(seeds)} seeds; {NUM_DATA:,} data, batches of {BATCH:,}, {NUM_WALKERS:,} "
            f"walkers, {num_steps:,} updates, ``ula`` with step {STEP_SIZE}. ± is the standard "
            f"deviation over seeds. The light mode holds {LIGHT} of the teacher. A share that is "
            f"counted in {NUM_WALKERS:,} independent draws has a standard deviation of "
            f"{monte_carlo:.4f}. The running normaliser drifts, because walkers have a part in the "
            "path of the parameters: see the notes of ``jarzynski``."
        ],
        data=data,
    )


if __name__ == "__main__":
    main()

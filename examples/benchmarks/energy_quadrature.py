"""Energies in one and two dimensions, whose maximum of the likelihood is known by quadrature.

Every trainer learns two parameters of a double well in one dimension, and three of two coupled
wells in two dimensions, from 2000 draws of a known member of the family. Its estimate is compared
with the maximum of the likelihood of the same data, which Newton's method finds on a grid, in units
of the standard errors of maximum likelihood: what is left is the error of the trainer, not that of
the data. The normaliser of the estimate is found by annealed importance sampling, by tempered
sequential Monte Carlo, and by the walkers of the exact trainer, and compared with the grid's.

    python examples/benchmarks/energy_quadrature.py [--quick]
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from common import finish, goal, machine, parser

import langevin_ppl as lp
from langevin_ppl import energy

NUM_DATA, NUM_STEPS, NUM_WALKERS, SEEDS = 2000, 1500, 2000, 5
STEP_SIZE, RATE, SPREAD = 0.02, 0.01, 1.5


def one_features(x):
    """Sufficient statistics, of which the energy is a linear combination."""
    return jnp.stack([x[0], -((x[0] ** 2 - 1.0) ** 2)])


def two_features(x):
    wells = -((x[0] ** 2 - 1.0) ** 2) - (x[1] ** 2 - 1.0) ** 2
    return jnp.stack([x[0], wells, x[0] * x[1]])


CASES = {
    "1 dimension": (one_features, 1, np.array([0.4, 0.8]), np.linspace(-6.0, 6.0, 4001)),
    "2 dimensions": (two_features, 2, np.array([0.3, 0.7, 0.4]), np.linspace(-5.0, 5.0, 601)),
}


def model_of(features, dimension, number):
    def model():
        theta = numpyro.param("theta", jnp.array([0.0, 0.5, 0.0][:number]))
        numpyro.sample(
            "x",
            lp.distributions.EnergyBased(
                lambda x: -jnp.dot(theta, features(x)), (dimension,), base=dist.Normal(0.0, SPREAD)
            ),
        )

    return model


class Grid:
    """The family by quadrature."""

    def __init__(self, features, dimension, axis):
        self.points = np.stack(np.meshgrid(*[axis] * dimension, indexing="ij"), -1)
        self.points = self.points.reshape(-1, dimension)
        with jax.enable_x64():
            self.features = np.asarray(jax.vmap(features)(jnp.asarray(self.points)))
        self.base = np.sum(
            -0.5 * (self.points / SPREAD) ** 2 - np.log(SPREAD * np.sqrt(2 * np.pi)), axis=1
        )
        self.log_cell = dimension * np.log(axis[1] - axis[0])

    def log_z(self, theta):
        terms = self.base + self.features @ theta + self.log_cell
        return float(terms.max() + np.log(np.sum(np.exp(terms - terms.max()))))

    def moments(self, theta):
        weights = np.exp(self.base + self.features @ theta + self.log_cell - self.log_z(theta))
        mean = weights @ self.features
        centred = self.features - mean
        return mean, (centred * weights[:, None]).T @ centred, weights

    def draws(self, rng, theta, number):
        weights = self.moments(theta)[2]
        rows = rng.choice(len(weights), number, p=weights / weights.sum())
        step = np.exp(self.log_cell / self.points.shape[1])
        jitter = rng.uniform(-0.5, 0.5, (number, self.points.shape[1])) * step
        return (self.points[rows] + jitter).astype(np.float32)

    def most_likely(self, features, data):
        observed = np.asarray(jax.vmap(features)(jnp.asarray(data))).mean(axis=0)
        theta = np.array([0.0, 0.5, 0.0])[: len(observed)]
        for _ in range(60):
            mean, fisher, _ = self.moments(theta)
            theta = theta + np.linalg.solve(fisher, observed - mean)
        return theta, np.sqrt(np.diag(np.linalg.inv(fisher)) / len(data))


def trainers(num_walkers):
    moves = {"step_size": STEP_SIZE}
    return {
        "jarzynski, ula": {"method": energy.jarzynski(num_walkers=num_walkers), **moves},
        "jarzynski, tula": {
            "method": energy.jarzynski(num_walkers=num_walkers),
            "kernel": lp.tula,
            **moves,
        },
        "jarzynski, mala": {
            "method": energy.jarzynski(num_walkers=num_walkers),
            "kernel": lp.mala,
            "step_size": 0.2,
        },
        "persistent(5), ula": {"method": energy.persistent(5, num_walkers), **moves},
        "persistent(5), mala": {
            "method": energy.persistent(5, num_walkers),
            "kernel": lp.mala,
            "step_size": 0.2,
        },
        "contrastive_divergence(1)": {"method": energy.contrastive_divergence(1), **moves},
        "contrastive_divergence(10)": {"method": energy.contrastive_divergence(10), **moves},
        "replay(10)": {"method": energy.replay(10, num_walkers), **moves},
        "sliced_score_matching": {"method": energy.sliced_score_matching(4)},
        "denoising_score_matching(0.2)": {"method": energy.denoising_score_matching(0.2)},
        "noise_contrastive": {"method": energy.noise_contrastive()},
    }


def run(case, seeds, num_steps, num_walkers):
    """Errors of parameters in standard errors, by trainer, ``[seed, parameter]``; normalisers."""
    features, dimension, truth, axis = CASES[case]
    grid = Grid(features, dimension, axis)
    model = model_of(features, dimension, len(truth))
    errors = {name: [] for name in trainers(num_walkers)}
    seconds = {name: [] for name in errors}
    normalizers = []
    for seed in seeds:
        data = grid.draws(np.random.default_rng(seed), truth, NUM_DATA)
        expected, spread = grid.most_likely(features, data)
        for name, arguments in trainers(num_walkers).items():
            began = time.perf_counter()
            fitted = energy.fit(
                jax.random.key(seed),
                model,
                data,
                optimizer=RATE,
                num_steps=num_steps,
                batch_size=500,
                progress=False,
                **arguments,
            )
            seconds[name].append(time.perf_counter() - began)
            theta = np.asarray(fitted.parameters["theta"], float)
            errors[name].append((theta - expected) / spread)
            if name != "jarzynski, ula":
                continue
            key = jax.random.key(100 + seed)
            found = {
                "walkers of jarzynski": fitted.normalizer,
                "annealed importance sampling": energy.log_normalizer(key, fitted, num_levels=200),
                "tempered sequential Monte Carlo": energy.log_normalizer(key, fitted, method="smc"),
            }
            normalizers += [
                {"by": by, "off": value.value - grid.log_z(theta), "se": value.standard_error}
                for by, value in found.items()
            ]
        print(case, seed, {n: np.round(e[-1], 2).tolist() for n, e in errors.items()}, flush=True)
    return errors, seconds, normalizers


def main():
    options = parser(__doc__).parse_args()
    host = machine()
    seeds = range(2 if options.quick else SEEDS)
    num_steps, num_walkers = (200, 500) if options.quick else (NUM_STEPS, NUM_WALKERS)
    tables, worst, data = {}, {}, []
    every = []
    for case in CASES:
        errors, seconds, normalizers = run(case, seeds, num_steps, num_walkers)
        tables[f"Parameters, {case}"] = [
            {
                "trainer": name,
                "root mean square error, standard errors": float(
                    np.sqrt(np.mean(np.square(values)))
                ),
                "mean error of each, standard errors": ", ".join(
                    f"{v:+.2f}" for v in np.mean(values, axis=0)
                ),
                "largest": float(np.max(np.abs(values))),
                "seconds": float(np.median(seconds[name])),
            }
            for name, values in errors.items()
        ]
        worst[case] = float(np.max(np.abs(errors["jarzynski, ula"])))
        data += [
            {"case": case, "trainer": name, "errors": np.asarray(v).tolist()}
            for name, v in errors.items()
        ]
        every += [{"case": case, **row} for row in normalizers]
    tables["Normalisers"] = [
        {
            "case": case,
            "by": by,
            "root mean square error": float(np.sqrt(np.mean([r["off"] ** 2 for r in rows]))),
            "standard error reported": float(np.median([r["se"] for r in rows])),
            "largest error, standard errors": float(max(abs(r["off"]) / r["se"] for r in rows)),
        }
        for case in CASES
        for by in dict.fromkeys(row["by"] for row in every)
        if (rows := [r for r in every if r["by"] == by and r["case"] == case])
    ]
    off = max(row["largest error, standard errors"] for row in tables["Normalisers"])
    return finish(
        "energy_quadrature",
        options,
        host,
        precision="float32",
        tables=tables,
        goals=[
            *(
                goal(f"largest error of jarzynski, {case}, standard errors", value, 3.0)
                for case, value in worst.items()
            ),
            goal("largest error of log Z, its own standard errors", off, 3.0),
        ],
        notes=[
            f"{len(seeds)} seeds, {NUM_DATA:,} data, batches of 500, {num_steps:,} updates, "
            f"{num_walkers:,} walkers. Standard errors of parameters are those of maximum "
            "likelihood; errors are against the maximum for the same data. Times hold compilation."
        ],
        data=data,
    )


if __name__ == "__main__":
    main()

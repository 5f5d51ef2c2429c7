"""Trainers of a small network on three sets of data in two dimensions, and their speed.

Moons, a checkerboard and eight Gaussians. Every trainer makes as many updates of the same network,
times a Gaussian base measure. What is learned is judged by quadrature on a grid, and not by
what walkers can reach: the log likelihood of held-out data, and the sliced Wasserstein distance of
exact draws from the grid to held-out data, beside that of two sets of data.

The speed is the time of an update over that of the gradients that it needs, alone in a compiled
loop: those in the datum for every step of every walker, and those in the parameters for data and
walkers. The two are timed in turn.

    python examples/benchmarks/energy_2d.py [--quick]
"""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from common import finish, goal, machine, parser, quartiles
from numpyro import sample
from numpyro.contrib.module import eqx_module
from sklearn.datasets import make_moons

import langevin_ppl as lp
from langevin_ppl import energy
from langevin_ppl.energy.model import EnergyModel
from langevin_ppl.fit import descent

NUM_DATA, NUM_HELD_OUT, BATCH, NUM_STEPS, SEEDS = 10_000, 2000, 256, 1500, 3
WIDTH, SPREAD, STEP_SIZE, RATE = 64, 2.0, 0.01, 2e-3
AXIS = np.linspace(-8.0, 8.0, 641)
ROUNDS, TIMED_STEPS = 15, 200


def moons(rng, number):
    points, _ = make_moons(number, noise=0.1, random_state=int(rng.integers(2**31)))
    return 1.5 * (points - [0.5, 0.25])


def checkerboard(rng, number):
    column = rng.integers(0, 4, number)
    row = 2 * rng.integers(0, 2, number) + column % 2
    return np.stack([column, row], 1) - 2.0 + rng.uniform(size=(number, 2))


def eight_gaussians(rng, number):
    angle = 2 * np.pi * rng.integers(0, 8, number) / 8
    return 2.0 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.2 * rng.normal(size=(number, 2))


DATA = {"moons": moons, "checkerboard": checkerboard, "eight Gaussians": eight_gaussians}


def trainers():
    """Arguments of every trainer.

    Energies of networks become steep, where the steps of ``ula`` are unstable unless weights tell
    them so: ``mala`` shows what the other methods themselves do.
    """
    free, tested = {"step_size": 0.01}, {"kernel": lp.mala, "step_size": 0.05}
    walking, short = energy.persistent(5, num_walkers=1000), energy.replay(20)
    return {
        "jarzynski, ula": {"method": energy.jarzynski(5, num_walkers=1000), **free},
        "persistent(5), mala": {"method": walking, **tested},
        "persistent(5), ula": {"method": walking, **free},
        "persistent(5), ula, magnitude 0.1": {"method": walking, "energy_magnitude": 0.1, **free},
        "contrastive_divergence(5), mala": {"method": energy.contrastive_divergence(5), **tested},
        "replay(20), mala": {"method": short, **tested},
        "replay(20), mala, magnitude 0.01": {"method": short, "energy_magnitude": 0.01, **tested},
        "sliced_score_matching": {"method": energy.sliced_score_matching()},
        "denoising_score_matching(0.1)": {"method": energy.denoising_score_matching(0.1)},
        "noise_contrastive": {"method": energy.noise_contrastive()},
    }


def network(seed):
    return eqx.nn.MLP(2, "scalar", WIDTH, 3, jax.nn.silu, key=jax.random.key(seed))


def model_of(net):
    def model():
        energy_fn = eqx_module("net", net)
        sample("x", lp.distributions.EnergyBased(energy_fn, (2,), base=dist.Normal(0.0, SPREAD)))

    return model


def judged(target, held_out, floor_key, rng):
    """Log likelihood of held-out data by the grid, and the distance of exact draws to them."""
    points = np.stack(np.meshgrid(AXIS, AXIS, indexing="ij"), -1).reshape(-1, 2)
    evaluate = jax.jit(lambda x: jax.lax.map(target.logdensity_fn, {"x": x}, batch_size=4096))
    logs, cell = np.asarray(evaluate(jnp.asarray(points, jnp.float32)), float), AXIS[1] - AXIS[0]
    log_z = logs.max() + np.log(np.sum(np.exp(logs - logs.max()))) + 2 * np.log(cell)
    weights = np.exp(logs - log_z) * cell**2
    rows = rng.choice(len(weights), len(held_out), p=weights / weights.sum())
    draws = points[rows] + rng.uniform(-0.5, 0.5, (len(rows), 2)) * cell
    own = np.asarray(evaluate(jnp.asarray(held_out, jnp.float32)), float) - log_z
    away = lp.diagnostics.sliced_wasserstein(floor_key, draws.astype(np.float32), held_out)
    return float(own.mean()), float(away.value), float(log_z)


def run(case, seeds, num_steps):
    found = {name: [] for name in [*trainers(), "floor: data"]}
    for seed in seeds:
        rng = np.random.default_rng(seed)
        data = DATA[case](rng, NUM_DATA).astype(np.float32)
        held_out, more = (DATA[case](rng, NUM_HELD_OUT).astype(np.float32) for _ in range(2))
        key = jax.random.key(50 + seed)
        floor = lp.diagnostics.sliced_wasserstein(key, more, held_out).value
        found["floor: data"].append((np.nan, float(floor), 0.0))
        model = model_of(network(seed))
        for name, arguments in trainers().items():
            began = time.perf_counter()
            fitted = energy.fit(
                jax.random.key(seed),
                model,
                data,
                optimizer=RATE,
                num_steps=num_steps,
                batch_size=BATCH,
                progress=False,
                **arguments,
            )
            seconds = time.perf_counter() - began
            likelihood, away, _ = judged(fitted.target, held_out, key, rng)
            found[name].append((likelihood, away, seconds))
            print(
                case,
                seed,
                name,
                round(likelihood, 3),
                round(away, 4),
                f"{seconds:.0f} s",
                flush=True,
            )
    return found


def bare(model, num_steps, walkers, batch):
    """A compiled loop of the gradients of an update of ``persistent(num_steps)``, and no more."""

    def density(parameters, x):
        return model.density(parameters)({"x": x})

    @jax.jit
    def loop(parameters, walkers, data, count):
        def update(i, carry):
            parameters, walkers, total = carry

            def step(j, walkers):
                score = jax.vmap(jax.value_and_grad(lambda x: density(parameters, x)))(walkers)
                return walkers + 1e-6 * score[1] + 1e-12 * score[0][:, None]

            walkers = jax.lax.fori_loop(0, num_steps, step, walkers)
            start = (i * batch) % (len(data) - batch)
            rows = jax.lax.dynamic_slice_in_dim(data, start, batch)

            def gap(parameters):
                values = jax.vmap(lambda x: density(parameters, x))
                return jnp.mean(values(walkers)) - jnp.mean(values(rows))

            value, slope = jax.value_and_grad(gap)(parameters)
            parameters = jax.tree.map(lambda p, s: p - 1e-9 * s, parameters, slope)
            return parameters, walkers, total + value

        return jax.lax.fori_loop(0, count, update, (parameters, walkers, jnp.zeros(())))

    return loop


def program_of(model, data, steps):
    """The compiled program of a training, as a function of the number of updates."""
    seen, real = [], descent.chunk

    def recorded(*arguments, **static):
        seen.append((arguments, static))
        return real(*arguments, **static)

    descent.chunk = recorded
    try:
        energy.fit(
            jax.random.key(0),
            model,
            data,
            method=energy.persistent(steps, num_walkers=1000),
            optimizer=optax.adam(1e-6),
            num_steps=2,
            batch_size=BATCH,
            progress=False,
            step_size=STEP_SIZE,
        )
    finally:
        descent.chunk = real
    (carry, _, _, *others), static = seen[0]
    return lambda count: real(carry, 0, count, *others, **static)


def speed(rounds, num_steps):
    """Ratios of an update's time to that of its gradients, by the steps of the kernel."""
    rng = np.random.default_rng(0)
    data = moons(rng, NUM_DATA).astype(np.float32)
    model = model_of(network(0))
    whole = EnergyModel.of(model, None)
    parameters = whole.parameters()
    rows = []
    for steps in (1, 5, 20):
        loop = bare(whole, steps, 1000, BATCH)
        walkers = jnp.asarray(data[:1000])

        def alone(count, loop=loop, walkers=walkers):
            began = time.perf_counter()
            jax.block_until_ready(loop(parameters, walkers, jnp.asarray(data), count))
            return time.perf_counter() - began

        program = program_of(model, data, steps)

        def update(count, program=program):
            began = time.perf_counter()
            jax.block_until_ready(program(count))
            return time.perf_counter() - began

        for warm in (alone, update):
            warm(num_steps)
        ratios, times = [], []
        for _ in range(rounds):
            ours, gradients = update(num_steps), alone(num_steps)
            ratios.append(ours / gradients)
            times.append(gradients / num_steps)
        low, middle, high = quartiles(ratios)
        rows.append(
            {
                "steps of the kernel": steps,
                "gradients alone, ms": 1e3 * float(np.median(times)),
                "update over gradients": f"{middle:.3f} ({low:.3f} to {high:.3f})",
                "ratio": middle,
            }
        )
        print(rows[-1], flush=True)
    return rows


def cells(values, column, digits):
    """Mean and standard error over seeds."""
    values = np.array([row[column] for row in values])
    if np.isnan(values).any():
        return "-"
    error = values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.{digits}f} ± {error:.{digits}f}"


def main():
    options = parser(__doc__).parse_args()
    host = machine()
    quick = options.quick
    seeds, num_steps = (range(2), 100) if quick else (range(SEEDS), NUM_STEPS)
    found = {case: run(case, seeds, num_steps) for case in DATA}
    times = speed(2 if quick else ROUNDS, 20 if quick else TIMED_STEPS)
    names = list(next(iter(found.values())))
    tables = {
        "Log likelihood of held-out data, nats": [
            {"trainer": name, **{case: cells(found[case][name], 0, 3) for case in DATA}}
            for name in names
            if name != "floor: data"
        ],
        "Sliced W2 of exact draws to held-out data": [
            {"trainer": name, **{case: cells(found[case][name], 1, 4) for case in DATA}}
            for name in names
        ],
        "Seconds of training, compilation included": [
            {
                "trainer": name,
                **{case: float(np.median([row[2] for row in found[case][name]])) for case in DATA},
            }
            for name in names
            if name != "floor: data"
        ],
        "Time of an update of persistent": [
            {name: value for name, value in row.items() if name != "ratio"} for row in times
        ],
    }
    return finish(
        "energy_2d",
        options,
        host,
        precision="float32",
        tables=tables,
        goals=[
            goal(
                f"update over its gradients, {row['steps of the kernel']} steps", row["ratio"], 1.1
            )
            for row in times
        ],
        notes=[
            f"{len(seeds)} seeds, ± the standard error over them; {NUM_DATA:,} data, batches of "
            f"{BATCH}, {num_steps:,} updates of a network of {WIDTH} x 3. The log likelihood of "
            f"the checkerboard's own law is {-np.log(8.0):.3f}, and that of the eight Gaussians "
            f"{-np.log(8.0) - np.log(2 * np.pi * 0.04) - 1:.3f}. Where a likelihood is in the "
            "hundreds below, walkers ran away, and most of them said so in a warning; the penalty "
            "of the energy's magnitude (``energy_magnitude=``) was chosen on moons of one seed."
        ],
        data=[
            {"case": case, "trainer": name, "rows": [list(map(float, row)) for row in rows]}
            for case, by_name in found.items()
            for name, rows in by_name.items()
        ],
    )


if __name__ == "__main__":
    main()

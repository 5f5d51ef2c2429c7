"""Three landscapes: many minima, a wall, and a network started behind a wall.

The first has a hundred minima, of which gradient descent and Adam find the nearest; noise that is
cooled down crosses between them, and a consensus of particles finds the lowest. In the second the
gradient at the start is about 1e22, so that a step of gradient descent overflows, and its square,
which Adam and RMSProp remember, is infinite in float32: they never move again. A tamed step comes
back at once. The third is a network whose weights a wall of the same kind keeps in a ball, started
outside and inside of it: there TUSLA can what Adam cannot, and here Adam is better. Every method
has the best of its learning rates, by a validation set. Prints a table and writes
``landscapes.png`` to ``landscapes_output/``.
"""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optax

import langevin_ppl as lp

OUTPUT = Path("landscapes_output")
KEY = jax.random.key(0)


def trajectory(loss, start, optimizer, num_steps):
    """Positions of a plain loop of Optax, ``[step, ...]``, the start included."""

    def step(carry, _):
        x, state = carry
        updates, state = optimizer.update(jax.grad(loss)(x), state, x)
        x = optax.apply_updates(x, updates)
        return (x, state), x

    start = jnp.asarray(start)
    _, path = jax.lax.scan(step, (start, optimizer.init(start)), length=num_steps)
    return jnp.concatenate([start[None], path])


# Many minima


def rastrigin(x):
    return 10.0 * x.size + jnp.sum(x**2 - 10.0 * jnp.cos(2.0 * jnp.pi * x))


def many_minima():
    """Paths by name, the share of 50 cooled ones that end at 0, and what one call finds."""

    def cooled(rng_key):
        return lp.optim.annealed_langevin(2e-3, rng_key, num_steps=4000, start=0.08, end=100.0)

    keys = jax.random.split(KEY, 50)
    many = jax.vmap(lambda key: trajectory(rastrigin, [2.6, 3.3], cooled(key), 4000))(keys)
    ends = jax.vmap(rastrigin)(many[:, -1])
    share, best = jnp.mean(ends < 0.5), many[jnp.argmin(ends)]
    paths = {
        "gradient descent": trajectory(rastrigin, [2.6, 3.3], optax.sgd(2e-3), 200),
        "Adam": trajectory(rastrigin, [2.6, 3.3], optax.adam(0.1), 500),
        "annealed Langevin": best,
    }
    options = {"num_steps": 200, "num_particles": 100, "spread": 2.0}
    start, method = jnp.array([2.6, 3.3]), lp.optim.consensus()
    return paths, float(share), lp.optim.minimize(KEY, rastrigin, start, method, **options)


# A wall


def walled(x):
    """x^2, and a wall at 1 that holds it; started at 5."""
    return x**2 + x**30


def wall():
    optimizers = {
        "Adam, 0.01": optax.adam(0.01),
        "Adam, 0.1": optax.adam(0.1),
        "RMSProp, 0.1": optax.rmsprop(0.1),
        "TUSLA, 0.001": lp.optim.tusla(1e-3, key=0, power=28),
        "THEO POULA, 0.1": lp.optim.theopoula(0.1, key=0),
    }
    return {name: trajectory(walled, 5.0, o, 400) for name, o in optimizers.items()}


# A network behind a wall

WIDTH, RADIUS, ROWS, BATCH, STEPS = 15, 16.0, 2000, 128, 5000


def surface(rng_key):
    """The regression of Lim et al. (2021): z = |2 y_1 + 2 y_2 - 2|^3."""
    y = jax.random.uniform(rng_key, (ROWS, 2))
    return y, jnp.abs(2.0 * y[:, 0] + 2.0 * y[:, 1] - 2.0) ** 3


def squared_error(params, data):
    """Mean squared error of a network whose weights are ``RADIUS`` times the parameters."""
    (y, z), weights = data, jax.tree.map(lambda p: RADIUS * p, params)
    hidden = jnp.tanh((y - 0.5) @ weights["in"] + weights["shift"])
    return jnp.mean((hidden @ weights["out"] + weights["level"] - z) ** 2)


def penalised(params, batch):
    return squared_error(params, batch) + optax.tree.norm(params, squared=True) ** 15


def initial(rng_key, size):
    """Random parameters of a norm; the wall stands at 1."""
    key_in, key_out = jax.random.split(rng_key)
    params = {
        "in": jax.random.normal(key_in, (2, WIDTH)),
        "out": jax.random.normal(key_out, (WIDTH,)),
        "shift": jnp.zeros(WIDTH),
        "level": jnp.zeros(()),
    }
    return jax.tree.map(lambda p: p * size / optax.tree.norm(params), params)


def trained(optimizer, params, data):
    """Validation error of every hundredth step, and the test error of the last."""
    train, validation, test = data

    def step(carry, rng_key):
        params, state = carry
        rows = jax.random.randint(rng_key, (BATCH,), 0, ROWS)
        gradient = jax.grad(penalised)(params, jax.tree.map(lambda a: a[rows], train))
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    def hundred(carry, keys):
        carry, _ = jax.lax.scan(step, carry, keys)
        return carry, squared_error(carry[0], validation)

    keys = jax.random.split(jax.random.key(4), (STEPS // 100, 100))
    (params, _), errors = jax.lax.scan(hundred, (params, optimizer.init(params)), keys)
    return errors, squared_error(params, test)


RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
TRAINERS = {
    "SGD": optax.sgd,
    "Adam": optax.adam,
    "RMSProp": optax.rmsprop,
    "Adam, norm clipped": lambda rate: optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(rate)
    ),
    "Adam, entries clipped": lambda rate: optax.chain(optax.clip(1.0), optax.adam(rate)),
    "TUSLA": lambda rate: lp.optim.tusla(rate, key=0, power=28),
    "THEO POULA": lambda rate: lp.optim.theopoula(rate, key=0),
}


def best_of(make, data):
    """From outside and inside, of all learning rates the run that ends with the lowest error."""
    starts = jax.tree.map(lambda *p: jnp.stack(p), initial(KEY, 5.0), initial(KEY, 0.7))

    def of_rate(rate):
        return jax.vmap(lambda params: trained(make(rate), params, data))(starts)

    errors, tests = jax.jit(jax.vmap(of_rate))(jnp.array(RATES))
    # Runs that overflowed come last.
    best = jnp.argmin(jnp.nan_to_num(errors[:, :, -1], nan=jnp.inf), axis=0)
    return [(RATES[k], np.asarray(errors[k, i]), float(tests[k, i])) for i, k in enumerate(best)]


def draw(paths, found, walls, networks):
    _, axes = plt.subplots(1, 3, figsize=(15, 4.6), layout="constrained")
    left, middle, right = axes
    grid = np.linspace(-4.5, 4.5, 200)
    points = jnp.stack(jnp.meshgrid(grid, grid), -1)
    heights = jax.vmap(jax.vmap(rastrigin))(points)
    left.contourf(grid, grid, heights, levels=20, cmap="Greys", alpha=0.7)
    for (name, path), colour in zip(paths.items(), ("C0", "C1", "C3"), strict=True):
        thin = {"linewidth": 0.6, "alpha": 0.7} if "Langevin" in name else {"linewidth": 2.0}
        left.plot(*path.T, color=colour, label=name, **thin)
        left.plot(*path[-1], "o", color=colour, markersize=7, markeredgecolor="white")
    left.plot(*found.x, "*", color="C2", markersize=15, markeredgecolor="white", label="consensus")
    left.set(title="A hundred minima", xlim=(-4.5, 4.5), ylim=(-4.5, 4.5))
    left.set_aspect("equal")
    left.legend(loc="lower left", fontsize=8)
    # Lines that lie on each other are told by their widths.
    widths = (6.0, 4.0, 2.0, 2.0, 2.0, 2.0, 2.0)
    for (name, path), width in zip(walls.items(), widths, strict=False):
        middle.plot(path, label=name, linewidth=width)
    middle.set(title="A wall of power 30", xlabel="step", ylabel="position")
    middle.legend(fontsize=8)
    widths = (2.0, 6.0, 4.0, 2.0, 2.0, 2.0, 2.0)
    for (name, (rate, errors, _)), width in zip(networks.items(), widths, strict=True):
        steps = 100 * np.arange(1, len(errors) + 1)
        told = f"{rate:g}" if np.isfinite(errors[-1]) else "overflows"
        right.semilogy(steps, errors, label=f"{name}, {told}", linewidth=width)
    right.set(title="A network started outside the wall", xlabel="step", ylabel="squared error")
    right.legend(fontsize=8)


def main():
    matplotlib.use("Agg")
    began = time.perf_counter()
    paths, share, found = many_minima()
    print("Rastrigin, from (2.6, 3.3); the lowest minimum is 0 at 0:")
    for name, path in paths.items():
        print(
            f"  {name:18s} ends at {np.round(np.asarray(path[-1]), 2)}: {rastrigin(path[-1]):.3g}"
        )
    print(f"  of 50 paths of annealed Langevin, {share:.0%} end within 0.5 of it; this is the best")
    print(f"  {'consensus':18s} ends at {np.round(np.asarray(found.x), 2)}: {found.fun:.3g}")
    walls = wall()
    print("A wall of power 30, from 5; the minimum is at 0:")
    for name, path in walls.items():
        print(f"  {name:18s} after 1 and 400 steps: {path[1]:.3g}, {path[-1]:.3g}")
    print(f"A network in a ball, {STEPS} steps; test error, and the learning rate of six:")
    data = [surface(jax.random.key(seed)) for seed in (1, 2, 3)]
    runs = {name: best_of(make, data) for name, make in TRAINERS.items()}
    print(f"  {'':22s} {'started outside':>22s} {'inside':>22s}")
    for name, pair in runs.items():
        columns = [f"{error:.3g} ({rate:g})" for rate, _, error in pair]
        print(f"  {name:22s} {columns[0]:>22s} {columns[1]:>22s}")
    OUTPUT.mkdir(exist_ok=True)
    draw(paths, found, walls, {name: pair[0] for name, pair in runs.items()})
    plt.savefig(OUTPUT / "landscapes.png", dpi=110)
    print(f"wrote {OUTPUT / 'landscapes.png'} after {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()

"""One step of the optimisers of ``lp.optim`` against those of Optax, on a million parameters.

A jitted ``fori_loop`` of ``update`` and ``apply_updates`` in float32. The gradient is 0.01 times
the parameters, which costs next to nothing: the optimiser is what is timed, and where a network
makes the gradients its share is far smaller. With noise the baseline is ``optax.noisy_sgd``, which
also draws a normal number for every parameter; without, ``optax.adam``.

All run in turn, in rotating order, after a first call of each that compiles. Ratios are taken
round by round.

    python examples/benchmarks/optim_overhead.py [--quick]
"""

import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import finish, goal, machine, parser, quartiles, spread

import langevin_ppl as lp

SHAPES = {
    "embedding": (1000, 500),
    "kernel": (3, 3, 128, 256),
    "dense": (400, 500),
    "bias": (5000,),
    "scale": (88,),
}
RATE = 1e-3
NOISY, ADAM = "optax.noisy_sgd", "optax.adam"
MOMENTUM = ("sghmc", "tsghmc")


def optimizers(inverse_temperature):
    """Those of the library, at one inverse temperature."""
    make, options = lp.optim, {"inverse_temperature": inverse_temperature}
    return {
        "sgld": make.sgld(RATE, 0, **options),
        "tusla": make.tusla(RATE, 0, **options),
        "tusla, with a penalty": make.tusla(RATE, 0, strength=1e-3, **options),
        "theopoula": make.theopoula(RATE, 0, **options),
        "etheopoula": make.etheopoula(RATE, 0, **options),
        "sghmc": make.sghmc(RATE, 0, **options),
        "tsghmc": make.tsghmc(RATE, 0, **options),
    }


def parameters():
    rng = np.random.default_rng(0)
    return {
        name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in SHAPES.items()
    }


def program(optimizer, num_steps):
    """Seconds that a step takes, as a function of the parameters."""

    @jax.jit
    def run(params, state):
        def step(_, carry):
            params, state = carry
            gradients = jax.tree.map(lambda leaf: 0.01 * leaf, params)
            updates, state = optimizer.update(gradients, state, params)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, num_steps, step, (params, state))

    def timed(params):
        state = optimizer.init(params)
        began = time.perf_counter()
        final = jax.block_until_ready(run(params, state))
        seconds = (time.perf_counter() - began) / num_steps
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in final[0].values())
        return seconds

    return timed


def compare(baseline, optimizer, others, params, rounds, num_steps):
    """Rows of a table, and the median ratio of every optimiser."""
    ways = {name: program(each, num_steps) for name, each in [(baseline, optimizer), *others]}
    names, seconds = list(ways), {name: [] for name in ways}
    for way in ways.values():
        way(params)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(ways[name](params))
    rows, ratios = [], {}
    for name in names:
        ratio = [a / b for a, b in zip(seconds[name], seconds[baseline], strict=True)]
        ratios[name] = quartiles(ratio)[1]
        rows.append(
            {
                "optimiser": name,
                "milliseconds a step": 1e3 * quartiles(seconds[name])[1],
                f"over {baseline}": spread(ratio),
                "momentum in the state": "yes" if name in (*MOMENTUM, ADAM) else "no",
            }
        )
    return rows, ratios


def main():
    options = parser(__doc__).parse_args()
    host = machine()
    rounds, num_steps = (2, 3) if options.quick else (21, 20)
    params = parameters()
    count = sum(leaf.size for leaf in params.values())
    noisy = optax.noisy_sgd(RATE, key=0)
    cases = {
        "With noise": (NOISY, noisy, optimizers(1e10), 1.1),
        "Without noise": (ADAM, optax.adam(RATE), optimizers(math.inf), 1.2),
    }
    tables, goals = {}, []
    for title, (baseline, optimizer, others, limit) in cases.items():
        rows, ratios = compare(baseline, optimizer, list(others.items()), params, rounds, num_steps)
        tables[title] = rows
        goals += [goal(f"{name} over {baseline}", ratios[name], limit) for name in others]
    note = (
        f"{rounds} rounds of {num_steps} steps on {count:,} float32 parameters in {len(params)} "
        "leaves. Ratios: median (quartiles) over rounds. `sghmc` and `tsghmc` read and write a "
        "momentum as well, as large as the parameters, which the baseline with noise does not."
    )
    return finish(
        "optim_overhead",
        options,
        host,
        precision="float32",
        tables=tables,
        goals=goals,
        notes=[note],
    )


if __name__ == "__main__":
    main()

"""What a solver of a diffusion costs beside the network that it evaluates.

The network is a residual multilayer perceptron of width 256 on data of 64 numbers, in float32 with
512 samples at a time. Every solver makes its steps in one compiled loop; the bare loop evaluates
the same network as often, at the same times, each output being the next input.

Solvers take turns, in rotating order, after a first call of each that compiles. The bare loop runs
before every one of them, and the ratio is that of such a pair.

    python examples/benchmarks/solver_overhead.py [--quick]
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from common import finish, goal, machine, parser, quartiles, spread

import langevin_ppl as lp
from langevin_ppl import diffusion
from langevin_ppl.diffusion.sampler import advance, begin, in_precision

DIMENSION, WIDTH, BLOCKS, FEATURES, BATCH = 64, 256, 3, 32, 512
BARE = "the network alone"
SOLVERS = {
    "dpm_solver_pp(1)": partial(diffusion.dpm_solver_pp, 1),
    "dpm_solver_pp(2)": partial(diffusion.dpm_solver_pp, 2),
    "dpm_solver_pp(3)": partial(diffusion.dpm_solver_pp, 3),
    "dpm_solver_pp(2), singlestep": partial(diffusion.dpm_solver_pp, 2, variant="singlestep"),
    "dpm_solver_pp(2), sde": partial(diffusion.dpm_solver_pp, 2, variant="sde"),
    "unipc(3)": partial(diffusion.unipc, 3),
    "deis(3)": partial(diffusion.deis, 3),
    "ipndm(4)": partial(diffusion.ipndm, 4),
    "ghvb(2.5)": partial(diffusion.ghvb, 2.5),
    "heun()": diffusion.heun,
}
ADD_NOISE = ("dpm_solver_pp(2), sde",)


def weights(rng_key):
    keys = iter(jax.random.split(rng_key, 2 + 3 * BLOCKS))

    def dense(inputs, outputs, scale=1.0):
        return scale * jax.random.normal(next(keys), (inputs, outputs)) / np.sqrt(inputs)

    blocks = [
        (dense(WIDTH, WIDTH), dense(FEATURES, WIDTH), dense(WIDTH, WIDTH, 0.1))
        for _ in range(BLOCKS)
    ]
    return dense(DIMENSION, WIDTH), blocks, dense(WIDTH, DIMENSION)


def network(parameters, x, t, condition=None):
    """Prediction of one clean datum."""
    into, blocks, out = parameters
    phase = jnp.log(t) * jnp.exp(jnp.linspace(-3.0, 3.0, FEATURES // 2))
    features = jnp.concatenate([jnp.sin(phase), jnp.cos(phase)])
    hidden = (x / jnp.sqrt(1.0 + t**2)) @ into
    for first, of_time, second in blocks:
        hidden = hidden + jax.nn.silu(jax.nn.silu(hidden) @ first + features @ of_time) @ second
    return hidden @ out


@partial(jax.jit, static_argnames="capacity")
def bare(parameters, times, x, count, capacity):
    def body(i, x):
        return jax.vmap(network, (None, 0, None))(parameters, x, times[i])

    return jax.lax.fori_loop(0, count, body, x)


@partial(jax.jit, static_argnames=("mover", "capacity"))
def solve(mover, score, rows, keys, carry, count, capacity):
    carry, _ = advance(mover, score, None, rows, keys, carry, 0, count, capacity, False)
    return jax.vmap(mover.read)(carry)


def loops(num_steps):
    """Calls with nothing left to prepare, and how often each evaluates the network."""
    process = lp.scores.EDM()
    parameters = weights(jax.random.key(0))
    score = lp.scores.Score(jax.tree_util.Partial(network, parameters), process, (DIMENSION,))
    keys = jax.random.split(jax.random.key(1), BATCH)
    calls, evaluations = {}, {}
    for name, solver in SOLVERS.items():
        plan = solver(num_steps=num_steps).plan(process)
        carry, step_keys = begin(plan.mover, process, (DIMENSION,), keys, None)
        rows = jax.tree.map(in_precision, plan.rows)
        count = evaluations[name] = plan.num_evaluations
        calls[name] = partial(solve, plan.mover, score, rows, step_keys, carry, count, count)
    x = process.prior(jax.random.key(2), (BATCH, DIMENSION), event_ndim=1)
    times = in_precision(diffusion.dpm_solver_pp(1, num_steps).plan(process).rows.time)
    calls[BARE] = partial(bare, parameters, times, x, num_steps, num_steps)
    evaluations[BARE] = num_steps
    return calls, evaluations


def measure(calls, evaluations, rounds):
    """Seconds of an evaluation by round, of every solver and of the bare loop just before it."""

    def seconds(name):
        began = time.perf_counter()
        jax.block_until_ready(calls[name]())
        return (time.perf_counter() - began) / evaluations[name]

    found = {name: [] for name in SOLVERS}
    for name in calls:
        seconds(name)
    names = list(SOLVERS)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            found[name].append((seconds(BARE), seconds(name)))
    return {name: np.array(pairs).T for name, pairs in found.items()}


def main():
    options = parser(__doc__).parse_args()
    host = machine()
    num_steps, rounds = (10, 2) if options.quick else (30, 61)
    calls, evaluations = loops(num_steps)
    rows, medians = [], {}
    for name, (alone, seconds) in measure(calls, evaluations, rounds).items():
        medians[name] = quartiles(seconds / alone)[1]
        rows.append(
            {
                "solver": name,
                "evaluations": evaluations[name],
                "microseconds of one": spread(1e6 * seconds),
                "of the network alone": spread(1e6 * alone),
                "ratio": spread(seconds / alone),
            }
        )
    quiet = [medians[name] for name in SOLVERS if name not in ADD_NOISE]
    goals = [
        goal("largest median ratio of the solvers without noise", float(np.max(quiet)), 1.05),
    ]
    notes = [
        f"Medians and quartiles of {rounds} rounds; {num_steps} steps, {BLOCKS} residual blocks of "
        f"width {WIDTH}. The SDE draws {BATCH * DIMENSION:,} normal numbers a step besides."
    ]
    return finish(
        "solver_overhead",
        options,
        host,
        precision="float32",
        tables={"Time of an evaluation": rows},
        goals=goals,
        notes=notes,
    )


if __name__ == "__main__":
    main()

"""What one step of the default kernel costs over the gradient that it needs.

``lp.split_ghmc`` with a diagonal inverse mass matrix, against dimension (4 chains) and against the
number of chains. Both sides are jitted ``lax.fori_loop`` programs: one of vmapped steps, keys
included, and one of nothing but vmapped ``value_and_grad`` of the same log density, each evaluated
where the one before it led, so that none of them can be left out. The log densities are a
standard normal, whose gradient costs next to nothing, and logistic regression with 1000 rows.
Both programs ran in turn, and ratios were taken round by round.

    python examples/benchmarks/scaling.py [--quick]
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
from common import finish, machine, parser, quartiles, spread

import langevin_ppl as lp

KERNEL = lp.split_ghmc
STEP_SIZE = 0.1
NORMAL, LOGISTIC = "standard normal", "logistic regression, 1000 rows"
DIMENSIONS = {
    NORMAL: [10, 100, 1000, 10_000, 100_000, 1_000_000],
    LOGISTIC: [10, 100, 1000, 10_000],  # the features of the next would fill 400 MB
}
CHAINS = [1, 4, 16, 64, 256, 1024]
CHAIN_DIMENSIONS = [10, 100]


def normal(data, position):
    return -0.5 * jnp.sum(position**2)


def logistic(data, position):
    features, labels = data
    logits = features @ position
    likelihood = jnp.sum(labels * logits - jax.nn.softplus(logits))
    return likelihood - 0.5 * jnp.sum(position**2)


def make_data(name, dimension):
    if name == NORMAL:
        return normal, ()
    key_features, key_labels = jax.random.split(jax.random.key(0))
    features = jax.random.normal(key_features, (1000, dimension)) / jnp.sqrt(dimension)
    return logistic, (features, jax.random.bernoulli(key_labels, 0.5, (1000,)).astype(jnp.float32))


# The number of steps is an argument, so that a longer loop compiles nothing.


@partial(jax.jit, static_argnames="logdensity")
def steps(rng_key, data, positions, scales, count, *, logdensity):
    """Last positions of ``count`` steps of every chain."""
    density = partial(logdensity, data)
    algorithm = KERNEL(density, STEP_SIZE, inverse_mass_matrix=scales, location=0.0 * scales)

    def body(i, states):
        keys = jax.random.split(jax.random.fold_in(rng_key, i), positions.shape[0])
        return jax.vmap(algorithm.step)(keys, states)[0]

    states = jax.lax.fori_loop(
        0, count, body, jax.vmap(lambda x: KERNEL.init(x, density))(positions)
    )
    return states.position


@partial(jax.jit, static_argnames="logdensity")
def gradients(rng_key, data, positions, scales, count, *, logdensity):
    """As many evaluations; each moves the position a little by the value and the gradient."""
    value_and_grad = jax.vmap(jax.value_and_grad(partial(logdensity, data)))

    def body(i, positions):
        value, gradient = value_and_grad(positions)
        return positions + 1e-6 * gradient + 1e-12 * value[:, None]

    return jax.lax.fori_loop(0, count, body, positions)


def measure(name, dimension, chains, options):
    """One row: seconds a step and seconds a gradient, in turn."""
    rounds, least = (3, 0.002) if options.quick else (11, 0.1)
    logdensity, data = make_data(name, dimension)
    positions = jax.random.normal(jax.random.key(1), (chains, dimension))
    scales = jnp.linspace(0.5, 1.5, dimension)

    def timed(program, count):
        began = time.perf_counter()
        key = jax.random.key(2)
        program(key, data, positions, scales, count, logdensity=logdensity).block_until_ready()
        return time.perf_counter() - began

    def enough(program):
        """A number of steps that takes long enough to be timed."""
        count = 1
        timed(program, count)
        while min(timed(program, count), timed(program, count)) < least:
            count *= 2
        return count

    counts = {program: enough(program) for program in (steps, gradients)}
    times = {steps: [], gradients: []}
    for number in range(rounds):
        for program in (steps, gradients) if number % 2 else (gradients, steps):
            times[program].append(1e6 * timed(program, counts[program]) / counts[program])
    ratios = [a / b for a, b in zip(times[steps], times[gradients], strict=True)]
    extra = [a - b for a, b in zip(times[steps], times[gradients], strict=True)]
    return {
        "log density": name,
        "dimension": dimension,
        "chains": chains,
        "step, µs": quartiles(times[steps])[1],
        "gradient, µs": quartiles(times[gradients])[1],
        "step over gradient": spread(ratios),
        "beyond the gradient, ns a chain and dimension": 1e3
        * quartiles(extra)[1]
        / (chains * dimension),
    }


def main():
    options = parser(__doc__).parse_args()
    host = machine()
    chains = CHAINS[::2] if options.quick else CHAINS

    def dimensions(name):
        return [d for d in DIMENSIONS[name] if d <= 10_000 or not options.quick]

    by_dimension = [measure(n, d, 4, options) for n in DIMENSIONS for d in dimensions(n)]
    by_chains = [
        measure(n, d, c, options) for n in DIMENSIONS for d in CHAIN_DIMENSIONS for c in chains
    ]
    note = (
        "Times are those of one step, or one gradient, of all chains together; ratio: median "
        f"(quartiles) over rounds. Step size {STEP_SIZE}, diagonal inverse mass matrix."
    )
    return finish(
        "scaling",
        options,
        host,
        precision="float32",
        tables={"Against dimension": by_dimension, "Against chains": by_chains},
        notes=[note],
    )


if __name__ == "__main__":
    main()

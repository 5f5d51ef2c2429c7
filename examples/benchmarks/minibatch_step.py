"""One step with a gradient from a batch, through a NumPyro model and written by hand.

``lp.sgld`` with every estimator of the library on a logistic regression of 200,000 rows and 50
features, one chain, beside the same chain written by hand in JAX: the same random numbers, the
same rows in the same order read in the same way, the same update, and `jax.value_and_grad` of a
log density of two lines. Both are one jitted `lax.scan` that keeps the last position, float32.
That they are the same chain is checked on it.

A third way has the gradient in closed form, ``x.T @ (y - p)``, and computes no log density, which
the first two do.

All ways run in turn, in rotating order, after a first call of each that compiles. Ratios are taken
round by round.

    python examples/benchmarks/minibatch_step.py [--quick]
"""

import functools
import time

import jax
import jax.numpy as jnp
import tall_data
from common import finish, goal, machine, parser, quartiles, spread

import langevin_ppl as lp
from langevin_ppl.gradients.draws import scattered

BATCHES = (32, 256, 2048)
EVERY = 100
STEP_SIZE = 1e-8
OWN, HAND, CLOSED = "lp.sgld", "by hand", "closed form"
STEPS = {32: 20_000, 256: 4_000, 2048: 600}
SVRG_STEPS = 400
GOAL = 1.05


def logdensity(x, y, scale, position):
    """Of rows that count ``scale`` times, with the prior."""
    logits = x @ position
    likelihood = jnp.sum(y * logits - jax.nn.softplus(logits))
    return scale * likelihood - 0.5 * jnp.sum(position**2)


def closed(x, y, scale, position):
    """Gradient of `logdensity`; no value."""
    return 0.0, scale * (x.T @ (y - jax.nn.sigmoid(x @ position))) - position


def autodiff(x, y, scale, position):
    return jax.value_and_grad(logdensity, argnums=3)(x, y, scale, position)


class ByHand:
    """An estimator written by hand: ``draw(key, step)`` and ``estimate(rows, position, memory)``.

    Rows of blocks are read from ``reader``, shuffled copies of the data that the library made, so
    that both chains see the same rows.
    """

    def __init__(self, kind, x, y, batch_size, value_and_grad, source, centre):
        self.size, self.number = len(x), batch_size
        self.kind, self.source, self.value_and_grad = kind, source, value_and_grad
        self.whole = (x, y)
        self.data = (x, y)
        if self.in_blocks:
            order = source.estimate.args[1]["row"].order
            self.data = (jnp.take(x, order, 0), jnp.take(y, order, 0))
        self.scale = self.size / batch_size
        self.centre = centre
        self.at_centre = self.of_all(centre)
        if kind == "control variates, order 2":
            self.hessian = jax.jit(jax.hessian(lambda p: logdensity(x, y, 1.0, p)))(centre)

    @property
    def in_blocks(self):
        return self.kind not in ("replacement", "without")

    def of_all(self, position):
        return self.value_and_grad(*self.whole, 1.0, position)

    def draw(self, rng_key, step):
        key = jax.random.fold_in(rng_key, 0)
        if self.kind == "replacement":
            return jax.random.randint(key, (self.number,), 0, self.size)
        if self.kind == "without":
            return scattered(jnp.arange(self.number), key, self.size)
        if self.kind == "epochs":
            return self.source.draw(rng_key, step)["row"]
        return jax.random.randint(key, (), 0, self.size)

    def rows(self, batch):
        x, y = self.data
        if not self.in_blocks:
            return x[batch], y[batch]
        return tuple(jax.lax.dynamic_slice_in_dim(a, batch, self.number) for a in (x, y))

    def init(self, position):
        return (position, *self.of_all(position)) if self.kind == "svrg" else ()

    def estimate(self, batch, step, position, memory):
        """Log density, gradient, and the memory of the estimator."""
        x, y = self.rows(batch)
        if self.kind == "svrg":
            memory = jax.lax.cond(
                step % EVERY == 0, lambda: (position, *self.of_all(position)), lambda: memory
            )
            centre, *at_centre = memory
        elif self.kind.startswith("control"):
            centre, at_centre = self.centre, self.at_centre
        else:
            return *self.value_and_grad(x, y, self.scale, position), memory
        here = self.value_and_grad(x, y, self.scale, position)
        there = self.value_and_grad(x, y, self.scale, centre)
        value, gradient = (
            whole + (a - b) for whole, a, b in zip(at_centre, here, there, strict=True)
        )
        if self.kind.startswith("control"):
            move = position - centre
            value += move @ (at_centre[1] - there[1])
        if self.kind == "control variates, order 2":
            spread = jax.nn.sigmoid(x @ centre)
            bent = -self.scale * (x.T @ (spread * (1.0 - spread) * (x @ move))) - move
            whole = self.hessian @ move
            gradient = gradient + (whole - bent)
            value += 0.5 * move @ (whole - bent)
        return value, gradient, memory


def by_hand(estimator, positions, num_steps):
    """The chain of `lp.sgld`, with its keys."""

    def step(state, key):
        position, _, gradient, number, memory = state
        key_noise, key_batch = jax.random.split(key)
        noise = jax.random.normal(key_noise, position.shape)
        position = position + STEP_SIZE * gradient + jnp.sqrt(2 * STEP_SIZE) * noise
        batch = estimator.draw(key_batch, number)
        value, gradient, memory = estimator.estimate(batch, number, position, memory)
        return (position, value, gradient, number + 1, memory), None

    @jax.jit
    def run(rng_key, start):
        key_start, key_steps = jax.random.split(rng_key)
        memory = estimator.init(start)
        zero = jnp.zeros((), jnp.int32)
        batch = estimator.draw(key_start, zero)
        value, gradient, memory = estimator.estimate(batch, zero, start, memory)
        state = (start, value, gradient, zero, memory)
        state, _ = jax.lax.scan(step, state, jax.random.split(key_steps, num_steps))
        return state[:2]

    return functools.partial(run, start=positions)


def by_library(source, position, num_steps):
    algorithm = lp.sgld(source, step_size=STEP_SIZE)

    @jax.jit
    def run(rng_key, start):
        key_start, key_steps = jax.random.split(rng_key)
        state = algorithm.init({"slope": start}, key_start)
        keys = jax.random.split(key_steps, num_steps)
        state, _ = jax.lax.scan(lambda s, k: (algorithm.step(k, s)[0], None), state, keys)
        return state.position["slope"], state.logdensity

    return functools.partial(run, start=position)


def estimators(batch_size, centre):
    """The library's estimators by the names of their rows in the table."""
    about = {"centre": {"slope": centre}, "pinned": 0}
    return {
        "blocks": lp.minibatch(batch_size),
        "epochs": lp.minibatch(batch_size, sampling="epochs"),
        "replacement": lp.minibatch(batch_size, sampling="replacement"),
        "without": lp.minibatch(batch_size, sampling="without"),
        "control variates, order 1": lp.control_variates(batch_size, order=1, **about),
        "control variates, order 2": lp.control_variates(batch_size, order=2, **about),
        "svrg": lp.svrg(batch_size, every=EVERY),
    }


def timed(way, number):
    began = time.perf_counter()
    jax.block_until_ready(way(jax.random.key(number)))
    return time.perf_counter() - began


def measure(kind, source, problem, batch_size, centre, rounds, num_steps):
    """Microseconds a step of each way, round by round, and how far apart the chains end."""
    _, x, y = problem
    start = jnp.zeros(x.shape[1]) + 0.01
    hand = {
        HAND: ByHand(kind, x, y, batch_size, autodiff, source, centre),
        CLOSED: ByHand(kind, x, y, batch_size, closed, source, centre),
    }

    made = {OWN: by_library(source, start, num_steps)}
    made |= {name: by_hand(each, start, num_steps) for name, each in hand.items()}
    ends = {name: way(jax.random.key(0)) for name, way in made.items()}
    moved = float(jnp.linalg.norm(ends[HAND][0] - start))
    apart = max(float(jnp.linalg.norm(end[0] - ends[HAND][0])) / moved for end in ends.values())
    values = [float(ends[name][1]) for name in (OWN, HAND)]
    apart = max(apart, abs(values[0] - values[1]) / abs(values[1]))
    times, names = {name: [] for name in made}, list(made)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(1e6 * timed(made[name], number + 1) / num_steps)
    return times, apart


def main():
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="timed runs of each way (15)")
    options = options.parse_args()
    host = machine()
    rounds = options.rounds or (2 if options.quick else 15)
    problem = tall_data.load(tall_data.LOGISTIC, quick=options.quick)
    target = tall_data.target_of(problem, tall_data.BATCH)
    # Near the mode, as a run finds it; control variates are no faster or slower elsewhere.
    centre = jnp.full(problem[1].shape[1], 0.1)
    rows, middles, apart = [], {}, 0.0
    for batch_size in BATCHES:
        for kind, estimator in estimators(batch_size, centre).items():
            source = target.gradient(estimator)
            # Whole epochs of svrg: a renewal of the anchor counts as often in every length.
            num_steps = SVRG_STEPS if kind == "svrg" else STEPS[batch_size]
            num_steps = EVERY if options.quick else num_steps
            times, differ = measure(kind, source, problem, batch_size, centre, rounds, num_steps)
            ratios = {
                name: [a / b for a, b in zip(times[OWN], times[name], strict=True)]
                for name in (HAND, CLOSED)
            }
            middles[kind, batch_size] = quartiles(ratios[HAND])[1]
            apart = max(apart, differ)
            rows.append(
                {
                    "estimator": kind,
                    "rows": batch_size,
                    "steps": num_steps,
                    "lp.sgld, µs a step": spread(times[OWN]),
                    "by hand, µs": quartiles(times[HAND])[1],
                    "over by hand": spread(ratios[HAND]),
                    "closed form, µs": quartiles(times[CLOSED])[1],
                    "over the closed form": spread(ratios[CLOSED]),
                }
            )
            print(rows[-1], f"apart by {differ:.1g}", flush=True)
    goals = [
        goal(f"{kind}, {batch_size} rows: step over by hand", ratio, GOAL)
        for (kind, batch_size), ratio in middles.items()
    ]
    goals.append(goal("distance of the ends of both chains, as a share of the way", apart, 0.01))
    note = (
        f"{rounds} rounds of each way, in turn; median (quartiles); ratios round by round. Rows of "
        "blocks and epochs are contiguous in shuffled copies of the data; those of `replacement` "
        f"and `without` are gathered. svrg looks at all the data every {EVERY} steps. Indices of "
        "`epochs` and `without` come from the same function on both sides."
    )
    return finish(
        "minibatch_step",
        options,
        host,
        precision="float32",
        tables={"A step": rows},
        goals=goals,
        notes=[note],
    )


if __name__ == "__main__":
    main()

"""One step of ``lp.sample`` against a jitted ``lax.scan`` of the same kernel, written by hand.

MALA with the identity metric on Bayesian logistic regression (breast cancer data of
scikit-learn, 569 x 30), 4 chains, float32. Every way of running gets the same log density, step
size and starting positions (tuned by one run of ``lp.sample``), and its draws end in host memory.

- Sampling stage: the attribute ``sampling_time`` of a run of N draws, over the time of the
  hand-written call. For the others, the whole call.
- Slope: ``(t(2N) - t(N)) / N`` of the whole call, free of fixed costs.

All ways run in turn, in rotating order, after a first call of each that compiles. Ratios are
taken round by round. That all ways sample the same posterior is checked on its means, whose errors
are estimated from the scatter of the rounds.

    python examples/benchmarks/step_overhead.py [--quick]
"""

import time
from functools import partial

import arviz as az
import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from common import finish, goal, machine, parser, quartiles, spread
from sklearn.datasets import load_breast_cancer

import langevin_ppl as lp

CHAINS = 4
HAND = "by hand: draws, log density, acceptance rate"
BARE = "by hand: draws alone"
PEER = "blackjax.mala in run_inference_algorithm, jitted"
DENSITY = "lp.sample, the same log density"
MODEL = "lp.sample, as a NumPyro model"
MODEL_HAND = "by hand, log density of the NumPyro model"


def data():
    cancer = load_breast_cancer()
    features = (cancer.data - cancer.data.mean(axis=0)) / cancer.data.std(axis=0)
    return jnp.asarray(features, jnp.float32), jnp.asarray(1 - cancer.target, jnp.float32)


def make_logdensity(features, malignant):
    """Intercept ~ N(0, 2.5), slopes ~ N(0, 1); the position is a vector, intercept first."""

    def logdensity(position):
        intercept, slope = position[0], position[1:]
        logits = intercept + features @ slope
        likelihood = jnp.sum(malignant * logits - jax.nn.softplus(logits))
        return likelihood - 0.5 * (intercept / 2.5) ** 2 - 0.5 * jnp.sum(slope**2)

    return logdensity


def model(features, malignant=None):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.5))
    with numpyro.plate("feature", features.shape[1]):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("patient", features.shape[0]):
        logits = intercept + features @ slope
        numpyro.sample("malignant", dist.Bernoulli(logits=logits), obs=malignant)


@partial(jax.jit, static_argnames=("logdensity_fn", "num_steps", "bare"))
def by_hand(rng_key, positions, step_size, *, logdensity_fn, num_steps, bare=False):
    value_and_grad = jax.value_and_grad(logdensity_fn)

    def step(state, keys):
        position, logdensity, gradient = state
        noise = jax.random.normal(keys[0], position.shape)
        uniform = jax.random.uniform(keys[1])
        proposal = position + step_size * gradient + jnp.sqrt(2 * step_size) * noise
        new_logdensity, new_gradient = value_and_grad(proposal)
        back = position - proposal - step_size * new_gradient
        log_ratio = new_logdensity - logdensity
        log_ratio += 0.5 * jnp.sum(noise**2) - jnp.sum(back**2) / (4 * step_size)
        log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
        accept = jnp.log(uniform) < log_ratio
        new = (proposal, new_logdensity, new_gradient)
        state = jax.tree.map(lambda new, old: jnp.where(accept, new, old), new, state)
        rate = jnp.exp(jnp.minimum(log_ratio, 0.0))
        return state, state[0] if bare else (state[0], state[1], rate)

    keys = jax.random.split(rng_key, (num_steps, CHAINS, 2))
    states = (positions, *jax.vmap(value_and_grad)(positions))
    _, outputs = jax.lax.scan(jax.vmap(step), states, keys)
    return outputs


@partial(jax.jit, static_argnames=("logdensity_fn", "num_steps"))
def by_blackjax(rng_key, positions, step_size, *, logdensity_fn, num_steps):
    def chain(key, position):
        return blackjax.util.run_inference_algorithm(
            key,
            blackjax.mala(logdensity_fn, step_size),
            num_steps,
            initial_position=position,
            transform=lambda s, info: (s.position, s.logdensity, info.acceptance_rate),
        )[1]

    return jax.vmap(chain)(jax.random.split(rng_key, CHAINS), positions)


def make_ways(seed=0):
    """Every way of running: ``way(key, num_steps) -> (seconds, stage seconds, draws)``.

    Draws are ``[chain, draw, dimension]``.
    """
    features, malignant = data()
    logdensity_fn = make_logdensity(features, malignant)
    density = lp.density(logdensity_fn, jnp.zeros(features.shape[1] + 1))
    target = lp.target(model, features, malignant=malignant)
    tuned = lp.sample(
        jax.random.key(seed),
        density,
        lp.mala,
        inverse_mass_matrix=1.0,
        num_warmup=1000,
        num_samples=100,
    )
    positions = jnp.asarray(tuned["sampler_position"]["x"].values)
    step_size = float(tuned["sampler_parameters"]["step_size"])
    by_site = {"intercept": positions[:, 0], "slope": positions[:, 1:]}

    def numpyro_logdensity(position):
        return target.logdensity_fn({"intercept": position[0], "slope": position[1:]})

    def scan(program, chain_axis, **options):
        def way(key, num_steps):
            began = time.perf_counter()
            outputs = program(key, positions, step_size, num_steps=num_steps, **options)
            draws = jax.tree.leaves(jax.device_get(outputs))[0]
            seconds = time.perf_counter() - began
            return seconds, seconds, np.moveaxis(draws, chain_axis, 0)

        return way

    def sample(target, initial):
        def way(key, num_steps):
            began = time.perf_counter()
            idata = lp.sample(
                key,
                target,
                lp.mala,
                initial=initial,
                parameters={"step_size": step_size},
                num_chains=CHAINS,
                num_samples=num_steps,
            )
            seconds = time.perf_counter() - began
            parts = [np.atleast_3d(v.values) for v in idata["posterior"].data_vars.values()]
            return seconds, idata.attrs["sampling_time"], np.concatenate(parts, axis=-1)

        return way

    return step_size, {
        HAND: scan(by_hand, 1, logdensity_fn=logdensity_fn),
        DENSITY: sample(density, positions),
        BARE: scan(by_hand, 1, logdensity_fn=logdensity_fn, bare=True),
        PEER: scan(by_blackjax, 0, logdensity_fn=logdensity_fn),
        MODEL_HAND: scan(by_hand, 1, logdensity_fn=numpyro_logdensity),
        MODEL: sample(target, by_site),
    }


def standard_errors_apart(means, others):
    """Largest difference of posterior means, in standard errors estimated from the rounds."""
    a, b = np.stack(means), np.stack(others)
    error = np.sqrt((a.var(axis=0, ddof=1) + b.var(axis=0, ddof=1)) / len(a))
    return float(np.max(np.abs(a.mean(axis=0) - b.mean(axis=0)) / error))


def main():
    options = parser(__doc__).parse_args()
    host = machine()
    rounds, num_steps = (2, 1000) if options.quick else (20, 20_000)
    step_size, ways = make_ways()
    for way in ways.values():
        for length in (num_steps, 2 * num_steps):
            way(jax.random.key(0), length)
    stage = {name: [] for name in ways}
    slope = {name: [] for name in ways}
    means, last = {name: [] for name in ways}, {}
    names = list(ways)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            key_short, key_long = jax.random.split(jax.random.key(number + 1))
            whole, sampling, _ = ways[name](key_short, num_steps)
            longer, _, last[name] = ways[name](key_long, 2 * num_steps)
            stage[name].append(1e6 * sampling / num_steps)
            slope[name].append(1e6 * (longer - whole) / num_steps)
            means[name].append(last[name].mean(axis=(0, 1), dtype=np.float64))

    rows, ratios = [], {}
    for name in names:
        baseline = MODEL_HAND if name == MODEL else HAND
        of_stage, of_slope = (
            [a / b for a, b in zip(x[name], x[baseline], strict=True)] for x in (stage, slope)
        )
        ratios[name] = quartiles(of_stage)[1], quartiles(of_slope)[1]
        ess = az.ess(az.convert_to_dataset({"x": last[name]}))["x"]
        rows.append(
            {
                "way": name,
                "stage, µs a step": quartiles(stage[name])[1],
                "ratio of stages": spread(of_stage),
                "slope, µs a step": quartiles(slope[name])[1],
                "ratio of slopes": spread(of_slope),
                "worst mean, in standard errors": standard_errors_apart(means[name], means[HAND]),
                "min bulk ESS": round(float(ess.min())),
            }
        )
    worst = max(row["worst mean, in standard errors"] for row in rows)
    goals = [
        goal("sampling stage over by hand, same log density", ratios[DENSITY][0], 1.05),
        goal("slope over by hand, same log density", ratios[DENSITY][1], 1.05),
        goal("sampling stage over by hand, NumPyro model", ratios[MODEL][0], 1.05),
        goal("slope over by hand, NumPyro model", ratios[MODEL][1], 1.05),
        # Largest of 5 x 31 differences: below 4.5 in 99 % of cases if all ways are right.
        goal("worst difference of posterior means, in standard errors", worst, 4.5),
    ]
    note = (
        f"{rounds} rounds of N = {num_steps:,} and 2N = {2 * num_steps:,} steps of {CHAINS} chains "
        f"at step size {step_size:.4f}. Ratios: median (quartiles) over rounds, against the first "
        f"row; the last row against the one above it. ESS: of the last 2N draws."
    )
    return finish(
        "step_overhead",
        options,
        host,
        precision="float32",
        tables={"A step": rows},
        goals=goals,
        notes=[note],
    )


if __name__ == "__main__":
    main()

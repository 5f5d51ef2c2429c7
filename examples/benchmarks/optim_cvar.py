"""Value at risk and CVaR by stochastic gradients that jump, against closed forms.

The function ``u(t) = t + E[(X - t)+] / (1 - q)`` of a loss ``X`` is least at its quantile, the
value at risk, and is the CVaR there (Rockafellar, Uryasev 2000). Its stochastic gradient
``1 - 1{x > t} / (1 - q)`` is -19 for one draw in twenty at q = 0.95 and 1 for the others. Losses
are standard normal, Student's t with 3 degrees of freedom, and Pareto with index 2.5: generated
heavy tails stand in for the fire insurance claims of the original experiment (Lim, Neufeld,
Sabanis, Zhang 2024, arXiv:2210.13193), which are not bundled.

All optimisers make the same number of steps from 0, on the same draws. Those with a penalty of
their own have ``eta / 2 t^2`` in it, `sgld` and those of Optax have its gradient added, so that all
look for the same minimum. Errors are against the value at risk without the penalty; how far that
moves the minimum stands beside the closed forms.

    python examples/benchmarks/optim_cvar.py [--quick]
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.integrate
import scipy.optimize
import scipy.stats
from common import finish, goal, machine, parser

import langevin_ppl as lp

LEVEL, PENALTY = 0.95, 1e-4
NUM_STEPS, SEEDS = 20_000, 10
RATES = (1e-1, 1e-2, 1e-3)
BATCHES = (1, 128)
PARETO = 2.5


def normal(key, shape):
    return jax.random.normal(key, shape)


def student(key, shape):
    # By its definition: jax.random.t rejects, which is slower.
    first, *others = jax.random.normal(key, (4, *shape))
    return first / jnp.sqrt(sum(each**2 for each in others) / 3.0)


def pareto(key, shape):
    return jax.random.pareto(key, PARETO, shape)


LOSSES = {
    "normal": (normal, scipy.stats.norm()),
    "Student t(3)": (student, scipy.stats.t(3)),
    "Pareto(2.5)": (pareto, scipy.stats.pareto(PARETO)),
}


def excess(name, t):
    """``E[(X - t)+]`` in closed form."""
    law = LOSSES[name][1]
    if name == "normal":
        return law.pdf(t) - t * law.sf(t)
    if name == "Student t(3)":
        return law.pdf(t) * (3.0 + t**2) / 2.0 - t * law.sf(t)
    below = np.maximum(1.0 - t, 0.0)
    return below + np.maximum(t, 1.0) ** (1.0 - PARETO) / (PARETO - 1.0)


def objective(name, t):
    return t + excess(name, t) / (1.0 - LEVEL)


def truth(name):
    """Value at risk, CVaR, the latter by quadrature, and the minimum with the penalty."""
    law = LOSSES[name][1]
    value_at_risk = float(law.ppf(LEVEL))
    by_quadrature, _ = scipy.integrate.quad(law.ppf, LEVEL, 1.0)

    def slope(t):
        return 1.0 - law.sf(t) / (1.0 - LEVEL) + PENALTY * t

    shifted = scipy.optimize.brentq(slope, 0.5 * value_at_risk, value_at_risk)
    cvar = float(objective(name, value_at_risk))
    return {
        "loss": name,
        "value at risk": value_at_risk,
        "CVaR": cvar,
        "CVaR by quadrature": by_quadrature / (1.0 - LEVEL),
        "shift of the minimum by the penalty": value_at_risk - shifted,
    }


def penalty(t):
    return 0.5 * PENALTY * jnp.sum(t**2)


MAKERS = {
    "sgld": lambda rate: lp.optim.sgld(rate, 0),
    "tusla": lambda rate: lp.optim.tusla(rate, 0, power=0.0, strength=PENALTY),
    "theopoula": lambda rate: lp.optim.theopoula(rate, 0, strength=PENALTY),
    "etheopoula": lambda rate: lp.optim.etheopoula(rate, 0, penalty=penalty),
    "optax.adam": optax.adam,
    "optax.rmsprop": optax.rmsprop,
}
PENALISED = ("tusla", "theopoula", "etheopoula")


def with_key(state, key):
    """State of an optimiser with another key, for every seed has noise of its own."""
    return jax.tree.map(
        lambda leaf: key if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf, state
    )


@partial(jax.jit, static_argnames=("loss", "title", "batch", "num_steps"))
def run(keys, rates, *, loss, title, batch, num_steps):
    """Last iterate, and average of the last half, ``[seed, rate]``."""
    draw = LOSSES[loss][0]

    def one(key, rate):
        optimizer = MAKERS[title](rate)
        key_noise, key_data = jax.random.split(key)

        def step(carry, index):
            t, state, total = carry
            draws = draw(jax.random.fold_in(key_data, index), (batch,))
            gradient = 1.0 - jnp.mean(draws > t) / (1.0 - LEVEL)
            if title not in PENALISED:
                gradient = gradient + PENALTY * t
            updates, state = optimizer.update(gradient, state, t)
            t = optax.apply_updates(t, updates)
            return (t, state, total + jnp.where(2 * index >= num_steps, t, 0.0)), None

        start = jnp.zeros(())
        first = start, with_key(optimizer.init(start), key_noise), jnp.zeros(())
        (t, _, total), _ = jax.lax.scan(step, first, jnp.arange(num_steps))
        return t, total / (num_steps // 2)

    return jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None))(keys, rates)


def root_mean_square(values):
    return float(np.sqrt(np.mean(np.square(values))))


def measure(loss, batch, num_steps, seeds, exact):
    """Errors of every optimiser at every rate."""
    best, least = exact["value at risk"], exact["CVaR"]
    keys, rows = jax.random.split(jax.random.key(1), seeds), []
    for title in MAKERS:
        found = run(
            keys, jnp.array(RATES), loss=loss, title=title, batch=batch, num_steps=num_steps
        )
        last, averaged = (np.asarray(each, float) for each in found)
        for place, rate in enumerate(RATES):
            ends, means = last[:, place], averaged[:, place]
            row = {
                "loss": loss,
                "batch": batch,
                "optimiser": title,
                "rate": rate,
                "last": root_mean_square(ends - best),
                "averaged": root_mean_square(means - best),
                "bias": float(np.mean(means) - best),
                "excess, last": float(np.mean(objective(loss, ends) / least - 1.0)),
                "excess, averaged": float(np.mean(objective(loss, means) / least - 1.0)),
            }
            print({k: f"{v:.3g}" if isinstance(v, float) else v for k, v in row.items()})
            rows.append(row)
    return rows


def table_of(rows, batch, what):
    """A line for every optimiser and rate, a column for every loss."""
    lines = {}
    for row in rows:
        if row["batch"] == batch:
            key = row["optimiser"], row["rate"]
            line = lines.setdefault(key, {"optimiser": key[0], "step size": key[1]})
            line[row["loss"]] = " / ".join(f"{row[name]:.2g}" for name in what)
    return list(lines.values())


def main():
    options = parser(__doc__).parse_args()
    host = machine()
    num_steps, seeds = (500, 4) if options.quick else (NUM_STEPS, SEEDS)
    batches = BATCHES[:1] if options.quick else BATCHES
    losses = list(LOSSES)[:1] if options.quick else list(LOSSES)
    exact = {loss: truth(loss) for loss in losses}
    rows = []
    for loss in losses:
        for batch in batches:
            rows += measure(loss, batch, num_steps, seeds, exact[loss])
    apart = max(abs(each["CVaR"] / each["CVaR by quadrature"] - 1.0) for each in exact.values())
    tables = {"Closed forms": list(exact.values())}
    goals = [goal("closed forms of CVaR against quadrature, relative", apart, 1e-6)]
    for batch in batches:
        tables[f"Error of the value at risk, batches of {batch}: last / averaged"] = table_of(
            rows, batch, ("last", "averaged")
        )
    for batch in batches:
        tables[f"u over CVaR, less 1, batches of {batch}: last / averaged"] = table_of(
            rows, batch, ("excess, last", "excess, averaged")
        )
    note = (
        f"{seeds} seeds of {num_steps:,} steps; q = {LEVEL}, penalty eta = {PENALTY:g}. Errors are "
        "root mean squares over seeds, of the last iterate and of the average of the last half; u "
        "is averaged over seeds."
    )
    return finish(
        "optim_cvar",
        options,
        host,
        precision="float32",
        tables=tables,
        goals=goals,
        notes=[note],
        data=rows,
    )


if __name__ == "__main__":
    main()

"""10,006 parameters: hierarchical logistic regression on sparse categories, by minibatches.

100,000 rows, each with one of 2,000 levels of each of 5 categorical features, whose frequencies
fall like one over the rank: a tenth of the levels has most rows, and many have a handful. Every
level has a weight, and every feature a scale of its weights, latent, generated as 1, 0.6, 0.3,
0.15, 0.05. The weights of the small scales are the neck of a funnel, and the joint mode is no
place to be: at scale zero in the centred form, at scales that are far too large in the other.

All ways begin at the same place (scales 0.5, weights near 0) and share a diagonal metric that is
written down from the counts of the levels, except where it says otherwise. Rows are read by
``numpyro.subsample`` and weights are looked up by index. Measured on 20,000 other rows:

- *test log likelihood* of the mean predicted probability, with the draws of the second half of what
  had been done after a quarter, a half and all of the steps (or of the time, for NUTS);
- *RMSE* of the posterior means of the 10,000 weights about those that generated the rows, and
  *coverage* of their 90 % intervals;
- *scales*: posterior means. Above the true ones where the chains are too hot, or still on the way.

Seconds are those of the call, compilation included, and of sampling alone.

    python examples/benchmarks/hierarchical.py [--quick]
"""

import time
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from common import finish, goal, machine, parser
from numpyro.infer import NUTS

import langevin_ppl as lp

FEATURES, LEVELS, ROWS, TEST_ROWS = 5, 2000, 100_000, 20_000
SCALES = np.array([1.0, 0.6, 0.3, 0.15, 0.05])
START = 0.5  # scale at the start, and that of the metric
BATCH = 1000
NUTS_SECONDS = 60.0
NUTS_WARMUP = 200
SHOWN = 100  # draws that predictions average over


def generate(levels, rows):
    """Rows with known weights."""
    random = np.random.default_rng(0)
    weights = random.normal(size=(FEATURES, levels)) * SCALES[:, None]
    frequency = 1.0 / (10.0 + np.arange(levels))
    frequency /= frequency.sum()
    columns = [random.choice(levels, size=rows, p=frequency) for _ in range(FEATURES)]
    index = np.stack(columns, axis=1).astype(np.int32)
    logits = -0.5 + weights[np.arange(FEATURES), index].sum(axis=1)
    y = (random.random(rows) < 1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
    return index, y, weights, logits


def model(index, y, levels, batch_size, centred):
    shape = (FEATURES, levels)
    scale = numpyro.sample("scale", dist.HalfNormal(1.0).expand([FEATURES]).to_event(1))
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.0))
    if centred:
        weight = numpyro.sample("weight", dist.Normal(0.0, scale[:, None]).expand(shape).to_event())
    else:
        unit = numpyro.sample("unit", dist.Normal(0.0, 1.0).expand(shape).to_event())
        weight = numpyro.deterministic("weight", scale[:, None] * unit)
    with numpyro.plate("row", len(y), subsample_size=batch_size):
        level = numpyro.subsample(index, event_dim=1)
        logits = intercept + weight[jnp.arange(FEATURES), level].sum(axis=-1)
        numpyro.sample("y", dist.Bernoulli(logits=logits), obs=numpyro.subsample(y, event_dim=0))


class Data(NamedTuple):
    """Rows to learn from and to test on, and what generated them."""

    index: np.ndarray
    y: np.ndarray
    test_index: np.ndarray
    test_y: np.ndarray
    weights: np.ndarray
    test_logits: np.ndarray

    @property
    def levels(self):
        return self.weights.shape[1]

    def target(self, centred):
        index, y = jnp.asarray(self.index), jnp.asarray(self.y)
        return lp.target(model, index, y, self.levels, min(BATCH, len(y) // 10), centred=centred)

    def start(self, target, num_chains):
        """Scales of 0.5 and weights near zero, on unconstrained space."""
        noise = 0.1 * jax.random.normal(jax.random.key(1), (num_chains, FEATURES, self.levels))
        values = {
            "scale": jnp.full((num_chains, FEATURES), np.log(START)),
            "intercept": jnp.zeros(num_chains),
            "weight": noise * START,
            "unit": noise,
        }
        return {name: values[name] for name in target.prototype}

    def metric(self, centred):
        """Inverse of a rough diagonal of the curvature, in the order intercept, scale, weights."""
        counts = [np.bincount(column, minlength=self.levels) for column in self.index.T]
        information = 0.2 * np.concatenate(counts)
        intercept, size = 0.2 * len(self.y), START**2
        if centred:
            scale, weights = 2.0 * self.levels, information + 1.0 / size
        else:
            scale, weights = intercept * size + 2.0, information * size + 1.0
        curvature = np.concatenate([[intercept], np.full(FEATURES, scale), weights])
        return jnp.asarray(1.0 / curvature, jnp.float32)


def log_likelihood(probability, y):
    return float(np.mean(np.where(y > 0, np.log(probability), np.log1p(-probability))))


def judged(data, intercept, weights):
    """Test log likelihood, RMSE and coverage, from draws of all chains."""
    few = slice(None, None, max(1, len(weights) // SHOWN))
    rows = np.arange(FEATURES), data.test_index
    logits = intercept[few, None] + np.stack([w[rows].sum(axis=1) for w in weights[few]])
    probability = (1.0 / (1.0 + np.exp(-logits.astype(np.float64)))).mean(axis=0)
    mean, sd = weights.mean(axis=0), weights.std(axis=0)
    inside = np.abs(data.weights - mean) < 1.645 * sd
    error = np.sqrt(np.mean((mean - data.weights) ** 2))
    return log_likelihood(probability, data.test_y), float(error), float(inside.mean())


def described(data, name, draws, seconds, sampling, steps, extra):
    """One row of the table, from draws ``[chain, draw, ...]``."""
    number = draws["weight"].shape[1]
    seen = []
    for share in (0.25, 0.5, 1.0):
        half = slice(int(number * share / 2), max(int(number * share), 1))
        parts = {k: v[:, half].reshape(-1, *v.shape[2:]) for k, v in draws.items()}
        seen.append(judged(data, parts["intercept"], parts["weight"]))
    scales = draws["scale"][:, number // 2 :].mean(axis=(0, 1))
    return {
        "way": name,
        "chains x steps": f"{draws['weight'].shape[0]} x {steps:,}",
        "seconds": float(seconds),
        "of sampling": float(sampling),
        "test log likelihood after 1/4, 1/2, all": ", ".join(f"{s[0]:.4f}" for s in seen),
        "RMSE": f"{seen[-1][1]:.3f}",
        "coverage": f"{100 * seen[-1][2]:.1f} %",
        "scales": ", ".join(f"{s:.2f}" for s in scales),
        "hottest": extra[0],
        "flagged": extra[1],
    }


class Way(NamedTuple):
    """One call of ``lp.sample``, started and scaled by hand."""

    name: str
    kernel: Any
    gradient: Any
    parameters: dict[str, Any]
    centred: bool = True
    metric: bool = True
    share: float = 1.0  # of the steps


def ways(centre):
    """What is tried. ``centre`` is the mean of a first run."""
    plain, svrg = lp.minibatch(), lp.svrg(every=100)
    about = lp.control_variates(centre=centre)
    slow, fast = {"step_size": 0.02, "friction": 10.0}, {"step_size": 0.05, "friction": 2.0}
    return [
        Way("sgld", lp.sgld, plain, {"step_size": 1e-3}),
        Way("psgld, no metric", lp.psgld, plain, {"step_size": 0.03}, metric=False),
        Way("sghmc", lp.sghmc, plain, slow),
        Way("sgnht", lp.sgnht, plain, slow),
        Way("badodab", lp.badodab, plain, slow),
        Way("sghmc, not centred", lp.sghmc, plain, slow, centred=False),
        Way("sghmc, svrg", lp.sghmc, svrg, fast, share=0.5),
        Way("ubu, svrg", lp.ubu, svrg, fast, share=0.5),
        Way("ubu, svrg, not centred", lp.ubu, svrg, fast, centred=False, share=0.5),
        Way("ubu, control variates about a first mean", lp.ubu, about, fast),
    ]


def sampled(data, way, steps, num_chains=4, thinning=20):
    """Run a way: its draws and its row."""
    target = data.target(way.centred)
    parameters = dict(way.parameters)
    if way.metric:
        parameters["inverse_mass_matrix"] = data.metric(way.centred)
    steps = int(steps * way.share)
    began = time.perf_counter()
    idata = lp.sample(
        jax.random.key(0),
        target,
        way.kernel,
        gradient=way.gradient,
        num_chains=num_chains,
        num_warmup=0,
        num_samples=steps // thinning,
        thinning=thinning,
        initial=data.start(target, num_chains),
        **parameters,
    )
    return _row(data, way.name, idata, time.perf_counter() - began, steps)


def _row(data, name, idata, seconds, steps):
    draws = {key: idata["posterior"][key].values for key in ("weight", "intercept", "scale")}
    seen = idata.attrs
    hottest = f"{seen['temperature_noisiest']:.2f}" if "temperature_noisiest" in seen else ""
    extra = hottest, not seen["converged"]
    return draws, described(data, name, draws, seconds, seen["sampling_time"], steps, extra)


def by_default(data, centred, num_samples):
    """What nothing but ``lp.sample(key, target)`` does."""
    began = time.perf_counter()
    idata = lp.sample(jax.random.key(0), data.target(centred), num_samples=num_samples)
    steps = idata.attrs["num_warmup"] + num_samples * idata.attrs["thinning"]
    name = "lp.sample(key, target)" + ("" if centred else ", not centred")
    _, row = _row(data, name, idata, time.perf_counter() - began, steps)
    return row, f"{name}: {idata.attrs.get('mode_search', '')}"


def by_nuts(data, centred, budget):
    """NumPyro's NUTS for a time, compilation apart, from the same place."""
    target = data.target(centred)
    start = {name: x[0] for name, x in data.start(target, 1).items()}
    kernel = NUTS(model, init_strategy=numpyro.infer.init_to_value(values=_values(start)))
    arguments = (data.index, data.y, data.levels, None, centred)
    began = time.perf_counter()
    state = kernel.init(jax.random.key(0), NUTS_WARMUP, None, arguments, {})
    step = jax.jit(lambda state: kernel.sample(state, arguments, {}))
    step.lower(state).compile()
    compiled = time.perf_counter()
    draws, leapfrogs = [], 0
    while time.perf_counter() - compiled < budget:
        state = step(state)
        leapfrogs += int(state.num_steps)
        values = jax.device_get(state.z)
        values["scale"] = np.exp(values["scale"])
        if not centred:
            values["weight"] = values["scale"][:, None] * values.pop("unit")
        draws.append(values)
    spent = time.perf_counter()
    stacked = {name: np.stack([d[name] for d in draws])[None] for name in draws[0]}
    name = "NumPyro NUTS" + ("" if centred else ", not centred")
    row = described(data, name, stacked, spent - began, spent - compiled, len(draws), ("", ""))
    note = (
        f"{name}: {len(draws)} iterations (of the {NUTS_WARMUP} of its warm-up) with "
        f"{leapfrogs:,} gradients of all rows."
    )
    return row, note


def _values(start):
    return {name: jnp.exp(x) if name == "scale" else x for name, x in start.items()}


def by_map(data, centred, steps):
    """Maximum of the joint density, by Adam on the same minibatches."""
    target = data.target(centred)
    source = target.gradient(lp.minibatch())
    start = jax.tree.map(lambda x: x[0], data.start(target, 1))
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, steps))

    def move(carry, number):
        position, state = carry
        batch = source.draw(jax.random.fold_in(jax.random.key(0), number), number)
        found, _ = source.estimate(batch, position, ())
        loss = jax.tree.map(jnp.negative, found.gradient)
        updates, state = optimizer.update(loss, state)
        return (optax.apply_updates(position, updates), state), None

    @jax.jit
    def run(position):
        (position, _), _ = jax.lax.scan(move, (position, optimizer.init(start)), jnp.arange(steps))
        return position

    began = time.perf_counter()
    run = run.lower(start).compile()
    compiled = time.perf_counter()
    found = jax.device_get(run(start))
    spent = time.perf_counter()
    values = {"intercept": found["intercept"], "scale": np.exp(found["scale"])}
    values["weight"] = found["weight"] if centred else values["scale"][:, None] * found["unit"]
    draws = {name: np.asarray(value)[None, None] for name, value in values.items()}
    name = "joint mode (Adam)" + ("" if centred else ", not centred")
    row = described(data, name, draws, spent - began, spent - compiled, steps, ("", ""))
    last = row["test log likelihood after 1/4, 1/2, all"].split(", ")[-1]
    return row | {"test log likelihood after 1/4, 1/2, all": last, "coverage": ""}


def known(data):
    """Rows of the table that nobody has to sample."""
    share = np.full(len(data.test_y), data.y.mean())
    truth = 1.0 / (1.0 + np.exp(-data.test_logits))
    blank = dict.fromkeys(
        ("chains x steps", "seconds", "of sampling", "RMSE", "coverage", "scales", "hottest"), ""
    )
    column = "test log likelihood after 1/4, 1/2, all"
    return [
        {"way": "generating weights", column: f"{log_likelihood(truth, data.test_y):.4f}"}
        | blank
        | {"scales": ", ".join(f"{s:.2f}" for s in SCALES), "flagged": ""},
        {"way": "share of ones", column: f"{log_likelihood(share, data.test_y):.4f}"}
        | blank
        | {"flagged": ""},
    ]


def main():
    options = parser(__doc__).parse_args()
    host = machine()
    quick = options.quick
    levels, rows, test_rows = (100, 2000, 500) if quick else (LEVELS, ROWS, TEST_ROWS)
    steps = 200 if quick else 4000
    index, y, weights, logits = generate(levels, rows + test_rows)
    data = Data(index[:rows], y[:rows], index[rows:], y[rows:], weights, logits[rows:])
    warnings.simplefilter("ignore")  # what they say stands in the column `flagged`
    table, notes = [], []

    def add(row):
        table.append(row)
        print(row, flush=True)

    for centred in (True, False):
        add(by_map(data, centred, steps))
    first = Way("", lp.sghmc, lp.svrg(every=100), {"step_size": 0.05, "friction": 2.0}, share=0.25)
    draws, row = sampled(data, first, steps, num_chains=2)
    late = {name: x[:, x.shape[1] // 2 :] for name, x in draws.items()}
    late["scale"] = np.log(late["scale"])
    centre = {n: jnp.asarray(x.mean(axis=(0, 1)), jnp.float32) for n, x in late.items()}
    notes.append(
        "Control variates are centred at the mean of the second half of a run of sghmc with svrg, "
        f"2 chains of {int(steps * first.share):,} steps, which took {row['seconds']:.3g} seconds "
        f"(of sampling: {row['of sampling']:.3g}) and is not counted; it reached a test log "
        f"likelihood of {row['test log likelihood after 1/4, 1/2, all'].split(', ')[-1]}."
    )
    found = {}
    for way in ways(centre):
        _, found[way.name] = sampled(data, way, steps)
        add(found[way.name])
    for centred in (True, False):
        row, note = by_nuts(data, centred, 2.0 if quick else NUTS_SECONDS)
        add(row)
        notes.append(note)
    for centred in (True, False):
        row, note = by_default(data, centred, 20 if quick else 100)
        add(row)
        notes.append(note)
    table = [
        dict(sorted(row.items(), key=lambda item: list(table[0]).index(item[0])))
        for row in known(data) + table
    ]
    best = found["ubu, control variates about a first mean"]
    nuts = [row for row in table if row["way"].startswith("NumPyro NUTS")]

    def reached(row):
        return float(row["test log likelihood after 1/4, 1/2, all"].split(", ")[-1])

    goals = [
        goal(
            "coverage of 90 % intervals, ubu with control variates: distance from 90, in points",
            abs(float(best["coverage"].rstrip(" %")) - 90.0),
            5.0,
        ),
        goal(
            "test log likelihood: the better NUTS minus ubu with control variates",
            max(map(reached, nuts)) - reached(best),
            0.0,
        ),
        goal(
            "test log likelihood that lp.sample(key, target) loses to ubu with control variates",
            reached(best) - max(reached(r) for r in table if r["way"].startswith("lp.sample")),
            0.01,
        ),
    ]
    return finish(
        "hierarchical",
        options,
        host,
        precision="float32",
        tables={f"{5 * levels:,} weights, {rows:,} rows, batches of {BATCH}": table},
        goals=goals,
        notes=[
            "Step sizes were tried by hand, two or three for each kernel, on the same data: 0.02 "
            "with friction 10 for plain batches, 0.05 with friction 2 for corrected ones. svrg "
            "looks at all rows of every chain each 100 steps, so that it is given half the steps. "
            "*Hottest* is the temperature along the direction of the largest gradient noise. "
            "RMSE, coverage and scales are those of the end. A joint mode has no intervals, and "
            "log likelihoods of NUTS are after a quarter, a half and all of its time.",
            *notes,
        ],
    )


if __name__ == "__main__":
    main()

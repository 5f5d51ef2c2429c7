"""One step of ``langevin_ppl.infer.MALA`` in ``numpyro.infer.MCMC``.

Beside the step of ``lp.sample`` with ``lp.mala``, and that of NumPyro's own ``BarkerMH``, which
takes one gradient a step as well. All of them run on the same NumPyro model (logistic regression
on the breast cancer data of scikit-learn, 569 x 30), with diagonal metrics tuned in their own
warm-ups, in float32 and with ``progress_bar=False``.

A step is what one more draw adds to a call: ``(t(2N) - t(N)) / N``, free of compilation and of
fixed costs, after a first call of each length that compiles. Ways are compared within two groups:
4 chains at once, and 4 chains one after the other, where times are those of one chain. BarkerMH
refuses ``chain_method="vectorized"`` and is vectorised by ``jax.vmap``. Ways run in turn, in
rotating order, and ratios are taken round by round.

A second table says whether the posterior means agree, over the four chain methods of NumPyro. It
is made by another process with one device for each chain, as ``"parallel"`` needs.

    python examples/benchmarks/numpyro_kernels.py [--quick]
"""

import json
import os
import subprocess
import sys
import time

import arviz as az
import jax
import numpy as np
from common import finish, goal, machine, parser, quartiles, spread
from numpyro.infer import MCMC, BarkerMH
from step_overhead import data, model

import langevin_ppl as lp
from langevin_ppl.infer import MALA

CHAINS, WARMUP = 4, 1000
METHODS = {
    "sequential": "sequential",
    "vectorized": "vectorized",
    "parallel": "parallel",
    "jax.vmap": jax.vmap,
}
TOGETHER, APART = "4 chains at once", "one after the other, per chain"
OWN, BARKER = "lp.sample", "BarkerMH in MCMC"
# Group, way, what is run, chain method, number of chains by which a time is divided.
WAYS = (
    (TOGETHER, OWN, None, CHAINS, 1),
    (TOGETHER, "MALA in MCMC, vectorized", MALA, "vectorized", 1),
    (TOGETHER, "MALA in MCMC, jax.vmap", MALA, jax.vmap, 1),
    (TOGETHER, f"{BARKER}, jax.vmap", BarkerMH, jax.vmap, 1),
    (APART, OWN, None, 1, 1),
    (APART, "MALA in MCMC, sequential", MALA, "sequential", CHAINS),
    (APART, f"{BARKER}, sequential", BarkerMH, "sequential", CHAINS),
)
BASELINES = {group: (group, way) for group, way, *_ in WAYS if way == OWN}
PEERS = {group: (group, way) for group, way, *_ in WAYS if way.startswith(BARKER)}


def make_mcmc(kernel, num_samples, chain_method, num_warmup=WARMUP):
    return MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=CHAINS,
        chain_method=chain_method,
        progress_bar=False,
    )


def by_sample(num_chains, lengths, arguments):
    """``way(key, num_steps) -> seconds`` of ``lp.sample``, tuned once."""
    features, malignant = arguments
    target = lp.target(model, features, malignant=malignant)
    tuned = lp.sample(
        jax.random.key(0),
        target,
        lp.mala,
        num_chains=num_chains,
        num_warmup=WARMUP,
        num_samples=1000,
        metric="diagonal",
    )

    def way(key, num_steps):
        began = time.perf_counter()
        lp.sample(
            key,
            target,
            lp.mala,
            num_chains=num_chains,
            num_samples=num_steps,
            initial=tuned,
            parameters=tuned,
        )
        return time.perf_counter() - began

    return way


def by_mcmc(kernel, chain_method, lengths, arguments):
    """The same of ``MCMC``, from the end of one warm-up."""
    features, malignant = arguments
    runs = {
        length: make_mcmc(kernel(model, dense_mass=False), length, chain_method)
        for length in lengths
    }
    for mcmc in runs.values():
        mcmc.warmup(jax.random.key(0), features, malignant=malignant)

    def way(key, num_steps):
        began = time.perf_counter()
        runs[num_steps].run(key, features, malignant=malignant)
        jax.device_get(runs[num_steps].get_samples())
        return time.perf_counter() - began

    return way


def make_ways(lengths):
    arguments = data()
    return {
        (group, name): by_sample(method, lengths, arguments)
        if kernel is None
        else by_mcmc(kernel, method, lengths, arguments)
        for group, name, kernel, method, _ in WAYS
    }


def agreement(num_samples):
    """Rows of the second table, with the draws of the default of ``lp.sample`` as reference."""
    features, malignant = data()
    target = lp.target(model, features, malignant=malignant)
    exact = lp.sample(jax.random.key(0), target, num_samples=num_samples)
    centre, error = summary({k: v.values for k, v in exact["posterior"].data_vars.items()})
    rows = []
    for seed, (name, chain_method) in enumerate(METHODS.items(), start=1):
        mcmc = make_mcmc(MALA(model), num_samples, chain_method)
        mcmc.run(jax.random.key(seed), features, malignant=malignant)
        mean, own = summary(mcmc.get_samples(group_by_chain=True))
        rows.append(
            {
                "chain method": name,
                "devices": jax.local_device_count(),
                "draws": f"{CHAINS} x {num_samples:,}",
                "worst mean, in standard errors": float(
                    np.max(np.abs(mean - centre) / np.hypot(own, error))
                ),
            }
        )
    return rows


def summary(variables):
    """Means of all coordinates, and their Monte Carlo standard errors."""
    parts = [np.asarray(variables[name], np.float64) for name in ("intercept", "slope")]
    draws = np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=-1)
    error = az.mcse(az.convert_to_dataset({"x": draws}), method="mean")["x"].values
    return draws.mean(axis=(0, 1)), error


def agreement_elsewhere(num_samples):
    """The same, in a process that has one device for each chain."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={CHAINS}"
    done = subprocess.run(
        [sys.executable, __file__, "--worker", str(num_samples)],
        env={**os.environ, "XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    if "--worker" in sys.argv:
        print(json.dumps(agreement(int(sys.argv[-1]))))
        return None
    options = parser(__doc__).parse_args()
    host = machine()
    rounds, num_steps = (2, 500) if options.quick else (6, 3_000)
    ways = make_ways((num_steps, 2 * num_steps))
    names = list(ways)
    for way in ways.values():
        for length in (num_steps, 2 * num_steps):
            way(jax.random.key(0), length)
    slopes = {name: [] for name in names}
    divisors = {(group, name): divisor for group, name, *_, divisor in WAYS}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            key_short, key_long = jax.random.split(jax.random.key(number + 1))
            seconds = ways[name](key_long, 2 * num_steps) - ways[name](key_short, num_steps)
            slopes[name].append(1e6 * seconds / num_steps / divisors[name])

    def ratios(name, other):
        return [a / b for a, b in zip(slopes[name], slopes[other], strict=True)]

    rows = [
        {
            "chains": name[0],
            "way": name[1],
            "a step, µs": spread(slopes[name]),
            "over lp.sample": spread(ratios(name, BASELINES[name[0]])),
            "over BarkerMH": spread(ratios(name, PEERS[name[0]])),
        }
        for name in names
    ]
    agreeing = agreement_elsewhere(500 if options.quick else 3_000)
    own = [name for name in names if name[1].startswith("MALA")]
    goals = [
        *(
            goal(
                f"{group}: {way}, over {what}",
                quartiles(ratios((group, way), others[group]))[1],
                1.1,
            )
            for group, way in own
            for what, others in (("lp.sample", BASELINES), ("BarkerMH", PEERS))
        ),
        # Largest of 4 x 31 differences: below 4.5 in 99.9 % of cases if all are right.
        goal(
            "worst difference of posterior means, in standard errors",
            max(row["worst mean, in standard errors"] for row in agreeing),
            4.5,
        ),
    ]
    note = (
        f"{rounds} rounds of N = {num_steps:,} and 2N steps of {CHAINS} chains; median (quartiles) "
        "over rounds. Means: against those of the default of `lp.sample`."
    )
    return finish(
        "numpyro_kernels",
        options,
        host,
        precision="float32",
        tables={"A step": rows, "Agreement of the chain methods": agreeing},
        goals=goals,
        notes=[note],
    )


if __name__ == "__main__":
    main()

"""Peak memory of a run whose result is large: a deterministic of 50,000 rows.

A regression with two parameters, 4 chains, 300 warm-up steps, float32. Every run is a process of
its own. It first makes a small run, which imports and compiles everything; the memory of the run is
what the peak resident size rises above that of the small run. NUTS of NumPyro runs beside it, its
draws turned into a DataTree by ``arviz_base.from_numpyro``.

    python examples/benchmarks/memory.py [--quick]
"""

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

CHAINS, WARMUP, SMALL = 4, 300, 16
OWN, STORED, OTHER = "lp.sample", "lp.sample, store=", "NumPyro NUTS"


def peak():
    """Largest resident size of this process so far, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def make_data(rows):
    import jax

    x = jax.random.normal(jax.random.key(0), (rows,))
    return x, 1.5 * x + jax.random.normal(jax.random.key(1), (rows,))


def model(x, y):
    import numpyro
    import numpyro.distributions as dist

    slope = numpyro.sample("slope", dist.Normal(0.0, 10.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    mean = numpyro.deterministic("mu", x * slope)
    numpyro.sample("y", dist.Normal(mean, sigma), obs=y)


def run_own(samples, rows, folder):
    """Run; with a folder the draws go to a store in it."""
    import jax

    import langevin_ppl as lp

    target = lp.target(model, *make_data(rows))
    kept = {} if folder is None else {"checkpoint": folder / "run", "store": folder / "draws.zarr"}
    return lp.sample(jax.random.key(2), target, num_samples=samples, num_warmup=WARMUP, **kept)


def run_nuts(samples, rows):
    import jax
    from numpyro.infer import MCMC, NUTS

    mcmc = MCMC(
        NUTS(model),
        num_warmup=WARMUP,
        num_samples=samples,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(2), *make_data(rows))
    import arviz_base  # after numpyro.infer, which it would set up lazily

    return arviz_base.from_numpyro(mcmc, log_likelihood=False)


def worker(kind, samples, rows):
    """Run in the fresh process: print one line of JSON."""
    import warnings

    warnings.simplefilter("ignore")  # the small run is too short to converge

    def once(number):
        if kind == OTHER:
            return run_nuts(number, rows)
        with tempfile.TemporaryDirectory() as folder:
            idata = run_own(number, rows, Path(folder) if kind == STORED else None)
            assert idata["posterior"]["mu"].sizes["draw"] == number
            return idata

    once(SMALL)
    small = peak()
    idata = once(samples)
    print(
        json.dumps(
            {
                "result": idata["posterior"].to_dataset().nbytes / 1e6,
                "peak": peak(),
                "rise": peak() - small,
            }
        )
    )


def measure(kind, samples, rows):
    command = [sys.executable, __file__, "--worker", kind, str(samples), str(rows)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{kind} failed:\n{done.stderr}")
    seen = json.loads(done.stdout.splitlines()[-1])
    return {
        "": kind,
        "draws": samples,
        "result, MB": seen["result"],
        "peak of the process, MB": seen["peak"],
        "rise above the small run, MB": seen["rise"],
        "rise over result": seen["rise"] / seen["result"],
    }


def main():
    from common import finish, goal, machine, parser

    options = parser(__doc__).parse_args()
    host = machine()
    rows, lengths = (2000, (100, 200)) if options.quick else (50_000, (1000, 2000))
    table = [measure(kind, n, rows) for kind in (OWN, STORED, OTHER) for n in lengths]
    rises = {(row[""], row["draws"]): row["rise above the small run, MB"] for row in table}
    growth = rises[STORED, lengths[1]] - rises[STORED, lengths[0]]
    added = table[1]["result, MB"] - table[0]["result, MB"]
    goals = [
        *(
            goal(f"{OWN}, {row['draws']:,} draws: rise over result", row["rise over result"], 1.5)
            for row in table[:2]
        ),
        goal(f"{STORED}: growth of the rise over growth of the result", growth / added, 0.05),
    ]
    return finish(
        "memory",
        options,
        host,
        precision="float32",
        tables={f"A deterministic of {rows:,} rows, {CHAINS} chains": table},
        goals=goals,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()

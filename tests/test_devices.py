"""Chains and data on several devices: the same keys, rows and noise, the same law."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import langevin_ppl as lp
from langevin_ppl import devices

HEAD = """
import jax
jax.config.update("jax_num_cpu_devices", {})
import re, warnings
import jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist
import blackjax
import langevin_ppl as lp
from langevin_ppl import devices, run
from langevin_ppl.gradients import reader_of, whole_mean

warnings.simplefilter("ignore", lp.ConvergenceWarning)

def model(x, y, size=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with numpyro.plate("row", len(x), subsample_size=size):
        logits = numpyro.subsample(x, event_dim=1) @ slope
        numpyro.sample("y", dist.Bernoulli(logits=logits), obs=numpyro.subsample(y, event_dim=0))

random = np.random.default_rng(0)
x = random.standard_normal((20_000, 3)).astype(np.float32)
y = (random.random(20_000) < 1 / (1 + np.exp(-x @ np.array([0.5, -1.0, 2.0])))).astype(np.float32)
y = jnp.asarray(y)
full = lp.target(model, x[:2000], y[:2000])
some = lp.target(model, x, y, 64).replace(static=("size",))
one = jax.make_mesh((1,), ("chain",))

def draws(idata):
    (value,) = idata["posterior"].data_vars.values()
    return value.values

def check_same_law(ours, theirs):
    a, b = draws(ours), draws(theirs)
    error = b.std(axis=(0, 1)) * np.sqrt(1 / ours.attrs["min_ess"] + 1 / theirs.attrs["min_ess"])
    assert np.all(np.abs(a.mean(axis=(0, 1)) - b.mean(axis=(0, 1))) < 4 * error)
    ess = min(ours.attrs["min_ess_squares"], theirs.attrs["min_ess_squares"])
    np.testing.assert_allclose(a.std(axis=(0, 1)), b.std(axis=(0, 1)), rtol=4 / np.sqrt(ess))
"""

CHAINS = """
target = lp.density(lambda x: -0.5 * jnp.sum(x**2 / jnp.array([1.0, 4.0])), jnp.zeros(2))
fixed = dict(num_samples=1, num_warmup=0, step_size=0.5, initial=jnp.ones((4, 2)))
spread = lp.sample(jax.random.key(0), target, **fixed)
together = lp.sample(jax.random.key(0), target, mesh=one, **fixed)
np.testing.assert_allclose(draws(spread), draws(together), rtol=1e-5)

mesh = devices.mesh_for(None, 4)
assert mesh.shape == {"chain": 2} and devices.mesh_for(None, 3) is None
phases = zip(run.phase_keys(jax.random.key(0), 4, mesh), run.phase_keys(jax.random.key(0), 4))
for number, (keys, alone) in enumerate(phases):
    assert len(keys.sharding.device_set) == (2 if number < 3 else 1)
    np.testing.assert_array_equal(jax.random.key_data(keys), jax.random.key_data(alone))

compiled = run._chunk._cache_size()
runs = [lp.sample(jax.random.key(0), target, num_samples=3000, mesh=m) for m in (None, one)]
assert run._chunk._cache_size() == compiled + 4  # warm-up and sampling, once for each layout
runs += [lp.sample(jax.random.key(0), target, blackjax.nuts, num_samples=3000)]
for idata in runs:
    # About 3000 effective draws: five standard errors of an sd are 6 %.
    np.testing.assert_allclose(draws(idata).std(axis=(0, 1)), [1.0, 2.0], rtol=0.06)
    assert np.all(np.abs(draws(idata).mean(axis=(0, 1))) < [0.1, 0.2])
odd = lp.sample(jax.random.key(0), target, num_chains=3, num_samples=10, num_warmup=50)
assert draws(odd).shape == (3, 10, 2)
stopped = [
    lp.sample(jax.random.key(0), target, lp.mala, until=lp.converged(), mesh=m) for m in (None, one)
]
assert stopped[0].attrs["num_samples"] == stopped[1].attrs["num_samples"] < 20_000

from numpyro.infer import MCMC
from langevin_ppl import infer

def potential_fn(x):
    return 0.5 * jnp.sum((x - 3.0) ** 2)

mcmc = MCMC(
    infer.GHMC(potential_fn=potential_fn), num_warmup=200, num_samples=2000, num_chains=2,
    chain_method="parallel", progress_bar=False,
)
mcmc.run(jax.random.key(0), init_params=jnp.zeros((2, 2)))
samples = mcmc.get_samples(group_by_chain=True)
np.testing.assert_allclose(samples.mean(axis=(0, 1)), 3.0, atol=0.15)
assert not np.array_equal(samples[0], samples[1])
"""

ROWS = """
mesh = devices.mesh_for(jax.make_mesh((4,), ("data",)), 4)
placed, plain = devices.place_data(some, mesh), devices.place_data(some, one)
x_placed = placed.data[0]
assert {shard.data.shape for shard in x_placed.addressable_shards} == {(5000, 3)}
for pinned in (None, {"row": np.array([3, 99, 12_345])}):
    dealt = reader_of(placed, {"row": 64}, "blocks", 0, pinned)["row"]
    usual = reader_of(plain, {"row": 64}, "blocks", 0, pinned)["row"]
    copies = dealt.copies[0, -2]
    assert all(shard.data.shape[0] == 1 for shard in copies.addressable_shards)
    read = jax.jit(lambda reader, batch: reader.rows(batch))
    for start in (3, 4, 5, 6, 19_998, 19_999):  # the last of them go round the end
        ours, theirs = read(dealt, start), read(usual, start)
        np.testing.assert_array_equal(ours.slices[0, -2], x[ours.indices])
        weights = np.ones(64) if ours.weights is None else np.asarray(ours.weights)
        counted = np.asarray(ours.indices)[weights > 0]
        np.testing.assert_array_equal(np.sort(counted), np.sort(theirs.indices))
        if pinned:
            np.testing.assert_allclose(weights.sum(), theirs.weights.sum(), rtol=1e-6)
            assert set(np.asarray(ours.indices)[weights == 1]) == {3, 99, 12_345}
    places = np.array([0, 7, 19_999])
    np.testing.assert_array_equal(dealt.numbers(places), usual.numbers(places))
    np.testing.assert_array_equal(jax.jit(dealt.at)(places).indices, usual.numbers(places))

# Blocks of 16,384 rows, of which the last one begins early.
position = {"slope": jnp.array([0.1, 0.2, 0.3])}
for target in (placed, plain):
    reader = reader_of(target, {"row": 64}, "blocks", 0)
    found = whole_mean(reader, lambda rows: target.batch_logdensity_fn(rows, position))
    np.testing.assert_allclose(found, some.logdensity_fn(position), rtol=1e-5)
"""

DATA = """
both = jax.make_mesh((2, 2), ("chain", "data"))
fixed = dict(num_warmup=0, num_samples=1, initial={"slope": jnp.full((4, 3), 0.2)})
cases = [
    (full, lp.mala, dict(step_size=1e-3)),
    (some, lp.sgld, dict(step_size=1e-6, gradient=lp.minibatch(64))),
    (some, lp.sgld, dict(step_size=1e-6, gradient=lp.minibatch(64, sampling="epochs"))),
    (some, lp.ubu, dict(step_size=1e-3, friction=1.0, gradient=lp.svrg(64))),
]
for target, kernel, options in cases:
    alone = draws(lp.sample(jax.random.key(0), target, kernel, mesh=one, **fixed, **options))
    spread = draws(lp.sample(jax.random.key(0), target, kernel, mesh=both, **fixed, **options))
    np.testing.assert_allclose(spread, alone, rtol=2e-5)

for target in (full, some):
    alone, spread = (
        lp.sample(jax.random.key(0), target, num_samples=500, mesh=m) for m in (one, both)
    )
    check_same_law(spread, alone)
    assert spread.attrs["mode_search"] == alone.attrs["mode_search"]
"""

TRANSFERS = """
mesh = jax.make_mesh((2, 2), ("chain", "data"))
kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
texts = []

class Recording:
    def __init__(self, program):
        self.program, self.lower = program, program.lower

    def __call__(self, *args, **kwargs):
        texts.append(self.lower(*args, **kwargs).compile().as_text())
        return self.program(*args, **kwargs)

run._chunk = Recording(run._chunk)
for target, kernel, gradient in [
    (full, lp.mala, None),
    (some, lp.sgld, lp.minibatch(64)),
    (some, lp.sgld, lp.minibatch(64, shared=True)),
    (some, lp.ubu, lp.svrg(64)),
    (some, lp.ubu, lp.control_variates(64, pinned=6)),
]:
    start = {"slope": jnp.full((4, 3), 0.2)}
    more = dict(friction=1.0) if kernel is lp.ubu else {}
    lp.sample(
        jax.random.key(0), target, kernel, gradient=gradient, initial=start, num_warmup=0,
        num_samples=1, step_size=1e-6, mesh=mesh, **more,
    )
    sent = re.findall(rf"= ([^=]*?) ({kinds})(?:-start)?\\(", texts[-1])
    assert sent
    for shapes, kind in sent:
        # Of rows nothing is sent: there are at most four chains of three coordinates.
        shaped = re.findall(r"\\[(.*?)\\]", shapes)
        sizes = [np.prod([int(n) for n in shape.split(",") if n]) for shape in shaped]
        assert kind == "all-reduce" and max(sizes) <= 12, (shapes, kind)
"""

REFUSALS = """
def refused(error, target=full, kernel=lp.mala, **options):
    options = {"num_samples": 2, "num_warmup": 0, "step_size": 1e-6, **options}
    try:
        lp.sample(jax.random.key(0), target, kernel, **options)
    except error as found:
        return str(found)
    raise AssertionError(f"not refused: {options}")

data = jax.make_mesh((4,), ("data",))
assert "jax.sharding.Mesh" in refused(TypeError, mesh=[2, 2])
assert "('x', 'y')" in refused(ValueError, mesh=jax.make_mesh((2, 2), ("x", "y")))
message = refused(ValueError, mesh=jax.make_mesh((4,), ("chain",)), num_chains=6)
assert "num_chains=6" in message and "multiple of 4" in message
short = lp.target(model, x[:1999], y[:1999])
message = refused(ValueError, short, mesh=data)
assert "1999 rows of model model" in message and "Leave out 3 of them, add 1" in message
density = lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(3))
assert "no array of rows" in refused(ValueError, density, mesh=data)
message = refused(ValueError, some, lp.sgld, gradient=lp.minibatch(30), mesh=data)
assert "multiple of the 4 devices" in message and "got 30" in message
single = [lp.minibatch(64, sampling="replacement"), lp.control_variates(64, sampling="importance")]
for gradient in single:
    assert "blocks" in refused(ValueError, some, lp.sgld, gradient=gradient, mesh=data)

def indexing(x, y, size):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with numpyro.plate("row", len(x), subsample_size=size) as rows:
        numpyro.sample("y", dist.Normal(x[rows] @ slope, 1.0), obs=y[rows])

indexed = lp.target(indexing, x, y, 64).replace(static=("size",))
message = refused(ValueError, indexed, lp.sgld, gradient=lp.minibatch(64), mesh=data)
assert "numpyro.subsample" in message

def transposed(x, y, size):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with numpyro.plate("group", 3, dim=-2), numpyro.plate("row", len(y), subsample_size=size):
        numpyro.sample("x", dist.Normal(slope[:, None], 1.0), obs=numpyro.subsample(x, event_dim=0))

turned = lp.target(transposed, x.T, y, 64).replace(static=("size",))
assert "Transpose" in refused(ValueError, turned, lp.sgld, gradient=lp.minibatch(64), mesh=data)
"""

SCRIPTS = {
    "chains": (2, CHAINS),
    "rows": (4, ROWS),
    "data": (4, DATA),
    "transfers": (4, TRANSFERS),
    "refusals": (4, REFUSALS),
}


SLOW = ("chains", "data", "transfers")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in SCRIPTS]
)
def test_several_devices(name):
    count, script = SCRIPTS[name]
    program = HEAD.replace("{}", str(count), 1) + script + "\nprint('same')"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert shown.stdout.strip() == "same", shown.stderr


def test_one_device_needs_no_placing():
    assert devices.mesh_for(None, 4) is None
    assert devices.share_of("data", None) == (0, 1)
    target = lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(3))
    assert devices.place_data(target, None) is target
    batches = np.ones((5, 8))
    assert devices.place_batches(batches, None) is batches
    mesh = jax.make_mesh((1, 1), ("chain", "data"))
    assert devices.place_batches(batches, mesh).sharding.spec == PartitionSpec(None, "data")

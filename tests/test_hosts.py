"""Two processes that run one script together, beside one process with as many devices."""

import json
import socket
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys, warnings
from pathlib import Path
import jax
count, number, port = map(int, sys.argv[1:4])
folder = Path(sys.argv[4])
jax.config.update("jax_num_cpu_devices", 2 // count)
if count > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=count, process_id=number)
import jax.numpy as jnp, numpy as np, numpyro, numpyro.distributions as dist
import langevin_ppl as lp
from langevin_ppl import devices, run

warnings.simplefilter("ignore", UserWarning)
assert jax.device_count() == 2

def model(x, y, size=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with numpyro.plate("row", len(x), subsample_size=size):
        logits = numpyro.subsample(x, event_dim=1) @ slope
        numpyro.sample("y", dist.Bernoulli(logits=logits), obs=numpyro.subsample(y, event_dim=0))

random = np.random.default_rng(0)
x = random.standard_normal((1000, 3)).astype(np.float32)
y = (random.random(1000) < 1 / (1 + np.exp(-x @ np.array([0.5, -1.0, 2.0])))).astype(np.float32)
full = lp.target(model, x, y)
some = lp.target(model, x, y, 64).replace(static=("size",))
chain, data = (jax.make_mesh((2,), (name,)) for name in ("chain", "data"))
fixed = dict(num_warmup=0, num_samples=1, initial={"slope": jnp.full((4, 3), 0.2)})
runs = {
    "mala, one step": (full, lp.mala, dict(step_size=1e-3, **fixed)),
    "data, one step": (full, lp.mala, dict(step_size=1e-3, mesh=data, **fixed)),
    "batches, one step": (
        some, lp.sgld, dict(step_size=1e-4, mesh=data, gradient=lp.minibatch(64), **fixed)),
    "default": (full, None, dict(groups=["log_likelihood"], num_samples=500)),
    "until": (full, None, dict(until=lp.converged(ess=200), mesh=chain)),
    "data": (full, lp.mala, dict(num_warmup=150, num_samples=300, mesh=data)),
    "batches": (some, None, dict(num_warmup=100, num_samples=200, mesh=data)),
}
found = {}
for name, (target, kernel, options) in runs.items():
    idata = lp.sample(jax.random.key(0), target, kernel, **options)
    draws = idata["posterior"]["slope"].values
    found[name] = {
        "first": draws[:, 0].tolist(), "sum": float(draws.sum()), "draws": draws.shape[1],
        "mean": draws.mean((0, 1)).tolist(), "sd": draws.std((0, 1)).tolist(),
        "ess": idata.attrs["min_ess"],
        "rows": float(idata["observed_data"]["y"].values.sum()),
    }
found["laplace"] = lp.laplace(jax.random.key(0), full).attrs["log_evidence"]

# Runs that are stopped in the warm-up and in the draws, and resumed: each process writes its
# chains, and reads its share of a stream's rows.
class Stopped(Exception):
    pass

def stop_after(chunks):
    left, chunk = iter(range(chunks)), run._chunk
    def counted(*args, **kwargs):
        if next(left, None) is None:
            raise Stopped
        return chunk(*args, **kwargs)
    counted.lower, counted.eval_shape = chunk.lower, chunk.eval_shape
    run._chunk = counted
    return chunk

streamed = lp.target(model, *lp.stream(x, y, batch_size=64, shards=2))
for name, target, mesh in [("kept", full, None), ("stream", streamed, data)]:
    options = dict(num_warmup=150, num_samples=400)
    whole = lp.sample(jax.random.key(1), target, mesh=mesh, **options)
    path = folder / f"{name}-{count}"
    for chunks in (1, 3):
        chunk = stop_after(chunks)
        try:
            if chunks == 1:
                lp.sample(
                    jax.random.key(1), target, mesh=mesh, checkpoint=path, every=0, **options)
            else:
                lp.resume(path, target, mesh=mesh, every=0, chunk=100)
            raise AssertionError("not stopped")
        except Stopped:
            pass
        run._chunk = chunk
    resumed = lp.resume(path, target, mesh=mesh)
    draws = resumed["posterior"]["slope"].values
    np.testing.assert_array_equal(draws, whole["posterior"]["slope"].values)
    found[name] = {
        "first": draws[:, 0].tolist(), "sum": float(draws.sum()), "draws": draws.shape[1],
        "mean": draws.mean((0, 1)).tolist(), "sd": draws.std((0, 1)).tolist(),
        "ess": resumed.attrs["min_ess"],
    }
    if count > 1:
        state = max((path / f"host-{number}" / "sample").glob("*.json"), key=lambda p: int(p.stem))
        forms = json.loads(state.read_text())["record"]["outputs"]
        # Half of the chains, or all of them where the processes share rows.
        assert forms[0]["shape"][0] == (2 if mesh is None else 4)

# Batches of which every process has read its share of the rows.
mesh = devices.mesh_for(data, 4)
part, parts = devices.share_of("data", mesh)
assert (part, parts) == ((number, 2) if count > 1 else (0, 1))
assert devices.share_of("data", devices.mesh_for(chain, 4)) == (0, 1)
whole = np.arange(48.0).reshape(3, 8, 2)
own = np.split(whole, parts, axis=1)[part]
batches = devices.place_batches({"x": own}, mesh)["x"]
assert batches.shape == whole.shape
assert all(shard.data.shape == (3, 4, 2) for shard in batches.addressable_shards)
np.testing.assert_array_equal(devices.to_host(batches), whole)
np.testing.assert_array_equal(devices.to_host(devices.place(batches, mesh)), whole)

if count > 1:
    for mesh, reason in [
        (jax.sharding.Mesh(np.array(jax.devices()[:1]), ("chain",)), "all 2 processes"),
        (None, "multiple of the 2 processes"),
    ]:
        try:
            lp.sample(jax.random.key(0), full, num_chains=3 if mesh is None else 4, mesh=mesh)
            raise AssertionError("not refused")
        except ValueError as error:
            assert reason in str(error), error
print(json.dumps(found))
"""


def start(count, number, port, folder):
    command = [sys.executable, "-c", SCRIPT, *map(str, (count, number, port, folder))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def results(processes):
    """What processes printed; none of them outlives the test."""
    try:
        shown = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, shown, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(output.strip().splitlines()[-1]) for output, _ in shown]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Results of two processes, and of one process with two devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("hosts")
    together = results([start(2, number, port, folder) for number in range(2)])
    return *together, *results([start(1, 0, 0, folder)])


def test_all_processes_return_the_same(found):
    assert found[0] == found[1]


def test_one_step_is_that_of_one_process(found):
    two, _, one = found
    names = [name for name in two if "one step" in name]
    assert len(names) == 3
    for name in names:
        np.testing.assert_allclose(two[name]["first"], one[name]["first"], rtol=1e-5)
        assert two[name]["rows"] == one[name]["rows"]


@pytest.mark.parametrize("name", ["default", "until", "data", "batches", "kept", "stream"])
def test_moments_are_those_of_one_process(found, name):
    ours, theirs = found[0][name], found[2][name]
    error = np.asarray(theirs["sd"]) * np.sqrt(1.0 / ours["ess"] + 1.0 / theirs["ess"])
    assert np.all(np.abs(np.subtract(ours["mean"], theirs["mean"])) < 4.0 * error)
    assert ours["draws"] == theirs["draws"]


def test_laplace(found):
    assert abs(found[0]["laplace"] - found[2]["laplace"]) < 0.01

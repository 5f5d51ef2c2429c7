"""A run that is stopped at any moment and resumed gives the draws of one that was not."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr

import langevin_ppl as lp
from langevin_ppl import loop, run
from langevin_ppl.checkpoints import files
from langevin_ppl.checkpoints.names import gradient_of, kernel_of, name_gradient, name_kernel
from langevin_ppl.checkpoints.stage import Stage
from tests.interruption import Killed, kill_after
from tests.models import EFFECT, SIGMA, schools

KEY = jax.random.key(6)
TARGET = lp.density(lambda x: -0.5 * jnp.sum(x**2 / jnp.arange(1.0, 4.0)), jnp.zeros(3))
SCHOOLS = lp.target(schools, SIGMA, effect=EFFECT)


def rows_model(x):
    mean = numpyro.sample("mean", dist.Normal(0.0, 10.0))
    with numpyro.plate("row", 1000, subsample_size=50):
        numpyro.sample("x", dist.Normal(mean, 1.0), obs=numpyro.subsample(x, event_dim=0))


ROWS = lp.target(rows_model, jnp.linspace(-1.0, 2.0, 1000))


def assert_same(one, other):
    for group in ("posterior", "sample_stats"):
        xr.testing.assert_identical(
            one[group].to_dataset().drop_attrs(), other[group].to_dataset().drop_attrs()
        )


CASES = {
    "default": (TARGET, {}),
    "model": (SCHOOLS, {"kernel": lp.mala, "thinning": 3}),
    "ula": (TARGET, {"kernel": lp.ula}),
    "given": (TARGET, {"kernel": lp.mala, "step_size": 0.3, "num_warmup": 20}),
    "until": (TARGET, {"until": lp.converged(ess=700), "num_samples": 5000}),
    "replicas": (TARGET, {"kernel": lp.parallel_tempering(lp.ghmc, [1.0, 4.0])}),
    "nuts": (TARGET, {"kernel": blackjax.nuts}),
    "batches": (ROWS, {}),
    "svrg": (ROWS, {"kernel": lp.sgld, "gradient": lp.svrg(20)}),
}


SLOW = {"nuts", "replicas", "batches", "model"}


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in CASES]
)
def test_resumed_draws_are_those_of_an_uninterrupted_run(case, tmp_path, monkeypatch):
    target, options = CASES[case]
    options = {"num_samples": 200, "num_warmup": 150, **options}
    whole = lp.sample(KEY, target, **options)
    foreign = options.get("kernel") if case == "nuts" else None
    # In the middle of the warm-up, twice, and in the middle of the draws.
    for step, chunks in enumerate((2, 3, 4)):
        kill_after(monkeypatch, chunks)
        with pytest.raises(Killed):
            if step == 0:
                lp.sample(KEY, target, **options, checkpoint=tmp_path, every=0, chunk=17)
            else:
                lp.resume(tmp_path, target, foreign, every=0, chunk=23)
        monkeypatch.undo()
    resumed = lp.resume(tmp_path, target, foreign)
    assert_same(whole, resumed)
    assert resumed.attrs["num_samples"] == whole.attrs["num_samples"]
    assert resumed.attrs["converged"] == whole.attrs["converged"]
    # A run that has ended is read again, and nothing is stepped.
    kill_after(monkeypatch, 0)
    assert_same(whole, lp.resume(tmp_path, target, foreign))


def test_a_run_may_go_on_for_longer(tmp_path):
    short = lp.sample(KEY, TARGET, num_samples=100, checkpoint=tmp_path)
    longer = lp.resume(tmp_path, TARGET, num_samples=300)
    assert_same(lp.sample(KEY, TARGET, num_samples=300), longer)
    assert_same(short, longer.isel(draw=slice(0, 100), missing_dims="ignore"))


def test_ctrl_c_leaves_a_checkpoint(tmp_path, monkeypatch):
    whole = lp.sample(KEY, TARGET, num_samples=200)
    chunk, calls = run._chunk, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if kwargs["plan"].adaptation is None and len(calls) > 8:
            raise KeyboardInterrupt
        return chunk(*args, **kwargs)

    interrupted.lower, interrupted.eval_shape = chunk.lower, chunk.eval_shape
    monkeypatch.setattr(run, "_chunk", interrupted)
    with pytest.warns(UserWarning, match="Interrupted"):
        part = lp.sample(KEY, TARGET, num_samples=200, checkpoint=tmp_path, every=1e6, chunk=16)
    monkeypatch.undo()
    done = json.loads((tmp_path / "sample" / "1.json").read_text())["record"]["done"]
    assert 0 < done < 200 and done == part["posterior"].sizes["draw"]
    assert_same(whole, lp.resume(tmp_path, TARGET))


SCRIPT = """
import sys, jax, jax.numpy as jnp, numpy as np, langevin_ppl as lp
from pathlib import Path
path = Path(sys.argv[1])
target = lp.density(lambda x: -0.5 * jnp.sum(x**2) - 0.1 * jnp.sum(x**4), jnp.zeros(4))
options = dict(num_samples=60_000, num_warmup=2_000, thinning=2)
if (path / "run.json").exists():
    idata = lp.resume(path, target, every=0)
else:
    idata = lp.sample(jax.random.key(1), target, lp.mala, **options, checkpoint=path, every=0)
np.save(path / "draws.npy", idata["posterior"]["x"].values)
"""


def states_so_far(path):
    """How many states a run has written, those included that have been removed since."""
    return sum(
        max((int(p.stem) for p in (path / stage).glob("[0-9]*.json")), default=0)
        for stage in ("warm-up", "sample")
    )


@pytest.mark.slow
def test_killed_by_the_system_at_random_moments(tmp_path):
    """SIGKILL, which no process sees coming; see also examples/benchmarks/kill_and_resume.py."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([sys.executable, "-c", SCRIPT, whole], check=True)
    kills = 0
    for more in (1, 2, 3):
        before = states_so_far(killed)
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, killed])
        # By what it has written and not by the clock, which a busy machine turns at another pace.
        while process.poll() is None and states_so_far(killed) < before + more:
            time.sleep(0.002)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills  # a disk so slow that a run writes few states leaves little to kill later on
    subprocess.run([sys.executable, "-c", SCRIPT, killed], check=True)
    np.testing.assert_array_equal(np.load(whole / "draws.npy"), np.load(killed / "draws.npy"))


@pytest.fixture
def kept(tmp_path):
    """A run that has ended, with several states on disk."""
    options = {"num_samples": 200, "num_warmup": 50, "step_size": 0.3}
    idata = lp.sample(KEY, TARGET, lp.mala, **options, checkpoint=tmp_path, every=0, chunk=50)
    return tmp_path, idata


def states(path):
    return sorted((path / "sample").glob("*.json"), key=lambda p: int(p.stem))


@pytest.mark.parametrize("victim", ["json", "npz", "truncated", "output"])
def test_a_torn_state_falls_back_to_the_one_before_and_says_so(victim, kept):
    path, idata = kept
    newest = states(path)[-1]
    if victim == "json":
        newest.write_text(newest.read_text()[:-40])
    elif victim == "npz":
        content = bytearray(newest.with_suffix(".npz").read_bytes())
        content[len(content) // 2] ^= 1  # one bit
        newest.with_suffix(".npz").write_bytes(content)
    elif victim == "truncated":
        newest.with_suffix(".npz").write_bytes(b"")
    else:
        output = path / "sample" / "output-0"
        output.write_bytes(output.read_bytes()[:-4])
    with pytest.warns(lp.CheckpointWarning, match=r"going on from the state after \d+ steps"):
        resumed = lp.resume(path, TARGET)
    assert_same(idata, resumed)


def test_with_no_whole_state_a_loop_begins_anew(kept):
    path, idata = kept
    for state in states(path):
        state.write_text("{}")
    with pytest.warns(lp.CheckpointWarning, match="'sample' begins anew"):
        resumed = lp.resume(path, TARGET)
    assert_same(idata, resumed)


def test_an_unfinished_write_is_not_seen(kept):
    """As if killed between the draws and the state, and in the middle of a state."""
    path, idata = kept
    newest = states(path)[-1]
    newest.unlink()
    newest.with_suffix(".npz").unlink()
    (path / "sample" / ".9.json.new").write_text('{"half')
    assert_same(idata, lp.resume(path, TARGET))


def test_a_damaged_beginning_is_refused(kept):
    path, _ = kept
    (path / "run.npz").write_bytes((path / "run.npz").read_bytes()[:-1])
    with pytest.raises(lp.CheckpointError, match="run.npz is not what was written"):
        lp.resume(path, TARGET)


def test_nothing_is_unpickled(kept, monkeypatch):
    path, _ = kept
    for file in path.rglob("*.npz"):
        with np.load(file, allow_pickle=False) as arrays:
            assert all(arrays[name].dtype != object for name in arrays)

    def load(*args, **kwargs):
        raise AssertionError("unpickled")

    monkeypatch.setattr("pickle.load", load)
    monkeypatch.setattr("pickle.loads", load)
    lp.resume(path, TARGET)


def scaled(value):
    return lp.density(lambda x: -0.5 * jnp.sum(value * x**2), jnp.zeros(3))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (scaled(2.0), "the model differs"),
        (lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2)), "latent variables"),
        (lp.target(schools, SIGMA, effect=EFFECT), "latent variables"),
    ],
)
def test_another_target_is_refused(kept, other, message):
    with pytest.raises(lp.CheckpointError, match=message):
        lp.resume(kept[0], other)


def test_other_data_are_refused(tmp_path):
    lp.sample(KEY, SCHOOLS, num_samples=5, num_warmup=50, checkpoint=tmp_path)
    other = lp.target(schools, SIGMA, effect=EFFECT.at[3].add(1e-3))
    with pytest.raises(lp.CheckpointError, match="the data differ"):
        lp.resume(tmp_path, other)
    lp.resume(tmp_path, lp.target(schools, SIGMA, effect=EFFECT))


def edited(path, **changes):
    record, arrays = files.read(path / "run.json", path / "run.npz")
    content = files.as_stored({**record, **changes}, arrays)
    for name, part in zip(("run.json", "run.npz"), content, strict=True):
        (path / name).write_bytes(part)


def test_another_format_is_refused_and_another_version_warns(kept):
    path, idata = kept
    edited(path, library="0.0.7")
    with pytest.warns(lp.CheckpointWarning, match=r"version 0\.0\.7 of library"):
        assert_same(idata, lp.resume(path, TARGET))
    edited(path, format=99)
    with pytest.raises(lp.CheckpointError, match="format 99, and this version reads format 2"):
        lp.resume(path, TARGET)


def test_paths_that_will_not_do(kept, tmp_path):
    path, _ = kept
    with pytest.raises(lp.CheckpointError, match="holds a run. Go on with it by"):
        lp.sample(KEY, TARGET, checkpoint=path)
    with pytest.raises(lp.CheckpointError, match="holds no run"):
        lp.resume(tmp_path / "nothing", TARGET)
    with pytest.raises(lp.CheckpointError, match="expected a folder"):
        lp.sample(KEY, TARGET, checkpoint=path / "run.json")
    with pytest.raises(ValueError, match="every"):
        lp.sample(KEY, TARGET, checkpoint=path / "new", every=-1)


def test_two_runs_cannot_write_to_one_path(kept):
    path, _ = kept
    with files.lock(path), pytest.raises(lp.CheckpointError, match="another run is writing"):
        lp.resume(path, TARGET)
    lp.resume(path, TARGET)


def test_a_full_disk_does_not_stop_the_run(tmp_path, monkeypatch):
    options = {"num_samples": 100, "num_warmup": 30}
    whole = lp.sample(KEY, TARGET, **options)
    state = {"full": False}
    write = files.write

    def full(path, content):
        if state["full"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr("langevin_ppl.checkpoints.stage.write", full)
    state["full"] = True
    with pytest.warns(lp.CheckpointWarning, match="No space left on device.*kept in memory"):
        idata = lp.sample(KEY, TARGET, **options, checkpoint=tmp_path, every=0, chunk=10)
    assert_same(whole, idata)
    # There is room again: the checkpoint, which has no state, begins with the first step.
    state["full"] = False
    assert_same(whole, lp.resume(tmp_path, TARGET))
    assert_same(whole, lp.resume(tmp_path, TARGET))


def test_draws_wait_in_memory_while_the_disk_is_full(tmp_path, monkeypatch):
    """And reach the disk when there is room again."""
    write, full = files.write, [True]

    def maybe(path, content):
        if full[0]:
            raise OSError(errno.ENOSPC, "full")
        write(path, content)

    monkeypatch.setattr("langevin_ppl.checkpoints.stage.write", maybe)
    stage = Stage(tmp_path / "loop", 0.0, holds_outputs=True)
    assert stage.restore(np.zeros(2)) is None
    rows = (np.arange(6.0).reshape(3, 2), {"n": np.arange(3)})
    stage.take(rows)
    stage.keep(np.ones(2), 3, 100)
    with pytest.warns(lp.CheckpointWarning, match="full"):
        found = stage.outputs()
    np.testing.assert_array_equal(found[0], rows[0])
    stage.take(rows)
    full[0] = False
    stage.keep(np.full(2, 2.0), 6, 100)
    stage.close()
    again = Stage(tmp_path / "loop", 0.0).restore(np.zeros(2))
    assert (again.done, again.next_look) == (6, 100)
    np.testing.assert_array_equal(again.carry, [2.0, 2.0])
    np.testing.assert_array_equal(again.outputs[0], np.concatenate([rows[0]] * 2))
    np.testing.assert_array_equal(again.outputs[1]["n"], [0, 1, 2, 0, 1, 2])


def test_a_folder_that_cannot_be_written_to_does_not_stop_the_run(tmp_path, monkeypatch):
    whole = lp.sample(KEY, TARGET, num_samples=20, num_warmup=20)

    def refused(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pathlib.Path.mkdir", refused)
    with pytest.warns(lp.CheckpointWarning, match="Permission denied"):
        idata = lp.sample(
            KEY, TARGET, num_samples=20, num_warmup=20, checkpoint=tmp_path / "no", every=0
        )
    assert_same(whole, idata)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "bool"])
def test_arrays_come_back_as_they_were(dtype, tmp_path):
    rows = np.asarray(jnp.arange(12.0).reshape(4, 3).astype(dtype))
    carry = {"key": jax.random.key(3), "rbg": jax.random.key(3, impl="rbg"), "x": rows[0]}
    stage = Stage(tmp_path / "loop", 0.0)
    stage.take(rows)
    stage.keep(carry, 4, 100)
    stage.close()
    kept = Stage(tmp_path / "loop", 0.0).restore(carry)
    assert kept.outputs.dtype == rows.dtype and kept.carry["x"].dtype == rows.dtype
    np.testing.assert_array_equal(kept.outputs, rows)
    np.testing.assert_array_equal(kept.carry["x"], rows[0])
    for name in ("key", "rbg"):
        assert kept.carry[name].dtype == carry[name].dtype
        np.testing.assert_array_equal(
            jax.random.key_data(kept.carry[name]), jax.random.key_data(carry[name])
        )


def test_a_state_of_other_shapes_is_refused(tmp_path):
    stage = Stage(tmp_path / "loop", 0.0)
    stage.take(np.zeros((1, 2)))
    stage.keep(np.zeros(2), 1, 100)
    stage.close()
    with pytest.raises(lp.CheckpointError, match="Pass the kernel, gradient and number of chains"):
        Stage(tmp_path / "loop", 0.0).restore(np.zeros(3))


KERNELS = [
    lp.mala,
    lp.split_ghmc,
    lp.splitting("ABOBA"),
    lp.parallel_tempering(lp.ghmc, [1.0, 4.0]),
    lp.replica_exchange(lp.sgld, [1.0, 4.0]),
    lp.annealed(lp.mala, start=10.0, num_steps=5),
    lp.contour_sgld(-10.0, 20.0, 40),
    lp.amagold(3),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_kernels_are_rebuilt_by_name(kernel):
    named = json.loads(json.dumps(name_kernel(kernel)))
    rebuilt = kernel_of(named, None)
    assert repr(rebuilt) == repr(kernel) and name_kernel(rebuilt) == named
    assert kernel_of(named, kernel) is kernel
    with pytest.raises(lp.CheckpointError, match="the run was made with"):
        kernel_of(named, lp.ula)


def test_names_are_looked_up_among_kernels_only():
    for name in ("Kernel.__init__", "os.system", "check_burn_in_", "__import__"):
        with pytest.raises(lp.CheckpointError, match="no kernel"):
            kernel_of({"name": name, "arguments": ["true"]}, None)


@pytest.mark.parametrize(
    "gradient",
    [
        lp.minibatch(20),
        lp.svrg({"row": 30}, every=7, sampling="without"),
        lp.control_variates(20, pinned={"row": np.array([3, 5])}),
        lp.control_variates(centre={"mean": jnp.array(0.5)}, order=2),
    ],
    ids=str,
)
def test_estimators_are_rebuilt_by_name(gradient):
    named, centre = name_gradient(gradient)
    named = json.loads(json.dumps(named))
    whole = jax.tree.unflatten(jax.tree.structure(ROWS.prototype), centre) if centre else None
    rebuilt = gradient_of(named, whole, None)
    assert str(rebuilt) == str(gradient) and name_gradient(rebuilt)[0] == named
    with pytest.raises(lp.CheckpointError, match="the run was made with"):
        gradient_of(named, whole, lp.minibatch(21))


def test_what_is_not_of_this_library_has_to_be_passed_again(tmp_path):
    lp.sample(KEY, TARGET, blackjax.nuts, num_samples=5, num_warmup=150, checkpoint=tmp_path)
    with pytest.raises(lp.CheckpointError, match="blackjax.nuts, which is not of this library"):
        lp.resume(tmp_path, TARGET)
    with pytest.raises(lp.CheckpointError, match="the run was made with blackjax.nuts, got mala"):
        lp.resume(tmp_path, TARGET, lp.mala)
    with pytest.raises(lp.CheckpointError, match="expected those parameters"):
        lp.resume(tmp_path, TARGET, blackjax.nuts, step_size=0.1)


def test_functions_among_parameters_have_to_be_passed_again(tmp_path):
    def proposal(key, position):
        return position + jax.random.normal(key, position.shape)

    options = {"num_samples": 5, "num_warmup": 0}
    idata = lp.sample(
        KEY, TARGET, blackjax.rmh, **options, proposal_generator=proposal, checkpoint=tmp_path
    )
    with pytest.raises(lp.CheckpointError, match="proposal_generator"):
        lp.resume(tmp_path, TARGET, blackjax.rmh)
    assert_same(idata, lp.resume(tmp_path, TARGET, blackjax.rmh, proposal_generator=proposal))


def test_tuned_parameters_of_an_earlier_run_are_kept(tmp_path):
    """A low-rank metric and positions, which are arrays."""
    first = lp.sample(KEY, TARGET, lp.ghmc, metric="low_rank", num_samples=50)
    options = {"initial": first, "parameters": first, "num_samples": 50}
    whole = lp.sample(KEY, TARGET, lp.ghmc, **options)
    lp.sample(KEY, TARGET, lp.ghmc, **options, checkpoint=tmp_path)
    for state in states(tmp_path):
        state.unlink()
    assert_same(whole, lp.resume(tmp_path, TARGET))


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_draws_in_a_store_are_those_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("langevin_ppl.export.STORED", 64)
    options = {"num_samples": 150, "num_warmup": 50}
    whole = lp.sample(KEY, SCHOOLS, **options)
    stored = lp.sample(
        KEY, SCHOOLS, **options, checkpoint=tmp_path / "run", store=tmp_path / "draws.zarr"
    )
    assert set(stored.children) == set(whole.children)
    for group in ("posterior", "sample_stats", "observed_data", "constant_data"):
        xr.testing.assert_equal(whole[group].to_dataset(), stored[group].to_dataset())
    for group in ("sampler_position", "sampler_parameters"):
        xr.testing.assert_equal(whole[group].to_dataset(), stored[group].to_dataset())
    assert stored.attrs["min_ess"] == whole.attrs["min_ess"]
    again = lp.sample(KEY, SCHOOLS, initial=stored, parameters=stored, num_samples=5)
    assert again.attrs["num_warmup"] == 0


def test_a_store_needs_what_it_needs(tmp_path):
    with pytest.raises(ValueError, match="pass checkpoint= as well"):
        lp.sample(KEY, TARGET, store=tmp_path / "draws.zarr")
    options = {"checkpoint": tmp_path / "run", "store": tmp_path / "draws.zarr"}
    with pytest.raises(ValueError, match="unconstrained_posterior would hold all draws"):
        lp.sample(KEY, TARGET, **options, groups=["unconstrained_posterior"])
    with pytest.raises(ValueError, match="exists"):
        lp.sample(KEY, TARGET, checkpoint=tmp_path / "run", store=tmp_path)


def test_notes_beside_a_bar_take_a_hundredth_of_the_time(monkeypatch, capsys):
    monkeypatch.delenv("CI", raising=False)
    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])

    def program(carry, start, count):
        clock[0] += 0.5
        return carry, np.zeros((count, 1))

    def note(outputs, done):
        asked.append(done)
        clock[0] += 0.2
        return f"seen {len(outputs)}"

    asked = []
    loop.drive(program, 0, 200, 1, progress=True, note=note)
    # 200 chunks take 100 seconds; a note of 0.2 s comes every 20 s.
    assert len(asked) == 5
    assert "seen" in capsys.readouterr().err


def test_the_bar_says_effective_draws_and_gradients(monkeypatch, capsys):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(loop, "NOTE_SECONDS", 0.0)
    lp.sample(KEY, TARGET, lp.mala, num_samples=2000, progress=True)
    shown = capsys.readouterr().err
    assert "ESS" in shown and "gradients" in shown

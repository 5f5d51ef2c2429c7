"""Scores on disk: what is written is read again, and nothing else is."""

import json
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import langevin_ppl as lp
from langevin_ppl.scores import training
from langevin_ppl.scores.files import PROCESSES
from langevin_ppl.scores.learned import Learned
from langevin_ppl.scores.networks import Conditioning, named

KEY = jax.random.key(0)
X = jnp.array([[0.3, -0.2], [1.0, 2.0]])


def learned(
    spec=None, shape=(2,), conditioning=None, process=None, conservative=False, network=None
):
    """A score as `fit` returns it, whose weights are random."""
    spec = lp.scores.residual_mlp(width=8, depth=1) if spec is None else spec
    if network is None:
        built = jax.eval_shape(lambda: spec.build(KEY, shape, conditioning))
    else:
        built = network
    rng = np.random.default_rng(0)
    leaves, structure = jax.tree.flatten(built)
    leaves = [
        jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) if hasattr(leaf, "shape") else leaf
        for leaf in leaves
    ]
    vector = conditioning is not None and conditioning.num_classes is None
    around = [jnp.full(conditioning.shape, v) if vector else None for v in (0.5, 2.0)]
    process = lp.scores.VP() if process is None else process
    denoiser = Learned(
        jax.tree.unflatten(structure, leaves),
        jnp.full(shape, 0.1),
        jnp.asarray(0.7),
        *around,
        process,
        conservative,
    )
    record = {
        "conditioning": None if conditioning is None else conditioning.__dict__,
        "network": named(spec) if network is None else None,
    }
    return training.as_score(denoiser, shape, conditioning, json.dumps(record))


def equal(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    jax.tree.map(np.testing.assert_array_equal, one, two)


def refused(path, said, **options):
    with pytest.raises(lp.scores.ScoreFileError, match=said):
        lp.scores.load(path, **options)


@pytest.fixture
def path(tmp_path):
    lp.scores.save(learned(), tmp_path / "score.npz")
    return tmp_path / "score.npz"


MADE = {
    "plain": {},
    "conservative": {"conservative": True},
    "labels": {"conditioning": Conditioning((), 3)},
    "vectors": {"conditioning": Conditioning((2, 2))},
    "image": {"spec": lp.scores.unet(channels=(4, 6), width=8), "shape": (1, 5, 6)},
}


@pytest.mark.parametrize("case", MADE)
def test_a_learned_score_comes_back(case, tmp_path):
    score = learned(**MADE[case])
    lp.scores.save(score, tmp_path / "a name without suffix")
    assert [file.name for file in tmp_path.iterdir()] == ["a name without suffix"]
    again = lp.scores.load(tmp_path / "a name without suffix")
    equal(again, score)
    assert (again.condition_shape, again.spec) == (score.condition_shape, score.spec)
    lp.scores.save(again, tmp_path / "again")
    contents = [(tmp_path / name).read_bytes() for name in ("again", "a name without suffix")]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_comes_back_with_its_fields(name, tmp_path):
    process = PROCESSES[name](t_max=0.75)
    lp.scores.save(learned(process=process), tmp_path / "score")
    assert lp.scores.load(tmp_path / "score").process == process


@pytest.mark.slow
def test_what_fit_returns_comes_back(tmp_path):
    fitted = lp.scores.fit(
        KEY, np.random.default_rng(0).normal(size=(50, 2)), lp.scores.EDM(), num_steps=3,
        condition=np.linspace(0.0, 5.0, 50), network=lp.scores.residual_mlp(width=8, depth=1),
        progress=False,
    )  # fmt: skip
    lp.scores.save(fitted.score, tmp_path / "score.npz")
    again = lp.scores.load(tmp_path / "score.npz")
    equal(again, fitted.score)
    for condition in (1.0, jnp.nan):
        np.testing.assert_array_equal(again(X, 1.0, condition), fitted.score(X, 1.0, condition))


def test_exact_scores_come_back(tmp_path):
    process = lp.scores.VP()
    mixture = lp.scores.exact_mixture(process, [0.2, 0.8], [[0.0, 1.0], [2.0, 0.0]], [0.1, 0.2])
    for score in (mixture, lp.scores.empirical(process, X)):
        lp.scores.save(score, tmp_path / "score")
        again = lp.scores.load(tmp_path / "score")
        equal(again, score)
        assert again.exact
        np.testing.assert_array_equal(again(X, 0.5), score(X, 0.5))


def own(weights, bias, u, noise_level, condition):
    return weights @ u + bias


def test_a_network_of_your_own_is_needed_and_must_be_alike(tmp_path):
    network = Partial(own, jnp.zeros((2, 2)), jnp.zeros(2))
    score = learned(network=network)
    lp.scores.save(score, tmp_path / "score")
    equal(lp.scores.load(tmp_path / "score", network), score)
    refused(tmp_path / "score", "with a network of your own.*network=")
    refused(tmp_path / "score", "of your own", network=lp.scores.unet())
    other = Partial(own, jnp.zeros((3, 2)), jnp.zeros(2))
    refused(tmp_path / "score", r"number 0 is of shape \(2, 2\) there and \(3, 2\)", network=other)
    refused(tmp_path / "score", "expected 2 arrays", network=Partial(own, jnp.zeros(2)))


def test_an_equinox_module_is_a_network_with_its_functions(tmp_path):
    class Net(eqx.Module):
        mlp: eqx.nn.MLP

        def __call__(self, u, noise_level, condition):
            return self.mlp(jnp.append(u, noise_level))

    def net(seed):
        return Net(eqx.nn.MLP(3, 2, 4, 1, key=jax.random.key(seed)))

    score = learned(network=net(0))
    lp.scores.save(score, tmp_path / "score")
    again = lp.scores.load(tmp_path / "score", net(1))
    np.testing.assert_array_equal(again(X, 0.5), score(X, 0.5))


def test_a_network_that_is_in_the_file_need_not_be_given(path):
    assert lp.scores.load(path, lp.scores.residual_mlp(width=8, depth=1)).process
    refused(path, "Leave it out", network=lp.scores.residual_mlp(width=9))


# What is not written


def test_guided_and_foreign_scores_are_refused(tmp_path):
    with pytest.raises(ValueError, match="save the score that is guided"):
        lp.scores.save(lp.scores.Score(lambda x, t, c: x, lp.scores.VP(), (2,)), tmp_path / "score")

    class Own(lp.scores.VP):
        pass

    with pytest.raises(ValueError, match="process: expected one of EDM, VE, VP"):
        lp.scores.save(learned(process=Own()), tmp_path / "score")
    with pytest.raises(TypeError, match="expected a Score, got str"):
        lp.scores.save("score", tmp_path / "score")
    assert not list(tmp_path.iterdir())


# What is not read


def test_any_changed_byte_is_seen(path):
    """Or changes nothing: the frame of the archive has bytes that nobody reads."""
    content = path.read_bytes()
    score = lp.scores.load(path)
    rng = np.random.default_rng(0)
    seen = 0
    for place in rng.integers(0, len(content), 150):
        changed = bytearray(content)
        changed[place] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        try:
            again = lp.scores.load(path)
        except lp.scores.ScoreFileError as error:
            assert str(path) in str(error) or "network" in str(error)
            seen += 1
        else:
            equal(again, score)
    assert seen > 120


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_refused(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, "cannot be read as arrays.*damaged, or was not written")


def rewritten(path, change, checksum=True):
    """Change a file as somebody would who knows its format."""
    from langevin_ppl.scores import files

    with np.load(path) as found:
        arrays = dict(found)
    record = json.loads(arrays.pop("record").tobytes())
    record.pop("checksum")
    record = change(record, arrays) or record
    if checksum:
        record["checksum"] = files._checksum(record, arrays)
    arrays["record"] = np.frombuffer(json.dumps(record).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, **arrays)


def forget(name, *tables):
    for table in tables:
        table.pop(name)


FORGED = {
    "newer": (lambda r, a: r.update(version=2, library="9.9"), "of version 2 .*langevin_ppl 9.9"),
    "format": (lambda r, a: r.update(format="weights"), "expected the format 'langevin_ppl.score'"),
    "process": (lambda r, a: r["process"].update(name="os.system"), "record is not one"),
    "field": (lambda r, a: r["process"].update(t_min=2.0), "record is not one.*t_min below t_max"),
    "no field": (lambda r, a: r["process"].update(command="rm"), "record is not one"),
    "network": (lambda r, a: r["network"].update(name="Partial"), "record is not one"),
    "width": (lambda r, a: r["network"].update(width=10**9), "network: expected"),
    "kind": (lambda r, a: r.update(kind="pickle"), "record is not one"),
    "missing": (
        lambda r, a: (a.pop("network-1"), r["arrays"].pop("network-1")) and None,
        "network",
    ),
    "list": (lambda r, a: [1], "record"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_record_that_names_what_is_not_here_is_refused(path, case):
    change, said = FORGED[case]
    try:
        rewritten(path, change)
    except TypeError:  # a list has no checksum
        rewritten(path, change, checksum=False)
    refused(path, said)


def test_a_record_without_its_checksum_is_refused(path):
    rewritten(path, lambda r, a: a.update({"network-0": a["network-0"] + 1}), checksum=False)
    refused(path, "its checksum is not that of its contents")


class Explodes:
    ran = False

    def __reduce__(self):
        return _explode, ()


def _explode():
    Explodes.ran = True
    return 1


def test_pickled_objects_are_refused_and_do_not_run(path, tmp_path):
    with np.load(path) as found:
        arrays = dict(found)
    exploding = np.array([Explodes()], dtype=object)
    with path.open("wb") as file:
        np.savez(file, **{**arrays, "network-0": exploding})
    refused(path, "cannot be read as arrays")
    with path.open("wb") as file:
        np.savez(file, **{**arrays, "record": exploding})
    refused(path, "cannot be read as arrays")
    path.write_bytes(pickle.dumps(Explodes()))
    refused(path, "cannot be read as arrays")
    assert not Explodes.ran
    pickle.loads(path.read_bytes())  # it would have run
    assert Explodes.ran


def test_foreign_archives_are_refused(tmp_path):
    path = tmp_path / "foreign.npz"
    np.savez(path, weights=np.ones(3))
    refused(path, "has no record of a score")
    np.savez_compressed(path, record=np.zeros(10**6, np.uint8))
    refused(path, "record.npy in it is compressed")
    np.save(tmp_path / "one.npy", np.ones(3))
    refused(tmp_path / "one.npy", "cannot be read as arrays")
    with pytest.raises(FileNotFoundError):
        lp.scores.load(tmp_path / "nothing.npz")


def test_a_score_is_replaced_in_one_piece(path, monkeypatch):
    """A process that dies while it writes leaves the file that was there."""
    before = path.read_bytes()

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        lp.scores.save(learned(), path)
    assert path.read_bytes() == before


def test_files_are_the_same_for_the_same_score(path, tmp_path):
    lp.scores.save(learned(), tmp_path / "two")
    assert path.read_bytes() == (tmp_path / "two").read_bytes()
    lp.scores.save(learned(process=lp.scores.EDM()), tmp_path / "two")
    assert path.read_bytes() != (tmp_path / "two").read_bytes()

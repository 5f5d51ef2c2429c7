"""What a run reports: energies, findings, cures, and the table of its attributes."""

import ast
import functools
import importlib
import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import arviz as az
import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr

import langevin_ppl as lp
from langevin_ppl.base import Draws
from langevin_ppl.convergence import Converged
from langevin_ppl.findings import LIMITATIONS, Cure, Finding
from langevin_ppl.trust import trust
from langevin_ppl.verdict import verdict
from langevin_ppl.warmup import End, Ends
from tests.models import EFFECT, SIGMA, schools

ROOT = Path(__file__).resolve().parents[1]
KEY = jax.random.key(7)
SHORT = {"num_warmup": 60, "num_samples": 50, "num_chains": 2}


def gaussian(x):
    return -0.5 * jnp.sum(x**2)


def quartic(x):
    return -0.25 * jnp.sum(x**4) + 0.3 * x[0] * x[-1]


def regression(x, y):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", x.shape[0], subsample_size=50):
        rows, values = numpyro.subsample(x, 0), numpyro.subsample(y, 0)
        numpyro.sample("y", dist.Normal(slope * rows, 1.0), obs=values)


@functools.cache
def rows():
    """Target of which a gradient reads a part of the data."""
    x, noise = np.random.default_rng(0).standard_normal((2, 500)).astype(np.float32)
    return lp.target(regression, x, x + noise)


@functools.cache
def vector():
    return lp.density(gaussian, jnp.zeros(10))


@pytest.fixture(scope="module")
def runs():
    """One run of every kind that reports separate attributes."""
    return {
        "model": lp.sample(KEY, lp.target(schools, SIGMA, effect=EFFECT), **SHORT),
        "density": lp.sample(KEY, vector(), num_samples=2000),
        "minibatch": lp.sample(KEY, rows(), **SHORT),
        "blackjax": lp.sample(KEY, vector(), blackjax.nuts, **SHORT),
    }


# Energy


def steps(kernel, **settings):
    """States and infos of a chain, and the algorithm's step size is large enough to reject."""
    algorithm = kernel(quartic, **settings)

    def step(state, key):
        state, info = algorithm.step(key, state)
        return state, (state, info)

    start = algorithm.init(jnp.array([0.5, -1.0, 2.0]))
    return jax.lax.scan(step, start, jax.random.split(KEY, 50))[1]


WITH_ENERGY = [
    *(lp.ghmc, lp.split_ghmc, lp.amagold(2), lp.parallel_tempering(lp.ghmc, [1, 4])),
    *(lp.baoab, lp.obabo, lp.tbaoab, lp.klmc),
]


@pytest.mark.parametrize("kernel", WITH_ENERGY, ids=repr)
def test_energy_is_the_hamiltonian_of_the_new_state(kernel):
    states, infos = steps(kernel, step_size=0.5 if kernel.exact else 0.1)
    position = np.asarray(states.position, np.float64)
    replicas = getattr(states, "replicas", None)
    momentum = states.momentum if replicas is None else replicas.momentum[:, 0]
    potential = 0.25 * np.sum(position**4, axis=1) - 0.3 * position[:, 0] * position[:, -1]
    expected = potential + 0.5 * np.sum(np.asarray(momentum, np.float64) ** 2, axis=1)
    np.testing.assert_allclose(infos.energy, expected, rtol=1e-4, atol=1e-4)
    if kernel.exact:
        assert not np.asarray(infos.is_accepted).all()


def test_energy_is_not_estimated():
    """Neither where a step does not end at a gradient, nor from a part of the data."""
    assert steps(lp.ubu, step_size=0.1)[1].energy is None
    assert steps(lp.mala, step_size=0.1)[1].energy is None
    noisy = rows().gradient(lp.minibatch())
    algorithm = lp.baoab(noisy, step_size=0.01)
    state = algorithm.init(dict(slope=jnp.zeros(())), KEY)
    assert algorithm.step(KEY, state)[1].energy is None


@pytest.mark.parametrize("kind", ["density", "blackjax"])
def test_arviz_takes_the_energy(runs, kind):
    assert np.isfinite(np.asarray(az.bfmi(runs[kind])["energy"])).all()
    az.plot_energy(runs[kind], backend="none")


def test_variance_of_the_energy_is_that_of_a_gamma(runs):
    """On a Gaussian in d dimensions the energy is half a chi-squared of 2 d: Gamma(d, 1)."""
    energy = runs["density"]["sample_stats"]["energy"]
    d = runs["density"]["posterior"]["x"].shape[-1]
    squares = (energy - energy.mean()) ** 2
    both = xr.Dataset({"energy": energy, "squares": squares})
    ess = az.ess(xr.DataTree.from_dict({"posterior": both}))
    for name, expected in {"energy": d, "squares": d}.items():
        error = float(both[name].std()) / float(np.sqrt(ess[name]))
        assert error < 0.1 * d
        assert abs(float(both[name].mean()) - expected) < 4 * error


# Findings


def some_draws(*, shift=0.0, number=2000, diverging=0.0, lost=False, size=1.0):
    """Independent draws of four chains, with the faults that are asked for."""
    rng = np.random.default_rng(1)
    positions = rng.standard_normal((4, number, 2))
    positions[0] += shift
    flags = rng.uniform(size=(4, number)) < diverging
    if lost:
        positions[1, 10:], flags[1, 10:] = np.nan, True
    return Draws(positions, {"diverging": flags, "lp": np.full((4, number), size)}, None, True)


def judged(draws, *, kernel=lp.ghmc, doubts=(), notes=None, ends=None, source=None, **attributes):
    """Verdict on draws, without a run."""
    plan = SimpleNamespace(algorithm=SimpleNamespace(value=kernel))
    tuned = SimpleNamespace(
        plan=plan, doubts=doubts, notes=notes or {}, ends=ends or Ends(), source=source
    )
    known = {"exact": kernel.exact, "thinning": 1, "exact_doubtful": "", "gaussian_fit": ""}
    known |= attributes
    return verdict({"x": draws.positions}, tuned, draws, Converged(), known)


HOT = {"temperature_noisiest": 2.0, "temperature_error": 0.01}
FAULTS = {
    Finding.WARM_UP: ({}, {"doubts": ("Stuck in warm-up.",)}),
    Finding.NON_FINITE: ({"lost": True}, {}),
    Finding.INFLATED: ({}, HOT),
    Finding.DISAGREEMENT: ({"shift": 3.0}, {}),
    Finding.FEW_DRAWS: ({"number": 50}, {}),
    Finding.DIVERGENT: ({"diverging": 0.2}, {}),
    Finding.ROUNDING: ({}, {"exact_doubtful": "Use double precision."}),
}


@pytest.mark.parametrize("kernel", [lp.ghmc, lp.ubu], ids=repr)
@pytest.mark.parametrize("finding", list(Finding))
def test_trust_converged_and_advice_agree(finding, kernel):
    faults, report = FAULTS[finding]
    said = judged(some_draws(**faults), kernel=kernel, **report)
    assert said["converged"] == (finding in LIMITATIONS)
    assert said["advice"] and finding.value in said["trust"]
    assert ("Not converged: " in said["trust"]) != said["converged"]
    assert "Monte Carlo error" not in said["trust"]


@pytest.mark.parametrize("kernel", [lp.ghmc, lp.ubu], ids=repr)
def test_where_all_is_well_there_is_no_advice(kernel):
    said = judged(some_draws(), kernel=kernel)
    assert said["converged"] and said["advice"] == ""
    assert said["trust"].count("Converged") == 1 and "advice" not in said["trust"]
    assert ("Monte Carlo error is what is left" in said["trust"]) == kernel.exact


def test_trust_has_a_clause_for_every_finding():
    attributes = {"exact": True, "gaussian_fit": "not judged"}
    for number in range(len(Finding) + 1):
        for found in itertools.combinations(Finding, number):
            text = trust(lp.ghmc, attributes, found)
            assert {each for each in Finding if each.value in text} == set(found)
            assert ("Not converged" in text) == bool(set(found) - LIMITATIONS)


def test_the_gaussian_fit_is_read():
    read = functools.partial(judged, some_draws(), gaussian_fit_residual=0.4)
    good = read(gaussian_fit="good")
    assert "good: the step size reached 1.2 (residual force 0.40)" in good["trust"]
    poor = read(gaussian_fit="poor")
    assert "poor: the step size stayed below 1.2" in poor["trust"]
    # It costs efficiency, and is nothing against the draws.
    assert poor["converged"] and poor["advice"] == ""


def test_a_gradient_from_a_part_of_the_data_gets_cures_that_take_one():
    """A Metropolis test needs all the data, and BlackJAX's kernels do."""
    notes, ends = {"gaussian_fit": "poor"}, Ends((End.BEST, End.LOWER))
    apart = some_draws(shift=3.0)
    whole = judged(apart, kernel=lp.ubu, notes=notes, ends=ends)["advice"]
    part = judged(apart, kernel=lp.ubu, notes=notes, ends=ends, source="batches")["advice"]
    assert Cure.TEMPERING.value in whole and Cure.NUTS.value in whole
    assert Cure.REPLICA_EXCHANGE.value in part and "nuts" not in part
    lost = judged(some_draws(lost=True), kernel=lp.ubu, source="batches")["advice"]
    assert Cure.SMALLER_STEP.value in lost and Cure.ADJUSTED.value not in lost


# Cures


def printed(cure):
    """Values that a cure names, evaluated as they are printed."""
    names = {"langevin_ppl": lp, "blackjax": blackjax, "numpyro": numpyro}
    texts = re.findall(r"(?:langevin_ppl|blackjax)\.\w+(?:\((?:[^()]|\[.*?\])*\))?", cure.value)
    return [eval(text, names) for text in texts]


def sampled(target=None, **settings):
    idata = lp.sample(KEY, vector() if target is None else target, **{**SHORT, **settings})
    assert np.isfinite(list(idata["posterior"].data_vars.values())[0].values).all()


def use_kernels(cure):
    for kernel in printed(cure):
        sampled(kernel=kernel)


def use_smaller_step(cure):
    (tamed,) = printed(cure)
    sampled(kernel=tamed, step_size=0.01, num_warmup=0)
    sampled(rows(), kernel=tamed, step_size=1e-4, num_warmup=0)


def use_until(cure):
    (rule,) = printed(cure)
    sampled(kernel=lp.mala, step_size=0.1, num_warmup=0, until=rule)


def use_ordered(cure):
    def mixture(y):
        support = numpyro.distributions.constraints.ordered_vector
        centre = numpyro.sample("centre", dist.ImproperUniform(support, (), (2,)))
        numpyro.factor("prior", dist.Normal(0.0, 3.0).log_prob(centre).sum())
        parts = dist.Normal(centre, 1.0)
        shares = dist.Categorical(probs=jnp.array([0.5, 0.5]))
        with numpyro.plate("row", len(y)):
            numpyro.sample("y", dist.MixtureSameFamily(shares, parts), obs=y)

    target = lp.target(mixture, jnp.array([-1.0, 1.0, 2.0]))
    value = target.constrain(target.init_position(KEY))["centre"]
    assert value[0] < value[1]


def use_reparam(cure):
    reparam = numpyro.infer.reparam.LocScaleReparam(0)

    def centred():
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        with numpyro.plate("group", 3):
            numpyro.sample("effect", dist.Normal(0.0, scale))

    target = lp.target(numpyro.handlers.reparam(centred, {"effect": reparam}))
    position = target.init_position(KEY)
    assert "effect_decentered" in position and np.isfinite(target.logdensity_fn(position))


def use_double_precision(cure):
    (call,) = re.findall(r"jax\.config\.update\(.*?\)", cure.value)
    before = jax.config.jax_enable_x64
    try:
        exec(call, {"jax": jax})
        assert jnp.zeros(()).dtype == jnp.float64
    finally:
        jax.config.update("jax_enable_x64", before)


CALLS = {
    Cure.MORE_DRAWS: use_until,
    Cure.LONGER_WARMUP: lambda cure: sampled(kernel=lp.mala, num_samples=60, num_warmup=70),
    Cure.TEMPERING: lambda cure: sampled(kernel=printed(cure)[0]),
    Cure.REPLICA_EXCHANGE: lambda cure: sampled(rows(), kernel=printed(cure)[0]),
    Cure.ORDER: use_ordered,
    Cure.REPARAMETRISE: use_reparam,
    Cure.NUTS: use_kernels,
    Cure.SMALLER_STEP: use_smaller_step,
    Cure.ADJUSTED: use_kernels,
    Cure.LESS_NOISE: lambda cure: sampled(rows(), gradient=printed(cure)[0]),
    Cure.SMOOTHER: lambda cure: sampled(kernel=lp.mala, step_size=0.1, num_warmup=0),
    Cure.DOUBLE_PRECISION: use_double_precision,
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.slow
@pytest.mark.parametrize("cure", list(Cure))
def test_every_cure_can_be_taken(cure):
    CALLS[cure](cure)


# Names in messages


ROOTS = {"lp": "langevin_ppl", "az": "arviz", "langevin_ppl": "langevin_ppl"}
ROOTS |= {name: name for name in ("blackjax", "numpyro", "arviz", "jax", "optax", "diffrax")}
DOTTED = re.compile(rf"(?<![\w./'-])(?:{'|'.join(ROOTS)})(?:\.[A-Za-z_]\w*)+")


FILE_FORMATS = {"langevin_ppl.score"}
"""Strings that look like names."""


def docstrings(tree):
    """Nodes of strings that are statements of their own."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def names_in_messages():
    """Dotted names in the strings of the package, by the file that has them."""
    for path in sorted((ROOT / "langevin_ppl").rglob("*.py")):
        tree = ast.parse(path.read_text())
        skipped = docstrings(tree)
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                continue
            if id(node) in skipped or node.value.startswith(("r\n", "\n")):
                continue
            for name in set(DOTTED.findall(node.value)) - FILE_FORMATS:
                yield name, str(path.relative_to(ROOT))


def resolved(name):
    """Follow a dotted name through modules and attributes."""
    root, *parts = name.split(".")
    value = importlib.import_module(ROOTS[root])
    path = ROOTS[root]
    for part in parts:
        path = f"{path}.{part}"
        value = getattr(value, part) if hasattr(value, part) else importlib.import_module(path)
    return value


def test_every_name_in_a_message_exists():
    found = dict(names_in_messages())
    assert len(found) > 30 and "langevin_ppl.parallel_tempering" in found
    missing = []
    for name, path in found.items():
        try:
            resolved(name)
        except ImportError:
            missing.append((name, path))
    assert not missing


# Attributes


def documented():
    """Rows of the table of attributes: name, and in which runs it is present."""
    text = (ROOT / "docs/attributes.md").read_text().partition("## Statistics of the draws")[0]
    rows = re.findall(r"^\| `(\w+)` \|.*?\| ([^|]+?) \|$", text, re.M)
    assert len(rows) == len(dict(rows)) > 30
    return dict(rows)


PART = {"minibatch"}


def test_the_table_has_the_attributes_of_every_run(runs):
    table = documented()
    for kind, idata in runs.items():
        expected = {name for name, present in table.items() if present == "every run"}
        if kind in PART:
            expected |= {name for name, where in table.items() if where == "part of the data"}
        assert set(idata.attrs) == expected, kind


def test_the_table_has_the_attributes_of_laplace():
    idata = lp.laplace(KEY, vector())
    table = documented()
    own = {name for name, present in table.items() if present == "`laplace`"}
    assert own <= set(idata.attrs) <= set(table) and idata.attrs["advice"] == ""


def test_attributes_that_do_not_apply_can_be_written(runs, tmp_path):
    runs["blackjax"].to_netcdf(tmp_path / "run.nc", engine="h5netcdf")
    again = xr.open_datatree(tmp_path / "run.nc", engine="h5netcdf")
    assert set(again.attrs) == set(runs["blackjax"].attrs)
    assert np.isnan(again.attrs["gradient_growth"]) and again.attrs["advice"] != 0

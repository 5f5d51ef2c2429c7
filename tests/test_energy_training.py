"""Trainers of energies: against maximum likelihood by quadrature, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import langevin_ppl as lp
from langevin_ppl import energy
from langevin_ppl.distributions import EnergyBased

KEY = jax.random.key(3)
GRID = np.linspace(-6.0, 6.0, 4001)
METHODS = {
    "contrastive_divergence": energy.contrastive_divergence(5),
    "persistent": energy.persistent(5, num_walkers=200),
    "replay": energy.replay(10, buffer_size=200),
    "jarzynski": energy.jarzynski(num_walkers=400),
    "sliced_score_matching": energy.sliced_score_matching(),
    "denoising_score_matching": energy.denoising_score_matching(0.1),
    "noise_contrastive": energy.noise_contrastive(),
}


def well(x, tilt, rate):
    return rate * (x**2 - 1.0) ** 2 - tilt * x


def model():
    tilt = numpyro.param("tilt", 0.0)
    rate = numpyro.param("rate", 0.5, constraint=dist.constraints.positive)
    fn = functools.partial(well, tilt=tilt, rate=rate)
    numpyro.sample("x", EnergyBased(fn, base=dist.Normal(0.0, 1.5)))


def log_density(tilt, rate):
    base = -0.5 * (GRID / 1.5) ** 2 - np.log(1.5 * np.sqrt(2 * np.pi))
    return base - well(GRID, tilt, rate)


def log_z(tilt, rate):
    return np.log(np.trapezoid(np.exp(log_density(tilt, rate)), GRID))


@functools.cache
def data():
    """Draws of a known member of the family, by inversion."""
    density = np.exp(log_density(0.4, 0.8))
    cumulative = np.cumsum(density) / density.sum()
    uniform = np.random.default_rng(0).uniform(size=800)
    return np.interp(uniform, cumulative, GRID).astype(np.float32)


@functools.cache
def most_likely():
    """Maximum-likelihood parameters by Newton's method on the quadrature, and their covariance."""
    features = np.stack([GRID, -((GRID**2 - 1.0) ** 2)])
    x = data()
    observed = np.array([x.mean(), -((x**2 - 1.0) ** 2).mean()])
    theta = np.array([0.0, 0.5])
    for _ in range(50):
        weights = np.exp(log_density(*theta))
        weights /= weights.sum()
        mean = features @ weights
        fisher = (features - mean[:, None]) * weights @ (features - mean[:, None]).T
        theta = theta + np.linalg.solve(fisher, observed - mean)
    return theta, np.linalg.inv(fisher) / len(x)


@functools.cache
def fitted(name):
    moves = {"step_size": 0.02} if hasattr(METHODS[name], "advance") else {}
    return energy.fit(
        KEY,
        model,
        data(),
        method=METHODS[name],
        optimizer=0.02,
        num_steps=600,
        progress=False,
        **moves,
    )


def learned(found):
    return np.array([float(found.parameters[name]) for name in ("tilt", "rate")])


def test_the_exact_trainer_finds_the_maximum_of_the_likelihood():
    """Within a part of the statistical error: what is left is the noise of 400 walkers."""
    expected, covariance = most_likely()
    found = fitted("jarzynski")
    assert np.all(np.abs(learned(found) - expected) < 1.5 * np.sqrt(np.diag(covariance)))
    value, error, _ = found.normalizer
    assert abs(value - log_z(*learned(found))) < 4 * error
    assert 0.001 < error < 0.2
    assert found.bias == "" and found.failed_at is None
    np.testing.assert_allclose(
        found.reports["log_normalizer"][-1], value, atol=0.05
    )  # the last update of the parameters is small


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in METHODS if n != "jarzynski"])
def test_other_trainers_are_near_and_say_their_bias(name):
    expected, covariance = most_likely()
    found = fitted(name)
    errors = np.abs(learned(found) - expected) / np.sqrt(np.diag(covariance))
    assert np.all(errors < (12.0 if name == "contrastive_divergence" else 6.0)), errors
    assert found.bias and found.method == name
    assert np.all(np.isfinite(found.losses)) and len(found.losses) == 600


def test_weighted_walkers_are_of_the_learned_law():
    found = fitted("jarzynski")
    weights = np.exp(found.log_weights - found.log_weights.max())
    weights /= weights.sum()
    density = np.exp(log_density(*learned(found)))
    density /= density.sum()
    x, errors = found.walkers["x"], 1.0 / np.sqrt(found.normalizer.ess)
    for power in (1, 2):
        mean, expected = np.sum(weights * x**power), np.sum(density * GRID**power)
        spread = np.sqrt(np.sum(density * GRID ** (2 * power)) - expected**2)
        assert abs(mean - expected) < 5 * spread * errors


def test_runs_are_those_of_their_key_and_go_on_where_they_were_killed(tmp_path):
    arguments = {
        "method": METHODS["persistent"],
        "optimizer": 0.02,
        "step_size": 0.05,
        "num_steps": 60,
        "progress": False,
    }
    once = energy.fit(KEY, model, data(), **arguments)
    again = energy.fit(KEY, model, data(), checkpoint=tmp_path / "run", every=1e-3, **arguments)
    other = energy.fit(jax.random.key(4), model, data(), **arguments)
    assert np.array_equal(once.losses, again.losses)
    assert not np.array_equal(once.losses, other.losses)
    resumed = energy.fit(KEY, model, data(), checkpoint=tmp_path / "run", **arguments)
    assert np.array_equal(once.walkers["x"], resumed.walkers["x"])
    with pytest.raises(lp.CheckpointError, match="differs in"):
        energy.fit(KEY, model, data()[:500], checkpoint=tmp_path / "run", **arguments)


@pytest.mark.slow
def test_an_exact_kernel_is_weighed_by_the_change_of_the_density():
    found = energy.fit(
        KEY,
        model,
        data(),
        method=energy.jarzynski(num_walkers=300),
        kernel=lp.mala,
        step_size=0.3,
        optimizer=0.02,
        num_steps=300,
        progress=False,
    )
    value, error, _ = found.normalizer
    assert abs(value - log_z(*learned(found))) < 4 * error
    assert 0.5 < found.reports["acceptance_rate"][-1] < 1.0


def test_a_factor_is_learned_like_an_energy():
    def by_factor():
        tilt = numpyro.param("tilt", 0.0)
        rate = numpyro.param("rate", 0.5, constraint=dist.constraints.positive)
        x = numpyro.sample("x", dist.Normal(0.0, 1.5))
        numpyro.factor("energy", -well(x, tilt, rate))

    arguments = {
        "method": energy.jarzynski(num_walkers=100),
        "step_size": 0.02,
        "num_steps": 20,
        "optimizer": 0.02,
        "progress": False,
    }
    one, other = (energy.fit(KEY, m, data(), **arguments) for m in (model, by_factor))
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(one.normalizer.value, other.normalizer.value, atol=1e-3)


def test_exact_draws_and_their_normaliser_start_the_exact_trainer():
    def gaussian():
        centre = numpyro.param("centre", jnp.zeros(2))
        numpyro.sample("x", EnergyBased(lambda x: 0.5 * jnp.sum((x - centre) ** 2), (2,)))

    x = jax.random.normal(KEY, (500, 2)) + jnp.array([1.0, -1.0])
    found = energy.fit(
        KEY,
        gaussian,
        x,
        method=energy.jarzynski(num_walkers=500),
        walkers=jax.random.normal(jax.random.key(8), (500, 2)),
        log_normalizer=float(np.log(2 * np.pi)),
        step_size=0.1,
        optimizer=0.03,
        num_steps=300,
        progress=False,
    )
    np.testing.assert_allclose(found.parameters["centre"], x.mean(axis=0), atol=0.15)
    assert abs(found.normalizer.value - np.log(2 * np.pi)) < 4 * found.normalizer.standard_error


def test_conditions_belong_to_data():
    """A regression: the coefficient is that of least squares, which is also the likelihood's."""

    def conditional(c):
        slope = numpyro.param("slope", 0.0)
        numpyro.sample("x", EnergyBased(lambda x: 0.5 * (x - slope * c) ** 2))

    rng = np.random.default_rng(1)
    c = rng.normal(size=600).astype(np.float32)
    x = (2.0 * c + rng.normal(size=600)).astype(np.float32)
    found = energy.fit(
        KEY,
        conditional,
        x,
        condition=c,
        method=energy.persistent(5),
        step_size=0.3,
        optimizer=0.05,
        num_steps=300,
        progress=False,
    )
    assert abs(float(found.parameters["slope"]) - np.sum(c * x) / np.sum(c**2)) < 0.2
    with pytest.raises(ValueError, match="expected 600 rows"):
        energy.fit(KEY, conditional, x, condition=c[:3], step_size=0.3, progress=False)
    with pytest.raises(ValueError, match=r"own log Z"):
        energy.fit(
            KEY,
            conditional,
            x,
            condition=c,
            method=energy.jarzynski(),
            step_size=0.3,
            progress=False,
        )


def test_observed_sites_are_terms_of_the_likelihood():
    """Walkers do not see the label: the centre is that of the data, the slope that of labels."""

    def joint(label):
        centre = numpyro.param("centre", 0.0)
        slope = numpyro.param("slope", 0.0)
        x = numpyro.sample("x", EnergyBased(lambda x: 0.5 * (x - centre) ** 2))
        numpyro.sample("label", dist.Bernoulli(logits=slope * x), obs=label)

    rng = np.random.default_rng(2)
    x = rng.normal(0.5, 1.0, size=2000).astype(np.float32)
    label = (rng.uniform(size=2000) < 1 / (1 + np.exp(-2.0 * x))).astype(np.int32)
    found = energy.fit(
        KEY,
        joint,
        x,
        condition=label,
        method=energy.persistent(5, num_walkers=500),
        step_size=0.3,
        optimizer=0.03,
        batch_size=500,
        num_steps=400,
        progress=False,
    )
    assert abs(float(found.parameters["centre"]) - x.mean()) < 0.15
    assert abs(float(found.parameters["slope"]) - 2.0) < 0.3


@pytest.mark.slow
def test_penalties_move_parameters():
    plain, magnitude, gradient, spectral = (
        energy.fit(
            KEY,
            network_model,
            data()[:64, None],
            step_size=0.05,
            num_steps=40,
            optimizer=0.01,
            progress=False,
            **penalty,
        )
        for penalty in (
            {},
            {"energy_magnitude": 1.0},
            {"gradient_penalty": 1.0},
            {"spectral_norm": 1.0},
        )
    )

    def size(found):
        values = energy.energies(found, data()[:64, None])
        matrices = found.parameters["first"], found.parameters["second"]
        steep = jax.vmap(jax.grad(found.target.logdensity_fn))(
            {"x": jnp.asarray(data()[:64, None])}
        )
        norms = sum(np.linalg.norm(m, 2) ** 2 for m in matrices)
        return np.mean(values**2), norms, float(jnp.mean(steep["x"] ** 2))

    assert size(magnitude)[0] < size(plain)[0]
    assert size(spectral)[1] < size(plain)[1]
    assert size(gradient)[2] < size(plain)[2]


def network_model():
    first = numpyro.param("first", lambda key: jax.random.normal(key, (8, 1)))
    second = numpyro.param("second", lambda key: jax.random.normal(key, (1, 8)))
    numpyro.sample(
        "x", EnergyBased(lambda x: jnp.sum(second @ jnp.tanh(first @ x)) + 0.1 * x[0] ** 2, (1,))
    )


def test_an_energy_without_a_lower_bound_is_flagged():
    def unbounded():
        rate = numpyro.param("rate", 1.0)
        numpyro.sample("x", EnergyBased(lambda x: -rate * x**4))

    with pytest.warns(lp.DivergenceWarning, match=r"at step \d+.*langevin_ppl\.tula"):
        found = energy.fit(
            KEY, unbounded, data(), step_size=0.1, num_steps=200, optimizer=1e-6, progress=False
        )
    assert found.failed_at is not None and np.isfinite(found.parameters["rate"])

    def slowly():
        rate = numpyro.param("rate", 1.0)
        numpyro.sample("x", EnergyBased(lambda x: -rate * x**2))

    with pytest.warns(lp.DivergenceWarning, match="standard deviations of the data"):
        found = energy.fit(
            KEY, slowly, data(), step_size=0.1, num_steps=50, optimizer=1e-6, progress=False
        )
    assert found.reports["walker_spread"][-1] > 100


def test_walkers_go_on_as_chains():
    idata = energy.walk(KEY, fitted("jarzynski"), lp.mala, num_samples=200, num_warmup=100)
    assert idata["posterior"]["x"].shape == (4, 200)
    assert idata["training"]["ess"].shape == (600,)
    assert {"max_rhat", "min_ess", "training_bias"} <= set(idata.attrs)
    with pytest.raises(ValueError, match="no walkers"):
        energy.walk(KEY, fitted("jarzynski")._replace(walkers=None))


def no_base():
    rate = numpyro.param("rate", 1.0)
    numpyro.sample("x", EnergyBased(lambda x: rate * x**2))


def nothing_to_train():
    numpyro.sample("x", EnergyBased(lambda x: x**2))


def not_a_number():
    rate = numpyro.param("rate", 1.0)
    numpyro.sample("x", EnergyBased(lambda x: rate * jnp.log(x)))


def positive():
    rate = numpyro.param("rate", 1.0)
    numpyro.sample("x", EnergyBased(lambda x: rate * x, base=dist.Exponential(1.0)))


def whole_numbers():
    count = numpyro.param("count", 2)
    numpyro.sample("x", EnergyBased(lambda x: count * x**2))


MOVES = {"step_size": 0.1}


@pytest.mark.parametrize(
    ("match", "which", "arguments"),
    [
        ("no parameters to train", nothing_to_train, MOVES),
        ("floating-point", whole_numbers, MOVES),
        ("nan at row .* before training", not_a_number, MOVES),
        ("outside of its support", positive, MOVES),
        ("has no base measure", no_base, {**MOVES, "method": energy.jarzynski()}),
        ("missing is step_size", no_base, {}),
        ("unknown is speed", no_base, {**MOVES, "speed": 1.0}),
        ("kernel of langevin_ppl", no_base, {**MOVES, "kernel": "ula"}),
        ("no known density", model, {**MOVES, "method": energy.jarzynski(), "kernel": lp.baoab}),
        ("temperature", model, {**MOVES, "method": energy.jarzynski(), "temperature": 0.5}),
        ("buffer_size", no_base, {**MOVES, "method": energy.replay(buffer_size=10)}),
        ("batch_size", no_base, {**MOVES, "batch_size": 10_000}),
        ("num_steps", no_base, {**MOVES, "num_steps": 0}),
        ("has no walkers", no_base, {**MOVES, "method": energy.sliced_score_matching()}),
        ("method: expected one", no_base, {**MOVES, "method": "pcd"}),
        ("too many positional", no_base, {**MOVES, "condition": np.zeros(3)}),
        (
            "begins at the data",
            no_base,
            {**MOVES, "walkers": np.zeros(3), "method": energy.contrastive_divergence()},
        ),
        ("log Z as", model, {**MOVES, "walkers": np.zeros(1000), "method": energy.jarzynski()}),
        ("log_normalizer", no_base, {**MOVES, "log_normalizer": 0.0}),
        ("energy_magnitude", no_base, {**MOVES, "energy_magnitude": -1.0}),
        ("optimizer", no_base, {**MOVES, "optimizer": "adam"}),
    ],
)
def test_arguments_that_do_not_fit_are_refused(match, which, arguments):
    with pytest.raises((TypeError, ValueError), match=match):
        energy.fit(KEY, which, data(), progress=False, **arguments)


def test_a_density_is_no_model():
    target = lp.density(lambda x: -0.5 * x**2, jnp.asarray(0.0))
    with pytest.raises(ValueError, match="NumPyro model or its target, got DensityTarget"):
        energy.fit(KEY, target, data(), progress=False, **MOVES)


@pytest.mark.slow
def test_in_double_precision():
    with jax.enable_x64():
        method = energy.jarzynski(num_walkers=50, resample_below=1.0)
        found = energy.fit(
            KEY, model, data(), method=method, step_size=0.01, num_steps=5, progress=False
        )
    assert found.losses.dtype == np.float64 and np.isfinite(found.losses).all()


@pytest.mark.parametrize(
    ("match", "rows"),
    [
        ("NaN or infinity in row 1", np.array([0.0, np.nan])),
        (r"shape \(datum\)", np.zeros((3, 2))),
        ("latent sites x", {"y": np.zeros(3)}),
        ("numbers", np.array(["a"])),
    ],
)
def test_data_that_do_not_fit_are_refused(match, rows):
    with pytest.raises((TypeError, ValueError), match=match):
        energy.fit(KEY, no_base, rows, progress=False, **MOVES)


@pytest.mark.parametrize(
    "make",
    [
        lambda: energy.contrastive_divergence(0),
        lambda: energy.persistent(0),
        lambda: energy.persistent(num_walkers=0),
        lambda: energy.replay(reinitialize=1.5),
        lambda: energy.jarzynski(num_walkers=0),
        lambda: energy.jarzynski(resample_below=-0.1),
        lambda: energy.sliced_score_matching(0),
        lambda: energy.denoising_score_matching(0.0),
        lambda: energy.noise_contrastive(0),
    ],
    ids=range(9),
)
def test_methods_refuse_numbers_that_make_no_sense(make):
    with pytest.raises(ValueError, match="expected"):
        make()

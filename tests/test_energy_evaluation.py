"""What an energy is worth: normalisers against quadrature, likelihoods, weights and scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats
from scipy.special import logsumexp

import langevin_ppl as lp
from langevin_ppl import energy
from langevin_ppl.distributions import EnergyBased
from langevin_ppl.energy.annealed import Annealed, bridge
from langevin_ppl.energy.weights import effective_share, log_mean_exp, resampled
from langevin_ppl.kernels.overdamped import log_weight

KEY = jax.random.key(11)
GRID = np.linspace(-8.0, 8.0, 1601)
LEVELS = 60
"""One number for most tests, which then share compiled programs."""


def log_quadrature(*axes, log_density):
    """Logarithm of an integral by the trapezoidal rule over a grid."""
    values = np.exp(log_density(*np.meshgrid(*axes, indexing="ij")))
    for axis in reversed(axes):
        values = np.trapezoid(values, axis)
    return float(np.log(values))


def well(x):
    return (x**2 - 1.0) ** 2 - 0.5 * x


def line(edge=100.0):
    """A double well, with a wall at an edge."""

    def walled(x):
        return jnp.where(x > edge, jnp.inf, well(x))

    numpyro.sample("x", EnergyBased(walled, base=dist.Normal(0.5, 1.0)))


def log_line(x):
    return stats.norm(0.5, 1.0).logpdf(x) - well(x)


def saddle(x, y):
    return (x * y - 1.0) ** 2 + 0.5 * x + 0.3 * y**2


def plane():
    fn = EnergyBased(lambda v: saddle(v[0], v[1]), (2,), base=dist.Normal(0.0, 1.5))
    numpyro.sample("v", fn)


def log_plane(x, y):
    law = stats.norm(0.0, 1.5)
    return law.logpdf(x) + law.logpdf(y) - saddle(x, y)


def positive():
    fn = EnergyBased(lambda x: 0.5 * (x - 2.0) ** 2, base=dist.Exponential(1.5))
    numpyro.sample("x", fn)


def log_positive(x):
    return stats.expon(scale=1 / 1.5).logpdf(x) - 0.5 * (x - 2.0) ** 2


CENTRES = np.array([-1.0, 0.0, 2.0], np.float32)


def quartic(x, centre):
    return 0.5 * (x - centre) ** 4


def rows():
    base = dist.Normal(0.0, 1.0)
    fn = EnergyBased(quartic, condition=jnp.asarray(CENTRES), batch_shape=(3,), base=base)
    with numpyro.plate("row", 3):
        x = numpyro.sample("x", fn)
        # What is observed is normalised given the latents, and no part of the energy.
        numpyro.sample("y", dist.Normal(x, 1.0), obs=3.0)
    numpyro.factor("moved", -0.25)


LINE = log_quadrature(GRID, log_density=log_line)
PLANE = log_quadrature(GRID[::4], GRID[::4], log_density=log_plane)
POSITIVE = log_quadrature(np.linspace(0.0, 12.0, 4001), log_density=log_positive)
ROWS = -0.25 + sum(
    log_quadrature(GRID, log_density=lambda x, c=c: stats.norm.logpdf(x) - quartic(x, c))
    for c in CENTRES
)

WAYS = {
    "mala": {"num_levels": LEVELS},
    "fixed": {"num_levels": LEVELS, "step_size": 0.3},
    "ula": {"num_levels": LEVELS, "kernel": lp.ula, "step_size": 0.02, "steps_per_level": 2},
    "smc": {"method": "smc", "num_walkers": 500, "steps_per_level": 2},
}


@functools.cache
def target_of(model):
    return walled(100.0) if model is line else lp.target(model)


def walled(edge):
    """The same compiled programs for all edges."""
    return lp.target(line, jnp.asarray(edge))


def log_z(target, way, key=KEY, **options):
    return energy.log_normalizer(key, target, **{**WAYS[way], **options})


@pytest.mark.parametrize(
    ("model", "exact", "way"),
    [
        *((line, LINE, way) for way in ("mala", "ula", "smc")),
        *((plane, PLANE, way) for way in ("mala", "ula", "smc")),
        (positive, POSITIVE, "fixed"),
        (rows, ROWS, "fixed"),
    ],
)
def test_the_normaliser_is_that_of_quadrature(model, exact, way):
    """Four standard errors, which a factor of two in Z (0.69) would exceed."""
    found = log_z(target_of(model), way)
    assert abs(found.value - exact) < 4 * found.standard_error
    assert 0.0 < found.standard_error < 0.1
    assert abs(exact) > 6 * found.standard_error  # so that 0 would not pass
    walkers = 500 * 8 if way == "smc" else 1000
    assert 0 < found.ess <= walkers


@pytest.mark.parametrize("way", ["mala", "ula", "smc"])
def test_the_standard_error_is_that_of_repeated_runs(way):
    """Ten runs know their spread to a quarter of it; their mean has no bias to be seen."""
    found = [log_z(target_of(line), way, key) for key in jax.random.split(KEY, 10)]
    values = np.array([one.value for one in found])
    errors = np.array([one.standard_error for one in found])
    typical = np.sqrt(np.mean(errors**2))
    assert 0.5 < values.std(ddof=1) / typical < 2.0
    assert abs(values.mean() - LINE) < 4 * typical / np.sqrt(10)


def test_one_repetition_has_no_standard_error():
    found = log_z(target_of(line), "smc", repeats=1)
    assert np.isnan(found.standard_error) and abs(found.value - LINE) < 0.5


def test_walkers_without_density_count_as_nothing():
    """A wall with more than half of the mass behind it."""
    exact = log_quadrature(np.linspace(-8.0, 0.5, 1601), log_density=log_line)
    found = log_z(walled(0.5), "mala")
    assert abs(found.value - exact) < 4 * found.standard_error
    assert found.standard_error < 0.1 and LINE - exact > np.log(2.0)
    with pytest.raises(ValueError, match="weights of the walkers are not finite"):
        log_z(walled(0.5), "smc")


def test_walkers_that_explode_are_told():
    """Some of them with a step that is too large for the edges, and all with one for nothing."""
    with pytest.warns(lp.DivergenceWarning, match="of the particles became non-finite"):
        found = log_z(target_of(line), "ula", step_size=0.2)
    assert np.isfinite(found.value)
    with pytest.raises(ValueError, match="weights of the walkers are not finite"):
        log_z(target_of(line), "ula", step_size=1e6)


def test_the_bridge_leads_from_the_one_density_to_the_other():
    between = bridge(lambda x: -x, lambda x: x**2, 0.25)
    assert float(between(2.0)) == pytest.approx(0.75 * -2.0 + 0.25 * 4.0)


def test_the_error_of_weights_is_that_of_their_mean():
    logs = np.random.default_rng(0).normal(size=400).astype(np.float32)
    found = Annealed({}, jnp.asarray(logs + 100.0), jnp.zeros(1)).normalizer
    weights = np.exp(logs.astype(float))
    assert found.value == pytest.approx(100.0 + np.log(weights.mean()), rel=1e-6)
    error = weights.std() / weights.mean() / np.sqrt(400)
    assert found.standard_error == pytest.approx(error, rel=1e-3)
    assert found.ess == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), rel=1e-3)


def test_energies_are_in_the_coordinates_of_the_data():
    """On the logarithm the density of a datum would have its value as a factor."""
    x = np.array([0.3, 1.0, 4.0])
    np.testing.assert_allclose(energy.energies(target_of(positive), x), -log_positive(x), rtol=1e-5)
    v = np.random.default_rng(0).normal(size=(5, 2))
    np.testing.assert_allclose(
        energy.energies(target_of(plane), {"v": v}), -log_plane(v[:, 0], v[:, 1]), rtol=1e-5
    )
    batch = np.random.default_rng(1).normal(size=(4, 3))
    expected = quartic(batch, CENTRES) - stats.norm.logpdf(batch)
    np.testing.assert_allclose(
        energy.energies(target_of(rows), batch), expected.sum(axis=1) + 0.25, rtol=1e-5
    )


def gaussian():
    fn = EnergyBased(lambda x: 0.375 * x**2 - x, base=dist.Normal(0.0, 2.0))
    numpyro.sample("x", fn)


def exponential():
    numpyro.sample("x", EnergyBased(lambda x: x, base=dist.Exponential(1.0)))


def log_normal():
    fn = EnergyBased(
        lambda x: 0.5 * jnp.log(x) ** 2 + jnp.log(x), support=dist.constraints.positive
    )
    numpyro.sample("x", fn)


@pytest.mark.parametrize(
    ("model", "log_z", "law"),
    [
        # N(0, 2) times exp(x - 3/8 x^2) has the precision 1, the mean 1, and Z of exp(1/2) / 2.
        (gaussian, 0.5 - np.log(2.0), stats.norm(1.0, 1.0)),
        (exponential, -np.log(2.0), stats.expon(scale=0.5)),
        (log_normal, 0.5 * np.log(2 * np.pi), stats.lognorm(1.0)),
    ],
)
def test_the_likelihood_is_that_of_the_normalised_law(model, log_z, law):
    x = law.rvs(size=50, random_state=0)
    found = energy.held_out(lp.target(model), x, energy.Normalizer(log_z, 0.05, 1.0))
    expected = law.logpdf(x)
    np.testing.assert_allclose(found.pointwise, expected, rtol=1e-4, atol=1e-5)
    assert found.log_likelihood == pytest.approx(expected.mean(), rel=1e-4)
    error = np.hypot(expected.std(ddof=1) / np.sqrt(50), 0.05)
    assert found.standard_error == pytest.approx(error, rel=1e-4)


def test_the_error_of_one_datum_is_not_known():
    known = energy.Normalizer(0.5 - np.log(2.0), 0.0, 1.0)
    found = energy.held_out(lp.target(gaussian), np.array([1.0]), known)
    assert np.isnan(found.standard_error)
    assert found.log_likelihood == pytest.approx(-0.5 * np.log(2 * np.pi), rel=1e-5)


def tilted():
    tilt = numpyro.param("tilt", 0.5)
    numpyro.sample("x", EnergyBased(lambda x: -tilt * x, base=dist.Normal(0.0, 1.0)))


def test_what_was_fitted_stands_for_its_target():
    """The tilt of a Gaussian moves its mean, and its normaliser is exp(tilt^2 / 2)."""
    x = 1.0 + np.random.default_rng(0).normal(size=20)
    fitted = energy.fit(
        KEY,
        tilted,
        x,
        method=energy.noise_contrastive(),
        optimizer=0.1,
        num_steps=5,
        progress=False,
    )
    tilt = float(fitted.parameters["tilt"])
    assert tilt != 0.5
    found = energy.log_normalizer(KEY, fitted, **WAYS["fixed"])
    assert abs(found.value - 0.5 * tilt**2) < 4 * found.standard_error < 0.2
    expected = -stats.norm.logpdf(x) - tilt * x
    np.testing.assert_allclose(energy.energies(fitted, x), expected, rtol=1e-4)
    held = energy.held_out(fitted, x, energy.Normalizer(0.5 * tilt**2, 0.0, 1.0))
    np.testing.assert_allclose(held.pointwise, stats.norm(tilt, 1.0).logpdf(x), rtol=1e-4)
    own = energy.held_out(fitted, x, fitted.normalizer)
    moved = 0.5 * tilt**2 - fitted.normalizer.value
    assert own.log_likelihood == pytest.approx(held.log_likelihood + moved, rel=1e-4)


def test_auroc_is_the_share_of_pairs_in_order_and_half_of_the_ties():
    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 6, 40), rng.integers(2, 9, 30)
    pairs = [(b > a) + 0.5 * (b == a) for a in inside for b in outside]
    assert sum(a == b for a in inside for b in outside) > 50
    assert energy.auroc(inside, outside) == pytest.approx(np.mean(pairs))
    assert energy.auroc(outside, inside) == pytest.approx(1 - np.mean(pairs))
    assert energy.auroc([1.0], [1.0]) == 0.5 and energy.auroc([0.0], [1.0]) == 1.0


LOGS = np.random.default_rng(3).normal(size=1000).astype(np.float32)
WALKERS = {"x": jnp.asarray(LOGS + np.random.default_rng(4).normal(size=1000), jnp.float32)}


def test_drawn_walkers_keep_weighted_means():
    """Weights rise with the walkers, so that their plain mean is off by many errors."""
    weights = np.exp(LOGS.astype(float))
    values = np.asarray(WALKERS["x"], float)
    expected = np.average(values, weights=weights)
    keys = jax.random.split(KEY, 200)
    drawn = jax.vmap(lambda key: resampled(key, jnp.asarray(LOGS), WALKERS, 0.9)[0]["x"])(keys)
    means = np.asarray(drawn, float).mean(axis=1)
    error = means.std(ddof=1) / np.sqrt(200)
    assert abs(means.mean() - expected) < 4 * error
    assert abs(values.mean() - expected) > 100 * error
    # Systematic draws are no noisier than independent ones.
    spread = np.sqrt(np.average((values - expected) ** 2, weights=weights) / 1000)
    assert means.std() < 1.2 * spread


def test_what_is_drawn_folds_the_mean_of_the_weights():
    _, logs, log_mean, variance, drawn = resampled(KEY, jnp.asarray(LOGS) - 50.0, WALKERS, 0.9)
    weights = np.exp(LOGS.astype(float))
    assert bool(drawn) and not np.any(logs)
    assert float(log_mean) == pytest.approx(np.log(weights.mean()) - 50.0, rel=1e-5)
    relative = weights.var() / weights.mean() ** 2 / 1000
    assert float(variance) == pytest.approx(relative, rel=1e-3)


def test_even_weights_are_left_alone():
    logs = jnp.asarray(LOGS)
    walkers, same, log_mean, variance, drawn = resampled(KEY, logs, WALKERS, 0.01)
    assert not drawn and float(log_mean) == 0.0 and float(variance) == 0.0
    np.testing.assert_array_equal(same, logs)
    np.testing.assert_array_equal(walkers["x"], WALKERS["x"])


def test_the_effective_share_is_one_over_one_plus_the_squared_variation():
    weights = np.exp(LOGS.astype(float))
    share = 1.0 / (1.0 + weights.var() / weights.mean() ** 2)
    for shift in (0.0, -500.0, 500.0):
        assert float(effective_share(jnp.asarray(LOGS + shift))) == pytest.approx(share, rel=1e-3)
    assert float(effective_share(jnp.zeros(7))) == pytest.approx(1.0)
    few = jnp.array([0.0, 0.0, -jnp.inf, -jnp.inf])
    assert float(effective_share(few)) == pytest.approx(0.5)
    assert float(log_mean_exp(few)) == pytest.approx(np.log(0.5))
    assert float(log_mean_exp(jnp.asarray(LOGS))) == pytest.approx(
        logsumexp(LOGS) - np.log(1000), rel=1e-5
    )


SD = np.array([1.0, 0.5])
SAME = {"mean": np.zeros(2), "sd": SD, "ratio": 1.0}
OTHER = {"mean": np.array([0.2, 0.1]), "sd": np.array([0.9, 0.55]), "ratio": 1.7}
NUMBER = 40_000


def gauss(law):
    """Log density of a Gaussian times a ratio of normalisers."""
    return lambda x: (
        jnp.sum(dist.Normal(law["mean"], law["sd"]).log_prob(x)) + jnp.log(law["ratio"])
    )


@functools.partial(jax.jit, static_argnums=0)
def stepped(kernel, law, parameters):
    """Ends of one step from exact draws of `SAME`, log weights, and changes of the density."""
    own = kernel.prepare(parameters)
    algorithm = kernel(gauss(law), **own)

    def one(key):
        key_draw, key_step = jax.random.split(key)
        state = kernel.init(SD * jax.random.normal(key_draw, (2,)), gauss(SAME))
        new, _ = algorithm.step(key_step, state)
        change = new.logdensity - state.logdensity
        return new.position, log_weight(kernel, state, new, own), change

    return jax.vmap(one)(jax.random.split(KEY, NUMBER))


def z_scores(values, expected):
    values = np.asarray(values, float)
    return (values.mean(axis=0) - expected) / (values.std(axis=0) / np.sqrt(len(values)))


STEPS = [
    (lp.ula, {"step_size": 0.2, "inverse_mass_matrix": 1.0}),
    (lp.ula, {"step_size": 0.5, "inverse_mass_matrix": SD**2}),
    (lp.tula, {"step_size": 0.5, "inverse_mass_matrix": SD**2}),
    (lp.mtula, {"step_size": 0.35, "inverse_mass_matrix": SD**2}),
    (lp.tusla, {"step_size": 0.5, "inverse_mass_matrix": SD**2, "strength": 0.1}),
]


@pytest.mark.parametrize(("kernel", "parameters"), STEPS)
def test_weights_make_averages_over_steps_exact(kernel, parameters):
    """Without weights the variance, and without the law of steps the mean weight, are far off."""
    position, logs, change = (np.asarray(v, float) for v in stepped(kernel, SAME, parameters))
    weights = np.exp(logs)
    assert abs(z_scores(weights, 1.0)) < 4
    assert np.all(np.abs(z_scores(weights[:, None] * position**2, SD**2)) < 4)
    assert weights.std() < 2.0  # so that errors are those of a sum of many
    assert np.max(np.abs(z_scores(position**2, SD**2))) > 20
    assert abs(z_scores(np.exp(change), 1.0)) > 5


@pytest.mark.parametrize(("kernel", "parameters"), STEPS)
def test_weights_follow_a_density_that_changes(kernel, parameters):
    """The mean weight is the ratio of normalisers, and weighted averages are those of the new."""
    position, logs, _ = (np.asarray(v, float) for v in stepped(kernel, OTHER, parameters))
    weights = np.exp(logs)
    ratio, mean, sd = OTHER["ratio"], OTHER["mean"], OTHER["sd"]
    assert abs(z_scores(weights, ratio)) < 4
    assert abs(z_scores(weights, 1.0)) > 30
    assert np.all(np.abs(z_scores(weights[:, None] * position, ratio * mean)) < 4)
    squares = ratio * (mean**2 + sd**2)
    assert np.all(np.abs(z_scores(weights[:, None] * position**2, squares)) < 4)


def no_base():
    numpyro.sample("x", EnergyBased(well))


def scaled():
    with numpyro.handlers.scale(scale=0.5):
        line()


def two_sites():
    numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("b", dist.Normal(0.0, 1.0))


def discrete():
    k = numpyro.sample("k", dist.Bernoulli(0.5))
    numpyro.sample("x", dist.Normal(k, 1.0))


def of_line(**options):
    return energy.log_normalizer(KEY, target_of(line), **options)


KNOWN = energy.Normalizer(0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("error", "match", "make"),
    [
        (ValueError, "site 'x' has no base measure",
         lambda: energy.log_normalizer(KEY, lp.target(no_base))),
        (ValueError, "the site 'x' is scaled",
         lambda: energy.log_normalizer(KEY, lp.target(scaled))),
        (ValueError, "the site 'x' is scaled",
         lambda: energy.energies(lp.target(scaled), np.zeros(3))),
        (ValueError, "discrete latent sites",
         lambda: energy.log_normalizer(KEY, lp.target(discrete))),
        (ValueError, "expected a NumPyro model or its target",
         lambda: energy.log_normalizer(KEY, lp.density(jnp.sum, jnp.zeros(2)))),
        (ValueError, "expected a NumPyro model or its target", lambda: energy.energies(3, [0.0])),
        (TypeError, "rng_key", lambda: energy.log_normalizer(0, target_of(line))),
        (ValueError, "'ais' or 'smc'", lambda: of_line(method="bridge")),
        (TypeError, "step_size=", lambda: of_line(kernel=lp.ula)),
        (ValueError, "Metropolis test", lambda: of_line(method="smc", kernel=lp.ula)),
        (ValueError, "Metropolis test",
         lambda: of_line(method="smc", kernel=lp.tula, step_size=0.1)),
        (ValueError, "overdamped kernel", lambda: of_line(kernel=lp.leimkuhler_matthews)),
        (ValueError, "temperature 1", lambda: of_line(temperature=2.0)),
        (TypeError, "unknown is friction", lambda: of_line(friction=2.0)),
        (TypeError, "expected a kernel", lambda: of_line(kernel="mala")),
        (ValueError, "step_size: expected a number",
         lambda: of_line(kernel=lp.ula, step_size=0.0)),
        (ValueError, "ess: expected a number", lambda: of_line(method="smc", ess=1.0)),
        (ValueError, "ess: expected a number", lambda: of_line(method="smc", ess=0.0)),
        (ValueError, "num_walkers", lambda: of_line(num_walkers=0)),
        (ValueError, "num_levels", lambda: of_line(num_levels=2.5)),
        (ValueError, "steps_per_level", lambda: of_line(steps_per_level=0)),
        (ValueError, "repeats", lambda: of_line(method="smc", repeats=0)),
        (ValueError, r"shape \(datum\)", lambda: energy.energies(target_of(line), np.ones((3, 1)))),
        (ValueError, r"shape \(datum, 2\)",
         lambda: energy.held_out(target_of(plane), np.ones((3, 3)), KNOWN)),
        (ValueError, "expected a dict with the sites",
         lambda: energy.energies(lp.target(two_sites), np.ones(3))),
        (ValueError, "latent sites x", lambda: energy.energies(target_of(line), {"y": [1.0]})),
        (ValueError, "NaN or infinity in row 1",
         lambda: energy.energies(target_of(line), [0.0, np.nan])),
        (ValueError, "row 0 of 'x' is outside",
         lambda: energy.held_out(target_of(positive), [-1.0, 1.0], KNOWN)),
        (TypeError, "result of log_normalizer",
         lambda: energy.held_out(target_of(line), [0.0], None)),
        (ValueError, "finite energies of inside", lambda: energy.auroc([], [1.0])),
        (ValueError, "finite energies of outside", lambda: energy.auroc([1.0], [np.nan])),
        (ValueError, "finite energies of inside", lambda: energy.auroc([np.inf], [1.0])),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(error, match, make):
    with pytest.raises(error, match=match):
        make()

"""Gradient noise, halved steps and Stein discrepancies, against closed forms."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from scipy.integrate import quad

import langevin_ppl as lp
from langevin_ppl.base import BiasWarning
from langevin_ppl.diagnostics import halving, stein
from langevin_ppl.tree import Layout
from langevin_ppl.warmup.noise import measure_estimator

KEY = jax.random.key(0)
SPREAD = np.array([[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [0.0, -0.3, 0.5]])
FRAME = np.array([[2.0, 0.5, 0.1], [0.5, 1.0, 0.0], [0.1, 0.0, 0.5]]) * 1e-3


def means(y, batch):
    mean = numpyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), (3,)))
    with numpyro.plate("row", len(y), subsample_size=batch):
        rows = numpyro.subsample(y, event_dim=1)
        numpyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=rows)


def data(number):
    rows = np.random.default_rng(number).standard_normal((number, 3)) @ SPREAD.T
    return (rows - rows.mean(axis=0)).astype(np.float32)


def run(kernel, positions, parameters, names=("mean",)):
    """What `lp.sample` leaves, without a run: ``positions`` are ``[chain, draw, dimension]``."""
    (name,) = names
    dims = ["chain", "draw", f"{name}_dim_0"]
    draws = xr.Dataset({name: (dims, positions)})
    numbers = {
        key: ([f"{key}_dim_{i}" for i in range(np.ndim(value))], np.asarray(value))
        for key, value in parameters.items()
    }
    groups = {
        "posterior": draws,
        "unconstrained_posterior": draws,
        "sampler_position": draws.isel(draw=-1),
        "sampler_parameters": xr.Dataset(numbers),
    }
    tree = xr.DataTree.from_dict(groups)
    tree.attrs = {"kernel": repr(kernel).removeprefix("langevin_ppl.")}
    return tree


def quietly(function, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BiasWarning)
        return function(*args, **kwargs)


# --- the noise of a gradient ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "parameters", "slope", "base"),
    [
        (lp.sgld, {"step_size": 0.3}, 0.15, 1.0),
        (lp.sgld, {"step_size": 0.3, "temperature": 2.0}, 0.075, 1.0),
        (lp.ubu, {"step_size": 0.3}, 0.15, 1.0),
        (lp.baoab, {"step_size": 0.3, "friction": 2.0}, 0.075, 1.0),
        (lp.sghmc, {"step_size": 0.3, "friction": 2.0, "noise_estimate": 0.4}, 0.075, 0.8),
    ],
)
def test_noise_of_a_mean(kernel, parameters, slope, base):
    """The covariance of the sum of B of N rows is N^2 / B (1 - B / N) that of the rows."""
    number, batch = 400, 200
    y = data(number)
    target = lp.target(means, y, batch)
    idata = run(kernel, np.zeros((2, 4, 3)), {**parameters, "inverse_mass_matrix": FRAME})
    gradient = lp.minibatch(sampling="without")
    idata = quietly(lp.diagnostics.gradient_noise, KEY, target, idata, gradient, num_batches=1000)
    covariance = number**2 / batch * (1 - batch / number) * np.cov(y.T)
    factor = np.linalg.cholesky(FRAME)
    group = idata["gradient_noise"]
    # 8000 batches, of which half for the principal directions: errors of 1.6 and 2.2 %.
    expected = np.linalg.eigvalsh(factor.T @ covariance @ factor)[::-1]
    found = (group["principal_temperature"].values - base) / slope
    np.testing.assert_allclose(found, expected, rtol=0.1)
    np.testing.assert_allclose(
        (group["mean"].values - base) / slope,
        np.diag(FRAME @ covariance @ FRAME) / np.diag(FRAME),
        rtol=0.07,
    )
    assert group["mean"].dims == ("mean_dim_0",)
    assert group.attrs["num_points"] == 8 and group.attrs["step_size"] == 0.3
    # The leading direction, up to its sign.
    leading = np.linalg.eigh(factor.T @ covariance @ factor)[1][:, -1]
    assert abs(group["principal_direction"].values[0] @ leading) > 0.99


@pytest.mark.parametrize("sampling", ["blocks", "epochs", "replacement"])
def test_noise_of_blocks(sampling):
    number, batch = 20_000, 10
    y = data(number)
    target = lp.target(means, y, batch)
    idata = run(lp.sgld, np.zeros((4, 4, 3)), {"step_size": 2.0, "inverse_mass_matrix": 1e-8})
    gradient = lp.minibatch(sampling=sampling)
    idata = quietly(lp.diagnostics.gradient_noise, KEY, target, idata, gradient)
    # 2000 blocks of one shuffle, of which about as many batches: 3 % and 3 %, of each coordinate.
    expected = 1.0 + 1e-8 * number**2 / batch * (1 - batch / number) * np.var(y, axis=0)
    np.testing.assert_allclose(idata["gradient_noise"]["mean"] - 1, expected - 1, rtol=0.2)


def test_noise_in_other_frames():
    """The plain frame, a diagonal, and a low rank on top of it, agree with the dense one."""
    from langevin_ppl.diagnostics.gradient_noise import _diagonal
    from langevin_ppl.preconditioners import Preconditioner

    directions = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 2)))[0]
    factor = jnp.array([1.0, 2.0, 3.0])
    low = Preconditioner(factor, jnp.asarray(directions), jnp.array([0.5, 4.0]))
    for frame in (low, Preconditioner(factor), Preconditioner(jnp.linalg.cholesky(FRAME))):
        matrix = frame.inverse_mass_matrix
        expected = jnp.diagonal(matrix) if matrix.ndim == 2 else matrix
        np.testing.assert_allclose(_diagonal(frame, 3), expected, rtol=1e-5)
    np.testing.assert_allclose(_diagonal(Preconditioner(jnp.array(2.0)), 3), 4.0)


@pytest.mark.parametrize("shape", [(50, 20), (20, 50), (5, 3)])
def test_leading_directions(shape):
    from langevin_ppl.diagnostics.gradient_noise import _leading

    rows = normals(*shape) * np.geomspace(10.0, 0.1, shape[1])
    found = _leading(rows)
    expected = np.linalg.svd(rows, full_matrices=False)[2][: len(found)]
    assert len(found) == min(10, *shape)
    np.testing.assert_allclose(np.abs(np.sum(found * expected, axis=1)), 1.0, rtol=1e-6)


def test_warm_up_measures_batches_of_epochs():
    """Their numbers follow from that of the step, whatever the key."""
    y = data(2000)
    target = lp.target(means, y, 100)
    zeros, layout = jnp.zeros((4, 3)), Layout.of(target.prototype)
    estimator = target.gradient(lp.minibatch(sampling="epochs"))
    noise = measure_estimator(KEY, estimator, zeros, zeros, jnp.ones(()), layout)
    expected = 2000**2 / 100 * 0.95 * np.linalg.eigvalsh(np.cov(y.T))[-1]
    # 20 blocks of one shuffle: 30 %.
    assert 0.3 < noise.largest / expected < 2.5


def test_prediction_and_measurement_on_sgld():
    """The temperature of the gradient noise is what the thermometer and the draws show."""
    number, batch, h = 2000, 100, 0.05
    y = data(number)
    target = lp.target(means, y, batch)
    matrix = np.eye(3) / number
    with pytest.warns(BiasWarning, match="standard deviations are inflated"):
        idata = lp.sample(
            KEY,
            target,
            lp.sgld,
            gradient=lp.minibatch(),
            step_size=h,
            inverse_mass_matrix=matrix,
            num_samples=2000,
            thinning=20,
            groups=["unconstrained_posterior"],
        )
    with pytest.warns(BiasWarning, match="predicted to raise the temperature"):
        idata = lp.diagnostics.gradient_noise(jax.random.key(1), target, idata, lp.minibatch())
    group = idata["gradient_noise"]
    # Of sgld on a Gaussian, in units of the target's variance; some 5000 effective draws: 2 %.
    measured = idata["posterior"]["mean"].values.var(axis=(0, 1)) * number * (1 - h / 2)
    np.testing.assert_allclose(group["mean"].values, measured, rtol=0.1)
    hottest = float(group["principal_temperature"][0])
    assert hottest > 2.0 and hottest == pytest.approx(group.attrs["largest"], rel=0.1)
    measured = idata.attrs["temperature_noisiest"] * (1 - h / 2)
    assert hottest == pytest.approx(measured, rel=0.12)


def test_refusals_of_gradient_noise():
    y = data(400)
    target = lp.target(means, y, 100)
    idata = run(lp.sgld, np.zeros((2, 4, 3)), {"step_size": 0.1})
    measure = lp.diagnostics.gradient_noise
    with pytest.raises(TypeError, match="DataTree that langevin_ppl.sample returned"):
        measure(KEY, target, {}, lp.minibatch())
    with pytest.raises(TypeError, match="expected gradient to be"):
        measure(KEY, target, idata, "minibatch")
    with pytest.raises(ValueError, match="exact gradient has no noise"):
        measure(KEY, target, idata, lp.exact())
    with pytest.raises(ValueError, match="a centre is needed"):
        measure(KEY, target, idata, lp.control_variates())
    with pytest.raises(ValueError, match="no subsampled plate"):
        measure(KEY, lp.density(lambda x: -jnp.sum(x**2), jnp.zeros(3)), idata, lp.minibatch())
    lost = run(lp.sgld, np.full((2, 4, 3), np.nan), {"step_size": 0.1})
    with pytest.raises(ValueError, match="not finite"):
        measure(KEY, target, lost, lp.minibatch())
    unknown = idata.copy()
    unknown.attrs["kernel"] = "mine"
    with pytest.raises(ValueError, match="pass kernel="):
        measure(KEY, target, unknown, lp.minibatch())


# --- half of the step -------------------------------------------------------------------------

NORMAL = lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))


def test_halving_sees_the_bias_of_ula(tmp_path):
    """Its standard deviation on a normal is 1 / sqrt(1 - h / 2), about 1 + h / 4."""
    h = 0.8
    idata = lp.sample(KEY, NORMAL, lp.ula, step_size=h, num_warmup=100, num_samples=8000)
    with pytest.warns(BiasWarning, match=r"'x' are off by at least 0\.[23]"):
        halved = lp.diagnostics.step_halving(jax.random.key(1), NORMAL, idata, lp.ula)
    group = halved["step_halving"]
    shift = {str(name): group["x"].sel(moment=name).values for name in group["moment"].values}
    coarse, fine = ((1 - step / 2) ** -0.5 for step in (h, h / 2))
    truth = (coarse - fine) / fine
    assert np.all(shift["sd_error"] < 0.03)
    assert np.all(np.abs(shift["sd_shift"] - truth) < 4 * shift["sd_error"])
    assert np.all(np.abs(shift["mean_shift"]) < 4 * shift["mean_error"])
    np.testing.assert_allclose(shift["sd_bias"], 2 * shift["sd_shift"])
    assert np.all(np.abs(shift["sd_bias"] - (coarse - 1)) < 4 * 2 * shift["sd_error"] + 0.03)
    assert group.attrs["order"] == 1 and group.attrs["step_size"] == pytest.approx(h)
    assert "step_halving" not in idata.children
    halved.to_netcdf(tmp_path / "run.nc", engine="h5netcdf")


def test_halving_an_exact_kernel():
    with warnings.catch_warnings():
        warnings.simplefilter("error", BiasWarning)
        idata = lp.sample(KEY, NORMAL, lp.mala, step_size=0.8, num_warmup=50, num_samples=4000)
        halved = lp.diagnostics.step_halving(jax.random.key(1), NORMAL, idata, lp.mala)
    group = halved["step_halving"]
    assert np.isnan(group.attrs["order"]) and group.attrs["largest"] < 0.05


@pytest.mark.slow
def test_halving_keeps_what_the_run_chose(monkeypatch):
    """Frame, friction, batch size and pinned rows; the centre is looked for again."""
    y = data(4000)
    target = lp.target(means, y, 200)
    idata = lp.sample(KEY, target, num_samples=100)
    finer = []

    def recorded(*args, **kwargs):
        finer.append(lp.sample(*args, **kwargs))
        return finer[-1]

    monkeypatch.setattr(halving, "sample", recorded)
    halved = quietly(lp.diagnostics.step_halving, jax.random.key(1), target, idata, lp.ubu)
    one, other = idata["sampler_parameters"], finer[0]["sampler_parameters"]
    assert float(other["step_size"]) == pytest.approx(0.5 * float(one["step_size"]))
    assert float(other["friction"]) == float(one["friction"])
    matrices = [part["inverse_mass_matrix"].values for part in (one, other)]
    np.testing.assert_allclose(*matrices, rtol=1e-4)
    assert finer[0].attrs["gradient_estimator"] == idata.attrs["gradient_estimator"]
    assert finer[0].attrs["thinning"] == 2 * idata.attrs["thinning"]
    # Gradients are estimated: their noise adds a bias of order 1.
    assert halved["step_halving"].attrs["order"] == 1


@pytest.mark.parametrize(
    "estimator",
    [
        lp.minibatch(20, sampling="epochs"),
        lp.minibatch({"row": 3}, shared=True),
        lp.control_variates({"row": 100}, order=2, pinned=7),
        lp.svrg(8, every=3),
        lp.svrg(every=5),
        lp.exact(),
    ],
    ids=str,
)
def test_estimators_are_made_again_from_their_names(estimator):
    assert str(halving._estimator(str(estimator))) == str(estimator)


def test_refusals_of_halving():
    idata = run(lp.ula, np.zeros((2, 4, 2)), {"step_size": 0.1}, ("x",))
    halve = lp.diagnostics.step_halving
    with pytest.raises(TypeError, match="expected a kernel"):
        halve(KEY, NORMAL, idata, "ula")
    with pytest.raises(ValueError, match="the run is one of ula, and kernel is mala"):
        halve(KEY, NORMAL, idata, lp.mala)
    idata.attrs["gradient_estimator"] = "GradientEstimator(init=<function>)"
    with pytest.raises(ValueError, match="pass it as gradient="):
        halve(KEY, NORMAL, idata, lp.ula)
    with pytest.raises(ValueError, match="has no step_size"):
        halve(KEY, NORMAL, run(lp.ula, np.zeros((2, 4, 2)), {}, ("x",)), lp.ula)


# --- Stein discrepancies ----------------------------------------------------------------------


def normals(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def discrepancy(draws, **arguments):
    """Group of independent draws of a standard normal, or not, ``[draw, 2]``."""
    idata = run(lp.ula, draws.reshape(2, -1, 2), {}, ("x",))
    return lp.diagnostics.ksd(KEY, NORMAL, idata, **arguments)["ksd"]


def test_stein_kernel_by_differentiation():
    with jax.enable_x64(True):
        x, y, sx, sy = jnp.asarray(normals(4, 5, 3))

        def k(a, b):
            return (1.0 + jnp.sum((a - b) ** 2)) ** -0.5

        def whole(a, b, sa, sb):
            mixed = jnp.trace(jax.jacfwd(jax.grad(k, 0), 1)(a, b))
            return k(a, b) * sa @ sb + sa @ jax.grad(k, 1)(a, b) + sb @ jax.grad(k)(a, b) + mixed

        rows = jax.vmap(whole, in_axes=(None, 0, None, 0))
        expected = jax.jit(jax.vmap(rows, in_axes=(0, None, 0, None)))(x, y, sx, sy)
        found = stein.stein_kernel(*map(np.asarray, (x, y, sx, sy)))
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("y", [-1.3, 0.2, 2.0])
def test_stein_kernel_has_mean_zero(y):
    """Over the target, by quadrature: one that is skewed and not normal."""

    def density(x):
        return np.exp(-0.25 * x**4 + 0.5 * x)

    def score(x):
        return -(x**3) + 0.5

    def term(x):
        parts = (np.array([[value]]) for value in (x, y, score(x), score(y)))
        return density(x) * stein.stein_kernel(*parts)[0, 0]

    total, size = quad(term, -6, 6)[0], quad(lambda x: abs(term(x)), -6, 6, limit=200)[0]
    assert abs(total) < 1e-8 * size and size > 0.1


def test_ksd_of_all_pairs(monkeypatch):
    draws = normals(60, 2)
    whole = discrepancy(draws)
    monkeypatch.setattr(stein, "BLOCK", 7 * 60)
    in_blocks = discrepancy(draws)
    scale = draws.std(axis=0)
    white = (draws - draws.mean(axis=0)) / scale
    pairs = stein.stein_kernel(white, white, -draws * scale, -draws * scale)
    for group in (whole, in_blocks):
        assert float(group["ksd"]) == pytest.approx(np.sqrt(pairs.mean()), rel=1e-5)
        unbiased = (pairs.sum() - np.trace(pairs)) / (60 * 59)
        assert float(group["ksd_squared"]) == pytest.approx(unbiased, abs=1e-6)
    assert whole["p_value"] == in_blocks["p_value"]
    assert whole.attrs == {"num_draws": 60, "gradient": "exact"}


def test_ksd_orders_draws():
    draws = normals(1000, 2)
    exact, slight, wide = (discrepancy(s * draws) for s in (1.0, 1.15, 1.4))
    shifted, far = (discrepancy(draws + shift) for shift in (0.2, 0.6))
    assert exact["ksd"] < slight["ksd"] < wide["ksd"]
    assert exact["ksd"] < shifted["ksd"] < far["ksd"]
    assert exact["p_value"] > 0.05
    assert max(float(g["p_value"]) for g in (slight, wide, shifted, far)) < 0.01
    assert abs(float(exact["ksd_squared"])) < 0.005 < float(slight["ksd_squared"])
    few = discrepancy(draws, num_draws=200)
    assert few.attrs["num_draws"] == 200 and few["ksd"] > exact["ksd"]


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_p_values_of_chains(correlation, monkeypatch):
    """Of draws of the target, and of those that remember: not below 5 % much more often."""
    monkeypatch.setattr(stein, "RESAMPLES", 200)
    noise = normals(200, 300, 2, seed=1) * np.sqrt(1 - correlation**2)
    chains = np.empty_like(noise)
    chains[:, 0] = normals(200, 2, seed=2)
    for i in range(1, noise.shape[1]):
        chains[:, i] = correlation * chains[:, i - 1] + noise[:, i]
    random, values = np.random.default_rng(3), []
    for draws in chains:
        halves = draws.reshape(2, 150, 2)
        signs = stein._signs(random, 2, 150, flips=stein._flips(halves))
        found = stein._statistic(draws, -draws, signs)
        values.append(np.mean(found.signed >= found.total))
    # A share of 200: the standard error of 5 % is 1.5 %, that of a mean of uniforms 2 %. Of chains
    # with 30 effective draws they are somewhat too small.
    assert np.mean(np.less(values, 0.05)) < 0.12
    assert np.mean(values) == pytest.approx(0.5, abs=0.08 if correlation == 0 else 0.2)


def test_stochastic_stein_discrepancy():
    number = 2000
    y = data(number)
    target = lp.target(means, y, 500)
    draws = normals(4, 250, 3) / np.sqrt(number)
    for scale in (1.0, 1.5):
        idata = run(lp.ula, scale * draws, {})
        full = lp.diagnostics.ksd(KEY, target, idata)["ksd"]
        part = lp.diagnostics.ksd(KEY, target, idata, gradient=lp.minibatch())["ksd"]
        # Batches are independent between draws, and add to the terms of a draw with itself alone.
        assert part["ksd"] > full["ksd"]
        assert float(part["ksd_squared"]) == pytest.approx(float(full["ksd_squared"]), abs=0.03)
    assert float(full["ksd_squared"]) > 0.1 and float(part["p_value"]) < 0.01
    assert part.attrs["gradient"].startswith("minibatch")
    centred = lp.control_variates(centre={"mean": jnp.zeros(3)})
    # Rows of a Gaussian have one curvature: control variates make no noise.
    same = lp.diagnostics.ksd(KEY, target, idata, gradient=centred)["ksd"]
    assert float(same["ksd"]) == pytest.approx(float(full["ksd"]), rel=1e-3)


def test_refusals_of_ksd():
    y = data(400)
    target = lp.target(means, y, 100)
    idata = run(lp.ula, normals(2, 4, 3), {})
    without = idata.drop_nodes("unconstrained_posterior")
    with pytest.raises(ValueError, match=r"groups=\['unconstrained_posterior'\]"):
        lp.diagnostics.ksd(KEY, target, without)
    with pytest.raises(TypeError, match="DataTree that langevin_ppl.sample returned"):
        lp.diagnostics.ksd(KEY, target, {})
    with pytest.raises(TypeError, match="expected gradient to be"):
        lp.diagnostics.ksd(KEY, target, idata, gradient=3)
    with pytest.raises(ValueError, match="do not move"):
        lp.diagnostics.ksd(KEY, target, run(lp.ula, np.zeros((2, 4, 3)), {}))
    with pytest.raises(ValueError, match="not all finite"):
        lp.diagnostics.ksd(KEY, target, run(lp.ula, np.full((2, 4, 3), np.nan), {}))

"""What a run leaves to the next one: its tuned parameters, and its compiled programs."""

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import langevin_ppl as lp
from tests.models import conjugate

KEY = jax.random.key(20)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize(
    ("kernel", "metric"),
    [
        (lp.split_ghmc, "dense"),
        pytest.param(lp.ghmc, "low_rank", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_tuned_parameters_serve_a_later_run(kernel, metric, tmp_path):
    """In memory or saved: the later run goes on from the same frame, centre and step size."""
    scales = jnp.logspace(-2.0, 2.0, 30)
    centre = 3.0 * scales

    def logdensity(x):
        white = (x - centre) / scales
        # Two coordinates correlated by 0.95, which a diagonal misses.
        return -0.5 * jnp.sum(white**2) - 4.4 * (white[0] - white[1]) ** 2

    target = lp.density(logdensity, jnp.zeros(30))
    first = lp.sample(KEY, target, kernel, metric=metric)
    assert first.attrs["metric"] == metric
    stored = set(first["sampler_parameters"].data_vars)
    matrix = {f"inverse_mass_matrix.{part}" for part in ("factor", "directions", "stretches")}
    of_the_fit = {"location", "frequency"} if kernel is lp.split_ghmc else set()
    of_the_frame = matrix if metric == "low_rank" else {"inverse_mass_matrix"}
    assert stored == {"step_size", "friction"} | of_the_fit | of_the_frame
    first.to_netcdf(tmp_path / "first.nc")
    again = lp.sample(KEY, target, kernel, initial=first, parameters=first, num_samples=400)
    assert (again.attrs["num_warmup"], again.attrs["adaptation"]) == (0, "none")
    with xr.open_datatree(tmp_path / "first.nc") as read:
        saved = lp.sample(KEY, target, kernel, initial=read, parameters=read, num_samples=400)
    xr.testing.assert_equal(again["posterior"].to_dataset(), saved["posterior"].to_dataset())
    for name in stored:
        # A matrix is stored, and factorised again.
        np.testing.assert_allclose(
            again["sampler_parameters"][name], first["sampler_parameters"][name], rtol=1e-4
        )
    rates = [run["sample_stats"]["acceptance_rate"].values.mean() for run in (first, again)]
    assert abs(rates[0] - rates[1]) < 0.05 and rates[1] > 0.6
    white = (again["posterior"]["x"].values - np.asarray(centre)) / np.asarray(scales)
    assert np.abs(white.mean(axis=(0, 1))).max() < 0.5
    # Some hundred effective draws of each coordinate.
    np.testing.assert_allclose(white[..., 2:].std(axis=(0, 1)), 1.0, atol=0.3)


X = jax.random.normal(jax.random.key(1), (40, 3)) * jnp.array([1.0, 2.0, 0.3])
Y = X @ jnp.array([1.0, -0.5, 2.0]) + 0.5 * jax.random.normal(jax.random.key(2), (40,))

compilations: list[str] = []
"""Names of the functions that were compiled."""


def _count(event, duration, *, fun_name="", **_):
    if event.endswith("backend_compile_duration"):
        compilations.append(fun_name)


jax.monitoring.register_event_duration_secs_listener(_count)


def test_a_run_compiles_every_program_once_and_another_run_none():
    """Compiled ahead in other threads, and found there when they are called."""
    target = lp.density(lambda x: -jnp.sum(jnp.cosh(x)), jnp.zeros(2))
    other_key = jax.random.key(3)  # a program of JAX's own, which may have been given up
    compilations.clear()
    lp.sample(KEY, target)
    programs = ["find", "begin", "_chunk"]  # the last one for warm-up, and for sampling
    counts = [sum(name == f"jit({program})" for name in compilations) for program in programs]
    assert counts == [1, 1, 2]
    compilations.clear()
    lp.sample(other_key, target)
    lp.sample(KEY, target, num_samples=777)
    idata = lp.sample(KEY, target, until=lp.converged(ess=1500))
    assert idata.attrs["num_samples"] not in (777, 1000)
    lp.sample(KEY, target, target_acceptance_rate=0.7, num_samples=50, chunk=13)
    assert compilations == []


@pytest.mark.parametrize(
    "kernel",
    [lp.split_ghmc, lp.ula, blackjax.nuts],
    ids=["split_ghmc", "ula", "nuts"],
)
def test_new_data_of_the_same_shapes_compile_nothing(kernel):
    calls = []

    def counted(x, y=None):
        calls.append(1)
        conjugate(x, y)

    settings = {"num_samples": 60, "num_warmup": 60, "groups": ["log_likelihood"]}
    first = lp.sample(KEY, lp.target(counted, X, y=Y), kernel, **settings)
    other_x, other_y = 2 * X, Y + 1
    traced, compiled = len(calls), len(compilations)
    second = lp.sample(KEY, lp.target(counted, other_x, y=other_y), kernel, **settings)
    assert len(calls) == traced
    assert len(compilations) == compiled
    gap = first["posterior"]["slope"].mean() - second["posterior"]["slope"].mean()
    assert abs(float(gap)) > 0.01


def test_a_scalar_frame_serves_a_later_run():
    target = lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))
    given = {"step_size": 0.1, "inverse_mass_matrix": 0.25, "num_warmup": 0, "num_samples": 5}
    first = lp.sample(KEY, target, lp.mala, **given)
    assert float(first["sampler_parameters"]["inverse_mass_matrix"]) == 0.25
    again = lp.sample(KEY, target, lp.mala, initial=first, parameters=first, num_samples=5)
    assert float(again["sampler_parameters"]["inverse_mass_matrix"]) == 0.25


def test_counts_of_an_earlier_run_may_be_numpys():
    """As a saved run has them."""
    target = lp.density(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(2))
    given = {"step_size": 0.1, "inverse_mass_matrix": 0.25, "num_warmup": 0, "num_samples": 5}
    idata = lp.sample(KEY, target, lp.mala, thinning=np.int64(2), **given)
    assert isinstance(idata.attrs["num_gradient_evaluations"], int)
    assert isinstance(idata.attrs["thinning"], int)

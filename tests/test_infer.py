"""The kernels inside ``numpyro.infer.MCMC``."""

import functools
import pickle
import warnings

import arviz_base
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, init_to_value
from numpyro.infer.reparam import LocScaleReparam

import langevin_ppl as lp
from langevin_ppl import infer
from langevin_ppl.kernels import Kernel

X = np.linspace(-1.0, 1.0, 20).astype(np.float32)
Y = (1.0 + 2.0 * X + 0.3 * np.random.default_rng(0).standard_normal(20)).astype(np.float32)
SHIFTED = Y + 10.0


def line(x, y=None):
    level = numpyro.sample("level", dist.Normal(0.0, 10.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 10.0))
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    mean = numpyro.deterministic("mean", level + slope * x)
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Normal(mean, scale), obs=y)


def ran(kernel, *args, seed=0, num_warmup=300, num_samples=400, num_chains=2, **options):
    run = {k: options.pop(k) for k in ("extra_fields", "init_params") if k in options}
    kwargs = options.pop("kwargs", {})
    options.setdefault("chain_method", "vectorized")
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        progress_bar=False,
        **options,
    )
    mcmc.run(jax.random.key(seed), *args, **run, **kwargs)
    return mcmc


@pytest.fixture(scope="module")
def reference():
    """Means and standard deviations by the default of `lp.sample`."""
    idata = lp.sample(jax.random.key(0), lp.target(line, X, y=Y), num_samples=5000)
    posterior = idata["posterior"]
    return {n: (float(posterior[n].mean()), float(posterior[n].std())) for n in ("level", "slope")}


def assert_close(mcmc, reference, tolerance=0.25):
    samples = mcmc.get_samples()
    for name, (mean, sd) in reference.items():
        assert abs(samples[name].mean() - mean) < tolerance * sd
        assert abs(samples[name].std() / sd - 1.0) < tolerance


def test_every_kernel_has_a_class():
    """Under the name of the kernel, without underscores and in capitals."""
    classes = [getattr(infer, name) for name in infer.__all__ if name != "LangevinState"]
    names = {each.__name__.upper(): each.kernel for each in classes}
    for name in lp.__all__:
        kernel = getattr(lp, name)
        if isinstance(kernel, Kernel):
            assert names[name.replace("_", "").upper()] is kernel


# Every class is a kernel in the same wrapper: one of each kind, and the others where there is time.
OTHERS = [
    infer.ULA,
    infer.LeimkuhlerMatthews,
    infer.UBU,
    infer.TULA,
    infer.TUSLA,
    functools.partial(infer.Langevin, kernel=lp.splitting("OABAO")),
]


@pytest.mark.parametrize(
    "kernel",
    [
        infer.SplitGHMC,
        infer.MALA,
        infer.TBAOAB,
        functools.partial(infer.Langevin, kernel=lp.parallel_tempering(lp.mala, [1, 3])),
        *(pytest.param(kernel, marks=pytest.mark.slow) for kernel in OTHERS),
    ],
    ids=lambda k: getattr(k, "__name__", "Langevin"),
)
def test_kernels_run(kernel, reference):
    mcmc = ran(kernel(line), X, kwargs={"y": Y}, num_samples=3000, chain_method="vectorized")
    # The tamed and the overdamped ones mix slowly and are biased; here they must be about right.
    assert_close(mcmc, reference, 0.6)
    assert mcmc.get_samples(group_by_chain=True)["mean"].shape == (2, 3000, 20)


@pytest.mark.parametrize(
    "method", ["sequential", "vectorized", "parallel", jax.vmap], ids=["seq", "vec", "par", "vmap"]
)
# NumPyro's own: on one device, and for buffers that it donates under a callable method.
@pytest.mark.filterwarnings("ignore:There are not enough devices")
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_chain_methods_agree(method, reference):
    mcmc = ran(
        infer.GHMC(line),
        X,
        kwargs={"y": Y},
        num_samples=1500,
        chain_method=method,
        extra_fields=("accept_prob", "step_size", "potential_energy"),
    )
    assert_close(mcmc, reference)
    fields = mcmc.get_extra_fields(group_by_chain=True)
    assert fields["accept_prob"].shape == fields["step_size"].shape == (2, 1500)
    assert 0.6 < fields["accept_prob"].mean() < 0.95
    # Settled after warm-up.
    assert np.ptp(fields["step_size"], axis=1).max() == 0.0


def test_chains_are_pooled_where_they_run_together():
    field = {"extra_fields": ("step_size",)}
    pooled = ran(infer.MALA(line), X, kwargs={"y": Y}, chain_method="vectorized", **field)
    alone = ran(infer.MALA(line), X, kwargs={"y": Y}, chain_method="sequential", **field)
    sizes = [m.get_extra_fields(group_by_chain=True)["step_size"][:, -1] for m in (pooled, alone)]
    assert np.ptp(sizes[0]) == 0.0 < np.ptp(sizes[1])


def test_potential_energy_is_that_of_the_sample():
    mcmc = ran(
        infer.MALA(line),
        X,
        kwargs={"y": Y},
        num_chains=1,
        extra_fields=("potential_energy", "z.level", "z.slope", "z.scale"),
    )
    fields = mcmc.get_extra_fields()
    position = {n: fields[f"z.{n}"] for n in ("level", "slope", "scale")}
    expected = -jax.vmap(lp.target(line, X, y=Y).logdensity_fn)(position)
    np.testing.assert_allclose(fields["potential_energy"], expected, rtol=1e-4)


@pytest.mark.parametrize("jit_model_args", [False, True])
def test_new_data_change_the_answer(jit_model_args):
    mcmc = MCMC(
        infer.MALA(line),
        num_warmup=300,
        num_samples=500,
        progress_bar=False,
        jit_model_args=jit_model_args,
    )
    mcmc.run(jax.random.key(0), X, y=Y)
    before = mcmc.get_samples()["level"].mean()
    mcmc.run(jax.random.key(0), X, y=SHIFTED)
    assert abs(mcmc.get_samples()["level"].mean() - before - 10.0) < 0.5


def test_warmup_and_resume():
    mcmc = MCMC(
        infer.GHMC(line),
        num_warmup=300,
        num_samples=200,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.warmup(jax.random.key(0), X, y=Y)
    tuned = mcmc.post_warmup_state.step_size
    assert "acc. prob=0.8" in mcmc.sampler.get_diagnostics_str(mcmc.last_state)
    mcmc.run(jax.random.key(1), X, y=Y)
    first = mcmc.get_samples()["level"]
    np.testing.assert_array_equal(mcmc.last_state.step_size, tuned)
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(jax.random.key(2), X, y=Y)
    assert not np.array_equal(first, mcmc.get_samples()["level"])
    np.testing.assert_array_equal(mcmc.last_state.step_size, tuned)


def test_thinning_and_excluded_sites():
    mcmc = ran(infer.MALA(line), X, kwargs={"y": Y}, thinning=4, extra_fields=("~z.mean",))
    assert set(mcmc.get_samples()) == {"level", "slope", "scale"}
    assert mcmc.get_samples(group_by_chain=True)["level"].shape == (2, 100)


def test_init_strategy_and_init_params():
    start = init_to_value(values={"level": 5.0, "slope": -3.0, "scale": 0.7})
    kernel = infer.ULA(line, init_strategy=start, find_mode=False, step_size=1e-9)
    first = ran(kernel, X, kwargs={"y": Y}, num_warmup=0, num_samples=1).get_samples()
    np.testing.assert_allclose(first["level"], 5.0, atol=1e-3)
    position = {n: jnp.array([1.0, 2.0]) for n in ("level", "slope", "scale")}
    kernel = infer.ULA(line, step_size=1e-9)
    first = ran(kernel, X, kwargs={"y": Y}, num_warmup=0, num_samples=1, init_params=position)
    np.testing.assert_allclose(first.get_samples()["level"], [1.0, 2.0], atol=1e-3)


def test_potential_fn():
    kernel = infer.MALA(potential_fn=lambda z: 0.5 * jnp.sum((z - 3.0) ** 2))
    mcmc = ran(kernel, init_params=jnp.zeros((2, 3)), chain_method="vectorized")
    np.testing.assert_allclose(mcmc.get_samples().mean(0), 3.0, atol=0.3)
    with pytest.raises(ValueError, match="needs init_params"):
        ran(kernel)


def test_reparametrised_models():
    def centred():
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        with numpyro.plate("group", 4):
            numpyro.sample("effect", dist.Normal(0.0, scale))

    model = handlers.reparam(centred, config={"effect": LocScaleReparam(0.0)})
    samples = ran(infer.SplitGHMC(model)).get_samples()
    assert {"scale", "effect", "effect_decentered"} == set(samples)


def test_pickles():
    mcmc = ran(infer.MALA(line), X, kwargs={"y": Y})
    again = pickle.loads(pickle.dumps(mcmc))
    np.testing.assert_array_equal(again.get_samples()["level"], mcmc.get_samples()["level"])
    again.run(jax.random.key(3), X, y=Y)


def test_summary_and_arviz(capsys):
    mcmc = ran(
        infer.MALA(line), X, kwargs={"y": Y}, extra_fields=("potential_energy", "accept_prob")
    )
    mcmc.print_summary()
    assert "Number of divergences: 0" in capsys.readouterr().out
    idata = arviz_base.from_numpyro(mcmc, log_likelihood=True)
    assert idata["log_likelihood"]["y"].shape == (2, 400, 20)
    stats = set(idata["sample_stats"].data_vars)
    assert {"diverging", "lp", "acceptance_rate"} <= stats and not {"tree_depth"} & stats


def test_what_has_no_acceptance_rate_says_that_there_is_none():
    fields = ("accept_prob", "step_size", "energy", "potential_energy")
    mcmc = ran(infer.BAOAB(line), X, kwargs={"y": Y}, extra_fields=fields)
    stats = arviz_base.from_numpyro(mcmc)["sample_stats"]
    values = mcmc.get_extra_fields()
    assert (values["energy"] > values["potential_energy"]).all()  # by the kinetic energy
    assert np.isnan(stats["acceptance_rate"]).all() and np.isfinite(stats["step_size"]).all()
    assert "acc. prob" not in mcmc.sampler.get_diagnostics_str(mcmc.last_state)


def test_what_diverges_says_so(capsys):
    def quartic():
        x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.factor("energy", -(x**4))

    kernel = infer.ULA(quartic, step_size=10.0, find_mode=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mcmc = ran(kernel, num_warmup=0, num_chains=1)
        mcmc.print_summary()
    assert mcmc.get_extra_fields()["diverging"].any()
    assert "Number of divergences: 0" not in capsys.readouterr().out


@pytest.mark.slow
def test_an_instance_serves_several_runs():
    """Of other data and another warm-up; the first run then goes on as if it were alone."""
    kernel = infer.ULA(line)
    first = ran(kernel, X, kwargs={"y": Y})
    step_size = first.last_state.step_size
    for num_warmup in (1000,):
        other = ran(kernel, X[:10], kwargs={"y": Y[:10]}, num_warmup=num_warmup)
        assert other.get_samples()["mean"].shape == (800, 10)
        first.post_warmup_state = first.last_state
        first.run(jax.random.key(1), X, y=Y)
        np.testing.assert_array_equal(first.last_state.step_size, step_size)
    assert first.get_samples()["mean"].shape == (800, 20)


def test_the_law_is_that_of_sample():
    """The same kernel at the same parameters, step by step."""
    target = lp.target(line, X, y=Y)
    kernel = infer.MALA(line, step_size=0.01)
    state = kernel.init(jax.random.key(0), 0, None, (X,), {"y": Y})
    algorithm = lp.mala(target.logdensity_fn, step_size=0.01)
    own = algorithm.init(state.z)
    for _ in range(5):
        _, key = jax.random.split(state.rng_key)
        own, _ = algorithm.step(key, own)
        state = kernel.sample(state, (X,), {"y": Y})
        np.testing.assert_allclose(state.z["level"], own.position["level"], rtol=1e-5)


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: infer.MALA(), ValueError, "a model or a potential_fn"),
        (lambda: infer.MALA(line, kernel=lp.ula), TypeError, "pass kernel= to Langevin"),
        (lambda: infer.Langevin(line, kernel="mala"), TypeError, "expected a kernel"),
        (lambda: infer.MALA(line, stepsize=1.0), TypeError, "step_size, inverse_mass_matrix"),
        (lambda: infer.MALA(line, step_size=-1.0), ValueError, "positive"),
        (lambda: infer.MALA(line, target_accept_prob=1.0), ValueError, "between 0 and 1"),
        (lambda: ran(infer.MALA(line), X, kwargs={"y": Y}, num_warmup=0), TypeError, "step_size"),
        (
            lambda: ran(infer.MALA(line), X, kwargs={"y": Y}, init_params={"level": jnp.ones(2)}),
            ValueError,
            "init_params",
        ),
        (
            lambda: ran(
                infer.MALA(line),
                X,
                kwargs={"y": Y},
                init_params={n: jnp.ones(3) for n in ("level", "slope", "scale")},
            ),
            ValueError,
            "leading dimension",
        ),
    ],
)
def test_refusals(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_a_subsampled_plate_is_refused():
    def model(x):
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", 20, subsample_size=5):
            numpyro.sample("y", dist.Normal(level, 1.0), obs=numpyro.subsample(x, 0))

    with pytest.raises(ValueError, match="subsample"):
        ran(infer.MALA(model), Y)

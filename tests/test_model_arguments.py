"""Arguments that a model needs as values, parameters with bounds, and gradients by forward mode."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from numpyro.infer import MCMC, init_to_mean

import langevin_ppl as lp
from langevin_ppl.infer import GHMC, MALA

KEY = jax.random.key(0)
Y = np.array([0.0, 1.0, 2.0], np.float32)

# --- values kept by a target ------------------------------------------------------------------


def scaled(y):
    scale = numpyro.param("scale", 1.0, constraint=constraints.greater_than(jnp.array(0.5)))
    m = numpyro.sample("m", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 3):
        numpyro.sample("y", dist.Normal(m, scale), obs=y)


def test_labels_of_a_model_with_parameters():
    target = lp.target(scaled, Y).replace(coords={"row": ["a", "b", "c"]}, dims={"y": ["row"]})
    idata = lp.sample(KEY, target, num_warmup=200, num_samples=500, groups=["posterior_predictive"])
    # The posterior of m is Normal(3 / 4, 1 / 4).
    assert idata.attrs["converged"]
    assert abs(float(idata["posterior"]["m"].mean()) - 0.75) < 0.1
    assert list(idata["observed_data"]["row"].values) == ["a", "b", "c"]


@pytest.mark.parametrize("first", ["constrain", "logdensity_fn"])
def test_values_that_a_trace_asks_for_first_are_no_tracers(first):
    target = lp.target(scaled, Y)
    use = {
        "constrain": target.constrain,
        "logdensity_fn": lambda position: target.logdensity_fn(position),
    }[first]
    jax.eval_shape(use, target.prototype)
    assert float(target.fixed["scale"]) == 1.0
    assert float(target.logdensity_fn({"m": jnp.array(1.0)})) == pytest.approx(
        -0.5 - 1.0 - 4 * 0.5 * np.log(2 * np.pi)
    )


def test_bounds_of_parameters_are_no_tracers():
    target = lp.target(scaled, Y)
    jax.eval_shape(lambda: target.parameter_transforms["scale"](jnp.zeros(())))
    assert float(target.parameter_transforms["scale"](jnp.zeros(()))) == 1.5


def test_parameters_of_a_target_that_is_made_in_a_trace():
    @jax.jit
    def value(y):
        target = lp.target(scaled, y)
        density = jax.vmap(lambda m: target.logdensity_fn({"m": m}))
        return density(jnp.zeros(2))[0] + target.logdensity_fn({"m": jnp.zeros(())})

    once = lp.target(scaled, Y).logdensity_fn({"m": jnp.zeros(())})
    assert float(value(Y)) == pytest.approx(2 * float(once))


# --- models that look at their data -----------------------------------------------------------

AGE = np.array([1.0, np.nan, 3.0, np.nan, 5.0], np.float32)
OUTCOME = np.array([0.9, 2.1, 2.9, 3.8, 5.2], np.float32)


def imputed(age, outcome=None):
    missing = np.isnan(age)
    filled = numpyro.sample("filled", dist.Normal(3.0, 1.0).expand([int(missing.sum())]).to_event())
    age = jnp.asarray(np.where(missing, 0.0, age)).at[np.flatnonzero(missing)].set(filled)
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", len(age)):
        numpyro.sample("outcome", dist.Normal(slope * age, 0.5), obs=outcome)


def grouped(group, y=None):
    with numpyro.plate("groups", int(group.max()) + 1):
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", group.shape[0]):
        numpyro.sample("y", dist.Normal(level[group], 1.0), obs=y)


GROUP = np.array([0, 0, 1, 1, 1])
# Normal(0, 1) priors and unit noise: sum / (count + 1).
LEVELS = [(0.9 + 2.1) / 3, (2.9 + 3.8 + 5.2) / 4]


def test_a_run_of_a_model_that_looks_at_its_data(tmp_path):
    target = lp.target(grouped, GROUP, y=OUTCOME)
    settings: dict[str, Any] = {"num_warmup": 200, "num_samples": 500}
    idata = lp.sample(KEY, target, checkpoint=tmp_path / "run", **settings)
    assert idata.attrs["static_arguments"] == '["group"]'
    level = idata["posterior"]["level"]
    np.testing.assert_allclose(level.mean(("chain", "draw")), LEVELS, atol=0.1)

    again = lp.resume(tmp_path / "run", lp.target(grouped, jnp.asarray(GROUP), y=OUTCOME))
    np.testing.assert_array_equal(again["posterior"]["level"], level)
    with pytest.raises(lp.CheckpointError, match="static argument"):
        lp.resume(tmp_path / "run", lp.target(grouped, GROUP[::-1].copy(), y=OUTCOME))

    drawn = target.predict(KEY, idata["posterior"], np.array([0, 1]))["y"]
    assert drawn.shape == (4, 500, 2)
    np.testing.assert_allclose(drawn.mean((0, 1)), LEVELS, atol=0.15)


def test_in_numpyro_as_well():
    mcmc = MCMC(
        MALA(grouped, find_mode=False),
        num_warmup=300,
        num_samples=1000,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(KEY, GROUP, y=OUTCOME)
    np.testing.assert_allclose(mcmc.get_samples()["level"].mean(0), LEVELS, atol=0.2)


def test_traced_arguments_have_no_values():
    mcmc = MCMC(GHMC(grouped), num_warmup=5, num_samples=5, progress_bar=False, jit_model_args=True)
    with pytest.raises(TypeError, match=r"'group'.*jit_model_args"):
        mcmc.run(KEY, jnp.asarray(GROUP), y=OUTCOME)
    with pytest.raises(TypeError, match=r"The model grouped needs a value.*'group'"):
        jax.jit(lambda group: lp.target(grouped, group, y=OUTCOME).prototype)(GROUP)


def test_a_column_of_a_stream_has_no_value():
    def model(x, y):
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", len(x)):
            x = numpyro.subsample(x, event_dim=0)
            width = 1.0 if x.sum() > 0 else 2.0
            numpyro.sample(
                "y", dist.Normal(slope * x, width), obs=numpyro.subsample(y, event_dim=0)
            )

    x, y = lp.stream(AGE, OUTCOME, batch_size=2)
    with pytest.raises(TypeError, match="'x'.*a column of a stream"):
        _ = lp.target(model, x, y).prototype


def test_static_arguments_survive_a_trace_and_new_data():
    target = lp.target(imputed, AGE, OUTCOME)
    position = {"filled": jnp.array([2.0, 4.0]), "slope": jnp.array(1.0)}
    value = jax.jit(lambda target: target.logdensity_fn(position))(target)
    assert target.static == ("age",)
    assert float(value) == pytest.approx(float(target.logdensity_fn(position)))
    (outcome,) = jax.tree.leaves(target)
    other = target.with_data((2 * outcome,))
    assert other.static == ("age",)
    expected = lp.target(imputed, AGE, 2 * OUTCOME).replace(static=("age",))
    assert float(other.logdensity_fn(position)) == float(expected.logdensity_fn(position))
    assert lp.density(lambda x: -(x**2), 0.0).static == ()


def uses_shape(y, n, offsets):
    offset = offsets.at[0].add(1.0)  # which arrays of NumPy have not
    with numpyro.plate("row", jnp.zeros(n).shape[0]):
        mu = numpyro.sample("mu", dist.Normal(offset[0], 1.0))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def uses_key(y, kind):
    scale = {0: 1.0, 1: 2.0}[kind]
    mu = numpyro.sample("mu", dist.Normal(0.0, scale))
    numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "args", "static"),
    [
        (uses_shape, (Y, np.int64(3), jnp.zeros(2)), ("n",)),
        (uses_key, (Y[:1], np.int64(1)), ("kind",)),
    ],
)
def test_a_value_may_be_missed_without_an_error_of_jax(model, args, static):
    target = lp.target(model, *args)
    assert target.static == static
    assert jnp.isfinite(target.logdensity_fn(target.init_position(KEY)))


def test_an_error_of_the_model_is_its_own():
    def model(y):
        numpyro.sample("mu", dist.Normal(0.0, 1.0) + "1")

    with pytest.raises(TypeError, match="unsupported operand"):
        _ = lp.target(model, Y).prototype


# --- starts -----------------------------------------------------------------------------------


def kinked():
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.factor("length", -jnp.linalg.norm(x) - z**2)


NOT_DIFFERENTIABLE = (
    r"log density is finite \(-3.675.*gradient for 'x' is not.*same position every time"
    r".*init_to_uniform or numpyro.infer.init_to_sample\."
)


def test_a_start_without_a_gradient():
    target = lp.target(kinked).replace(init_strategy=init_to_mean)
    with pytest.raises(ValueError, match=NOT_DIFFERENTIABLE):
        target.init_position(KEY)
    mcmc = MCMC(
        MALA(kinked, init_strategy=init_to_mean, find_mode=False),
        num_warmup=5,
        num_samples=5,
        progress_bar=False,
    )
    with pytest.raises(ValueError, match="Chain 0.*" + NOT_DIFFERENTIABLE):
        mcmc.run(KEY)


def test_a_given_start_without_a_gradient():
    initial = {"x": jnp.ones((2, 3)).at[1].set(0.0), "z": jnp.zeros(2)}
    with pytest.raises(ValueError, match="Chain 1.*At the given position.*gradient for 'x' is not"):
        lp.sample(
            KEY, lp.target(kinked), num_chains=2, num_warmup=10, num_samples=10, initial=initial
        )


def test_a_start_of_a_density_without_a_gradient():
    target = lp.density(lambda x: -jnp.linalg.norm(x["a"]) - x["b"] ** 2, {"a": Y, "b": 0.0})
    at_zero = target.replace(init_strategy=lambda key: {"a": jnp.zeros(3), "b": jnp.zeros(())})
    with pytest.raises(ValueError, match="density is finite .*'a' is not.*same position"):
        at_zero.init_position(KEY)


# --- gradients by forward mode ----------------------------------------------------------------

STEPS = jnp.array(40)


def looped(y, steps):
    """A square root by Newton's method, in a loop of a length that is not known."""
    m = numpyro.sample("m", dist.Normal(0.0, 1.0))

    def newton(_, root):
        return 0.5 * (root + jnp.exp(2 * m) / root)

    root = jax.lax.fori_loop(0, steps, newton, jnp.ones(()))  # exp(m)
    numpyro.sample("y", dist.Normal(jnp.log(root), 1.0), obs=y)


def test_forward_mode_in_sample(tmp_path):
    target = lp.target(looped, Y, STEPS).replace(forward_mode_differentiation=True)
    settings: dict[str, Any] = {"num_warmup": 200, "num_samples": 500}
    idata = lp.sample(KEY, target, checkpoint=tmp_path / "run", **settings)
    # The posterior of m is Normal(3 / 4, 1 / 4).
    assert idata.attrs["converged"]
    draws = idata["posterior"]["m"].values
    assert abs(draws.mean() - 0.75) < 0.1
    assert abs(draws.std() - 0.5) < 0.1
    other = target.replace(forward_mode_differentiation=False)
    with pytest.raises(lp.CheckpointError, match="forward_mode_differentiation differs"):
        lp.resume(tmp_path / "run", other)


def test_forward_mode_in_numpyro():
    kernel = GHMC(looped, forward_mode_differentiation=True, find_mode=False)
    mcmc = MCMC(kernel, num_warmup=300, num_samples=2000, progress_bar=False)
    mcmc.run(KEY, Y, STEPS)
    assert abs(mcmc.get_samples()["m"].mean() - 0.75) < 0.15
    with pytest.raises(TypeError, match="GHMC.*forward_mode_differentiation.*'yes'"):
        GHMC(looped, forward_mode_differentiation="yes")  # pyright: ignore[reportArgumentType]


def test_forward_mode_is_advised():
    target = lp.target(looped, Y, STEPS)
    advice = "model looped.*replace\\(forward_mode_differentiation=True\\)"
    with pytest.raises(ValueError, match=advice):
        target.init_position(KEY)
    with pytest.raises(ValueError, match=advice):
        lp.sample(KEY, target, num_warmup=10, num_samples=10)
    with pytest.raises(ValueError, match=advice):
        MCMC(GHMC(looped), num_warmup=5, num_samples=5, progress_bar=False).run(KEY, Y, STEPS)


def test_derivatives_by_forward_mode_are_those_of_reverse_mode():
    def curve(x):
        return -jnp.sum(x["a"] ** 4) + x["b"] * jnp.sum(jnp.sin(x["a"]))

    position = {"a": jnp.array([0.3, -0.8, 1.1]), "b": jnp.array(0.4)}
    reverse = lp.density(curve, position)
    forward = reverse.replace(forward_mode_differentiation=True)

    def derivatives(target):
        fn = target.logdensity_fn
        value, tangent = jax.linearize(jax.value_and_grad(fn), position)
        rows = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), position)
        return (
            value,
            tangent(position),
            jax.jvp(fn, (position,), (position,)),
            jax.vmap(jax.grad(fn))(rows),
        )

    for a, b in zip(*map(jax.tree.leaves, map(derivatives, (forward, reverse))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_derivatives_by_data_are_kept_in_forward_mode():
    target = lp.target(scaled, Y).replace(forward_mode_differentiation=True)
    position = {"m": jnp.array(0.5)}
    gradients = [
        jax.grad(lambda s, t=t: t.with_fixed({"scale": s}).logdensity_fn(position))(2.0)
        for t in (target, target.replace(forward_mode_differentiation=False))
    ]
    assert float(gradients[0]) == pytest.approx(float(gradients[1]))


def test_forward_mode_needs_all_rows():
    def model(y):
        m = numpyro.sample("m", dist.Normal(0.0, 1.0))
        with numpyro.plate("row", 3, subsample_size=2):
            numpyro.sample("y", dist.Normal(m, 1.0), obs=numpyro.subsample(y, 0))

    target = lp.target(model, Y).replace(forward_mode_differentiation=True)
    with pytest.raises(ValueError, match="'row' is subsampled"):
        lp.sample(KEY, target)

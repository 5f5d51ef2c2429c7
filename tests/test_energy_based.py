"""``EnergyBased`` as a NumPyro distribution, and what targets take and refuse of it."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density

import langevin_ppl as lp
from langevin_ppl.distributions import EnergyBased

KEY = jax.random.key(0)


def quartic(x):
    return jnp.sum(x**4)


def tilted(x, slope):
    return jnp.sum(x**4) - slope * jnp.sum(x)


def test_log_prob_is_minus_the_energy_and_the_base_measure():
    x = jnp.array([0.5, -1.0])
    assert float(EnergyBased(quartic, (2,)).log_prob(x)) == -float(quartic(x))
    with_base = EnergyBased(quartic, (2,), base=dist.Normal(0.0, 2.0))
    expected = -quartic(x) + jnp.sum(dist.Normal(0.0, 2.0).log_prob(x))
    np.testing.assert_allclose(with_base.log_prob(x), expected, rtol=1e-6)
    np.testing.assert_allclose(with_base.energy(x), quartic(x), rtol=1e-6)


@pytest.mark.parametrize("sample_shape", [(), (4,), (5, 4)])
def test_batches_have_their_own_conditions(sample_shape):
    slopes = jnp.arange(6.0).reshape(2, 3)
    batched = EnergyBased(tilted, (2,), condition=slopes, batch_shape=(2, 3))
    x = jax.random.normal(KEY, (*sample_shape, 2, 3, 2))
    found = batched.log_prob(x)
    assert found.shape == (*sample_shape, 2, 3)
    expected = -jnp.sum(x**4, axis=-1) + slopes * jnp.sum(x, axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_one_condition_and_values_that_broadcast():
    one = EnergyBased(tilted, (2,), condition=jnp.asarray(2.0))
    assert one.log_prob(jnp.ones((7, 2))).shape == (7,)
    batched = EnergyBased(tilted, (2,), condition=jnp.arange(3.0), batch_shape=(3,))
    np.testing.assert_allclose(batched.log_prob(jnp.ones(2)), [-2.0, 0.0, 2.0])


def test_it_is_a_pytree_whose_arrays_are_those_of_the_energy():
    energy = jax.tree_util.Partial(lambda scale, x: scale * jnp.sum(x**2), jnp.asarray(3.0))
    whole = EnergyBased(energy, (2,), base=dist.Normal(0.0, 1.0))
    doubled = jax.tree.map(lambda a: a * 2, whole)
    assert float(doubled.energy(jnp.ones(2))) == 2 * float(whole.energy(jnp.ones(2)))
    found = jax.jit(lambda d, x: d.log_prob(x))(whole, jnp.ones(2))
    np.testing.assert_allclose(found, whole.log_prob(jnp.ones(2)), rtol=1e-6)


def test_supports_are_those_of_events():
    assert EnergyBased(quartic, (2,)).support.event_dim == 1
    assert EnergyBased(quartic, (3,), support=dist.constraints.simplex).support.event_dim == 1
    positive = EnergyBased(quartic, (2, 2), base=dist.Exponential(1.0))
    assert positive.support.event_dim == 2
    assert not bool(positive.support(-jnp.ones((2, 2))))


def test_a_base_of_numbers_or_of_events():
    correlated = dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))
    for base in (correlated, dist.Normal(jnp.zeros(2), 1.0), dist.Normal(0.0, 1.0)):
        found = EnergyBased(quartic, (2,), base=base)
        assert found.batch_shape == () and found.event_shape == (2,)
    many = EnergyBased(quartic, base=dist.Normal(jnp.zeros(5), 1.0))
    assert many.batch_shape == (5,) and many.event_shape == ()


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (TypeError, "function of one event", {"energy_fn": 3.0}),
        (ValueError, r"got shape \(2,\).*Sum over", {"energy_fn": lambda x: x**2}),
        (ValueError, "Squeeze", {"energy_fn": lambda x: jnp.sum(x, keepdims=True)}),
        (TypeError, "floating-point", {"energy_fn": lambda x: jnp.argmax(x)}),
        (TypeError, "scalar", {"energy_fn": lambda x: {"energy": x}}),
        (ValueError, "tuple of sizes", {"event_shape": (0,)}),
        (ValueError, "normalised", {"base": EnergyBased(quartic)}),
        (ValueError, "base whose events", {"base": dist.Normal(jnp.zeros(3), 1.0)}),
        (ValueError, "continuous", {"support": dist.constraints.boolean}),
        (ValueError, "continuous", {"support": dist.constraints.real_matrix}),
        (
            ValueError,
            "first axes are the batch",
            {"energy_fn": tilted, "condition": jnp.ones(3), "batch_shape": (2,)},
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(error, match, arguments):
    given = {"energy_fn": quartic, "event_shape": (2,), **arguments}
    with pytest.raises(error, match=match):
        EnergyBased(**given)


def test_there_are_no_exact_draws():
    with pytest.raises(NotImplementedError, match=r"langevin_ppl\.sample"):
        EnergyBased(quartic).sample(KEY)


def test_a_factor_and_an_energy_are_the_same_density():
    def by_energy():
        numpyro.sample("x", EnergyBased(quartic, (3,), base=dist.Normal(0.0, 1.0)))

    def by_factor():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        numpyro.factor("energy", -quartic(x))

    position = {"x": jnp.array([0.3, -0.2, 1.1])}
    one, other = (lp.target(model).logdensity_fn(position) for model in (by_energy, by_factor))
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_supports_are_respected_on_unconstrained_space():
    def model():
        numpyro.sample("x", EnergyBased(lambda x: 2.0 * x, support=dist.constraints.positive))

    target, u = lp.target(model), jnp.asarray(0.4)
    # x = exp(u), whose Jacobian is exp(u).
    np.testing.assert_allclose(target.logdensity_fn({"x": u}), -2.0 * jnp.exp(u) + u, rtol=1e-6)


def test_plates_are_batches():
    def model():
        with numpyro.plate("row", 5):
            numpyro.sample("x", EnergyBased(quartic, (2,)))

    target = lp.target(model)
    assert target.prototype["x"].shape == (5, 2)
    x = jax.random.normal(KEY, (5, 2))
    np.testing.assert_allclose(target.logdensity_fn({"x": x}), -jnp.sum(x**4), rtol=1e-5)
    assert target.dims["x"][0] == "row"


def test_numpyro_masks_and_conditions_it():
    def model():
        with handlers.mask(mask=False):
            numpyro.sample("hidden", EnergyBased(quartic))
        numpyro.sample("x", EnergyBased(quartic), obs=jnp.asarray(2.0))

    value, _ = log_density(model, (), {}, {"hidden": jnp.asarray(3.0)})
    assert float(value) == -16.0


def test_a_double_well_is_sampled_with_its_law():
    """The second and fourth moments by quadrature."""

    def model():
        numpyro.sample("x", EnergyBased(lambda x: (x**2 - 1.0) ** 2))

    idata = lp.sample(KEY, lp.target(model), lp.mala, num_samples=4000)
    grid = np.linspace(-4.0, 4.0, 4001)
    weights = np.exp(-((grid**2 - 1.0) ** 2))
    draws = idata["posterior"]["x"].values
    for power in (2, 4):
        expected = np.sum(weights * grid**power) / np.sum(weights)
        values = draws**power
        error = values.std() / np.sqrt(idata.attrs["min_ess"] / 2)
        assert abs(values.mean() - expected) < 5 * error
        assert error < 0.1


def dependent(what):
    def model(x=None):
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        if what == "energy":
            fn = EnergyBased(lambda x: scale * x**4)
        elif what == "condition":
            fn = EnergyBased(lambda x, c: c * x**4, condition=scale)
        elif what == "base":
            fn = EnergyBased(lambda x: x**4, base=dist.Normal(0.0, scale))
        elif what == "deterministic":
            rate = numpyro.deterministic("rate", jnp.exp(scale))
            fn = EnergyBased(lambda x: rate * x**4)
        with numpyro.plate("row", 3):
            numpyro.sample("x", fn, obs=x)

    return model


@pytest.mark.parametrize("observed", [True, False])
@pytest.mark.parametrize("what", ["energy", "condition", "base", "deterministic"])
def test_a_missing_normaliser_that_depends_on_a_latent_is_refused(what, observed):
    target = lp.target(dependent(what), jnp.ones(3) if observed else None)
    with pytest.raises(ValueError, match=r"'x' depends.*energy\.fit.*energy\.exchange"):
        _ = target.prototype
    with pytest.raises(ValueError, match="silently wrong"):
        lp.sample(KEY, target, lp.mala)


def test_what_depends_on_an_energy_is_not_refused():
    """Values of an energy may enter a likelihood, and a latent may move and scale them."""

    def model(y):
        scale = numpyro.sample("scale", dist.LogNormal(0.0, 1.0))
        move = dist.transforms.AffineTransform(0.0, scale)
        x = numpyro.sample("x", dist.TransformedDistribution(EnergyBased(quartic), move))
        rate = numpyro.param("rate", 2.0)
        z = numpyro.sample("z", EnergyBased(lambda z: rate * z**2))
        numpyro.sample("y", dist.Normal(x + z, scale), obs=y)

    assert set(lp.target(model, jnp.asarray(0.5)).prototype) == {"scale", "x", "z"}


def test_an_energy_that_depends_on_another_is_refused():
    def model():
        x = numpyro.sample("x", EnergyBased(quartic))
        numpyro.sample("z", EnergyBased(lambda z: (z - x) ** 2))

    with pytest.raises(ValueError, match="site 'z' depends on another latent"):
        _ = lp.target(model).prototype


def test_an_energy_that_is_nowhere_finite_is_named():
    def model():
        numpyro.sample("x", EnergyBased(lambda x: jnp.log(-jnp.abs(x) - 1.0)))

    with pytest.raises(ValueError, match=r"site 'x' \(nan\)"):
        lp.target(model).init_position(KEY)

"""What cannot be sampled, or was not meant: refused, with what was expected and the cure."""

import contextlib

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from numpyro.infer import NUTS, init_to_value

import langevin_ppl as lp

KEY = jax.random.key(0)
Y = jnp.array([0.3, 1.2, -0.8])
SMALL = {"num_chains": 2, "num_warmup": 0, "num_samples": 2, "step_size": 0.01}


def normal(y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 3):
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def gaussian(x):
    return -0.5 * jnp.sum(x**2)


MODEL = lp.target(normal, Y)
DENSITY = lp.density(gaussian, jnp.zeros(2))


@pytest.fixture(scope="module")
def earlier():
    """A run of the density."""
    return lp.sample(KEY, DENSITY, **SMALL)


def refuse(kind, *parts):
    """Expect an error whose message holds all the parts."""
    return pytest.raises(kind, check=lambda error: says(str(error), parts))


def says(message, parts):
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in: {message}"
    return True


# --- models -----------------------------------------------------------------------------------


class WithoutSupport(dist.Distribution):
    """A user's distribution that says nothing of its support."""

    def __init__(self):
        super().__init__((), ())

    def log_prob(self, value, intermediates=None):
        return -(value**2)

    def sample(self, key, sample_shape=()):
        return jnp.zeros(sample_shape)


class WithDependentSupport(WithoutSupport):
    support = constraints.dependent


class Unregistered(constraints.Constraint):
    event_dim = 0

    def __call__(self, x):
        return x == x

    def feasible_like(self, prototype):
        return prototype

    def tree_flatten(self):
        return (), ((), {})


class WithUnregisteredSupport(WithoutSupport):
    support = Unregistered()


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        (WithoutSupport, ["without a support", "constraints.real"]),
        (WithDependentSupport, ["declared as dependent", "dependent_property"]),
        (WithUnregisteredSupport, ["support Unregistered", "biject_to.register(Unregistered)"]),
    ],
)
def test_supports(kind, parts):
    def model():
        with numpyro.plate("row", 2):
            numpyro.sample("x", kind().mask(True))

    with refuse(ValueError, "site 'x'", kind.__name__, *parts):
        _ = lp.target(model).structure


@pytest.mark.parametrize("in_plate", [True, False])
def test_masks_of_the_elements_of_events(in_plate):
    def model(y, mask):
        numpyro.sample("mu", dist.Normal(0.0, 1.0))
        fn = dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3))
        with numpyro.plate("row", 5) if in_plate else contextlib.nullcontext():
            numpyro.sample("y", fn, obs=y, obs_mask=mask)

    y = jnp.zeros((5, 3) if in_plate else 3)
    with refuse(ValueError, "site 'y_observed'", "one value for each event", str(y.shape)):
        _ = lp.target(model, y, jnp.ones(y.shape, bool)).structure
    assert lp.target(model, y, jnp.ones(y.shape[:-1], bool)).structure.observed == ("y_observed",)


def test_circular_sites_are_warned_of():
    def model():
        numpyro.sample("angle", dist.VonMises(0.0, 1.0))

    with pytest.warns(UserWarning, match="circular sample site 'angle'.*CircularReparam"):
        _ = lp.target(model).structure


def discrete(y):
    with numpyro.plate("row", 3):
        cluster = numpyro.sample("cluster", dist.Bernoulli(0.5))
        numpyro.sample("y", dist.Normal(1.0 * cluster, 1.0), obs=y)


def discrete_event():
    numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("k", dist.Poisson(jnp.ones(2)).to_event(1))


def all_observed(y):
    numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def nothing():
    numpyro.deterministic("x", 1.0)


def delta():
    numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("known", dist.Delta(2.0))


def delta_in_a_plate():
    numpyro.sample("x", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", 3):
        numpyro.sample("known", dist.Delta(0.0))


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        (lp.target(discrete, Y), ["All latent sites are discrete ('cluster')", "DiscreteGibbs"]),
        (lp.target(discrete_event), ["Discrete latent site 'k'", "gradients"]),
        (lp.target(all_observed, Y), ["no latent site", "condition on too much"]),
        (lp.target(nothing), ["no latent site"]),
        (lp.target(delta), ["'known' has a Delta", "numpyro.deterministic"]),
        (lp.target(delta_in_a_plate), ["'known' has a Delta", "numpyro.deterministic"]),
    ],
    ids=lambda value: value.description if hasattr(value, "description") else "",
)
def test_models_that_cannot_be_sampled(target, parts):
    for use in (lambda: lp.sample(KEY, target), lambda: target.init_position(KEY)):
        with refuse(ValueError, *parts) as error:
            use()
        assert any(target.description in note for note in error.value.__notes__)


# --- models whose data are read in batches ----------------------------------------------------


def rows(name="row", size=3):
    return numpyro.plate(name, size, subsample_size=2)


def batches(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with rows() as index:
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])


def latent_in_batches(y):
    with rows():
        effect = numpyro.sample("effect", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(effect, 1.0), obs=numpyro.subsample(y, event_dim=0))


def partly_observed(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with rows():
        some = numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=some, obs_mask=some > 0)


def deterministic_in_batches(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with rows() as index:
        residual = numpyro.deterministic("residual", y[index] - mu)
        numpyro.factor("fit", -(residual**2))


def with_state(y):
    mutable = numpyro.primitives.mutable("running_mean", jnp.zeros(()))
    mu = numpyro.sample("mu", dist.Normal(mutable, 1.0))
    with rows() as index:
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])


def dropout(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    kept = jax.random.bernoulli(numpyro.prng_key(), 0.5)
    with rows() as index:
        numpyro.sample("y", dist.Normal(kept * mu, 1.0), obs=y[index])


def discrete_and_batches(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    switch = numpyro.sample("switch", dist.Bernoulli(0.5))
    with rows() as index:
        numpyro.sample("y", dist.Normal(mu + switch, 1.0), obs=y[index])


def reads_outside(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with rows() as index:
        some = y[index]
    numpyro.sample("mean", dist.Normal(mu, 1.0), obs=jnp.mean(some))


def summary_of_a_batch(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with rows() as index:
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])
    numpyro.deterministic("fit", jnp.mean(y[index] - mu))


def prior_from_a_batch(y):
    with rows() as index:
        some = y[index]
    mu = numpyro.sample("mu", dist.Normal(jnp.mean(some), 1.0))
    with rows():
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=some)


def correlated_plates(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with rows() as index:
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y[index])
    with rows("other"):
        numpyro.sample("z", dist.Cauchy(mu, 1.0), obs=y[index])


def adds_up(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with rows() as index:
        numpyro.factor("fit", -jnp.sum((y[index] - mu) ** 2))


def batches_in_a_loop(y):
    def step(level, now):
        with rows():
            level = numpyro.sample("level", dist.Normal(level, 1.0))
        return level, None

    scan(step, 0.0, y)


CANNOT_BE_READ_IN_BATCHES = {
    latent_in_batches: [
        "latent site 'effect' lies in the subsampled plate 'row'",
        "Leave out subsample_size",
        "integrate it out",
    ],
    partly_observed: [
        "'y' has an obs_mask in the subsampled plate 'row'",
        "numpyro.handlers.mask",
        "leave out subsample_size",
    ],
    deterministic_in_batches: ["'residual' lies in the subsampled plate 'row'", "Move it out"],
    with_state: ["mutable site 'running_mean'", "plate 'row'", "layer normalisation"],
    dropout: ["random key", "dropout", "plate 'row'", "deterministic=True"],
    discrete_and_batches: ["'switch'", "plate 'row' is subsampled", "MixtureSameFamily"],
    reads_outside: ["'mean' reads the rows", "plate 'row'", "Move it into the plate"],
    summary_of_a_batch: ["'fit' reads the rows", "plate 'row'", "Move it into the plate"],
    prior_from_a_batch: ["'mu' reads the rows", "plate 'row'", "Move it into the plate"],
    correlated_plates: ["'z' reads the rows", "plate 'row'", "go with those of another plate"],
    adds_up: ["factor 'fit' adds up the rows", "plate 'row'", "along axis -1, without their sum"],
    batches_in_a_loop: ["plate 'row' is subsampled inside the body of scan", "with rows:"],
}


@pytest.mark.parametrize("model", CANNOT_BE_READ_IN_BATCHES, ids=lambda model: model.__name__)
def test_models_that_cannot_be_read_in_batches(model):
    target = lp.target(model, Y)
    for use in (lambda: lp.sample(KEY, target), lambda: target.init_position(KEY)):
        with refuse(ValueError, *CANNOT_BE_READ_IN_BATCHES[model]) as error:
            use()
        assert any(target.description in note for note in error.value.__notes__)


def test_a_model_that_does_not_read_its_rows_is_told_how():
    def whole(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with rows():
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(ValueError, match="shapes") as error:
        lp.target(whole, Y).init_position(KEY)
    notes = "".join(error.value.__notes__)
    assert says(notes, ["the subsampled plate 'row'", "numpyro.subsample(y, event_dim=0)"])

    def wrong_axis(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with rows():
            numpyro.sample("y", dist.Normal(mu, 1.0), obs=numpyro.subsample(y, event_dim=0))

    with pytest.raises(ValueError, match=r"plate\(row, 3.*event_dim=0\): \(4,\)"):
        lp.target(wrong_axis, jnp.zeros(4)).init_position(KEY)


def test_what_is_read_in_batches_and_what_is_not():
    """A site that reads nothing of the plate, and a function compiled by the user."""

    @jax.jit
    def both(some, mu):
        return some - mu, jnp.exp(mu)

    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with rows() as index:
            residual, scale = both(y[index], mu)
            numpyro.factor("fit", -(residual**2))
        numpyro.sample("known", dist.Normal(0.0, scale), obs=1.0)
        numpyro.deterministic("scale", scale)

    assert lp.target(model, Y).plates == {"row": (3, 2)}


BATCHES = lp.target(batches, Y)
TWO_PLATES = lp.target(lambda y: (batches(y), rows("other", 5)), Y)


@pytest.mark.parametrize("choice", [lp.minibatch, lp.control_variates, lp.svrg])
@pytest.mark.parametrize("target", [MODEL, DENSITY], ids=["model", "density"])
def test_batches_need_a_subsampled_plate(choice, target):
    centre = {"centre": {"mu": 0.0}} if choice is lp.control_variates else {}
    owner, description = f"{choice.__name__}:", target.description
    with refuse(
        ValueError, owner, description, "no subsampled plate", "subsample_size=B", "exact()"
    ):
        target.gradient(choice(2, **centre))


@pytest.mark.parametrize("size", [0, -1, 4, True, 2.0, "2", jnp.ones(2)], ids=repr)
def test_sizes_of_batches(size):
    for choice in (lp.minibatch(size), lp.svrg(size), lp.minibatch({"row": size})):
        with refuse(ValueError, "between 1 and the 3 rows of the plate 'row'", repr(size)):
            BATCHES.gradient(choice)


def test_sizes_of_the_batches_of_each_plate():
    for sizes in ({"row": 2}, {"row": 2, "rows": 2}, {"row": 2, "other": 2, "third": 1}, {}):
        with refuse(ValueError, "minibatch", "a batch size for each of row, other", *sizes):
            TWO_PLATES.gradient(lp.minibatch(sizes))
    with refuse(ValueError, "between 1 and the 3 rows of the plate 'row'", "4"):
        TWO_PLATES.gradient(lp.minibatch(4))


def test_ways_to_draw_rows():
    known = "('blocks', 'epochs', 'replacement', 'without')"
    for choice in (lp.minibatch, lp.svrg):
        with refuse(ValueError, choice.__name__, "sampling", known, "'shuffle'"):
            choice(sampling="shuffle")
        with refuse(ValueError, choice.__name__, "sampling", "'importance'"):
            choice(sampling="importance")
    with refuse(ValueError, "control_variates", "sampling", "'importance')", "'shuffle'"):
        lp.control_variates(sampling="shuffle")


@pytest.mark.parametrize("every", [0, -1, True, 2.0, "2", None], ids=repr)
def test_steps_between_renewals(every):
    with refuse(ValueError, "svrg", "every", "positive integer", repr(every)):
        lp.svrg(every=every)


def test_choices_of_control_variates():
    for order in (0, 3, "2", 1.5):
        with refuse(ValueError, "control_variates", "order to be 1 or 2", repr(order)):
            lp.control_variates(order=order)
    for pinned in (-1, True, np.int64(-2)):
        with refuse(ValueError, "control_variates", "number of pinned rows"):
            lp.control_variates(pinned=pinned)
    for sampling in ("replacement", "without", "importance"):
        for pinned in (2, [0, 1]):
            with refuse(ValueError, "beside blocks", repr(sampling), "leave pinned out"):
                lp.control_variates(pinned=pinned, sampling=sampling)


def test_control_variates_outside_of_a_run_need_their_choices():
    with refuse(ValueError, "a centre is needed", "control_variates(centre=position)", "mode"):
        BATCHES.gradient(lp.control_variates(2))
    for choices in ({"pinned": 1}, {"pinned": np.int32(1)}, {"sampling": "importance"}):
        with refuse(ValueError, "warm-up of langevin_ppl.sample", "pinned={'row': [...]}"):
            BATCHES.gradient(lp.control_variates(2, centre={"mu": 0.0}, **choices))
    assert not BATCHES.gradient(lp.control_variates(2, centre={"mu": 0.1}, pinned=0)).exact


@pytest.mark.parametrize(
    "centre", [0.0, {"mu": jnp.zeros(1)}, {"nu": 0.0}, {"mu": 0.0, "nu": 0.0}, [0.0]], ids=repr
)
def test_centres(centre):
    with refuse(ValueError, "control_variates", "unconstrained position", "{'mu': ()}", "got"):
        BATCHES.gradient(lp.control_variates(2, centre=centre))


@pytest.mark.parametrize(
    "pinned",
    [
        [3],
        [-1],
        [0, 1, 2],
        [0.5],
        [True, False, True],
        ["first"],
        1.0,
        {"rows": [0]},
        {"row": [0], "other": [1]},
    ],
    ids=repr,
)
def test_pinned_rows(pinned):
    with refuse(ValueError, "pinned", "numbers of rows, fewer than all", "row", repr(pinned)):
        BATCHES.gradient(lp.control_variates(2, centre={"mu": 0.0}, pinned=pinned))


def test_pinned_rows_name_their_plate_where_there_are_several():
    with refuse(ValueError, "pinned", "of the plates row, other"):
        TWO_PLATES.gradient(lp.control_variates(2, centre={"mu": 0.0}, pinned=[0]))


def test_rows_of_a_plate_that_is_none():
    with refuse(ValueError, "logdensity_on", "rows is no subsampled plate", "there are row"):
        BATCHES.logdensity_on({"rows": jnp.arange(2)}, {"mu": 0.0})
    with refuse(ValueError, "logdensity_on", "row is no subsampled plate", "there are none"):
        MODEL.logdensity_on({"row": jnp.arange(2)}, {"mu": 0.0})


def test_a_metropolis_test_and_batches():
    for kernel in (lp.mala, lp.split_ghmc):
        for choice in (lp.minibatch(2), lp.svrg(2), lp.control_variates(2, centre={"mu": 0.1})):
            with refuse(ValueError, f"{kernel} has a Metropolis test", "langevin_ppl.ula"):
                kernel(BATCHES.gradient(choice), step_size=0.1)


def test_batches_are_drawn_with_a_key():
    algorithm = lp.ula(BATCHES.gradient(lp.minibatch(2)), step_size=0.1)
    with refuse(ValueError, "langevin_ppl.ula.init", "needs rng_key"):
        algorithm.init({"mu": jnp.zeros(())})


def test_a_plate_subsampled_to_its_full_size_is_no_subsample():
    def model():
        with numpyro.plate("row", 3, subsample_size=3):
            numpyro.sample("x", dist.Normal(0.0, 1.0))

    assert lp.target(model).init_position(KEY)["x"].shape == (3,)


def test_a_model_that_raises_keeps_its_exception():
    class Mine(Exception):
        pass

    def broken(y):
        numpyro.sample("mu", dist.Normal(0.0, 1.0))
        raise Mine("my own message")

    with pytest.raises(Mine) as error:
        lp.sample(KEY, lp.target(broken, Y))
    assert str(error.value) == "my own message"
    assert any("tracing model broken" in note for note in error.value.__notes__)

    def mismatched(x, y):
        numpyro.sample("w", dist.Normal(jnp.zeros(3), 1.0) if x is None else dist.Normal(x @ y))

    with pytest.raises(TypeError, match="dot_general") as error:
        _ = lp.target(mismatched, jnp.zeros((2, 3)), jnp.zeros(2)).prototype
    assert any("model mismatched" in note for note in error.value.__notes__)


def log_of_negative(y):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.LogNormal(mu, 1.0), obs=y)


def impossible():
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.factor("never", jnp.where(x > 0, -jnp.inf, -jnp.inf))


def steep():
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.factor("kink", jnp.sqrt(0.0 * x))


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        (
            lp.target(normal, Y.at[1].set(jnp.nan)),
            ["site 'y' (-inf, NaN in its row", "missing values without a mask"],
        ),
        (lp.target(log_of_negative, Y), ["site 'y' (-inf)", "support"]),
        (lp.target(impossible), ["site 'never' (-inf)"]),
        (
            lp.target(steep),
            ["density is finite (-", "its gradient for 'x' is not", "init_to_sample"],
        ),
        (
            MODEL.replace(init_strategy=init_to_value(values={"mu": jnp.array(1e30)})),
            ["site 'mu' (-inf), 'y' (-inf)", "target.replace(init_strategy=...)"],
        ),
        (
            lp.density(lambda x: jnp.log(x["a"]) - x["b"] ** 2, {"a": -9.0, "b": 0.0}),
            ["the log density is nan", "`position`", "init_strategy"],
        ),
        (
            lp.density(lambda x: -jnp.sum(x["b"]) * jnp.inf, {"a": 0.0, "b": jnp.ones(2)}),
            ["its gradient for 'b' is not finite"],
        ),
    ],
)
def test_a_density_that_is_finite_nowhere_names_its_sites(target, parts):
    with refuse(ValueError, *parts, "finite"):
        target.init_position(KEY)


def test_sample_says_the_same_and_the_chain():
    target = lp.density(lambda x: -x * jnp.inf, 1.0)
    with refuse(ValueError, "Chain 0", "no start with a finite log density", "init_strategy"):
        lp.sample(KEY, target, **SMALL)
    with refuse(ValueError, "Chain 1", "At the given position the log density is nan"):
        lp.sample(KEY, DENSITY, **SMALL, initial=jnp.array([[0.0, 1.0], [jnp.nan, 1.0]]))


# --- arguments and options of a target --------------------------------------------------------


def test_arguments_that_the_model_does_not_take():
    signature = "normal(y=None) does not take these arguments"
    for args, kwargs, part in (
        ((Y, Y), {}, "too many positional"),
        ((), {"z": Y}, "'z'"),
        ((), {"y": Y, "dims": {"y": ["row"]}}, "'dims'"),
        ((), {"static": "y"}, "target.replace(...)"),
    ):
        with refuse(TypeError, "lp.target", signature, part):
            lp.target(normal, *args, **kwargs)
    with refuse(TypeError, "discrete(y)", "'y'"):
        lp.target(discrete)
    with refuse(TypeError, "expected a NumPyro model", "int"):
        lp.target(3)  # pyright: ignore[reportArgumentType]


def test_arguments_of_a_prediction_that_the_model_does_not_take():
    with refuse(TypeError, "normal(y=None) does not take these arguments", "'x'"):
        MODEL.predict(KEY, {"mu": jnp.zeros((1, 1))}, x=Y)


@pytest.mark.parametrize("target", [MODEL, DENSITY], ids=["model", "density"])
def test_options(target):
    with refuse(TypeError, "unknown option dim", "static, dims, coords, init_strategy, forward"):
        target.replace(dim={})
    with refuse(TypeError, "dims to be a dict", "list"):
        target.replace(dims=["row"])
    with refuse(ValueError, "dims of 'y'", "chain and draw", "['row', 'draw']"):
        target.replace(dims={"y": ["row", "draw"]})
    with refuse(TypeError, "coords to be a dict", "str"):
        target.replace(coords="row")
    for values in (3, "abc"):
        with refuse(TypeError, "coords of 'row'", "a list of values", repr(values)):
            target.replace(coords={"row": values})
    with refuse(TypeError, "init_strategy to be a function", "'median'"):
        target.replace(init_strategy="median")
    with refuse(TypeError, "forward_mode_differentiation to be True or False", "got 1"):
        target.replace(forward_mode_differentiation=1)


def test_static_names_an_argument():
    with refuse(ValueError, "static", "z", "passed were y", "model normal"):
        MODEL.replace(static=("y", "z"))
    with refuse(ValueError, "static", "a density has none"):
        DENSITY.replace(static="x")


def test_an_improper_prior_cannot_be_drawn_from():
    def improper(y):
        support = dist.constraints.real
        mu = numpyro.sample("mu", dist.ImproperUniform(support, (), ()))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with refuse(ValueError, "model improper", "prior cannot be drawn", "ImproperUniform"):
        lp.target(improper, Y).predict_prior(KEY, 2)


def test_densities():
    with refuse(TypeError, "expected a function", "int"):
        lp.density(3, 0.0)  # pyright: ignore[reportArgumentType]
    with refuse(TypeError, "position.n has dtype int32", "jnp.zeros(3)"):
        lp.density(lambda x: x["a"], {"a": 0.0, "n": 1})
    with refuse(TypeError, "bool"):
        lp.density(lambda x: 0.0, jnp.array(True))
    with refuse(ValueError, "scalar log density", "shape (2,)", "sum"):
        lp.density(lambda x: -(x**2), jnp.zeros(2))
    with refuse(TypeError, "floating-point log density", "int32"):
        lp.density(lambda x: 1, jnp.zeros(2))  # pyright: ignore[reportArgumentType]
    with refuse(ValueError, "holds no array"):
        lp.density(lambda x: 0.0, {})


# --- arguments of sample ----------------------------------------------------------------------


def test_what_is_not_a_target():
    with refuse(TypeError, "target", "function", "langevin_ppl.target(model"):
        lp.sample(KEY, normal)
    with refuse(TypeError, "target", "expected what langevin_ppl.target", "dict"):
        lp.sample(KEY, {"mu": 0.0})


@pytest.mark.parametrize("kernel", ["mala", NUTS, gaussian, lp.mala(gaussian, 0.1)])
def test_what_is_not_a_kernel(kernel):
    with refuse(TypeError, "kernel", "langevin_ppl.mala or blackjax.nuts"):
        lp.sample(KEY, DENSITY, kernel)


@pytest.mark.parametrize("kernel", [blackjax.sgld, blackjax.elliptical_slice])
def test_algorithms_that_do_not_take_a_density(kernel):
    with refuse(TypeError, "kernel", "does not sample a log density"):
        lp.sample(KEY, DENSITY, kernel)


def test_unknown_keywords_list_the_known():
    known = "inverse_mass_matrix, step_size, temperature"
    with refuse(TypeError, "unknown keyword stepsize", "langevin_ppl.split_ghmc", "step_size"):
        lp.sample(KEY, DENSITY, stepsize=0.1)
    with refuse(TypeError, "unknown keyword friction", "langevin_ppl.ula", known):
        lp.sample(KEY, DENSITY, lp.ula, friction=0.1)
    with refuse(TypeError, "unknown keyword tau", "blackjax.nuts", "step_size"):
        lp.sample(KEY, DENSITY, blackjax.nuts, tau=0.1)
    with refuse(TypeError, "unknown keyword L"):
        lp.sample(KEY, DENSITY, parameters={"L": 0.1})


@pytest.mark.parametrize("step_size", [0.0, -0.1, float("nan"), float("inf"), "large"])
def test_step_sizes(step_size):
    with refuse(ValueError, "langevin_ppl.split_ghmc", "step_size", "positive", repr(step_size)):
        lp.sample(KEY, DENSITY, step_size=step_size)
    with refuse(ValueError, "step_size", "positive"):
        lp.ula(gaussian, step_size=step_size)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"friction": 0.0}, ["friction", "positive", "0.0"]),
        ({"friction": -1.0}, ["friction", "positive", "-1.0"]),
        ({"friction": jnp.ones(2)}, ["friction", "scalar", "(2,)"]),
        ({"frequency": -0.5}, ["frequency", "at least 0", "-0.5"]),
        ({"taming": -1.5}, ["taming", "at least 0", "-1.5"]),
        ({"location": jnp.zeros(3)}, ["location", "2", "(3,)"]),
        ({"location": jnp.nan}, ["location", "finite"]),
    ],
    ids=str,
)
def test_parameters_of_the_kinetic_kernels(settings, parts):
    with refuse(ValueError, "langevin_ppl.split_ghmc", *parts):
        lp.sample(KEY, DENSITY, **SMALL, **settings)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.5, 1.5, float("nan"), "0.8", True])
def test_acceptance_rates_that_are_none(rate):
    with refuse(ValueError, "target_acceptance_rate", "between 0 and 1", repr(rate)):
        lp.sample(KEY, DENSITY, target_acceptance_rate=rate)


def test_metrics():
    with refuse(ValueError, "metric", "dense, low_rank, diagonal", "'full'"):
        lp.sample(KEY, DENSITY, metric="full")
    for settings in ({"metric": "dense"}, {"target_acceptance_rate": 0.9}):
        with refuse(ValueError, "metric and target_acceptance_rate", "blackjax.nuts"):
            lp.sample(KEY, DENSITY, blackjax.nuts, **settings)


@pytest.mark.parametrize("shape", ["dense", "low_rank"])
def test_a_metric_that_fits_into_no_memory(shape):
    """Refused before anything is traced, and with what it would cost."""
    traces = []

    def large(x):
        traces.append(x)
        return gaussian(x)

    dimension = 100_000 if shape == "dense" else 10_000_000
    target = lp.density(large, jnp.zeros(dimension))
    traces.clear()
    cost = "224 GiB" if shape == "dense" else "GiB"
    with refuse(ValueError, f"a {shape} metric in {dimension} dimensions", cost, "'diagonal'"):
        lp.sample(KEY, target, metric=shape)
    assert not traces


@pytest.mark.parametrize("until", [400, "converged", {"ess": 400}, lp.converged, True])
def test_rules_to_stop_by(until):
    with refuse(TypeError, "until", "langevin_ppl.converged(...)", repr(until)):
        lp.sample(KEY, DENSITY, until=until)


@pytest.mark.parametrize(
    ("matrix", "parts"),
    [
        (jnp.ones(3), ["shape (2,) or (2, 2)", "2 dimensions", "(3,)"]),
        (jnp.ones((2, 3)), ["shape (2,) or (2, 2)", "(2, 3)"]),
        (jnp.ones((1, 2, 2)), ["shape (2,) or (2, 2)", "(1, 2, 2)"]),
        (jnp.array([1.0, -1.0]), ["positive"]),
        (jnp.array([1.0, jnp.nan]), ["positive"]),
        (jnp.array([[1.0, 0.5], [0.0, 1.0]]), ["symmetric and positive definite"]),
        (jnp.array([[1.0, 2.0], [2.0, 1.0]]), ["symmetric and positive definite"]),
    ],
)
def test_inverse_mass_matrices(matrix, parts):
    with refuse(ValueError, "inverse_mass_matrix", *parts):
        lp.sample(KEY, DENSITY, step_size=0.1, inverse_mass_matrix=matrix)


@pytest.mark.parametrize("name", ["num_chains", "num_samples", "thinning"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", jnp.ones(2)])
def test_counts(name, value):
    with refuse(ValueError, name, "integer of at least 1", repr(value)):
        lp.sample(KEY, DENSITY, **{name: value})


def test_counts_without_a_default():
    with refuse(ValueError, "num_chains", "integer of at least 1", "None"):
        lp.sample(KEY, DENSITY, num_chains=None)  # pyright: ignore[reportArgumentType]


def test_counts_of_warmup():
    with refuse(ValueError, "num_warmup", "at least 0", "-1"):
        lp.sample(KEY, DENSITY, num_warmup=-1)


def test_counts_may_be_numpys(earlier):
    counts = {name: np.int64(SMALL[name]) for name in ("num_chains", "num_samples", "num_warmup")}
    again = lp.sample(KEY, DENSITY, **counts, step_size=0.01)
    np.testing.assert_array_equal(again["posterior"]["x"], earlier["posterior"]["x"])


def test_without_warmup_there_is_nothing_to_tune_with():
    for kernel in (lp.mala, lp.ula, blackjax.mala):
        with refuse(TypeError, "needs step_size", "parameters=", "num_warmup > 0"):
            lp.sample(KEY, DENSITY, kernel, num_warmup=0)
    with refuse(TypeError, "blackjax.nuts needs inverse_mass_matrix, step_size"):
        lp.sample(KEY, DENSITY, blackjax.nuts, num_warmup=0)
    with refuse(TypeError, "blackjax.ghmc needs", "no adaptation"):
        lp.sample(KEY, DENSITY, blackjax.ghmc)


@pytest.mark.parametrize(
    "key", [0, None, "key", jax.random.split(KEY, 2), jnp.zeros(2), np.zeros((2, 2), np.uint32)]
)
def test_keys(key):
    with refuse(TypeError, "rng_key", "jax.random.key(0)", type(key).__name__):
        lp.sample(key, DENSITY)


def test_legacy_keys_are_taken(earlier):
    again = lp.sample(jax.random.PRNGKey(0), DENSITY, **SMALL)
    np.testing.assert_array_equal(again["posterior"]["x"], earlier["posterior"]["x"])
    again = lp.sample(np.asarray(jax.random.PRNGKey(0)), DENSITY, **SMALL)
    np.testing.assert_array_equal(again["posterior"]["x"], earlier["posterior"]["x"])


@pytest.mark.parametrize(
    "initial",
    [
        jnp.zeros(2),
        jnp.zeros((3, 2)),
        jnp.zeros((2, 3)),
        {"x": jnp.zeros((2, 2))},
        [jnp.zeros((2, 2))],
        "start",
        0.0,
    ],
)
def test_initial_positions(initial):
    with refuse(ValueError, "initial", "leading axis of num_chains", "(2, 2)"):
        lp.sample(KEY, DENSITY, **SMALL, initial=initial)


def test_initial_positions_of_other_runs(earlier):
    with refuse(TypeError, "initial", "does not come from langevin_ppl.sample"):
        lp.sample(KEY, DENSITY, **SMALL, initial=xr.DataTree())
    with refuse(ValueError, "initial", "earlier run has the variables x", "mu"):
        lp.sample(KEY, MODEL, **SMALL, initial=earlier)
    with refuse(ValueError, "initial", "num_chains", "(3, 2)", "(2, 2)"):
        lp.sample(KEY, DENSITY, **{**SMALL, "num_chains": 3}, initial=earlier)


@pytest.mark.parametrize("parameters", [0.1, [0.1], "earlier", xr.DataTree()])
def test_parameters(parameters):
    with refuse(TypeError, "parameters", "a dict, or the DataTree of an earlier run"):
        lp.sample(KEY, DENSITY, parameters=parameters)


def test_groups():
    with refuse(ValueError, "groups", "log_likelihood", "likelihoods"):
        lp.sample(KEY, MODEL, groups=["likelihoods"])
    with refuse(ValueError, "groups", "expected a list of", "'prior'"):
        lp.sample(KEY, MODEL, groups="prior")
    for group in ("log_likelihood", "posterior_predictive", "prior"):
        with refuse(ValueError, "groups", group, "this target is a density"):
            lp.sample(KEY, DENSITY, groups=[group])


def test_dims_and_coords():
    short = {**SMALL, "num_chains": 1}
    with refuse(ValueError, "dims of 'mu'", "at most 0 names for shape ()", "group"):
        lp.sample(KEY, MODEL.replace(dims={"mu": ["group"]}), **short)
    with refuse(ValueError, "dims of 'y'", "at most 1 names for shape (3,)", "['a', 'b']"):
        lp.sample(KEY, MODEL.replace(dims={"y": ["a", "b"]}), **short)
    with refuse(ValueError, "coords of 'row'", "expected 3 values", "'y'", "got 2"):
        lp.sample(KEY, MODEL.replace(coords={"row": ["a", "b"]}), **short)


def test_a_metropolis_test_needs_all_the_data():
    from langevin_ppl.base import Estimate, GradientEstimator

    def estimate(batch, position, memory):
        return Estimate(*jax.value_and_grad(gaussian)(position)), memory

    noisy = GradientEstimator(lambda position: (), lambda key, step: (), estimate, exact=False)
    for kernel in (lp.mala, lp.split_ghmc):
        with refuse(ValueError, f"{kernel} has a Metropolis test", "langevin_ppl.ula"):
            kernel(noisy, step_size=0.1)

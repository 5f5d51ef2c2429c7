"""Scores that are learned: losses, networks, and the loop that trains them."""

import dataclasses
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import langevin_ppl as lp
from langevin_ppl.scores import training
from langevin_ppl.scores.learned import Learned
from langevin_ppl.scores.networks import Conditioning
from langevin_ppl.scores.objective import left_out
from langevin_ppl.scores.times import TIMES, WEIGHTINGS, draw_times

KEY = jax.random.key(0)
WEIGHTS, MEANS, VARIANCES = [0.4, 0.6], [[-1.0, 0.5], [1.5, 0.0]], [0.1, 0.3]
SMALL = lp.scores.residual_mlp(width=32, depth=1)
PROCESSES = [
    lp.scores.VP(),
    lp.scores.SubVP(),
    lp.scores.VPCosine(),
    lp.scores.VE(),
    lp.scores.EDM(),
    lp.scores.RectifiedFlow(),
    lp.scores.Interpolant(),
    lp.scores.GeometricBrownian(),
    lp.scores.PFGM(),
]


def mixture(count, seed=0):
    """Draws of the mixture, ``[count, 2]``."""
    rng = np.random.default_rng(seed)
    which = rng.choice(2, count, p=WEIGHTS)
    noise = rng.normal(size=(count, 2)) * np.sqrt(VARIANCES)[which, None]
    return (np.asarray(MEANS)[which] + noise).astype(np.float32)


def log_mixture(x):
    squares = jnp.sum((x - jnp.asarray(MEANS)) ** 2, axis=1)
    variances = jnp.asarray(VARIANCES)
    logs = jnp.log(jnp.asarray(WEIGHTS)) - jnp.log(variances) - 0.5 * squares / variances
    return jax.nn.logsumexp(logs)


def tiny(rng_key, size=2, width=8):
    """A user's own network: a function with its weights."""
    keys = jax.random.split(rng_key, 3)
    shapes = (width, size + 1), (size, width), (size,)
    return Partial(
        _tiny, *(0.3 * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True))
    )


def _tiny(first, second, shift, u, noise_level, condition):
    return second @ jnp.tanh(first @ jnp.append(u, noise_level)) + shift


def relative_error(found, expected):
    return float(jnp.sqrt(jnp.mean((found - expected) ** 2) / jnp.mean(expected**2)))


# Learning


LEARNED = {
    "denoising": (lp.scores.VP(), lp.scores.denoising(), {}),
    "flow": (lp.scores.RectifiedFlow(), lp.scores.flow_matching(), {}),
    "sliced": (lp.scores.VE(), lp.scores.sliced(num_slices=4), {}),
    "poisson": (lp.scores.PFGM(), lp.scores.denoising("simple"), {}),
    "target": (
        lp.scores.GeometricBrownian(),
        lp.scores.target_informed(lambda x: log_mixture(jnp.log(x)) - jnp.sum(jnp.log(x))),
        {"conservative": True},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", LEARNED)
def test_a_learned_denoiser_approaches_the_exact_one(case):
    """Within a third of the distance that the best Gaussian denoiser, the start, is away."""
    process, loss, options = LEARNED[case]
    data = np.asarray(process.decode(mixture(2000)))
    fitted = lp.scores.fit(
        KEY, data, process, network=SMALL, loss=loss, num_steps=1000,
        optimizer=5e-3, progress=False, **options,
    )  # fmt: skip
    assert fitted.complete
    assert fitted.num_steps == len(fitted.losses) == 1000
    if process.gaussian:
        exact = lp.scores.exact_mixture(process, WEIGHTS, MEANS, VARIANCES)
    else:
        exact = lp.scores.empirical(process, mixture(10_000, seed=2))
    before = fitted.score.denoiser
    before = dataclasses.replace(before, network=jax.tree.map(jnp.zeros_like, before.network))
    start = fitted.score.replace(denoiser=before, potential=None)
    fresh = np.asarray(process.decode(mixture(500, seed=1)))

    @jax.jit
    def errors(t, *scores):
        x = process.encode(process.perturb(jax.random.key(1), fresh, t, event_ndim=1))
        wanted = exact.denoise(x, t)
        return [jnp.sqrt(jnp.mean((score.denoise(x, t) - wanted) ** 2)) for score in scores]

    for ratio in (0.3, 1.0, 3.0):
        error, reach = errors(process.time_at(ratio), fitted.score, start)
        assert error < reach / 3 + 0.01, ratio


@pytest.mark.slow
def test_labels_and_no_label_are_both_learned():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 2000)
    data = rng.normal(4.0 * labels[:, None] - 2.0, 0.3)
    fitted = lp.scores.fit(
        KEY, data, lp.scores.EDM(), network=SMALL, condition=labels, condition_dropout=0.3,
        num_steps=600, optimizer=5e-3, validation=0.1, progress=False,
    )  # fmt: skip
    # With noise 20 a datum says next to nothing, and the denoiser is the mean.
    denoise = jax.jit(lambda score, *arguments: score.denoise(*arguments))
    means = denoise(fitted.score, jnp.zeros((3, 1)), 20.0, jnp.array([0, 1, -1]))[:, 0]
    np.testing.assert_allclose(means, [-2.0, 2.0, np.mean(data)], atol=0.25)
    assert fitted.validation_steps.tolist() == list(range(12, 601, 12))
    assert fitted.validation_losses[-1] < 0.5 * fitted.validation_losses[0]


# Losses


def scored(process, shift):
    """Denoiser that is off by a smooth function, and the exact one with ``shift=0``."""
    exact = lp.scores.exact_mixture(process, WEIGHTS, MEANS, VARIANCES).denoiser

    def denoiser(x, t, condition):
        noise = process.ratio(t)
        bump = jnp.sin(x / jnp.sqrt(1.0 + process.sigma(t) ** 2)) * noise / (1.0 + noise)
        return exact(x, t, condition) + shift * bump

    return denoiser


REGRESSIONS = {
    **{w: lp.scores.denoising(w, "log_uniform") for w in WEIGHTINGS},
    **{t: lp.scores.denoising("simple", t) for t in TIMES},
    "flow": lp.scores.flow_matching(),
}
OTHERS = {
    "sliced": (lp.scores.sliced(), lp.scores.denoising("simple")),
    "target": (lp.scores.target_informed(log_mixture), lp.scores.denoising()),
}
"""Losses, and the regression that each has the mean of, up to a constant."""


def repeated(fn, count=64):
    """Mean and standard error of a function of a key and of data that the key draws."""
    rows = mixture(count * 512, seed=3).reshape(count, 512, 2)
    found = jax.jit(lambda: jax.vmap(fn)(jax.random.split(KEY, count), rows))()
    return np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / np.sqrt(count)


def slope(loss, process, key, x, shift):
    """Derivative of a loss in the shift of the denoiser."""
    return jax.grad(lambda s: loss(key, scored(process, s), process, x, None, 1.0))(shift)


@pytest.mark.parametrize("process", [lp.scores.VP(), lp.scores.RectifiedFlow()])
def test_the_exact_denoiser_minimises_every_regression(process):
    """The slope is zero there, and far outside of its noise where the denoiser is off."""

    def slopes(key, x):
        found = [[slope(loss, process, key, x, s) for s in (0.0, 0.3)] for loss in losses]
        return jnp.asarray(found)

    losses = list(REGRESSIONS.values())
    mean, error = repeated(slopes)
    for name, (at, away), (error_at, error_away) in zip(REGRESSIONS, mean, error, strict=True):
        assert abs(at) < 4 * error_at, name
        assert away > 8 * error_away, name


@pytest.mark.parametrize("name", OTHERS)
def test_other_losses_have_the_slopes_of_a_regression(name):
    """None at the optimum, and the same away from it: errors of the denoiser weigh alike."""
    process = lp.scores.VE()

    def slopes(key, x):
        found = [[slope(loss, process, key, x, s) for s in (0.0, 0.3)] for loss in OTHERS[name]]
        return jnp.asarray(found)

    (other, regression), (error, error_regression) = repeated(slopes)
    assert abs(other[0]) < 4 * error[0]
    both = np.hypot(error[1], error_regression[1])
    assert abs(other[1] - regression[1]) < 4 * both
    assert other[1] > 8 * both


def test_the_mean_of_the_sliced_loss_is_that_of_the_regression():
    process = lp.scores.VE()

    def values(key, x):
        denoiser = scored(process, 0.3)
        return jnp.stack([f(key, denoiser, process, x, None, 1.0) for f in OTHERS["sliced"]])

    mean, error = repeated(values)
    assert abs(mean[0] - mean[1]) < 4 * np.hypot(*error)
    assert mean[0] > 8 * np.hypot(*error)


@pytest.mark.parametrize(
    "process", [lp.scores.EDM(), lp.scores.VP(), lp.scores.GeometricBrownian()]
)
def test_a_target_informed_loss_has_no_noise_for_gaussian_data(process):
    """Also with the Jacobian of the logarithm, for log-normal data."""
    mean, sd = 0.4, 0.7
    x = mean + sd * jax.random.normal(KEY, (256, 2))

    def log_density(data):
        y = process.encode(data)
        normal = -0.5 * jnp.sum((y - mean) ** 2) / sd**2
        return normal - (jnp.sum(y) if process.multiplicative else 0.0)

    exact = lp.scores.exact_mixture(process, [1.0], [[mean, mean]], [sd**2])
    losses = lp.scores.target_informed(log_density), lp.scores.denoising()
    found = jax.jit(lambda: [loss(KEY, exact.denoiser, process, x, None, sd) for loss in losses])()
    assert found[0] < 1e-4
    assert found[1] > 0.1


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_flow_matching_is_the_regression_of_the_velocity(process):
    loss = lp.scores.flow_matching()
    x = jnp.asarray(mixture(256))
    denoiser = Partial(lambda x, t, condition: jnp.tanh(x) + 0.1 * t)
    score = lp.scores.Score(denoiser, process, (2,))

    @jax.jit
    def both():
        t, _, noise, noised = loss.noised(KEY, process, x, 1.0)
        rise, spread = (
            jax.jvp(schedule, (t,), (jnp.ones_like(t),))[1][:, None]
            for schedule in (process.alpha, process.sigma)
        )
        error = score.velocity(noised, t) - (rise * x + spread * noise)
        return loss(KEY, score.denoiser, process, x, None, 1.0), jnp.mean(error**2)

    found, literal = both()
    np.testing.assert_allclose(found, literal, rtol=2e-3)


def test_the_loss_of_an_interpolant_is_that_of_the_paper_up_to_a_constant():
    process = lp.scores.Interpolant(latent=0.7)
    loss = lp.scores.flow_matching()

    def velocity(shift):
        return lp.scores.Score(Partial(scored(process, shift)), process, (2,)).velocity

    def of_paper(key, x, shift):
        """``|b|^2 - 2 (dI/dt + dgamma/dt z) b`` with two noises, in the mean over numbers."""
        key_t, key_end, key_z = jax.random.split(key, 3)
        t = jax.random.uniform(key_t, (len(x), 1), minval=process.t_min, maxval=process.t_max)
        end, z = (jax.random.normal(k, x.shape) for k in (key_end, key_z))
        gamma, slope = jax.jvp(
            lambda t: jnp.sqrt(process.latent * t * (1.0 - t)), (t,), (jnp.ones_like(t),)
        )
        b = velocity(shift)((1.0 - t) * x + t * end + gamma * z, t[:, 0])
        return jnp.mean(b**2 - 2.0 * (end - x + slope * z) * b)

    def differences(key, x):
        ours = [loss(key, scored(process, s), process, x, None, 1.0) for s in (0.5, 0.0)]
        theirs = [of_paper(key, x, s) for s in (0.5, 0.0)]
        return jnp.stack([ours[0] - ours[1], theirs[0] - theirs[1]])

    mean, error = repeated(differences, count=256)
    assert abs(mean[0] - mean[1]) < 4 * np.hypot(*error)
    assert mean[0] > 8 * np.hypot(*error)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_densities_of_times(process):
    """The mean of ``1 / density`` over an interval of the log ratio is its length."""
    laws = jax.jit(lambda: [draw_times(law, KEY, process, 20_000, 1.0) for law in TIMES])()
    length = process.t_max - process.t_min
    for law, (t, density) in zip(TIMES, laws, strict=True):
        assert process.t_min <= t.min() and t.max() <= process.t_max
        ends = process.t_min, process.t_max
        if law in ("uniform", "logit_normal"):
            # Hardly any time is near the ends, where the ratio changes most.
            ends = process.t_min + 0.2 * length, process.t_min + 0.7 * length
        low, high = (np.log(process.ratio(np.asarray(end))) for end in ends)
        inside = (t >= ends[0]) & (t <= ends[1])
        np.testing.assert_allclose(np.mean(inside / density), high - low, rtol=0.02, err_msg=law)


def test_likelihood_weights_are_the_same_bound_for_every_law():
    process = lp.scores.VP()

    def bounds(key, x):
        denoiser = scored(process, 0.5)
        laws = ("log_uniform", "lognormal")
        losses = [lp.scores.denoising("likelihood", law) for law in laws]
        return jnp.stack([loss(key, denoiser, process, x, None, 1.0) for loss in losses])

    mean, error = repeated(bounds)
    assert abs(mean[0] - mean[1]) < 4 * np.hypot(*error)
    assert np.all(mean > 20 * error)


# The parametrisation


SOME = [lp.scores.VP(), lp.scores.EDM(), lp.scores.Interpolant(), lp.scores.PFGM()]


def learned_by(process, conservative=False):
    """A denoiser whose network is not zero."""
    network = SMALL.build(KEY, (2,))
    last = 0.1 * jax.random.normal(KEY, network.last.weight.shape)
    network = eqx.tree_at(lambda n: n.last.weight, network, last)
    location, sd = jnp.array([0.3, -0.2]), jnp.asarray(0.8)
    return Learned(network, location, sd, None, None, process, conservative)


@pytest.mark.parametrize("process", SOME, ids=lambda p: type(p).__name__)
def test_preconditioning_is_that_of_karras_for_the_datum_that_is_not_shrunk(process):
    learned = learned_by(process)

    @jax.jit
    def both(x):
        t = process.time_at(0.9)
        y, r, sd = x / process.alpha(t) - learned.location, process.ratio(t), learned.scale
        skip, out = sd**2 / (r**2 + sd**2), r * sd / jnp.sqrt(r**2 + sd**2)
        inner = learned.network(y / jnp.sqrt(r**2 + sd**2), 0.25 * jnp.log(r / sd), None)
        return learned(x, t), learned.location + skip * y + out * inner, out * inner

    found, expected, inner = both(jnp.array([0.7, -0.4]))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert jnp.all(jnp.abs(inner) > 1e-3)


@pytest.mark.parametrize("process", SOME, ids=lambda p: type(p).__name__)
def test_a_conservative_score_is_the_gradient_of_its_energy(process):
    learned = learned_by(process, conservative=True)
    score = training.as_score(learned, (2,), None, "")

    @jax.jit
    def gradients(x):
        t = process.time_at(0.9)
        found = jax.grad(learned.potential)(x, t), learned(x, t), jax.jacobian(learned)(x, t)
        if process.gaussian:
            found += jax.grad(score.energy)(x, t), -score(x, t)
        return found

    slope, denoised, curvature, *energy = gradients(jnp.array([0.7, -0.4]))
    np.testing.assert_allclose(slope, denoised, rtol=1e-4)
    np.testing.assert_allclose(curvature, curvature.T, atol=1e-5)
    if energy:
        np.testing.assert_allclose(*energy, rtol=1e-3, atol=1e-5)
    other = jax.jacobian(learned_by(process))(jnp.array([0.7, -0.4]), process.time_at(0.9))
    assert not jnp.allclose(other, other.T, atol=1e-3)


def test_a_learned_score_keeps_its_process():
    score = training.as_score(learned_by(lp.scores.VP()), (2,), None, "")
    with pytest.raises(ValueError, match=r"expected VP\(.*the denoiser is for, got VE"):
        score.replace(process=lp.scores.VE())
    exact = lp.scores.exact_mixture(lp.scores.VP(), WEIGHTS, MEANS, VARIANCES)
    with pytest.raises(ValueError, match="which the denoiser is for"):
        exact.replace(process=lp.scores.VE())


# Networks


@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (3, 7, 10), (1, 1, 1)])
def test_a_unet_takes_images_of_any_size(shape):
    spec = lp.scores.unet(channels=(4, 6, 8), width=8)
    labels = Conditioning((), 3)
    network = jax.eval_shape(lambda: spec.build(KEY, shape, labels))
    event, level = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    found = jax.eval_shape(lambda n, u, c: n(u, c, jnp.asarray(1)), network, event, level)
    assert found.shape == shape


def test_convolutions_by_patches_are_convolutions():
    from langevin_ppl.scores import modules

    x = jax.random.normal(KEY, (7, 6, 3))
    for size, stride in ((3, 1), (3, 2), (1, 1)):
        weight = jax.random.normal(KEY, (size, size, 3, 5))
        found = modules._by_patches(stride, x, weight)
        np.testing.assert_allclose(found, modules._by_convolution(stride, x, weight), atol=1e-4)


def test_events_of_a_unet_do_not_touch_each_other():
    spec = lp.scores.unet(channels=(4, 8), width=8)
    x = jax.random.normal(KEY, (3, 8, 8))

    rng = np.random.default_rng(0)
    network = jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32),
        jax.eval_shape(lambda: spec.build(KEY, (8, 8))),
    )
    outputs = jax.jit(jax.vmap(lambda u: network(u, jnp.asarray(0.1), None)))
    together, others = outputs(x), outputs(x.at[:2].set(0.0))
    np.testing.assert_array_equal(together[2], others[2])
    assert jnp.std(together[2]) > 0.1
    assert not jnp.allclose(together[0], others[0])


@pytest.mark.parametrize("kind", [Conditioning((), 3), Conditioning((2,))])
def test_no_condition_is_one_that_is_learned(kind):
    """The label -1 and a vector of NaN; what is neither valid nor that gives NaN."""
    network = SMALL.build(KEY, (2,), kind)
    network = eqx.tree_at(lambda n: n.last.weight, network, jnp.ones_like(network.last.weight))
    labels = kind.num_classes is not None
    given = jnp.array(2) if labels else jnp.array([1.0, 2.0])
    wrong = [jnp.array(3), jnp.array(-2)] if labels else [jnp.array([1.0, jnp.nan])]
    null = lp.scores.unconditional(given)

    @jax.jit
    def output(network, condition):
        return network(jnp.ones(2), jnp.asarray(0.2), condition)

    assert jnp.all(jnp.isfinite(output(network, null)))
    assert not jnp.allclose(output(network, null), output(network, given))
    gradient = jax.jit(jax.grad(lambda n: jnp.sum(output(n, null))))(network)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    for condition in wrong:
        assert jnp.all(jnp.isnan(output(network, condition)))
    if labels:
        with pytest.raises(TypeError, match="expected an integer"):
            output(network, jnp.array(1.0))


@pytest.mark.parametrize("condition", [jnp.arange(4000), jnp.ones((4000, 2))])
def test_conditions_are_left_out_at_random(condition):
    dropped = left_out(KEY, condition, 0.25)
    rows = condition.reshape(4000, -1), dropped.reshape(4000, -1)
    absent = np.all(np.isnan(rows[1]) | (rows[1] == -1), axis=1)
    # Four standard errors of a share of 4000.
    assert abs(absent.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)
    np.testing.assert_array_equal(rows[0][~absent], rows[1][~absent])
    np.testing.assert_array_equal(left_out(KEY, condition, 0.0), condition)


def test_without_equinox_exact_scores_work_and_networks_say_what_to_install():
    code = (
        "import sys; sys.modules['equinox'] = None\n"
        "import jax, jax.numpy as jnp, langevin_ppl as lp\n"
        "score = lp.scores.exact_mixture(lp.scores.VP(), [1.0], [[0.0]], [1.0])\n"
        "print(score(jnp.ones(1), 0.5))\n"
        "try: lp.scores.fit(jax.random.key(0), [[0.0], [1.0]], lp.scores.VP())\n"
        "except ImportError as error: print(error)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'langevin-ppl[diffusion]'" in shown.stdout

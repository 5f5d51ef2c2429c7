"""Guided scores, against the scores that they should be on laws where these are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from jax.tree_util import Partial

import langevin_ppl as lp
from langevin_ppl.diffusion.generate import _advance

scores, diffusion = lp.scores, lp.diffusion

PROCESSES = [scores.VP(), scores.EDM(), scores.RectifiedFlow(), scores.SubVP()]
WEIGHTS, MEANS = [0.3, 0.7], [[-1.0, 0.5], [1.5, 0.0]]
VARIANCES = [[0.3, 0.2], [0.1, 0.4]]
X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)), jnp.float32)
MATRIX = np.array([[1.0, -0.5, 0.2], [0.3, 0.8, 0.0]])


def times(process):
    """Times where the noise is of the size of the data and where it is not."""
    return [float(process.time_at(ratio)) for ratio in (0.1, 1.0, 5.0)]


def by_process(*cases):
    return pytest.mark.parametrize("process", cases, ids=lambda p: type(p).__name__)


def of_class(process, weights, means, variances, number, x, t):
    """Log probability of a component given a noised datum."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    scale = jnp.sqrt(alpha**2 * variances + sigma**2)
    logs = jnp.log(weights) + norm.logpdf(x, alpha * means, scale).sum(axis=1)
    return jax.nn.log_softmax(logs)[number]


def exact_classifier(process, number):
    arrays = (jnp.asarray(part, jnp.float32) for part in (WEIGHTS, MEANS, VARIANCES))
    return Partial(Partial(of_class, process), *arrays, number)


@by_process(*PROCESSES)
def test_the_exact_classifier_gives_the_score_of_its_class(process):
    score = scores.exact_mixture(process, WEIGHTS, MEANS, VARIANCES)
    guided = diffusion.classifier_guidance(score, exact_classifier(process, 1))
    alone = scores.exact_mixture(process, [1.0], MEANS[1:], VARIANCES[1:])
    for t in times(process):
        np.testing.assert_allclose(guided(X, t), alone(X, t), rtol=2e-3, atol=2e-3)
    assert not guided.exact and guided.potential is None and guided.spec is None


def test_weights_scale_what_the_classifier_adds():
    process = PROCESSES[0]
    score = scores.exact_mixture(process, WEIGHTS, MEANS, VARIANCES)
    found = [
        diffusion.classifier_guidance(score, exact_classifier(process, 0), w)(X, 0.3)
        for w in (0.0, 1.0, 3.0)
    ]
    np.testing.assert_allclose(found[0], score(X, 0.3), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        found[2] - found[0], 3.0 * (found[1] - found[0]), rtol=1e-3, atol=1e-4
    )


def labelled(x, t, label):
    """Denoiser of N(2 label, 1), and for no label of N(1, 2)."""
    none = label < 0
    mean, variance = jnp.where(none, 1.0, 2.0 * label), jnp.where(none, 2.0, 1.0)
    return (t**2 * mean + variance * x) / (t**2 + variance)


def vectors(x, t, condition):
    """Denoiser of N(condition, 1), and of N(0, 3) where all of it is NaN."""
    none = jnp.all(jnp.isnan(condition))
    mean, variance = jnp.where(none, 0.0, condition), jnp.where(none, 3.0, 1.0)
    return (t**2 * mean + variance * x) / (t**2 + variance)


@pytest.mark.parametrize(
    ("denoiser", "shape", "condition", "none"),
    [
        (labelled, (), np.array([0, 1, 2, 0, 1, 2]), -1),
        (vectors, (2,), np.arange(12.0).reshape(6, 2), np.full(2, np.nan)),
    ],
    ids=["labels", "vectors"],
)
def test_guidance_without_a_classifier(denoiser, shape, condition, none):
    score = scores.Score(denoiser, scores.EDM(), (2,), condition_shape=shape)
    with_it, without = score.denoise(X, 0.7, condition), score.denoise(X, 0.7, none)
    for weight in (0.0, 1.0, 2.5):
        guided = diffusion.classifier_free_guidance(score, weight)
        expected = without + weight * (with_it - without)
        found = guided.denoise(X, 0.7, condition)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    generated = diffusion.generate(
        jax.random.key(0), diffusion.classifier_free_guidance(score, 1.0), None, 6,
        condition=condition,
    )  # fmt: skip
    alone = diffusion.generate(jax.random.key(0), score, None, 6, condition=condition)
    np.testing.assert_allclose(generated.samples, alone.samples, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("process", [scores.VP(), scores.PFGM()], ids=lambda p: type(p).__name__)
def test_replacement_agrees_with_the_observation_and_changes_nothing_else(process):
    data = np.random.default_rng(1).normal(size=(7, 3))
    score, x = scores.empirical(process, data), jnp.ones((2, 3))
    clean = np.asarray(score.denoise(x, 0.5))
    mask, observation = np.array([True, False, True]), np.array([0.3, np.nan, -0.2])
    guided = diffusion.replacement(score, mask, observation).denoise(x, 0.5)
    np.testing.assert_allclose(guided[:, mask], np.tile(observation[mask], (2, 1)))
    np.testing.assert_allclose(guided[:, ~mask], clean[:, ~mask], rtol=1e-6)
    # The third row says what the first two say: rank 2.
    operator = np.vstack([MATRIX, MATRIX.sum(axis=0)])
    observation = operator @ [0.5, -1.0, 2.0]
    guided = diffusion.replacement(score, operator, observation).denoise(x, 0.5)
    np.testing.assert_allclose(guided @ operator.T, np.tile(observation, (2, 1)), atol=1e-5)
    null = np.eye(3) - np.linalg.pinv(operator) @ operator
    np.testing.assert_allclose((guided - clean) @ null, np.zeros((2, 3)), atol=1e-5)


def gaussian(process, variance=0.8):
    """Score of N(0, variance I) in three dimensions."""
    return scores.exact_mixture(process, [1.0], np.zeros((1, 3)), [variance])


def unscaled(process, t, guided, score, x):
    """What was added to the score, from what was added to the denoiser."""
    added = guided.denoise(x, t) - score.denoise(x, t)
    return np.asarray(added * process.alpha(t) / process.sigma(t) ** 2)


@by_process(*PROCESSES[:3])
def test_posterior_sampling_in_closed_form(process):
    """Of a Gaussian prior the denoiser is linear, ``D = k x``."""
    score, x, y = gaussian(process), jnp.array([0.5, -0.3, 1.2]), np.array([0.7, -0.4])
    for t in times(process):
        alpha, sigma = process.alpha(t), process.sigma(t)
        k = 0.8 * alpha / (0.8 * alpha**2 + sigma**2)
        residual = y - MATRIX @ (k * np.asarray(x))
        plain = diffusion.posterior_sampling(
            score, operator=MATRIX, observation=y, noise_scale=0.5, step=2.0
        )
        expected = 2.0 * k * MATRIX.T @ residual / 0.5**2
        np.testing.assert_allclose(unscaled(process, t, plain, score, x), expected, rtol=5e-3)
        paper = diffusion.posterior_sampling(score, operator=MATRIX, observation=y, step=0.3)
        expected = 0.3 * 2.0 * k * MATRIX.T @ residual / np.linalg.norm(residual)
        np.testing.assert_allclose(unscaled(process, t, paper, score, x), expected, rtol=5e-3)

        def of_clean(clean):
            return -0.5 * jnp.sum((y - MATRIX @ clean) ** 2) / 0.5**2

        by_function = diffusion.posterior_sampling(score, of_clean, step=2.0)
        np.testing.assert_allclose(by_function(x, t), plain(x, t), rtol=1e-4, atol=1e-4)


def test_the_step_of_the_paper_is_finite_where_nothing_is_left():
    score = gaussian(scores.EDM())
    guided = diffusion.posterior_sampling(score, operator=np.eye(3), observation=np.zeros(3))
    assert np.array_equal(guided.denoise(jnp.zeros(3), 1.0), np.zeros(3))


@by_process(*PROCESSES)
@pytest.mark.parametrize("kind", ["mask", "matrix"])
def test_pseudoinverse_guidance_is_right_for_gaussian_data(process, kind):
    """The guided score is that of the noised posterior, mean and covariance by conjugacy."""
    if kind == "mask":
        operator, y = np.array([True, False, True]), np.array([0.7, np.nan, -0.4])
        matrix, seen = np.eye(3)[operator], y[operator]
    else:
        operator, y = MATRIX, np.array([0.7, -0.4])
        matrix, seen = operator, y
    guided = diffusion.pseudoinverse_guidance(
        gaussian(process), operator, y, noise_scale=0.6, data_scale=np.sqrt(0.8)
    )
    covariance = np.linalg.inv(np.eye(3) / 0.8 + matrix.T @ matrix / 0.36)
    mean = covariance @ matrix.T @ seen / 0.36
    posterior = scores.exact_mixture(process, [1.0], mean[None], covariance[None])
    x = jnp.array([[0.5, -0.3, 1.2], [-1.0, 0.0, 0.4]])
    for t in times(process):
        np.testing.assert_allclose(guided(x, t), posterior(x, t), rtol=2e-3, atol=2e-3)


def test_guided_samples_have_the_law_of_the_posterior():
    """Of Gaussian data with their sum observed, and of a class: means within 5 standard errors."""
    sampler, key = diffusion.dpm_solver_pp(order=2, num_steps=40), jax.random.key(0)
    score = scores.exact_mixture(scores.VP(), [1.0], np.zeros((1, 2)), [1.0])
    score = diffusion.pseudoinverse_guidance(score, np.array([[1.0, 1.0]]), [2.0], noise_scale=0.5)
    total = diffusion.generate(key, score, sampler, 2000).samples.sum(axis=1)
    variance = 1.0 / (1.0 / 2.0 + 1.0 / 0.25)
    assert abs(total.mean() - variance * 2.0 / 0.25) < 5 * np.sqrt(variance / 2000)
    np.testing.assert_allclose(total.var(), variance, rtol=5 * np.sqrt(2.0 / 2000))
    process = scores.VP()
    mixture = scores.exact_mixture(process, WEIGHTS, MEANS, VARIANCES)
    one = diffusion.classifier_guidance(mixture, exact_classifier(process, 0))
    drawn = diffusion.generate(key, one, sampler, 2000).samples
    error = np.sqrt(np.array(VARIANCES[0]) / 2000)
    assert np.all(np.abs(drawn.mean(axis=0) - MEANS[0]) < 5 * error)
    np.testing.assert_allclose(drawn.var(axis=0), VARIANCES[0], rtol=0.2)


def test_new_observations_compile_nothing():
    score, sampler = gaussian(scores.VP()), diffusion.dpm_solver_pp(num_steps=5)
    makers = [
        lambda y: diffusion.replacement(score, MATRIX, y),
        lambda y: diffusion.posterior_sampling(
            score, operator=MATRIX, observation=y, noise_scale=0.5 + y[0]
        ),
        lambda y: diffusion.posterior_sampling(score, Partial(_about, jnp.asarray(y)), step=y[0]),
        lambda y: diffusion.pseudoinverse_guidance(score, MATRIX, y, noise_scale=y[0]),
    ]
    for make in makers:
        first = diffusion.generate(jax.random.key(0), make([0.1, 0.2]), sampler, 3).samples
        before = _advance._cache_size()
        second = diffusion.generate(jax.random.key(0), make([0.3, 0.1]), sampler, 3).samples
        assert _advance._cache_size() == before and not np.allclose(first, second)


def _about(y, clean):
    return -jnp.sum((y - clean[:2]) ** 2)


def test_refusals():
    score = gaussian(scores.VP())
    y = np.zeros(2)
    with pytest.raises(TypeError, match=r"replacement: expected a langevin_ppl.scores.Score"):
        diffusion.replacement(None, MATRIX, y)
    for operator in (np.ones(2, bool), MATRIX[:, :2], MATRIX[0], MATRIX.astype(bool)):
        with pytest.raises(ValueError, match="operator: expected booleans of the shape of an"):
            diffusion.replacement(score, operator, y)
    for observation in (None, np.zeros(3), np.zeros((2, 1))):
        with pytest.raises(ValueError, match=r"observation: expected shape \(2,\)"):
            diffusion.pseudoinverse_guidance(score, MATRIX, observation)
    with pytest.raises(ValueError, match="expected that something is observed"):
        diffusion.replacement(score, np.zeros(3, bool), np.zeros(3))
    with pytest.raises(ValueError, match="observation: expected finite numbers"):
        diffusion.replacement(score, MATRIX, y * np.nan)
    with pytest.raises(ValueError, match="operator: expected finite numbers"):
        diffusion.replacement(score, MATRIX * np.nan, y)
    with pytest.raises(ValueError, match="expected a conditional score"):
        diffusion.classifier_free_guidance(score, 2.0)
    with pytest.raises(ValueError, match="got neither"):
        diffusion.posterior_sampling(score)
    with pytest.raises(ValueError, match="got both"):
        diffusion.posterior_sampling(score, jnp.sum, operator=MATRIX, observation=y)
    with pytest.raises(ValueError, match="observation and noise_scale go with operator"):
        diffusion.posterior_sampling(score, jnp.sum, noise_scale=1.0)
    with pytest.raises(TypeError, match="log_likelihood_fn: expected a function"):
        diffusion.classifier_guidance(score, 3.0)
    with pytest.raises(ValueError, match="step: expected a number"):
        diffusion.posterior_sampling(score, operator=MATRIX, observation=y, step=0.0)
    poisson = scores.empirical(scores.PFGM(), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="its noise is not Gaussian"):
        diffusion.posterior_sampling(poisson, jnp.sum)

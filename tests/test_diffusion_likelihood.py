"""Log densities by the probability flow, against closed forms and quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student

import langevin_ppl as lp
from langevin_ppl.base import DivergenceWarning

scores = lp.scores
likelihood = lp.diffusion.likelihood

# Without a mean, and narrow against the noise of t_max: the law there is the process' own.
WEIGHTS, MEANS = np.array([0.3, 0.7]), np.array([[-1.4, 0.7], [0.6, -0.3]])
VARIANCES = np.array([[0.1, 0.2], [0.3, 0.05]])
X = np.random.default_rng(0).normal(size=(20, 2)) * [0.8, 0.5]
GAUSSIAN = [
    scores.VP(),
    scores.SubVP(),
    scores.VPCosine(),
    scores.VE(),
    scores.EDM(),
    scores.RectifiedFlow(),
    scores.Interpolant(),
]


def mixture(process):
    return scores.exact_mixture(process, WEIGHTS, MEANS, VARIANCES)


def exact(x, level, means=MEANS):
    """Log density of the mixture plus noise."""
    scale = np.sqrt(VARIANCES + level**2)
    parts = [norm.logpdf(x, m, s).sum(axis=1) for m, s in zip(means, scale, strict=True)]
    return np.logaddexp.reduce(np.log(WEIGHTS)[:, None] + parts)


@pytest.mark.parametrize("process", GAUSSIAN, ids=lambda p: type(p).__name__)
def test_of_a_mixture_in_closed_form(process):
    """The largest error is that of the law at t_max: variances of 1.3 against 50^2 in VE."""
    found = likelihood(mixture(process), X, num_steps=128)
    expected = exact(X, process.ratio(process.t_min))
    np.testing.assert_allclose(found.log_prob, expected, atol=3e-3)
    assert found.num_evaluations == 512 and found.standard_error is None
    np.testing.assert_allclose(found.bits_per_dim, -found.log_prob / 2 / np.log(2), rtol=1e-6)


def test_the_rule_is_of_order_four():
    """Error against many steps, in double precision: from 64 to 128 steps by 2^4."""
    with jax.enable_x64(True):
        score = scores.exact_mixture(scores.VP(), [1.0], [[0.5, -0.5]], [[0.3, 2.0]])
        best = likelihood(score, X, num_steps=1024).log_prob
        found = [likelihood(score, X, num_steps=n).log_prob for n in (64, 128)]
    errors = [np.abs(part - best).max() for part in found]
    assert 3.5 < np.log2(errors[0] / errors[1]) < 4.7


def test_adaptive_steps_agree():
    process = scores.EDM()
    found = likelihood(mixture(process), X, tolerance=1e-5)
    np.testing.assert_allclose(found.log_prob, exact(X, 0.002), atol=3e-3)
    assert 50 < found.num_evaluations < 400


def test_random_directions_are_unbiased():
    """z scores of 20 data have mean 0 and size 1: of 64 directions each, within 4.5 errors."""
    score = mixture(scores.VP())
    truth = likelihood(score, X)
    found = likelihood(
        score, X, divergence="hutchinson", rng_key=jax.random.key(1), num_probes=64, batch_size=7
    )
    z = (found.log_prob - truth.log_prob) / found.standard_error
    assert abs(z.mean()) < 4.5 / np.sqrt(20) and 0.5 < z.std() < 1.7
    assert found.standard_error.mean() > 0.01
    np.testing.assert_allclose(found.noise, truth.noise, rtol=1e-4, atol=1e-4)
    whole = likelihood(score, X, divergence="hutchinson", rng_key=jax.random.key(1), num_probes=64)
    np.testing.assert_allclose(whole.log_prob, found.log_prob, rtol=1e-4, atol=1e-4)


def labelled(x, t, label):
    """Denoiser of N(0, 1) for label 0 and N(3, 1) for label 1."""
    return (t**2 * 3.0 * label + x) / (t**2 + 1.0)


def test_conditions_belong_to_their_data():
    """Means of 3 against noise of 1000: what is left of them there moves log densities by 0.01."""
    score = scores.Score(labelled, scores.EDM(t_max=1000.0), (1,), condition_shape=())
    x, labels = np.array([[0.0], [3.0], [1.0]]), np.array([0, 1, 1])
    found = likelihood(score, x, condition=labels, batch_size=2, num_steps=128)
    np.testing.assert_allclose(found.log_prob, norm.logpdf(x[:, 0], 3.0 * labels), atol=0.02)
    for_all = likelihood(score, x, condition=1, num_steps=128)
    np.testing.assert_allclose(for_all.log_prob, norm.logpdf(x[:, 0], 3.0), atol=0.02)


def test_poisson_flow_is_normalised():
    """Data with the noise of t_min are a mixture of Student's t, of as many degrees of freedom."""
    data, noise = np.array([-1.0, 0.5, 1.0]), scores.PFGM(augmented=6.0, t_min=0.3)
    x = np.linspace(-20.0, 20.0, 801)
    score = scores.empirical(noise, data[:, None])
    log_prob = likelihood(score, x[:, None], num_steps=128).log_prob
    assert abs(np.trapezoid(np.exp(log_prob), x) - 1.0) < 1e-3
    inner = np.abs(x) < 3.0
    expected = student.pdf(x[inner, None], 6.0, data, 0.3).mean(axis=1)
    np.testing.assert_allclose(log_prob[inner], np.log(expected), atol=0.02)


def test_multiplicative_noise_has_a_jacobian():
    process = scores.GeometricBrownian(sigma_max=50.0)
    score = scores.exact_mixture(process, WEIGHTS, MEANS[:, :1], VARIANCES[:, :1])
    x = np.exp(np.linspace(-5.0, 4.0, 901))[:, None]
    log_prob = likelihood(score, x).log_prob
    assert abs(np.trapezoid(np.exp(log_prob), x[:, 0]) - 1.0) < 2e-3
    y = np.log(x)
    parts = norm.pdf(y, MEANS[:, 0], np.sqrt(VARIANCES[:, 0] + 1e-4)) @ WEIGHTS
    np.testing.assert_allclose(log_prob, np.log(parts) - y[:, 0], atol=0.02, rtol=5e-4)


def test_the_pure_function_is_differentiable_and_has_levels_of_noise():
    """The gradient is that of the mixture, in data, and in the arrays of the score."""
    process = scores.VP()
    score = mixture(process)
    x = jnp.asarray(X[:3], jnp.float32)
    ratio = 0.7
    time = float(process.time_at(ratio))

    @jax.jit
    def found(score, x):
        def total(score, x):
            log_prob = lp.diffusion.flow_log_prob(score, x, time=time)
            return log_prob.sum(), log_prob

        return jax.value_and_grad(total, (0, 1), has_aux=True, allow_int=True)(score, x)

    (_, value), (of_score, of_data) = found(score, x)
    np.testing.assert_allclose(value, exact(X[:3], ratio), atol=2e-3)
    alpha = process.alpha(time)
    np.testing.assert_allclose(of_data, alpha * score(alpha * x, time), atol=1e-2)
    leaves = jax.tree.leaves(of_score)
    assert all(np.isfinite(leaf).all() for leaf in leaves) and any(np.any(leaf) for leaf in leaves)


def test_bits_of_integers():
    """The uniform law on 256 levels takes 8 bits a number, whatever the unit of the data."""
    for width in (1.0, 2.0 / 256, 1.0 / 256):
        log_prob = -3 * np.log(256 * width)
        bits = lp.diffusion.bits_per_dim(log_prob, (3,), bin_width=width)
        np.testing.assert_allclose(bits, 8.0)


def test_refusals():
    score = mixture(scores.VP())
    with pytest.raises(TypeError, match=r"expected a langevin_ppl.scores.Score"):
        likelihood(lambda x, t: x, X)
    with pytest.raises(ValueError, match=r"expected data of shape \[datum, \*event\]"):
        likelihood(score, X[0])
    with pytest.raises(ValueError, match="expected finite numbers"):
        likelihood(score, X * np.nan)
    with pytest.raises(ValueError, match="condition: this score takes none"):
        likelihood(score, X, condition=np.zeros(20))
    with pytest.raises(ValueError, match="expected 'exact' or 'hutchinson'"):
        likelihood(score, X, divergence="some")
    with pytest.raises(ValueError, match="rng_key: expected a key"):
        likelihood(score, X, divergence="hutchinson")
    with pytest.raises(ValueError, match="num_probes: expected an integer of at least 2"):
        likelihood(score, X, divergence="hutchinson", rng_key=jax.random.key(0), num_probes=1)
    with pytest.raises(ValueError, match="num_steps"):
        likelihood(score, X, num_steps=0)
    with pytest.raises(ValueError, match="tolerance"):
        likelihood(score, X, tolerance=0.0)
    with pytest.raises(ValueError, match="bin_width"):
        likelihood(score, X, bin_width=-1.0)
    conditional = scores.Score(labelled, scores.EDM(), (1,), condition_shape=())
    with pytest.raises(ValueError, match=r"condition: expected shape \(\) or \(2,\), got None"):
        likelihood(conditional, np.zeros((2, 1)))
    positive = scores.exact_mixture(scores.GeometricBrownian(), [1.0], [[0.0]], [1.0])
    with pytest.raises(ValueError, match="expected positive numbers"):
        likelihood(positive, np.zeros((2, 1)))


def test_what_is_not_finite_is_said():
    score = scores.Score(lambda x, t, condition: x / 0.0, scores.EDM(), (1,))
    with pytest.warns(DivergenceWarning, match="2 of 2 log densities are not finite"):
        found = likelihood(score, np.ones((2, 1)), num_steps=2)
    assert not np.isfinite(found.log_prob).any()

"""Noise processes, exact scores, and the contract that ties them together."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import langevin_ppl as lp

S = lp.scores
GAUSSIAN = [
    S.VP(),
    S.SubVP(),
    S.VPCosine(),
    S.VE(),
    S.EDM(),
    S.RectifiedFlow(),
    S.Interpolant(),
    S.Interpolant(latent=0.0),
    S.GeometricBrownian(),
]
PROCESSES = [*GAUSSIAN, S.PFGM()]
WEIGHTS, MEANS = [0.3, 0.7], [[-2.0, 0.0], [2.0, 1.0]]
COVARIANCES = np.array([[[0.5, 0.1], [0.1, 0.3]], [[0.2, 0.0], [0.0, 0.4]]])


def name(process):
    return repr(process)[:40]


@pytest.mark.parametrize("public", ["EDM", "PFGM", "VE", "VP", "GeometricBrownian", "Interpolant",
                                    "RectifiedFlow", "Score", "SubVP", "VPCosine", "empirical",
                                    "exact_mixture"])  # fmt: skip
def test_docstring_examples(public):
    test = doctest.DocTestParser().get_doctest(getattr(S, public).__doc__, {}, public, None, None)
    assert test.examples
    assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test).failed == 0


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_time_is_the_inverse_of_the_ratio(process):
    """In double precision on the host, and the ratio grows with time."""
    t = np.linspace(process.t_min, process.t_max, 50)
    ratio = process.ratio(t)
    assert np.all(np.diff(ratio) > 0)
    np.testing.assert_allclose(process.time_at(ratio), t, atol=1e-12)
    # Traced schedules are the same functions: float32 has seven digits, of which a root takes half
    # where the noise is small.
    np.testing.assert_allclose(jax.jit(process.sigma)(t), process.sigma(t), rtol=2e-4)


@pytest.mark.parametrize("process", GAUSSIAN, ids=name)
def test_rates_are_those_of_the_marginals(process):
    """The forward equation moves mean and variance as the schedule says (central differences)."""
    t = 0.3 * process.t_min + 0.7 * process.t_max
    h = 1e-5 * t
    f, square = process.rates(t)
    mean_rate = (process.alpha(t + h) - process.alpha(t - h)) / (2 * h) / process.alpha(t)
    np.testing.assert_allclose(f, mean_rate, rtol=1e-3, atol=1e-6)
    variance_rate = (process.sigma(t + h) ** 2 - process.sigma(t - h) ** 2) / (2 * h)
    np.testing.assert_allclose(2 * f * process.sigma(t) ** 2 + square, variance_rate, rtol=1e-3)


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_perturbed_data_have_the_scale_of_the_process(process):
    """Spread of the noise by its 68 % quantile, within 5 standard errors of 40,000 draws."""
    t = 0.5 * (process.t_min + process.t_max)
    x = process.decode(jnp.ones((40_000, 1)))
    noised = process.encode(process.perturb(jax.random.key(0), x, t, event_ndim=1))
    away = np.abs((noised - process.alpha(t)) / process.sigma(t))
    assert abs(np.mean(away < 1.0) - 0.6827) < 5 * np.sqrt(0.6827 * 0.3173 / 40_000) + 0.002


def test_poisson_noise_has_the_density_of_its_prior():
    """Heavy tails by quadrature: P(|x| > 3 sigma) of a Student t with D degrees of freedom."""
    process = S.PFGM(augmented=4.0, t_min=0.1, t_max=1.0)
    x = process.prior(jax.random.key(1), (100_000, 1), event_ndim=1)
    grid = jnp.linspace(-3.0, 3.0, 4001)
    density = jnp.exp(jax.vmap(process.log_prior)(grid[:, None]))
    inside = jnp.trapezoid(density, grid)
    observed = float(jnp.mean(jnp.abs(x) < 3.0))
    assert abs(observed - inside) < 5 * np.sqrt(inside * (1 - inside) / 100_000)
    assert 0.01 < 1 - inside < 0.06  # a Gaussian would have 0.003


@pytest.mark.parametrize("process", GAUSSIAN[:-1], ids=name)
def test_the_mixture_has_the_score_of_its_density(process):
    """Against automatic differentiation of the density of the noised mixture."""
    score = S.exact_mixture(process, WEIGHTS, MEANS, COVARIANCES)
    t = 0.4 * process.t_min + 0.6 * process.t_max
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))

    def log_density(x):
        logs = [
            jnp.log(w)
            + jax.scipy.stats.multivariate_normal.logpdf(
                x, alpha * jnp.array(m), alpha**2 * c + sigma**2 * jnp.eye(2)
            )
            for w, m, c in zip(WEIGHTS, MEANS, COVARIANCES, strict=True)
        ]
        return jax.nn.logsumexp(jnp.array(logs))

    x = alpha * jnp.array([0.3, -0.7]) + sigma * jnp.array([0.8, 0.1])
    expected = jax.grad(log_density)(x)
    np.testing.assert_allclose(score(x, t), expected, rtol=2e-3, atol=2e-4 / sigma)
    energy = -jax.grad(lambda x: score.energy(x, t))(x)
    np.testing.assert_allclose(energy, expected, rtol=2e-3, atol=2e-3 / sigma)


@pytest.mark.parametrize("process", [S.VP(), S.RectifiedFlow(), S.EDM()], ids=name)
def test_forms_of_a_score_agree(process):
    score = S.exact_mixture(process, WEIGHTS, MEANS, COVARIANCES)
    t = 0.5 * (process.t_min + process.t_max)
    alpha, sigma = process.alpha(t), process.sigma(t)
    x = jax.random.normal(jax.random.key(0), (5, 2)) * float(sigma)
    clean, noise = score.denoise(x, t), score.noise(x, t)
    np.testing.assert_allclose(alpha * clean + sigma * noise, x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(score(x, t), -noise / sigma, rtol=1e-6)
    # dx/dt = f x - g^2 s / 2
    f, square = process.rates(t)
    np.testing.assert_allclose(
        score.velocity(x, t), f * x - 0.5 * square * score(x, t), rtol=5e-3, atol=5e-3
    )
    one_by_one = jnp.stack([score(row, t) for row in x])
    np.testing.assert_allclose(one_by_one, score(x, jnp.full(5, t)), rtol=1e-5)


def test_an_empirical_score_is_the_limit_of_a_narrow_mixture():
    data = np.array([[-1.0, 0.5], [2.0, 0.0], [0.3, -1.0]])
    narrow = S.exact_mixture(S.EDM(), np.ones(3), data, np.full(3, 1e-12))
    x = jnp.array([[0.2, 0.1], [1.5, -0.3]])
    np.testing.assert_allclose(S.empirical(S.EDM(), data)(x, 0.8), narrow(x, 0.8), rtol=1e-5)
    # Of a Poisson flow the posterior over data has heavier tails: by its definition.
    process = S.PFGM(augmented=3.0)
    square = np.sum((np.asarray(x[0]) - data) ** 2, axis=1)
    weight = (square + 3.0 * 0.8**2) ** (-(2 + 3.0) / 2)
    expected = weight @ data / weight.sum()
    np.testing.assert_allclose(S.empirical(process, data).denoise(x[0], 0.8), expected, rtol=1e-5)


def test_a_multiplicative_score_lives_on_the_logarithm():
    data = np.exp(np.random.default_rng(0).normal(size=(20, 1)))
    score = S.empirical(S.GeometricBrownian(), data)
    y = jnp.array([0.2])
    plain = S.empirical(S.VE(sigma_max=10.0), np.log(data))
    np.testing.assert_allclose(score(y, 0.5), plain(y, 0.5), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: S.VP(t_min=2.0), "t_min below t_max"),
        (lambda: S.VE(sigma_min=0.0), "sigma_min"),
        (lambda: S.RectifiedFlow(t_max=1.0), "t_max"),
        (lambda: S.Interpolant(latent=-1.0), "latent"),
        (lambda: S.PFGM(augmented=float("nan")), "augmented"),
        (lambda: S.exact_mixture(S.PFGM(), [1.0], [[0.0]], [1.0]), "Gaussian noise"),
        (lambda: S.exact_mixture(S.VP(), [1.0], [[0.0]], [-1.0]), "positive semidefinite"),
        (lambda: S.exact_mixture(S.VP(), [1.0, 1.0], [[0.0]], [1.0]), "means"),
        (lambda: S.exact_mixture(S.VP(), [1.0], [[0.0]], [[[1.0, 2.0]]]), "covariances"),
        (lambda: S.empirical(S.VP(), [[np.nan]]), "finite"),
        (lambda: S.empirical(S.GeometricBrownian(), [[-1.0]]), "positive"),
        (lambda: S.VP().perturb(jax.random.key(0), jnp.ones(2), 1.5), "interval"),
        (lambda: S.empirical(S.PFGM(), [[1.0]])(jnp.ones(1), 1.0), "no score|not\\s+Gaussian"),
        (lambda: S.empirical(S.VP(), [[1.0]])(jnp.ones(1), 7.0), "interval"),
        (lambda: S.empirical(S.VP(), [[1.0]])(jnp.ones(2), 0.5), "shape"),
        (lambda: S.empirical(S.VP(), [[1.0]])(jnp.ones(1), 0.5, 3), "takes none"),
        (lambda: S.empirical(S.VP(), [[1.0]]).energy(jnp.ones(1), 0.5), "conservative"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

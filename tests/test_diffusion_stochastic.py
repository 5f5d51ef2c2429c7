"""Samplers that add noise: their laws on Gaussians by recursions derived here, and mixtures.

On Gaussian data the exact score is affine, and so is every step of the linear samplers and of the
Langevin algorithm: means and covariances follow from the formulas of the papers, step by step.
Bounds on samples are five standard errors.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import langevin_ppl as lp
from langevin_ppl.diffusion.sampler import simulate

D, S = lp.diffusion, lp.scores
PROCESSES = [
    *(S.VP(), S.SubVP(), S.VPCosine(), S.VE(), S.EDM(), S.RectifiedFlow(), S.Interpolant()),
    S.GeometricBrownian(),
]
MEAN, VARIANCE = np.array([1.3]), np.array([[0.49]])
PLANE = np.array([0.5, -1.0]), np.array([[0.8, 0.35], [0.35, 0.3]])
NUMBER = 20_000


def name(value):
    return value.__name__ if callable(value) else type(value).__name__


def gaussian(process, mean=MEAN, covariance=VARIANCE):
    return S.exact_mixture(process, [1.0], mean[None], covariance[None])


def two_modes(process):
    return S.exact_mixture(process, [0.3, 0.7], [[-2.0, 0.0], [2.0, 1.0]], [0.25, 0.25])


class Law:
    """Mean and covariance of a sample on the way, and the score of Gaussian data, by hand."""

    def __init__(self, process, mean=MEAN, covariance=VARIANCE):
        self.process, self.data = process, (mean, covariance)
        self.mean = np.zeros_like(mean)
        self.covariance = process.sigma(process.t_max) ** 2 * np.eye(len(mean))

    def precision(self, t):
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        return np.linalg.inv(alpha**2 * self.data[1] + sigma**2 * np.eye(len(self.mean)))

    def step(self, t, kept, pulled, noise):
        """Go on by ``x' = kept x + pulled s(x, t) + noise z``."""
        precision = self.precision(t)
        matrix = kept * np.eye(len(self.mean)) - pulled * precision
        shift = pulled * precision @ (self.process.alpha(t) * self.data[0])
        self.mean = matrix @ self.mean + shift
        self.covariance = matrix @ self.covariance @ matrix.T
        self.covariance += noise**2 * np.eye(len(self.mean))

    def denoise(self, t):
        """Tweedie's formula."""
        alpha = self.process.alpha(t)
        self.step(t, 1 / alpha, self.process.sigma(t) ** 2 / alpha, 0.0)


def euler_vp(law, t, later):
    """Song et al. (2021), equation 11: ``f = -beta x / 2``, ``g^2 = beta``."""
    beta, step = 0.1 + 19.9 * t, t - later
    law.step(t, 1 + 0.5 * beta * step, beta * step, np.sqrt(beta * step))


def euler_edm(law, t, later):
    """``f = 0`` and ``g^2 = d sigma^2 / dt = 2 t``."""
    law.step(t, 1.0, 2 * t * (t - later), np.sqrt(2 * t * (t - later)))


def ancestral_vp(law, t, later):
    """Ho et al. (2020), equations 6 and 11, with the smaller variance."""
    squares = law.process.alpha(t) ** 2, law.process.alpha(later) ** 2
    beta = 1 - squares[0] / squares[1]
    variance = (1 - squares[1]) / (1 - squares[0]) * beta
    law.step(t, 1 / np.sqrt(1 - beta), beta / np.sqrt(1 - beta), np.sqrt(variance))


def ancestral_vp_upper(law, t, later):
    """The same with their other variance; no noise in the last step, which is not made here."""
    beta = 1 - (law.process.alpha(t) / law.process.alpha(later)) ** 2
    law.step(t, 1 / np.sqrt(1 - beta), beta / np.sqrt(1 - beta), np.sqrt(beta))


def ancestral_edm(law, t, later):
    """Song et al. (2021), equation 47."""
    fall = t**2 - later**2
    law.step(t, 1.0, fall, later * np.sqrt(fall) / t)


def frozen_half_vp(law, t, later):
    """SDE-DPM-Solver++ of order 1 for a rate of 1/2, in the score ``(alpha D - x) / sigma^2``."""
    alpha, sigma = law.process.alpha(t), law.process.sigma(t)
    next_alpha, next_sigma = law.process.alpha(later), law.process.sigma(later)
    h = np.log(next_alpha / next_sigma) - np.log(alpha / sigma)
    share = next_alpha / alpha * (1 - np.exp(-1.5 * h))
    kept = next_sigma / sigma * np.exp(-0.5 * h) + share
    law.step(t, kept, share * sigma**2, next_sigma * np.sqrt(1 - np.exp(-h)))


RECURSIONS = [
    (D.euler_maruyama(20, spacing="time"), S.VP(), euler_vp),
    (D.euler_maruyama(24), S.EDM(t_max=20.0), euler_edm),
    (D.ancestral(15), S.VP(), ancestral_vp),
    (D.ancestral(15, variance="upper"), S.VP(), ancestral_vp_upper),
    (D.ancestral(15), S.EDM(t_max=20.0), ancestral_edm),
    (D.exponential_sde(15, 1, corrected=False), S.VP(), ancestral_vp),
    (D.exponential_sde(15, 1, eta=0.5, corrected=False), S.VP(), frozen_half_vp),
]


def followed(times, process, move, *data):
    """Law at the end of a sampler with the nodes ``times``, the last of them clean."""
    law = Law(process, *data)
    for t, later in zip(times[:-2], times[1:-1], strict=True):
        move(law, t, later)
    law.denoise(times[-2])
    return law


def assert_law(samples, law):
    """Means and covariances within five standard errors."""
    assert np.all(np.isfinite(samples))
    spread = np.sqrt(np.diag(law.covariance))
    error = (samples.mean(axis=0) - law.mean) / spread * np.sqrt(len(samples))
    assert np.all(np.abs(error) < 5), error
    # The variance of a sample covariance is (C_ii C_jj + C_ij^2) / n.
    bound = np.sqrt((np.outer(spread, spread) ** 2 + law.covariance**2) / len(samples))
    error = (np.cov(samples.T).reshape(law.covariance.shape) - law.covariance) / bound
    assert np.all(np.abs(error) < 5), error


@pytest.mark.parametrize(("sampler", "process", "move"), RECURSIONS, ids=name)
def test_tables_are_the_formulas_of_the_papers(sampler, process, move):
    """In double precision: the law by the table's coefficients is the law by hand."""
    plan = sampler.plan(process)
    law = Law(process)
    for i, t in enumerate(plan.rows.time):
        a, c = plan.rows.sample[i], plan.rows.outputs[i, 0]
        # D = (x + sigma^2 s) / alpha
        pulled = c * process.sigma(t) ** 2 / process.alpha(t)
        law.step(t, a + c / process.alpha(t), pulled, plan.rows.noise[i])
    expected = followed(plan.times, process, move)
    np.testing.assert_allclose(law.mean, expected.mean, rtol=1e-9)
    np.testing.assert_allclose(law.covariance, expected.covariance, rtol=1e-9)


@pytest.mark.parametrize(("sampler", "process", "move"), RECURSIONS[::2], ids=name)
def test_samples_have_the_law_of_the_recursion(sampler, process, move):
    """Correlated, and with so few steps that the law is not that of the data."""
    law = followed(sampler.plan(process).times, process, move, *PLANE)
    assert np.abs(law.covariance / PLANE[1] - 1).max() > 0.05
    score = gaussian(process, *PLANE)
    assert_law(D.generate(jax.random.key(0), score, sampler, NUMBER).samples, law)


def bias(sampler, process):
    """Bias of the variance at ``t_min`` by the table alone, outputs before included."""
    plan = sampler.plan(process)
    row, history = plan.rows, plan.rows.outputs.shape[1]
    covariance = np.zeros((history, history))
    covariance[0, 0] = process.sigma(process.t_max) ** 2
    for i, t in enumerate(row.time):
        alpha, sigma = process.alpha(t), process.sigma(t)
        gain = alpha * VARIANCE[0, 0] / (alpha**2 * VARIANCE[0, 0] + sigma**2)
        # The state is the sample and the outputs before the newest, all about their means.
        matrix = np.diag(np.ones(history - 1), -1)
        matrix[:, 0] = 0.0
        matrix[0] = row.outputs[i]
        matrix[0, 0] = row.sample[i] + row.outputs[i, 0] * gain
        if history > 1:
            matrix[0, 1:], matrix[1, 0] = row.outputs[i, 1:], gain
            matrix[2:, 1:] = np.eye(history - 2, history - 1)
        covariance = matrix @ covariance @ matrix.T
        covariance[0, 0] += row.noise[i] ** 2
    end = process.alpha(process.t_min), process.sigma(process.t_min)
    return float(covariance[0, 0] - end[0] ** 2 * VARIANCE[0, 0] - end[1] ** 2)


@pytest.mark.parametrize(
    ("make", "order"),
    [
        (D.euler_maruyama, 1),
        (D.ancestral, 1),
        (functools.partial(D.ancestral, variance="upper"), 1),
        (functools.partial(D.exponential_sde, order=1, corrected=False), 1),
        (functools.partial(D.exponential_sde, order=1, corrected=True), 2),
    ],
    ids=["euler", "ancestral", "upper", "exponential", "corrected"],
)
@pytest.mark.parametrize("process", [S.VP(), S.EDM(), S.RectifiedFlow()], ids=name)
def test_the_bias_has_its_order(make, order, process):
    """Halving the steps halves the bias of the spread, or quarters it, in double precision."""
    errors = [abs(bias(make(num_steps=n, denoise=False), process)) for n in (400, 800, 1600)]
    slopes = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(slopes, order, atol=0.2)


def test_correction_and_order_make_the_bias_small():
    """At 100 steps, of the variance: 9 % for order 1, a hundredth of it for order 2 corrected."""
    first = bias(D.exponential_sde(100, 1, corrected=False, denoise=False), S.VP())
    second = bias(D.exponential_sde(100, 2, corrected=False, denoise=False), S.VP())
    corrected = bias(D.exponential_sde(100, 2, denoise=False), S.VP())
    assert abs(first) > 0.04 and abs(second) < 0.1 * abs(first)
    assert abs(corrected) < 0.4 * abs(second)


def test_corrected_steps_are_those_of_the_literature():
    """Predict, evaluate, correct, with weights of the line by hand; without noise, on a mixture."""
    process, number = S.VP(), 8
    score = two_modes(process)
    sampler = D.exponential_sde(number, 1, eta=0.0)
    found = D.generate(jax.random.key(0), score, sampler, 5, trajectory=True)
    assert found.trajectory is not None
    t = found.times[:-1]
    alpha, sigma = process.alpha(t), process.sigma(t)
    log_snr = np.log(alpha / sigma)
    x = corrected = found.trajectory[:, 0].astype(float)
    outputs = []
    for i in range(number):
        outputs.append(np.asarray(score.denoise(jnp.asarray(x, jnp.float32), t[i]), float))
        if i > 0:
            h = log_snr[i] - log_snr[i - 1]
            whole = 1 - np.exp(-h)
            line = whole * outputs[-2] + (1 - whole / h) * (outputs[-1] - outputs[-2])
            corrected = sigma[i] / sigma[i - 1] * corrected + alpha[i] * line
        if i < number - 1:
            whole = 1 - np.exp(log_snr[i] - log_snr[i + 1])
            x = sigma[i + 1] / sigma[i] * corrected + alpha[i + 1] * whole * outputs[-1]
    np.testing.assert_allclose(found.samples, outputs[-1], atol=2e-4)


@pytest.mark.parametrize("process", PROCESSES, ids=name)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_point_is_reached_without_error(order, process):
    """The linear part and the noise are exact: of one datum, five steps have the law of `t_min`."""
    for eta in (0.0, 0.5, 1.0, 2.0):
        rows = D.exponential_sde(5, order, eta=eta, denoise=False).plan(process).rows
        mean, variance = 0.7 * process.alpha(process.t_max), process.sigma(process.t_max) ** 2
        for kept, outputs, noise in zip(rows.sample, rows.outputs, rows.noise, strict=True):
            mean = kept * mean + outputs.sum() * 0.7
            variance = kept**2 * variance + noise**2
        np.testing.assert_allclose(mean, 0.7 * process.alpha(process.t_min), rtol=1e-9)
        np.testing.assert_allclose(variance, process.sigma(process.t_min) ** 2, rtol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_the_rates_of_every_process_lead_to_its_data(process):
    """Euler and Maruyama's scheme knows a schedule by its derivatives alone."""
    assert abs(bias(D.euler_maruyama(200, denoise=False), process)) < 0.05 * VARIANCE[0, 0]


def corrector(move, step_size, count):
    """Langevin steps of ``step_size sigma^2`` before a step."""

    def moved(law, t, later):
        variance = law.process.sigma(t) ** 2
        for _ in range(count):
            law.step(t, 1.0, step_size * variance, np.sqrt(2 * step_size * variance))
        move(law, t, later)

    return moved


def test_a_corrector_makes_up_for_coarse_steps():
    """At equal numbers of steps, by the recursion; and samples have the law of the recursion."""
    process, ratio = S.VP(), 0.4
    for move, predictor in ((euler_vp, D.euler_maruyama(20)), (ancestral_vp, D.ancestral(20))):
        sampler = D.predictor_corrector(predictor, corrector_steps=2, signal_to_noise=ratio)
        times = sampler.plan(process).times
        plain = followed(times, process, move, *PLANE)
        law = Law(process, *PLANE)
        with_chain = corrector(move, 2 * ratio**2, 2)
        for t, later in zip(times[:-2], times[1:-1], strict=True):
            with_chain(law, t, later)
        corrector(lambda *_: None, 2 * ratio**2, 2)(law, times[-2], 0.0)
        law.denoise(times[-2])
        errors = [np.abs(found.covariance - PLANE[1]).max() for found in (law, plain)]
        assert errors[0] < 0.6 * errors[1]
        assert np.abs(law.mean - PLANE[0]).max() < 1.1 * np.abs(plain.mean - PLANE[0]).max() + 1e-4
    x = D.generate(jax.random.key(3), gaussian(process, *PLANE), sampler, NUMBER).samples
    assert_law(x, law)


def test_annealed_chains_have_the_law_of_the_recursion():
    """Levels, step sizes and the move between levels by hand; too few steps to be at rest."""
    process = S.VP()
    sampler = D.annealed_langevin(10, 3, step_size=0.2)
    times = sampler.plan(process).times
    law = Law(process, *PLANE)
    for i, t in enumerate(times[:-1]):
        corrector(lambda *_: None, 0.2, 3)(law, t, 0.0)
        if i < 9:
            law.step(t, process.alpha(times[i + 1]) / process.alpha(t), 0.0, 0.0)
    law.denoise(times[-2])
    assert np.abs(law.covariance / PLANE[1] - 1).max() > 0.1
    x = D.generate(jax.random.key(4), gaussian(process, *PLANE), sampler, NUMBER).samples
    assert_law(x, law)


SAMPLERS = [
    D.euler_maruyama(100),
    D.exponential_sde(40),
    D.ancestral(100, variance="upper"),
    D.predictor_corrector(D.ancestral(60), signal_to_noise=0.4),
    D.annealed_langevin(80, 5),
    D.denoising_mcmc(150),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=[s.name for s in SAMPLERS])
def test_a_mixture_is_sampled(sampler):
    """Weights within five standard errors, 0.036, and a bias of 0.01; spreads within 8 %."""
    x = D.generate(jax.random.key(1), two_modes(S.VP()), sampler, 4000).samples
    right = x[:, 0] > 0
    assert abs(right.mean() - 0.7) < 5 * np.sqrt(0.21 / 4000) + 0.01
    np.testing.assert_allclose(x[right].mean(axis=0), [2.0, 1.0], atol=0.06)
    np.testing.assert_allclose(x[right].std(axis=0), 0.5, rtol=0.08)


@pytest.mark.parametrize("process", PROCESSES[1:], ids=name)
def test_chains_run_on_every_process(process):
    """The mean within 0.15, which a wrong scale of a schedule would miss."""
    found = simulated(process, SAMPLERS[4], SAMPLERS[5])
    assert np.isfinite(found).all()
    assert np.abs(found.mean(axis=(1, 2)) - MEAN[0]).max() < 0.15


def simulated(process, *samplers):
    """Samples ``[sampler, sample, 1]`` in the coordinates of the process, by one program."""
    keys = jax.random.split(jax.random.key(2), 1000)

    @jax.jit
    def program(score):
        return jnp.stack([simulate(score, sampler, keys) for sampler in samplers])

    return np.asarray(program(gaussian(process)))


def test_in_double_precision_samples_are_double():
    with jax.enable_x64(True):
        x = simulated(S.VP(), *SAMPLERS[:2], *SAMPLERS[4:])
    assert x.dtype == np.float64
    assert np.abs(x.mean(axis=(1, 2)) - MEAN[0]).max() < 0.15


def test_numbers_of_steps_share_a_program():
    """Movers are equal, and everything that differs is in the rows."""
    for make in (
        D.euler_maruyama,
        D.exponential_sde,
        D.ancestral,
        D.annealed_langevin,
        D.denoising_mcmc,
        lambda n: D.predictor_corrector(D.ancestral(n), corrector_steps=n // 10),
    ):
        one, other = make(20).plan(S.VP()).mover, make(40).plan(S.EDM()).mover
        assert one == other and hash(one) == hash(other)
        assert make(20) == make(20) and hash(make(20)) == hash(make(20))


@pytest.mark.parametrize("kernel", [lp.tula, lp.leimkuhler_matthews, lp.mala], ids=str)
def test_kernels_of_the_library_correct(kernel):
    """Tamed, correlated and with a Metropolis test: the mean within 0.1, the spread within 12 %."""
    sampler = D.predictor_corrector(D.ancestral(30, variance="upper"), kernel=kernel)
    x = D.generate(jax.random.key(4), gaussian(S.VP()), sampler, 2000).samples
    assert abs(x.mean() - MEAN[0]) < 0.1 and abs(x.std() / 0.7 - 1) < 0.12


def test_a_metropolis_test_needs_an_energy():
    blind = gaussian(S.VP()).replace(potential=None)
    for sampler in (
        D.predictor_corrector(kernel=lp.mala),
        D.annealed_langevin(kernel=lp.tmala),
        D.denoising_mcmc(kernel=lp.mala),
    ):
        with pytest.raises(ValueError, match="Metropolis test, which needs the energy"):
            D.generate(jax.random.key(4), blind, sampler, 10)


def test_evaluations_are_counted():
    """By a denoiser that says when it is called."""
    calls = []
    score = gaussian(S.VP())

    def counting(x, t, condition):
        jax.debug.callback(lambda: calls.append(1))
        return score.denoiser(x, t, condition)

    for sampler, expected in (
        (D.ancestral(7), 7),
        (D.predictor_corrector(D.ancestral(5), corrector_steps=2), 15),
        (D.annealed_langevin(4, 3), 16),
        (D.denoising_mcmc(6, denoising_steps=3), 15),
    ):
        calls.clear()
        found = D.generate(jax.random.key(5), score.replace(denoiser=counting), sampler, 1)
        jax.effects_barrier()
        assert len(calls) == found.num_evaluations == expected, sampler


def test_chains_of_denoising_mcmc_keep_the_law_of_a_gaussian():
    """The bias of step size and walk is below 6 % of the spread, to which half a % is the error."""
    sampler = D.denoising_mcmc(100)
    x = D.generate(jax.random.key(6), gaussian(S.EDM()), sampler, NUMBER).samples
    assert abs(x.mean() - MEAN[0]) < 5 * 0.7 / np.sqrt(NUMBER)
    assert abs(x.std() / 0.7 - 1) < 0.06 + 5 / np.sqrt(2 * NUMBER)


def test_denoising_mcmc_starts_where_it_is_told():
    """Data noised a little come back to their mode."""
    process = S.EDM()
    score = S.exact_mixture(process, [0.5, 0.5], [[-4.0], [4.0]], [0.01, 0.01])
    data = np.full((200, 1), 4.0)
    noised = process.perturb(jax.random.key(7), data, 0.5, event_ndim=1)
    sampler = D.denoising_mcmc(50)
    found = D.generate(jax.random.key(8), score, sampler, 200, initial=noised, start=0.5)
    assert np.abs(found.samples - 4.0).max() < 1.0
    assert found.times.tolist() == [0.5, process.t_min]


def root_mean_square(y):
    """Noise of a sample of data that are one point."""
    return jnp.sqrt(jnp.mean((y - MEAN[0]) ** 2))


def test_a_classifier_of_noise_leads_the_chain():
    """Of data that are one point the noise is known, and a chain comes to them."""
    score = gaussian(S.EDM(t_max=5.0), np.full(8, MEAN[0]), np.zeros((8, 8)))
    sampler = D.denoising_mcmc(60, noise_level_fn=root_mean_square)
    x = D.generate(jax.random.key(6), score, sampler, 200).samples
    np.testing.assert_allclose(x, MEAN[0], atol=1e-3)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=[s.name for s in SAMPLERS])
def test_a_process_with_other_noise_is_refused(sampler):
    with pytest.raises(ValueError, match="not Gaussian"):
        D.generate(jax.random.key(0), S.empirical(S.PFGM(), [[0.0]]), sampler, 3)


def test_without_noise_they_are_samplers_of_the_flow():
    """For Poisson flows too; close to a fine solution from the same noise."""
    score = S.empirical(S.PFGM(), [[-1.0], [1.2]])
    fine = D.generate(jax.random.key(0), score, D.dpm_solver_pp(1, 400), 20).samples
    for sampler in (D.euler_maruyama(200, eta=0.0), D.exponential_sde(40, eta=0.0)):
        assert not sampler.adds_noise
        x = D.generate(jax.random.key(0), score, sampler, 20).samples
        assert np.mean(np.abs(x - fine) < 0.05) > 0.9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: D.euler_maruyama(0), "num_steps: expected an integer of at least 1"),
        (lambda: D.euler_maruyama(eta=-1.0), "eta: expected a number of at least 0"),
        (lambda: D.exponential_sde(order=4), "order: expected 1 to 3"),
        (lambda: D.exponential_sde(eta="1"), "eta: expected a number"),
        (lambda: D.ancestral(variance="learned"), "variance: expected lower or upper"),
        (lambda: D.ancestral(spacing="log"), "spacing: expected one of"),
        (lambda: D.ancestral().plan(S.VP(), 2.0), "time: expected values between"),
        (lambda: D.predictor_corrector("heun"), "predictor: expected a sampler"),
        (lambda: D.predictor_corrector(corrector_steps=0), "corrector_steps"),
        (lambda: D.predictor_corrector(kernel=lp.baoab), "expected an overdamped kernel"),
        (lambda: D.predictor_corrector(kernel=lp.cyclical_sgld), "expected an overdamped kernel"),
        (lambda: D.predictor_corrector(signal_to_noise=0.0), "signal_to_noise"),
        (lambda: D.predictor_corrector(D.heun()).plan(S.VP()), "one evaluation each"),
        (lambda: D.predictor_corrector(D.dpm_solver_pp(2)).plan(S.VP()), "one evaluation each"),
        (lambda: D.annealed_langevin(step_size=3.0), "step_size: expected a number between 0 and"),
        (lambda: D.annealed_langevin(kernel="ula"), "kernel: expected an overdamped kernel"),
        (lambda: D.annealed_langevin(10, 0), "steps_per_level"),
        (lambda: D.denoising_mcmc(walk=-1.0), "walk"),
        (lambda: D.denoising_mcmc(noise_level_fn=3.0), "noise_level_fn: expected a function"),
        (lambda: D.denoising_mcmc(denoising_steps=0), "denoising_steps"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()

"""Solvers of the probability flow: their tables of numbers, orders, and maps from noise to data.

A table is followed here in plain NumPy, so that what JAX makes of it is checked as well. The flow
of Gaussian data is affine and known in closed form.
"""

import sys

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import langevin_ppl as lp
from langevin_ppl.diffusion.generate import _advance
from langevin_ppl.diffusion.linear import Carry
from langevin_ppl.diffusion.sampler import advance, in_precision
from langevin_ppl.scores import Score

deis, dpm_solver_pp, generate = lp.diffusion.deis, lp.diffusion.dpm_solver_pp, lp.diffusion.generate
ghvb, heun, ipndm, unipc = (
    lp.diffusion.ghvb,
    lp.diffusion.heun,
    lp.diffusion.ipndm,
    lp.diffusion.unipc,
)
probability_flow = lp.diffusion.probability_flow

MEAN, VARIANCE = 1.3, 0.7**2
NOISE = np.array([-1.5, 0.2, 2.0])
# Where the derivatives of the data do not vanish at both ends, which would raise an order by one.
MIDDLE = lp.scores.VP(t_min=0.15, t_max=0.6)

FLOWS = {
    "DDIM": lambda n, **o: dpm_solver_pp(1, n, **o),
    "2M": lambda n, **o: dpm_solver_pp(2, n, **o),
    "3M": lambda n, **o: dpm_solver_pp(3, n, **o),
    "2S": lambda n, **o: dpm_solver_pp(2, n, variant="singlestep", **o),
    "UniPC-1": lambda n, **o: unipc(1, n, **o),
    "UniPC-2": lambda n, **o: unipc(2, n, **o),
    "UniPC-2 bh1": lambda n, **o: unipc(2, n, variant="bh1", **o),
    "UniPC-3": lambda n, **o: unipc(3, n, **o),
    "tAB0": lambda n, **o: deis(0, n, **o),
    "tAB1": lambda n, **o: deis(1, n, **o),
    "tAB2": lambda n, **o: deis(2, n, **o),
    "tAB3": lambda n, **o: deis(3, n, **o),
    "iPNDM-2": lambda n, **o: ipndm(2, n, **o),
    "iPNDM-3": lambda n, **o: ipndm(3, n, **o),
    "iPNDM-4": lambda n, **o: ipndm(4, n, **o),
    "GHVB-0.5": lambda n, **o: ghvb(0.5, n, **o),
    "GHVB-1.5": lambda n, **o: ghvb(1.5, n, **o),
    "GHVB-2.5": lambda n, **o: ghvb(2.5, n, **o),
    "GHVB-3.5": lambda n, **o: ghvb(3.5, n, **o),
    "Heun": lambda n, **o: heun(n, **o),
}
STOCHASTIC = {
    "SDE-1": lambda n, **o: dpm_solver_pp(1, n, variant="sde", **o),
    "SDE-2M": lambda n, **o: dpm_solver_pp(2, n, variant="sde", **o),
    "SDE-3M": lambda n, **o: dpm_solver_pp(3, n, variant="sde", eta=0.5, **o),
    "Heun with churn": lambda n, **o: heun(n, churn=10.0, churn_noise=1.0, **o),
}
EVERY = FLOWS | STOCHASTIC


def bare(sampler_of):
    """The same solver to ``t_min`` alone, without the orders of few steps."""
    ordered = sampler_of(1).name in ("dpm_solver_pp", "unipc")
    options = {"denoise": False} | ({"lower_order_final": False} if ordered else {})
    return lambda n, **more: sampler_of(n, **options, **more)


def standard_deviation(process, t):
    return np.sqrt(process.alpha(t) ** 2 * VARIANCE + process.sigma(t) ** 2)


def flow(process, x, start, t):
    """Probability flow of Gaussian data from time ``start`` to ``t``."""
    stretch = standard_deviation(process, t) / standard_deviation(process, start)
    return process.alpha(t) * MEAN + (x - process.alpha(start) * MEAN) * stretch


def denoiser(process):
    """Denoiser of Gaussian data."""

    def denoise(x, t):
        alpha, noise = process.alpha(t), process.sigma(t) ** 2
        return (VARIANCE * alpha * x + noise * MEAN) / (alpha**2 * VARIANCE + noise)

    return denoise


def kept(row, i, x, output, before):
    """What a row leaves to the next ones."""
    newest = row.kept_sample[i] * x + row.kept_output[i] * output
    newest = newest + (row.kept_before[i] * before[0] if before else 0.0)
    return [newest, *before][: len(before)]


def follow(row, denoise, x, anchor, before, start=0, noise=lambda i: (0.0, 0.0)):
    """Carry out the rows of a table from ``start``."""

    def combined(sample, of_anchor, outputs):
        terms = zip(outputs, known, strict=True)
        return sample * x + of_anchor * anchor + sum(c * m for c, m in terms)

    for i in range(start, len(row.time)):
        churn, after = noise(i)
        x = row.scale[i] * x + row.churn[i] * churn
        output = denoise(x, row.time[i])
        known = [output, *before]
        moved = combined(row.sample[i], row.anchor[i], row.outputs[i]) + row.noise[i] * after
        anchor = combined(row.next_sample[i], row.next_anchor[i], row.next_outputs[i])
        x, before = moved, kept(row, i, x, output, before)
    return x


def nothing(row, x):
    """What is kept before the first row."""
    return [np.zeros_like(x)] * (row.outputs.shape[1] - 1)


def error(plan, process, skip=0):
    """Largest error at the end; with ``skip``, what went before the row of that number is exact."""
    row, denoise = plan.rows, denoiser(process)
    before, x = nothing(row, NOISE), NOISE
    for i in range(skip):
        x = flow(process, NOISE, process.t_max, plan.times[i])
        before = kept(row, i, x, denoise(x, plan.times[i]), before)
    anchor, x = x, flow(process, NOISE, process.t_max, plan.times[skip])
    found = follow(row, denoise, x, anchor, before, skip)
    return np.max(np.abs(found - flow(process, NOISE, process.t_max, plan.times[-1])))


@pytest.mark.parametrize(
    ("name", "digits", "errors"),
    [
        ("DDIM", 3, (0.157, 0.081, 0.041)),
        ("2M", 4, (0.0182, 0.0049, 0.0012)),
        ("tAB0", 3, (0.103, 0.052, 0.026)),
    ],
)
def test_errors_by_an_independent_code(name, digits, errors):
    process = lp.scores.VP(beta_min=0.1, beta_max=20.0, t_min=1e-3, t_max=1.0)
    found = [error(bare(FLOWS[name])(n).plan(process), process) for n in (20, 40, 80)]
    np.testing.assert_allclose(found, errors, atol=0.51 * 10.0**-digits)


@pytest.mark.parametrize(
    ("name", "skip", "spacing", "order"),
    [
        ("DDIM", 0, "log_snr", 1),
        ("2M", 1, "karras", 2),
        ("3M", 2, "log_snr", 3),
        ("3M", 2, "time", 3),
        ("2S", 0, "log_snr", 2),
        ("UniPC-1", 1, "log_snr", 2),
        ("UniPC-2", 2, "log_snr", 3),
        ("UniPC-2 bh1", 2, "time", 3),
        ("UniPC-3", 3, "time", 4),
        ("tAB0", 0, "root_time", 1),
        ("tAB1", 1, "root_time", 2),
        ("tAB2", 2, "root_time", 3),
        ("tAB3", 3, "root_time", 4),
        ("tAB3", 3, "log_snr", 4),
        ("iPNDM-2", 1, "karras", 2),
        ("iPNDM-3", 2, "karras", 2),
        ("iPNDM-3", 2, "ratio", 3),
        ("iPNDM-4", 3, "ratio", 4),
        ("GHVB-0.5", 0, "ratio", 1),
        ("GHVB-1.5", 0, "log_snr", 2),
        ("GHVB-2.5", 0, "log_snr", 2),
        ("GHVB-2.5", 0, "ratio", 3),
        ("Heun", 0, "karras", 2),
    ],
)
def test_orders(name, skip, spacing, order):
    sampler_of = bare(FLOWS[name])
    few, many = (
        error(sampler_of(n, spacing=spacing).plan(MIDDLE), MIDDLE, skip) for n in (160, 320)
    )
    assert abs(np.log2(few / many) - order) < 0.15


def test_whole_orders_of_ghvb_are_ipndm():
    process = lp.scores.VPCosine()
    for order in (1, 2, 3, 4):
        one, other = (f(order, 9, spacing="karras").plan(process) for f in (ghvb, ipndm))
        jax.tree.map(np.testing.assert_array_equal, one.rows, other.rows)
        assert one.mover == other.mover


@pytest.mark.parametrize(
    ("order", "weights"),
    [
        (0.7, lambda b: [1.0]),
        (1.7, lambda b: [(2 + b) / (2 * b), -(2 - b) / (2 * b)]),
        (2.7, lambda b: np.array([18 + 5 * b, -24 + 8 * b, 6 - b]) / (12 * b)),
        (3.7, lambda b: np.array([46 + 9 * b, -78 + 19 * b, 42 - 5 * b, -10 + b]) / (24 * b)),
    ],
)
def test_published_weights_of_ghvb(order, weights):
    process, row_number, beta = lp.scores.EDM(), 5, 0.7
    plan = ghvb(order, 10).plan(process)
    row, sigma = jax.tree.map(lambda a: a[row_number], plan.rows), process.sigma(plan.times)
    # The newest average is beta (x - D) / sigma + (1 - beta) v, put in for its weight.
    newest = -row.outputs[0] * sigma[row_number] / beta
    found = np.array([newest, *row.outputs[1:]])
    found[1] -= newest * (1 - beta)
    expected = np.zeros_like(found)
    expected[: len(weights(beta))] = weights(beta)
    fall = sigma[row_number + 1] - sigma[row_number]
    np.testing.assert_allclose(found / fall, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(row.sample, 1.0 + newest * beta / sigma[row_number], rtol=1e-12)


def test_third_order_formula_of_dpm_solver_pp():
    """With twice the second derivative of the published code, which is at order 2 without it."""
    process, i = lp.scores.VP(), 4
    plan = dpm_solver_pp(3, 9, spacing="time").plan(process)
    alpha = process.alpha(plan.times[: i + 2])
    log_snr = process.log_snr(plan.times[: i + 2])
    before, last, h = np.diff(log_snr)[i - 2 :]
    r0, r1, phi = last / h, before / h, np.expm1(-h)
    newest, older, oldest = np.eye(3)
    a, b = (newest - older) / r0, (older - oldest) / r1
    first, second = a + r0 * (a - b) / (r0 + r1), 2 * (a - b) / (r0 + r1)
    expected = -phi * newest + (phi / h + 1) * first - ((phi + h) / h**2 - 0.5) * second
    np.testing.assert_allclose(plan.rows.outputs[i], alpha[i + 1] * expected, rtol=1e-10)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_by_its_published_equations(order, variant):
    process, i, n = lp.scores.VP(), 5, 20
    plan = unipc(order, n, spacing="time", variant=variant).plan(process)
    alpha, sigma = process.alpha(plan.times[: i + 2]), process.sigma(plan.times[: i + 2])
    log_snr = np.log(alpha / sigma)

    def step(base, corrects):
        """Factors of the outputs at the nodes i, i-1, ... of one step from the node ``base``."""
        h = log_snr[base + 1] - log_snr[base]
        others = [base - k for k in range(1, order)] + ([base + 1] if corrects else [])
        ratios = np.array([(log_snr[k] - log_snr[base]) / h for k in others])
        scale = -h if variant == "bh1" else np.expm1(-h)
        phi, right = np.expm1(-h) / -h - 1.0, []
        for k in range(1, len(others) + 1):
            right.append(phi * np.prod(np.arange(1, k + 1)) / scale)
            phi = phi / -h - 1.0 / np.prod(np.arange(1, k + 2))
        rho = np.linalg.solve(np.vander(ratios, increasing=True).T, right) if others else []
        rho = [0.5] if len(others) == 1 else rho
        factors = np.zeros(i + 2)
        factors[base] = -alpha[base + 1] * np.expm1(-h)
        for k, ratio, weight in zip(others, ratios, rho, strict=True):
            factors[[k, base]] += np.array([-1.0, 1.0]) * alpha[base + 1] * scale * weight / ratio
        return sigma[base + 1] / sigma[base], factors[i::-1]

    (back, corrected), (shrink, predicted) = step(i - 1, True), step(i, False)
    row = jax.tree.map(lambda a: a[i], plan.rows)
    width = order + 1
    np.testing.assert_allclose(row.next_anchor, back, rtol=1e-12)
    np.testing.assert_allclose(row.anchor, shrink * back, rtol=1e-12)
    np.testing.assert_allclose(row.next_outputs, corrected[:width], rtol=1e-9, atol=1e-12)
    total = shrink * corrected + predicted
    np.testing.assert_allclose(row.outputs, total[:width], rtol=1e-9, atol=1e-12)
    assert row.sample == row.next_sample == 0.0


@pytest.mark.parametrize("name", EVERY)
def test_the_engine_does_what_the_table_says(name):
    """In JAX and in NumPy, from the middle of a run with whatever was kept before it."""
    process, start = lp.scores.VP(), 3
    sampler = EVERY[name](6)
    with jax.enable_x64(True):
        plan = sampler.plan(process)
        row, mover, num_rows = plan.rows, plan.mover, len(plan.is_node)
        score = lp.scores.exact_mixture(process, [1.0], [[MEAN]], [VARIANCE])
        rng = np.random.default_rng(0)
        x, anchor, *before = rng.standard_normal((2 + row.outputs.shape[1] - 1, 3, 1))
        keys = jax.random.split(jax.random.key(1), 3)
        carry = Carry(x, anchor if mover.anchored else (), tuple(before))
        carry = jax.tree.map(jnp.asarray, carry)
        run = jax.jit(advance, static_argnames=("mover", "capacity", "record"))
        rows = jax.tree.map(in_precision, row)
        count = num_rows - start
        found, _ = run(mover, score, None, rows, keys, carry, start, count, count, False)

        def noise(i):
            parts = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, i)))(keys)
            whole = jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
            first, second = (parts[:, 0], parts[:, 1]) if mover.churned else (whole, whole)
            draw = jax.vmap(lambda key: jax.random.normal(key, (1,)))
            return np.asarray(draw(first)), np.asarray(draw(second))

        expected = follow(row, denoiser(process), x, anchor, before, start, noise)
        np.testing.assert_allclose(found.sample, expected, rtol=1e-11)


PROCESSES = {
    "VP": lp.scores.VP(),
    "VPCosine": lp.scores.VPCosine(),
    "SubVP": lp.scores.SubVP(),
    "VE": lp.scores.VE(),
    "EDM": lp.scores.EDM(),
    "RectifiedFlow": lp.scores.RectifiedFlow(),
    "Interpolant": lp.scores.Interpolant(),
    "PFGM": lp.scores.PFGM(augmented=16, t_min=0.3),
    "GeometricBrownian": lp.scores.GeometricBrownian(),
}


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_last_step_gives_the_clean_datum(process):
    for name, sampler_of in EVERY.items():
        if name in STOCHASTIC and not process.gaussian:
            continue
        for num_steps in (1, 2, 3, 20):
            row = sampler_of(num_steps).plan(process).rows
            last = [row.outputs[-1, 0], row.sample[-1], row.anchor[-1], row.noise[-1]]
            np.testing.assert_allclose(last, [1.0, 0.0, 0.0, 0.0], atol=1e-12)
            np.testing.assert_allclose(row.outputs[-1, 1:], 0.0, atol=1e-12)
            if name != "Heun with churn":  # which raises the noise before
                assert row.time[-1] == (process.t_max if num_steps == 1 else process.t_min)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_all_solvers_find_the_same_map(process):
    """Of two modes, or of the Poisson flow of four data, which ends before it is at one of them."""
    with jax.enable_x64(True):
        if process.gaussian:
            means, covariances = [[-1.5, 0.5], [1.0, -1.0]], [[0.3, 0.1], [0.2, 0.4]]
            score = lp.scores.exact_mixture(process, [0.4, 0.6], means, covariances)
        else:
            data = [[-2.0, 0.5], [1.0, -1.0], [1.0, 1.0], [0.0, 0.0]]
            score = lp.scores.empirical(process, data)
        denoise = jax.jit(score.denoise)
        noise = jax.random.normal(jax.random.key(3), (16, 2))
        x = np.asarray(process.sigma(process.t_max) * noise)

        def end(sampler):
            row = sampler.plan(process).rows
            return follow(row, lambda x, t: np.asarray(denoise(x, t)), x, x, nothing(row, x))

        truth = end(unipc(3, 600, spacing="log_snr"))
        for name, sampler_of in FLOWS.items():
            # The same nodes for all: no solver shines because its spacing suits the data.
            coarse, fine = (
                np.sqrt(np.mean((end(sampler_of(n, spacing="log_snr")) - truth) ** 2))
                for n in (40, 120)
            )
            first_order = name in ("DDIM", "tAB0", "GHVB-0.5")
            assert fine < (0.1 if first_order else 0.005), name
            assert fine < (0.4 if first_order else 0.2) * coarse, name


def law(plan, process, mean, variance):
    """Mean and variance at the end, for Gaussian data, through the affine maps of a table."""
    row, denoise = plan.rows, denoiser(process)
    size = 2 + row.outputs.shape[1] - 1  # the sample, the anchor, what is kept
    unit = np.eye(size)
    center, covariance = np.zeros(size), np.zeros((size, size))
    center[:2], covariance[:2, :2] = mean, variance
    for i in range(len(row.time)):
        # Maps to (state, constant, churn): the denoiser is affine.
        shift = denoise(0.0, row.time[i])
        slope = denoise(1.0, row.time[i]) - shift
        x = np.concatenate([row.scale[i] * unit[0], [0.0, row.churn[i]]])
        others = np.concatenate([unit[1:], np.zeros((size - 1, 2))], axis=1)
        output = slope * x + np.eye(size + 2)[size] * shift
        known = np.array([output, *others[1:]])
        moved = row.sample[i] * x + row.anchor[i] * others[0] + row.outputs[i] @ known
        anchor = row.next_sample[i] * x + row.next_anchor[i] * others[0]
        anchor = anchor + row.next_outputs[i] @ known
        full = np.array([moved, anchor, *kept(row, i, x, output, list(others[1:]))])
        center = full[:, :size] @ center + full[:, size]
        covariance = full[:, :size] @ covariance @ full[:, :size].T
        covariance += np.outer(full[:, size + 1], full[:, size + 1])
        covariance[0, 0] += row.noise[i] ** 2
    return center[0], covariance[0, 0]


@pytest.mark.parametrize(
    ("name", "order"), [("SDE-1", 1), ("SDE-2M", 2), ("SDE-3M", 2), ("Heun with churn", 2)]
)
def test_laws_with_noise_converge(name, order):
    process = lp.scores.VP()
    mean, variance = process.alpha(process.t_max) * MEAN, standard_deviation(process, process.t_max)
    bias = []
    for n in (160, 320):
        options = {"denoise": False} | ({} if name[:4] == "Heun" else {"lower_order_final": False})
        found = law(STOCHASTIC[name](n, **options).plan(process), process, mean, variance**2)
        np.testing.assert_allclose(found[0], process.alpha(process.t_min) * MEAN, rtol=1e-12)
        bias.append(abs(found[1] - standard_deviation(process, process.t_min) ** 2))
    assert abs(np.log2(bias[0] / bias[1]) - order) < 0.25


@pytest.mark.parametrize("name", STOCHASTIC)
def test_samples_have_the_law_of_the_table(name):
    """12 steps, so that the bias is seen; errors of a mean and a variance of 20,000 samples."""
    process, number = lp.scores.VPCosine(), 20_000
    score = lp.scores.exact_mixture(process, [1.0], [[MEAN, MEAN]], [VARIANCE])
    sampler = STOCHASTIC[name](12)
    generated = generate(jax.random.key(5), score, sampler, number // 2)
    plan = sampler.plan(process)
    mean, variance = law(plan, process, 0.0, process.sigma(process.t_max) ** 2)
    draws = generated.samples.ravel()
    assert abs(draws.mean() - mean) < 4.5 * np.sqrt(variance / number)
    assert abs(draws.var() / variance - 1.0) < 4.5 * np.sqrt(2.0 / number)
    assert generated.num_evaluations == len(plan.is_node)


@pytest.mark.parametrize("name", ["2S", "UniPC-3", "GHVB-2.5", "Heun"])
def test_trajectories_from_the_middle(name):
    process, start = lp.scores.SubVP(), 0.5
    score = lp.scores.exact_mixture(process, [1.0], [[MEAN]], [VARIANCE])
    initial = np.linspace(-2.0, 2.0, 5)[:, None]
    generated = generate(
        *(jax.random.key(0), score, FLOWS[name](60, spacing="log_snr"), 5),
        **{"initial": initial, "start": start, "trajectory": True},
    )
    assert generated.trajectory.shape == (5, 61, 1)
    times = generated.times[:-1]
    expected = [flow(process, initial, start, t) for t in times]
    np.testing.assert_allclose(generated.trajectory[:, :-1], np.stack(expected, 1), atol=0.01)
    np.testing.assert_array_equal(generated.trajectory[:, -1], generated.samples)
    np.testing.assert_allclose(
        generated.samples, score.denoise(generated.trajectory[:, -2], process.t_min), atol=0.01
    )


def test_solvers_with_the_same_arithmetic_share_a_program():
    process = lp.scores.VP()
    score = lp.scores.exact_mixture(process, [0.5, 0.5], [[-1.0], [2.0]], [0.2, 0.2])

    def programs(*samplers):
        for sampler in samplers:
            generate(jax.random.key(0), score, sampler, 3)
        return _advance._cache_size()

    before = programs(dpm_solver_pp(2, 10))
    # Any number of steps to 32, any nodes, and the three last outputs in data or in noise.
    assert programs(dpm_solver_pp(2, 30, spacing="karras", denoise=False)) == before
    before = programs(deis(3, 12))
    assert programs(deis(3, 25), ipndm(4, 20), ghvb(4, 7)) == before
    before = programs(ghvb(2.5, 12), heun(8))
    assert programs(ghvb(2.2, 32), heun(16), heun(9, denoise=False)) == before


@pytest.mark.parametrize(
    ("process", "denoise"), [(lp.scores.VP(), True), (lp.scores.RectifiedFlow(), False)]
)
def test_probability_flow_is_the_exact_map(process, denoise):
    noise = process.sigma(process.t_max) * np.linspace(-2.0, 2.0, 6)[:, None]
    at_end = flow(process, noise, process.t_max, process.t_min)
    options = {"initial": noise, "start": process.t_max, "trajectory": True}
    score = lp.scores.exact_mixture(process, [1.0], [[MEAN]], [VARIANCE])
    generated = generate(jax.random.key(0), score, probability_flow(denoise=denoise), 6, **options)
    expected = denoiser(process)(at_end, process.t_min) if denoise else at_end
    np.testing.assert_allclose(generated.samples, expected, atol=3e-4)
    np.testing.assert_array_equal(generated.times, [process.t_max, process.t_min])
    assert generated.trajectory.shape == (6, 2, 1)


@pytest.mark.parametrize("solver", [None, diffrax.Heun()])
def test_probability_flow_counts_its_evaluations(solver):
    """Tsit5 evaluates the last stage of a step for the next one too, and Heun does not."""
    process, calls = lp.scores.EDM(), []

    def denoise(x, t, condition):
        jax.debug.callback(lambda _: calls.append(1), t)
        return jnp.tanh(x / (1.0 + t))

    score = Score(denoise, process, (2,))
    plan = probability_flow(1e-3, 1e-3, solver=solver).plan(process)
    row = jax.tree.map(lambda a: in_precision(a)[0], plan.rows)
    carry = plan.mover.init(jnp.array([30.0, -80.0]))
    step = jax.jit(lambda row: plan.mover.step(score, None, jax.random.key(0), carry, row))
    counted = plan.num_evaluations(step(row))
    jax.effects_barrier()
    assert counted == len(calls) > 20


def test_probability_flow_reports_the_mean_of_its_evaluations():
    process, sampler = lp.scores.EDM(), probability_flow(1e-2, 1e-2)
    score = lp.scores.exact_mixture(process, [0.5, 0.5], [[-9.0], [2.0]], [0.01, 0.2])
    whole = generate(jax.random.key(0), score, sampler, 29, batch_size=10)
    assert whole.num_evaluations != round(whole.num_evaluations)
    # Six evaluations of a step of Tsit5, its first one, and that of the clean datum.
    assert round(29 * (whole.num_evaluations - 2)) % 6 == 0


def test_probability_flow_says_where_it_gave_up():
    score = lp.scores.exact_mixture(lp.scores.VP(), [1.0], [[MEAN]], [VARIANCE])
    with pytest.warns(lp.DivergenceWarning, match="5 of 5 samples are not finite"):
        generated = generate(jax.random.key(0), score, probability_flow(max_steps=3), 5)
    assert not generated.is_finite.any()


def test_probability_flow_without_diffrax(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match=r"pip install 'langevin-ppl\[diffusion\]'"):
        probability_flow()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *[(lambda f=f: f(num_steps=0), "num_steps: expected an integer") for f in (deis, heun)],
        (lambda: dpm_solver_pp(2, 2.5), "num_steps: expected an integer of at least 1, got 2.5"),
        (lambda: dpm_solver_pp(4), "order: expected 1 to 3 for dpm_solver_pp, got 4"),
        (lambda: dpm_solver_pp(3, variant="singlestep"), "Take variant='multistep'"),
        (lambda: dpm_solver_pp(variant="ode"), "expected one of multistep, singlestep, sde"),
        (lambda: dpm_solver_pp(variant="sde", eta=0.0), "eta: expected a number between 0 and"),
        (lambda: unipc(0), "order: expected 1 to 3 for unipc, got 0"),
        (lambda: unipc(variant="bh3"), "variant: expected bh1 or bh2, got 'bh3'"),
        (lambda: unipc(spacing="linear"), "spacing: expected one of time, root_time, ratio"),
        (lambda: deis(4), "order: expected 0 to 3 for deis, got 4"),
        (lambda: ipndm(True), "order: expected 1 to 4 for ipndm, got True"),
        (lambda: ghvb(0.0), "order: expected a number between 0 and"),
        (lambda: ghvb(4.5), "order: expected a number of at most 4 for ghvb, got 4.5"),
        (lambda: heun(churn=-1.0), "churn: expected a number of at least 0, got -1.0"),
        (lambda: heun(churn_min=2.0, churn_max=1.0), "churn_max: expected a number of at least"),
        (lambda: probability_flow(rtol=0.0), "rtol: expected a number between 0 and"),
        (lambda: probability_flow(max_steps=0), "max_steps: expected an integer of at least 1"),
    ],
)
def test_options_that_there_are_not(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_solvers_of_other_equations():
    for solver in (diffrax.Euler(), diffrax.Kvaerno5(), "tsit5"):
        with pytest.raises(TypeError, match="explicit Runge-Kutta method of diffrax"):
            probability_flow(solver=solver)


def test_samplers_that_do_not_fit_a_process():
    for sampler_of in STOCHASTIC.values():
        with pytest.raises(ValueError, match="adds Gaussian noise"):
            sampler_of(5).plan(lp.scores.PFGM())
    # Without churn, Heun adds none.
    heun(5).plan(lp.scores.PFGM())
    for sampler in (heun(5), unipc(3, 5), probability_flow()):
        for start in (0.0, 1.5):
            with pytest.raises(ValueError, match="expected values between 0.001 and 1"):
                sampler.plan(lp.scores.VP(), start)

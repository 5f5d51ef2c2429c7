"""Right, or flagged: ``lp.sample`` with nothing said, on targets chosen to break samplers.

Funnels, a banana, heavy tails, separated modes, bad conditioning, many dimensions, hierarchies, a
latent Gaussian process and improper posteriors. Every target is a NumPyro model, run in float32
with three seeds as ``lp.sample(rng_key, target)``, and once with NUTS of NumPyro as it comes
(4 chains of 1000 + 1000) for comparison.

- *Right*: every mean is within 0.2 standard deviations of the truth, or within 4 Monte Carlo
  standard errors if these are larger, and every standard deviation is within 20 %. Where moments
  do not exist or cannot be estimated, the quantiles at 5, 50 and 95 % take their place, with
  (q95 - q5) / 3.29 as the unit.
- *Flagged*: the attribute ``converged`` is 0, or a DivergenceWarning or ConvergenceWarning came, or
  the target was refused. For NUTS: R-hat above 1.01 or not finite, or a divergence.
- *WRONG*: neither. There should be none.

The truth is a closed form or a quadrature in float64. For logistic regression and the Gaussian
process it is a further run of NUTS, 4 chains of 1000 + 3000 at an acceptance rate of 0.95.

    python examples/benchmarks/stress.py [--quick] [--only NAME ...]
"""

import functools
import itertools
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import xarray as xr
from common import finish, goal, machine, parser, table
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS
from scipy import optimize, special, stats

import langevin_ppl as lp

SEEDS = 3
LEVELS = np.array([0.05, 0.5, 0.95])
NORMAL_WIDTH = float(stats.norm.ppf(0.95) - stats.norm.ppf(0.05))
MAX_MEAN_ERROR, MAX_STANDARD_ERRORS, MAX_SD_ERROR = 0.2, 4.0, 0.2
MAX_RHAT = 1.01
FLAGS = {"DivergenceWarning", "ConvergenceWarning"}
RIGHT, DOUBTED, FLAGGED, WRONG = "right", "right but flagged", "flagged", "WRONG"


class Moments(NamedTuple):
    """True means and standard deviations of a variable, of its shape or broadcast to it."""

    mean: Any
    sd: Any


class Quantiles(NamedTuple):
    """True quantiles at `LEVELS`, along the first axis."""

    values: Any


type Truth = Mapping[str, Moments | Quantiles]


@dataclass
class Case:
    """A NumPyro model with its positional arguments, and what is true about it.

    ``truth(options, notes)`` makes the truth; it is None for an improper posterior. ``derived``
    makes further variables to compare of the draws ``[chain, draw, dimension]`` of ``x``.
    """

    name: str
    dimension: int
    model: Callable[..., None]
    arguments: tuple[Any, ...]
    truth: Callable[[Any, list[str]], Truth] | None
    derived: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None


# Closed forms


def funnel(centred):
    """Neal's funnel (2003) in 10 dimensions; v has standard deviation 3."""

    def model():
        v = numpyro.sample("v", dist.Normal(0.0, 3.0))
        if centred:
            numpyro.sample("x", dist.Normal(0.0, jnp.exp(0.5 * v)).expand([9]).to_event(1))
        else:
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([9]).to_event(1))
            numpyro.deterministic("x", z * jnp.exp(0.5 * v))

    def truth(options, notes):
        # x has variance exp(4.5) but a kurtosis of 3 exp(9): compare its quantiles.
        v = np.linspace(-36.0, 36.0, 20_001)
        weights = stats.norm.pdf(v, scale=3.0) * (v[1] - v[0])

        def excess(x):
            return np.sum(weights * special.ndtr(x * np.exp(-0.5 * v))) - 0.95

        upper = optimize.root_scalar(excess, bracket=(0.0, 1e3)).root
        return {
            "v": Moments(0.0, 3.0),
            **({} if centred else {"z": Moments(0.0, 1.0)}),
            "x": Quantiles(np.array([-upper, 0.0, upper])),
        }

    name = "funnel, " + ("centred" if centred else "non-centred")
    return Case(name, 10, model, (), truth)


def banana():
    """Twisted Gaussian of Haario, Saksman and Tamminen (1999), with b = 0.03.

    x2 = z - b (x1^2 - 100) with z standard normal, so that its mean is 0 and its variance
    1 + b^2 Var(x1^2) = 1 + 2 (100 b)^2.
    """
    b = 0.03

    def model():
        x1 = numpyro.sample("x1", dist.Normal(0.0, 10.0))
        numpyro.sample("x2", dist.Normal(-b * (x1**2 - 100.0), 1.0))

    def truth(options, notes):
        return {"x1": Moments(0.0, 10.0), "x2": Moments(0.0, np.sqrt(1 + 2 * (100 * b) ** 2))}

    return Case("banana", 2, model, (), truth)


def student(df, dimension):
    """Independent Student t; standard deviations only where their error has one as well."""

    def model():
        numpyro.sample("x", dist.StudentT(df, 0.0, 1.0).expand([dimension]).to_event(1))

    def truth(options, notes):
        if df > 4:
            return {"x": Moments(0.0, np.sqrt(df / (df - 2.0)))}
        return {"x": Quantiles(stats.t.ppf(LEVELS, df))}

    name = "Cauchy" if df == 1 else f"Student t, {df} degrees of freedom"
    return Case(name, dimension, model, (), truth)


def mixture(name, centres, weights):
    """Normals of unit covariance. The share of draws near each centre is compared as well."""
    centres, weights = np.asarray(centres, float), np.asarray(weights, float)

    def model(centres, weights):
        components = dist.Normal(centres, 1.0).to_event(1)
        numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(probs=weights), components))

    def truth(options, notes):
        mean = weights @ centres
        variance = 1.0 + weights @ (centres - mean) ** 2
        return {
            "x": Moments(mean, np.sqrt(variance)),
            "mode": Moments(weights, np.sqrt(weights * (1 - weights))),
        }

    def derived(x):
        # The nearest centre, without the squares of x, which are common to all.
        scores = x @ centres.T - 0.5 * np.sum(centres**2, axis=1)
        return {"mode": 1.0 * (scores.argmax(axis=-1)[..., None] == np.arange(len(centres)))}

    arguments = np.asarray(centres, np.float32), np.asarray(weights, np.float32)
    return Case(name, centres.shape[1], model, arguments, truth, derived)


def ten_modes():
    """On a circle of radius 15; neighbours are 9.3 standard deviations apart."""
    angles = 2 * np.pi * np.arange(10) / 10
    centres = 15.0 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return mixture("ten modes", centres, np.full(10, 0.1))


def two_modes():
    """At 2 and -2 in each of 10 coordinates, 12.6 standard deviations apart."""
    return mixture("two modes, 0.7 and 0.3", 2.0 * np.outer([1.0, -1.0], np.ones(10)), [0.7, 0.3])


def gaussian():
    """Variances from 1 to 1e4 along random orthogonal directions."""
    rotation = stats.ortho_group.rvs(100, random_state=0)
    covariance = (rotation * np.logspace(0, 4, 100)) @ rotation.T
    factor = np.linalg.cholesky(covariance)

    def model(factor):
        numpyro.sample("x", dist.MultivariateNormal(jnp.zeros(100), scale_tril=factor))

    def truth(options, notes):
        return {"x": Moments(0.0, np.sqrt(np.diag(covariance)))}

    return Case("Gaussian, condition 1e4", 100, model, (np.asarray(factor, np.float32),), truth)


# Quadrature


def hierarchy():
    """Normal means of 1000 groups of 1 to 20 observations, all scales unknown, non-centred."""
    groups = 1000
    rng = np.random.default_rng(0)
    sizes = np.minimum(rng.geometric(0.25, groups), 20)
    group = np.repeat(np.arange(groups), sizes)
    y = 1.0 + 0.5 * rng.standard_normal(groups)[group] + rng.standard_normal(group.size)
    y = y.astype(np.float32)

    def model(group, y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfNormal(2.0))
        sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
        with numpyro.plate("group", groups):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            theta = numpyro.deterministic("theta", mu + tau * z)
        with numpyro.plate("observation", y.shape[0]):
            numpyro.sample("y", dist.Normal(jnp.asarray(theta)[group], sigma), obs=y)

    def truth(options, notes):
        return hierarchy_truth(group, y.astype(float))

    return Case("hierarchy of 1000 groups", groups + 3, model, (group, y), truth)


def hierarchy_truth(group, y):
    """Given both scales all else is Gaussian; average that over a grid of the scales.

    With ``w_i = tau^2 + sigma^2 / n_i`` the group means are independent N(mu, w_i) given mu, so
    mu is N(m, v) with ``1 / v = 1 / 25 + sum 1 / w_i`` and ``m = v sum mean_i / w_i``.
    """
    n = np.bincount(group)
    means = np.bincount(group, y) / n
    squares = np.sum((y - means[group]) ** 2)

    def at(tau, sigma):
        w = tau**2 + sigma**2 / n
        v = 1 / (1 / 25 + np.sum(1 / w))
        return w, v * np.sum(means / w), v

    def log_posterior(tau, sigma):
        w, m, v = at(tau, sigma)
        prior = -(tau**2 + sigma**2) / 8
        within = -(y.size - n.size) * np.log(sigma) - squares / (2 * sigma**2)
        between = -0.5 * np.sum(np.log(w) + means**2 / w) + 0.5 * m**2 / v + 0.5 * np.log(v)
        return prior + within + between

    def weigh(grid):
        logs = np.array([[log_posterior(tau, sigma) for sigma in grid[1]] for tau in grid[0]])
        weights = np.exp(logs - logs.max())
        return weights / weights.sum()

    # First find the posterior, then cover 7 standard deviations to each side of its mean.
    grid = (np.linspace(0.02, 3.0, 150),) * 2
    for _ in range(2):
        weights = weigh(grid)
        scales = [weighted(grid[i], weights.sum(axis=1 - i)) for i in range(2)]
        grid = [
            np.linspace(max(mean - 7 * max(sd, 0.01), 1e-3), mean + 7 * max(sd, 0.01), 60)
            for mean, sd in scales
        ]
    weights = weigh(grid)
    sums = Counter()
    for (i, tau), (j, sigma) in itertools.product(enumerate(grid[0]), enumerate(grid[1])):
        w, m, v = at(tau, sigma)
        kept = tau**2 / w  # theta is N(m + kept (mean - m), ...), shrunk towards mu
        laws = {
            "mu": (m, v),
            "tau": (tau, 0.0),
            "sigma": (sigma, 0.0),
            "theta": (m + kept * (means - m), (1 - kept) ** 2 * v + tau**2 * (1 - kept)),
            "z": (kept * (means - m) / tau, kept**2 * v / tau**2 + 1 - kept),
        }
        for name, (mean, variance) in laws.items():
            sums[name, 1] += weights[i, j] * mean
            sums[name, 2] += weights[i, j] * (variance + mean**2)
    return {
        name: Moments(sums[name, 1], np.sqrt(sums[name, 2] - sums[name, 1] ** 2))
        for name in ("mu", "tau", "sigma", "theta", "z")
    }


def weighted(values, weights):
    """Mean and standard deviation."""
    mean = np.sum(weights * values)
    return mean, np.sqrt(np.sum(weights * (values - mean) ** 2))


# References by a long run of NUTS


def logistic(dimension, size):
    """Logistic regression on correlated features (AR(1), 0.7)."""
    rng = np.random.default_rng(dimension)
    features = rng.standard_normal((size, dimension))
    for j in range(1, dimension):
        features[:, j] = 0.7 * features[:, j - 1] + np.sqrt(1 - 0.7**2) * features[:, j]
    slope = rng.standard_normal(dimension) / np.sqrt(dimension)
    y = (rng.random(size) < special.expit(features @ slope)).astype(np.float32)

    def model(features, y):
        beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([dimension]).to_event(1))
        with numpyro.plate("row", size):
            numpyro.sample("y", dist.Bernoulli(logits=features @ beta), obs=y)

    arguments = features.astype(np.float32), y
    return Case(
        f"logistic regression, {size} rows",
        dimension,
        model,
        arguments,
        functools.partial(by_nuts, f"logistic regression, {size} rows", model, arguments),
    )


def latent_process(centred):
    """Poisson counts at 50 points, whose log rate is a Gaussian process.

    Its covariance is exponential, ``alpha^2 exp(-distance / rho)``: the Cholesky factor is known.
    """
    size = 50
    x = np.linspace(0.0, 10.0, size, dtype=np.float32)
    rate = np.exp(1.0 + np.sin(x) * np.exp(-0.1 * x))
    y = np.random.default_rng(0).poisson(rate)

    def make_model(centred):
        def model(x, y):
            rho = numpyro.sample("rho", dist.LogNormal(0.5, 0.5))
            alpha = numpyro.sample("alpha", dist.HalfNormal(1.0))
            # An autoregression: each point is a part of the one before it, and fresh noise.
            fresh = jnp.sqrt(-jnp.expm1(-2 * (x[1] - x[0]) / rho))
            powers = jnp.tril(jnp.exp(-jnp.abs(x[:, None] - x) / rho))
            factor = alpha * powers.at[:, 1:].multiply(fresh)
            if centred:
                law = dist.MultivariateNormal(jnp.zeros(size), scale_tril=factor)
                f = numpyro.sample("f", law)
            else:
                z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([size]).to_event(1))
                f = numpyro.deterministic("f", factor @ z)
            with numpyro.plate("point", size):
                numpyro.sample("y", dist.Poisson(jnp.exp(1.0 + f)), obs=y)

        return model

    def truth(options, notes):
        # Both have the same posterior, and one of them is easy.
        reference = by_nuts("latent process", make_model(False), (x, y), options, notes)
        return {name: law for name, law in reference.items() if name != "z" or not centred}

    name = "latent process, " + ("centred" if centred else "non-centred")
    return Case(name, size + 2, make_model(centred), (x, y), truth)


_references: dict[str, Truth] = {}


def by_nuts(name, model, arguments, options, notes):
    """Means and standard deviations by a long run of NUTS, once for each name."""
    if name not in _references:
        lengths = (100, 100) if options.quick else (1000, 3000)
        posterior, stats = run_nuts(model, arguments, 1000, *lengths, acceptance=0.95)
        rhat, ess = diagnose(posterior)
        notes.append(
            f"Reference of {name}: R-hat at most {rhat:.4f}, bulk ESS at least {ess:,.0f}, "
            f"{stats['divergences']} divergences."
        )
        _references[name] = {
            key: Moments(x.mean(axis=(0, 1)), x.std(axis=(0, 1))) for key, x in posterior.items()
        }
    return _references[name]


# Improper posteriors


def one_observation():
    """Flat mean and log scale with one observation: the mass sits at scale 0."""

    def model(y):
        mu = numpyro.sample("mu", dist.ImproperUniform(constraints.real, (), ()))
        log_sigma = numpyro.sample("log_sigma", dist.ImproperUniform(constraints.real, (), ()))
        numpyro.sample("y", dist.Normal(mu, jnp.exp(log_sigma)), obs=y)

    return Case("improper: one observation", 2, model, (np.float32(1.0),), None)


def separated():
    """Flat slopes and labels that a plane separates: the mass is at infinity."""
    features = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    y = (features @ np.array([1.0, -1.0, 0.5], np.float32) > 0).astype(np.float32)

    def model(features, y):
        beta = numpyro.sample("beta", dist.ImproperUniform(constraints.real_vector, (), (3,)))
        with numpyro.plate("row", y.shape[0]):
            numpyro.sample("y", dist.Bernoulli(logits=features @ beta), obs=y)

    return Case("improper: separated labels", 3, model, (features, y), None)


def flat():
    """No density at all in one of two directions."""

    def model():
        a = numpyro.sample("a", dist.ImproperUniform(constraints.real, (), ()))
        b = numpyro.sample("b", dist.ImproperUniform(constraints.real, (), ()))
        numpyro.factor("sum", -0.5 * (a + b) ** 2)

    return Case("improper: a flat direction", 2, model, (), None)


def cases():
    return [
        funnel(True),
        funnel(False),
        banana(),
        student(5, 5),
        student(3, 5),
        student(1, 2),
        ten_modes(),
        two_modes(),
        gaussian(),
        logistic(50, 1000),
        logistic(500, 2000),
        latent_process(False),
        latent_process(True),
        hierarchy(),
        one_observation(),
        separated(),
        flat(),
    ]


# Comparing


def dataset(variables):
    """All variables as one array ``[chain, draw, k]`` of a Dataset."""
    parts = [np.reshape(x, (*x.shape[:2], -1)) for x in variables.values()]
    return xr.Dataset({"x": (("chain", "draw", "k"), np.concatenate(parts, axis=-1))})


def diagnose(variables):
    """Largest R-hat and smallest bulk ESS; not a number if any of them is not."""
    everything = dataset(variables)
    return float(np.max(az.rhat(everything)["x"])), float(np.min(az.ess(everything)["x"]))


def compare(variables, truth):
    """Whether all is right; worst error in sd; smallest and largest ratio of sds.

    For quantiles: of their widths.
    """
    fine, errors, ratios = True, [], []
    for name, law in truth.items():
        draws = variables[name]
        shape = draws.shape[2:]
        chosen = dataset({name: draws})
        if isinstance(law, Moments):
            mean, unit = (np.broadcast_to(np.asarray(x, float), shape).ravel() for x in law)
            shift = np.abs(draws.mean(axis=(0, 1)).ravel() - mean)
            error = az.mcse(chosen, method="mean")["x"].values
            ratio = draws.std(axis=(0, 1)).ravel() / unit
            fine &= bool(np.all(np.abs(ratio - 1) <= MAX_SD_ERROR))
        else:
            true = np.asarray(law.values, float).reshape(len(LEVELS), *[1] * len(shape))
            true = np.broadcast_to(true, (len(LEVELS), *shape)).reshape(len(LEVELS), -1)
            width = true[-1] - true[0]
            unit = width / NORMAL_WIDTH
            own = np.quantile(draws, LEVELS, axis=(0, 1)).reshape(len(LEVELS), -1)
            shift = np.abs(own - true)
            error = np.stack(
                [az.mcse(chosen, method="quantile", prob=q)["x"].values for q in LEVELS]
            )
            ratio = (own[-1] - own[0]) / width
        # A variable that never moved has no standard error, and gets no allowance for it.
        allowed = np.fmax(MAX_MEAN_ERROR * unit, MAX_STANDARD_ERRORS * error)
        fine &= bool(np.all(shift <= allowed))
        errors.append(np.max(shift / unit))
        ratios += [np.min(ratio), np.max(ratio)]
    return fine, float(np.max(errors)), float(np.min(ratios)), float(np.max(ratios))


def judge(case, truth, variables, flagged):
    """Columns that say how good the draws are."""
    rhat, ess = diagnose(variables)
    columns = {
        "min ESS": f"{ess:.0f}",
        "max R-hat": f"{rhat:.3f}",
        "worst mean error, in sd": "",
        "sd ratios": "",
    }
    fine = False
    if truth is not None:
        if case.derived is not None:
            variables = {**variables, **case.derived(variables["x"])}
        fine, error, low, high = compare(variables, truth)
        columns["worst mean error, in sd"] = f"{error:.2g}"
        columns["sd ratios"] = f"{low:.2f} to {high:.2f}"
    return columns, outcome(fine, flagged(rhat))


def outcome(fine, flagged):
    if fine:
        return DOUBTED if flagged else RIGHT
    return FLAGGED if flagged else WRONG


# Running


def run_nuts(model, arguments, seed, num_warmup, num_samples, acceptance=0.8):
    """Draws of NUTS in float64 and what it says about itself."""
    mcmc = MCMC(
        NUTS(model, target_accept_prob=acceptance),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=4,
        chain_method="sequential",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(seed), *arguments, extra_fields=("diverging", "num_steps"))
    fields = mcmc.get_extra_fields()
    variables = mcmc.get_samples(group_by_chain=True)
    return {name: np.asarray(x, float) for name, x in variables.items()}, {
        "divergences": int(np.sum(fields["diverging"])),
        "gradients": int(np.sum(fields["num_steps"])),
    }


def row_of_nuts(case, truth, options, notes):
    lengths = (100, 100) if options.quick else (1000, 1000)
    began = time.perf_counter()
    posterior, stats = run_nuts(case.model, case.arguments, 0, *lengths)
    seconds = time.perf_counter() - began

    def flagged(rhat):
        return not rhat <= MAX_RHAT or stats["divergences"] > 0

    columns, verdict = judge(case, truth, posterior, flagged)
    return {
        "target": case.name,
        "dimension": case.dimension,
        **columns,
        "divergences": stats["divergences"],
        "gradients, sampling": stats["gradients"],
        "seconds": seconds,
        "outcome": verdict,
    }


def row_of_default(case, truth, seed, options, said):
    """One run of ``lp.sample``. A refusal by ValueError counts as a flag."""
    fewer: dict[str, Any] = {"num_samples": 100} if options.quick else {}
    row = {"target": case.name, "dimension": case.dimension, "seed": seed, "kernel": "refused"}
    names = ("min ESS", "max R-hat", "worst mean error, in sd", "sd ratios")
    columns: dict[str, Any] = {name: "" for name in names}
    idata, text = None, ""
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            idata = lp.sample(jax.random.key(seed), lp.target(case.model, *case.arguments), **fewer)
        except ValueError as error:
            text = f"ValueError: {error}"
    seconds = time.perf_counter() - began
    converged, gradients, verdict = "", "", FLAGGED
    if idata is not None:
        attributes = idata.attrs
        raised = [w for w in caught if w.category.__name__ in FLAGS]
        doubted = attributes.get("converged", 1) == 0
        posterior = {
            name: np.asarray(x.values, float) for name, x in idata["posterior"].data_vars.items()
        }
        columns, verdict = judge(case, truth, posterior, lambda rhat: doubted or bool(raised))
        row["kernel"] = attributes["kernel"]
        converged = str(attributes.get("converged", "not said"))
        gradients = attributes.get("num_gradient_evaluations", "")
        advice = attributes.get("advice", "")
        further = [f"{w.category.__name__}: {w.message}" for w in raised]
        text = " ".join([advice, *(w for w in further if not advice or advice not in w)])
    if text.strip() and case.name not in {row["target"] for row in said}:
        said.append({"target": case.name, "seed": seed, "what it said": plain(text)})
    return {
        **row,
        **columns,
        "converged": converged,
        "gradients": gradients,
        "seconds": seconds,
        "outcome": verdict,
    }


def plain(text):
    """Text that fits into one cell of a table."""
    return " ".join(text.replace("|", "/").split())


def counts(sampler, rows):
    """How many of each outcome, and the worst that was not flagged."""
    found = Counter(row["outcome"] for row in rows)
    silent = [row for row in rows if row["outcome"] in (RIGHT, WRONG)]
    return {
        "sampler": sampler,
        "runs": len(rows),
        **{name: found[name] for name in (RIGHT, DOUBTED, FLAGGED, WRONG)},
        "largest R-hat not flagged": max((float(r["max R-hat"]) for r in silent), default=np.nan),
        "smallest ESS not flagged": min((float(r["min ESS"]) for r in silent), default=np.nan),
    }


def main():
    options = parser(__doc__)
    options.add_argument("--only", nargs="+", metavar="NAME", help="targets with NAME in theirs")
    options = options.parse_args()
    host = machine()
    wanted = options.only or [""]
    chosen = [c for c in cases() if any(part in c.name for part in wanted)]
    own, nuts, said, notes = [], [], [], []
    for case in chosen:
        truth = None if case.truth is None else case.truth(options, notes)
        for seed in range(1 if options.quick else SEEDS):
            own.append(row_of_default(case, truth, seed, options, said))
            print(own[-1], flush=True)
        nuts.append(row_of_nuts(case, truth, options, notes))
        print(nuts[-1], flush=True)
    own_counts, nuts_counts = counts("lp.sample", own), counts("NUTS of NumPyro", nuts)
    if options.only:  # a part of the set is no result
        print("\n\n".join(table(rows) for rows in (own, nuts, said) if rows), *notes, sep="\n\n")
        return None
    return finish(
        "stress",
        options,
        host,
        precision="float32",
        tables={
            "Outcomes": [own_counts, nuts_counts],
            "lp.sample with nothing said": own,
            "NUTS of NumPyro as it comes": nuts,
            "What the first flagged run of each target said": said,
        },
        goals=[goal("runs of lp.sample that are wrong and not flagged", own_counts[WRONG], 0)],
        notes=notes,
    )


if __name__ == "__main__":
    main()

"""Two posteriors of many rows, and their moments, for `tall_accuracy.py` and `tall_time.py`.

``logistic`` is generated: 200,000 rows of 50 features that follow an autoregression of 0.9 from
column to column, slopes drawn from their prior, N(0, 1). ``protein`` is the regression of the UCI
repository on protein tertiary structure: 45,730 rows, 9 features, standardised, errors of Student's
t with 4 degrees of freedom and unknown scale. It is read from the folder that the environment
variable LANGEVIN_PPL_DATA names, file ``uci/protein-tertiary-structure.npz`` with ``X``
``[row, feature]`` and ``y`` ``[row]``.

The reference is importance sampling from the Gaussian at the mode, everything in float64. Draws
come in pairs on both sides of the mode, so that the errors of means, which the pairs tell, are
small.
"""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from common import RESULTS
from jax.flatten_util import ravel_pytree

import langevin_ppl as lp

LOGISTIC, PROTEIN = NAMES = ("logistic", "protein")
ROWS, FEATURES, CORRELATION = 200_000, 50, 0.9
BATCH = 256
PAIRS, QUICK_PAIRS = 8192, 512
MAX_SHIFT, SD_RANGE = 0.1, (0.9, 1.1)


def logistic(x, y, batch_size=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with numpyro.plate("row", len(x), subsample_size=batch_size):
        logits = numpyro.subsample(x, event_dim=1) @ slope
        numpyro.sample("y", dist.Bernoulli(logits=logits), obs=numpyro.subsample(y, event_dim=0))


def regression(x, y, batch_size=None):
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 1.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    with numpyro.plate("row", len(x), subsample_size=batch_size):
        mean = intercept + numpyro.subsample(x, event_dim=1) @ slope
        law = dist.StudentT(4.0, mean, scale)
        numpyro.sample("y", law, obs=numpyro.subsample(y, event_dim=0))


def folder():
    """Folder of the data of the UCI repository, or None where there is none."""
    root = os.environ.get("LANGEVIN_PPL_DATA")
    path = Path(root) / "uci" / "protein-tertiary-structure.npz" if root else None
    return path.parent if path is not None and path.exists() else None


def available():
    """Names of the posteriors whose data are there."""
    return [name for name in NAMES if name != PROTEIN or folder() is not None]


def logistic_rows(rows=ROWS, features=FEATURES):
    """Features and outcomes in float64."""
    random = np.random.default_rng(20_000)
    x = random.standard_normal((rows, features))
    for column in range(1, features):
        x[:, column] *= np.sqrt(1.0 - CORRELATION**2)
        x[:, column] += CORRELATION * x[:, column - 1]
    logits = x @ random.standard_normal(features)
    return x, (random.random(rows) < 1.0 / (1.0 + np.exp(-logits))).astype(float)


def protein_rows():
    with np.load(folder() / "protein-tertiary-structure.npz") as file:
        x, y = (np.asarray(file[name], np.float64) for name in ("X", "y"))
    return (x - x.mean(axis=0)) / x.std(axis=0), (y - y.mean()) / y.std()


def load(name, *, quick=False, dtype=jnp.float32):
    """Model, features and outcomes; fewer rows for a quick run."""
    if name == LOGISTIC:
        model, (x, y) = logistic, logistic_rows(*(5_000, 10) if quick else ())
    else:
        model, (x, y) = regression, protein_rows()
        x, y = (x[:5_000], y[:5_000]) if quick else (x, y)
    return model, jnp.asarray(x, dtype), jnp.asarray(y, dtype)


def target_of(problem, batch_size):
    model, x, y = problem
    return lp.target(model, x, y, batch_size).replace(static=("batch_size",))


def flat(draws):
    """Draws by the name of the variable as a matrix ``[draw, coordinate]``, and their names."""
    names = sorted(draws)
    labels, columns = [], []
    for name in names:
        rows = np.asarray(draws[name], np.float64)
        rows = rows.reshape(len(rows), -1)
        labels += [name] if rows.shape[1] == 1 else [f"{name}[{i}]" for i in range(rows.shape[1])]
        columns.append(rows)
    return np.concatenate(columns, axis=1), labels


def draws_of(posterior):
    """Draws of all chains of a dataset, ``[draw, coordinate]``."""
    stacked = {str(k): np.concatenate(v.values, axis=0) for k, v in posterior.data_vars.items()}
    return flat(stacked)[0]


def mode_of(target):
    """Mode in float64 by Newton's method, and the Hessian of the log density there."""
    start, unravel = ravel_pytree(
        jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), target.prototype)
    )

    def density(x):
        return target.logdensity_fn(unravel(x))

    value_and_grad, hessian = jax.jit(jax.value_and_grad(density)), jax.jit(jax.hessian(density))
    position, value = start, value_and_grad(start)[0]
    for _ in range(100):
        curvature = hessian(position)
        lowest = jnp.linalg.eigvalsh(-curvature)[0]
        if lowest <= 0:  # far from the mode of a Student-t the log density is not concave
            curvature -= (1.0 - 2.0 * lowest) * jnp.eye(len(position))
        step = -jnp.linalg.solve(curvature, value_and_grad(position)[1])
        while not (higher := value_and_grad(position + step)[0]) >= value - 1e-6:
            step *= 0.5
        position, value = position + step, higher
        if float(jnp.abs(step).max()) < 1e-10:
            break
    return position, hessian(position), unravel, density


def reference(name, *, quick=False):
    """Posterior moments by importance sampling in float64, with their errors."""
    from arviz_stats.base.array import array_stats  # slow to import

    pairs = QUICK_PAIRS if quick else PAIRS
    with jax.enable_x64(True):
        target = target_of(load(name, quick=quick, dtype=jnp.float64), None)
        mode, hessian, unravel, density = mode_of(target)
        eigenvalues = np.linalg.eigvalsh(-np.asarray(hessian))
        factor = jnp.linalg.cholesky(jnp.linalg.inv(-hessian))
        noise = jax.random.normal(jax.random.key(7), (pairs, len(mode)))
        noise = jnp.stack([noise, -noise])
        values = jax.jit(
            lambda z: jax.lax.map(lambda z: density(mode + factor @ z), z, batch_size=32)
        )(noise.reshape(-1, len(mode)))
        positions = jax.vmap(unravel)(mode + noise.reshape(-1, len(mode)) @ factor.T)
        draws, labels = flat(target.constrain(positions, 1))
        logs = np.asarray(values) + 0.5 * np.sum(np.square(noise.reshape(-1, len(mode))), axis=1)
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    mean = weights @ draws
    deviations = draws - mean
    sd = np.sqrt(weights @ deviations**2)

    def error(values):
        """Standard error of a weighted mean of values whose weighted mean is 0, from the pairs."""
        terms = (weights[:, None] * values).reshape(2, pairs, -1).sum(axis=0)
        return np.sqrt(np.sum(terms**2, axis=0))

    unweighted = np.mean(draws, axis=0)
    return {
        "posterior": name,
        "quick": quick,
        "pairs": pairs,
        "labels": labels,
        "mean": mean.tolist(),
        "sd": sd.tolist(),
        "error_of_mean": float(np.max(error(deviations) / sd)),
        "error_of_sd": float(np.max(error(0.5 * ((deviations / sd) ** 2 - 1.0)))),
        "ess": float(1.0 / np.sum(weights**2)),
        "pareto_k": float(array_stats.psislw(-logs)[1]),
        "condition": float(eigenvalues[-1] / eigenvalues[0]),
        "laplace_shift": float(np.max(np.abs(unweighted - mean) / sd)),
    }


def load_reference(name, *, quick=False, results=None):
    """Moments that `tall_accuracy.py` has left in its results, or else computed anew."""
    path = (results or RESULTS) / "tall_accuracy.json"
    if path.exists():
        found = json.loads(path.read_text()).get("data", {}).get(name)
        pairs = QUICK_PAIRS if quick else PAIRS
        if found is not None and (found["quick"], found["pairs"]) == (quick, pairs):
            return found
    return reference(name, quick=quick)


def errors(draws, moments):
    """Largest error of a mean in posterior sds, smallest and largest ratio of sds."""
    sd = np.asarray(moments["sd"])
    shift = np.abs(draws.mean(axis=0) - np.asarray(moments["mean"])) / sd
    ratios = draws.std(axis=0) / sd
    if not np.isfinite(draws).all():
        return float("inf"), 0.0, float("inf")
    return float(shift.max()), float(ratios.min()), float(ratios.max())


def passes_test(found):
    """Whether all means and sds are right to a tenth of a posterior sd."""
    shift, lowest, highest = found
    return shift < MAX_SHIFT and SD_RANGE[0] < lowest and highest < SD_RANGE[1]

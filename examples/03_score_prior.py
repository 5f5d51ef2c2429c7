"""A learned score as the prior of a NumPyro model: digits that are half hidden, and blurred ones.

The score of the 8 x 8 digits of scikit-learn is the prior of images of which noisy linear
measurements are known: the upper half of the pixels, or all of them blurred.
``annealed_posterior`` draws from the posterior of held-out digits. Prints how many of the unknown
pixels are within their 90 % interval, and how far the posterior mean is from the truth; writes
pictures and the draws, as netCDF, to ``diffusion_output/``. The score is that of
``02_digits_diffusion.py`` if it has run, else it is learned first, in about a minute.
"""

import time
from pathlib import Path

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from sklearn.datasets import load_digits

import langevin_ppl as lp

OUTPUT = Path("diffusion_output")
SCORE = OUTPUT / "digits.npz"
NUM_HELD_OUT, NUM_DIGITS = 300, 12
NOISE = 0.1
# With an end at less noise, such as the default, posteriors came out too narrow: of digits that the
# score itself had made, 73 % of the pixels were in their 90 % interval, after 1200 steps.
PROCESS = lp.scores.VP(t_min=0.01)
SHOWN, DRAWS_SHOWN = 8, 4


def digits():
    """Images between -1 and 1, to learn from and held out; as in ``02_digits_diffusion.py``."""
    rng = np.random.default_rng(0)
    images = load_digits().images
    images = (images + rng.uniform(size=images.shape)) / 8.5 - 1.0
    images = rng.permutation(images.astype(np.float32))
    return images[NUM_HELD_OUT:], images[:NUM_HELD_OUT]


def learned(images):
    """Score of the digits, loaded or learned."""
    if SCORE.exists():
        print(f"took the score of {SCORE}")
        return lp.scores.load(SCORE)
    began = time.perf_counter()
    network = lp.scores.residual_mlp(width=256, depth=3)
    fitted = lp.scores.fit(jax.random.key(0), images, PROCESS, network=network, num_steps=2000)
    print(f"learned the score in {time.perf_counter() - began:.0f} s")
    return fitted.score


def model(score, operator, y=None):
    """Digits with a learned prior, of which ``operator`` shows linear measurements with noise."""
    num_digits = 1 if y is None else len(y)
    with numpyro.plate("digit", num_digits):
        image = numpyro.sample(
            "image", lp.distributions.ScoreBased(score), infer={"event_dims": ["row", "column"]}
        )
        pixels = image.reshape(*image.shape[:-2], -1)
        numpyro.sample("y", dist.Normal(pixels @ operator.T, NOISE).to_event(1), obs=y)


def upper_half():
    """Matrix that takes the first half of 64 pixels."""
    return np.eye(64, dtype=np.float32)[:32]


def blur():
    """Matrix that takes the mean of 3 x 3 pixels, of those that there are at the margins."""
    near = np.abs(np.subtract.outer(np.arange(8), np.arange(8))) <= 1
    matrix = np.kron(near, near).astype(np.float32)
    return matrix / matrix.sum(axis=1, keepdims=True)


def posterior(score, operator, y):
    """Draws, as an ArviZ DataTree. Score, operator and measurements are data of the target."""
    target = lp.target(model, score, operator, y)
    began = time.perf_counter()
    idata = lp.annealed_posterior(
        jax.random.key(2),
        target,
        num_chains=2,
        num_samples=50,
        num_levels=30,
        steps_per_level=20,
    )
    return idata, time.perf_counter() - began


def report(name, draws, truth, unknown, mean_image):
    """Coverage and error of the unknown pixels ``[height, width]``."""
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    inside = ((low <= truth) & (truth <= high))[:, unknown]
    error = np.sqrt(np.mean((draws.mean(axis=0) - truth)[:, unknown] ** 2))
    baseline = np.sqrt(np.mean((mean_image - truth)[:, unknown] ** 2))
    spread = inside.mean(axis=1).std(ddof=1) / np.sqrt(len(truth))
    print(
        f"{name}: {100 * inside.mean():.0f} ± {100 * spread:.0f} % of {inside.size} unknown pixels "
        f"in their 90 % interval; RMSE of the posterior mean {error:.2f}, of the mean image "
        f"{baseline:.2f}"
    )


def picture(name, truth, shown, draws):
    """Truth, measurements, posterior mean and standard deviation, and a few draws."""
    rows = {
        "truth": truth,
        "seen": shown,
        "posterior mean": draws.mean(axis=0),
        "posterior sd": draws.std(axis=0),
        **{f"draw {i + 1}": draws[i] for i in range(DRAWS_SHOWN)},
    }
    figure, axes = plt.subplots(len(rows), SHOWN, figsize=(SHOWN, len(rows)))
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        of_sd = label == "posterior sd"
        style = {"cmap": "magma", "vmin": 0.0} if of_sd else {"cmap": "gray", "vmin": -1.0}
        for axis, image in zip(line, images, strict=False):
            drawn = axis.imshow(image, vmax=1.0, **style)
            axis.set(xticks=[], yticks=[], facecolor="lightsteelblue")
        if of_sd:
            figure.colorbar(drawn, ax=line, fraction=0.01, pad=0.01)
        line[0].set_ylabel(label, rotation=0, ha="right", va="center")
    figure.savefig(OUTPUT / f"{name}.png", dpi=120, bbox_inches="tight")
    plt.close(figure)
    print(f"wrote {OUTPUT / name}.png")


def main():
    matplotlib.use("Agg")
    OUTPUT.mkdir(exist_ok=True)
    images, held_out = digits()
    score, truth = learned(images), held_out[:NUM_DIGITS]
    rng = np.random.default_rng(1)
    hidden = np.arange(64).reshape(8, 8) >= 32
    problems = {
        "inpainting": (upper_half(), hidden),
        "deblurring": (blur(), np.ones((8, 8), bool)),
    }
    for name, (operator, unknown) in problems.items():
        clean = truth.reshape(NUM_DIGITS, -1) @ operator.T
        y = clean + NOISE * rng.standard_normal(clean.shape, np.float32)
        idata, seconds = posterior(score, operator, y)
        print(f"{name}: {len(truth)} digits in {seconds:.0f} s")
        draws = idata["posterior"]["image"].values
        draws = draws.reshape(-1, *draws.shape[2:])
        report(name, draws, truth, unknown, images.mean(axis=0))
        shown = np.full((NUM_DIGITS, 64), np.nan, np.float32)
        shown[:, : y.shape[1]] = y
        picture(name, truth, shown.reshape(-1, 8, 8), draws)
        path = OUTPUT / f"{name}.nc"
        idata.to_netcdf(path)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()

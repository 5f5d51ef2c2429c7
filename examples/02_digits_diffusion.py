"""Digits out of noise: one learned score, five samplers, four numbers of steps.

Learns the score of the 8 x 8 digits of scikit-learn in about a minute, saves it, and draws digits
from the same noise by every sampler. Prints how far each sampler of the flow is from where the flow
ends, and writes pictures to ``diffusion_output/``: ``training.png``, ``samples.png``, one of every
sampler with a row for every number of steps, and ``trajectory.png``, from noise to digit.
"""

import time
from pathlib import Path

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import langevin_ppl as lp

OUTPUT = Path("diffusion_output")
SCORE = OUTPUT / "digits.npz"
NUM_HELD_OUT = 300
STEPS = (5, 10, 20, 50)
SHOWN = 16
SAMPLERS = {
    "heun": lp.diffusion.heun,
    "dpm_solver_pp": lambda num_steps: lp.diffusion.dpm_solver_pp(2, num_steps),
    "deis": lambda num_steps: lp.diffusion.deis(3, num_steps),
    "unipc": lambda num_steps: lp.diffusion.unipc(3, num_steps),
    "dpm_solver_pp_sde": lambda num_steps: lp.diffusion.dpm_solver_pp(2, num_steps, variant="sde"),
}
ADDS_NOISE = ("dpm_solver_pp_sde",)
# Ends at noise of standard deviation 0.045; grey levels are 0.12 apart.
PROCESS = lp.scores.VP(t_min=0.01)


def digits():
    """Images between -1 and 1, to learn from and held out.

    Their 17 grey levels are spread out evenly, so that they have a density.
    """
    rng = np.random.default_rng(0)
    images = load_digits().images
    images = (images + rng.uniform(size=images.shape)) / 8.5 - 1.0
    images = rng.permutation(images.astype(np.float32))
    return images[NUM_HELD_OUT:], images[:NUM_HELD_OUT]


def learn(images, held_out):
    began = time.perf_counter()
    fitted = lp.scores.fit(
        jax.random.key(0),
        images,
        PROCESS,
        network=lp.scores.residual_mlp(width=256, depth=3),
        num_steps=3000,
        validation=held_out,
    )
    seconds = time.perf_counter() - began
    print(f"learned the score of {len(images)} digits in {seconds:.0f} s")
    print(
        f"  loss of the first 100 steps {fitted.losses[:100].mean():.2f}, of the last 100 "
        f"{fitted.losses[-100:].mean():.2f}, held out {fitted.validation_losses[-1]:.2f}"
    )
    return fitted


def tiled(images):
    """One picture of images ``[row, column, height, width]``, with a grey line between them."""
    framed = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=0.0)
    rows, columns, height, width = framed.shape
    return framed.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)[:-1, :-1]


def show(axis, images, labels=(), title=None):
    axis.imshow(tiled(images), cmap="gray", vmin=-1.0, vmax=1.0)
    height = images.shape[2] + 1
    axis.set_xticks([])
    axis.set_yticks([height * row + 0.5 * height for row in range(len(labels))], labels)
    axis.set_title(title)


def draw(figure, name):
    figure.savefig(OUTPUT / f"{name}.png", dpi=120, bbox_inches="tight")
    plt.close(figure)
    print(f"wrote {OUTPUT / name}.png")


def picture_of_training(fitted):
    figure, axis = plt.subplots(figsize=(6, 4))
    block = fitted.losses[: len(fitted.losses) // 50 * 50].reshape(-1, 50).mean(axis=1)
    axis.plot(np.arange(1, len(block) + 1) * 50, block, label="training, weights of the step")
    axis.plot(fitted.validation_steps, fitted.validation_losses, label="held out, averaged weights")
    axis.set(xlabel="step", ylabel="loss")
    axis.legend()
    draw(figure, "training")


def pictures_of_samplers(score, held_out):
    """Pictures from the same noise; for samplers of the flow also where it ends, and how far."""
    key = jax.random.key(1)
    end = lp.diffusion.generate(key, score, lp.diffusion.heun(200), SHOWN * 4).samples
    best = []
    for name, sampler in SAMPLERS.items():
        rows, labels = [], []
        for num_steps in STEPS:
            began = time.perf_counter()
            # Noise is of the key alone, so that it is the same for all.
            generated = lp.diffusion.generate(key, score, sampler(num_steps), SHOWN * 4)
            seconds = time.perf_counter() - began
            error = np.sqrt(np.mean((generated.samples - end) ** 2))
            off = "" if name in ADDS_NOISE else f", {error:.3f} off the end of the flow"
            evaluations = generated.num_evaluations
            print(f"{name}: {num_steps} steps, {evaluations} evaluations, {seconds:.1f} s{off}")
            rows.append(generated.samples[:SHOWN])
            labels.append(f"{num_steps} steps")
        best.append(generated.samples)
        if name not in ADDS_NOISE:
            rows.append(end[:SHOWN])
            labels.append("end of the flow")
        figure, axis = plt.subplots(figsize=(10, 4))
        own = " and noise on the way" if name in ADDS_NOISE else ""
        show(axis, np.stack(rows), labels, f"{name}, from the same noise{own}")
        draw(figure, name)
    compare(held_out, dict(zip(SAMPLERS, best, strict=True)))


def compare(held_out, samples):
    """Digits of every sampler, in the most steps, below real ones."""
    sets = {"held out": held_out[: SHOWN * 4], **samples}
    figure, axes = plt.subplots(3, 2, figsize=(12, 5.5))
    for axis, (name, images) in zip(axes.flat, sets.items(), strict=True):
        steps = "" if name == "held out" else f", {STEPS[-1]} steps"
        show(axis, images[: SHOWN * 4].reshape(4, SHOWN, 8, 8), title=name + steps)
    draw(figure, "samples")


def picture_of_trajectory(score):
    sampler = lp.diffusion.dpm_solver_pp(2, 20)
    generated = lp.diffusion.generate(jax.random.key(1), score, sampler, 8, trajectory=True)
    times = generated.times
    # What is left of the datum at first is too little to be seen: as bright as noise and datum are.
    bright = np.sqrt(np.mean(generated.trajectory**2, axis=(0, 2, 3), keepdims=True))
    images = generated.trajectory * np.minimum(1.0, 0.7 / bright)
    figure, axis = plt.subplots(figsize=(14, 6))
    show(axis, images, title="dpm_solver_pp(2, 20): from noise, left, to digits")
    width = images.shape[3] + 1
    centres = [width * node + 0.5 * width for node in range(len(times))]
    labels = [*(f"{t:.2g}" for t in times[:-1]), "clean"]
    axis.set_xticks(centres, labels, rotation=90)
    axis.set_xlabel("time")
    draw(figure, "trajectory")


def main():
    matplotlib.use("Agg")
    OUTPUT.mkdir(exist_ok=True)
    images, held_out = digits()
    fitted = learn(images, held_out)
    lp.scores.save(fitted.score, SCORE)
    print(f"wrote {SCORE}")
    picture_of_training(fitted)
    pictures_of_samplers(fitted.score, held_out)
    picture_of_trajectory(fitted.score)


if __name__ == "__main__":
    main()

"""An energy of digits: learned by walkers, drawn from, and asked what is no digit.

A small network in a NumPyro model is the energy of the 8 x 8 digits of scikit-learn, on top of a
base measure of independent pixels. ``lp.energy.replay`` learns it in about a minute by walkers with
cool noise, and walkers then go on for longer: the warnings of those runs are right, because most
of them stay near the digit that they began at. Prints how well energies tell held-out digits from
foreign images, beside the base measure alone, and writes pictures to ``energy_output/``:
``training.png``, ``samples.png`` and ``energies.png``.
"""

import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.module import eqx_module
from sklearn.datasets import load_digits

import langevin_ppl as lp

OUTPUT = Path("energy_output")
NUM_HELD_OUT = 300
NUM_STEPS, STEP_SIZE = 2500, 0.02
# At the temperature 1 of a density, walkers of so few steps learned an energy of noisy digits.
TEMPERATURE = 0.1
# Energies of images are tens of nats apart, outputs of a fresh network less than one.
SCALE = 5.0
LONG = 1000
SHOWN, ROWS = 16, 2


def digits():
    """Images between -1 and 1, to learn from and held out; as in ``02_digits_diffusion.py``."""
    rng = np.random.default_rng(0)
    images = load_digits().images
    images = (images + rng.uniform(size=images.shape)) / 8.5 - 1.0
    images = rng.permutation(images.astype(np.float32))
    return images[NUM_HELD_OUT:], images[:NUM_HELD_OUT]


def foreign(images):
    """Images that are no digits, or none that are written so, by what was done to digits."""
    rng = np.random.default_rng(1)
    flat, other = images.reshape(len(images), -1), np.roll(images, 1, axis=0)
    return {
        "uniform noise": rng.uniform(-1.0, 1.0, images.shape),
        "pixels permuted": flat[:, rng.permutation(64)].reshape(images.shape),
        "inverted": -images,
        "quarter turn": np.rot90(images, axes=(1, 2)),
        "mirrored": images[:, :, ::-1],
        "every pixel of another digit": rng.permuted(flat, axis=0).reshape(images.shape),
        "halves of two digits": np.concatenate([images[:, :4], other[:, 4:]], axis=1),
        "mean of two digits": 0.5 * (images + other),
    }


def model_of(images):
    """The model, and the base measure of its site."""
    network = eqx.nn.MLP(64, "scalar", 256, 2, jax.nn.swish, key=jax.random.key(0))
    base = dist.Normal(images.mean(axis=0), images.std(axis=0))

    def model():
        net = eqx_module("net", network)
        energy = lp.distributions.EnergyBased(
            lambda x: SCALE * net(x.reshape(-1)), (8, 8), base=base
        )
        numpyro.sample("x", energy, infer={"event_dims": ["row", "column"]})

    return model, base.to_event(2)


def learn(model, images, mass):
    began = time.perf_counter()
    fitted = lp.energy.fit(
        jax.random.key(1),
        model,
        images,
        method=lp.energy.replay(num_steps=20, buffer_size=2000),
        optimizer=3e-3,
        num_steps=NUM_STEPS,
        ema=0.998,
        step_size=STEP_SIZE,
        inverse_mass_matrix=mass,
        temperature=TEMPERATURE,
    )
    print(f"learned the energy of {len(images)} digits in {time.perf_counter() - began:.0f} s")
    print(f"  {fitted.method}: {fitted.bias}")
    last = {name: values[-NUM_STEPS // 20 :].mean() for name, values in fitted.reports.items()}
    print(
        f"  at the end digits have {last['energy_gap']:.1f} nats more than walkers, which are "
        f"{last['walker_spread']:.2f} standard deviations of the digits from their mean"
    )
    return fitted


def draw(figure, name):
    figure.savefig(OUTPUT / f"{name}.png", dpi=120, bbox_inches="tight")
    plt.close(figure)
    print(f"wrote {OUTPUT / name}.png")


def picture_of_training(fitted):
    figure, axes = plt.subplots(1, 2, figsize=(11, 4))
    aims = {
        "energy_gap": (0.0, "mean energy of digits minus that of walkers, nats"),
        "walker_spread": (1.0, "distance of walkers from the mean digit,\nstandard deviations"),
    }
    for axis, (name, (aim, label)) in zip(axes, aims.items(), strict=True):
        blocks = fitted.reports[name][: NUM_STEPS // 25 * 25].reshape(-1, 25).mean(axis=1)
        axis.plot(np.arange(1, len(blocks) + 1) * 25, blocks)
        axis.axhline(aim, color="grey", linestyle=":", label="walkers with the law of the digits")
        axis.set(xlabel="step", ylabel=label)
        axis.legend()
    draw(figure, "training")


def walked(fitted, walkers, mass, temperature):
    """Walkers after many more steps than a training step makes, at a temperature."""
    number = len(walkers)
    idata = lp.sample(
        jax.random.key(3),
        fitted.target,
        lp.ula,
        num_chains=number,
        num_warmup=0,
        num_samples=10,
        thinning=LONG // 10,
        initial={"x": jnp.asarray(walkers)},
        step_size=STEP_SIZE,
        inverse_mass_matrix=mass,
        temperature=temperature,
    )
    return idata["posterior"]["x"].values[:, -1]


def tiled(images):
    """One picture of images ``[row, column, height, width]``, with a grey line between them."""
    framed = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=0.0)
    rows, columns, height, width = framed.shape
    return framed.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)[:-1, :-1]


def picture_of_samples(sets):
    figure, axes = plt.subplots(len(sets), 1, figsize=(9, 1.4 * len(sets)))
    for axis, (name, images) in zip(axes, sets.items(), strict=True):
        shown = np.asarray(images[: ROWS * SHOWN]).reshape(ROWS, SHOWN, 8, 8)
        axis.imshow(tiled(shown), cmap="gray", vmin=-1.0, vmax=1.0)
        axis.set(xticks=[], yticks=[])
        axis.set_title(name, fontsize=9)
    figure.tight_layout()
    draw(figure, "samples")


def judged(fitted, base, held_out):
    """Energies of digits and foreign images; prints how well they are told apart."""
    inside = lp.energy.energies(fitted, held_out)
    by_base = -base.log_prob(held_out)
    outside = {}
    print(f"AUROC against {len(held_out)} held-out digits: energy, base measure alone")
    for name, images in foreign(held_out).items():
        images = images.astype(np.float32)
        outside[name] = lp.energy.energies(fitted, images)
        learned = lp.energy.auroc(inside, outside[name])
        alone = lp.energy.auroc(by_base, -base.log_prob(images))
        print(f"  {name:30} {learned:.3f} {alone:.3f}")
    return inside, outside


def picture_of_energies(fitted, images, held_out, inside, outside):
    figure, axes = plt.subplots(
        len(outside), 2, figsize=(11, 1.3 * len(outside)), width_ratios=(3, 2)
    )
    seen = lp.energy.energies(fitted, images)
    # Most foreign images are far away: the axis is linear near the digits, logarithmic beyond.
    largest = max(values.max() for values in outside.values())
    bins = np.r_[np.arange(-40.0, 100.0, 4.0), np.geomspace(100.0, max(largest, 200.0), 40)]
    pictures = foreign(held_out)
    for line, (name, values) in zip(axes, outside.items(), strict=True):
        line[0].hist(seen, bins, weights=np.full(len(seen), 1 / len(seen)), alpha=0.3, color="k")
        for part, colour in ((inside, "C0"), (values, "C3")):
            share = np.full(len(part), 1 / len(part))
            line[0].hist(part, bins, weights=share, histtype="step", color=colour)
        line[0].set_xscale("symlog", linthresh=100.0, linscale=2.0)
        line[0].set(xlim=(bins[0], bins[-1]), yticks=[])
        line[0].set_title(f"{name}: AUROC {lp.energy.auroc(inside, values):.3f}", fontsize=9)
        line[0].tick_params(labelbottom=name == list(outside)[-1])
        line[1].imshow(tiled(pictures[name][None, :7]), cmap="gray", vmin=-1.0, vmax=1.0)
        line[1].set(xticks=[], yticks=[])
    axes[-1, 0].set_xlabel("energy, nats; grey learned from, blue held out, red foreign")
    figure.tight_layout()
    draw(figure, "energies")


def main():
    matplotlib.use("Agg")
    OUTPUT.mkdir(exist_ok=True)
    images, held_out = digits()
    model, base = model_of(images)
    # Steps in proportion to the spread of every pixel.
    mass = jnp.asarray(images.var(axis=0).reshape(-1))
    fitted = learn(model, images, mass)
    picture_of_training(fitted)
    walkers = fitted.walkers["x"][: ROWS * SHOWN]
    picture_of_samples(
        {
            "held-out digits": held_out,
            "base measure": base.sample(jax.random.key(2), (ROWS * SHOWN,)),
            "walkers of the training": walkers,
            f"{LONG} steps later": walked(fitted, walkers, mass, TEMPERATURE),
            f"{LONG} steps later at the temperature 1": walked(fitted, walkers, mass, 1.0),
        }
    )
    inside, outside = judged(fitted, base, held_out)
    picture_of_energies(fitted, images, held_out, inside, outside)


if __name__ == "__main__":
    main()

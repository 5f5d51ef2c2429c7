"""Samplers at equal numbers of evaluations, by digits that a learned score makes.

A score is learned of two thirds of the 8 x 8 digits of scikit-learn, scaled to between -1 and 1,
with their 17 grey levels spread out evenly. Every sampler then draws as many digits as were held
out, with at most the same number of evaluations of the score, from the same noise. A step of
``heun`` is two evaluations and its last one is one, so that it has one less where the number is
even. All nodes are the samplers' own defaults.

- *Sliced W2*: distance to the held-out digits, in grey levels of which the interval is 2, mean of
  independent sets of samples. The floor is that of two sets of real digits of the same size.
- *MMD squared*: with a Gaussian kernel of the median distance of real digits, unbiased, and so
  sometimes negative.
- *Distance to the end of the flow*: root mean square over pixels, against ``heun`` with 200 steps
  from the same noise. It is the error of the sampler alone; in the distances to real digits are
  that of the score and that of finitely many samples too. Samplers that add noise have none.

    python examples/benchmarks/solver_quality_digits.py [--quick]

`solver_quality_mnist.py` does the same with larger images.
"""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
from common import finish, goal, machine, parser, quartiles
from scipy.spatial.distance import pdist
from sklearn.datasets import load_digits

import langevin_ppl as lp
from langevin_ppl import diffusion

EVALUATIONS = (5, 8, 10, 15, 20, 50)
SAMPLERS = {
    "dpm_solver_pp(1)": lambda n: diffusion.dpm_solver_pp(1, n),
    "dpm_solver_pp(2)": lambda n: diffusion.dpm_solver_pp(2, n),
    "dpm_solver_pp(3)": lambda n: diffusion.dpm_solver_pp(3, n),
    "deis(3)": lambda n: diffusion.deis(3, n),
    "unipc(3)": lambda n: diffusion.unipc(3, n),
    "ipndm(4)": lambda n: diffusion.ipndm(4, n),
    "ghvb(2.5)": lambda n: diffusion.ghvb(2.5, n),
    "heun": lambda n: diffusion.heun((n + 1) // 2),
    "ancestral": lambda n: diffusion.ancestral(n),
}
ADDS_NOISE = ("ancestral",)
BATCH, TIMED_STEPS = 128, 300
SEEDS = 3
SPLITS = 10
DEFAULT, AT = "dpm_solver_pp(2)", 20


@dataclasses.dataclass(frozen=True)
class Task:
    """Digits, and how their score is learned.

    ``images`` are integers, ``[image, height, width]``, of ``levels`` grey levels. The goals of the
    score are limits of the seconds of training and of the sliced W2 of the flow over the floor.
    """

    name: str
    images: np.ndarray
    levels: int
    num_held_out: int
    network: Any
    num_steps: int
    goals_of_score: tuple[float, float] | None = None

    def split(self):
        """Images to learn from and held out."""
        rng = np.random.default_rng(0)
        images = (self.images + rng.uniform(size=self.images.shape)) / (self.levels / 2.0) - 1.0
        images = rng.permutation(images.astype(np.float32))
        return images[self.num_held_out :], images[: self.num_held_out]


def learn(images, network, num_steps):
    began = time.perf_counter()
    fitted = lp.scores.fit(
        jax.random.key(0),
        images,
        lp.scores.VP(),
        network=network,
        num_steps=num_steps,
        batch_size=BATCH,
        progress=False,
    )
    return fitted, time.perf_counter() - began


def training(images, network, num_steps, timed_steps):
    """Score and one row of a table; the first call compiles, the second does not."""
    fitted, seconds = learn(images, network, num_steps)
    _, warm = learn(images, network, timed_steps)
    row = {
        "images": len(images),
        "batch": BATCH,
        "steps": num_steps,
        "seconds, compilation included": seconds,
        "steps/s once compiled": timed_steps / warm,
        "loss of the last 100 steps": float(fitted.losses[-100:].mean()),
    }
    print(row, flush=True)
    return fitted.score, row


class Judge:
    """Distances to real digits, always with the same directions and the same bandwidth."""

    def __init__(self, images, held_out):
        self.held_out, self.every = held_out, np.concatenate([images, held_out])
        self.bandwidth = float(np.median(pdist(held_out.reshape(len(held_out), -1))))

    def distances(self, samples, real=None):
        """Sliced W2 and squared MMD."""
        real = self.held_out if real is None else real
        sliced = lp.diagnostics.sliced_wasserstein(jax.random.key(9), samples, real)
        return sliced.value, lp.diagnostics.mmd(samples, real, bandwidth=self.bandwidth).value

    def floor(self, splits):
        """The same of two sets of real digits of the same size, ``[split, metric]``."""
        rng, size = np.random.default_rng(1), len(self.held_out)
        found = []
        for _ in range(splits):
            mixed = rng.permutation(self.every)
            found.append(self.distances(mixed[:size], mixed[size : 2 * size]))
        return np.array(found)


def measure(score, judge, name, evaluations, ends):
    """Distances of every set of samples, ``[seed, metric]``, and that to the end of the flow."""
    sampler, found, errors = SAMPLERS[name](evaluations), [], []
    for seed, end in enumerate(ends):
        generated = diffusion.generate(jax.random.key(seed), score, sampler, len(end))
        assert generated.num_evaluations <= evaluations
        found.append(judge.distances(generated.samples))
        errors.append(np.mean((generated.samples - end) ** 2))
    return np.array(found), float(np.sqrt(np.mean(errors)))


def plus_minus(values):
    """Mean and its standard error."""
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.4f}"


def tables(score, judge, evaluations, seeds, splits):
    """The three tables; distances of the floor and of the end of the flow; all numbers."""
    size = len(judge.held_out)
    ends = [
        diffusion.generate(jax.random.key(seed), score, diffusion.heun(200), size).samples
        for seed in range(seeds)
    ]
    floor = judge.floor(splits)
    sliced, discrepancy, error, data = [], [], [], []
    for name in SAMPLERS:
        rows = {"sampler": name}, {"sampler": name}, {"sampler": name}
        for count in evaluations:
            found, off = measure(score, judge, name, count, ends)
            rows[0][f"{count} evaluations"] = plus_minus(found[:, 0])
            rows[1][f"{count} evaluations"] = plus_minus(found[:, 1])
            rows[2][f"{count} evaluations"] = off
            mean = found.mean(axis=0)
            numbers = {"sliced_w2": float(mean[0]), "mmd_squared": float(mean[1])}
            off_flow = None if name in ADDS_NOISE else off
            data.append({"sampler": name, "evaluations": count, **numbers, "off_flow": off_flow})
        print(rows[0], flush=True)
        sliced.append(rows[0])
        discrepancy.append(rows[1])
        error += [] if name in ADDS_NOISE else [rows[2]]
    limits = np.array([judge.distances(end) for end in ends])
    for column, table in enumerate((sliced, discrepancy)):
        limit = plus_minus(limits[:, column])
        real = plus_minus(floor[:, column])
        columns = [f"{count} evaluations" for count in evaluations]
        table.append({"sampler": "end of the flow", **dict.fromkeys(columns, limit)})
        table.append({"sampler": "floor: real digits", **dict.fromkeys(columns, real)})
    return sliced, discrepancy, error, floor, limits, data


def goals_of(data, floor, end, seconds, evaluations, goals_of_score):
    at = AT if AT in evaluations else evaluations[-1]
    (default,) = (row for row in data if row["sampler"] == DEFAULT and row["evaluations"] == at)
    said = f"{DEFAULT} at {at} evaluations"
    goals = [
        goal(f"distance of {said} to the end of the flow", default["off_flow"], 0.05),
        goal(f"sliced W2 of {said} over that of the flow", default["sliced_w2"] / end, 1.1),
    ]
    if goals_of_score is None:
        return goals
    longest, farthest = goals_of_score
    over_floor = goal("sliced W2 of the end of the flow over the floor", end / floor, farthest)
    return [goal("training, s", seconds, longest), *goals, over_floor]


def main(task, options):
    host = machine()
    quick = options.quick
    images, held_out = task.split()
    if quick:
        held_out = held_out[:64]
    evaluations, seeds = ((5, 20), 2) if quick else (EVALUATIONS, SEEDS)
    num_steps, timed = (100, 20) if quick else (task.num_steps, TIMED_STEPS)
    score, row = training(images, task.network, num_steps, timed)
    judge = Judge(images, held_out)
    sliced, discrepancy, error, floor, limits, data = tables(
        score, judge, evaluations, seeds, 3 if quick else SPLITS
    )
    low, _, high = quartiles(floor[:, 0].tolist())
    mean_floor, mean_end = float(floor[:, 0].mean()), float(limits[:, 0].mean())
    notes = [
        f"{len(images)} digits to learn from, {len(held_out)} held out and as many drawn, "
        f"{seeds} times; ± is the standard error over those, or over {len(floor)} splits of all "
        f"digits for the floor, whose sliced W2 is from {low:.4f} to {high:.4f} in half of them. "
        "Held-out digits are the same for all rows, and what they happen to be moves all of "
        "them together. What is left between the end of the flow and the floor is the error of the "
        f"score: its sliced W2 is {mean_end / mean_floor:.2f} times that of the floor. A sampler "
        "can be nearer to the digits than the end of the flow, where its own error makes up for "
        "some of that of the score.",
    ]
    return finish(
        task.name,
        options,
        host,
        precision="float32",
        tables={
            "Training": [row],
            "Sliced W2 to held-out digits": sliced,
            "MMD squared to held-out digits": discrepancy,
            "Distance to the end of the flow": error,
        },
        goals=goals_of(
            data,
            mean_floor,
            mean_end,
            row["seconds, compilation included"],
            evaluations,
            task.goals_of_score,
        ),
        notes=notes,
        data=data,
    )


if __name__ == "__main__":
    asked = parser(__doc__).parse_args()
    small = Task(
        name="solver_quality_digits",
        images=load_digits().images,
        levels=17,
        num_held_out=599,
        network=lp.scores.residual_mlp(width=256, depth=3),
        num_steps=3000,
        goals_of_score=(180.0, 1.5),
    )
    main(small, asked)

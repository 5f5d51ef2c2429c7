"""Bias of every sampler that adds noise, against moments in closed form.

The score is exact, so that what is left is the sampler's own error. Two laws in one dimension:
a Gaussian under `VP`, and two modes four standard deviations from the middle under `EDM`.
All samplers get the same numbers of evaluations of the score; errors of mean and standard deviation
are in per cent of the exact standard deviation, and their standard errors come from the samples.

    python examples/benchmarks/sde_moments.py [--quick]
"""

from typing import NamedTuple

import jax
import numpy as np
from common import finish, goal, machine, parser

import langevin_ppl as lp

diffusion, scores = lp.diffusion, lp.scores

BUDGETS = (10, 20, 50, 100, 200)


class Law(NamedTuple):
    """A mixture of Gaussians in one dimension, and the process that it is noised by."""

    process: scores.NoiseProcess
    weights: tuple[float, ...]
    means: tuple[float, ...]
    variances: tuple[float, ...]

    def moments(self):
        """Mean and standard deviation."""
        weights, means = np.array(self.weights), np.array(self.means)
        mean = weights @ means
        return mean, np.sqrt(weights @ (np.array(self.variances) + means**2) - mean**2)

    def score(self):
        means = np.array(self.means)[:, None]
        return scores.exact_mixture(self.process, self.weights, means, self.variances)


LAWS = {
    "Gaussian, VP": Law(scores.VP(), (1.0,), (1.3,), (0.49,)),
    "Two modes, EDM": Law(scores.EDM(), (0.3, 0.7), (-2.0, 2.0), (0.25, 0.25)),
}


def corrected(number, ratio):
    """One corrector step a node: two evaluations."""
    return diffusion.predictor_corrector(diffusion.ancestral(number // 2), signal_to_noise=ratio)


def joint(number):
    """A fifth of the evaluations for the way down."""
    last = number // 5
    return diffusion.denoising_mcmc((number - last) // 2, denoising_steps=last)


SAMPLERS = {
    "euler_maruyama": diffusion.euler_maruyama,
    "ancestral": diffusion.ancestral,
    "ancestral, upper variance": lambda n: diffusion.ancestral(n, variance="upper"),
    "exponential_sde, order 1": lambda n: diffusion.exponential_sde(n, 1),
    "exponential_sde, order 2": lambda n: diffusion.exponential_sde(n, 2),
    "exponential_sde, order 3": lambda n: diffusion.exponential_sde(n, 3),
    "dpm_solver_pp, order 2, sde": lambda n: diffusion.dpm_solver_pp(2, n, variant="sde"),
    "heun, churn 5": lambda n: diffusion.heun(n // 2, churn=5.0),
    "predictor_corrector, ratio 0.16": lambda n: corrected(n, 0.16),
    "predictor_corrector, ratio 0.4": lambda n: corrected(n, 0.4),
    "annealed_langevin": lambda n: diffusion.annealed_langevin(n // 5, 4),
    "denoising_mcmc": joint,
    "dpm_solver_pp, order 2 (no noise)": lambda n: diffusion.dpm_solver_pp(2, n),
}


class Found(NamedTuple):
    """Errors of mean and standard deviation with their standard errors, in per cent."""

    mean: float
    mean_error: float
    spread: float
    spread_error: float

    def cell(self):
        return f"{self.mean:+.2g} / {self.spread:+.3g}"


def measure(law, sampler, number, seed):
    """Errors of a sampler, and how many evaluations it made."""
    generated = diffusion.generate(jax.random.key(seed), law.score(), sampler, number)
    x = generated.samples[:, 0].astype(np.float64)
    mean, spread = law.moments()
    away = (x - x.mean()) ** 2
    sd = np.sqrt(away.mean())
    errors = sd / np.sqrt(number), away.std() / (2.0 * sd * np.sqrt(number))
    values = x.mean() - mean, errors[0], sd - spread, errors[1]
    return Found(*(100.0 * float(value) / spread for value in values)), generated.num_evaluations


def compare(law, budgets, number):
    """Rows of a table, and the numbers in it by sampler and budget."""
    rows, data = [], {}
    for name, make in SAMPLERS.items():
        found = {}
        for seed, budget in enumerate(budgets):
            found[budget], used = measure(law, make(budget), number, seed)
            # One evaluation less for methods of two a step, the last of which has one.
            assert budget - 1 <= used <= budget, (name, used)
        last = found[budgets[-1]]
        row = {"sampler": name} | {f"{budget}": part.cell() for budget, part in found.items()}
        row["± at the last"] = f"{last.mean_error:.1g} / {last.spread_error:.1g}"
        print(row, flush=True)
        rows.append(row)
        data[name] = found
    return rows, data


def judge(data):
    """Goals, of which the first says whether the others mean anything."""

    def worst(name, budget):
        found = [part[name][budget] for part in data.values()]
        return max(max(abs(part.mean), abs(part.spread)) for part in found)

    last = [part[BUDGETS[-1]] for found in data.values() for part in found.values()]
    plain = data["Gaussian, VP"]["ancestral"][50].spread
    pulled = data["Gaussian, VP"]["predictor_corrector, ratio 0.4"][100].spread
    return [
        goal("largest standard error at 200, %", max(part.mean_error for part in last), 1.0),
        goal(
            "largest error of exponential_sde, order 3, at 50, %",
            worst("exponential_sde, order 3", 50),
            2.0,
        ),
        goal("largest error of euler_maruyama at 200, %", worst("euler_maruyama", 200), 4.0),
        goal("error of the sd with a corrector over that without, 50 steps", pulled / plain, 0.5),
    ]


def main():
    options = parser(__doc__).parse_args()
    host = machine()
    number, budgets = (2000, BUDGETS[:2]) if options.quick else (50_000, BUDGETS)
    tables, data = {}, {}
    for title, law in LAWS.items():
        rows, data[title] = compare(law, budgets, number)
        tables[f"{title}: errors of mean / sd, % of the sd, by evaluations"] = rows
    return finish(
        "sde_moments",
        options,
        host,
        precision="float32",
        tables=tables,
        goals=[] if options.quick else judge(data),
        notes=[
            f"{number:,} samples each, of scores that are exact. Order 1 of `exponential_sde` is "
            "`ancestral` with corrected points. `predictor_corrector` has the predictor "
            "`ancestral` and one corrector step at a node; `annealed_langevin` makes four steps at "
            "a level; `denoising_mcmc` spends a fifth of its evaluations on the way down. The last "
            "row is the default sampler, which adds no noise."
        ],
        data={
            title: {
                name: {budget: part._asdict() for budget, part in found.items()}
                for name, found in by_sampler.items()
            }
            for title, by_sampler in data.items()
        },
    )


if __name__ == "__main__":
    main()

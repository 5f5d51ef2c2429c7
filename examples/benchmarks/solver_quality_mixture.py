"""Solvers of the probability flow at equal numbers of evaluations, with an exact score.

The data are a mixture of five Gaussians in two dimensions, of unequal weights and shapes, under the
variance-preserving process, so that all errors are those of the solvers.

- *Distance to the end of the flow*: root mean square over samples and coordinates, against
  ``unipc(3)`` with 1,000 steps from the same noise.
- *Sliced W2* to true samples. The floor is that of other true samples of the same number.

Solvers have the nodes that are their defaults, and then all of them the same ones. A step of
``heun`` or of the singlestep method is two evaluations and its last one is one, so that they have
one less where the number is even. The adaptive flow takes as many as its tolerance needs.

    python examples/benchmarks/solver_quality_mixture.py [--quick]
"""

import jax
import numpy as np
from common import finish, goal, machine, parser

import langevin_ppl as lp
from langevin_ppl import diffusion
from langevin_ppl.diagnostics import sliced_wasserstein

EVALUATIONS = (5, 8, 10, 15, 20, 50)
SOLVERS = {
    "dpm_solver_pp(1)": lambda n, **o: diffusion.dpm_solver_pp(1, n, **o),
    "dpm_solver_pp(2)": lambda n, **o: diffusion.dpm_solver_pp(2, n, **o),
    "dpm_solver_pp(3)": lambda n, **o: diffusion.dpm_solver_pp(3, n, **o),
    "dpm_solver_pp(2), singlestep": lambda n, **o: diffusion.dpm_solver_pp(
        2, (n + 1) // 2, variant="singlestep", **o
    ),
    "unipc(2)": lambda n, **o: diffusion.unipc(2, n, **o),
    "unipc(3)": lambda n, **o: diffusion.unipc(3, n, **o),
    "deis(1)": lambda n, **o: diffusion.deis(1, n, **o),
    "deis(3)": lambda n, **o: diffusion.deis(3, n, **o),
    "ipndm(2)": lambda n, **o: diffusion.ipndm(2, n, **o),
    "ipndm(4)": lambda n, **o: diffusion.ipndm(4, n, **o),
    "ghvb(1.5)": lambda n, **o: diffusion.ghvb(1.5, n, **o),
    "ghvb(2.5)": lambda n, **o: diffusion.ghvb(2.5, n, **o),
    "heun": lambda n, **o: diffusion.heun((n + 1) // 2, **o),
}
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4)
HIGH_ORDER = ("dpm_solver_pp(3)", "unipc(3)", "deis(3)", "ipndm(4)")
SPACINGS = ("log_snr", "root_time")
PROJECTIONS, SETS = 200, 5
WEIGHTS = np.array([0.3, 0.25, 0.2, 0.15, 0.1])
ANGLES = 2.0 * np.pi * np.arange(5) / 5
SPREADS = np.array([[0.3, 0.1], [0.2, 0.2], [0.15, 0.4], [0.1, 0.1], [0.5, 0.2]])
RADIUS = 2.0


def mixture():
    """Score, and ``draw(rng, number)`` of true samples."""
    means = RADIUS * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)
    turn = np.stack(
        [np.cos(ANGLES), -np.sin(ANGLES), np.sin(ANGLES), np.cos(ANGLES)], axis=1
    ).reshape(5, 2, 2)
    roots = turn * SPREADS[:, None, :]
    score = lp.scores.exact_mixture(lp.scores.VP(), WEIGHTS, means, roots @ roots.mT)

    def draw(rng, number):
        part = rng.choice(5, number, p=WEIGHTS)
        noise = rng.standard_normal((number, 2))
        return means[part] + np.einsum("nij,nj->ni", roots[part], noise)

    return score, draw


class Ruler:
    """Both distances of samples that began at the same noise."""

    def __init__(self, number):
        self.score, draw = mixture()
        rng = np.random.default_rng(0)
        self.number, self.true = number, draw(rng, number)
        self.floor = np.mean([self.to_truth(draw(rng, number)) for _ in range(SETS)])
        self.end = self.samples(diffusion.unipc(3, 1000)).samples

    def samples(self, sampler):
        return diffusion.generate(jax.random.key(1), self.score, sampler, self.number)

    def to_truth(self, samples):
        found = sliced_wasserstein(
            jax.random.key(2), samples, self.true, num_projections=PROJECTIONS
        )
        return float(found.value)

    def to_end(self, samples):
        return float(np.sqrt(np.mean((samples - self.end) ** 2)))


def compare(ruler, evaluations, **options):
    """Samples by solver and number of evaluations."""
    found = {}
    for name, sampler_of in SOLVERS.items():
        for n in evaluations:
            generated = ruler.samples(sampler_of(n, **options))
            assert n - 1 <= generated.num_evaluations <= n
            found[name, n] = generated.samples
        print(name, flush=True)
    return found


def rows(found, evaluations, distance):
    """Table of a distance of samples."""
    return [
        {"solver": name, **{str(n): distance(found[name, n]) for n in evaluations}}
        for name in SOLVERS
    ]


def main():
    options = parser(__doc__).parse_args()
    host = machine()
    jax.config.update("jax_enable_x64", True)
    evaluations = EVALUATIONS[:2] if options.quick else EVALUATIONS
    ruler = Ruler(200 if options.quick else 4000)
    found = compare(ruler, evaluations)
    own = rows(found, evaluations, ruler.to_end)
    sliced = rows(found, evaluations, ruler.to_truth)
    same = {
        f"The same, all with nodes uniform in {spacing}": rows(
            compare(ruler, evaluations, spacing=spacing), evaluations, ruler.to_end
        )
        for spacing in SPACINGS
    }
    adaptive = []
    for tolerance in TOLERANCES[:1] if options.quick else TOLERANCES:
        generated = ruler.samples(diffusion.probability_flow(tolerance, tolerance))
        adaptive.append(
            {
                "tolerance": tolerance,
                "evaluations": round(generated.num_evaluations, 1),
                "distance": ruler.to_end(generated.samples),
                "sliced W2": ruler.to_truth(generated.samples),
            }
        )
    first = {row["solver"]: row for row in own}
    few, many = str(evaluations[-2]), str(evaluations[-1])
    ratios = [first[name][few] / first["dpm_solver_pp(1)"][many] for name in HIGH_ORDER]
    goals = [
        goal(f"smallest distance at {many} evaluations", min(row[many] for row in own), 1e-3),
        goal(
            f"largest distance of {', '.join(HIGH_ORDER)} at {few} evaluations over that of "
            f"dpm_solver_pp(1) at {many}",
            max(ratios),
            1.0,
        ),
    ]
    notes = [
        f"{ruler.number:,} samples. The sliced W2 of {SETS} other sets of true samples is "
        f"{ruler.floor:.3g} in the mean, over {PROJECTIONS} directions."
    ]
    return finish(
        "solver_quality_mixture",
        options,
        host,
        precision="float64 (jax_enable_x64)",
        tables={
            "Distance to the end of the flow by evaluations, own nodes": own,
            **same,
            "Sliced W2 to true samples by evaluations, own nodes": sliced,
            "probability_flow": adaptive,
        },
        goals=goals,
        notes=notes,
    )


if __name__ == "__main__":
    main()

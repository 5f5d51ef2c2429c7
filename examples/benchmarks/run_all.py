"""Run all benchmarks, one after the other, and write docs/benchmarks.md from their results.

    python examples/benchmarks/run_all.py            # measure everything, then write the page
    python examples/benchmarks/run_all.py --render   # write the page from the files in results/
    python examples/benchmarks/run_all.py --quick    # try everything; print the page, keep nothing

The reference posteriors are run where LANGEVIN_PPL_DATA names their folder. Close other programs
first: most of the numbers are times.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from common import RESULTS, markdown, parser

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent.parent / "docs" / "benchmarks.md"

HEAD = """# Benchmarks

What was measured, on what machine, and how to measure it again. This page is written by
`examples/benchmarks/run_all.py` from the files in `examples/benchmarks/results`. Do not edit it by
hand. `make bench` runs everything anew, and so does, one benchmark at a time,

```sh
python examples/benchmarks/step_overhead.py
```

Times are medians, with quartiles in brackets. Ways that are compared ran in turn, and their ratios
were taken round by round, so that a slow minute of the machine slows both sides of a ratio.
A goal that was not met stands here like the others.
"""

SECTIONS = {
    "step_overhead": """## One step

What `lp.sample` costs beyond the sampler itself. The baseline is a `lax.scan` of the same kernel,
jitted and written by hand: MALA with the identity metric on Bayesian logistic regression (569
patients, 30 features, 4 chains), returning draws, log densities and acceptance rates.
`lp.sample` also reports divergences and gradient norms, checks that numbers are finite, and moves
the draws to the host chunk by chunk. The stage is its attribute `sampling_time`. The slope is what
one more step adds to the whole call, DataTree included. The worst mean says how far the
posterior means of all rounds are from those of the first row, in standard errors.""",
    "first_call": """## The first call

What a user waits for in a fresh process, compilation included: eight schools, 4 chains of 500
warm-up steps and 500 draws, up to the DataTree. MALA makes one gradient evaluation a step and NUTS
several, so the draws are not worth the same: the effective sample sizes stand beside the times.""",
    "compile_breakdown": """## Where the first call's time goes

The same call, taken apart by JAX's own events. Tracing of a program includes that of the programs
it calls.""",
    "posteriors": """## Reference posteriors

Is the answer right? Three posteriors of [posteriordb](https://github.com/stan-dev/posteriordb)
against the moments of its gold-standard draws. The runs are as long as it takes for a bulk
effective sample size of 4000 of every variable and of its squared deviation from the mean. The
gradients and the seconds are those of that run, warm-up included, compilation not. A draw counts as
diverging if any of the steps thinned into it proposed a point that was not finite or had an energy
error above 1000. Such a proposal is rejected.""",
    "against_nuts": """## Draws for a gradient

`lp.sample(key, target)` with nothing else said, beside NumPyro's NUTS as users run it and with its
dense metric, on nine posteriors of posteriordb. Efficiency is the smallest bulk ESS of parameters
and of their squared deviations, for one gradient evaluation; optimisation and warm-up count. Much
of the lead is the warm-up: NUTS spends most of its gradients in its first, ill-conditioned
iterations.""",
    "time_to_ess": """## Time to 400 effective draws

A fresh process, from the call to a DataTree with a bulk ESS of 400 of draws and of squared
deviations, compilation included, imports not. NUTS has no stopping rule and is told by earlier,
untimed runs how many draws it needs.""",
    "stress": """## Right, or flagged

Targets chosen to break samplers. There is no promise that they are sampled well; the promise is
that a wrong answer says so.""",
    "sbc": """## Calibration

Simulation-based calibration of the default: ranks of parameters drawn from the prior among draws of
the posterior given data drawn from them.""",
    "scaling": """## A step against the bare gradient

The default kernel's step beside the evaluation of the gradient that it needs. Beside an almost free
gradient the ratio is that of the random numbers.""",
    "numpyro_kernels": """## A step in NumPyro's MCMC

`langevin_ppl.infer.MALA` inside `numpyro.infer.MCMC`, beside `lp.sample` with the same kernel and
beside NumPyro's own BarkerMH, which also takes one gradient a step. All run on the same model with
diagonal metrics tuned in their own warm-ups. A step is what one more draw adds to a call. The
second table compares posterior means over NumPyro's chain methods.""",
    "kernel_bias": """## Bias of the unadjusted kernels

Without a Metropolis test the law of the draws depends on the step size. Every such kernel on a
quartic double well, at the same numbers for its own `step_size`, against a moment by quadrature;
then the power of the step size with which the bias shrinks, beside the one that is documented. A
kernel that diverges says so here as it does in a run.""",
    "bias_estimate": """## Is the estimate of a bias right?

`lp.diagnostics.bias` gives the shift of every mean and standard deviation, with a standard error.
Here the true shifts are known, from the kernels' own transitions without any Monte Carlo. An
interval of two standard errors should hold the truth in 95 of 100 cases, not fewer and not many
more.""",
    "thermometer": """## Does the thermometer flag wrong standard deviations?

Gradients from 200 of 20,000 rows heat a chain, and R-hat does not see it. `lp.sample` reads the
temperature along the direction of the largest gradient noise. Here step sizes are given by hand,
good ones and bad ones, and the truth is an exact run. A standard deviation that is off by more than
15 % is wrong and should be flagged, others should not.""",
    "minibatch_step": """## One step with a gradient from a batch

`lp.sgld` with every gradient estimator on a NumPyro model, logistic regression of 200,000 rows and
50 features, beside the same chain written by hand: the same rows, random numbers and update.""",
    "tall_accuracy": """## Many rows: right for how many passes?

Two posteriors of many rows, and kernels with gradients from a part of the data. A pass is as many
gradients of rows as there are rows, for each chain. Step sizes are those that `lp.sample` chooses.
A cell holds the largest error of a posterior mean, in posterior standard deviations, and the range
of the ratios of standard deviations, against a reference in float64.""",
    "tall_time": """## Many rows: time until the answer is right

A fresh process, from the call until all posterior means are right to 0.1 standard deviations and
all standard deviations to 10 %, compilation included, imports not. `lp.sample` runs once with its
own lengths. NUTS and HMCECS of NumPyro are stopped by what no user has, the truth.""",
    "streaming": """## Data larger than memory

Does a step know how many rows there are? The same chains with rows from a stream of memory maps,
with all rows in memory, and in a plain Python loop over batches.""",
    "memory": """## Memory

What a run whose result is large adds to the memory of a process: a deterministic of 50,000 rows,
in a model of two parameters. The rise is that of the peak resident size above the peak of a small
run in the same process, imports and compilation included. With `store=` draws are written block by
block, and the rise should not depend on their number.""",
    "kill_and_resume": """## Killed and resumed

Runs that are killed at random moments and resumed, compared bit for bit with runs that were not. A
kill is counted where the run stood; many fall on the imports and the compilation of a process that
resumes.""",
    "checkpoint_cost": """## What a checkpoint costs

The same run with and without, and a long run whose draws are on disk alone.""",
    "taming": """## From far away, with exploding gradients

Chains start up to a distance of 1000 from the origin, where gradients are as large as `1e87`.
Explicit schemes overflow there, Metropolis tests of untamed proposals reject for ever, and tamed
kernels come back. What the taming costs once they are there stands in the last columns.""",
    "tempering": """## Separated modes

25 narrow modes, for the same number of gradient evaluations: replicas at several temperatures,
single chains, and many short chains that are cooled down. A chain that stays in its mode has no
way to know the weights of the others, and the last column says whether the run was flagged.""",
    "mixture_modes": """## Separated modes through noise

The same 25 modes where log density and gradient come with the noise of a batch, for the same number
of evaluations: single chains, cyclical steps, replicas with corrected swaps, flattened energies.
`lp.sample` resamples draws that have weights.""",
    "neural_network": """## Neural networks

One hidden layer of 50 units on four regression sets: kernels for stochastic gradients beside an
ensemble of modes trained on the same batches, NUTS with all rows on the small sets, and
temperatures below 1. What is compared are predictions, because the weights of no run converge.""",
    "hierarchical": """## Ten thousand weights

A hierarchical logistic regression whose scales are latent: no Gaussian at a mode will do, and a
gradient of all rows is slow. What minibatches reach, and when, beside NUTS for a minute.""",
    "solver_order": """## Orders of the solvers of diffusions

A Gaussian datum, whose probability flow is known in closed form, under the variance-preserving
process. Errors of all steps as they are used, in double precision, and the order, from the exact
history and without a last step of lower order. `ipndm` above order 2, and `ghvb` above 2, have
their orders only on nodes uniform in the ratio of noise to datum, of no use otherwise.""",
    "solver_overhead": """## What a solver costs beyond the network

The time of one evaluation in the loop of `lp.diffusion.generate` over that of a jitted loop of the
network alone: a residual network of width 256 on 512 samples of 64 numbers, in turn.""",
    "solver_quality_mixture": """## Solvers on a mixture of Gaussians

The exact score of a mixture in two dimensions. The distance is the root mean square to the end of
the flow from the same noise, found by many steps; sliced W2 is to samples of the mixture.""",
    "solver_quality_digits": """## Solvers on digits

A score learned from the 8x8 digits of scikit-learn, against digits that were held out. The floor is
the distance of two halves of the data, and the end of the flow what many steps give: what is above
the floor there is the score's. The goals were set after a first run.""",
    "solver_quality_mnist": """## Solvers on MNIST

The same with 28x28 digits, by a residual network of width 512 and depth 4 on the flattened images.
Its digits are poor: most can be recognised, all have speckled strokes, and many are no digit. The
end of the flow is more than half again as far from held-out digits as the floor, and would miss the
goal above. The samplers keep their goals, with the same limits; the score has none here. A U-Net is
left out: on two cores it takes more than the minutes of this benchmark.""",
    "sde_moments": """## Samplers that add noise

Mean and standard deviation of a Gaussian datum, and of one with two modes, against what they should
be, at equal numbers of evaluations.""",
    "score_prior_conjugate": """## A score as a prior

A mixture of Gaussians as the prior and a linear observation with noise: the posterior is known.
Guided samplers, walks and chains are measured by how far mean, covariance and weights of the modes
are from it, with standard errors.""",
    "energy_mixture": """## Trainers of energies where modes are far apart

Two Gaussians in 50 dimensions with weights 0.25 and 0.75, learned by a model of the same family.
Walkers do not cross between the modes: only their weights can say how much mass each should
have.""",
    "energy_quadrature": """## Trainers of energies against maximum likelihood

Energies in one and two dimensions, whose maximum of the likelihood and normaliser are known by
quadrature. Errors are in standard errors of maximum likelihood, against the maximum for the same
data.""",
    "energy_2d": """## Energies of networks in two dimensions

A small network times a Gaussian base measure, learned by every trainer with as many updates, and
judged on a grid; and what an update costs beyond its gradients.""",
    "energy_digits": """## A classifier that is an energy

A joint energy model beside the same network trained as a classifier, on the 8x8 digits of
scikit-learn: accuracy, calibration, and how well foreign images are told.""",
    "optim_toy": """## From a gradient of 1e18

One number and a loss that grows like its 30th power (arXiv:2107.08649), from where gradients are
1e18 or more. Plain gradient descent overflows in two steps, and Adam, whose memory of the first
gradients takes thousands of steps to fade, hardly moves. Tamed steps arrive, but `tusla` only in a
narrow range of rates, above which it overshoots as its bound says. Gradient clipping solves the
problem too, and more exactly, as long as the norm of the gradient does not overflow: in float32,
from 5, it does, and clipped and adaptive methods then stand still without a word. Optax's AMSGrad
differs from PyTorch's, of which the expected 3.61 is: a replay by that rule gave 3.609.""",
    "optim_networks": """## Langevin optimisers on small networks

Every method with as many steps on the same batches, at a constant rate that validation rows choose
from seven, judged by test rows. Adam or AMSGrad is best on the three regressions, clearly so only
on the noiseless cubic, and `theopoula` has the smallest loss on MNIST by less than two standard
errors. Where gradients do not explode, taming has little to do: `theopoula` without boosting gives
what plain gradient descent gives at the same rate, though it survives rates at which that diverges.
Boosting helps where gradients are small, and leaves a floor at a constant rate, as the cubic
shows.""",
    "optim_landscapes": """## Global minima

Rastrigin, Ackley, Griewank and Levy with the minimum moved off the centre, equal budgets of values
and gradients, success within 1e-3. In two dimensions `consensus` with batches finds the minimum
most often of all. From ten dimensions on, SciPy's `dual_annealing` is the best and the one to use
at these budgets: it moves one coordinate at a time, which suits three of the four landscapes.
Langevin methods get stuck, above all on the plain of Ackley, and in 50 dimensions succeed only on
Griewank, where L-BFGS from random starts does too. A compiled run of the library takes a tenth of
SciPy's time or less, compilation aside.""",
    "optim_cvar": """## Value at risk and CVaR

The quantile of a loss by stochastic gradients that jump, against closed forms; generated heavy
tails stand in for the fire insurance claims of the original experiment. In batches of 128 all
optimisers find it, and at a step of 0.001 `sgld`, `tusla`, `theopoula` and `etheopoula` are about
equally exact. With one draw a step, `theopoula` and `etheopoula` are biased: they shrink the rare
gradient of -19 far more than the common one of 1, and settle at too low a quantile. The bias
fades only like the square root of the step. `tusla` tames by position and has no such bias;
averaging the last half of the iterates helps it, and `sgld`, most.""",
    "optim_overhead": """## One step of an optimiser

What the optimisers of `lp.optim` cost by themselves: a million float32 parameters in five leaves,
gradients that cost nothing, `update` and `apply_updates` in one jitted loop. With noise, nearly all
of the time is spent drawing normals, and they cost about what `optax.noisy_sgd` does; `sghmc` and
`tsghmc` also keep a momentum. With `inverse_temperature=math.inf` no noise is drawn. Where a
network makes the gradients, all of these are a small part of a step.""",
    "devices": """## Several devices, several processes

Chains or rows of data spread over two CPU devices of one process, and over two processes that talk
by Gloo, beside one device. One device of JAX's CPU backend uses all cores of its process, so it
stands here with one core and with two.""",
}


def page(folder):
    """The whole page, from the JSON files in ``folder``."""
    blocks = [HEAD.rstrip()]
    for name, text in SECTIONS.items():
        path = folder / f"{name}.json"
        body = markdown(json.loads(path.read_text())) if path.exists() else "Not measured yet."
        blocks += [text, body]
    return "\n\n".join(blocks) + "\n"


def run(folder, quick):
    for name in SECTIONS:
        print(f"\n{name}\n", flush=True)
        command = [sys.executable, str(HERE / f"{name}.py"), "--results", str(folder)]
        subprocess.run(command + ["--quick"] * quick, check=True)


def main():
    options = parser(__doc__)
    options.add_argument("--render", action="store_true", help="only write the page")
    options = options.parse_args()
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            run(Path(folder), quick=True)
            print("\nThe page:\n\n" + page(Path(folder)))
        return
    folder = options.results or RESULTS
    if not options.render:
        run(folder, quick=False)
    PAGE.write_text(page(folder))
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()

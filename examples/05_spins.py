"""Continuous spins on a lattice: one energy in NumPyro, three kernels, one table.

Every site of an 8 x 8 lattice without an edge holds a spin, which a double well draws to -1 and 1
and which prefers to be as its four neighbours are. The energy is even, so that the mean
magnetisation is 0, and the mean virial, that of a spin times the slope of the energy in it, is 1 at
any coupling: both say how far a run is off without another run. Prints means with their Monte Carlo
errors, effective sample sizes and R-hat by ArviZ, and writes ``spins.png`` to ``spins_output/``.
"""

import time
from pathlib import Path

import arviz as az
import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import xarray as xr

import langevin_ppl as lp

OUTPUT = Path("spins_output")
SIDE, WELL, COUPLING = 8, 1.0, 0.2
# Of these `split_ghmc` is what `lp.sample` takes by default, and `ula` has no Metropolis test.
KERNELS = {"split_ghmc": lp.split_ghmc, "mala": lp.mala, "ula": lp.ula}
# Neighbours turn over together, which takes many steps.
THINNING = 20
SHOWN = 400


def energy(spins):
    """A double well for every spin and a bond for every pair of neighbours."""
    wells = 0.25 * WELL * jnp.sum((spins**2 - 1.0) ** 2)
    neighbours = jnp.roll(spins, 1, axis=0) + jnp.roll(spins, 1, axis=1)
    return wells - COUPLING * jnp.sum(spins * neighbours)


def model():
    spins = lp.distributions.EnergyBased(energy, (SIDE, SIDE))
    numpyro.sample("spins", spins, infer={"event_dims": ["row", "column"]})


def observables(spins):
    """Of one lattice."""
    return {
        "magnetisation": jnp.mean(spins),
        "absolute magnetisation": jnp.abs(jnp.mean(spins)),
        "energy per spin": energy(spins) / spins.size,
        "virial": jnp.mean(spins * jax.grad(energy)(spins)),
    }


def measured(idata):
    """Observables of every draw, as a DataTree for ArviZ."""
    spins = idata["posterior"]["spins"].values
    values = jax.jit(jax.vmap(jax.vmap(observables)))(spins)
    dataset = xr.Dataset({name: (("chain", "draw"), np.asarray(v)) for name, v in values.items()})
    return xr.DataTree.from_dict({"posterior": dataset})


def report(idata, found, seconds):
    steps = idata["posterior"].sizes["draw"] * THINNING
    law = "exact" if idata.attrs["exact"] else "biased by its step size"
    print(f"4 chains of {steps} steps, {seconds:.0f} s, compilation included; {law}")
    columns = ["mean", "mcse_mean", "ess_bulk", "r_hat"]
    print(az.summary(found, round_to="none")[columns].astype(float).round(3).to_string())
    print("converged" if idata.attrs["converged"] else "not converged")


def picture(runs):
    """The last lattice, the magnetisation on the way, and its distribution, of every kernel."""
    figure, axes = plt.subplots(
        len(runs), 3, figsize=(12, 2.4 * len(runs)), width_ratios=(1, 3, 2), layout="constrained"
    )
    bins = np.linspace(-1.2, 1.2, 41)
    for line, (name, (idata, found)) in zip(axes, runs.items(), strict=True):
        last = idata["posterior"]["spins"].values[0, -1]
        drawn = line[0].imshow(last, cmap="coolwarm", vmin=-2.0, vmax=2.0)
        figure.colorbar(drawn, ax=line[0], shrink=0.8)
        line[0].set(xticks=[], yticks=[], ylabel=name)
        magnetisation = found["posterior"]["magnetisation"].values
        for chain in magnetisation:
            line[1].plot(chain[:SHOWN], linewidth=0.7)
            line[2].hist(chain, bins, histtype="step", density=True)
        line[1].set(ylim=(-1.2, 1.2), ylabel="magnetisation")
    axes[0, 0].set_title("last lattice")
    axes[0, 1].set_title(f"first {SHOWN} draws of four chains")
    axes[0, 2].set_title("all draws of each chain")
    axes[-1, 1].set_xlabel(f"draw, of {THINNING} steps each")
    axes[-1, 2].set_xlabel("magnetisation")
    figure.savefig(OUTPUT / "spins.png", dpi=110)
    plt.close(figure)
    print(f"wrote {OUTPUT / 'spins.png'}")


def main():
    matplotlib.use("Agg")
    OUTPUT.mkdir(exist_ok=True)
    target, runs = lp.target(model), {}
    for name, kernel in KERNELS.items():
        print(f"\n{name}")
        began = time.perf_counter()
        idata = lp.sample(jax.random.key(0), target, kernel, thinning=THINNING)
        found = measured(idata)
        report(idata, found, time.perf_counter() - began)
        runs[name] = idata, found
    picture(runs)


if __name__ == "__main__":
    main()

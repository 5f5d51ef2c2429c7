"""Chains on two devices: the same keys and noise, the same law, and NumPyro's parallel chains."""

import subprocess
import sys

SCRIPT = """
import jax
jax.config.update("jax_num_cpu_devices", 2)
import warnings
import jax.numpy as jnp, numpy as np
import langevin_ppl as lp
from langevin_ppl import run

warnings.simplefilter("ignore", lp.ConvergenceWarning)
assert len(jax.devices()) == 2
target = lp.density(lambda x: -0.5 * jnp.sum(x**2 / jnp.array([1.0, 4.0])), jnp.zeros(2))
fixed = dict(num_warmup=0, step_size=0.5, initial=jnp.ones((4, 2)))
start = jnp.ones((4, 2))

spread = lp.sample(jax.random.key(0), target, num_samples=1, **fixed)
*keys, _ = run.phase_keys(jax.random.key(0), 4)
assert all(len(phase.sharding.device_set) == 2 for phase in keys)
tuned_spread = lp.sample(jax.random.key(0), target, num_samples=3000)
odd = lp.sample(jax.random.key(0), target, num_chains=3, num_samples=10, num_warmup=50)
assert odd["posterior"]["x"].shape == (3, 10, 2)

run.place = lambda tree: tree
together = lp.sample(jax.random.key(0), target, num_samples=1, **fixed)
for phase, alone in zip(keys, run.phase_keys(jax.random.key(0), 4)):
    assert len(alone.sharding.device_set) == 1
    np.testing.assert_array_equal(jax.random.key_data(phase), jax.random.key_data(alone))
np.testing.assert_allclose(spread["posterior"]["x"], together["posterior"]["x"], rtol=1e-5)
tuned_together = lp.sample(jax.random.key(0), target, num_samples=3000)
for idata in (tuned_spread, tuned_together):
    x = idata["posterior"]["x"].values
    # About 3000 effective draws: five standard errors of an sd are 6 %.
    np.testing.assert_allclose(x.std(axis=(0, 1)), [1.0, 2.0], rtol=0.06)
    assert np.all(np.abs(x.mean(axis=(0, 1))) < [0.1, 0.2])

from numpyro.infer import MCMC
from langevin_ppl import infer

def potential_fn(x):
    return 0.5 * jnp.sum((x - 3.0) ** 2)

mcmc = MCMC(
    infer.GHMC(potential_fn=potential_fn), num_warmup=200, num_samples=2000, num_chains=2,
    chain_method="parallel", progress_bar=False,
)
mcmc.run(jax.random.key(0), init_params=jnp.zeros((2, 2)))
samples = mcmc.get_samples(group_by_chain=True)
np.testing.assert_allclose(samples.mean(axis=(0, 1)), 3.0, atol=0.15)
assert not np.array_equal(samples[0], samples[1])
print("same")
"""


def test_two_devices():
    shown = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert shown.stdout.strip() == "same", shown.stderr

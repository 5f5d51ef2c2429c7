"""Models that several tests share, so that they share compilations too."""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

EFFECT = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools(sigma, effect=None):
    """Eight schools, non-centred."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", sigma.shape[0]):
        theta_trans = numpyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * theta_trans)
        numpyro.sample("effect", dist.Normal(theta, sigma), obs=effect)


def conjugate(x, y=None):
    """Linear regression with known noise: its posterior is Gaussian, see `conjugate_posterior`."""
    with numpyro.plate("column", x.shape[1]):
        slope = numpyro.sample("slope", dist.Normal(0.0, 2.0))
    with numpyro.plate("row", x.shape[0]):
        numpyro.sample("y", dist.Normal(x @ slope, 0.5), obs=y)


def conjugate_posterior(x, y):
    """Mean and covariance of the slopes."""
    precision = x.T @ x / 0.25 + jnp.eye(x.shape[1]) / 4.0
    covariance = jnp.linalg.inv(precision)
    return covariance @ (x.T @ y) / 0.25, covariance

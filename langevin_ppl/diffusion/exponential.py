r"""Steps that are exact where the predicted datum is a polynomial in the log of signal to noise.

With :math:`\lambda = \log(\alpha / \sigma)`, :math:`h = \lambda' - \lambda` and a rate
:math:`\eta` of noise, 0 for the probability flow,

.. math::
    x' = \frac{\sigma'}{\sigma} e^{-\eta h} x
    + \alpha' \int_\lambda^{\lambda'} (1 + \eta) e^{(1 + \eta)(\tau - \lambda')} D(\tau) d\tau
    + \sigma' \sqrt{1 - e^{-2 \eta h}}\, z .
"""

import numpy as np

from langevin_ppl.diffusion.grids import Grid
from langevin_ppl.diffusion.interpolation import integrals
from langevin_ppl.diffusion.linear import Table

__all__ = ["factors", "frozen"]


def frozen(nodes: Grid, eta: float = 0.0, history: int = 1) -> Table:
    """Table of steps with the newest output alone, as if the datum did not change."""
    table = Table(nodes.num_steps, history)
    row, fall = table.row, nodes.ratio[1:] / nodes.ratio[:-1]
    row.time[:] = nodes.time[:-1]
    row.sample[:] = nodes.sigma[1:] / nodes.sigma[:-1] * fall**eta
    row.outputs[:, 0] = nodes.alpha[1:] * (1.0 - fall ** (1.0 + eta))
    row.noise[:] = nodes.sigma[1:] * np.sqrt(1.0 - fall ** (2.0 * eta))
    return table


def factors(nodes: Grid, step: int, known: np.ndarray, eta: float = 0.0) -> np.ndarray:
    """Integrals over a step, not to the clean datum, of the polynomials through known outputs."""
    rate, (low, high) = 1.0 + eta, nodes.log_snr[step : step + 2]
    return integrals(low, high, lambda u: rate * np.exp(rate * (u - high)), nodes.log_snr[known])

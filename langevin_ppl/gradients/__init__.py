"""Gradient estimators: from how much data a kernel sees the gradient."""

from langevin_ppl.gradients.control_variates import (
    Centre,
    ControlVariates,
    centre_at,
    check_streamed,
    control_variates,
    whole_hessian,
)
from langevin_ppl.gradients.exact import Exact, as_estimator, exact, from_score, on_flat
from langevin_ppl.gradients.minibatch import Minibatch, minibatch
from langevin_ppl.gradients.passes import whole_of_stream
from langevin_ppl.gradients.rows import (
    Draw,
    PlateReader,
    Reader,
    batch_sizes_of,
    layout_for,
    reader_of,
    whole_mean,
)
from langevin_ppl.gradients.streamed import StreamReader, from_sample, is_streamed
from langevin_ppl.gradients.svrg import Svrg, svrg

__all__ = [
    "Centre",
    "ControlVariates",
    "Draw",
    "Exact",
    "Minibatch",
    "PlateReader",
    "Reader",
    "StreamReader",
    "Svrg",
    "as_estimator",
    "batch_sizes_of",
    "centre_at",
    "check_streamed",
    "control_variates",
    "exact",
    "from_score",
    "from_sample",
    "from_score",
    "is_streamed",
    "layout_for",
    "minibatch",
    "on_flat",
    "reader_of",
    "svrg",
    "whole_hessian",
    "whole_mean",
    "whole_of_stream",
]

"""The rate of Adafactor (Shazeer and Stern 2018), as torch and as transformers write it: D = -w g with w as in the step.

Held are the factored second moments, the clipping of the update's root mean square, and that of the weights, which scales
the rate. After the step the weights' root mean square is that of the moved weights, where the state does not keep it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from topoopt.curvature.rates import Moment


def rate(m: Moment) -> Tensor:
    """torch.optim.Adafactor."""
    keep = 1 - m.steps() ** m.group["beta2_decay"]
    smallest, least = m.group["eps"]
    smallest = torch.finfo(m.parameter.dtype).eps if smallest is None else smallest
    squares = m.grad * m.grad
    if m.grad.ndim > 1:
        rows = m.average("row_var", squares.mean(-1, keepdim=True), keep)
        columns = m.average("col_var", squares.mean(-2, keepdim=True), keep)
        variance = rows @ columns / rows.mean(-2, keepdim=True).clamp_min(smallest)
    else:
        variance = m.average("variance", squares, keep)
    inverse = variance.clamp_min(smallest**2).rsqrt()
    length = min(m.lr, 1 / math.sqrt(m.steps())) * _size(m.parameter).clamp_min(least)
    return length * inverse / _clipping(inverse * m.grad, m.group["d"])


def transformers_rate(m: Moment) -> Tensor:
    """transformers.Adafactor, with or without a rate of its own."""
    keep = 1 - m.steps() ** m.group["decay_rate"]
    squares = m.grad * m.grad + m.group["eps"][0]
    if m.grad.ndim > 1:
        rows = m.average("exp_avg_sq_row", squares.mean(-1), keep)
        columns = m.average("exp_avg_sq_col", squares.mean(-2), keep)
        inverse = (rows / rows.mean(-1, keepdim=True)).rsqrt().unsqueeze(-1) * columns.unsqueeze(-2).rsqrt()
    else:
        inverse = m.average("exp_avg_sq", squares, keep).rsqrt()
    entering = 1.0 - float(m.group["beta1"] or 0.0)
    return entering * _transformers_lr(m) * inverse / _clipping(inverse * m.grad, m.group["clip_threshold"])


def transformers_shrinks(m: Moment) -> Tensor | float:
    """What its weight decay takes off the weights, per step."""
    return float(m.group["weight_decay"]) * _transformers_lr(m)


def _transformers_lr(m: Moment) -> Tensor | float:
    length = m.group["lr"]
    if m.group["relative_step"]:
        largest = 1e-6 * m.steps() if m.group["warmup_init"] else 1e-2
        length = min(largest, 1 / math.sqrt(m.steps()))
    if not m.group["scale_parameter"]:
        return float(length)
    size = _size(m.parameter) if m.upcoming else torch.as_tensor(m.state["RMS"])
    return float(length) * size.clamp_min(m.group["eps"][1])


def _size(tensor: Tensor) -> Tensor:
    """Root mean square."""
    return tensor.square().mean().sqrt()


def _clipping(update: Tensor, threshold: float) -> Tensor:
    return (_size(update) / threshold).clamp_min(1.0)

"""The spectral radius of an operator that is not symmetric, by a few Arnoldi steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from topoopt.curvature.lanczos import BREAKDOWN, Ends, Memory, Operator
from topoopt.sharding import Dot


def _next(w: Tensor, length: Tensor, entries: Tensor) -> Tensor:
    """The next direction, in w's own memory; 0 once the space is exhausted, where it would be rounding divided by its length.

    A product that is not finite is passed on, for the caller to see.
    """
    exhausted = length <= BREAKDOWN * entries.abs().max()
    return w.mul_(torch.where(exhausted, torch.zeros_like(length), 1 / length))


def arnoldi(operator: Operator, start: Tensor, steps: int, dot: Dot = torch.matmul) -> Ends:
    """Run `steps` products from `start` (flat, not zero): the real parts' ends, and |low| or |high| the spectral radius.

    Everything stays on the device until the small projected matrix is read, once, at the end.
    """
    basis = [start / dot(start, start).sqrt()]
    columns = []
    for _ in range(steps):
        w = operator(basis[-1]).clone()
        column = torch.zeros(len(basis) + 1, dtype=w.dtype, device=w.device)
        for _ in range(2):
            for i, q in enumerate(basis):
                share = dot(q, w)
                column[i] += share
                w.addcmul_(q, share, value=-1)
        column[-1] = dot(w, w).sqrt()
        columns.append(column)
        basis.append(_next(w, column[-1], torch.cat(columns)))
    hessenberg = torch.zeros(steps, steps, dtype=torch.float64)
    size, end = float(torch.cat(columns).abs().max()), steps
    if not math.isfinite(size):
        return Ends(math.nan, math.nan, Memory(basis[0][None], (math.nan,)))
    for j, column in enumerate(columns):
        host = column.double().cpu()
        hessenberg[: min(j + 2, steps), j] = host[: min(j + 2, steps)]
        if float(host[-1]) <= BREAKDOWN * size:
            end = j + 1
            break
    values, vectors = torch.linalg.eig(hessenberg[:end, :end])
    top = int(values.abs().argmax())
    radius = float(values[top].abs())
    weights = vectors[:, top].real
    vector = sum(float(c) * q for c, q in zip(weights, basis))
    assert isinstance(vector, Tensor)
    sign = 1.0 if float(values[top].real) >= 0 else -1.0
    others = values.real.tolist()
    low = min([*others, sign * radius]) if sign < 0 else min(others)
    high = max([*others, sign * radius]) if sign > 0 else max(others)
    return Ends(low, high, Memory((vector / dot(vector, vector).sqrt())[None], (sign * radius,)))

"""Both ends of a symmetric operator's spectrum by a few Lanczos steps, and a spectral radius by Arnoldi.

Everything stays on the device until the small projected matrix is read, once, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from topoopt.sharding import Dot

Operator = Callable[[Tensor], Tensor]
BREAKDOWN = 1e-7
"""A next direction shorter than this, relative to the operator's size, is rounding: the space is exhausted."""
OTHER = 0.03
"""Share of the other end's vector in the next start: enough to notice it grow, and costs 0.1 % of a Rayleigh quotient."""


@dataclass(frozen=True)
class Ends:
    """Both ends of the spectrum as far as they were seen (NaN where a product was not finite), and the next start."""

    low: float
    high: float
    vector: Tensor  # unit norm: the dominant end's vector, with a share of the other end's


def _next(w: Tensor, length: Tensor, entries: Tensor) -> Tensor:
    """The next direction, in w's own memory; 0 once the space is exhausted, where it would be rounding divided by its length.

    A product that is not finite is passed on, for the caller to see.
    """
    exhausted = length <= BREAKDOWN * entries.abs().max()
    return w.mul_(torch.where(exhausted, torch.zeros_like(length), 1 / length))


def lanczos(operator: Operator, start: Tensor, steps: int, dot: Dot = torch.dot) -> Ends:
    """Run `steps` products with full reorthogonalisation from `start` (flat, not zero).

    The number of steps is fixed: stopping at a small residual locks onto whichever eigenvector the start was close to.
    """
    basis = [start / dot(start, start).sqrt()]
    alphas, betas = [], []
    for _ in range(steps):
        w = operator(basis[-1])
        alphas.append(dot(basis[-1], w))
        w = w.addcmul(basis[-1], alphas[-1], value=-1)  # a vector of our own: the rest is done in its place
        for q in [*basis[:-1], *basis]:  # twice is enough
            w.addcmul_(q, dot(q, w), value=-1)
        beta = dot(w, w).sqrt()
        betas.append(beta)
        basis.append(_next(w, beta, torch.stack([*alphas, *betas])))
    diagonal, off = torch.stack([torch.stack(alphas), torch.stack(betas)]).double().cpu()
    size = float(torch.cat([diagonal.abs(), off]).max())
    if not math.isfinite(size):
        return Ends(math.nan, math.nan, basis[0])
    end = next((i + 1 for i, b in enumerate(off.tolist()) if b <= BREAKDOWN * size), steps)
    low, high, weights = _ends(diagonal[:end], off[:end])
    vector = sum(float(c) * q for c, q in zip(weights, basis))
    assert isinstance(vector, Tensor)
    return Ends(low, high, vector / dot(vector, vector).sqrt())


def _ends(diagonal: Tensor, off: Tensor) -> tuple[float, float, Tensor]:
    """(low, high, weights of the next start on the basis) of k products: k diagonal entries, and k beside it.

    off[-1], the part of the last product outside the space, is used twice. The larger end is the norm of A on the space and
    not its Ritz value: |A y| <= |A| for every unit y, so it is a lower bound too, and a closer one. And the next start
    takes the direction after the space in, with the least that its unknown Rayleigh quotient can be by what was seen.
    Together they are worth about half a product.
    """
    k = len(diagonal)
    rows = torch.zeros(k + 1, k + 1, dtype=torch.float64)
    rows.diagonal()[:-1] = diagonal
    rows.diagonal(1)[:] = rows.diagonal(-1)[:] = off
    values, vectors = torch.linalg.eigh(rows[:k, :k])
    low, high = float(values[0]), float(values[-1])
    first, last = vectors[:, 0], vectors[:, -1]
    if off[-1] > BREAKDOWN * rows.abs().max():
        rows[k, k] = min(low, 0.0)
        last = torch.linalg.eigh(rows).eigenvectors[:, -1]
        rows[k, k] = max(high, 0.0)
        first = torch.linalg.eigh(rows).eigenvectors[:, 0]
    norm = float(torch.linalg.matrix_norm(rows[:, :k], 2))
    if high >= -low:
        return low, norm, last + OTHER * first if k > 1 else last
    return -norm, high, first + OTHER * last if k > 1 else first


def arnoldi(operator: Operator, start: Tensor, steps: int, dot: Dot = torch.dot) -> Ends:
    """The same for an operator that is not symmetric: the real parts' ends, and |low| or |high| the spectral radius."""
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
        return Ends(math.nan, math.nan, basis[0])
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
    return Ends(low, high, vector / dot(vector, vector).sqrt())

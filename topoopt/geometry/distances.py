"""Pairwise distances that are right when neurons nearly coincide.

|x - y|^2 = |x|^2 + |y|^2 - 2 <x, y> costs one matrix product, but it cancels: in float32 it is wrong by 6 % at a
relative separation of 1e-3 and reads 0 below 1e-4, and near twins are the very pairs that matter here. So the pairs
whose squared distance is small against their norms are computed again from their differences.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from topoopt.errors import MeasurementError

TRUST = {torch.float32: 1e-3, torch.float64: 1e-6}
"""A squared distance from the Gram matrix is trusted above this share of |x|^2 + |y|^2."""
STRIP = 128
"""Rows that are finished at a time, while they are in a cache."""
CHUNK = 1 << 22
"""Numbers held at once when differences are formed: 16 MiB of float32."""


def as_points(points: Tensor) -> Tensor:
    """Check a cloud and return it in the precision it is computed in: float64 as it is, everything else as float32.

    Raises:
        MeasurementError: for anything but an (n, d) floating-point tensor.
    """
    if points.ndim != 2 or not points.is_floating_point():
        shape = tuple(points.shape)
        raise MeasurementError(
            f"points are a {points.dtype} tensor of shape {shape}: give a floating-point (n, d) tensor, a row a neuron"
        )
    return points.detach() if points.dtype is torch.float64 else points.detach().float()


@torch.no_grad()
def distances(points: Tensor) -> Tensor:
    """Euclidean distances between all rows: (n, d) -> (n, n), in the units of `points`.

    Symmetric bit for bit, with a zero diagonal. Holds the result, strips of it, and `CHUNK` numbers more.
    """
    x = as_points(points)
    x = x - x.mean(dim=0)  # distances do not change, norms and with them the cancellation do
    with full_precision(x):
        result = torch.mm(x, x.T)
    squares = result.diagonal().clone()
    for start in range(0, len(x), STRIP):
        stop = min(start + STRIP, len(x))
        strip = result[start:stop, start:]  # the upper triangle; the lower is its mirror image, bit for bit
        norms = squares[start:stop, None] + squares[None, start:]
        strip.mul_(-2).add_(norms)
        i, j = (strip < norms.mul_(TRUST[x.dtype])).nonzero(as_tuple=True)
        i, j = i[i < j], j[i < j]
        strip[i, j] = squared_pairs(x, i + start, j + start)
        strip.clamp_min_(0).sqrt_()
        corner = strip[:, : stop - start]
        corner.copy_(corner.triu(1) + corner.triu(1).T)
        result[stop:, start:stop] = strip[:, stop - start :].T
    return result


def squared_pairs(x: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """|x_i - x_j|^2 from the differences, for index tensors i, j (m,) -> (m,)."""
    return inner_pairs(x, x, i, j)


def inner_pairs(x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """<x_i - x_j, y_i - y_j> from the differences, for index tensors i, j (m,) -> (m,)."""
    step = max(1, CHUNK // max(1, x.shape[1]))
    parts = [torch.einsum("md,md->m", x[a] - x[b], y[a] - y[b]) for a, b in zip(i.split(step), j.split(step))]
    return torch.cat(parts) if parts else x.new_zeros(0)


@contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """Matrix products in full float32 (no TF32, no autocast) inside; the user's settings are put back after."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    with torch.autocast(x.device.type, enabled=False):
        if x.is_cuda and allowed:
            torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            if x.is_cuda and allowed:
                torch.backends.cuda.matmul.allow_tf32 = allowed

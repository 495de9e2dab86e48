"""Maxmin landmarks: a few points that cover a cloud, with the radius of the cover."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from topoopt.errors import MeasurementError
from topoopt.geometry.cloud import as_points, refuse_nonfinite


@dataclass(frozen=True)
class Landmarks:
    """k of n points such that every point is within `radius` of one of them."""

    indices: Tensor  # (k,) int64, on the cloud's device
    radius: float


@torch.no_grad()
def maxmin(points: Tensor | None = None, k: int = 512, *, distances: Tensor | None = None, seed: int = 0) -> Landmarks:
    """Choose k landmarks, each the point farthest from those before it; the first is drawn with `seed`.

    Give points (n, d) or distances (n, n); all n points are landmarks, with radius 0, when k >= n. No host read is made
    until the end.

    Raises:
        MeasurementError: unless exactly one of `points` and `distances` is given, for k < 1, and for NaN or infinite
            entries, naming the rows.
    """
    if (points is None) == (distances is None):
        raise MeasurementError("maxmin needs points or distances, one of them")
    if k < 1:
        raise MeasurementError(f"k={k} landmarks cover nothing: give 1 or more")
    cloud = as_points(points) if points is not None else distances
    assert cloud is not None
    n = cloud.shape[0]
    if k >= n:
        return Landmarks(torch.arange(n, device=cloud.device), 0.0)
    first = torch.randint(n, (1,), generator=torch.Generator().manual_seed(seed)).to(cloud.device)
    chosen, nearest = [first], _row(cloud, first, distances is not None)
    for _ in range(k - 1):
        chosen.append(nearest.argmax(dim=0, keepdim=True))
        nearest = torch.minimum(nearest, _row(cloud, chosen[-1], distances is not None))
    radius = float(nearest.max())
    if not math.isfinite(radius):
        refuse_nonfinite(cloud)
    return Landmarks(torch.cat(chosen), radius)


def _row(cloud: Tensor, index: Tensor, is_distances: bool) -> Tensor:
    """Distances of all points to one of them, (n,); from points by the differences, so equal points have distance 0."""
    row = cloud.index_select(0, index)
    return row[0] if is_distances else torch.linalg.vector_norm(cloud - row, dim=1)

"""Maxmin landmarks: a few points that cover a cloud, with the radius of the cover."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from topoopt.errors import MeasurementError
from topoopt.geometry.cloud import as_points, refuse_nonfinite
from topoopt.geometry.distances import checked_distances


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
        MeasurementError: unless exactly one of `points` and `distances` is given, for k < 1, for NaN or infinite
            entries, naming the rows, and for distances that are none.
    """
    if (points is None) == (distances is None):
        raise MeasurementError("maxmin needs points or distances, one of them")
    if k < 1:
        raise MeasurementError(f"k={k} landmarks cover nothing: give 1 or more")
    cloud = as_points(points) if points is not None else checked_distances(distances)
    indices, reached = farthest_first(cloud, k, seed=seed, are_distances=points is None)
    radius = float(reached)
    if not math.isfinite(radius):
        refuse_nonfinite(cloud)
    return Landmarks(indices, radius)


def farthest_first(cloud: Tensor, k: int, *, seed: int = 0, are_distances: bool) -> tuple[Tensor, Tensor]:
    """Indices (k,) and covering radius (0-dim) of landmarks of points (n, d) or distances (n, n); nothing is read."""
    n = cloud.shape[0]
    if k >= n:
        return torch.arange(n, device=cloud.device), cloud.new_zeros(())
    first = torch.randint(n, (1,), generator=torch.Generator().manual_seed(seed), device="cpu").to(cloud.device)
    chosen, nearest = [first], _row(cloud, first, are_distances)
    for _ in range(k - 1):
        chosen.append(nearest.argmax(dim=0, keepdim=True))
        nearest = torch.minimum(nearest, _row(cloud, chosen[-1], are_distances))
    return torch.cat(chosen), nearest.amax()


def _row(cloud: Tensor, index: Tensor, are_distances: bool) -> Tensor:
    """Distances of all points to one of them, (n,); from points by the differences, so equal points have distance 0."""
    row = cloud.index_select(0, index)
    return row[0] if are_distances else torch.linalg.vector_norm(cloud - row, dim=1)

"""Maxmin landmarks: a few points that cover a cloud, with the radius of the cover."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from topoopt.errors import MeasurementError
from topoopt.geometry.distances import as_points


@dataclass(frozen=True)
class Landmarks:
    """k of n points such that every point is within `radius` of one of them."""

    indices: Tensor  # (k,) int64, on the cloud's device
    radius: float


@torch.no_grad()
def maxmin(points: Tensor | None = None, k: int = 512, *, distances: Tensor | None = None, seed: int = 0) -> Landmarks:
    """Choose k landmarks, each the point farthest from those before it; the first is drawn with `seed`.

    Give points (n, d) or distances (n, n). No host copy is made until the end.

    Raises:
        MeasurementError: unless exactly one of `points` and `distances` is given.
    """
    if (points is None) == (distances is None):
        raise MeasurementError("maxmin needs points or distances, one of them")
    cloud = distances if points is None else as_points(points)
    assert cloud is not None
    n = cloud.shape[0]
    k = min(k, n)
    first = torch.randint(n, (1,), generator=torch.Generator().manual_seed(seed)).to(cloud.device)
    chosen = [first]
    nearest = _row(cloud, first, distances is not None)
    for _ in range(k - 1):
        chosen.append(nearest.argmax(keepdim=True))
        nearest = torch.minimum(nearest, _row(cloud, chosen[-1], distances is not None))
    return Landmarks(torch.cat(chosen), float(nearest.max()) if n else 0.0)


def _row(cloud: Tensor, index: Tensor, is_distances: bool) -> Tensor:
    row = cloud.index_select(0, index)
    return row[0] if is_distances else (cloud - row).norm(dim=1)

"""Pairwise distances that are right when neurons nearly coincide."""

from __future__ import annotations

import torch
from torch import Tensor

from topoopt.geometry.cloud import Cloud
from topoopt.geometry.precision import full_precision


@torch.no_grad()
def distances(points: Tensor) -> Tensor:
    """Euclidean distances between all rows: (n, d) -> (n, n), in the units of `points`.

    float64 for float64 points, float32 for all others. Symmetric bit for bit, with a zero diagonal. Holds the result, a
    centred copy of the points (and a float32 one where they are stored in less) and a few times `cloud.CHUNK` numbers.

    Raises:
        MeasurementError: for anything but a floating-point (n, d) tensor, and for NaN or infinite entries, naming the
            rows.
    """
    cloud = Cloud(points)
    result = cloud.points.new_empty(len(cloud), len(cloud))
    with full_precision(cloud.points):
        for rows in cloud.strips():
            strip = cloud.squares(rows).sqrt_().mul_(1 / cloud.scale)
            corner = strip[:, : rows.stop - rows.start]
            corner.copy_(corner.triu(1) + corner.triu(1).T)
            result[rows, rows.start :] = strip
            result[rows.stop :, rows] = strip[:, rows.stop - rows.start :].T
    return result

"""Effective rank of a cloud: over how many directions it is spread."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from topoopt.geometry.cloud import Cloud


class Participation:
    """(sum s)^2 / sum s^2 over the eigenvalues s of the centred cloud's covariance: tr(G)^2 / |G|_F^2 of its Gram matrix G.

    Seen strip by strip, from squared distances and squared norms of centred points: G_ij = (|x_i|^2 + |x_j|^2 - d_ij^2) / 2.
    No eigenvalue is computed. It lies between 1 and min(n - 1, d), and does not depend on units.
    """

    def __init__(self, norms: Tensor) -> None:
        self._norms, self._sum = norms, norms.new_zeros(())

    def see(self, rows: slice, squares: Tensor) -> None:
        """Take a strip of squared distances to columns rows.start.., symmetric in its corner; near pairs may be off."""
        twice = (self._norms[rows, None] + self._norms[None, rows.start :]).sub_(squares)
        height = rows.stop - rows.start
        corner, rest = (torch.linalg.vector_norm(part).square() for part in (twice[:, :height], twice[:, height:]))
        self._sum = self._sum + (corner + 2 * rest) / 4

    @property
    def value(self) -> Tensor:
        """The ratio, 0-dim; NaN for a cloud of one place."""
        return self._norms.sum().square() / self._sum


def participation(cloud: Cloud) -> Tensor:
    """Effective rank of a cloud by one Gram product, on its device: 0-dim."""
    seen = Participation(cloud.norms)
    for rows in cloud.strips():
        seen.see(rows, cloud.gram_squares(rows))
    return seen.value


@torch.no_grad()
def effective_rank(points: Tensor | Cloud) -> float:
    """Participation ratio of a cloud's covariance spectrum: (n, d) -> 1 to min(n - 1, d); NaN where all points are one.

    Raises:
        MeasurementError: for anything but a floating-point (n, d) tensor, and for NaN or infinite entries, naming the rows.
    """
    cloud = Cloud.of(points)
    if len(cloud) < 2:
        return math.nan
    return float(participation(cloud.require_finite()))

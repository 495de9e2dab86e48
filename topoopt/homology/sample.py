"""What homology above degree 0 is computed from: the distances of at most so many points, and H0 of all of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from topoopt.geometry import Cloud
from topoopt.geometry.landmarks import farthest_first
from topoopt.geometry.tree import minimum_spanning_tree

FEW = 16
"""Landmarks that are fewer than a share of one in this many points are found from the points, not from all distances."""


@dataclass(frozen=True)
class Sample:
    """Distances of at most `max_points` maxmin landmarks; nothing in it is read before it is asked for."""

    n: int
    distances: Tensor  # (k, k), on the device of the cloud
    deaths: Tensor | np.ndarray  # (n - 1,), ascending: H0 of all n points
    radius: Tensor  # 0-dim: every point is within it of a landmark; 0 where all points are there
    diameter: Tensor
    """The largest distance among the landmarks, 0-dim: at least half of that of all points."""

    @property
    def nbytes(self) -> int:
        """Bytes that wait with it."""
        return self.distances.nbytes + self.deaths.nbytes

    def notes(self) -> tuple[str, ...]:
        """What must be said of it (a host read)."""
        k = len(self.distances)
        if not k or k == self.n:
            return ()
        bound, diameter = 2 * float(self.radius), float(self.diameter)
        note = f"homology above degree 0 is of {k} maxmin landmarks of {self.n} neurons, right to {bound:.4g}"
        if bound >= diameter / 2:
            note += (
                f": more than half the diameter {diameter:.4g}, so it says nothing of these neurons; raise max_points"
            )
        return (note,)


@torch.no_grad()
def sample_of(
    distances: Tensor | None, cloud: Cloud | None, max_points: int, *, deaths: Tensor | np.ndarray | None = None
) -> Sample:
    """Cut landmarks from distances (n, n) or from a cloud; with the `deaths` of H0 at hand, no tree is made.

    Reads nothing of a matrix; a cloud's distances, where they are needed, ask how many near twins there are.
    """
    if distances is None:
        assert cloud is not None
        n, like = len(cloud), cloud.points
        if deaths is None:
            deaths = cloud.tree.deaths
    else:
        n, like = len(distances), distances
        if deaths is None:
            deaths = minimum_spanning_tree(distances).deaths
    kept, radius = _landmarks(distances, cloud, max_points, like)
    diameter = kept.amax() if kept.numel() else kept.new_zeros(())
    return Sample(n, kept, deaths, radius, diameter)


def _landmarks(distances: Tensor | None, cloud: Cloud | None, k: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (k, k) of the landmarks, and their covering radius."""
    nowhere = like.new_zeros(())
    if not k:
        return like.new_zeros(0, 0), nowhere
    if cloud is not None and distances is None and FEW * k < len(cloud):
        indices, radius = farthest_first(cloud.points, k, are_distances=False)
        return Cloud(cloud.points[indices]).distances, radius
    d = distances if distances is not None else cloud.distances  # type: ignore[union-attr]
    if len(d) <= k:
        return d, nowhere
    indices, radius = farthest_first(d, k, are_distances=True)
    return d[indices][:, indices], radius

"""Neurons that have become negligible, or nearly equal to another."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from topoopt.geometry.distances import as_points

TOLERANCE = 1e-2
"""Of the root-mean-square norm of the neurons: smaller neurons are vanishing, closer ones are twins."""


@dataclass(frozen=True)
class Degeneracy:
    """Counts of neurons, with the tolerances used (absolute distances, in the units of the weights)."""

    vanishing: int
    twins: int
    unresolved_twins: int
    """Neurons whose nearest other is closer than rounding in the storage dtype can tell."""
    vanishing_tolerance: float
    twin_tolerance: float


@torch.no_grad()
def degeneracy(points: Tensor, distances: Tensor, tolerance: float = TOLERANCE) -> Degeneracy:
    """Count vanishing and twin neurons of points (n, d) with distances (n, n).

    The scale is the root mean square of the norms: unlike the median it does not vanish with the neurons when most of
    them do.
    """
    n = points.shape[0]
    norms = as_points(points).norm(dim=1)
    scale = norms.square().mean().sqrt()
    off_diagonal = distances + torch.diag(distances.new_full((n,), math.inf))
    nearest = off_diagonal.min(dim=1).values if n > 1 else norms.new_full((n,), math.inf)
    resolution = torch.finfo(points.dtype).eps * norms
    counts = torch.stack(
        [
            (norms <= tolerance * scale).sum().double(),
            (nearest <= tolerance * scale).sum().double(),
            (nearest <= resolution).sum().double(),
            scale.double(),
        ]
    )
    vanishing, twins, unresolved, size = counts.tolist()
    return Degeneracy(int(vanishing), int(twins), int(unresolved), tolerance * size, tolerance * size)

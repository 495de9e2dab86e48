"""Neurons that have become negligible, or nearly equal to another."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from topoopt.errors import MeasurementError
from topoopt.geometry.cloud import Cloud, as_points, chunk_of

TOLERANCE = 1e-2
"""Of the root mean square norm of the neurons: smaller neurons are vanishing, closer ones are twins."""


@dataclass(frozen=True)
class Degeneracy:
    """Counts of neurons, with the tolerances used, in units of the root mean square of the norms.

    Not of their median, which vanishes with the neurons when more than half of them do.
    """

    vanishing: int
    """Neurons with norm <= vanishing_tolerance * root mean square norm."""
    twins: int
    """Neurons that have another within twin_tolerance * root mean square norm."""
    unresolved_twins: int
    """Neurons whose nearest other is closer than rounding in the storage dtype can tell."""
    vanishing_tolerance: float
    twin_tolerance: float


@torch.no_grad()
def degeneracy(
    points: Tensor, distances: Tensor, *, vanishing_tolerance: float = TOLERANCE, twin_tolerance: float = TOLERANCE
) -> Degeneracy:
    """Count vanishing and twin neurons of points (n, d), in the dtype they are stored in, with their distances (n, n).

    Raises:
        MeasurementError: for distances of another shape, and for NaN or infinite points, naming the rows.
    """
    n = len(points)
    if distances.shape != (n, n):
        raise MeasurementError(f"{n} points have distances of shape ({n}, {n}), not {tuple(distances.shape)}")
    if not n:
        return Degeneracy(0, 0, 0, vanishing_tolerance, twin_tolerance)
    found = counts(points, nearest_other(distances), vanishing_tolerance, twin_tolerance)
    vanishing, twins, unresolved, size = found.tolist()
    if not math.isfinite(size):
        Cloud(points).require_finite()
    return Degeneracy(int(vanishing), int(twins), int(unresolved), vanishing_tolerance, twin_tolerance)


def counts(points: Tensor, nearest: Tensor, vanishing_tolerance: float, twin_tolerance: float) -> Tensor:
    """Vanishing, twins, unresolved twins, and the sum of the norms: (4,), on the device.

    Points (n, d) are in the dtype they are kept in, `nearest` (n,) is the distance of every point's nearest other.
    """
    rows = as_points(points)
    largest = rows.abs().amax() if rows.numel() else rows.new_ones(())
    unit = torch.where((largest > 0) & torch.isfinite(largest), largest, torch.ones_like(largest))
    norms = torch.linalg.vector_norm(
        rows / unit, dim=1
    )  # in units of the largest entry: squares of tiny ones underflow
    nearest = nearest / unit
    scale = torch.linalg.vector_norm(norms) / math.sqrt(max(1, len(norms)))
    resolution = torch.finfo(points.dtype).eps * norms  # half an eps of each neuron, in every component
    few = norms <= vanishing_tolerance * scale, nearest <= twin_tolerance * scale, nearest <= resolution
    return torch.stack([*(one.sum().to(norms.dtype) for one in few), norms.sum()])


def nearest_other(distances: Tensor) -> Tensor:
    """Distance of every point's nearest other: (n, n) -> (n,); inf for a single point. Copies `cloud.CHUNK` numbers."""
    n = distances.shape[0]
    rows = max(1, chunk_of(distances) // n)
    nearest = []
    for start in range(0, n, rows):
        strip = distances[start : start + rows].clone()
        strip.diagonal(start).fill_(math.inf)
        nearest.append(strip.amin(dim=1))
    return torch.cat(nearest)

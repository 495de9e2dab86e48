"""Persistent homology of a neuron cloud: H0 on the device, H1 and up by a library on the host."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from topoopt.errors import ConfigError, MeasurementError
from topoopt.geometry import distances as pairwise
from topoopt.geometry import maxmin
from topoopt.homology import backends
from topoopt.homology.h0 import spanning_tree


@dataclass(frozen=True)
class Persistence:
    """Vietoris-Rips persistence diagrams; scales are distances (diameters), not radii."""

    diagrams: list[np.ndarray]
    """By degree: (k, 2) float64 births and deaths, essential classes with death inf. H0 has n rows, ascending."""
    covering_radius: float
    """0 when exact, else c of the landmarks: above degree 0 the bottleneck error is at most 2 c. H0 is always exact."""
    backend: str
    seconds: float
    notes: tuple[str, ...] = field(default=())


def persistence(
    points: Tensor | None = None,
    *,
    distances: Tensor | None = None,
    degree: int = 1,
    max_points: int = 4096,
    backend: str = "auto",
) -> Persistence:
    """Compute the diagrams of degrees 0 to `degree` of points (n, d) or of distances (n, n).

    Above `max_points` points, degrees from 1 up are those of maxmin landmarks.

    Raises:
        MeasurementError: for NaN or infinite entries, naming the neurons; unless one of points and distances is given.
        ConfigError: for an unknown back-end or a negative degree.
    """
    began = time.perf_counter()
    if degree < 0:
        raise ConfigError(f"degree={degree} is not usable: give 0 or more")
    if (points is None) == (distances is None):
        raise MeasurementError("persistence needs points or distances, one of them")
    d = pairwise(refuse_nonfinite(points)) if points is not None else refuse_nonfinite(distances)
    diagrams = [h0_diagram(spanning_tree(d).deaths)]
    if degree == 0 or d.shape[0] < 3:
        empty = [np.zeros((0, 2)) for _ in range(degree)]
        return Persistence(diagrams + empty, 0.0, "device", time.perf_counter() - began)
    chosen = backends.choose(backend)
    sample, radius, notes = subsample(d, max_points)
    higher = backends.rips(chosen)(sample.cpu().numpy(), degree)[1:]
    return Persistence(diagrams + higher, radius, chosen, time.perf_counter() - began, notes)


def subsample(distances: Tensor, max_points: int) -> tuple[Tensor, float, tuple[str, ...]]:
    """Return the distances of at most `max_points` landmarks, their covering radius, and what must be said about it."""
    n = distances.shape[0]
    if n <= max_points:
        return distances, 0.0, ()
    landmarks = maxmin(distances=distances, k=max_points)
    sample = distances[landmarks.indices][:, landmarks.indices]
    diameter = float(distances.max())
    note = f"homology above degree 0 is of {max_points} maxmin landmarks of {n} neurons, covering radius {landmarks.radius:.4g}"
    if 2 * landmarks.radius >= diameter / 2:
        note += (
            f": the error bound {2 * landmarks.radius:.4g} is more than half the diameter {diameter:.4g} and says nothing; "
            "raise max_points"
        )
    return sample, landmarks.radius, (note,)


def h0_diagram(deaths: Tensor) -> np.ndarray:
    """Births 0, deaths the spanning tree's edges, and the one class that never dies: (n - 1,) -> (n, 2)."""
    finite = deaths.double().cpu().numpy()
    return np.column_stack([np.zeros(len(finite) + 1), np.append(finite, np.inf)])


def refuse_nonfinite(matrix: Tensor | None) -> Tensor:
    """Return the matrix.

    Raises:
        MeasurementError: naming the rows that hold NaN or infinite numbers.
    """
    assert matrix is not None
    bad = ~torch.isfinite(matrix).all(dim=1)
    if bool(bad.any()):
        rows = bad.nonzero().flatten().tolist()
        shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
        raise MeasurementError(
            f"{len(rows)} of {len(bad)} neurons are not finite (neurons {shown}): their weights are lost"
        )
    return matrix

"""Persistent homology of a neuron cloud: H0 on the device, H1 and up by a library on the host."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from topoopt.errors import ConfigError, MeasurementError
from topoopt.geometry import Cloud, checked_distances
from topoopt.homology import backends
from topoopt.homology.h0 import h0_diagram
from topoopt.homology.sample import Sample, sample_of


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

    H0 is computed on the tensors' device, the rest on the host. Above `max_points` points, degrees from 1 up are those of
    maxmin landmarks, and `notes` says what that costs.

    Raises:
        MeasurementError: for NaN or infinite entries, naming the neurons; unless one of points and distances is given.
        ConfigError: for an unknown back-end, a negative degree or fewer than 3 `max_points`.
    """
    began = time.perf_counter()
    if degree < 0:
        raise ConfigError(f"degree={degree} is not usable: give 0 or more")
    if max_points < 3:
        raise ConfigError(f"max_points={max_points} is not usable: a loop needs 3 points")
    if (points is None) == (distances is None):
        raise MeasurementError("persistence needs points or distances, one of them")
    chosen = backends.choose(backend)
    d = checked_distances(distances) if distances is not None else None
    cloud = Cloud(points).require_finite() if points is not None else None
    sample = sample_of(d, cloud, max_points if degree else 0)
    found = compute(sample, degree, backends.rips(chosen), chosen)
    return replace(found, seconds=time.perf_counter() - began)


@torch.no_grad()
def compute(sample: Sample, degree: int, rips: backends.Rips, backend: str) -> Persistence:
    """Compute the diagrams of a sample by a given back-end."""
    began = time.perf_counter()
    h0 = h0_diagram(sample.deaths)[: sample.n]
    higher = rips_above_zero(rips, sample.distances.cpu().numpy(), degree)
    radius = float(sample.radius)
    return Persistence([h0, *higher], radius, backend, time.perf_counter() - began, sample.notes())


def rips_above_zero(rips: backends.Rips, distances: np.ndarray, degree: int) -> list[np.ndarray]:
    """Diagrams of degrees 1 to `degree`; fewer than three points have nothing there, and back-ends may refuse them."""
    if len(distances) < 3:
        return [np.zeros((0, 2)) for _ in range(degree)]
    return rips(distances, degree)[1:]

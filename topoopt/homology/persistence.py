"""Persistent homology of a neuron cloud: H0 on the device, H1 and up by a library on the host."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from topoopt.errors import ConfigError, MeasurementError
from topoopt.geometry import distances as pairwise
from topoopt.geometry import maxmin
from topoopt.geometry.cloud import refuse_nonfinite
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
    d = pairwise(points) if points is not None else checked(distances)
    found = compute(d, degree, max_points, backends.rips(chosen), chosen, points=points)
    return replace(found, seconds=time.perf_counter() - began)


@torch.no_grad()
def compute(
    distances: Tensor, degree: int, max_points: int, rips: backends.Rips, backend: str, *, points: Tensor | None = None
) -> Persistence:
    """Compute the diagrams of finite distances (n, n) by a given back-end; with the `points`, H0 right to rounding."""
    began = time.perf_counter()
    h0 = h0_diagram(spanning_tree(distances, points=points).deaths)[: len(distances)]
    sample, radius, notes = subsample(distances, max_points) if degree else (distances[:0, :0], 0.0, ())
    higher = rips_above_zero(rips, sample.cpu().numpy(), degree)
    return Persistence([h0, *higher], radius, backend, time.perf_counter() - began, notes)


def rips_above_zero(rips: backends.Rips, distances: np.ndarray, degree: int) -> list[np.ndarray]:
    """Diagrams of degrees 1 to `degree`; fewer than three points have nothing there, and back-ends may refuse them."""
    if len(distances) < 3:
        return [np.zeros((0, 2)) for _ in range(degree)]
    return rips(distances, degree)[1:]


def checked(distances: Tensor | None) -> Tensor:
    """Return finite distances in float32 or float64; raise MeasurementError for anything else, naming the neurons."""
    assert distances is not None
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1] or not distances.is_floating_point():
        raise MeasurementError(
            f"distances are a {distances.dtype} tensor of shape {tuple(distances.shape)}: give a floating-point (n, n) one"
        )
    return refuse_nonfinite(distances.detach() if distances.dtype is torch.float64 else distances.detach().float())


def subsample(distances: Tensor, max_points: int) -> tuple[Tensor, float, tuple[str, ...]]:
    """Return the distances of at most `max_points` landmarks, their covering radius, and what must be said about it."""
    n = distances.shape[0]
    if n <= max_points:
        return distances, 0.0, ()
    landmarks = maxmin(distances=distances, k=max_points)
    sample = distances[landmarks.indices][:, landmarks.indices]
    diameter = float(distances.max())
    bound = 2 * landmarks.radius
    note = f"homology above degree 0 is of {max_points} maxmin landmarks of {n} neurons, right to {bound:.4g}"
    if bound >= diameter / 2:
        note += f": more than half the diameter {diameter:.4g}, so it says nothing of these neurons; raise max_points"
    return sample, landmarks.radius, (note,)


def h0_diagram(deaths: Tensor) -> np.ndarray:
    """Births 0, deaths the spanning tree's edges, and the one class that never dies: (n - 1,) -> (n, 2)."""
    finite = deaths.double().cpu().numpy()
    return np.column_stack([np.zeros(len(finite) + 1), np.append(finite, np.inf)])

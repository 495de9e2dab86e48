"""The births of H1 on the device, without its deaths: the relative neighbourhood graph.

Two points are relative neighbours when no third is nearer to both than they are to each other (Toussaint 1980). An edge
that enters a Vietoris-Rips filtration with such a third point is filled by a triangle at once; one without joins two
components, and is then in the minimum spanning tree, or closes a loop that lives on. So the births of H1 are the lengths
of the graph's edges outside the tree, and their number is that of the loops of any length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topoopt.errors import MeasurementError
from topoopt.geometry.cloud import CHUNK
from topoopt.homology.h0 import spanning_tree

NEIGHBOURS = 8
"""Nearest neighbours tried as third points of all edges; those left are tried with every point."""


@torch.no_grad()
def relative_neighbours(distances: Tensor) -> Tensor:
    """Edges i < j of the relative neighbourhood graph of symmetric distances (n, n): (m, 2) int64, by i, then j.

    Among equal lengths the edge of lower i, then lower j counts as shorter: the graph always holds a minimum spanning
    tree. Costs about `NEIGHBOURS` passes over the matrix and n operations for each edge that they leave. Holds a few
    times `cloud.CHUNK` numbers beside the matrix and the edges.

    Raises:
        MeasurementError: for a matrix that is not square.
    """
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1]:
        raise MeasurementError(f"distances have shape {tuple(distances.shape)}: give a square matrix")
    n = distances.shape[0]
    step = max(1, CHUNK["cpu" if distances.device.type == "cpu" else "cuda"] // max(1, n))
    nearest = _nearest(distances, step)
    left = [_not_filled(distances, nearest, slice(start, min(start + step, n))) for start in range(0, n, step)]
    i, j = torch.cat(left, dim=1) if left else torch.zeros(2, 0, dtype=torch.int64, device=distances.device)
    kept = [
        ~_filled(distances, i[part], j[part])
        for part in (slice(start, start + step) for start in range(0, len(i), step))
    ]
    return torch.stack([i, j], dim=1)[torch.cat(kept)] if kept else torch.stack([i, j], dim=1)


@torch.no_grad()
def loop_births(distances: Tensor) -> Tensor:
    """Births of H1 of symmetric distances (n, n): (loops,), ascending, entries of the matrix bit for bit.

    Where lengths in a triangle tie, there can be births among them whose loop dies at the same length: libraries leave
    these out. All others are theirs.

    Raises:
        MeasurementError: as `spanning_tree` does.
    """
    deaths = spanning_tree(distances).deaths
    edges = relative_neighbours(distances)
    lengths = distances[edges[:, 0], edges[:, 1]].sort().values
    # Any minimum spanning tree has the same lengths, equally often: take them out by value and rank among equals.
    first = torch.searchsorted(lengths, deaths)
    rank = torch.arange(len(deaths), device=deaths.device) - torch.searchsorted(deaths, deaths)
    outside = torch.ones_like(lengths, dtype=torch.bool)
    outside[first + rank] = False
    return lengths[outside]


def _nearest(distances: Tensor, step: int) -> Tensor:
    """Each point's nearest others: (n, n) -> (n, k)."""
    k = min(NEIGHBOURS + 1, distances.shape[0])  # one may be the point itself, which fills nothing
    parts = [distances[start : start + step].topk(k, largest=False).indices for start in range(0, len(distances), step)]
    return torch.cat(parts) if parts else distances.new_zeros(0, k, dtype=torch.int64)


def _not_filled(distances: Tensor, nearest: Tensor, rows: slice) -> Tensor:
    """Edges of a strip with j > i that no near neighbour of i or j is strictly nearer to: (2, m)."""
    strip = distances[rows, rows.start :]
    kept = torch.ones_like(strip, dtype=torch.bool).triu_(1)
    for third in nearest[rows].T:
        to_i = distances[torch.arange(rows.start, rows.stop, device=third.device), third]
        kept &= strip <= torch.maximum(distances[third, rows.start :], to_i[:, None])
    i, j = kept.nonzero(as_tuple=True)
    i, j = i + rows.start, j + rows.start
    for column in range(nearest.shape[1]):
        third = nearest[j, column]
        open_ = distances[i, j] <= torch.maximum(distances[i, third], distances[j, third])
        i, j = i[open_], j[open_]
    return torch.stack([i, j])


def _filled(distances: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Whether some third point is nearer to both ends of the edges, in the order of length, then i, then j: (m,)."""
    n = distances.shape[0]
    length, third = distances[i, j][:, None], torch.arange(n, device=i.device)[None, :]

    def shorter(end: Tensor) -> Tensor:
        to_end = distances[end]
        lower = torch.minimum(end[:, None], third) * n + torch.maximum(end[:, None], third) < (i * n + j)[:, None]
        return (to_end < length) | ((to_end == length) & lower)

    other = (third != i[:, None]) & (third != j[:, None])
    return (shorter(i) & shorter(j) & other).any(dim=1)

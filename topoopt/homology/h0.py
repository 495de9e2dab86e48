"""H0 on the device: the minimum spanning tree by Borůvka's algorithm, contracting the matrix after each round.

The deaths of H0 are the tree's edge lengths. A round lets every component choose its shortest edge out, merges what
chose each other, and keeps of the matrix only the smallest entry between components: about log2(n) rounds, each on a
matrix at least four times smaller. Ties are broken by the lowest index, which cannot close a cycle: in a cycle of
equal edges each vertex would have to prefer its next neighbour to the one before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from topoopt.errors import MeasurementError
from topoopt.geometry.cloud import pair_distances, refuse_nonfinite

BLOCK = 1 << 20
"""Numbers copied at once when the first round looks for minima: 4 MiB of float32, which stay in a cache."""


@dataclass(frozen=True)
class SpanningTree:
    """The minimum spanning tree of a complete graph, edges by ascending length."""

    edges: Tensor  # (n - 1, 2) int64, on the device of the distances
    deaths: Tensor  # (n - 1,) in the dtype of the distances, ascending


@dataclass
class _Level:
    """One round: its matrix, the component of each vertex, and the matrix with rows contracted only."""

    matrix: Tensor  # (m, m)
    component: Tensor  # (m,)
    rows: Tensor  # (components, m)


@torch.no_grad()
def spanning_tree(distances: Tensor, *, points: Tensor | None = None) -> SpanningTree:
    """Minimum spanning tree of symmetric distances (n, n); what is on the diagonal does not matter.

    The edge lengths are entries of the matrix, bit for bit. With the `points` (n, d) that the distances were made of,
    they are computed again from the differences: right to rounding, where entries of the matrix may be off by 1e-4.
    Holds about 1.4 times the matrix's size beside it.

    Raises:
        MeasurementError: for a matrix that is not square or not symmetric, and for NaN or infinite entries, naming the
            neurons.
    """
    if distances.ndim != 2 or distances.shape[0] != distances.shape[1]:
        raise MeasurementError(f"distances have shape {tuple(distances.shape)}: give a square matrix")
    edges, lengths = _boruvka(distances.detach())
    if points is not None:
        lengths = pair_distances(points, edges[:, 0], edges[:, 1])
    deaths, order = lengths.sort(stable=True)
    return SpanningTree(edges[order], deaths)


def _boruvka(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Edges (n - 1, 2) and their lengths (n - 1,), in the order in which they were found."""
    given, levels = matrix, []
    ends, lengths = [], []
    while matrix.shape[0] > 1:
        nearest, length = _nearest(matrix, zero_diagonal=not levels)
        component, count, chosen = _merge(nearest)
        if count == 0 or not bool(torch.isfinite(length).all()):
            _explain(given)
        edges = torch.stack([chosen, nearest[chosen]], dim=1)
        for level in reversed(levels):
            edges = _descend(edges, length[chosen], level)
        ends.append(edges)
        lengths.append(length[chosen])
        rows = _contract(matrix, component, count)
        levels.append(_Level(matrix, component, rows))
        matrix = _contract(rows.T, component, count)
        matrix.fill_diagonal_(math.inf)
    if not ends:
        return torch.zeros(0, 2, dtype=torch.int64, device=matrix.device), matrix.new_zeros(0)
    edges, found = torch.cat(ends), torch.cat(lengths)
    if len(edges) != len(given) - 1:
        _explain(given)
    return edges, found


def _explain(distances: Tensor) -> NoReturn:
    refuse_nonfinite(distances)
    raise MeasurementError("the distances are not symmetric: give d with d[i, j] == d[j, i], bit for bit")


def _nearest(matrix: Tensor, *, zero_diagonal: bool) -> tuple[Tensor, Tensor]:
    """Index and distance of every row's nearest other; the lowest index among equals."""
    m = matrix.shape[0]
    if not zero_diagonal:
        nearest = matrix.argmin(dim=1)
        return nearest, matrix.gather(1, nearest[:, None])[:, 0]
    step, parts = max(1, BLOCK // m), []
    for start in range(0, m, step):
        block = matrix[start : start + step].clone()
        own = torch.arange(block.shape[0], device=matrix.device)
        block[own, own + start] = math.inf
        parts.append(block.argmin(dim=1))
    nearest = torch.cat(parts)
    return nearest, matrix.gather(1, nearest[:, None])[:, 0]


def _merge(nearest: Tensor) -> tuple[Tensor, int, Tensor]:
    """Components of the graph i -> nearest[i]: labels, their number, and the vertices whose edge enters the tree."""
    m = nearest.shape[0]
    vertices = torch.arange(m, device=nearest.device)
    mutual = nearest[nearest] == vertices
    root = mutual & (vertices < nearest)
    parent = torch.where(root, vertices, nearest)
    for _ in range(max(1, math.ceil(math.log2(m)))):
        parent = parent[parent]
    label = root.cumsum(0) - 1
    return label[parent], int(root.sum()), (~root).nonzero()[:, 0]


def _contract(matrix: Tensor, component: Tensor, count: int) -> Tensor:
    """Smallest entry of each component's rows: (m, k) -> (count, k)."""
    order = component.argsort(stable=True)
    lengths = torch.bincount(component, minlength=count)
    return torch.segment_reduce(matrix[order], "min", lengths=lengths, axis=0, unsafe=True)


def _descend(edges: Tensor, length: Tensor, level: _Level) -> Tensor:
    """Replace an edge between components by the edge between vertices of one round earlier that attains its length."""
    a, b = edges[:, 0], edges[:, 1]
    to_b = (level.rows[a] == length[:, None]) & (level.component[None, :] == b[:, None])
    j = to_b.to(torch.uint8).argmax(dim=1)
    to_a = (level.matrix[j] == length[:, None]) & (level.component[None, :] == a[:, None])
    return torch.stack([to_a.to(torch.uint8).argmax(dim=1), j], dim=1)

"""The minimum spanning tree on the device, by Borůvka's algorithm, contracting the matrix after each round.

Its edge lengths are the deaths of H0. A round lets every component choose its shortest edge out, merges what chose each
other, and keeps of the matrix only the smallest entry between components: about log2(n) rounds, each on a matrix at least
four times smaller. Ties are broken by one order of the vertices, the same for all of a round, which cannot close a cycle: in
a cycle of equal edges each vertex would have to prefer its next neighbour to the one before.

A round at least halves the components. So where a read by the host would stop a device's queue, each round gives room to
half as many as the one before, ceil(log2 n) rounds are queued, and nothing is read; rows that no component fills are
infinite. On a CPU a read costs nothing, and each round is as small as it can be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from topoopt.device import reading_is_free

BLOCK = 1 << 18
"""Numbers copied at once when the first round looks for minima: 1 MiB of float32, which stay in a cache."""
LANES = 32
"""What columns are dealt into comes in multiples of this: a vector processor takes the minimum of so many at once."""


@dataclass(frozen=True)
class SpanningTree:
    """The minimum spanning tree of a complete graph, edges by ascending length."""

    edges: Tensor  # (n - 1, 2) int64, on the device of the distances
    deaths: Tensor  # (n - 1,) in the dtype of the distances, ascending
    nearest: Tensor  # (n,) distance of every point's nearest other; inf for a single point
    sound: Tensor  # 0-dim bool: false where the matrix was not finite, or so asymmetric that no tree came of it

    def remeasured(self, lengths_of: Callable[[Tensor], Tensor]) -> SpanningTree:
        """The same edges, with lengths computed again: (n - 1, 2) -> (n - 1,)."""
        deaths, order = lengths_of(self.edges).sort(stable=True)
        return SpanningTree(self.edges[order], deaths, self.nearest, self.sound)


@dataclass
class _Level:
    """One round: its matrix, the component of each vertex, and the matrix with rows contracted only."""

    matrix: Tensor  # (m, m)
    component: Tensor  # (m,)
    rows: Tensor  # (components, m)


@torch.no_grad()
def minimum_spanning_tree(distances: Tensor) -> SpanningTree:
    """Tree of symmetric distances (n, n) that are taken as they are; what is on the diagonal does not matter.

    The edge lengths are entries of the matrix, bit for bit. Makes no host read on an accelerator. Holds about 1.4 times the
    matrix's size beside it, a fifth more on an accelerator.
    """
    matrix, n = distances.detach(), len(distances)
    levels, ends, found = [], [], []
    nearest_lengths = matrix.new_full((n,), math.inf)
    while matrix.shape[0] > 1:
        nearest, length = _nearest(matrix, zero_diagonal=not levels)
        if not levels:
            nearest_lengths = length
        component, count, slots, enters = _merge(nearest, length)
        edges = torch.stack([slots, nearest[slots]], dim=1)
        for level in reversed(levels):
            edges = _descend(edges, length[slots], level)
        ends.append(edges)
        found.append(torch.where(enters, length[slots], math.inf))
        rows = _contract(matrix, component, count)
        levels.append(_Level(matrix, component, rows))
        matrix = _contract(rows.T, component, count)
        matrix.fill_diagonal_(math.inf)
    if not ends:
        sound = torch.ones((), dtype=torch.bool, device=matrix.device)
        return SpanningTree(
            torch.zeros(0, 2, dtype=torch.int64, device=matrix.device), matrix.new_zeros(0), nearest_lengths, sound
        )
    lengths = torch.cat(found)
    enough = torch.isfinite(lengths).sum() == n - 1
    deaths, order = lengths.sort(stable=True)
    return SpanningTree(torch.cat(ends)[order[: n - 1]], deaths[: n - 1], nearest_lengths, enough)


def _nearest(matrix: Tensor, *, zero_diagonal: bool) -> tuple[Tensor, Tensor]:
    """Index and distance of every row's nearest other; among equals the first of one order that all rows have."""
    m = matrix.shape[0]
    if not zero_diagonal:
        nearest = matrix.argmin(dim=1)
        return nearest, matrix.gather(1, nearest[:, None])[:, 0]
    lanes = LANES * math.ceil(m**0.5 / LANES)
    step, parts = min(max(1, BLOCK // m), m), []
    space = matrix.new_full((step, lanes * math.ceil(m / lanes)), math.inf)
    for start in range(0, m, step):
        block = space[: m - start]
        block[:, :m] = matrix[start : start + step]
        block.diagonal(start).fill_(math.inf)
        parts.append(_lowest(block, lanes))
    nearest = torch.cat(parts)
    return nearest, matrix.gather(1, nearest[:, None])[:, 0]


def _lowest(block: Tensor, lanes: int) -> Tensor:
    """Column of each row's smallest entry; among equals the one in the first lane, then the first in it.

    Columns are dealt into lanes like cards: the minimum of every lane is ten times cheaper than a place, which is then looked
    for among the lanes, and in one of them.
    """
    dealt = block.view(len(block), -1, lanes)
    lane = dealt.amin(dim=1).argmin(dim=1)
    inside = dealt.gather(2, lane[:, None, None].expand(-1, dealt.shape[1], 1)).argmin(dim=1)
    return inside[:, 0] * lanes + lane


def _merge(nearest: Tensor, length: Tensor) -> tuple[Tensor, int, Tensor, Tensor]:
    """Components of the graph i -> nearest[i]: labels, how many there is room for, and the vertices whose edge may enter
    the tree, with whether it does.

    A vertex that nothing is left for, the last component or an empty row, has nearest 0 at distance inf and joins that.
    """
    m = nearest.shape[0]
    vertices = torch.arange(m, device=nearest.device)
    root = (nearest[nearest] == vertices) & (vertices <= nearest)
    parent = torch.where(root, vertices, nearest)
    for _ in range(max(1, math.ceil(math.log2(m)))):
        parent = parent[parent]
    room = m // 2
    if reading_is_free(nearest):
        room = min(max(1, int(root.sum())), room)
    component = (root.cumsum(0) - 1)[parent].clamp_(
        0, room - 1
    )  # clamped: of a matrix that is no distances' anything may come
    slots = (~root).nonzero()[:, 0] if reading_is_free(nearest) else vertices
    return component, room, slots, ~root[slots] & torch.isfinite(length[slots])


def _contract(matrix: Tensor, component: Tensor, count: int) -> Tensor:
    """Smallest entry of each component's rows: (m, k) -> (count, k); inf where a component has none."""
    if reading_is_free(matrix):  # rows are taken as they lie: no copy in order, and twenty times faster there
        found = matrix.new_full((count, matrix.shape[1]), math.inf)
        return found.scatter_reduce_(0, component[:, None].expand(matrix.shape), matrix, "amin")
    order = component.argsort(stable=True)
    lengths = component.new_zeros(count).scatter_add_(0, component, torch.ones_like(component))
    return torch.segment_reduce(matrix[order], "min", lengths=lengths, axis=0, unsafe=True)


def _descend(edges: Tensor, length: Tensor, level: _Level) -> Tensor:
    """Replace an edge between components by the edge between vertices of one round earlier that attains its length."""
    a, b = edges[:, 0], edges[:, 1]
    to_b = (level.rows[a] == length[:, None]) & (level.component[None, :] == b[:, None])
    j = to_b.to(torch.uint8).argmax(dim=1)
    to_a = (level.matrix[j] == length[:, None]) & (level.component[None, :] == a[:, None])
    return torch.stack([to_a.to(torch.uint8).argmax(dim=1), j], dim=1)

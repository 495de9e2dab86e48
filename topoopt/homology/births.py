"""Births of all loops on the device, without their deaths: from the relative neighbourhood graph.

An edge of the Vietoris-Rips filtration joins two components (the spanning tree's), or closes a loop. The loop dies at
once if some point is nearer to both ends than they are to each other, as the triangle with it comes at the same scale.
So the loops that live are born with the edges of the relative neighbourhood graph that are not in the spanning tree.

Nothing in this package calls it: it saves a host's worker nothing. On one core of a CPU the births alone took 1.1 to 2.2 times
what redzed-tda takes for H0 and H1 with their deaths (256 to 2,048 points in 64 dimensions; `python benchmarks/persistence.py
--full --tables births` measures it again), and no library takes births as given. It is for those who want births alone of
distances that are on an accelerator; what it costs there is not known.
"""

from __future__ import annotations

import torch
from torch import Tensor

from topoopt.geometry.cloud import chunk_of
from topoopt.geometry.distances import checked_distances
from topoopt.geometry.tree import minimum_spanning_tree

NEAREST = 32
"""Neighbours of each end that are tried first: they rule out almost all pairs."""


@torch.no_grad()
def loop_births(distances: Tensor) -> Tensor:
    """Births of degree 1, ascending: distances (n, n) -> (k,), entries of the matrix bit for bit.

    Exact where no two distances are equal; among equal ones it may count loops of length 0. Holds (n, n) booleans.

    Raises:
        MeasurementError: as `spanning_tree` does, for distances that are none.
    """
    distances = checked_distances(distances)
    tree = minimum_spanning_tree(distances)
    if len(distances) < 3:
        return distances.new_zeros(0)
    i, j = _relative_neighbours(distances, _candidates(distances))
    n = len(distances)
    low, high = tree.edges.min(dim=1).values, tree.edges.max(dim=1).values
    closes = ~torch.isin(i * n + j, low * n + high)
    return distances[i[closes], j[closes]].sort().values


def _candidates(distances: Tensor) -> Tensor:
    """Pairs i < j that no near neighbour of either end rules out: (n, n) bool."""
    n = len(distances)
    near = distances.topk(
        min(NEAREST, n), largest=False
    ).indices  # the point itself is among them and rules out nothing
    alive = torch.ones(n, n, dtype=torch.bool, device=distances.device)
    rows = max(1, chunk_of(distances) // n)
    for start in range(0, n, rows):
        strip, part = distances[start : start + rows], alive[start : start + rows]
        for k in near[start : start + rows].T:
            to_k = strip.gather(1, k[:, None])
            part &= torch.maximum(distances[k], to_k) >= strip
    return (alive & alive.T).triu_(1)


def _relative_neighbours(distances: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Those candidate pairs to both ends of which no point is nearer than they are to each other."""
    i, j = candidates.nonzero(as_tuple=True)
    step = max(1, chunk_of(distances) // len(distances))
    kept = [
        torch.maximum(distances[a], distances[b]).amin(dim=1) >= distances[a, b]
        for a, b in zip(i.split(step), j.split(step))
    ]
    keep = torch.cat(kept)
    return i[keep], j[keep]

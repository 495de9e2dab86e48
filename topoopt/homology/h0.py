"""H0: the deaths are the edges of the minimum spanning tree, which `geometry.tree` finds on the device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from topoopt.geometry.cloud import pair_distances
from topoopt.geometry.distances import checked_distances
from topoopt.geometry.tree import SpanningTree, minimum_spanning_tree

__all__ = ["SpanningTree", "h0_diagram", "spanning_tree"]


@torch.no_grad()
def spanning_tree(distances: Tensor, *, points: Tensor | None = None) -> SpanningTree:
    """Minimum spanning tree of distances (n, n).

    The edge lengths are entries of the matrix, bit for bit. With the `points` (n, d) that the distances were made of,
    they are computed again from the differences: right to rounding, where entries of the matrix may be off by 1e-4.
    Holds about 1.4 times the matrix's size beside it. `Cloud(points).tree` is the same without checking the matrix.

    Raises:
        MeasurementError: for a matrix that is not square, finite, symmetric and non-negative with a zero diagonal.
    """
    tree = minimum_spanning_tree(checked_distances(distances))
    return tree if points is None else tree.remeasured(lambda edges: pair_distances(points, edges[:, 0], edges[:, 1]))


def h0_diagram(deaths: Tensor | np.ndarray) -> np.ndarray:
    """Births 0, deaths the spanning tree's edges, and the one class that never dies: (n - 1,) -> (n, 2)."""
    finite = deaths.detach().cpu().double().numpy() if isinstance(deaths, Tensor) else np.asarray(deaths, np.float64)
    return np.column_stack([np.zeros(len(finite) + 1), np.append(finite, np.inf)])

"""Which neurons join when: the merge tree of H0, read off the spanning tree."""

from __future__ import annotations

import numpy as np

from topoopt.homology.h0 import SpanningTree


def merge_tree(tree: SpanningTree) -> np.ndarray:
    """Return the merges in order, (n - 1, 4) float64: the two clusters that join, at which distance, and the new size.

    Clusters 0 to n - 1 are the neurons; the one that row k makes is n + k. It is the format of scipy's `linkage`, single
    linkage, so `scipy.cluster.hierarchy` can draw and cut it.
    """
    edges, deaths = tree.edges.cpu().numpy(), tree.deaths.double().cpu().numpy()
    n = len(edges) + 1
    above = np.arange(2 * n - 1)
    size = np.ones(2 * n - 1)
    merges = np.empty((n - 1, 4))
    for k, (i, j) in enumerate(edges):
        a, b = sorted((_root(above, int(i)), _root(above, int(j))))
        above[a] = above[b] = n + k
        size[n + k] = size[a] + size[b]
        merges[k] = a, b, deaths[k], size[n + k]
    return merges


def _root(above: np.ndarray, cluster: int) -> int:
    """The cluster that now holds this one; halves the path to it."""
    while above[cluster] != cluster:
        above[cluster] = above[above[cluster]]
        cluster = int(above[cluster])
    return cluster

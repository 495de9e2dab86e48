"""Which neurons join when: the merge tree of H0, read off the spanning tree."""

from __future__ import annotations

import numpy as np

from topoopt.homology.h0 import SpanningTree

LAST = 64
"""Merges near the root that a record keeps of a group: more leaves than this no picture shows."""


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


def last_merges(edges: np.ndarray, most: int = LAST) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """The last `most` merges of a spanning tree whose edges (n - 1, 2) come in the order of their lengths.

    What the earlier edges join counts as one: returns the sizes of the k + 1 clusters that are left then, the one with the
    lowest neuron first, and the k pairs that join. Clusters 0 to k are these; the one that merge j makes is k + 1 + j. Lists
    and no arrays inside: n - 1 edges are followed one by one, about a microsecond each.
    """
    pairs = edges.tolist()
    n, early = len(pairs) + 1, max(len(pairs) - most, 0)
    above = list(range(n))
    for i, j in pairs[:early]:
        a, b = _find(above, i), _find(above, j)
        above[max(a, b)] = min(a, b)
    roots = [_find(above, i) for i in range(n)]
    number = {root: k for k, root in enumerate(dict.fromkeys(roots))}
    sizes = [0] * len(number)
    for root in roots:
        sizes[number[root]] += 1
    clusters = list(range(2 * len(number) - 1))
    merges = []
    for k, (i, j) in enumerate(pairs[early:]):
        a, b = sorted((_find(clusters, number[roots[i]]), _find(clusters, number[roots[j]])))
        clusters[a] = clusters[b] = len(number) + k
        merges.append((a, b))
    return tuple(sizes), tuple(merges)


def _find(above: list[int], cluster: int) -> int:
    """`_root` of a list."""
    while above[cluster] != cluster:
        above[cluster] = above[above[cluster]]
        cluster = above[cluster]
    return cluster


def _root(above: np.ndarray, cluster: int) -> int:
    """The cluster that now holds this one; halves the path to it."""
    while above[cluster] != cluster:
        above[cluster] = above[above[cluster]]
        cluster = int(above[cluster])
    return cluster

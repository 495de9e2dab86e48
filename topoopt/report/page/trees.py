"""Merge trees for pictures: near the root, with an order of the leaves in which no two branches cross."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from topoopt.measurement import GroupMeasurement


@dataclass(frozen=True)
class Tree:
    """The merges of a layer nearest the root, as `MergeTree` numbers them."""

    sizes: list[int]
    """Neurons in each leaf."""
    merges: list[tuple[int, int, float]]
    """Two clusters and the distance at which they join, ascending."""
    order: list[int]
    """Leaves from top to bottom."""


def tree_of(group: GroupMeasurement, most: int = 64) -> Tree | None:
    """The last `most` merges of a layer; None where its record holds none."""
    rows = group.linkage().tolist()
    if not rows or group.merge_tree is None:
        return None
    sizes, merges = cut(group.merge_tree.sizes, [(int(a), int(b), d) for a, b, d, _ in rows], most)
    return Tree(sizes, merges, leaf_order(sizes, merges))


def cut(
    sizes: Sequence[int], merges: Sequence[tuple[int, int, float]], most: int
) -> tuple[list[int], list[tuple[int, int, float]]]:
    """Let the clusters that are left before the last `most` merges be the leaves."""
    early = max(len(merges) - most, 0)
    weights = list(sizes)
    for a, b, _ in merges[:early]:
        weights.append(weights[a] + weights[b])
    gone = {cluster for a, b, _ in merges[:early] for cluster in (a, b)}
    left = [cluster for cluster in range(len(weights)) if cluster not in gone]
    number = {cluster: k for k, cluster in enumerate(left)}
    number |= {len(weights) + k: len(left) + k for k in range(len(merges) - early)}
    return [weights[cluster] for cluster in left], [(number[a], number[b], d) for a, b, d in merges[early:]]


def leaf_order(sizes: Sequence[int], merges: Sequence[tuple[int, int, float]]) -> list[int]:
    """Leaves as a walk from the root meets them, of two clusters the one with fewer leaves first."""
    leaves = [1] * len(sizes)
    for a, b, _ in merges:
        leaves.append(leaves[a] + leaves[b])
    order, left = [], [len(leaves) - 1]
    while left:
        cluster = left.pop()
        if cluster < len(sizes):
            order.append(cluster)
            continue
        a, b, _ = merges[cluster - len(sizes)]
        left += sorted((a, b), key=lambda one: -leaves[one])
    return order

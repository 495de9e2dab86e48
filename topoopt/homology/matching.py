"""The bottleneck distance of two finite diagrams, exactly.

At a distance r a point may stay unmatched (go to the diagonal) if its half-lifetime is at most r; the others *must* have a
partner within r. One matching serves the points of both diagrams that must have one, if and only if some matching serves
those of the first and some matching those of the second (Mendelsohn and Dulmage 1958). So only long-lived points are ever
matched, and two bipartite matchings decide one r. The distance is a half-lifetime or a distance of two points: it is searched
for among the former, and then among those of the latter that lie in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np

CHUNK = 1 << 22
"""Pairs looked at at a time."""
Adjacency = list[list[int]]
"""For each point that must have a partner, the points it may have."""


def bottleneck_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Bottleneck distance in the maximum norm of diagrams (n, 2) and (m, 2) with finite deaths.

    Holds the pairs whose births are within the distance, `CHUNK` at a time. Seconds where thousands must be matched.
    """
    a, b = (d[d[:, 0] < d[:, 1]] for d in (a, b))
    sides = _Side(a, b), _Side(b, a)
    halves = np.unique(np.concatenate([[0.0], sides[0].half, sides[1].half]))
    k = _first(len(halves), lambda k: all(side.matched(halves[k], halves[k]) for side in sides))
    if k == 0:
        return 0.0
    low, high = halves[k - 1], halves[k]
    between = np.unique(np.concatenate([side.distances(low, high) for side in sides]))
    k = _first(len(between), lambda k: all(side.matched(between[k], low) for side in sides))
    return float(between[k]) if k < len(between) else float(high)


def _first(count: int, holds: Callable[[int], bool]) -> int:
    """The first of 0 to count - 1 from which on something holds, or count."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


class _Side:
    """The points of one diagram, those of the other, and the last matching: most of it serves the next distance too."""

    def __init__(self, points: np.ndarray, others: np.ndarray) -> None:
        self.points, self.half = points, (points[:, 1] - points[:, 0]) / 2
        self._order = np.argsort(others[:, 0], kind="stable")
        self._others, self._births = others, others[self._order, 0]
        self._partner = np.full(len(points), -1)

    def matched(self, r: float, low: float) -> bool:
        """Whether all points with a half-lifetime above `low` can have partners of their own within r."""
        must = np.flatnonzero(self.half > low)
        if len(must) > len(self._others):
            return False
        near: Adjacency = []
        for owner, inside, distances in self._windows(must, r):
            close = distances <= r
            many = np.bincount(owner[close])
            if len(many) <= owner.max(initial=0) or not many.all():
                return False
            ends = np.cumsum(many)[:-1]
            near += [part.tolist() for part in np.split(inside[close], ends)]
        if len(near) < len(must):
            return False
        known = self._partner[must]
        known[self._distance(must, known) > r] = -1
        left = known.tolist()
        done = complete(near, left, len(self._others))
        self._partner[:] = -1  # a partner of one that need not have one now may be given away
        self._partner[must] = left
        return done

    def distances(self, low: float, high: float) -> np.ndarray:
        """Distances strictly between two values from the points with a half-lifetime above the lower one."""
        found = [d[(d > low) & (d < high)] for _, _, d in self._windows(np.flatnonzero(self.half > low), high)]
        return np.concatenate([np.zeros(0), *found])

    def _distance(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        return np.abs(self.points[i] - self._others[j]).max(axis=1, initial=0.0)

    def _windows(self, must: np.ndarray, r: float) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Pairs whose births are within about r, in blocks: which of the block's points, which other, their distance."""
        births, slack = self.points[must, 0], 1e-9 * r + 1e-300
        starts = np.searchsorted(self._births, births - r - slack, side="left")
        counts = np.searchsorted(self._births, births + r + slack, side="right") - starts
        block = max(1, CHUNK // max(1, len(self._others)))
        for k in range(0, len(must), block):
            part, many = slice(k, k + block), counts[k : k + block]
            owner = np.repeat(np.arange(len(many)), many)
            inside = self._order[np.repeat(starts[part] - (np.cumsum(many) - many), many) + np.arange(len(owner))]
            yield owner, inside, self._distance(must[part][owner], inside)


def complete(near: Adjacency, left: list[int], size: int) -> bool:
    """Give every left vertex one of its neighbours among `size` right ones (Hopcroft and Karp 1973), if that can be done.

    `left` holds the partners known, -1 for none, and is overwritten with those found.
    """
    partner = [-1] * size
    for i, j in enumerate(left):
        if j >= 0:
            partner[j] = i
    for i, neighbours in enumerate(near):  # a greedy start leaves little to do
        if left[i] < 0 and (j := next((j for j in neighbours if partner[j] < 0), -1)) >= 0:
            partner[j], left[i] = i, j
    while free := [i for i, j in enumerate(left) if j < 0]:
        layer = _layers(near, partner, free)
        tried = [iter(neighbours) for neighbours in near]
        if not sum(_augment(i, tried, layer, partner, left) for i in free):
            return False
    return True


def _layers(near: Adjacency, partner: list[int], free: list[int]) -> list[int]:
    """How many alternating steps each left vertex is from a free one; -1 where it cannot be reached."""
    layer = [-1] * len(near)
    for i in free:
        layer[i] = 0
    queue = deque(free)
    while queue:
        i = queue.popleft()
        for j in near[i]:
            k = partner[j]
            if k >= 0 and layer[k] < 0:
                layer[k] = layer[i] + 1
                queue.append(k)
    return layer


def _augment(start: int, tried: list[Iterator[int]], layer: list[int], partner: list[int], left: list[int]) -> bool:
    """Find a path of alternating edges from a free left vertex down the layers to a free right one, and swap it."""
    path, chosen = [start], []
    while path:
        i = path[-1]
        for j in tried[i]:
            k = partner[j]
            if k < 0:
                for vertex, other in zip(path, [*chosen, j]):
                    partner[other], left[vertex] = vertex, other
                return True
            if layer[k] == layer[i] + 1:
                path.append(k)
                chosen.append(j)
                break
        else:
            path.pop()
            if chosen:
                chosen.pop()
    return False

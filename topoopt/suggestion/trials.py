"""Which rates to try in short runs, and the rate at which they would have ended lowest. Plain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

SPACING = 0.4 * math.log(10)
"""Distance of neighbouring trials, in the logarithm of the rate: a factor of 2.5."""
STEEP = 0.5
"""How far above the lowest a neighbour counts, in the logarithm of the loss: a lost run says no more than a bad one."""


def search(run: Callable[[float], float], start: float, count: int, unmoved: float = math.inf) -> dict[float, float]:
    """Try `count` logarithms of the rate from `start` on, towards lower scores; {logarithm: score}, in order.

    `unmoved` is the score of doing nothing: a first trial that is no better was too high.
    """
    tried = {start: run(start)}
    while len(tried) < count:
        following = _next(tried, unmoved)
        tried[following] = run(following)
    return dict(sorted(tried.items()))


def _next(tried: Mapping[float, float], unmoved: float) -> float:
    """Past the end if the lowest loss is there (upwards first), else half-way towards the lower neighbour."""
    order = sorted(tried)
    place = order.index(min(order, key=lambda x: tried[x]))
    if place == len(order) - 1 and (len(order) > 1 or tried[order[place]] < unmoved):
        return order[place] + SPACING
    if place == 0:
        return order[0] - SPACING
    here, below, above = order[place], order[place - 1], order[place + 1]
    return (here + (below if tried[below] < tried[above] else above)) / 2


def lowest(tried: Mapping[float, float]) -> float:
    """Where a parabola through the lowest trial and its neighbours has its minimum, at most half-way to a neighbour.

    At an end of what was tried: that end.
    """
    order = sorted(tried)
    place = order.index(min(order, key=lambda x: tried[x]))
    if place in (0, len(order) - 1):
        return order[place]
    a, b, c = order[place - 1 : place + 2]
    left, right = (min(tried[x] - tried[b], STEEP) / abs(x - b) for x in (a, c))
    bend = (left + right) / (c - a)
    if bend == 0:
        return b
    slope = (right * (b - a) - left * (c - b)) / (c - a)  # of the parabola, in b
    return min(max(b - slope / (2 * bend), (a + b) / 2), (b + c) / 2)

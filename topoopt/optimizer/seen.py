"""What a policy may know of the last measurement of the neurons: plain numbers over all groups."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from topoopt.control import Seen
from topoopt.measurement import GroupMeasurement, Measurement

NEAR = 0.01
"""Neurons within this share of their group's diameter count as one."""


def what_was_seen(last: Measurement) -> Seen:
    """Sums over the groups; the largest loop is the largest of any. What no group knows is not known."""
    groups = list(last.groups.values())
    if not groups:
        return Seen(gain=last.r_pair)
    loops = [group for group in groups if len(group.total_persistence) > 1]
    return Seen(
        gain=last.r_pair,
        measured_step=last.step,
        topology_step=min((_topology_step(group, last.step) for group in loops), default=-1),
        neurons=sum(group.n for group in groups),
        vanishing=sum(group.vanishing for group in groups),
        twins=sum(group.twins for group in groups),
        silent=int(_total((g.silent if g.silent >= 0 else math.nan for g in groups), -1)),
        distinct=int(_total((_distinct(group) for group in groups), -1)),
        effective_rank=_total(group.effective_rank for group in groups),
        total_persistence=_total(sum(group.total_persistence[1:]) for group in loops),
        largest_loop=max((g.largest_loop for g in loops if not math.isnan(g.largest_loop)), default=math.nan),
        log_persistence=_total(group.log_persistence for group in loops),
    )


def _total(values: Iterable[float], unknown: float = math.nan) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(sum(known)) if known else unknown


def _topology_step(group: GroupMeasurement, step: int) -> int:
    """The step whose neurons the group's persistence describes: this one, too, where it is certified unchanged."""
    late = group.pending or (group.recomputed and group.diagrams_step != step)
    return group.diagrams_step if late else step


def _distinct(group: GroupMeasurement) -> float:
    """Clusters left when the spanning tree is cut at `NEAR` times the diameter."""
    if not group.diagrams or math.isnan(group.diameter):
        return math.nan
    deaths = group.diagrams[0][:, 1]
    return 1.0 + float(np.count_nonzero(deaths[np.isfinite(deaths)] > NEAR * group.diameter))

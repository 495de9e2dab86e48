"""The heat map of layers over steps, and what opens behind a cell: diagrams, barcodes, Betti curves and merge tree of one layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from topoopt.homology.diagrams import betti_curve
from topoopt.measurement import GroupMeasurement, Measurement
from topoopt.report.page.runs import RunView
from topoopt.report.page.trees import tree_of
from topoopt.report.page.values import clip, number, numbers, spread

SCALES = 64
"""Scales at which a Betti curve is embedded, evenly from 0 to the largest death."""

BRANCHES = 64
"""Merges of one tree that are embedded."""


@dataclass(frozen=True)
class Metric:
    """One choice of the heat map."""

    key: str
    label: str
    meaning: str
    of: Callable[[GroupMeasurement], Any]
    log: bool = False
    carried: bool = False
    """Between two steps at which it is known the earlier value is shown: few layers' are read at a time."""


METRICS = (
    Metric("r", "r of the layer", "proximity restricted to the layer's weights: the last one known",
           lambda g: g.proximity, log=True, carried=True),
    Metric("distortion", "distortion since the start", "log(b / a) of distances to those at first: 0 is a shape unchanged",
           lambda g: _spread(g.distortion_total)),
    Metric("distortion_step", "distortion of the step", "log(b / a) of distances in one step: 0 is a shape unchanged",
           lambda g: _spread(g.distortion)),
    Metric("gain", "r_pair", "largest stretch of a pair of neurons in one step: below 1 the step is certified",
           lambda g: g.gain, log=True),
    Metric("twins", "twins", "neurons that have another nearly equal to them", lambda g: g.twins),
    Metric("silent", "silent units", "units that gave one output on the whole batch",
           lambda g: g.silent if _known(g.silent) else None),
    Metric("loops", "loops", "features of degree 1 (holes) in the layer's cloud", lambda g: _loops(g)),
    Metric("largest_loop", "largest loop", "longest lifetime of a loop over the cloud's diameter", lambda g: g.largest_loop),
    Metric("rank", "effective rank", "participation ratio of the cloud's spectrum", lambda g: g.effective_rank),
)  # fmt: skip


def heat_map(view: RunView, layers: int, columns: int, left_out: list[str]) -> dict[str, Any]:
    """Layers x steps for each metric; at most `layers` rows and `columns` columns, evenly spaced."""
    with_groups = [m for m in view.measurements if m.groups]
    names = list(dict.fromkeys(name for m in with_groups for name in m.groups))
    rows = [names[k] for k in spread(len(names), layers)]
    columns_at = spread(len(with_groups), columns)
    shown = [with_groups[k] for k in columns_at]
    for kept, all_, what in ((rows, names, "layers"), (shown, with_groups, "measurements")):
        if len(kept) < len(all_):
            left_out.append(f"{view.name}: the heat map shows {len(kept)} of {len(all_)} {what}, evenly spaced")
    along = {metric.key: [values_along(metric, name, with_groups) for name in rows] for metric in METRICS}
    values = {key: [[row[k] for k in columns_at] for row in table] for key, table in along.items()}
    return {
        "layers": [clip(name, 120) for name in rows],
        "neurons": numbers(_latest(name, with_groups).n for name in rows),
        "steps": [m.step for m in shown],
        "values": values,
    }


def values_along(metric: Metric, name: str, measurements: Sequence[Measurement]) -> list[float | int | None]:
    """The metric of a layer at each measurement, in four digits; None where it was not measured."""
    values: list[float | int | None] = []
    for m in measurements:
        warming = metric.carried and bool(
            m.spectral.warming
        )  # r of Adam's first steps is of no use, here as on the timeline
        value = number(metric.of(m.groups[name]), 4) if name in m.groups and not warming else None
        values.append(values[-1] if value is None and metric.carried and values else value)
    return values


def details(view: RunView, layers: int, editions: int, bars: int, left_out: list[str]) -> list[list[dict[str, Any]]]:
    """For each row of the heat map its diagrams at no more than `editions` steps, each degree in at most `bars` bars."""
    with_groups = [m for m in view.measurements if m.groups]
    names = list(dict.fromkeys(name for m in with_groups for name in m.groups))
    rows = [names[k] for k in spread(len(names), layers)]
    result, thinned = [], set()
    for name in rows:
        found = _editions(name, with_groups)
        kept = [found[k] for k in spread(len(found), editions)]
        if len(kept) < len(found):
            thinned.add(f"{view.name}: diagrams of each layer at {editions} of their steps, evenly spaced")
        result.append([_edition(step, group, bars) for step, group in kept])
    if any(degree["count"] > len(degree["bars"]) for layer in result for one in layer for degree in one["degrees"]):
        which = "H0 evenly by rank, higher degrees the longest"
        thinned.add(f"{view.name}: at most {bars} bars of a diagram ({which}); Betti curves are of all")
    left_out += sorted(thinned)
    return result


def _editions(name: str, measurements: list[Measurement]) -> list[tuple[int, GroupMeasurement]]:
    """The layer at each step at which it was measured, with its diagrams; the fullest where one step was told twice.

    H0 is of that step. Higher degrees are of `diagrams_step`, where they are certified to be there still.
    """
    by_step: dict[int, GroupMeasurement] = {}
    for m in measurements:
        group = m.groups.get(name)
        if group is None or not _known(group.diagrams_step) or not group.diagrams:
            continue
        there = by_step.get(m.step)
        if there is None or len(group.diagrams) > len(there.diagrams):
            by_step[m.step] = group
    return sorted(by_step.items())


def _edition(step: int, group: GroupMeasurement, bars: int) -> dict[str, Any]:
    diagrams = [d[~np.isnan(d).any(axis=1)] for d in group.diagrams]
    finite = [d[np.isfinite(d)] for d in diagrams]
    top = max((float(f.max()) for f in finite if f.size), default=0.0)
    scales = np.linspace(0.0, top, SCALES)
    return {
        "step": step,
        "higher": group.diagrams_step,
        "n": number(group.n),
        "d": number(group.d),
        "top": number(top),
        "diameter": number(group.diameter),
        "radius": number(group.covering_radius),
        "resolution": number(group.resolution),
        "degrees": [_degree(diagram, degree, bars) for degree, diagram in enumerate(diagrams)],
        "betti": [betti_curve(diagram, scales).tolist() for diagram in diagrams],
        "tree": _tree(group, min(bars, BRANCHES)),
    }


def _tree(group: GroupMeasurement, most: int) -> dict[str, Any] | None:
    """The merge tree near its root, distances in four digits; None where there is none."""
    tree = tree_of(group, most)
    if tree is None:
        return None
    merges = [[a, b, number(distance, 4)] for a, b, distance in tree.merges]
    return {"sizes": tree.sizes, "merges": merges, "order": tree.order}


def _degree(diagram: np.ndarray, degree: int, bars: int) -> dict[str, Any]:
    """Bars by length; of essential classes (death None) all come first."""
    with np.errstate(invalid="ignore"):
        order = np.argsort(-(diagram[:, 1] - diagram[:, 0]), kind="stable")
    ranked = diagram[order]
    picked = ranked[spread(len(ranked), bars)] if degree == 0 else ranked[:bars]
    return {
        "count": len(diagram),
        "essential": int(np.isinf(diagram[:, 1]).sum()),
        "bars": _short(picked),
    }


def _short(bars: np.ndarray) -> list[list[float | None]]:
    """Bars in four significant digits; None for a death that never comes."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        unit = 10.0 ** (3 - np.floor(np.log10(np.abs(bars))))
        short = np.round(bars * unit) / unit
    short = np.where((bars == 0) | ~np.isfinite(short), bars, short)
    return [[birth, None if math.isinf(death) else death] for birth, death in short.tolist() if not math.isinf(birth)]


def _latest(name: str, measurements: list[Measurement]) -> GroupMeasurement:
    return next(m.groups[name] for m in reversed(measurements) if name in m.groups)


def _spread(distortion: Any) -> float | None:
    """log(b / a)."""
    low, high = numbers(distortion, 17)
    return math.log(high / low) if low is not None and high is not None and 0 < low <= high else None


def _loops(group: GroupMeasurement) -> int | None:
    return len(group.diagrams[1]) if _known(group.diagrams_step) and len(group.diagrams) > 1 else None


def _known(value: Any) -> bool:
    """Whether a count or a step that is -1 where it is unknown is known."""
    return isinstance(value, int) and value >= 0

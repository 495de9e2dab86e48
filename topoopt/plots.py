"""Pictures of a run for your own figures: each function draws one, on the axes it is given or on a figure of its own.

What is given is a record (`topoopt.report.read`), one of its runs, a list of measurements, or one measurement. matplotlib
(the extra `report`) is imported when a picture is drawn; pyplot is not used: `axes.figure.savefig(...)` writes a picture, and
a notebook shows it where the axes are the last value of a cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from topoopt.errors import ConfigError
from topoopt.measurement import GroupMeasurement, Measurement, SpectralReading
from topoopt.report.drawing import (
    DASHES,
    RUNS,
    draw_barcode,
    draw_betti,
    draw_course,
    draw_diagram,
    draw_layers,
    draw_merge_tree,
    draw_proximity,
    legend_above,
    plain_ticks,
    positive,
)
from topoopt.report.page.course import course_of
from topoopt.report.page.layers import METRICS
from topoopt.report.page.values import number
from topoopt.report.plots import new_axes
from topoopt.report.steps import Step, by_step

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["barcode", "betti", "compare", "course", "diagram", "layers", "merge_tree", "phases"]


class Measured(Protocol):
    """A record, or a run of one."""

    @property
    def measurements(self) -> Sequence[Measurement]:
        """By step."""
        ...


Run = Measured | Sequence[Measurement] | Measurement


def phases(run: Run, ax: Axes | None = None) -> Axes:
    """Draw r over the steps between its bounds, on the hatched and named grounds of the phases."""
    axes = _axes(ax, 8.0, 3.8)
    draw_proximity(axes, _steps(run))
    axes.set_xlabel("step")
    return axes


def layers(run: Run, ax: Axes | None = None, *, metric: str = "r") -> Axes:
    """Draw a heat map of layers by steps.

    Args:
        run: what was measured.
        ax: the axes to draw on; None makes a figure.
        metric: "r", "distortion" (log(b/a) since the start), "gain" (r_pair), "twins", "silent", "loops", "largest_loop" or
            "rank" (effective rank).

    Raises:
        ConfigError: for another metric, or a run in which no layer was measured.
    """
    known = {one.key: one for one in METRICS}
    if metric not in known:
        raise ConfigError(f"metric={metric!r} is not known: choose from {', '.join(known)}")
    measurements = [m for m in _measurements(run) if m.groups]
    if not measurements:
        raise ConfigError("no layer was measured in this run, so there is no heat map of layers")
    names = {name for m in measurements for name in m.groups}
    axes = _axes(ax, 8.0, 1.4 + 0.26 * len(names))
    draw_layers(axes, measurements, known[metric])
    return axes


def course(run: Run, ax: Axes | None = None, *, measure: str | None = None) -> Axes:
    """Draw the course of a simplification as dose and response: the rate in units of e/K against what is left.

    A point is a look at the neurons at the end of a dwell, in the order of the looks; the last one is ringed. What is left is
    a share of what there was at the start of the ramp, or where that was not written, at the first look.

    Args:
        run: a run that `Simplify` steered.
        ax: the axes to draw on; None makes a figure.
        measure: one of the ends of `Simplify`, for example "effective_rank"; None draws all that were looked at.

    Raises:
        ConfigError: for a run without looks, and a measure that was not looked at.
    """
    decided = getattr(run, "decisions", None) or [(m.step, m.decision) for m in _measurements(run) if m.decision]
    found = course_of(decided)
    if found is None:
        raise ConfigError(
            "this run has no course: only Simplify looks at the neurons after each dwell, and it did not here"
        )
    if measure is not None and measure not in found.measures:
        raise ConfigError(f"measure={measure!r} was not looked at: choose from {', '.join(found.measures)}")
    axes = _axes(ax, 6.4, 3.8)
    draw_course(axes, found, list(found.measures) if measure is None else [measure])
    return axes


def diagram(source: Run | GroupMeasurement, ax: Axes | None = None, *, layer: str | None = None) -> Axes:
    """Draw a layer's persistence diagram, of the last measurement that has one; `layer`: the widest where None is named."""
    return _persistence(draw_diagram, _axes(ax, 4.2, 4.0), source, layer)


def barcode(source: Run | GroupMeasurement, ax: Axes | None = None, *, layer: str | None = None) -> Axes:
    """Draw a layer's barcode; see `diagram`."""
    return _persistence(draw_barcode, _axes(ax, 5.0, 4.0), source, layer)


def betti(source: Run | GroupMeasurement, ax: Axes | None = None, *, layer: str | None = None) -> Axes:
    """Draw a layer's Betti curves; see `diagram`."""
    return _persistence(draw_betti, _axes(ax, 4.8, 3.4), source, layer)


def merge_tree(source: Run | GroupMeasurement, ax: Axes | None = None, *, layer: str | None = None) -> Axes:
    """Draw which of a layer's clusters of neurons join at which distance (single linkage); see `diagram`.

    It is degree 0 of persistence as a tree, of the last 64 merges: leaves are neurons where there are no more than 65 of
    them, else the clusters that are left then.
    """
    axes = _axes(ax, 5.0, 4.0)
    if isinstance(source, GroupMeasurement):
        draw_merge_tree(axes, source, "")
    else:
        name, step, group = _layer(source, layer)
        draw_merge_tree(axes, group, f"layer {name}, step {step}")
    return axes


def compare(runs: Mapping[str, Run] | Sequence[Run], ax: Axes | None = None) -> Axes:
    """Draw r over the edge of several runs, by name or numbered; a run whose edge is not known is drawn as r.

    Raises:
        ConfigError: for no run.
    """
    named = runs if isinstance(runs, Mapping) else {f"run {k}": run for k, run in enumerate(runs, 1)}
    if not named:
        raise ConfigError("there is no run to compare: give a dict of names and runs, or a list of runs")
    axes = _axes(ax, 8.0, 3.8)
    for k, (name, run) in enumerate(named.items()):
        steps = [one for one in _steps(run) if not one.warming]
        known = all(number(one.edge) for one in steps)
        ratio = [_over(one) if known else number(one.r) for one in steps]
        label = name if known else f"{name} (r: its edge is not known)"
        style: dict[str, Any] = {
            "color": RUNS[k % len(RUNS)],
            "linestyle": DASHES[k % len(DASHES)],
            "marker": "o^sDvP"[k % 6],
        }
        axes.plot([one.step for one in steps], positive(ratio), **style, markersize=3, label=label)
    axes.axhline(1.0, color="#1b1f24", linewidth=0.9, linestyle="--")
    axes.annotate("the edge", (0.995, 1.0), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axes.set(xlabel="step", ylabel="r over the edge", yscale="log")
    plain_ticks(axes.yaxis)
    legend_above(axes, 4)
    return axes


def _over(one: Step) -> float | None:
    r, edge = number(one.r, 17), number(one.edge, 17)
    return None if r is None or not edge else r / edge


def _axes(ax: Axes | None, width: float, height: float) -> Axes:
    return new_axes(width, height) if ax is None else ax


def _measurements(run: Run) -> Sequence[Measurement]:
    if isinstance(run, Measurement):
        return [run]
    return run if isinstance(run, Sequence) else run.measurements


def _steps(run: Run) -> list[Step]:
    readings: Sequence[SpectralReading] = getattr(run, "readings", ())
    return by_step(_measurements(run), readings)


def _persistence(draw: Callable[..., None], axes: Axes, source: Run | GroupMeasurement, layer: str | None) -> Axes:
    name, _, group = ("", -1, source) if isinstance(source, GroupMeasurement) else _layer(source, layer)
    title = f"layer {name}, step {group.diagrams_step}" if name else f"step {group.diagrams_step}"
    draw(axes, [np.asarray(d, dtype=np.float64) for d in group.diagrams], title)
    return axes


def _layer(run: Run, layer: str | None) -> tuple[str, int, GroupMeasurement]:
    """The named or the widest layer in the last measurement that has diagrams of it, with that measurement's step."""
    seen: dict[str, None] = {}
    for m in reversed(_measurements(run)):
        having = {name: group for name, group in m.groups.items() if group.diagrams}
        seen |= dict.fromkeys(having)
        if layer is None and having:
            name = max(having, key=lambda one: number(having[one].n) or -math.inf)
            return name, m.step, having[name]
        if layer in having:
            return layer, m.step, having[layer]
    if layer is None:
        raise ConfigError("no layer of this run has persistence diagrams")
    raise ConfigError(f"there are no diagrams of a layer {layer!r}: this run has {', '.join(seen) or 'none'}")

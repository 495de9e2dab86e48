"""Drawing on matplotlib's axes, each function one picture. The colours are the page's; hatches tell phases apart in grey."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from topoopt.measurement import GroupMeasurement, Measurement, Phase
from topoopt.report.page.course import Course, in_words
from topoopt.report.page.layers import Metric, values_along
from topoopt.report.page.trees import tree_of
from topoopt.report.page.values import number, shown
from topoopt.report.steps import Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    Phase.CONSTRAINED: "#0a7d6c",
    Phase.PERMISSIVE: "#946200",
    Phase.SIMPLIFICATION: "#c13d1b",
    Phase.UNKNOWN: "#7a828d",
}
HATCHES = {Phase.CONSTRAINED: ".", Phase.PERMISSIVE: "//", Phase.SIMPLIFICATION: "xx"}
RUNS = ("#1f5fbf", "#b4450c", "#0a7a5f", "#8a3ea3", "#8a6100", "#b02a64")
DASHES = ("-", "--", ":", "-.")
DEGREES = (RUNS[0], RUNS[1], RUNS[3])
MARKS = ("o", "^", "s")


def draw_proximity(axes: Axes, steps: Sequence[Step]) -> None:
    """r over the steps between its bounds, on the phases' grounds; what is warming up is hollow."""
    x = [one.step for one in steps]
    r = positive(None if one.warming else one.r for one in steps)
    lower = [(one.step, one.r_pair) for one in steps if one.r_pair is not None]
    axes.plot(x, r, ".-", color=RUNS[0], label="$r = \\eta/\\eta^*$", zorder=4)
    if lower:
        at, pair = zip(*lower)
        axes.plot(at, positive(pair), ":", color=RUNS[0], label="$r_{pair}$, a lower bound", zorder=3)
    warming = [one for one in steps if one.warming]
    if warming:
        hollow = positive(one.r for one in warming)
        axes.plot([one.step for one in warming], hollow, "o", mfc="none", color=RUNS[0], label="warming up")
    axes.set(ylabel="r", yscale="log")
    draw_phases(axes, steps)
    plain_ticks(axes.yaxis)
    legend_above(axes, 3)


def draw_phases(axes: Axes, steps: Sequence[Step]) -> None:
    """Grounds of the phases, named in the legend: up to 1, up to the edge where it is known, and past it."""
    edges = [edge for one in steps if (edge := number(one.edge)) is not None]
    edge = float(np.median(edges)) if edges else None
    low, high = axes.get_ylim()
    low, high = min(low, 0.5), max(high, 1.5 * (edge or 1.0))
    grounds = [(Phase.CONSTRAINED, low, 1.0)]
    if edge is not None:
        grounds += [(Phase.PERMISSIVE, 1.0, edge), (Phase.SIMPLIFICATION, edge, high)]
    for phase, bottom, top in grounds:
        colour = COLOURS[phase]
        ground = axes.axhspan(bottom, top, linewidth=0, label=phase.value)
        ground.set(facecolor=f"{colour}12", edgecolor=f"{colour}48", hatch=HATCHES[phase])
    for level, name in ((1.0, "1"), (edge, f"edge {edge:.3g}" if edge is not None else "")):
        if level is not None:
            axes.axhline(level, color="#1b1f24", linewidth=0.9, linestyle="-" if level == 1.0 else "--")
            place = {"xycoords": ("axes fraction", "data"), "xytext": (3, 0), "textcoords": "offset points"}
            axes.annotate(name, (1.0, level), **place, fontsize=8, ha="left", va="center", annotation_clip=False)
    axes.set_ylim(low, high)


def draw_rates(axes: Axes, steps: Sequence[Step]) -> None:
    """The learning rate of the first parameter group, as set and as used, and its eta*."""
    x, rates = [one.step for one in steps], [number(one.lr[0]) if one.lr else None for one in steps]
    used = [
        None if rate is None or (scale := number(one.scale)) is None else rate * scale
        for one, rate in zip(steps, rates)
    ]
    r = positive(None if one.warming else one.r for one in steps)
    critical = [math.nan if one is None else one / own for one, own in zip(used, r)]
    axes.plot(x, positive(critical), ":", color=RUNS[1], label="$\\eta^*$")
    if used != rates:
        axes.plot(x, positive(rates), "--", color=RUNS[0], linewidth=1.0, label="$\\eta$ as set")
    axes.plot(x, positive(used), ".-", color=RUNS[0], label="$\\eta$" if used == rates else "$\\eta$ used")
    axes.set(ylabel="learning rate", yscale="log")
    plain_ticks(axes.yaxis)
    legend_above(axes, 3)


def draw_loss(axes: Axes, steps: Sequence[Step]) -> None:
    """The loss of each step's own batch."""
    axes.plot([one.step for one in steps], positive(one.loss for one in steps), ".-", color=RUNS[0])
    axes.set(ylabel="loss of the batch", yscale="log")
    plain_ticks(axes.yaxis)


def legend_above(axes: Axes, columns: int) -> None:
    """A legend over the picture, where it hides no line."""
    axes.legend(frameon=False, fontsize=8, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.1)


def draw_layers(axes: Axes, measurements: Sequence[Measurement], metric: Metric) -> None:
    """Layers by measurements: one metric as lightness, what was not measured hatched."""
    from matplotlib.colors import LogNorm, Normalize

    names = list(dict.fromkeys(name for m in measurements for name in m.groups))
    rows = [values_along(metric, name, measurements) for name in names]
    values = np.array(
        [[math.nan if v is None or (metric.log and v <= 0) else v for v in row] for row in rows], dtype=float
    )
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.1, 1.0)
    scale = (LogNorm if metric.log else Normalize)(low, high if high > low else low + (low or 1.0))
    edges = [m.step for m in measurements]
    edges = [*edges, edges[-1] + (edges[-1] - edges[-2] if len(edges) > 1 else 1)]
    axes.set_facecolor("none")
    axes.patch.set(hatch="////", edgecolor="#7a828d")
    mesh = axes.pcolormesh(edges, np.arange(len(names) + 1), np.ma.masked_invalid(values), norm=scale, cmap="viridis")
    axes.set(xlabel="step", yticks=np.arange(len(names)) + 0.5, ylim=(len(names), 0))
    axes.set_yticklabels(names, fontsize=8)
    axes.set_title(metric.label, fontsize=9, loc="left")
    axes.figure.colorbar(mesh, ax=axes)


def draw_diagram(axes: Axes, diagrams: Sequence[np.ndarray], title: str) -> None:
    """Births against deaths; essential classes lie on the line at the top."""
    top = largest(diagrams) * 1.08 or 1.0
    axes.plot([0, top], [0, top], color="#7a828d", linewidth=0.8)
    for degree, diagram in enumerate(diagrams):
        deaths = np.where(np.isfinite(diagram[:, 1]), diagram[:, 1], top)
        colour, mark = DEGREES[degree % 3], MARKS[degree % 3]
        axes.scatter(diagram[:, 0], deaths, s=11, color=colour, marker=mark, alpha=0.8, label=f"$H_{degree}$", zorder=3)
    axes.axhline(top, color="#7a828d", linewidth=0.8, linestyle=":")
    axes.set(xlabel="birth", ylabel="death", xlim=(-0.02 * top, top), ylim=(0, 1.03 * top))
    axes.set_title(title, fontsize=9)
    if len(diagrams):
        axes.legend(frameon=False, loc="lower right")


def draw_barcode(axes: Axes, diagrams: Sequence[np.ndarray], title: str) -> None:
    """A bar from birth to death for each feature, degree by degree; essential classes end in an arrow at the right."""
    top = largest(diagrams) * 1.08 or 1.0
    row = 0
    for degree, diagram in enumerate(diagrams):
        ordered = diagram[np.lexsort((diagram[:, 1], diagram[:, 0]))]
        rows, row = np.arange(row, row + len(ordered)), row + len(ordered)
        ends = np.minimum(ordered[:, 1], top)
        colour, mark = DEGREES[degree % 3], ("-", "--", ":")[degree % 3]
        axes.hlines(rows, ordered[:, 0], ends, color=colour, linewidth=1.2, linestyle=mark, label=f"$H_{degree}$")
        never = ~np.isfinite(ordered[:, 1])
        if never.any():
            axes.plot(ends[never], rows[never], ">", color=colour, markersize=5, clip_on=False)[0].set_in_layout(False)
    axes.set(xlabel="scale (distance)", yticks=[], xlim=(0, top), ylim=(max(row, 1) - 0.2, -0.8))
    axes.set_title(title, fontsize=9)
    if row:
        axes.legend(frameon=False, loc="lower right")


def draw_betti(axes: Axes, diagrams: Sequence[np.ndarray], title: str) -> None:
    """How many features of each degree are alive at each scale."""
    from topoopt.homology.diagrams import betti_curve

    scales = np.linspace(0.0, largest(diagrams) * 1.05 or 1.0, 400)
    for degree, diagram in enumerate(diagrams):
        colour, dashes = DEGREES[degree % 3], DASHES[degree % 3]
        axes.step(scales, betti_curve(diagram, scales), dashes, where="post", color=colour, label=f"$b_{degree}$")
    axes.set(xlabel="scale (distance)", ylabel="features alive", yscale="symlog", xlim=(0, scales[-1]))
    plain_ticks(axes.yaxis, counts=True)
    axes.set_title(title, fontsize=9)
    if len(diagrams):
        axes.legend(frameon=False)


def draw_merge_tree(axes: Axes, group: GroupMeasurement, title: str) -> None:
    """Which clusters of neurons join at which distance, as a tree whose root is at the right; a dot is one leaf.

    Where only the last merges are known a leaf is a cluster, and its dot grows with the neurons in it.
    """
    tree = tree_of(group)
    axes.set(xlabel="distance", yticks=[])
    axes.set_title(title, fontsize=9)
    if tree is None:
        axes.text(0.5, 0.5, "no merge tree was recorded", transform=axes.transAxes, ha="center", color="#7a828d")
        return
    place = {leaf: float(row) for row, leaf in enumerate(tree.order)}
    known = [distance for _, _, distance in tree.merges if distance > 0]
    start = min(known, default=1.0) / 1.08
    at = dict.fromkeys(range(len(tree.sizes)), start)
    for k, (a, b, distance) in enumerate(tree.merges):
        joined, end = len(tree.sizes) + k, max(distance, start)
        axes.plot([at[a], end, end, at[b]], [place[a], place[a], place[b], place[b]], color=DEGREES[0], linewidth=1.1)
        place[joined], at[joined] = (place[a] + place[b]) / 2, end
    sizes = np.array([tree.sizes[leaf] for leaf in tree.order], dtype=float)
    axes.scatter(
        np.full(len(sizes), start), range(len(sizes)), s=8 + 6 * (sizes - 1) ** 0.5, color=DEGREES[0], zorder=3
    )
    axes.set(xscale="log", ylim=(len(sizes) - 0.4, -0.6))
    plain_ticks(axes.xaxis)


def draw_course(axes: Axes, course: Course, measures: Sequence[str]) -> None:
    """The rate in units of e/K against what is left of each measure, in the order of the looks; the last look is ringed."""
    doses = positive(course.doses)
    for k, name in enumerate(measures):
        values = [math.nan if value is None else float(value) for value in course.measures[name]]
        start = course.start.get(name) or next((v for v in values if v > 0), math.nan)
        style: dict[str, Any] = {"color": RUNS[k % len(RUNS)], "marker": "o^sDvP"[k % 6]}
        shares = values if math.isnan(start) else [value / start for value in values]
        label = f"{in_words(name)}, " + ("none seen" if math.isnan(start) else f"of {start:.3g}")
        axes.plot(doses, shares, linestyle=DASHES[k % len(DASHES)], markersize=4, linewidth=1.2, label=label, **style)
        axes.plot(doses[-1:], shares[-1:], markersize=10, markerfacecolor="none", **style)
    axes.axhline(1.0, color="#7a828d", linewidth=0.8, linestyle=":")
    axes.set(
        xlabel="rate in units of e/K (K as it was at the start)", ylabel="left, as a share of the start", xscale="log"
    )
    axes.set_ylim(bottom=0)
    plain_ticks(axes.xaxis)
    axes.legend(frameon=False, fontsize=8)


def plain_ticks(axis: Any, *, counts: bool = False) -> None:
    """Numbers as people write them on a logarithmic axis, more of them where it spans little; of `counts` 0 as well."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator

    axis.set_major_formatter(FuncFormatter(lambda value, _: shown(float(value))))
    axis.set_minor_formatter("")
    low, high = axis.get_view_interval()
    if counts:
        ticks = [tick for power in range(7) for tick in (10**power, 3 * 10**power)]
        axis.set_major_locator(FixedLocator([0, *(tick for tick in ticks if tick <= high)]))
    elif 0 < low < high < 1000 * low:
        subs = (
            (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9) if high < 5 * low else (1, 2, 5) if high < 100 * low else (1, 3)
        )
        axis.set_major_locator(LogLocator(subs=subs))


def positive(values: Iterable[Any]) -> list[float]:
    """Values for a logarithmic axis: what is not positive and finite leaves a gap."""
    known = [number(value, 17) for value in values]
    return [float(v) if v is not None and v > 0 else math.nan for v in known]


def largest(diagrams: Sequence[np.ndarray]) -> float:
    """The largest finite birth or death; 0 where there is none."""
    finite = [d[np.isfinite(d)] for d in diagrams]
    return max((float(f.max()) for f in finite if f.size), default=0.0)

"""Figures of a record. matplotlib is imported when a figure is made; pyplot and its global state are not used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from topoopt.errors import ConfigError
from topoopt.measurement import Measurement, Phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    Phase.CONSTRAINED: "#2a9d8f",
    Phase.PERMISSIVE: "#e9c46a",
    Phase.SIMPLIFICATION: "#e76f51",
    Phase.UNKNOWN: "#bbbbbb",
}
DEGREES = ("#264653", "#e76f51", "#8a5a9e")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches.

    Raises:
        ConfigError: when matplotlib is missing, with how to install it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plots need matplotlib: pip install 'topoopt[report]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def diagram_figure(diagrams: Sequence[np.ndarray], title: str | None = None) -> Figure:
    """One persistence diagram: births against deaths, a colour for each degree."""
    figure = new_figure(4.2, 4.0)
    draw_diagram(figure.subplots(), diagrams, title or "")
    return figure


def betti_figure(diagrams: Sequence[np.ndarray], title: str | None = None) -> Figure:
    """Betti curves: how many features of each degree are alive at each scale."""
    from topoopt.homology.diagrams import betti_curve

    figure = new_figure(4.8, 3.4)
    axes = figure.subplots()
    scales = np.linspace(0.0, _largest(diagrams) * 1.05 or 1.0, 400)
    for degree, diagram in enumerate(diagrams):
        axes.step(scales, betti_curve(diagram, scales), where="post", color=DEGREES[degree % 3], label=f"$b_{degree}$")
    axes.set(xlabel="scale", ylabel="Betti number", title=title or "", yscale="symlog", xlim=(0, scales[-1]))
    if len(diagrams):
        axes.legend(frameon=False)
    return figure


def history_figure(measurements: Sequence[Measurement]) -> Figure:
    """r with its bracket and phases, the learning rate's factor, and the loss, over the steps."""
    figure = new_figure(8.0, 6.4)
    upper, middle, lower = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1.4, 1.4))
    draw_proximity(upper, measurements)
    draw_rates(middle, measurements)
    draw_loss(lower, measurements)
    lower.set_xlabel("step")
    return figure


def overview_figure(measurements: Sequence[Measurement]) -> Figure:
    """The run in one picture: phase and r, loss, and the persistence diagrams of one group before and after."""
    figure = new_figure(11.0, 7.0)
    grid = figure.add_gridspec(3, 2, width_ratios=(1.7, 1), height_ratios=(2, 1, 1))
    proximity = figure.add_subplot(grid[0, 0])
    draw_proximity(proximity, measurements)
    draw_rates(figure.add_subplot(grid[1, 0], sharex=proximity), measurements)
    losses = figure.add_subplot(grid[2, 0], sharex=proximity)
    draw_loss(losses, measurements)
    losses.set_xlabel("step")
    pair = grid[:, 1].subgridspec(2, 1)
    for cell, (measurement, name) in enumerate(_first_and_last(measurements)):
        group = measurement.groups[name]
        axes = figure.add_subplot(pair[cell, 0])
        draw_diagram(axes, group.diagrams, f"{name}: persistence at step {group.diagrams_step}")
    return figure


def draw_diagram(axes: Axes, diagrams: Sequence[np.ndarray], title: str) -> None:
    """Births against deaths; essential classes lie on the line at the top."""
    top = _largest(diagrams) * 1.08 or 1.0
    axes.plot([0, top], [0, top], color="#999999", linewidth=0.8)
    for degree, diagram in enumerate(diagrams):
        deaths = np.where(np.isfinite(diagram[:, 1]), diagram[:, 1], top)
        axes.scatter(diagram[:, 0], deaths, s=9, color=DEGREES[degree % 3], alpha=0.7, label=f"$H_{degree}$", zorder=3)
    axes.axhline(top, color="#cccccc", linewidth=0.8, linestyle=":")
    axes.set(xlabel="birth", ylabel="death", xlim=(-0.02 * top, top), ylim=(0, 1.03 * top))
    axes.set_title(title, fontsize=9)
    if len(diagrams):
        axes.legend(frameon=False, loc="lower right")


def draw_proximity(axes: Axes, measurements: Sequence[Measurement]) -> None:
    """r over the steps on phase-coloured ground, with the pairwise lower bound."""
    steps = [m.step for m in measurements]
    _shade(axes, measurements)
    axes.plot(steps, _positive(m.proximity for m in measurements), ".-", color="#1d3557", label="$r = \\eta/\\eta^*$")
    axes.plot(
        steps, _positive(m.r_pair for m in measurements), ".-", color="#a8a8a8", label="$r_{pair}$, a lower bound"
    )
    edge = measurements[-1].edge if measurements else 2.0
    for level, name in ((1.0, "1"), (edge, f"edge {edge:g}")):
        axes.axhline(level, color="#666666", linewidth=0.9, linestyle="--")
        axes.annotate(name, (0.995, level), xycoords=("axes fraction", "data"), fontsize=8, ha="right", va="bottom")
    axes.set(ylabel="r", yscale="log")
    handles, labels = axes.get_legend_handles_labels()
    handles += [axes.scatter([], [], marker="s", color=COLOURS[phase], alpha=0.4) for phase in list(Phase)[:3]]
    axes.legend(
        handles,
        [*labels, *[phase.value for phase in list(Phase)[:3]]],
        frameon=False,
        fontsize=8,
        ncols=2,
        loc="lower center",
    )


def draw_rates(axes: Axes, measurements: Sequence[Measurement]) -> None:
    """The learning rate that was used, and eta* of the first parameter group."""
    steps = [m.step for m in measurements]
    axes.plot(steps, _positive(m.lr[0] * m.lr_scale for m in measurements), ".-", color="#1d3557", label="$\\eta$ used")
    critical = _positive(m.eta_star[0] for m in measurements)
    axes.plot(steps, critical, ".--", color="#e76f51", label="$\\eta^*$")
    axes.set(ylabel="learning rate", yscale="log")
    axes.legend(frameon=False, fontsize=8)


def draw_loss(axes: Axes, measurements: Sequence[Measurement]) -> None:
    """The probe's loss."""
    axes.plot([m.step for m in measurements], _positive(m.loss for m in measurements), ".-", color="#457b9d")
    axes.set(ylabel="loss on the probe", yscale="log")


def _shade(axes: Axes, measurements: Sequence[Measurement]) -> None:
    ends = [m.step for m in measurements[1:]] + [measurements[-1].step + 1] if measurements else []
    for measurement, end in zip(measurements, ends):
        axes.axvspan(measurement.step, end, color=COLOURS[measurement.phase], alpha=0.25, linewidth=0)


def _positive(values: Any) -> list[float]:
    """Values for a logarithmic axis: what is not positive and finite leaves a gap."""
    return [v if math.isfinite(v) and v > 0 else math.nan for v in values]


def _largest(diagrams: Sequence[np.ndarray]) -> float:
    finite = [d[np.isfinite(d)] for d in diagrams]
    return max((float(f.max()) for f in finite if f.size), default=0.0)


def _first_and_last(measurements: Sequence[Measurement]) -> list[tuple[Measurement, str]]:
    """The first and last measurement of the group with the most neurons among those that have diagrams."""
    with_groups = [m for m in measurements if m.groups]
    if not with_groups:
        return []
    last = with_groups[-1]
    name = max(last.groups, key=lambda one: last.groups[one].n)
    having = [m for m in with_groups if name in m.groups]
    richest = max(len(m.groups[name].diagrams) for m in having)
    full = [m for m in having if len(m.groups[name].diagrams) == richest]
    return [(full[0], name), (full[-1], name)]

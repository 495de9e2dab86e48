"""Figures of a record. matplotlib is imported when a figure is made; pyplot and its global state are not used."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from topoopt.errors import ConfigError
from topoopt.measurement import Measurement, SpectralReading
from topoopt.report.drawing import draw_betti, draw_diagram, draw_loss, draw_proximity, draw_rates
from topoopt.report.steps import by_step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches.

    Raises:
        ConfigError: when matplotlib is missing, with how to install it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise ConfigError("plots need matplotlib: pip install 'topoopt[report]'") from error
    figure = _kinds()[0](figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_axes(width: float, height: float) -> Axes:
    """Axes on a figure of their own, in inches; in a notebook both show themselves as the last value of a cell.

    Raises:
        ConfigError: when matplotlib is missing, with how to install it.
    """
    figure = new_figure(width, height)
    return figure.add_subplot(axes_class=_kinds()[1])


@cache
def _kinds() -> tuple[type[Figure], type[Axes]]:
    """matplotlib's figure and axes with the one method by which notebooks ask for a picture."""
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        def _repr_png_(self) -> bytes:
            return _png(self)

    class ShownAxes(Axes):
        def _repr_png_(self) -> bytes:
            return _png(self.figure)

    return ShownFigure, ShownAxes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def diagram_figure(diagrams: Sequence[np.ndarray], title: str | None = None) -> Figure:
    """One persistence diagram: births against deaths, a colour and a mark for each degree."""
    figure = new_figure(4.2, 4.0)
    draw_diagram(figure.subplots(), diagrams, title or "")
    return figure


def betti_figure(diagrams: Sequence[np.ndarray], title: str | None = None) -> Figure:
    """Betti curves: how many features of each degree are alive at each scale."""
    figure = new_figure(4.8, 3.4)
    draw_betti(figure.subplots(), diagrams, title or "")
    return figure


def history_figure(measurements: Sequence[Measurement], readings: Sequence[SpectralReading] = ()) -> Figure:
    """r with its bracket and phases, the learning rate's factor, and the loss, over the steps."""
    figure = new_figure(8.0, 6.4)
    steps = by_step(measurements, readings)
    upper, middle, lower = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1.4, 1.4))
    draw_proximity(upper, steps)
    draw_rates(middle, steps)
    draw_loss(lower, steps)
    lower.set_xlabel("step")
    return figure


def overview_figure(measurements: Sequence[Measurement], readings: Sequence[SpectralReading] = ()) -> Figure:
    """The run in one picture: phase and r, loss, and the persistence diagrams of one group before and after."""
    figure = new_figure(11.0, 7.0)
    steps = by_step(measurements, readings)
    grid = figure.add_gridspec(3, 2, width_ratios=(1.7, 1), height_ratios=(2, 1, 1))
    proximity = figure.add_subplot(grid[0, 0])
    draw_proximity(proximity, steps)
    draw_rates(figure.add_subplot(grid[1, 0], sharex=proximity), steps)
    losses = figure.add_subplot(grid[2, 0], sharex=proximity)
    draw_loss(losses, steps)
    losses.set_xlabel("step")
    pair = grid[:, 1].subgridspec(2, 1)
    for cell, (measurement, name) in enumerate(_first_and_last(measurements)):
        group = measurement.groups[name]
        axes = figure.add_subplot(pair[cell, 0])
        draw_diagram(axes, group.diagrams, f"persistence of layer {name}, step {group.diagrams_step}")
    return figure


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

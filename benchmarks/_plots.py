"""A picture of each table: one bar a tool, one panel a case, topoopt's own in another colour."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from _results import Table

SHOWN = {
    "monitoring": "of a run",
    "curvature": "time to 1 %",
    "discovery": "right",
    "h0": "times the first",
    "h1": "times the first",
    "measure": "times the first",
    "bottleneck": "times the first",
    "distances": "time over X X^T",
}
"""The column that is drawn."""
OWN, OTHER = "#b5482a", "#7d8a97"
UNITS = {"%": " (%)", "x": " (x)", "s": " (s)", "steps": " (steps)"}


def draw(table: Table, path: Path) -> None:
    """Write an SVG; equal tables give equal files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    column = next(c for c in table.columns if c.name == SHOWN[table.key])
    cases = [case for case in table.cases if any(r.case == case and column.name in r.values for r in table.rows)]
    tools = list(reversed(table.tools))
    settings: Any = {"svg.hashsalt": table.key, "svg.fonttype": "none", "font.size": 9}
    with plt.rc_context(settings):
        size = (2.2 + 2.1 * len(cases), 0.9 + 0.25 * len(tools))
        figure, axes = plt.subplots(1, len(cases), figsize=size, sharey=True, squeeze=False, layout="constrained")
        for axis, case in zip(axes[0], cases):
            for place, tool in enumerate(tools):
                row = next((r for r in table.rows if (r.case, r.tool) == (case, tool)), None)
                _bar(axis, place, row, column.name)
            if _decades(
                [r.values[column.name].median for r in table.rows if r.case == case and column.name in r.values]
            ):
                axis.set_xscale("log")
            axis.set_title(case, fontsize=9)
            axis.set_xlabel(column.name + UNITS.get(column.unit, ""), fontsize=8)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0][0].set_yticks(range(len(tools)), tools)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _bar(axis: Any, place: int, row: Any, name: str) -> None:
    if row is None or name not in row.values:
        if row is not None:
            axis.text(
                0.02,
                place,
                "failed" if row.failed else "never",
                va="center",
                fontsize=7,
                transform=axis.get_yaxis_transform(),
            )
        return
    value = row.values[name]
    axis.barh(place, value.median, color=OWN if row.ours else OTHER, height=0.6)
    if value.runs > 1 and value.low > 0:
        axis.plot([value.low, value.high], [place, place], color="black", lw=0.8)


def _decades(values: list[float]) -> bool:
    """Whether the numbers ask for a logarithmic scale."""
    return bool(values) and min(values) > 0 and math.log10(max(values) / min(values)) > 1.3

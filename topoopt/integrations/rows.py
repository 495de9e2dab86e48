"""What every tracker shows: flat rows of floats, pictures now and then, and a table of layers at the end."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from topoopt.measurement import GroupMeasurement, Measurement

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger("topoopt")

STEP = "topo/step"
COLUMNS = (
    "layer",
    "neurons",
    "dimension",
    "gain",
    "certified",
    "distortion lower",
    "distortion upper",
    "merge margin",
    "twins",
    "vanishing",
    "proximity",
    "H1 persistence",
    "notes",
)


class Rows:
    """Turns measurements into rows: all scalars of a new step, only what changed of one that comes again."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._scalars: dict[str, float] = {}

    def row(self, measurement: Measurement) -> dict[str, float]:
        """Return the scalars to write, `topo/step` always among them; no more than that when nothing is new."""
        scalars = measurement.scalars()
        again = measurement.step == self._step
        changed = {key: value for key, value in scalars.items() if not again or self._scalars.get(key) != value}
        self._step, self._scalars = measurement.step, scalars
        return {STEP: float(measurement.step)} | changed


@dataclass
class Pictures:
    """Draws diagrams and Betti curves of a few layers when their homology is new and the last picture is old enough.

    Drawing takes about 0.1 s of a core, which is why it has a pace of its own.
    """

    seconds: float | None = 60.0
    """Least time between two pictures of one layer; 0 draws every new diagram, None draws nothing."""
    layers: int = 4
    """How many layers are drawn: evenly spaced among the wider half, from the first to the last."""
    clock: Callable[[], float] = time.monotonic
    _history: dict[int, Measurement] = field(default_factory=dict)
    _chosen: list[str] = field(default_factory=list)
    _drawn: dict[str, tuple[tuple[int, ...], float]] = field(default_factory=dict)
    _latest: Measurement | None = None

    def due(self, measurement: Measurement) -> dict[str, np.ndarray]:
        """Return the pictures to show now: key under `topo/` -> (height, width, 3) uint8 pixels."""
        self._latest = measurement
        self._history[measurement.step] = replace(measurement, groups={})
        return self._guarded(lambda: self._draw(measurement, self.seconds))

    def last(self) -> dict[str, np.ndarray]:
        """Return what a run ends with: homology that came too soon after the picture before, and `topo/history`."""
        latest = self._latest
        return {} if latest is None else self._guarded(lambda: self._draw(latest, 0.0) | self._draw_history())

    def _guarded(self, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        if self.seconds is None:
            return {}
        try:
            return make()
        except Exception as error:  # matplotlib is an extra: numbers go on without pictures
            self.seconds = None
            logger.warning("topoopt: no more pictures for this tracker: %s", error, exc_info=error)
            return {}

    def _draw(self, measurement: Measurement, seconds: float | None) -> dict[str, np.ndarray]:
        pictures: dict[str, np.ndarray] = {}
        for name in self._choose(measurement):
            group = measurement.groups.get(name)
            if group is not None and self._is_due(name, group, seconds or 0.0):
                pictures |= draw(name, group)
                self._drawn[name] = (_edition(group), self.clock())
        return pictures

    def _draw_history(self) -> dict[str, np.ndarray]:
        from topoopt.report.plots import history_figure

        return {"topo/history": pixels(history_figure([self._history[step] for step in sorted(self._history)]))}

    def _choose(self, measurement: Measurement) -> list[str]:
        if not self._chosen and measurement.groups:
            middle = float(np.median([group.n for group in measurement.groups.values()]))
            names = [name for name, group in measurement.groups.items() if group.n >= middle]
            spots = np.linspace(0, len(names) - 1, min(self.layers, len(names)))
            self._chosen = [names[round(spot)] for spot in spots]
        return self._chosen

    def _is_due(self, name: str, group: GroupMeasurement, seconds: float) -> bool:
        if group.diagrams_step < 0 or not group.diagrams:
            return False
        drawn = self._drawn.get(name)
        return drawn is None or (drawn[0] != _edition(group) and self.clock() - drawn[1] >= seconds)


def _edition(group: GroupMeasurement) -> tuple[int, ...]:
    """Tell diagrams apart: by their step, and by their sizes where higher degrees came late for the same step."""
    return (group.diagrams_step, *(len(diagram) for diagram in group.diagrams))


def draw(name: str, group: GroupMeasurement) -> dict[str, np.ndarray]:
    """Draw one layer's persistence diagrams and Betti curves."""
    from topoopt.report.plots import betti_figure, diagram_figure

    return {
        f"topo/{name}/diagram": pixels(diagram_figure(group.diagrams, title=f"{name}, step {group.diagrams_step}")),
        f"topo/{name}/betti": pixels(betti_figure(group.diagrams, title=name)),
    }


def pixels(figure: Figure) -> np.ndarray:
    """Rasterise a figure to (height, width, 3) uint8, without pyplot and without changing its canvas for others."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def table(measurement: Measurement) -> list[list[Any]]:
    """One row a layer, in the order of `COLUMNS`; distortion is since the first measurement."""
    return [_table_row(name, group) for name, group in measurement.groups.items()]


def _table_row(name: str, group: GroupMeasurement) -> list[Any]:
    persistence = group.total_persistence[1] if len(group.total_persistence) > 1 else math.nan
    proximity = math.nan if group.proximity is None else group.proximity
    return [
        name,
        group.n,
        group.d,
        group.gain,
        group.certified,
        *group.distortion_total,
        group.merge_margin,
        group.twins,
        group.vanishing,
        proximity,
        persistence,
        "; ".join(group.notes),
    ]


def markdown(rows: Sequence[Sequence[Any]]) -> str:
    """Return the table of layers as markdown, numbers to three digits."""
    lines = [list(COLUMNS), ["---"] * len(COLUMNS)]
    lines += [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

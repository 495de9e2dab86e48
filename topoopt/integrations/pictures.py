"""Pictures for trackers: diagrams and Betti curves of a few layers, and the history of a run, as pixels."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from topoopt.measurement import GroupMeasurement, Measurement, SpectralReading

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger("topoopt")
READINGS = 2000
"""Readings that the picture of a run's history goes through."""


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
    _readings: list[SpectralReading] = field(default_factory=list)
    _chosen: list[str] = field(default_factory=list)
    _drawn: dict[str, tuple[tuple[int, ...], float]] = field(default_factory=dict)
    _latest: Measurement | None = None

    def due(self, measurement: Measurement) -> dict[str, np.ndarray]:
        """Return the pictures to show now: key -> (height, width, 3) uint8 pixels."""
        self._latest = measurement
        self._history[measurement.step] = replace(measurement, groups={})
        return self._guarded(lambda: self._draw(measurement, self.seconds))

    def read(self, reading: SpectralReading) -> None:
        """Remember a reading for the picture at the end; of very many every second one is left out, again and again."""
        if self.seconds is not None:
            self._readings.append(reading)
        if len(self._readings) > READINGS:
            del self._readings[1::2]

    def last(self) -> dict[str, np.ndarray]:
        """Return what a run ends with: homology that came too soon after the picture before, and `topo_details/history`."""
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

        told = [self._history[step] for step in sorted(self._history)]
        return {"topo_details/history": pixels(history_figure(told, self._readings))}

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
        f"topo_layers/{name}/diagram": pixels(
            diagram_figure(group.diagrams, title=f"{name}, step {group.diagrams_step}")
        ),
        f"topo_layers/{name}/betti": pixels(betti_figure(group.diagrams, title=f"{name}, step {group.diagrams_step}")),
    }


def pixels(figure: Figure) -> np.ndarray:
    """Rasterise a figure to (height, width, 3) uint8, without pyplot and without changing its canvas for others."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

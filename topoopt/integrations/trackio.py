"""trackio: scalars over optimizer steps, the verdict in words, pictures now and then, a table of layers at the end."""

from __future__ import annotations

import math
from typing import Any

from topoopt.extras import require
from topoopt.integrations.background import BackgroundSink
from topoopt.integrations.pictures import Pictures
from topoopt.integrations.rows import COLUMNS, STEP, Rows, table
from topoopt.measurement import Measurement, SpectralReading
from topoopt.summary import Run, Summary


class TrackioSink(BackgroundSink):
    """Sends readings and measurements to a trackio run, under the keys of `topoopt.integrations.rows`.

    Args:
        run: what `trackio.init` returned. None: a new run, made by `trackio.init(**init)` and finished with this sink
            (trackio keeps its current run in a context variable, which a thread does not inherit: pass the run).
        images: least seconds between two pictures of one layer (0: every new diagram, None: no pictures).
        layers: how many layers are drawn.
        limit: how many readings and measurements may wait.
        patience: seconds that `close` waits for trackio.
        **init: arguments of `trackio.init`, used only when this sink makes the run; topoopt's settings are added to its config.
    """

    def __init__(
        self,
        run: Any = None,
        *,
        images: float | None = 60.0,
        layers: int = 4,
        limit: int = 256,
        patience: float = 60.0,
        **init: Any,
    ) -> None:
        super().__init__(limit=limit, patience=patience)
        self._run: Any = run
        self._owned = run is None
        self._init = {"project": "topoopt", "embed": False} | init
        self._rows, self._pictures = Rows(), Pictures(images, layers)
        self._last: Measurement | None = None
        self._settings: dict[str, Any] = {}

    def begin(self, run: Run) -> None:
        """Remember the settings for the run that this sink makes: trackio takes a config when a run is made, only."""
        self._settings = {"topoopt": {**run.settings, **run.versions}}
        super().begin(run)

    def open(self) -> None:
        """Make a run where none was given."""
        self._trackio: Any = require("trackio", extra="trackio")
        if self._run is None:
            config = {**self._settings, **(self._init.get("config") or {})}
            self._run = self._trackio.init(**{**self._init, "config": config})

    def deliver_begin(self, run: Run) -> None:
        """Start anew."""
        self._rows, self._last = Rows(), None

    def deliver_reading(self, reading: SpectralReading) -> None:
        """Log what a reading says."""
        self._pictures.read(reading)
        self._log(self._row(reading), reading.step)

    def deliver(self, measurement: Measurement) -> None:
        """Log one row, with the pictures that are due."""
        self._log(self._row(measurement) | self._images(self._pictures.due(measurement)), measurement.step)
        self._last = measurement

    def _row(self, seen: Measurement | SpectralReading) -> dict[str, Any]:
        """trackio's JSON knows no infinity, so an open end of the bracket is left out; it has a step of its own."""
        return {key: value for key, value in self._rows.row(seen).items() if math.isfinite(value) and key != STEP}

    def _log(self, row: dict[str, Any], step: int) -> None:
        if row:
            self._run.log(row, step=step)

    def deliver_end(self, summary: Summary) -> None:
        """Log the verdict."""
        words = {"topo/verdict": summary.verdict.state, "topo/verdict_text": str(summary.verdict)}
        self._log(words, summary.steps)

    def finish(self) -> None:
        """Log the last pictures and the table of layers."""
        if self._last is not None:
            frame = require("pandas", extra="trackio").DataFrame(table(self._last), columns=list(COLUMNS))
            row = {"topo_layers/table": self._trackio.Table(dataframe=frame), **self._images(self._pictures.last())}
            self._log(row, self._last.step)
        if self._owned and self._run is not None:
            self._run.finish()
            self._run = None

    def _images(self, pictures: dict[str, Any]) -> dict[str, Any]:
        return {key: self._trackio.Image(pixels) for key, pixels in pictures.items()}

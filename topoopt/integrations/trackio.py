"""trackio: scalars over optimizer steps, the phase in words, pictures now and then, a table of layers at the end."""

from __future__ import annotations

import importlib
import math
from typing import Any

from topoopt.integrations.background import BackgroundSink
from topoopt.integrations.rows import COLUMNS, Pictures, Rows, table
from topoopt.measurement import Measurement


class TrackioSink(BackgroundSink):
    """Sends measurements to a trackio run.

    Args:
        run: what `trackio.init` returned. None: a new run, made by `trackio.init(**init)` and finished with this sink
            (trackio keeps its current run in a context variable, which a thread does not inherit: pass the run).
        images: least seconds between two pictures of one layer (0: every new diagram, None: no pictures).
        layers: how many layers are drawn.
        limit: how many measurements may wait.
        patience: seconds that `close` waits for trackio.
        **init: arguments of `trackio.init`, used only when this sink makes the run.
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

    def open(self) -> None:
        """Make a run where none was given."""
        self._trackio: Any = importlib.import_module("trackio")
        if self._run is None:
            self._run = self._trackio.init(**self._init)

    def deliver(self, measurement: Measurement) -> None:
        """Log one row; trackio's JSON knows no infinity, so an open end of the bracket is left out."""
        finite = {key: value for key, value in self._rows.row(measurement).items() if math.isfinite(value)}
        row: dict[str, Any] = {**finite, "topo/phase_name": str(measurement.phase)}
        self._run.log(row | self._images(self._pictures.due(measurement)), step=measurement.step)
        self._last = measurement

    def finish(self) -> None:
        """Log the last pictures and the table of layers."""
        if self._last is not None:
            import pandas

            frame = pandas.DataFrame(table(self._last), columns=list(COLUMNS))
            row = {"topo/layers": self._trackio.Table(dataframe=frame), **self._images(self._pictures.last())}
            self._run.log(row, step=self._last.step)
        if self._owned and self._run is not None:
            self._run.finish()
            self._run = None

    def _images(self, pictures: dict[str, Any]) -> dict[str, Any]:
        return {key: self._trackio.Image(pixels) for key, pixels in pictures.items()}

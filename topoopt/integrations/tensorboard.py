"""TensorBoard: scalars over optimizer steps, phase and verdict in words, pictures at times, a table of layers at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from topoopt.extras import require
from topoopt.integrations.background import BackgroundSink
from topoopt.integrations.pictures import Pictures
from topoopt.integrations.rows import STEP, Rows, markdown, table
from topoopt.measurement import Measurement, Phase, SpectralReading
from topoopt.summary import Run, Summary


class TensorBoardSink(BackgroundSink):
    """Sends readings and measurements to TensorBoard; the x axis is the optimizer step.

    The keys are those of `topoopt.integrations.rows`: headlines under `topo/`, what is behind them under `topo_details/`,
    layers under `topo_layers/`.

    Args:
        to: a `SummaryWriter` that stays yours, or a folder for a new one, closed with this sink.
        images: least seconds between two pictures of one layer (0: every new diagram, None: no pictures).
        layers: how many layers are drawn.
        limit: how many readings and measurements may wait.
        patience: seconds that `close` waits for the disk.
    """

    def __init__(
        self,
        to: Any = "runs",
        *,
        images: float | None = 60.0,
        layers: int = 4,
        limit: int = 256,
        patience: float = 30.0,
    ) -> None:
        super().__init__(limit=limit, patience=patience)
        self._to = to
        self._writer: Any = None
        self._rows, self._pictures = Rows(), Pictures(images, layers)
        self._phase: Phase | None = None
        self._last: Measurement | None = None

    def open(self) -> None:
        """Open the folder, where the writer is not the caller's."""
        self._writer = self._to
        if self._owned:
            library = require("torch.utils.tensorboard", extra="tensorboard")
            self._writer = library.SummaryWriter(str(self._to))

    @property
    def _owned(self) -> bool:
        return isinstance(self._to, (str, Path))

    def deliver_begin(self, run: Run) -> None:
        """Write the settings, and start anew."""
        self._rows, self._phase, self._last = Rows(), None, None
        settings = json.dumps(dict(run.settings), indent=2, default=str)
        self._writer.add_text("topo_details/settings", f"```json\n{settings}\n```", run.resumed_at)

    def deliver_reading(self, reading: SpectralReading) -> None:
        """Write what a reading says."""
        self._pictures.read(reading)
        self._write(reading)

    def deliver(self, measurement: Measurement) -> None:
        """Write the scalars and the pictures that are due."""
        self._write(measurement)
        self._draw(self._pictures.due(measurement), measurement.step)
        self._last = measurement

    def _write(self, seen: Measurement | SpectralReading) -> None:
        for key, value in self._rows.row(seen).items():
            if key != STEP:
                self._writer.add_scalar(key, value, seen.step)
        if self._rows.phase is not self._phase:
            self._phase = self._rows.phase
            self._writer.add_text("topo/phase_name", f"step {seen.step}: {self._phase}", seen.step)

    def deliver_end(self, summary: Summary) -> None:
        """Write the verdict."""
        lines = "  \n".join(summary.verdict.lines)
        self._writer.add_text("topo/verdict", f"**{summary.verdict.state}**  \n{lines}", summary.steps)

    def finish(self) -> None:
        """Write the last pictures and the table of layers."""
        if self._last is not None:
            self._draw(self._pictures.last(), self._last.step)
            self._writer.add_text("topo_layers/table", markdown(table(self._last)), self._last.step)
        self._writer.flush()
        if self._owned:
            self._writer.close()

    def _draw(self, pictures: dict[str, Any], step: int) -> None:
        for key, pixels in pictures.items():
            self._writer.add_image(key, pixels, step, dataformats="HWC")

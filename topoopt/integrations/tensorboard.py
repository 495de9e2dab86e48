"""TensorBoard: scalars over optimizer steps, the phase in words, pictures at times, a table of layers at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from topoopt.integrations.background import BackgroundSink
from topoopt.integrations.rows import STEP, Pictures, Rows, markdown, table
from topoopt.measurement import Measurement, Phase


class TensorBoardSink(BackgroundSink):
    """Sends measurements to TensorBoard; the x axis is the optimizer step.

    Args:
        to: a `SummaryWriter` that stays yours, or a folder for a new one, closed with this sink.
        images: least seconds between two pictures of one layer (0: every new diagram, None: no pictures).
        layers: how many layers are drawn.
        limit: how many measurements may wait.
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
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._to))

    @property
    def _owned(self) -> bool:
        return isinstance(self._to, (str, Path))

    def deliver(self, measurement: Measurement) -> None:
        """Write the scalars, a change of phase, and the pictures that are due."""
        for key, value in self._rows.row(measurement).items():
            if key != STEP:
                self._writer.add_scalar(key, value, measurement.step)
        if measurement.phase is not self._phase:
            self._phase = measurement.phase
            self._writer.add_text("topo/phase_name", f"step {measurement.step}: {measurement.phase}", measurement.step)
        self._draw(self._pictures.due(measurement), measurement.step)
        self._last = measurement

    def finish(self) -> None:
        """Write the last pictures and the table of layers."""
        if self._last is not None:
            self._draw(self._pictures.last(), self._last.step)
            self._writer.add_text("topo/layers", markdown(table(self._last)), self._last.step)
        self._writer.flush()
        if self._owned:
            self._writer.close()

    def _draw(self, pictures: dict[str, Any], step: int) -> None:
        for key, pixels in pictures.items():
            self._writer.add_image(key, pixels, step, dataformats="HWC")

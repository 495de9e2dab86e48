"""What a row of a Trainer's log holds of topoopt's: finite numbers of Python's, since the trainer's state is saved as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from topoopt.measurement import Measurement, Phase, SpectralReading

CONSOLE = ("topo/step", "topo/r_over_edge", "topo/proximity", "topo/phase", "topo/lr_scale")
"""What the console and trackers without a sink of topoopt's own are shown of a row (the factor only where it is steered)."""
OF_READING = (
    "topo/step",
    "topo/phase",
    "topo/proximity",
    "topo/r_spec",
    "topo/edge",
    "topo/r_over_edge",
    "topo/loss",
    "topo/lr_scale",
)


def summary(measurement: Measurement) -> dict[str, float]:
    """The scalars that are not of a single layer; finite ones only, since the trainer's state is saved as JSON."""
    scalars = measurement.scalars(layers=False)
    return {key: value for key, value in scalars.items() if math.isfinite(value)}


def of_reading(reading: SpectralReading, phase: Phase) -> dict[str, float]:
    """What a row shows of a reading of r that belongs to no measurement: finite numbers only."""
    edge = reading.edge or math.nan
    values = {
        "topo/step": reading.step,
        "topo/phase": list(Phase).index(phase),
        "topo/proximity": reading.r,
        "topo/r_spec": reading.r,
        "topo/edge": edge,
        "topo/r_over_edge": math.nan if reading.warming else reading.r / edge,
        "topo/loss": reading.loss,
        "topo/lr_scale": reading.scale,
    }
    return {key: float(value) for key, value in values.items() if math.isfinite(value)}


@dataclass
class LogRows:
    """What of a run no row of the log holds yet."""

    _measured: int = -1
    _read: int = -1
    """Steps of the measurement and of the reading that were told last."""

    @property
    def begun(self) -> bool:
        """Whether a row was asked for that had something to tell."""
        return (self._measured, self._read) != (-1, -1)

    def row(self, last: Measurement | None, readings: Sequence[SpectralReading], phase: Phase) -> dict[str, float]:
        """What is new since the last row: the latest reading of r, the latest measurement's summary."""
        reading = readings[-1] if readings else None
        row: dict[str, float] = {}
        if last is not None and last.step != self._measured:
            self._measured, row = last.step, summary(last)
        if reading is not None and reading.step != self._read:
            self._read = reading.step
            if last is None or last.step != reading.step:
                moved = {"topo/measured_step": row["topo/step"]} if row else {}
                row = {key: value for key, value in row.items() if key not in OF_READING} | moved
                row |= of_reading(reading, phase)
        return row

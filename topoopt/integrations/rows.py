"""What every tracker shows: eight headlines, the details behind them, the layers, and a table of layers at the end.

Headlines lie under `topo/`, the numbers behind them under `topo_details/`, layers under `topo_layers/<layer>/`: trackers make a
section of each. A value is written once, in the row of the step that it describes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from topoopt import critical
from topoopt.measurement import GroupMeasurement, Measurement, Phase, SpectralReading
from topoopt.verdict import stalled

STEP = "topo/step"
HEADLINES = (
    "topo/r_over_edge",
    "topo/phase",
    "topo/loss",
    "topo/lr",
    "topo/distortion",
    "topo/loops",
    "topo/silent",
    "topo/cost",
)
"""r in units of the edge of stability; the phase (0 constrained, 1 permissive, 2 simplification, 3 unknown); loss of the step's
batch; the largest rate as it was used; the largest upper over lower distortion of a layer (since the last measurement, or of
the step where points are not kept); loops (bars of degree 1) in all layers; share of silent units; share of wall time."""
DETAILS = "topo_details/"
LAYERS = "topo_layers/"
REMEMBERED = 64
"""Steps whose values are remembered, so that late homology adds to them what is new."""
SMALLEST_LOOP = 4
"""Points of the smallest loop in a Vietoris-Rips filtration."""
KEPT = 10_000
"""Readings that tell whether anything moves, as in the run itself."""
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


@dataclass
class Rows:
    """Turns readings and measurements into rows: what of a step was not written yet."""

    phase: Phase = Phase.UNKNOWN
    """Of the latest row."""
    _written: OrderedDict[int, dict[str, float]] = field(default_factory=OrderedDict)
    _readings: list[SpectralReading] = field(default_factory=list)

    def row(self, seen: Measurement | SpectralReading) -> dict[str, float]:
        """Return the scalars to write, `topo/step` always among them; no more than that when nothing is new."""
        scalars = self._of_reading(seen) if isinstance(seen, SpectralReading) else self._of_measurement(seen)
        known = self._written.setdefault(seen.step, {})
        new = {key: float(value) for key, value in scalars.items() if not math.isnan(value) and known.get(key) != value}
        known |= new
        while len(self._written) > REMEMBERED:
            self._written.popitem(last=False)
        return {STEP: float(seen.step)} | new

    def _of_reading(self, reading: SpectralReading) -> dict[str, float]:
        self._readings.append(reading)
        if len(self._readings) > KEPT:
            del self._readings[1 : KEPT // 2 : 2]
        self.phase = critical.assess(reading, stalled=stalled(self._readings), previous=self.phase).phase
        return _reading(reading) | {"topo/phase": _number(self.phase)}

    def _of_measurement(self, measurement: Measurement) -> dict[str, float]:
        if measurement.step >= max(self._written, default=0):  # not of an earlier one that homology has completed
            self.phase = measurement.phase
        flat = measurement.scalars()
        own = measurement.scalars(layers=False)
        layers = {LAYERS + key.removeprefix("topo/"): value for key, value in flat.items() if key not in own}
        behind = (
            "r_pair",
            "r_field",
            "seconds",
            "skipped",
            *(key for key in _names(own) if key.startswith("eta_star")),
        )
        details = {DETAILS + name: own[f"topo/{name}"] for name in behind if f"topo/{name}" in own}
        neurons = {
            "topo/phase": _number(measurement.phase),
            "topo/distortion": _distortion(measurement),
            "topo/loops": _loops(measurement),
            "topo/cost": measurement.share,
        }
        return _reading(measurement.spectral) | neurons | details | layers


def _names(scalars: dict[str, float]) -> list[str]:
    return [key.removeprefix("topo/") for key in scalars]


def _number(phase: Phase) -> float:
    return float(list(Phase).index(phase))


def _reading(reading: SpectralReading) -> dict[str, float]:
    edge = reading.edge or math.nan
    return {
        "topo/r_over_edge": math.nan if reading.warming else reading.r / edge,
        "topo/loss": reading.loss,
        "topo/lr": max(reading.lr, default=math.nan) * reading.scale,
        "topo/silent": reading.silent,
        f"{DETAILS}r": reading.r,
        f"{DETAILS}edge": edge,
        f"{DETAILS}lr_scale": reading.scale,
        f"{DETAILS}grad_norm": reading.grad_norm,
        f"{DETAILS}update_ratio": reading.update_ratio,
        f"{DETAILS}clipped": reading.clipped,
    }


def _distortion(measurement: Measurement) -> float:
    """Largest upper over lower distortion of a layer; NaN without layers."""
    pairs = [
        group.distortion if math.isnan(group.distortion_window[0]) else group.distortion_window
        for group in measurement.groups.values()
    ]
    return max((upper / lower if lower > 0 else math.inf for lower, upper in pairs), default=math.nan)


def _loops(measurement: Measurement) -> float:
    """Bars of degree 1 in all layers; NaN until every layer's homology of this very step is there.

    Fewer than four points make no loop, so that no layer as small as that is waited for.
    """
    groups = [group for group in measurement.groups.values() if group.n >= SMALLEST_LOOP]
    if not groups or any(g.pending or g.diagrams_step != measurement.step or len(g.diagrams) < 2 for g in groups):
        return math.nan
    return float(sum(len(group.diagrams[1]) for group in groups))


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

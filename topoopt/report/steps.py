"""What a run knows of each step that was looked at: readings and measurements put together, for pictures over the steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from topoopt.measurement import Measurement, SpectralReading
from topoopt.report.page.values import number, numbers


@dataclass(frozen=True)
class Step:
    """One step; None where a value is unknown."""

    step: int
    r: Any
    """Spectral proximity: a pairwise estimate is a lower bound, and is `r_pair`."""
    r_pair: float | int | None
    edge: Any
    loss: Any
    scale: Any
    """The factor on the rates."""
    lr: tuple[Any, ...]
    """The user's rate of each parameter group."""
    warming: bool
    """r is of a preconditioner that is warming up, and of no phase."""


def by_step(measurements: Iterable[Measurement], readings: Iterable[SpectralReading]) -> list[Step]:
    """Return the steps in order; of a step that was read and measured, what the measurement says."""
    found = {reading.step: _read(reading) for reading in readings}
    for m in measurements:
        gains = [gain for gain in numbers(group.gain for group in m.groups.values()) if gain is not None]
        one = found.get(m.step) or _read(m.spectral)
        known = m.estimator == "spectral" and number(m.proximity) is not None
        found[m.step] = replace(
            one,
            step=m.step,
            r=m.proximity if known else m.spectral.r,
            r_pair=max(gains, default=None),
            scale=m.lr_scale,
            lr=m.lr,
        )
    return [found[step] for step in sorted(found)]


def phase_of(reading: SpectralReading) -> str:
    """The phase that a reading alone tells, without the hysteresis of a measurement's; "past 1" where no edge is known."""
    r, edge = number(reading.r), number(reading.edge)
    if r is None or reading.warming:
        return "warming up" if reading.warming else "unknown"
    if r < 1:
        return "constrained"
    return "past 1" if edge is None else "permissive" if r < edge else "simplification"


def _read(reading: SpectralReading) -> Step:
    lr = reading.lr if isinstance(reading.lr, tuple | list) else ()
    return Step(
        reading.step, reading.r, None, reading.edge, reading.loss, reading.scale, tuple(lr), bool(reading.warming)
    )

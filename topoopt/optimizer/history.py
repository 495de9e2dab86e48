"""What a run has found so far, and how the sinks are told of it."""

from __future__ import annotations

import math

from topoopt import critical
from topoopt.measurement import Assessment, Measurement, Phase, SpectralReading
from topoopt.optimizer.faults import Faults
from topoopt.optimizer.sinks import Sinks
from topoopt.summary import Run
from topoopt.verdict import Verdict, judge, stalled

KEPT = 10_000
"""Readings that are held on to; of a longer run the earliest are thinned out."""
RECENT = 50
"""Readings of which it is told whether anything moves."""


class History:
    """The readings and the last measurement of a run, where they stand, and what they say in words.

    Args:
        about: which run it is.
        estimator: as in `TopoConfig`.
        faults: where sinks that fail are noted.
    """

    def __init__(self, about: Run, estimator: str, faults: Faults) -> None:
        self.about = about
        self.sinks = Sinks(faults)
        self.last: Measurement | None = None
        self.latest: Assessment | None = None
        """Of the latest reading, or of the measurement since."""
        self._estimator = estimator
        self._readings: list[SpectralReading] = []
        self._told: Verdict | None = None

    @property
    def readings(self) -> tuple[SpectralReading, ...]:
        """Every reading of r so far."""
        return tuple(self._readings)

    @property
    def phase(self) -> Phase:
        """Phase at the latest reading."""
        return Phase.UNKNOWN if self.latest is None else self.latest.phase

    @property
    def proximity(self) -> float:
        """R at the latest reading."""
        return math.nan if self.latest is None else self.latest.proximity

    @property
    def eta_star(self) -> tuple[float, ...]:
        """eta* at the latest reading."""
        return () if self.latest is None else self.latest.eta_star

    @property
    def verdict(self) -> Verdict:
        """What the readings so far say."""
        return judge(self._readings, total_steps=self.about.total_steps)

    def stand(self, reading: SpectralReading, r_pair: float = math.nan) -> Assessment:
        """Where a step stands, by the latest reading or one that is no part of the history."""
        recent = self._readings[-RECENT:]
        still = stalled(recent if reading in recent[-1:] else [*recent, reading])
        self.latest = critical.assess(
            reading, r_pair=r_pair, estimator=self._estimator, stalled=still, previous=self.phase
        )
        return self.latest

    def read(self, reading: SpectralReading) -> None:
        """Take a reading in, of a step as it was taken, and tell of it."""
        self._readings.append(reading)
        if len(self._readings) > KEPT:
            del self._readings[1 : KEPT // 2 : 2]
        self.stand(reading)
        self.sinks.tell("reading", reading)
        if not self.sinks.hear("verdict"):
            return  # it is judged from all readings: only where somebody listens
        now = self.verdict
        if self._told is None or now.state != self._told.state:
            self._told = now
            self.sinks.tell("verdict", reading.step, now)

    def measured(self, measurement: Measurement) -> None:
        """Take a measurement in, and tell of it."""
        self.last = measurement
        self.sinks(measurement)

    def late(self, measurement: Measurement) -> None:
        """An earlier measurement, which homology has completed since."""
        if self.last is not None and self.last.step == measurement.step:
            self.last = measurement
        self.sinks.tell("late", measurement)

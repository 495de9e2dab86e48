"""From readings to a verdict: evidence, rule, words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from topoopt import markup
from topoopt.measurement import GroupMeasurement, SpectralReading
from topoopt.verdict import rule, words
from topoopt.verdict.evidence import Evidence, gather
from topoopt.verdict.gauge import Gauge, gauge

STATES = ("too low", "right", "too high", "at the edge", "collapsed", "not enough readings", "lower bound only")
"""What a `Verdict` may say."""


@dataclass(frozen=True)
class Verdict:
    """What a run's readings say of its learning rate, in three sentences with their evidence."""

    state: str
    """One of `STATES`."""
    happened: str
    """What happened, with the evidence."""
    advice: str
    """What to try, with a number where one is known."""
    unknown: str
    """What is not known."""
    ratio: float | None = None
    """Median r/e of the readings that were judged; None where r or the edge is not known, and in records before 0.2."""
    band: tuple[float, float] | None = None
    """The band of good rates that it was held against, (low, high) in units of r/e; None where there was none."""

    @property
    def lines(self) -> tuple[str, str, str]:
        """The three lines that every surface shows."""
        return self.happened, self.advice, self.unknown

    @property
    def plain(self) -> dict[str, Any]:
        """As JSON values: the state, the lines, `ratio` and `band`."""
        return {"state": self.state, "lines": list(self.lines), "ratio": self.ratio, "band": self.band}

    def __repr__(self) -> str:
        return f"<Verdict {self.state}: {self.advice}>"

    def _repr_html_(self) -> str:
        """For notebooks."""
        return markup.verdict(self.state, self.lines, self.gauge)

    def __str__(self) -> str:
        return "\n".join(self.lines)

    @property
    def gauge(self) -> Gauge | None:
        """r/e on a scale with the band and the edge; None where no reading supports one."""
        return gauge(self.state, self.ratio, self.band)


def judge(
    readings: Sequence[SpectralReading],
    *,
    total_steps: int | None = None,
    groups: Mapping[str, GroupMeasurement] | None = None,
) -> Verdict:
    """Say what a run's readings mean for its learning rate: a pure function of plain numbers.

    Args:
        readings: all readings of the run so far, of any spacing; at least five at its full rate are needed. The rule was
            fitted on one every five steps from 10 to 100; of longer runs the first quarter counts, or the first five.
        total_steps: length of the whole run, where it is known.
        groups: the neuron groups as last measured; they add r_pair, where r itself is not known, and the most silent layer.
    """
    evidence = gather(readings, total_steps)
    state, why = _state(evidence)
    return Verdict(
        state,
        words.happened(state, why, evidence, groups or {}),
        words.advice(state, why, evidence),
        words.unknown(state, evidence),
        *_gauge(evidence),
    )


def _gauge(evidence: Evidence) -> tuple[float | None, tuple[float, float] | None]:
    """Median r/e, and the band that it is held against."""
    if not evidence.window or not evidence.edge:
        return None, None
    band = rule.band(evidence) if len(evidence.window) >= rule.ENOUGH else None
    return evidence.r / evidence.edge, band


def _state(evidence: Evidence) -> tuple[str, str]:
    """The state, and what else but r it rests on."""
    if why := rule.collapsed(evidence):
        return "collapsed", why
    if why := rule.dying(evidence):
        late, baseline = evidence.late_loss, evidence.baseline
        return ("collapsed" if late > rule.STUCK * baseline else "too high"), why
    if evidence.readings and not any(math.isfinite(reading.r) for reading in evidence.readings):
        return "lower bound only", next((r.reason for r in reversed(evidence.readings) if r.reason), "")
    if len(evidence.window) < rule.ENOUGH:
        return "not enough readings", ""
    if evidence.edge is not None and rule.at_edge(evidence):
        return "at the edge", ""
    if why := rule.strained(evidence):
        return "too high", why
    if evidence.edge is None:  # such a rule's r in the thresholds' units is r or more
        return ("too high" if evidence.r > rule.HIGH else "lower bound only"), ""
    if evidence.level > rule.HIGH:
        return "too high", ""
    return ("too low" if evidence.level < rule.low(evidence) and not rule.solved(evidence) else "right"), ""

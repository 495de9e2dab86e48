"""The course of a simplification, dose and response: written into a decision's events, and read from there for plots.

`looks_in(decision.events)` of each of a record's decisions gives them: `Look.dose` against `Look.shares`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_LOOK = re.compile(r"look: rate ([\d.e+-]+) e/K, loss ([\d.e+-]+|nan|inf)((?:, \w+ [\d.e+-]+(?: of [\d.e+-]+)?)*)")


@dataclass(frozen=True)
class Look:
    """One look at the neurons, at the end of a dwell."""

    dose: float
    """The rate of this dwell in units of e/K, K as it was at the start."""
    loss: float
    """Median loss of the dwell; NaN when it was not seen."""
    left: dict[str, float]
    """Measure -> what is left of it."""
    start: dict[str, float] = field(default_factory=dict)
    """Measure -> what the neurons had when the ramp began; without those that were not known then."""

    @property
    def shares(self) -> dict[str, float]:
        """Measure -> what is left of it as a share of the start's, where the start had any."""
        return {name: value / self.start[name] for name, value in self.left.items() if self.start.get(name, 0.0) > 0}


def look_event(look: Look) -> str:
    """The look as one line of `Decision.events`."""
    of = {name: f" of {value:.6g}" for name, value in look.start.items()}
    values = "".join(f", {name} {value:.6g}{of.get(name, '')}" for name, value in look.left.items())
    return f"look: rate {look.dose:.6g} e/K, loss {look.loss:.6g}{values}"


def looks_in(events: Iterable[str]) -> list[Look]:
    """Every look among a run's events, in their order; other events are passed over."""
    looks = []
    for event in events:
        found = _LOOK.fullmatch(event)
        if found:
            parts = [part.split(" ") for part in found[3].split(", ")[1:]]
            left = {part[0]: float(part[1]) for part in parts}
            start = {part[0]: float(part[3]) for part in parts if len(part) > 2}
            looks.append(Look(float(found[1]), float(found[2]), left, start))
    return looks

"""The course of a simplification, dose and response: written into a decision's events, and read from there for plots."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_LOOK = re.compile(r"look: rate ([\d.e+-]+) e/K, loss ([\d.e+-]+|nan|inf)((?:, \w+ [\d.e+-]+)*)")


@dataclass(frozen=True)
class Look:
    """One look at the neurons, at the end of a dwell."""

    dose: float
    """The rate of this dwell in units of e/K, K as it was at the start."""
    loss: float
    """Median loss of the dwell; NaN when it was not seen."""
    left: dict[str, float]
    """Measure -> what is left of it."""


def look_event(look: Look) -> str:
    """The look as one line of `Decision.events`."""
    values = "".join(f", {name} {value:.6g}" for name, value in look.left.items())
    return f"look: rate {look.dose:.6g} e/K, loss {look.loss:.6g}{values}"


def looks_in(events: Iterable[str]) -> list[Look]:
    """Every look among a run's events, in their order; other events are passed over."""
    looks = []
    for event in events:
        found = _LOOK.fullmatch(event)
        if found:
            pairs = (part.split(" ") for part in found[3].split(", ")[1:])
            looks.append(Look(float(found[1]), float(found[2]), {name: float(value) for name, value in pairs}))
    return looks

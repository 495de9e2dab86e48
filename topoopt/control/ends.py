"""The ends of simplifying: what was asked for, what the neurons had at the start, and what is left."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from topoopt.control.policy import Reading

Values = dict[str, float]
"""End -> value of its measure."""


@dataclass(frozen=True)
class End:
    """One measure of simplicity."""

    words: str
    value: Callable[[Reading], float]
    rises: bool = False
    """Whether simplifying raises it: a count of neurons that no longer matter."""
    relative: bool = False
    """Whether what is asked for is a share of what the start had."""
    margin: float = 1.0
    """The end is passed by this factor before the hand-over: what is simplified can grow back a little in the repair."""
    homology: bool = False
    """Whether it needs persistence of degree 1."""


def _count(value: int) -> float:
    return math.nan if value < 0 else float(value)


ENDS: dict[str, End] = {
    "persistence": End("total persistence", lambda r: r.total_persistence, relative=True, margin=0.5, homology=True),
    "largest_loop": End("largest loop", lambda r: r.largest_loop, margin=0.5, homology=True),
    "log_persistence": End("log-persistence", lambda r: r.log_persistence, relative=True, margin=0.9, homology=True),
    "effective_rank": End("effective rank", lambda r: r.effective_rank, relative=True, margin=0.95),
    "distinct": End("distinct neurons", lambda r: _count(r.distinct)),
    "twins": End("twins", lambda r: float(r.twins), rises=True),
    "silent": End("silent units", lambda r: _count(r.silent), rises=True),
    "vanishing": End("vanishing neurons", lambda r: float(r.vanishing), rises=True),
}


def seen(ends: Mapping[str, float], reading: Reading, since: int) -> Values:
    """Measures of the neurons as they stood at `since` or later; those that are not known are left out."""
    values: Values = {}
    for name in ends:
        step = reading.topology_step if ENDS[name].homology else reading.measured_step
        value = ENDS[name].value(reading)
        if step >= since and not math.isnan(value):
            values[name] = value
    return values


def wanted(name: str, asked: float, origin: Values, neurons: int) -> float:
    """What the measure must come to; a share of the neurons where a count is given as one. NaN while unknown."""
    end = ENDS[name]
    if end.relative:
        return asked * origin.get(name, math.nan)
    if name == "largest_loop" or asked >= 1:
        return asked
    return asked * (neurons or math.nan)


def reached(ends: Mapping[str, float], origin: Values, now: Values, neurons: int, *, kept: bool = False) -> str:
    """Say which end is reached, "" for none; with `kept` an end that was passed may have come back up to itself."""
    for name, value in now.items():
        end, goal = ENDS[name], wanted(name, ends[name], origin, neurons)
        limit = goal if kept or end.rises else goal * end.margin
        if value >= limit if end.rises else value <= limit:
            return f"{end.words} {'rose' if end.rises else 'fell'} to {value:.3g} (asked for: {goal:.3g})"
    return ""


def distance(ends: Mapping[str, float], origin: Values, now: Values, neurons: int) -> float:
    """How far the nearest end is: its measure over what is asked for, the other way round for counts that rise; 1 is there."""
    far = []
    for name, value in now.items():
        goal = wanted(name, ends[name], origin, neurons)
        far.append(goal / max(value, 0.5) if ENDS[name].rises else value / goal if goal > 0 else math.nan)
    return min((one for one in far if not math.isnan(one)), default=math.nan)


def further(before: Values, now: Values) -> bool:
    """Whether any measure has moved away from its end since."""
    moved = {name: value - before.get(name, value) for name, value in now.items()}
    return any(by < 0 if ENDS[name].rises else by > 0 for name, by in moved.items())


def left(ends: Mapping[str, float], origin: Values, now: Values, neurons: int) -> str:
    """What is left of each measure, in words."""
    parts = []
    for name in ends:
        goal = wanted(name, ends[name], origin, neurons)
        value = f"{now[name]:.3g}" if name in now else "not known"
        parts.append(f"{ENDS[name].words} {value}" + ("" if math.isnan(goal) else f" (asked for: {goal:.3g})"))
    return ", ".join(parts)

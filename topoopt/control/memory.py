"""The memory of `Simplify` on its ramp, and how it is written. Pure functions.

`rate` in force and `unit` = e/K of the start; `until`, the step at which the dwell is over, and `ask`, from which on its look
is wanted; `losses` of the dwell, `first_loss` and the `guard` on it; `squares`, where the rule divides by averages of them;
`calm_rate` of the remembered weights, what they have (`kept`) and how `far` from the end they are; `level` and `left`, loss and
measures of the last dwell; `lowest`, the least loss of a calm one; `broke` and `lost_at`, the rate that lost the run, the first
forgiven bit by bit; `ends` and `origin`, what is asked for and what the start had; and how often the run was lost, waited, was
within its end, stood at the ceiling (`top`), saw nothing (`blind`), moved nothing (`still`), stayed calm beyond the edge, and
was resumed.
"""

from __future__ import annotations

import math

from topoopt.control import ends as measures
from topoopt.control.policy import Reading, State
from topoopt.control.tracking import floats

COUNTS = ("lost", "waited", "within", "top", "blind", "still", "beyond")


def number(state: State, key: str) -> float:
    """A number out of the memory; 0 where there is none."""
    value = state.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def count(state: State, key: str) -> int:
    """A count out of the memory."""
    return int(number(state, key))


def values(state: State, key: str) -> measures.Values:
    """Measure -> value out of the memory; empty where there are none."""
    found = state.get(key)
    return {str(name): float(value) for name, value in found.items()} if isinstance(found, dict) else {}


def begin(reading: Reading, state: State, dwell: int) -> State:
    """The memory at the first dwell's beginning."""
    return new_dwell(reading, {**state, "phase": "ramp", "curvatures": [], **dict.fromkeys(COUNTS, 0)}, dwell)


def new_dwell(reading: Reading, state: State, dwell: int) -> State:
    """The memory at the beginning of a dwell."""
    return {**state, "until": reading.step + dwell, "ask": reading.step + dwell, "losses": []}


def note_loss(reading: Reading, state: State) -> State:
    """Keep the loss of this step, and the first of all."""
    began = reading.step if state["began"] is None else state["began"]
    state = {**state, "began": began, "watched": reading.step}
    if not math.isfinite(reading.loss):
        return state
    first = state["first_loss"] if isinstance(state["first_loss"], float) else reading.loss
    return {**state, "losses": [*floats(state["losses"]), reading.loss][-20:], "first_loss": first}


def note_origin(reading: Reading, state: State, *, chosen: bool) -> State:
    """Keep what the neurons had when they were first seen; ends of nobody's choice that hold already are dropped."""
    wanted, origin = values(state, "ends"), values(state, "origin")
    new = {name: value for name, value in measures.seen(wanted, reading, 0).items() if name not in origin}
    if not new:
        return state
    if not chosen:
        met = {name for name in new if measures.reached({name: wanted[name]}, new, {name: new[name]}, reading.neurons)}
        wanted = {name: value for name, value in wanted.items() if name not in met}
        new = {name: value for name, value in new.items() if name not in met}
    return {**state, "origin": {**origin, **new}, "ends": wanted}


def what_is_left(reading: Reading, state: State, now: measures.Values | None = None) -> str:
    """The measures of now against what was asked for, in words."""
    wanted = values(state, "ends")
    now = {**values(state, "left"), **measures.seen(wanted, reading, 0)} if now is None else now
    return measures.left(wanted, values(state, "origin"), now, reading.neurons) or "no measure was asked for"

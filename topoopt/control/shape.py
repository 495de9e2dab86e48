"""A watch over the shape that neurons lie on: how much of its largest loop is left, and the brake on the rate that follows."""

from __future__ import annotations

import math

from topoopt.control.policy import Reading, State

SHAPE = 0.15
"""A largest loop of at least this share of its cloud's diameter is a shape; those of a layer without one are about 0.05."""
FEWEST, FEW = 32, 1024
"""Neurons that a shape takes, and up to which looking at them again and again is cheap."""
FREE = 0.8
"""Share of the loop down to which nothing is done."""
ASKS = 2
"""Looks that may show no loop before none is looked for."""
MOVED = 0.02
"""A share that moved by this since the last look is looked at again at the next step."""
LONGEST = 50
"""Most steps between looks."""


def unseen() -> State:
    """The memory before anything was seen."""
    return {"loop": None, "share": 1.0, "seen": -1, "wait": 1, "ask": None, "asks": 0}


def note(reading: Reading, state: State) -> State:
    """The memory after a reading: the loop at the start, what is left of it, and the step of the next look (None: none)."""
    if not reading.fresh:
        return state
    known = reading.topology_step >= 0 and not math.isnan(reading.largest_loop)
    if not known:
        asks, few = int(_number(state, "asks")), FEWEST <= reading.neurons <= FEW
        again = few and state["loop"] is None and asks < ASKS
        return {**state, "ask": reading.step + 1 if again else None, "asks": asks + few}
    if state["loop"] is None:
        state = {**state, "loop": reading.largest_loop}
    loop, share, seen = _number(state, "loop"), _number(state, "share"), _number(state, "seen")
    if loop < SHAPE or not FEWEST <= reading.neurons <= FEW:
        return {**state, "ask": None}
    if reading.topology_step <= seen:
        return state
    now = reading.largest_loop / loop
    moved = abs(now - share) > MOVED
    wait = 1 if moved else min(2 * int(_number(state, "wait")), LONGEST)
    return {**state, "share": now, "seen": reading.topology_step, "wait": wait, "ask": reading.step + wait}


def wanted(step: int, state: State) -> bool:
    """Whether the neurons are to be looked at before this step."""
    return state["ask"] is not None and step >= _number(state, "ask")


def brake(keep: float, state: State) -> float:
    """Factor on the rate: 1 while most of the loop is there, to 0 as what is left comes down to `keep`."""
    free = max(FREE, (1 + keep) / 2)
    return min(1.0, max(0.0, (_number(state, "share") - keep) / (free - keep)))


def _number(state: State, key: str) -> float:
    value = state[key]
    return float(value) if isinstance(value, int | float) else math.nan

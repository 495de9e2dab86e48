"""After the ramp: another policy takes over at the rate that was reached, in the shape of the user's schedule."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from topoopt.control import ends as measures
from topoopt.control.memory import count, number, values
from topoopt.control.policy import Reading, State
from topoopt.control.tracking import bounded
from topoopt.measurement import Decision

if TYPE_CHECKING:
    from topoopt.control.simplify import Simplify

CHECK = 2
"""Dwells after the hand-over until the neurons are looked at again; each further look waits twice as long."""
RESUMED = 2
"""Times that the ramp is taken up again because what was simplified had grown back."""
LATE = 0.75
"""Share of a run of known length after which it is not taken up again."""


def hand_over(
    policy: Simplify, reading: Reading, state: State, *events: str, reached: bool = False
) -> tuple[Decision, State]:
    """Let `then` begin, and say why.

    A policy that steers takes the ramp's last rate for the user's own, `gain` times it, from here on; one that does not
    gives the user's own back. Where an end was `reached`, the neurons are looked at now and then: what grew back is
    simplified again.
    """
    rate = state["rate"]
    gain = rate / reading.lr if isinstance(rate, float) and policy.then.steers and reading.lr > 0 else 1.0
    kept = {key: state.get(key) for key in ("ends", "origin", "first_loss", "began", "resumed")}
    wait = CHECK * policy.dwell
    check = reading.step + wait if reached and policy.then.steers else None
    begun: State = {**kept, "phase": "then", "inner": policy.then.start(), "gain": gain, "check": check, "wait": wait}
    decision, after = decide(policy, reading, begun)
    return replace(decision, events=(*events, f"hand-over to {policy.then.name}", *decision.events)), after


def decide(policy: Simplify, reading: Reading, state: State) -> tuple[Decision, State]:
    """What `then` says of a user's rate `gain` times what it is."""
    if reading.fresh and state["check"] is not None and reading.step >= number(state, "check"):
        state, grown = _look(policy, reading, state)
        if grown:
            decision, state = policy.decide(reading, state)
            return replace(decision, events=(grown, *decision.events)), state
    gain, inner = number(state, "gain"), state["inner"]
    assert isinstance(inner, dict)
    moved = replace(
        reading, lr=gain * reading.lr, base_lr=gain * reading.base_lr, r=gain * reading.r, scale=reading.scale / gain
    )
    decision, inner = policy.then.decide(moved, inner)
    return replace(decision, scale=bounded(gain * decision.scale)), {**state, "inner": inner}


def _look(policy: Simplify, reading: Reading, state: State) -> tuple[State, str]:
    """See whether the end still holds; returns the memory, of a new ramp if it does not, and what must be said of that."""
    ends, check = values(state, "ends"), count(state, "check")
    now = measures.seen(ends, reading, check - policy.dwell)
    if not now:  # not seen yet: wanted again a little later
        return {**state, "check": reading.step + max(1, policy.dwell // 5)}, ""
    resumed, total = count(state, "resumed"), reading.total_steps
    again = {**state, "check": reading.step + 2 * count(state, "wait"), "wait": 2 * count(state, "wait")}
    if measures.reached(ends, values(state, "origin"), now, reading.neurons, kept=True):
        return again, ""
    left = measures.left(ends, values(state, "origin"), now, reading.neurons)
    if resumed >= RESUMED or (total is not None and reading.step > LATE * total):
        return {**again, "check": None}, ""
    kept = {key: state[key] for key in ("ends", "origin", "first_loss", "began")}
    return {**policy.start(), **kept, "resumed": resumed + 1}, f"what was simplified has grown back ({left}): once more"

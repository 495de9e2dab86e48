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

CHECK, LONGEST = 2, 4
"""Dwells after the hand-over until the neurons are looked at again, and the most from then on, each wait twice the last."""
SLOWER, SLOWEST = 0.5, 0.1
"""Factors on the rate when what was simplified grows back, and when it has."""
RESUMED = 2
"""Times that the ramp is taken up again because what was simplified had grown back."""
LATE = 0.75
"""Share of a run of known length after which it is not taken up again."""


def hand_over(
    policy: Simplify, reading: Reading, state: State, *events: str, reached: bool = False
) -> tuple[Decision, State]:
    """Let `then` begin, and say why.

    A policy that steers takes the ramp's last rate for the user's own, `gain` times it, from here on; one that does not
    gives the user's own back. Where an end was `reached`, the weights are remembered and the neurons looked at now and
    then: while they grow back the rate is lowered; once they have the weights go back to those at which the end held, and
    the ramp is taken up again, twice at most and not late in the run, else the rate is a tenth from there on.
    """
    rate = state["rate"]
    gain = rate / reading.lr if isinstance(rate, float) and policy.then.steers and reading.lr > 0 else 1.0
    kept = {key: state.get(key) for key in ("ends", "origin", "left", "first_loss", "began", "resumed")}
    wait = CHECK * policy.dwell
    check = reading.step + wait if reached and policy.then.steers else None
    begun: State = {**kept, "phase": "then", "inner": policy.then.start(), "gain": gain, "check": check, "wait": wait}
    decision, after = decide(policy, reading, begun)
    decision = replace(decision, weights="keep") if check is not None and reading.snapshot else decision
    return replace(decision, events=(*events, f"hand-over to {policy.then.name}", *decision.events)), after


def decide(policy: Simplify, reading: Reading, state: State) -> tuple[Decision, State]:
    """What `then` says of a user's rate `gain` times what it is."""
    told, weights = "", ""
    if reading.fresh and state["check"] is not None and reading.step >= number(state, "check"):
        state, told, weights = _look(policy, reading, state)
        if state["phase"] != "then":
            decision, state = policy.decide(reading, state)
            return replace(decision, events=(told, *decision.events), weights=weights or decision.weights), state
    gain, inner = number(state, "gain"), state["inner"]
    assert isinstance(inner, dict)
    moved = replace(
        reading, lr=gain * reading.lr, base_lr=gain * reading.base_lr, r=gain * reading.r, scale=reading.scale / gain
    )
    decision, inner = policy.then.decide(moved, inner)
    events = (told, *decision.events) if told else decision.events
    decision = replace(decision, scale=bounded(gain * decision.scale), events=events, weights=weights)
    return decision, {**state, "inner": inner}


def _look(policy: Simplify, reading: Reading, state: State) -> tuple[State, str, str]:
    """See whether the end still holds; returns the memory, of a new ramp if need be, what must be said, and of the weights."""
    ends, origin = values(state, "ends"), values(state, "origin")
    now = measures.seen(ends, reading, count(state, "check") - policy.dwell)
    if not now:  # not seen yet: wanted again a little later
        return {**state, "check": reading.step + max(1, policy.dwell // 5)}, "", ""
    wait = min(2 * count(state, "wait"), LONGEST * policy.dwell)
    again: State = {**state, "check": reading.step + wait, "wait": wait, "left": now}
    if measures.reached(ends, origin, now, reading.neurons):
        return again, "", "keep" if reading.snapshot else ""
    slower: State = {**again, "gain": SLOWER * number(state, "gain")}
    left = measures.left(ends, origin, now, reading.neurons)
    if measures.reached(ends, origin, now, reading.neurons, kept=True):
        if not measures.further(values(state, "left"), now):
            return again, "", "keep" if reading.snapshot else ""
        return slower, f"what was simplified grows back ({left}): the rate is lowered", ""
    resumed, total = count(state, "resumed"), reading.total_steps
    if resumed < RESUMED and (total is None or reading.step <= LATE * total):
        kept = {key: state[key] for key in ("ends", "origin", "first_loss", "began")}
        start = {**policy.start(), **kept, "resumed": resumed + 1}
        return start, f"what was simplified has grown back ({left}): once more", "back" if reading.snapshot else ""
    if reading.snapshot:
        told = f"what was simplified has grown back ({left}): the weights go back to those at which it had not"
        return {**slower, "gain": SLOWEST * number(state, "gain")}, told, "back"
    return {**again, "check": None}, "", ""

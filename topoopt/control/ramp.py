"""The ramp of `Simplify`: dwell, look, raise, wait, go back. Pure functions of a reading and the policy's memory."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

from topoopt.control import ends as measures
from topoopt.control import repair
from topoopt.control.course import Look, look_event
from topoopt.control.memory import count, new_dwell, note_origin, number, values, what_is_left
from topoopt.control.policy import Reading, State
from topoopt.control.tracking import bounded, curvatures, edge_of, floats
from topoopt.measurement import Decision

if TYPE_CHECKING:
    from topoopt.control.simplify import Simplify

BACK = 1.5
"""A run that was lost goes on at the last calm rate divided by this; an excursion that stays, at its own rate."""
BEYOND = 1.5
"""Largest r, in units of e, that a raise may lead to by the last readings."""
MEMORY = 3
"""Readings, one a dwell, whose median curvature counts for that."""
FASTEST, FASTER = 2.0, 8.0
"""Largest raise after a dwell in which r had fallen below the edge, and after a loss that left a rule's squares large."""
WITHIN = 2
"""Looks in a row at which an end holds, be it by less than its margin, that count as its being reached."""
RECOVERED, REGAINED = 0.5, 0.75
"""An end counts once the loss is below the first share of the start's or, where losses do not go to 0, once the second share of
what it had fallen by, down to the lowest of a calm dwell, is regained: a network that is dead is simple, at the loss of chance."""
WAITS = 4
"""Dwells for which an excursion, or a loss above its start once the end is reached, is waited out."""
DEAD, FIXED = 1.2, 1e-4
"""A loss above the first times the start's, while no measure moves by the second share, is a dead run's."""
WORSE, GROWN = 1.05, 1.5
"""Distance from the end, over that of the remembered weights: up to which those of now are as good, from which on worse."""
STILL = 0.01
"""A dwell moved nothing when neither its loss nor any measure changed by this share."""
STRIDES = 4
"""A dwell that moved nothing doubles the stride of the next raise, in powers of `up`, this many times."""
BELOW, FORGIVE = 0.85, 1.07
"""A rate that lost the run is kept away from by the first; each calm dwell raises it by the second."""
NOTHING = 20
"""Dwells in a row that moved nothing before the ramp is given up."""
LOSSES = 10
"""Times that a run may be lost before the ramp is given up."""
TOP = 3
"""Dwells at the ceiling before the end is given up."""
REST = 0.1
"""Share of a run of known length that is kept for the repair."""

Events = tuple[str, ...]


def decide(policy: Simplify, reading: Reading, state: State) -> tuple[Decision, State]:
    """One step of the ramp."""
    high = state["first_loss"] is not None and reading.loss > number(state, "guard") * number(state, "first_loss")
    broken = not reading.finite or math.isinf(reading.loss)
    if broken or (high and reading.step >= number(state, "grace")):
        return _lost(policy, reading, state)
    stop = _run_out(policy, reading, state)
    if stop:
        return _stop(policy, reading, state, stop)
    until = count(state, "until")
    if reading.step < until:
        return _hold(policy, reading, state, "dwell")
    state = note_origin(reading, state, chosen=bool(policy.ends))
    wanted = values(state, "ends")
    now = measures.seen(wanted, reading, until - policy.dwell // 2)
    if wanted and not now and (reading.step < until + policy.dwell or not reading.snapshot):
        retry = {**state, "ask": reading.step + max(1, policy.dwell // 10)}
        note = "the dwell is over; the neurons have not been seen since it began"
        if reading.snapshot:
            return _hold(policy, reading, retry, "look", note)
        told = () if count(state, "blind") else (f"{note}, and nothing could be undone: the rate stays where it is",)
        return _hold(policy, reading, {**retry, "blind": 1}, "look", note, told)
    return _look(policy, reading, {**state, "curvatures": curvatures(reading, state, MEMORY)}, now)


def _look(policy: Simplify, reading: Reading, state: State, now: measures.Values) -> tuple[Decision, State]:
    """A dwell is over: hand over, wait or raise."""
    losses, first = floats(state["losses"]), number(state, "first_loss")
    level = median(losses[len(losses) // 2 :]) if losses else math.nan
    dose = number(state, "rate") / number(state, "unit")
    origin = values(state, "origin")
    events: Events = (look_event(Look(dose, level, now, {name: origin[name] for name in now if name in origin})),)
    ends = values(state, "ends")
    end, held = (measures.reached(ends, origin, now, reading.neurons, kept=kept) for kept in (False, True))
    state = {**state, "waited": count(state, "waited") + 1, "within": count(state, "within") + 1 if held else 0}
    end = end or (held if count(state, "within") >= WITHIN else "")
    if reading.snapshot and level > DEAD * first and _same(values(state, "left"), now, FIXED):
        return _lost(policy, reading, state, events, "dead: its neurons no longer move")
    back = _regained(state)
    high = (
        level if math.isnan(reading.loss) else max(level, reading.loss)
    )  # also one that has died in this dwell's last steps
    if end and not (high >= first or high > back):
        why = f"simplify ended: {end} at {dose:.3g} e/K"
        return repair.hand_over(policy, reading, {**state, "left": now}, *events, why, reached=True)
    if end and count(state, "waited") > WAITS:  # simple because it is dead: a loss that does not come back
        return _lost(policy, reading, state, events)
    if end:
        note = f"{end}; the loss {high:.4g} is to fall below {min(first, back):.4g}"
        if count(state, "waited") == 1:
            events = (*events, f"the end is seen, and does not count yet: {note}")
        return _hold(policy, reading, new_dwell(reading, {**state, "left": now}, policy.dwell), "wait", note, events)
    if level > policy.calm * first or (math.isnan(level) and state["first_loss"] is not None):
        state = {**state, "left": now}
        return _wait_out(policy, reading, state, level, events)
    return _raise(policy, reading, state, level, now, events)


def _lowest(state: State) -> float:
    """The lowest median loss of a calm dwell; 0, below which no loss of these is, before there was one."""
    lowest = state.get("lowest")
    return float(lowest) if isinstance(lowest, int | float) else 0.0


def _regained(state: State) -> float:
    """The loss below which an end counts."""
    first = number(state, "first_loss")
    return max(RECOVERED * first, first - REGAINED * (first - _lowest(state)))


def _wait_out(policy: Simplify, reading: Reading, state: State, level: float, events: Events) -> tuple[Decision, State]:
    """The loss is not calm: nothing is done; an excursion that stays is put out by the rate, at the weights it led to."""
    loss = f"loss {level:.4g}, {number(state, 'first_loss'):.4g} at the start"
    state = new_dwell(reading, state, policy.dwell)
    if count(state, "waited") <= WAITS:
        return _hold(policy, reading, state, "wait", f"an excursion is waited out: {loss}", events)
    rate = number(state, "rate") / BACK
    dose = rate / number(state, "unit")
    event = f"an excursion did not end in {WAITS} dwells ({loss}): the rate goes to {dose:.3g} e/K"
    return _hold(policy, reading, {**state, "rate": rate, "waited": 0}, "guard", event, (*events, event))


def _raise(
    policy: Simplify, reading: Reading, state: State, level: float, now: measures.Values, events: Events
) -> tuple[Decision, State]:
    """The loss is calm and the end is not reached: remember the weights, and raise the rate."""
    rate = number(state, "rate")
    state = _counted(reading, state, level, now)
    limits, unit = _limits(policy, reading, state)
    rule = min(limits, key=lambda name: limits[name])
    top = count(state, "top") + 1 if rule == "ceiling" and limits[rule] <= rate else 0
    if top >= TOP:
        return repair.hand_over(policy, reading, state, *events, _out_of_reach(policy, reading, state, now))
    if count(state, "still") >= NOTHING:
        why = f"simplify ended: nothing moves, at no rate; {what_is_left(reading, state, now)}"
        return repair.hand_over(policy, reading, state, *events, why)
    if count(state, "blind") == 1:
        events = (*events, "the neurons could not be looked at after this dwell: the rate is raised without knowing")
    if unit > number(state, "unit") and max(count(state, "still") - 1, count(state, "beyond") - 2) == 0:
        events = (*events, "the edge that was read is not where this run moves: it is looked for further up")
    weights, far = _what_of_the_weights(reading, state, level, now)
    lowest = level if state.get("lowest") is None else min(level, _lowest(state))
    calm: State = {"level": level, "left": now, "far": far, "lowest": None if math.isnan(lowest) else lowest}
    if weights == "keep":
        calm |= {"kept": now}
    if weights != "back":
        calm |= {"calm_rate": rate} if weights or not reading.snapshot else {}
    else:
        events = (
            *events,
            "what was simplified has grown back in a calm dwell: the weights go back to the simplest so far",
        )
    broke = number(state, "broke") * FORGIVE  # curvature gives way with time: what was too much may not be so later
    after = {**state, **calm, "broke": broke, "rate": limits[rule], "unit": unit, "top": top, "waited": 0}
    return _hold(policy, reading, new_dwell(reading, after, policy.dwell), rule, "", events, weights)


def _what_of_the_weights(
    reading: Reading, state: State, level: float, now: measures.Values
) -> tuple[str, float | None]:
    """Whether those of now are the simplest calm ones, and how far the simplest are from the end (None: nobody knows).

    Weights whose loss is above the start's may be on their way up.
    """
    best = number(state, "far") if isinstance(state.get("far"), float) else None
    if not reading.snapshot or max(level, reading.loss) > number(state, "first_loss"):
        return "", best
    here = measures.distance(values(state, "ends"), values(state, "origin"), now, reading.neurons)
    if math.isnan(here):
        return "keep", best
    if best is None or here <= WORSE * best:
        return "keep", here if best is None else min(here, best)
    return ("back" if here > GROWN * best else ""), best


def _counted(reading: Reading, state: State, level: float, now: measures.Values) -> State:
    """How many dwells in a row saw nothing, moved nothing, and stayed calm where r is beyond the edge."""
    known, (edge, _) = floats(state["curvatures"]), edge_of(reading)
    blind = bool(values(state, "ends")) and not now
    beyond = bool(known) and number(state, "rate") * known[-1] > BEYOND * edge
    still = not count(state, "lost") and _moved_nothing(state, level, now)  # what was lost once did move
    met = {"blind": blind, "still": still, "beyond": beyond}
    return {**state, **{name: count(state, name) + 1 if met[name] else 0 for name in met}}


def _limits(policy: Simplify, reading: Reading, state: State) -> tuple[dict[str, float], float]:
    """The rates that limit the raise, and the unit e/K.

    Where nothing moves, or all is calm beyond the edge dwell after dwell, what was read does not limit this run (a
    coordinate that never moves under Adam, a plateau): then the unit is raised along.
    """
    rate, unit, (edge, _) = number(state, "rate"), number(state, "unit"), edge_of(reading)
    still, beyond, known = count(state, "still"), count(state, "beyond"), floats(state["curvatures"])
    stride = 2 ** min(max(still, int(beyond > 1)), STRIDES)
    raised = policy.up**stride * rate
    if still or beyond > 1:
        return {"raise": raised}, unit * raised / rate
    damped = count(state, "lost") > 0 and count(state, "squares") > 0
    edge_now = max(unit, edge / median(known)) if damped and known else unit
    limits = {"raise": raised, "ceiling": policy.ceiling * edge_now}
    if count(state, "lost") and not damped:
        limits["lost"] = max(rate, BELOW * number(state, "broke"))
    if known and not beyond:
        near = edge / median(known)
        limits |= {
            "raise": min(max(raised, policy.begin_at(reading.rule) * near), (FASTER if damped else FASTEST) * rate),
            "edge": max(BEYOND * near, rate),
        }
    return limits, unit


def _moved_nothing(state: State, level: float, now: measures.Values) -> bool:
    before, last = values(state, "left"), number(state, "level")
    return bool(last) and abs(level - last) <= STILL * abs(last) and _same(before, now)


def _same(before: measures.Values, now: measures.Values, by: float = STILL) -> bool:
    """Whether every measure, of at least one, is what it was, to a share of it."""
    same = bool(now) and set(before) == set(now)
    return same and all(abs(now[name] - before[name]) <= by * abs(before[name]) for name in now)


def _lost(
    policy: Simplify, reading: Reading, state: State, events: Events = (), why: str = "being lost"
) -> tuple[Decision, State]:
    """Back to the last calm weights, at two thirds of their rate; without a snapshot at two thirds of the rate alone."""
    calm, lost = number(state, "calm_rate"), count(state, "lost") + 1
    rate = calm / BACK if reading.snapshot else min(calm, number(state, "rate")) / BACK
    dose = rate / number(state, "unit")
    loss = f"{reading.loss:.4g}, {number(state, 'first_loss'):.4g} at the start" if reading.finite else "not finite"
    event = f"the run was {why} (loss {loss}): the rate goes to {dose:.3g} e/K"
    event += (
        ", the weights to those of the last calm dwell"
        if reading.snapshot
        else "; the weights cannot be taken back (no snapshot is allowed: TopoConfig.snapshot)"
    )
    after = {
        **state,
        "lost": lost,
        "broke": number(state, "rate"),
        "lost_at": number(state, "rate"),
        "curvatures": [],
        "rate": rate,
        "calm_rate": rate,
        "waited": 0,
        "top": 0,
        "still": 0,
        "beyond": 0,
    }
    after = new_dwell(reading, {**after, "grace": reading.step + max(1, policy.dwell // 5)}, policy.dwell)
    weights = "back" if reading.snapshot else ""
    if lost <= LOSSES:
        return _hold(policy, reading, after, "guard", event, (*events, event), weights)
    why = f"simplify ended: the run was lost {lost} times, no rate above {dose:.3g} e/K held"
    decision, over = repair.hand_over(policy, reading, after, *events, f"{why}; {what_is_left(reading, state)}")
    return replace(decision, weights=weights), over


def _stop(policy: Simplify, reading: Reading, state: State, why: str) -> tuple[Decision, State]:
    """Hand over before the end; from the last calm weights, where the run is in an excursion or dead."""
    losses = floats(state["losses"])
    high = reading.snapshot and bool(losses) and median(losses) > _regained(state)
    back = "; the weights go back to those of the last calm dwell" if high else ""
    kept = values(state, "kept") if high else None
    event = f"simplify ended: {why}; {what_is_left(reading, state, kept or None)}{_held_back(state)}{back}"
    rate = number(state, "calm_rate" if high else "rate")
    decision, over = repair.hand_over(policy, reading, {**state, "rate": rate}, event)
    return replace(decision, weights="back" if high else ""), over


def _held_back(state: State) -> str:
    """What has kept the rate from rising, in words."""
    lost, dose = count(state, "lost"), number(state, "lost_at") / number(state, "unit")
    return f"; the run was lost {lost} times, last at {dose:.3g} e/K" if lost else ""


def _hold(
    policy: Simplify, reading: Reading, state: State, rule: str, note: str = "", events: Events = (), weights: str = ""
) -> tuple[Decision, State]:
    scale = bounded(number(state, "rate") / reading.lr)
    return Decision(scale, policy.name, rule, note, events, weights), state


def _run_out(policy: Simplify, reading: Reading, state: State) -> str:
    """Why there is no time left, "" while there is."""
    if policy.steps is not None:
        return f"{policy.steps} steps have passed" if reading.step - number(state, "began") >= policy.steps else ""
    total = reading.total_steps
    if total is not None and reading.step >= (1 - REST) * total:
        return f"the last {REST:.0%} of the run's {total} steps are for the repair"
    return ""


def _out_of_reach(policy: Simplify, reading: Reading, state: State, now: measures.Values) -> str:
    """Why the ceiling did not do."""
    why = f"simplify ended: the ceiling of {policy.ceiling:g} e/K is reached; "
    known, (edge, _) = floats(state["curvatures"]), edge_of(reading)
    r = number(state, "rate") * median(known) if known else math.nan
    if r < edge:
        why += (
            f"the loss went from {number(state, 'first_loss'):.3g} to {reading.loss:.3g} and curvature with it: no rate "
            f"within {policy.ceiling:g} times that of the start reaches the edge (r is {r:.3g} of {edge:.3g}); "
        )
    return why + what_is_left(reading, state, now)

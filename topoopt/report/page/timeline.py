"""r with its bracket, the loss and the rate over the steps of one run: columns of numbers for the page's script."""

from __future__ import annotations

import math
from typing import Any

from topoopt.report.page.runs import RunView
from topoopt.report.page.values import clip, number, numbers
from topoopt.report.steps import Step, by_step

COLUMNS = ("step", "r", "r_pair", "edge", "loss", "scale")
RATES = 8
"""Parameter groups whose rates are embedded."""
CHANGE = 0.02
"""Relative change of the factor that is marked."""
MARKS = 60


def timeline(view: RunView, points: int, left_out: list[str]) -> dict[str, Any]:
    """Columns over at most `points` steps, the marks of the factor's changes; what is thinned out is said in `left_out`."""
    steps = by_step(view.measurements, view.readings)
    kept = [steps[k] for k in thin([one.r for one in steps], points)]
    if len(kept) < len(steps):
        which = "with each stretch's lowest and highest r"
        left_out.append(f"{view.name}: {len(kept)} of {len(steps)} steps are drawn, {which}")
    rates = max((len(one.lr) for one in kept), default=0)
    if rates > RATES:
        left_out.append(f"{view.name}: rates of {RATES} of {rates} parameter groups are drawn")
    columns: dict[str, Any] = {name: numbers(getattr(one, name) for one in kept) for name in COLUMNS}
    columns["warming"] = [int(one.warming) for one in kept]
    columns["lr"] = [numbers(one.lr[g] if g < len(one.lr) else None for one in kept) for g in range(min(rates, RATES))]
    changes = marks(view, steps)
    if len(changes) > MARKS:
        left_out.append(f"{view.name}: the {MARKS} largest of {len(changes)} changes of the factor are marked")
        largest = sorted(changes, key=lambda one: -abs(math.log(one["to"] / one["from"])))[:MARKS]
        changes = sorted(largest, key=lambda one: one["step"])
    return columns | {"marks": changes}


def thin(values: list[Any], points: int) -> list[int]:
    """Indices of at most `points` values: the lowest and the highest of each even stretch, and both ends."""
    count = len(values)
    if count <= points:
        return list(range(count))
    stretches = max(points // 2 - 1, 1)
    kept = {0, count - 1}
    for k in range(stretches):
        stretch = range(k * count // stretches, (k + 1) * count // stretches)
        known = [i for i in stretch if number(values[i]) is not None] or list(stretch)[:1]
        kept |= {min(known, key=lambda i: values[i] or 0), max(known, key=lambda i: values[i] or 0)}
    return sorted(kept)


def marks(view: RunView, steps: list[Step]) -> list[dict[str, Any]]:
    """Where the factor on the rate changed, with what the policy said: at steps that were looked at, and at decisions."""
    said = dict(view.decisions)
    scales = {one.step: one.scale for one in steps} | {step: decision.scale for step, decision in said.items()}
    changes, last = [], 1.0
    for step in sorted(scales):
        scale = number(scales[step])
        if scale is None or scale <= 0 or abs(scale / last - 1) <= CHANGE:
            continue
        decision = said.get(step)
        parts = () if decision is None else (decision.policy, decision.rule, decision.note, *decision.events)
        why = "; ".join(clip(part) for part in parts if part and part != "none")
        changes.append({"step": step, "from": number(last, 4), "to": number(scale, 4), "why": clip(why)})
        last = scale
    return changes

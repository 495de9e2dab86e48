"""The course of a simplification: at each look the rate in units of e/K, and what was left of the topology."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from topoopt.control.course import looks_in
from topoopt.control.ends import ENDS
from topoopt.measurement import Decision
from topoopt.report.page.values import clip, number

ENDED = "simplify ended: "
"""How the policy's event begins that says why it stopped."""
MOST_ENDS = 12


@dataclass(frozen=True)
class Course:
    """Dose and response, a list entry for each look; None where a value is not known."""

    steps: list[int]
    doses: list[float | int | None]
    """Rate in units of e/K, K as it was at the start."""
    losses: list[float | int | None]
    measures: dict[str, list[float | int | None]]
    """By the name of the measure."""
    start: dict[str, float | int | None]
    """What there was at the start of each measure that was known then."""
    ended: list[str]
    """How each simplification of the run ended, and at which step."""


def course_of(decisions: Iterable[tuple[int, Decision]]) -> Course | None:
    """Read the looks out of a run's decisions; None where there are none: no policy that looks spoke."""
    decisions = list(decisions)
    looks = [(step, look) for step, decision in decisions for look in looks_in(decision.events)]
    if not looks:
        return None
    names = dict.fromkeys(name for _, look in looks for name in look.left)
    start: dict[str, Any] = {}
    for _, look in looks:
        start = {**getattr(look, "start", {}), **start}
    return Course(
        [step for step, _ in looks],
        [number(look.dose) for _, look in looks],
        [number(look.loss) for _, look in looks],
        {clip(name, 60): [number(look.left.get(name)) for _, look in looks] for name in names},
        {clip(name, 60): number(value) for name, value in start.items() if name in names},
        [
            clip(f"Step {step:,}: {event.removeprefix(ENDED)}")
            for step, decision in decisions
            for event in decision.events
            if event.startswith(ENDED)
        ][:MOST_ENDS],
    )


def in_words(measure: str) -> str:
    """A measure's name for people."""
    return ENDS[measure].words if measure in ENDS else measure.replace("_", " ")

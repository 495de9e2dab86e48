"""The runs that a page is about, told apart by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from topoopt.measurement import Decision, Measurement, SpectralReading
from topoopt.report.page.values import clip, number, spread
from topoopt.report.record import Record
from topoopt.summary import Run, Summary
from topoopt.verdict import Verdict

MOST = 20
"""Runs on one page: more lines than this tell nobody anything."""
MEASUREMENTS = 1000
"""Measurements of one run that are read: a page shows fewer, and a long record need not be in memory at once."""


@dataclass(frozen=True)
class RunView:
    """One run as the page sees it."""

    name: str
    measurements: Sequence[Measurement]
    readings: Sequence[SpectralReading]
    decisions: Sequence[tuple[int, Decision]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    run: Run | None = None
    verdict: Verdict | None = None
    summary: Summary | None = None
    problems: Sequence[str] = ()


def views(records: Iterable[Record]) -> tuple[list[RunView], list[str]]:
    """Return the runs of the records, each under a name of its own, and what of them is not on the page."""
    found = [view for record in records for view in _of(record)]
    notes = [] if len(found) <= MOST else [f"the page shows the last {MOST} of {len(found)} runs"]
    found = found[-MOST:]
    seen: Counter[str] = Counter()
    named = []
    for view in found:
        seen[view.name] += 1
        name = view.name if seen[view.name] == 1 else f"{view.name} ({seen[view.name]})"
        named.append(_sound(RunView(**{**vars(view), "name": name})))
    return named, notes


def _of(record: Record) -> list[RunView]:
    path = record.path
    name = clip(path.parent.name if path.name == "record.jsonl" and path.parent.name else path.stem, 60) or "run"
    runs = getattr(record, "runs", (record,))
    several = len(runs) > 1
    return [_view(f"{name} {k}" if several else name, one) for k, one in enumerate(runs, 1)]


def _view(name: str, one: Any) -> RunView:
    """Read a run, or a record of one run without a name."""
    measurements, problems = one.measurements, list(one.problems)
    if len(measurements) > MEASUREMENTS:
        problems.append(f"{MEASUREMENTS} of {len(measurements):,} measurements are looked at, evenly spaced")
        measurements = [measurements[k] for k in spread(len(measurements), MEASUREMENTS)]
    else:
        measurements = list(measurements)
    run = getattr(one, "run", None)
    settings = one.config or (run.settings if run is not None else {})
    return RunView(
        name,
        measurements,
        getattr(one, "readings", None) or [m.spectral for m in measurements],
        getattr(one, "decisions", None) or [(m.step, m.decision) for m in measurements if m.decision is not None],
        settings if isinstance(settings, Mapping) else {},
        run,
        getattr(one, "verdict", None),
        getattr(one, "summary", None),
        problems,
    )


def _sound(view: RunView) -> RunView:
    """Leave out what is at no step: it has no place on a page whose every picture is over steps."""
    kept = [m for m in view.measurements if _is_step(m.step)]
    read = [reading for reading in view.readings if _is_step(reading.step) and reading.step >= 0]
    decided = [(step, decision) for step, decision in view.decisions if _is_step(step)]
    lost = len(view.measurements) - len(kept)
    problems = [*view.problems, *([f"{lost} measurements whose step is no whole number"] if lost else [])]
    return RunView(**{**vars(view), "measurements": kept, "readings": read, "decisions": decided, "problems": problems})


def _is_step(step: Any) -> bool:
    return isinstance(step, int) and number(step) is not None

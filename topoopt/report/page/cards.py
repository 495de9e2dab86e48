"""The run's card, what tells several runs apart, and the layers' table: rows of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median, quantiles
from typing import Any

from topoopt.measurement import GroupMeasurement, SpectralReading
from topoopt.report.page.runs import RunView
from topoopt.report.page.values import clip, number, setting, shown, spread
from topoopt.report.page.words import Look, look
from topoopt.report.steps import phase_of
from topoopt.summary import Suggested
from topoopt.verdict.gauge import Gauge

SETTINGS = 40
"""Settings of a run that are listed."""
HEAD = (
    "layer", "neurons", "dimension", "r (at step)", "r_pair", "distortion of the step", "since the start", "nearest pair",
    "twins", "vanishing", "silent", "loops",
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """A number that is seen first, with what it means."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Card:
    """One run in words."""

    name: str
    look: Look
    lines: tuple[str, ...]
    """The verdict's, as they stand."""
    gauge: Gauge | None
    """r/e on a scale; None where no reading supports one."""
    subtitle: str
    """Model, optimizer, length and date in one line."""
    figures: tuple[Figure, ...]
    """The few numbers that come first."""
    phases: tuple[tuple[str, float], ...]
    """(phase, share of the readings), in the phases' order; without those that did not occur."""
    facts: tuple[tuple[str, str], ...]
    more: tuple[tuple[str, str], ...]
    """Dates, versions and names: of use to who goes looking."""
    settings: tuple[tuple[str, str], ...]


def card(view: RunView) -> Card:
    """Return the card of one run; what the record does not say is not on it."""
    verdict = view.verdict
    lines = () if verdict is None else tuple(str(line) for line in verdict.lines)
    scale = None if verdict is None else verdict.gauge
    known = [reading for reading in view.readings if number(reading.r) is not None and not reading.warming]
    facts = [*_identity(view), *_counts(view, known)]
    more = [*_origin(view), *_times(view)]
    settings = [(clip(key, 60), clip(setting(value))) for key, value in view.settings.items()]
    return Card(
        view.name,
        look(verdict),
        lines,
        scale,
        _subtitle(view),
        tuple(one for one in (_ratio(known), _loss(view), _cost(view)) if one.value),
        tuple(_phases(known)),
        tuple((label, value) for label, value in facts if value),
        tuple((label, value) for label, value in more if value),
        tuple(settings[:SETTINGS]),
    )


def differences(cards: Sequence[Card]) -> list[tuple[str, list[str]]]:
    """Facts and settings in which the runs are not all the same, a column for each run; ids, dates and times always differ."""
    tables = [
        {"verdict": one.look.word}
        | {figure.label: figure.value for figure in one.figures}
        | {"phases": ", ".join(f"{share:.0%} {phase}" for phase, share in one.phases) or "–"}
        | dict(one.facts)
        | {label: value for label, value in one.more if label in ("versions", "goes on from", "wall time")}
        | {f"setting {k}": v for k, v in one.settings}
        for one in cards
    ]
    keys = list(dict.fromkeys(key for table in tables for key in table))
    rows = [(key, [table.get(key, "–") for table in tables]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def layers(view: RunView, most: int) -> tuple[list[str], list[list[str]]]:
    """The layers at the last measurement that has some, at most `most` of them: heads, and rows of texts.

    A column of which nothing is known is left out.
    """
    last = next((m for m in reversed(view.measurements) if m.groups), None)
    items = [] if last is None else list(last.groups.items())
    rows = [_layer(view, *items[k]) for k in spread(len(items), most)]
    known = [k for k in range(len(HEAD)) if any(row[k] != "–" for row in rows)]
    return [HEAD[k] for k in known], [[row[k] for k in known] for row in rows]


def _layer(view: RunView, name: str, group: GroupMeasurement) -> list[str]:
    step, total = (_ends(shown(value, 3) for value in ends) for ends in (group.distortion, group.distortion_total))
    loops = shown(len(group.diagrams[1])) if len(group.diagrams) > 1 else "–"
    silent = shown(group.silent) if group.silent != -1 else "–"
    return [
        clip(name, 120), shown(group.n), shown(group.d), _own(view, name), shown(group.gain, 3), step, total,
        shown(group.merge_margin, 3), shown(group.twins), shown(group.vanishing), silent, loops,
    ]  # fmt: skip


def _ends(texts: Iterable[str]) -> str:
    low, high = texts
    return low if low == high else f"{low} to {high}"


def _own(view: RunView, name: str) -> str:
    """The last known r of a layer, with its step."""
    for m in reversed(view.measurements):
        group = m.groups.get(name)
        if group is not None and group.proximity is not None:
            return f"{shown(group.proximity, 3)} ({shown(group.proximity_step)})"
    return "–"


def _identity(view: RunView) -> list[tuple[str, str]]:
    run = view.run
    rules = Counter(clip(reading.rule, 80) for reading in view.readings if reading.rule)
    rule = rules.most_common(1)[0][0] if rules else ""
    if run is None:
        first = view.readings[0].lr if view.readings else ()
        return [("update rule", rule), ("rate at the start", _rates(first))]
    total = "" if number(run.total_steps) is None else shown(run.total_steps)
    return [
        ("model", clip(run.model, 80)),
        ("parameters", shown(run.parameters)),
        ("optimizer", clip(run.optimizer, 80)),
        ("update rule", rule or clip(run.rule, 80)),
        ("rate at the start", _rates(run.lr)),
        ("rate suggested before", _suggested(run.suggested)),
        ("steps planned", total),
    ]


def _origin(view: RunView) -> list[tuple[str, str]]:
    run = view.run
    if run is None:
        return []
    return [
        ("started", _date(run.started)),
        ("ended", _ended(view)),
        ("versions", clip(", ".join(f"{name} {version}" for name, version in _items(run.versions)))),
        ("run", clip(run.id, 60)),
        ("goes on from", f"{clip(run.resumed, 60)}, at step {shown(run.resumed_at)}" if run.resumed else ""),
    ]


def _suggested(found: Suggested | None) -> str:
    if found is None:
        return ""
    if not found.known or found.bracket is None:
        return f"not known: {clip(found.reason, 400)}"
    low, high = found.bracket
    return f"{_rates(found.lr)}, in [{shown(low, 3)}, {shown(high, 3)}]: {clip(found.reason, 400)}"


def _subtitle(view: RunView) -> str:
    run = view.run
    steps = [reading.step for reading in view.readings] + [m.step for m in view.measurements]
    parts = [] if run is None else [clip(run.model, 80), clip(run.optimizer, 80)]
    if view.summary is not None or steps:
        parts.append(f"{shown(view.summary.steps) if view.summary is not None else shown(max(steps))} steps")
    return " · ".join([*parts, *([] if run is None else [_date(run.started)])])


def _ratio(known: Sequence[SpectralReading]) -> Figure:
    """r over the edge, or r where no edge is known; of some readings their middle half, since the verdict has its own median."""
    over = [reading.r / reading.edge for reading in known if reading.edge and number(reading.edge)]
    values, name = (over, "r over the edge, whole run") if over else ([reading.r for reading in known], "r, whole run")
    meaning = "1 is the edge of stability" if over else "the edge is not known"
    if len(values) < 4:
        return Figure(name, shown(median(values), 3) if values else "", f"median of {len(values)}; {meaning}")
    first, _, third = quantiles(values, n=4, method="inclusive")
    return Figure(
        name, f"{shown(first, 2)} to {shown(third, 2)}", f"middle half of {len(values):,} readings; {meaning}"
    )


def _loss(view: RunView) -> Figure:
    losses = [reading.loss for reading in view.readings if number(reading.loss) is not None]
    value = f"{shown(losses[0], 3)} → {shown(losses[-1], 3)}" if losses else ""
    return Figure("loss", value, "first and last reading, of the step's batch")


def _cost(view: RunView) -> Figure:
    last = view.measurements[-1].cost if view.measurements else None
    share = view.summary.share if view.summary is not None else last.share if last is not None else None
    wall = number(view.summary.seconds) if view.summary is not None else None
    of = "of the wall time" if wall is None else f"of {shown(wall, 3)} s wall time"
    if view.settings.get("budget", "") is None:
        of += ", as no budget was set"
    return Figure("measuring took", "" if number(share) is None else f"{100 * float(share or 0):.3g} %", of)


def _counts(view: RunView, known: Sequence[SpectralReading]) -> list[tuple[str, str]]:
    steps = [reading.step for reading in view.readings] + [m.step for m in view.measurements]
    ended = view.summary.steps if view.summary is not None else None
    return [
        ("steps", shown(ended) if ended is not None else f"{shown(max(steps))} or more" if steps else ""),
        ("readings of r", f"{len(known):,} of {len(view.readings):,} known"),
        ("measurements of the neurons", shown(len(view.measurements))),
    ]


def _phases(known: Sequence[SpectralReading]) -> list[tuple[str, float]]:
    """Shares of the readings; an edge that is not known leaves what is past 1 as one."""
    counts = Counter(phase_of(reading) for reading in known)
    order = ("constrained", "permissive", "simplification", "past 1")
    return [(phase, counts[phase] / len(known)) for phase in order if counts[phase]]


def _times(view: RunView) -> list[tuple[str, str]]:
    last = view.measurements[-1].cost if view.measurements else None
    setup = view.summary.setup_seconds if view.summary is not None else last.setup_seconds if last is not None else None
    wall = view.summary.seconds if view.summary is not None else None
    return [
        ("wall time", "" if number(wall) is None else f"{shown(wall)} s"),
        ("finding the neurons took", "" if number(setup) is None else f"{shown(setup, 3)} s, once"),
    ]


def _date(started: Any, after: float = 0.0) -> str:
    """A date and time for people, `after` seconds later; text that is no date as it stands."""
    try:
        moment = datetime.fromisoformat(started) + timedelta(seconds=after)
    except (ValueError, TypeError, OverflowError):
        return clip(started, 40)
    return moment.strftime("%Y-%m-%d %H:%M:%S") + (" UTC" if moment.utcoffset() == timedelta(0) else "")


def _ended(view: RunView) -> str:
    """Start, setting up and wall time, when all are known."""
    if view.run is None or view.summary is None:
        return ""
    took = [number(view.summary.seconds), number(view.summary.setup_seconds)]
    return "" if None in took else _date(view.run.started, sum(one or 0.0 for one in took))


def _rates(rates: Any) -> str:
    values = [shown(rate) for rate in rates] if isinstance(rates, tuple | list) else []
    return clip(", ".join(values[:8]) + (f" and {len(values) - 8} more" if len(values) > 8 else ""))


def _items(mapping: Any) -> list[tuple[Any, Any]]:
    return list(mapping.items()) if isinstance(mapping, Mapping) else []

"""What was skipped, approximated or lies outside the theory: grouped, each reason once with how often it was said.

Reasons that differ in their numbers alone are one reason, in which a number that varies is a range.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from topoopt.report.page.runs import RunView
from topoopt.report.page.values import clip, number

NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
COUNTED = {
    "homology_certified": "homology above degree 0 certified unchanged, and not computed again",
    "homology_computed": "homology above degree 0 computed",
    "homology_failed": "homology that failed",
    "homology_restarts": "restarts of the process that computes homology",
}
"""Running totals in words."""
MOST = 60
"""Reasons of one kind that are listed."""


@dataclass(frozen=True)
class Kind:
    """Reasons of one kind."""

    title: str
    reasons: tuple[tuple[str, int], ...]
    """(reason, how often)."""
    more: int
    """Further reasons that are in the record only."""


def left_out(views: Sequence[RunView], page: Iterable[str]) -> list[Kind]:
    """Group what the runs, and the page itself (`page`), left out."""
    kinds = {
        "Not measured": _skipped(views),
        "Readings without r": _without_r(views),
        "Approximated, or outside the theory": _notes(views),
        "Counted along the way": _counts(views),
        "Lines of the record that could not be read": _count(p for view in views for p in view.problems),
        "Still on its way when the run ended": _count(
            name for view in views if view.summary is not None for name in view.summary.unfinished
        ),
        "Thinned out on this page (the record has it all)": _count(page),
    }
    return [
        Kind(title, tuple(merged.most_common(MOST)), max(len(merged) - MOST, 0))
        for title, found in kinds.items()
        if found and (merged := alike(found))
    ]


def alike(found: Counter[str]) -> Counter[str]:
    """Let texts that differ in their numbers alone be one, with the range of each number that varies."""
    families: dict[str, list[str]] = {}
    for text in found:
        families.setdefault(NUMBER.sub("#", text), []).append(text)
    merged: Counter[str] = Counter()
    for family in families.values():
        columns = [sorted(set(column), key=float) for column in zip(*(NUMBER.findall(text) for text in family))]
        ranges = iter(column[0] if len(column) == 1 else f"{column[0]} to {column[-1]}" for column in columns)
        text = NUMBER.sub(lambda _, ranges=ranges: next(ranges), family[0])
        merged[text] += sum(found[one] for one in family)
    return merged


def _count(texts: Iterable[str]) -> Counter[str]:
    return Counter(clip(text) for text in texts)


def _skipped(views: Sequence[RunView]) -> Counter[str]:
    told = [{**m.skipped, **m.assessment.skipped} for view in views for m in view.measurements]
    return _count(f"{name}: {reason}" for one in told for name, reason in one.items())


def _without_r(views: Sequence[RunView]) -> Counter[str]:
    return _count(text for v in views for reading in v.readings for text in (reading.reason, reading.warming) if text)


def _notes(views: Sequence[RunView]) -> Counter[str]:
    said: Counter[str] = Counter()
    for m in (m for view in views for m in view.measurements):
        said += _count({*m.notes, *m.assessment.notes})
        said += _count(note for group in m.groups.values() for note in group.notes)
    said += _count(note for view in views for reading in view.readings for note in reading.notes)
    return said


def _counts(views: Sequence[RunView]) -> Counter[str]:
    """Running totals of each run, as they stood last."""
    totals: Counter[str] = Counter()
    for view in views:
        last = (
            view.summary.counts
            if view.summary is not None
            else view.measurements[-1].counts
            if view.measurements
            else {}
        )
        totals.update(
            {clip(COUNTED.get(name, name.replace("_", " "))): int(number(count) or 0) for name, count in last.items()}
        )
    return +totals

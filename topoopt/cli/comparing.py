"""`topoopt compare`: what differs between two runs."""

from __future__ import annotations

import argparse
from typing import Any

from topoopt.cli.figures import emit, figures
from topoopt.cli.making import opened
from topoopt.report import RunRecord
from topoopt.report.tables import Row
from topoopt.terminal import Terminal


def compare(arguments: argparse.Namespace) -> int:
    """Print the runs' figures side by side, and the settings and versions in which they differ."""
    a, b = (opened(path, quiet=arguments.quiet).last for path in arguments.records)
    rows = differences(a, b)
    if emit(arguments, rows, rows):
        return 0
    terminal = Terminal()
    terminal.table([{name: _short(value) for name, value in row.items()} for row in rows])
    for label, run in (("A", a), ("B", b)):
        if run.verdict is not None and not arguments.quiet:
            terminal.say(f"{label}: {run.verdict.happened}")
    return 0


def differences(a: RunRecord, b: RunRecord) -> list[Row]:
    """One row for each figure, and for each setting and version that is not the same."""
    rows = [_row(name, value, other) for (name, value), other in zip(figures(a).items(), figures(b).values())]
    for kind, mine, others in (
        ("setting", a.config or {}, b.config or {}),
        ("version", a.versions, b.versions),
    ):
        for name in sorted({*mine, *others}):
            if mine.get(name) != others.get(name):
                rows.append(_row(f"{kind} {name}", mine.get(name), others.get(name)))
    return rows


def _row(name: str, a: Any, b: Any) -> Row:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b))
    change = None
    if numbers and name not in ("run", "started"):
        change = f"{b - a:+.4g}" if not a else f"{b - a:+.4g} ({b / a:.3g} x)"
    return {"": name, "A": a, "B": b, "B against A": change}


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value

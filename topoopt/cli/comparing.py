"""`topoopt compare`: what differs between two runs."""

from __future__ import annotations

import argparse
from typing import Any

from topoopt.cli.figures import emit, figures, for_people
from topoopt.cli.making import opened
from topoopt.report import RunRecord
from topoopt.report.page.values import setting
from topoopt.report.tables import Row
from topoopt.terminal import STYLES, Terminal


def compare(arguments: argparse.Namespace) -> int:
    """Print both verdicts, and the figures, settings and versions in which the runs differ; as data all figures."""
    a, b = (opened(path, quiet=arguments.quiet).last for path in arguments.records)
    rows = differences(a, b)
    if emit(arguments, rows, rows):
        return 0
    terminal = Terminal()
    if not arguments.quiet:
        for label, run in (("A", a), ("B", b)):
            state = run.verdict.state if run.verdict is not None else "no verdict"
            terminal.paragraph(f"{label} is {run.path}: {state}", STYLES.get(state, ""))
            if run.verdict is not None:
                terminal.paragraph(run.verdict.happened)
            if run.verdict is not None and run.verdict.gauge is not None:
                terminal.say(run.verdict.gauge.line())
            terminal.say()
    terminal.table([_for_people(row) for row in rows if row["A"] != row["B"]])
    same = [row[""] for row in rows if row["A"] == row["B"] and row["A"] is not None]
    if same and not arguments.quiet:
        terminal.say()
        terminal.paragraph(f"the same in both: {', '.join(same)}")
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


def _for_people(row: Row) -> Row:
    """The row as it is read: B in units of A instead of their difference, which everybody sees."""
    name = row[""]
    (said, a), (_, b) = (next(iter(for_people({name: row[one]}).items())) for one in ("A", "B"))
    times = row["B"] / row["A"] if row["B against A"] is not None and row["A"] else None
    return {"": said, "A": _short(a), "B": _short(b), "B / A": f"{times:.3g}" if times is not None else ""}


def _short(value: Any) -> str:
    return "-" if value is None else setting(value)

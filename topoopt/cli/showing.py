"""`topoopt show`: a run in the terminal."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from topoopt.cli.figures import chosen, emit, figures, for_people, tell_verdict
from topoopt.cli.making import opened
from topoopt.report import RunRecord
from topoopt.report.tables import Row, card
from topoopt.terminal import Terminal, cell

BRIEF = {
    "measurements": ("step", "phase", "proximity", "r_over_edge", "lr", "lr_scale", "loss"),
    "readings": ("step", "r", "r_over_edge", "lr", "scale", "loss", "grad_norm", "update_ratio"),
    "layers": ("step", "layer", "n", "gain", "distortion_step_lower", "distortion_step_upper", "merge_margin", "twins"),
    "decisions": ("step", "scale", "policy", "rule", "note"),
}
"""Columns that fit on a screen; `--csv` and `--json` have all."""
HEADS: dict[str, str] = {
    "proximity": "r", "r_over_edge": "r/e", "lr": "rate", "lr_scale": "factor", "scale": "factor", "n": "neurons",
    "gain": "r_pair", "distortion_step_lower": "a", "distortion_step_upper": "b", "merge_margin": "nearest",
}  # fmt: skip
"""What people call a column, as on the page; data keep the fields' own names."""


def show(arguments: argparse.Namespace) -> int:
    """Print what a run is, its verdict, and one of its tables."""
    record = opened(arguments.record, quiet=arguments.quiet)
    run = chosen(record, arguments.run_id)
    rows = thinned(run.table(arguments.table), arguments.rows)
    if emit(arguments, _data(run, arguments.table, rows), rows):
        return 0
    terminal = Terminal()
    if not arguments.quiet and len(record.runs) > 1:
        terminal.say(f"{record.path} holds {len(record.runs)} runs")
        terminal.table([card(one) for one in record.runs])
    tell_verdict(terminal, run, titled=not arguments.quiet)
    if not arguments.quiet:
        terminal.say()
        _card(terminal, run)
        terminal.say()
        terminal.table([_brief(row, BRIEF[arguments.table]) for row in rows])
        for problem in run.problems[:5]:
            terminal.say(problem)
    return 0


def _brief(row: Row, names: Sequence[str]) -> Row:
    """The columns that people read; r of a preconditioner that is warming up is of no phase, and says so."""
    shown = {HEADS.get(name, name): row[name] for name in names}
    return shown | ({"phase": "warming up"} if "phase" in shown and row.get("warming") else {})


def thinned(rows: Sequence[Row], count: int) -> list[Row]:
    """At most so many rows, evenly chosen, the first and the last among them; all for 0 or less."""
    if count <= 0 or len(rows) <= count:
        return list(rows)
    if count == 1:
        return [rows[-1]]
    return [rows[round(i * (len(rows) - 1) / (count - 1))] for i in range(count)]


def _card(terminal: Terminal, run: RunRecord) -> None:
    known = {name: value for name, value in for_people(figures(run)).items() if value is not None}
    known = {
        name: value
        for name, value in known.items()
        if name != "verdict" and not (name == "lines not read" and not value)
    }
    width = max(map(len, known))
    for name, value in known.items():
        terminal.say(f"{name:<{width}}  {cell(value)}")


def _data(run: RunRecord, table: str, rows: Sequence[Row]) -> dict[str, Any]:
    verdict = run.verdict
    said = None if verdict is None else verdict.plain
    unfinished = list(run.summary.unfinished) if run.summary is not None else []
    return {**figures(run), "verdict": said, "unfinished": unfinished, "problems": list(run.problems), table: rows}

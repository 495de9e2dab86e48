"""What several commands say of a run, and the forms in which they say it."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

from topoopt.errors import ConfigError
from topoopt.report import Record, RunRecord
from topoopt.report.tables import Row, final_losses, over_edge, write_csv
from topoopt.terminal import STYLES, Terminal


def chosen(record: Record, id: str | None) -> RunRecord:
    """The run of that id; the last one without it.

    Raises:
        ConfigError: for an id that no run has, with those that there are.
    """
    if id is None:
        return record.last
    found = [run for run in record.runs if run.id == id]
    if not found:
        there = ", ".join(run.id or "one without an id" for run in record.runs)
        raise ConfigError(f"there is no run {id!r} in {record.path}: it holds {there}")
    return found[0]


def figures(run: RunRecord) -> Row:
    """The few numbers by which a run is known."""
    known, ended = run.run, run.summary
    first = run.measurements[0] if len(run.measurements) else None
    last = run.measurements[-1] if len(run.measurements) else None
    ratios, losses = over_edge(run.readings), final_losses(run.measurements, run.readings)
    return {
        "run": run.id or None,
        "started": known.started if known is not None else None,
        "model": known.model if known is not None else None,
        "parameters": known.parameters if known is not None else None,
        "optimizer": known.optimizer if known is not None else (last.rule if last is not None else None),
        "verdict": run.verdict.state if run.verdict is not None else None,
        "phase at the end": str(last.phase) if last is not None else None,
        "r/e, median": median(ratios) if ratios else None,
        "r/e, largest": max(ratios, default=None),
        "rate at the start": known.lr[0] if known is not None and known.lr else (first.lr[0] if first else None),
        "rate at the end": last.lr[0] * last.lr_scale if last is not None else None,
        "loss at the start": _known(first.loss) if first is not None else None,
        "loss at the end": median(losses) if losses else None,
        "steps": ended.steps if ended is not None else run.last_step + 1,
        "measurements": len(run.measurements),
        "readings": len(run.readings),
        "seconds": ended.seconds if ended is not None else None,
        "share of measuring": ended.share if ended is not None else (last.share if last is not None else None),
        "lines not read": len(run.problems),
    }


def emit(arguments: argparse.Namespace, data: Any, rows: Sequence[Row]) -> bool:
    """Print JSON or CSV where that was asked for; returns whether it was."""
    if arguments.json:
        print(json.dumps(jsonable(data), indent=2, allow_nan=False, default=str))
    elif getattr(arguments, "csv", False):
        write_csv(iter(rows), sys.stdout)
    else:
        return False
    return True


def tell_verdict(terminal: Terminal, run: RunRecord, *, titled: bool = False) -> None:
    """The verdict's three lines; its word before them where a title is asked for."""
    if run.verdict is None:
        terminal.say("no verdict: the record holds no reading")
        return
    if titled:
        terminal.say(f"verdict: {run.verdict.state}", STYLES.get(run.verdict.state, ""))
    for line in run.verdict.lines:
        terminal.paragraph(line)
    if titled and run.verdict.gauge is not None:
        terminal.say(run.verdict.gauge.line())


def for_people(row: Row) -> Row:
    """Figures as they are read: a share in percent, a time with its unit, whole numbers in thousands."""
    units = {
        "share of measuring": lambda v: f"{100 * v:.3g} %",
        "seconds": lambda v: f"{v:.4g} s",
        "started": lambda v: str(v).replace("T", " ")[:19],
        **dict.fromkeys(("parameters", "steps", "measurements", "readings"), lambda v: f"{v:,}"),
    }
    names = {
        "share of measuring": "measuring took",
        "seconds": "wall time",
        "r/e, median": "r/e, median of all",
        "r/e, largest": "r/e, largest of all",
    }
    return {
        names.get(name, name): units[name](value) if name in units and value is not None else value
        for name, value in row.items()
    }


def jsonable(value: Any) -> Any:
    """Values for JSON's readers: what is not known is null."""
    if isinstance(value, dict):
        return {str(key): jsonable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value

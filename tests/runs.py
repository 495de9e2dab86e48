"""Runs, summaries and records for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from measurements import make

from topoopt.measurement import Decision, SpectralReading
from topoopt.report import JsonLines
from topoopt.summary import Run, Summary
from topoopt.verdict import Verdict


def a_run(id: str, **values: Any) -> Run:
    known = {"started": "2026-01-01T00:00:00+00:00", "model": "Net", "parameters": 7, "optimizer": "SGD", "rule": "sgd"}
    return Run(id=id, **{**known, "lr": (0.1,), "settings": {"every": 7}, "versions": {"topoopt": "0"}, **values})


def a_verdict(state: str = "right") -> Verdict:
    return Verdict(state, f"r/e was 0.25: {state}", "go on at 0.1", "one batch only", ratio=0.25, band=(0.1, 0.67))


def a_summary(run: Run, state: str = "right", **values: Any) -> Summary:
    known = {"steps": 20, "readings": 3, "measurements": 2, "seconds": 4.0, "share": 0.01, "setup_seconds": 0.5}
    return Summary(run=run, verdict=a_verdict(state), **{**known, "counts": {"faults": 1}, **values})


def write_run(
    path: Path, run: Run, steps: range = range(0, 20, 10), *, state: str = "right", loss: float = 1.0
) -> Path:
    """A whole run, as the wrapper tells it."""
    with JsonLines(path) as sink:
        sink.begin(run)
        for step in steps:
            reading = SpectralReading(step=step, r=0.5, edge=2.0, lr=run.lr, loss=loss)
            sink.reading(reading)
            sink(make(step, lr=run.lr, loss=loss))
            sink.reading(SpectralReading(step=step + 5, r=0.6, edge=2.0, lr=run.lr, loss=loss))
        sink.decided(3, Decision(0.5, "preserve", "target"))
        sink.verdict(10, a_verdict(state))
        sink.end(a_summary(run, state))
    return path

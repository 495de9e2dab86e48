"""A sink that shows a run while it trains: drawn in place in notebooks and on terminals, a few plain lines anywhere else."""

from __future__ import annotations

import math
import sys
from collections import deque
from typing import Any, TextIO

from topoopt import markup
from topoopt.measurement import Measurement, SpectralReading
from topoopt.report.steps import phase_of
from topoopt.summary import Run, Summary
from topoopt.terminal import STYLES, Terminal, rich_table
from topoopt.verdict import Verdict

KEPT = 400
"""Readings that a notebook's picture goes back."""


class Live:
    """Shows the last readings, the progress and the verdict as a run goes on: `optimizer.add_sink(Live())`.

    In a notebook one output is drawn anew, with r/e as a line; on a terminal that can show it (the extra `cli`) a table and a
    bar. Anywhere else, a log file for one, it prints a line at the start, at each change of the verdict and of the
    phase (of two readings in a row), and the verdict's three lines at the end.

    Args:
        stream: where it is printed; stdout without one. Not used in notebooks.
        rows: readings in the table.
    """

    def __init__(self, stream: TextIO | None = None, *, rows: int = 8) -> None:
        self._rows: deque[dict[str, Any]] = deque(maxlen=max(rows, 1))
        self._ratios: deque[tuple[int, float]] = deque(maxlen=KEPT)
        self._run: Run | None = None
        self._verdict: Verdict | None = None
        self._phase = ""
        self._done = -1
        self._shown: _Notebook | _Screen | _Lines = _place(stream)

    def begin(self, run: Run) -> None:
        """Say which run it is."""
        self._run = run
        self._shown.say(f"{run.model} ({run.parameters:,} parameters) with {run.optimizer}, rate {run.lr[0]:.4g}")

    def __call__(self, measurement: Measurement) -> None:
        """Show a measurement whose reading was not told before it."""
        if not self._rows or self._rows[-1]["step"] != measurement.step:
            self.reading(measurement.spectral)

    def reading(self, reading: SpectralReading) -> None:
        """Show a reading."""
        self._take(reading, phase_of(reading))
        self._draw()

    def verdict(self, step: int, verdict: Verdict) -> None:
        """Show a verdict that has changed."""
        first = self._verdict is None and verdict.state == "not enough readings"  # what else could it be
        self._verdict = verdict
        if not first:
            self._shown.say(f"step {step:,}: verdict {verdict.state}")
        self._draw()

    def end(self, summary: Summary) -> None:
        """Show the verdict's three lines."""
        self._verdict, self._done = summary.verdict, summary.steps
        self._draw(ended=True)
        gauge = summary.verdict.gauge
        line = "" if gauge is None else f"\n{gauge.line()}"
        self._shown.say(f"ended after {summary.steps:,} steps\n{summary.verdict}{line}")

    def close(self) -> None:
        """Leave what is shown as it stands."""
        self._shown.close()

    def _take(self, one: SpectralReading, phase: str) -> None:
        ratio = one.r / one.edge if one.edge else math.nan
        used = one.lr[0] * one.scale if one.lr else math.nan
        if not one.warming and ratio > 0:
            self._ratios.append((one.step, ratio))
        lasts = bool(self._rows) and self._rows[-1]["phase"] == phase
        self._rows.append({"step": one.step, "phase": phase, "r": one.r, "r/e": ratio, "rate": used, "loss": one.loss})
        if phase != self._phase and lasts and not one.warming:  # two readings in a row: single ones scatter
            self._shown.say(f"step {one.step:,}: {phase}, r {one.r:.3g} (r/e {ratio:.3g}), loss {one.loss:.4g}")
            self._phase = phase
        self._done = max(self._done, one.step + 1)

    def _draw(self, *, ended: bool = False) -> None:
        total = self._run.total_steps if self._run is not None else None
        self._shown.draw(list(self._rows), list(self._ratios), (self._done, total), self._verdict, ended=ended)


def _place(stream: TextIO | None) -> _Notebook | _Screen | _Lines:
    if stream is None and _in_notebook():
        return _Notebook()
    terminal = Terminal(stream)
    return _Lines(terminal) if terminal.console is None else _Screen(terminal)


def _in_notebook() -> bool:
    """Whether this is a kernel, whose outputs can be drawn anew; IPython is asked only where it already runs."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and getattr(shell, "kernel", None) is not None


class _Lines:
    """Plain lines."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal

    def say(self, text: str) -> None:
        self._terminal.say(text)

    def draw(self, rows: Any, ratios: Any, progress: Any, verdict: Verdict | None, *, ended: bool) -> None:
        """Nothing can be drawn over."""

    def close(self) -> None:
        """Nothing is open."""


class _Screen:
    """A terminal: rich draws the table and the bar anew, without a thread of its own."""

    def __init__(self, terminal: Terminal) -> None:
        from rich.live import Live as RichLive

        self._terminal = terminal
        self._live = RichLive(console=terminal.console, auto_refresh=False)

    def say(self, text: str) -> None:
        if not self._live.is_started:
            self._terminal.say(text)  # what changes later is in the table

    def draw(
        self, rows: Any, ratios: Any, progress: tuple[int, int | None], verdict: Verdict | None, *, ended: bool
    ) -> None:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if not self._live.is_started:
            self._live.start()
        done, total = progress
        foot = Table.grid(padding=(0, 1))
        steps = f"step {done:,}" + (f" of {total:,}" if total else "")
        foot.add_row(*([ProgressBar(total=total, completed=done, width=30)] if total else []), steps)
        said = []
        if verdict is not None:
            gauge = verdict.gauge
            told = (*_told(verdict, ended), *([] if gauge is None else [gauge.line()]))
            said = [Text(f"verdict: {verdict.state}", style=STYLES.get(verdict.state, "")), *map(Text, told)]
        self._live.update(Group(rich_table(rows, self._terminal.width), foot, *said), refresh=True)

    def close(self) -> None:
        self._live.stop()


class _Notebook:
    """One output of a cell, updated."""

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self._html = HTML
        self._handle: Any = display(HTML(""), display_id=True)
        self._title = ""

    def say(self, text: str) -> None:
        self._title = self._title or text

    def draw(
        self,
        rows: list[dict[str, Any]],
        ratios: list[tuple[int, float]],
        progress: tuple[int, int | None],
        verdict: Verdict | None,
        *,
        ended: bool,
    ) -> None:
        done, total = progress
        bar = f"<progress value='{done}' max='{total}' style='width:24em'></progress> " if total else ""
        steps = f"{bar}step {done:,}" + (f" of {total:,}" if total else "")
        said = "" if verdict is None else markup.verdict(verdict.state, _told(verdict, ended), verdict.gauge)
        shown = [{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
        self._handle.update(self._html(f"{said}{curve(ratios)}<div>{steps}</div>{markup.table(self._title, shown)}"))

    def close(self) -> None:
        """The output stays as it is."""


def _told(verdict: Verdict, ended: bool) -> tuple[str, ...]:
    """What happened while the run goes on; all three lines when it has ended."""
    return verdict.lines if ended else verdict.lines[:1]


def curve(ratios: list[tuple[int, float]], width: int = 520, height: int = 110) -> str:
    """r/e over the steps as a small SVG on a logarithmic scale, with the edge as a dashed line."""
    if len(ratios) < 2:
        return ""
    low, high = math.log(min(0.5, *(r for _, r in ratios))), math.log(max(1.5, *(r for _, r in ratios)))
    first, last = ratios[0][0], max(ratios[-1][0], ratios[0][0] + 1)
    places = [((s - first) / (last - first) * width, (high - math.log(r)) / (high - low) * height) for s, r in ratios]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    edge = high / (high - low) * height
    return (
        f"<svg width='{width}' height='{height + 4}' viewBox='0 -2 {width} {height + 4}' role='img' "
        "aria-label='r/e over the steps'>"
        f"<path d='M0 {edge:.1f}H{width}' stroke='#7a828d' stroke-dasharray='6 4'/>"
        f"<text x='{width - 4}' y='{edge - 4:.1f}' text-anchor='end' font-size='11' fill='#7a828d'>edge</text>"
        f"<polyline points='{line}' fill='none' stroke='#1f5fbf' stroke-width='2'/></svg>"
    )

"""`topoopt watch`: a record that is being written, as its lines come."""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from topoopt.errors import ConfigError
from topoopt.report import lines
from topoopt.report.reading import decode, located
from topoopt.report.steps import phase_of
from topoopt.terminal import Terminal

TAIL = 2**16
"""Bytes of what was written before that are told too."""
HEAD = f"{'step':>8}  {'phase':<14}  {'r':>9}  {'r/e':>7}  {'rate used':>10}  {'loss':>9}"


def watch(arguments: argparse.Namespace) -> int:
    """Print a line for each measurement and reading, and what is decided and said, until the run ends."""
    if not arguments.interval > 0:
        raise ConfigError(f"--interval {arguments.interval} is not usable: give seconds above 0")
    path, terminal = located(arguments.record), Terminal()
    if not arguments.quiet:
        terminal.say(f"following {path}; Ctrl+C ends it")
        terminal.say(HEAD)
    for line in merged(follow(path, lambda: time.sleep(arguments.interval))):
        for text in told(line):
            terminal.say(text)
        if isinstance(line, lines.EndLine):
            break
    return 0


def follow(path: Path, wait: Callable[[], object]) -> Iterator[lines.Line | None]:
    """Yield a record's lines as they are written, without end, from the last few on; None, then a wait, when nothing is new.

    What cannot be read is passed over, as `show` tells.

    Args:
        path: the file. When another takes its place (a new run), it is followed from its beginning.
        wait: called when nothing new has come.
    """
    start = max(0, path.stat().st_size - TAIL)
    while True:
        with path.open("rb") as file:
            file.seek(start)
            rest = b""
            if start:
                file.readline()  # the end of a line whose beginning was not read
            while True:
                rest += file.readline(lines.LONGEST)
                if rest.endswith(b"\n") or len(rest) >= lines.LONGEST:
                    line, rest = _read(rest), b""
                    if line is not None:
                        yield line
                elif _replaced(path, file.fileno()):
                    break
                else:
                    yield None
                    wait()
        start = 0


def merged(following: Iterator[lines.Line | None]) -> Iterator[lines.Line]:
    """Leave out a reading that is told again as a part of its measurement, and a measurement that is told again with its loops."""
    held: lines.ReadingLine | None = None
    last = -1
    for line in following:
        if isinstance(line, lines.Header):  # a run that goes on may do steps again
            last = -1
        if isinstance(line, lines.MeasurementLine):
            if line.value.step < last:
                continue
            last = line.value.step
        if isinstance(line, lines.ReadingLine):
            last = max(last, line.value.step)
        again = held is not None and isinstance(line, lines.MeasurementLine) and line.value.step == held.value.step
        if held is not None and not again:
            yield held
        held = line if isinstance(line, lines.ReadingLine) else None
        if line is not None and held is None:
            yield line


def told(line: lines.Line) -> list[str]:
    """What a line says, in lines of text."""
    match line:
        case lines.Header(run=run):
            return [] if run is None else [f"run {run.id} of {run.model} with {run.optimizer}, started {run.started}"]
        case lines.MeasurementLine(m):
            used = m.lr[0] * m.lr_scale
            return [_row(m.step, str(m.phase), m.proximity, m.edge, used, m.loss)]
        case lines.ReadingLine(one):
            used = one.lr[0] * one.scale if one.lr else math.nan
            return [_row(one.step, phase_of(one), one.r, one.edge, used, one.loss)]
        case lines.DecisionLine(step, one):
            why = "" if one.rule == "none" else f" ({one.rule})"
            return [f"{step:>8}  factor {one.scale:.4g} by {one.policy}{why} {one.note}".rstrip()]
        case lines.VerdictLine(step, one):
            return [f"{step:>8}  verdict: {one.state}"]
        case lines.EndLine(summary):
            return [f"the run ended after {summary.steps} steps", *summary.verdict.lines]
    return []


def _row(step: int, phase: str, r: float, edge: float | None, rate: float, loss: float) -> str:
    ratio = r / edge if edge else math.nan
    return f"{step:>8}  {phase:<14}  {r:>9.4g}  {ratio:>7.3g}  {rate:>10.4g}  {loss:>9.4g}"


def _read(text: bytes) -> lines.Line | None:
    try:
        return decode(text)
    except ValueError:
        return None


def _replaced(path: Path, number: int) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False  # kept under another name: its run may go on
    open_one = os.fstat(number)
    return (there.st_dev, there.st_ino) != (open_one.st_dev, open_one.st_ino)

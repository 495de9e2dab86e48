"""From a file to a `Record`: line by line, whatever the lines hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

from topoopt.errors import RecordError
from topoopt.measurement import Decision, Measurement, SpectralReading
from topoopt.report import border, lines, version1
from topoopt.report.lazy import Lines, Source
from topoopt.report.record import Record, RunRecord
from topoopt.report.writing import shortened
from topoopt.summary import Run, Summary
from topoopt.verdict import Verdict

NAME = "record.jsonl"
NAMED = 6
"""Folders with records that an error names."""
"""Of the record in a run's folder."""
PROBLEMS = 100
"""Problems that are told one by one; the rest is counted."""
L = TypeVar("L", bound=lines.Line)
OPENINGS = 1000
"""Headers of one file that are read."""
Progress = Callable[[int, int], None]
"""Called with (bytes read, bytes in all), now and then."""


def read(path: str | Path, *, progress: Progress | None = None) -> Record:
    """Read what `JsonLines` wrote, this version or 0.1.

    A line that cannot be read is a problem of the record, never an error: it is named with its number. Memory does not grow
    with the record beyond some 150 bytes a line: see `Lines`.

    Args:
        path: the file, or its folder.
        progress: told of the bytes read, for records that take a while.

    Raises:
        RecordError: for a file that is missing, or holds neither a header nor a line that can be read.
    """
    path = located(path)
    try:
        size = path.stat().st_size
        gathering = _Gathering(Source(path))
        with path.open("rb") as file:
            for number, start, text in _texts(file):
                gathering.take(number, start, text)
                if progress is not None and number % 1000 == 0:
                    progress(start, size)
    except OSError as error:
        raise RecordError(f"{shortened(path)} cannot be read: {error.strerror}") from error
    return gathering.record(path)


def located(path: str | Path) -> Path:
    """Return the file that a record's path or folder means.

    Raises:
        RecordError: when there is none.
    """
    path, folder = Path(path), None
    try:
        if path.is_dir():
            folder, path = path, path / NAME
        found = path.is_file()
    except (OSError, ValueError):  # too long, or with a null character
        found = False
    if not found:
        raise RecordError(f"there is no record at {shortened(path)}: {_what_to_give(folder)}")
    return path


def _what_to_give(folder: Path | None) -> str:
    """What to do instead; of a folder whose folders hold records, their names."""
    try:
        below = [] if folder is None else [one.parent for one in itertools.islice(folder.glob(f"*/{NAME}"), NAMED + 1)]
    except OSError:
        below = []
    if not below:
        return "give the file that JsonLines wrote, or its folder"
    more = ", ..." if len(below) > NAMED else ""
    return f"give one of {', '.join(sorted(str(one) for one in below[:NAMED]))}{more}"


def decode(text: bytes) -> lines.Line:
    """Read one line of any version.

    Raises:
        ValueError: for what is no line of a record, with the reason.
    """
    try:
        kind = border.type_of(text)
        return version1.decode(text) if kind is None else border.decode(text, kind)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except OverflowError as error:
        raise ValueError(str(error)) from None


def _texts(file: IO[bytes]) -> Iterator[tuple[int, int, bytes | None]]:
    """Number, place and text of each line that is not empty; None for the text of one that is too long."""
    number, start = 0, 0
    while text := file.readline(lines.LONGEST + 1):
        number += 1
        size = len(text)
        if size > lines.LONGEST and not text.endswith(b"\n"):
            while rest := file.readline(lines.LONGEST):
                size += len(rest)
                if rest.endswith(b"\n"):
                    break
            yield number, start, None
        elif not text.isspace():
            yield number, start, text
        start += size


@dataclass
class _Run:
    """One run being gathered."""

    source: Source
    run: Run | None = None
    openings: list[Run] = field(default_factory=list)
    header: lines.Header | None = None
    summary: Summary | None = None
    problems: list[str] = field(default_factory=list)
    more: int = 0

    def __post_init__(self) -> None:
        self.measurements: Lines[Measurement] = Lines(self.source, _measurement)
        self.readings: Lines[SpectralReading] = Lines(self.source, _reading)
        self.read_along: Lines[SpectralReading] = Lines(self.source, lambda text: _measurement(text).spectral)
        self.decisions: Lines[tuple[int, Decision]] = Lines(self.source, _decision)
        self.verdicts: Lines[tuple[int, Verdict]] = Lines(self.source, _verdict)
        self.decided_along: Lines[tuple[int, Decision]] = Lines(self.source, _decided_along)

    @property
    def untouched(self) -> bool:
        """Whether no line but a header has come yet."""
        return not (len(self.measurements) or len(self.readings) or len(self.decisions) or len(self.verdicts))

    def goes_on_in(self, run: Run) -> bool:
        """Whether a header opens this run once more."""
        ids = {one.id for one in self.openings}
        return run.id in ids or bool(run.resumed and run.resumed in ids)

    def open(self, header: lines.Header) -> None:
        """Take a header: what a resumed run does again is forgotten."""
        if header.run is not None:
            if self.openings and header.run.resumed:
                self._forget(header.run.resumed_at)
            if not self.openings or self.openings[-1] != header.run:
                self.openings.append(header.run)
            self.run, self.summary = header.run, None
        self.header = header

    def _forget(self, step: int) -> None:
        along = (self.read_along, self.decided_along)
        for sequence in (self.measurements, self.readings, self.decisions, self.verdicts, *along):
            sequence.drop_from(step)

    def take(self, line: lines.Line, start: int, size: int) -> None:
        """Put a line where it belongs."""
        match line:
            case lines.MeasurementLine(value):
                self.measurements.put(value.step, start, size, value)
                self.read_along.put(value.step, start, size, value.spectral, part=True)
                if value.decision is not None:
                    self.decided_along.put(value.step, start, size, (value.step, value.decision), part=True)
            case lines.ReadingLine(value):
                self.readings.put(value.step, start, size, value)
            case lines.DecisionLine(step, value):
                self.decisions.put(step, start, size, (step, value))
            case lines.VerdictLine(step, value):
                self.verdicts.put(step, start, size, (step, value))
            case lines.EndLine(value):
                self.summary = value

    def done(self, path: Path) -> RunRecord:
        """The finished run."""
        header = self.header or lines.Header(1)
        settings = self.run.settings if self.run is not None else header.config
        return RunRecord(
            path=path,
            run=self.run,
            openings=tuple(self.openings),
            config=None if settings is None else dict(settings),
            versions=dict(self.run.versions if self.run is not None else header.versions),
            measurements=self.measurements,
            readings=self.readings if len(self.readings) else self.read_along,
            decisions=self.decisions if len(self.decisions) else self.decided_along,
            verdicts=self.verdicts,
            summary=self.summary,
            problems=self.told(),
        )

    def told(self) -> tuple[str, ...]:
        """The problems, the first hundred one by one."""
        return (*self.problems, *([f"and {self.more} more lines"] if self.more else []))


class _Gathering:
    """The runs of a file, as its lines come."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._runs = [_Run(source)]
        self._left = OPENINGS

    def take(self, number: int, start: int, text: bytes | None) -> None:
        """Read one line, or note why it cannot be."""
        if self._left < 0:
            return None
        if text is None:
            return self._problem(number, f"it is longer than {lines.LONGEST} bytes")
        try:
            line = decode(text)
        except ValueError as error:
            return self._problem(number, str(error))
        if isinstance(line, lines.Header):
            self._open(line, number)
        else:
            self._runs[-1].take(line, start, len(text))
        return None

    def _open(self, header: lines.Header, number: int) -> None:
        self._left -= 1
        if self._left < 0:
            return self._problem(number, f"it opens a run, after {OPENINGS} others; what follows is left out")
        current = self._runs[-1]
        fresh = current.header is None or current.run is None
        if not (fresh and current.untouched) and not (header.run is not None and current.goes_on_in(header.run)):
            current = _Run(self._source)
            self._runs.append(current)
        current.open(header)
        if header.topoopt > lines.VERSION:
            self._problem(number, f"it was written by a later version (format {header.topoopt}), not all of it is read")
        return None

    def _problem(self, number: int, reason: str) -> None:
        run = self._runs[-1]
        if len(run.problems) < PROBLEMS:
            run.problems.append(f"line {number} could not be read: {reason[:500]}")
        else:
            run.more += 1

    def record(self, path: Path) -> Record:
        """The finished record.

        Raises:
            RecordError: where nothing could be read.
        """
        if self._runs[0].header is None and self._runs[0].untouched:
            raise RecordError(
                f"{shortened(path)} is no record of topoopt: its first line has no header, and no line is a measurement"
            )
        runs = tuple(run.done(path) for run in self._runs)
        return Record(path, runs, tuple(problem for run in runs for problem in run.problems))


def _part(text: bytes, kind: type[L]) -> L:
    line = decode(text)
    if not isinstance(line, kind):
        raise ValueError(f"there is no {kind.__name__} any more")
    return line


def _measurement(text: bytes) -> Measurement:
    return _part(text, lines.MeasurementLine).value


def _reading(text: bytes) -> SpectralReading:
    return _part(text, lines.ReadingLine).value


def _decision(text: bytes) -> tuple[int, Decision]:
    line = _part(text, lines.DecisionLine)
    return line.step, line.value


def _verdict(text: bytes) -> tuple[int, Verdict]:
    line = _part(text, lines.VerdictLine)
    return line.step, line.value


def _decided_along(text: bytes) -> tuple[int, Decision]:
    measurement = _measurement(text)
    if measurement.decision is None:
        raise ValueError("there is no decision any more")
    return measurement.step, measurement.decision

"""The sink that writes a run's record: a header for each opening, then a line for everything that is said of the run."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from topoopt.config import TopoConfig
from topoopt.errors import ConfigError, RecordError
from topoopt.measurement import Decision, Measurement, SpectralReading
from topoopt.report import border, lines
from topoopt.report.writing import make_folder, unwritable, write_whole
from topoopt.summary import Run, Summary
from topoopt.verdict import Verdict

SUMMARY = "summary.json"
"""Of a run that has ended, beside its record."""


class JsonLines:
    """Writes a run's record as it comes, one JSON object a line, each handed to the system at once; a context manager.

    A record is one run. What stands at `path` already is gone on with only by a run that was resumed from it (as `begin`
    says) or when `append` is given; any other is kept beside it as `NAME-ID.jsonl`, its summary as `summary-ID.json`. The
    file is opened when the run begins, or else with the first line.

    Args:
        path: of the record; folders above it are made.
        config: the settings, for a record that is written without `begin`.
        append: go on in what stands at `path`, as a run of its own.

    Raises:
        FileError: where nothing can be written.
        RecordError: for a path that is no regular file, and for a line after `close`.
    """

    def __init__(self, path: str | Path, config: TopoConfig | None = None, *, append: bool = False) -> None:
        try:
            self.path = Path(path).absolute()  # where the program may go later is no place of the record's
        except OSError as error:  # the folder of now is gone
            raise unwritable(Path(path), error) from error
        self.config = config
        self._append = append
        self._file: int | None = None
        self._closed = False
        self._torn = False
        self._id = ""
        self._process = os.getpid()
        make_folder(self.path.parent)
        _check_place(self.path)

    def begin(self, run: Run) -> None:
        """Open the record for a run and write its header; once more for the same run does nothing."""
        self._check_open()
        if self._file is None:
            self._open(run)
        elif self._id == run.id:
            return
        self._id = run.id
        self._write(lines.Header(lines.VERSION, run=run, written=_now()))

    def __call__(self, measurement: Measurement) -> None:
        """Write one measurement."""
        self._put(lines.MeasurementLine(measurement))

    def late(self, measurement: Measurement) -> None:
        """Write a measurement that homology has completed since: it takes the earlier one's place when read."""
        self(measurement)

    def reading(self, reading: SpectralReading) -> None:
        """Write one reading of r."""
        self._put(lines.ReadingLine(reading))

    def decided(self, step: int, decision: Decision) -> None:
        """Write a change of the factor."""
        self._put(lines.DecisionLine(step, decision))

    def verdict(self, step: int, verdict: Verdict) -> None:
        """Write a change of the verdict."""
        self._put(lines.VerdictLine(step, verdict))

    def end(self, summary: Summary) -> None:
        """Write what is said of the run at its end: as a line, and as `summary.json` beside the record."""
        self._put(lines.EndLine(summary))
        write_whole(self._summary_place(summary.run.id), summary_text(summary, self.path.name))

    def close(self) -> None:
        """Close the file; later calls do nothing."""
        self._closed = True
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put(self, line: lines.Line) -> None:
        self._check_open()
        if self._file is None:
            self._open(None)
            settings = None if self.config is None else _settings(self.config)
            self._write(lines.Header(lines.VERSION, config=settings, versions=versions(), written=_now()))
        self._write(line)

    def _summary_place(self, id: str) -> Path:
        """`summary.json`, unless that is another record's or not ours: then it has a name of its own."""
        place = self.path.with_name(SUMMARY)
        if not self._stands():  # another run has put this record aside
            return _free(place, _mark(id))
        ours = not os.path.lexists(place) or _is_summary_of(place, self.path.name)
        return place if ours else self.path.with_name(f"{self.path.stem}-{SUMMARY}")

    def _stands(self) -> bool:
        assert self._file is not None
        try:
            return os.path.samestat(os.fstat(self._file), os.stat(self.path))
        except OSError:
            return False

    def _check_open(self) -> None:
        if self._closed:
            raise RecordError(f"the record {self.path} is closed")
        if os.getpid() != self._process:
            raise RecordError(
                f"the record {self.path} is of the process that this one was forked from: give it its own"
            )

    def _open(self, run: Run | None) -> None:
        if os.path.lexists(self.path) and not self._append and not _goes_on(self.path, run):
            set_aside(self.path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            self._torn = _ends_in_mid_line(self.path)  # half a line of a killed run stays a line of its own
            self._file = os.open(self.path, flags, 0o666)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def _write(self, line: lines.Line) -> None:
        assert self._file is not None
        left = (b"\n" if self._torn else b"") + lines.encode(line)
        try:
            while left:
                left = left[os.write(self._file, left) :]
                self._torn = bool(left)
        except OSError as error:
            raise unwritable(self.path, error) from error


def summary_text(summary: Summary, record: str) -> str:
    """`summary.json`: the verdict's state, lines and numbers, which run it was, what measuring cost, and what was counted."""
    data = {
        "topoopt": lines.VERSION,
        "record": record,
        "verdict": summary.verdict.plain,
        "run": lines.plain(summary.run),
        "steps": summary.steps,
        "readings": summary.readings,
        "measurements": summary.measurements,
        "cost": {"seconds": summary.seconds, "share": summary.share, "setup_seconds": summary.setup_seconds},
        "counts": summary.counts,
        "unfinished": summary.unfinished,
    }
    return json.dumps(lines.plain(data), indent=2, allow_nan=False, default=str) + "\n"


def set_aside(path: Path) -> Path:
    """Rename a record (or whatever stands there) out of the way, with its summary, and return its new path.

    Raises:
        FileError: where it cannot be renamed.
    """
    id = next((run.id for run in reversed(list(_runs_in(path)))), "") or _when(path)
    mark = _mark(id)
    kept = _free(path, mark)
    try:
        summary = path.with_name(SUMMARY)
        if _is_summary_of(summary, path.name):
            os.rename(summary, _free(summary, mark))
        os.rename(path, kept)
    except OSError as error:
        raise unwritable(path, error) from error
    return kept


def versions() -> dict[str, str]:
    """What the run is made of, as far as it is installed."""
    found = {"python": platform.python_version(), "numpy": np.__version__}
    for name in ("topoopt", "torch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _settings(config: TopoConfig) -> dict[str, Any]:
    """As `TopoConfig.to_json` writes them; a policy of the user's own, which that refuses, by its repr."""
    try:
        return json.loads(config.to_json())
    except ConfigError:
        return {f.name: getattr(config, f.name) for f in fields(config)} | {"mode": repr(config.mode)}


def _check_place(path: Path) -> None:
    try:
        with suppress(FileNotFoundError):
            path.lstat()  # which, unlike exists(), says of a name that it cannot be one
        odd = path.exists() and not path.is_file()
    except (OSError, ValueError) as error:
        raise unwritable(path, error) from error
    if odd or not path.name:
        raise RecordError(f"{path} is a folder or a device, not a file: give a path such as run/record.jsonl")


def _goes_on(path: Path, run: Run | None) -> bool:
    """Whether a run is the one in the file, or was resumed from the last one in it."""
    if path.is_symlink():
        return False
    if path.stat().st_size == 0:
        return True
    ids: set[str] = set()
    for one in _runs_in(path):
        same = one.id in ids or (one.resumed and one.resumed in ids)
        ids = {*ids, one.id} if same else {one.id}
    return run is not None and (run.id in ids or bool(run.resumed and run.resumed in ids))


def _runs_in(path: Path) -> Iterator[Run]:
    """The runs that a record's headers name; nothing for what is no record."""
    try:
        with path.open("rb") as file:
            while text := file.readline(lines.LONGEST):
                if text.startswith(b'{"type":"header"'):
                    try:
                        line = border.decode(text, "header")
                    except (ValueError, RecursionError):
                        continue
                    if isinstance(line, lines.Header) and line.run is not None:
                        yield line.run
    except OSError:
        return  # a dangling link: there is nothing to go on with


def _ends_in_mid_line(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _is_summary_of(path: Path, record: str) -> bool:
    try:
        data: Any = json.loads(path.read_bytes()[: lines.LONGEST]) if path.is_file() and not path.is_symlink() else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and "topoopt" in data and data.get("record") == record


def _mark(id: str) -> str:
    """An id as a part of a file's name."""
    return "".join(c for c in id if c.isalnum() or c in "-_")[:40] or "old"


def _free(path: Path, mark: str) -> Path:
    names = (f"{path.stem}-{mark}{more}{path.suffix}" for more in ("", *(f"-{i}" for i in range(2, 10**6))))
    return next(place for place in map(path.with_name, names) if not os.path.lexists(place))


def _when(path: Path) -> str:
    return datetime.fromtimestamp(path.lstat().st_mtime, UTC).strftime("%Y%m%dT%H%M%SZ")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

"""Sinks that fail, hang, exit or do what they should not; and places that cannot be written."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from fault_table import fault
from fault_training import Observed, Ways, failing, observe

from topoopt.integrations.background import BackgroundSink
from topoopt.report import JsonLines, read
from topoopt.report import sink as sink_file


class Sink:
    """One that raises whatever it is given."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error, self.closed = error, False

    def __call__(self, measurement: Any) -> None:
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closed = True


def sinking(name: str, injected: str, error: BaseException, said: str) -> None:
    def row() -> Observed:
        sink = Sink(error)
        found = observe(sinks=(sink,))
        assert found.measured == 8  # the sink behind it
        return found

    fault(name, injected, said=said, counts={"fault/sink Sink": 5})(row)


sinking(
    "a sink raises",
    "`OSError` at each measurement",
    OSError("disk full"),
    "sink Sink is switched off: it failed 5 times",
)
sinking("a sink exits", "`SystemExit(3)` at each measurement", SystemExit(3), "sink Sink failed (SystemExit: 3)")
sinking("a sink is cancelled", "`asyncio.CancelledError`", asyncio.CancelledError(), "sink Sink failed (CancelledError")


@fault("a sink raises at its end", "in `end` and in `close`", said="sink Ending failed (ValueError: at the end)")
def at_the_end() -> Observed:
    class Ending(Sink):
        def end(self, summary: Any) -> None:
            raise ValueError("at the end")

    sink = Ending()
    found = observe(sinks=(sink,))
    assert sink.closed
    return found


@fault(
    "a sink whose attributes raise",
    "`__getattr__` that raises `RuntimeError`",
    said="sink Strange failed (RuntimeError: no such",
    counts={"fault/sink Strange": 5},
)
def strange() -> Observed:
    class Strange:
        def __call__(self, measurement: Any) -> None:
            return None

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("no such thing")

    return observe(sinks=(Strange(),))


@fault("a sink detaches the optimizer", "`optimizer.detach()` at the third measurement")
def detaches() -> Observed:
    made: list[Any] = []

    def sink(measurement: Any) -> None:
        if measurement.step == 2:
            made[0].detach()

    found = observe(sinks=(sink,), before=made.append)
    assert type(made[0]).__name__ == "SGD"
    assert found.measured == 3
    return found


@fault(
    "a sink measures",
    "`optimizer.measure()` at each measurement, without end",
    said="sink function failed (RecursionError",
    counts={"fault/sink function": 1},
)
def measures() -> Observed:
    made: list[Any] = []
    calls = [0]

    def sink(measurement: Any) -> None:
        calls[0] += 1
        if calls[0] < 30:
            made[0].measure()
        elif calls[0] == 30:
            raise RecursionError("without end")

    return observe(sinks=(sink,), before=made.append)


@fault("a sink saves the optimizer", "`optimizer.state_dict()` at each measurement")
def saves() -> Observed:
    made: list[Any] = []
    return observe(sinks=(lambda m: made[0].state_dict() and None,), before=made.append, mode="preserve")


@fault("a slow sink", "20 ms at each measurement, with a budget of 1 %: measured more rarely", recorded="")
def slow() -> Observed:
    calls = [0]

    def sink(measurement: Any) -> None:
        calls[0] += 1
        time.sleep(0.02)

    found = observe(sinks=(sink,), steps=30, budget=0.01)
    assert 1 <= calls[0] <= 5
    assert found.run.cadence.spent > 0.02 * calls[0]
    return found


@fault(
    "a tracker hangs",
    "a delivery that never ends; closed after its patience",
    said="did not finish in 0 s and was left behind",
)
def hangs() -> Observed:
    import threading

    stuck = threading.Event()

    class Tracker(BackgroundSink):
        def deliver(self, measurement: Any) -> None:
            stuck.wait(20)

    sink = Tracker(patience=0.05)
    found = observe(sinks=(sink,))
    stuck.set()
    assert sink.dropped > 0
    found.said = [text for text in found.said if "did not finish" in text]
    return found


@fault(
    "a tracker has no thread",
    "`RuntimeError` from `Thread.start`, once",
    said="sink Tracker failed (RuntimeError: can't start new thread)",
    counts={"fault/sink Tracker": 1},
)
def no_thread() -> Observed:
    import threading

    got: list[int] = []

    class Tracker(BackgroundSink):
        def deliver(self, measurement: Any) -> None:
            got.append(measurement.step)

    error = RuntimeError("can't start new thread")
    found = observe(lambda topo: failing(threading.Thread, "start", error, 1), sinks=(Tracker(),))
    assert got == list(range(8))
    return found


def recorded(inject: Any, *, ways: Ways | None = None, place: str = "run/record.jsonl") -> tuple[Observed, Path]:
    """A run whose record is written into a folder; the folder is the caller's to remove."""
    folder = Path(tempfile.mkdtemp())
    sink = JsonLines(folder / place)
    return observe(inject, sinks=(sink,), ways=ways), folder


@fault(
    "the disk is full",
    "`ENOSPC` from `write`, always",
    said="sink JsonLines is switched off: it failed 5 times in a row (FileError",
    counts={"fault/sink JsonLines": 5},
)
def disk_full() -> Observed:
    def write(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    found, folder = recorded(lambda topo: mock.patch.object(sink_file.os, "write", write))
    shutil.rmtree(folder)
    return found


@fault(
    "the disk is full in the middle of a line",
    "half of one write, then `ENOSPC`, then room again",
    said="sink JsonLines failed (FileError",
    counts={"fault/sink JsonLines": 1},
)
def half_a_line() -> Observed:
    real, calls = os.write, [0]

    def write(fd: int, data: Any) -> int:
        calls[0] += 1
        if calls[0] == 9:
            return real(fd, bytes(data)[: len(data) // 2])
        if calls[0] == 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    found, folder = recorded(lambda topo: mock.patch.object(sink_file.os, "write", write))
    record = read(folder / "run")
    shutil.rmtree(folder)
    assert len(record.measurements) >= 7
    return found


@fault(
    "the folder of the record is removed",
    "`rm -r` in the run: the summary cannot be written",
    said="sink JsonLines failed (FileError",
)
def folder_removed() -> Observed:
    place: list[Path] = []

    def early(step: int, problem: Any) -> None:
        if step == 4:
            for folder in place:
                shutil.rmtree(folder, ignore_errors=True)

    folder = Path(tempfile.mkdtemp())
    place.append(folder)
    return observe(sinks=(JsonLines(folder / "run" / "record.jsonl"),), ways=Ways(early=early))


@fault("the program changes its folder", "`os.chdir` in the run, the record at a relative path")
def folder_changed() -> Observed:
    home, folder = os.getcwd(), Path(tempfile.mkdtemp())
    (folder / "other").mkdir()

    def early(step: int, problem: Any) -> None:
        if step == 4:
            os.chdir(folder / "other")

    os.chdir(folder)
    try:
        found = observe(sinks=(JsonLines("run/record.jsonl"),), ways=Ways(early=early))
        assert sorted(p.name for p in (folder / "run").iterdir()) == ["record.jsonl", "summary.json"]
        assert list((folder / "other").iterdir()) == []
    finally:
        os.chdir(home)
        shutil.rmtree(folder)
    return found


@fault("a symbolic link takes the record's place", "before the run, to a file of somebody's")
def symlink() -> Observed:
    folder = Path(tempfile.mkdtemp())
    precious = folder / "precious"
    precious.write_text("mine")
    (folder / "record.jsonl").symlink_to(precious)
    found = observe(sinks=(JsonLines(folder / "record.jsonl"),))
    assert precious.read_text() == "mine"
    assert read(folder / "record.jsonl").measurements
    shutil.rmtree(folder)
    return found


@fault(
    "the place of the record cannot be", "a folder, a file as a folder, `/proc`; refused when the sink is made", said=""
)
def no_place() -> Observed:
    from topoopt.errors import TopoError

    folder = Path(tempfile.mkdtemp())
    (folder / "file").write_text("")
    for place in (folder, folder / "file" / "record.jsonl", Path("/proc/none/record.jsonl"), Path("a\0b")):
        with pytest.raises(TopoError, match=r"cannot be written|is a folder"):
            JsonLines(place)
    shutil.rmtree(folder)
    return observe(steps=2)

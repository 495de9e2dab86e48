"""A tracker on its own thread: nothing it does reaches the run."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from topoopt.integrations.background import BackgroundSink
from topoopt.integrations.rows import Pictures, Rows, markdown, table


class Tracker(BackgroundSink):
    """Keeps what it is given; waits for `go` first, and raises where told."""

    def __init__(self, *, bad=(), **options):
        super().__init__(**options)
        self.go = threading.Event()
        self.seen = []
        self.finished = 0
        self.bad = bad

    def open(self):
        if "open" in self.bad:
            raise OSError("no tracker here")

    def deliver(self, measurement):
        self.go.wait(10)
        if measurement.step in self.bad:
            raise RuntimeError(f"cannot take step {measurement.step}")
        self.seen.append(measurement)

    def finish(self):
        self.finished += 1


def test_delivers_in_order_and_finishes_once(make):
    sink = Tracker()
    sink.go.set()
    for step in range(20):
        sink(make(step))
    sink.close()
    sink.close()
    assert [m.step for m in sink.seen] == list(range(20))
    assert (sink.finished, sink.dropped, sink.faults) == (1, 0, 0)


def test_a_closed_sink_can_be_used_again(make):
    """A callback's second training sends to the same sinks."""
    sink = Tracker()
    sink.go.set()
    for step in (0, 1):
        sink(make(step))
        sink.close()
    assert [m.step for m in sink.seen] == [0, 1]
    assert sink.finished == 2


def test_a_stuck_tracker_costs_the_run_nothing_and_drops_the_oldest(make):
    sink = Tracker(limit=3, patience=5.0)
    sink(make(0))
    while sink._waiting:  # step 0 is in the tracker's hands
        time.sleep(0.001)
    began = time.perf_counter()
    for step in range(1, 11):
        sink(make(step))
    assert time.perf_counter() - began < 0.5
    assert sink.dropped == 7
    sink.go.set()
    sink.close()
    assert [m.step for m in sink.seen] == [0, 8, 9, 10]


def test_close_gives_up_after_its_patience(make, caplog):
    sink = Tracker(patience=0.2)
    sink(make(0))
    sink(make(1))
    began = time.perf_counter()
    with caplog.at_level(logging.WARNING, "topoopt"):
        sink.close()
    assert 0.1 < time.perf_counter() - began < 2
    assert sink.dropped == 1
    assert "left behind" in caplog.text
    sink(make(2))  # the tracker still hangs: nothing is waited for, nothing piles up
    assert sink.dropped == 2
    sink.go.set()


def test_a_waiting_step_is_superseded(make):
    sink = Tracker()
    sink(make(0))
    while sink._waiting:
        time.sleep(0.001)
    sink(make(1, loss=1.0))
    sink(make(1, loss=2.0))
    sink.go.set()
    sink.close()
    assert [(m.step, m.loss) for m in sink.seen[1:]] == [(1, 2.0)]


def test_faults_are_logged_once_and_counted(make, caplog):
    sink = Tracker(bad=(1, 2))
    sink.go.set()
    with caplog.at_level(logging.WARNING, "topoopt"):
        for step in range(4):
            sink(make(step))
        sink.close()
    assert [m.step for m in sink.seen] == [0, 3]
    assert sink.faults == 2
    assert caplog.text.count("cannot take step 1") == 2  # the message and its traceback
    assert "cannot take step 2" not in caplog.text


def test_a_tracker_that_cannot_be_opened_drops_everything(make, caplog):
    sink = Tracker(bad=("open",))
    with caplog.at_level(logging.WARNING, "topoopt"):
        for step in range(5):
            sink(make(step))
        sink.close()
    assert (sink.seen, sink.dropped, sink.finished) == ([], 5, 0)
    assert "no tracker here" in caplog.text


def test_closing_an_unused_sink_starts_nothing():
    sink = Tracker()
    sink.close()
    assert sink._thread is None


def test_rows_of_a_repeated_step_hold_only_what_changed(make, make_group):
    rows = Rows()
    first = make(3)
    assert rows.row(first) == first.scalars()
    late = {**first.groups, "layer.1": make_group(gain=0.5, total_persistence=(0.5, 9.0))}
    assert rows.row(make(3, groups=late)) == {"topo/step": 3.0, "topo/layer.1/persistence_h1": 9.0}
    assert rows.row(make(4)) == make(4).scalars()


def test_loops_that_come_late_are_drawn_after_all(make, make_group):
    pytest.importorskip("matplotlib")
    clock = [0.0]
    pictures = Pictures(seconds=60.0, clock=lambda: clock[0])
    h0, h1 = make_group().diagrams
    early = {"wide": make_group(n=64, diagrams=(h0,)), "narrow": make_group(n=4, diagrams=(h0,))}
    late = {"wide": make_group(n=64, diagrams=(h0, h1)), "narrow": make_group(n=4, diagrams=(h0, h1))}
    assert set(pictures.due(make(0, groups=early))) == {"topo/wide/diagram", "topo/wide/betti"}
    assert not pictures.due(make(0, groups=late))  # too soon after the one before
    clock[0] = 61.0
    assert "topo/wide/diagram" in pictures.due(make(0, groups=late))
    clock[0] = 200.0
    assert not pictures.due(make(0, groups=late))  # nothing new
    assert set(pictures.last()) == {"topo/history"}


def test_table_has_a_row_for_each_layer(make):
    rows = table(make(0))
    assert [row[0] for row in rows] == ["layer.0", "layer.1"]
    text = markdown(rows)
    assert "| layer.1 | 8 | 5 | 0.5 | True | 0.7 | 1.3 |" in text
    assert len(text.splitlines()) == 4

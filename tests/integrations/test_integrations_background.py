"""A tracker on its own thread: nothing it does reaches the run."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from topoopt.integrations.background import BackgroundSink
from topoopt.integrations.pictures import Pictures
from topoopt.integrations.rows import HEADLINES, Rows, markdown, table
from topoopt.measurement import Phase, SpectralReading
from topoopt.summary import Run, Summary
from topoopt.verdict import judge


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
    for step in range(1, 11):
        sink(make(step))
    assert sink.seen == []  # the tracker has not come back yet: nobody has waited for it
    assert sink.dropped == 7
    sink.go.set()
    sink.close()
    assert [m.step for m in sink.seen] == [0, 8, 9, 10]


def test_close_gives_up_after_its_patience(make, caplog):
    sink = Tracker(patience=0.2)
    sink(make(0))
    sink(make(1))
    with caplog.at_level(logging.WARNING, "topoopt"):
        sink.close()
    assert not sink.go.is_set()  # it has not waited for the tracker
    assert sink.seen == []
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


def reading(step, r=0.5, **changes):
    return SpectralReading(**{"step": step, "r": r, "edge": 2.0, "lr": (0.1,), "loss": 1.0, "silent": 0.25} | changes)


RUN = Run("id", "2026-01-01T00:00:00+00:00", "MLP", 10, "SGD", "sgd", (0.1,), {"every": 2}, {"topoopt": "0.2.0"})


def test_everything_of_a_run_is_delivered_in_order(make):
    told = []

    class Whole(BackgroundSink):
        def deliver_begin(self, run):
            told.append(("begin", run.id))

        def deliver_reading(self, reading):
            told.append(("reading", reading.step))

        def deliver(self, measurement):
            told.append(("measurement", measurement.step))

        def deliver_verdict(self, step, verdict):
            told.append(("verdict", step))

        def deliver_end(self, summary):
            told.append(("end", summary.steps))

    sink = Whole()
    sink.begin(RUN)
    assert sink._thread is None  # nothing was read yet
    sink.reading(reading(0))
    sink(make(0))
    sink.verdict(0, judge([]))
    sink.reading(reading(1))
    sink.late(make(0, loss=2.0))
    sink.end(Summary(RUN, judge([]), 2, 2, 1, 1.0, 0.1, 0.0))
    sink.close()
    assert [what for what, _ in told if what not in ("reading", "measurement")] == ["begin", "verdict", "end"]
    assert told[0] == ("begin", "id")
    assert told[-1] == ("end", 2)
    assert [step for what, step in told if what == "reading"] == [0, 1]


def test_what_a_run_says_of_itself_is_never_dropped(make):
    sink = Tracker(limit=2)
    sink(make(0))
    while sink._waiting:
        time.sleep(0.001)
    sink.verdict(0, judge([]))
    for step in range(1, 6):
        sink(make(step))
    assert [key[0] for key in sink._waiting] == ["deliver_verdict", "deliver", "deliver"]
    assert sink.dropped == 3
    sink.go.set()
    sink.close()


def test_a_tracker_that_exits_is_a_fault(make, caplog):
    class Leaving(BackgroundSink):
        def deliver(self, measurement):
            raise SystemExit(3)

    sink = Leaving()
    for step in range(3):
        sink(make(step))
    sink.close()
    assert sink.faults == 3


def test_rows_hold_each_value_once_at_its_own_step(make, make_group):
    rows = Rows()
    first = rows.row(reading(3))
    assert first["topo/step"] == 3.0
    assert first["topo/r_over_edge"] == 0.25
    assert first["topo/silent"] == 0.25
    assert first["topo/phase"] == 0.0
    whole = make(3, r_spec=0.5, loss=1.0, lr=(0.1,), proximity=0.5)
    second = rows.row(whole)
    assert not {"topo/r_over_edge", "topo/loss", "topo_details/r"} & second.keys()  # the reading has written them
    assert second["topo_layers/layer.0/gain"] == 0.25
    assert not [key for key in second if key.startswith("topo/") and key not in (*HEADLINES, "topo/step")]
    rows.row(reading(4))
    late = {**whole.groups, "layer.1": make_group(gain=0.5, diagrams_step=3, total_persistence=(0.5, 9.0))}
    added = rows.row(make(3, r_spec=0.5, loss=1.0, lr=(0.1,), proximity=0.5, groups=late))
    assert added == {"topo/step": 3.0, "topo_layers/layer.1/persistence_h1": 9.0}  # layer.0 is of step 0 still
    assert rows.row(whole) | {"topo_layers/layer.1/persistence_h1": 0.25} == {"topo/step": 3.0} | {
        "topo_layers/layer.1/persistence_h1": 0.25
    }


def test_loops_are_told_when_all_of_their_step_are_there(make, make_group):
    early = make(2, groups={"a": make_group(diagrams_step=2), "b": make_group(diagrams_step=2, pending=True)})
    assert "topo/loops" not in Rows().row(early)
    assert Rows().row(make(2, groups={"a": make_group(diagrams_step=2)}))["topo/loops"] == 1.0
    assert "topo/loops" not in Rows().row(make(4, groups={"a": make_group(diagrams_step=2)}))  # of an earlier step


def test_a_run_in_which_nothing_moves_is_in_no_phase():
    rows = Rows()
    for step in range(8):
        row = rows.row(reading(step, r=1e-6, silent=0.95, loss=2.3, grad_norm=1.0, update_ratio=1e-3))
    assert rows.phase is Phase.UNKNOWN
    assert row["topo/step"] == 7.0


def test_loops_that_come_late_are_drawn_after_all(make, make_group):
    pytest.importorskip("matplotlib")
    clock = [0.0]
    pictures = Pictures(seconds=60.0, clock=lambda: clock[0])
    h0, h1 = make_group().diagrams
    early = {"wide": make_group(n=64, diagrams=(h0,)), "narrow": make_group(n=4, diagrams=(h0,))}
    late = {"wide": make_group(n=64, diagrams=(h0, h1)), "narrow": make_group(n=4, diagrams=(h0, h1))}
    assert set(pictures.due(make(0, groups=early))) == {"topo_layers/wide/diagram", "topo_layers/wide/betti"}
    assert not pictures.due(make(0, groups=late))  # too soon after the one before
    clock[0] = 61.0
    assert "topo_layers/wide/diagram" in pictures.due(make(0, groups=late))
    clock[0] = 200.0
    assert not pictures.due(make(0, groups=late))  # nothing new
    assert set(pictures.last()) == {"topo_details/history"}


def test_table_has_a_row_for_each_layer(make):
    rows = table(make(0))
    assert [row[0] for row in rows] == ["layer.0", "layer.1"]
    text = markdown(rows)
    assert "| layer.1 | 8 | 5 | 0.5 | True | 0.7 | 1.3 |" in text
    assert len(text.splitlines()) == 4

"""How homology ends: with the program, however that ends, in a fork, at Ctrl-C; and what is then said of it."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from topoopt.errors import MeasurementError
from topoopt.geometry import distances
from topoopt.homology import HomologyWorker, persistence

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
BACKENDS = ["redzed", "ripser"]
PROGRAM = """
import os, signal, sys, threading, time, torch
from topoopt.geometry import distances
from topoopt.homology import HomologyWorker
{first}
worker = HomologyWorker(backend="{backend}")
worker.submit("a", 7, points=torch.randn({n}, 20))
while worker._rips._process is None: time.sleep(0.01)
print(worker._rips._process.pid, flush=True)
{rest}
"""
LARGE = 3500
"""Neurons for which ripser takes most of a minute, redzed-tda seconds."""


def cloud(n: int, d: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def program(backend: str, rest: str, n: int = LARGE, first: str = "") -> list[str]:
    return [sys.executable, "-c", PROGRAM.format(backend=backend, n=n, rest=rest, first=first)]


def job_of(worker: HomologyWorker) -> int:
    """The process that computes, once there is one: it is seen at work, however fast or slow the machine is."""
    while worker._rips._process is None:
        time.sleep(0.001)
    pid = worker._rips._process.pid
    children = f"/proc/{pid}/task/{pid}/children"
    while not (jobs := open(children).read().split()):  # noqa: SIM115 -- looked at over and over
        time.sleep(0.001)
    return int(jobs[0])


def group_is_gone(pid: int, patience: float = 20.0) -> bool:
    """Whether all processes of a process group end before patience does."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_program_ends_in_the_middle_of_a_job(backend):
    """No hang: ripser would need a minute. No abort: redzed's thread would wake up in what is left of the interpreter."""
    done = subprocess.run(program(backend, "time.sleep(0.5)"), capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert group_is_gone(int(done.stdout))


@linux
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_program_that_is_killed(backend, ending):
    """Even where a fork of the program, such as a data loader's worker, holds its ends of the pipes open."""
    rest = "fork = os.fork()\nif fork: print(fork, flush=True)\ntime.sleep(100)"
    with subprocess.Popen(program(backend, rest), stdout=subprocess.PIPE, text=True) as running:
        pid, fork = int(running.stdout.readline()), int(running.stdout.readline())
        time.sleep(0.5)
        running.send_signal(ending)
        running.stdout.close()
        gone = group_is_gone(pid)
        os.kill(fork, signal.SIGKILL)
    assert gone


@linux
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_job_ends_with_the_process_that_watches_it(backend):
    worker = HomologyWorker(backend=backend)
    worker.submit("a", 1, points=cloud(LARGE, 20))
    job_of(worker)
    process = worker._rips._process
    (lost,) = worker.close()
    assert (lost.group, lost.step, lost.persistence) == ("a", 1, None)
    assert "given up" in lost.error
    assert group_is_gone(process.pid)
    assert worker.pending == []


HELD = """
from topoopt.homology.process import ProcessRips
go, real = threading.Event(), ProcessRips.__call__
def held(rips, *job):
    rips._running()  # the process is there
    go.wait()  # and the job is under way for as long as it must be
    return real(rips, *job)
ProcessRips.__call__ = held
"""
FORK = """
def child():
    go.set()
    lost = worker.collect(wait=True)
    worker.submit("b", 1, points=torch.randn(20, 3))
    (mine,) = worker.collect(wait=True)
    return [(one.group, one.step, one.error) for one in lost], (mine.group, mine.error), worker._rips._process.pid
read, write = os.pipe()
if not os.fork():
    os.write(write, repr(child()).encode()); sys.exit(0)  # with all that the end of an interpreter does
os.close(write); print(os.read(read, 10000).decode()); os.wait()
go.set()
(done,) = worker.collect(wait=True)
print(done.error or "fine", worker.restarts)
"""


def test_a_fork_of_the_program_has_a_worker_of_its_own():
    """It does not wait for a thread that it has not got, and neither uses nor ends its parent's process."""
    command = program("redzed", FORK, 100, HELD)
    done = subprocess.run(command, capture_output=True, text=True, errors="backslashreplace", timeout=200, check=False)
    assert done.stdout.count("\n") == 3, (done.stdout, done.stderr)
    pid, told, parent = done.stdout.splitlines()
    lost, mine, childs_pid = eval(told)
    assert lost == [("a", 7, "it belongs to the process that this one was forked from")]
    assert mine == ("b", "")
    assert int(pid) != childs_pid
    assert parent == "fine 0"
    assert done.returncode == 0


def test_ctrl_c_while_waiting():
    worker = HomologyWorker(backend="ripser")
    worker.submit("a", 1, points=cloud(LARGE, 20))
    worker.submit("b", 2, points=cloud(10))

    def wait() -> None:
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        worker.collect(wait=True)

    with pytest.raises(KeyboardInterrupt):
        wait()
    assert worker.pending == [("a", 1), ("b", 2)]
    lost = worker.close()
    assert [(one.group, one.step, bool(one.error)) for one in lost] == [("a", 1, True), ("b", 2, True)]
    assert worker.close() == []


def test_close_hands_over_what_was_done():
    worker = HomologyWorker()
    worker.submit("a", 3, points=cloud(20))
    while worker.pending:
        time.sleep(0.01)
    (done,) = worker.close()
    assert (done.step, done.error) == (3, "")
    assert len(done.persistence.diagrams) == 2


def test_a_backend_that_crashes_costs_its_job_alone():
    worker = HomologyWorker(backend="ripser")
    worker.submit("a", 1, points=cloud(LARGE, 20))
    os.kill(job_of(worker), signal.SIGSEGV)
    worker.submit("b", 2, points=cloud(10))
    crashed, done = worker.collect(wait=True)
    assert "the back-end died (-11)" in crashed.error
    assert (done.step, done.error) == (2, "")
    worker.close()


def test_each_cause_is_logged_once_and_counted(caplog):
    worker = HomologyWorker()
    wrong = torch.rand(5, 5)
    nan = cloud(6)
    nan[4, 0] = torch.nan
    with caplog.at_level(logging.WARNING, "topoopt"):
        for step in range(3):
            worker.submit("a", step, wrong + step)
            worker.submit("b", step, points=nan)
    assert [one.persistence for one in worker.collect(wait=True)] == [None] * 6
    assert sorted(worker.failures.values()) == [3, 3]
    assert len(caplog.records) == 2
    assert "neurons 4" in caplog.text
    assert "'b' at step 0" in caplog.text


class TestWhatWaits:
    """Bounded in number and in bytes, and no more than homology looks at."""

    @pytest.fixture(autouse=True)
    def nothing_is_served(self, monkeypatch):
        monkeypatch.setattr(HomologyWorker, "_start", lambda worker: True)

    @pytest.mark.parametrize("given", ["distances", "points"])
    def test_landmarks_are_cut_before(self, given):
        """Of 3,000 neurons 36 MB of distances; of 256 landmarks 0.26."""
        worker, x = HomologyWorker(max_points=256), cloud(3000, 8)
        worker.submit("a", 1, **{given: distances(x) if given == "distances" else x})
        assert worker.waiting_bytes == 4 * (256**2 + 2999)

    def test_the_oldest_are_dropped_beyond_the_bound(self):
        worker = HomologyWorker(max_bytes=100_000)
        for step in range(4):
            worker.submit("a", step, points=cloud(100))  # 40,396 bytes each
        dropped = worker.collect()
        assert [one.step for one in dropped] == [0, 1]
        assert "0 MiB were waiting" in dropped[0].error
        assert worker.pending == [("a", 2), ("a", 3)]
        worker.submit("b", 9, points=cloud(300))  # more than the bound by itself: it may wait alone
        assert worker.pending == [("b", 9)]

    def test_only_what_is_asked_for_waits(self):
        worker = HomologyWorker(degree=0)
        worker.submit("a", 1, points=cloud(500))
        assert worker.waiting_bytes == 4 * 499


def test_h0_is_not_computed_again(monkeypatch):
    x = cloud(40)
    expected = persistence(x)
    deaths = expected.diagrams[0][:-1, 1]
    monkeypatch.setattr("topoopt.homology.sample.minimum_spanning_tree", lambda d: pytest.fail("it was known"))
    monkeypatch.setattr("topoopt.geometry.cloud.minimum_spanning_tree", lambda d: pytest.fail("it was known"))
    worker = HomologyWorker()
    worker.submit("a", 1, points=x, deaths=deaths)
    worker.submit("a", 2, distances(x), deaths=deaths)
    for done in worker.collect(wait=True):
        for found, known in zip(done.persistence.diagrams, expected.diagrams, strict=True):
            assert np.allclose(np.sort(found, 0), np.sort(known, 0), rtol=1e-6)
    worker.close()


@pytest.mark.parametrize("arguments", [{}, {"distances": torch.zeros(2, 2), "points": torch.zeros(2, 2)}])
def test_one_of_points_and_distances(arguments):
    with pytest.raises(MeasurementError, match="one of them"):
        HomologyWorker().submit("a", 1, **arguments)

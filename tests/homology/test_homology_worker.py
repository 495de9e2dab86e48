"""The worker: same diagrams, in order, never waited for; crashes, hangs and full queues are survived and reported."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from device_runs import accelerator

from topoopt.errors import ConfigError, MeasurementError
from topoopt.geometry import distances
from topoopt.homology import HomologyWorker, persistence
from topoopt.homology.process import ProcessRips

BACKENDS = ["redzed", "ripser"]


def matrix(n: int = 30, seed: int = 0) -> torch.Tensor:
    return distances(torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)))


@pytest.fixture
def worker(request):
    made = HomologyWorker(backend=getattr(request, "param", "redzed"))
    yield made
    made.close()


class Gate:
    """A back-end that waits until it is opened, and counts who has come in."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.entered = threading.Semaphore(0)
        self.deaths = 0

    def __call__(self, distances: np.ndarray, degree: int) -> list[np.ndarray]:
        self.entered.release()
        assert self.opened.wait(30)
        return [np.zeros((0, 2)) for _ in range(degree + 1)]

    def kill(self) -> None:
        """A call that hangs cannot be ended."""


@pytest.fixture
def gate(monkeypatch):
    made = Gate()
    monkeypatch.setattr("topoopt.homology.worker.ProcessRips", lambda backend: made)
    yield made
    made.opened.set()


@pytest.mark.parametrize("worker", BACKENDS, indirect=True)
def test_same_diagrams_in_order(worker):
    for step in range(5):
        worker.submit("mlp", step, matrix(seed=step))
    results = worker.collect(wait=True)
    assert [(one.group, one.step, one.error) for one in results] == [("mlp", step, "") for step in range(5)]
    for one in results:
        expected = persistence(distances=matrix(seed=one.step)).diagrams
        assert all(np.array_equal(np.sort(a, 0), np.sort(b, 0)) for a, b in zip(one.persistence.diagrams, expected))
    assert worker.collect(wait=True) == []
    assert worker.restarts == 0


def test_nothing_waits_unless_asked(gate):
    worker = HomologyWorker()
    worker.submit("a", 1, matrix())
    assert gate.entered.acquire(timeout=10)
    worker.submit("a", 2, matrix())
    assert worker.collect() == []
    assert worker.collect(wait=True, timeout=0.05) == []
    gate.opened.set()
    assert [one.step for one in worker.collect(wait=True)] == [1, 2]


@pytest.mark.parametrize("worker", BACKENDS, indirect=True)
def test_a_job_that_fails_is_named_and_the_next_goes_on(worker):
    bad = matrix()
    bad[4, 5] = bad[5, 4] = torch.nan
    worker.submit("a", 1, bad)
    worker.submit("b", 2, matrix())
    failed, fine = sorted(worker.collect(wait=True), key=lambda one: one.step)
    assert (failed.group, failed.step, failed.persistence) == ("a", 1, None)
    assert "neurons 4, 5" in failed.error
    assert fine.persistence is not None
    assert worker.restarts == 0


def test_landmarks_and_degree():
    worker = HomologyWorker(degree=2, max_points=20)
    worker.submit("a", 1, matrix(50))
    (done,) = worker.collect(wait=True)
    assert len(done.persistence.diagrams) == 3
    assert done.persistence.covering_radius > 0
    assert len(done.persistence.diagrams[0]) == 50


def test_a_hung_thread_is_given_up(gate):
    worker = HomologyWorker(limit=0.2)
    worker.submit("a", 1, matrix())
    worker.submit("b", 2, matrix())
    assert gate.entered.acquire(timeout=10)
    (hung,) = worker.collect(wait=True, timeout=0.3)
    assert (hung.step, hung.persistence, worker.restarts) == (1, None, 1)
    assert "no result after 0.2 seconds" in hung.error
    gate.opened.set()
    (done,) = worker.collect(wait=True)
    assert (done.step, done.error) == (2, "")


def test_what_a_given_up_thread_says_later_is_ignored(gate):
    worker = HomologyWorker(limit=0.1)
    worker.submit("a", 1, matrix())
    assert len(worker.collect(wait=True)) == 1
    gate.opened.set()
    for thread in worker._threads:
        thread.join(10)
    assert worker.collect(wait=True) == []


@pytest.mark.parametrize("worker", BACKENDS, indirect=True)
def test_a_hung_process_is_ended(worker):
    worker.submit("a", 1, matrix())
    worker.collect(wait=True)
    old = worker._rips._process
    os.kill(old.pid, signal.SIGSTOP)
    worker.submit("b", 2, matrix())
    worker.submit("c", 3, matrix())
    time.sleep(0.3)
    worker._limit = 0.1
    (hung,) = worker.collect()
    worker._limit = 60.0  # a new process takes its time to start
    (done,) = worker.collect(wait=True)
    assert (hung.step, done.step, done.error) == (2, 3, "")
    assert old.poll() is not None
    assert worker.restarts == 1


@pytest.mark.parametrize("worker", BACKENDS, indirect=True)
def test_a_process_that_died_between_jobs(worker):
    worker.submit("a", 1, matrix())
    worker.collect(wait=True)
    worker._rips._process.kill()
    worker._rips._process.wait()
    worker.submit("b", 2, matrix())
    assert [one.error for one in worker.collect(wait=True)] == [""]
    assert worker.restarts == 1


@pytest.mark.parametrize("worker", BACKENDS, indirect=True)
def test_a_process_that_dies_in_a_job(worker):
    worker.submit("a", 1, matrix())
    worker.collect(wait=True)
    os.kill(worker._rips._process.pid, signal.SIGSTOP)
    worker.submit("b", 2, matrix())
    worker.submit("c", 3, matrix())
    time.sleep(0.2)
    os.kill(worker._rips._process.pid, signal.SIGKILL)
    crashed, done = worker.collect(wait=True)
    assert "died (-9)" in crashed.error
    assert (crashed.step, done.step, done.error) == (2, 3, "")
    assert worker.restarts == 1


def test_a_full_queue_drops_the_oldest(gate):
    worker = HomologyWorker(capacity=2)
    worker.submit("a", 0, matrix())
    assert gate.entered.acquire(timeout=10)
    for step in range(1, 5):
        worker.submit("a", step, matrix())
    gate.opened.set()
    results = worker.collect(wait=True)
    assert sorted((one.step, bool(one.error)) for one in results) == [
        (0, False),
        (1, True),
        (2, True),
        (3, False),
        (4, False),
    ]
    assert "2 newer jobs" in results[0].error


@pytest.mark.parametrize("worker", BACKENDS, indirect=True)
def test_close_ends_everything_and_another_submit_starts_anew(worker):
    worker.submit("a", 1, matrix(300))
    worker.close()
    assert worker.collect(wait=True) == []
    worker.submit("a", 2, matrix())
    assert [one.step for one in worker.collect(wait=True)] == [2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_thread_and_no_process_is_left(backend):
    worker = HomologyWorker(backend=backend)
    worker.submit("a", 1, matrix())
    worker.collect(wait=True)
    process = worker._rips._process
    for thread in worker._threads:
        thread.join(10)
        assert not thread.is_alive()
    alive = weakref.ref(worker)
    del worker, thread
    gc.collect()
    assert alive() is None
    assert process.poll() is not None


def test_ripser_that_refuses_is_no_death():
    rips = ProcessRips("ripser")
    with pytest.raises(MeasurementError, match="ripser failed"):
        rips(np.zeros((3, 4)), 1)
    assert len(rips(matrix().numpy(), 1)) == 2
    assert rips.deaths == 0
    rips.kill()


def test_unknown_backends_are_refused_at_once():
    with pytest.raises(ConfigError, match="gudhi"):
        HomologyWorker(backend="gudhi")


PROGRAM = """
import os, sys, threading, time, torch
print("main", flush=True)
from topoopt.geometry import distances
from topoopt.homology import HomologyWorker
worker = HomologyWorker(backend="{backend}")
worker.submit("a", 1, distances(torch.randn({n}, 20)))
{rest}
"""


def run(backend: str, n: int, rest: str) -> subprocess.CompletedProcess:
    program = PROGRAM.format(backend=backend, n=n, rest=rest)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=False)


def test_the_users_main_module_is_not_run_again():
    done = run("ripser", 50, "print(worker.collect(wait=True)[0].error or 'fine')")
    assert done.stdout.split() == ["main", "fine"]


@pytest.mark.gpu
def test_distances_made_on_another_stream():
    device = accelerator()
    worker = HomologyWorker()
    with torch.Stream(device):
        made = distances(torch.randn(2000, 64, device=device))
        worker.submit("a", 1, made)
    (done,) = worker.collect(wait=True)
    expected = persistence(distances=made.cpu()).diagrams[1]
    assert np.array_equal(np.sort(done.persistence.diagrams[1], 0), np.sort(expected, 0))

"""Homology off the training thread: jobs go to a worker, results are collected when they are there."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from topoopt.homology import backends
from topoopt.homology.persistence import Persistence, checked, compute
from topoopt.homology.process import ProcessRips

LIMIT = 300.0
"""Seconds after which a job counts as hung and its worker is replaced."""
CAPACITY = 64
"""Jobs that may wait; they hold their distance matrices."""
EXIT = 60.0
"""Seconds that the end of the program waits for a thread inside a back-end: it must not wake up in what is left of it."""
NICENESS = 10
"""The worker gives way to the training where the two share a processor."""


@dataclass(frozen=True)
class Finished:
    """What has become of a job: its `persistence`, or None and the `error`."""

    group: str
    step: int
    persistence: Persistence | None
    error: str = ""


@dataclass(frozen=True)
class _Job:
    group: str
    step: int
    distances: Tensor
    ready: torch.Event | None
    """Recorded where the distances were made, on a stream that the worker's own does not wait for."""

    def failed(self, error: str) -> Finished:
        return Finished(self.group, self.step, None, error)


class HomologyWorker:
    """Computes diagrams of degrees 0 to `degree` in the background, in the order in which they were asked for.

    redzed-tda runs in a thread, since it lets go of the GIL; ripser in a process of its own, through a thread. The thread
    is a daemon and lives while there are jobs. A crashed process fails its job and is replaced at the next; a job that
    takes longer than `limit` seconds is given up together with its worker, and those behind it go to a new one. When
    more than `capacity` jobs wait, the oldest of them is dropped. All of this comes back from `collect`, as an error.
    """

    def __init__(
        self,
        degree: int = 1,
        max_points: int = 4096,
        backend: str = "auto",
        *,
        limit: float = LIMIT,
        capacity: int = CAPACITY,
    ) -> None:
        self._degree, self._max_points, self._backend = degree, max_points, backends.choose(backend)
        self._limit, self._capacity = limit, capacity
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._done: list[Finished] = []
        self._running: tuple[_Job, float] | None = None
        """The job under way, and when it began."""
        self._serving: object | None = None
        """Stands for the thread that serves; one that finds another here has been given up."""
        self._rips = self._new_rips()
        self._replaced = 0
        self._threads: list[threading.Thread] = []
        if not _workers:
            atexit.unregister(_end_all)
            atexit.register(_end_all)
        _workers.add(self)

    @property
    def restarts(self) -> int:
        """Workers that were lost to a crash or a hang."""
        return self._replaced + (self._rips.deaths if isinstance(self._rips, ProcessRips) else 0)

    def submit(self, group: str, step: int, distances: Tensor) -> None:
        """Ask for the diagrams of distances (n, n). Returns at once; they are not copied and must not be changed."""
        ready = torch.cuda.current_stream(distances.device).record_event() if distances.is_cuda else None
        with self._changed:
            self._replace_if_hung()
            self._waiting.append(_Job(group, step, distances.detach(), ready))
            if len(self._waiting) > self._capacity:
                self._done.append(self._waiting.popleft().failed(f"dropped: {self._capacity} newer jobs were waiting"))
            self._start()

    def collect(self, wait: bool = False, timeout: float | None = None) -> list[Finished]:
        """Return what has finished since the last call; with `wait` until nothing is left or `timeout` seconds passed."""
        deadline = time.monotonic() + timeout if timeout is not None else float("inf")
        with self._changed:
            self._replace_if_hung()
            while wait and (self._running or self._waiting) and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(min(left, self._until_hung()))
                self._replace_if_hung()
            done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Stop; jobs that wait or run, and results that have not been collected, are lost. Another submit starts anew."""
        with self._changed:
            self._serving = self._running = None
            self._waiting.clear()
            self._done.clear()
            self._abandon()

    def _new_rips(self) -> ProcessRips | backends.Rips:
        return ProcessRips() if self._backend == "ripser" else backends.rips(self._backend)

    def _start(self) -> None:
        if self._serving is None:
            self._serving = object()
            arguments = (self._serving, self._rips)
            thread = threading.Thread(target=self._serve, args=arguments, name="topoopt-homology", daemon=True)
            thread.start()
            self._threads = [*(one for one in self._threads if one.is_alive()), thread]

    def _serve(self, me: object, rips: ProcessRips | backends.Rips) -> None:
        _give_way()
        while True:
            with self._changed:
                if self._serving is not me:
                    return
                if not self._waiting:
                    self._serving = None
                    return
                job = self._waiting.popleft()
                self._running = job, time.monotonic()
            result = self._compute(job, rips)
            with self._changed:
                if self._serving is not me:
                    return
                self._running = None
                self._done.append(result)
                self._changed.notify_all()

    def _compute(self, job: _Job, rips: ProcessRips | backends.Rips) -> Finished:
        try:
            if job.ready is not None:
                job.ready.synchronize()
            found = compute(checked(job.distances), self._degree, self._max_points, rips, self._backend)
        except Exception as error:
            return job.failed(f"{type(error).__name__}: {error}")
        return Finished(job.group, job.step, found)

    def _until_hung(self) -> float:
        """Seconds until the job under way counts as hung; never less than a millisecond."""
        if self._running is None:
            return self._limit
        return max(1e-3, self._running[1] + self._limit - time.monotonic())

    def _replace_if_hung(self) -> None:
        if self._running is None or time.monotonic() - self._running[1] < self._limit:
            return
        job, _ = self._running
        self._done.append(job.failed(f"no result after {self._limit:g} seconds: the worker was replaced"))
        self._serving = self._running = None
        self._replaced += 1
        self._abandon()
        if self._waiting:
            self._start()

    def _abandon(self) -> None:
        """Leave the back-end to whoever still runs it; a process can be ended, a thread only be ignored."""
        if isinstance(self._rips, ProcessRips):
            self._replaced += self._rips.deaths
            self._rips.kill()
            self._rips = ProcessRips()


_workers: weakref.WeakSet[HomologyWorker] = weakref.WeakSet()
"""Those that the end of the program must stop."""


def _end_all() -> None:
    deadline = time.monotonic() + EXIT
    for worker in list(_workers):
        worker.close()
        for thread in worker._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def _give_way() -> None:
    """Lower this thread's priority, and with it that of a process it starts, where threads have one of their own."""
    if sys.platform == "linux":
        with suppress(OSError):  # a courtesy that a sandbox may forbid
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)

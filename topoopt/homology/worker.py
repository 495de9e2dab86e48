"""Homology off the training thread: jobs go to a worker, results are collected when they are there."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from topoopt.device import Ready
from topoopt.errors import MeasurementError
from topoopt.geometry import Cloud, checked_distances
from topoopt.homology import backends, lifetime
from topoopt.homology.persistence import Persistence, compute
from topoopt.homology.process import ProcessRips
from topoopt.homology.sample import Sample, sample_of

LIMIT = 300.0
"""Seconds after which a job counts as hung and its worker is replaced."""
CAPACITY = 64
"""Jobs that may wait."""
MAX_BYTES = 256 << 20
"""Bytes of distances that may wait."""
GIVEN_UP = "given up: the worker was closed before it was done"
DROPPED = "dropped: "
FORKED = "it belongs to the process that this one was forked from"

logger = logging.getLogger("topoopt")


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
    sample: Sample
    ready: Ready
    """Recorded where the distances were made, on a stream that the worker's own does not wait for."""

    def failed(self, error: str) -> Finished:
        return Finished(self.group, self.step, None, error)


class HomologyWorker:
    """Computes diagrams of degrees 0 to `degree` in the background, in the order in which they were asked for.

    The back-end runs in a process of its own, through a thread, which is a daemon and lives while there are jobs. A crashed
    process fails its job and is replaced at the next; a job that takes longer than `limit` seconds is given up together with
    its process, and those behind it go to a new one. When more than `capacity` jobs or `max_bytes` of distances wait, the
    oldest are dropped (one alone always may wait). All of this comes back from `collect`, as an error; each cause is logged
    once.

    Nothing outlives the program: it ends without waiting, the process ends with it, and what was on its way is lost unless
    `collect` or `close` was called. A fork of the program begins with an empty worker of its own.
    """

    def __init__(
        self,
        degree: int = 1,
        max_points: int = 4096,
        backend: str = "auto",
        *,
        limit: float = LIMIT,
        capacity: int = CAPACITY,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._degree, self._max_points, self._backend = degree, max_points, backends.choose(backend)
        self._limit, self._capacity, self._max_bytes = limit, capacity, max_bytes
        self.failures: Counter[str] = Counter()
        """How often a job has failed, by cause."""
        self._replaced = 0
        self._threads: list[threading.Thread] = []
        self._begin()
        lifetime.register(self)

    def join(self, deadline: float) -> None:
        """Wait for the threads of a worker that was closed, until the clock says so."""
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._done: list[Finished] = []
        self._running: tuple[_Job, float] | None = None
        """The job under way, and when it began."""
        self._serving: object | None = None
        """Stands for the thread that serves; one that finds another here has been given up."""
        self._rips = ProcessRips(self._backend)

    @property
    def restarts(self) -> int:
        """Processes that were lost to a crash or a hang."""
        return self._replaced + self._rips.deaths

    @property
    def pending(self) -> list[tuple[str, int]]:
        """(group, step) of the jobs that run or wait."""
        with self._changed:
            return [(job.group, job.step) for job in self._unfinished()]

    @property
    def waiting_bytes(self) -> int:
        """Bytes held by the jobs that wait."""
        return sum(job.sample.nbytes for job in tuple(self._waiting))

    def submit(
        self,
        group: str,
        step: int,
        distances: Tensor | None = None,
        *,
        points: Tensor | Cloud | None = None,
        deaths: np.ndarray | Tensor | None = None,
        trusted: bool = False,
    ) -> None:
        """Ask for the diagrams of distances (n, n), or of points (n, d). Returns at once; neither may be changed afterwards.

        Of more than `max_points` points maxmin landmarks are chosen here, on their device; only their distances wait. With
        the `deaths` (n - 1,) of H0, which a `CloudMeasurement` holds, the spanning tree is not computed again, and of points
        nothing is read but the number of near twins. A matrix that holds no distances, and points that are not finite, fail
        the job. Distances that `geometry` has made of finite points are `trusted`: nothing of them is read here.

        Raises:
            MeasurementError: unless one of distances and points is given.
        """
        if (distances is None) == (points is None):
            raise MeasurementError("submit needs distances or points, one of them")
        try:
            d = distances if distances is None or trusted else checked_distances(distances)
            cloud = None if points is None else Cloud.of(points)
            if cloud is not None and deaths is None:
                cloud.require_finite()  # else it was measured, and has been found finite
            sample = sample_of(d, cloud, self._max_points if self._degree else 0, deaths=deaths)
        except MeasurementError as error:
            with self._changed:
                self._finish(Finished(group, step, None, f"{type(error).__name__}: {error}"))
            return
        with self._changed:
            self._replace_if_hung()
            self._waiting.append(_Job(group, step, sample, Ready(sample.distances)))
            self._drop()
            if not self._start():
                self._finish(self._waiting.pop().failed("no thread could be started for it"))

    def _drop(self) -> None:
        bytes_waiting = self.waiting_bytes
        while len(self._waiting) > 1 and (len(self._waiting) > self._capacity or bytes_waiting > self._max_bytes):
            many = len(self._waiting) > self._capacity
            oldest = self._waiting.popleft()
            bytes_waiting -= oldest.sample.nbytes
            limit = f"{self._capacity} newer jobs were" if many else f"more than {self._max_bytes >> 20} MiB were"
            self._finish(oldest.failed(f"{DROPPED}{limit} waiting"))

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

    def close(self) -> list[Finished]:
        """Stop at once. Returns what has not been collected; jobs that wait or run are in it, with an error.

        Another submit starts anew.
        """
        with self._changed:
            lost = [job.failed(GIVEN_UP) for job in self._unfinished()]
            done, self._done = [*self._done, *lost], []
            self._serving = self._running = None
            self._waiting.clear()
            self._abandon()
            self._changed.notify_all()
        return done

    def _unfinished(self) -> list[_Job]:
        return [*([self._running[0]] if self._running else []), *self._waiting]

    def _finish(self, result: Finished) -> None:
        """File a result; a failure is counted by its cause, and logged the first time."""
        self._done.append(result)
        if not result.error:
            return
        cause = re.sub(r"\d[\d.]*(e[+-]?\d+)?", "N", result.error)
        self.failures[cause] += 1
        if self.failures[cause] == 1:
            logger.warning(
                "topoopt: homology of group %r at step %d failed (%s); training goes on, further failures of this kind are "
                "only counted",
                result.group,
                result.step,
                result.error,
            )

    def _start(self) -> bool:
        """Have the jobs served; False where the system has no more threads."""
        if self._serving is not None:
            return True
        self._serving = object()
        arguments = (self._serving, self._rips)
        thread = threading.Thread(target=self._serve, args=arguments, name="topoopt-homology", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._serving = None
            return False
        self._threads = [*(one for one in self._threads if one.is_alive()), thread]
        return True

    def _serve(self, me: object, rips: ProcessRips) -> None:
        lifetime.give_way()
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
                self._finish(result)
                self._changed.notify_all()

    def _compute(self, job: _Job, rips: ProcessRips) -> Finished:
        try:
            job.ready.wait()
            found = compute(job.sample, self._degree, rips, self._backend)
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
        self._finish(job.failed(f"no result after {self._limit:g} seconds: the worker was replaced"))
        self._serving = self._running = None
        self._replaced += 1
        self._abandon()
        if self._waiting:
            self._start()

    def _abandon(self) -> None:
        """End the process, and leave the thread that waits for it to find out."""
        self._replaced += self._rips.deaths
        self._rips.kill()
        self._rips = ProcessRips(self._backend)

    def begin_anew(self) -> None:
        """In a fork of the program: the thread is not there, its lock may be held for ever, the process is another's."""
        lost = [job.failed(FORKED) for job in self._unfinished()]
        self._rips.forget()
        self._threads = []
        self._begin()
        self._done = lost

"""Homology off the training thread: jobs go to a worker, results are collected when they are there."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from topoopt.errors import MeasurementError
from topoopt.homology import backends, child
from topoopt.homology.h0 import spanning_tree
from topoopt.homology.persistence import Persistence, h0_diagram, refuse_nonfinite, subsample

LIMIT = 300.0
"""Seconds after which a job counts as hung and its worker is replaced."""


@dataclass(frozen=True)
class Finished:
    """A job's result: `persistence`, or None with the `error`."""

    group: str
    step: int
    persistence: Persistence | None
    error: str = ""


@dataclass(frozen=True)
class _Job:
    group: str
    step: int
    distances: Tensor


class Child:
    """A process for a back-end that holds the GIL, started at the first job and again after a crash."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def __call__(self, distances: np.ndarray, degree: int) -> list[np.ndarray]:
        """Run one job.

        Raises:
            MeasurementError: when the back-end fails or the process dies.
        """
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, str(Path(child.__file__))]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self.starts += 1
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            child.write_message(process.stdin, (distances, degree))
            answer = child.read_message(process.stdout)
        except OSError as error:
            answer = (None, f"the homology process is gone ({error})")
        diagrams, problem = answer if answer is not None else (None, f"the homology process died ({process.wait()})")
        if diagrams is None:
            raise MeasurementError(problem)
        return diagrams

    def kill(self) -> None:
        """End the process; a job under way fails."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


class _Lane:
    """One worker thread with its jobs and results; abandoned as a whole when it hangs."""

    def __init__(self, degree: int, max_points: int, backend: str) -> None:
        self.jobs: deque[_Job] = deque()
        self.done: deque[Finished] = deque()
        self.changed = threading.Condition()
        self.began = 0.0
        self.current: _Job | None = None
        self.closed = False
        self.child = Child() if backend == "ripser" else None
        self._degree, self._max_points, self._backend = degree, max_points, backend
        threading.Thread(target=self._serve, name="topoopt-homology", daemon=True).start()

    def _serve(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.jobs or self.closed)
                if self.closed:
                    return
                job = self.current = self.jobs.popleft()
                self.began = time.monotonic()
            try:
                result = Finished(job.group, job.step, self._compute(job.distances))
            except Exception as error:
                result = Finished(job.group, job.step, None, f"{type(error).__name__}: {error}")
            with self.changed:
                self.current = None
                if not self.closed:
                    self.done.append(result)
                self.changed.notify_all()

    def _compute(self, distances: Tensor) -> Persistence:
        began = time.perf_counter()
        with torch.no_grad():
            refuse_nonfinite(distances)
            h0 = h0_diagram(spanning_tree(distances).deaths)
            sample, radius, notes = subsample(distances, self._max_points)
            host = sample.cpu().numpy()
        rips = self.child if self.child is not None else backends.rips(self._backend)
        diagrams = [h0, *rips(host, self._degree)[1:]]
        return Persistence(diagrams, radius, self._backend, time.perf_counter() - began, notes)

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        if self.child is not None:
            self.child.kill()


class HomologyWorker:
    """Computes diagrams of degrees 0 to `degree` in the background, in the order in which they were asked for.

    redzed-tda runs in a thread, since it lets go of the GIL; ripser in a process of its own. A crashed process is started
    again for the next job; a job that takes longer than `limit` seconds is given up together with its worker, and the
    jobs behind it go to a new one. `restarts` counts both. A caller keeps at most one job of a group under way, so the
    queue is never longer than there are groups.
    """

    def __init__(self, degree: int = 1, max_points: int = 4096, backend: str = "auto", limit: float = LIMIT) -> None:
        self._options = (degree, max_points, backends.choose(backend))
        self._limit = limit
        self._lane: _Lane | None = None
        self._abandoned = 0
        self._failed_children = 0

    @property
    def restarts(self) -> int:
        """Workers that were replaced after a crash or a hang."""
        starts = self._lane.child.starts if self._lane is not None and self._lane.child is not None else 0
        return self._abandoned + self._failed_children + max(0, starts - 1)

    def submit(self, group: str, step: int, distances: Tensor) -> None:
        """Ask for the diagrams of distances (n, n); they are not copied and must not be changed."""
        lane = self._lane = self._lane or _Lane(*self._options)
        with lane.changed:
            lane.jobs.append(_Job(group, step, distances.detach()))
            lane.changed.notify_all()

    def collect(self, wait: bool = False, timeout: float | None = None) -> list[Finished]:
        """Return what has finished since the last call; with `wait` until all is done or `timeout` seconds have passed."""
        if self._lane is None:
            return []
        results: list[Finished] = []
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            lane = self._lane
            results += self._replace_if_hung()
            with lane.changed:
                results += lane.done
                lane.done.clear()
                idle = not lane.jobs and lane.current is None
                left = None if deadline is None else deadline - time.monotonic()
                if lane is not self._lane:
                    continue
                if not wait or idle or (left is not None and left <= 0):
                    return results
                hang = lane.began + self._limit - time.monotonic() if lane.current is not None else self._limit
                lane.changed.wait(timeout=max(0.001, min(hang, left if left is not None else hang)))

    def _replace_if_hung(self) -> list[Finished]:
        lane = self._lane
        assert lane is not None
        with lane.changed:
            job = lane.current
            if job is None or time.monotonic() - lane.began < self._limit:
                return []
            waiting = list(lane.jobs)
        self._failed_children += max(0, lane.child.starts - 1) if lane.child is not None else 0
        lane.close()
        self._abandoned += 1
        self._lane = _Lane(*self._options)
        for one in waiting:
            self.submit(one.group, one.step, one.distances)
        return [
            Finished(job.group, job.step, None, f"no result after {self._limit:g} seconds: the worker was replaced")
        ]

    def close(self) -> None:
        """Stop; what has not been collected is lost."""
        if self._lane is not None:
            self._failed_children = self.restarts - self._abandoned
            self._lane.close()
            self._lane = None

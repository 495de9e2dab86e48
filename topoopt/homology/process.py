"""A back-end in a process of its own, which can be ended at any moment, and ends with the training in any case."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from topoopt.errors import MeasurementError
from topoopt.homology import child


class ProcessRips:
    """redzed-tda or ripser in a child process: started at the first call, and again at the first call after it died.

    The process is a fresh interpreter that runs `child` and nothing of the user's program: no fork, which would copy the
    locks of running threads, and no import of the user's main module. It ends with this object, and with the program, even
    where that is killed; a fork of the program neither shares it nor ends it.
    """

    def __init__(self, backend: str) -> None:
        self.backend, self.deaths = backend, 0
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize | None = None

    def __call__(self, distances: np.ndarray, degree: int) -> list[np.ndarray]:
        """Run one job: distances (n, n) to the diagrams of degrees 0 to `degree`.

        Raises:
            MeasurementError: when the back-end fails or the process dies.
        """
        process = self._running()
        try:
            child.write_message(_pipe(process.stdin).fileno(), (distances, degree))
            answer = child.read_message(_pipe(process.stdout).fileno())
        except (OSError, ValueError):  # a pipe that broke, or that `kill` has closed
            answer = None
        if answer is None:
            self.deaths += 1
            self.kill()
            raise MeasurementError(f"the homology process died ({process.wait()}); the next job gets a new one")
        diagrams, problem = answer
        if diagrams is None:
            raise MeasurementError(f"{self.backend} failed: {problem}")
        return diagrams

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self.deaths += 1
            self.kill()
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(Path(child.__file__)), self.backend, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,  # no buffer that a fork of the program could write out a second time
                env={**os.environ, "PYTHONPATH": os.pathsep.join(_module_path())},
                start_new_session=True,  # Ctrl-C is for the training
            )
            self._end = weakref.finalize(self, _end, self._process, os.getpid())
        return self._process

    def kill(self) -> None:
        """End the process; a job under way fails."""
        end, self._end, self._process = self._end, None, None
        if end is not None:
            end()

    def forget(self) -> None:
        """Let go of a process that belongs to the program this one was forked from, without touching it."""
        if self._end is not None:
            self._end.detach()
        if self._process is not None:
            for stream in (self._process.stdin, self._process.stdout):
                _pipe(stream).close()
        self._end = self._process = None


def _module_path() -> list[str]:
    """`sys.path` without what is no place: notebooks put paths there that are no strings, and Python passes over them."""
    return [str(place) for place in sys.path if isinstance(place, str | os.PathLike) and str(place)]


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:  # a fork that ends
        return
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):  # it has just gone
            os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with suppress(OSError):  # a thread may be at it
            _pipe(stream).close()


def _pipe(stream: Any) -> Any:
    assert stream is not None
    return stream

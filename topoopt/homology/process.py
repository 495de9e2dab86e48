"""A back-end that holds the GIL, in a process of its own."""

from __future__ import annotations

import os
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
    """ripser in a child process: started at the first call, and again at the first call after it died.

    The process is a fresh interpreter that runs `child` and nothing of the user's program: no fork, which would copy the
    locks of running threads, and no import of the user's main module. It ends with this object, and with the program.
    """

    def __init__(self) -> None:
        self.deaths = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize | None = None

    def __call__(self, distances: np.ndarray, degree: int) -> list[np.ndarray]:
        """Run one job: distances (n, n) to the diagrams of degrees 0 to `degree`.

        Raises:
            MeasurementError: when the back-end fails or the process dies.
        """
        process = self._running()
        try:
            child.write_message(_pipe(process.stdin), (distances, degree))
            answer = child.read_message(_pipe(process.stdout))
        except (OSError, ValueError):  # a pipe that broke, or that `kill` has closed
            answer = None
        if answer is None:
            self.deaths += 1
            self.kill()
            raise MeasurementError(f"the homology process died ({process.wait()}); the next job gets a new one")
        diagrams, problem = answer
        if diagrams is None:
            raise MeasurementError(f"ripser failed: {problem}")
        return diagrams

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self.deaths += 1
            self.kill()
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(Path(child.__file__))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # Ctrl-C is for the training
            )
            self._end = weakref.finalize(self, _end, self._process)
        return self._process

    def kill(self) -> None:
        """End the process; a job under way fails."""
        end, self._end, self._process = self._end, None, None
        if end is not None:
            end()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with suppress(OSError):  # what was still to be written has no reader any more
            _pipe(stream).close()


def _pipe(stream: Any) -> Any:
    assert stream is not None
    return stream

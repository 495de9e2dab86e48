"""The process that runs a back-end: jobs come in on stdin, diagrams go out on stdout.

Run as a script by `process.ProcessRips`: it loads numpy and the back-end and nothing of topoopt or torch. A message is a
length (8 bytes, little endian) and a pickle; both ends are the same program on the same machine.

ripser holds the interpreter's lock for as long as it runs, so no thread beside it could notice that the training has ended.
Therefore a job runs in a fork of this process, which has one thread, and this process watches: it ends, and the job with it,
as soon as it has another parent than the one that started it. A pipe's end would not do: whatever the training process
forks (workers of a data loader) inherits the other end and holds it open.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import struct
import sys
from contextlib import suppress
from typing import Any

LOOK = 0.2
"""Seconds between looks at whether the parent is still there."""


def write_message(fd: int, message: Any) -> None:
    """Send one message."""
    body = pickle.dumps(message, protocol=5)
    for part in (struct.pack("<Q", len(body)), body):
        view = memoryview(part)
        while view:
            view = view[os.write(fd, view) :]


def read_message(fd: int, watch: Any = None) -> Any:
    """Return the next message, or None at the end of the stream; `watch` is called while nothing comes."""
    head = _read(fd, 8, watch)
    body = _read(fd, struct.unpack("<Q", head)[0], watch) if head is not None else None
    return None if body is None else pickle.loads(body)


def _read(fd: int, size: int, watch: Any) -> bytes | None:
    parts, left = [], size
    while left:
        while watch is not None and not select.select([fd], [], [], LOOK)[0]:
            watch()
        part = os.read(fd, min(left, 1 << 20))
        if not part:
            return None
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def compute(backend: str, distances: Any, degree: int) -> list[Any]:
    """Diagrams of degrees 0 to `degree` of distances (n, n), (k, 2) float64 each."""
    import numpy as np

    if backend == "redzed":
        import redzed_tda

        found: Any = redzed_tda.rips(np.ascontiguousarray(distances), maxdim=degree)
    else:
        import ripser

        found = ripser.ripser(distances, maxdim=degree, distance_matrix=True)["dgms"]
    return [np.asarray(d, dtype=np.float64).reshape(-1, 2) for d in found]


def answer(backend: str, distances: Any, degree: int) -> tuple[list[Any] | None, str]:
    """(diagrams, "") or (None, error)."""
    try:
        return compute(backend, distances, degree), ""
    except Exception as error:
        return None, f"{type(error).__name__}: {error}"


def forked(backend: str, distances: Any, degree: int, parent: int) -> tuple[list[Any] | None, str]:
    """`answer`, by a fork of this process that is ended when the parent is gone."""
    ours, theirs = os.pipe()
    job = os.fork()
    if not job:
        _end_with_parent()
        write_message(theirs, answer(backend, distances, degree))
        os._exit(0)
    os.close(theirs)

    def watch() -> None:
        if os.getppid() != parent:
            os.kill(job, signal.SIGKILL)
            os._exit(1)

    found = read_message(ours, watch)
    os.close(ours)
    status = os.waitstatus_to_exitcode(os.waitpid(job, 0)[1])
    return found if found is not None else (None, f"the back-end died ({status})")


def _end_with_parent() -> None:
    """Ask Linux to end this process with the one that forked it; elsewhere killing the process group has to do."""
    if sys.platform == "linux":
        import ctypes

        with suppress(OSError, AttributeError):  # a C library without it
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main(backend: str, parent: int) -> None:
    """Serve until stdin closes or the parent is gone: (distances, degree) -> (diagrams, "") or (None, error)."""
    results = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints must not end up between the messages
    __import__({"redzed": "redzed_tda"}.get(backend, backend))
    can_fork = hasattr(os, "fork")

    def watch() -> None:
        if os.getppid() != parent:
            os._exit(1)

    while (job := read_message(0, watch if can_fork else None)) is not None:
        distances, degree = job
        found = forked(backend, distances, degree, parent) if can_fork else answer(backend, distances, degree)
        write_message(results, found)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

"""What workers owe the program they serve: to end with it, to begin anew in its forks, and to give way to it."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from topoopt.homology.worker import HomologyWorker

EXIT = 5.0
"""Seconds that the end of the program waits for a worker's thread, whose process has been ended."""
NICENESS = 10
"""The worker gives way to the training where the two share a processor."""

_workers: weakref.WeakSet[HomologyWorker] = weakref.WeakSet()
"""Those that the end of the program must stop, and a fork begin anew."""
_registered = False


def register(worker: HomologyWorker) -> None:
    """Have a worker closed at the end of the program, and begun anew in each fork."""
    register_exit()
    _workers.add(worker)


def register_exit() -> None:
    """Take the place among what is done at the end of the program; what must come before is registered after it."""
    global _registered
    if not _registered:
        _registered = True
        atexit.register(_end_all)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_fork_all)


def _end_all() -> None:
    deadline = time.monotonic() + EXIT
    for worker in list(_workers):
        worker.close()
        worker.join(deadline)


def _fork_all() -> None:
    for worker in list(_workers):
        worker.begin_anew()


def give_way() -> None:
    """Lower this thread's priority, and with it that of a process it starts, where threads have one of their own."""
    if sys.platform == "linux":
        with suppress(OSError):  # a courtesy that a sandbox may forbid
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)

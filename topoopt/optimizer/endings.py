"""The end of a run without `detach()`: its optimizer is dropped, or the program ends; most trainings end that way.

What is on its way is then waited for, for a few seconds, and what has not come by then is named in the record; sinks are closed.
"""

from __future__ import annotations

import atexit
import os
import weakref
from typing import TYPE_CHECKING, Any

from topoopt.homology import lifetime

if TYPE_CHECKING:
    from topoopt.optimizer.run import Run

PATIENCE = 5.0
"""Seconds that such an end waits for homology."""
_open: weakref.WeakKeyDictionary[Run, weakref.finalize[Any, Any]] = weakref.WeakKeyDictionary()
_registered = False


def ends_with(optimizer: object, run: Run) -> None:
    """Have a run end with its optimizer, and with the program."""
    global _registered
    end = weakref.finalize(optimizer, _end, run, os.getpid())
    end.atexit = False  # in an order of our own
    _open[run] = end
    if not _registered:
        _registered = True
        lifetime.register_exit()  # what ends last is registered first: homology's workers end after the runs
        atexit.register(_end_all)


def has_ended(run: Run) -> None:
    """A run has been closed: nothing holds on to it any longer."""
    end = _open.pop(run, None)
    if end is not None:
        end.detach()


def _end(run: Run, process: int) -> None:
    if os.getpid() == process:  # in a fork of the program the run is its parent's
        run.clouds.diagrams.patience = PATIENCE
        run.close()


def _end_all() -> None:
    for end in list(_open.values()):
        end()

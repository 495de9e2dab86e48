"""Trackers on a thread of their own: a slow or broken one never slows or ends a run.

A tracker may wait for a network, a disk or a lock. So a sink only puts down what it is told and returns; a daemon thread
hands it on. What the tracker cannot keep up with is dropped, the oldest first, and counted.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from topoopt.errors import TopoError
from topoopt.measurement import Measurement, SpectralReading
from topoopt.summary import Run, Summary
from topoopt.verdict import Verdict

logger = logging.getLogger("topoopt")
VALUES = ("deliver_reading", "deliver")
"""What may be dropped: readings and measurements. What a run says of itself is little, and always delivered."""


def guarded(what: str, act: Callable[[], object]) -> bool:
    """Do something for a run that must not end when it fails: returns whether it worked, and logs the cause if not."""
    try:
        act()
    except (Exception, SystemExit) as error:
        logger.warning(
            "topoopt: %s failed (%s: %s); training goes on", what, type(error).__name__, error, exc_info=error
        )
        return False
    return True


class BackgroundSink:
    """Base of all trackers' sinks; give `topoopt.TopoOptimizer.add_sink` one of its subclasses.

    A measurement that comes again for a step still waiting takes the earlier one's place. Subclasses define `deliver` and,
    where needed, `open`, `deliver_begin`, `deliver_reading`, `deliver_verdict`, `deliver_end` and `finish`: all run on the
    sink's own thread, one at a time. The thread starts with the first reading or measurement.

    Args:
        limit: how many readings and measurements may wait.
        patience: seconds that `close` waits for the rest to be delivered.
    """

    def __init__(self, *, limit: int = 256, patience: float = 30.0) -> None:
        self.dropped = 0
        """Readings and measurements given up because the tracker could not keep up, or did not answer before `close` gave up."""
        self.faults = 0
        """Exceptions that the tracker raised; the first one is logged with its traceback."""
        self._limit, self._patience = limit, patience
        self._waiting: OrderedDict[tuple[str, int], tuple[Any, ...]] = OrderedDict()
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    # -- what a tracker does -----------------------------------------------------------------------------------------

    def open(self) -> None:
        """Prepare the tracker; runs once, before the first delivery."""

    def deliver_begin(self, run: Run) -> None:
        """Which run it is, with its settings."""

    def deliver(self, measurement: Measurement) -> None:
        """Hand one measurement to the tracker."""
        raise NotImplementedError

    def deliver_reading(self, reading: SpectralReading) -> None:
        """Hand one reading of r to the tracker; a measurement's own comes before it."""

    def deliver_verdict(self, step: int, verdict: Verdict) -> None:
        """The verdict has changed."""

    def deliver_end(self, summary: Summary) -> None:
        """The run has ended."""

    def finish(self) -> None:
        """Write what belongs at the end; runs once, after the last delivery."""

    # -- what a run calls --------------------------------------------------------------------------------------------

    def __call__(self, measurement: Measurement) -> None:
        """Put the measurement down for delivery and return at once; after `close` the tracker is opened again."""
        self._put("deliver", measurement.step, measurement)

    def late(self, measurement: Measurement) -> None:
        """A measurement that homology has completed since: what is new of it is delivered."""
        self(measurement)

    def begin(self, run: Run) -> None:
        """A run begins; told to the tracker with the first reading or measurement."""
        self._put("deliver_begin", -1, run)

    def reading(self, reading: SpectralReading) -> None:
        """Put a reading down for delivery."""
        self._put("deliver_reading", reading.step, reading)

    def verdict(self, step: int, verdict: Verdict) -> None:
        """Put a change of the verdict down for delivery."""
        self._put("deliver_verdict", -1, step, verdict)

    def end(self, summary: Summary) -> None:
        """Put the end down for delivery."""
        self._put("deliver_end", -1, summary)

    def _put(self, how: str, step: int, *what: Any) -> None:
        self._refuse_a_fork()
        with self._changed:
            if self._closing and not self._reopened():
                self.dropped += how in VALUES
                return
            self._waiting[how, step] = what
            self._drop_oldest()
            if self._thread is None and how in VALUES:
                thread = threading.Thread(target=self._work, name=f"topoopt-{type(self).__name__}", daemon=True)
                thread.start()
                self._thread = thread  # one that could not be started is none: the next value tries again
            self._changed.notify()

    def _refuse_a_fork(self) -> None:
        """A fork of the program has neither the thread nor, it may be, the lock; and what it says is not of this run."""
        if os.getpid() != self._process:
            raise TopoError(f"{type(self).__name__} is of the process that this one was forked from: give it its own")

    def _drop_oldest(self) -> None:
        values = [key for key in self._waiting if key[0] in VALUES] if len(self._waiting) > self._limit else []
        for key in values[: len(values) - self._limit]:
            del self._waiting[key]
            self.dropped += 1

    def _reopened(self) -> bool:
        """Whether a closed sink can start over: not while the tracker still hangs in its last delivery."""
        if self._thread is not None and self._thread.is_alive():
            return False
        self._thread, self._closing = None, False
        return True

    def close(self) -> None:
        """Deliver what waits, at most for `patience` seconds, and stop. Closing twice is closing once."""
        self._refuse_a_fork()
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is None:
            self._waiting.clear()  # nothing was ever read
            return
        self._thread.join(self._patience)
        with self._changed:
            if self._thread.is_alive() and self._waiting:
                self.dropped += sum(how in VALUES for how, _ in self._waiting)
                self._waiting.clear()
        if self._thread.is_alive():
            logger.warning("topoopt: %s did not finish in %.0f s and was left behind", self, self._patience)
        if self.dropped:
            logger.warning(
                "topoopt: %s dropped %d readings and measurements; a record on disk has them all", self, self.dropped
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dropped={self.dropped}, faults={self.faults})"

    # -- its thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        if not self._guard(self.open):
            return self._discard()
        while (taken := self._next()) is not None:
            how, what = taken
            self._guard(lambda how=how, what=what: getattr(self, how)(*what))
        self._guard(self.finish)
        return None

    def _next(self) -> tuple[str, tuple[Any, ...]] | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._closing)
            if not self._waiting:
                return None
            (how, _), what = self._waiting.popitem(last=False)
            return how, what

    def _discard(self) -> None:
        """The tracker could not be opened: count what would have been delivered until the run ends."""
        while (taken := self._next()) is not None:
            self.dropped += taken[0] in VALUES

    def _guard(self, act: Callable[[], object]) -> bool:
        try:
            act()
        except (Exception, SystemExit) as error:
            self.faults += 1
            if self.faults == 1:
                logger.warning("topoopt: %s failed (%s); training goes on", self, error, exc_info=error)
            return False
        return True

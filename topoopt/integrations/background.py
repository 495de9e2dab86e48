"""Trackers on a thread of their own: a slow or broken one never slows or ends a run.

A tracker may wait for a network, a disk or a lock. So a sink only puts the measurement down and returns; a daemon
thread hands it on. What the tracker cannot keep up with is dropped, the oldest first, and counted.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable

from topoopt.measurement import Measurement

logger = logging.getLogger("topoopt")


def guarded(what: str, act: Callable[[], object]) -> bool:
    """Do something for a run that must not end when it fails: returns whether it worked, and logs the cause if not."""
    try:
        act()
    except Exception as error:
        logger.warning(
            "topoopt: %s failed (%s: %s); training goes on", what, type(error).__name__, error, exc_info=error
        )
        return False
    return True


class BackgroundSink:
    """Base of all trackers' sinks; give `topoopt.TopoOptimizer.add_sink` one of its subclasses.

    A measurement that comes again for a step still waiting takes the earlier one's place. Subclasses define `deliver`
    and, where needed, `open` and `finish`: all three run on the sink's own thread, one at a time.

    Args:
        limit: how many measurements may wait.
        patience: seconds that `close` waits for the rest to be delivered.
    """

    def __init__(self, *, limit: int = 256, patience: float = 30.0) -> None:
        self.dropped = 0
        """Measurements given up because the tracker could not keep up, or did not answer before `close` gave up."""
        self.faults = 0
        """Exceptions that the tracker raised; the first one is logged with its traceback."""
        self._limit, self._patience = limit, patience
        self._waiting: OrderedDict[int, Measurement] = OrderedDict()
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    # -- what a tracker does -----------------------------------------------------------------------------------------

    def open(self) -> None:
        """Prepare the tracker; runs once, before the first delivery."""

    def deliver(self, measurement: Measurement) -> None:
        """Hand one measurement to the tracker."""
        raise NotImplementedError

    def finish(self) -> None:
        """Write what belongs at the end; runs once, after the last delivery."""

    # -- what a run calls --------------------------------------------------------------------------------------------

    def __call__(self, measurement: Measurement) -> None:
        """Put the measurement down for delivery and return at once; after `close` the tracker is opened again."""
        with self._changed:
            if self._closing and not self._reopened():
                self.dropped += 1
                return
            self._waiting[measurement.step] = measurement
            if len(self._waiting) > self._limit:
                self._waiting.popitem(last=False)
                self.dropped += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=f"topoopt-{type(self).__name__}", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _reopened(self) -> bool:
        """Whether a closed sink can start over: not while the tracker still hangs in its last delivery."""
        if self._thread is not None and self._thread.is_alive():
            return False
        self._thread, self._closing = None, False
        return True

    def close(self) -> None:
        """Deliver what waits, at most for `patience` seconds, and stop. Closing twice is closing once."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is None:
            return
        self._thread.join(self._patience)
        with self._changed:
            if self._thread.is_alive() and self._waiting:
                self.dropped += len(self._waiting)
                self._waiting.clear()
        if self._thread.is_alive():
            logger.warning("topoopt: %s did not finish in %.0f s and was left behind", self, self._patience)
        if self.dropped:
            logger.warning("topoopt: %s dropped %d measurements; a record on disk has them all", self, self.dropped)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dropped={self.dropped}, faults={self.faults})"

    # -- its thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        if not self._guard(self.open):
            return self._discard()
        while (measurement := self._next()) is not None:
            self._guard(lambda taken=measurement: self.deliver(taken))
        self._guard(self.finish)
        return None

    def _next(self) -> Measurement | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._closing)
            return self._waiting.popitem(last=False)[1] if self._waiting else None

    def _discard(self) -> None:
        """The tracker could not be opened: count what would have been delivered until the run ends."""
        while self._next() is not None:
            self.dropped += 1

    def _guard(self, act: Callable[[], None]) -> bool:
        try:
            act()
        except Exception as error:
            self.faults += 1
            if self.faults == 1:
                logger.warning("topoopt: %s failed (%s); training goes on", self, error, exc_info=error)
            return False
        return True

"""Where measurements go: any callable that takes one; a sink that fails is logged and counted, the others go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from topoopt.measurement import Measurement
from topoopt.optimizer.faults import Faults
from topoopt.summary import Run

Sink = Callable[[Measurement], None]
"""Called with each measurement, once. It may also have `late(measurement)`, for one that homology has completed since,
`begin(run)`, `reading(reading)`, `decided(step, decision)`, `verdict(step, verdict)`, `end(summary)` and `close()`."""


class Sinks:
    """Tells every sink, in the order in which they were added; what a sink raises, exits included, ends that call alone."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._sinks: list[Sink] = []
        self._closed = False

    def __bool__(self) -> bool:
        return bool(self._sinks)

    def hear(self, what: str) -> bool:
        """Whether any sink has the method `what`, or fails when it is asked: told, its fault is noted."""
        try:
            return any(callable(getattr(sink, what, None)) for sink in self._sinks)
        except Exception:
            return True

    def add(self, sink: Sink, run: Run) -> Sink:
        """Add a receiver, and tell it which run it is of.

        Raises:
            TypeError: for what cannot be called.
        """
        if not callable(sink):
            raise TypeError(f"a sink is called with each measurement; {sink!r} is not callable")
        self._sinks.append(sink)
        self._tell(sink, "begin", run)
        return sink

    def __call__(self, measurement: Measurement) -> None:
        """Publish a measurement."""
        for sink in self._sinks:
            self._guarded(sink, lambda s=sink: s(measurement))

    def tell(self, what: str, *args: Any) -> None:
        """Call the method `what` of every sink that has it."""
        for sink in self._sinks:
            self._tell(sink, what, *args)

    def close(self) -> None:
        """Close every sink that can be closed, each whatever the others raise; a later call does nothing."""
        if self._closed:
            return
        self._closed = True
        self.tell("close")

    def _tell(self, sink: Sink, what: str, *args: Any) -> None:
        method = getattr(sink, what, None)
        if callable(method):
            self._guarded(sink, lambda: method(*args))

    def _guarded(self, sink: Sink, call: Callable[[], Any]) -> None:
        where = f"sink {type(sink).__name__}"
        if self._faults.off(where):
            return
        try:
            call()
            self._faults.went_well(where)
        except (Exception, SystemExit) as error:
            self._faults.note(where, error)

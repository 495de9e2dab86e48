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
        self._failing: dict[str, str] = {}
        """Sink -> what of it failed last."""

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
        self.tell("__call__", measurement)

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
        where = f"sink {type(sink).__name__}"
        if self._faults.off(where):
            return
        try:
            method = getattr(sink, what, None)
            if callable(method):
                method(*args)
                self._went_well(where, what)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # exits and cancellations are the sink's own
            self._failing[where] = what
            self._faults.note(where, error)

    def _went_well(self, where: str, what: str) -> None:
        if self._failing.get(where) == what:  # what fails is not mended by something else that goes well
            del self._failing[where]
            self._faults.went_well(where)

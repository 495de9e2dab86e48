"""Where measurements go: any callable that takes one; a sink that fails is logged and counted, the others go on."""

from __future__ import annotations

from collections.abc import Callable

from topoopt.measurement import Measurement
from topoopt.optimizer.faults import Faults

Sink = Callable[[Measurement], None]


class Sinks:
    """Hands each measurement to every sink, in the order in which they were added."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._sinks: list[Sink] = []

    def add(self, sink: Sink) -> Sink:
        """Add a receiver of measurements.

        Raises:
            TypeError: for what cannot be called.
        """
        if not callable(sink):
            raise TypeError(f"a sink is called with each measurement; {sink!r} is not callable")
        self._sinks.append(sink)
        return sink

    def __call__(self, measurement: Measurement) -> None:
        """Publish."""
        for sink in self._sinks:
            try:
                sink(measurement)
            except Exception as error:
                self._faults.note(f"sink {type(sink).__name__}", error)

    def close(self) -> None:
        """Close every sink that can be closed."""
        for sink in self._sinks:
            close = getattr(sink, "close", None)
            if not callable(close):
                continue
            try:
                close()
            except Exception as error:
                self._faults.note(f"sink {type(sink).__name__}", error)

"""When to measure: every so many steps, stretched so that measuring keeps to its share of wall time."""

from __future__ import annotations

import time
from collections.abc import Callable

AFTERMATH = 0.1
"""What a measurement costs beside its own time, as a share of it: the steps after it find caches cold and memory given back.

Measured on the demo, where that is 1.5 ms after 17 ms; larger models hide it in steps that are longer than a cache lasts.
"""

HOOKS = 1.5e-6
"""Seconds that the hooks of an ordinary step take, torch's own way to them included: 0.3 % of the demo's steps of half a
millisecond, and nothing beside any longer one. Timing them in place would cost as much as they do."""


class Pacing:
    """Decides which steps are measured and keeps the account of the time that measuring takes.

    A step is *due* when `every` steps have passed since the last measured one. With a budget it is measured only if
    the time spent so far, and as much again as the last measurement took, fits into `budget` of the wall time since the
    first step; otherwise it is looked at again `every` steps later. So a costly measurement stretches `every`, and the
    very first, which nothing can have paid for yet, is always taken.
    """

    def __init__(self, every: int, budget: float | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.every = every
        self.budget = budget
        self.spent = 0.0
        self.setup = 0.0
        self.stretched = 0
        self.taken = 0
        self._clock = clock
        self._start: float | None = None
        self._earlier = 0.0
        self._last_cost = 0.0
        self._next = 0

    def start(self) -> None:
        """Start the wall clock at the first step; later calls do nothing."""
        if self._start is None:
            self._start = self._clock()

    @property
    def wall(self) -> float:
        """Seconds since the first step, earlier sessions of a resumed run included, set-up not."""
        running = 0.0 if self._start is None else self._clock() - self._start
        return self._earlier + running - self.setup

    @property
    def share(self) -> float:
        """Share of the wall time that measuring took so far, in [0, 1]."""
        wall = self.wall
        return min(1.0, self.spent / wall) if wall > 0 else 0.0

    def candidate(self, step: int) -> bool:
        """Whether `every` allows a measurement at this step; the budget has not been asked yet."""
        return step >= self._next

    def affordable(self) -> bool:
        """Whether one more measurement as long as the last one fits into the budget."""
        return self.budget is None or self.spent + self._last_cost <= self.budget * self.wall or self.taken == 0

    def postpone(self, step: int) -> None:
        """A due step was not affordable: look again `every` steps later, and book the hooks of the steps until then."""
        self.stretched += 1
        self.spent += HOOKS * self.every
        self._next = step + self.every

    def measured(self, step: int, seconds: float) -> None:
        """Book a measurement taken at `step`."""
        self._last_cost = seconds * (1 + AFTERMATH)
        self.spent += self._last_cost
        self.taken += 1
        self._next = step + self.every

    def state_dict(self) -> dict[str, float]:
        """Plain numbers: the account goes on after a resume."""
        return {
            "spent": self.spent,
            "wall": self.wall,
            "next": float(self._next),
            "last_cost": self._last_cost,
            "stretched": float(self.stretched),
            "taken": float(self.taken),
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue the account of an earlier session; wall time restarts from what had passed then."""
        self.spent = state["spent"]
        self._earlier = state["wall"]
        self._next = int(state["next"])
        self._last_cost = state["last_cost"]
        self.stretched = int(state["stretched"])
        self.taken = int(state["taken"])
        self.setup = 0.0
        self._start = None if self._start is None else self._clock()

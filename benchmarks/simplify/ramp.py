"""A plain implementation of the ramp for the benchmark: raise the rate from the edge, look at the silent units, repair."""

from __future__ import annotations

import copy
from statistics import median
from typing import Any

EDGE, START, UP, DWELL, WARM = 2.0, 1.05, 1.3, 50, 200
CEILING = 1.5
"""Largest r, in units of the edge, to which a reading lets the rate rise."""
LOST, CALM = 1e4, 2.0
"""Multiples of the loss at the ramp's start beyond which a run is lost, and up to which it is calm."""
PATIENCE = 3
"""Dwells in a row that are not calm after which a run is lost too: a dead network's loss is bounded."""


class PlainRamp:
    """a plain ramp, written for this benchmark.

    Gentle for 200 steps; then from 1.05 e/K on, left alone for 50 steps at a time, raised by 1.3 while the loss is calm
    (to 1.5 e/K as it then reads at most), until the share of silent units asked for is reached or 60 % of the steps are
    over; then gentle again. A run that is lost goes back to its last calm weights, at two thirds of their rate.
    """

    def __init__(self, silent: float, steps: int) -> None:
        self._silent, self._last = silent, int(0.6 * steps)
        self._rate, self._first, self._over = 0.0, 0.0, False
        self._calm: tuple[Any, float] | None = None
        self._restless = 0
        self._curvatures: list[float] = []
        self.said = "the end was not reached"

    def rate(self, step: int, run: Any) -> float:
        """The rate of this step."""
        if step < WARM or self._over:
            return self._gently(step, run)
        if not self._rate:
            self._rate, self._first = START * EDGE / self._curvature(run), run.loss
            self._calm = copy.deepcopy(run.model.state_dict()), self._rate
        if not run.loss <= LOST * max(self._first, 1e-3):  # or not a number
            self._go_back(run)
        elif step % DWELL == 0:
            self._look(step, run)
        return self._rate

    def _look(self, step: int, run: Any) -> None:
        silent = run.silent()
        calm = run.loss < min(CALM * self._first, run.task.constant / 2)
        self._restless = 0 if calm else self._restless + 1
        if self._restless >= PATIENCE:
            self._go_back(run)
        elif calm and (silent >= self._silent or step >= self._last):
            self._over, self._curvatures = True, []
            self.said = f"{silent:.0%} silent at step {step}, rate {self._rate:.3g}"
        elif calm:
            self._calm = copy.deepcopy(run.model.state_dict()), self._rate
            self._rate = max(self._rate, min(UP * self._rate, CEILING * EDGE / self._curvature(run)))

    def _go_back(self, run: Any) -> None:
        assert self._calm is not None
        run.model.load_state_dict(self._calm[0])
        self._rate, self._restless = self._calm[1] / 1.5, 0
        self._calm = self._calm[0], self._rate

    def _gently(self, step: int, run: Any) -> float:
        if step % DWELL == 0 or not self._curvatures:
            self._curvatures = [*self._curvatures[-2:], self._curvature(run)]
        return 0.9 / median(self._curvatures)

    def _curvature(self, run: Any) -> float:
        return max(run.curvature(), 1e-12)

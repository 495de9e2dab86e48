"""Weights & Biases: every measurement a row over `topo/step`, pictures now and then, a table of layers at the end."""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

from topoopt.integrations.background import BackgroundSink
from topoopt.integrations.rows import COLUMNS, STEP, Pictures, Rows, table
from topoopt.measurement import Measurement

if TYPE_CHECKING:
    from wandb import Run

BRACKET = ("r_pair", "proximity", "r_spec", "edge")


class WandbSink(BackgroundSink):
    """Sends measurements to a W&B run, online, offline or disabled.

    Scalars keep the names of `Measurement.scalars` and are drawn over `topo/step`; the phase is `topo/phase`
    (0 constrained, 1 permissive, 2 simplification, 3 unknown) and, in words, `topo/phase_name`. At the end come
    `topo/bracket` (r between its bounds, with the edge), `topo/history` (phase, r and rates in one picture),
    `topo/layers` (a table) and the summary's phase.

    Args:
        run: the run to write to. None: the one that is active when the first measurement comes, or else a new one, made
            by `wandb.init(**init)` and finished with this sink.
        images: least seconds between two pictures of one layer (0: every new diagram, None: no pictures).
        layers: how many layers are drawn.
        limit: how many measurements may wait for W&B.
        patience: seconds that `close` waits for W&B.
        **init: arguments of `wandb.init`, used only when this sink makes the run.
    """

    def __init__(
        self,
        run: Run | None = None,
        *,
        images: float | None = 60.0,
        layers: int = 4,
        limit: int = 256,
        patience: float = 60.0,
        **init: Any,
    ) -> None:
        super().__init__(limit=limit, patience=patience)
        self.run = run
        self._init = {"project": "topoopt"} | init
        self._owned = False
        self._rows, self._pictures = Rows(), Pictures(images, layers)
        self._defined: set[str] = set()
        self._last: Measurement | None = None
        self._history: dict[int, tuple[float, ...]] = {}

    def open(self) -> None:
        """Find the run, or make one."""
        self._wandb: Any = importlib.import_module("wandb")
        if self.run is None:
            self.run = self._wandb.run
        if self.run is None:
            self.run = self._wandb.init(**self._init)
            self._owned = True
        self._run.define_metric(STEP, hidden=True)

    @property
    def _run(self) -> Run:
        assert self.run is not None
        return self.run

    def deliver(self, measurement: Measurement) -> None:
        """Write one row: the scalars, the phase in words, and the pictures that are due."""
        row: dict[str, Any] = {**self._rows.row(measurement), "topo/phase_name": str(measurement.phase)}
        row |= self._images(self._pictures.due(measurement))
        for key in row.keys() - self._defined - {STEP}:
            # By its full name: a callback of Trainer has claimed "*" for its own step.
            self._run.define_metric(key, step_metric=STEP)
            self._defined.add(key)
        self._run.log(row)
        self._last = measurement
        self._history[measurement.step] = tuple(getattr(measurement, name) for name in BRACKET)

    def finish(self) -> None:
        """Write the last pictures, the bracket, the table and the summary."""
        if self._last is not None:
            row: dict[str, Any] = {STEP: float(self._last.step), **self._images(self._pictures.last())}
            row["topo/layers"] = self._wandb.Table(columns=list(COLUMNS), data=table(self._last))
            row["topo/bracket"] = self._bracket()
            self._run.log(row)
            self._run.summary["topo/phase"] = str(self._last.phase)
            self._run.summary["topo/dropped"] = self.dropped
        if self._owned:
            self._run.finish()
            self.run, self._owned = None, False  # measurements that come later get a run of their own
            self._defined.clear()

    def _images(self, pictures: dict[str, Any]) -> dict[str, Any]:
        return {key: self._wandb.Image(pixels) for key, pixels in pictures.items()}

    def _bracket(self) -> Any:
        steps = sorted(self._history)
        series = list(zip(*(self._history[step] for step in steps)))
        known = [i for i, values in enumerate(series) if any(math.isfinite(value) for value in values)]
        return self._wandb.plot.line_series(
            xs=steps,
            ys=[[value if math.isfinite(value) else None for value in series[i]] for i in known],
            keys=[BRACKET[i] for i in known],
            title="r = eta / eta* between its bounds",
            xname="step",
        )

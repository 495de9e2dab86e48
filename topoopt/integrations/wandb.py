"""Weights & Biases: headlines over `topo/step`, r against 1 and the edge in one live chart, the verdict as summary and alert.

W&B numbers the rows of a run itself, and drops a row that comes with a smaller number. Rows of ours would use numbers up and
lose the user's (`run.log(..., step=epoch)`), so in a run of the user's they ride along in the user's own: one in each.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from topoopt.extras import require
from topoopt.integrations.background import BackgroundSink
from topoopt.integrations.pictures import Pictures
from topoopt.integrations.rows import COLUMNS, STEP, Rows, table
from topoopt.measurement import Measurement, SpectralReading
from topoopt.summary import Run as TopoRun
from topoopt.summary import Summary
from topoopt.verdict import Verdict

if TYPE_CHECKING:
    from wandb import Run

CHART = "topo/r"
LINES = ("r", "1: the guarantee ends", "e: edge of stability")
CHART_SECONDS = 30.0
"""Least time between two drawings of the live chart: each uploads its whole table."""
DRAWN = 1000
"""Points of the chart; of longer runs every second one is left out, again and again."""
BAD = ("too high", "collapsed")
"""Verdicts that are told at once."""


class WandbSink(BackgroundSink):
    """Sends readings and measurements to a W&B run, online, offline or disabled.

    Scalars have the keys of `topoopt.integrations.rows`, over `topo/step`: eight headlines under `topo/`, what is behind them
    under `topo_details/`, layers under `topo_layers/`. The chart `topo/r` shows r, 1 and the edge. Settings are in the run's
    config under `topoopt`; the verdict is in its summary (`topo/verdict`, `topo/verdict_text`), and an alert.

    In a run that is not this sink's own, W&B's step counter is not advanced: each row goes into the next row that the run's
    owner logs, one in each, so that what is shown follows at their pace. What is left at the end is written as rows where
    nobody else has logged anything, else as the table `topo_details/left`.

    Args:
        run: the run to write to. None: the one that is active when the first reading comes, or else a new one, made by
            `wandb.init(**init)` and finished with this sink.
        images: least seconds between two pictures of one layer (0: every new diagram, None: no pictures).
        layers: how many layers are drawn.
        commit: write rows of one's own into somebody else's run as well, as long as W&B's counter stays at or below the
            optimizer's steps: for runs whose owner logs by optimizer steps, or without steps.
        limit: how many readings and measurements may wait for W&B.
        patience: seconds that `close` waits for W&B.
        **init: arguments of `wandb.init`, used only when this sink makes the run.
    """

    def __init__(
        self,
        run: Run | None = None,
        *,
        images: float | None = 60.0,
        layers: int = 4,
        commit: bool = False,
        limit: int = 256,
        patience: float = 60.0,
        **init: Any,
    ) -> None:
        super().__init__(limit=limit, patience=patience)
        self.run = run
        self._init = {"project": "topoopt"} | init
        self._owned, self._commit = False, commit
        self._rows, self._pictures = Rows(), Pictures(images, layers)
        self._left: dict[float, dict[str, Any]] = {}
        self._ridden = -1
        self._defined: set[str] = set()
        self._last: Measurement | None = None
        self._curve: dict[int, tuple[float, float]] = {}
        self._drawn = -math.inf
        self._told = ""

    def open(self) -> None:
        """Find the run, or make one."""
        self._wandb: Any = require("wandb", extra="wandb")
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

    # -- what a run says ---------------------------------------------------------------------------------------------

    def deliver_begin(self, run: TopoRun) -> None:
        """Put the settings into the run's config, and start anew."""
        self._rows, self._last, self._told = Rows(), None, ""
        self._curve, self._drawn = {}, -math.inf
        about = {"optimizer": run.optimizer, "model": run.model, "versions": dict(run.versions)}
        self._run.config.update({"topoopt": {**run.settings, **about}}, allow_val_change=True)

    def deliver_reading(self, reading: SpectralReading) -> None:
        """Write what a reading says, and draw the chart when it is due."""
        self._pictures.read(reading)
        row: dict[str, Any] = dict(self._rows.row(reading))
        if math.isfinite(reading.r):
            self._curve[reading.step] = (reading.r, reading.edge or math.nan)
        if len(self._curve) > DRAWN:
            self._curve = {step: self._curve[step] for step in sorted(self._curve)[::2]}
        if self._curve and time.monotonic() - self._drawn >= CHART_SECONDS:
            row[CHART] = self._chart()
        self._write(row)

    def deliver(self, measurement: Measurement) -> None:
        """Write one row: the scalars, and the pictures that are due."""
        self._write(self._rows.row(measurement) | self._images(self._pictures.due(measurement)))
        self._last = measurement

    def deliver_verdict(self, step: int, verdict: Verdict) -> None:
        """Alert of a run that is being lost."""
        if verdict.state in BAD:
            self._alert(verdict, f"step {step}: ")

    def deliver_end(self, summary: Summary) -> None:
        """Put the verdict into the run's summary, and alert of it."""
        self._run.summary["topo/verdict"] = summary.verdict.state
        self._run.summary["topo/verdict_text"] = str(summary.verdict)
        self._run.summary["topo/phase_name"] = str(self._rows.phase)
        self._run.summary["topo_details/share_of_run"] = summary.share
        self._alert(summary.verdict, "")

    def _alert(self, verdict: Verdict, when: str) -> None:
        if verdict.state != self._told:
            self._told = verdict.state
            level = "WARN" if verdict.state in (*BAD, "at the edge") else "INFO"
            self._run.alert(title=f"topoopt: {when}{verdict.state}", text=str(verdict), level=level)

    def finish(self) -> None:
        """Write what is left, the last pictures, the chart and the table of layers."""
        end: dict[str, Any] = {CHART: self._chart()} if self._curve else {}
        if self._last is not None:
            end |= self._images(self._pictures.last())
            end["topo_layers/table"] = self._wandb.Table(columns=list(COLUMNS), data=table(self._last))
        self._flush(end)
        self._run.summary["topo_details/dropped"] = self.dropped
        if self._owned:
            self._run.finish()
            self.run, self._owned = None, False  # what comes later gets a run of its own
            self._defined.clear()
        self._ridden = -1

    # -- rows --------------------------------------------------------------------------------------------------------

    def _write(self, row: dict[str, Any]) -> None:
        if len(row) < 2:
            return  # nothing but its step: all of it was written before
        for key in row.keys() - self._defined - {STEP}:
            # By its full name: a callback of Trainer has claimed "*" for its own step.
            self._run.define_metric(key, step_metric=STEP)
            self._defined.add(key)
        self._left[row[STEP]] = self._left.get(row[STEP], {}) | row
        if self._owned or (self._commit and self._counter() < row[STEP]):
            self._write_left()
        elif (counter := self._counter()) != self._ridden:
            self._ridden = counter
            self._run.log(self._left.pop(max(self._left)), commit=False)  # the newest: what is shown is to be of now
        while len(self._left) > self._limit:
            del self._left[min(self._left)]
            self.dropped += 1

    def _write_left(self) -> None:
        for step in sorted(self._left):
            self._run.log(self._left.pop(step))

    def _counter(self) -> int:
        return 0 if self._run.disabled else self._run.step

    def _flush(self, end: dict[str, Any]) -> None:
        """The end of the run: the last rows, and those that nobody took along."""
        if self._owned or self._commit or self._is_alone():
            self._write_left()
            if end:
                self._run.log(end)
            return
        if self._left:
            rows = [self._left[step] for step in sorted(self._left)]
            columns = sorted({key for row in rows for key, value in row.items() if isinstance(value, float)})
            data = [[row.get(key) for key in columns] for row in rows]
            end["topo_details/left"] = self._wandb.Table(columns=columns, data=data)
            self._left.clear()
        if end:
            self._run.log(end, commit=False)

    def _is_alone(self) -> bool:
        """Whether nobody but this sink has logged to the run: then there are no numbers of theirs to keep."""
        return all(key.startswith(("topo/", "topo_", "_")) for key in self._run.summary.keys())  # noqa: SIM118

    def _images(self, pictures: dict[str, Any]) -> dict[str, Any]:
        return {key: self._wandb.Image(pixels) for key, pixels in pictures.items()}

    def _chart(self) -> Any:
        self._drawn = time.monotonic()
        steps = sorted(self._curve)
        r, edge = zip(*(self._curve[step] for step in steps))
        lines = [list(r), [1.0] * len(steps), [None if math.isnan(value) else value for value in edge]]
        shown = [i for i, line in enumerate(lines) if any(value is not None for value in line)]
        return self._wandb.plot.line_series(
            xs=steps,
            ys=[lines[i] for i in shown],
            keys=[LINES[i] for i in shown],
            title="r = eta / eta*, where the guarantee ends, and the edge of stability",
            xname="step",
        )

"""Lightning: one callback, and the training of a LightningModule, automatic or manual, is measured (or steered)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from topoopt.config import TopoConfig
from topoopt.control import Policy
from topoopt.errors import ConfigError, PartitionedError
from topoopt.integrations import lightning_rate
from topoopt.integrations.background import guarded
from topoopt.integrations.console import tell_verdict
from topoopt.integrations.measured import measured_inside
from topoopt.integrations.rows import Rows
from topoopt.integrations.suggesting import as_row, looked_for, options_of, suggested, tell
from topoopt.measurement import Measurement, SpectralReading
from topoopt.optimizer import TopoOptimizer
from topoopt.optimizer.sinks import Sink
from topoopt.suggestion import Suggestion
from topoopt.summary import Run
from topoopt.verdict import Verdict

logger = logging.getLogger("topoopt")


class TopoCallback(Callback):
    """Measures what a Lightning `Trainer` trains; rows go to its loggers, r/e to its progress bar, the state into checkpoints.

    ```python
    trainer = Trainer(callbacks=[TopoCallback(mode="preserve")])
    ```

    r is read from the training's own steps: `training_step` is never run again, under manual optimization neither. W&B and
    TensorBoard loggers get layers and pictures too. The verdict is `callback.verdict`, and logged at the end.

    With `suggest=True` the learning rate is found first, by `topoopt.suggest` on copies of the module, with batches like the
    training's own: it is put in force on the optimizer and its schedulers, and logged. The training is then, to the last bit,
    the one that has this rate typed in. Where no rate can be told, the user's stays, and the reason is said.

    Args:
        mode: as `TopoConfig.mode`; it goes over `config`'s.
        config: settings; keyword `options` are `TopoConfig`'s fields and go over it.
        optimizer: which of `configure_optimizers`' optimizers is measured, by its place: one a training, whose steps alone
            are counted.
        suggest: whether to find the learning rate before training begins (not where one is resumed): True, or options of
            `topoopt.suggest` such as `{"steps": 300}`. Under automatic optimization with one optimizer.
        **options: fields of `TopoConfig`.

    Raises:
        ConfigError: for settings that cannot work; when training begins, for an `optimizer` that is not there.

    Under DeepSpeed and FSDP1, which keep no neuron whole, training is left alone, with a warning.
    """

    def __init__(
        self,
        mode: str | Policy | None = None,
        *,
        config: TopoConfig | None = None,
        optimizer: int = 0,
        suggest: bool | Mapping[str, Any] = False,
        **options: Any,
    ) -> None:
        self.config = TopoConfig.from_options(config, options if mode is None else {**options, "mode": mode})
        self.optimizer = optimizer
        self._search = options_of(suggest)
        self.suggestion: Suggestion | None = None
        """What was found before the training under way, or the last one; None where nothing was looked for."""
        self.topo: TopoOptimizer | None = None
        """The measured optimizer of the training under way, or of the last one."""
        self._attached = self._own = False
        self._saved: dict[str, Any] | None = None
        self._left: dict[str, Any] = {}
        self._bar: Any = None

    @property
    def state_key(self) -> str:
        """Tells callbacks for several optimizers apart in a checkpoint."""
        return self._generate_state_key(optimizer=self.optimizer)

    @property
    def last(self) -> Measurement | None:
        """The latest measurement, or None."""
        return None if self.topo is None else self.topo.last

    @property
    def verdict(self) -> Verdict | None:
        """What the readings so far say of the learning rate, or None before training."""
        return None if self.topo is None else self.topo.verdict

    # -- attaching and detaching -------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the optimizer."""
        self._detach()
        count = len(trainer.optimizers)
        if not 0 <= self.optimizer < count:
            raise ConfigError(
                f"optimizer={self.optimizer}, and {type(pl_module).__name__} has {count}: give a place from 0 to {count - 1}"
            )
        if count > 1:
            logger.info("topoopt: optimizer %d of %d is measured (TopoCallback(optimizer=...))", self.optimizer, count)
        self.suggestion = None
        if self._search is not None and trainer.global_step == 0:
            self._find_rate(trainer, pl_module)
        try:
            self._attach(trainer, trainer.strategy.model or pl_module)
        except PartitionedError as error:
            self.topo = None
            logger.warning("topoopt: %s", error)

    def _find_rate(self, trainer: Trainer, module: LightningModule) -> None:
        optimizer = trainer.optimizers[self.optimizer]
        self.suggestion = looked_for(optimizer, lambda: lightning_rate.find(trainer, module, optimizer, self._search))
        lightning_rate.apply(self.suggestion, trainer, optimizer)
        tell(self.suggestion)
        row = as_row(self.suggestion)
        for target in trainer.loggers if row else ():
            guarded("logging the rate", lambda target=target: target.log_metrics(row, step=0))

    def _attach(self, trainer: Trainer, model: Any) -> None:
        optimizer = trainer.optimizers[self.optimizer]
        self.topo = measured_inside(optimizer)
        self._own = self.topo is None
        if self.topo is None:
            self.topo = TopoOptimizer(_inner(optimizer), model, self.config)
        self._attached = True
        if self.suggestion is not None:
            self.topo.suggested = suggested(self.suggestion)
        steps = float(trainer.estimated_stepping_batches)
        self.topo.total_steps = int(steps) if 0 < steps < math.inf else None
        if self._own and self._saved is not None:
            self.topo.load_topo_state_dict(self._saved)
        elif self._own:
            self.topo.steps = trainer.global_step // len(trainer.optimizers)  # Lightning counts every optimizer's
        self._saved = None
        if trainer.is_global_zero:
            for target in trainer.loggers:
                guarded("joining a logger", lambda target=target: self._join(target))
        self._show(trainer)

    def _join(self, target: Logger) -> None:
        assert self.topo is not None
        self.topo.add_sink(sink_for(target))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect what is still on its way, detach, and say the verdict where a progress bar showed r/e."""
        shown = self._bar is not None
        self._detach()
        if shown and trainer.is_global_zero and self.topo is not None and self.topo.readings:
            tell_verdict(self.topo.verdict)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Detach from a training that failed."""
        self._detach()

    def _detach(self) -> None:
        if self._bar is not None:
            del self._bar.get_metrics  # the class's own shows again
            self._bar = None
        if self._attached and self.topo is not None:
            self._attached = False
            self._left = self.topo.topo_state_dict()
            if self._own:
                self.topo.detach()

    # -- the progress bar --------------------------------------------------------------------------------------------

    def _show(self, trainer: Trainer) -> None:
        """Add r/e to what the bar shows: numbers that the module logs, and callbacks watch, stay as they are."""
        bar = trainer.progress_bar_callback
        if bar is None or "get_metrics" in vars(bar):
            return
        shown = type(bar).get_metrics

        def get_metrics(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
            return {**shown(bar, trainer, pl_module), **self._in_bar()}

        bar.get_metrics = get_metrics  # type: ignore[method-assign]
        self._bar = bar

    def _in_bar(self) -> dict[str, float]:
        readings = self.topo.readings if self.topo is not None else ()
        if not readings or math.isnan(readings[-1].r):
            return {}
        edge = readings[-1].edge
        return {"r": round(readings[-1].r, 4)} if edge is None else {"r/e": round(readings[-1].r / edge, 4)}

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs to go on as the unbroken one."""
        return self.topo.topo_state_dict() if self._attached and self.topo is not None else self._left

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it until training starts."""
        self._saved = state_dict or None


def sink_for(target: Logger) -> Sink:
    """Return the sink for a Lightning logger: topoopt's own where it has one, else plain rows."""
    if isinstance(target, WandbLogger):
        from topoopt.integrations.wandb import WandbSink

        return WandbSink(target.experiment, commit=True)  # Lightning logs without W&B's steps
    if isinstance(target, TensorBoardLogger):
        from topoopt.integrations.tensorboard import TensorBoardSink

        return TensorBoardSink(target.experiment)
    return LoggerSink(target)


class LoggerSink:
    """Sends scalars to a Lightning logger, on the training thread as Lightning does: loggers keep their rows in lists."""

    def __init__(self, target: Logger) -> None:
        self._target = target
        self._rows = Rows()

    def begin(self, run: Run) -> None:
        """Start anew."""
        self._rows = Rows()

    def __call__(self, measurement: Measurement) -> None:
        """Log one row."""
        self._log(measurement)

    def late(self, measurement: Measurement) -> None:
        """Log what is new of a measurement that homology has completed since."""
        self._log(measurement)

    def reading(self, reading: SpectralReading) -> None:
        """Log what a reading says."""
        self._log(reading)

    def _log(self, seen: Measurement | SpectralReading) -> None:
        row = self._rows.row(seen)
        if len(row) > 1:  # more than its step
            self._target.log_metrics(row, step=seen.step)


def _inner(optimizer: Any) -> Any:
    """The optimizer that Lightning's own wrapper passes on to."""
    return getattr(optimizer, "optimizer", optimizer)

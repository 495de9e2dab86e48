"""Lightning: one callback, and the training of a LightningModule with one optimizer is measured (or steered)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from topoopt.config import TopoConfig
from topoopt.control import Policy
from topoopt.errors import ConfigError, MeasurementError
from topoopt.integrations.background import BackgroundSink
from topoopt.integrations.probe import full_precision
from topoopt.integrations.rows import Rows
from topoopt.measurement import Measurement
from topoopt.optimizer import TopoOptimizer


class TopoCallback(Callback):
    """Measures what a Lightning `Trainer` trains; scalars go to its loggers, the state into its checkpoints.

    ```python
    trainer = Trainer(callbacks=[TopoCallback(mode="preserve")])
    ```

    Args:
        mode: as `TopoConfig.mode`; it goes over `config`'s.
        config: settings; keyword `options` are `TopoConfig`'s fields and go over it.
        loss: `loss(module, batch)` for the spectral estimate. None: `training_step`, its logging silenced.
        **options: fields of `TopoConfig`.

    Raises:
        ConfigError: for settings that cannot work; when training begins, for a module with several optimizers.
    """

    def __init__(
        self,
        mode: str | Policy | None = None,
        *,
        config: TopoConfig | None = None,
        loss: Callable[[LightningModule, Any], Any] | None = None,
        **options: Any,
    ) -> None:
        self.config = TopoConfig.from_options(config, options if mode is None else {**options, "mode": mode})
        self.topo: TopoOptimizer | None = None
        self._loss = loss
        self._batch: tuple[Any, int] | None = None
        self._saved: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the one optimizer."""
        self._detach()
        if len(trainer.optimizers) != 1:
            raise ConfigError(
                f"{type(pl_module).__name__} has {len(trainer.optimizers)} optimizers and TopoCallback measures one: "
                "wrap the one you mean in TopoOptimizer in configure_optimizers"
            )
        model = trainer.strategy.model or pl_module
        self.topo = TopoOptimizer(trainer.optimizers[0], model, self.config, loss=lambda: self._probe(pl_module))
        self.topo.total_steps = int(trainer.estimated_stepping_batches)
        if self._saved is not None:
            self.topo.load_topo_state_dict(self._saved)
            self._saved = None
        else:
            self.topo.steps = trainer.global_step
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                self.topo.add_sink(LoggerSink(logger))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the batch for the probe."""
        self._batch = (batch, batch_idx)

    def _probe(self, module: LightningModule) -> Any:
        if self._batch is None:
            raise MeasurementError("the probe has seen no training batch yet")
        batch, index = self._batch
        with full_precision(module), _silent(module):
            loss = module.training_step(batch, index) if self._loss is None else self._loss(module, batch)
        return loss["loss"] if isinstance(loss, dict) else loss

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect what is still on its way, and detach."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Detach from a training that failed."""
        self._detach()

    def _detach(self) -> None:
        if self.topo is not None:
            self.topo.detach()
        self._batch = None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs to go on as the unbroken one."""
        return {} if self.topo is None else self.topo.topo_state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it until training starts."""
        self._saved = state_dict or None


class LoggerSink(BackgroundSink):
    """Sends the scalars to a Lightning logger."""

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self._logger = logger
        self._rows = Rows()

    def deliver(self, measurement: Measurement) -> None:
        """Log one row."""
        self._logger.log_metrics(self._rows.row(measurement), step=measurement.step)


@contextmanager
def _silent(module: LightningModule) -> Iterator[None]:
    """Let `self.log` do nothing: it is refused inside an optimizer step, and would count the probe twice."""
    names = ("log", "log_dict")
    for name in names:
        object.__setattr__(module, name, lambda *args, **kwargs: None)
    try:
        yield
    finally:
        for name in names:
            object.__delattr__(module, name)

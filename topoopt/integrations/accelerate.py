"""accelerate: attach to what `Accelerator.prepare` returned, write to its trackers, live in its checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from topoopt.config import TopoConfig
from topoopt.errors import ConfigError
from topoopt.integrations.background import BackgroundSink, guarded
from topoopt.integrations.checkpoint import load_state, save_state
from topoopt.integrations.measured import measured_inside
from topoopt.integrations.rows import Rows
from topoopt.measurement import Measurement, SpectralReading
from topoopt.optimizer import TopoOptimizer
from topoopt.summary import Run

if TYPE_CHECKING:
    from accelerate import Accelerator


def attach(
    accelerator: Accelerator,
    optimizer: Optimizer,
    model: nn.Module,
    config: TopoConfig | None = None,
    *,
    loss: Callable[[], Any] | None = None,
    trackers: bool = True,
    **options: Any,
) -> TopoOptimizer:
    """Measure a prepared model and optimizer; call it after `accelerator.prepare`, and go on using what that returned.

    ```python
    model, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    topo = attach(accelerator, optimizer, model, mode="preserve")
    ```

    Measurements go to the accelerator's trackers from its main process; `accelerator.save_state` and `load_state` take
    topoopt's state along, and load a folder without it all the same. Call `topo.detach()` when training ends. An
    optimizer that was a `TopoOptimizer` before `prepare` is found inside and keeps its settings; its model becomes the
    prepared one.

    Args:
        accelerator: the one that prepared the two.
        optimizer: as returned by `prepare`.
        model: as returned by `prepare`.
        config: settings; keyword `options` are `TopoConfig`'s fields and go over it.
        loss: as for `TopoOptimizer`; without it r is read from the training's own steps.
        trackers: whether to write to the accelerator's trackers (after `accelerator.init_trackers`).
        **options: fields of `TopoConfig`.

    Raises:
        PartitionedError: under DeepSpeed and FSDP1, which keep no neuron whole.
        ConfigError: for arguments that cannot work together.
    """
    topo = measured_inside(optimizer)
    if topo is None:
        topo = TopoOptimizer(optimizer, model, config, loss=loss, **options)
        _keep_in_checkpoints(accelerator, topo)  # one made before `prepare` is saved with accelerate's optimizer
    elif config is not None or options:
        raise ConfigError(
            f"this optimizer already holds {topo!r}, which has settings of its own: give them there, or wrap only here"
        )
    else:
        topo.model = model
        topo.loss = loss or topo.loss
    if trackers and accelerator.is_main_process:
        for tracker in accelerator.trackers:
            topo.add_sink(sink_for(tracker))
    return topo


def _keep_in_checkpoints(accelerator: Accelerator, topo: TopoOptimizer) -> None:
    """Save and load through hooks: an object registered for checkpointing would make older folders unloadable."""
    name = f"topoopt_{accelerator.process_index}.pt"

    def save(models: Any, weights: Any, folder: str) -> None:
        guarded("saving topoopt's state", lambda: save_state(topo, Path(folder) / name))

    def load(models: Any, folder: str) -> None:
        guarded("resuming", lambda: load_state(topo, Path(folder) / name))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def sink_for(tracker: Any) -> BackgroundSink:
    """Return the sink for one of accelerate's trackers: its own where topoopt has one, else plain scalars."""
    name = getattr(tracker, "name", "")
    if name == "wandb":
        from topoopt.integrations.wandb import WandbSink

        return WandbSink(tracker.tracker)
    if name == "tensorboard":
        from topoopt.integrations.tensorboard import TensorBoardSink

        return TensorBoardSink(tracker.tracker)
    if name == "trackio":
        from topoopt.integrations.trackio import TrackioSink

        return TrackioSink(tracker.tracker)
    return LogSink(tracker)


class LogSink(BackgroundSink):
    """Sends the scalars to anything with `log(values, step=...)`: an accelerate tracker, or an accelerator itself.

    The step is the optimizer's. Where the tracker wants steps that only grow (W&B does) and the loop counts something
    else, use that tracker's own sink, which passes none.
    """

    def __init__(self, to: Any, *, limit: int = 256, patience: float = 30.0) -> None:
        super().__init__(limit=limit, patience=patience)
        self._to = to
        self._rows = Rows()

    def deliver_begin(self, run: Run) -> None:
        """Start anew."""
        self._rows = Rows()

    def deliver_reading(self, reading: SpectralReading) -> None:
        """Log what a reading says."""
        self._log(reading)

    def deliver(self, measurement: Measurement) -> None:
        """Log one row."""
        self._log(measurement)

    def _log(self, seen: Measurement | SpectralReading) -> None:
        row = self._rows.row(seen)
        if len(row) > 1:  # more than its step
            self._to.log(row, step=seen.step)

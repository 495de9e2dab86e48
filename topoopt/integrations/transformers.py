"""Hugging Face Trainer: one callback, and every training of it is measured (or steered)."""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler, ExportableState

from topoopt.config import TopoConfig
from topoopt.control import Policy
from topoopt.errors import PartitionedError
from topoopt.integrations.background import guarded
from topoopt.integrations.checkpoint import load_state, save_state
from topoopt.integrations.probe import BatchProbe
from topoopt.integrations.trainer_access import Caller, TrainerLoss, caller, has_own_loss, move_before_reporters
from topoopt.measurement import Measurement
from topoopt.optimizer import TopoOptimizer

logger = logging.getLogger("topoopt")

Sink = Callable[[Measurement], None]


class TopoCallback(TrainerCallback, ExportableState):
    """Measures the neurons of the model that a `Trainer` trains, and reports or steers how close it comes to eta*.

    ```python
    trainer = Trainer(model=model, args=args, train_dataset=data, callbacks=[TopoCallback(mode="preserve")])
    ```

    Each training row of `trainer.state.log_history`, and with it every tracker of `report_to`, gains the summary of the
    latest measurement under `topo/...` (trackers show it as `train/topo/...`); layers and diagrams go to W&B,
    TensorBoard and trackio on their own. The state is saved into each checkpoint and taken up when training resumes.

    Args:
        mode: as `TopoConfig.mode`; it goes over `config`'s.
        config: settings, also as JSON; keyword `options` are `TopoConfig`'s fields and go over it.
        record: file for the record (JSON lines), for `topoopt report`.
        sinks: more receivers of measurements, on the main process. They are not part of what
            `restore_callback_states_from_checkpoint` restores.
        trackers: whether to send layers and diagrams to the trackers of `report_to`.
        **options: fields of `TopoConfig`.

    Raises:
        ConfigError: for settings that cannot work, here; when training begins, for an optimizer that cannot be wrapped.

    Under DeepSpeed and FSDP1, which keep no neuron whole, training is left alone, with a warning.
    """

    def __init__(
        self,
        mode: str | Policy | None = None,
        *,
        config: TopoConfig | str | None = None,
        record: str | Path | None = None,
        sinks: Iterable[Sink] = (),
        trackers: bool = True,
        **options: Any,
    ) -> None:
        base = TopoConfig.from_json(config) if isinstance(config, str) else config
        self.config = TopoConfig.from_options(base, options if mode is None else {**options, "mode": mode})
        self.record = None if record is None else str(record)
        self.sinks = list(sinks)
        self.trackers = trackers
        self.topo: TopoOptimizer | None = None
        """The wrapper of the training under way, or of the last one."""
        self._probe: BatchProbe | None = None
        self._trainer_loss: TrainerLoss | None = None
        self._handler: CallbackHandler | None = None
        self._attached = False
        self._trackers_due = False
        self._in_history: Measurement | None = None

    @property
    def last(self) -> Measurement | None:
        """The latest measurement, or None."""
        return None if self.topo is None else self.topo.last

    # -- attaching and detaching -------------------------------------------------------------------------------------

    def on_train_begin(  # type: ignore[override]
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Attach; a training that ended without an end (out of memory, an interrupt) is detached first."""
        self.detach()
        # Saving a checkpoint looks the callback's state up here, and an older checkpoint's state has none.
        saved: Any = state.stateful_callbacks  # a dict by now, whatever its annotation says
        saved.setdefault(type(self).__name__, self.state())
        if model is None or optimizer is None:
            return
        found = caller()
        self._handler = found.handler
        if found.handler is not None:
            move_before_reporters(found.handler, self, reporters(args))
        self._attach(found, args, state, model, optimizer)

    def _attach(
        self, found: Caller, args: TrainingArguments, state: TrainerState, model: nn.Module, optimizer: Optimizer
    ) -> None:
        # What training calls: DDP, a compiled module, ...
        wrapped: Any = model if found.trainer is None else found.trainer.model_wrapped
        if found.trainer is not None and has_own_loss(found.trainer):
            self._trainer_loss = TrainerLoss(found.trainer, wrapped)
            self._probe = self._trainer_loss.probe
        else:
            self._probe = BatchProbe(wrapped)
        try:
            self.topo = TopoOptimizer(optimizer, wrapped, self.config, loss=self._probe)
        except PartitionedError as error:
            self._release()
            self.topo = None
            logger.warning("topoopt: %s", error)
            return
        except Exception:
            self._release()
            raise
        self._attached = True
        self.topo.total_steps = state.max_steps
        self._in_history = None
        if state.global_step > 0:
            self.topo.steps = state.global_step
            guarded("resuming", lambda: self._resume(found.checkpoint, args, state))
        if state.is_world_process_zero:
            self._trackers_due = self.trackers
            for sink in self._own_sinks():
                self.topo.add_sink(sink)

    def _own_sinks(self) -> list[Sink]:
        if self.record is None:
            return self.sinks
        from topoopt.report import JsonLines

        return [JsonLines(self.record, self.config), *self.sinks]

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Join the trackers' runs once all callbacks have set theirs up."""
        if self._trackers_due and self.topo is not None:
            self._trackers_due = False
            guarded("joining the trackers", lambda: self._join_trackers(args))

    def _join_trackers(self, args: TrainingArguments) -> None:
        assert self.topo is not None
        for sink in tracker_sinks(args, self._handler):
            self.topo.add_sink(sink)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Collect what is still on its way, and detach."""
        self.detach()

    def detach(self) -> None:
        """Take everything off the optimizer, the model and the trainer; nothing happens when nothing is attached."""
        if self._attached and self.topo is not None:
            self._attached = False
            self.topo.detach()
        self._release()

    def _release(self) -> None:
        for part in (self._trainer_loss, self._probe):
            if part is not None:
                part.close()
        self._trainer_loss = self._probe = None

    # -- the trainer's log -------------------------------------------------------------------------------------------

    def on_log(  # type: ignore[override]
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the summary of a measurement that no row holds yet to a training row (or to the last one of the run)."""
        last = self.last
        if logs is None or last is None or last is self._in_history or not ("loss" in logs or "train_runtime" in logs):
            return
        self._in_history = last
        row = summary(last)
        logs.update(row)
        state.log_history[-1].update(row)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What `restore_callback_states_from_checkpoint` builds this callback from; tensors lie in the checkpoint."""
        return {
            "args": {"config": self.config.to_json(), "record": self.record, "trackers": self.trackers},
            "attributes": {},
        }

    def on_save(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put what a resumed run needs to go on as the unbroken one beside the checkpoint's other files."""
        topo, folder = self.topo, checkpoint_folder(args, state)
        if topo is not None and self._attached and not args.save_only_model and folder.is_dir():
            guarded("saving topoopt's state", lambda: save_state(topo, folder / state_file(args)))

    def _resume(self, checkpoint: str | None, args: TrainingArguments, state: TrainerState) -> None:
        assert self.topo is not None
        folder = checkpoint_folder(args, state) if checkpoint is None else Path(checkpoint)
        if not load_state(self.topo, folder / state_file(args)):
            logger.info("topoopt: %s holds no topoopt state, measuring starts anew at step %d", folder, self.topo.steps)


def checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    """Where Trainer saves the checkpoint of this step; the trials of a search save elsewhere and are not resumed."""
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"


def state_file(args: TrainingArguments) -> str:
    """Name of this process's file in a checkpoint."""
    return f"topoopt_{args.process_index}.pt"


def summary(measurement: Measurement) -> dict[str, float]:
    """The scalars that are not of a single layer; finite ones only, since the trainer's state is saved as JSON."""
    scalars = measurement.scalars(layers=False)
    return {key: value for key, value in scalars.items() if math.isfinite(value)}


def tracker_sinks(args: TrainingArguments, handler: CallbackHandler | None) -> list[Sink]:
    """Return a sink for each tracker of `report_to` that topoopt knows and whose run is up."""
    sinks: list[Sink] = []
    report_to = reporters(args)
    if "wandb" in report_to:
        from topoopt.integrations.wandb import WandbSink

        run = importlib.import_module("wandb").run
        sinks += [] if run is None else [WandbSink(run)]
    if "tensorboard" in report_to and handler is not None:
        from topoopt.integrations.tensorboard import TensorBoardSink

        writers = [writer for cb in handler.callbacks if (writer := getattr(cb, "tb_writer", None)) is not None]
        sinks += [TensorBoardSink(writer) for writer in writers[:1]]
    if "trackio" in report_to:
        from topoopt.integrations.trackio import TrackioSink

        run = importlib.import_module("trackio").context_vars.current_run.get()
        sinks += [] if run is None else [TrackioSink(run)]
    return sinks


def reporters(args: TrainingArguments) -> list[str]:
    """The names of `report_to`, as Trainer has settled them."""
    names = args.report_to or []
    return [names] if isinstance(names, str) else names

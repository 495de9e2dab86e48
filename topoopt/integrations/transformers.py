"""Hugging Face Trainer: one callback, and every training of it is measured (or steered)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler, ExportableState

from topoopt.config import TopoConfig
from topoopt.control import Policy
from topoopt.errors import PartitionedError
from topoopt.integrations import trainer_rate
from topoopt.integrations.background import guarded
from topoopt.integrations.checkpoint import load_state, save_state
from topoopt.integrations.console import tell_verdict
from topoopt.integrations.measured import measured_inside
from topoopt.integrations.suggesting import as_row, looked_for, options_of, suggested, tell
from topoopt.integrations.trainer_access import Caller, RowWriter, caller, is_console, remove, take_place
from topoopt.integrations.trainer_rows import CONSOLE, LogRows
from topoopt.integrations.trainer_trackers import SINKS, Sink, reporters, tracker_sinks
from topoopt.measurement import Measurement
from topoopt.optimizer import TopoOptimizer
from topoopt.suggestion import Suggestion
from topoopt.verdict import Verdict

logger = logging.getLogger("topoopt")
LAYERWISE = (
    "this training steps each layer in backward through optimizers of their own (a layer-wise optimizer), and gives the trainer a "
    "dummy without weights: there is no step to measure, and training is left alone"
)


class TopoCallback(TrainerCallback, ExportableState):
    """Measures the neurons of the model that a `Trainer` trains, and reports or steers how close it comes to eta*.

    ```python
    trainer = Trainer(model=model, args=args, train_dataset=data, callbacks=[TopoCallback(mode="preserve")])
    ```

    r is read from the trainer's own steps, whatever its loss is made of: no batch, loss or model is run again.

    A training row of `trainer.state.log_history` gains what is new since the row before, under `topo/...`: the latest reading
    of r, at `topo/step`, and the latest measurement (where it is of an earlier step, `topo/measured_step` says of which).
    Five of these numbers stand on the console, and the verdict's three lines at its end. The last row has them as
    `topo/verdict`. W&B, TensorBoard and trackio get every reading, layers and diagrams on their own; other trackers of
    `report_to` what the console shows, as `train/topo/...`. The state is saved into each checkpoint and taken up when
    training resumes.

    With `suggest=True` the learning rate is found first, by `topoopt.suggest` on copies, with batches like the training's own:
    it is put in force on the optimizer and its scheduler, said in the log, and stands in the record. The training is then, to
    the last bit, the one that has this rate typed in. Where no rate can be told, the user's stays, and the reason is said.

    Args:
        mode: as `TopoConfig.mode`; it goes over `config`'s.
        config: settings, also as JSON; keyword `options` are `TopoConfig`'s fields and go over it.
        record: file for the record (JSON lines), for `topoopt report`.
        sinks: more receivers of measurements, on the main process. They are not part of what
            `restore_callback_states_from_checkpoint` restores.
        trackers: whether W&B, TensorBoard and trackio in `report_to` get everything; else they get what the console shows.
        suggest: whether to find the learning rate before training begins (not where one is resumed): True, or options of
            `topoopt.suggest` such as `{"steps": 300}`. It takes about twice that many training steps, and a copy of the model.
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
        suggest: bool | Mapping[str, Any] = False,
        **options: Any,
    ) -> None:
        base = TopoConfig.from_json(config) if isinstance(config, str) else config
        self.config = TopoConfig.from_options(base, options if mode is None else {**options, "mode": mode})
        self.record = None if record is None else str(record)
        self.sinks = list(sinks)
        self.trackers = trackers
        self.suggest = suggest
        self._search = options_of(suggest)
        self.suggestion: Suggestion | None = None
        """What was found before the training under way, or the last one; None where nothing was looked for."""
        self.topo: TopoOptimizer | None = None
        """The wrapper of the training under way, or of the last one."""
        self._handler: CallbackHandler | None = None
        self._attached = False
        self._trackers_due = False
        self._writer = RowWriter(self._add_row)
        self._rows = LogRows()
        self._own = True

    @property
    def last(self) -> Measurement | None:
        """The latest measurement, or None."""
        return None if self.topo is None else self.topo.last

    @property
    def verdict(self) -> Verdict | None:
        """What the readings so far say of the learning rate, or None before training."""
        return None if self.topo is None else self.topo.verdict

    # -- attaching and detaching -------------------------------------------------------------------------------------

    def on_train_begin(  # type: ignore[override]
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        lr_scheduler: Any = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        """Find the rate, if asked to, and attach; a training that never ended (out of memory, an interrupt) is detached first."""
        self.detach()
        # Saving a checkpoint looks the callback's state up here, and an older checkpoint's state has none.
        saved: Any = state.stateful_callbacks  # a dict by now, whatever its annotation says
        saved.setdefault(type(self).__name__, self.state())
        if model is None or optimizer is None:
            return
        found = caller()
        self._handler = found.handler
        if found.handler is not None:
            own = [name for name in reporters(args) if name in SINKS and self.trackers]
            others = [name for name in reporters(args) if name not in own]
            take_place(found.handler, self, self._writer, own, others)
        self.suggestion = None
        if self._search is not None and state.global_step == 0 and not _is_dummy(optimizer):
            self._find_rate(found, args, state, model, optimizer, lr_scheduler, train_dataloader)
        self._attach(found, args, state, model, optimizer)

    def _find_rate(
        self,
        found: Caller,
        args: TrainingArguments,
        state: TrainerState,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: Any,
        loader: Any,
    ) -> None:
        said = looked_for(
            optimizer, lambda: trainer_rate.find(found.trainer, args, model, optimizer, loader, self._search)
        )
        if found.trainer is not None:
            trainer_rate.apply(said, found.trainer, optimizer, scheduler, state.max_steps)
        self.suggestion = said
        tell(said)

    def _attach(
        self, found: Caller, args: TrainingArguments, state: TrainerState, model: nn.Module, optimizer: Optimizer
    ) -> None:
        if _is_dummy(optimizer):
            logger.warning("topoopt: %s", LAYERWISE)
            self.topo = None
            return
        # What training calls: DDP, a compiled module, ... r is read from the trainer's own step.
        wrapped: Any = model if found.trainer is None else found.trainer.model_wrapped
        self.topo = measured_inside(optimizer)
        self._own = self.topo is None
        if self.topo is not None:
            logger.warning(
                "topoopt: the trainer's optimizer is measured already: its own settings count, the callback's do not"
            )
            self.topo.model = wrapped
        try:
            self.topo = self.topo or TopoOptimizer(optimizer, wrapped, self.config)
        except PartitionedError as error:
            self.topo = None
            logger.warning("topoopt: %s", error)
            return
        self._attached = True
        self.topo.total_steps = state.max_steps
        if self.suggestion is not None:
            self.topo.suggested = suggested(self.suggestion)
        self._rows = LogRows()
        if state.global_step > 0 and self._own:
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
        """Collect what is still on its way, detach, and say the verdict where the trainer prints its log."""
        printed = self._handler is not None and any(map(is_console, self._handler.callbacks))
        self.detach()
        if printed and state.is_world_process_zero and self.topo is not None and self.topo.readings:
            tell_verdict(self.topo.verdict, self.record)

    def detach(self) -> None:
        """Take everything off the optimizer; nothing happens when nothing is attached."""
        if self._attached and self.topo is not None:
            self._attached = False
            if self._own:
                self.topo.detach()
        if self._handler is not None:
            remove(self._handler, self._writer)
            self._handler = None

    # -- the trainer's log -------------------------------------------------------------------------------------------

    def on_log(  # type: ignore[override]
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Where the handler was not found, and so no place between the reporters: add to the log here."""
        if logs is not None and self._handler is None:
            self._add_row(state, logs)

    def _add_row(self, state: TrainerState, logs: dict[str, Any]) -> None:
        """Add what no row holds yet to a training row, and to the last row of the run its verdict too."""
        if self.topo is None or not self._attached or not ("loss" in logs or "train_runtime" in logs):
            return
        begun, row = self._rows.begun, self._rows.row(self.topo.last, self.topo.readings, self.topo.phase)
        kept: dict[str, Any] = state.log_history[-1]  # saved as JSON: numbers of Python's, and text
        if not begun and self.suggestion is not None:
            row |= as_row(self.suggestion)
            kept["topo/suggestion"] = str(self.suggestion)
        if "loss" in logs:  # of the last row Trainer returns the dictionary: there they would be among the metrics
            shown = CONSOLE if self.topo.config.policy.steers else CONSOLE[:-1]
            logs.update({key: row[key] for key in shown if key in row})
        kept.update(row)
        if "train_runtime" in logs:
            kept["topo/verdict"] = str(self.topo.verdict)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What `restore_callback_states_from_checkpoint` builds this callback from; tensors lie in the checkpoint."""
        return {
            "args": {
                "config": self.config.to_json(),
                "record": self.record,
                "trackers": self.trackers,
                "suggest": self.suggest if isinstance(self.suggest, bool) else dict(self.suggest),
            },
            "attributes": {},
        }

    def on_save(  # type: ignore[override]
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put what a resumed run needs to go on as the unbroken one beside the checkpoint's other files."""
        topo, folder = self.topo, checkpoint_folder(args, state)
        if topo is not None and self._attached and self._own and not args.save_only_model and folder.is_dir():
            guarded("saving topoopt's state", lambda: save_state(topo, folder / state_file(args)))

    def _resume(self, checkpoint: str | None, args: TrainingArguments, state: TrainerState) -> None:
        assert self.topo is not None
        folder = checkpoint_folder(args, state) if checkpoint is None else Path(checkpoint)
        if not load_state(self.topo, folder / state_file(args)):
            logger.info("topoopt: %s holds no topoopt state, measuring starts anew at step %d", folder, self.topo.steps)


def _is_dummy(optimizer: Optimizer) -> bool:
    """Whether the trainer's optimizer only stands for layer-wise ones, which step inside backward."""
    inner: Any = getattr(optimizer, "optimizer", optimizer)
    return type(inner).__name__ == "LayerWiseDummyOptimizer"


def checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    """Where Trainer saves the checkpoint of this step; the trials of a search save elsewhere and are not resumed."""
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"


def state_file(args: TrainingArguments) -> str:
    """Name of this process's file in a checkpoint."""
    return f"topoopt_{args.process_index}.pt"

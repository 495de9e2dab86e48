"""The trackers of a Trainer's `report_to` that topoopt writes to on its own."""

from __future__ import annotations

from collections.abc import Callable

from transformers import TrainingArguments
from transformers.trainer_callback import CallbackHandler

from topoopt.extras import require
from topoopt.measurement import Measurement

SINKS = ("wandb", "tensorboard", "trackio")
"""Names in `report_to` of the trackers that topoopt writes to on its own."""

Sink = Callable[[Measurement], None]


def tracker_sinks(args: TrainingArguments, handler: CallbackHandler | None) -> list[Sink]:
    """Return a sink for each tracker of `report_to` that topoopt knows and whose run is up."""
    sinks: list[Sink] = []
    report_to = reporters(args)
    if "wandb" in report_to:
        from topoopt.integrations.wandb import WandbSink

        run = require("wandb", extra="wandb").run
        sinks += [] if run is None else [WandbSink(run, commit=True)]  # Trainer's callback logs without steps
    if "tensorboard" in report_to and handler is not None:
        from topoopt.integrations.tensorboard import TensorBoardSink

        writers = [writer for cb in handler.callbacks if (writer := getattr(cb, "tb_writer", None)) is not None]
        sinks += [TensorBoardSink(writer) for writer in writers[:1]]
    if "trackio" in report_to:
        from topoopt.integrations.trackio import TrackioSink

        run = require("trackio", extra="trackio").context_vars.current_run.get()
        sinks += [] if run is None else [TrackioSink(run)]
    return sinks


def reporters(args: TrainingArguments) -> list[str]:
    """The names of `report_to`, as Trainer has settled them."""
    names = args.report_to or []
    return [names] if isinstance(names, str) else names

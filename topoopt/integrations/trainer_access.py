"""What Trainer does not hand to its callbacks: itself, its list of callbacks, the checkpoint it resumes.

Callbacks get the model and the optimizer, but not the trainer, and they run after the reporters. All of it stands a few
frames up the stack whenever Trainer calls one; where it cannot be found there, `TopoCallback` does without.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_callback import CallbackHandler

DEPTH = 16


@dataclass(frozen=True)
class Caller:
    """Who is calling back; None where it was not found."""

    trainer: Trainer | None = None
    handler: CallbackHandler | None = None
    checkpoint: str | None = None
    """The folder that this training resumes from."""


def caller() -> Caller:
    """Look for the trainer, its callback handler and the checkpoint among the frames of the calls that led here."""
    trainer: Trainer | None = None
    handler: CallbackHandler | None = None
    frame: FrameType | None = sys._getframe(1)
    for _ in range(DEPTH):
        if frame is None:
            break
        owner = frame.f_locals.get("self")
        if isinstance(owner, CallbackHandler):
            handler = owner
        if isinstance(owner, Trainer):
            trainer = owner
            if "resume_from_checkpoint" in frame.f_locals:
                checkpoint = frame.f_locals["resume_from_checkpoint"]
                return Caller(trainer, handler, None if checkpoint is None else str(checkpoint))
        frame = frame.f_back
    return Caller(trainer, handler)


class RowWriter(TrainerCallback):
    """Adds to a log after some reporters have seen it: what they show on their own is not shown twice."""

    def __init__(self, add: Callable[[TrainerState, dict[str, Any]], None]) -> None:
        self._add = add

    def on_log(  # type: ignore[override]
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add, where there is a log."""
        if logs is not None:
            self._add(state, logs)


def take_place(
    handler: CallbackHandler, callback: TrainerCallback, writer: RowWriter, known: list[str], others: list[str]
) -> None:
    """Put `callback` before all reporters, so that it ends before them, and `writer` between those that topoopt writes to
    on its own (`known`) and the others, which show what it adds.

    The list is a new one: the handler may be walking through the old one.
    """
    kept = [cb for cb in handler.callbacks if cb is not callback and not isinstance(cb, RowWriter)]
    own = [cb for cb in kept if isinstance(cb, tuple(get_reporting_integration_callbacks(known)))]
    foreign = [cb for cb in kept if isinstance(cb, tuple(get_reporting_integration_callbacks(others)))]
    moved = {id(cb) for cb in (*own, *foreign)}
    first = next((i for i, cb in enumerate(kept) if id(cb) in moved or is_console(cb)), len(kept))
    rest = [cb for cb in kept[first:] if id(cb) not in moved]
    handler.callbacks = [*kept[:first], callback, *own, writer, *foreign, *rest]


def is_console(callback: TrainerCallback) -> bool:
    """Whether it prints the log."""
    return isinstance(callback, PrinterCallback | ProgressCallback) or (
        type(callback).__name__ == "NotebookProgressCallback"  # importing it takes IPython
    )


def remove(handler: CallbackHandler, writer: RowWriter) -> None:
    """Take the writer away; the list is a new one."""
    handler.callbacks = [cb for cb in handler.callbacks if cb is not writer]

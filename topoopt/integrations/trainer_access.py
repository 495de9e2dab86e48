"""What Trainer does not hand to its callbacks: itself, its list of callbacks, the checkpoint it resumes, its loss.

Callbacks get the model and the optimizer, but neither the trainer nor a batch, and they run after the reporters. All of
it stands a few frames up the stack whenever Trainer calls one; where it cannot be found there, `TopoCallback` does
without.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_callback import CallbackHandler

from topoopt.integrations.probe import BatchProbe

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


def move_before_reporters(handler: CallbackHandler, callback: TrainerCallback, report_to: list[str]) -> None:
    """Let `callback` see each log before the trackers' callbacks do, so that what it adds to it reaches them.

    Safe while the handler walks through its list: only callbacks that were already called change places with it.
    """
    reporters = tuple(get_reporting_integration_callbacks(report_to))
    places = [i for i, other in enumerate(handler.callbacks) if isinstance(other, reporters)]
    own = next((i for i, other in enumerate(handler.callbacks) if other is callback), None)
    if own is not None and places and places[0] < own:
        handler.callbacks.insert(places[0], handler.callbacks.pop(own))


class TrainerLoss:
    """Stands in for `trainer.compute_loss` while training: remembers the inputs, labels included, and calls it.

    Needed where the loss is not the model's own (label smoothing, `compute_loss_func`, an overriding trainer): the
    labels then never reach the model, so its forward hook cannot see them.
    """

    def __init__(self, trainer: Trainer, model: nn.Module) -> None:
        self._trainer = trainer
        self._original: Any = trainer.compute_loss
        self.probe = BatchProbe(model, self._again)
        trainer.compute_loss = self  # type: ignore[method-assign]

    def __call__(self, model: nn.Module, inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss as the trainer does."""
        batch = dict(inputs)
        loss = self._original(model, inputs, *args, **kwargs)
        if model.training:
            self.probe.keep((), batch)  # after the forward: it takes the place of what the model's hook saw
        return loss

    def _again(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        return self._original(module, kwargs)

    def close(self) -> None:
        """Give the trainer its own method back."""
        self.probe.close()
        if self._trainer.__dict__.get("compute_loss") is self:
            del self._trainer.compute_loss


def has_own_loss(trainer: Trainer) -> bool:
    """Whether the loss is something else than what the model returns."""
    overridden = type(trainer).compute_loss is not Trainer.compute_loss
    return overridden or trainer.compute_loss_func is not None or trainer.label_smoother is not None

"""The learning rate for a Hugging Face Trainer's run, found on copies with batches like its own."""

from __future__ import annotations

import copy
from collections import deque
from typing import Any, cast

from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainingArguments

from topoopt.errors import MeasurementError
from topoopt.integrations.measured import measured_inside
from topoopt.suggestion import Suggestion, put_in_force, suggest
from topoopt.suggestion.batches import accumulated, anew, generators_kept
from topoopt.suggestion.copying import undisturbed

CONTAINERS = (dict, list, set, deque)
"""What a trainer counts and collects in."""
DATA = ("train_dataset", "eval_dataset")
"""Containers that may be large, and that no loss is counted in."""


def find(
    trainer: Trainer | None, args: TrainingArguments, model: nn.Module, optimizer: Optimizer, loader: Any, options: Any
) -> Suggestion:
    """The suggestion for the run that is about to begin; the trainer, its data loader and generators see nothing of it.

    A batch is what one optimizer step takes: as many of the loader's as are accumulated. The loss is `compute_loss`, called on
    a stand-in for the trainer, whose counters are its own.

    Raises:
        TopoError: where none can be found, with the reason.
    """
    if trainer is None:
        raise MeasurementError("the trainer was not found among the callers, and with it its loss")
    if measured_inside(optimizer) is not None:
        raise MeasurementError(
            "the optimizer is wrapped by TopoOptimizer already: ask before wrapping (topoopt.suggest)"
        )
    if args.world_size > 1:
        raise MeasurementError(
            "training spans processes: the trainer's loss and data loader wait for all of them, and how many steps a search "
            "takes hangs on what each would read; ask in one process beforehand (topoopt.suggest), with batches as large as all "
            "of them take together"
        )
    inner = getattr(loader, "base_dataloader", loader)
    with undisturbed(model), generators_kept(inner, getattr(inner, "dataset", None)):
        batches = accumulated(anew(loader), args.gradient_accumulation_steps)
        loss = Loss(trainer)
        return suggest(model, optimizer, batches, loss, max_norm=args.max_grad_norm or None, **options)


def apply(found: Suggestion, trainer: Trainer, optimizer: Optimizer, scheduler: Any, steps: int) -> None:
    """Put a suggestion in force. A scheduler with settings of its own (a smallest rate) that the trainer has made is made anew."""
    put_in_force(found, optimizer, [] if scheduler is None else [scheduler])
    args = trainer.args
    if found.known and args.lr_scheduler_kwargs and getattr(trainer, "_created_lr_scheduler", False):
        for group in optimizer.param_groups:
            group["lr"] = group.pop("initial_lr", group["lr"])
        trainer.lr_scheduler, handler = None, cast("Any", trainer.callback_handler)
        handler.lr_scheduler = trainer.create_scheduler(steps, optimizer)


class Loss:
    """`loss(model, micro_batches)`: what the trainer's training step goes backward through, on a stand-in for the trainer."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = stand_in(trainer)

    def __call__(self, model: nn.Module, micro: list[Any]) -> Any:
        """The scalar loss, with its graph."""
        trainer: Any = self._trainer
        trainer.model = trainer.model_wrapped = model
        inputs, items = trainer.get_batch_samples(iter(micro), len(micro), trainer.args.device)
        total = 0.0
        for one in inputs:
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(model, trainer._prepare_inputs(one), num_items_in_batch=items)
            total = total + (loss if self._is_scaled(items) else loss / len(inputs))
        return total

    def _is_scaled(self, items: Any) -> bool:
        """Whether the loss is over all that is accumulated already, as the training step has it."""
        trainer: Any = self._trainer
        said = getattr(trainer, "loss_is_scaled_for_ga", None)
        if said is not None:
            return bool(said)
        return bool((trainer.model_accepts_loss_kwargs and items is not None) or trainer.compute_loss_func is not None)


def stand_in(trainer: Trainer) -> Trainer:
    """A trainer that computes losses as this one does, and counts on its own: containers are copied, without their tensors'
    graphs; models, data and tools are shared.
    """
    other = copy.copy(trainer)
    for name, value in vars(trainer).items():
        if isinstance(value, CONTAINERS) and name not in DATA:
            try:
                setattr(other, name, copy.deepcopy(value))
            except Exception:  # holds what has no copy: the container itself is still another one
                setattr(other, name, copy.copy(value))
    other.state, other.control = copy.deepcopy(trainer.state), copy.deepcopy(trainer.control)
    return other

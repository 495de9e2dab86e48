"""The learning rate for a Lightning Trainer's run, found on copies of the module with batches like its own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from topoopt.errors import MeasurementError
from topoopt.integrations.measured import measured_inside
from topoopt.suggestion import Suggestion, put_in_force, suggest
from topoopt.suggestion.batches import accumulated, anew, generators_kept
from topoopt.suggestion.checks import bare
from topoopt.suggestion.copying import undisturbed

Micro = list[tuple[Any, int, int]]
"""What one optimizer step takes: (batch, its index, its loader's) as often as gradients are accumulated."""


def find(trainer: Trainer, module: LightningModule, optimizer: Optimizer, options: Any) -> Suggestion:
    """The suggestion for the run that is about to begin; trainer, module, loaders and generators see nothing of it.

    The loss is `training_step` of a copy that has no trainer: what it logs goes nowhere.

    Raises:
        TopoError: where none can be found, with the reason.
    """
    if not module.automatic_optimization or len(trainer.optimizers) > 1:
        raise MeasurementError("the module takes its steps by itself: ask beforehand (topoopt.suggest)")
    if measured_inside(optimizer) is not None:
        raise MeasurementError(
            "the optimizer is wrapped by TopoOptimizer already: ask before wrapping (topoopt.suggest)"
        )
    if trainer.world_size > 1:
        raise MeasurementError("training spans processes: ask in one of them beforehand (topoopt.suggest)")
    combined: Any = trainer.fit_loop._combined_loader
    if combined is None:
        raise MeasurementError("the trainer has no data loader yet")
    loaders = combined.flattened
    with undisturbed(module), generators_kept(*loaders, *(getattr(one, "dataset", None) for one in loaders)):
        fresh = CombinedLoader(tree_map(anew, combined.iterables, is_leaf=_is_loader), combined._mode)
        batches = accumulated(fresh, int(trainer.accumulate_grad_batches))
        return suggest(module, bare(optimizer), batches, Loss(trainer), max_norm=_max_norm(trainer), **options)


def apply(found: Suggestion, trainer: Trainer, optimizer: Optimizer) -> None:
    """Put a suggestion in force, in the schedulers of this optimizer too."""
    inner = bare(optimizer)
    mine = [one.scheduler for one in trainer.lr_scheduler_configs if bare(one.scheduler.optimizer) is inner]
    put_in_force(found, inner, mine)


class Loss:
    """`loss(copy of the module, micro batches)`: the mean of `training_step`'s losses, as automatic optimization has it."""

    def __init__(self, trainer: Trainer) -> None:
        self._precision = trainer.precision_plugin

    def __call__(self, module: nn.Module, micro: Micro) -> Tensor:
        """The scalar loss, with its graph."""
        assert isinstance(module, LightningModule)
        for name in ("log", "log_dict", "print"):
            setattr(module, name, _nothing)
        losses = [self._one(module, *one) for one in micro]
        return sum(losses[1:], losses[0]) / len(losses)

    def _one(self, module: LightningModule, batch: Any, index: int, loader: int) -> Tensor:
        batch = module._apply_batch_transfer_handler(self._precision.convert_input(batch), module.device, loader)
        kwargs = (
            {"batch_idx": index} if is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2) else {}
        )
        with self._precision.train_step_context():
            result = module.training_step(batch, *kwargs.values())
        loss = result.get("loss") if isinstance(result, Mapping) else result
        if not isinstance(loss, Tensor):
            raise MeasurementError(
                f"training_step gave a {type(result).__name__} without a loss, so no rate can be tried"
            )
        return loss


def _is_loader(one: Any) -> bool:
    return not isinstance(one, dict | tuple) and not (isinstance(one, list) and any(map(_is_loader_like, one)))


def _is_loader_like(one: Any) -> bool:
    return hasattr(one, "dataset")


def _max_norm(trainer: Trainer) -> float | None:
    """What the gradient's norm is clipped to; clipping by value is left out of the rehearsal."""
    value = trainer.gradient_clip_val
    by_norm = str(trainer.gradient_clip_algorithm or "norm").endswith("norm")
    if value and not by_norm:
        warnings.warn("topoopt: gradients are clipped by value, which the search for a rate leaves out", stacklevel=2)
    return float(value) if value and by_norm else None


def _nothing(*args: Any, **kwargs: Any) -> None:
    """What a copy that belongs to no trainer does with what it is told to log."""

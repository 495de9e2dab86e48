"""What can be wrapped: each thing that cannot is named, with what to do."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from topoopt.errors import ConfigError, PartitionedError
from topoopt.optimizer.hooks import innermost

DEEPSPEED = (
    "DeepSpeed steps flat partitions of the parameters, in which no neuron is whole, and one after the other: this training "
    "cannot be measured or steered; use FSDP2 (fully_shard), or DDP"
)
FSDP1 = (
    "FullyShardedDataParallel (FSDP1) keeps flat partitions of the parameters, in which no neuron is whole: this training "
    "cannot be measured or steered; use FSDP2 (fully_shard), or DDP"
)


def check_arguments(optimizer: object, model: object, loss: object) -> None:
    """Refuse what `TopoOptimizer` cannot work with.

    Raises:
        PartitionedError: for DeepSpeed and FSDP1.
        ConfigError: for arguments of the wrong kind, or that do not belong together.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model is a {type(model).__name__}: give the torch.nn.Module whose parameters are optimized")
    refuse_partitions(optimizer, model)
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"optimizer is a {type(optimizer).__name__}: give a torch.optim.Optimizer, already built")
    if loss is not None and not callable(loss):
        raise ConfigError(
            f"loss is a {type(loss).__name__}: give a function without arguments that runs the forward pass and "
            "returns the loss, such as `lambda: criterion(model(x), y)`"
        )
    own = {id(p) for p in model.parameters()}
    held = [p for group in innermost(optimizer).param_groups for p in group["params"]]
    if not any(id(p) in own for p in held):
        raise ConfigError(
            f"none of the optimizer's {len(held)} parameters belongs to this {type(model).__name__} (which has "
            f"{len(own)}): build the optimizer from model.parameters() of the same model"
        )


def refuse_partitions(optimizer: object, model: nn.Module) -> None:
    """Raise PartitionedError where weights are kept in flat partitions."""
    if _is_named(model, "DeepSpeedEngine") or any(map(_is_deepspeed, _chain(optimizer))):
        raise PartitionedError(DEEPSPEED)
    if any(_is_named(module, "FullyShardedDataParallel") for module in model.modules()):
        raise PartitionedError(FSDP1)


def _chain(optimizer: object) -> list[object]:
    """The optimizer and what it wraps, torch's or not."""
    found: list[object] = []
    while optimizer is not None and not any(optimizer is seen for seen in found):
        found.append(optimizer)
        optimizer = vars(optimizer).get("optimizer") if hasattr(optimizer, "__dict__") else None
    return found


def _is_deepspeed(optimizer: object) -> bool:
    modules = {kind.__module__.split(".")[0] for kind in type(optimizer).__mro__}
    return "deepspeed" in modules or _is_named(optimizer, "DeepSpeedOptimizerWrapper")


def _is_named(thing: object, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(thing).__mro__)

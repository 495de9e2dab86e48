"""What can be measured, the rule within it, and how its steps are held on to: arguments, closures, hooks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from topoopt.curvature.trial import own_class
from topoopt.errors import ConfigError, PartitionedError

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
    held = [p for group in rule_of(optimizer).param_groups for p in group["params"]]
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


def rule_of(optimizer: Optimizer) -> Optimizer:
    """Follow `.optimizer`, `.base_optimizer` and the like down to the optimizer that holds the update rule.

    Wrappers that only pass on (accelerate's) and those that act after the inner step (Lookahead, SAM, schedule-free) are
    followed alike: r is of the inner rule's step.
    """
    seen = {id(optimizer)}
    while True:
        inner = next((i for i in _inner(optimizer) if id(i) not in seen), None)
        if inner is None:
            return optimizer
        seen.add(id(inner))
        optimizer = inner


def _inner(optimizer: Optimizer) -> list[Optimizer]:
    held = vars(optimizer)
    names = ("optimizer", "base_optimizer", "_optimizer", "base")
    return [held[name] for name in names if isinstance(held.get(name), Optimizer)]


def acts_after(optimizer: Optimizer) -> bool:
    """Whether a wrapper does more than pass its step on: then the training's step is its own, not the inner rule's."""
    return rule_of(optimizer) is not optimizer and type(optimizer).__module__.split(".")[0] not in (
        "accelerate",
        "lightning",
    )


def has_closure(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the step that a hook was called for has a closure; args[0] is the optimizer."""
    return callable(kwargs.get("closure", args[1] if len(args) > 1 else None))


def seen_within(
    args: tuple[Any, ...], kwargs: dict[str, Any], look: Callable[[], None]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a step whose closure's first call is followed by a look: by then its gradients are there."""
    closure = kwargs["closure"] if callable(kwargs.get("closure")) else args[1]
    done: list[bool] = []

    def seen() -> Any:
        result = closure()
        if not done:
            done.append(True)
            look()
        return result

    return (args, {**kwargs, "closure": seen}) if "closure" in kwargs else ((args[0], seen, *args[2:]), kwargs)


class Unpickled:
    """A hook that neither pickles nor copies along with what it hangs on: there it does nothing."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call
        self._untraced = torch.compiler.disable(call)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call what hangs here."""
        return self._untraced(*args, **kwargs) if torch.compiler.is_compiling() else self._call(*args, **kwargs)

    def __reduce__(self) -> Any:
        return _nothing_to_do, ()

    def __copy__(self) -> Any:
        return nothing

    def __deepcopy__(self, memo: Any) -> Any:
        return nothing


def nothing(*args: Any, **kwargs: Any) -> None:
    """What a copy's hook does."""


def _nothing_to_do() -> Any:
    return nothing


class Nesting:
    """Tells a step from its parent class's within it, which torch hooks as well: the two are one step."""

    def __init__(self) -> None:
        self._frame: Any = None

    @staticmethod
    def of(rule: Optimizer) -> Nesting | None:
        """For a rule whose step may call its parent's; None where it cannot, and nothing need be told apart."""
        return Nesting() if sum("step" in vars(kind) for kind in own_class(rule).__mro__) > 2 else None

    def begins(self) -> bool:
        """In a pre-hook: whether the step begins, and is not the parent's of one under way."""
        if self._frame is not None and _is_in_stack(self._frame):
            return False
        self._frame = _step_frame()
        return True

    def ends(self) -> bool:
        """In a post-hook: whether it is the outer step that ends."""
        if self._frame is not None and self._frame is not _step_frame():
            return False
        self._frame = None
        return True


def _step_frame() -> Any:
    """The frame of the step that our hook was called from: beneath it lie `begins` or `ends`, and the hook."""
    frame: Any = sys._getframe(3)
    return frame.f_back if frame.f_code is Unpickled.__call__.__code__ else frame


def _is_in_stack(frame: Any) -> bool:
    """Whether a frame is still running on this thread."""
    here: Any = sys._getframe(1)
    while here is not None:
        if here is frame:
            return True
        here = here.f_back
    return False

"""What can be wrapped, and where it is held: arguments, step hooks, the model's first inputs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from topoopt.curvature.tape import called_through
from topoopt.errors import ConfigError, PartitionedError
from topoopt.modules import innermost

DEEPSPEED = (
    "DeepSpeed steps flat partitions of the parameters, in which no neuron is whole, and one after the other: this training "
    "cannot be measured or steered; use FSDP2 (fully_shard), or DDP"
)
FSDP1 = (
    "FullyShardedDataParallel (FSDP1) keeps flat partitions of the parameters, in which no neuron is whole: this training "
    "cannot be measured or steered; use FSDP2 (fully_shard), or DDP"
)
F = TypeVar("F", bound=Callable[..., Any])
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


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


def with_closure(
    args: tuple[Any, ...], kwargs: dict[str, Any], wrap: Callable[[Callable[[], Any]], Callable[[], Any]]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a step with its closure wrapped."""
    if callable(kwargs.get("closure")):
        return args, {**kwargs, "closure": wrap(kwargs["closure"])}
    return (args[0], wrap(args[1]), *args[2:]), kwargs


def untraced(hook: F) -> F:
    """Keep a hook out of compiled graphs: it costs one graph break there, not a recompilation at every measurement.

    Outside of them the hook is called as it is: torch's own switch takes microseconds, on every step.
    """
    disabled = torch.compiler.disable(hook)

    @wraps(hook)
    def choose(*args: Any, **kwargs: Any) -> Any:
        return disabled(*args, **kwargs) if torch.compiler.is_compiling() else hook(*args, **kwargs)

    return cast(F, choose)


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


class FirstInputs:
    """The arguments of the first training forward, so that discovery needs no example from the user.

    Of the model itself or, where it is not called as a whole (an agent's `act`, `layer.forward(x)`), of its outermost
    parts. Hooks are there until a step has been seen.
    """

    def __init__(self, model: nn.Module) -> None:
        self.of: dict[str, Inputs] = {}
        """Name of the part ("" for the model) -> (args, kwargs)."""
        self.wrapper: nn.Module | None = None
        """A data-parallel wrapper that the model was called through."""
        self._depth = 0
        own = self._own = innermost(model)
        self._handles: list[Any] = []
        for name, module in own.named_modules():
            self._handles += self._watched(name, module)
        if own is not model:
            self._handles += self._watched("", model)

    def _watched(self, name: str, module: nn.Module) -> list[Any]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._depth += 1
            if name == "" and self.wrapper is None and module is self._own:
                self.wrapper = called_through(self._own)
            if (self._depth == 1 and name not in self.of) or (name == "" and name not in self.of):
                self.of[name] = tree_map(_detach, (args, dict(kwargs)))

        def after(module: nn.Module, args: Any, result: Any) -> None:
            self._depth = max(0, self._depth - 1)

        return [
            module.register_forward_pre_hook(Unpickled(before), with_kwargs=True),  # type: ignore[arg-type]
            module.register_forward_hook(Unpickled(after), always_call=True),  # type: ignore[arg-type]
        ]

    @property
    def seen(self) -> bool:
        """Whether anything of the model was called."""
        return bool(self.of)

    def whole(self) -> Inputs | None:
        """The model's own (args, kwargs); None where it was not called itself."""
        return self.of.get("")

    def close(self) -> None:
        """Remove the hooks, and let go of the inputs."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _detach(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, torch.Tensor) else leaf


def is_in_stack(frame: Any) -> bool:
    """Whether a frame is still running on this thread."""
    here: Any = sys._getframe(1)
    while here is not None:
        if here is frame:
            return True
        here = here.f_back
    return False

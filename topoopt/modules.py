"""Modules: the user's own beneath what wraps it, and a bare copy of it that shares its weights and nothing else."""

from __future__ import annotations

import copy
import types
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

PARALLEL = {"DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "DeepSpeedEngine"}
COMPILED = "_orig_mod."


def innermost(model: nn.Module) -> nn.Module:
    """Strip `torch.compile`, DistributedDataParallel, DataParallel, FSDP1 and DeepSpeed's engine."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and any(kind.__name__ in PARALLEL for kind in type(model).__mro__):
            inner = getattr(model, "module", None)
        if not isinstance(inner, nn.Module) or inner is model:
            return model
        model = inner


def bare_copy(module: nn.Module) -> nn.Module:
    """A copy that nothing of the user's is called from: no hooks, no compiled code, plain attributes of its own.

    Parameters and buffers are the user's tensors, detached: they are there to be replaced at each call, not to be used.
    Functions that a module holds (a patched `forward`) are made anew where they hold on to the original. Costs no memory
    but that of plain tensor attributes.

    Raises:
        TypeError: where an attribute cannot be copied (a lock, a file, ...); its message is the copy's.
    """
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        shared = tensor.detach()
        memo[id(tensor)] = nn.Parameter(shared, False) if isinstance(tensor, nn.Parameter) else shared
    for part in module.modules():
        for name, own in own_hooks(part).items():
            memo[id(vars(part)[name])] = own
        for name, value in vars(part).items():
            if name.endswith(("_hooks_with_kwargs", "_hooks_always_called")) and isinstance(value, dict):
                memo[id(value)] = OrderedDict(value)
            elif name == "_compiled_call_impl":
                memo[id(value)] = None
    with _Detaching():
        found = copy.deepcopy(module, memo)
    for original, part in zip(module.modules(), list(found.modules())):
        part.__dict__.pop("_compiled_call_impl", None)
        for name, value in list(vars(part).items()):
            if isinstance(value, types.FunctionType) and value is vars(original).get(name):
                part.__dict__[name] = _rebound(value, memo)
    return _without_compilers(found)


def _without_compilers(module: nn.Module) -> nn.Module:
    for part in list(module.modules()):
        for name, child in list(part._modules.items()):
            if child is not None and hasattr(child, "_orig_mod"):
                part._modules[name] = child._orig_mod  # type: ignore[assignment]
    return innermost(module)


def _rebound(function: types.FunctionType, memo: dict[int, Any]) -> types.FunctionType:
    """A function that an instance holds, with what it closes over taken from the copy."""
    cells = function.__closure__
    if not cells and not function.__defaults__:
        return function
    with _Detaching():
        closure = None if cells is None else tuple(types.CellType(_of_the_copy(c.cell_contents, memo)) for c in cells)
        defaults = function.__defaults__ and tuple(_of_the_copy(d, memo) for d in function.__defaults__)
    made = types.FunctionType(function.__code__, function.__globals__, function.__name__, defaults, closure)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    return made


def _of_the_copy(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, types.FunctionType):
        return _rebound(value, memo)
    return copy.deepcopy(value, memo) if isinstance(value, nn.Module | types.MethodType | Mapping | list) else value


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def own_hooks(module: nn.Module) -> dict[str, Any]:
    """The hooks that are part of a module's forward, by attribute, where it holds others too."""
    found: dict[str, Any] = {}
    for name in HOOKS:
        held = vars(module)[name]
        own = OrderedDict((key, hook) for key, hook in held.items() if _belongs_to_the_model(hook))
        if len(own) < len(held):
            found[name] = own
    return found


def _belongs_to_the_model(hook: Any) -> bool:
    """Whether a hook computes weights (torch's `weight_norm`), gathers their shards (FSDP2, tensor parallel), or hands one
    part's states to another (a backbone's); or is our own look at an evaluation of a loss.
    """
    home = getattr(hook, "__module__", None) or ""
    ours = ("topoopt.curvature.replaying.closure", "topoopt.optimizer.evidence")
    theirs = ("torch.nn.utils", "torch.distributed.", "transformers.", *ours)
    return type(hook).__module__.startswith("torch.nn.utils") or home.startswith(theirs)


class _Detaching(TorchFunctionMode):
    """Copies tensors without their graphs, also those that no deep copy takes: results held in the middle of training."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone()
        return memo[id(tensor)]


def named_weights(module: nn.Module) -> dict[int, list[str]]:
    """Id of each parameter -> its names in a bare copy (several where it is tied)."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name.replace(COMPILED, ""))
    return names


def device_types(tensors: Any) -> list[str]:
    """The kinds of devices that hold these tensors, the host's always among them."""
    return sorted({"cpu", *(t.device.type for t in tensors)} - {"meta"})

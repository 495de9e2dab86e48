"""The reference copy: a model's copy that discovery exports, runs and permutes, so that the model itself is only read.

Nothing of the user's is edited on the way, not for a moment: hooks are left out through `deepcopy`'s memo, not by taking
them off; evaluation mode and what Hugging Face configurations need are set on the copy.
"""

from __future__ import annotations

import copy
import functools
import types
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
OTHER_HOOKS = ("_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks", "_state_dict_pre_hooks")
FOR_RUNNING = {
    "use_cache": False,
    "output_hidden_states": False,
    "output_attentions": False,
    "_experts_implementation_internal": "batched_mm",
}
"""What a Hugging Face model's configuration says in the copy: no caches, experts as one batch instead of a loop."""


def copy_of(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A deep copy without gradients, graphs and foreign hooks; with `dtype` on the CPU, floating tensors in that type.

    Functions that an instance holds (a forward put in place of the class's) are bound to the copy, and so is what they
    have closed over.
    """
    copying = _Copying(dtype)
    memo: dict[int, Any] = {  # parameters have a deep copy of their own, which would take their gradients along
        id(p): nn.Parameter(copying.copy(p), requires_grad=p.requires_grad) for p in model.parameters()
    }
    hooks = [getattr(module, kind, {}) for module in model.modules() for kind in FORWARD_HOOKS + OTHER_HOOKS]
    memo.update({id(held): OrderedDict() for held in hooks})
    with copying:
        copied = copy.deepcopy(model, memo)
        for held in hooks:
            memo[id(held)].update(copy.deepcopy({k: h for k, h in held.items() if _belongs_to_the_model(h)}, memo))
        memo.update({id(own): own for own in (*copied.modules(), *copied.parameters(), *copied.buffers())})
        binding = _Binding(memo)
        for module in copied.modules():
            held = _compiled_methods(module) | vars(module)
            vars(module).update({name: binding.bound(value) for name, value in held.items()})
    return copied


def _compiled_methods(module: nn.Module) -> dict[str, Any]:
    """Methods that `torch.compile` decorates, to be held by the copy as they were written.

    Run on a copy they would be compiled for it, and not again for the user's own inputs.
    """
    kinds = [kind for kind in type(module).__mro__ if not kind.__module__.startswith("torch.nn.modules")]
    found = {name: value for kind in reversed(kinds) for name, value in vars(kind).items()}
    return {name: types.MethodType(value, module) for name, value in found.items() if _is_compiled(value)}


def _is_compiled(value: Any) -> bool:
    return isinstance(value, types.FunctionType) and hasattr(value, "_torchdynamo_orig_callable")


def at_rest(model: nn.Module) -> nn.Module:
    """A copy of `model` on its own devices, in evaluation mode, ready to be run: see `copy_of`."""
    return settle(copy_of(model))


def settle(copied: nn.Module) -> nn.Module:
    """Put a copy in evaluation mode, returning no caches, with experts as one batch."""
    for module in copied.modules():
        if "training" in vars(module):
            vars(module)["training"] = False  # past a `__setattr__` of the user's
        else:
            module.training = False
        config = vars(module).get("config")
        for name, value in FOR_RUNNING.items():
            if getattr(config, name, None) is not None:
                setattr(config, name, value)
    return copied


def on_host(leaf: Any, dtype: torch.dtype) -> Any:
    """A tensor copied to the CPU, detached, in `dtype` where it is floating; anything else as it is."""
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.detach().to(device="cpu", dtype=_wide(leaf, dtype), copy=True)


def _wide(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    if tensor.is_complex():
        return dtype.to_complex()
    return dtype if tensor.is_floating_point() else tensor.dtype


def _belongs_to_the_model(hook: Any) -> bool:
    """Whether a hook computes weights (torch's `weight_norm`) or hands one part's states to another (a backbone's)."""
    return type(hook).__module__.startswith("torch.nn.utils") or getattr(hook, "__module__", "").startswith(
        "transformers."
    )


class _Copying(TorchFunctionMode):
    """Copies tensors detached, also those that no deep copy takes: results that a module holds in the middle of training."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            memo[id(tensor)] = self.copy(tensor)
        return memo[id(tensor)]

    def copy(self, tensor: Tensor) -> Tensor:
        """A detached copy, in the wanted type where the tensor is floating; what has no data stays without."""
        tensor = tensor.detach()
        if self._dtype is None:
            return tensor.clone()
        return tensor.to(device="cpu", dtype=_wide(tensor, self._dtype), copy=True)


class _Binding:
    """Functions over a model turned into functions over its copy; `deepcopy` takes functions as they are."""

    def __init__(self, memo: dict[int, Any]) -> None:
        self._memo = memo
        self._done: dict[int, tuple[Any, Any]] = {}

    def bound(self, value: Any) -> Any:
        """`value`, or, where it is or holds functions that have closed over something, the same over copies of it."""
        if id(value) in self._done:
            return self._done[id(value)][1]
        self._done[id(value)] = (value, value)  # kept alive, so that ids stay what they are
        if _is_compiled(value):
            return self._copied(value._torchdynamo_orig_callable)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(self.bound(value.__func__), value.__self__)
        if isinstance(value, functools.partial):
            held = {key: self.bound(one) for key, one in value.keywords.items()}
            return functools.partial(self.bound(value.func), *map(self.bound, value.args), **held)
        if type(value) is list:
            value[:] = map(self.bound, value)
        elif isinstance(value, dict):
            value.update({key: self.bound(one) for key, one in value.items()})
        elif callable(value) and not isinstance(value, nn.Module | type | Tensor) and hasattr(value, "__dict__"):
            vars(value).update({key: self.bound(one) for key, one in vars(value).items()})
        return value

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        cells = [types.CellType() for _ in function.__closure__ or ()]
        reached = self._of_the_model(function)
        new = types.FunctionType(
            function.__code__,
            {**function.__globals__, **reached} if reached else function.__globals__,
            function.__name__,
            self._copied(function.__defaults__),
            tuple(cells),
        )
        self._done[id(function)] = (function, new)
        new.__kwdefaults__ = self._copied(function.__kwdefaults__)
        functools.update_wrapper(new, function)
        vars(new).update({key: self._copied(held) for key, held in vars(function).items()})
        for cell, old in zip(cells, function.__closure__ or ()):
            try:
                cell.cell_contents = self._copied(old.cell_contents)
            except ValueError:  # a variable that has no value yet
                continue
        return new

    def _of_the_model(self, function: types.FunctionType) -> dict[str, Any]:
        """Global names by which a function reaches the model, with what they are in the copy."""
        held = {name: function.__globals__.get(name) for name in function.__code__.co_names}
        return {
            name: self._copied(one) for name, one in held.items() if id(getattr(one, "__self__", one)) in self._memo
        }

    def _copied(self, held: Any) -> Any:
        try:
            return self.bound(copy.deepcopy(held, self._memo))
        except Exception:
            if not callable(held) or not hasattr(held, "__dict__"):
                raise
        new = object.__new__(type(held))  # accelerate's wrapper of a forward, which refuses to be pickled
        self._memo[id(held)] = new
        vars(new).update({key: self._copied(one) for key, one in vars(held).items()})
        return new

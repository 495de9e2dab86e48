"""A model's twin: a copy in a precision of its own, and how it is run so that two runs can be compared."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from topoopt.neurons.quieting import quiet


def copy_of(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A deep copy without gradients, graphs and foreign hooks; with `dtype` on the CPU, floating tensors in that type."""
    copying = _Copying(dtype)
    memo: dict[int, Any] = {  # parameters have a deep copy of their own, which would take their gradients along
        id(p): nn.Parameter(copying.copy(p), requires_grad=p.requires_grad) for p in model.parameters()
    }
    with quiet(model), copying:
        return copy.deepcopy(model, memo)


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
        """A detached copy, in the wanted type where the tensor is floating."""
        tensor = tensor.detach()
        if self._dtype is None:
            return tensor.clone()
        return tensor.to(device="cpu", dtype=_wide(tensor, self._dtype), copy=True)


def on_host(leaf: Any, dtype: torch.dtype) -> Any:
    """A tensor detached on the CPU, in `dtype` where it is floating; anything else as it is."""
    if not isinstance(leaf, Tensor):
        return leaf
    leaf = leaf.detach().cpu()
    return leaf.to(_wide(leaf, dtype))


def _wide(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    if tensor.is_complex():
        return dtype.to_complex()
    return dtype if tensor.is_floating_point() else tensor.dtype


@contextmanager
def reproducible(dtype: torch.dtype) -> Iterator[None]:
    """The same random numbers in every evaluation, new tensors in `dtype`; the user's generator and default are put back."""
    default = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


class HoldDoubles(TorchFunctionMode):
    """Keeps float64 where a model casts to a narrower type inside (norms and softmax in float32)."""

    NARROW = (torch.float32, torch.float16, torch.bfloat16, torch.complex64)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.dtype in (torch.float64, torch.complex128):
            if name in ("float", "half", "bfloat16", "cfloat"):
                return first
            if name in ("to", "type"):
                args = tuple(self._widened(a) for a in args)
        if kwargs.get("dtype") in self.NARROW:
            kwargs["dtype"] = self._widened(kwargs["dtype"])
        return func(*args, **kwargs)

    def _widened(self, argument: Any) -> Any:
        if not isinstance(argument, torch.dtype) or argument not in self.NARROW:
            return argument
        return torch.complex128 if argument.is_complex else torch.float64

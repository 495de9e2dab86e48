"""A whole copy of a module that FSDP2 has sharded: what discovery reads, once, since it must run the model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from topoopt.sharding import full, is_sharded


@torch.no_grad()
def unsharded(model: nn.Module) -> nn.Module:
    """Return `model` itself, or, where it is sharded, a plain copy with whole parameters and without hooks.

    A collective on all ranks. The copy lives where the shards do, for as long as discovery takes; measuring gathers one
    group at a time instead.
    """
    if not any(is_sharded(parameter) for parameter in model.parameters()):
        return model
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(full(parameter.detach()).clone(), parameter.requires_grad)
    modules = list(model.modules())
    for module in modules:  # all of them before any is filled: attributes may point at any module
        kind = _own_class(module)
        memo[id(module)] = kind.__new__(kind)
    for module in modules:
        memo[id(module)].__dict__.update({k: _copied(k, v, memo) for k, v in vars(module).items() if not _is_fsdp(k)})
    return memo[id(model)]


def _own_class(module: nn.Module) -> Any:
    """The class that the user gave the module: FSDP2 puts one of its own, and `FSDPModule`, in front."""
    from torch.distributed.fsdp import FSDPModule

    kind = type(module)
    return kind.__mro__[kind.__mro__.index(FSDPModule) + 1] if issubclass(kind, FSDPModule) else kind


def _copied(key: str, value: Any, memo: dict[int, Any]) -> Any:
    return type(value)() if "_hooks" in key and isinstance(value, dict) else copy.deepcopy(value, memo)


def _is_fsdp(key: str) -> bool:
    return key.startswith(("__composable_api", "_fsdp", "_is_fsdp"))

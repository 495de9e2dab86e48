"""The user's own module beneath compilers and data-parallel wrappers."""

from __future__ import annotations

from torch import nn


def unwrap(model: nn.Module) -> nn.Module:
    """Strip `torch.compile`, DistributedDataParallel, DataParallel, FSDP1 and accelerate's wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and _is_parallel(model):
            inner = getattr(model, "module", None)
        if not isinstance(inner, nn.Module) or inner is model:
            return model
        model = inner


def _is_parallel(model: nn.Module) -> bool:
    names = {"DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "DeepSpeedEngine"}
    return any(kind.__name__ in names for kind in type(model).__mro__)

"""Weights of which each rank holds a part (DTensors: FSDP2, tensor parallel), as flat vectors of the parts.

A flat vector holds this rank's part of every weight, and so do all vectors made from it; only inner products see the whole,
by one number summed over the ranks. Everything here is plain arithmetic where no weight is sharded.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from topoopt.device import normal

Dot = Callable[[Tensor, Tensor], Tensor]
"""Of two flat vectors, or of each row of a matrix with a vector."""


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds a part of the tensor only (a DTensor)."""
    return callable(getattr(tensor, "full_tensor", None))


def full(tensor: Tensor) -> Tensor:
    """A sharded tensor whole, gathered on every rank (a collective); any other as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def part(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor of the whole shape of `like`, sharded as `like` is; no communication."""
    if is_sharded(tensor):
        return tensor.to_local()  # type: ignore[attr-defined]
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = _placing(like)
    return distribute_tensor(tensor.to(like.device), mesh, placements, src_data_rank=None).to_local()


def whole(piece: Tensor, like: Tensor) -> Tensor:
    """The tensor, sharded as `like` is, of which this rank holds `piece`."""
    if not is_sharded(like):
        return piece
    from torch.distributed.tensor import DTensor

    mesh, placements = _placing(like)
    return DTensor.from_local(piece, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def dot_over(parameters: Sequence[Tensor]) -> Dot:
    """The inner product of flat vectors over these weights, the same on every rank."""
    if not any(is_sharded(p) for p in parameters):
        return torch.matmul
    shares = [1 / _copies(p) for p in parameters]  # entries that several ranks hold count once
    pieces = [part(p.detach(), p).reshape(-1) for p in parameters]
    even = len(set(shares)) == 1
    weight = None if even else torch.cat([torch.full_like(piece, s) for piece, s in zip(pieces, shares)])

    def dot(a: Tensor, b: Tensor) -> Tensor:
        found = a @ b * shares[0] if weight is None else a @ (weight * b)
        dist.all_reduce(found)
        return found

    return dot


def total_norm(tensors: Sequence[Tensor]) -> float:
    """The norm of all entries of all ranks (a host read)."""
    if not any(is_sharded(t) for t in tensors):
        return float(get_total_norm(tensors))
    flat = torch.cat([part(t, t).reshape(-1) for t in tensors])
    return math.sqrt(float(dot_over(tensors)(flat, flat)))


def noise_over(parameters: Sequence[Tensor], seed: int) -> Tensor:
    """Standard normal numbers, flat, on the first weight's device: a shard's own on each rank, a copy's the same on all."""
    device = parameters[0].device
    if not any(is_sharded(p) for p in parameters):
        return normal(sum(p.numel() for p in parameters), seed, device)
    sizes = [part(p.detach(), p).numel() for p in parameters]
    seeds = [hash((seed, i, *_place(p))) % 2**63 for i, p in enumerate(parameters)]
    return torch.cat([normal(n, one, device) for n, one in zip(sizes, seeds)])


def part_of_rank(parameters: Sequence[Tensor]) -> tuple[int, int] | None:
    """(rank, ranks) where a flat vector over these weights is this rank's alone, else None."""
    return (dist.get_rank(), dist.get_world_size()) if any(is_sharded(p) for p in parameters) else None


def reshard(model: nn.Module) -> None:
    """Drop gathered weights, which FSDP2 keeps if told so: they would not see their shards move."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


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


def _placing(tensor: Any) -> tuple[Any, Any]:
    return tensor.device_mesh, tensor.placements


def _copies(tensor: Tensor) -> int:
    """How many ranks hold the same entries."""
    if not is_sharded(tensor):
        return dist.get_world_size()
    mesh, placements = _placing(tensor)
    return dist.get_world_size() // math.prod(mesh.size(i) for i, p in enumerate(placements) if not p.is_replicate())


def _place(tensor: Tensor) -> tuple[int, ...]:
    """Which part of the tensor this rank holds: its coordinates in the dimensions of the mesh that split it."""
    if not is_sharded(tensor):
        return ()
    mesh, placements = _placing(tensor)
    return tuple(mesh.get_coordinate()[i] for i, p in enumerate(placements) if not p.is_replicate())

"""Several processes, one run: what every rank must agree on, so that none measures, steers or waits alone.

Everything here is a no-op in a single process. Every function but `is_active` and `reducer` is a collective: all ranks
call it, in the same order, or none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from topoopt.errors import MeasurementError, TopoError
from topoopt.sharding import is_sharded

T = TypeVar("T")


class RankError(TopoError):
    """Another rank could not measure; this one leaves with it instead of waiting for it."""


def is_active() -> bool:
    """Whether a process group of more than one rank is up."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on at least one rank."""
    if not is_active():
        return flag
    seen = torch.tensor([float(flag)], device=_device())
    dist.all_reduce(seen, op=dist.ReduceOp.MAX)
    return bool(seen.item() > 0)


def all_ranks_ok(flag: bool) -> bool:
    """Whether the flag is set on every rank."""
    return not any_rank(not flag)


def mean_(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over the ranks, in place; one collective for each dtype and device.

    Shards are left alone: each rank holds another part of them, and FSDP averages gradients where it makes them.
    """
    if not is_active():
        return
    buckets: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        if is_sharded(tensor):
            continue
        buckets.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    world = dist.get_world_size()
    for bucket in buckets.values():
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in bucket])
        dist.all_reduce(flat)
        flat /= world
        for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket])):
            tensor.detach().copy_(part.view_as(tensor))


def from_rank_zero(value: T) -> T:
    """Return rank 0's value: a float by a broadcast of eight bytes, anything else pickled."""
    if not is_active():
        return value
    if isinstance(value, float):
        box = torch.tensor([value], dtype=torch.float64, device=_device())
        dist.broadcast(box, src=0)
        return float(box.item())  # type: ignore[return-value]
    objects = [value]
    dist.broadcast_object_list(objects, src=0, device=_device())
    return objects[0]


class Averaging:
    """Averages a data-parallel model's probe gradients and products over the ranks, in place; returns its argument.

    When a rank has left a `together` section with an error, it raises `RankError` on the others.
    """

    def __call__(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Average each tensor; a collective."""
        _leave_together(failed=False)
        mean_(tensors)
        return tensors

    def together(self) -> AbstractContextManager[None]:
        """The section below: one way of measuring is given up by all ranks or by none."""
        return together()


def reducer(model: nn.Module) -> Averaging | None:
    """What averages over the ranks of a data-parallel model; None in one process."""
    return Averaging() if is_active() and is_data_parallel(model) else None


@contextmanager
def together() -> Iterator[None]:
    """A section that all ranks end together: where one fails, the others raise `RankError` instead of waiting for it.

    Collectives inside must be those of a `reducer`, each of which first asks whether every rank is still there; a
    failing rank says no once before it leaves.
    """
    try:
        yield
    except RankError:
        raise
    except Exception:
        any_rank(True)
        raise
    _leave_together(failed=False)


def _leave_together(*, failed: bool) -> None:
    if any_rank(failed):
        raise RankError("another rank could not measure this step; its log says why")


def is_data_parallel(model: nn.Module) -> bool:
    """Whether the ranks hold copies (DDP) or shards (FSDP2) of `model` and see different batches."""
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, (nn.parallel.DistributedDataParallel, FSDPModule)) for module in model.modules())


def _device() -> torch.device:
    """Where small collectives live: the host when the backend serves it, else the current accelerator."""
    if "cpu:" in dist.get_backend_config():
        return torch.device("cpu")
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        raise MeasurementError(f"the backend {dist.get_backend()!r} serves no host tensors and there is no accelerator")
    return torch.device(accelerator.type, torch.accelerator.current_device_index())

"""Several processes, one run: what every rank must agree on, so that none measures, steers or waits alone.

Everything here is a no-op unless the model is data-parallel or sharded: a model that one rank trains by itself in a job of many
is that rank's own. Collectives go through a process group of topoopt's own, so that they cannot be taken for the training's.
Every method but `active` and `reducer` is a collective: all ranks of the model call it, in the same order, or none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from topoopt.errors import MeasurementError, TopoError
from topoopt.sharding import is_sharded

T = TypeVar("T")


class RankError(TopoError):
    """Another rank could not measure; this one leaves with it instead of waiting for it."""


class Ranks:
    """The processes that train one model together.

    Args:
        model: as the training calls it, or the module inside; a wrapper that is seen later is told by `found`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parallel = _parallel_part(model)
        self._group: Any = None
        self._made = False

    def move_to(self, model: nn.Module) -> None:
        """Another module is trained from now on."""
        self._parallel, self._group, self._made = _parallel_part(model), None, False

    def found(self, wrapper: nn.Module) -> None:
        """A data-parallel wrapper around the model was seen."""
        if self._parallel is None:
            self._parallel = _parallel_part(wrapper)

    @property
    def active(self) -> bool:
        """Whether more than one rank trains this model."""
        return (
            self._parallel is not None
            and dist.is_available()
            and dist.is_initialized()
            and dist.get_world_size(self._parent) > 1
        )

    @property
    def _parent(self) -> Any:
        return getattr(self._parallel, "process_group", None)

    @property
    def group(self) -> Any:
        """The process group of topoopt's own, made at its first use: a collective over the model's ranks."""
        if not self._made:
            self._made = True
            ranks = dist.get_process_group_ranks(self._parent or dist.group.WORLD)
            self._group = dist.new_group(ranks, use_local_synchronization=len(ranks) < dist.get_world_size())
        return self._group

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on at least one rank."""
        if not self.active:
            return flag
        seen = torch.tensor([float(flag)], device=self._device())
        dist.all_reduce(seen, op=dist.ReduceOp.MAX, group=self.group)
        return bool(seen.item() > 0)

    def any_each(self, flags: Sequence[bool]) -> list[bool]:
        """For each of these flags, as many on all ranks, whether it is set on at least one."""
        if not self.active or not flags:
            return list(flags)
        seen = torch.tensor(flags, dtype=torch.float32, device=self._device())
        dist.all_reduce(seen, op=dist.ReduceOp.MAX, group=self.group)
        return [one > 0 for one in seen.tolist()]

    def from_zero(self, value: T) -> T:
        """The first rank's value: a float by a broadcast of eight bytes, anything else pickled."""
        if not self.active:
            return value
        source = dist.get_global_rank(self.group, 0)
        if isinstance(value, float):
            box = torch.tensor([value], dtype=torch.float64, device=self._device())
            dist.broadcast(box, src=source, group=self.group)
            return float(box.item())  # type: ignore[return-value]
        objects = [value]
        dist.broadcast_object_list(objects, src=source, device=self._device(), group=self.group)
        return objects[0]

    def means(self, *values: float) -> tuple[float, ...]:
        """The mean of each number over the ranks: one collective, and one host read."""
        if not self.active:
            return values
        box = torch.tensor(values, dtype=torch.float32, device=self._device())
        self.mean_([box])
        return tuple(box.tolist())

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks, in place; one collective for each dtype and device.

        Shards are left alone: each rank holds another part of them, and FSDP averages gradients where it makes them.
        """
        if not self.active:
            return
        buckets: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            if not is_sharded(tensor):
                buckets.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        world = dist.get_world_size(self.group)
        for bucket in buckets.values():
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in bucket])
            dist.all_reduce(flat, group=self.group)
            flat /= world
            for tensor, piece in zip(bucket, flat.split([tensor.numel() for tensor in bucket])):
                tensor.detach().copy_(piece.view_as(tensor))

    def reducer(self) -> Averaging | None:
        """What averages gradients and products over the ranks; None for one rank."""
        return Averaging(self) if self.active else None

    @contextmanager
    def together(self) -> Iterator[None]:
        """A section that all ranks end together: where one fails, the others raise `RankError` instead of waiting for it.

        Collectives inside must be those of a `reducer`, each of which first asks whether every rank is still there; a
        failing rank says no once before it leaves.
        """
        try:
            yield
        except RankError:
            raise
        except Exception:
            self.any(True)
            raise
        self.leave(failed=False)

    def leave(self, *, failed: bool) -> None:
        """Raise `RankError` where a rank has failed."""
        if self.any(failed):
            raise RankError("another rank could not measure this step; its log says why")

    def _device(self) -> torch.device:
        """Where small collectives live: the host when the backend serves it, else the current accelerator."""
        if "cpu:" in dist.get_backend_config(self.group):
            return torch.device("cpu")
        accelerator = torch.accelerator.current_accelerator()
        if accelerator is None:
            raise MeasurementError(
                f"the backend {dist.get_backend(self.group)!r} serves no host tensors and there is no accelerator"
            )
        return torch.device(accelerator.type, torch.accelerator.current_device_index())


class Averaging:
    """Averages a data-parallel model's gradients and products over the ranks, in place; returns its argument.

    When a rank has left a `together` section with an error, it raises `RankError` on the others.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def __call__(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Average each tensor; a collective."""
        self._ranks.leave(failed=False)
        self._ranks.mean_(tensors)
        return tensors

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on at least one rank; a collective."""
        self._ranks.leave(failed=False)
        return self._ranks.any(flag)

    def together(self) -> AbstractContextManager[None]:
        """The section below: one way of measuring is given up by all ranks or by none."""
        return self._ranks.together()


def _parallel_part(model: nn.Module) -> nn.Module | None:
    """The module that makes a model data-parallel (DDP) or sharded (FSDP2); None for any other."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, (nn.parallel.DistributedDataParallel, FSDPModule)):
            return module
    sharded = any(is_sharded(p) for p in model.parameters())
    return model if sharded else None

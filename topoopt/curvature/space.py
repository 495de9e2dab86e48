"""The space of weights: where each parameter, or this rank's part of it, lies in a flat vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from topoopt import sharding
from topoopt.device import HostNumbers


@dataclass(frozen=True)
class Layout:
    """Where each parameter, or this rank's part of it, lies in a flat vector."""

    parameters: list[Tensor]
    owners: list[dict] = field(repr=False)
    """The parameter group of each."""
    numbers: HostNumbers = field(default_factory=HostNumbers, repr=False, compare=False)
    """What the host knows of rates and steps that lie on a device."""

    def settings(self, optimizer: Optimizer) -> Iterator[tuple[dict, dict]]:
        """State and group of each parameter, numbers on a device as Python's: one host read for all of them, if any."""
        states = [optimizer.state.get(p, {}) for p in self.parameters]
        # What has the parameter's shape is no setting, also where that is one number.
        own = [
            {k: v for k, v in s.items() if k == "step" or (isinstance(v, Tensor) and not v.dim() and p.dim())}
            for p, s in zip(self.parameters, states)
        ]
        groups = {id(group): group for group in self.owners}
        self.numbers.bring(tree_leaves([[list(s.values()) for s in own], [_tunable(g) for g in groups.values()]]))
        plain = {key: {**g, **self._plain(_tunable(g))} for key, g in groups.items()}
        for state, some, owner in zip(states, own, self.owners):
            yield {**state, **self._plain(some)}, plain[id(owner)]

    def _plain(self, values: dict) -> dict:
        return {key: self.numbers.plain(value) for key, value in values.items()}

    def flatten(self, tensors: Sequence[Tensor | float]) -> Tensor:
        """One flat vector, in the precision of the products: at least float32. A complex entry is two real ones."""
        parts = []
        for p, t in zip(self.parameters, tensors):
            if p.is_complex():
                whole = t if isinstance(t, Tensor) else torch.full_like(p, t, dtype=self.dtype)
                whole = whole.detach().expand(p.shape)
                pair = (
                    torch.view_as_real(whole.resolve_conj()) if whole.is_complex() else torch.stack([whole, whole], -1)
                )
                parts.append(pair.to(self.dtype).reshape(-1))
                continue
            full = t if isinstance(t, Tensor) else torch.full_like(p, t, dtype=self.dtype)
            full = full.to_dense() if full.is_sparse else full
            parts.append(sharding.part(full.detach().to(self.dtype).expand(p.shape), p).reshape(-1))
        return torch.cat([part.to(parts[0].device) for part in parts])

    def unflatten(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat vector, in each parameter's shape, type and place."""
        own = [sharding.part(p.detach(), p) for p in self.parameters]
        pieces = flat.split([p.numel() * (2 if p.is_complex() else 1) for p in own])
        parts = [
            torch.view_as_complex(piece.view(*p.shape, 2).contiguous()).to(p.device, p.dtype)
            if p.is_complex()
            else piece.view(p.shape).to(p.device, p.dtype)
            for piece, p in zip(pieces, own)
        ]
        return [sharding.whole(piece, p) for piece, p in zip(parts, self.parameters)]

    @cached_property
    def dot(self) -> sharding.Dot:
        """The inner product of flat vectors, over all ranks' parts."""
        return sharding.dot_over(self.parameters)

    @property
    def size(self) -> int:
        """Number of weights, all ranks' parts counted."""
        return sum(p.numel() * (2 if p.is_complex() else 1) for p in self.parameters)

    @property
    def dtype(self) -> torch.dtype:
        """float64 where all parameters are, else float32."""
        return (
            torch.float64
            if all(p.dtype in (torch.float64, torch.complex128) for p in self.parameters)
            else torch.float32
        )


def _tunable(group: dict) -> dict:
    """A group's settings."""
    return {key: value for key, value in group.items() if key != "params"}


def layout_of(optimizer: Optimizer) -> Layout:
    """The parameters that can move: those that ask for a gradient, each once."""
    parameters, owners, seen = [], [], set()
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.requires_grad and id(p) not in seen and p.numel():
                seen.add(id(p))
                parameters.append(p)
                owners.append(group)
    return Layout(parameters, owners)

"""Values that never change: what the layers that read a unit see of it, and whether their bias can say the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from topoopt.neurons.compacting.planning import Constants
from topoopt.neurons.compacting.roles import is_conv1d, outgoing, owner_of
from topoopt.neurons.compacting.trial import Trial
from topoopt.neurons.group import NeuronGroup, Slice

STEADY = 1e-9
"""A value that moves by less than this share of the layer's largest input does not change."""


def constants(trial: Trial, groups: Mapping[str, tuple[NeuronGroup, Sequence[int]]]) -> dict[str, Constants]:
    """Of each group's candidates those whose value is the same in all runs of the trial, with what their readers see."""
    wanted = {s.tensor for group, units in groups.values() if units for s in outgoing(trial.model, group)}
    readers = {name: owner for name in wanted if _channels(owner := owner_of(trial.model, name)) is not None}
    seen = _ranges(trial, readers)
    found: dict[str, Constants] = {}
    for name, (group, units) in groups.items():
        slices = outgoing(trial.model, group)
        known = all(s.tensor in seen and not s.siblings for s in slices)
        for unit in units if known else ():
            values = {s.tensor: _value(readers[s.tensor], seen[s.tensor], s, unit, group.n) for s in slices}
            if all(value is not None for value in values.values()):
                found.setdefault(name, {})[unit] = {t: v for t, v in values.items() if v is not None}
    return found


def _channels(module: nn.Module) -> int | None:
    """The dimension of a layer's input that holds the units, counted from the end for dense layers."""
    if isinstance(module, nn.Linear) or is_conv1d(module):
        return -1
    if isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd) and module.groups == 1:
        return 1
    return None


def _ranges(trial: Trial, readers: Mapping[str, nn.Module]) -> dict[str, tuple[Tensor, Tensor]]:
    """Lowest and highest input of each reader's channels over the trial's runs: (channels,) each."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Any:
        def see(module: nn.Module, args: Any) -> None:
            dim = _channels(module)
            if dim is None or not args:
                return
            flat = args[0].detach().movedim(dim, -1)
            flat = flat.reshape(-1, flat.shape[-1])
            low, high = seen.get(name, (flat[0], flat[0]))
            seen[name] = (torch.minimum(low, flat.amin(0)), torch.maximum(high, flat.amax(0)))

        return see

    trial.watched({module: watch(name) for name, module in readers.items()})
    return seen


def _value(reader: nn.Module, seen: tuple[Tensor, Tensor], s: Slice, unit: int, n: int) -> tuple[float, ...] | None:
    """What a reader always sees of a unit, or None where that changes, or cannot be put into its bias."""
    low, high = (bound[s.positions(n)[unit]] for bound in seen)
    size = max(float(bound.abs().max()) for bound in seen)
    if not bool((high - low <= STEADY * size).all()):
        return None
    value = (high + low) / 2
    padded = isinstance(reader, _ConvNd) and (isinstance(reader.padding, str) or any(reader.padding))
    if bool((value.abs() > STEADY * size).any()) and (getattr(reader, "bias", None) is None or padded):
        return None
    return tuple(value.tolist())

"""compact: a smaller module with the same function, without the neurons that no longer count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from topoopt.errors import ConfigError
from topoopt.neurons.group import NeuronGroup, Slice, named_tensors
from topoopt.neurons.twin import copy_of
from topoopt.neurons.unwrapping import unwrap

KINDS = ("hidden", "channel")


@dataclass(frozen=True)
class Compacted:
    """What was done to one group."""

    kept: int
    removed: int
    merged: int


def compact(
    model: nn.Module, groups: Sequence[NeuronGroup], tolerance: float = 1e-3
) -> tuple[nn.Module, dict[str, Compacted]]:
    """Return a smaller copy of `model` and, for each hidden and channel group, what was removed and merged.

    A neuron whose outgoing weights are negligible is removed; neurons whose incoming weights coincide are merged into one
    that carries the sum of their outgoing weights. Both keep the function to the tolerance. Groups whose tensors have no
    clear incoming and outgoing side (other kinds, norms over the units) are left whole.

    Args:
        model: the module; it is not changed.
        groups: groups of `model`, as `discover` returns them.
        tolerance: relative to the root mean square of the neurons' incoming (or outgoing) norms.

    Raises:
        ConfigError: for a negative tolerance.
    """
    if tolerance < 0:
        raise ConfigError(f"tolerance={tolerance} is not usable: give a share of the neurons' size, 0 or more")
    small = copy_of(unwrap(model))
    report: dict[str, Compacted] = {}
    for group in groups:
        if group.kind in KINDS and _is_plain(small, group):
            report[group.name] = _compact_group(small, group, tolerance)
    return small, report


def _is_plain(model: nn.Module, group: NeuronGroup) -> bool:
    """Whether each slice covers its whole dimension, and normalisation treats units one by one."""
    tensors = named_tensors(model)
    modules = dict(model.named_modules())
    for s in group.slices:
        owner = modules[s.tensor.rpartition(".")[0]]
        if isinstance(owner, nn.LayerNorm | nn.GroupNorm) or getattr(owner, "groups", 1) != 1:
            return False
        if hasattr(owner, "parametrizations") or tensors[s.tensor].shape[s.dim] != group.n * s.inner * s.outer:
            return False
    roles = {s.role for s in group.slices}
    return "in" in roles and "out" in roles


def _compact_group(model: nn.Module, group: NeuronGroup, tolerance: float) -> Compacted:
    incoming = _rows(model, group, ("out", "bias", "scale", "state"))
    outgoing = _rows(model, group, ("in",))
    idle = outgoing.norm(dim=1) <= tolerance * outgoing.square().sum(1).mean().sqrt()
    scale = tolerance * incoming.square().sum(1).mean().sqrt()
    kept: list[int] = []
    target: dict[int, int] = {}
    for i in (~idle).nonzero().flatten().tolist():
        near = next((k for k in kept if float((incoming[i] - incoming[k]).norm()) <= scale), None)
        if near is None:
            kept.append(i)
        else:
            target[i] = near
    kept = kept or [0]  # a layer needs one unit
    for s in group.slices:
        if s.role == "in":
            _add_columns(named_tensors(model)[s.tensor], s, group.n, target)
    for s in group.slices:
        _keep(model, s, group.n, kept)
    _mend_sizes(model, group)
    return Compacted(len(kept), int(idle.sum()), len(target))


def _rows(model: nn.Module, group: NeuronGroup, roles: tuple[str, ...]) -> Tensor:
    tensors = named_tensors(model)
    parts = []
    for s in group.slices:
        if s.role in roles:
            tensor = tensors[s.tensor].detach().double()
            taken = tensor.index_select(s.dim, s.positions(group.n).reshape(-1).to(tensor.device)).movedim(s.dim, 0)
            parts.append(taken.reshape(group.n, -1))
    return torch.cat(parts, dim=1)


@torch.no_grad()
def _add_columns(tensor: Tensor, s: Slice, n: int, target: dict[int, int]) -> None:
    positions = s.positions(n, tensor.device)
    for source, destination in target.items():
        tensor.index_add_(s.dim, positions[destination], tensor.index_select(s.dim, positions[source]))


def _keep(model: nn.Module, s: Slice, n: int, kept: list[int]) -> None:
    owner_name, _, attribute = s.tensor.rpartition(".")
    owner = model.get_submodule(owner_name)
    tensor = getattr(owner, attribute)
    positions = s.positions(n, tensor.device)
    blocks = positions.reshape(n, s.outer, s.inner)[kept].transpose(0, 1).reshape(-1)
    smaller = tensor.detach().index_select(s.dim, blocks).clone()
    if isinstance(tensor, nn.Parameter):
        setattr(owner, attribute, nn.Parameter(smaller, requires_grad=tensor.requires_grad))
    else:
        owner.register_buffer(attribute, smaller)


def _mend_sizes(model: nn.Module, group: NeuronGroup) -> None:
    """Let the modules' own size attributes say what their tensors are."""
    for name in {s.tensor.rpartition(".")[0] for s in group.slices}:
        module = model.get_submodule(name)
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            module.out_channels, module.in_channels = module.weight.shape[:2]
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            statistics = module.weight if module.weight is not None else module.running_mean
            module.num_features = len(statistics) if statistics is not None else module.num_features

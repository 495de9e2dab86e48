"""A cut: which positions of which tensors go, and what the others take over; carried out on a copy, and undone again.

Everything is kept in the original model's coordinates until a cut is carried out: groups share tensors and even
dimensions (heads and the places within them), and no cut shifts what another one refers to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from topoopt.neurons.compacting.attributes import Setting
from topoopt.neurons.compacting.result import Plan
from topoopt.neurons.compacting.roles import outgoing
from topoopt.neurons.compacting.sizes import mend
from topoopt.neurons.group import NeuronGroup, Slice, named_tensors

Dropped = dict[str, dict[int, Tensor]]
"""tensor -> dimension -> which of its positions go: bool, of the dimension's original size."""


class Original:
    """The tensors of an uncut model by one name each, and the other names of tied ones."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        named = named_tensors(model)
        self._first: dict[int, str] = {}
        for name, tensor in named.items():
            self._first.setdefault(id(tensor), name)
        self.name = {name: self._first[id(tensor)] for name, tensor in named.items()}
        """Any name -> the one name that stands for the tensor."""
        self.names: dict[str, list[str]] = {}
        for name, first in self.name.items():
            self.names.setdefault(first, []).append(name)
        self.tensors = {first: named[first].detach() for first in self.names}


@dataclass(frozen=True)
class Cut:
    """Changed tensors in their full size, positions that go, and numbers that modules keep of their sizes."""

    values: dict[str, Tensor] = field(default_factory=dict)
    dropped: Dropped = field(default_factory=dict)
    settings: tuple[Setting, ...] = ()

    def with_plan(self, of: Original, group: NeuronGroup, plan: Plan) -> Cut:
        """This cut and what `plan` does to `group`."""
        values, dropped = dict(self.values), {name: dict(dims) for name, dims in self.dropped.items()}
        for s in outgoing(of.model, group):
            name = of.name[s.tensor]
            values[name] = _merged(values.get(name, of.tensors[name]), s, group.n, plan.merged)
        for unit, constants in plan.constants.items():
            for s in outgoing(of.model, group):
                bias, shift = _folded(of, values, s, unit, group.n, constants.get(s.tensor, ()))
                if shift is not None:
                    values[bias] = values.get(bias, of.tensors[bias]) + shift
        for s in group.slices:
            name = of.name[s.tensor]
            size = of.tensors[name].shape[s.dim]
            mask = dropped.setdefault(name, {}).get(s.dim, torch.zeros(size, dtype=torch.bool)).clone()
            mask[s.positions(group.n)[plan.gone].reshape(-1)] = True
            dropped[name][s.dim] = mask
        return Cut(values, dropped, self.settings)

    def with_settings(self, settings: tuple[Setting, ...]) -> Cut:
        """This cut with other numbers for the modules."""
        return replace(self, settings=settings)

    def current(self, of: Original, name: str) -> Tensor:
        """A tensor in its full size with what it has taken over, zero where it goes."""
        tensor = self.values.get(name, of.tensors[name])
        for dim, mask in self.dropped.get(name, {}).items():
            tensor = tensor.index_fill(dim, mask.nonzero().flatten().to(tensor.device), 0)
        return tensor

    def alive(self, of: Original, group: NeuronGroup) -> list[int]:
        """Units of which something is left in every tensor."""
        left = torch.ones(group.n, dtype=torch.bool)
        for s in group.slices:
            mask = self.dropped.get(of.name[s.tensor], {}).get(s.dim)
            if mask is not None:
                left &= ~mask[s.positions(group.n)].all(dim=1)
        return left.nonzero().flatten().tolist()

    def carry_out(self, of: Original, model: nn.Module) -> Callable[[], None]:
        """Cut `model` (the original's twin) in place; returns what undoes it.

        Raises:
            Unsupported: for a module that is not known to work with other sizes.
        """
        undo = _undoing(model)
        try:
            touched: dict[str, dict[str, dict[int, Tensor]]] = {}
            for name in {**self.values, **self.dropped}:
                masks = self.dropped.get(name, {})
                smaller = self._smaller(of, model, name, masks)
                for one in of.names[name]:
                    owner, _, attribute = one.rpartition(".")
                    _place(model.get_submodule(owner), attribute, smaller)
                    touched.setdefault(owner, {})[attribute] = masks
            for owner, masks in touched.items():
                mend(model.get_submodule(owner.partition(".parametrizations.")[0]), masks)
            for setting in self.settings:
                setting.apply(model)
        except Exception:
            undo()
            raise
        return undo

    def _smaller(self, of: Original, model: nn.Module, name: str, masks: dict[int, Tensor]) -> Tensor:
        held = named_tensors(model)[name]
        tensor = self.values[name].to(held) if name in self.values else held.detach()
        for dim, mask in masks.items():
            tensor = tensor.index_select(dim, (~mask).nonzero().flatten().to(tensor.device))
        tensor = tensor.clone() if tensor is held or tensor.data_ptr() == held.data_ptr() else tensor
        return nn.Parameter(tensor, held.requires_grad) if isinstance(held, nn.Parameter) else tensor


def _merged(tensor: Tensor, s: Slice, n: int, merged: dict[int, int]) -> Tensor:
    if not merged:
        return tensor
    positions = s.positions(n, tensor.device)
    sources, targets = (positions[list(units)].reshape(-1) for units in (merged.keys(), merged.values()))
    return tensor.index_add(s.dim, targets, tensor.index_select(s.dim, sources))


def _folded(
    of: Original, values: dict[str, Tensor], s: Slice, unit: int, n: int, constants: tuple[float, ...]
) -> tuple[str, Tensor | None]:
    """The bias beside the weights that read a unit, and what the unit always adds to it."""
    if not any(constants):
        return "", None
    name = of.name[s.tensor]
    weight = values.get(name, of.tensors[name])
    columns = weight.index_select(s.dim, s.positions(n)[unit].to(weight.device)).movedim(s.dim, 0)
    shift = torch.einsum(
        "c,co->o", columns.new_tensor(constants), columns.flatten(2).sum(2) if columns.ndim > 2 else columns
    )
    return of.name[f"{s.tensor.rpartition('.')[0]}.bias"], shift


def _place(owner: nn.Module, attribute: str, tensor: Tensor) -> None:
    if isinstance(tensor, nn.Parameter):
        owner._parameters[attribute] = tensor
    else:
        owner._buffers[attribute] = tensor


def _undoing(model: nn.Module) -> Callable[[], None]:
    """Remember every module's attributes; tensors are replaced by a cut, never written to."""
    held = [(m, type(m), dict(vars(m)), dict(m._parameters), dict(m._buffers)) for m in model.modules()]

    def undo() -> None:
        for module, kind, attributes, parameters, buffers in held:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(attributes)
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)

    return undo

"""Candidates that no axis can stand for: modules of the same make side by side, experts or heads in a list.

The unit is a whole module, so a group's slices name one tensor a unit. What tells the units apart outside of them goes
along: a router's rows, a weight for each, the columns of a layer that reads them one after the other. All are guesses,
tried in turn against the gate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from topoopt.neurons.group import STATISTICS, NeuronGroup, Slice

Named = tuple[str, nn.Module]


@dataclass(frozen=True)
class Bank:
    """Modules of one class whose tensors have the same names and shapes, in one list or dictionary of modules."""

    name: str
    members: tuple[str, ...]

    def modules(self, model: nn.Module) -> list[nn.Module]:
        """The siblings themselves."""
        return [model.get_submodule(member) for member in self.members]


def banks(model: nn.Module) -> list[Bank]:
    """Every list and dictionary of at least two isomorphic modules with weights; nested ones too."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            children = list(module.named_children())
            makes = {(type(child), *_layout(child)) for _, child in children}
            if len(children) > 1 and len(makes) == 1 and _layout(children[0][1]) and _apart(children):
                found.append(Bank(name, tuple(f"{name}.{key}" if name else key for key, _ in children)))
    return found


def guesses(model: nn.Module, bank: Bank) -> list[NeuronGroup]:
    """Groups to be tried for a bank, the most demanding first: with all that tells units apart, with less, alone."""
    own = _members(model, bank)
    rows, columns = _told_apart(model, bank)
    kind = "head" if _is_attention(model.get_submodule(bank.members[0])) else "expert"
    extras = [(*rows, *columns), tuple(rows), tuple(columns), ()]
    n = len(bank.members)
    return [NeuronGroup(bank.name or kind, kind, n, (*own, *extra)) for extra in dict.fromkeys(extras)]


def _layout(module: nn.Module) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, tuple(tensor.shape)) for name, tensor in _tensors(module))


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    for name, buffer in module.named_buffers():
        if name.rsplit(".", 1)[-1] in STATISTICS:
            yield name, buffer


def _apart(children: list[Named]) -> bool:
    """Whether no two of them share a weight."""
    held = [id(p) for _, child in children for p in child.parameters()]
    return len(held) == len(set(held))


def _members(model: nn.Module, bank: Bank) -> list[Slice]:
    slices = []
    for key, tensor in _tensors(model.get_submodule(bank.members[0])):
        names = tuple(f"{member}.{key}" for member in bank.members)
        role = "out" if tensor.ndim > 1 else "bias" if key.endswith("bias") else "scale"
        slices.append(Slice(names[0], 0, role=role if isinstance(tensor, nn.Parameter) else "state", siblings=names))
    return slices


def _told_apart(model: nn.Module, bank: Bank) -> tuple[list[Slice], list[Slice]]:
    """A router's rows and bare weights, one a unit; and columns of layers that read n blocks as wide as a unit's rows."""
    n, inside = len(bank.members), f"{bank.name}."
    parent = bank.name.rpartition(".")[0]
    widths = {tensor.shape[0] for _, tensor in _tensors(model.get_submodule(bank.members[0])) if tensor.ndim}
    rows: list[Slice] = []
    columns: list[Slice] = []
    for name, module in model.get_submodule(parent).named_modules(prefix=parent):
        if name == bank.name or name.startswith(inside):
            continue
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.Linear):
            rows += _router(prefix, module, n)
            width, rest = divmod(module.in_features, n)
            if rest == 0 and (width in widths or width == 1):
                columns.append(Slice(f"{prefix}weight", 1, inner=width, stride=module.in_features, role="in"))
        else:
            rows += [
                Slice(f"{prefix}{key}", dim, stride=n, role="scale")
                for key, parameter in module.named_parameters(recurse=False)
                for dim in [d for d, size in enumerate(parameter.shape) if size == n][:1]
            ]
    return rows, columns


def _router(prefix: str, module: nn.Linear, n: int) -> list[Slice]:
    if module.out_features != n:
        return []
    bias = [Slice(f"{prefix}bias", 0, stride=n, role="bias")] if module.bias is not None else []
    return [Slice(f"{prefix}weight", 0, stride=n, role="out"), *bias]


def _is_attention(module: nn.Module) -> bool:
    return any(word in type(module).__name__.lower() for word in ("attention", "attn", "head"))

"""From axes to candidate groups: one for each class of unfrozen atoms that lies in the parameters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from topoopt.neurons.axes import Axis
from topoopt.neurons.group import NeuronGroup, Slice
from topoopt.neurons.rules import Value


@dataclass(frozen=True)
class Candidates:
    """Groups that no operator speaks against, not verified yet, and the dimensions that are frozen, with reasons."""

    groups: list[NeuronGroup]
    frozen: dict[str, str]
    """ "<parameter>[dim]" -> reason."""


def candidates(model: nn.Module, values: dict[str, Value]) -> Candidates:
    """Collect for every atom the places where it lies in parameters and buffers."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    places: dict[int, list[Slice]] = defaultdict(list)
    atoms: dict[int, Axis] = {}
    frozen: dict[str, str] = {}
    for name, value in values.items():
        for dim, axis in enumerate(value.dims):
            for atom, place in _places(axis, name, dim, axis.size):
                atoms[id(atom)] = atom
                role = "state" if name not in parameters else _role(name, value, dim)
                places[id(atom)].append(replace(place, role=role))
            reasons = {atom.frozen for atom in axis.atoms()}
            if None not in reasons and axis.size > 1:
                frozen[f"{name}[{dim}]"] = next(iter(sorted(r for r in reasons if r)))
    groups = [
        NeuronGroup("", _kind(atoms[key], slices), atoms[key].size, tuple(slices))
        for key, slices in places.items()
        if atoms[key].frozen is None and atoms[key].size > 1 and any(s.role != "state" for s in slices)
    ]
    return Candidates(_named(groups), frozen)


def _places(axis: Axis, tensor: str, dim: int, size: int) -> Iterator[tuple[Axis, Slice]]:
    """Each atom of a dimension with where it lies: blocks of `inner`, repeated `outer` times at `stride`."""

    def walk(axis: Axis, offset: int, outer: int, stride: int, inner: int) -> Iterator[tuple[Axis, Slice]]:
        root = axis.find()
        if root.kind == "atom":
            yield root, Slice(tensor, dim, offset, outer, inner, stride)
        elif root.kind == "sum":
            for part in root.parts:
                yield from walk(part, offset, outer, stride, inner)
                offset += part.size * inner
        else:
            yield from _walk_product(root, offset, outer, stride, inner)

    def _walk_product(root: Axis, offset: int, outer: int, stride: int, inner: int) -> Iterator[tuple[Axis, Slice]]:
        before, after = 1, root.size
        for part in root.parts:
            after //= part.size
            block = part.size * after * inner  # one full run of this factor
            if outer == 1:
                yield from walk(part, offset, before, block, after * inner)
            elif before == 1:
                yield from walk(part, offset, outer, stride, after * inner)
            else:  # a product in a sum in a product: one slice for each of the outermost blocks
                for o in range(outer):
                    yield from walk(part, offset + o * stride, before, block, after * inner)
            before *= part.size

    yield from walk(axis, 0, 1, size, 1)


def _role(name: str, value: Value, dim: int) -> str:
    if len(value.dims) == 1:
        return "bias" if name.rsplit(".", 1)[-1].startswith(("bias", "beta", "b_")) else "scale"
    return value.roles.get(id(value.dims[dim]), "out" if dim == 0 else "in")


def _kind(atom: Axis, slices: list[Slice]) -> str:
    marks = atom.marks
    if any("lora_" in s.tensor for s in slices) and "curved" not in marks and "head" not in marks:
        return "rank"
    for mark, kind in (
        ("recurrent", "recurrent"),
        ("head", "head"),
        ("query", "head"),
        ("expert", "expert"),
        ("residual", "residual"),
        ("inner", "head_dim"),
        ("channel", "channel"),
    ):
        if mark in marks:
            return kind
    return "hidden"


def _named(groups: list[NeuronGroup]) -> list[NeuronGroup]:
    """Name each group after the module that makes it: the first with its rows, for heads what all have in common."""
    taken: dict[str, int] = {}
    named = []
    for group in groups:
        modules = [s.tensor.rpartition(".")[0] for s in group.slices]
        if group.kind in ("hidden", "channel", "recurrent", "rank"):
            makers = [s.tensor.rpartition(".")[0] for s in group.slices if s.role == "out"]
            base = (makers or modules)[0] or group.kind
        else:
            prefix = _common(modules)
            base = f"{prefix}.{group.kind}" if prefix else group.kind
        count = taken[base] = taken.get(base, 0) + 1
        named.append(replace(group, name=base if count == 1 else f"{base}.{count}"))
    return named


def _common(modules: list[str]) -> str:
    split = [module.split(".") for module in modules]
    shared = []
    for parts in zip(*split):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)

"""Torch-Pruning's groups as permutations: what a cut removes together is what a permutation has to move together."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Permute = Callable[[Tensor], None]
"""Moves the units of a group in place; raises `Mismatch` where the group does not fit its tensors."""


class Mismatch(Exception):
    """A group whose indices do not fit what they point at, so that a cut would not either."""


def groups(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[int, Permute]]:
    """(units, permute) of every group that Torch-Pruning finds; the layers that make the output are left out, as its guide says."""
    pruning: Any = importlib.import_module("torch_pruning")
    graph = pruning.DependencyGraph().build_dependency(
        model,
        example_inputs=args or kwargs,
        forward_fn=lambda m, _: m(*args, **kwargs),
        output_transform=lambda out: [x for x in tree_leaves(out) if isinstance(x, Tensor) and x.requires_grad],
    )
    found = []
    for group in graph.get_all_groups(ignored_layers=_last(model, args, kwargs)):
        units = len(dict.fromkeys(group[0].root_idxs))
        found.append((units, lambda perm, group=group: _permute(graph, group, perm)))
    return found


def _last(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[nn.Module]:
    """Modules whose output is one of the model's, and the last one with weights of its own that ran."""
    made: list[tuple[nn.Module, Any]] = []
    handles = [m.register_forward_hook(lambda m, _, out: made.append((m, out))) for m in model.modules()]
    with torch.no_grad():
        outputs = {x.data_ptr() for x in tree_leaves(model(*args, **kwargs)) if isinstance(x, Tensor)}
    for handle in handles:
        handle.remove()
    ran = [m for m, _ in made if m._parameters and not list(m.children())]
    return [m for m, out in made if isinstance(out, Tensor) and out.data_ptr() in outputs] + ran[-1:]


def _permute(graph: Any, group: Any, perm: Tensor) -> None:
    """Move every tensor's entries by the root indices that they follow: its pruners cut nothing, and say where they would."""
    order = {root: int(perm[i]) for i, root in enumerate(dict.fromkeys(group[0].root_idxs))}
    roots = list(order)
    for dep, idxs in group:
        module = dep.target.module
        if graph.get_pruner_of_module(module) is None:
            continue  # an operation without parameters
        outward = graph.is_out_channel_pruning_fn(dep.handler)
        size = (graph.get_out_channels if outward else graph.get_in_channels)(module)
        if not size:
            continue
        item = next(item for item in group if item.dep is dep)
        places: dict[int, list[int]] = defaultdict(list)
        for place, root in zip(idxs, item.root_idxs):
            places[root].append(place)
        moved = list(range(size))
        for root, own in places.items():
            other = places.get(roots[order[root]], [])
            if len(other) != len(own) or max(own + other) >= size:
                raise Mismatch(f"{type(module).__name__}: unequal parts of {size} channels")
            for here, there in zip(own, other):
                moved[here] = there
        with _moving(moved):
            dep([])
        for name in ("running_mean", "running_var"):
            statistic = getattr(module, name, None)
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and statistic is not None:
                statistic.copy_(statistic[moved])


@contextmanager
def _moving(moved: list[int]) -> Any:
    """Torch-Pruning's one function that cuts a tensor, made to reorder it in place instead."""
    base: Any = importlib.import_module("torch_pruning.pruner.function").BasePruningFunc
    cut = base._prune_parameter_and_grad

    def reorder(self: Any, weight: Tensor, keep: Any, dim: int) -> Tensor:
        size, blocks = weight.shape[dim], weight.shape[dim] // len(moved)
        if len(keep) != size or blocks * len(moved) != size:
            raise Mismatch(f"{len(moved)} channels in a dimension of {size}")
        index = torch.tensor([block * len(moved) + i for block in range(blocks) for i in moved])
        weight.data.copy_(weight.data.index_select(dim, index))
        return weight

    base._prune_parameter_and_grad = reorder
    try:
        yield
    finally:
        base._prune_parameter_and_grad = cut

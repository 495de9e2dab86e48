"""Candidates for models that cannot be exported: pairs of layers, by module types, names and shapes.

These are guesses. They go through the same gate as everything else, which keeps the true ones.
"""

from __future__ import annotations

from torch import nn

from topoopt.neurons.group import NeuronGroup, Slice

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def candidates(model: nn.Module) -> list[NeuronGroup]:
    """Guess hidden and channel groups between consecutive layers of matching size, and the units of recurrent layers."""
    groups: list[NeuronGroup] = []
    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    for i, (name, module) in enumerate(leaves):
        if isinstance(module, LAYERS):
            groups += _between(leaves, i, name, module)
        if isinstance(module, nn.RNNBase):
            groups += _recurrent(leaves, i, name, module)
    return groups


def _between(leaves: list[tuple[str, nn.Module]], i: int, name: str, first: nn.Module) -> list[NeuronGroup]:
    """The units of one layer, read by the next layer that takes as many inputs, with the norms between."""
    n = first.weight.shape[0]  # type: ignore[union-attr,index]
    slices = _made(name, first)
    for other, module in leaves[i + 1 :]:
        if isinstance(module, NORMS) and _size(module) == n:
            slices += _norm(other, module)
        elif isinstance(module, LAYERS) and module.weight.shape[1] == n and getattr(module, "groups", 1) == 1:
            kind = "hidden" if isinstance(first, nn.Linear) else "channel"
            return [NeuronGroup(name, kind, n, (*slices, Slice(f"{other}.weight", 1, stride=n, role="in")))]
        elif isinstance(module, nn.Linear) and not isinstance(first, nn.Linear) and module.in_features % n == 0:
            inner = module.in_features // n  # channels flattened with their places
            last = Slice(f"{other}.weight", 1, inner=inner, stride=module.in_features, role="in")
            return [NeuronGroup(name, "channel", n, (*slices, last))]
        elif isinstance(module, LAYERS):
            return []
    return []


def _made(name: str, module: nn.Module) -> list[Slice]:
    n = module.weight.shape[0]  # type: ignore[union-attr,index]
    slices = [Slice(f"{name}.weight", 0, stride=n, role="out")]
    if getattr(module, "bias", None) is not None:
        slices.append(Slice(f"{name}.bias", 0, stride=n, role="bias"))
    return slices


def _size(norm: nn.Module) -> int:
    shape = getattr(norm, "normalized_shape", None)
    return shape[-1] if shape is not None else norm.num_features  # type: ignore[return-value]


def _norm(name: str, norm: nn.Module) -> list[Slice]:
    n = _size(norm)
    roles = {"weight": "scale", "bias": "bias", "running_mean": "state", "running_var": "state"}
    held = [(key, role) for key, role in roles.items() if getattr(norm, key, None) is not None]
    return [Slice(f"{name}.{key}", 0, stride=n, role=role) for key, role in held]


def _recurrent(leaves: list[tuple[str, nn.Module]], i: int, name: str, module: nn.RNNBase) -> list[NeuronGroup]:
    """The units of a one-layer, one-way recurrent module, read by the next linear layer."""
    n = module.hidden_size
    if module.num_layers > 1 or module.bidirectional or module.proj_size:
        return []
    reader = next(((o, m) for o, m in leaves[i + 1 :] if isinstance(m, nn.Linear) and m.in_features == n), None)
    gates = module.weight_ih_l0.shape[0] // n
    own = [Slice(f"{name}.{key}", 0, outer=gates, stride=n, role="out") for key in ("weight_ih_l0", "weight_hh_l0")]
    if module.bias:
        own += [Slice(f"{name}.{key}", 0, outer=gates, stride=n, role="bias") for key in ("bias_ih_l0", "bias_hh_l0")]
    own.append(Slice(f"{name}.weight_hh_l0", 1, stride=n, role="in"))
    if reader is not None:
        own.append(Slice(f"{reader[0]}.weight", 1, stride=n, role="in"))
    return [NeuronGroup(name, "recurrent", n, tuple(own))]

"""Candidates for models that cannot be exported: layers that fit together, by module types, names and shapes.

These are guesses. They go through the same gate as everything else, which keeps the true ones.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from topoopt.neurons.group import NeuronGroup, Slice

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm)
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Named = tuple[str, nn.Module]


def candidates(model: nn.Module) -> list[NeuronGroup]:
    """Guess hidden and channel groups between layers of matching size, recurrent units, and interchangeable experts."""
    groups: list[NeuronGroup] = []
    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    for i, (name, module) in enumerate(leaves):
        if isinstance(module, LAYERS):
            groups += _between(leaves, i)
        if isinstance(module, nn.RNNBase):
            groups += _recurrent(leaves, i, name, module)
    return groups


def _between(leaves: list[Named], i: int) -> Iterator[NeuronGroup]:
    """The units of a layer, read by the next layer that takes as many, with the norms and the gate's layer between."""
    name, first = leaves[i]
    weight = _tensor(first, "weight")
    n, kind = weight.shape[0], "hidden" if isinstance(first, nn.Linear) else "channel"
    slices = _made(name, first)
    for other, module in leaves[i + 1 :]:
        if isinstance(module, NORMS):
            slices += _norm(other, module) if _size(module) == n else []
        elif isinstance(module, LAYERS):
            read = _tensor(module, "weight").shape[1]
            if read == n and getattr(module, "groups", 1) == 1:
                yield NeuronGroup(name, kind, n, (*slices, Slice(f"{other}.weight", 1, stride=n, role="in")))
            elif isinstance(module, nn.Linear) and kind == "channel" and read % n == 0:
                last = Slice(
                    f"{other}.weight", 1, inner=read // n, stride=read, role="in"
                )  # flattened with their places
                yield NeuronGroup(name, kind, n, (*slices, last))
            elif _tensor(module, "weight").shape == weight.shape and _parent(other) == _parent(name):
                slices += _made(other, module)  # a sibling of the same shape: the other half of a gated layer
                continue
            return


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _tensor(module: nn.Module, name: str) -> Tensor:
    tensor = getattr(module, name)
    assert isinstance(tensor, Tensor)
    return tensor


def _made(name: str, module: nn.Module) -> list[Slice]:
    n = _tensor(module, "weight").shape[0]
    slices = [Slice(f"{name}.weight", 0, stride=n, role="out")]
    if getattr(module, "bias", None) is not None:
        slices.append(Slice(f"{name}.bias", 0, stride=n, role="bias"))
    return slices


def _size(norm: nn.Module) -> int:
    return norm.normalized_shape[-1] if isinstance(norm, nn.LayerNorm) else int(norm.num_features)  # type: ignore[arg-type]


def _norm(name: str, norm: nn.Module) -> list[Slice]:
    n = _size(norm)
    roles = {"weight": "scale", "bias": "bias", "running_mean": "state", "running_var": "state"}
    held = [(key, role) for key, role in roles.items() if getattr(norm, key, None) is not None]
    return [Slice(f"{name}.{key}", 0, stride=n, role=role) for key, role in held]


def _recurrent(leaves: list[Named], i: int, name: str, module: nn.RNNBase) -> Iterator[NeuronGroup]:
    """The units of a one-layer, one-way recurrent module, read by the next linear layer."""
    n = module.hidden_size
    if module.num_layers > 1 or module.bidirectional or module.proj_size:
        return
    reader = next((o for o, m in leaves[i + 1 :] if isinstance(m, nn.Linear) and m.in_features == n), None)
    gates = _tensor(module, "weight_ih_l0").shape[0] // n
    own = [Slice(f"{name}.{key}", 0, outer=gates, stride=n, role="out") for key in ("weight_ih_l0", "weight_hh_l0")]
    if module.bias:
        own += [Slice(f"{name}.{key}", 0, outer=gates, stride=n, role="bias") for key in ("bias_ih_l0", "bias_hh_l0")]
    own.append(Slice(f"{name}.weight_hh_l0", 1, stride=n, role="in"))
    if reader is not None:
        own.append(Slice(f"{reader}.weight", 1, stride=n, role="in"))
    yield NeuronGroup(name, "recurrent", n, tuple(own))

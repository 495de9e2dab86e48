"""Which side of a unit a slice is: what makes its value (incoming), or what reads it (outgoing).

A slice's own role says what a dimension usually is. What a module does with it is known better from the module.
"""

from __future__ import annotations

from torch import nn

from topoopt.neurons.group import NeuronGroup, Slice

_Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is the linear layer of GPT-2, which stores (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf") and hasattr(module, "nx")


def owner_of(model: nn.Module, tensor: str) -> nn.Module:
    """The module that holds a tensor."""
    return model.get_submodule(tensor.rpartition(".")[0])


def reads(model: nn.Module, s: Slice) -> bool:
    """Whether these parameters multiply the units' values (and do not make them)."""
    owner = owner_of(model, s.tensor)
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        return False
    if s.tensor.endswith("weight") and (is_conv1d(owner) or isinstance(owner, _Transposed)):
        return s.dim == 0
    return s.role == "in"


def incoming(model: nn.Module, group: NeuronGroup) -> list[Slice]:
    """Slices that make the units' values: weights, biases, scales, statistics."""
    return _sides(model, group)[0]


def outgoing(model: nn.Module, group: NeuronGroup) -> list[Slice]:
    """Slices that read the units' values."""
    return _sides(model, group)[1]


def _sides(model: nn.Module, group: NeuronGroup) -> tuple[list[Slice], list[Slice]]:
    """Both sides; of bare parameters that seem to be on one side alone the last matrix is taken for the one that reads."""
    read = [s for s in group.slices if reads(model, s)]
    made = [s for s in group.slices if s not in read]
    if read and made:
        return made, read
    matrices = [s for s in group.slices if _is_matrix(model, s.tensor) and not _is_layer(owner_of(model, s.tensor))]
    order = {name: i for i, (name, _) in enumerate(model.named_parameters(remove_duplicate=False))}
    names = sorted({s.tensor for s in matrices}, key=order.__getitem__)
    if len(names) < 2:
        return made, read
    return [s for s in group.slices if s.tensor != names[-1]], [s for s in group.slices if s.tensor == names[-1]]


def _is_matrix(model: nn.Module, tensor: str) -> bool:
    held = getattr(owner_of(model, tensor), tensor.rpartition(".")[2])
    return isinstance(held, nn.Parameter) and held.ndim > 1


def _is_layer(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn") or is_conv1d(module)

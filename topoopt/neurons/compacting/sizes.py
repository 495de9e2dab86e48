"""The numbers that torch's own modules keep of their sizes, after some of their positions have gone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.weight_norm import WeightNorm

from topoopt.neurons.compacting.attention import NarrowAttention
from topoopt.neurons.compacting.roles import is_conv1d

Masks = dict[str, dict[int, Tensor]]
"""attribute of the module -> dimension -> which positions have gone."""


class Unsupported(Exception):
    """A module that is not known to work with sizes other than it was made with."""


def mend(module: nn.Module, masks: Masks) -> None:
    """Let a module's own numbers say what its tensors are now.

    Raises:
        Unsupported: when the module cannot have the sizes that its tensors have.
    """
    for kind, work in _MENDERS:
        if isinstance(module, kind):
            work(module, masks)
            return
    if is_conv1d(module):
        module.nx, module.nf = module.weight.shape  # type: ignore[assignment]


def _weight(module: Any) -> Tensor:
    """The weight, also where another is computed from it before each forward (torch's older weight norm)."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == "weight":
            module.weight = hook.compute_weight(module)
    return module.weight


def _linear(module: Any, masks: Masks) -> None:
    module.out_features, module.in_features = _weight(module).shape


def _bilinear(module: Any, masks: Masks) -> None:
    module.out_features, module.in1_features, module.in2_features = module.weight.shape


def _convolution(module: Any, masks: Masks) -> None:
    transposed = isinstance(module, _ConvTransposeNd)
    first = masks.get("weight", {}).get(0)
    if first is not None and module.groups > 1:
        module.groups = _blocks_left(first, module.groups)
    rows, columns = _weight(module).shape[:2]
    made, read = (columns * module.groups, rows) if transposed else (rows, columns * module.groups)
    module.out_channels, module.in_channels = made, read


def _blocks_left(gone: Tensor, blocks: int) -> int:
    """How many of the equal blocks of a dimension still have positions: whole groups have gone, or a place in each."""
    left = (~gone).reshape(blocks, -1).sum(1)
    left = left[left > 0]
    if len(left) == 0 or not bool((left == left[0]).all()):
        raise Unsupported("the groups of a grouped layer would have different sizes")
    return len(left)


def _layer_norm(module: Any, masks: Masks) -> None:
    if module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)


def _group_norm(module: Any, masks: Masks) -> None:
    gone = masks.get("weight", {}).get(0)
    if gone is not None:
        module.num_groups = _blocks_left(gone, module.num_groups)
        module.num_channels = len(module.weight)


def _batch_norm(module: Any, masks: Masks) -> None:
    held = module.weight if module.weight is not None else module.running_mean
    if held is not None:
        module.num_features = len(held)


def _embedding(module: Any, masks: Masks) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


def _prelu(module: Any, masks: Masks) -> None:
    module.num_parameters = len(module.weight)


def _recurrent(module: Any, masks: Masks) -> None:
    """One width for all layers and directions: torch knows no other."""
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    widths = {len(p) // gates for name, p in module._parameters.items() if name.startswith("weight_hh")}
    projected = {len(p) for name, p in module._parameters.items() if name.startswith("weight_hr")}
    if len(widths) > 1 or len(projected) > 1:
        raise Unsupported("the layers of one recurrent module would have different widths")
    module.hidden_size, module.input_size = widths.pop(), module.weight_ih_l0.shape[1]
    if projected:
        module.proj_size = projected.pop()
    module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]


def _cell(module: Any, masks: Masks) -> None:
    module.hidden_size, module.input_size = module.weight_hh.shape[1], module.weight_ih.shape[1]


def _attention(module: Any, masks: Masks) -> None:
    inside = [*masks.get("in_proj_weight", {}).values()]
    if not any(bool(mask.any()) for mask in inside):  # only what leaves it: torch does not ask for that size
        return
    if module.in_proj_weight is None or module.bias_k is not None or module.add_zero_attn:
        raise Unsupported("a MultiheadAttention with separate projections or added keys has one width")
    rows = masks["in_proj_weight"].get(0)
    before = module.in_proj_weight.shape[0] if rows is None else len(rows)
    NarrowAttention.take_over(module, rows if rows is not None else torch.zeros(before, dtype=torch.bool))


_MENDERS: list[tuple[Any, Any]] = [
    (nn.Linear, _linear),
    (nn.Bilinear, _bilinear),
    (_ConvNd, _convolution),
    (nn.LayerNorm | nn.RMSNorm, _layer_norm),
    (nn.GroupNorm, _group_norm),
    (_NormBase, _batch_norm),
    (nn.Embedding | nn.EmbeddingBag, _embedding),
    (nn.PReLU, _prelu),
    (nn.RNNBase, _recurrent),
    (nn.RNNCellBase, _cell),
    (nn.MultiheadAttention, _attention),
]

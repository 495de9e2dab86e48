"""Verification of models without data: on a small sibling built from the same configuration class.

A model on the meta device has no numbers, and one of eight billion parameters has no place for random ones. Its
groups are compared with the verified groups of a model of the same class with fewer layers and smaller sizes: a group
passes when that one has a group of the same kind in the same dimensions of the same tensors.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from topoopt.neurons.group import NeuronGroup
from topoopt.neurons.running import Numbers

VOCABULARY = 64
HEAD_SIZE = 8
SIZES = {"intermediate_size": 24, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 20, "n_inner": 24,
         "ffn_dim": 24, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "d_ff": 24, "vocab_size": VOCABULARY}  # fmt: skip
DEPTHS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "num_decoder_layers")
Signature = tuple[str, frozenset[tuple[str, int, str]]]


def has_no_data(model: nn.Module) -> bool:
    """Whether some parameter lies on the meta device."""
    return any(p.is_meta for p in model.parameters())


def sibling(model: nn.Module) -> nn.Module | None:
    """A small model on the CPU of the same class, or None when it has no configuration that says how to build one."""
    config = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return None
    config = copy.deepcopy(config)
    _shrink(config)
    with Numbers(None):  # initial weights come from a generator of ours
        try:
            return type(model)(config).eval()
        except Exception:  # a configuration whose sizes hang together in ways not known here
            return None


def inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs of the same shapes for the sibling: new numbers for floats, names within its vocabulary for integers."""
    generator = torch.Generator().manual_seed(0)

    def leaf(one: Any) -> Any:
        if not isinstance(one, Tensor):
            return one
        if one.is_floating_point():
            return torch.randn(one.shape, generator=generator, device="cpu").to(one.dtype)
        if one.dtype is torch.bool:
            return torch.ones(one.shape, dtype=torch.bool, device="cpu")
        return (
            torch.randint(3, VOCABULARY, one.shape, generator=generator, device="cpu")
            if one.is_meta
            else one.cpu() % VOCABULARY
        )

    return tree_map(leaf, (args, dict(kwargs)))


def signature(group: NeuronGroup) -> Signature:
    """Kind, and the dimensions of tensors that the group lies in, layers' numbers left out."""
    return group.kind, frozenset((re.sub(r"\d+", "#", s.tensor), s.dim, s.role) for s in group.slices)


def _shrink(config: Any) -> None:
    heads = getattr(config, "num_attention_heads", None)
    shared = getattr(config, "num_key_value_heads", None)
    if isinstance(heads, int):
        ratio = heads // shared if isinstance(shared, int) and shared else 1
        few = 2 * ratio if ratio > 1 else min(heads, 4)
        config.num_attention_heads = few
        if isinstance(shared, int):
            config.num_key_value_heads = few // ratio if shared > 1 else 1
        config.hidden_size = few * HEAD_SIZE
        if isinstance(getattr(config, "head_dim", None), int):
            config.head_dim = HEAD_SIZE
    for name, size in SIZES.items():
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, size)
    for name in DEPTHS:
        depth = getattr(config, name, None)
        if isinstance(depth, int):
            setattr(config, name, min(depth, _period(config)))
    if isinstance(getattr(config, "layer_types", None), list):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        token = getattr(config, name, None)
        if isinstance(token, int) and token >= VOCABULARY:
            setattr(config, name, 2)


def _period(config: Any) -> int:
    """Layers until all kinds of layers have occurred: two where all are alike."""
    kinds = getattr(config, "layer_types", None)
    if not isinstance(kinds, list):
        return 2
    return max(2, *(1 + kinds.index(kind) for kind in set(kinds)))

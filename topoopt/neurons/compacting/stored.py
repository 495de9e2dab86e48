"""A cut model in a file: its tensors, and the numbers that its modules need to hold them; put into an uncut model again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from topoopt.errors import ConfigError
from topoopt.neurons.compacting.attention import NarrowAttention
from topoopt.neurons.group import named_tensors

Sizes = dict[str, dict[str, Any]]
"""module -> its attributes that are other than the uncut model's: plain numbers and lists of them."""


def sizes_of(small: nn.Module, model: nn.Module) -> Sizes:
    """The plain attributes in which a cut model's modules differ from the uncut ones'."""
    large = dict(model.named_modules())
    found: Sizes = {}
    for name, module in small.named_modules():
        before = vars(large[name])
        changed = {
            k: _plain(v) for k, v in vars(module).items() if _is_plain(v) and before.get(k) != v and k != "training"
        }
        if changed:
            found[name] = changed
    return found


def resize(model: nn.Module, state: Mapping[str, Tensor], sizes: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """Make an uncut model the cut one, in place: its tensors from `state`, its modules' numbers from `sizes`.

    Raises:
        ConfigError: when the file is of another model.
    """
    modules, named = dict(model.named_modules()), named_tensors(model)
    unknown = [name for name in sizes if name not in modules] + [name for name in state if name not in named]
    if unknown:
        raise ConfigError(f"{unknown[0]} is in the file and not in the model: it is of another architecture")
    for name, attributes in sizes.items():
        module = modules[name]
        if isinstance(module, nn.MultiheadAttention) and "widths" in attributes:
            module.__class__ = NarrowAttention
        for attribute, value in attributes.items():
            before = vars(module).get(attribute)
            if not _is_plain(value) or (before is None and attribute not in NarrowAttention.__annotations__):
                raise ConfigError(f"{name}.{attribute} = {str(value)[:50]!r} in the file is no size of the model's")
            vars(module)[attribute] = tuple(value) if isinstance(before, tuple) or attribute == "widths" else value
    made: dict[int, Any] = {}
    for name, tensor in state.items():
        owner, _, attribute = name.rpartition(".")
        held = named[name]
        if id(held) not in made:
            new = torch.empty(tensor.shape, dtype=held.dtype, device=held.device)
            made[id(held)] = nn.Parameter(new, held.requires_grad) if isinstance(held, nn.Parameter) else new
        store = modules[owner]._parameters if isinstance(held, nn.Parameter) else modules[owner]._buffers
        store[attribute] = made[id(held)]
    for module in modules.values():
        if isinstance(module, nn.RNNBase):
            module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        raise ConfigError(f"the file does not fit the model: {error}") from error
    return model


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(type(one) in (int, float) for one in value)
    return type(value) in (int, float, bool)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

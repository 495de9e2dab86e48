"""A Hugging Face configuration after its model was cut: it says the new sizes, or it is said that it does not."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import combinations_with_replacement
from typing import Any

import torch
from torch import nn

from topoopt.neurons.group import NeuronGroup


def describe(small: nn.Module, shrunk: Sequence[tuple[NeuronGroup, int]]) -> tuple[str, ...]:
    """Set the numbers of a cut model's configuration so that it builds one of these sizes; returns what it cannot say."""
    config = getattr(small, "config", None)
    if not hasattr(config, "to_dict"):
        return ()
    left = _mismatches(small, config)
    for part, changes in list(_changes(config, shrunk)):
        if not left:
            break
        before = {name: vars(part).get(name, _ABSENT) for name in changes}
        _set(part, changes)
        after = _mismatches(small, config)
        if after is not None and len(after) < len(left):
            left = after
        else:
            _set(part, before)
    wrong = undescribed(small)
    return (f"the configuration has no word for the new sizes of {', '.join(sorted(wrong)[:3])}",) if wrong else ()


def undescribed(model: nn.Module) -> set[str]:
    """Tensors whose shapes are not those that the model's own configuration gives them."""
    return _mismatches(model, getattr(model, "config", None)) or set()


_ABSENT = object()


def _set(part: Any, changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if value is _ABSENT:
            vars(part).pop(name, None)
        else:
            setattr(part, name, value)


def _changes(config: Any, shrunk: Sequence[tuple[NeuronGroup, int]]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Changes of the configuration, or of a part of it, that may say what became of the groups."""
    sizes = sorted(
        {
            (g.n * f, now * f)
            for g, now in shrunk
            for f in {1, *(s.inner for s in g.slices), *(s.outer for s in g.slices)}
        }
    )
    heads = sorted({Fraction(now, g.n) for g, now in shrunk if g.kind == "head"})
    heads += [a * b for a, b in combinations_with_replacement(heads, 2)]  # the keys', and the queries' within each
    parts = [config, *(part for part in vars(config).values() if hasattr(part, "to_dict"))]
    for part in parts:
        for name, value in list(vars(part).items()):
            if name.endswith("_id") or name.startswith("_"):
                continue
            if type(value) is int and "head" in name and "dim" not in name and "size" not in name:
                fewer = [int(value * ratio) for ratio in heads if (value * ratio).denominator == 1]
                yield from ((part, {name: number}) for number in fewer)
                width = getattr(part, "hidden_size", None)  # a head's size may be said by the number of heads
                if name == "num_attention_heads" and type(width) is int and getattr(part, "head_dim", None) is None:
                    yield from ((part, {name: number, "head_dim": width // value}) for number in fewer)
            elif type(value) is int:
                yield from ((part, {name: now}) for old, now in sizes if value == old)
            elif type(value) is list:
                places = [(i, now) for i, one in enumerate(value) for old, now in sizes if one == old]
                yield from ((part, {name: [*value[:i], now, *value[i + 1 :]]}) for i, now in places)
        if "n_inner" in vars(part) and part.n_inner is None:  # GPT-2's: four times the embedding
            yield from ((part, {"n_inner": now}) for g, now in shrunk if g.kind == "hidden")


def _mismatches(model: nn.Module, config: Any) -> set[str] | None:
    """Names of tensors with other shapes in a model built from `config`; None where none can be built."""
    if not hasattr(config, "to_dict"):
        return set()
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            built = type(model)(copy.deepcopy(config))  # type: ignore[call-arg]
    except Exception:  # sizes that do not go together
        return None
    shapes = {name: p.shape for name, p in built.named_parameters()}
    return {name for name, p in model.named_parameters() if shapes.get(name) != p.shape}

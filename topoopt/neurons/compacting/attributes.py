"""Numbers that models' own modules keep of their sizes: heads, widths, where a fused projection is split.

Names are conventions, and what a forward reads is not known without running it. So there are several ways to set them,
from the careful to the broad, and compacting takes the first under which the model computes what it did.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from torch import nn

from topoopt.neurons.compacting.sizes import Unsupported
from topoopt.neurons.group import NeuronGroup

COUNTS = {
    "head": ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "num_key_value_heads", "num_kv_heads",
             "n_kv_heads"),
    "head_dim": ("head_dim", "attention_head_size", "head_size", "d_head", "key_value_proj_dim", "v_head_dim", "value_dim"),
}  # fmt: skip
"""Names for the number of units itself, by the group's kind."""
WIDTHS = {
    "head": ("all_head_size", "inner_dim", "split_size", "num_heads", "num_attention_heads"),
    "head_dim": ("all_head_size", "inner_dim", "split_size"),
}
"""Names for a size that the units make up together."""
HIDDEN = (
    "intermediate_size",
    "ffn_dim",
    "d_ff",
    "d_inner",
    "inner_dim",
    "hidden_features",
    "mlp_dim",
    "hidden_dim",
    "conv_dim",
)
REPEATS = ("num_key_value_groups", "n_rep")
WAYS = 3
"""Ways to set the numbers: by name; query heads within a key's too; every number of the size that went."""


@dataclass(frozen=True)
class Setting:
    """One number of one module (of a list that it holds, where `place` says which), and how many times it shrinks."""

    module: str
    attribute: str
    place: int | None
    ratio: Fraction

    @property
    def where(self) -> tuple[str, str, int | None]:
        """What is set, without to what."""
        return self.module, self.attribute, self.place

    def apply(self, model: nn.Module) -> None:
        """Set it.

        Raises:
            Unsupported: when the number does not shrink to a whole one.
        """
        module = model.get_submodule(self.module)
        held = getattr(module, self.attribute)
        old = held if self.place is None else held[self.place]
        new = old * self.ratio
        if new.denominator != 1:
            raise Unsupported(f"{self.module}.{self.attribute} = {old} would become {new}")
        if self.place is None:
            setattr(module, self.attribute, int(new))
        else:
            setattr(module, self.attribute, type(held)([*held[: self.place], int(new), *held[self.place + 1 :]]))


def settings(model: nn.Module, group: NeuronGroup, left: int, way: int) -> Iterator[Setting]:
    """Numbers of the modules around a group that are to follow it from n units to `left`."""
    ratio = Fraction(left, group.n)
    sizes = {group.n}.union(
        *({group.n * s.inner, group.n * s.outer, group.n * s.inner * s.outer} for s in group.slices)
    )
    for name in _around(group):
        module = model.get_submodule(name)
        if type(module).__module__.startswith("torch.nn"):
            continue  # those are known: their numbers follow from their tensors
        for attribute, value in vars(module).items():
            if attribute.startswith("_") or isinstance(value, bool):
                continue
            if isinstance(value, int):
                if value in sizes and _follows(group, attribute, value, way):
                    yield Setting(name, attribute, None, ratio)
            elif way == WAYS - 1 and type(value) in (list, tuple):
                places = (i for i, one in enumerate(value) if type(one) is int and one in sizes)
                yield from (Setting(name, attribute, i, ratio) for i in places)


def _follows(group: NeuronGroup, attribute: str, value: int, way: int) -> bool:
    if way == WAYS - 1:
        return True
    counts = COUNTS.get(group.kind, HIDDEN) + (REPEATS if way == 1 else ())
    return attribute in counts if value == group.n else attribute in WIDTHS.get(group.kind, HIDDEN)


def _around(group: NeuronGroup) -> list[str]:
    """Names of the modules that hold the group's tensors, and of those around them up to the one around all."""
    owners = {name.rpartition(".")[0] for s in group.slices for name in s.tensors}
    parts = [owner.split(".") if owner else [] for owner in owners]
    common = 0
    while all(len(p) > common and p[common] == parts[0][common] for p in parts):
        common += 1
    names = {".".join(p[:end]) for p in parts for end in range(common, len(p) + 1)}
    return sorted(names)

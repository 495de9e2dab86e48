"""The inputs that a model's groups were found with, kept small: what compacting compares the smaller model on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

ROWS = 5
"""Rows of a batch that say as much of a symmetry as all of it. A prime: no other dimension is likely to be as long."""
LARGEST = 1 << 20
"""Floating inputs of more bytes are kept as a description and drawn again: a batch of images is no thing to hold on to."""


@dataclass(frozen=True)
class Example:
    """Arguments of one forward, on the host; copies, so that nothing of the user's batch stays in memory."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    call: Callable[..., Any] | str | None = None
    """How the model is used, where not by calling it: see `discover`."""

    @classmethod
    def of(
        cls, args: tuple[Any, ...], kwargs: Mapping[str, Any], call: Callable[..., Any] | str | None = None
    ) -> Example:
        """Keep these arguments: integers and small tensors as they are, large floating ones by their range."""
        kept, named = tree_map(_kept, (tuple(args), dict(kwargs)))
        return cls(kept, named, call)

    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, with what was only described drawn from a generator of its own."""
        generator = torch.Generator().manual_seed(0)
        return tree_map(
            lambda leaf: leaf.draw(generator) if isinstance(leaf, _Drawn) else leaf, (self.args, self.kwargs)
        )


def few_rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments with the first rows alone of what has as many as the first tensor; None where those are few already."""
    tensors = [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor) and leaf.ndim]
    rows = tensors[0].shape[0] if tensors else 0
    if rows < 2 * ROWS:
        return None
    return tree_map(
        lambda leaf: leaf[:ROWS] if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == rows else leaf,
        (tuple(args), dict(kwargs)),
    )


@dataclass(frozen=True)
class _Drawn:
    shape: tuple[int, ...]
    dtype: torch.dtype
    mean: float
    spread: float
    low: float
    high: float

    def draw(self, generator: torch.Generator) -> Tensor:
        drawn = torch.randn(self.shape, generator=generator, device="cpu") * self.spread + self.mean
        return drawn.clamp_(self.low, self.high).to(self.dtype)


def _kept(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    leaf = leaf.detach()
    if leaf.is_meta:
        return leaf
    large = leaf.is_floating_point() and leaf.numel() * leaf.element_size() > LARGEST
    if not large or not bool(torch.isfinite(leaf).all()):
        return leaf.to("cpu", copy=True)
    low, high = (float(bound) for bound in leaf.aminmax())
    sample = leaf.float()
    return _Drawn(tuple(leaf.shape), leaf.dtype, float(sample.mean()), float(sample.std()), low, high)

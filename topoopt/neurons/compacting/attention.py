"""torch's attention with fewer heads, or narrower, than its embedding: the same parameters under the same names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear, softmax


class NarrowAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` whose heads need not fill its embedding; a module becomes one by `take_over`.

    torch's own takes the width of queries, keys and values for the embedding's. Weights are computed openly, in
    (batch, heads, length, length) numbers; the score's factor stays that of the original head.
    """

    widths: tuple[int, int, int]
    """Sizes of the projections to queries, keys and values."""
    factor: float
    """1 / sqrt(d) of the original head."""

    @classmethod
    def take_over(cls, module: nn.MultiheadAttention, gone: Tensor) -> None:
        """Make `module` one of these, after the rows `gone` (bool, of the old 3 x width) have left its projection."""
        heads = module.num_heads
        left = (~gone).reshape(3, heads, -1).sum(2)
        filled = left[0] > 0
        if not bool(((left > 0) == filled).all()) or any(len(set(row[filled].tolist())) != 1 for row in left):
            raise ValueError("its heads would have different sizes")
        factor = module.factor if isinstance(module, cls) else module.head_dim**-0.5
        module.__class__ = cls
        assert isinstance(module, cls)
        module.factor = factor
        queries, keys, values = (int(width) for width in left.sum(1))
        module.widths = queries, keys, values
        module.num_heads = int(filled.sum())
        module.head_dim = int(left[0][filled][0])
        width = module.in_proj_weight.shape[1]
        module.embed_dim = module.kdim = module.vdim = width
        module._qkv_same_embed_dim = False  # torch's fused path assumes the old sizes

    def forward(  # noqa: D102 -- torch's own
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._projected(query, key, value)
        scores = (q * self.factor) @ k.transpose(-1, -2)
        for mask in self._masks(key_padding_mask, attn_mask, scores):
            scores = scores + mask
        weights = dropout(softmax(scores, -1), self.dropout, self.training)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        result = linear(mixed, self.out_proj.weight, self.out_proj.bias)
        told = (weights.mean(1) if average_attn_weights else weights) if need_weights else None
        if not batched:
            return result.squeeze(0), None if told is None else told.squeeze(0)
        return (result if self.batch_first else result.transpose(0, 1)), told

    def _projected(self, *inputs: Tensor) -> list[Tensor]:
        """Queries, keys and values: (batch, heads, length, size) each."""
        weights = self.in_proj_weight.split(self.widths)
        biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.split(self.widths)
        made = [linear(x, w, b) for x, w, b in zip(inputs, weights, biases)]
        return [x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in made]

    def _masks(self, padding: Tensor | None, attention: Tensor | None, scores: Tensor) -> list[Tensor]:
        masks: list[Tensor] = []
        if padding is not None:
            masks.append(_added(padding, scores)[:, None, None, :])
        if attention is not None:
            added = _added(attention, scores)
            masks.append(added.unflatten(0, (-1, scores.shape[1])) if added.dim() == 3 and len(added) > 1 else added)
        return masks


def _added(mask: Tensor, scores: Tensor) -> Tensor:
    """A mask as what is added to the scores."""
    if mask.dtype is torch.bool:
        return torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(mask, -torch.inf)
    return mask.to(scores)


__all__: list[Any] = ["NarrowAttention"]

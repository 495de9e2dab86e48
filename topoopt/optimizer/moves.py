"""How far a step moved the weights, from a sample of them: the whole displacement would cost as much memory as the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

EACH = 512
"""Entries of each tensor that are looked at."""


class Sample:
    """Entries of the weights, evenly spaced, as they stood before a step."""

    @torch.no_grad()
    def __init__(self, weights: Sequence[Tensor]) -> None:
        own = [w for w in weights if not hasattr(w, "full_tensor") and w.numel()]
        self._weights = own
        self._before = [_entries(w).clone() for w in own]

    @torch.no_grad()
    def lengths(self) -> dict[str, float]:
        """|D| / |x| of the step taken since, and |x| before it, each tensor weighed by its size; one host read."""
        if not self._weights:
            return {}
        device = self._before[0].device
        moved, length = [], []
        for weight, before in zip(self._weights, self._before):
            share = weight.numel() / before.numel()
            moved.append(((_entries(weight) - before).abs().float().square().sum() * share).to(device))
            length.append((before.abs().float().square().sum() * share).to(device))
        total, whole = torch.stack([torch.stack(moved).sum(), torch.stack(length).sum()]).tolist()
        return {"update_ratio": math.sqrt(total / whole) if whole > 0 else math.nan, "weight_norm": math.sqrt(whole)}


def _entries(weight: Tensor) -> Tensor:
    flat = weight.detach().flatten()
    return flat[:: max(1, flat.numel() // EACH)]

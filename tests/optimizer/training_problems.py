"""Small training problems that the optimizer's tests share."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.functional import cross_entropy


class Problem:
    """A tiny classifier on fixed data; copies of it start from the same weights."""

    def __init__(self, seed: int = 0, dropout: float = 0.0, norm: bool = False) -> None:
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Linear(6, 12), nn.Tanh()]
        layers += [nn.BatchNorm1d(12)] if norm else []
        layers += [nn.Dropout(dropout)] if dropout else []
        self.model = nn.Sequential(*layers, nn.Linear(12, 3))
        self.x = torch.randn(32, 6)
        self.y = torch.randint(0, 3, (32,))

    def copy(self) -> Problem:
        return copy.deepcopy(self)

    def loss(self) -> torch.Tensor:
        return cross_entropy(self.model(self.x), self.y)

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

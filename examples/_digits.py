"""The digits that ship with scikit-learn, and a small network for them: what the short examples train on."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset, random_split


def digits(seed: int = 0) -> tuple[TensorDataset, Tensor, Tensor]:
    """Return 1,437 digits to train on as a dataset, and 360 to test with as (images, labels)."""
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
    train, test = random_split(data, [1437, 360], torch.Generator().manual_seed(seed))
    taken = TensorDataset(*data[train.indices])
    test_images, test_labels = data[test.indices]
    return taken, test_images, test_labels


def network(seed: int = 0, width: int = 64) -> nn.Module:
    """Return an MLP of two hidden layers."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))

"""r of gradient descent at rate 1 is the Hessian's largest eigenvalue: a second library's, on four kinds of network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from topoopt.curvature import proximity

hessian_eigenthings = pytest.importorskip("hessian_eigenthings")

Case = tuple[nn.Module, Any, Callable[[nn.Module, Any], Tensor]]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classify(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def mlp() -> Case:
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 5))
    return model, (torch.randn(64, 16, generator=generator(1)), torch.arange(64) % 5), classify


def cnn() -> Case:
    """BatchNorm in training mode."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.GELU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    return model, (torch.randn(64, 1, 8, 8, generator=generator(2)), torch.arange(64) % 5), classify


def gpt2() -> Case:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    ids = torch.randint(0, 50, (8, 16), generator=generator(3))
    return transformers.GPT2LMHeadModel(config), ids, lambda model, batch: model(input_ids=batch, labels=batch).loss


def bert() -> Case:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=3,
        max_position_embeddings=16, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
    )  # fmt: skip
    batch = {"input_ids": torch.randint(0, 50, (16, 12), generator=generator(4)), "labels": torch.arange(16) % 3}
    return (
        transformers.BertForSequenceClassification(config), batch, lambda model, given: model(**given).loss
    )  # fmt: skip


@pytest.mark.parametrize("case", [mlp, cnn, gpt2, bert])
def test_top_eigenvalue_agrees_with_a_second_library(case: Callable[[], Case]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, batch, loss = case()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 1.0
    found = proximity(optimizer, lambda: loss(model, batch), products=20)
    assert found.engine.startswith("double backward")
    assert found.r == pytest.approx(_theirs(model, batch, loss), rel=0.01)


def _theirs(model: nn.Module, batch: Any, loss: Callable[[nn.Module, Any], Tensor]) -> float:
    """Their Lanczos, run three times as long, on a copy (BatchNorm's averages move), with attention spelled out."""
    twin = copy.deepcopy(model)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        operator = hessian_eigenthings.HessianOperator(twin, [batch], loss)
        return abs(float(hessian_eigenthings.lanczos(operator, k=1, max_iter=60, seed=0).eigenvalues[0]))

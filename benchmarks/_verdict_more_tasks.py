"""More of the small tasks that the verdict's rule was fitted on: other data, other networks, other losses.

Pictures, graphs, sets of points, ratings, strings to be copied, circuits, motion, pairs to be matched. They were written to
judge the rule as it was before, and judged it once; it has been fitted on them since.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from _verdict_tasks import DATA, REGRESSION, Attention, Gpt, Recurrent, Task, W, residual
from sklearn.datasets import load_iris, load_sample_image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

# -- data -------------------------------------------------------------------------------------------------------------


def _picture(name: str) -> Tensor:
    """A photograph, (3, height, width) in [0, 1], a quarter of its size."""
    return avg_pool2d(torch.tensor(load_sample_image(name)).permute(2, 0, 1).float() / 255.0, 4)


def _pixels() -> tuple[Tensor, Tensor]:
    """The colour of each pixel, from waves of its place."""
    image = _picture("flower.jpg")
    rows, columns = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in image.shape[1:]), indexing="ij")
    place = torch.stack([rows.flatten(), columns.flatten()], 1)
    waves = torch.cat([(place * math.pi * 2**k) for k in range(4)], 1)
    y = image.flatten(1).T
    return torch.cat([waves.sin(), waves.cos()], 1), (y - y.mean(0)) / y.std(0)


def _patches() -> tuple[Tensor, Tensor]:
    """Patches of 8 x 8 of a photograph, a quarter of their pixels hidden, and the whole ones."""
    image = _picture("china.jpg").mean(0)
    whole = image.unfold(0, 8, 3).unfold(1, 8, 3).reshape(-1, 64)
    whole = whole - whole.mean(1, keepdim=True)
    whole = whole / whole.std()
    hidden = torch.rand(whole.shape, generator=torch.Generator().manual_seed(21)) < 0.25
    return whole.masked_fill(hidden, 0.0), whole


def _graphs() -> tuple[Tensor, Tensor]:
    """Graphs of 12 nodes (adjacency, flattened): rings with chords, trees, two cliques, stars with noise."""
    generator = torch.Generator().manual_seed(22)
    y, graphs = torch.randint(0, 4, (3000,), generator=generator), []
    for kind in y.tolist():
        a, n = torch.zeros(12, 12), torch.randperm(12, generator=generator)
        if kind == 0:
            a[n, n.roll(1)] = 1
        elif kind == 1:
            a[n[1:], n[(torch.arange(11) * torch.rand(11, generator=generator)).long()]] = 1
        elif kind == 2:
            a[n[:6, None], n[None, :6]] = 1
            a[n[6:, None], n[None, 6:]] = 1
        else:
            a[n[:2, None], n[None]] = 1
        a = torch.where(torch.rand(12, 12, generator=generator) < 0.06, 1 - a, a)
        graphs.append(((a + a.T) > 0).float().fill_diagonal_(0))
    return torch.stack(graphs).flatten(1), y


def _point_sets() -> tuple[Tensor, Tensor]:
    """Sixteen points of the outline of one of five shapes, turned and blurred."""
    generator = torch.Generator().manual_seed(23)
    y = torch.randint(0, 5, (3000,), generator=generator)
    t = 2 * torch.pi * torch.rand(3000, 16, generator=generator)
    radius = torch.stack(
        [torch.ones_like(t), *(1 + 0.5 * (k * t).cos() for k in (2, 3, 4)), t / torch.pi], 0
    )[y, torch.arange(3000)]  # fmt: skip
    turned = t + 2 * torch.pi * torch.rand(3000, 1, generator=generator)
    points = torch.stack([radius * turned.cos(), radius * turned.sin()], 2)
    return (points + 0.05 * torch.randn(points.shape, generator=generator)).flatten(1), y


def _ratings() -> tuple[Tensor, Tensor]:
    """What one of 60 readers gives one of 80 books: a product of hidden tastes, with noise."""
    generator = torch.Generator().manual_seed(24)
    tastes, books = torch.randn(60, 3, generator=generator), torch.randn(80, 3, generator=generator)
    pairs = torch.stack(
        [torch.randint(0, 60, (6000,), generator=generator), torch.randint(0, 80, (6000,), generator=generator)], 1
    )
    y = (tastes[pairs[:, 0]] * books[pairs[:, 1]]).sum(1, keepdim=True)
    return pairs, y / y.std() + 0.2 * torch.randn(y.shape, generator=generator)


def _copies(reverse: bool) -> tuple[Tensor, Tensor]:
    """Strings of ten letters, a mark, and the string again (or backwards); what comes next at each place."""
    letters = torch.randint(2, 18, (4000, 10), generator=torch.Generator().manual_seed(25))
    again = letters.flip(1) if reverse else letters
    whole = torch.cat([letters, torch.ones(4000, 1, dtype=torch.long), again], 1)
    return whole[:, :-1], whole[:, 1:]


def _circuits() -> tuple[Tensor, Tensor]:
    """Sixteen bits, and what a small circuit of and, or and exclusive or makes of them: one of eight."""
    bits = torch.randint(0, 2, (4000, 16), generator=torch.Generator().manual_seed(26))
    a, b, c = (bits[:, 0] & bits[:, 1]) | bits[:, 2], bits[:, 3] ^ bits[:, 4], bits[:, 5:10].sum(1) > 2
    return bits.float() * 2 - 1, a + 2 * b + 4 * c.long()


def _motion() -> tuple[Tensor, Tensor]:
    """Where the Lorenz system stands 0.05 later."""
    state = torch.randn(3000, 3, generator=torch.Generator().manual_seed(27)) + torch.tensor([0.0, 0.0, 25.0])
    path = [state]
    for _ in range(250):
        x, y, z = path[-1].T
        path.append(path[-1] + 0.005 * torch.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], 1))
    before, after = path[-11], path[-1]
    return (before - before.mean(0)) / before.std(0), (after - after.mean(0)) / after.std(0)


def _heartbeats() -> tuple[Tensor, Tensor]:
    """Traces of 96 samples with pulses, of five rhythms, at any phase."""
    generator = torch.Generator().manual_seed(28)
    y = torch.randint(0, 5, (3000,), generator=generator)
    period = torch.tensor([12.0, 16.0, 20.0, 24.0, 32.0])[y][:, None] * (
        1 + 0.05 * torch.randn(3000, 1, generator=generator)
    )
    phase = (torch.arange(96) / period + torch.rand(3000, 1, generator=generator)) % 1
    pulse = (-((phase - 0.5) ** 2) / 0.004).exp() - 0.4 * (-((phase - 0.65) ** 2) / 0.01).exp()
    return pulse + 0.4 * torch.randn(pulse.shape, generator=generator), y


def _iris() -> tuple[Tensor, Tensor]:
    x, y = load_iris(return_X_y=True)
    x = torch.tensor(x, dtype=torch.float32)
    return (x - x.mean(0)) / x.std(0), torch.tensor(y)


DATA |= {
    "pixels": _pixels,
    "patches": _patches,
    "graphs": _graphs,
    "point sets": _point_sets,
    "ratings": _ratings,
    "copies": partial(_copies, False),
    "reversals": partial(_copies, True),
    "circuits": _circuits,
    "motion": _motion,
    "heartbeats": _heartbeats,
    "iris": _iris,
}
REGRESSION |= {"pixels", "patches", "ratings", "motion"}


# -- models -----------------------------------------------------------------------------------------------------------


class GraphNetwork(nn.Module):
    """Three rounds of messages over the mean of the neighbours, degrees first, and the mean of all nodes."""

    def __init__(self, width: int = 32, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.first, self.act = nn.Linear(1, width), act()
        self.own = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.others = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(3))
        self.acts = nn.ModuleList(act() for _ in range(3))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = x.view(-1, 12, 12)
        degree = a.sum(2, keepdim=True)
        h = self.act(self.first(degree / 4))
        for own, others, act in zip(self.own, self.others, self.acts):
            h = act(own(h) + others(a @ h / degree.clamp_min(1)))
        return self.head(h.mean(1))


class DeepSet(nn.Module):
    """Each point by itself, the largest of what comes out, then all together."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.all = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.all(self.each(x.view(len(x), -1, 2)).amax(1))


class SetAttention(nn.Module):
    """Points that look at each other."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.body = nn.Linear(2, width), nn.Sequential(*[Attention(width, 4, False) for _ in range(2)])
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x.view(len(x), -1, 2))).mean(1))


class Factors(nn.Module):
    """Ratings from vectors of readers and books, and what a small network adds."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.readers, self.books = nn.Embedding(60, width), nn.Embedding(80, width)
        self.rest = nn.Sequential(nn.Linear(2 * width, 32), nn.GELU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.readers(x[:, 0]), self.books(x[:, 1])
        return (a * b).mean(1, keepdim=True) + self.rest(torch.cat([a, b], 1))


def wave_cnn(width: int = 12, norm: bool = False, act: type[nn.Module] = nn.ReLU) -> nn.Module:
    """Convolutions over time."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 96))]
    for a, b in ((1, width), (width, width), (width, 2 * width)):
        layers += [nn.Conv1d(a, b, 7, 2, 3), *([nn.BatchNorm1d(b)] if norm else []), act()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2 * width, 5))


class Highway(nn.Module):
    """Layers that a gate may pass by."""

    def __init__(self, inputs: int, width: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(inputs, width), nn.Linear(width, outputs)
        self.ways = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.gates = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for way, gate in zip(self.ways, self.gates):
            open_ = torch.sigmoid(gate(h) - 1)
            h = open_ * torch.tanh(way(h)) + (1 - open_) * h
        return self.head(h)


MORE = [
    Task("relu 64 x 3", "adamw", W(16, 64, 64, 64, 3), "pixels", 256),
    Task("gelu 64 x 2", "sgd", W(16, 64, 64, 3, act=nn.GELU), "pixels", 128),
    Task("masked autoencoder gelu 96-32-96", "adamw", W(64, 96, 32, 96, 64, act=nn.GELU), "patches", 64),
    Task("masked autoencoder relu 96 x 2", "momentum", W(64, 96, 96, 64), "patches", 32),
    Task("graph network", "adam", GraphNetwork, "graphs", 64),
    Task("graph network silu", "momentum", partial(GraphNetwork, 32, nn.SiLU), "graphs", 64),
    Task("deep set", "adamw", DeepSet, "point sets", 64),
    Task("deep set", "sgd", DeepSet, "point sets", 32),
    Task("set attention", "adamw", SetAttention, "point sets", 32, 300),
    Task("factors", "adam", Factors, "ratings", 128),
    Task("factors", "rmsprop", Factors, "ratings", 64),
    Task("gpt", "adamw", partial(Gpt, 32, 2, 4, 20), "copies", 32, 400),
    Task("gru", "adam", partial(Recurrent, nn.GRU, 64), "reversals", 32, 400),
    Task("relu 96 x 2", "nesterov", W(16, 96, 96, 8), "circuits", 64),
    Task("highway 5", "adamw", partial(Highway, 16, 48, 5, 8), "circuits", 64),
    Task("tanh 64 x 2", "adam .5", W(3, 64, 64, 3, act=nn.Tanh), "motion", 128),
    Task("residual 4", "momentum", partial(residual, 3, 40, 4, 3, nn.SiLU), "motion", 64),
    Task("wave cnn", "adamw", wave_cnn, "heartbeats", 64, 300),
    Task("wave cnn bn", "momentum", partial(wave_cnn, 12, True), "heartbeats", 64, 300),
    Task("relu 32 x 2", "sgd", W(4, 32, 32, 3), "iris", 16),
]

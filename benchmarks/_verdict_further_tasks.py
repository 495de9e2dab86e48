"""Further small tasks that the verdict's rule was fitted on: other data, other networks, other losses.

Brackets, sums, sorting, textures, orbits, prices with outliers, several labels at once, pairs of views, a picture as a
function, sets of words. They were written to judge the rule as it was before, and judged it once; it has been fitted on them
since.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from _verdict_tasks import DATA, REGRESSION, Attention, Gpt, Mixer, Recurrent, Task, W, cnn, residual
from mlxtend.data import autompg_data, boston_housing_data
from sklearn.datasets import load_digits, load_sample_image
from torch import Tensor, nn
from torch.nn.functional import (
    avg_pool2d,
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber_loss,
    normalize,
    one_hot,
    pad,
)

# -- data -------------------------------------------------------------------------------------------------------------


def _brackets() -> tuple[Tensor, Tensor]:
    """Words of three kinds of brackets that open and close, 24 long; what comes next at each place."""
    generator = torch.Generator().manual_seed(41)
    words = torch.zeros(3000, 25, dtype=torch.long)
    chance, kinds = torch.rand(words.shape, generator=generator), torch.randint(0, 3, words.shape, generator=generator)
    for i in range(len(words)):
        open_: list[int] = []
        for t in range(25):
            if open_ and (chance[i, t] < 0.5 or len(open_) == 6):
                words[i, t] = 4 + open_.pop()
            else:
                open_.append(int(kinds[i, t]))
                words[i, t] = 1 + open_[-1]
    return words[:, :-1], words[:, 1:]


def _sums() -> tuple[Tensor, Tensor]:
    """Sums of two numbers written out, as in 37+485=522; what comes next at each place."""
    generator = torch.Generator().manual_seed(42)
    first, second = torch.randint(0, 500, (2, 4000), generator=generator).tolist()
    texts = [f"{a:03d}+{b:03d}={a + b:04d};" for a, b in zip(first, second)]
    tokens = torch.tensor([[ord(c) for c in text] for text in texts])
    return tokens[:, :-1], tokens[:, 1:]


def _sorting() -> tuple[Tensor, Tensor]:
    """Eight numbers, a mark, and the same in order; what comes next at each place."""
    numbers = torch.randint(2, 32, (4000, 8), generator=torch.Generator().manual_seed(43))
    whole = torch.cat([numbers, torch.ones(4000, 1, dtype=torch.long), numbers.sort(1).values], 1)
    return whole[:, :-1], whole[:, 1:]


def _grey(name: str) -> Tensor:
    return avg_pool2d(torch.tensor(load_sample_image(name)).permute(2, 0, 1).float() / 255.0, 2).mean(0)


def _textures() -> tuple[Tensor, Tensor]:
    """Patches of 16 x 16 of two photographs, and which third of which they are from."""
    generator, patches, labels = torch.Generator().manual_seed(44), [], []
    for which, name in enumerate(("china.jpg", "flower.jpg")):
        image = _grey(name)
        image = (image - image.mean()) / image.std()
        rows = torch.randint(image.shape[0] - 16, (2000,), generator=generator)
        columns = torch.randint(image.shape[1] - 16, (2000,), generator=generator)
        patches += [image[r : r + 16, c : c + 16].flatten() for r, c in zip(rows.tolist(), columns.tolist())]
        labels += (3 * which + 3 * columns // (image.shape[1] - 16)).tolist()
    return torch.stack(patches), torch.tensor(labels)


def _blurred() -> tuple[Tensor, Tensor]:
    """Digits that were blurred, with noise, and as they were."""
    whole = torch.tensor(load_digits(return_X_y=True)[0] / 16.0, dtype=torch.float32).view(-1, 1, 8, 8)
    blurred = avg_pool2d(pad(whole, (1, 1, 1, 1)), 3, 1)
    noise = 0.05 * torch.randn(blurred.shape, generator=torch.Generator().manual_seed(45))
    return (blurred + noise).flatten(1), 2 * whole.flatten(1)


def _orbits() -> tuple[Tensor, Tensor]:
    """Forty places of a point on its way in one of four fields of force, and which."""
    generator = torch.Generator().manual_seed(46)
    y = torch.randint(0, 4, (3000,), generator=generator)
    place, speed = torch.randn(3000, 2, generator=generator), 0.7 * torch.randn(3000, 2, generator=generator)
    power, drag = torch.tensor([0.0, 1.0, 2.0, 0.0])[y][:, None], torch.tensor([0.0, 0.0, 0.0, 0.6])[y][:, None]
    path = []
    for _ in range(40):
        force = -place * place.norm(dim=1, keepdim=True).clamp_min(0.5) ** -power - drag * speed
        speed = speed + 0.15 * force
        place = place + 0.15 * speed
        path.append(place)
    return torch.cat(path, 1) + 0.05 * torch.randn(3000, 80, generator=generator), y


def _outliers() -> tuple[Tensor, Tensor]:
    """A smooth function of six numbers; one target in twenty is anything up to ten times as large."""
    generator = torch.Generator().manual_seed(47)
    x = torch.randn(3000, 6, generator=generator)
    y = torch.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] - x[:, 3].abs() + 0.5 * x[:, 4]
    far = torch.rand(3000, generator=generator) < 0.05
    y = torch.where(far, 10 * torch.randn(3000, generator=generator), (y - y.mean()) / y.std())
    return x, y[:, None]


def _standard(raw: tuple[object, object]) -> tuple[Tensor, Tensor]:
    """Columns and target standardised, columns without numbers left out."""
    x, y = (torch.tensor(part, dtype=torch.float32) for part in raw)
    x = x[:, x.isfinite().all(0)]
    return (x - x.mean(0)) / x.std(0), ((y - y.mean()) / y.std())[:, None]


def _tags() -> tuple[Tensor, Tensor]:
    """Thirty numbers, and which of seven overlapping properties they have."""
    generator = torch.Generator().manual_seed(48)
    x, w = torch.randn(4000, 30, generator=generator), torch.randn(30, 14, generator=generator)
    seen = torch.relu(x @ w) @ torch.randn(14, 7, generator=generator)
    return x, (seen > seen.quantile(0.7, 0)).float()


def _views() -> tuple[Tensor, Tensor]:
    """Each digit seen twice, with parts hidden; the target is not used: each view's partner is the answer."""
    whole = torch.tensor(load_digits(return_X_y=True)[0] / 16.0, dtype=torch.float32)
    hidden = torch.rand(2, *whole.shape, generator=torch.Generator().manual_seed(49)) < 0.3
    return torch.cat([whole.masked_fill(h, 0.0) for h in hidden], 1), torch.zeros(len(whole), dtype=torch.long)


def _picture() -> tuple[Tensor, Tensor]:
    """Brightness of a photograph at each place."""
    image = avg_pool2d(_grey("flower.jpg")[None], 2)[0]
    rows, columns = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in image.shape), indexing="ij")
    y = image.flatten()[:, None]
    return torch.stack([rows.flatten(), columns.flatten()], 1), (y - y.mean()) / y.std()


def _baskets() -> tuple[Tensor, Tensor]:
    """Six things that were bought, by one of twelve kinds of buyers, and the seventh, of 60."""
    generator = torch.Generator().manual_seed(50)
    tastes = torch.softmax(2 * torch.randn(12, 60, generator=generator), 1)
    buyers = torch.randint(0, 12, (4000,), generator=generator)
    bought = torch.multinomial(tastes[buyers], 7, generator=generator)
    return bought[:, :6], bought[:, 6]


def _primes() -> tuple[Tensor, Tensor]:
    """Numbers below 5,000 in three bases, and their smallest prime factor: 2, 3, 5, 7 or none of these."""
    n = torch.arange(2, 5000)
    y = torch.full_like(n, 4)
    for k, p in enumerate((7, 5, 3, 2)):
        y[n % p == 0] = 3 - k
    digits = [one_hot(n // base**k % base, base) for base in (2, 6, 10) for k in range(4)]
    return torch.cat(digits, 1).float(), y


DATA |= {
    "brackets": _brackets,
    "sums": _sums,
    "sorting": _sorting,
    "textures": _textures,
    "blurred digits": _blurred,
    "orbits": _orbits,
    "outliers": _outliers,
    "houses": lambda: _standard(boston_housing_data()),
    "cars": lambda: _standard(autompg_data()),
    "tags": _tags,
    "views": _views,
    "a picture": _picture,
    "baskets": _baskets,
    "primes": _primes,
}
REGRESSION |= {"blurred digits", "outliers", "houses", "cars", "a picture"}


# -- models -----------------------------------------------------------------------------------------------------------


class UNet(nn.Module):
    """Down by two, up again, and what was seen before beside it."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, width, 3, 1, 1), nn.SiLU())
        self.low = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, 2, 1), nn.SiLU(), nn.ConvTranspose2d(2 * width, width, 2, 2), nn.SiLU()
        )
        self.out = nn.Conv2d(2 * width, 1, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.down(x.view(-1, 1, 8, 8))
        return self.out(torch.cat([seen, self.low(seen)], 1)).flatten(1)


class Sine(nn.Module):
    """The sine of what comes in."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class Views(nn.Module):
    """Both views through one network, and how alike each is to each."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 24))

    def forward(self, x: Tensor) -> Tensor:
        first, second = (normalize(self.body(view), dim=1) for view in x.split(64, 1))
        return 8 * first @ second.T


def partners(output: Tensor, y: Tensor) -> Tensor:
    """Each row's own column is the answer, in both directions."""
    own = torch.arange(len(output))
    return (cross_entropy(output, own) + cross_entropy(output.T, own)) / 2


class Basket(nn.Module):
    """The mean of what was bought, and a score for each thing."""

    def __init__(self, width: int = 32, norm: bool = False) -> None:
        super().__init__()
        self.things = nn.EmbeddingBag(60, width)
        self.body = nn.Sequential(
            nn.LayerNorm(width) if norm else nn.Identity(), nn.Linear(width, 64), nn.Tanh(), nn.Linear(64, 60)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.things(x))


class Encoder(nn.Module):
    """Blocks of attention over places of a path, the mean of what comes out."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed, self.places = nn.Linear(8, width), nn.Parameter(0.1 * torch.randn(10, width))
        self.body = nn.Sequential(Attention(width, 4, False), Attention(width, 4, False))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x.view(len(x), 10, 8)) + self.places).mean(1))


def siren(width: int = 64) -> nn.Module:
    """Sines of sines, the first of high frequency."""
    model = nn.Sequential(nn.Linear(2, width), Sine(), nn.Linear(width, width), Sine(), nn.Linear(width, 1))
    with torch.no_grad():
        model[0].weight.mul_(12.0)  # type: ignore[operator]
        model[2].weight.mul_(math.sqrt(6.0))  # type: ignore[operator]
    return model


FURTHER = [
    Task("lstm", "adamw", partial(Recurrent, nn.LSTM, 48), "brackets", 32, 300),
    Task("gpt", "momentum", partial(Gpt, 32, 2), "brackets", 64, 300),
    Task("gpt", "adamw", partial(Gpt, 40, 2, 4, 12), "sums", 64, 300),
    Task("gpt", "adam .95 .95", partial(Gpt, 32, 1, 4, 16), "sorting", 32, 400),
    Task("gru", "adamw", partial(Recurrent, nn.GRU, 64), "sorting", 16, 300),
    Task("mixer", "adamw", partial(Mixer, 16, 4, 24), "textures", 64, 300),
    Task("cnn bn", "nesterov", partial(cnn, "batch", 16, 8), "textures", 128, 250),
    Task("cnn gn", "rmsprop", partial(cnn, "group", 16, 8), "textures", 32, 300),
    Task("u-net", "adamw", UNet, "blurred digits", 32, 400),
    Task("autoencoder relu 64-20-64", "momentum .8", W(64, 96, 20, 96, 64), "blurred digits", 512),
    Task("relu 64 x 2", "sgd", W(80, 64, 64, 4), "orbits", 64),
    Task("encoder", "adamw", Encoder, "orbits", 32, 300),
    Task("residual 12 ln tanh", "momentum", partial(residual, 80, 24, 12, 4, nn.Tanh, True), "orbits", 64, 300),
    Task("relu 64 x 2", "momentum", W(6, 64, 64, 1), "outliers", 512),
    Task("gelu 64 x 2 huber", "adamw", W(6, 64, 64, 1, act=nn.GELU), "outliers", 16, criterion=huber_loss),
    Task("relu 64 x 2", "adam .8", W(13, 64, 64, 1), "houses", 16, 600),
    Task("tanh 32 x 2", "sgd", W(7, 32, 32, 1, act=nn.Tanh), "cars", 32),
    Task("relu 64 x 2 of several labels", "adamw", W(30, 64, 64, 7), "tags", 128, criterion=binary_cross_entropy_with_logits),
    Task("views contrasted", "adam", Views, "views", 128, criterion=partners),
    Task("sines 64 x 2", "adam", siren, "a picture", 512),
    Task("basket", "adamw", Basket, "baskets", 64),
    Task("relu 96 x 3 smoothed", "adamw", W(72, 96, 96, 96, 5), "primes", 64, smoothing=0.1),
]  # fmt: skip

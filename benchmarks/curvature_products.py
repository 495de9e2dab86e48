"""Products until the median error of the top eigenvalue is within 5 % and 1 %: warm Lanczos beside cold power iteration.

    python benchmarks/curvature_products.py [--measurements 12] [--seeds 0 1 2]

Power iteration from a random vector is what PyHessian does; it is run here on the same operator, because PyHessian puts
the model into eval mode and so measures another loss. Weights move by ten steps between measurements, on one fixed probe
batch. Every tracker starts cold with ten products, before the first measurement. The reference is Lanczos with 50 products.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn, optim

from topoopt.curvature import SpectralTracker, Spectrum, opened
from topoopt.curvature.spectrum import FIRST

MOST = {"lanczos": 10, "power": 40}
BETWEEN = 10
Case = tuple[nn.Module, Callable[[], Tensor], Callable[[], Tensor]]
"""A model, its loss on a batch of training, and on the probe batch."""


def classifier(model: nn.Module, x: Tensor, y: Tensor, size: int = 64) -> Case:
    """Cross-entropy on random batches of (x, y); the probe is the first `size` examples."""
    generator = torch.Generator().manual_seed(1)

    def on(rows: Tensor) -> Tensor:
        out = model(x[rows])
        return nn.functional.cross_entropy(getattr(out, "logits", out), y[rows])

    return model, lambda: on(torch.randperm(len(x), generator=generator)[:size]), lambda: on(torch.arange(size))


def digits() -> tuple[Tensor, Tensor]:
    """(1797, 64) in [0, 1], and labels."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    return torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)


def mlp() -> Case:
    """64-64-64-10, tanh."""
    layers = (nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    return classifier(nn.Sequential(*layers), *digits(), size=256)


def cnn() -> Case:
    """Two convolutions with BatchNorm in training mode."""
    x, y = digits()
    layers = (
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip
    return classifier(nn.Sequential(*layers), x.view(-1, 1, 8, 8), y, size=256)


def tokens() -> tuple[Tensor, Tensor]:
    """(256, 16) tokens of a noisy rule, each class with its own step; and the classes."""
    generator = torch.Generator().manual_seed(2)
    classes = torch.randint(0, 3, (256,), generator=generator)
    first = torch.randint(0, 50, (256, 1), generator=generator)
    clean = (first + (classes[:, None] + 1) * torch.arange(16)) % 50
    noise = torch.rand(clean.shape, generator=generator) < 0.1
    return torch.where(noise, torch.randint(0, 50, clean.shape, generator=generator), clean), classes


def gpt2() -> Case:
    """Two layers of width 32, next token."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    model, (ids, _), generator = GPT2LMHeadModel(config), tokens(), torch.Generator().manual_seed(1)

    def on(rows: Tensor) -> Tensor:
        return model(input_ids=ids[rows], labels=ids[rows]).loss

    return model, lambda: on(torch.randperm(256, generator=generator)[:32]), lambda: on(torch.arange(32))


def bert() -> Case:
    """Two layers of width 32, three classes."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    config.num_labels = 3
    return classifier(BertForSequenceClassification(config), *tokens())


def power(spectrum: Spectrum, products: int, seed: int) -> list[float]:
    """|Rayleigh quotient| after each product, from a random vector."""
    size = sum(p.numel() for p in spectrum.layout.parameters)
    v = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    found = []
    for _ in range(products):
        v = v / v.norm()
        w = spectrum.apply(v)
        found.append(abs(float(v @ w)))
        v = w
    return found


def trackers_of(optimizer: optim.Optimizer, most: int) -> dict[int, SpectralTracker]:
    """A tracker for each number of products up to `most`."""
    return {m: SpectralTracker(optimizer, products=m) for m in range(1, most + 1)}


def measure(tracker: SpectralTracker, loss: Callable[[], Tensor], products: int) -> float:
    """One estimate of the top eigenvalue: warm with these products, or the first with the usual ten."""
    with tracker.open(loss, grads="probe") as tracked:
        return tracked.estimate(products if tracker.is_warm else FIRST).r


def errors(case: Case, measurements: int) -> dict[str, list[list[float]]]:
    """Relative errors by method, a row a measurement, by number of products."""
    model, training, probe = case
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    unit = optim.SGD(model.parameters(), lr=1.0)  # r of this is the plain Hessian's end
    trackers = trackers_of(unit, MOST["lanczos"])
    seen: dict[str, list[list[float]]] = {"lanczos": [], "power": []}
    for turn in range(measurements + 1):
        for _ in range(BETWEEN if turn else 100):
            optimizer.zero_grad()
            training().backward()
            optimizer.step()
        with opened(unit, probe, grads="probe") as spectrum:
            truth = spectrum.estimate(products=50).r
            cold = power(spectrum, MOST["power"], seed=turn)
        warm = [measure(tracker, probe, m) for m, tracker in trackers.items()]
        if turn:  # the first is a tracker's cold start
            seen["lanczos"].append([abs(r / truth - 1) for r in warm])
            seen["power"].append([abs(value / truth - 1) for value in cold])
    return seen


def first_within(medians: list[float], bound: float) -> float:
    """Fewest products with a median error within the bound; infinity where none is."""
    return next((i + 1 for i, error in enumerate(medians) if error <= bound), float("inf"))


def main() -> None:
    """Print one line a network and bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measurements", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    print(f"{'network':<10}{'error':>8}{'warm Lanczos':>14}{'cold power':>12}{'ratio':>8}")
    for build in (mlp, cnn, gpt2, bert):
        rows: dict[str, list[list[float]]] = {"lanczos": [], "power": []}
        for seed in given.seeds:
            torch.manual_seed(seed)
            for name, run in errors(build(), given.measurements).items():
                rows[name] += run
        found = {name: [statistics.median(column) for column in zip(*run)] for name, run in rows.items()}
        for bound in (0.05, 0.01, 0.001):
            ours, theirs = (first_within(found[name], bound) for name in ("lanczos", "power"))
            print(f"{build.__name__:<10}{bound:>8.1%}{ours:>14.0f}{theirs:>12.0f}{ours / theirs:>8.2f}", flush=True)


if __name__ == "__main__":
    main()

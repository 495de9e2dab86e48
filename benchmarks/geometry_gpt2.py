"""A whole measurement of a GPT-2's neuron groups against its training steps, side by side on the same processor.

    python benchmarks/geometry_gpt2.py [--layers 12] [--threads 1] [--device cpu]

The target is a measurement (points, gain, distances, H0, window ratios, twins) in less than three steps at batch 8 x 128.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from topoopt.geometry import compare, degeneracy, distances, ratios
from topoopt.homology import spanning_tree
from topoopt.neurons import NeuronGroup, discover


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Median wall time."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def measure(before: Tensor, after: Tensor) -> None:
    """What one measurement does with one group."""
    compare(before, after)
    d = distances(after)
    spanning_tree(d)
    degeneracy(after, d)
    ratios(before, after, distances=d)  # of the window since the last measurement
    ratios(before, after, distances=d)  # and since the first


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--layers", type=int, default=12)
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--device", default="cpu")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=options.layers)).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(0, 50257, (8, 128), device=options.device)

    def step() -> None:
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()

    groups: list[NeuronGroup] = list(discover(model, input_ids=tokens[:1, :8], labels=tokens[:1, :8]))
    step()
    before = {group.name: group.points(model).clone() for group in groups}
    of_step = seconds(step)
    print(f"{'group':<44}{'n':>7}{'d':>9}{'seconds':>10}")
    total = 0.0
    for group in groups:
        of_points = seconds(lambda: group.points(model), 1)  # noqa: B023
        after = group.points(model)
        of_group = of_points + seconds(lambda: measure(before[group.name], after), 1)  # noqa: B023
        total += of_group
        print(f"{group.name:<44}{group.n:>7}{after.shape[1]:>9}{of_group:>10.3f}")
    print(
        f"a measurement {total:.2f} s, a training step {of_step:.2f} s: {total / of_step:.2f} steps (target: below 3)"
    )


if __name__ == "__main__":
    main()

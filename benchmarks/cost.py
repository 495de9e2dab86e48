"""What measuring costs at the default budget: one training whose stretches run with and without topoopt in turn.

The demo's network on digits, and a small GPT-2 on text. Both kinds of stretch are of the same process, the same weights and
the same place in memory, which alone make whole runs differ by one or two per cent; the wrapper's clock stands still while
its hooks are off, so that its budget is that of the stretches in which they are on. Discovery is left out, homology is not.

    python benchmarks/cost.py [--seconds 60] [--repeats 3]
"""

from __future__ import annotations

import argparse
import inspect
import random
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from topoopt import TopoOptimizer
from topoopt.demo import digits, mlp

Setup = Callable[[], tuple[nn.Module, Callable[[], Tensor], Callable[[], None]]]


def demo() -> tuple[nn.Module, Callable[[], Tensor], Callable[[], None]]:
    (x, y), _ = digits(0)
    torch.manual_seed(0)
    model, batch = mlp(64), torch.arange(256)

    def shuffle() -> None:
        nonlocal batch
        batch = torch.randint(len(x), (256,))

    return model, lambda: cross_entropy(model(x[batch]), y[batch]), shuffle


def gpt2() -> tuple[nn.Module, Callable[[], Tensor], Callable[[], None]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    text = torch.tensor([min(ord(c), 127) for c in inspect.getsource(argparse)])
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=128, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0,
        attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    batch = text[: 8 * 64].view(8, 64)

    def shuffle() -> None:
        nonlocal batch
        starts = torch.randint(len(text) - 64, (8,)).tolist()
        batch = torch.stack([text[i : i + 64] for i in starts])

    return model, lambda: model(input_ids=batch, labels=batch).loss, shuffle


MODELS: dict[str, tuple[str, int, Setup]] = {"mlp": ("demo's MLP", 1000, demo), "gpt2": ("GPT-2, 2 x 64", 50, gpt2)}
"""Title, steps of a stretch, and what is trained."""


class Clock:
    """Seconds of the stretches in which it ran."""

    def __init__(self) -> None:
        self._gone, self._since = 0.0, time.perf_counter()

    def __call__(self) -> float:
        return self._gone + time.perf_counter() - self._since

    def stop(self) -> None:
        self._gone = self()

    def go_on(self) -> None:
        self._since = time.perf_counter()


@dataclass
class Run:
    """Seconds of both kinds of stretch, and the wrapper's own account."""

    bare: float
    measured: float
    steps: int
    share: float
    count: int


def alternate(setup: Setup, length: int, seconds: float) -> Run:
    """Train for so long, half of the time bare; which kind comes first in each pair of stretches is drawn."""
    model, loss, shuffle = setup()
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def stretch(steps: int) -> float:
        began = time.perf_counter()
        for _ in range(steps):
            shuffle()
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
        return time.perf_counter() - began

    stretch(length)
    topo, clock = TopoOptimizer(optimizer, model, loss=loss), Clock()
    topo._session.pacing._clock = clock
    kinds = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    on = {kind: getattr(optimizer, kind) for kind in kinds}
    spent, steps, order = {"bare": 0.0, "measured": 0.0}, 0, random.Random(0)
    while sum(spent.values()) < seconds:
        for kind in order.sample(list(spent), 2):
            for name, hooks in on.items():
                setattr(optimizer, name, OrderedDict() if kind == "bare" else hooks)
            if kind == "measured":
                clock.go_on()
            spent[kind] += stretch(length)
            if kind == "measured":
                clock.stop()
        steps += length
    for name, hooks in on.items():
        setattr(optimizer, name, hooks)
    account = topo.topo_state_dict()["pacing"]
    measured = spent["measured"] - topo.setup_seconds
    topo.detach()
    return Run(spent["bare"], measured, steps, account["spent"] / account["wall"], int(account["taken"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of a whole training, about")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(MODELS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | steps | measurements | share by its own account | time against bare |\n|---|--:|--:|--:|--:|")
    for name in options.only:
        title, length, setup = MODELS[name]
        runs = [alternate(setup, length, options.seconds) for _ in range(options.repeats)]
        ratios = sorted(run.measured / run.bare for run in runs)
        cells = (
            title,
            f"{median(run.steps for run in runs):g}",
            f"{median(run.count for run in runs):g}",
            f"{median(run.share for run in runs):.2%}",
            f"{median(ratios):.4f} ({ratios[0]:.4f} to {ratios[-1]:.4f})",
        )
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

"""What measuring costs at the default budget: wall time of whole runs with and without a `TopoOptimizer`, in pairs.

The demo's network on digits, and a small GPT-2 on text, each trained bare and wrapped in turn, several times; the median of
the ratios and of the share by the wrapper's own account. Homology is on, its results are taken when they arrive.

    python benchmarks/cost.py [--pairs 5] [--seconds 20]
"""

from __future__ import annotations

import argparse
import inspect
import time
from collections.abc import Callable
from statistics import median

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


def train(setup: Setup, steps: int, wrapped: bool) -> tuple[float, float, int]:
    """Seconds of the loop without discovery, the share that measuring took by its own account, and how many were taken."""
    model, loss, shuffle = setup()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    topo = TopoOptimizer(optimizer, model, loss=loss) if wrapped else None
    began = time.perf_counter()
    for _ in range(steps):
        shuffle()
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    seconds = time.perf_counter() - began
    if topo is None:
        return seconds, 0.0, 0
    account = topo.topo_state_dict()["pacing"]
    topo.detach()
    return seconds - topo.setup_seconds, account["spent"] / account["wall"], int(account["taken"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of one run, about")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | steps | measurements | share by its own account | wall time against bare |\n|---|---|---|---|---|")
    for name, setup in (("demo's MLP", demo), ("GPT-2, 2 x 64", gpt2)):
        steps = max(100, int(options.seconds / train(setup, 100, False)[0] * 100))
        ratios, shares, counts = [], [], []
        for _ in range(options.pairs):
            bare = train(setup, steps, False)[0]
            seconds, share, count = train(setup, steps, True)
            ratios.append(seconds / bare)
            shares.append(share)
            counts.append(count)
        cells = (name, steps, f"{median(counts):g}", f"{median(shares):.2%}", f"{median(ratios):.4f}")
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()

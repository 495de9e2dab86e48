"""What measuring costs at the default budget: whole runs with and without a `TopoOptimizer`, side by side.

The demo's network on digits, and a small GPT-2 on text. Both runs of a pair go on at the same time, each on a core of its own
with all that it starts (homology's process included), and change places in the next pair: a machine whose speed drifts is
the same for both. Printed are medians: of the share by the wrapper's own account, of wall time, and of CPU time.

    python benchmarks/cost.py [--pairs 6] [--seconds 40]
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
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


MODELS: dict[str, tuple[str, Setup]] = {"mlp": ("demo's MLP", demo), "gpt2": ("GPT-2, 2 x 64", gpt2)}


def train(setup: Setup, steps: int, wrapped: bool) -> dict[str, float]:
    """Seconds of the loop without discovery, and the wrapper's own account of what measuring took."""
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
        return {"wall": seconds, "setup": 0.0, "share": 0.0, "count": 0}
    account = topo.topo_state_dict()["pacing"]
    topo.detach()
    return {
        "wall": seconds - topo.setup_seconds,
        "setup": topo.setup_seconds,
        "share": account["spent"] / account["wall"],
        "count": account["taken"],
    }


def child(name: str, steps: int, wrapped: bool) -> None:
    """Print one run's figures; CPU time is that of its loop and of every process it started, discovery left out."""
    torch.set_num_threads(1)
    train(MODELS[name][1], 20, False)
    before = resource.getrusage(resource.RUSAGE_SELF)
    found = train(MODELS[name][1], steps, wrapped)
    after, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({**found, "cpu": own + others.ru_utime + others.ru_stime - found["setup"]}))


def start(name: str, steps: int, wrapped: bool, core: int) -> subprocess.Popen[str]:
    """Start a run on one core."""
    command = [sys.executable, __file__, "--child", name, "--steps", str(steps), *(["--wrapped"] if wrapped else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    os.sched_setaffinity(process.pid, [core])
    return process


def finish(process: subprocess.Popen[str]) -> dict[str, float]:
    """Wait for a run and read its figures."""
    text, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a run failed with status {process.returncode}")
    return json.loads(text.splitlines()[-1])


def compare(name: str, steps: int, pairs: int) -> dict[str, Any]:
    """Ratios of the runs with over those without, each the geometric mean of two pairs that changed places."""
    one, other = sorted(os.sched_getaffinity(0))[:2]
    seen: list[dict[str, float]] = []
    logs: dict[str, list[float]] = {"wall": [], "cpu": []}
    for turn in range(pairs):
        first, second = (one, other) if turn % 2 == 0 else (other, one)
        bare, measured = map(finish, (start(name, steps, False, first), start(name, steps, True, second)))
        seen.append(measured)
        for key, rows in logs.items():
            rows.append(math.log(measured[key] / bare[key]))
    swapped = {key: [math.exp((a + b) / 2) for a, b in zip(rows[::2], rows[1::2])] for key, rows in logs.items()}
    return {
        "count": median(run["count"] for run in seen),
        "share": median(run["share"] for run in seen),
        **{key: median(ratios) for key, ratios in swapped.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=6, help="an even number")
    parser.add_argument("--seconds", type=float, default=40.0, help="length of one run, about")
    parser.add_argument("--only", nargs="+", default=list(MODELS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--wrapped", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child, options.steps, options.wrapped)
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("two runs side by side need two cores")
    torch.set_num_threads(1)
    print(
        "| model | steps | measurements | share by its own account | wall time against bare | CPU time against bare |"
    )
    print("|---|--:|--:|--:|--:|--:|")
    for name in options.only:
        title, setup = MODELS[name]
        steps = max(100, int(options.seconds / train(setup, 200, False)["wall"] * 200))
        found = compare(name, steps, options.pairs)
        cells = (
            title,
            steps,
            f"{found['count']:g}",
            f"{found['share']:.2%}",
            f"{found['wall']:.4f}",
            f"{found['cpu']:.4f}",
        )
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    return None


if __name__ == "__main__":
    main()

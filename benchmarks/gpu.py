"""What a reading and a measurement cost on an accelerator, in steps of the training: GPT-2 of 124 and of 350 million parameters.

Each model is trained on random tokens without and with topoopt; steps are timed with the device's queue emptied before and
after each. Beside it the geometry of one large group against the matrix product X X^T that it is made of, and what H0 from points
takes. Whatever device torch.accelerator finds is used; on a CPU, and with `--tiny`, everything is small.
The numbers are printed and written, with the device's name, to benchmarks/results/gpu-NAME.json.

    python benchmarks/gpu.py [--tiny] [--bf16] [--steps 60] [--batch 8] [--length 512]
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import platform
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from topoopt import TopoOptimizer
from topoopt.geometry import compare, distances
from topoopt.homology import spanning_tree

RESULTS = Path(__file__).parent / "results"
MODELS: dict[str, dict[str, Any]] = {
    "GPT-2 124M": {"n_embd": 768, "n_layer": 12, "n_head": 12},
    "GPT-2 350M": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
}
TINY: dict[str, dict[str, Any]] = {
    "GPT-2 tiny": {"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 256, "n_positions": 64}
}
CLOUD, TINY_CLOUD = (14336, 8192), (512, 256)
"""Neurons and parameters each of the group: an 8B Llama's gated units."""
EVERY = 20


def place() -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else torch.device(found.type, torch.accelerator.current_device_index())


def named(device: torch.device) -> str:
    module = torch.get_device_module(device)
    return module.get_device_name(device) if hasattr(module, "get_device_name") else platform.processor() or device.type


def emptied(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def peak(device: torch.device, *, restart: bool = False) -> float:
    """GiB at most: of the device since the last restart, of the process on a CPU."""
    module = torch.get_device_module(device)
    if not hasattr(module, "max_memory_allocated"):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if restart:
        module.reset_peak_memory_stats(device)
    return module.max_memory_allocated(device) / 2**30


def seconds(function: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Median time of a call, the queue included; the first call is not counted."""
    times = []
    for _ in range(repeats + 1):
        emptied(device)
        began = time.perf_counter()
        function()
        emptied(device)
        times.append(time.perf_counter() - began)
    return median(times[1:])


def trained(
    config: dict[str, Any], device: torch.device, options: argparse.Namespace, *, measured: bool
) -> dict[str, Any]:
    """Median seconds of each kind of step, and the peak memory in GiB."""
    torch.manual_seed(0)
    model: Any = GPT2LMHeadModel(GPT2Config(**config, bos_token_id=0, eos_token_id=0))
    model.to(device)
    optimizer: Any = torch.optim.AdamW(model.parameters(), 1e-4, fused=device.type != "cpu")
    if measured:
        optimizer = TopoOptimizer(optimizer, model, every=EVERY, budget=None, homology=1)
    length = min(options.length, model.config.n_positions)
    kinds: dict[str, list[float]] = {"step": [], "reading": [], "measurement": []}
    peak(device, restart=True)
    for _ in range(options.steps):
        ids = torch.randint(model.config.vocab_size, (options.batch, length), device=device)
        known = len(optimizer.readings) if measured else 0
        emptied(device)
        began = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16) if options.bf16 else contextlib.nullcontext():
            loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        emptied(device)
        took = time.perf_counter() - began
        read = measured and len(optimizer.readings) > known
        kinds["measurement" if measured and optimizer.measured else "reading" if read else "step"].append(took)
    # The first of each kind makes graphs and finds the neurons.
    found = {kind: median(times[1:]) for kind, times in kinds.items() if len(times) > 1}
    first = {f"first {kind}": times[0] for kind, times in kinds.items() if times}
    if measured:
        reasons = sorted({r.reason for r in optimizer.readings if r.reason})
        first |= {"setup": optimizer.last.cost.setup_seconds, "groups": len(optimizer.last.groups), "unread": reasons}
        optimizer.detach()
    return {**found, **first, "peak": peak(device), "parameters": sum(p.numel() for p in model.parameters())}


def whole_model(name: str, config: dict[str, Any], device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    bare = trained(config, device, options, measured=False)
    ours = trained(config, device, options, measured=True)
    step = bare["step"]
    print(
        f"\n### {name}: {bare['parameters'] / 1e6:.0f}M parameters, {ours['groups']} groups; a step takes {step:.4f} s\n"
    )
    print("| | seconds | in steps beside the step itself |\n|---|---|---|")
    for kind in ("step", "reading", "measurement", "first measurement"):
        if kind in ours:
            print(
                f"| {'ordinary step' if kind == 'step' else kind} | {ours[kind]:.4f} | {ours[kind] / step - 1:.2f} |",
                flush=True,
            )
    print(f"\npeak memory {bare['peak']:.2f} GiB without, {ours['peak']:.2f} with {'; '.join(ours['unread'])}")
    return {"bare": bare, "measured": ours}


def geometry(n: int, d: int, device: torch.device) -> dict[str, Any]:
    """Distances, compare and H0 of one cloud beside the matrix product."""
    x = torch.randn(n, d, device=device)
    moved = x + 1e-3 * torch.randn_like(x)
    matrix = distances(x)
    calls: dict[str, Callable[[], object]] = {
        "X X^T": lambda: x @ x.T,
        "distances": lambda: distances(x),
        "H0 from distances": lambda: spanning_tree(matrix),
        "H0 from points": lambda: spanning_tree(distances(x)),
        "compare": lambda: compare(x, moved),
    }
    peak(device, restart=True)
    found: dict[str, Any] = {name: seconds(call, device) for name, call in calls.items()}
    print(f"\n### One group of {n} neurons of {d} parameters\n\n| | seconds | in matrix products |\n|---|---|---|")
    for name in calls:
        print(f"| {name} | {found[name]:.4f} | {found[name] / found['X X^T']:.2f} |")
    return {**found, "n": n, "d": d, "peak": peak(device)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a small model and a small group")
    parser.add_argument("--bf16", action="store_true", help="the forward under autocast")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args()
    device = place()
    if device.type == "cpu" and not options.tiny:
        print("no accelerator here: the small model and the small group are taken")
        options.tiny = True
    print(f"{named(device)}, torch {torch.__version__}")
    found: dict[str, Any] = {
        "device": named(device),
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "options": {key: value for key, value in vars(options).items() if key != "out"},
    }
    models = TINY if options.tiny else MODELS
    found["models"] = {name: whole_model(name, config, device, options) for name, config in models.items()}
    found["geometry"] = geometry(*(TINY_CLOUD if options.tiny else CLOUD), device)
    options.out.mkdir(parents=True, exist_ok=True)
    kind = "-tiny" if options.tiny else ""
    file = options.out / f"gpu-{re.sub(r'[^a-z0-9]+', '-', named(device).lower()).strip('-')}{kind}.json"
    file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {file}")


if __name__ == "__main__":
    main()

"""What a reading and a measurement cost on an accelerator, in steps of the training: GPT-2 of 124M and 350M, ResNet-50.

Each model, built by its configuration, is trained on random data without and with topoopt; steps are timed with the device's
queue emptied before and after each. Beside it the geometry of one large group against the matrix product X X^T that it is made of,
and against the roofline: the least seconds that its operations and its bytes could take at the rates of a product and of a
copy, measured in the same run. Whatever device torch.accelerator finds is used; on a CPU, and with `--tiny`, everything is
small. The numbers are printed and written, with the device's name, to benchmarks/results/gpu-NAME.json.

    python benchmarks/gpu.py [--tiny] [--bf16] [--steps 60] [--batch 8] [--length 512]
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
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
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, ResNetConfig, ResNetForImageClassification

from topoopt import TopoOptimizer
from topoopt.geometry import Cloud, compare, distances
from topoopt.homology import spanning_tree

RESULTS = Path(__file__).parent / "results"
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2 124M": ("gpt2", {"n_embd": 768, "n_layer": 12, "n_head": 12}),
    "GPT-2 350M": ("gpt2", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "ResNet-50": ("resnet", {"num_labels": 1000}),
}
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2 tiny": ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 256, "n_positions": 64}),
    "ResNet tiny": ("resnet", {"num_labels": 10, "embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]}),
}
PIXELS, TINY_PIXELS = 224, 32
CLOUD, TINY_CLOUD = (14336, 8192), (512, 256)
"""Neurons and parameters each of the group: an 8B Llama's gated units."""
EVERY = 20
Task = tuple[nn.Module, Callable[[], Tensor]]


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


def gpt2(config: dict[str, Any], device: torch.device, options: argparse.Namespace) -> Task:
    """A language model, and its loss on fresh random tokens."""
    model: Any = GPT2LMHeadModel(GPT2Config(**config, bos_token_id=0, eos_token_id=0))
    model.to(device)
    length = min(options.length, model.config.n_positions)
    shape = options.batch, length

    def loss() -> Tensor:
        ids = torch.randint(model.config.vocab_size, shape, device=device)
        return model(ids, labels=ids).loss

    return model, loss


def resnet(config: dict[str, Any], device: torch.device, options: argparse.Namespace) -> Task:
    """A classifier of images, and its loss on fresh random ones. The configuration's defaults are ResNet-50's."""
    model: Any = ResNetForImageClassification(ResNetConfig(**config))
    model.to(device)
    pixels = TINY_PIXELS if options.tiny else PIXELS

    def loss() -> Tensor:
        images = torch.randn(options.batch, 3, pixels, pixels, device=device)
        labels = torch.randint(model.config.num_labels, (options.batch,), device=device)
        return cross_entropy(model(images).logits.float(), labels)

    return model, loss


TASKS: dict[str, Callable[..., Task]] = {"gpt2": gpt2, "resnet": resnet}


def trained(
    task: tuple[str, dict[str, Any]], device: torch.device, options: argparse.Namespace, *, measured: bool
) -> dict[str, Any]:
    """Median seconds of each kind of step, and the peak memory in GiB."""
    torch.manual_seed(0)
    kind, config = task
    model, loss_of = TASKS[kind](config, device, options)
    optimizer: Any = torch.optim.AdamW(model.parameters(), 1e-4, fused=device.type != "cpu")
    if measured:
        optimizer = TopoOptimizer(optimizer, model, every=EVERY, budget=None, homology=1)
    kinds: dict[str, list[float]] = {"step": [], "reading": [], "measurement": []}
    peak(device, restart=True)
    for _ in range(options.steps):
        known = len(optimizer.readings) if measured else 0
        emptied(device)
        began = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16) if options.bf16 else contextlib.nullcontext():
            loss = loss_of()
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
    return {**found, **first, "peak GiB": peak(device), "parameters": sum(p.numel() for p in model.parameters())}


def whole_model(
    name: str, task: tuple[str, dict[str, Any]], device: torch.device, options: argparse.Namespace
) -> dict[str, Any]:
    bare = trained(task, device, options, measured=False)
    ours = trained(task, device, options, measured=True)
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
    print(f"\npeak memory {bare['peak GiB']:.2f} GiB without, {ours['peak GiB']:.2f} with {'; '.join(ours['unread'])}")
    return {"bare": bare, "measured": ours}


def geometry(n: int, d: int, device: torch.device) -> dict[str, Any]:
    """Distances, compare and H0 of one cloud beside the matrix product and the roofline."""
    x = torch.randn(n, d, device=device)
    moved = x + 1e-3 * torch.randn_like(x)
    matrix = distances(x)
    product, square = 2.0 * n * n * d, float(matrix.nbytes)
    calls: dict[
        str, tuple[Callable[[], object], float, float]
    ] = {  # with the operations and bytes that it cannot do without
        "X X^T": (lambda: x @ x.T, product, square),
        "distances": (lambda: distances(x), product / 2, square),
        "H0 from distances": (lambda: spanning_tree(matrix), 0.0, square),
        "H0 from points": (lambda: Cloud(x).tree, product / 2, 0.0),
        "compare": (lambda: compare(x, moved), 3 * product / 2, 0.0),
    }
    peak(device, restart=True)
    found = {name: seconds(call, device) for name, (call, _, _) in calls.items()}
    most = peak(device)
    copied = torch.empty_like(matrix)
    rates = {"flops": product / found["X X^T"], "bandwidth": 2 * square / seconds(lambda: copied.copy_(matrix), device)}
    print(
        f"\n### One group of {n} neurons of {d} parameters; {rates['flops']:.3g} flops, {rates['bandwidth']:.3g} bytes/s\n"
    )
    print("| | seconds | in matrix products | times the roofline |\n|---|---|---|---|")
    rows = []
    for name, (_, operations, moved_bytes) in calls.items():
        roof = max(operations / rates["flops"], moved_bytes / rates["bandwidth"])
        row = {"what": name, "seconds": found[name], "products": found[name] / found["X X^T"], "roofline": roof}
        rows.append(row | {"times the roofline": found[name] / roof})
        print(f"| {name} | {found[name]:.4f} | {row['products']:.2f} | {found[name] / roof:.2f} |")
    return {"n": n, "d": d, "peak GiB": most, **rates, "rows": rows}


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
    if options.tiny:
        options.batch, options.length = min(options.batch, 2), min(options.length, 32)
    print(f"{named(device)}, torch {torch.__version__}")
    models = TINY if options.tiny else MODELS
    found: dict[str, Any] = {
        "machine": named(device),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "topoopt")},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "options": {key: value for key, value in vars(options).items() if key != "out"},
        "rows": [{"model": name, **whole_model(name, task, device, options)} for name, task in models.items()],
        "geometry": geometry(*(TINY_CLOUD if options.tiny else CLOUD), device),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    kind = "-tiny" if options.tiny else ""
    file = options.out / f"gpu-{re.sub(r'[^a-z0-9]+', '-', named(device).lower()).strip('-')}{kind}.json"
    file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {file}")


if __name__ == "__main__":
    main()

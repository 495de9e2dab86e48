"""How the cost grows: a reading, a measurement and discovery over neurons, width, depth and ranks, and what fits into 24 GiB.

Each sweep trains small networks in a process of its own on one thread and takes processor seconds of its steps by kind; the
exponent is that of a least-squares line through the logarithms, with its standard error, beside what the algorithm's count of
operations says. `limits` fits the peak bytes of a measured group (a n^2 + b n d + c) and of a measured model (a P + c, P
parameters) at sizes that take seconds, solves for 24 GiB, and then runs one group as near to that as the machine has memory
free. `step` trains GPT-2 medium (355 million parameters, random weights) with topoopt's defaults and `every=1`, bare and
measured; without readings where memory would not do. Everything is written to benchmarks/results/scale.json and drawn in scale.png.

    python benchmarks/scale.py [--only neurons,width,depth,ranks,limits,step] [--tiny] [--out benchmarks/results]
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import cross_entropy

import topoopt
from topoopt import TopoOptimizer
from topoopt.errors import MeasurementError
from topoopt.geometry import Cloud, collect, measure

RESULTS = Path(__file__).parent / "results"
LIMIT = 24 * 2**30
SWEEPS: dict[str, tuple[int, ...]] = {
    "neurons": (256, 512, 1024, 2048, 4096),
    "width": (64, 128, 256, 512, 1024),
    "depth": (1, 2, 4, 8, 16),
    "ranks": (1, 2, 4),
}
TINY = {"neurons": (32, 64, 128), "width": (16, 32, 64), "depth": (1, 2, 3), "ranks": (1, 2)}
THEORY: dict[str, dict[str, float]] = {
    "neurons": {"reading": 1, "measurement": 2, "discovery": 1},
    "width": {"reading": 1, "measurement": 1, "discovery": 1},
    "depth": {"reading": 1, "measurement": 1, "discovery": 1},
    "ranks": {"reading": 0, "measurement": 0, "discovery": 0},
}
"""A reading is so many products with the Jacobian, each linear in the parameters; a measurement is Gram products, n^2 d;
discovery a few forwards. Of a data-parallel model every rank does all of it."""


def perceptron(n: int, width: int, depth: int) -> nn.Module:
    """`depth` groups of n neurons; the first has width + 1 + n, or where it is alone 2 width + 1, numbers a neuron."""
    layers: list[nn.Module] = [nn.Linear(width, n), nn.Tanh()]
    for _ in range(depth - 1):
        layers += [nn.Linear(n, n), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(n, width))


def shape_of(sweep: str, size: int, *, tiny: bool) -> dict[str, int]:
    base = {"n": 48, "width": 16, "depth": 1} if tiny else {"n": 512, "width": 64, "depth": 1}
    if sweep == "depth" and not tiny:
        base["n"] = 256
    if sweep == "ranks":
        return base | {} if tiny else base | {"n": 1024, "width": 256}
    return base | {{"neurons": "n"}.get(sweep, sweep): size}


# -- what is measured ---------------------------------------------------------------------------------------------------


def peak(*, restart: bool = False) -> int:
    """Largest resident bytes of this process, since its start or the last restart (Linux)."""
    if restart:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])


def bytes_sent() -> int:
    """Bytes that this process's TCP connections have delivered so far, as the kernel counts them."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not os.readlink(entry).startswith("socket:"):
                continue
        except FileNotFoundError:  # the descriptor by which the folder was read
            continue
        with socket.socket(fileno=os.dup(int(entry.name))) as one:
            if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                total += struct.unpack_from("Q", one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 120)[0]
    return total


def by_kind(
    step: Callable[[], None], optimizer: Any, wanted: int, clock: Callable[[], float], *, most: int = 400
) -> dict[str, list[dict[str, float]]]:
    """Take steps until each kind was seen so often; the first of each is left out: it fills caches and finds the neurons."""
    kinds: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(most):
        known, setup, sent = len(optimizer.readings), optimizer.setup_seconds, bytes_sent()
        peak(restart=True)
        began = clock()
        step()
        took = clock() - began - (optimizer.setup_seconds - setup)
        kind = "measurement" if optimizer.measured else "reading" if len(optimizer.readings) > known else "step"
        kinds[kind].append({"seconds": took, "peak": peak(), "sent": bytes_sent() - sent})
        if all(len(kinds[kind]) > wanted for kind in ("step", "reading", "measurement")):
            break
    return {kind: seen[1:] for kind, seen in kinds.items() if len(seen) > 1}


def costs(kinds: dict[str, list[dict[str, float]]], key: str = "seconds") -> dict[str, float]:
    """What a step, a reading beside its step, and the neurons beside their reading cost: medians."""
    of = {kind: median(one[key] for one in seen) for kind, seen in kinds.items()}
    return {
        "step": of["step"],
        "reading": max(0.0, of["reading"] - of["step"]),
        "measurement": max(0.0, of["measurement"] - of["reading"]),
    }


def trained(n: int, width: int, depth: int, *, ranks: int = 1) -> dict[str, float]:
    """One size: processor seconds of each kind of step, of discovery, and bytes sent."""
    torch.manual_seed(0)
    module = perceptron(n, width, depth)
    model = nn.parallel.DistributedDataParallel(module) if ranks > 1 else module
    plain = torch.optim.AdamW(model.parameters(), 1e-4)
    optimizer: Any = TopoOptimizer(plain, model, every=20, budget=None, homology=0)
    generator = torch.Generator().manual_seed(dist.get_rank() if ranks > 1 else 0)

    def step() -> None:
        x = torch.randn(64, width, generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(x), x.argmax(1)).backward()
        optimizer.step()

    kinds = by_kind(step, optimizer, 3, time.process_time)
    found = costs(kinds) | {"discovery": optimizer.setup_seconds}
    sent = costs(kinds, "sent")
    optimizer.detach()
    parameters = sum(p.numel() for p in module.parameters())
    return found | {"parameters": parameters, **{f"sent by a {kind}": sent[kind] for kind in ("step", "reading")}}


def sweep(name: str, *, tiny: bool) -> list[dict[str, Any]]:
    """All sizes of one sweep, in this process; ranks in processes of their own."""
    rows = []
    for size in (TINY if tiny else SWEEPS)[name]:
        shape = shape_of(name, size, tiny=tiny)
        found = trained(**shape) if name != "ranks" or size == 1 else at_ranks(size, shape)
        rows.append({"sweep": name, "size": size, **shape, **found})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def at_ranks(ranks: int, shape: dict[str, int]) -> dict[str, float]:
    """The first rank's figures of a data-parallel run over gloo."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        spawn(_rank, (ranks, shape, folder, str(out)), nprocs=ranks)
        return json.loads(out.read_text(encoding="utf-8"))


def _rank(rank: int, ranks: int, shape: dict[str, int], folder: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    found = trained(**shape, ranks=ranks)
    if rank == 0:
        Path(out).write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


# -- what fits ----------------------------------------------------------------------------------------------------------


def group_peak(n: int, d: int) -> dict[str, Any]:
    """Bytes that one group of n neurons of d parameters adds to the process, its two clouds among them, and seconds."""
    warm = torch.randn(64, 8)
    collect([measure(warm, warm + 1e-3)])
    before = peak(restart=True)
    began = time.perf_counter()
    x = torch.randn(n, d)
    y = torch.randn(n, d).mul_(1e-3).add_(x)
    drawn = time.perf_counter()
    (found,) = collect([measure(Cloud(x), Cloud(y), keep_distances=True)])
    seconds = time.perf_counter() - drawn
    if isinstance(found, MeasurementError):
        raise found
    return {"n": n, "d": d, "bytes": peak() - before, "seconds": seconds, "drawn": drawn - began,
            "gain": found.distortion.gain}  # fmt: skip


def gpt2(**config: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(**config, bos_token_id=0, eos_token_id=0))


def model_step(
    config: dict[str, int], length: int, *, measured: bool, estimator: Any = "auto", wanted: int = 1
) -> dict[str, Any]:
    """Seconds and peak bytes of the kinds of steps of a GPT-2 on one sequence; the defaults, but for `every` and the budget."""
    torch.manual_seed(0)
    model = gpt2(**config)
    plain = torch.optim.AdamW(model.parameters(), 1e-4)
    optimizer: Any = TopoOptimizer(plain, model, every=1, budget=None, estimator=estimator) if measured else plain
    ids = torch.randint(0, model.config.vocab_size, (1, length))
    seen: list[dict[str, Any]] = []
    for _ in range(40 if measured else 1 + wanted):
        known = len(optimizer.readings) if measured else 0
        peak(restart=True)
        began, used = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        row = {"seconds": time.perf_counter() - began, "processor": time.process_time() - used, "peak": peak()}
        read = measured and len(optimizer.readings) > known and optimizer.readings[-1].r > 0
        row["kind"] = ("measured" if optimizer.measured else "plain") if measured else "bare"
        row |= {"read": read, "setup": optimizer.setup_seconds if measured else 0.0}
        seen.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        if sum(row["read"] if estimator == "auto" else row["kind"] == "measured" for row in seen) > wanted:
            break
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters()), "steps": seen}
    if measured:
        last = optimizer.last
        found |= {
            "groups": len(last.groups), "neurons": sum(g.n for g in last.groups.values()), "r": last.spectral.r,
            "products": optimizer.readings[-1].products, "reading_seconds": optimizer.readings[-1].seconds,
            "measurement_seconds": last.cost.seconds, "setup_seconds": optimizer.setup_seconds,
            "skipped": dict(last.skipped), "points": sum(g.n * g.d for g in last.groups.values()),
        }  # fmt: skip
        optimizer.detach()
    return found


def limits(*, tiny: bool, near: float) -> dict[str, Any]:
    """Fits of the peak bytes, what they say of 24 GiB, and one group near it."""
    sizes = (
        ((128, 32), (256, 32), (256, 128)) if tiny else ((1024, 64), (2048, 64), (4096, 64), (1024, 4096), (512, 8192))
    )
    rows = [child("group", n=n, d=d) for n, d in sizes]
    counts = np.array([[row["n"] ** 2, row["n"] * row["d"], 1] for row in rows], dtype=float)
    a, b, c = (float(x) for x in np.linalg.lstsq(counts, np.array([row["bytes"] for row in rows]), rcond=None)[0])
    largest = {f"d = {d}": _neurons(a, b, c, d, LIMIT) for d in (257, 2049, 12288)}
    found: dict[str, Any] = {
        "rows": rows,
        "bytes a pair": a,
        "bytes an entry": b,
        "bytes at all": c,
        "largest n": largest,
    }
    room = min(LIMIT, near * 2**30, 0.8 * available())
    n = 512 if tiny else int(_neurons(a, b, c, 64, room))
    real = child("group", n=n, d=64)
    found["near"] = real | {"predicted": a * n * n + b * n * 64 + c, "room": room}
    return found


def _neurons(a: float, b: float, c: float, d: int, room: float) -> int:
    """The largest n with a n^2 + b n d + c <= room."""
    return int((-b * d + math.sqrt((b * d) ** 2 + 4 * a * (room - c))) / (2 * a))


def available() -> float:
    """Bytes of memory that the machine could give now."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return 1024.0 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])


MODELS = (
    {"n_embd": 512, "n_layer": 2, "n_head": 8, "vocab_size": 8192},
    {"n_embd": 512, "n_layer": 8, "n_head": 8, "vocab_size": 8192},
    {"n_embd": 1024, "n_layer": 24, "n_head": 16},
)
"""The last is GPT-2 medium, 355 million parameters."""
TOY = tuple({"n_embd": 32, "n_layer": depth, "n_head": 2, "vocab_size": 64} for depth in (1, 3, 4))


def model_row(config: dict[str, Any], length: int, estimator: str) -> dict[str, Any]:
    """A model bare and measured, each in a process of its own."""
    bare = child("model", config=config, length=length, measured=False)
    ours = child("model", config=config, length=length, measured=True, estimator=estimator)
    full = [s for s in ours["steps"] if s["kind"] == "measured"][-1]
    row = {
        "config": config, "parameters": bare["parameters"], "length": length, "estimator": estimator,
        "bare seconds": median(s["seconds"] for s in bare["steps"][1:]), "bare peak": max(s["peak"] for s in bare["steps"]),
        "first step seconds": ours["steps"][0]["seconds"], "discovery seconds": ours["setup_seconds"],
        "measured step seconds": full["seconds"], "reading seconds": ours["reading_seconds"],
        "measurement seconds": ours["measurement_seconds"] - ours["reading_seconds"],
        "first peak": ours["steps"][0]["peak"], "measured peak": full["peak"],
        **{key: ours[key] for key in ("products", "groups", "neurons", "points", "r")},
    }  # fmt: skip
    print(json.dumps(row), flush=True)
    return row


def whole_step(*, tiny: bool, length: int) -> dict[str, Any]:
    """Measured steps of growing models end to end; how peak memory grows with the parameters, solved for 24 GiB.

    A model whose peak, as the smaller ones predict it, is more than there is memory is not run with readings but without
    (`estimator="pairwise"`), and the prediction is in its row.
    """
    *small, large = TOY if tiny else MODELS
    rows = [model_row(config, length, "auto") for config in small]
    fits = {kind: _line(rows, kind) for kind in ("bare peak", "measured peak", "first peak")}
    parameters = child("count", large)
    most = max(fits[kind]["bytes a parameter"] * parameters + fits[kind]["bytes at all"] for kind in fits)
    room = available()
    estimators = ["auto", "pairwise"] if most < room else ["pairwise"]
    rows += [model_row(large, length, estimator) for estimator in estimators]
    rows[-1] |= {"predicted peak of a reading": most, "room": room}
    return {"rows": rows, **{kind: _line([r for r in rows if r["estimator"] == "auto"], kind) for kind in fits}}


def _line(rows: Sequence[dict[str, Any]], kind: str) -> dict[str, float]:
    """Bytes a parameter and at all, by least squares, and the parameters that fill 24 GiB."""
    slope, base = (float(v) for v in np.polyfit([r["parameters"] for r in rows], [r[kind] for r in rows], 1))
    return {"bytes a parameter": slope, "bytes at all": base, "largest parameters": (LIMIT - base) / slope}


def count(config: dict[str, Any]) -> int:
    """Parameters, without memory for them."""
    with torch.device("meta"):
        return sum(p.numel() for p in gpt2(**config).parameters())


# -- the whole ----------------------------------------------------------------------------------------------------------

JOBS: dict[str, Callable[..., Any]] = {"sweep": sweep, "group": group_peak, "model": model_step, "count": count}


def child(job: str, *positional: Any, **arguments: Any) -> Any:
    """A job in a process of its own, on one thread: memory and caches are its own."""
    given = json.dumps([job, positional, arguments])
    command = [sys.executable, __file__, "--job", given]
    out = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return json.loads(out.stdout.splitlines()[-1])


def exponent(sizes: Iterable[float], seconds: Iterable[float]) -> tuple[float, float]:
    """Slope of the line through the logarithms, and its standard error (NaN for fewer than three sizes)."""
    x, y = np.log(np.array(list(sizes), dtype=float)), np.log(np.array(list(seconds), dtype=float))
    slope, base = np.polyfit(x, y, 1)
    left = float(((y - slope * x - base) ** 2).sum())
    if len(x) < 3:
        return float(slope), math.nan
    return float(slope), math.sqrt(left / (len(x) - 2) / float(((x - x.mean()) ** 2).sum()))


def fitted(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The exponent of each part over each sweep: of all sizes, and of the upper three, where fixed costs are least."""
    found = []
    for name in dict.fromkeys(row["sweep"] for row in rows):
        of = [row for row in rows if row["sweep"] == name]
        for part, theory in THEORY[name].items():
            usable = [row for row in of if row[part] > 0]
            if len(usable) < 2:
                continue
            row: dict[str, Any] = {"sweep": name, "part": part, "theory": theory}
            for key, chosen in (("", usable), (" of the upper three", usable[-3:])):
                slope, error = exponent([r["size"] for r in chosen], [r[part] for r in chosen])
                row |= {f"exponent{key}": slope, f"error{key}": None if math.isnan(error) else error}
            found.append(row)
    return found


def drawn(rows: Sequence[dict[str, Any]], fits: Sequence[dict[str, Any]], file: Path) -> None:
    """A panel a sweep, on logarithmic axes, with the exponent and the theoretical one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["sweep"] for row in rows))
    figure, panels = pyplot.subplots(1, len(names), figsize=(4 * len(names), 3.6), squeeze=False)
    for panel, name in zip(panels[0], names):
        for part in ("step", *THEORY[name]):
            of = [row for row in rows if row["sweep"] == name and row[part] > 0]
            fit = next((f for f in fits if (f["sweep"], f["part"]) == (name, part)), None)
            label = part if fit is None else f"{part}: {fit['exponent']:.2f} ({fit['theory']:g})"
            panel.loglog([row["size"] for row in of], [row[part] for row in of], "o-", label=label, markersize=3)
        panel.set_xlabel(name)
        panel.legend(fontsize=7, title="exponent (theory)", title_fontsize=7)
    panels[0][0].set_ylabel("processor seconds")
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def told(results: dict[str, Any]) -> None:
    """Print what was found."""
    print("\n| over | part | exponent | of the upper three sizes | theory |\n|---|---|--:|--:|--:|")
    for fit in results.get("fits", []):
        shown = [f"{fit[f'exponent{k}']:.2f} ± {fit[f'error{k}'] or math.nan:.2f}" for k in ("", " of the upper three")]
        print(f"| {fit['sweep']} | {fit['part']} | {shown[0]} | {shown[1]} | {fit['theory']:g} |")
    if "limits" in results:
        found = results["limits"]
        near = found["near"]
        print(f"\na group holds {found['bytes a pair']:.1f} n^2 + {found['bytes an entry']:.1f} n d bytes; in 24 GiB: "
              + ", ".join(f"n = {n} at {d}" for d, n in found["largest n"].items()))  # fmt: skip
        print(f"run: n = {near['n']}, d = 64: {near['bytes'] / 2**30:.2f} GiB, {near['predicted'] / 2**30:.2f} predicted, "
              f"{near['seconds']:.0f} s")  # fmt: skip
    for row in results.get("step", {}).get("rows", []):
        parts = ("bare", "reading", "measurement", "discovery", "first step")
        took = ", ".join(f"{part} {row[f'{part} seconds']:.2f} s" for part in parts)
        peaks = ", ".join(f"{part} {row[f'{part} peak'] / 2**30:.2f} GiB" for part in ("bare", "first", "measured"))
        print(f"\n{row['parameters'] / 1e6:.0f}M, {row['estimator']}, {row['groups']} groups: {took}; peak {peaks}")
        if "room" in row:
            predicted, room = row["predicted peak of a reading"] / 2**30, row["room"] / 2**30
            print(f"a reading would take {predicted:.1f} GiB of the {room:.1f} that are free")
    for kind in ("bare peak", "first peak", "measured peak"):
        if "step" in results:
            found = results["step"][kind]
            slope, most = found["bytes a parameter"], found["largest parameters"]
            print(f"{kind}: {slope:.1f} bytes a parameter; {most / 1e6:.0f}M parameters in 24 GiB")


def about(*packages: str) -> dict[str, Any]:
    """Machine, versions and date of a result."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy", *packages)}
    versions["topoopt"] = topoopt.__version__  # an editable install's metadata is as old as the install
    return {
        "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores, one thread",
        "versions": {"python": platform.python_version(), **versions},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="neurons,width,depth,ranks,limits,step")
    parser.add_argument("--tiny", action="store_true", help="sizes that take seconds, to see that it runs")
    parser.add_argument("--near", type=float, default=24.0, help="GiB that the one large group may take")
    parser.add_argument("--length", type=int, default=32, help="tokens of the one sequence of `step`")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.job:
        job, positional, arguments = json.loads(given.job)
        print(json.dumps(JOBS[job](*positional, **arguments)))
        return
    file = given.out / "scale.json"
    given.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    results |= about()
    for part in given.only.split(","):
        if part in SWEEPS:
            kept = [row for row in results.get("rows", []) if row["sweep"] != part]
            results["rows"] = kept + child("sweep", part, tiny=given.tiny)
            results["fits"] = fitted(results["rows"])
        elif part == "limits":
            results["limits"] = limits(tiny=given.tiny, near=given.near)
        elif part == "step":
            results["step"] = whole_step(tiny=given.tiny, length=given.length)
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if results.get("rows"):
        drawn(results["rows"], results["fits"], given.out / "scale.png")
    told(results)
    print(f"\nwritten to {file}")


if __name__ == "__main__":
    main()

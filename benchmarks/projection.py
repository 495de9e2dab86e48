"""What a reading and a measurement would cost for Llamas of 8 and 70 billion parameters under FSDP2, computed from measured rates.

The models stand on the meta device: parameters, operations of a forward (torch's own counter), and the neuron groups that
discovery finds there. Rates are measured here: operations a second of a matrix product, bytes a second of a copy, bytes a
second and bytes sent for a byte by each collective over gloo, bytes moved for a pair of neurons beside the products, gradients
that a reading asks for, and a measurement beside its reading. Bytes that a parameter, a pair and an entry take come from
results/scale.json. An accelerator's rates can be given by hand, and are then said to be given. Nothing overlaps here, and
collectives are rings.

First a small Llama is trained for real with FSDP2 over two gloo ranks: what the same arithmetic says it sends for a step, a
reading and a measurement stands beside what the kernel counted on the ranks' connections. The gradients are counted on a smaller
model than the one that is predicted. Results go to benchmarks/results/projection.json.

    python benchmarks/projection.py [--models 8B,70B] [--ranks 64] [--length 4096] [--tiny]
        [--flops F --bandwidth B --wire W --name "H100, as given"]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from scale import RESULTS, about, bytes_sent
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from topoopt import TopoOptimizer
from topoopt.geometry import collect, measure
from topoopt.neurons import NeuronGroup, discover, select

LLAMAS: dict[str, dict[str, int]] = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
            "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip
SMALL = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 256}  # fmt: skip
REAL = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 3, "num_attention_heads": 8,
        "num_key_value_heads": 4, "vocab_size": 1024}  # fmt: skip
"""What the gradients of a reading are counted on, and what is then predicted."""
WORD = 4
"""Bytes of a float32: FSDP2's shards, the clouds and the distances."""


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second, and what a collective sends for a byte."""

    name: str
    flops: float
    bandwidth: float
    """Bytes read and written."""
    wire: float
    """Bytes that a rank sends."""
    pair_bytes: float
    """Bytes that a measurement moves for each pair of neurons beside its matrix products."""


@dataclass(frozen=True)
class Account:
    """What a model is made of, for the arithmetic."""

    parameters: int
    forward: float
    """Operations of one forward of one sequence."""
    units: tuple[int, ...]
    """Parameters of each FSDP2 unit, a layer each; the root's last."""
    groups: tuple[tuple[int, int, int], ...]
    """n, d, and the entries of the tensors that one look at the points gathers, of each group that is measured."""


# -- arithmetic ---------------------------------------------------------------------------------------------------------


def gathered(model: nn.Module, group: NeuronGroup) -> int:
    """Entries that all ranks gather for the points of a group: every slice's tensors, whole."""
    tensors = dict(model.named_parameters(remove_duplicate=False))
    return sum(tensors[name].numel() for s in group.slices if s.role != "state" for name in s.tensors)


def account(model: Any, length: int) -> Account:
    """Look at a model without data; `length` tokens in a sequence."""
    ids = torch.zeros(1, length, dtype=torch.int64, device="meta")
    mask = torch.zeros(1, 1, length, length, device="meta")  # made by hand: making one looks at numbers
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids, attention_mask=mask, use_cache=False)
    chosen, _ = select(discover(model, ids[:, :8]))
    layers = [sum(p.numel() for p in layer.parameters()) for layer in model.model.layers]
    total = sum(p.numel() for p in model.parameters())
    groups = tuple((g.n, g.dimension(model), gathered(model, g)) for g in chosen)
    return Account(total, float(counter.get_total_flops()), (*layers, total - sum(layers)), groups)


def of_gradient(units: Sequence[int], gather: float, scatter: float) -> float:
    """Bytes a rank sends for one forward and backward: layers are gathered twice, the root once; all are scattered."""
    *layers, root = units
    return WORD * ((2 * sum(layers) + root) * gather + (sum(layers) + root) * scatter)


def of_points(groups: Sequence[tuple[int, int, int]], gather: float) -> float:
    """Bytes a rank sends for a measurement: the groups' tensors, before and after the step."""
    return 2 * WORD * gather * sum(entries for _, _, entries in groups)


def projected(
    a: Account, rates: Rates, ranks: int, sequences: int, gradients: dict[str, float], held: dict[str, float]
) -> dict[str, Any]:
    """Bytes held on a rank, operations, bytes on the wire and seconds, of a reading and of a measurement."""
    ring = (ranks - 1) / ranks
    pairs, entries = sum(n * n for n, _, _ in a.groups), sum(n * d for n, d, _ in a.groups)
    reading, more = gradients["reading"], gradients["measurement"]
    largest = max((held["a pair"] * n * n + held["an entry"] * n * d for n, d, _ in a.groups), default=0.0)
    parts = {
        "step": {"held": held["a parameter of a step"] * a.parameters / ranks, "flops": 3 * a.forward * sequences,
                 "wire": of_gradient(a.units, ring, ring), "moved": 0.0},
        "reading": {"held": held["a parameter of a reading"] * a.parameters / ranks,
                    "flops": reading * 3 * a.forward * sequences,
                    "wire": reading * of_gradient(a.units, ring, ring), "moved": 0.0},
        "measurement": {"held": WORD * (2 * entries + pairs) + largest,
                        "flops": more * 3 * a.forward * sequences + 3.0 * sum(n * n * d for n, d, _ in a.groups),
                        "wire": more * of_gradient(a.units, ring, ring) + of_points(a.groups, ring),
                        "moved": rates.pair_bytes * pairs},
        "discovery": {"held": 3.0 * WORD * a.parameters, "flops": 0.0, "wire": WORD * ring * a.parameters, "moved": 0.0},
    }  # fmt: skip
    for part in parts.values():
        part["seconds"] = part["flops"] / rates.flops + part["moved"] / rates.bandwidth + part["wire"] / rates.wire
    return {
        "ranks": ranks,
        "sequences a rank": sequences,
        "groups": len(a.groups),
        "pairs": pairs,
        "rates": rates.name,
        **parts,
    }


# -- rates --------------------------------------------------------------------------------------------------------------


def timed(call: Callable[[], object], repeats: int = 5) -> float:
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return median(times[1:])


def here(sent_a_second: float, *, tiny: bool) -> Rates:
    """This machine's rates, one thread."""
    size, n = (128, 128) if tiny else (1024, 2048)
    x = torch.randn(size, size)
    flops = 2 * size**3 / timed(lambda: x @ x)
    source = torch.randn((1 if tiny else 64) * 2**20)
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / timed(lambda: target.copy_(source))
    points = torch.randn(n, 64)
    moved = points + 1e-3 * torch.randn(n, 64)
    beside = timed(lambda: collect([measure(points, moved)]), 3) - 3 * n * n * 64 / flops
    name = f"measured here: {platform.machine()}, one thread, gloo over loopback"
    return Rates(name, flops, bandwidth, sent_a_second, max(0.0, beside) * bandwidth / n**2)


# -- the real run -------------------------------------------------------------------------------------------------------

FORWARDS = [0]


class Counted(LlamaForCausalLM):
    """Counts how often it is run."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        FORWARDS[0] += 1
        return super().forward(*args, **kwargs)


def made(config: dict[str, int], device: str) -> Any:
    options: dict[str, Any] = {**config, "attn_implementation": "eager"}
    with torch.device(device):
        return Counted(LlamaConfig(**options))


def settled_bytes() -> int:
    """Bytes sent when all ranks are here and their last packets have been confirmed."""
    dist.barrier()
    time.sleep(0.2)
    return bytes_sent()


def factors(entries: int) -> dict[str, float]:
    """What this rank sends for each byte of a tensor by each collective, and how many bytes a second."""
    world = dist.get_world_size()
    whole, part = torch.ones(entries), torch.ones(entries // world)
    calls = {
        "gather": lambda: dist.all_gather_into_tensor(whole, part),
        "scatter": lambda: dist.reduce_scatter_tensor(part, whole),
    }
    found = {}
    for name, call in calls.items():
        call()
        before = settled_bytes()
        began = time.perf_counter()
        for _ in range(4):
            call()
        seconds = time.perf_counter() - began
        sent = (settled_bytes() - before) / 4
        found |= {name: sent / (WORD * entries), f"{name} a second": 4 * sent / seconds}
    return found


def trained(config: dict[str, int], length: int) -> dict[str, Any]:
    """Bytes that this rank sends, and forwards beside the step's own, for each kind of step."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = made(config, "cpu")
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer: Any = TopoOptimizer(
        torch.optim.AdamW(model.parameters(), 1e-4), model, every=10, budget=None, homology=0
    )
    kinds: dict[str, list[tuple[int, int]]] = defaultdict(list)
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(34):
        ids = torch.randint(config["vocab_size"], (2, length), generator=generator)
        known, before, ran = len(optimizer.readings), settled_bytes(), FORWARDS[0]
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        kind = "measurement" if optimizer.measured else "reading" if len(optimizer.readings) > known else "step"
        kinds[kind].append((settled_bytes() - before, FORWARDS[0] - ran))
    reasons = sorted({r.reason for r in optimizer.readings if r.reason})
    skipped = {k: v for k, v in optimizer.last.skipped.items() if "neuron" not in v and "head" not in v}
    groups = {name: (group.n, group.d) for name, group in optimizer.last.groups.items()}
    optimizer.detach()
    found = {kind: {"sent": median(s for s, _ in seen[1:]), "forwards": median(f for _, f in seen[1:]), "seen": len(seen)}
             for kind, seen in kinds.items() if len(seen) > 1}  # fmt: skip
    return {**found, "unread": reasons, "skipped": skipped, "groups": groups}


def _rank(rank: int, world: int, folder: str, tiny: bool) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    found = {"factors": factors(2**18 if tiny else 2**22), "small": trained(SMALL, 16)}
    found["real"] = found["small"] if tiny else trained(REAL, 32)
    if rank == 0:
        (Path(folder) / "out.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def validated(*, tiny: bool) -> dict[str, Any]:
    """A real run over two gloo ranks, and what the arithmetic says of it."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (2, folder, tiny), nprocs=2)
        found = json.loads((Path(folder) / "out.json").read_text(encoding="utf-8"))
    a = account(made(SMALL if tiny else REAL, "meta"), 16)
    gather, scatter = found["factors"]["gather"], found["factors"]["scatter"]
    ran = {kind: found["small"][kind]["forwards"] for kind in ("step", "reading", "measurement")}
    gradients = {"reading": ran["reading"] - ran["step"], "measurement": ran["measurement"] - ran["reading"]}
    one, real = of_gradient(a.units, gather, scatter), found["real"]
    predicted = {"step": one, "reading": gradients["reading"] * one,
                 "measurement": gradients["measurement"] * one + of_points(a.groups, gather)}  # fmt: skip
    counted = {"step": real["step"]["sent"], "reading": real["reading"]["sent"] - real["step"]["sent"],
               "measurement": real["measurement"]["sent"] - real["reading"]["sent"]}  # fmt: skip
    rows = {kind: {"predicted": predicted[kind], "counted": counted[kind], "ratio": predicted[kind] / counted[kind]}
            for kind in predicted}  # fmt: skip
    return {"gradients": gradients, "parameters": a.parameters, "bytes": rows, **found}


# -- the whole ----------------------------------------------------------------------------------------------------------


def held_bytes(file: Path) -> dict[str, float]:
    """What scale.py has measured: bytes a parameter, beside a step's, a pair and an entry."""
    scale = json.loads(file.read_text(encoding="utf-8"))
    bare, measured = (scale["step"][f"{kind} peak"]["bytes a parameter"] for kind in ("bare", "measured"))
    limits = scale["limits"]
    return {"a parameter of a step": bare, "a parameter of a reading": measured - bare,
            "a pair": limits["bytes a pair"], "an entry": limits["bytes an entry"]}  # fmt: skip


def told(results: dict[str, Any]) -> None:
    check = results["validation"]
    more = ", ".join(f"{count:g} for a {kind}" for kind, count in check["gradients"].items())
    print(f"\na Llama of {check['parameters'] / 1e6:.2f}M parameters, FSDP2 over 2 gloo ranks; gradients: {more}\n")
    print("| bytes a rank sends | predicted | counted | ratio |\n|---|--:|--:|--:|")
    for kind, row in check["bytes"].items():
        print(f"| {kind} | {row['predicted']:.4g} | {row['counted']:.4g} | {row['ratio']:.3f} |")
    for p in results["projections"]:
        batch = f"{p['sequences a rank']} x {p['length']} tokens a rank"
        print(f"\n{p['model']} over {p['ranks']} ranks, {batch}, {p['groups']} groups; rates {p['rates']}\n")
        print(
            "| | held on a rank, GiB | flops a rank | sent by a rank, GiB | seconds | in steps |\n|---|--:|--:|--:|--:|--:|"
        )
        for part in ("step", "reading", "measurement", "discovery"):
            row = p[part]
            shown = f"{row['held'] / 2**30:.1f} | {row['flops']:.3g} | {row['wire'] / 2**30:.1f} | {row['seconds']:.3g}"
            print(f"| {part} | {shown} | {row['seconds'] / p['step']['seconds']:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="8B,70B")
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--sequences", type=int, default=1, help="sequences of a rank's batch")
    parser.add_argument("--tiny", action="store_true", help="a small model, to see that it runs")
    parser.add_argument("--scale", type=Path, default=RESULTS / "scale.json", help="what scale.py has written")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--name", help="of the machine whose rates are given")
    for rate, of in (("flops", "operations"), ("bandwidth", "bytes of memory"), ("wire", "bytes that a rank sends")):
        parser.add_argument(f"--{rate}", type=float, help=f"{of} a second, given by hand")
    given = parser.parse_args()
    torch.set_num_threads(1)
    held, check = held_bytes(given.scale), validated(tiny=given.tiny)
    rates = [here(check["factors"]["gather a second"], tiny=given.tiny)]
    if given.flops and given.bandwidth and given.wire:
        name = f"given by hand: {given.name or 'an accelerator'}"
        rates.append(Rates(name, given.flops, given.bandwidth, given.wire, rates[0].pair_bytes))
    results: dict[str, Any] = about("transformers") | {
        "held": held, "rates": [asdict(one) for one in rates], "validation": check, "projections": [],
    }  # fmt: skip
    models = {"tiny": REAL} if given.tiny else {name: LLAMAS[name] for name in given.models.split(",")}
    for name, config in models.items():
        a = account(made(config, "meta"), min(given.length, 64) if given.tiny else given.length)
        for one in rates:
            row = projected(a, one, given.ranks, given.sequences, check["gradients"], held)
            results["projections"].append({"model": name, "length": given.length, **asdict(a), **row})
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "projection.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    told(results)
    print(f"\nwritten to {file}")


if __name__ == "__main__":
    main()

"""Which units of a model are interchangeable: topoopt beside Torch-Pruning's dependency graph.

    python benchmarks/discovery_peers.py [--full] [--sets zoo torchvision timm] [--tools TOOL ...] [--fill] ...

Models have random weights and small inputs: the zoo of this project's tests, and classifiers of torchvision and timm. Each group
found is permuted in the model itself, weights random, in float64. A model counts as right where it has groups and each leaves the
outputs as they were, as wrong where one does not or does not fit its tensors, as none where no group was found, as hang where
the search took longer than its limit. Torch-Pruning is told which layers make the output, and searches from convolutions and linear
layers. Its groups are sets to cut together, and heads are cut whole only by a pruner that is told their number by hand: where
queries and keys make a group, as here, a permutation across heads changes the function. Seconds are of the processor, of the
models on which both came to an end.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from _kept import kept, parser_of
from _results import Column, Row, Table, Value, results, save
from _torchvision import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

Model = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
LIMITS = {"zoo": 20, "torchvision": 20, "timm": 20}
"""Seconds of the processor that a tool may take for a model of the set, the check included."""
TORCHVISION = (
    "resnet18", "resnet50", "resnext50_32x4d", "densenet121", "squeezenet1_1", "googlenet",
    "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5", "efficientnet_b0", "regnet_x_400mf",
    "regnet_y_400mf", "convnext_tiny", "swin_t",
)  # fmt: skip
TIMM = (
    "test_byobnet", "test_coatnet", "test_convnext", "test_convnext2", "test_efficientnet", "test_efficientnet_gn",
    "test_efficientnet_ln", "test_mambaout", "test_maxvit", "test_nfnet", "test_resnet", "test_vit", "test_vit2",
    "test_vit3", "test_vit4", "test_vit_relpos", "ghostnet_050", "levit_128s", "mobilevit_xxs", "poolformer_s12",
)  # fmt: skip
TOOLS = ("topoopt", "Torch-Pruning")


def zoo() -> dict[str, Callable[[], Model]]:
    """The test zoo's models."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "neurons"))
    torchvision()  # which transformers imports
    import neuron_zoo  # type: ignore[import-not-found]
    import neuron_zoo_hf  # type: ignore[import-not-found]  # noqa: F401

    def build(name: str) -> Model:
        example = neuron_zoo.ZOO[name].build()
        return example.model, example.args, example.kwargs

    return {name: lambda name=name: build(name) for name in neuron_zoo.ZOO}


def of_torchvision() -> dict[str, Callable[[], Model]]:
    made = torchvision()
    if made is None:
        return {}

    def build(name: str) -> Model:
        extra = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
        model = made.models.get_model(name, weights=None, **extra)
        return model, (torch.randn(2, 3, 64, 64),), {}

    return {name: lambda name=name: build(name) for name in TORCHVISION}


def of_timm() -> dict[str, Callable[[], Model]]:
    torchvision()
    if importlib.util.find_spec("timm") is None:
        return {}
    timm: Any = importlib.import_module("timm")

    def build(name: str) -> Model:
        model = timm.create_model(name, pretrained=False)
        return model, (torch.randn(2, *model.default_cfg["input_size"]),), {}

    return {name: lambda name=name: build(name) for name in TIMM}


SETS = {"zoo": zoo, "torchvision": of_torchvision, "timm": of_timm}
SMALL = {"zoo": 12, "torchvision": 4, "timm": 4}
"""Of how many models a short run looks at every so many-th."""

# -- one tool on one model --------------------------------------------------------------------------------------------


def _ours(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[tuple[int, Callable[[Tensor], None]]]:
    from topoopt import discover

    return [(g.n, lambda perm, g=g: g.permute(model, perm)) for g in discover(model, *args, **kwargs)]


def _theirs(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[tuple[int, Callable[[Tensor], None]]]:
    import _depgraph

    return _depgraph.groups(model, args, kwargs)


FINDERS: dict[str, Callable[..., list[tuple[int, Callable[[Tensor], None]]]]] = dict(zip(TOOLS, (_ours, _theirs)))


def outputs(model: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
    torch.manual_seed(1)
    with torch.no_grad():
        leaves = tree_leaves(model(*args, **kwargs))
    return [x.double() for x in leaves if isinstance(x, Tensor) and x.is_floating_point() and x.numel()]


def wrong(model: nn.Module, args: Any, kwargs: Any, found: list[tuple[int, Callable[[Tensor], None]]]) -> int:
    """How many groups change an output when they are permuted; weights are random."""
    model.double()
    torch.set_default_dtype(torch.float64)
    args, kwargs = tree_map(
        lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, (args, kwargs)
    )
    generator = torch.Generator().manual_seed(7)
    for p in model.parameters():
        p.data += torch.randn(p.shape, generator=generator).to(p) * (0.5 if p.ndim < 2 else 0.5 / p[0].numel() ** 0.5)
    reference, count = outputs(model, args, kwargs), 0
    kept = {name: x.clone() for name, x in model.state_dict().items()}
    for n, permute in found:
        perm = torch.randperm(n, generator=generator)
        perm = perm.roll(1) if bool((perm == torch.arange(n)).all()) else perm
        try:
            permute(perm)
            pairs = zip(outputs(model, args, kwargs), reference, strict=True)
            count += any(
                not float((a - b).abs().max()) <= 1e-6 * float(b.abs().max().clamp_min(1e-9)) for a, b in pairs
            )
        except Exception as error:
            if type(error).__name__ != "Mismatch":
                raise
            count += 1
        with torch.no_grad():
            for name, x in model.state_dict().items():
                x.copy_(kept[name])
    return count


def judged(tool: str, build: Callable[[], Model]) -> dict[str, Any]:
    """What a tool makes of a model."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    model, args, kwargs = build()
    model.eval()
    began = time.process_time()
    found = FINDERS[tool](model, args, kwargs)
    seconds = time.process_time() - began
    bad = wrong(model, args, kwargs, found) if found else 0
    word = "none" if not found else "wrong" if bad else "right"
    return {"word": word, "seconds": seconds, "groups": len(found), "bad": bad}


def serve(tool: str, key: str) -> None:
    """Answer names of models with what the tool makes of them, a line each."""
    torch.set_num_threads(1)
    models, answers = SETS[key](), os.fdopen(os.dup(1), "w")
    FINDERS[tool](nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), (torch.ones(1, 2),), {})  # imports are not timed
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                said = judged(tool, models[line.strip()])
        except Exception as error:
            said = {"word": "raised", "error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]}
        print(json.dumps(said), file=answers, flush=True)


class Server:
    """A process that is asked about models, and started anew when it hangs."""

    def __init__(self, tool: str, key: str) -> None:
        self.command = [sys.executable, "-W", "ignore", __file__, "--serve", tool, key]
        self.limit, self.process = LIMITS[key], None

    def ask(self, name: str) -> dict[str, Any]:
        if self.process is None:
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
            )  # fmt: skip
            self._line(300)
        assert self.process.stdin is not None
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        line = self._line(self.limit)
        if line is None:
            self.close()
            return {"word": "hang"}
        if not line:
            self.close()
            return {"word": "raised", "error": "the process ended"}
        return json.loads(line)

    def _line(self, limit: float) -> str | None:
        """The next line, or None where the process has used up its time."""
        assert self.process is not None
        assert self.process.stdout is not None
        spent = psutil.Process(self.process.pid).cpu_times
        began = spent().user
        while not select.select([self.process.stdout], [], [], 0.5)[0]:
            if spent().user - began > limit:
                return None
        return self.process.stdout.readline()

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = None


# -- the table --------------------------------------------------------------------------------------------------------

WORDS = ("right", "wrong", "none", "hang", "raised")
COLUMNS = (
    Column("models", "count", ""),
    Column("right", "count", "more", factor=1.0),
    *(Column(word, "count", "less", factor=1.0) for word in WORDS[1:]),
    Column("groups", "count", "more", factor=1.0),
    Column("seconds a model", "s"),
    Column("not right", "words", ""),
)


PACKAGES = ("torch-pruning", "torchvision", "timm", "transformers")


def asked(key: str, names: list[str], tools: list[str]) -> dict[str, dict[str, Any]]:
    """What each tool makes of each model of a set."""
    said: dict[str, dict[str, Any]] = {}
    for tool in tools:
        server, said[tool] = Server(tool, key), {}
        for name in names:
            said[tool][name] = server.ask(name)
            print(f"{key:<12}{tool:<15}{name:<28}{said[tool][name]}", flush=True)
        server.close()
    return said


def rows_of(case: str, said: dict[str, dict[str, Any]], names: list[str]) -> list[Row]:
    """A row a tool, of some of the models that they were asked about."""
    both = [name for name in names if all("seconds" in of[name] for of in said.values())]
    rows = []
    for tool, of in said.items():
        words = Counter(of[name]["word"] for name in names)
        values = {word: Value.of([words[word]]) for word in WORDS}
        values |= {
            "models": Value.of([len(names)]),
            "groups": Value.of([sum(of[name].get("groups", 0) for name in names)]),
        }
        if both:
            values["seconds a model"] = Value.of(of[name]["seconds"] for name in both)
        missed = {word: [name for name in names if of[name]["word"] == word] for word in WORDS[1:]}
        rows.append(
            Row(case, tool, values, {"not right": "; ".join(f"{w}: {', '.join(n)}" for w, n in missed.items() if n)})
        )
    return rows


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(*given.serve)
        return
    explains, arguments = (__doc__ or "").split("\n\n", 2)[2].strip(), ["--full"] if given.full else []
    there = kept(given, __file__, PACKAGES)
    for key in given.sets:
        names = list(SETS[key]())
        if not names:
            print(f"{key}: not installed")
            continue
        few = names[:: SMALL[key]]  # of a full run they are a case too, for the check to find
        cases = {f"{key}, {len(few)} of them": few} | ({f"{key}, all {len(names)}": names} if given.full else {})
        if all(there.has("discovery", case, given.tools) for case in cases):
            continue
        said = asked(key, names if given.full else few, given.tools)
        rows = [row for case, of in cases.items() for row in rows_of(case, said, of)]
        table = Table("discovery", "Interchangeable units", explains, COLUMNS, tuple(rows))
        save(results(__file__, arguments, [table], PACKAGES), given.output)


if __name__ == "__main__":
    main()

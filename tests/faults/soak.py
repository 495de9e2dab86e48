"""A long training into which faults fall at random, beside the same training without topoopt.

python tests/faults/soak.py [STEPS]     10,000 by default: prints what was injected, what the record counts, and what it cost
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from fault_training import Problem, Ways, listening, seed, train

from topoopt import TopoOptimizer
from topoopt.homology import HomologyWorker
from topoopt.neurons import NeuronGroup
from topoopt.optimizer import groups
from topoopt.optimizer.reading import Reader
from topoopt.report import JsonLines

EVERY = 20
CHANCE = 0.02
"""Of a fault of each kind at a step; most parts are only asked at every fourth or twentieth step."""


class Interrupted(Exception):
    """What the training's own closure raises now and then."""


@dataclass(frozen=True)
class Resources:
    """What must not grow."""

    threads: int
    files: int
    memory: int
    """MiB."""

    @staticmethod
    def now() -> Resources:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return Resources(
            threading.active_count(), len(os.listdir("/proc/self/fd")), pages * os.sysconf("SC_PAGE_SIZE") >> 20
        )


@dataclass(frozen=True)
class Soaked:
    """What came of it."""

    same: bool
    injected: dict[str, int]
    counted: dict[str, int]
    logged: int
    begin: Resources
    end: Resources


class Rain:
    """Decides by a generator of its own what fails next; a part that has failed is let go well before it fails again."""

    def __init__(self, number: int) -> None:
        self._random = random.Random(number)
        self._armed: set[str] = set()
        self._failed: set[str] = set()
        self.injected: Counter[str] = Counter()

    def falls(self) -> None:
        """A step begins."""
        for kind in (
            "spectral",
            "geometry of 0",
            "geometry of 2",
            "sink Sink",
            "homology",
            "discovery",
            "state_refused",
        ):
            if self._random.random() < CHANCE:
                self._armed.add(kind)

    def hits(self, kind: str) -> bool:
        """Whether this part fails now."""
        if kind in self._armed and kind not in self._failed:
            self._armed.discard(kind)
            self._failed.add(kind)
            self.injected[f"fault/{kind}"] += 1
            return True
        self._failed.discard(kind)
        return False

    def on(self, owner: Any, name: str, kind: Callable[..., str]) -> Any:
        """A patch under which this function fails as it falls; `kind` names the part by its arguments."""
        real = getattr(owner, name)

        def instead(*args: Any, **kwargs: Any) -> Any:
            part = kind(*args)
            if self.hits(part):
                raise RuntimeError(f"{part} at random, {self._random.random()}")
            return real(*args, **kwargs)

        return mock.patch.object(owner, name, instead)


@contextlib.contextmanager
def raining(rain: Rain) -> Iterator[None]:
    before: set[str] = set()

    def points(group: NeuronGroup, model: Any) -> str:
        part = f"geometry of {group.name}"
        before.symmetric_difference_update({part})
        return part if part in before else ""  # asked for before the step and after it: it fails before

    with contextlib.ExitStack() as stack:
        stack.enter_context(rain.on(Reader, "_by_tape", lambda *args: "spectral"))
        stack.enter_context(rain.on(NeuronGroup, "points", points))
        stack.enter_context(rain.on(HomologyWorker, "submit", lambda *args: "homology"))
        stack.enter_context(rain.on(groups, "discover", lambda *args: "discovery"))
        yield


def soak(steps: int, number: int = 0) -> Soaked:
    """Train so many steps, wet and dry."""
    rain, said = Rain(number), list[str]()
    folder = Path(tempfile.mkdtemp())

    class Sink:
        def __call__(self, measurement: Any) -> None:
            if rain.hits("sink Sink"):
                raise OSError("at random")

    resources: list[Resources] = []

    def early(step: int, problem: Problem) -> None:
        if step % 250 == 249:  # the same layer anew, as tools do: the neurons are looked for again
            layer = problem.model[0]
            old = layer.weight
            layer.weight = torch.nn.Parameter(old.detach().clone())  # type: ignore[arg-type]
            held = problem.optimizer.param_groups[0]["params"]
            held[[p is old for p in held].index(True)] = layer.weight
        if not isinstance(problem.optimizer, TopoOptimizer):
            return
        if step in (steps // 5, steps - 1):
            resources.append(Resources.now())
        rain.falls()
        if rain.hits("state_refused"):
            problem.optimizer.load_topo_state_dict({"version": 2, "step": "x" * step})

    def step(step: int, problem: Problem) -> None:
        def closure() -> Any:
            if step % 97 == 96:
                raise [Interrupted, KeyboardInterrupt][step % 2]
            problem.optimizer.zero_grad()
            loss = problem.loss()
            loss.backward()
            return loss

        problem.optimizer.step(closure)

    ways = Ways(early=early, step=step, survives=(Interrupted, KeyboardInterrupt))
    with listening(said), raining(rain):
        seed()
        wet = Problem(torch.optim.AdamW, 1e-3)
        topo = TopoOptimizer(wet.optimizer, wet.model, every=EVERY, budget=None, homology=1)
        topo.add_sink(Sink())
        topo.add_sink(JsonLines(folder / "record.jsonl"))
        ends = train(wet, ways, steps)
        topo.detach()
    seed()
    dry = Problem(torch.optim.AdamW, 1e-3)
    same = ends == train(dry, ways, steps) and wet.interrupted == dry.interrupted
    counts = json.loads((folder / "summary.json").read_text())["counts"]
    counted = {name: n for name, n in counts.items() if name.startswith("fault/")}

    return Soaked(same, dict(rain.injected), counted, len(said), *resources)


if __name__ == "__main__":
    done = soak(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
    for name in sorted(done.injected | done.counted):
        print(f"{name:24} injected {done.injected.get(name, 0):5}   in the record {done.counted.get(name, 0):5}")
    print(f"{done.logged} lines logged; after a fifth of the run {done.begin}, at its end {done.end}")
    print(
        "weights, rates and generators are",
        "bit for bit those of the bare run" if done.same else "NOT those of the bare run",
    )
    raise SystemExit(not done.same or done.injected != done.counted)

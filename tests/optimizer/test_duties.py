"""Each duty around a step has a guard of its own: a fault in one costs none of the others, and is counted under its name."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from torch.optim import SGD
from training_problems import Problem, same

from topoopt import Measurement, TopoOptimizer
from topoopt.control import Reading, State
from topoopt.curvature.tracker import SpectralTracker
from topoopt.measurement import Decision
from topoopt.optimizer.cadence import Cadence
from topoopt.optimizer.capture import Capture
from topoopt.optimizer.clouds import Clouds
from topoopt.optimizer.diagrams import Diagrams
from topoopt.optimizer.evidence import Evidence
from topoopt.optimizer.groups import Groups
from topoopt.optimizer.history import History
from topoopt.optimizer.instruments import Instruments
from topoopt.optimizer.neurons import Neurons
from topoopt.optimizer.rate import Rates, RateScaler
from topoopt.optimizer.reading import Reader
from topoopt.optimizer.sinks import Sinks
from topoopt.optimizer.steering import Steering
from topoopt.optimizer.weights import Certifier, Sample
from topoopt.parallel import Ranks

STEPS = 8


class Half:
    """Takes half of the rate, whatever it sees."""

    name = "half"
    steers = True
    interval = 1

    def start(self) -> State:
        return {}

    def decide(self, reading: Reading, state: State) -> tuple[Decision, State]:
        return Decision(0.5, self.name, "target"), state


@contextlib.contextmanager
def failing(owner: Any, name: str, first: int = 2, last: float = 2) -> Iterator[list[int]]:
    """The calls of these numbers fail; gives the numbers of all calls."""
    real, numbers, seen = getattr(owner, name), itertools.count(), list[int]()

    def instead(*args: Any, **kwargs: Any) -> Any:
        seen.append(next(numbers))
        if first <= seen[-1] <= last:
            raise RuntimeError("injected")
        return real(*args, **kwargs)

    with mock.patch.object(owner, name, instead):
        yield seen


class Trained:
    """What a few steps left, each of them read and measured."""

    def __init__(self, **options: Any) -> None:
        problem, self.scales = Problem(), list[float]()
        measured: list[Measurement] = []
        settings: dict[str, Any] = {"mode": Half(), "strict": True, "every": 1, "budget": None, "homology": 0}
        topo = TopoOptimizer(SGD(problem.model.parameters(), lr=0.1), problem.model, **settings | options)
        topo.add_sink(measured.append)
        for _ in range(STEPS):
            problem.model.zero_grad()
            problem.loss().backward()
            topo.step()
            self.scales.append(topo.lr_scale)
        self.rate, self.weights = topo.param_groups[0]["lr"], problem.weights()
        self.read = [r.step for r in topo.readings if not math.isnan(r.r)]
        self.moved = [r.step for r in topo.readings if not math.isnan(r.update_ratio)]
        self.measured = [m.step for m in measured if m.groups]
        self.faults = {n.removeprefix("fault/"): k for n, k in topo.topo.counts().items() if n.startswith("fault/")}
        topo.detach()


@pytest.mark.parametrize(
    ("owner", "name", "part", "lost"),
    [
        (Capture, "taken", "reading", {"read"}),
        (Capture, "stop", "reading", {"read"}),
        (Reader, "read", "spectral", {"read"}),
        (Reader, "tape", "reading", {"read"}),
        (Instruments, "read", "reading", {"read", "moved"}),
        (Rates, "warming", "reading", {"read", "moved"}),
        (Sample, "__init__", "reading", {"moved"}),
        (Sample, "lengths", "reading", {"moved"}),
        (History, "read", "reading", {"read", "moved"}),
        (Neurons, "find", "discovery", set()),
        (Neurons, "before", "measuring", {"measured"}),
        (Neurons, "after", "measuring", {"measured"}),
        (Certifier, "before", "strict", set()),
        (Certifier, "gain", "strict", set()),
        (Certifier, "shorten", "strict", set()),
        (Steering, "decide", "steering", {"scales"}),
        (RateScaler, "apply", "steering", {"scales"}),
        (RateScaler, "restore", "steering", set()),
        (Cadence, "read", "measuring", set()),
        (Cadence, "start", "measuring", set()),
    ],
    ids=lambda value: getattr(value, "__name__", value) if isinstance(value, type | str) else "",
)
def test_a_fault_in_one_duty_costs_no_other(owner: Any, name: str, part: str, lost: set[str]) -> None:
    with failing(owner, name) as calls:
        left = Trained()
    assert len(calls) > 3, "the fault was not injected"
    assert left.faults == {part: 1}
    assert left.rate == 0.1
    for what in ("read", "moved", "measured"):
        assert len(getattr(left, what)) == STEPS - (what in lost), what
    assert left.scales == ([0.5, 0.5, *[1.0] * 6] if "scales" in lost else [0.5] * STEPS)


PARTS = [Cadence, Capture, Certifier, Clouds, Diagrams, Evidence, Groups, History, Instruments, Neurons, Ranks, Rates]
PARTS += [RateScaler, Reader, Sample, Sinks, SpectralTracker, Steering]


@pytest.mark.slow
@pytest.mark.parametrize("last", [2, math.inf], ids=["once", "always"])
@pytest.mark.parametrize("mode", ["report", "preserve"])
@pytest.mark.parametrize(
    ("owner", "name"),
    [(part, name) for part in PARTS for name, member in vars(part).items() if inspect.isfunction(member)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_whatever_method_fails_the_training_goes_on(owner: Any, name: str, mode: str, last: float) -> None:
    """Every method of every part, from its third call on: the run ends with its rate, and what failed is counted."""
    options = {"mode": mode, "strict": mode != "report", "every": 2, "homology": 1, "wait": True}
    with failing(owner, name, last=last) as calls:
        left = Trained(**options)
    assert left.rate == 0.1
    if mode == "report":
        assert same(left.weights, Trained(**options).weights)
    assert len(calls) < 3 or left.faults, "a fault that nobody counted"

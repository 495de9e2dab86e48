"""A small training into which faults are put, beside the same training without topoopt: what is said, recorded, and left alone."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from topoopt import TopoOptimizer
from topoopt.optimizer.run import Run
from topoopt.optimizer.wrapper import run_of
from topoopt.summary import Summary

STEPS = 8


class Problem:
    """A classifier on fixed data, and the optimizer of its training."""

    def __init__(self, rule: Callable[..., Any] = SGD, lr: Any = 0.1, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))
        self.x, self.y = torch.randn(32, 6), torch.randint(0, 3, (32,))
        self.optimizer = rule(self.model.parameters(), lr=lr, **options)
        self.interrupted = 0

    def loss(self) -> Tensor:
        return cross_entropy(self.model(self.x), self.y)


@dataclass
class Ways:
    """How a training goes; each is called with (step, problem), in the bare run and in the measured one alike."""

    early: Callable[[int, Problem], Any] = lambda step, problem: None
    """Before the forward pass."""
    late: Callable[[int, Problem], Any] = lambda step, problem: None
    """Between backward and the step."""
    step: Callable[[int, Problem], Any] = lambda step, problem: problem.optimizer.step()
    after: Callable[[int, Problem], Any] = lambda step, problem: None
    survives: tuple[type[BaseException], ...] = ()
    """What the training catches around its own step, and goes on."""


def train(problem: Problem, ways: Ways, steps: int, factor: Callable[[int], float] | None = None) -> bytes:
    """Train; `factor` is on the rates of a step. Returns all bits that must be the same: weights, rates, generators."""
    for step in range(steps):
        problem.optimizer.zero_grad()
        ways.early(step, problem)
        problem.loss().backward()
        ways.late(step, problem)
        groups = problem.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        try:
            for group in groups if factor is not None else ():
                group["lr"] = group["lr"] * factor(step)
            ways.step(step, problem)
        except ways.survives:
            problem.interrupted += 1
        finally:
            for group, lr in zip(groups, rates, strict=False) if factor is not None else ():
                group["lr"] = lr
        ways.after(step, problem)
    return bits(problem)


def bits(problem: Problem) -> bytes:
    """Weights and rates bit for bit, and where the generators stand."""
    weights = b"".join(p.detach().contiguous().view(torch.uint8).numpy().tobytes() for p in problem.model.parameters())
    rates = repr([float(group["lr"]) for group in problem.optimizer.param_groups])
    drawn = torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002 -- the user's own generators
    return weights + repr((rates, drawn)).encode()


def seed() -> None:
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002


@dataclass
class Observed:
    """What came of a run with a fault in it."""

    same: bool = False
    """Weights, rates and generators are bit for bit those of the run without topoopt."""
    said: list[str] = field(default_factory=list)
    """What was logged, and the texts of errors that were raised on purpose."""
    counts: dict[str, int] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    """All that the record says in words: reasons, what was skipped, notes of groups and decisions, what was left unfinished."""
    readings: int = 0
    """Readings with an r."""
    measured: int = 0
    """Measurements with neurons in them."""
    run: Any = None


class Told:
    """A sink that keeps what the record would hold in words."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.measured = self.readings = 0
        self.summary: Summary | None = None

    def __call__(self, measurement: Any) -> None:
        self.measured += bool(measurement.groups)
        self.texts += [f"{name}: {why}" for name, why in measurement.skipped.items()]
        self.texts += [*measurement.notes, *(n for g in measurement.groups.values() for n in g.notes)]

    late = __call__

    def reading(self, reading: Any) -> None:
        self.readings += reading.r == reading.r
        self.texts += [reading.reason, *reading.notes]

    def decided(self, step: int, decision: Any) -> None:
        self.texts += [decision.note, *decision.events]

    def end(self, summary: Summary) -> None:
        self.summary = summary
        self.texts += summary.unfinished


@contextlib.contextmanager
def listening(said: list[str]) -> Iterator[None]:
    """Collect what topoopt logs."""
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("topoopt")
    logger.addHandler(handler)
    propagates, logger.propagate = logger.propagate, False  # a page of tracebacks is no table
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


def observe(
    inject: Callable[[TopoOptimizer], AbstractContextManager[Any]] = lambda topo: nullcontext(),
    *,
    ways: Ways | None = None,
    make: Callable[[], Problem] = Problem,
    steps: int = STEPS,
    loss: bool = False,
    sinks: tuple[Any, ...] = (),
    before: Callable[[TopoOptimizer], None] = lambda topo: None,
    **options: Any,
) -> Observed:
    """Train with and without topoopt; the fault is injected for as long as the measured training lasts."""
    ways = ways or Ways()
    found, told = Observed(), Told()
    with listening(found.said):
        seed()
        problem = make()
        options = {"every": 1, "budget": None, "homology": 0} | options
        topo = TopoOptimizer(problem.optimizer, problem.model, loss=problem.loss if loss else None, **options)
        for sink in (*sinks, told):
            topo.add_sink(sink)
        before(topo)
        run: Run = run_of(topo)
        factors: list[float] = []
        after = ways.after

        def watched(step: int, problem: Problem) -> None:
            factors.append(run.lr_scale)
            after(step, problem)

        measured = Ways(ways.early, ways.late, ways.step, watched, ways.survives)
        with inject(topo):
            ends = train(problem, measured, steps)
        if isinstance(topo, TopoOptimizer):
            topo.detach()
        seed()
        bare = make()
        same = train(bare, ways, steps, (lambda step: factors[step]) if set(factors) != {1.0} else None)
    found.same = ends == same and problem.interrupted == bare.interrupted
    found.run, found.texts = run, told.texts
    found.counts = dict(told.summary.counts) if told.summary is not None else run.faults.totals()
    found.readings, found.measured = told.readings, told.measured
    gc.collect()
    return found


@contextlib.contextmanager
def failing(owner: Any, name: str, error: BaseException, times: float = math.inf) -> Iterator[list[int]]:
    """A function that raises, the first so many times, instead of doing its work; yields how often it has."""
    real, count = getattr(owner, name), [0]

    def instead(*args: Any, **kwargs: Any) -> Any:
        if count[0] < times:
            count[0] += 1
            raise error
        return real(*args, **kwargs)

    with mock.patch.object(owner, name, instead):
        yield count

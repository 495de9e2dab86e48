"""Faults of policies, and of the factor on the rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from fault_table import fault
from fault_training import Observed, Problem, Ways, failing, observe
from torch.optim import SGD, AdamW

from topoopt.control import Reading, State
from topoopt.measurement import Decision
from topoopt.optimizer.rate import RateScaler

KEPT = {"fault/steering": 1}


@dataclass(frozen=True)
class Odd:
    """A policy that answers with whatever it is given, or raises it."""

    answer: Any
    memory: Any = None
    name: str = "odd"
    steers: bool = True
    interval: int = 1

    def start(self) -> State:
        return {}

    def decide(self, reading: Reading, state: State) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        if not isinstance(self.answer, tuple):
            return Decision(self.answer, "odd", "target"), {} if self.memory is None else self.memory
        return self.answer


def odd(answer: Any, memory: Any = None, **options: Any) -> Observed:
    found = observe(mode=Odd(answer, memory), **options)
    assert found.run.steering.decision.scale == 1.0
    return found


def refused(name: str, injected: str, answer: Any, said: str, memory: Any = None, **options: Any) -> None:
    fault(name, injected, said=said, recorded="the user's own rate is in force", counts=KEPT)(
        lambda: odd(answer, memory, **options)
    )


refused(
    "a policy raises", "`RuntimeError` in `decide`", RuntimeError("no idea"), "steering failed (RuntimeError: no idea"
)
refused("a policy runs out of memory", "`OutOfMemoryError`", torch.OutOfMemoryError("80 GiB"), "steering failed (OutOf")
refused("a policy's factor is NaN", "`Decision(nan)`", math.nan, "returned the factor nan")
refused("a policy's factor is 0", "`Decision(0.0)`", 0.0, "returned the factor 0.0")
refused("a policy's factor is negative", "`Decision(-1.0)`", -1.0, "returned the factor -1.0")
refused("a policy's factor is infinite", "`Decision(inf)`", math.inf, "returned the factor inf")
refused("a policy's factor is a word", "`Decision('0.5')`", "0.5", "returned the factor '0.5'")
refused("a policy's factor is a truth", "`Decision(True)`", True, "returned the factor True")
refused(
    "a policy's factor is a tensor", "`Decision(torch.tensor(0.5))`", torch.tensor(0.5), "returned the factor tensor"
)
refused("a policy returns no decision", "`(None, {})`", (None, {}), "it must return (Decision, its memory as a dict)")
refused("a policy returns a triple", "three values", (1, 2, 3), "it must return (Decision, its memory as a dict)")
refused(
    "a policy's decision has fields of wrong types",
    "`Decision(0.5, events=None, note=7)`",
    (Decision(0.5, "odd", "target", note=7, events=None), {}),  # type: ignore[arg-type]
    "decided Decision(",
)
refused("a policy's memory is no dict", "`(Decision, [1])`", (Decision(0.5, "odd", "x"), [1]), "its memory as a dict")
refused(
    "a policy's memory cannot be saved",
    "a memory that holds a function",
    0.5,
    "the memory of policy 'odd'",
    {"calls": print},
)
_ring: dict[str, Any] = {}
_ring["self"] = _ring
refused("a policy's memory contains itself", "a dict within itself", 0.5, "the memory of policy 'odd'", _ring)


@fault(
    "a policy goes on raising",
    "at each time it is asked, in a run of 100 steps",
    said="steering failed (RuntimeError: no idea",
    recorded="odd is switched off after 3 faults",
    counts={"fault/steering": 3},
)
def goes_on() -> Observed:
    return observe(mode=Odd(RuntimeError("no idea")), steps=100, every=50)


@fault(
    "a policy's wishes raise",
    "`looks`, `watches`, `stale` and `rests` raise",
    said="steering failed (RuntimeError: no wish",
    recorded="the user's own rate is in force",
    counts={"fault/steering": 1},
)
def wishes() -> Observed:
    class Wishing(Odd):
        def stale(self, *args: Any) -> bool:
            raise RuntimeError("no wish")

        looks = watches = rests = stale

    return observe(mode=Wishing(0.5))


@fault(
    "the step raises, with a factor on",
    "`RuntimeError` in the closure, three times",
)
def step_raises() -> Observed:
    return interrupted(RuntimeError("out of memory"))


@fault(
    "Ctrl-C in the step, with a factor on",
    "`KeyboardInterrupt` in the closure, three times",
)
def step_interrupted() -> Observed:
    return interrupted(KeyboardInterrupt())


def interrupted(error: BaseException) -> Observed:
    def step(step: int, problem: Problem) -> None:
        def closure() -> torch.Tensor:
            if step in (2, 3, 5):
                raise error
            problem.optimizer.zero_grad()
            loss = problem.loss()
            loss.backward()
            return loss

        problem.optimizer.step(closure)

    seen: list[float] = []
    ways = Ways(
        step=step,
        survives=(RuntimeError, KeyboardInterrupt),
        after=lambda step, problem: seen.append(problem.optimizer.param_groups[0]["lr"]),
    )
    found = observe(mode="hold", ways=ways, make=lambda: Problem(lr=1.5), steps=12)
    assert set(seen) == {1.5}
    assert found.readings > 6
    return found


@fault(
    "Ctrl-C in a reading",
    "`KeyboardInterrupt` in the fourth, which the training catches",
)
def reading_interrupted() -> Observed:
    from contextlib import ExitStack

    from topoopt.optimizer.reading import Reader

    def inject(topo: Any) -> Any:
        real, calls = Reader.read, [0]

        def read(self: Reader, *args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == 4:
                raise KeyboardInterrupt
            return real(self, *args, **kwargs)

        from unittest import mock

        stack = ExitStack()
        stack.enter_context(mock.patch.object(Reader, "read", read))
        return stack

    def step(step: int, problem: Problem) -> None:
        if not hasattr(problem.optimizer, "topo") and step == 3:
            raise KeyboardInterrupt  # there it comes before the step
        problem.optimizer.step()

    return observe(
        inject, ways=Ways(step=step, survives=(KeyboardInterrupt,)), mode="preserve", make=lambda: Problem(lr=3.0)
    )


@fault(
    "a run that raised is wrapped again without `detach()`",
    "a new wrapper around the same optimizer, three times: refused by name",
)
def wrapped_again() -> Observed:
    from topoopt import TopoOptimizer
    from topoopt.errors import ConfigError

    def early(step: int, problem: Problem) -> None:
        optimizer = problem.optimizer
        if isinstance(optimizer, TopoOptimizer) and step in (2, 4, 6):
            rates = [group["lr"] for group in optimizer.param_groups]
            with pytest.raises(ConfigError, match="is measured already"):
                TopoOptimizer(optimizer, problem.model, mode="hold", every=1, budget=None, homology=0)
            assert [group["lr"] for group in optimizer.param_groups] == rates

    return observe(ways=Ways(early=early))


@fault(
    "the rate is 0 at the first step",
    "a warm-up by hand from 0, under `mode='simplify'`",
)
def rate_zero() -> Observed:
    def early(step: int, problem: Problem) -> None:
        problem.optimizer.param_groups[0]["lr"] = 0.02 * step

    found = observe(ways=Ways(early=early), mode="simplify", steps=12)
    assert found.run.lr_scale != 0
    assert found.readings >= 2
    return found


@fault(
    "the rate is NaN for a step",
    "`lr = nan` set by the user at one step, under `mode='hold'`",
    said="geometry of 0 failed (MeasurementError: 12 of 12 neurons have NaN",
    recorded="neurons have NaN or infinite entries",
    counts={"fault/geometry of 0": 3, "fault/geometry of 2": 3},
)
def rate_nan() -> Observed:
    def early(step: int, problem: Problem) -> None:
        problem.optimizer.param_groups[0]["lr"] = math.nan if step == 3 else 0.1

    return observe(ways=Ways(early=early), mode="hold", steps=6)


@fault(
    "the rate becomes a tensor",
    "`lr = torch.tensor(0.05)` set by the user in the run, under `mode='preserve'`",
)
def rate_tensor() -> Observed:
    def early(step: int, problem: Problem) -> None:
        if step == 3:
            problem.optimizer.param_groups[0]["lr"] = torch.tensor(0.05, dtype=torch.float64)

    return observe(ways=Ways(early=early), mode="preserve", make=lambda: Problem(AdamW))


@fault(
    "the factor cannot be put on",
    "`RuntimeError` when the rates are scaled",
    said="steering failed (RuntimeError: read-only",
    recorded="the user's own rate is in force",
    counts={"fault/steering": 1},
)
def cannot_apply() -> Observed:
    return observe(
        lambda topo: failing(RateScaler, "apply", RuntimeError("read-only"), 1),
        mode="preserve",
        make=lambda: Problem(lr=5.0),
    )


@fault(
    "the user's hook on the step raises",
    "a pre-hook of the user's, behind topoopt's, under `mode='hold'`",
)
def user_hook() -> Observed:
    calls: dict[int, int] = {}

    def early(step: int, problem: Problem) -> None:
        if step == 0:

            def hook(optimizer: Any, args: Any, kwargs: Any) -> None:
                calls[id(problem)] = calls.get(id(problem), 0) + 1
                if calls[id(problem)] == 4:
                    raise ValueError("mine")

            problem.optimizer.register_step_pre_hook(hook)

    return observe(ways=Ways(early=early, survives=(ValueError,)), mode="hold", make=lambda: Problem(lr=1.5))


@fault(
    "somebody else sets the rate during a step",
    "a post-hook of the user's halves `lr`, under `mode='hold'`",
)
def rate_set_within() -> Observed:
    def after(step: int, problem: Problem) -> None:
        problem.optimizer.param_groups[0]["lr"] *= 0.5

    return observe(ways=Ways(after=after), mode="hold", make=lambda: Problem(SGD, 1.5, momentum=0.9))

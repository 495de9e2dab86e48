"""Checkpoints that are damaged, hostile, of another run or of an older version."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fault_table import fault
from fault_training import Observed, Problem, Ways, observe, train

from topoopt import TopoOptimizer

REFUSED = "the state in this checkpoint is not used"
MODES: dict[str, Any] = {"every": 1, "budget": None, "homology": 0, "mode": "preserve"}


def saved(**options: Any) -> dict[str, Any]:
    """topoopt's part of a checkpoint of a run of 5 steps."""
    problem = Problem(lr=3.0)
    topo = TopoOptimizer(problem.optimizer, problem.model, **(MODES | options))
    train(problem, Ways(), 5)
    state = copy.deepcopy(topo.topo_state_dict())
    topo.detach()
    return state


def loaded(state: Any, *, taken: bool = False, raw: Callable[[dict[str, Any]], Any] | None = None) -> Observed:
    """Load it in the middle of a run, by way of the optimizer's own `load_state_dict`, and go on."""

    def early(step: int, problem: Problem) -> None:
        if step == 3:
            whole = problem.optimizer.state_dict()
            if isinstance(problem.optimizer, TopoOptimizer):
                before = problem.optimizer.topo_state_dict()
                whole["topoopt"] = raw(before) if raw is not None else state
                problem.optimizer.load_state_dict(whole)
                assert (problem.optimizer.topo_state_dict() != before) == taken
            else:
                problem.optimizer.load_state_dict(whole)

    found = observe(ways=Ways(early=early), mode="preserve", make=lambda: Problem(lr=3.0))
    assert found.readings >= 7
    assert found.run.faults.counts["state_refused"] == (not taken)
    return found


def refused(name: str, injected: str, change: Callable[[dict[str, Any]], Any]) -> None:
    fault(name, injected, said=REFUSED, counts={"fault/state_refused": 1})(lambda: loaded(None, raw=change))


def put(path: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    """A state with something else in one place."""

    def change(state: dict[str, Any]) -> dict[str, Any]:
        state = inner = copy.deepcopy(state)
        *names, last = path.split(".")
        for name in names:
            inner = inner[name]
        inner[last] = value
        return state

    return change


def without(path: str) -> Callable[[dict[str, Any]], Any]:
    def change(state: dict[str, Any]) -> dict[str, Any]:
        state = inner = copy.deepcopy(state)
        *names, last = path.split(".")
        for name in names:
            inner = inner[name]
        del inner[last]
        return state

    return change


def deep(state: Any) -> Any:
    nest: Any = []
    for _ in range(100_000):
        nest = [nest]
    return put("steering.state", {"deep": nest})(state)


refused("a state of a later version", "`version` 99", put("version", 99))
refused("a state whose version is no number", "`version` a tensor", put("version", torch.ones(3)))
refused("a truncated state", "`reader` missing", without("reader"))
refused("a state that is truncated within", "`steering.decision` missing", without("steering.decision"))
refused("a state that is a list", "`[1, 2]`", lambda state: [1, 2])
refused("a state of negative steps", "`step` -1", put("step", -1))
refused("a state of more steps than there are", "`step` 10 to the 400", put("step", 10**400))
refused("a state whose step is NaN", "`step` nan", put("step", math.nan))
refused("a rate that is none", "`base_lr` 10 to the 400", put("base_lr", 10**400))
refused("an infinite rate", "`base_lr` inf", put("base_lr", math.inf))
refused("a hostile factor: 0", "`decision.scale` 0.0", put("steering.decision.scale", 0.0))
refused("a hostile factor: 1e30", "`decision.scale` 1e30", put("steering.decision.scale", 1e30))
refused("a hostile factor: NaN", "`decision.scale` nan", put("steering.decision.scale", "nan"))
refused("a hostile factor: a word", "`decision.scale` 'x'", put("steering.decision.scale", "x"))
refused("a hostile breaker", "`breaker.faults` a list", put("steering.breaker.faults", [3]))
refused("a hostile reading", "`reading.r` a dict", put("steering.reading", {"r": {}}))
refused("hostile rates", "`last_rates` of strings", put("steering.last_rates", ["a"]))
refused("a hostile wait", "`wait` -5", put("steering.wait", -5))
refused("a hostile engine", "`tracker.engine` of no name", put("reader.tracker.engine", "../../x"))
refused("a hostile count", "`tracker.count` a list", put("reader.tracker.count", [1]))
refused("a state nested 100,000 deep", "lists within lists", deep)
refused("the first version, truncated", "`version` 1 and nothing else", lambda state: {"version": 1})
refused(
    "the first version, of wrong types",
    "`version` 1, `tracker` a list",
    lambda state: {"version": 1, "step": 3, "observer": {"spectral": {"tracker": [1]}}, "steering": {}},
)


@fault("a policy's own memory is spoilt", "`steering.state` of numbers, which the policy then cannot use")
def spoilt_memory() -> Observed:
    return loaded(None, taken=True, raw=put("steering.state", {"x": 1}))


@fault("a state that has waited beyond all steps", "`steering.next` 10 to the 12")
def far_next() -> Observed:
    return loaded(None, taken=True, raw=put("steering.next", 10**12))


@fault("a state of a network of another width", "saved at 48 neurons")
def other_width() -> Observed:
    torch.manual_seed(1)
    problem = Problem(lr=3.0)
    problem.model[0], problem.model[2] = torch.nn.Linear(6, 48), torch.nn.Linear(48, 8)
    problem.optimizer = torch.optim.SGD(problem.model.parameters(), lr=3.0)
    topo = TopoOptimizer(problem.optimizer, problem.model, **MODES)
    train(problem, Ways(), 5)
    state = topo.topo_state_dict()
    topo.detach()
    return loaded(state, taken=True)


@fault("a state of another policy", "saved under `mode='hold'`, loaded under `preserve`")
def other_policy() -> Observed:
    return loaded(saved(mode="hold"), taken=True)


@fault("a state of the first version", "as 0.1.0 wrote it (`golden/state-1.pt`)")
def first_version() -> Observed:
    first = torch.load(Path(__file__).parent / "golden" / "state-1.pt", weights_only=True)
    assert (first["version"], first["step"]) == (1, 5)
    return loaded(first, taken=True)


@fault("a checkpoint without topoopt's part", "`load_state_dict` of a bare run's")
def bare_checkpoint() -> Observed:
    def early(step: int, problem: Problem) -> None:
        if step == 3:
            whole = problem.optimizer.state_dict()
            whole.pop("topoopt", None)
            problem.optimizer.load_state_dict(whole)

    return observe(ways=Ways(early=early), mode="preserve", make=lambda: Problem(lr=3.0))


@fault(
    "a checkpoint of the optimizer that torch refuses",
    "other parameter groups; `ValueError`, which the training catches",
)
def torch_refuses() -> Observed:
    def early(step: int, problem: Problem) -> None:
        if step == 3:
            whole = problem.optimizer.state_dict()
            whole["param_groups"] = whole["param_groups"] * 2
            try:
                problem.optimizer.load_state_dict(whole)
            except ValueError:
                return
            raise AssertionError("torch takes it")

    return observe(ways=Ways(early=early), mode="preserve", make=lambda: Problem(lr=3.0))


@fault(
    "a checkpoint within a steered step",
    "`state_dict()` in a closure: no steered rate in it, and `weights_only` reads it",
)
def saved_within() -> Observed:
    rates: list[float] = []

    def step(step: int, problem: Problem) -> None:
        def closure() -> torch.Tensor:
            problem.optimizer.zero_grad()
            loss = problem.loss()
            loss.backward()
            if step == 4:
                whole = problem.optimizer.state_dict()
                if isinstance(problem.optimizer, TopoOptimizer):
                    rates.append(whole["param_groups"][0]["lr"])
                file = io.BytesIO()
                torch.save(whole, file)
                file.seek(0)
                torch.load(file, weights_only=True)
            return loss

        problem.optimizer.step(closure)

    found = observe(ways=Ways(step=step), mode="preserve", make=lambda: Problem(lr=3.0))
    assert rates == [3.0]
    return found

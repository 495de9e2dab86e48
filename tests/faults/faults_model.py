"""The model, its weights and its optimizer become others while they are measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from fault_table import fault
from fault_training import Observed, Problem, Ways, observe
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim import SGD, Adam, AdamW

AT = 4
"""The step before which the change happens."""


def changed(change: Callable[[Problem], Any], *, make: Callable[[], Problem] = Problem, **options: Any) -> Observed:
    found = observe(
        ways=Ways(early=lambda step, problem: change(problem) if step == AT else None), make=make, **options
    )
    assert found.readings >= 6, found.texts
    return found


def again(problem: Problem, lr: float = 0.1) -> None:
    """The optimizer takes the model's parameters of now, as users do by hand."""
    problem.optimizer.param_groups[0]["params"] = list(problem.model.parameters())
    problem.optimizer.state.clear()


@fault("a layer vanishes", "two modules of a Sequential are deleted; the optimizer keeps their weights")
def vanishes() -> Observed:
    def change(problem: Problem) -> None:
        del problem.model[1:3]
        problem.model[1] = nn.Identity()
        problem.model[2] = nn.Linear(12, 3)
        again(problem)

    found = changed(change)
    assert set(found.run.last.groups) == {"0"}
    return found


@fault("a layer is widened", "a wider one takes its place")
def widened() -> Observed:
    def change(problem: Problem) -> None:
        torch.manual_seed(3)
        problem.model[0], problem.model[2] = nn.Linear(6, 20), nn.Linear(20, 8)
        again(problem)

    found = changed(change)
    assert found.run.last.groups["0"].n == 20
    return found


@fault("a layer is widened in place", "`weight.data` is given another shape")
def widened_in_place() -> Observed:
    def change(problem: Problem) -> None:
        torch.manual_seed(3)
        first, second = problem.model[0], problem.model[2]
        first.weight.data, first.bias.data = torch.randn(20, 6), torch.randn(20)  # type: ignore[union-attr, operator]
        second.weight.data = torch.randn(8, 20)  # type: ignore[union-attr]

    found = changed(change)
    assert found.run.last.groups["0"].n == 20
    return found


@fault("two layers are merged", "two Linears become one, as adapters are")
def merged() -> Observed:
    def change(problem: Problem) -> None:
        torch.manual_seed(3)
        problem.model[2], problem.model[3] = nn.Linear(12, 3), nn.Identity()
        problem.model[4] = nn.Identity()
        again(problem)

    found = changed(change)
    assert set(found.run.last.groups) == {"0"}
    return found


@fault("a layer is unfrozen", "`requires_grad_(True)` in the run")
def unfrozen() -> Observed:
    def make() -> Problem:
        problem = Problem()
        for layer in (problem.model[0], problem.model[2]):
            layer.requires_grad_(False)
        return problem

    found = changed(lambda problem: problem.model.requires_grad_(True), make=make)
    assert set(found.run.last.groups) == {"0", "2"}
    return found


@fault("a layer is frozen", "`requires_grad_(False)` in the run", recorded="none of its parameters is moved")
def frozen() -> Observed:
    def change(problem: Problem) -> None:
        for layer in (problem.model[0], problem.model[2]):
            layer.requires_grad_(False)

    return changed(change)


@fault("a layer is pruned", "`prune.l1_unstructured`: its weight becomes a mask times another")
def pruned() -> Observed:
    def change(problem: Problem) -> None:
        prune.l1_unstructured(problem.model[0], "weight", amount=0.3)
        again(problem)

    return changed(change)


@fault("a layer is parametrized", "`weight_norm` in the run")
def parametrized() -> Observed:
    def change(problem: Problem) -> None:
        parametrizations.weight_norm(problem.model[0])
        again(problem)

    return changed(change)


@fault("the model changes its type", "`model.double()` in the run")
def doubled() -> Observed:
    def change(problem: Problem) -> None:
        problem.model.double()
        problem.x = problem.x.double()

    return changed(change, keep="host", homology=1)


@fault("the optimizer forgets its state", "`optimizer.state.clear()`")
def forgets() -> Observed:
    return changed(lambda problem: problem.optimizer.state.clear(), make=lambda: Problem(AdamW, 1e-2))


@fault("the optimizer's state holds words", "`state['step']` is a string, with a budget")
def words() -> Observed:
    class Wordy(Adam):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        self.state[p].setdefault("exp_avg_sq", torch.ones_like(p))
                        self.state[p]["step"] = "seventh"
                        p -= group["lr"] * p.grad

    return observe(make=lambda: Problem(Wordy, 0.1), budget=0.9)


@fault("the optimizer's settings go", "`lr` is taken out of a group that has none", recorded="")
def no_rate() -> Observed:
    class Rateless(SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for p in group["params"]:
                    p -= 0.1 * p.grad

    def late(step: int, problem: Problem) -> None:
        problem.optimizer.param_groups[0]["lr"] = 0.0

    return observe(make=lambda: Problem(Rateless), ways=Ways(late=late))


@fault("all parameter groups go", "`param_groups[0]['params'].clear()`, and a new group is added")
def groups_go() -> Observed:
    def change(problem: Problem) -> None:
        problem.optimizer.param_groups[0]["params"].clear()
        problem.optimizer.add_param_group({"params": list(problem.model.parameters()), "lr": 0.05})

    return changed(change)


@fault("the model loses its forward", "`model.forward` is replaced by a function of the user's")
def forward_replaced() -> Observed:
    def change(problem: Problem) -> None:
        own = problem.model.forward
        problem.model.forward = lambda x: own(x) * 1.0  # type: ignore[method-assign]

    return changed(change)


@fault(
    "weights become NaN and come back",
    "one step of NaN; the user reloads the weights",
    counts={"fault/geometry of 0": 8, "fault/geometry of 2": 8},
    said="geometry of 0 failed",
    recorded="NaN",
)
def nan_and_back() -> Observed:
    held: dict[int, Any] = {}

    def early(step: int, problem: Problem) -> None:
        if step == 2:
            held[id(problem)] = {k: v.clone() for k, v in problem.model.state_dict().items()}
        if step == 12:
            problem.model.load_state_dict(held[id(problem)])

    def late(step: int, problem: Problem) -> None:
        if step == 4:
            for p in problem.model.parameters():
                p.grad.fill_(math.nan)  # type: ignore[union-attr]

    found = observe(ways=Ways(early=early, late=late), steps=16)
    assert set(found.run.last.groups) == {"0", "2"}
    return found


@fault("a buffer appears", "`register_buffer` and a hook of the user's that changes it at each forward")
def buffer() -> Observed:
    def change(problem: Problem) -> None:
        problem.model.register_buffer("calls", torch.zeros(()))
        problem.model.register_forward_hook(lambda m, a, r: m.calls.add_(1) and None)

    def check(step: int, problem: Problem) -> None:
        if step == 7:
            assert float(problem.model.calls) == 4.0  # type: ignore[arg-type]

    ways = Ways(early=lambda step, problem: change(problem) if step == AT else None, after=check)
    return observe(ways=ways)


@fault("a step twice for one backward", "`optimizer.step()` called two times")
def twice() -> Observed:
    def step(step: int, problem: Problem) -> None:
        problem.optimizer.step()
        if step == AT:
            problem.optimizer.step()

    return observe(ways=Ways(step=step))

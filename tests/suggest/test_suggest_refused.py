"""What `topoopt.suggest` refuses, and what it declares."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from suggest_tasks import digits, loss_fn, mlp
from torch import Tensor, nn

from topoopt import TopoOptimizer, suggest
from topoopt.errors import ConfigError, NotDefinedError, SteeringError, TopoError

Make = Callable[[nn.Module], torch.optim.Optimizer]


def adamw(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), **options)


class Ignores(torch.optim.Optimizer):
    """Its steps have one length, whatever its rate."""

    def __init__(self, parameters: Any, lr: float = 0.1) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(0.05 * p.grad)


class Follows(Ignores):
    """Gradient descent by another name, which no table knows."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad)


class Lion(Ignores):
    """Stands for every rule that moves by signs."""


def prodigy(model: nn.Module) -> torch.optim.Optimizer:
    return pytest.importorskip("prodigyopt").Prodigy(model.parameters())


def schedule_free(model: nn.Module) -> torch.optim.Optimizer:
    return pytest.importorskip("schedulefree").AdamWScheduleFree(model.parameters())


def searching(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")


REFUSED: list[tuple[Make, type[TopoError], str]] = [
    (prodigy, SteeringError, "finds its own scale"),
    (schedule_free, SteeringError, "averages its iterates"),
    (searching, SteeringError, "line search"),
    (lambda m: torch.optim.LBFGS(m.parameters()), NotDefinedError, "closure"),
    (lambda m: torch.optim.Rprop(m.parameters()), NotDefinedError, "signs"),
    (lambda m: Lion(m.parameters()), NotDefinedError, "signs"),
    (lambda m: torch.optim.ASGD(m.parameters()), SteeringError, "does not double its step"),
    (lambda m: Ignores(m.parameters()), SteeringError, "does not double its step"),
    (partial(adamw, lr=0.0), ConfigError, r"\[0.0\]"),
    (lambda m: adamw(mlp()), ConfigError, "trains no weight of the model"),
]


@pytest.mark.parametrize(("make", "kind", "words"), REFUSED)
def test_a_rule_whose_step_does_not_follow_its_rate_is_refused(make: Make, kind: type[TopoError], words: str) -> None:
    model = mlp(16, 1)
    with pytest.raises(kind, match=words):
        suggest(model, make(model), digits(48), loss_fn)


def test_a_rule_that_is_not_recognised_but_follows_its_rate_is_declared() -> None:
    model = mlp(16, 1)
    answer = suggest(model, Follows(model.parameters()), digits(48), loss_fn)
    assert answer.known
    assert "not recognised" in answer.reason
    named = suggest(model, torch.optim.SGD(model.parameters(), lr=0.1), digits(48), loss_fn)
    assert answer.lr[0] == pytest.approx(named.lr[0], rel=0.2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 20}, "steps=20"),
        ({"steps": True}, "steps=True"),
        ({"steps": 100.0}, "steps=100.0"),
        ({"max_norm": 0.0}, "max_norm=0.0"),
        ({"max_norm": "1"}, "max_norm='1'"),
        ({"batches": []}, "batches"),
        ({"model": loss_fn}, "model is a function"),
        ({"optimizer": "adamw"}, "optimizer is a str"),
        ({"loss_fn": nn.CrossEntropyLoss()}, "takes outputs and targets"),
        ({"loss_fn": lambda m, b: m(b[0])}, r"shape \(64, 10\)"),
        ({"loss_fn": lambda m, b: float(loss_fn(m, b))}, "returned a float"),
        ({"loss_fn": None, "batches": [torch.zeros(4, 64)]}, r"the model returned a tensor of shape \(4, 10\)"),
    ],
)
def test_arguments_that_cannot_work_are_refused_with_their_value(options: dict[str, Any], words: str) -> None:
    model = mlp(16, 1)
    given = {"model": model, "optimizer": adamw(model), "batches": digits(48), "loss_fn": loss_fn} | options
    with pytest.raises(ConfigError, match=words):
        suggest(**given)


def test_what_spans_processes_or_is_wrapped_already_is_refused() -> None:
    model = mlp(16, 1)
    with pytest.raises(ConfigError, match="DataParallel spans processes"):
        suggest(nn.DataParallel(model), adamw(model), digits(48), loss_fn)
    wrapped = TopoOptimizer(adamw(model), model, homology=-1)
    try:
        with pytest.raises(ConfigError, match="before wrapping"):
            suggest(model, wrapped, digits(48), loss_fn)  # type: ignore[arg-type]
    finally:
        wrapped.detach()


def test_a_loss_without_a_graph_is_said() -> None:
    def without(model: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad():
            return loss_fn(model, batch)

    model = mlp(16, 1)
    with pytest.raises(TopoError, match="no graph"):
        suggest(model, adamw(model), digits(48), without)

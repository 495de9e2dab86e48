"""Every recognised rule, before and after a step, against the dense Jacobian of the optimizer's own step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from held_oracle import dense_hessian, flat, gradients, held_jacobian, radius
from torch import Tensor, nn, optim

from topoopt.curvature import proximity
from topoopt.curvature.rules import RULES

torch_generator = torch.Generator().manual_seed(0)
X = torch.randn(40, 4, generator=torch_generator, dtype=torch.float64)
Y = torch.randn(40, 2, generator=torch_generator, dtype=torch.float64)
ALL = 48
"""More products than there are weights: the estimate is exact."""


class DeepLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first, self.second = nn.Linear(4, 3).double(), nn.Linear(3, 2).double()
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def mse(model: nn.Module) -> Tensor:
    return (model(X) - Y).square().mean()


RULE_CASES = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "sgd decay": lambda p: optim.SGD(p, lr=0.1, weight_decay=0.3),
    "momentum": lambda p: optim.SGD(p, lr=0.05, momentum=0.9),
    "dampening": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.4, weight_decay=0.1),
    "nesterov": lambda p: optim.SGD(p, lr=0.05, momentum=0.8, nesterov=True, weight_decay=0.1),
    "maximize": lambda p: optim.SGD(p, lr=1e-3, weight_decay=0.2, maximize=True),
    "adam": lambda p: optim.Adam(p, lr=0.01),
    "adam decay": lambda p: optim.Adam(p, lr=0.01, weight_decay=0.2),
    "adam tensor lr": lambda p: optim.Adam(p, lr=torch.tensor(0.01), betas=(0.8, 0.99)),
    "adam maximize": lambda p: optim.Adam(p, lr=1e-3, maximize=True, weight_decay=0.1),
    "amsgrad": lambda p: optim.Adam(p, lr=0.01, amsgrad=True, betas=(0.9, 0.7)),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.5),
    "nadam": lambda p: optim.NAdam(p, lr=0.01, weight_decay=0.1),
    "nadam decoupled": lambda p: optim.NAdam(p, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "radam": lambda p: optim.RAdam(p, lr=0.01, weight_decay=0.1),
    "radam decoupled": lambda p: optim.RAdam(p, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "adamax": lambda p: optim.Adamax(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.003, weight_decay=0.1),
    "rmsprop momentum": lambda p: optim.RMSprop(p, lr=0.003, momentum=0.8, alpha=0.9),
    "rmsprop centered": lambda p: optim.RMSprop(p, lr=0.003, centered=True, alpha=0.9),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.05, lr_decay=0.1, weight_decay=0.1),
    "adadelta": lambda p: optim.Adadelta(p, lr=1.0),
    "adadelta decay": lambda p: optim.Adadelta(p, lr=1.0, weight_decay=0.1),
    "asgd": lambda p: optim.ASGD(p, lr=0.05, lambd=0.1, weight_decay=0.1),
}


def trained(make, steps: int) -> tuple[nn.Module, optim.Optimizer]:
    model = DeepLinear()
    optimizer = make(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        mse(model).backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("steps", [0, 1, 7, 20])
@pytest.mark.parametrize("case", RULE_CASES)
def test_r_before_the_step_is_that_of_the_steps_own_jacobian(case: str, steps: int) -> None:
    model, optimizer = trained(RULE_CASES[case], steps)
    truth = radius(held_jacobian(model, optimizer, mse))
    optimizer.zero_grad()
    mse(model).backward()
    found = proximity(optimizer, lambda: mse(model), products=ALL, when="upcoming")
    assert found.form == "held"
    assert found.r == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("case", [c for c in RULE_CASES if c != "dampening"])
def test_r_after_the_step_is_that_of_the_step_just_taken(case: str, steps: int) -> None:
    """The loss is the quadratic of the point before the step, so that its Hessian is the same after it."""
    model, optimizer = trained(RULE_CASES[case], steps - 1)
    weights = [p.detach().clone() for p in model.parameters()]
    truth = radius(held_jacobian(model, optimizer, mse))
    optimizer.zero_grad()
    mse(model).backward()
    optimizer.step()
    after = proximity(optimizer, _at(model, weights), products=ALL, when="last")
    # Adadelta's old average is found from the gradient, whose decay part has moved with the weights since
    assert after.r == pytest.approx(truth, rel=2e-2 if case == "adadelta decay" else 1e-3)


def _at(model: nn.Module, weights: list[Tensor]):
    """The loss at x - D: its Hessian now is what it was before the step."""
    now = [p.detach().clone() for p in model.parameters()]

    def loss() -> Tensor:
        moved = {name: p - new + old for (name, p), new, old in zip(model.named_parameters(), now, weights)}
        return (torch.func.functional_call(model, moved, (X,)) - Y).square().mean()

    return loss


TORCH = {
    "plain": {"lr": 0.02},
    "capped rate": {"lr": 0.9},
    "clipped late": {"lr": 0.02, "d": 2.0, "beta2_decay": -0.5},
    "decay": {"lr": 0.02, "weight_decay": 0.1, "eps": (1e-6, 1e-3)},
}
TRANSFORMERS = {
    "as Trainer": {"lr": 0.02, "scale_parameter": False, "relative_step": False},
    "own rate": {"scale_parameter": True, "relative_step": True, "warmup_init": True},
    "momentum": {"lr": 0.02, "scale_parameter": True, "relative_step": False, "beta1": 0.6},
    "decay": {"lr": 0.02, "scale_parameter": True, "relative_step": False, "weight_decay": 0.1},
}
ADAFACTOR = [("torch", case) for case in TORCH] + [("transformers", case) for case in TRANSFORMERS]


def adafactor(where: str, case: str):
    if where == "torch":
        return lambda p: optim.Adafactor(p, **TORCH[case])
    factory: Any = pytest.importorskip("transformers").Adafactor
    return lambda p: factory(p, **TRANSFORMERS[case])


def held_by_its_own_step(model: nn.Module, optimizer: optim.Optimizer) -> Tensor:
    """-dD/dx with the preconditioner held, from nothing but Adafactor's step: without the average, D = -w g - s x."""
    moves = []
    for decay in (0.0, optimizer.param_groups[0]["weight_decay"]):
        twin, stepping = copy.deepcopy((model, optimizer))
        stepping.param_groups[0]["weight_decay"] = decay
        for state in stepping.state.values():
            if "exp_avg" in state:
                state["exp_avg"].zero_()
        stepping.zero_grad()
        mse(twin).backward()
        stepping.step()
        moves.append(flat(list(twin.parameters())) - flat(list(model.parameters())))
    weight = -moves[0] / flat([g for g in gradients(model, mse) if g is not None])
    shift = (moves[0] - moves[1]) / flat(list(model.parameters()))
    return weight[:, None] * dense_hessian(model, mse) + torch.diag(shift)


@pytest.mark.parametrize("steps", [0, 1, 7, 20])
@pytest.mark.parametrize(("where", "case"), ADAFACTOR)
def test_adafactor_before_a_step(where: str, case: str, steps: int) -> None:
    model, optimizer = trained(adafactor(where, case), steps)
    truth = radius(held_by_its_own_step(model, optimizer))
    optimizer.zero_grad()
    mse(model).backward()
    found = proximity(optimizer, lambda: mse(model), products=ALL, when="upcoming")
    assert (found.form, found.rule) == ("held", "adafactor")
    assert found.edge == (3.2 if case == "momentum" else 2.0)
    assert found.r == pytest.approx(truth, rel=1e-3)


@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize(("where", "case"), ADAFACTOR)
def test_adafactor_after_a_step(where: str, case: str, steps: int) -> None:
    model, optimizer = trained(adafactor(where, case), steps - 1)
    weights = [p.detach().clone() for p in model.parameters()]
    truth = radius(held_by_its_own_step(model, optimizer))
    optimizer.zero_grad()
    mse(model).backward()
    optimizer.step()
    after = proximity(optimizer, _at(model, weights), products=ALL, when="last")
    # torch's state does not keep the size that the weights had, which scales the rate
    assert after.r == pytest.approx(truth, rel=0.05 if where == "torch" else 1e-3)


def test_every_recognised_rule_has_a_case() -> None:
    covered = {type(make(nn.Linear(2, 2).parameters())).__name__ for make in RULE_CASES.values()}
    assert set(RULES["torch.optim"]) - covered == {"SparseAdam", "Adafactor"}  # have their own tests
    assert set(RULES) - {"torch.optim"} == {"transformers.optimization"}
    assert set(RULES["transformers.optimization"]) == {"Adafactor"}

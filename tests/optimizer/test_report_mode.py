"""The training run is sacred: in report mode every weight is bit for bit what it would have been."""

from __future__ import annotations

import inspect

import pytest
import torch
from training_problems import Problem, same

from topoopt import Phase

CLASSES = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
)
OPTIONS: dict[str, dict] = {"SGD": {"momentum": 0.9}}


def build(name: str, problem: Problem) -> torch.optim.Optimizer:
    parameters = list(problem.model.parameters())
    if name == "Muon":  # takes matrices only
        parameters = [p for p in parameters if p.ndim == 2]
    return getattr(torch.optim, name)(parameters, **({"lr": 0.01} | OPTIONS.get(name, {})))


def step(problem: Problem, stepped, name: str) -> None:
    problem.model.zero_grad()
    if name == "LBFGS":

        def closure() -> torch.Tensor:
            stepped.zero_grad()
            loss = problem.loss()
            loss.backward()
            return loss

        stepped.step(closure)
        return
    problem.loss().backward()
    if name == "SparseAdam":
        for p in problem.model.parameters():
            assert p.grad is not None
            p.grad = p.grad.to_sparse()
    stepped.step()


@pytest.mark.parametrize("given", [True, False], ids=["given loss", "own step"])
@pytest.mark.parametrize("name", CLASSES)
def test_weights_are_what_they_would_have_been(name: str, given: bool, wrap) -> None:
    bare = Problem()
    plain = build(name, bare)
    measured = Problem()
    topo = wrap(build(name, measured), measured, **({} if given else {"loss": None}))
    taken = 0
    for _ in range(21):
        step(bare, plain, name)
        step(measured, topo, name)
        taken += topo.measured
    assert same(bare.weights(), measured.weights())
    assert taken == 5
    assert topo.last is not None
    assert topo.last.groups, topo.last.skipped
    without = "needs a closure" if name == "LBFGS" else "no Lipschitz constant" if name == "Rprop" else ""
    for reading in topo.readings:
        assert without in reading.reason if without else reading.r > 0, reading.reason


def test_dropout_batchnorm_and_the_global_generator_are_left_alone(wrap) -> None:
    runs = []
    for measured in (False, True):
        problem = Problem(dropout=0.5, norm=True)
        optimizer = torch.optim.Adam(problem.model.parameters(), lr=0.01)
        topo = wrap(optimizer, problem) if measured else None
        torch.manual_seed(7)
        for _ in range(20):
            problem.model.zero_grad()
            problem.loss().backward()
            optimizer.step()
        if topo is not None:
            assert topo.last is not None
            assert topo.phase is not Phase.UNKNOWN, topo.last.skipped
        runs.append((problem.weights(), torch.get_rng_state(), problem.model.training))
    assert same(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert runs[0][2] is runs[1][2] is True


def test_gradients_are_not_touched(wrap) -> None:
    problem = Problem()
    topo = wrap(torch.optim.SGD(problem.model.parameters(), lr=0.1), problem, every=1)
    problem.loss().backward()
    before = {name: p.grad.clone() for name, p in problem.model.named_parameters() if p.grad is not None}
    topo.step()
    after = {name: p.grad for name, p in problem.model.named_parameters() if p.grad is not None}
    assert same(before, after)

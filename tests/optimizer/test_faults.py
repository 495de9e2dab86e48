"""A fault in measuring never ends a run; a fault in steering gives the user's own rate back."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch.optim import ASGD, LBFGS, SGD, Rprop
from training_problems import Problem, same

from topoopt import Measurement, Phase
from topoopt.control import Reading, State
from topoopt.errors import SteeringError
from topoopt.measurement import Decision


class Broken:
    """A policy that fails from its third reading on."""

    name = "broken"
    steers = True
    interval = 1

    def start(self) -> State:
        return {"seen": 0}

    def decide(self, reading: Reading, state: State) -> tuple[Decision, State]:
        seen = int(state["seen"])  # type: ignore[call-overload]
        if seen >= 2:
            raise RuntimeError("no idea")
        return Decision(0.5, self.name, "target"), {"seen": seen + 1}


def bare_weights(steps: int, factor: float = 1.0) -> dict[str, torch.Tensor]:
    problem = Problem()
    optimizer = SGD(problem.model.parameters(), lr=0.1 * factor)
    for _ in range(steps):
        problem.model.zero_grad()
        problem.loss().backward()
        optimizer.step()
    return problem.weights()


def test_a_loss_that_fails_is_logged_once_counted_and_named(problem: Problem, wrap, train, caplog) -> None:
    def loss() -> torch.Tensor:
        raise ValueError("the batch is gone")

    topo = wrap(SGD(problem.model.parameters(), lr=0.1), problem, loss=loss, every=1)
    with caplog.at_level(logging.WARNING, "topoopt"):
        train(problem, topo, 8)
    assert same(problem.weights(), bare_weights(8))
    said = [r.getMessage() for r in caplog.records]
    assert sum("further faults of this kind are only counted" in one for one in said) == 1
    assert sum("switched off: it failed 5 times in a row" in one for one in said) == 1
    assert topo.last is not None
    assert "the batch is gone" in topo.readings[0].reason
    assert "switched off" in topo.last.skipped["spectral"]
    assert topo.last.counts["fault/spectral"] == 5
    assert topo.last.estimator == "pairwise"


def test_a_sink_that_fails_does_not_stop_the_others(problem: Problem, wrap, train) -> None:
    seen: list[Measurement] = []

    def bad(_: Measurement) -> None:
        raise OSError("disk full")

    topo = wrap(SGD(problem.model.parameters(), lr=0.1), problem, every=1)
    topo.add_sink(bad)
    topo.add_sink(seen.append)
    train(problem, topo, 3)
    assert len(seen) == 3
    assert seen[-1].counts["fault/sink function"] == 2


def test_weights_that_are_not_finite_are_named(problem: Problem, wrap, train) -> None:
    with torch.no_grad():
        problem.model[0].weight[3, 0] = math.nan  # type: ignore[index]
    topo = wrap(SGD(problem.model.parameters(), lr=0.1), problem)
    train(problem, topo, 1)
    assert topo.last is not None
    assert topo.phase is Phase.UNKNOWN
    assert any("neurons 3" in reason for reason in topo.last.skipped.values())


def test_a_steering_fault_gives_the_users_rate_back(wrap, train) -> None:
    problem = Problem()
    topo = wrap(SGD(problem.model.parameters(), lr=0.1), problem, mode=Broken(), every=1)
    scales: list[float] = []
    train(problem, topo, 5, after=lambda _: scales.append(topo.lr_scale))
    assert scales == [0.5, 0.5, 1.0, 1.0, 1.0]
    assert topo.param_groups[0]["lr"] == 0.1
    assert topo.last is not None


def test_a_step_that_raises_leaves_the_rate_as_it_was(problem: Problem, wrap, train) -> None:
    base = SGD(problem.model.parameters(), lr=0.1)
    topo = wrap(base, problem, mode=Broken(), every=1)

    def closure() -> torch.Tensor:
        raise RuntimeError("out of memory")

    problem.loss().backward()
    with pytest.raises(RuntimeError, match="out of memory"):
        topo.step(closure)
    train(problem, topo, 1)
    assert base.param_groups[0]["lr"] == 0.1
    assert topo.last is not None


@pytest.mark.parametrize(
    "make", [Rprop, lambda ps: LBFGS(ps, line_search_fn="strong_wolfe")], ids=["Rprop", "LBFGS line search"]
)
def test_rules_that_do_not_follow_their_rate_are_refused_by_name(problem: Problem, wrap, make) -> None:
    with pytest.raises(SteeringError, match="cannot be steered"):
        wrap(make(problem.model.parameters()), problem, mode="preserve")
    wrap(make(problem.model.parameters()), problem, mode="report")


def test_rules_that_follow_it_in_part_are_declared(problem: Problem, wrap, train) -> None:
    topo = wrap(ASGD(problem.model.parameters(), lr=0.1), problem, mode="preserve")
    train(problem, topo, 1)
    assert topo.last is not None
    assert any("one step late" in note for note in topo.last.notes)


def test_no_forward_seen_is_said_and_mended_later(problem: Problem, wrap, train) -> None:
    problem.loss().backward()
    topo = wrap(SGD(problem.model.parameters(), lr=0.1), problem, loss=None, every=1)
    topo.step()
    assert topo.last is not None
    assert "no forward of the model" in topo.last.skipped["groups"]
    assert "no forward of the model was seen" in topo.last.skipped["spectral"]
    train(problem, topo, 1)
    assert topo.last.groups
    assert "groups" not in topo.last.skipped


def test_example_inputs_spare_the_wait(problem: Problem, wrap) -> None:
    problem.loss().backward()
    topo = wrap(SGD(problem.model.parameters(), lr=0.1), problem, loss=None, every=1)
    topo.example_inputs = ((problem.x,), {})
    topo.step()
    assert topo.last is not None
    assert topo.last.groups


def test_a_model_without_neurons_says_so_and_trains(wrap) -> None:
    model, x = torch.nn.Linear(4, 2), torch.randn(8, 4)
    problem = Problem()
    problem.model, problem.x, problem.y = torch.nn.Sequential(model), x, torch.randint(0, 2, (8,))
    topo = wrap(SGD(model.parameters(), lr=0.1), problem, every=1)
    problem.loss().backward()
    topo.step()
    assert topo.last is not None
    assert "no set of units that can be permuted" in topo.last.skipped["groups"]
    assert topo.last.estimator == "spectral"


def test_frozen_neurons_are_skipped_by_name(wrap, train) -> None:
    problem = Problem()
    for p in problem.model.parameters():
        p.requires_grad_(False)
    problem.model.append(torch.nn.Linear(3, 3))
    topo = wrap(SGD(problem.model[-1].parameters(), lr=0.1), problem, every=1)  # type: ignore[union-attr]
    train(problem, topo, 1)
    assert topo.last is not None
    assert any("none of its parameters is moved" in reason for reason in topo.last.skipped.values())


def test_a_pattern_that_matches_nothing_lists_the_names(problem: Problem, wrap, train) -> None:
    topo = wrap(SGD(problem.model.parameters(), lr=0.1), problem, every=1, include="encoder.*")
    train(problem, topo, 2)
    assert same(problem.weights(), bare_weights(2))
    assert topo.last is not None
    assert "matches no neuron group; there are: 0" in topo.last.skipped["groups"]
    assert topo.last.estimator == "spectral"


def test_a_state_that_is_refused_at_every_step_is_said_once(problem: Problem, wrap, train, caplog) -> None:
    topo = wrap(SGD(problem.model.parameters(), lr=0.1), problem)
    with caplog.at_level(logging.WARNING, "topoopt"):
        for step in range(4):
            topo.load_topo_state_dict({"version": 2, "step": "x" * step})
    assert sum("is not used" in one.getMessage() for one in caplog.records) == 1
    assert topo.topo.counts()["fault/state_refused"] == 4

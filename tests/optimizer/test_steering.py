"""Steering in a run: the factors recorded are the factors applied, and a resumed run steers as the unbroken one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import LambdaLR
from training_problems import Problem, same

from topoopt import Hold, Phase, Preserve, Report, Schedule, Simplify
from topoopt.control import Reading, State
from topoopt.measurement import Decision, Measurement

POLICIES = [Preserve(0.05, floor=0.0), Simplify(), Hold(0.3), Schedule({0: Simplify(), 8: Preserve(0.5)})]


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("kind", [SGD, Adam])
def test_a_steered_run_is_the_bare_run_with_the_same_factors(policy, kind, wrap, train) -> None:
    problem = Problem()
    topo = wrap(kind(problem.model.parameters(), lr=3.0), problem, mode=policy)
    factors: list[float] = []
    train(problem, topo, 20, after=lambda _: factors.append(topo.lr_scale))
    assert len(set(factors)) > 1

    bare = Problem()
    optimizer = kind(bare.model.parameters(), lr=3.0)
    for factor in factors:
        bare.model.zero_grad()
        bare.loss().backward()
        optimizer.param_groups[0]["lr"] = 3.0 * factor
        optimizer.step()
    assert same(problem.weights(), bare.weights())


class Tripled(Report):
    """Three times the user's rate, with a look at the neurons before every fourth step."""

    steers = True

    def decide(self, reading: Reading, state: State) -> tuple[Decision, State]:
        return Decision(3.0, self.name, "target"), state

    def looks(self, step: int, state: State) -> bool:
        return step % 4 == 0


def test_a_look_says_the_factor_that_has_been_in_force(wrap, train) -> None:
    problem = Problem()
    topo = wrap(SGD(problem.model.parameters(), lr=0.01), problem, mode=Tripled(), every=4)
    told: dict[int, Measurement] = {}
    topo.add_sink(lambda m: told.setdefault(m.step, m))
    train(problem, topo, 9)
    assert [told[step].lr_scale for step in (0, 4, 8)] == [1.0, 3.0, 3.0]
    for step in (4, 8):
        reading = next(one for one in topo.readings if one.step == step)
        assert told[step].spectral.scale == reading.scale == 3.0
        assert told[step].proximity == pytest.approx(reading.r)


def test_preserve_measures_before_the_first_step_and_keeps_r(wrap, train) -> None:
    problem = Problem()
    topo = wrap(SGD(problem.model.parameters(), lr=50.0), problem, mode="preserve", every=1)
    phases: list[Phase] = []
    train(problem, topo, 30, after=lambda _: phases.append(topo.phase))
    assert set(phases) == {Phase.CONSTRAINED}
    assert topo.proximity <= 0.9 + 1e-6


def test_simplify_begins_at_the_edge_and_leaves_the_rate_alone_for_its_dwell(wrap, train) -> None:
    problem = Problem()
    topo = wrap(SGD(problem.model.parameters(), lr=1.0), problem, mode=Simplify(dwell=20), every=1)
    seen: list[tuple[float, float]] = []
    train(problem, topo, 20, after=lambda _: seen.append((topo.proximity / 2.0, topo.lr_scale)))
    begun = next(i for i in range(1, 20) if seen[i][1] == seen[i - 1][1] > 1)
    assert 0.8 < seen[begun][0] < 1.3
    assert len({scale for _, scale in seen[begun:]}) == 1


def test_a_jump_of_the_users_rate_is_measured_before_it_acts(wrap, train) -> None:
    problem = Problem()
    topo = wrap(SGD(problem.model.parameters(), lr=0.01), problem, mode="preserve", every=1000)
    train(problem, topo, 6)
    assert topo.lr_scale == 1.0
    topo.param_groups[0]["lr"] = 100.0
    train(problem, topo, 1)
    assert topo.lr_scale < 0.5


def test_a_new_parameter_group_is_read_before_its_first_step(wrap, train) -> None:
    problem = Problem()
    topo = wrap(SGD(problem.model[0].parameters(), lr=1e-4), problem, mode="preserve", every=1000)  # type: ignore[index]
    train(problem, topo, 6)
    before = topo.topo_state_dict()["steering"]["readings"]
    topo.add_param_group({"params": list(problem.model[2].parameters()), "lr": 100.0})  # type: ignore[index]
    train(problem, topo, 1)
    assert topo.topo_state_dict()["steering"]["readings"] == before + 1
    assert topo.lr_scale < 0.5


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_resumed_run_steers_as_the_unbroken_one(policy, wrap, train) -> None:
    def begin(problem: Problem):
        topo = wrap(
            Adam(problem.model.parameters(), lr=0.1),
            problem,
            mode=policy,
            every=3,
            homology=1,
            products=30,
            reading_products=30,
        )
        return topo, LambdaLR(topo, lambda step: 1 / (1 + step / 10))

    def go(problem: Problem, topo, scheduler, steps: int) -> list[tuple]:
        log = []
        for _ in range(steps):
            train(problem, topo, 1)
            scheduler.step()
            log.append((topo.lr_scale, topo.measured, topo.proximity if topo.measured else None))
        return log

    unbroken = Problem()
    topo, scheduler = begin(unbroken)
    go(unbroken, topo, scheduler, 10)
    weights, state = unbroken.weights(), copy.deepcopy(topo.state_dict())
    ahead = scheduler.state_dict()
    expected = go(unbroken, topo, scheduler, 10)

    resumed = Problem()
    again, rescheduler = begin(resumed)
    resumed.model.load_state_dict(weights)
    again.load_state_dict(state)
    rescheduler.load_state_dict(ahead)
    found = go(resumed, again, rescheduler, 10)
    # its first reading starts cold, and is due at once: with fewer products r would be a little other than a warm one
    assert [scale for scale, *_ in found] == pytest.approx([scale for scale, *_ in expected], rel=0.1)
    assert found[0][1]
    assert again.steps == topo.steps == 20
    assert again.topo.about.resumed_at == 10


def test_strict_certifies_every_step(wrap) -> None:
    """A rate that would throw neurons across each other is cut down before anyone sees the weights."""
    problem = Problem()
    with torch.no_grad():  # two near twins
        problem.model[0].weight[1] = problem.model[0].weight[0] + 1e-4  # type: ignore[index]
        problem.model[0].bias[1] = problem.model[0].bias[0]  # type: ignore[index]
        problem.model[2].weight[:, 1] = problem.model[2].weight[:, 0] + 1e-4  # type: ignore[index]
    topo = wrap(SGD(problem.model.parameters(), lr=200.0), problem, mode=Preserve(1000.0), strict=True, every=1)
    topo.example_inputs = ((problem.x,), {})
    for _ in range(3):
        problem.model.zero_grad()
        problem.loss().backward()
        topo.step()
        assert topo.last is not None
        assert all(group.certified for group in topo.last.groups.values())
    assert topo.last is not None
    assert topo.last.counts["shortened_steps"] > 0


def test_readings_grow_rarer_when_nothing_moves(wrap, train) -> None:
    problem = Problem()
    topo = wrap(SGD(problem.model.parameters(), lr=1e-6), problem, mode=Preserve(interval=4), every=1000)
    train(problem, topo, 64)
    assert topo.topo_state_dict()["steering"]["readings"] <= 8

"""Policies as pure functions: what each promises, on readings made by hand and by hypothesis."""

from __future__ import annotations

import copy
import json
import math
import sys
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topoopt.config import TopoConfig
from topoopt.control import (
    Hold,
    Policy,
    Preserve,
    Reading,
    Report,
    Schedule,
    Simplify,
    State,
    policy_from_dict,
    policy_from_mode,
    policy_to_dict,
)
from topoopt.errors import ConfigError
from topoopt.measurement import Decision

EVERY_POLICY: list[Policy] = [
    Report(),
    Preserve(),
    Simplify(),
    Hold(),
    Hold(0.3),
    Simplify(steps=3, then=Hold()),
    Simplify(dwell=2, silent=2, largest_loop=0.5, guard=3.0),
    Schedule({0: Simplify(dwell=2), 0.5: Preserve(0.5)}),
    Schedule({0: Simplify(), 5: Preserve(0.5)}),
]


def reading(step: int = 0, r: float = 1.0, **more) -> Reading:
    return Reading(step=step, r=r, **({"edge": 2.0, "lr": 0.1, "base_lr": 0.1, "loss": 1.0} | more))


def run(policy: Policy, rs: list[float], **more) -> list[float]:
    """Factors of a run whose curvature gives r = rs[t] at the user's rate."""
    state, factors = policy.start(), []
    for step, r in enumerate(rs):
        decision, state = policy.decide(reading(step, r, **more), state)
        factors.append(decision.scale)
    return factors


readings = st.builds(
    reading,
    step=st.integers(0, 20),
    r=st.one_of(st.floats(0, 1e6), st.just(math.nan), st.just(math.inf)),
    edge=st.one_of(st.floats(1, 4), st.none()),
    warming=st.sampled_from(["", "its second moment is young"]),
    snapshot=st.booleans(),
    measured_step=st.integers(-1, 20),
    topology_step=st.integers(-1, 20),
    largest_loop=st.one_of(st.just(math.nan), st.floats(0, 1)),
    effective_rank=st.one_of(st.just(math.nan), st.floats(1, 9)),
    silent=st.integers(-1, 9),
    neurons=st.integers(0, 9),
    total_steps=st.one_of(st.none(), st.integers(1, 30)),
    lr=st.one_of(st.just(0.0), st.floats(1e-6, 10)),
    base_lr=st.floats(1e-6, 10),
    loss=st.one_of(st.floats(0, 1e9), st.just(math.nan), st.just(math.inf)),
    finite=st.booleans(),
    fresh=st.booleans(),
    vanishing=st.integers(0, 9),
)


@pytest.mark.parametrize("policy", EVERY_POLICY, ids=repr)
@given(seen=st.lists(readings, min_size=1, max_size=12))
def test_every_policy_is_pure_finite_and_survives_json(policy: Policy, seen: list[Reading]) -> None:
    state = policy.start()
    for one in seen:
        before = copy.deepcopy(state)
        decision, after = policy.decide(one, state)
        assert state == before, "the memory passed in was changed"
        assert 0 < decision.scale < 1e6
        again, _ = policy.decide(one, json.loads(json.dumps(state)))
        assert again == decision, "the memory does not survive a checkpoint"
        state = after


@given(rs=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8), target=st.floats(0.1, 1), floor=st.floats(0, 0.5))
def test_preserve_keeps_r_and_never_raises_the_rate(rs: list[float], target: float, floor: float) -> None:
    factors = run(Preserve(target, floor), rs)
    for r, factor in zip(rs, factors):
        assert floor <= factor <= 1.0
        assert r * factor <= max(target, floor * r) * (1 + 1e-12)


def test_preserve_says_that_it_sits_on_its_floor() -> None:
    decision, _ = Preserve(0.9, floor=0.1).decide(reading(r=90.0), Preserve().start())
    assert (decision.scale, decision.rule) == (0.1, "floor")
    assert "sharpness" in decision.note


def test_preserve_needs_three_readings_to_go_up_and_one_to_go_down() -> None:
    assert run(Preserve(0.9), [0.5, 1.8, 0.5, 0.5, 0.5]) == [1.0, 0.5, 0.5, 0.5, 1.0]


def test_preserve_needs_no_edge() -> None:
    decision, _ = Preserve(0.9).decide(reading(r=1.8, edge=None), Preserve().start())
    assert decision.scale == pytest.approx(0.5)


def test_a_reading_of_a_warming_preconditioner_is_kept_to_and_not_remembered() -> None:
    policy = Preserve(0.9)
    decision, state = policy.decide(reading(0, 90.0, warming="young"), policy.start())
    assert decision.scale == pytest.approx(0.01)
    decision, _ = policy.decide(reading(1, 0.1), state)
    assert decision.scale == 1.0


@pytest.mark.parametrize("policy", [Preserve(), Hold(), Simplify()], ids=lambda policy: policy.name)
def test_without_r_the_users_rate_stands_and_what_is_missing_is_said(policy: Policy) -> None:
    state = policy.start()
    for step in range(4):
        decision, state = policy.decide(reading(step, math.nan, reason="no loss was given", gain=0.01), state)
        assert decision.scale == 1.0
        assert "r is not known: no loss was given" in decision.note


@pytest.mark.parametrize("policy", [Preserve(), Hold(), Simplify()], ids=lambda policy: policy.name)
def test_a_rate_of_zero_is_passed_over_and_nothing_is_latched(policy: Policy) -> None:
    decision, state = policy.decide(reading(0, 0.0, lr=0.0, base_lr=0.0), policy.start())
    assert (decision.scale, decision.rule) == (1.0, "none")
    later = [policy.decide(reading(step, 4.0), state)[0].scale for step in (1,)]
    fresh = policy.decide(reading(1, 4.0), policy.start())[0].scale
    assert later == [fresh]


def test_schedule_switches_at_steps_and_fractions() -> None:
    policy = Schedule({0: Preserve(0.5), 0.5: Preserve(0.25)})
    state = policy.start()
    first, state = policy.decide(reading(0, 1.0, total_steps=10), state)
    assert not policy.stale(4, 10, state)
    assert policy.stale(5, 10, state)
    second, _ = policy.decide(reading(5, 1.0, total_steps=10), state)
    assert (first.scale, second.scale) == (0.5, 0.25)
    assert second.events == ("hand-over to preserve",)


def test_schedule_says_which_phases_cannot_begin_in_a_run_of_unknown_length() -> None:
    policy = Schedule({0: Preserve(0.5), 0.3: Preserve(0.25), 8: Report()})
    first, state = policy.decide(reading(0, 1.0), policy.start())
    assert first.scale == 0.5
    assert any("total_steps" in event for event in first.events)
    again, state = policy.decide(reading(1, 1.0), state)
    assert not again.events
    assert "0.3" in again.note
    assert policy.stale(8, None, state)
    assert policy.decide(reading(8, 1.0), state)[0].policy == "report"


def test_schedule_passes_on_what_its_phase_wants() -> None:
    policy = Schedule({0: Simplify(dwell=4), 20: Preserve()})
    state = policy.start()
    assert policy.looks(0, state)
    for step in range(3):
        _, state = policy.decide(reading(step, 4.0, measured_step=step, topology_step=step, largest_loop=0.3), state)
    assert policy.rests(4, state)
    assert policy.watches(4, state)
    assert policy.stale(6, None, state)
    assert policy.looks(6, state)
    assert not policy.looks(5, state)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Preserve(0.0),
        lambda: Preserve(floor=2.0),
        lambda: Preserve(math.nan),
        lambda: Preserve(True),
        lambda: Preserve("0.9"),  # type: ignore[arg-type]
        lambda: Preserve(floor=math.inf),
        lambda: Preserve(interval=2.0),  # type: ignore[arg-type]
        lambda: Preserve(interval=True),
        lambda: Simplify(guard=0.5),
        lambda: Simplify(target="1.03"),  # type: ignore[arg-type]
        lambda: Simplify(target=2.0, ceiling=1.5),
        lambda: Simplify(up=1.0),
        lambda: Simplify(dwell=0),
        lambda: Simplify(calm=math.nan),
        lambda: Simplify(silent=1.5),
        lambda: Simplify(twins=True),
        lambda: Simplify(effective_rank=1.0),
        lambda: Simplify(then="preserve"),  # type: ignore[arg-type]
        lambda: Simplify(then=Preserve),  # type: ignore[arg-type]
        lambda: Simplify(steps=0),
        lambda: Simplify(persistence=1.5),
        lambda: Hold(-1.0),
        lambda: Hold(interval=0),
        lambda: Hold(math.inf),
        lambda: Hold(floor=0.0),
        lambda: Hold(guard=None),  # type: ignore[arg-type]
        lambda: Schedule({}),
        lambda: Schedule({3: Report()}),
        lambda: Schedule({0: Report(), 2.5: Report()}),
        lambda: Schedule({0: Report(), math.nan: Report()}),
        lambda: Schedule({0: Report(), math.inf: Report()}),
        lambda: Schedule({0: Report(), -1: Report()}),
        lambda: Schedule({0: Report(), True: Report()}),
        lambda: Schedule({0: Report(), "3": Report()}),  # type: ignore[dict-item]
        lambda: Schedule({0: Report, 3: Report()}),  # type: ignore[dict-item]
        lambda: Schedule([(0, Report())]),  # type: ignore[arg-type]
        lambda: policy_from_mode(Simplify),  # type: ignore[arg-type]
        lambda: policy_from_mode("faster"),
        lambda: policy_from_mode(3),  # type: ignore[arg-type]
        lambda: policy_from_dict({"policy": "none"}),
        lambda: TopoConfig(mode="faster"),
    ],
)
def test_bad_settings_are_refused_with_their_value(wrong) -> None:
    with pytest.raises(ConfigError, match=r"not usable|not known|neither"):
        wrong()


@pytest.mark.parametrize("policy", EVERY_POLICY, ids=repr)
def test_policies_round_trip_through_json(policy: Policy) -> None:
    assert policy_from_dict(json.loads(json.dumps(policy_to_dict(policy)))) == policy
    config = TopoConfig(mode=policy, every=7, include="a*")
    assert TopoConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("policy", "settings"),
    [
        (Report(), {}),
        (Preserve(), {"target": 0.9, "floor": 0.01, "keep": 0.5, "interval": 10}),
        (Hold(), {"target": None, "guard": 2.0, "floor": 1e-6, "interval": 5}),
        (Simplify(), {"ceiling": 200.0, "guard": None, "up": 1.3, "dwell": 50, "calm": 2.0, "interval": 10}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_the_documentation_promises_of_a_policy_as_it_comes(policy: Policy, settings: dict) -> None:
    assert {name: getattr(policy, name) for name in settings} == settings
    assert policy.steers == (policy.name != "report")


@dataclass(frozen=True)
class Half:
    """A policy of one's own, as a user would write it."""

    share: float = 0.5
    then: Policy = field(default_factory=Preserve)
    name = "half"
    steers = True

    def start(self) -> State:
        return {}

    def decide(self, reading: Reading, state: State) -> tuple[Decision, State]:
        return Decision(self.share, self.name, "target"), state


def test_a_policy_of_ones_own_round_trips_by_its_module_and_class() -> None:
    config = TopoConfig(mode=Schedule({0: Half(0.25, then=Hold()), 5: Simplify(then=Half())}))
    assert TopoConfig.from_json(config.to_json()) == config
    assert policy_to_dict(Half())["policy"].endswith(":Half")


def test_a_policy_that_cannot_be_saved_is_described_and_says_so() -> None:
    @dataclass(frozen=True)
    class Local(Half):
        pass

    for policy in (Half(share=lambda: 1), Local()):  # type: ignore[arg-type]
        saved = json.loads(json.dumps(policy_to_dict(policy)))
        with pytest.raises(ConfigError, match=r"described, not saved|not known"):
            policy_from_dict(saved)


@pytest.mark.parametrize(
    "name", ["subprocess:Popen", "os:system", "antigravity:x", "topoopt.config:TopoConfig", 3, None]
)
def test_reading_a_policy_imports_and_calls_nothing_but_policies(name) -> None:
    before = set(sys.modules)
    with pytest.raises(ConfigError, match="not known"):
        policy_from_dict({"policy": name, "args": ["true"]})
    assert set(sys.modules) == before

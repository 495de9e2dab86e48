"""Policies as pure functions: what each promises, on readings made by hand and by hypothesis."""

from __future__ import annotations

import copy
import itertools
import json
import math

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
    policy_from_dict,
    policy_from_mode,
    policy_to_dict,
)
from topoopt.control.hold import GROWTH, START
from topoopt.errors import ConfigError

EVERY_POLICY: list[Policy] = [
    Report(),
    Preserve(),
    Simplify(),
    Hold(),
    Hold(0.3),
    Simplify(steps=3, then=Hold()),
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
    edge=st.floats(1, 4),
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
        assert math.isfinite(decision.scale)
        assert decision.scale >= 0
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


def test_simplify_begins_at_the_edge_from_both_sides_and_grows_slowly_from_there() -> None:
    assert run(Simplify(1.03), [4.12])[0] == pytest.approx(0.5)
    assert run(Simplify(1.03), [0.5])[0] == pytest.approx(4.12)
    up = run(Simplify(1.03), [2.06] + [0.5] * 8)
    assert up[:2] == pytest.approx([1.0, 1.3])
    assert all(later <= 1.3 * earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(up))
    assert up[-1] == pytest.approx(2.06 / 0.5)


def test_simplify_stops_at_its_ceiling() -> None:
    assert run(Simplify(ceiling=2.0), [1e-3] * 9)[-1] == pytest.approx(2.0)


def test_guards_halve_the_rate_and_are_recorded() -> None:
    policy = Simplify()
    state = policy.start()
    for step in range(5):
        calm, state = policy.decide(reading(step, 2.06), state)
    spike, _ = policy.decide(reading(5, 2.06, loss=10.0), state)
    assert spike.scale == pytest.approx(calm.scale / 2)
    assert spike.rule == "guard"
    assert spike.events
    blind, _ = policy.decide(reading(5, math.nan, loss=math.nan, finite=False), state)
    assert blind.scale == pytest.approx(calm.scale / 2)


@pytest.mark.parametrize(
    ("policy", "end"),
    [
        (Simplify(steps=2), {}),
        (Simplify(vanishing=3), {"vanishing": 3}),
        (Simplify(twins=2), {"twins": 5}),
        (Simplify(persistence=0.2), {"total_persistence": 0.1}),
    ],
)
def test_simplify_ends_and_hands_over(policy: Simplify, end: dict) -> None:
    state = policy.start()
    for step in range(2):
        decision, state = policy.decide(reading(step, 1.0, total_persistence=1.0), state)
        assert decision.policy == "simplify"
    decision, state = policy.decide(reading(2, 1.0, **end), state)
    assert decision.policy == "preserve"
    assert "simplify ended" in decision.events[0]
    decision, _ = policy.decide(reading(3, 1.0), state)
    assert decision.policy == "preserve"


def test_hold_starts_low_grows_slowly_and_holds_the_shape() -> None:
    factors = run(Hold(0.5), [0.2] * 12)
    wanted = 0.5 * 2.0 / 0.2
    assert factors[0] == pytest.approx(START * wanted)
    assert all(b <= GROWTH * a * (1 + 1e-12) for a, b in itertools.pairwise(factors))
    assert factors[-1] == pytest.approx(wanted)
    # Half way down the user's schedule r halves by itself: the factor stays.
    policy = Hold(0.5)
    state = policy.start()
    for step in range(12):
        _, state = policy.decide(reading(step, 0.2), state)
    half, _ = policy.decide(reading(12, 0.1, lr=0.05), state)
    assert half.scale == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("rule", "target"), [("adamw", 0.5), ("sgd nesterov momentum", 0.25), ("sgd", 1.0), ("black box", 0.5)]
)
def test_hold_knows_a_target_for_each_rule(rule: str, target: float) -> None:
    decision, _ = Hold().decide(reading(r=1.0, rule=rule), Hold().start())
    assert decision.scale == pytest.approx(START * target * 2.0)


def test_schedule_switches_at_steps_and_fractions() -> None:
    policy = Schedule({0: Preserve(0.5), 0.5: Preserve(0.25)})
    state = policy.start()
    first, state = policy.decide(reading(0, 1.0, total_steps=10), state)
    assert not policy.stale(4, 10, state)
    assert policy.stale(5, 10, state)
    second, _ = policy.decide(reading(5, 1.0, total_steps=10), state)
    assert (first.scale, second.scale) == (0.5, 0.25)
    assert second.events == ("hand-over to preserve",)
    with pytest.raises(ConfigError, match="total_steps"):
        policy.decide(reading(0), policy.start())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Preserve(0.0),
        lambda: Preserve(floor=2.0),
        lambda: Simplify(guard=0.5),
        lambda: Simplify(persistence=1.5),
        lambda: Hold(-1.0),
        lambda: Hold(interval=0),
        lambda: Schedule({}),
        lambda: Schedule({3: Report()}),
        lambda: Schedule({0: Report(), 2.5: Report()}),
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

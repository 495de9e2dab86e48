"""Hold as a pure function: where it begins, how it moves, what it follows of the user's schedule."""

from __future__ import annotations

import itertools
import math

import pytest

from topoopt.control import Hold, Reading, State
from topoopt.control.hold import GROWTH, LOWEST, START
from topoopt.control.tracking import watch_loss


def reading(step: int = 0, r: float = 1.0, **more) -> Reading:
    return Reading(step=step, r=r, **({"edge": 2.0, "lr": 0.1, "base_lr": 0.1, "loss": 1.0} | more))


def run(policy: Hold, rs: list[float], **more) -> tuple[list[float], State]:
    state, factors = policy.start(), []
    for step, r in enumerate(rs):
        decision, state = policy.decide(reading(step, r, **more), state)
        factors.append(decision.scale)
    return factors, state


def test_it_starts_low_grows_slowly_and_holds_the_shape() -> None:
    factors, state = run(Hold(0.5), [0.2] * 14)
    wanted = 0.5 * 2.0 / 0.2
    assert factors[0] == pytest.approx(START * wanted)
    assert all(b <= GROWTH * a * (1 + 1e-12) for a, b in itertools.pairwise(factors))
    assert factors[-1] == pytest.approx(wanted)
    # Half way down the user's schedule r halves by itself: the factor stays.
    half, _ = Hold(0.5).decide(reading(14, 0.1, lr=0.05), state)
    assert half.scale == pytest.approx(wanted)


def test_one_wild_reading_of_five_moves_nothing() -> None:
    calm, state = run(Hold(0.5), [0.2] * 14)
    wild, _ = Hold(0.5).decide(reading(14, 50.0), state)
    assert wild.scale == pytest.approx(calm[-1])


@pytest.mark.parametrize(
    ("rule", "target"), [("adamw", 0.5), ("sgd nesterov momentum", 0.3), ("sgd", 1.5), ("black box", 0.5)]
)
def test_it_knows_a_target_for_each_rule(rule: str, target: float) -> None:
    decision, _ = Hold().decide(reading(rule=rule, edge=3.8), Hold().start())
    assert decision.scale == pytest.approx(START * target * 3.8)


def test_a_target_at_a_first_beta_of_nine_tenths_grows_as_it_falls_up_to_the_edge() -> None:
    """The edge says the beta: e = 2 (1 + beta)."""

    def share(rule: str, momentum: float) -> float:
        edge = 2 * (1 + momentum)
        decision, _ = Hold().decide(reading(rule=rule, edge=edge), Hold().start())
        return decision.scale / START / edge

    assert share("adam", 0.7) == pytest.approx(0.5 * 3**0.43)
    assert share("sgd momentum", 0.5) == pytest.approx(0.3 * 5**0.43)
    assert share("sgd momentum", 0.9) == pytest.approx(0.3)
    assert share("adam", 0.0) == pytest.approx(1.0)
    assert share("adam", 0.95) == pytest.approx(share("adam", 0.9)) == pytest.approx(0.5)
    assert share("sgd", 0.0) == pytest.approx(1.5)
    assert Hold(0.7).decide(reading(rule="adam", edge=3.0), Hold().start())[0].scale == pytest.approx(START * 0.7 * 3)


def test_the_first_steps_of_a_preconditioner_are_kept_to_and_not_learnt_from() -> None:
    policy = Hold(0.5)
    first, state = policy.decide(reading(0, 100.0, warming="young"), policy.start())
    assert first.scale == pytest.approx(0.5 * 2.0 / 100.0)
    assert first.rule == "warming"
    second, _ = policy.decide(reading(10, 0.2), state)
    assert second.scale == pytest.approx(START * 0.5 * 2.0 / 0.2)


def test_a_warm_up_by_hand_is_held_and_what_comes_after_it_is_followed() -> None:
    """While the rate rises it is its own peak; when it falls the shape is lr over the largest seen."""
    _, state = run(Hold(0.5), [0.2] * 14)
    held, _ = Hold(0.5).decide(reading(14, 0.4, lr=0.2, base_lr=0.2, fresh=False), state)
    assert held.scale * 0.2 == pytest.approx(0.5 * 2.0 / 0.2 * 0.1)
    after, _ = Hold(0.5).decide(reading(15, 0.2, lr=0.1, base_lr=0.2, fresh=False), state)
    assert after.scale * 0.1 == pytest.approx(held.scale * 0.2 / 2)


def test_a_guard_halves_the_rate_and_is_an_event() -> None:
    calm, state = run(Hold(0.5), [0.2] * 14)
    spike, _ = Hold(0.5).decide(reading(14, 0.2, loss=9.0), state)
    assert spike.scale == pytest.approx(calm[-1] / 2)
    assert spike.events
    blind, _ = Hold(0.5).decide(reading(14, math.nan, loss=math.inf, finite=False), state)
    assert blind.scale == pytest.approx(calm[-1] / 2)


def test_a_new_level_of_the_loss_is_got_used_to_once_it_is_most_of_the_last_21() -> None:
    state: State = {}
    trouble = []
    for loss in [2.0, *[1.0] * 21, *[2.2] * 13]:
        said, state = watch_loss(reading(loss=loss), state, 1.01)
        trouble.append(bool(said))
    assert trouble == [False] * 22 + [True] * 11 + [False] * 2


def test_a_run_too_short_is_told_so_once() -> None:
    policy = Hold()
    first, state = policy.decide(reading(0, total_steps=30), policy.start())
    assert any("too few for Hold" in event for event in first.events)
    second, _ = policy.decide(reading(1, total_steps=30), state)
    assert not second.events
    assert not policy.decide(reading(0, total_steps=120), policy.start())[0].events


def test_an_unknown_edge_is_gradient_descents_and_said_so() -> None:
    decision, _ = Hold(0.5).decide(reading(r=1.0, edge=None, rule="Lion"), Hold().start())
    assert decision.scale == pytest.approx(START * 0.5 * 2.0)
    assert "the edge of Lion is not known" in decision.note


def test_the_rate_follows_no_curvature_that_goes_with_the_loss() -> None:
    """Under cross entropy curvature is proportional to a small loss: a rate in units of it would grow without end."""
    calm, state = run(Hold(0.5), [0.2] * 14)
    factors = calm
    for step in range(14, 90):
        decision, state = Hold(0.5).decide(reading(step, 0.2 * 0.9 ** (step - 14), loss=0.8 ** (step - 14)), state)
        factors.append(decision.scale)
    grown = factors[50]
    assert grown > 2 * factors[13]  # while the loss was of some size
    assert factors[50:] == [grown] * 40
    assert decision.rule == "faded"
    assert "grows no more" in decision.note
    lower, _ = Hold(0.5).decide(reading(90, 4000 * 0.2, loss=1e-6), state)
    assert lower.scale == pytest.approx(grown)  # a single wild reading, as ever
    for step in range(90, 94):
        decision, state = Hold(0.5).decide(reading(step, 0.5, loss=1e-6), state)
    assert decision.scale < grown / 1.5


def test_a_loss_that_begins_below_nothing_never_fades() -> None:
    _, state = run(Hold(0.5), [0.2] * 20, loss=-3.0)
    decision, _ = Hold(0.5).decide(reading(20, 0.2, loss=-30.0), state)
    assert decision.rule != "faded"


def test_a_network_that_leaves_its_plateau_is_followed_at_once() -> None:
    """Curvature that rises reading by reading: the newest counts while the rate is looked for, the second largest after."""
    policy = Hold(0.3)
    state = policy.start()
    for step, k in enumerate((0.06, 0.07, 0.1)):
        decision, state = policy.decide(reading(step, k, lr=1.0, base_lr=1.0), state)
    decision, state = policy.decide(reading(3, 0.9, lr=1.0, base_lr=1.0), state)
    assert decision.scale == pytest.approx(0.3 * 2.0 / 0.9)
    assert decision.rule == "target"
    for step, k in enumerate((0.9, 1.0, 1.2, 9.0), 4):  # from here on one that stands out is a fluke
        decision, state = policy.decide(reading(step, k, lr=1.0, base_lr=1.0), state)
    assert decision.scale == pytest.approx(0.3 * 2.0 / 1.2)


def test_the_guard_leaves_a_rate_to_climb_back_with() -> None:
    """A loss that stays above the run's start is no reason to halve the rate for ever."""
    policy = Hold(0.5)
    state = policy.start()
    for step in range(10):
        _, state = policy.decide(reading(step, 2.0, lr=1.0, base_lr=1.0), state)
    for step in range(10, 40):
        decision, state = policy.decide(reading(step, 2.0, lr=1.0, base_lr=1.0, loss=5.0), state)
    assert decision.rule == "guard"
    assert decision.scale == pytest.approx(LOWEST * 0.5 * 2.0 / 2.0)

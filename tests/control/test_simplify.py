"""Simplify as a pure function: every transition of its ramp, on readings made by hand."""

from __future__ import annotations

import itertools
import math

import pytest

from topoopt.control import Look, Preserve, Reading, Report, Simplify, State, looks_in
from topoopt.control.course import look_event
from topoopt.measurement import Decision

K, EDGE = 20.0, 2.0
UNIT = EDGE / K


class Run:
    """A run whose curvature, loss and largest loop are what the test says."""

    def __init__(self, policy: Simplify, *, lr: float = 0.01, snapshot: bool = True, total: int | None = None) -> None:
        self.policy, self.lr, self.snapshot, self.total = policy, lr, snapshot, total
        self.state: State = policy.start()
        self.curvature, self.loss, self.loop, self.known = K, 1.0, 0.3, True
        self.decisions: list[tuple[int, Decision]] = []
        self.looks: list[int] = []
        self.step, self.seen = 0, -1

    @property
    def rate(self) -> float:
        return self.decisions[-1][1].scale * self.lr

    @property
    def events(self) -> list[str]:
        return [event for _, decision in self.decisions for event in decision.events]

    def go(self, steps: int, **more) -> Decision:
        """Every step decides; the neurons are measured when the policy wants it."""
        for _ in range(steps):
            if self.known and self.policy.looks(self.step, self.state):
                self.looks.append(self.step)
                self.seen = self.step
            reading = Reading(
                step=self.step, r=self.curvature * self.lr, edge=EDGE, lr=self.lr, base_lr=self.lr, loss=self.loss,
                total_steps=self.total, finite=math.isfinite(self.loss), snapshot=self.snapshot, measured_step=self.seen,
                topology_step=self.seen, neurons=10, largest_loop=self.loop if self.seen >= 0 else math.nan, **more,
            )  # fmt: skip
            decision, self.state = self.policy.decide(reading, self.state)
            self.decisions.append((self.step, decision))
            self.step += 1
        return self.decisions[-1][1]


def started(policy: Simplify, **more) -> Run:
    run = Run(policy, **more)
    run.go(3)
    return run


@pytest.mark.parametrize("lr", [1e-4, 0.01, 3.0])
def test_it_begins_at_the_edge_wherever_the_users_rate_lies(lr: float) -> None:
    run = Run(Simplify(largest_loop=0.01), lr=lr)
    run.go(1)
    assert run.rate == pytest.approx(1.03 * UNIT)
    assert run.decisions[0][1].weights == "keep"


def test_adam_begins_below_and_its_first_steps_are_not_learnt_from() -> None:
    run = Run(Simplify(largest_loop=0.01))
    run.curvature = 100 * K
    warm = run.go(5, rule="adamw", warming="young")
    assert warm.rule == "warming"
    assert warm.scale == pytest.approx(0.7 * UNIT / 100 / run.lr)
    run.curvature = K
    run.go(1, rule="adamw")
    assert run.rate == pytest.approx(0.7 * UNIT)


def test_a_calm_dwell_is_followed_by_a_raise_and_the_weights_are_remembered() -> None:
    run = started(Simplify(largest_loop=0.01, dwell=10))
    run.go(9)
    assert run.rate == pytest.approx(1.03 * UNIT)
    run.loss = 0.9
    raised = run.go(1)
    assert run.rate == pytest.approx(1.3 * 1.03 * UNIT)
    assert (raised.rule, raised.weights) == ("raise", "keep")
    assert looks_in(raised.events)[0].dose == pytest.approx(1.03)


def test_the_rate_of_the_ramp_does_not_follow_the_users_schedule() -> None:
    run = started(Simplify(largest_loop=0.01, dwell=10))
    before = run.rate
    run.lr /= 4
    run.go(1)
    assert run.rate == pytest.approx(before)


def test_it_looks_once_a_dwell_and_asks_for_readings_only_then() -> None:
    policy = Simplify(largest_loop=0.01, dwell=10)
    run = started(policy)
    wanted = []
    for _ in range(25):
        if policy.stale(run.step, None, run.state):
            wanted.append(run.step)
        assert policy.rests(run.step, run.state)
        run.go(1)
    assert run.looks == [0, 12, 22]
    assert wanted == [12, 22]


def test_an_excursion_is_waited_out_and_in_the_end_put_out() -> None:
    run = started(Simplify(largest_loop=0.01, dwell=10))
    run.loss = 50.0
    for loop in (0.31, 0.33, 0.28, 0.25):
        run.loop = loop
        run.go(10)
    assert run.rate == pytest.approx(1.03 * UNIT)
    run.loop = 0.2
    run.go(11)
    assert run.rate == pytest.approx(1.03 * UNIT / 1.5)
    assert "an excursion did not end" in run.events[-1]
    assert run.decisions[-1][1].weights == ""


def test_a_run_being_lost_goes_back_to_the_last_calm_weights_at_two_thirds() -> None:
    run = started(Simplify(largest_loop=0.01, dwell=10))
    run.go(11)
    run.loss = 1e6
    lost = run.go(1)
    assert (lost.rule, lost.weights) == ("guard", "back")
    assert run.rate == pytest.approx(1.03 * UNIT / 1.5)
    run.loss = 1.0
    run.go(10)
    assert run.rate == pytest.approx(1.03 * UNIT)  # back to the edge, where r says that it is
    run.go(10)
    assert run.rate == pytest.approx(0.85 * 1.3 * 1.03 * UNIT * 1.03**2, rel=0.05)  # and not soon to what was too much


def test_without_a_snapshot_it_lowers_the_rate_and_says_what_it_could_not_undo() -> None:
    run = started(Simplify(largest_loop=0.01, dwell=10), snapshot=False)
    assert all(decision.weights == "" for _, decision in run.decisions)
    run.loss = math.inf
    lost = run.go(1)
    assert lost.weights == ""
    assert "cannot be taken back" in lost.note
    assert run.rate < 1.03 * UNIT


def test_a_run_lost_too_often_ends_with_the_reason() -> None:
    run = started(Simplify(largest_loop=0.01, dwell=10))
    for _ in range(11):
        run.loss = 1e6
        run.go(1)
        run.loss = 1.0
        run.go(2)
    assert any("simplify ended: the run was lost 11 times" in event for event in run.events)
    assert run.decisions[-1][1].policy == "preserve"


@pytest.mark.parametrize(
    ("end", "values"),
    [
        ({"largest_loop": 0.01}, {}),
        ({"persistence": 0.02}, {"total_persistence": 0.001}),
        ({"log_persistence": 0.5}, {"log_persistence": 0.4}),
        ({"effective_rank": 0.5}, {"effective_rank": 2.0}),
        ({"distinct": 3}, {"distinct": 3}),
        ({"distinct": 0.3}, {"distinct": 3}),
        ({"twins": 5}, {"twins": 6}),
        ({"silent": 0.3}, {"silent": 3}),
        ({"silent": 1}, {"silent": 1}),  # one neuron, not all of them
        ({"vanishing": 2}, {"vanishing": 2}),
    ],
)
def test_every_end_hands_over_with_its_name(end: dict, values: dict) -> None:
    start = {"total_persistence": 1.0, "log_persistence": 1.0, "effective_rank": 5.0, "distinct": 10, "silent": 0}
    run = Run(Simplify(dwell=10, **end))
    run.go(13, **start)
    assert run.decisions[-1][1].policy == "simplify"
    run.loss, run.loop = 0.5, 0.001
    over = run.go(10, **(start | values))
    assert over.policy == "preserve"
    assert any(event.startswith("simplify ended: ") and "asked for" in event for event in run.events)


def test_the_repair_begins_at_the_ramps_rate_and_follows_the_users_schedule() -> None:
    run = started(Simplify(largest_loop=0.01, dwell=10))
    run.loss, run.loop = 0.5, 0.001
    run.go(10)
    assert run.rate == pytest.approx(0.9 / K)
    run.curvature = K / 10
    run.go(4)
    assert run.rate == pytest.approx(1.03 * UNIT)
    run.lr /= 2
    run.go(1)
    assert run.rate == pytest.approx(1.03 * UNIT / 2)


def test_a_policy_that_does_not_steer_gives_the_users_rate_back() -> None:
    run = started(Simplify(largest_loop=0.01, dwell=10, then=Report()))
    run.loss, run.loop = 0.5, 0.001
    assert run.go(10).scale == 1.0


def test_an_end_at_a_loss_that_does_not_come_back_is_a_dead_run() -> None:
    run = started(Simplify(largest_loop=0.01, dwell=10))
    run.go(11)
    run.loss, run.loop = 1.5, 0.0
    run.go(51)
    assert any(decision.weights == "back" for _, decision in run.decisions)
    assert not any("simplify ended" in event for event in run.events)


def test_dead_neurons_are_not_waited_for() -> None:
    run = started(Simplify(largest_loop=0.01, dwell=10))
    run.go(11)
    run.loss = 3.0
    run.go(10)
    assert "dead" in run.events[-1]
    assert run.decisions[-1][1].weights == "back" or any(d.weights == "back" for _, d in run.decisions)


def test_weights_that_are_less_simple_or_on_their_way_up_are_not_remembered() -> None:
    run = started(Simplify(largest_loop=0.01, dwell=10))
    run.loop = 0.1
    assert run.go(10).weights == "keep"
    run.loop = 0.12
    assert run.go(10).weights == ""
    run.loop, run.loss = 0.05, 1.5
    assert run.go(10).weights == ""
    run.loop, run.loss = 0.2, 0.5
    back = run.go(10)
    assert (back.rule, back.weights) == ("raise", "back")


def test_an_end_that_holds_twice_is_reached_without_its_margin() -> None:
    run = started(Simplify(largest_loop=0.01, dwell=10))
    run.loss, run.loop = 0.5, 0.009
    assert run.go(10).policy == "simplify"
    assert run.go(10).policy == "preserve"


def test_looks_at_which_an_end_holds_count_in_a_row() -> None:
    run = started(Simplify(largest_loop=0.01, dwell=10))
    run.loss = 0.5
    for loop in (0.009, 0.011, 0.009):
        run.loop = loop
        assert run.go(10).policy == "simplify"
    assert run.go(10).policy == "preserve"


def test_the_stride_grows_from_the_second_calm_dwell_beyond_the_edge_on() -> None:
    run = started(Simplify(largest_loop=0.01, dwell=10))
    run.curvature = 2 * K
    rates = [run.rate]
    for loop in (0.29, 0.27, 0.25):  # something moves
        run.loop, run.loss = loop, run.loss * 0.9
        run.go(10)
        rates.append(run.rate)
    assert [after / rate for rate, after in itertools.pairwise(rates)] == pytest.approx([1.3, 1.3**2, 1.3**2])


def test_a_loss_is_given_a_fifth_of_a_dwell_to_come_back_before_the_run_is_lost_again() -> None:
    run = started(Simplify(largest_loop=0.01, dwell=10))
    run.go(11)
    run.loss = 1e6
    assert [run.go(1).rule for _ in range(4)] == ["guard", "dwell", "guard", "dwell"]


def test_a_collapsed_network_at_the_loss_of_chance_is_no_end() -> None:
    run = started(Simplify(largest_loop=0.01, dwell=10))
    run.loss = 0.1
    run.go(10)
    run.loss, run.loop = 0.9, 0.001  # below its start, and far above what it was
    assert run.go(10).policy == "simplify"
    run.loss, run.loop = 0.15, 0.002
    assert run.go(10).policy == "preserve"


def test_a_network_that_dies_in_a_dwells_last_steps_is_no_end_either() -> None:
    """Their median is still calm then: the loss of now counts too."""
    run = started(Simplify(largest_loop=0.01, dwell=10))
    run.loss = 0.1
    run.go(18)
    run.loss, run.loop = 0.9, 0.0
    run.go(2)
    assert not any("hand-over" in event for event in run.events)
    assert any("does not count yet: largest loop fell to 0" in event for event in run.events)
    run.loss = 0.1  # alive after all
    run.go(10)
    assert "hand-over to preserve" in run.events


def test_an_end_counts_where_a_loss_that_does_not_go_to_0_is_regained() -> None:
    """Three quarters of what it had fallen by: here from 1 to 0.6, so below 0.7."""
    run = started(Simplify(largest_loop=0.01, dwell=10))
    run.loss = 0.6
    run.go(10)
    run.loss, run.loop = 0.75, 0.001
    run.go(10)
    assert "hand-over to preserve" not in run.events
    run.loss = 0.65
    run.go(10)
    assert "hand-over to preserve" in run.events


@pytest.mark.parametrize("total", [None, 1000])
def test_what_grows_back_is_slowed_down_then_taken_back(total: int | None) -> None:
    run = started(Simplify(largest_loop=0.01, dwell=10), total=total)
    run.loss, run.loop = 0.5, 0.001
    assert run.go(10).weights == "keep"
    run.curvature = K / 10
    run.go(4)
    before, run.loop = run.rate, 0.008
    run.go(18)
    assert run.rate == pytest.approx(before / 2)
    run.loop = 0.1
    run.go(41)
    again = next(d for _, d in run.decisions if d.weights == "back")
    assert again.policy == "simplify"
    assert "has grown back" in again.events[0]


def test_what_grows_back_late_is_taken_back_at_a_tenth_of_the_rate() -> None:
    run = Run(Simplify(largest_loop=0.01, dwell=10), total=100)
    run.go(70)
    run.loss, run.loop, run.curvature = 0.5, 0.001, K / 100
    run.go(14)
    before, run.loop = run.rate, 0.1
    run.go(16)
    assert run.decisions[-1][1].policy == "preserve"
    assert any(d.weights == "back" for _, d in run.decisions[84:])
    assert run.rate == pytest.approx(before / 10)


def test_what_grows_back_is_simplified_again_where_nothing_was_kept() -> None:
    run = started(Simplify(largest_loop=0.01, dwell=10), snapshot=False)
    run.loss, run.loop = 0.5, 0.001
    run.go(12)
    assert run.decisions[-1][1].policy == "preserve"
    run.loop = 0.1
    run.go(25)
    assert any("grown back" in event for event in run.events)
    assert run.decisions[-1][1].policy == "simplify"


def test_a_curvature_that_goes_with_the_loss_ends_at_the_ceiling_and_says_why() -> None:
    run = started(Simplify(largest_loop=0.01, dwell=10, ceiling=4.0))
    run.curvature, run.loss = K / 1e4, 1e-6
    for loop in range(20):  # something still moves, a little
        run.loop = 0.3 / (1 + 0.05 * loop)
        run.go(10)
    ended = next(event for event in run.events if event.startswith("simplify ended"))
    assert "curvature with it: no rate within 4 times" in ended
    assert "largest loop" in ended


def test_where_nothing_moves_the_strides_grow_and_it_ends_in_words() -> None:
    run = started(Simplify(largest_loop=0.01, dwell=4))
    run.go(60)
    strides = [later / rate for rate, later in itertools.pairwise(_rates(run))]
    assert max(strides) > 1.3**8
    run.go(60)
    assert any("nothing moves" in event for event in run.events)


def test_it_leaves_the_end_of_a_run_of_known_length_to_the_repair() -> None:
    run = Run(Simplify(largest_loop=0.01, dwell=10), total=100)
    run.go(90)
    assert run.decisions[-1][1].policy == "simplify"
    run.go(1)
    assert run.decisions[-1][1].policy == "preserve"
    assert any("last 10%" in event and "largest loop 0.3 (asked for: 0.01)" in event for event in run.events)


def test_a_run_whose_time_is_over_in_an_excursion_goes_back_to_its_calm_weights() -> None:
    run = Run(Simplify(largest_loop=0.01, dwell=10), total=100)
    run.go(80)
    run.loss = 3.0
    over = run.go(11)
    assert (over.policy, over.weights) == ("preserve", "back")
    assert "last calm dwell" in run.events[-2]


def test_neurons_that_are_not_seen_are_waited_for_then_said() -> None:
    run = started(Simplify(largest_loop=0.01, dwell=10))
    run.known = False
    run.go(15)
    assert run.rate == pytest.approx(1.03 * UNIT)
    run.go(10)
    assert run.rate > 1.03 * UNIT
    assert any("could not be looked at" in event for event in run.events)


def test_without_looks_and_without_a_snapshot_the_rate_stays() -> None:
    run = started(Simplify(largest_loop=0.01, dwell=10), snapshot=False)
    run.known = False
    run.go(200)
    assert run.rate == pytest.approx(1.03 * UNIT)
    assert sum("nothing could be undone" in event for event in run.events) == 1


def test_default_ends_that_hold_at_the_start_are_none() -> None:
    run = Run(Simplify(dwell=10))
    run.loop = 0.001
    run.go(25, effective_rank=5.0)
    assert run.decisions[-1][1].policy == "simplify"
    assert run.state["ends"] == {"effective_rank": 0.5, "silent": 1 / 3}


def _rates(run: Run) -> list[float]:
    rates = [decision.scale * run.lr for _, decision in run.decisions]
    return [rate for rate, before in zip(rates[1:], rates, strict=False) if rate != before]


LOOKS = [
    Look(1.03, 2.5, {"largest_loop": 0.25, "silent": 3.0}, {"largest_loop": 0.5, "silent": 0.0}),
    Look(1.03, 2.5, {"largest_loop": 0.25, "silent": 3.0}, {"silent": 1.0}),
    Look(1e-7, math.inf, {}),
]


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_is_read_back_from_the_events(look: Look) -> None:
    assert looks_in(["guard: x", look_event(look)]) == [look]


def test_what_is_left_is_a_share_of_the_start() -> None:
    assert LOOKS[0].shares == {"largest_loop": 0.5}
    run = started(Simplify(largest_loop=0.01, dwell=10))
    run.loop = 0.1
    run.go(10)
    assert looks_in(run.events)[0].shares == {"largest_loop": pytest.approx(1 / 3)}


def test_preserve_is_what_repairs() -> None:
    assert Simplify().then == Preserve(0.9, keep=0.0)

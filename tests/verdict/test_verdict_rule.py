"""A verdict is a pure function of readings: what it says of made-up ones, and what holds of any."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topoopt.measurement import GroupMeasurement, SpectralReading
from topoopt.verdict import STATES, Verdict, judge, stalled
from topoopt.verdict.evidence import gather
from topoopt.verdict.numbers import number

E = 3.8


def run(level: float, *, losses: tuple[float, float] = (1.0, 0.2), count: int = 19, **fields) -> list[SpectralReading]:
    """Readings every 5 steps from 10 on, at a constant r/e, with a loss that falls geometrically."""
    first, last = losses
    values = {
        "edge": E,
        "rule": "adamw",
        "lr": (1e-3,),
        "baseline": 2.3,
        "grad_norm": 1.0,
        "update_ratio": 1e-2,
    } | fields
    return [
        SpectralReading(
            step=10 + 5 * i, r=level * E, loss=first * (last / first) ** (i / (count - 1)) * (1.05 if i % 2 else 1), **values
        )
        for i in range(count)
    ]  # fmt: skip


def test_nothing_read_is_not_enough() -> None:
    verdict = judge([])
    assert verdict.state == "not enough readings"
    assert "no reading" in verdict.happened


@pytest.mark.parametrize(("level", "state"), [(0.01, "too low"), (0.25, "right"), (1.4, "too high"), (1e4, "too high")])
def test_the_level_decides_where_nothing_is_damaged(level: float, state: str) -> None:
    assert judge(run(level)).state == state


def test_the_three_lines_hold_the_numbers() -> None:
    verdict = judge(run(0.04, losses=(2.3, 0.7)))
    assert verdict.state == "too low"
    assert "r/e was 0.04 (median of 19 readings, steps 10 to 100)" in verdict.happened
    assert "the loss fell from 2" in verdict.happened
    assert verdict.advice.startswith("Try a rate 5 times larger: 5e-3.")
    assert str(verdict) == "\n".join(verdict.lines)


def test_the_numbers_that_were_judged_are_fields() -> None:
    verdict = judge(run(0.25))
    assert verdict.ratio == pytest.approx(0.25)
    assert verdict.band is not None
    low, high = verdict.band
    assert low < 0.25 < high
    assert f"({number(low)} to {number(high)})" in verdict.happened
    assert verdict.plain["band"] == verdict.band
    # Where r/e or a band is not known there is none.
    assert (judge([]).ratio, judge([]).band) == (None, None)
    few = judge(run(0.25)[:3])
    assert few.ratio == pytest.approx(0.25)
    assert few.band is None
    assert judge([replace(reading, edge=None) for reading in run(0.25)]).ratio is None
    assert judge([SpectralReading(step=i, loss=1.0, reason="not asked for") for i in range(8)]).band is None


def test_a_rate_near_the_band_is_raised_by_less() -> None:
    factors = []
    for level in (0.01, 0.05, 0.12):
        verdict = judge(run(level, losses=(2.0, 0.2)))
        assert verdict.state == "too low"
        factors.append(float(verdict.advice.split("a rate ")[1].split(" times")[0]))
    assert factors == sorted(factors, reverse=True)
    assert factors[0] == 10
    assert 2 <= factors[-1] <= 3


def test_every_groups_rate_is_named() -> None:
    verdict = judge(run(0.01, lr=(1e-3, 1e-4, 1e-3)))
    assert "0.01, 1e-3." in verdict.advice


@pytest.mark.parametrize(
    ("rule", "edge_of"),
    [
        ("sgd momentum", lambda beta: 2 * (1 + beta)),
        ("adam", lambda beta: 2 * (1 + beta)),
        ("sgd nesterov momentum", lambda beta: 2 * (1 + beta) ** 2 / (1 + 2 * beta)),
    ],
)
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.95])
def test_beta_is_what_the_edge_says(rule: str, edge_of, beta: float) -> None:
    edge = edge_of(beta)
    share = gather([replace(reading, edge=edge, rule=rule) for reading in run(0.2)]).at_once
    assert share == pytest.approx(1 - beta**2 if "nesterov" in rule else 1 - beta)


def test_a_loss_that_falls_far_has_room() -> None:
    assert judge(run(0.1, losses=(2.0, 0.2))).state == "too low"
    assert judge(run(0.1, losses=(2.0, 1.6))).state == "right"


def test_noise_of_small_batches_takes_the_room() -> None:
    states = [judge(run(0.1, losses=(2.0, 0.2), probe=batch)).state for batch in (4096, 64, 4)]
    assert states == ["too low", "too low", "right"]


def test_a_gradient_that_shrinks_is_on_its_way_to_the_end() -> None:
    def shrinking(factor: float, **fields) -> list[SpectralReading]:
        readings = run(0.1, losses=(2.0, 0.4))
        return [replace(r, grad_norm=factor ** (i / 18), **fields) for i, r in enumerate(readings)]

    assert [judge(shrinking(factor)).state for factor in (3.0, 0.05)] == ["too low", "right"]
    # Clipped to one length, the gradient is told by what was taken off it.
    clipped = [replace(r, grad_norm=1.0, clipped=1 / r.grad_norm) for r in shrinking(0.05)]
    assert judge(clipped).state == "right"


def test_a_loss_is_of_its_batchs_labels() -> None:
    """Squared losses of batches with other targets differ by as much as the targets, whatever is predicted."""
    of_batch = [1.6 if i % 4 == 1 else 0.7 for i in range(19)]
    flat = run(0.01, losses=(1.0, 1.0))
    told = [replace(r, loss=s, baseline=s) for r, s in zip(flat, of_batch)]
    assert judge(told).state == "too low"
    # The same where nothing is known of the labels, or where they do not account for it, is a loss that has risen.
    assert judge([replace(r, baseline=1.0, loss=2.0 if i else 1.0) for i, r in enumerate(flat)]).state == "collapsed"
    assert gather([replace(r, baseline=math.nan) for r in told]).losses == tuple(of_batch)
    assert gather([replace(told[0], baseline=0.0), *told[1:]]).losses[0] == of_batch[0]  # all labels the same
    assert max(gather(told).losses) / min(gather(told).losses) == pytest.approx(1.0)


def test_weights_that_are_thrown_outwards() -> None:
    def growing(factor: float, **fields) -> list[SpectralReading]:
        return [replace(r, weight_norm=5 * factor ** (i / 18), **fields) for i, r in enumerate(run(0.25))]

    assert judge(growing(2.0)).state == "right"
    thrown = judge(growing(6.0))
    assert thrown.state == "too high"
    assert thrown.happened.startswith("The weights grew to 6 times their length in 90 steps; r/e")
    assert "Start again: try a rate 3 times smaller" in thrown.advice
    assert (judge(growing(4.0)).state, judge(growing(4.0, normalized=True)).state) == ("right", "too high")
    assert judge([replace(r, edge=None) for r in growing(6.0)]).state == "too high"
    unknown = [SpectralReading(step=0, loss=1.0), SpectralReading(step=5, loss=40.0), *run(0.25)]
    assert judge(unknown).happened.startswith("The loss rose to 40 times its start; r/e")
    late = [replace(r, step=r.step * 5, weight_norm=w.weight_norm) for r, w in zip(run(0.25), growing(6.0))]
    assert judge(late).state == "right"  # growth over 500 steps tells nothing of the rate


def test_a_run_that_stops_to_be_a_number_has_collapsed() -> None:
    readings = run(0.3)
    readings += [replace(readings[-1], step=105, r=math.nan, loss=math.nan, reason="the loss is not finite")]
    verdict = judge(readings)
    assert verdict.state == "collapsed"
    assert "try a rate 10 times smaller: 1e-4." in verdict.advice
    assert "step 105" in stalled(readings)


def test_a_reading_that_failed_is_no_collapse() -> None:
    readings = run(0.25)
    readings += [replace(readings[-1], step=105, r=math.nan, loss=math.nan, reason="out of memory")]
    assert judge(readings).state == "right"
    assert stalled(readings) == ""


def test_only_losses_that_are_no_numbers() -> None:
    readings = [
        SpectralReading(step=i, edge=2.0, lr=(1.0,), reason="the loss or its curvature is not finite") for i in range(9)
    ]
    assert judge(readings).state == "collapsed"


def test_silent_units_at_a_constant_prediction_have_collapsed() -> None:
    dead = run(0.01, losses=(2.3, 2.3), silent=0.9)
    dead[0] = replace(dead[0], silent=0.1)
    group = GroupMeasurement(
        n=64, d=3, gain=0.1, certified=True, distortion=(1, 1), distortion_window=(1, 1), distortion_total=(1, 1),
        contraction=0.0, merge_margin=0.1, diagrams=(), diagrams_step=-1, covering_radius=0.0, resolution=1.0,
        recomputed=False, vanishing=0, twins=0, vanishing_tolerance=0.0, twin_tolerance=0.0, silent=60,
    )  # fmt: skip
    verdict = judge(dead, groups={"layer 2": group})
    assert verdict.state == "collapsed"
    assert "90% of the units silent (most in layer 2: 60 of 64)" in verdict.happened
    assert "silent" in stalled(dead)


def test_most_units_silent_with_a_loss_that_falls_is_too_high() -> None:
    dying = run(0.2, silent=0.8)
    dying[0] = replace(dying[0], silent=0.1)
    assert judge(dying).state == "too high"


def test_a_loss_above_its_start_has_collapsed_whatever_r_says() -> None:
    assert judge(run(0.2, losses=(2.3, 80.0))).state == "collapsed"


def test_a_loss_that_is_all_but_gone_says_nothing_against_the_rate() -> None:
    solved = judge(run(0.01, losses=(2.3, 1e-5)))
    assert solved.state == "right"
    assert "the loss is all but gone" in solved.happened


def test_a_spike_beside_weights_that_grow() -> None:
    grown = [replace(r, weight_norm=1 + i / 6) for i, r in enumerate(run(0.35))]
    spike = [SpectralReading(step=0, loss=1.0, weight_norm=1.0), SpectralReading(step=5, loss=4.0, weight_norm=1.0)]
    calm, spiked = judge(grown), judge([*spike, *grown])
    assert (calm.state, spiked.state) == ("right", "too high")
    assert "and the loss rose to 4 times its start" in spiked.happened


def test_on_a_plateau_a_rate_is_raised_by_little() -> None:
    verdict = judge(run(0.003, losses=(2.3, 2.3)))
    assert verdict.state == "too low"
    assert verdict.advice.startswith("Try a rate 2 times larger")
    assert "what comes after the plateau" in verdict.unknown


def test_warming_readings_do_not_count() -> None:
    verdict = judge(run(0.3, warming="its averages are young"))
    assert verdict.state == "not enough readings"
    assert "19 of them while the optimizer's averages were warming up" in verdict.happened
    assert "5 more readings" in verdict.advice


def test_without_r_the_pairs_are_a_lower_bound() -> None:
    readings = [SpectralReading(step=i, lr=(0.1,), loss=1.0, reason="no loss was given") for i in range(9)]
    verdict = judge(readings)
    assert verdict.state == "lower bound only"
    assert "no loss was given" in verdict.happened
    assert "loss=" in verdict.advice


@pytest.mark.parametrize(("r", "state"), [(0.01, "lower bound only"), (1.5, "lower bound only"), (13.0, "too high")])
@pytest.mark.parametrize("unknown", [{"edge": None, "rule": "mine"}, {"edge": 2.0, "rule": "black box"}])
def test_an_unknown_rule_bounds_the_level_from_below(r: float, state: str, unknown: dict) -> None:
    readings = [replace(reading, **unknown) for reading in run(r / E)]
    verdict = judge(readings)
    assert verdict.state == state
    assert "r/e" not in verdict.happened
    if state == "lower bound only":
        assert ("past 1 the guarantee is lost" in verdict.happened) == (r >= 1)
        assert "Compare its loss with those of a rate of 3.3e-4 and a rate of 3e-3." in verdict.advice


def test_r_that_stays_at_the_edge() -> None:
    verdict = judge(run(1.02))
    assert verdict.state == "at the edge"
    assert 'mode="preserve"' in verdict.advice


def test_steering_is_said_and_counted_in() -> None:
    verdict = judge(run(0.04, losses=(2.3, 0.7), scale=0.5))
    assert "factor (0.5)" in verdict.unknown
    assert "5 times larger: 2.5e-3" in verdict.advice


def test_a_schedule_is_read_at_its_full_rate() -> None:
    warmup = [replace(r, step=5 * i, lr=(1e-5,), r=1e-4) for i, r in enumerate(run(0.3)[:10])]
    full = [replace(r, step=r.step + 40) for r in run(0.3)]
    decay = [replace(r, step=r.step + 200, lr=(1e-5,), r=1e-4) for r in run(0.3)]
    assert judge([*warmup, *full, *decay]).state == "right"


def test_long_runs_are_judged_by_their_first_quarter() -> None:
    early = [replace(r, step=10 * i) for i, r in enumerate(run(0.3))]
    late = [replace(r, step=500 + 10 * i, loss=0.01) for i, r in enumerate(run(0.001, count=100))]
    assert judge([*early, *late], total_steps=1500).state == "right"


def test_readings_far_apart_are_enough_without_the_runs_length() -> None:
    readings = [replace(r, step=100 * (i + 1)) for i, r in enumerate(run(0.25, count=9))]
    for total in (None, 900, 10_000):
        assert judge(readings, total_steps=total).state == "right"
    assert "5 readings, steps 100 to 500" in judge(readings).happened


def test_what_a_long_run_has_come_from_counts() -> None:
    fell = run(0.2, losses=(2.3, 0.3), baseline=math.nan)
    stays = [replace(fell[-1], step=200 + i, loss=2.31, r=0.05) for i in range(1000)]
    assert "it had been down to 0.3" in stalled([*fell, *stays])
    assert judge([*fell, *stays]).state == "collapsed"


def test_a_resumed_run_says_where_it_begins() -> None:
    assert "begin at step 5010" in judge([replace(r, step=r.step + 5000) for r in run(0.25)]).unknown


def test_a_step_of_rate_zero_is_no_reading() -> None:
    assert judge(run(0.0, lr=(0.0,))).state == "not enough readings"


def test_the_order_of_readings_does_not_matter() -> None:
    assert judge(run(0.2)[::-1]) == judge(run(0.2))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"silent": 0.95}, "silent"),
        ({"update_ratio": 1e-9}, "float32"),
        ({"grad_norm": 1e-6}, "gradient"),
    ],
)
def test_what_stalls(changed: dict, said: str) -> None:
    moving = run(0.1, losses=(2.0, 2.0), baseline=math.nan, silent=0.5)
    assert stalled(moving) == ""
    assert said in stalled([*moving[:8], *(replace(reading, **changed) for reading in moving[8:])])


def test_a_low_r_at_the_loss_of_a_constant_prediction() -> None:
    stays = run(0.05, losses=(2.3, 2.28))
    assert stalled(stays) == ""  # at a gentle rate it is the first plateau
    thrown = [replace(r, weight_norm=w, loss=2.3) for r, w in zip(stays, (1.0, *[2.5] * 18))]
    assert "though the weights grew to 2.5 times their length" in stalled(thrown)
    wild = [replace(r, r=30.0, loss=2.3) for r in stays[:12]]
    assert stalled(wild) == ""  # r says it itself
    assert "after steps with r/e at 7.9" in stalled([*wild, *stays[12:]])


def test_what_has_learnt_is_not_stalled() -> None:
    learnt = [replace(r, grad_norm=10.0 ** -(i / 2)) for i, r in enumerate(run(0.01, losses=(2.3, 1e-4)))]
    assert stalled(learnt) == ""
    assert stalled([]) == ""
    assert stalled(learnt[:1]) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.04, "0.04"), (6e-3, "6e-3"), (2.345, "2.3"), (151.0, "150"), (12.0, "12"), (3.21e5, "3.2e5"), (0.0, "0"),
        (0.00999, "0.01"), (-0.5, "-0.5"), (1.79e308, "1.8e308"),
    ],
)  # fmt: skip
def test_numbers_have_two_digits(value: float, text: str) -> None:
    assert number(value) == text


# -- what holds of any readings ---------------------------------------------------------------------------------------

numbers = st.one_of(st.floats(0, 1e6), st.floats(allow_nan=True, allow_infinity=True))
any_reading = st.builds(
    SpectralReading,
    step=st.integers(-1, 10_000),
    r=st.one_of(st.floats(0, 100), numbers),
    edge=st.one_of(st.none(), st.floats(2, 4), st.sampled_from([2.0, 3.8])),
    lr=st.lists(st.floats(0, 10), max_size=3).map(tuple),
    scale=st.floats(0, 10),
    rule=st.sampled_from(["sgd", "sgd momentum", "sgd nesterov momentum", "adamw", "nadam", "lion", "black box", ""]),
    reason=st.sampled_from(["", "no loss was given", "the loss or its curvature is not finite"]),
    warming=st.sampled_from(["", "its averages are young"]),
    loss=numbers,
    baseline=numbers,
    grad_norm=numbers,
    update_ratio=numbers,
    silent=st.one_of(st.floats(0, 1), st.just(math.nan)),
    weight_norm=numbers,
    clipped=st.floats(0, 2),
    probe=st.integers(0, 10_000),
    normalized=st.booleans(),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(any_reading, max_size=12), st.one_of(st.none(), st.integers(0, 10_000)))
def test_any_readings_have_a_verdict(readings: list[SpectralReading], total: int | None) -> None:
    verdict = judge(readings, total_steps=total)
    assert verdict.state in STATES
    assert all(isinstance(text, str) and text.strip().endswith(".") for text in verdict.lines)
    assert not any("nan" in text for text in verdict.lines)
    assert verdict == judge(list(readings), total_steps=total)
    assert isinstance(stalled(readings), str)


ORDER = {"too low": 0, "right": 1, "at the edge": 2, "too high": 2}


@settings(max_examples=100, deadline=None)
@given(st.floats(1e-4, 10), st.floats(1, 100), st.sampled_from([2.0, 3.0, 3.8]), st.booleans())
def test_more_r_is_never_a_lower_verdict(level: float, factor: float, edge: float, normalized: bool) -> None:
    def judged(level: float) -> Verdict:
        return judge([replace(r, edge=edge, r=level) for r in run(1.0, normalized=normalized)])

    less, more = judged(level).state, judged(level * factor).state
    if "at the edge" not in (less, more):
        assert ORDER[less] <= ORDER[more]

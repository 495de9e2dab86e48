"""The phase, its hysteresis and the bracket, against the definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topoopt import Phase
from topoopt.critical import BAND, assess
from topoopt.measurement import Assessment, SpectralReading

NAN = math.nan
positive = st.floats(1e-6, 1e6)


def of(
    r: float, r_pair: float = NAN, *, edge: float | None = 2.0, lr: Sequence[float] = (0.1,), **how: Any
) -> Assessment:
    seen = {key: how.pop(key) for key in ("reason", "warming", "scale") if key in how}
    return assess(SpectralReading(r=r, edge=edge, lr=tuple(lr), **seen), r_pair=r_pair, **how)


def plain(r: float, edge: float | None = 2.0, previous: Phase = Phase.UNKNOWN) -> Phase:
    return of(r, edge=edge, previous=previous).phase


@pytest.mark.parametrize(
    ("r", "phase"),
    [
        (0.0, Phase.CONSTRAINED),
        (math.nextafter(1, 0), Phase.CONSTRAINED),
        (1.0, Phase.PERMISSIVE),
        (math.nextafter(2, 0), Phase.PERMISSIVE),
        (2.0, Phase.SIMPLIFICATION),
        (math.inf, Phase.SIMPLIFICATION),
        (NAN, Phase.UNKNOWN),
    ],
)
def test_thresholds(r: float, phase: Phase) -> None:
    assert plain(r) is phase


@given(r=positive, previous=st.sampled_from(Phase), edge=st.floats(1.2, 4))
def test_hysteresis_never_claims_more_safety_than_r(r: float, previous: Phase, edge: float) -> None:
    order = [Phase.CONSTRAINED, Phase.PERMISSIVE, Phase.SIMPLIFICATION]
    found = of(r, edge=edge, previous=previous)
    assert order.index(found.phase) >= order.index(plain(r, edge))
    assert order.index(found.phase) - order.index(plain(r, edge)) <= 1
    assert any("hysteresis" in note for note in found.notes) == (found.phase is not plain(r, edge))


def test_hysteresis_holds_noise_and_lets_go() -> None:
    assert plain(1 - BAND / 2, previous=Phase.PERMISSIVE) is Phase.PERMISSIVE
    assert plain(1 - 2 * BAND, previous=Phase.PERMISSIVE) is Phase.CONSTRAINED
    assert plain(2 * (1 - BAND / 2), previous=Phase.SIMPLIFICATION) is Phase.SIMPLIFICATION
    assert plain(2 * (1 - 2 * BAND), previous=Phase.SIMPLIFICATION) is Phase.PERMISSIVE
    assert plain(0.5, previous=Phase.SIMPLIFICATION) is Phase.CONSTRAINED
    assert plain(1 - BAND, previous=Phase.PERMISSIVE) is Phase.PERMISSIVE  # the ends of the band belong to it
    assert plain((1 - BAND) * 2.0, previous=Phase.SIMPLIFICATION) is Phase.SIMPLIFICATION


@given(r=st.floats(1.0, 1e6), previous=st.sampled_from(Phase))
def test_without_an_edge_no_more_is_said_than_that_the_guarantee_is_lost(r: float, previous: Phase) -> None:
    found = of(r, edge=None, previous=previous)
    assert found.phase is Phase.PERMISSIVE
    assert any("edge of stability of this update rule is not known" in note for note in found.notes)
    assert not any("edge of stability" in note for note in of(r, edge=2.0).notes)


@given(lr=st.lists(positive, min_size=1, max_size=3), r_spec=positive, r_pair=positive)
def test_eta_star_lies_in_its_bracket_and_scales_with_lr(lr: list[float], r_spec: float, r_pair: float) -> None:
    found = of(r_spec, r_pair, lr=lr)
    for rate, eta, (low, high) in zip(lr, found.eta_star, found.eta_star_bracket):
        assert eta == rate / r_spec
        assert low <= eta <= high
        assert {low, high} == {rate / r_spec, rate / r_pair}
    assert any("r_pair exceeds r_spec" in note for note in found.notes) == (r_pair > r_spec)


def test_a_steered_step_is_of_the_rate_that_was_taken() -> None:
    """r is of the step with its factor: the same eta* with and without."""
    assert of(0.4, lr=(0.1,)).eta_star == pytest.approx(of(0.1, lr=(0.1,), scale=0.25).eta_star)


def test_the_pairwise_bound_gives_no_phase_and_no_critical_rate() -> None:
    for found in (of(NAN, 0.1, lr=[0.5], reason="no backward"), of(0.9, 0.1, lr=[0.5], estimator="pairwise")):
        assert (found.estimator, found.phase) == ("pairwise", Phase.UNKNOWN)
        assert math.isnan(found.eta_star[0])
        assert math.isnan(found.proximity)
        assert found.eta_star_bracket == ((0.0, 5.0),)
        assert any("never a safe rate" in note for note in found.notes)
        assert not any("at least permissive" in note for note in found.notes)


def test_a_pair_stretched_past_one_is_at_least_permissive() -> None:
    found = of(NAN, 1.5, reason="no backward")
    assert found.phase is Phase.UNKNOWN
    assert any("at least permissive" in note for note in found.notes)
    assert not any("at least permissive" in note for note in of(1.2, 1.5).notes)


def test_unknown_has_a_reason() -> None:
    found = of(NAN, reason="no forward was seen")
    assert (found.estimator, found.phase) == ("none", Phase.UNKNOWN)
    assert math.isnan(found.proximity)
    assert math.isnan(found.eta_star[0])
    assert "no forward was seen" in found.skipped["phase"]
    assert set(found.skipped) == {"phase"}


def test_a_phase_is_left_five_per_cent_below_its_threshold() -> None:
    """As docs/concepts.md says it."""
    assert plain(0.951, previous=Phase.PERMISSIVE) is Phase.PERMISSIVE
    assert any("hysteresis" in note for note in of(0.951, previous=Phase.PERMISSIVE).notes)
    assert any("hysteresis" in note for note in of(1.951, previous=Phase.SIMPLIFICATION).notes)
    assert plain(0.949, previous=Phase.PERMISSIVE) is Phase.CONSTRAINED
    assert of(1.5).skipped == {}


def test_at_least_permissive_begins_at_one() -> None:
    for r_pair, said in ((1.0, True), (math.nextafter(1, 0), False)):
        notes = of(NAN, r_pair, reason="no backward").notes
        assert any("at least permissive" in note for note in notes) == said


def test_an_unknown_phase_is_held_by_nothing() -> None:
    assert not any("hysteresis" in note for note in of(NAN, previous=Phase.PERMISSIVE).notes)


@pytest.mark.parametrize(
    ("how", "said"), [({"warming": "3 of 10"}, "3 of 10"), ({"stalled": "all silent"}, "all silent")]
)
@pytest.mark.parametrize("r", [0.01, 50.0])
def test_warming_up_and_standing_still_are_no_phase(how: dict[str, str], said: str, r: float) -> None:
    """r is told all the same, a critical rate is not read off it."""
    found = of(r, 0.001, previous=Phase.PERMISSIVE, **how)
    assert found.phase is Phase.UNKNOWN
    assert found.proximity == r
    assert math.isnan(found.eta_star[0])
    assert said in found.skipped["phase"]


def test_a_rate_of_zero_has_no_critical_rate() -> None:
    found = of(0.0, 0.0, lr=[0.0])
    assert math.isnan(found.eta_star[0])
    assert found.eta_star_bracket == ((0.0, math.inf),)
    assert "eta_star" in found.skipped

"""The phase, its hysteresis and the bracket, against the definitions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topoopt import Phase
from topoopt.critical import BAND, assess

NAN = math.nan
positive = st.floats(1e-6, 1e6)


def plain(r: float, edge: float = 2.0, previous: Phase = Phase.UNKNOWN) -> Phase:
    return assess(r_spec=r, r_pair=NAN, edge=edge, lr=[0.1], previous=previous).phase


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
    held = plain(r, edge, previous)
    assert order.index(held) >= order.index(plain(r, edge))
    assert order.index(held) - order.index(plain(r, edge)) <= 1


def test_hysteresis_holds_noise_and_lets_go() -> None:
    assert plain(1 - BAND / 2, previous=Phase.PERMISSIVE) is Phase.PERMISSIVE
    assert plain(1 - 2 * BAND, previous=Phase.PERMISSIVE) is Phase.CONSTRAINED
    assert plain(2 * (1 - BAND / 2), previous=Phase.SIMPLIFICATION) is Phase.SIMPLIFICATION
    assert plain(2 * (1 - 2 * BAND), previous=Phase.SIMPLIFICATION) is Phase.PERMISSIVE
    assert plain(0.5, previous=Phase.SIMPLIFICATION) is Phase.CONSTRAINED


@given(lr=st.lists(positive, min_size=1, max_size=3), r_spec=positive, r_pair=positive)
def test_eta_star_lies_in_its_bracket_and_scales_with_lr(lr: list[float], r_spec: float, r_pair: float) -> None:
    verdict = assess(r_spec=r_spec, r_pair=r_pair, edge=2.0, lr=lr)
    for rate, eta, (low, high) in zip(lr, verdict.eta_star, verdict.eta_star_bracket):
        assert eta == rate / r_spec
        assert low <= eta <= high
        assert {low, high} == {rate / r_spec, rate / r_pair}
    assert any("r_pair exceeds r_spec" in note for note in verdict.notes) == (r_pair > r_spec)


def test_pairwise_stands_in_and_says_that_it_is_a_lower_bound() -> None:
    verdict = assess(r_spec=NAN, r_pair=0.1, edge=2.0, lr=[0.5])
    assert (verdict.estimator, verdict.phase, verdict.eta_star) == ("pairwise", Phase.CONSTRAINED, (5.0,))
    assert verdict.eta_star_bracket == ((0.0, 5.0),)
    assert any("never a safe rate" in note for note in verdict.notes)


def test_unknown_has_a_reason() -> None:
    verdict = assess(r_spec=NAN, r_pair=0.1, edge=2.0, lr=[0.5], estimator="spectral")
    assert verdict.phase is Phase.UNKNOWN
    assert math.isnan(verdict.proximity)
    assert math.isnan(verdict.eta_star[0])
    assert "spectral" in verdict.skipped["phase"]


def test_a_rate_of_zero_has_no_critical_rate() -> None:
    verdict = assess(r_spec=0.0, r_pair=0.0, edge=2.0, lr=[0.0])
    assert math.isnan(verdict.eta_star[0])
    assert verdict.eta_star_bracket == ((0.0, math.inf),)
    assert "eta_star" in verdict.skipped

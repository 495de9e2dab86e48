"""Both ends of the bracket over whole runs of gradient descent, and what the record says in between."""

from __future__ import annotations

import math

import pytest
from torch.optim import SGD
from training_problems import Problem

from topoopt import Measurement
from topoopt.errors import ConfigError


@pytest.mark.parametrize("lr", [0.05, 0.3, 1.0])
def test_the_pairwise_end_stays_below_the_spectral_one(lr: float, wrap, train) -> None:
    problem = Problem()
    topo = wrap(SGD(problem.model.parameters(), lr=lr), problem, every=1)
    seen: list[Measurement] = []
    topo.add_sink(seen.append)
    train(problem, topo, 60)
    assert len(seen) == 60
    for m in seen:
        assert m.r_pair <= m.r_spec
        (low, high), (eta,) = m.eta_star_bracket[0], m.eta_star
        assert low <= eta <= high
        assert math.isclose(eta * m.r_spec, lr)


def test_momentum_carries_the_pairwise_end_past_it_and_the_record_says_so(wrap, train) -> None:
    """The displacement then holds earlier gradients too, of which this step's Jacobian knows nothing."""
    problem = Problem()
    topo = wrap(SGD(problem.model.parameters(), lr=0.3, momentum=0.9), problem, every=1)
    seen: list[Measurement] = []
    topo.add_sink(seen.append)
    train(problem, topo, 10)
    past = [m for m in seen if m.r_pair > m.r_spec]
    assert past
    assert all(any("r_pair exceeds r_spec" in note for note in m.notes) for m in past)
    assert all(m.eta_star_bracket[0][0] <= m.eta_star[0] <= m.eta_star_bracket[0][1] for m in past)


def test_every_group_of_parameters_has_its_own_critical_rate(wrap, train) -> None:
    problem = Problem()
    groups = [
        {"params": problem.model[0].parameters(), "lr": 0.1},  # type: ignore[index]
        {"params": problem.model[2].parameters(), "lr": 0.02},  # type: ignore[index]
    ]
    topo = wrap(SGD(groups), problem)
    train(problem, topo, 1)
    assert topo.last is not None
    first, second = topo.eta_star
    assert first / second == pytest.approx(5.0)
    assert first == pytest.approx(0.1 / topo.proximity)


def test_layers_take_turns(wrap, train) -> None:
    problem = Problem()
    topo = wrap(SGD(problem.model.parameters(), lr=0.1), problem, every=1)
    train(problem, topo, 2)
    assert topo.last is not None
    (group,) = topo.last.groups.values()
    assert group.proximity is not None
    assert group.proximity <= topo.last.r_spec * 1.05
    assert group.proximity_step == topo.last.step


def test_the_field_estimate_is_reported_by_its_own_name(wrap, train) -> None:
    problem = Problem()
    topo = wrap(SGD(problem.model.parameters(), lr=0.1), problem, field=True)
    train(problem, topo, 1)
    assert topo.last is not None
    assert 0 < topo.last.r_field <= topo.last.r_spec * 1.05


@pytest.mark.parametrize("wait", [True, False])
def test_homology_is_asked_for_again_only_when_its_certificate_is_used_up(wait: bool, wrap, train) -> None:
    problem = Problem()
    topo = wrap(SGD(problem.model.parameters(), lr=1e-3), problem, every=1, homology=1, wait=wait, keep="host")
    train(problem, topo, 30)
    topo.detach()
    assert topo.last is not None
    (group,) = topo.last.groups.values()
    assert topo.last.counts["homology_computed"] == 1
    assert group.diagrams_step == 0
    assert len(group.diagrams) == 2
    assert 1.0 <= group.resolution < 1.5


def test_the_engine_can_be_chosen_and_both_see_the_same_r(wrap, train) -> None:
    readings, problem = {}, Problem()
    for engine in ("double backward", "finite differences"):
        problem = Problem()
        topo = wrap(SGD(problem.model.parameters(), lr=0.1), problem, engine=engine)
        train(problem, topo, 1)
        assert topo.last is not None
        assert topo.last.engine == engine
        readings[engine] = topo.last.r_spec
    assert readings["finite differences"] == pytest.approx(readings["double backward"], rel=1e-2)
    with pytest.raises(ConfigError, match="engine='triple backward' is not usable"):
        wrap(SGD(problem.model.parameters(), lr=0.1), problem, engine="triple backward")


def test_few_products_are_spent_as_asked_and_the_first_estimate_says_that_it_may_read_low(wrap, train) -> None:
    problem = Problem()
    topo = wrap(
        SGD(problem.model.parameters(), lr=0.1), problem, every=1, products=3, reading_products=3, per_group=False
    )
    seen: list[Measurement] = []
    topo.add_sink(seen.append)
    train(problem, topo, 2)
    assert [m.products for m in seen] == [4, 3]
    assert "4 products from a cold start: r may read low" in seen[0].notes
    assert not any("cold start" in note for note in seen[1].notes)

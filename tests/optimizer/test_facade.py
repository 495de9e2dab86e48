"""The wrapper's contract: it is the optimizer it wraps, it attaches once, and it goes without a trace."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, ReduceLROnPlateau
from training_problems import Problem, same

from topoopt import Measurement, Phase, TopoConfig, TopoOptimizer
from topoopt.errors import ConfigError


def sgd(problem: Problem, lr: float = 0.1, **options) -> SGD:
    return SGD(problem.model.parameters(), lr=lr, **options)


def test_it_is_the_wrapped_optimizer(problem: Problem, wrap) -> None:
    base = Adam(problem.model.parameters(), lr=0.1, betas=(0.8, 0.9))
    topo = wrap(base, problem)
    assert isinstance(topo, torch.optim.Optimizer)
    assert topo.param_groups is base.param_groups
    assert topo.state is base.state
    assert topo.defaults is base.defaults
    topo.param_groups[0]["lr"] = 0.5
    assert base.param_groups[0]["lr"] == 0.5
    topo.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    assert len(base.param_groups) == 2
    assert "TopoOptimizer(report" in repr(topo)


def test_before_the_first_measurement_nothing_is_claimed(problem: Problem, wrap) -> None:
    topo = wrap(sgd(problem), problem)
    assert topo.last is None
    assert topo.phase is Phase.UNKNOWN
    assert math.isnan(topo.proximity)
    assert topo.eta_star == ()
    assert topo.lr_scale == 1.0


def test_a_measurement_is_complete(problem: Problem, wrap, train) -> None:
    topo = wrap(sgd(problem), problem, homology=1, wait=True)
    seen: list[Measurement] = []
    topo.add_sink(seen.append)
    train(problem, topo, 11)
    assert [m.step for m in seen] == [0, 5, 10]
    last = seen[-1]
    assert last is topo.last
    assert not last.skipped
    assert last.phase is not Phase.UNKNOWN
    assert last.estimator == "spectral"
    assert last.eta_star[0] == pytest.approx(0.1 / last.proximity)
    low, high = last.eta_star_bracket[0]
    assert low <= last.eta_star[0] <= high
    assert last.edge == 2.0
    (group,) = last.groups.values()
    assert (group.n, group.d) == (12, 6 + 1 + 3)
    assert group.certified
    assert group.gain <= last.r_spec
    assert group.distortion[0] <= 1.0 <= group.distortion[1] or group.distortion[0] > 0
    assert [d.shape[1] for d in group.diagrams] == [2, 2]
    assert group.merge_margin == group.diagrams[0][0, 1]
    assert 0 < last.share <= 1
    scalars = last.scalars()
    assert all(type(value) is float and key.startswith("topo/") for key, value in scalars.items())
    assert not any(math.isnan(value) for value in scalars.values())


def test_without_a_loss_the_pairwise_bound_stands_in_and_says_so(problem: Problem, wrap, train) -> None:
    topo = wrap(sgd(problem), problem, loss=None)
    train(problem, topo, 1)
    assert topo.last is not None
    assert topo.last.estimator == "pairwise"
    assert "no loss was given" in topo.last.skipped["spectral"]
    assert topo.eta_star_bracket == topo.last.eta_star_bracket if hasattr(topo, "eta_star_bracket") else True
    assert topo.last.eta_star_bracket[0][0] == 0.0


def test_stepping_either_object_is_the_same_step(wrap, train) -> None:
    runs = []
    for through_base in (False, True):
        problem = Problem()
        base = sgd(problem)
        topo = wrap(base, problem, mode="preserve")
        train(problem, base if through_base else topo, 12)
        runs.append((problem.weights(), topo.lr_scale, topo.proximity))
    assert same(runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:]


def test_attaching_twice_is_refused_and_detach_allows_it_again(problem: Problem, wrap) -> None:
    base = sgd(problem)
    topo = wrap(base, problem)
    with pytest.raises(ConfigError, match="detach"):
        TopoOptimizer(base, problem.model)
    with pytest.raises(ConfigError, match="detach"):
        TopoOptimizer(topo, problem.model)
    assert topo.detach() is base
    assert topo.detach() is base
    wrap(base, problem)


def test_after_detach_nothing_is_left_behind(problem: Problem, wrap, train) -> None:
    base = sgd(problem)
    before = set(vars(base))
    topo = wrap(base, problem, mode="preserve")
    train(problem, topo, 3)
    topo.detach()
    assert set(vars(base)) == before
    assert not base._optimizer_step_pre_hooks
    assert not base._optimizer_step_post_hooks
    assert not problem.model._forward_pre_hooks
    assert base.param_groups[0]["lr"] == 0.1


def test_state_dicts_go_both_ways(wrap, train) -> None:
    problem = Problem()
    topo = wrap(Adam(problem.model.parameters(), lr=0.01), problem)
    train(problem, topo, 7)
    saved = topo.state_dict()
    bare = Adam(problem.copy().model.parameters(), lr=0.5)
    bare.load_state_dict({key: value for key, value in saved.items() if key != "topoopt"})
    bare.load_state_dict(saved)
    assert bare.param_groups[0]["lr"] == 0.01
    other = Problem()
    fresh = wrap(Adam(other.model.parameters(), lr=0.5), other)
    fresh.load_state_dict(bare.state_dict())
    assert fresh.param_groups[0]["lr"] == 0.01
    fresh.load_state_dict(saved)
    assert fresh.topo_state_dict()["step"] == 7


def test_a_state_dict_is_safe_to_load(problem: Problem, wrap, train, tmp_path) -> None:
    topo = wrap(sgd(problem), problem, mode="preserve", homology=1)
    train(problem, topo, 7)
    torch.save(topo.state_dict(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    topo.load_state_dict(loaded)


def test_copies_are_of_the_wrapped_optimizer(problem: Problem, wrap) -> None:
    topo = wrap(sgd(problem), problem)
    assert type(copy.deepcopy(topo)) is SGD
    with pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(topo)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: LambdaLR(o, lambda step: 1 / (1 + step)),
        lambda o: CosineAnnealingLR(o, 10),
        lambda o: OneCycleLR(o, max_lr=0.2, total_steps=20),
        lambda o: ReduceLROnPlateau(o, patience=1),
    ],
)
@pytest.mark.parametrize("mode", ["report", "preserve", "simplify", "hold"])
def test_a_scheduler_sees_its_own_values(make, mode: str, wrap) -> None:
    histories = []
    for topo_on in (False, True):
        problem = Problem()
        optimizer = sgd(problem)
        stepped = wrap(optimizer, problem, mode=mode) if topo_on else optimizer
        scheduler = make(stepped)
        rates = []
        for _step in range(12):
            problem.model.zero_grad()
            problem.loss().backward()
            stepped.step()
            scheduler.step(1.0) if isinstance(scheduler, ReduceLROnPlateau) else scheduler.step()
            rates.append(optimizer.param_groups[0]["lr"])
        histories.append(rates)
    assert histories[0] == histories[1]


def test_a_grad_scaler_skips_an_overflow(wrap) -> None:
    problem = Problem()
    topo = wrap(sgd(problem), problem, mode="preserve")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for overflow in (False, True, False):
        before = problem.weights()
        topo.zero_grad()
        scaler.scale(problem.loss()).backward()
        if overflow:
            next(problem.model.parameters()).grad.fill_(math.inf)  # type: ignore[union-attr]
        scaler.step(topo)
        scaler.update()
        assert same(before, problem.weights()) == overflow
        assert topo.param_groups[0]["lr"] == 0.1


def test_a_fused_optimizer_that_unscales_by_itself(wrap) -> None:
    """Stepped as itself it is given scaled gradients: r must not be read from those, nor an overflow be measured."""
    runs = []
    for measured in (False, True):
        problem = Problem()
        base = Adam(problem.model.parameters(), lr=0.01, fused=True)
        topo = wrap(base, problem, every=1) if measured else None
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(4):
            base.zero_grad()
            scaler.scale(problem.loss()).backward()
            if step == 2:
                next(problem.model.parameters()).grad.fill_(math.inf)  # type: ignore[union-attr]
            scaler.step(base)
            scaler.update()
            if topo is not None:
                assert topo.measured == (step != 2)
        runs.append(problem.weights())
        if topo is not None:
            assert topo.last is not None
            assert topo.last.r_spec > 0.01, "the preconditioner was read from scaled gradients"
            assert any("the step's gradient is the probe's" in note for note in topo.last.notes)
    assert same(*runs)


def test_measure_without_a_step(problem: Problem, wrap, train) -> None:
    topo = wrap(sgd(problem), problem, homology=1, every=1000)
    train(problem, topo, 3)
    before = problem.weights()
    measurement = topo.measure()
    assert same(before, problem.weights())
    assert measurement.step == 3
    (group,) = measurement.groups.values()
    assert (group.gain, group.distortion) == (0.0, (1.0, 1.0))
    assert group.diagrams_step == 3 or not group.recomputed


@pytest.mark.parametrize(
    ("arguments", "options", "match"),
    [
        (lambda p: (3, p.model), {}, "already built"),
        (lambda p: (sgd(p), 3), {}, "nn.Module"),
        (lambda p: (sgd(p), Problem(1).model), {}, "model.parameters"),
        (lambda p: (sgd(p), p.model), {"loss": 3}, "without arguments"),
        (lambda p: (sgd(p), p.model), {"evry": 3}, "TopoConfig has"),
        (lambda p: (sgd(p), p.model), {"every": 0}, "every=0"),
        (lambda p: (sgd(p), p.model), {"budget": 2.0}, "budget=2.0"),
        (lambda p: (sgd(p), p.model), {"mode": "fast"}, "mode='fast'"),
    ],
)
def test_bad_arguments_are_refused_with_their_value(problem: Problem, arguments, options: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        TopoOptimizer(*arguments(problem), **options)


def test_a_config_and_options_go_together(problem: Problem, wrap) -> None:
    topo = TopoOptimizer(sgd(problem), problem.model, TopoConfig(every=7, seed=3), every=9)
    assert (topo.config.every, topo.config.seed) == (9, 3)
    topo.detach()

"""The wrapper's contract: it is the optimizer it wraps, it attaches once, and it goes without a trace."""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle
import warnings
import weakref
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, ReduceLROnPlateau
from training_problems import Problem, same

from topoopt import Measurement, Phase, TopoConfig, TopoOptimizer
from topoopt.errors import ConfigError
from topoopt.geometry import compare


def sgd(problem: Problem, lr: float = 0.1, **options) -> SGD:
    return SGD(problem.model.parameters(), lr=lr, **options)


def test_it_is_the_same_object_with_another_class(problem: Problem, wrap) -> None:
    base = Adam(problem.model.parameters(), lr=0.1, betas=(0.8, 0.9))
    topo = wrap(base, problem)
    assert topo is base
    assert isinstance(topo, Adam)
    assert isinstance(topo, TopoOptimizer)
    assert (type(topo).__name__, type(topo).__module__) == ("TopoAdam", Adam.__module__)
    assert topo.detach() is base
    assert type(base) is Adam
    assert not isinstance(base, TopoOptimizer)
    other = wrap(Adam(problem.model.parameters()), problem)
    assert type(other) is type(wrap(base, problem))  # one class for all of a kind


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
    assert last.spectral is topo.last.spectral
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


def test_without_a_loss_r_is_that_of_the_users_own_step(wrap, train) -> None:
    found = []
    for loss in (True, None):
        problem = Problem()
        topo = wrap(sgd(problem), problem, every=1, **({} if loss else {"loss": None}))
        train(problem, topo, 3)
        found.append([(r.r, r.loss) for r in topo.readings])
        assert topo.last is not None
        assert (topo.last.estimator, dict(topo.last.skipped)) == ("spectral", {})
    assert found[1] == [(pytest.approx(r, rel=0.02), pytest.approx(loss, rel=1e-5)) for r, loss in found[0]]


def test_attaching_twice_is_refused_and_detach_allows_it_again(problem: Problem, wrap) -> None:
    base = sgd(problem)
    wrap(base, problem)
    with pytest.raises(ConfigError, match="measured already"):
        TopoOptimizer(base, problem.model)
    base.detach()  # type: ignore[attr-defined]
    wrap(base, problem)


def test_after_detach_only_what_was_found_is_left(problem: Problem, wrap, train) -> None:
    base = sgd(problem)
    before = set(vars(base))
    topo = wrap(base, problem, mode="preserve")
    train(problem, topo, 6)
    readings, last = topo.readings, topo.last
    topo.detach()
    assert {n for n in set(vars(base)) - before if not n.startswith("_")} == {"last", "readings", "verdict"}
    assert (topo.readings, topo.last) == (readings, last)
    assert not base._optimizer_step_pre_hooks
    assert not base._optimizer_step_post_hooks
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in problem.model.modules())
    assert base.param_groups[0]["lr"] == 0.1
    assert "topoopt" not in base.state_dict()
    wrap(base, problem)
    assert topo.last is None


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


@pytest.mark.parametrize(
    "through",
    [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o)), lambda o: saved(o)],
    ids=["copy", "deepcopy", "pickle", "torch.save"],
)
def test_copies_are_bare_and_go_on(problem: Problem, wrap, train, through) -> None:
    topo = wrap(sgd(problem, momentum=0.9), problem, mode="preserve", every=1)
    train(problem, topo, 3)
    twin = through(topo)
    assert type(twin) is SGD
    assert not any("topo" in name for name in vars(twin))
    assert twin.param_groups[0]["lr"] == 0.1
    assert "topoopt" not in twin.state_dict()
    for p in twin.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    twin.step()
    train(problem, topo, 1)
    assert topo.steps == 4


def saved(thing):
    torch.save(thing, buffer := io.BytesIO())
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def test_the_model_pickles_and_copies_while_it_is_watched(problem: Problem, wrap) -> None:
    """Also in the middle of a step that is read: the copy has no watch on it."""
    wrap(sgd(problem), problem, loss=None)
    loss = problem.loss()
    for twin in (saved(problem.model), copy.deepcopy(problem.model)):
        assert torch.equal(twin(problem.x), problem.model(problem.x))
        fresh = TopoOptimizer(SGD(twin.parameters(), lr=0.1), twin, every=1, budget=None, homology=0)
        torch.nn.functional.cross_entropy(twin(problem.x), problem.y).backward()
        fresh.step()
        assert len(fresh.readings) == 1
        fresh.detach()
    loss.backward()


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


# -- what works bare works measured --------------------------------------------------------------------------------------


class Boosted(SGD):
    """Reads an attribute of its own, and takes an argument of its own."""

    boost = 1.0

    @torch.no_grad()
    def step(self, closure=None, *, scale: float = 1.0):  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            p -= self.param_groups[0]["lr"] * self.boost * scale * p.grad


class Clipping(Adam):
    """Calls its parent's step, which torch hooks as well."""

    def step(self, closure=None):  # type: ignore[override]
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1.0)
        return super().step(closure)


@pytest.mark.parametrize("mode", ["report", "preserve"])
def test_attributes_and_arguments_reach_the_optimizer(mode: str, wrap) -> None:
    runs = []
    for measured in (False, True):
        problem = Problem()
        optimizer = Boosted(problem.model.parameters(), lr=0.01)
        if measured:
            wrap(optimizer, problem, mode=mode, every=2)
        for i in range(4):
            optimizer.boost = 1 / (1 + i)
            optimizer.zero_grad()
            problem.loss().backward()
            optimizer.step(scale=2.0)
        runs.append(problem.weights())
    assert same(*runs)


@pytest.mark.parametrize("mode", ["report", "preserve"])
def test_a_step_that_calls_its_parents_is_one_step(problem: Problem, mode: str, wrap, train) -> None:
    Adam([torch.nn.Parameter(torch.zeros(1))])  # anywhere in the program: torch hooks the class then
    topo = wrap(Clipping(problem.model.parameters(), lr=1e-3), problem, mode=mode, every=4)
    seen: list[int] = []
    topo.add_sink(lambda m: seen.append(m.step))
    train(problem, topo, 12)
    assert topo.steps == 12
    assert seen == [0, 4, 8]
    assert topo.param_groups[0]["lr"] == 1e-3


class Named(SGD):
    """Has a `last`, a `phase` and a `measure` of its own."""

    phase = "warm-up"

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)
        self.last = "mine"

    def measure(self) -> str:
        return "theirs"


def test_names_of_the_optimizers_own_stay_its_own(problem: Problem, wrap, train) -> None:
    topo = wrap(Named(problem.model.parameters()), problem, every=1)
    train(problem, topo, 1)
    assert (topo.last, topo.phase, topo.measure()) == ("mine", "warm-up", "theirs")
    topo.last = "changed"
    assert isinstance(topo.topo.last, Measurement)
    topo.detach()
    assert topo.last == "changed"


def test_equal_runs_have_equal_state_dicts_that_survive_a_file(wrap, train) -> None:
    states = []
    for _ in range(2):
        problem = Problem()
        topo = wrap(sgd(problem, momentum=0.9), problem, mode="preserve", homology=1, every=2)
        train(problem, topo, 5)
        states.append(topo.state_dict())
        states[-1]["state"] = {k: v["momentum_buffer"].tolist() for k, v in states[-1]["state"].items()}
    assert states[0] == states[1]
    assert saved(states[0]) == states[0]
    assert states[0]["topoopt"]["step"] == 5


@pytest.mark.parametrize(
    "hook", [lambda o, s: {"only": 1}, lambda o, s: OrderedDict(s), lambda o, s: [s], lambda o, s: None]
)
@pytest.mark.parametrize("first", [True, False])
def test_a_state_dict_hook_of_the_users_has_the_last_word(problem: Problem, hook, first: bool, wrap) -> None:
    bare = sgd(problem)
    bare.register_state_dict_post_hook(hook)
    topo = sgd(problem)
    if first:
        topo.register_state_dict_post_hook(hook)
    wrap(topo, problem)
    if not first:
        topo.register_state_dict_post_hook(hook)
    expected, found = bare.state_dict(), topo.state_dict()
    assert type(found) is type(expected)
    assert set(found) - set(expected) <= {"topoopt"} if isinstance(expected, dict) else len(found) == len(expected)


def test_a_scheduler_warns_of_nothing(problem: Problem, wrap, train) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for before in (True, False):
            base = sgd(problem)
            scheduler = LambdaLR(base, lambda step: 1 / (1 + step)) if before else None
            topo = wrap(base, problem)
            scheduler = scheduler or LambdaLR(topo, lambda step: 1 / (1 + step))
            train(problem, topo, 1)
            scheduler.step()
            topo.detach()
            train(problem, topo, 1)
            scheduler.step()
            assert base.param_groups[0]["lr"] == pytest.approx(0.1 / 3)


@pytest.mark.parametrize("loss", [True, False])
def test_what_is_dropped_is_freed_at_once(loss: bool) -> None:
    def run() -> list[weakref.ref]:
        problem = Problem()
        options: dict[str, Any] = {"loss": problem.loss} if loss else {}
        topo = TopoOptimizer(sgd(problem, momentum=0.9), problem.model, every=2, budget=None, homology=0, **options)
        for _ in range(4):
            topo.zero_grad()
            problem.loss().backward()
            topo.step()
        return [weakref.ref(topo), weakref.ref(problem.model), weakref.ref(next(problem.model.parameters()))]

    run()
    gc.collect()
    gc.disable()
    try:
        assert [ref() for ref in run()] == [None] * 3
    finally:
        gc.enable()


def test_a_refused_wrapping_leaves_nothing_on_the_model(problem: Problem) -> None:
    base = sgd(problem)
    before = dict(vars(base))
    for _ in range(3):
        with pytest.raises(ConfigError):
            TopoOptimizer(base, problem.model, engine="doubel backward")  # type: ignore[arg-type]
    assert vars(base) == before
    assert type(base) is SGD
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in problem.model.modules())


def test_a_step_that_fills_the_state_for_a_checkpoint_is_no_step(wrap) -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    problem, other = Problem(), Problem()
    state = get_optimizer_state_dict(other.model, torch.optim.AdamW(other.model.parameters(), lr=0.1))
    topo = wrap(torch.optim.AdamW(problem.model.parameters(), lr=0.1), problem, loss=None, every=1)
    seen: list[Measurement] = []
    topo.add_sink(seen.append)
    set_optimizer_state_dict(problem.model, topo, state)
    assert (topo.steps, seen, topo.readings) == (0, [], ())


def test_a_run_that_ended_by_an_exception_does_not_scale_the_next_ones_rate_twice(wrap) -> None:
    """The measured optimizer lives on with its hooks: measuring it again is refused until it is detached."""
    problem = Problem()
    base = sgd(problem, lr=2.0)

    def train(fail: bool) -> tuple[list[float], list[float]]:
        topo = wrap(base, problem, mode="hold", every=5)
        used: list[float] = []
        scales: list[float] = []
        handle = base.register_step_pre_hook(lambda o, *_: used.append(o.param_groups[0]["lr"]))
        for i in range(10):
            topo.zero_grad()
            problem.loss().backward()
            if fail and i == 3:
                raise RuntimeError("out of memory")
            topo.step()
            scales.append(topo.lr_scale)
        handle.remove()
        return used, scales

    with pytest.raises(RuntimeError, match="out of memory"):
        train(True)
    with pytest.raises(ConfigError, match="measured already"):
        train(False)
    base.detach()  # type: ignore[attr-defined]
    used, scales = train(False)
    assert used == [2.0 * scale for scale in scales]
    assert min(scales) < 1
    assert base.param_groups[0]["lr"] == 2.0


# -- optimizers around optimizers ----------------------------------------------------------------------------------------


class Lookahead(torch.optim.Optimizer):
    def __init__(self, optimizer: torch.optim.Optimizer, k: int = 3) -> None:
        self.optimizer, self.k, self.i = optimizer, k, 0
        super().__init__(optimizer.param_groups[0]["params"], {})
        self.slow = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[override]
        self.optimizer.step(closure)
        self.i += 1
        for p, slow in zip(self.param_groups[0]["params"], self.slow) if self.i % self.k == 0 else ():
            p.copy_(slow.lerp_(p, 0.5))


class SAM(torch.optim.Optimizer):
    """As its authors write it down."""

    def __init__(self, params: Any, base: Any, rho: float = 0.05, **options: Any) -> None:
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        params = self.param_groups[0]["params"]
        length = torch.stack([p.grad.norm() for p in params]).norm()
        for p in params:
            self.state[p]["old"] = p.detach().clone()
            p.add_(p.grad * self.param_groups[0]["rho"] / length)
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        for p in self.param_groups[0]["params"]:
            p.copy_(self.state[p]["old"])
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    def step(self, closure=None):  # type: ignore[override]
        raise NotImplementedError("SAM has two")


def test_lookaheads_step_is_its_own(wrap) -> None:
    problem, bare = Problem(), Problem()
    topo = wrap(Lookahead(sgd(problem)), problem, every=1, loss=None)
    plain = Lookahead(sgd(bare))
    for _ in range(6):
        before = {n: p.detach().clone() for n, p in problem.model.named_parameters()}
        for one, stepped in ((problem, topo), (bare, plain)):
            one.model.zero_grad()
            one.loss().backward()
            stepped.step()
        assert same(problem.weights(), bare.weights())
        (group,) = topo.groups
        stood = copy.deepcopy(problem.model)
        stood.load_state_dict(before)
        truth = compare(group.points(stood), group.points(problem.model)).gain
        assert topo.last.groups[group.name].gain == pytest.approx(truth, rel=1e-4)
    assert topo.steps == 6
    assert any("acts after the inner step" in note for note in topo.last.notes)


@pytest.mark.parametrize("mode", ["report", "preserve"])
def test_sams_two_steps_are_one(mode: str, wrap) -> None:
    problem, bare = Problem(), Problem()
    topo = wrap(SAM(problem.model.parameters(), SGD, lr=0.1), problem, every=2, mode=mode, loss=None)
    plain = SAM(bare.model.parameters(), SGD, lr=0.1)
    measured = []
    for i in range(6):
        before = {n: p.detach().clone() for n, p in problem.model.named_parameters()}
        for one, stepped in ((problem, topo), (bare, plain)):
            one.loss().backward()
            stepped.first_step(zero_grad=True)
            one.loss().backward()
            stepped.second_step(zero_grad=True)
        if topo.measured:
            measured.append(i)
        if topo.measured and i:
            (group,) = topo.groups
            stood = copy.deepcopy(problem.model)
            stood.load_state_dict(before)
            truth = compare(group.points(stood), group.points(problem.model)).gain
            assert topo.last.groups[group.name].gain == pytest.approx(truth, rel=1e-4)
    assert topo.steps == 6
    assert measured == [0, 2, 4]
    assert [m for m in range(6) if m % 2 == 0] == [r.step for r in topo.readings if r.step % 2 == 0]
    assert all(r.r > 0 for r in topo.readings), [r.reason for r in topo.readings]
    if mode == "report":
        assert same(problem.weights(), bare.weights())
    assert topo.param_groups[0]["lr"] == 0.1

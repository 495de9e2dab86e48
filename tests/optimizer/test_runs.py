"""What a run says of itself: of steps of every kind, from the first to the last, with what it cannot know by name."""

from __future__ import annotations

import copy
import gc
import time
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR
from training_problems import Problem, same

from topoopt import Measurement, Phase, TopoOptimizer
from topoopt.curvature import proximity
from topoopt.geometry import compare
from topoopt.measurement import Decision, SpectralReading
from topoopt.optimizer.steering import MOST
from topoopt.summary import Summary


class Told:
    """A sink that keeps all that it is told."""

    def __init__(self) -> None:
        self.measurements: list[Measurement] = []
        self.readings: list[SpectralReading] = []
        self.decisions: list[tuple[int, Decision]] = []
        self.late_ones: list[Measurement] = []
        self.verdicts: list[Any] = []
        self.summary: Summary | None = None
        self.order: list[str] = []

    def begin(self, run: Any) -> None:
        self.order.append("begin")

    def __call__(self, measurement: Measurement) -> None:
        self.measurements.append(measurement)

    def reading(self, reading: SpectralReading) -> None:
        self.readings.append(reading)

    def decided(self, step: int, decision: Decision) -> None:
        self.decisions.append((step, decision))

    def late(self, measurement: Measurement) -> None:
        self.late_ones.append(measurement)

    def verdict(self, step: int, verdict: Any) -> None:
        self.verdicts.append((step, verdict))

    def end(self, summary: Summary) -> None:
        self.summary = summary
        self.order.append("end")

    def close(self) -> None:
        self.order.append("close")


def test_a_sink_is_told_of_everything_in_its_order(problem: Problem, wrap, train) -> None:
    topo = wrap(SGD(problem.model.parameters(), lr=0.1), problem, loss=None, every=10, homology=1)
    told = topo.add_sink(Told())
    train(problem, topo, 21)
    readings = topo.readings
    topo.detach()
    assert told.order == ["begin", "end", "close"]
    assert [m.step for m in told.measurements] == [0, 10, 20]
    assert tuple(told.readings) == readings
    assert [r.step for r in readings] == list(range(0, 21, 2))
    assert told.summary is not None
    assert (told.summary.steps, told.summary.readings, told.summary.measurements) == (21, len(readings), 3)
    assert told.verdicts[-1][1].state == topo.verdict.state
    assert {m.step for m in told.late_ones} == {m.step for m in told.measurements if m.groups["0"].pending}
    assert not any(group.pending for m in told.late_ones for group in m.groups.values())


def test_every_change_of_the_factor_is_told(problem: Problem, wrap, train) -> None:
    topo = wrap(Adam(problem.model.parameters(), lr=0.3), problem, mode="preserve", loss=None, every=50)
    told = topo.add_sink(Told())
    factors: list[float] = []
    train(problem, topo, 60, after=lambda _: factors.append(topo.lr_scale))
    changes = [(0, factors[0])] + [(i, b) for i, (a, b) in enumerate(pairwise(factors), 1) if a != b]
    assert len(changes) >= 3
    said = {step: decision.scale for step, decision in told.decisions}
    assert {step: said.get(step) for step, _ in changes} == dict(changes)


# -- what r is of --------------------------------------------------------------------------------------------------------


def test_a_step_of_rate_0_is_no_reading_and_a_rate_on_its_way_up_no_phase(wrap) -> None:
    problem = Problem()
    base = SGD(problem.model.parameters(), lr=1.0)
    base.param_groups[0]["lr"] = 1.5 / proximity(base, problem.loss, products=50).r
    topo = wrap(base, problem, loss=None, every=4)
    scheduler = LambdaLR(topo, lambda step: min(1.0, step / 10))
    phases: dict[int, Phase] = {}
    for step in range(20):
        topo.zero_grad()
        problem.loss().backward()
        topo.step()
        scheduler.step()
        phases[step] = topo.phase
    assert topo.readings[0].step == 1
    assert [bool(r.warming) for r in topo.readings] == [r.step < 5 for r in topo.readings]
    assert {phase for step, phase in phases.items() if step < 5} == {Phase.UNKNOWN}
    assert {phase for step, phase in phases.items() if step >= 12} == {Phase.PERMISSIVE}


def test_r_is_of_the_clipped_step_and_steering_sees_it(wrap) -> None:
    """At a rate whose plain step is far past the edge, and whose clipped one is not, nothing is held back."""
    torch.manual_seed(0)
    problem = Problem()
    problem.model = nn.Sequential(nn.Linear(5, 1, bias=False)).double()
    x, y = torch.randn(64, 5).double(), 40 * torch.randn(64, 1).double()
    for loss in (None, lambda: (problem.model(x) - y).square().mean()):
        topo = wrap(SGD(problem.model.parameters(), lr=0.5), problem, mode="preserve", loss=loss, every=1, homology=-1)
        topo.zero_grad()
        (problem.model(x) - y).square().mean().backward()
        length = nn.utils.clip_grad_norm_(problem.model.parameters(), 1.0)
        g, h = problem.model[0].weight.grad.flatten(), 2 * x.T @ x / 64  # type: ignore[union-attr]
        truth = 0.5 / float(length) * float(torch.linalg.eigvals(h - torch.outer(g, g @ h)).abs().max())
        topo.step()
        assert topo.proximity == pytest.approx(truth, rel=0.01)
        assert topo.lr_scale == 1.0
        assert topo.readings[0].clipped == pytest.approx(1 / float(length), rel=1e-3)
        topo.detach()


def closure_of(problem: Problem, optimizer: Any) -> Any:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problem.loss()
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("keyword", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_a_step_with_a_closure_is_read_as_the_same_step_without(keyword: bool, given: bool, wrap, train) -> None:
    """What lies in .grad before it is the last step's, and is not read; its neurons are found at the first."""
    plain, problem = Problem(), Problem()
    one = wrap(Adam(plain.model.parameters(), lr=0.01), plain, every=1, **({} if given else {"loss": None}))
    train(plain, one, 3)
    topo = wrap(Adam(problem.model.parameters(), lr=0.01), problem, every=1, **({} if given else {"loss": None}))
    for _ in range(3):
        for p in problem.model.parameters():
            p.grad = torch.full_like(p, 1e6)
        closure = closure_of(problem, topo)
        result = topo.step(closure=closure) if keyword else topo.step(closure)
        assert isinstance(result, Tensor)
        assert topo.last.groups
    assert same(plain.weights(), problem.weights())
    assert [r.r for r in topo.readings] == pytest.approx([r.r for r in one.readings], rel=1e-3)


class Agent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 2))
        self.critic = nn.Sequential(nn.Linear(4, 10), nn.Tanh(), nn.Linear(10, 1))

    def act(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(x), self.critic(x)


def test_a_model_that_is_never_called_itself() -> None:
    torch.manual_seed(0)
    model, x = Agent(), torch.randn(16, 4)
    topo = TopoOptimizer(SGD(model.parameters(), lr=0.1), model, every=3, budget=None, homology=0, reading_products=20)
    base = SGD(model.parameters(), lr=0.1)

    def loss() -> Tensor:
        action, value = model.act(x)
        return action.square().mean() + (value - 1).square().mean()

    for _ in range(7):
        topo.zero_grad()
        loss().backward()
        truth = proximity(base, loss, products=60).r
        topo.step()
    assert sorted(topo.last.groups) == ["actor.0", "critic.0"]
    assert topo.readings[-1].step == 6
    assert topo.readings[-1].r == pytest.approx(truth, rel=0.05)
    topo.detach()


def test_parts_that_are_called_later_are_found_then() -> None:
    """Two optimizers, of which the second's part has not been called when it is first stepped (weight decay alone)."""
    torch.manual_seed(0)
    model, x = Agent(), torch.randn(16, 4)
    parts = (model.actor, model.critic)
    actor, critic = (
        TopoOptimizer(SGD(part.parameters(), lr=0.1), model, every=2, budget=None, homology=0) for part in parts
    )
    for step in range(5):
        loss = model.actor(x).square().mean()
        if step:
            loss = loss + (model.critic(x) - 1).square().mean()
        loss.backward()
        for topo in (actor, critic):
            topo.step()
            topo.zero_grad()
    assert list(actor.last.groups) == ["actor.0"]
    assert list(critic.last.groups) == ["critic.0"]
    for topo in (actor, critic):
        topo.detach()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_two_optimizers_of_one_model_say_whose_share_a_record_is(wrap) -> None:
    problem = Problem()
    parts = [[p for p in problem.model.parameters() if (p.ndim == 2) is matrices] for matrices in (True, False)]
    first, second = (wrap(SGD(part, lr=0.5), problem, every=1, loss=None, homology=-1) for part in parts)
    before = copy.deepcopy(problem.model)
    problem.loss().backward()
    first.step()
    second.step()
    (group,) = first.groups
    whole = compare(group.points(before), group.points(problem.model)).gain
    shares = [topo.last.groups[group.name].moved_share for topo in (first, second)]
    assert sum(shares) == pytest.approx(1.0)
    assert 0 < shares[1] < shares[0] < 1
    for topo, share in zip((first, second), shares):
        seen = topo.last.groups[group.name]
        assert not seen.certified
        assert any(f"moves {share:.0%} of the group's weights" in note for note in seen.notes)
        assert seen.gain != pytest.approx(whole, rel=1e-3)
        assert topo.readings[0].r > 0


def test_layers_that_begin_to_move_are_measured_from_then_on(wrap, train) -> None:
    problem = Problem()
    problem.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
    problem.model[0].requires_grad_(False)  # type: ignore[index]
    problem.model[2].requires_grad_(False)  # type: ignore[index]
    topo = wrap(Adam(problem.model.parameters(), lr=1e-2), problem, every=2, loss=None)
    train(problem, topo, 3)
    assert "0" not in topo.last.groups
    assert "none of its parameters is moved" in topo.last.skipped["0"]
    problem.model.requires_grad_(True)
    train(problem, topo, 2)
    assert sorted(topo.last.groups) == ["0", "2"]
    assert topo.last.groups["0"].moved_share == 1.0
    assert "0" not in topo.last.skipped


def test_layers_that_are_replaced_by_wider_ones_are_measured_as_they_are(wrap, train) -> None:
    problem = Problem()
    topo = wrap(SGD(problem.model.parameters(), lr=0.1), problem, every=2, loss=None)
    train(problem, topo, 3)
    problem.model[0], problem.model[2] = nn.Linear(6, 20), nn.Linear(20, 3)  # type: ignore[index]
    topo.param_groups[0]["params"] = list(problem.model.parameters())
    train(problem, topo, 4)
    (group,) = topo.last.groups.values()
    assert (group.n, topo.last.step) == (20, 6)
    assert topo.readings[-1].r > 0


@pytest.mark.parametrize("mode", ["report", "hold", "preserve"])
def test_a_run_whose_step_cannot_be_read_knows_no_phase_and_is_not_steered(mode: str, wrap) -> None:
    """A low r_pair is no reason to hold a rate, nor to raise one."""
    problem, bare = Problem(), Problem()
    optimizer = SGD(bare.model.parameters(), lr=10.0)
    topo = wrap(SGD(problem.model.parameters(), lr=10.0), problem, mode=mode, every=2, loss=None, estimator="pairwise")
    for _ in range(12):
        for one, stepped in ((problem, topo), (bare, optimizer)):
            stepped.zero_grad()
            one.loss().backward()
            stepped.step()
        assert topo.phase is Phase.UNKNOWN
        assert topo.lr_scale == 1.0
    assert same(problem.weights(), bare.weights())
    assert topo.last.estimator == "pairwise"
    assert "gives no phase" in topo.last.skipped["phase"]


def test_a_network_in_which_nothing_moves_is_not_called_constrained(wrap, train) -> None:
    problem = Problem()
    problem.model[1] = nn.ReLU()  # type: ignore[index]
    with torch.no_grad():
        problem.model[0].bias.fill_(-100.0)  # type: ignore[index]
    topo = wrap(SGD(problem.model.parameters(), lr=1e-3), problem, every=1, loss=None)
    train(problem, topo, 12)
    assert topo.readings[-1].silent == 1.0
    assert topo.phase is not Phase.CONSTRAINED
    assert "stalled" in topo.last.skipped["phase"]


# -- what it costs and what it keeps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["report", "preserve", "hold", "simplify"])
def test_the_budget_is_for_everything_in_every_mode(mode: str) -> None:
    """A slow sink too: after what is taken on credit no reading is taken that the account does not cover."""
    problem, spent, told = Problem(), [0.0], []
    topo = TopoOptimizer(
        SGD(problem.model.parameters(), lr=0.1), problem.model, mode=mode, every=1, budget=0.05, homology=0
    )

    def slow(_: Measurement) -> None:
        began = time.perf_counter()
        time.sleep(0.05)
        spent[0] += time.perf_counter() - began

    topo.add_sink(slow)
    for _ in range(150):
        topo.zero_grad()
        problem.loss().backward()
        topo.step()
        if topo.measured:
            told.append(topo.topo.cadence.affordable(0.0))
    cadence = topo.topo.cadence
    assert cadence.spent >= spent[0]
    assert len(told) <= 2  # a second one only if the machine let 1 s pass
    assert cadence.readings <= MOST  # on credit, and what little time the machine let pass
    topo.detach()


def test_between_measurements_little_is_kept_and_nothing_after_the_end(wrap) -> None:
    problem = Problem()
    problem.model = nn.Sequential(nn.Linear(6, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 3))
    weights = sum(p.numel() * p.element_size() for p in problem.model.parameters())

    topo = wrap(SGD(problem.model.parameters(), lr=1e-3), problem, every=2, loss=None, homology=1, wait=True)
    for _ in range(6):
        topo.zero_grad()
        problem.loss().backward()
        topo.step()
    run = topo.topo
    own = {p.untyped_storage().data_ptr() for p in problem.model.parameters()}
    assert 0 < held(run, own) < 0.6 * weights
    saved = topo.topo_state_dict()
    assert not any(isinstance(value, Tensor) for value in flattened(saved))
    topo.detach()
    assert held(run, own) < 0.05 * weights  # where generators stood, some 5 KB each


def held(root: Any, own: set[int]) -> int:
    """Bytes of tensors that topoopt's own objects hold on to, `own` storages and gradients not counted."""
    waiting, seen, sizes = [root], {id(root)}, dict[int, int]()
    while waiting:
        one = waiting.pop()
        if isinstance(one, Tensor):
            if (place := one.untyped_storage().data_ptr()) not in own:
                sizes[place] = one.untyped_storage().nbytes()
            continue
        if not (isinstance(one, dict | list | tuple | set) or type(one).__module__.startswith("topoopt")):
            continue
        for inner in gc.get_referents(one):
            if id(inner) not in seen:
                seen.add(id(inner))
                waiting.append(inner)
    return sum(sizes.values())


def flattened(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for one in value.values() for leaf in flattened(one)]
    return [leaf for one in value for leaf in flattened(one)] if isinstance(value, list | tuple) else [value]


# -- checkpoints ---------------------------------------------------------------------------------------------------------


def spoilt(state: dict[str, Any], how: str) -> Any:
    state = copy.deepcopy(state)
    match how:
        case "version":
            return {**state, "version": 99}
        case "truncated":
            return {k: v for k, v in state.items() if k != "reader"}
        case "other policy":
            return {**state, "steering": {"state": 3}}
        case "reader":
            return {**state, "reader": {"tracker": {}, "turn": "x"}}
        case "negative":
            return {**state, "step": -1}
        case _:
            return [1, 2]


@pytest.mark.parametrize("how", ["version", "truncated", "other policy", "reader", "negative", "list"])
def test_a_state_is_taken_up_whole_or_not_at_all(how: str, wrap, train, caplog) -> None:
    problem, other = Problem(), Problem()
    topo = wrap(SGD(problem.model.parameters(), lr=0.1), problem, mode="preserve", every=2)
    train(problem, topo, 5)
    good = topo.topo_state_dict()
    fresh = wrap(SGD(other.model.parameters(), lr=0.1), other, mode="preserve", every=2)
    before = fresh.topo_state_dict()
    fresh.load_topo_state_dict(spoilt(good, how))
    assert fresh.topo_state_dict() == before
    assert sum("is not used" in record.getMessage() for record in caplog.records) == 1
    train(other, fresh, 1)
    assert fresh.last.counts
    fresh.load_topo_state_dict(good)
    assert fresh.topo_state_dict()["step"] == 5


def test_a_nan_in_a_strict_run_does_not_end_measuring(wrap) -> None:
    problem = Problem()
    topo = wrap(SGD(problem.model.parameters(), lr=0.1), problem, mode="preserve", strict=True, every=5, loss=None)
    told = topo.add_sink(Told())
    for i in range(16):
        topo.zero_grad()
        problem.loss().backward()
        if i == 7:
            problem.model[0].weight.grad[0, 0] = float("nan")  # type: ignore[index, union-attr]
        topo.step()
    assert [m.step for m in told.measurements] == [0, 5, 10, 15]
    assert topo.phase is Phase.UNKNOWN
    assert told.measurements[-1].skipped["phase"]


@pytest.mark.parametrize("raised", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_detach_closes_its_sinks(
    raised: type[BaseException], problem: Problem, wrap, train, monkeypatch
) -> None:
    topo = wrap(SGD(problem.model.parameters(), lr=0.1), problem, every=1, homology=1)
    told = topo.add_sink(Told())
    train(problem, topo, 1)

    def interrupted(*_: Any, **__: Any) -> Any:
        raise raised

    monkeypatch.setattr(topo.topo.clouds.diagrams, "arrived", interrupted)
    if raised is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            topo.detach()
    topo.detach()
    assert told.order == ["begin", "end", "close"]
    assert type(topo) is SGD
    assert not topo._optimizer_step_pre_hooks


@pytest.mark.parametrize("mode", ["report", "preserve", "hold"])
def test_a_step_that_raises_leaves_the_users_rate_at_once(mode: str, wrap) -> None:
    """A checkpoint written in the `except` holds it, and a schedule that goes on multiplies it."""
    problem = Problem()
    base = SGD(problem.model.parameters(), lr=20.0)
    topo = wrap(base, problem, mode=mode, every=1, loss=None)
    for step in range(6):

        class Late(RuntimeError):
            pass

        def after(*_: Any) -> None:
            raise Late

        handle = base.register_step_post_hook(after) if step == 3 else None
        topo.zero_grad()
        problem.loss().backward()
        if handle is None:
            topo.step()
        else:
            with pytest.raises(Late):
                topo.step()
            assert base.param_groups[0]["lr"] == 20.0
            assert base.state_dict()["param_groups"][0]["lr"] == 20.0
            handle.remove()
    assert base.param_groups[0]["lr"] == 20.0
    assert len(topo.readings) >= 5


def test_num_items_and_rates_by_group_are_told(wrap, train) -> None:
    problem = Problem()
    groups = [
        {"params": problem.model[0].parameters(), "lr": 0.1},
        {"params": problem.model[2].parameters(), "lr": 0.2},
    ]  # type: ignore[index]
    topo = wrap(AdamW(groups), problem, loss=None, every=1)
    with torch.no_grad():
        loss, labels = float(problem.loss()), problem.y.bincount().float() / 32
    train(problem, topo, 1)
    reading = topo.readings[0]
    assert reading.lr == (0.1, 0.2)
    assert reading.loss == pytest.approx(loss, rel=1e-5)
    assert reading.baseline == pytest.approx(float(-(labels * labels.log()).sum()), rel=1e-5)
    assert reading.probe == 32
    assert reading.warming
    assert 0 < reading.update_ratio < 1


def test_micro_batches_count_as_one_step(wrap) -> None:
    problem, whole = Problem(), Problem()
    parts, one = (wrap(SGD(p.model.parameters(), lr=0.1), p, loss=None, every=1, products=40) for p in (problem, whole))
    for x, y in zip(problem.x.chunk(4), problem.y.chunk(4)):
        (F.cross_entropy(problem.model(x), y) / 4).backward()
    whole.loss().backward()
    parts.step()
    one.step()
    assert parts.readings[0].r == pytest.approx(one.readings[0].r, rel=1e-3)
    assert parts.readings[0].loss == pytest.approx(one.readings[0].loss, rel=1e-4)
    assert parts.readings[0].probe == 32

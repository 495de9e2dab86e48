"""The user's loop goes on as if nobody looked: weights, generators, hooks, other networks, state outside of buffers."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim import SGD, Adam
from training_problems import Problem, same

from topoopt import TopoOptimizer, discover

STEPS = 6


def states() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())]  # noqa: NPY002


def alike(run: Callable[[Callable[..., Any]], dict[str, Any]]) -> list[TopoOptimizer]:
    """Run a loop bare and measured; all that it returns, and every generator, is the same. Returns what measured."""
    found, measured = [], []
    for on in (False, True):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002

        def look(optimizer: Any, model: nn.Module, **options: Any) -> Any:
            if on:  # noqa: B023
                measured.append(TopoOptimizer(optimizer, model, every=2, budget=None, homology=-1, **options))
            return optimizer

        found.append((run(look), states()))
        for one in measured:
            one.detach()
    (bare, before), (seen, after) = found
    assert before == after
    assert bare.keys() == seen.keys()
    for name, value in bare.items():
        assert torch.equal(value, seen[name]) if isinstance(value, Tensor) else value == seen[name], name
    return measured


def everything(*modules: nn.Module) -> dict[str, Tensor]:
    return {f"{i}.{n}": t.clone() for i, m in enumerate(modules) for n, t in m.state_dict().items()}


def adversaries(given: bool, normed: bool) -> Callable[..., dict[str, Any]]:
    """Both halves of a GAN, each with state that a replay of the other would move."""

    def run(look: Callable[..., Any]) -> dict[str, Any]:
        norm = spectral_norm if normed else (lambda m: m)
        g = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5))
        d = nn.Sequential(norm(nn.Linear(5, 8)), nn.BatchNorm1d(8), nn.LeakyReLU(0.2), norm(nn.Linear(8, 1)))
        z, x = torch.randn(16, 3), torch.randn(16, 5)
        losses = (lambda: F.softplus(-d(g(z))).mean(), lambda: (F.softplus(-d(x)) + F.softplus(d(g(z)))).mean())
        pairs = [(Adam(m.parameters(), lr=1e-3), m, loss) for m, loss in zip((g, d), losses)]
        for optimizer, model, loss in pairs:
            look(optimizer, model, **({"loss": loss} if given else {}))
        for _ in range(STEPS):
            for optimizer, _, loss in pairs:
                optimizer.zero_grad()
                loss().backward()
                optimizer.step()
        return everything(g, d)

    return run


@pytest.mark.parametrize("given", [False, True], ids=["own step", "given loss"])
@pytest.mark.parametrize("normed", [False, True], ids=["batch norm", "spectral norm"])
def test_the_other_network_of_a_gan_is_left_alone(given: bool, normed: bool) -> None:
    for one in alike(adversaries(given, normed)):
        assert len(one.readings) >= 3
        assert all(r.r > 0 for r in one.readings), [r.reason for r in one.readings]


class MomentumEncoder(nn.Module):
    """A parameter that the forward moves, past autograd or not."""

    def __init__(self, data: bool = False) -> None:
        super().__init__()
        self.q = nn.Linear(5, 4)
        self.k, self.data = copy.deepcopy(self.q).requires_grad_(False), data

    @torch.no_grad()
    def follow(self) -> None:
        for fast, slow in zip(self.q.parameters(), self.k.parameters()):
            (slow.data if self.data else slow).mul_(0.9).add_(fast, alpha=0.1)

    def forward(self, x: Tensor) -> Tensor:
        self.follow()
        return (self.q(x) * self.k(x)).sum(1)


class Reassigned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(5, 4)
        self.register_buffer("ema", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.f(x)
        self.ema = 0.9 * self.ema + 0.1 * h.detach().abs().mean(0)
        return (h / self.ema).sum(1)


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.r, self.o, self.calls = nn.GRU(5, 4), nn.Linear(4, 1), 0
        self.h: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y, h = self.r(x[:, None], self.h)
        self.h, self.calls = h.detach(), self.calls + 1
        return self.o(y)


@pytest.mark.parametrize("given", [False, True], ids=["own step", "given loss"])
@pytest.mark.parametrize(
    "kind",
    [MomentumEncoder, lambda: MomentumEncoder(True), Reassigned, Hidden],
    ids=["lerp", "data", "buffer", "state"],
)
def test_state_that_the_forward_moves(kind: Any, given: bool) -> None:
    def run(look: Callable[..., Any]) -> dict[str, Any]:
        model, x = kind(), torch.randn(8, 5)
        optimizer = SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)

        def loss() -> Tensor:
            return (model(x) - 1).square().mean()

        look(optimizer, model, **({"loss": loss} if given else {}))
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
        extra = {"h": model.h, "calls": model.calls} if isinstance(model, Hidden) else {}
        return {**everything(model), **extra}

    (one,) = alike(run)
    assert sum(r.r > 0 for r in one.readings) >= 2, [r.reason for r in one.readings]


@pytest.mark.parametrize("given", [False, True], ids=["own step", "given loss"])
def test_the_users_hooks_see_the_trainings_gradients_alone(given: bool) -> None:
    """Hooks on weights, on modules (forward, backward) and on activations, as loggers put them there."""

    def run(look: Callable[..., Any]) -> dict[str, Any]:
        problem, seen = Problem(norm=True), []
        model = problem.model
        model[0].weight.register_hook(lambda g: seen.append(float(g.norm())))  # type: ignore[index, union-attr]
        model[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append(float(p.grad.norm())))  # type: ignore[index]
        model[1].register_forward_hook(lambda m, a, out: seen.append(float(out.detach().sum())))  # type: ignore[index]
        model[1].register_full_backward_hook(lambda m, i, o: seen.append(float(o[0].sum())))  # type: ignore[index]
        optimizer = SGD(model.parameters(), lr=0.1)
        look(optimizer, model, **({"loss": problem.loss} if given else {}))
        for _ in range(STEPS):
            optimizer.zero_grad()
            problem.loss().backward()
            optimizer.step()
        return {**problem.weights(), "seen": seen}

    (one,) = alike(run)
    assert all(r.r > 0 for r in one.readings), [r.reason for r in one.readings]


def test_what_a_trainer_counts_is_counted_once() -> None:
    def run(look: Callable[..., Any]) -> dict[str, Any]:
        problem, counted = Problem(dropout=0.3), []
        optimizer = SGD(problem.model.parameters(), lr=0.1)
        look(optimizer, problem.model)

        def compute_loss() -> Tensor:
            counted.append(len(problem.x))
            return problem.loss()

        for _ in range(STEPS):
            optimizer.zero_grad()
            compute_loss().backward()
            optimizer.step()
        return {**problem.weights(), "counted": sum(counted)}

    alike(run)


def test_numpys_and_pythons_generators_draw_what_they_would_have_drawn() -> None:
    """In the loop, and in a loss that is given: there the noise is held, and r is one number by either engine."""

    def run(look: Callable[..., Any], given: bool = False, **options: Any) -> dict[str, Any]:
        problem = Problem()

        def mixed() -> Tensor:
            share, order = np.random.beta(1, 1) * random.random(), torch.randperm(32)  # noqa: NPY002
            out = problem.model(share * problem.x + (1 - share) * problem.x[order])
            return share * F.cross_entropy(out, problem.y) + (1 - share) * F.cross_entropy(out, problem.y[order])

        optimizer = SGD(problem.model.parameters(), lr=0.1)
        look(optimizer, problem.model, **({"loss": mixed} if given else {}), **options)
        for _ in range(STEPS):
            optimizer.zero_grad()
            mixed().backward()
            optimizer.step()
        return problem.weights()

    alike(run)
    engines = [
        alike(lambda look: run(look, given=True, engine=engine, reading_products=8))[0]  # noqa: B023
        for engine in ("double backward", "finite differences")
    ]
    first, second = ([r.r for r in one.readings] for one in engines)
    assert first == pytest.approx(second, rel=0.02)


@pytest.mark.parametrize("given", [False, True], ids=["own step", "given loss"])
def test_a_generator_of_the_users_own_goes_on_where_it_stood(given: bool) -> None:
    def run(look: Callable[..., Any]) -> dict[str, Any]:
        problem, generator = Problem(), torch.Generator().manual_seed(3)

        def loss() -> Tensor:
            noise = torch.randn(32, 6, generator=generator)
            return F.cross_entropy(problem.model(problem.x + noise), problem.y)

        optimizer = SGD(problem.model.parameters(), lr=0.1)
        look(optimizer, problem.model, **({"loss": loss} if given else {}))
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
        return {**problem.weights(), "generator": generator.get_state()}

    alike(run)


@pytest.mark.parametrize("given", [False, True], ids=["own step", "given loss"])
def test_a_loader_threads_draws_never_repeat(given: bool) -> None:
    problem = Problem(dropout=0.2)
    optimizer = SGD(problem.model.parameters(), lr=0.1)
    options: dict[str, Any] = {"loss": problem.loss} if given else {}
    topo = TopoOptimizer(optimizer, problem.model, every=1, budget=None, homology=-1, **options)
    drawn: list[tuple[float, float, float]] = []
    stop = threading.Event()

    def augment() -> None:
        while not stop.wait(1e-4):
            drawn.append((torch.rand(1, dtype=torch.float64).item(), random.random(), np.random.rand()))  # noqa: NPY002

    thread = threading.Thread(target=augment)
    thread.start()
    for _ in range(40):
        topo.zero_grad()
        problem.loss().backward()
        topo.step()
    stop.set()
    thread.join()
    topo.detach()
    assert len(drawn) > 20
    assert [len(set(column)) for column in zip(*drawn)] == [len(drawn)] * 3


def quiet(problem: Problem, base: SGD) -> Tensor:
    problem.model.eval()
    return problem.loss()


def fresh(problem: Problem, base: SGD) -> Tensor:
    base.zero_grad()
    return problem.loss()


def backward(problem: Problem, base: SGD) -> Tensor:
    loss = problem.loss()
    loss.backward(retain_graph=True)
    return loss


@pytest.mark.parametrize("change", [quiet, fresh, backward])
def test_a_loss_that_changes_things_is_undone(change: Callable[[Problem, SGD], Tensor]) -> None:
    def run(look: Callable[..., Any]) -> dict[str, Any]:
        problem = Problem(dropout=0.2)
        base = SGD(problem.model.parameters(), lr=0.1)
        look(base, problem.model, loss=lambda: change(problem, base))
        for _ in range(STEPS):
            base.zero_grad()
            problem.loss().backward()
            base.step()
        return {**problem.weights(), "training": [m.training for m in problem.model.modules()]}

    (one,) = alike(run)
    assert all(r.r > 0 for r in one.readings), [r.reason for r in one.readings]


def test_a_loss_that_takes_a_step_is_refused_and_the_run_goes_on() -> None:
    def run(look: Callable[..., Any]) -> dict[str, Any]:
        problem = Problem()
        base = SGD(problem.model.parameters(), lr=0.1)

        def loss() -> Tensor:
            found = problem.loss()
            base.step()
            return found

        look(base, problem.model, loss=loss)
        for _ in range(STEPS):
            base.zero_grad()
            problem.loss().backward()
            base.step()
        return problem.weights()

    (one,) = alike(run)
    assert all("takes an optimizer step" in r.reason for r in one.readings)


def test_device_generators_are_not_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fork_rng` and `manual_seed` reach the generators of all devices."""
    calls: list[str] = []
    for name in ("manual_seed", "seed"):
        monkeypatch.setattr(torch, name, lambda *a, n=name: calls.append(n))
    monkeypatch.setattr(torch.random, "fork_rng", lambda *a, **k: calls.append("fork"))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda *a: calls.append("cuda"))
    model, x = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)), torch.randn(16, 5)
    for given in (False, True):
        options: dict[str, Any] = {"loss": lambda: model(x).square().mean()} if given else {}
        topo = TopoOptimizer(SGD(model.parameters(), lr=0.1), model, every=1, budget=None, homology=1, **options)
        for _ in range(2):
            topo.zero_grad()
            model(x).square().mean().backward()
            topo.step()
        topo.detach()
    assert calls == []


class Biased(nn.Module):
    """Keeps tensors in a dict and a list of its own (LeViT, EfficientFormer), and draws from Python's generator."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.t = nn.Linear(6, 12), nn.Linear(12, 3), nn.Parameter(torch.zeros(12))
        self.cache: dict[str, Tensor] = {}
        self.log: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            self.cache.setdefault("cpu", self.t * 1)
        h = torch.relu(self.a(x) + (self.t if self.training else self.cache["cpu"])) * (1 + 0 * random.random())
        self.log.append(h.mean().detach())
        return self.b(h)


@pytest.mark.parametrize("training", [True, False])
def test_finding_the_neurons_leaves_the_model_as_it_was(training: bool) -> None:
    model, x = Biased().train(training), torch.randn(4, 6)
    before, drawn = model(x), states()
    held = dict(model.cache), list(model.log)
    discover(model, x)
    assert states() == drawn
    assert (model.cache, len(model.log)) == (held[0], 1)
    assert model.log[0] is held[1][0]
    assert type(model(x)) is Tensor
    assert torch.equal(model(x), before)


def test_finding_the_neurons_of_a_patched_forward_moves_nothing() -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Linear(12, 1))
    old = model.forward
    model.forward = lambda x: old(x) * 1.0  # type: ignore[method-assign]
    before = copy.deepcopy(dict(model.state_dict()))
    discover(model, torch.randn(32, 6))
    assert same(before, dict(model.state_dict()))

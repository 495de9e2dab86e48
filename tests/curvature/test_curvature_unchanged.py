"""An estimate leaves no trace, whichever way its products are taken."""

from __future__ import annotations

import copy
import random
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim.optimizer import register_optimizer_step_pre_hook

from topoopt.curvature import SpectralTracker, field_proximity, proximity
from topoopt.curvature.engines import ENGINES
from topoopt.errors import MeasurementError

X, Y = torch.randn(16, 1, 6, 6, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 3


class Noisy(nn.Module):
    """BatchNorm, dropout, a tied weight, a frozen one, one that is never used, and a module in the other mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(64, 3)
        self.tied = nn.Linear(3, 3)
        self.again = nn.Linear(3, 3)
        self.again.weight = self.tied.weight
        self.frozen, self.unused = nn.Linear(3, 3), nn.Linear(2, 2)
        self.frozen.requires_grad_(False)
        self.frozen.eval()

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(torch.tanh(self.norm(self.conv(x)))).flatten(1)
        return self.frozen(self.again(torch.tanh(self.tied(self.head(h)))))


def stepped(make: Any = None) -> tuple[Noisy, optim.Optimizer, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Noisy()
        optimizer = make(model) if make else optim.AdamW(model.parameters(), lr=1e-2)

        def loss() -> Tensor:
            return nn.functional.cross_entropy(model(X), Y)

        for _ in range(3):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
        loss().backward()
    return model, optimizer, loss


def snapshot(model: nn.Module, optimizer: optim.Optimizer) -> dict[str, Any]:
    return copy.deepcopy(
        {
            "weights": model.state_dict(),
            "grads": [p.grad for p in model.parameters()],
            "modes": [m.training for m in model.modules()],
            "asks": [p.requires_grad for p in model.parameters()],
            "hooks": [len(m._forward_pre_hooks) for m in model.modules()],
            "global hooks": len(nn.modules.module._global_forward_pre_hooks),
            "optimizer": optimizer.state_dict(),
            "attributes": sorted(vars(optimizer)),
            "torch": torch.get_rng_state(),
            "numpy": [np.asarray(part) for part in np.random.get_state()],  # noqa: NPY002
            "python": random.getstate(),
            "autocast": torch.is_autocast_enabled("cpu"),
            "grad mode": torch.is_grad_enabled(),
        }
    )


def assert_same(a: Any, b: Any, where: str = "") -> None:
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b)):
            assert_same(*pair, f"{where}[{i}]")
    elif isinstance(a, Tensor):
        assert a.dtype == b.dtype, where
        assert a.contiguous().view(-1).view(torch.uint8).equal(b.contiguous().view(-1).view(torch.uint8)), where
    elif isinstance(a, np.ndarray):
        assert np.array_equal(a, b), where
    else:
        assert a == b, where


@pytest.mark.parametrize("when", ["last", "upcoming"])
@pytest.mark.parametrize("amp", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("engine", ENGINES)
def test_no_engine_leaves_a_trace(engine: str, amp: bool, when: str) -> None:
    """Under autocast a weight moved by 1e-3 may round to itself: a difference is refused, with the reason."""
    model, optimizer, plain = stepped()

    def loss() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            return plain()

    before = snapshot(model, optimizer)
    refused = amp and engine.startswith("finite")
    with pytest.raises(MeasurementError, match="forward in 16 bits") if refused else nullcontext():
        found = proximity(optimizer, loss, engine=engine, when=when, products=3)
        assert found.engine == engine
        assert found.r > 0
    assert_same(before, snapshot(model, optimizer))


@pytest.mark.parametrize("form", ["full", "black box"])
def test_the_optimizers_own_step_is_tried_on_a_copy(form: str) -> None:
    model, optimizer, loss = stepped()
    optim.lr_scheduler.StepLR(optimizer, 1)  # patches the instance's step
    fired: list[int] = []
    optimizer.register_step_pre_hook(lambda *_: fired.append(1))
    remove = register_optimizer_step_pre_hook(lambda *_: fired.append(2))
    before = snapshot(model, optimizer)
    proximity(optimizer, loss, form=form, when="upcoming", products=3)
    remove.remove()
    assert not fired
    assert_same(before, snapshot(model, optimizer))


class KeepsItsOwnList(optim.SGD):
    """Refers to the weights a second time, and counts outside its state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.1)
        self.list, self.history = [p for p in model.parameters() if p.requires_grad], [0]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.history.append(len(self.history))
        for p in self.list:
            if p.grad is not None:
                p.add_(p.grad, alpha=-0.1)


def test_references_outside_the_groups_are_followed_into_the_copy() -> None:
    model, optimizer, loss = stepped(KeepsItsOwnList)
    assert isinstance(optimizer, KeepsItsOwnList)
    before, history = snapshot(model, optimizer), list(optimizer.history)
    for form, chosen in (("auto", "full"), ("black box", "black box")):
        found = proximity(optimizer, loss, when="upcoming", products=3, form=form)
        assert (found.rule, found.form) == ("black box", chosen)
    assert optimizer.history == history
    assert_same(before, snapshot(model, optimizer))


def test_field_and_tracker_leave_no_trace() -> None:
    model, optimizer, loss = stepped()
    before = snapshot(model, optimizer)
    field_proximity(optimizer, loss, torch.arange(12).reshape(4, 3), parameters=list(model.parameters()))
    tracker = SpectralTracker(optimizer, products=3)
    tracker.estimate(loss)
    tracker.estimate(loss, block={model.head.weight: torch.ones_like(model.head.weight, dtype=torch.bool)})
    assert_same(before, snapshot(model, optimizer))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_that_fails_leaves_no_trace(engine: str) -> None:
    model, optimizer, plain = stepped()
    calls = []

    def loss() -> Tensor:
        calls.append(1)
        if len(calls) == 2 or engine.startswith("double"):
            plain()
            raise ValueError("the user's own")
        return plain()

    before = snapshot(model, optimizer)
    with pytest.raises(ValueError, match="the user's own"):
        proximity(optimizer, loss, engine=engine)
    assert_same(before, snapshot(model, optimizer))


def test_a_step_that_needs_a_closure_is_refused_with_the_reason() -> None:
    model = nn.Linear(2, 1)
    with pytest.raises(MeasurementError, match="needs a closure"):
        proximity(optim.LBFGS(model.parameters()), lambda: model(torch.ones(3, 2)).square().mean())

"""Nothing of the user's is touched: weights, state, buffers, gradients, hooks, modes, generators."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from suggest_tasks import Batch, digits, loss_fn
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from topoopt import suggest
from topoopt.errors import MeasurementError

RULES = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "tensor rate": lambda p: torch.optim.NAdam(p, lr=torch.tensor(1e-3), foreach=False),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return copy.deepcopy(
        {
            "weights": model.state_dict(),
            "state": optimizer.state_dict(),
            "grads": [p.grad for p in model.parameters()],
            "modes": [module.training for module in model.modules()],
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state()[1],  # noqa: NPY002 -- the legacy state is what must not move
            "python": random.getstate(),
        }
    )


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool((a == b).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(one, other) for one, other in zip(a, b))
    return a == b


@pytest.mark.parametrize("rule", RULES)
def test_a_training_in_its_middle_is_left_bit_for_bit(rule: str) -> None:
    model, batches = network(), digits(60)
    optimizer = RULES[rule](model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    for batch in batches[:5]:
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()
        schedule.step()
    fired: list[str] = []
    model[0].register_forward_hook(lambda *_: fired.append("forward"))
    model[4].register_full_backward_hook(lambda *_: fired.append("backward"))
    optimizer.register_step_post_hook(lambda *_: fired.append("step"))
    everywhere = register_optimizer_step_pre_hook(lambda *_: fired.append("any step"))
    grads = [p.grad for p in model.parameters()]
    before = everything(model, optimizer)

    def shuffled() -> Iterator[Batch]:
        for _ in range(60):
            yield batches[int(torch.randint(60, ()))]  # as a loader's sampler draws

    answer = suggest(model, optimizer, shuffled(), loss_fn)
    everywhere.remove()
    assert answer.known
    assert same(everything(model, optimizer), before)
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads))
    assert fired == []


def test_a_model_in_evaluation_mode_is_rehearsed_in_training_mode() -> None:
    model, modes = network().eval(), []

    def watched(copied: nn.Module, batch: Batch) -> Tensor:
        modes.append(copied.training)
        return loss_fn(copied, batch)

    suggest(model, torch.optim.AdamW(model.parameters()), digits(48), watched)
    assert all(modes)
    assert not any(module.training for module in model.modules())


def test_a_part_that_was_frozen_in_evaluation_mode_stays_so() -> None:
    model, modes = network(), []
    model[1].eval()

    def watched(copied: nn.Module, batch: Batch) -> Tensor:
        modes.append((copied.training, copied[1].training))  # type: ignore[index]
        return loss_fn(copied, batch)

    suggest(model, torch.optim.AdamW(model.parameters()), digits(48), watched)
    assert set(modes) == {(True, False)}


def test_weight_norm_is_part_of_the_model_and_its_hook_stays() -> None:
    with pytest.warns(FutureWarning):
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(64, 32)), nn.Tanh(), nn.Linear(32, 10))
    answer = suggest(model, torch.optim.AdamW(model.parameters()), digits(48), loss_fn)
    assert answer.known


def bound_forward(model: nn.Sequential) -> Any:
    inner = model.forward
    model.forward = lambda x: inner(x)  # type: ignore[method-assign]
    return loss_fn


def closed_over(model: nn.Sequential) -> Any:
    return lambda _, batch: loss_fn(model, batch)


@pytest.mark.parametrize("make", [bound_forward, closed_over])
def test_a_loss_that_runs_through_the_original_is_refused_without_a_trace(make: Any) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    function = make(model)
    before = everything(model, optimizer)
    with pytest.raises(MeasurementError, match="runs through the original model"):
        suggest(model, optimizer, digits(48), function)
    assert same(everything(model, optimizer), before)


def test_results_that_a_module_keeps_do_not_hinder_the_copy() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.kept = network(), None

        def forward(self, x: Tensor) -> Tensor:
            self.kept = self.inner(x)
            return self.kept

    model = Keeps()
    loss_fn(model, digits(1)[0])
    assert suggest(model, torch.optim.AdamW(model.parameters()), digits(48), loss_fn).known


def test_importing_loads_no_leaf() -> None:
    code = (
        "import sys, topoopt; topoopt.suggest, topoopt.Suggestion;"
        "print(sorted({'matplotlib', 'transformers', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

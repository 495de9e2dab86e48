"""A policy of one's own goes wherever a built-in one does: record, page, command, JSON, checkpoint, Trainer, schedules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from topoopt import Preserve, Schedule, TopoConfig, TopoOptimizer
from topoopt.cli import main
from topoopt.control import Policy, Reading, State
from topoopt.measurement import Decision
from topoopt.report import JsonLines, read


@dataclass(frozen=True)
class Turns:
    """Two factors in turn; no field that it does not need, and one of numpy's numbers."""

    amount: float = 0.5
    name = "turns"
    steers = True

    def start(self) -> State:
        return {"n": 0}

    def decide(self, reading: Reading, state: State) -> tuple[Decision, State]:
        n = int(state["n"]) + int(reading.fresh)  # type: ignore[call-overload]
        scale: Any = np.float32(self.amount) if n % 2 else 1.5 * self.amount
        return Decision(scale, self.name, "odd" if n % 2 else "even", events=(f"turn {n}",) if n == 3 else ()), {"n": n}


class Bare:
    """No dataclass: it is described in JSON, and cannot come back."""

    name = "bare"
    steers = True

    def start(self) -> State:
        return {}

    def decide(self, reading: Reading, state: State) -> tuple[Decision, State]:
        return Decision(0.25, self.name, "target"), state


POLICIES = [Turns(0.25), Bare(), Schedule({0: Turns(), 8: Preserve()}), Schedule({0: Preserve(), 8: Bare()})]


@pytest.mark.parametrize("policy", POLICIES, ids=["dataclass", "bare", "first phase", "last phase"])
def test_it_is_recorded_shown_and_resumed(policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(16, 5)
    config = TopoConfig(mode=policy, every=4, budget=None, homology=-1)
    optimizer = TopoOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, config)
    optimizer.add_sink(JsonLines(tmp_path / "record.jsonl", config))
    factors, before = [], {}
    for step in range(16):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        factors.append(optimizer.lr_scale)
        if step == 5:
            torch.save(optimizer.state_dict(), tmp_path / "state.pt")
            before = optimizer.state_dict()["topoopt"]
            optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
            assert optimizer.state_dict()["topoopt"]["steering"] == before["steering"]
    optimizer.detach()
    run = read(tmp_path / "record.jsonl").last
    assert len(run.problems) == 0
    told = {decision.scale for _, decision in run.decisions}
    assert set(factors) <= told | {1.0}
    assert all(type(factor) is float for factor in factors)
    for command in (["report"], ["show"], ["show", "--json"], ["check", "--allow-unknown", "--at-most", "collapsed"]):
        assert main([command[0], str(tmp_path), *command[1:]]) == 0
    assert not capsys.readouterr().err


@pytest.mark.parametrize("policy", POLICIES, ids=["dataclass", "bare", "first phase", "last phase"])
def test_it_is_in_json_and_in_trainers_state(policy: Policy) -> None:
    pytest.importorskip("transformers")
    from topoopt.errors import ConfigError
    from topoopt.integrations.transformers import TopoCallback

    saved = TopoCallback(policy).state()["args"]["config"]
    if "Bare" in saved:
        with pytest.raises(ConfigError, match="described, not saved"):
            TopoConfig.from_json(saved)
    else:
        assert TopoConfig.from_json(saved).policy == policy

"""What is kept of a run: which one it is, and its part of a checkpoint, checked whole before any of it is used."""

from __future__ import annotations

import json
import math
import platform
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

import topoopt
from topoopt.config import TopoConfig
from topoopt.curvature import recognise
from topoopt.curvature.trial import own_class
from topoopt.measurement import Phase
from topoopt.modules import innermost
from topoopt.optimizer.rate import read_rates
from topoopt.summary import Run

VERSION = 2
"""Of a run's part of a checkpoint. Version 1 held clouds and directions as large as the weights; of it the count of steps and
the policy's memory are taken up."""


LONG = 2**53
"""Steps beyond which no run goes."""


def described(optimizer: Optimizer, model: nn.Module, config: TopoConfig) -> Run:
    """Which run this is. Its id is drawn from the system, not from a generator of the user's."""
    own = innermost(model)
    return Run(
        id=uuid.uuid4().hex[:12],
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        model=type(own).__name__,
        parameters=sum(p.numel() for p in own.parameters()),
        optimizer=own_class(optimizer).__name__,
        rule=recognise(optimizer)[0],
        lr=read_rates(optimizer.param_groups),
        settings=json.loads(config.to_json()),
        versions={
            "topoopt": topoopt.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    )


@dataclass(frozen=True)
class State:
    """A run's part of a checkpoint."""

    step: int
    phase: Phase
    base_lr: float
    steering: dict[str, Any]
    reader: dict[str, Any]
    run: str
    """Id of the run that it went on from itself: its own is drawn anew each time, and equal runs are to be saved alike."""
    full_rate: bool = False
    """Whether the rate has once been near its schedule's peak: a low one is then no warm-up."""

    def saved(self) -> dict[str, Any]:
        """As it is saved: without a clock, and without NaN, which equals nothing."""
        return _without_nan({"version": VERSION, **vars(self), "phase": self.phase.value})


def taken_up(state: Any) -> State:
    """Read a run's part of a checkpoint, of this version or an older one.

    Raises:
        ValueError: for what is none, with the reason; nothing has been used of it then.
    """
    try:
        return _taken_up(state)
    except ValueError:
        raise
    except Exception as error:  # a file of somebody else's: there is no end to what may be wrong with it
        raise ValueError(f"{type(error).__name__}: {str(error)[:200]}") from error


def _taken_up(state: Any) -> State:
    if not isinstance(state, dict):
        raise ValueError(f"it is a {type(state).__name__}, not a dict")
    version = state.get("version")
    if type(version) is not int or version not in (1, VERSION):
        raise ValueError(f"it is of version {str(version)[:80]!r}, and this topoopt knows 1 and {VERSION}")
    state = _from_first_version(state) if version == 1 else _with_nan(state)
    kinds = {"step": int, "phase": str, "base_lr": float | int, "steering": dict, "reader": dict, "run": str}
    for key, kind in kinds.items():
        if not isinstance(state.get(key), kind) or isinstance(state.get(key), bool):
            raise ValueError(f"{key!r} is {type(state.get(key)).__name__ if key in state else 'missing'}")
    if not 0 <= state["step"] <= LONG or state["phase"] not in {phase.value for phase in Phase}:
        raise ValueError(f"step {str(state['step'])[:80]} or phase {state['phase'][:80]!r} is not possible")
    if math.isinf(state["base_lr"]) or state["base_lr"] < 0:
        raise ValueError(f"a rate of {state['base_lr']} is not possible")
    return State(
        state["step"],
        Phase(state["phase"]),
        float(state["base_lr"]),
        state["steering"],
        state["reader"],
        state["run"],
        state.get("full_rate") is True,
    )


def _from_first_version(state: dict[str, Any]) -> dict[str, Any]:
    observer = state.get("observer")
    if not isinstance(observer, dict) or not isinstance(observer.get("spectral"), dict):
        raise ValueError("'observer' is missing")
    spectral = observer["spectral"]
    tracker = spectral.get("tracker", {})
    reader = {
        "tracker": {"engine": "auto", "count": int(tracker.get("count", 0)), "moving": []},
        "turn": int(spectral.get("turn", 0)),
    }
    base_lr = float(state.get("base_lr", math.nan))
    later = {"breaker": {"faults": 0, "until": -1.0, "reason": ""}, "peak": 0.0 if math.isnan(base_lr) else base_lr}
    return {
        "step": int(state["step"]),
        "phase": observer.get("phase", "unknown"),
        "base_lr": base_lr,
        "steering": {**state["steering"], **later},
        "reader": reader,
        "run": "",
    }


NAN = "nan"
"""Stands for a number that is none."""


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return NAN if isinstance(value, float) and math.isnan(value) else value


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_nan(one) for one in value]
    return math.nan if value == NAN and isinstance(value, str) else value

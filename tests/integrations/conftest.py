from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measurements import make as build

from topoopt.measurement import GroupMeasurement, Measurement, Phase


def group(**changes: Any) -> GroupMeasurement:
    values: dict[str, Any] = {
        "n": 8,
        "d": 5,
        "gain": 0.25,
        "certified": True,
        "distortion": (0.9, 1.1),
        "distortion_window": (0.8, 1.2),
        "distortion_total": (0.7, 1.3),
        "contraction": 0.1,
        "merge_margin": 0.5,
        "diagrams": (np.array([[0.0, 0.5], [0.0, math.inf]]), np.array([[0.5, 0.75]])),
        "diagrams_step": 0,
        "covering_radius": 0.0,
        "resolution": 1.5,
        "recomputed": True,
        "vanishing": 1,
        "twins": 2,
        "vanishing_tolerance": 0.01,
        "twin_tolerance": 0.01,
        "diameter": 3.0,
        "total_persistence": (0.5, 0.25),
    }
    return GroupMeasurement(**values | changes)


def measurement(step: int = 0, **changes: Any) -> Measurement:
    values: dict[str, Any] = {
        "phase": Phase.CONSTRAINED,
        "proximity": 0.5 + step,
        "edge": 2.0,
        "eta_star": (0.02,),
        "eta_star_bracket": ((0.02, math.inf),),
        "estimator": "spectral",
        "lr": (0.01,),
        "lr_scale": 1.0,
        "groups": {"layer.0": group(), "layer.1": group(gain=0.5)},
        "seconds": 0.01,
        "share": 0.001,
        "skipped": {},
        "r_spec": 0.5 + step,
        "r_pair": 0.25,
    }
    return build(step, **values | changes)


@pytest.fixture
def make() -> Callable[..., Measurement]:
    """Builds a measurement; keyword arguments replace its fields."""
    return measurement


@pytest.fixture
def make_group() -> Callable[..., GroupMeasurement]:
    """Builds a group's measurement; keyword arguments replace its fields."""
    return group


@pytest.fixture
def wandb_offline(tmp_path, monkeypatch):
    """A W&B that writes below the test's folder and reaches no network."""
    wandb = pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true", "CONSOLE": "off"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    yield wandb
    wandb.teardown()  # flushes the run's file; finish() alone does not always


@pytest.fixture
def wandb_rows():
    """Reads the one offline run under a folder: (history rows, metric definitions by name, summary)."""

    def read(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
        (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
        text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
        records = [json.loads(line) for line in text.splitlines()]
        rows = [record["history"]["item"] for record in records if record["type"] == "history"]
        metrics = {
            record["metric"].get("name") or record["metric"]["glob_name"]: record["metric"]
            for record in records
            if record["type"] == "metric"
        }
        summary: dict[str, Any] = {}
        for record in records:
            if record["type"] == "summary":
                summary |= record["summary"].get("update", {})
        return rows, metrics, summary

    return read

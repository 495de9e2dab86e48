"""Records for tests of the page: runs of plain results, with no training behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from measurements import make

from topoopt.control.course import Look, look_event
from topoopt.measurement import Decision, GroupMeasurement, Measurement, MergeTree, Phase, SpectralReading
from topoopt.summary import Run, Summary
from topoopt.verdict import Verdict

VERDICT = Verdict(
    "too high", "r was at 1.4 of the edge.", "Try a rate of 0.02.", "What a longer run would do is not known.",
    1.4, (0.12, 0.67),
)  # fmt: skip


def record(name: str = "run", **parts: Any) -> Any:
    """A record of one run; parts that are not given are empty."""
    empty: dict[str, Any] = {"measurements": [], "readings": [], "decisions": [], "problems": ()}
    empty |= {"config": None, "run": None, "verdict": None, "summary": None}
    one = SimpleNamespace(**(empty | parts))
    return SimpleNamespace(path=Path("runs") / name / "record.jsonl", runs=(one,), problems=one.problems)


def trained(name: str = "run", steps: int = 12, layers: int = 3, lr: float = 0.1, **parts: Any) -> Any:
    """A run with everything: r that crosses 1 and the edge, a factor that changes, layers with loops."""
    at = [10 * k for k in range(steps)]
    measurements = [measured(step, k, layers, lr) for k, step in enumerate(at)]
    run = Run(
        f"id-{name}", "2026-02-03T10:11:12+00:00", "Sequential", 8314, "AdamW", "adamw", (lr,), {"every": 10},
        {"topoopt": "0.2.0", "torch": "2.13.0"}, 10 * steps,
    )  # fmt: skip
    summary = Summary(run, VERDICT, 10 * steps, steps, steps, 60.0, 0.01, 0.5, {"late_homology": 2}, ("homology of 0",))
    given = {
        "measurements": measurements,
        "readings": [m.spectral for m in measurements],
        "decisions": [(m.step, m.decision) for m in measurements],
        "config": {"every": 10, "mode": "preserve"},
        "run": run,
        "verdict": VERDICT,
        "summary": summary,
    }
    return record(name, **(given | parts))


def measured(step: int, k: int, layers: int, lr: float = 0.1, bars: int = 20) -> Measurement:
    """One measurement of a run: everything in it moves with k."""
    r = 0.2 * 1.4**k
    scale = 1.0 if k < 3 else 0.8**k
    return make(
        step,
        proximity=r,
        phase=Phase.CONSTRAINED if r < 1 else Phase.PERMISSIVE,
        loss=2.0 * 0.9**k,
        lr=(lr, lr / 10),
        lr_scale=scale,
        groups={f"layer.{i}.weight": group(step, k, i, bars) for i in range(layers)},
        decision=Decision(scale, "preserve", "none" if k < 3 else "target", "r would have passed 0.9"),
        skipped={"field": "was not asked for"},
        notes=("the batch is small",),
    )


def group(step: int, k: int, i: int, bars: int = 20) -> GroupMeasurement:
    """A layer with one class that never dies, `bars` clusters and half as many loops."""
    rng = np.random.default_rng(1000 * i + k)
    deaths = np.append(np.sort(rng.uniform(0.5, 2.0, bars)), math.inf)
    births = rng.uniform(1.0, 2.0, bars // 2)
    loops = np.stack([births, births + rng.uniform(0.1, 1.0, bars // 2)], 1)
    return GroupMeasurement(
        n=bars + 1, d=8, gain=0.05 * (k + 1), certified=True, distortion=(0.9, 1.1), distortion_window=(0.9, 1.1),
        distortion_total=(1.0 / (1 + k), 1.0 + k), contraction=0.1, merge_margin=0.5,
        diagrams=(np.stack([np.zeros(bars + 1), deaths], 1), loops),
        diagrams_step=step, covering_radius=0.0, resolution=1.2, recomputed=True, vanishing=0, twins=k,
        vanishing_tolerance=0.01, twin_tolerance=0.01, proximity=0.1 * (k + 1), proximity_step=step, diameter=3.0,
        largest_loop=0.2, effective_rank=5.0, silent=i, notes=("landmarks were used",), merge_tree=tree(bars, rng),
    )  # fmt: skip


def tree(merges: int, rng: np.random.Generator) -> MergeTree:
    """A tree in which any two clusters join."""
    alive, pairs = list(range(merges + 1)), []
    for k in range(merges):
        a, b = (int(alive.pop(rng.integers(len(alive)))) for _ in range(2))
        pairs.append((a, b))
        alive.append(merges + 1 + k)
    return MergeTree((1,) * (merges + 1), tuple(pairs))


def looks() -> list[tuple[int, Decision]]:
    """Decisions of a ramp with three looks; the last does not know the silent units, and says why it was the last."""
    left = [{"effective_rank": 12.0, "silent": 0.0}, {"effective_rank": 7.0, "silent": 5.0}, {"effective_rank": 3.0}]
    seen = [Look(1.03 * 1.3**k, 0.5, one) for k, one in enumerate(left)]
    ends = {2: ("simplify ended: effective rank fell to 3 (asked for: 6) at 1.74 e/K",)}
    events = [(look_event(one), *ends.get(k, ())) for k, one in enumerate(seen)]
    return [(50 * k, Decision(1.0, "simplify", "raise", events=told)) for k, told in enumerate(events)]


def readings(rs: Sequence[float]) -> list[SpectralReading]:
    """Readings at steps 0, 1, 2, ..."""
    return [SpectralReading(step=step, r=r, edge=2.0, lr=(0.1,), loss=1.0) for step, r in enumerate(rs)]

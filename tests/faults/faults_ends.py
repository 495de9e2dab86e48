"""How a program with topoopt in it ends: killed, interrupted, or simply at its last line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from fault_table import fault
from fault_training import Observed, Problem, Ways, observe

from topoopt.homology import HomologyWorker
from topoopt.report import read

HERE = Path(__file__).parent
PROGRAM = """
import os, signal, sys, time
sys.path.insert(0, {here!r})
import torch, topoopt
from fault_training import Problem, bits, seed
from topoopt.report import JsonLines
seed()
problem = Problem()
if {measured}:
    topo = topoopt.TopoOptimizer(problem.optimizer, problem.model, every=1, budget=None, homology=1)
    topo.add_sink(JsonLines("run/record.jsonl"))
for step in range(6):
    problem.optimizer.zero_grad(); problem.loss().backward(); problem.optimizer.step()
open({name!r}, "wb").write(bits(problem))
"""


def program(folder: Path, rest: str = "", *, measured: bool = True) -> subprocess.Popen[str]:
    """A training in a program of its own, which then does `rest`."""
    text = PROGRAM.format(here=str(HERE), measured=measured, name="measured" if measured else "bare") + rest
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.Popen(
        [sys.executable, "-c", text],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(rest: str, code: int, ending: signal.Signals | None = None) -> tuple[Observed, Path]:
    """Run it to its end, beside the bare one; the folder is the caller's to remove."""
    folder = Path(tempfile.mkdtemp())
    bare = program(folder, measured=False)
    running = program(folder, rest)
    if ending is not None:
        assert running.stdout is not None
        running.stdout.readline()
        running.send_signal(ending)
    said, wrong = running.communicate(timeout=250)
    bare.communicate(timeout=250)
    assert (running.returncode, bare.returncode) == (code, 0), (running.returncode, said, wrong[-2000:])
    same = (folder / "bare").read_bytes() == (folder / "measured").read_bytes()
    return Observed(same=same), folder


def whole(folder: Path) -> None:
    """The record is complete: homology came or is named, and the end is told."""
    summary = json.loads((folder / "run" / "summary.json").read_text())
    record = read(folder / "run")
    assert [m.step for m in record.measurements] == list(range(6))
    lost = {text.split(" at step ")[0] for text in summary["unfinished"]}
    assert all(not group.pending for m in record.measurements for group in m.groups.values()) or lost
    shutil.rmtree(folder)


@fault("the program ends without `detach()`", "its last line; homology is on its way")
def no_detach() -> Observed:
    found, folder = ended("", 0)
    whole(folder)
    return found


@fault("the program raises", "an exception nobody catches, without `detach()`; its exit code stays")
def raises() -> Observed:
    found, folder = ended("raise SystemExit(7)", 7)
    whole(folder)
    return found


@fault("SIGTERM", "without a handler: nothing outlives the program, and what was written is whole lines")
def sigterm() -> Observed:
    rest = (
        "worker = topo.topo.clouds.diagrams._started()\n"
        "worker._rips._running()\n"
        "print(worker._rips._process.pid, flush=True)\n"
    )
    folder = Path(tempfile.mkdtemp())
    running = program(folder, rest + "time.sleep(60)")
    assert running.stdout is not None
    worker = int(running.stdout.readline())
    running.send_signal(signal.SIGTERM)
    assert running.wait(30) == -signal.SIGTERM
    running.communicate()
    end = time.monotonic() + 20
    while time.monotonic() < end and Path(f"/proc/{worker}").exists():
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()
    record = read(folder / "run")
    assert [m.step for m in record.measurements] == list(range(6))
    shutil.rmtree(folder)
    return Observed(same=True)


@fault("the optimizer is dropped without `detach()`", "`del`: its run ends with it, sinks closed")
def dropped() -> Observed:
    from topoopt import TopoOptimizer

    closed: list[str] = []

    class Sink:
        def __call__(self, measurement: Any) -> None:
            return None

        def end(self, summary: Any) -> None:
            closed.append(f"end at {summary.steps}")

        def close(self) -> None:
            closed.append("close")

    problem = Problem()
    topo = TopoOptimizer(problem.optimizer, problem.model, every=1, budget=None, homology=1)
    topo.add_sink(Sink())
    problem.loss().backward()
    topo.step()
    del topo, problem
    assert closed == ["end at 1", "close"]
    return observe(steps=2)


@fault(
    "Ctrl-C in `detach()`",
    "`KeyboardInterrupt` while it waits for homology; the sinks are closed, a second call ends it",
)
def ctrl_c() -> Observed:
    calls = [0]
    real = HomologyWorker.collect

    def collect(self: HomologyWorker, wait: bool = False, timeout: float | None = None) -> Any:
        calls[0] += wait
        if wait and calls[0] == 1:
            raise KeyboardInterrupt
        return real(self, wait, timeout)

    def after(step: int, problem: Problem) -> None:
        if step == 7 and hasattr(problem.optimizer, "detach"):
            try:
                problem.optimizer.detach()
            except KeyboardInterrupt:
                problem.optimizer.detach()
                return
            raise AssertionError("nothing was interrupted")

    return observe(
        lambda topo: mock.patch.object(HomologyWorker, "collect", collect), homology=1, ways=Ways(after=after)
    )


@fault("homology never ends", "a back-end that hangs: given up and named when the run ends without `detach()`")
def never_ends() -> Observed:
    from topoopt import TopoOptimizer
    from topoopt.homology.process import ProcessRips
    from topoopt.optimizer import endings

    def hang(self: Any, *args: Any) -> Any:
        time.sleep(0.6)
        raise OSError

    made: list[Any] = []
    with mock.patch.object(endings, "PATIENCE", 0.05), mock.patch.object(ProcessRips, "__call__", hang):

        def after(step: int, problem: Problem) -> None:
            if isinstance(problem.optimizer, TopoOptimizer):
                endings._end(made[0].topo, os.getpid())

        found = observe(homology=1, steps=1, before=made.append, ways=Ways(after=after))
    assert any("given up" in text for text in found.texts), found.texts
    return found

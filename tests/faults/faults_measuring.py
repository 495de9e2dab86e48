"""Faults in readings, in finding the neurons, in geometry and in homology."""

from __future__ import annotations

import math
import threading
from unittest import mock

import torch
from fault_table import fault
from fault_training import Observed, Problem, Ways, failing, observe

from topoopt.homology import HomologyWorker
from topoopt.neurons import NeuronGroup
from topoopt.optimizer import clouds, groups
from topoopt.optimizer.reading import Reader

MEMORY = torch.OutOfMemoryError("tried to allocate 80 GiB")
OFF = "switched off: it ran out of memory twice"


@fault(
    "a reading runs out of memory",
    "`OutOfMemoryError` in every reading",
    said="spectral is switched off: it ran out of memory twice",
    recorded=f"spectral: reading r is {OFF}",
    counts={"fault/spectral": 2},
)
def reading_memory() -> Observed:
    found = observe(lambda topo: failing(Reader, "_by_tape", MEMORY))
    assert found.measured == 8
    return found


@fault(
    "the host runs out of memory in a reading, once",
    "`MemoryError` in the first",
    said="spectral failed (MemoryError",
    recorded="MemoryError: no pages",
    counts={"fault/spectral": 1},
)
def reading_once() -> Observed:
    found = observe(lambda topo: failing(Reader, "_by_tape", MemoryError("no pages"), 1))
    assert found.readings == 7
    return found


@fault(
    "a cause that names another number each time",
    "`RuntimeError: step N at 0x7f..`",
    said="spectral failed (RuntimeError",
    recorded="switched off: it failed 5 times in a row",
    counts={"fault/spectral": 5},
)
def numbered() -> Observed:
    class Numbered(Exception):
        made = 0

        def __str__(self) -> str:
            Numbered.made += 1
            return f"step {Numbered.made} at {hex(0x7F00 + 77 * Numbered.made)}"

    found = observe(lambda topo: failing(Reader, "_by_tape", Numbered()))
    found.said = [text.replace("Numbered", "RuntimeError") for text in found.said if "failed (" in text]
    return found


@fault(
    "an error that cannot be printed",
    "an exception whose `__str__` raises, in a reading",
    said="spectral failed (Mute",
    recorded="switched off: it failed 5 times in a row",
    counts={"fault/spectral": 5},
)
def unprintable() -> Observed:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    return observe(lambda topo: failing(Reader, "_by_tape", Mute()))


@fault(
    "an error of a hundred thousand words",
    "an exception of 1 MB of text in a reading",
    said="spectral failed (ValueError: long long",
    recorded="ValueError: long long",
    counts={"fault/spectral": 5},
)
def wordy() -> Observed:
    found = observe(lambda topo: failing(Reader, "_by_tape", ValueError("long " * 200_000)))
    assert max(map(len, (*found.said, *found.texts))) < 3_000
    return found


@fault(
    "finding the neurons runs out of memory",
    "`OutOfMemoryError` in `discover`",
    said="discovery is switched off: it ran out of memory twice",
    recorded="OutOfMemoryError: tried to allocate 80 GiB",
    counts={"fault/discovery": 2},
)
def discovery_memory() -> Observed:
    found = observe(lambda topo: failing(groups, "discover", MEMORY))
    assert (found.readings, found.measured) == (8, 0)
    return found


@fault(
    "a model too deep to be traced",
    "`RecursionError` in `discover`, once",
    said="discovery failed (RecursionError",
    recorded="RecursionError: too deep",
    counts={"fault/discovery": 1},
)
def discovery_once() -> Observed:
    found = observe(lambda topo: failing(groups, "discover", RecursionError("too deep"), 1))
    assert found.measured == 7
    return found


@fault(
    "one group's points cannot be taken",
    "`RuntimeError` in one group's `points`",
    said="geometry of 0 failed (RuntimeError: gone)",
    recorded="0: switched off: it failed 5 times in a row",
    counts={"fault/geometry of 0": 5},
)
def one_group() -> Observed:
    real = NeuronGroup.points

    def points(self: NeuronGroup, model: torch.nn.Module) -> torch.Tensor:
        if self.name == "0":
            raise RuntimeError("gone")
        return real(self, model)

    found = observe(lambda topo: mock.patch.object(NeuronGroup, "points", points))
    assert (found.readings, found.measured) == (8, 8)
    return found


@fault(
    "distances run out of memory",
    "`OutOfMemoryError` in the comparison of one group",
    said="geometry of 0 is switched off: it ran out of memory twice",
    recorded=f"0: {OFF}",
    counts={"fault/geometry of 0": 2},
)
def distances_memory() -> Observed:
    real = clouds.measure

    def measure(before: clouds.Cloud, *args: object, **kwargs: object) -> object:
        if len(before.points) == 12:
            raise MEMORY
        return real(before, *args, **kwargs)  # type: ignore[arg-type]

    return observe(lambda topo: mock.patch.object(clouds, "measure", measure))


@fault(
    "keeping a cloud runs out of memory",
    "`OutOfMemoryError` when one group's points are stored",
    said="geometry of 0 is switched off: it ran out of memory twice",
    recorded=f"0: {OFF}",
    counts={"fault/geometry of 0": 2},
)
def store_memory() -> Observed:
    real = clouds.StoredCloud.of

    def of(cloud: clouds.Cloud, **kwargs: object) -> object:
        if len(cloud.points) == 12:
            raise MEMORY
        return real(cloud, **kwargs)  # type: ignore[arg-type]

    found = observe(lambda topo: mock.patch.object(clouds.StoredCloud, "of", of), keep="host")
    assert found.measured == 8
    return found


@fault(
    "homology cannot be asked for",
    "`OutOfMemoryError` when the distances go to the worker",
    said="homology is switched off: it ran out of memory twice",
    recorded=f"homology above degree 0 is {OFF}",
    counts={"fault/homology": 2},
)
def homology_memory() -> Observed:
    return observe(lambda topo: failing(HomologyWorker, "submit", MEMORY), homology=1)


@fault(
    "no thread can be started",
    "`RuntimeError` from `Thread.start`, once",
    said="failed (no thread could be started for it)",
    recorded="homology of step 0 failed: no thread could be started for it",
    counts={"fault/homology": 1},
)
def no_thread() -> Observed:
    def inject(topo):
        return failing(threading.Thread, "start", RuntimeError("can't start new thread"), 1)

    found = observe(inject, homology=1, steps=3, wait=True)
    assert found.counts["homology_restarts"] == 0
    return found


@fault(
    "the homology process cannot be started",
    "`sys.executable` of an embedded interpreter (None), always",
    said="homology is switched off: it failed 5 times in a row (MeasurementError: TypeError",
    recorded="homology above degree 0 is switched off",
    counts={"fault/homology": 6, "homology_failed": 6},
)
def no_executable() -> Observed:
    return observe(lambda topo: mock.patch("sys.executable", None), homology=1, wait=True)


@fault(
    "the homology process is killed",
    "`SIGKILL` to it in the middle of a job",
    said="the homology process died (-9)",
    recorded="the homology process died (-9)",
    counts={"fault/homology": 1, "homology_failed": 1, "homology_restarts": 1},
)
def process_killed() -> Observed:
    import os
    import signal

    from topoopt.homology import process
    from topoopt.homology.child import write_message

    shot = [0]

    def write(fd: int, message: object) -> None:
        if not shot[0]:
            running = [p for p in started if p.poll() is None]
            os.kill(running[-1].pid, signal.SIGKILL)
            running[-1].wait()
            shot[0] = 1
        write_message(fd, message)

    started: list = []
    real = process.subprocess.Popen

    class Popen(real):  # type: ignore[type-arg, misc, valid-type]
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    with (
        mock.patch.object(process.child, "write_message", write),
        mock.patch.object(process.subprocess, "Popen", Popen),
    ):
        return observe(homology=1, steps=2, wait=True)


@fault(
    "homology finds what it cannot",
    "a diagram of NaN from the back-end, always",
    said="homology is switched off: it failed 5 times in a row (MeasurementError: a diagram",
    recorded="homology above degree 0 is switched off",
    counts={"fault/homology": 6, "homology_failed": 6},
)
def odd_answer() -> Observed:
    import numpy as np

    from topoopt.homology.process import ProcessRips

    wrong = [np.zeros((0, 2)), np.full((3, 2), np.nan)]
    return observe(lambda topo: mock.patch.object(ProcessRips, "__call__", return_value=wrong), homology=1, wait=True)


@fault(
    "a gradient is NaN, for one step",
    "one entry of `.grad`, between backward and the step",
    said="geometry of 0 failed (MeasurementError: 1 of 12 neurons have NaN",
    recorded="neurons have NaN or infinite entries",
    counts={"fault/geometry of 0": 5, "fault/geometry of 2": 4},
)
def nan_gradient() -> Observed:
    def late(step: int, problem: Problem) -> None:
        if step == 3:
            problem.model[0].weight.grad[0, 0] = math.nan  # type: ignore[union-attr, index]

    return observe(ways=Ways(late=late))


@fault(
    "a gradient is NaN for one step of a strict run",
    "the same, with `strict=True` and `mode='preserve'`",
    said="strict failed (MeasurementError: 1 of 12 neurons have NaN",
    recorded="neurons have NaN or infinite entries",
    counts={"fault/geometry of 0": 5, "fault/geometry of 2": 4, "fault/strict": 5},
)
def nan_strict() -> Observed:
    def late(step: int, problem: Problem) -> None:
        if step == 3:
            problem.model[0].weight.grad[0, 0] = math.nan  # type: ignore[union-attr, index]

    return observe(ways=Ways(late=late), mode="preserve", strict=True)


@fault(
    "a gradient is infinite",
    "all of `.grad`, for one step",
    said="geometry of 0 failed (MeasurementError: 12 of 12 neurons have NaN",
    recorded="neurons have NaN or infinite entries",
    counts={"fault/geometry of 0": 5, "fault/geometry of 2": 5},
)
def inf_gradient() -> Observed:
    def late(step: int, problem: Problem) -> None:
        if step == 3:
            for p in problem.model.parameters():
                p.grad.fill_(math.inf)  # type: ignore[union-attr]

    return observe(ways=Ways(late=late))


@fault(
    "the probe's loss raises",
    "`loss=` of the user's, always",
    said="spectral is switched off: it failed 5 times in a row",
    recorded="ValueError: the batch is gone",
    counts={"fault/spectral": 5},
)
def probe_raises() -> Observed:
    def before(topo) -> None:
        def gone() -> torch.Tensor:
            raise ValueError("the batch is gone")

        topo.loss = gone

    return observe(before=before)


@fault(
    "the probe's loss is no number",
    "`loss=` returns None",
    recorded="loss() returned a NoneType",
)
def probe_none() -> Observed:
    return observe(before=lambda topo: setattr(topo, "loss", lambda: None))


@fault(
    "the probe's loss takes a step of the optimizer",
    "`loss=` calls `optimizer.step()`",
    recorded="loss() takes an optimizer step",
)
def probe_steps() -> Observed:
    def before(topo) -> None:
        model = topo.model
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))

        def loss() -> torch.Tensor:
            topo.step()
            return model(x).square().mean()

        topo.loss = loss

    return observe(before=before)


@fault(
    "no gradient at all",
    "`zero_grad` between backward and a step",
    recorded="the gradient is down to 0",
)
def no_gradient() -> Observed:
    def late(step: int, problem: Problem) -> None:
        if step == 2:
            problem.optimizer.zero_grad()

    return observe(ways=Ways(late=late))

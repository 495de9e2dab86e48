"""What the program around does: logging, warnings, defaults of torch, signals, forks, an odd environment."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from fault_table import fault
from fault_training import Observed, Problem, Ways, failing, observe
from torch.optim import AdamW

from topoopt.optimizer.reading import Reader


@fault(
    "the program's logging raises",
    "a handler of the user's raises; a reading fails",
    counts={"fault/spectral": 1},
    recorded="ValueError: gone",
)
def logging_raises() -> Observed:
    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("stderr is closed")

    def inject(topo: Any) -> Any:
        stack, handler = ExitStack(), Handler()
        logger = logging.getLogger("topoopt")
        held = logger.handlers[:]
        logger.handlers[:] = [handler]
        stack.callback(logger.handlers.__setitem__, slice(None), held)
        stack.enter_context(failing(Reader, "_by_tape", ValueError("gone"), 1))
        return stack

    return observe(inject)


@fault(
    "a time limit of the user's, by a signal",
    "its handler raises in the middle of a reading: it reaches the training, which stops there",
)
def time_limit() -> Observed:
    class Limit(Exception):
        pass

    def handler(number: int, frame: Any) -> None:
        raise Limit

    calls = [0]
    real = Reader._by_tape

    def reading(self: Reader, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            signal.raise_signal(signal.SIGUSR1)
        return real(self, *args)

    @contextmanager
    def inject(topo: Any) -> Any:
        held = signal.signal(signal.SIGUSR1, handler)
        try:
            with mock.patch.object(Reader, "_by_tape", reading):
                yield
        finally:
            signal.signal(signal.SIGUSR1, held)

    def step(step: int, problem: Problem) -> None:
        if not hasattr(problem.optimizer, "topo") and step == 3:
            raise Limit  # there it comes before the step
        problem.optimizer.step()

    return observe(inject, ways=Ways(step=step, survives=(Limit,)), mode="preserve", make=lambda: Problem(lr=3.0))


@fault(
    "a signal's handler exits while a sink writes",
    "`SystemExit` of a SIGTERM handler: it reaches the program",
    unharmed="ends as it was told to",
)
def exit_in_a_sink() -> Observed:
    def handler(number: int, frame: Any) -> None:
        raise SystemExit(143)

    def sink(measurement: Any) -> None:
        if measurement.step == 3 and not raised:
            raised.append(True)
            signal.raise_signal(signal.SIGTERM)

    raised: list[bool] = []
    held = signal.signal(signal.SIGTERM, handler)
    try:
        return observe(sinks=(sink,), ways=Ways(survives=(SystemExit,), step=_exits))
    finally:
        signal.signal(signal.SIGTERM, held)


def _exits(step: int, problem: Problem) -> None:
    problem.optimizer.step()
    if not hasattr(problem.optimizer, "topo") and step == 3:
        raise SystemExit(143)


@fault("warnings are errors", "`warnings.simplefilter('error')`, numpy's too")
def warnings_are_errors() -> Observed:
    @contextmanager
    def inject(topo: Any) -> Any:
        with warnings.catch_warnings(), np.errstate(all="raise"):
            warnings.simplefilter("error")
            yield

    return observe(inject, mode="preserve", make=lambda: Problem(AdamW, 0.01), homology=1, steps=14, wait=True)


@fault("another default type", "`torch.set_default_dtype(float64)` and then `bfloat16`")
def default_type() -> Observed:
    def early(step: int, problem: Problem) -> None:
        torch.set_default_dtype([torch.float32, torch.float64, torch.bfloat16][step % 3])

    def after(step: int, problem: Problem) -> None:
        torch.set_default_dtype(torch.float32)

    return observe(ways=Ways(early=early, after=after), homology=1, keep="host", wait=True, loss=True)


@fault("another default device", "`torch.set_default_device('meta')` around the steps")
def default_device() -> Observed:
    def early(step: int, problem: Problem) -> None:
        torch.set_default_device(None)

    def late(step: int, problem: Problem) -> None:
        torch.set_default_device("meta")

    def after(step: int, problem: Problem) -> None:
        torch.set_default_device(None)

    try:
        return observe(
            ways=Ways(early, late, after=after), homology=1, mode="preserve", make=lambda: Problem(lr=3.0), wait=True
        )
    finally:
        torch.set_default_device(None)


@fault("steps without gradients switched on", "`torch.inference_mode()` and `no_grad()` around the step")
def no_grad() -> Observed:
    def step(step: int, problem: Problem) -> None:
        with torch.no_grad():
            problem.optimizer.step()

    return observe(ways=Ways(step=step), mode="preserve", make=lambda: Problem(lr=3.0))


@fault("anomaly detection", "`torch.autograd.set_detect_anomaly(True)` and deterministic algorithms")
def anomaly() -> Observed:
    @contextmanager
    def inject(topo: Any) -> Any:
        torch.use_deterministic_algorithms(True)
        try:
            with warnings.catch_warnings(), torch.autograd.set_detect_anomaly(True):
                yield
        finally:
            torch.use_deterministic_algorithms(False)

    return observe(inject, homology=1, steps=4)


@fault("an odd module path", "a `Path` and a None in `sys.path`, as notebooks put them there")
def module_path() -> Observed:
    def inject(topo: Any) -> Any:
        return mock.patch.object(sys, "path", [*sys.path, Path("/tmp"), None])

    return observe(inject, homology=1, steps=2, wait=True)


@fault("an empty environment", "no HOME, no TMPDIR, no PATH")
def no_home() -> Observed:
    return observe(lambda topo: mock.patch.dict(os.environ, {}, clear=True), homology=1, steps=2, wait=True)


@fault(
    "no more files can be opened",
    "`EMFILE` when homology's process is started, once",
    said="homology of group '0' at step 0 failed (OSError: [Errno 24]",
    recorded="homology of step 0 failed: OSError: [Errno 24]",
    counts={"fault/homology": 1, "homology_failed": 1},
)
def no_files() -> Observed:
    from topoopt.homology import process

    error = OSError(24, "Too many open files")
    return observe(lambda topo: failing(process.subprocess, "Popen", error, 1), homology=1, steps=3, wait=True)


@fault("the clock jumps", "`perf_counter` goes back by an hour, with a budget of 1 %")
def clock() -> Observed:
    import time

    real, offset = time.perf_counter, [0.0]

    def early(step: int, problem: Problem) -> None:
        offset[0] = [0.0, -3600.0, 7200.0][step % 3]

    def jumping() -> float:
        return real() + offset[0]

    return observe(
        lambda topo: mock.patch.object(time, "perf_counter", jumping),
        ways=Ways(early=early),
        budget=0.01,
        every=2,
    )


@fault(
    "a child of the program trains on",
    "`os.fork` in the run; the child steps, detaches and ends: the record is the parent's",
    unharmed="bits equal in both",
)
def forked() -> Observed:
    import shutil
    import tempfile

    from topoopt import TopoOptimizer
    from topoopt.report import JsonLines, read

    folder = Path(tempfile.mkdtemp())
    sink = JsonLines(folder / "record.jsonl")

    def after(step: int, problem: Problem) -> None:
        if step != 3 or not isinstance(problem.optimizer, TopoOptimizer):
            return
        child = os.fork()
        if not child:
            code = 1
            try:
                for _ in range(3):
                    problem.optimizer.zero_grad()
                    problem.loss().backward()
                    problem.optimizer.step()
                problem.optimizer.detach()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    found = observe(sinks=(sink,), ways=Ways(after=after), homology=1)
    record = read(folder / "record.jsonl")
    shutil.rmtree(folder)
    assert [m.step for m in record.measurements] == list(range(8))
    return found

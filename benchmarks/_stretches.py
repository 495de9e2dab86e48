"""Stretches of training with a monitor there or none: processor time of each step, child processes, peak memory."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from _monitors import Monitor
from _watched import Plan


@dataclass
class Stretch:
    """Processor seconds of each step, and at which of them something was done."""

    seconds: list[float] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    setup: float = 0.0
    """Of the watched process's seconds, those that were spent once."""
    started: float = 0.0
    """Of the child processes, until the first period was over."""
    children: float = 0.0
    """Of them since."""
    megabytes: float = 0.0
    readings: str = ""

    @property
    def ordinary(self) -> float:
        """A step on which nothing is done."""
        return statistics.median(s for i, s in enumerate(self.seconds) if i >= 2 and i not in self.events)


def _children() -> tuple[float, float]:
    """Processor seconds and MB of child processes, ended ones' seconds included."""
    me = psutil.Process()
    ended = me.cpu_times()
    seconds, megabytes = ended.children_user + ended.children_system, 0.0
    for child in me.children(recursive=True):
        try:
            used = child.cpu_times()
            seconds += used.user + used.system
            megabytes += child.memory_info().rss / 2**20
        except psutil.NoSuchProcess:
            continue
    return seconds, megabytes


def peak() -> float:
    """MB of resident memory at the most, so far."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _settled() -> tuple[float, float]:
    """The same once they have nothing to do."""
    before, now = -1.0, _children()
    while now[0] > before + 0.02:
        time.sleep(0.25)
        before, now = now[0], _children()
    return now


def stretch(plan: Plan, kind: type[Monitor], steps: int) -> Stretch:
    """Train a fresh model for so many steps."""
    torch.manual_seed(0)
    task = plan.build()
    task.model.train()
    monitor, found = kind(task, plan.every), Stretch()
    before = _children()[0]
    trainer = plan.trainer and not kind.own_loop
    try:
        (_by_trainer if trainer else _by_hand)(monitor, steps, found)
        after, found.megabytes = _settled()
        found.started -= before
        found.children = after - before - found.started
    finally:
        monitor.end()
    return found


def _took(monitor: Monitor, step: int, seconds: float, found: Stretch) -> None:
    found.seconds.append(seconds)
    if monitor.happened(step):
        found.events.append(step)
    found.setup, found.readings = monitor.setup_seconds(), monitor.readings()
    if step == monitor.every - 1:
        found.started = _settled()[0]


def _by_hand(monitor: Monitor, steps: int, found: Stretch) -> None:
    monitor.begin()
    for step in range(steps):
        began = time.process_time()
        monitor.train(step)
        _took(monitor, step, time.process_time() - began, found)


def _by_trainer(monitor: Monitor, steps: int, found: Stretch) -> None:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        """Times from step to step; calls the monitor after a step that is due."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.last = time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            step = state.global_step - 1
            if monitor.due(step):
                monitor.look(step)
            now = time.process_time()
            _took(monitor, step, now - self.last, found)
            self.last = time.process_time()

    task = monitor.task
    rows = [dict(zip(("input_ids", "labels"), row)) for step in range(steps) for row in zip(*task.batch(step))]
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=len(rows) // steps, report_to=[],
            lr_scheduler_type="constant", save_strategy="no", logging_strategy="no", use_cpu=True, disable_tqdm=True,
            dataloader_pin_memory=False,
        )  # fmt: skip
        optimizer: Any = monitor.begin(trainer=True)
        trainer = Trainer(
            task.model,
            args,
            train_dataset=rows,  # type: ignore[arg-type]
            callbacks=[*monitor.callbacks(), Clock()],
            optimizers=(optimizer, None),
        )
        trainer.train()

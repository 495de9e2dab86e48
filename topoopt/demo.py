"""`topoopt demo`: a small network on real digits, through all three phases and back, watched live.

The learning rate rises and falls again by a factor of 100, so that the run begins constrained, crosses eta* and the edge
of stability, and comes back. Everything is measured by a `TopoOptimizer` in report mode.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from torch import nn

from topoopt.config import TopoConfig
from topoopt.errors import ConfigError
from topoopt.extras import require
from topoopt.measurement import GroupMeasurement, Measurement, Phase
from topoopt.optimizer import TopoOptimizer
from topoopt.report import JsonLines, Record, read
from topoopt.report.writing import write_whole
from topoopt.terminal import STYLES, Terminal

LOWEST, HIGHEST = 0.02, 2.0
"""The learning rate's range in a run of full length: r goes from about a hundredth to past the edge."""
HEADER = f"{'step':>6}  {'loss':>6}  {'phase':<14}  {'r':>6}  {'eta* in':<13}  {'distortion':<13}  {'loops':>5}"


@dataclass(frozen=True)
class DemoSettings:
    """What `topoopt demo` can be asked for."""

    out: Path = Path("topoopt-demo")
    steps: int = 6000
    every: int = 50
    budget: float = 0.2
    width: int = 64
    seed: int = 0

    @property
    def config(self) -> TopoConfig:
        """What the optimizer is wrapped with."""
        return TopoConfig(every=self.every, budget=self.budget, seed=self.seed, keep="host")

    @property
    def highest(self) -> float:
        """The largest learning rate: less in a short run, which has no time to come back from the top."""
        return max(HIGHEST * min(1.0, self.steps / 6000) ** 0.5, 2 * LOWEST)


@dataclass(frozen=True)
class DemoFiles:
    """What a demo leaves behind."""

    record: Path
    picture: Path
    page: Path


def run(settings: DemoSettings, stream: TextIO | None = None, *, quiet: bool = False) -> DemoFiles:
    """Train, show and write; returns where everything is.

    Args:
        settings: what is asked for.
        stream: where it is shown; stdout without one.
        quiet: show only the verdict and where everything is.

    Raises:
        ConfigError: for fewer than 2 steps, or when scikit-learn or matplotlib is missing.
        FileError: where nothing can be written.
    """
    if settings.steps < 2:
        raise ConfigError(f"steps={settings.steps} is not usable: give at least 2")
    files = DemoFiles(*(settings.out / name for name in ("record.jsonl", "picture.png", "report.html")))
    terminal, told = Terminal(stream), Terminal(stream, quiet=quiet)
    width, highest = settings.width, settings.highest
    told.say(f"digits, MLP 64-{width}-{width}-10, SGD, learning rate {LOWEST:g} to {highest:.2g} and back")
    with JsonLines(files.record, settings.config) as sink, one_thread():
        accuracy = train(settings, sink, told)
    record = read(files.record)
    _draw(files, record)
    _conclude(told, record.measurements, accuracy, settings)
    if record.verdict is not None:
        terminal.say(f"verdict: {record.verdict.state}", STYLES.get(record.verdict.state, ""))
        for line in record.verdict.lines:
            terminal.paragraph(line)
        if record.verdict.gauge is not None:
            told.say(record.verdict.gauge.line())
    for what, path in (("record", files.record), ("picture", files.picture), ("report", files.page)):
        terminal.say(f"{what:<8} {path}")
    return files


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """A network this small only waits for its threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(settings: DemoSettings, sink: Callable[[Measurement], None], terminal: Terminal) -> float:
    """The training loop, as a user would write it; returns the accuracy on held-out digits."""
    generator = torch.Generator().manual_seed(settings.seed)
    (x, y), (test_x, test_y) = digits(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = mlp(settings.width)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    batch = torch.arange(len(x))

    sgd = torch.optim.SGD(model.parameters(), lr=LOWEST)
    optimizer = TopoOptimizer(sgd, model, settings.config, loss=lambda: criterion(model(x[batch]), y[batch]))
    optimizer.add_sink(sink)
    ratio = settings.highest / LOWEST
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rise_and_fall(step / settings.steps, ratio))
    terminal.say(HEADER)
    with terminal.progress("training", settings.steps) as advance:
        for step in range(settings.steps):
            batch = torch.randint(len(x), (256,), generator=generator)
            optimizer.zero_grad()
            loss = criterion(model(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
            scheduler.step()
            advance(step + 1)
            if optimizer.measured and optimizer.last is not None:
                terminal.say(row(optimizer.last), STYLES.get(optimizer.last.phase, ""))
    optimizer.detach()
    with torch.no_grad():
        return float((model(test_x).argmax(1) == test_y).float().mean())


def rise_and_fall(share: float, ratio: float) -> float:
    """Factor on the lowest rate: geometric, up to `ratio` in the middle of the run and down again."""
    return ratio ** (math.sin(math.pi * share) ** 2)


def mlp(width: int) -> nn.Sequential:
    """Two hidden layers of tanh units."""
    return nn.Sequential(nn.Linear(64, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 10))


def digits(seed: int) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """scikit-learn's 1,797 digits of 8 x 8 pixels: ((1438, 64), labels) to train on, the rest to test."""
    data, labels = require("sklearn.datasets", extra="demo").load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(data))
    x = torch.tensor(data[order] / 16.0, dtype=torch.float32)
    y = torch.tensor(labels[order], dtype=torch.int64)
    return (x[:1438], y[:1438]), (x[1438:], y[1438:])


def row(m: Measurement) -> str:
    """One measurement as a row of the table."""
    return f"{m.step:>6}  {m.loss:>6.3f}  {m.phase:<14}  {m.proximity:>6.3f}  {_bracket(m):<13}  {_groups(m)}"


def _bracket(m: Measurement) -> str:
    low, high = m.eta_star_bracket[0]
    return f"{low:.2g} to {high:.2g}"


def _groups(m: Measurement) -> str:
    """Distortion since the last measurement over all groups, and how many loops they have."""
    if not m.groups:
        return "no neurons measured"
    groups = list(m.groups.values())
    low = min(group.distortion_window[0] for group in groups)
    high = max(group.distortion_window[1] for group in groups)
    return f"{f'{low:.2f} to {high:.2f}':<13}  {_loops(groups):>5}"


def _loops(groups: Sequence[GroupMeasurement]) -> str:
    """Loops of this very step, or that they are not known yet: what is on its way is never told as none."""
    if any(group.pending or len(group.diagrams) < 2 for group in groups):
        return "..."
    return str(sum(len(group.diagrams[1]) for group in groups))


def _draw(files: DemoFiles, record: Record) -> None:
    from topoopt.report import html, plots

    picture = io.BytesIO()
    plots.overview_figure(record.measurements, record.readings).savefig(picture, format="png", dpi=120)
    write_whole(files.picture, picture.getvalue())
    write_whole(files.page, html.page(record))


def _conclude(terminal: Terminal, measurements: Sequence[Measurement], accuracy: float, settings: DemoSettings) -> None:
    phases = Counter(m.phase for m in measurements)
    last = measurements[-1]
    highest = max((m.proximity for m in measurements if math.isfinite(m.proximity)), default=math.nan)
    spread = ", ".join(f"{phases[phase]} {phase}" for phase in Phase if phases[phase])
    edge = "" if last.edge is None else f" (edge {last.edge:g})"
    terminal.say("eta* in: between these bounds; loops: of all layers, ... where still on their way")
    terminal.say()
    terminal.say(f"{len(measurements)} measurements: {spread}; r rose to {highest:.3g}{edge}")
    terminal.say(
        f"test accuracy {accuracy:.3f}; measuring took {last.share:.1%} of the wall time (budget {settings.budget:.0%})"
    )

"""`topoopt demo`: a small network on real digits, through all three phases and back, watched live.

The learning rate rises and falls again by a factor of 100, so that the run begins constrained, crosses eta* and the edge
of stability, and comes back. Everything is measured by a `TopoOptimizer` in report mode.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from torch import nn

from topoopt.config import TopoConfig
from topoopt.errors import ConfigError
from topoopt.measurement import Measurement, Phase
from topoopt.optimizer import TopoOptimizer
from topoopt.report import JsonLines, read

LOWEST, HIGHEST = 0.02, 2.0
"""The learning rate's range in a run of full length: r goes from about a hundredth to past the edge."""
ANSI = {Phase.CONSTRAINED: "32", Phase.PERMISSIVE: "33", Phase.SIMPLIFICATION: "31", Phase.UNKNOWN: "90"}
HEADER = f"{'step':>6}  {'loss':>7}  {'phase':<14}  {'r':>7}  {'eta* in':<20}  {'distortion':<15}  H0, H1"


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
    def highest(self) -> float:
        """The largest learning rate: less in a short run, which has no time to come back from the top."""
        return max(HIGHEST * min(1.0, self.steps / 6000) ** 0.5, 2 * LOWEST)


@dataclass(frozen=True)
class DemoFiles:
    """What a demo leaves behind."""

    record: Path
    picture: Path
    page: Path


def run(settings: DemoSettings, stream: TextIO = sys.stdout) -> DemoFiles:
    """Train, show and write; returns where everything is.

    Raises:
        ConfigError: for fewer than 2 steps, or when scikit-learn or matplotlib is missing.
    """
    if settings.steps < 2:
        raise ConfigError(f"steps={settings.steps} is not usable: give at least 2")
    files = DemoFiles(*(settings.out / name for name in ("record.jsonl", "picture.png", "report.html")))
    settings.out.mkdir(parents=True, exist_ok=True)
    files.record.unlink(missing_ok=True)
    screen = Screen(stream, settings.steps)
    threads = torch.get_num_threads()
    width, highest = settings.width, settings.highest
    screen.say(f"digits, MLP 64-{width}-{width}-10, SGD, learning rate {LOWEST:g} to {highest:.2g} and back")
    torch.set_num_threads(1)  # a network this small only waits for its threads
    try:
        accuracy = train(settings, files.record, screen)
    finally:
        torch.set_num_threads(threads)
    measurements = read(files.record).measurements
    _draw(files)
    _conclude(screen, measurements, accuracy, settings)
    for what, path in (("record", files.record), ("picture", files.picture), ("report", files.page)):
        screen.say(f"{what:<8} {path}")
    return files


def train(settings: DemoSettings, record: Path, screen: Screen) -> float:
    """The training loop, as a user would write it; returns the accuracy on held-out digits."""
    generator = torch.Generator().manual_seed(settings.seed)
    (x, y), (test_x, test_y) = digits(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = mlp(settings.width)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    batch = torch.arange(len(x))

    config = TopoConfig(every=settings.every, budget=settings.budget, seed=settings.seed)
    optimizer = TopoOptimizer(
        torch.optim.SGD(model.parameters(), lr=LOWEST), model, config, loss=lambda: criterion(model(x[batch]), y[batch])
    )
    optimizer.add_sink(JsonLines(record, config))
    ratio = settings.highest / LOWEST
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rise_and_fall(step / settings.steps, ratio))
    for step in range(settings.steps):
        batch = torch.randint(len(x), (256,), generator=generator)
        optimizer.zero_grad()
        loss = criterion(model(x[batch]), y[batch])
        loss.backward()
        optimizer.step()
        scheduler.step()
        screen.progress(step + 1)
        if optimizer.measured and optimizer.last is not None:
            screen.row(optimizer.last)
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
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError("the demo needs scikit-learn's digits: pip install scikit-learn") from error
    data, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(data))
    x = torch.tensor(data[order] / 16.0, dtype=torch.float32)
    y = torch.tensor(labels[order], dtype=torch.int64)
    return (x[:1438], y[:1438]), (x[1438:], y[1438:])


class Screen:
    """A table that grows, with a progress bar below it on a terminal; plain lines anywhere else."""

    def __init__(self, stream: TextIO, steps: int) -> None:
        self._stream, self._steps = stream, steps
        self._live = stream.isatty()
        self._headed = False
        self._shown = 0.0

    def say(self, text: str) -> None:
        """One line."""
        self._stream.write(("\r\033[K" if self._live else "") + text + "\n")
        self._stream.flush()

    def row(self, m: Measurement) -> None:
        """One measurement as a row of the table."""
        if not self._headed:
            self.say(HEADER)
            self._headed = True
        phase = f"{m.phase:<14}"
        phase = f"\033[{ANSI[m.phase]}m{phase}\033[0m" if self._live else phase
        bracket = _bracket(m)
        self.say(f"{m.step:>6}  {m.loss:>7.4f}  {phase}  {m.proximity:>7.3f}  {bracket:<20}  {_groups(m)}")

    def progress(self, step: int) -> None:
        """Draw the bar, at most ten times a second."""
        if not self._live or (time.monotonic() - self._shown < 0.1 and step < self._steps):
            return
        self._shown = time.monotonic()
        filled = 40 * step // self._steps
        self._stream.write(f"\r\033[K[{'#' * filled}{'.' * (40 - filled)}] {step}/{self._steps}")
        self._stream.flush()


def _bracket(m: Measurement) -> str:
    low, high = m.eta_star_bracket[0]
    return f"[{low:.3g}, {high:.3g}]"


def _groups(m: Measurement) -> str:
    """Distortion since the last measurement over all groups, and what homology says of them."""
    if not m.groups:
        return "no neurons measured"
    groups = list(m.groups.values())
    low = min(group.distortion_window[0] for group in groups)
    high = max(group.distortion_window[1] for group in groups)
    margin = min(group.merge_margin for group in groups)
    loops = sum(len(group.diagrams[1]) for group in groups if len(group.diagrams) > 1)
    persistence = sum(group.total_persistence[1] for group in groups if len(group.total_persistence) > 1)
    return f"{f'{low:.3f} to {high:.3f}':<15}  nearest {margin:.3f}, {loops} loops of {persistence:.2f} in all"


def _draw(files: DemoFiles) -> None:
    from topoopt.report import html, plots

    record = read(files.record)
    plots.overview_figure(record.measurements).savefig(files.picture, dpi=120)
    files.page.write_text(html.page(record), encoding="utf-8")


def _conclude(screen: Screen, measurements: list[Measurement], accuracy: float, settings: DemoSettings) -> None:
    phases = Counter(m.phase for m in measurements)
    last = measurements[-1]
    highest = max((m.proximity for m in measurements if math.isfinite(m.proximity)), default=math.nan)
    spread = ", ".join(f"{phases[phase]} {phase}" for phase in Phase if phases[phase])
    screen.say("")
    screen.say(f"{len(measurements)} measurements: {spread}; r rose to {highest:.3g} (edge {last.edge:g})")
    screen.say(
        f"test accuracy {accuracy:.3f}; measuring took {last.share:.1%} of the wall time (budget {settings.budget:.0%})"
    )

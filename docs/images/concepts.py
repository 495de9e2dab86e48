"""The pictures of `docs/concepts.md`, each computed by topoopt itself: `python docs/images/concepts.py [NAME ...]`.

About half a minute on one core. SVG, except where many points would make it large.
"""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from torch import Tensor, nn

from topoopt import TopoOptimizer, geometry, homology

HERE = Path(__file__).parent
INK, BLUE, ORANGE, GREEN, GREY = "#1b1f24", "#1f6fb4", "#c2570c", "#2a7d4f", "#8a9099"


def figure(width: float, height: float, columns: int, **options: Any) -> tuple[Figure, Any]:
    drawing = Figure(figsize=(width, height), layout="constrained")
    return drawing, drawing.subplots(1, columns, squeeze=False, **options)[0]


def bare(axes: Any, title: str = "") -> None:
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=10, color=INK)


# -- a layer is a cloud -----------------------------------------------------------------------------------------------


def neurons() -> Figure:
    """A layer's units and all weights of one of them; the same units as points."""
    drawing, (left, right) = figure(8.0, 3.2, 2, gridspec_kw={"width_ratios": [1.25, 1]})
    inputs = [(0.0, y) for y in (-1.0, 0.0, 1.0)]
    hidden = [(1.4, y) for y in (-1.6, -0.8, 0.0, 0.8, 1.6)]
    outputs = [(2.8, y) for y in (-0.6, 0.6)]
    for k, unit in enumerate(hidden):
        chosen = k == 3
        for other in inputs + outputs:
            style = {"color": ORANGE, "linewidth": 2.0} if chosen else {"color": GREY, "linewidth": 0.5}
            left.plot([unit[0], other[0]], [unit[1], other[1]], zorder=1, **style)
    for column, colors in ((inputs, ["white"] * 3), (hidden, [BLUE] * 3 + [ORANGE, BLUE]), (outputs, ["white"] * 2)):
        left.scatter(*zip(*column), s=150, c=colors, edgecolors=INK, zorder=2)
    left.annotate("incoming row", (0.62, 1.3), color=ORANGE, fontsize=9, ha="right")
    left.annotate("outgoing column", (2.1, 1.1), color=ORANGE, fontsize=9)
    left.set(xlim=(-0.6, 3.6), ylim=(-2.0, 2.0))
    bare(left, "one unit: everything that belongs to it")
    points = np.random.default_rng(3).normal(size=(5, 2)) * (1.0, 0.8)
    right.scatter(*points.T, s=110, c=[BLUE] * 3 + [ORANGE, BLUE], edgecolors=INK)
    right.annotate(
        "$x_i$ = (incoming row, bias,\noutgoing column)", points[3], (8, 12), textcoords="offset points", fontsize=9
    )
    right.margins(0.35)
    bare(right, "the layer: a cloud of such points")
    return drawing


# -- what a step does to distances ------------------------------------------------------------------------------------


def distortion() -> Figure:
    """A step of a cloud, with the pairs that are stretched and shrunk the most."""
    generator = torch.Generator().manual_seed(5)
    before = torch.randn(14, 2, generator=generator, dtype=torch.float64)
    pull = torch.tensor([[0.55, 0.25], [-0.2, -0.5]], dtype=torch.float64)
    after = before - 0.7 * before @ pull.T
    moved = geometry.compare(before, after)
    drawing, panels = figure(8.0, 3.6, 2, sharex=True, sharey=True)
    for axes, cloud, title in zip(panels, (before, after), ("before the step", "after it")):
        axes.scatter(*cloud.T, s=28, color=BLUE, zorder=2)
        for pair, color in ((moved.lower_pair, ORANGE), (moved.upper_pair, GREEN)):
            axes.plot(*cloud[list(pair)].T, color=color, linewidth=2.2, zorder=1)
        bare(axes, title)
    drawing.supxlabel(
        f"shortened the most: a = {moved.lower:.2f} (orange)   lengthened the most: b = {moved.upper:.2f} (green)   "
        f"$r_{{pair}}$ = {moved.gain:.2f}, so {'certified' if moved.certified else 'not certified'}",
        fontsize=9,
    )
    return drawing


# -- shape at every scale ---------------------------------------------------------------------------------------------


def persistence() -> Figure:
    """Growing balls around a noisy circle, and the barcode that they write."""
    generator = torch.Generator().manual_seed(1)
    angle = torch.linspace(0, 2 * math.pi, 19, dtype=torch.float64)[:-1]
    points = torch.stack([angle.cos(), angle.sin()], 1) + 0.09 * torch.randn(
        18, 2, generator=generator, dtype=torch.float64
    )
    diagrams = homology.persistence(points, degree=1).diagrams
    born, dead = max(diagrams[1], key=lambda bar: bar[1] - bar[0])
    scales = (0.2, (born + dead) / 2, dead + 0.08)
    drawing, panels = figure(9.6, 2.9, 4, gridspec_kw={"width_ratios": [1, 1, 1, 1.5]})
    for axes, scale in zip(panels, scales):
        for x, y in points.tolist():
            axes.add_patch(Circle((x, y), scale / 2, facecolor=BLUE, alpha=0.16, linewidth=0))
        axes.scatter(*points.T, s=9, color=INK, zorder=2)
        axes.set(xlim=(-2.0, 2.0), ylim=(-2.0, 2.0))
        clusters = int((diagrams[0][:, 1] > scale).sum())
        loop = "a loop" if born <= scale < dead else "no loop"
        bare(axes, f"scale {scale:.2f}: {clusters} cluster{'s' if clusters > 1 else ''}, {loop}")
        axes.title.set_fontsize(8)
    bars, row = panels[3], 0
    for diagram, color in zip(diagrams, (GREY, ORANGE)):
        for start, end in diagram:
            bars.plot([start, min(end, 2.1)], [row, row], color=color, linewidth=2.0)
            row += 1
    for scale in scales:
        bars.axvline(scale, color=INK, linewidth=0.6, linestyle=":")
    bars.set(yticks=[], xlabel="scale (distance)", xlim=(0, 2.1))
    bars.spines[["top", "left", "right"]].set_visible(False)
    bars.set_title("barcode: clusters grey, loops orange", fontsize=8, color=INK)
    return drawing


# -- the critical rate ------------------------------------------------------------------------------------------------


def critical() -> Figure:
    """One step of gradient descent as a map of the line: it folds when the rate passes 1/K."""
    x = torch.linspace(-2.6, 2.6, 400, dtype=torch.float64)
    drawing, panels = figure(9.0, 3.3, 3, sharey=True)
    for axes, r in zip(panels, (0.6, 1.0, 1.8)):
        after = x - r * torch.sin(x)  # the loss is 1 - cos(x), so that K = 1 and eta* = 1
        axes.axhline(0, color=GREY, linewidth=0.4)
        axes.plot(x, after, color=BLUE if r < 1 else INK if r == 1 else ORANGE, linewidth=2)
        state = "one to one" if r < 1 else "the limit" if r == 1 else "folds"
        axes.set_title(f"r = {r:g}: {state}", fontsize=10, color=INK)
        axes.set_xlabel("x before the step")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("x after it")
    meeting = x[(x > 0.3) & ((x - 1.8 * torch.sin(x)).abs() < 6e-3)][0].item()
    panels[2].scatter([-meeting, 0, meeting], [0, 0, 0], color=ORANGE, zorder=3, s=30)
    panels[2].annotate("three points,\none place", (meeting, 0), (4, -32), textcoords="offset points", fontsize=9)
    return drawing


# -- real training ----------------------------------------------------------------------------------------------------


class FigureEight(nn.Module):
    """f(x) = sum a tanh(w x), whose 200 neurons (w, a) start on a figure eight."""

    def __init__(self) -> None:
        super().__init__()
        t = 2 * math.pi * torch.arange(200, dtype=torch.float64) / 200
        self.inner, self.outer = nn.Linear(1, 200, bias=False).double(), nn.Linear(200, 1, bias=False).double()
        with torch.no_grad():
            self.inner.weight.copy_(t.sin()[:, None])
            self.outer.weight.copy_((t.sin() * t.cos())[None])

    def forward(self, x: Tensor) -> Tensor:
        """From (n, 1) to (n, 1)."""
        return self.outer(torch.tanh(self.inner(x)))

    def cloud(self) -> np.ndarray:
        """Neurons (w, a), as they are now: (200, 2)."""
        return torch.cat([self.inner.weight, self.outer.weight.T], 1).detach().numpy().copy()


def trained(lr: float, steps: int, **options: Any) -> tuple[FigureEight, TopoOptimizer]:
    """Full-batch gradient descent on 5 sin(2x), measured every 20 steps."""
    model, x = FigureEight(), torch.linspace(-2, 2, 64, dtype=torch.float64)[:, None]
    sgd = torch.optim.SGD(model.parameters(), lr=lr)
    optimizer = TopoOptimizer(sgd, model, every=20, budget=None, homology=-1, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (model(x) - 5 * torch.sin(2 * x)).square().mean()).backward()
        optimizer.step()
    return model, optimizer.detach()


def edge() -> Figure:
    """r of full-batch gradient descent at three rates, and of one that is steered."""
    drawing, (axes,) = figure(8.0, 3.4, 1)
    axes.axhspan(0, 1, color=BLUE, alpha=0.08)
    axes.axhspan(1, 2, color=GREY, alpha=0.12)
    axes.axhspan(2, 3.2, color=ORANGE, alpha=0.10)
    for level, text in ((0.5, "constrained"), (1.5, "permissive"), (2.55, "simplification")):
        axes.text(1190, level, text, fontsize=9, color=INK, ha="right", va="center")
    runs: tuple[tuple[float, dict[str, Any], str, str], ...] = (
        (0.01, {}, BLUE, "lr 0.01"),
        (0.02, {}, GREEN, "lr 0.02"),
        (0.04, {}, ORANGE, "lr 0.04"),
        (0.04, {"mode": "preserve"}, INK, 'lr 0.04, mode="preserve"'),
    )
    for lr, options, color, label in runs:
        _, optimizer = trained(lr, 1200, **options)
        readings = [reading for reading in optimizer.readings if reading.known]
        style = "--" if options else "-"
        axes.plot(
            [one.step for one in readings], [one.r for one in readings], style, color=color, label=label, linewidth=1.4
        )
    axes.axhline(2, color=INK, linewidth=0.8, linestyle=":")
    axes.set(xlabel="step", ylabel="r", xlim=(0, 1200), ylim=(0, 3.2))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper center", ncols=4)
    return drawing


def phases() -> Figure:
    """The neurons of three runs: where they start, and where they end below eta* and past the edge."""
    start = FigureEight().cloud()
    kept, _ = trained(0.04, 2000, mode="preserve")
    lost, _ = trained(0.04, 2000)
    drawing, panels = figure(9.0, 3.4, 3)
    titles = ("the start", "after 2,000 steps at r ≤ 0.9", "after as many, with r of 2.9 at first")
    for axes, cloud, title in zip(panels, (start, kept.cloud(), lost.cloud()), titles):
        axes.scatter(*cloud.T, s=7, color=BLUE)
        found = homology.persistence(torch.from_numpy(cloud), degree=1)
        diameter = torch.pdist(torch.from_numpy(cloud)).max().item()
        loops = sorted((end - born for born, end in found.diagrams[1]), reverse=True)[:2]
        shown = " and ".join(f"{loop / diameter:.3f}" for loop in loops) or "none"
        axes.set_xlabel(f"largest loops / diameter: {shown}", fontsize=8)
        axes.set_title(title, fontsize=10, color=INK)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
    panels[0].set_ylabel("outgoing weight a")
    return drawing


DRAWN: dict[str, tuple[Callable[[], Figure], str]] = {
    "neurons": (neurons, "svg"),
    "distortion": (distortion, "svg"),
    "persistence": (persistence, "svg"),
    "critical": (critical, "svg"),
    "edge": (edge, "svg"),
    "phases": (phases, "png"),
}


def save(drawing: Figure, path: Path) -> None:
    """Write a picture that is the same, byte for byte, whenever its numbers are."""
    if path.suffix == ".svg":
        drawing.savefig(path, metadata={"Date": None, "Creator": None})
        return
    from PIL import Image

    buffer = io.BytesIO()
    drawing.savefig(buffer, dpi=120)
    Image.open(buffer).convert("RGB").quantize(64).save(path, optimize=True)


def main(names: list[str]) -> None:
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "topoopt", "font.family": "sans-serif", "font.size": 9}
    for name in names or list(DRAWN):
        draw, kind = DRAWN[name]
        save(draw(), HERE / f"{name}.{kind}")


if __name__ == "__main__":
    main(sys.argv[1:])

